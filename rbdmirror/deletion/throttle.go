package deletion

import (
	"context"
	"slices"
	"sync"
)

// Throttle bounds how many images are removed at once, for all namespaces of a
// pool together. It is fair: who waits longest comes next.
type Throttle struct {
	mu      sync.Mutex
	max     int // 0: no bound
	running int
	waiting []chan struct{}
}

// NewThrottle returns a throttle with the given bound, 0 for none.
func NewThrottle(most int) *Throttle { return &Throttle{max: most} }

// SetMax changes the bound. What is running goes on.
func (t *Throttle) SetMax(most int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.max = most
	t.admit()
}

// Status returns the bound, how many run, and how many wait.
func (t *Throttle) Status() (most, running, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.max, t.running, len(t.waiting)
}

// admit lets in whoever may.
func (t *Throttle) admit() {
	for len(t.waiting) > 0 && (t.max <= 0 || t.running < t.max) {
		close(t.waiting[0])
		t.waiting = t.waiting[1:]
		t.running++
	}
}

func (t *Throttle) acquire(ctx context.Context) error {
	turn := make(chan struct{})
	t.mu.Lock()
	t.waiting = append(t.waiting, turn)
	t.admit()
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := slices.Index(t.waiting, turn); at >= 0 {
		t.waiting = slices.Delete(t.waiting, at, at+1)
	} else { // it came meanwhile
		t.running--
		t.admit()
	}
	return ctx.Err()
}

func (t *Throttle) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	t.admit()
}
