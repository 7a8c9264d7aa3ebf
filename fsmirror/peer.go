package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
)

// peer mirrors the directories of one file system to one peer.
type peer struct {
	fs   *filesystem
	uuid string
	spec dirstore.Peer
	log  zerolog.Logger

	cancel context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex
	wake       chan struct{} // closed and replaced when some directory may be due
	dirs       map[string]*work
	trouble    error // why there is no connection
	since      time.Time
	nextTry    time.Time
	patience   patience
	failures   uint64 // directories that entered the failed state
	recoveries uint64

	counters peerCounters
}

// peerCounters are the stock daemon's counters of a peer.
type peerCounters struct {
	synced, deleted, renamed, failed, bytes, sent atomic.Uint64

	mu          sync.Mutex
	syncs       uint64
	syncSeconds float64
	start, end  float64 // of the last sync, monotonic seconds
	duration    float64
	lastBytes   uint64
}

// work is one directory in the peer's schedule.
type work struct {
	dir    string
	status *directory
	due    time.Time          // when the next cycle may start
	cancel context.CancelFunc // of the running cycle
	idle   chan struct{}      // closed when the running cycle ended
	rescan bool
	gone   bool
}

const (
	// recheck is how often an unchanged directory is looked at all the same,
	// on both sides.
	recheck = 5 * time.Minute
	// lockRetry is when a directory locked by another daemon is tried again.
	lockRetry = 2 * time.Second
	// closeLimit bounds the end of a connection; what does not end by then is
	// left behind, cut off.
	closeLimit = 10 * time.Second
	// stopLimit does so when all work is to end: once for calls under way to
	// return, and once more for the rest.
	stopLimit = 3 * time.Second
)

func newPeer(fs *filesystem, uuid string, spec dirstore.Peer) *peer {
	ctx, cancel := context.WithCancel(context.WithoutCancel(fs.ctx))
	p := &peer{
		fs: fs, uuid: uuid, spec: spec,
		log:    fs.log.With().Str("peer", uuid).Str("site", spec.Cluster).Logger(),
		cancel: cancel,
		done:   make(chan struct{}),
		wake:   make(chan struct{}),
		dirs:   make(map[string]*work),
		since:  time.Now(),
	}
	go func() {
		defer close(p.done)
		p.run(ctx)
	}()
	return p
}

// stop ends all work on the peer and waits for it, for as long as ctx allows.
func (p *peer) stop(ctx context.Context) {
	p.cancel()
	select {
	case <-p.done:
	case <-ctx.Done():
	}
}

// add takes a directory into the schedule. Adding it twice is harmless.
func (p *peer) add(dir string) {
	p.mu.Lock()
	if p.dirs[dir] == nil {
		p.dirs[dir] = &work{dir: dir, status: &directory{}, due: time.Now()}
	}
	p.poke()
	p.mu.Unlock()
}

// remove takes a directory out and waits, for as long as ctx allows, until
// nothing is done for it any more.
func (p *peer) remove(ctx context.Context, dir string) {
	p.mu.Lock()
	w := p.dirs[dir]
	delete(p.dirs, dir)
	var idle chan struct{}
	if w != nil {
		w.gone = true
		if w.cancel != nil {
			w.cancel()
			idle = w.idle
		}
	}
	p.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// changed makes a directory due: its snapshots changed. A failed one keeps its
// time.
func (p *peer) changed(dir string) {
	p.mu.Lock()
	if w := p.dirs[dir]; w != nil {
		w.status.mu.Lock()
		failing := w.status.reason != nil
		w.status.mu.Unlock()
		if !failing {
			w.due = time.Now()
			p.poke()
		}
	}
	p.mu.Unlock()
}

// poke makes all idle workers look at the schedule. The caller holds p.mu.
func (p *peer) poke() {
	close(p.wake)
	p.wake = make(chan struct{})
}

// run keeps a connection to the peer and works on it until ctx ends.
func (p *peer) run(ctx context.Context) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := p.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			delay = 0
		}
		delay = min(max(2*delay, time.Second), 30*time.Second)
		wait := delay/2 + rand.N(delay)/2
		p.setTrouble(err, time.Now().Add(wait))
		p.log.Warn().Err(err).Dur("retry_in", wait).Msg("no connection to the peer")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func (p *peer) setTrouble(err error, next time.Time) {
	p.mu.Lock()
	if (p.trouble == nil) != (err == nil) {
		p.since = time.Now()
	}
	p.trouble, p.nextTry = err, next
	p.mu.Unlock()
	p.fs.eng.statusChanged()
}

// connection is one mount of the peer's file system.
type connection struct {
	mount   *ceph.Mount
	session string // its uuid
	// lost is cancelled, with the reason, when the connection is to be given up.
	lost   context.Context
	giveUp context.CancelCauseFunc
}

