package ceph

/*
#cgo LDFLAGS: -lcephfs
#cgo CPPFLAGS: -D_FILE_OFFSET_BITS=64 -D_GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <cephfs/libcephfs.h>

// cm_list reads up to max entries with their attributes in one crossing.
// Names are packed, NUL-terminated, into names. It stops early when less than
// a whole name's room is left.
static int cm_list(struct ceph_mount_info *m, struct ceph_dir_result *d,
                   char *names, size_t room, struct ceph_statx *st, int max, unsigned want) {
	int n = 0;
	while (n < max && room >= 256) {
		struct dirent de;
		int r = ceph_readdirplus_r(m, d, &de, &st[n], want, AT_SYMLINK_NOFOLLOW, NULL);
		if (r < 0)
			return r;
		if (r == 0)
			break;
		size_t len = strlen(de.d_name) + 1;
		memcpy(names, de.d_name, len);
		names += len;
		room -= len;
		n++;
	}
	return n;
}

// cm_settle asks for the attributes of the live inode ino as stat does.
static int cm_settle(struct ceph_mount_info *m, uint64_t ino) {
	struct inodeno_t number = {ino};
	struct Inode *in = NULL;
	struct ceph_statx st;
	int r = ceph_ll_lookup_inode(m, number, &in);
	if (r < 0)
		return r;
	r = ceph_ll_getattr(m, in, &st, CEPH_STATX_ALL_STATS, 0, ceph_mount_perms(m));
	ceph_ll_put(m, in);
	return r;
}

// cm_link makes name in dir one more name of what from names, which may be a
// symlink; ceph_link would follow it.
static int cm_link(struct ceph_mount_info *m, const char *from, const char *dir, const char *name) {
	UserPerm *perms = ceph_mount_perms(m);
	struct Inode *in = NULL, *parent = NULL;
	struct ceph_statx st;
	int r = ceph_ll_walk(m, from, &in, &st, 0, AT_SYMLINK_NOFOLLOW, perms);
	if (r < 0)
		return r;
	r = ceph_ll_walk(m, dir, &parent, &st, 0, AT_SYMLINK_NOFOLLOW, perms);
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
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sync/errgroup"
)

// Mount is a libcephfs mount with the calls that go-ceph lacks.
type Mount struct {
	*cephfs.MountInfo
	conf      *rados.Conn
	cacheable int // entries that a directory can have and still be cached as a whole
}

// NewMount creates an unmounted handle with the configuration of conf, which
// need not be connected and now belongs to the mount. Mounts that share a
// configuration get into each other's way in libcephfs.
func NewMount(conf *rados.Conn) (*Mount, error) {
	m, err := cephfs.CreateFromRados(conf)
	if err != nil {
		conf.Shutdown()
		return nil, fmt.Errorf("creating mount handle: %w", err)
	}
	size := 0
	if v, err := conf.GetConfigOption("client_cache_size"); err == nil {
		size, _ = strconv.Atoi(v) // 0: nothing is relied on to be cached
	}
	return &Mount{m, conf, size / 4}, nil
}

// Release frees the handle, which must not be mounted any more, and its
// configuration.
func (m *Mount) Release() error {
	err := m.MountInfo.Release()
	m.conf.Shutdown()
	return err
}

// checkMountInfo tells whether go-ceph's MountInfo still is what ptr relies
// on: a struct of one pointer.
func checkMountInfo() error {
	t := reflect.TypeFor[cephfs.MountInfo]()
	if t.NumField() != 1 || t.Field(0).Type.Kind() != reflect.Pointer {
		return fmt.Errorf("layout of %v changed", t)
	}
	return nil
}

func (m *Mount) ptr() *C.struct_ceph_mount_info {
	return *(**C.struct_ceph_mount_info)(unsafe.Pointer(m.MountInfo))
}

// SetUUID names the sessions of this mount, so that another client can end
// them with Reclaim. To be called after Init and before Mount.
func (m *Mount) SetUUID(uuid string) {
	s := C.CString(uuid)
	defer C.free(unsafe.Pointer(s))
	C.ceph_set_uuid(m.ptr(), s)
}

// Reclaim ends the MDS sessions of the dead client that had set uuid, which
// frees its locks and capabilities at once. To be called after Init, on a
// handle that is not mounted yet. ENOENT: there is no such session.
func (m *Mount) Reclaim(uuid string) error {
	s := C.CString(uuid)
	defer C.free(unsafe.Pointer(s))
	if err := asError(int(C.ceph_start_reclaim(m.ptr(), s, C.CEPH_RECLAIM_RESET))); err != nil {
		return err
	}
	C.ceph_finish_reclaim(m.ptr())
	return nil
}

// Abort cuts the mount off from the cluster: waiting calls return an error,
// buffered data is dropped. The mount is of no further use.
func (m *Mount) Abort() error {
	return asError(int(C.ceph_abort_conn(m.ptr())))
}

// InstanceID returns the RADOS client id of the mount.
func (m *Mount) InstanceID() uint64 {
	return uint64(C.ceph_get_instance_id(m.ptr()))
}

// SetMountTimeout bounds Mount, in seconds.
func (m *Mount) SetMountTimeout(seconds uint32) error {
	return asError(int(C.ceph_set_mount_timeout(m.ptr(), C.uint32_t(seconds))))
}

// Time is a point in time with nanoseconds, as inodes carry it.
type Time struct {
	Sec  int64
	Nsec int64
}

// Before reports whether t is earlier than u.
func (t Time) Before(u Time) bool {
	return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec
}

// Stat holds the attributes of an inode.
type Stat struct {
	Ino     uint64
	Size    uint64 // bytes
	Version uint64 // change attribute: grows with every change of the inode
	Rdev    uint64
	Mode    uint32 // type and permission bits as in stat(2)
	Nlink   uint32
	UID     uint32
	GID     uint32
	Atime   Time
	Mtime   Time
	Ctime   Time
	Btime   Time
}

// Type returns the file type bits (S_IFREG and its kin).
func (s *Stat) Type() uint32 { return s.Mode & syscall.S_IFMT }

// IsDir reports whether the inode is a directory.
func (s *Stat) IsDir() bool { return s.Type() == syscall.S_IFDIR }

// IsRegular reports whether the inode is a regular file.
func (s *Stat) IsRegular() bool { return s.Type() == syscall.S_IFREG }

// Entry is a directory entry with the attributes of its inode.
type Entry struct {
	Name string
	Stat
}

const wantAll = C.CEPH_STATX_ALL_STATS

func goTime(t C.struct_timespec) Time { return Time{int64(t.tv_sec), int64(t.tv_nsec)} }

func cTime(t Time) C.struct_timespec {
	return C.struct_timespec{tv_sec: C.__time_t(t.Sec), tv_nsec: C.__syscall_slong_t(t.Nsec)}
}

func goStat(s *C.struct_ceph_statx) Stat {
	return Stat{
		Ino: uint64(s.stx_ino), Size: uint64(s.stx_size), Version: uint64(s.stx_version),
		Rdev: uint64(s.stx_rdev), Mode: uint32(s.stx_mode), Nlink: uint32(s.stx_nlink),
		UID: uint32(s.stx_uid), GID: uint32(s.stx_gid),
		Atime: goTime(s.stx_atime), Mtime: goTime(s.stx_mtime), Ctime: goTime(s.stx_ctime),
		Btime: goTime(s.stx_btime),
	}
}

// Sync says how fresh the answer of Stat must be.
type Sync int

const (
	// Synced attributes are as stat(2) would return them.
	Synced Sync = iota
	// Cached attributes may come from this client's cache without asking.
	Cached
)

// StatAt returns the attributes of path, without following a symlink.
func (m *Mount) StatAt(path string, sync Sync) (Stat, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	flags := C.uint(C.AT_SYMLINK_NOFOLLOW)
	if sync == Cached {
		flags |= C.AT_STATX_DONT_SYNC
	}
	var st C.struct_ceph_statx
	if err := asError(int(C.ceph_statx(m.ptr(), p, &st, wantAll, flags))); err != nil {
		return Stat{}, err
	}
	return goStat(&st), nil
}

// batch is how many directory entries one crossing into C returns at most.
const batch = 512

// List calls fn for every entry of the directory at path but "." and "..", in
// the order of the directory, with attributes. An error of fn ends it.
//
// The MDS answers a listing with what it has at hand. Of a file that another
// client has written that may be old: what the client still holds, and what is
// not in the MDS's journal yet, is missing, in a snapshot too. But it withholds
// the capability to rely on such attributes. Synced attributes are asked for
// once more where that is so.
func (m *Mount) List(path string, sync Sync, fn func(Entry) error) error {
	if sync == Cached {
		return m.list(path, fn)
	}
	// A directory that was just listed is listed from the cache, and there
	// libcephfs asks the MDS for every inode that it may not rely on.
	n := 0
	many := errors.New("too many to be cached")
	err := m.list(path, func(Entry) error {
		if n++; n > m.cacheable {
			return many
		}
		return nil
	})
	switch err {
	case nil:
		return m.list(path, fn)
	case many:
		return m.listAsking(path, fn)
	}
	return err
}

// askers is how many entries of a directory are asked for at once.
const askers = 16

// listAsking lists a directory, and asks the MDS for every regular file.
func (m *Mount) listAsking(path string, fn func(Entry) error) error {
	pending := make([]Entry, 0, batch)
	tell := func() error {
		var group errgroup.Group
		group.SetLimit(askers)
		for i := range pending {
			e := &pending[i]
			if !e.IsRegular() {
				continue
			}
			group.Go(func() (err error) {
				e.Stat, err = m.StatAt(path+"/"+e.Name, Synced)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for _, e := range pending {
			if err := fn(e); err != nil {
				return err
			}
		}
		pending = pending[:0]
		return nil
	}
	err := m.list(path, func(e Entry) error {
		if pending = append(pending, e); len(pending) < batch {
			return nil
		}
		return tell()
	})
	if err != nil {
		return err
	}
	return tell()
}

func (m *Mount) list(path string, fn func(Entry) error) error {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	var dir *C.struct_ceph_dir_result
	if err := asError(int(C.ceph_opendir(m.ptr(), p, &dir))); err != nil {
		return err
	}
	defer C.ceph_closedir(m.ptr(), dir)
	const room = batch * 64
	names := (*[room]byte)(C.malloc(room))
	defer C.free(unsafe.Pointer(names))
	stats := make([]C.struct_ceph_statx, batch)
	for {
		n := int(C.cm_list(m.ptr(), dir, (*C.char)(unsafe.Pointer(names)), room, &stats[0], batch, wantAll))
		if n < 0 {
			return asError(n)
		}
		if n == 0 {
			return nil
		}
		at := 0
		for i := range n {
			end := at
			for names[end] != 0 {
				end++
			}
			name := string(names[at:end])
			at = end + 1
			if name == "." || name == ".." {
				continue
			}
			if err := fn(Entry{name, goStat(&stats[i])}); err != nil {
				return err
			}
		}
	}
}

// Settle makes clients write out what they hold of the live inode ino: the MDS
// takes back what allows them to hold it before it tells the inode's attributes.
// An inode that is gone is none.
func (m *Mount) Settle(ino uint64) error {
	err := asError(int(C.cm_settle(m.ptr(), C.uint64_t(ino))))
	if Is(err, syscall.ENOENT, syscall.ESTALE) {
		return nil
	}
	return err
}

// AttrMask says which fields of a Stat SetAttr applies.
type AttrMask int

// Fields that SetAttr can set.
const (
	SetMode  AttrMask = C.CEPH_SETATTR_MODE
	SetUID   AttrMask = C.CEPH_SETATTR_UID
	SetGID   AttrMask = C.CEPH_SETATTR_GID
	SetMtime AttrMask = C.CEPH_SETATTR_MTIME
	SetAtime AttrMask = C.CEPH_SETATTR_ATIME
	SetSize  AttrMask = C.CEPH_SETATTR_SIZE
)

func cStat(s *Stat) C.struct_ceph_statx {
	return C.struct_ceph_statx{
		stx_mode: C.uint16_t(s.Mode & 07777), stx_uid: C.uint32_t(s.UID), stx_gid: C.uint32_t(s.GID),
		stx_size: C.uint64_t(s.Size), stx_mtime: cTime(s.Mtime), stx_atime: cTime(s.Atime),
	}
}

// SetAttr sets the attributes in mask of the inode at path, not following a
// symlink, in one request.
func (m *Mount) SetAttr(path string, s Stat, mask AttrMask) error {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	st := cStat(&s)
	return asError(int(C.ceph_setattrx(m.ptr(), p, &st, C.int(mask), C.AT_SYMLINK_NOFOLLOW)))
}

// SetFileAttr is SetAttr on an open file.
func (m *Mount) SetFileAttr(f *cephfs.File, s Stat, mask AttrMask) error {
	st := cStat(&s)
	return asError(int(C.ceph_fsetattrx(m.ptr(), C.int(f.Fd()), &st, C.int(mask))))
}

// Link makes a further name of the inode at existing, which is not followed if
// it is a symlink.
func (m *Mount) Link(existing, newname string) error {
	at := strings.LastIndexByte(newname, '/')
	from, dir, name := C.CString(existing), C.CString(newname[:at+1]), C.CString(newname[at+1:])
	defer C.free(unsafe.Pointer(from))
	defer C.free(unsafe.Pointer(dir))
	defer C.free(unsafe.Pointer(name))
	return asError(int(C.cm_link(m.ptr(), from, dir, name)))
}

// MakeNode creates a special file. Mode holds type and permission bits.
func (m *Mount) MakeNode(path string, mode uint32, rdev uint64) error {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	return asError(int(C.ceph_mknod(m.ptr(), p, C.mode_t(mode), C.dev_t(rdev))))
}

// MakeSnapshot makes a snapshot of dir with metadata, atomically.
func (m *Mount) MakeSnapshot(dir, name string, mode uint32, metadata map[string]string) error {
	d, n := C.CString(dir), C.CString(name)
	defer C.free(unsafe.Pointer(d))
	defer C.free(unsafe.Pointer(n))
	pairs := (*C.struct_snap_metadata)(C.calloc(C.size_t(len(metadata)+1), C.sizeof_struct_snap_metadata))
	defer C.free(unsafe.Pointer(pairs))
	list := unsafe.Slice(pairs, len(metadata)+1)
	i := 0
	for k, v := range metadata {
		list[i].key, list[i].value = C.CString(k), C.CString(v)
		defer C.free(unsafe.Pointer(list[i].key))
		defer C.free(unsafe.Pointer(list[i].value))
		i++
	}
	return asError(int(C.ceph_mksnap(m.ptr(), d, n, C.mode_t(mode), pairs, C.size_t(len(metadata)))))
}

// RemoveSnapshot removes the snapshot of dir.
func (m *Mount) RemoveSnapshot(dir, name string) error {
	d, n := C.CString(dir), C.CString(name)
	defer C.free(unsafe.Pointer(d))
	defer C.free(unsafe.Pointer(n))
	return asError(int(C.ceph_rmsnap(m.ptr(), d, n)))
}

// SnapInfo returns the id and the metadata of the snapshot at path, which
// names the snapshot inside a snapshot directory.
func (m *Mount) SnapInfo(path string) (id uint64, metadata map[string]string, err error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	var info C.struct_snap_info
	if err := asError(int(C.ceph_get_snap_info(m.ptr(), p, &info))); err != nil {
		return 0, nil, err
	}
	id = uint64(info.id)
	if info.nr_snap_metadata == 0 {
		return id, nil, nil
	}
	defer C.ceph_free_snap_info_buffer(&info)
	metadata = make(map[string]string)
	for _, kv := range unsafe.Slice(info.snap_metadata, int(info.nr_snap_metadata)) {
		metadata[C.GoString(kv.key)] = C.GoString(kv.value)
	}
	return id, metadata, nil
}

// FileStat returns the attributes of an open file, as fresh as stat(2).
func (m *Mount) FileStat(f *cephfs.File) (Stat, error) {
	st, err := f.Fstatx(cephfs.StatxAllStats, 0)
	if err != nil {
		return Stat{}, err
	}
	at := func(t cephfs.Timespec) Time { return Time{t.Sec, t.Nsec} }
	return Stat{
		Ino: uint64(st.Inode), Size: st.Size, Version: st.Version, Rdev: st.Rdev,
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Atime: at(st.Atime), Mtime: at(st.Mtime), Ctime: at(st.Ctime), Btime: at(st.Btime),
	}, nil
}
