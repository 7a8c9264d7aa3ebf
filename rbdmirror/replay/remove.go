package replay

import (
	"context"
	"errors"

	"cephmirror/rbdmirror/deletion"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

func (r *Replayer) doomed(id string) deletion.Image {
	return deletion.Image{Conn: r.cfg.Local.Conn, IO: r.pair.Local.IO, ID: id, Lease: r.cfg.Lease, Log: r.log}
}

// purge removes what is left of a local image that was never complete, or whose
// removal broke off.
func (r *Replayer) purge(ctx context.Context, v *view) error {
	r.letGo()
	img := r.doomed(v.local.image.ID)
	// Before its last step the creation of a stock daemon looks as if the image
	// was primary.
	img.Primary = func(img *store.Image) (bool, error) {
		for _, s := range img.Snapshots {
			if m := s.Namespace.Mirror; m != nil && m.Primary() {
				return true, nil
			}
		}
		return false, nil
	}
	r.log.Info().Str("id", img.ID).Str("why", v.step.Why).Msg("removing what is left of the local image")
	return deletion.Purge(ctx, img)
}

// errNoLonger: what was decided does not hold any more.
var errNoLonger = errors.New("the local image is no longer what it was")

// delete moves the local image to the trash.
func (r *Replayer) delete(ctx context.Context, v *view) error {
	r.letGo()
	head := v.local.head
	opts := deletion.MoveOptions{Allowed: func(img *store.Image) error {
		h := &plan.Header{Features: img.Features, Snapshots: img.Snapshots}
		resync := resyncRequested(img.Metadata[resyncKey(r.cfg.Local.MirrorUUID)])
		if plan.Promoted(h) || !(v.step.Resync && resync) && !plan.Linked(h, r.cfg.Remote.MirrorUUID) {
			return errNoLonger
		}
		return nil
	}}
	text := "resync requested"
	if !v.step.Resync {
		opts.Delay = deletion.Delay(r.cfg.Local.Conn, r.pair.Local.IO, head)
		text = "remote image no longer exists"
	}
	r.set(replica.StateStopped, text, replica.Stopping)
	r.log.Info().Str("id", head.ID).Str("why", v.step.Why).Dur("delay", opts.Delay).Msg("moving the local image to the trash")
	return deletion.Move(ctx, r.doomed(head.ID), opts)
}
