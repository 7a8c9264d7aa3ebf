package schedule

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	out, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func item(t *testing.T, when, start string) Item {
	t.Helper()
	it, err := ParseItem(when, start)
	if err != nil {
		t.Fatal(err)
	}
	return it
}

func TestInterval(t *testing.T) {
	for in, want := range map[string]string{
		"60": "1h", "90": "90m", "90m": "90m", "24h": "1d", "48h": "2d", "1440m": "1d", "5m": "5m", "007": "7m",
	} {
		i, err := ParseInterval(in)
		if err != nil || i.String() != want {
			t.Errorf("%s: %v, %v, want %s", in, i, err, want)
		}
	}
	for _, in := range []string{"", "0", "0m", "0d", "-1h", "5x", "1.5h", "h", "1 h", "99999999999999999999d", "2147483647d"} {
		_, err := ParseInterval(in)
		if !errors.Is(err, syscall.EINVAL) || err.Error() != "Invalid interval ("+in+")" {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestStart(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"14:00":                     "14:00:00",
		"2pm":                       "14:00:00",
		"2:30 PM":                   "14:30:00",
		"2026-01-01T01:30":          "01:30:00",
		"2026-01-01 01:30:05":       "01:30:00",
		"2026-01-01":                "00:00:00",
		"14:00:00-05:00":            "14:00:00-05:00",
		"14:00:00+02:00":            "14:00:00+02:00",
		"14:00+0530":                "14:00:00+05:30",
		"14:00:00Z":                 "14:00:00+00:00",
		"14:00 UTC":                 "14:00:00+00:00",
		"2026-01-01T01:30:00+01:00": "01:30:00+01:00",
		"01:30:00.5":                "01:30:00",
	} {
		s, err := ParseStart(in)
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, s, err, want)
			continue
		}
		again, err := ParseStart(s.String())
		if err != nil || again != s {
			t.Errorf("%q: read again: %+v, %v", in, again, err)
		}
	}
	for _, in := range []string{"nonsense", "25:00", "14:60", "2026-13-01", "14:00+99:99", "+02:00", "14:00 CET", "14:00 Europe/Berlin"} {
		_, err := ParseStart(in)
		if !errors.Is(err, syscall.EINVAL) || err.Error() != "Invalid start time "+in+": Unknown string format: "+in {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestStored(t *testing.T) {
	raw, err := os.ReadFile("testdata/schedules.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Omap   []struct{ Key, Value string }
		Global struct{ Value string }
	}
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	values := []string{vectors.Global.Value}
	for _, o := range vectors.Omap {
		values = append(values, o.Value)
	}
	for _, v := range values {
		items, err := Decode([]byte(v))
		if err != nil || len(items) == 0 {
			t.Fatalf("%s: %v, %v", v, items, err)
		}
		b, err := Encode(items)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(v, string(b)); d != "" {
			t.Error(d)
		}
	}
	// What the stock module accepts and then fails on is left out, and said.
	items, err := Decode([]byte(`[{"interval": "0d", "start_time": null}, {"interval": "1h", "start_time": null}]`))
	if err == nil || len(items) != 1 || items[0].Interval != hour {
		t.Errorf("an interval of zero: %v, %v", items, err)
	}
	own := []Item{{Cron: "*/5 * * * *", Added: time.Unix(1795300000, 0).UTC()}}
	b, err := Encode(own)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(b)
	if d := cmp.Diff(own, again); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
}

func TestItem(t *testing.T) {
	for _, c := range []struct{ when, start, want string }{
		{"1h", "", "every 1h"},
		{"1440m", "2pm", "every 1d starting at 14:00:00"},
		{"@daily", "", "cron @daily"},
		{"CRON_TZ=Europe/Berlin 30 2 * * 1-5", "", "cron CRON_TZ=Europe/Berlin 30 2 * * 1-5"},
	} {
		if it := item(t, c.when, c.start); it.String() != c.want {
			t.Errorf("%s %s: %s", c.when, c.start, it)
		}
	}
	for _, c := range []struct{ when, start, want string }{
		{"1h", "14:00 CET", "Invalid start time 14:00 CET"},
		{"* * * * *", "14:00", "Invalid start time 14:00: a cron expression has none"},
		{"@every 1h", "", "Invalid cron expression (@every 1h): give the interval alone"},
		{"61 * * * *", "", "Invalid cron expression (61 * * * *)"},
		{"* * * * * *", "", "Invalid cron expression (* * * * * *)"}, // no seconds
		{"CRON_TZ=Nowhere/Else * * * * *", "", "Invalid cron expression"},
		{"* * *", "", "Invalid interval (* * *)"},
	} {
		if _, err := ParseItem(c.when, c.start); !errors.Is(err, syscall.EINVAL) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s %s: %v", c.when, c.start, err)
		}
	}
}

func TestLevel(t *testing.T) {
	for in, want := range map[string]Level{
		"":         {},
		"rbd/":     {Scope: Pool, Pool: "rbd"},
		"rbd//":    {Scope: Namespace, Pool: "rbd"},
		"rbd/ns/":  {Scope: Namespace, Pool: "rbd", Namespace: "ns"},
		"rbd/i":    {Scope: Image, Pool: "rbd", Image: "i"},
		"rbd/ns/i": {Scope: Image, Pool: "rbd", Namespace: "ns", Image: "i"},
	} {
		l, err := ParseLevel(in)
		if err != nil || l != want || l.String() != in {
			t.Errorf("%q: %+v, %v", in, l, err)
		}
	}
	for _, in := range []string{"rbd", "/", "rbd/i@s", "a/b/c/d"} {
		if _, err := ParseLevel(in); err == nil || err.Error() != "failed to parse "+in {
			t.Errorf("%q: %v", in, err)
		}
	}
	for _, c := range []struct {
		level, key string
		want       bool
	}{
		{"", "5", true}, {"5", "5//i", true}, {"5", "5/ns", true}, {"5", "55", false}, {"5/", "5//i", true},
		{"5/", "5/ns", false}, {"5/ns", "5/ns/i", true}, {"5/ns", "5/ns2/i", false}, {"5//i", "5//i", true}, {"5//i", "5//i2", false},
	} {
		if got := Covers(c.level, c.key); got != c.want {
			t.Errorf("%q covers %q: %v", c.level, c.key, got)
		}
	}
	stored := map[string][]Item{"": {{Interval: 1}}, "5": {{Interval: 2}}, "5//i": {{Interval: 3}}, "5/ns": {}}
	if got := Effective(stored, Keys("5", "", "i")); got[0].Interval != 3 {
		t.Error("the image's own schedule comes first")
	}
	if got := Effective(stored, Keys("5", "ns", "j")); got[0].Interval != 2 {
		t.Error("a level without rules does not hide the one above it")
	}
	if got := Effective(stored, Keys("6", "", "i")); got[0].Interval != 1 {
		t.Error("the global schedule is for all")
	}
}

func TestNext(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone data here")
	}
	for _, c := range []struct {
		name, when, start string
		loc               *time.Location
		now, last, next   string
	}{
		{"an hour", "1h", "", time.UTC, "2026-11-22T07:30:00Z", "2026-11-22T07:00:00Z", "2026-11-22T08:00:00Z"},
		{"on the slot", "1h", "", time.UTC, "2026-11-22T07:00:00Z", "2026-11-22T07:00:00Z", "2026-11-22T08:00:00Z"},
		{"a start time", "6h", "01:30", time.UTC, "2026-11-22T07:29:00Z", "2026-11-22T01:30:00Z", "2026-11-22T07:30:00Z"},
		// 14:00 two hours east of Greenwich is noon there, not 16:00.
		{"east", "1d", "14:00+02:00", time.UTC, "2026-11-22T00:00:00Z", "2026-11-21T12:00:00Z", "2026-11-22T12:00:00Z"},
		{"west", "1d", "14:00-05:00", time.UTC, "2026-11-22T00:00:00Z", "2026-11-21T19:00:00Z", "2026-11-22T19:00:00Z"},
		{"wall clock", "1d", "14:00", berlin, "2026-11-22T00:00:00Z", "2026-11-21T13:00:00Z", "2026-11-22T13:00:00Z"},
		{"summer begins", "1d", "14:00", berlin, "2026-03-28T14:00:00Z", "2026-03-28T13:00:00Z", "2026-03-29T12:00:00Z"},
		{"the hour that is missing", "1d", "02:30", berlin, "2026-03-29T00:00:00Z", "2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z"},
		{"the hour that comes twice", "1h", "", berlin, "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z"},
		{"cron", "30 2 * * 1", "", time.UTC, "2026-11-22T07:30:00Z", "2026-11-16T02:30:00Z", "2026-11-23T02:30:00Z"},
		{"cron in a zone", "CRON_TZ=Europe/Berlin 30 2 * * 1-5", "", time.UTC, "2026-11-22T07:30:00Z", "2026-11-20T01:30:00Z", "2026-11-23T01:30:00Z"},
		{"cron in the zone that counts", "30 2 * * 1-5", "", berlin, "2026-11-22T07:30:00Z", "2026-11-20T01:30:00Z", "2026-11-23T01:30:00Z"},
		{"cron, yearly", "@yearly", "", time.UTC, "2026-11-22T07:30:00Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		{"before 1970", "7d", "12:00", time.UTC, "1969-12-30T00:00:00Z", "1969-12-25T12:00:00Z", "1970-01-01T12:00:00Z"},
	} {
		it := item(t, c.when, c.start)
		now := at(t, c.now)
		if got := it.Next(now, c.loc); !got.Equal(at(t, c.next)) {
			t.Errorf("%s: next %s, want %s", c.name, got.UTC(), c.next)
		}
		if got := it.Last(now, c.loc); !got.Equal(at(t, c.last)) {
			t.Errorf("%s: last %s, want %s", c.name, got.UTC(), c.last)
		}
	}
}

// Slots lie one interval apart on the clock on the wall; last and next enclose
// the moment asked for.
func TestSlots(t *testing.T) {
	zones := []*time.Location{time.UTC, time.FixedZone("", 5*3600+1800)}
	if l, err := time.LoadLocation("America/New_York"); err == nil {
		zones = append(zones, l)
	}
	rapid.Check(t, func(t *rapid.T) {
		loc := rapid.SampledFrom(zones).Draw(t, "zone")
		it := Item{
			Interval: Interval(rapid.IntRange(1, 20000).Draw(t, "interval")),
			Start:    Start{Set: true, OfDay: time.Duration(rapid.IntRange(0, 86399).Draw(t, "of day")) * time.Second},
		}
		now := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "now"), 0)
		last, next := it.Last(now, loc), it.Next(now, loc)
		if last.After(now) || !next.After(now) {
			t.Fatalf("%s: last %s and next %s do not enclose %s", it, last, next, now)
		}
		if d := wall(next, loc).Sub(wall(last, loc)); d < 0 || d > 2*it.Interval.Duration()+2*time.Hour {
			t.Fatalf("%s: from %s to %s", it, last, next)
		}
		if after := it.Next(next, loc); !after.After(next) {
			t.Fatalf("%s: %s after %s", it, after, next)
		}
	})
}

