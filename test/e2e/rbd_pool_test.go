package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"cephmirror/test/rbdimage"
)

func e2eContext() context.Context { return context.Background() }

// TestRBDNamespaces mirrors namespaces of a pool, and follows them as they are
// enabled and disabled.
func TestRBDNamespaces(t *testing.T) {
	e := need(t)
	p, d := e.mirrored(t, poolOptions{namespaces: []string{"one", "two"}})
	var all []*rbdPool
	for _, ns := range []string{"", "one", "two"} {
		q := p.namespace(ns)
		all = append(all, q)
		m, snap := q.newImage(t, "same name", rbdimage.Options{})
		m.Fill(uint64(len(all)), 0, 5*mib)
		q.wait(t, m, snap)
		copy := q.waitSame(t, m)
		q.waitIdle(t, copy)
		if _, err := d.call("rbd mirror status " + copy.Spec()); err != nil {
			t.Error(err)
		}
	}
	// A clone of an image in another namespace of the same pool.
	t.Run("clone across namespaces", func(t *testing.T) {
		parent := rbdimage.On(t, all[1].a, "same name")
		parent.Snap("base")
		all[1].wait(t, parent, parent.MirrorSnap())
		child := parent.Clone("base", all[2].a, "child", rbdimage.Options{CloneVersion: 2})
		child.Fill(5, mib, mib)
		all[2].wait(t, child, child.Mirror())
		all[2].same(t, child)
	})
	t.Run("enabled later", func(t *testing.T) {
		for _, c := range e.sites() {
			p.rbd(t, c, "namespace", "create", p.name+"/late")
			p.rbd(t, c, "mirror", "pool", "enable", p.name+"/late", "image")
		}
		q := p.namespace("late")
		m, snap := q.newImage(t, "image", rbdimage.Options{})
		m.Fill(1, 0, 5*mib)
		q.waitLong(t, 60*time.Second, m, snap)
		q.waitSame(t, m)
	})
	t.Run("disabled", func(t *testing.T) {
		q := all[2]
		m := rbdimage.On(t, q.a, "same name")
		child := rbdimage.On(t, q.a, "child")
		child.Unmirror()
		m.Unmirror()
		within(t, 45*time.Second, "the copies to be removed", func() error {
			images, err := q.b.Images()
			if err == nil && len(images) > 0 {
				err = fmt.Errorf("there are %v", images)
			}
			return err
		})
		p.rbd(t, e.b, "mirror", "pool", "disable", q.b.String())
		// The others go on.
		m = rbdimage.On(t, all[0].a, "same name")
		m.Fill(9, 0, mib)
		all[0].waitSame(t, m)
	})
}

// TestRBDClonePools mirrors a clone whose parent is in another pool.
func TestRBDClonePools(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	q := e.newPool(t, poolOptions{})
	parent := rbdimage.Create(t, q.a, "parent", rbdimage.Options{Size: 32 * mib})
	parent.Fill(1, 0, 20*mib)
	parent.Snap("base")
	parent.Protect("base")
	parent.Mirror()
	children := make(map[uint64]rbdimage.Maker) // by their first mirror snapshots
	for version, name := range map[uint64]string{1: "old", 2: "new"} {
		child := parent.Clone("base", p.a, name, rbdimage.Options{CloneVersion: version})
		child.Fill(2, 5*mib, mib)
		children[child.Mirror()] = child
	}
	e.startRBD(t, tested(), e.b)
	for snap, child := range children {
		p.waitLong(t, 60*time.Second, child, snap)
		p.same(t, child)
	}
	q.same(t, parent)
	for _, child := range children {
		child.Fill(3, 9*mib, 5*mib)
		p.waitSame(t, child)
	}
}

