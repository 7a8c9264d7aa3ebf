package machine

import (
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cephmirror/rbdmirror/election/message"
)

// The world of these tests is a pool, its object with the lock, watches and
// registrations, the blocklist, and daemons of both kinds, that can be killed,
// frozen and cut off. Time is simulated.

const (
	step         = 250 * time.Millisecond
	oursWatch    = 30 * time.Second
	stockWatch   = 30 * time.Second
	beatTimeout  = 2 * time.Second
	probeTimeout = 3 * time.Second
	noticed      = 2 * time.Second // until one that is shut out has noticed
	believes     = 6 * time.Second // how long it may take itself for the leader
)

func params(id string) Params {
	return Params{ID: id, Beat: 2 * time.Second, Interval: 5 * time.Second, MaxMissed: 2, MaxAttempts: 3}
}

type node struct {
	id    string
	stock bool
	m     *Machine
	began time.Time

	dead, frozen, cut, leaving bool
	since                      time.Time // of being responsive or not
	silent                     time.Time // since when it may not have answered
	pinged                     time.Time // last sign of its watch
	inbox                      []Event
	blockedAt                  time.Time // zero: not shut out
	told                       map[string]bool
	leads                      bool // as told

	// of a stock daemon
	heard, beat, tryAt time.Time
	attempts           int
	locker             string
	acked              map[string]time.Time
}

func (n *node) responsive() bool { return !n.dead && !n.frozen && !n.cut }

type timer struct {
	at  time.Time
	seq int
	f   func()
}

type timers []timer

