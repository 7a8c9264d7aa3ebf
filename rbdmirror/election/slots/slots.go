// Package slots hands out the slots for synchronisations, first come first
// served, as the stock leader does. It is plain data without a clock.
package slots

import "slices"

// Key names a synchronisation.
type Key struct {
	Namespace string
	SyncID    string // the local image id
}

// Waiter is one request for a slot. ID is whatever tells the requests apart for
// the caller.
type Waiter[T any] struct {
	Key Key
	ID  T
}

// Queue is the state of all slots.
type Queue[T any] struct {
	max     int
	running map[Key]struct{}
	waiting []Waiter[T]
}

// New returns a queue with that many slots, 0 for no limit.
func New[T any](most int) *Queue[T] {
	return &Queue[T]{max: most, running: make(map[Key]struct{})}
}

// Start asks for a slot. A synchronisation that has one is granted it again.
// One that waits already takes the place of its older request, which is
// returned as replaced.
func (q *Queue[T]) Start(w Waiter[T]) (granted bool, replaced *Waiter[T]) {
	if _, ok := q.running[w.Key]; ok {
		return true, nil
	}
	for i, old := range q.waiting {
		if old.Key == w.Key {
			q.waiting[i] = w
			return false, &old
		}
	}
	if q.free() {
		q.running[w.Key] = struct{}{}
		return true, nil
	}
	q.waiting = append(q.waiting, w)
	return false, nil
}

func (q *Queue[T]) free() bool { return q.max <= 0 || len(q.running) < q.max }

// Finish gives a slot back, if there is one, and returns those who get one now.
func (q *Queue[T]) Finish(k Key) []Waiter[T] {
	delete(q.running, k)
	return q.next()
}

func (q *Queue[T]) next() []Waiter[T] {
	var out []Waiter[T]
	for len(q.waiting) > 0 && q.free() {
		w := q.waiting[0]
		q.waiting = slices.Delete(q.waiting, 0, 1)
		q.running[w.Key] = struct{}{}
		out = append(out, w)
	}
	return out
}

// SetMax changes the number of slots and returns those who get one now. Slots
// that are in use stay so.
func (q *Queue[T]) SetMax(most int) []Waiter[T] {
	q.max = most
	return q.next()
}

// Remove takes out requests that wait.
func (q *Queue[T]) Remove(gone func(Waiter[T]) bool) []Waiter[T] {
	var out []Waiter[T]
	q.waiting = slices.DeleteFunc(q.waiting, func(w Waiter[T]) bool {
		if !gone(w) {
			return false
		}
		out = append(out, w)
		return true
	})
	return out
}

// Drain forgets everything and returns those who waited. What has a slot goes
// on without one.
func (q *Queue[T]) Drain() []Waiter[T] {
	out := q.waiting
	q.waiting = nil
	clear(q.running)
	return out
}

// Counts returns the number of slots, of those in use, and of requests waiting.
func (q *Queue[T]) Counts() (most, running, waiting int) {
	return q.max, len(q.running), len(q.waiting)
}
