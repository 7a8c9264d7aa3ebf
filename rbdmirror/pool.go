package rbdmirror

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// pool is a pool of the local cluster. Each is looked at by a goroutine of its
// own: one whose OSDs do not answer holds up no other.
type pool struct {
	eng  *Engine
	id   int64
	name string
	log  zerolog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	enabled bool // mirroring is, in some mode
	notes   callouts
	links   map[string]*link // by the peer's uuid
	spaces  []spaceSpec
	asked   map[string]credentials // by the peer's uuid
}

// spaceSpec is a mirrored namespace and its name on the peer.
type spaceSpec struct{ local, remote string }

// peerSpec is what makes a peer. When any of it changes the link starts anew.
type peerSpec struct {
	uuid, site, client string
	monHost, key       string
}

// credentials are what the monitors keep for a peer.
type credentials struct {
	monHost, key string
	at           time.Time
}

func newPool(e *Engine, id int64, name string) *pool {
	ctx, cancel := context.WithCancel(e.ctx)
	p := &pool{
		eng: e, id: id, name: name,
		log: e.log.With().Str("pool", name).Logger(),
		ctx: ctx, cancel: cancel,
		done:  make(chan struct{}),
		links: make(map[string]*link),
		asked: make(map[string]credentials),
	}
	go func() {
		defer close(p.done)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { e.schedules.Follow(p.ctx, p.id, p.name, p.isEnabled) })
		p.run()
	}()
	return p
}

// stop ends all work on the pool and waits for it.
func (p *pool) stop() {
	p.cancel()
	// A look at the pool may hang; the links must end all the same.
	p.follow(nil, nil)
	select {
	case <-p.done:
	case <-time.After(closeLimit):
		p.log.Warn().Msg("a look at the pool does not end, leaving it behind")
	}
}

// run looks at the pool again and again.
func (p *pool) run() {
	failing := ""
	for {
		n, err := p.look()
		switch {
		case p.ctx.Err() != nil:
			return
		case err == nil:
			failing = ""
		case ceph.Is(err, syscall.ESHUTDOWN):
			p.eng.replaceConnection()
		case err.Error() != failing:
			failing = err.Error()
			p.log.Warn().Err(err).Msg("looking at the pool")
		}
		wait := max(p.eng.scanInterval(), time.Duration(n)*20*time.Millisecond)
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(wait - rand.N(wait/10)):
		}
	}
}

// look reads how the pool is mirrored, and with whom, and acts on it. It returns
// how many namespaces were looked at.
func (p *pool) look() (int, error) {
	conn, release := p.eng.connection()
	defer release()
	ioctx, err := conn.OpenIOContext(p.name)
	if ceph.Is(err, syscall.ENOENT) {
		return 0, nil // removed; the next list of pools shows it
	}
	if err != nil {
		return 0, fmt.Errorf("opening pool %s: %w", p.name, err)
	}
	defer ioctx.Destroy()
	m := store.NewMirroring(ioctx)
	mode, err := m.Mode()
	if err != nil {
		text := "mirroring mode query failed"
		if ceph.Is(err, syscall.EPERM, syscall.EACCES) {
			text = "access denied"
		}
		if p.note("mode", levelWarning, text) {
			return 0, err
		}
		// Not one that was ever mirrored here: one may lack the rights to it.
		if ceph.Is(err, syscall.EPERM, syscall.EACCES, syscall.EOPNOTSUPP, syscall.ENOENT) {
			return 0, nil
		}
		return 0, err
	}
	p.clearNote("mode")
	if mode == cls.PoolModeDisabled {
		p.setEnabled(false)
		p.follow(nil, nil)
		return 0, nil
	}
	p.setEnabled(true)
	peers, err := m.Peers()
	if err != nil {
		p.note("peers", levelError, "mirroring peer list failed")
		return 0, err
	}
	p.clearNote("peers")
	var specs []peerSpec
	for _, peer := range peers {
		// The peer pulls from us; nothing is to be done here.
		if peer.Direction == cls.DirectionTx {
			continue
		}
		specs = append(specs, p.resolve(conn, peer))
	}
	if len(specs) == 0 {
		p.follow(nil, nil)
		return 0, nil
	}
	spaces, n, err := readSpaces(conn, ioctx, p.name)
	if err != nil {
		return n, err
	}
	p.follow(specs, spaces)
	return n, nil
}

// readSpaces returns the mirrored namespaces, the default one first, and how
// many namespaces there are.
func readSpaces(conn *rados.Conn, ioctx *rados.IOContext, pool string) ([]spaceSpec, int, error) {
	names, err := store.Namespaces(ioctx)
	if err != nil {
		return nil, 0, err
	}
	var out []spaceSpec
	inner, err := conn.OpenIOContext(pool)
	if err != nil {
		return nil, 0, fmt.Errorf("opening pool %s: %w", pool, err)
	}
	defer inner.Destroy()
	for _, name := range append([]string{""}, names...) {
		inner.SetNamespace(name)
		m := store.NewMirroring(inner)
		if name != "" {
			mode, err := m.Mode()
			if err != nil {
				return nil, len(names), fmt.Errorf("namespace %s: %w", name, err)
			}
			if mode == cls.PoolModeDisabled {
				continue
			}
		}
		remote, err := m.RemoteNamespace()
		switch {
		case ceph.Is(err, syscall.ENOENT, syscall.EOPNOTSUPP):
			remote = name // not set, or not known to the release
		case err != nil:
			return nil, len(names), fmt.Errorf("namespace %q: %w", name, err)
		}
		out = append(out, spaceSpec{local: name, remote: remote})
	}
	return out, len(names), nil
}

