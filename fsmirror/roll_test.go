package fsmirror

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// TestRoll lets instances come, go, fall silent and die.
func TestRoll(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	type question struct {
		answers, mute, noted, dead []string
	}
	self := question{answers: []string{"1"}, noted: []string{"1"}}
	with := func(f func(*question)) question {
		q := question{answers: slices.Clone(self.answers), noted: slices.Clone(self.noted)}
		f(&q)
		return q
	}
	both := with(func(q *question) { q.answers, q.noted = append(q.answers, "2"), append(q.noted, "2") })
	stock := with(func(q *question) { q.answers = append(q.answers, "2") })
	for _, c := range []struct {
		name  string
		first question
		then  question
		gone  time.Duration // after which 2 is gone; 0: never, within two minutes
		shut  bool          // it is to be shut out
	}{
		{name: "answers", first: both, then: both},
		{name: "left in order", first: both, then: self, gone: time.Second},
		{
			name: "frozen", first: both, gone: oursDead, shut: true,
			then: with(func(q *question) { q.noted, q.mute = append(q.noted, "2"), append(q.mute, "2") }),
		},
		{name: "cut off", first: both, then: with(func(q *question) { q.noted = append(q.noted, "2") }), gone: oursDead, shut: true},
		{
			name: "killed", first: both, gone: time.Second,
			then: with(func(q *question) {
				q.noted, q.mute, q.dead = append(q.noted, "2"), append(q.mute, "2"), append(q.dead, "2")
			}),
		},
		{name: "stock, killed", first: stock, then: with(func(q *question) { q.mute = append(q.mute, "2") }), gone: stockDead},
		{name: "stock, stopped", first: stock, then: self, gone: stockGone},
		{
			name: "we are cut off", first: both,
			then: question{noted: []string{"1", "2"}, mute: []string{"1", "2"}},
		},
		{
			name: "never answered", first: with(func(q *question) { q.noted = append(q.noted, "2") }), gone: oursDead, shut: true,
			then: with(func(q *question) { q.noted = append(q.noted, "2") }),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, now := newRoll("1"), begin
			call := func(q question) {
				answers, noted := map[string]string{}, map[string]bool{}
				for _, id := range q.answers {
					answers[id] = "addr" + id
				}
				for _, id := range q.noted {
					noted[id] = true
				}
				r.call(answers, q.mute, noted, q.dead, now)
			}
			call(c.first)
			if !r.alive("2", now) {
				t.Fatal("not there at the beginning")
			}
			for now.Sub(begin) < 2*time.Minute && r.alive("2", now) {
				now = now.Add(time.Second)
				call(c.then)
			}
			took := now.Sub(begin)
			if c.gone == 0 {
				if !r.alive("2", now) {
					t.Fatalf("gone after %v", took)
				}
				return
			}
			if took != c.gone {
				t.Errorf("gone after %v, want %v", took, c.gone)
			}
			if got := r.suspect("2"); got != c.shut {
				t.Errorf("to be shut out: %v", got)
			}
			if got := slices.Sorted(maps.Keys(r.present(now))); !slices.Equal(got, []string{"1"}) {
				t.Errorf("present are %v", got)
			}
			// Whoever was shut out may watch for a while.
			r.bury("2")
			for range 3 {
				now = now.Add(time.Second)
				after := self
				after.mute = []string{"2"}
				call(after)
				if r.alive("2", now) {
					t.Error("it is counted again although it does not answer")
				}
			}
			// It comes back.
			now = now.Add(time.Second)
			call(both)
			if !r.alive("2", now) {
				t.Error("it is not taken back")
			}
		})
	}
}

// TestFrozenController wakes up after a long time: it blames nobody before it
// has asked.
func TestFrozenController(t *testing.T) {
	r := newRoll("1")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	all := map[string]string{"1": "a", "2": "b", "3": "c"}
	noted := map[string]bool{"1": true, "2": true}
	r.call(all, nil, noted, nil, now)
	now = now.Add(time.Hour)
	if got := r.present(now); len(got) != 3 {
		t.Errorf("present are %v", got)
	}
	r.call(map[string]string{"1": "a"}, []string{"2", "3"}, noted, nil, now)
	if !r.alive("2", now) {
		t.Error("dead after one question")
	}
}

// Who takes over from one that gave up must know who is there.
func TestRollIsFresh(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r, notes := newRoll("1"), map[string]bool{"1": true, "2": true}
	if r.fresh(now) {
		t.Error("fresh before anything was asked")
	}
	r.call(map[string]string{"2": "b"}, []string{"1"}, notes, nil, now)
	if r.fresh(now) {
		t.Error("fresh though it did not hear itself")
	}
	r.call(map[string]string{"1": "a", "2": "b"}, nil, notes, nil, now)
	if !r.fresh(now.Add(rollFresh-1)) || r.fresh(now.Add(rollFresh)) {
		t.Error("fresh for too short or too long")
	}
	if !r.leave("2") || r.alive("2", now) {
		t.Error("one that has taken its note away counts")
	}
}
