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
	"time"

	"cephmirror/host/schedule"
	"cephmirror/plugins"
)

// stockPrefix begins the stock module's commands.
const stockPrefix = "rbd mirror snapshot schedule "

// stockEntry is what the stock module answers for one level.
type stockEntry struct {
	Name     string `json:"name"`
	Schedule []struct {
		Interval  string  `json:"interval"`
		StartTime *string `json:"start_time"`
	} `json:"schedule"`
}

func (s Schedules) stock(ctx context.Context, verb string, args map[string]string, out any) error {
	command := map[string]string{"prefix": stockPrefix + verb}
	maps.Copy(command, args)
	b, err := json.Marshal(command)
	if err != nil {
		return err
	}
	if out == nil {
		out = new(json.RawMessage)
	}
	res := s.Call(ctx, plugins.Command{Prefix: plugins.ScheduleStock, Args: map[string]any{"command": string(b)}})
	if res.Errno != 0 {
		return &Failure{syscall.Errno(res.Errno), res.Status}
	}
	if len(strings.TrimSpace(string(res.Out))) == 0 {
		return nil
	}
	if err := json.Unmarshal(res.Out, out); err != nil {
		return fmt.Errorf("answer of the mgr to %q: %w", command["prefix"], err)
	}
	return nil
}

// Adopt moves the schedules that the stock module has at a level and below to
// ours, and tells of each, or of why it stays. With dry set it only tells.
//
// A rule is stored on our side first, marked as not to be followed; then the
// stock module is told to remove it, so that it forgets it at once; then the mark
// goes. Whenever this breaks off, no rule is lost and none is followed twice, and
// repeating it goes on where it stopped.
func (s Schedules) Adopt(ctx context.Context, at schedule.Level, dry bool, tell func(string)) error {
	var found map[string]stockEntry
	if err := s.stock(ctx, "list", map[string]string{"level_spec": at.String(), "format": "json"}, &found); err != nil {
		return err
	}
	var failed error
	for _, key := range slices.Sorted(maps.Keys(found)) {
		e := found[key]
		l, err := schedule.ParseLevel(e.Name)
		if err != nil {
			return err
		}
		if !contains(at, l) {
			continue // a wider level, which is listed for want of one of its own
		}
		for _, it := range e.Schedule {
			start := ""
			if it.StartTime != nil {
				start = *it.StartTime
			}
			if err := s.adoptItem(ctx, e.Name, l, it.Interval, start, dry, tell); err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", levelName(e.Name), err))
			}
		}
	}
	if dry {
		return failed
	}
	return errors.Join(failed, s.finish(ctx, at, tell))
}

// contains tells whether a level lies in another, or is it.
func contains(outer, inner schedule.Level) bool {
	switch outer.Scope {
	case schedule.Global:
		return true
	case schedule.Pool:
		return inner.Scope >= schedule.Pool && inner.Pool == outer.Pool
	case schedule.Namespace:
		return inner.Scope >= schedule.Namespace && inner.Pool == outer.Pool && inner.Namespace == outer.Namespace
	}
	return inner == outer
}

func levelName(name string) string {
	if name == "" {
		return "all pools"
	}
	return name
}

func (s Schedules) adoptItem(ctx context.Context, name string, l schedule.Level, when, start string, dry bool, tell func(string)) error {
	it, err := schedule.ParseItem(when, start)
	if err != nil {
		return fmt.Errorf("stays with the stock module: %w", err)
	}
	if dry {
		tell(fmt.Sprintf("%s: %s would be adopted%s", levelName(name), it, zoneNote(it)))
		return nil
	}
	it.Added, it.Held = s.Now().UTC().Truncate(time.Second), true
	err = s.change(ctx, LevelOf(l), func(p *schedule.Plan) error {
		// A rule that is there already must not be followed any more either.
		p.Remove(it)
		p.Add(it)
		return nil
	})
	if err != nil {
		return err
	}
	args := map[string]string{"level_spec": l.String(), "interval": when}
	if start != "" {
		args["start_time"] = start
	}
	if err := s.stock(ctx, "remove", args, nil); err != nil {
		return fmt.Errorf("removing it from the stock module: %w", err)
	}
	return s.release(ctx, LevelOf(l), levelName(name), it, tell)
}

// release makes a rule count that the stock module has no more.
func (s Schedules) release(ctx context.Context, l Level, name string, it schedule.Item, tell func(string)) error {
	err := s.change(ctx, l, func(p *schedule.Plan) error {
		p.Items = slices.Clone(p.Items)
		for i, have := range p.Items {
			if have.Same(it) {
				p.Items[i].Held = false
			}
		}
		return nil
	})
	if err == nil {
		tell(fmt.Sprintf("%s: %s adopted%s", name, it, zoneNote(it)))
	}
	return err
}

// zoneNote says that a rule means another time from now on.
func zoneNote(it schedule.Item) string {
	if it.Cron != "" || !it.Start.Zoned || it.Start.Offset == 0 {
		return ""
	}
	return "; the stock module applied the zone with the wrong sign, from now on it counts as written"
}

// finish releases what an earlier attempt left marked.
func (s Schedules) finish(ctx context.Context, at schedule.Level, tell func(string)) error {
	all, err := s.All(ctx)
	if err != nil {
		return err
	}
	var found map[string]stockEntry
	for _, e := range all {
		for _, it := range e.Plan.Items {
			if !it.Held {
				continue
			}
			if found == nil {
				if err := s.stock(ctx, "list", map[string]string{"level_spec": "", "format": "json"}, &found); err != nil {
					return err
				}
			}
			l, err := schedule.ParseLevel(e.Name)
			if err != nil || !contains(at, l) || still(found, e.Name, it) {
				continue
			}
			if err := s.release(ctx, LevelOf(l), levelName(e.Name), it, tell); err != nil {
				return err
			}
		}
	}
	return nil
}

// still tells whether the stock module has a rule.
func still(found map[string]stockEntry, name string, it schedule.Item) bool {
	for _, e := range found {
		if e.Name != name {
			continue
		}
		for _, have := range e.Schedule {
			start := ""
			if have.StartTime != nil {
				start = *have.StartTime
			}
			if other, err := schedule.ParseItem(have.Interval, start); err == nil && other.Same(it) {
				return true
			}
		}
	}
	return false
}
