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

// who names the daemons of the sites a and b.
type who struct{ a, b string }

// sides are the combinations of daemons that a test is made with.
func sides() []who {
	if tested() == stock {
		return []who{{stock, stock}}
	}
	return []who{{ours, ours}, {stock, ours}, {ours, stock}}
}

// demoted waits until the copy of a demoted image is complete.
func (p *rbdPool) demoted(t *testing.T, m rbdimage.Maker) rbdimage.Maker {
	t.Helper()
	return p.wait(t, m, m.Demote())
}

// promote promotes a copy whose source was demoted. The daemon of its side may
// be about to let it go.
func (p *rbdPool) promote(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	within(t, 20*time.Second, m.Spec()+" to be promoted", func() error {
		_, err := p.e.tryRBD(p.e.cluster(m.Pool()), "mirror", "image", "promote", m.Spec())
		return err
	})
}

// checkMaps runs the stock check of the object maps, of an image that is
// primary, and of its snapshots but those that are named.
func (p *rbdPool) checkMaps(t *testing.T, m rbdimage.Maker, but ...string) {
	t.Helper()
	c := p.e.cluster(m.Pool())
	if l, err := m.Pool().Layout(m.Name()); err != nil || l.Features&rbdimage.ObjectMap == 0 {
		return
	}
	specs := []string{m.Spec()}
	for _, s := range m.Snaps() {
		if s.Kind == rbdimage.User && !slices.Contains(but, s.Name) {
			specs = append(specs, m.Spec()+"@"+s.Name)
		}
	}
	for _, spec := range specs {
		p.rbd(t, c, "object-map", "check", spec, "--no-progress")
		if out := p.rbd(t, c, "info", spec); !strings.Contains(out, "flags: \n") {
			t.Errorf("%s has flags after the check: %s", spec, out)
		}
	}
}

// mirrorSnaps counts the mirror snapshots of an image.
func mirrorSnaps(m rbdimage.Maker) (n int) {
	for _, s := range m.Snaps() {
		if s.Kind == rbdimage.Mirror {
			n++
		}
	}
	return n
}

// TestRBDFailOver moves images to the other site and back, with the stock
// tools.
func TestRBDFailOver(t *testing.T) {
	e := need(t)
	for _, w := range sides() {
		t.Run(fmt.Sprintf("a %s, b %s", w.a, w.b), func(t *testing.T) {
			if w.a != w.b {
				needLong(t)
			}
			p := e.newPool(t, poolOptions{})
			e.startRBD(t, w.a, e.a)
			e.startRBD(t, w.b, e.b)
			for _, o := range []struct {
				name string
				rbdimage.Options
			}{
				{"plain", rbdimage.Options{}},
				{"no object map", rbdimage.Options{Features: rbdimage.Plain}},
				{"small objects", rbdimage.Options{Order: 18}},
			} {
				m := rbdimage.Create(t, p.a, o.name, rbdimage.Options{Size: 8 * object, Features: o.Features, Order: o.Order})
				m.Fill(1, 0, 5*object)
				m.Snap("on a")
				m.Fill(2, object, mib)
				m.Mirror()
			}
			names := []string{"plain", "no object map", "small objects"}
			if *long && w.a == ours && w.b == ours {
				parent := rbdimage.Create(t, p.a, "parent", rbdimage.Options{Size: 8 * object})
				parent.Fill(3, 0, 7*object)
				parent.Snap("base")
				parent.Protect("base")
				parent.Mirror()
				for version, name := range map[uint64]string{1: "old clone", 2: "new clone"} {
					m := parent.Clone("base", p.a, name, rbdimage.Options{CloneVersion: version})
					m.Fill(4, 5*object, mib)
					m.Mirror()
					names = append(names, name)
				}
			}
			t.Run("group", func(t *testing.T) {
				for _, name := range names {
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						p.failOver(t, w, rbdimage.On(t, p.a, name))
					})
				}
			})
		})
	}
}

