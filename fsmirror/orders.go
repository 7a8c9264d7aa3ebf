package fsmirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"cephmirror/fsmirror/control"
	"cephmirror/fsmirror/dirstore"
	"cephmirror/plugins"
)

// What an operator wants of the assignment, and what the directories cost, is
// noted on the object of the directory map, for whoever controls that.
const (
	pinPrefix  = "cephmirror_pin_"  // and a directory; the value names a worker
	loadPrefix = "cephmirror_load_" // and an instance; the value is JSON of dirLoads
)

// dirLoads are the loads of an instance's directories: bytes a second and
// seconds of lag.
type dirLoads map[string][2]float64

const (
	// loadInterval is how often instances note their loads, and the controller
	// looks at them.
	loadInterval = 30 * time.Second
	// loadMemory is after how long half of a load is forgotten.
	loadMemory = 5 * time.Minute
)

// workerName is by what operators know this worker.
func (e *Engine) workerName() string {
	_, id, _ := strings.Cut(e.cfg.Name, ".")
	return id
}

// stockControls fails when nobody would heed orders.
func (e *Engine) stockControls() error {
	enabled, err := e.moduleEnabled()
	if err == nil && enabled {
		err = fmt.Errorf("the mgr module %s assigns the directories: %w", control.StockModule, syscall.EBUSY)
	}
	return err
}

// Drain implements plugins.Assigner.
func (e *Engine) Drain(_ context.Context, on bool) error {
	if err := e.stockControls(); err != nil {
		return err
	}
	e.mu.Lock()
	e.draining = on
	list := slices.Collect(maps.Values(e.filesystems))
	e.mu.Unlock()
	var errs []error
	for _, f := range list {
		if err := f.noteInstance(); err != nil && !errors.Is(err, errNotebookClosed) {
			errs = append(errs, fmt.Errorf("file system %s: %w", f.name, err))
			continue
		}
		f.wakeController()
	}
	return errors.Join(errs...)
}

// Pin implements plugins.Assigner.
func (e *Engine) Pin(_ context.Context, domain, unit, worker string) error {
	f, err := e.filesystem(domain)
	if err != nil {
		return err
	}
	if err := e.stockControls(); err != nil {
		return err
	}
	if !strings.HasPrefix(unit, "/") {
		return fmt.Errorf("%s should be an absolute path: %w", unit, syscall.EINVAL)
	}
	if err := f.notes.write(pinPrefix+path.Clean(unit), worker); err != nil {
		return err
	}
	f.wakeController()
	return nil
}

// Pins implements plugins.Assigner.
func (e *Engine) Pins(_ context.Context, domain string) (map[string]string, error) {
	f, err := e.filesystem(domain)
	if err != nil {
		return nil, err
	}
	return f.notes.read(pinPrefix)
}

// wakeController makes the controller look at the notes soon.
func (f *filesystem) wakeController() {
	if err := f.notes.say(); err != nil {
		f.log.Debug().Err(err).Msg("waking the controller")
	}
}

// orders are what was told of them to the host.
type orders struct {
	draining map[string]bool
	pins     map[string]string // directory to instance
	loads    map[string][2]float64
	loadsAt  time.Time
}

// heed publishes what has changed of orders and loads.
func (l *leader) heed(notes map[string]note) error {
	draining := make(map[string]bool)
	byName := make(map[string]string)
	for id, n := range notes {
		if n.Drain {
			draining[id] = true
		}
		if _, here := l.instances[id]; here && n.Name != "" && (byName[n.Name] == "" || id < byName[n.Name]) {
			byName[n.Name] = id
		}
	}
	for id := range draining {
		if !l.orders.draining[id] {
			l.publish(plugins.EventInstanceDraining, "", id)
		}
	}
	for id := range l.orders.draining {
		if !draining[id] {
			l.publish(plugins.EventInstanceServing, "", id)
		}
	}
	l.orders.draining = draining
	stored, err := l.f.notes.read(pinPrefix)
	if err != nil {
		return err
	}
	pins := make(map[string]string)
	for dir, worker := range stored {
		id := byName[worker]
		if _, here := l.instances[worker]; here {
			id = worker
		}
		if id != "" {
			pins[dir] = id
		}
	}
	for dir, id := range pins {
		if l.orders.pins[dir] != id {
			l.publish(plugins.EventUnitPinned, dir, id)
		}
	}
	for dir := range l.orders.pins {
		if pins[dir] == "" {
			l.publish(plugins.EventUnitPinned, dir, "")
		}
	}
	l.orders.pins = pins
	if time.Since(l.orders.loadsAt) < loadInterval {
		return nil
	}
	l.orders.loadsAt = time.Now()
	return l.weigh()
}

