//go:build cgo

package deletion_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/deletion"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdsite"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !ceph.Is(err, want) {
		t.Errorf("%v instead of %v", err, want)
	}
}

// copied is a complete copy of some image, as a daemon leaves it.
type copied struct {
	*rbdsite.Site
	name, spec, id, gid string
	io, data            *rados.IOContext
	h                   *store.Header
}

func (c *copied) image() deletion.Image {
	return deletion.Image{Conn: c.Conn, IO: c.io, ID: c.id, Log: zerolog.Nop()}
}

// makeCopy makes an image with everything that an image can have.
func makeCopy(t *testing.T, s *rbdsite.Site, namespace, name string, args ...string) *copied {
	t.Helper()
	c := &copied{Site: s, name: name, spec: rbdsite.Pool + "/" + name, io: s.IO(rbdsite.Pool, namespace)}
	if namespace != "" {
		c.spec = rbdsite.Pool + "/" + namespace + "/" + name
	}
	s.Run(append([]string{"rbd", "create", "--size", "24M", c.spec}, args...)...)
	c.id = value(store.NewDirectory(c.io).ID(name))(t)
	c.gid = "gid-of-" + c.id
	for i := range 3 {
		s.Run("rbd", "bench", "--io-type", "write", "--io-size", "65536", "--io-total", "3M", "--io-pattern", "rand", c.spec)
		s.Run("rbd", "snap", "create", "--no-progress", fmt.Sprint(c.spec, "@user", i))
	}
	s.Run("rbd", "snap", "protect", c.spec+"@user1")
	c.adopt(t)
	return c
}

// adopt makes an image of rbd's a copy.
func (c *copied) adopt(t *testing.T) {
	t.Helper()
	c.h = store.NewHeader(c.io, c.id)
	img := value(c.h.Load())(t)
	c.data = value(store.DataContext(c.Conn, c.io, img.DataPool))(t)
	t.Cleanup(c.data.Destroy)
	must(t, c.h.SetFeatures(cls.FeatureNonPrimary, cls.FeatureNonPrimary))
	snap := value(store.AddSnapshot(c.h, c.data, ".mirror.non_primary."+c.gid+".x", cls.Mirror(cls.MirrorNamespace{
		State: cls.MirrorNonPrimary, Complete: true, PrimaryUUID: "far", PrimarySnapID: 5, SnapSeqs: map[uint64]uint64{5: cls.NoSnap}})))(t)
	if img.Has(cls.FeatureObjectMap) {
		must(t, store.NewObjectMap(c.io, c.id, snap).Save(value(store.NewObjectMap(c.io, c.id, cls.NoSnap).Load())(t)))
	}
	must(t, store.NewImageStates(c.io).Write(c.id, snap, cls.ImageState{Name: c.name, Metadata: map[string][]byte{"big": make([]byte, 5<<20)}}))
	must(t, store.NewMirroring(c.io).SetImage(c.id, cls.MirrorImage{GlobalID: c.gid, State: cls.RecordEnabled, Mode: cls.ImageModeSnapshot}))
}

// left returns all that is left of the image.
func (c *copied) left(t *testing.T) (out []string) {
	t.Helper()
	ns := value(c.io.GetNamespace())(t)
	for _, pool := range []string{rbdsite.Pool, rbdsite.DataPool} {
		for _, oid := range c.Objects(pool, ns) {
			if !strings.Contains(oid, c.id) && oid != "rbd_id."+c.name {
				continue
			}
			// What is gone is listed until the cluster has removed its snapshots.
			if _, err := c.IO(pool, ns).Stat(oid); !ceph.Is(err, syscall.ENOENT) {
				out = append(out, oid)
			}
		}
	}
	for _, oid := range []string{store.DirectoryObject, store.TrashObject, store.MirroringObject, "rbd_children"} {
		omap, err := c.io.GetAllOmapValues(oid, "", "", 1000)
		if err != nil && !ceph.Is(err, syscall.ENOENT) {
			t.Fatal(err)
		}
		for k, v := range omap {
			if strings.Contains(k, c.id) || strings.Contains(string(v), c.id) {
				out = append(out, oid+"/"+k)
			}
		}
	}
	return out
}

