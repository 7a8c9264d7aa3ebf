package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/election/message"
	"cephmirror/rbdmirror/election/slots"
)

// startWait is how long one that was promised a slot waits to be told to start
// before it asks again.
const startWait = 30 * time.Second

// slotRequest is an instance's request for a slot, at the leader.
type slotRequest struct {
	sp     *space
	from   string
	answer func(error)
}

// requestSlot is asked by an instance for a slot.
func (m *Member) requestSlot(sp *space, from, syncID string, answer func(error)) {
	key := slots.Key{Namespace: sp.ns, SyncID: syncID}
	w := slots.Waiter[*slotRequest]{Key: key, ID: &slotRequest{sp, from, answer}}
	m.mu.Lock()
	if !m.leadingLocked() {
		m.mu.Unlock()
		answer(syscall.ESTALE)
		return
	}
	granted, replaced := m.slots.Start(w)
	m.mu.Unlock()
	if replaced != nil {
		replaced.ID.answer(nil) // the newer request waits in its place
	}
	if granted {
		m.grant([]slots.Waiter[*slotRequest]{w})
	}
}

// grant tells instances that they have a slot, each of which is given back when
// the instance answers to that.
func (m *Member) grant(ws []slots.Waiter[*slotRequest]) {
	for _, w := range ws {
		w.ID.answer(nil)
		exit, err := m.enter()
		if err != nil {
			continue
		}
		m.mu.Lock()
		m.granted[w.Key]++
		m.mu.Unlock()
		go func() {
			defer exit()
			m.useSlot(w)
		}()
	}
}

func (m *Member) useSlot(w slots.Waiter[*slotRequest]) {
	ctx, cancel, err := m.toward(m.work, w.Key.Namespace, w.ID.from)
	if err == nil {
		err = m.send(ctx, w.ID.sp, w.ID.from, message.Instance{Op: message.SyncStart, SyncID: w.Key.SyncID})
		cancel()
	}
	if err != nil {
		m.log.Debug().Err(err).Str("image", w.Key.SyncID).Msg("a synchronisation of another instance")
	}
	if errors.Is(err, ErrNotLeader) {
		return // the slots are forgotten
	}
	m.mu.Lock()
	var next []slots.Waiter[*slotRequest]
	if m.granted[w.Key]--; m.granted[w.Key] <= 0 {
		delete(m.granted, w.Key)
		next = m.slots.Finish(w.Key)
	}
	m.mu.Unlock()
	m.grant(next)
}

// syncing is a synchronisation of this instance that waits for a slot or has
// one.
type syncing struct {
	once    sync.Once
	started chan struct{} // closed when it may begin
	ended   chan struct{} // closed when the slot is given back
}

// Throttle hands out slots that the leader grants to all instances of the pool.
type Throttle struct {
	m         *Member
	namespace string
}

// Throttle returns the source of slots for synchronisations in a namespace.
func (m *Member) Throttle(namespace string) *Throttle { return &Throttle{m, namespace} }

// Acquire waits for a slot for the local image with this id. The slot is given
// back by release.
func (t *Throttle) Acquire(ctx context.Context, localImageID string) (release func(), err error) {
	m := t.m
	sp, exit, err := m.use(t.namespace)
	if err != nil {
		return nil, err
	}
	defer exit()
	ctx, cancel := m.within(ctx)
	defer cancel()
	key := slots.Key{Namespace: t.namespace, SyncID: localImageID}
	s := &syncing{started: make(chan struct{}), ended: make(chan struct{})}
	for {
		m.mu.Lock()
		older := m.syncs[key]
		if older == nil {
			m.syncs[key] = s
			m.mu.Unlock()
			break
		}
		m.mu.Unlock()
		select {
		case <-older.ended:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a slot to synchronise: %w", context.Cause(ctx))
		}
	}
	end := func() {
		m.mu.Lock()
		delete(m.syncs, key)
		m.mu.Unlock()
		close(s.ended)
	}
	select {
	case m.asking <- struct{}{}:
		err = m.waitForSlot(ctx, sp, s, localImageID)
		<-m.asking
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return nil, fmt.Errorf("waiting for a slot to synchronise: %w", err)
	}
	var once sync.Once
	return func() { once.Do(end) }, nil
}

func (m *Member) waitForSlot(ctx context.Context, sp *space, s *syncing, syncID string) error {
	for {
		m.mu.Lock()
		leader, changed := m.leader, m.changed
		m.mu.Unlock()
		if leader == "" {
			select {
			case <-changed:
				continue
			case <-s.started:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		// What is being asked of one that no longer leads is of no use.
		asking, stop := context.WithCancel(ctx)
		answer := make(chan error, 1)
		m.users.begin()
		go func() {
			defer m.users.end()
			answer <- m.send(asking, sp, leader, message.Instance{Op: message.SyncRequest, SyncID: syncID})
		}()
		again := time.NewTimer(24 * time.Hour)
		for asked := true; asked; {
			select {
			case err := <-answer:
				switch {
				case err == nil:
					again.Reset(startWait)
				case ceph.Is(err, syscall.ESTALE):
					// It does not know yet that it leads, or no longer leads.
					again.Reset(time.Second / 2)
				default:
					m.log.Debug().Err(err).Msg("asking for a slot")
					again.Reset(2 * time.Second)
				}
			case <-s.started:
				again.Stop()
				stop()
				return nil
			case <-changed:
				asked = false
			case <-again.C:
				asked = false
			case <-ctx.Done():
				again.Stop()
				stop()
				return context.Cause(ctx)
			}
		}
		again.Stop()
		stop()
	}
}

// startSync is told by the leader that a synchronisation has a slot. The answer
// gives it back.
func (m *Member) startSync(sp *space, syncID string, answer func(error)) {
	m.mu.Lock()
	s := m.syncs[slots.Key{Namespace: sp.ns, SyncID: syncID}]
	m.mu.Unlock()
	if s == nil {
		answer(nil) // it is no longer wanted
		return
	}
	s.once.Do(func() { close(s.started) })
	m.wg.Go(func() {
		select {
		case <-s.ended:
		case <-sp.ctx.Done():
		}
		answer(nil)
	})
}
