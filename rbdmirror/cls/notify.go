package cls

import (
	"fmt"

	"cephmirror/rbdmirror/wire"
)

// HeaderOp tells what a notification on an image's header is about.
type HeaderOp uint32

const (
	HeaderAcquiredLock HeaderOp = iota
	HeaderReleasedLock
	HeaderRequestLock // the holder of the lock is to give it up
	HeaderUpdate      // the header changed
	HeaderAsyncProgress
	HeaderAsyncComplete
	HeaderFlatten // this and the following ask the holder of the lock for a change
	HeaderResize
	HeaderSnapCreate
	HeaderSnapRemove
	HeaderRebuildObjectMap
	HeaderSnapRename
	HeaderSnapProtect
	HeaderSnapUnprotect
	HeaderRename
	HeaderUpdateFeatures
	HeaderMigrate
	HeaderSparsify
	HeaderQuiesce // everybody is to hold writes back for a moment
	HeaderUnquiesce
	HeaderMetadataUpdate // asks the holder of the lock
)

// AsksHolder reports whether the operation wants something of the holder of the
// image's lock: the lock, or a change.
func (o HeaderOp) AsksHolder() bool {
	return o == HeaderRequestLock || o >= HeaderFlatten && o <= HeaderSparsify || o == HeaderMetadataUpdate
}

// ClientID names an open image in notifications: the client's number and its
// watch on the header.
type ClientID struct{ Client, Handle uint64 }

// HeaderNotify is a notification on an image's header. Client is set for the
// lock operations only.
type HeaderNotify struct {
	Op     HeaderOp
	Client ClientID
	Force  bool // HeaderRequestLock: the lock must be given up
}

// Encode returns the notification. Only HeaderUpdate and the lock operations
// can be encoded.
func (n HeaderNotify) Encode() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(7, 1, func() {
			w.U32(uint32(n.Op))
			if n.Op > HeaderRequestLock {
				return
			}
			w.U64(n.Client.Client)
			w.U64(n.Client.Handle)
			if n.Op == HeaderRequestLock {
				w.Bool(n.Force)
			}
		})
	})
}

// EncodeHeaderUpdate returns the notification that an image's header changed.
func EncodeHeaderUpdate() []byte { return HeaderNotify{Op: HeaderUpdate}.Encode() }

// DecodeHeaderNotify decodes a notification on an image's header. Of operations
// other than the lock's only the kind is returned.
func DecodeHeaderNotify(b []byte) (HeaderNotify, error) {
	return decode("header notification", b, func(r *wire.Reader) (n HeaderNotify) {
		r.Frame(7, func(v uint8, r *wire.Reader) {
			n.Op = HeaderOp(r.U32())
			if n.Op > HeaderRequestLock || r.Err() != nil {
				return
			}
			n.Client = ClientID{Client: r.U64(), Handle: r.U64()}
			if n.Op == HeaderRequestLock && r.Len() > 0 {
				n.Force = r.Bool()
			}
		})
		return n
	})
}

// EncodeHeaderResponse returns the answer to a request to the holder of an
// image's lock: 0, or a negative errno.
func EncodeHeaderResponse(result int32) []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() { w.U32(uint32(result)) })
	})
}

// DecodeHeaderResponse decodes the answer of the holder of an image's lock.
func DecodeHeaderResponse(b []byte) (int32, error) {
	return decode("header response", b, func(r *wire.Reader) (result int32) {
		r.Frame(1, func(_ uint8, r *wire.Reader) { result = r.S32() })
		return result
	})
}

// MirroringOp tells what a notification on rbd_mirroring is about.
type MirroringOp uint32

const (
	MirroringModeUpdated  MirroringOp = 0
	MirroringImageUpdated MirroringOp = 1
)

// MirroringNotify is a notification on rbd_mirroring: that the pool's mode
// changed, or the record of an image. RecordDisabled says that it is gone.
type MirroringNotify struct {
	Op       MirroringOp
	Mode     PoolMode
	State    RecordState
	ImageID  string
	GlobalID string
}

// Encode returns the notification.
func (n MirroringNotify) Encode() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() {
			w.U32(uint32(n.Op))
			switch n.Op {
			case MirroringModeUpdated:
				w.U32(uint32(n.Mode))
			case MirroringImageUpdated:
				w.U32(uint32(n.State))
				w.Str(n.ImageID)
				w.Str(n.GlobalID)
			}
		})
	})
}

// DecodeMirroringNotify decodes a notification on rbd_mirroring.
func DecodeMirroringNotify(b []byte) (MirroringNotify, error) {
	return decode("mirroring notification", b, func(r *wire.Reader) (n MirroringNotify) {
		r.Frame(1, func(_ uint8, r *wire.Reader) {
			switch n.Op = MirroringOp(r.U32()); n.Op {
			case MirroringModeUpdated:
				n.Mode = PoolMode(r.U32())
			case MirroringImageUpdated:
				state := r.U32()
				if state > 0xff {
					r.Fail(fmt.Errorf("unknown state %d", state))
					return
				}
				n.State = RecordState(state)
				n.ImageID = r.Str()
				n.GlobalID = r.Str()
			}
		})
		return n
	})
}

// TrashOp tells what a notification on rbd_trash is about.
type TrashOp uint32

const (
	TrashImageAdded   TrashOp = 0
	TrashImageRemoved TrashOp = 1
)

// TrashNotify is a notification on rbd_trash.
type TrashNotify struct {
	Op      TrashOp
	ImageID string
	Spec    TrashSpec // of an added image
}

// Encode returns the notification.
func (n TrashNotify) Encode() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() {
			w.U32(uint32(n.Op))
			w.Str(n.ImageID)
			if n.Op == TrashImageAdded {
				n.Spec.write(w)
			}
		})
	})
}

// DecodeTrashNotify decodes a notification on rbd_trash.
func DecodeTrashNotify(b []byte) (TrashNotify, error) {
	return decode("trash notification", b, func(r *wire.Reader) (n TrashNotify) {
		r.Frame(1, func(_ uint8, r *wire.Reader) {
			n.Op = TrashOp(r.U32())
			switch n.Op {
			case TrashImageAdded:
				n.ImageID = r.Str()
				n.Spec = readTrashSpec(r)
			case TrashImageRemoved:
				n.ImageID = r.Str()
			}
		})
		return n
	})
}
