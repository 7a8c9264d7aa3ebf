package cls

import (
	"fmt"
	"time"

	"cephmirror/rbdmirror/wire"
)

// Call is one class method and its encoded input.
type Call struct {
	Class  string
	Method string
	In     []byte
}

func rbd(method string, write func(*wire.Writer)) Call {
	c := Call{Class: "rbd", Method: method}
	if write != nil {
		c.In = encode(write)
	}
	return c
}

func rbdStr(method, s string) Call { return rbd(method, func(w *wire.Writer) { w.Str(s) }) }

func rbdU64(method string, v uint64) Call { return rbd(method, func(w *wire.Writer) { w.U64(v) }) }

func rbdPage(method, after string, limit uint64) Call {
	return rbd(method, func(w *wire.Writer) {
		w.Str(after)
		w.U64(limit)
	})
}

// Calls on rbd_mirroring.

// MirrorUUIDGet asks for the mirror uuid: DecodeStr. ENOENT: never enabled.
func MirrorUUIDGet() Call { return rbd("mirror_uuid_get", nil) }

// MirrorUUIDSet sets the mirror uuid while mirroring is disabled.
func MirrorUUIDSet(uuid string) Call { return rbdStr("mirror_uuid_set", uuid) }

// MirrorModeGet asks for the mode: DecodePoolMode. ENOENT: disabled.
func MirrorModeGet() Call { return rbd("mirror_mode_get", nil) }

// MirrorModeSet sets the mode.
func MirrorModeSet(m PoolMode) Call {
	return rbd("mirror_mode_set", func(w *wire.Writer) { w.U32(uint32(m)) })
}

// MirrorRemoteNamespaceGet asks for the name of the peer's namespace:
// DecodeStr. Tentacle only.
func MirrorRemoteNamespaceGet() Call { return rbd("mirror_remote_namespace_get", nil) }

// MirrorRemoteNamespaceSet sets the name of the peer's namespace.
func MirrorRemoteNamespaceSet(ns string) Call { return rbdStr("mirror_remote_namespace_set", ns) }

// MirrorPeerList asks for the peers: DecodePeers.
func MirrorPeerList() Call { return rbd("mirror_peer_list", nil) }

// MirrorPeerAdd adds a peer.
func MirrorPeerAdd(p Peer) Call { return rbd("mirror_peer_add", p.write) }

// MirrorPeerRemove removes a peer.
func MirrorPeerRemove(uuid string) Call { return rbdStr("mirror_peer_remove", uuid) }

// MirrorPeerSetDirection changes a peer's direction.
func MirrorPeerSetDirection(uuid string, d Direction) Call {
	return rbd("mirror_peer_set_direction", func(w *wire.Writer) {
		w.Str(uuid)
		w.U8(uint8(d))
	})
}

// MirrorPeerPing tells a remote cluster that the named site replicates from it.
func MirrorPeerPing(site, mirrorUUID string) Call {
	return rbd("mirror_peer_ping", func(w *wire.Writer) {
		w.Str(site)
		w.Str(mirrorUUID)
		w.U8(uint8(DirectionTx))
	})
}

// MirrorImageList asks for a page of global ids by image id: DecodeStrMap.
func MirrorImageList(after string, limit uint64) Call {
	return rbdPage("mirror_image_list", after, limit)
}

// MirrorImageGet asks for an image's record: DecodeMirrorImage.
func MirrorImageGet(imageID string) Call { return rbdStr("mirror_image_get", imageID) }

// MirrorImageGetID asks for the image with a global id: DecodeStr.
func MirrorImageGetID(globalID string) Call { return rbdStr("mirror_image_get_image_id", globalID) }

// MirrorImageSet stores an image's record.
func MirrorImageSet(imageID string, m MirrorImage) Call {
	return rbd("mirror_image_set", func(w *wire.Writer) {
		w.Str(imageID)
		m.write(w)
	})
}

// MirrorImageRemove removes an image's record, which must be disabling.
func MirrorImageRemove(imageID string) Call { return rbdStr("mirror_image_remove", imageID) }

// MirrorImageStatusSet reports an image's status.
func MirrorImageStatusSet(globalID string, s SiteStatus) Call {
	return rbd("mirror_image_status_set", func(w *wire.Writer) {
		w.Str(globalID)
		s.write(w)
	})
}

// MirrorImageStatusGet asks for an image's status: DecodeMirrorImageStatus.
func MirrorImageStatusGet(globalID string) Call {
	return rbdStr("mirror_image_status_get", globalID)
}

