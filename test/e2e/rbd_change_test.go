package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/test/rbdimage"
)

// rbdChange is what happens to an image between two mirror snapshots.
type rbdChange struct {
	name    string
	options rbdimage.Options
	before  func(m rbdimage.Maker)
	after   func(t *testing.T, m *rbdimage.Maker)
	wrong   string // what the stock daemon does wrong with it
}

const object = 4 * mib

func rbdChanges() []rbdChange {
	type M = *rbdimage.Maker
	full := func(m rbdimage.Maker) { m.Fill(1, 0, 8*object) }
	const discards = "discards and zeroes are not carried"
	return []rbdChange{
		{name: "nothing", before: full, after: func(*testing.T, M) {}},

		// Content.
		{name: "overwritten", before: full, after: func(_ *testing.T, m M) { m.Fill(2, 3*object+5, 2*object) }},
		{name: "small writes", before: full, after: func(_ *testing.T, m M) {
			m.Edit(func(img *rbd.Image) error {
				for i := range 300 {
					if _, err := img.WriteAt(rbdimage.Data(uint64(i), 512), int64(i*7919%65000)*512); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{name: "written into holes", before: func(m rbdimage.Maker) { m.Fill(1, object, 1000) }, after: func(_ *testing.T, m M) {
			m.Fill(2, 3*object+mib, 10000)
			m.Fill(3, object+3*mib, 10000)
		}},
		{name: "written with zeroes", before: full, after: func(_ *testing.T, m M) { m.Write(object, make([]byte, 2*object)) }, wrong: discards},
		{name: "object discarded", before: full, after: func(_ *testing.T, m M) { m.Discard(2*object, object) }, wrong: discards},
		{name: "start of an object discarded", before: full, after: func(_ *testing.T, m M) { m.Discard(2*object, object/2) }, wrong: discards},
		{name: "end of an object discarded", before: full, after: func(_ *testing.T, m M) { m.Discard(2*object+object/2, object/2) }, wrong: discards},
		{name: "middle of an object discarded", before: full, after: func(_ *testing.T, m M) { m.Discard(2*object+mib, 2*mib) }, wrong: discards},
		{name: "discarded over objects", before: full, after: func(_ *testing.T, m M) { m.Discard(object+mib, 4*object) }, wrong: discards},
		{name: "all discarded", before: full, after: func(_ *testing.T, m M) { m.Discard(0, 8*object) }, wrong: discards},
		{name: "discarded and written", before: full, after: func(_ *testing.T, m M) {
			m.Discard(object, 3*object)
			m.Fill(2, object+5000, 100)
			m.Fill(3, 3*object, 2*mib)
		}, wrong: discards},
		{name: "written and discarded", before: full, after: func(_ *testing.T, m M) {
			m.Fill(2, object, 3*object)
			m.Discard(object, 2*object+mib)
		}, wrong: discards},
		{name: "zeroed", before: full, after: func(_ *testing.T, m M) { m.Zero(object+100, 3*object+5000) }, wrong: discards},
		{name: "discards without object map", options: rbdimage.Options{Features: rbdimage.Plain}, before: full, after: func(_ *testing.T, m M) {
			m.Discard(2*object, object)
			m.Discard(4*object, mib)
			m.Zero(5*object+mib, object)
		}, wrong: discards},
		{name: "striped", options: rbdimage.Options{Order: 20, StripeUnit: 128 << 10, StripeCount: 3}, before: full, after: func(_ *testing.T, m M) {
			m.Fill(2, 3*mib+5, mib)
			m.Discard(9*mib, 4*mib)
			m.Zero(20*mib+1000, 100000)
		}, wrong: discards},
		{name: "rolled back", before: func(m rbdimage.Maker) { full(m); m.Snap("s"); m.Fill(2, object, object) }, after: func(_ *testing.T, m M) {
			m.Fill(3, 5*object, object)
			m.Rollback("s")
		}},

		// User snapshots.
		{name: "snapshot made", before: full, after: func(_ *testing.T, m M) {
			m.Fill(2, 0, object)
			m.Snap("s")
			m.Fill(3, mib, object)
		}},
		{name: "snapshot of discards", before: full, after: func(_ *testing.T, m M) {
			m.Discard(0, 2*object)
			m.Snap("s")
			m.Fill(3, object, 1000)
			m.Discard(3*object, object)
			m.Snap("t")
			m.Fill(4, 3*object+mib, 1000)
		}, wrong: discards},
		{name: "many snapshots", before: full, after: func(_ *testing.T, m M) {
			for i := range 8 {
				m.Fill(uint64(i), uint64(i)*object, 2*mib)
				m.Snap(string(rune('a' + i)))
				m.Fill(uint64(i)+100, uint64(i)*object+mib, mib)
			}
		}},
		{name: "snapshot removed", before: func(m rbdimage.Maker) {
			full(m)
			m.Snap("a")
			m.Fill(2, 0, object)
			m.Snap("b")
			m.Fill(3, 0, object)
		}, after: func(_ *testing.T, m M) { m.RemoveSnap("a"); m.Fill(4, object, mib) }},
		{name: "all snapshots removed", before: func(m rbdimage.Maker) {
			full(m)
			m.Snap("a")
			m.Fill(2, 0, object)
			m.Snap("b")
		}, after: func(_ *testing.T, m M) { m.RemoveSnap("a"); m.RemoveSnap("b") }},
		{name: "snapshot renamed", before: func(m rbdimage.Maker) { full(m); m.Snap("a"); m.Fill(2, 0, object); m.Snap("b") },
			after: func(_ *testing.T, m M) { m.RenameSnap("a", "ä b") }},
		{name: "snapshots exchange their names", before: func(m rbdimage.Maker) { full(m); m.Snap("a"); m.Fill(2, 0, object); m.Snap("b") },
			after: func(_ *testing.T, m M) { m.RenameSnap("a", "t"); m.RenameSnap("b", "a"); m.RenameSnap("t", "b") },
			wrong: "it cannot rename to a name that is still there"},
		{name: "snapshot replaced by one of the same name", before: func(m rbdimage.Maker) { full(m); m.Snap("a") },
			after: func(_ *testing.T, m M) { m.RemoveSnap("a"); m.Fill(2, 0, object); m.Snap("a"); m.Fill(3, 0, mib) },
			wrong: "it cannot make a snapshot whose name is still there"},
		{name: "snapshot protected and unprotected", before: func(m rbdimage.Maker) { full(m); m.Snap("a"); m.Snap("b"); m.Protect("b") },
			after: func(_ *testing.T, m M) { m.Protect("a"); m.Unprotect("b") }},
		{name: "protected snapshot removed", before: func(m rbdimage.Maker) { full(m); m.Snap("a"); m.Protect("a") },
			after: func(_ *testing.T, m M) { m.Unprotect("a"); m.RemoveSnap("a") }},
		{name: "snapshots of other sizes", before: full, after: func(_ *testing.T, m M) {
			m.Resize(7*object + 1000)
			m.Snap("small")
			m.Resize(12 * object)
			m.Fill(2, 7*object, 3*object)
			m.Snap("large")
			m.Resize(9*object + 512)
			m.Fill(3, 8*object, object)
		}},

		// Size.
		{name: "grown", before: full, after: func(_ *testing.T, m M) { m.Resize(11*object + 512) }},
		{name: "grown and written", before: full, after: func(_ *testing.T, m M) { m.Resize(11*object + 512); m.Fill(2, 7*object, 4*object+512) }},
		{name: "shrunk", before: full, after: func(_ *testing.T, m M) { m.Resize(5 * object) }},
		{name: "shrunk within an object", before: full, after: func(_ *testing.T, m M) { m.Resize(4*object + 1000) }},
		{name: "shrunk and grown", before: full, after: func(_ *testing.T, m M) { m.Resize(3*object + 4096); m.Resize(8 * object) }, wrong: discards},
		{name: "shrunk, grown and written", before: full, after: func(_ *testing.T, m M) {
			m.Resize(3*object + 4096)
			m.Resize(8 * object)
			m.Fill(2, 5*object, mib)
		}, wrong: discards},
		{name: "shrunk to nothing", before: full, after: func(_ *testing.T, m M) { m.Resize(0) }},
		{name: "shrunk with snapshots", before: func(m rbdimage.Maker) { full(m); m.Snap("a") }, after: func(_ *testing.T, m M) { m.Resize(2*object + 5); m.Snap("b") }},

		// Other properties.
		{name: "metadata", before: func(m rbdimage.Maker) { m.SetMeta("a", "1"); m.SetMeta("b", "1"); m.SetMeta("conf_rbd_cache", "true") },
			after: func(_ *testing.T, m M) { m.RemoveMeta("a"); m.SetMeta("b", "2"); m.SetMeta("ç", "3") }},
		{name: "features taken away", before: full, after: func(_ *testing.T, m M) {
			m.Disable(rbdimage.FastDiff | rbdimage.ObjectMap)
			m.Fill(2, 0, mib)
		}},
		{name: "features added", options: rbdimage.Options{Features: rbdimage.Plain}, before: full, after: func(t *testing.T, m M) {
			m.Snap("s")
			m.Fill(2, 0, mib)
			m.Enable(rbdimage.ObjectMap | rbdimage.FastDiff)
			rebuild(t, *m)
			m.Fill(3, object, mib)
		}},
		{name: "object map that was never built", options: rbdimage.Options{Features: rbdimage.Plain}, before: full, after: func(_ *testing.T, m M) {
			m.Enable(rbdimage.ObjectMap | rbdimage.FastDiff)
			m.Fill(2, object, mib)
			m.Discard(5*object, object)
		}, wrong: discards},
		{name: "snapshots limited", before: full, after: func(t *testing.T, m M) {
			m.Snap("s")
			limitSnaps(t, *m, "set", "--limit", "12")
		}},
		{name: "deep-flatten taken away", before: full, after: func(_ *testing.T, m M) { m.Disable(rbdimage.DeepFlat) }},
	}
}

// rebuild makes the object map true.
func rebuild(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	e := need(t)
	if _, err := e.tryRBD(e.cluster(m.Pool()), "object-map", "rebuild", m.Spec(), "--no-progress"); err != nil {
		t.Fatal(err)
	}
}

// limitSnaps changes how many snapshots an image may have.
func limitSnaps(t *testing.T, m rbdimage.Maker, args ...string) {
	t.Helper()
	e := need(t)
	args = append([]string{"snap", "limit"}, args...)
	if _, err := e.tryRBD(e.cluster(m.Pool()), append(args, m.Spec())...); err != nil {
		t.Fatal(err)
	}
}

// TestRBDChanges makes a change between two mirror snapshots, and a small one
// after it.
func TestRBDChanges(t *testing.T) {
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	for _, c := range rbdChanges() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.wrong != "" {
				notStock(t, c.wrong)
			}
			c.options.Size = 8 * object
			m := rbdimage.Create(t, p.a, c.name, c.options)
			c.before(m)
			p.wait(t, m, m.Mirror())
			p.same(t, m)
			c.after(t, &m)
			p.waitSame(t, m)
			m.SetMeta("later", "yes")
			p.waitSame(t, m)
		})
	}
}

// TestRBDCloneChanges changes clones.
func TestRBDCloneChanges(t *testing.T) {
	e := need(t)
	notStock(t, "a copy-up on the primary is taken for a change")
	p, _ := e.mirrored(t, poolOptions{})
	parent := rbdimage.Create(t, p.a, "parent", rbdimage.Options{Size: 8 * object})
	parent.Fill(1, 0, 7*object)
	parent.Snap("base")
	parent.Protect("base")
	parent.Mirror()
	type M = rbdimage.Maker
	for _, c := range []struct {
		name          string
		before, after func(m M)
	}{
		{"written", nil, func(m M) { m.Fill(2, 3*object+mib, 5000) }},
		{"written over a whole object", nil, func(m M) { m.Fill(2, 3*object, object) }},
		{"written after the copy was there", func(m M) { m.Fill(2, object, 5000); m.Snap("s") }, func(m M) { m.Fill(3, object+mib, 5000); m.Fill(4, 5*object, 5000) }},
		{"snapshots before and after a copy-up", func(m M) { m.Snap("a") }, func(m M) {
			m.Snap("b")
			m.Fill(2, 2*object+5000, 5000)
			m.Snap("c")
			m.Fill(3, 4*object, 2*object)
			m.Snap("d")
		}},
		{"discarded", nil, func(m M) { m.Discard(object, 2*object); m.Discard(4*object+mib, mib) }},
		{"discarded with snapshots", func(m M) { m.Snap("a"); m.Fill(2, 0, object) }, func(m M) {
			m.Discard(0, 2*object)
			m.Snap("b")
			m.Fill(3, object, 1000)
		}},
		{"shrunk and grown", nil, func(m M) { m.Resize(3*object + 1000); m.Resize(8 * object) }},
		{"shrunk", func(m M) { m.Snap("a") }, func(m M) { m.Resize(3*object + 1000); m.Fill(2, object, 1000) }},
		{"flattened", func(m M) { m.Fill(2, object, 5000) }, func(m M) { m.Flatten() }},
		{"flattened with snapshots", func(m M) { m.Fill(2, object, 5000); m.Snap("a") }, func(m M) { m.Flatten(); m.Fill(3, 3*object, 100) }},
		{"flattened after it was shrunk and grown", func(m M) { m.Snap("a"); m.Fill(2, object, 5000); m.Snap("b") }, func(m M) {
			m.Resize(3*object + 1000)
			m.Resize(8 * object)
			m.Flatten()
		}},
		{"flattened, mirrored before as shrunk and grown", func(m M) { m.Snap("a"); m.Fill(2, object, 5000); m.Snap("b") }, func(m M) {
			m.Resize(3*object + 1000)
			m.Resize(8 * object)
			m.MirrorSnap()
			m.Flatten()
		}},
		{"zeroed", nil, func(m M) { m.Zero(object+mib, 2*object) }},
	} {
		for _, version := range []uint64{1, 2} {
			name := map[uint64]string{1: "v1 ", 2: "v2 "}[version] + c.name
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if version == 1 && c.before == nil {
					needLong(t)
				}
				m := parent.For(t).Clone("base", p.a, name, rbdimage.Options{CloneVersion: version})
				if c.before != nil {
					c.before(m)
				}
				p.wait(t, m, m.Mirror())
				p.same(t, m)
				c.after(m)
				p.waitSame(t, m)
				m.Fill(9, object+2*mib, 100)
				p.waitSame(t, m)
			})
		}
	}
}

