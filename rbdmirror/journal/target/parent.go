package target

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

var errNoParent = fmt.Errorf("the image has no parent: %w", syscall.EINVAL)

// ancestor is an image as it is in a snapshot that another is a clone of. It may be
// a clone itself, and laid out in another way.
type ancestor struct {
	name   string // for errors
	data   *rados.IOContext
	prefix string
	layout merge.Layout
	snap   uint64
	size   uint64
	// up shows through where the image has no object, below overlap; nil:
	// nothing does.
	up      *ancestor
	overlap uint64
}

// maxAncestors is how long a chain of clones may be.
const maxAncestors = 256

// openAncestor opens the snapshot that a clone hangs on.
func openAncestor(conn *rados.Conn, spec cls.ParentSpec, depth int) (*ancestor, error) {
	name := fmt.Sprintf("the parent (id %s, snapshot %d)", spec.ImageID, spec.SnapID)
	if depth > maxAncestors {
		return nil, fmt.Errorf("opening %s: more than %d clones of each other: %w", name, maxAncestors, syscall.ELOOP)
	}
	ioctx, err := store.PoolContext(conn, spec.PoolID, spec.Namespace)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	defer ioctx.Destroy()
	img, err := store.NewHeader(ioctx, spec.ImageID).Load()
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	snap := img.Snapshot(spec.SnapID)
	switch {
	case snap == nil:
		return nil, fmt.Errorf("opening %s: there is no such snapshot: %w", name, syscall.ENOENT)
	case img.Features&cls.FeatureMigrating != 0:
		return nil, fmt.Errorf("opening %s: it is being migrated: %w", name, syscall.EBUSY)
	}
	a := &ancestor{
		name: name, prefix: img.Prefix, snap: snap.ID, size: snap.Size,
		layout: merge.Layout{ObjectSize: img.ObjectSize(), StripeUnit: img.StripeUnit, StripeCount: img.StripeCount},
	}
	if a.data, err = store.DataContext(conn, ioctx, img.DataPool); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	if snap.ParentOverlap != nil && *snap.ParentOverlap > 0 && img.Parent.Exists() {
		a.overlap = min(*snap.ParentOverlap, snap.Size)
		if a.up, err = openAncestor(conn, img.Parent, depth+1); err != nil {
			a.close()
			return nil, err
		}
	}
	return a, nil
}

func (a *ancestor) close() {
	if a == nil {
		return
	}
	a.data.Destroy()
	a.up.close()
}

// span is a range of an image that is to be read.
type span struct {
	at   uint64
	into []byte // zeros
}

// read reads ranges. What is not there, or lies beyond the end, is left as it is.
func (a *ancestor) read(ctx context.Context, spans []span) error {
	type piece struct {
		offset uint64 // in its object
		span
	}
	objects := make(map[uint64][]piece)
	for _, s := range spans {
		if s.at >= a.size {
			continue
		}
		into := s.into[:min(uint64(len(s.into)), a.size-s.at)]
		a.layout.Pieces(s.at, uint64(len(into)), func(p merge.Piece) {
			objects[p.Object] = append(objects[p.Object], piece{p.Offset, span{s.at + p.At, into[p.At : p.At+p.Length]}})
		})
	}
	var above []span
	for _, n := range slices.Sorted(maps.Keys(objects)) {
		pieces := objects[n]
		slices.SortFunc(pieces, func(p, q piece) int { return cmp.Compare(p.offset, q.offset) })
		extents := make([][2]uint64, len(pieces))
		for i, p := range pieces {
			extents[i] = [2]uint64{p.offset, uint64(len(p.into))}
		}
		d, err := ceph.ReadObject(ctx, a.data, store.DataObject(a.prefix, n), a.snap, extents)
		if ceph.Is(err, syscall.ENOENT) {
			for _, p := range pieces {
				if a.up != nil && p.at < a.overlap {
					above = append(above, span{p.at, p.into[:min(uint64(len(p.into)), a.overlap-p.at)]})
				}
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", a.name, err)
		}
		for i, p := range pieces {
			if err := take(d, i, p.offset, p.into); err != nil {
				d.Release()
				return fmt.Errorf("reading %s: %w", a.name, err)
			}
		}
		d.Release()
	}
	if len(above) == 0 {
		return nil
	}
	return a.up.read(ctx, above)
}

// take copies a part of what was read of an object, from an offset on. Into where
// nothing is nothing is copied.
func take(d *ceph.ObjectData, part int, offset uint64, into []byte) error {
	if len(d.Extents[part]) == 0 {
		return nil
	}
	b, err := d.Part(part)
	if err != nil {
		return err
	}
	for _, e := range d.Extents[part] {
		at := e[0] - offset
		b = b[copy(into[at:at+e[1]], b):]
	}
	return nil
}

func (t *Target) openParent() (*ancestor, error) {
	t.parents.Lock()
	defer t.parents.Unlock()
	if t.parent != nil {
		return t.parent, nil
	}
	if !t.img.Parent.Exists() {
		return nil, errNoParent
	}
	a, err := openAncestor(t.cfg.Conn, t.img.Parent, 0)
	if err != nil {
		return nil, err
	}
	t.parent = a
	return a, nil
}

func (t *Target) closeParent() {
	t.parent.close()
	t.parent = nil
}

// readParent returns what of the parent an object shows, up to some end.
func (t *Target) readParent(ctx context.Context, object, end uint64) ([]byte, error) {
	p, err := t.openParent()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, end)
	var spans []span
	t.layout.Within(object, end, func(piece merge.Piece) {
		spans = append(spans, span{piece.At, buf[piece.Offset : piece.Offset+piece.Length]})
	})
	return buf, p.read(ctx, spans)
}

// release tells the parent that the image is no longer a clone of it.
func (t *Target) release() error {
	return t.local().DetachChild(t.img, t.header)
}

func (t *Target) local() replica.Local {
	return replica.Local{Conn: t.cfg.Conn, IO: t.cfg.IO, Namespace: t.ns}
}
