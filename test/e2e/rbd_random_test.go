package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/test/rbdimage"
)

// randomSeed is of CEPHMIRROR_TEST_SEED, to repeat a run, or new.
func randomSeed(t *testing.T) uint64 {
	if text := os.Getenv("CEPHMIRROR_TEST_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return uint64(time.Now().UnixNano())
}

// TestRBDRandom writes at random to images that are mirrored meanwhile, and
// compares every mirror snapshot.
func TestRBDRandom(t *testing.T) {
	e := need(t)
	notStock(t, "discards, copy-ups and completed snapshots are wrong")
	rounds := 5
	if *long {
		rounds = 60
	}
	p, _ := e.mirrored(t, poolOptions{})
	seed := randomSeed(t)
	t.Logf("CEPHMIRROR_TEST_SEED=%d", seed)
	for i, c := range []struct {
		name string
		rbdimage.Options
		clone bool
	}{
		{name: "plain"},
		{name: "no object map", Options: rbdimage.Options{Features: rbdimage.Plain}},
		{name: "striped", Options: rbdimage.Options{Order: 18, StripeUnit: 16 << 10, StripeCount: 3}},
		{name: "small objects", Options: rbdimage.Options{Order: 17}},
		{name: "clone 1", Options: rbdimage.Options{CloneVersion: 1}, clone: true},
		{name: "clone 2", Options: rbdimage.Options{CloneVersion: 2}, clone: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.Size = 20 * mib
			var m rbdimage.Maker
			if c.clone {
				parent := rbdimage.Create(t, p.a, c.name+" parent", rbdimage.Options{Size: c.Size - 3*mib})
				parent.Fill(1, 2*mib, 10*mib)
				parent.Snap("base")
				parent.Protect("base")
				parent.Mirror()
				m = parent.Clone("base", p.a, c.name, c.Options)
			} else {
				m = rbdimage.Create(t, p.a, c.name, c.Options)
			}
			w := &randomWriter{t: t, p: p, m: m, r: rand.New(rand.NewPCG(seed, uint64(i)))}
			w.run(rounds)
		})
	}
}

// randomWriter changes one image.
type randomWriter struct {
	t      *testing.T
	p      *rbdPool
	m      rbdimage.Maker
	r      *rand.Rand
	snaps  []string // user snapshots
	clones map[string]rbdimage.Maker
	n      int // names made
	ops    int
	notes  []string // of what was done
}

// moment is what the image was when a mirror snapshot was made.
type moment struct {
	snap  uint64
	users []rbdimage.Snap
}

// run makes mirror snapshots, each as soon as the one before was found to be
// right, and goes on writing meanwhile.
func (w *randomWriter) run(rounds int) {
	w.clones = make(map[string]rbdimage.Maker)
	defer func() {
		if w.t.Failed() {
			w.t.Logf("what was done:\n%s", strings.Join(w.notes, "\n"))
		}
	}()
	for range 10 {
		w.step()
	}
	w.note("mirror snapshot %d", w.m.Mirror())
	for range rounds {
		at := moment{snap: w.m.MirrorSnap()}
		w.note("mirror snapshot %d", at.snap)
		for _, s := range w.m.Snaps() {
			if s.Kind == rbdimage.User {
				at.users = append(at.users, s)
			}
		}
		checked := make(chan error, 1)
		go func() { checked <- w.check(at) }()
		for done := false; !done; {
			select {
			case err := <-checked:
				if err != nil {
					w.t.Error(err)
					return
				}
				done = true
			default:
				w.step()
			}
		}
	}
	w.p.waitSame(w.t, w.m)
	if *long {
		// What came of it all is a good image on the other side.
		for name, c := range w.clones {
			c.Remove()
			delete(w.clones, name)
		}
		copy := w.p.demoted(w.t, w.m)
		w.p.same(w.t, w.m)
		w.p.promote(w.t, copy)
		w.p.checkMaps(w.t, copy)
	}
	w.t.Logf("%d operations, %d user snapshots at the end", w.ops, len(w.snaps))
}

