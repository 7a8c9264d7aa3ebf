package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/deletion"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/journal/course"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/target"
	"cephmirror/rbdmirror/replay"
	"cephmirror/rbdmirror/store"
)

// How often the images are looked at while nothing can be done, and nobody tells of
// a change.
const (
	restPoll    = time.Second
	restPollMax = 5 * time.Second
	primaryPoll = 10 * time.Second
)

var (
	// errLease: nothing may be written.
	errLease = errors.New("the host does not renew the lease")
	// errEnded is the answer to those who wait when Run ends.
	errEnded = errors.New("replication of the image has stopped")
	// errNoLonger: what was decided does not hold any more.
	errNoLonger = errors.New("the local image is no longer what it was")
)

// Run replicates until ctx ends or there is nothing left to do. When it comes back,
// nothing is written any more, the local image's lock is released and "stopped" has
// been reported. It comes back soon even when the remote cluster does not answer;
// calls to it that still hang are waited for by Drain.
func (r *Replayer) Run(ctx context.Context) (replay.Outcome, error) {
	defer r.finish()
	r.reports.update(func(s *replay.Status) {
		s.Phase = replay.Starting
		if s.State != replay.StateError {
			s.State, s.Description = replay.StateStartingReplay, "starting replay"
		}
	})
	out, err := r.run(ctx)
	r.letGo()
	r.unwatchLocalLog()
	r.answer(errEnded)
	if out == replay.OtherMode {
		return out, err // somebody else goes on
	}
	text := "stopped"
	if out == replay.Gone && r.Status().Description == "remote image no longer exists" {
		text = "remote image no longer exists"
	}
	r.reports.update(func(s *replay.Status) { s.Phase = replay.Stopping })
	r.set(replay.StateStopped, text, replay.Stopped, func(s *replay.Status) { s.Err = err })
	return out, err
}

// finish closes everything once the calls that still hang have come back.
func (r *Replayer) finish() {
	r.unwatchRemote()
	go func() {
		r.calls.wg.Wait()
		r.remote.close()
		r.local.close()
		close(r.closed)
	}()
}

func (r *Replayer) answer(err error) {
	for {
		select {
		case f := <-r.flushes:
			f <- err
		default:
			return
		}
	}
}

