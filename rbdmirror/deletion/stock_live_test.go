//go:build cgo

package deletion_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/deletion"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdsite"
)

// TestLiveStock has images go that the stock daemon moved to the trash, and has
// the stock daemon remove images that were moved there by us.
func TestLiveStock(t *testing.T) {
	rbdsite.Long(t)
	far := rbdsite.StartEmpty(t, "b")
	near := rbdsite.StartEmpty(t, "a")
	far.Run("rbd", "mirror", "pool", "enable", "--site-name", "far", rbdsite.Pool, "image")
	near.Run("rbd", "mirror", "pool", "enable", "--site-name", "near", rbdsite.Pool, "image")
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte(far.Run("rbd", "mirror", "pool", "peer", "bootstrap", "create", rbdsite.Pool)), 0o600))
	near.Run("rbd", "mirror", "pool", "peer", "bootstrap", "import", "--direction", "rx-tx", rbdsite.Pool, token)
	near.Run("rbd", "config", "pool", "set", rbdsite.Pool, "rbd_mirroring_delete_delay", "3600")
	start := func() (stop func()) {
		return near.StartProcess("stock", "rbd-mirror", "--cluster", near.Cluster.Name(), "--id", "mirror", "-f",
			"--rbd-mirror-pool-replayers-refresh-interval=2", "--rbd-mirror-delete-retry-interval=2")
	}
	stop := start()
	eventually := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(90 * time.Second); !f(); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				out, _ := near.Try("rbd", "mirror", "pool", "status", "--verbose")
				t.Fatalf("%s: %s", what, out)
			}
		}
	}
	far.Run("rbd", "create", "--size", "16M", "img")
	far.Run("rbd", "bench", "--io-type", "write", "--io-size", "65536", "--io-total", "8M", "--io-pattern", "rand", "img")
	far.Run("rbd", "snap", "create", "--no-progress", "img@user")
	far.Run("rbd", "mirror", "image", "enable", "img", "snapshot")
	io := near.IO(rbdsite.Pool, "")
	c := &copied{Site: near, name: "img", spec: "img", io: io}
	eventually("the first copy", func() bool {
		id, err := store.NewDirectory(io).ID("img")
		c.id = id
		if err != nil {
			return false
		}
		img, err := store.NewHeader(io, id).Load()
		if err != nil || len(img.Snapshots) == 0 {
			return false
		}
		m := img.Snapshots[len(img.Snapshots)-1].Namespace.Mirror
		return m != nil && m.Complete
	})
	far.Run("rbd", "mirror", "image", "disable", "img")
	var spec cls.TrashSpec
	eventually("the removal by the stock daemon", func() bool {
		var err error
		spec, err = store.NewTrash(io).Get(c.id)
		return err == nil
	})
	if kept := spec.DeferredUntil.Sub(spec.DeletedAt).Round(time.Second); spec.Source != cls.TrashMirroring || spec.Name != "img" || kept != time.Hour {
		t.Errorf("%+v", spec)
	}
	eventually("the end of the removal", func() bool {
		_, err := store.NewMirroring(io).Image(c.id)
		return err != nil
	})
	must(t, deletion.Purge(t.Context(), c.image()))
	c.wantGone(t)

	// The stock daemon's queue waits for whatever came first. It would for the
	// hour that the first image had to stay.
	stop()
	start()
	ours := makeCopy(t, near, "", "ours")
	if got := deletion.Delay(near.Conn, io, nil); got != time.Hour {
		t.Errorf("delay %v", got)
	}
	must(t, deletion.Move(t.Context(), ours.image(), deletion.MoveOptions{}))
	eventually("what we moved to the trash is removed by the stock daemon", func() bool { return len(ours.left(t)) == 0 })
	if out := near.Run("rbd", "trash", "ls", "--all"); strings.Contains(out, "ours") {
		t.Error(out)
	}
}
