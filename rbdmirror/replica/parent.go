package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/store"
)

// Parent is the local snapshot that the copy of a clone hangs on.
type Parent struct {
	Spec cls.ParentSpec
	old  bool // a clone of the kind that is listed in rbd_children
}

// ErrParent: the parent is not there, or not far enough. It comes by itself.
var ErrParent = errors.New("parent image does not exist")

// remoteParent is the parent as the remote cluster knows it.
type remoteParent struct {
	pool, namespace, name, id, gid string
	uuid                           string // mirror uuid of its pool
	snap                           cls.Snapshot
	old                            bool
	// copying says that the local copy is not complete yet, as the journal of
	// the parent knows.
	copying bool
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

// FindParent finds the local snapshot that corresponds to what the remote image is
// a clone of.
func (p *Pair) FindParent(ctx context.Context, remote *store.Image) (Parent, error) {
	if !remote.Parent.Exists() {
		return Parent{}, fmt.Errorf("remote image parent spec mismatch: %w", syscall.EINVAL)
	}
	up, err := remotely(ctx, p, func() (remoteParent, error) { return p.lookUpParent(remote) })
	if err != nil {
		return Parent{}, err
	}
	return p.localParent(up)
}

// lookUpParent asks the remote cluster about the parent.
func (p *Pair) lookUpParent(head *store.Image) (remoteParent, error) {
	spec := head.Parent
	up := remoteParent{namespace: spec.Namespace, id: spec.ImageID, old: head.OpFeatures&cls.OpFeatureCloneChild == 0}
	var err error
	if up.pool, err = p.Remote.Conn.GetPoolByID(spec.PoolID); err != nil {
		return up, fmt.Errorf("looking up the pool %d of the remote parent image: %w", spec.PoolID, err)
	}
	ioctx, err := store.PoolContext(p.Remote.Conn, spec.PoolID, spec.Namespace)
	if err != nil {
		return up, err
	}
	defer ioctx.Destroy()
	if up.name, err = store.NewDirectory(ioctx).Name(up.id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return up, err
	}
	record, err := store.NewMirroring(ioctx).Image(up.id)
	if ceph.Is(err, syscall.ENOENT) {
		return up, fmt.Errorf("%w: the remote image %s is not mirrored: %w", ErrParent, up, syscall.ENOENT)
	}
	if err != nil {
		return up, err
	}
	up.gid = record.GlobalID
	if up.uuid, err = p.Remote.mirrorUUID(up.pool); err != nil {
		return up, err
	}
	img, err := store.NewHeader(ioctx, up.id).Load()
	if err != nil {
		return up, err
	}
	s := img.Snapshot(spec.SnapID)
	if s == nil {
		return up, fmt.Errorf("%w: the remote image %s has no snapshot %d: %w", ErrParent, up, spec.SnapID, syscall.ENOENT)
	}
	up.snap = *s
	if record.Mode == cls.ImageModeJournal {
		up.copying, err = p.copying(ioctx, up.pool, up.id)
	}
	return up, err
}

// copying says whether the first local copy of an image with a journal is not
// complete, which the journal knows. pool is the name of the image's pool.
func (p *Pair) copying(ioctx *rados.IOContext, pool, image string) (bool, error) {
	uuid, err := p.Local.mirrorUUID(pool)
	if err != nil {
		return false, err
	}
	c, err := objects.New(ioctx, image).Client(uuid)
	if ceph.Is(err, syscall.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	data, err := format.DecodeClientData(c.Data)
	if err != nil {
		return false, fmt.Errorf("client %s of the journal of image %s: %w", uuid, image, err)
	}
	peer, ok := data.(*format.PeerClient)
	return ok && peer.State == format.Syncing, nil
}

// mirrorUUID is the mirror uuid of a pool on that side, empty if it is not there
// or not mirrored.
func (s *Side) mirrorUUID(pool string) (string, error) {
	if pool == s.Pool {
		return s.MirrorUUID, nil
	}
	ioctx, err := s.Conn.OpenIOContext(pool)
	if ceph.Is(err, syscall.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("opening pool %s: %w", pool, err)
	}
	defer ioctx.Destroy()
	uuid, err := store.NewMirroring(ioctx).UUID()
	if ceph.Is(err, syscall.ENOENT) {
		return "", nil
	}
	return uuid, err
}

// localParent finds the local copy of the remote parent's snapshot.
func (p *Pair) localParent(up remoteParent) (Parent, error) {
	fail := func(what string) (Parent, error) {
		return Parent{}, fmt.Errorf("%w: %s: %w", ErrParent, what, syscall.ENOENT)
	}
	ioctx, err := p.Local.Conn.OpenIOContext(up.pool)
	if ceph.Is(err, syscall.ENOENT) {
		return fail(fmt.Sprintf("there is no pool %s here for the parent %s", up.pool, up))
	}
	if err != nil {
		return Parent{}, fmt.Errorf("opening pool %s: %w", up.pool, err)
	}
	defer ioctx.Destroy()
	namespace, err := p.localNamespace(ioctx, up)
	if err != nil {
		return Parent{}, err
	}
	ioctx.SetNamespace(namespace)
	records := store.NewMirroring(ioctx)
	id, err := records.ImageID(up.gid)
	if ceph.Is(err, syscall.ENOENT) {
		return fail(fmt.Sprintf("the parent %s has no copy here yet", up))
	}
	if err != nil {
		return Parent{}, err
	}
	record, err := records.Image(id)
	if err != nil {
		return Parent{}, err
	}
	img, err := store.NewHeader(ioctx, id).Load()
	if ceph.Is(err, syscall.ENOENT) || err == nil && record.State != cls.RecordEnabled {
		return fail(fmt.Sprintf("the parent %s has no copy here yet", up))
	}
	if err != nil {
		return Parent{}, err
	}
	snap := localSnapshot(img, up.snap, up.uuid)
	if snap == nil {
		return fail(fmt.Sprintf("the copy of the parent %s has no snapshot %s yet", up, up.snap.Name))
	}
	if up.copying || !filled(img, snap.ID) {
		return fail(fmt.Sprintf("the copy of the parent %s is still being synchronised", up))
	}
	if up.old && snap.Protection != cls.Protected {
		return fail(fmt.Sprintf("the snapshot %s of the copy of the parent %s is not protected yet", up.snap.Name, up))
	}
	return Parent{cls.ParentSpec{PoolID: ioctx.GetPoolID(), Namespace: namespace, ImageID: id, SnapID: snap.ID}, up.old}, nil
}

// localNamespace returns which local namespace is mirrored from that of the remote
// parent. ioctx is of the local pool; its namespace is changed.
func (p *Pair) localNamespace(ioctx *rados.IOContext, up remoteParent) (string, error) {
	if up.namespace == p.Remote.Namespace && up.pool == p.Remote.Pool {
		return p.Local.Namespace, nil
	}
	names, err := store.Namespaces(ioctx)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		ioctx.SetNamespace(name)
		records := store.NewMirroring(ioctx)
		mode, err := records.Mode()
		if err != nil {
			return "", err
		}
		if mode == cls.PoolModeDisabled {
			continue
		}
		remote, err := records.RemoteNamespace()
		if err != nil {
			return "", err
		}
		if remote == up.namespace {
			return name, nil
		}
	}
	return up.namespace, nil
}

// localSnapshot finds the local copy of a remote snapshot: by the map that mirror
// snapshots carry, else by its name.
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
	return SameSnapshot(img, remote)
}

