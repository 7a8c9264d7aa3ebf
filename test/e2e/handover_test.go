package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/test/cephtree"
)

// The stock daemon has no controller here: the test gives it directories, with
// the notifications that a controller sends.

// instances returns the workers that answer the controller's question.
func (e *env) instances(t *testing.T) (ids []uint64) {
	t.Helper()
	acks, _, err := e.metadata(t).NotifyWithTimeout(dirstore.Object, nil, 5*time.Second)
	if err != nil {
		// Somebody who died still counts as watching, for half a minute.
		t.Logf("looking for instances: %v", err)
	}
	for _, a := range acks {
		if strings.Contains(string(a.Response), `"addr"`) {
			ids = append(ids, uint64(a.NotifierID))
		}
	}
	slices.Sort(ids)
	return ids
}

// waitInstance waits for a worker that is none of others.
func (e *env) waitInstance(t *testing.T, others ...uint64) (id uint64) {
	t.Helper()
	within(t, 30*time.Second, "an instance", func() error {
		for _, i := range e.instances(t) {
			if !slices.Contains(others, i) {
				id = i
				return nil
			}
		}
		return fmt.Errorf("none but %v", others)
	})
	return id
}

// give tells an instance to mirror a directory.
func (e *env) give(t *testing.T, instance uint64, dir string) {
	t.Helper()
	payload := fmt.Sprintf(`{"dir_path": %q, "mode": "acquire"}`, dir)
	acks, _, err := e.metadata(t).NotifyWithTimeout(fmt.Sprintf("cephfs_mirror.%d", instance), []byte(payload), 5*time.Second)
	if err != nil || len(acks) == 0 {
		t.Fatalf("giving %s to instance %d: %d answers, %v", dir, instance, len(acks), err)
	}
}

// turn lets one daemon mirror a directory up to a snapshot and ends it.
type turn struct {
	stock bool
	kill  bool // with SIGKILL, in the middle of the synchronisation
}

func (tu turn) String() string {
	who := "ours"
	if tu.stock {
		who = "stock"
	}
	if tu.kill {
		who += " killed"
	}
	return who
}

func (e *env) takeTurn(t *testing.T, tu turn, m cephtree.Maker, snap string) {
	t.Helper()
	before := e.instances(t)
	var d *daemon
	if tu.stock {
		d = e.startStock(t, "mirror")
		e.give(t, e.waitInstance(t, before...), m.Root())
	} else {
		d = e.startOurs(t, "mirror")
		e.trackFor(t, m.Root())
	}
	if tu.kill {
		e.midSync(t, m)
		if err := d.Kill(e.ctx(t)); err != nil {
			t.Fatal(err)
		}
		return
	}
	e.waitLong(t, 100*time.Second, m, snap)
	d.stop(t)
	if !tu.stock {
		// Nobody controls the map now; the next of ours reads it anew.
		if err := e.store(t).Apply(dirstore.Change{Remove: []string{dirstore.DirKey(m.Root())}}); err != nil {
			t.Fatal(err)
		}
	}
}

// hardForStock changes what the stock daemon of Tentacle gets wrong.
func hardForStock(m cephtree.Maker) {
	m.Rename("dir", "renamed")
	m.Truncate("shrinks", 2*mib)
	m.Truncate("vanishes", 0)
	m.WriteAt("link/b", []byte("changed through b"), 10)
	m.Chmod("mode", 0o600)
	m.Chown("owner", 12, 13)
	restored(m, "sneaky", func() { m.WriteAt("sneaky", cephtree.Data(77, 5000), 0) })
	m.SetXattr("xattr", "user.a", "b")
	m.Remove("type")
	m.Symlink("now a symlink", "type")
	m.Remove("type2")
	m.Mkdir("type2")
	m.Write("type2/f", []byte("f"))
}

// impossibleForStock changes what makes the stock daemon of Tentacle fail for
// good, with EIO from the MDS's block diff.
func impossibleForStock(m cephtree.Maker) {
	m.Punch("punched", 4*mib, 4*mib)
	m.WriteAt("holey", cephtree.Data(78, 4*mib), 8*mib)
	restored(m, "holey2", func() { m.WriteAt("holey2", cephtree.Data(78, 4*mib), 8*mib) })
}

