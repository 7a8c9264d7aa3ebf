package snapdiff

import (
	"context"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"cephmirror/internal/ceph"
)

// listing is directories by path.
type listing map[string][]ceph.Entry

func (l listing) List(path string, _ ceph.Sync, fn func(ceph.Entry) error) error {
	entries, ok := l[path]
	if !ok {
		return syscall.ENOENT
	}
	for _, e := range entries {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

func file(name string, ino uint64, change func(*ceph.Stat)) ceph.Entry {
	e := ceph.Entry{Name: name, Stat: ceph.Stat{
		Ino: ino, Mode: syscall.S_IFREG | 0o644, Nlink: 1, Size: 10,
		Mtime: ceph.Time{Sec: 100}, Ctime: ceph.Time{Sec: 100}, Version: 1,
	}}
	if change != nil {
		change(&e.Stat)
	}
	return e
}

func dir(name string, ino uint64) ceph.Entry {
	return file(name, ino, func(s *ceph.Stat) { s.Mode = syscall.S_IFDIR | 0o755 })
}

// verdict is what a test expects of one name.
type verdict struct {
	Name     string
	Replaced bool
	Gone     bool
	Data     Evidence
}

func verdicts(d *Directory) (out []verdict) {
	for _, c := range d.Changes {
		out = append(out, verdict{c.Name, c.Replaced, c.New == nil, c.Data})
	}
	return out
}

func TestSnapshots(t *testing.T) {
	for _, c := range []struct {
		name     string
		old, new ceph.Entry
		want     []verdict
	}{
		{"same", file("f", 1, nil), file("f", 1, nil), nil},
		{"size", file("f", 1, nil), file("f", 1, func(s *ceph.Stat) { s.Size = 4 }), []verdict{{Name: "f", Data: Differs}}},
		{"mtime", file("f", 1, nil), file("f", 1, func(s *ceph.Stat) { s.Mtime.Nsec = 1 }), []verdict{{Name: "f", Data: Differs}}},
		{"ctime alone", file("f", 1, nil), file("f", 1, func(s *ceph.Stat) { s.Ctime.Nsec = 1 }), []verdict{{Name: "f", Data: Suspect}}},
		{"change attribute alone", file("f", 1, nil), file("f", 1, func(s *ceph.Stat) { s.Version++ }), []verdict{{Name: "f", Data: Suspect}}},
		{"link added", file("f", 1, nil), file("f", 1, func(s *ceph.Stat) { s.Nlink = 2 }), []verdict{{Name: "f", Data: Suspect}}},
		{"another inode", file("f", 1, nil), file("f", 2, nil), []verdict{{Name: "f", Replaced: true, Data: Differs}}},
		{"file to directory", file("f", 1, nil), dir("f", 2), []verdict{{Name: "f", Replaced: true, Data: Differs}}},
		{"renamed", file("f", 1, nil), file("g", 1, nil), []verdict{{Name: "f", Gone: true}, {Name: "g", Data: Differs}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := listing{"/s/1": {c.old}, "/s/2": {c.new}}
			d, err := Snapshots{Source: tree, Old: "/s/1", New: "/s/2"}.Dir(context.Background(), "", "", false)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, verdicts(d), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A directory that is another inode than before is all new, as is one below a
// new one; an unchanged one is descended into all the same.
func TestSubdirs(t *testing.T) {
	tree := listing{
		"/s/1": {dir("kept", 1), dir("remade", 2)},
		"/s/2": {dir("kept", 1), dir("remade", 3), dir("new", 4)},
	}
	d, err := Snapshots{Source: tree, Old: "/s/1", New: "/s/2"}.Dir(context.Background(), "", "", false)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]bool)
	for _, s := range d.Subdirs {
		got[s.Name] = s.Fresh
	}
	if diff := cmp.Diff(map[string]bool{"kept": false, "remade": true, "new": true}, got); diff != "" {
		t.Error(diff)
	}
}

// Unchanged names of an inode with several are reported, so that a new name can
// be linked to them.
func TestLinked(t *testing.T) {
	two := func(s *ceph.Stat) { s.Nlink = 2 }
	tree := listing{"/s/1": {file("a", 1, two)}, "/s/2": {file("a", 1, two)}}
	d, err := Snapshots{Source: tree, Old: "/s/1", New: "/s/2"}.Dir(context.Background(), "", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Changes) != 0 || len(d.Linked) != 1 || d.Linked[0].Name != "a" {
		t.Errorf("changes %v, linked %v", d.Changes, d.Linked)
	}
}

func TestTarget(t *testing.T) {
	never := func(*ceph.Stat, *ceph.Stat) bool { return false }
	always := func(*ceph.Stat, *ceph.Stat) bool { return true }
	device := func(rdev uint64) func(*ceph.Stat) {
		return func(s *ceph.Stat) { s.Mode, s.Rdev = syscall.S_IFCHR|0o600, rdev }
	}
	two := func(s *ceph.Stat) { s.Nlink = 2 }
	for _, c := range []struct {
		name     string
		old, new ceph.Entry
		trust    func(*ceph.Stat, *ceph.Stat) bool
		deep     bool
		want     []verdict
	}{
		{"equal", file("f", 7, nil), file("f", 1, nil), always, false, nil},
		{"equal, but not trusted", file("f", 7, nil), file("f", 1, nil), never, false, []verdict{{Name: "f", Data: Suspect}}},
		{"equal, looked at deeply", file("f", 7, nil), file("f", 1, nil), always, true, []verdict{{Name: "f", Data: Equal}}},
		{"mode", file("f", 7, func(s *ceph.Stat) { s.Mode = syscall.S_IFREG | 0o600 }), file("f", 1, nil), always, false, []verdict{{Name: "f", Data: Equal}}},
		{"size", file("f", 7, func(s *ceph.Stat) { s.Size = 1 }), file("f", 1, nil), always, false, []verdict{{Name: "f", Data: Differs}}},
		{"device number", file("f", 7, device(1)), file("f", 1, device(2)), always, false, []verdict{{Name: "f", Replaced: true, Data: Differs}}},
		{"link to some other file", file("f", 7, two), file("f", 1, nil), always, false, []verdict{{Name: "f", Replaced: true, Data: Differs}}},
		{"link that was split", file("f", 7, nil), file("f", 1, two), always, false, []verdict{{Name: "f", Data: Equal}}},
		{"extra", file("x", 7, nil), file("f", 1, nil), always, false, []verdict{{Name: "x", Gone: true}, {Name: "f", Data: Differs}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Target{
				Source: listing{"/s": {c.new}}, New: "/s",
				Peer: listing{"/t": {c.old}}, Old: "/t",
				Trust: c.trust, Deep: c.deep,
			}.Dir(context.Background(), "", "", false)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, verdicts(d), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tree := listing{"/1": {file("f", 1, nil)}, "/2": {file("f", 1, nil)}}
	if _, err := (Snapshots{Source: tree, Old: "/1", New: "/2"}).Dir(ctx, "", "", false); err == nil {
		t.Error("no error")
	}
}
