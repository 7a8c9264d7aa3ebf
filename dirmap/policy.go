package dirmap

import (
	"cmp"
	"slices"
	"time"
)

func (m *Map) pin(ev UnitPinned) {
	if m.pins[ev.Unit] == ev.Instance {
		return
	}
	if ev.Instance == "" {
		delete(m.pins, ev.Unit)
	} else {
		m.pins[ev.Unit] = ev.Instance
	}
	m.unbalanced = true
}

func (m *Map) drain(ev InstanceDraining) {
	if m.draining[ev.Instance] == ev.Draining {
		return
	}
	if ev.Draining {
		m.draining[ev.Instance] = true
	} else {
		delete(m.draining, ev.Instance)
	}
	m.unbalanced = true
}

func (m *Map) noteLoad(ev UnitLoad) {
	was := m.loads[ev.Unit]
	if was == ev || (was == UnitLoad{} && ev.Bytes <= 0 && ev.Lag <= 0) {
		return
	}
	if ev.Bytes <= 0 && ev.Lag <= 0 {
		delete(m.loads, ev.Unit)
	} else {
		m.loads[ev.Unit] = ev
	}
	if m.p.Policy == LoadAware {
		m.reweigh, m.unbalanced = true, true
	}
}

// takers are the instances that units are given to: those that are not being
// drained or, if there are none, all.
func (m *Map) takers() []*instance {
	if len(m.draining) == 0 {
		return m.live
	}
	out := slices.DeleteFunc(slices.Clone(m.live), func(in *instance) bool { return m.draining[in.id] })
	if len(out) == 0 {
		return m.live
	}
	return out
}

// home is the instance that a unit is pinned to, if it can be there.
func (m *Map) home(u *unit) *instance {
	if len(m.pins) == 0 {
		return nil
	}
	in := m.byID[m.pins[u.m.Unit]]
	if in == nil || m.draining[in.id] {
		return nil
	}
	return in
}

// place chooses the owner of a unit that has none; nil when nobody is there.
func (m *Map) place(u *unit) *instance {
	if in := m.home(u); in != nil {
		return in
	}
	var best *instance
	for _, in := range m.takers() {
		if best == nil || m.lighter(in, best) {
			best = in
		}
	}
	return best
}

func (m *Map) lighter(a, b *instance) bool {
	if m.p.Policy == LoadAware && a.cost != b.cost {
		return a.cost < b.cost
	}
	return a.staying() < b.staying()
}

// balance moves units to where they belong. What cannot be moved yet is left
// for a later tick.
func (m *Map) balance(now time.Time) {
	m.unbalanced, m.balanceAt = false, time.Time{}
	m.weigh()
	takers := m.takers()
	if len(takers) == 0 {
		return
	}
	m.obey(takers, now)
	if len(takers) < 2 {
		return
	}
	if m.p.Policy == LoadAware {
		m.level(takers, now)
		return
	}
	m.even(takers, now)
}

// obey moves what an operator wants elsewhere. No throttle holds that up.
func (m *Map) obey(takers []*instance, now time.Time) {
	if len(m.draining) == 0 && len(m.pins) == 0 {
		return
	}
	for _, in := range m.live {
		leaves := m.draining[in.id] && !slices.Contains(takers, in)
		if len(m.pins) == 0 && !leaves {
			continue
		}
		var moving []*unit
		for u := range in.units {
			home := m.home(u)
			switch {
			case u.state.leaves() || home == in || home == nil && !leaves:
			case u.state != Associated:
				m.unbalanced = true // look again when it is
			default:
				moving = append(moving, u)
			}
		}
		m.move(byName(moving), now)
	}
}

func (m *Map) move(units []*unit, now time.Time) {
	for _, u := range units {
		m.setState(u, Shuffling)
		m.step(u, now)
	}
}

// even moves as many units as it takes to make the numbers of units differ by
// one at most, as far as pins allow, and no more.
func (m *Map) even(takers []*instance, now time.Time) {
	total := m.floating
	for _, in := range m.live {
		if slices.Contains(takers, in) {
			total += in.staying()
		}
	}
	pinned := m.pinned()
	share, rest := shareOf(total, takers, pinned)
	// Whoever has most keeps the odd ones: that moves the fewest.
	byLoad := slices.Clone(takers)
	slices.SortStableFunc(byLoad, func(a, b *instance) int { return cmp.Compare(b.staying(), a.staying()) })
	for _, in := range byLoad {
		quota := max(share, pinned[in])
		if rest > 0 && pinned[in] <= share {
			quota++
			rest--
		}
		if excess := in.staying() - quota; excess > 0 {
			m.shed(in, excess, now)
		}
	}
}

// pinned counts for each instance the units that belong to it.
func (m *Map) pinned() map[*instance]int {
	if len(m.pins) == 0 {
		return nil
	}
	out := make(map[*instance]int)
	for name := range m.pins {
		if u := m.units[name]; u != nil && u.state != Disassociating {
			if in := m.home(u); in != nil {
				out[in]++
			}
		}
	}
	return out
}

// shareOf returns how many units each taker gets that has not more by its pins,
// and how many of them get one more.
func shareOf(total int, takers []*instance, pinned map[*instance]int) (share, rest int) {
	counts := make([]int, 0, len(takers))
	for _, in := range takers {
		counts = append(counts, pinned[in])
	}
	slices.Sort(counts)
	// Those with the most pinned ones take no part, as long as they have more
	// than the others get.
	for n := len(counts); n > 0; n-- {
		if share = total / n; share >= counts[n-1] {
			return share, total % n
		}
		total -= counts[n-1]
	}
	return 0, 0
}