func TestPlanner(t *testing.T) {
	start := at(t, "2026-11-22T07:30:00Z")
	hourly := []Item{item(t, "1h", "")}
	names := func(due []Due) (s []string) {
		for _, d := range due {
			s = append(s, d.Unit)
		}
		return s
	}
	expect := func(p *Planner, now time.Time, want ...string) {
		t.Helper()
		if d := cmp.Diff(want, names(p.Due(now))); d != "" {
			t.Errorf("at %s: %s", now, d)
		}
	}

	p := NewPlanner(time.UTC)
	p.Set("fresh", hourly, start.Add(-time.Minute), start)   // its newest snapshot is of this hour
	p.Set("late", hourly, start.Add(-5*time.Hour), start)    // several runs were missed
	p.Set("odd", hourly, start.Add(100*24*time.Hour), start) // a clock was wrong once
	p.Set("none", nil, time.Time{}, start)                   // no schedule
	p.Set("new", hourly, time.Time{}, start)                 // no snapshot yet
	expect(p, start, "late")                                 // once, however many were missed
	expect(p, start.Add(time.Second))                        //
	p.Set("late", hourly, start.Add(-5*time.Hour), start)    // told again: nothing new
	expect(p, start.Add(2*time.Second))                      //
	expect(p, start.Add(31*time.Minute), "fresh", "late", "new", "odd")

	// The clock leaps ahead by ten days: each is due once.
	ahead := start.Add(10 * 24 * time.Hour)
	expect(p, ahead, "fresh", "late", "new", "odd")
	expect(p, ahead.Add(time.Second))
	// It is put back: snapshots go on by the new time, and not all at once.
	expect(p, start.Add(40*time.Minute))
	expect(p, start.Add(91*time.Minute), "fresh", "late", "new", "odd")

	p.Keep(map[string]bool{"fresh": true})
	if next := p.Next(); len(next) != 1 || next[0].Unit != "fresh" || !next[0].At.Equal(at(t, "2026-11-22T10:00:00Z")) {
		t.Errorf("what comes next: %v", next)
	}

	// A rule made after a slot has not missed it.
	added := item(t, "1d", "")
	added.Added = start
	p.Set("added", []Item{added}, start.Add(-48*time.Hour), start)
	expect(p, start.Add(92*time.Minute))
}

