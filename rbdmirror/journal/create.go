package journal

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
)

// create makes the local image, empty, and registers it with the remote journal,
// which keeps all entries from then on. Until everything is there its record says
// so, and what a crash leaves is removed again.
func (r *Replayer) create(ctx context.Context, v *view) error {
	remote := v.remote.head
	name := v.remote.name
	if name == "" {
		return fmt.Errorf("the remote image %s has no name: %w", remote.ID, syscall.ENOENT)
	}
	// Before anything is made: what would be in the way.
	if have, err := r.local.dir.ID(name); err == nil {
		return fmt.Errorf("there is another image %s here (id %s): %w", name, have, syscall.EEXIST)
	} else if !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	var up *parent
	if remote.ParentOverlap != nil {
		p, err := r.findParent(ctx, remote)
		if err != nil {
			return err
		}
		up = &p
	}
	pool, err := r.chooseDataPool(ctx, remote)
	if err != nil {
		return err
	}
	if !r.mayWrite() {
		return errLease
	}
	id := store.NewImageID(r.local.client)
	r.bootstrapping("UNREGISTER_CLIENT")
	j := r.remote.journal(remote.ID)
	if err := do(ctx, &r.calls, r.opts.CallTimeout, func() error { return j.Unregister(r.cfg.Local.MirrorUUID) }); err != nil {
		return remotely(err)
	}
	r.bootstrapping("REGISTER_CLIENT")
	data := &format.PeerClient{ImageID: id, State: format.Syncing}
	if err := do(ctx, &r.calls, r.opts.CallTimeout, func() error { return j.Register(r.cfg.Local.MirrorUUID, data) }); err != nil {
		return remotely(fmt.Errorf("registering with the remote journal: %w", err))
	}
	r.calls.wg.Go(func() { _ = j.Notify() })
	r.bootstrapping("CREATE_LOCAL_IMAGE")
	record := cls.MirrorImage{GlobalID: r.cfg.GlobalID, State: cls.RecordCreating, Mode: cls.ImageModeJournal}
	if err := r.local.records.SetImage(id, record); err != nil {
		return err
	}
	if err := r.local.dir.Add(name, id); err != nil {
		return err
	}
	if err := r.local.dir.CreateID(name, id); err != nil {
		return err
	}
	h := store.NewHeader(r.local.ioctx, id)
	if err := r.createHeader(h, id, pool, remote); err != nil {
		return err
	}
	if up != nil {
		if err := r.attach(*up, id, h, *remote.ParentOverlap); err != nil {
			return err
		}
	}
	if err := r.local.journal(id).Create(r.journalOrder(), r.journalSplay(), r.journalPool(), r.cfg.Remote.MirrorUUID); err != nil {
		return err
	}
	// Last: with this bit, librbd looks at the journal to see who owns the image.
	if err := h.SetFeatures(cls.FeatureJournaling, cls.FeatureJournaling); err != nil {
		return err
	}
	record.State = cls.RecordEnabled
	if err := r.local.records.SetImage(id, record); err != nil {
		return err
	}
	r.log.Info().Str("name", name).Str("id", id).Msg("created the local image")
	return h.Notify()
}

func (r *Replayer) createHeader(h *store.Header, id string, pool int64, remote *store.Image) error {
	features := remote.Features&^(cls.ImplicitFeatures|cls.FeatureJournaling) | cls.FeatureExclusiveLock
	if features&cls.FeatureObjectMap != 0 {
		features |= cls.FeatureFastDiff
	}
	err := h.Create(store.CreateOptions{
		Size: remote.Size, Order: remote.Order, Features: features,
		Prefix: store.DataPrefix(id, r.local.ioctx.GetPoolID(), pool), DataPool: pool,
		StripeUnit: remote.StripeUnit, StripeCount: remote.StripeCount,
	})
	if err != nil {
		return err
	}
	img, err := h.Load()
	if err != nil || !img.Has(cls.FeatureObjectMap) {
		return err
	}
	return store.NewObjectMap(r.local.ioctx, id, cls.NoSnap).Resize(img.Objects(img.Size), objectmap.NonExistent)
}

// The local journal is laid out as librbd would.

func (r *Replayer) journalOrder() uint8 {
	return uint8(r.option("rbd_journal_order", format.DefaultOrder, format.MinOrder, format.MaxOrder))
}

func (r *Replayer) journalSplay() uint8 {
	return uint8(r.option("rbd_journal_splay_width", format.DefaultSplay, 1, 255))
}

func (r *Replayer) journalPool() int64 {
	name, err := r.cfg.Local.Conn.GetConfigOption("rbd_journal_pool")
	if err != nil || name == "" || name == r.cfg.Local.Pool {
		return -1
	}
	id, err := r.cfg.Local.Conn.GetPoolByName(name)
	if err != nil {
		r.log.Warn().Err(err).Str("pool", name).Msg("the pool for journals cannot be used")
		return -1
	}
	return id
}

func (r *Replayer) option(name string, fallback, low, high int64) int64 {
	text, err := r.cfg.Local.Conn.GetConfigOption(name)
	if err != nil {
		return fallback
	}
	var n int64
	if _, err := fmt.Sscan(text, &n); err != nil || n < low || n > high {
		return fallback
	}
	return n
}

