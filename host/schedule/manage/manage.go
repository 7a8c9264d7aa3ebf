// Package manage is what the commands about schedules do: change what is stored,
// list it, tell what is due when, and take over the stock module's schedules. The
// plugin is asked for everything that has to do with the cluster.
package manage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"cephmirror/host/schedule"
	"cephmirror/host/schedule/runner"
	"cephmirror/plugins"
)

// Failure is an error of the cluster's: what a command of Ceph would tell.
type Failure struct {
	Errno syscall.Errno
	Text  string
}

func (f *Failure) Error() string { return f.Text }

// Unwrap gives the errno.
func (f *Failure) Unwrap() error { return f.Errno }

// Call sends a command to the plugin.
type Call func(ctx context.Context, c plugins.Command) plugins.Result

// Schedules are those of one cluster, or of one file system in it.
type Schedules struct {
	Call Call
	// Args go with every command: fs, the file system.
	Args map[string]any
	Now  func() time.Time
	Loc  *time.Location
}

func (s Schedules) call(ctx context.Context, prefix string, args map[string]any, out any) error {
	all := make(map[string]any)
	for k, v := range s.Args {
		all[k] = v
	}
	for k, v := range args {
		all[k] = v
	}
	res := s.Call(ctx, plugins.Command{Prefix: prefix, Args: all})
	if res.Errno != 0 {
		return &Failure{syscall.Errno(res.Errno), res.Status}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(res.Out, out); err != nil {
		return fmt.Errorf("answer of the plugin to %q: %w", prefix, err)
	}
	return nil
}

// Level names a level to the plugin.
type Level map[string]any

// LevelOf is a level of RBD.
func LevelOf(l schedule.Level) Level {
	scope := map[schedule.Scope]string{
		schedule.Global: "global", schedule.Pool: "pool", schedule.Namespace: "namespace", schedule.Image: "image",
	}[l.Scope]
	return Level{"scope": scope, "pool": l.Pool, "namespace": l.Namespace, "image": l.Image}
}

func (s Schedules) resolve(ctx context.Context, l Level) (plugins.StoredSchedule, error) {
	var out plugins.StoredSchedule
	err := s.call(ctx, plugins.ScheduleResolve, l, &out)
	return out, err
}

// attempts are made at a change when others change the same.
const attempts = 10

// change changes what is set at a level.
func (s Schedules) change(ctx context.Context, l Level, do func(*schedule.Plan) error) error {
	for i := 0; ; i++ {
		level, err := s.resolve(ctx, l)
		if err != nil {
			return err
		}
		// What cannot be read goes with the next change.
		plan, _ := schedule.DecodePlan(level.Value)
		if err := do(&plan); err != nil {
			return err
		}
		value, err := plan.Encode()
		if err != nil {
			return err
		}
		if value == level.Value {
			return nil
		}
		err = s.call(ctx, plugins.ScheduleSwap, map[string]any{"key": level.Key, "old": level.Value, "new": value}, nil)
		if !errors.Is(err, syscall.ECANCELED) || i == attempts {
			return err
		}
	}
}

// Add sets a rule at a level. keep, if not nil, replaces what is kept.
func (s Schedules) Add(ctx context.Context, l Level, when, start string, keep *schedule.Retention) error {
	return s.change(ctx, l, func(p *schedule.Plan) error {
		it, err := schedule.ParseItem(when, start)
		if err != nil {
			return err
		}
		it.Added = s.Now().UTC().Truncate(time.Second)
		p.Add(it)
		if keep != nil {
			p.Keep = *keep
		}
		return nil
	})
}

// Keep sets how many snapshots are kept at a level that has rules.
func (s Schedules) Keep(ctx context.Context, l Level, keep schedule.Retention) error {
	return s.change(ctx, l, func(p *schedule.Plan) error {
		if len(p.Items) == 0 {
			return &Failure{syscall.ENOENT, "there is no schedule"}
		}
		p.Keep = keep
		return nil
	})
}

// Remove takes a rule away, or with when empty the whole level.
func (s Schedules) Remove(ctx context.Context, l Level, when, start string) error {
	return s.change(ctx, l, func(p *schedule.Plan) error {
		if when == "" {
			*p = schedule.Plan{}
			return nil
		}
		it, err := schedule.ParseItem(when, start)
		if err != nil {
			return err
		}
		if p.Remove(it); len(p.Items) == 0 {
			*p = schedule.Plan{}
		}
		return nil
	})
}

// Entry is what is set at one level.
type Entry struct {
	Name  string
	Names []string
	Plan  schedule.Plan
	key   string
}

// All returns what is set at any level, in order of their names.
func (s Schedules) All(ctx context.Context) ([]Entry, error) {
	var stored []plugins.StoredSchedule
	if err := s.call(ctx, plugins.ScheduleList, nil, &stored); err != nil {
		return nil, err
	}
	var out []Entry
	for _, e := range stored {
		plan, _ := schedule.DecodePlan(e.Value)
		if len(plan.Items) > 0 {
			out = append(out, Entry{e.Name, e.Names, plan, e.Key})
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Exact returns what is set at a level itself. ENOENT: nothing is.
func (s Schedules) Exact(ctx context.Context, l Level) (Entry, error) {
	level, err := s.resolve(ctx, l)
	if err != nil {
		return Entry{}, err
	}
	plan, _ := schedule.DecodePlan(level.Value)
	if len(plan.Items) == 0 {
		return Entry{}, &Failure{Errno: syscall.ENOENT}
	}
	return Entry{level.Name, level.Names, plan, level.Key}, nil
}

// Below returns what is set at a level and all that are narrower; where nothing
// is set at it, what it has from a wider one.
func (s Schedules) Below(ctx context.Context, l Level) ([]Entry, error) {
	level, err := s.resolve(ctx, l)
	if err != nil {
		return nil, err
	}
	all, err := s.All(ctx)
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, key := range append([]string{level.Key}, level.Parents...) {
		i := slices.IndexFunc(all, func(e Entry) bool { return e.key == key })
		if i >= 0 {
			out = append(out, all[i])
			break
		}
	}
	for _, e := range all {
		if e.key != level.Key && schedule.Covers(level.Key, e.key) && !slices.ContainsFunc(out, func(o Entry) bool { return o.key == e.key }) {
			out = append(out, e)
		}
	}
	return out, nil
}

// Next is a unit with what is due for it.
type Next struct {
	Unit plugins.ScheduleUnit
	At   time.Time // by the clock of Schedules.Loc; not if Unit.Held or Note has a reason against it
	Note string
	Keep schedule.Retention
}

// Coming is what is due in one pool or file system.
type Coming struct {
	Domain string
	Leader string // the instance that sees to it
	Units  []Next
}

// Status tells what is due next for the units in a level.
func (s Schedules) Status(ctx context.Context, l Level) ([]Coming, error) {
	level, err := s.resolve(ctx, l)
	if err != nil {
		return nil, err
	}
	var domains []plugins.ScheduleDomain
	if err := s.call(ctx, plugins.ScheduleUnits, nil, &domains); err != nil {
		return nil, err
	}
	now := s.Now()
	var out []Coming
	for _, d := range domains {
		c := Coming{Domain: d.Name, Leader: d.Leader}
		plans, _ := runner.Plans(d.Stored)
		for _, u := range d.Units {
			if !slices.Contains(u.Keys, level.Key) {
				continue
			}
			// What is held would be due then if it were not.
			i := slices.IndexFunc(u.Keys, func(key string) bool { return len(plans[key].Items) > 0 })
			if i < 0 {
				continue
			}
			plan := plans[u.Keys[i]]
			n := Next{Unit: u, Keep: plan.Keep, At: schedule.NextOf(plan.Items, now, s.Loc).In(s.Loc)}
			if active, _ := runner.Rules(plans, u); len(active) < len(plan.Items) {
				n.Note = "the stock module has the same schedule, and sees to it"
			}
			c.Units = append(c.Units, n)
		}
		out = append(out, c)
	}
	return out, nil
}
