package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cephmirror/admin"
	"cephmirror/host/internal/fakeplugin"
	"cephmirror/plugins"
)

// The test binary is the command and its plugin too, by the name it is called.
func TestMain(m *testing.M) {
	fakeplugin.Serve()
	switch filepath.Base(os.Args[0]) {
	case "cephmirror", "cephfs-mirror", "rbd-mirror":
		os.Exit(Main(os.Args, os.Environ()))
	}
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// site is a directory with the command, its plugin and all they write.
type site struct {
	t      *testing.T
	dir    string
	script fakeplugin.Script
	socket string
	env    []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	// Short, because the path of a socket is.
	dir, err := os.MkdirTemp("", "cm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{t: t, dir: dir, socket: filepath.Join(dir, "s.asok")}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cephmirror", "cephfs-mirror", "rbd-mirror"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.script = fakeplugin.Script{Dir: dir, Info: plugins.Info{
		Kind: "cephfs", CephVersion: "20.2.4", CephRelease: "tentacle", GitVersion: "0123456789012345678901234567890123456789",
		InstanceID: "4242", AdminSocket: s.socket, LogFile: filepath.Join(dir, "log"), PidFile: filepath.Join(dir, "pid"),
	}}
	s.env = []string{"CEPHMIRROR_RESTART_DELAY=50ms", "CEPHMIRROR_LEASE_TTL=1s"}
	return s
}

func (s *site) command(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	plugin := fakeplugin.Install(s.t, &s.script)
	cmd := exec.Command(filepath.Join(s.dir, name), args...)
	cmd.Env = append(append(os.Environ(), "CEPHMIRROR_PLUGIN_DIR="+filepath.Dir(plugin)), s.env...)
	return cmd
}

// run runs a command that ends by itself.
func (s *site) run(stdin string, name string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	cmd := s.command(name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

type running struct {
	*exec.Cmd
	stderr lockedBuffer
	ended  chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve starts a daemon in the foreground and waits for its socket.
func (s *site) serve(args ...string) *running {
	s.t.Helper()
	r := &running{Cmd: s.command("cephmirror", append([]string{"cephfs-mirror", "-f"}, args...)...), ended: make(chan struct{})}
	r.Stderr = &r.stderr
	if err := r.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = r.Wait(); close(r.ended) }()
	s.t.Cleanup(func() {
		_ = r.Process.Kill()
		<-r.ended
		if s.t.Failed() {
			s.t.Logf("stderr:\n%s\nlog:\n%s", r.stderr.String(), s.read("log"))
		}
	})
	waitFor(s.t, "the admin socket", func() bool { _, err := s.ask("version", nil); return err == nil })
	return r
}

func (s *site) ask(prefix string, args map[string]any) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	body, err := admin.Call(ctx, s.socket, prefix, args, "json")
	return string(body), err
}

func (s *site) status() daemonStatus {
	s.t.Helper()
	text, err := s.ask("cephmirror status", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	var st daemonStatus
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *site) read(file string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, file))
	return string(text)
}

func (s *site) pluginPID() int {
	lines := strings.Fields(s.read("pids"))
	if len(lines) == 0 {
		return 0
	}
	pid, _ := strconv.Atoi(lines[len(lines)-1])
	return pid
}

func TestAdminSocketMode(t *testing.T) {
	for text, want := range map[string]os.FileMode{"0770": 0o770, "600": 0o600, "rwx": 0} {
		t.Run(text, func(t *testing.T) {
			s := newSite(t)
			s.script.Info.AdminSocketMode = text
			s.serve("--id", "m")
			info, err := os.Stat(s.socket)
			if err != nil {
				t.Fatal(err)
			}
			if want != 0 && info.Mode() != os.ModeSocket|want {
				t.Errorf("mode %v", info.Mode())
			}
			if told := strings.Contains(s.read("log"), "admin_socket_mode"); told != (want == 0) {
				t.Errorf("the log: %s", s.read("log"))
			}
		})
	}
}

func TestServesAndStops(t *testing.T) {
	s := newSite(t)
	s.script.State = []plugins.Event{
		{Kind: plugins.EventDomainUp, Domain: "cephfs@1"},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "fs mirror status cephfs@1", Help: "get filesystem mirror status"}},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "appear name=name,type=CephString", Help: "h"}},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "vanish name=name,type=CephString", Help: "h"}},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "fail", Help: "h"}},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "cephmirror status", Help: "not yours"}},
	}
	s.script.Loggers = []plugins.Logger{{
		Name: "cephfs_mirror", Counters: []plugins.Counter{{Name: "mirrored_filesystems", Type: plugins.GaugeU64, U64: 1, Priority: 5}},
	}}
	r := s.serve("--cluster", "site-a", "--id", "mirror", "--debug-ms=1", "--some-option", "x", "--log-to-stderr=false")

	var cfg plugins.Config
	if err := json.Unmarshal([]byte(s.read("config")), &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.Cluster != "site-a" || cfg.Name != "client.mirror" || cfg.Mode != plugins.ModeWorker ||
		fmt.Sprint(cfg.CephOptions) != "[{debug_ms 1} {some_option x} {log_to_stderr false}]" || cfg.Settings["workers"] != "24" {
		t.Errorf("%+v", cfg)
	}
	if pid := strings.TrimSpace(s.read("pid")); pid != fmt.Sprint(r.Process.Pid) {
		t.Errorf("pid file %q", pid)
	}

	// The plugin's commands come by events, soon after the socket.
	waitFor(t, "the command of the file system", func() bool { _, err := s.ask("fs mirror status cephfs@1", nil); return err == nil })
	for prefix, want := range map[string]string{
		"0":                         "2",
		"version":                   `{"version":"20.2.4","release":"tentacle","release_type":"stable"}`,
		"git_version":               `{"git_version":"0123456789012345678901234567890123456789"}`,
		"fs mirror status cephfs@1": `{"args":{},"input":"","prefix":"fs mirror status cephfs@1"}`,
		"perf dump":                 `{"cephfs_mirror":{"mirrored_filesystems":1}}`,
		"counter dump":              `{"cephfs_mirror":[{"labels":{},"counters":{"mirrored_filesystems":1}}]}`,
		"config show":               `{"name":"client.fake","cluster":"ceph","pid_file":""}`,
		"log flush":                 "{}",
	} {
		if got, err := s.ask(prefix, nil); err != nil || got != want {
			t.Errorf("%s: %s, %v", prefix, got, err)
		}
	}
	if got, err := s.ask("config get", map[string]any{"var": "debug_ms"}); err != nil || got != `{"debug_ms":"1"}` {
		t.Errorf("%s, %v", got, err)
	}
	if got, _ := s.ask("config get", map[string]any{"var": "nosuch"}); got != "ERROR: (2) No such file or directory\nerror getting 'nosuch': (2) No such file or directory\n" {
		t.Errorf("%q", got)
	}
	if got, _ := s.ask("fail", nil); got != "ERROR: (2) No such file or directory\nno such thing here\n" {
		t.Errorf("%q", got)
	}
	if _, err := s.ask("appear", map[string]any{"name": "shows up"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new command", func() bool { _, err := s.ask("shows up", nil); return err == nil })
	if _, err := s.ask("vanish", map[string]any{"name": "shows up"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the command", func() bool { _, err := s.ask("shows up", nil); return errors.Is(err, syscall.EINVAL) })

	st := s.status()
	if st.Plugin.State != "running" || st.Plugin.PID != s.pluginPID() || st.Plugin.Restarts != 0 || st.PID != r.Process.Pid {
		t.Errorf("%+v", st)
	}
	code, out, _ := s.run("", "cephmirror", "daemon", "-f", "json", s.socket, "config", "get", "debug_ms")
	if code != 0 || out != `{"debug_ms":"1"}`+"\n" {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := s.run("", "cephmirror", "daemon", s.socket, "fail"); code != 2 || !strings.HasPrefix(out, "ERROR: (2)") {
		t.Errorf("%d %s", code, out)
	}
	if code, _, errOut := s.run("", "cephmirror", "daemon", s.socket, "no", "such"); code != 22 || !strings.Contains(errOut, "no valid command found") {
		t.Errorf("%d %s", code, errOut)
	}

	// Log lines of the plugin keep level and fields.
	waitFor(t, "the plugin's lines in the log", func() bool {
		log := s.read("log")
		return strings.Contains(log, `"field":"kept","n":7`) && strings.Contains(log, `"stderr":"raw"`)
	})
	if err := os.Rename(filepath.Join(s.dir, "log"), filepath.Join(s.dir, "log.1")); err != nil {
		t.Fatal(err)
	}
	if err := r.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reopened log", func() bool { return strings.Contains(s.read("log"), "log reopened") })

	plugin := s.pluginPID()
	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	if code := r.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if s.read("stopped") == "" || alive(plugin) || s.read("pid") != "" {
		t.Errorf("stopped %q, plugin alive %v, pid file %q", s.read("stopped"), alive(plugin), s.read("pid"))
	}
	if _, err := os.Stat(s.socket); err == nil {
		t.Error("socket left behind")
	}
	if text := r.stderr.String(); text != "" {
		t.Errorf("stderr: %s", text)
	}
}

func TestRestartRebuildsTheCommands(t *testing.T) {
	s := newSite(t)
	s.env = append(s.env, "CEPHMIRROR_RESTART_DELAY=1s")
	s.script.State = []plugins.Event{
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "appear name=name,type=CephString", Help: "h"}},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "echo", Help: "h"}},
	}
	s.serve("--id", "m")
	waitFor(t, "commands", func() bool { _, err := s.ask("appear", map[string]any{"name": "gone later"}); return err == nil })
	waitFor(t, "the new command", func() bool { _, err := s.ask("gone later", nil); return err == nil })
	if err := syscall.Kill(s.pluginPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the plugin to be down", func() bool { text, _ := s.ask("echo", nil); return strings.Contains(text, "state waiting") })
	if text, _ := s.ask("echo", nil); !strings.HasPrefix(text, "ERROR: (107) Transport endpoint is not connected\nplugin is not running: state waiting; last error: plugin process ended: signal: killed") {
		t.Errorf("%q", text)
	}
	if _, err := s.ask("version", nil); err != nil {
		t.Errorf("version while the plugin is down: %v", err)
	}
	waitFor(t, "a restart", func() bool { _, err := s.ask("echo", nil); return err == nil })
	waitFor(t, "the end of the old command", func() bool { _, err := s.ask("gone later", nil); return errors.Is(err, syscall.EINVAL) })
	if st := s.status(); st.Plugin.Restarts != 1 || st.Plugin.LastError == "" {
		t.Errorf("%+v", st)
	}
}

func TestCommandsAreBounded(t *testing.T) {
	s := newSite(t)
	s.env = append(s.env, "CEPHMIRROR_COMMAND_BUDGET=200ms", "CEPHMIRROR_CALL_GRACE=300ms")
	s.script.State = []plugins.Event{
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "wait", Help: "h"}},
		{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "hang", Help: "h"}},
	}
	s.serve("--id", "m")
	want := "ERROR: (110) Connection timed out\nthe plugin did not answer within 200ms\n"
	waitFor(t, "commands", func() bool { text, _ := s.ask("wait", nil); return text == want })
	if st := s.status(); st.Plugin.Restarts != 0 {
		t.Errorf("restarted for a call that heeds its context: %+v", st)
	}
	if text, _ := s.ask("hang", nil); text != want {
		t.Errorf("%q", text)
	}
	waitFor(t, "a restart", func() bool { return s.status().Plugin.Restarts == 1 })
	if st := s.status(); !strings.Contains(st.Plugin.LastError, `"Call hang" hangs`) {
		t.Errorf("%+v", st)
	}
}

