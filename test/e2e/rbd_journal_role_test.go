package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/test/rbdimage"
)

// demote makes an image non-primary with the stock tool.
func (p *rbdPool) demote(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	p.rbd(t, p.e.cluster(m.Pool()), "mirror", "image", "demote", m.Spec())
}

// takeOver promotes the copy of an image that was demoted, once its daemon has
// seen to that.
func (p *rbdPool) takeOver(t *testing.T, limit time.Duration, copy rbdimage.Maker) {
	t.Helper()
	within(t, limit, copy.Spec()+" to be promoted", func() error {
		_, err := p.e.tryRBD(p.e.cluster(copy.Pool()), "mirror", "image", "promote", copy.Spec())
		return err
	})
}

// checkedMaps is checkMaps, and tells what the stock check complains of.
func (p *rbdPool) checkedMaps(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	if l, err := m.Pool().Layout(m.Name()); err != nil || l.Features&rbdimage.ObjectMap == 0 || l.Flags != 0 {
		return
	}
	specs := []string{m.Spec()}
	for _, s := range m.Snaps() {
		if s.Kind == rbdimage.User {
			specs = append(specs, m.Spec()+"@"+s.Name)
		}
	}
	for _, spec := range specs {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		c := p.e.cluster(m.Pool())
		out, err := c.Command(ctx, "rbd", "--cluster", c.Name(), "object-map", "check", spec, "--no-progress").CombinedOutput()
		cancel()
		if err != nil || strings.Contains(string(out), "object map error") {
			t.Errorf("the object map of %s: %v, %s", spec, err, out)
		}
	}
	if l, err := m.Pool().Layout(m.Name()); err != nil || l.Flags != 0 {
		t.Errorf("%s has flags %#x after the check: %v", m.Spec(), l.Flags, err)
	}
}

// TestRBDJournalFailOver moves images to the other site and back with the stock
// tools, without copying anything again.
func TestRBDJournalFailOver(t *testing.T) {
	needLong(t)
	e := need(t)
	for _, w := range sides() {
		t.Run(fmt.Sprintf("a %s, b %s", w.a, w.b), func(t *testing.T) {
			p := e.newPool(t, poolOptions{})
			e.startJournal(t, w.a, e.a)
			e.startJournal(t, w.b, e.b)
			parent := p.withJournal(t, "parent", rbdimage.Options{})
			parent.Fill(1, 0, 9*mib)
			parent.Snap("base")
			parent.Protect("base")
			p.follow(t, parent)
			images := []rbdimage.Maker{
				p.withJournal(t, "mapped", rbdimage.Options{Order: 20}),
				parent.Clone("base", p.a, "clone", rbdimage.Options{CloneVersion: 2, Features: rbdimage.Journaling}),
			}
			images = append(images, p.withJournal(t, "plain", rbdimage.Options{Features: rbdimage.Plain | rbd.FeatureJournaling}))
			for _, m := range images {
				m.Fill(1, 0, 5*mib)
				m.Snap("on a")
				m.Fill(2, mib, mib)
				p.follow(t, m)
			}
			p.caughtUp(t, parent)
			t.Run("group", func(t *testing.T) {
				for _, m := range images {
					t.Run(m.Name(), func(t *testing.T) {
						t.Parallel()
						p.journalFailOver(t, w, m.For(t))
					})
				}
			})
		})
	}
}

