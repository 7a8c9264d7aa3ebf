package rbdmirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/rbdmirror/deletion"
	"cephmirror/rbdmirror/election"
	"cephmirror/rbdmirror/store"
)

// session is the life of a link with one pair of connections. All that the
// stock tools put together by the client's id is done with one of them: leader
// and instance objects, watches and image status.
type session struct {
	link *link
	eng  *Engine
	pool *pool
	log  zerolog.Logger

	local, remote       *rados.Conn
	instance            string
	localUUID           string
	remoteUUID          string
	localSite           string
	member              *election.Member
	deletions           *deletion.Throttle
	localCtl, remoteCtl *store.Mirroring // in the default namespace
	ioctxs              []*rados.IOContext

	ctx  context.Context
	fail context.CancelCauseFunc // ends the session

	changing sync.Mutex // held while spaces come and go

	// remoteCalls are those that may wait for the peer's cluster. Nobody waits
	// for them, but the connections must outlive them.
	remoteCalls sync.WaitGroup

	mu     sync.Mutex
	closed bool
	spaces map[string]*space // by local namespace
	leader string
	leads  bool
	polled time.Time // when the peer has last answered
	silent error     // why it does not
}

// openSession connects to both clusters. It comes back when ctx ends, although
// the calls cannot be cancelled: they are left to end by themselves.
func openSession(ctx context.Context, l *link) (*session, error) {
	s := &session{link: l, eng: l.eng, pool: l.pool, log: l.log, spaces: make(map[string]*space)}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	opened := make(chan error)
	l.eng.left.Go(func() {
		err := s.connect()
		if err == nil {
			err = s.open()
		}
		if err != nil {
			s.disconnect()
		}
		select {
		case opened <- err:
		case <-ctx.Done():
			if err == nil {
				s.disconnect()
			}
		}
	})
	select {
	case err := <-opened:
		if err != nil {
			s.fail(err)
			return nil, err
		}
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect makes both connections, at the same time.
func (s *session) connect() error {
	l, e := s.link, s.eng
	wait := e.settings.duration(settingConnect, 15*time.Second)
	preset := []client.Option{
		{Name: "client_mount_timeout", Value: fmt.Sprint(max(1, int64(wait/time.Second)))},
		// Monitors that come back are soon found.
		{Name: "mon_client_hunt_interval_max_multiple", Value: "3"},
		{Name: "rbd_cache", Value: "false"},
	}
	var localErr, remoteErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := client.ConfigurePeer(client.Peer{
			Cluster: l.spec.site, Name: l.spec.client, MonHost: l.spec.monHost, Key: l.spec.key, Preset: preset,
		})
		if err == nil {
			if err = conn.Connect(); err == nil {
				s.remote = conn
				return
			}
			conn.Shutdown()
		}
		remoteErr = fmt.Errorf("connecting to the peer %s: %w", l.spec.address(), err)
	})
	spec := e.spec()
	spec.Preset = preset
	s.local, _, localErr = client.Dial(spec)
	wg.Wait()
	s.told(noteLocal, localErr, levelError, "unable to connect to local cluster")
	s.told(noteRemote, remoteErr, levelError, "unable to connect to remote cluster")
	return errors.Join(localErr, remoteErr)
}

// told shows or takes back a message about the pool.
func (s *session) told(topic string, err error, at level, text string) {
	switch {
	case err == nil:
		s.link.clearNote(topic)
	case !errors.Is(err, context.Canceled):
		s.link.note(topic, at, text)
	}
}

// address names the peer's cluster for people.
func (p peerSpec) address() string {
	if p.monHost != "" {
		return fmt.Sprintf("%s as %s (mon_host %s)", p.site, p.client, p.monHost)
	}
	return fmt.Sprintf("%s as %s", p.site, p.client)
}

// ioctx opens the pool on one of the clusters. It is closed with the session.
func (s *session) ioctx(conn *rados.Conn, namespace string) (*rados.IOContext, error) {
	c, err := ceph.OpenPool(conn, s.pool.name)
	if err != nil {
		return nil, err
	}
	c.SetNamespace(namespace)
	s.mu.Lock()
	s.ioctxs = append(s.ioctxs, c)
	s.mu.Unlock()
	return c, nil
}

