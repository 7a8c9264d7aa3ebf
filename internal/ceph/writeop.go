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

// SetOmap sets omap keys to their values.
func (w *WriteOp) SetOmap(pairs map[string][]byte) {
	if len(pairs) == 0 {
		return
	}
	keys, vals := newCStrings(len(pairs)), newCStrings(len(pairs))
	defer keys.free()
	defer vals.free()
	for k, v := range pairs {
		keys.add([]byte(k))
		vals.add(v)
	}
	C.rados_write_op_omap_set2(w.op, keys.ptr, vals.ptr, &keys.lens[0], &vals.lens[0], C.size_t(len(pairs)))
}

// RemoveOmap removes omap keys, whether they are there or not.
func (w *WriteOp) RemoveOmap(names []string) {
	if len(names) == 0 {
		return
	}
	keys := newCStrings(len(names))
	defer keys.free()
	for _, k := range names {
		keys.add([]byte(k))
	}
	C.rados_write_op_omap_rm_keys2(w.op, keys.ptr, &keys.lens[0], C.size_t(len(names)))
}

// cStrings is an array of counted strings in C memory: pointers to pointers
// must not lead to Go memory.
type cStrings struct {
	ptr  **C.char
	lens []C.size_t
}

func newCStrings(n int) *cStrings {
	return &cStrings{ptr: (**C.char)(C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof((*C.char)(nil))))),
		lens: make([]C.size_t, 0, n)}
}

func (s *cStrings) add(b []byte) {
	s.lens = append(s.lens, C.size_t(len(b)))
	unsafe.Slice(s.ptr, len(s.lens))[len(s.lens)-1] = (*C.char)(C.CBytes(b))
}

func (s *cStrings) free() {
	for _, p := range unsafe.Slice(s.ptr, len(s.lens)) {
		C.free(unsafe.Pointer(p))
	}
	C.free(unsafe.Pointer(s.ptr))
}

func bytesPtr(b []byte) *C.char {
	return (*C.char)(unsafe.Pointer(unsafe.SliceData(b)))
}

func stringPtr(s string) *C.char {
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s)))
}
