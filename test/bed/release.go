package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Release is one Ceph release that the bed can run.
type Release struct {
	Name  string // as the code base calls it, also the build tag: "reef", "tentacle"
	Major int    // first number of `ceph-mon --version`
	Suite string // Debian suite whose packages are of this release

	aptOptions []string
}

// Releases returns the known releases, oldest first.
func Releases() []Release {
	return []Release{
		{Name: "reef", Major: 18, Suite: "trixie"},
		// Debian testing is installed from mirrors and proxies that may lag
		// behind its short-lived release file.
		{Name: "tentacle", Major: 20, Suite: "forky", aptOptions: []string{`Acquire::Check-Valid-Until "false"`}},
	}
}

// DefaultRelease is used when neither a flag nor the environment names one.
const DefaultRelease = "tentacle"

// ParseRelease returns the release called name; empty means the one of
// CEPHMIRROR_RELEASE, or DefaultRelease.
func ParseRelease(name string) (Release, error) {
	if name == "" {
		name = os.Getenv(envRelease)
	}
	if name == "" {
		name = DefaultRelease
	}
	var known []string
	for _, r := range Releases() {
		if r.Name == name {
			return r, nil
		}
		known = append(known, r.Name)
	}
	return Release{}, fmt.Errorf("unknown Ceph release %q (known: %s)", name, strings.Join(known, ", "))
}

// packages is what a root file system holds: the daemons, the stock mirror
// daemons to compare with, and what cgo needs to build against the libraries.
func packages() []string {
	return []string{
		"ceph-mon", "ceph-osd", "ceph-mds", "ceph-mgr", "ceph-mgr-modules-core",
		"ceph-common", "rbd-mirror", "cephfs-mirror",
		"librados-dev", "libradospp-dev", "librbd-dev", "libcephfs-dev",
		"gcc", "g++", "libc6-dev", "make",
		"iproute2", "procps", "jq",
		"python3-rados", "python3-rbd", "python3-cephfs",
	}
}

var versionPattern = regexp.MustCompile(`ceph version (\d+)\.`)

// parseMajor takes the major version from the output of `ceph-mon --version`.
func parseMajor(out string) (int, bool) {
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n, err == nil
}

// nativeMajor returns the major version of the machine's own Ceph, or 0 when
// it has none or only a part.
func nativeMajor(ctx context.Context) int {
	for _, p := range []string{"ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "cephfs-mirror", "gcc"} {
		if _, err := exec.LookPath(p); err != nil {
			return 0
		}
	}
	for _, p := range []string{"cephfs/libcephfs.h", "rados/librados.hpp"} {
		if _, err := os.Stat("/usr/include/" + p); err != nil {
			return 0
		}
	}
	out, err := exec.CommandContext(ctx, "ceph-mon", "--version").Output()
	if err != nil {
		return 0
	}
	n, _ := parseMajor(string(out))
	return n
}

// Native says whether the machine's own Ceph is of this release.
func (r Release) Native(ctx context.Context) bool { return nativeMajor(ctx) == r.Major }

// CacheDir is where root file systems and build caches are kept, outside any
// checkout so that a fresh clone finds them.
func CacheDir() (string, error) {
	if d := os.Getenv(envCache); d != "" {
		return filepath.Join(d, "cephmirror"), nil
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory (set %s): %w", envCache, err)
	}
	return filepath.Join(d, "cephmirror"), nil
}

// Rootfs returns the path of the release's root file system, and whether it
// is there.
func (r Release) Rootfs() (path string, ok bool, err error) {
	cache, err := CacheDir()
	if err != nil {
		return "", false, err
	}
	path = filepath.Join(cache, r.Name)
	_, err = os.Stat(filepath.Join(path, "usr/bin/ceph-mon"))
	if errors.Is(err, os.ErrNotExist) {
		return path, false, nil
	}
	if err != nil {
		return path, false, err
	}
	// It is not replaced by itself: clusters may be running from it.
	if _, err := os.Stat(filepath.Join(path, "usr/include/rados/librados.hpp")); errors.Is(err, os.ErrNotExist) {
		return path, false, fmt.Errorf("the root file system %s was made before libradospp-dev was needed: "+
			"take all clusters of it down and remove it, then it is made anew", path)
	}
	return path, true, nil
}

// MakeRootfs makes the release's root file system with mmdebstrap unless it is
// there. It is built beside its final place and renamed when it is whole, so
// that an interrupted run leaves nothing that looks finished.
func (r Release) MakeRootfs(ctx context.Context, logf func(string, ...any)) error {
	path, ok, err := r.Rootfs()
	if err != nil || ok {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the cache directory: %w", err)
	}
	lock, err := lockFile(ctx, path+".lock", true)
	if err != nil {
		return err
	}
	defer lock.remove()
	if _, ok, err = r.Rootfs(); err != nil || ok {
		return err // someone else made it while we waited
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return fmt.Errorf("make the root file system of %s: mmdebstrap is not installed (apt-get install mmdebstrap)", r.Name)
	}
	part := path + ".part"
	if err := removeTree(part); err != nil {
		return fmt.Errorf("remove an unfinished root file system: %w", err)
	}
	if err := needSpace(filepath.Dir(path), 3<<30, "the root file system of "+r.Name); err != nil {
		return err
	}
	args := []string{"--variant=minbase", "--include=" + strings.Join(packages(), ",")}
	for _, o := range r.aptOptions {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, r.Suite, part)
	logf("making the root file system of %s (Debian %s) in %s; this takes a minute or two", r.Name, r.Suite, path)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// It must not go on writing when we are gone: the next run removes what it
	// left. The parent-death signal is bound to this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		if rmErr := removeTree(part); rmErr != nil {
			logf("remove %s: %v", part, rmErr)
		}
		return fmt.Errorf("make the root file system of %s: mmdebstrap: %w\n%s", r.Name, err, lastLines(out.String(), 15))
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("put the root file system in place: %w", err)
	}
	return nil
}
