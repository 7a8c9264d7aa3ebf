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
	// moduleInterval is how often we look whether the mgr module is enabled,
	// and moduleWatch how often one does who controls: it must have given up
	// before the module has started.
	moduleInterval = 5 * time.Second
	moduleWatch    = time.Second
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
	roll      *roll
	instances map[string]string // as published: instance → address
	units     map[string]bool   // as published: directory → being removed
	notes     map[string]note   // of the instances
	orders    orders
}

// control takes the part of the controller whenever nobody else has it, until
// ctx ends.
func (f *filesystem) control(ctx context.Context, ioctx *rados.IOContext) {
	l := &leader{f: f, ioctx: ioctx, store: dirstore.NewStore(ioctx), roll: newRoll(f.eng.instance)}
	defer l.resign("the worker stops")
	var moduleAsked time.Time
	module := true
	for {
		interval := moduleInterval
		if l.leading {
			interval = moduleWatch
		}
		if time.Since(moduleAsked) >= interval {
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
	own := l.f.eng.instance
	vacant, err := l.vacant()
	if err == nil && !vacant {
		if err = l.discover(ctx); errors.Is(err, errVacant) {
			vacant, err = true, nil
		}
	}
	if err == nil && vacant {
		err = l.departures()
	}
	if err != nil {
		return err
	}
	asked := plugins.Boottime()
	current, err := l.store.Controller()
	if err != nil {
		return err
	}
	if current != own {
		l.lost()
		if current != "" && l.roll.alive(current, time.Now()) {
			return nil
		}
		if current != "" {
			if err := l.shutOut(current); err != nil {
				return err
			}
		}
		// It may be on its way up.
		if enabled, err := l.f.eng.moduleEnabled(); err != nil || enabled {
			return err
		}
		if err := l.store.SetController(current, own); err != nil {
			if errors.Is(err, dirstore.ErrConflict) {
				return nil // somebody else was faster
			}
			return err
		}
	}
	l.f.controls(asked)
	if !l.leading {
		if err := l.lead(); err != nil {
			return err
		}
	}
	if err := l.membership(); err != nil {
		return err
	}
	return l.heed(l.notes)
}

// errVacant ends a question whose answer need not be waited for.
var errVacant = errors.New("nobody controls the directory map")

// vacant tells whether the controller has given up, and this instance knows who
// is there: it can take over at once.
func (l *leader) vacant() (bool, error) {
	if l.leading || !l.roll.fresh(time.Now()) {
		return false, nil
	}
	current, err := l.store.Controller()
	return err == nil && current == "", err
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
	l.instances = l.roll.present(time.Now())
	if err := l.storeInstances(contents.Instances); err != nil {
		return err
	}
	l.leading, l.orders = true, orders{}
	l.f.log.Info().Msg("controlling the directory map")
	l.f.eng.feed.Publish(plugins.Event{Kind: plugins.EventLeaderGained, Domain: l.f.domain()})
	// The loaded map names them, too; but only who has joined can leave.
	for id := range l.instances {
		l.publish(plugins.EventInstanceJoined, "", id)
	}
	return nil
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
func (l *leader) discover(ctx context.Context) error {
	acks, silent, err := l.ask(ctx)
	if errors.Is(err, errVacant) {
		return err
	}
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT) {
		return fmt.Errorf("looking for instances: %w", err)
	}
	answers := make(map[string]string)
	for _, a := range acks {
		// Others may watch that are no workers.
		if addr, err := dirstore.DecodeAck(a.Response); err == nil {
			answers[fmt.Sprint(uint64(a.NotifierID))] = addr
		}
	}
	var mute []string
	for _, s := range silent {
		mute = append(mute, fmt.Sprint(uint64(s.NotifierID)))
	}
	notes, err := l.f.notes.list(instancePrefix)
	if err != nil {
		return err
	}
	dead, err := l.f.deadAmong(notes)
	if err != nil {
		return err
	}
	l.notes = notes
	ours := make(map[string]bool, len(notes))
	for id := range notes {
		ours[id] = true
	}
	l.roll.call(answers, mute, ours, dead, time.Now())
	l.f.setOurs(l.roll.ours())
	for _, id := range dead {
		if err := l.f.notes.remove(instancePrefix + id); err != nil {
			return err
		}
	}
	return nil
}

// ask asks all who watch. Of a dead one the watch stays for half a minute, and is
// waited for; who leaves meanwhile need not wait for that, nor need we to leave.
func (l *leader) ask(ctx context.Context) ([]rados.NotifyAck, []rados.NotifyTimeout, error) {
	type reply struct {
		acks   []rados.NotifyAck
		silent []rados.NotifyTimeout
		err    error
	}
	replied := make(chan reply, 1)
	l.f.asking.Go(func() {
		acks, silent, err := l.ioctx.NotifyWithTimeout(dirstore.Object, nil, discoverTimeout)
		replied <- reply{acks, silent, err}
	})
	for {
		select {
		case r := <-replied:
			return r.acks, r.silent, r.err
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-l.f.controlWake:
			if !l.leading {
				if vacant, err := l.vacant(); err == nil && vacant {
					return nil, nil, errVacant
				}
				continue
			}
			if err := l.departures(); err != nil {
				l.f.log.Debug().Err(err).Msg("looking who has left")
			}
		}
	}
}

// departures looks who has taken its note away.
func (l *leader) departures() error {
	notes, err := l.f.notes.list(instancePrefix)
	if err != nil {
		return err
	}
	left := false
	for id := range l.roll.seen {
		if _, noted := notes[id]; !noted && l.roll.leave(id) {
			left = true
		}
	}
	if !left || !l.leading {
		return nil
	}
	return l.membership()
}

// shutOut makes the others end what an instance has left in the file systems,
// unless it has stopped in order: it may only be frozen.
func (l *leader) shutOut(id string) error {
	if !l.roll.suspect(id) {
		return nil
	}
	l.f.log.Warn().Str("instance", id).Msg("an instance does not answer, shutting it out")
	if err := l.f.notes.setGone(id); err != nil {
		return err
	}
	if err := l.f.notes.remove(instancePrefix + id); err != nil {
		return err
	}
	l.roll.bury(id)
	return nil
}

// membership publishes instances that came and went.
func (l *leader) membership() error {
	alive := l.roll.present(time.Now())
	if maps.Equal(alive, l.instances) {
		return nil
	}
	before := l.instances
	for id := range before {
		if _, ok := alive[id]; !ok {
			if err := l.shutOut(id); err != nil {
				return err
			}
		}
	}
	contents, err := l.store.Load()
	if err != nil {
		return err
	}
	l.instances = alive
	if err := l.storeInstances(contents.Instances); err != nil {
		l.instances = before
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
		l.f.log.Info().Str("instance", id).Msg("an instance left")
		l.publish(plugins.EventInstanceLeft, "", id)
	}
	l.f.pokeDeaths()
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
	l.f.controls(0)
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
	case plugins.ActionAcquire, plugins.ActionRelease:
		// What is told cannot be made conditional on who controls.
		if !f.inControl() {
			return fmt.Errorf("no longer controlling the directory map: %w", syscall.EAGAIN)
		}
		if a.Kind == plugins.ActionRelease {
			return f.tell(m.Instance, m.Unit, dirstore.ModeRelease)
		}
		// The stock daemon breaks when it gets a directory that it has.
		if !f.isOurs(m.Instance) {
			if err := f.tell(m.Instance, m.Unit, dirstore.ModeRelease); err != nil {
				return err
			}
		}
		return f.tell(m.Instance, m.Unit, dirstore.ModeAcquire)
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
