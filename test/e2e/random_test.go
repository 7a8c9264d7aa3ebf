package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cephmirror/test/cephtree"
	"cephmirror/test/treemodel"
)

// TestRandomOperations applies operations chosen by a model to a tree on a,
// makes snapshots between them, and expects each snapshot on b to equal the
// one on a, and both the model.
func TestRandomOperations(t *testing.T) {
	e := need(t)
	d := e.mirror(t)
	limit := 30 * time.Second
	if *long {
		limit = 15 * time.Minute
	}
	end := time.Now().Add(limit)
	rounds, failed := 0, false
	rapid.Check(t, func(r *rapid.T) {
		if time.Now().After(end) && !failed {
			return // the time is up
		}
		rounds++
		failed = true
		e.randomRound(t, r, d, rounds)
		failed = r.Failed()
	})
	t.Logf("%d rounds", rounds)
}

func (e *env) randomRound(t *testing.T, r *rapid.T, d *daemon, round int) {
	root := fmt.Sprintf("%s/%s-random-%d", e.base, e.stamp, round)
	o := &operator{r: r, tree: treemodel.New(), m: cephtree.On(r, e.src, root)}
	defer func() {
		e.untrack(t, root)
		cephtree.On(t, e.src, "/").RemoveSnapsAndAll(root[1:])
	}()
	tracked := false
	models := map[string]*treemodel.Tree{}
	for i := range rapid.IntRange(2, 5).Draw(r, "snapshots") {
		for range rapid.IntRange(0, 30).Draw(r, "operations") {
			o.step()
		}
		name := fmt.Sprintf("s%d", i)
		o.note("snapshot %s", name)
		o.m.Snap(name)
		models[name] = o.tree.Clone()
		if !tracked {
			e.trackFor(t, root)
			tracked = true
		}
		if rapid.Bool().Draw(r, "wait") {
			e.waitRandom(r, d, root, name)
		}
	}
	v, err := e.newView(fsName)
	if err != nil {
		r.Fatalf("%v", err)
	}
	defer v.close()
	for _, name := range slices.Sorted(maps.Keys(models)) {
		e.waitRandom(r, d, root, name)
		path := root + "/.snap/" + name
		diffs, err := v.compare(path, path)
		if err != nil {
			r.Fatalf("%v", err)
		}
		if len(diffs) > 0 {
			r.Errorf("snapshot %s of %s differs:\n%s", name, root, cephtree.Report(diffs, 10))
		}
		if diffs := modelDifferences(r, models[name], v.dst, path); len(diffs) > 0 {
			r.Errorf("snapshot %s of %s is not as the model:\n%s", name, root, cephtree.Report(diffs, 10))
		}
	}
}

func (e *env) waitRandom(r *rapid.T, d *daemon, root, name string) {
	if err := eventually(patience, func() error { return e.arrived(root, name) }); err != nil {
		st, _ := d.dir(root)
		r.Fatalf("waited %v for snapshot %s: %v\nstate: %+v", patience, name, err, st)
	}
}

// modelDifferences compares a snapshot on b with the model, in all that the
// model knows.
func modelDifferences(r *rapid.T, m *treemodel.Tree, dst *cephtree.Client, root string) []cephtree.Difference {
	got, err := cephtree.Scan(r.Context(), dst.MountInfo, root)
	if err != nil {
		r.Fatalf("%v", err)
	}
	want := cephtree.Tree{"": got[""]}
	links := m.Links()
	for _, p := range m.Paths(func(*treemodel.Inode) bool { return true }) {
		n := m.Get(p)
		g := got["/"+p]
		w := cephtree.Entry{
			Type: kindNames()[n.Kind], Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev,
			Target: n.Target, Xattrs: n.Xattrs, Atime: g.Atime, Mtime: g.Mtime,
		}
		switch n.Kind {
		case treemodel.File:
			sum := sha256.Sum256(n.Data)
			w.Size, w.Sum = uint64(len(n.Data)), hex.EncodeToString(sum[:])
		case treemodel.Symlink:
			w.Mode, w.Size = g.Mode, uint64(len(n.Target))
		}
		if n.Mtime != nil {
			w.Mtime = cephtree.Time(*n.Mtime)
		}
		if l, ok := links[p]; ok {
			w.Link = "/" + l
		}
		want["/"+p] = w
	}
	return cephtree.Diff(want, got)
}

func kindNames() map[treemodel.Kind]string {
	return map[treemodel.Kind]string{
		treemodel.Dir: "dir", treemodel.File: "file", treemodel.Symlink: "symlink",
		treemodel.Fifo: "fifo", treemodel.Socket: "socket", treemodel.Char: "char",
	}
}