func (c *copied) wantGone(t *testing.T) {
	t.Helper()
	if left := c.left(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

var variants = map[string]struct {
	namespace string
	args      []string
}{
	"plain":     {"", nil},
	"bare":      {"", []string{"--image-feature", "layering"}},
	"data":      {"", []string{"--data-pool", rbdsite.DataPool}},
	"striped":   {"", []string{"--stripe-unit", "65536", "--stripe-count", "3", "--object-size", "1M"}},
	"journal":   {"", []string{"--image-feature", "layering,exclusive-lock,object-map,journaling"}},
	"namespace": {rbdsite.Namespace, []string{"--data-pool", rbdsite.DataPool}},
}

func TestLive(t *testing.T) {
	s := rbdsite.StartEmpty(t, "a")
	s.Run("rbd", "mirror", "pool", "enable", rbdsite.Pool, "image")
	s.Run("rbd", "mirror", "pool", "enable", rbdsite.Pool+"/"+rbdsite.Namespace, "image")
	t.Run("move and purge", func(t *testing.T) { testMove(t, s) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, s) })
	t.Run("partial", func(t *testing.T) { testPartial(t, s) })
	t.Run("in use", func(t *testing.T) { testInUse(t, s) })
	t.Run("clones", func(t *testing.T) { testClones(t, s) })
	t.Run("deleter", func(t *testing.T) { testDeleter(t, s) })
}

func testMove(t *testing.T, s *rbdsite.Site) {
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			c := makeCopy(t, s, v.namespace, "img", v.args...)
			must(t, deletion.Move(t.Context(), c.image(), deletion.MoveOptions{Delay: time.Hour}))
			must(t, deletion.Move(t.Context(), c.image(), deletion.MoveOptions{}))
			where := strings.TrimSuffix(c.spec, "/img")
			if out := s.Run("rbd", "trash", "ls", "--all", "-l", where); !strings.Contains(out, "MIRRORING") || !strings.Contains(out, "protected until") || !strings.Contains(out, c.id) {
				t.Errorf("rbd trash ls: %s", out)
			}
			if out := s.Run("rbd", "ls", where); strings.Contains(out, "img") {
				t.Errorf("rbd ls: %s", out)
			}
			_, err := store.NewMirroring(c.io).ImageID(c.gid)
			wantErrno(t, err, syscall.ENOENT)
			// name and global id are free
			again := &copied{Site: s, name: "img", spec: c.spec, io: c.io}
			s.Run("rbd", "create", "--size", "4M", c.spec)
			again.id, again.gid = value(store.NewDirectory(c.io).ID("img"))(t), c.gid
			again.adopt(t)
			must(t, deletion.Purge(t.Context(), c.image()))
			must(t, deletion.Purge(t.Context(), c.image()))
			must(t, deletion.Purge(t.Context(), again.image()))
			c.wantGone(t)
			again.wantGone(t)
		})
	}
}

// shortLease is a lease that runs out after a number of questions.
func shortLease(questions int64) *plugins.Lease {
	var asked atomic.Int64
	l := plugins.NewLease(func() time.Duration {
		if asked.Add(1) > questions+1 { // Renew asks, too
			return 2 * time.Hour
		}
		return 0
	})
	l.Renew(time.Hour)
	return l
}

// testInterrupted stops at every place where it looks whether it may go on.
func testInterrupted(t *testing.T, s *rbdsite.Site) {
	c := makeCopy(t, s, "", "img", "--data-pool", rbdsite.DataPool)
	// as if a resize to something smaller broke off
	must(t, c.data.Write(store.DataObject(value(c.h.Load())(t).Prefix, 9), []byte("x"), 0))
	try := func(what string, f func(deletion.Image) error) {
		t.Helper()
		for n := int64(0); ; n++ {
			i := c.image()
			i.Lease = shortLease(n)
			err := f(i)
			if err == nil {
				t.Logf("%s: %d places", what, n)
				return
			}
			if !errors.Is(err, deletion.ErrLease) {
				t.Fatalf("%s, %d: %v", what, n, err)
			}
		}
	}
	try("move", func(i deletion.Image) error {
		return deletion.Move(t.Context(), i, deletion.MoveOptions{})
	})
	try("purge", func(i deletion.Image) error { return deletion.Purge(t.Context(), i) })
	c.wantGone(t)
}

