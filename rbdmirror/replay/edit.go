package replay

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// removeSnapshot removes a snapshot with all that belongs to it.
func (e *editor) removeSnapshot(ctx context.Context, id uint64) error {
	if err := e.ready(ctx); err != nil {
		return err
	}
	if err := e.releaseParent(id); err != nil {
		return err
	}
	if err := store.RemoveSnapshot(e.h, e.data, e.head, id, false); err != nil {
		return err
	}
	return e.reload()
}

// errInUse: a snapshot cannot be removed because a clone of it is here.
var errInUse = errors.New("the snapshot is in use by a clone")

// dropSnapshot removes a user snapshot, or hides it if a clone still needs it.
func (e *editor) dropSnapshot(ctx context.Context, id uint64) error {
	s := e.head.Snapshot(id)
	if s == nil {
		return nil
	}
	if err := e.unprotect(ctx, id); errors.Is(err, errInUse) {
		e.r.log.Info().Uint64("snapshot", id).Str("name", s.Name).Msg("the snapshot stays as long as a clone of it is here")
		return nil
	} else if err != nil {
		return err
	}
	if s = e.head.Snapshot(id); s.ChildCount == 0 {
		err := e.removeSnapshot(ctx, id)
		if !ceph.Is(err, syscall.EBUSY) {
			return err
		}
	}
	if err := e.h.TrashSnapshot(id); err != nil {
		return err
	}
	return e.reload()
}

// unprotect takes the protection from a snapshot. errInUse: it has clones of the
// old kind.
func (e *editor) unprotect(ctx context.Context, id uint64) error {
	if err := e.ready(ctx); err != nil {
		return err
	}
	s := e.head.Snapshot(id)
	if s == nil || s.Protection == cls.Unprotected {
		return nil
	}
	if err := e.h.SetProtection(id, cls.Unprotecting); err != nil {
		return err
	}
	used, err := e.r.pair.Local.Local().OldClones(e.head.ID, id)
	if err != nil {
		return err
	}
	if used {
		if err := e.h.SetProtection(id, cls.Protected); err != nil {
			return err
		}
		return fmt.Errorf("snapshot %d (%s): %w", id, s.Name, errInUse)
	}
	if err := e.h.SetProtection(id, cls.Unprotected); err != nil {
		return err
	}
	return e.reload()
}

// apply gives the local image what else the remote one had at the snapshot:
// names, features, metadata, protection, and no snapshots that it had not.
func (e *editor) apply(ctx context.Context, v *view) error {
	sync := v.step.Sync
	want, err := e.r.pair.Local.States.Read(e.head.ID, sync.Local)
	if err != nil {
		return err
	}
	if err := e.reload(); err != nil {
		return err
	}
	target := e.head.Snapshot(sync.Local)
	if target == nil || target.Namespace.Mirror == nil {
		return fmt.Errorf("the local snapshot %d was removed while it was filled", sync.Local)
	}
	for _, c := range plan.Apply(plan.Properties{
		Name: v.local.image.Name, Features: e.head.Features, Limit: e.head.SnapLimit, Snaps: e.head.Snapshots,
		Metadata: e.head.Metadata, SnapSeqs: target.Namespace.Mirror.SnapSeqs,
	}, want) {
		if err := e.ready(ctx); err != nil {
			return err
		}
		if err := e.applyOne(ctx, v, c); err != nil {
			return err
		}
	}
	if e.hasMap() && e.head.Flags&cls.FlagObjectMapInvalid != 0 {
		return e.rebuildMaps(ctx)
	}
	return nil
}

