// Package machine decides who leads the mirror daemons of a pool and who of
// them lives. It is a state machine over plain data: it is told what happened
// and answers with what to do. It has no clock, does no I/O and starts no
// goroutine.
//
// It keeps to the stock daemon's election, so that stock daemons can take part.
// Among daemons of ours it is faster: their leader sends heartbeats more often,
// and one of ours that answers neither those nor a direct question is shut out
// of the cluster within seconds. A stock daemon gets as long as another stock
// daemon would give it.
//
// Every decision to shut somebody out rests on questions that were answered, or
// that the cluster gave up after their time, and never on the clock alone: a
// process that was frozen, or a cluster that stood still, blames nobody.
package machine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"cephmirror/rbdmirror/election/message"
)

// Params are the knobs of a Machine.
type Params struct {
	ID string // of this instance

	// Beat is how often a leader of ours sends heartbeats: at most every two
	// seconds.
	Beat time.Duration
	// Interval, MaxMissed and MaxAttempts are the stock daemon's: how often its
	// leader sends heartbeats, how many may be missed before another instance
	// tries to take the lock, and how many such tries it makes before it
	// breaks the lock.
	Interval               time.Duration
	MaxMissed, MaxAttempts int
}

// Retry is after how long without a heartbeat an instance tries to take the lock.
func (p Params) Retry() time.Duration { return p.Interval * time.Duration(p.MaxMissed) }

// StockDead is after how long without an answer a stock instance is dead.
func (p Params) StockDead() time.Duration {
	return p.Interval * time.Duration(1+p.MaxMissed+p.MaxAttempts)
}

const (
	// valid is how long a leader believes in itself after it has sent a
	// heartbeat that came back.
	valid = 6 * time.Second
	// quiet is after how long without a heartbeat a leader of ours is asked
	// whether it lives. No answer in the time that the question takes ends its
	// leadership, so that both together must be more than valid.
	quiet = 4 * time.Second
	// mute is after how long without a heartbeat a leader of ours that answers
	// all questions counts as dead nevertheless.
	mute = 30 * time.Second
	// oursDead is the least time without an answer after which one of ours may
	// be shut out.
	oursDead = 5 * time.Second
	// oursMissed and stockMissed are how many heartbeats in a row an instance
	// must have left unanswered before it is shut out.
	oursMissed  = 2
	stockMissed = 3
	// beatsAhead is how many heartbeats may be under way at once.
	beatsAhead = 4
	// againAfter is when something that failed is tried again.
	againAfter = 2 * time.Second
)

// Holder is who holds the leader's lock.
type Holder struct {
	ID     string
	Cookie string
	Addr   string
	Ours   bool // a daemon of ours
}

// Registration is what is stored of an instance.
type Registration struct {
	Ours       bool
	Namespaces []string
}

// Event is what a Machine is told; see the types that implement it.
type Event interface{ event() }

type (
	// Tick lets time pass. A few times a second is about right.
	Tick struct{}
	// Start says that the leader object is being watched for the first time.
	Start struct{}
	// Tried is the result of Try: Got, or else the lock is held by Holder, or
	// Err. Broke is who was shut out of the cluster on the way, "" for nobody.
	Tried struct {
		Got    bool
		Holder Holder
		Broke  string
		Err    error
	}
	// Probed is the result of Probe.
	Probed struct {
		Leader string
		Alive  bool
		Err    error // nothing can be said
	}
	// Heard is a message on the leader object.
	Heard struct {
		Op   message.LeaderOp
		From string
	}
	// Beaten is the result of Beat. Err is nil also when some did not answer.
	Beaten struct {
		Sent time.Time // of the Beat
		Acks []string
		Err  error
	}
	// MembersRead is the result of ReadMembers. Namespaces are those that have
	// been read by now.
	MembersRead struct {
		Members    map[string]Registration
		Namespaces []string
		Err        error
	}
	// MemberProbed is the result of ProbeMember.
	MemberProbed struct {
		ID    string
		Alive bool
		Err   error // nothing can be said
	}
	// Shut is the result of ShutOut: without Err the instance can do no more.
	Shut struct {
		ID  string
		Err error
	}
	// Checked tells whether this instance holds the lock.
	Checked struct {
		Asked time.Time // of the Check
		Ours  bool
		Err   error
	}
	// Unlocked is the result of Unlock.
	Unlocked struct{ Err error }
	// Resign asks a leader to let others lead.
	Resign struct{}
	// Stop ends the part of this instance.
	Stop struct{}
)

