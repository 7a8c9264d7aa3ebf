package rbdmirror

import (
	"fmt"
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
