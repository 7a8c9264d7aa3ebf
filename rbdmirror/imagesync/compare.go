package imagesync

import (
	"context"
	"fmt"
	"syscall"

	"golang.org/x/sync/errgroup"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/imagesync/delta"
)

// compare brings the destination's object to what the source's was at the first
// target, whatever it is now.
func (r *run) compare(ctx context.Context, t *task) (repaired bool, err error) {
	v := t.intervals[0] // since there was nothing
	b, err := r.readBoth(ctx, t.number, part{r.remotes[0], v.Size}, part{ceph.SnapHead, r.ObjectSize})
	if err != nil {
		return false, err
	}
	defer b.done()
	v.Existed = b.dest != nil
	if v.Existed && v.Exists {
		if v, err = b.compared(v.Size); err != nil {
			return false, err
		}
	}
	if v.Unchanged() {
		return false, nil
	}
	var data *ceph.ObjectData
	var extents delta.Data
	if b.source != nil {
		data, extents = b.source.data, b.source.extents
	}
	if err := r.write(ctx, t.number, r.contexts[0], v, delta.Steps(v, extents), data); err != nil {
		return false, err
	}
	r.Stats.Repaired.Add(1)
	return true, nil
}

// part is what is read of an object: the beginning, as it was at a snapshot.
type part struct{ snap, length uint64 }

// both is an object as it is at both sides. What was not read, or is not there,
// is nil.
type both struct {
	source, dest *read
	charge       *charge
}

// readBoth reads an object at both sides at once. The caller calls done.
func (r *run) readBoth(ctx context.Context, k uint64, source, dest part) (b both, err error) {
	if b.charge, err = r.Memory.acquire(ctx, source.length+dest.length); err != nil {
		return b, err
	}
	g, ctx := errgroup.WithContext(ctx)
	if source.length > 0 {
		g.Go(func() (err error) {
			b.source, err = readObject(ctx, r.Source, k, source.snap, []delta.Extent{{Length: source.length}})
			if err != nil {
				return fmt.Errorf("%w: %w", errSource, err)
			}
			return r.paid(ctx, b.source)
		})
	}
	if dest.length > 0 {
		g.Go(func() (err error) {
			b.dest, err = readObject(ctx, r.Dest, k, dest.snap, []delta.Extent{{Length: dest.length}})
			if ceph.Is(err, syscall.ENOENT) {
				return nil
			}
			if err == nil {
				r.Stats.Compared.Add(b.dest.bytes())
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.done()
		return b, err
	}
	return b, nil
}

// compared returns what makes the destination's object the source's, which has
// that size.
func (b *both) compared(size uint64) (delta.Interval, error) {
	was, err := b.dest.content()
	if err != nil {
		return delta.Interval{}, err
	}
	is, err := b.source.content()
	if err != nil {
		return delta.Interval{}, err
	}
	return delta.Compared(size, was, is, compareBlock), nil
}

func (b *both) done() {
	for _, d := range []*read{b.source, b.dest} {
		if d != nil {
			d.done()
		}
	}
	b.charge.release()
}

// content returns what was read, in one piece. A nil one has nothing.
func (d *read) content() (delta.Content, error) {
	if d == nil {
		return delta.Content{}, nil
	}
	b, err := d.data.Part(0)
	return delta.Content{Extents: d.extents[0], Bytes: b}, err
}
