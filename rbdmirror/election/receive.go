package election

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/election/message"
	"cephmirror/rbdmirror/store"
)

// requestKey tells a request from others: a sender that has no answer in time
// sends it again.
type requestKey struct{ sender, id uint64 }

// request is one that is being carried out, and its latest arrival, which is
// the one to be answered.
type request struct {
	watch *ceph.Watch
	note  ceph.Notification
}

// receive reads the letter box until the space ends.
func (sp *space) receive() {
	defer close(sp.idle)
	sp.mu.Lock()
	watch := sp.watch
	sp.mu.Unlock()
	for {
		select {
		case <-sp.ctx.Done():
			return
		case n := <-watch.Events():
			sp.open(watch, n)
		case err := <-watch.Errors():
			if sp.m.failed(err) {
				return
			}
			sp.m.log.Info().Err(err).Str("namespace", sp.ns).Msg("the watch on the own object was lost")
			if watch = sp.rewatch(watch); watch == nil {
				return
			}
		}
	}
}

// rewatch replaces a watch that was lost, in the lock's cookie too. It returns
// nil when the space ends.
func (sp *space) rewatch(old *ceph.Watch) *ceph.Watch {
	m := sp.m
	sp.mu.Lock()
	sp.watch = nil
	sp.mu.Unlock()
	closeWatch(&m.calls, old)
	for first := true; first || pause(sp.ctx, time.Second); first = false {
		watch, err := callWatch(sp.ctx, &m.calls, func() (*ceph.Watch, error) {
			w, err := ceph.NewWatch(sp.ioctx, sp.object, m.watchTimeout)
			if err != nil {
				return nil, err
			}
			lock := store.NewLock(sp.ioctx, sp.object)
			if err := lock.SetCookie(cls.AutoCookie(old.Cookie()), cls.AutoCookie(w.Cookie())); err != nil {
				return nil, errors.Join(err, w.Close())
			}
			return w, nil
		})
		switch {
		case err == nil:
			sp.mu.Lock()
			defer sp.mu.Unlock()
			sp.watch = watch
			return watch
		case sp.ctx.Err() != nil || m.failed(err):
			return nil
		case ceph.Is(err, syscall.ENOENT, syscall.EBUSY):
			m.fenced(fmt.Errorf("another instance has removed this one: %w", err))
			return nil
		}
		m.log.Warn().Err(err).Str("namespace", sp.ns).Msg("watching the own object again")
	}
	return nil
}

// open reads one message and has it carried out.
func (sp *space) open(watch *ceph.Watch, n ceph.Notification) {
	msg, err := message.DecodeInstance(n.Data)
	if err != nil || !msg.Op.Known() {
		sp.ack(watch, n, nil)
		return
	}
	key := requestKey{n.Notifier, msg.RequestID}
	r := &request{watch, n}
	sp.mu.Lock()
	if under := sp.requests[key]; under != nil {
		*under = *r
		sp.mu.Unlock()
		return
	}
	sp.requests[key] = r
	sp.mu.Unlock()
	sender := strconv.FormatUint(n.Notifier, 10)
	answer := func(err error) {
		sp.mu.Lock()
		delete(sp.requests, key)
		latest := *r
		sp.mu.Unlock()
		a := message.Ack{Instance: sender, RequestID: msg.RequestID, Result: result(err)}
		sp.ack(latest.watch, latest.note, a.Encode())
	}
	m, h := sp.m, sp.m.cfg.Handler
	m.log.Debug().Stringer("request", msg.Op).Str("from", sender).Str("image", msg.GlobalID+msg.SyncID).Msg("asked")
	switch msg.Op {
	case message.ImageAcquire:
		sp.enqueue(msg.GlobalID, func() {
			if m.isLeaving() {
				answer(syscall.EAGAIN)
				return
			}
			answer(h.Acquire(sp.ctx, sp.ns, msg.GlobalID))
		})
	case message.ImageRelease:
		sp.enqueue(msg.GlobalID, func() { answer(h.Release(sp.ctx, sp.ns, msg.GlobalID)) })
	case message.PeerImageRemoved:
		sp.enqueue(msg.GlobalID, func() { answer(h.PeerRemoved(sp.ctx, sp.ns, msg.GlobalID, msg.MirrorUUID)) })
	case message.SyncRequest:
		m.requestSlot(sp, sender, msg.SyncID, answer)
	case message.SyncStart:
		m.startSync(sp, msg.SyncID, answer)
	}
}

func (m *Member) isLeaving() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaving
}

// result is what an answer says of an error.
func result(err error) int32 {
	if err == nil {
		return 0
	}
	if errno := ceph.Errno(err); errno != 0 {
		return -int32(errno)
	}
	return -int32(syscall.EIO)
}

func (sp *space) ack(watch *ceph.Watch, n ceph.Notification, payload []byte) {
	if err := watch.Ack(n, payload); err != nil && sp.ctx.Err() == nil {
		sp.m.log.Debug().Err(err).Msg("acknowledging a message")
	}
}

// enqueue has f carried out after what is being done for the same image.
func (sp *space) enqueue(image string, f func()) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	queue, busy := sp.queues[image]
	sp.queues[image] = append(queue, f)
	if busy {
		return
	}
	sp.m.wg.Go(func() {
		for {
			sp.mu.Lock()
			queue := sp.queues[image]
			if len(queue) == 0 {
				delete(sp.queues, image)
				sp.mu.Unlock()
				return
			}
			f := queue[0]
			sp.queues[image] = queue[1:]
			sp.mu.Unlock()
			f()
		}
	})
}
