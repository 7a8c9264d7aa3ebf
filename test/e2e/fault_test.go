package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/test/bed"
	"cephmirror/test/cephtree"
)

// recovery is how long mirroring may take to go on once a fault is gone.
const recovery = 45 * time.Second

// load makes a tree that takes some seconds to copy.
func load(m cephtree.Maker, seed uint64) {
	m.Flat("many", 500, 2000)
	m.Mkdir("large")
	for i := range 10 {
		m.Write(fmt.Sprintf("large/%d", i), cephtree.Data(seed+uint64(i), 12*mib))
	}
}

// midSync waits until part of the tree has arrived.
func (e *env) midSync(t *testing.T, m cephtree.Maker) {
	t.Helper()
	within(t, patience, "the synchronisation to be under way", func() error {
		names := 0
		for _, d := range []string{"/many", "/large"} {
			dir, err := e.dst.OpenDir(m.Root() + d)
			if err != nil {
				continue
			}
			for {
				entry, err := dir.ReadDir()
				if err != nil || entry == nil {
					break
				}
				names++
			}
			_ = dir.Close()
		}
		if names < 20 {
			return fmt.Errorf("%d names", names)
		}
		return nil
	})
	if err := e.arrived(m.Root(), "s1"); err == nil {
		t.Log("the synchronisation was done too soon to disturb it")
	}
}

