package journal

import (
	"context"
	"fmt"
	"slices"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// create makes the local image, empty, and registers it with the remote journal,
// which keeps all entries from then on. Until everything is there its record says
// so, and what a crash leaves is removed again.
func (r *Replayer) create(ctx context.Context, v *view) error {
	remote := v.remote.head
	size, overlap := first(remote)
	c, err := r.pair.NewImage(ctx, r.cfg.GlobalID, v.remote.name, cls.ImageModeJournal, remote, overlap != nil)
	if err != nil {
		return err
	}
	if !r.mayWrite() {
		return errLease
	}
	id := c.ID
	r.bootstrapping("UNREGISTER_CLIENT")
	j := journalOf(r.pair.Remote, remote.ID)
	if err := replica.Do(ctx, &r.pair.Calls, r.opts.CallTimeout, func() error { return j.Unregister(r.cfg.Local.MirrorUUID) }); err != nil {
		return replica.Remotely(err)
	}
	r.bootstrapping("REGISTER_CLIENT")
	data := &format.PeerClient{ImageID: id, State: format.Syncing}
	if err := replica.Do(ctx, &r.pair.Calls, r.opts.CallTimeout, func() error { return j.Register(r.cfg.Local.MirrorUUID, data) }); err != nil {
		return replica.Remotely(fmt.Errorf("registering with the remote journal: %w", err))
	}
	r.pair.Calls.Go(func() { _ = j.Notify() })
	r.bootstrapping("CREATE_LOCAL_IMAGE")
	features := remote.Features&^(cls.ImplicitFeatures|cls.FeatureJournaling) | cls.FeatureExclusiveLock
	if features&cls.FeatureObjectMap != 0 {
		features |= cls.FeatureFastDiff
	}
	if overlap == nil {
		overlap = new(uint64)
	}
	if err := c.Make(size, features, *overlap); err != nil {
		return err
	}
	if err := journalOf(r.pair.Local, id).Create(r.journalOrder(), r.journalSplay(), r.journalPool(), r.cfg.Remote.MirrorUUID); err != nil {
		return err
	}
	// Last: with this bit, librbd looks at the journal to see who owns the image.
	if err := c.Header.SetFeatures(cls.FeatureJournaling, cls.FeatureJournaling); err != nil {
		return err
	}
	if err := c.Finish(); err != nil {
		return err
	}
	r.log.Info().Str("name", v.remote.name).Str("id", id).Msg("created the local image")
	return c.Header.Notify()
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

// first is the size of an image when the oldest of its states was made that are to be
// copied, and how much of the parent that one shows; nil: the image has no parent any
// more. Later states show no more than earlier ones.
func first(img *store.Image) (size uint64, overlap *uint64) {
	size, overlap = img.Size, img.ParentOverlap
	for _, s := range slices.Backward(img.Snapshots) {
		if !keepable(&s) {
			continue
		}
		size = s.Size
		if overlap != nil && s.ParentOverlap != nil {
			overlap = s.ParentOverlap
		}
	}
	return size, overlap
}
