//go:build cgo

package journal_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/journal"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/journal/stream"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

const (
	mib        = 1 << 20
	journaling = rbdimage.Everything | rbd.FeatureJournaling
)

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

// newPair makes a pool on both clusters and introduces them to each other.
func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, a: newSite(t, "a"), b: newSite(t, "b"), pool: fmt.Sprintf("rj%d", rand.Uint32())}
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
	lines := strings.Fields(p.a.Run("rbd", "mirror", "pool", "peer", "bootstrap", "create", p.pool))
	if err := os.WriteFile(token, []byte(lines[len(lines)-1]), 0o600); err != nil {
		t.Fatal(err)
	}
	p.b.Run("rbd", "mirror", "pool", "peer", "bootstrap", "import", p.pool, token)
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

// player plays the daemon of one cluster for one image.
type player struct {
	p      *pair
	local  *site
	gid    string
	cancel context.CancelFunc
	r      *journal.Replayer
	done   chan struct{}
	out    replica.Outcome
	err    error
}

// play starts a daemon for an image on s. It ends with the test.
func (p *pair) play(s *site, gid string, change ...func(*journal.Config)) *player {
	p.t.Helper()
	o := p.other(s)
	local, remote := s.Dial(), o.Dial()
	stopLocal, stopRemote := watchMirroring(p.t, local, p.pool), watchMirroring(p.t, remote, p.pool)
	pl := &player{p: p, local: s, gid: gid, done: make(chan struct{})}
	cfg := journal.Config{Config: replica.Config{
		Log:      zerolog.New(zerolog.NewTestWriter(p.t)).With().Timestamp().Str("on", s.name).Logger(),
		GlobalID: gid,
		Local:    replica.Site{Conn: local, Pool: p.pool, MirrorUUID: s.uuid(p), SiteName: s.name},
		Remote:   replica.Site{Conn: remote, Pool: p.pool, MirrorUUID: o.uuid(p), SiteName: o.name},
		Memory:   imagesync.NewBudget(imagesync.DefaultBudget),
		Options:  replica.Options{RetryMin: 200 * time.Millisecond, RetryMax: 2 * time.Second, PollInterval: 5 * time.Second},
	}}
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	pl.cancel = cancel
	pl.r = journal.New(cfg)
	go func() {
		defer close(pl.done)
		pl.out, pl.err = pl.r.Run(ctx)
	}()
	p.t.Cleanup(func() {
		pl.stop()
		stopLocal()
		stopRemote()
	})
	return pl
}

// stop ends the daemon.
func (pl *player) stop() {
	pl.cancel()
	<-pl.done
	pl.r.Drain()
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

// waitState waits for a status with this text in it.
func (pl *player) waitState(state replica.State, text string) {
	pl.p.t.Helper()
	eventually(pl.p.t, 40*time.Second, text, func() error {
		if st := pl.status(); st.State != state || !strings.Contains(st.Description, text) {
			return fmt.Errorf("status is %d, %s", st.State, st.Description)
		}
		return nil
	})
}

// enable mirrors an image by its journal and returns its global id.
func (p *pair) enable(m rbdimage.Maker) (gid string) {
	p.t.Helper()
	p.siteOf(m.Pool()).Run("rbd", "mirror", "image", "enable", m.Spec(), "journal")
	record, err := store.NewMirroring(p.siteOf(m.Pool()).IO(p.pool, "")).Image(m.ID())
	if err != nil {
		p.t.Fatal(err)
	}
	return record.GlobalID
}

func (p *pair) siteOf(pool rbdimage.Pool) *site {
	if pool.Client == p.a.admin {
		return p.a
	}
	return p.b
}

// caughtUp waits until the journal knows that everything is done.
func (p *pair) caughtUp(pl *player, m rbdimage.Maker) {
	p.t.Helper()
	p.reached(m, func() error {
		if st := pl.status(); st.State != replica.StateReplaying {
			return fmt.Errorf("status %s", st.Description)
		}
		return nil
	})
}

// stockCaughtUp is caughtUp for the stock daemon.
func (p *pair) stockCaughtUp(m rbdimage.Maker) {
	p.t.Helper()
	p.reached(m, func() error { return nil })
}

func newRNG(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(1, seed))
}

