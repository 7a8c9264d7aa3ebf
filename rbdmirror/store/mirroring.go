package store

import (
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// MirroringObject is the name of the object with a namespace's mirroring
// configuration and records. A daemon watches it where it reports status.
const MirroringObject = "rbd_mirroring"

// LeaderObject is the name of the object that a pool's daemons elect a leader
// with.
const LeaderObject = "rbd_mirror_leader"

// notifyTimeout is how long to wait for those who are notified.
const notifyTimeout = 5 * time.Second

// Mirroring is the mirroring configuration and the image records of a pool or
// namespace. Peers are kept in the default namespace only.
type Mirroring struct{ ioctx *rados.IOContext }

// NewMirroring returns the records of the context's pool and namespace.
func NewMirroring(ioctx *rados.IOContext) *Mirroring { return &Mirroring{ioctx} }

// UUID returns the mirror uuid. ENOENT: mirroring was never enabled.
func (m *Mirroring) UUID() (string, error) {
	return read1(m.ioctx, MirroringObject, cls.MirrorUUIDGet(), cls.DecodeStr)
}

// Mode returns the mirroring mode, PoolModeDisabled if there is none.
func (m *Mirroring) Mode() (cls.PoolMode, error) {
	mode, err := read1(m.ioctx, MirroringObject, cls.MirrorModeGet(), cls.DecodePoolMode)
	if ceph.Is(err, syscall.ENOENT) {
		return cls.PoolModeDisabled, nil
	}
	return mode, err
}

// RemoteNamespace returns which namespace of the peer this one is mirrored
// with: the one of the same name unless told otherwise, which Reef cannot.
func (m *Mirroring) RemoteNamespace() (string, error) {
	ns, err := read1(m.ioctx, MirroringObject, cls.MirrorRemoteNamespaceGet(), cls.DecodeStr)
	if ceph.Is(err, syscall.ENOENT, syscall.EOPNOTSUPP) {
		return m.ioctx.GetNamespace()
	}
	return ns, err
}

// Peers returns the peers of the pool.
func (m *Mirroring) Peers() ([]cls.Peer, error) {
	peers, err := read1(m.ioctx, MirroringObject, cls.MirrorPeerList(), cls.DecodePeers)
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	return peers, err
}

// Ping tells this, the remote, pool that the given site replicates from it.
func (m *Mirroring) Ping(site, mirrorUUID string) error {
	return Write(m.ioctx, MirroringObject, cls.MirrorPeerPing(site, mirrorUUID))
}

// Images returns a page of the global ids of mirrored images, by image id.
func (m *Mirroring) Images(after string, limit uint64) (map[string]string, error) {
	page, err := read1(m.ioctx, MirroringObject, cls.MirrorImageList(after, limit), cls.DecodeStrMap)
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	return page, err
}

// AllImages returns the global ids of all mirrored images, by image id.
func (m *Mirroring) AllImages() (map[string]string, error) {
	return readPages(m.ioctx, MirroringObject, cls.MirrorImageList, cls.DecodeStrMap)
}

// Image returns the record of an image. ENOENT: it is not mirrored.
func (m *Mirroring) Image(imageID string) (cls.MirrorImage, error) {
	return read1(m.ioctx, MirroringObject, cls.MirrorImageGet(imageID), cls.DecodeMirrorImage)
}

// ImageID returns the image with a global id. ENOENT: there is none.
func (m *Mirroring) ImageID(globalID string) (string, error) {
	return read1(m.ioctx, MirroringObject, cls.MirrorImageGetID(globalID), cls.DecodeStr)
}

// SetImage stores an image's record and tells those who watch. EEXIST: another
// image has the global id.
func (m *Mirroring) SetImage(imageID string, r cls.MirrorImage) error {
	if err := Write(m.ioctx, MirroringObject, cls.MirrorImageSet(imageID, r)); err != nil {
		return err
	}
	m.notify(imageID, r)
	return nil
}

// RemoveImage removes an image's record and all that was reported of it, and
// tells those who watch. It is no error that there is no record.
func (m *Mirroring) RemoveImage(imageID string) error {
	r, err := m.Image(imageID)
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.State != cls.RecordDisabling {
		r.State = cls.RecordDisabling
		if err := m.SetImage(imageID, r); err != nil {
			return err
		}
	}
	if err := Write(m.ioctx, MirroringObject, cls.MirrorImageRemove(imageID)); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	r.State = cls.RecordDisabled
	m.notify(imageID, r)
	return nil
}

// notify tells the watchers of a changed record. Who does not hear of it finds
// out by listing, so a failure is nobody's business.
func (m *Mirroring) notify(imageID string, r cls.MirrorImage) {
	n := cls.MirroringNotify{Op: cls.MirroringImageUpdated, State: r.State, ImageID: imageID, GlobalID: r.GlobalID}
	_, _, _ = m.ioctx.NotifyWithTimeout(MirroringObject, n.Encode(), notifyTimeout)
}

// ImageStatus is a status to be reported of one image.
type ImageStatus struct {
	GlobalID string
	Status   cls.SiteStatus
}

// SetStatus reports the status of images, all in one operation. OSDs ignore
// images that are not enabled. The class takes the writer's up state and time
// from elsewhere.
func (m *Mirroring) SetStatus(list []ImageStatus) error {
	if len(list) == 0 {
		return nil
	}
	calls := make([]cls.Call, len(list))
	for i, s := range list {
		calls[i] = cls.MirrorImageStatusSet(s.GlobalID, s.Status)
	}
	return Write(m.ioctx, MirroringObject, calls...)
}

// Status returns all that is reported of an image.
func (m *Mirroring) Status(globalID string) (cls.MirrorImageStatus, error) {
	return read1(m.ioctx, MirroringObject, cls.MirrorImageStatusGet(globalID), cls.DecodeMirrorImageStatus)
}

// RemoveStatus removes all that was reported of an image.
func (m *Mirroring) RemoveStatus(globalID string) error {
	return Write(m.ioctx, MirroringObject, cls.MirrorImageStatusRemove(globalID))
}

// StatusKey returns the omap key of what the daemon of the cluster with this
// mirror uuid reports of an image; empty for the cluster's own.
func StatusKey(globalID, mirrorUUID string) string {
	if mirrorUUID == "" {
		return "status_global_" + globalID
	}
	return "remote_status_global_" + globalID + "_" + mirrorUUID
}

// RemoveSiteStatus removes what one site reported of images.
func (m *Mirroring) RemoveSiteStatus(mirrorUUID string, globalIDs ...string) error {
	if len(globalIDs) == 0 {
		return nil
	}
	keys := make([]string, len(globalIDs))
	for i, id := range globalIDs {
		keys[i] = StatusKey(id, mirrorUUID)
	}
	if err := m.ioctx.RmOmapKeys(MirroringObject, keys); err != nil {
		return fmt.Errorf("%s: removing status: %w", MirroringObject, err)
	}
	return nil
}

// RemoveDown removes every status whose writer is gone.
func (m *Mirroring) RemoveDown() error {
	err := Write(m.ioctx, MirroringObject, cls.MirrorImageStatusRemoveDown())
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}
