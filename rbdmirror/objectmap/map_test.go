package objectmap

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type vector struct{ Hex, Meaning string }

func vectors(t testing.TB) map[string]vector {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var list map[string]vector
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

func states(m *Map) []State {
	out := []State{}
	for i := range m.Len() {
		out = append(out, m.Get(i))
	}
	return out
}

func of(list ...State) *Map {
	m := New(uint64(len(list)))
	for i, s := range list {
		m.Set(uint64(i), s)
	}
	return m
}

func TestVectors(t *testing.T) {
	listed := regexp.MustCompile(`states \[([0-9, ]*)\]`)
	n := 0
	for name, v := range vectors(t) {
		b, err := hex.DecodeString(v.Hex)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := strings.Trim(strings.ReplaceAll(fmt.Sprint(states(m)), " ", ", "), "[]")
		want := listed.FindStringSubmatch(v.Meaning)
		if want == nil || got != want[1] {
			t.Errorf("%s: %s instead of %v", name, got, want)
		}
		if strings.HasPrefix(name, "objectmap_load") && hex.EncodeToString(m.Encode()) != v.Hex {
			t.Errorf("%s: encoded again: %x", name, m.Encode())
		}
		n++
	}
	if n < 10 {
		t.Errorf("only %d vectors", n)
	}
}

func genStates() *rapid.Generator[[]State] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) State { return State(rapid.IntRange(0, 3).Draw(t, "state")) }), 0, 40)
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := genStates().Draw(t, "states")
		m := of(list...)
		same := func(what string, want []State) {
			if diff := cmp.Diff(append([]State{}, want...), states(m)); diff != "" {
				t.Fatalf("%s: %s", what, diff)
			}
			back, err := Decode(m.Encode())
			if err != nil || !back.Equal(m) {
				t.Fatalf("%s: %v", what, err)
			}
		}
		same("set", list)
		for range rapid.IntRange(0, 5).Draw(t, "steps") {
			s := State(rapid.IntRange(0, 3).Draw(t, "state"))
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				start, end := rapid.IntRange(0, 45).Draw(t, "start"), rapid.IntRange(0, 45).Draw(t, "end")
				for i := start; i < min(end, len(list)); i++ {
					list[i] = s
				}
				m.SetRange(uint64(start), uint64(end), s)
				same("range", list)
			case 1:
				n := rapid.IntRange(0, 60).Draw(t, "count")
				for len(list) < n {
					list = append(list, s)
				}
				list = list[:n]
				m.Resize(uint64(n), s)
				same("resize", list)
			case 2:
				for i := range list {
					if list[i] == Exists {
						list[i] = ExistsClean
					}
				}
				m.SnapAdd()
				same("snapshot added", list)
			case 3:
				removed := genStates().Draw(t, "removed")
				for i := range list {
					if list[i] == ExistsClean && (i >= len(removed) || removed[i] == Exists) {
						list[i] = Exists
					}
				}
				m.SnapRemove(of(removed...))
				same("snapshot removed", list)
			}
		}
		var joined []State
		last := State(9)
		for r := range m.Runs() {
			if r.State == last || r.Start != uint64(len(joined)) || r.End <= r.Start {
				t.Fatalf("run %v after %d objects in state %d", r, len(joined), last)
			}
			last = r.State
			joined = append(joined, slices.Repeat([]State{r.State}, int(r.End-r.Start))...)
		}
		if !slices.Equal(joined, list) {
			t.Fatalf("runs: %v instead of %v", joined, list)
		}
	})
}

func TestDiff(t *testing.T) {
	const x, c, p, o = Exists, ExistsClean, Pending, NonExistent
	type changes map[uint64]Change
	for name, test := range map[string]struct {
		start *Map
		later []*Map
		want  changes
	}{
		"nothing later":               {of(x, c), nil, changes{}},
		"from the start":              {nil, []*Map{of(x, c, x), of(c, c, o, p)}, changes{0: Written, 1: Written, 3: Written}},
		"quiet":                       {of(x, c, o, x, c), []*Map{of(c, c, o, c, c), of(c, c, o, c, c)}, changes{}},
		"written":                     {of(x, c, o, x, c), []*Map{of(c, x, o, c, c), of(c, c, x, c, c)}, changes{1: Written, 2: Written}},
		"removed":                     {of(x, c, o, x), []*Map{of(o, c, o, c), of(o, o, o, c)}, changes{0: Removed, 1: Removed}},
		"come and gone":               {of(o, o), []*Map{of(x, o), of(o, o)}, changes{}},
		"gone and come":               {of(x, x), []*Map{of(o, c), of(x, c)}, changes{0: Written}},
		"gone, come, unchanged since": {of(x), []*Map{of(o), of(x), of(c)}, changes{0: Written}},
		"grown":                       {of(x), []*Map{of(c, o, x)}, changes{2: Written}},
		"shrunk":                      {of(x, x, o), []*Map{of(c)}, changes{1: Removed}},
		"shrunk and grown":            {of(x, x, x), []*Map{of(c), of(c, o, x)}, changes{1: Removed, 2: Written}},
		"being removed":               {of(c, c), []*Map{of(p, c)}, changes{0: Written}},
	} {
		got := changes{}
		for i, what := range Diff(test.start, test.later...) {
			got[i] = what
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestDiffHistories checks against objects whose contents are known.
func TestDiffHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(0, 12).Draw(t, "count")
		head, data := New(uint64(count)), make([]int, count) // 0: there is no such object
		var maps []*Map
		var contents [][]int
		version := 0
		for range rapid.IntRange(1, 6).Draw(t, "snapshots") {
			for range rapid.IntRange(0, 6).Draw(t, "writes") {
				switch i := rapid.IntRange(0, 14).Draw(t, "object"); {
				case i >= len(data): // resize
					n := rapid.IntRange(0, 12).Draw(t, "size")
					head.Resize(uint64(n), NonExistent)
					for len(data) < n {
						data = append(data, 0)
					}
					data = data[:n]
				case rapid.Bool().Draw(t, "remove"):
					data[i] = 0
					head.Set(uint64(i), NonExistent)
				default:
					version++
					data[i] = version
					head.Set(uint64(i), Exists)
				}
			}
			maps = append(maps, head.Clone())
			contents = append(contents, slices.Clone(data))
			head.SnapAdd()
		}
		at := func(snap, i int) int {
			if snap < 0 || i >= len(contents[snap]) {
				return 0
			}
			return contents[snap][i]
		}
		from := rapid.IntRange(-1, len(maps)-2).Draw(t, "from")
		var start *Map
		if from >= 0 {
			start = maps[from]
		}
		to := rapid.IntRange(from+1, len(maps)-1).Draw(t, "to")
		got := map[uint64]Change{}
		for i, what := range Diff(start, maps[from+1:to+1]...) {
			got[i] = what
		}
		for i := range 13 {
			before, after := at(from, i), at(to, i)
			switch what := got[uint64(i)]; {
			case before != after && after != 0 && what != Written, after == 0 && before != 0 && what != Removed,
				after == 0 && before == 0 && what != 0:
				t.Fatalf("object %d was %d, is %d: %d", i, before, after, what)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		b, _ := hex.DecodeString(v.Hex)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if m.Len() > 4*uint64(len(b)) {
			t.Errorf("%d objects in %d bytes", m.Len(), len(b))
		}
		back, err := Decode(m.Encode())
		if err != nil || !back.Equal(m) {
			t.Error(err)
		}
		for range m.Runs() {
		}
	})
}
