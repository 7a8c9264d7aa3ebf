package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/plugins"
)

// Without the stock mgr module one instance controls the directory map in its
// place: the plugin looks for instances and for changes of the map, the host
// decides, the plugin carries out. Who controls is noted on the map's object,
// and every change of the map is conditional on it.

const (
	// discoverInterval is how often the controller looks for instances and
	// for changes, as the stock module does.
	discoverInterval = time.Second
	// moduleInterval is how often we look whether the mgr module is enabled.
	moduleInterval = 5 * time.Second
	// deadAfter is how long an instance may be silent before it is taken for
	// dead, as the stock module does.
	deadAfter = 30 * time.Second
	// notifyTimeout is the time an instance has to answer an assignment.
	notifyTimeout = 5 * time.Second
	// discoverTimeout is the time instances have to answer a search, which is
	// soon repeated.
	discoverTimeout = 2 * time.Second
)

// leader is the state of a controller of one file system's directory map.
type leader struct {
	f         *filesystem
	ioctx     *rados.IOContext
	store     *dirstore.Store
	leading   bool
	heard     map[string]time.Time // instance → last answer
	addrs     map[string]string    // of all instances heard of
	dead      map[string]bool      // instances known to be gone for good
	instances map[string]string    // as published: instance → address
	units     map[string]bool      // as published: directory → being removed
}

