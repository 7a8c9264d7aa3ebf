package ceph

/*
#cgo LDFLAGS: -lrados
#cgo CXXFLAGS: -std=c++17
#include <rados/librados.h>
#include "objectio.h"
*/
import "C"

import (
	"context"
	"fmt"
	"runtime"
	"runtime/cgo"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

//export cmObjectOpDone
func cmObjectOpDone(token C.uintptr_t) {
	close(cgo.Handle(token).Value().(chan struct{}))
}

// objectOp runs one operation and waits for its end, which the end of ctx
// brings about. The caller frees what it returns, whether there is an error or
// not.
func objectOp(ctx context.Context, start func(token C.uintptr_t, out **C.cm_object_op) C.int) (*C.cm_object_op, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	h := cgo.NewHandle(done)
	defer h.Delete()
	var op *C.cm_object_op
	if err := asError(int(start(C.uintptr_t(h), &op))); err != nil {
		return nil, err
	}
	select {
	case <-done:
	case <-ctx.Done():
		C.cm_object_cancel(op)
		<-done
	}
	err := asError(int(C.cm_object_result(op)))
	if err != nil && Is(err, syscall.ECANCELED) && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return op, err
}

// ListObjectSnaps asks for the clones of one object. An object that has none
// and does not exist yields an empty set. The snapshot that ioctx is set to
// read does not matter.
func ListObjectSnaps(ctx context.Context, ioctx *rados.IOContext, oid string) (SnapSet, error) {
	op, err := objectOp(ctx, func(token C.uintptr_t, out **C.cm_object_op) C.int {
		return C.cm_object_list(C.rados_ioctx_t(ioctx.Pointer()), stringPtr(oid), C.size_t(len(oid)), token, out)
	})
	defer C.cm_object_free(op)
	if Is(err, syscall.ENOENT) {
		return SnapSet{}, nil
	}
	if err != nil {
		return SnapSet{}, fmt.Errorf("listing clones of object %s: %w", oid, err)
	}
	words, err := answer(op)
	if err != nil {
		return SnapSet{}, fmt.Errorf("listing clones of object %s: %w", oid, err)
	}
	return words.snapSet(), nil
}

func answer(op *C.cm_object_op) (*wordReader, error) {
	var words *C.uint64_t
	var count C.size_t
	if err := asError(int(C.cm_object_answer(op, &words, &count))); err != nil {
		return nil, err
	}
	return &wordReader{unsafe.Slice((*uint64)(unsafe.Pointer(words)), int(count))}, nil
}

// snapSet reads what was written of one object's clones; it copies all.
func (r *wordReader) snapSet() SnapSet {
	s := SnapSet{Seq: r.next()}
	s.Clones = make([]Clone, r.next())
	for j := range s.Clones {
		c := Clone{ID: r.next(), Size: r.next()}
		c.Snaps = append(c.Snaps, r.take(r.next())...)
		pairs := r.take(2 * r.next())
		for k := 0; k < len(pairs); k += 2 {
			c.Overlap = append(c.Overlap, [2]uint64{pairs[k], pairs[k+1]})
		}
		s.Clones[j] = c
	}
	return s
}

// ObjectData is what was read of an object. It lies in memory of librados, from
// where it can be written to another object without being copied, and must be
// released.
type ObjectData struct {
	op *C.cm_object_op
	// Extents are those that hold data, as offset and length in the object,
	// for each extent that was asked for. All others are holes, or beyond the
	// object's end.
	Extents [][][2]uint64
}

// ReadObject reads extents, each an offset and a length, of an object as it was
// in a snapshot, or as it is with SnapHead, in one operation. ENOENT: there is
// no such object.
func ReadObject(ctx context.Context, ioctx *rados.IOContext, oid string, snap uint64, extents [][2]uint64) (*ObjectData, error) {
	op, err := objectOp(ctx, func(token C.uintptr_t, out **C.cm_object_op) C.int {
		return C.cm_object_read(C.rados_ioctx_t(ioctx.Pointer()), stringPtr(oid), C.size_t(len(oid)), C.uint64_t(snap),
			(*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(extents))), C.size_t(len(extents)), token, out)
	})
	if err != nil {
		C.cm_object_free(op)
		return nil, fmt.Errorf("reading object %s at snapshot %d: %w", oid, snap, err)
	}
	words, err := answer(op)
	if err != nil {
		C.cm_object_free(op)
		return nil, fmt.Errorf("reading object %s at snapshot %d: %w", oid, snap, err)
	}
	d := &ObjectData{op: op, Extents: make([][][2]uint64, len(extents))}
	for i := range d.Extents {
		pairs := words.take(2 * words.next())
		d.Extents[i] = make([][2]uint64, len(pairs)/2)
		for k := range d.Extents[i] {
			d.Extents[i][k] = [2]uint64{pairs[2*k], pairs[2*k+1]}
		}
	}
	return d, nil
}

// NewObjectData holds a copy of bytes as if they had been read, in one part.
func NewObjectData(b []byte) (*ObjectData, error) {
	op := C.cm_object_data(unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)))
	if op == nil {
		return nil, syscall.ENOMEM
	}
	return &ObjectData{op: op, Extents: [][][2]uint64{{{0, uint64(len(b))}}}}, nil
}

