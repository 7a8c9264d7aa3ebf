package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/test/bed"
	"cephmirror/test/rbdimage"
)

// freeze stops all daemons of a cluster, and returns what lets them go on; the
// end of the test does it too.
func (e *env) freeze(t *testing.T, c *bed.Cluster) (thaw func()) {
	t.Helper()
	if err := c.Signal(e.ctx(t), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := c.Signal(context.Background(), syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// answers checks that the admin socket answers at once.
func (d *daemon) answers() error {
	for _, command := range []string{"version", "rbd mirror status", "counter dump"} {
		begun := time.Now()
		if _, err := d.call(command); err != nil {
			return err
		}
		if took := time.Since(begun); took > 2*time.Second {
			return fmt.Errorf("%s took %v", command, took)
		}
	}
	return nil
}

// callouts are what `rbd mirror pool status --verbose` says of the latest
// daemon: others that have ended are listed for a while.
func (p *rbdPool) callouts(c *bed.Cluster) (string, error) {
	out, err := p.e.tryRBD(c, "mirror", "pool", "status", p.name, "--verbose", "--format", "json")
	if err != nil {
		return "", err
	}
	var s struct {
		Daemons []struct {
			Service  string          `json:"service_id"`
			Health   string          `json:"health"`
			Callouts json.RawMessage `json:"callouts"`
		} `json:"daemons"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return "", err
	}
	latest, text := 0, ""
	for _, d := range s.Daemons {
		id, err := strconv.Atoi(d.Service)
		if err != nil {
			return "", fmt.Errorf("%w in %s", err, out)
		}
		if id > latest {
			latest, text = id, ""
			if len(d.Callouts) > 0 {
				text = d.Health + " " + string(d.Callouts)
			}
		}
	}
	return text, nil
}

func (p *rbdPool) waitCallout(t *testing.T, text string) {
	t.Helper()
	within(t, 45*time.Second, "the callout "+text, func() error {
		got, err := p.callouts(p.e.b)
		if err == nil && !strings.Contains(got, text) {
			err = fmt.Errorf("the callouts are %q", got)
		}
		return err
	})
}

// TestRBDRemoteDown begins with a peer that does not answer, and one that
// refuses.
func TestRBDRemoteDown(t *testing.T) {
	e := need(t)
	notStock(t, "an unreachable peer keeps everybody waiting")
	good, bad := e.newPool(t, poolOptions{}), e.newPool(t, poolOptions{})
	var peer struct {
		Peers []struct {
			UUID string `json:"uuid"`
			Host string `json:"mon_host"`
		} `json:"peers"`
	}
	bad.rbdJSON(t, e.b, &peer, "mirror", "pool", "info", bad.name, "--all")
	set := func(host string) {
		bad.rbd(t, e.b, "mirror", "pool", "peer", "set", bad.name, peer.Peers[0].UUID, "mon-host", host)
	}
	set("[v2:127.0.0.1:1/0,v1:127.0.0.1:2/0]")
	m, snap := good.newImage(t, "good", rbdimage.Options{})
	n, other := bad.newImage(t, "bad", rbdimage.Options{})
	thaw := e.freeze(t, e.a)
	d := e.startRBD(t, ours, e.b)
	holds(t, 8*time.Second, "with both peers out of reach", d.answers)
	good.waitCallout(t, "unable to connect to remote cluster")
	begun := time.Now()
	d.stopWithin(t, 20*time.Second)
	t.Logf("the daemon ended after %v", time.Since(begun).Round(100*time.Millisecond))
	d.start(t)
	thaw()
	good.waitLong(t, 60*time.Second, m, snap)
	good.waitSame(t, m)
	bad.waitCallout(t, "unable to connect to remote cluster")
	holds(t, 3*time.Second, "with one peer out of reach", d.answers)
	set(peer.Peers[0].Host)
	bad.waitLong(t, 60*time.Second, n, other)
	bad.same(t, n)
	within(t, 20*time.Second, "the callout to go", func() error {
		got, err := bad.callouts(e.b)
		if err == nil && strings.Contains(got, "unable to connect") {
			err = errors.New(got)
		}
		return err
	})
}

// TestRBDRemoteFrozen freezes the remote in the middle of a synchronisation.
func TestRBDRemoteFrozen(t *testing.T) {
	e := need(t)
	notStock(t, "it waits")
	p, d := e.mirroredSlowly(t)
	m := slowly(t, p.a, "image")
	snap := m.Mirror()
	p.midRBD(t, m, snap)
	thaw := e.freeze(t, e.a)
	holds(t, 12*time.Second, "with a frozen peer", d.answers)
	thaw()
	p.waitLong(t, 90*time.Second, m, snap)
	p.waitSame(t, m)

	t.Run("stopping the daemon", func(t *testing.T) {
		m.Fill(2, 0, 90*mib)
		snap := m.MirrorSnap()
		p.midRBD(t, m, snap)
		thaw := e.freeze(t, e.a)
		begun := time.Now()
		d.stopWithin(t, 30*time.Second)
		t.Logf("the daemon ended after %v", time.Since(begun).Round(100*time.Millisecond))
		thaw()
		d.start(t)
		p.waitLong(t, 90*time.Second, m, snap)
		p.same(t, m)
	})
}

// TestRBDLocalFrozen freezes the daemon's own cluster for a while.
func TestRBDLocalFrozen(t *testing.T) {
	e := need(t)
	notStock(t, "it waits")
	needLong(t)
	p, d := e.mirroredSlowly(t)
	m := slowly(t, p.a, "image")
	snap := m.Mirror()
	p.midRBD(t, m, snap)
	thaw := e.freeze(t, e.b)
	holds(t, 12*time.Second, "with its own cluster frozen", d.answers)
	thaw()
	p.waitLong(t, 120*time.Second, m, snap)
	p.waitSame(t, m)
}

// TestRBDCephRestarts restarts daemons of Ceph in the middle of a
// synchronisation.
func TestRBDCephRestarts(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.mirroredSlowly(t)
	m := slowly(t, p.a, "image")
	p.wait(t, m, m.Mirror())
	for i, c := range []struct {
		name string
		*bed.Daemon
	}{
		{"OSD of the copies", e.b.Daemon("osd.0")}, {"OSD of the source", e.a.Daemon("osd.0")},
		{"monitor of the copies", e.b.Daemon("mon.a")}, {"monitor of the source", e.a.Daemon("mon.a")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if i%2 == 1 {
				needLong(t)
			}
			m.Fill(uint64(i), 0, 90*mib)
			snap := m.MirrorSnap()
			p.midRBD(t, m, snap)
			if err := c.Restart(e.ctx(t), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitReady(e.ctx(t)); err != nil {
				t.Fatal(err)
			}
			p.waitLong(t, 90*time.Second, m, snap)
			p.waitSame(t, m)
		})
	}
}

// addresses are the clients that watch an object, apart from the tests' own.
func (e *env) addresses(t *testing.T, p rbdimage.Pool, object string) (list []string) {
	t.Helper()
	c := e.cluster(p)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := c.Command(ctx, "rados", "--cluster", c.Name(), "-p", p.Name, "listwatchers", object).Output()
	if err != nil {
		t.Fatalf("watchers of %s: %v %s", object, err, stderr(err))
	}
	for line := range strings.Lines(string(out)) {
		// watcher=127.0.0.1:0/123 client.4 cookie=5
		if addr, _, ok := strings.Cut(strings.TrimPrefix(line, "watcher="), " "); ok {
			list = append(list, addr)
		}
	}
	return list
}

// TestRBDBlocklisted blocklists the daemon's connections.
func TestRBDBlocklisted(t *testing.T) {
	needLong(t)
	e := need(t)
	p, d := e.mirroredSlowly(t)
	m := slowly(t, p.a, "image")
	p.wait(t, m, m.Mirror())
	for i, side := range []rbdimage.Pool{p.b, p.a} {
		t.Run("on "+side.Client.Name(), func(t *testing.T) {
			if side == p.b {
				notStock(t, "it needs a restart at times")
			}
			m.Fill(uint64(i+2), 0, 90*mib)
			snap := m.MirrorSnap()
			p.midRBD(t, m, snap)
			list := e.addresses(t, side, "rbd_mirroring")
			if len(list) == 0 {
				t.Fatal("nobody watches")
			}
			for _, addr := range list {
				mon(t, e.cluster(side), map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": addr})
			}
			if err := d.answers(); err != nil {
				t.Error(err)
			}
			p.waitLong(t, 60*time.Second, m, snap)
			copy := p.waitSame(t, m)
			p.waitIdle(t, copy)
		})
	}
}

// TestRBDSourceTrouble deletes or demotes a source in the middle of a
// synchronisation, beside one that must not suffer.
func TestRBDSourceTrouble(t *testing.T) {
	needLong(t)
	e := need(t)
	p, d := e.mirroredSlowly(t)
	good, snap := p.newImage(t, "good", rbdimage.Options{})
	p.wait(t, good, snap)
	fine := func(t *testing.T) {
		t.Helper()
		good.Fill(uint64(time.Now().UnixNano()), 0, mib)
		begun := time.Now()
		p.waitSame(t, good)
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("an image beside it took %v", took)
		}
	}
	t.Run("deleted", func(t *testing.T) {
		m := slowly(t, p.a, "deleted")
		p.midRBD(t, m, m.Mirror())
		m.Remove()
		fine(t)
		within(t, 60*time.Second, "the copy to be removed", func() error {
			there, err := p.b.Exists(m.Name())
			if err == nil && there {
				err = errors.New("it is there")
			}
			return err
		})
	})
	t.Run("demoted", func(t *testing.T) {
		m := slowly(t, p.a, "demoted")
		p.wait(t, m, m.Mirror())
		m.Fill(2, 0, 90*mib)
		p.midRBD(t, m, m.MirrorSnap())
		copy := p.waitLong(t, 60*time.Second, m, m.Demote())
		fine(t)
		p.same(t, m)
		p.promote(t, copy)
		if tested() == ours {
			p.checkMaps(t, copy)
		}
	})
	t.Run("disabled and enabled", func(t *testing.T) {
		m := slowly(t, p.a, "again")
		p.midRBD(t, m, m.Mirror())
		m.Unmirror()
		id := m.Mirror()
		p.waitLong(t, 90*time.Second, m, id)
		p.same(t, m)
		fine(t)
	})
	t.Run("a name that is taken", func(t *testing.T) {
		foreign := rbdimage.Create(t, p.b, "taken", rbdimage.Options{Size: 4 * mib})
		foreign.Fill(1, 0, 4*mib)
		want, err := rbdimage.Sum(foreign.At(rbdimage.Head))
		if err != nil {
			t.Fatal(err)
		}
		m, id := p.newImage(t, "taken", rbdimage.Options{})
		m.Fill(2, 0, mib)
		p.waitPeer(t, m, "error", "")
		fine(t)
		if got, err := rbdimage.Sum(foreign.At(rbdimage.Head)); err != nil || got != want {
			t.Errorf("somebody else's image changed: %s, %v", got, err)
		}
		foreign.Remove()
		p.waitLong(t, 60*time.Second, m, id)
		p.waitSame(t, m)
	})
	t.Run("parent that is not mirrored", func(t *testing.T) {
		notStock(t, "the text names nothing")
		parent, _ := p.newImage(t, "parent", rbdimage.Options{})
		parent.Fill(1, 0, 10*mib)
		parent.Snap("base")
		parent.Protect("base")
		child := parent.Clone("base", p.a, "child", rbdimage.Options{CloneVersion: 2})
		id := child.Mirror()
		// The parent's snapshot has not been mirrored yet.
		p.waitPeer(t, child, "error", "parent")
		waitUnmade(t, d, p.name, "does not exist: the copy of the parent "+parent.Spec())
		fine(t)
		parent.MirrorSnap()
		p.waitLong(t, 60*time.Second, child, id)
		p.same(t, child)
		// Somebody disables the parent behind the tools' back.
		if err := p.a.With(func(ctx *rados.IOContext) error {
			return ctx.RmOmapKeys("rbd_mirroring", []string{"image_" + parent.ID()})
		}); err != nil {
			t.Fatal(err)
		}
		other := parent.Clone("base", p.a, "other child", rbdimage.Options{CloneVersion: 2})
		other.Fill(1, 0, mib)
		if _, err := e.tryRBD(e.a, "mirror", "image", "enable", other.Spec(), "snapshot"); err != nil {
			t.Skipf("the stock tool does not let it happen: %v", err)
		}
		p.waitPeer(t, other, "error", "parent")
		waitUnmade(t, d, p.name, "does not exist: the remote image "+parent.Spec()+" is not mirrored")
		fine(t)
	})
}

// waitUnmade waits until the daemon tells what is wrong with an image that b does
// not have yet. The stock tools there tell of no image without a record.
func waitUnmade(t *testing.T, d *daemon, pool, text string) {
	t.Helper()
	within(t, 45*time.Second, "the daemon to tell of "+text, func() error {
		out, err := d.call("rbd mirror status " + pool + " a")
		if err == nil && !strings.Contains(string(out), text) {
			err = fmt.Errorf("the status is %s", out)
		}
		return err
	})
}

// waitPeer waits until the site of a source is told a state of its copy.
func (p *rbdPool) waitPeer(t *testing.T, m rbdimage.Maker, state, text string) {
	t.Helper()
	within(t, 45*time.Second, fmt.Sprintf("%s of the other site to be %s (%s)", m.Spec(), state, text), func() error {
		st, de, err := p.peer(m.Pool(), m.Name())
		if err == nil && (!strings.HasSuffix(st, state) || !strings.Contains(de, text)) {
			err = fmt.Errorf("it is %s (%s)", st, de)
		}
		if err == nil {
			t.Logf("it is %s (%s)", st, de)
		}
		return err
	})
}

// TestRBDPeerKey takes the peer's key away.
func TestRBDPeerKey(t *testing.T) {
	e := need(t)
	p, d := e.mirrored(t, poolOptions{})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	const user = "client.rbd-mirror-peer"
	key := strings.TrimSpace(mon(t, e.a, map[string]any{"prefix": "auth print-key", "entity": user, "format": "plain"}))
	// Other tests need the user: here it gets a wrong key.
	var info struct {
		Peers []struct {
			UUID string `json:"uuid"`
		} `json:"peers"`
	}
	p.rbdJSON(t, e.b, &info, "mirror", "pool", "info", p.name)
	uuid := info.Peers[0].UUID
	file := t.TempDir() + "/key"
	setKey := func(k string) {
		t.Helper()
		writeFile(t, file, k)
		p.rbd(t, e.b, "mirror", "pool", "peer", "set", p.name, uuid, "key-file", file)
	}
	wrong := strings.TrimSpace(mon(t, e.a, map[string]any{"prefix": "auth get-or-create-key", "entity": "client.nobody", "format": "plain"}))
	setKey(wrong)
	p.waitCallout(t, "unable to connect to remote cluster")
	m.Fill(2, 0, 5*mib)
	snap = m.MirrorSnap()
	if err := d.answers(); err != nil {
		t.Error(err)
	}
	setKey(key)
	p.waitLong(t, 60*time.Second, m, snap)
	p.same(t, m)
	for _, secret := range []string{wrong, key} {
		if strings.Contains(tail(d.log, 1e6)+tail(d.LogPath(), 1e6), secret) {
			t.Error("a key is in the log")
		}
	}
}

// TestRBDFull fills the pool of the copies.
func TestRBDFull(t *testing.T) {
	e := need(t)
	notStock(t, "its writes wait for room, and so does all else")
	needLong(t)
	p, d := e.mirrored(t, poolOptions{})
	q := e.newPool(t, poolOptions{})
	m, snap := p.newImage(t, "image", rbdimage.Options{Size: 64 * mib})
	p.wait(t, m, snap)
	m.Fill(1, 0, 5*mib) // more than the quota
	p.waitSame(t, m)
	good, snap := q.newImage(t, "good", rbdimage.Options{})
	q.waitLong(t, 60*time.Second, good, snap)
	quota := func(n string) {
		t.Helper()
		mon(t, e.b, map[string]any{"prefix": "osd pool set-quota", "pool": p.name, "field": "max_bytes", "val": n})
	}
	quota("1000000")
	within(t, 45*time.Second, "the pool to be full", func() error {
		if out := mon(t, e.b, map[string]any{"prefix": "osd pool ls", "detail": "detail", "format": "plain"}); !strings.Contains(out, "full_quota") {
			return errors.New("it is not")
		}
		return nil
	})
	m.Fill(2, 0, 40*mib)
	snap = m.MirrorSnap()
	within(t, 45*time.Second, "the reason to be shown", func() error {
		if p.arrived(m, snap) == nil {
			t.Fatal("the snapshot arrived")
		}
		state, text, err := p.peer(p.a, m.Name())
		if err != nil {
			return err
		}
		if !strings.Contains(strings.ToLower(text), "full") && !strings.Contains(text, "quota") && !strings.Contains(text, "space") {
			return fmt.Errorf("it is %s (%s)", state, text)
		}
		t.Logf("it is %s (%s)", state, text)
		return nil
	})
	if err := d.answers(); err != nil {
		t.Error(err)
	}
	good.Fill(1, 0, mib)
	q.waitSame(t, good)
	quota("0")
	p.waitLong(t, 60*time.Second, m, snap)
	p.same(t, m)
}

// TestRBDOtherSideUnprepared has pools that the other side lacks, or does not
// mirror.
func TestRBDOtherSideUnprepared(t *testing.T) {
	e := need(t)
	p := e.newPool(t, poolOptions{})
	var info struct {
		Peers []struct {
			Client string `json:"client_name"`
			Host   string `json:"mon_host"`
			Key    string `json:"key"`
		} `json:"peers"`
	}
	p.rbdJSON(t, e.b, &info, "mirror", "pool", "info", p.name, "--all")
	peer := info.Peers[0]
	lone := p.name + "-lone"
	e.makePool(t, e.b, lone)
	q := &rbdPool{e: e, name: lone, a: p.a, b: p.b}
	q.a.Name, q.b.Name = lone, lone
	q.rbd(t, e.b, "mirror", "pool", "enable", lone, "image")
	file := t.TempDir() + "/key"
	writeFile(t, file, peer.Key)
	q.rbd(t, e.b, "mirror", "pool", "peer", "add", lone, peer.Client+"@a",
		"--remote-mon-host", peer.Host, "--remote-key-file", file, "--direction", "rx-only")
	d := e.startRBD(t, tested(), e.b)
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.waitLong(t, 60*time.Second, m, snap)
	p.waitSame(t, m)
	if tested() == ours {
		q.waitCallout(t, "unable to access remote pool")
		if err := d.answers(); err != nil {
			t.Error(err)
		}
	}
	// The pool comes, at first without mirroring.
	e.makePool(t, e.a, lone)
	time.Sleep(3 * time.Second)
	if tested() == ours {
		if got, err := q.callouts(e.b); err != nil || got == "" {
			t.Errorf("nothing is said of a pool without mirroring: %q, %v", got, err)
		} else {
			t.Logf("of a pool without mirroring: %s", got)
		}
	}
	q.rbd(t, e.a, "mirror", "pool", "enable", lone, "image")
	within(t, 60*time.Second, "a to know of b", func() error {
		var info struct {
			Peers []struct {
				UUID string `json:"mirror_uuid"`
			} `json:"peers"`
		}
		q.rbdJSON(t, e.a, &info, "mirror", "pool", "info", lone)
		if len(info.Peers) != 1 || info.Peers[0].UUID == "" {
			return fmt.Errorf("%+v", info)
		}
		return nil
	})
	n, snap := q.newImage(t, "image", rbdimage.Options{})
	n.Fill(1, 0, 5*mib)
	q.waitLong(t, 60*time.Second, n, snap)
	q.waitSame(t, n)
}

// TestRBDDamaged has damaged records of an image, beside one that is well.
func TestRBDDamaged(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	d := e.startRBD(t, tested(), e.b)
	good, snap := p.newImage(t, "good", rbdimage.Options{})
	p.wait(t, good, snap)
	garbage := []byte("\xff") // too short for anything
	// damage overwrites something while no daemon runs, and returns what
	// mends it.
	type patch func(t *testing.T, m rbdimage.Maker, snap uint64) (mend func())
	omap := func(side *rbdimage.Pool, key string) patch {
		return func(t *testing.T, m rbdimage.Maker, snap uint64) func() {
			object := "rbd_header." + m.In(*side).For(t).ID()
			var old map[string][]byte
			err := side.With(func(ctx *rados.IOContext) (err error) {
				if old, err = ctx.GetOmapValues(object, "", key, 100); err != nil {
					return err
				}
				if len(old) == 0 {
					return fmt.Errorf("no key %s", key)
				}
				bad := make(map[string][]byte)
				for k := range old {
					bad[k] = garbage
				}
				return ctx.SetOmap(object, bad)
			})
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := side.With(func(ctx *rados.IOContext) error { return ctx.SetOmap(object, old) }); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	state := func(bad []byte) patch {
		return func(t *testing.T, m rbdimage.Maker, snap uint64) func() {
			object := fmt.Sprintf("rbd_mirror_snapshot.%s.%d.0", m.ID(), snap)
			var old []byte
			err := p.a.With(func(ctx *rados.IOContext) error {
				st, err := ctx.Stat(object)
				if err != nil {
					return err
				}
				old = make([]byte, st.Size)
				if _, err := ctx.Read(object, old, 0); err != nil {
					return err
				}
				if len(bad) == 0 {
					return ctx.Truncate(object, 0)
				}
				return ctx.WriteFull(object, bad)
			})
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := p.a.With(func(ctx *rados.IOContext) error { return ctx.WriteFull(object, old) }); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, c := range []struct {
		name   string
		damage patch
	}{
		{"image state", state(garbage)},
		{"empty image state", state(nil)},
		{"prefix of the source", omap(&p.a, "object_prefix")},
		{"snapshot of the source", omap(&p.a, "snapshot_")},
		{"snapshot of the copy", omap(&p.b, "snapshot_")},
		{"features of the copy", omap(&p.b, "features")},
	} {
		t.Run(c.name, func(t *testing.T) {
			notStock(t, "it may end by that")
			if !slices.Contains([]string{"image state", "snapshot of the copy"}, c.name) {
				needLong(t)
			}
			m, snap := p.newImage(t, c.name, rbdimage.Options{})
			m.Fill(1, 0, 5*mib)
			p.wait(t, m, snap)
			d.stop(t)
			m.Fill(2, mib, 5*mib)
			snap = m.MirrorSnap()
			mend := c.damage(t, m, snap)
			d.start(t)
			spec, gid := m.Name(), ""
			// The other site's tool may be unable to open the image: its
			// record of the status is asked for.
			within(t, 45*time.Second, "the error to be shown", func() error {
				for _, side := range e.sites() {
					out, err := e.tryRBD(side, "mirror", "pool", "status", p.name, "--verbose", "--format", "json")
					if err != nil {
						continue
					}
					if i := strings.Index(out, `"state":"up+error"`); i >= 0 {
						gid = out[i:min(len(out), i+300)]
						return nil
					}
				}
				return errors.New("it is not")
			})
			t.Logf("%s: %s", spec, gid)
			good.Fill(uint64(time.Now().UnixNano()), 0, mib)
			p.waitSame(t, good)
			if err := d.answers(); err != nil {
				t.Error(err)
			}
			mend()
			p.waitLong(t, 60*time.Second, m, snap)
			p.same(t, m)
		})
	}
}

// TestRBDPruning makes more mirror snapshots than the primary keeps while no
// daemon runs.
func TestRBDPruning(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	d := e.startRBD(t, tested(), e.b)
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	p.wait(t, m, snap)
	p.waitSame(t, m)
	d.stop(t)
	for i := range 8 {
		m.Fill(uint64(i), uint64(i)*2*mib, mib)
		if i%3 == 0 {
			m.Snap(fmt.Sprintf("user%d", i))
		}
		snap = m.MirrorSnap()
	}
	d.start(t)
	p.waitLong(t, 60*time.Second, m, snap)
	copy := p.waitSame(t, m)
	p.waitIdle(t, copy)
	m.MirrorSnap()
	p.waitSame(t, m)
	within(t, 20*time.Second, "old mirror snapshots to be removed", func() error {
		if n := mirrorSnaps(m); n > 3 {
			return fmt.Errorf("%d on the source: %+v", n, m.Snaps())
		}
		if n := mirrorSnaps(copy); n > 1 {
			return fmt.Errorf("%d on the copy: %+v", n, copy.Snaps())
		}
		return nil
	})
	names := []string{}
	for _, s := range copy.Snaps() {
		if s.Kind == rbdimage.User {
			names = append(names, s.Name)
		}
	}
	if !slices.Equal(names, []string{"user0", "user3", "user6"}) {
		t.Errorf("user snapshots of the copy: %v", names)
	}
}
