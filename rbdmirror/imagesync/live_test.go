package imagesync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

const kib, mib = 1 << 10, 1 << 20

// side is a cluster.
type side struct {
	*rbdsite.Site
	admin *rbdimage.Client
}

func newSide(t *testing.T, name string) side {
	t.Helper()
	s := side{Site: rbdsite.Start(t, name)}
	admin, err := rbdimage.Open(name, s.Cluster.Conf())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	s.admin = admin
	return s
}

func newSides(t *testing.T) (a, b side) {
	t.Helper()
	return newSide(t, "a"), newSide(t, "b")
}

// end is one image of a pair.
type end struct {
	t      testing.TB
	maker  rbdimage.Maker
	io     *rados.IOContext
	data   *rados.IOContext
	id     string
	header *store.Header
}

func (s side) end(t *testing.T, m rbdimage.Maker) *end {
	t.Helper()
	e := &end{t: t, maker: m, io: s.IO(m.Pool().Name, m.Pool().Namespace), id: m.ID()}
	e.header = store.NewHeader(e.io, e.id)
	var err error
	if e.data, err = store.DataContext(s.Conn, e.io, e.load().DataPool); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.data.Destroy)
	return e
}

func (e *end) load() *store.Image {
	e.t.Helper()
	img, err := e.header.Load()
	must(e.t, err)
	return img
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is an image and its copy.
type pair struct {
	t        testing.TB
	src, dst *end
	start    uint64            // what the copy has
	ids      map[uint64]uint64 // snapshots of the source to those of the copy
	maps     bool
	useMaps  bool // of the source
}

func newPair(t *testing.T, a, b side, o rbdimage.Options) *pair {
	t.Helper()
	name := fmt.Sprintf("img%d", rand.Uint32())
	src := rbdimage.Create(t, a.admin.Pool("rbd"), name, o)
	dst := rbdimage.Create(t, b.admin.Pool("rbd"), name, o)
	return pairOf(t, a, b, src, dst)
}

func pairOf(t *testing.T, a, b side, src, dst rbdimage.Maker) *pair {
	p := &pair{t: t, src: a.end(t, src), dst: b.end(t, dst), ids: make(map[uint64]uint64)}
	p.maps = p.dst.load().Has(rbdimage.ObjectMap)
	return p
}

// mapStore is the object maps of an image, as the engine's.
type mapStore struct {
	io *rados.IOContext
	id string
}

func (m mapStore) of(snap uint64) *store.ObjectMap {
	if snap == imagesync.Head {
		snap = cls.NoSnap
	}
	return store.NewObjectMap(m.io, m.id, snap)
}

func (m mapStore) Load(_ context.Context, snap uint64) (*objectmap.Map, error) {
	return m.of(snap).Load()
}

func (m mapStore) Save(_ context.Context, snap uint64, o *objectmap.Map) error {
	return m.of(snap).Save(o)
}

func (m mapStore) Update(_ context.Context, snap, start, end uint64, s objectmap.State) error {
	return m.of(snap).Update(start, end, s, nil)
}

// job is what is known of a synchronisation before anything is made for it.
func (p *pair) job() imagesync.Job {
	p.t.Helper()
	from, to := p.src.load(), p.dst.load()
	job := imagesync.Job{
		Source: imagesync.Objects{IO: p.src.data, Prefix: from.Prefix}, Dest: imagesync.Objects{IO: p.dst.data, Prefix: to.Prefix},
		ObjectSize: from.ObjectSize(), Start: p.start, Stats: &imagesync.Stats{},
	}
	if s := from.Snapshot(p.start); s != nil {
		job.StartObjects = from.Objects(s.Size)
	}
	for _, s := range to.Snapshots {
		job.Existing = append(job.Existing, imagesync.Snapshot{ID: s.ID, Objects: to.Objects(s.Size)})
	}
	if p.maps {
		job.Maps = mapStore{p.dst.io, p.dst.id}
	}
	return job
}

// prepare makes what the copy's header needs for the next synchronisation.
func (p *pair) prepare() imagesync.Job {
	p.t.Helper()
	from, job := p.src.load(), p.job()
	maps := mapStore{p.dst.io, p.dst.id}
	for _, s := range from.Snapshots {
		if s.ID <= p.start {
			continue
		}
		// A source that shrank and grew again shows less of its parent.
		if now := p.dst.load(); s.ParentOverlap != nil && now.ParentOverlap != nil && *s.ParentOverlap < *now.ParentOverlap {
			must(p.t, p.dst.header.SetSize(*s.ParentOverlap))
		}
		must(p.t, p.dst.header.SetSize(s.Size))
		if p.maps {
			must(p.t, maps.of(imagesync.Head).Resize(from.Objects(s.Size), objectmap.NonExistent))
		}
		id, err := store.AddSnapshot(p.dst.header, p.dst.data, s.Name, cls.SnapshotNamespace{})
		must(p.t, err)
		if p.maps {
			must(p.t, maps.of(id).Resize(from.Objects(s.Size), objectmap.NonExistent))
		}
		p.ids[s.ID] = id
		job.Targets = append(job.Targets, imagesync.Target{Remote: s.ID, Local: id, Objects: from.Objects(s.Size)})
	}
	if p.useMaps {
		source := mapStore{p.src.io, p.src.id}
		job.SourceMaps = &imagesync.SourceMaps{Load: source.Load}
		for _, t := range job.Targets {
			job.SourceMaps.Snaps = append(job.SourceMaps.Snaps, t.Remote)
		}
	}
	return job
}

// sync makes the copy what the source was at its newest snapshot.
func (p *pair) sync() *imagesync.Stats {
	p.t.Helper()
	job := p.prepare()
	must(p.t, imagesync.Run(context.Background(), job))
	p.start = job.Targets[len(job.Targets)-1].Remote
	must(p.t, p.dst.header.Notify())
	return job.Stats
}

// flatten makes the copy lose its parent, as the source has.
func (p *pair) flatten() *imagesync.Stats {
	p.t.Helper()
	job := p.job()
	to := p.dst.load()
	var objects uint64
	for _, s := range to.Snapshots {
		if s.ParentOverlap != nil {
			objects = max(objects, to.Objects(*s.ParentOverlap))
		}
	}
	if to.ParentOverlap != nil {
		objects = max(objects, to.Objects(*to.ParentOverlap))
	}
	must(p.t, imagesync.Flatten(p.t.Context(), job, objects))
	p.t.Logf("%d objects of %d copied up", job.Stats.CopiedUp.Load(), objects)
	if to.ParentOverlap != nil {
		must(p.t, p.dst.header.DetachParent())
	}
	return job.Stats
}

// compare holds all snapshots and the head against the source's.
func (p *pair) compare() {
	p.t.Helper()
	from := p.src.load()
	check := func(want, got rbdimage.View) {
		p.t.Helper()
		diff, err := rbdimage.Compare(want, got)
		must(p.t, err)
		lacking, extra, err := rbdimage.AuditMap(got)
		must(p.t, err)
		for _, d := range slices.Concat(diff, lacking, extra) {
			p.t.Errorf("%v and %v: %s", want, got, d)
		}
	}
	for _, s := range from.Snapshots {
		if s.ID <= p.start {
			check(p.src.maker.At(s.ID), p.dst.maker.At(p.ids[s.ID]))
		}
	}
	check(p.src.maker.At(p.start), p.dst.maker.At(rbdimage.Head))
	if p.t.Failed() {
		p.t.FailNow()
	}
}

// scribble changes an image at random.
func scribble(t testing.TB, r *rand.Rand, m rbdimage.Maker, steps int) {
	t.Helper()
	m.Edit(func(img *rbd.Image) error {
		for range steps {
			size, err := img.GetSize()
			if err != nil {
				return err
			}
			at := r.Uint64N(size)
			n := min(r.Uint64N(64*kib)+1, size-at)
			if r.IntN(2) == 0 {
				at, n = at/4096*4096, (n+4095)/4096*4096
				n = min(n, size-at)
			}
			switch k := r.IntN(20); {
			case k < 10:
				_, err = img.WriteAt(rbdimage.Data(r.Uint64(), int(n)), int64(at))
			case k < 12:
				_, err = img.WriteAt(make([]byte, n), int64(at))
			case k < 15:
				_, err = img.Discard(at, n)
			case k < 17: // whole objects
				o := uint64(256 * kib)
				at = at / o * o
				_, err = img.Discard(at, min(o*(1+r.Uint64N(3)), size-at))
			case k < 18:
				_, err = img.WriteAt(rbdimage.Data(r.Uint64(), int(min(700*kib, size-at))), int64(at))
			case k < 19:
				err = img.Resize(r.Uint64N(8*mib) + 64*kib)
			default:
				_, err = img.Discard(at, size-at)
			}
			if err != nil {
				return fmt.Errorf("changing %d bytes at %d of %d: %w", n, at, size, err)
			}
		}
		return nil
	})
}

func seed(t testing.TB) *rand.Rand {
	s := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("CEPHMIRROR_SEED"), 10, 64); err == nil {
		s = v
	}
	t.Logf("CEPHMIRROR_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// rounds changes the source, synchronises, compares, again and again.
func (p *pair) rounds(r *rand.Rand, rounds int) {
	p.t.Helper()
	serial := len(p.ids)
	for round := range rounds {
		for n := r.IntN(3); n >= 0; n-- {
			scribble(p.t, r, p.src.maker, r.IntN(12))
			serial++
			p.src.maker.Snap(fmt.Sprintf("s%d", serial))
		}
		// Something that does not belong to it any more.
		scribble(p.t, r, p.src.maker, r.IntN(4))
		p.useMaps = p.maps && r.IntN(2) == 0
		job := p.prepare()
		job.Concurrency = 1 + r.IntN(20)
		job.SaveEvery = time.Millisecond
		var saved uint64
		job.SaveProgress = func(_ context.Context, k uint64) error {
			saved = k
			return nil
		}
		for interrupted := 0; ; interrupted++ {
			ctx, cancel := context.WithCancel(p.t.Context())
			if interrupted < 2 && r.IntN(2) == 0 {
				time.AfterFunc(time.Duration(r.IntN(20_000))*time.Microsecond, cancel)
			}
			job.Resume = saved
			err := imagesync.Run(ctx, job)
			cancel()
			if err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) {
				p.t.Fatalf("round %d: %v", round, err)
			}
		}
		p.start = job.Targets[len(job.Targets)-1].Remote
		must(p.t, p.dst.header.Notify())
		p.compare()
		snaps := p.src.load().Snapshots
		for _, s := range snaps[:len(snaps)-1] {
			if r.IntN(2) == 0 {
				continue
			}
			p.src.maker.RemoveSnap(s.Name)
			must(p.t, store.RemoveSnapshot(p.dst.header, p.dst.data, p.dst.load(), p.ids[s.ID], false))
		}
	}
}

func TestRandom(t *testing.T) {
	a, b := newSides(t)
	for name, o := range map[string]rbdimage.Options{
		"maps":    {Size: 6 * mib, Order: 18, Features: rbdimage.Everything},
		"no maps": {Size: 6 * mib, Order: 18, Features: rbdimage.Plain},
		"stripes": {Size: 6 * mib, Order: 18, Features: rbdimage.Everything | rbdimage.Striping, StripeUnit: 64 * kib, StripeCount: 3},
		"data":    {Size: 6 * mib, Order: 18, Features: rbdimage.Everything, DataPool: rbdsite.DataPool},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, a, b, o)
			p.rounds(seed(t), rbdsite.Often(3, 8))
		})
	}
}

