package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cephmirror/admin"
	"cephmirror/test/bed"
	"cephmirror/test/bench/delay"
	"cephmirror/test/rbdimage"
)

// Several daemons serve one pool. Whatever happens to one of them, every image
// has exactly one owner soon after, and goes on where it was.

// worker is one of several daemons on b.
type worker struct {
	*daemon
	who, user string
	args      []string     // of its own
	line      *delay.Proxy // between it and the clusters, if that can be cut
	asleep    []int        // processes that are frozen
}

// pluginOf is what a worker's host is to start as its plugin: a script that
// begins with some lines and then starts the plugin as told.
func (e *env) pluginOf(t *testing.T, w *worker, name, lines, how string) {
	t.Helper()
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n%s\n%s\n", lines, fmt.Sprintf(how, filepath.Join(e.bin, name)+` "$@"`))
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	w.args = append(w.args, "--cephmirror-plugin-dir="+dir)
}

// onLine puts a worker behind a line of its own, which can be cut.
func (e *env) onLine(t *testing.T, w *worker, plugin string) {
	t.Helper()
	var ports []int
	address := regexp.MustCompile(`127\.0\.0\.1:(\d+)`)
	for _, c := range e.sites() {
		for _, what := range []string{"mon dump", "osd dump", "mgr dump", "fs dump"} {
			for _, m := range address.FindAllStringSubmatch(mon(t, c, map[string]any{"prefix": what, "format": "json"}), -1) {
				if port, err := strconv.Atoi(m[1]); err == nil && port != 0 && !slices.Contains(ports, port) {
					ports = append(ports, port)
				}
			}
		}
	}
	line, err := delay.New(ports, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(line.Close)
	vars, err := line.Redirect(e.ctx(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.line = line
	e.pluginOf(t, w, plugin, "export '"+strings.Join(vars, "' '")+"'", "exec %s")
}

// orphaned lets a worker's plugin have a parent of its own: it is not told of
// its host's death by the kernel.
func (e *env) orphaned(t *testing.T, w *worker, plugin string) {
	t.Helper()
	// In a session of its own: in an orphaned group the kernel lets go on who stands still.
	e.pluginOf(t, w, plugin, "", "setsid %s &\nwait")
}

// processes are a worker's host and what it has started, the host first.
func (w *worker) processes() []int {
	out := []int{w.Pid()}
	for i := 0; i < len(out); i++ {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", out[i]))
		if err != nil {
			continue // not with this pattern
		}
		for _, path := range lists {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			for f := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(f); err == nil {
					out = append(out, pid)
				}
			}
		}
	}
	return out
}

// freeze stops host and plugin.
func (w *worker) freeze(t *testing.T) {
	t.Helper()
	w.asleep = w.processes()
	signalEach(t, w.asleep, syscall.SIGSTOP)
	if w.who == ours && len(w.asleep) < 2 {
		t.Fatal("there is no plugin")
	}
}

// wake lets all that is frozen go on, the plugin before it can be told anything.
func (w *worker) wake(t *testing.T) {
	t.Helper()
	slices.Reverse(w.asleep)
	signalEach(t, w.asleep, syscall.SIGCONT)
	w.asleep = nil
}

// beheaded kills a worker's host, whose plugin stands still: nothing tells it,
// and it cannot look.
func beheaded(t *testing.T, w *worker) {
	t.Helper()
	plugin := 0
	for _, pid := range w.processes()[1:] {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(filepath.Base(exe), "cephmirror-") {
			plugin = pid
		}
	}
	if plugin == 0 {
		t.Fatal("there is no plugin")
	}
	t.Cleanup(func() { _ = syscall.Kill(plugin, syscall.SIGKILL) }) // most often it is dead
	w.asleep = []int{plugin}
	signalEach(t, w.asleep, syscall.SIGSTOP)
	if err := w.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the host to be dead", func() error {
		if w.Running() {
			return errText("it runs")
		}
		return nil
	})
	if !alive(plugin) {
		t.Fatal("the plugin died with its host")
	}
}

// awaken lets the plugin of a dead host go on: it must end at once.
func awaken(t *testing.T, w *worker) {
	t.Helper()
	plugin := w.asleep[0]
	w.wake(t)
	within(t, 10*time.Second, "the plugin to follow its host", func() error {
		if alive(plugin) {
			return fmt.Errorf("%d runs", plugin)
		}
		return nil
	})
}