// testPartial purges what is there of an image after each step of its creation.
func testPartial(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	dir, records := store.NewDirectory(io), store.NewMirroring(io)
	for last := range 8 {
		id := store.NewImageID(s.Conn.GetInstanceID())
		c := &copied{Site: s, name: "partial", id: id, gid: "gid-" + id, io: io, h: store.NewHeader(io, id)}
		for _, step := range []func() error{
			func() error {
				return records.SetImage(id, cls.MirrorImage{GlobalID: c.gid, State: cls.RecordCreating, Mode: cls.ImageModeSnapshot})
			},
			func() error { return dir.Add(c.name, id) },
			func() error { return dir.CreateID(c.name, id) },
			func() error {
				return c.h.Create(store.CreateOptions{Size: 9 << 20, Order: 22, Prefix: store.DataPrefix(id, 0, -1), DataPool: -1,
					Features: cls.FeatureLayering | cls.FeatureExclusiveLock | cls.FeatureObjectMap | cls.FeatureFastDiff | cls.FeatureNonPrimary})
			},
			func() error { return store.NewObjectMap(io, id, cls.NoSnap).Resize(3, objectmap.NonExistent) },
			func() error { _, err := store.AddSnapshot(c.h, io, "user", cls.User); return err },
			func() error {
				_, err := store.AddSnapshot(c.h, io, ".mirror.non_primary.x", cls.Mirror(cls.MirrorNamespace{
					State: cls.MirrorNonPrimary, PrimaryUUID: "far", PrimarySnapID: 5}))
				return err
			},
			func() error {
				if err := store.NewObjectMap(io, id, cls.NoSnap).Update(2, 3, objectmap.Exists, nil); err != nil {
					return err
				}
				return io.Write(store.DataObject(store.DataPrefix(id, 0, -1), 2), []byte("x"), 0)
			},
		}[:last+1] {
			must(t, step())
		}
		must(t, deletion.Purge(t.Context(), c.image()))
		c.wantGone(t)
	}
}

