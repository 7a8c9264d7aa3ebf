package store

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// ConfPrefix is how the keys of options begin in the metadata of a pool or image.
const ConfPrefix = "conf_"

// PoolOptions reads the options that are set for the pool ("rbd config pool set").
// The context is of its default namespace.
func PoolOptions(io *rados.IOContext) (map[string]string, error) {
	opts := make(map[string]string)
	for after := ConfPrefix; ; {
		out, err := Read(io, "rbd_info", cls.MetadataList(after, 1024))
		if ceph.Is(err, syscall.ENOENT) {
			return opts, nil
		}
		if err != nil {
			return opts, fmt.Errorf("reading the options of the pool: %w", err)
		}
		found, err := cls.DecodeBlobMap(out[0])
		if err != nil {
			return opts, fmt.Errorf("reading the options of the pool: %w", err)
		}
		for key, value := range found {
			after = max(after, key)
			if name, ok := strings.CutPrefix(key, ConfPrefix); ok {
				opts[name] = string(value)
			}
		}
		if len(found) == 0 || !strings.HasPrefix(after, ConfPrefix) {
			return opts, nil
		}
	}
}