// weigh publishes the directories' loads.
func (l *leader) weigh() error {
	values, err := l.f.notes.read(loadPrefix)
	if err != nil {
		return err
	}
	loads := make(map[string][2]float64)
	for id, text := range values {
		if _, here := l.instances[id]; !here {
			if err := l.f.notes.remove(loadPrefix + id); err != nil {
				return err
			}
			continue
		}
		var of dirLoads
		if json.Unmarshal([]byte(text), &of) == nil {
			maps.Copy(loads, of)
		}
	}
	tell := func(dir string, v [2]float64) {
		l.f.eng.feed.Publish(plugins.Event{
			Kind: plugins.EventUnitLoad, Domain: l.f.domain(), Unit: dir,
			Load: plugins.Load{Bytes: v[0], Lag: time.Duration(v[1] * float64(time.Second))},
		})
	}
	for dir, v := range loads {
		if l.orders.loads[dir] != v {
			tell(dir, v)
		}
	}
	for dir := range l.orders.loads {
		if _, ok := loads[dir]; !ok {
			tell(dir, [2]float64{})
		}
	}
	l.orders.loads = loads
	return nil
}

// noteLoads keeps the note of this instance's loads until ctx ends.
func (f *filesystem) noteLoads(ctx context.Context) {
	defer func() { _ = f.notes.remove(loadPrefix + f.eng.instance) }() // or the controller does
	last := make(map[string]uint64)                                    // bytes synchronised
	rates := make(map[string]float64)
	noted := ""
	for sleep(ctx, loadInterval) {
		loads := make(dirLoads)
		work := f.workOf()
		for dir, w := range work {
			rate := float64(w.bytes-min(last[dir], w.bytes)) / loadInterval.Seconds()
			keep := math.Exp2(-float64(loadInterval) / float64(loadMemory))
			rates[dir] = rates[dir]*keep + rate*(1-keep)
			last[dir] = w.bytes
			if rates[dir] < 1 && w.lag == 0 {
				continue
			}
			loads[dir] = [2]float64{math.Round(rates[dir]), math.Round(w.lag.Seconds())}
		}
		for dir := range rates {
			if _, ok := work[dir]; !ok {
				delete(rates, dir)
				delete(last, dir)
			}
		}
		text, err := json.Marshal(loads)
		if err != nil || string(text) == noted {
			continue
		}
		if err := f.notes.write(loadPrefix+f.eng.instance, string(text)); err != nil {
			f.log.Debug().Err(err).Msg("noting the loads")
			continue
		}
		noted = string(text)
	}
}

// dirWork is how much was done for a directory, on all peers, and for how long
// it has been waiting for what is being done.
type dirWork struct {
	bytes uint64
	lag   time.Duration
}

func (f *filesystem) workOf() map[string]dirWork {
	f.mu.Lock()
	peers := slices.Collect(maps.Values(f.peers))
	f.mu.Unlock()
	out := make(map[string]dirWork)
	for _, p := range peers {
		p.mu.Lock()
		dirs := maps.Clone(p.dirs)
		p.mu.Unlock()
		for dir, w := range dirs {
			d := out[dir]
			w.status.mu.Lock()
			d.bytes += w.status.moved
			if w.status.current != nil {
				d.bytes += uint64(w.status.progress.BytesSent.Load())
				d.lag = max(d.lag, time.Since(w.status.started))
			}
			w.status.mu.Unlock()
			out[dir] = d
		}
	}
	return out
}

// write sets a note that is no JSON, or removes it when it is empty.
func (b *notebook) write(key, value string) error {
	if value == "" {
		return b.remove(key)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.ioctx == nil {
		return errNotebookClosed
	}
	if err := b.ioctx.SetOmap(dirstore.Object, map[string][]byte{key: []byte(value)}); err != nil {
		return fmt.Errorf("noting %s on object %s: %w", key, dirstore.Object, err)
	}
	return nil
}

// read returns such notes, by the rest of their keys.
func (b *notebook) read(prefix string) (map[string]string, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.ioctx == nil {
		return nil, errNotebookClosed
	}
	values, err := b.ioctx.GetAllOmapValues(dirstore.Object, "", prefix, 256)
	if err != nil {
		return nil, fmt.Errorf("listing notes on object %s: %w", dirstore.Object, err)
	}
	out := make(map[string]string, len(values))
	for key, value := range values {
		out[strings.TrimPrefix(key, prefix)] = string(value)
	}
	return out, nil
}

// say notifies all who watch the object.
func (b *notebook) say() error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.ioctx == nil {
		return errNotebookClosed
	}
	return dirstore.NewStore(b.ioctx).Wake(time.Second)
}
