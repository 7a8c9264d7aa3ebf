package election

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/election/machine"
	"cephmirror/rbdmirror/election/message"
	"cephmirror/rbdmirror/election/slots"
	"cephmirror/rbdmirror/store"
)

const (
	// beatTimeout and probeTimeout are how long the cluster waits for those who
	// do not answer.
	beatTimeout  = 2 * time.Second
	probeTimeout = 3 * time.Second
	// releasedTimeout is how long those who do not answer hold up one who
	// leaves.
	releasedTimeout = time.Second
	// lockTries is how often a lock that changes hands is looked at again.
	lockTries = 4
	// mapPage is how much of the image map is read or changed at once.
	mapPage  = 1024
	mapBatch = 256
)

// passTime lets time pass for the machine.
func (m *Member) passTime() {
	for pause(m.work, tick) {
		m.mu.Lock()
		resign := m.resign
		m.resign = false
		m.mu.Unlock()
		if resign || !m.leased() {
			m.feed(machine.Resign{})
		}
		m.feed(machine.Tick{})
	}
}

// leased reports whether the host lets us go on.
func (m *Member) leased() bool { return m.cfg.Lease == nil || m.cfg.Lease.Valid() }

// feed tells the machine what happened and has carried out what it decides. It
// is called by goroutines of the member only.
func (m *Member) feed(ev machine.Event) {
	var after []func()
	m.mu.Lock()
	actions := m.machine.Handle(ev, now())
	rest := actions[:0]
	for _, a := range actions {
		if t, ok := a.(machine.Tell); ok {
			after = append(after, m.tell(t)...)
			continue
		}
		rest = append(rest, a)
	}
	m.mu.Unlock()
	for _, f := range after {
		f()
	}
	for _, a := range rest {
		m.wg.Go(func() {
			if result := m.carryOut(a); m.work.Err() == nil {
				m.feed(result)
			}
		})
	}
}

// tell passes something on to the engine. What it returns is to be called
// without the lock.
func (m *Member) tell(t machine.Tell) []func() {
	ev := Event{Namespace: t.Namespace, Instance: t.Instance}
	var after []func()
	switch t.What {
	case machine.LeaderGained:
		ev.Kind = LeaderGained
		m.lead, m.stopLead = context.WithCancelCause(m.work)
		m.log.Info().Msg("leading")
	case machine.LeaderLost:
		ev.Kind = LeaderLost
		after = m.stopLeading()
		m.log.Info().Msg("no longer leading")
	case machine.LeaderIs:
		ev.Kind = LeaderIs
		m.leader = t.Instance
		close(m.changed)
		m.changed = make(chan struct{})
	case machine.Joined:
		ev.Kind = InstanceJoined
		m.log.Info().Str("joined", t.Instance).Str("namespace", t.Namespace).Msg("an instance joined")
	case machine.Left:
		ev.Kind = InstanceLeft
		m.log.Info().Str("left", t.Instance).Str("namespace", t.Namespace).Msg("an instance left")
		to := target{t.Namespace, t.Instance}
		if s, ok := m.targets[to]; ok {
			s.end(ErrGone)
			delete(m.targets, to)
		}
		for _, w := range m.slots.Remove(func(w slots.Waiter[*slotRequest]) bool {
			return w.Key.Namespace == t.Namespace && w.ID.from == t.Instance
		}) {
			after = append(after, func() { w.ID.answer(ErrGone) })
		}
	}
	m.events = append(m.events, ev)
	select {
	case m.eventCh <- struct{}{}:
	default:
	}
	return after
}

// stopLeading ends what only a leader does.
func (m *Member) stopLeading() []func() {
	if m.lead == nil {
		return nil
	}
	m.stopLead(ErrNotLeader)
	m.lead = nil
	clear(m.targets)
	clear(m.granted)
	var after []func()
	for _, w := range m.slots.Drain() {
		after = append(after, func() { w.ID.answer(syscall.ESTALE) })
	}
	return after
}

// lose ends the leadership when the member ends without an orderly end to it.
func (m *Member) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lead == nil {
		return
	}
	m.stopLeading() // those who wait learn of it from whoever leads next
	m.events = append(m.events, Event{Kind: LeaderLost})
}

