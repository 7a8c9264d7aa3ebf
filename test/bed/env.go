package bed

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Environment variables. The first three are settings, the others are the
// bed's own.
const (
	envState   = "CEPHMIRROR_BED"     // state directory
	envRelease = "CEPHMIRROR_RELEASE" // reef or tentacle
	envCache   = "CEPHMIRROR_CACHE"   // where root file systems are kept
	envShared  = "CEPHMIRROR_SHARED"  // set by who takes all clusters down in the end

	envInside = "CEPHMIRROR_BED_INSIDE" // set inside the environment: its release
	envStage  = "CEPHMIRROR_BED_STAGE"  // what a fresh process has to mount
	envMark   = "CEPHMIRROR_BED_MARK"   // whom a process belongs to
)

const (
	portsDir  = "/var/tmp/cmbed-ports"
	stateBase = "/var/tmp/cmbed-"
	etcCeph   = "etc-ceph" // below the state directory; is /etc/ceph inside
	sysPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// InsideRelease returns the release of the environment that this process runs
// in, or "" outside.
func InsideRelease() string { return os.Getenv(envInside) }

// Shared says whether all clusters are taken down by whoever entered the
// environment: packages of tests can leave theirs to the next.
func Shared() bool { return InsideRelease() != "" && os.Getenv(envShared) != "" }

// FindCheckout returns the root of the checkout that holds dir, or "".
func FindCheckout(dir string) string {
	for d := dir; ; d = filepath.Dir(d) {
		data, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module cephmirror\n") {
			return d
		}
		if d == filepath.Dir(d) {
			return ""
		}
	}
}

// StateDir returns the bed's state directory: CEPHMIRROR_BED, else a short
// path (it holds sockets) that differs between checkouts and releases.
func StateDir(checkout string, r Release) (string, error) {
	if d := os.Getenv(envState); d != "" {
		d, err := filepath.Abs(d)
		if err != nil {
			return "", fmt.Errorf("find the state directory: %w", err)
		}
		if len(d) > 50 {
			return "", fmt.Errorf("%s=%s is too long for the sockets below it (at most 50 bytes)", envState, d)
		}
		return d, nil
	}
	if checkout == "" {
		return "", fmt.Errorf("not in a checkout of cephmirror: set %s to a short path for the bed's state", envState)
	}
	sum := sha256.Sum256([]byte(checkout + "\x00" + r.Name))
	return fmt.Sprintf("%s%x", stateBase, sum[:4]), nil
}

// ForShared is what is added to the environment by those who take all clusters
// down afterwards.
func ForShared() string { return envShared + "=1" }

// EnterOptions says how to run a command inside a release's environment.
type EnterOptions struct {
	Release  Release
	State    string   // state directory
	Checkout string   // made visible inside, may be empty
	Binds    []string // further paths to make visible inside
	Env      []string // added to the environment
	Dir      string   // working directory; the current one if visible, else /
	Exec     []string // command; nil continues in the calling program's main
	Logf     func(string, ...any)
}

// stage is handed to the fresh process that sets up its own mounts.
type stage struct {
	Rootfs string   `json:"rootfs,omitempty"` // empty: the machine itself
	State  string   `json:"state"`
	Binds  []string `json:"binds"`
	Dir    string   `json:"dir"`
	Exec   []string `json:"exec,omitempty"`
	Env    []string `json:"env"`
}