// operator applies operations to a model and to a real tree.
type operator struct {
	r    *rapid.T
	tree *treemodel.Tree
	m    cephtree.Maker
}

func (o *operator) note(format string, args ...any) {
	o.r.Logf(format, args...)
}

// pick draws one of the paths for which ok holds.
func (o *operator) pick(label string, ok func(*treemodel.Inode) bool) (string, bool) {
	paths := o.tree.Paths(ok)
	if len(paths) == 0 {
		return "", false
	}
	return rapid.SampledFrom(paths).Draw(o.r, label), true
}

func isKind(kinds ...treemodel.Kind) func(*treemodel.Inode) bool {
	return func(n *treemodel.Inode) bool { return slices.Contains(kinds, n.Kind) }
}

func anything(*treemodel.Inode) bool { return true }

// place draws a name in an existing directory; there may be something.
func (o *operator) place() string {
	dirs := append([]string{""}, o.tree.Paths(isKind(treemodel.Dir))...)
	dir := rapid.SampledFrom(dirs).Draw(o.r, "directory")
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "ü", "x y"}).Draw(o.r, "name")
	return strings.TrimPrefix(path.Join(dir, name), "/")
}

// free draws a name that nothing has.
func (o *operator) free() (string, bool) {
	p := o.place()
	return p, o.tree.Get(p) == nil
}

func (o *operator) data() []byte {
	n := rapid.SampledFrom([]int{0, 1, 100, 4096, 70000, 300000}).Draw(o.r, "bytes")
	if rapid.IntRange(0, 7).Draw(o.r, "zeros") == 0 {
		return make([]byte, n)
	}
	return cephtree.Data(rapid.Uint64().Draw(o.r, "seed"), n)
}

func (o *operator) offset() int {
	return rapid.SampledFrom([]int{0, 1, 5000, 65536, 262144, 1000000, 4<<20 - 1, 5 << 20}).Draw(o.r, "offset")
}

// step does one operation; one that is not possible now is left out.
func (o *operator) step() {
	ops := o.operations()
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(ops))).Draw(o.r, "operation")
	ops[name]()
}

func (o *operator) create(what string, make func(p string) *treemodel.Inode) {
	if p, ok := o.free(); ok {
		o.note("%s %s", what, p)
		n := make(p)
		o.tree.Add(p, n)
		// Bits of the umask are none of the test's business.
		if n.Kind != treemodel.Symlink {
			o.m.Chmod(p, n.Mode)
		}
	}
}

