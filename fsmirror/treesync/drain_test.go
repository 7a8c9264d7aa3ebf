package treesync

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTestRun returns a run with directories to be made. Its gate is all that it
// gets to before it would need a cluster.
func newTestRun(ctx context.Context, dirs int, gate func(context.Context) error) *run {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &run{Params: Params{Workers: 8, Gate: gate, Progress: &Progress{}}, ctx: ctx, cancel: cancel}
	r.cond = sync.NewCond(&r.mu)
	for range dirs {
		r.dirs = append(r.dirs, &node{how: fresh, left: 1})
	}
	return r
}

// The first error ends all workers, those too that wait for work.
func TestErrorEndsAll(t *testing.T) {
	why := errors.New("some reason")
	for _, dirs := range []int{1, 100} {
		r := newTestRun(t.Context(), dirs, func(context.Context) error {
			time.Sleep(time.Millisecond) // the others wait meanwhile
			return why
		})
		r.drain()
		if err := context.Cause(r.ctx); !errors.Is(err, why) {
			t.Errorf("%d directories: %v, want %v", dirs, err, why)
		}
		if r.active != 0 {
			t.Errorf("%d still at work", r.active)
		}
	}
}

// Cancelling ends all workers: those that work, those that wait for work, and
// those that may not write just now.
func TestCancelEndsAll(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	var waiting atomic.Int32
	r := newTestRun(ctx, 3, func(ctx context.Context) error {
		waiting.Add(1)
		<-ctx.Done()
		return ctx.Err()
	})
	why := errors.New("enough")
	go func() {
		for waiting.Load() < 3 {
			time.Sleep(time.Millisecond)
		}
		cancel(why)
	}()
	r.drain()
	if err := context.Cause(r.ctx); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
}

// A run with nothing to do ends.
func TestNothingToDo(t *testing.T) {
	r := newTestRun(t.Context(), 0, nil)
	r.drain()
	if err := context.Cause(r.ctx); err != nil {
		t.Error(err)
	}
	r.cancel(nil)
}
