package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/test/rbdimage"
)

// TestRBDHandOver lets the stock daemon and ours take turns with the same
// images: each goes on where the other stopped, and copies nothing twice.
func TestRBDHandOver(t *testing.T) {
	needLong(t)
	e := need(t)
	orders := [][]string{{stock, ours, stock, ours}, {ours, stock, ours}}
	if tested() == stock {
		orders = [][]string{{stock, stock, stock}}
	}
	for _, order := range orders {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			if order[0] == ours {
				needLong(t)
			}
			p := e.newPool(t, poolOptions{})
			const size = 64 * mib
			type image struct {
				m     rbdimage.Maker
				exact bool // only ours gets it right
			}
			var images []image
			for _, o := range []struct {
				name string
				rbdimage.Options
			}{{"plain", rbdimage.Options{}}, {"no object map", rbdimage.Options{Features: rbdimage.Plain}}} {
				m := rbdimage.Create(t, p.a, o.name, rbdimage.Options{Size: size, Features: o.Features})
				m.Fill(1, 0, size)
				m.Snap("s")
				m.Mirror()
				images = append(images, image{m: m})
			}
			if !slices.Contains(order, stock) || order[0] != stock {
				parent := rbdimage.Create(t, p.a, "parent", rbdimage.Options{Size: size})
				parent.Fill(1, 0, size)
				parent.Snap("base")
				parent.Protect("base")
				parent.Mirror()
				child := parent.Clone("base", p.a, "child", rbdimage.Options{CloneVersion: 2})
				child.Mirror()
				images = append(images, image{m: parent}, image{m: child, exact: true})
			}
			for i, by := range order {
				changed := int64(size) * int64(len(images))
				if i > 0 {
					changed = 0
				}
				snaps := make([]uint64, len(images))
				for k, im := range images {
					seed := uint64(i*100 + k)
					im.m.Fill(seed, uint64(i+1)*8*mib+1000, mib)
					im.m.Snap(fmt.Sprintf("turn%d", i))
					im.m.Fill(seed+50, uint64(i+1)*8*mib+mib, 2*mib)
					if by == ours {
						im.m.Discard(uint64(i+1)*4*mib, 4*mib)
					}
					changed += 8 * mib // copy-ups too
					snaps[k] = im.m.MirrorSnap()
				}
				before := e.written(t, e.b)
				d := e.startRBD(t, by, e.b)
				for k, im := range images {
					p.wait(t, im.m, snaps[k])
					// What the stock daemon has spoilt stays so.
					if !im.exact || !slices.Contains(order[:i+1], stock) {
						p.sameBy(t, im.m, by)
					}
				}
				n, limit := e.written(t, e.b)-before, changed+changed/4
				if by == stock && i > 0 {
					// It copies what it need not. All it must not copy.
					limit = int64(size) * int64(len(images)) * 3 / 4
				}
				t.Logf("turn %d (%s): %d bytes were written for %d that changed", i, by, n, changed)
				if n > limit {
					t.Errorf("turn %d (%s): that is more than %d", i, by, limit)
				}
				d.stop(t)
			}
		})
	}
}

// crash is one daemon that is killed in mid-synchronisation, and the one that
// goes on.
type crash struct {
	first, second string
	plugin        bool // only the plugin is killed
}

func (c crash) String() string {
	if c.plugin {
		return "plugin of ours"
	}
	return c.first + ", then " + c.second
}