// Part returns the bytes of one part: those of its extents, one after the
// other. They are valid until Release.
func (d *ObjectData) Part(i int) ([]byte, error) {
	var p unsafe.Pointer
	var n C.size_t
	if err := asError(int(C.cm_object_part(d.op, C.size_t(i), &p, &n))); err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), int(n)), nil
}

// Release frees the data. A nil one has none.
func (d *ObjectData) Release() {
	if d != nil {
		C.cm_object_free(d.op)
		d.op = nil
	}
}

// ObjectSteps are what a write does to one object, all or nothing.
type ObjectSteps struct {
	words []uint64
}

func (s *ObjectSteps) add(kind, offset, length, part, at uint64) {
	s.words = append(s.words, kind, offset, length, part, at)
}

// Len is how many steps there are.
func (s *ObjectSteps) Len() int { return len(s.words) / 5 }

// Create makes the object unless it is there.
func (s *ObjectSteps) Create() { s.add(C.CM_STEP_CREATE, 0, 0, 0, 0) }

// CreateExclusive makes the object; EEXIST if it is there.
func (s *ObjectSteps) CreateExclusive() { s.add(C.CM_STEP_CREATE_EXCLUSIVE, 0, 0, 0, 0) }

// AssertExists fails with ENOENT if there is no object.
func (s *ObjectSteps) AssertExists() { s.add(C.CM_STEP_ASSERT_EXISTS, 0, 0, 0, 0) }

// Remove removes the object; ENOENT if there is none.
func (s *ObjectSteps) Remove() { s.add(C.CM_STEP_REMOVE, 0, 0, 0, 0) }

// Write writes length bytes, from position at of a part of the data.
func (s *ObjectSteps) Write(offset, length uint64, part int, at uint64) {
	s.add(C.CM_STEP_WRITE, offset, length, uint64(part), at)
}

// Zero makes a hole. RADOS cuts an object whose end lies in the hole.
func (s *ObjectSteps) Zero(offset, length uint64) { s.add(C.CM_STEP_ZERO, offset, length, 0, 0) }

// Truncate cuts or extends the object.
func (s *ObjectSteps) Truncate(size uint64) { s.add(C.CM_STEP_TRUNCATE, size, 0, 0, 0) }

// Hint tells how large the object is expected to become; it makes the object.
func (s *ObjectSteps) Hint(size uint64) { s.add(C.CM_STEP_HINT, 0, size, 0, 0) }

// WriteObject carries steps out on an object under a snapshot context: the ids
// of the pool's self-managed snapshots that are to keep what the object was,
// newest first. data is what the steps write from, nil if none does. A cluster
// that is full answers ENOSPC or EDQUOT. After the end of ctx it returns soon,
// but what was sent may still be carried out.
func WriteObject(ctx context.Context, ioctx *rados.IOContext, oid string, snaps []uint64, s *ObjectSteps, data *ObjectData) error {
	var from *C.cm_object_op
	if data != nil {
		from = data.op
	}
	op, err := objectOp(ctx, func(token C.uintptr_t, out **C.cm_object_op) C.int {
		return C.cm_object_write(C.rados_ioctx_t(ioctx.Pointer()), stringPtr(oid), C.size_t(len(oid)),
			(*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(snaps))), C.size_t(len(snaps)),
			(*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(s.words))), C.size_t(s.Len()), from, token, out)
	})
	runtime.KeepAlive(data)
	C.cm_object_free(op)
	if err != nil {
		return fmt.Errorf("writing object %s: %w", oid, err)
	}
	return nil
}

// ObjectWrite is one write of several: steps, and what they write from.
type ObjectWrite struct {
	Object string
	Steps  ObjectSteps
	Data   *ObjectData // nil: none
}

// WriteInTurn carries out writes under one snapshot context, as WriteObject does,
// one after the other: each is sent when the one before is durable. It returns how
// many succeeded, and why there are not more. The end of ctx lets the one that is
// under way end, however long that takes, and is no error by itself.
func WriteInTurn(ctx context.Context, ioctx *rados.IOContext, snaps []uint64, list []ObjectWrite) (int, error) {
	done := make(chan struct{})
	h := cgo.NewHandle(done)
	defer h.Delete()
	t := C.cm_object_turns_new(C.rados_ioctx_t(ioctx.Pointer()), (*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(snaps))),
		C.size_t(len(snaps)), C.uintptr_t(h))
	if t == nil {
		return 0, syscall.ENOMEM
	}
	defer C.cm_object_turns_free(t)
	for _, w := range list {
		var from *C.cm_object_op
		if w.Data != nil {
			from = w.Data.op
		}
		err := asError(int(C.cm_object_turns_add(t, stringPtr(w.Object), C.size_t(len(w.Object)),
			(*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(w.Steps.words))), C.size_t(w.Steps.Len()), from)))
		if err != nil {
			return 0, fmt.Errorf("writing object %s: %w", w.Object, err)
		}
		runtime.KeepAlive(w.Data)
	}
	if err := asError(int(C.cm_object_turns_start(t))); err != nil {
		return 0, fmt.Errorf("writing object %s: %w", list[0].Object, err)
	}
	select {
	case <-done:
	case <-ctx.Done():
		C.cm_object_turns_stop(t)
		<-done
	}
	var n C.size_t
	if err := asError(int(C.cm_object_turns_result(t, &n))); err != nil {
		return int(n), fmt.Errorf("writing object %s: %w", list[n].Object, err)
	}
	return int(n), nil
}
