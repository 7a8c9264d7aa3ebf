package election

import (
	"context"
	"sync"
	"time"
)

// calls are calls into librados that cannot be ended. They are not waited for
// longer than a context lasts, but counted.
type calls struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when none is left, nil before the first
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		c.idle = make(chan struct{})
	}
	c.n++
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 {
		close(c.idle)
	}
}

// wait waits until no call is under way, at most until ctx ends, and reports
// whether that is so.
func (c *calls) wait(ctx context.Context) bool {
	c.mu.Lock()
	idle := c.idle
	c.mu.Unlock()
	if idle == nil {
		return true
	}
	select {
	case <-idle:
		return true
	case <-ctx.Done():
		return false
	}
}

// call carries f out, and no longer waits for it when ctx ends.
func call[T any](ctx context.Context, c *calls, f func() (T, error)) (T, error) {
	return callOr(ctx, c, f, func(T) {})
}

// callOr is call for results that must not be lost: discard receives one that
// nobody waits for any more.
func callOr[T any](ctx context.Context, c *calls, f func() (T, error), discard func(T)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	type result struct {
		v   T
		err error
	}
	done, abandoned := make(chan result), make(chan struct{})
	c.begin()
	go func() {
		defer c.end()
		v, err := f()
		select {
		case done <- result{v, err}:
		case <-abandoned:
			discard(v)
		}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		close(abandoned)
		return zero, ctx.Err()
	}
}

// do is call for what has no result.
func do(ctx context.Context, c *calls, f func() error) error {
	_, err := call(ctx, c, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// pause waits, and reports whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
