package rbdmirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/election"
	"cephmirror/rbdmirror/store"
)

// What an operator wants of the assignment, and what the images cost, is noted
// on the pool's leader object, for whoever of ours leads. A stock leader does not
// look at it.

const (
	// heedInterval is how often a leader looks at the notes.
	heedInterval = 2 * time.Second
	// loadInterval is how often instances note what their images cost.
	loadInterval = 30 * time.Second
	// loadMemory is after how long half of a load is forgotten.
	loadMemory = 5 * time.Minute
)

// orders are what was told of them to the host.
type orders struct {
	draining map[string]bool
	pins     map[string]string // image to instance
	loads    map[string][2]float64
	loadsAt  time.Time
}

// workerName is by what operators know this worker.
func (e *Engine) workerName() string {
	_, id, _ := strings.Cut(e.cfg.Name, ".")
	return id
}

func (e *Engine) note() election.Note {
	e.mu.Lock()
	defer e.mu.Unlock()
	return election.Note{Name: e.workerName(), Drain: e.draining}
}

func (e *Engine) sessions() (out []*session) {
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			if s := l.current(); s != nil {
				out = append(out, s)
			}
		}
	}
	return out
}

// Drain implements plugins.Assigner.
func (e *Engine) Drain(ctx context.Context, on bool) error {
	e.mu.Lock()
	e.draining = on
	e.mu.Unlock()
	var errs []error
	for _, s := range e.sessions() {
		if err := s.member.SetNote(ctx, e.note()); err != nil {
			errs = append(errs, fmt.Errorf("pool %s: %w", s.pool.name, err))
		}
	}
	return errors.Join(errs...)
}

// Pin implements plugins.Assigner. The unit is a global image id, or the name of
// an image.
func (e *Engine) Pin(ctx context.Context, domain, unit, worker string) error {
	sp, err := e.space(domain)
	if err != nil {
		return err
	}
	gid, err := sp.globalID(unit)
	if err != nil {
		return err
	}
	return sp.s.member.Pin(ctx, sp.spec.local, gid, worker)
}

// Pins implements plugins.Assigner.
func (e *Engine) Pins(ctx context.Context, domain string) (map[string]string, error) {
	sp, err := e.space(domain)
	if err != nil {
		return nil, err
	}
	pins, err := sp.s.member.Pins(ctx, sp.spec.local)
	if pins == nil {
		pins = map[string]string{}
	}
	return pins, err
}

// globalID finds an image by its global id, or by its name here.
func (sp *space) globalID(unit string) (string, error) {
	local, _ := sp.localList.snapshot()
	remote, _ := sp.remoteList.snapshot()
	for _, list := range []map[string]string{local, remote} {
		if _, ok := list[unit]; ok {
			return unit, nil
		}
	}
	io, err := sp.s.ioctx(sp.s.local, sp.spec.local)
	if err != nil {
		return "", err
	}
	id, err := store.NewDirectory(io).GetID(unit)
	if err == nil {
		image, err := store.NewMirroring(io).Image(id)
		if err == nil {
			return image.GlobalID, nil
		}
	}
	if ceph.Is(err, syscall.ENOENT) || err == nil {
		err = fmt.Errorf("no mirrored image %s in %s: %w", unit, sp.domain, syscall.ENOENT)
	}
	return "", err
}

