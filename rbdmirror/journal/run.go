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
	"cephmirror/rbdmirror/replica"
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
func (r *Replayer) Run(ctx context.Context) (replica.Outcome, error) {
	defer r.finish()
	r.reports.Starting()
	out, err := r.run(ctx)
	r.letGo()
	r.unwatchLocalLog()
	r.answer(errEnded)
	r.reports.Ended(out, err)
	return out, err
}

// finish closes everything once the calls that still hang have come back.
func (r *Replayer) finish() {
	r.unwatchRemote()
	r.pair.Close()
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

func (r *Replayer) run(ctx context.Context) (replica.Outcome, error) {
	failures := 0
	poll := restPoll
	for {
		began := time.Now()
		out, v, err := r.pass(ctx)
		wait := poll
		switch {
		case ctx.Err() != nil:
			return replica.Ended, nil
		case out != replica.Ended:
			return out, err
		case err != nil:
			failures++
			wait = r.opts.Retry(err, failures)
			r.reports.Failed(replica.Explain(err, r.replaying), err, failures, time.Now().Add(wait))
			r.log.Warn().Err(err).Int("failures", failures).Dur("retry_in", wait).Msg("replication of the image")
			r.answer(err)
			if errors.Is(err, target.ErrUncertain) || errors.Is(err, imagesync.ErrUncertain) {
				// The lock stays, until this client is shut out.
				r.lock = replica.Lock{}
				return replica.LostLocal, err
			}
			r.letGo()
			r.unwatchRemote()
			r.unwatchLocalLog()
			if lost, ok := replica.LostConnection(err); ok {
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
		if r.localLog == nil || r.localLogID != l.image.ID || r.localLog.Err() != nil {
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

// pass looks at both images and takes one step.
func (r *Replayer) pass(ctx context.Context) (replica.Outcome, *view, error) {
	if err := r.pair.Open(ctx, r.cfg.Local, r.cfg.Remote); err != nil {
		return replica.Ended, nil, err
	}
	v, err := r.look(ctx)
	if err != nil {
		return replica.Ended, nil, err
	}
	r.identify(v)
	kind := v.step.Kind
	r.log.Debug().Stringer("step", kind).Str("why", v.step.Why).Msg("next step")
	if kind.Work() || kind == course.Follow {
		if !r.mayWrite() {
			return replica.Ended, v, errLease
		}
	}
	switch kind {
	case course.Gone:
		return replica.Gone, v, nil
	case course.OtherMode:
		return replica.OtherMode, v, nil
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
			r.set(replica.StateStopped, "remote image no longer exists", replica.Stopped)
			return replica.Gone, v, nil
		}
	default:
		return replica.Ended, v, r.rest(v)
	}
	return replica.Ended, v, err
}

// rest reports a state in which there is nothing to do.
func (r *Replayer) rest(v *view) error {
	step := v.step
	was := r.replaying
	r.replaying = false
	note := func(s *replica.Status) { s.Wait(step.Why) }
	switch step.Kind {
	case course.LocalPrimary:
		if was {
			r.forced = time.Now()
		}
		if time.Since(r.forced) < primaryPoll/4 {
			step.Text = "force promoted"
		}
		r.set(replica.StateStopped, step.Text, replica.Stopped)
	case course.SplitBrain:
		r.set(replica.StateError, step.Text, replica.Starting, note, func(s *replica.Status) { s.Err = errors.New(step.Why) })
	case course.Broken:
		return errors.New(step.Why)
	case course.Wait:
		state := replica.StateUnknown
		if step.Text == "disconnected" || step.Text == "image in transient state, try again" {
			state = replica.StateError
		}
		if step.Text == "remote image no longer exists" {
			state = replica.StateStopped
		}
		r.set(state, step.Text, replica.Starting, note)
	default:
		r.set(replica.StateUnknown, step.Text, replica.Starting, note)
	}
	return nil
}

// identify notes which images it is about.
func (r *Replayer) identify(v *view) {
	r.reports.Update(func(s *replica.Status) {
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
	j := journalOf(r.pair.Remote, v.remote.image.ID)
	data := &format.PeerClient{ImageID: v.step.Image, State: format.Replaying}
	err := replica.Do(ctx, &r.pair.Calls, r.opts.CallTimeout, func() error {
		err := j.Register(r.cfg.Local.MirrorUUID, data)
		if ceph.Is(err, syscall.EEXIST) {
			err = nil
		}
		return err
	})
	if err != nil {
		return replica.Remotely(fmt.Errorf("registering with the remote journal: %w", err))
	}
	r.pair.Calls.Go(func() { _ = j.Notify() })
	return nil
}

// updatePeer replaces what our client says in the remote journal.
func (r *Replayer) updatePeer(ctx context.Context, image string, data *format.PeerClient) error {
	j := journalOf(r.pair.Remote, image)
	err := replica.Do(ctx, &r.pair.Calls, r.opts.CallTimeout, func() error { return j.UpdateData(r.cfg.Local.MirrorUUID, data) })
	if err != nil {
		return replica.Remotely(fmt.Errorf("updating our client of the remote journal: %w", err))
	}
	r.pair.Calls.Go(func() { _ = j.Notify() })
	return nil
}

func (r *Replayer) doomed(id string) deletion.Image {
	return deletion.Image{
		Conn: r.cfg.Local.Conn, IO: r.pair.Local.IO, ID: id, Lease: r.cfg.Lease, Log: r.log,
		Primary: func(*store.Image) (bool, error) {
			newest, _, err := journalOf(r.pair.Local, id).Owner()
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
		delay = deletion.Delay(r.cfg.Local.Conn, r.pair.Local.IO, v.local.head)
	}
	opts := deletion.MoveOptions{Delay: delay, Allowed: func(*store.Image) error {
		newest, master, err := journalOf(r.pair.Local, id).Owner()
		if err != nil {
			return err
		}
		linked := newest.MirrorUUID == r.cfg.Remote.MirrorUUID
		asked := v.step.Resync && (master.ResyncRequested || r.tuning(v.local.head).ResyncAfterDisconnect)
		if newest.MirrorUUID == format.LocalUUID || !linked && !asked {
			return errNoLonger
		}
		return nil
	}}
	r.set(replica.StateStopped, text, replica.Stopping)
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
	j := journalOf(r.pair.Local, id)
	g, err := j.Geometry()
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := r.pair.Local.DataContext(g.Pool)
	if err != nil {
		return err
	}
	if err := j.Remove(data, g); err != nil {
		return err
	}
	if _, err := store.NewHeader(r.pair.Local.IO, id).Load(); ceph.Is(err, syscall.ENOENT) {
		return nil // it is purged already
	}
	pool := g.Pool
	if pool == r.pair.Local.IO.GetPoolID() {
		pool = -1
	}
	return j.Create(g.Order, g.Splay, pool, format.LocalUUID)
}

// What requests for the lock are answered with: that it is not given up, or that
// it will be soon.
var (
	rofs = cls.EncodeHeaderResponse(-int32(syscall.EROFS))
	soon = cls.EncodeHeaderResponse(0)
)

// answerLimit is how long it may take to find out which it is. Who asks waits for
// 5 s.
const answerLimit = 2 * time.Second

// answerRequest answers a request for the lock of the local image. Who promotes it
// does not ask for the lock, and is done before the promotion is noticed here: the
// first write then is not to fail for that.
func (r *Replayer) answerRequest(id string) []byte {
	promoted, err := replica.Ask(context.Background(), &r.pair.Calls, answerLimit, func() (bool, error) {
		newest, _, err := journalOf(r.pair.Local, id).Owner()
		return newest.MirrorUUID == format.LocalUUID, err
	})
	if err == nil && promoted {
		return soon
	}
	return rofs
}

// watchLocal watches the header of the local image and that of its journal.
func (r *Replayer) watchLocal(id string) error {
	if r.watch != nil && r.watchedID == id && r.watch.Err() == nil && r.localLog != nil && r.localLogID == id && r.localLog.Err() == nil {
		return nil
	}
	r.letGo()
	own := r.pair.Local.Client
	w, err := r.pair.Local.Watch(store.HeaderObject(id), func(n *ceph.Notification) []byte {
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
			return r.answerRequest(id)
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
	if r.localLog != nil && r.localLogID == id && r.localLog.Err() == nil {
		return nil
	}
	r.unwatchLocalLog()
	r.localLogID = id
	r.localLog, err = r.pair.Local.Watch(format.HeaderName(id), func(*ceph.Notification) []byte {
		poke(r.check)
		return nil
	})
	return err
}

func (r *Replayer) unwatchLocalLog() {
	if w := r.localLog; w != nil {
		r.localLog = nil
		if err := w.Close(); err != nil && !ceph.Is(err, syscall.ENOENT, syscall.ENOTCONN) {
			r.log.Debug().Err(err).Msg("closing the watch on the local journal")
		}
	}
}

// watchRemote watches the header of the remote journal.
func (r *Replayer) watchRemote(ctx context.Context, id string) error {
	if r.remoteLog != nil && r.remoteLogID == id && r.remoteLog.Err() == nil {
		return nil
	}
	r.unwatchRemote()
	w, err := replica.Call(ctx, &r.pair.Calls, r.opts.CallTimeout, func() (*replica.Watch, error) {
		return r.pair.Remote.Watch(format.HeaderName(id), func(*ceph.Notification) []byte {
			poke(r.heard)
			return nil
		})
	}, func(w *replica.Watch) { _ = w.Close() })
	if err != nil {
		return replica.Remotely(err)
	}
	r.remoteLog, r.remoteLogID = w, id
	return nil
}

// unwatchRemote ends the watch on the remote journal without waiting for it.
func (r *Replayer) unwatchRemote() {
	if w := r.remoteLog; w != nil {
		r.remoteLog = nil
		r.pair.Calls.Go(func() { _ = w.Close() })
	}
}

// letGo gives up all that keeps others from the local image, and everything that
// stands for work on it.
func (r *Replayer) letGo() {
	r.unlock()
	if w := r.watch; w != nil {
		r.watch = nil
		if err := w.Close(); err != nil && !ceph.Is(err, syscall.ENOENT, syscall.ENOTCONN) {
			r.log.Debug().Err(err).Msg("closing the watch on the local image")
		}
	}
	if id := r.watchedID; id != "" {
		r.watchedID = ""
		// A promotion looks again who is there when it hears this.
		r.pair.Calls.Go(func() { _ = store.NewHeader(r.pair.Local.IO, id).Notify() })
	}
	if r.slot != nil {
		r.slot()
		r.slot = nil
	}
}

// takeLock takes the exclusive lock on the local image, from a dead holder if need
// be. It returns who held it before, empty for nobody.
func (r *Replayer) takeLock(id string) (before string, err error) {
	lock, holder, err := r.pair.Lock(r.log, id, r.watch.Cookie())
	if err != nil {
		return "", err
	}
	r.lock = lock
	if holder != nil {
		before = name(holder.Entity.Num, holder.Cookie)
	}
	return before, nil
}

// lockName is what the copy's record calls our lock.
func (r *Replayer) lockName(cookie string) string { return name(int64(r.pair.Local.Client), cookie) }

func name(client int64, cookie string) string { return fmt.Sprintf("client.%d %s", client, cookie) }

// unlock releases the lock on the local image.
func (r *Replayer) unlock() {
	l := r.lock
	r.lock = replica.Lock{}
	r.pair.Unlock(r.log, l)
}
