package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"cephmirror/admin"
	"cephmirror/fsmirror/dirstore"
	"cephmirror/test/bed"
	"cephmirror/test/bench/tree"
)

// workersPlan says how much several daemons share.
type workersPlan struct {
	workers, images int
	dirs            tree.Uniform
	rest            time.Duration // for how long they are looked at when nothing happens
}

func fullWorkersPlan() workersPlan {
	return workersPlan{
		workers: 4, images: 300, rest: 20 * time.Second,
		dirs: tree.Uniform{Dir: "/bench-workers", Dirs: 500, Files: 1, Size: 4 << 10},
	}
}

func quickWorkersPlan() workersPlan {
	p := fullWorkersPlan()
	p.workers, p.images, p.dirs.Dirs, p.rest = 3, 24, 24, 5*time.Second
	return p
}

// crew are several daemons that share units.
type crew struct {
	*lab
	who     string
	start   func(user string) (*bed.Process, error)
	socket  func(user string) string
	command string // that shows what a daemon has
	// count takes from the answer how many units the daemon replicates, and
	// whether it leads.
	count func(answer []byte) (units int, leads bool, err error)
	units int
	procs map[string]*bed.Process
}

func (c *crew) add(users ...string) error {
	for _, u := range users {
		p, err := c.start(u)
		if err != nil {
			return err
		}
		c.procs[u] = p
	}
	return nil
}

func (c *crew) stop(ctx context.Context) error {
	var errs []error
	for _, p := range c.procs {
		errs = append(errs, p.Stop(ctx))
	}
	return errors.Join(errs...)
}