func (p *rbdPool) journalFailOver(t *testing.T, w who, a rbdimage.Maker) {
	limit := max(journalPatience(w.a), journalPatience(w.b))
	arrived := func(m rbdimage.Maker, by string) {
		t.Helper()
		p.caughtUpWithin(t, limit, m)
		p.equal(t, m, by)
	}
	change := func(m rbdimage.Maker, seed uint64) {
		m.Fill(seed, 2*mib+1000, mib)
		m.Snap(fmt.Sprintf("snap%d", seed))
		m.Fill(seed+1, 6*mib, mib)
		m.Discard(8*mib, mib)
		m.Zero(3*mib, mib)
		m.Resize(16*mib + seed*1000)
		m.SetMeta("changed", fmt.Sprint(seed))
	}
	arrived(a, w.b)
	b := a.In(p.b)
	idA, idB := a.ID(), b.ID()
	change(a, 10)
	p.demote(t, a)
	p.takeOver(t, limit, b)
	p.equal(t, a, w.b)
	if w.b == ours {
		p.checkedMaps(t, b) // before librbd changes it, which is less exact with discards
	}
	p.waitOwn(t, b, "up+stopped", "local image is primary")

	// And back, twice.
	const rounds = 2
	for round := range uint64(rounds) {
		change(b, 20+100*round)
		arrived(b, w.a)
		change(b, 30+100*round)
		p.demote(t, b)
		p.takeOver(t, limit, a)
		p.equal(t, b, w.a)
		change(a, 40+100*round)
		arrived(a, w.b)
		change(a, 50+100*round)
		if round+1 < rounds {
			p.demote(t, a)
			p.takeOver(t, limit, b)
		} else {
			arrived(a, w.b)
		}
	}
	// Nothing was made anew.
	if a.ID() != idA || b.ID() != idB {
		t.Errorf("the images were %s and %s, and are %s and %s", idA, idB, a.ID(), b.ID())
	}
	p.waitState(t, 60*time.Second, b, "up+replaying", `"entries_behind_primary":0`)
}

// sequence is a series of writes of which each block has one.
type sequence struct {
	blocks []int // where each goes
	epochs []int // the first write since a flush
}

const block = 4096

func newSequence(n int) (s sequence) {
	r := rand.New(rand.NewPCG(7, 7))
	s.blocks = r.Perm(n)
	for len(s.epochs) < n {
		epoch := len(s.epochs)
		for range min(1+r.IntN(12), n-len(s.epochs)) {
			s.epochs = append(s.epochs, epoch)
		}
	}
	return s
}

// blockOf is what write i writes.
func blockOf(i int) []byte {
	b := rbdimage.Data(uint64(i)+1, block)
	binary.LittleEndian.PutUint64(b, uint64(i)+1)
	return b
}

// write makes all writes, and flushes between epochs.
func (s sequence) write(m rbdimage.Maker) {
	m.Edit(func(img *rbd.Image) error {
		for i, at := range s.blocks {
			if i > 0 && s.epochs[i] != s.epochs[i-1] {
				if err := img.Flush(); err != nil {
					return err
				}
			}
			if _, err := img.WriteAt(blockOf(i), int64(at)*block); err != nil {
				return err
			}
		}
		return img.Flush()
	})
}

// look tells how many writes an image has from the first on, and the last that
// it has, -1 for none.
func (s sequence) look(t *testing.T, m rbdimage.Maker) (prefix, last int) {
	t.Helper()
	last = -1
	there := make([]bool, len(s.blocks))
	m.Look(func(img *rbd.Image) error {
		buf := make([]byte, len(s.blocks)*block)
		if _, err := img.ReadAt(buf, 0); err != nil {
			return err
		}
		for i, at := range s.blocks {
			b := buf[at*block : (at+1)*block]
			switch {
			case bytes.Equal(b, blockOf(i)):
				there[i], last = true, i
			case binary.LittleEndian.Uint64(b) != 0:
				t.Errorf("block %d is neither empty nor what was written", at)
			}
		}
		return nil
	})
	for prefix < len(there) && there[prefix] {
		prefix++
	}
	return prefix, last
}