func (p *pair) reached(m rbdimage.Maker, ready func() error) {
	p.t.Helper()
	s := p.siteOf(m.Pool())
	j := objects.New(s.IO(p.pool, ""), m.ID())
	client := p.other(s).uuid(p)
	eventually(p.t, 60*time.Second, "the position of the primary", func() error {
		h, err := j.Look()
		if err != nil {
			return err
		}
		master, own := h.Client(format.MasterClient), h.Client(client)
		if own == nil {
			return errors.New("not registered")
		}
		want, _ := master.Committed.First()
		got, _ := own.Committed.First()
		if got != want {
			return errors.Join(fmt.Errorf("at %v instead of %v", own.Committed, master.Committed), ready())
		}
		return ready()
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
	if got.Flags != want.Flags {
		out = append(out, fmt.Sprintf("the copy has flags %#x instead of %#x", got.Flags, want.Flags))
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
			if s.Kind == rbdimage.User && c.Kind == rbdimage.User && s.Name == c.Name {
				compare("snapshot "+s.Name, s.ID, c.ID)
			}
		}
	}
	for _, d := range out {
		p.t.Errorf("%s: %s", m.Spec(), d)
	}
}

func TestEverything(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	for name, o := range map[string]rbdimage.Options{
		"plain":   {Size: 40 * mib, Features: rbdimage.Plain | rbd.FeatureJournaling},
		"mapped":  {Size: 40*mib + 12345, Features: journaling},
		"striped": {Size: 30 * mib, Features: journaling, StripeUnit: 64 << 10, StripeCount: 3, Order: 20},
		"data":    {Size: 40 * mib, Features: journaling, DataPool: rbdsite.DataPool},
	} {
		t.Run(name, func(t *testing.T) { testEverything(t, p, name, o) })
	}
}

func testEverything(t *testing.T, p *pair, name string, o rbdimage.Options) {
	q := *p
	q.t = t
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), name, o)
	m.Fill(1, 0, 9*mib)
	m.Snap("before")
	m.Fill(2, 3*mib, 4*mib)
	m.SetMeta("color", "blue")
	gid := q.enable(m)
	pl := q.play(p.b, gid)
	pl.waitState(replica.StateReplaying, "replaying, ")
	q.caughtUp(pl, m)
	q.same(m)
	all := operations(&q, m)
	for _, op := range all {
		op()
	}
	q.caughtUp(pl, m)
	q.same(m)
}

// operations are changes of every kind.
func operations(p *pair, m rbdimage.Maker) []func() {
	return []func(){
		func() { m.Fill(3, 1*mib, 2*mib+777) },
		func() { m.Discard(4*mib, 4*mib) },
		func() { m.Discard(9*mib+5000, 300000) },
		func() { m.Zero(2*mib+100, 70000) },
		func() { m.Snap("s1") },
		func() { m.Fill(4, 0, 5*mib) },
		func() { m.Protect("s1") },
		func() { m.Snap("s2") },
		func() { m.RenameSnap("s2", "s2r") },
		func() { m.Resize(50 * mib) },
		func() { m.Fill(5, 44*mib, 3*mib) },
		func() { m.Snap("s3") },
		func() { m.Resize(11*mib + 4321) },
		func() { m.Fill(6, 10*mib, 1*mib) },
		func() { m.Resize(45 * mib) },
		func() { m.Fill(7, 20*mib, 2*mib) },
		func() { m.Rollback("s2r") },
		func() { m.Fill(8, 7*mib, 1*mib) },
		func() { m.Unprotect("s1") },
		func() { m.RemoveSnap("s1") },
		func() { p.a.Run("python3", "-c", sectors, p.pool, m.Name(), "1") },
		func() { m.SetMeta("shape", "round") },
		func() { m.RemoveMeta("color") },
		func() {
			m.Edit(func(img *rbd.Image) error {
				_, err := img.WriteSame(12*mib, 1*mib, []byte("0123456789abcdef"), rados.OpFlagNone)
				return err
			})
		},
		func() {
			m.Edit(func(img *rbd.Image) error {
				_, err := img.Write([]byte(strings.Repeat("x", 4096)))
				return err
			})
		},
	}
}