func (t timers) Len() int { return len(t) }
func (t timers) Less(i, j int) bool {
	return t[i].at.Before(t[j].at) || t[i].at.Equal(t[j].at) && t[i].seq < t[j].seq
}
func (t timers) Swap(i, j int) { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)   { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

type world struct {
	t       *rapid.T
	now     time.Time
	seq     int
	due     timers
	nodes   []*node
	lock    string
	regs    map[string]bool // ids, true: ours
	latency func() time.Duration
	history []string
}

func (w *world) logf(format string, args ...any) {
	w.history = append(w.history, fmt.Sprintf("%7.2f ", w.now.Sub(time.Unix(0, 0)).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, l := range w.history[max(0, len(w.history)-150):] {
		w.t.Log(l)
	}
	w.t.Fatalf("%.2f: %s", w.now.Sub(time.Unix(0, 0)).Seconds(), fmt.Sprintf(format, args...))
}

func (w *world) after(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.due, timer{w.now.Add(d), w.seq, f})
}

func (w *world) node(id string) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

func (w *world) start(stock bool) *node {
	id := fmt.Sprint(4000 + len(w.nodes))
	n := &node{id: id, stock: stock, began: w.now, since: w.now, silent: w.now, pinged: w.now, told: map[string]bool{}, acked: map[string]time.Time{}}
	n.heard, n.tryAt = w.now, w.now
	w.nodes = append(w.nodes, n)
	w.regs[id] = !stock
	w.logf("start %s stock %v", id, stock)
	if !stock {
		n.m = New(params(id))
		w.give(n, Start{})
	}
	return n
}

func (w *world) watching(n *node) bool {
	limit := oursWatch
	if n.stock {
		limit = stockWatch
	}
	return n.blockedAt.IsZero() && !n.leaving && w.now.Sub(n.pinged) < limit
}

// block shuts a node out, and is the place to see whether that is fair.
func (w *world) block(id, by string) {
	n := w.node(id)
	if n == nil || !n.blockedAt.IsZero() {
		return
	}
	w.logf("%s is shut out by %s", id, by)
	n.blockedAt = w.now
	if w.node(by).stock {
		return // which judges by its clock alone
	}
	if n.responsive() && !n.leaving && w.now.Sub(n.since) > noticed {
		w.fail("%s lives and was shut out by %s", id, by)
	}
	silent := w.now.Sub(n.silent)
	if n.responsive() {
		return // it was not until just now
	}
	if n.stock && !n.leaving && silent < 18*time.Second {
		w.fail("stock %s was shut out after %v", id, silent)
	}
	if !n.stock && !n.leaving && silent < 3*time.Second {
		w.fail("%s was shut out after %v", id, silent)
	}
}

// give passes an event to a node of ours and carries out what it decides.
func (w *world) give(n *node, ev Event) {
	if n.dead || n.m == nil {
		return
	}
	if n.frozen {
		n.inbox = append(n.inbox, ev)
		return
	}
	for _, a := range n.m.Handle(ev, w.now) {
		w.carryOut(n, a)
	}
}

// reach calls f when the cluster gets to see a request of n, and never when n
// is dead by then.
func (w *world) reach(n *node, f func()) {
	w.after(w.latency(), func() {
		if n.cut && !n.dead {
			w.after(time.Second, func() { w.reach(n, f) })
			return
		}
		f()
	})
}

func (w *world) reply(n *node, ev Event) { w.after(w.latency(), func() { w.deliver(n, ev) }) }

func (w *world) deliver(n *node, ev Event) {
	if n.cut && !n.dead {
		w.after(time.Second, func() { w.deliver(n, ev) })
		return
	}
	w.give(n, ev)
}

// notify tells all who watch and calls f with those who have answered.
func (w *world) notify(n *node, op message.LeaderOp, only string, timeout time.Duration, f func(acks []string, silent bool)) {
	var acks []string
	var late []*node
	for _, o := range w.nodes {
		if !w.watching(o) || only != "" && o.id != only {
			continue
		}
		if o.responsive() {
			acks = append(acks, o.id)
			w.after(w.latency(), func() { w.hear(o, op, n.id) })
		} else {
			late = append(late, o)
		}
	}
	if len(late) == 0 {
		f(acks, false)
		return
	}
	w.after(timeout, func() {
		silent := false
		for _, o := range late {
			if o.responsive() && w.watching(o) {
				acks = append(acks, o.id)
				w.hear(o, op, n.id)
			} else {
				silent = true
			}
		}
		f(acks, silent)
	})
}

func (w *world) hear(o *node, op message.LeaderOp, from string) {
	if !o.stock {
		w.give(o, Heard{Op: op, From: from})
		return
	}
	if o.id == from {
		return
	}
	switch op {
	case message.Heartbeat:
		o.heard, o.attempts, o.tryAt = w.now, 0, w.now.Add(10*time.Second)
	case message.LockAcquired, message.LockReleased:
		o.attempts, o.tryAt = 0, w.now
	}
}

var errGone = errors.New("shut out")

func (w *world) carryOut(n *node, a Action) {
	if _, beat := a.(Beat); !beat {
		w.logf("%s: %T%+v", n.id, a, a)
	}
	blocked := func() bool { return !n.blockedAt.IsZero() }
	switch a := a.(type) {
	case Try:
		w.reach(n, func() {
			var broke string
			if h := w.node(w.lock); h != nil && h != n && !blocked() {
				if w.watching(h) && (a.Break == nil || a.Break.ID != h.id) {
					w.reply(n, Tried{Holder: Holder{ID: h.id, Cookie: h.id, Ours: !h.stock}})
					return
				}
				w.block(h.id, n.id)
				broke = h.id
			}
			if blocked() || n.dead || !w.watching(n) {
				w.reply(n, Tried{Err: errGone, Broke: broke})
				return
			}
			w.logf("%s has the lock", n.id)
			w.lock = n.id
			w.reply(n, Tried{Got: true, Broke: broke})
		})
	case Probe:
		w.reach(n, func() {
			w.notify(n, message.Probe, "", probeTimeout, func(acks []string, _ bool) {
				if blocked() {
					w.reply(n, Probed{Leader: a.Leader, Err: errGone})
					return
				}
				w.reply(n, Probed{Leader: a.Leader, Alive: slices.Contains(acks, a.Leader)})
			})
		})
	case ProbeMember:
		w.reach(n, func() {
			w.notify(n, message.Probe, a.ID, probeTimeout, func(acks []string, _ bool) {
				if blocked() {
					w.reply(n, MemberProbed{ID: a.ID, Err: errGone})
					return
				}
				w.reply(n, MemberProbed{ID: a.ID, Alive: slices.Contains(acks, a.ID)})
			})
		})
	case Beat:
		op := message.Heartbeat
		if a.Announce {
			op = message.LockAcquired
		}
		w.reach(n, func() {
			if blocked() {
				w.reply(n, Beaten{Sent: a.Sent, Err: errGone})
				return
			}
			w.notify(n, op, "", beatTimeout, func(acks []string, _ bool) {
				w.reply(n, Beaten{Sent: a.Sent, Acks: acks})
			})
		})
	case ReadMembers:
		w.reach(n, func() {
			if blocked() {
				w.reply(n, MembersRead{Err: errGone})
				return
			}
			ms := map[string]Registration{}
			for id, ours := range w.regs {
				ms[id] = Registration{Ours: ours, Namespaces: []string{""}}
			}
			w.reply(n, MembersRead{Members: ms, Namespaces: []string{""}})
		})
	case ShutOut:
		w.reach(n, func() {
			if blocked() || n.dead || w.lock != n.id {
				w.reply(n, Shut{ID: a.ID, Err: errGone})
				return
			}
			w.block(a.ID, n.id)
			delete(w.regs, a.ID)
			w.reply(n, Shut{ID: a.ID})
		})
	case Check:
		w.reach(n, func() {
			if blocked() {
				w.reply(n, Checked{Asked: a.Asked, Err: errGone})
				return
			}
			w.reply(n, Checked{Asked: a.Asked, Ours: w.lock == n.id})
		})
	case Unlock:
		w.reach(n, func() {
			if blocked() {
				w.reply(n, Unlocked{Err: errGone})
				return
			}
			if w.lock == n.id {
				w.logf("%s gave the lock back", n.id)
				w.lock = ""
				w.notify(n, message.LockReleased, "", beatTimeout, func([]string, bool) {})
			}
			w.reply(n, Unlocked{})
		})
	case Tell:
		switch a.What {
		case LeaderGained:
			if n.leads {
				w.fail("%s was told twice that it leads", n.id)
			}
			n.leads = true
			clear(n.told)
		case LeaderLost:
			n.leads = false
		case Joined:
			if n.told[a.Instance] || !n.leads {
				w.fail("%s hears that %s joins, leading %v", n.id, a.Instance, n.leads)
			}
			n.told[a.Instance] = true
		case Left:
			if !n.told[a.Instance] {
				w.fail("%s hears that %s left, which has not joined", n.id, a.Instance)
			}
			delete(n.told, a.Instance)
			if o := w.node(a.Instance); o.blockedAt.IsZero() && w.regs[a.Instance] {
				w.fail("%s is said to have left and can still write", a.Instance)
			}
		}
	}
}

// stockRound is what a stock daemon does, as far as others can tell.
func (w *world) stockRound(n *node) {
	if !n.responsive() || !n.blockedAt.IsZero() || n.leaving {
		return
	}
	if w.lock == n.id {
		if w.now.Sub(n.beat) >= 5*time.Second {
			n.beat = w.now
			w.notify(n, message.Heartbeat, "", 5*time.Second, func(acks []string, _ bool) {
				for _, id := range acks {
					n.acked[id] = w.now
				}
			})
		}
		for id := range w.regs {
			at, ok := n.acked[id]
			if !ok {
				n.acked[id] = w.now
			} else if id != n.id && w.now.Sub(at) >= 30*time.Second {
				w.block(id, n.id)
				delete(w.regs, id)
			}
		}
		return
	}
	if w.now.Before(n.tryAt) {
		return
	}
	n.tryAt = w.now.Add(10 * time.Second)
	h := w.node(w.lock)
	if h != nil && w.watching(h) && (n.attempts < 3 || n.locker != h.id) {
		if n.attempts++; n.locker != h.id {
			n.attempts, n.locker = 1, h.id
		}
		return
	}
	if h != nil {
		w.block(h.id, n.id)
	}
	w.logf("stock %s has the lock", n.id)
	w.lock = n.id
	n.attempts = 0
	n.beat = time.Time{}
	clear(n.acked)
	w.notify(n, message.LockAcquired, "", 5*time.Second, func([]string, bool) {})
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		next := w.now.Add(step)
		for len(w.due) > 0 && !w.due[0].at.After(next) {
			t := heap.Pop(&w.due).(timer)
			if t.at.After(w.now) {
				w.now = t.at
			}
			t.f()
		}
		w.now = next
		for _, n := range w.nodes {
			if n.responsive() {
				n.pinged = w.now
			}
			if n.stock {
				w.stockRound(n)
			} else {
				if n.responsive() && !n.blockedAt.IsZero() && w.now.Sub(n.blockedAt) > noticed && w.now.Sub(n.since) > noticed {
					n.dead, n.leads = true, false
				}
				w.give(n, Tick{})
			}
		}
		w.check()
	}
}

// check looks at what must hold at every moment.
func (w *world) check() {
	var believe []string
	for _, n := range w.nodes {
		if n.dead || n.frozen || n.m == nil || !n.m.Leading(w.now) {
			continue
		}
		if n.blockedAt.IsZero() {
			believe = append(believe, n.id)
		} else if w.now.Sub(n.blockedAt) > believes {
			w.fail("%s leads %v after it was shut out", n.id, w.now.Sub(n.blockedAt))
		}
	}
	if len(believe) > 1 {
		w.fail("%v lead at once", believe)
	}
}

func (w *world) disturb(n *node, change func()) {
	was := n.responsive()
	change()
	if was && !n.responsive() {
		if w.now.Sub(n.since) > 8*time.Second {
			n.silent = w.now
		}
		n.since = w.now
	}
	if !was && n.responsive() {
		n.since = w.now
		for _, ev := range n.inbox {
			w.give(n, ev)
		}
		n.inbox = nil
	}
}

// settled looks at what must hold after a while without disturbance.
func (w *world) settled(what string) {
	var alive []string
	for _, n := range w.nodes {
		if n.responsive() && n.blockedAt.IsZero() && !n.leaving {
			alive = append(alive, n.id)
		}
	}
	if len(alive) == 0 {
		return
	}
	l := w.node(w.lock)
	if l == nil || !slices.Contains(alive, l.id) {
		w.fail("%s: the lock is held by %q, alive are %v", what, w.lock, alive)
	}
	for _, id := range alive {
		n := w.node(id)
		if n.stock {
			continue
		}
		if got := n.m.Leader(); got != w.lock {
			w.fail("%s: %s takes %q for the leader, and not %s", what, id, got, w.lock)
		}
		if n.leads != (id == w.lock) {
			w.fail("%s: %s was told leading %v, the lock is held by %s", what, id, n.leads, w.lock)
		}
	}
	if l.stock {
		return
	}
	if got := l.m.Members(); !slices.Equal(got, alive) {
		w.fail("%s: members %v, alive are %v", what, got, alive)
	}
	if got := slices.Sorted(maps.Keys(l.told)); !slices.Equal(got, alive) {
		w.fail("%s: told of %v, alive are %v", what, got, alive)
	}
	if got := slices.Sorted(maps.Keys(w.regs)); !slices.Equal(got, alive) {
		w.fail("%s: registered are %v, alive are %v", what, got, alive)
	}
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, now: time.Unix(0, 0), regs: map[string]bool{}}
	rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	slow := rapid.IntRange(1, 600).Draw(t, "latency")
	w.latency = func() time.Duration { return time.Duration(1+rnd.IntN(slow)) * time.Millisecond }
	return w
}