// control takes the part of the controller whenever nobody else has it, until
// ctx ends.
func (f *filesystem) control(ctx context.Context, ioctx *rados.IOContext) {
	l := &leader{f: f, ioctx: ioctx, store: dirstore.NewStore(ioctx), heard: make(map[string]time.Time), addrs: make(map[string]string), dead: make(map[string]bool)}
	defer l.resign("the worker stops")
	var moduleAsked time.Time
	module := true
	for {
		if time.Since(moduleAsked) > moduleInterval {
			enabled, err := f.eng.moduleEnabled()
			if err != nil {
				f.log.Debug().Err(err).Msg("asking whether the mgr module mirroring is enabled")
				enabled = module
			}
			module, moduleAsked = enabled, time.Now()
		}
		var err error
		switch {
		case module:
			l.resign("the mgr module mirroring is enabled")
		case !f.eng.lease.Valid():
			l.resign("the host does not renew the lease")
		default:
			err = l.round(ctx)
		}
		if err != nil && ctx.Err() == nil {
			f.log.Warn().Err(err).Msg("controlling the directory map")
			if errors.Is(err, dirstore.ErrConflict) {
				l.lost()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-f.controlWake:
			// What woke us may be our own search for instances.
			if !sleep(ctx, discoverInterval/4) {
				return
			}
		case <-time.After(discoverInterval):
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// pokeControl makes the controller look at the map soon.
func (f *filesystem) pokeControl() {
	select {
	case f.controlWake <- struct{}{}:
	default:
	}
}

// round looks once for instances and changes, as controller, or tries to
// become it.
func (l *leader) round(ctx context.Context) error {
	if l.leading {
		if err := l.changes(); err != nil {
			return err
		}
	}
	if err := l.discover(); err != nil {
		return err
	}
	own := l.f.eng.instance
	current, err := l.store.Controller()
	if err != nil {
		return err
	}
	if current != own {
		l.lost()
		if _, answers := l.heard[current]; current != "" && answers {
			return nil
		}
		if current != "" {
			if err := l.bury(); err != nil {
				return err
			}
			// Give another one that just started as long as a dead one gets.
			if !l.dead[current] && !l.silentSince(current, deadAfter) {
				return nil
			}
		}
		if err := l.store.SetController(current, own); err != nil {
			if errors.Is(err, dirstore.ErrConflict) {
				return nil // somebody else was faster
			}
			return err
		}
	}
	if !l.leading {
		if err := l.lead(); err != nil {
			return err
		}
	}
	return l.membership()
}

// silentSince tells whether an instance was silent for d, counted from when it
// was first missed.
func (l *leader) silentSince(instance string, d time.Duration) bool {
	key := "missed " + instance
	first, ok := l.heard[key]
	if !ok {
		l.heard[key] = time.Now()
		return false
	}
	return time.Since(first) > d
}

// lead publishes the leadership; the host loads the map then.
func (l *leader) lead() error {
	contents, err := l.store.Load()
	if err != nil {
		return err
	}
	l.units = make(map[string]bool)
	for dir, entry := range contents.Dirs {
		l.units[dir] = entry.Purging
	}
	for key, err := range contents.Bad {
		l.f.log.Warn().Err(err).Str("key", key).Msg("an entry of the directory map cannot be read, leaving it alone")
	}
	l.instances = l.alive()
	if err := l.storeInstances(contents.Instances); err != nil {
		return err
	}
	l.leading = true
	l.f.log.Info().Msg("controlling the directory map")
	l.f.eng.feed.Publish(plugins.Event{Kind: plugins.EventLeaderGained, Domain: l.f.domain()})
	return nil
}

// alive returns the instances heard of lately, with their addresses.
func (l *leader) alive() map[string]string {
	out := make(map[string]string)
	for id, at := range l.heard {
		if addr, ok := l.addrs[id]; ok && time.Since(at) < deadAfter {
			out[id] = addr
		}
	}
	return out
}

// storeInstances makes the stored instances those that live.
func (l *leader) storeInstances(stored map[string]string) error {
	change := dirstore.Change{Set: make(map[string][]byte), Controller: l.f.eng.instance}
	for id, addr := range l.instances {
		if stored[id] != addr {
			change.Set[dirstore.InstanceKey(id)] = dirstore.EncodeInstance(addr)
		}
	}
	for id := range stored {
		if _, ok := l.instances[id]; !ok {
			change.Remove = append(change.Remove, dirstore.InstanceKey(id))
		}
	}
	if len(change.Set)+len(change.Remove) == 0 {
		return nil
	}
	return l.store.Apply(change)
}

// discover asks who is there. All workers answer, ours too.
func (l *leader) discover() error {
	acks, silent, err := l.ioctx.NotifyWithTimeout(dirstore.Object, nil, discoverTimeout)
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT) {
		return fmt.Errorf("looking for instances: %w", err)
	}
	now := time.Now()
	for _, a := range acks {
		addr, err := dirstore.DecodeAck(a.Response)
		if err != nil {
			continue // a watcher that is no worker
		}
		id := fmt.Sprint(uint64(a.NotifierID))
		l.heard[id] = now
		delete(l.heard, "missed "+id)
		l.addrs[id] = addr
	}
	if len(silent) > 0 {
		if err := l.bury(); err != nil {
			return err
		}
	}
	for id, at := range l.heard {
		if now.Sub(at) > 2*deadAfter {
			delete(l.heard, id)
			delete(l.addrs, id)
		}
	}
	return nil
}

// bury takes instances for gone whose process on this machine is no more.
func (l *leader) bury() error {
	dead, err := l.f.deadInstances()
	if err != nil {
		return err
	}
	for _, id := range dead {
		l.dead[id] = true
		delete(l.heard, id)
		if err := l.f.notes.remove(instancePrefix + id); err != nil {
			return err
		}
	}
	return nil
}

// membership publishes instances that came and went.
func (l *leader) membership() error {
	alive := l.alive()
	if maps.Equal(alive, l.instances) {
		return nil
	}
	before := l.instances
	l.instances = alive
	contents, err := l.store.Load()
	if err != nil {
		return err
	}
	if err := l.storeInstances(contents.Instances); err != nil {
		return err
	}
	for id := range alive {
		if _, ok := before[id]; !ok {
			l.publish(plugins.EventInstanceJoined, "", id)
		}
	}
	for id := range before {
		if _, ok := alive[id]; ok {
			continue
		}
		if err := l.ioctx.Delete(dirstore.InstanceObject(id)); err != nil && !ceph.Is(err, syscall.ENOENT) {
			l.f.log.Warn().Err(err).Str("instance", id).Msg("removing the object of a dead instance")
		}
		l.publish(plugins.EventInstanceLeft, "", id)
	}
	return nil
}

// changes publishes directories that were added or are to be removed.
func (l *leader) changes() error {
	contents, err := l.store.Load()
	if err != nil {
		return err
	}
	for dir, entry := range contents.Dirs {
		purging, known := l.units[dir]
		switch {
		case !known:
			l.units[dir] = false
			l.publish(plugins.EventUnitAdded, dir, "")
			if !entry.Purging {
				continue
			}
			fallthrough
		case entry.Purging && !purging:
			l.units[dir] = true
			l.publish(plugins.EventUnitRemoved, dir, "")
		case purging && !entry.Purging: // removed, and added again since we looked
			l.units[dir] = false
			l.publish(plugins.EventUnitAdded, dir, "")
		}
	}
	for dir, purging := range l.units {
		if _, ok := contents.Dirs[dir]; ok {
			continue
		}
		delete(l.units, dir)
		if !purging {
			l.publish(plugins.EventUnitRemoved, dir, "")
		}
	}
	return nil
}

func (l *leader) publish(kind plugins.EventKind, unit, instance string) {
	l.f.eng.feed.Publish(plugins.Event{Kind: kind, Domain: l.f.domain(), Unit: unit, Instance: instance})
}

// lost ends the leadership that somebody else has taken.
func (l *leader) lost() {
	if !l.leading {
		return
	}
	l.leading = false
	l.f.eng.feed.Publish(plugins.Event{Kind: plugins.EventLeaderLost, Domain: l.f.domain()})
}

// resign gives the leadership up.
func (l *leader) resign(why string) {
	if !l.leading {
		return
	}
	l.lost()
	l.f.log.Info().Str("why", why).Msg("no longer controlling the directory map")
	if err := l.store.SetController(l.f.eng.instance, ""); err != nil && !errors.Is(err, dirstore.ErrConflict) {
		l.f.log.Debug().Err(err).Msg("giving up the control of the directory map")
	}
}

// LoadMap implements plugins.Plugin.
func (e *Engine) LoadMap(_ context.Context, domain string) (plugins.Map, error) {
	f, err := e.filesystem(domain)
	if err != nil {
		return plugins.Map{}, err
	}
	contents, err := dirstore.NewStore(f.ioctx).Load()
	if err != nil {
		return plugins.Map{}, err
	}
	var m plugins.Map
	for dir, entry := range contents.Dirs {
		m.Units = append(m.Units, plugins.Mapping{
			Unit: dir, Instance: entry.Instance, LastShuffled: entry.Shuffled(), Purging: entry.Purging,
		})
	}
	for id := range contents.Instances {
		m.Instances = append(m.Instances, id)
	}
	return m, nil
}

// Do implements plugins.Plugin.
func (e *Engine) Do(_ context.Context, domain string, a plugins.Action) error {
	f, err := e.filesystem(domain)
	if err != nil {
		return err
	}
	if !e.lease.Valid() {
		return fmt.Errorf("the lease has run out: %w", syscall.EAGAIN)
	}
	store := dirstore.NewStore(f.ioctx)
	m := a.Mapping
	switch a.Kind {
	case plugins.ActionStore:
		key := dirstore.DirKey(m.Unit)
		entry := dirstore.Entry{Instance: m.Instance, LastShuffled: dirstore.Seconds(m.LastShuffled), Purging: m.Purging}
		// A removal that was asked for meanwhile must not be undone.
		was, err := store.Get(key)
		if err != nil {
			return err
		}
		if old, err := dirstore.DecodeEntry(was); err == nil && old.Purging {
			entry.Purging = true
		}
		return store.Apply(dirstore.Change{
			Set:        map[string][]byte{key: entry.Encode()},
			Expect:     map[string][]byte{key: was},
			Controller: e.instance,
		})
	case plugins.ActionDelete:
		return store.Apply(dirstore.Change{Remove: []string{dirstore.DirKey(m.Unit)}, Controller: e.instance})
	case plugins.ActionAcquire:
		return f.tell(m.Instance, m.Unit, dirstore.ModeAcquire)
	case plugins.ActionRelease:
		return f.tell(m.Instance, m.Unit, dirstore.ModeRelease)
	}
	return fmt.Errorf("action %d: %w", a.Kind, syscall.EINVAL)
}

// tell sends a directory's assignment to an instance and waits for its answer.
func (f *filesystem) tell(instance, dir, mode string) error {
	object := dirstore.InstanceObject(instance)
	acks, _, err := f.ioctx.NotifyWithTimeout(object, dirstore.EncodeAssign(dir, mode), notifyTimeout)
	if err != nil {
		return fmt.Errorf("telling instance %s to %s %s: %w", instance, mode, dir, err)
	}
	if len(acks) == 0 {
		return fmt.Errorf("telling instance %s to %s %s: nobody listens: %w", instance, mode, dir, syscall.ENOTCONN)
	}
	return nil
}
