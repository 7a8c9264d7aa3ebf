package dirmap

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is what a Map acts on: stored mappings, instances and what they are at
// work on, and messages that are late, lost and repeated.
type world struct {
	m      *Map
	now    time.Time
	stored map[string]Mapping
	wanted map[string]bool            // units that should be replicated
	live   map[string]map[string]bool // instance to the units it holds
	told   map[string]bool            // "instance unit": acquire sent, no release carried out since
	open   []Action                   // not yet carried out
	old    []ActionDone               // results to repeat
	bornIn map[string]time.Time       // action timeouts
	next   int
	moves  int
	t      *rapid.T

	policy   Policy
	pins     map[string]string
	draining map[string]bool
	orders   bool // an operator has pinned or drained something
}

func newWorld(t *rapid.T, policy Policy) *world {
	w := &world{
		t: t, m: New(Params{Policy: policy}), now: t0, policy: policy,
		pins: map[string]string{}, draining: map[string]bool{},
		stored: map[string]Mapping{}, wanted: map[string]bool{},
		live: map[string]map[string]bool{}, told: map[string]bool{}, bornIn: map[string]time.Time{},
	}
	return w
}

func (w *world) instances() []string { return slices.Sorted(maps.Keys(w.live)) }

func (w *world) join() string {
	w.next++
	id := fmt.Sprint(w.next)
	w.live[id] = map[string]bool{}
	return id
}

func (w *world) load() {
	w.open = nil // a former leader's actions have been carried out or given up
	clear(w.told)
	ev := Loaded{Instances: w.instances()}
	for _, mp := range w.stored {
		ev.Units = append(ev.Units, mp)
	}
	w.tell(ev)
	// What was added or removed without being stored is noticed again.
	for _, u := range slices.Sorted(maps.Keys(w.wanted)) {
		if w.wanted[u] {
			w.tell(UnitAdded{u})
		} else {
			w.tell(UnitRemoved{u})
		}
	}
}

func (w *world) tell(ev Event) {
	_, loading := ev.(Loaded)
	for _, a := range w.m.Handle(ev, w.now) {
		u, in := a.Mapping.Unit, a.Mapping.Instance
		for _, b := range w.open {
			_, dead := w.live[b.Mapping.Instance]
			if b.Mapping.Unit == u && (b.Kind == Store || b.Kind == Delete || dead) {
				w.t.Fatalf("%v while %v is under way", a, b)
			}
		}
		switch a.Kind {
		case Acquire:
			if _, ok := w.live[in]; !ok {
				w.t.Fatalf("acquire sent to dead instance: %v", a)
			}
			if w.told[in+" "+u] {
				w.t.Fatalf("acquire sent twice: %v", a)
			}
			w.told[in+" "+u] = true
			if !loading && w.stored[u].Instance != in {
				w.t.Fatalf("acquired before it is stored: %v", a)
			}
		case Release:
			if st, _ := w.m.Unit(u); st.State == Shuffling && w.now.Sub(a.Mapping.LastShuffled) < 300*time.Second && !w.orders {
				w.t.Fatalf("moved within the throttle: %v", a)
			}
		}
		w.open = append(w.open, a)
		w.bornIn[fmt.Sprint(a.Seq)] = w.now
	}
}

// carryOut has the effect of an action.
func (w *world) carryOut(a Action) {
	u, in := a.Mapping.Unit, a.Mapping.Instance
	switch a.Kind {
	case Store:
		w.stored[u] = a.Mapping
	case Delete:
		delete(w.stored, u)
	case Acquire:
		if held, ok := w.live[in]; ok {
			held[u] = true
			w.moves++
		}
	case Release:
		delete(w.told, in+" "+u)
		delete(w.live[in], u)
	}
	owners := 0
	for _, held := range w.live {
		if held[u] {
			owners++
		}
	}
	if owners > 1 {
		w.t.Fatalf("%s has %d owners", u, owners)
	}
}

func (w *world) take(i int) Action {
	a := w.open[i]
	w.open = slices.Delete(w.open, i, i+1)
	return a
}