func (p *peer) serve(ctx context.Context) error {
	if err := p.fs.eng.lease.Wait(ctx); err != nil {
		return err
	}
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	p.setTrouble(nil, time.Time{})
	p.log.Info().Msg("connected to the peer")
	var wg sync.WaitGroup
	wg.Go(func() {
		heartbeat(c.lost, vitals{pulse(c.mount), p.lastStep, &p.patience}, func(err error) { c.giveUp(fmt.Errorf("the peer: %w", err)) })
	})
	wg.Go(func() {
		if p.fs.eng.lease.AwaitExpiry(c.lost, leaseGrace) == nil {
			c.giveUp(errLeaseLost)
		}
	})
	for range max(1, p.fs.eng.options.uint("cephfs_mirror_max_concurrent_directory_syncs")) {
		wg.Go(func() { p.worker(c) })
	}
	<-c.lost.Done()
	p.close(c, &wg)
	return context.Cause(c.lost)
}

// leaseGrace is how long after the end of the lease locks are still held, so
// that a short stall of the host costs nothing.
const leaseGrace = 5 * time.Second

var errLeaseLost = errors.New("the host does not renew the lease")

// connect mounts the peer's file system, within the configured timeout.
func (p *peer) connect(ctx context.Context) (*connection, error) {
	// What is left of earlier connections holds locks.
	err := p.fs.endLeft(ctx, p.fs.abroad(p.spec), true)
	if err != nil && !errors.Is(err, errUnanswered) && ctx.Err() == nil {
		p.log.Debug().Err(err).Msg("ending earlier sessions")
		err = nil
	}
	var mount *ceph.Mount
	var session string
	if err == nil {
		mount, session, err = p.fs.mountAt(ctx, p.fs.abroad(p.spec))
	}
	if err != nil {
		return nil, fmt.Errorf("mounting file system %s of %s as %s: %w",
			p.spec.FSName, p.fs.eng.peerAddress(p.fs.name, p.spec), p.spec.Client, err)
	}
	c := &connection{mount: mount, session: session}
	c.lost, c.giveUp = context.WithCancelCause(ctx)
	return c, nil
}

// close ends a connection: in order when its workers end soon, by cutting it
// off when they hang. What does not end then either is left behind.
func (p *peer) close(c *connection, wg *sync.WaitGroup) {
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		close(ended)
	}()
	limit := closeLimit
	stopping := errors.Is(context.Cause(c.lost), context.Canceled)
	orderly := stopping
	if stopping {
		limit = stopLimit
		select {
		case <-ended:
		case <-time.After(stopLimit):
			orderly = false
		}
	}
	released := make(chan struct{})
	go func() {
		defer close(released)
		if !orderly {
			// Waiting calls return, and nothing of ours is written any more.
			// This call, too, can hang with the MDS.
			if err := c.mount.Abort(); err != nil {
				p.log.Warn().Err(err).Msg("cannot cut off the connection to the peer")
			}
		}
		<-ended
		if orderly {
			if err := c.mount.Unmount(); err != nil {
				p.log.Debug().Err(err).Msg("unmounting the peer")
			} else {
				p.fs.forget(c.session)
			}
		}
		if err := c.mount.Release(); err != nil {
			p.log.Debug().Err(err).Msg("releasing the mount of the peer")
		}
	}()
	over := time.After(limit)
	if stopping && !orderly {
		// There may be no later connection that would end the session.
		ctx, cancel := context.WithTimeoutCause(context.Background(), limit, errUnanswered)
		defer cancel()
		err := p.fs.end(ctx, p.fs.abroad(p.spec), func() ([]string, error) { return []string{c.session}, nil })
		if err != nil {
			p.log.Debug().Err(err).Msg("ending the session on the peer")
		}
	}
	select {
	case <-released:
	case <-over:
		p.log.Warn().Msg("a cut-off connection to the peer does not end, leaving it behind")
		p.disown()
	}
}

// disown gives directories whose cycle hangs on a connection left behind a
// fresh start. The session's note stays, so that the next connection ends the
// session, and with it the locks, before it works on them.
func (p *peer) disown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for dir, w := range p.dirs {
		if w.cancel != nil {
			w.gone = true
			p.dirs[dir] = &work{dir: dir, status: w.status, due: time.Now(), rescan: w.rescan}
		}
	}
}

// worker runs cycles one after the other.
func (p *peer) worker(c *connection) {
	for c.lost.Err() == nil {
		w, ctx, idle := p.take(c.lost)
		if w != nil {
			p.cycle(ctx, c, w)
			continue
		}
		select {
		case <-c.lost.Done():
		case <-idle.wake:
		case <-time.After(idle.wait):
		}
	}
}

// idle says how long there is nothing to do: until wake is closed, but no
// longer than wait.
type idle struct {
	wake <-chan struct{}
	wait time.Duration
}

