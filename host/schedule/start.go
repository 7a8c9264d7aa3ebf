package schedule

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Start is the time of day from which an interval counts.
type Start struct {
	Set    bool
	OfDay  time.Duration // since midnight
	Zoned  bool
	Offset time.Duration // east of UTC, when Zoned
}

// The forms a start time can have: a date, which does not matter, a time of
// day, a zone; every part but one may be missing.
var (
	startDate = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(?:[Tt ]+|$)`)
	startZone = regexp.MustCompile(`(?i)\s*(z|utc|gmt|[+-]\d{2}(?::?\d{2})?)$`)
	times     = []string{"15:4:5.999999999", "15:4:5", "15:4", "150405", "1504", "15h", "3:4:5pm", "3:4:5 pm", "3:4pm", "3:4 pm", "3pm", "3 pm"}
)

// ParseStart reads a start time. Empty means none. A date in front of the time
// and seconds are accepted and left out, as in the stock module.
func ParseStart(s string) (Start, error) {
	if s == "" {
		return Start{}, nil
	}
	bad := invalid("Invalid start time %s: Unknown string format: %s", s, s)
	rest := strings.TrimSpace(s)
	if rest == "" {
		return Start{}, invalid("Invalid start time %s: String does not contain a date: %s", s, s)
	}
	out := Start{Set: true}
	dated := false
	if d := startDate.FindString(rest); d != "" {
		if _, err := time.Parse(time.DateOnly, d[:len(time.DateOnly)]); err != nil {
			return Start{}, bad
		}
		rest, dated = rest[len(d):], true
	}
	if rest == "" && dated {
		return out, nil
	}
	rest = strings.TrimPrefix(rest, "T")
	if m := startZone.FindStringSubmatchIndex(rest); m != nil && m[0] > 0 {
		offset, err := parseZone(rest[m[2]:m[3]])
		if err != nil {
			return Start{}, bad
		}
		out.Zoned, out.Offset, rest = true, offset, rest[:m[0]]
	}
	layouts := times
	if dated {
		layouts = append([]string{"15"}, times...)
	}
	for _, layout := range layouts {
		t, err := time.Parse(layout, strings.ToLower(rest))
		if err != nil {
			continue
		}
		out.OfDay = t.Sub(time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)).Truncate(time.Minute)
		return out, nil
	}
	return Start{}, bad
}

func parseZone(z string) (time.Duration, error) {
	if z[0] != '+' && z[0] != '-' {
		return 0, nil
	}
	for _, layout := range []string{"-07:00", "-0700", "-07"} {
		if t, err := time.Parse(layout, z); err == nil {
			_, offset := t.Zone()
			return time.Duration(offset) * time.Second, nil
		}
	}
	return 0, fmt.Errorf("zone %q", z)
}

// String is the start time in ISO 8601, as it is stored.
func (s Start) String() string {
	if !s.Set {
		return ""
	}
	out := time.Unix(0, 0).UTC().Add(s.OfDay).Format(time.TimeOnly)
	if s.Zoned {
		out += time.Unix(0, 0).In(s.location(nil)).Format("-07:00")
	}
	return out
}

// location is the zone in which the start time counts.
func (s Start) location(otherwise *time.Location) *time.Location {
	if !s.Zoned {
		return otherwise
	}
	return time.FixedZone("", int(s.Offset/time.Second))
}