// deliver passes events on to the engine, in order.
func (m *Member) deliver() {
	for {
		select {
		case <-m.eventCh:
			m.flush()
		case <-m.work.Done():
			return
		}
	}
}

func (m *Member) flush() {
	m.mu.Lock()
	events := m.events
	m.events = nil
	m.mu.Unlock()
	if m.cfg.Handler.Event == nil {
		return
	}
	for _, ev := range events {
		m.cfg.Handler.Event(ev)
	}
}

// carryOut does what the machine decided.
func (m *Member) carryOut(a machine.Action) machine.Event {
	switch a := a.(type) {
	case machine.Try:
		got, err := call(m.work, &m.calls, func() (machine.Tried, error) { return m.try(a), nil })
		got.Err = errors.Join(got.Err, err)
		if ceph.Is(got.Err, syscall.EAGAIN) {
			m.log.Debug().Err(got.Err).Msg("trying to become the leader")
		} else if got.Err != nil && !m.failed(got.Err) && m.work.Err() == nil {
			m.log.Warn().Err(got.Err).Msg("trying to become the leader")
			m.note(got.Err)
		} else if got.Err == nil {
			m.note(nil)
		}
		return got
	case machine.Probe:
		reply, err := m.notify(m.root, message.LeaderObject, message.Probe.Encode(), probeTimeout)
		return machine.Probed{Leader: a.Leader, Alive: answered(reply, a.Leader), Err: err}
	case machine.Beat:
		return m.beat(a)
	case machine.ReadMembers:
		read, err := call(m.work, &m.calls, func() (machine.MembersRead, error) { return m.members(a.All) })
		if err != nil && !m.failed(err) && m.work.Err() == nil {
			m.log.Warn().Err(err).Msg("reading who is registered")
		}
		read.Err = err
		return read
	case machine.ProbeMember:
		return m.probeMember(a.ID)
	case machine.ShutOut:
		err := do(m.work, &m.calls, func() error { return m.shutOut(a.ID) })
		if err != nil && !m.failed(err) && m.work.Err() == nil {
			m.log.Warn().Err(err).Str("dead", a.ID).Msg("shutting a dead instance out")
		}
		return machine.Shut{ID: a.ID, Err: err}
	case machine.Check:
		ours, err := call(m.work, &m.calls, m.holds)
		m.failed(err)
		return machine.Checked{Asked: a.Asked, Ours: ours, Err: err}
	case machine.Unlock:
		err := do(m.work, &m.calls, m.unlock)
		if err == nil {
			m.say(m.work, message.LockReleased, releasedTimeout)
		} else if !m.failed(err) && m.work.Err() == nil {
			m.log.Warn().Err(err).Msg("giving up the leadership")
		}
		return machine.Unlocked{Err: err}
	}
	return machine.Tick{}
}

// notify asks the watchers of an object. That some do not answer is no error.
func (m *Member) notify(sp *space, object string, payload []byte, timeout time.Duration) (message.Reply, error) {
	raw, err := sp.notifier.Notify(m.work, object, payload, timeout)
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT) {
		m.failed(err)
		return message.Reply{}, fmt.Errorf("notifying %s: %w", object, err)
	}
	return message.DecodeReply(raw)
}

func answered(r message.Reply, instance string) bool {
	return slices.ContainsFunc(r.Acks, func(w message.Watcher) bool {
		return strconv.FormatUint(w.Client, 10) == instance
	})
}

func (m *Member) beat(a machine.Beat) machine.Event {
	if a.Announce {
		m.wg.Go(func() { m.say(m.work, message.LockAcquired, beatTimeout) })
	}
	reply, err := m.notify(m.root, message.LeaderObject, message.Heartbeat.Encode(), beatTimeout)
	if err != nil && m.work.Err() == nil {
		m.log.Warn().Err(err).Msg("sending a heartbeat")
	}
	out := machine.Beaten{Sent: a.Sent, Err: err}
	for _, w := range reply.Acks {
		out.Acks = append(out.Acks, strconv.FormatUint(w.Client, 10))
	}
	return out
}

// knock is what an instance is asked that has been silent: whatever it is, it
// acknowledges it.
var knock = message.Instance{Op: message.Op(message.Probe)}

