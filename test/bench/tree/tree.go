// Package tree fills, changes, snapshots and removes directory trees of a
// CephFS file system, as its administrator and without a kernel mount.
package tree

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"
	"golang.org/x/sync/errgroup"

	"cephmirror/internal/ceph"
)

// parallel is how many operations a whole-tree call has in flight.
const parallel = 16

// FS is a mounted file system.
type FS struct{ *cephfs.MountInfo }

// Option is an option of the client.
type Option struct{ Name, Value string }

// Mount mounts the default file system of the cluster that conf describes.
func Mount(conf string, options ...Option) (*FS, error) {
	m, err := cephfs.CreateMountWithId("admin")
	if err != nil {
		return nil, fmt.Errorf("creating a mount: %w", err)
	}
	fail := func(err error) (*FS, error) {
		return nil, errors.Join(fmt.Errorf("mounting with %s: %w", conf, err), m.Release())
	}
	if err := m.ReadConfigFile(conf); err != nil {
		return fail(err)
	}
	for _, o := range options {
		if err := m.SetConfigOption(o.Name, o.Value); err != nil {
			return fail(fmt.Errorf("option %s: %w", o.Name, err))
		}
	}
	if err := m.Mount(); err != nil {
		return fail(err)
	}
	return &FS{m}, nil
}

// Close unmounts; data not yet written is written first.
func (f *FS) Close() error { return errors.Join(f.Unmount(), f.Release()) }

// With mounts, calls use and unmounts, so that no capabilities stay behind.
func With(conf string, use func(*FS) error) error {
	f, err := Mount(conf)
	if err != nil {
		return err
	}
	return errors.Join(use(f), f.Close())
}

// Exists reports whether there is anything at path.
func (f *FS) Exists(path string) (bool, error) {
	_, err := f.Statx(path, cephfs.StatxIno, cephfs.AtSymlinkNofollow)
	if ceph.Is(err, syscall.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading attributes of %s: %w", path, err)
	}
	return true, nil
}

// Snapshot makes a snapshot of dir.
func (f *FS) Snapshot(dir, name string) error {
	if err := f.MakeDir(dir+"/.snap/"+name, 0o755); err != nil {
		return fmt.Errorf("making snapshot %s of %s: %w", name, dir, err)
	}
	return nil
}

// RemoveSnapshot removes a snapshot of dir.
func (f *FS) RemoveSnapshot(dir, name string) error {
	if err := f.RemoveDir(dir + "/.snap/" + name); err != nil {
		return fmt.Errorf("removing snapshot %s of %s: %w", name, dir, err)
	}
	return nil
}

// RemoveSnapshots removes all snapshots of dir itself. A missing directory has
// none.
func (f *FS) RemoveSnapshots(dir string) error {
	entries, err := f.list(dir + "/.snap")
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.name, "_") {
			continue // of a directory above
		}
		if err := f.RemoveSnapshot(dir, e.name); err != nil {
			return err
		}
	}
	return nil
}

type entry struct {
	name string
	dir  bool
}

func (f *FS) list(dir string) ([]entry, error) {
	d, err := f.OpenDir(dir)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", dir, err)
	}
	var out []entry
	for {
		e, err := d.ReadDir()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listing %s: %w", dir, err), d.Close())
		}
		if e == nil {
			return out, d.Close()
		}
		if n := e.Name(); n != "." && n != ".." {
			out = append(out, entry{n, e.DType() == cephfs.DTypeDir})
		}
	}
}

// RemoveAll removes dir with everything below it and all their snapshots.
// Nothing there is fine.
func (f *FS) RemoveAll(ctx context.Context, dir string) error {
	// Directories are listed before what is below them.
	dirs, files := []string{dir}, []string(nil)
	for i := 0; i < len(dirs); i++ {
		entries, err := f.list(dirs[i])
		if i == 0 && ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if path := dirs[i] + "/" + e.name; e.dir {
				dirs = append(dirs, path)
			} else {
				files = append(files, path)
			}
		}
	}
	if err := each(ctx, dirs, f.RemoveSnapshots); err != nil {
		return err
	}
	if err := each(ctx, files, f.Unlink); err != nil {
		return fmt.Errorf("removing the files of %s: %w", dir, err)
	}
	for _, d := range slices.Backward(dirs) {
		if err := f.RemoveDir(d); err != nil {
			return fmt.Errorf("removing %s: %w", d, err)
		}
	}
	return ctx.Err()
}

// each calls do for all paths, several at once.
func each(ctx context.Context, paths []string, do func(string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, p := range paths {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return do(p)
		})
	}
	return g.Wait()
}

// SnapshotEach makes a snapshot of each directory.
func (f *FS) SnapshotEach(ctx context.Context, dirs []string, name string) error {
	return each(ctx, dirs, func(dir string) error { return f.Snapshot(dir, name) })
}

// Random returns n bytes that cannot be compressed, the same for one seed.
func Random(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	out := make([]byte, n)
	rand.NewChaCha8(key).Read(out) // never fails
	return out
}

// Write writes data at offset of a file, which is made when it is missing.
func (f *FS) Write(path string, data []byte, offset int64) error {
	file, err := f.Open(path, syscall.O_WRONLY|syscall.O_CREAT, 0o644)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	for len(data) > 0 {
		n, err := file.WriteAt(data, offset)
		if err != nil {
			return errors.Join(fmt.Errorf("writing %s: %w", path, err), file.Close())
		}
		data, offset = data[n:], offset+int64(n)
	}
	return file.Close()
}

// WriteLarge makes a file of size random bytes.
func (f *FS) WriteLarge(ctx context.Context, path string, seed uint64, size int64) error {
	const piece = 4 << 20
	file, err := f.Open(path, syscall.O_WRONLY|syscall.O_CREAT, 0o644)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	for at := int64(0); at < size && err == nil; at += piece {
		data := Random(seed^uint64(at)<<8, int(min(piece, size-at)))
		if _, err = file.WriteAt(data, at); err == nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), file.Close())
	}
	return file.Close()
}

// Uniform is a tree of directories that hold files of one size.
type Uniform struct {
	Dir   string // of the whole tree
	Dirs  int
	Files int // in each directory
	Size  int // of each file, bytes
}

// Count is the number of files.
func (u Uniform) Count() int { return u.Dirs * u.Files }

// Subs returns the paths of all directories.
func (u Uniform) Subs() []string {
	out := make([]string, u.Dirs)
	for i := range out {
		out[i] = u.Sub(i)
	}
	return out
}

// Sub returns the path of directory i.
func (u Uniform) Sub(i int) string { return fmt.Sprintf("%s/d%03d", u.Dir, i) }

// Path returns the path of file i, counted through all directories.
func (u Uniform) Path(i int) string {
	return fmt.Sprintf("%s/f%05d", u.Sub(i/u.Files), i%u.Files)
}

// Fill makes the tree.
func (f *FS) Fill(ctx context.Context, u Uniform) error {
	if err := f.MakeDirs(u.Dir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", u.Dir, err)
	}
	err := each(ctx, u.Subs(), func(dir string) error { return f.MakeDir(dir, 0o755) })
	if err != nil {
		return fmt.Errorf("making the directories of %s: %w", u.Dir, err)
	}
	return f.Rewrite(ctx, u, 1, 0, 0)
}

// Rewrite writes every step-th file of the tree anew, beginning with first.
// The content depends on seed.
func (f *FS) Rewrite(ctx context.Context, u Uniform, step, first int, seed uint64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := first; i < u.Count(); i += step {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return f.Write(u.Path(i), Random(seed<<32|uint64(i), u.Size), 0)
		})
	}
	return g.Wait()
}
