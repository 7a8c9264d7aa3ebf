package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// demotedPoll is how often the images are looked at while neither is primary,
// at first: a fail-over is under way, and nobody may be watched then.
const (
	demotedPoll    = time.Second
	demotedPollMax = 5 * time.Second
	primaryPoll    = 10 * time.Second
	// yieldFor is how long the lock is left to whoever wanted it, unless the
	// header tells earlier what for.
	yieldFor = 3 * time.Second
)

var (
	// errRole: somebody makes the local image primary.
	errRole = errors.New("the local image is being promoted")
	// errYield: somebody wants the lock of the local image.
	errYield = errors.New("the lock of the local image is wanted")
	// errPromotion: it is wanted to promote the image by force.
	errPromotion = fmt.Errorf("%w: the local image is being promoted by force", errYield)
	// errLease: nothing may be written.
	errLease = errors.New("the host does not renew the lease")
	// errEnded is the answer to those who wait when Run ends.
	errEnded = errors.New("replication of the image has stopped")
)

// Run replicates until ctx ends or there is nothing left to do. When it comes
// back, nothing is written any more, the local image's lock is released and
// "stopped" has been reported. It comes back soon even when the remote cluster
// does not answer; calls to it that still hang are waited for by Drain.
func (r *Replayer) Run(ctx context.Context) (replica.Outcome, error) {
	defer r.finish()
	r.reports.Starting()
	out, err := r.run(ctx)
	r.letGo()
	for _, f := range r.flushes.take() {
		f <- errEnded
	}
	r.reports.Ended(out, err)
	return out, err
}

// finish closes everything once the calls that still hang have come back.
func (r *Replayer) finish() {
	if w := r.remoteWatch; w != nil {
		r.pair.Calls.Go(func() { _ = w.Close() })
	}
	r.pair.Close()
}

// letGo gives up all that keeps others from the local image, and everything
// that stands for work on it.
func (r *Replayer) letGo() {
	r.unlock()
	if w := r.watch; w != nil {
		r.watch = nil
		if err := w.Close(); err != nil && !ceph.Is(err, syscall.ENOENT, syscall.ENOTCONN) {
			r.log.Debug().Err(err).Msg("closing the watch on the local image")
		}
		// A forced promotion looks again who is there when it hears this.
		r.pair.Calls.Go(func() { _ = store.NewHeader(r.pair.Local.IO, w.image).Notify() })
	}
	r.giveSlot()
}

func (r *Replayer) giveSlot() {
	if r.slot != nil {
		r.slot()
		r.slot = nil
	}
}

// unwatchRemote ends the watch on the remote header without waiting for it.
func (r *Replayer) unwatchRemote() {
	if w := r.remoteWatch; w != nil {
		r.remoteWatch = nil
		r.pair.Calls.Go(func() { _ = w.Close() })
	}
}