// Enter runs a command inside the environment of a release: a private mount
// namespace in which the release's Ceph is installed and /etc/ceph is the
// bed's own. The machine itself serves when its Ceph is of that release, else
// a cached root file system, which is made when it is missing. The mounts
// vanish with the last process inside. It returns the command's exit status.
func Enter(ctx context.Context, o EnterOptions) (int, error) {
	st := stage{State: o.State, Exec: o.Exec}
	native := o.Release.Native(ctx)
	if !native {
		if err := o.Release.MakeRootfs(ctx, o.Logf); err != nil {
			return 0, err
		}
		var err error
		if st.Rootfs, _, err = o.Release.Rootfs(); err != nil {
			return 0, err
		}
	}
	use, err := useState(ctx, o.State)
	if err != nil {
		return 0, err
	}
	defer use.done()

	cache, err := CacheDir()
	if err != nil {
		return 0, err
	}
	gocache := filepath.Join(cache, "gocache-"+o.Release.Name)
	lintcache := filepath.Join(cache, "staticcheck-"+o.Release.Name)
	for _, d := range []string{gocache, lintcache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return 0, fmt.Errorf("make the build cache: %w", err)
		}
	}
	goroot, gomodcache := goEnv(ctx)
	st.Binds = append(st.Binds, "/var/tmp", o.State, gocache, lintcache)
	for _, p := range []string{o.Checkout, goroot, gomodcache} {
		if p != "" {
			st.Binds = append(st.Binds, p)
		}
	}
	// Distributions' Go keeps parts of its root behind symbolic links.
	for _, sub := range []string{"src", "pkg", "lib", "misc"} {
		if p, err := filepath.EvalSymlinks(filepath.Join(goroot, sub)); goroot != "" && err == nil {
			st.Binds = append(st.Binds, p)
		}
	}
	for _, p := range o.Binds {
		abs, err := filepath.Abs(p)
		if err != nil {
			return 0, fmt.Errorf("bind %s: %w", p, err)
		}
		st.Binds = append(st.Binds, abs)
	}
	st.Binds = topmost(st.Binds)

	st.Dir = o.Dir
	if st.Dir == "" {
		if st.Dir, err = os.Getwd(); err != nil {
			st.Dir = "/"
		}
	}
	st.Env = insideEnv(os.Environ(), native, append([]string{
		envInside + "=" + o.Release.Name,
		envRelease + "=" + o.Release.Name,
		envState + "=" + o.State,
		"HOME=" + filepath.Join(o.State, "home"),
		"GOROOT=" + goroot, "GOMODCACHE=" + gomodcache, "GOCACHE=" + gocache,
		"STATICCHECK_CACHE=" + lintcache, "GOPROXY=off", "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=1", "GOENV=off",
	}, o.Env...), goroot)

	js, err := json.Marshal(st)
	if err != nil {
		return 0, fmt.Errorf("encode the mounts: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envStage+"="+string(js))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	if uid := os.Geteuid(); uid != 0 {
		// Without privileges a user namespace of our own makes us root enough.
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	// The parent-death signal is bound to the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a process in its own mount namespace: %w", err)
	}
	stop := forward(cmd.Process)
	err = cmd.Wait()
	stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("wait for the process inside: %w", err)
	}
	return 0, nil
}

// forward passes signals that ask us to end on to p until stop is called. An
// interrupt at the terminal reaches p by itself.
func forward(p *os.Process) (stop func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGHUP)
	if tty, err := os.Open("/dev/tty"); err == nil {
		tty.Close()
	} else {
		signal.Notify(ch, syscall.SIGINT)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s := <-ch:
				p.Signal(s) // fails only when p is gone, which Wait reports
			case <-quit:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(quit)
		<-done
	}
}

// goEnv returns where Go and its modules are; empty without Go.
func goEnv(ctx context.Context) (goroot, gomodcache string) {
	out, err := exec.CommandContext(ctx, GoTool(), "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		return "", ""
	}
	f := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(f) != 2 {
		return "", ""
	}
	// A cache that does not exist yet is made, or it could not be bound.
	if err := os.MkdirAll(f[1], 0o755); err != nil {
		return f[0], ""
	}
	return f[0], f[1]
}

// GoTool returns the go command, also where the usual place is not on PATH.
func GoTool() string {
	if p, err := exec.LookPath("go"); err == nil {
		return p
	}
	return "/usr/local/go/bin/go"
}

