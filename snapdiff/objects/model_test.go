package objects

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is a file as MDS, clients and OSDs keep it, snapshots and the lazy
// cutting of truncated files included.
type model struct {
	layout  Layout
	objects map[uint64]*stored
	inode   inode
	snaps   []uint64 // live ones, ascending
	at      map[uint64]inode
	last    uint64

	uncut   []uint64 // objects that a truncation has not reached yet
	context []uint64 // the snapshots there were when it began
	orphans uint64   // a dead writer's data reaches up to here; 0: none
}

type inode struct {
	size     uint64
	seq, cut uint64 // truncate_seq, truncate_size
}

type stored struct {
	Object
	data []content // of the versions
}

type content struct {
	bytes []byte
	seq   uint64
}

// head returns the head, nil when there is none.
func (s *stored) head() *content {
	if n := len(s.Versions); n > 0 && s.Versions[n-1].ID == Head {
		return &s.data[n-1]
	}
	return nil
}

// prepare sets the head aside if the writer knows of newer snapshots than it.
func (s *stored) prepare(snaps []uint64) {
	if len(snaps) == 0 || snaps[len(snaps)-1] <= s.Seq {
		return
	}
	newest := snaps[len(snaps)-1]
	if h := s.head(); h != nil {
		v := Version{ID: newest, Size: uint64(len(h.bytes)), Overlap: upTo(uint64(len(h.bytes)))}
		for _, n := range snaps {
			if n > s.Seq {
				v.Snaps = append(v.Snaps, n)
			}
		}
		n := len(s.Versions) - 1
		s.Versions = slices.Insert(s.Versions, n, v)
		s.data = slices.Insert(s.data, n, content{bytes.Clone(h.bytes), h.seq})
	}
	s.Seq = newest
}

// touched takes a range from what the newest clone has in common with the head.
func (s *stored) touched(from, to uint64) {
	n := len(s.Versions) - 1
	if s.head() != nil {
		n--
	}
	if n >= 0 && from < to {
		v := &s.Versions[n]
		v.Overlap = subtract(v.Overlap, []Extent{{from, to - from}})
	}
}

func (s *stored) resize(size uint64) {
	h := s.head()
	if n := uint64(len(h.bytes)); size < n {
		s.touched(size, n)
		h.bytes = h.bytes[:size:size]
	} else {
		h.bytes = append(h.bytes, make([]byte, size-n)...)
	}
	s.Versions[len(s.Versions)-1].Size = size
}

func (s *stored) cut(seq, size uint64) {
	if h := s.head(); h != nil && h.seq < seq {
		s.resize(size)
		s.head().seq = seq
	}
}

func (s *stored) remove() {
	if h := s.head(); h != nil {
		s.touched(0, uint64(len(h.bytes)))
		n := len(s.Versions) - 1
		s.Versions, s.data = s.Versions[:n], s.data[:n]
	}
}

func (s *stored) write(offset uint64, data []byte, seq, cut uint64) {
	if s.head() == nil {
		s.Versions = append(s.Versions, Version{ID: Head})
		s.data = append(s.data, content{seq: seq})
	}
	s.cut(seq, cut)
	end := offset + uint64(len(data))
	s.touched(offset, end)
	if end > uint64(len(s.head().bytes)) {
		s.resize(end)
	}
	copy(s.head().bytes[offset:], data)
}

func (m *model) object(n uint64) *stored {
	if m.objects[n] == nil {
		m.objects[n] = &stored{}
	}
	return m.objects[n]
}

// locate returns where a byte of the file is.
func (m *model) locate(offset uint64) (object, at uint64) {
	l := m.layout
	unit := offset / l.StripeUnit
	stripe, position := unit/l.StripeCount, unit%l.StripeCount
	per := l.ObjectSize / l.StripeUnit
	return stripe/per*l.StripeCount + position, stripe%per*l.StripeUnit + offset%l.StripeUnit
}

