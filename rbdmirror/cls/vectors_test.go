package cls

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cephmirror/rbdmirror/wire"
)

// vectors returns what was captured from live clusters, by name.
func vectors(t testing.TB) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var list map[string]struct{ Hex, Meaning string }
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]byte)
	for name, v := range list {
		if out[name], err = hex.DecodeString(v.Hex); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// coder decodes and encodes again.
type coder func([]byte) ([]byte, error)

func recode[T any](decode func([]byte) (T, error), encode func(T) []byte) coder {
	return func(b []byte) ([]byte, error) {
		v, err := decode(b)
		if err != nil {
			return nil, err
		}
		return encode(v), nil
	}
}

func encodeU64(v uint64) []byte { return encode(func(w *wire.Writer) { w.U64(v) }) }

// listOf encodes a map as replies do.
func mapOf[K ~string | ~uint64, V any](m map[K]V, item func(*wire.Writer, K, V)) []byte {
	return encode(func(w *wire.Writer) { writeMap(w, m, func(k K, v V) { item(w, k, v) }) })
}

// coders are found by the beginning of a vector's name; the longest counts.
var coders = map[string]coder{
	"cls_dir_get_id_out": recode(DecodeStr, encodeStr),
	"cls_dir_list_out":   recode(DecodeStrMap, encodeStrMap),

	"cls_get_all_features": recode(DecodeU64, encodeU64), "cls_get_flags": recode(DecodeU64, encodeU64),
	"cls_op_features_get": recode(DecodeU64, encodeU64), "cls_snapshot_get_limit": recode(DecodeU64, encodeU64),
	"cls_get_create_timestamp": recode(DecodeTime, encodeTime),
	"cls_get_data_pool":        recode(DecodeS64, func(v int64) []byte { return encodeU64(uint64(v)) }),
	"cls_get_object_prefix":    recode(DecodeStr, encodeStr),
	"cls_get_features": func(b []byte) ([]byte, error) {
		f, i, err := DecodeFeatures(b)
		return encode(func(w *wire.Writer) { w.U64(f); w.U64(i) }), err
	},
	"cls_get_size": func(b []byte) ([]byte, error) {
		order, size, err := DecodeSize(b)
		return encode(func(w *wire.Writer) { w.U8(order); w.U64(size) }), err
	},
	"cls_get_snapcontext": func(b []byte) ([]byte, error) {
		seq, ids, err := DecodeSnapContext(b)
		return encode(func(w *wire.Writer) {
			w.U64(seq)
			w.U32(uint32(len(ids)))
			for _, id := range ids {
				w.U64(id)
			}
		}), err
	},
	"cls_metadata_list": recode(DecodeBlobMap, func(m map[string][]byte) []byte {
		return mapOf(m, func(w *wire.Writer, k string, v []byte) { w.Str(k); w.Blob(v) })
	}),
	"cls_parent_get":         recode(DecodeParentSpec, ParentSpec.Encode),
	"cls_parent_overlap_get": recode(DecodeOptU64, func(v *uint64) []byte { return encode(func(w *wire.Writer) { w.OptU64(v) }) }),
	"cls_lock_get_info":      recode(DecodeLockInfo, LockInfo.Encode),
	"lock_xattr":             recode(DecodeLockInfo, LockInfo.Encode),

	"cls_mirror_uuid_get":           recode(DecodeStr, encodeStr),
	"cls_mirror_mode_get":           recode(DecodePoolMode, func(m PoolMode) []byte { return MirrorModeSet(m).In }),
	"cls_mirror_image_get_image_id": recode(DecodeStr, encodeStr),
	"cls_mirror_image_get":          recode(DecodeMirrorImage, MirrorImage.Encode),
	"cls_mirror_image_list":         recode(DecodeStrMap, encodeStrMap),
	"cls_mirror_image_instance_get": recode(DecodeEntityInst, EntityInst.Encode),
	"cls_mirror_image_instance_list": recode(DecodeInstanceMap, func(m map[string]EntityInst) []byte {
		return mapOf(m, func(w *wire.Writer, k string, v EntityInst) { w.Str(k); v.write(w) })
	}),
	"cls_mirror_image_status_get": recode(DecodeMirrorImageStatus, MirrorImageStatus.Encode),
	"cls_mirror_image_status_get_summary": recode(DecodeStatusSummary, func(m map[StatusState]int32) []byte {
		return encode(func(w *wire.Writer) {
			w.U32(uint32(len(m)))
			for _, k := range slices.Sorted(maps.Keys(m)) {
				w.U8(uint8(k))
				w.U32(uint32(m[k]))
			}
		})
	}),
	"cls_mirror_image_status_list": func(b []byte) ([]byte, error) {
		images, status, err := DecodeStatusList(b)
		return append(mapOf(images, func(w *wire.Writer, k string, v MirrorImage) { w.Str(k); v.write(w) }),
			mapOf(status, func(w *wire.Writer, k string, v MirrorImageStatus) { w.Str(k); v.write(w) })...), err
	},
	"cls_mirror_peer_list": recode(DecodePeers, func(p []Peer) []byte { return encode(func(w *wire.Writer) { writePeers(w, p) }) }),

	"imagestate": recode(DecodeImageState, func(s ImageState) []byte { return bytes.Join(s.Encode(1<<22), nil) }),

	"omap_header_rs1_features": recode(DecodeU64, encodeU64), "omap_header_rs1_size": recode(DecodeU64, encodeU64),
	"omap_header_rs1_snap_seq": recode(DecodeU64, encodeU64), "omap_header_rs2_features": recode(DecodeU64, encodeU64),
	"omap_header_rs2_snap_seq":         recode(DecodeU64, encodeU64),
	"omap_header_rs1_modify_timestamp": recode(DecodeTime, encodeTime),
	"omap_header_rs2_modify_timestamp": recode(DecodeTime, encodeTime),
	"omap_header_rs2_create_timestamp": recode(DecodeTime, encodeTime),
	"omap_header_rs1_order":            nil,
	"omap_header_rs1_snapshot_":        recode(DecodeSnapshotRecord, Snapshot.EncodeRecord),
	"omap_header_rs2_snapshot_":        recode(DecodeSnapshotRecord, Snapshot.EncodeRecord),
	"omap_mirroring_rs1_image_":        recode(DecodeMirrorImage, MirrorImage.Encode),
	"omap_mirroring_rs1_mirror_peer_":  recode(DecodePeer, Peer.Encode),
	"omap_mirroring_rs2_mirror_peer_":  recode(DecodePeer, Peer.Encode),
	"omap_mirroring_rs1_mirror_uuid":   nil, "omap_mirroring_rs2_mirror_uuid": nil, // plain text
	"omap_mirroring_rs1_remote_status": storedStatus, "omap_mirroring_rs1_status": storedStatus,
	"omap_mirroring_rs2_remote_status": storedStatus, "omap_mirroring_rs2_status": storedStatus,
	"omap_trash":       recode(DecodeTrashSpec, TrashSpec.Encode),
	"snapshotinfo":     recode(DecodeSnapshotInfo, Snapshot.EncodeInfo),
	"notify_header":    recode(DecodeHeaderNotify, HeaderNotify.Encode),
	"notify_mirroring": recode(DecodeMirroringNotify, MirroringNotify.Encode),

	"in_": nil, "cls_dir_get_id_in": nil, "cls_lock_get_info_in": nil, // see TestCalls
}

func storedStatus(b []byte) ([]byte, error) {
	who, s, err := DecodeStoredStatus(b)
	return EncodeStoredStatus(who, s), err
}

func encodeStr(s string) []byte { return encode(func(w *wire.Writer) { w.Str(s) }) }

func encodeTime(t time.Time) []byte { return encode(func(w *wire.Writer) { w.Time(t) }) }

func encodeStrMap(m map[string]string) []byte {
	return mapOf(m, func(w *wire.Writer, k, v string) { w.Str(k); w.Str(v) })
}

// coderOf returns the coder of a vector.
func coderOf(name string) (c coder, known bool) {
	best := ""
	for prefix := range coders {
		if strings.HasPrefix(name, prefix) && len(prefix) > len(best) {
			best = prefix
		}
	}
	return coders[best], best != ""
}

func TestVectors(t *testing.T) {
	for name, b := range vectors(t) {
		code, known := coderOf(name)
		if !known {
			t.Errorf("%s: nothing decodes it", name)
		}
		if code == nil {
			continue
		}
		got, err := code(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(got, b) {
			t.Errorf("%s: encoded again\n%x instead of\n%x", name, got, b)
		}
		// whatever is cut off is missed, except where there is nothing to miss
		for n := range b {
			if _, err := code(b[:n]); err == nil {
				t.Errorf("%s: %d bytes of %d decoded", name, n, len(b))
			}
		}
	}
}

func TestMeanings(t *testing.T) {
	v := vectors(t)
	const gid = "296038a7-55d1-43db-b571-cf247762e10b"
	check := func(name string, want any, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b EntityAddr) bool { return a.String() == b.String() })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	snap, err := DecodeSnapshotInfo(v["snapshotinfo_rs1_31"])
	check("snapshotinfo_rs1_31", Snapshot{
		ID: 31, Name: ".mirror.non_primary." + gid + ".dc5f15de-d768-443d-b568-7f18aa23813c", Size: 31457280,
		Namespace: Mirror(MirrorNamespace{State: MirrorNonPrimary, Complete: true,
			PrimaryUUID: "1817090f-d3ee-433f-b63e-a65a02d51fe2", PrimarySnapID: 41, LastCopied: 10,
			SnapSeqs: map[uint64]uint64{21: 14, 27: 19, 33: 24, 41: NoSnap}}),
		Timestamp: time.Unix(1795312815, 441633836).UTC(),
	}, snap, err)
	snap, err = DecodeSnapshotRecord(v["omap_header_rs1_snapshot_0000000000000016"])
	check("record of 22", Snapshot{
		ID: 22, Name: ".mirror.primary." + gid + ".7263e42c-3a76-4719-9a43-23cf7b5f38df", Size: 31457280,
		Namespace: Mirror(MirrorNamespace{State: MirrorPrimaryDemoted, Complete: true,
			Peers: []string{"c765d4a2-69bd-4efd-96ec-3372576dac97"}, PrimarySnapID: NoSnap, SnapSeqs: map[uint64]uint64{}}),
		Timestamp: time.Unix(1795312541, 369416180).UTC(),
	}, snap, err)
	state, err := DecodeImageState(v["imagestate_rs1_20"])
	check("imagestate_rs1_20", ImageState{Name: "img", Features: 45, SnapLimit: NoLimit,
		Snapshots: map[uint64]SnapState{14: {Namespace: User, Name: "u2"}, 19: {Namespace: User, Name: "u3"}},
		Metadata:  map[string][]byte{"k1": []byte("v1"), "k2": []byte("v2")}}, state, err)
	trash, err := DecodeTrashSpec(v["omap_trash"])
	check("omap_trash", TrashSpec{Source: TrashMirroring, Name: "j6", DeletedAt: time.Unix(1795312444, 453075939).UTC(),
		DeferredUntil: time.Unix(1795312564, 453075939).UTC()}, trash, err)
	lock, err := DecodeLockInfo(v["lock_xattr_leader_0"])
	check("lock", "client.4167 auto 94470843047936 127.0.0.1:0/37467613 1 internal",
		fmt.Sprint(lock.Lockers[0].Entity, " ", lock.Lockers[0].Cookie, " ", lock.Lockers[0].Addr, " ", lock.Type, " ", lock.Tag), err)
	watch, ok := ParseAutoCookie(lock.Lockers[0].Cookie)
	if !ok || watch != 94470843047936 || AutoCookie(watch) != lock.Lockers[0].Cookie {
		t.Errorf("cookie: %v %v", watch, ok)
	}
	sum, err := DecodeStatusSummary(v["cls_mirror_image_status_get_summary_rs1_out"])
	check("summary", map[StatusState]int32{StatusReplaying: 1, StatusStopped: 3}, sum, err)
	_, _, err = DecodeStatusList(v["cls_mirror_image_status_list_rs1_out"])
	check("status list", nil, nil, err)
	n, err := DecodeMirroringNotify(v["notify_mirroring_1"])
	check("notify", MirroringNotify{Op: MirroringImageUpdated, State: RecordDisabled, ImageID: "104ea872ccc6",
		GlobalID: "4abbeb55-6917-49ab-9588-51ccb871b48c"}, n, err)
	h, err := DecodeHeaderNotify([]byte("\x07\x01\x14\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"))
	check("acquired lock", HeaderNotify{Op: HeaderAcquiredLock, Client: ClientID{5, 6}}, h, err)
}

func TestHeaderOps(t *testing.T) {
	for op, want := range map[HeaderOp]bool{0: false, 1: false, 2: true, 3: false, 5: false, 6: true, 8: true, 17: true, 18: false,
		19: false, 20: true, 21: false} {
		if op.AsksHolder() != want {
			t.Errorf("operation %d: %v", op, !want)
		}
	}
	if HeaderQuiesce != 18 || HeaderSnapCreate != 8 || HeaderMetadataUpdate != 20 {
		t.Error("operations are numbered wrongly")
	}
}

func TestCalls(t *testing.T) {
	v := vectors(t)
	const gid, id = "296038a7-55d1-43db-b571-cf247762e10b", "109fd75dc787"
	record := func(s RecordState) MirrorImage {
		return MirrorImage{GlobalID: gid, State: s, Mode: ImageModeSnapshot}
	}
	exists := uint8(1)
	const text = `replaying, {"replay_state":"idle"}`
	for name, c := range map[string]Call{
		"cls_dir_get_id_in":             DirGetID("img"),
		"cls_lock_get_info_in":          LockGetInfo("rbd_lock"),
		"in_copy_progress":              SetCopyProgress(20, false, 2),
		"in_create":                     Create(CreateOptions{Size: 41943040, Order: 22, Features: 0x43d, Prefix: "rbd_data." + id, DataPool: -1}),
		"in_lock":                       LockLock("rbd_lock", LockExclusive, "auto 1", "internal", ""),
		"in_mirror_image_set_creating":  MirrorImageSet(id, record(RecordCreating)),
		"in_mirror_image_set_disabling": MirrorImageSet(id, record(RecordDisabling)),
		"in_mirror_image_set_enabled":   MirrorImageSet(id, record(RecordEnabled)),
		"in_mirror_peer_ping":           MirrorPeerPing("rs2", "1817090f-d3ee-433f-b63e-a65a02d51fe2"),
		"in_object_map_resize":          ObjectMapResize(10, 0),
		"in_object_map_update":          ObjectMapUpdate(3, 4, 1, nil),
		"in_object_map_update_filtered": ObjectMapUpdate(0, 10, 3, &exists),
		"in_snapshot_add_nonprimary": SnapshotAdd(".mirror.non_primary."+gid+".5356fd7d-98df-4280-9c56-f7382a3b8653", 20,
			Mirror(MirrorNamespace{State: MirrorNonPrimary, PrimaryUUID: "8448e25b-8c47-4585-a556-edc38d908da3",
				PrimarySnapID: 13, SnapSeqs: map[uint64]uint64{12: 19, 13: NoSnap}})),
		"in_snapshot_add_user": SnapshotAdd("u1", 19, User),
		"in_status_local":      MirrorImageStatusSet(gid, SiteStatus{State: StatusReplaying, Description: text}),
		"in_status_remote": MirrorImageStatusSet(gid, SiteStatus{MirrorUUID: "1817090f-d3ee-433f-b63e-a65a02d51fe2",
			State: StatusReplaying, Description: text}),
		"in_unlink_peer": UnlinkPeer(13, "c765d4a2-69bd-4efd-96ec-3372576dac97"),
		"in_unlock":      LockUnlock("rbd_lock", "auto 1"),
	} {
		if want := v[name]; !bytes.Equal(c.In, want) || want == nil {
			t.Errorf("%s: %s.%s takes\n%x instead of\n%x", name, c.Class, c.Method, c.In, want)
		}
	}
	for name := range v {
		if strings.HasPrefix(name, "in_") && !strings.Contains("in_copy_progress in_create in_lock in_mirror_image_set_creating "+
			"in_mirror_image_set_disabling in_mirror_image_set_enabled in_mirror_peer_ping in_object_map_resize in_object_map_update "+
			"in_object_map_update_filtered in_snapshot_add_nonprimary in_snapshot_add_user in_status_local in_status_remote "+
			"in_unlink_peer in_unlock", name) {
			t.Errorf("%s is not tested", name)
		}
	}
}
