package e2e

import (
	"fmt"
	"path"
	"syscall"
	"testing"

	"cephmirror/test/cephtree"
)

const mib = 1 << 20

// change is what happens between two snapshots of a directory.
type change struct {
	name   string
	before func(cephtree.Maker)
	after  func(cephtree.Maker)
}

// restored changes a file and then puts its times back.
func restored(m cephtree.Maker, rel string, f func()) {
	atime, mtime := m.Atime(rel), m.Mtime(rel)
	f()
	m.Times(rel, atime, mtime)
}

func changes() []change {
	type M = cephtree.Maker
	list := []change{
		{"nothing", func(m M) { m.Write("f", []byte("x")) }, func(M) {}},

		// Renames.
		{"directory renamed", func(m M) {
			m.MkdirAll("d/sub")
			m.Write("d/f", cephtree.Data(1, 5000))
			m.Write("d/sub/g", cephtree.Data(2, 5000))
		}, func(m M) { m.Rename("d", "e") }},
		{"directory renamed and changed", func(m M) {
			m.MkdirAll("d/sub")
			m.Write("d/f", cephtree.Data(1, 5000))
			m.Write("d/sub/g", cephtree.Data(2, 5000))
		}, func(m M) {
			m.Rename("d", "e")
			m.Write("e/sub/g", cephtree.Data(3, 50))
			m.Write("e/new", nil)
		}},
		{"directory moved", func(m M) {
			m.MkdirAll("a/d/sub")
			m.MkdirAll("b/c")
			m.Write("a/d/sub/g", cephtree.Data(2, 5000))
		}, func(m M) { m.Rename("a/d", "b/c/d") }},
		{"directory moved up and its parent removed", func(m M) {
			m.MkdirAll("a/b/d/sub")
			m.Write("a/b/d/sub/g", cephtree.Data(2, 5000))
		}, func(m M) {
			m.Rename("a/b/d", "d")
			m.RemoveAll("a")
		}},
		{"directories swapped", func(m M) {
			m.MkdirAll("a/x")
			m.MkdirAll("b/y")
			m.Write("a/x/f", []byte("a"))
			m.Write("b/y/f", []byte("b"))
		}, func(m M) {
			m.Rename("a", "t")
			m.Rename("b", "a")
			m.Rename("t", "b")
		}},
		{"parent and child exchanged", func(m M) {
			m.MkdirAll("a/b/c")
			m.Write("a/f", []byte("a"))
			m.Write("a/b/f", []byte("b"))
			m.Write("a/b/c/f", []byte("c"))
		}, func(m M) {
			m.Rename("a/b", "b")
			m.Rename("a", "b/a")
		}},
		{"directory removed and recreated", func(m M) {
			m.MkdirAll("d/sub")
			m.Write("d/sub/f", []byte("old"))
			m.Write("d/both", []byte("old"))
		}, func(m M) {
			m.RemoveAll("d")
			m.MkdirAll("d/sub2")
			m.Write("d/both", []byte("new"))
			m.Write("d/new", []byte("new"))
		}},
		{"directory removed and recreated empty", func(m M) {
			m.MkdirAll("d/sub")
			m.Write("d/sub/f", []byte("old"))
		}, func(m M) { m.RemoveAll("d"); m.Mkdir("d") }},
		{"directory replaced by another", func(m M) {
			m.MkdirAll("d/sub")
			m.Write("d/sub/f", []byte("old"))
			m.MkdirAll("e/sub")
			m.Write("e/sub/f", []byte("other"))
		}, func(m M) { m.RemoveAll("d"); m.Rename("e", "d") }},
		{"directory renamed over an empty one", func(m M) {
			m.Mkdir("d")
			m.Mkdir("e")
			m.Write("e/f", []byte("e"))
		}, func(m M) { m.Rename("e", "d") }},
		{"file renamed", func(m M) { m.Write("f", cephtree.Data(1, mib)) }, func(m M) { m.Rename("f", "g") }},
		{"file moved", func(m M) { m.Mkdir("d"); m.Write("f", cephtree.Data(1, mib)) }, func(m M) { m.Rename("f", "d/f") }},
		{"file renamed over a file", func(m M) {
			m.Write("f", cephtree.Data(1, 1000))
			m.Write("g", cephtree.Data(2, 1000))
			m.Times("f", cephtree.Time{Sec: 5}, cephtree.Time{Sec: 6})
			m.Times("g", cephtree.Time{Sec: 5}, cephtree.Time{Sec: 6})
		}, func(m M) { m.Rename("f", "g") }},
		{"files swapped", func(m M) {
			m.Write("f", cephtree.Data(1, 1000))
			m.Write("g", cephtree.Data(2, 1000))
			m.Times("f", cephtree.Time{Sec: 5}, cephtree.Time{Sec: 6})
			m.Times("g", cephtree.Time{Sec: 5}, cephtree.Time{Sec: 6})
		}, func(m M) {
			m.Rename("f", "t")
			m.Rename("g", "f")
			m.Rename("t", "g")
		}},
		{"file saved as editors do", func(m M) { m.Write("f", cephtree.Data(1, 1000)) }, func(m M) {
			m.Write("f.tmp", cephtree.Data(2, 1000))
			m.Times("f.tmp", m.Atime("f"), m.Mtime("f"))
			m.Rename("f.tmp", "f")
		}},

		// Content.
		{"created and removed", func(m M) { m.Write("old", []byte("old")); m.Mkdir("olddir") }, func(m M) {
			m.Remove("old")
			m.RemoveAll("olddir")
			m.Write("new", []byte("new"))
			m.MkdirAll("newdir/sub")
		}},
		{"truncated down", func(m M) { m.Write("f", cephtree.Data(1, 9*mib)) }, func(m M) { m.Truncate("f", 4*mib+5) }},
		{"truncated to nothing", func(m M) { m.Write("f", cephtree.Data(1, 8*mib)) }, func(m M) { m.Truncate("f", 0) }},
		{"truncated up", func(m M) { m.Write("f", cephtree.Data(1, 4*mib+1)) }, func(m M) { m.Truncate("f", 12*mib) }},
		{"truncated down and up again", func(m M) { m.Write("f", cephtree.Data(1, 9*mib)) }, func(m M) {
			m.Truncate("f", 3*mib)
			m.Truncate("f", 9*mib)
		}},
		{"truncated, mtime restored", func(m M) { m.Write("f", cephtree.Data(1, mib)) },
			func(m M) { restored(m, "f", func() { m.Truncate("f", 1000) }) }},
		{"truncated and regrown to the same size, mtime restored", func(m M) { m.Write("f", cephtree.Data(1, 6*mib)) }, func(m M) {
			restored(m, "f", func() {
				m.Truncate("f", 0)
				m.WriteAt("f", cephtree.Data(2, 6*mib), 0)
			})
		}},
		{"rewritten in the same size, mtime restored", func(m M) { m.Write("f", cephtree.Data(1, 5000)) },
			func(m M) { restored(m, "f", func() { m.WriteAt("f", cephtree.Data(2, 5000), 0) }) }},
		{"one byte written, mtime restored", func(m M) { m.Write("f", cephtree.Data(1, 8*mib)) },
			func(m M) { restored(m, "f", func() { m.WriteAt("f", []byte{0}, 5*mib+77) }) }},
		{"appended", func(m M) { m.Write("f", cephtree.Data(1, 5*mib)) }, func(m M) { m.WriteAt("f", cephtree.Data(2, 5000), 5*mib) }},
		{"written beyond the end", func(m M) { m.Write("f", cephtree.Data(1, 5000)) }, func(m M) { m.WriteAt("f", cephtree.Data(2, 5000), 13*mib+3) }},
		{"hole punched", func(m M) { m.Write("f", cephtree.Data(1, 12*mib)) }, func(m M) { m.Punch("f", mib+5, 9*mib) }},
		{"hole punched, mtime restored", func(m M) { m.Write("f", cephtree.Data(1, 12*mib)) },
			func(m M) { restored(m, "f", func() { m.Punch("f", 4*mib, 4*mib) }) }},
		{"small hole punched", func(m M) { m.Write("f", cephtree.Data(1, mib)) }, func(m M) { m.Punch("f", 4096, 4096) }},
		{"hole filled", func(m M) {
			m.Write("f", []byte("start"))
			m.Truncate("f", 24*mib)
			m.WriteAt("f", []byte("end"), 24*mib-3)
		}, func(m M) { m.WriteAt("f", cephtree.Data(1, 5*mib), 9*mib) }},
		{"hole filled, mtime restored", func(m M) { m.Write("f", nil); m.Truncate("f", 16*mib) },
			func(m M) { restored(m, "f", func() { m.WriteAt("f", cephtree.Data(1, 4*mib), 8*mib) }) }},
		{"hole filled with zeros", func(m M) { m.Write("f", nil); m.Truncate("f", 8*mib) },
			func(m M) { m.WriteAt("f", make([]byte, 4*mib), 4*mib) }},
		{"overwritten with zeros", func(m M) { m.Write("f", cephtree.Data(1, 8*mib)) },
			func(m M) { m.WriteAt("f", make([]byte, 4*mib), 2*mib) }},
		{"many islands in a large file", func(m M) { m.Write("f", cephtree.Data(1, 32*mib)) }, func(m M) {
			for i := range 30 {
				m.WriteAt("f", cephtree.Data(uint64(i), 3000), int64(i)*mib+int64(i)*997)
			}
		}},

		// Hard links.
		{"changed through another link", func(m M) {
			m.Mkdir("d")
			m.Write("f", cephtree.Data(1, 5000))
			m.Link("f", "d/g")
		}, func(m M) { m.WriteAt("d/g", cephtree.Data(2, 500), 100) }},
		{"changed through another link, mtime restored", func(m M) {
			m.Write("f", cephtree.Data(1, 5*mib))
			m.Link("f", "g")
		}, func(m M) { restored(m, "g", func() { m.WriteAt("g", cephtree.Data(2, 500), 100) }) }},
		{"truncated through another link", func(m M) {
			m.Mkdir("d")
			m.Write("f", cephtree.Data(1, 5*mib))
			m.Link("f", "d/g")
		}, func(m M) { m.Truncate("d/g", 5) }},
		{"chmod through another link", func(m M) { m.Write("f", nil); m.Link("f", "g") }, func(m M) { m.Chmod("g", 0o600) }},
		{"new hard link", func(m M) { m.Mkdir("d"); m.Write("d/f", cephtree.Data(1, 5000)) }, func(m M) { m.Link("d/f", "g") }},
		{"new hard link and write", func(m M) { m.Mkdir("d"); m.Write("d/f", cephtree.Data(1, 5000)) }, func(m M) {
			m.Link("d/f", "g")
			m.WriteAt("g", []byte("new"), 7)
		}},
		{"further link in a new directory", func(m M) { m.Write("f", cephtree.Data(1, 5000)); m.Link("f", "g") }, func(m M) {
			m.MkdirAll("new/dir")
			m.Link("f", "new/dir/h")
		}},
		{"new linked files", func(m M) { m.Mkdir("d") }, func(m M) {
			m.Write("d/f", cephtree.Data(1, 5000))
			m.Link("d/f", "g")
			m.Link("d/f", "a")
		}},
		{"link removed", func(m M) { m.Write("f", cephtree.Data(1, 5000)); m.Link("f", "g") }, func(m M) { m.Remove("f") }},
		{"link broken", func(m M) { m.Write("f", cephtree.Data(1, 5000)); m.Link("f", "g") }, func(m M) {
			m.Remove("g")
			m.Write("g", cephtree.Data(1, 5000))
		}},
		{"link moved to another file", func(m M) {
			m.Write("f", cephtree.Data(1, 5000))
			m.Link("f", "g")
			m.Write("h", cephtree.Data(2, 5000))
		}, func(m M) {
			m.Remove("g")
			m.Link("h", "g")
		}},
		{"two pairs of links exchanged", func(m M) {
			m.Write("a", []byte("1"))
			m.Link("a", "b")
			m.Write("c", []byte("2"))
			m.Link("c", "d")
		}, func(m M) {
			m.Rename("b", "t")
			m.Rename("d", "b")
			m.Rename("t", "d")
			m.WriteAt("a", []byte("3"), 0)
		}},
		{"linked file moved with its directory", func(m M) {
			m.Mkdir("d")
			m.Write("d/f", cephtree.Data(1, 5000))
			m.Link("d/f", "g")
		}, func(m M) { m.Rename("d", "e"); m.WriteAt("g", []byte("new"), 0) }},
		{"last link outside the directory removed", func(m M) { m.Write("f", []byte("f")); m.Link("f", "../"+outside(m)) },
			func(m M) { m.Remove("../" + outside(m)) }},
		{"changed through a link outside the directory", func(m M) { m.Write("f", []byte("f")); m.Link("f", "../"+outside(m)) },
			func(m M) { m.WriteAt("../"+outside(m), []byte("g"), 0) }},

		// Attributes alone.
		{"chmod", func(m M) { m.Write("f", nil); m.Mkdir("d") }, func(m M) { m.Chmod("f", 0o4711); m.Chmod("d", 0o2700) }},
		{"chown", func(m M) { m.Write("f", nil); m.Mkdir("d"); m.Symlink("x", "l") }, func(m M) {
			m.Chown("f", 1, 2)
			m.Chown("d", 3, 4)
			m.Chown("l", 5, 6)
		}},
		{"xattr set", func(m M) { m.Write("f", nil); m.Mkdir("d") }, func(m M) {
			m.SetXattr("f", "user.a", "1")
			m.SetXattr("d", "user.a", "1")
		}},
		{"xattr changed", func(m M) {
			m.Write("f", nil)
			m.Mkdir("d")
			m.SetXattr("f", "user.a", "1")
			m.SetXattr("d", "trusted.a", "1")
		}, func(m M) {
			m.SetXattr("f", "user.a", "2")
			m.SetXattr("d", "trusted.a", "2")
		}},
		{"xattr removed", func(m M) {
			m.Write("f", nil)
			m.Mkdir("d")
			m.SetXattr("f", "user.a", "1")
			m.SetXattr("f", "user.b", "1")
			m.SetXattr("d", "user.a", "1")
		}, func(m M) {
			m.RemoveXattr("f", "user.a")
			m.RemoveXattr("d", "user.a")
		}},
		{"xattr of the root", func(m M) { m.SetXattr("", "user.a", "1"); m.SetXattr("", "user.b", "1") }, func(m M) {
			m.RemoveXattr("", "user.a")
			m.SetXattr("", "user.b", "2")
			m.SetXattr("", "user.c", "3")
		}},
		{"ACL set and removed", func(m M) {
			m.Write("f", nil)
			m.Write("g", nil)
			m.Chmod("f", 0o640)
			m.Chmod("g", 0o640)
			m.SetXattr("g", "system.posix_acl_access", cephtree.ACL(7, 6))
		}, func(m M) {
			m.SetXattr("f", "system.posix_acl_access", cephtree.ACL(8, 4))
			m.RemoveXattr("g", "system.posix_acl_access")
		}},
		{"utimes", func(m M) { m.Write("f", nil); m.Mkdir("d"); m.Symlink("x", "l") }, func(m M) {
			for i, n := range []string{"f", "d", "l"} {
				m.Times(n, cephtree.Time{Sec: int64(i), Nsec: 999999999}, cephtree.Time{Sec: 1 << 31, Nsec: int64(i)})
			}
		}},
		{"atime alone", func(m M) { m.Write("f", nil); m.Mkdir("d") }, func(m M) {
			m.Times("f", cephtree.Time{Sec: 77, Nsec: 1}, m.Mtime("f"))
			m.Times("d", cephtree.Time{Sec: 77, Nsec: 1}, m.Mtime("d"))
		}},
		{"mtime set back", func(m M) { m.Write("f", []byte("f")) }, func(m M) { m.Times("f", m.Atime("f"), cephtree.Time{Sec: 1}) }},
		{"attributes of the root", func(m M) { m.Write("f", nil) }, func(m M) {
			m.Chmod("", 0o1750)
			m.Chown("", 42, 43)
			m.Times("", cephtree.Time{Sec: 9, Nsec: 8}, cephtree.Time{Sec: 7, Nsec: 6})
		}},
		{"attributes of special files", func(m M) {
			m.Node("fifo", syscall.S_IFIFO|0o600, 0)
			m.Node("dev", syscall.S_IFCHR|0o600, 5)
		}, func(m M) {
			m.Chmod("fifo", 0o666)
			m.Chown("dev", 9, 9)
			m.Times("fifo", cephtree.Time{Sec: 1}, cephtree.Time{Sec: 2})
		}},
		{"symlink changed", func(m M) { m.Symlink("old", "l") }, func(m M) {
			m.Remove("l")
			m.Symlink("new", "l")
		}},
		{"device number changed", func(m M) { m.Node("dev", syscall.S_IFBLK|0o600, 5) }, func(m M) {
			m.Remove("dev")
			m.Node("dev", syscall.S_IFBLK|0o600, 6)
		}},
		{"deep in an unchanged tree", func(m M) { m.MkdirAll("1/2/3/4/5/6/7/8/9"); m.Write("1/2/3/4/5/6/7/8/9/f", []byte("x")) },
			func(m M) { m.Chmod("1/2/3/4/5/6/7/8/9/f", 0o600) }},
	}
	return append(list, typeChanges()...)
}

