// Package treemodel is a model of a directory tree in memory: what a file
// system should hold after a series of operations. It links nothing of Ceph.
package treemodel

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// Kind is the type of an inode.
type Kind int

// Kinds of inodes.
const (
	Dir Kind = iota
	File
	Symlink
	Fifo
	Socket
	Char
)

// Time is a point in time.
type Time struct{ Sec, Nsec int64 }

// Inode is what one or several names stand for.
type Inode struct {
	Kind     Kind
	Mode     uint32
	UID, GID uint32
	Data     []byte // of a file
	Target   string // of a symlink
	Rdev     uint64
	Xattrs   map[string]string
	Mtime    *Time // nil: not known, because an operation set it to "now"
	children map[string]*Inode
}

// Tree is a directory tree. The root's path is "".
type Tree struct{ root *Inode }

// New returns an empty tree.
func New() *Tree { return &Tree{&Inode{Kind: Dir, Mode: 0o755, children: map[string]*Inode{}}} }

// Get returns the inode at p, nil if there is none.
func (t *Tree) Get(p string) *Inode {
	n := t.root
	for _, name := range strings.FieldsFunc(p, func(r rune) bool { return r == '/' }) {
		if n = n.children[name]; n == nil {
			return nil
		}
	}
	return n
}

func (t *Tree) parent(p string) *Inode { return t.Get(path.Dir("/" + p)) }

// Paths returns the paths of all inodes for which ok holds, in byte order. The
// root is not among them.
func (t *Tree) Paths(ok func(*Inode) bool) []string {
	var out []string
	var walk func(string, *Inode)
	walk = func(p string, n *Inode) {
		for name, c := range n.children {
			if ok(c) {
				out = append(out, join(p, name))
			}
			if c.Kind == Dir {
				walk(join(p, name), c)
			}
		}
	}
	walk("", t.root)
	slices.Sort(out)
	return out
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Clone returns a copy that later operations do not touch.
func (t *Tree) Clone() *Tree {
	copies := make(map[*Inode]*Inode)
	var clone func(*Inode) *Inode
	clone = func(n *Inode) *Inode {
		if c, ok := copies[n]; ok {
			return c
		}
		c := *n
		c.Data, c.Xattrs = slices.Clone(n.Data), maps.Clone(n.Xattrs)
		if n.Mtime != nil {
			mt := *n.Mtime
			c.Mtime = &mt
		}
		copies[n] = &c
		if n.children != nil {
			c.children = make(map[string]*Inode, len(n.children))
			for name, child := range n.children {
				c.children[name] = clone(child)
			}
		}
		return &c
	}
	return &Tree{clone(t.root)}
}

// Add gives n the name p, whose directory exists.
func (t *Tree) Add(p string, n *Inode) {
	if n.Kind == Dir && n.children == nil {
		n.children = map[string]*Inode{}
	}
	dir := t.parent(p)
	dir.children[path.Base(p)] = n
	dir.Mtime = nil
}

// Remove takes the name p away, with all below it.
func (t *Tree) Remove(p string) {
	dir := t.parent(p)
	delete(dir.children, path.Base(p))
	dir.Mtime = nil
}

// Rename moves what has the name from to the name to.
func (t *Tree) Rename(from, to string) {
	n := t.Get(from)
	t.Remove(from)
	t.Add(to, n)
}

// CanRename tells whether a file system allows a rename. Between two names of
// one inode it does nothing, and not all clients of CephFS get that right.
func (t *Tree) CanRename(from, to string) bool {
	if from == to || strings.HasPrefix(to+"/", from+"/") || strings.HasPrefix(from+"/", to+"/") {
		return false
	}
	n, old := t.Get(from), t.Get(to)
	switch {
	case n == nil || t.parent(to) == nil || t.parent(to).Kind != Dir:
		return false
	case old == nil:
		return true
	case old == n:
		return false
	case n.Kind == Dir:
		return old.Kind == Dir && len(old.children) == 0
	}
	return old.Kind != Dir
}

// WriteAt writes data into the file n.
func (n *Inode) WriteAt(data []byte, offset int) {
	n.Mtime = nil
	if end := offset + len(data); end > len(n.Data) {
		n.Data = append(n.Data, make([]byte, end-len(n.Data))...)
	}
	copy(n.Data[offset:], data)
}

// Truncate sets the size of the file n.
func (n *Inode) Truncate(size int) {
	n.Mtime = nil
	if size <= len(n.Data) {
		n.Data = n.Data[:size:size]
		return
	}
	n.Data = append(n.Data, make([]byte, size-len(n.Data))...)
}

// Punch makes a hole in the file n.
func (n *Inode) Punch(offset, length int) {
	n.Mtime = nil
	end := min(offset+length, len(n.Data))
	if offset < end {
		clear(n.Data[offset:end])
	}
}

// SetXattr sets an xattr.
func (n *Inode) SetXattr(name, value string) {
	if n.Xattrs == nil {
		n.Xattrs = map[string]string{}
	}
	n.Xattrs[name] = value
}

// Links returns, for each name, the first name of the same inode; names whose
// inode has no other are left out.
func (t *Tree) Links() map[string]string {
	names := make(map[*Inode][]string)
	for _, p := range t.Paths(func(n *Inode) bool { return n.Kind != Dir }) {
		n := t.Get(p)
		names[n] = append(names[n], p)
	}
	out := make(map[string]string)
	for _, ps := range names {
		if len(ps) > 1 {
			for _, p := range ps {
				out[p] = ps[0]
			}
		}
	}
	return out
}
