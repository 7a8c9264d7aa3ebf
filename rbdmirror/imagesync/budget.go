package imagesync

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// DefaultBudget is how many bytes are held in memory for data under way.
const DefaultBudget = 64 << 20

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

// acquire waits for n bytes and returns what gives them back. More than the
// whole budget counts as the whole.
func (b *Budget) acquire(ctx context.Context, n uint64) (release func(), err error) {
	// Even what is empty costs something.
	w := int64(min(max(n, 16<<10), uint64(b.size)))
	if err := b.sem.Acquire(ctx, w); err != nil {
		return nil, err
	}
	return func() { b.sem.Release(w) }, nil
}