func testInUse(t *testing.T, s *rbdsite.Site) {
	c := makeCopy(t, s, "", "img")
	move := func(i deletion.Image) error {
		return deletion.Move(t.Context(), i, deletion.MoveOptions{})
	}
	// what must not be removed
	must(t, c.h.SetFeatures(0, cls.FeatureNonPrimary))
	for _, f := range []func() error{func() error { return move(c.image()) }, func() error { return deletion.Purge(t.Context(), c.image()) }} {
		if err := f(); !errors.Is(err, deletion.ErrPrimary) {
			t.Errorf("%v", err)
		}
	}
	must(t, c.h.SetFeatures(cls.FeatureNonPrimary, cls.FeatureNonPrimary))
	no := errors.New("not this one")
	if err := deletion.Move(t.Context(), c.image(), deletion.MoveOptions{Allowed: func(*store.Image) error { return no }}); !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
	if r := value(store.NewMirroring(c.io).Image(c.id))(t); r.State != cls.RecordEnabled {
		t.Errorf("%+v", r)
	}
	// held by somebody alive, then dead
	other := s.Dial()
	otherIO := s.On(other, rbdsite.Pool, "")
	watch, stop := s.Watch(otherIO, store.HeaderObject(c.id))
	lock := store.NewLock(otherIO, store.HeaderObject(c.id))
	must(t, lock.Acquire(cls.AutoCookie(watch)))
	wantErrno(t, move(c.image()), syscall.EBUSY)
	stop()
	must(t, move(c.image()))
	wantErrno(t, lock.Acquire("auto 1"), syscall.ESHUTDOWN)
	// open elsewhere
	third := s.Dial()
	_, stop = s.Watch(s.On(third, rbdsite.Pool, ""), store.HeaderObject(c.id))
	wantErrno(t, deletion.Purge(t.Context(), c.image()), syscall.EBUSY)
	stop()
	// the caller has the lock
	watch, stop = s.Watch(c.io, store.HeaderObject(c.id))
	own := store.NewLock(c.io, store.HeaderObject(c.id))
	must(t, own.Acquire(cls.AutoCookie(watch)))
	wantErrno(t, deletion.Purge(t.Context(), c.image()), syscall.EBUSY)
	i := c.image()
	i.Cookie = cls.AutoCookie(watch)
	must(t, deletion.Purge(t.Context(), i))
	stop()
	c.wantGone(t)

	// An earlier attempt of this very client left its lock.
	c = makeCopy(t, s, "", "img")
	watch, stop = s.Watch(c.io, store.HeaderObject(c.id))
	own = store.NewLock(c.io, store.HeaderObject(c.id))
	must(t, own.Acquire(cls.AutoCookie(watch)))
	stop()
	must(t, deletion.Purge(t.Context(), c.image()))
	c.wantGone(t)

	// what users moved to the trash is theirs
	c = makeCopy(t, s, "", "img")
	must(t, c.h.SetFeatures(0, cls.FeatureNonPrimary))
	must(t, store.NewMirroring(c.io).RemoveImage(c.id))
	s.Run("rbd", "trash", "mv", "img")
	must(t, c.h.SetFeatures(cls.FeatureNonPrimary, cls.FeatureNonPrimary))
	wantErrno(t, deletion.Purge(t.Context(), c.image()), syscall.EPERM)
	must(t, store.NewTrash(c.io).Remove(c.id))
	must(t, deletion.Purge(t.Context(), c.image()))
	c.wantGone(t)
}

func testClones(t *testing.T, s *rbdsite.Site) {
	for format := 1; format <= 2; format++ {
		t.Run(fmt.Sprint("format ", format), func(t *testing.T) {
			p := makeCopy(t, s, "", "parent")
			must(t, p.h.SetFeatures(0, cls.FeatureNonPrimary))
			s.Run("rbd", "clone", "--rbd-default-clone-format", fmt.Sprint(format), "parent@user1", "child")
			must(t, p.h.SetFeatures(cls.FeatureNonPrimary, cls.FeatureNonPrimary))
			c := &copied{Site: s, name: "child", spec: "child", io: p.io, id: value(store.NewDirectory(p.io).ID("child"))(t)}
			c.gid = "gid-of-" + c.id
			c.adopt(t)
			wantErrno(t, deletion.Purge(t.Context(), p.image()), syscall.EBUSY)
			must(t, deletion.Move(t.Context(), p.image(), deletion.MoveOptions{}))
			wantErrno(t, deletion.Purge(t.Context(), p.image()), syscall.EBUSY)
			if spec := value(store.NewTrash(p.io).Get(p.id))(t); spec.State != cls.TrashStateNormal {
				t.Errorf("%+v", spec)
			}
			if len(value(p.h.Load())(t).Snapshots) != 4 {
				t.Error("snapshots are gone")
			}
			if format == 2 { // the snapshot is kept for the clone alone
				img := value(p.h.Load())(t)
				must(t, p.h.SetProtection(img.Snapshots[1].ID, cls.Unprotected))
				must(t, p.h.TrashSnapshot(img.Snapshots[1].ID))
			}
			must(t, deletion.Move(t.Context(), c.image(), deletion.MoveOptions{}))
			must(t, deletion.Purge(t.Context(), c.image()))
			c.wantGone(t)
			if n := len(value(p.h.Load())(t).Snapshots); n != 4-(format-1) {
				t.Errorf("the parent has %d snapshots", n)
			}
			must(t, deletion.Purge(t.Context(), p.image()))
			p.wantGone(t)
		})
	}
}

