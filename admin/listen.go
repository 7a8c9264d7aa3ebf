package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// ErrInUse is wrapped by Listen when a living daemon answers on the path.
var ErrInUse = errors.New("in use by another daemon")

// maxPath is what sockaddr_un holds beside the terminating NUL.
const maxPath = 107

// probeTime is how long a daemon may take to show that it lives.
const probeTime = 2 * time.Second

// ParseMode returns the mode of a socket file that the octal digits of text
// ask for; 0, which leaves it to the umask, for an empty one.
func ParseMode(text string) (fs.FileMode, error) {
	if text == "" {
		return 0, nil
	}
	bits, err := strconv.ParseUint(text, 8, 32)
	if err != nil || bits > uint64(fs.ModePerm) {
		return 0, fmt.Errorf("%q is no octal mode of a file: %w", text, syscall.EINVAL)
	}
	return fs.ModeSocket | fs.FileMode(bits), nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("no admin socket path")
	case path[0] == '@':
		return fmt.Errorf("admin socket %q: %w", path, syscall.EINVAL) // would be an abstract name
	case len(path) > maxPath:
		return fmt.Errorf("admin socket %q: path of %d bytes, the limit is %d: %w",
			path, len(path), maxPath, syscall.ENAMETOOLONG)
	}
	return nil
}

// bind listens on path and returns the identity of the new socket file. A
// socket nobody answers on is left over from a crash and replaced.
func bind(ctx context.Context, path string, mode fs.FileMode) (*net.UnixListener, fs.FileInfo, error) {
	if err := checkPath(path); err != nil {
		return nil, nil, err
	}
	// Two daemons that find the same leftover must not remove each other's
	// fresh socket.
	unlock := lockDir(ctx, filepath.Dir(path))
	defer unlock()

	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if mode == 0 {
			return nil
		}
		// The file gets the mode of the unbound socket, less the umask: so it
		// is never more open than asked for, not even for a moment.
		var err error
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), uint32(mode.Perm())) }); e != nil {
			return e
		}
		return err
	}}
	for attempt := 1; ; attempt++ {
		l, err := lc.Listen(ctx, "unix", path)
		if err == nil {
			ul := l.(*net.UnixListener)
			ul.SetUnlinkOnClose(false)
			id, err := own(path, mode)
			if err != nil {
				ul.Close()
				return nil, nil, fmt.Errorf("admin socket %s: %w", path, err)
			}
			return ul, id, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || attempt == 3 {
			return nil, nil, fmt.Errorf("admin socket: %w", err)
		}
		if err := clearStale(ctx, path); err != nil {
			return nil, nil, fmt.Errorf("admin socket %s: %w", path, err)
		}
	}
}

func own(path string, mode fs.FileMode) (fs.FileInfo, error) {
	if mode != 0 {
		if err := os.Chmod(path, mode.Perm()); err != nil {
			return nil, err
		}
	}
	return os.Lstat(path)
}

// clearStale removes a socket that nobody answers on.
func clearStale(ctx context.Context, path string) error {
	before, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if before.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("exists and is no socket: %w", syscall.EEXIST)
	}
	probe, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if _, err := exchange(probe, path, []byte("{\"prefix\":\"0\"}\x00")); err == nil {
		return fmt.Errorf("%w: %w", ErrInUse, syscall.EADDRINUSE)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return removeOwn(path, before)
}

// removeOwn removes path if it still is the file that id names.
func removeOwn(path string, id fs.FileInfo) error {
	now, err := os.Lstat(path)
	if err == nil && os.SameFile(now, id) {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lockDir takes an advisory lock on a directory for as long as another start
// may need it, and goes on without when it cannot have it: it guards against an
// unlikely race and must not keep a daemon from starting.
func lockDir(ctx context.Context, dir string) (unlock func()) {
	f, err := os.Open(dir)
	if err != nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*probeTime)
	defer cancel()
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return func() { f.Close() }
		case <-time.After(20 * time.Millisecond):
		}
	}
	return func() { f.Close() } // closing gives the lock up
}
