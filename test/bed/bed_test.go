package bed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRenderConf(t *testing.T) {
	text := renderConf(confParams{
		Name: "a", Dir: "/s/a", EtcDir: "/s/etc-ceph", FSID: "id", FirstPort: 12000, Ports: 200, OSDSize: 1 << 30,
		ClassDir: "/classes", Modules: []string{"mirroring"}, ModuleDir: "/s/a/mgr-modules",
		Global: []Option{{"client mount timeout", "5"}},
		Users:  []User{{"client.mirror"}},
	})
	sections := map[string]map[string]string{}
	var at string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") {
			at = strings.Trim(line, "[]")
			if sections[at] != nil {
				t.Errorf("section %s twice", at)
			}
			sections[at] = map[string]string{}
			continue
		}
		k, v, ok := strings.Cut(line, " = ")
		if !ok && !strings.HasSuffix(line, " =") {
			t.Errorf("line %q is no option", line)
		}
		if _, twice := sections[at][k]; twice {
			t.Errorf("option %q twice in [%s]", k, at)
		}
		sections[at][k] = v
	}
	want := map[string]map[string]string{
		"global": {
			"mon host":             "[v2:127.0.0.1:12000/0,v1:127.0.0.1:12001/0]",
			"ms bind port min":     "12002",
			"ms bind port max":     "12199",
			"client mount timeout": "5",
			"osd class dir":        "/classes",
		},
		"mon":           {"mgr initial modules": "mirroring", "keyring": "/s/a/mon.$id/keyring"},
		"mgr":           {"mgr module path": "/s/a/mgr-modules", "keyring": "/s/a/keyring"},
		"osd":           {"bluestore block size": "1073741824"},
		"mds":           {"admin socket": "/s/a/run/$cluster-$name.asok"},
		"client.admin":  {"keyring": "/s/etc-ceph/a.client.admin.keyring"},
		"client.mirror": {"keyring": "/s/etc-ceph/a.client.mirror.keyring", "admin socket": "/s/a/run/$cluster-$name.asok", "pid file": "/s/a/run/$cluster-$name.pid", "log file": "/s/a/log/$name.log"},
	}
	for s, opts := range want {
		for k, v := range opts {
			if got := sections[s][k]; got != v {
				t.Errorf("[%s] %s = %q, want %q", s, k, got, v)
			}
		}
	}
	// A socket in these would be opened by every client, the tools too.
	for _, s := range []string{"global", "client", "client.admin"} {
		if v, ok := sections[s]["admin socket"]; ok {
			t.Errorf("[%s] has admin socket = %s", s, v)
		}
	}
}

func TestKeyOf(t *testing.T) {
	text := renderKeyring([]keyEntry{
		{"mon.", "k1", []Option{{"mon", "allow *"}}},
		{"client.admin", "k2==", nil},
	})
	for entity, want := range map[string]string{"mon.": "k1", "client.admin": "k2==", "client.ad": "", "osd.0": ""} {
		if got := keyOf(text, entity); got != want {
			t.Errorf("keyOf(%s) = %q, want %q", entity, got, want)
		}
	}
}

