package fsmirror

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
)

const (
	heartbeatInterval = 5 * time.Second
	// stallLimit is how long a file system may leave a request unanswered
	// before the mount is given up.
	stallLimit = 30 * time.Second
)

// pulse asks the MDS for a sign of life.
func pulse(m *ceph.Mount) func() error {
	return func() error {
		// The attributes of a snapshot directory are never cached.
		_, err := statSnapDir(m, "/")
		return err
	}
}

// statSnapDir returns the attributes of a directory's snapshot directory.
//
// For these libcephfs needs the directory's capabilities, but does not look
// whether it has any: once its session was ended, by an eviction or when the
// client was blocklisted, it crashes. On the way to a directory it finds out
// that it cannot go on; at the root there is no such way.
func statSnapDir(m *ceph.Mount, dir string) (ceph.Stat, error) {
	if dir == "/" {
		if st, err := m.StatAt(dir, ceph.Synced); err != nil {
			return st, err
		}
	}
	return m.StatAt(join(dir, snapDir), ceph.Synced)
}

// heartbeat asks for a sign of life until ctx ends, and calls lost, once, when
// there is none for too long or when the mount is of no more use. Calls into
// libcephfs cannot be cancelled: lost is to cut the mount off, without waiting,
// and the mount must not be released before heartbeat has returned.
func heartbeat(ctx context.Context, ask func() error, lost func(error)) {
	answers := make(chan error, 1)
	var asked time.Time // zero: no request is under way
	defer func() {
		if !asked.IsZero() {
			<-answers
		}
	}()
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-answers:
			asked = time.Time{}
			if ceph.Is(err, syscall.ESHUTDOWN, syscall.ENOTCONN, syscall.ETIMEDOUT) {
				lost(fmt.Errorf("the file system does not serve us: %w", err))
				return
			}
		case <-tick.C:
			if asked.IsZero() {
				asked = time.Now()
				go func() { answers <- ask() }()
				continue
			}
			if waited := time.Since(asked); waited > stallLimit {
				lost(fmt.Errorf("no answer from the file system for %v: %w", waited.Round(time.Second), syscall.ETIMEDOUT))
				return
			}
		}
	}
}
