package plugins

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"syscall"
)

// feedBuffer is how many changes a receiver of a Feed may lag behind.
const feedBuffer = 1 << 16

// Feed implements Plugin.Events for a plugin: it remembers the current state,
// sends it to each new receiver and after it every change. The zero value is
// ready for use.
type Feed struct {
	mu        sync.Mutex
	closed    bool
	domains   ordered[string]
	leads     ordered[string]
	commands  ordered[string]
	specs     map[string]CommandSpec // by prefix
	units     ordered[[2]string]
	instances ordered[[2]string]
	draining  ordered[[2]string]
	pins      map[[2]string]string // domain and unit to instance
	loads     map[[2]string]Load
	receivers map[*receiver]struct{}
}

type receiver struct {
	queue []Event
	wake  chan struct{} // of size 1
	slow  bool
}

// Publish applies changes to the state and tells them to every receiver. A
// change that is already so is not told again. EventLeaderLost also forgets the
// domain's units, instances and what else a leader tells, and EventDomainDown the
// leadership, too, as receivers must.
func (f *Feed) Publish(events ...Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		if !f.apply(e) {
			continue
		}
		for r := range f.receivers {
			if len(r.queue) >= feedBuffer {
				r.slow, r.queue = true, nil
			}
			if !r.slow {
				r.queue = append(r.queue, e)
			}
			r.wakeUp()
		}
	}
}

func (r *receiver) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (f *Feed) apply(e Event) (changed bool) {
	at := func(name string) [2]string { return [2]string{e.Domain, name} }
	switch e.Kind {
	case EventDomainUp:
		return f.domains.add(e.Domain)
	case EventDomainDown:
		f.forget(e.Domain)
		f.leads.remove(e.Domain)
		return f.domains.remove(e.Domain)
	case EventLeaderGained:
		return f.leads.add(e.Domain)
	case EventLeaderLost:
		f.forget(e.Domain)
		return f.leads.remove(e.Domain)
	case EventUnitAdded:
		return f.units.add(at(e.Unit))
	case EventUnitRemoved:
		// Told even if unknown: the request to remove may come again.
		f.units.remove(at(e.Unit))
		return true
	case EventInstanceJoined:
		return f.instances.add(at(e.Instance))
	case EventInstanceLeft:
		return f.instances.remove(at(e.Instance))
	case EventUnitPinned:
		return put(&f.pins, at(e.Unit), e.Instance)
	case EventInstanceDraining:
		return f.draining.add(at(e.Instance))
	case EventInstanceServing:
		return f.draining.remove(at(e.Instance))
	case EventUnitLoad:
		return put(&f.loads, at(e.Unit), e.Load)
	case EventCommandAdded:
		if f.specs == nil {
			f.specs = map[string]CommandSpec{}
		}
		f.specs[e.Spec.Prefix()] = e.Spec
		return f.commands.add(e.Spec.Prefix())
	case EventCommandRemoved:
		delete(f.specs, e.Spec.Prefix())
		return f.commands.remove(e.Spec.Prefix())
	}
	return false
}

// forget drops what only the leader of a domain tells.
func (f *Feed) forget(domain string) {
	mine := func(k [2]string) bool { return k[0] == domain }
	f.units.removeFunc(mine)
	f.instances.removeFunc(mine)
	f.draining.removeFunc(mine)
	maps.DeleteFunc(f.pins, func(k [2]string, _ string) bool { return mine(k) })
	maps.DeleteFunc(f.loads, func(k [2]string, _ Load) bool { return mine(k) })
}

// put changes a map, of which zero values are no part, and tells whether it was
// different.
func put[K, V comparable](m *map[K]V, k K, v V) bool {
	var zero V
	if (*m)[k] == v {
		return false
	}
	if v == zero {
		delete(*m, k)
		return true
	}
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
	return true
}

func (f *Feed) state() []Event {
	var out []Event
	for _, d := range f.domains.keys() {
		out = append(out, Event{Kind: EventDomainUp, Domain: d})
	}
	for _, d := range f.leads.keys() {
		out = append(out, Event{Kind: EventLeaderGained, Domain: d})
	}
	for _, s := range f.commands.keys() {
		out = append(out, Event{Kind: EventCommandAdded, Spec: f.specs[s]})
	}
	for _, u := range f.units.keys() {
		out = append(out, Event{Kind: EventUnitAdded, Domain: u[0], Unit: u[1]})
	}
	for _, i := range f.instances.keys() {
		out = append(out, Event{Kind: EventInstanceJoined, Domain: i[0], Instance: i[1]})
	}
	for _, i := range f.draining.keys() {
		out = append(out, Event{Kind: EventInstanceDraining, Domain: i[0], Instance: i[1]})
	}
	for u, in := range f.pins {
		out = append(out, Event{Kind: EventUnitPinned, Domain: u[0], Unit: u[1], Instance: in})
	}
	for u, load := range f.loads {
		out = append(out, Event{Kind: EventUnitLoad, Domain: u[0], Unit: u[1], Load: load})
	}
	return append(out, Event{Kind: EventSynced})
}

// Events is Plugin.Events: the state, EventSynced, then changes, until ctx
// ends, send fails or Close is called. Leadership is told with the domains.
func (f *Feed) Events(ctx context.Context, send func(Event) error) error {
	r := &receiver{wake: make(chan struct{}, 1)}
	f.mu.Lock()
	if f.receivers == nil {
		f.receivers = map[*receiver]struct{}{}
	}
	f.receivers[r] = struct{}{}
	batch := f.state()
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.receivers, r)
		f.mu.Unlock()
	}()
	for {
		for _, e := range batch {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := send(e); err != nil {
				return err
			}
		}
		f.mu.Lock()
		var slow, closed bool
		batch, r.queue, slow, closed = r.queue, nil, r.slow, f.closed
		f.mu.Unlock()
		switch {
		case slow:
			return Errorf(syscall.ENOBUFS, "the receiver of events was too slow")
		case len(batch) > 0:
			continue
		case closed:
			return nil
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends every Events once it has sent what was published.
func (f *Feed) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for r := range f.receivers {
		r.wakeUp()
	}
}

// ordered is a set that remembers the order of insertion.
type ordered[K comparable] struct {
	next uint64
	has  map[K]uint64
}

func (o *ordered[K]) add(k K) bool {
	if _, ok := o.has[k]; ok {
		return false
	}
	if o.has == nil {
		o.has = map[K]uint64{}
	}
	o.has[k] = o.next
	o.next++
	return true
}

func (o *ordered[K]) remove(k K) bool {
	_, ok := o.has[k]
	delete(o.has, k)
	return ok
}

func (o *ordered[K]) removeFunc(del func(K) bool) {
	maps.DeleteFunc(o.has, func(k K, _ uint64) bool { return del(k) })
}

func (o *ordered[K]) keys() []K {
	return slices.SortedFunc(maps.Keys(o.has), func(a, b K) int { return cmp.Compare(o.has[a], o.has[b]) })
}
