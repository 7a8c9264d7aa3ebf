// Package blocks lists the extents of a file on CephFS that may differ between
// two snapshots. It asks the OSDs, which know it exactly; the block diff that
// the MDS offers since Tentacle misses what was punched or truncated.
package blocks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/snapdiff/objects"
)

// Extent is a range of bytes of a file.
type Extent = objects.Extent

// ErrUnknown: nothing can be told of this file, its content has to be compared.
var ErrUnknown = errors.New("changed extents cannot be told")

// Pair is a regular file in two snapshots. The attributes must have been read
// with the files open: only then is all written that belongs to the snapshots.
type Pair struct {
	Old, New         *cephfs.File
	OldSnap, NewSnap uint64
	OldStat, NewStat ceph.Stat
}

// Changed returns the extents of the newer file that may differ from the older
// one, in ascending order. Bytes beyond the end of the older one count as
// zeros. Both snapshots must still exist when it returns, or the answer means
// nothing. conn is a connection to the cluster of m that may read the pool.
func Changed(ctx context.Context, conn *rados.Conn, m *ceph.Mount, p Pair) ([]Extent, error) {
	unknown := func(err error) ([]Extent, error) { return nil, fmt.Errorf("%w: %w", ErrUnknown, err) }
	if p.OldStat.Ino != p.NewStat.Ino || !p.NewStat.IsRegular() || !p.OldStat.IsRegular() {
		return unknown(syscall.EINVAL)
	}
	layout, err := m.FileLayout(p.New)
	if err != nil {
		return unknown(fmt.Errorf("reading the layout: %w", err))
	}
	before, err := m.FileLayout(p.Old)
	if err != nil {
		return unknown(fmt.Errorf("reading the layout: %w", err))
	}
	// An empty file may be given another layout.
	if layout != before {
		return unknown(fmt.Errorf("the layout changed: %w", syscall.EINVAL))
	}
	pool, err := conn.GetPoolByID(layout.Pool)
	if err != nil {
		return unknown(fmt.Errorf("looking up pool %d: %w", layout.Pool, err))
	}
	ioctx, err := conn.OpenIOContext(pool)
	if err != nil {
		return unknown(fmt.Errorf("opening pool %s: %w", pool, err))
	}
	defer ioctx.Destroy()
	ioctx.SetNamespace(layout.Namespace)
	f := objects.File{
		Layout:  objects.Layout{StripeUnit: layout.StripeUnit, StripeCount: layout.StripeCount, ObjectSize: layout.ObjectSize},
		OldSnap: p.OldSnap, NewSnap: p.NewSnap,
		OldSize: p.OldStat.Size, NewSize: p.NewStat.Size,
		List: func(ctx context.Context, numbers []uint64) ([]objects.Object, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			return list(ioctx, p.NewStat.Ino, numbers)
		},
		ReadNew: func(buf []byte, offset uint64) error { return readFull(p.New, buf, offset) },
	}
	extents, err := f.Scan(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return unknown(err)
	}
	return extents, nil
}

// list asks the OSDs for all versions of objects of a file.
func list(ioctx *rados.IOContext, ino uint64, numbers []uint64) ([]objects.Object, error) {
	names := make([]string, len(numbers))
	for i, n := range numbers {
		names[i] = fmt.Sprintf("%x.%08x", ino, n)
	}
	sets, err := ceph.ListSnaps(ioctx, names)
	if err != nil {
		return nil, err
	}
	out := make([]objects.Object, len(sets))
	for i, s := range sets {
		o := objects.Object{Seq: s.Seq, Versions: make([]objects.Version, len(s.Clones))}
		for j, c := range s.Clones {
			v := objects.Version{ID: c.ID, Size: c.Size, Snaps: c.Snaps}
			if c.ID == ceph.SnapHead {
				v.ID = objects.Head
			}
			for _, e := range c.Overlap {
				v.Overlap = append(v.Overlap, Extent{Offset: e[0], Length: e[1]})
			}
			o.Versions[j] = v
		}
		out[i] = o
	}
	return out, nil
}

func readFull(f *cephfs.File, buf []byte, offset uint64) error {
	for len(buf) > 0 {
		n, err := f.ReadAt(buf, int64(offset))
		if err == io.EOF || err == nil && n == 0 {
			return fmt.Errorf("%d bytes less than its size says: %w", len(buf), syscall.EIO)
		}
		if err != nil {
			return err
		}
		buf, offset = buf[n:], offset+uint64(n)
	}
	return nil
}