func (e *editor) applyOne(ctx context.Context, v *view, c plan.Change) error {
	switch c.Kind {
	case plan.RenameImage:
		err := e.rename(ctx, v, c.Name)
		if ceph.Is(err, syscall.EEXIST) {
			// The name may become free. It must not keep the data from being
			// carried over.
			e.r.log.Warn().Err(err).Str("name", c.Name).Msg("the local image cannot be renamed, the name is taken")
			return nil
		}
		if err == nil {
			v.local.image.Name = c.Name
			e.r.reports.Update(func(s *replica.Status) { s.LocalName = c.Name })
		}
		return err
	case plan.SetFeatures:
		return e.setFeatures(c)
	case plan.RemoveMetadata:
		return e.h.RemoveMetadata(c.Name)
	case plan.SetMetadata:
		return e.h.SetMetadata(map[string][]byte{c.Name: c.Value})
	case plan.Unprotect:
		err := e.unprotect(ctx, c.Snap)
		if errors.Is(err, errInUse) {
			return nil
		}
		return err
	case plan.RemoveSnap:
		return e.dropSnapshot(ctx, c.Snap)
	case plan.Protect:
		return e.h.SetProtection(c.Snap, cls.Protected)
	case plan.RenameSnap:
		return e.renameSnapshot(c.Snap, c.Name)
	case plan.SetLimit:
		err := e.h.SetSnapLimit(c.Limit)
		if ceph.Is(err, syscall.ERANGE) {
			e.r.log.Debug().Err(err).Msg("there are more snapshots than the limit allows")
			return nil
		}
		return err
	}
	return nil
}

// renameSnapshot renames a user snapshot. One that has the name, but could not be
// removed as it is in use, makes way.
func (e *editor) renameSnapshot(id uint64, name string) error {
	err := e.h.RenameSnapshot(id, name)
	if !ceph.Is(err, syscall.EEXIST) {
		return err
	}
	if err := e.reload(); err != nil {
		return err
	}
	for _, s := range e.head.Snapshots {
		if s.Name == name && s.Namespace.Type == cls.NamespaceUser {
			if err := e.h.RenameSnapshot(s.ID, plan.Aside(name, s.ID)); err != nil {
				return err
			}
		}
	}
	return e.h.RenameSnapshot(id, name)
}

// setFeatures changes features. Object maps are made, or removed, with it.
func (e *editor) setFeatures(c plan.Change) error {
	on, off := c.Features&c.Mask, c.Mask&^c.Features
	all := []uint64{cls.NoSnap}
	for _, s := range e.head.Snapshots {
		all = append(all, s.ID)
	}
	const invalid = cls.FlagObjectMapInvalid | cls.FlagFastDiffInvalid
	if on&cls.FeatureObjectMap != 0 {
		// Nobody may trust them before they are filled.
		for _, id := range all {
			size := e.head.Size
			if s := e.head.Snapshot(id); s != nil {
				size = s.Size
			}
			if err := e.objectMap(id).Save(objectmap.New(e.head.Objects(size))); err != nil {
				return err
			}
			if err := e.h.SetFlags(id, invalid, invalid); err != nil {
				return err
			}
		}
	}
	if err := e.h.SetFeatures(c.Features, c.Mask); err != nil {
		return err
	}
	if off&cls.FeatureObjectMap != 0 {
		for _, id := range all {
			if err := e.h.SetFlags(id, 0, invalid); err != nil {
				return err
			}
			if err := e.objectMap(id).Delete(); err != nil {
				return err
			}
		}
	}
	return e.reload()
}

// mapBatch is how many objects are asked for at once when maps are built.
const mapBatch = 512

// rebuildMaps fills all object maps with what the objects say, and declares them
// valid.
func (e *editor) rebuildMaps(ctx context.Context) error {
	total := e.head.MaxObjects()
	snaps := e.head.Snapshots
	built := make([]*objectmap.Map, len(snaps)+1)
	for i, s := range snaps {
		built[i] = objectmap.New(e.head.Objects(s.Size))
	}
	built[len(snaps)] = objectmap.New(e.head.Objects(e.head.Size))
	for from := uint64(0); from < total; from += mapBatch {
		if err := e.ready(ctx); err != nil {
			return err
		}
		var oids []string
		for k := from; k < min(from+mapBatch, total); k++ {
			oids = append(oids, store.DataObject(e.head.Prefix, k))
		}
		sets, err := ceph.ListSnaps(e.data, oids)
		if err != nil {
			return err
		}
		for i, set := range sets {
			e.fillMaps(built, from+uint64(i), set)
		}
	}
	const invalid = cls.FlagObjectMapInvalid | cls.FlagFastDiffInvalid
	for i, m := range built {
		id := uint64(cls.NoSnap)
		if i < len(snaps) {
			id = snaps[i].ID
		}
		if err := e.objectMap(id).Save(m); err != nil {
			return err
		}
		if err := e.h.SetFlags(id, 0, invalid); err != nil {
			return err
		}
	}
	return e.reload()
}

