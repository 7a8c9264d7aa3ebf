package deletion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestQueue compares with the simplest possible queue.
func TestQueue(t *testing.T) {
	start := time.Unix(1000, 0)
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue()
		type image struct {
			due     time.Time
			running bool
			retries int
		}
		model := map[string]*image{}
		now := start
		id := func() string { return fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "id")) }
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			at := now.Add(time.Duration(rapid.IntRange(-5, 20).Draw(t, "due")) * time.Second)
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				id := id()
				m := model[id]
				if m == nil {
					model[id] = &image{due: at}
				} else if !m.running && q.byID[id].waiting {
					m.due = at
				}
				q.add(id, at, now)
			case 1:
				if e := q.next(); e != nil {
					q.start(e)
					model[e.id].running = true
				}
			case 2, 3:
				for id, m := range model {
					if !m.running {
						continue
					}
					if rapid.Bool().Draw(t, "done") {
						q.remove(q.byID[id])
						delete(model, id)
					} else {
						q.again(q.byID[id], at, errors.New("no"))
						m.running, m.due, m.retries = false, at, m.retries+1
					}
					break
				}
			case 4:
				victim := id()
				q.keep(func(id string) bool { return id != victim })
				if m := model[victim]; m != nil && !m.running {
					delete(model, victim)
				}
			}
			now = now.Add(time.Second)
			var first string
			for id, m := range model {
				if e := q.byID[id]; e == nil || e.running != m.running || !e.due.Equal(m.due) || e.retries != m.retries {
					t.Fatalf("%s: %+v instead of %+v", id, e, m)
				}
				if f := model[first]; !m.running && (f == nil || m.due.Before(f.due) || m.due.Equal(f.due) && id < first) {
					first = id
				}
			}
			if len(q.byID) != len(model) {
				t.Fatalf("%d images instead of %d", len(q.byID), len(model))
			}
			if e := q.next(); first == "" && e != nil || first != "" && (e == nil || e.id != first) {
				t.Fatalf("next is %+v instead of %s", e, first)
			}
		}
	})
}

func TestThrottle(t *testing.T) {
	th := NewThrottle(2)
	ctx := t.Context()
	for range 2 {
		if err := th.acquire(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			if err := th.acquire(ctx); err != nil {
				t.Error(err)
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			th.release()
		})
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, _, waiting := th.Status(); waiting == i+1 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("does not wait")
			}
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := th.acquire(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if most, running, waiting := th.Status(); most != 2 || running != 2 || waiting != 3 {
		t.Error(most, running, waiting)
	}
	th.release()
	wg.Wait()
	if !slices.Equal(order, []int{0, 1, 2}) {
		t.Error(order)
	}
	th.SetMax(0)
	for range 9 {
		if err := th.acquire(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, running, waiting := th.Status(); running != 10 || waiting != 0 {
		t.Error(running, waiting)
	}
}
