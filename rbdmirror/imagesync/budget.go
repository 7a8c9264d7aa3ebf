package imagesync

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// DefaultBudget is how many bytes are held in memory for data under way.
const DefaultBudget = 64 << 20

// smallest is what every read counts at least: even what is empty costs
// something.
const smallest = 16 << 10

// Budget bounds the bytes that are in memory between reading and writing, over
// all jobs that share it.
type Budget struct {
	size int64
	sem  *semaphore.Weighted
}

// NewBudget returns a budget of some bytes.
func NewBudget(size int64) *Budget {
	return &Budget{size: size, sem: semaphore.NewWeighted(size)}
}

// charge is a part of a budget that is in use.
type charge struct {
	budget *Budget
	n      int64
}

// acquire waits for n bytes. More than the whole budget counts as the whole.
func (b *Budget) acquire(ctx context.Context, n uint64) (*charge, error) {
	c := &charge{budget: b, n: int64(min(max(n, smallest), uint64(b.size)))}
	if err := b.sem.Acquire(ctx, c.n); err != nil {
		return nil, err
	}
	return c, nil
}

// keep gives back all but n bytes.
func (c *charge) keep(n uint64) {
	if rest := int64(min(max(n, smallest), uint64(c.n))); rest < c.n {
		c.budget.sem.Release(c.n - rest)
		c.n = rest
	}
}

// release gives back what is left.
func (c *charge) release() {
	c.budget.sem.Release(c.n)
	c.n = 0
}