// cutOf is where an object ends when the file is cut at size.
func (m *model) cutOf(object, size uint64) uint64 {
	for at := range m.layout.ObjectSize {
		if m.layout.FileOffset(object, at) >= size {
			return at
		}
	}
	return m.layout.ObjectSize
}

func (m *model) writeBytes(offset uint64, data []byte) {
	for i := range data {
		n, at := m.locate(offset + uint64(i))
		o := m.object(n)
		o.prepare(m.snaps)
		o.write(at, data[i:i+1], m.inode.seq, m.cutOf(n, m.inode.cut))
	}
}

// recover makes a dead writer's data part of the file.
func (m *model) recover() {
	m.inode.size = max(m.inode.size, m.orphans)
	m.orphans = 0
}

func (m *model) cutOne(snaps []uint64) {
	n := m.uncut[0]
	m.uncut = m.uncut[1:]
	if o := m.objects[n]; o != nil && o.head() != nil {
		o.prepare(snaps)
		o.cut(m.inode.seq, m.cutOf(n, m.inode.cut))
	}
}

func (m *model) truncate(size uint64) {
	m.recover()
	if size >= m.inode.size {
		m.inode.size = size
		return
	}
	for len(m.uncut) > 0 {
		m.cutOne(m.snaps)
	}
	for at := size; at < m.inode.size; at++ {
		if n, _ := m.locate(at); !slices.Contains(m.uncut, n) {
			m.uncut = append(m.uncut, n)
		}
	}
	m.inode.size, m.inode.cut = size, size
	m.inode.seq++
	m.context = slices.Clone(m.snaps)
}

func (m *model) punch(from, to uint64) {
	for at := from; at < min(to, m.inode.size); at++ {
		n, in := m.locate(at)
		o := m.objects[n]
		if o == nil || o.head() == nil {
			continue
		}
		o.prepare(m.snaps)
		if in == 0 && m.layout.FileOffset(n, m.layout.ObjectSize-1) < to && from <= at {
			o.remove()
			continue
		}
		if in < uint64(len(o.head().bytes)) {
			o.touched(in, in+1)
			o.head().bytes[in] = 0
		}
	}
}

func (m *model) snapshot() {
	m.last++
	m.snaps = append(m.snaps, m.last)
	m.at[m.last] = m.inode
}

func (m *model) removeSnapshot(id uint64) {
	m.snaps = slices.DeleteFunc(m.snaps, func(s uint64) bool { return s == id })
	for _, o := range m.objects {
		for i := 0; i < len(o.Versions); i++ {
			v := &o.Versions[i]
			had := len(v.Snaps)
			v.Snaps = slices.DeleteFunc(v.Snaps, func(s uint64) bool { return s == id })
			if had == 0 || len(v.Snaps) > 0 {
				continue
			}
			if i > 0 {
				before := &o.Versions[i-1]
				before.Overlap = intersect(before.Overlap, v.Overlap)
			}
			o.Versions = slices.Delete(o.Versions, i, i+1)
			o.data = slices.Delete(o.data, i, i+1)
			i--
		}
	}
}

// read returns the file as it is in a snapshot.
func (m *model) read(t *rapid.T, snap uint64) []byte {
	ino := m.at[snap]
	out := make([]byte, ino.size)
	for i := range out {
		n, at := m.locate(uint64(i))
		o := m.objects[n]
		if o == nil {
			continue
		}
		v, err := o.serving(snap)
		if err != nil {
			t.Fatal(err)
		}
		if v < 0 || at >= uint64(len(o.data[v].bytes)) || o.data[v].seq < ino.seq && uint64(i) >= ino.cut {
			continue
		}
		out[i] = o.data[v].bytes[at]
	}
	return out
}