func TestClone(t *testing.T) {
	rbdsite.Long(t)
	a, b := newSides(t)
	for name, features := range map[string]uint64{"maps": rbdimage.Everything, "no maps": rbdimage.Plain} {
		t.Run(name, func(t *testing.T) {
			r := seed(t)
			o := rbdimage.Options{Size: 5*mib + 100*kib, Order: 18, Features: features}
			parents := newPair(t, a, b, o)
			o.Size, o.CloneVersion = 0, 2
			parents.src.maker.Fill(r.Uint64(), 0, 3*mib)
			scribble(t, r, parents.src.maker, 10)
			parents.src.maker.Snap("base")
			parents.sync()
			clone := fmt.Sprintf("clone%d", rand.Uint32())
			src := parents.src.maker.Clone("base", a.admin.Pool("rbd"), clone, o)
			dst := parents.dst.maker.Clone("base", b.admin.Pool("rbd"), clone, o)
			p := pairOf(t, a, b, src, dst)
			p.rounds(r, 5)

			p.src.maker.Snap("before")
			p.sync()
			p.src.maker.Flatten()
			scribble(t, r, p.src.maker, 3)
			p.src.maker.Snap("flat")
			p.flatten()
			p.compare()
			p.sync()
			p.compare()
			p.rounds(r, 2)
		})
	}
}