// open learns who both sides are.
func (s *session) open() error {
	s.instance = fmt.Sprint(s.local.GetInstanceID())
	io, err := s.ioctx(s.local, "")
	if err != nil {
		return fmt.Errorf("opening pool %s: %w", s.pool.name, err)
	}
	s.applyPoolOptions(io)
	s.localCtl = store.NewMirroring(io)
	s.localUUID, err = s.localCtl.UUID()
	s.told(noteUUID, err, levelError, "unable to query local mirror uuid")
	if err != nil {
		return fmt.Errorf("reading the own mirror uuid: %w", err)
	}
	if s.localSite, err = siteName(s.local, s.eng.info.FSID); err != nil {
		return err
	}
	far, err := s.ioctx(s.remote, "")
	s.told(notePool, err, levelWarning, "unable to access remote pool")
	if err != nil {
		return fmt.Errorf("opening pool %s of the peer: %w", s.pool.name, err)
	}
	s.remoteCtl = store.NewMirroring(far)
	s.remoteUUID, err = s.remoteCtl.UUID()
	if err == nil {
		err = s.remoteCtl.Ping(s.localSite, s.localUUID)
	}
	s.told(notePoller, err, levelError, "unable to initialize remote pool poller")
	if err != nil {
		return fmt.Errorf("asking the peer for its mirror uuid: %w", err)
	}
	if s.remoteUUID == s.localUUID {
		return fmt.Errorf("the peer is this very pool: %w", syscall.EINVAL)
	}
	s.polled = time.Now()
	s.deletions = deletion.NewThrottle(s.eng.concurrentDeletions())
	s.member, err = election.New(election.Config{
		Conn: s.local, Pool: s.pool.name, Namespaces: further(s.link.currentSpaces()),
		Log: s.log, Lease: s.eng.lease, Options: s.electionOptions(), Note: s.eng.note(),
		Handler: election.Handler{
			Acquire: s.acquire, Release: s.release, PeerRemoved: s.peerRemoved, Event: s.event,
		},
	})
	return err
}

// siteName returns the name under which the own cluster is known.
func siteName(conn *rados.Conn, fsid string) (string, error) {
	const key = "rbd/mirror/site_name"
	out, err := client.MonCommand(conn, map[string]string{"prefix": "config-key get", "key": key})
	if ceph.Is(err, syscall.ENOENT) {
		return fsid, nil
	}
	if err != nil {
		return "", fmt.Errorf("reading config-key %s: %w", key, err)
	}
	if name := strings.TrimSpace(string(out)); name != "" {
		return name, nil
	}
	return fsid, nil
}

// run mirrors until the link ends or the connections are of no more use.
func (s *session) run() error {
	ctx := s.ctx
	defer s.fail(nil)
	commands := s.link.commands()
	s.eng.feed.Publish(added(commands)...)
	s.setSpaces()

	var wg sync.WaitGroup
	// The member goes on while images stop, and leaves after them.
	memberCtx, leave := context.WithCancel(context.WithoutCancel(ctx))
	memberLeft := make(chan error, 1)
	go func() { memberLeft <- s.member.Run(memberCtx) }()
	s.remoteCalls.Go(func() { s.poll(ctx) })
	wg.Go(func() { s.check(ctx) })
	wg.Go(func() {
		if s.eng.lease.AwaitExpiry(ctx, leaseGrace) == nil {
			s.fail(errLeaseLost)
		}
	})
	var memberErr error
	memberEnded := false
	select {
	case <-ctx.Done():
	case memberErr = <-memberLeft:
		memberEnded = true
		if memberErr == nil {
			memberErr = errors.New("the election of leaders has ended")
		}
		s.fail(memberErr)
	}
	cause := context.Cause(ctx)
	s.log.Debug().Err(cause).Msg("the session ends")
	s.eng.feed.Publish(removed(commands)...)
	ended := make(chan struct{})
	s.eng.left.Go(func() {
		s.closeSpaces()
		leave()
		if !memberEnded {
			memberErr = <-memberLeft
		}
		wg.Wait()
		close(ended)
		s.remoteCalls.Wait()
		if errors.Is(memberErr, election.ErrStuck) {
			s.log.Warn().Msg("calls to the local cluster do not come back, leaving a connection behind")
			return
		}
		s.disconnect()
	})
	select {
	case <-ended:
	case <-time.After(closeLimit):
		s.log.Warn().Msg("the work does not end, leaving it behind")
	}
	return cause
}

