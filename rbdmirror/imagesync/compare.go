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
	charge, err := r.Memory.acquire(ctx, v.Size+r.ObjectSize)
	if err != nil {
		return false, err
	}
	defer charge.release()
	var source, dest *read
	defer func() {
		for _, d := range []*read{source, dest} {
			if d != nil {
				d.done()
			}
		}
	}()
	g, both := errgroup.WithContext(ctx)
	if v.Size > 0 {
		g.Go(func() (err error) {
			source, err = readObject(both, r.Source, t.number, r.remotes[0], []delta.Extent{{Length: v.Size}})
			if err != nil {
				return fmt.Errorf("%w: %w", errSource, err)
			}
			return r.paid(both, source)
		})
	}
	g.Go(func() (err error) {
		dest, err = readObject(both, r.Dest, t.number, ceph.SnapHead, []delta.Extent{{Length: r.ObjectSize}})
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		if err == nil {
			r.Stats.Compared.Add(dest.bytes())
		}
		return err
	})
	if err := g.Wait(); err != nil {
		return false, err
	}
	v.Existed = dest != nil
	if v.Existed && v.Exists {
		was, err := dest.content()
		if err != nil {
			return false, err
		}
		is, err := source.content()
		if err != nil {
			return false, err
		}
		v = delta.Compared(v.Size, was, is, compareBlock)
	}
	if v.Unchanged() {
		return false, nil
	}
	var data *ceph.ObjectData
	var extents delta.Data
	if source != nil {
		data, extents = source.data, source.extents
	}
	if err := r.write(ctx, t.number, r.contexts[0], v, delta.Steps(v, extents), data); err != nil {
		return false, err
	}
	r.Stats.Repaired.Add(1)
	return true, nil
}

// content returns what was read, in one piece. A nil one has nothing.
func (d *read) content() (delta.Content, error) {
	if d == nil {
		return delta.Content{}, nil
	}
	b, err := d.data.Part(0)
	return delta.Content{Extents: d.extents[0], Bytes: b}, err
}
