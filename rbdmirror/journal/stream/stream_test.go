package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"encoding/hex"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cephmirror/rbdmirror/journal/format"
)

// world is a journal as its objects show it, and who writes to it.
type world struct {
	splay  uint64
	limit  int
	pad    int
	active uint64
	tag    uint64 // the newest
	next   uint64 // entry of it
	data   map[uint64][]byte

	flight  [][]flying               // by offset
	written map[format.Position]bool // object 0 in all of them
	places  map[format.Position]uint64
}

type flying struct {
	tag, entry uint64
	payload    []byte
}

func newWorld(splay uint64, limit, pad int) *world {
	return &world{splay: splay, limit: limit, pad: pad, data: map[uint64][]byte{}, flight: make([][]flying, splay),
		written: map[format.Position]bool{}, places: map[format.Position]uint64{}}
}

// submit hands an entry to the recorder.
func (w *world) submit(payload []byte) {
	k := w.next % w.splay
	w.flight[k] = append(w.flight[k], flying{w.tag, w.next, payload})
	w.next++
}

// land makes the oldest entry in flight at an offset durable.
func (w *world) land(k uint64) {
	if len(w.flight[k]) == 0 {
		return
	}
	object := w.active*w.splay + k
	if len(w.data[object]) >= w.limit {
		// The set is closed when everything in flight to it has landed.
		for i := range w.splay {
			o := w.active*w.splay + i
			for len(w.flight[i]) > 0 && len(w.data[o]) < w.limit {
				w.append(o, i)
			}
		}
		w.active++
		object += w.splay
	}
	if len(w.flight[k]) > 0 {
		w.append(object, k)
	}
}

func (w *world) append(object, k uint64) {
	f := w.flight[k][0]
	w.flight[k] = w.flight[k][1:]
	b := format.AppendEntry(w.data[object], f.tag, f.entry, f.payload)
	for w.pad > 0 && len(b)%w.pad != 0 {
		b = append(b, 0)
	}
	w.data[object] = b
	key := format.Position{Tag: f.tag, Entry: f.entry}
	w.written[key], w.places[key] = true, object
}

func (w *world) settle() {
	for {
		busy := false
		for k := range w.splay {
			for len(w.flight[k]) > 0 {
				w.land(k)
				busy = true
			}
		}
		if !busy {
			return
		}
	}
}

// epoch begins a new epoch; what the old writer had in flight is lost.
func (w *world) epoch() {
	w.flight = make([][]flying, w.splay)
	w.tag++
	w.next = 0
}

// truth is what a reader must give out.
func (w *world) truth() (list []format.Position) {
	for tag := range w.tag + 1 {
		for e := uint64(0); ; e++ {
			key := format.Position{Tag: tag, Entry: e}
			if !w.written[key] {
				break
			}
			list = append(list, format.Position{Object: w.places[key], Tag: tag, Entry: e})
		}
	}
	return list
}

func (w *world) answer(f Fetch) []byte {
	b := w.data[f.Object]
	if f.Offset >= uint64(len(b)) {
		return nil
	}
	b = b[f.Offset:]
	return slices.Clone(b[:min(uint64(len(b)), f.Length)])
}

type pendingFetch struct {
	Fetch
	data  []byte
	early bool // the answer is as of when it was asked for
}

func payloadOf(tag, entry uint64, size int) []byte {
	return append([]byte(fmt.Sprintf("%d/%d ", tag, entry)), make([]byte, size)...)
}

type harness struct {
	t                 *rapid.T
	w                 *world
	r                 *Reader
	pending           []pendingFetch
	look              Stamp
	sawActive, sawTag uint64
	got               []format.Position
	// whole is all there will be, once the header was looked at; nil: not known.
	whole []format.Position
}

func (h *harness) drain() {
	for {
		e, ok, err := h.r.Next()
		if err != nil {
			h.t.Fatal(err)
		}
		if !ok {
			if h.whole != nil && h.r.Exhausted() && len(h.got) < len(h.whole) {
				h.t.Fatalf("exhausted after %d of %d entries", len(h.got), len(h.whole))
			}
			return
		}
		want := payloadOf(e.Tag, e.Entry, 0)
		if string(e.Payload[:min(len(want), len(e.Payload))]) != string(want) {
			h.t.Fatalf("entry %v has the payload %q", e.Position, e.Payload)
		}
		h.got = append(h.got, e.Position)
	}
}