// fillMaps notes in which snapshots an object exists, and since when unchanged.
func (e *editor) fillMaps(built []*objectmap.Map, object uint64, set ceph.SnapSet) {
	before := -2 // which of its pasts the object had in the snapshot before
	for i := range built {
		now := -1
		for j, c := range set.Clones {
			if c.ID == ceph.SnapHead {
				if i == len(built)-1 || e.head.Snapshots[i].ID > set.Seq {
					now = j
				}
				continue
			}
			if i < len(built)-1 {
				for _, s := range c.Snaps {
					if s == e.head.Snapshots[i].ID {
						now = j
					}
				}
			}
		}
		switch {
		case now < 0:
			built[i].Set(object, objectmap.NonExistent)
		case now == before:
			built[i].Set(object, objectmap.ExistsClean)
		default:
			built[i].Set(object, objectmap.Exists)
		}
		before = now
	}
}

// setParent gives the head as much of its parent as a remote snapshot has.
func (e *editor) setParent(ctx context.Context, v *view, s cls.Snapshot) error {
	if s.ParentOverlap != nil {
		return e.r.pair.ShowParent(ctx, v.remote.head, e.h, e.head, s)
	}
	if e.head.ParentOverlap == nil {
		return nil
	}
	if e.head.Has(cls.FeatureDeepFlatten) {
		if e.want.Features&cls.FeatureDeepFlatten != 0 {
			return e.flatten(ctx, v)
		}
		if err := e.h.SetFeatures(0, cls.FeatureDeepFlatten); err != nil {
			return err
		}
	}
	return e.detachParent()
}

// flatten does what deep flattening did to the remote image: no snapshot shows
// the parent any more.
func (e *editor) flatten(ctx context.Context, v *view) error {
	var objects uint64
	reach := func(overlap *uint64) {
		if overlap != nil {
			objects = max(objects, e.head.Objects(*overlap))
		}
	}
	reach(e.head.ParentOverlap)
	for _, s := range e.head.Snapshots {
		reach(s.ParentOverlap)
	}
	if base := v.step.Sync.Base; base != nil && v.remote.head.Snapshot(base.Remote) != nil {
		job, err := e.r.bareJob(v, e)
		if err != nil {
			return err
		}
		job.Start = base.Remote
		for _, s := range e.head.Snapshots {
			job.Existing = append(job.Existing, imagesync.Snapshot{ID: s.ID, Objects: e.head.Objects(s.Size), Remote: v.original(s)})
		}
		e.r.log.Info().Uint64("objects", objects).Msg("the remote image has lost its parent")
		if err := imagesync.Flatten(ctx, *job, objects); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("flattening the local image: %w", err)
		}
	}
	return e.detachParent()
}

// original is the remote snapshot that a local one is a copy of, 0 if there is
// none, or none any more.
func (v *view) original(s cls.Snapshot) uint64 {
	if m := s.Namespace.Mirror; m != nil {
		if m.Complete && !m.Primary() && v.remote.head.Snapshot(m.PrimarySnapID) != nil {
			return m.PrimarySnapID
		}
		return 0
	}
	for remote, local := range v.step.Sync.SnapSeqs {
		if local == s.ID && v.remote.head.Snapshot(remote) != nil {
			return remote
		}
	}
	return 0
}

// detachParent cuts the head from its parent, and with deep flattening the
// snapshots, too.
func (e *editor) detachParent() error {
	last := true
	for _, s := range e.head.Snapshots {
		if s.ParentOverlap != nil && !e.head.Has(cls.FeatureDeepFlatten) {
			last = false
		}
	}
	if last {
		if err := e.r.pair.Local.Local().DetachChild(e.head, e.h); err != nil {
			return err
		}
	}
	if err := e.h.DetachParent(); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	return e.reload()
}

// releaseParent tells the parent that it is no longer needed, when the snapshot
// is the last that needs it.
func (e *editor) releaseParent(id uint64) error {
	if !e.head.Parent.Exists() || e.head.ParentOverlap != nil {
		return nil
	}
	s := e.head.Snapshot(id)
	if s == nil || s.ParentOverlap == nil {
		return nil
	}
	for _, o := range e.head.Snapshots {
		if o.ID != id && o.ParentOverlap != nil {
			return nil
		}
	}
	return e.r.pair.Local.Local().DetachChild(e.head, e.h)
}