// TestRBDJournalForced promotes a copy by force, in the middle of a backlog.
// While its daemon works, the copy is then what the image was at some moment.
// After the daemon was killed, it may lack some of what was written between two
// flushes.
func TestRBDJournalForced(t *testing.T) {
	needLong(t)
	e := need(t)
	const writes = 6000
	for _, c := range []struct {
		name   string
		opts   []string
		killed bool
	}{
		{name: "merged"},
		{name: "strict", opts: []string{"--cephmirror-rbd-journal-strict=true"}},
		{name: "merged, killed", killed: true},
		{name: "strict, killed", opts: []string{"--cephmirror-rbd-journal-strict=true"}, killed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if tested() == stock && len(c.opts) > 0 {
				t.Skip("of our daemon")
			}
			e.shortWatches(t)
			p := e.newPool(t, poolOptions{})
			d := e.startJournal(t, tested(), e.b, c.opts...)
			m := p.withJournal(t, "image", rbdimage.Options{Size: 24 * mib})
			m.Write(0, []byte{0})
			p.follow(t, m)
			copy := p.sameJournal(t, m)
			d.stop(t)
			s := newSequence(writes)
			s.write(m)
			whole, err := p.a.Journal(m.Name())
			if err != nil {
				t.Fatal(err)
			}
			d.start(t)
			// Somewhere in it.
			within(t, 60*time.Second, "some of the backlog to be carried out", func() error {
				j, err := p.a.Journal(m.Name())
				if err != nil {
					return err
				}
				c := j.Peers[0].Position
				if c.Tag < whole.Master.Position.Tag || c.Entry < writes/8 {
					return fmt.Errorf("at %+v of %+v", c, whole.Master.Position)
				}
				return nil
			})
			if c.killed {
				d.killAll(t, tested())
			}
			begun := time.Now()
			if _, err := e.tryRBDWithin(e.b, 90*time.Second, "mirror", "image", "promote", "--force", copy.Spec()); err != nil {
				t.Fatal(err)
			}
			t.Logf("promoted after %v", time.Since(begun).Round(100*time.Millisecond))
			// Once it can be written to, nobody else writes to it any more.
			copy.Write(writes*block, []byte("mine"))
			prefix, last := s.look(t, copy)
			t.Logf("%d of %d writes are there, the last one is %d", prefix, writes, last)
			switch {
			case prefix == writes:
				t.Log("that was all of it: nothing was in the middle")
			case !c.killed || c.name == "strict, killed" || tested() == stock:
				if last >= prefix {
					t.Errorf("write %d is there, but %d is not", last, prefix)
				}
			case last >= prefix && s.epochs[last] != s.epochs[prefix]:
				t.Errorf("write %d is there, but %d, before a flush, is not", last, prefix)
			}
			if c.killed {
				d.start(t)
			}
			p.waitOwn(t, copy, "up+stopped", "")
			copy.Fill(9, 0, mib)
			p.checkedMaps(t, copy)
			// The old primary goes on, and the copy may become one again.
			p.demote(t, copy)
			p.waitOwn(t, copy, "up+error", "split-brain")
			p.resynced(t, m, copy)
		})
	}
}

// TestRBDJournalSplitBrain changes both sides, and lets one follow the other
// again.
func TestRBDJournalSplitBrain(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 9*mib)
	m.Snap("common")
	p.follow(t, m)
	copy := p.sameJournal(t, m)
	p.rbd(t, e.b, "mirror", "image", "promote", "--force", copy.Spec())
	p.waitOwn(t, copy, "up+stopped", "")
	copy.Fill(2, 5*mib, mib)
	copy.Snap("only here")
	m.Fill(3, 2*mib, mib)
	p.demote(t, copy)
	p.waitState(t, 60*time.Second, copy, "up+error", "split-brain")
	holds(t, 3*time.Second, "in split-brain", func() error {
		for _, s := range copy.Snaps() {
			if s.Name == "only here" {
				return nil
			}
		}
		return fmt.Errorf("the snapshot of the copy vanished")
	})
	p.resynced(t, m, copy)
}

// resynced asks for another copy, and waits for it.
func (p *rbdPool) resynced(t *testing.T, m, copy rbdimage.Maker) {
	t.Helper()
	id := copy.ID()
	copy.Resync()
	p.replaced(t, m, id)
	m.Fill(7, mib, mib)
	p.sameJournal(t, m)
}

// replaced waits for another copy than the one that was.
func (p *rbdPool) replaced(t *testing.T, m rbdimage.Maker, id string) {
	t.Helper()
	within(t, 2*journalPatience(tested()), "another copy", func() error {
		if err := p.behind(m); err != nil {
			return err
		}
		now, err := p.other(m.Pool()).ImageID(m.Name())
		if err == nil && now == id {
			err = fmt.Errorf("it is the old one")
		}
		return err
	})
	p.equal(t, m, tested())
}