// TestBacklog tells how fast a backlog is replayed.
func TestBacklog(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), "backlog", rbdimage.Options{Size: 256 * mib, Features: journaling})
	gid := p.enable(m)
	pl := p.play(p.b, gid)
	pl.waitState(replica.StateReplaying, "replaying, ")
	p.caughtUp(pl, m)
	pl.stop()
	for _, who := range strings.Fields(cmp.Or(os.Getenv("CEPHMIRROR_WHO"), "ours strict")) {
		began := time.Now()
		p.a.Run("rbd", "bench", "--io-type", "write", "--io-size", "4K", "--io-threads", "16", "--io-total", "80M", "--io-pattern", "rand", m.Spec())
		wrote := time.Since(began)
		began = time.Now()
		first := make(chan time.Time, 1)
		at := p.position(m)
		go func() {
			for p.position(m) == at && time.Since(began) < time.Minute {
				time.Sleep(10 * time.Millisecond)
			}
			first <- time.Now()
		}()
		var stop func()
		counters := func() journal.Counters { return journal.Counters{} }
		if who == "stock" {
			kill := p.stock(p.b)
			stop = func() { kill(syscall.SIGTERM) }
		} else {
			pl := p.play(p.b, gid, func(c *journal.Config) { c.Journal.Strict = who == "strict" })
			stop, counters = pl.stop, pl.r.Counters
		}
		p.stockCaughtUp(m)
		ended := time.Now()
		stop()
		if c := counters(); c.LatencyCount > 0 {
			t.Logf("%d entries, %v each", c.Entries, c.LatencySum/time.Duration(c.LatencyCount))
		}
		t.Logf("%s: written in %v, replayed in %v, %v after the first progress was told", who, wrote.Round(time.Millisecond),
			ended.Sub(began).Round(time.Millisecond), ended.Sub(<-first).Round(time.Millisecond))
	}
	p.same(m)
}

// position is how far the copy on the other site has come.
func (p *pair) position(m rbdimage.Maker) format.Position {
	s := p.siteOf(m.Pool())
	c, err := objects.New(s.IO(p.pool, ""), m.ID()).Client(p.other(s).uuid(p))
	if err != nil {
		return format.Position{}
	}
	first, _ := c.Committed.First()
	return first
}

// TestClones mirrors a clone, before and after its parent is known, and flattens it.
func TestClones(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	parent := rbdimage.Create(t, p.a.admin.Pool(p.pool), "parent", rbdimage.Options{Size: 24 * mib, Features: journaling, Order: 21})
	parent.Fill(1, 0, 20*mib)
	parent.Discard(6*mib, 2*mib)
	parent.Snap("base")
	parent.Protect("base")
	parentID := p.enable(parent)
	for i, name := range []string{"clone", "flat", "shallow"} {
		o := rbdimage.Options{Features: journaling}
		if name == "shallow" {
			o.Features &^= rbdimage.DeepFlat
		}
		m := parent.Clone("base", p.a.admin.Pool(p.pool), name, o)
		m.Fill(2, 1*mib, 1*mib)
		gid := p.enable(m)
		pl := p.play(p.b, gid)
		if i == 0 {
			pl.waitState(replica.StateError, "parent image does not exist")
			pp := p.play(p.b, parentID)
			p.caughtUp(pp, parent)
		}
		p.caughtUp(pl, m)
		p.same(m)
		// Partial and whole writes and discards, over the parent and beside.
		m.Fill(3, 4*mib+1000, 5000)
		m.Discard(9*mib, 1*mib)
		m.Discard(11*mib+200_000, 200_000)
		m.Zero(13*mib, 1000)
		m.Snap("s1")
		m.Fill(4, 15*mib+10, 10)
		m.Discard(16*mib, 2*mib)
		m.Resize(18 * mib)
		m.Resize(22 * mib)
		m.Fill(5, 20*mib, 1*mib)
		p.caughtUp(pl, m)
		p.same(m)
		if name != "clone" {
			m.Flatten()
			m.Fill(6, 2*mib+500, 70_000)
			m.Rollback("s1")
			m.Fill(7, 3*mib+500, 70_000)
			p.caughtUp(pl, m)
			p.same(m)
		}
	}
}

