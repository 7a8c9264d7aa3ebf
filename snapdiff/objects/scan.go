package objects

import (
	"context"
	"fmt"
	"slices"
)

// File is a file in two snapshots.
type File struct {
	Layout           Layout
	OldSnap, NewSnap uint64
	OldSize, NewSize uint64

	// List returns all versions of the file's objects of these numbers. It is
	// to be called only when nothing of the newer snapshot is still unwritten.
	List func(ctx context.Context, objects []uint64) ([]Object, error)
	// ReadNew reads the file at offset in the newer snapshot, the whole buffer.
	ReadNew func(buf []byte, offset uint64) error
}

const (
	// window is about how many objects are asked for at once.
	window = 64
	// maxObjects bounds the patience: 64 TiB in the default layout.
	maxObjects = 1 << 24
	// probeMax bounds what is read at once to prove what is common.
	probeMax = 1 << 20
)

// tuning is what tests of small files make smaller.
type tuning struct {
	// probe is how much is read first to prove what is common.
	probe uint64
	// inline is up to where the data of a small file may be in its inode.
	inline uint64
	// join and extents: differing extents with less than join between them
	// become one; with more than so many extents it is doubled.
	join    uint64
	extents int
}

func usual() tuning {
	return tuning{probe: 16 << 10, inline: 64 << 10, join: 16 << 10, extents: 1 << 17}
}

// Scan returns the extents of the file, ascending, that may differ between the
// snapshots. All else below the newer size is equal, where what is beyond the
// end of the older one counts as zeros. With an error nothing is known.
func (f File) Scan(ctx context.Context) ([]Extent, error) { return f.scan(ctx, usual()) }

func (f File) scan(ctx context.Context, t tuning) ([]Extent, error) {
	l := f.Layout
	if !l.Valid() {
		return nil, fmt.Errorf("layout %+v: %w", l, ErrUnclear)
	}
	if f.OldSnap == 0 || f.OldSnap >= f.NewSnap {
		return nil, fmt.Errorf("snapshots %d and %d are not in order: %w", f.OldSnap, f.NewSnap, ErrUnclear)
	}
	sets := f.NewSize / l.set()
	if f.NewSize%l.set() > 0 {
		sets++
	}
	if sets > maxObjects/l.StripeCount {
		return nil, fmt.Errorf("%d bytes in objects of %d: %w", f.NewSize, l.ObjectSize, ErrUnclear)
	}
	p := prover{file: f, tuning: t}
	step := max(1, window/l.StripeCount)
	for high := sets; high > 0; {
		low := high - min(step, high)
		changed, common, err := f.compare(ctx, low*l.StripeCount, high*l.StripeCount)
		if err != nil {
			return nil, err
		}
		// Small files have been kept in the inode, without an object.
		if low == 0 {
			inline := subtract(upTo(min(t.inline, f.NewSize)), common)
			changed = arrange(append(subtract(changed, inline), inline...))
		}
		if err := p.add(ctx, changed, common); err != nil {
			return nil, err
		}
		high = low
	}
	slices.Reverse(p.found)
	return p.found, nil
}

// compare returns what changed in the objects from low to high, and what is
// common in both, as extents of the file in ascending order.
func (f File) compare(ctx context.Context, low, high uint64) (changed, common []Extent, err error) {
	numbers := make([]uint64, 0, high-low)
	for n := low; n < high; n++ {
		if f.Layout.FileOffset(n, 0) < f.NewSize {
			numbers = append(numbers, n)
		}
	}
	list, err := f.List(ctx, numbers)
	if err != nil {
		return nil, nil, err
	}
	if len(list) != len(numbers) {
		return nil, nil, fmt.Errorf("%d objects for %d: %w", len(list), len(numbers), ErrUnclear)
	}
	for i, o := range list {
		d, err := o.Compare(f.OldSnap, f.NewSnap)
		if err != nil {
			return nil, nil, fmt.Errorf("object %d: %w", numbers[i], err)
		}
		changed = f.Layout.toFile(changed, numbers[i], d.Changed, f.NewSize)
		common = f.Layout.toFile(common, numbers[i], d.Common, f.NewSize)
	}
	// What objects hold beyond the end of the file is nothing to it: it may be
	// there all the same, after a writer died before it told the size.
	shared := upTo(f.OldSize)
	common = arrange(common)
	changed = arrange(append(changed, subtract(common, shared)...))
	return changed, intersect(common, shared), nil
}

// prover gathers what changed, from the end of the file to its beginning, and
// proves what is common.
type prover struct {
	tuning
	file   File
	proven bool     // all that is common before is equal
	found  []Extent // descending
	buf    []byte
}

// add takes the extents of a range of the file before all others.
func (p *prover) add(ctx context.Context, changed, common []Extent) error {
	var doubted []Extent // descending, touching or not
	for i := len(common) - 1; i >= 0 && !p.proven; i-- {
		e := common[i]
		for e.Length > 0 && !p.proven {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(e.Length, p.probe)
			p.probe = min(2*n, probeMax)
			part := Extent{e.End() - n, n}
			e.Length -= n
			if uint64(len(p.buf)) < n {
				p.buf = make([]byte, n)
			}
			data := p.buf[:n]
			if err := p.file.ReadNew(data, part.Offset); err != nil {
				return fmt.Errorf("reading at %d: %w", part.Offset, err)
			}
			if last := lastNonZero(data); last >= 0 {
				p.proven = true
				part.Offset += uint64(last) + 1
				part.Length -= uint64(last) + 1
			}
			if part.Length > 0 {
				doubted = append(doubted, part)
			}
		}
	}
	if p.proven {
		p.buf = nil
	}
	all := arrange(append(changed, doubted...))
	for i := len(all) - 1; i >= 0; i-- {
		p.put(all[i])
	}
	return nil
}

// put adds an extent before all others.
func (p *prover) put(e Extent) {
	if n := len(p.found); n > 0 {
		last := &p.found[n-1]
		if gap := last.Offset - e.End(); gap == 0 || gap < p.join {
			last.Length += last.Offset - e.Offset
			last.Offset = e.Offset
			return
		}
	}
	p.found = append(p.found, e)
	if len(p.found) <= p.extents {
		return
	}
	p.join = 2 * max(p.join, 1)
	list := p.found
	p.found = list[:0]
	for _, e := range list {
		p.put(e)
	}
}

func lastNonZero(b []byte) int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return i
		}
	}
	return -1
}
