package e2e

import (
	"fmt"
	"testing"
	"time"

	"cephmirror/test/cephtree"
)

func TestFirstSync(t *testing.T) {
	e := need(t)
	e.mirror(t)
	t.Run("rich tree", func(t *testing.T) {
		m := e.newDir(t)
		m.Rich()
		m.Snap("s1")
		e.track(t, m.Root())
		e.waitSame(t, m, "s1")
	})
	t.Run("hard link of a symlink", func(t *testing.T) {
		m := e.tracked(t)
		m.Symlink("target", "symlink")
		m.Link("symlink", "further name")
		m.Write("target", []byte("what the symlink points to"))
		m.Snap("s1")
		e.waitSame(t, m, "s1")
	})
}

// TestLarge mirrors what takes minutes to make.
func TestLarge(t *testing.T) {
	e := need(t)
	needLong(t)
	e.mirror(t)
	t.Run("100,000 entries in one directory", func(t *testing.T) {
		m := e.newDir(t)
		m.Flat("d", 100000, 10)
		m.Snap("s1")
		e.track(t, m.Root())
		e.waitLong(t, 15*time.Minute, m, "s1")
		for i := range 1000 {
			m.Write(fmt.Sprintf("d/%06d", i*100), []byte("changed"))
		}
		m.Rename("d", "e")
		m.Snap("s2")
		e.waitLong(t, 15*time.Minute, m, "s2")
		e.same(t, m, "s1", "s2")
	})
	t.Run("a file of 5 GiB", func(t *testing.T) {
		m := e.newDir(t)
		m.Write("f", nil)
		for i := range 80 { // every fourth piece of 16 MiB is a hole
			if i%4 != 3 {
				m.WriteAt("f", cephtree.Data(uint64(i), 16*mib), int64(i)*64*mib)
			}
		}
		m.Snap("s1")
		e.track(t, m.Root())
		e.waitLong(t, 10*time.Minute, m, "s1")
		m.Truncate("f", 4<<30+1)
		m.WriteAt("f", []byte("x"), 3<<30)
		m.Snap("s2")
		e.waitLong(t, 10*time.Minute, m, "s2")
		e.same(t, m, "s1", "s2")
	})
}
