package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/admin"
	"cephmirror/test/rbdimage"
)

// Several daemons serve one pool. Whatever happens to one of them, every image
// has exactly one owner soon after, and goes on where it was.

// worker is one of several daemons on b.
type worker struct {
	*daemon
	who, user string
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
	c := &crew{t: t, e: e, p: e.newPool(t, poolOptions{oneWay: true}), seed: uint64(time.Now().UnixNano())}
	for i, who := range kinds {
		user := fmt.Sprintf("crew%d", i)
		if err := e.b.AddRBDMirrorUser(e.ctx(t), user); err != nil {
			t.Fatal(err)
		}
		w := &worker{who: who, user: user}
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
	w.daemon = c.e.startRBDAs(c.t, w.who, c.e.b, w.user, args...)
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
	var out map[string]int
	within(t, limit, "every image to have one owner, and everybody some", func() error {
		owners, err := c.owners()
		if err != nil {
			return err
		}
		out = map[string]int{}
		for _, w := range owners {
			out[w.user]++
		}
		if len(out) < len(c.running()) {
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

// signalAll sends a signal to host and plugin.
func (w *worker) signalAll(t *testing.T, sig syscall.Signal) {
	t.Helper()
	pids := w.Family()
	if w.who == ours && sig == syscall.SIGSTOP {
		pids = append(pids, w.plugin(t))
	}
	for _, pid := range slices.Compact(slices.Sorted(slices.Values(pids))) {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
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
}

func faults() []fault {
	const killed, stopped = 15 * time.Second, 3 * time.Second
	kill := func(t *testing.T, _ *crew, w *worker) { w.killAll(t, w.who) }
	term := func(t *testing.T, _ *crew, w *worker) {
		if err := w.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	freeze := func(t *testing.T, _ *crew, w *worker) {
		// What started it stays alive: it would not be told of the end.
		w.signalAll(t, syscall.SIGSTOP)
	}
	wake := func(t *testing.T, c *crew, w *worker) {
		time.Sleep(15 * time.Second) // so that it slept past every timeout
		for _, pid := range w.Family() {
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
	}
	freezeHost := func(t *testing.T, _ *crew, w *worker) {
		if err := syscall.Kill(w.Pid(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
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

// suffer lets a fault happen, and checks what comes of it.
func (c *crew) suffer(t *testing.T, f fault, w *worker, limit time.Duration) {
	t.Helper()
	var took time.Duration
	before := c.e.written(t, c.e.b)
	c.e.midAny(c, c.change(2*mib))
	f.do(t, c, w)
	if f.out {
		c.without(w, func() { took = c.served(t, limit) })
	} else {
		took = c.served(t, limit)
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
	var domain string
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
					// Whoever leads makes way until one of the kind does.
					within(t, 90*time.Second, "one of "+who+" to lead", func() error {
						l, err := c.leader()
						if err != nil {
							return err
						}
						if l.who == who {
							w = l
							return nil
						}
						if _, err := l.call("rbd mirror leader release"); err != nil {
							return err
						}
						time.Sleep(12 * time.Second)
						return fmt.Errorf("%s leads", l.user)
					})
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
