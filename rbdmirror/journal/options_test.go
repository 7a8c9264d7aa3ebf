//go:build cgo

package journal

import (
	"testing"
	"time"
)

func TestOverride(t *testing.T) {
	base := Options{PollAge: 2 * time.Second, ReplayDelay: 3 * time.Second, ResyncAfterDisconnect: true}.withDefaults()
	if base.CommitAge != 5*time.Second || base.PollAge != 2*time.Second || base.SyncPointAge != 30*time.Second {
		t.Fatalf("defaults: %+v", base)
	}
	with := func(change func(*Options)) Options {
		o := base
		change(&o)
		return o
	}
	for name, c := range map[string]struct {
		base  Options
		pool  map[string]string
		image map[string][]byte
		want  Options
	}{
		"nothing": {base: base, want: base},
		"pool":    {base: base, pool: map[string]string{"rbd_mirroring_replay_delay": "60"}, want: with(func(o *Options) { o.ReplayDelay = time.Minute })},
		"image": {
			base: base, pool: map[string]string{"rbd_mirroring_replay_delay": "60", "rbd_mirroring_resync_after_disconnect": "true"},
			image: map[string][]byte{"conf_rbd_mirroring_replay_delay": []byte("0"), "conf_rbd_mirroring_resync_after_disconnect": []byte("false")},
			want:  with(func(o *Options) { o.ReplayDelay, o.ResyncAfterDisconnect = 0, false }),
		},
		"nonsense": {
			base: base, pool: map[string]string{"rbd_mirroring_replay_delay": "soon"},
			image: map[string][]byte{"conf_rbd_mirroring_resync_after_disconnect": []byte("perhaps"), ModeKey: []byte("lazy")}, want: base,
		},
		"strict": {base: base, image: map[string][]byte{ModeKey: []byte(Strict)}, want: with(func(o *Options) { o.Strict = true })},
		"merged": {base: with(func(o *Options) { o.Strict = true }), image: map[string][]byte{ModeKey: []byte(Merged)}, want: base},
	} {
		if got := c.base.override(c.pool, c.image); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