func (r *Replayer) run(ctx context.Context) (replica.Outcome, error) {
	failures := 0
	poll := demotedPoll
	for {
		var wait time.Duration
		out, v, err := r.pass(ctx)
		waiters := r.flushes.take()
		switch {
		case ctx.Err() != nil:
			answer(waiters, errEnded)
			return replica.Ended, nil
		case out != replica.Ended:
			answer(waiters, errEnded)
			return out, err
		case errors.Is(err, errRole):
			// Whoever promotes the image waits for this.
			r.letGo()
			r.unwatchRemote()
			answer(waiters, err)
			failures = 0
			r.first = true
			continue
		case errors.Is(err, errYield):
			if errors.Is(err, errPromotion) {
				r.dropPartial(v)
			}
			r.unlock()
			r.giveSlot()
			r.first = true
			answer(waiters, err)
			wait = yieldFor
		case err != nil:
			failures++
			wait = r.opts.Retry(err, failures)
			text := replica.Explain(err, r.replaying)
			r.reports.Failed(text, err, failures, time.Now().Add(wait))
			r.log.Warn().Err(err).Int("failures", failures).Dur("retry_in", wait).Msg("replication of the image")
			answer(waiters, err)
			if errors.Is(err, imagesync.ErrUncertain) {
				// The lock stays, until this client is shut out.
				r.lock = replica.Lock{}
				return replica.LostLocal, err
			}
			r.unlock()
			r.giveSlot()
			if lost, ok := replica.LostConnection(err); ok {
				return lost, err
			}
		case v.step.Kind.Work():
			// Something was done: look again at once.
			r.flushes.putBack(waiters)
			continue
		default:
			failures = 0
			r.unlock()
			r.giveSlot()
			switch v.step.Kind {
			case plan.Idle:
				answer(waiters, nil)
			case plan.WaitSnapshot:
				answer(waiters, nil)
			default:
				answer(waiters, errors.New(v.step.Why))
			}
			switch v.step.Kind {
			case plan.LocalPrimary:
				wait = primaryPoll/2 + rand.N(primaryPoll)
			case plan.Orphan, plan.RemoteDemoted, plan.RemoteNotPrimary, plan.WaitSnapshot:
				wait = poll
				poll = min(poll*3/2, demotedPollMax)
			case plan.Idle:
				r.getSpare(v)
				poll = demotedPoll
				wait = r.opts.PollInterval/2 + rand.N(r.opts.PollInterval)
			default:
				failures = 0
				wait = poll
				poll = min(poll*3/2, r.opts.RetryMax)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func answer(waiters []chan error, err error) {
	for _, w := range waiters {
		w <- err
	}
}

func (f *flushes) putBack(w []chan error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(w, f.waiting...)
}

// pass looks at both images and takes one step. If that is work, it is done when
// pass comes back; otherwise the state has been reported.
func (r *Replayer) pass(ctx context.Context) (replica.Outcome, *view, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.lapse.Store(&cancel)
	defer r.lapse.Store(nil)
	out, v, err := r.passOnce(ctx)
	if cause := context.Cause(ctx); errors.Is(cause, errRole) || errors.Is(cause, errYield) {
		return replica.Ended, v, cause
	}
	return out, v, err
}

func (r *Replayer) passOnce(ctx context.Context) (replica.Outcome, *view, error) {
	if err := r.pair.Open(ctx, r.cfg.Local, r.cfg.Remote); err != nil {
		return replica.Ended, nil, err
	}
	v, err := r.look(ctx)
	if err != nil {
		return replica.Ended, nil, err
	}
	r.identify(v)
	if again, err := r.watches(ctx, v); err != nil || again {
		if again {
			v.step.Kind = plan.Prune // look again
		}
		return replica.Ended, v, err
	}
	kind := v.step.Kind
	if !kind.Work() {
		return r.rest(v)
	}
	if !r.mayWrite() {
		return replica.Ended, v, errLease
	}
	if kind == plan.Copy || kind == plan.Prune {
		now, err := r.equip(ctx, v)
		if now == nil || err != nil {
			return replica.Ended, v, err
		}
		v = now
	}
	r.log.Debug().Stringer("step", kind).Str("why", v.step.Why).Uints64("snapshots", v.step.Snapshots).Msg("next step")
	switch kind {
	case plan.Create:
		err = r.create(ctx, v)
	case plan.Purge:
		err = r.purge(ctx, v)
	case plan.Copy:
		v, err = r.copy(ctx, v)
	case plan.Unlink:
		err = r.unlink(ctx, v)
	case plan.Prune:
		err = r.prune(ctx, v)
	case plan.Delete:
		err = r.delete(ctx, v)
		if err == nil && !v.step.Resync {
			r.set(replica.StateStopped, "remote image no longer exists", replica.Stopped)
			return replica.Gone, v, nil
		}
	default:
		err = fmt.Errorf("no way to %s", kind)
	}
	return replica.Ended, v, err
}

// watches makes the watches fit the step. again is true if one was made: what
// happened before it was there has to be looked for.
func (r *Replayer) watches(ctx context.Context, v *view) (again bool, err error) {
	kind := v.step.Kind
	if w := r.watch; w != nil && (!kind.Watch() || w.Err() != nil || v.local.image == nil || v.local.image.ID != w.image) {
		r.letGo()
	}
	if kind.Watch() && r.watch == nil && v.local.image != nil && v.local.head != nil {
		if err := r.watchLocal(v.local.image.ID); err != nil {
			return false, err
		}
		again = true
	}
	// The remote image is watched only while it is primary: its promotion
	// would have to wait for us.
	want := v.remote != nil && v.remote.head != nil && kind.Watch() && kind != plan.RemoteNotPrimary && kind != plan.RemoteDemoted
	if w := r.remoteWatch; w != nil && (!want || w.Err() != nil || w.image != v.remote.image.ID) {
		if err := w.Err(); ceph.Is(err, syscall.ESHUTDOWN) {
			return false, replica.Remotely(fmt.Errorf("watching the remote image: %w", err))
		}
		r.unwatchRemote()
	}
	if want && r.remoteWatch == nil {
		id := v.remote.image.ID
		r.remoteWatch, err = replica.Call(ctx, &r.pair.Calls, r.opts.CallTimeout, func() (*headerWatch, error) {
			return watchHeader(r.pair.Remote, id, r.Kick, func(bool) {})
		}, func(w *headerWatch) { _ = w.Close() })
		if err != nil {
			return again, replica.Remotely(err)
		}
		again = true
	}
	return again, nil
}

// watchLocal watches the local header. A promotion interrupts whatever is being
// done.
func (r *Replayer) watchLocal(id string) error {
	header := store.NewHeader(r.pair.Local.IO, id)
	w, err := watchHeader(r.pair.Local, id, func() {
		img, err := header.Load()
		if err == nil && plan.Promoted(&plan.Header{Features: img.Features, Snapshots: img.Snapshots}) {
			r.interrupt(errRole)
		}
		r.Kick()
	}, func(promotion bool) {
		switch {
		case !r.holding.Load():
		case promotion:
			r.interrupt(errPromotion)
		default:
			r.interrupt(errYield)
		}
	})
	if err != nil {
		return err
	}
	r.watch = w
	return nil
}

// dropPartial removes the user snapshots of a synchronisation that will never be
// completed: they are neither one thing nor the other. The mirror snapshot has to
// stay, as it is what makes the promotion roll the image back.
func (r *Replayer) dropPartial(v *view) {
	if v == nil || v.step.Kind != plan.Copy || !r.lock.Held() {
		return
	}
	e, err := r.edit(v.local.image.ID)
	for _, l := range v.step.Sync.Chain {
		if err == nil && l.Local != 0 {
			err = e.dropSnapshot(context.Background(), l.Local)
		}
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("removing half-filled snapshots before the forced promotion")
	}
}

// interrupt ends the present step.
func (r *Replayer) interrupt(why error) {
	if cancel := r.lapse.Load(); cancel != nil {
		(*cancel)(why)
	}
}

// rest reports a state in which there is nothing to do.
func (r *Replayer) rest(v *view) (replica.Outcome, *view, error) {
	step := v.step
	was := r.replaying
	r.replaying = false
	r.first = step.Kind == plan.LocalPrimary || step.Kind == plan.Orphan
	switch step.Kind {
	case plan.Idle:
		r.replaying = true
		r.replayed(v, step.Why)
	case plan.WaitSnapshot:
		r.replaying = true
		r.replayed(v, step.Why)
	case plan.LocalPrimary:
		text := "local image is primary"
		if was || r.Status().Description == "orphan (force promoting)" {
			text = "force promoted"
		}
		r.set(replica.StateStopped, text, replica.Stopped)
	case plan.Orphan:
		r.set(replica.StateStopped, "orphan (force promoting)", replica.Stopped)
	case plan.RemoteNotPrimary:
		r.set(replica.StateUnknown, "remote image is not primary", replica.Starting, func(s *replica.Status) { s.Wait(step.Why) })
	case plan.RemoteDemoted:
		r.set(replica.StateUnknown, "remote image demoted", replica.Starting, func(s *replica.Status) { s.Wait("the remote image, or the local one, to be promoted") })
	case plan.SplitBrain:
		r.set(replica.StateError, "split-brain", replica.Starting, func(s *replica.Status) {
			s.Err = errors.New(step.Why)
			s.Wait("a resync to be asked for")
		})
	case plan.Broken:
		err := errors.New(step.Why)
		return replica.Ended, v, err
	case plan.Wait:
		r.set(replica.StateStartingReplay, "starting replay: "+step.Why, replica.Starting, func(s *replica.Status) { s.Wait(step.Why) })
	case plan.Gone:
		return replica.Gone, v, nil
	case plan.OtherMode:
		return replica.OtherMode, v, nil
	}
	return replica.Ended, v, nil
}

// mayWrite reports whether the lease is valid.
func (r *Replayer) mayWrite() bool { return r.cfg.Lease == nil || r.cfg.Lease.Valid() }

// fresh is how old what is known of the remote image may be for one step to
// follow another. The cluster may be far away.
const fresh = time.Second

// equip takes the slot and the lock that a step needs, and looks at the local
// image again: whoever had the lock may have changed it. nil: both images have
// to be looked at.
func (r *Replayer) equip(ctx context.Context, v *view) (*view, error) {
	waited := false
	if v.step.Kind == plan.Copy && r.slot == nil && r.cfg.Throttle != nil {
		if err := r.takeSlot(ctx, v); err != nil {
			return nil, err
		}
		waited = true
	}
	if !r.lock.Held() {
		if err := r.takeLock(v.local.image.ID); err != nil {
			return nil, err
		}
		return r.again(v)
	}
	if waited && time.Since(v.at) > fresh {
		return nil, nil
	}
	return v, nil
}

// again looks at the local image again. nil: what is to be done is something
// else now, or what is known of the remote image is too old.
func (r *Replayer) again(v *view) (*view, error) {
	if time.Since(v.at) > fresh {
		return nil, nil
	}
	now, err := r.decide(v.remote)
	if err != nil || now.step.Kind != v.step.Kind {
		return nil, err
	}
	now.at = v.at
	return now, nil
}

func (r *Replayer) takeSlot(ctx context.Context, v *view) error {
	r.reports.Waiting("a free slot for synchronisation")
	release, err := r.cfg.Throttle.Acquire(ctx, v.local.image.ID)
	if err != nil {
		return fmt.Errorf("waiting for a slot to synchronise in: %w", err)
	}
	r.slot = release
	r.reports.Waiting("")
	return nil
}

// takeLock takes the exclusive lock on the local image, from a dead holder if
// need be.
func (r *Replayer) takeLock(id string) error {
	if r.watch == nil {
		return errors.New("the local image is not watched")
	}
	lock, _, err := r.pair.Lock(r.log, id, r.watch.Cookie())
	if err != nil {
		return err
	}
	r.lock = lock
	r.holding.Store(true)
	return nil
}

// unlock releases the lock on the local image.
func (r *Replayer) unlock() {
	if !r.lock.Held() {
		return
	}
	l := r.lock
	r.lock = replica.Lock{}
	r.holding.Store(false)
	r.pair.Unlock(r.log, l)
}

// header returns the local header for changes, which fail once the lock is
// lost.
func (r *Replayer) header() *store.Header { return r.lock.Header(r.pair.Local.IO) }
