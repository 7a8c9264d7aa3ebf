package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"cephmirror/dirmap"
	"cephmirror/host/leader"
	"cephmirror/plugins"
)

// eventsPause is the wait before a broken stream of events is followed anew.
const eventsPause = time.Second

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// domainLoop is the assignment of one domain.
type domainLoop = *leader.Loop

// domains are those this instance leads.
type domains struct {
	mu    sync.Mutex
	loops map[string]domainLoop
}

func (d *domains) each(do func(string, domainLoop)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range sortedKeys(d.loops) {
		do(name, d.loops[name])
	}
}

func (d *domains) tell(e plugins.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.loops[e.Domain]; l != nil {
		l.Tell(e)
	}
}

func (d *domains) gain(domain string, start func() domainLoop) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.loops == nil {
		d.loops = map[string]domainLoop{}
	}
	if d.loops[domain] == nil {
		d.loops[domain] = start()
	}
}

func (d *domains) lose(domain string) {
	d.mu.Lock()
	l := d.loops[domain]
	delete(d.loops, domain)
	d.mu.Unlock()
	if l != nil {
		l.Close()
	}
}

func (d *domains) loseAll() {
	d.mu.Lock()
	names := sortedKeys(d.loops)
	d.mu.Unlock()
	for _, name := range names {
		d.lose(name)
	}
}

// session accompanies one run of the plugin: it follows its events.
func (d *daemon) session(ctx context.Context, client *plugins.Client, info plugins.Info) {
	defer d.domains.loseAll()
	if !d.serve(info) {
		return
	}
	var schedules sync.WaitGroup
	schedules.Go(func() { d.runSchedules(ctx, client) })
	defer schedules.Wait()
	for {
		err := d.follow(ctx, client)
		// What follows is told from the start: the assignment is loaded anew.
		d.domains.loseAll()
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, plugins.ErrGone) { // its end is told elsewhere
			d.log.Warn().Err(err).Msg("events of the plugin broke off, following them anew")
		}
		t := time.NewTimer(eventsPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// shuffleInterval is how long a unit stays with its instance: what was set for
// us, or else what the stock daemon has an option for.
func (d *daemon) shuffleInterval(ctx context.Context, client *plugins.Client) time.Duration {
	own := d.settings.Duration("shuffle_interval")
	if d.kind != "rbd" || d.settings.Given("shuffle_interval") {
		return own
	}
	const option = "rbd_mirror_image_policy_migration_throttle"
	ctx, cancel := context.WithTimeout(ctx, d.settings.Duration("command_budget"))
	defer cancel()
	res := client.Call(ctx, plugins.Command{Prefix: "config get", Args: map[string]any{"var": option}})
	var answer map[string]string
	if res.Errno != 0 || json.Unmarshal(res.Out, &answer) != nil {
		return own
	}
	seconds, err := strconv.ParseUint(answer[option], 10, 32)
	if err != nil {
		return own
	}
	// Zero stands for the default where it is used.
	return max(time.Duration(seconds)*time.Second, time.Millisecond)
}

// follow takes in events until the stream or ctx ends.
func (d *daemon) follow(ctx context.Context, client *plugins.Client) error {
	synced := false
	state := map[string]plugins.CommandSpec{} // commands, until synced
	return client.Events(ctx, func(e plugins.Event) error {
		log := d.log.With().Str("domain", e.Domain).Logger()
		switch e.Kind {
		case plugins.EventCommandAdded:
			prefix := e.Spec.Prefix()
			switch {
			case isHostCommand(prefix):
				log.Warn().Str("signature", e.Spec.Signature).Msg("the plugin may not serve this command")
			case synced:
				d.addCommand(e.Spec)
			default:
				state[prefix] = e.Spec
			}
		case plugins.EventCommandRemoved:
			d.removeCommand(e.Spec.Prefix())
		case plugins.EventSynced:
			synced = true
			d.syncCommands(state)
		case plugins.EventDomainUp:
			log.Info().Msg("mirroring is enabled")
		case plugins.EventDomainDown:
			d.domains.lose(e.Domain)
			log.Info().Msg("mirroring is disabled")
		case plugins.EventLeaderGained:
			params := dirmap.Params{ShuffleInterval: d.shuffleInterval(ctx, client), Policy: d.policy()}
			d.domains.gain(e.Domain, func() domainLoop {
				return leader.Start(ctx, client, e.Domain, params, d.log)
			})
		case plugins.EventLeaderLost:
			d.domains.lose(e.Domain)
		default:
			d.domains.tell(e)
		}
		return nil
	})
}
