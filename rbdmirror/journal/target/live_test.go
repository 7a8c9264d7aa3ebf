//go:build cgo

package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

const mib = 1 << 20

// site is a cluster, and how its administrator sees its pool.
func site(t *testing.T) (*rbdsite.Site, rbdimage.Pool) {
	t.Helper()
	s := rbdsite.StartEmpty(t, "a")
	admin, err := rbdimage.Open("a", s.Cluster.Conf())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	return s, admin.Pool(rbdsite.Pool)
}

func source(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// TestAncestors reads what clones show of their parents, as librbd does.
func TestAncestors(t *testing.T) {
	s, pool := site(t)
	first := rbdimage.Create(t, pool, "first", rbdimage.Options{
		Size: 20 * mib, Order: 19, StripeUnit: 32 << 10, StripeCount: 3, DataPool: rbdsite.DataPool, Features: rbdimage.Everything,
	})
	first.Fill(1, 0, 7*mib)
	first.Fill(2, 9*mib+1000, 6*mib)
	first.Snap("base")
	first.Protect("base")
	first.Fill(3, 0, 20*mib)
	second := first.Clone("base", pool, "second", rbdimage.Options{Order: 20, Features: rbdimage.Everything})
	second.Fill(4, 2*mib+100, mib)
	second.Discard(5*mib, mib)
	second.Resize(13*mib + 777) // less of the parent shows from now on
	second.Resize(18 * mib)
	second.Fill(5, 17*mib, mib/2)
	second.Snap("base")
	second.Protect("base")
	second.Fill(6, 0, 18*mib)
	third := second.Clone("base", pool, "third", rbdimage.Options{Order: 18, StripeUnit: 16 << 10, StripeCount: 5, Features: rbdimage.Plain})
	io := s.IO(rbdsite.Pool, "")
	r := source(t)
	for _, c := range []struct{ child, parent rbdimage.Maker }{{second, first}, {third, second}} {
		img, err := store.NewHeader(io, c.child.ID()).Load()
		if err != nil {
			t.Fatal(err)
		}
		a, err := openAncestor(s.Conn, img.Parent, 0)
		if err != nil {
			t.Fatal(err)
		}
		size := int64(a.size)
		want := make([]byte, size)
		c.parent.Look(func(img *rbd.Image) error {
			if err := img.SetSnapshot("base"); err != nil {
				return err
			}
			_, err := img.ReadAt(want, 0)
			return err
		})
		for range 50 {
			var spans []span
			for range 1 + r.IntN(5) {
				spans = append(spans, span{uint64(r.Int64N(size + mib)), make([]byte, 1+r.IntN(2*mib))})
			}
			if err := a.read(t.Context(), spans); err != nil {
				t.Fatal(err)
			}
			for _, sp := range spans {
				expect := make([]byte, len(sp.into))
				if sp.at < a.size {
					copy(expect, want[sp.at:])
				}
				if !bytes.Equal(sp.into, expect) {
					t.Fatalf("%s: %d bytes at %d differ", c.parent.Name(), len(sp.into), sp.at)
				}
			}
		}
		a.close()
	}
	if _, err := openAncestor(s.Conn, cls.ParentSpec{PoolID: io.GetPoolID(), ImageID: first.ID(), SnapID: 12345}, 0); err == nil {
		t.Error("a snapshot that is not there can be opened")
	}
}

// TestRebuild has object maps rebuilt while an image is written to, and the stock
// tool check them.
func TestRebuild(t *testing.T) {
	s, pool := site(t)
	for name, o := range map[string]rbdimage.Options{
		"mapped":    {Size: 24 * mib, Order: 19, Features: rbdimage.Everything},
		"striped":   {Size: 24 * mib, Order: 19, StripeUnit: 64 << 10, StripeCount: 3, Features: rbdimage.Everything, DataPool: rbdsite.DataPool},
		"not fast":  {Size: 24 * mib, Order: 19, Features: rbdimage.Plain | rbdimage.ObjectMap},
		"of parent": {Features: rbdimage.Everything, CloneVersion: 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := source(t)
			var m rbdimage.Maker
			if name == "of parent" {
				p := rbdimage.Create(t, pool, "parent", rbdimage.Options{Size: 24 * mib, Order: 19, Features: rbdimage.Plain})
				p.Fill(1, 0, 15*mib)
				p.Snap("base")
				p.Protect("base")
				m = p.Clone("base", pool, name, o)
			} else {
				m = rbdimage.Create(t, pool, name, o)
			}
			for i := range 60 {
				at := r.Uint64N(23 * mib)
				switch r.IntN(8) {
				case 0:
					m.Snap(fmt.Sprint("snap", i))
				case 1:
					m.Discard(at, 1+r.Uint64N(24*mib-at))
				case 2:
					if snaps := m.Snaps(); len(snaps) > 3 {
						m.RemoveSnap(snaps[r.IntN(len(snaps))].Name)
					}
				case 3:
					m.Resize(20*mib + r.Uint64N(10*mib))
					m.Resize(24 * mib)
				default:
					m.Fill(uint64(i), at, 1+r.Uint64N(mib))
				}
			}
			rebuilt(t, s, m, r)
		})
	}
}