func (w *world) answer(a Action, err error) {
	r := ActionDone{Action: a, Err: err}
	w.old = append(w.old, r)
	w.tell(r)
}

// pass lets time go by. What was not carried out in time is given up.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	for i := 0; i < len(w.open); {
		if w.now.Sub(w.bornIn[fmt.Sprint(w.open[i].Seq)]) >= 50*time.Second {
			w.take(i)
		} else {
			i++
		}
	}
	w.tell(Tick{})
}

func (w *world) settle() {
	for range 5000 {
		for len(w.open) > 0 {
			a := w.take(0)
			w.carryOut(a)
			w.answer(a, nil)
		}
		if w.m.Settled() {
			return
		}
		w.pass(7 * time.Second)
	}
	w.t.Fatalf("does not settle: %v", w.m.Loads())
}

func (w *world) checkSettled() {
	for _, u := range slices.Sorted(maps.Keys(w.wanted)) {
		mp, stored := w.stored[u]
		switch {
		case !w.wanted[u] && stored:
			w.t.Fatalf("%s was removed but is stored", u)
		case w.wanted[u] && len(w.live) > 0 && (!stored || mp.Purging || !w.live[mp.Instance][u]):
			w.t.Fatalf("%s is not owned as stored: %v", u, mp)
		}
	}
	for id, held := range w.live {
		for u := range held {
			if !w.wanted[u] {
				w.t.Fatalf("%s still holds removed %s", id, u)
			}
		}
	}
	w.checkOrders()
	switch {
	case len(w.takers()) < 2:
	case w.policy == LoadAware:
		w.checkCosts()
	default:
		w.checkCounts()
	}
}

// takers are the instances that may be given units.
func (w *world) takers() []string {
	out := slices.DeleteFunc(w.instances(), func(id string) bool { return w.draining[id] })
	if len(out) == 0 {
		return w.instances()
	}
	return out
}

func (w *world) home(u string) string {
	if id := w.pins[u]; w.live[id] != nil && !w.draining[id] {
		return id
	}
	return ""
}

// checkOrders: what is pinned is there, and who is drained has nothing.
func (w *world) checkOrders() {
	takers := w.takers()
	for id, held := range w.live {
		for u := range held {
			home := w.home(u)
			if home != "" && home != id {
				w.t.Fatalf("%s is pinned to %s, and at %s", u, home, id)
			}
			if !slices.Contains(takers, id) {
				w.t.Fatalf("%s is being drained and has %s", id, u)
			}
		}
	}
}

// checkCounts: whoever has fewer than another could not be given one of its
// units that is not pinned.
func (w *world) checkCounts() {
	for _, a := range w.takers() {
		free := 0
		for u := range w.live[a] {
			if w.home(u) == "" {
				free++
			}
		}
		for _, b := range w.takers() {
			if free > 0 && len(w.live[a]) > len(w.live[b])+1 {
				w.t.Fatalf("%s has %d units, %d of them free, %s has %d", a, len(w.live[a]), free, b, len(w.live[b]))
			}
		}
	}
}

// checkCosts: no unit is left that ought to be moved.
func (w *world) checkCosts() {
	var takers []*instance
	sum := 0.0
	for _, id := range w.takers() {
		in := w.m.byID[id]
		takers = append(takers, in)
		sum += in.cost
	}
	cost := func(a, b *instance) int { return cmp.Compare(a.cost, b.cost) }
	low, high := slices.MinFunc(takers, cost), slices.MaxFunc(takers, cost)
	gap := high.cost - low.cost
	if gap <= slack*sum/float64(len(takers))+1e-6 {
		return
	}
	for u := range high.units {
		if w.home(u.m.Unit) == "" && u.cost < gap*0.74 {
			w.t.Fatalf("%s costs %v, %s %v, and %s, that costs %v, is not moved", high.id, high.cost, low.id, low.cost, u.m.Unit, u.cost)
		}
	}
}

