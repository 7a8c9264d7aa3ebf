// Package dirmap decides which instance owns which unit (a directory of a file
// system, an image of a pool). It is a state machine over plain data: it is
// told what happened and answers with what to do. It has no clock, does no I/O
// and starts no goroutine; a Map must not be used by two goroutines at once.
//
// The caller feeds a Map with events and carries out the actions it answers
// with, in any order among different units (a unit has at most one action under
// way), and reports each result with ActionDone. It must give up an action
// before Params.ActionTimeout, after which the Map takes the result as lost.
//
// InstanceLeft must only be told of an instance that can do no more harm:
// stopped, or fenced. An instance that joins again holds nothing.
//
// Where a unit goes is decided, in this order, by its pin, by which instances
// are being drained, and by Params.Policy. A pin or a drain that cannot be
// obeyed, because the instance is not there or because nobody else is, leaves no
// unit without an owner.
package dirmap

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// Params are the knobs of a Map. The zero value of each stands for its default.
type Params struct {
	// ShuffleInterval is how long a unit stays where it is before it may be
	// moved from one live instance to another. Default 300 s.
	ShuffleInterval time.Duration
	// ColdStart is for how long after Loaded others may still be on their way up:
	// what was handed out meanwhile may be moved to them at once. Default 0.
	ColdStart time.Duration
	// ActionTimeout is when the result of an action counts as lost. Default 60 s.
	ActionTimeout time.Duration
	// RetryMin and RetryMax bound the wait before a failed action is repeated;
	// it doubles with each failure. Defaults 1 s and 30 s.
	RetryMin, RetryMax time.Duration
	// Policy says what is to be shared evenly. Default LeastUnits.
	Policy Policy
}

// Policy says by what the instances' loads are compared.
type Policy int

const (
	// LeastUnits counts units, as the stock control planes do. At rest the
	// counts differ by one at most.
	LeastUnits Policy = iota
	// LoadAware adds up what the units cost, see UnitLoad. At rest the sums
	// differ by no more than a fifth of their mean, or by what moving one more
	// unit cannot mend.
	LoadAware
)

func (p Params) withDefaults() Params {
	p.ShuffleInterval = cmp.Or(p.ShuffleInterval, 300*time.Second)
	p.ActionTimeout = cmp.Or(p.ActionTimeout, 60*time.Second)
	p.RetryMin = cmp.Or(p.RetryMin, time.Second)
	p.RetryMax = cmp.Or(p.RetryMax, 30*time.Second)
	return p
}

// Mapping says who owns a unit, as it is stored.
type Mapping struct {
	Unit         string
	Instance     string // empty: nobody
	LastShuffled time.Time
	Purging      bool // a removal is under way
}

// ActionKind names something to be done for a unit.
type ActionKind int

// The kinds of actions. Store and Delete change the stored map, Acquire and
// Release tell Mapping.Instance to take up or to give up the unit.
const (
	Store ActionKind = iota + 1
	Delete
	Acquire
	Release
)

// String returns the name of the kind.
func (k ActionKind) String() string {
	switch k {
	case Store:
		return "store"
	case Delete:
		return "delete"
	case Acquire:
		return "acquire"
	case Release:
		return "release"
	}
	return "none"
}

// Action is one thing to do. Seq tells a late result from the awaited one.
type Action struct {
	Kind    ActionKind
	Mapping Mapping
	Seq     uint64
}

// Event is what a Map is told; see the types that implement it.
type Event interface{ event() }

// Loaded replaces all that is known with the stored map. Mappings to instances
// that are not in Instances are to dead ones.
type Loaded struct {
	Units     []Mapping
	Instances []string // live ones
}

// UnitAdded says that a unit is to be replicated. Known units are left alone.
type UnitAdded struct{ Unit string }

// UnitRemoved says that a unit is no longer to be replicated.
type UnitRemoved struct{ Unit string }

