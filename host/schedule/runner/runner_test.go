package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"cephmirror/host/schedule"
	"cephmirror/plugins"
)

// monday is a little past midnight: nothing is due at once.
var monday = time.Date(2026, 11, 23, 0, 0, 1, 0, time.UTC)

// cluster is one whose schedules several instances may follow.
type cluster struct {
	now        time.Time // the true time, by which snapshots are stamped
	generation uint64
	leader     string
	plans      map[string]string      // by key
	made       map[string][]time.Time // snapshots, by unit
	held       map[string]string
	stock      map[string]string
	failing    map[string]bool
	failures   map[string]uint64
	broken     map[string]string
	busy       map[string]bool
	taken      map[string]uint64 // since another leads
	keep       bool              // tell the snapshots, so that they can be removed
}

func newCluster(units ...string) *cluster {
	c := &cluster{
		now: monday, generation: 1, plans: make(map[string]string), made: make(map[string][]time.Time),
		held: make(map[string]string), stock: make(map[string]string), failing: make(map[string]bool),
		failures: make(map[string]uint64), broken: make(map[string]string),
		busy: make(map[string]bool), taken: make(map[string]uint64),
	}
	for _, u := range units {
		c.made[u] = nil
	}
	return c
}

func (c *cluster) set(t interface{ Fatal(...any) }, key string, rules ...string) {
	var p schedule.Plan
	for i := 0; i < len(rules); i += 2 {
		it, err := schedule.ParseItem(rules[i], rules[i+1])
		if err != nil {
			t.Fatal(err)
		}
		it.Added = c.now
		p.Add(it)
	}
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c.plans[key] = text
	c.generation++
}

// lead makes another instance follow.
func (c *cluster) lead(instance string) {
	c.leader = instance
	clear(c.taken)
	clear(c.failures)
	c.generation++
}

// instance is one that could follow, with a clock of its own.
type instance struct {
	c     *cluster
	name  string
	ahead time.Duration // of its clock
	r     *Runner
}

func (c *cluster) instance(name string) *instance {
	i := &instance{c: c, name: name}
	i.r = New(i, time.UTC, zerolog.Nop(), Clock{Now: func() time.Time { return c.now.Add(i.ahead) }})
	return i
}

func (i *instance) Call(_ context.Context, cmd plugins.Command) plugins.Result {
	out, err := i.call(cmd)
	if err != nil {
		return plugins.ErrorResult(err)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return plugins.ErrorResult(err)
	}
	return plugins.Result{Out: b}
}

func (i *instance) call(cmd plugins.Command) (any, error) {
	c := i.c
	id, _ := cmd.Args["id"].(string)
	if cmd.Prefix != plugins.ScheduleWatch && c.leader != i.name {
		return nil, syscall.ESTALE
	}
	switch cmd.Prefix {
	case plugins.ScheduleWatch:
		s := plugins.ScheduleState{Generation: c.generation}
		if known, _ := strconv.ParseUint(cmd.Args["generation"].(string), 10, 64); known == c.generation || c.leader != i.name {
			return s, nil
		}
		d := plugins.ScheduleDomain{Name: "pool"}
		for key, v := range c.plans {
			d.Stored = append(d.Stored, plugins.StoredSchedule{Key: key, Value: v})
		}
		for unit, made := range c.made {
			u := plugins.ScheduleUnit{
				ID: unit, Name: unit, Keys: []string{unit, ""}, Held: c.held[unit], Stock: c.stock,
				Failures: c.failures[unit], Error: c.broken[unit], Taken: c.taken[unit],
			}
			if len(made) > 0 {
				u.Last = made[len(made)-1]
			}
			if c.keep {
				for _, m := range made {
					u.Own = append(u.Own, plugins.ScheduledSnapshot{Name: m.Format(time.RFC3339), Made: m})
				}
			}
			d.Units = append(d.Units, u)
		}
		s.Domains = []plugins.ScheduleDomain{d}
		return s, nil
	case plugins.ScheduleRun:
		c.generation++
		if c.failing[id] {
			c.failures[id]++
			c.broken[id] = "no room"
			return struct{}{}, nil
		}
		if c.busy[id] {
			return nil, syscall.EALREADY
		}
		c.broken[id] = ""
		c.taken[id]++
		c.made[id] = append(c.made[id], c.now)
		return struct{}{}, nil
	case plugins.SchedulePrune:
		c.generation++
		names := fmt.Sprint(cmd.Args["names"])
		c.made[id] = slices.DeleteFunc(c.made[id], func(m time.Time) bool { return containsName(names, m.Format(time.RFC3339)) })
		return struct{}{}, nil
	}
	return nil, syscall.EINVAL
}

