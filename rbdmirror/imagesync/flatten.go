package imagesync

import (
	"context"
	"errors"
	"fmt"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/imagesync/delta"
	"cephmirror/rbdmirror/objectmap"
)

// Flatten prepares the destination for losing its parent, when the source has
// none any more: of the first objects, as many as the parent may show through
// in the destination's head or any of its snapshots, those that the source has
// at Start and the destination lacks are put below all its snapshots. This does
// not change what the destination shows. After it the parent can be detached,
// and that has to happen before the snapshots of the next synchronisation are
// made: they would show the parent where the source shows nothing.
//
// Of the job, Targets, Resume, FullCompare and SaveProgress are not used. What
// is said of Run's end holds here, too.
func Flatten(ctx context.Context, j Job, objects uint64) error {
	j.Targets = nil
	r := newRun(j)
	if r.ObjectSize == 0 || r.Start == 0 {
		return errors.New("flattening image: no object size or no snapshot to start from")
	}
	return r.bounded(ctx, func(ctx context.Context) error { return r.flatten(ctx, objects) })
}

func (r *run) flatten(ctx context.Context, objects uint64) error {
	r.Stats.Total.Store(objects)
	for first := uint64(0); first < objects; first += window {
		sizes := make([]*uint64, min(window, objects-first))
		err := each(ctx, len(sizes), 2*r.Concurrency, func(ctx context.Context, i int) (err error) {
			sizes[i], err = r.lacking(ctx, first+uint64(i))
			return err
		})
		if err != nil {
			return err
		}
		if err := r.mayWrite(ctx); err != nil {
			return err
		}
		if r.mapSet != nil {
			var raise []change
			for i, size := range sizes {
				if size != nil {
					k := first + uint64(i)
					raise = append(append(raise, r.older(k)...), change{Head, k, objectmap.ExistsClean})
				}
			}
			if err := r.mapSet.apply(ctx, raise); err != nil {
				return err
			}
		}
		err = each(ctx, len(sizes), r.Concurrency, func(ctx context.Context, i int) error {
			if sizes[i] != nil {
				v := delta.Interval{Existed: true, Exists: true, OldSize: *sizes[i], Size: *sizes[i]}
				t := &task{number: first + uint64(i), intervals: []delta.Interval{v}}
				if err := r.copyUp(ctx, t, 0); err != nil {
					return fmt.Errorf("object %d: %w", t.number, err)
				}
			}
			r.Stats.Done.Add(1)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lacking returns the size of an object that the source has and the destination
// has not, nil for all others.
func (r *run) lacking(ctx context.Context, k uint64) (*uint64, error) {
	there, err := ceph.ListObjectSnaps(ctx, r.Source.IO, r.Source.name(k))
	if err != nil {
		return nil, err
	}
	r.Stats.Listed.Add(1)
	v, ok, err := versions(there).At(r.Start)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", r.Source.name(k), err)
	}
	if !ok {
		return nil, nil
	}
	here, err := ceph.ListObjectSnaps(ctx, r.Dest.IO, r.Dest.name(k))
	if err != nil {
		return nil, err
	}
	if n := len(here.Clones); n > 0 && here.Clones[n-1].ID == ceph.SnapHead {
		return nil, nil
	}
	return &v.Size, nil
}
