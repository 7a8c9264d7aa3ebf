package replay

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
// by itself: what it returns is given to discard, and nothing that it uses may
// be closed before wait.
func call[T any](ctx context.Context, c *calls, limit time.Duration, f func() (T, error), discard func(T)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
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
		return zero, ctx.Err()
	case <-timer.C:
		close(gone)
		return zero, fmt.Errorf("the remote cluster has not answered within %s: %w", limit, syscall.ETIMEDOUT)
	}
}

// remotely runs a call to the remote cluster.
func remotely[T any](ctx context.Context, r *Replayer, f func() (T, error)) (T, error) {
	return call(ctx, &r.calls, r.opts.CallTimeout, f, nil)
}

// remotelyDo is remotely for a call without a result.
func remotelyDo(ctx context.Context, r *Replayer, f func() error) error {
	_, err := remotely(ctx, r, func() (struct{}, error) { return struct{}{}, f() })
	return err
}
