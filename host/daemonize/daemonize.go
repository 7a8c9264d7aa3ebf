// Package daemonize turns the process into a daemon as Ceph's are: in the
// background, with a pid file, as another user.
package daemonize

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// envReady tells a daemon the descriptor on which its parent waits for word.
const envReady = "CEPHMIRROR_READY_FD"

// readyWord is what the daemon writes there once it serves.
const readyWord = "ready\n"

// Parent starts this program again as a daemon with the same arguments and
// waits until it serves or ends. It returns the exit code for the parent; the
// daemon has printed the reason of a failure to standard error itself.
func Parent() (int, error) {
	exe, err := executable()
	if err != nil {
		return 1, err
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		return 1, fmt.Errorf("making a pipe: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(exe)
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), envReady+"=3")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr // its own until it serves
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return 1, fmt.Errorf("starting the daemon: %w", err)
	}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	word := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(ready, 64)).ReadString('\n')
		word <- line
	}()
	for {
		select {
		case <-signals:
			_ = cmd.Process.Signal(syscall.SIGTERM)
		case line := <-word:
			if line == readyWord {
				return 0, cmd.Process.Release()
			}
			err := cmd.Wait()
			var exit *exec.ExitError
			switch {
			case errors.As(err, &exit) && exit.Exited():
				return exit.ExitCode(), nil
			case err != nil:
				return 1, fmt.Errorf("the daemon ended before it was ready: %w", err)
			}
			return 1, errors.New("the daemon ended before it was ready")
		}
	}
}

// executable prefers the name the program was called by, so that the daemon is
// found under it in process lists.
func executable() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding the own executable: %w", err)
	}
	called, err := exec.LookPath(os.Args[0])
	if err != nil {
		return self, nil
	}
	a, errA := os.Stat(called)
	b, errB := os.Stat(self)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return self, nil
	}
	return called, nil
}

// Child is the daemon's side of Parent.
type Child struct{ ready *os.File }

// FromEnvironment returns the daemon's side if this process was started by
// Parent, and nil if not.
func FromEnvironment() (*Child, error) {
	text, ok := os.LookupEnv(envReady)
	if !ok {
		return nil, nil
	}
	if err := os.Unsetenv(envReady); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q is not a file descriptor", envReady, text)
	}
	unix.CloseOnExec(fd)
	return &Child{ready: os.NewFile(uintptr(fd), "ready")}, nil
}

// Ready tells the parent that the daemon serves, and lets go of its directory
// and of standard error.
func (c *Child) Ready() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), 2, 0); err != nil {
		return fmt.Errorf("letting go of standard error: %w", err)
	}
	if _, err := c.ready.WriteString(readyWord); err != nil {
		return fmt.Errorf("telling the parent: %w", err)
	}
	return c.ready.Close()
}

// PIDFile is a pid file that this process holds.
type PIDFile struct {
	path string
	file *os.File
}

// WritePIDFile writes the process id to path and locks the file, as Ceph's
// daemons do: a second daemon with the same file is refused.
func WritePIDFile(path string) (*PIDFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the pid file: %w", err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			held, _ := io.ReadAll(io.LimitReader(f, 32))
			return nil, fmt.Errorf("pid file %s is held by process %s: already running", path, strings.TrimSpace(string(held)))
		}
		return nil, fmt.Errorf("locking pid file %s: %w", path, err)
	}
	if err := f.Truncate(0); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("writing pid file %s: %w", path, err)
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("writing pid file %s: %w", path, err)
	}
	return &PIDFile{path: path, file: f}, nil
}

// Remove removes the file, unless it was replaced by somebody else's.
func (p *PIDFile) Remove() error {
	defer p.file.Close()
	ours, err := p.file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(p.path); err != nil || !os.SameFile(ours, now) {
		return nil
	}
	return os.Remove(p.path)
}

// SwitchUser gives up root for a user and a group, by name or number; either
// may be empty.
func SwitchUser(userName, groupName string) error {
	if userName == "" && groupName == "" {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("--setuser and --setgroup need root")
	}
	uid, gid := -1, -1
	var groups []int
	if userName != "" {
		u, err := user.Lookup(userName)
		if err != nil {
			if u, err = user.LookupId(userName); err != nil {
				return fmt.Errorf("--setuser %s: %w", userName, err)
			}
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		ids, err := u.GroupIds()
		if err != nil {
			return fmt.Errorf("groups of %s: %w", userName, err)
		}
		for _, id := range ids {
			n, _ := strconv.Atoi(id)
			groups = append(groups, n)
		}
	}
	if groupName != "" {
		g, err := user.LookupGroup(groupName)
		if err != nil {
			if g, err = user.LookupGroupId(groupName); err != nil {
				return fmt.Errorf("--setgroup %s: %w", groupName, err)
			}
		}
		gid, _ = strconv.Atoi(g.Gid)
	}
	if uid >= 0 {
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("setting the groups of %s: %w", userName, err)
		}
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("switching to group %d: %w", gid, err)
	}
	if uid >= 0 {
		if err := syscall.Setresuid(uid, uid, uid); err != nil {
			return fmt.Errorf("switching to user %s: %w", userName, err)
		}
	}
	return nil
}
