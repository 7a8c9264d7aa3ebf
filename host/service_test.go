package host

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unitsIn copies the units to a directory, with an executable in place of ours.
func unitsIn(t *testing.T, dir string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("../systemd/*")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	var names []string
	for _, source := range sources {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(source)
		names = append(names, name)
		text = []byte(strings.ReplaceAll(string(text), "/usr/bin/cephmirror", self))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

func systemdTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s here", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// What systemd itself finds wrong with the units.
func TestUnitsVerified(t *testing.T) {
	dir := t.TempDir()
	for _, name := range unitsIn(t, dir) {
		out := systemdTool(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=one", filepath.Join(dir, name))
		if strings.TrimSpace(out) != "" {
			t.Errorf("%s:\n%s", name, out)
		}
		if strings.HasSuffix(name, ".service") { // the stock units are at 7.1
			systemdTool(t, "systemd-analyze", "security", "--offline=true", "--threshold=55", filepath.Join(dir, name))
		}
	}
}

// Enabled, workers belong to the target and take the names of the stock units.
func TestUnitsEnabled(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/system")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	unitsIn(t, dir)
	systemdTool(t, "systemctl", "--root="+root, "enable", "cephmirror.target", "cephmirror-rbd@a.service", "cephmirror-cephfs@b.service", "cephmirror@c.service")
	etc := filepath.Join(root, "etc/systemd/system")
	for link, unit := range map[string]string{
		"ceph-rbd-mirror@a.service":                           "cephmirror-rbd@.service",
		"cephfs-mirror@b.service":                             "cephmirror-cephfs@.service",
		"cephmirror.target.wants/cephmirror-rbd@a.service":    "cephmirror-rbd@.service",
		"cephmirror.target.wants/cephmirror-cephfs@b.service": "cephmirror-cephfs@.service",
		"cephmirror.target.wants/cephmirror@c.service":        "cephmirror@.service",
		"ceph.target.wants/cephmirror.target":                 "cephmirror.target",
		"multi-user.target.wants/cephmirror.target":           "cephmirror.target",
	} {
		got, err := os.Readlink(filepath.Join(etc, link))
		if err != nil || filepath.Base(got) != unit {
			t.Errorf("%s leads to %q, %v; want %s", link, got, err, unit)
		}
	}
}

// settingsOf are the lines of a section.
func settingsOf(t *testing.T, name, section string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	in := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "["):
			in = line == "["+section+"]"
		case in && line != "" && line[0] != '#':
			out = append(out, line)
		}
	}
	return out
}

// The units differ in what they run alone, and have all that the stock units
// protect with.
func TestUnitsAlike(t *testing.T) {
	stock := []string{
		"LimitNOFILE=1048576", "LimitNPROC=1048576", "LockPersonality=true", "MemoryDenyWriteExecute=true", "NoNewPrivileges=true",
		"PrivateDevices=yes", "PrivateTmp=true", "ProtectClock=true", "ProtectControlGroups=true", "ProtectHome=true",
		"ProtectHostname=true", "ProtectKernelLogs=true", "ProtectKernelModules=true", "ProtectKernelTunables=true",
		"ProtectSystem=full", "Restart=on-failure", "RestrictSUIDSGID=true", "TasksMax=infinity",
	}
	var first []string
	for _, name := range []string{"cephmirror@.service", "cephmirror-rbd@.service", "cephmirror-cephfs@.service"} {
		service := settingsOf(t, name, "Service")
		for _, want := range append(stock, "Type=notify", "NotifyAccess=main", "WatchdogSec=60") {
			if !slices.Contains(service, want) {
				t.Errorf("%s is without %s", name, want)
			}
		}
		rest := slices.DeleteFunc(service, func(s string) bool { return strings.HasPrefix(s, "ExecStart=") || strings.HasPrefix(s, "Environment=") })
		if first == nil {
			first = rest
		} else if !slices.Equal(first, rest) {
			t.Errorf("%s:\n%q, the first has\n%q", name, rest, first)
		}
	}
}

// What the service manager is told: that the daemon serves once its socket
// answers and not before, how its plugin is, that it is alive as long as it is,
// that it stops.
func TestServiceManager(t *testing.T) {
	s := newSite(t)
	path := filepath.Join(s.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.env = append(s.env, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=600000")
	// hear returns what was told within d, or as soon as done says that it is enough.
	hear := func(d time.Duration, done func(line string) bool) (lines []string) {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(d)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return lines
			}
			for _, line := range strings.Split(strings.TrimSpace(string(b[:n])), "\n") {
				lines = append(lines, line)
				if done(line) {
					return lines
				}
			}
		}
	}
	until := func(want string) []string {
		t.Helper()
		lines := hear(patience, func(line string) bool { return strings.Contains(line, want) })
		if len(lines) == 0 || !strings.Contains(lines[len(lines)-1], want) {
			t.Fatalf("%s was not told, but %q", want, lines)
		}
		return lines
	}
	s.script.StartDelay = time.Second
	ready := make(chan []string, 1)
	go func() {
		lines := hear(patience, func(line string) bool { return line == "READY=1" })
		if _, err := s.ask("version", nil); err != nil {
			lines = append(lines, "but "+err.Error())
		}
		ready <- lines
	}()
	r := s.serve("--id", "m")
	lines := <-ready
	if len(lines) < 3 || lines[len(lines)-1] != "READY=1" {
		t.Fatalf("at the start: %q", lines)
	}
	if !strings.HasPrefix(lines[0], "STATUS=plugin cephfs: start") || !slices.Contains(lines, "WATCHDOG=1") {
		t.Errorf("before it serves: %q", lines)
	}
	until("STATUS=plugin cephfs: running")
	for range 3 {
		until("WATCHDOG=1")
	}
	if err := syscall.Kill(s.pluginPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until("restarted 1 time")

	// One that is frozen is silent, and so is killed.
	if err := r.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hear(300*time.Millisecond, func(string) bool { return false })
	if told := hear(time.Second, func(string) bool { return true }); len(told) != 0 {
		t.Errorf("a frozen daemon tells %q", told)
	}
	if err := r.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until("WATCHDOG=1")
	if err := r.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until("STOPPING=1")
	<-r.ended
}

// A word that is no command is an error wherever it stands.
func TestUnknownCommands(t *testing.T) {
	s := newSite(t)
	for _, words := range []string{
		"bogus", "fs bogus", "fs snapshot bogus", "fs snapshot mirror bogus", "fs snapshot mirror show bogus", "fs snapshot mirror peer_bootstrap bogus",
		"fs snapshot mirror schedule bogus", "rbd bogus", "rbd mirror bogus", "rbd mirror snapshot bogus", "rbd mirror snapshot schedule bogus",
	} {
		if code, out, errOut := s.run("", "cephmirror", strings.Fields(words)...); code != 1 || out != "" || !strings.HasPrefix(errOut, `cephmirror: unknown command "bogus" for "cephmirror`) {
			t.Errorf("%s: exit code %d, %q, %q", words, code, out, errOut)
		}
	}
	for _, words := range []string{"", "fs", "rbd mirror snapshot", "fs snapshot mirror schedule"} {
		if code, out, errOut := s.run("", "cephmirror", strings.Fields(words)...); code != 0 || !strings.Contains(out, "Available Commands:") || errOut != "" {
			t.Errorf("%q: exit code %d, %q, %q", words, code, out, errOut)
		}
	}
}
