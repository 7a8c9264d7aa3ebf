package apply

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/journal/plan"
)

const (
	splay  = 4
	remote = "remote"
	image  = "1234"
)

// history is a journal as a primary writes it.
type history struct {
	t       *rapid.T
	primary *model
	entries []plan.Entry
	// after tells what the image is when all entries up to one are done, as far
	// as its data goes. Entries of an operation in between are left out.
	after  []string
	tag    uint64
	entry  uint64
	op     uint64
	open   []format.Op // begun, with effect at their end
	single bool        // every write is of one object
}

func (h *history) add(e format.Event) {
	object := h.entry % splay
	h.entries = append(h.entries, plan.Entry{
		Position: format.Position{Object: object, Tag: h.tag, Entry: h.entry},
		Event:    e, Time: time.Unix(int64(len(h.entries)), 0), Size: 10,
	})
	h.entry++
	h.after = append(h.after, h.primary.content())
}

func (h *history) epoch() {
	// What the primary leaves open its recovery carries out.
	for _, op := range h.open {
		h.primary.do(op)
	}
	h.open = nil
	h.tag += uint64(rapid.IntRange(1, 2).Draw(h.t, "epochs"))
	h.entry, h.op = 0, 0
}

func (h *history) name() string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(h.t, "name")
}

// few returns one of few offsets, so that events meet.
func (h *history) few() uint64 {
	list := []uint64{0, 2, 14, 128, 62}
	if h.single {
		list = list[:4] // the last may be of two objects
	}
	return rapid.SampledFrom(list).Draw(h.t, "offset")
}

func (h *history) io() format.Event {
	size := h.primary.size
	offset := rapid.Uint64Range(0, size+10).Draw(h.t, "offset")
	length := rapid.Uint64Range(1, 70).Draw(h.t, "length")
	if h.single {
		length = min(length, 64-offset%64)
	}
	n := byte(len(h.entries))
	data := func(length uint64) []byte {
		b := make([]byte, length)
		for i := range b {
			b[i] = n + byte(i)
		}
		return b
	}
	switch rapid.IntRange(0, 11).Draw(h.t, "io") {
	case 0:
		return format.Flush{}
	case 1:
		return format.Discard{Offset: offset, Length: length, Granularity: rapid.SampledFrom([]uint32{0, 8, 64}).Draw(h.t, "granularity")}
	case 2:
		return format.WriteSame{Offset: offset, Length: length, Data: []byte{n}}
	case 3, 4, 5:
		// Values that come back make it matter what is compared with what.
		v := func(what string) []byte {
			b := make([]byte, length)
			for i := range b {
				b[i] = byte(rapid.IntRange(0, 1).Draw(h.t, what))
			}
			return b
		}
		length = rapid.SampledFrom([]uint64{2, 2, 4}).Draw(h.t, "compared")
		return format.CompareAndWrite{Offset: h.few(), Length: length, Compare: v("compare"), Data: v("write")}
	case 6, 7, 8:
		return format.Write{Offset: h.few(), Length: 1, Data: []byte{byte(rapid.IntRange(0, 1).Draw(h.t, "value"))}}
	default:
		return format.Write{Offset: offset, Length: length, Data: data(length)}
	}
}

// operation returns one that the primary can carry out now, nil if the one that
// was drawn cannot be.
func (h *history) operation() format.Op {
	if len(h.open) > 0 {
		// Operations on snapshots exclude each other; it is enough to test one at
		// a time together with others that do not bear on it.
		return format.MetadataSet{ID: h.op, Key: h.name(), Value: fmt.Sprint(h.op)}
	}
	m := h.primary
	free, locked := m.snapNames(false), m.snapNames(true)
	all := append(slices.Clone(free), locked...)
	pick := func(list []string) string { return rapid.SampledFrom(list).Draw(h.t, "snapshot") }
	kind := rapid.IntRange(0, 11).Draw(h.t, "operation")
	switch {
	case kind <= 2:
		if name := h.name(); !m.snapNamed(name) {
			return format.SnapCreate{Snap: user(h.op, name)}
		}
	case kind == 3 && len(free) > 0:
		return format.SnapRemove{Snap: user(h.op, pick(free))}
	case kind == 4 && len(all) > 0:
		if to := h.name(); !m.snapNamed(to) {
			return format.SnapRename{ID: h.op, From: pick(all), To: to}
		}
	case kind == 5 && len(free) > 0:
		return format.SnapProtect{Snap: user(h.op, pick(free))}
	case kind == 6 && len(locked) > 0:
		return format.SnapUnprotect{Snap: user(h.op, pick(locked))}
	case kind == 7 && len(all) > 0:
		return format.SnapRollback{Snap: user(h.op, pick(all))}
	case kind == 8:
		return format.Resize{ID: h.op, Size: rapid.Uint64Range(1, 400).Draw(h.t, "size")}
	case kind == 9:
		return format.Rename{ID: h.op, Name: h.name()}
	case kind == 10:
		return format.MetadataRemove{ID: h.op, Key: h.name()}
	case kind == 11:
		return format.SnapLimit{ID: h.op, Limit: h.op}
	}
	return nil
}

