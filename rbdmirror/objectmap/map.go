// Package objectmap is RBD's object map: two bits for every object of an image
// that say whether it exists and, with fast-diff, whether it changed since the
// snapshot before. It is plain data and needs no Ceph library.
package objectmap

import (
	"bytes"
	"errors"
	"fmt"
	"iter"

	"cephmirror/rbdmirror/wire"
)

// MaxObjects is how many objects a map may have: OSDs refuse more.
const MaxObjects = 256000000

// State is what a map says of an object.
type State uint8

const (
	NonExistent State = iota
	Exists            // and changed since the previous snapshot
	Pending           // being removed: may exist or not
	ExistsClean       // and is as it was in the previous snapshot
)

func (s State) exists() bool { return s != NonExistent }

// Map holds the states of the objects from 0 on.
type Map struct {
	count uint64
	bits  []byte // object 0 is in the top two bits of the first byte
}

func size(count uint64) uint64 { return (count + 3) / 4 }

// New returns a map of count objects that do not exist.
func New(count uint64) *Map { return &Map{count: count, bits: make([]byte, size(count))} }

// Decode decodes a map as the OSD returns or stores it. Checksums are the OSD's
// affair and not looked at.
func Decode(b []byte) (*Map, error) {
	r := wire.NewReader(b)
	header := wire.NewReader(r.Blob())
	var count uint64
	header.Frame(1, func(_ uint8, r *wire.Reader) { count = r.U64() })
	err := header.Err()
	if err == nil {
		err = r.Err()
	}
	if err == nil && (count > MaxObjects || size(count) > uint64(r.Len())) {
		err = wire.ErrShort
		if count > MaxObjects {
			err = errors.New("too many objects")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("decoding object map: %w", err)
	}
	m := &Map{count: count, bits: r.Raw(int(size(count)))}
	m.clearTail()
	return m, nil
}

// Encode encodes the map as the OSD takes it: without checksums.
func (m *Map) Encode() []byte {
	var w wire.Writer
	w.U32(14)
	w.Frame(1, 1, func() { w.U64(m.count) })
	w.Raw(m.bits)
	w.U32(0)
	return w.Bytes()
}

// Len returns how many objects the map has.
func (m *Map) Len() uint64 { return m.count }

func shift(i uint64) uint { return uint(6 - 2*(i%4)) }

// Get returns the state of object i. Objects past the end do not exist.
func (m *Map) Get(i uint64) State {
	if i >= m.count {
		return NonExistent
	}
	return State(m.bits[i/4] >> shift(i) & 3)
}

// Set changes the state of object i. Past the end there is nothing to change.
func (m *Map) Set(i uint64, s State) {
	if i < m.count {
		b := &m.bits[i/4]
		*b = *b&^(3<<shift(i)) | byte(s&3)<<shift(i)
	}
}

// SetRange changes the states of the objects from start to before end.
func (m *Map) SetRange(start, end uint64, s State) {
	end = min(end, m.count)
	for start < end {
		if start%4 == 0 && end-start >= 4 {
			m.bits[start/4] = byte(s&3) * 0x55
			start += 4
			continue
		}
		m.Set(start, s)
		start++
	}
}

// Resize makes the map one of count objects. New ones get the state s.
func (m *Map) Resize(count uint64, s State) {
	old := m.count
	bits := make([]byte, size(count))
	copy(bits, m.bits)
	m.count, m.bits = count, bits
	m.clearTail()
	if count > old {
		m.SetRange(old, count, s)
	}
}

// clearTail zeroes the unused bits of the last byte.
func (m *Map) clearTail() {
	if n := m.count % 4; n != 0 {
		m.bits[len(m.bits)-1] &= 0xff << (8 - 2*n)
	}
}

// Clone returns a copy.
func (m *Map) Clone() *Map { return &Map{count: m.count, bits: bytes.Clone(m.bits)} }

// Equal reports whether both maps say the same.
func (m *Map) Equal(o *Map) bool { return m.count == o.count && bytes.Equal(m.bits, o.bits) }

// SnapAdd does what taking a snapshot does to the map of the head: from then on
// no object has changed.
func (m *Map) SnapAdd() {
	for i, b := range m.bits {
		m.bits[i] = b | b<<1&0xaa // 01 becomes 11
	}
}

// SnapRemove does what removing a snapshot does to the map that follows: what
// changed before the removed snapshot has now changed before this one.
func (m *Map) SnapRemove(removed *Map) {
	for i := range m.count {
		if m.Get(i) == ExistsClean && (i >= removed.count || removed.Get(i) == Exists) {
			m.Set(i, Exists)
		}
	}
}

// Run is a row of objects in the same state, from Start to before End.
type Run struct {
	Start, End uint64
	State      State
}

// Runs returns the map as rows of equal state.
func (m *Map) Runs() iter.Seq[Run] {
	return func(yield func(Run) bool) {
		for i := uint64(0); i < m.count; {
			r := Run{Start: i, State: m.Get(i)}
			same := byte(r.State) * 0x55
			for i++; i < m.count; {
				if i%4 == 0 && m.count-i >= 4 && m.bits[i/4] == same {
					i += 4
				} else if m.Get(i) == r.State {
					i++
				} else {
					break
				}
			}
			r.End = i
			if !yield(r) {
				return
			}
		}
	}
}

// Change is what happened to an object between two snapshots.
type Change uint8

const (
	Written Change = iota + 1 // it exists at the end and may differ
	Removed                   // it no longer exists
)

// Diff returns the objects that may have changed from the snapshot with the map
// start to the one with the last of the later maps, in order. The later maps
// are those of all snapshots after start, oldest first. Without a start (nil)
// all objects that exist at the end count as written.
func Diff(start *Map, later ...*Map) iter.Seq2[uint64, Change] {
	return func(yield func(uint64, Change) bool) {
		if len(later) == 0 {
			return
		}
		end := later[len(later)-1]
		count := end.count
		if start != nil {
			count = max(count, start.count)
			for _, m := range later {
				count = max(count, m.count)
			}
		} else {
			later = later[len(later)-1:]
		}
		for i := uint64(0); i < count; i++ {
			if start != nil && i%4 == 0 && quiet(start, later, i/4) {
				i += 3
				continue
			}
			existed := start != nil && start.Get(i).exists()
			was, changed := existed, false
			for _, m := range later {
				s := m.Get(i)
				changed = changed || s == Exists || s == Pending || s.exists() != was
				was = s.exists()
			}
			what := Removed
			switch {
			case was && (changed || start == nil):
				what = Written
			case !was && existed:
			default:
				continue
			}
			if !yield(i, what) {
				return
			}
		}
	}
}

// quiet reports whether nothing happened to the four objects of a byte.
func quiet(start *Map, later []*Map, at uint64) bool {
	if at >= uint64(len(start.bits)) {
		return false
	}
	// 01 and 10 in the oldest one say nothing of what followed
	b := start.bits[at]
	exist := (b | b>>1) & 0x55
	for _, m := range later {
		if at >= uint64(len(m.bits)) || m.bits[at] != exist*3 {
			return false
		}
	}
	return true
}
