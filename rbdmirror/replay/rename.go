package replay

import (
	"context"
	"slices"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/store"
)

// renaming is the change of a local image's name.
type renaming struct{ id, from, to string }

// maxRenamings is how many images in each other's way are looked at.
const maxRenamings = 32

// rename gives the local image another name. If the name is that of another
// copy whose original has a new one by now, that one is renamed, too, and so
// on: names can go round in a circle.
func (e *editor) rename(ctx context.Context, v *view, to string) error {
	local := e.r.pair.Local.Local()
	own := renaming{e.head.ID, v.local.image.Name, to}
	err := local.Rename(own.from, own.to, own.id)
	if !ceph.Is(err, syscall.EEXIST) {
		return err
	}
	steps, lookErr := e.r.inTheWay(ctx, own)
	if lookErr != nil {
		return lookErr
	}
	if len(steps) == 0 {
		return err
	}
	if last := steps[len(steps)-1]; last.to == own.from {
		aside := renaming{steps[0].id, steps[0].from, steps[0].from + ".renamed-" + steps[0].id}
		steps[0].from = aside.to
		steps = append(steps, own, aside)
	} else {
		steps = append([]renaming{own}, steps...)
	}
	for _, s := range slices.Backward(steps) {
		if err := local.Rename(s.from, s.to, s.id); err != nil {
			return err
		}
		e.r.log.Info().Str("id", s.id).Str("from", s.from).Str("to", s.to).Msg("renamed a local image")
	}
	return nil
}

// inTheWay lists what has to be renamed before the local image can be, each
// making way for the one before it. The last one takes a name that is free, or
// that of the image itself. There is nothing to be done if the list is empty.
func (r *Replayer) inTheWay(ctx context.Context, own renaming) ([]renaming, error) {
	local, remote := r.pair.Local, r.pair.Remote
	var steps []renaming
	for name := own.to; len(steps) < maxRenamings; {
		id, err := local.Dir.ID(name)
		if ceph.Is(err, syscall.ENOENT) {
			return steps, nil
		}
		if err != nil {
			return nil, err
		}
		record, err := local.Records.Image(id)
		if ceph.Is(err, syscall.ENOENT) || err == nil && (record.State != cls.RecordEnabled || record.Mode != cls.ImageModeSnapshot) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		head, err := store.NewHeader(local.IO, id).Load()
		if err != nil {
			return nil, err
		}
		h := &plan.Header{Features: head.Features, Snapshots: head.Snapshots}
		if plan.Promoted(h) || !plan.Linked(h, r.cfg.Remote.MirrorUUID) {
			return nil, nil
		}
		now, err := remotely(ctx, r, func() (string, error) {
			original, err := remote.Records.ImageID(record.GlobalID)
			if err != nil {
				return "", err
			}
			return remote.Dir.Name(original)
		})
		if ceph.Is(err, syscall.ENOENT) || err == nil && now == name {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		steps = append(steps, renaming{id, name, now})
		if now == own.from {
			return steps, nil
		}
		name = now
	}
	return nil, nil
}