// TestRBDRename renames an image, also to the name that another one had.
func TestRBDRename(t *testing.T) {
	e := need(t)
	p, d := e.mirrored(t, poolOptions{})
	m, snap := p.newImage(t, "before", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	m.Rename("after")
	m.Fill(2, mib, mib)
	snap = m.MirrorSnap()
	copy := p.wait(t, m, snap)
	p.same(t, m)
	if there, err := p.b.Exists("before"); err != nil || there {
		t.Errorf("the copy still has the old name too: %v, %v", there, err)
	}
	p.waitIdle(t, copy)
	within(t, statusPatience(), "the command of the new name", func() error {
		_, err := d.call("rbd mirror status " + copy.Spec())
		return err
	})
	within(t, statusPatience(), "the command of the old name to vanish", func() error {
		out, err := d.call("rbd mirror status " + p.b.Spec("before"))
		if err == nil {
			return errText("it answers %s", out)
		}
		return nil
	})
	// Another image takes the old name.
	other, snap := p.newImage(t, "before", rbdimage.Options{})
	other.Fill(3, 0, mib)
	p.wait(t, other, snap)
	p.waitSame(t, other)
	p.waitSame(t, m)
}

// TestRBDNamesSwapped has images, and snapshots, that take each other's names.
func TestRBDNamesSwapped(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "each waits for the other's name")
	p, _ := e.mirrored(t, poolOptions{})
	m, _ := p.newImage(t, "one", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	m.Snap("a")
	m.Fill(2, 0, 5*mib)
	m.Snap("b")
	p.waitSame(t, m)
	m.RenameSnap("a", "c")
	m.RenameSnap("b", "a")
	m.RenameSnap("c", "b")
	m.Fill(3, 0, mib)
	m.Snap("d")
	p.waitSame(t, m)

	all := []rbdimage.Maker{m}
	for i, name := range []string{"two", "three"} {
		n, snap := p.newImage(t, name, rbdimage.Options{})
		n.Fill(uint64(10+i), 0, 5*mib)
		p.wait(t, n, snap)
		all = append(all, n)
	}
	all[0].Rename("aside")
	all[1].Rename("one")
	all[2].Rename("two")
	all[0].Rename("three")
	for i, n := range all {
		n.Fill(uint64(20+i), mib, mib)
		n.MirrorSnap()
	}
	for _, n := range all {
		within(t, 60*time.Second, "the copy of "+n.Name(), func() error {
			diffs, err := p.differences(n, tested())
			if err == nil && len(diffs) > 0 {
				err = errText("%v", diffs)
			}
			return err
		})
	}
	names, err := p.b.Images()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if want := []string{"one", "three", "two"}; !slices.Equal(names, want) {
		t.Errorf("the copies are %q", names)
	}
	for _, n := range all {
		p.waitSame(t, n)
	}
}

// TestRBDGroup has images in a group, whose snapshots are not mirrored, and
// that is rolled back.
func TestRBDGroup(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	group := p.name + "/group"
	p.rbd(t, e.a, "group", "create", group)
	var all []rbdimage.Maker
	for i, name := range []string{"one", "two"} {
		m, snap := p.newImage(t, name, rbdimage.Options{})
		m.Fill(uint64(i), 0, 10*mib)
		p.wait(t, m, snap)
		p.rbd(t, e.a, "group", "image", "add", group, m.Spec())
		all = append(all, m)
	}
	same := func() {
		t.Helper()
		for _, m := range all {
			p.waitSame(t, m)
		}
	}
	p.rbd(t, e.a, "group", "snap", "create", group+"@first")
	same()
	for i, m := range all {
		m.Fill(uint64(i+5), 2*mib, 10*mib)
		m.Snap("user")
	}
	p.rbd(t, e.a, "group", "snap", "create", group+"@second")
	same()
	p.rbd(t, e.a, "group", "snap", "rollback", group+"@first", "--no-progress")
	same()
	all[0].Fill(9, mib, mib)
	p.rbd(t, e.a, "group", "snap", "rm", group+"@first")
	p.rbd(t, e.a, "group", "image", "rm", group, all[1].Spec())
	same()
}
