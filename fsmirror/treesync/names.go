package treesync

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"

	"cephmirror/internal/ceph"
	"cephmirror/snapdiff"
)

// name makes one name of a directory equal; directories themselves are made
// when they are visited.
func (r *run) name(t task) error {
	if err := r.Gate(r.ctx); err != nil {
		return err
	}
	path := r.Root + t.rel()
	switch {
	case t.c.New == nil:
		if err := r.removeAny(path); err != nil {
			return err
		}
		return r.done(t)
	case t.c.Old != nil && !t.c.Replaced:
		return r.update(t, path)
	}
	if t.c.New.Nlink > 1 && !t.first {
		parked, err := r.linked(t, path)
		if parked || err != nil {
			return err
		}
	}
	if t.c.Replaced {
		if err := r.removeAny(path); err != nil {
			return err
		}
	}
	return r.create(t, path)
}

// done counts a name as made equal.
func (r *run) done(t task) error {
	r.Progress.FilesDone.Add(1)
	return r.finished(t.n)
}

// linked makes a name of an inode that has further names. parked is true when
// it was made, or waits until the inode has a name on the target; false when
// the caller is to make the inode.
func (r *run) linked(t task, path string) (parked bool, err error) {
	r.mu.Lock()
	l := r.linkOf(t.c.New.Ino)
	if l.path == "" {
		defer r.mu.Unlock()
		// On an empty target no unchanged name can turn up later.
		if r.blank && !l.claimed {
			l.claimed = true
			return false, nil
		}
		l.waiting = append(l.waiting, t)
		r.parked++
		return true, nil
	}
	existing := l.path
	r.mu.Unlock()
	if existing == path {
		return true, r.done(t)
	}
	if err := r.removeAny(path); err != nil {
		return true, err
	}
	r.Progress.Writes.Add(1)
	if err := r.Target.Link(existing, path); err != nil {
		return true, fmt.Errorf("linking %s to %s on the peer: %w", path, existing, err)
	}
	if t.c.New.IsRegular() && t.c.Data != snapdiff.Equal {
		r.Progress.BytesDone.Add(int64(t.c.New.Size))
	}
	return true, r.done(t)
}

// create makes a name that is not there, on the target.
func (r *run) create(t task, path string) error {
	st := t.c.New
	switch st.Type() {
	case syscall.S_IFREG:
		return r.copyNew(t, path)
	case syscall.S_IFLNK:
		return r.symlink(t, path)
	case syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK:
		node := func() error { return r.Target.MakeNode(path, st.Mode, st.Rdev) }
		if err := r.making(path, node); err != nil {
			return err
		}
		return r.attrsAndDone(t, path)
	}
	return fmt.Errorf("%s has unknown file type %#o", r.Snapshot+t.rel(), st.Type())
}

// making runs try, which creates path, once more when something left by an
// interrupted run is in its way.
func (r *run) making(path string, try func() error) error {
	r.Progress.Writes.Add(1)
	err := try()
	if ceph.Is(err, syscall.EEXIST) {
		if err := r.removeAny(path); err != nil {
			return err
		}
		err = try()
	}
	if err != nil {
		return fmt.Errorf("making %s on the peer: %w", path, err)
	}
	return nil
}

func (r *run) symlink(t task, path string) error {
	to, err := readlink(r.Source, r.Snapshot+t.rel())
	if err != nil {
		return err
	}
	if err := r.making(path, func() error { return r.Target.Symlink(to, path) }); err != nil {
		return err
	}
	return r.attrsAndDone(t, path)
}

func readlink(m *ceph.Mount, path string) (string, error) {
	to, err := m.Readlink(path)
	if err != nil {
		return "", fmt.Errorf("reading symlink %s: %w", path, err)
	}
	return to, nil
}

// attrsAndDone ends the making of a name that holds no data.
func (r *run) attrsAndDone(t task, path string) error {
	if err := r.xattrs(t.rel(), t.was(), r.howFor(t), t.c.Old != nil && !t.c.Replaced); err != nil {
		return err
	}
	if !r.sameAttrs(t) {
		if err := r.setAttrs(path, t.c.New); err != nil {
			return err
		}
	}
	if t.c.New.Nlink > 1 {
		r.settle(t.c.New.Ino, path)
	}
	return r.done(t)
}

// sameAttrs tells whether the name on the target has the attributes already.
// Only a comparison with the target itself can tell.
func (r *run) sameAttrs(t task) bool {
	old, new := t.c.Old, t.c.New
	return old != nil && !t.c.Replaced && r.howFor(t) == byTarget && old.Mode == new.Mode &&
		old.UID == new.UID && old.GID == new.GID && old.Mtime == new.Mtime && old.Atime == new.Atime
}

func (r *run) setAttrs(path string, st *ceph.Stat) error {
	mask := ceph.SetUID | ceph.SetGID | ceph.SetMtime | ceph.SetAtime
	if st.Type() != syscall.S_IFLNK {
		mask |= ceph.SetMode
	}
	r.Progress.Writes.Add(1)
	if err := r.Target.SetAttr(path, *st, mask); err != nil {
		return fmt.Errorf("setting attributes of %s on the peer: %w", path, err)
	}
	return nil
}