// outside names a file beside the mirrored directory.
func outside(m cephtree.Maker) string { return "outside-" + path.Base(m.Root()) }

// typeChanges are changes of the type of a name, in all directions.
func typeChanges() []change {
	type M = cephtree.Maker
	kinds := []struct {
		name string
		make func(m M, n string)
	}{
		{"file", func(m M, n string) { m.Write(n, cephtree.Data(4, 5000)) }},
		{"directory", func(m M, n string) { m.MkdirAll(n + "/sub"); m.Write(n+"/sub/f", []byte("below")) }},
		{"symlink", func(m M, n string) { m.Symlink("target", n) }},
		{"fifo", func(m M, n string) { m.Node(n, syscall.S_IFIFO|0o644, 0) }},
		{"socket", func(m M, n string) { m.Node(n, syscall.S_IFSOCK|0o644, 0) }},
		{"char", func(m M, n string) { m.Node(n, syscall.S_IFCHR|0o644, 1<<8|3) }},
		{"block", func(m M, n string) { m.Node(n, syscall.S_IFBLK|0o644, 1<<8|3) }},
		{"link", func(m M, n string) { m.Write("other", []byte("other")); m.Link("other", n) }},
	}
	name := func(i, j int) string { return fmt.Sprintf("%s to %s", kinds[i].name, kinds[j].name) }
	// One directory with a name for each pair.
	return []change{{"types in all directions", func(m M) {
		for i := range kinds {
			for j := range kinds {
				m.Mkdir(name(i, j))
				kinds[i].make(m.At(name(i, j)), "name")
			}
		}
	}, func(m M) {
		for i := range kinds {
			for j := range kinds {
				at := m.At(name(i, j))
				at.RemoveAll("name")
				at.RemoveAll("other")
				kinds[j].make(at, "name")
			}
		}
	}}}
}

