package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"

	"cephmirror/test/bed"
	"cephmirror/test/rbdimage"
)

// journalOptions make the stock daemon tell soon of what it has done.
func journalOptions(who string) []string {
	if who == stock {
		return []string{"--rbd-mirror-journal-commit-age=1", "--rbd-mirror-journal-poll-age=1"}
	}
	return nil
}

// startJournal starts a daemon on a cluster, for images with a journal.
func (e *env) startJournal(t *testing.T, who string, c *bed.Cluster, opts ...string) *daemon {
	t.Helper()
	return e.startRBD(t, who, c, append(journalOptions(who), opts...)...)
}

// journalPool makes a pool and starts the daemon under test on b.
func (e *env) journalPool(t *testing.T, o poolOptions, opts ...string) (*rbdPool, *daemon) {
	t.Helper()
	p := e.newPool(t, o)
	return p, e.startJournal(t, tested(), e.b, opts...)
}

// withJournal makes an image of a with a journal. It is not mirrored yet.
func (p *rbdPool) withJournal(t *testing.T, name string, o rbdimage.Options) rbdimage.Maker {
	t.Helper()
	if o.Size == 0 {
		o.Size = 16 * mib
	}
	if o.Features == 0 {
		o.Features = rbdimage.Journaling
	}
	return rbdimage.Create(t, p.a, name, o)
}

// follow mirrors an image by its journal.
func (p *rbdPool) follow(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	p.rbd(t, p.e.cluster(m.Pool()), "mirror", "image", "enable", m.Spec(), "journal")
}

// rollback makes an image what it was at a snapshot. Where object maps are
// invalid librbd may abort, so another process does it.
func (p *rbdPool) rollback(t *testing.T, m rbdimage.Maker, snap string) {
	t.Helper()
	p.rbd(t, p.e.cluster(m.Pool()), "snap", "rollback", "--no-progress", m.Spec()+"@"+snap)
}

// behind tells what the journal of an image that nobody changes says is left to
// be done.
func (p *rbdPool) behind(m rbdimage.Maker) error {
	j, err := m.Pool().Journal(m.Name())
	if err != nil {
		return err
	}
	var peers []rbdimage.JournalClient
	for _, c := range j.Peers {
		if c.Peer {
			peers = append(peers, c)
		}
	}
	if len(peers) != 1 {
		return fmt.Errorf("%d mirror clients", len(peers))
	}
	c := peers[0]
	switch {
	case c.ImageID == "" || c.Syncing:
		return fmt.Errorf("not copied yet: %+v", c)
	case c.Disconnected:
		return fmt.Errorf("disconnected")
	case j.Master.Any && (!c.Any || c.Position.Compare(j.Master.Position) < 0):
		return fmt.Errorf("at %+v of %+v", c.Position, j.Master.Position)
	}
	id, err := p.other(m.Pool()).ImageID(m.Name())
	if err == nil && id != c.ImageID {
		err = fmt.Errorf("the copy is %s, but registered as %s", id, c.ImageID)
	}
	return err
}

// journalPatience is how long it may take until all is done and told.
func journalPatience(who string) time.Duration {
	if who == stock {
		return 100 * time.Second // what nobody flushes is told of late
	}
	return 40 * time.Second
}

// caughtUp waits until all that the journal has is carried out on the other
// side.
func (p *rbdPool) caughtUp(t *testing.T, m rbdimage.Maker) rbdimage.Maker {
	t.Helper()
	return p.caughtUpWithin(t, journalPatience(tested()), m)
}

func (p *rbdPool) caughtUpWithin(t *testing.T, limit time.Duration, m rbdimage.Maker) rbdimage.Maker {
	t.Helper()
	if err := eventually(limit, func() error { return p.behind(m) }); err != nil {
		state, text, _ := p.own(p.other(m.Pool()), m.Name())
		t.Fatalf("waited %v for the copy of %s: %v\nstatus: %s, %s", limit, m.Spec(), err, state, text)
	}
	return m.In(p.other(m.Pool()))
}

// sameJournal waits until the copy has caught up and compares everything.
func (p *rbdPool) sameJournal(t *testing.T, m rbdimage.Maker) rbdimage.Maker {
	t.Helper()
	c := p.caughtUp(t, m)
	p.equal(t, m, tested())
	return c
}

// journalEvent is a change that a journal has an event for.
type journalEvent struct {
	name string
	do   func()
}

