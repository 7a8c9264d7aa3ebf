package journal

import (
	"strconv"
	"time"

	"cephmirror/rbdmirror/store"
)

// ModeKey is the key in an image's metadata that says how its journal is replayed,
// by one of the modes. It is set at the primary, and replayed as all metadata is.
const ModeKey = "cephmirror.replay_mode"

// The modes of replay.
const (
	Merged = "merged" // writes between two barriers in one go
	Strict = "strict" // one entry at a time
)

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&o.CommitAge, 5*time.Second)
	set(&o.PollAge, 5*time.Second)
	set(&o.SyncPointAge, 30*time.Second)
	return o
}

// override returns the options with those of the pool, and over them those of an
// image. What cannot be understood is passed over.
func (o Options) override(pool map[string]string, metadata map[string][]byte) Options {
	last := func(name string) string {
		if v, ok := metadata[store.ConfPrefix+name]; ok {
			return string(v)
		}
		return pool[name]
	}
	if n, err := strconv.ParseUint(last("rbd_mirroring_replay_delay"), 10, 31); err == nil {
		o.ReplayDelay = time.Duration(n) * time.Second
	}
	if on, err := strconv.ParseBool(last("rbd_mirroring_resync_after_disconnect")); err == nil {
		o.ResyncAfterDisconnect = on
	}
	switch string(metadata[ModeKey]) {
	case Strict:
		o.Strict = true
	case Merged:
		o.Strict = false
	}
	return o
}

// tuning returns the options for the local image as it is now, nil if there is
// none yet.
func (r *Replayer) tuning(img *store.Image) Options {
	o := r.cfg.Tune().withDefaults()
	if img == nil {
		return o.override(r.overrides, nil)
	}
	return o.override(r.overrides, img.Metadata)
}