func holds(op format.Op) bool {
	switch op.(type) {
	case format.SnapCreate, format.Resize:
		return true
	}
	return false
}

func (h *history) step() {
	switch kind := rapid.IntRange(0, 19).Draw(h.t, "step"); {
	case kind == 0:
		h.epoch()
	case kind <= 5:
		h.op++
		op := h.operation()
		if op == nil {
			return
		}
		failed := rapid.IntRange(0, 5).Draw(h.t, "failed") == 0
		if holds(op) {
			if !failed {
				h.primary.do(op)
			}
			h.add(op)
			if !failed && rapid.IntRange(0, 9).Draw(h.t, "dies") == 0 {
				h.epoch()
				return
			}
			for range rapid.IntRange(0, 2).Draw(h.t, "held") {
				h.doIO()
			}
		} else {
			h.add(op)
			if rapid.Bool().Draw(h.t, "long") {
				h.open = append(h.open, op)
				return
			}
			if !failed {
				h.primary.do(op)
			}
		}
		h.finish(op, failed)
	case kind <= 7 && len(h.open) > 0:
		i := rapid.IntRange(0, len(h.open)-1).Draw(h.t, "ends")
		op := h.open[i]
		h.open = slices.Delete(h.open, i, i+1)
		h.primary.do(op)
		h.finish(op, false)
	default:
		h.doIO()
	}
}

func (h *history) finish(op format.Op, failed bool) {
	f := format.OpFinish{ID: op.OpID()}
	if failed {
		f.Result = -17
	}
	h.add(f)
}

func (h *history) doIO() {
	e := h.io()
	h.primary.do(e)
	h.add(e)
}

func draw(t *rapid.T, single bool) *history {
	l := merge.Layout{ObjectSize: 64}
	if !single {
		l = rapid.SampledFrom([]merge.Layout{l, {ObjectSize: 64, StripeUnit: 16, StripeCount: 2}}).Draw(t, "layout")
	}
	h := &history{t: t, primary: newModel(l, 300), tag: 1, single: single}
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		h.step()
	}
	h.epoch()
	h.doIO() // so that the end of the epoch before is seen
	return h
}

// replay goes on from what is stored until it is done or crashes.
func replay(t *rapid.T, h *history, m *model, limits plan.Limits, check func(n int)) error {
	ctx := context.Background()
	var stored *plan.Record
	if m.record != nil {
		r, err := plan.DecodeRecord(m.record)
		if err != nil {
			t.Fatal(err)
		}
		stored = &r
	}
	rec, exact := plan.Resume(plan.Found{Stored: stored, MirrorUUID: remote, ImageID: image, LocalTag: m.localTag})
	if !exact && stored != nil {
		t.Fatal("the record is not trusted")
	}
	rec.Until = format.Position{} // nobody else is at work
	a := New(m, rec)
	if err := a.Under(ctx, "lock", m.localTag); err != nil {
		return err
	}
	p := plan.New(splay, rec.Progress)
	next := 0
	if first, ok := rec.Done.First(); ok {
		next = slices.IndexFunc(h.entries, func(e plan.Entry) bool { return e.Position == first }) + 1
	}
	for {
		w, ok := p.Next(m.Image(), limits)
		if !ok {
			if next == len(h.entries) {
				return a.Checkpoint(ctx)
			}
			for range rapid.IntRange(1, 20).Draw(t, "arrive") {
				if next < len(h.entries) {
					p.Push(h.entries[next])
					next++
				}
			}
			continue
		}
		if err := doMore(ctx, t, p, a, w, m.Image(), limits); err != nil {
			return err
		}
		if done, ok := a.Progress().Done.First(); ok && check != nil {
			check(slices.IndexFunc(h.entries, func(e plan.Entry) bool { return e.Position == done }))
		}
		if rapid.IntRange(0, 3).Draw(t, "checkpoint") == 0 {
			if err := a.Checkpoint(ctx); err != nil {
				return err
			}
		}
	}
}

