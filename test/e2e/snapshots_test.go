package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/test/cephtree"
)

// TestSnapshots makes, removes and renames snapshots.
func TestSnapshots(t *testing.T) {
	e := need(t)
	d := e.mirror(t)

	t.Run("group", func(t *testing.T) {
		t.Run("unchanged", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Flat("d", 20, 1000)
			m.Snap("s1")
			m.Snap("s2")
			e.waitSame(t, m, "s1", "s2")
			if st := d.waitDir(t, patience, m.Root(), "s2 is the last", lastIs("s2")); st.Last.Sent != 0 {
				t.Errorf("%d bytes were sent for an unchanged snapshot", st.Last.Sent)
			}
		})
		t.Run("many at once", func(t *testing.T) {
			t.Parallel()
			m := e.newDir(t)
			var names []string
			for i := range 12 {
				m.Write("f", cephtree.Data(uint64(i), 1000+i))
				m.Write(fmt.Sprintf("f%d", i), nil)
				names = append(names, fmt.Sprintf("s%02d", i))
				m.Snap(names[i])
			}
			e.track(t, m.Root())
			e.waitSame(t, m, names...)
			st := d.waitDir(t, patience, m.Root(), "idle", func(s dirStatus) bool { return s.State == "idle" && s.Synced == 12 })
			if st.Last.Name != "s11" {
				t.Errorf("the last snapshot synced is said to be %s", st.Last.Name)
			}
		})
		t.Run("noticed soon", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("f"))
			m.Snap("s1")
			e.wait(t, m, "s1")
			for i := range 5 {
				name := fmt.Sprintf("n%d", i)
				m.Write("f", cephtree.Data(uint64(i), 100))
				begun := time.Now()
				m.Snap(name)
				e.wait(t, m, name)
				if took := time.Since(begun); took > 10*time.Second {
					t.Errorf("snapshot %s took %v to arrive", name, took)
				}
			}
		})
		t.Run("deleted", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			m.Snap("s1")
			m.Snap("s2")
			m.Snap("s3")
			e.wait(t, m, "s1", "s2", "s3")
			m.RemoveSnap("s2")
			e.waitNames(t, m, "s1", "s3")
			m.RemoveSnap("s3") // the newest
			e.waitNames(t, m, "s1")
			m.Write("f", []byte("2"))
			m.Snap("s4")
			e.waitNames(t, m, "s1", "s4")
			e.same(t, m, "s1", "s4")
			if st := d.waitDir(t, patience, m.Root(), "idle", isIdle); st.Deleted != 2 {
				t.Errorf("%d deleted snapshots counted, want 2", st.Deleted)
			}
		})
		t.Run("all deleted", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			m.Snap("s1")
			e.wait(t, m, "s1")
			m.RemoveSnap("s1")
			e.waitNames(t, m)
			m.Write("f", []byte("2"))
			m.Snap("s2")
			e.waitNames(t, m, "s2")
			e.same(t, m, "s2")
		})
		t.Run("renamed", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			m.Snap("s1")
			m.Write("f", []byte("2"))
			m.Snap("s2")
			e.wait(t, m, "s1", "s2")
			m.RenameSnap("s1", "first")
			e.waitNames(t, m, "first", "s2")
			e.waitSame(t, m, "first", "s2")
			m.RenameSnap("s2", "second")
			m.Write("f", []byte("3"))
			m.Snap("s2")
			e.waitNames(t, m, "first", "s2", "second")
			e.waitSame(t, m, "first", "second", "s2")
			if st := d.waitDir(t, patience, m.Root(), "idle", isIdle); st.Renamed != 2 || st.Deleted != 0 {
				t.Errorf("%d renamed and %d deleted snapshots counted, want 2 and 0", st.Renamed, st.Deleted)
			}
		})
		t.Run("names swapped", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			for i, n := range []string{"s1", "s2", "s3"} {
				m.Write("f", cephtree.Data(uint64(i), 100))
				m.Snap(n)
			}
			e.wait(t, m, "s1", "s2", "s3")
			m.RenameSnap("s1", "t")
			m.RenameSnap("s2", "s1")
			m.RenameSnap("s3", "s2")
			m.RenameSnap("t", "s3")
			e.waitSame(t, m, "s1", "s2", "s3")
			e.waitNames(t, m, "s1", "s2", "s3")
			// The newest is called s2 now.
			m.Write("f", []byte("new"))
			m.Snap("s4")
			e.waitSame(t, m, "s1", "s2", "s3", "s4")
		})
		t.Run("recreated with the same name", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			m.Write("same", []byte("same"))
			m.Snap("s1")
			m.Snap("s2")
			e.wait(t, m, "s1", "s2")
			m.Write("f", []byte("2"))
			m.RemoveSnap("s2")
			m.Snap("s2")
			e.waitSame(t, m, "s1", "s2")
			m.Write("f", []byte("3"))
			m.RemoveSnap("s1")
			m.Snap("s1")
			e.waitSame(t, m, "s1", "s2")
			e.waitNames(t, m, "s1", "s2")
		})
		t.Run("names of all kinds", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", []byte("1"))
			names := []string{"with space", "ünï-日本", "scheduled-2026-01-01-00_00_00_UTC", "a\tb", "x%20y", "--help"}
			for _, n := range names {
				m.Snap(n)
			}
			e.waitSame(t, m, names...)
		})
		t.Run("of a directory above and below", func(t *testing.T) {
			t.Parallel()
			m := e.newDir(t)
			m.MkdirAll("top/sub/below")
			m.Write("top/sub/f", []byte("1"))
			m.Write("top/sub/below/g", []byte("1"))
			sub := m.At("top/sub")
			e.track(t, sub.Root())
			m.SnapDir("top", "above")
			sub.Snap("s1")
			m.SnapDir("top/sub/below", "below")
			e.waitSame(t, sub, "s1")
			sub.Write("f", []byte("2"))
			m.SnapDir("top", "above2")
			sub.Snap("s2")
			e.waitSame(t, sub, "s1", "s2")
			e.waitNames(t, sub, "s1", "s2")
		})
		t.Run("4 KiB in a large file", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", cephtree.Data(1, 64*mib))
			m.Snap("s1")
			e.wait(t, m, "s1")
			m.WriteAt("f", cephtree.Data(2, 4096), 33*mib+512)
			m.Snap("s2")
			e.waitSame(t, m, "s1", "s2")
			st := d.waitDir(t, patience, m.Root(), "s2 is the last", lastIs("s2"))
			if st.Last.Sent == 0 || st.Last.Sent > mib {
				t.Errorf("%d bytes were sent for 4 KiB changed", st.Last.Sent)
			}
			if st.Last.Bytes != 64*mib {
				t.Errorf("sync_bytes is %d, stock says the file's size", st.Last.Bytes)
			}
		})
		t.Run("sparse files stay sparse", func(t *testing.T) {
			t.Parallel()
			m := e.tracked(t)
			m.Write("f", nil)
			m.Truncate("f", 1<<30)
			m.WriteAt("f", cephtree.Data(1, 5000), 512*mib)
			m.Snap("s1")
			e.waitSame(t, m, "s1")
			m.WriteAt("f", cephtree.Data(2, 5000), 700*mib)
			m.Snap("s2")
			e.waitSame(t, m, "s2")
			if n := objects(t, e, m.Root()+"/f", 1<<30); n > 2 {
				t.Errorf("the file has %d objects on the peer, 2 at the source", n)
			}
		})
	})
}

func lastIs(name string) func(dirStatus) bool {
	return func(s dirStatus) bool { return s.Last.Name == name && s.State == "idle" }
}

func isIdle(s dirStatus) bool { return s.State == "idle" }

// waitNames waits until the peer has exactly the snapshots named.
func (e *env) waitNames(t *testing.T, m cephtree.Maker, want ...string) {
	t.Helper()
	slices.Sort(want)
	within(t, patience, fmt.Sprintf("the snapshots of %s on b to be %v", m.Root(), want), func() error {
		got := snapshots(t, e.dst, m.Root())
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("they are %v", got)
		}
		return nil
	})
}

// objects counts the objects in which b keeps a file's data.
func objects(t *testing.T, e *env, path string, size uint64) (n int) {
	t.Helper()
	st, err := e.dst.StatAt(path, ceph.Synced)
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := e.dst.Conn.OpenIOContext(fsName + ".data")
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Destroy()
	for i := range size / (4 * mib) {
		if _, err := ctx.Stat(fmt.Sprintf("%x.%08x", st.Ino, i)); err == nil {
			n++
		}
	}
	return n
}
