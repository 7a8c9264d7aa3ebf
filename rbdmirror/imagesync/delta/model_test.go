package delta

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cephmirror/snapdiff/objects"
)

// object is one object as an OSD keeps it: a head, and clones that it sets aside
// when a writer knows of newer snapshots than the object does.
type object struct {
	seq    uint64
	head   []byte // nil: there is none
	clones []clone
}

type clone struct {
	snaps  []uint64
	bytes  []byte
	common []bool // with what came next
}

var errNoObject = errors.New("no such object")
var errIsThere = errors.New("object is there")

// prepare is what comes before any change. snaps is the writer's context,
// ascending.
func (o *object) prepare(snaps []uint64) {
	if len(snaps) == 0 || snaps[len(snaps)-1] <= o.seq {
		return
	}
	if o.head != nil {
		c := clone{bytes: bytes.Clone(o.head), common: make([]bool, len(o.head))}
		for i := range c.common {
			c.common[i] = true
		}
		for _, s := range snaps {
			if s > o.seq {
				c.snaps = append(c.snaps, s)
			}
		}
		o.clones = append(o.clones, c)
	}
	o.seq = snaps[len(snaps)-1]
}

func (o *object) touch(from, to int) {
	if n := len(o.clones); n > 0 {
		for i := from; i < min(to, len(o.clones[n-1].common)); i++ {
			o.clones[n-1].common[i] = false
		}
	}
}

func (o *object) resize(size int) {
	if size < len(o.head) {
		o.touch(size, len(o.head))
		o.head = o.head[:size:size]
		return
	}
	// What has never been is not in common.
	o.touch(len(o.head), size)
	o.head = append(o.head, make([]byte, size-len(o.head))...)
}

func (o *object) create() {
	if o.head == nil {
		o.head = []byte{}
	}
}

func (o *object) write(at int, data []byte) {
	o.create()
	o.touch(at, at+len(data))
	if end := at + len(data); end > len(o.head) {
		o.resize(end)
	}
	copy(o.head[at:], data)
}

func (o *object) zero(at, length int) {
	switch {
	case o.head == nil || at >= len(o.head):
	case at+length >= len(o.head):
		o.resize(at)
	default:
		o.touch(at, at+length)
		clear(o.head[at : at+length])
	}
}

func (o *object) remove() error {
	if o.head == nil {
		return errNoObject
	}
	o.touch(0, len(o.head))
	o.head = nil
	return nil
}

// at returns the object as it is in a snapshot, nil if it is not there.
func (o *object) at(snap uint64) []byte {
	for _, c := range o.clones {
		if slices.Contains(c.snaps, snap) {
			return c.bytes
		}
	}
	if snap > o.seq {
		return o.head
	}
	return nil
}

// trim forgets a snapshot.
func (o *object) trim(snap uint64) {
	for i := 0; i < len(o.clones); i++ {
		c := &o.clones[i]
		had := len(c.snaps)
		c.snaps = slices.DeleteFunc(c.snaps, func(s uint64) bool { return s == snap })
		if len(c.snaps) > 0 || had == 0 {
			continue
		}
		if i > 0 {
			before := &o.clones[i-1]
			for k := range before.common {
				before.common[k] = before.common[k] && k < len(c.common) && c.common[k]
			}
		}
		o.clones = slices.Delete(o.clones, i, i+1)
		i--
	}
}

// listed is what list_snaps answers.
func (o *object) listed() objects.Object {
	out := objects.Object{Seq: o.seq}
	for i, c := range o.clones {
		v := objects.Version{ID: c.snaps[len(c.snaps)-1], Size: uint64(len(c.bytes)), Snaps: c.snaps}
		next := 0
		if i+1 < len(o.clones) {
			next = len(o.clones[i+1].bytes)
		} else {
			next = len(o.head)
		}
		for k := range c.common {
			if !c.common[k] || k >= next {
				continue
			}
			if n := len(v.Overlap); n > 0 && v.Overlap[n-1].End() == uint64(k) {
				v.Overlap[n-1].Length++
			} else {
				v.Overlap = append(v.Overlap, Extent{Offset: uint64(k), Length: 1})
			}
		}
		out.Versions = append(out.Versions, v)
	}
	if o.head != nil {
		out.Versions = append(out.Versions, objects.Version{ID: objects.Head, Size: uint64(len(o.head))})
	}
	return out
}

