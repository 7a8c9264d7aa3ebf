package cephtree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"
	"golang.org/x/sync/errgroup"
)

// readers is how many directories and files are read at once.
const readers = 8

// ownXattrs are xattrs of a mirrored tree's root that belong to the mirror.
func ownXattrs() []string { return []string{"trusted.cephmirror.state"} }

// Scan reads the tree at root, all content included.
func Scan(ctx context.Context, m *cephfs.MountInfo, root string) (Tree, error) {
	s := &scanner{m: m, root: strings.TrimSuffix(root, "/"), tree: make(Tree)}
	g, ctx := errgroup.WithContext(ctx)
	// Directories first, one after the other, then all entries in parallel:
	// simple, and quick enough for a test.
	g.SetLimit(readers)
	dirs := []string{""}
	for len(dirs) > 0 {
		rel := dirs[0]
		dirs = dirs[1:]
		names, err := s.names(ctx, rel)
		if err != nil {
			return nil, errors.Join(err, g.Wait())
		}
		for _, n := range names {
			if n.dir {
				dirs = append(dirs, rel+"/"+n.name)
			}
			g.Go(func() error { return s.entry(ctx, rel+"/"+n.name) })
		}
	}
	g.Go(func() error { return s.entry(ctx, "") })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	s.tree.group()
	root1 := s.tree[""]
	for _, n := range ownXattrs() {
		delete(root1.Xattrs, n)
	}
	return s.tree, nil
}

type scanner struct {
	m    *cephfs.MountInfo
	root string

	mu   sync.Mutex
	tree Tree
}

type name struct {
	name string
	dir  bool
}

func (s *scanner) names(ctx context.Context, rel string) (out []name, err error) {
	d, err := s.m.OpenDir(s.root + rel)
	if err != nil {
		return nil, fmt.Errorf("opening directory %q: %w", s.root+rel, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := d.ReadDir()
		if err != nil {
			return nil, fmt.Errorf("reading directory %q: %w", s.root+rel, err)
		}
		if e == nil {
			return out, nil
		}
		if n := e.Name(); n != "." && n != ".." {
			out = append(out, name{n, e.DType() == cephfs.DTypeDir})
		}
	}
}

// entry reads one name.
func (s *scanner) entry(ctx context.Context, rel string) error {
	path := s.root + rel
	st, err := s.m.Statx(path, cephfs.StatxAllStats, cephfs.AtSymlinkNofollow)
	if err != nil {
		return fmt.Errorf("reading attributes of %q: %w", path, err)
	}
	e := Entry{
		Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, GID: st.Gid, Ino: uint64(st.Inode),
		Mtime: Time{st.Mtime.Sec, st.Mtime.Nsec}, Atime: Time{st.Atime.Sec, st.Atime.Nsec},
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		e.Type = "dir"
	case syscall.S_IFREG:
		e.Type, e.Size = "file", st.Size
		if e.Sum, err = s.sum(ctx, path, st.Size); err != nil {
			return err
		}
	case syscall.S_IFLNK:
		e.Type, e.Size = "symlink", st.Size
		if e.Target, err = s.m.Readlink(path); err != nil {
			return fmt.Errorf("reading symlink %q: %w", path, err)
		}
	case syscall.S_IFIFO:
		e.Type = "fifo"
	case syscall.S_IFSOCK:
		e.Type = "socket"
	case syscall.S_IFCHR:
		e.Type, e.Rdev = "char", st.Rdev
	case syscall.S_IFBLK:
		e.Type, e.Rdev = "block", st.Rdev
	default:
		return fmt.Errorf("%q has unknown type %#o", path, st.Mode)
	}
	names, err := s.m.LlistXattr(path)
	if err != nil {
		return fmt.Errorf("listing xattrs of %q: %w", path, err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "ceph.") {
			continue
		}
		v, err := s.m.LgetXattr(path, n)
		if err != nil {
			return fmt.Errorf("reading xattr %s of %q: %w", n, path, err)
		}
		if e.Xattrs == nil {
			e.Xattrs = make(map[string]string)
		}
		e.Xattrs[n] = string(v)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tree[rel] = e
	return nil
}

// sum reads a file to its end, which must be where its size says.
func (s *scanner) sum(ctx context.Context, path string, size uint64) (sum string, err error) {
	f, err := s.m.Open(path, syscall.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", fmt.Errorf("opening %q: %w", path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	buf := make([]byte, min(size+1, 4<<20))
	var at uint64
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.ReadAt(buf, int64(at))
		h.Write(buf[:n])
		at += uint64(n)
		if err == io.EOF || err == nil && n == 0 {
			break
		}
		if err != nil {
			return "", fmt.Errorf("reading %q at %d: %w", path, at, err)
		}
	}
	if at != size {
		return fmt.Sprintf("%d bytes only", at), nil
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Compare reads the trees at two places and returns how got differs from want.
func Compare(ctx context.Context, want *cephfs.MountInfo, wantRoot string, got *cephfs.MountInfo, gotRoot string) ([]Difference, error) {
	var w, g Tree
	var group errgroup.Group
	group.Go(func() (err error) { w, err = Scan(ctx, want, wantRoot); return err })
	group.Go(func() (err error) { g, err = Scan(ctx, got, gotRoot); return err })
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return Diff(w, g), nil
}