// insideEnv makes the environment for inside from the one outside: nothing
// that points at another Ceph, Python or Go set-up gets in.
func insideEnv(outside []string, native bool, add []string, goroot string) []string {
	path := sysPath
	if native {
		path = os.Getenv("PATH")
	}
	if goroot != "" {
		path = filepath.Join(goroot, "bin") + ":" + path
	}
	add = append([]string{"PATH=" + path, "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"}, add...)
	replaced := map[string]bool{envStage: true, "TMPDIR": true, "LC_ALL": true, "GOBIN": true, "GOPATH": true}
	for _, kv := range add {
		k, _, _ := strings.Cut(kv, "=")
		replaced[k] = true
	}
	var env []string
	for _, kv := range outside {
		k, _, _ := strings.Cut(kv, "=")
		if replaced[k] || strings.HasPrefix(k, "CEPH_") || strings.HasPrefix(k, "PYTHON") || strings.HasPrefix(k, "LD_") {
			continue
		}
		env = append(env, kv)
	}
	return append(env, add...)
}

// topmost drops paths that lie below others, and sorts.
func topmost(paths []string) []string {
	paths = slices.Clone(paths)
	for i, p := range paths {
		paths[i] = filepath.Clean(p)
	}
	slices.Sort(paths)
	var top []string
	for _, p := range paths {
		if !slices.ContainsFunc(top, func(t string) bool { return p == t || strings.HasPrefix(p, strings.TrimSuffix(t, "/")+"/") }) {
			top = append(top, p)
		}
	}
	return top
}

// stateUse keeps a state directory from being removed while a process inside
// has it mounted.
type stateUse struct {
	dir  string
	lock *fileLock
}

func useLockPath(state string) string { return state + ".use" }

// useState makes the state directory and holds it.
func useState(ctx context.Context, dir string) (*stateUse, error) {
	l, err := lockFile(ctx, useLockPath(dir), false)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{dir, filepath.Join(dir, etcCeph), filepath.Join(dir, "home"), filepath.Join(dir, "root")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			l.release()
			return nil, fmt.Errorf("make the state directory: %w", err)
		}
	}
	return &stateUse{dir: dir, lock: l}, nil
}

// done lets go, and the last to do so removes a state directory without
// clusters.
func (u *stateUse) done() {
	u.lock.release()
	sweepState(u.dir)
}

// sweepState removes the state directory if nobody is inside and no cluster is
// left in it.
func sweepState(dir string) {
	if _, err := os.Stat(dir); err != nil {
		if _, err := os.Stat(useLockPath(dir)); err != nil {
			return
		}
	}
	l, err := tryLock(useLockPath(dir), true)
	if err != nil {
		return
	}
	defer l.remove()
	if names, err := clusterNames(dir); err != nil || len(names) > 0 {
		return
	}
	// What is left (home, links) belongs to nobody; failing leaves it to the
	// next one.
	_ = removeTree(dir)
}

// Stage must be called first thing in main of a program that uses Enter. In
// the process that Enter starts it sets up the mounts and, if a command was
// given, becomes it; otherwise, and in any other process, it returns.
func Stage() error {
	js := os.Getenv(envStage)
	if js == "" {
		return nil
	}
	var st stage
	if err := json.Unmarshal([]byte(js), &st); err != nil {
		return fmt.Errorf("decode the mounts: %w", err)
	}
	if err := st.mount(); err != nil {
		return err
	}
	if err := os.Chdir(st.Dir); err != nil {
		if err := os.Chdir("/"); err != nil {
			return fmt.Errorf("change to /: %w", err)
		}
	}
	os.Clearenv()
	for _, kv := range st.Env {
		k, v, _ := strings.Cut(kv, "=")
		if err := os.Setenv(k, v); err != nil {
			return fmt.Errorf("set environment: %w", err)
		}
	}
	if len(st.Exec) == 0 {
		return nil
	}
	path, err := exec.LookPath(st.Exec[0])
	if err != nil {
		return fmt.Errorf("run %s inside: %w", st.Exec[0], err)
	}
	if err := syscall.Exec(path, st.Exec, os.Environ()); err != nil {
		return fmt.Errorf("run %s inside: %w", path, err)
	}
	return nil
}

