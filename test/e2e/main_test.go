// Package e2e tests the mirroring of CephFS snapshots between two real
// clusters, with the daemon as an operator starts it.
//
// The tests run inside the environment of the test bed, after `bed build`:
//
//	bin/bed enter --cleanup -- go test -tags tentacle ./test/e2e/...
//
// Cluster a is mirrored to cluster b. Both are shared by all tests; each test
// has directories of its own.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/test/bed"
	"cephmirror/test/cephtree"
)

var (
	long = flag.Bool("long", os.Getenv("CEPHMIRROR_TEST_LONG") != "", "also run tests that take minutes; CEPHMIRROR_TEST_LONG=1 does the same")
	keep = flag.Bool("keep", false, "leave the clusters up at the end")
	bin  = flag.String("bin", "", "directory of the executables; empty: bin/RELEASE of the checkout")
)

// fsName is the file system that is mirrored, on both sides.
const fsName = "cephfs"

// env is what all tests share.
type env struct {
	bed  *bed.Bed
	a, b *bed.Cluster
	bin  string
	// stamp makes names differ from those of earlier runs on clusters that
	// were kept.
	stamp string
	// base is where tests make their directories, empty for the root.
	base string
	src  *cephtree.Client // of a
	dst  *cephtree.Client // of b, to look only
	rbd  rbdSites
}

// shared is set by TestMain; nil outside the environment.
var shared *env

func TestMain(m *testing.M) {
	ceph.TraceCrashes()
	flag.Parse()
	if bed.InsideRelease() == "" {
		fmt.Println("skipped: needs Ceph, run with `bed enter`")
		return
	}
	if text := os.Getenv(childEnv); text != "" {
		os.Exit(childMain(text))
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx := context.Background()
	e, err := setUp(ctx)
	if e != nil {
		defer func() {
			if err := e.tearDown(ctx); err != nil {
				fmt.Println("tearing down:", err)
				code = max(code, 1)
			}
		}()
	}
	if err != nil {
		fmt.Println("setting up:", err)
		return 1
	}
	shared = e
	// Parallel tests mostly wait: for the scan, for a snapshot to settle.
	for name, value := range map[string]string{"test.parallel": "8", "rapid.nofailfile": "true", "rapid.shrinktime": "1m"} {
		if err := flag.Set(name, value); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return m.Run()
}

// mirrorOptions make what the daemons wait for come soon.
func mirrorOptions() []bed.Option {
	return []bed.Option{
		{Name: "cephfs mirror directory scan interval", Value: "1"},
		{Name: "cephfs mirror retry failed directories interval", Value: "2"},
		{Name: "cephfs mirror max consecutive failures per directory", Value: "3"},
		{Name: "cephfs mirror action update interval", Value: "1"},
		{Name: "cephfs mirror restart mirror on blocklist interval", Value: "2"},
		{Name: "cephfs mirror restart mirror on failure interval", Value: "2"},
		{Name: "cephfs mirror mount timeout", Value: "5"},
	}
}

func setUp(ctx context.Context) (*env, error) {
	b, err := bed.Open(bed.Options{})
	if err != nil {
		return nil, err
	}
	e := &env{bed: b, bin: *bin, stamp: strconv.FormatInt(time.Now().Unix()%10000000, 36)}
	if e.bin == "" {
		wd, err := os.Getwd()
		if err != nil {
			return e, err
		}
		e.bin = filepath.Join(bed.FindCheckout(wd), "bin", b.Release().Name)
	}
	for _, name := range []string{"cephmirror", "cephmirror-cephfs"} {
		if _, err := os.Stat(filepath.Join(e.bin, name)); err != nil {
			return e, fmt.Errorf("%w (run `bed build` first)", err)
		}
	}
	// Tests mark OSDs down, more often than they would put up with.
	patient := bed.Option{Name: "osd max markdown count", Value: "1000"}
	type up struct {
		c   *bed.Cluster
		err error
	}
	started := make(chan up)
	go func() {
		c, err := b.Up(ctx, bed.ClusterSpec{
			Name: "b", FileSystems: []string{fsName, "second"}, MDSs: 2, OSDSize: 20 << 30,
			Conf: []bed.Option{patient},
		})
		started <- up{c, err}
	}()
	e.a, err = b.Up(ctx, bed.ClusterSpec{
		Name: "a", OSDSize: 20 << 30, Conf: append(mirrorOptions(), patient), MgrBcrypt: b.Release().Name == "reef",
	})
	other := <-started
	e.b = other.c
	if err != nil {
		return e, err
	}
	if other.err != nil {
		return e, other.err
	}
	if err := e.a.AddMirrorUser(ctx, "mirror"); err != nil {
		return e, err
	}
	// On clusters that were kept the user exists, and would not be told anew.
	if _, err := e.b.MonCommand(ctx, map[string]any{"prefix": "auth rm", "entity": "client.remote"}); err != nil {
		return e, err
	}
	if err := e.b.AuthorizePeer(ctx, fsName, "remote"); err != nil {
		return e, err
	}
	if e.src, err = cephtree.Open(e.a.Conf(), fsName); err != nil {
		return e, err
	}
	if e.dst, err = cephtree.Open(e.b.Conf(), fsName); err != nil {
		return e, err
	}
	return e, nil
}

func (e *env) tearDown(ctx context.Context) error {
	e.rbd.close()
	for _, c := range []*cephtree.Client{e.src, e.dst} {
		if c != nil {
			if err := closeSoon(c); err != nil {
				fmt.Println("unmounting:", err)
			}
		}
	}
	if *keep {
		e.bed.Close(ctx)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return e.bed.Down(ctx)
}

// closeSoon unmounts, but does not wait for a cluster that is broken.
func closeSoon(c *cephtree.Client) error {
	done := make(chan error, 1)
	go func() { done <- c.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		return fmt.Errorf("does not end within 10 s")
	}
}

// need returns what the tests share.
func need(t *testing.T) *env {
	t.Helper()
	if shared == nil {
		t.Skip("needs Ceph: run with bed enter")
	}
	limit := 12 * time.Minute
	if *long {
		limit = time.Hour
	}
	// A call of Ceph's libraries that has no answer cannot be given up: it
	// ends with the process, and the tests that are left run in another.
	timer := time.AfterFunc(limit, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("%s has not ended within %v", t.Name(), limit))
	})
	t.Cleanup(func() { timer.Stop() })
	return shared
}

// once skips a test of what does not differ between releases on all but one,
// unless slow tests are asked for.
func once(t *testing.T) {
	t.Helper()
	if shared != nil && shared.bed.Release().Name != bed.DefaultRelease && !*long {
		t.Skip("tested on " + bed.DefaultRelease + "; with -long also here")
	}
}

// needLong skips tests that take minutes.
func needLong(t *testing.T) {
	t.Helper()
	if !*long {
		t.Skip("takes minutes: run with -long")
	}
}