// probeMember asks an instance at its letter boxes.
func (m *Member) probeMember(id string) machine.Event {
	m.mu.Lock()
	open := make([]*space, 0, len(m.spaces))
	for _, sp := range m.spaces {
		if sp.ns == "" || slices.Contains(m.others[sp.ns], id) {
			open = append(open, sp)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(open, func(a, b *space) int { return strings.Compare(a.ns, b.ns) })
	for _, sp := range open {
		reply, err := m.notify(sp, message.InstanceObject(id), knock.Encode(), probeTimeout)
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return machine.MemberProbed{ID: id, Err: err}
		}
		if answered(reply, id) {
			return machine.MemberProbed{ID: id, Alive: true}
		}
		if len(reply.Silent) > 0 {
			break // it would not answer elsewhere either
		}
	}
	return machine.MemberProbed{ID: id}
}

func (m *Member) leaderLock() *store.Lock { return store.NewLock(m.root.ioctx, message.LeaderObject) }

func entity(l *cls.Locker) string { return strconv.FormatInt(l.Entity.Num, 10) }

// holds finds out whether this instance holds the leader's lock.
func (m *Member) holds() (bool, error) {
	holder, err := m.leaderLock().Holder()
	if ceph.Is(err, syscall.ENOENT) {
		return false, nil
	}
	return holder != nil && entity(holder) == m.id, err
}

// try takes the leader's lock, if it can be had.
func (m *Member) try(a machine.Try) machine.Tried {
	m.lockMu.Lock()
	defer m.lockMu.Unlock()
	var out machine.Tried
	fail := func(err error) machine.Tried {
		out.Err = err
		return out
	}
	m.mu.Lock()
	watch, expire := m.watch, m.opts.BlocklistExpire
	m.mu.Unlock()
	if watch == nil || !m.leased() {
		return fail(fmt.Errorf("not ready to lead: %w", syscall.EAGAIN))
	}
	// A lock under a watch that has timed out would be broken at once.
	if age, err := watch.Check(); err != nil || age >= watchFresh {
		return fail(fmt.Errorf("the watch on %s is not confirmed: %w", message.LeaderObject, errors.Join(syscall.EAGAIN, err)))
	}
	cookie := cls.AutoCookie(watch.Cookie())
	lock := m.leaderLock()
	for range lockTries {
		holder, err := lock.Holder()
		if err != nil {
			return fail(err)
		}
		switch {
		case holder == nil:
			err = lock.Acquire(cookie)
		case entity(holder) == m.id:
			if holder.Cookie != cookie {
				err = lock.SetCookie(holder.Cookie, cookie)
			}
		default:
			forced := a.Break != nil && a.Break.ID == entity(holder) && a.Break.Cookie == holder.Cookie
			if !forced {
				alive, err := lock.Alive(*holder)
				if err != nil {
					return fail(err)
				}
				// When all watches were lost at once nobody is to be blamed.
				m.mu.Lock()
				settled := m.watch == watch && now().Sub(m.watched) >= watchSettled
				m.mu.Unlock()
				if _, err := watch.Check(); !alive && (err != nil || !settled) {
					return fail(fmt.Errorf("the leader %s does not watch, nor did this instance until lately: %w",
						entity(holder), syscall.EAGAIN))
				}
				if alive {
					ours, err := m.root.markers()
					if err != nil {
						return fail(err)
					}
					out.Holder = machine.Holder{
						ID: entity(holder), Cookie: holder.Cookie, Addr: holder.Addr.String(), Ours: ours[entity(holder)],
					}
					return out
				}
			}
			m.log.Warn().Str("leader", entity(holder)).Bool("watching", forced).Msg("breaking the lock of a dead leader")
			err = lock.BreakDead(m.cfg.Conn, *holder, forced, expire)
			if err == nil {
				out.Broke = entity(holder)
				continue
			}
			if ceph.Is(err, syscall.EAGAIN, syscall.ESTALE) {
				continue
			}
		}
		if ceph.Is(err, syscall.EBUSY) {
			continue // somebody was faster
		}
		if err != nil {
			return fail(err)
		}
		m.mu.Lock()
		m.cookie = cookie
		m.mu.Unlock()
		out.Got = true
		return out
	}
	return fail(fmt.Errorf("the lock keeps changing hands: %w", syscall.EAGAIN))
}

// unlock gives the leader's lock back, after the last change of the image map.
func (m *Member) unlock() error {
	m.writes.Lock()
	defer m.writes.Unlock()
	m.lockMu.Lock()
	defer m.lockMu.Unlock()
	m.mu.Lock()
	cookie := m.cookie
	m.cookie = ""
	m.mu.Unlock()
	if cookie == "" {
		return nil
	}
	return m.leaderLock().Release(cookie)
}

// members reads who is registered.
func (m *Member) members(all bool) (machine.MembersRead, error) {
	var read machine.MembersRead
	m.mu.Lock()
	open := make([]*space, 0, len(m.spaces))
	for _, sp := range m.spaces {
		if sp.ns != "" {
			open = append(open, sp)
		}
	}
	m.mu.Unlock()
	ours, err := m.root.markers()
	if err != nil {
		return read, err
	}
	ids, err := m.root.instances()
	if err != nil {
		return read, err
	}
	others := make(map[string][]string)
	for _, sp := range open {
		m.mu.Lock()
		known, ok := m.others[sp.ns]
		m.mu.Unlock()
		if all || !ok {
			if known, err = sp.instances(); err != nil {
				return read, sp.what(err, "reading who is registered")
			}
		}
		others[sp.ns] = known
	}
	m.mu.Lock()
	m.others = others
	m.mu.Unlock()
	out := make(map[string]machine.Registration)
	read.Members, read.Namespaces = out, []string{""}
	enter := func(id, ns string) {
		r := out[id]
		r.Ours = ours[id]
		r.Namespaces = append(r.Namespaces, ns)
		out[id] = r
	}
	for _, id := range ids {
		enter(id, "")
	}
	for ns, known := range others {
		read.Namespaces = append(read.Namespaces, ns)
		for _, id := range known {
			enter(id, ns)
		}
	}
	return read, nil
}

// shutOut makes sure that an instance can write no more, and removes what it
// has left. The error tells of the former only.
func (m *Member) shutOut(id string) error {
	switch leads, err := m.holds(); {
	case err != nil:
		return err
	case !leads:
		return ErrNotLeader
	}
	m.mu.Lock()
	expire := m.opts.BlocklistExpire
	open := make([]*space, 0, len(m.spaces))
	for _, sp := range m.spaces {
		open = append(open, sp)
	}
	m.mu.Unlock()
	// Its address stands in its locks and watches; it is the same in all.
	object := message.InstanceObject(id)
	addrs := make(map[string]cls.EntityAddr)
	var holders []func() error
	for _, sp := range open {
		lock := store.NewLock(sp.ioctx, object)
		holder, err := lock.Holder()
		if err != nil && !ceph.Is(err, syscall.ENOENT) {
			return sp.what(err, "looking for the address of instance "+id)
		}
		if holder != nil {
			if entity(holder) == id {
				addrs[holder.Addr.String()] = holder.Addr
			}
			holders = append(holders, func() error { return lock.Break(*holder) })
		}
	}
	for _, at := range []string{object, message.LeaderObject} {
		watchers, err := ceph.ListWatchers(m.root.ioctx, at)
		if err != nil && !ceph.Is(err, syscall.ENOENT) {
			return fmt.Errorf("%s: listing watchers: %w", at, err)
		}
		for _, w := range watchers {
			if strconv.FormatUint(w.Client, 10) != id {
				continue
			}
			addr, err := parseAddr(w.Addr)
			if err != nil {
				return err
			}
			addrs[addr.String()] = addr
		}
	}
	for _, addr := range addrs {
		m.log.Warn().Str("dead", id).Stringer("addr", addr).Msg("shutting a dead instance out of the cluster")
		if err := store.Blocklist(m.cfg.Conn, addr, expire); err != nil {
			return err
		}
	}
	var errs []error
	for _, release := range holders {
		errs = append(errs, release())
	}
	for _, sp := range open {
		if err := sp.ioctx.Delete(object); err != nil && !ceph.Is(err, syscall.ENOENT) {
			errs = append(errs, sp.what(err, "removing "+object))
			continue // its registration is what it is found by
		}
		errs = append(errs, sp.drop(id))
	}
	if err := errors.Join(errs...); err != nil {
		m.log.Warn().Err(err).Str("dead", id).Msg("cleaning up after a dead instance")
	}
	return nil
}

// parseAddr reads an address as watchers are listed with.
func parseAddr(s string) (cls.EntityAddr, error) {
	host, nonce, _ := strings.Cut(s, "/")
	addr, err := netip.ParseAddrPort(host)
	if err != nil {
		return cls.EntityAddr{}, fmt.Errorf("the address %q of a client: %w", s, errors.Join(err, syscall.EINVAL))
	}
	n, err := strconv.ParseUint(nonce, 10, 32)
	if err != nil {
		return cls.EntityAddr{}, fmt.Errorf("the address %q of a client: %w", s, errors.Join(err, syscall.EINVAL))
	}
	return cls.EntityAddr{Type: 1, Nonce: uint32(n), Addr: addr}, nil
}

// watchLeader watches the leader object for as long as the member lives.
func (m *Member) watchLeader() {
	var old *ceph.Watch
	for m.work.Err() == nil {
		watch, err := callWatch(m.work, &m.calls, func() (*ceph.Watch, error) {
			if err := m.createLeader(); err != nil {
				return nil, err
			}
			return ceph.NewWatch(m.root.ioctx, message.LeaderObject, m.watchTimeout)
		})
		if err != nil {
			if m.work.Err() == nil && !m.failed(err) {
				m.log.Warn().Err(err).Msg("watching " + message.LeaderObject)
			}
			pause(m.work, time.Second)
			continue
		}
		m.mu.Lock()
		m.watch, m.watched = watch, now()
		m.mu.Unlock()
		if old != nil {
			m.recookie(watch)
		}
		m.feed(machine.Start{})
		if err := m.listen(watch); err != nil && !m.failed(err) {
			m.log.Info().Err(err).Msg("the watch on " + message.LeaderObject + " was lost")
		}
		if m.work.Err() != nil {
			return // it is closed in the end
		}
		m.mu.Lock()
		m.watch = nil
		m.mu.Unlock()
		closeWatch(&m.calls, watch)
		old = watch
	}
}

func (m *Member) createLeader() error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateIdempotent)
	if err := op.Operate(m.root.ioctx, message.LeaderObject, rados.OperationNoFlag); err != nil {
		return fmt.Errorf("creating %s: %w", message.LeaderObject, err)
	}
	return nil
}

