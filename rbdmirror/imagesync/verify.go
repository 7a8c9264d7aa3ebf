package imagesync

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"cephmirror/internal/ceph"
)

// Common is a snapshot that both images have.
type Common struct {
	Remote, Local uint64
	Objects       uint64 // how many the image has at it
	// Parent: where the destination has no object, the parent may show what
	// the source has put into one of its own.
	Parent bool
}

// Verify reads both images at snapshots that they have in common, and returns
// for each how many objects differ. It writes nothing. Of the job, Source, Dest,
// ObjectSize, Memory, Limit, Concurrency and Stats are used.
func Verify(ctx context.Context, j Job, common []Common) ([]uint64, error) {
	j.Targets, j.Maps = nil, nil
	r := newRun(j)
	if r.ObjectSize == 0 {
		return nil, errors.New("verifying image: no object size")
	}
	var count uint64
	for _, c := range common {
		count = max(count, c.Objects)
	}
	r.Stats.Total.Store(count)
	differ := make([]atomic.Uint64, len(common))
	for first := uint64(0); first < count; first += window {
		err := each(ctx, int(min(window, count-first)), r.Concurrency, func(ctx context.Context, i int) error {
			defer r.Stats.Done.Add(1)
			return r.verify(ctx, first+uint64(i), common, differ)
		})
		if err != nil {
			return nil, err
		}
	}
	out := make([]uint64, len(common))
	for i := range out {
		out[i] = differ[i].Load()
	}
	return out, nil
}

// verify compares one object, at all snapshots in common.
func (r *run) verify(ctx context.Context, k uint64, common []Common, differ []atomic.Uint64) error {
	here, err := ceph.ListObjectSnaps(ctx, r.Dest.IO, r.Dest.name(k))
	if err != nil {
		return err
	}
	there, err := ceph.ListObjectSnaps(ctx, r.Source.IO, r.Source.name(k))
	if err != nil {
		return err
	}
	r.Stats.Listed.Add(2)
	known := make(map[[2]uint64]bool) // by the versions of both
	for i, c := range common {
		if k >= c.Objects {
			continue
		}
		a, inSource, err := versions(there).At(c.Remote)
		if err != nil {
			return fmt.Errorf("object %s: %w", r.Source.name(k), err)
		}
		b, inDest, err := versions(here).At(c.Local)
		if err != nil {
			return fmt.Errorf("object %s: %w", r.Dest.name(k), err)
		}
		if !inSource && !inDest || !inDest && c.Parent {
			continue
		}
		if !inSource && c.Parent {
			differ[i].Add(1) // the parent shows there, but not here
			continue
		}
		pair := [2]uint64{a.ID, b.ID}
		same, ok := known[pair]
		if !ok {
			if same, err = r.equal(ctx, k, c, a.Size, inSource, inDest); err != nil {
				return fmt.Errorf("object %d: %w", k, err)
			}
			known[pair] = same
		}
		if !same {
			differ[i].Add(1)
		}
	}
	return nil
}

// equal compares the content of an object. What does not exist is nothing but
// zeros.
func (r *run) equal(ctx context.Context, k uint64, c Common, size uint64, inSource, inDest bool) (bool, error) {
	source, dest := part{snap: c.Remote}, part{snap: c.Local}
	if inSource {
		source.length = r.ObjectSize
	}
	if inDest {
		dest.length = r.ObjectSize
	}
	b, err := r.readBoth(ctx, k, source, dest)
	if err != nil {
		return false, err
	}
	defer b.done()
	v, err := b.compared(size)
	return v.Unchanged(), err
}