func forStock(m cephtree.Maker) {
	m.MkdirAll("dir/sub")
	m.Write("dir/f", cephtree.Data(1, 10000))
	m.Write("dir/sub/g", cephtree.Data(2, 10000))
	m.Write("shrinks", cephtree.Data(3, 8*mib))
	m.Write("vanishes", cephtree.Data(4, 5*mib))
	m.Mkdir("link")
	m.Write("link/a", cephtree.Data(5, 10000))
	m.Link("link/a", "link/b")
	m.Write("mode", []byte("m"))
	m.Write("owner", []byte("o"))
	m.Write("sneaky", cephtree.Data(6, 5000))
	for _, n := range []string{"holey", "holey2"} {
		m.Write(n, nil)
		m.WriteAt(n, []byte("end"), 16*mib)
	}
	m.Write("xattr", []byte("x"))
	m.Write("type", []byte("t"))
	m.Write("type2", []byte("t"))
	m.Write("punched", cephtree.Data(7, 12*mib))
	m.Node("fifo", syscall.S_IFIFO|0o600, 0)
	m.Symlink("target", "symlink")
}

// TestHandOver lets our daemon and the stock one take turns. After each turn of
// ours the tree is right, whatever the stock daemon left.
func TestHandOver(t *testing.T) {
	e := need(t)
	for _, turns := range [][]turn{
		{{}, {stock: true}, {}},
		{{stock: true}, {}, {stock: true}},
		{{stock: true}, {stock: true}, {}},
	} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			if turns[2].stock {
				needLong(t) // what is new in it is up to the stock daemon
			}
			e.clear(t)
			e.enable(t)
			e.addPeer(t, "remote", fsName)
			t.Cleanup(func() { e.clear(t) })
			m := e.newDir(t)
			m.MkdirAll("first")
			m.MkdirAll("second")
			first, second := m.At("first"), m.At("second")
			forStock(first)
			forStock(second)
			for i, tu := range turns {
				if i > 0 {
					part := []cephtree.Maker{1: first, 2: second}[i]
					hardForStock(part)
					if !tu.stock {
						impossibleForStock(part)
					}
				}
				m.Write("turn", []byte(fmt.Sprint(i)))
				snap := fmt.Sprintf("s%d", i+1)
				m.Snap(snap)
				e.takeTurn(t, tu, m, snap)
				diffs := e.differences(t, m.Root(), snap)
				if !tu.stock {
					for _, d := range diffs {
						t.Errorf("turn %d (ours), snapshot %s differs: %v", i, snap, d)
					}
				} else if len(diffs) > 0 {
					t.Logf("the stock daemon leaves %s wrong: %v and more", snap, diffs[0])
				}
			}
		})
	}
}

// TestHandOverKilled kills one daemon in mid-synchronisation, and the other
// goes on.
func TestHandOverKilled(t *testing.T) {
	e := need(t)
	needLong(t)
	for _, turns := range [][]turn{{{kill: true}, {stock: true}}, {{stock: true, kill: true}, {}}} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			// The dead daemon's session holds the lock until the MDS drops it.
			e.sessionLimit(t, "30", "45")
			t.Cleanup(func() { e.sessionLimit(t, "60", "300") })
			e.clear(t)
			e.enable(t)
			e.addPeer(t, "remote", fsName)
			t.Cleanup(func() { e.clear(t) })
			m := e.newDir(t)
			load(m, 3)
			m.Snap("s1")
			e.takeTurn(t, turns[0], m, "s1")
			if turns[1].stock {
				// It takes a locked directory for its own, and crashes.
				within(t, 90*time.Second, "the MDS to end the dead daemon's session", func() error {
					if n := len(e.sessionsOf(t, e.b, "remote")); n > 0 {
						return fmt.Errorf("there are %d", n)
					}
					return nil
				})
			}
			e.takeTurn(t, turns[1], m, "s1")
			if !turns[1].stock {
				e.same(t, m, "s1")
				return
			}
			// Whatever stock made of it, ours makes it right.
			m.Write("new", nil)
			m.Snap("s2")
			e.takeTurn(t, turn{}, m, "s2")
			e.same(t, m, "s2")
		})
	}
}

