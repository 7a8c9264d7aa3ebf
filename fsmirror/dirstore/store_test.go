//go:build cgo

package dirstore_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/go-cmp/cmp"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/test/bed"
)

// metadataPool opens the metadata pool of a test cluster's file system as a
// user with the capabilities that workers are documented to need.
func metadataPool(t *testing.T) *rados.IOContext {
	t.Helper()
	if bed.InsideRelease() == "" {
		t.Skip("needs Ceph: run with bed enter")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	b, err := bed.Open(bed.Options{Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.WithoutCancel(t.Context())) })
	c, err := b.Up(ctx, bed.ClusterSpec{Name: "dirstore"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := c.AddMirrorUser(ctx, "mirror"); err != nil {
		t.Fatal(err)
	}
	dump, err := c.MonCommand(ctx, map[string]any{"prefix": "fs dump", "format": "json"})
	if err != nil {
		t.Fatal(err)
	}
	fsmap, err := dirstore.ParseFSMap([]byte(dump))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rados.NewConnWithClusterAndUser("dirstore", "client.mirror")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.ReadDefaultConfigFile(); err != nil {
		t.Fatal(err)
	}
	for option, value := range map[string]string{"admin_socket": "", "client_mount_timeout": "10", "rados_osd_op_timeout": "10"} {
		if err := conn.SetConfigOption(option, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Shutdown)
	fs := fsmap.ByName("cephfs")
	if fs == nil {
		t.Fatal("no file system")
	}
	pool, err := conn.GetPoolByID(fs.MetadataPool)
	if err != nil {
		t.Fatal(err)
	}
	ioctx, err := conn.OpenIOContext(pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ioctx.Destroy)
	return ioctx
}

func TestStore(t *testing.T) {
	ioctx := metadataPool(t)
	s := dirstore.NewStore(ioctx)
	check := func(what string, err, want error) {
		t.Helper()
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}
	set := func(pairs ...string) map[string][]byte {
		m := make(map[string][]byte)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = []byte(pairs[i+1])
		}
		return m
	}

	check("change of nothing", s.Apply(dirstore.Change{Set: set("a", "1")}), syscall.ENOENT)
	if _, err := s.Load(); !ceph.Is(err, syscall.ENOENT) {
		t.Fatalf("load of nothing: %v", err)
	}
	check("create", s.Create(), nil)
	check("create again", s.Create(), nil)

	// What is expected must hold.
	a := dirstore.DirKey("/a")
	add := dirstore.Change{Set: set(a, "1"), Expect: set(a, "")}
	check("add", s.Apply(add), nil)
	check("add again", s.Apply(add), dirstore.ErrConflict)
	check("add again", s.Apply(add), syscall.ECANCELED)
	check("change of another value", s.Apply(dirstore.Change{Set: set(a, "3"), Expect: set(a, "2")}), dirstore.ErrConflict)
	check("change", s.Apply(dirstore.Change{Set: set(a, "3"), Expect: set(a, "1")}), nil)
	if v, err := s.Get(a); err != nil || string(v) != "3" {
		t.Fatalf("value is %q, %v", v, err)
	}
	if v, err := s.Get("dir_map_/"); err != nil || v != nil {
		t.Fatalf("value of no key is %q, %v", v, err)
	}
	check("set and remove", s.Apply(dirstore.Change{Set: set("x", "1"), Remove: []string{a, "none"}, Expect: set(a, "3")}), nil)
	check("remove", s.Apply(dirstore.Change{Remove: []string{"x"}}), nil)

	// So must be who controls the map.
	if who, err := s.Controller(); err != nil || who != "" {
		t.Fatalf("controlled by %q, %v", who, err)
	}
	check("control nobody has", s.Apply(dirstore.Change{Controller: "4242", Set: set("x", "1")}), dirstore.ErrConflict)
	check("take control", s.SetController("", "4242"), nil)
	check("take control of another's", s.SetController("", "4343"), dirstore.ErrConflict)
	if who, err := s.Controller(); err != nil || who != "4242" {
		t.Fatalf("controlled by %q, %v", who, err)
	}
	check("in control", s.Apply(dirstore.Change{Controller: "4242", Set: set("x", "1")}), nil)
	check("not in control", s.Apply(dirstore.Change{Controller: "4343", Set: set("x", "2")}), dirstore.ErrConflict)
	check("hand over", s.SetController("4242", "4343"), nil)
	check("no longer in control", s.Apply(dirstore.Change{Controller: "4242", Set: set("x", "2")}), dirstore.ErrConflict)
	check("give up", s.SetController("4343", ""), nil)
	check("remove", s.Apply(dirstore.Change{Remove: []string{"x"}}), nil)

	// Several pages and batches, with keys of a later version.
	want := &dirstore.Contents{Dirs: map[string]dirstore.Entry{}, Instances: map[string]string{"1": "10.0.0.1:0/7"}, Bad: map[string]error{}}
	change := dirstore.Change{Set: set("later", "x")}
	change.Set[dirstore.InstanceKey("1")] = dirstore.EncodeInstance("10.0.0.1:0/7")
	for i := range 700 {
		path := fmt.Sprintf("/dir é/%d", i)
		e := dirstore.Entry{Instance: "1", LastShuffled: float64(i) + 0.25, Purging: i%2 == 0}
		change.Set[dirstore.DirKey(path)] = e.Encode()
		want.Dirs[path] = e
	}
	check("fill", s.Apply(change), nil)
	got, err := s.Load()
	check("load", err, nil)
	want.Raw = change.Set
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("loaded (-want +got):\n%s", diff)
	}
	clearing := dirstore.Change{}
	for k := range change.Set {
		clearing.Remove = append(clearing.Remove, k)
	}
	check("clear", s.Apply(clearing), nil)
	got, err = s.Load()
	if err != nil || len(got.Raw) != 0 {
		t.Fatalf("%d keys left, %v", len(got.Raw), err)
	}

	begin := time.Now()
	check("wake nobody", s.Wake(5*time.Second), nil)
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("waking nobody took %v", d)
	}
}
