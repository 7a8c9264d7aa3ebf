package format

import (
	"fmt"
	"maps"
	"slices"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/wire"
)

// PeerState is what a mirror daemon is about.
type PeerState uint32

// The states of mirror peers.
const (
	Syncing PeerState = iota
	Replaying
)

// ClientData is what is attached to a client: *ImageClient, *PeerClient or
// *OtherClient.
type ClientData interface {
	Encode() []byte
	clientData()
}

// ImageClient is attached to the master client.
type ImageClient struct {
	TagClass        uint64
	ResyncRequested bool
}

// PeerClient is attached to the client of a mirror daemon.
type PeerClient struct {
	ImageID         string // of the daemon's own cluster
	State           PeerState
	SyncObjectCount uint64
	SyncPoints      []SyncPoint
	SnapSeqs        map[uint64]uint64 // snapshots of the journal's image to those of the copy
}

// SyncPoint is a snapshot up to which the image is copied.
type SyncPoint struct {
	SnapName     string
	FromSnapName string
	Object       *uint64 // the last one that is copied, nil for none
	Namespace    cls.SnapshotNamespace
}

// OtherClient is of a kind without fields or unknown: the tool's is of type 2.
type OtherClient struct {
	Type uint32
	Body []byte
}

const (
	imageClient uint32 = iota
	peerClient
)

func (*ImageClient) clientData() {}
func (*PeerClient) clientData()  {}
func (*OtherClient) clientData() {}

// Encode returns the data as it is stored.
func (c *ImageClient) Encode() []byte {
	return encodeClient(imageClient, func(w *wire.Writer) {
		w.U64(c.TagClass)
		w.Bool(c.ResyncRequested)
	})
}

// Encode returns the data as it is stored.
func (c *PeerClient) Encode() []byte {
	return encodeClient(peerClient, func(w *wire.Writer) {
		w.Str(c.ImageID)
		w.U32(uint32(c.State))
		w.U64(c.SyncObjectCount)
		w.U32(uint32(len(c.SyncPoints)))
		for _, p := range c.SyncPoints {
			w.Str(p.SnapName)
			w.Str(p.FromSnapName)
			w.OptU64(p.Object)
			w.Raw(p.Namespace.Encode())
		}
		w.U32(uint32(len(c.SnapSeqs)))
		for _, id := range slices.Sorted(maps.Keys(c.SnapSeqs)) {
			w.U64(id)
			w.U64(c.SnapSeqs[id])
		}
	})
}

// Encode returns the data as it is stored.
func (c *OtherClient) Encode() []byte {
	return encodeClient(c.Type, func(w *wire.Writer) { w.Raw(c.Body) })
}

func encodeClient(kind uint32, body func(*wire.Writer)) []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(2, 1, func() {
			w.U32(kind)
			body(w)
		})
	})
}

// Clone returns a copy that shares nothing.
func (c *PeerClient) Clone() *PeerClient {
	d := *c
	d.SyncPoints = slices.Clone(c.SyncPoints)
	d.SnapSeqs = maps.Clone(c.SnapSeqs)
	return &d
}

// DecodeClientData decodes what is attached to a client.
func DecodeClientData(b []byte) (ClientData, error) {
	return decode("journal client data", b, func(r *wire.Reader) (data ClientData) {
		r.Frame(2, func(version uint8, r *wire.Reader) {
			switch kind := r.U32(); kind {
			case imageClient:
				data = &ImageClient{TagClass: r.U64(), ResyncRequested: r.Bool()}
			case peerClient:
				c := &PeerClient{ImageID: r.Str(), State: PeerState(r.U32()), SyncObjectCount: r.U64()}
				for range r.Count(9) {
					p := SyncPoint{SnapName: r.Str(), FromSnapName: r.Str(), Object: r.OptU64()}
					if version >= 2 {
						p.Namespace = readNamespace(r)
					}
					c.SyncPoints = append(c.SyncPoints, p)
				}
				n := r.Count(16)
				c.SnapSeqs = make(map[uint64]uint64, n)
				for range n {
					k := r.U64()
					c.SnapSeqs[k] = r.U64()
				}
				data = c
			default:
				data = &OtherClient{Type: kind, Body: r.Rest()}
			}
		})
		return data
	})
}

// Predecessor is the last entry that was committed before an epoch began.
type Predecessor struct {
	MirrorUUID string // whose journal numbers it
	Valid      bool   // anything was committed before
	Tag, Entry uint64
}

// TagData says whose an epoch is and what it follows.
type TagData struct {
	MirrorUUID  string
	Predecessor Predecessor
}

// Encode returns the data as it is stored.
func (t TagData) Encode() []byte {
	return encode(func(w *wire.Writer) {
		w.Str(t.MirrorUUID)
		w.Str(t.Predecessor.MirrorUUID)
		w.Bool(t.Predecessor.Valid)
		w.U64(t.Predecessor.Tag)
		w.U64(t.Predecessor.Entry)
	})
}

// DecodeTagData decodes what is attached to a tag.
func DecodeTagData(b []byte) (TagData, error) {
	return decode("journal tag data", b, func(r *wire.Reader) TagData {
		return TagData{MirrorUUID: r.Str(),
			Predecessor: Predecessor{MirrorUUID: r.Str(), Valid: r.Bool(), Tag: r.U64(), Entry: r.U64()}}
	})
}

func (t TagData) String() string {
	p := t.Predecessor
	valid := 0
	if p.Valid {
		valid = 1
	}
	return fmt.Sprintf("{%s; %s,%d,%d,%d}", t.MirrorUUID, p.MirrorUUID, valid, p.Tag, p.Entry)
}
