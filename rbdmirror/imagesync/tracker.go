package imagesync

import "sync"

// tracker knows up to which object all is done.
type tracker struct {
	mu      sync.Mutex
	batches []*batch
	below   uint64 // all objects below it are done
}

// batch is what was planned at once. The states of its objects are lowered
// together, when all of them are written.
type batch struct {
	tasks   []*task
	next    int // of tasks: all before it are done
	left    int // not yet written
	end     uint64
	lowered bool
}

// add announces the tasks of the next objects, up to last. Objects without a
// task are done.
func (t *tracker) add(last uint64, tasks []*task) {
	b := &batch{tasks: tasks, left: len(tasks), end: last + 1}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range tasks {
		k.batch = b
	}
	t.batches = append(t.batches, b)
	t.advanceLocked()
}

// written notes that a task's object is. If it was the last of its batch, it
// returns the states to lower; lowered has to follow.
func (t *tracker) written(k *task) []change {
	t.mu.Lock()
	defer t.mu.Unlock()
	k.written = true
	k.batch.left--
	t.advanceLocked()
	if k.batch.left > 0 {
		return nil
	}
	var lower []change
	for _, k := range k.batch.tasks {
		lower = append(lower, k.lower...)
	}
	return lower
}

// lowered notes that the states of a batch are.
func (t *tracker) lowered(b *batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b.lowered = true
	t.advanceLocked()
}

func (t *tracker) advanceLocked() {
	for len(t.batches) > 0 {
		b := t.batches[0]
		for b.next < len(b.tasks) {
			k := b.tasks[b.next]
			if !k.written || len(k.lower) > 0 && !b.lowered {
				t.below = max(t.below, k.number)
				return
			}
			b.next++
		}
		t.below = max(t.below, b.end)
		t.batches = t.batches[1:]
	}
}

// progress returns the object below which all are done.
func (t *tracker) progress() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.below
}
