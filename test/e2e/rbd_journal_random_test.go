package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/test/rbdimage"
)

var killed = flag.Int("kills", 0, "how often the plugin is killed while journals are followed, 50 times by default")

// childEnv makes the test program do something in a process of its own: librbd
// aborts now and then, when images are opened and closed very often or are rolled
// back with an object map that is invalid, which is not to end the tests.
const childEnv = "CEPHMIRROR_TEST_CHILD"

// task is what a process of its own does: one of these.
type task struct {
	Write   *writing
	Compare *comparison
}

// writing changes an image at random.
type writing struct {
	Cluster, Conf, Pool, Image string

	Seed  uint64
	Steps int
	// Plain leaves out what depends on what is there, which the stock daemon does
	// wrong after it broke off.
	Plain bool
	// Snaps makes half of the steps ones with snapshots.
	Snaps bool
}

// comparison compares an image with its copy.
type comparison struct {
	ConfA, ConfB, Pool, Namespace, Image string

	FromB bool // b has the image, and a its copy
	Who   string
}

// complaint is the end of such a process.
type complaint struct{}

func (complaint) Helper() {}
func (complaint) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

// childMain is the main function of such a process.
func childMain(text string) int {
	var t task
	err := json.Unmarshal([]byte(text), &t)
	switch {
	case err == nil && t.Write != nil:
		err = t.Write.run()
	case err == nil && t.Compare != nil:
		err = t.Compare.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// run tells what it does, line by line.
func (s *writing) run() error {
	c, err := rbdimage.Open(s.Cluster, s.Conf)
	if err != nil {
		return err
	}
	w := mixer{
		m: rbdimage.On(complaint{}, c.Pool(s.Pool), s.Image), plain: s.Plain, often: s.Snaps,
		r: rand.New(rand.NewPCG(s.Seed, 5)),
	}
	for range s.Steps {
		w.step()
	}
	return nil
}

// run prints what differs, as JSON.
func (s *comparison) run() error {
	a, err := rbdimage.Open("a", s.ConfA)
	if err != nil {
		return err
	}
	b, err := rbdimage.Open("b", s.ConfB)
	if err != nil {
		return err
	}
	p := &rbdPool{name: s.Pool, a: a.Pool(s.Pool, s.Namespace), b: b.Pool(s.Pool, s.Namespace)}
	from := p.a
	if s.FromB {
		from = p.b
	}
	diffs, err := p.differences(rbdimage.On(complaint{}, from, s.Image), s.Who)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(diffs)
}

// errAborted is of a process that librbd has ended.
var errAborted = errors.New("aborted by librbd")

// apart does something in a process of its own and returns what it prints.
func apart(ctx context.Context, t task) (string, error) {
	spec, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		status, ok := exit.Sys().(syscall.WaitStatus)
		if ok && status.Signaled() || strings.Contains(text.String(), "SIGABRT") || strings.Contains(text.String(), "SIGSEGV") {
			return out.String(), fmt.Errorf("%w: %.500s", errAborted, text.String())
		}
	}
	if err != nil {
		said := text.String()
		err = fmt.Errorf("%w: %s", err, said[max(0, len(said)-2000):])
	}
	return out.String(), err
}

// equal is sameBy, by a process of its own.
func (p *rbdPool) equal(t *testing.T, m rbdimage.Maker, who string) {
	t.Helper()
	spec := task{Compare: &comparison{
		ConfA: p.e.a.Conf(), ConfB: p.e.b.Conf(), Pool: p.name, Namespace: m.Pool().Namespace, Image: m.Name(),
		FromB: m.Pool().Client == p.b.Client, Who: who,
	}}
	out, err := apart(t.Context(), spec)
	for range 2 {
		if errors.Is(err, errAborted) {
			t.Log(err)
			out, err = apart(t.Context(), spec)
		}
	}
	if err != nil {
		t.Fatalf("comparing %s: %v", m.Spec(), err)
	}
	var diffs []string
	mustJSON(t, out, &diffs)
	for _, d := range diffs {
		t.Errorf("%s: %s", m.Spec(), d)
	}
}

// mixer changes an image at random. What it has to know it asks the image.
type mixer struct {
	m     rbdimage.Maker
	r     *rand.Rand
	plain bool
	often bool // snapshots are dealt with
}

func (w *mixer) note(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (w *mixer) size() (n uint64) {
	w.m.Look(func(img *rbd.Image) (err error) {
		n, err = img.GetSize()
		return err
	})
	return n
}

// snaps are the user snapshots.
func (w *mixer) snaps() (names []string) {
	list, err := w.m.Pool().Peek(w.m.Name())
	if err != nil {
		complaint{}.Fatalf("%v", err)
	}
	for _, s := range list {
		if s.Kind == rbdimage.User && !strings.HasPrefix(s.Name, ".rbd-mirror.") {
			names = append(names, s.Name)
		}
	}
	return names
}

func (w *mixer) protected(snap string) (is bool) {
	w.m.Look(func(img *rbd.Image) (err error) {
		is, err = img.GetSnapshot(snap).IsProtected()
		return err
	})
	return is
}

// clones are those that the writer has made.
func (w *mixer) clones() (names []string) {
	all, err := w.m.Pool().Images()
	if err != nil {
		complaint{}.Fatalf("%v", err)
	}
	for _, name := range all {
		if strings.HasPrefix(name, w.m.Name()+" child") {
			names = append(names, name)
		}
	}
	return names
}

func (w *mixer) place(size uint64) (at, length uint64) {
	at = w.r.Uint64N(size)
	if w.r.IntN(3) > 0 {
		at &^= []uint64{511, 4095, 65535, mib - 1}[w.r.IntN(4)]
	}
	lengths := []uint64{1, 512, 4096, 30000, 65536, 300000, mib, 4 * mib}
	return at, min(lengths[w.r.IntN(len(lengths))], size-at)
}

// pick draws one of the names, none if there is none.
func (w *mixer) pick(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[w.r.IntN(len(names))]
}

// fresh is a snapshot's name that is not in use. Names come again.
func (w *mixer) fresh(names []string) string {
	for {
		name := fmt.Sprint("snap", w.r.IntN(9))
		if !slices.Contains(names, name) {
			return name
		}
	}
}

func (w *mixer) step() {
	names := w.snaps()
	snap := w.pick(names)
	n := w.r.IntN(100)
	if w.often && n < 50 {
		n = 60 + w.r.IntN(28)
	}
	switch {
	case n < 45:
		w.session()
	case n < 52:
		at, length := w.place(w.size())
		w.note("zero %d+%d", at, length)
		w.m.Zero(at, length)
	case n < 60:
		size := max(mib, uint64(w.r.IntN(24*mib))&^[]uint64{511, mib - 1}[w.r.IntN(2)])
		w.note("resize %d", size)
		w.m.Resize(size)
	case n < 70 && len(names) < 6:
		name := w.fresh(names)
		w.note("snapshot %s", name)
		w.m.Snap(name)
	case n < 76 && snap != "" && !w.protected(snap):
		w.note("remove snapshot %s", snap)
		w.m.RemoveSnap(snap)
	case n < 80 && snap != "":
		name := w.fresh(names)
		w.note("rename snapshot %s to %s", snap, name)
		w.m.RenameSnap(snap, name)
	case n < 84 && snap != "":
		w.note("roll back to %s", snap)
		w.m.Rollback(snap)
	case n < 88 && snap != "":
		if w.protected(snap) {
			w.note("unprotect %s", snap)
			w.m.Unprotect(snap)
		} else {
			w.note("protect %s", snap)
			w.m.Protect(snap)
		}
	case n < 91:
		clones := w.clones()
		if name := w.pick(clones); name != "" && (len(clones) > 1 || snap == "") {
			w.note("remove %s", name)
			w.m.Pool()
			rbdimage.On(complaint{}, w.m.Pool(), name).Remove()
		} else if snap != "" {
			name := fmt.Sprintf("%s child %d", w.m.Name(), w.r.IntN(1000))
			w.note("clone %s as %s", snap, name)
			w.m.Clone(snap, w.m.Pool(), name, rbdimage.Options{CloneVersion: 2, Features: rbdimage.Plain})
		}
	case n < 94:
		key := fmt.Sprint("key", w.r.IntN(4))
		w.note("metadata %s", key)
		w.m.SetMeta(key, fmt.Sprint(w.r.IntN(1000)))
	case n < 95 && w.r.IntN(4) == 0:
		if l, err := w.m.Pool().Layout(w.m.Name()); err == nil && l.Parent != "" {
			w.note("flatten")
			w.m.Flatten()
		}
	case n < 97:
		l, err := w.m.Pool().Layout(w.m.Name())
		if err != nil {
			complaint{}.Fatalf("%v", err)
		}
		switch {
		case l.Features&rbdimage.FastDiff != 0 && w.r.IntN(3) == 0:
			w.note("no fast-diff")
			w.m.Disable(rbdimage.FastDiff)
		case l.Features&rbdimage.ObjectMap != 0 && l.Features&rbdimage.FastDiff == 0:
			w.note("fast-diff")
			w.m.Enable(rbdimage.FastDiff)
		}
	case !w.plain:
		w.note("compare and write")
		for range 10 {
			at := uint64(w.r.IntN(3) * 512)
			sector := func() []byte {
				return append(bytes.Repeat([]byte{byte(w.r.IntN(2))}, 256), bytes.Repeat([]byte{byte(w.r.IntN(2))}, 256)...)
			}
			if w.r.IntN(3) == 0 {
				w.m.Write(at, sector()[128:384])
			} else {
				w.m.CompareAndWrite(at, sector(), sector())
			}
		}
	}
}

// session opens the image once for several writes, discards and flushes.
func (w *mixer) session() {
	size := w.size()
	w.m.Edit(func(img *rbd.Image) error {
		for range 1 + w.r.IntN(30) {
			at, length := w.place(size)
			switch n := w.r.IntN(20); {
			case n < 4:
				w.note("discard %d+%d", at, length)
				if _, err := img.Discard(at, length); err != nil {
					return err
				}
			case n < 6:
				w.note("flush")
				if err := img.Flush(); err != nil {
					return err
				}
			case n < 7 && length >= 512:
				length &^= 511
				w.note("write-same %d+%d", at, length)
				if _, err := img.WriteSame(at, length, rbdimage.Data(w.r.Uint64(), 512), 0); err != nil {
					return err
				}
			default:
				length = min(length, 300000)
				data := rbdimage.Data(w.r.Uint64(), int(length))
				if w.r.IntN(8) == 0 {
					clear(data)
				}
				w.note("write %d+%d", at, length)
				if _, err := img.WriteAt(data, int64(at)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// writers change images by processes of their own.
type writers struct {
	p     *rbdPool
	plain bool
	often bool

	mu     sync.Mutex
	notes  map[string][]string // what was done, by image
	aborts int
}

// write makes some steps with an image of a or b. A writer that librbd aborts is
// no failure of what is tested: the next one finds what it left.
func (ws *writers) write(ctx context.Context, m rbdimage.Maker, seed uint64, steps int) error {
	c := ws.p.e.cluster(m.Pool())
	out, err := apart(ctx, task{Write: &writing{
		Cluster: c.Name(), Conf: c.Conf(), Pool: m.Pool().Name, Image: m.Name(), Seed: seed, Steps: steps, Plain: ws.plain, Snaps: ws.often,
	}})
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.notes == nil {
		ws.notes = make(map[string][]string)
	}
	ws.notes[m.Name()] = append(ws.notes[m.Name()], strings.Split(strings.TrimSpace(out), "\n")...)
	if errors.Is(err, errAborted) {
		ws.aborts++
		ws.notes[m.Name()] = append(ws.notes[m.Name()], err.Error())
		return nil
	}
	// librbd says so when the lock's holder, whom it has asked, dies meanwhile: the
	// plugin, while it makes a sync point.
	if err != nil && strings.Contains(err.Error(), "ret=-30, Read-only file system") {
		ws.notes[m.Name()] = append(ws.notes[m.Name()], err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing to %s: %w", m.Spec(), err)
	}
	return nil
}

// explain logs what was done to an image, if the test has failed.
func (ws *writers) explain(t *testing.T, m rbdimage.Maker) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if t.Failed() {
		t.Logf("what was done to %s:\n%s", m.Name(), strings.Join(ws.notes[m.Name()], "\n"))
	}
	if ws.aborts > 0 {
		t.Logf("librbd aborted %d writers so far", ws.aborts)
	}
}

// shortWatches make the clusters see soon that a client has died.
func (e *env) shortWatches(t *testing.T) {
	t.Helper()
	for _, c := range e.sites() {
		mon(t, c, map[string]any{"prefix": "config set", "who": "osd", "name": "osd_client_watch_timeout", "value": "10"})
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if _, err := c.MonCommand(ctx, map[string]any{"prefix": "config rm", "who": "osd", "name": "osd_client_watch_timeout"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// mixedImages are images of different kinds for writers.
func (p *rbdPool) mixedImages(t *testing.T, all bool) (list []rbdimage.Maker) {
	t.Helper()
	parent := p.withJournal(t, "parent", rbdimage.Options{Size: 14 * mib, Order: 20})
	parent.Fill(1, 0, 12*mib)
	parent.Snap("base")
	parent.Protect("base")
	p.follow(t, parent)
	list = append(list,
		p.withJournal(t, "mapped", rbdimage.Options{Order: 20}),
		parent.Clone("base", p.a, "clone 2", rbdimage.Options{CloneVersion: 2, Features: rbdimage.Journaling}))
	if all {
		list = append(list,
			p.withJournal(t, "plain", rbdimage.Options{Features: rbdimage.Plain | rbd.FeatureJournaling}),
			p.withJournal(t, "striped", rbdimage.Options{Order: 18, StripeUnit: 16 << 10, StripeCount: 3}),
			parent.Clone("base", p.a, "clone 1", rbdimage.Options{CloneVersion: 1, Features: rbdimage.Journaling}),
			parent.Clone("base", p.a, "plain clone", rbdimage.Options{CloneVersion: 2, Features: rbdimage.Plain | rbd.FeatureJournaling}))
	}
	for _, m := range list {
		p.follow(t, m)
	}
	p.caughtUp(t, parent)
	return list
}

// TestRBDJournalRandom changes images at random while their journals are
// followed.
func TestRBDJournalRandom(t *testing.T) {
	needLong(t)
	e := need(t)
	e.shortWatches(t)
	p, _ := e.journalPool(t, poolOptions{})
	const rounds = 30
	seed := randomSeed(t)
	t.Logf("CEPHMIRROR_TEST_SEED=%d", seed)
	ws := &writers{p: p, plain: tested() == stock}
	images := p.mixedImages(t, true)
	t.Run("group", func(t *testing.T) {
		for i, m := range images {
			t.Run(m.Name(), func(t *testing.T) {
				t.Parallel()
				m := m.For(t)
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				defer ws.explain(t, m)
				for range rounds {
					if err := ws.write(t.Context(), m, r.Uint64(), 15); err != nil {
						t.Fatal(err)
					}
					p.sameJournal(t, m)
					if t.Failed() {
						return
					}
				}
			})
		}
	})
}

// TestRBDJournalKilled kills the plugin at random moments while images are
// changed: in the end they are equal, and there is no snapshot too many.
func TestRBDJournalKilled(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "it repeats operations, and snapshots are left over")
	kills := *killed
	if kills <= 0 {
		kills = 50
	}
	e.shortWatches(t)
	for _, c := range []struct {
		name string
		opts []string
	}{{"merged", nil}, {"strict", []string{"--cephmirror-rbd-journal-strict=true"}}} {
		t.Run(c.name, func(t *testing.T) {
			p, d := e.journalPool(t, poolOptions{}, append(c.opts,
				"--cephmirror-restart-delay=100ms", "--cephmirror-restart-delay-max=200ms")...)
			seed := randomSeed(t)
			t.Logf("CEPHMIRROR_TEST_SEED=%d", seed)
			ws := &writers{p: p}
			ws.whileKilled(t, d, p.mixedImages(t, true), seed, kills, 500*time.Millisecond, 5*time.Second)
		})
	}
}

// whileKilled changes images while the plugin is killed again and again, some time
// after it has taken up an image, and compares them in the end.
func (ws *writers) whileKilled(t *testing.T, d *daemon, images []rbdimage.Maker, seed uint64, kills int, from, to time.Duration) {
	t.Helper()
	p := ws.p
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(images))
	for i, m := range images {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for ctx.Err() == nil && errs[i] == nil {
				// To its end, or the image would be left in the middle of
				// something, and locked.
				errs[i] = ws.write(context.Background(), m, r.Uint64(), 6)
			}
		})
	}
	r := rand.New(rand.NewPCG(seed, 1000))
	for i := range kills {
		within(t, 90*time.Second, "an image to be taken up", func() (err error) {
			for _, m := range images {
				if _, err = d.call("rbd mirror status " + m.Spec()); err == nil {
					return nil
				}
			}
			return err
		})
		pid := d.plugin(t)
		time.Sleep(from + time.Duration(r.Int64N(int64(to-from))))
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		within(t, 20*time.Second, "another plugin", func() error {
			if d.plugin(t) == pid {
				return fmt.Errorf("it is still %d", pid)
			}
			return nil
		})
	}
	cancel()
	wg.Wait()
	for i, m := range images {
		defer ws.explain(t, m)
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
	}
	for _, m := range images {
		p.caughtUpWithin(t, 3*time.Minute, m)
		p.equal(t, m, tested())
	}
}

// TestRBDJournalFirstCopy kills the plugin while images are copied for the first time,
// whose snapshots come and go, and change names, meanwhile.
func TestRBDJournalFirstCopy(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "snapshots are lost, or left over")
	e.shortWatches(t)
	p, d := e.journalPool(t, poolOptions{},
		"--cephmirror-restart-delay=100ms", "--cephmirror-restart-delay-max=200ms", "--cephmirror-rbd-rate-limit=16MiB")
	seed := randomSeed(t)
	t.Logf("CEPHMIRROR_TEST_SEED=%d", seed)
	var images []rbdimage.Maker
	for i := range 5 {
		m := p.withJournal(t, fmt.Sprint("image", i), rbdimage.Options{Order: 20})
		m.Fill(1, 0, 12*mib)
		for k := range 3 {
			m.Snap(fmt.Sprint("snap", k))
			m.Fill(uint64(k), uint64(k)*3*mib, 2*mib)
		}
		p.follow(t, m)
		images = append(images, m)
	}
	ws := &writers{p: p, often: true}
	ws.whileKilled(t, d, images, seed, 8, 0, 2500*time.Millisecond)
}

// fullParent makes an image to make clones of, at its snapshot base: 8 MiB of data in
// objects of 1 MiB.
func (p *rbdPool) fullParent(t *testing.T, name string) rbdimage.Maker {
	t.Helper()
	m := p.withJournal(t, name, rbdimage.Options{Size: 8 * mib, Order: 20})
	m.Fill(1, 0, 8*mib)
	m.Snap("base")
	m.Protect("base")
	return m
}

// TestRBDJournalChangedFirst changes clones when their copies were made, but nothing
// was copied yet: what is to be seen of the parent becomes less, or nothing. Their
// older snapshots, if any, still show it.
func TestRBDJournalChangedFirst(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "the copy stays a clone, and shows the parent where the image has nothing")
	p, d := e.journalPool(t, poolOptions{}, "--rbd-mirror-concurrent-image-syncs=1", "--cephmirror-rbd-rate-limit=3MiB")
	parent := p.fullParent(t, "parent")
	p.follow(t, parent)
	p.sameJournal(t, parent)
	changes := map[string]func(rbdimage.Maker){
		"flattened": func(m rbdimage.Maker) { m.Flatten(); m.Discard(4*mib, 2*mib) },
		"shrunk":    func(m rbdimage.Maker) { m.Resize(2*mib + 1000); m.Resize(8 * mib) },
	}
	for i := range 8 {
		version, older, what := uint64(1+i%2), i/2%2 == 1, []string{"flattened", "shrunk"}[i/4]
		name := fmt.Sprintf("v%d %s %v", version, what, older)
		caught := false
		for try := 0; try < 10 && !caught; try++ {
			// Only one is copied at a time.
			first := p.withJournal(t, fmt.Sprint("before ", name, try), rbdimage.Options{Size: 24 * mib})
			first.Fill(2, 0, 24*mib)
			m := parent.Clone("base", p.a, fmt.Sprint(name, try), rbdimage.Options{CloneVersion: version, Features: rbdimage.Journaling})
			m.Fill(3, mib, mib)
			if older {
				m.Snap("older")
				m.Fill(4, 3*mib, mib)
			}
			p.follow(t, first)
			p.follow(t, m)
			within(t, 30*time.Second, "the copy of "+m.Name(), func() error {
				if there, err := p.b.Exists(m.Name()); err != nil || !there {
					return fmt.Errorf("it does not exist: %v", err)
				}
				return nil
			})
			d.stop(t)
			list, err := p.b.Snaps(m.Name())
			if err != nil {
				t.Fatal(err)
			}
			caught = len(list) == 0
			changes[what](m)
			d.start(t)
			p.sameJournal(t, m)
		}
		if !caught {
			t.Errorf("%s: all were being copied when they were changed", name)
		}
	}
}

// TestRBDJournalClones makes copies of clones whose snapshots show more of the parent
// than they do now.
func TestRBDJournalClones(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{})
	parent := p.fullParent(t, "parent")
	p.follow(t, parent)
	p.sameJournal(t, parent)
	// What was flattened does not need it.
	alone := p.fullParent(t, "not mirrored")
	type M = rbdimage.Maker
	for name, before := range map[string]func(M){
		"shrunk": func(m M) { m.Resize(2*mib + 1000); m.Resize(8 * mib) },
		"shrunk after a snapshot": func(m M) {
			m.Snap("a")
			m.Resize(2*mib + 1000)
			m.Resize(8 * mib)
		},
		"shrunk between snapshots": func(m M) {
			m.Snap("a")
			m.Resize(5*mib + 1000)
			m.Snap("b")
			m.Resize(8 * mib)
			m.Fill(4, 6*mib, 1000)
			m.Snap("c")
			m.Resize(2 * mib)
			m.Resize(6 * mib)
		},
		"flattened after a snapshot": func(m M) { m.Snap("a"); m.Flatten(); m.Discard(4*mib, 2*mib) },
		"shrunk and flattened": func(m M) {
			m.Snap("a")
			m.Resize(3*mib + 1000)
			m.Snap("b")
			m.Flatten()
			m.Resize(8 * mib)
			m.Snap("c")
		},
	} {
		for _, version := range []uint64{1, 2} {
			t.Run(fmt.Sprintf("v%d %s", version, name), func(t *testing.T) {
				t.Parallel()
				of := parent
				if strings.HasSuffix(name, "flattened") {
					of = alone
				}
				m := of.For(t).Clone("base", p.a, fmt.Sprintf("%s %d", name, version),
					rbdimage.Options{CloneVersion: version, Features: rbdimage.Journaling})
				m.Fill(3, mib, mib)
				before(m)
				p.follow(t, m)
				p.sameJournal(t, m)
				m.Fill(5, 0, 100)
				m.Resize(7 * mib)
				p.sameJournal(t, m)
			})
		}
	}
}
