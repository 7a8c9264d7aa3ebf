package manage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cephmirror/host/schedule"
	"cephmirror/plugins"
)

var now = time.Date(2026, 11, 22, 12, 34, 56, 0, time.UTC)

// cluster keeps schedules, ours and those of the stock module, by the names of
// their levels.
type cluster struct {
	ours  map[string]string
	stock map[string][]string // intervals
	calls int
	fail  int // the call that breaks off, after it was carried out or before
	after bool
	race  func() // what another does before the next change
}

func newCluster() *cluster {
	return &cluster{ours: make(map[string]string), stock: make(map[string][]string)}
}

func (c *cluster) schedules() Schedules {
	return Schedules{Call: c.call, Now: func() time.Time { return now }, Loc: time.UTC}
}

var errBroken = &Failure{syscall.ETIMEDOUT, "broken off"}

func (c *cluster) call(_ context.Context, cmd plugins.Command) plugins.Result {
	c.calls++
	if c.calls == c.fail && !c.after {
		return plugins.Result{Errno: int(errBroken.Errno), Status: errBroken.Text}
	}
	out, err := c.do(cmd)
	if c.calls == c.fail {
		err = errBroken
	}
	if err != nil {
		return plugins.ErrorResult(err)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return plugins.ErrorResult(err)
	}
	return plugins.Result{Out: b}
}

// key is the key of a level by its name: the names serve as ids.
func key(l schedule.Level) string {
	switch l.Scope {
	case schedule.Pool:
		return l.Pool
	case schedule.Namespace:
		return l.Pool + "/" + l.Namespace
	case schedule.Image:
		return l.Pool + "/" + l.Namespace + "/" + l.Image
	}
	return ""
}

func (c *cluster) level(l schedule.Level) plugins.StoredSchedule {
	s := plugins.StoredSchedule{Key: key(l), Name: l.String(), Value: c.ours[key(l)]}
	if l.Scope >= schedule.Pool {
		s.Names, s.Parents = append(s.Names, l.Pool), append(s.Parents, "")
	}
	if l.Scope >= schedule.Namespace {
		s.Names, s.Parents = append(s.Names, l.Namespace), append([]string{l.Pool}, s.Parents...)
	}
	if l.Scope >= schedule.Image {
		s.Names, s.Parents = append(s.Names, l.Image), append([]string{l.Pool + "/" + l.Namespace}, s.Parents...)
	}
	return s
}

func (c *cluster) do(cmd plugins.Command) (any, error) {
	text := func(name string) string { s, _ := cmd.Args[name].(string); return s }
	switch cmd.Prefix {
	case plugins.ScheduleResolve:
		if text("pool") == "nopool" {
			return nil, plugins.Errorf(syscall.EINVAL, "pool nopool does not exist")
		}
		scope := slices.Index([]string{"global", "pool", "namespace", "image"}, text("scope"))
		return c.level(schedule.Level{Scope: schedule.Scope(scope), Pool: text("pool"), Namespace: text("namespace"), Image: text("image")}), nil
	case plugins.ScheduleList:
		var out []plugins.StoredSchedule
		for _, k := range slices.Sorted(maps.Keys(c.ours)) {
			parts := strings.SplitN(k, "/", 3)
			l := schedule.Level{}
			if k != "" {
				l = schedule.Level{Scope: schedule.Scope(len(parts)), Pool: parts[0]}
			}
			if len(parts) > 1 {
				l.Namespace = parts[1]
			}
			if len(parts) > 2 {
				l.Image = parts[2]
			}
			out = append(out, c.level(l))
		}
		return out, nil
	case plugins.ScheduleSwap:
		if c.race != nil {
			race := c.race
			c.race = nil
			race()
		}
		k := text("key")
		if c.ours[k] != text("old") {
			return nil, syscall.ECANCELED
		}
		if c.ours[k] = text("new"); c.ours[k] == "" {
			delete(c.ours, k)
		}
		return struct{}{}, nil
	case plugins.ScheduleStock:
		var args map[string]string
		if err := json.Unmarshal([]byte(text("command")), &args); err != nil {
			return nil, err
		}
		return c.stockDo(args)
	}
	return nil, syscall.EINVAL
}

