package cls

import (
	"bytes"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func genTime() *rapid.Generator[time.Time] {
	return rapid.Custom(func(t *rapid.T) time.Time {
		sec, nsec := rapid.Uint32().Draw(t, "sec"), rapid.Uint32Range(0, 999999999).Draw(t, "nsec")
		if sec == 0 && nsec == 0 {
			return time.Time{}
		}
		return time.Unix(int64(sec), int64(nsec)).UTC()
	})
}

func genOpt() *rapid.Generator[*uint64] { return rapid.Ptr(rapid.Uint64(), true) }

// text generates any bytes: names need not be UTF-8.
func text() *rapid.Generator[string] {
	return rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 20), func(b []byte) string { return string(b) })
}

func genNamespace() *rapid.Generator[SnapshotNamespace] {
	return rapid.Custom(func(t *rapid.T) SnapshotNamespace {
		switch kind := NamespaceType(rapid.Uint32Range(0, 5).Draw(t, "type")); kind {
		case NamespaceUser:
			return User
		case NamespaceGroup:
			return SnapshotNamespace{Type: kind, Group: &GroupNamespace{rapid.Int64().Draw(t, "pool"), text().Draw(t, "group"), text().Draw(t, "snap")}}
		case NamespaceTrash:
			return SnapshotNamespace{Type: kind, Trash: &TrashNamespace{text().Draw(t, "name"), NamespaceType(rapid.Uint32().Draw(t, "was"))}}
		case NamespaceMirror:
			peers := rapid.SliceOfDistinct(text(), rapid.ID).Draw(t, "peers")
			slices.Sort(peers)
			return Mirror(MirrorNamespace{State: MirrorState(rapid.Byte().Draw(t, "state")), Complete: rapid.Bool().Draw(t, "complete"),
				Peers: peers, PrimaryUUID: text().Draw(t, "uuid"), PrimarySnapID: rapid.Uint64().Draw(t, "primary"),
				LastCopied: rapid.Uint64().Draw(t, "copied"), SnapSeqs: rapid.MapOf(rapid.Uint64(), rapid.Uint64()).Draw(t, "seqs")})
		default:
			return SnapshotNamespace{Type: kind, Raw: rapid.SliceOf(rapid.Byte()).Draw(t, "raw")}
		}
	})
}

func genSnapshot() *rapid.Generator[Snapshot] {
	return rapid.Custom(func(t *rapid.T) Snapshot {
		return Snapshot{ID: rapid.Uint64().Draw(t, "id"), Name: text().Draw(t, "name"), Size: rapid.Uint64().Draw(t, "size"),
			Namespace: genNamespace().Draw(t, "namespace"), Timestamp: genTime().Draw(t, "time"),
			ChildCount: rapid.Uint32().Draw(t, "children"), Protection: Protection(rapid.Byte().Draw(t, "protection")),
			Flags: rapid.Uint64().Draw(t, "flags"), ParentOverlap: genOpt().Draw(t, "overlap")}
	})
}

func genStatus(uuid bool) *rapid.Generator[SiteStatus] {
	return rapid.Custom(func(t *rapid.T) SiteStatus {
		s := SiteStatus{State: StatusState(rapid.Byte().Draw(t, "state")), Description: text().Draw(t, "text"),
			LastUpdate: genTime().Draw(t, "time"), Up: rapid.Bool().Draw(t, "up")}
		if uuid {
			s.MirrorUUID = text().Draw(t, "uuid")
		}
		return s
	})
}

