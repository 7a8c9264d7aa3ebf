package cephtree

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/cephfs"

	"cephmirror/internal/ceph"
)

// TB is what a Maker needs of a test.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// denial is how long a name that is there may be denied.
const denial = 10 * time.Second

// Maker changes the tree below one directory. A call that fails ends the test.
type Maker struct {
	t    TB
	c    *Client
	root string
}

// On returns a Maker for the directory root, which it makes if it is missing.
func On(t TB, c *Client, root string) Maker {
	t.Helper()
	m := Maker{t, c, strings.TrimSuffix(root, "/")}
	m.MkdirAll("")
	return m
}

// With returns a Maker for the same directory that acts as another client.
func (m Maker) With(c *Client) Maker { return Maker{m.t, c, m.root} }

// At returns a Maker for a directory below.
func (m Maker) At(rel string) Maker {
	m.t.Helper()
	return On(m.t, m.c, m.path(rel))
}

// Root returns the directory.
func (m Maker) Root() string { return m.root }

// Client returns the client that does the work.
func (m Maker) Client() *Client { return m.c }

func (m Maker) path(rel string) string { return path.Join("/", m.root, rel) }

func (m Maker) must(err error, format string, args ...any) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// there does something with a name that is there. Where hard links were removed
// or replaced right before, Ceph was seen to deny such a name.
func (m Maker) there(act func() error, format string, args ...any) {
	m.t.Helper()
	start := time.Now()
	err := act()
	denied := 0
	for ceph.Is(err, syscall.ENOENT) && time.Since(start) < denial {
		denied++
		time.Sleep(100 * time.Millisecond)
		err = act()
	}
	if denied > 0 {
		m.t.Logf("%s: denied %d times in %v, then %v", fmt.Sprintf(format, args...), denied, time.Since(start), err)
	}
	m.must(err, format, args...)
}

// Mkdir makes a directory.
func (m Maker) Mkdir(rel string) {
	m.t.Helper()
	m.must(m.c.MakeDir(m.path(rel), 0o755), "mkdir %q", rel)
}

// MkdirAll makes a directory and those above that are missing.
func (m Maker) MkdirAll(rel string) {
	m.t.Helper()
	err := m.c.MakeDirs(m.path(rel), 0o755)
	if ceph.Is(err, syscall.EEXIST) {
		return
	}
	m.must(err, "mkdir -p %q", m.path(rel))
}

// Open opens a file.
func (m Maker) Open(rel string, flags int) *cephfs.File {
	m.t.Helper()
	var f *cephfs.File
	m.there(func() (err error) {
		f, err = m.c.Open(m.path(rel), flags, 0o644)
		return err
	}, "open %q", rel)
	return f
}

// Write makes the content of a file data.
func (m Maker) Write(rel string, data []byte) {
	m.t.Helper()
	m.must(m.put(rel, data), "write %q", rel)
}

