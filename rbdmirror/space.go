package rbdmirror

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/plugins"
	"cephmirror/rbdmirror/election"
	"cephmirror/rbdmirror/replica"
)

// space is one namespace of the pool, and the peer's namespace that it is
// mirrored from. To the host it is a domain, and its images are units.
type space struct {
	s      *session
	spec   spaceSpec
	domain string
	log    zerolog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // of what asks the local cluster only

	localList, remoteList     imageList
	localStatus, remoteStatus *statusWriter

	kick chan struct{} // capacity 1: look at lists and leadership

	mu        sync.Mutex
	closed    bool
	images    map[string]*image // by global id: those this instance was given
	leads     bool              // as the election says
	published bool              // as the host was told
	units     map[string]bool   // as the host was told
	owners    map[string]string // of the images, while leading
	instances map[string]bool   // as the host was told
	vanished  map[string]bool   // images whose owner was told that the peer has them no more
	deleter   *deleterRun
	orders    orders // as the host was told
}

func newSpace(s *session, spec spaceSpec) (*space, error) {
	local, err := s.ioctx(s.local, spec.local)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", s.pool.name, err)
	}
	remote, err := s.ioctx(s.remote, spec.remote)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s of the peer: %w", s.pool.name, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	sp := &space{
		s: s, spec: spec, domain: s.domain(spec.local),
		log: s.log.With().Str("namespace", spec.local).Logger(),
		ctx: ctx, cancel: cancel,
		kick:   make(chan struct{}, 1),
		images: make(map[string]*image), units: make(map[string]bool), owners: make(map[string]string),
		instances: make(map[string]bool), vanished: make(map[string]bool),
	}
	sp.localStatus = newStatusWriter(local, "", sp.log, s.member.Lease())
	sp.remoteStatus = newStatusWriter(remote, s.localUUID, sp.log, s.member.Lease())
	sp.localList.io, sp.localList.watched = local, sp.localStatus.watched
	sp.remoteList.io, sp.remoteList.watched = remote, sp.remoteStatus.watched
	for _, l := range []*imageList{&sp.localList, &sp.remoteList} {
		l.changed, l.lost = sp.poke, s.lost
	}
	sp.localList.log = sp.log.With().Str("cluster", "local").Logger()
	sp.remoteList.log = sp.log.With().Str("cluster", "remote").Logger()
	return sp, nil
}

func (sp *space) start() {
	sp.s.eng.feed.Publish(plugins.Event{Kind: plugins.EventDomainUp, Domain: sp.domain})
	for _, do := range []func(context.Context){sp.localList.run, sp.localStatus.run, sp.run, sp.heedOrders, sp.noteLoads} {
		sp.wg.Go(func() { do(sp.ctx) })
	}
	for _, do := range []func(context.Context){sp.remoteList.run, sp.remoteStatus.run} {
		sp.s.remoteCalls.Go(func() { do(sp.ctx) })
	}
}

// close ends all work in the namespace, and waits for it. Calls to the peer's
// cluster are left to the end of the session.
func (sp *space) close() {
	sp.mu.Lock()
	sp.closed = true
	list := slices.Collect(maps.Values(sp.images))
	clear(sp.images)
	for _, img := range list {
		sp.s.eng.addPast(img)
	}
	sp.mu.Unlock()
	sp.s.eng.feed.Publish(plugins.Event{Kind: plugins.EventDomainDown, Domain: sp.domain})
	sp.lead(false)
	var wg sync.WaitGroup
	for _, img := range list {
		wg.Go(func() {
			if err := img.close(context.Background()); err != nil {
				img.log.Warn().Err(err).Msg("giving the image up")
			}
		})
	}
	wg.Wait()
	told := make(chan struct{})
	sp.s.remoteCalls.Go(func() {
		defer close(told)
		_ = sp.remoteStatus.flush()
	})
	_ = sp.localStatus.flush()
	select {
	case <-told:
	case <-time.After(lastWords):
	}
	sp.cancel()
	sp.wg.Wait()
	sp.s.eng.statusChanged()
}

// lastWords is how long the peer is given to take our last status.
const lastWords = time.Second

// poke makes run look at what has changed.
func (sp *space) poke() {
	select {
	case sp.kick <- struct{}{}:
	default:
	}
}

// run acts on changed lists and on the leadership.
func (sp *space) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			sp.runDeleter(false)
			return
		case <-sp.kick:
		}
		local, localKnown := sp.localList.snapshot()
		remote, remoteKnown := sp.remoteList.snapshot()
		sp.kickImages(local, remote)
		sp.mu.Lock()
		leads := sp.leads && !sp.closed
		sp.mu.Unlock()
		sp.runDeleter(leads)
		if localKnown {
			sp.publish(leads, local, remote, remoteKnown)
		}
		sp.s.eng.statusChanged()
	}
}

// lead is told whether this instance leads.
func (sp *space) lead(leads bool) {
	sp.mu.Lock()
	sp.leads = leads
	if !leads {
		sp.unpublish()
	}
	sp.mu.Unlock()
	sp.poke()
}