func TestLeaderStoresTheAssignment(t *testing.T) {
	s := newSite(t)
	s.script.State = []plugins.Event{
		{Kind: plugins.EventDomainUp, Domain: "cephfs@1"},
		{Kind: plugins.EventLeaderGained, Domain: "cephfs@1"},
		{Kind: plugins.EventUnitAdded, Domain: "cephfs@1", Unit: "/b"},
	}
	s.script.Map = plugins.Map{Units: []plugins.Mapping{{Unit: "/a"}}, Instances: []string{"4242"}}
	s.serve("--id", "m")
	for _, want := range []string{"cephfs@1 3 /a 4242", "cephfs@1 3 /b 4242"} {
		waitFor(t, "action "+want, func() bool { return strings.Contains(s.read("actions"), want) })
	}
	waitFor(t, "status", func() bool {
		leads := s.status().Leads
		return len(leads) == 1 && leads[0].Domain == "cephfs@1" && leads[0].Instances["4242"] == 2 && leads[0].Settled
	})
}

func TestPluginDiesWithItsHost(t *testing.T) {
	s := newSite(t)
	r := s.serve("--id", "m")
	plugin := s.pluginPID()
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	waitFor(t, "the end of the plugin", func() bool { return !alive(plugin) })
}

func TestFrozenHostStopsThePlugin(t *testing.T) {
	s := newSite(t)
	r := s.serve("--id", "m")
	waitFor(t, "writes", func() bool { return s.read("writes") != "" })
	if err := r.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozen := plugins.Boottime()
	last := func() time.Duration {
		lines := strings.Fields(s.read("writes"))
		n, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n)
	}
	// The lease of a second runs out, and nothing is written after that.
	waitFor(t, "the end of the lease", func() bool { return plugins.Boottime() > frozen+3*time.Second })
	if by := last() - frozen; by > time.Second+100*time.Millisecond {
		t.Errorf("written %v after the freeze", by)
	}
	if err := r.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	thawed := plugins.Boottime()
	waitFor(t, "writes again", func() bool { return last() > thawed })
	if st := s.status(); st.Plugin.Restarts != 0 {
		t.Errorf("the host blamed the plugin: %+v", st.Plugin)
	}
}

