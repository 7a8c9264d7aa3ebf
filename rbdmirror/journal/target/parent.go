package target

import (
	"fmt"
	"io"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// parentImage is the snapshot that the image is a clone of, read through librbd:
// it may be a clone itself, and laid out in another way.
type parentImage struct {
	ioctx *rados.IOContext
	image *rbd.Image
}

var errNoParent = fmt.Errorf("the image has no parent: %w", syscall.EINVAL)

func (t *Target) openParent() (*parentImage, error) {
	t.parents.Lock()
	defer t.parents.Unlock()
	if t.parent != nil {
		return t.parent, nil
	}
	spec := t.img.Parent
	if !spec.Exists() {
		return nil, errNoParent
	}
	ioctx, err := store.PoolContext(t.cfg.Conn, spec.PoolID, spec.Namespace)
	if err != nil {
		return nil, fmt.Errorf("opening the parent: %w", err)
	}
	image, err := rbd.OpenImageByIdReadOnly(ioctx, spec.ImageID, rbd.NoSnapshot)
	if err != nil {
		ioctx.Destroy()
		return nil, fmt.Errorf("opening the parent (id %s): %w", spec.ImageID, err)
	}
	if err := image.SetSnapByID(spec.SnapID); err != nil {
		_ = image.Close()
		ioctx.Destroy()
		return nil, fmt.Errorf("opening snapshot %d of the parent (id %s): %w", spec.SnapID, spec.ImageID, err)
	}
	t.parent = &parentImage{ioctx, image}
	return t.parent, nil
}

func (t *Target) closeParent() {
	if t.parent == nil {
		return
	}
	if err := t.parent.image.Close(); err != nil {
		t.cfg.Log.Debug().Err(err).Msg("closing the parent")
	}
	t.parent.ioctx.Destroy()
	t.parent = nil
}

// readParent returns what of the parent an object shows, up to some end.
func (t *Target) readParent(object, end uint64) ([]byte, error) {
	p, err := t.openParent()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, end)
	var failed error
	t.layout.Within(object, end, func(piece merge.Piece) {
		if failed != nil {
			return
		}
		_, err := p.image.ReadAt(buf[piece.Offset:piece.Offset+piece.Length], int64(piece.At))
		if err != nil && err != io.EOF {
			failed = fmt.Errorf("reading the parent at %d: %w", piece.At, err)
		}
	})
	return buf, failed
}

// release tells the parent that the image is no longer a clone of it.
func (t *Target) release() error {
	return t.local().DetachChild(t.img, t.header)
}

func (t *Target) local() replica.Local {
	return replica.Local{Conn: t.cfg.Conn, IO: t.cfg.IO, Namespace: t.ns}
}