// recookie puts a new watch into the lock: whose watch is gone counts as dead.
func (m *Member) recookie(watch *ceph.Watch) {
	asked := now()
	held, err := call(m.work, &m.calls, func() (bool, error) {
		m.lockMu.Lock()
		defer m.lockMu.Unlock()
		m.mu.Lock()
		was := m.cookie
		m.mu.Unlock()
		if was == "" {
			return false, nil
		}
		cookie := cls.AutoCookie(watch.Cookie())
		if err := m.leaderLock().SetCookie(was, cookie); err != nil {
			if ceph.Is(err, syscall.EBUSY, syscall.ENOENT) {
				m.mu.Lock()
				m.cookie = ""
				m.mu.Unlock()
				return false, nil
			}
			return true, err
		}
		m.mu.Lock()
		m.cookie = cookie
		m.mu.Unlock()
		return true, nil
	})
	if err != nil && !m.failed(err) {
		m.log.Warn().Err(err).Msg("renewing the leader's lock")
	}
	m.feed(machine.Checked{Asked: asked, Ours: held, Err: err})
}

// listen acknowledges and reads the messages of a watch until it is lost.
func (m *Member) listen(watch *ceph.Watch) error {
	for {
		select {
		case <-m.work.Done():
			return nil
		case err := <-watch.Errors():
			return err
		case n := <-watch.Events():
			if err := watch.Ack(n, nil); err != nil {
				m.log.Debug().Err(err).Msg("acknowledging a message")
			}
			op, err := message.DecodeLeader(n.Data)
			if err != nil {
				m.log.Debug().Err(err).Msg("a message on " + message.LeaderObject)
				continue
			}
			m.feed(machine.Heard{Op: op, From: strconv.FormatUint(n.Notifier, 10)})
		}
	}
}

