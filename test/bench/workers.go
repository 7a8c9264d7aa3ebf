package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"

	"cephmirror/admin"
	"cephmirror/fsmirror/dirstore"
	"cephmirror/test/bed"
	"cephmirror/test/bench/tree"
)

// workersPlan says how much several daemons share.
type workersPlan struct {
	workers, images int
	stock           bool // the stock daemon can do it, too
	dirs            tree.Uniform
	rest            time.Duration // for how long they are looked at when nothing happens
}

// fullWorkersPlan has more images than the stock daemon's map can keep apart.
func fullWorkersPlan() workersPlan {
	return workersPlan{
		workers: 4, images: 1500, rest: 20 * time.Second,
		dirs: tree.Uniform{Dir: "/bench-workers", Dirs: 500, Files: 1, Size: 4 << 10},
	}
}

func quickWorkersPlan() workersPlan {
	p := fullWorkersPlan()
	p.workers, p.images, p.dirs.Dirs, p.rest, p.stock = 3, 24, 24, 5*time.Second, true
	return p
}

// crew are several daemons that share units.
type crew struct {
	*lab
	who     string
	start   func(user string) (*bed.Process, error)
	socket  func(user string) string
	command string // that shows what a daemon has
	// count takes from the answer how it is with a daemon.
	count func(answer []byte) (view, error)
	units int
	procs map[string]*bed.Process
}

// view is what a daemon shows.
type view struct {
	owned      int // units that it was given
	replicated int // those of them that it replicates
	leads      bool
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

// stop ends all daemons in order.
func (c *crew) stop(ctx context.Context) error {
	errs := make([]error, len(c.procs))
	var wg sync.WaitGroup
	for i, user := range slices.Sorted(maps.Keys(c.procs)) {
		p := c.procs[user]
		wg.Go(func() { errs[i] = p.Stop(ctx) })
	}
	wg.Wait()
	clear(c.procs)
	return errors.Join(errs...)
}

// look asks all running daemons.
func (c *crew) look(ctx context.Context) map[string]view {
	var mu sync.Mutex
	out := make(map[string]view)
	var wg sync.WaitGroup
	for user, p := range c.procs {
		if !p.Running() {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			answer, err := admin.Call(ctx, c.socket(user), c.command, nil, "json")
			if err != nil {
				return
			}
			if v, err := c.count(answer); err == nil {
				mu.Lock()
				defer mu.Unlock()
				out[user] = v
			}
		})
	}
	wg.Wait()
	return out
}

func leaderOf(views map[string]view) string {
	for user, v := range views {
		if v.leads {
			return user
		}
	}
	return ""
}

func (c *crew) shares(views map[string]view) string {
	var out []string
	for _, user := range slices.Sorted(maps.Keys(c.procs)) {
		out = append(out, fmt.Sprint(views[user].owned))
	}
	return strings.Join(out, "+")
}

// milestones are when all units had an owner, when all were replicated, when
// the shares were even, and when somebody led; zero is never.
type milestones struct{ owned, replicated, even, led time.Duration }

// settle follows what comes of something that began, until all units are
// replicated by one daemon each and, if they are to be, the shares are even.
func (c *crew) settle(ctx context.Context, begin time.Time, even bool, limit time.Duration) (m milestones, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	note := func(d *time.Duration, is bool) {
		switch {
		case !is:
			*d = 0 // no longer
		case *d == 0:
			*d = time.Since(begin)
		}
	}
	var views map[string]view
	err = bed.Poll(ctx, "all units to be replicated", func(ctx context.Context) (bool, error) {
		views = c.look(ctx)
		owned, replicated, least, most := 0, 0, c.units, 0
		for user, p := range c.procs {
			if p.Running() {
				v := views[user]
				owned, replicated = owned+v.owned, replicated+v.replicated
				least, most = min(least, v.owned), max(most, v.owned)
			}
		}
		note(&m.owned, owned == c.units)
		note(&m.replicated, owned == c.units && replicated == c.units)
		note(&m.even, owned == c.units && most-least <= 1)
		note(&m.led, leaderOf(views) != "")
		return m.replicated > 0 && m.led > 0 && (!even || m.even > 0), nil
	})
	if err != nil {
		err = fmt.Errorf("%w: %s of %d", err, c.shares(views), c.units)
	}
	return m, err
}