// look returns how many units each running daemon replicates, and who leads.
func (c *crew) look(ctx context.Context) (shares map[string]int, leader string) {
	shares = make(map[string]int)
	for user, p := range c.procs {
		if !p.Running() {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		out, err := admin.Call(ctx, c.socket(user), c.command, nil, "json")
		cancel()
		if err != nil {
			continue
		}
		n, leads, err := c.count(out)
		if err != nil {
			continue
		}
		shares[user] = n
		if leads {
			leader = user
		}
	}
	return shares, leader
}

// settled waits until all units are replicated by somebody, and by no two.
func (c *crew) settled(ctx context.Context, least int) (time.Duration, map[string]int, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	var shares map[string]int
	err := bed.Poll(ctx, "all units to be replicated", func(ctx context.Context) (bool, error) {
		shares, _ = c.look(ctx)
		total := 0
		for _, n := range shares {
			total += n
			if n < least {
				return false, nil
			}
		}
		return total == c.units && len(shares) > 0, nil
	})
	if err != nil {
		err = fmt.Errorf("%w: %v of %d", err, shares, c.units)
	}
	return time.Since(begin), shares, err
}

// hit lets something happen to a daemon that leads, or that does not, and takes
// the time until all units are replicated again. It is started anew after that.
func (c *crew) hit(ctx context.Context, rep *report, name, what string, leads bool, sig syscall.Signal, wanted string) error {
	shares, leader := c.look(ctx)
	victim := leader
	for user, n := range shares {
		if !leads && user != leader && (victim == leader || n > shares[victim]) {
			victim = user
		}
	}
	if victim == "" {
		c.logf("%s, %s: nobody is known to lead", c.who, what)
		return nil
	}
	p := c.procs[victim]
	begin := time.Now()
	if sig == syscall.SIGKILL {
		for _, pid := range slices.Backward(descendants(p.Pid())) {
			_ = syscall.Kill(pid, sig) // those of the family that end by themselves are gone already
		}
	} else if err := p.Signal(sig); err != nil {
		return err
	}
	delete(c.procs, victim)
	_, after, err := c.settled(ctx, 0)
	took := time.Since(begin)
	if err != nil {
		c.logf("%s, %s: %v", c.who, what, err)
	} else {
		rep.find(name, c.who+", "+what+": all are replicated again", took.Seconds(), "s", wanted)
		c.logf("%s, %s: %v, then %v", c.who, what, took.Round(100*time.Millisecond), after)
	}
	if err := p.Stop(ctx); err != nil {
		return err
	}
	if err := c.add(victim); err != nil {
		return err
	}
	// It is to have its share before the next one is hit, if it ever gets one.
	some, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if took, _, err := c.settled(some, 1); err == nil {
		c.logf("%s: who joined has units after %v", c.who, took.Round(100*time.Millisecond))
	}
	return nil
}

// run starts the daemons and lets everything happen to them.
func (c *crew) run(ctx context.Context, rep *report, name string, plan workersPlan) (err error) {
	var users []string
	for i := range plan.workers {
		users = append(users, fmt.Sprintf("worker%d", i))
	}
	c.procs = make(map[string]*bed.Process)
	defer func() { err = errors.Join(err, c.stop(context.WithoutCancel(ctx))) }()
	if err := c.add(users...); err != nil {
		return err
	}
	took, shares, err := c.settled(ctx, 0)
	if err != nil {
		return err
	}
	c.logf("%s: settled after %v: %v", c.who, took.Round(100*time.Millisecond), shares)
	rep.find(name, c.who+", cold start of "+fmt.Sprint(plan.workers)+": all are replicated", took.Seconds(), "s", "within 60 s")
	if err := c.resting(ctx, rep, name, plan); err != nil {
		return err
	}
	goal := func(s string) string {
		if c.who == ours {
			return s
		}
		return ""
	}
	for _, h := range []struct {
		what   string
		leads  bool
		sig    syscall.Signal
		wanted string
	}{
		{"leader killed", true, syscall.SIGKILL, "within 15 s"},
		{"another killed", false, syscall.SIGKILL, "within 15 s"},
		{"leader stopped", true, syscall.SIGTERM, "within 3 s"},
		{"another stopped", false, syscall.SIGTERM, "within 3 s"},
	} {
		if err := c.hit(ctx, rep, name, h.what, h.leads, h.sig, goal(h.wanted)); err != nil {
			return err
		}
	}
	return nil
}

// resting measures what the daemons need when nothing happens.
func (c *crew) resting(ctx context.Context, rep *report, name string, plan workersPlan) error {
	who := make(parties)
	var pids []int
	for _, p := range c.procs {
		pids = append(pids, descendants(p.Pid())...)
	}
	who["daemons"] = pids
	before, err := who.read()
	if err != nil {
		return err
	}
	select {
	case <-time.After(plan.rest):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := who.read()
	if err != nil {
		return err
	}
	memory := int64(0)
	for _, pid := range pids {
		memory += peak(pid)
	}
	cores := after.sub(before)["daemons"].Seconds() / plan.rest.Seconds()
	rep.find(name, c.who+", processor time of all daemons at rest", cores, "cores", "")
	rep.find(name, c.who+", the same for each unit", cores*1000/float64(c.units), "ms/s", "")
	rep.find(name, c.who+", peak resident memory of each daemon", float64(memory)/1e6/float64(plan.workers), "MB", "")
	rep.find(name, c.who+", the same for each unit", float64(memory)/1e3/float64(c.units), "kB", "")
	return nil
}

// rbdWorkersCase measures how several daemons share the images of a pool, and
// what happens when one of them ends.
func rbdWorkersCase(ctx context.Context, l *lab, p plan, rep *report) error {
	plan := p.workers
	name := fmt.Sprintf("%d images, %d daemons", plan.images, plan.workers)
	return l.withPool(ctx, func(r *rbdLab) error {
		l.logf("making %d images", plan.images)
		for i := range plan.images {
			image := fmt.Sprintf("unit%04d", i)
			err := r.image(image, 4<<20, func(img *rbd.Image) error { return writeAll(ctx, img, []int64{0}, 4<<10, uint64(i)) })
			if err != nil {
				return err
			}
			if _, err := r.enable(image); err != nil {
				return err
			}
		}
		for i := range plan.workers {
			if err := l.b.AddRBDMirrorUser(ctx, fmt.Sprintf("worker%d", i)); err != nil {
				return err
			}
		}
		for _, who := range p.daemons() {
			c := &crew{
				lab: l, who: who, units: plan.images, command: "rbd mirror status",
				socket: func(user string) string { return filepath.Join(l.b.RunDir(), "b-client."+user+".asok") },
				count: func(answer []byte) (n int, leads bool, err error) {
					// The same in the layouts of both releases.
					var st struct {
						Pools []struct {
							Leader bool `json:"leader"`
						} `json:"pool_replayers"`
					}
					err = json.Unmarshal(answer, &st)
					for _, pool := range st.Pools {
						leads = leads || pool.Leader
					}
					return strings.Count(string(answer), `"state":"Replaying"`), leads, err
				},
				start: func(user string) (*bed.Process, error) {
					args := []string{"rbd-mirror", "--cluster", "b", "--id", user, "-f", "--rbd-mirror-image-policy-migration-throttle=20"}
					if who == ours {
						args = slices.Concat(l.ours[:1], args, l.ours[1:])
					}
					return l.bed.StartProcess(bed.ProcessSpec{Name: who + "-" + user, Args: args})
				},
			}
			if err := c.run(ctx, rep, name, plan); err != nil {
				return err
			}
		}
		return nil
	})
}

// workersCase measures the same of directories. Without the mgr module there is
// no stock control plane to compare with; with it, no second stock daemon gets
// directories that are there already.
func workersCase(ctx context.Context, l *lab, p plan, rep *report) (err error) {
	if !p.wants(ours) {
		l.logf("the workers case is for our daemon alone")
		return nil
	}
	plan := p.workers
	name := fmt.Sprintf("%d directories, %d daemons", plan.dirs.Dirs, plan.workers)
	fill := func(f *tree.FS) error {
		if err := f.Fill(ctx, plan.dirs); err != nil {
			return err
		}
		return f.SnapshotEach(ctx, plan.dirs.Subs(), "first")
	}
	return l.source(ctx, plan.dirs.Dir, fill, func() (err error) {
		if _, err := l.mirror(ctx, "enable", nil); err != nil {
			return err
		}
		_, err = l.mirror(ctx, "peer_add", map[string]any{
			"remote_cluster_spec": "client." + peerUser + "@b", "remote_fs_name": fsName,
			"remote_mon_host": l.b.MonHost(), "cephx_key": l.key,
		})
		if err != nil {
			return err
		}
		for _, word := range []string{"disable", "enable"} {
			module := func(ctx context.Context) error {
				out, err := l.a.Ceph(ctx, "mgr", "module", word, "mirroring")
				if err != nil {
					return fmt.Errorf("%s of the mgr module: %w: %s", word, err, out)
				}
				return nil
			}
			if word == "disable" {
				if err := module(ctx); err != nil {
					return err
				}
				continue
			}
			defer func() {
				after := context.WithoutCancel(ctx)
				err = errors.Join(err, module(after), bed.Poll(after, "the mgr module to serve", func(ctx context.Context) (bool, error) {
					_, err := l.mirror(ctx, "ls", nil)
					return err == nil, nil
				}), l.forget(after))
			}()
		}
		return l.shareDirs(ctx, rep, name, plan)
	})
}

// dirMap opens the directory map, for as long as done is not called.
func (l *lab) dirMap() (store *dirstore.Store, done func(), err error) {
	conn, err := rados.NewConnWithUser("admin")
	if err != nil {
		return nil, nil, fmt.Errorf("making a client: %w", err)
	}
	if err := conn.ReadConfigFile(l.a.Conf()); err != nil {
		return nil, nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if err := conn.Connect(); err != nil {
		return nil, nil, fmt.Errorf("connecting: %w", err)
	}
	pool, err := conn.OpenIOContext(fsName + ".meta")
	if err != nil {
		conn.Shutdown()
		return nil, nil, fmt.Errorf("opening the metadata pool: %w", err)
	}
	return dirstore.NewStore(pool), func() { pool.Destroy(); conn.Shutdown() }, nil
}

func (l *lab) shareDirs(ctx context.Context, rep *report, name string, plan workersPlan) error {
	store, done, err := l.dirMap()
	if err != nil {
		return err
	}
	defer done()
	change := dirstore.Change{Set: make(map[string][]byte)}
	for _, dir := range plan.dirs.Subs() {
		change.Set[dirstore.DirKey(dir)] = dirstore.Entry{}.Encode()
	}
	if err := store.Apply(change); err != nil {
		return err
	}
	for i := range plan.workers {
		if err := l.a.AddMirrorUser(ctx, fmt.Sprintf("worker%d", i)); err != nil {
			return err
		}
	}
	c := &crew{
		lab: l, who: ours, units: plan.dirs.Dirs, command: "fs mirror status " + l.fsid,
		socket: func(user string) string { return filepath.Join(l.a.RunDir(), "a-client."+user+".asok") },
		start: func(user string) (*bed.Process, error) {
			args := slices.Concat(l.ours[:1], []string{"cephfs-mirror", "--cluster", "a", "--id", user, "-f", "--cephmirror-shuffle-interval=20s"}, l.ours[1:])
			return l.bed.StartProcess(bed.ProcessSpec{Name: ours + "-" + user, Args: args})
		},
	}
	c.count = func(answer []byte) (int, bool, error) {
		var st struct {
			Address string `json:"rados_inst"`
			Dirs    struct {
				Count int `json:"dir_count"`
			} `json:"snap_dirs"`
		}
		if err := json.Unmarshal(answer, &st); err != nil {
			return 0, false, err
		}
		leader, err := store.Controller()
		if err != nil {
			return 0, false, err
		}
		contents, err := store.Load()
		if err != nil {
			return 0, false, err
		}
		return st.Dirs.Count, st.Address != "" && contents.Instances[leader] == st.Address, nil
	}
	return c.run(ctx, rep, name, plan)
}
