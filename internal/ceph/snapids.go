package ceph

/*
#cgo LDFLAGS: -lrados
#include <rados/librados.h>
*/
import "C"

import "github.com/ceph/go-ceph/rados"

// CreateSnapID allocates a snapshot id that its user manages, in the pool of
// ioctx.
func CreateSnapID(ioctx *rados.IOContext) (uint64, error) {
	var id C.rados_snap_t
	err := asError(int(C.rados_ioctx_selfmanaged_snap_create(C.rados_ioctx_t(ioctx.Pointer()), &id)))
	return uint64(id), err
}

// RemoveSnapID gives a snapshot id back: what objects keep for it goes.
func RemoveSnapID(ioctx *rados.IOContext, id uint64) error {
	return asError(int(C.rados_ioctx_selfmanaged_snap_remove(C.rados_ioctx_t(ioctx.Pointer()), C.rados_snap_t(id))))
}
