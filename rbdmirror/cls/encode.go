package cls

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"cephmirror/rbdmirror/wire"
)

// decode runs read on p and names what could not be decoded.
func decode[T any](what string, p []byte, read func(*wire.Reader) T) (T, error) {
	r := wire.NewReader(p)
	v := read(r)
	if err := r.Err(); err != nil {
		var zero T
		return zero, fmt.Errorf("decoding %s: %w", what, err)
	}
	return v, nil
}

func encode(write func(*wire.Writer)) []byte {
	var w wire.Writer
	write(&w)
	return w.Bytes()
}

// readList reads a counted list of items that take at least size bytes each.
func readList[T any](r *wire.Reader, size int, item func(*wire.Reader) T) []T {
	n := r.Count(size)
	if n == 0 {
		return nil
	}
	out := make([]T, 0, min(n, 1024))
	for range n {
		v := item(r)
		if r.Err() != nil {
			return nil
		}
		out = append(out, v)
	}
	return out
}

// readMap reads a counted map whose pairs take at least size bytes each.
func readMap[K comparable, V any](r *wire.Reader, size int, key func(*wire.Reader) K, val func(*wire.Reader) V) map[K]V {
	n := r.Count(size)
	out := make(map[K]V, min(n, 1024))
	for range n {
		k := key(r)
		v := val(r)
		if r.Err() != nil {
			return nil
		}
		out[k] = v
	}
	return out
}

func writeMap[K ~string | ~uint64, V any](w *wire.Writer, m map[K]V, item func(K, V)) {
	w.U32(uint32(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		item(k, m[k])
	}
}

func readStr(r *wire.Reader) string { return r.Str() }
func readU64(r *wire.Reader) uint64 { return r.U64() }

// Encode returns the stored form of the peer.
func (p Peer) Encode() []byte { return encode(p.write) }

func (p Peer) write(w *wire.Writer) {
	w.Frame(2, 1, func() {
		w.Str(p.UUID)
		w.Str(p.SiteName)
		w.Str(p.ClientName)
		w.S64(p.PoolID)
		w.U8(uint8(p.Direction))
		w.Str(p.MirrorUUID)
		w.Time(p.LastSeen)
	})
}

func readPeer(r *wire.Reader) (p Peer) {
	r.Frame(2, func(v uint8, r *wire.Reader) {
		p.UUID = r.Str()
		p.SiteName = r.Str()
		p.ClientName = r.Str()
		p.PoolID = r.S64()
		if v >= 2 {
			p.Direction = Direction(r.U8())
			p.MirrorUUID = r.Str()
			p.LastSeen = r.Time()
		}
	})
	return p
}

// DecodePeer decodes a peer's stored form.
func DecodePeer(b []byte) (Peer, error) { return decode("mirror peer", b, readPeer) }

// Encode returns the stored form of the record.
func (m MirrorImage) Encode() []byte { return encode(m.write) }

func (m MirrorImage) write(w *wire.Writer) {
	w.Frame(2, 1, func() {
		w.Str(m.GlobalID)
		w.U8(uint8(m.State))
		w.U8(uint8(m.Mode))
	})
}

func readMirrorImage(r *wire.Reader) (m MirrorImage) {
	r.Frame(2, func(v uint8, r *wire.Reader) {
		m.GlobalID = r.Str()
		m.State = RecordState(r.U8())
		if v >= 2 {
			m.Mode = ImageMode(r.U8())
		}
	})
	return m
}

// DecodeMirrorImage decodes a mirroring record's stored form.
func DecodeMirrorImage(b []byte) (MirrorImage, error) {
	return decode("mirror image record", b, readMirrorImage)
}

// Encode returns the status as a daemon writes it.
func (s SiteStatus) Encode() []byte { return encode(s.write) }

func (s SiteStatus) write(w *wire.Writer) {
	v := uint8(1) // the status of a cluster's own daemon keeps the old form
	if s.MirrorUUID != "" {
		v = 2
	}
	w.Frame(v, v, func() { s.writeBare(w, v) })
}

func (s SiteStatus) writeBare(w *wire.Writer, v uint8) {
	if v >= 2 {
		w.Str(s.MirrorUUID)
	}
	w.U8(uint8(s.State))
	w.Str(s.Description)
	w.Time(s.LastUpdate)
	w.Bool(s.Up)
}

func readSiteStatus(r *wire.Reader) (s SiteStatus) {
	r.Frame(2, func(v uint8, r *wire.Reader) { s = readSiteStatusBare(r, v) })
	return s
}

func readSiteStatusBare(r *wire.Reader, v uint8) (s SiteStatus) {
	if v >= 2 {
		s.MirrorUUID = r.Str()
	}
	s.State = StatusState(r.U8())
	s.Description = r.Str()
	s.LastUpdate = r.Time()
	s.Up = r.Bool()
	return s
}

// DecodeSiteStatus decodes a status as a daemon writes it.
func DecodeSiteStatus(b []byte) (SiteStatus, error) { return decode("site status", b, readSiteStatus) }

// DecodeStoredStatus decodes a status as the OSD keeps it: with the client that
// wrote it, and without the mirror uuid, which is in the key.
func DecodeStoredStatus(b []byte) (writer EntityInst, s SiteStatus, err error) {
	s, err = decode("stored site status", b, func(r *wire.Reader) SiteStatus {
		r.Frame(1, func(_ uint8, r *wire.Reader) { writer = readEntityInst(r) })
		return readSiteStatus(r)
	})
	if err != nil {
		writer = EntityInst{}
	}
	return writer, s, err
}

// EncodeStoredStatus is the inverse of DecodeStoredStatus.
func EncodeStoredStatus(writer EntityInst, s SiteStatus) []byte {
	s.MirrorUUID = ""
	return encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() { writer.write(w) })
		s.write(w)
	})
}

