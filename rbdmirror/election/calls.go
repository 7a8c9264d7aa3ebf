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
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	c.begin()
	go func() {
		defer c.end()
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
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
