package replay

import (
	"context"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replay/plan"
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
	c, err := r.pair.NewImage(ctx, r.cfg.GlobalID, name, cls.ImageModeSnapshot, remote, overlapping(sync))
	if err != nil {
		return err
	}
	if !r.mayWrite() {
		return errLease
	}
	id := c.ID
	if err := c.Make(firstSize(sync), plan.NewFeatures(remote.Features), firstOverlap(sync)); err != nil {
		return err
	}
	if err := r.watchLocal(id); err != nil {
		return err
	}
	if err := r.takeLock(id); err != nil {
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
	if err := c.Finish(); err != nil {
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