// LoadMap returns the stored image map of a namespace, while leading. The error
// carries EAGAIN while it is not yet known who is registered there: a mapping to
// an instance that Instances does not name is one to a dead instance.
func (m *Member) LoadMap(ctx context.Context, namespace string) ([]Mapping, error) {
	m.mu.Lock()
	leads, known := m.leadingLocked(), m.machine.Known(namespace)
	m.mu.Unlock()
	switch {
	case !leads:
		return nil, ErrNotLeader
	case !known:
		return nil, fmt.Errorf("it is not known yet who is registered in namespace %q: %w", namespace, syscall.EAGAIN)
	}
	return m.storedMap(ctx, namespace)
}

func (m *Member) storedMap(ctx context.Context, namespace string) ([]Mapping, error) {
	sp, exit, err := m.use(namespace)
	if err != nil {
		return nil, err
	}
	defer exit()
	ctx, cancel := m.within(ctx)
	defer cancel()
	out, err := call(ctx, &m.calls, sp.readMap)
	m.failed(err)
	return out, sp.what(err, "loading the image map")
}

// use returns the space of a namespace, to be used until exit.
func (m *Member) use(namespace string) (sp *space, exit func(), err error) {
	exit, err = m.enter()
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	sp = m.spaces[namespace]
	m.mu.Unlock()
	if sp == nil {
		exit()
		return nil, nil, fmt.Errorf("not registered in namespace %q: %w", namespace, syscall.ENOENT)
	}
	return sp, exit, nil
}