// Encode returns the status in the form of the class's reply.
func (s MirrorImageStatus) Encode() []byte { return encode(s.write) }

func (s MirrorImageStatus) write(w *wire.Writer) {
	w.Frame(2, 1, func() {
		var local SiteStatus
		if s.Local != nil {
			local = *s.Local
		}
		local.writeBare(w, 1)
		w.Bool(s.Local != nil)
		w.U32(uint32(len(s.Remote)))
		for _, r := range s.Remote {
			r.writeBare(w, 2)
		}
	})
}

func readMirrorImageStatus(r *wire.Reader) (s MirrorImageStatus) {
	r.Frame(2, func(v uint8, r *wire.Reader) {
		local := readSiteStatusBare(r, 1)
		if v < 2 {
			s.Local = &local
			return
		}
		if r.Bool() {
			s.Local = &local
		}
		s.Remote = readList(r, 18, func(r *wire.Reader) SiteStatus { return readSiteStatusBare(r, 2) })
	})
	return s
}

func (n EntityName) write(w *wire.Writer) {
	w.U8(n.Type)
	w.S64(n.Num)
}

func readEntityName(r *wire.Reader) EntityName { return EntityName{Type: r.U8(), Num: r.S64()} }

const (
	familyInet  = 2
	familyInet6 = 10
)

func (a EntityAddr) write(w *wire.Writer) {
	w.U8(1) // the encoding with a type
	w.Frame(1, 1, func() {
		w.U32(a.Type)
		w.U32(a.Nonce)
		if !a.Addr.IsValid() {
			w.Blob(a.Raw)
			return
		}
		port := a.Addr.Port()
		var s wire.Writer
		if ip := a.Addr.Addr(); ip.Is4() {
			s.U16(familyInet)
			s.Raw([]byte{byte(port >> 8), byte(port)})
			s.Raw(ip.AsSlice())
			s.U64(0)
		} else {
			s.U16(familyInet6)
			s.Raw([]byte{byte(port >> 8), byte(port)})
			s.U32(0) // flow
			s.Raw(ip.AsSlice())
			s.U32(0) // scope
		}
		w.Blob(s.Bytes())
	})
}

func readEntityAddr(r *wire.Reader) (a EntityAddr) {
	switch marker := r.U8(); {
	case r.Err() != nil:
	case marker == 1:
		r.Frame(1, func(_ uint8, r *wire.Reader) {
			a.Type = r.U32()
			a.Nonce = r.U32()
			a.setSockaddr(r.Blob())
		})
	case marker == 0: // without a type, as old clients wrote it
		r.Raw(3)
		a.Type = 1
		a.Nonce = r.U32()
		raw := r.Raw(128)
		if r.Err() == nil {
			// this form has the family in network order
			raw[0], raw[1] = raw[1], raw[0]
			a.setSockaddr(raw)
		}
	default:
		r.Fail(fmt.Errorf("unknown address encoding %d", marker))
	}
	return a
}