// TestRBDJournalResync asks for copies to be made anew.
func TestRBDJournalResync(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{})
	t.Run("in order", func(t *testing.T) {
		m := p.withJournal(t, "fine", rbdimage.Options{})
		m.Fill(1, 0, 9*mib)
		m.Snap("user")
		p.follow(t, m)
		p.resynced(t, m, p.sameJournal(t, m))
	})
	t.Run("damaged", func(t *testing.T) {
		m := p.withJournal(t, "damaged", rbdimage.Options{})
		m.Fill(1, 0, 9*mib)
		p.follow(t, m)
		copy := p.sameJournal(t, m)
		objects, err := copy.At(rbdimage.Head).Objects()
		if err != nil || len(objects) == 0 {
			t.Fatal(objects, err)
		}
		if err := copy.Damage(objects[0]); err != nil {
			t.Fatal(err)
		}
		if diffs, err := p.differences(m, tested()); err != nil || len(diffs) == 0 {
			t.Fatalf("the damage is not seen: %v, %v", diffs, err)
		}
		p.resynced(t, m, copy)
	})
	t.Run("disconnected", func(t *testing.T) {
		m := p.withJournal(t, "disconnected", rbdimage.Options{})
		m.Fill(1, 0, 9*mib)
		p.follow(t, m)
		copy := p.sameJournal(t, m)
		j, err := p.a.Journal(m.Name())
		if err != nil {
			t.Fatal(err)
		}
		p.rbd(t, e.a, "journal", "client", "disconnect", "--image", m.Spec(), "--client-id", j.Peers[0].ID)
		p.waitState(t, 60*time.Second, copy, "up+error", "disconnected")
		m.Fill(2, 3*mib, mib)
		holds(t, 3*time.Second, "disconnected", func() error {
			state, text, err := p.own(p.b, m.Name())
			if err == nil && (state != "up+error" || !strings.Contains(text, "disconnected")) {
				err = fmt.Errorf("%s, %s", state, text)
			}
			return err
		})
		p.resynced(t, m, copy)
	})
	t.Run("disconnected, on its own", func(t *testing.T) {
		m := p.withJournal(t, "on its own", rbdimage.Options{})
		m.Fill(1, 0, 9*mib)
		m.SetMeta("conf_rbd_mirroring_resync_after_disconnect", "true")
		p.follow(t, m)
		copy := p.sameJournal(t, m)
		id := copy.ID()
		j, err := p.a.Journal(m.Name())
		if err != nil {
			t.Fatal(err)
		}
		p.rbd(t, e.a, "journal", "client", "disconnect", "--image", m.Spec(), "--client-id", j.Peers[0].ID)
		p.replaced(t, m, id)
	})
	t.Run("without a primary", func(t *testing.T) {
		notStock(t, "it may delete the only good copy")
		m := p.withJournal(t, "demoted", rbdimage.Options{})
		m.Fill(1, 0, 9*mib)
		p.follow(t, m)
		copy := p.sameJournal(t, m)
		p.demote(t, m)
		p.waitOwn(t, copy, "up+unknown", "remote image is not primary")
		id := copy.ID()
		copy.Resync()
		holds(t, 5*time.Second, "asked to resync", func() error {
			there, err := p.b.Exists(copy.Name())
			if err == nil && (!there || copy.ID() != id) {
				err = fmt.Errorf("the copy was deleted")
			}
			return err
		})
		p.equal(t, m, tested())
	})
}

// TestRBDJournalRemoval removes images, or no longer mirrors them.
func TestRBDJournalRemoval(t *testing.T) {
	needLong(t)
	e := need(t)
	p, d := e.journalPool(t, poolOptions{})
	gone := func(t *testing.T, name, id string) {
		t.Helper()
		p.removed(t, 60*time.Second, name, id)
	}
	mirrored := func(t *testing.T, name string) (rbdimage.Maker, string) {
		t.Helper()
		m := p.withJournal(t, name, rbdimage.Options{})
		m.Fill(1, 0, 5*mib)
		m.Snap("one")
		m.Protect("one")
		m.Fill(2, 2*mib, 5*mib)
		m.Snap("two")
		p.follow(t, m)
		return m, p.sameJournal(t, m).ID()
	}
	t.Run("disabled", func(t *testing.T) {
		m, id := mirrored(t, "disabled")
		m.Unmirror()
		gone(t, m.Name(), id)
		// And once more the same name.
		p.follow(t, m)
		p.sameJournal(t, m)
	})
	t.Run("removed", func(t *testing.T) {
		m, id := mirrored(t, "removed")
		removeWithSnaps(m)
		gone(t, m.Name(), id)
		m, _ = mirrored(t, "removed")
		m.Fill(5, mib, mib)
		p.sameJournal(t, m)
	})
	t.Run("while no daemon runs", func(t *testing.T) {
		m, id := mirrored(t, "at rest")
		d.stop(t)
		removeWithSnaps(m)
		d.start(t)
		gone(t, m.Name(), id)
	})
	t.Run("with delay", func(t *testing.T) {
		m, id := mirrored(t, "delayed")
		p.rbd(t, e.b, "config", "pool", "set", p.name, "rbd_mirroring_delete_delay", "8")
		d.stop(t)
		d.start(t)
		p.waitOwn(t, m.In(p.b), "up+replaying", "entries_behind_primary")
		p.removeDelayed(t, m, func() { gone(t, m.Name(), id) })
	})
	t.Run("primary here", func(t *testing.T) {
		m, _ := mirrored(t, "promoted")
		copy := m.In(p.b)
		p.demote(t, m)
		p.takeOver(t, journalPatience(tested()), copy)
		p.keepsPromoted(t, m)
	})
}