// MirrorImageStatusList asks for a page of images and their status by image id:
// DecodeStatusList.
func MirrorImageStatusList(after string, limit uint64) Call {
	return rbdPage("mirror_image_status_list", after, limit)
}

// MirrorImageStatusRemove removes all that was reported of an image.
func MirrorImageStatusRemove(globalID string) Call {
	return rbdStr("mirror_image_status_remove", globalID)
}

// MirrorImageStatusRemoveDown removes every status whose writer is gone.
func MirrorImageStatusRemoveDown() Call { return rbd("mirror_image_status_remove_down", nil) }

// MirrorImageStatusSummary counts images by state: DecodeStatusSummary.
func MirrorImageStatusSummary(peers []Peer) Call {
	return rbd("mirror_image_status_get_summary", func(w *wire.Writer) { writePeers(w, peers) })
}

// MirrorImageInstanceGet asks who reported an image's local status:
// DecodeEntityInst. ESTALE: the writer is gone.
func MirrorImageInstanceGet(globalID string) Call {
	return rbdStr("mirror_image_instance_get", globalID)
}

// MirrorImageInstanceList asks for a page of reporters by global id:
// DecodeInstanceMap.
func MirrorImageInstanceList(after string, limit uint64) Call {
	return rbdPage("mirror_image_instance_list", after, limit)
}

// Calls on the header of an image.

// CreateOptions are the fixed properties of an image and its first size.
type CreateOptions struct {
	Size     uint64
	Order    uint8
	Features uint64
	Prefix   string
	DataPool int64 // -1 without FeatureDataPool
}

// Create makes a header.
func Create(o CreateOptions) Call {
	return rbd("create", func(w *wire.Writer) {
		w.U64(o.Size)
		w.U8(o.Order)
		w.U64(o.Features)
		w.Str(o.Prefix)
		w.S64(o.DataPool)
	})
}

// GetSize asks for the size of a snapshot or of the head: DecodeSize.
func GetSize(snap uint64) Call { return rbdU64("get_size", snap) }

// SetSize sets the head's size.
func SetSize(size uint64) Call { return rbdU64("set_size", size) }

// GetFeatures asks for the features: DecodeFeatures. A reader is not told that
// non-primary images are incompatible.
func GetFeatures(readOnly bool) Call {
	return rbd("get_features", func(w *wire.Writer) {
		w.U64(NoSnap)
		w.Bool(readOnly)
	})
}

// SetFeatures sets the features in mask.
func SetFeatures(features, mask uint64) Call {
	return rbd("set_features", func(w *wire.Writer) {
		w.U64(features)
		w.U64(mask)
	})
}

// GetFlags asks for the flags of a snapshot or of the head: DecodeU64.
func GetFlags(snap uint64) Call { return rbdU64("get_flags", snap) }

// SetFlags sets the flags in mask of a snapshot or of the head.
func SetFlags(flags, mask, snap uint64) Call {
	return rbd("set_flags", func(w *wire.Writer) {
		w.U64(flags)
		w.U64(mask)
		w.U64(snap)
	})
}

// OpFeaturesGet asks for the operation features: DecodeU64.
func OpFeaturesGet() Call { return rbd("op_features_get", nil) }

// OpFeaturesSet sets the operation features in mask.
func OpFeaturesSet(features, mask uint64) Call {
	return rbd("op_features_set", func(w *wire.Writer) {
		w.U64(features)
		w.U64(mask)
	})
}

// GetObjectPrefix asks for the prefix of data objects: DecodeStr.
func GetObjectPrefix() Call { return rbd("get_object_prefix", nil) }

// GetDataPool asks for the data pool, -1 for none: DecodeS64.
func GetDataPool() Call { return rbd("get_data_pool", nil) }

// GetStripe asks for stripe unit and count: DecodeStripe. ENOEXEC: the image
// has no striping of its own.
func GetStripe() Call { return rbd("get_stripe_unit_count", nil) }

// SetStripe sets stripe unit and count.
func SetStripe(unit, count uint64) Call {
	return rbd("set_stripe_unit_count", func(w *wire.Writer) {
		w.U64(unit)
		w.U64(count)
	})
}

// GetCreateTimestamp asks when the image was created: DecodeTime.
func GetCreateTimestamp() Call { return rbd("get_create_timestamp", nil) }

// GetSnapContext asks for the snapshot ids, newest first: DecodeSnapContext.
func GetSnapContext() Call { return rbd("get_snapcontext", nil) }