func (a *EntityAddr) setSockaddr(b []byte) {
	r := wire.NewReader(b)
	family := r.U16()
	hi, lo := r.U8(), r.U8()
	var ip netip.Addr
	switch family {
	case familyInet:
		ip, _ = netip.AddrFromSlice(r.Raw(4))
	case familyInet6:
		r.U32()
		ip, _ = netip.AddrFromSlice(r.Raw(16))
	}
	if r.Err() != nil || !ip.IsValid() {
		if len(b) > 0 {
			a.Raw = b
		}
		return
	}
	a.Addr = netip.AddrPortFrom(ip, uint16(hi)<<8|uint16(lo))
}

// Encode returns the encoding of the instance.
func (i EntityInst) Encode() []byte { return encode(i.write) }

func (i EntityInst) write(w *wire.Writer) {
	i.Name.write(w)
	i.Addr.write(w)
}

func readEntityInst(r *wire.Reader) EntityInst {
	return EntityInst{Name: readEntityName(r), Addr: readEntityAddr(r)}
}

// Encode returns the encoding of the spec.
func (p ParentSpec) Encode() []byte { return encode(p.write) }

func (p ParentSpec) write(w *wire.Writer) { w.Frame(1, 1, func() { p.writeBare(w) }) }

func (p ParentSpec) writeBare(w *wire.Writer) {
	w.S64(p.PoolID)
	w.Str(p.Namespace)
	w.Str(p.ImageID)
	w.U64(p.SnapID)
}

func readParentSpecBare(r *wire.Reader) ParentSpec {
	return ParentSpec{PoolID: r.S64(), Namespace: r.Str(), ImageID: r.Str(), SnapID: r.U64()}
}

func readParentSpec(r *wire.Reader) (p ParentSpec) {
	r.Frame(1, func(_ uint8, r *wire.Reader) { p = readParentSpecBare(r) })
	return p
}

// DecodeParentSpec decodes the reply of parent_get.
func DecodeParentSpec(b []byte) (ParentSpec, error) { return decode("parent", b, readParentSpec) }

// Encode returns the form that the image header keeps.
func (p HeaderParent) Encode() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(2, 2, func() {
			p.Spec.writeBare(w)
			w.OptU64(p.HeadOverlap)
		})
	})
}

// DecodeHeaderParent decodes the parent as the image header keeps it.
func DecodeHeaderParent(b []byte) (HeaderParent, error) {
	return decode("header's parent", b, func(r *wire.Reader) (p HeaderParent) {
		r.Frame(2, func(v uint8, r *wire.Reader) {
			if v >= 2 {
				p.Spec = readParentSpecBare(r)
				p.HeadOverlap = r.OptU64()
				return
			}
			p.Spec = ParentSpec{PoolID: r.S64(), ImageID: r.Str(), SnapID: r.U64()}
			overlap := r.U64()
			p.HeadOverlap = &overlap
		})
		return p
	})
}

// Encode returns the encoding of the spec.
func (c ChildSpec) Encode() []byte { return encode(c.write) }

func (c ChildSpec) write(w *wire.Writer) {
	w.Frame(2, 1, func() {
		w.S64(c.PoolID)
		w.Str(c.ImageID)
		w.Str(c.Namespace)
	})
}

func readChildSpec(r *wire.Reader) (c ChildSpec) {
	r.Frame(2, func(v uint8, r *wire.Reader) {
		c.PoolID = r.S64()
		c.ImageID = r.Str()
		if v >= 2 {
			c.Namespace = r.Str()
		}
	})
	return c
}

// DecodeChildSpec decodes a clone's spec.
func DecodeChildSpec(b []byte) (ChildSpec, error) { return decode("child", b, readChildSpec) }

// Encode returns the encoding of the namespace.
func (n SnapshotNamespace) Encode() []byte { return encode(n.write) }

func (n SnapshotNamespace) write(w *wire.Writer) {
	w.Frame(1, 1, func() {
		w.U32(uint32(n.Type))
		switch {
		case n.Type == NamespaceGroup && n.Group != nil:
			w.S64(n.Group.PoolID)
			w.Str(n.Group.GroupID)
			w.Str(n.Group.SnapshotID)
		case n.Type == NamespaceTrash && n.Trash != nil:
			w.Str(n.Trash.OriginalName)
			w.U32(uint32(n.Trash.OriginalType))
		case n.Type == NamespaceMirror && n.Mirror != nil:
			n.Mirror.write(w)
		default:
			w.Raw(n.Raw)
		}
	})
}