func (c *cluster) stockDo(args map[string]string) (any, error) {
	name := args["level_spec"]
	switch strings.TrimPrefix(args["prefix"], stockPrefix) {
	case "list":
		out := make(map[string]any)
		for level, rules := range c.stock {
			if !strings.HasPrefix(level, name) && level != "" { // the global one comes along
				continue
			}
			var items []map[string]any
			for _, r := range rules {
				when, start, _ := strings.Cut(r, " ")
				item := map[string]any{"interval": when, "start_time": nil}
				if start != "" {
					item["start_time"] = start
				}
				items = append(items, item)
			}
			out["id of "+level] = map[string]any{"name": level, "schedule": items}
		}
		return out, nil
	case "remove":
		rule := strings.TrimSpace(args["interval"] + " " + args["start_time"])
		c.stock[name] = slices.DeleteFunc(slices.Clone(c.stock[name]), func(r string) bool { return r == rule })
		if len(c.stock[name]) == 0 {
			delete(c.stock, name)
		}
		return "", nil
	}
	return nil, syscall.EINVAL
}

// rules are those of a level on our side that count, or are held.
func (c *cluster) rules(t *testing.T, key string) (active, held []string) {
	t.Helper()
	p, err := schedule.DecodePlan(c.ours[key])
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range p.Items {
		if it.Held {
			held = append(held, it.String())
		} else {
			active = append(active, it.String())
		}
	}
	return active, held
}

func TestChanges(t *testing.T) {
	c := newCluster()
	s := c.schedules()
	ctx := context.Background()
	pool := LevelOf(schedule.Level{Scope: schedule.Pool, Pool: "p"})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Add(ctx, pool, "60", "", nil))
	must(s.Add(ctx, pool, "1h", "", nil))
	must(s.Add(ctx, pool, "0 3 * * *", "", nil))
	// Two at once: neither is lost.
	c.race = func() { must(c.schedules().Add(ctx, pool, "1d", "2pm", nil)) }
	must(s.Add(ctx, pool, "5m", "", nil))
	active, _ := c.rules(t, "p")
	if d := cmp.Diff([]string{"every 1h", "cron 0 3 * * *", "every 1d starting at 14:00:00", "every 5m"}, active); d != "" {
		t.Error(d)
	}
	must(s.Remove(ctx, pool, "7h", ""))
	must(s.Remove(ctx, pool, "5m", ""))
	must(s.Remove(ctx, pool, "24h", "14:00"))
	must(s.Remove(ctx, pool, "0 3 * * *", ""))
	e, err := s.Exact(ctx, pool)
	must(err)
	if e.Name != "p/" || len(e.Plan.Items) != 1 || !e.Plan.Items[0].Added.Equal(now) {
		t.Errorf("left: %+v", e)
	}
	for _, bad := range []string{"0", "0m", "-5m", "5x", "* * *", ""} {
		err := s.Add(ctx, pool, bad, "", nil)
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("adding %q: %v", bad, err)
		}
	}
	must(s.Remove(ctx, pool, "", ""))
	if len(c.ours) != 0 {
		t.Errorf("left: %v", c.ours)
	}
	if _, err := s.Exact(ctx, pool); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("nothing is set: %v", err)
	}
	if err := s.Add(ctx, LevelOf(schedule.Level{Scope: schedule.Pool, Pool: "nopool"}), "5x", "", nil); err == nil || err.Error() != "pool nopool does not exist" {
		t.Errorf("a pool that is not there: %v", err)
	}
	keep := schedule.Retention{Hours: 24}
	if err := s.Keep(ctx, pool, keep); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("nothing to keep: %v", err)
	}
	must(s.Add(ctx, pool, "1h", "", &keep))
	must(s.Keep(ctx, pool, schedule.Retention{Days: 7}))
	if e, err := s.Exact(ctx, pool); err != nil || e.Plan.Keep != (schedule.Retention{Days: 7}) {
		t.Errorf("keep %v, %v", e.Plan.Keep, err)
	}
}

