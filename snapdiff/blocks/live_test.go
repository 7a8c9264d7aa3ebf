package blocks_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/snapdiff/blocks"
	"cephmirror/test/bed"
)

const (
	mib    = 1 << 20
	worker = "blocks" // the user's id
)

// lab is a file system, a client that writes and what a worker has.
type lab struct {
	cluster *bed.Cluster
	writer  *ceph.Mount
	source  *ceph.Mount // as a user with the documented capabilities
	conn    *rados.Conn // likewise
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if bed.InsideRelease() == "" {
		t.Skip("needs Ceph: run with bed enter")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	b, err := bed.Open(bed.Options{Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.WithoutCancel(t.Context())) })
	c, err := b.Up(ctx, bed.ClusterSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if !bed.Shared() {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
			defer cancel()
			if err := c.Down(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if err := c.AddMirrorUser(ctx, worker); err != nil {
		t.Fatal(err)
	}
	l := &lab{cluster: c}
	l.writer = mount(t, "client.admin")
	l.source = mount(t, "client."+worker)
	l.conn = client(t, "client."+worker)
	if err := l.conn.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.conn.Shutdown)
	return l
}

func client(t *testing.T, user string) *rados.Conn {
	t.Helper()
	conn, err := rados.NewConnWithClusterAndUser("a", user)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.ReadDefaultConfigFile(); err != nil {
		t.Fatal(err)
	}
	options := map[string]string{
		"admin_socket": "", "rados_mon_op_timeout": "15", "rados_osd_op_timeout": "60",
		"client_mount_uid": "0", "client_mount_gid": "0", "client_permissions": "false",
	}
	if user == "client."+worker {
		options["client_oc"] = "false"
	}
	for option, value := range options {
		if err := conn.SetConfigOption(option, value); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

func mount(t *testing.T, user string) *ceph.Mount {
	t.Helper()
	m, err := ceph.NewMount(client(t, user))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
		if err := m.Release(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// in opens a file in a snapshot.
func (l *lab) in(t *testing.T, dir, snap, rel string) (*cephfs.File, ceph.Stat) {
	t.Helper()
	f, err := l.source.Open(dir+"/.snap/"+snap+"/"+rel, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := l.source.FileStat(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, st
}

// compare checks what is told of a file against its content in both snapshots.
// It returns how long the pieces are that differ, how many bytes are told to,
// and how long it took.
func (l *lab) compare(t *testing.T, dir, old, new, rel string) (differ, told uint64, extents []blocks.Extent, took time.Duration) {
	t.Helper()
	p := blocks.Pair{}
	var err error
	if p.OldSnap, _, err = l.source.SnapInfo(dir + "/.snap/" + old); err != nil {
		t.Fatal(err)
	}
	if p.NewSnap, _, err = l.source.SnapInfo(dir + "/.snap/" + new); err != nil {
		t.Fatal(err)
	}
	p.New, p.NewStat = l.in(t, dir, new, rel)
	defer p.New.Close()
	p.Old, p.OldStat = l.in(t, dir, old, rel)
	defer p.Old.Close()
	begin := time.Now()
	extents, err = blocks.Changed(t.Context(), l.conn, l.source, p)
	took = time.Since(begin)
	if err != nil {
		t.Fatalf("%s %s..%s: %v", rel, old, new, err)
	}
	was, is := make([]byte, 4*mib), make([]byte, 4*mib)
	next := extents
	for at := uint64(0); at < p.NewStat.Size; {
		n := min(uint64(len(is)), p.NewStat.Size-at)
		read(t, p.New, is[:n], at)
		clear(was)
		if at < p.OldStat.Size {
			read(t, p.Old, was[:min(n, p.OldStat.Size-at)], at)
		}
		// Piece by piece: what an extent tells of, and what lies between two.
		for from := uint64(0); from < n; {
			for len(next) > 0 && next[0].End() <= at+from {
				next = next[1:]
			}
			to, isTold := n, false
			if len(next) > 0 && next[0].Offset <= at+from {
				to, isTold = min(n, next[0].End()-at), true
			} else if len(next) > 0 {
				to = min(n, next[0].Offset-at)
			}
			if !bytes.Equal(was[from:to], is[from:to]) {
				if !isTold {
					for was[from] == is[from] {
						from++
					}
					t.Errorf("%s %s..%s: byte %d differs and is not told: %v", rel, old, new, at+from, extents)
					return
				}
				differ += to - from
			}
			from = to
		}
		at += n
	}
	for i, e := range extents {
		told += e.Length
		if e.End() > p.NewStat.Size || i > 0 && e.Offset < extents[i-1].End() {
			t.Errorf("%s: extents %v of a file of %d", rel, extents, p.NewStat.Size)
		}
	}
	return differ, told, extents, took
}

func read(t *testing.T, f *cephfs.File, buf []byte, offset uint64) {
	t.Helper()
	for len(buf) > 0 {
		n, err := f.ReadAt(buf, int64(offset))
		if err != nil || n == 0 {
			t.Fatalf("reading at %d: %d, %v", offset, n, err)
		}
		buf, offset = buf[n:], offset+uint64(n)
	}
}

// editor changes a file and ends the test when that fails.
type editor struct {
	t *testing.T
	m *ceph.Mount
	f *cephfs.File
	r *rand.Rand
}

func (l *lab) edit(t *testing.T, path, layout string, r *rand.Rand) editor {
	t.Helper()
	f, err := l.writer.Open(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(layout) {
		name, value, _ := strings.Cut(field, "=")
		if err := l.writer.SetXattr(path, "ceph.file.layout."+name, []byte(value), 0); err != nil {
			t.Fatal(field, err)
		}
	}
	t.Cleanup(func() { f.Close() })
	return editor{t, l.writer, f, r}
}

func (e editor) write(at, n int) {
	e.t.Helper()
	// The pattern repeats itself, but at no multiple of an object's size.
	const period = 100003
	buf := make([]byte, n, n+8)
	for i := 0; i < min(n, period); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:i+8:cap(buf)], e.r.Uint64())
	}
	for i := period; i < n; i *= 2 {
		copy(buf[i:], buf[:i])
	}
	for len(buf) > 0 {
		k, err := e.f.WriteAt(buf, int64(at))
		if err != nil {
			e.t.Fatal(err)
		}
		buf, at = buf[k:], at+k
	}
}

// dots writes to the beginning of each piece of a file.
func (e editor) dots(size, piece, n int) {
	e.t.Helper()
	for at := 0; at < size; at += piece {
		e.write(at, n)
	}
}

func (e editor) zeros(at, n int) {
	e.t.Helper()
	if _, err := e.f.WriteAt(make([]byte, n), int64(at)); err != nil {
		e.t.Fatal(err)
	}
}

func (e editor) truncate(size int) {
	e.t.Helper()
	if err := e.f.Truncate(int64(size)); err != nil {
		e.t.Fatal(err)
	}
}

func (e editor) punch(at, n int) {
	e.t.Helper()
	if err := e.f.Fallocate(cephfs.FallocFlPunchHole|cephfs.FallocFlKeepSize, int64(at), int64(n)); err != nil {
		e.t.Fatal(err)
	}
}

// mkdir makes a directory whose name begins so, on a cluster that others may
// have used.
func (l *lab) mkdir(t *testing.T, prefix string) string {
	t.Helper()
	dir := fmt.Sprintf("%s-%08x", prefix, rand.Uint32())
	if err := l.writer.MakeDir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (l *lab) snap(t *testing.T, dir, name string) {
	t.Helper()
	if err := l.writer.MakeSnapshot(dir, name, 0o755, nil); err != nil {
		t.Fatal(err)
	}
}

// often is how many rounds there are every day and when slow tests are asked for.
func often(daily, long int) int {
	if os.Getenv("CEPHMIRROR_TEST_LONG") != "" {
		return long
	}
	return daily
}

func TestLive(t *testing.T) {
	l := newLab(t)
	t.Run("Cases", func(t *testing.T) { testCases(t, l) })
	t.Run("Random", func(t *testing.T) { testRandom(t, l) })
	t.Run("LazyTruncate", func(t *testing.T) { testLazyTruncate(t, l) })
	t.Run("DyingMDS", func(t *testing.T) { testDyingMDS(t, l) })
	if l.cluster.Release() == bed.DefaultRelease || often(0, 1) > 0 {
		t.Run("Large", func(t *testing.T) { testLarge(t, l) })
	}
	t.Run("Removed", func(t *testing.T) { testRemoved(t, l) })
}

func testCases(t *testing.T, l *lab) {
	sixteen := func(e editor) { e.write(0, 16*mib) }
	sparse := often(64<<30, 512<<30) // where nothing but one object is
	cases := []struct {
		name   string
		layout string
		a, b   func(editor)
		most   uint64 // told at most; 0: no matter
	}{
		{name: "nothing", a: sixteen, b: func(e editor) {}, most: 64 << 10},
		{name: "hole filled, whole object", a: func(e editor) { e.write(0, 4*mib); e.write(12*mib, 4*mib) }, b: func(e editor) { e.write(4*mib, 4*mib) }},
		{name: "hole filled, part", a: func(e editor) { e.write(0, 4*mib); e.write(12*mib, 4*mib) }, b: func(e editor) { e.write(5*mib, 4096) }, most: 2 * mib},
		{name: "hole in object filled", a: func(e editor) { e.write(0, mib); e.write(3*mib, mib); e.write(4*mib, 4*mib) }, b: func(e editor) { e.write(2*mib, 4096) }, most: 64 << 10},
		{name: "punch", a: sixteen, b: func(e editor) { e.punch(5*mib, 65536) }, most: 128 << 10},
		{name: "punch whole object", a: sixteen, b: func(e editor) { e.punch(4*mib, 4*mib) }},
		{name: "punch last object", a: sixteen, b: func(e editor) { e.punch(12*mib, 4*mib) }},
		{name: "punch and refill", a: sixteen, b: func(e editor) { e.punch(4*mib, 4*mib); e.write(4*mib, 4096) }},
		{name: "truncate down, up", a: sixteen, b: func(e editor) { e.truncate(6 * mib); e.truncate(16 * mib) }},
		{name: "truncate down, write", a: sixteen, b: func(e editor) { e.truncate(6 * mib); e.write(15*mib, mib) }},
		{name: "truncate to nothing, up", a: sixteen, b: func(e editor) { e.truncate(0); e.truncate(16 * mib) }},
		{name: "truncate", a: sixteen, b: func(e editor) { e.truncate(6 * mib) }, most: 64 << 10},
		{name: "truncate to nothing", a: sixteen, b: func(e editor) { e.truncate(0) }},
		{name: "small", a: sixteen, b: func(e editor) { e.write(9*mib, 4096) }, most: 64 << 10},
		{name: "append", a: sixteen, b: func(e editor) { e.write(16*mib, 5000) }, most: 64 << 10},
		{name: "grow", a: sixteen, b: func(e editor) { e.truncate(24 * mib) }, most: 64 << 10},
		{name: "grow, write far", a: func(e editor) { e.write(0, 5*mib) }, b: func(e editor) { e.write(30*mib, 4096) }},
		{name: "zeros", a: func(e editor) { e.write(0, mib); e.zeros(4*mib, 8*mib) }, b: func(e editor) { e.write(5*mib, 4096) }},
		{name: "zeros written", a: sixteen, b: func(e editor) { e.zeros(4*mib, 4*mib) }},
		{name: "sparse", a: func(e editor) { e.truncate(sparse) }, b: func(e editor) { e.write(sparse/2, 4096) }, most: 4 * mib},
		{name: "from nothing", a: func(e editor) {}, b: sixteen},
		{name: "striped", layout: "stripe_unit=65536 stripe_count=3 object_size=1048576", a: sixteen, b: func(e editor) { e.write(9*mib+5, 70000) }, most: 256 << 10},
		{name: "striped, punch", layout: "stripe_unit=65536 stripe_count=3 object_size=1048576", a: sixteen, b: func(e editor) { e.punch(2*mib, 5*mib) }},
		{name: "striped, truncate", layout: "stripe_unit=131072 stripe_count=5 object_size=262144", a: sixteen, b: func(e editor) { e.truncate(5*mib + 99); e.truncate(15 * mib) }},
		{name: "namespace", layout: "pool_namespace=apart", a: sixteen, b: func(e editor) { e.write(9*mib, 4096) }, most: 64 << 10},
		{name: "large objects", layout: "object_size=16777216 stripe_unit=16777216", a: sixteen, b: func(e editor) { e.punch(3*mib, mib); e.write(9*mib, 4096) }, most: 2 * mib},
	}
	dir := l.mkdir(t, "/cases")
	r := rand.New(rand.NewPCG(1, 2))
	editors := make([]editor, len(cases))
	for i, c := range cases {
		editors[i] = l.edit(t, fmt.Sprintf("%s/f%d", dir, i), c.layout, r)
		c.a(editors[i])
	}
	link := l.edit(t, dir+"/first", "", r)
	link.write(0, 8*mib)
	if err := l.writer.Link(dir+"/first", dir+"/second"); err != nil {
		t.Fatal(err)
	}
	l.snap(t, dir, "a")
	for i, c := range cases {
		c.b(editors[i])
	}
	link.write(5*mib, 4096)
	l.snap(t, dir, "b")
	for i, c := range cases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			if c.name == "sparse" {
				p := blocks.Pair{}
				p.OldSnap, _, _ = l.source.SnapInfo(dir + "/.snap/a")
				p.NewSnap, _, _ = l.source.SnapInfo(dir + "/.snap/b")
				p.New, p.NewStat = l.in(t, dir, "b", fmt.Sprintf("f%d", i))
				defer p.New.Close()
				p.Old, p.OldStat = l.in(t, dir, "a", fmt.Sprintf("f%d", i))
				defer p.Old.Close()
				begin := time.Now()
				extents, err := blocks.Changed(t.Context(), l.conn, l.source, p)
				t.Logf("%v in %v, %v", extents, time.Since(begin), err)
				if err != nil || !slices.ContainsFunc(extents, func(e blocks.Extent) bool {
					return e.Offset <= uint64(sparse/2) && e.End() >= uint64(sparse/2+4096)
				}) {
					t.Fatal(extents, err)
				}
				return
			}
			differ, told, extents, took := l.compare(t, dir, "a", "b", fmt.Sprintf("f%d", i))
			t.Logf("%d bytes differ, %d told in %v: %v", differ, told, took, extents)
			if c.most > 0 && told > c.most {
				t.Errorf("%d bytes told, at most %d wanted", told, c.most)
			}
		})
	}
	for _, name := range []string{"first", "second"} {
		if differ, told, extents, _ := l.compare(t, dir, "a", "b", name); differ == 0 || told > 64<<10 {
			t.Errorf("linked file %s: %d bytes differ, %v told", name, differ, extents)
		}
	}
}

// testRandom does what it likes to files and compares all pairs of snapshots.
func testRandom(t *testing.T, l *lab) {
	layouts := []string{
		"", "stripe_unit=65536 stripe_count=4 object_size=131072", "stripe_unit=65536 object_size=65536",
		"stripe_unit=65536 stripe_count=2 object_size=1048576", "stripe_unit=262144 object_size=262144",
	}
	for round := range often(1, 30) {
		seed := uint64(time.Now().UnixNano())
		r := rand.New(rand.NewPCG(seed, 0))
		dir := l.mkdir(t, "/random")
		files := make([]editor, 10)
		for i := range files {
			files[i] = l.edit(t, fmt.Sprintf("%s/f%d", dir, i), layouts[i%len(layouts)], r)
			if i%3 == 0 {
				if err := l.writer.Link(fmt.Sprintf("%s/f%d", dir, i), fmt.Sprintf("%s/l%d", dir, i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		const snaps = 5
		for s := range snaps {
			var wg sync.WaitGroup
			for i, e := range files {
				own := e
				own.r = rand.New(rand.NewPCG(seed, uint64(1+s*100+i)))
				wg.Go(func() {
					for range own.r.IntN(7) {
						own.random(2 * mib)
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			l.snap(t, dir, fmt.Sprintf("s%d", s))
		}
		// One in the middle goes: its neighbours must know of its changes.
		if err := l.writer.RemoveSnapshot(dir, "s2"); err != nil {
			t.Fatal(err)
		}
		var differ, told uint64
		for i := range files {
			for a := range snaps {
				for b := a + 1; b < snaps; b++ {
					if a == 2 || b == 2 {
						continue
					}
					d, n, _, _ := l.compare(t, dir, fmt.Sprintf("s%d", a), fmt.Sprintf("s%d", b), fmt.Sprintf("f%d", i))
					differ, told = differ+d, told+n
				}
			}
		}
		t.Logf("round %d: %d bytes differ, %d told", round, differ, told)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func (e editor) random(limit int) {
	at, n := e.r.IntN(limit), 1+e.r.IntN(limit/4)
	switch e.r.IntN(7) {
	case 0, 1:
		e.write(at, n)
	case 2:
		e.zeros(at, n)
	case 3:
		e.punch(at, n)
	case 4:
		e.punch(at&^0xffff, n|0xffff)
	case 5:
		e.truncate(at)
		if e.r.IntN(2) == 0 {
			e.truncate(at + e.r.IntN(limit))
		}
	case 6:
		e.truncate(at + limit/2)
	}
}

// testLazyTruncate lets files grow again, and be part of a snapshot, before
// their truncation has reached the objects.
func testLazyTruncate(t *testing.T, l *lab) {
	var common int
	for round := range often(1, 20) {
		dir := l.mkdir(t, "/lazy")
		r := rand.New(rand.NewPCG(uint64(round), 7))
		const files, snaps = 8, 3
		editors := make([]editor, files)
		for i := range editors {
			editors[i] = l.edit(t, fmt.Sprintf("%s/f%d", dir, i), "stripe_unit=65536 object_size=65536", r)
			editors[i].write(0, 4*mib)
			if i%2 == 0 {
				if err := editors[i].f.Fsync(cephfs.SyncAll); err != nil {
					t.Fatal(err)
				}
			}
		}
		other := mount(t, "client.admin")
		for s := range snaps {
			var wg sync.WaitGroup
			for i, e := range editors {
				wg.Go(func() {
					if i%4 != 3 {
						e.truncate((s*7 + i) * 99999 % (2 * mib))
					}
					e.truncate(4 * mib)
				})
			}
			wg.Wait()
			// Dirty data of one client, a snapshot of another.
			for i, e := range editors {
				own := e
				own.r = rand.New(rand.NewPCG(uint64(round), uint64(s*100+i)))
				if i%3 == 1 {
					wg.Go(func() { own.write(own.r.IntN(3*mib), 100000) })
				}
			}
			if err := other.MakeSnapshot(dir, fmt.Sprintf("s%d", s), 0o755, nil); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
		}
		for i := range editors {
			for a := range snaps {
				for b := a + 1; b < snaps; b++ {
					_, told, _, _ := l.compare(t, dir, fmt.Sprintf("s%d", a), fmt.Sprintf("s%d", b), fmt.Sprintf("f%d", i))
					if told == 4*mib {
						common++
					}
				}
			}
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d times the whole file", common)
}

// testDyingMDS kills the MDS while it truncates files that have grown again and
// are part of a snapshot. Its successor cuts the objects with that snapshot's
// id, so both snapshots share versions of objects but read differently.
func testDyingMDS(t *testing.T, l *lab) {
	for round := range often(1, 10) {
		dir := l.mkdir(t, "/dying")
		r := rand.New(rand.NewPCG(uint64(round), 9))
		editors := make([]editor, 6)
		for i := range editors {
			editors[i] = l.edit(t, fmt.Sprintf("%s/f%d", dir, i), "stripe_unit=65536 object_size=65536", r)
			// What takes long is the number of objects, not what is in them.
			editors[i].dots(32*mib, 64<<10, 4096)
			if err := editors[i].f.Fsync(cephfs.SyncAll); err != nil {
				t.Fatal(err)
			}
		}
		l.snap(t, dir, "a")
		for _, e := range editors {
			e.truncate(3 * mib)
			e.truncate(32 * mib)
		}
		l.snap(t, dir, "b")
		if err := l.cluster.Daemon("mds.a").Restart(t.Context(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for i := range editors {
			if differ, _, _, _ := l.compare(t, dir, "a", "b", fmt.Sprintf("f%d", i)); differ == 0 {
				t.Errorf("file %d does not differ", i)
			}
		}
	}
}

func testLarge(t *testing.T, l *lab) {
	dir := l.mkdir(t, "/large")
	e := l.edit(t, dir+"/f", "", rand.New(rand.NewPCG(3, 4)))
	e.write(0, often(128, 512)*mib)
	l.snap(t, dir, "a")
	e.write(100*mib, 4096)
	l.snap(t, dir, "b")
	differ, told, extents, took := l.compare(t, dir, "a", "b", "f")
	t.Logf("%d bytes differ, %d told in %v: %v", differ, told, took, extents)
	if differ == 0 || told > 64<<10 {
		t.Errorf("%d bytes differ, %v told", differ, extents)
	}
}

// testRemoved: whoever asks whether the older snapshot still exists after the
// extents were listed must get a fresh answer.
func testRemoved(t *testing.T, l *lab) {
	dir := l.mkdir(t, "/removed")
	for i := range 20 {
		name := fmt.Sprintf("s%d", i)
		l.snap(t, dir, name)
		if _, _, err := l.source.SnapInfo(dir + "/.snap/" + name); err != nil {
			t.Fatal(err)
		}
		if err := l.writer.RemoveSnapshot(dir, name); err != nil {
			t.Fatal(err)
		}
		if id, _, err := l.source.SnapInfo(dir + "/.snap/" + name); err == nil {
			t.Fatalf("snapshot %d is still there after its removal", id)
		}
	}
}