// reported adds what was reached.
func (c *crew) reported(rep *report, name, what string, m milestones, wanted string) {
	for _, f := range []struct {
		is     string
		took   time.Duration
		wanted string
	}{
		{"all are replicated", m.replicated, wanted},
		{"the shares are even", m.even, ""},
	} {
		if f.took > 0 {
			rep.find(name, c.who+", "+what+": "+f.is, f.took.Seconds(), "s", f.wanted)
		}
	}
}

// hit lets something happen to a daemon that leads, or that does not, and takes
// the time until all units are replicated again. It is started anew after that.
func (c *crew) hit(ctx context.Context, rep *report, name, what string, leads bool, sig syscall.Signal, wanted string) error {
	views := c.look(ctx)
	leader := leaderOf(views)
	victim := leader
	for user, v := range views {
		if !leads && user != leader && (victim == leader || v.owned > views[victim].owned) {
			victim = user
		}
	}
	if victim == "" {
		c.logf("%s, %s: nobody is known to lead", c.who, what)
		return nil
	}
	p := c.procs[victim]
	delete(c.procs, victim)
	begin := time.Now()
	if sig == syscall.SIGKILL {
		for _, pid := range slices.Backward(descendants(p.Pid())) {
			_ = syscall.Kill(pid, sig) // those of the family that end by themselves are gone already
		}
	} else if err := p.Signal(sig); err != nil {
		return err
	}
	m, err := c.settle(ctx, begin, false, 4*time.Minute)
	if err != nil {
		c.logf("%s, %s: %v", c.who, what, err)
	} else {
		c.reported(rep, name, fmt.Sprintf("%s (it had %d)", what, views[victim].owned), milestones{replicated: m.replicated}, wanted)
		if leads {
			rep.find(name, c.who+", "+what+": another leads", m.led.Seconds(), "s", map[bool]string{true: "within 5 s"}[sig == syscall.SIGTERM && wanted != ""])
		}
		c.logf("%s, %s: led after %.1f s, owned after %.1f s, replicated after %.1f s: %s", c.who, what,
			m.led.Seconds(), m.owned.Seconds(), m.replicated.Seconds(), c.shares(c.look(ctx)))
	}
	if err := p.Stop(ctx); err != nil {
		return err
	}
	// It is to have its share before the next one is hit, if it ever gets one.
	begin = time.Now()
	if err := c.add(victim); err != nil {
		return err
	}
	if m, err = c.settle(ctx, begin, true, 90*time.Second); err == nil {
		c.reported(rep, name, "the same joins again", milestones{even: m.even}, "")
	}
	c.logf("%s: who joined has its share after %.1f s: %s", c.who, m.even.Seconds(), c.shares(c.look(ctx)))
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
	goal := func(s string) string {
		if c.who == ours {
			return s
		}
		return ""
	}
	// First everything is new. Then it is there, and only the daemons are not.
	for _, what := range []string{"first start of %d", "cold start of %d"} {
		if err := c.stop(ctx); err != nil {
			return err
		}
		begin := time.Now()
		if err := c.add(users...); err != nil {
			return err
		}
		m, err := c.settle(ctx, begin, c.who == ours, 6*time.Minute)
		if err != nil {
			return err
		}
		what = fmt.Sprintf(what, plan.workers)
		c.logf("%s, %s: owned after %.1f s, even after %.1f s, replicated after %.1f s: %s", c.who, what,
			m.owned.Seconds(), m.even.Seconds(), m.replicated.Seconds(), c.shares(c.look(ctx)))
		wanted := ""
		if strings.HasPrefix(what, "cold") {
			wanted = goal("within 60 s")
		}
		rep.find(name, c.who+", "+what+": all have an owner", m.owned.Seconds(), "s", wanted)
		c.reported(rep, name, what, m, wanted)
	}
	if err := c.resting(ctx, rep, name, plan); err != nil {
		return err
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
	for _, p := range c.procs {
		for _, pid := range descendants(p.Pid()) {
			kind := "daemon"
			switch {
			case c.who != ours:
			case pid == p.Pid():
				kind = "host"
			default:
				kind = "plugin"
			}
			who[kind] = append(who[kind], pid)
		}
	}
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
	cores, memory := 0.0, 0.0
	for _, kind := range slices.Sorted(maps.Keys(who)) {
		used := after.sub(before)[kind].Seconds() / plan.rest.Seconds()
		bytes := 0.0
		for _, pid := range who[kind] {
			bytes += float64(peak(pid))
		}
		each := float64(plan.workers)
		rep.find(name, fmt.Sprintf("%s, processor time of each %s at rest", c.who, kind), used*1000/each, "ms/s", "")
		rep.find(name, fmt.Sprintf("%s, peak resident memory of each %s", c.who, kind), bytes/1e6/each, "MB", "")
		cores, memory = cores+used, memory+bytes
	}
	rep.find(name, c.who+", processor time for each unit at rest", cores*1000/float64(c.units), "ms/s", "")
	rep.find(name, c.who+", peak resident memory for each unit", memory/1e3/float64(c.units), "kB", "")
	return nil
}

// makeImages makes small images and mirrors them, many at once.
func (r *rbdLab) makeImages(ctx context.Context, n int) error {
	r.logf("making %d images", n)
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			name := fmt.Sprintf("unit%04d", i)
			err := r.a.With(func(io *rados.IOContext) error {
				opts := rbd.NewRbdImageOptions()
				defer opts.Destroy()
				return rbd.CreateImage(io, name, 4<<20, opts)
			})
			if err != nil {
				return fmt.Errorf("making %s: %w", name, err)
			}
			return r.a.Open(name, func(img *rbd.Image) error {
				if err := writeAll(ctx, img, []int64{0}, 4<<10, uint64(i)); err != nil {
					return err
				}
				return img.MirrorEnable(rbd.ImageMirrorModeSnapshot)
			})
		})
	}
	err := g.Wait()
	r.logf("that took %.1f s", time.Since(begin).Seconds())
	return err
}