func (m *MirrorNamespace) write(w *wire.Writer) {
	w.U8(uint8(m.State))
	w.Bool(m.Complete)
	peers := slices.Compact(slices.Sorted(slices.Values(m.Peers)))
	w.U32(uint32(len(peers)))
	for _, p := range peers {
		w.Str(p)
	}
	w.Str(m.PrimaryUUID)
	w.U64(m.PrimarySnapID)
	w.U64(m.LastCopied)
	writeMap(w, m.SnapSeqs, func(k, v uint64) {
		w.U64(k)
		w.U64(v)
	})
}

func readSnapshotNamespace(r *wire.Reader) (n SnapshotNamespace) {
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		switch n.Type = NamespaceType(r.U32()); n.Type {
		case NamespaceUser:
		case NamespaceGroup:
			n.Group = &GroupNamespace{PoolID: r.S64(), GroupID: r.Str(), SnapshotID: r.Str()}
		case NamespaceTrash:
			n.Trash = &TrashNamespace{OriginalName: r.Str(), OriginalType: NamespaceType(r.U32())}
		case NamespaceMirror:
			n.Mirror = &MirrorNamespace{State: MirrorState(r.U8()), Complete: r.Bool(),
				Peers: readList(r, 4, readStr), PrimaryUUID: r.Str(), PrimarySnapID: r.U64(),
				LastCopied: r.U64(), SnapSeqs: readMap(r, 16, readU64, readU64)}
		default:
			n.Raw = r.Rest()
		}
	})
	return n
}

// DecodeSnapshotNamespace decodes a snapshot's namespace.
func DecodeSnapshotNamespace(b []byte) (SnapshotNamespace, error) {
	return decode("snapshot namespace", b, readSnapshotNamespace)
}

// EncodeInfo returns the snapshot in the form of the reply of snapshot_get.
func (s Snapshot) EncodeInfo() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() {
			w.U64(s.ID)
			s.Namespace.write(w)
			w.Str(s.Name)
			w.U64(s.Size)
			w.Time(s.Timestamp)
			w.U32(s.ChildCount)
		})
	})
}

// DecodeSnapshotInfo decodes the reply of snapshot_get.
func DecodeSnapshotInfo(b []byte) (Snapshot, error) {
	return decode("snapshot info", b, func(r *wire.Reader) (s Snapshot) {
		r.Frame(1, func(_ uint8, r *wire.Reader) {
			s.ID = r.U64()
			s.Namespace = readSnapshotNamespace(r)
			s.Name = r.Str()
			s.Size = r.U64()
			s.Timestamp = r.Time()
			s.ChildCount = r.U32()
		})
		return s
	})
}

// SnapshotKeyPrefix begins the omap keys of snapshots in an image header.
const SnapshotKeyPrefix = "snapshot_"

// EncodeRecord returns the snapshot as the image header keeps it.
func (s Snapshot) EncodeRecord() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(8, 8, func() {
			w.U64(s.ID)
			w.Str(s.Name)
			w.U64(s.Size)
			w.U8(uint8(s.Protection))
			w.U64(s.Flags)
			s.Namespace.write(w)
			w.Time(s.Timestamp)
			w.U32(s.ChildCount)
			w.OptU64(s.ParentOverlap)
		})
	})
}

// DecodeSnapshotRecord decodes a snapshot as the image header keeps it. Records
// of releases before Nautilus are refused: ask the OSD for their content.
func DecodeSnapshotRecord(b []byte) (Snapshot, error) {
	return decode("snapshot record", b, func(r *wire.Reader) (s Snapshot) {
		r.Frame(8, func(v uint8, r *wire.Reader) {
			if v < 8 {
				r.Fail(fmt.Errorf("version %d is too old", v))
				return
			}
			s.ID = r.U64()
			s.Name = r.Str()
			s.Size = r.U64()
			s.Protection = Protection(r.U8())
			s.Flags = r.U64()
			s.Namespace = readSnapshotNamespace(r)
			s.Timestamp = r.Time()
			s.ChildCount = r.U32()
			s.ParentOverlap = r.OptU64()
		})
		return s
	})
}