func TestSignalsToTheWholeGroupStopInOrder(t *testing.T) {
	s := newSite(t)
	s.script.StopDelay = 200 * time.Millisecond
	r := s.serve("--id", "m")
	plugin := s.pluginPID()
	// As a service manager does.
	for _, pid := range []int{plugin, r.Process.Pid, plugin} {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	<-r.ended
	if s.read("stopped") == "" || r.ProcessState.ExitCode() != 0 {
		t.Errorf("stopped %q, exit code %d", s.read("stopped"), r.ProcessState.ExitCode())
	}
}

func TestStopDeadline(t *testing.T) {
	s := newSite(t)
	s.script.StopDelay = time.Hour
	r := s.serve("--id", "m", "--cephmirror-stop-deadline=300ms")
	plugin := s.pluginPID()
	if err := r.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatal("does not end")
	}
	if alive(plugin) {
		t.Error("plugin outlived its host")
	}
}

func TestDaemonizes(t *testing.T) {
	s := newSite(t)
	code, out, errOut := s.run("", "cephfs-mirror", "--id", "m")
	if code != 0 || out != "" || errOut != "" {
		t.Fatalf("%d %q %q\n%s", code, out, errOut, s.read("log"))
	}
	// Ready means ready: no waiting here.
	pid, err := strconv.Atoi(strings.TrimSpace(s.read("pid")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	if st := s.status(); st.PID != pid || st.Plugin.State != "running" {
		t.Errorf("%+v", st)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err != nil || to != os.DevNull {
			t.Errorf("descriptor %s: %s, %v", fd, to, err)
		}
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != "/" {
		t.Errorf("directory %s, %v", cwd, err)
	}
	if sid, err := getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d, %v", sid, err)
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(comm) != "cephfs-mirror\n" {
		t.Errorf("name %q, %v", comm, err)
	}

	code, _, errOut = s.run("", "cephfs-mirror", "--id", "m")
	if code != 1 || !strings.Contains(errOut, fmt.Sprintf("pid file %s is held by process %d: already running", filepath.Join(s.dir, "pid"), pid)) {
		t.Errorf("second daemon: %d %q", code, errOut)
	}
	if st := s.status(); st.PID != pid {
		t.Errorf("the first one suffered: %+v", st)
	}

	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end", func() bool { return !alive(pid) })
	if s.read("pid") != "" {
		t.Error("pid file left behind")
	}
}

func getsid(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strconv.Atoi(strings.Fields(rest)[3])
}

func TestFailingStarts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		args    []string
		prepare func(s *site)
		want    string
	}{
		{"no arguments", nil, nil, "cephfs-mirror: -h or --help for usage\n"},
		{"error of the plugin", []string{"--id", "m"}, func(s *site) {
			s.script.StartErrno = int(syscall.ENOENT)
			s.write("start-error", "no keyring for client.m in /etc/ceph")
		}, "cephfs-mirror: no keyring for client.m in /etc/ceph\n"},
		{"the same in the foreground", []string{"-f", "--id", "m"}, func(s *site) {
			s.script.StartErrno = int(syscall.ENOENT)
			s.write("start-error", "no keyring for client.m in /etc/ceph")
		}, "cephfs-mirror: no keyring for client.m in /etc/ceph\n"},
		{"unknown setting", []string{"--id", "m", "--cephmirror-nosuch=1"}, nil, "cephfs-mirror: option --cephmirror-nosuch: unknown setting\n"},
		{"unknown key", []string{"-f", "--cephmirror-config=DIR/c.toml"}, func(s *site) { s.write("c.toml", "\nnosuch = 1\n") },
			"cephfs-mirror: DIR/c.toml:2: nosuch: unknown setting\n"},
		{"missing plugin", []string{"-f", "--cephmirror-plugin-dir=/no/such"}, nil, "cephfs-mirror: plugin cephmirror-cephfs not found, looked in /no/such\n"},
		{"missing ceph.conf", []string{"-f", "-c", "/no/such.conf"}, nil, "cephfs-mirror: reading Ceph's configuration file: stat /no/such.conf: no such file or directory\n"},
		{"bad option", []string{"-q"}, nil, "cephfs-mirror: unknown option -q\n"},
		{"bad name", []string{"--name", "m"}, nil, "cephfs-mirror: --name must be of the form TYPE.ID, not \"m\"\n"},
		{"stray word", []string{"-f", "word"}, nil, "cephfs-mirror: unexpected argument \"word\"\n"},
		{"no place for the pid file", []string{"--id", "m"}, func(s *site) { s.script.Info.PidFile = "/no/such/pid" },
			"cephfs-mirror: opening the pid file: open /no/such/pid: no such file or directory\n"},
		{"no place for the socket", []string{"--id", "m"}, func(s *site) { s.script.Info.AdminSocket = "/no/such/s.asok" }, "/no/such/s.asok"},
		{"no place for the log", []string{"--id", "m"}, func(s *site) { s.script.Info.LogFile = "/no/such/log" },
			"cephfs-mirror: opening the log file: open /no/such/log: no such file or directory\n"},
		{"metrics address", []string{"--id", "m", "--cephmirror-metrics-listen=300.0.0.1:1"}, nil, "metrics_listen: listen tcp"},
		{"plugin crashes", []string{"-f", "--id", "m"}, func(s *site) { s.script.CrashFirst = 100 }, "panic: crash on demand"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t)
			if tc.prepare != nil {
				tc.prepare(s)
			}
			var args []string
			for _, a := range tc.args {
				args = append(args, strings.ReplaceAll(a, "DIR", s.dir))
			}
			code, out, errOut := s.run("", "cephfs-mirror", args...)
			want := strings.ReplaceAll(tc.want, "DIR", s.dir)
			exact := strings.HasSuffix(want, "\n")
			if code != 1 || out != "" || exact && errOut != want || !strings.Contains(errOut, want) {
				t.Errorf("%d %q\n got %q\nwant %q", code, out, errOut, want)
			}
			waitFor(t, "the end of the plugin", func() bool { pid := s.pluginPID(); return pid == 0 || !alive(pid) })
		})
	}
}