func (m Maker) put(rel string, data []byte) error {
	f, err := m.c.Open(m.path(rel), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	return errors.Join(writeAll(f, data, 0), f.Close())
}

// WriteAt writes data into an existing file.
func (m Maker) WriteAt(rel string, data []byte, offset int64) {
	m.t.Helper()
	f := m.Open(rel, syscall.O_WRONLY)
	m.must(errors.Join(writeAll(f, data, offset), f.Close()), "write %q", rel)
}

func writeAll(f *cephfs.File, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := f.WriteAt(data[:min(len(data), 4<<20)], offset)
		if err != nil {
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// Read returns the content of a file.
func (m Maker) Read(rel string) []byte {
	m.t.Helper()
	f := m.Open(rel, syscall.O_RDONLY)
	data := make([]byte, m.Stat(rel).Size)
	for at := 0; at < len(data); {
		n, err := f.ReadAt(data[at:], int64(at))
		m.must(err, "read %q", rel)
		if n == 0 {
			m.t.Fatalf("read %q: %d bytes only", rel, at)
		}
		at += n
	}
	m.must(f.Close(), "close %q", rel)
	return data
}

// Truncate sets the size of a file.
func (m Maker) Truncate(rel string, size int64) {
	m.t.Helper()
	m.there(func() error { return m.c.Truncate(m.path(rel), size) }, "truncate %q", rel)
}

// Punch makes a hole in a file.
func (m Maker) Punch(rel string, offset, length int64) {
	m.t.Helper()
	f := m.Open(rel, syscall.O_WRONLY)
	m.must(f.Fallocate(cephfs.FallocFlPunchHole|cephfs.FallocFlKeepSize, offset, length), "punch a hole in %q", rel)
	m.must(f.Close(), "close %q", rel)
}

// Symlink makes a symlink to target.
func (m Maker) Symlink(target, rel string) {
	m.t.Helper()
	m.must(m.c.Symlink(target, m.path(rel)), "symlink %q", rel)
}

// Link makes a hard link, to a symlink itself.
func (m Maker) Link(old, rel string) {
	m.t.Helper()
	m.there(func() error { return linkItself(m.c.MountInfo, m.path(old), m.path(rel)) }, "link %q to %q", rel, old)
}

// Node makes a special file; mode holds its type.
func (m Maker) Node(rel string, mode uint32, rdev uint64) {
	m.t.Helper()
	m.must(m.c.MakeNode(m.path(rel), mode, rdev), "mknod %q", rel)
}

// Rename renames what has a name.
func (m Maker) Rename(from, to string) {
	m.t.Helper()
	m.there(func() error { return m.c.Rename(m.path(from), m.path(to)) }, "rename %q to %q", from, to)
}

// Remove removes a name that is no directory.
func (m Maker) Remove(rel string) {
	m.t.Helper()
	m.there(func() error { return m.c.Unlink(m.path(rel)) }, "unlink %q", rel)
}

// RemoveAll removes what has a name, and all below. Nothing there is fine.
func (m Maker) RemoveAll(rel string) {
	m.t.Helper()
	m.must(removeAll(m.c.MountInfo, m.path(rel)), "rm -r %q", rel)
}

func removeAll(c *cephfs.MountInfo, p string) error {
	err := c.Unlink(p)
	if err == nil || ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if !ceph.Is(err, syscall.EISDIR, syscall.EPERM) {
		return err
	}
	d, err := c.OpenDir(p)
	if err != nil {
		return err
	}
	var names []string
	for {
		e, err := d.ReadDir()
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if n := e.Name(); n != "." && n != ".." {
			names = append(names, n)
		}
	}
	if err := d.Close(); err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(c, p+"/"+n); err != nil {
			return err
		}
	}
	return c.RemoveDir(p)
}

// Chmod sets the permission bits.
func (m Maker) Chmod(rel string, mode uint32) {
	m.t.Helper()
	m.there(func() error { return m.c.SetAttr(m.path(rel), ceph.Stat{Mode: mode}, ceph.SetMode) }, "chmod %q", rel)
}

// Chown sets the owner, of a symlink itself.
func (m Maker) Chown(rel string, uid, gid uint32) {
	m.t.Helper()
	m.there(func() error { return m.c.SetAttr(m.path(rel), ceph.Stat{UID: uid, GID: gid}, ceph.SetUID|ceph.SetGID) }, "chown %q", rel)
}

// Times sets the times, of a symlink itself.
func (m Maker) Times(rel string, atime, mtime Time) {
	m.t.Helper()
	st := ceph.Stat{Atime: ceph.Time(atime), Mtime: ceph.Time(mtime)}
	m.there(func() error { return m.c.SetAttr(m.path(rel), st, ceph.SetAtime|ceph.SetMtime) }, "utimes %q", rel)
}

// SetXattr sets an xattr.
func (m Maker) SetXattr(rel, name, value string) {
	m.t.Helper()
	m.must(m.c.LsetXattr(m.path(rel), name, []byte(value), 0), "set xattr %s of %q", name, rel)
}

// RemoveXattr removes an xattr.
func (m Maker) RemoveXattr(rel, name string) {
	m.t.Helper()
	m.must(m.c.LremoveXattr(m.path(rel), name), "remove xattr %s of %q", name, rel)
}

// Stat returns the attributes of a name.
func (m Maker) Stat(rel string) ceph.Stat {
	m.t.Helper()
	st, err := m.c.StatAt(m.path(rel), ceph.Synced)
	m.must(err, "stat %q", rel)
	return st
}

// Mtime returns when content changed last.
func (m Maker) Mtime(rel string) Time {
	m.t.Helper()
	return Time(m.Stat(rel).Mtime)
}

// Atime returns when content was read last.
func (m Maker) Atime(rel string) Time {
	m.t.Helper()
	return Time(m.Stat(rel).Atime)
}

// Snap makes a snapshot of the directory.
func (m Maker) Snap(name string) {
	m.t.Helper()
	m.must(m.c.MakeSnapshot(m.path(""), name, 0o755, nil), "make snapshot %q of %s", name, m.root)
}

// SnapDir makes a snapshot of a directory below.
func (m Maker) SnapDir(rel, name string) {
	m.t.Helper()
	m.must(m.c.MakeSnapshot(m.path(rel), name, 0o755, nil), "make snapshot %q of %s", name, m.path(rel))
}

// RemoveSnap removes a snapshot of the directory.
func (m Maker) RemoveSnap(name string) {
	m.t.Helper()
	m.must(m.c.RemoveSnapshot(m.path(""), name), "remove snapshot %q of %s", name, m.root)
}

// RenameSnap renames a snapshot of the directory.
func (m Maker) RenameSnap(from, to string) {
	m.t.Helper()
	m.must(m.c.Rename(m.path(".snap/"+from), m.path(".snap/"+to)), "rename snapshot %q to %q", from, to)
}

// RemoveSnapsAndAll removes a directory with all its own snapshots.
func (m Maker) RemoveSnapsAndAll(rel string) {
	m.t.Helper()
	d, err := m.c.OpenDir(m.path(rel + "/.snap"))
	if ceph.Is(err, syscall.ENOENT) {
		return
	}
	m.must(err, "list snapshots of %q", rel)
	var names []string
	for {
		e, err := d.ReadDir()
		m.must(err, "list snapshots of %q", rel)
		if e == nil {
			break
		}
		if n := e.Name(); n != "." && n != ".." && !strings.HasPrefix(n, "_") {
			names = append(names, n)
		}
	}
	m.must(d.Close(), "list snapshots of %q", rel)
	for _, n := range names {
		m.must(m.c.RemoveSnapshot(m.path(rel), n), "remove snapshot %q of %s", n, rel)
	}
	m.RemoveAll(rel)
}

// Data returns n bytes that look random and depend on seed alone.
func Data(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// ACL returns the value of system.posix_acl_access that grants a user rights
// beside the mode 0640.
func ACL(uid uint32, perm uint16) string {
	type entry struct {
		tag, perm uint16
		id        uint32
	}
	const none = 0xffffffff
	b := []byte{2, 0, 0, 0}
	for _, e := range []entry{{1, 6, none}, {2, perm, uid}, {4, 4, none}, {16, 6, none}, {32, 0, none}} {
		b = append(b, byte(e.tag), byte(e.tag>>8), byte(e.perm), byte(e.perm>>8),
			byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	return string(b)
}
