package ceph

/*
#cgo LDFLAGS: -lrados
#include <stdlib.h>
#include <rados/librados.h>
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// SetWriteContext sets the ids of self-managed snapshots, newest first, that are to
// keep what objects were before they are changed through ioctx. seq is the newest
// that there ever was.
func SetWriteContext(ioctx *rados.IOContext, seq uint64, snaps []uint64) error {
	err := asError(int(C.rados_ioctx_selfmanaged_snap_set_write_ctx(C.rados_ioctx_t(ioctx.Pointer()), C.rados_snap_t(seq),
		(*C.rados_snap_t)(unsafe.Pointer(unsafe.SliceData(snaps))), C.int(len(snaps)))))
	if err != nil {
		return fmt.Errorf("setting the snapshots %d of the write context: %w", snaps, err)
	}
	return nil
}

// RollbackObject gives an object the content it had at a self-managed snapshot, or
// removes it if it did not exist. ioctx must have a write context.
func RollbackObject(ioctx *rados.IOContext, oid string, snap uint64) error {
	name := C.CString(oid)
	defer C.free(unsafe.Pointer(name))
	err := asError(int(C.rados_ioctx_selfmanaged_snap_rollback(C.rados_ioctx_t(ioctx.Pointer()), name, C.rados_snap_t(snap))))
	if err != nil {
		return fmt.Errorf("rolling object %s back to snapshot %d: %w", oid, snap, err)
	}
	return nil
}
