// Package fsmirror mirrors snapshots of CephFS directories to peers. It is an
// instance under the control plane that keeps the directory map, be that the
// stock mgr module or our own, and keeps the formats of both.
package fsmirror

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/fsmirror/control"
	"cephmirror/fsmirror/dirstore"
	"cephmirror/fsmirror/treesync"
	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/plugins"
	"cephmirror/plugins/scheduling"
)

// Engine is the cephfs plugin.
type Engine struct {
	log   zerolog.Logger
	lease *plugins.Lease
	feed  plugins.Feed

	cfg       plugins.Config
	info      plugins.Info
	memory    *treesync.Memory
	control   *control.Control // in control mode
	scheduled *scheduling.Board

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	idle   bool               // when done: nothing uses conn any more
	dirty  chan struct{}      // capacity 1: the service status may have changed
	renew  chan time.Duration // capacity 1: the connection is of no more use; wait so long

	// One connection for all local work, so that the id in the service map is
	// the instance id. Replaced only while no file system is served.
	mu             sync.Mutex
	conn           *rados.Conn
	connGone       chan struct{} // closed when conn was replaced and is shut down
	options        *options
	instance       string
	addr           string
	filesystems    map[int64]*filesystem
	enableFailures uint64
	setByCommand   map[string]bool // options that "config set" overrode
	draining       bool            // this worker is to give all directories to others
}

// New returns an engine that writes only while lease is valid.
func New(log zerolog.Logger, lease *plugins.Lease) *Engine {
	ctx, cancel := context.WithCancel(context.Background())
	return &Engine{
		log: log, lease: lease,
		ctx: ctx, cancel: cancel,
		done:        make(chan struct{}),
		dirty:       make(chan struct{}, 1),
		renew:       make(chan time.Duration, 1),
		filesystems: make(map[int64]*filesystem),
		scheduled:   scheduling.NewBoard(lease.Valid, snapshotsAtOnce),
	}
}

// Start implements plugins.Plugin.
func (e *Engine) Start(ctx context.Context, cfg plugins.Config) (plugins.Info, error) {
	e.cfg = cfg
	paths, err := e.connect()
	if err != nil {
		return plugins.Info{}, err
	}
	fsid, err := e.conn.GetFSID()
	if err != nil {
		return plugins.Info{}, fmt.Errorf("reading the cluster's fsid: %w", err)
	}
	number, release, git, err := e.cephVersion()
	if err != nil {
		return plugins.Info{}, err
	}
	e.info = plugins.Info{
		Kind: "cephfs", CephVersion: number, CephRelease: release, GitVersion: git,
		InstanceID: e.instance, FSID: fsid,
		AdminSocket: paths.AdminSocket, LogFile: paths.LogFile, PidFile: paths.PidFile, RunDir: paths.RunDir,
		AdminSocketMode: paths.AdminSocketMode,
	}
	if cfg.Mode == plugins.ModeControl {
		e.control = control.New(e.conn, e.localClient)
		e.idle = true
		close(e.done)
		return e.info, nil
	}
	e.memory = treesync.NewMemory(e.options.number(settingMemory, 64<<20))
	go func() {
		defer close(e.done)
		e.run()
	}()
	return e.info, nil
}

// cephVersion returns the release of the local cluster, whose stock daemon we
// stand in for.
func (e *Engine) cephVersion() (number, release, git string, err error) {
	out, err := e.monCommand(map[string]string{"prefix": "version", "format": "json"})
	if err != nil {
		return "", "", "", err
	}
	var v struct{ Version string }
	if err := json.Unmarshal(out, &v); err != nil {
		return "", "", "", fmt.Errorf("decoding the monitors' version: %w", err)
	}
	// "ceph version 20.2.4 (<hash>) tentacle (stable)"
	f := strings.Fields(v.Version)
	if len(f) < 5 {
		return "", "", "", fmt.Errorf("the monitors' version %q: %w", v.Version, syscall.EINVAL)
	}
	return f[2], f[4], strings.Trim(f[3], "()"), nil
}

