package fsmirror

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
)

const (
	heartbeatInterval = 5 * time.Second
	// stallLimit is how long a file system may leave all requests unanswered
	// before the mount is given up.
	stallLimit = 30 * time.Second
	// maxStall is what that grows to.
	maxStall = 8 * time.Minute
)

// patience is how long a file system's answers are waited for. It doubles each
// time it comes to an end: an MDS that is only busy, with what is to be begun
// anew on another mount, gets the time it needs. The zero value is stallLimit.
type patience struct {
	mu    sync.Mutex
	limit time.Duration
}

func (p *patience) get() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.limit, stallLimit)
}

func (p *patience) grow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = min(2*max(p.limit, stallLimit), maxStall)
}

// reset is called when something was got done.
func (p *patience) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = 0
}

// vitals are the signs of life of a mount.
type vitals struct {
	ask func() error
	// lastStep tells when something that the mount is needed for was completed.
	lastStep func() time.Time
	patience *patience
}

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
// there is none for too long, neither an answer nor work that gets on, or when
// the mount is of no more use. Calls into
// libcephfs cannot be cancelled: lost is to cut the mount off, without waiting,
// and the mount must not be released before heartbeat has returned.
func heartbeat(ctx context.Context, v vitals, lost func(error)) {
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
				go func() { answers <- v.ask() }()
				continue
			}
			sign := asked
			if at := v.lastStep(); at.After(sign) {
				sign = at
			}
			if waited := time.Since(sign); waited > v.patience.get() {
				v.patience.grow()
				lost(fmt.Errorf("no answer from the file system for %v: %w", waited.Round(time.Second), syscall.ETIMEDOUT))
				return
			}
		}
	}
}
