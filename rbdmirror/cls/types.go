// Package cls knows the encodings that RBD keeps in RADOS and that the object
// classes rbd and lock take and return: mirroring records and status, image
// headers, snapshots, image states, the trash, locks, notifications.
//
// Everything here is plain data and needs no Ceph library. A Call is one class
// method with its encoded input; the Decode functions read replies, stored
// values and notifications. Decoders accept anything: they neither panic nor
// set memory aside for what is merely announced.
package cls

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// NoSnap stands for the head of an image where a snapshot id is asked for.
const NoSnap = uint64(0xfffffffffffffffe)

// NoLimit is the snapshot limit of an image without one.
const NoLimit = ^uint64(0)

// Image features.
const (
	FeatureLayering      = uint64(1) << 0
	FeatureStriping      = uint64(1) << 1
	FeatureExclusiveLock = uint64(1) << 2
	FeatureObjectMap     = uint64(1) << 3
	FeatureFastDiff      = uint64(1) << 4
	FeatureDeepFlatten   = uint64(1) << 5
	FeatureJournaling    = uint64(1) << 6
	FeatureDataPool      = uint64(1) << 7
	FeatureOperations    = uint64(1) << 8
	FeatureMigrating     = uint64(1) << 9
	FeatureNonPrimary    = uint64(1) << 10
	FeatureDirtyCache    = uint64(1) << 11

	// ImplicitFeatures follow from other things and are not carried over.
	ImplicitFeatures = FeatureStriping | FeatureFastDiff | FeatureDataPool | FeatureOperations |
		FeatureMigrating | FeatureNonPrimary | FeatureDirtyCache
)

// Operation features: what was done with an image.
const (
	OpFeatureCloneParent = uint64(1) << 0
	OpFeatureCloneChild  = uint64(1) << 1
	OpFeatureGroup       = uint64(1) << 2
	OpFeatureSnapTrash   = uint64(1) << 3
)

// Flags of an image or snapshot.
const (
	FlagObjectMapInvalid = uint64(1) << 0
	FlagFastDiffInvalid  = uint64(1) << 1
)

// PoolMode is the mirroring mode of a pool or namespace.
type PoolMode uint32

const (
	PoolModeDisabled PoolMode = iota
	PoolModeImage
	PoolModePool
	PoolModeInitOnly // Tentacle: peers may be set up, no images are mirrored
)

// Direction says which way a peer replicates.
type Direction uint8

const (
	DirectionRx Direction = iota
	DirectionTx
	DirectionRxTx
)

// Peer is a cluster that a pool is mirrored with.
type Peer struct {
	UUID       string
	SiteName   string
	ClientName string // with "client." in front
	PoolID     int64  // -1
	Direction  Direction
	MirrorUUID string // of the peer's pool, empty when not known yet
	LastSeen   time.Time
}

// RecordState is the state of an image's mirroring record.
type RecordState uint8

const (
	RecordDisabling RecordState = iota
	RecordEnabled
	RecordDisabled
	RecordCreating
)

// ImageMode says how an image is mirrored.
type ImageMode uint8

const (
	ImageModeJournal ImageMode = iota
	ImageModeSnapshot
)

// MirrorImage is the mirroring record of an image.
type MirrorImage struct {
	GlobalID string
	State    RecordState
	Mode     ImageMode
}

// StatusState is the state that a daemon reports of an image.
type StatusState uint8

const (
	StatusUnknown StatusState = iota
	StatusError
	StatusSyncing
	StatusStartingReplay
	StatusReplaying
	StatusStoppingReplay
	StatusStopped
)

// SiteStatus is what one daemon reports of an image.
type SiteStatus struct {
	MirrorUUID  string // of the reporting cluster; empty for the cluster's own daemon
	State       StatusState
	Description string
	LastUpdate  time.Time
	Up          bool
}

// MirrorImageStatus is all that is reported of an image on one cluster.
type MirrorImageStatus struct {
	Local  *SiteStatus // nil if the cluster's own daemon reported nothing
	Remote []SiteStatus
}

// EntityName names a client or daemon: its type (8 for clients) and number.
type EntityName struct {
	Type uint8
	Num  int64
}