func containsName(list, name string) bool {
	for i := 0; i+len(name) <= len(list); i++ {
		if list[i:i+len(name)] == name {
			return true
		}
	}
	return false
}

// pass lets time pass for instances, a step every so often.
func (c *cluster) pass(t interface{ Fatal(...any) }, d, every time.Duration, instances ...*instance) {
	for end := c.now.Add(d); c.now.Before(end); {
		c.now = c.now.Add(every)
		for _, i := range instances {
			if err := i.r.Step(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func clocks(made []time.Time) []string {
	var out []string
	for _, m := range made {
		out = append(out, m.Format("Mon 15:04"))
	}
	return out
}

func want(t *testing.T, made []time.Time, clock ...string) {
	t.Helper()
	if got := clocks(made); !slices.Equal(got, clock) {
		t.Errorf("made at\n%v, want\n%v", got, clock)
	}
}

func TestDays(t *testing.T) {
	c := newCluster("plain", "zoned", "cron", "wide", "two")
	c.set(t, "plain", "8h", "")
	c.set(t, "zoned", "1d", "14:00:00+02:00")
	c.set(t, "cron", "30 6 * * 3,4", "")
	c.set(t, "two", "1d", "01:00", "1d", "13:00")
	c.set(t, "", "1d", "")
	a := c.instance("a")
	c.lead("a")
	c.pass(t, 72*time.Hour, 30*time.Second, a)
	want(t, c.made["plain"], "Mon 08:00", "Mon 16:00", "Tue 00:00", "Tue 08:00", "Tue 16:00", "Wed 00:00", "Wed 08:00", "Wed 16:00", "Thu 00:00")
	want(t, c.made["zoned"], "Mon 12:00", "Tue 12:00", "Wed 12:00")
	want(t, c.made["cron"], "Wed 06:30")
	want(t, c.made["wide"], "Tue 00:00", "Wed 00:00", "Thu 00:00")
	want(t, c.made["two"], "Mon 01:00", "Mon 13:00", "Tue 01:00", "Tue 13:00", "Wed 01:00", "Wed 13:00")
}

// While one follows, the others do nothing; whoever takes over makes up for what
// was missed, once, and for nothing else.
func TestTakeOver(t *testing.T) {
	c := newCluster("u")
	c.set(t, "u", "1h", "")
	a, b := c.instance("a"), c.instance("b")
	c.lead("a")
	c.pass(t, 150*time.Minute, 10*time.Second, a, b) // 01:00 02:00
	c.lead("b")
	c.pass(t, time.Hour, 10*time.Second, a, b) // 03:00, to 03:30
	c.lead("")
	c.pass(t, 5*time.Hour, 10*time.Second, a, b) // nobody, to 08:30
	c.lead("a")
	c.pass(t, time.Hour, 10*time.Second, a, b) // 08:00 late, 09:00
	want(t, c.made["u"], "Mon 01:00", "Mon 02:00", "Mon 03:00", "Mon 08:30", "Mon 09:00")

	// One that slept while another took over is refused when it wakes up.
	c.lead("b")
	c.pass(t, time.Hour, 10*time.Second, b) // 10:00
	c.pass(t, 20*time.Minute, 10*time.Second, a, b)
	want(t, c.made["u"][5:], "Mon 10:00")
}

func TestRestart(t *testing.T) {
	c := newCluster("u")
	c.set(t, "u", "1h", "")
	c.lead("a")
	c.pass(t, time.Hour, 10*time.Second, c.instance("a"))
	for range 10 { // a new process each time
		c.generation++
		c.pass(t, time.Minute, 10*time.Second, c.instance("a"))
	}
	want(t, c.made["u"], "Mon 01:00")
	// A snapshot that seems a little older than its run, by the cluster's clock,
	// is the one of that run.
	c.made["u"][0] = c.made["u"][0].Add(-2 * time.Second)
	c.pass(t, time.Minute, 10*time.Second, c.instance("a"))
	if len(c.made["u"]) != 1 {
		t.Errorf("made %v", clocks(c.made["u"]))
	}
}

func TestNotBeforeItWasAdded(t *testing.T) {
	c := newCluster("u")
	c.lead("a")
	c.now = monday.Add(90 * time.Minute)
	c.made["u"] = []time.Time{monday} // mirroring was enabled then
	c.set(t, "u", "1h", "")
	c.pass(t, 20*time.Minute, 10*time.Second, c.instance("a"))
	want(t, c.made["u"][1:])
	c.pass(t, 20*time.Minute, 10*time.Second, c.instance("a"))
	want(t, c.made["u"][1:], "Mon 02:00")
}

func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{time.Minute, 3 * time.Hour, 100 * 24 * time.Hour} {
		c := newCluster("u")
		c.set(t, "u", "1h", "")
		a := c.instance("a")
		c.lead("a")
		c.pass(t, 90*time.Minute, 10*time.Second, a)
		a.ahead = jump
		c.pass(t, 10*time.Minute, 10*time.Second, a)
		a.ahead = 0
		c.pass(t, 80*time.Minute, 10*time.Second, a) // to 03:00
		c.pass(t, 30*time.Minute, 10*time.Second, a)
		made := clocks(c.made["u"])
		if jump < 30*time.Minute && !slices.Equal(made, []string{"Mon 01:00", "Mon 02:00", "Mon 03:00"}) {
			t.Errorf("ahead by %v: %v", jump, made)
		}
		// One for all the runs it skipped, and no pause after the clock is right.
		if jump > time.Hour && !slices.Equal(made, []string{"Mon 01:00", "Mon 01:30", "Mon 02:00", "Mon 03:00"}) {
			t.Errorf("ahead by %v: %v", jump, made)
		}
		a.ahead = -jump
		n := len(c.made["u"])
		c.pass(t, 10*time.Minute, 10*time.Second, a)
		a.ahead = 0
		c.pass(t, 170*time.Minute, 10*time.Second, a) // to 06:30
		if got := len(c.made["u"]) - n; got < 3 || got > 4 {
			t.Errorf("behind by %v: %v", jump, clocks(c.made["u"][n:]))
		}
	}
}

func TestFailures(t *testing.T) {
	c := newCluster("bad", "good")
	c.set(t, "", "1h", "")
	a := c.instance("a")
	c.lead("a")
	c.failing["bad"] = true
	c.pass(t, 90*time.Minute, time.Second, a)
	if n := c.failures["bad"]; n < 4 || n > 10 {
		t.Errorf("tried %d times in half an hour", n)
	}
	report := a.r.Status()
	if len(report.Units) != 2 || report.Units[0].Error+report.Units[1].Error != "no room" {
		t.Errorf("status %+v", report)
	}
	c.failing["bad"] = false
	c.pass(t, 20*time.Minute, time.Second, a)
	c.pass(t, 20*time.Minute, time.Second, a)
	if len(c.made["bad"]) != 2 || len(c.made["good"]) != 2 { // late for 01:00, and 02:00
		t.Errorf("made %v and %v", clocks(c.made["bad"]), clocks(c.made["good"]))
	}
}

// What cannot be removed is no snapshot that failed: none is made instead.
func TestRemovalFails(t *testing.T) {
	c := newCluster("u")
	c.set(t, "u", "1h", "")
	a := c.instance("a")
	c.lead("a")
	c.pass(t, 61*time.Minute, 10*time.Second, a)
	c.broken["u"] = "device or resource busy"
	c.generation++
	c.pass(t, 50*time.Minute, 10*time.Second, a)
	want(t, c.made["u"], "Mon 01:00")
	if s := a.r.Status().Units[0]; s.Error != "device or resource busy" || s.Failed != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestCounts(t *testing.T) {
	c := newCluster("u")
	c.set(t, "u", "1h", "")
	a := c.instance("a")
	expect := func(taken, missed, failed uint64, last, next string) {
		t.Helper()
		s := a.r.Status().Units[0]
		if s.Taken != taken || s.Missed != missed || s.Failed != failed || s.Domain != "pool" ||
			s.LastAt.Format("15:04") != last || s.NextAt.Format("15:04") != next {
			t.Errorf("%+v; want %d taken, %d missed, %d failed, the last at %s, the next at %s", s, taken, missed, failed, last, next)
		}
	}
	c.lead("a")
	c.pass(t, 130*time.Minute, 10*time.Second, a)
	expect(2, 0, 0, "02:00", "03:00")
	c.lead("")
	c.pass(t, 200*time.Minute, 10*time.Second, a) // 03:00, 04:00 and 05:00 are missed, to 05:30
	c.lead("a")
	c.pass(t, time.Minute, 10*time.Second, a)
	expect(1, 1, 0, "05:30", "06:00")
	c.busy["u"] = true
	c.pass(t, time.Hour, 10*time.Second, a)
	expect(1, 2, 0, "05:30", "07:00")
	c.busy["u"], c.failing["u"] = false, true
	c.pass(t, 30*time.Minute+20*time.Second, time.Second, a)
	expect(1, 2, 3, "05:30", "07:01") // the third try is to come
	c.failing["u"] = false
	c.pass(t, time.Minute, time.Second, a)
	expect(2, 2, 3, "07:01", "08:00")
	// The machine sleeps over some.
	c.now = c.now.Add(3 * time.Hour)
	c.pass(t, 2*time.Second, time.Second, a)
	expect(3, 3, 3, "10:02", "11:00")
}

func TestHeld(t *testing.T) {
	c := newCluster("nopeer", "stock", "cron", "adopting", "bad")
	c.lead("a")
	c.set(t, "", "1h", "")
	c.set(t, "cron", "15 * * * *", "", "1h", "")
	c.held["nopeer"] = "the pool has no peer"
	c.stock[""] = `[{"interval": "1h", "start_time": null}]`
	c.plans["adopting"] = `[{"interval": "1h", "start_time": null, "held": true}]`
	c.plans["bad"] = `[{"interval": "0d", "start_time": null}, {"interval": "2h", "start_time": null}]`
	a := c.instance("a")
	c.pass(t, 125*time.Minute, 10*time.Second, a)
	want(t, c.made["nopeer"])
	want(t, c.made["stock"])
	want(t, c.made["cron"], "Mon 00:15", "Mon 01:15")
	want(t, c.made["adopting"])
	want(t, c.made["bad"], "Mon 02:00")
	// The stock module has let go of it: nothing was missed, it has run there.
	delete(c.stock, "")
	c.made["stock"] = []time.Time{c.now.Add(-5 * time.Minute)}
	c.generation++
	c.pass(t, time.Hour, 10*time.Second, a)
	want(t, c.made["stock"][1:], "Mon 03:00")
}

func TestRetention(t *testing.T) {
	c := newCluster("dir")
	c.keep = true
	c.lead("a")
	p := schedule.Plan{Keep: schedule.Retention{Hours: 6, Days: 3}}
	it, err := schedule.ParseItem("30m", "")
	if err != nil {
		t.Fatal(err)
	}
	it.Added = c.now
	p.Add(it)
	if c.plans["dir"], err = p.Encode(); err != nil {
		t.Fatal(err)
	}
	a := c.instance("a")
	for range 4 * 48 {
		c.pass(t, 30*time.Minute, 50*time.Second, a)
		if n := len(c.made["dir"]); n > 6+3+2 {
			t.Fatalf("%d snapshots at %v", n, c.now)
		}
	}
	c.pass(t, 10*time.Minute, 30*time.Second, a)
	want(t, c.made["dir"], "Wed 23:30", "Thu 19:30", "Thu 20:30", "Thu 21:30", "Thu 22:30", "Thu 23:30", "Fri 00:00")
}

// Whatever happens to the instances and their clocks, no run is made twice and,
// whenever somebody follows for a while with a clock that is right, none is
// missing.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster("u")
		c.set(t, "u", rapid.SampledFrom([]string{"5m", "1h", "45m", "*/20 * * * *"}).Draw(t, "rule"), "")
		all := []*instance{c.instance("a"), c.instance("b"), c.instance("c")}
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			switch rapid.IntRange(0, 3).Draw(t, "change") {
			case 0:
				c.lead("")
			case 1:
				i := rapid.IntRange(0, 2).Draw(t, "dead")
				all[i] = c.instance(all[i].name)
				c.generation++
			default:
				c.lead(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "leader"))
			}
			every := time.Duration(rapid.IntRange(10, 50).Draw(t, "step")) * time.Second
			c.pass(t, time.Duration(rapid.IntRange(1, 120).Draw(t, "minutes"))*time.Minute, every, all...)
		}
		c.lead("a")
		c.pass(t, time.Minute, time.Second, all...)
		plan, err := schedule.DecodePlan(c.plans["u"])
		if err != nil {
			t.Fatal(err)
		}
		made := c.made["u"]
		for n, m := range made {
			slot := plan.Items[0].Last(m, time.UTC)
			if n > 0 && !made[n-1].Before(slot) {
				t.Fatalf("two snapshots for %v: %v and %v", slot, made[n-1], m)
			}
		}
		if slot := plan.Items[0].Last(c.now.Add(-time.Minute), time.UTC); slot.After(monday) && (len(made) == 0 || made[len(made)-1].Before(slot)) {
			t.Fatalf("nothing for %v at %v: %v", slot, c.now, clocks(made))
		}
	})
}
