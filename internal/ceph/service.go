package ceph

/*
#cgo LDFLAGS: -lrados
#include <stdlib.h>
#include <rados/librados.h>
*/
import "C"

import (
	"strings"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// Pair is a key and its value, where their order matters.
type Pair struct{ Key, Value string }

// block encodes pairs as librados expects them: key NUL value NUL ... NUL.
func block(pairs []Pair) *C.char {
	var b strings.Builder
	for _, p := range pairs {
		b.WriteString(p.Key)
		b.WriteByte(0)
		b.WriteString(p.Value)
		b.WriteByte(0)
	}
	b.WriteByte(0)
	return (*C.char)(C.CBytes([]byte(b.String())))
}

// RegisterService enters conn as a daemon of a service into the service map.
// librados keeps it there with its own beacons while conn lives.
func RegisterService(conn *rados.Conn, service, daemon string, metadata []Pair) error {
	s, d, md := C.CString(service), C.CString(daemon), block(metadata)
	defer C.free(unsafe.Pointer(s))
	defer C.free(unsafe.Pointer(d))
	defer C.free(unsafe.Pointer(md))
	return asError(int(C.rados_service_register(C.rados_t(conn.Cluster()), s, d, md)))
}

// UpdateServiceStatus replaces the status of the registered daemon.
func UpdateServiceStatus(conn *rados.Conn, status []Pair) error {
	st := block(status)
	defer C.free(unsafe.Pointer(st))
	return asError(int(C.rados_service_update_status(C.rados_t(conn.Cluster()), st)))
}

// Addrs returns the address of conn as the cluster knows it, the one that a
// blocklist entry would name.
func Addrs(conn *rados.Conn) (string, error) {
	var p *C.char
	if err := asError(int(C.rados_getaddrs(C.rados_t(conn.Cluster()), &p))); err != nil {
		return "", err
	}
	defer C.free(unsafe.Pointer(p))
	return C.GoString(p), nil
}
