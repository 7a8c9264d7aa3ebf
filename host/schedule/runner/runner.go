// Package runner follows schedules: it asks the plugin what is scheduled where
// this instance is the one to see to it, and tells it when a snapshot is due or
// may go.
//
// Nothing is remembered across a change of the instance that follows: that a run
// was missed shows from the time of the newest snapshot.
package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/host/schedule"
	"cephmirror/plugins"
)

const (
	// step is how often the plugin is asked; its answer is from memory.
	step = time.Second
	// callBudget bounds a command to the plugin.
	callBudget = 20 * time.Second
	// slack is by how much a snapshot may seem older than the run it was made
	// for: its time is that of the cluster's clocks.
	slack = 30 * time.Second
	// retryMin and retryMax bound the pause before a failed run is repeated,
	// which is also never later than the next one.
	retryMin, retryMax = 15 * time.Second, 10 * time.Minute
	// prunePause is the pause before snapshots that could not be removed are
	// tried again.
	prunePause = time.Minute
)

// Plugin is what of a plugin the schedules need.
type Plugin interface {
	Call(ctx context.Context, c plugins.Command) plugins.Result
}

// Clock tells the time and waits for it to pass.
type Clock struct {
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Wall is the machine's clock.
func Wall() Clock { return Clock{time.Now, time.After} }

// Runner follows the schedules of one plugin.
type Runner struct {
	plugin Plugin
	loc    *time.Location
	log    zerolog.Logger
	clock  Clock

	planner    *schedule.Planner
	generation uint64
	domains    []plugins.ScheduleDomain
	failures   map[string]failing
	missed     map[string]uint64    // runs that did not take place in time
	pruned     map[string]time.Time // when the removal was last asked for
	warned     map[string]string

	mu     sync.Mutex
	status []Status
	err    string
}

type failing struct {
	count uint64
	pause time.Duration
}

// Status is where one unit stands.
type Status struct {
	Name  string `json:"name"`
	Next  string `json:"next,omitempty"`
	Last  string `json:"last,omitempty"`
	Busy  bool   `json:"busy"`
	Held  string `json:"held,omitempty"`
	Error string `json:"error,omitempty"`
	// Taken counts the snapshots that this instance made, Missed the runs that
	// did not take place at their time: they were made up for later, several by
	// one snapshot, or left out because the snapshot before took too long.
	Taken  uint64 `json:"snapshots"`
	Missed uint64 `json:"missed"`
	Failed uint64 `json:"failures"`

	Domain         string    `json:"-"`
	NextAt, LastAt time.Time `json:"-"`
}

// New returns a runner. Rules without a zone count in loc.
func New(p Plugin, loc *time.Location, log zerolog.Logger, clock Clock) *Runner {
	return &Runner{
		plugin: p, loc: loc, log: log, clock: clock,
		planner: schedule.NewPlanner(loc), failures: make(map[string]failing), missed: make(map[string]uint64),
		pruned: make(map[string]time.Time), warned: make(map[string]string),
	}
}

// Run follows the schedules until ctx ends. A plugin that has none to follow ends
// it too.
func (r *Runner) Run(ctx context.Context) {
	for {
		if err := r.Step(ctx); err != nil {
			if errors.Is(err, syscall.EINVAL) {
				r.log.Debug().Msg("the plugin follows no schedules")
				return
			}
			if ctx.Err() == nil {
				r.log.Debug().Err(err).Msg("asking the plugin for schedules")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-r.clock.After(step):
		}
	}
}

// now leaves out what Go adds to a time that makes it run on steadily: a
// schedule goes by what the clock shows.
func (r *Runner) now() time.Time { return r.clock.Now().Round(0) }

// Step does once what is to be done.
func (r *Runner) Step(ctx context.Context) error {
	var state plugins.ScheduleState
	err := r.call(ctx, plugins.ScheduleWatch, map[string]any{"generation": strconv.FormatUint(r.generation, 10)}, &state)
	if err != nil {
		r.note(err)
		return err
	}
	now := r.now()
	if state.Generation != r.generation {
		r.generation, r.domains = state.Generation, state.Domains
		r.plan(now)
	}
	for _, due := range r.planner.Due(now) {
		r.log.Debug().Str("unit", due.Unit).Time("at", due.At).Msg("a scheduled snapshot is due")
		if due.Missed {
			r.missed[due.Unit]++
		}
		err := r.call(ctx, plugins.ScheduleRun, map[string]any{"id": due.Unit}, nil)
		switch {
		case err == nil:
		case errors.Is(err, syscall.EALREADY):
			r.missed[due.Unit]++
			r.log.Warn().Str("unit", due.Unit).Msg("the last scheduled snapshot is still being made, leaving this one out")
		case errors.Is(err, syscall.ESTALE): // another instance sees to it
		default:
			r.log.Warn().Err(err).Str("unit", due.Unit).Msg("asking for a scheduled snapshot")
			r.planner.Retry(due.Unit, now.Add(retryMin))
		}
	}
	r.prune(ctx, now)
	r.show()
	return nil
}

func (r *Runner) call(ctx context.Context, prefix string, args map[string]any, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callBudget)
	defer cancel()
	res := r.plugin.Call(ctx, plugins.Command{Prefix: prefix, Args: args})
	if res.Errno != 0 {
		return fmt.Errorf("%s: %w", res.Status, syscall.Errno(res.Errno))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(res.Out, out); err != nil {
		return fmt.Errorf("answer of the plugin to %q: %w", prefix, err)
	}
	return nil
}

// plan takes in what is scheduled.
func (r *Runner) plan(now time.Time) {
	units := make(map[string]bool)
	for _, d := range r.domains {
		plans := r.plans(d)
		for _, u := range d.Units {
			items, _ := Rules(plans, u)
			if u.Held != "" {
				items = nil
			}
			units[u.ID] = true
			r.planner.Set(u.ID, items, since(u, items, now), now)
			r.retry(u, now)
		}
	}
	r.planner.Keep(units)
	maps.DeleteFunc(r.failures, func(unit string, _ failing) bool { return !units[unit] })
	maps.DeleteFunc(r.missed, func(unit string, _ uint64) bool { return !units[unit] })
	maps.DeleteFunc(r.pruned, func(unit string, _ time.Time) bool { return !units[unit] })
}

// since is the time from which runs of a unit can have been missed, zero if there
// is no telling.
func since(u plugins.ScheduleUnit, items []schedule.Item, now time.Time) time.Time {
	if u.Last.IsZero() {
		if slices.ContainsFunc(items, func(it schedule.Item) bool { return it.Added.IsZero() }) {
			return time.Time{}
		}
		return time.Unix(0, 1) // each rule counts from when it was made
	}
	if last := u.Last.Add(slack); !last.After(now) {
		return last
	}
	return u.Last
}

// retry plans a failed run anew.
func (r *Runner) retry(u plugins.ScheduleUnit, now time.Time) {
	was := r.failures[u.ID]
	switch {
	case u.Error == "":
		r.failures[u.ID] = failing{count: u.Failures}
	case u.Failures > was.count: // and not only the removal of another
		pause := min(max(2*was.pause, retryMin), retryMax)
		r.failures[u.ID] = failing{u.Failures, pause}
		r.planner.Retry(u.ID, now.Add(pause))
	}
}

// plans reads what is stored, and warns once of what cannot be read.
func (r *Runner) plans(d plugins.ScheduleDomain) map[string]schedule.Plan {
	plans, bad := Plans(d.Stored)
	for key, err := range bad {
		if text := err.Error(); r.warned[key] != text {
			r.warned[key] = text
			r.log.Warn().Err(err).Str("domain", d.Name).Str("level", key).Msg("leaving out a rule that cannot be understood")
		}
	}
	return plans
}

// Plans reads stored plans, by key, and says why what of them cannot be read.
func Plans(stored []plugins.StoredSchedule) (plans map[string]schedule.Plan, bad map[string]error) {
	plans, bad = make(map[string]schedule.Plan), make(map[string]error)
	for _, s := range stored {
		p, err := schedule.DecodePlan(s.Value)
		if err != nil {
			bad[s.Key] = err
		}
		plans[s.Key] = p
	}
	return plans, bad
}

// Rules returns the rules that count for a unit, and what of its snapshots is
// kept: those of the narrowest level that has any, but for what the stock module
// sees to.
func Rules(plans map[string]schedule.Plan, u plugins.ScheduleUnit) ([]schedule.Item, schedule.Retention) {
	items := make(map[string][]schedule.Item)
	for key, p := range plans {
		items[key] = p.Items
	}
	stock := make(map[string][]schedule.Item)
	for key, value := range u.Stock {
		found, _ := schedule.Decode([]byte(value)) // what cannot be read does not run
		stock[key] = found
	}
	i := slices.IndexFunc(u.Keys, func(key string) bool { return len(items[key]) > 0 })
	if i < 0 {
		return nil, schedule.Retention{}
	}
	return schedule.Active(items[u.Keys[i]], schedule.Effective(stock, u.Keys)), plans[u.Keys[i]].Keep
}

// prune lets snapshots go that are to be kept no longer.
func (r *Runner) prune(ctx context.Context, now time.Time) {
	for _, d := range r.domains {
		var plans map[string]schedule.Plan
		for _, u := range d.Units {
			if len(u.Own) < 2 || u.Busy || u.Held != "" || now.Sub(r.pruned[u.ID]).Abs() < prunePause {
				continue
			}
			if plans == nil {
				plans, _ = Plans(d.Stored)
			}
			names := Expired(plans, u, r.loc)
			if len(names) == 0 {
				continue
			}
			r.pruned[u.ID] = now
			if err := r.call(ctx, plugins.SchedulePrune, map[string]any{"id": u.ID, "names": names}, nil); err != nil {
				r.log.Debug().Err(err).Str("unit", u.Name).Msg("asking for the removal of scheduled snapshots")
			}
		}
	}
}

// Expired are the snapshots of a unit that are to be kept no longer.
func Expired(plans map[string]schedule.Plan, u plugins.ScheduleUnit, loc *time.Location) []string {
	_, keep := Rules(plans, u)
	var made []time.Time
	for _, s := range u.Own {
		made = append(made, s.Made)
	}
	gone := keep.Prune(made, loc)
	var names []string
	for _, s := range u.Own {
		if slices.ContainsFunc(gone, s.Made.Equal) {
			names = append(names, s.Name)
		}
	}
	return names
}

func (r *Runner) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err.Error()
}

// show makes the status what it is now.
func (r *Runner) show() {
	next := make(map[string]time.Time)
	for _, d := range r.planner.Next() {
		next[d.Unit] = d.At
	}
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.In(r.loc).Format(time.RFC3339)
	}
	list := []Status{}
	for _, d := range r.domains {
		for _, u := range d.Units {
			list = append(list, Status{
				Name: u.Name, Next: stamp(next[u.ID]), Last: stamp(u.Last), Busy: u.Busy,
				Held: u.Held, Error: u.Error, Taken: u.Taken, Missed: r.missed[u.ID], Failed: u.Failures,
				Domain: d.Name, NextAt: next[u.ID], LastAt: u.Last,
			})
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.err = list, ""
}

// Report is the status of all that this instance follows.
type Report struct {
	Units []Status `json:"units"`
	Error string   `json:"error,omitempty"`
}

// Status returns it.
func (r *Runner) Status() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Report{slices.Clone(r.status), r.err}
}