func (r *run) howFor(t task) how {
	if t.c.Old == nil || t.c.Replaced {
		return fresh
	}
	if t.n.how == byDiff && r.Previous == "" {
		return byTarget
	}
	return t.n.how
}

// update makes a name equal that is the same inode as before (or, compared
// with the target, of the same type).
func (r *run) update(t task, path string) error {
	if t.c.New.Nlink > 1 {
		if handled, err := r.updateLinked(t, path); handled || err != nil {
			return err
		}
	}
	switch t.c.New.Type() {
	case syscall.S_IFREG:
		return r.updateFile(t, path)
	case syscall.S_IFLNK:
		if r.howFor(t) == byTarget {
			want, err := readlink(r.Source, r.Snapshot+t.rel())
			if err != nil {
				return err
			}
			got, err := readlink(r.Target, path)
			if err != nil {
				return err
			}
			if want != got {
				if err := r.removeAny(path); err != nil {
					return err
				}
				t.c.Old = nil
				r.touch(t.n)
				return r.symlink(t, path)
			}
		}
	}
	return r.attrsAndDone(t, path)
}

// updateLinked handles further names of an inode whose first name was already
// handled.
func (r *run) updateLinked(t task, path string) (handled bool, err error) {
	ino, old := t.c.New.Ino, t.c.Old.Ino
	byTarget := r.howFor(t) == byTarget
	r.mu.Lock()
	l := r.linkOf(ino)
	if !byTarget {
		// Names of one inode on the source are names of one on the target.
		first := !l.claimed
		l.claimed = true
		r.mu.Unlock()
		if first {
			return false, nil
		}
		r.settle(ino, path)
		r.skipBytes(t)
		return true, r.done(t)
	}
	owner, taken := r.owner[old]
	switch {
	case !l.claimed && !taken:
		l.claimed = true
		r.owner[old] = ino
		r.mu.Unlock()
		return false, nil
	case taken && owner == ino:
		r.mu.Unlock()
		r.settle(ino, path)
		r.skipBytes(t)
		return true, r.done(t)
	}
	r.mu.Unlock()
	// The name is a link to some other file on the target.
	if err := r.removeAny(path); err != nil {
		return true, err
	}
	r.mu.Lock()
	t.n.touched = true
	t.c.Old = nil
	r.ready = append(r.ready, t)
	r.cond.Broadcast()
	r.mu.Unlock()
	return true, nil
}

func (r *run) skipBytes(t task) {
	if t.c.New.IsRegular() && t.c.Data != snapdiff.Equal {
		r.Progress.BytesDone.Add(int64(t.c.New.Size))
	}
}

// xattrs makes the xattrs of rel equal. They are compared with the previous
// snapshot, where it was called was, or with the target, as how says; existing is
// false for a new inode.
func (r *run) xattrs(rel, was string, h how, existing bool) error {
	source := r.Snapshot + rel
	want, err := readXattrs(r.Source, source)
	if err != nil {
		return err
	}
	path := r.Root + rel
	var have map[string][]byte
	if existing && h != fresh {
		m, from := r.Target, path
		if h == byDiff && r.Previous != "" {
			m, from = r.Source, r.Previous+was
		}
		if have, err = readXattrs(m, from); err != nil {
			return err
		}
	}
	for name, value := range want {
		if old, ok := have[name]; ok && bytes.Equal(old, value) {
			continue
		}
		r.Progress.Writes.Add(1)
		if err := r.Target.LsetXattr(path, name, value, 0); err != nil {
			return fmt.Errorf("setting xattr %s of %s on the peer: %w", name, path, err)
		}
	}
	for name := range have {
		if _, ok := want[name]; ok || rel == "" && r.OwnXattrs[name] {
			continue
		}
		r.Progress.Writes.Add(1)
		err := r.Target.LremoveXattr(path, name)
		if err != nil && !ceph.Is(err, syscall.ENODATA) {
			return fmt.Errorf("removing xattr %s of %s on the peer: %w", name, path, err)
		}
	}
	return nil
}

// readXattrs returns the xattrs that are stored with an inode. Virtual ones,
// layouts and quotas among them, belong to the cluster and are left out.
func readXattrs(m *ceph.Mount, path string) (map[string][]byte, error) {
	names, err := m.LlistXattr(path)
	if err != nil {
		return nil, fmt.Errorf("listing xattrs of %s: %w", path, err)
	}
	if len(names) == 0 {
		return nil, nil
	}
	out := make(map[string][]byte, len(names))
	for _, name := range names {
		if strings.HasPrefix(name, "ceph.") {
			continue
		}
		value, err := m.LgetXattr(path, name)
		if ceph.Is(err, syscall.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading xattr %s of %s: %w", name, path, err)
		}
		out[name] = value
	}
	return out, nil
}

// openFlags of files on the target: written only, never truncated on opening,
// because what is right in them is kept.
const writeFlags = syscall.O_WRONLY | syscall.O_NOFOLLOW

func openSource(m *ceph.Mount, path string) (*cephfs.File, error) {
	f, err := m.Open(path, syscall.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return f, nil
}
