package imagesync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/imagesync/delta"
	"cephmirror/rbdmirror/objectmap"
)

// Flatten prepares the destination for losing its parent, when the source has
// none any more: of the first objects, as many as the parent may show through
// in the destination's head or any of its snapshots, those that the source has
// at Start, or at one of the Existing snapshots, and the destination lacks, are
// put there. This does not change what the destination shows. After it the
// parent can be detached, and that has to happen before the snapshots of the
// next synchronisation are made: they would show the parent where the source
// shows nothing.
//
// Of the job, Targets, Resume, FullCompare and SaveProgress are not used. What
// is said of Run's end holds here, too.
func Flatten(ctx context.Context, j Job, objects uint64) error {
	j.Targets = nil
	r := newRun(j)
	if r.ObjectSize == 0 || r.Start == 0 {
		return errors.New("flattening image: no object size or no snapshot to start from")
	}
	r.Existing = slices.Clone(r.Existing)
	slices.SortFunc(r.Existing, func(a, b Snapshot) int { return cmp.Compare(a.ID, b.ID) })
	return r.bounded(ctx, func(ctx context.Context) error { return r.flatten(ctx, objects) })
}

// lack is an object that the source has and the destination has not.
type lack struct {
	size, from uint64 // as it is at this snapshot of the source
	// last is the newest of the destination's snapshots that are to have it,
	// Head if the image itself is.
	last uint64
}

func (r *run) flatten(ctx context.Context, objects uint64) error {
	r.Stats.Total.Store(objects)
	for first := uint64(0); first < objects; first += window {
		lacks := make([]*lack, min(window, objects-first))
		err := each(ctx, len(lacks), 2*r.Concurrency, func(ctx context.Context, i int) (err error) {
			lacks[i], err = r.lacking(ctx, first+uint64(i))
			return err
		})
		if err != nil {
			return err
		}
		var raise, lower []change
		for i, l := range lacks {
			if l == nil {
				continue
			}
			k := first + uint64(i)
			for _, c := range r.older(k) {
				if c.snap <= l.last {
					raise = append(raise, c)
				}
			}
			raise = append(raise, change{Head, k, objectmap.ExistsClean})
			if l.last != Head {
				lower = append(lower, change{Head, k, objectmap.NonExistent})
			}
		}
		if err := r.changeMaps(ctx, raise); err != nil {
			return err
		}
		err = each(ctx, len(lacks), r.Concurrency, func(ctx context.Context, i int) error {
			if lacks[i] != nil {
				if err := r.fillGap(ctx, first+uint64(i), *lacks[i]); err != nil {
					return fmt.Errorf("object %d: %w", first+uint64(i), err)
				}
			}
			r.Stats.Done.Add(1)
			return nil
		})
		if err != nil {
			return err
		}
		if err := r.changeMaps(ctx, lower); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) changeMaps(ctx context.Context, changes []change) error {
	if err := r.mayWrite(ctx); err != nil {
		return err
	}
	if r.mapSet == nil {
		return nil
	}
	return r.mapSet.apply(ctx, changes)
}

// fillGap puts an object below the snapshots that are to have it.
func (r *run) fillGap(ctx context.Context, k uint64, l lack) error {
	v := delta.Interval{Existed: true, Exists: true, OldSize: l.size, Size: l.size}
	if err := r.putBelow(ctx, k, l.from, v); err != nil || l.last == Head {
		return err
	}
	var keep []uint64
	for _, s := range slices.Backward(r.Existing) {
		if s.ID <= l.last {
			keep = append(keep, s.ID)
		}
	}
	gone := delta.Interval{Existed: true, OldSize: l.size}
	return r.write(ctx, k, keep, gone, delta.Steps(gone, nil), nil)
}

// lacking tells what of an object the source has and the destination has not,
// nil if there is nothing.
func (r *run) lacking(ctx context.Context, k uint64) (*lack, error) {
	set, err := ceph.ListObjectSnaps(ctx, r.Source.IO, r.Source.name(k))
	if err != nil {
		return nil, err
	}
	r.Stats.Listed.Add(1)
	there := versions(set)
	if len(there.Versions) == 0 {
		return nil, nil
	}
	here, err := ceph.ListObjectSnaps(ctx, r.Dest.IO, r.Dest.name(k))
	if err != nil {
		return nil, err
	}
	n := len(here.Clones)
	head := n > 0 && here.Clones[n-1].ID == ceph.SnapHead
	v, ok, err := there.At(r.Start)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", r.Source.name(k), err)
	}
	if ok {
		if head {
			return nil, nil
		}
		return &lack{size: v.Size, from: r.Start, last: Head}, nil
	}
	if n > 0 && !head {
		return nil, nil // what older snapshots have was there once, and is kept
	}
	// When a clone is cut off, librbd puts what the parent shows below its
	// older snapshots before. A head here is what an attempt like this left.
	for _, s := range slices.Backward(r.Existing) {
		if s.Remote == 0 || s.Remote > r.Start || k >= s.Objects {
			continue
		}
		v, ok, err := there.At(s.Remote)
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", r.Source.name(k), err)
		}
		if ok {
			return &lack{size: v.Size, from: s.Remote, last: s.ID}, nil
		}
	}
	return nil, nil
}
