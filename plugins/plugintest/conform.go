package plugintest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"cephmirror/plugins"
)

// patience bounds every wait of the suite.
const patience = 30 * time.Second

// Subject is one plugin under test: not started, with a configuration that lets
// it start.
type Subject struct {
	Plugin plugins.Plugin
	Config plugins.Config
}

// Conform checks what every plugin must keep, both directly and through the
// wire. make is called for each check.
func Conform(t *testing.T, make func(t *testing.T) Subject) {
	through := map[string]func(*testing.T, plugins.Plugin) plugins.Plugin{
		"direct": func(_ *testing.T, p plugins.Plugin) plugins.Plugin { return p },
		"wire":   func(t *testing.T, p plugins.Plugin) plugins.Plugin { return Connect(t, p, nil) },
	}
	checks := map[string]func(*testing.T, context.Context, plugins.Plugin){
		"events are level then edge":     checkEvents,
		"unknown things carry an errno":  checkErrno,
		"an ended context ends the call": checkContext,
		"stop ends events and repeats":   checkStop,
		"metrics and renew answer":       checkAnswers,
	}
	for way, wrap := range through {
		for name, check := range checks {
			t.Run(way+"/"+name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				s := make(t)
				p := wrap(t, s.Plugin)
				if _, err := p.Start(ctx, s.Config); err != nil {
					t.Fatalf("Start: %v", err)
				}
				check(t, ctx, p)
				if err := p.Stop(ctx); err != nil {
					t.Errorf("Stop: %v", err)
				}
			})
		}
	}
}

// State subscribes to p and returns its state: all events up to EventSynced.
func State(ctx context.Context, p plugins.Plugin) ([]plugins.Event, error) {
	synced := errors.New("synced")
	var got []plugins.Event
	err := p.Events(ctx, func(e plugins.Event) error {
		if e.Kind == plugins.EventSynced {
			return synced
		}
		got = append(got, e)
		return nil
	})
	if errors.Is(err, synced) {
		return got, nil
	}
	if err == nil {
		err = errors.New("events ended before the state was complete")
	}
	return nil, err
}

func rank(k plugins.EventKind) int {
	switch k {
	case plugins.EventDomainUp, plugins.EventLeaderGained:
		return 0
	case plugins.EventCommandAdded:
		return 1
	case plugins.EventUnitAdded:
		return 2
	case plugins.EventInstanceJoined:
		return 3
	}
	return -1 // not a state
}

func checkEvents(t *testing.T, ctx context.Context, p plugins.Plugin) {
	first, err := State(ctx, p)
	if err != nil {
		t.Fatalf("first Events: %v", err)
	}
	domains := map[string]bool{}
	last := 0
	for _, e := range first {
		r := rank(e.Kind)
		if r < last {
			t.Errorf("event %+v out of order", e)
		}
		last = max(last, r)
		if e.Kind == plugins.EventDomainUp {
			domains[e.Domain] = true
		}
		if e.Kind != plugins.EventCommandAdded && !domains[e.Domain] {
			t.Errorf("event %+v names a domain that is not up", e)
		}
		if e.Kind == plugins.EventCommandAdded && e.Spec.Prefix() == "" {
			t.Errorf("command %+v has no prefix", e.Spec)
		}
	}
	if _, err := State(ctx, p); err != nil {
		t.Fatalf("second Events: %v", err)
	}
}

func checkErrno(t *testing.T, ctx context.Context, p plugins.Plugin) {
	if r := p.Call(ctx, plugins.Command{Prefix: "no such command"}); r.Errno <= 0 || r.Status == "" {
		t.Errorf("unknown command: %+v, want an errno and a reason", r)
	}
	if _, err := p.LoadMap(ctx, "nosuch@99"); err == nil || plugins.Errno(err) == 0 {
		t.Errorf("LoadMap of an unknown domain: %v, want an errno", err)
	}
	a := plugins.Action{Kind: plugins.ActionRelease, Mapping: plugins.Mapping{Unit: "/none", Instance: "1"}}
	if err := p.Do(ctx, "nosuch@99", a); err == nil || plugins.Errno(err) == 0 {
		t.Errorf("Do in an unknown domain: %v, want an errno", err)
	}
}

func checkContext(t *testing.T, ctx context.Context, p plugins.Plugin) {
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err := p.Events(short, func(plugins.Event) error { return nil })
	if err == nil {
		t.Error("Events returned nil although its context ended")
	}
	if ctx.Err() != nil {
		t.Error("Events outlived its context")
	}
}

func checkStop(t *testing.T, ctx context.Context, p plugins.Plugin) {
	ended := make(chan struct{})
	synced := make(chan struct{})
	var once sync.Once
	go func() {
		defer close(ended)
		_ = p.Events(ctx, func(e plugins.Event) error {
			if e.Kind == plugins.EventSynced {
				once.Do(func() { close(synced) })
			}
			return nil
		})
	}()
	select {
	case <-synced:
	case <-ctx.Done():
		t.Fatal("state did not arrive")
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := p.Stop(ctx); err != nil {
				t.Errorf("Stop: %v", err)
			}
		})
	}
	wg.Wait()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Error("Events did not end with Stop")
	}
	// Whatever the answer, it must come.
	_ = p.Call(ctx, plugins.Command{Prefix: "no such command"})
	if ctx.Err() != nil {
		t.Error("Call after Stop did not return")
	}
}

func checkAnswers(t *testing.T, ctx context.Context, p plugins.Plugin) {
	if err := p.Renew(ctx, time.Minute); err != nil {
		t.Errorf("Renew: %v", err)
	}
	loggers, err := p.Metrics(ctx)
	if err != nil {
		t.Errorf("Metrics: %v", err)
	}
	for _, l := range loggers {
		for _, c := range l.Counters {
			if l.Name == "" || c.Name == "" || c.Type < plugins.CounterU64 || c.Type > plugins.AverageSeconds {
				t.Errorf("counter %+v of %q is not well-formed", c, l.Name)
			}
		}
	}
}
