package replica

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// Calls are calls to a cluster that may not answer. Whoever makes one does not
// wait longer than it wants to; what then still hangs is waited for at the end.
type Calls struct{ wg sync.WaitGroup }

// Go runs something that nobody but Wait waits for.
func (c *Calls) Go(f func()) { c.wg.Go(f) }

// Wait waits for all that still hangs.
func (c *Calls) Wait() { c.wg.Wait() }

// Call runs f and waits for it, until ctx ends or the time is up. f then goes on
// by itself: what it returns is given to discard, which may be nil, and nothing
// that it uses may be closed before Wait.
func Call[T any](ctx context.Context, c *Calls, limit time.Duration, f func() (T, error), discard func(T)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, context.Cause(ctx)
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	gone := make(chan struct{})
	c.wg.Go(func() {
		v, err := f()
		select {
		case done <- result{v, err}:
		case <-gone:
			if err == nil && discard != nil {
				discard(v)
			}
		}
	})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		close(gone)
		return zero, context.Cause(ctx)
	case <-timer.C:
		close(gone)
		return zero, fmt.Errorf("the remote cluster has not answered within %s: %w", limit, syscall.ETIMEDOUT)
	}
}

// Ask is Call for what needs no discarding.
func Ask[T any](ctx context.Context, c *Calls, limit time.Duration, f func() (T, error)) (T, error) {
	return Call(ctx, c, limit, f, nil)
}

// Do is Call for a function without a result.
func Do(ctx context.Context, c *Calls, limit time.Duration, f func() error) error {
	_, err := Ask(ctx, c, limit, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// remoteError is one that the remote cluster caused.
type remoteError struct{ error }

func (e remoteError) Unwrap() error { return e.error }

// Remotely marks an error as one that the remote cluster caused.
func Remotely(err error) error {
	if err == nil {
		return nil
	}
	return remoteError{err}
}
