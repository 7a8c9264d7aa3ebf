package ceph

/*
#cgo LDFLAGS: -lcephfs
#cgo CPPFLAGS: -D_FILE_OFFSET_BITS=64
#include <cephfs/libcephfs.h>
*/
import "C"

import (
	"syscall"

	"github.com/ceph/go-ceph/cephfs"
)

// Layout says how the bytes of a file lie in objects, and where those are.
type Layout struct {
	StripeUnit, StripeCount, ObjectSize uint64
	Pool                                int64
	Namespace                           string
}

// FileLayout returns the layout of an open file.
func (m *Mount) FileLayout(f *cephfs.File) (Layout, error) {
	var unit, count, size, pool C.int
	if err := asError(int(C.ceph_get_file_layout(m.ptr(), C.int(f.Fd()), &unit, &count, &size, &pool))); err != nil {
		return Layout{}, err
	}
	ns, err := f.GetXattr("ceph.file.layout.pool_namespace")
	if err != nil && !Is(err, syscall.ENODATA) {
		return Layout{}, err
	}
	return Layout{uint64(unit), uint64(count), uint64(size), int64(pool), string(ns)}, nil
}
