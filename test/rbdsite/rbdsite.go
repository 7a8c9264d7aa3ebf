//go:build cgo

// Package rbdsite brings up a cluster for tests that need a real one.
package rbdsite

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/test/bed"
)

// The pools and the namespace that every Site has.
const (
	Pool      = "rbd"
	DataPool  = "data"
	Namespace = "ns"
)

// Site is a cluster.
type Site struct {
	t       *testing.T
	bed     *bed.Bed
	Cluster *bed.Cluster
	// Conn is a connection as the daemon has it: the user has the documented
	// capabilities, no more.
	Conn *rados.Conn
}

// Start brings a cluster up. One that was up already is used as it is and left
// up, and so is every cluster where somebody takes them all down in the end:
// the next test, and the next package, need not wait for one. The test is
// skipped where there is no Ceph, and on Reef unless slow tests are asked for.
func Start(t *testing.T, name string) *Site {
	t.Helper()
	return start(t, name, false)
}

// StartEmpty is Start with nothing in the pools.
func StartEmpty(t *testing.T, name string) *Site {
	t.Helper()
	return start(t, name, true)
}

func start(t *testing.T, name string, empty bool) *Site {
	t.Helper()
	if bed.InsideRelease() == "" {
		t.Skip("needs Ceph: run with bed enter")
	}
	if bed.InsideRelease() == "reef" {
		Long(t) // every day one release is enough for a package by itself
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	b, err := bed.Open(bed.Options{Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.WithoutCancel(t.Context())) })
	names, err := b.Names()
	if err != nil {
		t.Fatal(err)
	}
	up := slices.Contains(names, name)
	spec := bed.ClusterSpec{Name: name, RBDPools: []string{Pool, DataPool}}
	c, err := b.Up(ctx, spec)
	if err == nil && up && empty {
		for _, pool := range spec.RBDPools {
			_, err = c.MonCommand(ctx, map[string]any{"prefix": "osd pool delete", "pool": pool, "pool2": pool, "yes_i_really_really_mean_it": true})
			if err != nil {
				t.Fatal(err)
			}
		}
		c, err = b.Up(ctx, spec)
	}
	if err != nil && up && bed.Shared() {
		// An earlier test may have left it broken.
		t.Logf("anew: %v", err)
		if err := b.Down(ctx, name); err != nil {
			t.Fatal(err)
		}
		c, err = b.Up(ctx, spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !up && !bed.Shared() {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
			defer cancel()
			if err := c.Down(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	s := &Site{t: t, bed: b, Cluster: c}
	if err := c.AddRBDMirrorUser(ctx, "mirror"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Run("rbd", "namespace", "ls", Pool), Namespace) {
		s.Run("rbd", "namespace", "create", Pool+"/"+Namespace)
	}
	s.Conn = s.Dial()
	return s
}

// Long skips a test that is too slow for every day.
func Long(t *testing.T) {
	t.Helper()
	if os.Getenv("CEPHMIRROR_TEST_LONG") == "" {
		t.Skip("slow: set CEPHMIRROR_TEST_LONG")
	}
}

// Often is how many rounds of something random there are every day, and how
// many when slow tests are asked for.
func Often(daily, long int) int {
	if os.Getenv("CEPHMIRROR_TEST_LONG") == "" {
		return daily
	}
	return long
}

// StartProcess starts a daemon, which ends with the test or when stop is called.
func (s *Site) StartProcess(name string, args ...string) (stop func()) {
	s.t.Helper()
	p, err := s.bed.StartProcess(bed.ProcessSpec{Name: name, Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if s.t.Failed() {
			s.t.Logf("the last of what %s said:\n%s", name, p.Log(40))
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			s.t.Log(err)
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// Dial opens a connection of its own, which ends with the test.
func (s *Site) Dial() *rados.Conn {
	s.t.Helper()
	conn, _, err := client.Dial(client.Spec{Cluster: s.Cluster.Name(), Name: "client.mirror"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(conn.Shutdown)
	return conn
}

// IO opens a pool and namespace.
func (s *Site) IO(pool, namespace string) *rados.IOContext {
	s.t.Helper()
	return s.On(s.Conn, pool, namespace)
}

// On is IO with another connection.
func (s *Site) On(conn *rados.Conn, pool, namespace string) *rados.IOContext {
	s.t.Helper()
	ioctx, err := conn.OpenIOContext(pool)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(ioctx.Destroy)
	ioctx.SetNamespace(namespace)
	return ioctx
}

// Run runs a command as administrator and returns what it prints.
func (s *Site) Run(args ...string) string {
	s.t.Helper()
	out, err := s.Try(args...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run for commands that may fail. Both outputs are returned.
func (s *Site) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := s.Cluster.Command(ctx, args...).CombinedOutput()
	return withoutNoise(string(out)), err
}

// withoutNoise drops what some builds of librados print about plugins.
func withoutNoise(out string) string {
	lines := strings.SplitAfter(out, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool {
		return strings.Contains(l, "compressor") || strings.Contains(l, "dlopen") || strings.Contains(l, "libqat")
	}), "")
}

// JSON runs a command with --format json and decodes its output.
func (s *Site) JSON(into any, args ...string) {
	s.t.Helper()
	out := s.Run(append(args, "--format", "json")...)
	if at := strings.IndexAny(out, "{["); at > 0 {
		out = out[at:]
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Objects returns the names of all objects of a pool and namespace, in order.
func (s *Site) Objects(pool, namespace string) []string {
	s.t.Helper()
	var names []string
	err := s.IO(pool, namespace).ListObjects(func(oid string) { names = append(names, oid) })
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// Watch watches an object, as a connection's sign of life, and answers
// notifications until the test ends or stop is called.
func (s *Site) Watch(ioctx *rados.IOContext, oid string) (cookie uint64, stop func()) {
	s.t.Helper()
	w, err := ceph.NewWatch(ioctx, oid, 30*time.Second)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case n := <-w.Events():
				if err := w.Ack(n, nil); err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
			_ = w.Close() // of a client that was shut out it fails
		}
	}
	s.t.Cleanup(stop)
	return w.Cookie(), stop
}