// chooseDataPool returns the pool for the data of a new image, -1 for the pool of
// the image itself: what the local cluster has as default, else the pool that is
// called as the remote image's.
func (r *Replayer) chooseDataPool(ctx context.Context, remote *store.Image) (int64, error) {
	name, err := r.local.Conn.GetConfigOption("rbd_default_data_pool")
	if err != nil {
		name = ""
	}
	fallback := false
	if name == "" {
		if remote.DataPool < 0 {
			return -1, nil
		}
		name, err = call(ctx, &r.calls, r.opts.CallTimeout, func() (string, error) { return r.remote.Conn.GetPoolByID(remote.DataPool) })
		if err != nil {
			return 0, remotely(fmt.Errorf("looking up the data pool %d of the remote image: %w", remote.DataPool, err))
		}
		fallback = true
	}
	if name == r.cfg.Local.Pool {
		return -1, nil
	}
	id, err := r.local.Conn.GetPoolByName(name)
	if fallback && ceph.Is(err, syscall.ENOENT) {
		return -1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking up the data pool %s: %w", name, err)
	}
	return id, nil
}

// parent is the local snapshot that a copy of a clone hangs on.
type parent struct {
	spec cls.ParentSpec
	old  bool // a clone of the kind that is listed in rbd_children
}

// errParent: the parent is not there, or not far enough. It comes by itself.
var errParent = errors.New("parent image does not exist")

// remoteParent is the parent as the remote cluster knows it.
type remoteParent struct {
	pool, namespace, name, gid string
	snap                       cls.Snapshot
	old                        bool
}

func (p remoteParent) String() string {
	if p.namespace != "" {
		return p.pool + "/" + p.namespace + "/" + p.name
	}
	return p.pool + "/" + p.name
}

// findParent finds the local snapshot that corresponds to what the remote image is
// a clone of.
func (r *Replayer) findParent(ctx context.Context, head *store.Image) (parent, error) {
	p, err := call(ctx, &r.calls, r.opts.CallTimeout, func() (remoteParent, error) { return r.lookUpParent(head) })
	if err != nil {
		return parent{}, remotely(err)
	}
	return r.localParent(p)
}

func (r *Replayer) lookUpParent(head *store.Image) (remoteParent, error) {
	spec := head.Parent
	p := remoteParent{namespace: spec.Namespace, name: "(id " + spec.ImageID + ")", old: head.OpFeatures&cls.OpFeatureCloneChild == 0}
	var err error
	if p.pool, err = r.remote.Conn.GetPoolByID(spec.PoolID); err != nil {
		return p, fmt.Errorf("looking up the pool %d of the remote parent image: %w", spec.PoolID, err)
	}
	ioctx, err := store.PoolContext(r.remote.Conn, spec.PoolID, spec.Namespace)
	if err != nil {
		return p, err
	}
	defer ioctx.Destroy()
	if name, err := store.NewDirectory(ioctx).Name(spec.ImageID); err == nil {
		p.name = name
	} else if !ceph.Is(err, syscall.ENOENT) {
		return p, err
	}
	record, err := store.NewMirroring(ioctx).Image(spec.ImageID)
	if ceph.Is(err, syscall.ENOENT) {
		return p, fmt.Errorf("%w: the remote image %s is not mirrored: %w", errParent, p, syscall.ENOENT)
	}
	if err != nil {
		return p, err
	}
	p.gid = record.GlobalID
	img, err := store.NewHeader(ioctx, spec.ImageID).Load()
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
	record, err := records.Image(id)
	if err != nil {
		return parent{}, err
	}
	img, err := store.NewHeader(ioctx, id).Load()
	if ceph.Is(err, syscall.ENOENT) || err == nil && record.State != cls.RecordEnabled {
		return fail(fmt.Sprintf("the parent %s has no copy here yet", p))
	}
	if err != nil {
		return parent{}, err
	}
	snap := sameSnapshot(img, p.snap)
	if snap == nil {
		return fail(fmt.Sprintf("the copy of the parent %s has no snapshot %s yet", p, p.snap.Name))
	}
	if p.old && snap.Protection != cls.Protected {
		return fail(fmt.Sprintf("the snapshot %s of the copy of the parent %s is not protected yet", p.snap.Name, p))
	}
	return parent{cls.ParentSpec{PoolID: ioctx.GetPoolID(), Namespace: namespace, ImageID: id, SnapID: snap.ID}, p.old}, nil
}

func sameSnapshot(img *store.Image, remote cls.Snapshot) *cls.Snapshot {
	for i := range img.Snapshots {
		s := &img.Snapshots[i]
		if s.Name == remote.Name && s.Namespace.Type == cls.NamespaceUser && remote.Namespace.Type == cls.NamespaceUser {
			return s
		}
	}
	return nil
}

// attach makes the local image a clone. The parent is told first.
func (r *Replayer) attach(p parent, id string, h *store.Header, overlap uint64) error {
	if p.old {
		if err := store.AddOldChild(r.local.ioctx, p.spec, id); err != nil {
			return err
		}
	} else {
		ioctx, err := store.PoolContext(r.local.Conn, p.spec.PoolID, p.spec.Namespace)
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
		r.calls.wg.Go(func() { _ = store.NewHeader(r.local.ioctx, id).Notify() })
	}
	if overlap == 0 {
		return nil
	}
	return h.AttachParent(p.spec, overlap)
}