// TestRBDKilled kills a daemon in mid-synchronisation.
func TestRBDKilled(t *testing.T) {
	e := need(t)
	crashes := []crash{{ours, ours, true}, {ours, ours, false}, {ours, stock, false}, {stock, ours, false}}
	if tested() == stock {
		crashes = []crash{{stock, stock, false}}
	}
	slow := func(who string) []string { // also when little has changed
		if who == ours {
			return []string{"--cephmirror-rbd-rate-limit=16MiB"}
		}
		return nil
	}
	for _, c := range crashes {
		t.Run(c.String(), func(t *testing.T) {
			if c.first == c.second && c.first == ours {
				needLong(t)
			}
			p := e.newPool(t, poolOptions{})
			m := slowly(t, p.a, "image")
			m.Snap("early")
			m.Fill(8, 20*mib, mib)
			first := m.Mirror()
			kill := func(d *daemon) {
				t.Helper()
				if c.plugin {
					if err := syscall.Kill(d.plugin(t), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					return
				}
				d.killAll(t, c.first)
			}
			before := e.written(t, e.b)
			d := e.startRBD(t, c.first, e.b, slow(c.first)...)
			p.midRBD(t, m, first)
			kill(d)
			begun := time.Now()
			if !c.plugin {
				d = e.startRBDAs(t, c.second, e.b, rbdUser+"2", slow(c.second)...)
			}
			p.waitLong(t, 90*time.Second, m, first)
			t.Logf("done %v after the crash", time.Since(begun).Round(100*time.Millisecond))
			n := e.written(t, e.b) - before
			t.Logf("%d bytes were written for %d", n, 96*mib)
			if n > 96*mib*3/2 {
				t.Errorf("%d bytes were written for %d: nothing was resumed", n, 96*mib)
			}
			if c.second == ours || tested() == ours {
				p.sameBy(t, m, c.second)
			}
			if !*long && c.first != c.second {
				return
			}
			// In an increment with a snapshot: the first one takes over again.
			const changed = 48 * mib
			m.Fill(2, 0, 40*mib)
			m.Snap("s")
			m.Fill(3, 0, changed-40*mib)
			before = e.written(t, e.b)
			second := m.MirrorSnap()
			p.midRBD(t, m, second)
			if c.plugin {
				kill(d)
			} else {
				d.killAll(t, c.second)
				e.startRBD(t, c.first, e.b)
			}
			p.waitLong(t, 90*time.Second, m, second)
			n = e.written(t, e.b) - before
			t.Logf("%d bytes were written for %d", n, changed)
			if n > changed*3/2 {
				t.Errorf("%d bytes were written for %d: nothing was resumed", n, changed)
			}
			if c.first == ours {
				p.waitIdle(t, m.In(p.b)) // what stock has completed and spoilt is gone
			}
			p.sameBy(t, m, c.first)
			m.Fill(4, 80*mib, mib)
			p.wait(t, m, m.MirrorSnap())
			p.sameBy(t, m, c.first)
		})
	}
}

// killAll ends a daemon with SIGKILL.
func (d *daemon) killAll(t *testing.T, who string) {
	t.Helper()
	if who == ours {
		d.kill(t)
		return
	}
	if err := d.Kill(e2eContext()); err != nil {
		t.Fatal(err)
	}
}

// TestRBDFrozenHost stops the host: its plugin must not write without a
// lease, and another daemon takes over.
func TestRBDFrozenHost(t *testing.T) {
	e := need(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	needLong(t)
	p := e.newPool(t, poolOptions{})
	d := e.startRBD(t, ours, e.b, "--cephmirror-lease-ttl=2s", "--cephmirror-rbd-rate-limit=12MiB")
	m := slowly(t, p.a, "image")
	snap := m.Mirror()
	p.midRBD(t, m, snap)
	if err := syscall.Kill(d.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(d.Pid(), syscall.SIGCONT)
	time.Sleep(6 * time.Second) // the lease, and some more
	if p.arrived(m, snap) != nil {
		before := e.written(t, e.b)
		time.Sleep(3 * time.Second)
		if n := e.written(t, e.b) - before; n > mib {
			t.Errorf("the plugin wrote %d bytes although its host is frozen", n)
		}
	} else {
		t.Log("the synchronisation was done before the lease ended")
	}
	second := e.startRBDAs(t, ours, e.b, rbdUser+"2")
	m.Fill(2, 0, 20*mib)
	p.waitLong(t, 90*time.Second, m, m.MirrorSnap())
	p.same(t, m)
	// The first one comes back, and both live together.
	if err := syscall.Kill(d.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.Fill(3, 0, 20*mib)
	p.waitLong(t, 60*time.Second, m, m.MirrorSnap())
	p.same(t, m)
	second.stop(t)
	m.Fill(4, 0, 20*mib)
	p.waitLong(t, 60*time.Second, m, m.MirrorSnap())
	p.same(t, m)
}

// TestRBDTwoDaemons runs two daemons on one site; one of them ends.
func TestRBDTwoDaemons(t *testing.T) {
	needLong(t)
	e := need(t)
	cases := []struct {
		first, second string
		killed        bool
	}{{ours, ours, true}, {ours, stock, false}, {stock, ours, true}, {ours, stock, true}}
	if tested() == stock {
		cases = cases[:1]
		cases[0].first, cases[0].second = stock, stock
	}
	for i, c := range cases {
		t.Run(fmt.Sprintf("%s and %s, killed %v", c.first, c.second, c.killed), func(t *testing.T) {
			if i != 1 && tested() == ours {
				needLong(t)
			}
			p := e.newPool(t, poolOptions{})
			d := e.startRBD(t, c.first, e.b)
			var images []rbdimage.Maker
			for i := range 6 {
				m, _ := p.newImage(t, fmt.Sprintf("image%d", i), rbdimage.Options{Size: 8 * mib})
				m.Fill(uint64(i), 0, 5*mib)
				images = append(images, m)
			}
			round := func(what string) {
				t.Helper()
				begun := time.Now()
				var snaps []uint64
				for i, m := range images {
					m.Fill(uint64(time.Now().UnixNano()), uint64(i%7)*mib, mib)
					snaps = append(snaps, m.MirrorSnap())
				}
				for i, m := range images {
					p.waitLong(t, 100*time.Second, m, snaps[i])
					if c.first == ours && c.second == ours {
						p.same(t, m)
					}
				}
				t.Logf("%s: %v", what, time.Since(begun).Round(100*time.Millisecond))
			}
			round("one daemon")
			other := e.startRBDAs(t, c.second, e.b, rbdUser+"2")
			round("two daemons")
			// Images that come now are spread over both.
			for i := range 4 {
				m, _ := p.newImage(t, fmt.Sprintf("later%d", i), rbdimage.Options{Size: 8 * mib})
				images = append(images, m)
			}
			round("two daemons and more images")
			for _, m := range images {
				owners := 0
				within(t, 40*time.Second, "one daemon to have "+m.Name(), func() error {
					owners = 0
					for _, x := range []*daemon{d, other} {
						if _, err := x.call("rbd mirror status " + m.Spec()); err == nil {
							owners++
						}
					}
					if owners != 1 {
						return fmt.Errorf("%d daemons have it", owners)
					}
					return nil
				})
			}
			if c.killed {
				d.killAll(t, c.first)
			} else {
				d.stop(t)
			}
			round("the other daemon alone")
		})
	}
}

// objectsOf lists the objects of a pool whose names f likes.
func objectsOf(p rbdimage.Pool, f func(name string) bool) (names []string, err error) {
	err = p.With(func(ctx *rados.IOContext) error {
		return ctx.ListObjects(func(name string) {
			if f(name) {
				names = append(names, name)
			}
		})
	})
	return names, err
}

// TestRBDCompare damages the copy of an image, and has all of it compared: what
// is there now, and the snapshots.
func TestRBDCompare(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "it has no such thing")
	p := e.newPool(t, poolOptions{})
	m, _ := p.newImage(t, "image", rbdimage.Options{Size: 64 * mib})
	m.Fill(1, 0, 40*mib)
	m.Snap("one")
	m.Fill(2, 8*mib, 4*mib)
	first := m.MirrorSnap()
	// What the stock daemon copies lacks the discards.
	d := e.startRBD(t, stock, e.b)
	p.wait(t, m, first)
	m.Discard(0, 4*mib)
	m.Discard(20*mib, mib)
	m.Snap("two")
	m.Fill(3, 30*mib, mib)
	m.MirrorSnap()
	m.Fill(4, 36*mib, mib)
	copy := p.wait(t, m, m.MirrorSnap())
	p.waitState(t, 45*time.Second, copy, "up+replaying", `"replay_state":"idle"`)
	d.stop(t)
	if diffs, err := p.differences(m, stock); err != nil || len(diffs) == 0 {
		t.Fatalf("the stock daemon is right for once: %v, %v", diffs, err)
	}
	// Ours goes on with that, and says so.
	d = e.startRBD(t, ours, e.b, atLeisure(ours)...)
	m.Fill(5, 38*mib, mib)
	p.wait(t, m, m.MirrorSnap())
	p.waitState(t, 45*time.Second, copy, "up+replaying", `"unverified":true`)
	if _, err := d.call("rbd mirror compare " + copy.Spec()); err != nil {
		t.Fatal(err)
	}
	// Whoever goes on still knows what was asked for.
	within(t, 20*time.Second, "the wish to be noted", func() error {
		out, err := e.tryRBD(e.b, "image-meta", "ls", copy.Spec())
		if err == nil && !strings.Contains(out, "compare") && !strings.Contains(out, "verified") {
			err = errText("the metadata is %s", out)
		}
		return err
	})
	d.kill(t)
	d = e.startRBD(t, ours, e.b)
	within(t, 60*time.Second, "all to be equal", func() error {
		diffs, err := p.differences(m, ours)
		if err == nil && len(diffs) > 0 {
			err = errText("%v", diffs)
		}
		return err
	})
	p.waitState(t, 45*time.Second, copy, "up+replaying", `"last_comparison_repaired_snapshots":1`)
	if _, text, err := p.own(p.b, copy.Name()); err != nil || strings.Contains(text, "unverified") {
		t.Errorf("it is %s, %v", text, err)
	}
	m.Fill(6, 0, 5*mib)
	p.waitSame(t, m)
	// Nothing to repair.
	if _, err := d.call("rbd mirror compare " + copy.Spec()); err != nil {
		t.Fatal(err)
	}
	p.waitState(t, 45*time.Second, copy, "up+replaying", `"last_comparison_repaired_objects":0,"last_comparison_repaired_snapshots":0`)
	p.same(t, m)

	// Of what is taken over all is compared if that is wanted.
	d.stop(t)
	d = e.startRBD(t, stock, e.b)
	m.Discard(8*mib, 4*mib)
	p.wait(t, m, m.MirrorSnap())
	p.waitState(t, 45*time.Second, copy, "up+replaying", `"replay_state":"idle"`)
	d.stop(t)
	e.startRBD(t, ours, e.b, "--cephmirror-rbd-compare-taken-over=true")
	within(t, 60*time.Second, "all to be equal", func() error {
		diffs, err := p.differences(m, ours)
		if err == nil && len(diffs) > 0 {
			err = errText("%v", diffs)
		}
		return err
	})
	p.waitState(t, 45*time.Second, copy, "up+replaying", `"last_comparison_repaired_objects"`)
}