func (Tick) event()         {}
func (Start) event()        {}
func (Tried) event()        {}
func (Probed) event()       {}
func (Heard) event()        {}
func (Beaten) event()       {}
func (MembersRead) event()  {}
func (MemberProbed) event() {}
func (Shut) event()         {}
func (Checked) event()      {}
func (Unlocked) event()     {}
func (Resign) event()       {}
func (Stop) event()         {}

// Action is something to be done; see the types that implement it. Each ends in
// the event of its result.
type Action interface{ action() }

type (
	// Try takes the lock when it is free or its holder no longer watches the
	// leader object, whom it shuts out of the cluster first. Break does the
	// same to that holder although it watches, unless the lock has changed
	// hands.
	Try struct{ Break *Holder }
	// Probe asks whether the leader acknowledges a message.
	Probe struct{ Leader string }
	// Beat sends a heartbeat, with Announce after the message that the lock
	// has been taken.
	Beat struct {
		Announce bool
		Sent     time.Time
	}
	// ReadMembers reads who is registered; All in all namespaces and not only
	// in the default one.
	ReadMembers struct{ All bool }
	// ProbeMember asks whether an instance acknowledges a message to itself.
	ProbeMember struct{ ID string }
	// ShutOut makes sure that this instance still leads, shuts another out of
	// the cluster, and removes what it has left.
	ShutOut struct{ ID string }
	// Check finds out whether this instance holds the lock.
	Check struct{ Asked time.Time }
	// Unlock gives the lock back and says so.
	Unlock struct{}
	// Tell passes something on to the engine. It has no result.
	Tell struct {
		What      What
		Namespace string
		Instance  string
	}
)

func (Try) action()         {}
func (Probe) action()       {}
func (Beat) action()        {}
func (ReadMembers) action() {}
func (ProbeMember) action() {}
func (ShutOut) action()     {}
func (Check) action()       {}
func (Unlock) action()      {}
func (Tell) action()        {}

// What is told to the engine.
type What int

// What there is to tell.
const (
	LeaderGained What = iota + 1
	LeaderLost
	LeaderIs
	Joined
	Left
)

type member struct {
	id      string
	reg     Registration
	joined  bool
	told    map[string]bool // namespaces in which it was told as joined
	since   time.Time       // first seen
	heard   time.Time       // when the last heartbeat was sent that it has answered, or later
	missed  int             // heartbeats since then
	probing bool
	shut    bool // being shut out
	again   time.Time
}

// Machine is the state of one instance in one pool.
type Machine struct {
	p Params

	started, stopping bool

	// While following.
	holder   Holder    // of the lock, as far as known
	heard    time.Time // last heartbeat of it
	answered time.Time // when it was last asked and has answered
	attempts int
	tryAt    time.Time
	trying   bool
	probing  bool

	// While holding the lock.
	leading   bool
	told      bool // the engine knows that we lead
	confirmed time.Time
	beatAt    time.Time
	announce  bool
	beats     int // under way
	checking  bool
	unlocking bool
	reading   bool
	readAll   bool // read everything as soon as possible
	reads     int
	loaded    bool            // members are known
	known     map[string]bool // namespaces that were read
	members   map[string]*member
	gone      map[string]time.Time // shut out, and when to clean up after it again

	out []Action
}

// New returns a Machine to which nothing has happened.
func New(p Params) *Machine {
	return &Machine{
		p: p, members: make(map[string]*member), gone: make(map[string]time.Time), known: make(map[string]bool),
	}
}

// SetParams changes the knobs.
func (m *Machine) SetParams(p Params) { m.p = p }

// Leading reports whether this instance holds the lock and may act on it.
func (m *Machine) Leading(now time.Time) bool {
	return m.leading && m.loaded && !m.unlocking && now.Sub(m.confirmed) < valid
}

// Holds reports whether this instance holds the lock, as far as it knows.
func (m *Machine) Holds() bool { return m.leading }

// Leader returns who leads, "" when that is unknown.
func (m *Machine) Leader() string {
	if m.leading {
		return m.p.ID
	}
	return m.holder.ID
}

// Idle reports whether the machine has stopped and holds nothing.
func (m *Machine) Idle() bool { return m.stopping && !m.leading && !m.trying }