const (
	// credentialsAge is how old what the monitors keep for a peer may be.
	credentialsAge = 10 * time.Second
	// credentialsRush is the same while there is no connection to the peer.
	credentialsRush = 2 * time.Second
)

// resolve adds to a peer what the monitors keep for it.
func (p *pool) resolve(conn *rados.Conn, peer cls.Peer) peerSpec {
	p.mu.Lock()
	c := p.asked[peer.UUID]
	l := p.links[peer.UUID]
	p.mu.Unlock()
	age := credentialsAge
	if l != nil && l.failing() {
		age = credentialsRush
	}
	if time.Since(c.at) > age {
		fresh, err := readCredentials(conn, p.id, peer.UUID)
		if err == nil {
			p.clearNote("config-key " + peer.UUID)
			c = fresh
		} else {
			text := "mirroring peer config-key query failed"
			if fresh.monHost == badKey {
				text = "mirroring peer config-key decode failed"
			}
			if p.note("config-key "+peer.UUID, levelWarning, text) {
				p.log.Warn().Err(err).Str("peer", peer.UUID).Msg("what the monitors keep for the peer")
			}
		}
		c.at = time.Now() // what was known stays in force
		p.mu.Lock()
		p.asked[peer.UUID] = c
		p.mu.Unlock()
	}
	return peerSpec{uuid: peer.UUID, site: peer.SiteName, client: peer.ClientName, monHost: c.monHost, key: c.key}
}

// badKey marks credentials that cannot be read.
const badKey = "\x00"

// readCredentials reads address and key of a peer; they may be empty.
func readCredentials(conn *rados.Conn, pool int64, uuid string) (credentials, error) {
	key := fmt.Sprintf("rbd/mirror/peer/%d/%s", pool, uuid)
	out, err := client.MonCommand(conn, map[string]string{"prefix": "config-key get", "key": key})
	if ceph.Is(err, syscall.ENOENT) {
		return credentials{}, nil
	}
	if err != nil {
		return credentials{}, fmt.Errorf("reading config-key %s: %w", key, err)
	}
	c, err := parseCredentials(out)
	if err != nil {
		return credentials{monHost: badKey}, fmt.Errorf("config-key %s: %w", key, err)
	}
	return c, nil
}

func parseCredentials(text []byte) (credentials, error) {
	var v struct {
		MonHost string `json:"mon_host"`
		Key     string `json:"key"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		// The text holds a key: the error must not show it.
		return credentials{}, fmt.Errorf("not the JSON of a peer: %w", syscall.EBADMSG)
	}
	return credentials{monHost: v.MonHost, key: v.Key}, nil
}

// note shows a message about the pool, if it is or was mirrored. It tells
// whether it is.
func (p *pool) note(topic string, l level, text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.enabled {
		return false
	}
	if p.notes.set(topic, l, text) {
		p.eng.statusChanged()
	}
	return true
}

func (p *pool) clearNote(topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.notes.clear(topic) {
		p.eng.statusChanged()
	}
}

func (p *pool) isEnabled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.enabled
}

func (p *pool) setEnabled(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.enabled == on {
		return
	}
	p.enabled = on
	if !on {
		p.notes = callouts{}
	}
	p.log.Info().Bool("enabled", on).Msg("mirroring of the pool")
	p.eng.statusChanged()
}

// follow starts and stops links so that there is one for each peer.
func (p *pool) follow(peers []peerSpec, spaces []spaceSpec) {
	want := make(map[string]peerSpec)
	for _, s := range peers {
		want[s.uuid] = s
	}
	p.mu.Lock()
	if p.ctx.Err() != nil {
		clear(want)
	}
	p.spaces = spaces
	var gone, kept []*link
	for uuid, l := range p.links {
		if s, ok := want[uuid]; ok && s == l.spec {
			kept = append(kept, l)
			delete(want, uuid)
			continue
		}
		gone = append(gone, l)
		delete(p.links, uuid)
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range gone {
		wg.Go(l.stop)
		p.log.Info().Str("peer", l.spec.uuid).Str("site", l.spec.site).Msg("mirroring from the peer ends")
	}
	wg.Wait()
	for _, l := range kept {
		l.setSpaces(spaces)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for uuid, s := range want {
		if p.ctx.Err() != nil {
			return
		}
		p.links[uuid] = newLink(p, s, spaces)
		p.log.Info().Str("peer", s.uuid).Str("site", s.site).Msg("mirroring from the peer begins")
	}
	if len(gone)+len(want) > 0 {
		p.eng.statusChanged()
	}
}

// sortedLinks returns the links in order of their peers.
func (p *pool) sortedLinks() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*link
	for _, uuid := range slices.Sorted(maps.Keys(p.links)) {
		out = append(out, p.links[uuid])
	}
	return out
}

// serviceStatus returns the pool for the service map, if it belongs there.
func (p *pool) serviceStatus() (servicePool, bool) {
	links := p.sortedLinks()
	p.mu.Lock()
	s := servicePool{id: p.id, name: p.name, callouts: maps.Clone(p.notes.by), spaces: make(map[string]counts)}
	enabled := p.enabled
	p.mu.Unlock()
	for _, l := range links {
		l.service(&s)
	}
	return s, enabled
}
