package target

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/apply"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/plan"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
)

// Operate carries out an operation and stores the record with it.
func (t *Target) Operate(ctx context.Context, op format.Op, exact bool, rec plan.Record) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	t.anew = nil // whatever it is about is another image now
	if err := t.Reload(); err != nil {
		return err
	}
	step, err := apply.Decide(op, t.state(exact))
	if err != nil {
		return err
	}
	t.cfg.Log.Debug().Str("operation", format.Name(op)).Any("step", step).Type("kind", step).Msg("operation")
	if err := t.carryOut(ctx, step, rec); err != nil {
		return fmt.Errorf("%s: %w", format.Name(op), err)
	}
	if _, nothing := step.(apply.Nothing); nothing {
		return nil
	}
	t.notify()
	return t.Reload()
}

func (t *Target) state(exact bool) apply.State {
	s := apply.State{Name: t.name, Size: t.img.Size, Parent: t.img.ParentOverlap != nil, Exact: exact}
	for _, snap := range t.img.Snapshots {
		s.Snapshots = append(s.Snapshots, apply.Snapshot{ID: snap.ID, Name: snap.Name, Namespace: snap.Namespace,
			Size: snap.Size, Protected: snap.Protection == cls.Protected})
	}
	return s
}

func (t *Target) carryOut(ctx context.Context, step apply.Step, rec plan.Record) error {
	switch s := step.(type) {
	case apply.Nothing:
		return t.changeWith(rec)
	case apply.AddSnapshot:
		return t.addSnapshot(s, rec)
	case apply.RemoveSnapshot:
		if err := t.removeSnapshot(s.ID); err != nil {
			return err
		}
		return t.changeWith(rec)
	case apply.RenameSnapshot:
		if t.cfg.Renamed != nil {
			if err := t.cfg.Renamed(ctx, s.Remote, s.ID); err != nil {
				return err
			}
		}
		return t.changeWith(rec, cls.SnapshotRename(s.ID, s.Name))
	case apply.Protect:
		return t.protect(s, rec)
	case apply.Rollback:
		return t.rollback(ctx, s, rec)
	case apply.Resize:
		return t.resize(ctx, s.Size, rec)
	case apply.Flatten:
		return t.flatten(ctx, rec)
	case apply.Rename:
		if err := t.rename(s); err != nil {
			return err
		}
		return t.changeWith(rec)
	case apply.SetFeatures:
		if err := t.setFeatures(s); err != nil {
			return err
		}
		return t.changeWith(rec)
	case apply.SetMetadata:
		return t.changeWith(rec, cls.MetadataSet(map[string][]byte{s.Key: []byte(s.Value)}))
	case apply.RemoveMetadata:
		err := t.changeWith(rec, cls.MetadataRemove(s.Key))
		if ceph.Is(err, syscall.ENOENT) {
			return t.changeWith(rec)
		}
		return err
	case apply.SetSnapLimit:
		err := t.changeWith(rec, cls.SnapshotSetLimit(s.Limit))
		if ceph.Is(err, syscall.ERANGE) {
			return t.changeWith(rec)
		}
		return err
	}
	return fmt.Errorf("no way to do %T", step)
}

// idTries is how often a snapshot id is tried that others were faster with.
const idTries = 20

func (t *Target) addSnapshot(s apply.AddSnapshot, rec plan.Record) error {
	for try := 0; ; try++ {
		id, err := store.CreateSnapID(t.data)
		if err != nil {
			return err
		}
		err = t.addSnapshotAs(id, s, rec)
		if err == nil {
			break
		}
		// Nobody uses the id. That it may be lost is no reason to fail in
		// another way.
		_ = t.objectMap(id).Delete()
		_ = store.RemoveSnapID(t.data, id)
		if !ceph.Is(err, syscall.ESTALE) || try == idTries {
			return err
		}
	}
	if t.head != nil {
		// From now on nothing has changed.
		return t.objectMap(cls.NoSnap).SnapAdd()
	}
	return nil
}

func (t *Target) addSnapshotAs(id uint64, s apply.AddSnapshot, rec plan.Record) error {
	if t.img.Has(cls.FeatureObjectMap) {
		m := t.head
		if m == nil {
			m = objectmap.New(t.img.Objects(t.img.Size))
		}
		if err := t.objectMap(id).Save(m); err != nil {
			return err
		}
	}
	return t.changeWith(rec, cls.SnapshotAdd(s.Name, id, s.Namespace))
}