// TestVolume proves that no more is written than has changed.
func TestVolume(t *testing.T) {
	a, b := newSides(t)
	p := newPair(t, a, b, rbdimage.Options{Size: 64 * mib, Features: rbdimage.Everything})
	p.src.maker.Fill(1, 0, 32*mib)
	p.src.maker.Snap("s1")
	if got := p.sync().Written.Load(); got != 32*mib {
		t.Errorf("first: %d bytes written", got)
	}
	p.compare()
	r := rand.New(rand.NewPCG(1, 1))
	blocks := make(map[int64]bool)
	p.src.maker.Edit(func(img *rbd.Image) error {
		for len(blocks) < 512 {
			at := r.Int64N(32*mib/4096) * 4096
			blocks[at] = true
			if _, err := img.WriteAt(rbdimage.Data(r.Uint64(), 4096), at); err != nil {
				return err
			}
		}
		return nil
	})
	p.src.maker.Snap("s2")
	s := p.sync()
	if got := s.Written.Load(); got != 512*4096 {
		t.Errorf("%d bytes written", got)
	}
	t.Logf("512 blocks: %d read, %d reads, %d writes", s.Read.Load(), s.ReadOps.Load(), s.WriteOps.Load())
	p.compare()
	p.src.maker.Discard(4*mib, 8*mib)
	p.src.maker.Snap("s3")
	s = p.sync()
	if s.Written.Load() != 0 || s.Removed.Load() != 2 {
		t.Errorf("after a discard: %d bytes written, %d objects removed", s.Written.Load(), s.Removed.Load())
	}
	p.compare()
	p.src.maker.Snap("s4")
	s = p.sync()
	if s.WriteOps.Load() != 0 {
		t.Errorf("without a change: %d writes", s.WriteOps.Load())
	}
	p.compare()
}