func (s *site) write(file, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, file), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func TestSwitchesUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s := newSite(t)
	// The test binary lies in a directory that only its maker can enter.
	if err := os.Chmod(s.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	plugins := filepath.Join(s.dir, "plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(plugins, fakeplugin.Name), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "CEPHMIRROR_PLUGIN_DIR="+plugins)
	r := s.serve("--id", "m", "--setuser", "nobody", "--setgroup", "daemon")
	for _, pid := range []int{r.Process.Pid, s.pluginPID()} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "Uid:\t65534\t65534\t65534\t65534\n") || !strings.Contains(string(text), "Gid:\t1\t1\t1\t1\n") {
			t.Errorf("process %d:\n%s", pid, text)
		}
	}
	if code, _, errOut := s.run("", "cephfs-mirror", "-f", "--setuser", "no-such-user"); code != 1 || !strings.Contains(errOut, "--setuser no-such-user") {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestMissingRBDPlugin(t *testing.T) {
	s := newSite(t)
	code, _, errOut := s.run("", "rbd-mirror", "-f", "--id", "m")
	if code != 1 || !strings.Contains(errOut, "rbd-mirror: plugin cephmirror-rbd not found, looked in ") {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestVersionAndHelp(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{{"cephfs-mirror", "-v"}, {"cephfs-mirror", "--version"}, {"cephmirror", "version"}, {"cephmirror", "cephfs-mirror", "--version"}} {
		if code, out, _ := s.run("", args[0], args[1:]...); code != 0 || !strings.HasPrefix(out, "cephmirror version "+release) {
			t.Errorf("%v: %d %q", args, code, out)
		}
	}
	if code, out, _ := s.run("", "cephfs-mirror", "-h"); code != 0 || !strings.HasPrefix(out, "usage: cephfs-mirror") {
		t.Errorf("%d %q", code, out)
	}
	if code, out, _ := s.run("", "cephmirror", "settings", "--sample"); code != 0 || !strings.Contains(out, "[cephfs]") {
		t.Errorf("%d %q", code, out)
	}
}

func TestMetricsEndpoint(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	_ = probe.Close()
	s := newSite(t)
	s.script.Loggers = []plugins.Logger{{
		Name: "cephfs_mirror_peers", Labels: []plugins.Option{{Name: "peer_cluster_name", Value: "b\xff"}},
		Counters: []plugins.Counter{
			{Name: "snaps_synced", Type: plugins.CounterU64, U64: 3, Description: "d"},
			{Name: "avg_sync_time", Type: plugins.AverageSeconds, Count: 2, Sum: 1.5},
		},
	}}
	s.serve("--id", "m", "--cephmirror-metrics-listen="+address)
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ceph_cephfs_mirror_peers_snaps_synced{peer_cluster_name=\"b\ufffd\"} 3",
		"ceph_cephfs_mirror_peers_avg_sync_time_sum{peer_cluster_name=\"b\ufffd\"} 1.5",
		"ceph_cephfs_mirror_peers_avg_sync_time_count{peer_cluster_name=\"b\ufffd\"} 2",
		"cephmirror_plugin_up 1",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in\n%s", want, text)
		}
	}
}

func TestMemory(t *testing.T) {
	s := newSite(t)
	r := s.serve("--id", "m")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d KiB resident", kb)
			if kb > 40<<10 && !raceEnabled {
				t.Errorf("host has %d KiB resident", kb)
			}
		}
	}
}