// TestRBDJournalHandOver lets the stock daemon and ours take turns with the same
// images, with a backlog between them.
func TestRBDJournalHandOver(t *testing.T) {
	needLong(t)
	e := need(t)
	e.shortWatches(t)
	orders := [][]string{{stock, ours, stock, ours}, {ours, stock, ours, stock}}
	if tested() == stock {
		orders = [][]string{{stock, stock, stock}}
	}
	for _, order := range orders {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			p := e.newPool(t, poolOptions{})
			d := e.startJournal(t, order[0], e.b)
			images := p.mixedImages(t, false)
			seed := randomSeed(t)
			t.Logf("CEPHMIRROR_TEST_SEED=%d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			ws := &writers{p: p, plain: true}
			ids := make([]string, len(images))
			for i, m := range images {
				defer ws.explain(t, m)
				ids[i] = p.caughtUpWithin(t, journalPatience(stock), m).ID()
			}
			for turn, by := range order {
				if turn > 0 {
					for _, m := range images {
						if err := ws.write(t.Context(), m, r.Uint64(), 8); err != nil {
							t.Fatal(err)
						}
					}
					d = e.startJournal(t, by, e.b)
				}
				for i, m := range images {
					if err := ws.write(t.Context(), m, r.Uint64(), 8); err != nil {
						t.Fatal(err)
					}
					copy := p.caughtUpWithin(t, journalPatience(stock), m)
					p.equal(t, m, stock) // what ours finds of the other one's object maps it leaves
					if copy.ID() != ids[i] {
						t.Errorf("%s was made anew by %s", copy.Spec(), by)
					}
				}
				if t.Failed() {
					t.Fatalf("in the turn of %s", by)
				}
				// In the middle of something.
				m := images[turn%len(images)]
				m.Fill(uint64(turn), 0, min(mib, 9*mib))
				d.stop(t)
			}
		})
	}
}

// TestRBDJournalTwoDaemons has two daemons on one site, of which one ends.
func TestRBDJournalTwoDaemons(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "of ours")
	e.shortWatches(t)
	for _, second := range []string{ours, stock} {
		t.Run(second, func(t *testing.T) {
			p := e.newPool(t, poolOptions{})
			d := e.startJournal(t, ours, e.b)
			e.startRBDAs(t, second, e.b, rbdUser+"2", journalOptions(second)...)
			var images []rbdimage.Maker
			for i := range 6 {
				m := p.withJournal(t, fmt.Sprint("image", i), rbdimage.Options{Size: 8 * mib})
				m.Fill(uint64(i), 0, 4*mib)
				p.follow(t, m)
				images = append(images, m)
			}
			round := func(seed uint64) {
				t.Helper()
				for i, m := range images {
					m.Fill(seed+uint64(i), uint64(i)*mib, mib)
					m.Snap(fmt.Sprint("snap", seed))
				}
				for _, m := range images {
					p.caughtUpWithin(t, 2*journalPatience(stock), m)
					p.equal(t, m, second)
				}
			}
			round(100)
			d.killAll(t, ours)
			round(200)
			d.start(t)
			round(300)
		})
	}
}