// Encode returns the image state as it is stored, cut into objects of at most
// chunk bytes. There is always at least one.
func (s ImageState) Encode(chunk int) [][]byte {
	body := encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() {
			w.Str(s.Name)
			w.U64(s.Features)
			w.U64(s.SnapLimit)
			writeMap(w, s.Snapshots, func(id uint64, p SnapState) {
				w.U64(id)
				w.Frame(1, 1, func() {
					p.Namespace.write(w)
					w.Str(p.Name)
					w.U8(uint8(p.Protection))
				})
			})
			writeMap(w, s.Metadata, func(k string, v []byte) {
				w.Str(k)
				w.Blob(v)
			})
		})
	})
	const headerSize = 10
	count := 1 + (headerSize+len(body))/chunk
	all := append(encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() { w.U32(uint32(count)) })
	}), body...)
	out := make([][]byte, count) // the last one may be empty
	for i := range out {
		n := min(chunk, len(all))
		out[i], all = all[:n:n], all[n:]
	}
	return out
}

// DecodeImageStateHeader returns from the first object of an image state how
// many objects there are.
func DecodeImageStateHeader(first []byte) (objects uint32, err error) {
	return decode("header of image state", first, readImageStateHeader)
}

func readImageStateHeader(r *wire.Reader) (objects uint32) {
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		if objects = r.U32(); objects == 0 {
			r.Fail(errors.New("no objects"))
		}
	})
	return objects
}

// DecodeImageState decodes the objects of an image state, joined in order.
func DecodeImageState(all []byte) (ImageState, error) {
	return decode("image state", all, func(r *wire.Reader) (s ImageState) {
		readImageStateHeader(r)
		r.Frame(1, func(_ uint8, r *wire.Reader) {
			s.Name = r.Str()
			s.Features = r.U64()
			s.SnapLimit = r.U64()
			s.Snapshots = readMap(r, 14, readU64, func(r *wire.Reader) (p SnapState) {
				r.Frame(1, func(_ uint8, r *wire.Reader) {
					p.Namespace = readSnapshotNamespace(r)
					p.Name = r.Str()
					p.Protection = Protection(r.U8())
				})
				return p
			})
			s.Metadata = readMap(r, 8, readStr, (*wire.Reader).Blob)
		})
		return s
	})
}

// Encode returns the stored form of the record.
func (t TrashSpec) Encode() []byte { return encode(t.write) }

func (t TrashSpec) write(w *wire.Writer) {
	w.Frame(2, 1, func() {
		w.U8(uint8(t.Source))
		w.Str(t.Name)
		w.Time(t.DeletedAt)
		w.Time(t.DeferredUntil)
		w.U8(uint8(t.State))
	})
}

func readTrashSpec(r *wire.Reader) (t TrashSpec) {
	r.Frame(2, func(v uint8, r *wire.Reader) {
		t.Source = TrashSource(r.U8())
		t.Name = r.Str()
		t.DeletedAt = r.Time()
		t.DeferredUntil = r.Time()
		if v >= 2 {
			t.State = TrashState(r.U8())
		}
	})
	return t
}

// DecodeTrashSpec decodes a trash record's stored form.
func DecodeTrashSpec(b []byte) (TrashSpec, error) { return decode("trash record", b, readTrashSpec) }

// Encode returns the lock in the form of the reply of get_info.
func (l LockInfo) Encode() []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(1, 1, func() {
			w.U32(uint32(len(l.Lockers)))
			for _, k := range l.Lockers {
				w.Frame(1, 1, func() {
					k.Entity.write(w)
					w.Str(k.Cookie)
				})
				w.Frame(1, 1, func() {
					w.Time(k.Expiration)
					k.Addr.write(w)
					w.Str(k.Description)
				})
			}
			w.U8(uint8(l.Type))
			w.Str(l.Tag)
		})
	})
}

// DecodeLockInfo decodes the reply of get_info.
func DecodeLockInfo(b []byte) (LockInfo, error) {
	return decode("lock info", b, func(r *wire.Reader) (l LockInfo) {
		r.Frame(1, func(_ uint8, r *wire.Reader) {
			l.Lockers = readList(r, 12, func(r *wire.Reader) (k Locker) {
				r.Frame(1, func(_ uint8, r *wire.Reader) {
					k.Entity = readEntityName(r)
					k.Cookie = r.Str()
				})
				r.Frame(1, func(_ uint8, r *wire.Reader) {
					k.Expiration = r.Time()
					k.Addr = readEntityAddr(r)
					k.Description = r.Str()
				})
				return k
			})
			l.Type = LockType(r.U8())
			l.Tag = r.Str()
		})
		return l
	})
}

// ParseTrashKey returns the image id that an omap key of the trash names.
func ParseTrashKey(key string) (id string, ok bool) { return strings.CutPrefix(key, "id_") }