// movable returns the units of an instance that may be moved now, in no order.
func (m *Map) movable(in *instance, now time.Time) []*unit {
	var ready []*unit
	for u := range in.units {
		switch {
		case u.state.leaves() || m.home(u) != nil:
		case u.state != Associated:
			m.unbalanced = true // look again when it is
		case now.Before(u.m.LastShuffled.Add(m.p.ShuffleInterval)) && !m.early(u, now):
			at := u.m.LastShuffled.Add(m.p.ShuffleInterval)
			if m.balanceAt.IsZero() || at.Before(m.balanceAt) {
				m.balanceAt = at
			}
		default:
			ready = append(ready, u)
		}
	}
	return ready
}

// early tells whether a unit was handed out in a cold start that is not over.
func (m *Map) early(u *unit, now time.Time) bool {
	return now.Sub(m.loadedAt) < m.p.ColdStart && !u.m.LastShuffled.Before(m.loadedAt)
}

func longestSettled(a, b *unit) int {
	return cmp.Or(a.m.LastShuffled.Compare(b.m.LastShuffled), cmp.Compare(a.m.Unit, b.m.Unit))
}

// shed begins to move n units off an instance, the longest settled ones.
func (m *Map) shed(in *instance, n int, now time.Time) {
	m.move(first(m.movable(in, now), n), now)
}

// first returns the n longest settled units, in order. Most often few of many
// are asked for.
func first(units []*unit, n int) []*unit {
	const few = 64
	if n >= few {
		slices.SortFunc(units, longestSettled)
		return units[:min(n, len(units))]
	}
	out := make([]*unit, 0, n+1)
	for _, u := range units {
		if len(out) == n && longestSettled(u, out[n-1]) > 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(out, u, longestSettled)
		out = slices.Insert(out, at, u)
		out = out[:min(n, len(out))]
	}
	return out
}

const (
	// byteShare is how much all bytes together cost, for each unit there is.
	byteShare = 4
	// lagMost is the lag that doubles what a unit costs.
	lagMost = 5 * time.Minute
	// slack is by how much of their mean the instances' costs may differ.
	slack = 0.2
)

// weigh works out what the units cost.
func (m *Map) weigh() {
	if !m.reweigh {
		return
	}
	m.reweigh = false
	bytes := 0.0
	for name, l := range m.loads {
		if m.units[name] != nil {
			bytes += max(0, l.Bytes)
		}
	}
	for _, in := range m.live {
		in.cost = 0
	}
	for name, u := range m.units {
		u.cost = 1
		if l, ok := m.loads[name]; ok {
			if bytes > 0 {
				u.cost += byteShare * float64(len(m.units)) * max(0, l.Bytes) / bytes
			}
			u.cost *= 1 + float64(min(max(0, l.Lag), lagMost))/float64(lagMost)
		}
		if u.owner != nil && !u.state.leaves() {
			u.owner.cost += u.cost
		}
	}
}

// level moves units from the instance that bears most to the one that bears
// least, until they differ by little.
func (m *Map) level(takers []*instance, now time.Time) {
	if m.floating > 0 {
		m.unbalanced = true // who gets them is known when they have come down
		return
	}
	sum := 0.0
	cost := make(map[*instance]float64, len(takers))
	for _, in := range takers {
		cost[in] = in.cost
		sum += in.cost
	}
	allowed := slack * sum / float64(len(takers))
	ready := make(map[*instance][]*unit)
	var moving []*unit
	byCost := func(a, b *instance) int { return cmp.Compare(cost[a], cost[b]) }
	for {
		low, high := slices.MinFunc(takers, byCost), slices.MaxFunc(takers, byCost)
		gap := cost[high] - cost[low]
		if gap <= allowed {
			break
		}
		list, ok := ready[high]
		if !ok {
			list = m.movable(high, now)
			slices.SortFunc(list, func(a, b *unit) int { return cmp.Or(cmp.Compare(a.cost, b.cost), longestSettled(a, b)) })
		}
		i := fitting(list, gap)
		if i < 0 {
			break
		}
		u := list[i]
		ready[high] = slices.Delete(list, i, i+1)
		cost[high] -= u.cost
		cost[low] += u.cost
		moving = append(moving, u)
	}
	// The dearest find their place first, as they do in the plan.
	slices.SortFunc(moving, func(a, b *unit) int {
		return cmp.Or(cmp.Compare(b.cost, a.cost), cmp.Compare(a.m.Unit, b.m.Unit))
	})
	m.move(moving, now)
}

// fitting returns the index of the unit, of some in order of their costs, whose
// move leaves least of a gap, -1 when no move makes much difference.
func fitting(list []*unit, gap float64) int {
	i, _ := slices.BinarySearchFunc(list, gap/2, func(u *unit, half float64) int { return cmp.Compare(u.cost, half) })
	best := -1
	for _, k := range []int{i - 1, i} {
		if k < 0 || k >= len(list) || list[k].cost > gap*3/4 {
			continue
		}
		if best < 0 || abs(gap-2*list[k].cost) < abs(gap-2*list[best].cost) {
			best = k
		}
	}
	return best
}

func abs(x float64) float64 { return max(x, -x) }

func byName(units []*unit) []*unit {
	slices.SortFunc(units, func(a, b *unit) int { return cmp.Compare(a.m.Unit, b.m.Unit) })
	return units
}
