package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/test/bed"
)

// machine is a service manager of its own, with our units and programs where
// they are installed, and Ceph's configuration readable for the user ceph.
type machine struct{ pid int }

// boot makes a machine of the namespaces it is run in: systemd knows the units of
// this test only, and nothing is mounted or started that they do not ask for.
const boot = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
over() {
	mkdir -p $1 /run/over/$2/up /run/over/$2/work
	mount -t overlay overlay -o lowerdir=$1,upperdir=/run/over/$2/up,workdir=/run/over/$2/work $1
}
over /usr/bin bin
over /usr/libexec libexec
over /etc/default default
mkdir -p /run/none /run/systemd /usr/libexec/cephmirror
cp $BIN/cephmirror /usr/bin
cp $BIN/cephmirror-* /usr/libexec/cephmirror
cp $FILES/default/* /etc/default
mount --bind $FILES/ceph /etc/ceph
mkdir -p /var/log/ceph
mount -t tmpfs tmpfs /var/log/ceph
chown ceph:ceph /var/log/ceph
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
systemd-tmpfiles --create /usr/lib/tmpfiles.d/ceph.conf
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	SYSTEMD_UNIT_PATH=$FILES/units SYSTEMD_GENERATOR_PATH=/run/none \
	/usr/lib/systemd/systemd --system --unit=idle.target --log-target=console --show-status=0
`

// newMachine starts a machine. cephmirror@USER.service mirrors file systems there.
func (e *env) newMachine(t *testing.T, user string) *machine {
	t.Helper()
	if _, err := os.Stat("/usr/lib/systemd/systemd"); err != nil {
		t.Skipf("there is no systemd: %v", err)
	}
	try := exec.Command("unshare", "--mount", "--cgroup", "--propagation", "private", "mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
	if out, err := try.CombinedOutput(); err != nil {
		t.Skipf("there are no control groups to be had: %v: %s", err, out)
	}
	files := t.TempDir()
	if err := os.Chmod(filepath.Dir(files), 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(path, text string) {
		t.Helper()
		path = filepath.Join(files, path)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	units, err := filepath.Glob(filepath.Join(bed.FindCheckout(wd), "systemd", "*"))
	if err != nil || len(units) == 0 {
		t.Fatal(units, err)
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		put("units/"+filepath.Base(unit), string(text))
		for line := range strings.Lines(string(text)) {
			if alias, ok := strings.CutPrefix(line, "Alias="); ok {
				link := filepath.Join(files, "units", strings.TrimSpace(alias))
				if err := os.Symlink(filepath.Base(unit), link); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, target := range []string{"idle", "sysinit", "basic", "shutdown", "multi-user", "local-fs", "network-online", "time-sync", "ceph"} {
		put("units/"+target+".target", "[Unit]\nDescription="+target+"\n")
	}
	// No minute for a daemon that does not answer.
	put("units/cephmirror-cephfs@.service.d/test.conf", "[Service]\nWatchdogSec=6\n")
	put("units/service.d/output.conf", "[Service]\nStandardOutput=append:/run/output\nStandardError=append:/run/output\n")
	put("default/ceph", "CLUSTER=a\n")
	put("default/cephmirror", "")
	put("default/cephmirror-"+user, "DAEMON=cephfs-mirror\n")
	places := strings.NewReplacer(e.a.RunDir()+"/", "/run/ceph/", e.a.Dir()+"/log/", "/var/log/ceph/", e.bed.Dir()+"/etc-ceph/", "/etc/ceph/")
	conf, err := filepath.Glob("/etc/ceph/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range conf {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		put("ceph/"+filepath.Base(path), places.Replace(string(text)))
	}

	cmd := exec.Command("/bin/bash", "-c", boot)
	cmd.Env = append(os.Environ(), "BIN="+e.bin, "FILES="+files)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL, // with it all the others of its namespace end
	}
	log, err := os.Create(filepath.Join(files, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &machine{cmd.Process.Pid}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := m.run("sh", "-c", "tail -n 30 /run/output /var/log/ceph/*; ps -ef")
			t.Logf("the machine:\n%s\n%s", tail(log.Name(), 4000), logs)
		}
		cmd.Process.Kill()
		cmd.Wait() // killed
		log.Close()
	})
	within(t, 30*time.Second, "the service manager", func() error {
		if out, err := m.run("systemctl", "is-active", "idle.target"); err != nil {
			return fmt.Errorf("%w: %s, %s", err, out, tail(log.Name(), 1000))
		}
		return nil
	})
	return m
}

// run runs a command on the machine.
func (m *machine) run(words ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(m.pid), "--mount", "--pid", "--ipc", "--cgroup", "--"}, words...)...).CombinedOutput()
	return string(out), err
}

func (m *machine) systemctl(t *testing.T, words ...string) {
	t.Helper()
	if out, err := m.run(append([]string{"systemctl"}, words...)...); err != nil {
		status, _ := m.run("systemctl", "status", "--no-pager", words[len(words)-1])
		t.Fatalf("systemctl %q: %v: %s\n%s", words, err, out, status)
	}
}

// property returns a property of a unit.
func (m *machine) property(t *testing.T, unit, name string) string {
	t.Helper()
	out, err := m.run("systemctl", "show", "--property", name, "--value", unit)
	if err != nil {
		t.Fatal(err, out)
	}
	return strings.TrimSpace(out)
}

// TestUnits runs the units under a service manager of their own, as stock ones
// are named: ready when it serves, restarted when it is killed or hangs, and
// ended with all it started.
func TestUnits(t *testing.T) {
	e := need(t)
	once(t)
	e.clear(t)
	e.enable(t)
	e.addPeer(t, "remote", fsName)
	t.Cleanup(func() { e.clear(t) })
	m := e.tracked(t)
	if err := e.a.AddMirrorUser(e.ctx(t), "unit"); err != nil {
		t.Fatal(err)
	}
	if err := e.a.AddRBDMirrorUser(e.ctx(t), "rbdunit"); err != nil {
		t.Fatal(err)
	}
	s := e.newMachine(t, "unit")
	const unit = "cephfs-mirror@unit.service"
	signal := func(sig string) {
		t.Helper()
		if out, err := s.run("kill", "-"+sig, s.property(t, unit, "MainPID")); err != nil {
			t.Fatal(err, out)
		}
	}
	arrives := func(name string) {
		t.Helper()
		m.Write("file", []byte(name))
		m.Snap(name)
		e.waitLong(t, 60*time.Second, m, name)
		e.same(t, m, name)
	}
	is := func(unit, want string) {
		t.Helper()
		within(t, 30*time.Second, unit+" to be "+want, func() error {
			if got := s.property(t, unit, "ActiveState"); got != want {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
	s.systemctl(t, "start", unit)
	is(unit, "active")
	if out, err := s.run("ceph", "--admin-daemon", "/run/ceph/a-client.unit.asok", "fs", "mirror", "status", fsName+"@1"); err != nil {
		t.Errorf("its socket: %v: %s", err, out)
	}
	if out, err := s.run("stat", "-c", "%U:%G %a", "/run/ceph", "/run/ceph/a-client.unit.asok", "/var/log/ceph/client.unit.log"); err != nil || strings.Count(out, "ceph:ceph") != 3 || !strings.HasPrefix(out, "ceph:ceph 770\n") {
		t.Errorf("its files: %v: %s", err, out)
	}
	arrives("s1")

	restarts := func() string { return s.property(t, unit, "NRestarts") }
	for i, sig := range []string{"KILL", "STOP"} {
		signal(sig)
		within(t, 60*time.Second, "a new start after SIG"+sig, func() error {
			if n := restarts(); n != strconv.Itoa(i+1) {
				return fmt.Errorf("there were %s", n)
			}
			return nil
		})
		is(unit, "active")
		arrives("after-" + sig)
	}
	s.systemctl(t, "reload", unit)
	arrives("reloaded")

	s.systemctl(t, "stop", unit)
	if state, result := s.property(t, unit, "ActiveState"), s.property(t, unit, "Result"); state != "inactive" || result != "success" {
		t.Errorf("stopped it is %s, %s", state, result)
	}

	// The others, all together with the target.
	const images, either = "ceph-rbd-mirror@rbdunit.service", "cephmirror@unit.service"
	s.systemctl(t, "start", "cephmirror.target")
	s.systemctl(t, "start", images)
	s.systemctl(t, "start", either)
	is(images, "active")
	is(either, "active")
	if out, err := s.run("ceph", "--admin-daemon", "/run/ceph/a-client.rbdunit.asok", "rbd", "mirror", "status"); err != nil {
		t.Errorf("its socket: %v: %s", err, out)
	}
	arrives("either")
	s.systemctl(t, "stop", "cephmirror.target")
	is(images, "inactive")
	is(either, "inactive")
	if out, err := s.run("pgrep", "-a", "cephmirror"); err == nil {
		t.Errorf("left: %s", out)
	}
}
