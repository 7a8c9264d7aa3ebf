// Package schedule is what the plugin does for schedules of mirror snapshots:
// it keeps them, finds the images that they are for, sees to it that one
// instance alone follows those of a pool, and makes the snapshots. When a
// snapshot is due is the host's business.
//
// The schedules of a pool, its namespaces and images lie in that pool (see
// package schedules); the one for all pools lies with the monitors, under a
// config-key that the capabilities of a mirror daemon let it read. A level is
// named as the stock module names it: "5" is pool 5, "5/ns" a namespace, "5/" the
// default one, "5/ns/ID" an image, "" all.
//
// Who follows the schedules of a pool has nothing to do with who leads the
// mirroring of it: on the cluster whose images are primary there may be no peer
// to mirror from, and so nobody who leads. Any worker will do that runs there.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/internal/ceph/schedules"
	"cephmirror/plugins"
	"cephmirror/plugins/scheduling"
)

const (
	// globalKey is the config-key of the schedule for all pools.
	globalKey = "rbd/mirror/cephmirror/schedules"
	// stockObject holds the stock module's schedules of a pool.
	stockObject = "rbd_mirror_snapshot_schedule"

	// globalInterval is how often the monitors are asked for the global one.
	globalInterval = 5 * time.Second
	// parallel bounds the snapshots that are made at once, as in the stock module.
	parallel = 10
)

// Config is what the engine gives.
type Config struct {
	Log   zerolog.Logger
	Lease interface{ Valid() bool }
	// Connection lends a connection to the local cluster.
	Connection func() (*rados.Conn, func())
	// Instance is this instance's id.
	Instance func() string
	// Namespaces lists those of a pool beside the default one.
	Namespaces func(*rados.IOContext) ([]string, error)
	// Go runs what may take long on a goroutine that somebody waits for.
	Go func(func())
	// Client makes an unconnected client of the local cluster.
	Client func() (*rados.Conn, error)
}

// Manager keeps the schedules of one cluster.
type Manager struct {
	cfg   Config
	board *scheduling.Board

	mu        sync.Mutex
	global    string // as last read
	globalErr error
}

// New returns the manager of a cluster.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, board: scheduling.NewBoard(cfg.Lease.Valid, parallel)}
}

// FollowGlobal keeps the schedule for all pools known until ctx ends.
func (m *Manager) FollowGlobal(ctx context.Context) {
	for {
		conn, release := m.cfg.Connection()
		value, err := readGlobal(conn)
		release()
		m.mu.Lock()
		if err == nil {
			m.global = value
		}
		if err != nil && m.globalErr == nil && ctx.Err() == nil {
			m.cfg.Log.Warn().Err(err).Msg("reading the schedule for all pools")
		}
		m.globalErr = err
		m.mu.Unlock()
		if !sleep(ctx, globalInterval) {
			return
		}
	}
}

func (m *Manager) globalValue() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.global
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func readGlobal(conn *rados.Conn) (string, error) {
	out, err := client.MonCommand(conn, map[string]string{"prefix": "config-key get", "key": globalKey})
	if ceph.Is(err, syscall.ENOENT) {
		return "", nil
	}
	return string(out), err
}

// swapGlobal is not atomic: the monitors know no comparison.
func swapGlobal(conn *rados.Conn, from, to string) error {
	now, err := readGlobal(conn)
	if err != nil {
		return err
	}
	if now != from {
		return schedules.ErrChanged
	}
	cmd := map[string]string{"prefix": "config-key set", "key": globalKey, "val": to}
	if to == "" {
		cmd = map[string]string{"prefix": "config-key rm", "key": globalKey}
	}
	_, err = client.MonCommand(conn, cmd)
	return err
}

// Call answers a command. In a worker those that it is sent wait for no cluster.
func (m *Manager) Call(ctx context.Context, c plugins.Command) plugins.Result {
	out, err := m.call(ctx, c)
	var text refusal
	if errors.As(err, &text) {
		return plugins.Result{Errno: int(syscall.EINVAL), Status: text.Error()}
	}
	if raw, ok := out.([]byte); ok && err == nil {
		return plugins.Result{Out: raw}
	}
	return plugins.Answer(c, out, err)
}

func (m *Manager) call(ctx context.Context, c plugins.Command) (any, error) {
	if out, ok, err := m.board.Call(c); ok {
		return out, err
	}
	text := func(name string) string { s, _ := c.Args[name].(string); return s }
	if c.Prefix == plugins.ScheduleStock {
		return m.stockCommand(ctx, text("command"))
	}
	conn, release := m.cfg.Connection()
	defer release()
	switch c.Prefix {
	case plugins.ScheduleResolve:
		return m.resolve(conn, level{scope: text("scope"), pool: text("pool"), namespace: text("namespace"), image: text("image")})
	case plugins.ScheduleList:
		return m.list(conn)
	case plugins.ScheduleSwap:
		return struct{}{}, m.swap(conn, text("key"), text("old"), text("new"))
	case plugins.ScheduleUnits:
		return m.units(conn)
	}
	return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
}