func (o *operator) operations() map[string]func() {
	file := isKind(treemodel.File)
	noDir := func(n *treemodel.Inode) bool { return n.Kind != treemodel.Dir }
	noLink := func(n *treemodel.Inode) bool { return n.Kind != treemodel.Symlink }
	onFile := func(f func(p string, n *treemodel.Inode)) func() {
		return func() {
			if p, ok := o.pick("file", file); ok {
				f(p, o.tree.Get(p))
			}
		}
	}
	write := func(p string, n *treemodel.Inode) {
		data, at := o.data(), o.offset()
		if len(data) == 0 {
			return
		}
		o.note("write %s at %d, %d bytes", p, at, len(data))
		o.m.WriteAt(p, data, int64(at))
		n.WriteAt(data, at)
	}
	return map[string]func(){
		"mkdir": func() {
			o.create("mkdir", func(p string) *treemodel.Inode {
				o.m.Mkdir(p)
				return &treemodel.Inode{Kind: treemodel.Dir, Mode: 0o755}
			})
		},
		"create": func() {
			o.create("create", func(p string) *treemodel.Inode {
				data := o.data()
				o.m.Write(p, data)
				return &treemodel.Inode{Kind: treemodel.File, Mode: 0o644, Data: data}
			})
		},
		"symlink": func() {
			o.create("symlink", func(p string) *treemodel.Inode {
				to := rapid.SampledFrom([]string{"a", "b", "../x", "/nowhere"}).Draw(o.r, "target")
				o.m.Symlink(to, p)
				return &treemodel.Inode{Kind: treemodel.Symlink, Target: to}
			})
		},
		"mknod": func() {
			o.create("mknod", func(p string) *treemodel.Inode {
				n := &treemodel.Inode{Kind: treemodel.Fifo, Mode: 0o600}
				mode := uint32(syscall.S_IFIFO)
				switch rapid.IntRange(0, 2).Draw(o.r, "kind") {
				case 1:
					n.Kind, mode = treemodel.Socket, syscall.S_IFSOCK
				case 2:
					n.Kind, mode = treemodel.Char, syscall.S_IFCHR
					n.Rdev = rapid.SampledFrom([]uint64{5, 1<<8 | 3}).Draw(o.r, "device")
				}
				o.m.Node(p, mode|n.Mode, n.Rdev)
				return n
			})
		},
		"link": func() {
			from, ok := o.pick("existing", noDir)
			if !ok {
				return
			}
			if p, ok := o.free(); ok {
				o.note("link %s to %s", p, from)
				o.m.Link(from, p)
				o.tree.Add(p, o.tree.Get(from))
			}
		},
		"write": onFile(write),
		"write, times restored": onFile(func(p string, n *treemodel.Inode) {
			restored(o.m, p, func() { write(p, n) })
		}),
		"truncate": onFile(func(p string, n *treemodel.Inode) {
			size := o.offset()
			o.note("truncate %s to %d", p, size)
			o.m.Truncate(p, int64(size))
			n.Truncate(size)
		}),
		"punch": onFile(func(p string, n *treemodel.Inode) {
			at, length := o.offset(), max(1, o.offset())
			o.note("punch %s at %d, %d bytes", p, at, length)
			o.m.Punch(p, int64(at), int64(length))
			n.Punch(at, length)
		}),
		"rewrite": onFile(func(p string, n *treemodel.Inode) {
			data := o.data()
			o.note("rewrite %s, %d bytes", p, len(data))
			o.m.Write(p, data)
			n.Data, n.Mtime = slices.Clone(data), nil
		}),
		"rename":           func() { o.rename(anything) },
		"rename directory": func() { o.rename(isKind(treemodel.Dir)) },
		"remove": func() {
			if p, ok := o.pick("name", noDir); ok {
				o.note("remove %s", p)
				o.m.Remove(p)
				o.tree.Remove(p)
			}
		},
		"remove directory": func() {
			if rapid.IntRange(0, 2).Draw(o.r, "really") > 0 {
				return // trees shall grow
			}
			if p, ok := o.pick("name", isKind(treemodel.Dir)); ok {
				o.note("remove all %s", p)
				o.m.RemoveAll(p)
				o.tree.Remove(p)
			}
		},
		"chmod": func() {
			if p, ok := o.pick("name", noLink); ok {
				mode := rapid.SampledFrom([]uint32{0, 0o600, 0o644, 0o4755, 0o1777}).Draw(o.r, "mode")
				o.note("chmod %s %#o", p, mode)
				o.m.Chmod(p, mode)
				o.tree.Get(p).Mode = mode
			}
		},
		"chown": func() {
			if p, ok := o.pick("name", isKind(treemodel.Dir, treemodel.Symlink, treemodel.Fifo)); ok {
				n := o.tree.Get(p)
				n.UID, n.GID = rapid.Uint32Range(0, 3).Draw(o.r, "uid"), rapid.Uint32Range(0, 3).Draw(o.r, "gid")
				o.note("chown %s %d:%d", p, n.UID, n.GID)
				o.m.Chown(p, n.UID, n.GID)
				// The kernel's rule for set-id bits is not the model's business.
				if n.Kind != treemodel.Symlink {
					o.m.Chmod(p, n.Mode)
				}
			}
		},
		"xattr": func() {
			if p, ok := o.pick("name", noLink); ok {
				name := rapid.SampledFrom([]string{"user.a", "user.b", "trusted.c"}).Draw(o.r, "xattr")
				value := rapid.SampledFrom([]string{"1", "2", "a longer value"}).Draw(o.r, "value")
				n := o.tree.Get(p)
				if _, there := n.Xattrs[name]; there && rapid.Bool().Draw(o.r, "remove") {
					o.note("remove xattr %s of %s", name, p)
					o.m.RemoveXattr(p, name)
					delete(n.Xattrs, name)
					return
				}
				o.note("xattr %s of %s = %s", name, p, value)
				o.m.SetXattr(p, name, value)
				n.SetXattr(name, value)
			}
		},
		"utimes": func() {
			if p, ok := o.pick("name", anything); ok {
				mt := treemodel.Time{Sec: rapid.Int64Range(0, 1<<31).Draw(o.r, "sec"), Nsec: rapid.Int64Range(0, 999999999).Draw(o.r, "nsec")}
				o.note("utimes %s %v", p, mt)
				o.m.Times(p, cephtree.Time{Sec: 12345, Nsec: 6789}, cephtree.Time(mt))
				o.tree.Get(p).Mtime = &mt
			}
		},
	}
}

func (o *operator) rename(ok func(*treemodel.Inode) bool) {
	from, there := o.pick("from", ok)
	if !there {
		return
	}
	if to := o.place(); o.tree.CanRename(from, to) {
		o.note("rename %s to %s", from, to)
		o.m.Rename(from, to)
		o.tree.Rename(from, to)
	}
}