// unpublish tells the host at once that we lead no more. The caller holds sp.mu.
func (sp *space) unpublish() {
	if !sp.published {
		return
	}
	sp.published = false
	events := []plugins.Event{{Kind: plugins.EventLeaderLost, Domain: sp.domain}}
	for unit := range sp.units {
		events = append(events, plugins.Event{Kind: plugins.EventUnitRemoved, Domain: sp.domain, Unit: unit})
	}
	for id := range sp.instances {
		events = append(events, plugins.Event{Kind: plugins.EventInstanceLeft, Domain: sp.domain, Instance: id})
	}
	clear(sp.units)
	clear(sp.owners)
	clear(sp.instances)
	clear(sp.vanished)
	sp.orders = orders{}
	sp.s.eng.feed.Publish(events...)
}

// publish tells the host what there is to be assigned, while leading.
func (sp *space) publish(leads bool, local, remote map[string]string, remoteKnown bool) {
	instances := sp.s.member.Instances(sp.spec.local)
	sp.mu.Lock()
	var events []plugins.Event
	if !leads || !sp.leads || sp.closed {
		sp.mu.Unlock()
		return
	}
	if !sp.published {
		sp.published = true
		events = append(events, plugins.Event{Kind: plugins.EventLeaderGained, Domain: sp.domain})
	}
	for _, id := range instances {
		if !sp.instances[id] && sp.eligible(id) {
			sp.instances[id] = true
			events = append(events, plugins.Event{Kind: plugins.EventInstanceJoined, Domain: sp.domain, Instance: id})
		}
	}
	for _, list := range []map[string]string{local, remote} {
		for gid := range list {
			if !sp.units[gid] {
				sp.units[gid] = true
				events = append(events, plugins.Event{Kind: plugins.EventUnitAdded, Domain: sp.domain, Unit: gid})
			}
		}
	}
	type told struct{ gid, owner string }
	var gone []told
	// What the peer does not tell is not gone.
	if remoteKnown {
		for gid := range sp.units {
			_, here := local[gid]
			_, there := remote[gid]
			if !here && !there {
				delete(sp.units, gid)
				delete(sp.vanished, gid)
				events = append(events, plugins.Event{Kind: plugins.EventUnitRemoved, Domain: sp.domain, Unit: gid})
			}
			if there {
				delete(sp.vanished, gid)
			}
			if owner := sp.owners[gid]; here && !there && !sp.vanished[gid] && owner != "" {
				sp.vanished[gid] = true
				gone = append(gone, told{gid, owner})
			}
		}
	}
	sp.s.eng.feed.Publish(events...)
	sp.mu.Unlock()
	for _, t := range gone {
		sp.wg.Go(func() {
			ctx, cancel := context.WithTimeout(sp.ctx, pollInterval)
			defer cancel()
			err := sp.s.member.PeerRemoved(ctx, sp.spec.local, t.owner, t.gid, sp.s.remoteUUID)
			if err != nil && ctx.Err() == nil {
				sp.log.Warn().Err(err).Str("image", t.gid).Msg("telling that the peer has an image no more")
				sp.mu.Lock()
				delete(sp.vanished, t.gid) // the next list brings it up again
				sp.mu.Unlock()
			}
		})
	}
}

// eligible tells whether an instance may be given images.
func (sp *space) eligible(id string) bool { return !sp.s.eng.onlySelf() || id == sp.s.instance }

// membership is told of instances that come and go, while leading.
func (sp *space) membership(id string, here bool) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if !sp.published || !sp.eligible(id) || sp.instances[id] == here {
		return
	}
	kind := plugins.EventInstanceLeft
	if here {
		kind = plugins.EventInstanceJoined
		sp.instances[id] = true
	} else {
		delete(sp.instances, id)
	}
	sp.s.eng.feed.Publish(plugins.Event{Kind: kind, Domain: sp.domain, Instance: id})
}

// loadMap returns what is stored, and what is to be.
func (sp *space) loadMap(ctx context.Context) (plugins.Map, error) {
	stored, err := sp.s.member.LoadMap(ctx, sp.spec.local)
	if err != nil {
		return plugins.Map{}, err
	}
	local, localKnown := sp.localList.snapshot()
	remote, remoteKnown := sp.remoteList.snapshot()
	instances := sp.s.member.Instances(sp.spec.local)
	var m plugins.Map
	sp.mu.Lock()
	defer sp.mu.Unlock()
	// Nobody known is not everybody dead.
	if !sp.published || len(instances) == 0 {
		return m, fmt.Errorf("%s: %w", sp.domain, election.ErrNotLeader)
	}
	clear(sp.owners)
	seen := make(map[string]bool)
	for _, e := range stored {
		seen[e.GlobalID] = true
		sp.owners[e.GlobalID] = e.Instance
		_, here := local[e.GlobalID]
		_, there := remote[e.GlobalID]
		m.Units = append(m.Units, plugins.Mapping{
			Unit: e.GlobalID, Instance: e.Instance, LastShuffled: e.Mapped,
			Purging: localKnown && remoteKnown && !here && !there,
		})
		sp.units[e.GlobalID] = true
	}
	for gid := range sp.units {
		if !seen[gid] {
			m.Units = append(m.Units, plugins.Mapping{Unit: gid})
		}
	}
	for _, id := range instances {
		if sp.eligible(id) {
			m.Instances = append(m.Instances, id)
		}
	}
	return m, nil
}

