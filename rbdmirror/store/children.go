package store

import (
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// childrenObject lists the clones of the old kind, which the headers of their
// parents do not know, in the pool of the clones.
const childrenObject = "rbd_children"

// AddOldChild notes a clone of the old kind. ioctx is of the clone's pool. It is
// no error that it is there.
func AddOldChild(ioctx *rados.IOContext, p cls.ParentSpec, childID string) error {
	err := Write(ioctx, childrenObject, cls.AddChild(p, childID))
	if ceph.Is(err, syscall.EEXIST) {
		return nil
	}
	return err
}

// RemoveOldChild removes a clone of the old kind from the list. It is no error
// that it is not there.
func RemoveOldChild(ioctx *rados.IOContext, p cls.ParentSpec, childID string) error {
	err := Write(ioctx, childrenObject, cls.RemoveChild(p, childID))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// OldChildren returns the clones of the old kind of a snapshot, in the pool of
// ioctx.
func OldChildren(ioctx *rados.IOContext, p cls.ParentSpec) ([]string, error) {
	list, err := read1(ioctx, childrenObject, cls.GetChildren(p), cls.DecodeStrings)
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	return list, err
}