// SnapshotGet asks for a snapshot: DecodeSnapshotInfo.
func SnapshotGet(snap uint64) Call { return rbdU64("snapshot_get", snap) }

// SnapshotAdd adds a snapshot with the size, flags and parent of the head.
// ESTALE: the id is too low by now.
func SnapshotAdd(name string, snap uint64, ns SnapshotNamespace) Call {
	return rbd("snapshot_add", func(w *wire.Writer) {
		w.Str(name)
		w.U64(snap)
		ns.write(w)
	})
}

// SnapshotRemove removes a snapshot from the header.
func SnapshotRemove(snap uint64) Call { return rbdU64("snapshot_remove", snap) }

// SnapshotRename renames a user snapshot.
func SnapshotRename(snap uint64, name string) Call {
	return rbd("snapshot_rename", func(w *wire.Writer) {
		w.U64(snap)
		w.Str(name)
	})
}

// SnapshotTrashAdd moves a snapshot out of sight.
func SnapshotTrashAdd(snap uint64) Call { return rbdU64("snapshot_trash_add", snap) }

// GetProtection asks whether a snapshot is protected: DecodeProtection.
func GetProtection(snap uint64) Call { return rbdU64("get_protection_status", snap) }

// SetProtection protects a snapshot or not.
func SetProtection(snap uint64, p Protection) Call {
	return rbd("set_protection_status", func(w *wire.Writer) {
		w.U64(snap)
		w.U8(uint8(p))
	})
}

// SnapshotGetLimit asks for the snapshot limit: DecodeU64.
func SnapshotGetLimit() Call { return rbd("snapshot_get_limit", nil) }

// SnapshotSetLimit sets the snapshot limit.
func SnapshotSetLimit(limit uint64) Call { return rbdU64("snapshot_set_limit", limit) }

// MetadataList asks for a page of metadata: DecodeBlobMap.
func MetadataList(after string, limit uint64) Call { return rbdPage("metadata_list", after, limit) }

// MetadataSet sets metadata.
func MetadataSet(m map[string][]byte) Call {
	return rbd("metadata_set", func(w *wire.Writer) {
		writeMap(w, m, func(k string, v []byte) {
			w.Str(k)
			w.Blob(v)
		})
	})
}

// MetadataGet asks for one value: DecodeStr.
func MetadataGet(key string) Call { return rbdStr("metadata_get", key) }

// MetadataRemove removes one value.
func MetadataRemove(key string) Call { return rbdStr("metadata_remove", key) }

// ParentGet asks for the parent: DecodeParentSpec.
func ParentGet() Call { return rbd("parent_get", nil) }

// ParentOverlapGet asks how much of a snapshot or of the head the parent backs:
// DecodeOptU64.
func ParentOverlapGet(snap uint64) Call { return rbdU64("parent_overlap_get", snap) }

// ParentAttach makes the image a clone.
func ParentAttach(p ParentSpec, overlap uint64, reattach bool) Call {
	return rbd("parent_attach", func(w *wire.Writer) {
		p.write(w)
		w.U64(overlap)
		w.Bool(reattach)
	})
}

// ParentDetach cuts the head from its parent.
func ParentDetach() Call { return rbd("parent_detach", nil) }

// ChildAttach notes a clone in the header of its parent.
func ChildAttach(snap uint64, c ChildSpec) Call { return rbd("child_attach", child(snap, c)) }

// ChildDetach removes a clone from the header of its parent.
func ChildDetach(snap uint64, c ChildSpec) Call { return rbd("child_detach", child(snap, c)) }

func child(snap uint64, c ChildSpec) func(*wire.Writer) {
	return func(w *wire.Writer) {
		w.U64(snap)
		c.write(w)
	}
}

// ChildrenList asks for the clones of a snapshot: DecodeChildren.
func ChildrenList(snap uint64) Call { return rbdU64("children_list", snap) }

// AddChild notes an old-style clone in rbd_children.
func AddChild(p ParentSpec, childID string) Call { return rbd("add_child", oldChild(p, childID)) }

// RemoveChild removes an old-style clone from rbd_children.
func RemoveChild(p ParentSpec, childID string) Call {
	return rbd("remove_child", oldChild(p, childID))
}

// GetChildren asks rbd_children for the old-style clones of a snapshot:
// DecodeStrings. ENOENT: none.
func GetChildren(p ParentSpec) Call {
	return rbd("get_children", func(w *wire.Writer) {
		w.S64(p.PoolID)
		w.Str(p.ImageID)
		w.U64(p.SnapID)
	})
}

