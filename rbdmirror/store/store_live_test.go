//go:build cgo

package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/go-cmp/cmp"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdsite"
)

const mib = 1 << 20

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !ceph.Is(err, want) {
		t.Errorf("%v instead of %v", err, want)
	}
}

func TestLive(t *testing.T) {
	s := rbdsite.StartEmpty(t, "a")
	t.Run("create", func(t *testing.T) { testCreate(t, s) })
	t.Run("load", func(t *testing.T) { testLoad(t, s) })
	t.Run("snapshots", func(t *testing.T) { testSnapshots(t, s) })
	t.Run("mirroring", func(t *testing.T) { testMirroring(t, s) })
	t.Run("locks", func(t *testing.T) { testLocks(t, s) })
	t.Run("trash", func(t *testing.T) { testTrash(t, s) })
	t.Run("clones", func(t *testing.T) { testClones(t, s) })
	t.Run("objectmap", func(t *testing.T) { testObjectMap(t, s) })
}

// testCreate makes images and has them looked at by the stock tools.
func testCreate(t *testing.T, s *rbdsite.Site) {
	const features = cls.FeatureLayering | cls.FeatureExclusiveLock | cls.FeatureObjectMap | cls.FeatureFastDiff | cls.FeatureDeepFlatten
	const size = 17*mib + 5
	// Every byte of the image tells where it belongs.
	want := make([]byte, size)
	for at := range want {
		want[at] = byte(at>>16) ^ byte(at)
	}
	content := writeTemp(t, want)
	for name, test := range map[string]struct {
		namespace   string
		dataPool    string
		features    uint64
		unit, count uint64
	}{
		"plain":     {"", "", features, 0, 0},
		"bare":      {"", "", cls.FeatureLayering, 4 * mib, 1},
		"striped":   {"", "", features, mib, 4},
		"data":      {"", rbdsite.DataPool, features, 0, 0},
		"namespace": {rbdsite.Namespace, "", features, 0, 0},
		"all":       {rbdsite.Namespace, rbdsite.DataPool, features, 64 << 10, 3},
	} {
		t.Run(name, func(t *testing.T) {
			io := s.IO(rbdsite.Pool, test.namespace)
			dataPool := int64(-1)
			if test.dataPool != "" {
				dataPool = s.IO(test.dataPool, "").GetPoolID()
			}
			spec := rbdsite.Pool + "/"
			if test.namespace != "" {
				spec += test.namespace + "/"
			}
			spec += name
			dir := store.NewDirectory(io)
			id := store.NewImageID(s.Conn.GetInstanceID())
			must(t, dir.Add(name, id))
			wantErrno(t, dir.Add(name, id+"x"), syscall.EEXIST)
			must(t, dir.CreateID(name, id))
			wantErrno(t, dir.CreateID(name, id), syscall.EEXIST)
			opts := store.CreateOptions{Size: size, Order: 22, Features: test.features | cls.FeatureNonPrimary,
				Prefix: store.DataPrefix(id, io.GetPoolID(), dataPool), DataPool: dataPool, StripeUnit: test.unit, StripeCount: test.count}
			h := store.NewHeader(io, id)
			must(t, h.Create(opts))
			wantErrno(t, h.Create(opts), syscall.EEXIST)
			img := value(h.Load())(t)
			if img.Size != size || img.Order != 22 || img.Prefix != opts.Prefix || img.DataPool != dataPool || !img.Has(opts.Features) ||
				img.Parent.Exists() || img.ParentOverlap != nil || img.SnapLimit != cls.NoLimit || time.Since(img.Created).Abs() > time.Hour {
				t.Errorf("loaded %+v", img)
			}
			data := value(store.DataContext(s.Conn, io, img.DataPool))(t)
			defer data.Destroy()
			var info struct {
				ID, Name    string
				Size        uint64
				Objects     uint64
				Prefix      string `json:"block_name_prefix"`
				DataPool    string `json:"data_pool"`
				StripeUnit  uint64 `json:"stripe_unit"`
				StripeCount uint64 `json:"stripe_count"`
				Features    []string
				Flags       []string
			}
			s.JSON(&info, "rbd", "info", spec)
			if info.ID != id || info.Name != name || info.Size != size || info.Prefix != img.Prefix || info.DataPool != test.dataPool {
				t.Errorf("rbd info: %+v", info)
			}
			if got := strings.Join(info.Features, " "); !strings.Contains(got, "non-primary") || strings.Contains(got, "data-pool") != (dataPool >= 0) {
				t.Errorf("features: %v", info.Features)
			}
			if info.StripeCount != 0 && (info.StripeCount != img.StripeCount || info.StripeUnit != img.StripeUnit) {
				t.Errorf("stripes: %+v %+v", info, img)
			}
			if info.Objects != img.Objects(size) {
				t.Errorf("%d objects, not %d", img.Objects(size), info.Objects)
			}
			var maps *store.ObjectMap
			if img.Has(cls.FeatureObjectMap) {
				maps = store.NewObjectMap(io, id, cls.NoSnap)
				must(t, maps.Resize(img.Objects(size), objectmap.NonExistent))
			}
			// Written through us, read by rbd.
			unit, count, object := img.StripeUnit, img.StripeCount, img.ObjectSize()
			written := map[uint64]bool{}
			for at := uint64(0); at < size; at += unit {
				block := at / unit
				perObject := object / unit
				stripe := block / count
				number := stripe/perObject*count + block%count
				offset := stripe % perObject * unit
				must(t, data.Write(store.DataObject(img.Prefix, number), want[at:min(at+unit, size)], offset))
				written[number] = true
			}
			for n := range written {
				if n >= img.Objects(size) {
					t.Errorf("object %d of %d", n, img.Objects(size))
				}
			}
			if uint64(len(written)) != img.Objects(size) {
				t.Errorf("%d objects instead of %d", len(written), img.Objects(size))
			}
			if maps != nil {
				must(t, maps.Update(0, img.Objects(size), objectmap.Exists, nil))
			}
			snap := value(store.AddSnapshot(h, data, "user", cls.User))(t)
			if maps != nil {
				must(t, store.NewObjectMap(io, id, snap).Save(value(maps.Load())(t)))
				must(t, maps.SnapAdd())
			}
			mirror := value(store.AddSnapshot(h, data, ".mirror.non_primary.gid.x", cls.Mirror(cls.MirrorNamespace{
				State: cls.MirrorNonPrimary, PrimaryUUID: "uuid", PrimarySnapID: 7, SnapSeqs: map[uint64]uint64{6: snap, 7: cls.NoSnap}})))(t)
			if maps != nil {
				must(t, store.NewObjectMap(io, id, mirror).Save(value(maps.Load())(t)))
				must(t, maps.SnapAdd())
			}
			must(t, h.SetCopyProgress(mirror, false, 3))
			must(t, h.SetCopyProgress(mirror, true, 9))
			must(t, h.SetMetadata(map[string][]byte{"k": []byte("v"), "k2": []byte("v2")}))
			must(t, h.SetSnapLimit(9))
			must(t, h.Notify())
			img = value(h.Load())(t)
			if img.SnapLimit != 9 || len(img.Snapshots) != 2 || img.Snapshots[0].ID != snap || img.Snapshots[0].Name != "user" ||
				img.SnapSeq != mirror || string(img.Metadata["k2"]) != "v2" || len(img.Metadata) != 2 {
				t.Errorf("loaded %+v", img)
			}
			m := img.Snapshot(mirror).Namespace.Mirror
			if diff := cmp.Diff(&cls.MirrorNamespace{State: cls.MirrorNonPrimary, Complete: true, PrimaryUUID: "uuid", PrimarySnapID: 7,
				LastCopied: 9, SnapSeqs: map[uint64]uint64{6: snap, 7: cls.NoSnap}}, m); diff != "" {
				t.Error(diff)
			}
			if out := s.Run("rbd", "snap", "ls", "--all", spec); !strings.Contains(out, "non-primary") || !strings.Contains(out, "uuid:7 copied") {
				t.Errorf("rbd snap ls --all: %s", out)
			}
			out, err := s.Try("sh", "-c", "rbd export --no-progress "+spec+"@user - 2>/dev/null | cmp - $0 && rbd export --no-progress "+spec+" - 2>/dev/null | cmp - $0",
				content)
			if err != nil {
				t.Errorf("what rbd reads differs: %v %s", err, out)
			}
			must(t, h.SetFeatures(0, cls.FeatureNonPrimary))
			must(t, h.Notify())
			if img.Has(cls.FeatureObjectMap) {
				for _, what := range []string{spec, spec + "@user"} {
					s.Run("rbd", "object-map", "check", "--no-progress", what)
				}
				s.JSON(&info, "rbd", "info", spec)
				if len(info.Flags) > 0 {
					t.Errorf("flags after the check: %v", info.Flags)
				}
			}
			// rbd can do all with it that it does with its own
			s.Run("rbd", "resize", "--no-progress", "--size", "40", spec)
			s.Run("rbd", "rename", spec, spec+"2")
			if got := value(dir.ID(name + "2"))(t); got != id {
				t.Error(got)
			}
			if got := value(dir.Name(id))(t); got != name+"2" {
				t.Error(got)
			}
			if got := value(dir.GetID(name + "2"))(t); got != id {
				t.Error(got)
			}
			s.Run("rbd", "snap", "purge", "--no-progress", spec+"2")
			// the mirror snapshot is none of rbd's
			must(t, store.RemoveSnapshot(h, data, value(h.Load())(t), mirror, false))
			s.Run("rbd", "rm", "--no-progress", spec+"2")
			for _, where := range [][2]string{{rbdsite.Pool, test.namespace}, {rbdsite.DataPool, test.namespace}} {
				for _, oid := range s.Objects(where[0], where[1]) {
					if strings.Contains(oid, id) {
						t.Errorf("left in %v: %s", where, oid)
					}
				}
			}
			if _, err := dir.ID(name + "2"); !ceph.Is(err, syscall.ENOENT) {
				t.Errorf("%v", err)
			}
			_, err = h.Load()
			wantErrno(t, err, syscall.ENOENT)
			wantErrno(t, h.SetSize(5), syscall.ENOENT)
			if err == nil || !strings.Contains(err.Error(), "rbd_header."+id) || !strings.Contains(err.Error(), "get_features") {
				t.Errorf("unclear error %v", err)
			}
		})
	}
}

