//go:build cgo

package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"cephmirror/test/rbdsite"
)

func writeTemp(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeAt writes one object's worth of data into an image through librbd.
func writeAt(t *testing.T, s *rbdsite.Site, image, at string, seed int) {
	t.Helper()
	path := writeTemp(t, bytes.Repeat([]byte{byte(seed + 1)}, 64<<10))
	s.Run("python3", "-c", `
import rados, rbd, sys
units = {"M": 1 << 20}
at = sys.argv[2]
at = int(at[:-1]) * units[at[-1]] if at[-1] in units else int(at)
with rados.Rados(name="client.admin", conffile="") as c, c.open_ioctx("rbd") as io, rbd.Image(io, sys.argv[1]) as img:
    img.write(open(sys.argv[3], "rb").read(), at)
`, image, at, path)
}