// disconnect ends the connections. Nothing uses them any more.
func (s *session) disconnect() {
	s.mu.Lock()
	list := s.ioctxs
	s.ioctxs = nil
	s.mu.Unlock()
	for _, conn := range []*rados.Conn{s.local, s.remote} {
		if conn != nil {
			_ = conn.WatcherFlush() // of a connection that was cut off it fails
		}
	}
	for _, c := range list {
		c.Destroy()
	}
	for _, conn := range []*rados.Conn{s.local, s.remote} {
		if conn != nil {
			conn.Shutdown()
		}
	}
}

// lost ends the session if err says that a connection is of no more use. It
// tells whether that is so.
func (s *session) lost(err error) bool {
	if !ceph.Is(err, syscall.ESHUTDOWN) && !errors.Is(err, election.ErrFenced) {
		return false
	}
	s.fail(fmt.Errorf("shut out of the cluster: %w", err))
	return true
}

const (
	// pollInterval is how often the peer is told of us, as the stock daemon does.
	pollInterval = 30 * time.Second
	// checkInterval is how often we look whether it answers at all.
	checkInterval = 5 * time.Second
	// silentAfter is how long it may be silent before that is said.
	silentAfter = 20 * time.Second
)

// check looks after the session without asking the peer.
func (s *session) check(ctx context.Context) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.member.SetOptions(s.electionOptions())
		s.deletions.SetMax(s.eng.concurrentDeletions())
		s.checkSilence()
	}
}

// poll tells the peer of us and heeds what changes on its side.
func (s *session) poll(ctx context.Context) {
	failing := ""
	for {
		wait := pollInterval
		if failing != "" {
			wait = checkInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := s.pollOnce()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failing = ""
		case s.lost(err):
			return
		default:
			if err.Error() != failing {
				s.log.Warn().Err(err).Msg("asking the peer")
			}
			failing = err.Error()
		}
		s.told(notePoller, err, levelWarning, "unable to query remote pool")
	}
}

func (s *session) pollOnce() error {
	site, err := siteName(s.local, s.eng.info.FSID)
	if err != nil {
		return err
	}
	s.localSite = site
	own, err := s.localCtl.UUID()
	if err != nil {
		return fmt.Errorf("reading the own mirror uuid: %w", err)
	}
	far, err := s.remoteCtl.UUID()
	if err != nil {
		return fmt.Errorf("asking the peer for its mirror uuid: %w", err)
	}
	if own != s.localUUID || far != s.remoteUUID {
		s.fail(errors.New("mirroring of the pool was set up anew"))
		return nil
	}
	if err := s.remoteCtl.Ping(site, own); err != nil {
		return fmt.Errorf("telling the peer of us: %w", err)
	}
	s.mu.Lock()
	s.polled = time.Now()
	s.mu.Unlock()
	return nil
}

// checkSilence shows when the peer does not answer.
func (s *session) checkSilence() {
	s.mu.Lock()
	since := time.Since(s.polled)
	// The watches tell, without asking.
	for _, sp := range s.spaces {
		if age, err := sp.remoteList.age(); err == nil {
			since = min(since, age)
		}
	}
	var err error
	if since > silentAfter {
		err = fmt.Errorf("the peer has not answered for %v: %w", since.Round(time.Second), syscall.ETIMEDOUT)
	}
	s.silent = err
	s.mu.Unlock()
	s.told(noteSilent, err, levelWarning, "the remote cluster does not answer")
}

func (s *session) electionOptions() election.Options {
	o := s.eng.options
	return election.Options{
		HeartbeatInterval: o.Seconds("rbd_mirror_leader_heartbeat_interval"),
		MaxMissed:         int(o.Uint("rbd_mirror_leader_max_missed_heartbeats")),
		MaxAttempts:       int(o.Uint("rbd_mirror_leader_max_acquire_attempts_before_break")),
		ConcurrentSyncs:   int(o.Uint("rbd_mirror_concurrent_image_syncs")),
		BlocklistExpire:   o.Seconds("rbd_blocklist_expire_seconds"),
	}
}

// further are the local names of spaces beside the default one.
func further(spaces []spaceSpec) []string {
	var out []string
	for _, sp := range spaces {
		if sp.local != "" {
			out = append(out, sp.local)
		}
	}
	return out
}

