//go:build cgo

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/go-cmp/cmp"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/test/bed"
)

// clusters brings up two clusters with file systems fs1 and fs2 each. The mgr
// module that is the stock control plane is enabled on the first.
func clusters(t *testing.T) (b *bed.Bed, near, far *bed.Cluster) {
	t.Helper()
	if bed.InsideRelease() == "" {
		t.Skip("needs Ceph: run with bed enter")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	b, err := bed.Open(bed.Options{Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.WithoutCancel(t.Context())) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
		defer cancel()
		if err := b.Down(ctx, "near", "far"); err != nil {
			t.Error(err)
		}
	})
	up := func(name string, modules ...string) (*bed.Cluster, error) {
		return b.Up(ctx, bed.ClusterSpec{Name: name, FileSystems: []string{"fs1", "fs2"}, MgrModules: modules, MgrBcrypt: true})
	}
	var farErr error
	var wg sync.WaitGroup
	wg.Go(func() { far, farErr = up("far") })
	near, err = up("near", StockModule)
	wg.Wait()
	if err := errors.Join(err, farErr); err != nil {
		t.Fatal(err)
	}
	return b, near, far
}

// client makes an unconnected administrator's client of a test cluster.
func client(cluster string) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(cluster, "client.admin")
	if err == nil {
		err = conn.ReadDefaultConfigFile()
	}
	for _, o := range append(ConnOptions(), ceph.Pair{Key: "admin_socket"}) {
		if err == nil {
			err = conn.SetConfigOption(o.Key, o.Value)
		}
	}
	return conn, err
}

// open connects to a test cluster.
func open(t *testing.T, cluster string) (*rados.Conn, *Control) {
	t.Helper()
	conn, err := client(cluster)
	if err == nil {
		err = conn.Connect()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Shutdown)
	return conn, New(conn, func() (*rados.Conn, error) { return client(cluster) })
}

// stock is the stock module on a test cluster. The mgr of some distributions
// dies now and then, and has to be started again.
type stock struct {
	t      *testing.T
	near   *bed.Cluster
	conn   *rados.Conn
	deaths int
}

// call sends a command to the module. It does so from another process: librados
// loses track of memory when the mgr does not answer in time.
func (s *stock) call(cmd string, a args) Result {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	msg := map[string]any{"prefix": Prefix + cmd}
	maps.Copy(msg, a)
	out, err := s.near.MgrCommand(ctx, msg)
	var refused *bed.CommandError
	switch {
	case err == nil:
		return Result{Out: []byte(out)}
	case errors.As(err, &refused):
		return Result{Errno: refused.Errno, Status: refused.Message}
	}
	return Result{Errno: syscall.ETIMEDOUT, Status: err.Error()}
}

// revive starts the mgr again if it died.
func (s *stock) revive() {
	for _, d := range s.near.Daemons() {
		if !strings.HasPrefix(d.Name(), "mgr.") || d.State() != "dead" {
			continue
		}
		s.deaths++
		s.t.Logf("the mgr died")
		if err := d.Start(); err != nil {
			s.t.Fatal(err)
		}
		if err := s.near.WaitHealthy(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	}
}

// eventually waits until check returns "".
func (s *stock) eventually(what string, check func() string) {
	s.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: %s", what, problem)
		}
		s.revive()
		time.Sleep(200 * time.Millisecond)
	}
}

