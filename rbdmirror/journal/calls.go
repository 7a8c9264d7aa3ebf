package journal

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// calls are calls to a cluster that may not answer. Whoever makes one does not
// wait longer than it wants to; what then still hangs is waited for at the end.
type calls struct{ wg sync.WaitGroup }

// call runs f and waits for it, until ctx ends or the time is up. f then goes on
// by itself, and nothing that it uses may be closed before wait.
func call[T any](ctx context.Context, c *calls, limit time.Duration, f func() (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	c.wg.Go(func() {
		v, err := f()
		done <- result{v, err}
	})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	case <-timer.C:
		return zero, fmt.Errorf("the remote cluster has not answered within %s: %w", limit, syscall.ETIMEDOUT)
	}
}

// do is call for a function without a result.
func do(ctx context.Context, c *calls, limit time.Duration, f func() error) error {
	_, err := call(ctx, c, limit, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// remoteError is one that the remote cluster caused.
type remoteError struct{ error }

func (e remoteError) Unwrap() error { return e.error }

func remotely(err error) error {
	if err == nil {
		return nil
	}
	return remoteError{err}
}
