package ceph

/*
#cgo LDFLAGS: -lrados
#cgo CXXFLAGS: -std=c++17
#include <stdlib.h>
#include "listsnaps.h"
*/
import "C"

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// SnapHead is the id by which an object's head is listed among its clones.
const SnapHead = uint64(C.LIBRADOS_SNAP_HEAD)

// SnapSet is what the OSDs know of the past of an object.
type SnapSet struct {
	Seq    uint64  // the newest snapshot that a writer of the object knew of
	Clones []Clone // oldest first; the head, if it exists, is the last
}

// Clone is an object as it was for some snapshots.
type Clone struct {
	ID      uint64 // the newest snapshot it was made for, or SnapHead
	Size    uint64
	Snaps   []uint64    // the snapshots it serves, oldest first; none for the head
	Overlap [][2]uint64 // offset and length of what it has in common with the next one
}

// ListSnaps asks for the clones of objects, all at once. An object that has
// none and does not exist yields an empty set. The snapshot that ioctx is set
// to read does not matter.
func ListSnaps(ioctx *rados.IOContext, oids []string) ([]SnapSet, error) {
	var names []byte
	for _, oid := range oids {
		names = append(append(names, oid...), 0)
	}
	if len(names) == 0 {
		return nil, nil
	}
	var words *C.uint64_t
	var count C.size_t
	err := asError(int(C.cm_list_snaps(C.rados_ioctx_t(ioctx.Pointer()), bytesPtr(names), C.size_t(len(oids)), &words, &count)))
	runtime.KeepAlive(ioctx)
	if err != nil {
		return nil, fmt.Errorf("listing clones: %w", err)
	}
	defer C.free(unsafe.Pointer(words))
	r := wordReader{unsafe.Slice((*uint64)(unsafe.Pointer(words)), int(count))}
	sets := make([]SnapSet, len(oids))
	for i := range sets {
		switch errno := -int64(r.next()); syscall.Errno(errno) {
		case 0:
		case syscall.ENOENT:
			continue
		default:
			return nil, fmt.Errorf("listing clones of object %s: %w", oids[i], syscall.Errno(errno))
		}
		sets[i] = r.snapSet()
	}
	return sets, nil
}

// wordReader reads what our own C++ has written.
type wordReader struct{ words []uint64 }

func (r *wordReader) next() uint64 { return r.take(1)[0] }

func (r *wordReader) take(n uint64) []uint64 {
	out := r.words[:n]
	r.words = r.words[n:]
	return out
}
