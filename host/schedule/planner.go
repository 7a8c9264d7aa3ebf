package schedule

import (
	"cmp"
	"slices"
	"time"
)

// Planner keeps the times at which units are due next. It is not safe for
// concurrent use.
type Planner struct {
	loc   *time.Location
	units map[string]*planned
	now   time.Time // the newest time it was told
}

type planned struct {
	items []Item
	next  time.Time
	late  bool // next was missed
}

// Due is a unit whose time has come.
type Due struct {
	Unit string
	At   time.Time // the time for which it was planned
	// Missed: it makes up for runs that did not take place at their times.
	Missed bool
}

// NewPlanner returns a planner without units. Rules without a zone count in loc.
func NewPlanner(loc *time.Location) *Planner {
	return &Planner{loc: loc, units: make(map[string]*planned)}
}

// Set plans a unit. last is when its newest snapshot was made, whoever made it:
// a run that was missed since is made up once. A unit that is planned already
// keeps its time unless its rules are others now.
func (p *Planner) Set(unit string, items []Item, last, now time.Time) {
	if len(items) == 0 {
		p.Remove(unit)
		return
	}
	if u := p.units[unit]; u != nil && slices.EqualFunc(u.items, items, Item.Same) {
		return
	}
	u := &planned{items: slices.Clone(items), next: NextOf(items, now, p.loc)}
	// A snapshot from the future is one of a clock that was wrong: it tells nothing.
	if !last.IsZero() && !last.After(now) {
		if missed := MissedOf(items, last, now, p.loc); !missed.IsZero() {
			u.next, u.late = missed, true
		}
	}
	p.units[unit] = u
}

// Retry plans a unit for at, unless it is due earlier: its run has failed.
func (p *Planner) Retry(unit string, at time.Time) {
	if u := p.units[unit]; u != nil && (u.next.IsZero() || at.Before(u.next)) {
		u.next = at
	}
}

// Remove forgets a unit.
func (p *Planner) Remove(unit string) { delete(p.units, unit) }

// Keep forgets all units but those given.
func (p *Planner) Keep(units map[string]bool) {
	for unit := range p.units {
		if !units[unit] {
			delete(p.units, unit)
		}
	}
}

// Due returns the units whose time has come, each once however many runs were
// missed, and plans their next ones. When the clock was put back, all are
// planned anew from the time it shows now.
func (p *Planner) Due(now time.Time) []Due {
	back := now.Before(p.now)
	p.now = now
	var due []Due
	for unit, u := range p.units {
		if back {
			if next := NextOf(u.items, now, p.loc); next.Before(u.next) {
				u.next, u.late = next, false
			}
		}
		if u.next.IsZero() || u.next.After(now) {
			continue
		}
		after := NextOf(u.items, u.next, p.loc)
		due = append(due, Due{unit, u.next, u.late || !after.IsZero() && !after.After(now)})
		u.next, u.late = NextOf(u.items, now, p.loc), false
	}
	sortDue(due)
	return due
}

// Next returns all units with the times at which they are due, the first first.
func (p *Planner) Next() []Due {
	var all []Due
	for unit, u := range p.units {
		if !u.next.IsZero() {
			all = append(all, Due{unit, u.next, u.late})
		}
	}
	sortDue(all)
	return all
}

func sortDue(d []Due) {
	slices.SortFunc(d, func(a, b Due) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Unit, b.Unit)) })
}