func (m *model) step(t *rapid.T) {
	const limit = 300
	place := rapid.Uint64Range(0, limit)
	switch rapid.SampledFrom([]string{"write", "write", "write zeros", "truncate", "truncate", "punch", "cut", "cut late",
		"snapshot", "snapshot", "remove", "orphan"}).Draw(t, "op") {
	case "write":
		m.recover()
		at, n := place.Draw(t, "at"), rapid.IntRange(1, 80).Draw(t, "length")
		m.writeBytes(at, bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, n))
		m.inode.size = max(m.inode.size, at+uint64(n))
	case "write zeros":
		m.recover()
		at, n := place.Draw(t, "at"), rapid.IntRange(1, 80).Draw(t, "length")
		m.writeBytes(at, make([]byte, n))
		m.inode.size = max(m.inode.size, at+uint64(n))
	case "orphan":
		m.recover()
		at := m.inode.size + rapid.Uint64Range(0, 20).Draw(t, "beyond")
		m.writeBytes(at, []byte{77, 77, 77})
		m.orphans = at + 3
	case "truncate":
		m.truncate(place.Draw(t, "size"))
	case "punch":
		from := place.Draw(t, "from")
		m.punch(from, from+rapid.Uint64Range(1, 150).Draw(t, "length"))
	case "cut", "cut late":
		if len(m.uncut) > 0 {
			m.cutOne(rapid.SampledFrom([][]uint64{m.snaps, m.context}).Draw(t, "context"))
		}
	case "snapshot":
		m.snapshot()
	case "remove":
		if len(m.snaps) > 2 {
			m.removeSnapshot(rapid.SampledFrom(m.snaps).Draw(t, "snapshot"))
		}
	}
}

func (m *model) list(_ context.Context, numbers []uint64) ([]Object, error) {
	out := make([]Object, len(numbers))
	for i, n := range numbers {
		if o := m.objects[n]; o != nil {
			out[i] = o.Object
		}
	}
	return out, nil
}

func TestScanAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SampledFrom([]uint64{8, 16, 64}).Draw(t, "unit")
		m := &model{
			layout:  Layout{unit, rapid.Uint64Range(1, 3).Draw(t, "stripes"), 64},
			objects: make(map[uint64]*stored), at: make(map[uint64]inode),
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			m.step(t)
		}
		m.snapshot()
		if len(m.snaps) < 2 {
			return
		}
		i := rapid.IntRange(0, len(m.snaps)-2).Draw(t, "old")
		j := rapid.IntRange(i+1, len(m.snaps)-1).Draw(t, "new")
		old, new := m.snaps[i], m.snaps[j]
		was, is := m.read(t, old), m.read(t, new)
		f := File{
			Layout: m.layout, OldSnap: old, NewSnap: new, OldSize: uint64(len(was)), NewSize: uint64(len(is)),
			List: m.list,
			ReadNew: func(buf []byte, offset uint64) error {
				copy(buf, is[offset:offset+uint64(len(buf))])
				return nil
			},
		}
		found, err := f.scan(t.Context(), tuning{
			probe: rapid.Uint64Range(1, 40).Draw(t, "probe"), join: rapid.Uint64Range(0, 4).Draw(t, "join"),
			extents: rapid.SampledFrom([]int{1, 3, 1000}).Draw(t, "extents"),
		})
		if err != nil {
			t.Fatal(err)
		}
		listed := make([]bool, len(is))
		var end uint64
		for k, e := range found {
			if e.Length == 0 || k > 0 && e.Offset <= end || e.End() > uint64(len(is)) {
				t.Fatalf("%v in a file of %d", found, len(is))
			}
			end = e.End()
			for at := e.Offset; at < end; at++ {
				listed[at] = true
			}
		}
		padded := make([]byte, max(len(is), len(was)))
		copy(padded, was)
		for at := range is {
			if is[at] != padded[at] && !listed[at] {
				t.Fatalf("byte %d differs (%d, %d) and is not in %v", at, padded[at], is[at], found)
			}
		}
	})
}