// removeSnapshot removes a snapshot, or hides it as long as a clone of it is here.
func (t *Target) removeSnapshot(id uint64) error {
	s := t.img.Snapshot(id)
	if s == nil {
		return nil
	}
	if s.Protection != cls.Unprotected {
		t.cfg.Log.Info().Uint64("snapshot", id).Str("name", s.Name).Msg("the snapshot stays as long as a clone of it is here")
		return nil
	}
	if s.ChildCount == 0 {
		if err := t.releaseWith(id); err != nil {
			return err
		}
		err := store.RemoveSnapshot(t.header, t.data, t.img, id, t.mapped)
		if !ceph.Is(err, syscall.EBUSY) {
			return err
		}
	}
	t.cfg.Log.Info().Uint64("snapshot", id).Str("name", s.Name).Msg("the snapshot stays as long as a clone of it is here")
	return t.header.TrashSnapshot(id)
}

// releaseWith tells the parent that it is no longer needed, when a snapshot is the
// last that needs it.
func (t *Target) releaseWith(id uint64) error {
	if !t.img.Parent.Exists() || t.img.ParentOverlap != nil {
		return nil
	}
	needed := false
	for _, s := range t.img.Snapshots {
		if s.ParentOverlap != nil {
			if s.ID != id {
				return nil
			}
			needed = true
		}
	}
	if !needed {
		return nil
	}
	return t.release()
}

func (t *Target) protect(s apply.Protect, rec plan.Record) error {
	if s.Protected {
		return t.changeWith(rec, cls.SetProtection(s.ID, cls.Protected))
	}
	if err := t.header.SetProtection(s.ID, cls.Unprotecting); err != nil {
		return err
	}
	used, err := t.local().OldClones(t.img.ID, s.ID)
	if err != nil {
		return err
	}
	if used {
		if err := t.header.SetProtection(s.ID, cls.Protected); err != nil {
			return err
		}
		t.cfg.Log.Info().Uint64("snapshot", s.ID).Msg("the snapshot stays protected as long as a clone of it is here")
		return t.changeWith(rec)
	}
	return t.changeWith(rec, cls.SetProtection(s.ID, cls.Unprotected))
}

// rollback gives the image the content and the size of a snapshot. It can be
// repeated when it broke off.
func (t *Target) rollback(ctx context.Context, s apply.Rollback, rec plan.Record) error {
	if t.back == nil {
		var err error
		if t.back, err = store.DataContext(t.cfg.Conn, t.cfg.IO, t.img.DataPool); err != nil {
			return err
		}
	}
	if err := ceph.SetWriteContext(t.back, t.img.SnapSeq, t.snaps); err != nil {
		return err
	}
	var then *objectmap.Map
	if snap := t.img.Snapshot(s.ID); t.head != nil && snap.Flags&cls.FlagObjectMapInvalid == 0 {
		m, err := t.objectMap(s.ID).Load()
		if err != nil {
			return err
		}
		then = m
	}
	objects := t.img.Objects(s.Size)
	now := t.img.Objects(t.img.Size)
	exists := func(m *objectmap.Map, n uint64) bool {
		return m != nil && n < m.Len() && m.Get(n) != objectmap.NonExistent
	}
	if now < objects {
		// Larger first, so that the map has room.
		if err := t.growMap(objects); err != nil {
			return err
		}
	}
	// What comes back exists, and has changed, before it is there.
	if then != nil {
		if err := t.mark(objectmap.Exists, func(yield func(uint64)) {
			for n := range max(objects, now) {
				if exists(then, n) || exists(t.head, n) {
					yield(n)
				}
			}
		}); err != nil {
			return err
		}
	}
	if err := t.objects(ctx, max(objects, now), func(_ context.Context, n uint64) error {
		if then != nil && !exists(then, n) && !exists(t.head, n) {
			return nil
		}
		err := ceph.RollbackObject(t.back, store.DataObject(t.img.Prefix, n), s.ID)
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		return uncertain(err)
	}); err != nil {
		return err
	}
	if t.head != nil {
		if then == nil {
			// Nobody knows what is there.
			if err := t.invalidate(); err != nil {
				return err
			}
		} else if err := t.mark(objectmap.NonExistent, func(yield func(uint64)) {
			for n := range max(objects, now) {
				if !exists(then, n) {
					yield(n)
				}
			}
		}); err != nil {
			return err
		}
		if objects < now && t.head != nil {
			if err := t.objectMap(cls.NoSnap).Resize(objects, objectmap.NonExistent); err != nil {
				return err
			}
		}
	}
	return t.changeWith(rec, cls.SetSize(s.Size))
}