func (st stage) mount() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	etc := filepath.Join(st.State, etcCeph)
	if st.Rootfs == "" {
		if err := os.MkdirAll("/etc/ceph", 0o755); err != nil {
			return fmt.Errorf("make /etc/ceph: %w", err)
		}
		return bind(etc, "/etc/ceph", false)
	}

	// The new root is a small tmpfs that borrows /usr and /etc from the root
	// file system, read-only, so that nothing done inside stays there.
	root := filepath.Join(st.State, "root")
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the new root: %w", err)
	}
	entries, err := os.ReadDir(st.Rootfs)
	if err != nil {
		return fmt.Errorf("read the root file system: %w", err)
	}
	for _, e := range entries {
		at := filepath.Join(root, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			to, err := os.Readlink(filepath.Join(st.Rootfs, e.Name()))
			if err == nil {
				err = os.Symlink(to, at)
			}
			if err != nil {
				return fmt.Errorf("link in the new root: %w", err)
			}
		case e.IsDir():
			if err := os.Mkdir(at, 0o755); err != nil {
				return fmt.Errorf("make directory in the new root: %w", err)
			}
		}
	}
	for _, d := range []string{"tmp", "run", "run/lock", "var/tmp", "var/lib/ceph", "var/log/ceph", "var/cache"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return fmt.Errorf("make directory in the new root: %w", err)
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(root, d), 0o777|os.ModeSticky); err != nil {
			return fmt.Errorf("make directory in the new root: %w", err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		return fmt.Errorf("link in the new root: %w", err)
	}
	// Mount points below the read-only parts can only be made in the root
	// file system itself; empty directories do no harm there.
	for _, p := range st.Binds {
		if below(p, "/usr") || below(p, "/etc") {
			if err := mountPoint(p, filepath.Join(st.Rootfs, p)); err != nil {
				return err
			}
		}
	}
	for _, d := range []string{"usr", "etc"} {
		if err := bind(filepath.Join(st.Rootfs, d), filepath.Join(root, d), true); err != nil {
			return err
		}
	}
	for _, d := range []string{"dev", "proc", "sys"} {
		if err := bind("/"+d, filepath.Join(root, d), false); err != nil {
			return err
		}
	}
	if err := bind(etc, filepath.Join(root, "etc/ceph"), false); err != nil {
		return err
	}
	for _, p := range st.Binds {
		if err := mountPoint(p, filepath.Join(root, p)); err != nil {
			return err
		}
		if err := bind(p, filepath.Join(root, p), false); err != nil {
			return err
		}
	}
	return pivot(root)
}

// pivot makes dir the root and lets go of the old one, so that a long-running
// daemon does not keep the machine's other file systems busy.
func pivot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("change to the new root: %w", err)
	}
	if err := syscall.PivotRoot(".", "."); err == nil {
		if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("let go of the old root: %w", err)
		}
		return os.Chdir("/")
	}
	// An initial ram disk cannot be pivoted away from.
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return os.Chdir("/")
}

func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// mountPoint makes at fit to be covered by a bind mount of src.
func mountPoint(src, at string) error {
	fi, err := os.Stat(src)
	if err != nil {
		return fmt.Errorf("make visible inside: %w", err)
	}
	if _, err := os.Stat(at); err == nil {
		return nil
	}
	if fi.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
		err = os.WriteFile(at, nil, 0o644)
	}
	if err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	return nil
}

func bind(src, at string, readOnly bool) error {
	if err := syscall.Mount(src, at, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", src, at, err)
	}
	if readOnly {
		if err := syscall.Mount("", at, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", at, err)
		}
	}
	return nil
}
