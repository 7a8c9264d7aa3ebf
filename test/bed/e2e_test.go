package bed_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/test/bed"
)

// open returns the bed of the environment, or skips the test outside of it.
func open(t *testing.T) (*bed.Bed, context.Context) {
	t.Helper()
	if bed.InsideRelease() == "" {
		t.Skip("needs Ceph: run with bed enter")
	}
	// The bed that people use is not for tests.
	dir := os.Getenv("CEPHMIRROR_BED")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	b, err := bed.Open(bed.Options{Dir: dir, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		// A test whose time is over has clusters, too.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		b.Close(ctx)
		if err := b.Down(ctx, "t1", "t2"); err != nil {
			t.Error(err)
		}
	})
	return b, ctx
}

func up(t *testing.T, ctx context.Context, b *bed.Bed, s bed.ClusterSpec) *bed.Cluster {
	t.Helper()
	c, err := b.Up(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCluster(t *testing.T) {
	b, ctx := open(t)
	c := up(t, ctx, b, bed.ClusterSpec{Name: "t1", RBDPools: []string{"rbd"}})

	t.Run("the command-line tool finds it by name", func(t *testing.T) {
		out, err := c.Ceph(ctx, "--cluster", "t1", "fsid")
		if err != nil || strings.TrimSpace(out) != c.FSID() {
			t.Errorf("fsid is %q, %v, want %s", out, err, c.FSID())
		}
		out, err = c.Ceph(ctx, "fsid")
		if err != nil || strings.TrimSpace(out) != c.FSID() {
			t.Errorf("by default: fsid is %q, %v, want %s", out, err, c.FSID())
		}
	})
	t.Run("a refused command keeps its errno", func(t *testing.T) {
		_, err := c.MonCommand(ctx, map[string]any{"prefix": "fs get", "fs_name": "nope"})
		if !errors.Is(err, syscall.ENOENT) {
			t.Errorf("got %v", err)
		}
		if _, err = c.Ceph(ctx, "fs", "get", "nope"); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("the tool: got %v", err)
		}
	})
	t.Run("up again changes nothing", func(t *testing.T) {
		pids := map[string]int{}
		for _, d := range c.Daemons() {
			pids[d.Name()] = d.Pid()
		}
		began := time.Now()
		again := up(t, ctx, b, bed.ClusterSpec{Name: "t1"})
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		for _, d := range again.Daemons() {
			if d.Pid() != pids[d.Name()] || d.Pid() == 0 {
				t.Errorf("%s was %d, is %d", d.Name(), pids[d.Name()], d.Pid())
			}
		}
	})
	t.Run("it grows", func(t *testing.T) {
		big := up(t, ctx, b, bed.ClusterSpec{Name: "t1", OSDs: 2, FileSystems: []string{"second"}})
		fs, err := big.FileSystems(ctx)
		if err != nil || len(fs) != 2 {
			t.Errorf("file systems are %v, %v", fs, err)
		}
	})
	t.Run("killed daemons start again", func(t *testing.T) {
		for _, name := range []string{"osd.0", "mds.a", "mgr.x", "mon.a"} {
			d := c.Daemon(name)
			if err := d.Kill(ctx, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if d.State() != "dead" {
				t.Errorf("%s is %s after SIGKILL", name, d.State())
			}
			if err := d.Start(); err != nil {
				t.Fatal(err)
			}
			if err := d.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.WaitHealthy(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("freeze and thaw", func(t *testing.T) {
		if err := c.Signal(ctx, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if _, err := c.MonCommand(short, map[string]any{"prefix": "fsid"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a frozen cluster answered: %v", err)
		}
		if err := c.Signal(ctx, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if _, err := c.MonCommand(ctx, map[string]any{"prefix": "fsid"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a daemon that cannot start is named with its log", func(t *testing.T) {
		d := c.Daemon("mds.a")
		if err := d.Kill(ctx, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		keyring := filepath.Join(c.Dir(), "keyring")
		good, err := os.ReadFile(keyring)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(keyring, []byte(strings.ReplaceAll(string(good), "[mds.a]", "[mds.other]")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		err = c.WaitHealthy(ctx)
		var de *bed.DaemonError
		if !errors.As(err, &de) || de.Daemon != "mds.a" || !strings.Contains(de.Log, "auth") {
			t.Errorf("got %v", err)
		}
		if err := os.WriteFile(keyring, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitHealthy(ctx); err != nil {
			t.Error(err)
		}
	})

	if err := c.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(b.EtcDir(), "t1.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in /etc/ceph: %v, %v", left, err)
	}
	for _, d := range c.Daemons() {
		if d.Pid() != 0 {
			t.Errorf("%s still runs", d.Name())
		}
	}
	if _, err := b.Cluster("t1"); err == nil {
		t.Error("the cluster is still known")
	}
}

// patiently runs a command of the mgr, again when it hangs or the mgr died:
// that of some distributions does so now and then.
func patiently(t *testing.T, ctx context.Context, c *bed.Cluster, f func(context.Context) error) {
	t.Helper()
	for try := 1; ; try++ {
		short, cancel := context.WithTimeout(ctx, 40*time.Second)
		err := f(short)
		hung := short.Err() != nil
		cancel()
		if err == nil {
			return
		}
		mgr := c.Daemon("mgr.x")
		died := mgr.State() == "dead"
		if !hung && !died || try == 5 {
			t.Fatal(err)
		}
		t.Logf("once more (the mgr is %s): %v", mgr.State(), err)
		if err := mgr.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitHealthy(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDownTooLate takes a cluster down when the caller's time is over.
func TestDownTooLate(t *testing.T) {
	b, ctx := open(t)
	c := up(t, ctx, b, bed.ClusterSpec{Name: "t1", NoFS: true, NoWait: true})
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Down(over, "t1"); err != nil {
		t.Error(err)
	}
	for _, d := range c.Daemons() {
		if d.Pid() != 0 {
			t.Errorf("%s still runs", d.Name())
		}
	}
}

// TestMirrorUsers lets the stock daemon mirror with the users that the bed
// makes: they have what is needed.
func TestMirrorUsers(t *testing.T) {
	b, ctx := open(t)
	type result struct {
		c   *bed.Cluster
		err error
	}
	results := make(chan result)
	for _, name := range []string{"t1", "t2"} {
		go func() {
			s := bed.ClusterSpec{Name: name, MgrModules: []string{"mirroring"}, MgrBcrypt: bed.InsideRelease() == "reef"}
			c, err := b.Up(ctx, s)
			results <- result{c, err}
		}()
	}
	for range 2 {
		if r := <-results; r.err != nil {
			t.Error(r.err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	local, err := b.Cluster("t1")
	if err != nil {
		t.Fatal(err)
	}
	remote, err := b.Cluster("t2")
	if err != nil {
		t.Fatal(err)
	}
	if err := local.AddMirrorUser(ctx, "mirror"); err != nil {
		t.Fatal(err)
	}
	if err := remote.AuthorizePeer(ctx, "cephfs", "remote"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"fs", "snapshot", "mirror", "enable", "cephfs"},
		{"fs", "snapshot", "mirror", "peer_add", "cephfs", "client.remote@t2", "cephfs"},
	} {
		patiently(t, ctx, local, func(ctx context.Context) error {
			_, err := local.Ceph(ctx, args...)
			return err
		})
	}
	p, err := b.StartProcess(bed.ProcessSpec{Name: "stock", Args: []string{"cephfs-mirror", "--cluster", "t1", "--id", "mirror", "-f"}})
	if err != nil {
		t.Fatal(err)
	}
	err = bed.Poll(ctx, "the stock daemon to report its peer", func(ctx context.Context) (bool, error) {
		var out string
		patiently(t, ctx, local, func(ctx context.Context) (err error) {
			out, err = local.MgrCommand(ctx, map[string]any{"prefix": "fs snapshot mirror daemon status"})
			return err
		})
		var daemons []struct {
			Filesystems []struct {
				Peers []struct {
					Stats map[string]int `json:"stats"`
				} `json:"peers"`
			} `json:"filesystems"`
		}
		if err := json.Unmarshal([]byte(out), &daemons); err != nil {
			return false, err
		}
		if !p.Running() {
			return false, errors.New("the daemon ended: " + p.Log(20))
		}
		return len(daemons) == 1 && len(daemons[0].Filesystems) == 1 && len(daemons[0].Filesystems[0].Peers) == 1, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(local.RunDir(), "t1-client.mirror.asok")); err != nil {
		t.Errorf("the daemon's admin socket: %v", err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
	if got := p.Family(); len(got) != 0 {
		t.Errorf("left running: %v", got)
	}
}

// TestProcessFamily ends what a process left in the background.
func TestProcessFamily(t *testing.T) {
	b, ctx := open(t)
	p, err := b.StartProcess(bed.ProcessSpec{Name: "parent", Args: []string{"sh", "-c", "setsid sleep 1000 & echo started; sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := bed.Poll(ctx, "the child", func(context.Context) (bool, error) { return len(p.Family()) == 3, nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(ctx); err != nil {
		t.Error(err)
	}
	if got := p.Family(); len(got) != 0 {
		t.Errorf("left running: %v", got)
	}
	if !strings.Contains(p.Log(5), "started") {
		t.Errorf("log is %q", p.Log(5))
	}
	var none *bed.Process
	if none, err = b.StartProcess(bed.ProcessSpec{Name: "nothing", Args: []string{"/no/such/program"}}); err == nil {
		t.Errorf("started %v", none)
	}
}
