package ceph

/*
#cgo LDFLAGS: -lrados
#cgo CXXFLAGS: -std=c++17
#include <stdlib.h>
#include "watchers.h"
*/
import "C"

import (
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// Watcher is somebody who watches an object.
type Watcher struct {
	Addr   string // of the client's instance, for example "127.0.0.1:0/37467613"
	Client uint64 // the client's number
	Cookie uint64 // the handle of the watch
}

// ListWatchers returns who watches an object.
func ListWatchers(ioctx *rados.IOContext, oid string) ([]Watcher, error) {
	o := C.CString(oid)
	defer C.free(unsafe.Pointer(o))
	var found *C.struct_cm_watcher
	var count C.size_t
	if err := asError(int(C.cm_list_watchers(C.rados_ioctx_t(ioctx.Pointer()), o, &found, &count))); err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(found))
	out := make([]Watcher, 0, int(count))
	for _, w := range unsafe.Slice(found, int(count)) {
		out = append(out, Watcher{Addr: C.GoString(&w.addr[0]), Client: uint64(w.client), Cookie: uint64(w.cookie)})
	}
	return out, nil
}