// TestKilled ends processes in the middle of a synchronisation.
func TestKilled(t *testing.T) {
	e := need(t)
	prepare := func(t *testing.T) (*daemon, cephtree.Maker) {
		d := e.mirror(t)
		m := e.newDir(t)
		load(m, 1)
		m.Snap("s1")
		e.track(t, m.Root())
		e.midSync(t, m)
		return d, m
	}
	t.Run("plugin", func(t *testing.T) {
		d, m := prepare(t)
		if err := syscall.Kill(d.plugin(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// The host goes on by itself, and soon: nobody waits for the MDS to
		// forget the dead plugin's session.
		e.waitLong(t, recovery, m, "s1")
		e.same(t, m, "s1")
		e.noneLeft(t)
	})
	t.Run("host", func(t *testing.T) {
		d, m := prepare(t)
		d.kill(t)
		d.start(t)
		begun := time.Now()
		e.waitLong(t, 60*time.Second, m, "s1")
		t.Logf("went on and done %v after the new start", time.Since(begun).Round(100*time.Millisecond))
		e.same(t, m, "s1")
		e.noneLeft(t)
	})
	t.Run("both several times", func(t *testing.T) {
		needLong(t)
		d, m := prepare(t)
		for i := range 3 {
			if i%2 == 0 {
				if err := syscall.Kill(d.plugin(t), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				d.kill(t)
				d.start(t)
			}
			time.Sleep(3 * time.Second)
		}
		e.waitLong(t, 90*time.Second, m, "s1")
		m.Write("many/000001", []byte("changed"))
		m.Snap("s2")
		e.waitLong(t, recovery, m, "s1", "s2")
		e.same(t, m, "s1", "s2")
		e.noneLeft(t)
	})
	t.Run("in an increment", func(t *testing.T) {
		d := e.mirror(t)
		m := e.newDir(t)
		m.Write("f", nil)
		m.Snap("s0")
		e.track(t, m.Root())
		e.wait(t, m, "s0")
		load(m, 1)
		m.Snap("s1")
		e.midSync(t, m)
		if err := syscall.Kill(d.plugin(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Other clients of the source need what the dead plugin had cached. The
		// MDS itself would make them wait for a minute.
		begun := time.Now()
		m.RemoveAll("large/3")
		m.Rename("many", "more")
		m.Snap("s2")
		took := time.Since(begun)
		t.Logf("changes to the source took %v", took.Round(100*time.Millisecond))
		if took > 30*time.Second {
			t.Error("other clients of the source wait for the dead plugin")
		}
		e.waitLong(t, recovery, m, "s0", "s1", "s2")
		e.same(t, m, "s0", "s1", "s2")
	})
}

// TestKilledRenaming ends the plugin when directories have got their new names.
func TestKilledRenaming(t *testing.T) {
	e := need(t)
	needLong(t)
	d := e.mirror(t)
	m := e.newDir(t)
	load(m, 1)
	m.MkdirAll("top/a/b")
	m.Write("top/a/b/f", cephtree.Data(1, mib))
	m.Write("top/a/sneaky", cephtree.Data(2, 5000))
	m.Snap("s1")
	e.track(t, m.Root())
	e.waitLong(t, recovery, m, "s1")
	m.Rename("many", "more")
	m.Rename("large", "larger")
	m.Rename("top", "up")
	m.Rename("up/a", "up/c")
	restored(m, "up/c/sneaky", func() { m.WriteAt("up/c/sneaky", cephtree.Data(3, 5000), 0) })
	for i := range 10 {
		m.WriteAt(fmt.Sprintf("larger/%d", i), cephtree.Data(uint64(100+i), 12*mib), 0)
	}
	for i := range 100 {
		m.Write(fmt.Sprintf("more/%06d", i*5), cephtree.Data(uint64(i), 3000))
	}
	m.Snap("s2")
	for range 2 {
		within(t, patience, "the directory to have its new name", func() error {
			_, err := e.dst.StatAt(m.Root()+"/more", 0)
			return err
		})
		if err := syscall.Kill(d.plugin(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
	}
	e.waitLong(t, 2*recovery, m, "s2")
	m.Rename("more", "most")
	m.Snap("s3")
	e.waitLong(t, recovery, m, "s3")
	e.same(t, m, "s1", "s2", "s3")
}

// noneLeft waits until there are no MDS sessions but those of one worker: two on
// the source, one on the peer. An MDS that is restarted waits for the others.
func (e *env) noneLeft(t *testing.T) {
	t.Helper()
	within(t, recovery, "the sessions of dead workers to end", func() error {
		for _, side := range []struct {
			c    *bed.Cluster
			user string
			want int
		}{{e.a, "mirror", 2}, {e.b, "remote", 1}} {
			// A session that only ends others does not tell its user.
			if n := len(e.sessionsOf(t, side.c, side.user, "")); n != side.want {
				return fmt.Errorf("%d sessions of client.%s, want %d", n, side.user, side.want)
			}
		}
		return nil
	})
}

// TestFrozenHost stops the host: the plugin must not write without its lease.
func TestFrozenHost(t *testing.T) {
	e := need(t)
	once(t)
	// Slow enough to be under way when the lease ends.
	d := e.mirror(t, "--cephmirror-cephfs-workers=1", "--cephmirror-lease-ttl=3s")
	m := e.newDir(t)
	load(m, 1)
	m.Flat("more", 1000, 100)
	m.Snap("s1")
	e.track(t, m.Root())
	e.midSync(t, m)
	if err := syscall.Kill(d.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(d.Pid(), syscall.SIGCONT)
	time.Sleep(12 * time.Second) // the lease, some more, and the statistics of the pool
	if slices.Contains(snapshots(t, e.dst, m.Root()), "s1") {
		t.Skip("the synchronisation was done before the lease ended")
	}
	// The tree itself cannot be read now: the plugin has cut itself off, and
	// the MDS waits for the capabilities that it held.
	before := written(t, e)
	time.Sleep(5 * time.Second)
	if after := written(t, e); after != before {
		t.Errorf("the plugin writes although its host is frozen: %v, then %v", before, after)
	}
	if err := syscall.Kill(d.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	e.waitLong(t, recovery, m, "s1")
	e.same(t, m, "s1")
}

// written tells how much is in b's data pool.
func written(t *testing.T, e *env) [2]uint64 {
	t.Helper()
	ctx, err := e.dst.Conn.OpenIOContext(fsName + ".data")
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Destroy()
	st, err := ctx.GetPoolStats()
	if err != nil {
		t.Fatal(err)
	}
	return [2]uint64{st.Num_objects, st.Num_bytes}
}

// TestCephRestarts restarts daemons of Ceph in the middle of a synchronisation.
func TestCephRestarts(t *testing.T) {
	e := need(t)
	for _, c := range []struct {
		name   string
		daemon func() []*bed.Daemon
	}{
		{"MDS of the source", func() []*bed.Daemon { return []*bed.Daemon{e.a.Daemon("mds.a")} }},
		{"MDS of the peer", func() []*bed.Daemon { return []*bed.Daemon{e.b.Daemon("mds.a"), e.b.Daemon("mds.b")} }},
		{"OSD of the peer", func() []*bed.Daemon { return []*bed.Daemon{e.b.Daemon("osd.0")} }},
		{"monitor of the source", func() []*bed.Daemon { return []*bed.Daemon{e.a.Daemon("mon.a")} }},
		{"mgr of the source", func() []*bed.Daemon { return []*bed.Daemon{e.a.Daemon("mgr.x")} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.HasPrefix(c.name, "MDS") {
				needLong(t)
			}
			e.mirror(t)
			m := e.newDir(t)
			load(m, 1)
			m.Snap("s1")
			e.track(t, m.Root())
			e.midSync(t, m)
			for _, d := range c.daemon() {
				if err := d.Restart(e.ctx(t), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range c.daemon() {
				if err := d.WaitReady(e.ctx(t)); err != nil {
					t.Fatal(err)
				}
			}
			e.waitLong(t, 90*time.Second, m, "s1")
			m.Write("new", []byte("new"))
			m.Snap("s2")
			e.waitLong(t, recovery, m, "s2")
			e.same(t, m, "s1", "s2")
		})
	}
}

// freeze stops the daemons of a cluster whose names begin with prefix, until
// thaw or the end of the test.
func freeze(t *testing.T, c *bed.Cluster, prefix string) {
	t.Helper()
	if err := signal(c, prefix, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := signal(c, prefix, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
}

func signal(c *bed.Cluster, prefix string, sig syscall.Signal) error {
	var errs []error
	for _, d := range c.Daemons() {
		if strings.HasPrefix(d.Name(), prefix) {
			errs = append(errs, d.Kill(context.Background(), sig))
		}
	}
	return errors.Join(errs...)
}

// thaw lets frozen daemons go on.
//
// An OSD that was frozen for longer than the leases of its placement groups
// last leaves them "laggy" for good when it has the only copy, and answers no
// request. It is told to begin anew.
func thaw(t *testing.T, c *bed.Cluster, prefix string) {
	t.Helper()
	if err := signal(c, prefix, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix("osd.", prefix) {
		mon(t, c, map[string]any{"prefix": "osd down", "ids": []string{"0"}})
	}
}

// TestFrozenPeer freezes daemons of the peer: nothing else may suffer.
func TestFrozenPeer(t *testing.T) {
	e := need(t)
	once(t)
	for _, c := range []struct{ name, prefix string }{{"all daemons", ""}, {"MDSs", "mds."}, {"OSD", "osd."}} {
		t.Run(c.name, func(t *testing.T) {
			if c.prefix != "" {
				needLong(t)
			}
			d := e.mirror(t)
			m := e.newDir(t)
			load(m, 1)
			m.Snap("s1")
			e.track(t, m.Root())
			e.midSync(t, m)
			freeze(t, e.b, c.prefix)
			holds(t, 12*time.Second, "commands with a frozen peer", func() error {
				begun := time.Now()
				if _, err := d.status(); err != nil {
					return err
				}
				if _, err := d.dir(m.Root()); err != nil {
					return err
				}
				if _, err := d.call("counter dump"); err != nil {
					return err
				}
				if took := time.Since(begun); took > 4*time.Second {
					return fmt.Errorf("took %v", took)
				}
				return nil
			})
			thaw(t, e.b, c.prefix)
			e.waitLong(t, 90*time.Second, m, "s1")
			m.Write("new", []byte("new"))
			m.Snap("s2")
			e.waitLong(t, recovery, m, "s2")
			e.same(t, m, "s1", "s2")
		})
	}
	t.Run("stopping the daemon", func(t *testing.T) {
		d := e.mirror(t)
		m := e.newDir(t)
		load(m, 1)
		m.Snap("s1")
		e.track(t, m.Root())
		e.midSync(t, m)
		freeze(t, e.b, "")
		begun := time.Now()
		d.stopWithin(t, 10*time.Second)
		t.Logf("the daemon ended after %v", time.Since(begun).Round(100*time.Millisecond))
		thaw(t, e.b, "")
		d.start(t)
		e.waitLong(t, 90*time.Second, m, "s1")
		e.same(t, m, "s1")
		e.noneLeft(t)
	})
}

// TestFrozenSource freezes the source's cluster in the middle of a
// synchronisation.
func TestFrozenSource(t *testing.T) {
	e := need(t)
	once(t)
	d := e.mirror(t)
	m := e.newDir(t)
	load(m, 1)
	m.Snap("s1")
	e.track(t, m.Root())
	e.midSync(t, m)
	freeze(t, e.a, "")
	holds(t, 5*time.Second, "commands with a frozen source", func() error {
		begun := time.Now()
		if _, err := d.status(); err != nil {
			return err
		}
		if _, err := d.dir(m.Root()); err != nil {
			return err
		}
		if took := time.Since(begun); took > 4*time.Second {
			return fmt.Errorf("took %v", took)
		}
		return nil
	})
	begun := time.Now()
	d.stopWithin(t, 15*time.Second)
	t.Logf("the daemon ended after %v", time.Since(begun).Round(100*time.Millisecond))
	thaw(t, e.a, "")
	d.start(t)
	e.waitLong(t, 90*time.Second, m, "s1")
	e.same(t, m, "s1")
	e.noneLeft(t)
}

// TestPeerUnreachable begins with a peer that is down.
func TestPeerUnreachable(t *testing.T) {
	e := need(t)
	once(t)
	e.clear(t)
	// Frozen daemons accept connections and never answer; the address below
	// refuses them.
	e.enable(t)
	t.Cleanup(func() { e.clear(t) })
	id := e.addPeer(t, "remote", fsName)
	key := e.peerKey(t)
	e.setAddress(t, id, "[v2:127.0.0.1:1/0,v1:127.0.0.1:2/0]", key)
	d := e.startOurs(t, "mirror")
	m := e.tracked(t)
	m.Write("f", []byte("f"))
	m.Snap("s1")
	within(t, recovery, "the reason to be shown", func() error {
		st, err := d.dir(m.Root())
		if err != nil {
			return err
		}
		if !strings.Contains(st.Waiting, "127.0.0.1:1") {
			return fmt.Errorf("the state is %+v", st)
		}
		return nil
	})
	holds(t, 3*time.Second, "status", func() error { _, err := d.status(); return err })
	e.setAddress(t, id, e.b.MonHost(), key)
	e.waitLong(t, 60*time.Second, m, "s1")
	e.same(t, m, "s1")
}

// TestWrongKey gives the peer a wrong key, then the right one.
func TestWrongKey(t *testing.T) {
	e := need(t)
	once(t)
	e.clear(t)
	e.enable(t)
	t.Cleanup(func() { e.clear(t) })
	id := e.addPeer(t, "remote", fsName)
	wrong := "AQBqBqBoAAAAABAAUfH6kGXhHgxkqUNzgRZ0uw=="
	e.setAddress(t, id, e.b.MonHost(), wrong)
	d := e.startOurs(t, "mirror")
	m := e.tracked(t)
	m.Write("f", []byte("f"))
	m.Snap("s1")
	st := d.waitDir(t, recovery, m.Root(), "the reason is shown", func(s dirStatus) bool { return s.Waiting != "" })
	t.Logf("the reason: %s", st.Waiting)
	e.setAddress(t, id, e.b.MonHost(), e.peerKey(t))
	e.waitLong(t, 60*time.Second, m, "s1")
	e.same(t, m, "s1")
	for _, secret := range []string{wrong, e.peerKey(t)} {
		if strings.Contains(tail(d.log, 1e6)+tail(d.LogPath(), 1e6), secret) {
			t.Error("a key is in the log")
		}
	}
}

// peerKey returns the key of client.remote on b.
func (e *env) peerKey(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(mon(t, e.b, map[string]any{"prefix": "auth print-key", "entity": "client.remote", "format": "plain"}))
}

// TestPeerFull fills the peer.
func TestPeerFull(t *testing.T) {
	e := need(t)
	once(t)
	setRatio := func(t *testing.T, kind, ratio string) {
		t.Helper()
		if _, err := e.b.Ceph(e.ctx(t), "osd", "set-"+kind+"-ratio", ratio); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name       string
		fill, free func(t *testing.T)
	}{
		{"pool quota", func(t *testing.T) {
			mon(t, e.b, map[string]any{"prefix": "osd pool set-quota", "pool": fsName + ".data", "field": "max_bytes", "val": "1000000"})
			within(t, recovery, "the pool to be full", func() error {
				if out := mon(t, e.b, map[string]any{"prefix": "osd pool ls", "detail": "detail", "format": "plain"}); !strings.Contains(out, "full_quota") {
					return errors.New("it is not")
				}
				return nil
			})
		}, func(t *testing.T) {
			mon(t, e.b, map[string]any{"prefix": "osd pool set-quota", "pool": fsName + ".data", "field": "max_bytes", "val": "0"})
		}},
		{"full OSD", func(t *testing.T) {
			setRatio(t, "nearfull", "0.0001")
			setRatio(t, "backfillfull", "0.0001")
			setRatio(t, "full", "0.0001")
			within(t, recovery, "the OSD to be full", func() error {
				out, err := e.b.Ceph(e.ctx(t), "health", "detail")
				if err == nil && !strings.Contains(out, "OSD_FULL") {
					err = errors.New(out)
				}
				return err
			})
		}, func(t *testing.T) {
			setRatio(t, "full", "0.95")
			setRatio(t, "backfillfull", "0.9")
			setRatio(t, "nearfull", "0.85")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := e.mirror(t)
			small := e.tracked(t)
			small.Write("f", cephtree.Data(1, 2*mib)) // above the quota
			small.Snap("s1")
			e.wait(t, small, "s1")
			m := e.newDir(t)
			for i := range 4 {
				m.Write(fmt.Sprint(i), cephtree.Data(uint64(i), 8*mib))
			}
			m.Snap("s1")
			func() {
				defer c.free(t)
				c.fill(t)
				e.track(t, m.Root())
				err := eventually(30*time.Second, func() error {
					if e.arrived(m.Root(), "s1") == nil {
						t.Fatal("the snapshot arrived")
					}
					st, err := d.dir(m.Root())
					if err != nil {
						return err
					}
					if st.Reason == "" && st.LastError == "" && st.Waiting == "" {
						return fmt.Errorf("its state is %+v", st)
					}
					t.Logf("the reason: %s%s%s", st.Reason, st.LastError, st.Waiting)
					return nil
				})
				if err != nil {
					t.Errorf("no reason is shown: %v", err)
				}
			}()
			e.waitLong(t, 120*time.Second, m, "s1")
			e.same(t, m, "s1")
		})
	}
}

// TestBlocklisted blocklists the connections of the daemon.
func TestBlocklisted(t *testing.T) {
	e := need(t)
	once(t)
	d := e.mirror(t)
	m := e.tracked(t)
	m.Write("f", []byte("1"))
	m.Snap("s1")
	e.wait(t, m, "s1")
	t.Run("local", func(t *testing.T) {
		st, err := d.status()
		if err != nil {
			t.Fatal(err)
		}
		old := st.RadosInst
		mon(t, e.a, map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": old})
		m.Write("f", []byte("2"))
		m.Snap("s2")
		e.waitLong(t, recovery, m, "s2")
		within(t, recovery, "another address", func() error {
			st, err := d.status()
			if err == nil && (st.RadosInst == "" || st.RadosInst == old) {
				err = fmt.Errorf("it is %q, state %q", st.RadosInst, st.State)
			}
			return err
		})
		e.same(t, m, "s2")
	})
	t.Run("peer", func(t *testing.T) {
		for _, addr := range e.sessions(t, e.b, "remote") {
			mon(t, e.b, map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": addr})
		}
		m.Write("f", []byte("3"))
		m.Snap("s3")
		e.waitLong(t, recovery, m, "s3")
		e.same(t, m, "s1", "s2", "s3")
	})
	t.Run("source mount", func(t *testing.T) {
		for _, addr := range e.sessions(t, e.a, "mirror") {
			mon(t, e.a, map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": addr})
		}
		m.Write("f", []byte("4"))
		m.Snap("s4")
		e.waitLong(t, recovery, m, "s4")
		e.same(t, m, "s3", "s4")
	})
	t.Run("evicted at the peer", func(t *testing.T) {
		if _, err := e.b.Ceph(e.ctx(t), "tell", "mds."+fsName+":0", "client", "evict", "auth_name=client.remote"); err != nil {
			for _, addr := range e.sessions(t, e.b, "remote") {
				t.Logf("session %s", addr)
			}
			t.Skipf("evicting: %v", err)
		}
		m.Write("f", []byte("5"))
		m.Snap("s5")
		e.waitLong(t, recovery, m, "s5")
		e.same(t, m, "s4", "s5")
	})
}

// sessions returns the addresses of the MDS sessions of client.USER.
func (e *env) sessions(t *testing.T, c *bed.Cluster, user string) []string {
	t.Helper()
	addrs := e.sessionsOf(t, c, user)
	if len(addrs) == 0 {
		t.Fatalf("client.%s has no session", user)
	}
	return addrs
}

// sessionsOf returns the addresses of the MDS sessions of several users.
func (e *env) sessionsOf(t *testing.T, c *bed.Cluster, users ...string) (addrs []string) {
	t.Helper()
	for _, d := range c.Daemons() {
		if !strings.HasPrefix(d.Name(), "mds.") {
			continue
		}
		out, err := d.Admin(e.ctx(t), map[string]any{"prefix": "session ls"})
		if err != nil {
			t.Fatal(err)
		}
		var list []struct {
			Entity struct {
				Addr struct {
					Addr  string `json:"addr"`
					Nonce uint64 `json:"nonce"`
				} `json:"addr"`
			} `json:"entity"`
			Metadata struct {
				EntityID string `json:"entity_id"`
			} `json:"client_metadata"`
		}
		mustJSON(t, out, &list)
		for _, s := range list {
			if slices.Contains(users, s.Metadata.EntityID) {
				addrs = append(addrs, fmt.Sprintf("%s/%d", s.Entity.Addr.Addr, s.Entity.Addr.Nonce))
			}
		}
	}
	return addrs
}

// TestDirectoryTrouble has directories that cannot be mirrored, and one beside
// them that can.
func TestDirectoryTrouble(t *testing.T) {
	e := need(t)
	once(t)
	d := e.mirror(t)
	good := e.tracked(t)
	good.Write("f", []byte("f"))
	good.Snap("s1")
	e.wait(t, good, "s1")
	failed := func(s dirStatus) bool { return s.State == "failed" }
	recovered := func(s dirStatus) bool { return s.State == "idle" && s.Reason == "" && s.LastError == "" }

	// Each of them waits for tries that are made now and then.
	t.Run("group", func(t *testing.T) {
		t.Run("missing", func(t *testing.T) {
			t.Parallel()
			dir := "/" + e.stamp + "-missing/below"
			e.track(t, dir)
			st := d.waitDir(t, patience, dir, "failed", failed)
			if st.Reason == "" || st.NextTry == "" {
				t.Errorf("no reason or next try: %+v", st)
			}
			for _, p := range []string{dir, "/" + e.stamp + "-missing"} {
				if _, err := e.dst.StatAt(p, 0); err == nil {
					t.Errorf("%s was made on the peer", p)
				}
			}
			m := cephtree.On(t, e.src, dir)
			m.Write("f", []byte("f"))
			m.Snap("s1")
			e.waitSame(t, m, "s1")
			d.waitDir(t, patience, dir, "recovered", recovered)
		})
		t.Run("regular file", func(t *testing.T) {
			t.Parallel()
			m := e.newDir(t)
			m.Write("x", []byte("a file"))
			dir := m.Root() + "/x"
			e.track(t, dir)
			st := d.waitDir(t, patience, dir, "failed", failed)
			t.Logf("the reason: %s", st.Reason)
			if _, err := e.dst.StatAt(dir, 0); err == nil {
				t.Error("it was made on the peer")
			}
			m.Remove("x")
			x := m.At("x")
			x.Write("f", []byte("f"))
			x.Snap("s1")
			e.waitSame(t, x, "s1")
			d.waitDir(t, patience, dir, "recovered", recovered)
		})
		t.Run("something else on the peer", func(t *testing.T) {
			t.Parallel()
			m := e.newDir(t)
			m.Write("f", []byte("f"))
			m.Snap("s1")
			on := cephtree.On(t, e.dst, "/")
			on.Write(m.Root(), []byte("a file in the way"))
			e.track(t, m.Root())
			st := d.waitDir(t, patience, m.Root(), "failed", failed)
			t.Logf("the reason: %s", st.Reason)
			on.Remove(m.Root())
			e.waitSame(t, m, "s1")
			d.waitDir(t, patience, m.Root(), "recovered", recovered)
		})
		t.Run("stray snapshot of another name", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			m.Snap("s1")
			e.wait(t, m, "s1")
			cephtree.On(t, e.dst, m.Root()).Snap("mine")
			m.Write("f", []byte("2"))
			m.Snap("s2")
			e.waitSame(t, m, "s1", "s2")
			st := d.waitDir(t, patience, m.Root(), "idle", recovered)
			if len(st.Strays) != 1 || st.Strays[0] != "mine" {
				t.Errorf("the stray snapshots are said to be %v", st.Strays)
			}
		})
		t.Run("stray snapshot of the same name", func(t *testing.T) {
			t.Parallel()
			m := e.newDir(t)
			m.Write("f", []byte("1"))
			on := cephtree.On(t, e.dst, m.Root())
			on.Snap("s1")
			m.Snap("s1")
			e.track(t, m.Root())
			st := d.waitDir(t, patience, m.Root(), "failed", failed)
			if st.Reason != "snapshot 's1' has invalid metadata" {
				t.Errorf("the reason is %q", st.Reason)
			}
			on.RemoveSnap("s1")
			e.waitSame(t, m, "s1")
			d.waitDir(t, patience, m.Root(), "recovered", recovered)
		})
		t.Run("strange metadata on the peer", func(t *testing.T) {
			t.Parallel()
			m := e.newDir(t)
			m.Write("f", []byte("1"))
			cephtree.On(t, e.dst, m.Root())
			err := e.dst.MakeSnapshot(m.Root(), "odd", 0o755, map[string]string{"primary_snap_id": "no number", "x": "y"})
			if err != nil {
				t.Fatal(err)
			}
			m.Snap("s1")
			e.track(t, m.Root())
			e.waitSame(t, m, "s1")
		})
		t.Run("peer's tree changed by somebody", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Rich()
			m.Snap("s1")
			e.wait(t, m, "s1")
			on := cephtree.On(t, e.dst, m.Root())
			on.RemoveAll("sizes")
			on.Remove("attrs/old")
			on.Mkdir("attrs/old")
			on.Write("stranger", []byte("not of the source"))
			m.Write("sizes/f1", []byte("y"))
			m.Write("attrs/old", []byte("new"))
			m.Snap("s2")
			e.waitSame(t, m, "s1", "s2")
		})
		t.Run("deleted and recreated", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			m.Write("g", []byte("1"))
			m.Snap("s1")
			e.wait(t, m, "s1")
			m.RemoveSnap("s1")
			cephtree.On(t, e.src, "/").RemoveAll(m.Root()[1:])
			d.waitDir(t, patience, m.Root(), "failed", failed)
			m = cephtree.On(t, e.src, m.Root())
			m.Write("f", []byte("2"))
			m.Write("h", []byte("2"))
			m.Snap("s1")
			e.waitSame(t, m, "s1")
			d.waitDir(t, patience, m.Root(), "recovered", recovered)
		})
	})
	t.Run("the others go on", func(t *testing.T) {
		e.track(t, "/"+e.stamp+"-never-there")
		for i := range 3 {
			name := fmt.Sprintf("g%d", i)
			good.Write("f", []byte(name))
			good.Snap(name)
			begun := time.Now()
			e.wait(t, good, name)
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("a directory beside failing ones took %v", took)
			}
		}
		e.same(t, good, "g2")
	})
	t.Run("given twice", func(t *testing.T) {
		// A controller repeats itself; stock aborts on that.
		ioctx := e.metadata(t)
		var id uint64
		within(t, patience, "the instance", func() error {
			contents, err := e.store(t).Load()
			if err != nil {
				return err
			}
			if _, err := fmt.Sscan(contents.Dirs[good.Root()].Instance, &id); err != nil {
				return err
			}
			return nil
		})
		for _, payload := range []string{
			fmt.Sprintf(`{"dir_path": %q, "mode": "acquire"}`, good.Root()),
			fmt.Sprintf(`{"dir_path": %q, "mode": "acquire"}`, good.Root()),
			`{"dir_path": "/x", "mode": "unknown"}`, `{`, ``,
			fmt.Sprintf(`{"dir_path": %q, "mode": "release"}`, "/never/acquired"),
		} {
			acks, _, err := ioctx.NotifyWithTimeout(fmt.Sprintf("cephfs_mirror.%d", id), []byte(payload), 5*time.Second)
			if err != nil || len(acks) != 1 {
				t.Errorf("notification %s: %d answers, %v", payload, len(acks), err)
			}
		}
		good.Write("f", []byte("twice"))
		good.Snap("twice")
		e.waitSame(t, good, "twice")
	})
}

// TestPermissionDenied has a peer user that may write to one path only.
func TestPermissionDenied(t *testing.T) {
	e := need(t)
	once(t)
	e.clear(t)
	e.enable(t)
	t.Cleanup(func() { e.clear(t) })
	allowed := "/" + e.stamp + "-allowed"
	cephtree.On(t, e.dst, allowed)
	err := e.b.AddUser(e.ctx(t), "client.narrow",
		bed.Option{Name: "mon", Value: "allow r fsname=" + fsName},
		bed.Option{Name: "mds", Value: fmt.Sprintf("allow r fsname=%s, allow rwps fsname=%s path=%s", fsName, fsName, allowed)},
		bed.Option{Name: "osd", Value: "allow rw tag cephfs data=" + fsName})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.b.RemoveUser(context.Background(), "client.narrow"); err != nil {
			t.Error(err)
		}
	})
	e.addPeer(t, "narrow", fsName)
	d := e.startOurs(t, "mirror")
	denied := e.tracked(t)
	denied.Write("f", []byte("f"))
	denied.Snap("s1")
	st := d.waitDir(t, recovery, denied.Root(), "failed", func(s dirStatus) bool { return s.State == "failed" })
	t.Logf("the reason: %s", st.Reason)
	good := cephtree.On(t, e.src, allowed)
	good.Write("f", []byte("f"))
	good.Snap("s1")
	e.track(t, allowed)
	e.waitSame(t, good, "s1")
}

// TestLiveChanges changes what is to be mirrored while the daemon runs.
func TestLiveChanges(t *testing.T) {
	e := need(t)
	once(t)
	e.clear(t)
	d := e.startOurs(t, "mirror")
	t.Cleanup(func() { e.clear(t) })
	m := e.newDir(t)
	m.Write("f", []byte("1"))
	m.Snap("s1")

	t.Run("enable and disable", func(t *testing.T) {
		if _, err := d.status(); err == nil {
			t.Error("there is a status command without mirroring")
		}
		e.enable(t)
		within(t, patience, "the status command", func() error { _, err := d.status(); return err })
		e.disable(t)
		within(t, patience, "the status command to vanish", func() error {
			if _, err := d.status(); err == nil {
				return errors.New("it is there")
			}
			return nil
		})
		e.enable(t)
		within(t, patience, "the status command", func() error { _, err := d.status(); return err })
	})
	t.Run("peer added, removed, added again", func(t *testing.T) {
		e.track(t, m.Root())
		id := e.addPeer(t, "remote", fsName)
		e.wait(t, m, "s1")
		e.removePeer(t, id)
		within(t, patience, "the peer to vanish", func() error {
			if _, err := d.peerStatus(id); err == nil {
				return errors.New("its command is there")
			}
			if n := len(d.peers()); n != 0 {
				return fmt.Errorf("%d peers", n)
			}
			return nil
		})
		m.Write("f", []byte("2"))
		m.Snap("s2")
		holds(t, 3*time.Second, "without a peer", func() error {
			if e.arrived(m.Root(), "s2") == nil {
				return errors.New("a snapshot was mirrored")
			}
			return nil
		})
		e.addPeer(t, "remote", fsName)
		e.waitSame(t, m, "s1", "s2")
	})
	t.Run("disabled while mirroring", func(t *testing.T) {
		big := e.newDir(t)
		load(big, 5)
		big.Snap("s1")
		e.track(t, big.Root())
		e.midSync(t, big)
		e.disable(t)
		within(t, patience, "the status command to vanish", func() error {
			if _, err := d.status(); err == nil {
				return errors.New("it is there")
			}
			return nil
		})
		e.enable(t)
		e.addPeer(t, "remote", fsName)
		e.waitLong(t, recovery, big, "s1")
		e.same(t, big, "s1")
	})
	t.Run("directory untracked and tracked", func(t *testing.T) {
		dir := e.newDir(t)
		dir.Write("f", []byte("1"))
		dir.Snap("s1")
		e.trackFor(t, dir.Root())
		e.wait(t, dir, "s1")
		e.untrack(t, dir.Root())
		within(t, patience, "the directory to be released", func() error {
			if _, err := d.dir(dir.Root()); err == nil {
				return errors.New("it is still in the peer status")
			}
			contents, err := e.store(t).Load()
			if _, there := contents.Dirs[dir.Root()]; err == nil && there {
				return errors.New("it is still in the map")
			}
			return err
		})
		dir.Write("f", []byte("2"))
		dir.Snap("s2")
		e.track(t, dir.Root())
		e.waitSame(t, dir, "s1", "s2")
	})
}

// TestSecondPeer mirrors to two file systems. Stock aborts on that.
func TestSecondPeer(t *testing.T) {
	e := need(t)
	once(t)
	if _, err := e.b.MonCommand(e.ctx(t), map[string]any{"prefix": "auth rm", "entity": "client.remote2"}); err != nil {
		t.Fatal(err)
	}
	if err := e.b.AuthorizePeer(e.ctx(t), "second", "remote2"); err != nil {
		t.Fatal(err)
	}
	d := e.mirror(t)
	e.addPeer(t, "remote2", "second")
	within(t, patience, "two peers", func() error {
		if n := len(d.peers()); n != 2 {
			return fmt.Errorf("%d peers", n)
		}
		return nil
	})
	second, err := cephtree.Open(e.b.Conf(), "second")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	m := e.tracked(t)
	m.Rich()
	m.Snap("s1")
	e.waitSame(t, m, "s1")
	check := func(snap string) {
		t.Helper()
		path := m.Root() + "/.snap/" + snap
		within(t, recovery, "snapshot "+snap+" on the second peer", func() error {
			_, _, err := second.SnapInfo(path)
			return err
		})
		for _, diff := range e.compare(t, path, "second", path) {
			t.Errorf("snapshot %s on the second peer differs: %v", snap, diff)
		}
	}
	check("s1")
	m.Rename("sizes", "moved")
	m.Write("moved/f1", []byte("z"))
	m.Snap("s2")
	e.waitSame(t, m, "s2")
	check("s2")
}

// setAddress stores where and with which key a peer is reached.
func (e *env) setAddress(t *testing.T, id, monHost, key string) {
	t.Helper()
	mon(t, e.a, map[string]any{
		"prefix": "config-key set", "key": "cephfs/mirror/peer/" + fsName + "/" + id,
		"val": fmt.Sprintf(`{"mon_host": %q, "key": %q}`, monHost, key),
	})
}