// TestRBDRemoteNamespace mirrors namespaces whose counterparts have other names,
// in a pool that is itself enabled for nothing but that.
func TestRBDRemoteNamespace(t *testing.T) {
	needLong(t)
	e := need(t)
	if e.bed.Release().Name == "reef" {
		t.Skip("the release knows no such thing")
	}
	p := e.newPool(t, poolOptions{mode: "init-only"})
	var spaces []*rbdPool
	for _, name := range []string{"one", "two"} {
		q := *p
		q.a.Namespace, q.b.Namespace = name+"-of-a", name+"-of-b"
		for _, side := range []rbdimage.Pool{q.a, q.b} {
			c := e.cluster(side)
			p.rbd(t, c, "namespace", "create", side.String())
			p.rbd(t, c, "mirror", "pool", "enable", side.String(), "image", "--remote-namespace", q.other(side).Namespace)
		}
		spaces = append(spaces, &q)
	}
	for _, c := range e.sites() {
		e.startRBD(t, tested(), c)
	}
	q, r := spaces[0], spaces[1]
	m, snap := q.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	m.Snap("base")
	q.wait(t, m, snap)
	copy := q.waitSame(t, m)
	q.waitIdle(t, copy)
	// Clones, one of them in another namespace than its parent.
	for _, x := range spaces {
		child := m.Clone("base", x.a, "child", rbdimage.Options{CloneVersion: 2})
		child.Fill(2, mib, mib)
		x.waitLong(t, 60*time.Second, child, child.Mirror())
		got, err := x.b.Layout("child")
		if err != nil {
			t.Fatal(err)
		}
		if want := copy.Spec() + "@base"; !strings.HasPrefix(got.Parent, want) {
			t.Errorf("the parent of the copy of %s is %q, not %q", child.Spec(), got.Parent, want)
		}
		diffs, err := rbdimage.Compare(child.At(rbdimage.Head), child.In(x.b).At(rbdimage.Head))
		if err != nil || len(diffs) > 0 {
			t.Errorf("the copy of %s: %v, %v", child.Spec(), diffs, err)
		}
	}
	// And back.
	n, snap := r.newImage(t, "moved", rbdimage.Options{})
	n.Fill(3, 0, 5*mib)
	r.wait(t, n, snap)
	there := r.demoted(t, n)
	r.same(t, n)
	r.promote(t, there)
	there.Fill(4, mib, 5*mib)
	r.wait(t, there, there.MirrorSnap())
	r.same(t, there)
	// Images of the pool itself are none of it.
	if _, err := e.tryRBD(e.a, "mirror", "image", "enable", p.a.Spec("none"), "snapshot"); err == nil {
		t.Error("mirroring of an image of the pool itself can be enabled")
	}
	if names, err := p.b.Images(); err != nil || len(names) > 0 {
		t.Errorf("images of the pool itself: %q, %v", names, err)
	}
}

// TestRBDPeerByName has a peer that is known by the name of its cluster alone,
// whose address and key are in files, and takes its key away.
func TestRBDPeerByName(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{unpeered: true})
	user := "peer-" + p.name
	if err := e.a.AddRBDPeerUser(e.ctx(t), user); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.a.RemoveUser(e2eContext(), "client."+user); err != nil {
			t.Error(err)
		}
	})
	p.rbd(t, e.b, "mirror", "pool", "peer", "add", p.name, "client."+user+"@a")
	d := e.startRBD(t, tested(), e.b)
	within(t, 45*time.Second, "a to know of b", func() error {
		var info struct {
			Peers []struct {
				Site string `json:"site_name"`
				UUID string `json:"mirror_uuid"`
			} `json:"peers"`
		}
		p.rbdJSON(t, e.a, &info, "mirror", "pool", "info", p.name)
		if len(info.Peers) != 1 || info.Peers[0].Site != "b" || info.Peers[0].UUID == "" {
			return fmt.Errorf("%+v", info)
		}
		return nil
	})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	p.waitSame(t, m)
	// A key that is revoked keeps nobody out who is in.
	mon(t, e.a, map[string]any{"prefix": "auth rm", "entity": "client." + user})
	d.stop(t)
	m.Fill(2, mib, 5*mib)
	snap = m.MirrorSnap()
	d.start(t)
	p.waitCallout(t, "unable to connect to remote cluster")
	if err := d.answers(); err != nil {
		t.Error(err)
	}
	if err := p.arrived(m, snap); err == nil {
		t.Error("the snapshot arrived without a key")
	}
	if err := e.a.AddRBDPeerUser(e.ctx(t), user); err != nil {
		t.Fatal(err)
	}
	p.waitLong(t, 60*time.Second, m, snap)
	p.same(t, m)
}

