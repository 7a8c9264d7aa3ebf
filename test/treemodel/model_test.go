package treemodel

import (
	"slices"
	"testing"
)

func TestTree(t *testing.T) {
	m := New()
	m.Add("d", &Inode{Kind: Dir})
	m.Add("d/f", &Inode{Kind: File})
	m.Get("d/f").WriteAt([]byte("abc"), 2)
	m.Add("g", m.Get("d/f"))
	before := m.Clone()
	m.Get("g").Punch(3, 100)
	if got := string(m.Get("d/f").Data); got != "\x00\x00a\x00\x00" {
		t.Errorf("through the other link %q is seen", got)
	}
	if got := string(before.Get("g").Data); got != "\x00\x00abc" || before.Get("g") != before.Get("d/f") {
		t.Errorf("the clone changed: %q", got)
	}
	if m.Links()["g"] != "d/f" {
		t.Errorf("links are %v", m.Links())
	}
	m.Rename("d", "e")
	all := func(*Inode) bool { return true }
	if got := m.Paths(all); !slices.Equal(got, []string{"e", "e/f", "g"}) {
		t.Errorf("paths are %v", got)
	}
	for _, r := range []struct {
		from, to string
		ok       bool
	}{{"e", "e/x", false}, {"e", "g", false}, {"g", "e", false}, {"g", "e/f", false}, {"g", "no/g", false}, {"e/f", "h", true}} {
		if m.CanRename(r.from, r.to) != r.ok {
			t.Errorf("renaming %s to %s: want %v", r.from, r.to, r.ok)
		}
	}
	m.Remove("e")
	if got := m.Paths(all); !slices.Equal(got, []string{"g"}) {
		t.Errorf("paths are %v", got)
	}
}