func (h *harness) ask(budget int) bool {
	list := h.r.Want(budget)
	for _, f := range list {
		p := pendingFetch{Fetch: f, early: rapid.Bool().Draw(h.t, "early")}
		if p.early {
			p.data = h.w.answer(f)
		}
		h.pending = append(h.pending, p)
	}
	return len(list) > 0
}

func (h *harness) deliver(i int) {
	p := h.pending[i]
	h.pending = slices.Delete(h.pending, i, i+1)
	if !p.early {
		p.data = h.w.answer(p.Fetch)
	}
	if rapid.IntRange(0, 19).Draw(h.t, "failed") == 0 {
		h.r.Failed(p.Fetch)
		return
	}
	if err := h.r.Fetched(p.Fetch, p.data); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) finish() {
	for range 1000 {
		h.r.Saw(h.r.Look(), h.w.active, h.w.tag)
		h.r.Poll()
		before := len(h.got)
		for h.ask(1<<20) || len(h.pending) > 0 {
			for len(h.pending) > 0 {
				h.deliver(0)
			}
			h.drain()
		}
		if len(h.got) == before && len(h.got) >= len(h.w.truth()) {
			return
		}
	}
}

func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(uint64(rapid.IntRange(1, 5).Draw(t, "splay")), rapid.IntRange(60, 2000).Draw(t, "limit"),
			rapid.SampledFrom([]int{0, 0, 64}).Draw(t, "pad"))
		h := &harness{t: t, w: w, r: New(Geometry{Order: 24, Splay: uint8(w.splay)}, nil, 0)}
		steps := rapid.IntRange(1, 200).Draw(t, "steps")
		for range steps {
			switch rapid.IntRange(0, 11).Draw(t, "step") {
			case 0, 1, 2:
				for range rapid.IntRange(1, 6).Draw(t, "burst") {
					w.submit(payloadOf(w.tag, w.next, rapid.IntRange(0, 60).Draw(t, "size")))
				}
			case 3, 4:
				w.land(uint64(rapid.IntRange(0, int(w.splay)-1).Draw(t, "offset")))
			case 5:
				if rapid.Bool().Draw(t, "clean") {
					w.settle()
				}
				w.epoch()
			case 6:
				h.look, h.sawActive, h.sawTag = h.r.Look(), w.active, w.tag
			case 7:
				if h.look != 0 {
					h.r.Saw(h.look, h.sawActive, h.sawTag)
				}
			case 8:
				h.r.Poll()
			case 9:
				h.ask(rapid.IntRange(0, 1<<20).Draw(t, "budget"))
			default:
				if len(h.pending) > 0 {
					h.deliver(rapid.IntRange(0, len(h.pending)-1).Draw(t, "which"))
				}
				h.drain()
			}
		}
		if rapid.Bool().Draw(t, "settled") {
			w.settle()
		}
		h.finish()
		if d := cmp.Diff(w.truth(), h.got); d != "" {
			t.Fatalf("(-want +got)\n%s", d)
		}
		if n := h.r.Buffered(); n < 0 {
			t.Fatalf("%d bytes are held", n)
		}
		resume(t, w)
	})
}

// resume starts again after any of the entries.
func resume(t *rapid.T, w *world) {
	truth := w.truth()
	if len(truth) == 0 {
		return
	}
	n := rapid.IntRange(1, len(truth)).Draw(t, "done")
	after := format.Positions(nil).Advance(w.splay, truth[:n]...)
	minimum := ^uint64(0)
	for _, p := range after {
		minimum = min(minimum, p.Object/w.splay)
	}
	if len(after) < int(w.splay) {
		minimum = 0
	}
	// The sets before are trimmed.
	for object := range w.data {
		if object/w.splay < minimum {
			delete(w.data, object)
		}
	}
	h := &harness{t: t, w: w, r: New(Geometry{Order: 24, Splay: uint8(w.splay)}, after, minimum)}
	h.got, h.whole = slices.Clone(truth[:n]), truth
	h.finish()
	if last := truth[len(truth)-1]; last.Tag == w.tag && !h.r.Exhausted() {
		t.Fatalf("after %d: not exhausted", n)
	}
	if d := cmp.Diff(truth, h.got); d != "" {
		t.Fatalf("after %d (-want +got)\n%s", n, d)
	}
}