// TestRBDPoolMode has a pool whose images are all mirrored, which the stock
// tools offer for images with a journal only: those with snapshots go on.
func TestRBDPoolMode(t *testing.T) {
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	for _, c := range e.sites() {
		p.rbd(t, c, "mirror", "pool", "enable", p.name, "pool")
	}
	m.Fill(2, mib, mib)
	copy := p.waitSame(t, m)
	p.waitIdle(t, copy)
	m.Remove()
	within(t, 45*time.Second, "the copy to be removed", func() error {
		there, err := p.b.Exists(copy.Name())
		if err == nil && there {
			err = fmt.Errorf("it is there")
		}
		return err
	})
}

// TestRBDOneWay has a source that knows nothing of its copies' site but what
// the daemon tells it.
func TestRBDOneWay(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{oneWay: true})
	var info struct {
		Peers []struct {
			Direction string `json:"direction"`
			Site      string `json:"site_name"`
			UUID      string `json:"mirror_uuid"`
		} `json:"peers"`
	}
	within(t, 45*time.Second, "a to know of b", func() error {
		p.rbdJSON(t, e.a, &info, "mirror", "pool", "info", p.name)
		if len(info.Peers) != 1 || info.Peers[0].Direction != "tx-only" || info.Peers[0].Site != "b" || info.Peers[0].UUID == "" {
			return fmt.Errorf("%+v", info)
		}
		return nil
	})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	p.waitOwn(t, p.waitSame(t, m), "up+replaying", `"replay_state":"idle"`)
	within(t, statusPatience(), "the pool's health", func() error {
		var status struct {
			Summary struct {
				Health string         `json:"health"`
				Daemon string         `json:"daemon_health"`
				Image  string         `json:"image_health"`
				States map[string]int `json:"states"`
			} `json:"summary"`
		}
		p.rbdJSON(t, e.b, &status, "mirror", "pool", "status", p.name)
		if status.Summary.Image != "OK" || status.Summary.States["replaying"] != 1 {
			return fmt.Errorf("%+v", status)
		}
		return nil
	})
}

// TestRBDLiveChanges changes what is to be mirrored while the daemon runs.
func TestRBDLiveChanges(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{unpeered: true})
	d := e.startRBD(t, tested(), e.b)
	m, _ := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	peers := func() (ids []string) {
		t.Helper()
		var info struct {
			Peers []struct {
				UUID string `json:"uuid"`
			} `json:"peers"`
		}
		p.rbdJSON(t, e.b, &info, "mirror", "pool", "info", p.name)
		for _, x := range info.Peers {
			ids = append(ids, x.UUID)
		}
		return ids
	}
	for round := range 2 {
		p.introduce(t, false)
		within(t, 45*time.Second, "the commands of the pool", func() error {
			_, err := d.call("rbd mirror status " + p.name + " a")
			return err
		})
		m.Fill(uint64(round), mib, mib)
		p.waitLong(t, 60*time.Second, m, m.MirrorSnap())
		p.same(t, m)
		for _, id := range peers() {
			p.rbd(t, e.b, "mirror", "pool", "peer", "remove", p.name, id)
		}
		within(t, 45*time.Second, "the commands of the pool to vanish", func() error {
			if _, err := d.call("rbd mirror status " + p.name + " a"); err == nil {
				return fmt.Errorf("they are there")
			}
			return nil
		})
		// On the other side, the peer was made for us.
		var info struct {
			Peers []struct {
				UUID string `json:"uuid"`
			} `json:"peers"`
		}
		p.rbdJSON(t, e.a, &info, "mirror", "pool", "info", p.name)
		for _, x := range info.Peers {
			p.rbd(t, e.a, "mirror", "pool", "peer", "remove", p.name, x.UUID)
		}
		if round == 0 {
			// Without a peer there is no common point left: the image is made anew.
			m.Unmirror()
			p.rbd(t, e.b, "mirror", "image", "disable", "--force", m.Spec())
			p.rbd(t, e.b, "rm", "--no-progress", m.Spec())
			m.Mirror()
		}
	}
}