// SameSnapshot finds the user snapshot of an image that is called as another
// image's.
func SameSnapshot(img *store.Image, other cls.Snapshot) *cls.Snapshot {
	for i := range img.Snapshots {
		s := &img.Snapshots[i]
		if s.Name == other.Name && s.Namespace.Type == cls.NamespaceUser && other.Namespace.Type == cls.NamespaceUser {
			return s
		}
	}
	return nil
}

// filled reports whether a snapshot of the image has all its data: those of a copy
// that is made by mirror snapshots do once a later one is complete.
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

// AttachChild tells the parent that the local image with this header is a clone of
// it, before the image itself says so.
func (p *Pair) AttachChild(up Parent, h *store.Header, image string) error {
	if up.old {
		return store.AddOldChild(p.Local.IO, up.Spec, image)
	}
	ioctx, err := store.PoolContext(p.Local.Conn, up.Spec.PoolID, up.Spec.Namespace)
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	ph := store.NewHeader(ioctx, up.Spec.ImageID)
	child := cls.ChildSpec{PoolID: p.Local.IO.GetPoolID(), ImageID: image, Namespace: p.Local.Namespace}
	if err := ph.AttachChild(up.Spec.SnapID, child); err != nil {
		return err
	}
	if err := h.SetOpFeatures(cls.OpFeatureCloneChild, cls.OpFeatureCloneChild); err != nil {
		return err
	}
	return ph.Notify()
}