func testDeleter(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	d := deletion.New(deletion.Config{Conn: s.Conn, IO: io, Log: zerolog.New(zerolog.NewTestWriter(t)),
		Throttle: deletion.NewThrottle(2), RetryInterval: func() time.Duration { return time.Second }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		must(t, <-done)
	}()
	eventually := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, d.Status())
			}
		}
	}
	gone := func(c *copied) func() bool {
		return func() bool { return len(c.left(t)) == 0 }
	}
	long := makeCopy(t, s, "", "long")
	must(t, deletion.Move(t.Context(), long.image(), deletion.MoveOptions{Delay: time.Hour}))
	short := makeCopy(t, s, "", "short")
	began := time.Now()
	must(t, deletion.Move(t.Context(), short.image(), deletion.MoveOptions{Delay: 2 * time.Second}))
	now := makeCopy(t, s, "", "now")
	must(t, deletion.Move(t.Context(), now.image(), deletion.MoveOptions{}))
	eventually("one that is not to be kept", gone(now))
	eventually("one that is to be kept for a moment", gone(short))
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("removed after %v already", took)
	}
	eventually("one that is to be kept", func() bool {
		st := d.Status()
		return len(st.Queue) == 0 && len(st.Failed) == 1 && st.Failed[0].ImageID == long.id && st.Failed[0].Err == nil && st.Failed[0].Retries == 0
	})
	// busy ones are tried again soon
	busy := makeCopy(t, s, "", "busy")
	_, stop := s.Watch(s.On(s.Dial(), rbdsite.Pool, ""), store.HeaderObject(busy.id))
	must(t, deletion.Move(t.Context(), busy.image(), deletion.MoveOptions{}))
	eventually("a busy one", func() bool {
		return slices.ContainsFunc(d.Status().Failed, func(i deletion.Item) bool {
			return i.ImageID == busy.id && ceph.Is(i.Err, syscall.EBUSY) && i.Retries > 0
		})
	})
	stop()
	eventually("one that was busy", gone(busy))
	// one that a user gets back
	s.Run("rbd", "trash", "restore", long.id)
	eventually("one that was got back", func() bool { st := d.Status(); return len(st.Queue)+len(st.Failed) == 0 })
	if out := s.Run("rbd", "snap", "ls", "long"); !strings.Contains(out, "user1") {
		t.Errorf("rbd snap ls: %s", out)
	}
	must(t, deletion.Purge(t.Context(), long.image()))
	long.wantGone(t)
	// settings
	s.Run("rbd", "config", "pool", "set", rbdsite.Pool, "rbd_mirroring_delete_delay", "77")
	if got := deletion.Delay(s.Conn, io, nil); got != 77*time.Second {
		t.Errorf("delay %v", got)
	}
	if got := deletion.Delay(s.Conn, io, &store.Image{Metadata: map[string][]byte{"conf_rbd_mirroring_delete_delay": []byte("5")}}); got != 5*time.Second {
		t.Errorf("delay %v", got)
	}
	s.Run("rbd", "config", "pool", "rm", rbdsite.Pool, "rbd_mirroring_delete_delay")
	if got := deletion.Delay(s.Conn, io, nil); got != 0 {
		t.Errorf("delay %v", got)
	}
	// shut out
	third := s.Dial()
	d2 := deletion.New(deletion.Config{Conn: third, IO: s.On(third, rbdsite.Pool, ""), Log: zerolog.Nop()})
	shut := make(chan error, 1)
	go func() { shut <- d2.Run(t.Context()) }()
	eventually("the watch", func() bool {
		return slices.ContainsFunc(value(ceph.ListWatchers(io, store.TrashObject))(t), func(w ceph.Watcher) bool { return w.Client == third.GetInstanceID() })
	})
	for _, w := range value(ceph.ListWatchers(io, store.TrashObject))(t) {
		if w.Client == third.GetInstanceID() {
			s.Run("ceph", "osd", "blocklist", "add", w.Addr)
		}
	}
	select {
	case err := <-shut:
		wantErrno(t, err, syscall.ESHUTDOWN)
	case <-time.After(50 * time.Second):
		t.Error("a deleter that was shut out goes on")
	}
}