// check waits for a mirror snapshot and compares all that is in it.
func (w *randomWriter) check(at moment) error {
	err := eventually(60*time.Second, func() error { return w.p.arrived(w.m, at.snap) })
	if err != nil {
		state, text, _ := w.p.own(w.p.b, w.m.Name())
		return fmt.Errorf("mirror snapshot %d: %w\nstatus: %s, %s", at.snap, err, state, text)
	}
	copies, err := w.p.b.Snaps(w.m.Name())
	if err != nil {
		return err
	}
	compare := func(what string, a, b uint64) error {
		diffs, err := rbdimage.Compare(w.m.At(a), w.m.In(w.p.b).At(b))
		if snaps, peekErr := w.p.a.Peek(w.m.Name()); peekErr != nil {
			return peekErr
		} else if !slices.ContainsFunc(snaps, func(s rbdimage.Snap) bool { return s.ID == a && s.Kind != rbdimage.Trash }) {
			return nil // removed meanwhile
		}
		if err == nil && len(diffs) > 0 {
			err = fmt.Errorf("%s differs: %v", what, diffs)
		}
		return err
	}
	// A user snapshot that is removed before it is copied cannot be copied.
	now, err := w.p.a.Peek(w.m.Name())
	if err != nil {
		return err
	}
	var names, copied []string
	for _, s := range at.users {
		name := fmt.Sprint(s.Name, " ", s.Size)
		there := slices.ContainsFunc(now, func(n rbdimage.Snap) bool { return n.ID == s.ID && n.Kind == rbdimage.User })
		here := slices.ContainsFunc(copies, func(c rbdimage.Snap) bool { return c.Kind == rbdimage.User && c.Name == s.Name })
		if there || here {
			names = append(names, name)
		}
	}
	for _, c := range copies {
		if c.Kind == rbdimage.User {
			copied = append(copied, fmt.Sprint(c.Name, " ", c.Size))
			i := slices.IndexFunc(at.users, func(s rbdimage.Snap) bool { return s.Name == c.Name })
			if i >= 0 {
				if err := compare("snapshot "+c.Name, at.users[i].ID, c.ID); err != nil {
					return err
				}
			}
		}
		if c.Synced() && c.Source == at.snap {
			if err := compare(fmt.Sprintf("mirror snapshot %d (%d on the copy)", at.snap, c.ID), at.snap, c.ID); err != nil {
				return err
			}
			// Nothing is synchronised now, so that is what there is.
			if err := compare(fmt.Sprintf("the copy after mirror snapshot %d", at.snap), at.snap, rbdimage.Head); err != nil {
				return err
			}
		}
	}
	slices.Sort(names)
	slices.Sort(copied)
	if !slices.Equal(names, copied) {
		return fmt.Errorf("user snapshots of mirror snapshot %d: %q, but %q", at.snap, names, copied)
	}
	return nil
}

func (w *randomWriter) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// size is the image's present size.
func (w *randomWriter) size() (n uint64) {
	w.m.Look(func(img *rbd.Image) (err error) {
		n, err = img.GetSize()
		return err
	})
	return n
}

// place draws a range of an image.
func (w *randomWriter) place(size uint64) (at, length uint64) {
	at = w.r.Uint64N(size)
	if w.r.IntN(3) > 0 {
		at &^= []uint64{511, 4095, 65535, mib - 1, 4*mib - 1}[w.r.IntN(5)]
	}
	lengths := []uint64{1, 512, 4096, 30000, 65536, 300000, mib, 4 * mib}
	return at, min(lengths[w.r.IntN(len(lengths))], size-at)
}

