package rbdmirror

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
	"cephmirror/rbdmirror/wire"
)

// listNamespaces returns the namespaces of a pool beside the default one.
func listNamespaces(io *rados.IOContext) ([]string, error) {
	const page = 1024
	var all []string
	for after := ""; ; {
		w := wire.Writer{}
		w.Str(after)
		w.U64(page)
		out, err := store.Read(io, "rbd_namespace", cls.Call{Class: "rbd", Method: "namespace_list", In: w.Bytes()})
		if ceph.Is(err, syscall.ENOENT) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listing namespaces: %w", err)
		}
		names, err := decodeNames(out[0])
		if err != nil {
			return nil, fmt.Errorf("listing namespaces: %w", err)
		}
		all = append(all, names...)
		if len(names) < page {
			return all, nil
		}
		after = names[len(names)-1]
	}
}

func decodeNames(b []byte) ([]string, error) {
	r := wire.NewReader(b)
	var out []string
	for n := r.U32(); n > 0 && r.Err() == nil; n-- {
		out = append(out, r.Str())
	}
	return out, r.Err()
}

// confPrefix is how the keys of options begin in the metadata of a pool or image.
const confPrefix = "conf_"

// poolOptions reads the options that are set for the pool ("rbd config pool set").
func poolOptions(io *rados.IOContext) (map[string]string, error) {
	opts := make(map[string]string)
	for after := confPrefix; ; {
		out, err := store.Read(io, "rbd_info", cls.MetadataList(after, 1024))
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
			if name, ok := strings.CutPrefix(key, confPrefix); ok {
				opts[name] = string(value)
			}
		}
		if len(found) == 0 || !strings.HasPrefix(after, confPrefix) {
			return opts, nil
		}
	}
}