func signalEach(t *testing.T, pids []int, sig syscall.Signal) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
}

// crew are the daemons that serve a pool, and its images.
type crew struct {
	t       *testing.T // at whose end the daemons are stopped
	e       *env
	p       *rbdPool
	members []*worker
	images  []rbdimage.Maker
	seed    uint64
}

const crewImage = 16 * mib

// newCrew starts daemons of the given kinds, and makes images when all of them
// are there, so that each gets its share.
func (e *env) newCrew(t *testing.T, images int, kinds ...string) *crew {
	t.Helper()
	return e.newCrewOf(t, images, func(*worker) {}, kinds...)
}

// newCrewOf is newCrew with daemons that are prepared before they start.
func (e *env) newCrewOf(t *testing.T, images int, prepare func(*worker), kinds ...string) *crew {
	t.Helper()
	c := &crew{t: t, e: e, p: e.newPool(t, poolOptions{oneWay: true}), seed: uint64(time.Now().UnixNano())}
	for i, who := range kinds {
		user := fmt.Sprintf("crew%d", i)
		if err := e.b.AddRBDMirrorUser(e.ctx(t), user); err != nil {
			t.Fatal(err)
		}
		w := &worker{who: who, user: user}
		if who == ours {
			prepare(w)
		}
		c.start(w)
		c.members = append(c.members, w)
	}
	c.waitLeader(t, 60*time.Second)
	for i := range images {
		m := rbdimage.Create(t, c.p.a, fmt.Sprintf("crew%02d", i), rbdimage.Options{Size: crewImage})
		m.Fill(uint64(i), 0, crewImage*3/4)
		m.Mirror()
		c.images = append(c.images, m)
	}
	c.round(t, 120*time.Second)
	return c
}

// start starts a member, or starts it again.
func (c *crew) start(w *worker) {
	args := []string{"--rbd-mirror-image-policy-migration-throttle=5"}
	if w.who == ours {
		// The time that a take-over takes is that of the defaults.
		args = append(args, "--rbd-mirror-leader-heartbeat-interval=5", "--cephmirror-rbd-rate-limit=8MiB")
	}
	w.daemon = c.e.startRBDAs(c.t, w.who, c.e.b, w.user, append(args, w.args...)...)
}

// running are the members that are not stopped or dead.
func (c *crew) running() []*worker {
	return slices.DeleteFunc(slices.Clone(c.members), func(w *worker) bool { return !w.Running() })
}

// poolView is what a member's admin socket says of the pool.
type poolView struct {
	Pool     string   `json:"pool"`
	Instance string   `json:"instance_id"`
	State    string   `json:"state"`
	LeaderID string   `json:"leader_instance_id"`
	Leader   bool     `json:"leader"`
	Others   []string `json:"instances"`
}

func (w *worker) view(pool string) (poolView, error) {
	out, err := w.call("rbd mirror status")
	if err != nil {
		return poolView{}, err
	}
	var st struct {
		Pools []poolView `json:"pool_replayers"`
	}
	if err := json.Unmarshal(out, &st); err != nil {
		return poolView{}, err
	}
	for _, v := range st.Pools {
		if v.Pool == pool {
			return v, nil
		}
	}
	return poolView{}, fmt.Errorf("%s does not serve the pool", w.user)
}

// leader finds the only leader, whom all running members name.
func (c *crew) leader() (*worker, error) {
	var found *worker
	named := map[string]bool{}
	for _, w := range c.running() {
		v, err := w.view(c.p.name)
		if err != nil {
			return nil, err
		}
		if v.State != "running" {
			return nil, fmt.Errorf("%s is %q", w.user, v.State)
		}
		named[v.LeaderID] = true
		if !v.Leader {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s and %s both lead", found.user, w.user)
		}
		if w.who == ours && len(v.Others) != len(c.running()) {
			return nil, fmt.Errorf("the leader knows of %v", v.Others)
		}
		found = w
	}
	if found == nil || len(named) != 1 {
		return nil, fmt.Errorf("the members name %v", named)
	}
	return found, nil
}