// stockLimit is how long an answer of the mgr is waited for.
const stockLimit = time.Minute

// stockCommand sends a command to the mgr.
func (m *Manager) stockCommand(ctx context.Context, command string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stockLimit)
	defer cancel()
	out, status, err := client.MgrCommand(ctx, m.cfg.Client, []byte(command))
	if err != nil && status != "" {
		return nil, fmt.Errorf("%s: %w", status, err)
	}
	return out, err
}

// swap changes what is stored at a level.
func (m *Manager) swap(conn *rados.Conn, key, from, to string) error {
	if key == "" {
		return swapGlobal(conn, from, to)
	}
	id, _, _ := strings.Cut(key, "/")
	pool, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return fmt.Errorf("schedule %q is none of a pool: %w", key, syscall.EINVAL)
	}
	ioctx, err := openPool(conn, pool)
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	return schedules.NewStore(ioctx).Swap(key, from, to)
}

func openPool(conn *rados.Conn, id int64) (*rados.IOContext, error) {
	name, err := conn.GetPoolByID(id)
	if err != nil {
		return nil, fmt.Errorf("looking up pool %d: %w", id, err)
	}
	ioctx, err := conn.OpenIOContext(name)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", name, err)
	}
	return ioctx, nil
}

// poolsOf returns the pools of the cluster by their ids.
func poolsOf(conn *rados.Conn) (map[int64]string, error) {
	if err := conn.WaitForLatestOSDMap(); err != nil {
		return nil, fmt.Errorf("asking for the map of the OSDs: %w", err)
	}
	names, err := conn.ListPools()
	if err != nil {
		return nil, fmt.Errorf("listing pools: %w", err)
	}
	out := make(map[int64]string)
	for _, name := range names {
		id, err := conn.GetPoolByName(name)
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking up pool %s: %w", name, err)
		}
		out[id] = name
	}
	return out, nil
}

// list returns all schedules there are, the global one first.
func (m *Manager) list(conn *rados.Conn) ([]plugins.StoredSchedule, error) {
	var out []plugins.StoredSchedule
	global, err := readGlobal(conn)
	if err != nil {
		return nil, err
	}
	if global != "" {
		out = append(out, plugins.StoredSchedule{Value: global})
	}
	pools, err := poolsOf(conn)
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(pools)) {
		found, err := stored(conn, id, pools[id])
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// units returns the images that schedules are for, of all pools.
func (m *Manager) units(conn *rados.Conn) ([]plugins.ScheduleDomain, error) {
	pools, err := poolsOf(conn)
	if err != nil {
		return nil, err
	}
	global, err := readGlobal(conn)
	if err != nil {
		return nil, err
	}
	out := []plugins.ScheduleDomain{}
	for _, id := range slices.Sorted(maps.Keys(pools)) {
		d, err := m.domain(conn, id, pools[id], global)
		if err != nil {
			return nil, err
		}
		if len(d.Stored) > 0 {
			out = append(out, d)
		}
	}
	return out, nil
}

// domain reads all about the schedules of one pool.
func (m *Manager) domain(conn *rados.Conn, id int64, name, global string) (plugins.ScheduleDomain, error) {
	d := plugins.ScheduleDomain{Name: name}
	ioctx, err := conn.OpenIOContext(name)
	if err != nil {
		return d, fmt.Errorf("opening pool %s: %w", name, err)
	}
	defer ioctx.Destroy()
	contents, err := schedules.NewStore(ioctx).Load()
	if err != nil {
		return d, err
	}
	stock, err := schedules.ReadOmap(ioctx, stockObject)
	if err != nil {
		return d, err
	}
	d.Stored = values(contents, global)
	if len(d.Stored) == 0 {
		return d, nil
	}
	if time.Since(schedules.Noted(contents.Leader)) < leaderAge {
		d.Leader = schedules.Holder(contents.Leader)
	}
	f := finder{conn: conn, pool: name, id: id, namespaces: m.cfg.Namespaces, stored: contents.Schedules, global: global, stock: stock}
	d.Units, err = f.all(ioctx)
	return d, err
}

// leaderAge is how old the note of who follows the schedules may be for people
// to believe it; their clocks may differ a little.
const leaderAge = time.Minute

// values lists what is stored at each level, for what counts in one pool.
func values(c schedules.Contents, global string) []plugins.StoredSchedule {
	var out []plugins.StoredSchedule
	if global != "" {
		out = append(out, plugins.StoredSchedule{Value: global})
	}
	for _, key := range slices.Sorted(maps.Keys(c.Schedules)) {
		out = append(out, plugins.StoredSchedule{Key: key, Value: c.Schedules[key]})
	}
	return out
}
