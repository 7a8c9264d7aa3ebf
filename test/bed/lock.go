package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// pollInterval is how often conditions without a notification are looked at.
const pollInterval = 50 * time.Millisecond

// fileLock is an advisory lock on a file that the kernel drops with the
// process, however that ends.
type fileLock struct{ f *os.File }

var errLocked = errors.New("locked by another process")

// tryLock takes the lock or returns errLocked.
func tryLock(path string, exclusive bool) (*fileLock, error) {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	for {
		// Reading is enough to lock, and all that is allowed on another user's
		// file in a shared directory.
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
		}
		if err != nil {
			return nil, fmt.Errorf("open lock file: %w", err)
		}
		if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// A holder may have removed the file before it let go: a lock on a
		// file that nobody else can open guards nothing.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("stat lock file: %w", err)
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
			return &fileLock{f: f}, nil
		}
		f.Close()
	}
}

// lockFile waits for the lock until ctx ends.
func lockFile(ctx context.Context, path string, exclusive bool) (*fileLock, error) {
	for {
		l, err := tryLock(path, exclusive)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for lock %s: %w", path, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

func (l *fileLock) release() { l.f.Close() }

// remove lets go of the lock and leaves no file behind.
func (l *fileLock) remove() {
	os.Remove(l.f.Name())
	l.f.Close()
}