// Members returns the instances that take part, in byte order.
func (m *Machine) Members() []string {
	var out []string
	for id, mb := range m.members {
		if mb.joined {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// In returns the instances that take part in a namespace, in byte order.
func (m *Machine) In(namespace string) []string {
	var out []string
	for id, mb := range m.members {
		if mb.joined && slices.Contains(mb.reg.Namespaces, namespace) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Known reports whether it is known who is registered in a namespace.
func (m *Machine) Known(namespace string) bool { return m.leading && m.known[namespace] }

// Handle takes in what happened at time now and returns what to do about it, in
// order.
func (m *Machine) Handle(ev Event, now time.Time) []Action {
	m.out = nil
	switch ev := ev.(type) {
	case Tick:
	case Start:
		if !m.started {
			m.started = true
			m.heard, m.answered = now, now
			m.tryAt = now
		}
	case Tried:
		m.tried(ev, now)
	case Probed:
		m.probed(ev, now)
	case Heard:
		m.hear(ev, now)
	case Beaten:
		m.beaten(ev, now)
	case MembersRead:
		m.membersRead(ev, now)
	case MemberProbed:
		m.memberProbed(ev, now)
	case Shut:
		m.shutOut(ev, now)
	case Checked:
		m.checked(ev, now)
	case Unlocked:
		m.unlocked(ev, now)
	case Resign:
		m.resign(now)
	case Stop:
		m.stopping = true
		m.resign(now)
	}
	m.run(now)
	out := m.out
	m.out = nil
	return out
}

func (m *Machine) do(a Action) { m.out = append(m.out, a) }

// run starts what is due.
func (m *Machine) run(now time.Time) {
	if m.leading {
		m.publish(now)
		m.lead(now)
		return
	}
	if !m.started || m.stopping {
		return
	}
	if !m.trying && !now.Before(m.tryAt) {
		t := Try{}
		if m.attempts >= m.p.MaxAttempts && m.holder.ID != "" && (!m.holder.Ours || now.Sub(m.heard) >= mute) {
			h := m.holder
			t.Break = &h
		}
		m.try(t, now)
		return
	}
	// Do not wait for a leader of ours as long as for a stock one.
	if m.holder.Ours && !m.trying && !m.probing && now.Sub(m.heard) >= quiet && now.Sub(m.answered) >= quiet {
		m.probing = true
		m.do(Probe{Leader: m.holder.ID})
	}
}

func (m *Machine) try(t Try, now time.Time) {
	m.trying = true
	m.tryAt = now.Add(m.p.Retry())
	m.do(t)
}

func (m *Machine) setHolder(h Holder, now time.Time) {
	if h.ID != m.holder.ID {
		m.do(Tell{What: LeaderIs, Instance: h.ID})
		m.heard, m.answered = now, now
	}
	m.holder = h
}

func (m *Machine) tried(ev Tried, now time.Time) {
	m.trying = false
	if ev.Broke != "" {
		m.gone[ev.Broke] = now
	}
	switch {
	case ev.Err != nil:
		m.tryAt = now.Add(againAfter)
	case ev.Got:
		m.gain(now)
	default:
		m.attempts++
		if h := m.holder; h.ID != ev.Holder.ID || h.Cookie != ev.Holder.Cookie {
			if m.attempts > 1 {
				m.attempts = 0
			}
		}
		m.setHolder(ev.Holder, now)
		m.tryAt = now.Add(m.p.Retry())
	}
}

func (m *Machine) gain(now time.Time) {
	m.setHolder(Holder{ID: m.p.ID}, now)
	m.leading, m.loaded, m.unlocking, m.checking = true, false, false, false
	m.attempts = 0
	m.confirmed = now
	m.beatAt, m.announce = now, true
	m.readAll = true
	clear(m.members)
	clear(m.known)
	if m.stopping {
		m.resign(now)
	}
}

func (m *Machine) probed(ev Probed, now time.Time) {
	m.probing = false
	if m.leading || m.stopping || ev.Leader != m.holder.ID {
		return
	}
	switch {
	case ev.Err != nil || ev.Alive:
		m.answered = now
	case now.Sub(m.heard) < quiet:
		// It has spoken since.
	case !m.trying:
		h := m.holder
		m.try(Try{Break: &h}, now)
	}
}

func (m *Machine) hear(ev Heard, now time.Time) {
	if ev.From == m.p.ID {
		return
	}
	switch ev.Op {
	case message.Heartbeat:
		switch {
		case m.leading:
			m.check(now)
		case ev.From == m.holder.ID:
			m.heard = now
			m.attempts = 0
			m.tryAt = now.Add(m.p.Retry())
		default:
			// Somebody leads of whom nothing is known.
			m.tryAt = now
		}
	case message.LockAcquired, message.LockReleased:
		if m.leading {
			m.check(now)
			return
		}
		m.attempts, m.heard = 0, now
		if ev.Op == message.LockAcquired && ev.From == m.holder.ID {
			return
		}
		if ev.Op == message.LockReleased {
			m.setHolder(Holder{}, now)
		}
		m.tryAt = now
	case message.Changed:
		m.readAll = true
	}
}

// lead does what a leader has to do.
func (m *Machine) lead(now time.Time) {
	if m.unlocking {
		return
	}
	if !now.Before(m.beatAt) && m.beats < beatsAhead {
		m.do(Beat{Announce: m.announce, Sent: now})
		m.announce = false
		m.beats++
		m.beatAt = now.Add(m.p.Beat)
		if !m.reading {
			m.read(false)
		}
	}
	if m.readAll && !m.reading {
		m.read(true)
	}
	if !m.Leading(now) {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(m.gone)) {
		if at := m.gone[id]; !now.Before(at) {
			m.gone[id] = now.Add(m.p.Retry())
			m.do(ShutOut{ID: id})
		}
	}
}

// readEvery is with how many readings of the default namespace all others are
// read too.
const readEvery = 5

func (m *Machine) read(all bool) {
	m.reads++
	all = all || m.readAll || m.reads%readEvery == 0
	m.reading, m.readAll = true, false
	m.do(ReadMembers{All: all})
}

// publish tells the engine whether this instance leads.
func (m *Machine) publish(now time.Time) {
	want := m.Leading(now)
	if want == m.told {
		return
	}
	m.told = want
	if !want {
		m.do(Tell{What: LeaderLost})
		for _, mb := range m.members {
			mb.told = nil
		}
		return
	}
	m.do(Tell{What: LeaderGained})
	for _, id := range slices.Sorted(maps.Keys(m.members)) {
		m.announceMember(m.members[id])
	}
}

// announceMember tells where an instance has joined and left.
func (m *Machine) announceMember(mb *member) {
	if !m.told {
		return
	}
	if mb.told == nil {
		mb.told = make(map[string]bool)
	}
	for _, ns := range mb.reg.Namespaces {
		if mb.joined && !mb.told[ns] {
			mb.told[ns] = true
			m.do(Tell{What: Joined, Namespace: ns, Instance: mb.id})
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(mb.told)) {
		if !mb.joined || !slices.Contains(mb.reg.Namespaces, ns) {
			delete(mb.told, ns)
			m.do(Tell{What: Left, Namespace: ns, Instance: mb.id})
		}
	}
}

func (m *Machine) forget(mb *member) {
	mb.joined = false
	m.announceMember(mb)
	delete(m.members, mb.id)
}

func (m *Machine) beaten(ev Beaten, now time.Time) {
	m.beats = max(0, m.beats-1)
	if !m.leading {
		return
	}
	if ev.Err != nil {
		m.check(now)
		return
	}
	if now.Sub(m.confirmed) >= valid {
		// Too late to go on without a look: others may have taken over.
		m.check(now)
	} else if ev.Sent.After(m.confirmed) {
		m.confirmed = ev.Sent
	}
	for id, mb := range m.members {
		switch {
		case slices.Contains(ev.Acks, id):
			if ev.Sent.After(mb.heard) {
				mb.heard = ev.Sent
			}
			mb.missed = 0
			if !mb.joined && !mb.shut {
				mb.joined = true
				m.announceMember(mb)
			}
		case id == m.p.ID || ev.Sent.Before(mb.since) || !ev.Sent.After(mb.heard):
		default:
			mb.missed++
			m.suspect(mb, now)
		}
	}
}

// suspect asks an instance that has not answered, or that has been silent for
// long enough, whether it lives.
func (m *Machine) suspect(mb *member, now time.Time) {
	if mb.probing || mb.shut || !m.Leading(now) || now.Before(mb.again) {
		return
	}
	if !mb.reg.Ours && !m.overdue(mb, now) {
		return
	}
	mb.probing = true
	m.do(ProbeMember{ID: mb.id})
}

func (m *Machine) overdue(mb *member, now time.Time) bool {
	silent := now.Sub(mb.heard)
	if mb.reg.Ours {
		return mb.missed >= oursMissed && silent >= oursDead
	}
	return mb.missed >= stockMissed && silent >= m.p.StockDead()
}

func (m *Machine) memberProbed(ev MemberProbed, now time.Time) {
	mb := m.members[ev.ID]
	if mb == nil {
		return
	}
	mb.probing = false
	switch {
	case !m.leading || mb.shut || ev.Err != nil:
	case ev.Alive:
		mb.heard, mb.missed = now, 0
		if !mb.joined {
			mb.joined = true
			m.announceMember(mb)
		}
	case m.overdue(mb, now) && m.Leading(now):
		mb.shut = true
		m.do(ShutOut{ID: mb.id})
	}
}

func (m *Machine) shutOut(ev Shut, now time.Time) {
	if !m.leading {
		return
	}
	mb := m.members[ev.ID]
	if ev.Err != nil {
		if mb != nil {
			mb.shut = false
			mb.again = now.Add(againAfter)
		}
		m.check(now)
		return
	}
	if mb != nil {
		m.forget(mb)
	}
	// What it has left is removed by now, or will be with a later try.
	m.gone[ev.ID] = now.Add(m.p.Retry())
	m.readAll = true
}

func (m *Machine) membersRead(ev MembersRead, now time.Time) {
	m.reading = false
	if !m.leading {
		return
	}
	if ev.Err != nil {
		if !m.loaded {
			m.check(now)
		}
		return
	}
	for _, id := range slices.Sorted(maps.Keys(ev.Members)) {
		if _, ok := m.gone[id]; ok && id != m.p.ID {
			continue
		}
		reg := ev.Members[id]
		slices.SortFunc(reg.Namespaces, cmp.Compare[string])
		mb := m.members[id]
		if mb == nil {
			mb = &member{id: id, since: now, heard: now, joined: id == m.p.ID}
			m.members[id] = mb
			m.beatAt = now // it joins when it answers
		}
		mb.reg = reg
		// Of those that are found registered it is not known yet which have
		// died; they may have units, and count until that is found out.
		if !mb.shut && slices.ContainsFunc(reg.Namespaces, func(ns string) bool { return !m.known[ns] }) {
			mb.joined = true
		}
		m.announceMember(mb)
	}
	for _, id := range slices.Sorted(maps.Keys(m.members)) {
		if _, ok := ev.Members[id]; !ok {
			m.forget(m.members[id])
		}
	}
	for id := range m.gone {
		if _, ok := ev.Members[id]; !ok {
			delete(m.gone, id)
		}
	}
	m.loaded = true
	for _, ns := range ev.Namespaces {
		m.known[ns] = true
	}
}

// check finds out whether the lock is still ours.
func (m *Machine) check(now time.Time) {
	if m.checking || !m.leading || m.unlocking {
		return
	}
	m.checking = true
	m.do(Check{Asked: now})
}

func (m *Machine) checked(ev Checked, now time.Time) {
	m.checking = false
	if !m.leading {
		return
	}
	switch {
	case ev.Err != nil:
	case !ev.Ours:
		m.lost(now)
		m.tryAt = now
	default:
		if now.Sub(m.confirmed) >= valid {
			// What was not heard meanwhile is nobody's fault.
			for _, mb := range m.members {
				mb.heard, mb.missed = now, 0
			}
		}
		if ev.Asked.After(m.confirmed) {
			m.confirmed = ev.Asked
		}
	}
}

func (m *Machine) lost(now time.Time) {
	m.leading, m.loaded, m.unlocking = false, false, false
	if m.told {
		m.told = false
		m.do(Tell{What: LeaderLost})
	}
	clear(m.members)
	clear(m.known)
	m.attempts = 0
	m.setHolder(Holder{}, now)
}

func (m *Machine) resign(now time.Time) {
	if !m.leading || m.unlocking {
		return
	}
	m.unlocking = true
	m.publish(now)
	m.do(Unlock{})
}

func (m *Machine) unlocked(ev Unlocked, now time.Time) {
	if !m.leading {
		return
	}
	if ev.Err != nil && !m.stopping {
		m.unlocking = false
		m.check(now)
		return
	}
	m.lost(now)
	// Others go first.
	m.tryAt = now.Add(m.p.Retry())
}
