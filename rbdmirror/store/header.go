package store

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// HeaderObject returns the name of an image's header.
func HeaderObject(imageID string) string { return "rbd_header." + imageID }

// DataPrefix returns the prefix that a new image's data objects get. dataPool
// is the pool of the data, or -1 when it is the header's pool.
func DataPrefix(imageID string, headerPool, dataPool int64) string {
	if dataPool < 0 || dataPool == headerPool {
		return "rbd_data." + imageID
	}
	return "rbd_data." + strconv.FormatInt(headerPool, 10) + "." + imageID
}

// DataObject returns the name of a data object.
func DataObject(prefix string, number uint64) string {
	return fmt.Sprintf("%s.%016x", prefix, number)
}

// Image is what the header of an image says, all of one moment.
type Image struct {
	ID         string
	Size       uint64
	Order      uint8
	Features   uint64
	OpFeatures uint64
	Flags      uint64
	Prefix     string // of data objects
	DataPool   int64  // -1: the pool of the header
	// StripeUnit and StripeCount are those of an image without striping of its
	// own, too: the object size, and 1.
	StripeUnit, StripeCount uint64
	SnapSeq                 uint64
	Snapshots               []cls.Snapshot // oldest first
	Parent                  cls.ParentSpec
	ParentOverlap           *uint64 // of the head; nil when it has no parent
	Metadata                map[string][]byte
	SnapLimit               uint64
	Created                 time.Time
}

// Has reports whether the image has all of the features.
func (i *Image) Has(features uint64) bool { return i.Features&features == features }

// ObjectSize returns how large data objects get.
func (i *Image) ObjectSize() uint64 { return 1 << i.Order }

// Objects returns how many data objects an image of that size has.
func (i *Image) Objects(size uint64) uint64 {
	object := i.ObjectSize()
	if i.StripeCount <= 1 && i.StripeUnit == object || i.StripeUnit == 0 || i.StripeCount == 0 {
		return (size + object - 1) / object
	}
	// objects come in sets that are filled in stripes
	set := object * i.StripeCount
	n := size / set * i.StripeCount
	if rest := size % set; rest > 0 {
		n += min(i.StripeCount, (rest+i.StripeUnit-1)/i.StripeUnit)
	}
	return n
}

// MaxObjects returns how many data objects the image has or had in any of its
// snapshots.
func (i *Image) MaxObjects() uint64 {
	n := i.Objects(i.Size)
	for _, s := range i.Snapshots {
		n = max(n, i.Objects(s.Size))
	}
	return n
}

// Snapshot returns the snapshot with the id, nil if there is none.
func (i *Image) Snapshot(id uint64) *cls.Snapshot {
	for k := range i.Snapshots {
		if i.Snapshots[k].ID == id {
			return &i.Snapshots[k]
		}
	}
	return nil
}

// Header is the header of an image.
type Header struct {
	ioctx *rados.IOContext
	id    string
	oid   string
	// Cookie, when not empty, makes every change fail with EBUSY unless this
	// client holds the image's exclusive lock with that cookie.
	Cookie string
}

// NewHeader returns the header of an image.
func NewHeader(ioctx *rados.IOContext, imageID string) *Header {
	return &Header{ioctx: ioctx, id: imageID, oid: HeaderObject(imageID)}
}

// Object returns the name of the header's object.
func (h *Header) Object() string { return h.oid }

func (h *Header) write(c cls.Call) error {
	if h.Cookie != "" {
		return Write(h.ioctx, h.oid, cls.LockAssert(lockName, cls.LockExclusive, h.Cookie, lockTag), c)
	}
	// A write must not bring back the header of an image that was removed.
	return WriteExisting(h.ioctx, h.oid, c)
}

// CreateOptions are the fixed properties of an image and its first size.
type CreateOptions struct {
	Size     uint64
	Order    uint8
	Features uint64 // FeatureStriping and FeatureDataPool follow from the rest
	Prefix   string // see DataPrefix
	DataPool int64  // -1: the pool of the header
	// StripeUnit and StripeCount may be 0 for an image without striping.
	StripeUnit, StripeCount uint64
}