// TestChanges makes a change between two snapshots, and a further change of
// nothing, and expects all snapshots to be equal on both sides.
func TestChanges(t *testing.T) {
	e := need(t)
	e.mirror(t)
	t.Run("group", func(t *testing.T) {
		for _, c := range changes() {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				m := e.newDir(t)
				c.before(m)
				m.Snap("s1")
				e.track(t, m.Root())
				e.wait(t, m, "s1")
				c.after(m)
				m.Snap("s2")
				e.waitSame(t, m, "s1", "s2")
			})
		}
	})
}

// TestRenamed renames directories where they are: nothing of them is sent again.
func TestRenamed(t *testing.T) {
	e := need(t)
	needLong(t)
	d := e.mirror(t)
	m := e.newDir(t)
	m.MkdirAll("d/sub/deeper")
	for i := range 6 {
		m.Write(fmt.Sprintf("d/%d", i), cephtree.Data(uint64(i), mib))
		m.Write(fmt.Sprintf("d/sub/%d", i), cephtree.Data(uint64(i), mib))
		m.Write(fmt.Sprintf("d/sub/deeper/%d", i), cephtree.Data(uint64(i), mib))
	}
	m.Link("d/0", "d/sub/link")
	m.Link("d/1", "outside")
	m.SetXattr("d/sub", "user.a", "1")
	m.Snap("s1")
	e.track(t, m.Root())
	e.wait(t, m, "s1")
	m.Rename("d", "e")
	m.Rename("e/sub/deeper", "e/sub/deep")
	m.Rename("e/sub", "e/below")
	m.WriteAt("e/below/deep/3", []byte("changed"), 100000)
	m.Remove("e/below/4")
	m.SetXattr("e/below", "user.a", "2")
	m.RemoveXattr("e/below", "user.a")
	m.SetXattr("e/below/deep/5", "user.b", "1")
	m.Chmod("e/below/deep", 0o700)
	m.Link("e/below/deep/2", "e/another link")
	m.Mkdir("d")
	m.Write("d/0", []byte("new"))
	m.Snap("s2")
	e.wait(t, m, "s2")
	m.Rename("d", "t")
	m.Rename("e", "d")
	m.Rename("t", "e")
	m.Snap("s3")
	m.Rename("d/below", "below")
	m.Rename("e", "f")
	m.Snap("s4")
	e.waitSame(t, m, "s1", "s2", "s3", "s4")
	m.Rename("f", "g")
	m.Rename("d", "h")
	m.Rename("below", "i")
	m.Snap("s5")
	e.waitSame(t, m, "s5")
	st := d.waitDir(t, patience, m.Root(), "s5 is the last", lastIs("s5"))
	if st.Last.Sent > 0 {
		t.Errorf("%d bytes were sent for new names of directories", st.Last.Sent)
	}
	// What the comparison before the snapshot does not see.
	atime, mtime := m.Atime("h/2"), m.Mtime("h/2")
	m.WriteAt("h/2", []byte("changed"), 5)
	m.Times("h/2", atime, mtime)
	m.SetXattr("h/3", "user.c", "1")
	m.Rename("h", "k")
	m.Snap("s6")
	e.waitSame(t, m, "s6")
}

// TestAllChangesAtOnce makes every change in one directory.
func TestAllChangesAtOnce(t *testing.T) {
	e := need(t)
	once(t)
	e.mirror(t)
	e.allChanges(t, e.newDir(t), func(cephtree.Maker, int) {})
}

// allChanges makes every change in a directory; prepare is given a directory for
// each, while it is empty.
func (e *env) allChanges(t *testing.T, m cephtree.Maker, prepare func(m cephtree.Maker, i int)) {
	t.Helper()
	m.Rich()
	places := make([]cephtree.Maker, len(changes()))
	for i, c := range changes() {
		prepare(m.At(fmt.Sprintf("c%02d", i)), i)
		places[i] = m.At(fmt.Sprintf("c%02d/place", i))
		c.before(places[i])
	}
	m.Snap("s1")
	e.track(t, m.Root())
	e.waitLong(t, patience, m, "s1")
	for i, c := range changes() {
		c.after(places[i])
	}
	m.Snap("s2")
	m.Rename("sizes", "c00/sizes")
	m.Rename("c00", "c01/c00")
	m.RemoveAll("names")
	m.Snap("s3")
	e.waitLong(t, patience, m, "s1", "s2", "s3")
	e.same(t, m, "s1", "s2", "s3")
}
