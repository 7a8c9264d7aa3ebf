package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/test/cephtree"
)

// Several daemons share the directories of one file system. Whatever happens to
// one of them, every directory has exactly one owner soon after.

// largeMiB is the size of a file that each round changes. Where the stock daemon
// of Reef writes a file of 8 MiB for the second time, it waits for ever, also when
// it is alone: its client does not ask for the right to write beyond 4 MiB again
// after the file was truncated.
const largeMiB = 3

// fsCrew are the daemons that serve a file system, and its directories.
type fsCrew struct {
	t       *testing.T // at whose end the daemons are stopped
	e       *env
	members []*worker
	dirs    []cephtree.Maker
	snaps   int
}

// newFSCrew starts daemons of the given kinds, and adds directories when all of
// them are there. add adds one to the map.
func (e *env) newFSCrew(t *testing.T, dirs int, add func(dir string), kinds ...string) *fsCrew {
	t.Helper()
	return e.newFSCrewOf(t, dirs, add, func(*worker) {}, kinds...)
}

// newFSCrewOf is newFSCrew with daemons that are prepared before they start.
func (e *env) newFSCrewOf(t *testing.T, dirs int, add func(dir string), prepare func(*worker), kinds ...string) *fsCrew {
	t.Helper()
	c := &fsCrew{t: t, e: e}
	for i, who := range kinds {
		w := &worker{who: who, user: fmt.Sprintf("crew%d", i)}
		if who == ours {
			prepare(w)
		}
		c.start(w)
		c.members = append(c.members, w)
	}
	c.waitMembers(t)
	for range dirs {
		m := e.newDir(t)
		m.Flat("flat", 50, 2000)
		m.Write("large", cephtree.Data(uint64(c.snaps), largeMiB*mib))
		add(m.Root())
		c.dirs = append(c.dirs, m)
	}
	c.round(t, 120*time.Second)
	return c
}

// start starts a member, or starts it again. All of ours run as one user, so that
// each can end the sessions that a dead one has left on either side. The stock
// daemon needs a user of its own to have a socket of its own.
func (c *fsCrew) start(w *worker) {
	if w.who == stock {
		if err := c.e.a.AddMirrorUser(c.e.ctx(c.t), w.user); err != nil {
			c.t.Fatal(err)
		}
		w.daemon = c.e.startStock(c.t, w.user)
		c.t.Cleanup(func() {
			if !c.t.Failed() {
				return
			}
			// Most of what it says is that it was asked before it was there.
			lines := strings.Split(tail(w.log, 1e6), "\n")
			lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "not defined") })
			c.t.Logf("the stock daemon's log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		})
		return
	}
	dir := c.e.a.RunDir()
	w.daemon = c.e.startDaemon(c.t, c.e.a, w.user, append([]string{
		filepath.Join(c.e.bin, "cephmirror"), "cephfs-mirror", "--cluster", "a", "--id", "mirror", "-f", "--cephmirror-shuffle-interval=5s",
		"--admin-socket=" + filepath.Join(dir, "a-client."+w.user+".asok"), "--pid-file=" + filepath.Join(dir, w.user+".pid"),
		"--log-file=" + filepath.Join(c.e.a.Dir(), "log", "client."+w.user+".log"),
	}, w.args...), explainPeers)
}

func (c *fsCrew) running() []*worker {
	return slices.DeleteFunc(slices.Clone(c.members), func(w *worker) bool { return !w.Running() })
}

// instance returns the member's number.
func (c *fsCrew) instance(w *worker) (string, error) {
	st, err := w.status()
	if err != nil {
		return "", err
	}
	contents, err := dirstoreOf(c.e).Load()
	if err != nil {
		return "", err
	}
	for id, addr := range contents.Instances {
		if addr == st.RadosInst {
			return id, nil
		}
	}
	return "", fmt.Errorf("%s (%s) is not registered", w.user, st.RadosInst)
}

// dirstoreOf is the map, through a connection that lives as long as the tests.
func dirstoreOf(e *env) *dirstore.Store {
	ctx, err := e.src.Conn.OpenIOContext(fsName + ".meta")
	if err != nil {
		panic(err)
	}
	return dirstore.NewStore(ctx)
}