func simple(t *testing.T, objects map[uint64][]byte, active uint64, tags ...uint64) ([]format.Position, error) {
	t.Helper()
	w := &world{splay: 4, data: objects}
	r := New(Geometry{Order: 24, Splay: 4}, nil, 0)
	var newest uint64
	for _, tag := range tags {
		newest = max(newest, tag)
	}
	var got []format.Position
	for {
		r.Saw(r.Look(), active, newest)
		list := r.Want(1 << 20)
		for _, f := range list {
			if err := r.Fetched(f, w.answer(f)); err != nil {
				return got, err
			}
		}
		for {
			e, ok, err := r.Next()
			if err != nil {
				return got, err
			}
			if !ok {
				break
			}
			got = append(got, e.Position)
		}
		if r.WantLook() {
			continue
		}
		if len(list) == 0 {
			return got, nil
		}
	}
}

func TestCapturedJournals(t *testing.T) {
	for _, name := range []string{"reef-journal.json", "tentacle-journal.json", "tentacle-padded.json"} {
		b, err := os.ReadFile("../format/testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		var j struct {
			Active  uint64 `json:"active_set"`
			Objects map[string]string
			Entries []struct {
				Object uint64
				Tag    uint64 `json:"tag_tid"`
				Entry  uint64 `json:"entry_tid"`
			}
			Tags []struct{ TID uint64 }
		}
		if err := json.Unmarshal(b, &j); err != nil {
			t.Fatal(err)
		}
		objects := map[uint64][]byte{}
		for k, text := range j.Objects {
			n, _ := strconv.ParseUint(k, 10, 64)
			objects[n], _ = hex.DecodeString(text)
		}
		var want []format.Position
		for _, e := range j.Entries {
			want = append(want, format.Position(e))
		}
		slices.SortFunc(want, format.Position.Compare)
		got, err := simple(t, objects, j.Active, j.Tags[len(j.Tags)-1].TID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", name, d)
		}
	}
}