func oldChild(p ParentSpec, childID string) func(*wire.Writer) {
	return func(w *wire.Writer) {
		w.S64(p.PoolID)
		w.Str(p.ImageID)
		w.U64(p.SnapID)
		w.Str(childID)
	}
}

// UnlinkPeer notes that a peer no longer needs a mirror snapshot.
func UnlinkPeer(snap uint64, peerUUID string) Call {
	return rbd("mirror_image_snapshot_unlink_peer", func(w *wire.Writer) {
		w.U64(snap)
		w.Str(peerUUID)
	})
}

// SetCopyProgress notes how far the copy of a mirror snapshot has come.
func SetCopyProgress(snap uint64, complete bool, object uint64) Call {
	return rbd("mirror_image_snapshot_set_copy_progress", func(w *wire.Writer) {
		w.U64(snap)
		w.Bool(complete)
		w.U64(object)
	})
}

// Calls on rbd_directory, rbd_id.* and rbd_trash.

// DirAddImage adds an image to the directory.
func DirAddImage(name, id string) Call { return rbd("dir_add_image", strs(name, id)) }

// DirRemoveImage removes an image from the directory.
func DirRemoveImage(name, id string) Call { return rbd("dir_remove_image", strs(name, id)) }

// DirRenameImage renames an image in the directory.
func DirRenameImage(from, to, id string) Call { return rbd("dir_rename_image", strs(from, to, id)) }

func strs(list ...string) func(*wire.Writer) {
	return func(w *wire.Writer) {
		for _, s := range list {
			w.Str(s)
		}
	}
}

// DirGetID asks for the id of a name: DecodeStr.
func DirGetID(name string) Call { return rbdStr("dir_get_id", name) }

// DirGetName asks for the name of an id: DecodeStr.
func DirGetName(id string) Call { return rbdStr("dir_get_name", id) }

// DirList asks for a page of ids by name: DecodeStrMap.
func DirList(after string, limit uint64) Call { return rbdPage("dir_list", after, limit) }

// NamespaceList asks for a page of the namespaces of a pool, the default one
// apart: DecodeStrings.
func NamespaceList(after string, limit uint64) Call { return rbdPage("namespace_list", after, limit) }

// DirStateReady asserts that the namespace's directory is in use. It belongs
// into the operation that adds to it.
func DirStateReady() Call { return rbd("dir_state_assert", func(w *wire.Writer) { w.U8(0) }) }

// GetAllFeatures asks which features the OSDs know: DecodeU64.
func GetAllFeatures() Call { return rbd("get_all_features", nil) }

// SetID sets the id of an rbd_id object.
func SetID(id string) Call { return rbdStr("set_id", id) }

// GetID asks an rbd_id object for its id: DecodeStr.
func GetID() Call { return rbd("get_id", nil) }

// TrashAdd adds an image to the trash.
func TrashAdd(id string, t TrashSpec) Call {
	return rbd("trash_add", func(w *wire.Writer) {
		w.Str(id)
		t.write(w)
	})
}

// TrashRemove removes an image from the trash.
func TrashRemove(id string) Call { return rbdStr("trash_remove", id) }

// TrashGet asks for an image in the trash: DecodeTrashSpec.
func TrashGet(id string) Call { return rbdStr("trash_get", id) }

// TrashList asks for a page of the trash by image id: DecodeTrashMap.
func TrashList(after string, limit uint64) Call { return rbdPage("trash_list", after, limit) }

// TrashStateSet changes a trash record's state, which must be as expected.
func TrashStateSet(id string, to, expected TrashState) Call {
	return rbd("trash_state_set", func(w *wire.Writer) {
		w.Str(id)
		w.U8(uint8(to))
		w.U8(uint8(expected))
	})
}

// Calls on object maps. Maps are bit vectors as package objectmap has them.

// ObjectMapLoad asks for the map.
func ObjectMapLoad() Call { return rbd("object_map_load", nil) }

// ObjectMapSave replaces the map.
func ObjectMapSave(encoded []byte) Call {
	return rbd("object_map_save", func(w *wire.Writer) { w.Raw(encoded) })
}

// ObjectMapResize makes the map cover count objects. New ones get the state.
func ObjectMapResize(count uint64, state uint8) Call {
	return rbd("object_map_resize", func(w *wire.Writer) {
		w.U64(count)
		w.U8(state)
	})
}