// take returns the directory that has been due for longest, or how long until
// one is.
func (p *peer) take(parent context.Context) (*work, context.Context, idle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	wait := time.Minute
	var best *work
	for _, w := range p.dirs {
		if w.cancel != nil {
			continue
		}
		if d := w.due.Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		if best == nil || w.due.Before(best.due) {
			best = w
		}
	}
	if best == nil {
		return nil, nil, idle{p.wake, wait}
	}
	ctx, cancel := context.WithCancel(parent)
	best.cancel, best.idle = cancel, make(chan struct{})
	best.due = now.Add(recheck)
	return best, ctx, idle{}
}

// cycle runs one cycle of a directory and schedules the next.
func (p *peer) cycle(ctx context.Context, c *connection, w *work) {
	source, release, err := p.fs.source(ctx)
	var more bool
	if err == nil {
		before := *w.status.counts()
		cy := &cycle{
			dir: w.dir, conn: source.data, source: source.copy, check: source.check, target: c.mount,
			owner:  lockOwner(w),
			gate:   p.fs.eng.lease.Wait,
			memory: p.fs.eng.memory,
			opts:   p.fs.eng.cycleOptions(),
			status: w.status,
			log:    p.log,
		}
		cy.opts.rescan = w.rescan
		cy.opts.settle = p.fs.shared()
		more, err = cy.run(ctx)
		release()
		p.count(before, *w.status.counts(), w.status)
	}
	p.mu.Lock()
	w.cancel()
	w.cancel = nil
	close(w.idle)
	now := time.Now()
	switch {
	case w.gone || ctx.Err() != nil && errors.Is(err, context.Canceled) && c.lost.Err() == nil:
	case c.lost.Err() != nil:
		w.due = now // as soon as there is a connection again
	case err == nil:
		p.succeeded(w)
		if more {
			w.due = now
		}
	case errors.Is(err, errOutdated):
		w.due = now
		c.giveUp(err)
	case errors.Is(err, errLocked):
		w.status.setWaiting("the directory is locked on the peer by another daemon")
		w.due = now.Add(lockRetry)
	default:
		p.failedCycle(w, err, now)
	}
	p.poke()
	p.mu.Unlock()
	p.fs.eng.statusChanged()
}

// lastStep tells when something was last completed for some directory.
func (p *peer) lastStep() (last time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.dirs {
		if at := w.status.lastStep(); at.After(last) {
			last = at
		}
	}
	return last
}

func (p *peer) succeeded(w *work) {
	p.patience.reset()
	p.fs.patience.reset()
	s := w.status
	s.mu.Lock()
	defer s.mu.Unlock()
	w.rescan = false
	if s.failed {
		p.recoveries++
		p.log.Info().Str("dir", w.dir).Msg("directory recovered")
	}
	s.failed, s.failures, s.reason, s.waiting = false, 0, nil, ""
	s.nextTry = time.Time{}
}

func (p *peer) failedCycle(w *work, err error, now time.Time) {
	o := p.fs.eng.options
	s := w.status
	s.mu.Lock()
	defer s.mu.Unlock()
	p.counters.failed.Add(1)
	s.failures++
	s.waiting = ""
	first := s.reason == nil || s.reason.Error() != err.Error()
	s.reason = err
	// The peer's tree was not what its snapshot says: look at the tree itself.
	if ceph.Is(err, syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EEXIST, syscall.ENOTEMPTY, syscall.EINVAL) {
		w.rescan = true
	}
	wait := o.seconds("cephfs_mirror_directory_scan_interval")
	if s.failures >= int(o.uint("cephfs_mirror_max_consecutive_failures_per_directory")) {
		if !s.failed {
			s.failed = true
			p.failures++
		}
		wait = o.seconds("cephfs_mirror_retry_failed_directories_interval")
	}
	s.nextTry = now.Add(wait)
	w.due = s.nextTry
	if first {
		p.log.Warn().Err(err).Str("dir", w.dir).Int("failures", s.failures).Msg("directory cannot be synchronised")
	}
}

// count adds what a cycle did to the peer's counters.
func (p *peer) count(before, after counts, d *directory) {
	c := &p.counters
	c.deleted.Add(after.deleted - before.deleted)
	c.renamed.Add(after.renamed - before.renamed)
	n := after.synced - before.synced
	c.synced.Add(n)
	if n == 0 {
		return
	}
	d.mu.Lock()
	l := *d.last
	d.mu.Unlock()
	c.bytes.Add(l.bytes)
	c.sent.Add(l.sent)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.syncs += n
	c.syncSeconds += l.duration.Seconds()
	c.start, c.end = (l.at - l.duration).Seconds(), l.at.Seconds()
	c.duration = l.duration.Seconds()
	c.lastBytes = l.bytes
}

// lockOwner names the holder of a directory's lock within our session.
func lockOwner(w *work) uint64 {
	var h uint64 = 14695981039346656037
	for i := range len(w.dir) {
		h = (h ^ uint64(w.dir[i])) * 1099511628211
	}
	return h
}