func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, rapid.SampledFrom([]Policy{LeastUnits, LeastUnits, LoadAware}).Draw(t, "policy"))
		ordered := rapid.Bool().Draw(t, "orders")
		unit := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf("/%02d", rapid.IntRange(0, 11).Draw(t, "n")) })
		stored := rapid.SliceOfDistinct(unit, rapid.ID[string]).Draw(t, "stored")
		for range rapid.IntRange(0, 3).Draw(t, "instances") {
			w.join()
		}
		for _, u := range stored {
			mp := Mapping{Unit: u, Purging: rapid.Bool().Draw(t, "purging")}
			owner := rapid.SampledFrom(append([]string{"", "dead"}, w.instances()...)).Draw(t, "owner")
			if mp.Instance = owner; w.live[owner] != nil {
				w.live[owner][u] = true
			}
			mp.LastShuffled = t0.Add(-time.Duration(rapid.IntRange(0, 600).Draw(t, "age")) * time.Second)
			w.stored[u] = mp
			w.wanted[u] = !mp.Purging
		}
		w.load()
		pick := func(t *rapid.T) int {
			if len(w.open) == 0 {
				t.Skip("nothing under way")
			}
			return rapid.IntRange(0, len(w.open)-1).Draw(t, "action")
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				u := unit.Draw(t, "unit")
				w.wanted[u] = true
				w.tell(UnitAdded{u})
			},
			"remove": func(t *rapid.T) {
				u := unit.Draw(t, "unit")
				w.wanted[u] = false
				w.tell(UnitRemoved{u})
			},
			"join": func(t *rapid.T) {
				if len(w.live) >= 5 {
					t.Skip("enough")
				}
				w.tell(InstanceJoined{w.join()})
			},
			"leave": func(t *rapid.T) {
				if len(w.live) == 0 {
					t.Skip("none")
				}
				id := rapid.SampledFrom(w.instances()).Draw(t, "instance")
				delete(w.live, id)
				delete(w.draining, id)
				w.tell(InstanceLeft{id})
			},
			"pin": func(t *rapid.T) {
				if !ordered {
					t.Skip("no orders")
				}
				u, id := unit.Draw(t, "unit"), rapid.SampledFrom(append([]string{"", "1", "2", "3"}, w.instances()...)).Draw(t, "instance")
				w.orders = true
				if w.pins[u] = id; id == "" {
					delete(w.pins, u)
				}
				w.tell(UnitPinned{u, id})
			},
			"drain": func(t *rapid.T) {
				if !ordered || len(w.live) == 0 {
					t.Skip("no orders")
				}
				id, on := rapid.SampledFrom(w.instances()).Draw(t, "instance"), rapid.Bool().Draw(t, "draining")
				w.orders = true
				if w.draining[id] = on; !on {
					delete(w.draining, id)
				}
				w.tell(InstanceDraining{id, on})
			},
			"load": func(t *rapid.T) {
				w.tell(UnitLoad{
					Unit: unit.Draw(t, "unit"), Bytes: rapid.SampledFrom([]float64{0, 1, 100, 1e9}).Draw(t, "bytes"),
					Lag: time.Duration(rapid.IntRange(0, 400).Draw(t, "lag")) * time.Second,
				})
			},
			"done": func(t *rapid.T) {
				a := w.take(pick(t))
				w.carryOut(a)
				w.answer(a, nil)
			},
			"done2": func(t *rapid.T) {
				a := w.take(pick(t))
				w.carryOut(a)
				w.answer(a, nil)
			},
			"failed": func(t *rapid.T) {
				a := w.take(pick(t))
				if rapid.Bool().Draw(t, "effect") {
					w.carryOut(a)
				}
				w.answer(a, errors.New("failed"))
			},
			"lost": func(t *rapid.T) {
				a := w.take(pick(t))
				if rapid.Bool().Draw(t, "effect") {
					w.carryOut(a)
				}
				w.old = append(w.old, ActionDone{Action: a})
			},
			"stray": func(t *rapid.T) {
				if len(w.old) == 0 {
					t.Skip("none")
				}
				r := rapid.SampledFrom(w.old).Draw(t, "result")
				// The first answer to a lost action is no stray.
				if st := w.m.units[r.Action.Mapping.Unit]; st != nil && st.seq == r.Action.Seq {
					t.Skip("awaited")
				}
				w.tell(r)
			},
			"pass": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds")) * time.Second)
			},
			"takeover": func(t *rapid.T) {
				for len(w.open) > 0 {
					a := w.take(0)
					if rapid.Bool().Draw(t, "effect") {
						w.carryOut(a)
					}
				}
				w.load()
			},
			"": func(t *rapid.T) { w.checkCounters() },
		})
		w.settle()
		w.checkSettled()
		w.checkCounters()
	})
}