// A day of schedule, with a leader that changes at any time: every slot is run
// once, and no slot twice.
func TestLeaderChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const step = 20 * time.Second
		it := Item{Interval: Interval(rapid.IntRange(1, 180).Draw(t, "interval"))}
		begin := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
		end := begin.Add(24 * time.Hour)
		changes := rapid.SliceOfN(rapid.IntRange(0, int(end.Sub(begin)/step)), 0, 20).Draw(t, "leader changes")
		last := begin
		var made []time.Time
		p := NewPlanner(time.UTC)
		for now := begin; !now.After(end); now = now.Add(step) {
			if slices.Contains(changes, int(now.Sub(begin)/step)) {
				p = NewPlanner(time.UTC)
			}
			p.Set("image", []Item{it}, last, now)
			for range p.Due(now) {
				last = now
				made = append(made, it.Last(now, time.UTC))
			}
		}
		var want []time.Time
		for at := it.Next(begin, time.UTC); !at.After(end); at = it.Next(at, time.UTC) {
			want = append(want, at)
		}
		if d := cmp.Diff(want, made); d != "" {
			t.Fatalf("every %s: %s", it.Interval, d)
		}
	})
}

func TestRetention(t *testing.T) {
	r, err := ParseRetention("24h7d4w")
	if err != nil || r.String() != "24h7d4w" {
		t.Fatalf("%v, %v", r, err)
	}
	for _, bad := range []string{"x", "5", "0d", "5d3", "-1h"} {
		if _, err := ParseRetention(bad); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	begin := at(t, "2026-01-01T00:00:00Z")
	var made []time.Time
	for i := range 24 * 60 {
		made = append(made, begin.Add(time.Duration(i)*time.Hour))
	}
	kept := difference(made, r.Prune(made, time.UTC))
	var want []time.Time
	for _, day := range []string{"02-08", "02-15", "02-22", "02-23", "02-24", "02-25", "02-26", "02-27", "02-28"} { // Sundays, then each day
		want = append(want, at(t, "2026-"+day+"T23:00:00Z"))
	}
	for hour := range 24 {
		want = append(want, at(t, "2026-03-01T00:00:00Z").Add(time.Duration(hour)*time.Hour))
	}
	if d := cmp.Diff(want, kept); d != "" {
		t.Error(d)
	}
	if got := (Retention{}).Prune(made, time.UTC); got != nil {
		t.Errorf("without retention %d are pruned", len(got))
	}
}

func TestRetentionPeriods(t *testing.T) {
	for _, c := range []struct{ keep, zone, made, kept string }{
		{"2n", "UTC", "01-01T00:00 01-01T00:01 01-01T00:02", "01-01T00:01 01-01T00:02"},
		{"2m", "UTC", "01-01T00:00 01-01T00:01 01-01T00:02", "01-01T00:01 01-01T00:02"},
		// Of each hour the newest; hours without one do not count.
		{"2h", "UTC", "01-01T00:10 01-01T00:50 01-01T09:00 01-01T09:30", "01-01T00:50 01-01T09:30"},
		{"1h", "UTC", "01-01T00:10", "01-01T00:10"},
		{"2d", "UTC", "01-01T23:30 01-02T00:30 01-02T22:30 01-03T22:30", "01-02T22:30 01-03T22:30"},
		// A day is one of the zone that counts: there it is the same day.
		{"2d", "Europe/Berlin", "01-01T22:00 01-01T23:30 01-02T22:30 01-03T22:30", "01-02T22:30 01-03T22:30"},
		{"2d", "Europe/Berlin", "01-01T22:00 01-01T23:30 01-02T22:30", "01-01T22:00 01-02T22:30"},
		// The hour that comes twice is two hours.
		{"3h", "Europe/Berlin", "10-24T23:30 10-25T00:30 10-25T01:30", "10-24T23:30 10-25T00:30 10-25T01:30"},
		{"2w", "UTC", "01-04T23:59 01-05T00:00 01-11T00:00 01-12T00:00", "01-11T00:00 01-12T00:00"},
		{"2M", "UTC", "01-01T00:00 01-31T00:00 02-01T00:00 02-28T00:00 05-01T00:00", "02-28T00:00 05-01T00:00"},
		{"1y", "UTC", "01-01T00:00 07-01T00:00", "07-01T00:00"},
		// Periods add up; one snapshot can stand for several.
		{"1h1d1w", "UTC", "01-01T00:00 01-02T00:00", "01-02T00:00"},
		{"1n2d", "UTC", "01-01T00:00 01-01T12:00 01-02T00:00", "01-01T12:00 01-02T00:00"},
	} {
		loc, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Skip("no time zone data here")
		}
		times := func(list string) (out []time.Time) {
			for _, s := range strings.Fields(list) {
				out = append(out, at(t, "2026-"+s+":00Z"))
			}
			return out
		}
		r, err := ParseRetention(c.keep)
		if err != nil {
			t.Fatal(err)
		}
		made := times(c.made)
		slices.Reverse(made) // in whatever order
		kept := difference(times(c.made), r.Prune(made, loc))
		if d := cmp.Diff(times(c.kept), kept); d != "" {
			t.Errorf("%s in %s of %s: %s", c.keep, c.zone, c.made, d)
		}
	}
}