func (c *crew) waitLeader(t *testing.T, limit time.Duration) (w *worker) {
	t.Helper()
	within(t, limit, "one leader", func() (err error) {
		w, err = c.leader()
		return err
	})
	return w
}

// owners returns which member has each image; it is an error if not exactly one
// has it.
func (c *crew) owners() (map[string]*worker, error) {
	out := map[string]*worker{}
	for _, m := range c.images {
		var at []string
		for _, w := range c.running() {
			if _, err := w.call("rbd mirror status " + m.Spec()); err == nil {
				at = append(at, w.user)
				out[m.Name()] = w
			}
		}
		if len(at) != 1 {
			return nil, fmt.Errorf("%s is at %v", m.Name(), at)
		}
	}
	return out, nil
}

// served waits until each image has one owner, which replicates it, and returns
// for how long that took. What the primary does may be held up for longer, by
// watches that a dead daemon has left there.
func (c *crew) served(t *testing.T, limit time.Duration) time.Duration {
	t.Helper()
	begin := time.Now()
	within(t, limit, "every image to be replicated by one daemon", func() error {
		owners, err := c.owners()
		if err != nil {
			return err
		}
		for _, m := range c.images {
			state, err := owners[m.Name()].imageState(m.Spec())
			if err != nil {
				return err
			}
			if state != "Replaying" {
				return fmt.Errorf("%s is %s", m.Name(), state)
			}
		}
		return nil
	})
	return time.Since(begin).Round(100 * time.Millisecond)
}

// shares waits until each image has one owner and all running members have
// some, and returns how many each has.
func (c *crew) shares(t *testing.T, limit time.Duration) map[string]int {
	t.Helper()
	return shares(t, limit, c.owners, c.running)
}

func shares(t *testing.T, limit time.Duration, owners func() (map[string]*worker, error), running func() []*worker) (out map[string]int) {
	t.Helper()
	within(t, limit, "everything to have one owner, and everybody some", func() error {
		byUnit, err := owners()
		if err != nil {
			return err
		}
		out = map[string]int{}
		for _, w := range byUnit {
			out[w.user]++
		}
		if len(out) < len(running()) {
			return fmt.Errorf("the shares are %v", out)
		}
		return nil
	})
	return out
}

// change changes all images and makes mirror snapshots, whose ids it returns.
func (c *crew) change(bytes uint64) (snaps []uint64) {
	for i, m := range c.images {
		c.seed++
		m.Fill(c.seed, uint64(i%4)*mib, bytes)
		snaps = append(snaps, m.MirrorSnap())
	}
	return snaps
}

func (c *crew) await(t *testing.T, limit time.Duration, snaps []uint64) {
	t.Helper()
	for i, m := range c.images {
		c.p.waitLong(t, limit, m, snaps[i])
	}
}

// round changes all images and waits until that has arrived everywhere.
func (c *crew) round(t *testing.T, limit time.Duration) {
	t.Helper()
	c.await(t, limit, c.change(mib))
}