// read is a sparse read of several extents: what may be a hole is left out when
// holes says so.
func read(content []byte, reads []Extent, grain int) (Data, [][]byte) {
	data, parts := make(Data, len(reads)), make([][]byte, len(reads))
	for i, e := range reads {
		for at := int(e.Offset); at < min(int(e.End()), len(content)); {
			to := min(at+grain-at%grain, int(e.End()), len(content))
			if !bytes.Equal(content[at:to], make([]byte, to-at)) {
				if n := len(data[i]); n > 0 && data[i][n-1].End() == uint64(at) {
					data[i][n-1].Length += uint64(to - at)
				} else {
					data[i] = append(data[i], Extent{Offset: uint64(at), Length: uint64(to - at)})
				}
				parts[i] = append(parts[i], content[at:to]...)
			}
			at = to
		}
	}
	return data, parts
}

// apply carries out steps, all or nothing.
func (o *object) apply(snaps []uint64, steps []Step, parts [][]byte) error {
	if len(steps) == 0 {
		return nil
	}
	switch steps[0].Kind {
	case AssertExists, Remove:
		if o.head == nil {
			return errNoObject
		}
	case CreateExclusive:
		if o.head != nil {
			return errIsThere
		}
	}
	o.prepare(snaps)
	for _, s := range steps {
		switch s.Kind {
		case Create, CreateExclusive:
			o.create()
		case Remove:
			if err := o.remove(); err != nil {
				return err
			}
		case Write:
			o.write(int(s.Offset), parts[s.Part][s.At:s.At+s.Length])
		case Zero:
			o.zero(int(s.Offset), int(s.Length))
		case Truncate:
			o.resize(int(s.Offset))
		}
	}
	return nil
}

// image is one object of an image: the source's, or the destination's. With a
// parent, what is not there shows the parent.
type image struct {
	object
	parent []byte // nil: none
	snaps  []uint64
}

func (m *image) shows(content []byte) []byte {
	if content == nil {
		content = m.parent
	}
	out := make([]byte, limit)
	copy(out, content)
	return out
}

const limit = 64