// Removing after each snapshot what is to be kept no longer leaves the same as
// removing once at the end: nothing that is wanted later goes early.
func TestRetentionStepByStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string) int { return rapid.IntRange(0, 5).Draw(t, name) }
		r := Retention{N: n("n"), Minutes: n("m"), Hours: n("h"), Days: n("d"), Weeks: n("w"), Months: n("M"), Years: n("y")}
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var all, left []time.Time
		for range rapid.IntRange(0, 60).Draw(t, "snapshots") {
			now = now.Add(time.Duration(rapid.IntRange(1, 60*24*40).Draw(t, "minutes")) * time.Minute)
			all, left = append(all, now), append(left, now)
			left = difference(left, r.Prune(left, time.UTC))
			if left[len(left)-1] != now {
				t.Fatalf("%s: the newest is gone", r)
			}
		}
		if d := cmp.Diff(difference(all, r.Prune(all, time.UTC)), left); d != "" {
			t.Fatalf("%s: %s", r, d)
		}
		if most := r.N + r.Minutes + r.Hours + r.Days + r.Weeks + r.Months + r.Years; most > 0 && len(left) > most {
			t.Fatalf("%s: %d are left", r, len(left))
		}
	})
}

func difference(all, without []time.Time) []time.Time {
	gone := make(map[time.Time]bool)
	for _, t := range without {
		gone[t] = true
	}
	var out []time.Time
	for _, t := range all {
		if !gone[t] {
			out = append(out, t)
		}
	}
	return out
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`[{"interval": "1h", "start_time": "14:00:00-05:00"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		items, _ := Decode(b)
		for _, it := range items {
			if next := it.Next(time.Unix(1795300000, 0), time.UTC); it.Cron == "" && next.IsZero() {
				t.Errorf("%s is never due", it)
			}
		}
	})
}
