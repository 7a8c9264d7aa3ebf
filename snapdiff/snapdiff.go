// Package snapdiff finds what differs, directory by directory, between a
// snapshot and an earlier state of the same tree.
//
// The MDS offers a snapshot difference of its own, but it omits renamed
// directories' content, attribute-only changes, changes through hard links,
// truncations and writes that restore the modification time. So the truth here
// is a comparison of the attributes of every entry, read in bulk. What it
// cannot decide, namely whether the content of a file changed when only its
// change time moved, it reports as Suspect, never as equal.
package snapdiff

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"cephmirror/internal/ceph"
)

// Lister lists a directory with the attributes of its entries.
type Lister interface {
	List(path string, sync ceph.Sync, fn func(ceph.Entry) error) error
}

// Evidence says what the attributes tell of the content of a file.
type Evidence int

const (
	// Equal: the content cannot have changed.
	Equal Evidence = iota
	// Suspect: the content may have changed although size and modification
	// time are equal.
	Suspect
	// Differs: size or modification time differ, or the file is new.
	Differs
)

// Change is one name whose inode differs between the two states.
type Change struct {
	Name string
	Old  *ceph.Stat // nil: the name was not there
	New  *ceph.Stat // nil: the name is gone
	// Replaced: both are set, but they are different inodes or types: the old
	// one is to be removed, the new one made anew.
	Replaced bool
	// Data tells what is known of a regular file's content when Old and New
	// are the same inode.
	Data Evidence
}

// Subdir is a directory to descend into.
type Subdir struct {
	Name string
	Stat ceph.Stat
	// Fresh: the earlier state has no such directory, everything below is new.
	Fresh bool
}

// Directory is what differs in one directory.
type Directory struct {
	Changes []Change // in the order of the newer directory, removals first
	Subdirs []Subdir // every directory of the newer state, changed or not
	// Linked are unchanged names whose inode has further names: a new name of
	// such an inode is to become a hard link to one of them.
	Linked []ceph.Entry
	Files  int    // entries of the newer state that are no directories
	Bytes  uint64 // size of the regular files among them
}

// Differ compares a directory of the newer state with an earlier one.
type Differ interface {
	// Dir compares the directory at rel, a path below the root that is empty
	// or begins with a slash, with the one that was at old. With fresh set
	// there is no earlier state.
	Dir(ctx context.Context, rel, old string, fresh bool) (*Directory, error)
}

// Snapshots compares two snapshots of one tree.
type Snapshots struct {
	Source   Lister
	Old, New string // paths of the snapshots, older first
}

// Dir implements Differ.
func (d Snapshots) Dir(ctx context.Context, rel, old string, fresh bool) (*Directory, error) {
	return compare(ctx, d.Source, d.New+rel, d.Source, d.Old+old, fresh, snapshotPair)
}

// snapshotPair judges one name in two snapshots of a tree. Within one file
// system the inode number tells identity, and neither change time nor change
// attribute can be set by a user.
func snapshotPair(old, new *ceph.Stat) (replaced, differs bool, data Evidence) {
	if old.Ino != new.Ino || old.Type() != new.Type() {
		return true, true, Differs
	}
	switch {
	case new.IsRegular() && (old.Size != new.Size || old.Mtime != new.Mtime):
		return false, true, Differs
	case old.Ctime != new.Ctime || old.Version != new.Version,
		old.Mode != new.Mode, old.UID != new.UID, old.GID != new.GID,
		old.Nlink != new.Nlink && !new.IsDir(),
		old.Mtime != new.Mtime, old.Atime != new.Atime:
		return false, true, Suspect
	}
	return false, false, Equal
}

// Target compares a snapshot with the live tree on the peer, of which nothing
// is known but what it shows.
type Target struct {
	Source Lister
	New    string // path of the snapshot
	Peer   Lister
	Old    string // path of the tree on the peer
	// Trust tells whether the content of a file on the peer is as good as its
	// size and modification time say.
	Trust func(source, target *ceph.Stat) bool
	// Deep reports every entry that both have, because what the listing does
	// not show (xattrs, where symlinks point) is to be compared too.
	Deep bool
}

// Dir implements Differ.
func (d Target) Dir(ctx context.Context, rel, old string, fresh bool) (*Directory, error) {
	return compare(ctx, d.Source, d.New+rel, d.Peer, d.Old+old, fresh, d.pair)
}

// pair judges one name in a snapshot and on the peer, where inode numbers and
// change times are others.
func (d Target) pair(old, new *ceph.Stat) (replaced, differs bool, data Evidence) {
	device := new.Type() == syscall.S_IFCHR || new.Type() == syscall.S_IFBLK
	switch {
	case old.Type() != new.Type(), device && old.Rdev != new.Rdev:
		return true, true, Differs
	// A link to some other file must not be written through.
	case !new.IsDir() && old.Nlink > 1 && new.Nlink == 1:
		return true, true, Differs
	case new.IsRegular() && (old.Size != new.Size || old.Mtime != new.Mtime):
		return false, true, Differs
	case new.IsRegular() && !d.Trust(new, old):
		return false, true, Suspect
	}
	// How the names of an inode belong together is for the caller to compare.
	linked := !new.IsDir() && new.Nlink > 1
	attributes := old.Mode != new.Mode || old.UID != new.UID || old.GID != new.GID ||
		old.Mtime != new.Mtime || old.Atime != new.Atime
	if new.IsRegular() {
		return false, d.Deep || attributes || linked, Equal
	}
	size := new.Type() == syscall.S_IFLNK && old.Size != new.Size
	return false, d.Deep || attributes || linked || size, Suspect
}

type judge func(old, new *ceph.Stat) (replaced, differs bool, data Evidence)

func compare(ctx context.Context, source Lister, newPath string, earlier Lister, oldPath string,
	fresh bool, pair judge) (*Directory, error) {
	var was map[string]ceph.Stat
	if !fresh {
		was = make(map[string]ceph.Stat)
		err := earlier.List(oldPath, ceph.Cached, func(e ceph.Entry) error {
			was[e.Name] = e.Stat
			return ctx.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", oldPath, err)
		}
	}
	out := &Directory{}
	err := source.List(newPath, ceph.Synced, func(e ceph.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		st := e.Stat
		old, there := was[e.Name]
		delete(was, e.Name)
		change := Change{Name: e.Name, New: &st, Data: Differs}
		differs := true
		if there {
			change.Old = &old
			change.Replaced, differs, change.Data = pair(&old, &st)
		}
		if st.IsDir() {
			out.Subdirs = append(out.Subdirs, Subdir{e.Name, st, !there || change.Replaced})
		} else {
			out.Files++
			if st.IsRegular() {
				out.Bytes += st.Size
			}
		}
		switch {
		case differs:
			out.Changes = append(out.Changes, change)
		case st.Nlink > 1 && !st.IsDir():
			out.Linked = append(out.Linked, e)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", newPath, err)
	}
	if len(was) > 0 {
		gone := make([]Change, 0, len(was)+len(out.Changes))
		for name, st := range was {
			gone = append(gone, Change{Name: name, Old: &st})
		}
		slices.SortFunc(gone, func(a, b Change) int { return strings.Compare(a.Name, b.Name) })
		out.Changes = append(gone, out.Changes...)
	}
	return out, nil
}
