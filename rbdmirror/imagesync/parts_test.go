package imagesync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cephmirror/rbdmirror/objectmap"
)

func TestNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint64Range(0, 300).Draw(t, "limit")
		n := newNumbers(limit)
		want := map[uint64]bool{}
		for _, i := range rapid.SliceOf(rapid.Uint64Range(0, 320)).Draw(t, "numbers") {
			n.add(i)
			if i < limit {
				want[i] = true
			}
		}
		from := rapid.Uint64Range(0, 320).Draw(t, "from")
		var count uint64
		for i := range want {
			if i >= from {
				count++
			}
		}
		if got := n.count(from); got != count {
			t.Fatalf("%d from %d on, should be %d", got, from, count)
		}
		for at := from; ; at++ {
			i, ok := n.next(at)
			if !ok {
				break
			}
			if !want[i] || i < at {
				t.Fatalf("%d after %d", i, at)
			}
			count--
			at = i
		}
		if count != 0 {
			t.Fatalf("%d missed", count)
		}
	})
}

// TestTracker: the progress never passes an object that is not done, and comes
// to the end.
func TestTracker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tr tracker
		var open []*task
		undone := map[uint64]bool{}
		lowering := map[*batch]bool{}
		var end uint64
		check := func() {
			for k := range undone {
				if tr.progress() > k {
					t.Fatalf("%d, but object %d is not done", tr.progress(), k)
				}
			}
		}
		step := func(finish bool) {
			switch {
			case !finish && rapid.Bool().Draw(t, "plan"):
				var tasks []*task
				for range rapid.IntRange(0, 5).Draw(t, "tasks") {
					end += rapid.Uint64Range(0, 3).Draw(t, "gap")
					k := &task{number: end}
					if rapid.IntRange(0, 4).Draw(t, "lower") == 0 {
						k.lower = []change{{Head, end, objectmap.NonExistent}}
					}
					undone[end] = true
					tasks = append(tasks, k)
					end++
				}
				end += rapid.Uint64Range(0, 3).Draw(t, "tail")
				tr.add(end, tasks)
				end++
				open = append(open, tasks...)
			case len(open) > 0:
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				k := open[i]
				open = slices.Delete(open, i, i+1)
				if len(k.lower) == 0 {
					delete(undone, k.number)
				}
				if lower := tr.written(k); len(lower) > 0 {
					if lowering[k.batch] {
						t.Fatal("lowered twice")
					}
					lowering[k.batch] = true
					check()
					for _, c := range lower {
						delete(undone, c.object)
					}
					tr.lowered(k.batch)
				}
			}
			check()
		}
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			step(false)
		}
		for len(open) > 0 {
			step(true)
		}
		if len(undone) > 0 || tr.progress() != end {
			t.Fatalf("%d of %d, left: %v", tr.progress(), end, undone)
		}
	})
}

// memoryMaps are object maps that may fail.
type memoryMaps struct {
	maps   map[uint64]*objectmap.Map
	writes int
	fail   bool
}

var errMap = errors.New("map")

func (m *memoryMaps) Load(_ context.Context, snap uint64) (*objectmap.Map, error) {
	if m.maps[snap] == nil {
		return nil, fmt.Errorf("no map of %d", snap)
	}
	return m.maps[snap].Clone(), nil
}

func (m *memoryMaps) Save(_ context.Context, snap uint64, o *objectmap.Map) error {
	if m.fail {
		return errMap
	}
	if o.Len() != m.maps[snap].Len() {
		return fmt.Errorf("map of %d objects saved as one of %d", m.maps[snap].Len(), o.Len())
	}
	m.writes++
	m.maps[snap] = o.Clone()
	return nil
}

func (m *memoryMaps) Update(_ context.Context, snap, start, end uint64, s objectmap.State) error {
	if m.fail {
		return errMap
	}
	if end > m.maps[snap].Len() {
		return fmt.Errorf("objects %d to %d of %d", start, end, m.maps[snap].Len())
	}
	m.writes++
	m.maps[snap].SetRange(start, end, s)
	return nil
}

func TestMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		random := func(label string) *objectmap.Map {
			m := objectmap.New(rapid.Uint64Range(0, 60).Draw(t, label))
			for i := range m.Len() {
				m.Set(i, objectmap.State(rapid.IntRange(0, 3).Draw(t, "state")))
			}
			return m
		}
		io := &memoryMaps{maps: map[uint64]*objectmap.Map{Head: random("head"), 7: random("first"), 9: random("second")}}
		before := map[uint64]*objectmap.Map{}
		for snap, m := range io.maps {
			before[snap] = m.Clone()
		}
		s := mapSet{io: io, stats: &Stats{}, maps: map[uint64]*objectmap.Map{}}
		from := rapid.Uint64Range(0, 60).Draw(t, "from")
		if _, err := s.begin(t.Context(), []Target{{Local: 7}, {Local: 9}}, from); err != nil {
			t.Fatal(err)
		}
		for snap, m := range io.maps {
			for i := range m.Len() {
				want := before[snap].Get(i)
				if i >= from {
					want = objectmap.NonExistent
					if before[Head].Get(i) != objectmap.NonExistent {
						want = objectmap.ExistsClean
					}
				}
				if m.Get(i) != want {
					t.Fatalf("object %d of %d is %d, should be %d", i, snap, m.Get(i), want)
				}
			}
		}
		for range rapid.IntRange(1, 4).Draw(t, "times") {
			var changes []change
			want := map[uint64]*objectmap.Map{}
			for snap, m := range io.maps {
				want[snap] = m.Clone()
			}
			for i := range uint64(70) {
				if rapid.Bool().Draw(t, "change") {
					c := change{rapid.SampledFrom([]uint64{7, 9, Head}).Draw(t, "snap"), i, objectmap.State(rapid.IntRange(0, 3).Draw(t, "to"))}
					changes = append(changes, c)
					want[c.snap].Set(c.object, c.state)
				}
			}
			io.writes = 0
			if rapid.IntRange(0, 3).Draw(t, "fail") == 0 {
				io.fail = true
				_ = s.apply(t.Context(), changes)
				io.fail = false
			}
			if err := s.apply(t.Context(), changes); err != nil {
				t.Fatal(err)
			}
			if io.writes > 3*(manyRuns-1) {
				t.Fatalf("%d writes", io.writes)
			}
			for snap, m := range io.maps {
				if !m.Equal(want[snap]) {
					t.Fatalf("map of %d is wrong", snap)
				}
			}
		}
	})
}

func TestContexts(t *testing.T) {
	got := contextsOf([]Snapshot{{ID: 4}, {ID: 11}, {ID: 7}}, []Target{{Local: 12}, {Local: 15}, {Local: 20}})
	want := [][]uint64{{11, 7, 4}, {12, 11, 7, 4}, {15, 12, 11, 7, 4}}
	if !slices.EqualFunc(got, want, slices.Equal[[]uint64]) {
		t.Errorf("%v, should be %v", got, want)
	}
}

// TestCandidates: what came and went again is one, for the snapshot in between.
func TestCandidates(t *testing.T) {
	mapOf := func(states ...objectmap.State) *objectmap.Map {
		m := objectmap.New(uint64(len(states)))
		for i, s := range states {
			m.Set(uint64(i), s)
		}
		return m
	}
	const none, changed, clean = objectmap.NonExistent, objectmap.Exists, objectmap.ExistsClean
	maps := map[uint64]*objectmap.Map{
		3: mapOf(clean, clean, none, clean, changed, none, clean),
		5: mapOf(clean, changed, changed, none, clean, none),
		8: mapOf(clean, clean, none, clean, clean, none, none, none),
	}
	load := func(_ context.Context, snap uint64) (*objectmap.Map, error) { return maps[snap], nil }
	list := func(j Job, known *objectmap.Map, rolledBack bool) (out []uint64) {
		j.SourceMaps = &SourceMaps{ExistenceOnly: rolledBack, Snaps: []uint64{5, 8}, Load: load}
		j.Targets = []Target{{Remote: 5, Objects: 6}, {Remote: 8, Objects: 8}}
		n, err := newRun(j).candidates(t.Context(), known)
		if err != nil {
			t.Fatal(err)
		}
		for k, ok := n.next(0); ok; k, ok = n.next(k + 1) {
			out = append(out, k)
		}
		return out
	}
	for _, c := range []struct {
		name       string
		job        Job
		known      *objectmap.Map
		rolledBack bool
		want       []uint64
	}{
		{"from a snapshot", Job{Start: 3, StartObjects: 7}, nil, false, []uint64{1, 2, 3, 6}},
		{"from nothing", Job{}, nil, false, []uint64{0, 1, 2, 3, 4}},
		{"past the head's map", Job{Start: 3, StartObjects: 7}, objectmap.New(6), false, []uint64{1, 2, 3, 6, 7}},
		{"compared", Job{FullCompare: true, StartObjects: 7}, nil, false, []uint64{0, 1, 2, 3, 4, 5, 6, 7}},
		{"perhaps rolled back", Job{Start: 3, StartObjects: 7}, nil, true, []uint64{0, 1, 2, 3, 4, 6}},
	} {
		if got := list(c.job, c.known, c.rolledBack); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, should be %v", c.name, got, c.want)
		}
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(100 << 10)
	ctx, cancel := context.WithCancel(t.Context())
	c, err := b.acquire(ctx, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := b.acquire(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	c.keep(0)
	if c.n != smallest {
		t.Errorf("%d kept", c.n)
	}
	c.release()
	if c, err := b.acquire(t.Context(), 100<<10); err != nil || c.n != 100<<10 {
		t.Errorf("%+v, %v", c, err)
	}
}
