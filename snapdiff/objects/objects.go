// Package objects finds out which bytes of a file may differ between two of
// its snapshots from what the OSDs keep of the objects that hold it.
//
// When an object is first written after a snapshot, the OSD sets the old
// version aside as a clone, and from then on keeps account of what the clone
// still has in common with its successor. Between the versions that serve two
// snapshots, the bytes common to all versions in a row are equal, all others
// are taken to differ.
//
// # Truncated files
//
// The content of a file is not quite that of its objects. To truncate a file
// the MDS sets size, a sequence number and the size it was cut to; the objects
// are cut later, one by one. Until then a reader cuts what it reads of objects
// that have not reached the sequence number. When the file grows again before
// its objects were cut, and a snapshot is taken, one version of an object may
// serve two snapshots that read differently: the older one reads data where the
// newer one reads zeros. If the cut carries the newer snapshot's id, because
// the MDS had to wait or was restarted, it stays so for ever.
//
// Sequence numbers cannot be read. But what goes wrong this way reads as zeros
// in the newer snapshot, from the length it was cut to up to the end of the
// file, wherever objects claim to have data in common. So any byte that is
// common and is not zero proves all common bytes before it. Scan therefore goes
// from the end to the beginning and reads what is common until it finds such a
// byte; what reads as zeros until then is reported to be compared. Mostly that
// is one short read.
package objects

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Head is the id of an object's live version, newer than any snapshot.
const Head = math.MaxUint64 - 1

// ErrUnclear: what the OSDs say is not what is expected of them.
var ErrUnclear = errors.New("clone information is inconsistent")

// Extent is a range of bytes.
type Extent struct{ Offset, Length uint64 }

// End is the offset after the last byte.
func (e Extent) End() uint64 { return e.Offset + e.Length }

// Version is an object as it was at some time.
type Version struct {
	ID      uint64 // of the newest snapshot it was set aside for, or Head
	Size    uint64
	Snaps   []uint64 // served, ascending; the head lists none
	Overlap []Extent // what it has in common with the next version, ascending
}

// Object is all versions of an object. The zero value was never there.
type Object struct {
	Seq      uint64    // the newest snapshot that a writer knew of
	Versions []Version // oldest first
}

// Difference is how an object changed between two snapshots. Bytes in neither
// list are in neither of them, or beyond the end of both.
type Difference struct {
	Changed []Extent
	Common  []Extent
}

// Compare returns how the object changed from snapshot old to snapshot new.
func (o Object) Compare(old, new uint64) (Difference, error) {
	if old >= new {
		return Difference{}, fmt.Errorf("snapshots %d and %d are not in order: %w", old, new, ErrUnclear)
	}
	if err := o.check(); err != nil {
		return Difference{}, err
	}
	a, err := o.serving(old)
	if err != nil {
		return Difference{}, err
	}
	b, err := o.serving(new)
	if err != nil {
		return Difference{}, err
	}
	switch {
	case a < 0 && b < 0:
		return Difference{}, nil
	case a < 0:
		return Difference{Changed: upTo(o.Versions[b].Size)}, nil
	case b < 0:
		return Difference{Changed: upTo(o.Versions[a].Size)}, nil
	case a > b:
		return Difference{}, fmt.Errorf("snapshot %d has a newer version than %d: %w", old, new, ErrUnclear)
	}
	common := upTo(o.Versions[a].Size)
	for _, v := range o.Versions[a:b] {
		common = intersect(common, v.Overlap)
	}
	all := upTo(max(o.Versions[a].Size, o.Versions[b].Size))
	return Difference{Changed: subtract(all, common), Common: common}, nil
}

func upTo(size uint64) []Extent {
	if size == 0 {
		return nil
	}
	return []Extent{{0, size}}
}

// check tells whether the versions make sense.
func (o Object) check() error {
	wrong := func(v Version, what string) error {
		return fmt.Errorf("version %d: %s: %w", v.ID, what, ErrUnclear)
	}
	for i, v := range o.Versions {
		head := v.ID == Head
		var before uint64
		if i > 0 {
			before = o.Versions[i-1].ID
		}
		switch {
		case i > 0 && v.ID <= before:
			return wrong(v, "not in order")
		case head && (i != len(o.Versions)-1 || len(v.Snaps) > 0):
			return wrong(v, "not a head")
		case !head && v.ID > o.Seq:
			return wrong(v, "newer than its object")
		}
		for _, s := range v.Snaps {
			if s <= before || s > v.ID {
				return wrong(v, "serves snapshots of others")
			}
			before = s
		}
		if head {
			continue
		}
		// Before the object was removed its last version had nothing to have
		// anything in common with.
		limit := uint64(0)
		if i+1 < len(o.Versions) {
			limit = min(v.Size, o.Versions[i+1].Size)
		}
		var end uint64
		for _, e := range v.Overlap {
			if e.Offset < end || e.Length > limit || e.Offset > limit-e.Length {
				return wrong(v, "overlaps wrongly")
			}
			end = e.End()
		}
	}
	return nil
}

