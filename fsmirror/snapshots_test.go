package fsmirror

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestMakePlan(t *testing.T) {
	local := func(ids ...uint64) (out []snapshot) {
		for _, id := range ids {
			out = append(out, snapshot{name: string(rune('a' + id)), id: id})
		}
		return out
	}
	mirrored := func(pairs ...any) (out []snapshot) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, snapshot{name: pairs[i].(string), primary: uint64(pairs[i+1].(int))})
		}
		return out
	}
	for _, c := range []struct {
		name     string
		local    []snapshot
		mirrored []snapshot
		strays   []string
		want     plan
	}{
		{name: "nothing"},
		{name: "first", local: local(1, 2), want: plan{sync: local(1, 2)}},
		{
			name: "next", local: local(1, 2), mirrored: mirrored("b", 1),
			want: plan{sync: local(2), last: &snapshot{name: "b", primary: 1}},
		},
		{
			name: "renamed", local: local(1, 2), mirrored: mirrored("x", 1, "c", 2),
			want: plan{rename: []renaming{{"x", "b"}}, last: &snapshot{name: "c", primary: 2}},
		},
		{
			name: "names exchanged", local: local(1, 2), mirrored: mirrored("c", 1, "b", 2),
			want: plan{
				rename: []renaming{{"c", "cephmirror-renaming-c"}, {"b", "c"}, {"cephmirror-renaming-c", "b"}},
				last:   &snapshot{name: "b", primary: 2},
			},
		},
		{
			name: "made anew under the same name", local: []snapshot{{name: "s", id: 9}}, mirrored: mirrored("s", 4),
			want: plan{remove: mirrored("s", 4), sync: []snapshot{{name: "s", id: 9}}},
		},
		{
			name: "newest removed", local: local(1), mirrored: mirrored("b", 1, "c", 2),
			want: plan{remove: mirrored("c", 2), last: &snapshot{name: "b", primary: 1}},
		},
		{
			name: "a stray of another name is no matter", local: local(1), strays: []string{"own"},
			want: plan{sync: local(1)},
		},
		{
			name: "a stray in the way", local: local(1, 2), strays: []string{"c"},
			want: plan{sync: local(1, 2), clash: []string{"c"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := makePlan(c.local, c.mirrored, c.strays)
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(plan{}, snapshot{}, renaming{})); d != "" {
				t.Error(d)
			}
		})
	}
}

// Renaming in the planned order never meets a name that is taken, and ends
// with every snapshot under its new name.
func TestOrderRenames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-h]`), 1, 8, rapid.ID[string]).Draw(t, "names")
		to := rapid.Permutation(append(append([]string(nil), names...), "y", "z")).Draw(t, "to")
		var moves []renaming
		taken := make(map[string]bool)
		where := make(map[string]string) // present name → wanted name
		for i, from := range names {
			taken[from] = true
			where[from] = to[i]
			if from != to[i] {
				moves = append(moves, renaming{from, to[i]})
			}
		}
		for _, m := range orderRenames(moves, taken) {
			if _, ok := where[m.to]; ok {
				t.Fatalf("%s is taken when %s is to have it", m.to, m.from)
			}
			want, ok := where[m.from]
			if !ok {
				t.Fatalf("%s is not there when it is to be renamed", m.from)
			}
			delete(where, m.from)
			where[m.to] = want
		}
		for is, want := range where {
			if is != want {
				t.Errorf("%s should have become %s", is, want)
			}
		}
	})
}

func TestSyncState(t *testing.T) {
	for _, s := range []syncState{
		{id: 7}, {id: 7, kind: stateNew}, {id: 7, from: 5, kind: stateFrom}, {id: 7, kind: stateDone},
	} {
		got, ok := parseSyncState(s.String())
		if !ok || got != s {
			t.Errorf("%v reads as %v, %t", s, got, ok)
		}
	}
	for _, text := range []string{"", "x", "7 8", "7 from", "7 from x", "7 done done", "-1", "7 from 5 6"} {
		if s, ok := parseSyncState(text); ok {
			t.Errorf("%q reads as %v", text, s)
		}
	}
}

func FuzzParseSyncState(f *testing.F) {
	f.Add("7 from 5")
	f.Fuzz(func(t *testing.T, text string) {
		if s, ok := parseSyncState(text); ok {
			if again, ok := parseSyncState(s.String()); !ok || again != s {
				t.Errorf("%q reads as %v, written anew as %v", text, s, again)
			}
		}
	})
}

func TestBase(t *testing.T) {
	last := &snapshot{primary: 5}
	for _, c := range []struct {
		name         string
		dirty, state string
		last         *snapshot
		from         uint64
		resumed      bool
	}{
		{"empty target", "", "", nil, 0, false},
		{"stock made it", "5", "", last, 0, false},
		{"we made it", "5", "5 done", last, 5, false},
		{"stock went on after us", "6", "5 done", last, 0, false},
		{"we were interrupted", "7", "7 from 5", last, 5, false},
		{"interrupted on the way to another snapshot", "6", "6 from 5", last, 0, false},
		{"interrupted from another one", "7", "7 from 4", last, 0, false},
		{"interrupted in a comparison", "7", "7", last, 0, false},
		{"interrupted in the first", "7", "7 new", nil, 0, true},
		{"interrupted in a first one that is gone", "6", "6 new", nil, 0, false},
		{"stock interrupted after us", "7", "6 new", nil, 0, false},
		{"snapshot made, not noted", "5", "5 from 4", last, 0, false},
		{"the peer's newest was removed", "6", "6 done", last, 0, false},
		{"rubbish", "5", "done", last, 0, false},
	} {
		from, resumed := base(c.dirty, c.state, c.last, 7)
		if from != c.from || resumed != c.resumed {
			t.Errorf("%s: from %d, resumed %t; want %d, %t", c.name, from, resumed, c.from, c.resumed)
		}
	}
}