func (w *world) leave(n *node) {
	w.logf("%s leaves", n.id)
	delete(w.regs, n.id)
	if n.stock {
		n.leaving, n.dead = true, true
		if w.lock == n.id {
			w.lock = ""
			w.notify(n, message.LockReleased, "", beatTimeout, func([]string, bool) {})
		}
		return
	}
	w.notify(n, message.Changed, "", beatTimeout, func([]string, bool) {})
	w.give(n, Stop{})
	w.after(2*time.Second, func() {
		if n.dead {
			return
		}
		if !n.m.Idle() && n.responsive() && n.blockedAt.IsZero() && w.now.Sub(n.since) > noticed {
			w.fail("%s has not given up what it has", n.id)
		}
		n.leaving, n.dead, n.leads = true, true, false
	})
}

func testElection(t *testing.T, stock bool) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 4).Draw(t, "daemons") {
			w.start(stock && rapid.Bool().Draw(t, "stock"))
			w.pass(time.Duration(rapid.IntRange(0, 3000).Draw(t, "gap")) * time.Millisecond)
		}
		calm := 12 * time.Second
		if stock {
			calm = 75 * time.Second
		}
		for range rapid.IntRange(0, 8).Draw(t, "events") {
			var up []*node
			for _, n := range w.nodes {
				if !n.dead {
					up = append(up, n)
				}
			}
			what := rapid.SampledFrom([]string{"start", "kill", "freeze", "cut", "mend", "mend", "leave", "resign", "rest"}).Draw(t, "what")
			if len(up) == 0 {
				what = "start"
			}
			if what == "start" {
				w.start(stock && rapid.Bool().Draw(t, "stock"))
			} else {
				n := up[rapid.IntRange(0, len(up)-1).Draw(t, "whom")]
				w.logf("%s %s", what, n.id)
				switch what {
				case "kill":
					w.disturb(n, func() { n.dead = true })
				case "freeze":
					w.disturb(n, func() { n.frozen = true })
				case "cut":
					w.disturb(n, func() { n.cut = true })
				case "mend":
					w.disturb(n, func() { n.frozen, n.cut = false, false })
				case "leave":
					if n.responsive() {
						w.leave(n)
					}
				case "resign":
					w.give(n, Resign{})
				case "rest":
					w.pass(calm)
				}
			}
			w.pass(time.Duration(rapid.IntRange(0, 20000).Draw(t, "pause")) * time.Millisecond)
		}
		for _, n := range w.nodes {
			if !n.dead {
				w.disturb(n, func() { n.frozen, n.cut = false, false })
			}
		}
		w.logf("all is well")
		// The leader may have died right after it was given the lead, and with
		// it members of which only its successor can find out.
		w.pass(calm + 25*time.Second)
		w.settled("in the end")
	})
}

