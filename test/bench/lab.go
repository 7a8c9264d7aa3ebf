package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/admin"
	"cephmirror/internal/ceph"
	"cephmirror/test/bed"
	"cephmirror/test/bench/tree"
)

const (
	fsName     = "cephfs"
	mirrorUser = "mirror"
	peerUser   = "remote"
	mapObject  = "cephfs_mirror" // of the control plane, in the metadata pool
)

// lab is the pair of clusters on which everything is measured: a is mirrored
// to b.
type lab struct {
	bed  *bed.Bed
	a, b *bed.Cluster
	fsid string   // name@id of the file system, as the admin socket has it
	key  string   // of the peer user
	ours []string // our program, and what is added to its command line
	logf func(string, ...any)

	deadlocks atomic.Int64 // of an MDS
}

// openLab brings the clusters up. The stock mgr module is the control plane of
// both daemons.
func openLab(ctx context.Context, b *bed.Bed, ours []string, logf func(string, ...any)) (*lab, error) {
	l := &lab{bed: b, ours: ours, logf: logf}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, spec := range []bed.ClusterSpec{{Name: "a", MgrModules: []string{"mirroring"}}, {Name: "b"}} {
		// What a case leaves behind is to be gone before the next one: by
		// default a disk that turns is spared.
		spec.Conf = []bed.Option{
			{Name: "osd snap trim sleep hdd", Value: "0"},
			{Name: "osd snap trim sleep hybrid", Value: "0"},
			{Name: "osd delete sleep hdd", Value: "0"},
			{Name: "osd delete sleep hybrid", Value: "0"},
		}
		wg.Go(func() {
			c, err := b.Up(ctx, spec)
			if i == 0 {
				l.a = c
			} else {
				l.b = c
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := l.a.AddMirrorUser(ctx, mirrorUser); err != nil {
		return nil, err
	}
	if err := l.b.AuthorizePeer(ctx, fsName, peerUser); err != nil {
		return nil, err
	}
	out, err := l.b.MonCommand(ctx, map[string]any{"prefix": "auth get-key", "entity": "client." + peerUser, "format": "json"})
	if err != nil {
		return nil, err
	}
	var key struct{ Key string }
	if err := json.Unmarshal([]byte(out), &key); err != nil {
		return nil, fmt.Errorf("decoding the key of the peer's user: %w", err)
	}
	l.key = key.Key
	list, err := l.a.FileSystems(ctx)
	if err != nil {
		return nil, err
	}
	l.fsid = fmt.Sprintf("%s@%d", fsName, list[fsName])
	return l, nil
}

// watchMDS restarts an MDS that does not answer any more, until ctx ends: asked
// for the changed blocks of a file, as the stock daemon asks for every changed
// one, the MDS of Tentacle can wait for itself for ever.
func (l *lab) watchMDS(ctx context.Context) {
	for {
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return
		}
		for _, c := range []*bed.Cluster{l.a, l.b} {
			mds := c.Daemon("mds.a")
			ask, cancel := context.WithTimeout(ctx, 20*time.Second)
			_, err := admin.Call(ask, mds.SocketPath(), "status", nil, "json")
			stuck := ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded)
			cancel()
			if !stuck {
				continue
			}
			l.deadlocks.Add(1)
			l.logf("the MDS of %s hangs, restarting it", c.Name())
			if err := mds.Restart(ctx, syscall.SIGKILL); err != nil {
				l.logf("restarting the MDS of %s: %v", c.Name(), err)
			}
		}
	}
}

func (l *lab) mirror(ctx context.Context, verb string, args map[string]any) (string, error) {
	cmd := map[string]any{"prefix": "fs snapshot mirror " + verb, "fs_name": fsName}
	for k, v := range args {
		cmd[k] = v
	}
	return l.a.MgrCommand(ctx, cmd)
}

// clusterParties are the daemons of both clusters.
func (l *lab) clusterParties() parties {
	p := make(parties)
	for _, c := range []*bed.Cluster{l.a, l.b} {
		for _, d := range c.Daemons() {
			kind, _, _ := strings.Cut(d.Name(), ".")
			name := kind + " " + c.Name()
			if kind == "mon" || kind == "mgr" {
				name = "mon+mgr"
			}
			p[name] = append(p[name], d.Pid())
		}
	}
	p["bench"] = []int{os.Getpid()}
	return p
}

// settle waits until the clusters have done with what was removed, so that the
// next measurement does not share the machine with it.
func (l *lab) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, c := range []*bed.Cluster{l.a, l.b} {
		// What had snapshots stays with the MDS for a while, and costs nothing.
		var last purgeState
		var since time.Time
		err := bed.Poll(ctx, "removed files and snapshots of "+c.Name()+" to be purged", func(ctx context.Context) (bool, error) {
			now, err := purging(ctx, c)
			if now != last || now.busy || since.IsZero() {
				last, since = now, time.Now()
			}
			return now == purgeState{} || time.Since(since) > 2*time.Second, err
		})
		if ctx.Err() != nil {
			l.logf("%s is still removing files, going on", c.Name())
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// purgeState is how far a cluster is with what was removed.
type purgeState struct {
	strays, queued int
	busy           bool
}

func purging(ctx context.Context, c *bed.Cluster) (purgeState, error) {
	var dump struct {
		Cache struct {
			Strays int `json:"num_strays"`
		} `json:"mds_cache"`
		Queue struct {
			Executing int `json:"pq_executing"`
			Waiting   int `json:"pq_item_in_journal"`
		} `json:"purge_queue"`
	}
	if err := perfDump(ctx, c.Daemon("mds.a"), &dump); err != nil {
		return purgeState{}, err
	}
	out, err := c.MonCommand(ctx, map[string]any{"prefix": "status", "format": "json"})
	return purgeState{
		strays: dump.Cache.Strays,
		queued: dump.Queue.Waiting,
		busy:   dump.Queue.Executing > 0 || strings.Contains(out, "snaptrim"),
	}, err
}

func perfDump(ctx context.Context, d *bed.Daemon, into any) error {
	out, err := admin.Call(ctx, d.SocketPath(), "perf dump", nil, "json")
	if err != nil {
		return fmt.Errorf("counters of %s: %w", d.Name(), err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("counters of %s: %w", d.Name(), err)
	}
	return nil
}

// written is what the peer's cluster says was written to it, in bytes.
type written struct {
	Pool int64 `json:"data_pool"` // to the pool of the files' data
	OSD  int64 `json:"osd"`       // to all pools, the MDS's journal too
}

func (w written) sub(earlier written) written {
	return written{w.Pool - earlier.Pool, w.OSD - earlier.OSD}
}

// peerWritten reads the counters of the peer. The pool's are reported with a
// delay; they are read until they stand still.
func (l *lab) peerWritten(ctx context.Context) (written, error) {
	var w written
	var dump struct {
		OSD struct {
			In int64 `json:"op_w_in_bytes"`
		} `json:"osd"`
	}
	if err := perfDump(ctx, l.b.Daemon("osd.0"), &dump); err != nil {
		return w, err
	}
	w.OSD = dump.OSD.In
	still := 0
	for still < 6 {
		out, err := l.b.MonCommand(ctx, map[string]any{"prefix": "df", "detail": "detail", "format": "json"})
		if err != nil {
			return w, err
		}
		var df struct {
			Pools []struct {
				Name  string
				Stats struct {
					Written int64 `json:"wr_bytes"`
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &df); err != nil {
			return w, fmt.Errorf("decoding pool statistics: %w", err)
		}
		still++
		for _, p := range df.Pools {
			if p.Name == fsName+".data" && p.Stats.Written != w.Pool {
				w.Pool, still = p.Stats.Written, 0
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return w, ctx.Err()
		}
	}
	return w, nil
}

// The daemons that are compared.
const (
	stock = "stock"
	ours  = "ours"
	bare  = "bare loop"
)

// daemon is a running mirror daemon.
type daemon struct {
	*lab
	who    string
	uuid   string // of the peer
	proc   *bed.Process
	socket string
}

// with runs a daemon under a control plane that knows nothing of the one
// before, calls use and stops the daemon.
func (l *lab) with(ctx context.Context, who string, use func(*daemon) error) (err error) {
	if _, err := l.mirror(ctx, "enable", nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.forget(context.WithoutCancel(ctx))) }()
	_, err = l.mirror(ctx, "peer_add", map[string]any{
		"remote_cluster_spec": "client." + peerUser + "@b", "remote_fs_name": fsName,
		"remote_mon_host": l.b.MonHost(), "cephx_key": l.key,
	})
	if err != nil {
		return err
	}
	out, err := l.mirror(ctx, "peer_list", nil)
	if err != nil {
		return err
	}
	var peers map[string]any
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		return fmt.Errorf("decoding the peers: %w", err)
	}
	d := &daemon{lab: l, who: who, socket: filepath.Join(l.a.RunDir(), "a-client."+mirrorUser+".asok")}
	for d.uuid = range peers {
	}
	args := []string{"cephfs-mirror", "--cluster", "a", "--id", mirrorUser, "-f"}
	if who == ours {
		args = slices.Concat(l.ours[:1], args, l.ours[1:])
	}
	if d.proc, err = l.bed.StartProcess(bed.ProcessSpec{Name: who, Args: args}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.proc.Stop(context.WithoutCancel(ctx))) }()
	err = d.wait(ctx, "the daemon to be ready", func(ctx context.Context) (bool, error) {
		_, err := d.status(ctx)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	return use(d)
}

// forget removes all of the control plane's state.
func (l *lab) forget(ctx context.Context) error {
	if _, err := l.mirror(ctx, "disable", nil); err != nil {
		return err
	}
	conn, err := rados.NewConnWithUser("admin")
	if err != nil {
		return err
	}
	defer conn.Shutdown()
	if err := conn.ReadConfigFile(l.a.Conf()); err != nil {
		return err
	}
	if err := conn.Connect(); err != nil {
		return err
	}
	pool, err := conn.OpenIOContext(fsName + ".meta")
	if err != nil {
		return err
	}
	defer pool.Destroy()
	if err := pool.Delete(mapObject); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("removing object %s: %w", mapObject, err)
	}
	return nil
}

// dirStatus is what both daemons tell of a directory.
type dirStatus struct {
	State   string
	Reason  string `json:"failure_reason"`
	Trouble string `json:"last_error"`
	Last    struct {
		Name string
		Sent int64 `json:"sync_bytes_sent"`
	} `json:"last_synced_snap"`
}

func (d *daemon) status(ctx context.Context) (map[string]dirStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := admin.Call(ctx, d.socket, "fs mirror peer status "+d.fsid+" "+d.uuid, nil, "json")
	if err != nil {
		return nil, err
	}
	var s map[string]dirStatus
	if err := json.Unmarshal(out, &s); err != nil {
		return nil, fmt.Errorf("decoding the daemon's status: %w", err)
	}
	return s, nil
}

// lastSync returns how long the daemon says that its last snapshot took.
func (d *daemon) lastSync(ctx context.Context) (time.Duration, error) {
	out, err := admin.Call(ctx, d.socket, "counter dump", nil, "json")
	if err != nil {
		return 0, err
	}
	var dump struct {
		Peers []struct {
			Counters struct {
				Start float64 `json:"last_synced_start"`
				End   float64 `json:"last_synced_end"`
			}
		} `json:"cephfs_mirror_peers"`
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		return 0, fmt.Errorf("decoding the daemon's counters: %w", err)
	}
	if len(dump.Peers) == 0 {
		return 0, nil
	}
	c := dump.Peers[0].Counters
	return time.Duration((c.End - c.Start) * float64(time.Second)), nil
}

// wait polls for something to come true, and gives up when the daemon ends.
func (d *daemon) wait(ctx context.Context, what string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	err := bed.Poll(ctx, what, func(ctx context.Context) (bool, error) {
		if !d.proc.Running() {
			return false, errors.New("the daemon has ended")
		}
		return ok(ctx)
	})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", d.who, err, d.proc.Log(20))
	}
	return nil
}

// track adds directories and waits until the daemon has them.
func (d *daemon) track(ctx context.Context, dirs ...string) error {
	for _, dir := range dirs {
		if _, err := d.mirror(ctx, "add", map[string]any{"path": dir}); err != nil {
			return err
		}
	}
	return d.wait(ctx, "its directories", func(ctx context.Context) (bool, error) {
		s, err := d.status(ctx)
		for _, dir := range dirs {
			if _, ok := s[dir]; !ok {
				return false, err
			}
		}
		return err == nil, err
	})
}

// untrack takes directories from the daemon.
func (d *daemon) untrack(ctx context.Context, dirs ...string) error {
	for _, dir := range dirs {
		if _, err := d.mirror(ctx, "remove", map[string]any{"path": dir}); err != nil {
			return err
		}
	}
	return d.wait(ctx, "its directories to be removed", func(ctx context.Context) (bool, error) {
		s, err := d.status(ctx)
		for _, dir := range dirs {
			if _, ok := s[dir]; ok {
				return false, err
			}
		}
		return err == nil, err
	})
}

// parties are the clusters' daemons and the mirror daemon's processes.
func (d *daemon) parties() parties {
	p := d.clusterParties()
	for _, pid := range d.family() {
		name := d.party(pid)
		p[name] = append(p[name], pid)
	}
	return p
}

// family is the daemon and what it started.
func (d *daemon) family() []int { return descendants(d.proc.Pid()) }

// party names a process of the daemon.
func (d *daemon) party(pid int) string {
	switch {
	case d.who == stock:
		return "daemon"
	case pid == d.proc.Pid():
		return "host"
	}
	return "plugin"
}

// Pauses between looks at the peer: short at first, since a short time is to be
// measured more exactly than a long one.
const (
	lookSoon  = 20 * time.Millisecond
	lookLater = 100 * time.Millisecond
	soon      = 3 * time.Second
)

// arrive takes the time from now, when snap is made by making, until the
// snapshot is on the peer for every directory.
func (d *daemon) arrive(ctx context.Context, dirs []string, snap string, making func() error) (sample, error) {
	var s sample
	peer, err := tree.Mount(d.b.Conf())
	if err != nil {
		return s, err
	}
	defer peer.Close()
	pids := d.family()
	for _, pid := range pids {
		resetPeak(pid)
	}
	who := d.parties()
	before, err := who.read()
	if err != nil {
		return s, err
	}
	began, deadlocks := time.Now(), d.deadlocks.Load()
	if err := making(); err != nil {
		return s, err
	}
	s.made = time.Since(began)
	for _, dir := range dirs {
		looked := began
		for {
			ok, err := peer.Exists(dir + "/.snap/" + snap)
			if err != nil {
				return s, err
			}
			if ok {
				break
			}
			if time.Since(looked) > 2*time.Second {
				looked = time.Now()
				if err := d.check(ctx, dir); err != nil {
					return s, err
				}
			}
			pause := lookLater
			if time.Since(began) < soon {
				pause = lookSoon
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return s, ctx.Err()
			}
		}
	}
	s.total = time.Since(began)
	s.deadlocks = d.deadlocks.Load() - deadlocks
	after, err := who.read()
	if err != nil {
		return s, err
	}
	s.cpu = after.sub(before)
	s.memory = make(map[string]int64)
	for _, pid := range pids {
		name := d.party(pid)
		s.memory[name] = max(s.memory[name], peak(pid))
	}
	return s, nil
}

// check returns why a snapshot will not come.
func (d *daemon) check(ctx context.Context, dir string) error {
	if !d.proc.Running() {
		return fmt.Errorf("%s has ended:\n%s", d.who, d.proc.Log(20))
	}
	s, err := d.status(ctx)
	if err != nil {
		return fmt.Errorf("status of %s: %w", d.who, err)
	}
	if st := s[dir]; st.State == "failed" || st.Trouble != "" {
		return fmt.Errorf("%s fails to synchronise %s: %s%s", d.who, dir, st.Reason, st.Trouble)
	}
	return nil
}
