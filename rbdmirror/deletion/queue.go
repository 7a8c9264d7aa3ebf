package deletion

import (
	"container/heap"
	"time"
)

// entry is an image that waits for its removal.
type entry struct {
	id      string
	due     time.Time
	waiting bool // for the time for which it must be kept
	retries int
	err     error // of the last attempt
	running bool
	at      int // in the heap, -1 while running
}

// queue orders entries by when they are due, so that one that has to stay for
// long holds nobody up.
type queue struct {
	byID map[string]*entry
	heap entries
}

func newQueue() *queue { return &queue{byID: make(map[string]*entry)} }

// add adds an image, or does nothing when it is there. An image that has to be
// kept longer than was known waits for that.
func (q *queue) add(id string, due time.Time, now time.Time) {
	if e := q.byID[id]; e != nil {
		if !e.running && e.waiting && !e.due.Equal(due) {
			e.due, e.waiting = due, due.After(now)
			heap.Fix(&q.heap, e.at)
		}
		return
	}
	e := &entry{id: id, due: due, waiting: due.After(now)}
	q.byID[id] = e
	heap.Push(&q.heap, e)
}

// keep forgets all images but those that are running or in keep.
func (q *queue) keep(keep func(id string) bool) {
	for id, e := range q.byID {
		if !e.running && !keep(id) {
			q.remove(e)
		}
	}
}

func (q *queue) remove(e *entry) {
	delete(q.byID, e.id)
	if e.at >= 0 {
		heap.Remove(&q.heap, e.at)
	}
}

// next returns the entry that is due first, nil if there is none that is not
// running.
func (q *queue) next() *entry {
	if len(q.heap) == 0 {
		return nil
	}
	return q.heap[0]
}

// start takes an entry out of the order while it is being worked on.
func (q *queue) start(e *entry) {
	heap.Remove(&q.heap, e.at)
	e.running, e.waiting = true, false
}

// again puts an entry back after a failure.
func (q *queue) again(e *entry, due time.Time, err error) {
	e.running, e.due, e.err = false, due, err
	e.retries++
	heap.Push(&q.heap, e)
}

// entries is a heap.
type entries []*entry

func (h entries) Len() int { return len(h) }

func (h entries) Less(a, b int) bool {
	if h[a].due.Equal(h[b].due) {
		return h[a].id < h[b].id
	}
	return h[a].due.Before(h[b].due)
}

func (h entries) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].at, h[b].at = a, b
}

func (h *entries) Push(x any) {
	e := x.(*entry)
	e.at = len(*h)
	*h = append(*h, e)
}

func (h *entries) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.at = -1
	return e
}
