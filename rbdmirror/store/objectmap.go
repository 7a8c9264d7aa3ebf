package store

import (
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/objectmap"
)

// ObjectMapName returns the name of the object map of a snapshot, or of the
// head for cls.NoSnap.
func ObjectMapName(imageID string, snap uint64) string {
	if snap == cls.NoSnap {
		return "rbd_object_map." + imageID
	}
	return fmt.Sprintf("rbd_object_map.%s.%016x", imageID, snap)
}

// ObjectMap is the stored object map of an image or of one of its snapshots.
type ObjectMap struct {
	ioctx *rados.IOContext
	oid   string
	// AssertLocked makes every change fail with EBUSY unless this client
	// holds the map's lock (see ObjectMapLock). Maps of snapshots have none.
	AssertLocked bool
}

// NewObjectMap returns the map of a snapshot, or of the head for cls.NoSnap.
func NewObjectMap(ioctx *rados.IOContext, imageID string, snap uint64) *ObjectMap {
	return &ObjectMap{ioctx: ioctx, oid: ObjectMapName(imageID, snap)}
}

func (o *ObjectMap) write(c cls.Call) error {
	if o.AssertLocked {
		return Write(o.ioctx, o.oid, cls.LockAssert(lockName, cls.LockExclusive, "", ""), c)
	}
	return Write(o.ioctx, o.oid, c)
}

// Load returns the whole map.
func (o *ObjectMap) Load() (*objectmap.Map, error) {
	return read1(o.ioctx, o.oid, cls.ObjectMapLoad(), objectmap.Decode)
}

// Save replaces the whole map, or makes it.
func (o *ObjectMap) Save(m *objectmap.Map) error { return o.write(cls.ObjectMapSave(m.Encode())) }

// Resize makes the map cover count objects, or makes it. New objects get the
// state. When it shrinks, what is dropped is set to that state first, without
// which the OSD refuses.
func (o *ObjectMap) Resize(count uint64, state objectmap.State) error {
	err := o.write(cls.ObjectMapResize(count, uint8(state)))
	if !ceph.Is(err, syscall.ESTALE) {
		return err
	}
	m, err := o.Load()
	if err != nil {
		return err
	}
	if err := o.Update(count, m.Len(), state, nil); err != nil {
		return err
	}
	return o.write(cls.ObjectMapResize(count, uint8(state)))
}

// Update gives the objects from start to before end a new state, if current is
// not nil only those that have that one; Exists there also matches ExistsClean.
// ERANGE: the map is shorter.
func (o *ObjectMap) Update(start, end uint64, state objectmap.State, current *objectmap.State) error {
	if start >= end {
		return nil
	}
	return o.write(cls.ObjectMapUpdate(start, end, uint8(state), (*uint8)(current)))
}

// SnapAdd marks all objects as unchanged since a new snapshot.
func (o *ObjectMap) SnapAdd() error { return o.write(cls.ObjectMapSnapAdd()) }

// SnapRemove merges the map of a removed snapshot into this, the next one.
func (o *ObjectMap) SnapRemove(removed *objectmap.Map) error {
	return o.write(cls.ObjectMapSnapRemove(removed.Encode()))
}

// Delete removes the map. It is no error that there is none.
func (o *ObjectMap) Delete() error { return remove(o.ioctx, o.oid) }
