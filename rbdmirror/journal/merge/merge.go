// Package merge turns the IO events of a journal into writes of objects: all that
// several events do to one object becomes one write, which the cluster carries
// out as a whole. Events must be added in their order; in objects that the merged
// writes leave behind nothing tells that it was not done one event at a time.
package merge

import (
	"cmp"
	"maps"
	"slices"

	"cephmirror/rbdmirror/journal/format"
)

// Extent is a range of an object.
type Extent struct {
	Offset, Length uint64
	// Data is what to write: nil for zeros; when it is shorter than the
	// extent, it is repeated.
	Data []byte
}

// End returns where the extent ends.
func (e Extent) End() uint64 { return e.Offset + e.Length }

// AppendTo appends the content of the extent to b.
func (e Extent) AppendTo(b []byte) []byte {
	if e.Data == nil {
		return append(b, make([]byte, e.Length)...)
	}
	for left := e.Length; left > 0; {
		n := min(left, uint64(len(e.Data)))
		b = append(b, e.Data[:n]...)
		left -= n
	}
	return b
}

// cut returns the part of the extent between two offsets.
func (e Extent) cut(from, to uint64) Extent {
	from, to = max(from, e.Offset), min(to, e.End())
	out := Extent{Offset: from, Length: to - from}
	if e.Data == nil {
		return out
	}
	if uint64(len(e.Data)) == e.Length {
		out.Data = e.Data[from-e.Offset : to-e.Offset]
		return out
	}
	size := uint64(len(e.Data))
	phase := (from - e.Offset) % size
	if out.Length <= size-phase {
		out.Data = e.Data[phase : phase+out.Length]
	} else {
		out.Data = append(slices.Clone(e.Data[phase:]), e.Data[:phase]...)
		out.Data = out.Data[:min(size, out.Length)]
	}
	return out
}

// Object is what becomes of one object. First it is cut, then the extents are
// written.
type Object struct {
	Number uint64
	// Drop says that nothing of the object's earlier content remains.
	Drop bool
	// Cut says that nothing of it remains from CutAt on.
	Cut   bool
	CutAt uint64
	// Extents are disjoint and in ascending order.
	Extents []Extent
}

// Gone says that the object has no content any more.
func (o *Object) Gone() bool { return o.Drop && len(o.Extents) == 0 }

// Bytes returns how much data is written.
func (o *Object) Bytes() (n uint64) {
	for _, e := range o.Extents {
		if e.Data != nil {
			n += e.Length
		}
	}
	return n
}

// put lays an extent over what is there.
func (o *Object) put(e Extent) {
	if e.Length == 0 {
		return
	}
	if e.Data == nil && (o.Drop || o.Cut && e.Offset >= o.CutAt) {
		// Only what was merged since has to be taken back.
		o.carve(e.Offset, e.End())
		return
	}
	if e.Data == nil && o.Cut && e.End() > o.CutAt {
		o.carve(o.CutAt, e.End())
		e = e.cut(e.Offset, o.CutAt)
	}
	i, j := o.span(e.Offset, e.End())
	middle := make([]Extent, 0, 3)
	if i < j && o.Extents[i].Offset < e.Offset {
		middle = append(middle, o.Extents[i].cut(0, e.Offset))
	}
	middle = append(middle, e)
	if i < j && o.Extents[j-1].End() > e.End() {
		middle = append(middle, o.Extents[j-1].cut(e.End(), o.Extents[j-1].End()))
	}
	o.Extents = slices.Replace(o.Extents, i, j, middle...)
}

// span returns the extents that a range touches.
func (o *Object) span(from, to uint64) (i, j int) {
	i, _ = slices.BinarySearchFunc(o.Extents, from, func(e Extent, at uint64) int {
		if e.End() <= at {
			return -1
		}
		return 1
	})
	for j = i; j < len(o.Extents) && o.Extents[j].Offset < to; j++ {
	}
	return i, j
}

// carve takes a range out of the extents.
func (o *Object) carve(from, to uint64) {
	i, j := o.span(from, to)
	if i == j {
		return
	}
	var rest []Extent
	if first := o.Extents[i]; first.Offset < from {
		rest = append(rest, first.cut(0, from))
	}
	if last := o.Extents[j-1]; last.End() > to {
		rest = append(rest, last.cut(to, last.End()))
	}
	o.Extents = slices.Replace(o.Extents, i, j, rest...)
}