// enable turns the module on or off and waits until that is so.
func (s *stock) enable(on bool) {
	s.t.Helper()
	verb := "disable"
	if on {
		verb = "enable"
	}
	if _, err := s.near.MonCommand(s.t.Context(), map[string]any{"prefix": "mgr module " + verb, "module": StockModule}); err != nil {
		s.t.Fatal(err)
	}
	s.eventually(verb+" the module", func() string {
		if enabled, err := StockEnabled(s.conn); err != nil || enabled != on {
			return fmt.Sprint("enabled: ", enabled, err)
		}
		r := s.call("daemon status", nil)
		if on && r.Errno != 0 || !on && r.Errno != syscall.ENOTSUP {
			return fmt.Sprint(r.Errno, r.Status)
		}
		return ""
	})
	// The mgr restarts when its modules change.
	if err := s.near.WaitHealthy(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// out returns what a command prints. It has to be one that can be repeated.
func (s *stock) out(cmd string, a args) string {
	s.t.Helper()
	var r Result
	s.eventually(cmd, func() string {
		if r = s.call(cmd, a); r.Errno != 0 {
			return fmt.Sprint(r.Errno, r.Status)
		}
		return ""
	})
	return strings.TrimRight(string(r.Out), "\n")
}

// settle waits until the module has noticed which file systems are mirrored.
func (s *stock) settle() {
	s.t.Helper()
	s.eventually("stock module", func() string {
		dump, err := s.near.MonCommand(s.t.Context(), map[string]any{"prefix": "fs dump", "format": "json"})
		if err != nil {
			return err.Error()
		}
		m, err := dirstore.ParseFSMap([]byte(dump))
		if err != nil {
			return err.Error()
		}
		for _, fs := range m.FileSystems {
			r := s.call("ls", args{"fs_name": fs.Name})
			if r.Errno != 0 && r.Errno != syscall.EINVAL || (r.Errno == 0) != fs.Mirrored {
				return fmt.Sprintf("%s: %v %s", fs.Name, r.Errno, r.Status)
			}
		}
		return ""
	})
}

// TestLive compares our commands with those of the stock module: the same
// steps give the same answers, and each finds what the other has left.
func TestLive(t *testing.T) {
	b, near, far := clusters(t)
	admin, ours := open(t, "near")
	_, farOurs := open(t, "far")
	st := &stock{t: t, near: near, conn: admin}
	token := bootstrap(t, farOurs, "fs1", "client.peer", "far")
	self := bootstrap(t, ours, "fs1", "client.self", "self")
	vars := tokenVars(t, token, self)

	t.Run("stock", func(t *testing.T) {
		if b.Release().Name == "reef" {
			t.Skip("the mgr of these packages dies with the module")
		}
		for range 3 {
			deaths := st.deaths
			s := &scenario{call: st.call, stock: true, vars: vars, pause: st.settle}
			problems := s.run(steps())
			st.revive()
			if st.deaths == deaths {
				for _, problem := range problems {
					t.Error(problem)
				}
				return
			}
			cleanUp(t, ours, farOurs)
		}
		t.Error("the mgr keeps dying")
	})
	for _, cmd := range []string{"enable", "add", "peer_add"} {
		if r := ours.Call(t.Context(), Prefix+cmd, args{"fs_name": "fs1"}); r.Errno != syscall.EBUSY {
			t.Errorf("%s beside the stock module: %v %s", cmd, r.Errno, r.Status)
		}
	}
	st.enable(false)
	cleanUp(t, ours, farOurs)
	t.Run("ours", func(t *testing.T) {
		s := &scenario{vars: vars, call: func(cmd string, a args) Result {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			return ours.Call(ctx, Prefix+cmd, a)
		}}
		for _, problem := range s.run(steps()) {
			t.Error(problem)
		}
	})
	t.Run("existing user", func(t *testing.T) { testExistingUser(t, near, ours) })
	t.Run("bounded", func(t *testing.T) {
		if b.Release().Name != bed.DefaultRelease && os.Getenv("CEPHMIRROR_TEST_LONG") == "" {
			t.Skip("tested on " + bed.DefaultRelease + ", with CEPHMIRROR_TEST_LONG also here")
		}
		testBounded(t, far, ours, vars)
	})
	t.Run("handover", func(t *testing.T) { testHandover(t, b, st, ours, token) })
}

// cleanUp brings the clusters back to how the scenario expects them. The stock
// module leaves entries of directories that were removed without a worker.
func cleanUp(t *testing.T, near, far *Control) {
	t.Helper()
	m, err := near.fsmap()
	if err != nil {
		t.Fatal(err)
	}
	for _, fs := range m.FileSystems {
		if _, err := mon(near.b, nil, request{"prefix": "fs mirror disable", "fs_name": fs.Name}); err != nil {
			t.Fatal(err)
		}
		err := near.b.OpenMap(fs.MetadataPool, func(d DirMap) error {
			if err := d.Create(); err != nil {
				return err
			}
			contents, err := d.Load()
			if err != nil {
				return err
			}
			return d.Apply(dirstore.Change{Remove: sortedKeys(contents.Raw)})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	fs, err := mount(t.Context(), far.b.(backend).client, "fs1")
	if err != nil {
		t.Fatal(err)
	}
	defer fs.close()
	if err := (&remoteFS{m: fs}).RemoveMark(); err != nil {
		t.Fatal(err)
	}
}

func testExistingUser(t *testing.T, near *bed.Cluster, ours *Control) {
	get := func() string {
		out, err := near.MonCommand(t.Context(), map[string]any{"prefix": "auth get", "entity": "client.admin"})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := get()
	r := ours.Call(t.Context(), Prefix+"peer_bootstrap create", args{"fs_name": "fs1", "client_name": "client.admin", "site_name": "s"})
	if r.Errno != syscall.EINVAL {
		t.Errorf("%v %s", r.Errno, r.Status)
	}
	if diff := cmp.Diff(before, get()); diff != "" {
		t.Errorf("capabilities changed:\n%s", diff)
	}
}

// testBounded: a cluster that is away, or one without an MDS, is told of in time.
func testBounded(t *testing.T, far *bed.Cluster, ours *Control, vars map[string]string) {
	limited := func(what string, limit time.Duration, a args, want ...syscall.Errno) {
		t.Helper()
		begin := time.Now()
		r := ours.Call(t.Context(), Prefix+"peer_add", a)
		took := time.Since(begin).Round(time.Millisecond)
		t.Logf("%s: %v %s after %v", what, r.Errno, r.Status, took)
		ok := false
		for _, e := range want {
			ok = ok || r.Errno == e
		}
		if !ok || took > limit || !strings.HasPrefix(r.Status, "failed to add peer") {
			t.Errorf("%s: %v %s after %v", what, r.Errno, r.Status, took)
		}
	}
	mustCall(t, ours, "enable", args{"fs_name": "fs1"})
	a := args{"fs_name": "fs1", "remote_cluster_spec": "client.peer@far", "remote_mon_host": vars["$MON"], "cephx_key": vars["$KEY"]}
	nobody := args{"fs_name": "fs1", "remote_cluster_spec": "client.peer@far", "remote_mon_host": "127.0.0.1:9", "cephx_key": vars["$KEY"]}
	limited("nobody there", 15*time.Second, nobody, syscall.ETIMEDOUT)

	stopped := func(name string) func() {
		t.Helper()
		if err := far.Daemon(name).Kill(t.Context(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := far.Daemon(name).Kill(t.Context(), syscall.SIGCONT); err != nil {
				t.Error(err)
			}
		}
	}
	cont := stopped("mon.a")
	limited("frozen monitor", 15*time.Second, a, syscall.ETIMEDOUT)
	cont()
	var conts []func()
	freeze := func() {
		for _, d := range far.Daemons() {
			if strings.HasPrefix(d.Name(), "mds.") {
				conts = append(conts, stopped(d.Name()))
			}
		}
	}
	freeze()
	limited("frozen MDS", 15*time.Second, a, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENOTCONN, syscall.ESHUTDOWN)
	for _, cont := range conts {
		cont()
	}
	conts = nil
	if err := far.WaitHealthy(t.Context()); err != nil {
		t.Fatal(err)
	}

	// When it freezes after the mount, the mount is cut off.
	creds := &dirstore.Credentials{MonHost: vars["$MON"], Key: dirstore.Secret(vars["$KEY"])}
	remote, err := ours.b.Dial(t.Context(), Remote{Client: "peer", Cluster: "far", FSName: "fs1", Credentials: creds})
	if err != nil {
		t.Fatal(err)
	}
	freeze()
	begin := time.Now()
	err = remote.SetMark("x")
	remote.Close()
	took := time.Since(begin).Round(time.Millisecond)
	t.Logf("frozen MDS of a mounted file system: %v after %v", err, took)
	if err == nil || took > 15*time.Second {
		t.Errorf("frozen MDS of a mounted file system: %v after %v", err, took)
	}
	for _, cont := range conts {
		cont()
	}
	if err := far.WaitHealthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustCall(t, ours, "disable", args{"fs_name": "fs1"})
}

// testHandover: with a stock worker at work, each of the two control planes
// takes over what the other has stored, and shows the same.
func testHandover(t *testing.T, b *bed.Bed, st *stock, ours *Control, token string) {
	if b.Release().Name == "reef" {
		t.Skip("the mgr of these packages dies with the module")
	}
	ctx := t.Context()
	fs := args{"fs_name": "fs1"}
	dir := func(p string) args { return args{"fs_name": "fs1", "path": p} }
	mustCall(t, ours, "enable", fs)
	mustCall(t, ours, "peer_bootstrap import", args{"fs_name": "fs1", "token": token})
	for _, p := range []string{"/one", "/two", "/three é"} {
		mustCall(t, ours, "add", dir(p))
	}

	if err := st.near.AddMirrorUser(ctx, "mirror"); err != nil {
		t.Fatal(err)
	}
	worker, err := b.StartProcess(bed.ProcessSpec{Name: "worker", Args: []string{"cephfs-mirror", "--cluster", "near", "--id", "mirror", "-f"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := worker.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	st.enable(true)
	st.eventually("stock takes over", func() string {
		r := st.call("ls", fs)
		if diff := cmp.Diff(mustCall(t, ours, "ls", fs), strings.TrimRight(string(r.Out), "\n")); r.Errno != 0 || diff != "" {
			return fmt.Sprint(r.Errno, r.Status, diff)
		}
		if got := mustCall(t, ours, "show distribution", fs); !strings.Contains(got, "3 directories") {
			return got
		}
		return ""
	})
	// It stores a mapping before the worker has it.
	st.eventually("all mapped", func() string {
		for _, p := range []string{"/one", "/two", "/three é"} {
			if got := st.out("dirmap", dir(p)); !strings.Contains(got, "mapped") {
				return got
			}
		}
		if got := mustCall(t, ours, "daemon status", nil); !strings.Contains(got, `"directory_count": 3`) {
			return got
		}
		return ""
	})
	same := func() {
		t.Helper()
		for cmd, a := range map[string]args{
			"ls": fs, "peer_list": fs, "show distribution": fs, "daemon status": nil, "dirmap": dir("/three é"),
		} {
			if diff := cmp.Diff(st.out(cmd, a), mustCall(t, ours, cmd, a)); diff != "" {
				t.Errorf("%s (-stock +ours):\n%s", cmd, diff)
			}
		}
	}
	same()
	mapped := mustCall(t, ours, "dirmap", dir("/one"))

	// What the stock module adds is ours when it is gone.
	if r := st.call("add", dir("/four")); r.Errno != 0 {
		t.Fatalf("%v %s", r.Errno, r.Status)
	}
	st.enable(false)
	if got := mustCall(t, ours, "dirmap", dir("/one")); got != mapped {
		t.Errorf("state of /one is %s, was %s", got, mapped)
	}
	mustCall(t, ours, "remove", dir("/one"))
	if r := ours.Call(ctx, Prefix+"remove", dir("/one")); r.Errno != syscall.EINVAL || r.Status != "directory /one is under removal" {
		t.Errorf("%v %s", r.Errno, r.Status)
	}
	if r := ours.Call(ctx, Prefix+"add", dir("/one")); r.Errno != syscall.EAGAIN {
		t.Errorf("%v %s", r.Errno, r.Status)
	}
	mustCall(t, ours, "add", dir("/five"))

	// And the removal that was begun is finished by the stock module.
	st.enable(true)
	want := `["/five","/four","/three é","/two"]`
	st.eventually("stock takes over again", func() string {
		var dirs []string
		if err := json.Unmarshal([]byte(mustCall(t, ours, "ls", fs)), &dirs); err != nil {
			return err.Error()
		}
		if got := string(marshal(dirs)); got != want {
			return got
		}
		if got := mustCall(t, ours, "show distribution", fs); !strings.Contains(got, "4 directories") {
			return got
		}
		if got := mustCall(t, ours, "daemon status", nil); !strings.Contains(got, `"directory_count": 4`) {
			return got
		}
		for _, p := range dirs {
			if got := st.out("dirmap", dir(p)); !strings.Contains(got, "mapped") {
				return got
			}
		}
		return ""
	})
	for cmd, a := range map[string]args{"show distribution": fs, "daemon status": nil, "dirmap": dir("/two")} {
		if diff := cmp.Diff(st.out(cmd, a), mustCall(t, ours, cmd, a)); diff != "" {
			t.Errorf("%s (-stock +ours):\n%s", cmd, diff)
		}
	}
}
