// Package replay keeps one image a copy of its primary on another cluster, by
// mirror snapshots. A Replayer looks at both images, decides on one next step
// (plan.go, which is pure), carries it out, and looks again; it wakes up when
// either image's header tells of a change.
//
// Whatever it does can be interrupted at any moment, also by a kill: the next
// look tells what is left to do.
package replay

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
)

// Replayer replicates one image. Make one with New and call Run once.
type Replayer struct {
	cfg  replica.Config
	opts replica.Options
	log  zerolog.Logger
	pair *replica.Pair

	wake    chan struct{} // capacity 1: look again
	full    atomic.Bool
	lapse   atomic.Pointer[context.CancelCauseFunc] // ends the present step
	holding atomic.Bool                             // the lock is held
	reports *replica.Reporter
	flushes flushes

	// The rest belongs to Run.
	watch       *headerWatch // on the local header
	remoteWatch *headerWatch
	lock        replica.Lock
	slot        func() // gives the slot of Throttle back
	own         uint64 // the incomplete snapshot that only this Replayer has filled
	replaying   bool
	first       bool      // look at the local image first
	disabling   time.Time // since when the local image is seen to be disabled
	ownFull     bool      // and it was compared in full
	rate        *rate.Limiter
	past        plan.History
	spare       *spareID // nil: none
}

// New returns a Replayer. It opens nothing.
func New(cfg replica.Config) *Replayer {
	r := &Replayer{
		cfg: cfg, opts: cfg.Options.WithDefaults(),
		log:     cfg.Log,
		wake:    make(chan struct{}, 1),
		first:   true,
		reports: replica.NewReporter(cfg.Report),
	}
	r.pair = replica.NewPair(r.opts.CallTimeout)
	if n := r.opts.BytesPerSec; n > 0 {
		r.rate = rate.NewLimiter(rate.Limit(n), int(max(n, 8<<20)))
	}
	return r
}

// Drain waits for calls to the clusters that Run has not waited for. The
// connections must not be shut down before it has come back.
func (r *Replayer) Drain() { <-r.pair.Closed() }

// Kick makes the Replayer look at both images now.
func (r *Replayer) Kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// RemoteRemoved tells that the leader found the remote image gone or no longer
// mirrored. The Replayer verifies that before it acts.
func (r *Replayer) RemoteRemoved() { r.Kick() }

// FullCompare asks that every object of the image is compared, and what differs
// repaired, whatever is believed to have changed. It starts at once. Once noted
// at the image, it is not forgotten.
func (r *Replayer) FullCompare() {
	r.full.Store(true)
	r.Kick()
}

// Flush looks at the remote image now, and waits until all its complete mirror
// snapshots of this moment are synchronised, or ctx ends. It fails if they
// cannot be synchronised at present.
func (r *Replayer) Flush(ctx context.Context) error {
	done := r.flushes.add()
	r.Kick()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Status returns what was last reported.
func (r *Replayer) Status() replica.Status { return r.reports.Last() }