// TestFullCompare repairs what a copy that is not one lacks.
func TestFullCompare(t *testing.T) {
	a, b := newSides(t)
	for name, features := range map[string]uint64{"maps": rbdimage.Everything, "no maps": rbdimage.Plain} {
		t.Run(name, func(t *testing.T) {
			r := seed(t)
			p := newPair(t, a, b, rbdimage.Options{Size: 6 * mib, Order: 18, Features: features})
			p.src.maker.Fill(7, 0, 5*mib)
			p.dst.maker.Fill(7, 0, 5*mib)
			p.src.maker.Snap("s1")
			job := p.prepare()
			job.FullCompare = true
			must(t, imagesync.Run(t.Context(), job))
			p.start = job.Targets[0].Remote
			if n := job.Stats.WriteOps.Load(); n != 0 {
				t.Errorf("%d writes to equal images", n)
			}
			p.compare()
			for i := range rbdsite.Often(2, 4) {
				scribble(t, r, p.src.maker, 6)
				scribble(t, r, p.dst.maker, 6)
				p.src.maker.Snap(fmt.Sprintf("x%d", i))
				scribble(t, r, p.src.maker, 6)
				p.src.maker.Snap(fmt.Sprintf("y%d", i))
				job := p.prepare()
				job.FullCompare = true
				// What the copy has beyond the source's end.
				job.StartObjects = 64
				must(t, imagesync.Run(t.Context(), job))
				for _, s := range p.src.load().Snapshots {
					if s.ID <= p.start {
						p.src.maker.RemoveSnap(s.Name)
						must(p.t, store.RemoveSnapshot(p.dst.header, p.dst.data, p.dst.load(), p.ids[s.ID], false))
					}
				}
				p.start = job.Targets[1].Remote
				p.compare()
				t.Logf("%d objects repaired, %d bytes written", job.Stats.Repaired.Load(), job.Stats.Written.Load())
			}
		})
	}
}

type lease bool

func (l lease) Valid() bool { return bool(l) }