// ShowParent gives a local head as much of its parent as a snapshot of the remote
// image has, which has the head's size. head is what h holds, and is kept so.
func (p *Pair) ShowParent(ctx context.Context, remote *store.Image, h *store.Header, head *store.Image, s cls.Snapshot) error {
	want, have := *s.ParentOverlap, head.ParentOverlap
	switch {
	case have != nil && *have == want, have == nil && want == 0:
		return nil
	case have != nil && *have > want:
		// The remote image was smaller for a while.
		if err := h.SetSize(want); err != nil {
			return err
		}
		if err := h.SetSize(s.Size); err != nil {
			return err
		}
		head.ParentOverlap = &want
		return nil
	}
	if have != nil {
		// More than now, because an earlier attempt broke off: only from the start.
		if err := h.DetachParent(); err != nil {
			return fmt.Errorf("detaching the parent: %w", err)
		}
		head.ParentOverlap = nil
	}
	spec := head.Parent
	if !spec.Exists() {
		up, err := p.FindParent(ctx, remote)
		if err != nil {
			return err
		}
		if err := p.AttachChild(up, h, head.ID); err != nil {
			return err
		}
		spec = up.Spec
	}
	again := slices.ContainsFunc(head.Snapshots, func(s cls.Snapshot) bool { return s.ParentOverlap != nil })
	if err := h.AttachParent(spec, want, again); err != nil {
		return fmt.Errorf("attaching the parent: %w", err)
	}
	head.Parent, head.ParentOverlap = spec, &want
	return nil
}

// Local is a local image to be changed.
type Local struct {
	Conn      *rados.Conn
	IO        *rados.IOContext // of its pool and namespace
	Namespace string
}

// DetachChild tells the parent that an image is no longer a clone of it. A snapshot
// of it that was kept for that alone is removed.
func (l Local) DetachChild(head *store.Image, h *store.Header) error {
	spec := head.Parent
	if head.OpFeatures&cls.OpFeatureCloneChild == 0 {
		return store.RemoveOldChild(l.IO, spec, head.ID)
	}
	ioctx, err := store.PoolContext(l.Conn, spec.PoolID, spec.Namespace)
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	ph := store.NewHeader(ioctx, spec.ImageID)
	child := cls.ChildSpec{PoolID: l.IO.GetPoolID(), ImageID: head.ID, Namespace: l.Namespace}
	if err := ph.DetachChild(spec.SnapID, child); err != nil {
		return err
	}
	if err := h.SetOpFeatures(0, cls.OpFeatureCloneChild); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	return ph.Notify()
}

// OldClones reports whether any pool has a clone of a snapshot of the kind that the
// parent's header does not know of.
func (l Local) OldClones(image string, snap uint64) (bool, error) {
	if l.Namespace != "" {
		return false, nil // there are none outside the default namespace
	}
	pools, err := l.Conn.ListPools()
	if err != nil {
		return false, fmt.Errorf("listing pools: %w", err)
	}
	spec := cls.ParentSpec{PoolID: l.IO.GetPoolID(), ImageID: image, SnapID: snap}
	for _, pool := range pools {
		ioctx, err := l.Conn.OpenIOContext(pool)
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("opening pool %s: %w", pool, err)
		}
		list, err := store.OldChildren(ioctx, spec)
		ioctx.Destroy()
		// Pools that are not RBD's, or that are none of this client's business.
		if ceph.Is(err, syscall.ENOENT, syscall.EOPNOTSUPP, syscall.EPERM, syscall.EACCES) {
			continue
		}
		if err != nil {
			return false, err
		}
		if len(list) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// Local returns the local side.
func (s *Side) Local() Local { return Local{s.Conn, s.IO, s.Namespace} }

// Rename renames a local image. It can be repeated when it broke off. EEXIST: the
// name is taken.
func (l Local) Rename(from, to, id string) error {
	dir := store.NewDirectory(l.IO)
	err := dir.CreateID(to, id)
	if ceph.Is(err, syscall.EEXIST) {
		if have, gerr := dir.GetID(to); gerr != nil || have != id {
			return err
		}
		err = nil
	}
	if err != nil {
		return err
	}
	if err := dir.Rename(from, to, id); err != nil {
		if ceph.Is(err, syscall.EEXIST) {
			return errors.Join(err, dir.RemoveID(to))
		}
		return err
	}
	return dir.RemoveID(from)
}