// TestLiveTail tells how far replay is behind while the primary is busy.
func TestLiveTail(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), "tail", rbdimage.Options{Size: 256 * mib, Features: journaling})
	gid := p.enable(m)
	pl := p.play(p.b, gid)
	pl.waitState(replica.StateReplaying, "replaying, ")
	p.caughtUp(pl, m)
	done := make(chan string)
	go func() {
		out, _ := p.a.Try("timeout", "15", "rbd", "bench", "--io-type", "write", "--io-size", "4K", "--io-threads", "16", "--io-total", "10G", "--io-pattern", "rand", m.Spec())
		done <- out
	}()
	began := time.Now()
	var worst float64
	for running := true; running; {
		select {
		case out := <-done:
			lines := strings.Split(strings.TrimSpace(out), "\n")
			t.Logf("writer: %s", lines[len(lines)-1])
			running = false
		case <-time.After(500 * time.Millisecond):
			var r struct {
				Behind  uint64  `json:"entries_behind_primary"`
				Seconds float64 `json:"seconds_behind_primary"`
				Rate    float64 `json:"entries_per_second"`
			}
			_, text, ok := strings.Cut(pl.status().Description, "replaying, ")
			if !ok || json.Unmarshal([]byte(text), &r) != nil {
				t.Fatalf("status %s", pl.status().Description)
			}
			t.Logf("%v: %d entries, %.2f s behind, %.0f/s", time.Since(began).Round(100*time.Millisecond), r.Behind, r.Seconds, r.Rate)
			worst = max(worst, r.Seconds)
		}
	}
	ended := time.Now()
	p.caughtUp(pl, m)
	t.Logf("caught up %v after the end, %.2f s behind at worst", time.Since(ended).Round(time.Millisecond), worst)
	p.same(m)
}

// TestWholeJournals reads journals as the primary's librbd wrote them from their
// beginning to their end.
func TestWholeJournals(t *testing.T) {
	p := newPair(t)
	for _, width := range []int{1, 4, 7} {
		name := fmt.Sprintf("width%d", width)
		p.a.Run("rbd", "create", p.pool+"/"+name, "--size", "40M", "--image-feature", "layering,exclusive-lock,object-map,fast-diff,journaling",
			"--journal-splay-width", fmt.Sprint(width), "--journal-object-size", "64K")
		m := rbdimage.On(t, p.a.admin.Pool(p.pool), name)
		io := p.a.IO(p.pool, "")
		j := objects.New(io, m.ID())
		// Somebody who never gets on keeps the whole journal.
		if err := j.Register("reader", &format.OtherClient{Type: 2}); err != nil {
			t.Fatal(err)
		}
		x := &mix{site: p.a, m: m, rng: newRNG(t), size: 40 * mib, prot: map[string]bool{}, seed: 100}
		for range 40 {
			x.step()
		}
		g, err := j.Geometry()
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]int{}
		var last format.Position
		h, left := read(t, j, g, io, func(e stream.Entry, event format.Event, at time.Time) {
			if !bytes.Equal(format.EncodeEvent(event, at), e.Payload) {
				t.Errorf("%s is encoded in another way", format.Name(event))
			}
			kinds[format.Name(event)]++
			last = e.Position
		})
		master, _ := h.Client(format.MasterClient).Committed.First()
		if last != master || left != 0 {
			t.Errorf("the last entry is %v, not %v; %d bytes are left", last, master, left)
		}
		t.Logf("width %d, %d sets: %v", width, h.Active+1, kinds)
	}
}