// sessionLimit sets after how many seconds of silence b's MDS doubts a client
// and ends its session.
func (e *env) sessionLimit(t *testing.T, timeout, autoclose string) {
	t.Helper()
	for name, value := range map[string]string{"session_timeout": timeout, "session_autoclose": autoclose} {
		if _, err := e.b.Ceph(e.ctx(t), "fs", "set", fsName, name, value); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBothAtOnce gives the same directories to our daemon and to the stock one
// at the same time.
func TestBothAtOnce(t *testing.T) {
	e := need(t)
	once(t)
	e.clear(t)
	e.enable(t)
	e.addPeer(t, "remote", fsName)
	t.Cleanup(func() { e.clear(t) })
	if err := e.a.AddMirrorUser(e.ctx(t), "other"); err != nil {
		t.Fatal(err)
	}
	ours := e.startOurs(t, "mirror")
	first := e.waitInstance(t)
	stock := e.startStock(t, "other")
	second := e.waitInstance(t, first)
	stock.waitPeer(t)
	ours.waitPeer(t)
	// The stock daemon takes a directory that is locked for its own, and may
	// crash. Its own lock then stays for a minute.
	wait := func(t *testing.T, limit time.Duration, m cephtree.Maker, snap string) {
		t.Helper()
		err := eventually(limit, func() error {
			if !stock.Running() {
				return nil
			}
			return e.arrived(m.Root(), snap)
		})
		if !stock.Running() {
			t.Skip("the stock daemon crashed")
		}
		if err != nil {
			t.Fatalf("waited %v for snapshot %s to arrive: %v", limit, snap, err)
		}
	}

	t.Run("the same directory", func(t *testing.T) {
		m := e.newDir(t)
		m.Flat("many", 300, 2000)
		m.Snap("s1")
		e.give(t, second, m.Root())
		e.give(t, first, m.Root())
		wait(t, 100*time.Second, m, "s1")
		const more = 4
		for i := range more {
			m.Write("many/000001", cephtree.Data(uint64(i), 100))
			m.Write(fmt.Sprintf("new%d", i), cephtree.Data(uint64(i), 100))
			name := fmt.Sprintf("n%d", i)
			m.Snap(name)
			wait(t, 60*time.Second, m, name)
		}
		within(t, patience, "each snapshot to be counted once", func() error {
			a, err := ours.dir(m.Root())
			if err != nil {
				return err
			}
			b, err := stock.dir(m.Root())
			if err != nil {
				return err
			}
			if a.Synced+b.Synced != more+1 {
				return fmt.Errorf("ours synchronised %d, stock %d of %d snapshots", a.Synced, b.Synced, more+1)
			}
			t.Logf("ours synchronised %d, stock %d", a.Synced, b.Synced)
			return nil
		})
	})
	t.Run("shared by our controller", func(t *testing.T) {
		var dirs []cephtree.Maker
		for range 6 {
			m := e.newDir(t)
			m.Flat("d", 20, 1000)
			m.Snap("s1")
			e.track(t, m.Root())
			dirs = append(dirs, m)
		}
		for _, m := range dirs {
			wait(t, 60*time.Second, m, "s1")
		}
		a, b := 0, 0
		for _, m := range dirs {
			_, errOurs := ours.dir(m.Root())
			_, errStock := stock.dir(m.Root())
			if (errOurs == nil) == (errStock == nil) {
				t.Errorf("%s: ours says %v, stock says %v", m.Root(), errOurs, errStock)
			}
			if errOurs == nil {
				a++
			} else {
				b++
			}
		}
		if a == 0 || b == 0 {
			t.Errorf("ours has %d directories, stock %d", a, b)
		}
	})
}