// heedOrders tells the host, while this instance leads, what the notes say.
func (sp *space) heedOrders(ctx context.Context) {
	for pauseFor(ctx, heedInterval) {
		sp.mu.Lock()
		leads, due := sp.published, time.Since(sp.orders.loadsAt) >= loadInterval
		sp.mu.Unlock()
		if !leads {
			continue
		}
		m := sp.s.member
		notes, err := m.Notes(ctx)
		var pins, loads map[string]string
		if err == nil {
			pins, err = m.Pins(ctx, sp.spec.local)
		}
		if err == nil && due {
			loads, err = m.Loads(ctx, sp.spec.local)
		}
		if err != nil {
			if ctx.Err() == nil {
				sp.log.Debug().Err(err).Msg("reading what is to be heeded in the assignment")
			}
			continue
		}
		sp.heed(notes, pins)
		if due {
			sp.weigh(ctx, loads)
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// heed publishes what has changed.
func (sp *space) heed(notes map[string]election.Note, stored map[string]string) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if !sp.published {
		return
	}
	draining, byName := make(map[string]bool), make(map[string]string)
	for id, n := range notes {
		if n.Drain {
			draining[id] = true
		}
		if sp.instances[id] && n.Name != "" && (byName[n.Name] == "" || id < byName[n.Name]) {
			byName[n.Name] = id
		}
	}
	pins := make(map[string]string)
	for gid, worker := range stored {
		id := byName[worker]
		if sp.instances[worker] {
			id = worker
		}
		if id != "" {
			pins[gid] = id
		}
	}
	var events []plugins.Event
	tell := func(kind plugins.EventKind, unit, instance string) {
		events = append(events, plugins.Event{Kind: kind, Domain: sp.domain, Unit: unit, Instance: instance})
	}
	for id := range draining {
		if !sp.orders.draining[id] {
			tell(plugins.EventInstanceDraining, "", id)
		}
	}
	for id := range sp.orders.draining {
		if !draining[id] {
			tell(plugins.EventInstanceServing, "", id)
		}
	}
	for gid, id := range pins {
		if sp.orders.pins[gid] != id {
			tell(plugins.EventUnitPinned, gid, id)
		}
	}
	for gid := range sp.orders.pins {
		if pins[gid] == "" {
			tell(plugins.EventUnitPinned, gid, "")
		}
	}
	sp.orders.draining, sp.orders.pins = draining, pins
	sp.s.eng.feed.Publish(events...)
}

// weigh publishes what the images cost: bytes a second and seconds of lag.
func (sp *space) weigh(ctx context.Context, stored map[string]string) {
	loads := make(map[string][2]float64)
	sp.mu.Lock()
	if !sp.published {
		sp.mu.Unlock()
		return
	}
	var dead []string
	for id, text := range stored {
		var of map[string][2]float64
		if !sp.instances[id] {
			dead = append(dead, id)
		} else if json.Unmarshal([]byte(text), &of) == nil {
			maps.Copy(loads, of)
		}
	}
	var events []plugins.Event
	tell := func(gid string, v [2]float64) {
		events = append(events, plugins.Event{
			Kind: plugins.EventUnitLoad, Domain: sp.domain, Unit: gid,
			Load: plugins.Load{Bytes: v[0], Lag: time.Duration(v[1] * float64(time.Second))},
		})
	}
	for gid, v := range loads {
		if sp.orders.loads[gid] != v {
			tell(gid, v)
		}
	}
	for gid := range sp.orders.loads {
		if _, ok := loads[gid]; !ok {
			tell(gid, [2]float64{})
		}
	}
	sp.orders.loads, sp.orders.loadsAt = loads, time.Now()
	sp.s.eng.feed.Publish(events...)
	sp.mu.Unlock()
	for _, id := range dead {
		if err := sp.s.member.NoteLoads(ctx, sp.spec.local, id, ""); err != nil && ctx.Err() == nil {
			sp.log.Debug().Err(err).Msg("removing the loads of an instance that is gone")
		}
	}
}

// noteLoads notes what this instance's images cost until ctx ends.
func (sp *space) noteLoads(ctx context.Context) {
	last, rates, noted := make(map[string]uint64), make(map[string]float64), "{}"
	keep := math.Exp2(-float64(loadInterval) / float64(loadMemory))
	for pauseFor(ctx, loadInterval) {
		loads := make(map[string][2]float64)
		here := make(map[string]bool)
		for _, img := range sp.sortedImages() {
			gid := img.gid
			here[gid] = true
			bytes, lag := img.work()
			rate := float64(bytes-min(last[gid], bytes)) / loadInterval.Seconds()
			rates[gid] = rates[gid]*keep + rate*(1-keep)
			last[gid] = bytes
			if rates[gid] >= 1 || lag > 0 {
				loads[gid] = [2]float64{math.Round(rates[gid]), math.Round(lag.Seconds())}
			}
		}
		for gid := range rates {
			if !here[gid] {
				delete(rates, gid)
				delete(last, gid)
			}
		}
		text, err := json.Marshal(loads)
		if err != nil || string(text) == noted {
			continue
		}
		if err := sp.s.member.NoteLoads(ctx, sp.spec.local, sp.s.instance, string(text)); err != nil {
			if ctx.Err() == nil {
				sp.log.Debug().Err(err).Msg("noting the loads")
			}
			continue
		}
		noted = string(text)
	}
}

// work returns how many bytes were copied for the image, and by how much it is
// behind its primary.
func (img *image) work() (bytes uint64, lag time.Duration) {
	img.mu.Lock()
	defer img.mu.Unlock()
	s := img.status
	t := img.totals.plus(s)
	bytes = t.bytes + t.payload
	if s.Syncing {
		bytes += s.BytesCopied
	}
	if s.Syncing && s.RemoteTime.After(s.LocalTime) && !s.LocalTime.IsZero() {
		lag = s.RemoteTime.Sub(s.LocalTime)
	}
	return bytes, max(lag, time.Duration(s.Journal.SecondsBehind*float64(time.Second)))
}
