// Package delta works out how one object is to be changed, from what the OSDs
// know of its past. It does no I/O.
package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"cephmirror/snapdiff/objects"
)

// Extent is a range of bytes of an object.
type Extent = objects.Extent

// Interval is what became of an object between two snapshots.
type Interval struct {
	Existed, Exists bool   // before and after it
	OldSize, Size   uint64 // likewise
	// Changed are the bytes of the object after the interval that may differ
	// from those before it, ascending, if it was there both times.
	Changed []Extent
}

// Unchanged tells whether there is nothing to do.
func (v Interval) Unchanged() bool {
	return v.Existed == v.Exists && v.OldSize == v.Size && len(v.Changed) == 0
}

// Whole tells whether nothing of the object before the interval is of use.
func (v Interval) Whole() bool { return v.Exists && !v.Existed }

// Partial tells whether the change needs the object as it was.
func (v Interval) Partial() bool { return v.Exists && v.Existed && !v.Unchanged() }

// Intervals returns what became of an object from snapshot start to the first
// target, and from each target to the next. Start 0 stands for nothing.
func Intervals(o objects.Object, start uint64, targets []uint64) ([]Interval, error) {
	out := make([]Interval, len(targets))
	before := start
	var was objects.Version
	existed := false
	if start > 0 {
		var err error
		if was, existed, err = o.At(start); err != nil {
			return nil, err
		}
	}
	for i, t := range targets {
		if t <= before {
			return nil, fmt.Errorf("snapshots %d and %d: %w", before, t, errOrder)
		}
		is, exists, err := o.At(t)
		if err != nil {
			return nil, err
		}
		v := Interval{Existed: existed, Exists: exists, OldSize: was.Size, Size: is.Size}
		// One version that serves both is the usual case.
		if existed && exists && was.ID != is.ID {
			d, err := o.Compare(before, t)
			if err != nil {
				return nil, err
			}
			v.Changed = below(d.Changed, is.Size)
		}
		out[i] = v
		before, was, existed = t, is, exists
	}
	return out, nil
}

var errOrder = errors.New("not in order")

// below returns what of ascending extents lies below a limit.
func below(extents []Extent, limit uint64) []Extent {
	for i, e := range extents {
		if e.End() <= limit {
			continue
		}
		if e.Offset < limit {
			extents[i].Length = limit - e.Offset
			i++
		}
		return extents[:i]
	}
	return extents
}

