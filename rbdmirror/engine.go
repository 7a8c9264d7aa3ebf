// Package rbdmirror mirrors RBD images from the clusters of peers into pools of
// the local cluster. It stands beside stock rbd-mirror daemons: it elects leaders
// with them, shares the images with them, and keeps all their formats.
//
// An Engine looks after the pools of the local cluster; each mirrored pool and
// each of its peers is a link, with connections of its own to both clusters, so
// that trouble with one of them is no matter to the others. A link holds a space
// for each mirrored namespace, and a space the images that this instance was
// given.
package rbdmirror

import (
	"context"
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
	"cephmirror/plugins"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/journal"
	"cephmirror/rbdmirror/schedule"
	"cephmirror/rbdmirror/store"
)

// Engine is the rbd plugin.
type Engine struct {
	log   zerolog.Logger
	lease *plugins.Lease
	feed  plugins.Feed

	cfg       plugins.Config
	info      plugins.Info
	settings  settings
	options   *client.Options
	memory    *imagesync.Budget
	schedules *schedule.Manager
	journals  *journal.Memory

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	dirty  chan struct{}  // capacity 1: the service status may have changed
	renew  chan struct{}  // capacity 1: the main connection is of no more use
	rescan chan struct{}  // capacity 1: look at the pools now
	left   sync.WaitGroup // goroutines that wait for calls that hang
	ended  sync.Once

	mu       sync.Mutex
	main     *shared // for the service map, and to look at the pools
	instance string  // its id
	pools    map[int64]*pool
	manual   bool   // stopped by command
	draining bool   // this worker is to give all images to others
	past     totals // of images that are no longer here
}

// shared is a connection that several use. It is shut down when none does.
type shared struct {
	conn  *rados.Conn
	users sync.WaitGroup
}

// New returns an engine that writes only while lease is valid.
func New(log zerolog.Logger, lease *plugins.Lease) *Engine {
	ctx, cancel := context.WithCancel(context.Background())
	e := &Engine{
		log: log, lease: lease,
		ctx: ctx, cancel: cancel,
		done:   make(chan struct{}),
		dirty:  make(chan struct{}, 1),
		renew:  make(chan struct{}, 1),
		rescan: make(chan struct{}, 1),
		pools:  make(map[int64]*pool),
	}
	e.schedules = schedule.New(schedule.Config{
		Log: log, Lease: lease, Connection: e.connection, Instance: e.currentInstance,
		Namespaces: store.Namespaces, Go: e.left.Go, Client: e.unconnected,
	})
	return e
}

func (e *Engine) spec() client.Spec {
	s := client.Spec{Cluster: e.cfg.Cluster, Name: e.cfg.Name, ConfFile: e.cfg.ConfFile}
	for _, o := range e.cfg.CephOptions {
		s.Options = append(s.Options, client.Option(o))
	}
	return s
}

// Start implements plugins.Plugin.
func (e *Engine) Start(_ context.Context, cfg plugins.Config) (plugins.Info, error) {
	e.cfg, e.settings = cfg, settings(cfg.Settings)
	paths, err := e.connect()
	if err != nil {
		return plugins.Info{}, err
	}
	conn := e.main.conn
	fsid, err := conn.GetFSID()
	if err != nil {
		return plugins.Info{}, fmt.Errorf("reading the cluster's fsid: %w", err)
	}
	v, err := client.ClusterVersion(conn)
	if err != nil {
		return plugins.Info{}, err
	}
	e.options = client.NewOptions(e.spec(), paths, conn, stockDefaults(), shownOptions())
	e.info = plugins.Info{
		Kind: "rbd", CephVersion: v.Number, CephRelease: v.Release, GitVersion: v.Git,
		InstanceID: e.instance, FSID: fsid,
		AdminSocket: paths.AdminSocket, LogFile: paths.LogFile, PidFile: paths.PidFile, RunDir: paths.RunDir,
		AdminSocketMode: paths.AdminSocketMode,
	}
	if cfg.Mode == plugins.ModeControl {
		close(e.done)
		return e.info, nil
	}
	e.memory = imagesync.NewBudget(e.settings.number(settingMemory, imagesync.DefaultBudget))
	e.journals = journal.NewMemory(int(e.settings.number(settingJournals, 0)))
	e.feed.Publish(added(daemonCommands())...)
	go func() {
		defer close(e.done)
		e.run()
	}()
	return e.info, nil
}