// doMore carries out a step, and sometimes what follows in the same go.
func doMore(ctx context.Context, t *rapid.T, p *plan.Planner, a *Applier, w plan.Work, img plan.Image, lim plan.Limits) error {
	batch, ok := w.(*plan.Batch)
	if !ok {
		return a.Do(ctx, w)
	}
	batches := []*plan.Batch{batch}
	for range rapid.IntRange(0, 3).Draw(t, "follow") {
		b, ok := p.NextBatch(img, lim)
		if !ok {
			break
		}
		batches = append(batches, b)
	}
	if len(batches) == 1 {
		return a.Do(ctx, w)
	}
	n, err := a.DoBatches(ctx, batches)
	if n > 0 && !reflect.DeepEqual(a.Progress(), batches[n-1].After()) {
		t.Fatalf("%d of %d batches were carried out, the progress is %+v", n, len(batches), a.Progress())
	}
	return err
}

func TestCrashesAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := draw(t, false)
		m := newModel(h.primary.layout, 300)
		for crash := 0; ; crash++ {
			m.fuse = -1
			if crash < 10 {
				m.fuse = rapid.IntRange(0, rapid.SampledFrom([]int{4, 40}).Draw(t, "far")).Draw(t, "fuse")
			}
			limits := plan.Limits{Entries: rapid.IntRange(1, 20).Draw(t, "entries"), Bytes: uint64(rapid.IntRange(1, 1000).Draw(t, "bytes")),
				Strict: rapid.Bool().Draw(t, "strict")}
			err := replay(t, h, m, limits, func(n int) {
				if crash == 0 && m.content() != h.after[n] && !inside(h, n) {
					t.Fatalf("after entry %d (%T) the image is not what it was", n, h.entries[n].Event)
				}
			})
			if err == nil {
				break
			}
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff(h.primary.look(), m.look()); d != "" {
			t.Fatalf("(-want +got)\n%s", d)
		}
	})
}

// inside says that entry n is one at which the primary was in the middle of
// an operation that it then recovered from.
func inside(h *history, n int) bool {
	return n+1 == len(h.entries) || h.entries[n+1].Tag != h.entries[n].Tag
}

// TestStrictIsAlwaysAtAPoint: whenever the copy is looked at, it is what the
// image was after some entry.
func TestStrictIsAlwaysAtAPoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := merge.Layout{ObjectSize: 64}
		h := &history{t: t, primary: newModel(l, 300), tag: 1, single: true}
		for range rapid.IntRange(1, 60).Draw(t, "writes") {
			h.doIO()
		}
		states := map[string]int{string(make([]byte, 300)): 0}
		for i, s := range h.after {
			states[s] = i
		}
		m := newModel(l, 300)
		m.atEvery = func() {
			if _, ok := states[m.content()]; !ok {
				m.violation = errors.New("the image is at no point of the journal")
			}
		}
		if err := replay(t, h, m, plan.StrictLimits(), nil); err != nil {
			t.Fatal(err)
		}
		if m.violation != nil {
			t.Fatal(m.violation)
		}
	})
}

// TestFlushesAreNotCrossed: whenever the copy is looked at, no write after a flush
// is there without all writes before it.
func TestFlushesAreNotCrossed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := merge.Layout{ObjectSize: 64}
		h := &history{t: t, primary: newModel(l, 300), tag: 1}
		epoch := byte(1)
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			if rapid.IntRange(0, 4).Draw(t, "flush") == 0 {
				h.add(format.Flush{})
				epoch++
				continue
			}
			// A place of its own for each write, with the number of flushes before it.
			e := format.Write{Offset: uint64(len(h.entries)) * 7 % 300, Length: 1, Data: []byte{epoch}}
			h.primary.do(e)
			h.add(e)
		}
		want := h.primary.content()
		m := newModel(l, 300)
		m.atEvery = func() {
			var newest byte
			got := m.content()
			for i := range got {
				newest = max(newest, got[i])
			}
			for i := range got {
				if want[i] != 0 && want[i] < newest && got[i] != want[i] {
					m.violation = fmt.Errorf("a write before flush %d is missing after it", want[i])
				}
			}
		}
		if err := replay(t, h, m, plan.LimitsFor(1<<20), nil); err != nil {
			t.Fatal(err)
		}
		if m.violation != nil {
			t.Fatal(m.violation)
		}
	})
}
