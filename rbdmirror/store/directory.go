package store

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// DirectoryObject is the name of the object that lists a namespace's images.
const DirectoryObject = "rbd_directory"

// Directory is the list of images, by name and by id, and the objects that the
// names lead to.
type Directory struct{ ioctx *rados.IOContext }

// NewDirectory returns the directory of the context's pool and namespace.
func NewDirectory(ioctx *rados.IOContext) *Directory { return &Directory{ioctx} }

// Add adds an image. EEXIST: the name is taken; EBADF: the id is.
func (d *Directory) Add(name, id string) error {
	calls := []cls.Call{cls.DirAddImage(name, id)}
	ns, err := d.ioctx.GetNamespace()
	if err != nil {
		return fmt.Errorf("%s: %w", DirectoryObject, err)
	}
	if ns != "" {
		calls = append([]cls.Call{cls.DirStateReady()}, calls...)
	}
	return Write(d.ioctx, DirectoryObject, calls...)
}

// Remove removes an image. It is no error that it is not there; ESTALE: name
// and id belong to different images.
func (d *Directory) Remove(name, id string) error {
	err := Write(d.ioctx, DirectoryObject, cls.DirRemoveImage(name, id))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// Rename renames an image within the directory.
func (d *Directory) Rename(from, to, id string) error {
	return Write(d.ioctx, DirectoryObject, cls.DirRenameImage(from, to, id))
}

// ID returns the id of the image with this name. ENOENT: there is none.
func (d *Directory) ID(name string) (string, error) {
	return read1(d.ioctx, DirectoryObject, cls.DirGetID(name), cls.DecodeStr)
}

// Name returns the name of the image with this id. ENOENT: there is none.
func (d *Directory) Name(id string) (string, error) {
	return read1(d.ioctx, DirectoryObject, cls.DirGetName(id), cls.DecodeStr)
}

// List returns the ids of all images by name.
func (d *Directory) List() (map[string]string, error) {
	return readPages(d.ioctx, DirectoryObject, cls.DirList, cls.DecodeStrMap)
}

// IDObject returns the name of the object that a name leads to.
func IDObject(name string) string { return "rbd_id." + name }

// CreateID makes a name lead to an image. EEXIST: it does already.
func (d *Directory) CreateID(name, id string) error {
	return WriteNew(d.ioctx, IDObject(name), cls.SetID(id))
}

// GetID returns the image that a name leads to.
func (d *Directory) GetID(name string) (string, error) {
	return read1(d.ioctx, IDObject(name), cls.GetID(), cls.DecodeStr)
}

// RemoveID makes a name lead nowhere.
func (d *Directory) RemoveID(name string) error { return remove(d.ioctx, IDObject(name)) }

// NewImageID returns a new id for an image, made from the client's number
// (rados.Conn's GetInstanceID), which keeps clients from choosing the same.
func NewImageID(client uint64) string {
	id := strconv.FormatUint(client, 16) + strconv.FormatUint(uint64(rand.Uint32()), 16)
	return id[max(0, len(id)-14):]
}