// journalEvents are changes of every kind. The image has at least 16 MiB, a
// snapshot "before" and a key "color".
func journalEvents(t *testing.T, p *rbdPool, m *rbdimage.Maker, clone bool) []journalEvent {
	tool := func(args ...string) { p.rbd(t, p.e.a, args...) }
	var list []journalEvent
	add := func(name string, do func()) { list = append(list, journalEvent{name, do}) }
	add("write", func() { m.Fill(3, mib, 2*mib+777) })
	add("small write", func() { m.Write(5*mib+513, []byte("some words")) })
	add("discard", func() { m.Discard(4*mib, 4*mib) })
	add("part of an object discarded", func() { m.Discard(9*mib+5000, 300000) })
	add("zeroes", func() { m.Zero(2*mib+100, 70000) })
	add("write-same", func() {
		m.Edit(func(img *rbd.Image) error {
			_, err := img.WriteSame(12*mib, mib, []byte("0123456789abcdef"), rados.OpFlagNone)
			return err
		})
	})
	add("compare-and-write", func() {
		old := bytes.Repeat([]byte("old."), 128)
		m.Write(6*mib, old)
		if !m.CompareAndWrite(6*mib, old, bytes.Repeat([]byte("new!"), 128)) {
			t.Error("it holds something else")
		}
	})
	add("compare-and-write of something else", func() {
		if m.CompareAndWrite(6*mib, make([]byte, 512), bytes.Repeat([]byte("bad!"), 128)) {
			t.Error("it was written")
		}
	})
	add("flush", func() {
		m.Edit(func(img *rbd.Image) error {
			for i := range int64(40) {
				if _, err := img.WriteAt(rbdimage.Data(uint64(i), 4096), i*9000); err != nil {
					return err
				}
				if i%7 == 0 {
					if err := img.Flush(); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
	add("snapshot", func() { m.Snap("s1") })
	add("write after a snapshot", func() { m.Fill(4, 0, 5*mib) })
	add("protection", func() { m.Protect("s1") })
	add("second snapshot", func() { m.Snap("s2") })
	add("snapshot renamed", func() { m.RenameSnap("s2", "s2 by another name") })
	add("snapshot removed", func() { m.RemoveSnap("before") })
	add("snapshot of the same name", func() { m.Snap("before") })
	add("protection removed", func() { m.Unprotect("s1") })
	add("snapshot limit", func() { tool("snap", "limit", "set", "--limit", "7", m.Spec()) })
	add("larger", func() { m.Resize(20*mib + 12345) })
	add("write at the end", func() { m.Fill(5, 17*mib, 3*mib+12345) })
	add("third snapshot", func() { m.Snap("s3") })
	add("smaller", func() { m.Resize(11*mib + 4321) })
	add("larger again", func() { m.Resize(18 * mib) })
	add("write behind the end that was", func() { m.Fill(6, 13*mib, mib) })
	add("roll-back", func() { p.rollback(t, *m, "s3") })
	add("roll-back to another size", func() { p.rollback(t, *m, "s1") })
	add("write after it", func() { m.Fill(7, 7*mib, mib) })
	add("metadata", func() { m.SetMeta("shape", "round") })
	add("metadata removed", func() { m.RemoveMeta("color") })
	add("rename", func() {
		to := m.Name() + " renamed"
		m.Rename(to)
	})
	add("no snapshot limit", func() { tool("snap", "limit", "clear", m.Spec()) })
	if clone {
		add("write over the parent", func() { m.Write(10*mib+100, []byte("over")) })
		add("discard over the parent", func() { m.Discard(9*mib, mib) })
		add("flatten", func() { m.Flatten() })
		add("write after it was flattened", func() { m.Write(10*mib+300, []byte("over")) })
		add("roll-back after it was flattened", func() { p.rollback(t, *m, "s3") })
	}
	if l, err := m.Pool().Layout(m.Name()); err == nil && l.Features&rbd.FeatureFastDiff != 0 {
		add("features taken away", func() { tool("feature", "disable", m.Spec(), "fast-diff", "object-map") })
		add("write without an object map", func() { m.Fill(8, 3*mib, mib) })
		add("features given", func() { tool("feature", "enable", m.Spec(), "object-map") })
		// Which is no event: our copies' are rebuilt by themselves.
		add("object map rebuilt", func() {
			tool("object-map", "rebuild", "--no-progress", m.Spec())
			p.mapped(t, *m)
		})
		add("write with an object map", func() { m.Fill(9, 5*mib, mib) })
		add("snapshot with object maps", func() { m.Snap("s4") })
	}
	return list
}

// TestRBDJournalEvents has every kind of event, on every kind of image.
func TestRBDJournalEvents(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{})
	for _, c := range e.sites() {
		e.makePool(t, c, p.name+"-other")
	}
	parent := p.withJournal(t, "parent", rbdimage.Options{Size: 14 * mib, Order: 20})
	parent.Fill(1, 0, 12*mib)
	parent.Snap("base")
	parent.Protect("base")
	p.follow(t, parent)
	p.caughtUp(t, parent)
	for _, c := range []struct {
		name string
		rbdimage.Options
		clone bool
		tool  []string // what to create it with
	}{
		{name: "mapped", Options: rbdimage.Options{Order: 20}},
		{name: "plain", Options: rbdimage.Options{Features: rbdimage.Plain | rbd.FeatureJournaling}},
		{name: "striped", Options: rbdimage.Options{Order: 19, StripeUnit: 64 << 10, StripeCount: 3}},
		{name: "data pool", Options: rbdimage.Options{DataPool: p.name + "-other"}},
		{name: "journal pool", tool: []string{"--journal-pool", p.name + "-other"}},
		{name: "striped, all in other pools", tool: []string{
			"--journal-pool", p.name + "-other", "--data-pool", p.name + "-other", "--object-size", "512K", "--stripe-unit", "64K", "--stripe-count", "3",
		}},
		{name: "clone 1", Options: rbdimage.Options{CloneVersion: 1}, clone: true},
		{name: "clone 2", Options: rbdimage.Options{CloneVersion: 2}, clone: true},
		{name: "striped clone", Options: rbdimage.Options{
			CloneVersion: 2, Order: 19, StripeUnit: 64 << 10, StripeCount: 3, DataPool: p.name + "-other",
		}, clone: true},
		{name: "plain clone", Options: rbdimage.Options{CloneVersion: 2, Features: rbdimage.Plain | rbd.FeatureJournaling}, clone: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var m rbdimage.Maker
			switch {
			case c.clone:
				if c.Features == 0 {
					c.Features = rbdimage.Journaling
				}
				m = parent.For(t).Clone("base", p.a, c.name, c.Options)
				m.Resize(16 * mib)
			case len(c.tool) > 0:
				p.rbd(t, e.a, append([]string{"create", p.a.Spec(c.name), "--size", "16M",
					"--image-feature", "layering,exclusive-lock,object-map,fast-diff,deep-flatten,journaling"}, c.tool...)...)
				m = rbdimage.On(t, p.a, c.name)
			default:
				m = p.withJournal(t, c.name, c.Options)
			}
			m.Fill(1, 0, 9*mib)
			m.Snap("before")
			m.Fill(2, 3*mib, 4*mib)
			m.SetMeta("color", "blue")
			p.follow(t, m)
			p.sameJournal(t, m)
			for _, ev := range journalEvents(t, p, &m, c.clone) {
				ev.do()
				if tested() == stock {
					continue // the stock daemon tells too late of what it has done
				}
				c := p.sameJournal(t, m)
				p.sameLimit(t, m, c)
				if t.Failed() {
					t.Fatalf("since %q", ev.name)
				}
			}
			p.sameLimit(t, m, p.sameJournal(t, m))
			p.waitState(t, statusPatience(), m.In(p.b), "up+replaying", `"entries_behind_primary":0`)
		})
	}
}

// mapped waits until the copy of an image has an object map that can be relied on.
func (p *rbdPool) mapped(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	if tested() == stock {
		return
	}
	p.caughtUp(t, m)
	within(t, 20*time.Second, "the object map of the copy to be in order", func() error {
		l, err := p.other(m.Pool()).Layout(m.Name())
		if err == nil && l.Flags != 0 {
			err = fmt.Errorf("it has flags %#x", l.Flags)
		}
		return err
	})
}

func (p *rbdPool) sameLimit(t *testing.T, m, copy rbdimage.Maker) {
	t.Helper()
	want, err := m.Pool().SnapLimit(m.Name())
	if err != nil {
		t.Fatal(err)
	}
	got, err := copy.Pool().SnapLimit(copy.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("the snapshot limit is %d instead of %d", got, want)
	}
}

// TestRBDJournalPoolMode has a pool whose images are mirrored as soon as they
// have a journal, and for as long.
func TestRBDJournalPoolMode(t *testing.T) {
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{mode: "pool"})
	m := p.withJournal(t, "image", rbdimage.Options{Features: rbdimage.Everything})
	born := p.withJournal(t, "born with it", rbdimage.Options{})
	born.Fill(1, 0, 5*mib)
	m.Fill(1, 0, 5*mib)
	m.Snap("one")
	p.sameJournal(t, born)
	absent := func() error {
		there, err := p.b.Exists(m.Name())
		if err == nil && there {
			err = fmt.Errorf("there is a copy")
		}
		return err
	}
	holds(t, 2*time.Second, "without a journal", absent)
	for range 2 {
		m.Enable(rbd.FeatureJournaling)
		p.sameJournal(t, m)
		m.Fill(2, 2*mib, 5*mib)
		m.Resize(20 * mib)
		p.sameJournal(t, m)
		m.Disable(rbd.FeatureJournaling)
		within(t, 60*time.Second, "the copy to be removed", absent)
	}
	born.Fill(3, 2*mib, 5*mib)
	p.sameJournal(t, born)
	born.Remove()
	within(t, 60*time.Second, "no copy to be left", func() error {
		images, err := p.b.Images()
		if err == nil && len(images) > 0 {
			err = fmt.Errorf("there are %v", images)
		}
		return err
	})
}

// TestRBDJournalNamespace mirrors an image of a namespace.
func TestRBDJournalNamespace(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{namespaces: []string{"space"}})
	q := p.namespace("space")
	m := q.withJournal(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	q.follow(t, m)
	q.sameJournal(t, m)
	m.Snap("one")
	m.Fill(2, mib, 5*mib)
	q.sameJournal(t, m)
}

// TestRBDJournalResume lets a daemon end again and again, in the middle of the
// first copy and of a backlog.
func TestRBDJournalResume(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{Size: 64 * mib, Order: 18})
	m.Fill(1, 0, 64*mib)
	m.Snap("one")
	m.Fill(2, 0, 32*mib)
	m.Snap("two")
	p.follow(t, m)
	opts := journalOptions(tested())
	if tested() == ours {
		opts = append(opts, "--cephmirror-rbd-rate-limit=12MiB")
	}
	d := e.startRBD(t, tested(), e.b, opts...)
	for i := range 4 {
		time.Sleep(3 * time.Second)
		m.Fill(uint64(10+i), uint64(i)*10*mib+1000, 5*mib)
		d.stop(t)
		m.Snap(fmt.Sprint("snap", i))
		m.Fill(uint64(20+i), uint64(i)*5*mib, mib)
		d.start(t)
	}
	p.caughtUpWithin(t, 3*time.Minute, m)
	p.equal(t, m, tested())
}

// TestRBDJournalCommands looks at what the stock tools make of a journal that is
// followed.
func TestRBDJournalCommands(t *testing.T) {
	e := need(t)
	p, d := e.journalPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.follow(t, m)
	p.caughtUp(t, m)
	m.Fill(2, 0, mib)
	if tested() == ours {
		if _, err := d.call("rbd mirror flush " + m.Spec()); err != nil {
			t.Error(err)
		}
	}
	copy := p.sameJournal(t, m)
	var status struct {
		Minimum    uint64 `json:"minimum_set"`
		Active     uint64 `json:"active_set"`
		Registered []struct {
			ID     string `json:"id"`
			State  string `json:"state"`
			Commit struct {
				Positions []struct {
					Object uint64 `json:"object_number"`
					Tag    uint64 `json:"tag_tid"`
					Entry  uint64 `json:"entry_tid"`
				} `json:"object_positions"`
			} `json:"commit_position"`
		} `json:"registered_clients"`
	}
	text := p.rbd(t, e.a, "journal", "status", "--image", m.Spec(), "--format", "json")
	mustJSON(t, text, &status)
	if len(status.Registered) != 2 {
		t.Fatalf("clients: %s", text)
	}
	for _, c := range status.Registered {
		if c.State != "connected" || len(c.Commit.Positions) == 0 {
			t.Errorf("a client: %s", text)
			continue
		}
		if got, want := c.Commit.Positions[0], status.Registered[0].Commit.Positions[0]; got != want {
			t.Errorf("positions differ: %s", text)
		}
	}
	p.rbd(t, e.b, "journal", "info", "--image", copy.Spec())
	for _, side := range []rbdimage.Maker{m, copy} {
		p.rbd(t, p.e.cluster(side.Pool()), "journal", "inspect", "--image", side.Spec())
	}
	// The copy's own journal has epochs only.
	j, err := p.b.Journal(copy.Name())
	if err != nil {
		t.Fatal(err)
	}
	if j.Master.Any {
		t.Errorf("the copy's journal has entries: %+v", j)
	}
	// What both have done with is removed.
	before := status.Minimum
	p.rbd(t, e.a, "bench", m.Spec(), "--io-type", "write", "--io-size", "64K", "--io-total", "80M", "--io-threads", "16", "--io-pattern", "rand")
	p.caughtUp(t, m)
	m.Fill(5, 0, mib)
	p.caughtUp(t, m)
	within(t, 30*time.Second, "the journal to be trimmed", func() error {
		j, err := m.Pool().Journal(m.Name())
		if err == nil && j.Minimum <= before {
			err = fmt.Errorf("its oldest set is %d, the newest %d", j.Minimum, j.Active)
		}
		return err
	})
	p.equal(t, m, tested())
}

// lag is the JSON in the description of an image whose journal is followed.
type lag struct {
	Behind uint64          `json:"entries_behind_primary"`
	Rate   float64         `json:"entries_per_second"`
	Copy   journalPosition `json:"non_primary_position"`

	// Ours.
	Bytes   *uint64  `json:"bytes_behind_primary"`
	Seconds *float64 `json:"seconds_behind_primary"`
	Mode    string   `json:"replay_mode"`
}

type journalPosition struct {
	Tag   uint64 `json:"tag_tid"`
	Entry uint64 `json:"entry_tid"`
}

func parseLag(description string) (l lag, err error) {
	text, ok := strings.CutPrefix(description, "replaying, ")
	if !ok {
		return l, fmt.Errorf("the description is %q", description)
	}
	return l, json.Unmarshal([]byte(text), &l)
}

// busy writes 4 KiB at random, many at once, for a while. No two write to the same
// place: librbd may do that in another order than its journal tells.
func busy(img *rbd.Image, size int64, long time.Duration) error {
	deadline := time.Now().Add(long)
	const writers = 16
	var g errgroup.Group
	for i := range int64(writers) {
		g.Go(func() error {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for time.Now().Before(deadline) {
				at := (r.Int64N(size/4096/writers)*writers + i) * 4096
				if _, err := img.WriteAt(rbdimage.Data(r.Uint64(), 4096), at); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), img.Flush())
}

// TestRBDJournalLag looks at the lag of a copy whose primary is busy: it is small,
// told of all the time, and gone soon after.
func TestRBDJournalLag(t *testing.T) {
	e := need(t)
	notStock(t, "it falls behind, and tells of that every 30 s")
	p, _ := e.journalPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{Size: 64 * mib})
	m.Fill(1, 0, 64*mib)
	p.follow(t, m)
	p.sameJournal(t, m)
	done := make(chan error, 1)
	go func() {
		done <- p.a.Open(m.Name(), func(img *rbd.Image) error { return busy(img, 64*mib, 8*time.Second) })
	}()
	begun := time.Now()
	var moved time.Time
	var at journalPosition
	var worst, stale float64
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
			continue
		case <-time.After(250 * time.Millisecond):
		}
		if time.Since(begun) < 2*time.Second {
			continue // it starts
		}
		_, text, err := p.own(p.b, m.Name())
		if err != nil {
			t.Fatal(err)
		}
		l, err := parseLag(text)
		if err != nil {
			t.Fatal(err)
		}
		if l.Bytes == nil || l.Seconds == nil || l.Mode == "" {
			t.Fatalf("not told: %s", text)
		}
		if l.Copy != at || moved.IsZero() {
			at, moved = l.Copy, time.Now()
		}
		worst, stale = max(worst, *l.Seconds), max(stale, time.Since(moved).Seconds())
	}
	ended := time.Now()
	within(t, 20*time.Second, "the lag to be gone", func() error {
		_, text, err := p.own(p.b, m.Name())
		if err != nil {
			return err
		}
		l, err := parseLag(text)
		if err != nil {
			return err
		}
		if l.Behind != 0 || *l.Bytes != 0 || *l.Seconds != 0 {
			return fmt.Errorf("it is %+v", l)
		}
		return p.behind(m)
	})
	t.Logf("%.2f s behind at most, not told of for %.2f s at most, gone %v after the end", worst, stale, time.Since(ended).Round(10*time.Millisecond))
	if stale > 2.5 { // a look takes a while itself
		t.Errorf("progress was not told of for %.2f s", stale)
	}
	p.sameJournal(t, m)
}