// opened opens an image as a holder of its lock does, until release is called.
func opened(t *testing.T, s *rbdsite.Site, m rbdimage.Maker, lease interface{ Valid() bool }) (tg *Target, release func()) {
	t.Helper()
	io := s.IO(rbdsite.Pool, "")
	const cookie = "auto 1"
	// As a holder of the lock has to, it watches the header.
	watch, err := ceph.NewWatch(io, store.HeaderObject(m.ID()), 0)
	if err != nil {
		t.Fatal(err)
	}
	lock := store.NewLock(io, store.HeaderObject(m.ID()))
	if err := lock.Acquire(cookie); err != nil {
		t.Fatal(err)
	}
	tg, err = Open(Config{Log: zerolog.Nop(), Lease: lease, Conn: s.Conn, IO: io, Image: m.ID(), Cookie: cookie, Concurrency: 8})
	if err != nil {
		t.Fatal(err)
	}
	return tg, func() {
		t.Helper()
		tg.Close()
		if err := lock.Release(cookie); err != nil {
			t.Fatal(err)
		}
		if err := watch.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// fewTimes is a lease that is asked for some times only before it lapses.
type fewTimes struct{ left atomic.Int64 }

func (l *fewTimes) Valid() bool { return l.left.Add(-1) >= 0 }

// TestInTurn carries out lists of writes one after the other, and has the lease
// lapse meanwhile: what is there then are the first ones, as many as it says.
func TestInTurn(t *testing.T) {
	s, pool := site(t)
	const size = 8 * mib
	for name, o := range map[string]rbdimage.Options{
		"mapped": {Size: size, Order: 19, Features: rbdimage.Everything},
		"plain":  {Size: size, Order: 19, Features: rbdimage.Plain},
		"clone":  {Order: 19, Features: rbdimage.Everything, CloneVersion: 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := source(t)
			var m rbdimage.Maker
			if name == "clone" {
				p := rbdimage.Create(t, pool, "parent in turn", rbdimage.Options{Size: size, Order: 19, Features: rbdimage.Plain})
				p.Fill(1, 0, 5*mib)
				p.Snap("base")
				p.Protect("base")
				m = p.Clone("base", pool, name+" in turn", o)
			} else {
				m = rbdimage.Create(t, pool, name+" in turn", o)
			}
			m.Fill(2, mib, 4*mib)
			m.Snap("s")
			m.Fill(3, mib, mib)
			read := func() []byte {
				b := make([]byte, size)
				m.Look(func(img *rbd.Image) error {
					_, err := img.ReadAt(b, 0)
					return err
				})
				return b
			}
			want := read()
			lists := func(tg *Target, n int, plain bool) (out [][]*merge.Object, states func(k int)) {
				var events []format.Event
				for range n {
					at := r.Uint64N(size - 9000)
					if plain {
						at &^= 4095 // in one object
					}
					var e format.Event = format.Write{Offset: at, Length: 4096, Data: rbdimage.Data(r.Uint64(), 4096)}
					switch k := r.IntN(40); {
					case k == 0 && !plain:
						e = format.Discard{Offset: at, Length: 9000}
					case k == 1:
						e = format.Flush{}
					}
					b := merge.NewBuilder(tg.layout, size)
					if _, ok := e.(format.Flush); !ok {
						b.Add(e)
					}
					events, out = append(events, e), append(out, b.Objects())
				}
				return out, func(k int) {
					for _, e := range events[:k] {
						switch e := e.(type) {
						case format.Write:
							copy(want[e.Offset:], e.Data)
						case format.Discard:
							clear(want[e.Offset : e.Offset+e.Length])
						}
					}
				}
			}
			lease := &fewTimes{}
			tg, release := opened(t, s, m, lease)
			lease.left.Store(1 << 40)
			all, done := lists(tg, 300, false)
			if n, err := tg.WriteInTurn(t.Context(), all); n != len(all) || err != nil {
				t.Fatalf("%d of %d: %v", n, len(all), err)
			}
			done(len(all))
			if name == "clone" {
				// What the object map has is not there: the parent shows.
				if err := s.IO(rbdsite.Pool, "").Delete(store.DataObject(tg.img.Prefix, 3)); err != nil {
					t.Fatal(err)
				}
				want = read()
			}
			// By now most objects need nothing but the write.
			// They go out in one go, in which the lease has to be noticed.
			all, done = lists(tg, 4000, true)
			lease.left.Store(8)
			n, err := tg.WriteInTurn(t.Context(), all)
			if n == 0 || n == len(all) || !errors.Is(err, ErrLease) {
				t.Errorf("the lease lapsed: %d of %d were carried out, %v", n, len(all), err)
			}
			done(n)
			release()
			t.Logf("%d were carried out until the lease lapsed", n)
			if got := read(); !bytes.Equal(got, want) {
				t.Error("the image differs from what was carried out")
			}
			lacking, extra, err := rbdimage.AuditMap(rbdimage.View{Pool: pool, Image: m.Name(), Snap: rbdimage.Head})
			if err != nil || len(lacking)+len(extra) > 0 && o.Features == rbdimage.Everything {
				t.Errorf("object map: %v, %v, %v", lacking, extra, err)
			}
		})
	}
}

// rebuilt makes the object maps of an image useless, and has them rebuilt.
func rebuilt(t *testing.T, s *rbdsite.Site, m rbdimage.Maker, r *rand.Rand) {
	tg, release := opened(t, s, m, nil)
	ids := []uint64{cls.NoSnap}
	sizes := []uint64{tg.img.Size}
	for i, snap := range tg.img.Snapshots {
		if i%3 < 2 {
			ids, sizes = append(ids, snap.ID), append(sizes, snap.Size)
		}
	}
	for i, id := range ids {
		if err := tg.objectMap(id).Save(objectmap.New(tg.img.Objects(sizes[i]))); err != nil {
			t.Fatal(err)
		}
		if err := tg.header.SetFlags(id, mapInvalid, mapInvalid); err != nil {
			t.Fatal(err)
		}
	}
	if err := tg.Reload(); err != nil {
		t.Fatal(err)
	}
	writes := 0
	for more := true; more; {
		if !tg.Damaged() {
			t.Fatal("it is not damaged")
		}
		var err error
		if more, err = tg.Rebuild(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		if !more || writes == 40 {
			continue
		}
		writes++
		b := merge.NewBuilder(tg.layout, tg.img.Size)
		at := r.Uint64N(tg.img.Size)
		if r.IntN(3) == 0 {
			b.Add(format.Discard{Offset: at, Length: 2 * mib})
		} else {
			b.Add(format.Write{Offset: at, Length: 5000, Data: rbdimage.Data(1, 5000)})
		}
		if err := tg.Write(context.Background(), b.Objects()); err != nil {
			t.Fatal(err)
		}
	}
	if tg.Damaged() {
		t.Error("it is damaged")
	}
	release()
	// Of the others librbd itself may have made what its check finds wrong.
	specs := []string{m.Spec()}
	for _, snap := range m.Snaps() {
		if slices.Contains(ids, snap.ID) {
			specs = append(specs, m.Spec()+"@"+snap.Name)
		}
	}
	for _, spec := range specs {
		if out, err := s.Try("rbd", "object-map", "check", "--no-progress", spec); err != nil || strings.Contains(out, "object map error") {
			t.Errorf("the map of %s: %v, %s", spec, err, out)
		}
	}
	img, err := store.NewHeader(s.IO(rbdsite.Pool, ""), m.ID()).Load()
	if err != nil {
		t.Fatal(err)
	}
	if img.Flags != 0 || slices.ContainsFunc(img.Snapshots, func(s cls.Snapshot) bool { return s.Flags != 0 && slices.Contains(ids, s.ID) }) {
		t.Errorf("what the check left: flags %#x, %+v", img.Flags, img.Snapshots)
	}
}