// sound checks all that must be so when the dust has settled: one leader, one
// owner for each image, statuses that say so, copies that are right.
func (c *crew) sound(t *testing.T) {
	t.Helper()
	c.waitLeader(t, 60*time.Second)
	within(t, 60*time.Second, "every image to have one owner", func() error {
		_, err := c.owners()
		return err
	})
	within(t, 90*time.Second, "the status of the pool to be good", func() error {
		out, err := c.e.tryRBD(c.e.b, "mirror", "pool", "status", c.p.name, "--format", "json")
		if err != nil {
			return err
		}
		var st struct {
			Summary struct {
				Image  string         `json:"image_health"`
				States map[string]int `json:"states"`
			} `json:"summary"`
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		if st.Summary.Image != "OK" || st.Summary.States["replaying"] != len(c.images) {
			return fmt.Errorf("it is %s", strings.Join(strings.Fields(out), ""))
		}
		return nil
	})
	c.truth(t)
	who := ours
	for _, w := range c.members {
		if w.who != ours {
			who = stock
		}
	}
	for _, m := range c.images {
		c.p.sameBy(t, m, who)
	}
}

// truth checks that the stock tool shows who has which image, and who leads.
func (c *crew) truth(t *testing.T) {
	t.Helper()
	within(t, 60*time.Second, "the stock tool to show how it is", func() error {
		leader, err := c.leader()
		if err != nil {
			return err
		}
		owners, err := c.owners()
		if err != nil {
			return err
		}
		ids := map[string]*worker{}
		for _, w := range c.running() {
			v, err := w.view(c.p.name)
			if err != nil {
				return err
			}
			ids[v.Instance] = w
		}
		for _, m := range c.images {
			st, err := c.p.tryStatus(c.p.b, m.Name())
			if err != nil {
				return err
			}
			if st.State != "up+replaying" || st.DaemonService == nil || ids[st.DaemonService.InstanceID] != owners[m.Name()] {
				return fmt.Errorf("%s is at %s, the tool shows %s at %+v", m.Name(), owners[m.Name()].user, st.State, st.DaemonService)
			}
		}
		out, err := c.e.tryRBD(c.e.b, "mirror", "pool", "status", c.p.name, "--verbose", "--format", "json")
		if err != nil {
			return err
		}
		var st struct {
			Daemons []struct {
				Instance string `json:"instance_id"`
				Leader   bool   `json:"leader"`
			} `json:"daemons"`
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		for _, d := range st.Daemons { // the dead are listed for a while
			if w := ids[d.Instance]; w != nil && d.Leader != (w == leader) {
				return fmt.Errorf("%s leads, the tool shows %+v", leader.user, st.Daemons)
			}
			if ids[d.Instance] != nil {
				delete(ids, d.Instance)
			}
		}
		if len(ids) > 0 {
			return fmt.Errorf("the tool does not show %v, but %+v", ids, st.Daemons)
		}
		return nil
	})
}

// pick returns a running member of a kind that leads, or that does not.
func (c *crew) pick(t *testing.T, who string, leads bool) *worker {
	t.Helper()
	leader := c.waitLeader(t, 60*time.Second)
	for _, w := range c.running() {
		if (w == leader) == leads && (who == "" || w.who == who) {
			return w
		}
	}
	return nil
}

// fault is something that happens to one member in mid-synchronisation.
type fault struct {
	name   string
	leader bool // it leads
	// limit is in which time all images must be replicated again if only ours
	// take part.
	limit time.Duration
	do    func(t *testing.T, c *crew, w *worker)
	// undo brings the member back; nil: it is started anew.
	undo func(t *testing.T, c *crew, w *worker)
	out  bool // it does not count until then
	// fenced: it may come back to life, and must have been shut out before others
	// take over.
	fenced bool
}

// worseFaults are those in which a member does not know what happens to it. Each
// needs members that are prepared for it.
func worseFaults() []fault {
	const killed = 15 * time.Second
	cut := func(t *testing.T, _ *crew, w *worker) { w.line.Cut() }
	mend := func(_ *testing.T, _ *crew, w *worker) { w.line.Mend() }
	behead := func(t *testing.T, _ *crew, w *worker) { beheaded(t, w) }
	bury := func(t *testing.T, c *crew, w *worker) {
		awaken(t, w)
		c.start(w)
	}
	freeze := func(t *testing.T, _ *crew, w *worker) { w.freeze(t) }
	wake := func(t *testing.T, _ *crew, w *worker) {
		// Past the time after which the OSDs forget watches, and the MDSs sessions.
		time.Sleep(65 * time.Second)
		w.wake(t)
	}
	return []fault{
		{name: "leader cut off", leader: true, limit: killed, do: cut, undo: mend, out: true, fenced: true},
		{name: "owner cut off", limit: killed, do: cut, undo: mend, out: true, fenced: true},
		{name: "host of the leader dies before its plugin", leader: true, limit: killed, do: behead, undo: bury, fenced: true},
		{name: "host of an owner dies before its plugin", limit: killed, do: behead, undo: bury, fenced: true},
		{name: "leader frozen for long", leader: true, limit: killed, do: freeze, undo: wake, out: true, fenced: true},
		{name: "owner frozen for long", limit: killed, do: freeze, undo: wake, out: true, fenced: true},
	}
}

func faults() []fault {
	const killed, stopped = 15 * time.Second, 3 * time.Second
	kill := func(t *testing.T, _ *crew, w *worker) { w.killAll(t, w.who) }
	term := func(t *testing.T, _ *crew, w *worker) {
		if err := w.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	freeze := func(t *testing.T, _ *crew, w *worker) { w.freeze(t) }
	wake := func(t *testing.T, c *crew, w *worker) {
		time.Sleep(15 * time.Second) // so that it slept past every timeout of ours
		w.wake(t)
	}
	freezeHost := func(t *testing.T, _ *crew, w *worker) {
		w.asleep = []int{w.Pid()}
		signalEach(t, w.asleep, syscall.SIGSTOP)
	}
	return []fault{
		{name: "leader killed", leader: true, limit: killed, do: kill},
		{name: "owner killed", limit: killed, do: kill},
		{name: "leader stopped", leader: true, limit: stopped, do: term, out: true},
		{name: "owner stopped", limit: stopped, do: term, out: true},
		{name: "leader frozen", leader: true, limit: killed, do: freeze, undo: wake, out: true},
		{name: "owner frozen", limit: killed, do: freeze, undo: wake, out: true},
		{name: "host of the leader frozen", leader: true, limit: 2 * killed, do: freezeHost, undo: wake, out: true},
		{name: "leader blocklisted", leader: true, limit: killed, do: blocklist, undo: func(*testing.T, *crew, *worker) {}},
		{name: "owner blocklisted", limit: killed, do: blocklist, undo: func(*testing.T, *crew, *worker) {}},
	}
}

// blocklist shuts a member's connection for the pool out of the cluster.
func blocklist(t *testing.T, c *crew, w *worker) {
	v, err := w.view(c.p.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range c.e.addresses(t, c.p.b, "rbd_mirror_instance."+v.Instance) {
		mon(t, c.e.b, map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": addr})
	}
}

// shutOut checks that clients can write no more.
func (e *env) shutOut(t *testing.T, c *bed.Cluster, addrs []string) {
	t.Helper()
	if len(addrs) == 0 {
		t.Error("it is not known who was to be shut out")
	}
	list := mon(t, c, map[string]any{"prefix": "osd blocklist ls", "format": "json"})
	for _, addr := range addrs {
		if !strings.Contains(list, addr) {
			t.Errorf("%s was not shut out: %s", addr, list)
		}
	}
}

// untroubled checks that the sockets of all others answer, until done.
func (c *crew) untroubled(t *testing.T, but *worker) (done func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	others := slices.DeleteFunc(c.running(), func(w *worker) bool { return w == but || w.who != ours })
	go func() {
		defer close(ended)
		for {
			for _, w := range others {
				if err := w.answers(); err != nil {
					t.Errorf("the socket of %s: %v", w.user, err)
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	done = sync.OnceFunc(func() { close(stop); <-ended })
	t.Cleanup(done)
	return done
}

// suffer lets a fault happen, and checks what comes of it.
func (c *crew) suffer(t *testing.T, f fault, w *worker, limit time.Duration) {
	t.Helper()
	var took time.Duration
	before := c.e.written(t, c.e.b)
	var addrs []string
	if f.fenced {
		v, err := w.view(c.p.name)
		if err != nil {
			t.Fatal(err)
		}
		addrs = c.e.addresses(t, c.p.b, "rbd_mirror_instance."+v.Instance)
	}
	c.e.midAny(c, c.change(2*mib))
	quiet := c.untroubled(t, w)
	f.do(t, c, w)
	if f.out {
		c.without(w, func() { took = c.served(t, limit) })
	} else {
		took = c.served(t, limit)
	}
	quiet()
	if f.fenced {
		c.e.shutOut(t, c.e.b, addrs)
	}
	if w.line != nil && f.out {
		c.humble(t, w)
	}
	t.Logf("%s (%s): all are replicated again after %v", f.name, w.who, took)
	if pure := !slices.ContainsFunc(c.members, func(w *worker) bool { return w.who != ours }); pure && took > 2*f.limit {
		t.Errorf("%s: that took %v, and should take %v", f.name, took, f.limit)
	}
	begin := time.Now()
	c.round(t, limit)
	t.Logf("%s: changes of all arrive %v later", f.name, time.Since(begin).Round(100*time.Millisecond))
	if f.undo != nil {
		f.undo(t, c, w)
	} else {
		w.stopWithin(t, 30*time.Second)
		c.start(w)
	}
	c.round(t, limit)
	c.sound(t)
	// Each image of 12 MiB got 4 MiB twice at the most; nothing was copied anew.
	if n, most := c.e.written(t, c.e.b)-before, int64(len(c.images))*8*mib; n > most {
		t.Errorf("%s: %d bytes were written for at most %d", f.name, n, most)
	}
}

// humble checks that one that is cut off or was shut out answers, and does not
// claim to be what it is no more.
func (c *crew) humble(t *testing.T, w *worker) {
	t.Helper()
	if w.frozen() {
		return
	}
	if err := w.answers(); err != nil {
		t.Errorf("the socket of %s: %v", w.user, err)
	}
	within(t, 20*time.Second, w.user+" to see that it does not lead", func() error {
		v, err := w.view(c.p.name)
		if err == nil && v.Leader {
			err = fmt.Errorf("it shows %+v", v)
		}
		return err
	})
}

func (w *worker) frozen() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.Pid()))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.HasPrefix(rest, "T")
}

// without does something as if a member did not run.
func (c *crew) without(w *worker, do func()) {
	all := c.members
	c.members = slices.DeleteFunc(slices.Clone(all), func(x *worker) bool { return x == w })
	defer func() { c.members = all }()
	do()
}

// midAny waits a moment for a synchronisation to begin: of small images none
// may be seen.
func (e *env) midAny(c *crew, snaps []uint64) {
	_ = eventually(2*time.Second, func() error {
		for _, m := range c.images {
			list, err := c.p.b.Peek(m.Name())
			if err != nil {
				return err
			}
			if n := len(list); n > 0 && !list[n-1].Synced() {
				return nil
			}
		}
		return fmt.Errorf("none of %v", snaps)
	})
}

// TestWorkers kills one of three daemons and stops another.
func TestWorkers(t *testing.T) {
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrew(t, 6, ours, ours, ours)
	t.Logf("shares: %v", c.shares(t, 60*time.Second))
	all := faults()
	dead, gone := c.pick(t, ours, true), (*worker)(nil)
	c.change(2 * mib)
	all[0].do(t, c, dead)
	t.Logf("killed leader: all are replicated again after %v", c.served(t, 45*time.Second))
	c.round(t, 60*time.Second)
	c.sound(t)
	gone = c.pick(t, ours, false)
	c.change(2 * mib)
	all[3].do(t, c, gone)
	c.without(gone, func() {
		t.Logf("stopped owner: all are replicated again after %v", c.served(t, 30*time.Second))
	})
	c.round(t, 60*time.Second)
	c.sound(t)
}

// TestWorkersSurvive lets everything happen to one of three daemons of ours.
func TestWorkersSurvive(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrew(t, 6, ours, ours, ours)
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			c.in(t)
			c.shares(t, 60*time.Second)
			c.suffer(t, f, c.pick(t, ours, f.leader), 90*time.Second)
		})
	}
}

// TestWorkersLost lets daemons be cut off, frozen for long, and their plugins
// outlive them.
func TestWorkersLost(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	for _, c := range []struct {
		name    string
		prepare func(*worker)
		faults  []fault
	}{
		{"lines", func(w *worker) { e.onLine(t, w, "cephmirror-rbd") }, worseFaults()[:2]},
		{"orphans", func(w *worker) { e.orphaned(t, w, "cephmirror-rbd") }, worseFaults()[2:4]},
		{"sleepers", func(*worker) {}, worseFaults()[4:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			crew := e.newCrewOf(t, 6, c.prepare, ours, ours, ours)
			for _, f := range c.faults {
				t.Run(f.name, func(t *testing.T) {
					crew.in(t)
					crew.shares(t, 60*time.Second)
					crew.suffer(t, f, crew.pick(t, ours, f.leader), 90*time.Second)
				})
			}
		})
	}
}

// TestWorkersCephRestarts restarts monitors and managers of both clusters: no
// image changes hands for that.
func TestWorkersCephRestarts(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrew(t, 6, ours, ours, ours)
	c.shares(t, 60*time.Second)
	for _, side := range e.sites() {
		for _, name := range []string{"mon.a", "mgr.x"} {
			t.Run(name+" of "+side.Name(), func(t *testing.T) {
				c.in(t)
				before, err := c.owners()
				if err != nil {
					t.Fatal(err)
				}
				leader := c.waitLeader(t, 30*time.Second)
				c.e.midAny(c, c.change(2*mib))
				quiet := c.untroubled(t, nil)
				d := side.Daemon(name)
				if err := d.Kill(e.ctx(t), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
				if err := d.Start(); err != nil {
					t.Fatal(err)
				}
				if err := d.WaitReady(e.ctx(t)); err != nil {
					t.Fatal(err)
				}
				c.round(t, 90*time.Second)
				quiet()
				c.sound(t)
				if after, err := c.owners(); err != nil || !maps.Equal(before, after) {
					t.Errorf("images changed hands: %v, %v", after, err)
				}
				if now := c.waitLeader(t, 30*time.Second); now != leader {
					t.Errorf("%s led, now %s does", leader.user, now.user)
				}
			})
		}
	}
}

// TestWorkersDeadPeer gives daemons a second pool, whose peer is dead: neither
// the other pool nor any command suffers.
func TestWorkersDeadPeer(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrew(t, 6, ours, ours, ours)
	bad := e.newPool(t, poolOptions{oneWay: true})
	m, snap := bad.newImage(t, "bad", rbdimage.Options{})
	m.Fill(1, 0, mib)
	bad.waitLong(t, 60*time.Second, m, snap)
	var info struct {
		Peers []struct {
			UUID string `json:"uuid"`
			Host string `json:"mon_host"`
		} `json:"peers"`
	}
	bad.rbdJSON(t, e.b, &info, "mirror", "pool", "info", bad.name, "--all")
	set := func(host string) {
		bad.rbd(t, e.b, "mirror", "pool", "peer", "set", bad.name, info.Peers[0].UUID, "mon-host", host)
	}
	set("[v2:127.0.0.1:1/0,v1:127.0.0.1:2/0]")
	bad.waitCallout(t, "unable to connect to remote cluster")
	snap = m.MirrorSnap()
	for _, f := range []fault{faults()[0], faults()[3]} {
		c.shares(t, 60*time.Second)
		w := c.pick(t, ours, f.leader)
		c.e.midAny(c, c.change(2*mib))
		quiet := c.untroubled(t, w)
		f.do(t, c, w)
		c.without(w, func() { // whose socket is gone
			took := c.served(t, 60*time.Second)
			t.Logf("%s: all are replicated again after %v", f.name, took)
			if took > 2*f.limit {
				t.Errorf("%s: that took %v, and should take %v", f.name, took, f.limit)
			}
			c.round(t, 60*time.Second)
		})
		quiet()
		c.without(w, func() { holds(t, 3*time.Second, "with a dead peer", c.allAnswer) })
		w.stopWithin(t, 30*time.Second)
		c.start(w)
	}
	c.sound(t)
	set(info.Peers[0].Host)
	bad.waitLong(t, 60*time.Second, m, snap)
	bad.same(t, m)
}

func (c *crew) allAnswer() error {
	for _, w := range c.running() {
		if err := w.answers(); err != nil {
			return err
		}
	}
	return nil
}

// TestWorkersLoadAware lets two images have all the work: each daemon gets one.
func TestWorkersLoadAware(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrewOf(t, 6, func(w *worker) { w.args = append(w.args, "--cephmirror-assignment-policy=load-aware") }, ours, ours)
	c.shares(t, 60*time.Second)
	domain := c.domain(t)
	hot := c.images[:2]
	for _, m := range hot {
		c.members[0].order(t, "pin", map[string]any{"domain": domain, "unit": m.Name(), "worker": c.members[0].user})
	}
	together := func() (bool, error) {
		owners, err := c.owners()
		return owners[hot[0].Name()] == owners[hot[1].Name()], err
	}
	within(t, 60*time.Second, "both to be where they are pinned, and each daemon to have half", func() error {
		is, err := together()
		if got := c.shares(t, 60*time.Second); err == nil && (!is || got[c.members[0].user] != len(c.images)/2) {
			err = fmt.Errorf("they are not, the shares are %v", got)
		}
		return err
	})
	for _, m := range hot {
		c.members[0].order(t, "unpin", map[string]any{"domain": domain, "unit": m.Name()})
	}
	begin := time.Now()
	within(t, 180*time.Second, "each daemon to have one", func() error {
		for _, m := range hot {
			c.seed++
			m.Fill(c.seed, 0, 2*mib)
			m.MirrorSnap()
		}
		time.Sleep(time.Second)
		is, err := together()
		if err == nil && is {
			err = errText("one has both")
		}
		return err
	})
	t.Logf("each has one after %v", time.Since(begin).Round(time.Second))
	c.round(t, 60*time.Second)
	c.sound(t)
}

// order sends a command about the assignment to a member.
func (w *worker) order(t *testing.T, verb string, args map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := admin.Call(ctx, w.sock, "cephmirror "+verb, args, "json")
	if err != nil || strings.HasPrefix(string(out), "ERROR") {
		t.Fatalf("cephmirror %s %v: %v %s", verb, args, err, out)
	}
}

// domain is how the pool is called in commands about the assignment.
func (c *crew) domain(t *testing.T) (domain string) {
	t.Helper()
	within(t, 20*time.Second, "a leader's domain", func() error {
		for _, w := range c.members {
			out, err := w.call("cephmirror status")
			if err != nil {
				return err
			}
			var st struct {
				Leads []struct {
					Domain string `json:"domain"`
				} `json:"leads"`
			}
			mustJSON(t, string(out), &st)
			for _, l := range st.Leads {
				if strings.HasPrefix(l.Domain, c.p.name+"/") {
					domain = l.Domain
					return nil
				}
			}
		}
		return errText("nobody leads")
	})
	return domain
}

// TestWorkersObey drains a daemon, and pins an image.
func TestWorkersObey(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrew(t, 4, ours, ours)
	c.shares(t, 60*time.Second)
	drained, other := c.members[0], c.members[1]
	obeyed := func(what string, good func(owners map[string]*worker) bool) {
		t.Helper()
		within(t, 60*time.Second, what, func() error {
			owners, err := c.owners()
			if err == nil && !good(owners) {
				err = fmt.Errorf("the owners are %v", owners)
			}
			return err
		})
	}
	drained.order(t, "drain", nil)
	obeyed("the drained one to have nothing", func(owners map[string]*worker) bool {
		for _, w := range owners {
			if w == drained {
				return false
			}
		}
		return true
	})
	c.round(t, 60*time.Second)
	drained.order(t, "serve", nil)
	obeyed("it to have half again", func(owners map[string]*worker) bool {
		n := 0
		for _, w := range owners {
			if w == drained {
				n++
			}
		}
		return n == 2
	})
	domain := c.domain(t)
	for _, m := range c.images {
		other.order(t, "pin", map[string]any{"domain": domain, "unit": m.Name(), "worker": drained.user})
	}
	obeyed("all to be where they are pinned", func(owners map[string]*worker) bool {
		for _, w := range owners {
			if w != drained {
				return false
			}
		}
		return true
	})
	c.round(t, 60*time.Second)
	for _, m := range c.images {
		other.order(t, "unpin", map[string]any{"domain": domain, "unit": m.Name()})
	}
	c.shares(t, 60*time.Second)
	c.sound(t)
}

// in makes failures those of a subtest.
func (c *crew) in(t *testing.T) {
	for i, m := range c.images {
		c.images[i] = m.For(t)
	}
}

// TestWorkersMixed lets the same happen to one of two daemons of ours and a
// stock one.
func TestWorkersMixed(t *testing.T) {
	needLong(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	e := need(t)
	c := e.newCrew(t, 6, stock, ours, ours)
	for _, f := range faults() {
		for _, who := range []string{ours, stock} {
			t.Run(f.name+" "+who, func(t *testing.T) {
				if who == stock && f.undo != nil {
					t.Skip("the stock daemon does not survive that")
				}
				c.in(t)
				w := c.pick(t, who, f.leader)
				if w == nil && f.leader {
					// The others are away until one of the kind leads.
					var away []*worker
					for _, m := range c.running() {
						if m.who != who {
							m.stop(t)
							away = append(away, m)
						}
					}
					w = c.waitLeader(t, 90*time.Second)
					for _, m := range away {
						c.start(m)
					}
					c.waitLeader(t, 90*time.Second)
				}
				if w == nil {
					t.Skip("there is none")
				}
				c.suffer(t, f, w, 150*time.Second)
			})
		}
	}
	t.Logf("shares: %v", c.shares(t, 150*time.Second))
}
