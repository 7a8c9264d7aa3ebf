package schedules

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// follower is one that counts what it does.
type follower struct {
	Follower
	n      *note
	name   string
	valid  bool
	until  time.Time
	looked int
	rules  map[string]string
	fail   error
}

func (n *note) follower(name string) *follower {
	f := &follower{n: n, name: name, valid: true, rules: map[string]string{"1": "x"}}
	f.Follower = Follower{
		Log: zerolog.Nop(), Valid: func() bool { return f.valid }, Show: func(t time.Time) { f.until = t },
		clock: func() time.Time { return n.now },
	}
	return f
}

func (f *follower) round() error {
	return f.Round(Round{
		Swap: f.n.swap, Self: f.name, Contents: Contents{Leader: f.n.text}, Wanted: len(f.rules) > 0,
		Rules: func() (map[string]string, error) { return f.rules, nil },
		Look:  func() error { f.looked++; return f.fail },
	})
}

// must lets every one go through a round, and compares who leads, as they show.
func must(t *testing.T, want string, all ...*follower) {
	t.Helper()
	leads := ""
	for _, f := range all {
		if err := f.round(); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
	}
	for _, f := range all {
		if f.n.now.Before(f.until) {
			leads += f.name
		}
	}
	if leads != want {
		t.Fatalf("%q lead, want %q; the note is %q", leads, want, all[0].n.text)
	}
}

func TestFollower(t *testing.T) {
	n := &note{now: time.Unix(1795300000, 0)}
	a, b := n.follower("a"), n.follower("b")
	pass := func(d time.Duration) { n.now = n.now.Add(d) }
	must(t, "a", a, b)
	if a.looked != 1 || b.looked != 0 {
		t.Errorf("looked %d and %d times", a.looked, b.looked)
	}
	// Without a change the units are looked at now and then, with one at once.
	for range 10 {
		pass(RoundEvery)
		must(t, "a", a, b)
	}
	if a.looked != 2 {
		t.Errorf("in 20 s looked %d times", a.looked)
	}
	a.rules, b.rules = map[string]string{"1": "y"}, map[string]string{"1": "y"}
	must(t, "a", a, b)
	if a.looked != 3 {
		t.Errorf("after a change looked %d times", a.looked)
	}
	// One whose lease has run out lets the lead run out, and takes it back only
	// if nobody else has it.
	a.valid = false
	pass(ValidFor)
	must(t, "", a, b)
	pass(DeadAfter)
	must(t, "b", a, b)
	a.valid = true
	must(t, "b", a, b)
	// What cannot be looked at is not shown, and tried again.
	failed := errors.New("the MDS is gone")
	b.fail, b.rules = failed, map[string]string{"1": "z"}
	pass(RoundEvery)
	if err := b.round(); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	b.fail = nil
	pass(RoundEvery)
	looked := b.looked
	must(t, "b", a, b)
	if b.looked != looked+1 {
		t.Error("not tried again")
	}
	// Shut out and back under another name: the lead has to be won anew.
	b.name = "b2"
	pass(RoundEvery)
	must(t, "", b)
	pass(DeadAfter)
	must(t, "b2", b)
	// With nothing to follow another may lead at once.
	b.rules = nil
	must(t, "a", b, a)
	a.Resign(n.swap)
	if n.text != "" || !a.until.IsZero() {
		t.Errorf("resigned: %q", n.text)
	}
	// Who cannot reach the note says so, and leads no longer in time.
	must(t, "a", a)
	n.down = true
	pass(RoundEvery)
	if err := a.round(); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("%v", err)
	}
	pass(ValidFor)
	if err := a.round(); !errors.Is(err, syscall.ETIMEDOUT) || n.now.Before(a.until) {
		t.Errorf("%v, leads until %v", err, a.until)
	}
}
