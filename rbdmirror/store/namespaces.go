package store

import (
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// namespaceObject lists the namespaces of a pool.
const namespaceObject = "rbd_namespace"

// Namespaces returns the namespaces of a pool beside the default one, which ioctx
// is of.
func Namespaces(ioctx *rados.IOContext) ([]string, error) {
	const page = 1024
	var all []string
	for after := ""; ; {
		names, err := read1(ioctx, namespaceObject, cls.NamespaceList(after, page), cls.DecodeStrings)
		if ceph.Is(err, syscall.ENOENT) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
		if len(names) < page {
			return all, nil
		}
		after = names[len(names)-1]
	}
}
