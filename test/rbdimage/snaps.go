package rbdimage

/*
#cgo LDFLAGS: -lrados -lrbd
#include <stdlib.h>
#include <rados/librados.h>
#include <rbd/librbd.h>
*/
import "C"

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// Head is the id of an image's present state.
const Head = 1<<64 - 2

// Kind is the kind of a snapshot.
type Kind int

// The kinds of snapshots, as librbd numbers them.
const (
	User Kind = iota
	Group
	Trash
	Mirror
)

// Role is what a mirror snapshot was made for.
type Role int

// The roles of mirror snapshots, as librbd numbers them.
const (
	Primary Role = iota
	PrimaryDemoted
	NonPrimary
	NonPrimaryDemoted
)

// Snap is a snapshot of an image.
type Snap struct {
	ID   uint64
	Name string
	Size uint64
	Kind Kind

	// Of mirror snapshots.
	Role     Role
	Complete bool
	Peers    int    // how many are linked
	Source   uint64 // id of the primary's snapshot; of non-primary ones
	Origin   string // mirror uuid of the primary; of non-primary ones
	Copied   uint64 // last object that was copied; of non-primary ones
}

// Synced tells whether it is the finished copy of a snapshot of the other side.
func (s Snap) Synced() bool {
	return s.Kind == Mirror && s.Complete && s.Origin != "" && (s.Role == NonPrimary || s.Role == NonPrimaryDemoted)
}

// raw opens an image without go-ceph, which lacks some calls.
func (p Pool) raw(image string, readOnly bool, f func(C.rbd_image_t) error) error {
	return p.With(func(ctx *rados.IOContext) error {
		name := C.CString(image)
		defer C.free(unsafe.Pointer(name))
		var img C.rbd_image_t
		var r C.int
		if readOnly {
			r = C.rbd_open_read_only(C.rados_ioctx_t(ctx.Pointer()), name, &img, nil)
		} else {
			r = C.rbd_open(C.rados_ioctx_t(ctx.Pointer()), name, &img, nil)
		}
		if r < 0 {
			return fmt.Errorf("opening image %s of %s: %w", p.Spec(image), p.Client.name, syscall.Errno(-r))
		}
		defer C.rbd_close(img)
		if readOnly {
			if err := p.settle(); err != nil {
				return err
			}
		}
		return f(img)
	})
}

// Snaps lists all snapshots of an image, oldest first.
func (p Pool) Snaps(image string) (list []Snap, err error) {
	err = p.raw(image, true, func(img C.rbd_image_t) error {
		infos := make([]C.rbd_snap_info_t, 64)
		n := C.int(len(infos))
		r := C.rbd_snap_list(img, &infos[0], &n)
		if r == -C.int(syscall.ERANGE) {
			infos = make([]C.rbd_snap_info_t, n)
			r = C.rbd_snap_list(img, &infos[0], &n)
		}
		if r < 0 {
			return fmt.Errorf("listing snapshots: %w", syscall.Errno(-r))
		}
		defer C.rbd_snap_list_end(&infos[0])
		for _, info := range infos[:r] {
			s := Snap{ID: uint64(info.id), Name: C.GoString(info.name), Size: uint64(info.size)}
			var kind C.rbd_snap_namespace_type_t
			if r := C.rbd_snap_get_namespace_type(img, info.id, &kind); r < 0 {
				return fmt.Errorf("kind of snapshot %d: %w", s.ID, syscall.Errno(-r))
			}
			s.Kind = Kind(kind)
			if s.Kind == Mirror {
				var m C.rbd_snap_mirror_namespace_t
				if r := C.rbd_snap_get_mirror_namespace(img, info.id, &m, C.sizeof_rbd_snap_mirror_namespace_t); r < 0 {
					return fmt.Errorf("mirror snapshot %d: %w", s.ID, syscall.Errno(-r))
				}
				s.Role, s.Complete, s.Peers = Role(m.state), bool(m.complete), int(m.mirror_peer_uuids_count)
				s.Source, s.Origin = uint64(m.primary_snap_id), C.GoString(m.primary_mirror_uuid)
				s.Copied = uint64(m.last_copied_object_number)
				C.rbd_snap_mirror_namespace_cleanup(&m, C.sizeof_rbd_snap_mirror_namespace_t)
			}
			list = append(list, s)
		}
		return nil
	})
	return list, err
}

// zero writes zeroes; thick ones take up space.
func (p Pool) zero(image string, at, length uint64, thick bool) error {
	return p.raw(image, false, func(img C.rbd_image_t) error {
		var flags C.int
		if thick {
			flags = C.RBD_WRITE_ZEROES_FLAG_THICK_PROVISION
		}
		if r := C.rbd_write_zeroes(img, C.uint64_t(at), C.size_t(length), flags, 0); r < 0 {
			return fmt.Errorf("writing zeroes: %w", syscall.Errno(-r))
		}
		return nil
	})
}

// basics are what go-ceph tells cut short or not at all.
func (p Pool) basics(image string) (prefix string, flags uint64, err error) {
	err = p.raw(image, true, func(img C.rbd_image_t) error {
		var buf [256]C.char
		if r := C.rbd_get_block_name_prefix(img, &buf[0], C.size_t(len(buf))); r < 0 {
			return fmt.Errorf("prefix of the objects: %w", syscall.Errno(-r))
		}
		prefix = C.GoString(&buf[0])
		var f C.uint64_t
		if r := C.rbd_get_flags(img, &f); r < 0 {
			return fmt.Errorf("flags: %w", syscall.Errno(-r))
		}
		flags = uint64(f)
		return nil
	})
	return prefix, flags, err
}