// checkCounters compares the kept counters with the units themselves.
func (w *world) checkCounters() {
	floating, leaving, cost := 0, map[*instance]int{}, map[*instance]float64{}
	for _, u := range w.m.units {
		if u.state == Shuffling {
			floating++
		}
		if u.owner == nil {
			continue
		}
		if w.m.byID[u.owner.id] != u.owner {
			w.t.Fatalf("%s is owned by one that left", u.m.Unit)
		}
		if _, ok := u.owner.units[u]; !ok {
			w.t.Fatalf("%s is missing in its owner", u.m.Unit)
		}
		if u.state.leaves() {
			leaving[u.owner]++
		} else {
			cost[u.owner] += u.cost
		}
	}
	if floating != w.m.floating {
		w.t.Fatalf("floating is %d, want %d", w.m.floating, floating)
	}
	for _, in := range w.m.live {
		if in.leaving != leaving[in] {
			w.t.Fatalf("leaving of %s is %d, want %d", in.id, in.leaving, leaving[in])
		}
		if d := in.cost - cost[in]; abs(d) > 1e-6*(1+cost[in]) {
			w.t.Fatalf("%s costs %v, want %v", in.id, in.cost, cost[in])
		}
	}
}

func TestRebalanceMovesNoMoreThanItMust(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, LeastUnits)
		before := rapid.SliceOfN(rapid.IntRange(0, 30), 1, 5).Draw(t, "loads")
		total, n := 0, 0
		for _, load := range before {
			id := w.join()
			for range load {
				u := fmt.Sprintf("/%03d", n)
				n++
				w.stored[u] = Mapping{Unit: u, Instance: id}
				w.wanted[u] = true
				w.live[id][u] = true
			}
			total += load
		}
		w.load()
		acquired := total // of the load itself
		for range rapid.IntRange(0, 4).Draw(t, "joining") {
			before = append(before, 0)
			w.tell(InstanceJoined{w.join()})
		}
		w.settle()
		w.checkSettled()
		// The fewest moves: whoever has most keeps the odd ones.
		slices.Sort(before)
		slices.Reverse(before)
		must := 0
		for i, load := range before {
			quota := total / len(before)
			if i < total%len(before) {
				quota++
			}
			must += max(0, load-quota)
		}
		// Instances joined one by one may have shed in steps.
		if got := w.moves - acquired; got != must {
			t.Fatalf("%d moves, want %d", got, must)
		}
	})
}

func TestManyUnits(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const units, instances = 100_000, 100
	m := New(Params{})
	var ev Loaded
	for i := range instances {
		ev.Instances = append(ev.Instances, fmt.Sprint(i))
	}
	for i := range units {
		ev.Units = append(ev.Units, Mapping{Unit: fmt.Sprintf("/%06d", i)})
	}
	now := t0
	run := func(what string, limit time.Duration, ev Event) {
		t.Helper()
		begin := used()
		open := m.Handle(ev, now)
		first := used() - begin
		n := 0
		for ; len(open) > 0; n++ {
			a := open[0]
			open = append(open[1:], m.Handle(ActionDone{Action: a}, now)...)
		}
		t.Logf("%s: first answer %v, %d actions in %v", what, first, n, used()-begin)
		if first > limit {
			t.Errorf("%s took %v", what, first)
		}
	}
	run("load", 5*time.Second, ev)
	now = now.Add(time.Hour)
	run("join", time.Second, InstanceJoined{"new"})
	run("leave", time.Second, InstanceLeft{"3"})
	run("add", 100*time.Millisecond, UnitAdded{"/one"})
	run("tick", time.Second, Tick{})
	if !m.Settled() {
		t.Fatal("not settled")
	}
}
