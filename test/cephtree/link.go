package cephtree

/*
#cgo LDFLAGS: -lcephfs
#cgo CPPFLAGS: -D_FILE_OFFSET_BITS=64 -D_GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <cephfs/libcephfs.h>

// ct_link makes a hard link to a symlink itself, which ceph_link cannot.
static int ct_link(struct ceph_mount_info *m, const char *from, const char *dir, const char *name) {
	struct Inode *in = NULL, *parent = NULL;
	struct ceph_statx st;
	UserPerm *perms = ceph_mount_perms(m);
	int r = ceph_ll_walk(m, from, &in, &st, CEPH_STATX_INO, AT_SYMLINK_NOFOLLOW, perms);
	if (r < 0)
		return r;
	r = ceph_ll_walk(m, dir, &parent, &st, CEPH_STATX_INO, 0, perms);
	if (r == 0) {
		r = ceph_ll_link(m, in, parent, name, perms);
		ceph_ll_put(m, parent);
	}
	ceph_ll_put(m, in);
	return r;
}
*/
import "C"

import (
	"path"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/cephfs"
)

// linkItself makes to a further name of what from names, a symlink included.
func linkItself(m *cephfs.MountInfo, from, to string) error {
	f, d, n := C.CString(from), C.CString(path.Dir(to)), C.CString(path.Base(to))
	defer C.free(unsafe.Pointer(f))
	defer C.free(unsafe.Pointer(d))
	defer C.free(unsafe.Pointer(n))
	// A MountInfo is a struct of this one pointer.
	raw := *(**C.struct_ceph_mount_info)(unsafe.Pointer(m))
	if r := C.ct_link(raw, f, d, n); r < 0 {
		return syscall.Errno(-r)
	}
	return nil
}