func TestElectionAmongOurs(t *testing.T)     { testElection(t, false) }
func TestElectionWithStockOnes(t *testing.T) { testElection(t, true) }

// TestTheDeadAreReplacedSoon bounds how long a dead one of ours is missed.
func TestTheDeadAreReplacedSoon(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(2, 4).Draw(t, "daemons") {
			w.start(false)
		}
		w.pass(15*time.Second + time.Duration(rapid.IntRange(0, 4000).Draw(t, "phase"))*time.Millisecond)
		n := w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "whom")]
		how := rapid.SampledFrom([]string{"kill", "freeze", "cut", "leave"}).Draw(t, "how")
		w.logf("%s %s, the leader is %s", how, n.id, w.lock)
		bound := 11 * time.Second
		switch how {
		case "kill":
			w.disturb(n, func() { n.dead = true })
		case "freeze":
			w.disturb(n, func() { n.frozen = true })
		case "cut":
			w.disturb(n, func() { n.cut = true })
		case "leave":
			w.leave(n)
			bound = 3 * time.Second
		}
		w.pass(bound)
		w.settled("soon after")
	})
}

// TestShortPausesHarmNobody: what is shorter than the bounds changes nothing.
func TestShortPausesHarmNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 4).Draw(t, "daemons") {
			w.start(false)
		}
		w.pass(15 * time.Second)
		leader := w.lock
		for range rapid.IntRange(1, 5).Draw(t, "pauses") {
			for _, n := range w.nodes {
				if rapid.Bool().Draw(t, "cut") {
					w.disturb(n, func() { n.cut = true })
				} else {
					w.disturb(n, func() { n.frozen = rapid.Bool().Draw(t, "freeze") })
				}
			}
			w.pass(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond)
			for _, n := range w.nodes {
				w.disturb(n, func() { n.frozen, n.cut = false, false })
			}
			w.pass(time.Duration(rapid.IntRange(4000, 8000).Draw(t, "rest")) * time.Millisecond)
		}
		w.pass(5 * time.Second)
		w.settled("after the pauses")
		if w.lock != leader {
			w.fail("%s leads, and not %s", w.lock, leader)
		}
	})
}