func TestMirrorCommands(t *testing.T) {
	for _, tc := range []struct {
		args, stdin string
		code        int
		out, err    string
	}{
		{"add cephfs /a/b", "", 0, `{"args":{"fs_name":"cephfs","path":"/a/b"},"input":"","prefix":"fs snapshot mirror add"}`, ""},
		{"peer_add cephfs client.m@b", "", 0, `{"args":{"fs_name":"cephfs","remote_cluster_spec":"client.m@b"},"input":"","prefix":"fs snapshot mirror peer_add"}`, ""},
		{"peer_add cephfs client.m@b backup 1.2.3.4 -", "KEY\n", 0,
			`{"args":{"cephx_key":"KEY","fs_name":"cephfs","remote_cluster_spec":"client.m@b","remote_fs_name":"backup","remote_mon_host":"1.2.3.4"},"input":"","prefix":"fs snapshot mirror peer_add"}`, ""},
		{"peer_bootstrap import cephfs -", "TOKEN\n", 0, `{"args":{"fs_name":"cephfs","token":"TOKEN"},"input":"","prefix":"fs snapshot mirror peer_bootstrap import"}`, ""},
		{"peer_bootstrap import cephfs -", "{\"token\": \"TOKEN\"}\n", 0, `{"args":{"fs_name":"cephfs","token":"TOKEN"},"input":"","prefix":"fs snapshot mirror peer_bootstrap import"}`, ""},
		{"peer_bootstrap import cephfs --token-file DIR/token", "", 0, `{"args":{"fs_name":"cephfs","token":"FROMFILE"},"input":"","prefix":"fs snapshot mirror peer_bootstrap import"}`, ""},
		{"peer_bootstrap import cephfs -", "", 22, "", "Invalid command: reading the token: it is empty"},
		{"peer_bootstrap create cephfs client.m site-b", "", 0,
			`{"args":{"client_name":"client.m","fs_name":"cephfs","site_name":"site-b"},"input":"","prefix":"fs snapshot mirror peer_bootstrap create"}`, ""},
		{"daemon status", "", 0, `{"args":{},"input":"","prefix":"fs snapshot mirror daemon status"}`, ""},
		{"show distribution cephfs", "", 0, `{"args":{"fs_name":"cephfs"},"input":"","prefix":"fs snapshot mirror show distribution"}`, ""},
		{"add cephfs", "", 22, "", "Invalid command: missing required parameter path"},
		{"ls cephfs more", "", 22, "", `Invalid command: unused arguments: ["more"]`},
		{"remove cephfs /missing", "", 2, "", "Error ENOENT: directory /missing id not tracked\n"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			s := newSite(t)
			s.write("token", "FROMFILE\n")
			args := append([]string{"fs", "snapshot", "mirror", "--id", "ctl"}, strings.Fields(strings.ReplaceAll(tc.args, "DIR", s.dir))...)
			code, out, errOut := s.run(tc.stdin, "cephmirror", args...)
			// Warnings of the plugin are shown.
			errOut = strings.TrimPrefix(errOut, "WRN fake started field=kept n=7\n")
			if code != tc.code || strings.TrimSpace(out) != tc.out || !strings.Contains(errOut, tc.err) || tc.err == "" && errOut != "" {
				t.Errorf("%d %q %q", code, out, errOut)
			}
			if tc.code == 22 {
				return
			}
			var cfg plugins.Config
			if err := json.Unmarshal([]byte(s.read("config")), &cfg); err != nil || cfg.Mode != plugins.ModeControl || cfg.Name != "client.ctl" {
				t.Errorf("%+v %v", cfg, err)
			}
			if pid := s.pluginPID(); alive(pid) || s.read("stopped") == "" {
				t.Error("the plugin was not stopped")
			}
		})
	}
}