// InstanceJoined says that an instance is ready for work.
type InstanceJoined struct{ Instance string }

// InstanceLeft says that an instance is dead or stopped.
type InstanceLeft struct{ Instance string }

// UnitPinned says that a unit belongs to an instance as long as that lives and
// is not being drained; with an empty Instance, that it belongs nowhere any more.
// It may come before the unit or the instance is known.
type UnitPinned struct{ Unit, Instance string }

// InstanceDraining says whether an instance is to get rid of its units, and get
// no more. It may come before the instance is known, and holds until it leaves.
type InstanceDraining struct {
	Instance string
	Draining bool
}

// UnitLoad is how much work a unit was lately: bytes a second, and how far it
// lags behind. The policy LoadAware lets a unit cost one, and as much again as
// its share of all bytes times four; it costs up to twice that when it lags by
// five minutes.
type UnitLoad struct {
	Unit  string
	Bytes float64
	Lag   time.Duration
}

// ActionDone is the result of an action. Results that nobody waits for (late,
// repeated, of unknown units) are ignored.
type ActionDone struct {
	Action Action
	Err    error
}

// Tick lets time pass: it repeats failed and lost actions and makes up for
// moves that were put off. Once a second is about right.
type Tick struct{}

func (Loaded) event()         {}
func (UnitAdded) event()      {}
func (UnitRemoved) event()    {}
func (InstanceJoined) event() {}
func (InstanceLeft) event()   {}
func (ActionDone) event()     {}
func (Tick) event()           {}

func (UnitPinned) event()       {}
func (InstanceDraining) event() {}
func (UnitLoad) event()         {}

// State is where a unit stands.
type State int

// The states of a unit. Only Associated is one of rest.
const (
	Initializing   State = iota + 1 // its stored owner lives and is told so again
	Associating                     // an owner is chosen, stored and told
	Associated                      // owned
	Shuffling                       // its owner gives it up, for another to take
	Disassociating                  // it is being removed
)

// String returns the word the stock control plane uses for the state.
func (s State) String() string {
	switch s {
	case Initializing:
		return "resolving"
	case Associating:
		return "mapping"
	case Associated:
		return "mapped"
	case Shuffling:
		return "shuffling"
	case Disassociating:
		return "unmapping"
	}
	return "unassociated"
}

// Status is the present state of a unit. Stalled means that it waits for any
// instance to appear.
type Status struct {
	Mapping  Mapping
	State    State
	Stalled  bool
	Failures int    // of the present action, in a row
	Pinned   string // to this instance
}

// Load is an instance and the number of units it owns or is to own.
type Load struct {
	Instance string
	Units    int
	Cost     float64 // of those units, by the policy LoadAware
	Draining bool
}

type instance struct {
	id    string
	units map[*unit]struct{}
	// leaving counts those of units that are being moved away or removed.
	leaving int
	// cost is that of the others.
	cost float64
}

// staying is the load that counts when units are handed out.
func (i *instance) staying() int { return len(i.units) - i.leaving }

type unit struct {
	m     Mapping
	state State
	owner *instance // of m.Instance; nil when it is empty or dead
	// held: owner may be at work on the unit, because it was told to and has
	// not confirmed a release since.
	held bool
	// stored: m is what the stored map says.
	stored bool
	// readd: added again while it was being removed.
	readd bool
	cost  float64

	doing    ActionKind // under way, or to be repeated at due
	seq      uint64     // of the action under way; 0 when none is
	due      time.Time  // when to repeat it or to take its result as lost
	failures int
}

// Map is the assignment of one domain.
type Map struct {
	p     Params
	seq   uint64
	units map[string]*unit
	live  []*instance // in order of appearance
	byID  map[string]*instance

	stalled  map[*unit]struct{}
	floating int // units in state Shuffling
	timers   timers
	loadedAt time.Time

	// What is told of units and instances that may not be known yet.
	pins     map[string]string // unit to instance
	draining map[string]bool
	loads    map[string]UnitLoad
	// reweigh: loads have changed since the units' costs were worked out.
	reweigh bool

	// unbalanced: loads changed since the last look at the balance.
	unbalanced bool
	// balanceAt: when moves that the throttle put off may be made; zero: none.
	balanceAt time.Time

	out []Action
}