// waitMembers waits until a controller knows all running members, and no others.
func (c *fsCrew) waitMembers(t *testing.T) {
	t.Helper()
	store := c.e.store(t)
	within(t, 60*time.Second, "all members to be registered, and no others", func() error {
		contents, err := store.Load()
		if err != nil {
			return err
		}
		for _, w := range c.running() {
			if _, err := c.instance(w); err != nil {
				return err
			}
		}
		if n := len(contents.Instances); n != len(c.running()) {
			return fmt.Errorf("%d are: %v", n, contents.Instances)
		}
		return nil
	})
}

// owners returns which member has each directory; it is an error if not exactly
// one has it, or if the map says otherwise.
func (c *fsCrew) owners() (map[string]*worker, error) {
	contents, err := dirstoreOf(c.e).Load()
	if err != nil {
		return nil, err
	}
	out := map[string]*worker{}
	for _, w := range c.running() {
		id, err := c.instance(w)
		if err != nil {
			return nil, err
		}
		count := 0
		for uuid := range w.peers() {
			status, err := w.peerStatus(uuid)
			if err != nil {
				return nil, err
			}
			count = len(status)
			for _, m := range c.dirs {
				if _, ok := status[m.Root()]; !ok {
					continue
				}
				if other := out[m.Root()]; other != nil && other != w {
					return nil, fmt.Errorf("%s is at %s and %s", m.Root(), other.user, w.user)
				}
				out[m.Root()] = w
				if got := contents.Dirs[m.Root()].Instance; got != id {
					return nil, fmt.Errorf("%s is at %s (%s), the map says %q", m.Root(), w.user, id, got)
				}
			}
		}
		st, err := w.status()
		if err != nil {
			return nil, err
		}
		if st.SnapDirs.DirCount != count {
			return nil, fmt.Errorf("%s has %d directories and says %d", w.user, count, st.SnapDirs.DirCount)
		}
	}
	if len(out) != len(c.dirs) {
		return nil, fmt.Errorf("%d of %d directories have an owner", len(out), len(c.dirs))
	}
	return out, nil
}

// shares waits until all running members have directories, and returns how many
// each has.
func (c *fsCrew) shares(t *testing.T, limit time.Duration) map[string]int {
	t.Helper()
	return shares(t, limit, c.owners, c.running)
}

// snap changes all directories and makes a snapshot of each.
func (c *fsCrew) snap() string {
	c.snaps++
	name := fmt.Sprintf("r%d", c.snaps)
	for i, m := range c.dirs {
		m.WriteAt("large", cephtree.Data(uint64(c.snaps*100+i), mib), int64(c.snaps%largeMiB)*mib)
		m.Write(fmt.Sprintf("new%d", c.snaps), []byte(name))
		m.Snap(name)
	}
	return name
}

// round waits until a change of all directories has arrived.
func (c *fsCrew) round(t *testing.T, limit time.Duration) {
	t.Helper()
	name := c.snap()
	for _, m := range c.dirs {
		c.e.waitLong(t, limit, m, name)
	}
}

// controller returns the member that controls the map.
func (c *fsCrew) controller() (*worker, error) {
	id, err := dirstoreOf(c.e).Controller()
	if err != nil {
		return nil, err
	}
	for _, w := range c.running() {
		if in, err := c.instance(w); err == nil && in == id {
			return w, nil
		}
	}
	return nil, fmt.Errorf("%q controls the map", id)
}

func (c *fsCrew) pick(t *testing.T, leads bool) (w *worker) {
	t.Helper()
	within(t, 60*time.Second, "a controller", func() error {
		leader, err := c.controller()
		if err != nil {
			return err
		}
		for _, w = range c.running() {
			if (w == leader) == leads && w.who == ours {
				return nil
			}
		}
		return fmt.Errorf("%s controls the map", leader.user)
	})
	return w
}

// sound checks all that must be so when the dust has settled.
func (c *fsCrew) sound(t *testing.T) {
	t.Helper()
	c.waitMembers(t)
	c.pick(t, true)
	within(t, 60*time.Second, "every directory to have one owner", func() error {
		_, err := c.owners()
		return err
	})
	if c.mixed() {
		return // the stock daemon misses changes
	}
	name := fmt.Sprintf("r%d", c.snaps)
	for _, m := range c.dirs {
		c.e.same(t, m, name)
	}
}

func (c *fsCrew) mixed() bool {
	return slices.ContainsFunc(c.members, func(w *worker) bool { return w.who == stock })
}

func (c *fsCrew) without(w *worker, do func()) {
	all := c.members
	c.members = slices.DeleteFunc(slices.Clone(all), func(x *worker) bool { return x == w })
	defer func() { c.members = all }()
	do()
}

