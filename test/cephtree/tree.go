// Package cephtree makes directory trees on CephFS and compares them, for
// tests. The comparison shares no code with the mirror: it reads each tree name
// by name, with plain calls, all content included.
package cephtree

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Time is a point in time of an inode.
type Time struct {
	Sec  int64
	Nsec int64
}

// Entry is one name of a tree with all that a mirror has to carry of it.
type Entry struct {
	Type   string // "dir", "file", "symlink", "fifo", "socket", "char", "block"
	Mode   uint32 // permission bits, setuid and so on
	UID    uint32
	GID    uint32
	Size   uint64 // of files and symlinks
	Mtime  Time
	Atime  Time
	Rdev   uint64
	Target string // of a symlink
	Sum    string // sha256 of a file's content, hexadecimal
	Xattrs map[string]string
	// Link is the first name, in byte order, of the same inode within the
	// tree. It is empty for an inode with one name in the tree.
	Link string
	Ino  uint64 // not compared
}

// Tree is a directory tree by path; the root is "".
type Tree map[string]Entry

// Difference is one fact in which two trees differ.
type Difference struct {
	Path string
	What string // name of the attribute, or "name"
	Want string
	Got  string
}

func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: want %s, got %s", "/"+strings.TrimPrefix(d.Path, "/"), d.What, d.Want, d.Got)
}

// Diff compares two trees and returns how got differs from want, in the order
// of paths.
func Diff(want, got Tree) []Difference {
	paths := slices.Collect(maps.Keys(want))
	for p := range got {
		if _, ok := want[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	var out []Difference
	for _, p := range paths {
		w, inWant := want[p]
		g, inGot := got[p]
		switch {
		case !inGot:
			out = append(out, Difference{p, "name", w.Type, "nothing"})
		case !inWant:
			out = append(out, Difference{p, "name", "nothing", g.Type})
		default:
			out = append(out, w.diff(p, g)...)
		}
	}
	return out
}

func (w Entry) diff(path string, g Entry) (out []Difference) {
	add := func(what, want, got string) {
		if want != got {
			out = append(out, Difference{path, what, want, got})
		}
	}
	add("type", w.Type, g.Type)
	if w.Type != g.Type {
		return out
	}
	add("mode", fmt.Sprintf("%#o", w.Mode), fmt.Sprintf("%#o", g.Mode))
	add("uid", fmt.Sprint(w.UID), fmt.Sprint(g.UID))
	add("gid", fmt.Sprint(w.GID), fmt.Sprint(g.GID))
	add("size", fmt.Sprint(w.Size), fmt.Sprint(g.Size))
	add("content", w.Sum, g.Sum)
	add("mtime", w.Mtime.String(), g.Mtime.String())
	add("atime", w.Atime.String(), g.Atime.String())
	add("device", fmt.Sprint(w.Rdev), fmt.Sprint(g.Rdev))
	add("symlink target", fmt.Sprintf("%q", w.Target), fmt.Sprintf("%q", g.Target))
	add("hard link", fmt.Sprintf("%q", w.Link), fmt.Sprintf("%q", g.Link))
	for _, name := range slices.Sorted(maps.Keys(w.Xattrs)) {
		got, ok := g.Xattrs[name]
		if !ok {
			add("xattr "+name, fmt.Sprintf("%q", w.Xattrs[name]), "none")
			continue
		}
		add("xattr "+name, fmt.Sprintf("%q", w.Xattrs[name]), fmt.Sprintf("%q", got))
	}
	for _, name := range slices.Sorted(maps.Keys(g.Xattrs)) {
		if _, ok := w.Xattrs[name]; !ok {
			add("xattr "+name, "none", fmt.Sprintf("%q", g.Xattrs[name]))
		}
	}
	return out
}

func (t Time) String() string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// Report renders differences for a person, the first limit of them.
func Report(diffs []Difference, limit int) string {
	var b strings.Builder
	for i, d := range diffs {
		if i == limit {
			fmt.Fprintf(&b, "... and %d more\n", len(diffs)-limit)
			break
		}
		fmt.Fprintln(&b, d)
	}
	return b.String()
}

// group fills in Link: names of one inode belong together.
func (t Tree) group() {
	byIno := make(map[uint64][]string)
	for p, e := range t {
		if e.Type != "dir" {
			byIno[e.Ino] = append(byIno[e.Ino], p)
		}
	}
	for _, names := range byIno {
		if len(names) < 2 {
			continue
		}
		first := slices.Min(names)
		for _, n := range names {
			e := t[n]
			e.Link = first
			t[n] = e
		}
	}
}
