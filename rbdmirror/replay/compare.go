package replay

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/store"
)

// Metadata of the local image. What begins like this is not mirrored.
const (
	// compareKey: a full comparison was asked for, at a time.
	compareKey = ".rbd_cephmirror.compare"
	// verifiedKey is the number of the newest local mirror snapshot of which it
	// is known that it, and all that it is based on, was copied by us, or was
	// compared.
	verifiedKey = ".rbd_cephmirror.verified"
)

// compareRequested reports whether a full comparison was asked for, and notes
// that at the image, for whoever goes on if this process ends.
func (r *Replayer) compareRequested(local *seen) bool {
	if local.head == nil {
		return r.full.Load()
	}
	if _, noted := local.head.Metadata[compareKey]; noted {
		return true
	}
	if !r.full.Load() || !r.mayWrite() || local.head.Features&cls.FeatureNonPrimary == 0 {
		return r.full.Load()
	}
	now := []byte(time.Now().UTC().Format(time.RFC3339))
	if err := store.NewHeader(r.pair.Local.IO, local.head.ID).SetMetadata(map[string][]byte{compareKey: now}); err != nil {
		r.log.Warn().Err(err).Msg("noting at the image that it is to be compared")
		return true
	}
	return true
}

// verified returns the local mirror snapshot up to which the image is known to
// be right, 0 if there is none.
func verified(head *store.Image) uint64 {
	id, err := strconv.ParseUint(string(head.Metadata[verifiedKey]), 10, 64)
	if err != nil {
		return 0
	}
	return id
}

// unverified reports whether the copy is another daemon's, at least in part.
func unverified(v *view) bool {
	s := v.step.Synced
	return s != nil && v.local.head != nil && verified(v.local.head) != s.ID
}

// settle notes what a synchronisation has brought as to comparisons. repaired is
// how many objects were not what they should have been.
func (r *Replayer) settle(v *view, e *editor, repaired uint64) error {
	sync := v.step.Sync
	sure := sync.Full || sync.Base == nil || verified(e.head) == sync.Base.Local
	if sync.Base != nil && !sure {
		// What was primary here needs no proof.
		s := e.head.Snapshot(sync.Base.Local)
		sure = s != nil && s.Namespace.Mirror != nil && s.Namespace.Mirror.Primary()
	}
	if sure {
		id := []byte(strconv.FormatUint(sync.Local, 10))
		if err := e.h.SetMetadata(map[string][]byte{verifiedKey: id}); err != nil {
			return err
		}
	}
	if !v.compare || !sync.Full {
		return nil
	}
	if _, noted := e.head.Metadata[compareKey]; noted {
		if err := e.h.RemoveMetadata(compareKey); err != nil {
			return err
		}
	}
	r.full.Store(false)
	anew := 0
	for _, l := range sync.Chain {
		if sync.Base != nil && l.Remote.ID < sync.Base.Remote {
			anew++
		}
	}
	r.past.Compare(plan.Comparison{End: time.Now(), Objects: repaired, Snapshots: anew})
	r.log.Info().Uint64("repaired_objects", repaired).Int("repaired_snapshots", anew).Msg("compared all of the image")
	return nil
}

// spoilt compares the user snapshots that both images have, and returns those
// that differ: what a snapshot holds cannot be changed, so they have to be made
// anew.
func (r *Replayer) spoilt(ctx context.Context, v *view, e *editor) ([]plan.Link, error) {
	remote := v.remote.head
	var links []plan.Link
	var common []imagesync.Common
	for _, s := range remote.Snapshots {
		local := e.head.Snapshot(v.step.Sync.SnapSeqs[s.ID])
		if local == nil || s.Namespace.Type != cls.NamespaceUser || local.Namespace.Type != cls.NamespaceUser {
			continue
		}
		links = append(links, plan.Link{Remote: s})
		common = append(common, imagesync.Common{
			Remote: s.ID, Local: local.ID, Objects: max(remote.Objects(s.Size), e.head.Objects(local.Size)),
			Parent: local.ParentOverlap != nil,
		})
	}
	if len(common) == 0 {
		return nil, nil
	}
	job, err := r.bareJob(v, e)
	if err != nil {
		return nil, err
	}
	r.reports.Waiting("user snapshots to be compared")
	differ, err := imagesync.Verify(ctx, *job, common)
	r.reports.Waiting("")
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("comparing user snapshots: %w", err)
	}
	var out []plan.Link
	for i, n := range differ {
		if n == 0 {
			continue
		}
		s, local := links[i].Remote, e.head.Snapshot(common[i].Local)
		event := r.log.Warn().Str("snapshot", s.Name).Uint64("objects", n)
		if local.ChildCount > 0 || local.Protection != cls.Unprotected {
			event = event.Bool("clones_keep_what_they_have", true)
		}
		event.Msg("a user snapshot differs from its original, it is made anew")
		out = append(out, links[i])
	}
	return out, nil
}
