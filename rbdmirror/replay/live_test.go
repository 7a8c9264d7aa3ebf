package replay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/replay"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

const mib = 1 << 20

// site is a cluster and how the tests reach it: as a daemon, and as its
// administrator.
type site struct {
	*rbdsite.Site
	name  string
	admin *rbdimage.Client
}

// pair is a pool on two clusters, mirrored both ways.
type pair struct {
	t    *testing.T
	pool string
	a, b *site
}

func newSite(t *testing.T, name string) *site {
	s := &site{Site: rbdsite.Start(t, name), name: name}
	var err error
	if s.admin, err = rbdimage.Open(name, s.Cluster.Conf()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.admin.Close)
	return s
}

// newPair makes a pool on both clusters and introduces them to each other, and
// pings as the engine does.
func newPair(t *testing.T) *pair {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreTopFunction("os/exec.(*Cmd).watchCtx")) })
	p := &pair{t: t, a: newSite(t, "a"), b: newSite(t, "b"), pool: fmt.Sprintf("rp%d", rand.Uint32())}
	for _, s := range []*site{p.a, p.b} {
		s.Run("ceph", "osd", "pool", "create", p.pool, "8")
		s.Run("ceph", "osd", "pool", "application", "enable", p.pool, "rbd")
		s.Run("rbd", "mirror", "pool", "enable", p.pool, "image", "--site-name", s.name)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_, _ = s.Cluster.MonCommand(ctx, map[string]any{"prefix": "config set", "who": "mon", "name": "mon_allow_pool_delete", "value": "true"})
			if _, err := s.Cluster.MonCommand(ctx, map[string]any{"prefix": "osd pool rm", "pool": p.pool, "pool2": p.pool, "yes_i_really_really_mean_it": true}); err != nil {
				t.Error(err)
			}
		})
	}
	token := filepath.Join(t.TempDir(), "token")
	out := p.a.Run("rbd", "mirror", "pool", "peer", "bootstrap", "create", p.pool)
	lines := strings.Fields(out)
	if err := os.WriteFile(token, []byte(lines[len(lines)-1]), 0o600); err != nil {
		t.Fatal(err)
	}
	p.b.Run("rbd", "mirror", "pool", "peer", "bootstrap", "import", p.pool, token)
	for _, s := range []*site{p.a, p.b} {
		o := p.other(s)
		if err := store.NewMirroring(s.IO(p.pool, "")).Ping(o.name, o.uuid(p)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *pair) other(s *site) *site {
	if s == p.a {
		return p.b
	}
	return p.a
}

func (s *site) uuid(p *pair) string {
	p.t.Helper()
	uuid, err := store.NewMirroring(s.IO(p.pool, "")).UUID()
	if err != nil {
		p.t.Fatal(err)
	}
	return uuid
}

// player plays the daemon of one cluster for one image.
type player struct {
	p      *pair
	local  *site
	gid    string
	cancel context.CancelFunc
	r      *replay.Replayer
	done   chan struct{}
	out    replica.Outcome
	err    error

	writers sync.WaitGroup

	mu  sync.Mutex
	all []replica.Status
}

// watchMirroring keeps a connection up in the eyes of the cluster.
func watchMirroring(t *testing.T, conn *rados.Conn, pool string) (stop func()) {
	ioctx, err := conn.OpenIOContext(pool)
	if err != nil {
		t.Fatal(err)
	}
	w, err := ceph.NewWatch(ioctx, store.MirroringObject, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case n := <-w.Events():
				_ = w.Ack(n, nil)
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-done
		_ = w.Close()
		ioctx.Destroy()
	}
}

// play starts a daemon for an image on s. It ends with the test.
func (p *pair) play(s *site, gid string, change ...func(*replica.Config)) *player {
	p.t.Helper()
	o := p.other(s)
	local, remote := s.Dial(), o.Dial()
	stopLocal, stopRemote := watchMirroring(p.t, local, p.pool), watchMirroring(p.t, remote, p.pool)
	pl := &player{p: p, local: s, gid: gid, done: make(chan struct{})}
	news := []chan cls.SiteStatus{make(chan cls.SiteStatus, 1), make(chan cls.SiteStatus, 1)}
	writers := []*store.Mirroring{store.NewMirroring(s.On(local, p.pool, "")), store.NewMirroring(o.On(remote, p.pool, ""))}
	cfg := replica.Config{
		Log:      zerolog.New(zerolog.NewTestWriter(p.t)).With().Timestamp().Str("on", s.name).Logger(),
		GlobalID: gid,
		Local:    replica.Site{Conn: local, Pool: p.pool, MirrorUUID: s.uuid(p), SiteName: s.name},
		Remote:   replica.Site{Conn: remote, Pool: p.pool, MirrorUUID: o.uuid(p), SiteName: o.name},
		Memory:   imagesync.NewBudget(imagesync.DefaultBudget),
		Options:  replica.Options{RetryMin: 200 * time.Millisecond, RetryMax: 2 * time.Second, PollInterval: 5 * time.Second},
		Report: func(st replica.Status) {
			pl.mu.Lock()
			pl.all = append(pl.all, st)
			pl.mu.Unlock()
			for i := range writers {
				select {
				case <-news[i]:
				default:
				}
				news[i] <- cls.SiteStatus{State: cls.StatusState(st.State), Description: st.Description, Up: true}
			}
		},
	}
	for i, w := range writers {
		pl.writers.Go(func() {
			for at := range news[i] {
				if i == 1 {
					at.MirrorUUID = cfg.Local.MirrorUUID
				}
				_ = w.SetStatus([]store.ImageStatus{{GlobalID: gid, Status: at}})
			}
		})
	}
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	pl.cancel = cancel
	pl.r = replay.New(cfg)
	go func() {
		defer close(pl.done)
		pl.out, pl.err = pl.r.Run(ctx)
	}()
	p.t.Cleanup(func() {
		pl.stop()
		for _, c := range news {
			close(c)
		}
		pl.writers.Wait()
		stopLocal()
		stopRemote()
	})
	return pl
}

// stop ends the daemon and tells how long that took.
func (pl *player) stop() time.Duration {
	began := time.Now()
	pl.cancel()
	<-pl.done
	took := time.Since(began)
	pl.r.Drain()
	return took
}

func (pl *player) status() replica.Status { return pl.r.Status() }

// eventually waits until a condition holds.
func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// wait waits until the copy of a mirror snapshot is complete.
func (pl *player) wait(m rbdimage.Maker, snap uint64) rbdimage.Maker {
	pl.p.t.Helper()
	to := pl.local.admin.Pool(pl.p.pool)
	eventually(pl.p.t, 30*time.Second, fmt.Sprintf("the copy of snapshot %d", snap), func() error {
		snaps, err := to.Snaps(m.Name())
		if err != nil {
			return fmt.Errorf("%w (status %s)", err, pl.status().Description)
		}
		for _, s := range snaps {
			if s.Synced() && s.Source >= snap {
				return nil
			}
		}
		return fmt.Errorf("not among %+v (status %s)", snaps, pl.status().Description)
	})
	return m.In(to)
}

// waitState waits for a status with this text in it.
func (pl *player) waitState(state replica.State, text string) {
	pl.p.t.Helper()
	eventually(pl.p.t, 20*time.Second, text, func() error {
		if st := pl.status(); st.State != state || !strings.Contains(st.Description, text) {
			return fmt.Errorf("status is %d, %s", st.State, st.Description)
		}
		return nil
	})
}

// same compares an image with its copy: what it is, now, and in all snapshots.
func (p *pair) same(m rbdimage.Maker) {
	p.t.Helper()
	from := m.Pool()
	to := p.other(p.siteOf(from)).admin.Pool(p.pool)
	want, err := from.Layout(m.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	got, err := to.Layout(m.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	out := want.Differences(got)
	if got.Flags != 0 {
		out = append(out, fmt.Sprintf("the copy has flags %#x", got.Flags))
	}
	compare := func(what string, a, b uint64) {
		src, dst := rbdimage.View{Pool: from, Image: m.Name(), Snap: a}, rbdimage.View{Pool: to, Image: m.Name(), Snap: b}
		diffs, err := rbdimage.Compare(src, dst)
		if err != nil {
			p.t.Fatal(err)
		}
		lacking, extra, err := rbdimage.AuditMap(dst)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, d := range slices.Concat(diffs, lacking, extra) {
			out = append(out, what+": "+d)
		}
	}
	compare("now", rbdimage.Head, rbdimage.Head)
	source, err := from.Snaps(m.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	copies, err := to.Snaps(m.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range source {
		for _, c := range copies {
			switch {
			case s.Kind == rbdimage.User && c.Kind == rbdimage.User && s.Name == c.Name:
				compare("snapshot "+s.Name, s.ID, c.ID)
			case s.Kind == rbdimage.Mirror && c.Synced() && c.Source == s.ID:
				compare(fmt.Sprintf("mirror snapshot %d", s.ID), s.ID, c.ID)
			}
		}
	}
	for _, d := range out {
		p.t.Errorf("%s: %s", m.Spec(), d)
	}
}

func (p *pair) siteOf(pool rbdimage.Pool) *site {
	if pool.Client == p.a.admin {
		return p.a
	}
	return p.b
}

// image makes an image on a and enables mirroring.
func (p *pair) image(name string, o rbdimage.Options) (rbdimage.Maker, uint64) {
	p.t.Helper()
	if o.Size == 0 {
		o.Size = 32 * mib
	}
	m := rbdimage.Create(p.t, p.a.admin.Pool(p.pool), name, o)
	return m, m.Mirror()
}

// info is what `rbd snap ls --all` shows of mirror snapshots on a site.
func (p *pair) snapshots(s *site, image string) string {
	p.t.Helper()
	return s.Run("rbd", "snap", "ls", "--all", p.pool+"/"+image)
}

func (p *pair) toolStatus(s *site, image string) (state, description string) {
	p.t.Helper()
	var out struct {
		State       string `json:"state"`
		Description string `json:"description"`
	}
	s.JSON(&out, "rbd", "mirror", "image", "status", p.pool+"/"+image)
	return out.State, out.Description
}

func TestLiveFirst(t *testing.T) {
	p := newPair(t)
	m, first := p.image("img", rbdimage.Options{})
	m.Fill(1, 0, 10*mib)
	m.Snap("u1")
	m.Fill(2, 8*mib, 6*mib)
	second := m.MirrorSnap()
	pl := p.play(p.b, m.GlobalID())
	pl.wait(m, second)
	pl.waitState(replica.StateReplaying, `"replay_state":"idle"`)
	p.same(m)
	_ = first

	m.Discard(0, 4*mib)
	m.Zero(9*mib, mib)
	m.Snap("u2")
	m.Resize(48 * mib)
	m.Fill(3, 40*mib, 4*mib)
	m.RemoveSnap("u1")
	m.SetMeta("k", "v")
	pl.wait(m, m.MirrorSnap())
	p.same(m)
	t.Log(p.snapshots(p.a, "img"))
	t.Log(p.snapshots(p.b, "img"))
	t.Log(p.b.Run("rbd", "info", p.pool+"/img"))
	state, text := p.toolStatus(p.b, "img")
	t.Log(state, text)
	if took := pl.stop(); took > 2*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if b, err := json.Marshal(pl.status()); err == nil {
		t.Log(string(b))
	}
}

// TestLiveSpareID has a snapshot take the id that was allocated while nothing
// was to be done, but not when the image has a newer snapshot.
func TestLiveSpareID(t *testing.T) {
	p := newPair(t)
	m, first := p.image("img", rbdimage.Options{})
	m.Fill(1, 0, 10*mib)
	pl := p.play(p.b, m.GlobalID())
	copy := pl.wait(m, first)
	io := p.b.IO(p.pool, "")
	// newest is the id of the image's newest snapshot.
	newest := func() uint64 {
		snaps, err := copy.Pool().Peek(copy.Name())
		if err != nil || len(snaps) == 0 {
			t.Fatalf("snapshots of the copy: %v, %v", snaps, err)
		}
		return snaps[len(snaps)-1].ID
	}
	// after allocates an id once there is one above the image's.
	after := func(used uint64) uint64 {
		eventually(t, 20*time.Second, "a spare id", func() error {
			var dump struct {
				Pools []struct {
					Name string `json:"pool_name"`
					Seq  uint64 `json:"snap_seq"`
				} `json:"pools"`
			}
			p.b.JSON(&dump, "ceph", "osd", "dump")
			for _, pool := range dump.Pools {
				if pool.Name == p.pool && pool.Seq > used {
					return nil
				}
			}
			return fmt.Errorf("none in %+v", dump.Pools)
		})
		id, err := store.CreateSnapID(io)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	mark := after(newest())
	m.Fill(2, mib, mib)
	pl.wait(m, m.MirrorSnap())
	p.same(m)
	if id := newest(); id >= mark {
		t.Errorf("the snapshot has id %d: not the spare one, which came before %d", id, mark)
	}

	mark = after(mark)
	if err := store.NewHeader(io, copy.ID()).AddSnapshot(mark, "newer", cls.User); err != nil {
		t.Fatal(err)
	}
	m.Fill(3, 2*mib, mib)
	pl.wait(m, m.MirrorSnap())
	if id := newest(); id <= mark {
		t.Errorf("the snapshot has id %d, which is older than %d", id, mark)
	}
	p.same(m)
}

// demoted demotes m and waits until the other side has that.
func (pl *player) demoted(m rbdimage.Maker) rbdimage.Maker {
	pl.p.t.Helper()
	c := pl.wait(m, m.Demote())
	pl.waitState(replica.StateUnknown, "remote image demoted")
	return c
}

func change(m rbdimage.Maker, seed uint64) {
	m.Fill(seed, 5*mib+1000, 4*mib)
	m.Snap(fmt.Sprintf("snap%d", seed))
	m.Fill(seed+1, 16*mib, mib)
	m.Discard(0, mib)
	m.Zero(20*mib, 4*mib)
}

// A fail-over there and back again, with the stock tool.
func TestLiveFailOver(t *testing.T) {
	p := newPair(t)
	m, snap := p.image("img", rbdimage.Options{})
	m.Fill(1, 0, 20*mib)
	on := map[*site]*player{p.a: p.play(p.a, m.GlobalID()), p.b: p.play(p.b, m.GlobalID())}
	on[p.b].wait(m, snap)
	on[p.a].waitState(replica.StateStopped, "local image is primary")
	from, to := p.a, p.b
	for round := range uint64(3) {
		change(m, 10*round)
		other := on[to].demoted(m)
		p.same(m)
		to.Run("rbd", "mirror", "image", "promote", p.pool+"/img")
		if out := to.Run("rbd", "object-map", "check", p.pool+"/img"); strings.Contains(out, "error") {
			t.Error(out)
		}
		on[to].waitState(replica.StateStopped, "local image is primary")
		from, to, m = to, from, other
		change(m, 10*round+5)
		on[to].wait(m, m.MirrorSnap())
		on[to].waitState(replica.StateReplaying, `"replay_state":"idle"`)
		p.same(m)
		t.Log(p.snapshots(p.a, "img"))
		t.Log(p.snapshots(p.b, "img"))
	}
	for _, s := range []*site{p.a, p.b} {
		n := 0
		for _, snap := range m.In(s.admin.Pool(p.pool)).Snaps() {
			if snap.Kind == rbdimage.Mirror {
				n++
			}
		}
		if n > 3 {
			t.Errorf("%d mirror snapshots on %s", n, s.name)
		}
	}
}

func TestLiveSplitBrain(t *testing.T) {
	p := newPair(t)
	m, snap := p.image("img", rbdimage.Options{})
	m.Fill(1, 0, 20*mib)
	m.Snap("common")
	pl := p.play(p.b, m.GlobalID())
	pl.wait(m, snap)
	c := pl.wait(m, m.MirrorSnap())
	pl.waitState(replica.StateReplaying, "idle")
	began := time.Now()
	p.b.Run("rbd", "mirror", "image", "promote", "--force", p.pool+"/img")
	t.Logf("promoted within %v", time.Since(began))
	pl.waitState(replica.StateStopped, "")
	c.Fill(2, 10*mib, mib)
	c.Snap("only here")
	m.Fill(3, 12*mib, mib)
	m.MirrorSnap()
	c.Demote()
	pl.waitState(replica.StateError, "split-brain")
	id := c.ID()
	c.Resync()
	pl.wait(m, m.MirrorSnap())
	pl.waitState(replica.StateReplaying, "idle")
	p.same(m)
	if c.ID() != id {
		t.Error("the image was made anew")
	}
	t.Log(p.snapshots(p.b, "img"))
	m.Fill(4, 0, mib)
	pl.wait(m, m.MirrorSnap())
	p.same(m)
}

// Clones of both kinds hang on the copy of their parent, also across changes.
func TestLiveClones(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	const object = 4 * mib
	parent := rbdimage.Create(t, p.a.admin.Pool(p.pool), "parent", rbdimage.Options{Size: 8 * object})
	parent.Fill(1, 0, 7*object)
	parent.Snap("base")
	parent.Protect("base")
	snap := parent.Mirror()
	var clones []rbdimage.Maker
	var players []*player
	for _, version := range []uint64{1, 2} {
		m := parent.Clone("base", p.a.admin.Pool(p.pool), fmt.Sprintf("clone%d", version), rbdimage.Options{CloneVersion: version})
		m.Fill(2, object, 5000)
		m.Snap("a")
		m.Discard(object, 2*object)
		m.Mirror()
		clones = append(clones, m)
		players = append(players, p.play(p.b, m.GlobalID()))
	}
	// Without its parent a clone waits and says for what.
	for _, pl := range players {
		pl.waitState(replica.StateError, "parent image does not exist: the parent "+p.pool+"/parent has no copy here yet")
	}
	pl := p.play(p.b, parent.GlobalID())
	pl.wait(parent, snap)
	for i, m := range clones {
		m.Snap("b")
		m.Fill(3, 3*object+1000, 5000) // copies the parent up, below both snapshots
		players[i].wait(m, m.MirrorSnap())
		p.same(m)
		t.Log(p.b.Run("rbd", "info", p.pool+"/"+m.Name()))
		t.Log(p.b.Run("rbd", "children", "--all", p.pool+"/parent@base"))
		m.Flatten()
		players[i].wait(m, m.MirrorSnap())
		p.same(m)
		m.Resize(3*object + 1000)
		players[i].wait(m, m.MirrorSnap())
		p.same(m)
		m.Resize(8 * object)
		m.RemoveSnap("a")
		m.RemoveSnap("b")
		m.Fill(5, 0, 1000)
		players[i].wait(m, m.MirrorSnap())
		players[i].waitState(replica.StateReplaying, "idle")
		p.same(m)
		eventually(t, 10*time.Second, "the clone to be detached", func() error {
			if out := p.b.Run("rbd", "children", "--all", p.pool+"/parent@base"); strings.Contains(out, m.Name()) {
				return fmt.Errorf("%s\n%s", out, p.b.Run("rbd", "info", p.pool+"/"+m.Name()))
			}
			return nil
		})
	}
	parent.Unprotect("base")
	parent.RemoveSnap("base")
	pl.wait(parent, parent.MirrorSnap())
	p.same(parent)
	t.Log(p.b.Run("rbd", "info", p.pool+"/parent"))
	t.Log(p.snapshots(p.b, "parent"))
}

// freeze stops a cluster, until the function that it returns is called.
func (s *site) freeze(t *testing.T) (thaw func()) {
	t.Helper()
	if err := s.Cluster.Signal(t.Context(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := s.Cluster.Signal(context.Background(), syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// A remote cluster that does not answer holds up neither a forced promotion, in
// the middle of a synchronisation, nor the end of the daemon. The image becomes
// what it was at the last complete synchronisation.
func TestLiveFrozen(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	m, _ := p.image("img", rbdimage.Options{Size: 128 * mib})
	m.Fill(1, 0, 40*mib)
	m.Snap("u")
	m.Discard(0, mib)
	good := m.MirrorSnap()
	pl := p.play(p.b, m.GlobalID(), func(c *replica.Config) { c.Options.BytesPerSec = 24 * mib })
	c := pl.wait(m, good)
	pl.waitState(replica.StateReplaying, "idle")
	m.Fill(2, 0, 100*mib)
	m.Snap("too late")
	m.MirrorSnap()
	eventually(t, 20*time.Second, "the copy to be under way", func() error {
		if st := pl.status(); !st.Syncing || st.ObjectsDone < 8 {
			return fmt.Errorf("%d objects", st.ObjectsDone)
		}
		return nil
	})
	thaw := p.a.freeze(t)
	began := time.Now()
	stacks := time.AfterFunc(15*time.Second, func() {
		buf := make([]byte, 1<<20)
		t.Errorf("promoting takes long:\n%s\n%+v", buf[:runtime.Stack(buf, true)], pl.status())
	})
	p.b.Run("rbd", "mirror", "image", "promote", "--force", p.pool+"/img")
	stacks.Stop()
	t.Logf("promoting took %v", time.Since(began))
	pl.waitState(replica.StateStopped, "")
	c.Fill(9, 120*mib, mib) // nobody holds the lock
	if took := pl.stopOnly(); took > 2*time.Second {
		t.Errorf("stopping took %v", took)
	}
	thaw()
	c.Discard(120*mib, mib)
	diffs, err := rbdimage.Compare(m.At(good), c.At(rbdimage.Head))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range diffs {
		t.Error(d)
	}
	if out := p.b.Run("rbd", "object-map", "check", p.pool+"/img"); strings.Contains(out, "error") {
		t.Error(out)
	}
	for _, s := range c.Snaps() {
		if s.Name == "too late" {
			t.Error("a half-filled snapshot is left")
		}
	}
	t.Log(p.snapshots(p.b, "img"))
}

// stopOnly ends the daemon without waiting for calls that hang.
func (pl *player) stopOnly() time.Duration {
	began := time.Now()
	pl.cancel()
	<-pl.done
	return time.Since(began)
}