// connect makes the local connection and, for a worker, enters it into the
// service map.
func (e *Engine) connect() (client.Paths, error) {
	conn, paths, err := dialLocal(e.cfg)
	if err != nil {
		return paths, err
	}
	addr, err := ceph.Addrs(conn)
	if err != nil {
		conn.Shutdown()
		return paths, fmt.Errorf("reading the client's address: %w", err)
	}
	instance := fmt.Sprint(conn.GetInstanceID())
	if e.cfg.Mode == plugins.ModeWorker {
		_, id, _ := strings.Cut(e.cfg.Name, ".")
		err := ceph.RegisterService(conn, dirstore.Service, instance, []ceph.Pair{
			{Key: "id", Value: strings.TrimPrefix(id, "cephfs-mirror.")},
			{Key: "instance_id", Value: instance},
		})
		if err != nil {
			conn.Shutdown()
			return paths, fmt.Errorf("registering in the service map: %w", err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conn, e.instance, e.addr = conn, instance, plainAddr(addr)
	e.connGone = make(chan struct{})
	e.options = &options{conf: conn, settings: e.cfg.Settings}
	return paths, nil
}

// plainAddr strips what librados wraps around an address of one kind, so that
// it reads as the stock daemon reports it.
func plainAddr(addr string) string {
	addr = strings.Trim(addr, "[]")
	first, _, _ := strings.Cut(addr, ",")
	for _, kind := range []string{"v1:", "v2:", "any:"} {
		first = strings.TrimPrefix(first, kind)
	}
	return first
}

// run follows the monitors' map until the engine is stopped.
func (e *Engine) run() {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { e.idle = e.stopAll(3 * stopLimit) }()
	wg.Go(e.reportStatus)
	epoch := int64(-1)
	for {
		if next, err := e.follow(epoch); err != nil {
			e.log.Warn().Err(err).Msg("reading the file system map")
		} else {
			epoch = next
		}
		select {
		case <-e.ctx.Done():
			return
		case wait := <-e.renew:
			if !e.reconnect(wait) {
				return
			}
			epoch = -1
		case <-time.After(max(time.Second, e.options.seconds("cephfs_mirror_action_update_interval"))):
		}
	}
}

// follow starts, updates and stops file systems as the monitors' map says.
func (e *Engine) follow(epoch int64) (int64, error) {
	out, err := e.monCommand(map[string]string{"prefix": "fs dump", "format": "json"})
	if err != nil {
		return epoch, err
	}
	m, err := dirstore.ParseFSMap(out)
	if err != nil {
		return epoch, err
	}
	if m.Epoch == epoch {
		return epoch, nil
	}
	want := make(map[int64]dirstore.FileSystem)
	for _, f := range m.FileSystems {
		if f.Mirrored {
			want[f.ID] = f
		}
	}
	e.mu.Lock()
	var gone []*filesystem
	for id, f := range e.filesystems {
		if s, ok := want[id]; !ok || s.Name != f.name || s.MetadataPool != f.pool {
			gone = append(gone, f)
			delete(e.filesystems, id)
		}
	}
	e.mu.Unlock()
	e.stop(gone, 3*closeLimit)
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, s := range want {
		if f := e.filesystems[id]; f != nil {
			f.update(s)
			continue
		}
		e.filesystems[id] = newFilesystem(e, s)
		e.log.Info().Str("filesystem", s.Name).Msg("mirroring of the file system is enabled")
	}
	e.statusChanged()
	return m.Epoch, nil
}

// stop ends the work for file systems, and tells whether it did end within
// limit. Calls to a cluster that does not answer can take longer.
func (e *Engine) stop(list []*filesystem, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range list {
		wg.Go(func() { f.stop(ctx) })
		e.log.Info().Str("filesystem", f.name).Msg("mirroring of the file system ends")
	}
	wg.Wait()
	return ctx.Err() == nil
}

func (e *Engine) stopAll(limit time.Duration) bool {
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.filesystems))
	clear(e.filesystems)
	e.mu.Unlock()
	return e.stop(list, limit)
}

// replaceConnection asks for a new connection, after wait.
func (e *Engine) replaceConnection(wait time.Duration) {
	select {
	case e.renew <- wait:
	default:
	}
}

// reconnect replaces the local connection, which was blocklisted. It returns
// false when the engine is stopped meanwhile.
func (e *Engine) reconnect(wait time.Duration) bool {
	for delay := wait; ; delay = 10 * time.Second {
		select {
		case <-e.ctx.Done():
			return false
		case <-time.After(delay):
		}
		idle := e.stopAll(3 * closeLimit)
		old, gone := e.conn, e.connGone
		if _, err := e.connect(); err != nil {
			e.log.Error().Err(err).Msg("connecting to the local cluster anew")
			continue
		}
		if idle {
			go func() {
				old.Shutdown()
				close(gone)
			}()
		} else {
			e.log.Warn().Msg("the earlier connection to the local cluster is still in use, leaving it behind")
		}
		e.log.Info().Str("instance", e.instance).Msg("connected to the local cluster anew")
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
		var s dirstore.Status
		e.mu.Lock()
		conn := e.conn
		list := slices.Collect(maps.Values(e.filesystems))
		e.mu.Unlock()
		slices.SortFunc(list, func(a, b *filesystem) int { return int(a.id - b.id) })
		for _, f := range list {
			s.FileSystems = append(s.FileSystems, f.serviceStatus())
		}
		text := string(s.Encode())
		if key := fmt.Sprintf("%p %s", conn, text); key != last {
			if err := ceph.UpdateServiceStatus(conn, []ceph.Pair{{Key: dirstore.StatusKey, Value: text}}); err != nil {
				e.log.Warn().Err(err).Msg("updating the status in the service map")
			} else {
				last = key
			}
		}
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (e *Engine) monCommand(command map[string]string) ([]byte, error) {
	text, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	out, status, err := e.conn.MonCommand(text)
	if err != nil {
		if status != "" {
			return nil, fmt.Errorf("monitor command %q: %s: %w", command["prefix"], status, err)
		}
		return nil, fmt.Errorf("monitor command %q: %w", command["prefix"], err)
	}
	return out, nil
}

func (e *Engine) cycleOptions() cycleOptions {
	return cycleOptions{
		workers:   int(e.options.number(settingWorkers, 24)),
		snapshots: int(max(1, e.options.uint("cephfs_mirror_max_snapshot_sync_per_cycle"))),
		blockDiff: e.options.flag(settingBlockDiff, true),
		readAll:   e.options.flag(settingReadAll, false),
	}
}

// Events implements plugins.Plugin.
func (e *Engine) Events(ctx context.Context, send func(plugins.Event) error) error {
	return e.feed.Events(ctx, send)
}

// Renew implements plugins.Plugin; the lease itself is renewed by the glue.
func (e *Engine) Renew(context.Context, time.Duration) error { return nil }

// Stop implements plugins.Plugin. What hangs with a cluster that does not answer
// is not waited for: the process ends, as it may at any time.
func (e *Engine) Stop(ctx context.Context) error {
	e.cancel()
	if e.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*stopLimit)
	defer cancel()
	idle := false
	select {
	case <-e.done:
		idle = e.idle
	case <-ctx.Done():
	}
	e.feed.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !idle {
		e.log.Warn().Msg("a cluster does not answer, stopping without an end of all work")
		return nil
	}
	if e.conn != nil {
		e.conn.Shutdown()
		e.conn = nil
	}
	return nil
}

// filesystem returns the mirrored file system of a domain.
func (e *Engine) filesystem(domain string) (*filesystem, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.filesystems {
		if f.domain() == domain {
			return f, nil
		}
	}
	return nil, fmt.Errorf("file system %s is not mirrored: %w", domain, syscall.ENOENT)
}

// setHere notes whether an option was set by command.
func (e *Engine) setHere(name string, set bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.setByCommand == nil {
		e.setByCommand = make(map[string]bool)
	}
	e.setByCommand[name] = set
}

func (e *Engine) isSetHere(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.setByCommand[name]
}

// moduleEnabled tells whether the stock mgr module controls the directory maps
// of this cluster.
func (e *Engine) moduleEnabled() (bool, error) {
	return control.StockEnabled(e.conn)
}