// connect makes the main connection and, for a worker, enters it into the
// service map.
func (e *Engine) connect() (client.Paths, error) {
	conn, paths, err := client.Dial(e.spec())
	if err != nil {
		return paths, err
	}
	instance := fmt.Sprint(conn.GetInstanceID())
	if e.cfg.Mode == plugins.ModeWorker {
		_, id, _ := strings.Cut(e.cfg.Name, ".")
		err := ceph.RegisterService(conn, serviceName, instance, []ceph.Pair{
			{Key: "id", Value: strings.TrimPrefix(id, "rbd-mirror.")},
			{Key: "instance_id", Value: instance},
		})
		if err != nil {
			conn.Shutdown()
			return paths, fmt.Errorf("registering in the service map: %w", err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.main, e.instance = &shared{conn: conn}, instance
	return paths, nil
}

// connection returns the main connection for a while.
func (e *Engine) connection() (conn *rados.Conn, release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.main
	m.users.Add(1)
	return m.conn, m.users.Done
}

// unconnected makes a further client of the local cluster.
func (e *Engine) unconnected() (*rados.Conn, error) {
	conn, _, err := client.Configure(e.spec())
	return conn, err
}

func (e *Engine) currentInstance() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.instance
}

// poolsInterval is how often new pools are looked for; the monitors are asked.
const poolsInterval = time.Second

// run follows the pools until the engine is stopped.
func (e *Engine) run() {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer e.stopPools(func(*pool) bool { return true })
	wg.Go(e.reportStatus)
	wg.Go(func() { e.schedules.FollowGlobal(e.ctx) })
	failing := ""
	for {
		err := e.followPools()
		switch {
		case err == nil:
			failing = ""
		case ceph.Is(err, syscall.ESHUTDOWN):
			e.replaceConnection()
		case err.Error() != failing:
			failing = err.Error()
			e.log.Warn().Err(err).Msg("looking for pools")
		}
		select {
		case <-e.ctx.Done():
			return
		case <-e.rescan:
		case <-e.renew:
			if !e.reconnect() {
				return
			}
		case <-time.After(poolsInterval):
		}
	}
}

// followPools begins to look at new pools, and ends with those that are gone.
func (e *Engine) followPools() error {
	conn, release := e.connection()
	defer release()
	if err := conn.WaitForLatestOSDMap(); err != nil {
		return fmt.Errorf("asking for the map of the OSDs: %w", err)
	}
	names, err := conn.ListPools()
	if err != nil {
		return fmt.Errorf("listing pools: %w", err)
	}
	want := make(map[int64]string)
	for _, name := range names {
		id, err := conn.GetPoolByName(name)
		if ceph.Is(err, syscall.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("looking up pool %s: %w", name, err)
		}
		want[id] = name
	}
	e.stopPools(func(p *pool) bool { return want[p.id] != p.name })
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, name := range want {
		if e.pools[id] == nil && e.ctx.Err() == nil {
			e.pools[id] = newPool(e, id, name)
		}
	}
	return nil
}

// stopPools ends the work on some pools.
func (e *Engine) stopPools(which func(*pool) bool) {
	e.mu.Lock()
	var list []*pool
	for id, p := range e.pools {
		if which(p) {
			list = append(list, p)
			delete(e.pools, id)
		}
	}
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range list {
		wg.Go(p.stop)
	}
	wg.Wait()
	if len(list) > 0 {
		e.statusChanged()
	}
}

// sortedPools returns the pools in order of their ids.
func (e *Engine) sortedPools() []*pool {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*pool
	for _, id := range slices.Sorted(maps.Keys(e.pools)) {
		out = append(out, e.pools[id])
	}
	return out
}

// scanInterval is how often each pool is looked at: the more there are, the
// more rarely.
func (e *Engine) scanInterval() time.Duration {
	e.mu.Lock()
	n := len(e.pools)
	e.mu.Unlock()
	longest := max(time.Second, e.options.Seconds("rbd_mirror_pool_replayers_refresh_interval"))
	return min(max(time.Second, time.Duration(n)*20*time.Millisecond), longest)
}

// replaceConnection asks for a new main connection.
func (e *Engine) replaceConnection() {
	select {
	case e.renew <- struct{}{}:
	default:
	}
}

// reconnect replaces the main connection, which was blocklisted. It returns
// false when the engine is stopped meanwhile. The links have connections of
// their own.
func (e *Engine) reconnect() bool {
	for delay := time.Duration(0); ; delay = min(2*delay+time.Second, 10*time.Second) {
		select {
		case <-e.ctx.Done():
			return false
		case <-time.After(delay):
		}
		e.mu.Lock()
		old := e.main
		e.mu.Unlock()
		if _, err := e.connect(); err != nil {
			e.log.Error().Err(err).Msg("connecting to the local cluster anew")
			continue
		}
		if err := e.options.Replace(e.main.conn); err != nil {
			e.log.Warn().Err(err).Msg("options of the new connection")
		}
		e.left.Go(func() {
			old.users.Wait()
			old.conn.Shutdown()
		})
		select {
		case <-e.renew: // asked for before there was a new one
		default:
		}
		e.log.Info().Str("instance", e.instance).Msg("connected to the local cluster anew")
		e.statusChanged()
		return true
	}
}

// statusChanged makes the status in the service map be looked at soon.
func (e *Engine) statusChanged() {
	select {
	case e.dirty <- struct{}{}:
	default:
	}
}

// reportStatus keeps the service map's status true, with at most one update a
// second.
func (e *Engine) reportStatus() {
	last := ""
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.dirty:
		}
		var list []servicePool
		for _, p := range e.sortedPools() {
			if s, ok := p.serviceStatus(); ok {
				list = append(list, s)
			}
		}
		conn, release := e.connection()
		text, err := encodeService(e.info.CephRelease, list)
		if key := fmt.Sprintf("%p %s", conn, text); err == nil && key != last {
			if err = ceph.UpdateServiceStatus(conn, []ceph.Pair{{Key: serviceStatus, Value: text}}); err == nil {
				last = key
			}
		}
		release()
		if err != nil {
			e.log.Warn().Err(err).Msg("updating the status in the service map")
		}
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// pastTotals are the counters of images that are no longer here.
func (e *Engine) pastTotals() totals {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.past
}

func (e *Engine) addPast(img *image) {
	_, t := img.counters()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.past.add(t)
}

// Events implements plugins.Plugin.
func (e *Engine) Events(ctx context.Context, send func(plugins.Event) error) error {
	return e.feed.Events(ctx, send)
}

// Renew implements plugins.Plugin; the lease itself is renewed by the glue.
func (e *Engine) Renew(context.Context, time.Duration) error { return nil }

// Stop implements plugins.Plugin.
func (e *Engine) Stop(ctx context.Context) error {
	e.cancel()
	if e.options == nil {
		return nil // not started
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		return fmt.Errorf("stopping: %w", ctx.Err())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.ended.Do(e.shutdown)
	}()
	// Connections to a cluster that does not answer end with the process.
	select {
	case <-ended:
	case <-time.After(leftBehind):
		e.log.Warn().Msg("calls to a cluster have not come back, leaving them behind")
	case <-ctx.Done():
	}
	e.feed.Close()
	return nil
}

// shutdown ends the main connection when nothing uses it any more.
func (e *Engine) shutdown() {
	e.left.Wait()
	e.options.Close()
	e.main.users.Wait()
	e.main.conn.Shutdown()
}

// leftBehind is how long calls that nobody needs any more are waited for at the
// end.
const leftBehind = 2 * time.Second

// added and removed are the events of commands.
func added(specs []plugins.CommandSpec) []plugins.Event {
	return commandEvents(plugins.EventCommandAdded, specs)
}

func removed(specs []plugins.CommandSpec) []plugins.Event {
	return commandEvents(plugins.EventCommandRemoved, specs)
}

func commandEvents(kind plugins.EventKind, specs []plugins.CommandSpec) []plugins.Event {
	out := make([]plugins.Event, len(specs))
	for i, s := range specs {
		out[i] = plugins.Event{Kind: kind, Spec: s}
	}
	return out
}
