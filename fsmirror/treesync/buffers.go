package treesync

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Memory lends buffers to all the runs that share it and bounds their bytes.
// Who asks first is served first, so that no run starves another.
type Memory struct {
	budget       *semaphore.Weighted
	small, large sync.Pool
}

const smallBuffer = 64 << 10

// NewMemory returns a Memory of at most limit bytes in use, and at least what
// one worker needs.
func NewMemory(limit int64) *Memory {
	return &Memory{
		budget: semaphore.NewWeighted(max(limit, 2*chunkSize)),
		small:  sync.Pool{New: func() any { return new([smallBuffer]byte) }},
		large:  sync.Pool{New: func() any { return new([chunkSize]byte) }},
	}
}

// borrow waits for n buffers of size bytes each. The caller calls release.
func (m *Memory) borrow(ctx context.Context, n, size int) (bufs [][]byte, release func(), err error) {
	p, full := &m.small, smallBuffer
	if size > smallBuffer {
		p, full = &m.large, chunkSize
	}
	weight := int64(n * full)
	if err := m.budget.Acquire(ctx, weight); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	held := make([]any, n)
	for i := range n {
		held[i] = p.Get()
		switch b := held[i].(type) {
		case *[smallBuffer]byte:
			bufs = append(bufs, b[:size])
		case *[chunkSize]byte:
			bufs = append(bufs, b[:size])
		}
	}
	return bufs, func() {
		for _, b := range held {
			p.Put(b)
		}
		m.budget.Release(weight)
	}, nil
}
