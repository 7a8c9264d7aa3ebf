package plugintest

import (
	"context"
	"sync"
	"syscall"
	"time"

	"cephmirror/plugins"
)

// Fake is a plugin without a cluster. Its fields may be set before Start; a nil
// function stands for a sensible answer. What it was asked is recorded.
type Fake struct {
	OnStart   func(context.Context, plugins.Config) (plugins.Info, error)
	OnLoadMap func(ctx context.Context, domain string) (plugins.Map, error)
	OnDo      func(ctx context.Context, domain string, a plugins.Action) error
	OnCall    func(context.Context, plugins.Command) plugins.Result
	OnRenew   func(ctx context.Context, ttl time.Duration) error
	OnStop    func(context.Context) error
	Loggers   []plugins.Logger
	State     []plugins.Event // published by a successful Start

	Feed plugins.Feed

	mu      sync.Mutex
	stopped bool
	started []plugins.Config
	done    []plugins.Action
	renewed int
}

// Start records cfg and publishes State.
func (f *Fake) Start(ctx context.Context, cfg plugins.Config) (plugins.Info, error) {
	f.mu.Lock()
	f.started = append(f.started, cfg)
	f.mu.Unlock()
	info := plugins.Info{Kind: "fake", CephVersion: "20.2.4", CephRelease: "tentacle", InstanceID: "4242"}
	if f.OnStart != nil {
		var err error
		if info, err = f.OnStart(ctx, cfg); err != nil {
			return plugins.Info{}, err
		}
	}
	f.Feed.Publish(f.State...)
	return info, nil
}

// Events is served by Feed.
func (f *Fake) Events(ctx context.Context, send func(plugins.Event) error) error {
	return f.Feed.Events(ctx, send)
}

// LoadMap knows no domain by itself.
func (f *Fake) LoadMap(ctx context.Context, domain string) (plugins.Map, error) {
	if f.OnLoadMap != nil {
		return f.OnLoadMap(ctx, domain)
	}
	return plugins.Map{}, plugins.Errorf(syscall.ENOENT, "no domain %s", domain)
}

// Do records a.
func (f *Fake) Do(ctx context.Context, domain string, a plugins.Action) error {
	f.mu.Lock()
	f.done = append(f.done, a)
	f.mu.Unlock()
	if f.OnDo != nil {
		return f.OnDo(ctx, domain, a)
	}
	return plugins.Errorf(syscall.ENOENT, "no domain %s", domain)
}

// Call knows no command by itself.
func (f *Fake) Call(ctx context.Context, c plugins.Command) plugins.Result {
	if f.OnCall != nil {
		return f.OnCall(ctx, c)
	}
	return plugins.Result{Errno: int(syscall.EINVAL), Status: "unknown command prefix " + c.Prefix}
}

// Metrics returns Loggers.
func (f *Fake) Metrics(context.Context) ([]plugins.Logger, error) { return f.Loggers, nil }

// Renew counts.
func (f *Fake) Renew(ctx context.Context, ttl time.Duration) error {
	f.mu.Lock()
	f.renewed++
	f.mu.Unlock()
	if f.OnRenew != nil {
		return f.OnRenew(ctx, ttl)
	}
	return nil
}

// Stop ends Events. Only the first call reaches OnStop.
func (f *Fake) Stop(ctx context.Context) error {
	f.mu.Lock()
	first := !f.stopped
	f.stopped = true
	f.mu.Unlock()
	defer f.Feed.Close()
	if first && f.OnStop != nil {
		return f.OnStop(ctx)
	}
	return nil
}

// Started returns the configurations that Start was called with.
func (f *Fake) Started() []plugins.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]plugins.Config(nil), f.started...)
}

// Done returns the actions that Do was called with.
func (f *Fake) Done() []plugins.Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]plugins.Action(nil), f.done...)
}

// Renewed returns how often Renew was called.
func (f *Fake) Renewed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.renewed
}

// Stopped reports whether Stop was called.
func (f *Fake) Stopped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stopped
}