func TestSpec(t *testing.T) {
	got, err := ClusterSpec{Name: "a"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	want := ClusterSpec{Name: "a", OSDs: 1, MDSs: 1, FileSystems: []string{"cephfs"}, OSDSize: 12 << 30}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, s := range []ClusterSpec{
		{Name: ""}, {Name: "A"}, {Name: "../x"}, {Name: "ceph"}, {Name: etcCeph}, {Name: "proc"},
		{Name: strings.Repeat("a", 17)},
		{Name: "a", OSDs: -1}, {Name: "a", OSDs: maxOSDs + 1}, {Name: "a", OSDSize: 1},
		{Name: "a", FileSystems: []string{"x", "y"}, MDSs: 1},
	} {
		if _, err := s.withDefaults(); err == nil {
			t.Errorf("%+v was accepted", s)
		}
	}
	more, err := ClusterSpec{Name: "a", OSDs: 3, FileSystems: []string{"other"}, RBDPools: []string{"rbd"}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	want = ClusterSpec{Name: "a", OSDs: 3, MDSs: 2, FileSystems: []string{"cephfs", "other"}, RBDPools: []string{"rbd"}, OSDSize: 12 << 30}
	if d := cmp.Diff(want, merge(got, more)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(got, merge(got, got)); d != "" {
		t.Error(d)
	}
}

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 %s 18 4711 20 21"
	text := func(head, threads string) string { return head + strings.Replace(tail, "%s", threads, 1) }
	for _, tc := range []struct {
		text string
		want procStat
		dead bool
		ok   bool
	}{
		{text("12 (sleep) S", "1"), procStat{'S', 1, 4711}, false, true},
		{text("12 (a) R 1 (b) ) Z", "1"), procStat{'Z', 1, 4711}, true, true},
		{text("12 (osd) Z", "3"), procStat{'Z', 3, 4711}, false, true},
		{"12 (sleep) S 1 2", procStat{}, false, false},
		{text("12 sleep S", "1"), procStat{}, false, false},
		{text("12 (sleep) S", "x"), procStat{}, false, false},
		{"", procStat{}, false, false},
	} {
		got, err := parseStat(tc.text)
		if got != tc.want || got.dead() != tc.dead || (err == nil) != tc.ok {
			t.Errorf("parseStat(%q) = %+v (dead: %v), %v", tc.text, got, got.dead(), err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("12 (sleep) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21")
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseStat(s) })
}

func TestProcessIdentity(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.Command("sleep", "1000")
	cmd.Env = append(os.Environ(), envMark+"="+mark("/state", "c", "one"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !id.alive() {
		t.Fatal("not alive")
	}
	// Someone else who got the same pid is left alone.
	for _, other := range []procID{
		{PID: id.PID, Start: id.Start + 1, Boot: id.Boot},
		{PID: id.PID, Start: id.Start, Boot: "another"},
	} {
		if other.alive() {
			t.Errorf("%+v is taken for %+v", other, id)
		}
		if err := other.signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if !id.alive() {
		t.Fatal("a recycled pid was signalled")
	}
	// The mark finds it, as soon as the command was executed.
	if err := Poll(ctx, "the mark", func(context.Context) (bool, error) {
		return len(marked(mark("/state", "c", "one"))) == 1, nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := marked(mark("/state", "c", "on")); len(got) != 0 {
		t.Errorf("a shorter name finds %v", got)
	}
	if got := marked(mark("/state", "c", "")); len(got) != 1 || got[0] != id {
		t.Errorf("the cluster's mark finds %v", got)
	}
	if err := kill(ctx, []procID{id}); err != nil {
		t.Fatal(err)
	}
	if id.alive() {
		t.Error("still alive")
	}
	if err := id.signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal to a dead process: %v", err)
	}
}

func TestPortClaims(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	reg := portRegistry{dir: filepath.Join(dir, "ports"), free: func(int, int) bool { return true }}
	owner := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	claim := func(o string) int {
		t.Helper()
		p, err := reg.claim(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := owner("a"), owner("b")
	pa, pb := claim(a), claim(b)
	if pa == pb {
		t.Errorf("both got %d", pa)
	}
	if again := claim(a); again != pa {
		t.Errorf("second claim got %d, first %d", again, pa)
	}
	// An owner that is gone loses its claim.
	if err := os.RemoveAll(a); err != nil {
		t.Fatal(err)
	}
	reg.free = func(first, _ int) bool { return first == pa }
	if p := claim(owner("c")); p != pa {
		t.Errorf("the stale claim on %d was not taken over, got %d", pa, p)
	}
	if _, err := reg.claim(ctx, owner("d")); err == nil {
		t.Error("claimed ports that are in use")
	}
	for _, n := range []string{"b", "c"} {
		if err := reg.release(ctx, filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(reg.dir); !os.IsNotExist(err) {
		t.Errorf("the directory of claims is left: %v", err)
	}
	if err := reg.release(ctx, b); err != nil {
		t.Errorf("release without claims: %v", err)
	}
}

func TestPortClaimsAtOnce(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	reg := portRegistry{dir: filepath.Join(dir, "ports"), free: func(int, int) bool { return true }}
	const n = 16
	ports := make([]int, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			o := filepath.Join(dir, string(rune('a'+i)))
			for range 3 { // ends with a claim
				if err := os.MkdirAll(o, 0o755); err != nil {
					t.Error(err)
				}
				if err := reg.release(ctx, o); err != nil {
					t.Error(err)
				}
				var err error
				if ports[i], err = reg.claim(ctx, o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] || p < firstPort || p+portsPerBlock > 32768 {
			t.Errorf("port %d was given twice or is out of bounds", p)
		}
		seen[p] = true
	}
}

func TestPortsFree(t *testing.T) {
	reg := newPortRegistry(filepath.Join(t.TempDir(), "ports"))
	first, err := reg.claim(context.Background(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !portsFree(first, portsPerBlock) {
		t.Errorf("the claimed ports from %d are in use", first)
	}
}

func TestTopmost(t *testing.T) {
	got := topmost([]string{"/a/b", "/a", "/ab", "/c/d/", "/c/d/e", "/a"})
	if d := cmp.Diff([]string{"/a", "/ab", "/c/d"}, got); d != "" {
		t.Error(d)
	}
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOf(rapid.StringMatching(`(/[ab]{1,2}){1,4}`)).Draw(t, "paths")
		out := topmost(in)
		for _, p := range in {
			covered := 0
			for _, o := range out {
				if below(p, o) {
					covered++
				}
			}
			if covered != 1 {
				t.Fatalf("%s is covered %d times by %v", p, covered, out)
			}
		}
	})
}

func TestInsideEnv(t *testing.T) {
	got := insideEnv([]string{"A=1", "CEPH_ARGS=--id x", "PYTHONHOME=/x", "HOME=/root", "TMPDIR=/x", "LD_PRELOAD=x", envStage + "={}"},
		false, []string{"HOME=/s/home"}, "/go")
	want := []string{"A=1", "PATH=/go/bin:" + sysPath, "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", "HOME=/s/home"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestStateDir(t *testing.T) {
	t.Setenv(envState, "")
	seen := map[string]bool{}
	for _, top := range []string{"/one", "/two"} {
		for _, r := range Releases() {
			d, err := StateDir(top, r)
			if err != nil {
				t.Fatal(err)
			}
			if seen[d] || len(d) > 40 {
				t.Errorf("state directory %s is too long or not unique", d)
			}
			seen[d] = true
		}
	}
	if _, err := StateDir("", Releases()[0]); err == nil {
		t.Error("a state directory outside of any checkout")
	}
	t.Setenv(envState, "/"+strings.Repeat("x", 60))
	if _, err := StateDir("/one", Releases()[0]); err == nil {
		t.Error("a path too long for sockets was accepted")
	}
}

func TestParseMajor(t *testing.T) {
	if n, ok := parseMajor("ceph version 20.2.4 (7f79) tentacle (stable)\n"); !ok || n != 20 {
		t.Errorf("got %d, %v", n, ok)
	}
	if _, ok := parseMajor("sh: ceph-mon: not found"); ok {
		t.Error("nonsense has a version")
	}
}

func TestMissing(t *testing.T) {
	spec, err := ClusterSpec{Name: "a"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if got := (clusterStatus{}).missing(spec); got == "" {
		t.Error("an empty status is complete")
	}
	var s clusterStatus
	s.Health.Status = "HEALTH_OK"
	s.MgrMap.Available = true
	s.OSDMap.NumUpOSDs = 1
	s.FSMap.ByRank = append(s.FSMap.ByRank, struct {
		Status string `json:"status"`
	}{"up:active"})
	s.PGMap.NumPGs = 16
	s.PGMap.States = append(s.PGMap.States, struct {
		Name  string `json:"state_name"`
		Count int    `json:"count"`
	}{"active+clean+snaptrim", 16})
	if got := s.missing(spec); got != "" {
		t.Errorf("a complete status misses %s", got)
	}
	s.PGMap.States[0].Count = 15
	if got := s.missing(spec); !strings.Contains(got, "15 of 16") {
		t.Errorf("got %q", got)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	if err := writeFile(p, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := tailFile(p, 2); err != nil || got != "two\nthree" {
		t.Errorf("tail is %q, %v", got, err)
	}
	if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", st, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := removeTree(dir); err != nil {
		t.Error(err)
	}
	if err := removeTree(dir); err != nil {
		t.Errorf("remove what is gone: %v", err)
	}
	if err := needSpace(os.TempDir(), 1<<60, "everything"); err == nil || !strings.Contains(err.Error(), "everything") {
		t.Errorf("got %v", err)
	}
}

func TestLock(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p := filepath.Join(t.TempDir(), "lock")
	// Holders that remove the file never overlap.
	var holders atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				l, err := lockFile(ctx, p, true)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				holders.Add(-1)
				l.remove()
			}
		})
	}
	wg.Wait()
	a, err := tryLock(p, false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tryLock(p, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tryLock(p, true); err != errLocked {
		t.Errorf("got %v", err)
	}
	a.release()
	b.release()
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{"KILL": syscall.SIGKILL, "sigterm": syscall.SIGTERM, "9": syscall.SIGKILL} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("%s is %v, %v", s, got, err)
		}
	}
	if _, err := ParseSignal("NOPE"); err == nil {
		t.Error("NOPE is a signal")
	}
}