// ObjectMapUpdate gives the objects from start to before end a new state, if
// current is not nil only those that have that one.
func ObjectMapUpdate(start, end uint64, state uint8, current *uint8) Call {
	return rbd("object_map_update", func(w *wire.Writer) {
		w.U64(start)
		w.U64(end)
		w.U8(state)
		w.Bool(current != nil)
		if current != nil {
			w.U8(*current)
		}
	})
}

// ObjectMapSnapAdd marks all objects as unchanged since the new snapshot.
func ObjectMapSnapAdd() Call { return rbd("object_map_snap_add", nil) }

// ObjectMapSnapRemove merges the map of a removed snapshot into the next one.
func ObjectMapSnapRemove(encoded []byte) Call {
	return rbd("object_map_snap_remove", func(w *wire.Writer) { w.Raw(encoded) })
}

// Calls on locks.

func lock(method string, body func(*wire.Writer)) Call {
	return Call{Class: "lock", Method: method, In: encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() { body(w) })
	})}
}

// LockLock takes a lock. EEXIST: held with that cookie already, EBUSY: held by
// another.
func LockLock(name string, kind LockType, cookie, tag, description string) Call {
	return lock("lock", func(w *wire.Writer) {
		w.Str(name)
		w.U8(uint8(kind))
		w.Str(cookie)
		w.Str(tag)
		w.Str(description)
		w.U64(0) // for ever
		w.U8(0)
	})
}

// LockUnlock gives up a lock.
func LockUnlock(name, cookie string) Call { return lock("unlock", strs(name, cookie)) }

// LockBreak takes a lock away from its holder.
func LockBreak(name string, holder EntityName, cookie string) Call {
	return lock("break_lock", func(w *wire.Writer) {
		w.Str(name)
		holder.write(w)
		w.Str(cookie)
	})
}

// LockGetInfo asks who holds a lock: DecodeLockInfo.
func LockGetInfo(name string) Call {
	return lock("get_info", func(w *wire.Writer) { w.Str(name) })
}

// LockSetCookie gives the own lock a new cookie. EBUSY: not held with the old
// one.
func LockSetCookie(name string, kind LockType, cookie, tag, newCookie string) Call {
	return lock("set_cookie", func(w *wire.Writer) {
		w.Str(name)
		w.U8(uint8(kind))
		w.Str(cookie)
		w.Str(tag)
		w.Str(newCookie)
	})
}

// LockAssert makes an operation fail with EBUSY unless the lock is held.
func LockAssert(name string, kind LockType, cookie, tag string) Call {
	return lock("assert_locked", func(w *wire.Writer) {
		w.Str(name)
		w.U8(uint8(kind))
		w.Str(cookie)
		w.Str(tag)
	})
}

// Replies.

// DecodeStr decodes the reply of calls that return one string.
func DecodeStr(b []byte) (string, error) { return decode("string", b, readStr) }

// DecodeU64 decodes the reply of calls that return one integer.
func DecodeU64(b []byte) (uint64, error) { return decode("integer", b, readU64) }

// DecodeS64 decodes the reply of calls that return one signed integer.
func DecodeS64(b []byte) (int64, error) { return decode("integer", b, (*wire.Reader).S64) }

// DecodeOptU64 decodes the reply of parent_overlap_get.
func DecodeOptU64(b []byte) (*uint64, error) {
	return decode("optional integer", b, (*wire.Reader).OptU64)
}

// DecodePoolMode decodes the reply of mirror_mode_get.
func DecodePoolMode(b []byte) (PoolMode, error) {
	m, err := decode("mirror mode", b, (*wire.Reader).U32)
	return PoolMode(m), err
}

func writePeers(w *wire.Writer, peers []Peer) {
	w.U32(uint32(len(peers)))
	for _, p := range peers {
		p.write(w)
	}
}

// DecodePeers decodes the reply of mirror_peer_list.
func DecodePeers(b []byte) ([]Peer, error) {
	return decode("mirror peers", b, func(r *wire.Reader) []Peer { return readList(r, 6, readPeer) })
}

// DecodeStrMap decodes the reply of mirror_image_list and dir_list.
func DecodeStrMap(b []byte) (map[string]string, error) {
	return decode("map of strings", b, func(r *wire.Reader) map[string]string {
		return readMap(r, 8, readStr, readStr)
	})
}