// EntityClient is the type of a client.
const EntityClient = uint8(8)

// String returns the usual form, for example "client.4125".
func (n EntityName) String() string {
	names := map[uint8]string{1: "mon", 2: "mds", 4: "osd", EntityClient: "client", 16: "mgr"}
	kind, ok := names[n.Type]
	if !ok {
		kind = "unknown"
	}
	return kind + "." + strconv.FormatInt(n.Num, 10)
}

// EntityAddr is the address of one instance of a client or daemon.
type EntityAddr struct {
	Type  uint32 // 1 legacy, 2 msgr2, 3 any
	Nonce uint32
	// Addr is not valid when the address is blank or of a strange family, in
	// which case Raw keeps it.
	Addr netip.AddrPort
	Raw  []byte
}

// String returns the form that watchers are listed with and that the blocklist
// takes, for example "127.0.0.1:0/37467613".
func (a EntityAddr) String() string {
	if !a.Addr.IsValid() {
		if len(a.Raw) > 0 {
			return "0x" + hex.EncodeToString(a.Raw) + "/" + strconv.FormatUint(uint64(a.Nonce), 10)
		}
		return ":/" + strconv.FormatUint(uint64(a.Nonce), 10)
	}
	return a.Addr.String() + "/" + strconv.FormatUint(uint64(a.Nonce), 10)
}

// EntityInst is one instance of a client or daemon.
type EntityInst struct {
	Name EntityName
	Addr EntityAddr
}

// ParentSpec names the snapshot that an image was cloned from.
type ParentSpec struct {
	PoolID    int64
	Namespace string
	ImageID   string
	SnapID    uint64
}

// NoParent is the ParentSpec of an image that is no clone.
var NoParent = ParentSpec{PoolID: -1, SnapID: NoSnap}

// Exists reports whether there is a parent.
func (p ParentSpec) Exists() bool { return p.PoolID >= 0 && p.ImageID != "" && p.SnapID != NoSnap }

// HeaderParent is the parent as the image header keeps it. HeadOverlap is nil
// when only snapshots depend on the parent.
type HeaderParent struct {
	Spec        ParentSpec
	HeadOverlap *uint64
}

// ChildSpec names a clone in the header of its parent.
type ChildSpec struct {
	PoolID    int64
	ImageID   string
	Namespace string
}

// Protection says whether a snapshot is protected from removal.
type Protection uint8

const (
	Unprotected Protection = iota
	Unprotecting
	Protected
)

// Snapshot is a snapshot of an image.
type Snapshot struct {
	ID         uint64
	Name       string
	Size       uint64
	Namespace  SnapshotNamespace
	Timestamp  time.Time
	ChildCount uint32
	// The following are not in the reply of snapshot_get but in the header's
	// own record, and have calls of their own.
	Protection    Protection
	Flags         uint64
	ParentOverlap *uint64 // nil if the snapshot has no parent
}

// NamespaceType tells what a snapshot is for.
type NamespaceType uint32

const (
	NamespaceUser NamespaceType = iota
	NamespaceGroup
	NamespaceTrash
	NamespaceMirror
)

// SnapshotNamespace tells what a snapshot is for. Of Group, Trash and Mirror
// the one that Type names is set; Raw keeps the body of an unknown type.
type SnapshotNamespace struct {
	Type   NamespaceType
	Group  *GroupNamespace
	Trash  *TrashNamespace
	Mirror *MirrorNamespace
	Raw    []byte
}

// GroupNamespace is that of a snapshot taken as part of a group's.
type GroupNamespace struct {
	PoolID     int64
	GroupID    string
	SnapshotID string
}

// TrashNamespace is that of a removed snapshot that is still in use.
type TrashNamespace struct {
	OriginalName string
	OriginalType NamespaceType
}

// MirrorState is the role that the image had when a mirror snapshot was taken.
type MirrorState uint8

const (
	MirrorPrimary MirrorState = iota
	MirrorPrimaryDemoted
	MirrorNonPrimary
	MirrorNonPrimaryDemoted
)