func TestOptionsBeforeTheCommand(t *testing.T) {
	for _, args := range []string{
		"--id ctl --cluster b fs snapshot mirror ls cephfs",
		"fs --id ctl snapshot mirror ls cephfs --cluster=b",
		"fs snapshot mirror ls cephfs --format json --name client.ctl -o cluster=b",
	} {
		s := newSite(t)
		s.env = append(s.env, "CEPH_ARGS=--id other --debug-ms 0")
		code, _, errOut := s.run("", "cephmirror", strings.Fields(args)...)
		var cfg plugins.Config
		if err := json.Unmarshal([]byte(s.read("config")), &cfg); code != 0 || err != nil || cfg.Name != "client.ctl" || cfg.Cluster != "b" ||
			fmt.Sprint(cfg.CephOptions) != "[{debug_ms 0}]" {
			t.Errorf("%s: %d %s %+v %v", args, code, errOut, cfg, err)
		}
	}
}

func TestMirrorCommandCannotConnect(t *testing.T) {
	s := newSite(t)
	s.script.StartErrno = int(syscall.ETIMEDOUT)
	s.write("start-error", "no answer from the monitors at 127.0.0.1:1")
	code, _, errOut := s.run("", "cephmirror", "fs", "snapshot", "mirror", "ls", "cephfs")
	if code != 1 || errOut != "cephmirror: no answer from the monitors at 127.0.0.1:1\n" {
		t.Errorf("%d %q", code, errOut)
	}
}
