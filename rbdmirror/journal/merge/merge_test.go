package merge

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cephmirror/rbdmirror/journal/format"
)

// disk is an image as its objects hold it. Missing bytes are zeros.
type disk struct {
	layout  Layout
	size    uint64
	objects map[uint64][]byte
}

func (d *disk) apply(o *Object) {
	b := d.objects[o.Number]
	switch {
	case o.Drop:
		b = nil
	case o.Cut && uint64(len(b)) > o.CutAt:
		b = b[:o.CutAt]
	}
	b = bytes.Clone(b)
	for _, e := range o.Extents {
		for uint64(len(b)) < e.End() {
			b = append(b, 0)
		}
		copy(b[e.Offset:], e.AppendTo(nil))
	}
	d.objects[o.Number] = b
}

// content returns the image's bytes.
func (d *disk) content() []byte {
	out := make([]byte, d.size)
	d.layout.Pieces(0, d.size, func(p Piece) {
		if b := d.objects[p.Object]; p.Offset < uint64(len(b)) {
			copy(out[p.At:p.At+p.Length], b[p.Offset:])
		}
	})
	return out
}

// plain does an event to plain bytes.
func plain(l Layout, image []byte, e format.Event) {
	size := uint64(len(image))
	switch e := e.(type) {
	case format.Write:
		if e.Offset < size {
			copy(image[e.Offset:], e.Data)
		}
	case format.WriteSame:
		for i := range e.Length {
			if e.Offset+i < size {
				image[e.Offset+i] = e.Data[i%uint64(len(e.Data))]
			}
		}
	case format.Discard:
		if e.Granularity == 0 {
			for i := e.Offset; i < min(e.Offset+e.Length, size); i++ {
				image[i] = 0
			}
			return
		}
		// Bytes of an object that belong to a whole piece of the granularity.
		g := min(uint64(e.Granularity), l.ObjectSize)
		dropped := map[[2]uint64]uint64{} // object and piece: bytes
		tail := map[uint64]bool{}         // objects of which an end is dropped
		l.Pieces(e.Offset, Clip(e.Offset, e.Length, size), func(p Piece) {
			if g == l.ObjectSize && p.Offset+p.Length == l.ObjectSize {
				tail[p.Object] = true
			}
			for i := range p.Length {
				dropped[[2]uint64{p.Object, (p.Offset + i) / g}]++
			}
		})
		l.Pieces(e.Offset, Clip(e.Offset, e.Length, size), func(p Piece) {
			for i := range p.Length {
				if dropped[[2]uint64{p.Object, (p.Offset + i) / g}] == g || tail[p.Object] {
					image[e.Offset+p.At+i] = 0
				}
			}
		})
	}
}

func layouts(t *rapid.T) Layout {
	return rapid.SampledFrom([]Layout{
		{ObjectSize: 64}, {ObjectSize: 32, StripeUnit: 8, StripeCount: 3}, {ObjectSize: 64, StripeUnit: 16, StripeCount: 2},
		{ObjectSize: 32, StripeUnit: 32, StripeCount: 1},
	}).Draw(t, "layout")
}

func ioEvent(t *rapid.T, size uint64, n int) format.Event {
	offset := rapid.Uint64Range(0, size+8).Draw(t, "offset")
	length := rapid.Uint64Range(0, 80).Draw(t, "length")
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0:
		pattern := bytes.Repeat([]byte{0}, int(rapid.IntRange(1, 7).Draw(t, "pattern")))
		if rapid.Bool().Draw(t, "nonzero") {
			for i := range pattern {
				pattern[i] = byte(n + i)
			}
		}
		return format.WriteSame{Offset: offset, Length: length / uint64(len(pattern)) * uint64(len(pattern)), Data: pattern}
	case 1, 2:
		g := rapid.SampledFrom([]uint32{0, 0, 8, 16, 32, 1 << 31, 1<<32 - 1}).Draw(t, "granularity")
		return format.Discard{Offset: offset, Length: length * 2, Granularity: g}
	default:
		data := make([]byte, length)
		for i := range data {
			data[i] = byte(n*7 + i + 1)
		}
		return format.Write{Offset: offset, Length: length, Data: data}
	}
}

func TestMergedEqualsOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := layouts(t)
		size := rapid.Uint64Range(1, 400).Draw(t, "size")
		merged := &disk{l, size, map[uint64][]byte{}}
		single := &disk{l, size, map[uint64][]byte{}}
		bytewise := make([]byte, size)
		for range rapid.IntRange(1, 3).Draw(t, "batches") {
			b := NewBuilder(l, size)
			for n := range rapid.IntRange(1, 12).Draw(t, "events") {
				e := ioEvent(t, size, n)
				plain(l, bytewise, e)
				touched, ok := b.Touches(e)
				if !ok || !b.Add(e) {
					t.Fatal("not known")
				}
				one := NewBuilder(l, size)
				one.Add(e)
				var got []uint64
				for _, o := range one.Objects() {
					single.apply(o)
					got = append(got, o.Number)
				}
				distinct := map[uint64]bool{}
				for _, n := range touched {
					distinct[n] = true
				}
				if len(distinct) != len(got) {
					t.Fatalf("touches %v, wrote %v", touched, got)
				}
			}
			for _, o := range b.Objects() {
				check(t, o, l.ObjectSize)
				merged.apply(o)
			}
		}
		if d := cmp.Diff(bytewise, single.content()); d != "" {
			t.Fatalf("one by one: %s", d)
		}
		if d := cmp.Diff(bytewise, merged.content()); d != "" {
			t.Fatalf("merged: %s", d)
		}
	})
}

func check(t *rapid.T, o *Object, size uint64) {
	at := uint64(0)
	for _, e := range o.Extents {
		if e.Offset < at || e.Length == 0 || e.End() > size || uint64(len(e.Data)) > e.Length {
			t.Fatalf("extent %+v after %d", e, at)
		}
		if e.Data == nil && (o.Drop || o.Cut && e.Offset >= o.CutAt) {
			t.Fatalf("needless zeros %+v in %+v", e, o)
		}
		at = e.End()
	}
}

func TestLayout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := layouts(t)
		size := rapid.Uint64Range(0, 1000).Draw(t, "size")
		ends := map[uint64]uint64{}
		seen := map[[2]uint64]bool{}
		l.Pieces(0, size, func(p Piece) {
			ends[p.Object] = max(ends[p.Object], p.Offset+p.Length)
			for i := range p.Length {
				k := [2]uint64{p.Object, p.Offset + i}
				if seen[k] {
					t.Fatalf("%v twice", k)
				}
				seen[k] = true
			}
		})
		if uint64(len(seen)) != size {
			t.Fatalf("%d bytes of %d", len(seen), size)
		}
		var highest uint64
		for o, end := range ends {
			highest = max(highest, o+1)
			if got := l.ObjectEnd(o, size); got != end {
				t.Fatalf("object %d ends at %d, not %d", o, end, got)
			}
			l.Within(o, end, func(p Piece) {
				l.Pieces(p.At, p.Length, func(q Piece) {
					if q.Object != o || q.Offset != p.Offset+q.At {
						t.Fatalf("%+v of object %d is %+v", p, o, q)
					}
				})
			})
		}
		if got := l.Objects(size); got != highest {
			t.Fatalf("%d objects, not %d", highest, got)
		}
		if got := l.ObjectEnd(highest, size); got != 0 {
			t.Fatalf("object %d after the last has %d bytes", highest, got)
		}
	})
}

func TestWholeObjects(t *testing.T) {
	b := NewBuilder(Layout{ObjectSize: 64}, 256)
	b.Add(format.Write{Offset: 0, Length: 64, Data: make([]byte, 64)})
	b.Add(format.Discard{Offset: 0, Length: 128})
	b.Add(format.Write{Offset: 70, Length: 1, Data: []byte{1}})
	b.Add(format.Discard{Offset: 160, Length: 32})
	var got []string
	for _, o := range b.Objects() {
		got = append(got, fmt.Sprintf("%d gone=%v drop=%v cut=%v@%d %v", o.Number, o.Gone(), o.Drop, o.Cut, o.CutAt, o.Extents))
	}
	want := []string{
		"0 gone=true drop=true cut=false@0 []",
		"1 gone=false drop=true cut=false@0 [{6 1 [1]}]",
		"2 gone=false drop=false cut=true@32 []",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func BenchmarkRandomWrites(b *testing.B) {
	data := make([]byte, 4096)
	for b.Loop() {
		m := NewBuilder(Layout{ObjectSize: 4 << 20}, 256<<20)
		for i := range uint64(20480) {
			m.Add(format.Write{Offset: i * 2654435761 % 65536 * 4096, Length: 4096, Data: data})
		}
	}
}
