package store

import (
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// TrashObject is the name of the object that lists a namespace's trash.
const TrashObject = "rbd_trash"

// Trash is the trash of a pool or namespace.
type Trash struct{ ioctx *rados.IOContext }

// NewTrash returns the trash of the context's pool and namespace.
func NewTrash(ioctx *rados.IOContext) *Trash { return &Trash{ioctx} }

// Add adds an image's record. EEXIST: it is there already.
func (t *Trash) Add(imageID string, spec cls.TrashSpec) error {
	return Write(t.ioctx, TrashObject, cls.TrashAdd(imageID, spec))
}

// Remove removes an image's record. It is no error that there is none.
func (t *Trash) Remove(imageID string) error {
	err := Write(t.ioctx, TrashObject, cls.TrashRemove(imageID))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// Get returns an image's record. ENOENT: it is not in the trash.
func (t *Trash) Get(imageID string) (cls.TrashSpec, error) {
	return read1(t.ioctx, TrashObject, cls.TrashGet(imageID), cls.DecodeTrashSpec)
}

// List returns all records by image id.
func (t *Trash) List() (map[string]cls.TrashSpec, error) {
	return readPages(t.ioctx, TrashObject, cls.TrashList, cls.DecodeTrashMap)
}

// SetState changes a record's state. ESTALE: it is not the expected one.
func (t *Trash) SetState(imageID string, to, expected cls.TrashState) error {
	return Write(t.ioctx, TrashObject, cls.TrashStateSet(imageID, to, expected))
}

// Notify tells the watchers of the trash of a change. Who does not hear of it
// finds out by listing.
func (t *Trash) Notify(n cls.TrashNotify) {
	_, _, _ = t.ioctx.NotifyWithTimeout(TrashObject, n.Encode(), notifyTimeout)
}
