package replay

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// parent is the local snapshot that a copy of a clone hangs on.
type parent struct {
	spec cls.ParentSpec
	old  bool // a clone of the kind that is listed in rbd_children
}

// errParent: the parent is not there, or not far enough. It comes by itself.
var errParent = errors.New("parent image does not exist")

// remoteParent is the parent as the remote cluster knows it.
type remoteParent struct {
	pool, namespace, name, id, gid string
	snap                           cls.Snapshot
	old                            bool
}

func (p remoteParent) String() string {
	name := p.name
	if name == "" {
		name = "(id " + p.id + ")"
	}
	if p.namespace != "" {
		return p.pool + "/" + p.namespace + "/" + name
	}
	return p.pool + "/" + name
}

// findParent finds the local snapshot that corresponds to what the remote image
// is a clone of.
func (r *Replayer) findParent(ctx context.Context, v *view) (parent, error) {
	head := v.remote.head
	if !head.Parent.Exists() {
		return parent{}, fmt.Errorf("remote image parent spec mismatch: %w", syscall.EINVAL)
	}
	p, err := remotely(ctx, r, func() (remoteParent, error) { return r.lookUpParent(head) })
	if err != nil {
		return parent{}, remoteError{err}
	}
	return r.localParent(p)
}

// lookUpParent asks the remote cluster about the parent.
func (r *Replayer) lookUpParent(head *store.Image) (remoteParent, error) {
	spec := head.Parent
	p := remoteParent{namespace: spec.Namespace, id: spec.ImageID, old: head.OpFeatures&cls.OpFeatureCloneChild == 0}
	var err error
	if p.pool, err = r.remote.Conn.GetPoolByID(spec.PoolID); err != nil {
		return p, fmt.Errorf("looking up the pool %d of the remote parent image: %w", spec.PoolID, err)
	}
	ioctx, err := store.PoolContext(r.remote.Conn, spec.PoolID, spec.Namespace)
	if err != nil {
		return p, err
	}
	defer ioctx.Destroy()
	if p.name, err = store.NewDirectory(ioctx).Name(p.id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return p, err
	}
	record, err := store.NewMirroring(ioctx).Image(p.id)
	if ceph.Is(err, syscall.ENOENT) {
		return p, fmt.Errorf("%w: the remote image %s is not mirrored: %w", errParent, p, syscall.ENOENT)
	}
	if err != nil {
		return p, err
	}
	p.gid = record.GlobalID
	img, err := store.NewHeader(ioctx, p.id).Load()
	if err != nil {
		return p, err
	}
	s := img.Snapshot(spec.SnapID)
	if s == nil {
		return p, fmt.Errorf("%w: the remote image %s has no snapshot %d: %w", errParent, p, spec.SnapID, syscall.ENOENT)
	}
	p.snap = *s
	return p, nil
}

// localParent finds the local copy of the remote parent's snapshot.
func (r *Replayer) localParent(p remoteParent) (parent, error) {
	fail := func(what string) (parent, error) {
		return parent{}, fmt.Errorf("%w: %s: %w", errParent, what, syscall.ENOENT)
	}
	namespace := p.namespace
	if namespace == r.cfg.Remote.Namespace && p.pool == r.cfg.Remote.Pool {
		namespace = r.cfg.Local.Namespace
	}
	ioctx, err := r.local.Conn.OpenIOContext(p.pool)
	if ceph.Is(err, syscall.ENOENT) {
		return fail(fmt.Sprintf("there is no pool %s here for the parent %s", p.pool, p))
	}
	if err != nil {
		return parent{}, fmt.Errorf("opening pool %s: %w", p.pool, err)
	}
	defer ioctx.Destroy()
	ioctx.SetNamespace(namespace)
	records := store.NewMirroring(ioctx)
	id, err := records.ImageID(p.gid)
	if ceph.Is(err, syscall.ENOENT) {
		return fail(fmt.Sprintf("the parent %s has no copy here yet", p))
	}
	if err != nil {
		return parent{}, err
	}
	img, err := store.NewHeader(ioctx, id).Load()
	if ceph.Is(err, syscall.ENOENT) {
		return fail(fmt.Sprintf("the parent %s has no copy here yet", p))
	}
	if err != nil {
		return parent{}, err
	}
	snap := localSnapshot(img, p.snap, r.cfg.Remote.MirrorUUID)
	if snap == nil {
		return fail(fmt.Sprintf("the copy of the parent %s has no snapshot %s yet", p, p.snap.Name))
	}
	if !filled(img, snap.ID) {
		return fail(fmt.Sprintf("the copy of the parent %s is still being synchronised", p))
	}
	if p.old && snap.Protection != cls.Protected {
		return fail(fmt.Sprintf("the snapshot %s of the copy of the parent %s is not protected yet", p.snap.Name, p))
	}
	return parent{spec: cls.ParentSpec{PoolID: ioctx.GetPoolID(), Namespace: namespace, ImageID: id, SnapID: snap.ID}, old: p.old}, nil
}