// DecodeStrings decodes the replies of get_children and namespace_list.
func DecodeStrings(b []byte) ([]string, error) {
	return decode("list of strings", b, func(r *wire.Reader) []string { return readList(r, 4, readStr) })
}

// DecodeBlobMap decodes the reply of metadata_list.
func DecodeBlobMap(b []byte) (map[string][]byte, error) {
	return decode("metadata", b, func(r *wire.Reader) map[string][]byte {
		return readMap(r, 8, readStr, (*wire.Reader).Blob)
	})
}

// DecodeTrashMap decodes the reply of trash_list.
func DecodeTrashMap(b []byte) (map[string]TrashSpec, error) {
	return decode("trash", b, func(r *wire.Reader) map[string]TrashSpec {
		return readMap(r, 10, readStr, readTrashSpec)
	})
}

// DecodeMirrorImageStatus decodes the reply of mirror_image_status_get.
func DecodeMirrorImageStatus(b []byte) (MirrorImageStatus, error) {
	return decode("mirror image status", b, readMirrorImageStatus)
}

// DecodeStatusList decodes the reply of mirror_image_status_list: records by
// image id, and status by image id.
func DecodeStatusList(b []byte) (map[string]MirrorImage, map[string]MirrorImageStatus, error) {
	var status map[string]MirrorImageStatus
	images, err := decode("status list", b, func(r *wire.Reader) map[string]MirrorImage {
		images := readMap(r, 10, readStr, readMirrorImage)
		status = readMap(r, 10, readStr, readMirrorImageStatus)
		return images
	})
	if err != nil {
		return nil, nil, err
	}
	return images, status, nil
}

// DecodeStatusSummary decodes the reply of mirror_image_status_get_summary.
func DecodeStatusSummary(b []byte) (map[StatusState]int32, error) {
	return decode("status summary", b, func(r *wire.Reader) map[StatusState]int32 {
		return readMap(r, 5, func(r *wire.Reader) StatusState { return StatusState(r.U8()) }, (*wire.Reader).S32)
	})
}

// DecodeEntityInst decodes the reply of mirror_image_instance_get.
func DecodeEntityInst(b []byte) (EntityInst, error) { return decode("entity", b, readEntityInst) }

// DecodeInstanceMap decodes the reply of mirror_image_instance_list.
func DecodeInstanceMap(b []byte) (map[string]EntityInst, error) {
	return decode("entities", b, func(r *wire.Reader) map[string]EntityInst {
		return readMap(r, 14, readStr, readEntityInst)
	})
}

// DecodeSize decodes the reply of get_size.
func DecodeSize(b []byte) (order uint8, size uint64, err error) {
	size, err = decode("size", b, func(r *wire.Reader) uint64 {
		order = r.U8()
		return r.U64()
	})
	if err != nil {
		order = 0
	}
	return order, size, err
}

// DecodeFeatures decodes the reply of get_features.
func DecodeFeatures(b []byte) (features, incompatible uint64, err error) {
	return decodePair("features", b)
}

// DecodeStripe decodes the reply of get_stripe_unit_count.
func DecodeStripe(b []byte) (unit, count uint64, err error) { return decodePair("stripe", b) }

func decodePair(what string, b []byte) (uint64, uint64, error) {
	p, err := decode(what, b, func(r *wire.Reader) [2]uint64 { return [2]uint64{r.U64(), r.U64()} })
	return p[0], p[1], err
}

// DecodeSnapContext decodes the reply of get_snapcontext.
func DecodeSnapContext(b []byte) (seq uint64, ids []uint64, err error) {
	ids, err = decode("snapshot context", b, func(r *wire.Reader) []uint64 {
		seq = r.U64()
		return readList(r, 8, readU64)
	})
	if err != nil {
		seq = 0
	}
	return seq, ids, err
}

// DecodeProtection decodes the reply of get_protection_status.
func DecodeProtection(b []byte) (Protection, error) {
	p, err := decode("protection", b, (*wire.Reader).U8)
	if err == nil && Protection(p) > Protected {
		return 0, fmt.Errorf("decoding protection: unknown value %d", p)
	}
	return Protection(p), err
}

// DecodeChildren decodes the reply of children_list.
func DecodeChildren(b []byte) ([]ChildSpec, error) {
	return decode("children", b, func(r *wire.Reader) []ChildSpec { return readList(r, 6, readChildSpec) })
}

// DecodeTime decodes the reply of get_create_timestamp.
func DecodeTime(b []byte) (time.Time, error) { return decode("time", b, (*wire.Reader).Time) }