// Create makes the header. EEXIST: there is one.
func (h *Header) Create(o CreateOptions) error {
	o.Features &^= cls.FeatureStriping | cls.FeatureDataPool
	if o.DataPool >= 0 {
		o.Features |= cls.FeatureDataPool
	} else {
		o.DataPool = -1
	}
	striped := o.StripeUnit != 0 && o.StripeCount != 0 && (o.StripeUnit != 1<<o.Order || o.StripeCount != 1)
	if striped {
		o.Features |= cls.FeatureStriping
	}
	err := WriteNew(h.ioctx, h.oid, cls.Create(cls.CreateOptions{Size: o.Size, Order: o.Order, Features: o.Features,
		Prefix: o.Prefix, DataPool: o.DataPool}))
	if err != nil || !striped {
		return err
	}
	return WriteExisting(h.ioctx, h.oid, cls.SetStripe(o.StripeUnit, o.StripeCount))
}

// loadTries is how often Load begins anew when the header changes meanwhile.
const loadTries = 20

// Load reads the whole header. ENOENT: there is no such image.
func (h *Header) Load() (*Image, error) {
	for range loadTries {
		first, err := Read(h.ioctx, h.oid, cls.GetFeatures(true), cls.GetSnapContext())
		if err != nil {
			return nil, err
		}
		features, _, err := cls.DecodeFeatures(first[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.oid, err)
		}
		_, ids, err := cls.DecodeSnapContext(first[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.oid, err)
		}
		img, err := h.load(features, ids)
		if err == nil {
			return img, nil
		}
		// a snapshot went away between the two reads
		if !errors.Is(err, errChanged) && !ceph.Is(err, syscall.ENOENT) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: reading: changes all the time: %w", h.oid, syscall.EAGAIN)
}

var errChanged = errors.New("header changed")

const (
	metadataPage = 1024
	// snapshotPage is how many snapshots are asked for at once. An operation has
	// room for a few ten thousand calls.
	snapshotPage = 1000
)

// load reads everything in one operation, but for images with very many
// snapshots. Which questions to ask depends on what the header said before:
// errChanged if that no longer holds.
func (h *Header) load(features uint64, ids []uint64) (*Image, error) {
	calls := []cls.Call{
		cls.GetSize(cls.NoSnap), cls.GetFeatures(true), cls.GetFlags(cls.NoSnap), cls.OpFeaturesGet(),
		cls.GetObjectPrefix(), cls.GetDataPool(), cls.GetSnapContext(), cls.ParentGet(),
		cls.ParentOverlapGet(cls.NoSnap), cls.SnapshotGetLimit(), cls.GetCreateTimestamp(),
		cls.MetadataList("", metadataPage),
	}
	striped := features&cls.FeatureStriping != 0
	if striped {
		calls = append(calls, cls.GetStripe())
	}
	all := ids
	more := all[min(snapshotPage, len(all)):]
	ids = all[:len(all)-len(more)]
	for _, id := range ids {
		calls = append(calls, snapshotCalls(id)...)
	}
	replies, err := Read(h.ioctx, h.oid, calls...)
	if err != nil {
		return nil, err
	}
	next := func() []byte {
		r := replies[0]
		replies = replies[1:]
		return r
	}
	img := &Image{ID: h.id}
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	img.Order, img.Size, err = cls.DecodeSize(next())
	check(err)
	img.Features, _, err = cls.DecodeFeatures(next())
	check(err)
	img.Flags, err = cls.DecodeU64(next())
	check(err)
	img.OpFeatures, err = cls.DecodeU64(next())
	check(err)
	img.Prefix, err = cls.DecodeStr(next())
	check(err)
	img.DataPool, err = cls.DecodeS64(next())
	check(err)
	var now []uint64
	img.SnapSeq, now, err = cls.DecodeSnapContext(next())
	check(err)
	img.Parent, err = cls.DecodeParentSpec(next())
	check(err)
	img.ParentOverlap, err = cls.DecodeOptU64(next())
	check(err)
	img.SnapLimit, err = cls.DecodeU64(next())
	check(err)
	img.Created, err = cls.DecodeTime(next())
	check(err)
	img.Metadata, err = cls.DecodeBlobMap(next())
	check(err)
	img.StripeUnit, img.StripeCount = 1<<img.Order, 1
	if striped {
		img.StripeUnit, img.StripeCount, err = cls.DecodeStripe(next())
		check(err)
	}
	for range ids {
		s, err := decodeSnapshot(next(), next(), next(), next())
		check(err)
		img.Snapshots = append(img.Snapshots, s)
	}
	for page := range slices.Chunk(more, snapshotPage) {
		list, err := h.loadSnapshots(page, all)
		if err != nil {
			return nil, err
		}
		img.Snapshots = append(img.Snapshots, list...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s: %w", h.oid, err)
	}
	if img.Order > 63 {
		return nil, fmt.Errorf("%s: order %d: %w", h.oid, img.Order, syscall.EINVAL)
	}
	if !slices.Equal(now, all) || (img.Features^features)&cls.FeatureStriping != 0 {
		return nil, errChanged
	}
	slices.SortFunc(img.Snapshots, func(a, b cls.Snapshot) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	if len(img.Metadata) >= metadataPage {
		rest, err := readPages(h.ioctx, h.oid, cls.MetadataList, cls.DecodeBlobMap)
		if err != nil {
			return nil, err
		}
		img.Metadata = rest
	}
	return img, nil
}

func snapshotCalls(id uint64) []cls.Call {
	return []cls.Call{cls.SnapshotGet(id), cls.GetProtection(id), cls.GetFlags(id), cls.ParentOverlapGet(id)}
}

func decodeSnapshot(info, protection, flags, overlap []byte) (cls.Snapshot, error) {
	s, err := cls.DecodeSnapshotInfo(info)
	if err == nil {
		s.Protection, err = cls.DecodeProtection(protection)
	}
	if err == nil {
		s.Flags, err = cls.DecodeU64(flags)
	}
	if err == nil {
		s.ParentOverlap, err = cls.DecodeOptU64(overlap)
	}
	return s, err
}

// loadSnapshots reads further snapshots. errChanged: those of the image are no
// longer all.
func (h *Header) loadSnapshots(ids, all []uint64) ([]cls.Snapshot, error) {
	calls := []cls.Call{cls.GetSnapContext()}
	for _, id := range ids {
		calls = append(calls, snapshotCalls(id)...)
	}
	replies, err := Read(h.ioctx, h.oid, calls...)
	if err != nil {
		return nil, err
	}
	_, now, err := cls.DecodeSnapContext(replies[0])
	if err == nil && !slices.Equal(now, all) {
		return nil, errChanged
	}
	var list []cls.Snapshot
	for r := range slices.Chunk(replies[1:], 4) {
		s, err2 := decodeSnapshot(r[0], r[1], r[2], r[3])
		err = errors.Join(err, err2)
		list = append(list, s)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.oid, err)
	}
	return list, nil
}

// SetSize sets the head's size. Shrinking clips the parent's overlap.
func (h *Header) SetSize(size uint64) error { return h.write(cls.SetSize(size)) }

// SetFeatures sets those of the features that mask names.
func (h *Header) SetFeatures(features, mask uint64) error {
	return h.write(cls.SetFeatures(features, mask))
}

// SetFlags sets those of the flags that mask names, of a snapshot or, with
// cls.NoSnap, of the head.
func (h *Header) SetFlags(snap, flags, mask uint64) error {
	return h.write(cls.SetFlags(flags, mask, snap))
}

// SetOpFeatures sets those of the operation features that mask names.
func (h *Header) SetOpFeatures(features, mask uint64) error {
	return h.write(cls.OpFeaturesSet(features, mask))
}

// AddSnapshot adds a snapshot: it gets the size, the flags and the parent that
// the head has now. ESTALE: the id is too low, take a new one; EEXIST: id or
// name is taken; EDQUOT: there may be no more.
func (h *Header) AddSnapshot(id uint64, name string, ns cls.SnapshotNamespace) error {
	return h.write(cls.SnapshotAdd(name, id, ns))
}

// RemoveSnapshot removes a snapshot from the header alone; see the function
// RemoveSnapshot for all that belongs to it. EBUSY: protected or cloned.
func (h *Header) RemoveSnapshot(id uint64) error { return h.write(cls.SnapshotRemove(id)) }

// RenameSnapshot renames a user snapshot.
func (h *Header) RenameSnapshot(id uint64, name string) error {
	return h.write(cls.SnapshotRename(id, name))
}

// TrashSnapshot moves a snapshot out of sight.
func (h *Header) TrashSnapshot(id uint64) error { return h.write(cls.SnapshotTrashAdd(id)) }

// SetProtection protects a snapshot or not.
func (h *Header) SetProtection(id uint64, p cls.Protection) error {
	return h.write(cls.SetProtection(id, p))
}

// SetSnapLimit sets how many snapshots there may be, cls.NoLimit for any
// number.
func (h *Header) SetSnapLimit(limit uint64) error { return h.write(cls.SnapshotSetLimit(limit)) }

// SetMetadata sets metadata.
func (h *Header) SetMetadata(m map[string][]byte) error {
	if len(m) == 0 {
		return nil
	}
	return h.write(cls.MetadataSet(m))
}

// RemoveMetadata removes one piece of metadata. It is no error that it is not
// there.
func (h *Header) RemoveMetadata(key string) error {
	err := h.write(cls.MetadataRemove(key))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// Metadata returns one piece of metadata. ENOENT: it is not there.
func (h *Header) Metadata(key string) ([]byte, error) {
	s, err := read1(h.ioctx, h.oid, cls.MetadataGet(key), cls.DecodeStr)
	return []byte(s), err
}

// AttachParent makes the head a clone. again says that it was one of the same
// parent, as its snapshots may still be.
func (h *Header) AttachParent(p cls.ParentSpec, overlap uint64, again bool) error {
	return h.write(cls.ParentAttach(p, overlap, again))
}

// DetachParent cuts the head from its parent.
func (h *Header) DetachParent() error { return h.write(cls.ParentDetach()) }

// AttachChild notes a clone in this, the parent's, header. It is no error that
// it is there.
func (h *Header) AttachChild(snap uint64, c cls.ChildSpec) error {
	err := h.write(cls.ChildAttach(snap, c))
	if ceph.Is(err, syscall.EEXIST) {
		return nil
	}
	return err
}

// DetachChild removes a clone from this, the parent's, header. It is no error
// that it is not there.
func (h *Header) DetachChild(snap uint64, c cls.ChildSpec) error {
	err := h.write(cls.ChildDetach(snap, c))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// Children returns the clones of a snapshot that its header knows.
func (h *Header) Children(snap uint64) ([]cls.ChildSpec, error) {
	list, err := read1(h.ioctx, h.oid, cls.ChildrenList(snap), cls.DecodeChildren)
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	return list, err
}

// UnlinkPeer notes that a peer no longer needs a mirror snapshot. It is no error
// that this was noted already, or that the snapshot is gone.
func (h *Header) UnlinkPeer(snap uint64, peerUUID string) error {
	err := h.write(cls.UnlinkPeer(snap, peerUUID))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// SetCopyProgress notes how far the copy of a mirror snapshot has come.
func (h *Header) SetCopyProgress(snap uint64, complete bool, object uint64) error {
	return h.write(cls.SetCopyProgress(snap, complete, object))
}

// Delete removes the header.
func (h *Header) Delete() error { return remove(h.ioctx, h.oid) }

// Notify tells all who have the image open that its header changed. Those who
// do not answer in time have to find out by themselves.
func (h *Header) Notify() error {
	_, _, err := h.ioctx.NotifyWithTimeout(h.oid, cls.EncodeHeaderUpdate(), notifyTimeout)
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT, syscall.ENOENT) {
		return fmt.Errorf("%s: notifying: %w", h.oid, err)
	}
	return nil
}

// CreateSnapID allocates a snapshot id in the pool of the image's data.
func CreateSnapID(data *rados.IOContext) (uint64, error) {
	id, err := ceph.CreateSnapID(data)
	if err != nil {
		return 0, fmt.Errorf("allocating a snapshot id: %w", err)
	}
	return id, nil
}

// RemoveSnapID gives a snapshot id back.
func RemoveSnapID(data *rados.IOContext, id uint64) error {
	if err := ceph.RemoveSnapID(data, id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("giving back snapshot id %d: %w", id, err)
	}
	return nil
}

// AddSnapshot allocates an id and adds a snapshot to the image, again with a
// new id when another client was faster. The object map of the snapshot is the
// caller's.
func AddSnapshot(h *Header, data *rados.IOContext, name string, ns cls.SnapshotNamespace) (uint64, error) {
	for try := 0; ; try++ {
		id, err := CreateSnapID(data)
		if err != nil {
			return 0, fmt.Errorf("%s: adding snapshot %s: %w", h.oid, name, err)
		}
		err = h.AddSnapshot(id, name, ns)
		if err == nil {
			return id, nil
		}
		// Nobody uses the id. That it may be lost is no reason to fail in
		// another way.
		_ = RemoveSnapID(data, id)
		if !ceph.Is(err, syscall.ESTALE) || try == loadTries {
			return 0, fmt.Errorf("adding snapshot %s: %w", name, err)
		}
	}
}

// RemoveSnapshot removes a snapshot and all that belongs to it: object map,
// image state, and what data objects keep for it. It can be repeated when it
// broke off. A protected snapshot is left alone: EBUSY. headMapLocked tells
// that the caller holds the lock of the head's object map, and wants changes of
// it to depend on that.
func RemoveSnapshot(h *Header, data *rados.IOContext, img *Image, id uint64, headMapLocked bool) error {
	at := slices.IndexFunc(img.Snapshots, func(s cls.Snapshot) bool { return s.ID == id })
	if at < 0 {
		return nil
	}
	snap := img.Snapshots[at]
	fail := func(err error) error { return fmt.Errorf("removing snapshot %d (%s): %w", id, snap.Name, err) }
	if snap.Protection != cls.Unprotected || snap.ChildCount > 0 {
		return fail(fmt.Errorf("%s: protected or cloned: %w", h.oid, syscall.EBUSY))
	}
	kind := snap.Namespace.Type
	if kind == cls.NamespaceTrash {
		if snap.Namespace.Trash != nil {
			kind = snap.Namespace.Trash.OriginalType
		}
	} else if err := h.TrashSnapshot(id); ceph.Is(err, syscall.ENOENT) {
		return nil
	} else if err != nil {
		return fail(err)
	}
	// from here on nobody starts to use it
	if kind == cls.NamespaceMirror {
		if err := NewImageStates(h.ioctx).Delete(img.ID, id); err != nil {
			return fail(err)
		}
	}
	if img.Has(cls.FeatureObjectMap) {
		own := NewObjectMap(h.ioctx, img.ID, id)
		removed, err := own.Load()
		switch {
		case err == nil:
			next := NewObjectMap(h.ioctx, img.ID, cls.NoSnap)
			if at+1 < len(img.Snapshots) {
				next = NewObjectMap(h.ioctx, img.ID, img.Snapshots[at+1].ID)
			} else {
				next.AssertLocked = headMapLocked
			}
			if err := next.SnapRemove(removed); err != nil && !ceph.Is(err, syscall.ENOENT) {
				return fail(err)
			}
		case !ceph.Is(err, syscall.ENOENT):
			return fail(err)
		}
		if err := own.Delete(); err != nil {
			return fail(err)
		}
	}
	if err := RemoveSnapID(data, id); err != nil {
		return fail(err)
	}
	if err := h.RemoveSnapshot(id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fail(err)
	}
	return nil
}

// DataContext opens the pool of an image's data, in the namespace of the image.
// The caller has to destroy the context.
func DataContext(conn *rados.Conn, header *rados.IOContext, dataPool int64) (*rados.IOContext, error) {
	if dataPool < 0 {
		dataPool = header.GetPoolID()
	}
	ns, err := header.GetNamespace()
	if err != nil {
		return nil, fmt.Errorf("opening the data pool: %w", err)
	}
	return PoolContext(conn, dataPool, ns)
}

// PoolContext opens a pool by its id. The caller has to destroy the context.
func PoolContext(conn *rados.Conn, pool int64, namespace string) (*rados.IOContext, error) {
	name, err := conn.GetPoolByID(pool)
	if err != nil {
		return nil, fmt.Errorf("opening pool %d: %w", pool, err)
	}
	ioctx, err := ceph.OpenPool(conn, name)
	if err != nil {
		return nil, err
	}
	ioctx.SetNamespace(namespace)
	return ioctx, nil
}