// New returns an empty Map. Its first event is Loaded.
func New(p Params) *Map {
	m := &Map{
		p: p.withDefaults(), pins: make(map[string]string), draining: make(map[string]bool), loads: make(map[string]UnitLoad),
	}
	m.reset()
	return m
}

func (m *Map) reset() {
	m.units = make(map[string]*unit)
	m.live = nil
	m.byID = make(map[string]*instance)
	m.stalled = make(map[*unit]struct{})
	m.floating = 0
	m.timers = nil
	m.unbalanced = false
	m.balanceAt = time.Time{}
	m.reweigh = len(m.loads) > 0
}

// Handle takes in what happened at time now and returns what to do about it.
func (m *Map) Handle(ev Event, now time.Time) []Action {
	m.out = nil
	switch ev := ev.(type) {
	case Loaded:
		m.load(ev, now)
	case UnitAdded:
		m.addUnit(ev.Unit, now)
	case UnitRemoved:
		m.removeUnit(ev.Unit, now)
	case InstanceJoined:
		m.join(ev.Instance, now)
	case InstanceLeft:
		m.leave(ev.Instance, now)
	case UnitPinned:
		m.pin(ev)
	case InstanceDraining:
		m.drain(ev)
	case UnitLoad:
		m.noteLoad(ev)
	case ActionDone:
		m.done(ev, now)
	case Tick:
		m.tick(now)
	}
	out := m.out
	m.out = nil
	return out
}

// Unit returns the present state of a unit, and false when it is unknown.
func (m *Map) Unit(name string) (Status, bool) {
	u := m.units[name]
	if u == nil {
		return Status{}, false
	}
	_, stalled := m.stalled[u]
	return Status{Mapping: u.m, State: u.state, Stalled: stalled, Failures: u.failures, Pinned: m.pins[name]}, true
}