func TestBelow(t *testing.T) {
	c := newCluster()
	s := c.schedules()
	for _, name := range []string{"", "a/", "a/ns/", "a/img", "a/ns/img", "b/"} {
		l, err := schedule.ParseLevel(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Add(context.Background(), LevelOf(l), "1h", "", nil); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]string{
		"":           {"", "a/", "a/img", "a/ns/", "a/ns/img", "b/"},
		"a/":         {"a/", "a/img", "a/ns/", "a/ns/img"},
		"a//":        {"a/", "a/img"}, // from the pool, having none itself
		"a/ns/":      {"a/ns/", "a/ns/img"},
		"a/ns/img":   {"a/ns/img"},
		"a/ns/other": {"a/ns/"},
		"b/img":      {"b/"},
		"c/":         {""},
	} {
		l, err := schedule.ParseLevel(name)
		if err != nil {
			t.Fatal(err)
		}
		found, err := s.Below(context.Background(), LevelOf(l))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range found {
			got = append(got, e.Name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", name, d)
		}
	}
}

func stockCluster() *cluster {
	c := newCluster()
	c.stock = map[string][]string{
		"":         {"1d"},
		"p/":       {"1h", "1d 14:00:00+02:00"},
		"p/ns/":    {"90m"},
		"p/ns/img": {"5m", "0d"},
		"q/img":    {"2h"},
	}
	return c
}

func TestAdopt(t *testing.T) {
	c := stockCluster()
	var told []string
	tell := func(line string) { told = append(told, line) }
	ctx := context.Background()
	if err := c.schedules().Adopt(ctx, schedule.Level{}, true, tell); err == nil || len(c.ours) != 0 {
		t.Errorf("only looking: %v, %v", err, c.ours)
	}
	told = nil
	level := schedule.Level{Scope: schedule.Pool, Pool: "p"}
	err := c.schedules().Adopt(ctx, level, false, tell)
	if err == nil || !strings.Contains(err.Error(), "p/ns/img: stays with the stock module: Invalid interval (0d)") {
		t.Errorf("a rule that nobody can follow: %v", err)
	}
	if d := cmp.Diff(map[string][]string{"": {"1d"}, "q/img": {"2h"}, "p/ns/img": {"0d"}}, c.stock); d != "" {
		t.Error(d)
	}
	active, held := c.rules(t, "p")
	if d := cmp.Diff([]string{"every 1h", "every 1d starting at 14:00:00+02:00"}, active); d != "" || held != nil {
		t.Error(d, held)
	}
	if d := cmp.Diff([]string{
		"p/: every 1h adopted",
		"p/: every 1d starting at 14:00:00+02:00 adopted; the stock module applied the zone with the wrong sign, from now on it counts as written",
		"p/ns/: every 90m adopted", "p/ns/img: every 5m adopted",
	}, told); d != "" {
		t.Error(d)
	}
	told = nil
	if err := c.schedules().Adopt(ctx, schedule.Level{}, false, tell); err == nil {
		t.Error("the rule that nobody can follow is not told of again")
	}
	if d := cmp.Diff([]string{"all pools: every 1d adopted", "q/img: every 2h adopted"}, told); d != "" {
		t.Error(d)
	}
}

// Wherever an adoption breaks off, each rule is followed by one side, or by none
// for a moment; and the next attempt completes it.
func TestAdoptBreaksOff(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			c := stockCluster()
			delete(c.stock, "p/ns/img")
			before := maps.Clone(c.stock)
			c.fail, c.after = n, after
			err := c.schedules().Adopt(context.Background(), schedule.Level{}, false, func(string) {})
			for level, rules := range before {
				l, perr := schedule.ParseLevel(level)
				if perr != nil {
					t.Fatal(perr)
				}
				active, held := c.rules(t, key(l))
				for _, r := range rules {
					when, start, _ := strings.Cut(r, " ")
					it, perr := schedule.ParseItem(when, start)
					if perr != nil {
						t.Fatal(perr)
					}
					stock, ours := slices.Contains(c.stock[level], r), slices.Contains(active, it.String())
					if stock && ours || !stock && !ours && !slices.Contains(held, it.String()) {
						t.Fatalf("broken off at call %d (%v): %s %s: stock %v, ours %v %v", n, err, level, r, stock, active, held)
					}
				}
			}
			if err == nil && c.calls < n {
				break
			}
			if err := c.schedules().Adopt(context.Background(), schedule.Level{}, false, func(string) {}); err != nil {
				t.Fatalf("once more after call %d: %v", n, err)
			}
			for level := range before {
				l, perr := schedule.ParseLevel(level)
				if perr != nil {
					t.Fatal(perr)
				}
				if active, held := c.rules(t, key(l)); len(active) != len(before[level]) || held != nil {
					t.Fatalf("after call %d and once more: %s: %v %v", n, level, active, held)
				}
			}
			if len(c.stock) != 0 {
				t.Fatal(fmt.Sprint("left to the stock module: ", c.stock))
			}
		}
	}
}