func (r *Replayer) run(ctx context.Context) (replay.Outcome, error) {
	failures := 0
	poll := restPoll
	for {
		began := time.Now()
		out, v, err := r.pass(ctx)
		wait := poll
		switch {
		case ctx.Err() != nil:
			return replay.Ended, nil
		case out != replay.Ended:
			return out, err
		case err != nil:
			failures++
			wait = r.backoff(failures)
			r.failed(err, failures, time.Now().Add(wait))
			r.log.Warn().Err(err).Int("failures", failures).Dur("retry_in", wait).Msg("replication of the image")
			r.answer(err)
			if errors.Is(err, target.ErrUncertain) || errors.Is(err, imagesync.ErrUncertain) {
				// The lock stays, until this client is shut out.
				r.lock = heldLock{}
				return replay.LostLocal, err
			}
			r.letGo()
			r.unwatchRemote()
			r.unwatchLocalLog()
			if lost, ok := lostConnection(err); ok {
				return lost, err
			}
		case v.step.Kind.Work():
			failures = 0
			continue // look again at once
		default:
			failures = 0
			r.answer(errors.New(v.step.Why))
			if v.step.Kind == course.Follow {
				poll = restPoll
				if time.Since(began) > restPoll {
					continue
				}
				break // whatever it is, not in a hurry
			}
			r.letGo()
			if r.listen(ctx, v) {
				continue // look again: something may have happened meanwhile
			}
			if poll = min(poll*3/2, restPollMax); v.step.Kind == course.LocalPrimary {
				wait = primaryPoll/2 + rand.N(primaryPoll)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		case <-r.check:
		case <-r.heard:
		}
		timer.Stop()
	}
}

// listen watches the headers of both journals while nothing can be done: they tell
// when the role of an image changes. It reports whether a watch was made.
func (r *Replayer) listen(ctx context.Context, v *view) (made bool) {
	if l := v.local; l != nil && l.image != nil && l.image.Journal {
		if r.localLog == nil || r.localLogID != l.image.ID || r.localLog.err() != nil {
			made = true
			if err := r.watchLocalLog(l.image.ID); err != nil {
				r.log.Debug().Err(err).Msg("watching the local journal")
				made = false
			}
		}
	}
	if v.step.Kind == course.LocalPrimary {
		r.unwatchRemote()
		return made
	}
	if m := v.remote; m != nil && m.image != nil && m.image.Journal {
		before := r.remoteLog
		if err := r.watchRemote(ctx, m.image.ID); err != nil {
			r.log.Debug().Err(err).Msg("watching the remote journal")
		} else if r.remoteLog != before {
			made = true
		}
	}
	return made
}

// backoff returns how long to wait after that many failures in a row.
func (r *Replayer) backoff(failures int) time.Duration {
	d := min(r.opts.RetryMin<<min(failures-1, 16), r.opts.RetryMax)
	return d/2 + rand.N(d)
}

// lostConnection reports whether a failure means that this client was shut out of a
// cluster.
func lostConnection(err error) (replay.Outcome, bool) {
	if !ceph.Is(err, syscall.ESHUTDOWN) {
		return replay.Ended, false
	}
	var remote remoteError
	if errors.As(err, &remote) {
		return replay.LostRemote, true
	}
	return replay.LostLocal, true
}

// failed reports a failure and when the next try is.
func (r *Replayer) failed(err error, failures int, next time.Time) {
	text := "error bootstrapping replay: " + err.Error()
	if r.replaying {
		text = "failed to replay: " + err.Error()
	}
	r.reports.update(func(s *replay.Status) {
		s.State, s.Description, s.Phase = replay.StateError, text, replay.Starting
		s.Syncing, s.Err, s.Failures, s.NextTry = false, err, failures, next.Round(0)
		wait(s, "")
	})
}

// open opens both sides.
func (r *Replayer) open(ctx context.Context) error {
	var err error
	if r.local == nil {
		if r.local, err = openSide(r.cfg.Local); err != nil {
			return err
		}
	}
	if r.remote == nil {
		r.remote, err = call(ctx, &r.calls, r.opts.CallTimeout, func() (*side, error) { return openSide(r.cfg.Remote) })
		if err != nil {
			return remotely(err)
		}
	}
	return nil
}

// pass looks at both images and takes one step.
func (r *Replayer) pass(ctx context.Context) (replay.Outcome, *view, error) {
	if err := r.open(ctx); err != nil {
		return replay.Ended, nil, err
	}
	v, err := r.look(ctx)
	if err != nil {
		return replay.Ended, nil, err
	}
	r.identify(v)
	kind := v.step.Kind
	r.log.Debug().Stringer("step", kind).Str("why", v.step.Why).Msg("next step")
	if kind.Work() || kind == course.Follow {
		if !r.mayWrite() {
			return replay.Ended, v, errLease
		}
	}
	switch kind {
	case course.Gone:
		return replay.Gone, v, nil
	case course.OtherMode:
		return replay.OtherMode, v, nil
	case course.Register:
		err = r.register(ctx, v)
	case course.Create:
		err = r.create(ctx, v)
	case course.Copy:
		err = r.copy(ctx, v)
	case course.Follow:
		err = r.follow(ctx, v)
	case course.Purge:
		r.letGo()
		r.unwatchLocalLog()
		err = deletion.Purge(ctx, r.doomed(v.local.image.ID))
	case course.Delete:
		err = r.delete(ctx, v)
		if err == nil && !v.step.Resync {
			r.set(replay.StateStopped, "remote image no longer exists", replay.Stopped)
			return replay.Gone, v, nil
		}
	default:
		return replay.Ended, v, r.rest(v)
	}
	return replay.Ended, v, err
}

// rest reports a state in which there is nothing to do.
func (r *Replayer) rest(v *view) error {
	step := v.step
	was := r.replaying
	r.replaying = false
	note := func(s *replay.Status) { wait(s, step.Why) }
	switch step.Kind {
	case course.LocalPrimary:
		if was {
			step.Text = "force promoted"
		}
		r.set(replay.StateStopped, step.Text, replay.Stopped)
	case course.SplitBrain:
		r.set(replay.StateError, step.Text, replay.Starting, note, func(s *replay.Status) { s.Err = errors.New(step.Why) })
	case course.Broken:
		return errors.New(step.Why)
	case course.Wait:
		state := replay.StateUnknown
		if step.Text == "disconnected" || step.Text == "image in transient state, try again" {
			state = replay.StateError
		}
		if step.Text == "remote image no longer exists" {
			state = replay.StateStopped
		}
		r.set(state, step.Text, replay.Starting, note)
	default:
		r.set(replay.StateUnknown, step.Text, replay.Starting, note)
	}
	return nil
}

// identify notes which images it is about.
func (r *Replayer) identify(v *view) {
	r.reports.update(func(s *replay.Status) {
		if l := v.local; l != nil && l.image != nil {
			s.LocalID = l.image.ID
			if l.name != "" {
				s.LocalName = l.name
			}
		}
		if m := v.remote; m != nil && m.image != nil {
			s.RemoteID = m.image.ID
		}
		s.Primary = v.step.Kind == course.LocalPrimary
	})
}

// register makes the remote journal keep its entries for us.
func (r *Replayer) register(ctx context.Context, v *view) error {
	j := r.remote.journal(v.remote.image.ID)
	data := &format.PeerClient{ImageID: v.step.Image, State: format.Replaying}
	err := do(ctx, &r.calls, r.opts.CallTimeout, func() error {
		err := j.Register(r.cfg.Local.MirrorUUID, data)
		if ceph.Is(err, syscall.EEXIST) {
			err = nil
		}
		return err
	})
	if err != nil {
		return remotely(fmt.Errorf("registering with the remote journal: %w", err))
	}
	r.calls.wg.Go(func() { _ = j.Notify() })
	return nil
}

// updatePeer replaces what our client says in the remote journal.
func (r *Replayer) updatePeer(ctx context.Context, image string, data *format.PeerClient) error {
	j := r.remote.journal(image)
	err := do(ctx, &r.calls, r.opts.CallTimeout, func() error { return j.UpdateData(r.cfg.Local.MirrorUUID, data) })
	if err != nil {
		return remotely(fmt.Errorf("updating our client of the remote journal: %w", err))
	}
	r.calls.wg.Go(func() { _ = j.Notify() })
	return nil
}

func (r *Replayer) doomed(id string) deletion.Image {
	return deletion.Image{
		Conn: r.cfg.Local.Conn, IO: r.local.ioctx, ID: id, Lease: r.cfg.Lease, Log: r.log,
		Primary: func(*store.Image) (bool, error) {
			newest, _, err := r.local.journal(id).Owner()
			if ceph.Is(err, syscall.ENOENT) {
				return false, nil // no journal, or one that was never complete
			}
			return err == nil && newest.MirrorUUID == format.LocalUUID, err
		},
	}
}

// delete moves the local image to the trash. Its journal is made anew, so that
// whoever gets the image back can use it, and it is not linked with its past.
func (r *Replayer) delete(ctx context.Context, v *view) error {
	r.letGo()
	r.unwatchLocalLog()
	id := v.local.image.ID
	text := "remote image no longer exists"
	var delay time.Duration
	if v.step.Resync {
		text = "resync requested"
	} else {
		delay = deletion.Delay(r.cfg.Local.Conn, r.local.ioctx, v.local.head)
	}
	opts := deletion.MoveOptions{Delay: delay, Allowed: func(*store.Image) error {
		newest, master, err := r.local.journal(id).Owner()
		if err != nil {
			return err
		}
		linked := newest.MirrorUUID == r.cfg.Remote.MirrorUUID
		asked := v.step.Resync && (master.ResyncRequested || r.tune.ResyncAfterDisconnect)
		if newest.MirrorUUID == format.LocalUUID || !linked && !asked {
			return errNoLonger
		}
		return nil
	}}
	r.set(replay.StateStopped, text, replay.Stopping)
	r.log.Info().Str("id", id).Str("why", v.step.Why).Dur("delay", delay).Msg("moving the local image to the trash")
	if err := deletion.Move(ctx, r.doomed(id), opts); err != nil {
		return err
	}
	if delay == 0 {
		return nil // it is purged at once
	}
	return r.resetJournal(id)
}

// resetJournal makes the journal of an image in the trash one of its own.
func (r *Replayer) resetJournal(id string) error {
	j := r.local.journal(id)
	g, err := j.Geometry()
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := r.local.dataContext(g.Pool)
	if err != nil {
		return err
	}
	if err := j.Remove(data, g); err != nil {
		return err
	}
	if _, err := store.NewHeader(r.local.ioctx, id).Load(); ceph.Is(err, syscall.ENOENT) {
		return nil // it is purged already
	}
	pool := g.Pool
	if pool == r.local.ioctx.GetPoolID() {
		pool = -1
	}
	return j.Create(g.Order, g.Splay, pool, format.LocalUUID)
}

// heldLock is the exclusive lock on the local image.
type heldLock struct{ image, cookie string }

func (l heldLock) held() bool { return l.image != "" }

// rofs is what requests for the lock are answered with: that it is not given up.
var rofs = cls.EncodeHeaderResponse(-int32(syscall.EROFS))

// watchLocal watches the header of the local image and that of its journal.
func (r *Replayer) watchLocal(id string) error {
	if r.watch != nil && r.watchedID == id && r.watch.err() == nil && r.localLog != nil && r.localLogID == id && r.localLog.err() == nil {
		return nil
	}
	r.letGo()
	own := r.local.client
	w, err := newWatch(r.local.ioctx, store.HeaderObject(id), func(n *ceph.Notification) []byte {
		if n == nil || n.Notifier == own {
			poke(r.check)
			return nil
		}
		m, err := cls.DecodeHeaderNotify(n.Data)
		if err != nil {
			return nil
		}
		if m.Op == cls.HeaderRequestLock {
			poke(r.check)
			return rofs
		}
		if m.Op == cls.HeaderUpdate {
			poke(r.check)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.watch, r.watchedID = w, id
	return r.watchLocalLog(id)
}

// watchLocalLog watches the header of the local journal.
func (r *Replayer) watchLocalLog(id string) (err error) {
	if r.localLog != nil && r.localLogID == id && r.localLog.err() == nil {
		return nil
	}
	r.unwatchLocalLog()
	r.localLogID = id
	r.localLog, err = newWatch(r.local.ioctx, format.HeaderName(id), func(*ceph.Notification) []byte {
		poke(r.check)
		return nil
	})
	return err
}

func (r *Replayer) unwatchLocalLog() {
	if w := r.localLog; w != nil {
		r.localLog = nil
		if err := w.close(); err != nil && !ceph.Is(err, syscall.ENOENT, syscall.ENOTCONN) {
			r.log.Debug().Err(err).Msg("closing the watch on the local journal")
		}
	}
}

// watchRemote watches the header of the remote journal.
func (r *Replayer) watchRemote(ctx context.Context, id string) error {
	if r.remoteLog != nil && r.remoteLogID == id && r.remoteLog.err() == nil {
		return nil
	}
	r.unwatchRemote()
	type result struct{ w *watch }
	res, err := call(ctx, &r.calls, r.opts.CallTimeout, func() (result, error) {
		w, err := newWatch(r.remote.ioctx, format.HeaderName(id), func(*ceph.Notification) []byte {
			poke(r.heard)
			return nil
		})
		if err == nil && ctx.Err() != nil {
			_ = w.close()
			return result{}, ctx.Err()
		}
		return result{w}, err
	})
	if err != nil {
		return remotely(err)
	}
	r.remoteLog, r.remoteLogID = res.w, id
	return nil
}

// unwatchRemote ends the watch on the remote journal without waiting for it.
func (r *Replayer) unwatchRemote() {
	if w := r.remoteLog; w != nil {
		r.remoteLog = nil
		r.calls.wg.Go(func() { _ = w.close() })
	}
}

// letGo gives up all that keeps others from the local image, and everything that
// stands for work on it.
func (r *Replayer) letGo() {
	r.unlock()
	if w := r.watch; w != nil {
		r.watch = nil
		if err := w.close(); err != nil && !ceph.Is(err, syscall.ENOENT, syscall.ENOTCONN) {
			r.log.Debug().Err(err).Msg("closing the watch on the local image")
		}
	}
	if id := r.watchedID; id != "" {
		r.watchedID = ""
		// A promotion looks again who is there when it hears this.
		r.calls.wg.Go(func() { _ = store.NewHeader(r.local.ioctx, id).Notify() })
	}
	if r.slot != nil {
		r.slot()
		r.slot = nil
	}
}

// takeLock takes the exclusive lock on the local image, from a dead holder if need
// be. It returns who held it before, empty for nobody.
func (r *Replayer) takeLock(id string) (before string, err error) {
	cookie := cls.AutoCookie(r.watch.watch.Cookie())
	lock := store.NewLock(r.local.ioctx, store.HeaderObject(id))
	for range 5 {
		holder, err := lock.Holder()
		if err != nil {
			return "", err
		}
		if holder != nil {
			before = name(holder.Entity.Num, holder.Cookie)
			if before == r.lockName(cookie) {
				r.lock = heldLock{id, cookie}
				return before, nil
			}
			if err := r.breakLock(lock, *holder); err != nil {
				return "", err
			}
		}
		err = lock.Acquire(cookie)
		if err == nil {
			r.lock = heldLock{id, cookie}
			return before, nil
		}
		if !ceph.Is(err, syscall.EBUSY) {
			return "", err
		}
	}
	return "", fmt.Errorf("the lock of the local image changes hands all the time: %w", syscall.EBUSY)
}

// lockName is what the copy's record calls our lock.
func (r *Replayer) lockName(cookie string) string { return name(int64(r.local.client), cookie) }

func name(client int64, cookie string) string { return fmt.Sprintf("client.%d %s", client, cookie) }

func (r *Replayer) breakLock(lock *store.Lock, holder cls.Locker) error {
	if holder.Entity.Type == cls.EntityClient && holder.Entity.Num == int64(r.local.client) {
		// A watch of ours that is gone. Only this process could have it.
		alive, err := lock.Alive(holder)
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("the local image is locked by another part of this process: %w", syscall.EBUSY)
		}
		return lock.Break(holder)
	}
	err := lock.BreakDead(r.cfg.Local.Conn, holder, false, 0)
	switch {
	case err == nil:
		r.log.Info().Stringer("holder", holder.Entity).Stringer("address", holder.Addr).Msg("broke the lock of a dead client on the local image")
		return nil
	case ceph.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the local image is locked by %s at %s: %w", holder.Entity, holder.Addr, syscall.EBUSY)
	case ceph.Is(err, syscall.ESTALE):
		return nil
	}
	return err
}

// unlock releases the lock on the local image.
func (r *Replayer) unlock() {
	if !r.lock.held() {
		return
	}
	l := r.lock
	r.lock = heldLock{}
	if err := store.NewLock(r.local.ioctx, store.HeaderObject(l.image)).Release(l.cookie); err != nil {
		r.log.Debug().Err(err).Msg("releasing the lock of the local image")
	}
}