// setSpaces begins and ends with namespaces, so that they are those of the link.
func (s *session) setSpaces() {
	s.changing.Lock()
	defer s.changing.Unlock()
	specs := s.link.currentSpaces()
	var gone, fresh []*space
	var missing []spaceSpec
	s.mu.Lock()
	for name, sp := range s.spaces {
		if !slices.Contains(specs, sp.spec) {
			gone = append(gone, sp)
			delete(s.spaces, name)
		}
	}
	for _, spec := range specs {
		if s.spaces[spec.local] == nil && !s.closed {
			missing = append(missing, spec)
		}
	}
	s.mu.Unlock()
	closeAll(gone)
	for _, spec := range missing {
		sp, err := newSpace(s, spec)
		if err != nil {
			s.log.Error().Err(err).Str("namespace", spec.local).Msg("the namespace cannot be mirrored")
			continue
		}
		fresh = append(fresh, sp)
	}
	s.mu.Lock()
	for _, sp := range fresh {
		s.spaces[sp.spec.local] = sp
		sp.start()
		sp.lead(s.leads)
	}
	s.mu.Unlock()
	s.member.SetNamespaces(further(specs))
	s.eng.statusChanged()
}

func (s *session) closeSpaces() {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	s.closed = true
	list := slices.Collect(maps.Values(s.spaces))
	clear(s.spaces)
	s.mu.Unlock()
	closeAll(list)
}

func closeAll(list []*space) {
	var wg sync.WaitGroup
	for _, sp := range list {
		wg.Go(sp.close)
	}
	wg.Wait()
}

func (s *session) space(namespace string) *space {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spaces[namespace]
}

// sortedSpaces returns the spaces in order of their names.
func (s *session) sortedSpaces() []*space {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*space
	for _, name := range slices.Sorted(maps.Keys(s.spaces)) {
		out = append(out, s.spaces[name])
	}
	return out
}

func (s *session) eachImage(do func(*image)) {
	for _, sp := range s.sortedSpaces() {
		for _, img := range sp.sortedImages() {
			do(img)
		}
	}
}

// acquire, release, peerRemoved and event are what the leader and the election
// ask of us.

func (s *session) acquire(_ context.Context, namespace, gid string) error {
	sp := s.space(namespace)
	if sp == nil {
		return fmt.Errorf("namespace %q is not mirrored here: %w", namespace, syscall.ENOENT)
	}
	return sp.acquire(gid)
}

func (s *session) release(ctx context.Context, namespace, gid string) error {
	if sp := s.space(namespace); sp != nil {
		return sp.release(ctx, gid)
	}
	return nil
}

func (s *session) peerRemoved(_ context.Context, namespace, gid, uuid string) error {
	if sp := s.space(namespace); sp != nil && uuid == s.remoteUUID {
		sp.peerRemoved(gid)
	}
	return nil
}

func (s *session) event(ev election.Event) {
	switch ev.Kind {
	case election.LeaderGained, election.LeaderLost:
		leads := ev.Kind == election.LeaderGained
		s.mu.Lock()
		s.leads = leads
		for _, sp := range s.spaces {
			sp.lead(leads) // does not block
		}
		s.mu.Unlock()
		s.eng.statusChanged()
	case election.LeaderIs:
		s.mu.Lock()
		s.leader = ev.Instance
		s.mu.Unlock()
	case election.InstanceJoined, election.InstanceLeft:
		if sp := s.space(ev.Namespace); sp != nil {
			sp.membership(ev.Instance, ev.Kind == election.InstanceJoined)
		}
	}
}

// releaseLeader gives the leadership up, in its own time.
func (s *session) releaseLeader() {
	s.eng.left.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.member.ReleaseLeader(ctx); err != nil && !errors.Is(err, election.ErrNotLeader) {
			s.log.Warn().Err(err).Msg("giving up the leadership")
		}
	})
}

// applyPoolOptions takes over the options that are set for the pool.
func (s *session) applyPoolOptions(io *rados.IOContext) {
	opts, err := store.PoolOptions(io)
	if err != nil {
		s.log.Debug().Err(err).Msg("options of the pool")
	}
	for name, value := range opts {
		if err := s.local.SetConfigOption(name, value); err != nil {
			s.log.Debug().Err(err).Str("option", name).Msg("option of the pool")
		}
	}
}

// onlySelf tells whether the leader keeps all images for itself.
func (e *Engine) onlySelf() bool { return e.options.String("rbd_mirror_image_policy_type") == "none" }

// domain names a space to the host.
func (s *session) domain(namespace string) string {
	return fmt.Sprintf("%s/%s@%s", s.pool.name, namespace, s.link.spec.uuid)
}
