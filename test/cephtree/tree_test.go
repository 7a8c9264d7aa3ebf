package cephtree

import (
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	base := func() Tree {
		return Tree{
			"":   {Type: "dir", Mode: 0o755, Ino: 1},
			"/f": {Type: "file", Mode: 0o644, Size: 3, Sum: "aa", Mtime: Time{1, 2}, Atime: Time{3, 4}, Ino: 2, Xattrs: map[string]string{"user.a": "b"}},
			"/l": {Type: "symlink", Target: "x", Ino: 3},
			"/b": {Type: "block", Rdev: 8, Ino: 4},
		}
	}
	for name, tc := range map[string]struct {
		change func(Tree, *Entry) // of /f
		want   string
	}{
		"nothing":       {func(Tree, *Entry) {}, ""},
		"mode":          {func(_ Tree, e *Entry) { e.Mode = 0o600 }, `"/f": mode: want 0644, got 0600`},
		"uid":           {func(_ Tree, e *Entry) { e.UID = 1 }, `"/f": uid: want 0, got 1`},
		"gid":           {func(_ Tree, e *Entry) { e.GID = 1 }, `"/f": gid: want 0, got 1`},
		"size":          {func(_ Tree, e *Entry) { e.Size = 4 }, `"/f": size: want 3, got 4`},
		"content":       {func(_ Tree, e *Entry) { e.Sum = "bb" }, `"/f": content: want aa, got bb`},
		"mtime":         {func(_ Tree, e *Entry) { e.Mtime.Nsec++ }, `"/f": mtime: want 1.000000002, got 1.000000003`},
		"atime":         {func(_ Tree, e *Entry) { e.Atime.Nsec++ }, `"/f": atime: want 3.000000004, got 3.000000005`},
		"xattr changed": {func(_ Tree, e *Entry) { e.Xattrs = map[string]string{"user.a": "c"} }, `"/f": xattr user.a: want "b", got "c"`},
		"xattr lost":    {func(_ Tree, e *Entry) { e.Xattrs = nil }, `"/f": xattr user.a: want "b", got none`},
		"xattr extra":   {func(_ Tree, e *Entry) { e.Xattrs = map[string]string{"user.a": "b", "user.c": ""} }, `"/f": xattr user.c: want none, got ""`},
		"type":          {func(_ Tree, e *Entry) { e.Type = "fifo" }, `"/f": type: want file, got fifo`},
		"extra name":    {func(t Tree, _ *Entry) { t["/g"] = Entry{Type: "dir"} }, `"/g": name: want nothing, got dir`},
		"lost name":     {func(t Tree, _ *Entry) { delete(t, "/l") }, `"/l": name: want symlink, got nothing`},
		"symlink":       {func(t Tree, _ *Entry) { t["/l"] = Entry{Type: "symlink", Target: "y"} }, `"/l": symlink target: want "x", got "y"`},
		"device":        {func(t Tree, _ *Entry) { t["/b"] = Entry{Type: "block", Rdev: 9} }, `"/b": device: want 8, got 9`},
	} {
		t.Run(name, func(t *testing.T) {
			got := base()
			e := got["/f"]
			tc.change(got, &e)
			if _, ok := got["/f"]; ok {
				got["/f"] = e
			}
			report := strings.TrimSpace(Report(Diff(base(), got), 10))
			if report != tc.want {
				t.Errorf("got %q, want %q", report, tc.want)
			}
		})
	}
}

func TestHardLinksAreGrouped(t *testing.T) {
	linked := Tree{"": {Type: "dir", Ino: 1}, "/a": {Type: "file", Ino: 5}, "/b": {Type: "file", Ino: 5}, "/c": {Type: "file", Ino: 6}}
	split := Tree{"": {Type: "dir", Ino: 1}, "/a": {Type: "file", Ino: 7}, "/b": {Type: "file", Ino: 8}, "/c": {Type: "file", Ino: 9}}
	other := Tree{"": {Type: "dir", Ino: 1}, "/a": {Type: "file", Ino: 70}, "/b": {Type: "file", Ino: 70}, "/c": {Type: "file", Ino: 9}}
	for _, tree := range []Tree{linked, split, other} {
		tree.group()
	}
	if d := Diff(linked, split); len(d) != 2 {
		t.Errorf("a split hard link gives %v", d)
	}
	if d := Diff(linked, other); len(d) != 0 {
		t.Errorf("other inode numbers give %v", d)
	}
}