// testLoad reads images that rbd made.
func testLoad(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	s.Run("rbd", "create", "--size", "20M", "--stripe-unit", "65536", "--stripe-count", "2", "--data-pool", "data", "stock")
	s.Run("rbd", "snap", "create", "--no-progress", "stock@one")
	s.Run("rbd", "snap", "protect", "stock@one")
	s.Run("rbd", "resize", "--no-progress", "--size", "30M", "stock")
	s.Run("rbd", "snap", "create", "--no-progress", "stock@two")
	s.Run("rbd", "clone", "stock@one", "child")
	s.Run("rbd", "snap", "limit", "set", "--limit", "7", "stock")
	for i := range 3 {
		s.Run("rbd", "image-meta", "set", "stock", fmt.Sprint("key", i), fmt.Sprint("value", i))
	}
	dir := store.NewDirectory(io)
	id := value(dir.ID("stock"))(t)
	h := store.NewHeader(io, id)
	img := value(h.Load())(t)
	data := value(store.DataContext(s.Conn, io, img.DataPool))(t)
	defer data.Destroy()
	if img.Size != 30*mib || img.StripeUnit != 65536 || img.StripeCount != 2 || img.DataPool != s.IO("data", "").GetPoolID() ||
		!img.Has(cls.FeatureStriping|cls.FeatureDataPool) || img.SnapLimit != 7 || len(img.Metadata) != 3 || string(img.Metadata["key1"]) != "value1" {
		t.Errorf("%+v", img)
	}
	if len(img.Snapshots) != 2 || img.Snapshots[0].Name != "one" || img.Snapshots[0].Size != 20*mib ||
		img.Snapshots[0].Protection != cls.Protected || img.Snapshots[1].Protection != cls.Unprotected || img.Snapshots[1].Size != 30*mib {
		t.Errorf("%+v", img.Snapshots)
	}
	if got := img.MaxObjects(); got != 8 {
		t.Errorf("%d objects", got)
	}
	childID := value(dir.ID("child"))(t)
	child := value(store.NewHeader(io, childID).Load())(t)
	want := cls.ParentSpec{PoolID: io.GetPoolID(), ImageID: id, SnapID: img.Snapshots[0].ID}
	if child.Parent != want || child.ParentOverlap == nil || *child.ParentOverlap != 20*mib {
		t.Errorf("%+v %v", child.Parent, child.ParentOverlap)
	}
	// more metadata than a page
	many := map[string][]byte{}
	for i := range 1500 {
		many[fmt.Sprintf("m%04d", i)] = []byte("x")
	}
	must(t, h.SetMetadata(many))
	if got := value(h.Load())(t); len(got.Metadata) != 1503 {
		t.Errorf("%d pieces of metadata", len(got.Metadata))
	}
	must(t, h.RemoveMetadata("m0000"))
	must(t, h.RemoveMetadata("m0000"))
	if got := value(h.Metadata("key2"))(t); string(got) != "value2" {
		t.Errorf("%q", got)
	}
	// a header that changes all the time is read as it was at one moment
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		data, err := store.DataContext(s.Conn, io, img.DataPool)
		if err != nil {
			done <- err
			return
		}
		defer data.Destroy()
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			snap, err := store.AddSnapshot(h, data, "changing", cls.User)
			if err == nil {
				err = h.RemoveSnapshot(snap)
			}
			if err == nil {
				err = store.RemoveSnapID(data, snap)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 100 {
		img := value(h.Load())(t)
		if n := len(img.Snapshots); n != 2 && n != 3 {
			t.Errorf("%d snapshots", n)
		}
	}
	close(stop)
	must(t, <-done)
	// more snapshots than a page; that they have no ids of the pool's own is
	// nobody's business
	from := value(store.CreateSnapID(data))(t)
	for i := range uint64(2100) {
		must(t, h.AddSnapshot(from+1+i, fmt.Sprint("many", i), cls.User))
		if i == 3 {
			must(t, h.SetSnapLimit(cls.NoLimit))
		}
	}
	img = value(h.Load())(t)
	if len(img.Snapshots) != 2102 {
		t.Errorf("%d snapshots", len(img.Snapshots))
	}
	for i, s := range img.Snapshots[2:] {
		if s.ID != from+1+uint64(i) || s.Name != fmt.Sprint("many", i) {
			t.Fatalf("%d: %+v", i, s)
		}
	}
}

func testSnapshots(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	s.Run("rbd", "create", "--size", "40M", "snaps")
	dir := store.NewDirectory(io)
	id := value(dir.ID("snaps"))(t)
	h := store.NewHeader(io, id)
	for i, at := range []string{"0", "4M", "0", "12M", "4M"} {
		s.Run("rbd", "bench", "--io-type", "write", "--io-size", "4096", "--io-total", "4096", "--io-pattern", "seq", "snaps")
		writeAt(t, s, "snaps", at, i)
		s.Run("rbd", "snap", "create", "--no-progress", fmt.Sprintf("snaps@s%d", i))
	}
	sum := func(snap string) string {
		return strings.Fields(s.Run("sh", "-c", "rbd export --no-progress snaps"+snap+" - 2>/dev/null | md5sum"))[0]
	}
	want := map[string]string{}
	for _, snap := range []string{"", "@s0", "@s2", "@s3"} {
		want[snap] = sum(snap)
	}
	img := value(h.Load())(t)
	must(t, h.SetProtection(img.Snapshots[1].ID, cls.Protected))
	img = value(h.Load())(t)
	wantErrno(t, store.RemoveSnapshot(h, io, img, img.Snapshots[1].ID, false), syscall.EBUSY)
	must(t, h.SetProtection(img.Snapshots[1].ID, cls.Unprotected))
	must(t, h.RenameSnapshot(img.Snapshots[2].ID, "renamed"))
	want["@renamed"] = want["@s2"]
	delete(want, "@s2")
	for _, k := range []int{1, 4} {
		img = value(h.Load())(t)
		var victim uint64
		for _, snap := range img.Snapshots {
			if snap.Name == fmt.Sprint("s", k) {
				victim = snap.ID
			}
		}
		// as if it broke off in the middle
		must(t, h.TrashSnapshot(victim))
		img = value(h.Load())(t)
		if ns := img.Snapshot(victim).Namespace; ns.Trash == nil || ns.Trash.OriginalName != fmt.Sprint("s", k) || ns.Trash.OriginalType != cls.NamespaceUser {
			t.Errorf("%+v", ns)
		}
		must(t, store.RemoveSnapshot(h, io, img, victim, false))
		must(t, store.RemoveSnapshot(h, io, img, victim, false)) // with what was known before
		must(t, store.RemoveSnapshot(h, io, value(h.Load())(t), victim, false))
		must(t, h.Notify())
	}
	for snap, sumWanted := range want {
		if got := sum(snap); got != sumWanted {
			t.Errorf("snaps%s reads differently", snap)
		}
		s.Run("rbd", "object-map", "check", "--no-progress", "snaps"+snap)
	}
	var info struct{ Flags []string }
	s.JSON(&info, "rbd", "info", "snaps")
	if len(info.Flags) > 0 {
		t.Errorf("flags: %v", info.Flags)
	}
	// the diff by object maps agrees with what was written
	out := s.Run("rbd", "diff", "--whole-object", "--from-snap", "s0", "snaps@s3")
	if !strings.Contains(out, "12582912") {
		t.Errorf("rbd diff: %s", out)
	}
	// a lost map of a snapshot is nothing to stumble over
	img = value(h.Load())(t)
	must(t, store.NewObjectMap(io, id, img.Snapshots[0].ID).Delete())
	must(t, store.RemoveSnapshot(h, io, img, img.Snapshots[0].ID, false))

	// ids that are too low
	low := value(store.CreateSnapID(io))(t)
	high := value(store.CreateSnapID(io))(t)
	must(t, h.AddSnapshot(high, "high", cls.User))
	wantErrno(t, h.AddSnapshot(low, "low", cls.User), syscall.ESTALE)
	wantErrno(t, h.AddSnapshot(high, "high", cls.User), syscall.EEXIST)
	must(t, store.RemoveSnapID(io, low))
	must(t, store.RemoveSnapID(io, low))
	wantErrno(t, h.SetSnapLimit(1), syscall.ERANGE)
	must(t, h.SetSnapLimit(uint64(len(value(h.Load())(t).Snapshots))))
	_, err := store.AddSnapshot(h, io, "over", cls.User)
	wantErrno(t, err, syscall.EDQUOT)
}

func testMirroring(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	m := store.NewMirroring(io)
	if mode := value(m.Mode())(t); mode != cls.PoolModeDisabled {
		t.Fatalf("mode %d", mode)
	}
	_, err := m.UUID()
	wantErrno(t, err, syscall.ENOENT)
	if got := value(m.AllImages())(t); len(got) != 0 {
		t.Fatalf("images %v", got)
	}
	if got := value(m.Peers())(t); len(got) != 0 {
		t.Fatalf("peers %v", got)
	}
	must(t, m.RemoveDown())
	s.Run("rbd", "mirror", "pool", "enable", "--site-name", "here", rbdsite.Pool, "image")
	if mode := value(m.Mode())(t); mode != cls.PoolModeImage {
		t.Errorf("mode %d", mode)
	}
	if uuid := value(m.UUID())(t); len(uuid) != 36 {
		t.Errorf("uuid %q", uuid)
	}
	if ns := value(m.RemoteNamespace())(t); ns != "" {
		t.Errorf("remote namespace %q", ns)
	}
	if ns := value(store.NewMirroring(s.IO(rbdsite.Pool, rbdsite.Namespace)).RemoteNamespace())(t); ns != rbdsite.Namespace {
		t.Errorf("remote namespace %q", ns)
	}
	peer := strings.TrimSpace(s.Run("rbd", "mirror", "pool", "peer", "add", rbdsite.Pool, "client.x@there"))
	const farUUID = "11111111-2222-3333-4444-555555555555"
	must(t, m.Ping("there", farUUID))
	peers := value(m.Peers())(t)
	if len(peers) != 1 || peers[0].UUID != peer || peers[0].MirrorUUID != farUUID || peers[0].Direction != cls.DirectionRxTx ||
		peers[0].ClientName != "client.x" || peers[0].SiteName != "there" || peers[0].PoolID != -1 || time.Since(peers[0].LastSeen).Abs() > time.Hour {
		t.Errorf("%+v", peers)
	}

	// a primary image by rbd, with its state
	s.Run("rbd", "create", "--size", "8M", "mirrored")
	s.Run("rbd", "image-meta", "set", "mirrored", "k", "v")
	s.Run("rbd", "snap", "create", "--no-progress", "mirrored@user")
	s.Run("rbd", "mirror", "image", "enable", "mirrored", "snapshot")
	id := value(store.NewDirectory(io).ID("mirrored"))(t)
	r := value(m.Image(id))(t)
	if r.State != cls.RecordEnabled || r.Mode != cls.ImageModeSnapshot || value(m.ImageID(r.GlobalID))(t) != id {
		t.Errorf("%+v", r)
	}
	h := store.NewHeader(io, id)
	img := value(h.Load())(t)
	snap := img.Snapshots[len(img.Snapshots)-1]
	if ns := snap.Namespace.Mirror; ns == nil || ns.State != cls.MirrorPrimary || !ns.Complete || !ns.HasPeer(peer) {
		t.Errorf("%+v", snap)
	}
	states := store.NewImageStates(io)
	state := value(states.Read(id, snap.ID))(t)
	if state.Name != "mirrored" || string(state.Metadata["k"]) != "v" || len(state.Snapshots) != 1 ||
		state.Features != img.Features&^cls.ImplicitFeatures {
		t.Errorf("%+v", state)
	}
	state.Metadata["big"] = bytes.Repeat([]byte("x"), 9<<20)
	must(t, states.Write("other", 5, state))
	must(t, states.Copy(states, "other", 5, "another", 6))
	if diff := cmp.Diff(state, value(states.Read("another", 6))(t), cmp.Comparer(bytes.Equal)); diff != "" {
		t.Error(diff)
	}
	for _, what := range []string{"other", "another"} {
		must(t, states.Delete(what, map[string]uint64{"other": 5, "another": 6}[what]))
	}
	must(t, states.Delete("other", 5))
	_, err = states.Read("other", 5)
	wantErrno(t, err, syscall.ENOENT)
	for _, oid := range s.Objects(rbdsite.Pool, "") {
		if strings.HasPrefix(oid, "rbd_mirror_snapshot.other") || strings.HasPrefix(oid, "rbd_mirror_snapshot.another") {
			t.Errorf("left: %s", oid)
		}
	}
	must(t, h.UnlinkPeer(snap.ID, peer))
	must(t, h.UnlinkPeer(snap.ID, peer))
	if ns := value(h.Load())(t).Snapshot(snap.ID).Namespace.Mirror; len(ns.Peers) != 0 {
		t.Errorf("%+v", ns)
	}

	// records and status of our own
	const gid = "99999999-2222-3333-4444-555555555555"
	_, err = m.Image("ours")
	wantErrno(t, err, syscall.ENOENT)
	must(t, m.RemoveImage("ours"))
	record := cls.MirrorImage{GlobalID: gid, State: cls.RecordCreating, Mode: cls.ImageModeSnapshot}
	must(t, m.SetImage("ours", record))
	wantErrno(t, m.SetImage("ours2", record), syscall.EEXIST)
	record.State = cls.RecordEnabled
	must(t, m.SetImage("ours", record))
	if got := value(m.Image("ours"))(t); got != record {
		t.Errorf("%+v", got)
	}
	up := func() string {
		st, err := m.Status(r.GlobalID)
		if ceph.Is(err, syscall.ENOENT) {
			return ""
		}
		must(t, err)
		var out []string
		if st.Local != nil {
			out = append(out, fmt.Sprint(st.Local.Up, " ", st.Local.State, " ", st.Local.Description))
		}
		for _, f := range st.Remote {
			out = append(out, fmt.Sprint(f.MirrorUUID, " ", f.Up, " ", f.State, " ", f.Description))
		}
		return strings.Join(out, ";")
	}
	must(t, m.SetStatus([]store.ImageStatus{
		{GlobalID: r.GlobalID, Status: cls.SiteStatus{State: cls.StatusStopped, Description: "local image is primary"}},
		{GlobalID: r.GlobalID, Status: cls.SiteStatus{MirrorUUID: farUUID, State: cls.StatusReplaying, Description: "replaying"}},
		{GlobalID: gid, Status: cls.SiteStatus{State: cls.StatusError, Description: "x"}},
		{GlobalID: "unknown", Status: cls.SiteStatus{State: cls.StatusError}},
	}))
	if got, want := up(), "false stopped local image is primary;"+farUUID+" false replaying replaying"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
	_, stop := s.Watch(io, store.MirroringObject)
	if got, want := up(), "true stopped local image is primary;"+farUUID+" true replaying replaying"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
	if out := s.Run("rbd", "mirror", "image", "status", "mirrored"); !strings.Contains(out, "up+stopped") || !strings.Contains(out, "up+replaying") {
		t.Errorf("rbd mirror image status: %s", out)
	}
	must(t, m.RemoveSiteStatus(farUUID, r.GlobalID, "unknown"))
	if got, want := up(), "true stopped local image is primary"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
	must(t, m.RemoveDown())
	if up() == "" {
		t.Error("the status of a living daemon is gone")
	}
	stop()
	must(t, m.RemoveDown())
	if got := up(); got != "" {
		t.Errorf("left of a dead daemon: %s", got)
	}
	must(t, m.RemoveImage("ours"))
	_, err = m.ImageID(gid)
	wantErrno(t, err, syscall.ENOENT)

	// more images than a page
	for i := range 1100 {
		must(t, store.Write(io, store.MirroringObject, cls.MirrorImageSet(fmt.Sprintf("many%04d", i),
			cls.MirrorImage{GlobalID: fmt.Sprintf("gid%04d", i), State: cls.RecordCreating, Mode: cls.ImageModeSnapshot})))
	}
	if got := value(m.AllImages())(t); len(got) != 1101 || got["many0042"] != "gid0042" {
		t.Errorf("%d images", len(got))
	}
	if got := value(m.Images("many1097", 10))(t); len(got) != 2 {
		t.Errorf("%v", got)
	}
	must(t, m.RemoveStatus(gid))
}

func testLocks(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	other := s.Dial()
	otherIO := s.On(other, rbdsite.Pool, "")
	const oid = "lockable"
	lock, otherLock := store.NewLock(io, oid), store.NewLock(otherIO, oid)
	wantErrno(t, lock.Acquire("auto 1"), syscall.ENOENT)
	must(t, io.Create(oid, rados.CreateExclusive))
	if h := value(lock.Holder())(t); h != nil {
		t.Errorf("%+v", h)
	}
	watch, stopWatch := s.Watch(otherIO, oid)
	cookie := cls.AutoCookie(watch)
	must(t, otherLock.Acquire(cookie))
	must(t, otherLock.Acquire(cookie))
	wantErrno(t, lock.Acquire("auto 1"), syscall.EBUSY)
	h := value(lock.Holder())(t)
	if h == nil || h.Entity.Num != int64(other.GetInstanceID()) || h.Cookie != cookie || h.Entity.Type != cls.EntityClient {
		t.Fatalf("%+v", h)
	}
	if !value(lock.Alive(*h))(t) {
		t.Errorf("%s is not seen to watch: %v", h.Addr, value(ceph.ListWatchers(io, oid))(t))
	}
	wantErrno(t, lock.BreakDead(s.Conn, *h, false, 0), syscall.EAGAIN)
	wantErrno(t, otherLock.BreakDead(other, *h, false, 0), syscall.EINVAL)
	stale := *h
	stale.Cookie = "auto 5"
	wantErrno(t, lock.BreakDead(s.Conn, stale, false, 0), syscall.ESTALE)
	must(t, otherLock.SetCookie(cookie, "auto 77"))
	if h = value(lock.Holder())(t); h.Cookie != "auto 77" {
		t.Errorf("%+v", h)
	}
	if value(lock.Alive(*h))(t) {
		t.Error("a holder without that watch is taken for alive")
	}
	must(t, otherLock.SetCookie("auto 77", cookie))
	must(t, otherLock.Release(cookie))
	must(t, otherLock.Release(cookie))
	must(t, lock.Acquire("auto 1"))
	must(t, lock.Release("auto 1"))

	// changes that depend on locks
	s.Run("rbd", "create", "--size", "8M", "guarded")
	id := value(store.NewDirectory(io).ID("guarded"))(t)
	header, otherHeader := store.NewHeader(io, id), store.NewHeader(otherIO, id)
	headerWatch, _ := s.Watch(otherIO, header.Object())
	otherHeader.Cookie = cls.AutoCookie(headerWatch)
	wantErrno(t, otherHeader.SetSize(9<<20), syscall.EBUSY)
	imageLock := store.NewLock(otherIO, header.Object())
	must(t, imageLock.Acquire(otherHeader.Cookie))
	must(t, otherHeader.SetSize(9<<20))
	maps := store.NewObjectMap(otherIO, id, cls.NoSnap)
	maps.AssertLocked = true
	wantErrno(t, maps.Resize(3, objectmap.NonExistent), syscall.EBUSY)
	must(t, store.ObjectMapLock(otherIO, id).Acquire(""))
	must(t, maps.Resize(3, objectmap.NonExistent))
	foreign := value(store.ObjectMapLock(io, id).Holder())(t)
	if err := store.ObjectMapLock(io, id).BreakDead(s.Conn, *foreign, true, 0); !errors.Is(err, store.ErrForeign) {
		t.Errorf("%v", err)
	}
	// the lock in the eyes of rbd
	if out := s.Run("rbd", "lock", "ls", "guarded"); !strings.Contains(out, otherHeader.Cookie) {
		t.Errorf("rbd lock ls: %s", out)
	}

	// death of the holder: its watch is gone, and it is shut out
	stopWatch()
	must(t, otherLock.Acquire(cookie))
	h = value(lock.Holder())(t)
	must(t, lock.BreakDead(s.Conn, *h, false, time.Minute))
	must(t, lock.BreakDead(s.Conn, *h, false, time.Minute)) // done already
	must(t, lock.Acquire("auto 2"))
	if out := s.Run("ceph", "osd", "blocklist", "ls"); !strings.Contains(out, h.Addr.String()) {
		t.Errorf("blocklist: %s", out)
	}
	wantErrno(t, otherHeader.SetSize(10<<20), syscall.ESHUTDOWN)
	// rbd takes over the image of one who was shut out
	s.Run("rbd", "snap", "create", "--no-progress", "guarded@s")
	must(t, lock.Release("auto 2"))
	must(t, io.Delete(oid))
}

func testTrash(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	trash := store.NewTrash(io)
	w, err := ceph.NewWatch(io, store.TrashObject, 30*time.Second)
	if ceph.Is(err, syscall.ENOENT) {
		must(t, io.Create(store.TrashObject, rados.CreateIdempotent))
		w, err = ceph.NewWatch(io, store.TrashObject, 30*time.Second)
	}
	must(t, err)
	// Answered at once: rbd waits for it.
	heard := make(chan ceph.Notification, 10)
	ctx, cancel := context.WithCancel(t.Context())
	var answering sync.WaitGroup
	answering.Go(func() {
		for {
			select {
			case n := <-w.Events():
				if err := w.Ack(n, nil); err != nil {
					t.Error(err)
				}
				heard <- n
			case <-ctx.Done():
				return
			}
		}
	})
	defer func() {
		cancel()
		answering.Wait()
		must(t, w.Close())
	}()
	next := func() cls.TrashNotify {
		t.Helper()
		select {
		case n := <-heard:
			return value(cls.DecodeTrashNotify(n.Data))(t)
		case <-time.After(20 * time.Second):
			t.Fatal("no notification")
		}
		return cls.TrashNotify{}
	}
	s.Run("rbd", "create", "--size", "8M", "thrown")
	id := value(store.NewDirectory(io).ID("thrown"))(t)
	s.Run("rbd", "trash", "mv", "thrown")
	if n := next(); n.Op != cls.TrashImageAdded || n.ImageID != id || n.Spec.Name != "thrown" || n.Spec.Source != cls.TrashUser {
		t.Errorf("%+v", n)
	}
	if got := value(trash.Get(id))(t); got.Name != "thrown" || got.State != cls.TrashStateNormal {
		t.Errorf("%+v", got)
	}
	s.Run("rbd", "trash", "rm", "--no-progress", id)
	if n := next(); n.Op != cls.TrashImageRemoved || n.ImageID != id {
		t.Errorf("%+v", n)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	spec := cls.TrashSpec{Source: cls.TrashMirroring, Name: "ours", DeletedAt: now, DeferredUntil: now.Add(time.Hour)}
	must(t, trash.Add("someid", spec))
	wantErrno(t, trash.Add("someid", spec), syscall.EEXIST)
	trash.Notify(cls.TrashNotify{Op: cls.TrashImageAdded, ImageID: "someid", Spec: spec})
	if n := next(); n.ImageID != "someid" || n.Spec != spec {
		t.Errorf("%+v", n)
	}
	if diff := cmp.Diff(map[string]cls.TrashSpec{"someid": spec}, value(trash.List())(t)); diff != "" {
		t.Error(diff)
	}
	if out := s.Run("rbd", "trash", "ls", "--all"); !strings.Contains(out, "ours") {
		t.Errorf("rbd trash ls: %s", out)
	}
	must(t, trash.SetState("someid", cls.TrashStateRemoving, cls.TrashStateNormal))
	wantErrno(t, trash.SetState("someid", cls.TrashStateRestoring, cls.TrashStateNormal), syscall.ESTALE)
	if got := value(trash.Get("someid"))(t); got.State != cls.TrashStateRemoving {
		t.Errorf("%+v", got)
	}
	must(t, trash.Remove("someid"))
	must(t, trash.Remove("someid"))
}

func testClones(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	dir := store.NewDirectory(io)
	s.Run("rbd", "create", "--size", "8M", "parent")
	writeAt(t, s, "parent", "0", 5)
	s.Run("rbd", "snap", "create", "--no-progress", "parent@base")
	pid := value(dir.ID("parent"))(t)
	parent := store.NewHeader(io, pid)
	snap := value(parent.Load())(t).Snapshots[0].ID
	// a clone by us
	id := store.NewImageID(s.Conn.GetInstanceID())
	must(t, dir.Add("clone", id))
	must(t, dir.CreateID("clone", id))
	h := store.NewHeader(io, id)
	must(t, h.Create(store.CreateOptions{Size: 8 * mib, Order: 22, Features: cls.FeatureLayering | cls.FeatureExclusiveLock,
		Prefix: store.DataPrefix(id, io.GetPoolID(), -1), DataPool: -1}))
	must(t, h.AttachParent(cls.ParentSpec{PoolID: io.GetPoolID(), ImageID: pid, SnapID: snap}, 8*mib, false))
	child := cls.ChildSpec{PoolID: io.GetPoolID(), ImageID: id}
	must(t, parent.AttachChild(snap, child))
	must(t, parent.AttachChild(snap, child))
	must(t, h.SetOpFeatures(cls.OpFeatureCloneChild, cls.OpFeatureCloneChild))
	must(t, parent.SetOpFeatures(cls.OpFeatureCloneParent, cls.OpFeatureCloneParent))
	img := value(h.Load())(t)
	if img.Parent.SnapID != snap || img.ParentOverlap == nil || *img.ParentOverlap != 8*mib || img.OpFeatures != cls.OpFeatureCloneChild ||
		!img.Has(cls.FeatureOperations) {
		t.Errorf("%+v", img)
	}
	if diff := cmp.Diff([]cls.ChildSpec{child}, value(parent.Children(snap))(t)); diff != "" {
		t.Error(diff)
	}
	if out := s.Run("rbd", "children", "parent@base"); !strings.Contains(out, "rbd/clone") {
		t.Errorf("rbd children: %s", out)
	}
	if out := s.Run("rbd", "info", "clone"); !strings.Contains(out, "parent: rbd/parent@base") {
		t.Errorf("rbd info: %s", out)
	}
	s.Run("sh", "-c", "test \"$(rbd export --no-progress clone - 2>/dev/null | md5sum)\" = \"$(rbd export --no-progress parent@base - 2>/dev/null | md5sum)\"")
	wantErrno(t, parent.RemoveSnapshot(snap), syscall.EBUSY)
	if err := store.RemoveSnapshot(parent, io, value(parent.Load())(t), snap, false); !ceph.Is(err, syscall.EBUSY) {
		t.Errorf("%v", err)
	}
	must(t, parent.DetachChild(snap, child))
	must(t, parent.DetachChild(snap, child))
	must(t, h.DetachParent())
	if img := value(h.Load())(t); img.Parent.Exists() {
		t.Errorf("%+v", img.Parent)
	}
	if got := value(parent.Children(snap))(t); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	// clones of the old kind
	old := cls.ParentSpec{PoolID: io.GetPoolID(), ImageID: pid, SnapID: snap}
	if got := value(store.OldChildren(io, old))(t); len(got) != 0 {
		t.Errorf("%v", got)
	}
	must(t, store.AddOldChild(io, old, id))
	if got := value(store.OldChildren(io, old))(t); len(got) != 1 || got[0] != id {
		t.Errorf("%v", got)
	}
	must(t, store.RemoveOldChild(io, old, id))
	must(t, store.RemoveOldChild(io, old, id))
}

func testObjectMap(t *testing.T, s *rbdsite.Site) {
	io := s.IO(rbdsite.Pool, "")
	o := store.NewObjectMap(io, "some", cls.NoSnap)
	_, err := o.Load()
	wantErrno(t, err, syscall.ENOENT)
	want := objectmap.New(10)
	must(t, o.Resize(10, objectmap.NonExistent))
	same := func(what string) {
		t.Helper()
		if got := value(o.Load())(t); !got.Equal(want) {
			t.Errorf("%s: differs", what)
		}
	}
	same("made")
	must(t, o.Update(2, 9, objectmap.Exists, nil))
	want.SetRange(2, 9, objectmap.Exists)
	same("updated")
	must(t, o.SnapAdd())
	want.SnapAdd()
	same("snapshot added")
	must(t, o.Update(3, 4, objectmap.Pending, nil))
	want.Set(3, objectmap.Pending)
	exists := objectmap.Exists
	must(t, o.Update(0, 10, objectmap.NonExistent, &exists)) // clean ones too
	want.SetRange(0, 3, objectmap.NonExistent)
	want.SetRange(4, 10, objectmap.NonExistent)
	same("filtered")
	must(t, o.Update(5, 5, objectmap.Exists, nil))
	wantErrno(t, o.Update(5, 11, objectmap.Exists, nil), syscall.ERANGE)
	must(t, o.Update(0, 10, objectmap.ExistsClean, nil))
	want.SetRange(0, 10, objectmap.ExistsClean)
	removed := objectmap.New(6)
	removed.Set(1, objectmap.Exists)
	removed.Set(2, objectmap.ExistsClean)
	must(t, o.SnapRemove(removed))
	want.SnapRemove(removed)
	same("snapshot removed")
	must(t, o.Resize(7, objectmap.NonExistent)) // existing ones go
	want.Resize(7, objectmap.NonExistent)
	same("shrunk")
	must(t, o.Resize(50000, objectmap.NonExistent))
	want.Resize(50000, objectmap.NonExistent)
	must(t, o.Update(40000, 50000, objectmap.Exists, nil))
	want.SetRange(40000, 50000, objectmap.Exists)
	same("grown")
	must(t, o.Save(want))
	same("saved")
	must(t, o.Delete())
	must(t, o.Delete())
}
