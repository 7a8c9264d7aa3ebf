package schedule

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// Retention says how many scheduled snapshots are kept: of each period the
// newest one, for so many periods that have one. N keeps the newest whatever
// their age. The letters are those of Ceph's snapshot schedules.
type Retention struct{ N, Minutes, Hours, Days, Weeks, Months, Years int }

var retentionPattern = regexp.MustCompile(`^(\d+)([nmhdwMy])`)

// ParseRetention reads counts and periods, such as 24h7d4w.
func ParseRetention(s string) (Retention, error) {
	var r Retention
	for rest := s; rest != ""; {
		m := retentionPattern.FindStringSubmatch(rest)
		if m == nil {
			return Retention{}, invalid("Invalid retention (%s)", s)
		}
		n, err := strconv.ParseInt(m[1], 10, 31)
		if err != nil || n == 0 {
			return Retention{}, invalid("Invalid retention (%s)", s)
		}
		*r.field(m[2]) = int(n)
		rest = rest[len(m[0]):]
	}
	return r, nil
}

func (r *Retention) field(letter string) *int {
	switch letter {
	case "n":
		return &r.N
	case "m":
		return &r.Minutes
	case "h":
		return &r.Hours
	case "d":
		return &r.Days
	case "w":
		return &r.Weeks
	case "M":
		return &r.Months
	default:
		return &r.Years
	}
}

// String is the retention as ParseRetention reads it.
func (r Retention) String() string {
	var s string
	for _, letter := range []string{"n", "m", "h", "d", "w", "M", "y"} {
		if n := *r.field(letter); n > 0 {
			s += fmt.Sprint(n) + letter
		}
	}
	return s
}

// Prune returns which of the snapshots, by the times they were made, are kept by
// no period, oldest first. Without any retention nothing is pruned, and the
// newest snapshot never is.
func (r Retention) Prune(made []time.Time, loc *time.Location) []time.Time {
	if r == (Retention{}) {
		return nil
	}
	newest := slices.Clone(made)
	slices.SortFunc(newest, func(a, b time.Time) int { return b.Compare(a) })
	keep := make(map[time.Time]bool)
	if len(newest) > 0 {
		keep[newest[0]] = true
	}
	periods := []struct {
		count int
		of    func(time.Time) string
	}{
		{r.N, func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }},
		{r.Minutes, func(t time.Time) string { return t.Format("2006-01-02 15:04 -0700") }},
		{r.Hours, func(t time.Time) string { return t.Format("2006-01-02 15 -0700") }},
		{r.Days, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{r.Weeks, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, w) }},
		{r.Months, func(t time.Time) string { return t.Format("2006-01") }},
		{r.Years, func(t time.Time) string { return t.Format("2006") }},
	}
	for _, p := range periods {
		seen := make(map[string]bool)
		for _, t := range newest {
			if len(seen) == p.count {
				break
			}
			if k := p.of(t.In(loc)); !seen[k] {
				seen[k] = true
				keep[t] = true
			}
		}
	}
	var prune []time.Time
	for _, t := range slices.Backward(newest) {
		if !keep[t] {
			prune = append(prune, t)
		}
	}
	return prune
}