// Reads returns what to read in one go to learn ascending extents: those with
// less than gap between them are joined.
func Reads(extents []Extent, gap uint64) []Extent {
	var out []Extent
	for _, e := range extents {
		if n := len(out); n > 0 && e.Offset-out[n-1].End() < gap {
			out[n-1].Length = e.End() - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}

// Bytes is how long extents are together.
func Bytes(extents []Extent) uint64 {
	var n uint64
	for _, e := range extents {
		n += e.Length
	}
	return n
}

// Kind is a kind of Step.
type Kind int

// The kinds of steps, in the words of RADOS.
const (
	Create          Kind = iota + 1 // unless it is there
	CreateExclusive                 // fails if it is there
	AssertExists                    // fails if it is not
	Remove
	Write
	Zero
	Truncate // Offset is the new size
)

// Step is one step of an atomic change of an object.
type Step struct {
	Kind           Kind
	Offset, Length uint64
	Part           int    // Write: the data's part
	At             uint64 // Write: where in that part
}

// Data are the extents that were found to hold data, for each read. All else
// that was read is zeros, or beyond the end.
type Data [][]Extent

// Steps returns what makes of an object as it was before the interval that after
// it. data is what Reads of what ToRead returned have brought.
func Steps(v Interval, data Data) []Step {
	switch {
	case v.Unchanged():
		return nil
	case !v.Exists:
		return []Step{{Kind: Remove}}
	case v.Whole():
		// Something may have been left here by an attempt that was cut off.
		return fill([]Step{{Kind: Create}, {Kind: Truncate}}, v.Size, data)
	}
	steps := []Step{{Kind: AssertExists}}
	end := v.OldSize
	cursor := reader{data: data}
	for _, e := range v.Changed {
		at := e.Offset
		for _, w := range cursor.within(e) {
			if w.Offset > at {
				steps = append(steps, Step{Kind: Zero, Offset: at, Length: w.Offset - at})
			}
			steps = append(steps, w)
			at = w.Offset + w.Length
			end = max(end, at)
		}
		if at < e.End() {
			steps = append(steps, Step{Kind: Zero, Offset: at, Length: e.End() - at})
			// RADOS cuts an object whose end lies in what is zeroed.
			if e.End() >= end {
				end = at
			}
		}
	}
	if end != v.Size {
		steps = append(steps, Step{Kind: Truncate, Offset: v.Size})
	}
	return steps
}

// CopyUp returns what puts the object as it was before the interval where none
// is. data is what reading the whole of it has brought.
func CopyUp(v Interval, data Data) []Step {
	return fill([]Step{{Kind: CreateExclusive}}, v.OldSize, data)
}

func fill(steps []Step, size uint64, data Data) []Step {
	cursor := reader{data: data}
	var end uint64
	for _, w := range cursor.within(Extent{Length: size}) {
		steps = append(steps, w)
		end = w.Offset + w.Length
	}
	if end != size {
		steps = append(steps, Step{Kind: Truncate, Offset: size})
	}
	return steps
}

// ToRead returns the extents whose content at the end of the interval is needed.
func ToRead(v Interval) []Extent {
	if v.Whole() && v.Size > 0 {
		return []Extent{{Length: v.Size}}
	}
	return v.Changed
}

// reader goes through data once, in ascending order.
type reader struct {
	data     Data
	part     int
	extent   int
	consumed uint64 // bytes of the part before the extent
}

// within returns writes of the data that lies in an extent.
func (r *reader) within(e Extent) []Step {
	var out []Step
	for r.part < len(r.data) {
		if r.extent == len(r.data[r.part]) {
			r.part, r.extent, r.consumed = r.part+1, 0, 0
			continue
		}
		d := r.data[r.part][r.extent]
		if d.Offset >= e.End() {
			break
		}
		from, to := max(d.Offset, e.Offset), min(d.End(), e.End())
		if from < to {
			out = append(out, Step{Kind: Write, Offset: from, Length: to - from, Part: r.part, At: r.consumed + from - d.Offset})
		}
		if d.End() > e.End() {
			break
		}
		r.consumed += d.Length
		r.extent++
	}
	return out
}

// Volume returns how many bytes steps write, and how many they make zeros or cut
// off.
func Volume(v Interval, steps []Step) (written, zeroed uint64) {
	for _, s := range steps {
		switch s.Kind {
		case Write:
			written += s.Length
		case Zero:
			zeroed += s.Length
		}
	}
	if v.Existed && v.Size < v.OldSize {
		zeroed += v.OldSize - v.Size
	}
	return written, zeroed
}

// Content is what an object holds: bytes of some extents, one after the other,
// and zeros everywhere else.
type Content struct {
	Extents []Extent
	Bytes   []byte
}

// walker goes through content once, in ascending order.
type walker struct {
	c        Content
	extent   int
	consumed uint64
}

// piece returns the bytes from one offset to another, or nil if they are zeros
// because nothing is there. What is pieced together is put in scratch.
func (w *walker) piece(from, to uint64, scratch []byte) []byte {
	for w.extent < len(w.c.Extents) && w.c.Extents[w.extent].End() <= from {
		w.consumed += w.c.Extents[w.extent].Length
		w.extent++
	}
	var out []byte
	consumed := w.consumed
	for _, e := range w.c.Extents[w.extent:] {
		if e.Offset >= to {
			break
		}
		if e.Offset <= from && to <= e.End() {
			return w.c.Bytes[consumed+from-e.Offset : consumed+to-e.Offset]
		}
		if out == nil {
			out = scratch[:to-from]
			clear(out)
		}
		low, high := max(from, e.Offset), min(to, e.End())
		copy(out[low-from:], w.c.Bytes[consumed+low-e.Offset:consumed+high-e.Offset])
		consumed += e.Length
	}
	return out
}

// Compared returns what has to become of an object that is there to become one
// of some size with other content. Its changed extents are whole blocks, cut at
// that size. How long the object is does not matter as long as there is nothing
// but zeros after that size.
func Compared(size uint64, was, is Content, block uint64) Interval {
	v := Interval{Existed: true, Exists: true, OldSize: size, Size: size}
	one, other := walker{c: was}, walker{c: is}
	scratch := make([]byte, 2*block)
	for at := uint64(0); at < size; at += block {
		to := min(at+block, size)
		a, b := one.piece(at, to, scratch[:block]), other.piece(at, to, scratch[block:])
		if same(a, b) {
			continue
		}
		if n := len(v.Changed); n > 0 && v.Changed[n-1].End() == at {
			v.Changed[n-1].Length += to - at
		} else {
			v.Changed = append(v.Changed, Extent{Offset: at, Length: to - at})
		}
	}
	for _, e := range was.Extents {
		if e.End() > size && !zeros(one.piece(max(size, e.Offset), e.End(), make([]byte, e.Length))) {
			v.OldSize = e.End()
		}
	}
	return v
}

func same(a, b []byte) bool {
	switch {
	case a == nil:
		return zeros(b)
	case b == nil:
		return zeros(a)
	}
	return bytes.Equal(a, b)
}

func zeros(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
