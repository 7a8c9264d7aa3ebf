// Package replica is what all ways of mirroring have in common about the local,
// non-primary copy of an image: the two clusters it lies between, how it is made,
// hung on its parent and locked, and what is told of it.
package replica

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/imagesync"
)

// Site is one of the two clusters, as seen by one image.
type Site struct {
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

// Options tune the replication of an image. The zero value of each field stands
// for its default.
type Options struct {
	RetryMin     time.Duration // first wait after a failure, 1 s
	RetryMax     time.Duration // longest wait after failures, 30 s
	PollInterval time.Duration // look at the remote image even if nothing was heard of it, 30 s
	ReportEvery  time.Duration // how often progress is reported, 1 s
	CallTimeout  time.Duration // how long a call to the remote cluster is waited for, 30 s
	BytesPerSec  int64         // limit on what is read from the remote image; 0: none
	ObjectsAhead int           // objects in flight, 0: imagesync's default
	// CompareTakenOver makes all of an image be compared when another daemon
	// has copied it, or parts of it.
	CompareTakenOver bool
	// RecreateOnResync makes a resync remove the local image and make it anew,
	// as the stock daemon does. Otherwise it starts at the last common
	// snapshot, compares everything, and the image stays what it is.
	RecreateOnResync bool
}

// WithDefaults returns the options with nothing left open.
func (o Options) WithDefaults() Options {
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

// backoff returns how long to wait after that many failures in a row.
func (o Options) backoff(failures int) time.Duration {
	d := min(o.RetryMin<<min(failures-1, 16), o.RetryMax)
	return d/2 + rand.N(d)
}

// Config is what replicating an image needs to know.
type Config struct {
	Log      zerolog.Logger
	Lease    *plugins.Lease // nothing is written locally when it has run out; nil: no lease
	GlobalID string
	Local    Site
	Remote   Site
	Throttle Throttle          // nil: no bound
	Memory   *imagesync.Budget // shared by all of the process; nil: one of its own
	Options  Options
	// Report receives every change of the status, in order, from one
	// goroutine. It must not block for long.
	Report func(Status)
}

// Outcome says why replication has ended.
type Outcome int

const (
	// Ended: the context has ended.
	Ended Outcome = iota
	// Gone: neither cluster has the image any more, or it is no longer
	// mirrored. There is nothing left to do.
	Gone
	// LostLocal and LostRemote: the connection is of no use any more (this
	// client was blocklisted). Whoever goes on needs a new connection.
	LostLocal
	LostRemote
	// OtherMode: the image is not, or no longer, mirrored in this way.
	OtherMode
)

// LostConnection reports whether a failure means that this client was shut out
// of a cluster.
func LostConnection(err error) (Outcome, bool) {
	if !ceph.Is(err, syscall.ESHUTDOWN) {
		return Ended, false
	}
	var remote remoteError
	if errors.As(err, &remote) {
		return LostRemote, true
	}
	return LostLocal, true
}

// NoRoom reports whether a failure comes of a full local pool.
func NoRoom(err error) bool {
	var remote remoteError
	return ceph.Is(err, syscall.ENOSPC, syscall.EDQUOT) && !errors.As(err, &remote)
}

// roomPoll is how often it is tried whether a full pool has room again.
const roomPoll = 10 * time.Second

// Retry returns how long to wait after a failure, the last of some in a row.
func (o Options) Retry(err error, failures int) time.Duration {
	d := o.backoff(failures)
	if NoRoom(err) {
		d = min(d, roomPoll)
	}
	return d
}

// Explain says what a failure means, as stock does and then in our own words.
// replaying says whether the image has been replayed already.
func Explain(err error, replaying bool) string {
	what := "error bootstrapping replay: "
	if replaying {
		what = "failed to replay: "
	}
	if NoRoom(err) {
		what += "a local pool is full: "
	}
	return what + err.Error()
}
