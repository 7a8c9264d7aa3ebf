package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/admin"
	"cephmirror/test/bed"
)

// daemon is a mirror daemon under test, ours or the stock one.
type daemon struct {
	e    *env
	id   string
	sock string
	log  string
	args []string
	// explain logs what the daemon knows, when a test has failed.
	explain func(*testing.T, *daemon)
	*bed.Process
}

// startOurs starts our daemon as client.ID and waits until it serves.
func (e *env) startOurs(t *testing.T, id string, opts ...string) *daemon {
	t.Helper()
	return e.startDaemon(t, e.a, id, append([]string{filepath.Join(e.bin, "cephmirror"), "cephfs-mirror",
		"--cluster", e.a.Name(), "--id", id, "-f"}, opts...), explainPeers)
}

// startStock starts the stock daemon as client.ID and waits until it serves.
func (e *env) startStock(t *testing.T, id string, opts ...string) *daemon {
	t.Helper()
	return e.startDaemon(t, e.a, id, append([]string{"cephfs-mirror", "--cluster", e.a.Name(), "--id", id, "-f"}, opts...), explainPeers)
}

func (e *env) startDaemon(t *testing.T, c *bed.Cluster, id string, args []string, explain func(*testing.T, *daemon)) *daemon {
	t.Helper()
	d := &daemon{e: e, id: id, args: args, explain: explain,
		sock: filepath.Join(c.RunDir(), c.Name()+"-client."+id+".asok"),
		log:  filepath.Join(c.Dir(), "log", "client."+id+".log"),
	}
	// Tests look at the log of this run only.
	if err := os.Remove(d.log); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var printed int64
	if info, err := os.Stat(filepath.Join(e.bed.Dir(), "proc", "mirror-"+id+".log")); err == nil {
		printed = info.Size()
	}
	d.start(t)
	t.Cleanup(func() {
		if crash := d.crash(printed); crash != "" && filepath.Base(args[0]) == "cephmirror" {
			t.Errorf("the daemon crashed: %s", crash)
		}
		if t.Failed() {
			d.dump(t)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Errorf("stopping the daemon: %v", err)
		}
	})
	return d
}

// crash returns the first sign of a crash in what the daemon printed from an
// offset on: it heals by itself, but is not to happen.
func (d *daemon) crash(from int64) string {
	text, err := os.ReadFile(d.LogPath())
	if err != nil || from > int64(len(text)) {
		return ""
	}
	for line := range strings.Lines(string(text[from:])) {
		for _, sign := range []string{"SIGSEGV", "SIGABRT", "SIGBUS", "panic:", "fatal error:"} {
			if strings.Contains(line, sign) {
				return line[:min(len(line), 1000)]
			}
		}
	}
	return ""
}

// start starts the process and waits for its admin socket.
func (d *daemon) start(t *testing.T) {
	t.Helper()
	p, err := d.e.bed.StartProcess(bed.ProcessSpec{Name: "mirror-" + d.id, Args: d.args})
	if err != nil {
		t.Fatal(err)
	}
	d.Process = p
	within(t, 30*time.Second, "the daemon to serve its admin socket", func() error {
		if !p.Running() {
			t.Fatalf("the daemon ended: %v\n%s", p.Wait(context.Background()), p.Log(30))
		}
		_, err := d.call("version")
		return err
	})
}

// call sends a command to the admin socket.
func (d *daemon) call(prefix string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return admin.Call(ctx, d.sock, prefix, nil, "json")
}

// stop ends the daemon as an operator does and fails if that takes long.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	d.stopWithin(t, 20*time.Second)
}

func (d *daemon) stopWithin(t *testing.T, limit time.Duration) {
	t.Helper()
	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := d.Wait(ctx)
	if ctx.Err() != nil {
		t.Errorf("the daemon does not end within %v of SIGTERM: %v", limit, err)
	}
	if err := d.Kill(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// kill ends the daemon's main process with SIGKILL; what it started must end
// by itself.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	family := append(d.Family(), d.plugin(t))
	if err := d.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "all processes of the daemon to end with it", func() error {
		for _, pid := range family {
			if alive(pid) {
				return fmt.Errorf("process %d is still there", pid)
			}
		}
		return nil
	})
}