// Units returns the names of all units, sorted.
func (m *Map) Units() []string {
	names := make([]string, 0, len(m.units))
	for name := range m.units {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Loads returns the live instances, in order of appearance.
func (m *Map) Loads() []Load {
	loads := make([]Load, len(m.live))
	for i, in := range m.live {
		loads[i] = Load{Instance: in.id, Units: in.staying(), Cost: in.cost, Draining: m.draining[in.id]}
	}
	return loads
}

// Settled says whether nothing is under way or put off: every unit is owned, or
// waits for a first instance, and the last Tick found the loads even.
func (m *Map) Settled() bool {
	if m.unbalanced || !m.balanceAt.IsZero() {
		return false
	}
	for _, u := range m.units {
		if _, stalled := m.stalled[u]; u.state != Associated && !stalled {
			return false
		}
	}
	return true
}

func (m *Map) load(ev Loaded, now time.Time) {
	m.reset()
	m.loadedAt = now
	for _, id := range ev.Instances {
		if m.byID[id] == nil {
			m.addInstance(id)
		}
	}
	units := slices.Clone(ev.Units)
	slices.SortStableFunc(units, func(a, b Mapping) int { return cmp.Compare(a.Unit, b.Unit) })
	loaded := make([]*unit, 0, len(units))
	for _, mp := range units {
		if m.units[mp.Unit] != nil {
			continue
		}
		u := &unit{m: mp, stored: true, state: Associating, cost: 1}
		m.units[mp.Unit] = u
		if in := m.byID[mp.Instance]; in != nil && mp.Instance != "" {
			// Whether it still has the unit cannot be known.
			u.held, u.state = true, Initializing
			m.own(u, in)
		} else if mp.Instance != "" {
			m.setState(u, Shuffling)
		}
		if mp.Purging {
			m.setState(u, Disassociating)
		}
		loaded = append(loaded, u)
	}
	m.weigh()
	// Those with a living owner have been counted; now hand out the others.
	for _, u := range loaded {
		m.step(u, now)
	}
}

func (m *Map) addUnit(name string, now time.Time) {
	if u := m.units[name]; u != nil {
		if u.state == Disassociating {
			u.readd = true
		}
		return
	}
	u := &unit{m: Mapping{Unit: name}, state: Associating, cost: 1}
	m.units[name] = u
	m.unbalanced = true
	m.step(u, now)
}

func (m *Map) removeUnit(name string, now time.Time) {
	u := m.units[name]
	if u == nil {
		return
	}
	u.readd = false
	if u.state == Disassociating {
		return
	}
	m.setState(u, Disassociating)
	// An action under way is waited for: its outcome decides what is left to do.
	// One that waits to be repeated is not.
	if u.seq == 0 {
		m.step(u, now)
	}
}

func (m *Map) join(id string, now time.Time) {
	if id == "" || m.byID[id] != nil {
		return
	}
	m.addInstance(id)
	for _, u := range sorted(m.stalled) {
		m.step(u, now)
	}
	m.balance(now)
}

func (m *Map) leave(id string, now time.Time) {
	in := m.byID[id]
	if in == nil {
		return
	}
	delete(m.byID, id)
	m.live = slices.DeleteFunc(m.live, func(i *instance) bool { return i == in })
	delete(m.draining, id)
	units := sorted(in.units)
	for _, u := range units {
		m.disown(u)
		u.held = false
		if u.state != Disassociating {
			m.setState(u, Shuffling)
		}
	}
	for _, u := range units {
		// What was asked of the dead needs no answer, but two changes of the
		// stored mapping must not overtake each other.
		if u.seq == 0 || u.doing == Acquire || u.doing == Release {
			m.step(u, now)
		}
	}
	m.unbalanced = true
}

func (m *Map) done(ev ActionDone, now time.Time) {
	u := m.units[ev.Action.Mapping.Unit]
	if u == nil || u.seq == 0 || u.seq != ev.Action.Seq {
		return
	}
	u.seq = 0
	if ev.Err != nil {
		m.failed(u, now)
		return
	}
	u.failures = 0
	switch u.doing {
	case Store:
		u.stored = true
	case Delete:
		m.drop(u, now)
		return
	case Acquire:
		if u.state == Initializing || u.state == Associating {
			u.doing = 0
			m.setState(u, Associated)
			return
		}
	case Release:
		u.held = false
	}
	m.step(u, now)
}

// failed arranges for what was under way to be done again. The step to take is
// worked out afresh then, as more may have happened.
func (m *Map) failed(u *unit, now time.Time) {
	if u.state == Disassociating && u.doing == Acquire {
		u.failures = 0
		m.step(u, now) // no longer wanted
		return
	}
	delay := m.p.RetryMax
	if u.failures < 16 {
		delay = min(delay, m.p.RetryMin<<u.failures)
	}
	u.failures++
	m.wait(u, now.Add(delay))
}

func (m *Map) tick(now time.Time) {
	for len(m.timers) > 0 && !m.timers[0].at.After(now) {
		t := heap.Pop(&m.timers).(timer)
		u := t.u
		if m.units[u.m.Unit] != u || u.doing == 0 || !u.due.Equal(t.at) {
			continue
		}
		if u.seq != 0 { // the result is lost
			u.seq = 0
			u.failures++
		}
		m.step(u, now)
	}
	if m.unbalanced || (!m.balanceAt.IsZero() && !now.Before(m.balanceAt)) {
		m.balance(now)
	}
}

// step does what comes next for a unit. No action of it may be under way that
// is still to be waited for.
func (m *Map) step(u *unit, now time.Time) {
	delete(m.stalled, u)
	u.doing, u.seq = 0, 0
	switch u.state {
	case Disassociating:
		switch {
		case u.owner != nil && !u.m.Purging:
			// Stored first, so that whoever leads next goes on with it.
			u.m.Purging = true
			m.do(u, Store, now)
		case u.owner != nil && !u.stored:
			m.do(u, Store, now)
		case u.owner != nil && u.held:
			m.do(u, Release, now)
		default:
			m.do(u, Delete, now)
		}
	case Initializing:
		m.acquire(u, now)
	case Shuffling:
		if u.owner != nil && u.held {
			m.do(u, Release, now)
			return
		}
		m.disown(u)
		m.setState(u, Associating)
		fallthrough
	case Associating:
		if u.owner == nil {
			in := m.place(u)
			if in == nil {
				m.stalled[u] = struct{}{}
				return
			}
			m.own(u, in)
			u.m.Instance, u.m.LastShuffled, u.stored = in.id, now, false
		}
		if !u.stored {
			m.do(u, Store, now)
			return
		}
		m.acquire(u, now)
	case Associated:
	}
}

// acquire tells the owner to take up the unit. After an attempt whose outcome
// is not known it is told to give it up first, because the stock daemon breaks
// when it gets a unit that it has.
func (m *Map) acquire(u *unit, now time.Time) {
	if u.held && u.failures > 0 {
		m.do(u, Release, now)
		return
	}
	u.held = true
	m.do(u, Acquire, now)
}

func (m *Map) do(u *unit, k ActionKind, now time.Time) {
	m.seq++
	u.doing, u.seq = k, m.seq
	m.out = append(m.out, Action{Kind: k, Mapping: u.m, Seq: m.seq})
	m.wait(u, now.Add(m.p.ActionTimeout))
}

func (m *Map) wait(u *unit, until time.Time) {
	u.due = until
	heap.Push(&m.timers, timer{at: until, u: u})
}

func (m *Map) drop(u *unit, now time.Time) {
	m.disown(u)
	delete(m.units, u.m.Unit)
	delete(m.loads, u.m.Unit)
	m.unbalanced = true
	if u.readd {
		m.addUnit(u.m.Unit, now)
	}
}

// setState keeps the counters that depend on a unit's state.
func (m *Map) setState(u *unit, s State) {
	if u.state == Shuffling {
		m.floating--
	}
	if u.owner != nil && u.state.leaves() {
		u.owner.leaving--
		u.owner.cost += u.cost
	}
	if s == Shuffling {
		m.floating++
	}
	if u.owner != nil && s.leaves() {
		u.owner.leaving++
		u.owner.cost -= u.cost
	}
	if s == Disassociating {
		delete(m.stalled, u)
	}
	u.state = s
	m.unbalanced = true
}

func (s State) leaves() bool { return s == Shuffling || s == Disassociating }

// own is for units that are not about to leave.
func (m *Map) own(u *unit, in *instance) {
	u.owner = in
	in.units[u] = struct{}{}
	in.cost += u.cost
}

func (m *Map) disown(u *unit) {
	if u.owner == nil {
		return
	}
	delete(u.owner.units, u)
	if u.state.leaves() {
		u.owner.leaving--
	} else {
		u.owner.cost -= u.cost
	}
	u.owner = nil
}

func (m *Map) addInstance(id string) {
	in := &instance{id: id, units: make(map[*unit]struct{})}
	m.byID[id] = in
	m.live = append(m.live, in)
	m.unbalanced = true
}

func sorted(set map[*unit]struct{}) []*unit {
	units := make([]*unit, 0, len(set))
	for u := range set {
		units = append(units, u)
	}
	slices.SortFunc(units, func(a, b *unit) int { return cmp.Compare(a.m.Unit, b.m.Unit) })
	return units
}

// timer is when to look at a unit again; it is void unless the unit's due says
// the same.
type timer struct {
	at time.Time
	u  *unit
}

type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	x := old[len(old)-1]
	*t = old[:len(old)-1]
	return x
}