// change is what a client of the source does to it.
func (m *image) change(t *rapid.T) {
	at := rapid.IntRange(0, limit-1).Draw(t, "at")
	n := rapid.IntRange(1, limit-at).Draw(t, "length")
	// What needs the rest of the parent puts it below all snapshots first.
	copyUp := func() {
		if m.head == nil && m.parent != nil {
			m.write(0, m.parent)
		}
	}
	switch rapid.SampledFrom([]string{"write", "write", "write", "zeros", "discard", "discard all", "truncate"}).Draw(t, "change") {
	case "write":
		copyUp()
		m.prepare(m.snaps)
		m.write(at, bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, n))
	case "zeros":
		copyUp()
		m.prepare(m.snaps)
		m.write(at, make([]byte, n))
	case "discard":
		copyUp()
		if m.head != nil {
			m.prepare(m.snaps)
			m.zero(at, n)
		}
	case "truncate":
		copyUp()
		if m.head != nil && at < len(m.head) {
			m.prepare(m.snaps)
			m.resize(at)
		}
	case "discard all":
		if m.parent != nil {
			m.prepare(m.snaps)
			m.create()
			m.resize(0)
		} else if m.head != nil {
			m.prepare(m.snaps)
			if err := m.remove(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (m *image) snapshot(id uint64) { m.snaps = append(m.snaps, id) }

// sync is one synchronisation, or what a crash leaves of it.
type target struct{ remote, local uint64 }

func (m *image) sync(t *rapid.T, source *image, start uint64, targets []target) (finished bool, err error) {
	remotes := make([]uint64, len(targets))
	for i, g := range targets {
		remotes[i] = g.remote
	}
	// The source's clients go on meanwhile.
	list := source.listed()
	busy := func() {
		if rapid.IntRange(0, 3).Draw(t, "meanwhile") == 0 {
			source.change(t)
		}
	}
	busy()
	intervals, err := Intervals(list, start, remotes)
	if err != nil {
		return false, err
	}
	before := start
	for i, v := range intervals {
		grain := rapid.SampledFrom([]int{1, 4, 16}).Draw(t, "grain")
		gap := rapid.SampledFrom([]uint64{1, 8}).Draw(t, "gap")
		context := slices.DeleteFunc(slices.Clone(m.snaps), func(s uint64) bool { return s >= targets[i].local })
		if rapid.IntRange(0, 9).Draw(t, "crash") == 0 {
			return false, nil
		}
		busy()
		data, parts := read(source.at(targets[i].remote), Reads(ToRead(v), gap), grain)
		steps := Steps(v, data)
		err := m.apply(context, steps, parts)
		if errors.Is(err, errNoObject) && v.Partial() {
			up, parts2 := read(source.at(before), []Extent{{Length: v.OldSize}}, grain)
			if err := m.apply(nil, CopyUp(v, up), parts2); err != nil {
				return false, fmt.Errorf("copy-up: %w", err)
			}
			err = m.apply(context, steps, parts)
		}
		if err != nil && (!errors.Is(err, errNoObject) || v.Exists) {
			return false, err
		}
		before = targets[i].remote
	}
	return true, nil
}

func TestSyncAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var source, dest image
		if rapid.Bool().Draw(t, "clone") {
			source.parent = bytes.Repeat([]byte{200}, rapid.SampledFrom([]int{limit, limit / 2}).Draw(t, "overlap"))
			dest.parent = source.parent
		}
		var last uint64            // snapshot id of the source
		next := uint64(1000)       // of the destination, so that they cannot be taken for each other
		var start uint64           // what the destination has
		ids := map[uint64]uint64{} // source's to destination's
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			var targets []target
			for n := rapid.IntRange(0, 2).Draw(t, "user snapshots"); n >= 0; n-- {
				for range rapid.IntRange(0, 4).Draw(t, "changes") {
					source.change(t)
				}
				last += rapid.Uint64Range(1, 3).Draw(t, "ids")
				source.snapshot(last)
				targets = append(targets, target{remote: last})
			}
			for range rapid.IntRange(0, 3).Draw(t, "later changes") {
				source.change(t)
			}
			// Snapshots in between may be gone before they were seen.
			if len(targets) > 1 && rapid.Bool().Draw(t, "gone") {
				id := targets[0].remote
				source.snaps = slices.DeleteFunc(source.snaps, func(s uint64) bool { return s == id })
				source.trim(id)
				targets = targets[1:]
			}
			for i := range targets {
				next++
				targets[i].local = next
				ids[targets[i].remote] = next
				dest.snapshot(next)
			}
			for {
				finished, err := dest.sync(t, &source, start, targets)
				if err != nil {
					t.Fatal(err)
				}
				if finished {
					break
				}
			}
			start = last
			for _, s := range source.snaps {
				want, got := source.at(s), dest.at(ids[s])
				if !bytes.Equal(source.shows(want), dest.shows(got)) {
					t.Fatalf("snapshot %d (%d):\n%v\nis\n%v", s, ids[s], want, got)
				}
			}
			now := source.at(start)
			if dest.head != nil && (now == nil || !bytes.Equal(now, dest.head)) {
				t.Fatalf("head is %v, should be %v", dest.head, now)
			}
			// A source that was copied up below its snapshots may be ahead.
			if dest.head == nil && !bytes.Equal(source.shows(now), source.shows(nil)) {
				t.Fatalf("no head, should be %v", now)
			}
			for i := 0; i < len(source.snaps)-1; i++ {
				s := source.snaps[i]
				if rapid.IntRange(0, 2).Draw(t, "remove") > 0 {
					continue
				}
				source.snaps = slices.Delete(source.snaps, i, i+1)
				source.trim(s)
				dest.snaps = slices.DeleteFunc(dest.snaps, func(d uint64) bool { return d == ids[s] })
				dest.trim(ids[s])
				i--
			}
		}
	})
}

func TestFullCompareAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := func(label string) []byte {
			out := []byte{}
			for range rapid.IntRange(0, 5).Draw(t, label+" pieces") {
				out = append(out, bytes.Repeat([]byte{byte(rapid.IntRange(0, 2).Draw(t, label))}, rapid.IntRange(1, 12).Draw(t, "n"))...)
			}
			return out
		}
		was, is := content("was"), content("is")
		grain := rapid.SampledFrom([]int{1, 4, 16})
		o := object{head: bytes.Clone(was)}
		all := []Extent{{Length: limit}}
		old, oldBytes := read(was, all, grain.Draw(t, "old grain"))
		data, parts := read(is, all, grain.Draw(t, "new grain"))
		v := Compared(uint64(len(is)), Content{old[0], oldBytes[0]}, Content{data[0], parts[0]}, uint64(grain.Draw(t, "block")))
		steps := Steps(v, data)
		if err := o.apply(nil, steps, parts); err != nil {
			t.Fatal(err)
		}
		end := max(len(o.head), len(is))
		shown, wanted := make([]byte, end), make([]byte, end)
		copy(shown, o.head)
		copy(wanted, is)
		if !bytes.Equal(shown, wanted) {
			t.Fatalf("%v became %v, not %v", was, o.head, is)
		}
		if bytes.Equal(was, is) && len(steps) > 0 {
			t.Fatalf("%+v of %v", v, was)
		}
	})
}