// MirrorNamespace is that of a mirror snapshot.
type MirrorNamespace struct {
	State    MirrorState
	Complete bool
	Peers    []string // uuids of the peers that still need it, in order
	// PrimaryUUID and PrimarySnapID name the snapshot that a non-primary one
	// is the copy of. In the primary states PrimarySnapID is a snapshot since
	// which no data changed, or NoSnap.
	PrimaryUUID   string
	PrimarySnapID uint64
	LastCopied    uint64            // object number up to which the copy has come
	SnapSeqs      map[uint64]uint64 // source snapshot id to local id, NoSnap for the one being copied
}

// Primary reports whether the image was primary, demoted or not.
func (m *MirrorNamespace) Primary() bool {
	return m.State == MirrorPrimary || m.State == MirrorPrimaryDemoted
}

// Demoted reports whether the snapshot was taken by a demotion.
func (m *MirrorNamespace) Demoted() bool {
	return m.State == MirrorPrimaryDemoted || m.State == MirrorNonPrimaryDemoted
}

// Orphan reports whether the snapshot was left by a forced promotion.
func (m *MirrorNamespace) Orphan() bool {
	return !m.Primary() && m.PrimaryUUID == "" && m.PrimarySnapID == NoSnap
}

// HasPeer reports whether the snapshot is still needed by the peer.
func (m *MirrorNamespace) HasPeer(uuid string) bool { return slices.Contains(m.Peers, uuid) }

// User is the namespace of ordinary snapshots.
var User = SnapshotNamespace{Type: NamespaceUser}

// Mirror returns the namespace of a mirror snapshot.
func Mirror(m MirrorNamespace) SnapshotNamespace {
	return SnapshotNamespace{Type: NamespaceMirror, Mirror: &m}
}

// SnapState is a user snapshot within an ImageState.
type SnapState struct {
	Namespace  SnapshotNamespace
	Name       string
	Protection Protection
}

// ImageState is what is kept beside a mirror snapshot: what else the image was
// when the snapshot was taken.
type ImageState struct {
	Name      string
	Features  uint64 // without implicit ones
	SnapLimit uint64
	Snapshots map[uint64]SnapState // user snapshots by source id
	Metadata  map[string][]byte
}

// TrashSource says who moved an image to the trash.
type TrashSource uint8

const (
	TrashUser TrashSource = iota
	TrashMirroring
	TrashMigration
	TrashRemoving
	TrashUserParent
)

// TrashState tells what is being done with an image in the trash.
type TrashState uint8

const (
	TrashStateNormal TrashState = iota
	TrashStateMoving
	TrashStateRemoving
	TrashStateRestoring
)

// TrashSpec is the record of an image in the trash.
type TrashSpec struct {
	Source        TrashSource
	Name          string
	DeletedAt     time.Time
	DeferredUntil time.Time
	State         TrashState
}

// LockType says whether a lock can be shared.
type LockType uint8

const (
	LockNone LockType = iota
	LockExclusive
	LockShared
)

// Locker holds a lock.
type Locker struct {
	Entity      EntityName
	Cookie      string
	Expiration  time.Time
	Addr        EntityAddr
	Description string
}

// LockInfo tells who holds a lock.
type LockInfo struct {
	Type    LockType
	Tag     string
	Lockers []Locker
}

// AutoCookie returns the lock cookie that librbd uses for a watch.
func AutoCookie(watch uint64) string { return "auto " + strconv.FormatUint(watch, 10) }

// ParseAutoCookie returns the watch that a lock cookie names.
func ParseAutoCookie(cookie string) (watch uint64, ok bool) {
	if len(cookie) < 6 || cookie[:5] != "auto " {
		return 0, false
	}
	watch, err := strconv.ParseUint(cookie[5:], 10, 64)
	return watch, err == nil
}

func (s StatusState) String() string {
	names := []string{"unknown", "error", "syncing", "starting_replay", "replaying", "stopping_replay", "stopped"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("unknown (%d)", uint8(s))
}

func (s MirrorState) String() string {
	names := []string{"primary", "demoted", "non-primary", "demoted non-primary"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("unknown (%d)", uint8(s))
}