// TestRaces writes to the same blocks from many threads at once. librbd may carry
// such writes out in another order than its journal has them, so the primary can
// differ from its own journal; the copy is what the journal says.
func TestRaces(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), "races", rbdimage.Options{Size: 4 * mib, Features: journaling})
	pl := p.play(p.b, p.enable(m))
	pl.waitState(replica.StateReplaying, "replaying, ")
	p.caughtUp(pl, m)
	io := p.a.IO(p.pool, "")
	j := objects.New(io, m.ID())
	if err := j.Register("reader", &format.OtherClient{Type: 2}); err != nil {
		t.Fatal(err)
	}
	const block, blocks, threads, writes = 4096, 16, 16, 1500
	m.Edit(func(img *rbd.Image) error {
		errs := make(chan error, threads)
		for i := range uint64(threads) {
			go func() {
				r := rand.New(rand.NewPCG(5, i))
				var err error
				for k := uint64(0); k < writes && err == nil; k++ {
					_, err = img.WriteAt(rbdimage.Data(i<<32|k, block), r.Int64N(blocks)*block)
				}
				errs <- err
			}()
		}
		var err error
		for range threads {
			err = errors.Join(err, <-errs)
		}
		return errors.Join(err, img.Flush())
	})
	p.caughtUp(pl, m)
	pl.stop()
	want := make([]byte, blocks*block)
	g, err := j.Geometry()
	if err != nil {
		t.Fatal(err)
	}
	entries := 0
	read(t, j, g, io, func(e stream.Entry, event format.Event, _ time.Time) {
		if w, ok := event.(format.Write); ok {
			copy(want[w.Offset:], w.Data)
			entries++
		}
	})
	differs := func(m rbdimage.Maker) (n int) {
		have := make([]byte, len(want))
		m.Look(func(img *rbd.Image) error {
			_, err := img.ReadAt(have, 0)
			return err
		})
		for at := 0; at < len(want); at += block {
			if !bytes.Equal(have[at:at+block], want[at:at+block]) {
				n++
			}
		}
		return n
	}
	t.Logf("%d writes; of %d blocks of the primary %d are not what the journal says", entries, blocks, differs(m))
	if n := differs(m.In(p.b.admin.Pool(p.pool))); n > 0 {
		t.Errorf("%d blocks of the copy are not what the journal says", n)
	}
}

// read goes through a whole journal. It returns what the journal's header said, and
// how many bytes at the end are no entry.
func read(t *testing.T, j *objects.Journal, g objects.Geometry, io *rados.IOContext, do func(stream.Entry, format.Event, time.Time)) (*objects.Header, int) {
	t.Helper()
	h, err := j.Look()
	if err != nil {
		t.Fatal(err)
	}
	r := stream.New(stream.Geometry{Order: g.Order, Splay: g.Splay}, nil, h.Minimum)
	for {
		r.Saw(r.Look(), h.Active, h.Newest())
		list := r.Want(1 << 20)
		for _, f := range list {
			b, err := objects.Read(t.Context(), io, g.Object(f.Object), f.Offset, f.Length)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Fetched(f, b); err != nil {
				t.Fatal(err)
			}
		}
		for {
			e, ok, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			event, at, err := format.DecodeEvent(e.Payload)
			if err != nil {
				t.Fatal(err)
			}
			do(e, event, at)
		}
		if len(list) == 0 && !r.WantLook() {
			return h, r.Buffered()
		}
	}
}