// imagesIn counts the images of an answer, wherever they are in it: the releases
// differ in that.
func imagesIn(v any) (owned, replicated int) {
	add := func(v any) {
		n, m := imagesIn(v)
		owned, replicated = owned+n, replicated+m
	}
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			add(x)
		}
	case map[string]any:
		for key, x := range v {
			list, ok := x.([]any)
			if key != "image_replayers" || !ok {
				add(x)
				continue
			}
			for _, image := range list {
				owned++
				if m, ok := image.(map[string]any); ok && m["state"] == "Replaying" {
					replicated++
				}
			}
		}
	}
	return owned, replicated
}

// rbdWorkersCase measures how several daemons share the images of a pool, and
// what happens when one of them ends.
func rbdWorkersCase(ctx context.Context, l *lab, p plan, rep *report) error {
	plan := p.workers
	name := fmt.Sprintf("%d images, %d daemons", plan.images, plan.workers)
	return l.withPool(ctx, func(r *rbdLab) error {
		if err := r.makeImages(ctx, plan.images); err != nil {
			return err
		}
		for i := range plan.workers {
			if err := l.b.AddRBDMirrorUser(ctx, fmt.Sprintf("worker%d", i)); err != nil {
				return err
			}
		}
		for _, who := range p.daemons() {
			if who == stock && !plan.stock {
				l.logf("the stock daemon loses its map of so many images: it is measured with -quick")
				continue
			}
			c := &crew{
				lab: l, who: who, units: plan.images, command: "rbd mirror status",
				socket: func(user string) string { return filepath.Join(l.b.RunDir(), "b-client."+user+".asok") },
				count: func(answer []byte) (v view, err error) {
					var st struct {
						Pools []struct {
							Leader bool `json:"leader"`
						} `json:"pool_replayers"`
					}
					var all any
					if err := errors.Join(json.Unmarshal(answer, &st), json.Unmarshal(answer, &all)); err != nil {
						return v, err
					}
					for _, pool := range st.Pools {
						v.leads = v.leads || pool.Leader
					}
					v.owned, v.replicated = imagesIn(all)
					return v, nil
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
	c.count = func(answer []byte) (v view, err error) {
		var st struct {
			Address string `json:"rados_inst"`
			Dirs    struct {
				Count int `json:"dir_count"`
			} `json:"snap_dirs"`
		}
		if err := json.Unmarshal(answer, &st); err != nil {
			return v, err
		}
		leader, err := store.Controller()
		if err != nil {
			return v, err
		}
		contents, err := store.Load()
		if err != nil {
			return v, err
		}
		n := st.Dirs.Count
		return view{owned: n, replicated: n, leads: st.Address != "" && contents.Instances[leader] == st.Address}, nil
	}
	return c.run(ctx, rep, name, plan)
}
