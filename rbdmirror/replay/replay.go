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

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"cephmirror/plugins"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/replay/plan"
)

// Side is one of the two clusters, as seen by one image.
type Side struct {
	// Conn is the connection that also watches rbd_mirroring and writes the
	// statuses: a forced promotion tells a daemon from an ordinary client by
	// that watch. Its operations must end by themselves (rados_osd_op_timeout).
	Conn       *rados.Conn
	Pool       string
	Namespace  string
	MirrorUUID string
	SiteName   string
}

// Throttle bounds how many images synchronise at once.
type Throttle interface {
	// Acquire waits for a slot for the local image with this id. The slot is
	// given back by release, which may be called once only.
	Acquire(ctx context.Context, localImageID string) (release func(), err error)
}

// Options tune a Replayer. The zero value of each field stands for its default.
type Options struct {
	RetryMin     time.Duration // first wait after a failure, 1 s
	RetryMax     time.Duration // longest wait after failures, 30 s
	PollInterval time.Duration // look at the remote image even if nothing was heard of it, 30 s
	ReportEvery  time.Duration // how often progress is reported during a synchronisation, 1 s
	CallTimeout  time.Duration // how long a call to the remote cluster is waited for, 30 s
	BytesPerSec  int64         // limit on what is read from the remote image; 0: none
	ObjectsAhead int           // objects in flight, 0: imagesync's default
	// RecreateOnResync makes a resync remove the local image and make it anew,
	// as the stock daemon does. Otherwise it starts at the last common
	// snapshot, compares everything, and the image stays what it is.
	RecreateOnResync bool
}

// Config is what a Replayer needs to know.
type Config struct {
	Log      zerolog.Logger
	Lease    *plugins.Lease // nothing is written locally when it has run out; nil: no lease
	GlobalID string
	Local    Side
	Remote   Side
	Throttle Throttle          // nil: no bound
	Memory   *imagesync.Budget // shared by all of the process; nil: one of its own
	Options  Options
	// Report receives every change of the status, in order, from one
	// goroutine. It must not block for long.
	Report func(Status)
}

// State is the state of a mirrored image as the tools show it.
type State uint8

// The states, with the numbers that are stored.
const (
	StateUnknown State = iota
	StateError
	StateSyncing
	StateStartingReplay
	StateReplaying
	StateStoppingReplay
	StateStopped
)

// Phase is what the Replayer is about: the admin socket's word for it.
type Phase int

// The phases.
const (
	Stopped Phase = iota
	Starting
	Replaying
	Stopping
)

func (p Phase) String() string {
	switch p {
	case Starting:
		return "Starting"
	case Replaying:
		return "Replaying"
	case Stopping:
		return "Stopping"
	default:
		return "Stopped"
	}
}

// Status is what is known of the image's replication. State and Description go
// to both clusters as they are.
type Status struct {
	State       State
	Description string // stock's text, JSON included

	Phase     Phase
	LocalName string // empty until known
	LocalID   string
	RemoteID  string
	Primary   bool // the local image is primary

	// Syncing says that a synchronisation is under way.
	Syncing       bool
	ObjectsDone   uint64
	ObjectsTotal  uint64
	BytesCopied   uint64 // of this synchronisation
	LastSync      time.Time
	RemoteTime    time.Time // of the newest remote mirror snapshot
	LocalTime     time.Time // remote time of the newest complete local one
	Err           error     // why State is error, nil otherwise
	WaitingFor    string    // what is waited for, for people
	WaitingSince  time.Time
	NextTry       time.Time // zero: nothing is to be tried again by time
	Failures      int       // in a row
	SnapshotsLeft int       // remote mirror snapshots yet to be synchronised

	// Counters of this Replayer.
	Snapshots       uint64  // mirror snapshots completed
	SyncSeconds     float64 // spent on them
	SyncBytes       uint64
	LastSyncSeconds float64
	LastSyncBytes   uint64
}

// Outcome says why Run came back.
type Outcome int

const (
	// Ended: the context of Run has ended.
	Ended Outcome = iota
	// Gone: neither cluster has the image any more, or it is no longer
	// mirrored. There is nothing left to do.
	Gone
	// LostLocal and LostRemote: the connection is of no use any more (this
	// client was blocklisted). A new Replayer needs a new connection.
	LostLocal
	LostRemote
	// OtherMode: the image is not, or no longer, mirrored by snapshots.
	OtherMode
)

// Replayer replicates one image. Make one with New and call Run once.
type Replayer struct {
	cfg  Config
	opts Options
	log  zerolog.Logger

	calls  calls
	local  *side
	remote *side
	closed chan struct{} // all is closed, after Run

	wake    chan struct{} // capacity 1: look again
	full    atomic.Bool
	lapse   atomic.Pointer[context.CancelCauseFunc] // ends the present step
	holding atomic.Bool                             // the lock is held
	reports reporter
	flushes flushes

	// The rest belongs to Run.
	watch       *headerWatch // on the local header
	remoteWatch *headerWatch
	lock        heldLock
	slot        func() // gives the slot of Throttle back
	own         uint64 // the incomplete snapshot that only this Replayer has filled
	replaying   bool
	first       bool      // look at the local image first
	disabling   time.Time // since when the local image is seen to be disabled
	ownFull     bool      // and it was compared in full
	rate        *rate.Limiter
	past        plan.History
}

// New returns a Replayer. It opens nothing.
func New(cfg Config) *Replayer {
	r := &Replayer{
		cfg: cfg, opts: cfg.Options.withDefaults(),
		log:    cfg.Log,
		closed: make(chan struct{}),
		wake:   make(chan struct{}, 1),
	}
	if n := r.opts.BytesPerSec; n > 0 {
		r.rate = rate.NewLimiter(rate.Limit(n), int(max(n, 8<<20)))
	}
	r.first = true
	r.reports.init(cfg.Report)
	return r
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&o.RetryMin, time.Second)
	set(&o.RetryMax, 30*time.Second)
	set(&o.PollInterval, 30*time.Second)
	set(&o.ReportEvery, time.Second)
	set(&o.CallTimeout, 30*time.Second)
	return o
}

// Drain waits for calls to the clusters that Run has not waited for. The
// connections must not be shut down before it has come back.
func (r *Replayer) Drain() { <-r.closed }

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

// FullCompare asks that the next synchronisation compares every object of the
// image, whatever is believed to have changed. It starts at once.
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
func (r *Replayer) Status() Status { return r.reports.last() }