// localSnapshot finds the local copy of a remote snapshot: by the map that
// mirror snapshots carry, else by its name.
func localSnapshot(img *store.Image, remote cls.Snapshot, remoteUUID string) *cls.Snapshot {
	for i := len(img.Snapshots) - 1; i >= 0; i-- {
		m := img.Snapshots[i].Namespace.Mirror
		if m == nil || m.PrimaryUUID != remoteUUID {
			continue
		}
		if id, ok := m.SnapSeqs[remote.ID]; ok && id != cls.NoSnap {
			if s := img.Snapshot(id); s != nil {
				return s
			}
		}
	}
	for i := range img.Snapshots {
		s := &img.Snapshots[i]
		if s.Name == remote.Name && s.Namespace.Type == cls.NamespaceUser && remote.Namespace.Type == cls.NamespaceUser {
			return s
		}
	}
	return nil
}

// filled reports whether a snapshot of the image has all its data: those of a
// copy do once a later mirror snapshot is complete.
func filled(img *store.Image, snap uint64) bool {
	if img.Features&cls.FeatureNonPrimary == 0 {
		return true
	}
	for _, s := range img.Snapshots {
		if m := s.Namespace.Mirror; m != nil && m.Complete && s.ID > snap {
			return true
		}
	}
	return false
}

// attachChild tells the parent that the image is a clone of it, before the
// image itself says so.
func (r *Replayer) attachChild(p parent, id string, h *store.Header) error {
	if p.old {
		return store.AddOldChild(r.local.ioctx, p.spec, id)
	}
	ioctx, err := r.poolContext(p.spec.PoolID, p.spec.Namespace)
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	ph := store.NewHeader(ioctx, p.spec.ImageID)
	child := cls.ChildSpec{PoolID: r.local.ioctx.GetPoolID(), ImageID: id, Namespace: r.cfg.Local.Namespace}
	if err := ph.AttachChild(p.spec.SnapID, child); err != nil {
		return err
	}
	if err := h.SetOpFeatures(cls.OpFeatureCloneChild, cls.OpFeatureCloneChild); err != nil {
		return err
	}
	return ph.Notify()
}

// detachChild tells the parent that the image is no longer a clone of it. A
// snapshot of it that was kept for that alone is removed.
func (r *Replayer) detachChild(head *store.Image, h *store.Header) error {
	spec := head.Parent
	if head.OpFeatures&cls.OpFeatureCloneChild == 0 {
		return store.RemoveOldChild(r.local.ioctx, spec, head.ID)
	}
	ioctx, err := r.poolContext(spec.PoolID, spec.Namespace)
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	ph := store.NewHeader(ioctx, spec.ImageID)
	child := cls.ChildSpec{PoolID: r.local.ioctx.GetPoolID(), ImageID: head.ID, Namespace: r.cfg.Local.Namespace}
	if err := ph.DetachChild(spec.SnapID, child); err != nil {
		return err
	}
	if err := h.SetOpFeatures(0, cls.OpFeatureCloneChild); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	return ph.Notify()
}