func (sp *space) readMap() ([]Mapping, error) {
	var out []Mapping
	for after := ""; ; {
		page, err := store.Read(sp.ioctx, message.LeaderObject,
			cls.Call{Class: "rbd", Method: "mirror_image_map_list", In: message.ListMapInput(after, mapPage)})
		if ceph.Is(err, syscall.ENOENT) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		entries, err := message.DecodeMap(page[0])
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			out = append(out, Mapping{GlobalID: e.GlobalID, Instance: e.Instance, Mapped: e.Mapped})
			after = max(after, e.GlobalID)
		}
		if len(entries) == 0 {
			return out, nil
		}
	}
}

// Store stores mappings, while leading.
func (m *Member) Store(ctx context.Context, namespace string, mappings ...Mapping) error {
	var calls []cls.Call
	for _, mp := range mappings {
		calls = append(calls, cls.Call{Class: "rbd", Method: "mirror_image_map_update", In: message.UpdateMapInput(message.Entry{
			GlobalID: mp.GlobalID, Mapping: message.Mapping{Instance: mp.Instance, Mapped: mp.Mapped},
		})})
	}
	return m.changeMap(ctx, namespace, calls)
}

// Remove removes the mappings of images, while leading.
func (m *Member) Remove(ctx context.Context, namespace string, globalIDs ...string) error {
	var calls []cls.Call
	for _, id := range globalIDs {
		calls = append(calls, call1("mirror_image_map_remove", id))
	}
	return m.changeMap(ctx, namespace, calls)
}

func (m *Member) changeMap(ctx context.Context, namespace string, calls []cls.Call) error {
	sp, exit, err := m.use(namespace)
	if err != nil {
		return err
	}
	defer exit()
	ctx, cancel := m.within(ctx)
	defer cancel()
	for batch := range slices.Chunk(calls, mapBatch) {
		err := do(ctx, &m.calls, func() error { return sp.changeMap(batch) })
		if err != nil {
			m.failed(err)
			return sp.what(err, "changing the image map")
		}
	}
	return nil
}

func (sp *space) changeMap(calls []cls.Call) error {
	m := sp.m
	m.writes.RLock()
	defer m.writes.RUnlock()
	m.mu.Lock()
	leads, cookie := m.leadingLocked(), m.cookie
	m.mu.Unlock()
	if !leads || !m.leased() {
		return ErrNotLeader
	}
	if sp.ns == "" {
		// One that was overtaken without noticing must not change anything.
		calls = append([]cls.Call{cls.LockAssert("rbd_lock", cls.LockExclusive, cookie, "internal")}, calls...)
	}
	return store.Write(sp.ioctx, message.LeaderObject, calls...)
}