// serving returns the index of the version that serves a snapshot, -1 when the
// object was not there.
func (o Object) serving(snap uint64) (int, error) {
	i := slices.IndexFunc(o.Versions, func(v Version) bool {
		return v.ID == Head && snap > o.Seq || v.ID != Head && v.ID >= snap
	})
	if i < 0 {
		return -1, nil
	}
	v := o.Versions[i]
	switch {
	case v.ID == Head, slices.Contains(v.Snaps, snap):
		return i, nil
	case len(v.Snaps) == 0 || snap < v.Snaps[0]:
		return -1, nil // made, or made again, after the snapshot
	}
	return -1, fmt.Errorf("version %d does not say whether it serves snapshot %d: %w", v.ID, snap, ErrUnclear)
}

// intersect returns what is in both, each ascending and without overlaps.
func intersect(a, b []Extent) []Extent {
	var out []Extent
	for len(a) > 0 && len(b) > 0 {
		from, to := max(a[0].Offset, b[0].Offset), min(a[0].End(), b[0].End())
		if from < to {
			out = append(out, Extent{from, to - from})
		}
		if a[0].End() < b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// subtract returns what is in a but not in b, each ascending and without
// overlaps.
func subtract(a, b []Extent) []Extent {
	var out []Extent
	for _, e := range a {
		at := e.Offset
		for len(b) > 0 && b[0].End() <= at {
			b = b[1:]
		}
		for _, h := range b {
			if h.Offset >= e.End() {
				break
			}
			if h.Offset > at {
				out = append(out, Extent{at, h.Offset - at})
			}
			at = h.End()
		}
		if at < e.End() {
			out = append(out, Extent{at, e.End() - at})
		}
	}
	return out
}

// Layout says how the bytes of a file lie in objects: units of the file go
// round a set of objects until each is full, then on to the next set.
type Layout struct{ StripeUnit, StripeCount, ObjectSize uint64 }

// Valid tells whether it is a layout that Ceph allows, and of a sensible size.
func (l Layout) Valid() bool {
	return l.StripeUnit > 0 && l.StripeUnit <= l.ObjectSize && l.ObjectSize%l.StripeUnit == 0 &&
		l.ObjectSize <= 1<<32 && l.StripeCount > 0 && l.StripeCount <= 1<<10
}

// set is how many bytes of a file lie in one set of objects.
func (l Layout) set() uint64 { return l.ObjectSize * l.StripeCount }

// FileOffset returns where the byte at offset of an object is in the file.
func (l Layout) FileOffset(object, offset uint64) uint64 {
	stripe := object/l.StripeCount*(l.ObjectSize/l.StripeUnit) + offset/l.StripeUnit
	return (stripe*l.StripeCount+object%l.StripeCount)*l.StripeUnit + offset%l.StripeUnit
}

// toFile appends where the extents of an object are in the file, below limit.
func (l Layout) toFile(out []Extent, object uint64, extents []Extent, limit uint64) []Extent {
	for _, e := range extents {
		e.Length = min(e.Length, l.ObjectSize-min(e.Offset, l.ObjectSize))
		for e.Length > 0 {
			n := min(e.Length, l.StripeUnit-e.Offset%l.StripeUnit)
			at := l.FileOffset(object, e.Offset)
			if at < limit {
				out = append(out, Extent{at, min(n, limit-at)})
			}
			e.Offset, e.Length = e.Offset+n, e.Length-n
		}
	}
	return out
}

// arrange sorts extents that do not overlap and joins those that touch.
func arrange(extents []Extent) []Extent {
	slices.SortFunc(extents, func(a, b Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	out := extents[:0]
	for _, e := range extents {
		if n := len(out); n > 0 && out[n-1].End() == e.Offset {
			out[n-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	return out
}
