// Package schedule decides when snapshots are due: intervals and start times as
// Ceph's own schedule module has them, cron expressions beyond it, the levels at
// which a schedule can be set, what retention keeps. It is pure: time is given
// to it, and it touches no cluster.
package schedule

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/robfig/cron/v3"
)

// InvalidError is a schedule that cannot be understood. Its text is what the
// stock tools print; its errno is EINVAL.
type InvalidError struct{ Text string }

func (e *InvalidError) Error() string { return e.Text }

// Unwrap gives the errno.
func (e *InvalidError) Unwrap() error { return syscall.EINVAL }

func invalid(format string, a ...any) error { return &InvalidError{fmt.Sprintf(format, a...)} }

// Interval is the time between two runs, in whole minutes.
type Interval int

const (
	hour = Interval(60)
	day  = 24 * hour
	// maxInterval is far more than anybody wants, and far from overflowing.
	maxInterval = 100 * 365 * day
)

var intervalPattern = regexp.MustCompile(`^(\d+)(d|h|m)?$`)

// ParseInterval reads a number of days, hours or minutes; a number without a
// unit is minutes. Unlike in the stock module an interval of zero is refused:
// it would keep that module from ever starting again.
func ParseInterval(s string) (Interval, error) {
	m := intervalPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, invalid("Invalid interval (%s)", s)
	}
	n, err := strconv.ParseInt(m[1], 10, 32)
	if err != nil {
		return 0, invalid("Invalid interval (%s)", s)
	}
	i := Interval(n)
	switch m[2] {
	case "d":
		i *= day
	case "h":
		i *= hour
	}
	if i <= 0 || i > maxInterval {
		return 0, invalid("Invalid interval (%s)", s)
	}
	return i, nil
}

// String gives the interval in the largest unit that divides it, as it is stored.
func (i Interval) String() string {
	switch {
	case i%day == 0:
		return fmt.Sprintf("%dd", i/day)
	case i%hour == 0:
		return fmt.Sprintf("%dh", i/hour)
	}
	return fmt.Sprintf("%dm", int(i))
}

// Duration is the interval as a length of time.
func (i Interval) Duration() time.Duration { return time.Duration(i) * time.Minute }

// Item is one rule of a schedule: an interval, with or without the time of day
// from which it counts, or a cron expression.
type Item struct {
	Interval Interval // 0 with a cron expression
	Start    Start    // the zero value: midnight
	Cron     string   // five fields or a descriptor such as @daily
	// Added is when the rule was made. What fell before it was not missed.
	Added time.Time
	// Held: the rule is being taken over from the stock module, and does not
	// count before that has let go of it.
	Held bool
}

// ParseItem reads what the command line gives: an interval or a cron expression,
// and for an interval a start time, which may be empty.
func ParseItem(when, start string) (Item, error) {
	if isCron(when) {
		if start != "" {
			return Item{}, invalid("Invalid start time %s: a cron expression has none", start)
		}
		parsed, err := cron.ParseStandard(when)
		if err != nil {
			return Item{}, invalid("Invalid cron expression (%s): %v", when, err)
		}
		if _, ok := parsed.(cron.ConstantDelaySchedule); ok { // it would count from no fixed time
			return Item{}, invalid("Invalid cron expression (%s): give the interval alone", when)
		}
		return Item{Cron: when}, nil
	}
	i, err := ParseInterval(when)
	if err != nil {
		return Item{}, err
	}
	s, err := ParseStart(start)
	if err != nil {
		return Item{}, err
	}
	return Item{Interval: i, Start: s}, nil
}

// isCron tells a cron expression from an interval, be it a wrong one.
func isCron(s string) bool {
	return len(strings.Fields(s)) >= 5 || strings.HasPrefix(s, "@") || strings.HasPrefix(s, "CRON_TZ=") || strings.HasPrefix(s, "TZ=")
}