// fsFaults are what happens to one daemon; see fault.
func fsFaults() []fault {
	const killed, stopped = 15 * time.Second, 3 * time.Second
	kill := func(t *testing.T, _ *crew, w *worker) { w.killAll(t, w.who) }
	term := func(t *testing.T, _ *crew, w *worker) {
		if err := w.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	freeze := func(t *testing.T, _ *crew, w *worker) { w.freeze(t) }
	freezeHost := func(t *testing.T, _ *crew, w *worker) {
		w.asleep = []int{w.Pid()}
		signalEach(t, w.asleep, syscall.SIGSTOP)
	}
	wake := func(t *testing.T, _ *crew, w *worker) {
		time.Sleep(10 * time.Second)
		w.wake(t)
	}
	shut := func(t *testing.T, c *crew, w *worker) {
		st, err := w.status()
		if err != nil {
			t.Fatal(err)
		}
		mon(t, c.e.a, map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": st.RadosInst})
	}
	return []fault{
		{name: "controller killed", leader: true, limit: killed, do: kill},
		{name: "owner killed", limit: killed, do: kill},
		{name: "controller stopped", leader: true, limit: stopped, do: term, out: true},
		{name: "owner stopped", limit: stopped, do: term, out: true},
		{name: "controller frozen", leader: true, limit: killed, do: freeze, undo: wake, out: true},
		{name: "owner frozen", limit: killed, do: freeze, undo: wake, out: true},
		{name: "host of the controller frozen", leader: true, limit: 2 * killed, do: freezeHost, undo: wake, out: true},
		{name: "owner blocklisted", limit: 2 * killed, do: shut, undo: func(*testing.T, *crew, *worker) {}},
		{name: "controller blocklisted", leader: true, limit: 2 * killed, do: shut, undo: func(*testing.T, *crew, *worker) {}},
	}
}

// worseFSFaults are like worseFaults.
func worseFSFaults() []fault {
	const killed = 15 * time.Second
	cut := func(_ *testing.T, _ *crew, w *worker) { w.line.Cut() }
	mend := func(_ *testing.T, _ *crew, w *worker) { w.line.Mend() }
	behead := func(t *testing.T, _ *crew, w *worker) { beheaded(t, w) }
	bury := func(t *testing.T, _ *crew, w *worker) { awaken(t, w) } // it is started anew after that
	freeze := func(t *testing.T, _ *crew, w *worker) { w.freeze(t) }
	wake := func(t *testing.T, _ *crew, w *worker) {
		time.Sleep(75 * time.Second) // past the time after which the MDSs forget sessions
		w.wake(t)
	}
	return []fault{
		{name: "controller cut off", leader: true, limit: killed, do: cut, undo: mend, out: true},
		{name: "owner cut off", limit: killed, do: cut, undo: mend, out: true},
		{name: "host of the controller dies before its plugin", leader: true, limit: killed, do: behead, undo: bury, out: true},
		{name: "host of an owner dies before its plugin", limit: killed, do: behead, undo: bury, out: true},
		{name: "controller frozen for long", leader: true, limit: killed, do: freeze, undo: wake, out: true},
		{name: "owner frozen for long", limit: killed, do: freeze, undo: wake, out: true},
	}
}

// suffer lets a fault happen, and checks what comes of it.
func (c *fsCrew) suffer(t *testing.T, f fault, limit time.Duration) {
	t.Helper()
	w := c.pick(t, f.leader)
	c.snap() // so that it happens in mid-synchronisation
	time.Sleep(700 * time.Millisecond)
	begin := time.Now()
	f.do(t, &crew{e: c.e}, w)
	c.round(t, limit)
	took := time.Since(begin).Round(100 * time.Millisecond)
	t.Logf("%s: all are replicated again after %v", f.name, took)
	if took > 2*f.limit && !c.mixed() {
		t.Errorf("%s: that took %v, and should take %v", f.name, took, f.limit)
	}
	if f.out {
		c.without(w, func() { c.sound(t) })
	}
	if w.line != nil && f.out && f.undo != nil {
		if _, err := w.status(); err != nil {
			t.Errorf("the socket of one that is cut off: %v", err)
		}
	}
	if f.undo != nil {
		f.undo(t, &crew{e: c.e}, w)
	}
	if f.undo == nil || !w.Running() {
		w.stopWithin(t, 30*time.Second)
		c.start(w)
	}
	c.round(t, limit)
	c.sound(t)
}

// prepare enables mirroring to the usual peer, without a daemon.
func (e *env) prepare(t *testing.T) {
	t.Helper()
	e.clear(t)
	e.enable(t)
	e.addPeer(t, "remote", fsName)
	t.Cleanup(func() { e.clear(t) })
}

// TestFSWorkers kills the controller of three daemons, and stops another.
func TestFSWorkers(t *testing.T) {
	e := need(t)
	e.prepare(t)
	c := e.newFSCrew(t, 6, func(dir string) { e.track(t, dir) }, ours, ours, ours)
	t.Logf("shares: %v", c.shares(t, 60*time.Second))
	all := fsFaults()
	for _, f := range []fault{all[0], all[3]} {
		w := c.pick(t, f.leader)
		begin := time.Now()
		f.do(t, nil, w)
		c.round(t, 60*time.Second)
		t.Logf("%s: all are replicated again after %v", f.name, time.Since(begin).Round(100*time.Millisecond))
		within(t, 20*time.Second, "it to end", func() error {
			if w.Running() {
				return fmt.Errorf("%s runs", w.user)
			}
			return nil
		})
		c.sound(t)
	}
}

// TestFSWorkersSurvive lets everything happen to one of three daemons of ours.
func TestFSWorkersSurvive(t *testing.T) {
	needLong(t)
	e := need(t)
	e.prepare(t)
	c := e.newFSCrew(t, 6, func(dir string) { e.track(t, dir) }, ours, ours, ours)
	for _, f := range fsFaults() {
		if !t.Run(f.name, func(t *testing.T) {
			c.in(t)
			c.shares(t, 90*time.Second)
			c.suffer(t, f, 120*time.Second)
		}) {
			return
		}
	}
	t.Run("directories come and go", func(t *testing.T) {
		c.in(t)
		gone := c.dirs[0]
		e.untrack(t, gone.Root())
		w := c.pick(t, false)
		w.kill(t)
		e.trackFor(t, gone.Root()) // perhaps before its removal is through
		c.round(t, 60*time.Second)
		c.start(w)
		c.shares(t, 90*time.Second)
		c.sound(t)
	})
}

// TestFSWorkersLost lets daemons be cut off, frozen for long, and their plugins
// outlive them.
func TestFSWorkersLost(t *testing.T) {
	needLong(t)
	e := need(t)
	for _, c := range []struct {
		name    string
		prepare func(*worker)
		faults  []fault
	}{
		{"lines", func(w *worker) { e.onLine(t, w, "cephmirror-cephfs") }, worseFSFaults()[:2]},
		{"orphans", func(w *worker) { e.orphaned(t, w, "cephmirror-cephfs") }, worseFSFaults()[2:4]},
		{"sleepers", func(*worker) {}, worseFSFaults()[4:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.prepare(t)
			crew := e.newFSCrewOf(t, 6, func(dir string) { e.track(t, dir) }, c.prepare, ours, ours, ours)
			for _, f := range c.faults {
				t.Run(f.name, func(t *testing.T) {
					crew.in(t)
					crew.shares(t, 90*time.Second)
					crew.suffer(t, f, 120*time.Second)
				})
			}
		})
	}
}

// TestFSWorkersCephRestarts restarts monitors and managers of both clusters: no
// directory changes hands for that.
func TestFSWorkersCephRestarts(t *testing.T) {
	needLong(t)
	e := need(t)
	e.prepare(t)
	c := e.newFSCrew(t, 6, func(dir string) { e.track(t, dir) }, ours, ours, ours)
	c.shares(t, 60*time.Second)
	for _, side := range e.sites() {
		for _, name := range []string{"mon.a", "mgr.x"} {
			t.Run(name+" of "+side.Name(), func(t *testing.T) {
				c.in(t)
				before, err := c.owners()
				if err != nil {
					t.Fatal(err)
				}
				d := side.Daemon(name)
				c.snap()
				if err := d.Kill(e.ctx(t), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				for range 5 {
					for _, w := range c.running() {
						if _, err := w.status(); err != nil {
							t.Errorf("the socket of %s: %v", w.user, err)
						}
					}
					time.Sleep(time.Second)
				}
				if err := d.Start(); err != nil {
					t.Fatal(err)
				}
				if err := d.WaitReady(e.ctx(t)); err != nil {
					t.Fatal(err)
				}
				c.round(t, 90*time.Second)
				c.sound(t)
				if after, err := c.owners(); err != nil || !maps.Equal(before, after) {
					t.Errorf("directories changed hands: %v, %v", after, err)
				}
			})
		}
	}
}

// TestFSWorkersLoadAware lets two directories have all the work: each daemon
// gets one.
func TestFSWorkersLoadAware(t *testing.T) {
	needLong(t)
	e := need(t)
	e.prepare(t)
	c := e.newFSCrewOf(t, 6, func(dir string) { e.track(t, dir) },
		func(w *worker) { w.args = append(w.args, "--cephmirror-assignment-policy=load-aware") }, ours, ours)
	c.shares(t, 60*time.Second)
	id, err := c.instance(c.members[0])
	if err != nil {
		t.Fatal(err)
	}
	hot := c.dirs[:2]
	for _, m := range hot {
		c.members[0].order(t, "pin", map[string]any{"domain": e.domain(), "unit": m.Root(), "worker": id})
	}
	apart := func(want bool) func() error {
		return func() error {
			owners, err := c.owners()
			if err == nil && (owners[hot[0].Root()] != owners[hot[1].Root()]) != want {
				err = fmt.Errorf("they are at %v", owners)
			}
			return err
		}
	}
	within(t, 60*time.Second, "both to be where they are pinned, and each daemon to have half", func() error {
		if got := c.shares(t, 60*time.Second); got[c.members[0].user] != len(c.dirs)/2 {
			return fmt.Errorf("the shares are %v", got)
		}
		return apart(false)()
	})
	for _, m := range hot {
		c.members[0].order(t, "unpin", map[string]any{"domain": e.domain(), "unit": m.Root()})
	}
	begin := time.Now()
	within(t, 180*time.Second, "each daemon to have one", func() error {
		c.snaps++
		for i, m := range hot {
			m.WriteAt("large", cephtree.Data(uint64(c.snaps*100+i), 4*mib), 0)
			m.Snap(fmt.Sprintf("r%d", c.snaps))
		}
		time.Sleep(2 * time.Second)
		return apart(true)()
	})
	t.Logf("each has one after %v", time.Since(begin).Round(time.Second))
	c.round(t, 60*time.Second)
	c.sound(t)
}

// TestFSWorkersObey drains a daemon, and pins a directory.
func TestFSWorkersObey(t *testing.T) {
	needLong(t)
	e := need(t)
	e.prepare(t)
	c := e.newFSCrew(t, 4, func(dir string) { e.track(t, dir) }, ours, ours)
	c.shares(t, 60*time.Second)
	drained, other := c.members[0], c.members[1]
	has := func(what string, n int) {
		t.Helper()
		within(t, 60*time.Second, what, func() error {
			owners, err := c.owners()
			if err != nil {
				return err
			}
			got := 0
			for _, w := range owners {
				if w == drained {
					got++
				}
			}
			if got != n {
				return fmt.Errorf("it has %d", got)
			}
			return nil
		})
	}
	drained.order(t, "drain", nil)
	has("the drained one to have nothing", 0)
	c.round(t, 60*time.Second)
	drained.order(t, "serve", nil)
	has("it to have half again", 2)
	id, err := c.instance(drained)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.dirs {
		other.order(t, "pin", map[string]any{"domain": e.domain(), "unit": m.Root(), "worker": id})
	}
	has("all to be where they are pinned", 4)
	c.round(t, 60*time.Second)
	for _, m := range c.dirs {
		other.order(t, "unpin", map[string]any{"domain": e.domain(), "unit": m.Root()})
	}
	has("it to have half again", 2)
	c.sound(t)
}

func (c *fsCrew) in(t *testing.T) {
	for i, m := range c.dirs {
		c.dirs[i] = cephtree.On(t, c.e.src, m.Root())
	}
}

// TestFSWorkersMixed lets daemons of ours and a stock one share directories.
func TestFSWorkersMixed(t *testing.T) {
	needLong(t)
	e := need(t)
	e.prepare(t)
	c := e.newFSCrew(t, 6, func(dir string) { e.track(t, dir) }, ours, stock, ours)
	t.Logf("shares: %v", c.shares(t, 90*time.Second))
	for _, f := range fsFaults()[:4] {
		t.Run(f.name, func(t *testing.T) {
			c.in(t)
			c.suffer(t, f, 120*time.Second)
		})
	}
}

// TestFSWorkersModule lets the stock mgr module control daemons of ours and a
// stock one, and switches it off and on again.
func TestFSWorkersModule(t *testing.T) {
	needLong(t)
	e := need(t)
	if e.bed.Release().Name == "reef" {
		t.Skip("the mgr of the test bed cannot load the module")
	}
	e.prepare(t)
	module := func(t *testing.T, word string) {
		t.Helper()
		if out, err := e.a.Ceph(e.ctx(t), "mgr", "module", word, "mirroring"); err != nil {
			t.Fatal(out, err)
		}
	}
	ceph := func(t *testing.T, words ...string) {
		t.Helper()
		within(t, 60*time.Second, fmt.Sprint("the module to do ", words), func() error {
			out, err := e.a.Ceph(e.ctx(t), append([]string{"fs", "snapshot", "mirror"}, words...)...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	controlled := func(t *testing.T, by bool) {
		t.Helper()
		within(t, 30*time.Second, "the control to change hands", func() error {
			id, err := dirstoreOf(e).Controller()
			if err == nil && (id != "") != by {
				err = fmt.Errorf("%q controls the map", id)
			}
			return err
		})
	}
	module(t, "enable")
	defer module(t, "disable")
	c := e.newFSCrew(t, 6, func(dir string) { ceph(t, "add", fsName, dir) }, ours, ours, stock)
	controlled(t, false)
	shares := c.shares(t, 90*time.Second)
	t.Logf("under the module: %v", shares)

	module(t, "disable")
	controlled(t, true)
	c.round(t, 60*time.Second)
	c.sound(t)
	w := c.pick(t, true)
	begin := time.Now()
	w.kill(t)
	c.round(t, 60*time.Second)
	t.Logf("without the module, controller killed: %v", time.Since(begin).Round(100*time.Millisecond))
	c.start(w)
	c.sound(t)

	module(t, "enable")
	controlled(t, false)
	ceph(t, "ls", fsName)
	c.round(t, 90*time.Second)
	holds(t, 10*time.Second, "the module controls alone", func() error {
		id, err := dirstoreOf(e).Controller()
		if err == nil && id != "" {
			err = fmt.Errorf("%s controls the map, too", id)
		}
		return err
	})
	within(t, 60*time.Second, "every directory to have one owner", func() error {
		_, err := c.owners()
		return err
	})
}

// TestTwoPeers mirrors a file system to two others.
func TestTwoPeers(t *testing.T) {
	needLong(t)
	e := need(t)
	e.prepare(t)
	if err := e.b.AuthorizePeer(e.ctx(t), "second", "remote2"); err != nil {
		t.Fatal(err)
	}
	cli := func(words ...string) (string, error) {
		cmd := e.a.Command(e.ctx(t), append([]string{e.bin + "/cephmirror", "--cluster", "a", "--id", "admin", "fs", "snapshot", "mirror"}, words...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	add := []string{"peer_add", fsName, "client.remote2@b", "second"}
	if out, err := cli(add...); err == nil {
		t.Fatalf("a second peer was added without a word: %s", out)
	}
	out, err := cli(append(add, "--additional")...)
	if err != nil {
		t.Fatal(err, out)
	}
	t.Logf("adding the second peer: %s", out)
	d := e.startOurs(t, "mirror")
	m := e.newDir(t)
	m.Flat("flat", 20, 2000)
	m.Snap("s1")
	e.track(t, m.Root())
	second, err := cephtree.Open(e.b.Conf(), "second")
	if err != nil {
		t.Fatal(err)
	}
	defer closeSoon(second)
	for _, snap := range []string{"s1", "s2"} {
		if snap == "s2" {
			m.Write("new", []byte("new"))
			m.Snap("s2")
		}
		e.wait(t, m, snap)
		within(t, patience, snap+" to arrive at the second peer", func() error {
			_, metadata, err := second.SnapInfo(m.Root() + "/.snap/" + snap)
			if err == nil && metadata["primary_snap_id"] == "" {
				err = fmt.Errorf("it has no metadata")
			}
			return err
		})
		e.same(t, m, snap)
	}
	out2, err := d.call("fs mirror status " + e.domain())
	if err != nil {
		t.Fatal(err)
	}
	var st mirrorStatus
	if err := json.Unmarshal(out2, &st); err != nil || len(st.Peers) != 2 {
		t.Errorf("%v in %s", err, out2)
	}
}
