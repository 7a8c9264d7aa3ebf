package ceph

/*
#cgo LDFLAGS: -lrados
#include <stdlib.h>
#include <rados/librados.h>
*/
import "C"

import (
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// WriteOp gathers steps that RADOS carries out on one object, all or none. It
// has the comparisons that go-ceph's WriteOp lacks. librados copies what the
// steps are given.
type WriteOp struct {
	op C.rados_write_op_t
}

// NewWriteOp returns an operation without steps. It must be released.
func NewWriteOp() *WriteOp { return &WriteOp{op: C.rados_create_write_op()} }

// Release frees the operation.
func (w *WriteOp) Release() {
	C.rados_release_write_op(w.op)
	w.op = nil
}

// Operate carries the steps out on the object. ECANCELED: a comparison failed.
func (w *WriteOp) Operate(ioctx *rados.IOContext, oid string) error {
	o := C.CString(oid)
	defer C.free(unsafe.Pointer(o))
	return asError(int(C.rados_write_op_operate(w.op, C.rados_ioctx_t(ioctx.Pointer()), o, nil, 0)))
}

// Create makes the object. With exclusive set the operation fails with EEXIST
// when it is there.
func (w *WriteOp) Create(exclusive bool) {
	how := C.int(C.LIBRADOS_CREATE_IDEMPOTENT)
	if exclusive {
		how = C.LIBRADOS_CREATE_EXCLUSIVE
	}
	C.rados_write_op_create(w.op, how, nil)
}

// AssertExists makes the operation fail with ENOENT when there is no object.
func (w *WriteOp) AssertExists() { C.rados_write_op_assert_exists(w.op) }

// CompareXattr makes the operation fail with ECANCELED unless the extended
// attribute has this value. An absent one equals an empty one.
func (w *WriteOp) CompareXattr(name string, value []byte) {
	n := C.CString(name)
	defer C.free(unsafe.Pointer(n))
	C.rados_write_op_cmpxattr(w.op, n, C.LIBRADOS_CMPXATTR_OP_EQ, bytesPtr(value), C.size_t(len(value)))
}

// SetXattr sets an extended attribute.
func (w *WriteOp) SetXattr(name string, value []byte) {
	n := C.CString(name)
	defer C.free(unsafe.Pointer(n))
	C.rados_write_op_setxattr(w.op, n, bytesPtr(value), C.size_t(len(value)))
}

// RemoveXattr removes an extended attribute.
func (w *WriteOp) RemoveXattr(name string) {
	n := C.CString(name)
	defer C.free(unsafe.Pointer(n))
	C.rados_write_op_rmxattr(w.op, n)
}

// CompareOmap makes the operation fail with ECANCELED unless the omap key has
// this value. An absent one equals an empty one.
func (w *WriteOp) CompareOmap(key string, value []byte) {
	C.rados_write_op_omap_cmp2(w.op, stringPtr(key), C.LIBRADOS_CMPXATTR_OP_EQ, bytesPtr(value),
		C.size_t(len(key)), C.size_t(len(value)), nil)
}

// SetOmap sets the value of one omap key.
func (w *WriteOp) SetOmap(key string, value []byte) {
	// Pointers to pointers must not lead to Go memory.
	k, v := C.CString(key), (*C.char)(C.CBytes(value))
	defer C.free(unsafe.Pointer(k))
	defer C.free(unsafe.Pointer(v))
	klen, vlen := C.size_t(len(key)), C.size_t(len(value))
	keys, vals := newPtr(k), newPtr(v)
	defer C.free(unsafe.Pointer(keys))
	defer C.free(unsafe.Pointer(vals))
	C.rados_write_op_omap_set2(w.op, keys, vals, &klen, &vlen, 1)
}

// RemoveOmap removes one omap key, whether it is there or not.
func (w *WriteOp) RemoveOmap(key string) {
	k := C.CString(key)
	defer C.free(unsafe.Pointer(k))
	klen := C.size_t(len(key))
	keys := newPtr(k)
	defer C.free(unsafe.Pointer(keys))
	C.rados_write_op_omap_rm_keys2(w.op, keys, &klen, 1)
}

func newPtr(p *C.char) **C.char {
	pp := (**C.char)(C.malloc(C.size_t(unsafe.Sizeof(p))))
	*pp = p
	return pp
}

func bytesPtr(b []byte) *C.char {
	return (*C.char)(unsafe.Pointer(unsafe.SliceData(b)))
}

func stringPtr(s string) *C.char {
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s)))
}