func (o *Object) cutAt(at uint64) {
	if at == 0 {
		o.Drop, o.Cut, o.CutAt, o.Extents = true, false, 0, nil
		return
	}
	o.carve(at, ^uint64(0))
	if !o.Drop && (!o.Cut || at < o.CutAt) {
		o.Cut, o.CutAt = true, at
	}
}

// Builder gathers what a number of events do to the objects of an image.
type Builder struct {
	layout  Layout
	size    uint64
	objects map[uint64]*Object
	last    uint64
	bytes   uint64
}

// NewBuilder returns a builder for an image of a size. Events beyond its end have
// no effect.
func NewBuilder(l Layout, size uint64) *Builder {
	return &Builder{layout: l, size: size, objects: make(map[uint64]*Object)}
}

// Len returns how many objects are touched.
func (b *Builder) Len() int { return len(b.objects) }

// Bytes returns how many bytes of data were added.
func (b *Builder) Bytes() uint64 { return b.bytes }

// Single returns the only object that is touched.
func (b *Builder) Single() (uint64, bool) { return b.last, len(b.objects) == 1 }

// Objects returns what becomes of the objects, in the order of their numbers. The
// builder must not be used any more.
func (b *Builder) Objects() []*Object {
	return slices.SortedFunc(maps.Values(b.objects), func(a, c *Object) int { return cmp.Compare(a.Number, c.Number) })
}

func (b *Builder) object(n uint64) *Object {
	o := b.objects[n]
	if o == nil {
		o = &Object{Number: n}
		b.objects[n] = o
	}
	b.last = n
	return o
}

// Clip returns how much of a range the image has.
func Clip(offset, length, size uint64) uint64 {
	if offset >= size {
		return 0
	}
	return min(length, size-offset)
}

// Touches returns the objects that an event changes, and whether it is one that
// Add knows.
func (b *Builder) Touches(e format.Event) (objects []uint64, ok bool) {
	var offset, length uint64
	switch e := e.(type) {
	case format.Write:
		offset, length = e.Offset, e.Length
	case format.WriteSame:
		offset, length = e.Offset, e.Length
	case format.Discard:
		for _, p := range b.discards(e) {
			objects = append(objects, p.Object)
		}
		return objects, true
	default:
		return nil, false
	}
	for _, p := range b.layout.Extents(offset, Clip(offset, length, b.size)) {
		objects = append(objects, p.Object)
	}
	return objects, true
}

// Add adds a write, a write of a pattern or a discard, and tells whether it was
// one of these.
func (b *Builder) Add(e format.Event) bool {
	switch e := e.(type) {
	case format.Write:
		length := Clip(e.Offset, e.Length, b.size)
		b.bytes += length
		b.layout.Pieces(e.Offset, length, func(p Piece) {
			b.object(p.Object).put(Extent{p.Offset, p.Length, e.Data[p.At : p.At+p.Length : p.At+p.Length]})
		})
	case format.WriteSame:
		whole := Extent{0, Clip(e.Offset, e.Length, b.size), e.Data}
		if zeros(e.Data) {
			whole.Data = nil
		}
		b.bytes += whole.Length
		b.layout.Pieces(e.Offset, whole.Length, func(p Piece) {
			x := whole.cut(p.At, p.At+p.Length)
			x.Offset = p.Offset
			b.object(p.Object).put(x)
		})
	case format.Discard:
		for _, p := range b.discards(e) {
			o := b.object(p.Object)
			if p.Offset+p.Length == b.layout.ObjectSize {
				o.cutAt(p.Offset)
			} else {
				o.put(Extent{Offset: p.Offset, Length: p.Length})
			}
		}
	default:
		return false
	}
	return true
}

// discards returns what a discard drops: only whole pieces of its granularity.
func (b *Builder) discards(e format.Discard) []Piece {
	size := b.layout.ObjectSize
	g := min(uint64(e.Granularity), size)
	list := b.layout.Extents(e.Offset, Clip(e.Offset, e.Length, b.size))
	if g == 0 {
		return list
	}
	kept := list[:0]
	for _, p := range list {
		if end := p.Offset + p.Length; g < size || end < size {
			from, to := (p.Offset+g-1)/g*g, end/g*g
			if from >= to {
				continue
			}
			p.Offset, p.Length = from, to-from
		}
		kept = append(kept, p)
	}
	return kept
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