// step does something.
func (w *randomWriter) step() {
	w.ops++
	size := w.size()
	switch n := w.r.IntN(100); {
	case n < 45: // several writes and discards at once
		w.m.Edit(func(img *rbd.Image) error {
			for range 1 + w.r.IntN(6) {
				at, length := w.place(size)
				if w.r.IntN(3) == 0 {
					w.note("discard %d+%d", at, length)
					if _, err := img.Discard(at, length); err != nil {
						return err
					}
					continue
				}
				data := rbdimage.Data(w.r.Uint64(), int(length))
				if w.r.IntN(8) == 0 {
					clear(data)
					w.note("with zeroes")
				}
				w.note("write %d+%d", at, length)
				if _, err := img.WriteAt(data, int64(at)); err != nil {
					return err
				}
			}
			return nil
		})
	case n < 60:
		at, length := w.place(size)
		w.note("zero %d+%d", at, length)
		w.m.Zero(at, length)
	case n < 70:
		size := max(mib, uint64(w.r.IntN(28*mib))&^[]uint64{511, mib - 1}[w.r.IntN(2)])
		w.note("resize %d", size)
		w.m.Resize(size)
	case n < 80 && len(w.snaps) < 6:
		w.n++
		name := fmt.Sprintf("snap%d", w.n)
		w.note("snapshot %s", name)
		w.m.Snap(name)
		w.snaps = append(w.snaps, name)
	case n < 86 && len(w.snaps) > 0:
		i := w.r.IntN(len(w.snaps))
		w.note("remove snapshot %s", w.snaps[i])
		w.m.RemoveSnap(w.snaps[i])
		w.snaps = slices.Delete(w.snaps, i, i+1)
	case n < 89 && len(w.snaps) > 0:
		w.n++
		i, name := w.r.IntN(len(w.snaps)), fmt.Sprintf("renamed%d", w.n)
		w.note("rename snapshot %s to %s", w.snaps[i], name)
		w.m.RenameSnap(w.snaps[i], name)
		w.snaps[i] = name
	case n < 91 && len(w.snaps) > 0:
		i := w.r.IntN(len(w.snaps))
		w.note("roll back to %s", w.snaps[i])
		w.m.Rollback(w.snaps[i])
	case n < 94 && len(w.snaps) > 0 && len(w.clones) < 2:
		w.n++
		name, snap := fmt.Sprintf("%s child %d", w.m.Name(), w.n), w.snaps[w.r.IntN(len(w.snaps))]
		w.note("clone %s", snap)
		w.clones[name] = w.m.Clone(snap, w.p.a, name, rbdimage.Options{CloneVersion: 2})
	case n < 97:
		for name, c := range w.clones {
			w.note("remove clone")
			c.Remove()
			delete(w.clones, name)
			break
		}
	case n < 98:
		w.m.SetMeta(fmt.Sprint("key", w.r.IntN(4)), fmt.Sprint(w.ops))
	case n < 99 && w.r.IntN(4) == 0:
		w.flatten()
	}
}

// flatten makes a clone stand alone; there may be no parent any more.
func (w *randomWriter) flatten() {
	l, err := w.m.Pool().Layout(w.m.Name())
	if err != nil {
		w.t.Fatal(err)
	}
	if l.Parent != "" {
		w.note("flatten")
		w.m.Flatten()
	}
}

// TestRBDBusyWriter writes all the time, while a snapshot is made every second.
func TestRBDBusyWriter(t *testing.T) {
	e := need(t)
	notStock(t, "completed snapshots are wrong")
	p, _ := e.mirrored(t, poolOptions{})
	m, snap := p.newImage(t, "image", rbdimage.Options{Size: 64 * mib})
	p.wait(t, m, snap)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- p.a.Open(m.Name(), func(img *rbd.Image) error {
			r := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				at := r.Int64N(64*mib/4096) * 4096
				if _, err := img.WriteAt(rbdimage.Data(r.Uint64(), 4096), at); err != nil {
					return err
				}
			}
		})
	}()
	for range 5 {
		snap := m.MirrorSnap()
		copy := p.wait(t, m, snap)
		for _, s := range copy.Snaps() {
			if s.Synced() && s.Source == snap {
				diffs, err := rbdimage.Compare(m.At(snap), copy.At(s.ID))
				if err != nil || len(diffs) > 0 {
					t.Errorf("mirror snapshot %d: %v, %v", snap, diffs, err)
				}
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.waitSame(t, m)
}
