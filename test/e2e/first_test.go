package e2e

import (
	"testing"
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