// alive tells whether a process runs and is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// plugin returns the process id of the plugin.
func (d *daemon) plugin(t *testing.T) int {
	t.Helper()
	var st struct {
		Plugin struct {
			PID int `json:"pid"`
		} `json:"plugin"`
	}
	within(t, 20*time.Second, "the host to have a plugin", func() error {
		out, err := d.call("cephmirror status")
		if err != nil {
			return err
		}
		mustJSON(t, string(out), &st)
		if st.Plugin.PID == 0 {
			return fmt.Errorf("none in %s", out)
		}
		return nil
	})
	return st.Plugin.PID
}

// dump logs what may explain a failure.
func (d *daemon) dump(t *testing.T) {
	t.Helper()
	for _, path := range []string{d.LogPath(), d.log} {
		if text := tail(path, 40); text != "" {
			t.Logf("end of %s:\n%s", path, text)
		}
	}
	d.explain(t, d)
}

// explainPeers logs the states of all directories.
func explainPeers(t *testing.T, d *daemon) {
	for uuid := range d.peers() {
		out, err := d.call(fmt.Sprintf("fs mirror peer status %s %s", d.e.domain(), uuid))
		if len(out) > 6000 {
			out = out[:6000]
		}
		t.Logf("peer status (%v): %s", err, out)
	}
}

func tail(path string, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	all = all[max(0, len(all)-lines):]
	for i, line := range all {
		all[i] = line[:min(len(line), 600)]
	}
	return strings.Join(all, "\n")
}

// domain is how commands name the mirrored file system.
func (e *env) domain() string { return fsName + "@1" }

// mirrorStatus is the answer to "fs mirror status".
type mirrorStatus struct {
	State     string         `json:"state"`
	RadosInst string         `json:"rados_inst"`
	Peers     map[string]any `json:"peers"`
	SnapDirs  struct {
		DirCount int `json:"dir_count"`
	} `json:"snap_dirs"`
}

func (d *daemon) status() (s mirrorStatus, err error) {
	out, err := d.call("fs mirror status " + d.e.domain())
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	return s, err
}

func (d *daemon) peers() map[string]any {
	s, _ := d.status()
	return s.Peers
}

// dirStatus is the state of one directory on one peer.
type dirStatus struct {
	State  string `json:"state"`
	Reason string `json:"failure_reason"`
	Last   struct {
		ID    uint64 `json:"id"`
		Name  string `json:"name"`
		Bytes uint64 `json:"sync_bytes"`
		Sent  uint64 `json:"sync_bytes_sent"`
	} `json:"last_synced_snap"`
	Synced    int      `json:"snaps_synced"`
	Deleted   int      `json:"snaps_deleted"`
	Renamed   int      `json:"snaps_renamed"`
	LastError string   `json:"last_error"`
	NextTry   string   `json:"next_try"`
	Waiting   string   `json:"waiting"`
	Strays    []string `json:"stray_snapshots"`
}

// peerStatus returns the directories' states on a peer.
func (d *daemon) peerStatus(uuid string) (map[string]dirStatus, error) {
	out, err := d.call(fmt.Sprintf("fs mirror peer status %s %s", d.e.domain(), uuid))
	if err != nil {
		return nil, err
	}
	var s map[string]dirStatus
	if err := json.Unmarshal(out, &s); err != nil {
		return nil, fmt.Errorf("%w in %s", err, out)
	}
	return s, nil
}

// dir returns a directory's state on the only peer.
func (d *daemon) dir(dir string) (dirStatus, error) {
	for uuid := range d.peers() {
		s, err := d.peerStatus(uuid)
		if err != nil {
			return dirStatus{}, err
		}
		st, ok := s[dir]
		if !ok {
			return dirStatus{}, fmt.Errorf("%s is not in the peer status", dir)
		}
		return st, nil
	}
	return dirStatus{}, errors.New("no peer")
}

// waitDir waits until a directory's state is as wanted.
func (d *daemon) waitDir(t *testing.T, limit time.Duration, dir, what string, want func(dirStatus) bool) dirStatus {
	t.Helper()
	var st dirStatus
	within(t, limit, dir+": "+what, func() (err error) {
		if st, err = d.dir(dir); err != nil {
			return err
		}
		if !want(st) {
			return fmt.Errorf("its state is %+v", st)
		}
		return nil
	})
	return st
}

// within repeats f until it succeeds; after limit the test fails.
func within(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	if err := eventually(limit, f); err != nil {
		t.Fatalf("waited %v for %s: %v", limit, what, err)
	}
}

func eventually(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// holds checks that f keeps returning nil for d.
func holds(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func mustJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %.300s", err, text)
	}
}