func TestNothingIsWrittenWithoutLease(t *testing.T) {
	a, b := newSides(t)
	p := newPair(t, a, b, rbdimage.Options{Size: 6 * mib, Order: 18, Features: rbdimage.Everything})
	p.src.maker.Fill(7, 0, 5*mib)
	p.src.maker.Snap("s1")
	job := p.prepare()
	job.Lease = lease(false)
	if err := imagesync.Run(t.Context(), job); !errors.Is(err, imagesync.ErrLease) {
		t.Errorf("%v", err)
	}
	if n := job.Stats.WriteOps.Load() + job.Stats.MapWrites.Load(); n != 0 {
		t.Errorf("%d writes", n)
	}
}

// TestCopyUp is about what librbd puts below snapshots that were synchronised
// before.
func TestCopyUp(t *testing.T) {
	a, b := newSides(t)
	for name, features := range map[string]uint64{"maps": rbdimage.Everything, "no maps": rbdimage.Plain} {
		t.Run(name, func(t *testing.T) {
			o := rbdimage.Options{Size: 4 * mib, Order: 18, Features: features}
			parents := newPair(t, a, b, o)
			parents.src.maker.Fill(3, 0, 4*mib)
			parents.src.maker.Snap("base")
			parents.sync()
			o.Size, o.CloneVersion = 0, 2
			clone := fmt.Sprintf("clone%d", rand.Uint32())
			src := parents.src.maker.Clone("base", a.admin.Pool("rbd"), clone, o)
			dst := parents.dst.maker.Clone("base", b.admin.Pool("rbd"), clone, o)
			p := pairOf(t, a, b, src, dst)
			p.src.maker.Snap("s1")
			p.sync()
			p.src.maker.Write(100, rbdimage.Data(1, 300))
			p.src.maker.Discard(512*kib+8*kib, 4*kib)
			p.src.maker.Discard(1024*kib, 256*kib)
			p.src.maker.Snap("s2")
			p.src.maker.Write(2*mib+100, rbdimage.Data(2, 300))
			p.src.maker.Snap("s3")
			if n := p.sync().CopiedUp.Load(); n != 4 {
				t.Errorf("%d objects copied up", n)
			}
			p.compare()
			p.src.maker.Flatten()
			p.src.maker.Snap("s4")
			if n := p.flatten().CopiedUp.Load(); n != 12 {
				t.Errorf("%d objects copied up by flattening", n)
			}
			p.compare()
			p.sync()
			p.compare()
		})
	}
}

// TestFrozen is about clusters that do not answer.
func TestFrozen(t *testing.T) {
	rbdsite.Long(t)
	a, b := newSides(t)
	p := newPair(t, a, b, rbdimage.Options{Size: 64 * mib, Order: 20, Features: rbdimage.Everything})
	p.src.maker.Fill(3, 0, 64*mib)
	p.src.maker.Snap("s1")
	job := p.prepare()
	osd := func(s side, sig syscall.Signal) {
		t.Helper()
		must(t, s.Cluster.Daemon("osd.0").Signal(sig))
	}
	frozen := func(s side, limit time.Duration) error {
		t.Helper()
		osd(s, syscall.SIGSTOP)
		defer osd(s, syscall.SIGCONT)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- imagesync.Run(ctx, job) }()
		select {
		case err := <-done:
			t.Errorf("it came back without an answer: %v", err)
			return err
		case <-time.After(time.Second):
		}
		deadline := time.Now().Add(time.Minute)
		for job.Stats.Total.Load() == 0 || s.Cluster == b.Cluster && job.Stats.WriteOps.Load() == 0 {
			if time.Now().After(deadline) {
				t.Fatal("it does not get to the point")
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		began := time.Now()
		err := <-done
		if took := time.Since(began); took > limit {
			t.Errorf("it came back after %v", took)
		}
		return err
	}
	if err := frozen(a, time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("frozen source: %v", err)
	}
	writes := job.Stats.WriteOps.Load()
	if writes > 0 {
		t.Errorf("%d writes", writes)
	}
	job.Maps = nil // whose calls have a limit of their own
	if err := frozen(b, 15*time.Second); !errors.Is(err, imagesync.ErrUncertain) {
		t.Errorf("frozen destination: %v", err)
	}
	job.Maps = mapStore{p.dst.io, p.dst.id}
	must(t, imagesync.Run(t.Context(), job))
	p.start = job.Targets[0].Remote
	p.compare()
}