// acquire takes an image up. One that is there already is left alone.
func (sp *space) acquire(gid string) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	switch img := sp.images[gid]; {
	case sp.closed:
		return fmt.Errorf("namespace %q is not mirrored here any more: %w", sp.spec.local, syscall.ENOENT)
	case img == nil:
		sp.images[gid] = newImage(sp, gid)
		sp.s.eng.statusChanged()
	case img.isClosing():
		return fmt.Errorf("the image is still being given up: %w", syscall.EAGAIN)
	default:
		img.listed(true)
	}
	return nil
}

// release gives an image up and waits until nothing is written for it any more.
func (sp *space) release(ctx context.Context, gid string) error {
	sp.mu.Lock()
	img := sp.images[gid]
	sp.mu.Unlock()
	if img == nil {
		return nil
	}
	if err := img.close(ctx); err != nil {
		return err
	}
	sp.mu.Lock()
	if sp.images[gid] == img {
		delete(sp.images, gid)
		sp.s.eng.addPast(img)
	}
	sp.mu.Unlock()
	sp.localStatus.forget(gid)
	sp.remoteStatus.forget(gid)
	sp.localStatus.settle()
	sp.s.eng.statusChanged()
	return nil
}

func (sp *space) peerRemoved(gid string) {
	sp.mu.Lock()
	img := sp.images[gid]
	sp.mu.Unlock()
	if img != nil {
		img.remoteRemoved()
	}
}

// kickImages wakes images that have ended but are listed again.
func (sp *space) kickImages(local, remote map[string]string) {
	for _, img := range sp.sortedImages() {
		_, here := local[img.gid]
		_, there := remote[img.gid]
		img.listed(here || there)
	}
}

// sortedImages returns the images in order of their global ids.
func (sp *space) sortedImages() []*image {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	var out []*image
	for _, gid := range slices.Sorted(maps.Keys(sp.images)) {
		out = append(out, sp.images[gid])
	}
	return out
}

// counts returns the images for the service map.
func (sp *space) serviceCounts() counts {
	c := counts{local: sp.localList.count(), remote: sp.remoteList.count()}
	for _, img := range sp.sortedImages() {
		c.assigned++
		switch img.current().State {
		case replica.StateError:
			c.failed++
		case replica.StateReplaying, replica.StateStopped:
		default:
			c.warning++
		}
	}
	return c
}

// The host's decisions.

// LoadMap implements plugins.Plugin.
func (e *Engine) LoadMap(ctx context.Context, domain string) (plugins.Map, error) {
	sp, err := e.space(domain)
	if err != nil {
		return plugins.Map{}, err
	}
	return sp.loadMap(ctx)
}

// Do implements plugins.Plugin.
func (e *Engine) Do(ctx context.Context, domain string, a plugins.Action) error {
	sp, err := e.space(domain)
	if err != nil {
		return err
	}
	if !e.lease.Valid() {
		return fmt.Errorf("the lease has run out: %w", syscall.EAGAIN)
	}
	return sp.do(ctx, a)
}

func (e *Engine) space(domain string) (*space, error) {
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			s := l.current()
			if s == nil {
				continue
			}
			for _, sp := range s.sortedSpaces() {
				if sp.domain == domain {
					return sp, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("%s is not mirrored: %w", domain, syscall.ENOENT)
}

func (sp *space) do(ctx context.Context, a plugins.Action) error {
	ns, m := sp.spec.local, a.Mapping
	switch a.Kind {
	case plugins.ActionStore:
		at := m.LastShuffled
		if at.IsZero() {
			at = time.Now()
		}
		if err := sp.s.member.Store(ctx, ns, election.Mapping{GlobalID: m.Unit, Instance: m.Instance, Mapped: at}); err != nil {
			return err
		}
		sp.mu.Lock()
		sp.owners[m.Unit] = m.Instance
		sp.mu.Unlock()
		sp.poke() // an image that the peer has no more may have found an owner
		return nil
	case plugins.ActionDelete:
		if err := sp.s.member.Remove(ctx, ns, m.Unit); err != nil {
			return err
		}
		sp.mu.Lock()
		delete(sp.owners, m.Unit)
		sp.mu.Unlock()
		return nil
	case plugins.ActionAcquire:
		return sp.s.member.Acquire(ctx, ns, m.Instance, m.Unit)
	case plugins.ActionRelease:
		return sp.s.member.Release(ctx, ns, m.Instance, m.Unit)
	}
	return fmt.Errorf("action %d: %w", a.Kind, syscall.EINVAL)
}