// Same tells whether two rules are one, whenever they were made.
func (it Item) Same(o Item) bool {
	it.Added, o.Added = time.Time{}, time.Time{}
	it.Held, o.Held = false, false
	return it == o
}

// String is the rule as `schedule ls` prints it.
func (it Item) String() string {
	if it.Cron != "" {
		return "cron " + it.Cron
	}
	s := "every " + it.Interval.String()
	if it.Start.Set {
		s += " starting at " + it.Start.String()
	}
	return s
}

// Next returns the first run after t. A rule without a zone counts in loc, where
// a day has the hours that the clock on the wall shows.
func (it Item) Next(t time.Time, loc *time.Location) time.Time {
	if it.Cron != "" {
		s, err := cron.ParseStandard(it.Cron)
		if err != nil {
			return time.Time{}
		}
		return s.Next(t.In(loc))
	}
	loc = it.Start.location(loc)
	from := wall(t, loc)
	slot := it.slotAt(from)
	// Where clocks are put back, a time of day comes twice: go on until the
	// instant itself is later.
	for {
		slot = slot.Add(it.Interval.Duration())
		if at := fromWall(slot, loc); at.After(t) {
			return at
		}
	}
}

// Last returns the newest run at or before t, or the zero time when a cron
// expression had none in the past two years.
func (it Item) Last(t time.Time, loc *time.Location) time.Time {
	if it.Cron != "" {
		s, err := cron.ParseStandard(it.Cron)
		if err != nil {
			return time.Time{}
		}
		for _, back := range []time.Duration{time.Hour, 25 * time.Hour, 32 * 24 * time.Hour, 2 * 366 * 24 * time.Hour} {
			var last time.Time
			for at := s.Next(t.In(loc).Add(-back)); !at.IsZero() && !at.After(t); at = s.Next(at) {
				last = at
			}
			if !last.IsZero() {
				return last
			}
		}
		return time.Time{}
	}
	loc = it.Start.location(loc)
	slot := it.slotAt(wall(t, loc)).Add(it.Interval.Duration())
	for {
		if at := fromWall(slot, loc); !at.After(t) {
			return at
		}
		slot = slot.Add(-it.Interval.Duration())
	}
}

// slotAt returns the newest slot at or before a wall clock time: a multiple of
// the interval, counted from the start time on 1 January 1970.
func (it Item) slotAt(from time.Time) time.Time {
	origin := time.Unix(0, 0).UTC().Add(it.Start.OfDay)
	d := it.Interval.Duration()
	since := from.Sub(origin) % d
	if since < 0 {
		since += d
	}
	return from.Add(-since)
}

// wall is what a clock in loc shows at t, written as if it were UTC, so that
// days have 24 hours.
func wall(t time.Time, loc *time.Location) time.Time {
	_, offset := t.In(loc).Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// fromWall is when a clock in loc shows w; where it shows it twice, the first time.
func fromWall(w time.Time, loc *time.Location) time.Time {
	t := time.Date(w.Year(), w.Month(), w.Day(), w.Hour(), w.Minute(), w.Second(), w.Nanosecond(), loc)
	if before := t.Add(-time.Hour); wall(before, loc).Equal(w) {
		return before
	}
	return t
}

// NextOf returns the first run of any of the rules after t, the zero time when
// there are none.
func NextOf(items []Item, t time.Time, loc *time.Location) time.Time {
	var first time.Time
	for _, it := range items {
		if at := it.Next(t, loc); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// MissedOf returns the newest run at or before t that no snapshot since last has
// made good, the zero time if there is none. Runs from before a rule was made
// count as none.
func MissedOf(items []Item, last, t time.Time, loc *time.Location) time.Time {
	var missed time.Time
	for _, it := range items {
		at := it.Last(t, loc)
		if at.IsZero() || at.Before(it.Added) || !at.After(last) {
			continue
		}
		if at.After(missed) {
			missed = at
		}
	}
	return missed
}
