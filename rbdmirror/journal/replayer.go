// Package journal keeps one image a copy of its primary on another cluster, by
// replaying the primary's journal. A Replayer looks at both images, takes one step
// (package course decides which), and looks again; while it follows the journal, a
// session (session.go) is that step.
//
// Whatever it does can be interrupted at any moment, also by a kill: the next look
// tells what is left to do, and the copy's own record of progress (package plan)
// what of the journal is done.
package journal

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"cephmirror/rbdmirror/replica"
)

// Options tune a Replayer beyond what replica.Options do. The zero value of each
// field stands for its default.
type Options struct {
	CommitAge    time.Duration // longest time until the primary is told of progress, 5 s
	PollAge      time.Duration // longest time until an idle journal is looked at, 5 s
	SyncPointAge time.Duration // how often the progress of a first copy is stored, 30 s
	ReplayDelay  time.Duration // how old an entry has to be before it is carried out
	// Strict carries entries out one at a time.
	Strict bool
	// ResyncAfterDisconnect copies the image anew when the primary has given up
	// keeping entries for us.
	ResyncAfterDisconnect bool
	Concurrency           int // objects written side by side, 0: target's default
}

// Config is what a Replayer needs to know.
type Config struct {
	replica.Config
	Journal Options
	// Tune returns the options as they are now; nil: they stay what Journal says.
	// Options of the pool and of the image go before them.
	Tune func() Options
	// Journals is what the buffers of all replayers of the process come from; nil:
	// of its own.
	Journals *Memory
}

// Counters count what was carried out in the life of a Replayer.
type Counters struct {
	Entries      uint64
	Bytes        uint64        // of payload
	LatencySum   time.Duration // from when an entry's turn has come until it is durable
	LatencyCount uint64
}

// Replayer replicates one image. Make one with New and call Run once.
type Replayer struct {
	cfg  Config
	opts replica.Options
	log  zerolog.Logger
	pair *replica.Pair

	wake    chan struct{} // capacity 1: look again
	heard   chan struct{} // capacity 1: the remote journal has changed
	check   chan struct{} // capacity 1: the local image or its journal has
	kick    chan struct{} // capacity 1: look at once, in a session
	flushes chan chan error
	reports *replica.Reporter

	countMu sync.Mutex
	counted Counters // of sessions that have ended
	current Counters // of the one under way

	// The rest belongs to Run.
	watch       *replica.Watch // on the local header
	watchedID   string
	localLog    *replica.Watch // on the local journal's header
	localLogID  string
	remoteLog   *replica.Watch // on the remote journal's header
	remoteLogID string
	lock        replica.Lock
	slot        func()            // gives the slot of Throttle back
	overrides   map[string]string // options of the pool
	replaying   bool
	forced      time.Time // when replay was ended by a promotion
	disabling   time.Time // since when the local image is seen to be disabled
	rate        *rate.Limiter
}

// New returns a Replayer. It opens nothing.
func New(cfg Config) *Replayer {
	o := cfg.Options.WithDefaults()
	if cfg.Tune == nil {
		cfg.Tune = func() Options { return cfg.Journal }
	}
	if cfg.Journals == nil {
		cfg.Journals = NewMemory(0)
	}
	r := &Replayer{
		cfg: cfg, opts: o, log: cfg.Log,
		pair: replica.NewPair(o.CallTimeout), reports: replica.NewReporter(cfg.Report),
		wake: make(chan struct{}, 1), heard: make(chan struct{}, 1),
		check: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		flushes: make(chan chan error, 64),
	}
	if n := o.BytesPerSec; n > 0 {
		r.rate = rate.NewLimiter(rate.Limit(n), int(max(n, 8<<20)))
	}
	return r
}

// Drain waits for calls to the clusters that Run has not waited for. The
// connections must not be shut down before it has come back.
func (r *Replayer) Drain() { <-r.pair.Closed() }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Kick makes the Replayer look at both images now.
func (r *Replayer) Kick() {
	poke(r.wake)
	poke(r.kick)
}

// RemoteRemoved tells that the leader found the remote image gone or no longer
// mirrored. The Replayer verifies that before it acts.
func (r *Replayer) RemoteRemoved() { r.Kick() }

// FullCompare is there for the sake of replica.Replayer. Nothing of a journal can be
// compared.
func (r *Replayer) FullCompare() {}

// Flush waits until everything that the primary has told of by now is carried out
// and the primary told so, or ctx ends. It fails if that is not possible at
// present.
func (r *Replayer) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case r.flushes <- done:
	case <-r.pair.Closed():
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
	r.Kick()
	select {
	case err := <-done:
		return err
	case <-r.pair.Closed():
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Status returns what was last reported.
func (r *Replayer) Status() replica.Status { return r.reports.Last() }

// Counters returns what was carried out so far.
func (r *Replayer) Counters() Counters {
	r.countMu.Lock()
	defer r.countMu.Unlock()
	c := r.counted
	c.Entries += r.current.Entries
	c.Bytes += r.current.Bytes
	c.LatencySum += r.current.LatencySum
	c.LatencyCount += r.current.LatencyCount
	return c
}

// mayWrite reports whether the lease is valid.
func (r *Replayer) mayWrite() bool { return r.cfg.Lease == nil || r.cfg.Lease.Valid() }

// set reports a state.
func (r *Replayer) set(state replica.State, text string, phase replica.Phase, more ...func(*replica.Status)) {
	r.reports.Set(state, text, phase, more...)
}

// bootstrapping reports a step of getting ready. What has failed before stays in
// sight until it works.
func (r *Replayer) bootstrapping(step string) {
	r.reports.Update(func(s *replica.Status) {
		s.Phase = replica.Starting
		if s.State != replica.StateError {
			s.State, s.Description = replica.StateSyncing, "bootstrapping, "+step
		}
	})
}