func uncertain(err error) error {
	if ceph.Is(err, syscall.ETIMEDOUT) {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return err
}

func (t *Target) growMap(objects uint64) error {
	if t.head == nil || t.head.Len() >= objects {
		return nil
	}
	if err := t.objectMap(cls.NoSnap).Resize(objects, objectmap.NonExistent); err != nil {
		return err
	}
	t.head.Resize(objects, objectmap.NonExistent)
	return nil
}

// invalidate declares the object map useless.
func (t *Target) invalidate() error {
	if err := t.header.SetFlags(cls.NoSnap, mapInvalid, mapInvalid); err != nil {
		return err
	}
	t.img.Flags |= mapInvalid
	t.head = nil
	return nil
}

// objects does something for the objects below a number, side by side, and stops
// early when ctx ends.
func (t *Target) objects(ctx context.Context, count uint64, do func(ctx context.Context, n uint64) error) error {
	const batch = 1 << 14
	for from := uint64(0); from < count; from += batch {
		if err := t.ready(ctx); err != nil {
			return err
		}
		if err := t.eachObject(context.WithoutCancel(ctx), int(min(batch, count-from)), func(ctx context.Context, i int) error {
			return do(ctx, from+uint64(i))
		}); err != nil {
			return err
		}
	}
	return nil
}

// resize gives the image another size. It can be repeated when it broke off.
func (t *Target) resize(ctx context.Context, size uint64, rec plan.Record) error {
	objects, now := t.img.Objects(size), t.img.Objects(t.img.Size)
	if size >= t.img.Size {
		if err := t.growMap(objects); err != nil {
			return err
		}
		return t.changeWith(rec, cls.SetSize(size))
	}
	if err := t.keepForSnapshots(ctx, size); err != nil {
		return err
	}
	cut := func(n uint64) (end uint64, ok bool) {
		end = t.layout.ObjectEnd(n, size)
		return end, end != t.layout.ObjectEnd(n, t.img.Size) && !t.missing(n)
	}
	// What is only cut has changed.
	if err := t.mark(objectmap.Exists, func(yield func(uint64)) {
		for n := range now {
			if end, ok := cut(n); ok && end > 0 {
				yield(n)
			}
		}
	}); err != nil {
		return err
	}
	if err := t.objects(ctx, now, func(ctx context.Context, n uint64) error {
		end, ok := cut(n)
		if !ok {
			return nil
		}
		var s ceph.ObjectSteps
		if end > 0 {
			s.AssertExists()
			s.Truncate(end)
		} else {
			s.Remove()
		}
		err := t.send(ctx, n, t.snaps, &s, nil)
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	if t.head != nil && objects < now {
		if err := t.mark(objectmap.NonExistent, func(yield func(uint64)) {
			for n := objects; n < now; n++ {
				yield(n)
			}
		}); err != nil {
			return err
		}
		if err := t.objectMap(cls.NoSnap).Resize(objects, objectmap.NonExistent); err != nil {
			return err
		}
	}
	return t.changeWith(rec, cls.SetSize(size))
}

// keepForSnapshots makes objects their own, and the snapshots', of which the image
// will not show the parent any more when it has become smaller.
func (t *Target) keepForSnapshots(ctx context.Context, size uint64) error {
	if len(t.snaps) == 0 || t.img.ParentOverlap == nil {
		return nil
	}
	return t.ownObjects(ctx, func(n uint64) bool { return t.layout.ObjectEnd(n, size) < t.covered(n) })
}

// ownObjects makes objects that show the parent the image's own.
func (t *Target) ownObjects(ctx context.Context, which func(n uint64) bool) error {
	objects := t.img.Objects(*t.img.ParentOverlap)
	if err := t.mark(objectmap.Exists, func(yield func(uint64)) {
		for n := range objects {
			if t.covered(n) > 0 && t.missing(n) && which(n) {
				yield(n)
			}
		}
	}); err != nil {
		return err
	}
	return t.objects(ctx, objects, func(ctx context.Context, n uint64) error {
		if t.covered(n) == 0 || !which(n) {
			return nil
		}
		// The object map does not tell: it may say so of what is yet to be made.
		_, err := t.data.Stat(store.DataObject(t.img.Prefix, n))
		if ceph.Is(err, syscall.ENOENT) {
			return t.copyUp(ctx, n)
		}
		return err
	})
}

// snapshotsOwn says that no snapshot shows anything of the parent any more.
func (t *Target) snapshotsOwn(ctx context.Context) (bool, error) {
	var objects uint64
	for _, s := range t.img.Snapshots {
		if s.ParentOverlap != nil {
			objects = max(objects, t.img.Objects(*s.ParentOverlap))
		}
	}
	var lacking atomic.Bool
	err := t.objects(ctx, objects, func(ctx context.Context, n uint64) error {
		if lacking.Load() {
			return nil
		}
		set, err := ceph.ListObjectSnaps(ctx, t.data, store.DataObject(t.img.Prefix, n))
		if err != nil {
			return err
		}
		for _, s := range t.img.Snapshots {
			if s.ParentOverlap != nil && t.layout.ObjectEnd(n, *s.ParentOverlap) > 0 && !holds(set, s.ID) {
				lacking.Store(true)
			}
		}
		return nil
	})
	return !lacking.Load(), err
}

// holds says that an object existed at a snapshot.
func holds(set ceph.SnapSet, snap uint64) bool {
	for _, c := range set.Clones {
		if c.ID == ceph.SnapHead && snap > set.Seq || slices.Contains(c.Snaps, snap) {
			return true
		}
	}
	return false
}

// flatten makes the image independent of its parent. It can be repeated when it
// broke off.
func (t *Target) flatten(ctx context.Context, rec plan.Record) error {
	if err := t.ownObjects(ctx, func(uint64) bool { return true }); err != nil {
		return err
	}
	last := true
	for _, s := range t.img.Snapshots {
		last = last && s.ParentOverlap == nil
	}
	if !last && t.img.Has(cls.FeatureDeepFlatten) {
		var err error
		if last, err = t.snapshotsOwn(ctx); err != nil {
			return err
		}
	}
	if err := t.leaveParent(last); err != nil {
		return err
	}
	return t.changeWith(rec, cls.ParentDetach())
}

// leaveParent prepares the image for losing its parent; last says that no snapshot
// needs it either.
func (t *Target) leaveParent(last bool) error {
	t.closeParent()
	if last {
		return t.release()
	}
	if t.img.Has(cls.FeatureDeepFlatten) {
		// Snapshots that need the parent keep it.
		return t.header.SetFeatures(0, cls.FeatureDeepFlatten)
	}
	return nil
}

// rename renames the image. It can be repeated when it broke off.
func (t *Target) rename(s apply.Rename) error {
	err := t.local().Rename(s.From, s.To, t.img.ID)
	if ceph.Is(err, syscall.EEXIST) {
		// As with the stock daemon, this is no reason to stop.
		t.cfg.Log.Warn().Err(err).Str("name", s.To).Msg("the local image cannot be renamed, the name is taken")
		return nil
	}
	return err
}

// setFeatures switches those features that are not what keeps the journal going.
func (t *Target) setFeatures(s apply.SetFeatures) error {
	mask := s.Features & (cls.FeatureObjectMap | cls.FeatureFastDiff)
	if !s.Enabled {
		mask |= s.Features & cls.FeatureDeepFlatten
	}
	if mask == 0 {
		return nil
	}
	ids := []uint64{cls.NoSnap}
	for _, snap := range t.img.Snapshots {
		ids = append(ids, snap.ID)
	}
	value := uint64(0)
	if s.Enabled {
		value = mask
		for _, id := range ids {
			if mask&cls.FeatureObjectMap != 0 && !t.img.Has(cls.FeatureObjectMap) {
				size := t.img.Size
				if snap := t.img.Snapshot(id); snap != nil {
					size = snap.Size
				}
				if err := t.objectMap(id).Save(objectmap.New(t.img.Objects(size))); err != nil {
					return err
				}
			}
			if mask&^t.img.Features != 0 {
				// Nobody may trust them before they are built, see Rebuild.
				if err := t.header.SetFlags(id, mapInvalid, mapInvalid); err != nil {
					return err
				}
			}
		}
	}
	if err := t.header.SetFeatures(value, mask); err != nil {
		return err
	}
	if !s.Enabled && mask&cls.FeatureObjectMap != 0 {
		t.head = nil
		for _, id := range ids {
			if err := t.header.SetFlags(id, 0, mapInvalid); err != nil {
				return err
			}
			if err := t.objectMap(id).Delete(); err != nil {
				return err
			}
		}
		t.mapped = false
	}
	return nil
}
