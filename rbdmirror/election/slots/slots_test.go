package slots

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func key(s string) Key { return Key{SyncID: s} }

func TestFirstComeFirstServed(t *testing.T) {
	q := New[int](2)
	ask := func(id int, sync string, want bool) {
		t.Helper()
		if got, replaced := q.Start(Waiter[int]{key(sync), id}); got != want || replaced != nil {
			t.Fatalf("%s: %v, replaced %v", sync, got, replaced)
		}
	}
	ask(1, "a", true)
	ask(2, "b", true)
	ask(3, "c", false)
	ask(4, "d", false)
	ask(5, "a", true) // runs already
	if got, replaced := q.Start(Waiter[int]{key("c"), 6}); got || replaced == nil || replaced.ID != 3 {
		t.Fatalf("%v, %v", got, replaced)
	}
	if next := q.Finish(key("a")); len(next) != 1 || next[0].ID != 6 {
		t.Fatalf("after the first end: %v", next)
	}
	if next := q.Finish(key("a")); next != nil {
		t.Fatalf("an end that was told twice: %v", next)
	}
	if next := q.SetMax(0); len(next) != 1 || next[0].ID != 4 {
		t.Fatalf("without a limit: %v", next)
	}
	q.SetMax(1)
	ask(7, "e", false)
	if next := q.Finish(key("b")); next != nil {
		t.Fatalf("more than the new limit: %v", next)
	}
	if waiting := q.Drain(); len(waiting) != 1 || waiting[0].ID != 7 {
		t.Fatalf("drained: %v", waiting)
	}
	ask(8, "f", true)
}

func TestNeverMoreThanThereAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := New[int](rapid.IntRange(0, 3).Draw(t, "slots"))
		most, _, _ := q.Counts()
		var waiting []Key // in order
		running := map[Key]bool{}
		grant := func(ws []Waiter[int]) {
			for _, w := range ws {
				if len(waiting) == 0 || waiting[0] != w.Key {
					t.Fatalf("%v was served before its turn: %v", w, waiting)
				}
				waiting = waiting[1:]
				running[w.Key] = true
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"start": func(t *rapid.T) {
				k := key(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "sync"))
				got, replaced := q.Start(Waiter[int]{Key: k})
				switch {
				case running[k] != got && running[k]:
					t.Fatalf("%v runs and was not granted", k)
				case (replaced != nil) != slices.Contains(waiting, k):
					t.Fatalf("replaced %v, waiting %v", replaced, waiting)
				case got:
					running[k] = true
				case replaced == nil:
					waiting = append(waiting, k)
				}
			},
			"finish": func(t *rapid.T) {
				k := key(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "sync"))
				delete(running, k)
				grant(q.Finish(k))
			},
			"gone": func(t *rapid.T) {
				k := key(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "sync"))
				q.Remove(func(w Waiter[int]) bool { return w.Key == k })
				waiting = slices.DeleteFunc(waiting, func(w Key) bool { return w == k })
			},
			"": func(t *rapid.T) {
				if _, r, w := q.Counts(); r != len(running) || w != len(waiting) {
					t.Fatalf("%d run and %d wait, not %d and %d", r, w, len(running), len(waiting))
				}
				if most > 0 && len(running) > most {
					t.Fatalf("%d run on %d slots", len(running), most)
				}
				if len(waiting) > 0 && (most == 0 || len(running) < most) {
					t.Fatalf("%v wait for nothing", waiting)
				}
			},
		})
	})
}