func genAddr() *rapid.Generator[EntityAddr] {
	return rapid.Custom(func(t *rapid.T) EntityAddr {
		a := EntityAddr{Type: rapid.Uint32().Draw(t, "type"), Nonce: rapid.Uint32().Draw(t, "nonce")}
		switch rapid.IntRange(0, 2).Draw(t, "family") {
		case 1:
			a.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip"))), rapid.Uint16().Draw(t, "port"))
		case 2:
			a.Addr = netip.AddrPortFrom(netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip"))), rapid.Uint16().Draw(t, "port"))
		}
		return a
	})
}

func genEntity() *rapid.Generator[EntityName] {
	return rapid.Custom(func(t *rapid.T) EntityName {
		return EntityName{Type: rapid.Byte().Draw(t, "kind"), Num: rapid.Int64().Draw(t, "num")}
	})
}

func genState() *rapid.Generator[ImageState] {
	return rapid.Custom(func(t *rapid.T) ImageState {
		return ImageState{Name: text().Draw(t, "name"), Features: rapid.Uint64().Draw(t, "features"), SnapLimit: rapid.Uint64().Draw(t, "limit"),
			Snapshots: rapid.MapOf(rapid.Uint64(), rapid.Custom(func(t *rapid.T) SnapState {
				return SnapState{genNamespace().Draw(t, "namespace"), text().Draw(t, "name"), Protection(rapid.Byte().Draw(t, "protection"))}
			})).Draw(t, "snapshots"),
			Metadata: rapid.MapOf(text(), rapid.SliceOf(rapid.Byte())).Draw(t, "metadata")}
	})
}

var sameAddr = cmp.Comparer(func(a, b EntityAddr) bool {
	return a.Type == b.Type && a.Nonce == b.Nonce && a.Addr == b.Addr && bytes.Equal(a.Raw, b.Raw)
})

// roundTrip checks that what was encoded is decoded as it was.
func roundTrip[T any](t *testing.T, name string, gen *rapid.Generator[T], encode func(T) []byte, decode func([]byte) (T, error)) {
	t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
		want := gen.Draw(t, "value")
		got, err := decode(encode(want))
		if err != nil {
			t.Fatal(err)
		}
		nilIsEmpty := cmp.Options{sameAddr, cmp.FilterValues(func(a, b []string) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
			cmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) == 0 }, cmp.Ignore())}
		if diff := cmp.Diff(want, got, nilIsEmpty); diff != "" {
			t.Fatal(diff)
		}
	}))
}

func TestRoundTrips(t *testing.T) {
	roundTrip(t, "snapshot record", genSnapshot(), Snapshot.EncodeRecord, DecodeSnapshotRecord)
	roundTrip(t, "snapshot info", rapid.Map(genSnapshot(), func(s Snapshot) Snapshot {
		s.Protection, s.Flags, s.ParentOverlap = 0, 0, nil
		return s
	}), Snapshot.EncodeInfo, DecodeSnapshotInfo)
	roundTrip(t, "local status", genStatus(false), SiteStatus.Encode, DecodeSiteStatus)
	roundTrip(t, "remote status", genStatus(true), SiteStatus.Encode, DecodeSiteStatus)
	roundTrip(t, "mirror image status", rapid.Custom(func(t *rapid.T) MirrorImageStatus {
		return MirrorImageStatus{Local: rapid.Ptr(genStatus(false), true).Draw(t, "local"),
			Remote: rapid.SliceOfN(genStatus(true), 1, 3).Draw(t, "remote")}
	}), MirrorImageStatus.Encode, DecodeMirrorImageStatus)
	roundTrip(t, "peer", rapid.Custom(func(t *rapid.T) Peer {
		return Peer{text().Draw(t, "uuid"), text().Draw(t, "site"), text().Draw(t, "client"), rapid.Int64().Draw(t, "pool"),
			Direction(rapid.Byte().Draw(t, "direction")), text().Draw(t, "mirror uuid"), genTime().Draw(t, "seen")}
	}), Peer.Encode, DecodePeer)
	roundTrip(t, "record", rapid.Custom(func(t *rapid.T) MirrorImage {
		return MirrorImage{text().Draw(t, "gid"), RecordState(rapid.Byte().Draw(t, "state")), ImageMode(rapid.Byte().Draw(t, "mode"))}
	}), MirrorImage.Encode, DecodeMirrorImage)
	roundTrip(t, "trash", rapid.Custom(func(t *rapid.T) TrashSpec {
		return TrashSpec{TrashSource(rapid.Byte().Draw(t, "source")), text().Draw(t, "name"), genTime().Draw(t, "deleted"),
			genTime().Draw(t, "until"), TrashState(rapid.Byte().Draw(t, "state"))}
	}), TrashSpec.Encode, DecodeTrashSpec)
	genParent := rapid.Custom(func(t *rapid.T) ParentSpec {
		return ParentSpec{rapid.Int64().Draw(t, "pool"), text().Draw(t, "namespace"), text().Draw(t, "image"), rapid.Uint64().Draw(t, "snap")}
	})
	roundTrip(t, "parent", genParent, ParentSpec.Encode, DecodeParentSpec)
	roundTrip(t, "header's parent", rapid.Custom(func(t *rapid.T) HeaderParent {
		return HeaderParent{genParent.Draw(t, "spec"), genOpt().Draw(t, "overlap")}
	}), HeaderParent.Encode, DecodeHeaderParent)
	roundTrip(t, "child", rapid.Custom(func(t *rapid.T) ChildSpec {
		return ChildSpec{rapid.Int64().Draw(t, "pool"), text().Draw(t, "image"), text().Draw(t, "namespace")}
	}), ChildSpec.Encode, DecodeChildSpec)
	roundTrip(t, "lock", rapid.Custom(func(t *rapid.T) LockInfo {
		return LockInfo{LockType(rapid.Byte().Draw(t, "type")), text().Draw(t, "tag"), rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Locker {
			return Locker{genEntity().Draw(t, "entity"), text().Draw(t, "cookie"), genTime().Draw(t, "expiration"),
				genAddr().Draw(t, "addr"), text().Draw(t, "description")}
		}), 1, 3).Draw(t, "lockers")}
	}), LockInfo.Encode, DecodeLockInfo)
	roundTrip(t, "header notification", rapid.Custom(func(t *rapid.T) HeaderNotify {
		n := HeaderNotify{Op: HeaderOp(rapid.Uint32Range(0, 20).Draw(t, "op"))}
		if n.Op <= HeaderRequestLock {
			n.Client = ClientID{rapid.Uint64().Draw(t, "client"), rapid.Uint64().Draw(t, "handle")}
			n.Force = n.Op == HeaderRequestLock && rapid.Bool().Draw(t, "force")
		}
		return n
	}), HeaderNotify.Encode, DecodeHeaderNotify)
	roundTrip(t, "trash notification", rapid.Custom(func(t *rapid.T) TrashNotify {
		if rapid.Bool().Draw(t, "added") {
			return TrashNotify{TrashImageAdded, text().Draw(t, "id"), TrashSpec{Name: text().Draw(t, "name")}}
		}
		return TrashNotify{Op: TrashImageRemoved, ImageID: text().Draw(t, "id")}
	}), TrashNotify.Encode, DecodeTrashNotify)
}

func TestImageStateChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genState().Draw(t, "state")
		size := rapid.IntRange(16, 4096).Draw(t, "chunk")
		chunks := want.Encode(size)
		n, err := DecodeImageStateHeader(chunks[0])
		if err != nil || int(n) != len(chunks) {
			t.Fatal(n, len(chunks), err)
		}
		for i, c := range chunks {
			if len(c) > size || len(c) < size && i < len(chunks)-1 {
				t.Fatalf("chunk %d of %d has %d bytes of %d", i, len(chunks), len(c), size)
			}
		}
		got, err := DecodeImageState(bytes.Join(chunks, nil))
		if err != nil {
			t.Fatal(err)
		}
		nilIsEmpty := cmp.Options{cmp.FilterValues(func(a, b []string) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
			cmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) == 0 }, cmp.Ignore())}
		if diff := cmp.Diff(want, got, nilIsEmpty); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestEntityAddr(t *testing.T) {
	for want, a := range map[string]EntityAddr{
		"127.0.0.1:0/5":  {Nonce: 5, Addr: netip.MustParseAddrPort("127.0.0.1:0")},
		"[fe80::1]:80/5": {Nonce: 5, Addr: netip.MustParseAddrPort("[fe80::1]:80")},
		":/0":            {},
		"0xff0001/7":     {Nonce: 7, Raw: []byte{0xff, 0, 1}},
	} {
		if got := a.String(); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
	// as clients wrote it that knew one kind of address only
	old := append([]byte{0, 0, 0, 0, 9, 0, 0, 0, 0, 2, 0x1a, 0x90, 10, 0, 0, 1}, make([]byte, 120)...)
	a, err := DecodeEntityInst(append([]byte{8, 1, 0, 0, 0, 0, 0, 0, 0}, old...))
	if err != nil || a.Addr.String() != "10.0.0.1:6800/9" || a.Name.String() != "client.1" {
		t.Error(a, err)
	}
}

// fuzzed runs every decoder on b. None may panic, or set aside much more memory
// than there is data.
func fuzzed(b []byte) {
	for _, c := range coders {
		if c != nil {
			_, _ = c(b)
		}
	}
	_, _ = DecodeSiteStatus(b)
	_, _ = DecodeHeaderParent(b)
	_, _ = DecodeChildSpec(b)
	_, _ = DecodeChildren(b)
	_, _ = DecodeStrings(b)
	_, _ = DecodeTrashMap(b)
	_, _ = DecodeProtection(b)
	_, _ = DecodeImageStateHeader(b)
	_, _ = DecodeHeaderResponse(b)
	_, _ = DecodeTrashNotify(b)
	_, _ = DecodeSnapshotNamespace(b)
	_, _, _ = DecodeStripe(b)
}

func FuzzDecode(f *testing.F) {
	for _, b := range vectors(f) {
		f.Add(b)
	}
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fuzzed(b)
		runtime.ReadMemStats(&after)
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(16<<20+4096*len(b)); got > most {
			t.Errorf("%d bytes of data took %d of memory", len(b), got)
		}
	})
}
