package replay

import (
	"context"
	"fmt"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/store"
)

// create makes the local image and its first snapshots. Until all of that is
// there its record says so, and what a crash leaves is removed again.
func (r *Replayer) create(ctx context.Context, v *view) error {
	sync, remote := v.step.Sync, v.remote.head
	state, err := r.imageState(ctx, remote.ID, sync.End.ID)
	if err != nil {
		return err
	}
	name := v.remote.image.Name
	if name == "" {
		name = state.Name
	}
	// Before anything is made: what would be in the way.
	if have, err := r.local.dir.ID(name); err == nil {
		return fmt.Errorf("there is another image %s here (id %s): %w", name, have, syscall.EEXIST)
	} else if !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	var up *parent
	if overlapping(sync) {
		p, err := r.findParent(ctx, v)
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
	record := cls.MirrorImage{GlobalID: r.cfg.GlobalID, State: cls.RecordCreating, Mode: cls.ImageModeSnapshot}
	if err := r.local.records.SetImage(id, record); err != nil {
		return err
	}
	if err := r.local.dir.Add(name, id); err != nil {
		return err
	}
	if err := r.local.dir.CreateID(name, id); err != nil {
		return err
	}
	opts := store.CreateOptions{
		Size: firstSize(sync), Order: remote.Order, Features: plan.NewFeatures(remote.Features),
		Prefix: store.DataPrefix(id, r.local.ioctx.GetPoolID(), pool), DataPool: pool,
		StripeUnit: remote.StripeUnit, StripeCount: remote.StripeCount,
	}
	h := store.NewHeader(r.local.ioctx, id)
	if err := h.Create(opts); err != nil {
		return err
	}
	img, err := h.Load()
	if err != nil {
		return err
	}
	if img.Has(cls.FeatureObjectMap) {
		if err := r.local.objectMap(id, cls.NoSnap).Resize(img.Objects(img.Size), objectmap.NonExistent); err != nil {
			return err
		}
	}
	if up != nil {
		if err := r.attachChild(*up, id, h); err != nil {
			return err
		}
		if overlap := firstOverlap(sync); overlap > 0 {
			if err := h.AttachParent(up.spec, overlap); err != nil {
				return err
			}
		}
	}
	if err := r.watchLocal(id); err != nil {
		return err
	}
	if err := r.takeLock(ctx, id); err != nil {
		return err
	}
	e, err := r.edit(id)
	if err != nil {
		return err
	}
	e.want = state
	if err := e.makeSnapshots(ctx, v, state); err != nil {
		return err
	}
	record.State = cls.RecordEnabled
	if err := r.local.records.SetImage(id, record); err != nil {
		return err
	}
	r.log.Info().Str("name", name).Str("id", id).Msg("created the local image")
	return e.notify()
}

// overlapping reports whether any of the states to be copied shows a parent.
func overlapping(sync *plan.Sync) bool {
	for _, l := range sync.Chain {
		if l.Remote.ParentOverlap != nil {
			return true
		}
	}
	return sync.End.ParentOverlap != nil
}

// firstSize is the image's size at the oldest of the states to be copied.
func firstSize(sync *plan.Sync) uint64 {
	if len(sync.Chain) > 0 {
		return sync.Chain[0].Remote.Size
	}
	return sync.End.Size
}

// firstOverlap is how much of the parent the first of the states shows that
// shows any.
func firstOverlap(sync *plan.Sync) uint64 {
	for _, l := range sync.Chain {
		if o := l.Remote.ParentOverlap; o != nil && *o > 0 {
			return *o
		}
	}
	if o := sync.End.ParentOverlap; o != nil {
		return *o
	}
	return 0
}

// chooseDataPool returns the pool for the data of a new image, -1 for the pool
// of the image itself: what the local cluster has as default, else the pool that
// is called as the remote image's.
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
		name, err = remotely(ctx, r, func() (string, error) { return r.remote.Conn.GetPoolByID(remote.DataPool) })
		if err != nil {
			return 0, remoteError{fmt.Errorf("looking up the data pool %d of the remote image: %w", remote.DataPool, err)}
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
