// Package leader runs the assignment of one domain while this instance leads
// it: it feeds the state machine of dirmap and carries out what that decides.
package leader

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/dirmap"
	"cephmirror/plugins"
)

const (
	// parallel bounds the actions under way at once.
	parallel = 16
	// actionTimeout is when dirmap takes a result as lost; an action is given
	// up a little earlier.
	actionTimeout = 60 * time.Second
	actionBudget  = 50 * time.Second
	loadBudget    = 60 * time.Second
	retryMax      = 30 * time.Second
	tick          = time.Second
	// coldStart is for how long after the map was loaded instances may come
	// up with this one.
	coldStart = 30 * time.Second
)

// Plugin is what of a plugin the assignment needs.
type Plugin interface {
	LoadMap(ctx context.Context, domain string) (plugins.Map, error)
	Do(ctx context.Context, domain string, a plugins.Action) error
}

// Status is where the assignment of a domain stands.
type Status struct {
	Loaded    bool
	Settled   bool
	Instances []dirmap.Load
	LastError string
}

// Loop leads one domain until Close.
type Loop struct {
	plugin  Plugin
	domain  string
	log     zerolog.Logger
	m       *dirmap.Map
	cancel  context.CancelFunc
	ended   chan struct{}
	wake    chan struct{}
	results chan dirmap.ActionDone

	mu     sync.Mutex
	queue  []dirmap.Event
	status Status
}

// Start begins to lead domain. Of params, the times that are not an operator's
// to choose are our own matter.
func Start(ctx context.Context, p Plugin, domain string, params dirmap.Params, log zerolog.Logger) *Loop {
	params.ActionTimeout, params.ColdStart = actionTimeout, coldStart
	ctx, cancel := context.WithCancel(ctx)
	l := &Loop{
		plugin: p, domain: domain, log: log.With().Str("domain", domain).Logger(),
		m:      dirmap.New(params),
		cancel: cancel, ended: make(chan struct{}),
		wake: make(chan struct{}, 1), results: make(chan dirmap.ActionDone, parallel),
	}
	go func() {
		defer close(l.ended)
		l.run(ctx)
	}()
	return l
}

// Close stops leading and waits for the actions under way.
func (l *Loop) Close() {
	l.cancel()
	<-l.ended
}

// Tell passes on a change of the domain's units or instances. It never blocks.
func (l *Loop) Tell(e plugins.Event) {
	var ev dirmap.Event
	switch e.Kind {
	case plugins.EventUnitAdded:
		ev = dirmap.UnitAdded{Unit: e.Unit}
	case plugins.EventUnitRemoved:
		ev = dirmap.UnitRemoved{Unit: e.Unit}
	case plugins.EventInstanceJoined:
		ev = dirmap.InstanceJoined{Instance: e.Instance}
	case plugins.EventInstanceLeft:
		ev = dirmap.InstanceLeft{Instance: e.Instance}
	case plugins.EventUnitPinned:
		ev = dirmap.UnitPinned{Unit: e.Unit, Instance: e.Instance}
	case plugins.EventInstanceDraining, plugins.EventInstanceServing:
		ev = dirmap.InstanceDraining{Instance: e.Instance, Draining: e.Kind == plugins.EventInstanceDraining}
	case plugins.EventUnitLoad:
		ev = dirmap.UnitLoad{Unit: e.Unit, Bytes: e.Load.Bytes, Lag: e.Load.Lag}
	default:
		return
	}
	l.mu.Lock()
	l.queue = append(l.queue, ev)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Status returns where the assignment stands.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

func (l *Loop) note(change func(*Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.status)
}

// job is an action and when to give it up.
type job struct {
	action   dirmap.Action
	deadline time.Time
}

func (l *Loop) run(ctx context.Context) {
	l.log.Info().Msg("leading the assignment")
	defer l.log.Info().Msg("no longer leading the assignment")
	loaded, ok := l.load(ctx)
	if !ok {
		return
	}
	var running sync.WaitGroup
	defer running.Wait()
	busy := 0
	var pending []job
	handle := func(ev dirmap.Event) {
		now := time.Now()
		for _, a := range l.m.Handle(ev, now) {
			pending = append(pending, job{a, now.Add(actionBudget)})
		}
	}
	// What it is to heed is told before, so that nothing moves twice. Units that
	// join and leave are of no use before the map is there.
	l.mu.Lock()
	early := l.queue
	l.queue = nil
	l.mu.Unlock()
	var late []dirmap.Event
	for _, ev := range early {
		switch ev.(type) {
		case dirmap.UnitPinned, dirmap.InstanceDraining, dirmap.UnitLoad:
			handle(ev)
		default:
			late = append(late, ev)
		}
	}
	handle(loaded)
	for _, ev := range late {
		handle(ev)
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		for busy < parallel && len(pending) > 0 {
			j := pending[0]
			pending = pending[1:]
			busy++
			running.Go(func() { l.results <- dirmap.ActionDone{Action: j.action, Err: l.do(ctx, j)} })
		}
		l.note(func(s *Status) { s.Loaded, s.Settled, s.Instances = true, l.m.Settled(), l.m.Loads() })
		select {
		case done := <-l.results:
			busy--
			if done.Err != nil && ctx.Err() == nil {
				l.log.Warn().Err(done.Err).Stringer("action", done.Action.Kind).Str("unit", done.Action.Mapping.Unit).
					Str("instance", done.Action.Mapping.Instance).Msg("step of the assignment failed, will be repeated")
				l.note(func(s *Status) { s.LastError = done.Err.Error() })
			}
			handle(done)
		case <-l.wake:
			l.mu.Lock()
			queue := l.queue
			l.queue = nil
			l.mu.Unlock()
			for _, ev := range queue {
				handle(ev)
			}
		case <-ticker.C:
			handle(dirmap.Tick{})
		case <-ctx.Done():
			return
		}
	}
}

func (l *Loop) load(ctx context.Context) (dirmap.Loaded, bool) {
	for pause := time.Second; ; pause = min(2*pause, retryMax) {
		bounded, cancel := context.WithTimeout(ctx, loadBudget)
		stored, err := l.plugin.LoadMap(bounded, l.domain)
		cancel()
		if err == nil {
			out := dirmap.Loaded{Instances: stored.Instances}
			for _, u := range stored.Units {
				out.Units = append(out.Units, dirmap.Mapping(u))
			}
			return out, true
		}
		if ctx.Err() == nil {
			l.log.Warn().Err(err).Msg("loading the stored assignment failed")
			l.note(func(s *Status) { s.LastError = err.Error() })
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return dirmap.Loaded{}, false
		}
	}
}

func (l *Loop) do(ctx context.Context, j job) error {
	ctx, cancel := context.WithDeadline(ctx, j.deadline)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err // waited too long behind others
	}
	kind, ok := map[dirmap.ActionKind]plugins.ActionKind{
		dirmap.Store: plugins.ActionStore, dirmap.Delete: plugins.ActionDelete,
		dirmap.Acquire: plugins.ActionAcquire, dirmap.Release: plugins.ActionRelease,
	}[j.action.Kind]
	if !ok {
		return fmt.Errorf("unknown action %v", j.action.Kind)
	}
	return l.plugin.Do(ctx, l.domain, plugins.Action{Kind: kind, Mapping: plugins.Mapping(j.action.Mapping)})
}