// TestRBDDataPool has a pool for the data of new images on the copies' side.
func TestRBDDataPool(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	own, choice := p.name+"-own", p.name+"-choice"
	e.makePool(t, e.a, own)
	e.makePool(t, e.b, own)
	e.makePool(t, e.b, choice)
	d := e.startRBD(t, tested(), e.b, "--rbd-default-data-pool="+choice)
	check := func(name, dataPool, want string) {
		t.Helper()
		m, _ := p.newImage(t, name, rbdimage.Options{DataPool: dataPool})
		m.Fill(1, 0, 5*mib)
		m.Snap("s")
		m.Fill(2, mib, mib)
		p.waitSame(t, m)
		var info struct {
			Pool string `json:"data_pool"`
		}
		p.rbdJSON(t, e.b, &info, "info", p.b.Spec(name))
		if info.Pool != want {
			t.Errorf("the data of the copy of %s is in the pool %q, not %q", name, info.Pool, want)
		}
	}
	check("plain", "", choice)
	check("elsewhere", own, choice)
	d.stop(t)
	e.startRBD(t, tested(), e.b)
	check("plain again", "", "")
	check("elsewhere again", own, own)
	// What is there stays where it is.
	for _, name := range []string{"plain", "elsewhere"} {
		m := rbdimage.On(t, p.a, name)
		m.Fill(3, 0, mib)
		p.waitSame(t, m)
	}
}

// TestRBDParentInTrash moves the parent of a clone to the trash, which ends its
// own mirroring.
func TestRBDParentInTrash(t *testing.T) {
	needLong(t)
	e := need(t)
	p, d := e.mirrored(t, poolOptions{})
	parent, snap := p.newImage(t, "parent", rbdimage.Options{})
	parent.Fill(1, 0, 20*mib)
	parent.Snap("base")
	child := parent.Clone("base", p.a, "child", rbdimage.Options{CloneVersion: 2})
	p.wait(t, parent, snap)
	p.wait(t, parent, parent.MirrorSnap())
	p.wait(t, child, child.Mirror())
	p.same(t, child)
	if _, err := e.tryRBD(e.a, "trash", "mv", parent.Spec()); err != nil {
		t.Logf("the stock tool refuses: %v", err)
		p.rbd(t, e.a, "mirror", "image", "disable", "--force", parent.Spec())
		p.rbd(t, e.a, "trash", "mv", parent.Spec())
	}
	// The copy of the parent is no longer mirrored, and must not go as long as
	// there is the copy of the child.
	equal := func(want uint64) {
		t.Helper()
		copy := p.wait(t, child, want)
		diffs, err := rbdimage.Compare(child.At(rbdimage.Head), copy.At(rbdimage.Head))
		if err != nil || len(diffs) > 0 {
			t.Errorf("the copy of the child: %v, %v", diffs, err)
		}
	}
	child.Fill(2, 5*mib, mib)
	child.Snap("s")
	equal(child.MirrorSnap())
	holds(t, 5*time.Second, "without the parent", func() error {
		diffs, err := rbdimage.Compare(child.At(rbdimage.Head), child.In(p.b).At(rbdimage.Head))
		if err == nil && len(diffs) > 0 {
			err = errText("%v", diffs)
		}
		return err
	})
	d.stop(t)
	child.Fill(3, 8*mib, mib)
	snap = child.MirrorSnap()
	d.start(t)
	equal(snap)
	child.Flatten()
	child.Fill(4, 0, mib)
	p.waitSame(t, child)
	within(t, 60*time.Second, "the copy of the parent to be removed", func() error {
		out, err := e.tryRBD(e.b, "trash", "ls", "--all", p.b.String(), "--format", "json")
		if err == nil && strings.TrimSpace(out) != "[]" {
			err = errText("in the trash: %s", out)
		}
		return err
	})
}