func (p *rbdPool) failOver(t *testing.T, w who, a rbdimage.Maker) {
	change := func(m rbdimage.Maker, by string, seed uint64) {
		m.Fill(seed, 2*object+1000, object)
		m.Snap(fmt.Sprintf("snap%d", seed))
		m.Fill(seed+1, 6*object, mib)
		if by == ours {
			m.Discard(0, mib)
			m.Zero(3*object, object)
		}
	}
	p.wait(t, a, a.Snaps()[len(a.Snaps())-1].ID)
	change(a, w.b, 10)
	b := p.demoted(t, a)
	p.sameBy(t, a, w.b)
	p.promote(t, b)
	if w.b == ours {
		p.checkMaps(t, b)
	}

	// And back.
	change(b, w.a, 20)
	p.wait(t, b, b.MirrorSnap())
	p.sameBy(t, b, w.a)
	p.waitState(t, 45*time.Second, a, "up+replaying", `"replay_state":"idle"`)
	change(b, w.a, 30)
	p.demoted(t, b)
	p.sameBy(t, b, w.a)
	p.promote(t, a)
	if w.a == ours {
		p.checkMaps(t, a)
	}

	// And mirrored again as at first.
	change(a, w.b, 40)
	p.wait(t, a, a.MirrorSnap())
	p.sameBy(t, a, w.b)
	change(a, w.b, 50)
	p.wait(t, a, a.MirrorSnap())
	p.sameBy(t, a, w.b)
	p.waitState(t, 45*time.Second, b, "up+replaying", `"replay_state":"idle"`)
	if w.a == ours && w.b == ours {
		// Nothing piles up on either side.
		for _, m := range []rbdimage.Maker{a, b} {
			within(t, patience, "old mirror snapshots to be removed", func() error {
				if n := mirrorSnaps(m); n > 3 {
					return fmt.Errorf("%d mirror snapshots on %s: %+v", n, m.Pool().Client.Name(), m.Snaps())
				}
				return nil
			})
		}
	}
}

// slowly fills an image with so many objects that copying them takes a while.
func slowly(t *testing.T, p rbdimage.Pool, name string) rbdimage.Maker {
	t.Helper()
	m := rbdimage.Create(t, p, name, rbdimage.Options{Size: 96 * mib, Order: 16})
	m.Fill(1, 0, 96*mib)
	return m
}