func TestFaults(t *testing.T) {
	entry := func(b []byte, tag, n uint64) []byte { return format.AppendEntry(b, tag, n, []byte("x")) }
	garbage := []byte("garbage that is long enough to be seen")
	at := func(o, tag, n uint64) format.Position { return format.Position{Object: o, Tag: tag, Entry: n} }
	for _, c := range []struct {
		name    string
		objects map[uint64][]byte
		active  uint64
		tags    []uint64
		want    []format.Position
		err     error
	}{
		{name: "nothing"},
		{name: "a gap at one offset", objects: map[uint64][]byte{0: entry(entry(nil, 1, 0), 1, 4), 1: entry(nil, 1, 5)},
			want: []format.Position{at(0, 1, 0)}, err: ErrMissing},
		{name: "a hole waits", objects: map[uint64][]byte{0: entry(nil, 1, 0), 2: entry(nil, 1, 2)},
			want: []format.Position{at(0, 1, 0)}},
		{name: "what follows a hole is dropped when the epoch is over",
			objects: map[uint64][]byte{0: entry(entry(nil, 1, 0), 2, 0), 2: entry(nil, 1, 2)},
			want:    []format.Position{at(0, 1, 0), at(0, 2, 0)}},
		{name: "an epoch without its beginning", objects: map[uint64][]byte{0: entry(nil, 1, 4)}, err: ErrMissing},
		{name: "a later epoch without its beginning waits", objects: map[uint64][]byte{0: entry(nil, 1, 0), 1: entry(nil, 2, 1)},
			want: []format.Position{at(0, 1, 0)}},
		{name: "an epoch without entries", objects: map[uint64][]byte{0: entry(nil, 1, 0)}, tags: []uint64{1, 2},
			want: []format.Position{at(0, 1, 0)}},
		{name: "corrupt", objects: map[uint64][]byte{0: append(entry(nil, 1, 0), garbage...), 1: entry(nil, 1, 1), 2: entry(nil, 1, 2), 3: entry(nil, 1, 3)},
			want: []format.Position{at(0, 1, 0), at(1, 1, 1), at(2, 1, 2), at(3, 1, 3)}, err: format.ErrCorrupt},
		{name: "corrupt behind a hole waits", objects: map[uint64][]byte{0: append(entry(nil, 1, 0), garbage...)},
			want: []format.Position{at(0, 1, 0)}},
		{name: "torn in a closed set", objects: map[uint64][]byte{0: entry(nil, 1, 0), 1: entry(nil, 1, 1)[:30]}, active: 1,
			want: nil, err: ErrTorn},
		{name: "torn in the active set waits", objects: map[uint64][]byte{0: entry(nil, 1, 0), 1: entry(nil, 1, 1)[:30]},
			want: []format.Position{at(0, 1, 0)}},
		{name: "torn at the end of an epoch", objects: map[uint64][]byte{0: entry(nil, 1, 0), 1: entry(nil, 1, 1)[:30]}, tags: []uint64{2},
			want: []format.Position{at(0, 1, 0)}, err: ErrTorn},
		{name: "stale entries of a dead writer", objects: map[uint64][]byte{0: entry(entry(nil, 1, 0), 2, 0), 1: entry(entry(nil, 2, 1), 1, 1)},
			want: []format.Position{at(0, 1, 0), at(0, 2, 0), at(1, 2, 1)}},
		{name: "sets that nobody wrote to", objects: map[uint64][]byte{8: entry(nil, 1, 0)}, active: 2,
			want: []format.Position{at(8, 1, 0)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := simple(t, c.objects, c.active, c.tags...)
			if !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if d := cmp.Diff(c.want, got); d != "" && !(c.err != nil && len(c.want) == 0) {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// TestCorruptInThePast has what is done with in the way of what is not.
func TestCorruptInThePast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const splay = 2
		objects := map[uint64][]byte{}
		size := func() []byte { return make([]byte, rapid.IntRange(0, 300).Draw(t, "payload")) }
		past := rapid.Uint64Range(2, 40).Draw(t, "past")
		var after format.Positions
		for n := range past {
			objects[n%splay] = format.AppendEntry(objects[n%splay], 1, n, size())
			after = after.Advance(splay, format.Position{Object: n % splay, Tag: 1, Entry: n})
		}
		for range rapid.IntRange(1, 5).Draw(t, "errors") {
			b := objects[rapid.Uint64Range(0, splay-1).Draw(t, "object")]
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		}
		coming := rapid.Uint64Range(1, 40).Draw(t, "coming")
		for n := past; n < past+coming; n++ {
			objects[n%splay] = format.AppendEntry(objects[n%splay], 1, n, size())
		}
		r := New(Geometry{Order: 24, Splay: splay}, after, 0)
		for n := past; n < past+coming; {
			r.Saw(r.Look(), 0, 1)
			list := r.Want(1 << 20)
			for _, f := range list {
				b := objects[f.Object]
				b = b[min(f.Offset, uint64(len(b))):]
				if err := r.Fetched(f, b[:min(f.Length, uint64(len(b)))]); err != nil {
					t.Fatal(err)
				}
			}
			e, ok, err := r.Next()
			switch {
			case err != nil:
				t.Fatal(err)
			case !ok && len(list) == 0:
				t.Fatalf("entry %d does not come", n)
			case ok && e.Entry != n:
				t.Fatalf("entry %d instead of %d", e.Entry, n)
			case ok:
				n++
			}
		}
	})
}

// TestDurable has entries gone that the writer knows to be there.
func TestDurable(t *testing.T) {
	full := format.AppendEntry(nil, 1, 0, make([]byte, 100))
	at := len(full)
	full = format.AppendEntry(full, 1, 1, make([]byte, 100))
	wrong := bytes.Clone(full)
	wrong[at+27] ^= 255 // more than the object has
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{{"whole", full, nil}, {"torn", full[:at+50], ErrTorn}, {"gone", full[:at], ErrMissing}, {"too long", wrong, ErrTorn}, {"nothing", nil, ErrMissing}} {
		t.Run(c.name, func(t *testing.T) {
			r := New(Geometry{Order: 24, Splay: 1}, nil, 0)
			fetch := func() {
				for range 5 {
					for _, f := range r.Want(1 << 20) {
						b := c.data[min(f.Offset, uint64(len(c.data))):]
						if err := r.Fetched(f, b); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			next := func() (n int, err error) {
				for {
					_, ok, err := r.Next()
					if !ok || err != nil {
						return n, err
					}
					n++
				}
			}
			r.Saw(r.Look(), 0, 1)
			fetch()
			before, err := next()
			if err != nil {
				t.Fatal(err)
			}
			// Until it is known that there is more, it may still come.
			r.Durable(format.Positions{{Object: 0, Tag: 1, Entry: 1}})
			fetch()
			after, err := next()
			if !errors.Is(err, c.want) {
				t.Errorf("%v instead of %v", err, c.want)
			}
			if n := bytes.Count(c.data, full[:8]); c.want == nil && before+after != n {
				t.Errorf("%d and %d entries", before, after)
			}
		})
	}
}

// TestAllBeforeCorruption has everything given out that comes before what cannot
// be read.
func TestAllBeforeCorruption(t *testing.T) {
	var b []byte
	for n := range uint64(50) {
		b = format.AppendEntry(b, 1, n, []byte("some words"))
	}
	b = append(b, []byte("neither an entry nor zeros, but long enough")...)
	r := New(Geometry{Order: 24, Splay: 1}, nil, 0)
	r.Saw(r.Look(), 0, 1)
	for _, f := range r.Want(1 << 20) {
		if err := r.Fetched(f, b); err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(50) {
		if e, ok, err := r.Next(); err != nil || !ok || e.Entry != n {
			t.Fatalf("%+v, %v, %v", e, ok, err)
		}
	}
	if _, _, err := r.Next(); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("then %v", err)
	}
	if list := r.Want(1 << 20); len(list) > 0 {
		t.Errorf("more is wanted: %v", list)
	}
}

func TestTheLaterOfTwoCounts(t *testing.T) {
	b := format.AppendEntry(nil, 1, 0, []byte("first"))
	b = format.AppendEntry(b, 1, 0, []byte("second"))
	r := New(Geometry{Order: 24, Splay: 1}, nil, 0)
	f := r.Want(0)
	if err := r.Fetched(f[0], b); err != nil {
		t.Fatal(err)
	}
	e, ok, err := r.Next()
	if err != nil || !ok || string(e.Payload) != "second" {
		t.Errorf("%q, %v, %v", e.Payload, ok, err)
	}
	if _, ok, err := r.Next(); ok || err != nil {
		t.Errorf("another one, %v", err)
	}
	if n := r.Buffered(); n != 0 {
		t.Errorf("%d bytes are held", n)
	}
}

func TestLargeEntriesAndBudget(t *testing.T) {
	w := &world{splay: 2, data: map[uint64][]byte{
		0: format.AppendEntry(nil, 1, 0, make([]byte, 3<<20)),
		1: format.AppendEntry(nil, 1, 1, make([]byte, 3<<20)),
	}}
	r := New(Geometry{Order: 24, Splay: 2}, nil, 0)
	entries := 0
	for range 20 {
		list := r.Want(4 << 20)
		if len(list) == 0 {
			break
		}
		for _, f := range list {
			if err := r.Fetched(f, w.answer(f)); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.Buffered(); n > 7<<20 {
			t.Errorf("%d bytes are held", n)
		}
		for {
			_, ok, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			entries++
		}
	}
	if entries != 2 {
		t.Errorf("%d entries", entries)
	}
}