// midRBD waits until a mirror snapshot of m is being copied.
func (p *rbdPool) midRBD(t *testing.T, m rbdimage.Maker, snap uint64) {
	t.Helper()
	to := p.other(m.Pool())
	deadline := time.Now().Add(40 * time.Second)
	look := func() error {
		snaps, err := to.Peek(m.Name())
		if err != nil {
			return err
		}
		for _, s := range snaps {
			if s.Synced() && s.Source == snap {
				t.Skip("the synchronisation was done too soon to disturb it")
			}
			if s.Kind == rbdimage.Mirror && s.Source == snap && s.Copied > 0 {
				t.Logf("object %d was copied", s.Copied)
				return nil
			}
		}
		return fmt.Errorf("not among %+v", snaps)
	}
	for err := look(); err != nil; err = look() {
		if time.Now().After(deadline) {
			t.Fatalf("the synchronisation is not under way: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRBDForcedPromotion promotes a copy while its source is out of reach, in
// the middle of a synchronisation: the copy becomes what it was at the last
// complete one.
func TestRBDForcedPromotion(t *testing.T) {
	e := need(t)
	notStock(t, "it waits for its peer for ever, and loses the last complete synchronisation")
	p, d := e.mirroredSlowly(t)
	m := slowly(t, p.a, "image")
	p.wait(t, m, m.Mirror())
	m.Fill(2, 0, mib)
	m.Snap("user")
	m.Discard(5*mib, mib)
	good := m.MirrorSnap()
	copy := p.wait(t, m, good)
	m.Fill(3, 0, 96*mib)
	m.Snap("too late")
	m.Resize(100 * mib)
	m.Fill(4, 96*mib, 4*mib)
	p.midRBD(t, m, m.MirrorSnap())
	if err := e.a.Signal(e.ctx(t), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			if err := e.a.Signal(e.ctx(t), syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
	}
	defer thaw()
	begun := time.Now()
	if _, err := e.tryRBDWithin(e.b, 60*time.Second, "mirror", "image", "promote", "--force", copy.Spec()); err != nil {
		out, _ := d.call("rbd mirror status " + copy.Spec())
		t.Fatalf("%v\nthe daemon: %s\nwatchers of the copy: %s\nsnapshots: %+v", err, out, p.rados(t, "listwatchers", "rbd_header."+copy.ID()), copy.Snaps())
	}
	t.Logf("promoted after %v", time.Since(begun).Round(100*time.Millisecond))
	if _, err := d.call("rbd mirror status"); err != nil {
		t.Error(err)
	}
	thaw()
	diffs, err := rbdimage.Compare(m.At(good), copy.At(rbdimage.Head))
	if err != nil {
		t.Fatal(err)
	}
	for _, diff := range diffs {
		t.Errorf("after the roll-back: %s", diff)
	}
	p.checkMaps(t, copy, "too late") // which never was complete
	p.waitOwn(t, copy, "up+stopped", "")

	// The new primary is written to, and the old one follows it.
	e.startRBD(t, tested(), e.a)
	copy.Fill(5, 10*mib, mib)
	copy.MirrorSnap()
	m.Demote()
	p.waitOwn(t, m, "up+error", "split-brain")
	m.Resync()
	p.waitResync(t, copy, copy.MirrorSnap())
	p.same(t, copy)
	copy.Fill(6, 0, 5*mib)
	p.waitSame(t, copy)
}

// waitOwn waits for what the daemon tells its own site of an image.
func (p *rbdPool) waitOwn(t *testing.T, m rbdimage.Maker, state, text string) {
	t.Helper()
	within(t, 45*time.Second, fmt.Sprintf("%s to be %s (%s)", m.Spec(), state, text), func() error {
		st, de, err := p.own(m.Pool(), m.Name())
		if err == nil && (st != state || !strings.Contains(de, text)) {
			err = fmt.Errorf("it is %s (%s)", st, de)
		}
		return err
	})
}

// waitResync waits for a mirror snapshot to arrive at a copy that may be
// removed and made anew in between.
func (p *rbdPool) waitResync(t *testing.T, m rbdimage.Maker, snap uint64) {
	t.Helper()
	p.waitLong(t, 90*time.Second, m, snap)
}

// TestRBDSplitBrain changes both sides, and lets one follow the other again.
func TestRBDSplitBrain(t *testing.T) {
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	m, snap := p.newImage(t, "image", rbdimage.Options{Size: 64 * mib})
	m.Fill(1, 0, 60*mib)
	m.Snap("common")
	copy := p.wait(t, m, snap)
	p.wait(t, m, m.MirrorSnap())
	p.waitIdle(t, copy)
	p.rbd(t, e.b, "mirror", "image", "promote", "--force", copy.Spec())
	p.waitOwn(t, copy, "up+stopped", "")
	copy.Fill(2, 10*mib, mib)
	copy.Snap("only here")
	m.Fill(3, 20*mib, mib)
	m.MirrorSnap()
	copy.Demote()
	p.waitState(t, 45*time.Second, copy, "up+error", "split-brain")
	// Nothing is written without being asked for.
	holds(t, 3*time.Second, "in split-brain", func() error {
		for _, s := range copy.Snaps() {
			if s.Name == "only here" {
				return nil
			}
		}
		return fmt.Errorf("the snapshot of the copy vanished")
	})
	before := e.written(t, e.b)
	copy.Resync()
	p.waitResync(t, m, m.MirrorSnap())
	p.same(t, m)
	p.waitIdle(t, copy)
	t.Logf("%d bytes were written by the resync", e.written(t, e.b)-before)
	if n := e.written(t, e.b) - before; tested() == ours && n > 20*mib {
		t.Errorf("%d bytes were written though there was a common snapshot", n)
	}
	m.Fill(4, 0, mib)
	p.waitSame(t, m)
}

// written is how many bytes clients have written to a cluster's OSD.
func (e *env) written(t *testing.T, c interface {
	Name() string
}) int64 {
	t.Helper()
	cluster := e.a
	if c.Name() == "b" {
		cluster = e.b
	}
	out, err := cluster.Daemon("osd.0").Admin(e.ctx(t), map[string]any{"prefix": "perf dump"})
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		OSD struct {
			Plain int64 `json:"op_w_in_bytes"`
			Other int64 `json:"op_rw_in_bytes"` // with a condition
		} `json:"osd"`
	}
	mustJSON(t, out, &dump)
	return dump.OSD.Plain + dump.OSD.Other
}

// TestRBDResync asks for a copy to be made anew.
func TestRBDResync(t *testing.T) {
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	t.Run("in order", func(t *testing.T) {
		m, snap := p.newImage(t, "fine", rbdimage.Options{})
		m.Fill(1, 0, 20*mib)
		m.Snap("user")
		p.wait(t, m, snap)
		copy := p.wait(t, m, m.MirrorSnap())
		p.waitIdle(t, copy)
		copy.Resync()
		p.waitResync(t, m, m.MirrorSnap())
		p.same(t, m)
		p.waitIdle(t, copy)
	})
	t.Run("a copy that is damaged", func(t *testing.T) {
		notStock(t, "it starts from nothing, which is no proof")
		m, snap := p.newImage(t, "damaged", rbdimage.Options{})
		m.Fill(1, 0, 20*mib)
		p.wait(t, m, snap)
		copy := p.wait(t, m, m.MirrorSnap())
		p.waitIdle(t, copy)
		objects, err := copy.At(rbdimage.Head).Objects()
		if err != nil || len(objects) == 0 {
			t.Fatal(objects, err)
		}
		if err := copy.Damage(objects[1]); err != nil {
			t.Fatal(err)
		}
		if diffs, err := p.differences(m, tested()); err != nil || len(diffs) == 0 {
			t.Fatalf("the damage is not seen: %v, %v", diffs, err)
		}
		copy.Resync()
		within(t, 60*time.Second, "the damage to be mended", func() error {
			diffs, err := p.differences(m, tested())
			if err == nil && len(diffs) > 0 {
				err = fmt.Errorf("%v", diffs)
			}
			return err
		})
		p.waitIdle(t, copy)
		p.waitSame(t, m)
	})
	t.Run("without a primary", func(t *testing.T) {
		if tested() == stock && e.bed.Release().Name == "reef" {
			t.Skip("the stock daemon deletes the only good copy")
		}
		m, snap := p.newImage(t, "demoted", rbdimage.Options{})
		m.Fill(1, 0, 20*mib)
		p.wait(t, m, snap)
		copy := p.demoted(t, m)
		p.waitOwn(t, copy, "up+unknown", "remote image")
		id := copy.ID()
		copy.Resync()
		holds(t, 5*time.Second, "asked to resync", func() error {
			there, err := p.b.Exists(copy.Name())
			if err == nil && (!there || copy.ID() != id) {
				err = fmt.Errorf("the copy was deleted")
			}
			return err
		})
		p.sameBy(t, m, stock)
	})
}

// TestRBDRemoval removes images, or no longer mirrors them.
func TestRBDRemoval(t *testing.T) {
	e := need(t)
	p := e.newPool(t, poolOptions{})
	d := e.startRBD(t, tested(), e.b)
	gone := func(t *testing.T, name, id string) {
		t.Helper()
		p.removed(t, 45*time.Second, name, id)
		if _, err := d.call("rbd mirror status " + p.b.Spec(name)); err == nil && d.Running() {
			within(t, 10*time.Second, "its command to vanish", func() error {
				if _, err := d.call("rbd mirror status " + p.b.Spec(name)); err == nil {
					return fmt.Errorf("it is there")
				}
				return nil
			})
		}
	}
	make := func(t *testing.T, name string) (rbdimage.Maker, string) {
		m, snap := p.newImage(t, name, rbdimage.Options{})
		m.Fill(1, 0, 10*mib)
		m.Snap("one")
		m.Protect("one")
		m.Fill(2, 5*mib, 10*mib)
		m.Snap("two")
		p.wait(t, m, snap)
		copy := p.wait(t, m, m.MirrorSnap())
		p.waitIdle(t, copy)
		return m, copy.ID()
	}
	t.Run("disabled", func(t *testing.T) {
		m, id := make(t, "disabled")
		m.Unmirror()
		gone(t, m.Name(), id)
		// And once more the same name.
		p.wait(t, m, m.Mirror())
		p.same(t, m)
	})
	t.Run("removed", func(t *testing.T) {
		m, id := make(t, "removed")
		removeWithSnaps(m)
		gone(t, m.Name(), id)
		m, _ = make(t, "removed")
		p.waitSame(t, m)
	})
	t.Run("while no daemon runs", func(t *testing.T) {
		m, id := make(t, "at rest")
		d.stop(t)
		removeWithSnaps(m)
		d.start(t)
		gone(t, m.Name(), id)
	})
	t.Run("in use", func(t *testing.T) {
		// Somebody reads the copy: it is removed once that is over.
		m, id := make(t, "in use")
		child := m.In(p.b).For(t).Clone("two", p.b, "child", rbdimage.Options{CloneVersion: 2})
		removeWithSnaps(m)
		holds(t, 5*time.Second, "with a clone", func() error {
			_, err := rbdimage.Sum(child.At(rbdimage.Head))
			return err
		})
		child.Remove()
		gone(t, m.Name(), id)
	})
	t.Run("with delay", func(t *testing.T) {
		m, id := make(t, "delayed")
		p.rbd(t, e.b, "config", "pool", "set", p.name, "rbd_mirroring_delete_delay", "8")
		d.stop(t)
		d.start(t)
		p.waitOwn(t, m.In(p.b), "up+replaying", "idle")
		p.removeDelayed(t, m, func() { gone(t, m.Name(), id) })
	})
	t.Run("primary here", func(t *testing.T) {
		// A copy that was promoted stays, whatever becomes of the other one.
		m, _ := make(t, "promoted")
		copy := p.demoted(t, m)
		p.promote(t, copy)
		p.keepsPromoted(t, m)
	})
}

// removeWithSnaps removes an image with its snapshots one, which is protected,
// and two.
func removeWithSnaps(m rbdimage.Maker) {
	m.Unprotect("one")
	m.RemoveSnap("one")
	m.RemoveSnap("two")
	m.Remove()
}

// removed waits until an image of b is gone with all its objects.
func (p *rbdPool) removed(t *testing.T, limit time.Duration, name, id string) {
	t.Helper()
	within(t, limit, name+" to be removed", func() error {
		if there, err := p.b.Exists(name); err != nil || there {
			return fmt.Errorf("it exists: %v, %v", there, err)
		}
		if out, err := p.e.tryRBD(p.e.b, "trash", "ls", "--all", p.b.String(), "--format", "json"); err != nil || strings.TrimSpace(out) != "[]" {
			return fmt.Errorf("in the trash: %s, %v", out, err)
		}
		return p.leftovers(id)
	})
}

// removeDelayed removes an image whose copy is to stay in the trash for 8 s.
func (p *rbdPool) removeDelayed(t *testing.T, m rbdimage.Maker, gone func()) {
	t.Helper()
	removeWithSnaps(m)
	begun := time.Now()
	within(t, 40*time.Second, "the image to be in the trash", func() error {
		out, err := p.e.tryRBD(p.e.b, "trash", "ls", "--all", "--long", p.b.String())
		if err == nil && !(strings.Contains(out, "delayed") && strings.Contains(out, "MIRRORING")) {
			err = fmt.Errorf("the trash has %s", out)
		}
		return err
	})
	gone()
	if took := time.Since(begun); took < 7*time.Second {
		t.Errorf("it was removed after %v already", took)
	}
}

// keepsPromoted disables mirroring of an image on a whose copy on b was
// promoted.
func (p *rbdPool) keepsPromoted(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	p.rbd(t, p.e.a, "mirror", "image", "disable", "--force", m.Spec())
	holds(t, 6*time.Second, "with its old primary gone", func() error {
		there, err := p.b.Exists(m.Name())
		if err == nil && !there {
			err = fmt.Errorf("the image was deleted")
		}
		return err
	})
}

// leftovers looks for objects of a removed image on b.
func (p *rbdPool) leftovers(id string) error {
	var left []string
	err := p.b.With(func(ctx *rados.IOContext) error {
		return ctx.ListObjects(func(name string) {
			if strings.Contains(name, "."+id) {
				left = append(left, name)
			}
		})
	})
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d objects are left: %.300v", len(left), left)
	}
	return err
}

// TestRBDSnapshotInUse removes a user snapshot of which the copy's side has a
// clone of its own.
func TestRBDSnapshotInUse(t *testing.T) {
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	t.Run("by a clone of the old kind", func(t *testing.T) {
		needLong(t)
		notStock(t, "it stops at the snapshot")
		m, snap := p.newImage(t, "old", rbdimage.Options{})
		m.Fill(1, 0, 10*mib)
		m.Snap("used")
		m.Protect("used")
		p.wait(t, m, snap)
		copy := p.wait(t, m, m.MirrorSnap())
		child := copy.For(t).Clone("used", p.b, "old child", rbdimage.Options{CloneVersion: 1})
		want, err := rbdimage.Sum(child.At(rbdimage.Head))
		if err != nil {
			t.Fatal(err)
		}
		m.Unprotect("used")
		m.RemoveSnap("used")
		m.Fill(2, 0, 5*mib)
		for range 2 {
			m.Fill(2, 0, 5*mib)
			p.wait(t, m, m.MirrorSnap())
			if diffs, err := rbdimage.Compare(m.At(rbdimage.Head), copy.At(rbdimage.Head)); err != nil || len(diffs) > 0 {
				t.Errorf("the copy: %v, %v", diffs, err)
			}
			if got, err := rbdimage.Sum(child.At(rbdimage.Head)); err != nil || got != want {
				t.Errorf("the clone changed from %s to %s (%v)", want, got, err)
			}
		}
		p.waitIdle(t, copy)
		// Nobody needs it any more.
		child.Remove()
		m.Fill(3, 0, 5*mib)
		p.waitSame(t, m)
	})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 10*mib)
	m.Snap("used")
	m.Snap("other")
	p.wait(t, m, snap)
	copy := p.wait(t, m, m.MirrorSnap())
	child := copy.For(t).Clone("used", p.b, "child", rbdimage.Options{CloneVersion: 2})
	want, err := rbdimage.Sum(child.At(rbdimage.Head))
	if err != nil {
		t.Fatal(err)
	}
	m.RemoveSnap("used")
	m.Fill(2, 0, 5*mib)
	p.wait(t, m, m.MirrorSnap())
	p.same(t, m)
	if got, err := rbdimage.Sum(child.At(rbdimage.Head)); err != nil || got != want {
		t.Errorf("the clone changed from %s to %s (%v)", want, got, err)
	}
	trash := 0
	for _, s := range copy.Snaps() {
		if s.Kind == rbdimage.Trash {
			trash++
		}
	}
	if trash != 1 {
		t.Errorf("%d snapshots in the trash: %+v", trash, copy.Snaps())
	}
	child.Remove()
	m.Fill(3, 0, 5*mib)
	p.waitSame(t, m)
}

// TestRBDRecreate asks for a copy to be removed and made anew, which is what the
// stock daemon makes of a resync.
func TestRBDRecreate(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	var opts []string
	if tested() == ours {
		opts = append(opts, "--cephmirror-rbd-recreate-on-resync=true")
	}
	e.startRBD(t, tested(), e.b, opts...)
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 20*mib)
	m.Snap("user")
	p.wait(t, m, snap)
	copy := p.wait(t, m, m.MirrorSnap())
	p.waitIdle(t, copy)
	id, gid := copy.ID(), copy.GlobalID()
	copy.Resync()
	within(t, 60*time.Second, "the copy to be another image", func() error {
		layout, err := p.b.Layout(copy.Name())
		if err == nil && layout.ID() == id {
			err = fmt.Errorf("it is the same")
		}
		return err
	})
	p.wait(t, m, m.MirrorSnap())
	p.waitIdle(t, copy)
	p.same(t, m)
	if now := copy.GlobalID(); now != gid {
		t.Errorf("the global id was %s and is %s", gid, now)
	}
	within(t, 30*time.Second, "the old copy to be gone", func() error {
		out, err := e.tryRBD(e.b, "trash", "ls", "--all", p.b.String(), "--format", "json")
		if err == nil && strings.TrimSpace(out) != "[]" {
			err = fmt.Errorf("in the trash: %s", out)
		}
		return err
	})
	m.Fill(2, 0, mib)
	p.waitSame(t, m)
}

// TestRBDPromotedAfterCrash promotes a copy whose daemon died in the middle of a
// synchronisation: a user snapshot that was not filled must not look like one.
func TestRBDPromotedAfterCrash(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "it leaves half a snapshot")
	p, d := e.mirroredSlowly(t)
	m := slowly(t, p.a, "image")
	m.Snap("early")
	copy := p.wait(t, m, m.Mirror())
	p.same(t, m)
	good := m.MirrorSnap()
	p.wait(t, m, good)
	m.Fill(2, 0, 90*mib)
	m.Snap("late")
	m.Fill(3, 0, 90*mib)
	p.midRBD(t, m, m.MirrorSnap())
	d.kill(t)
	within(t, 60*time.Second, "the copy to be promoted", func() error {
		_, err := e.tryRBDWithin(e.b, 60*time.Second, "mirror", "image", "promote", "--force", copy.Spec())
		return err
	})
	for what, views := range map[string][2]rbdimage.View{
		"now": {m.At(good), copy.At(rbdimage.Head)},
	} {
		diffs, err := rbdimage.Compare(views[0], views[1])
		if err != nil || len(diffs) > 0 {
			t.Errorf("%s: %v, %v", what, diffs, err)
		}
	}
	var names []string
	for _, s := range copy.Snaps() {
		if s.Kind == rbdimage.User {
			names = append(names, s.Name)
		}
	}
	t.Logf("snapshots of the copy: %q", names)
	if !slices.Contains(names, "early") || slices.Contains(names, "late") {
		t.Errorf("snapshots of the copy: %q", names)
	}
	early := map[string]uint64{}
	for _, side := range []rbdimage.Maker{m, copy} {
		for _, s := range side.Snaps() {
			if s.Name == "early" {
				early[side.Spec()+side.Pool().Client.Name()] = s.ID
			}
		}
	}
	a, b := early[m.Spec()+"a"], early[copy.Spec()+"b"]
	if diffs, err := rbdimage.Compare(m.At(a), copy.At(b)); err != nil || len(diffs) > 0 {
		t.Errorf("the early snapshot: %v, %v", diffs, err)
	}
}
