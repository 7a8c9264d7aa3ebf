package schedules

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// note is the note of who leads, with a clock of its own.
type note struct {
	text string
	now  time.Time
	down bool // changes fail
	lose bool // changes are made, but their success is not told
}

func (n *note) swap(from, to string) error {
	if n.down {
		return syscall.ETIMEDOUT
	}
	if n.text != from {
		return ErrChanged
	}
	n.text = to
	if n.lose {
		return syscall.ETIMEDOUT
	}
	return nil
}

func (n *note) lead(name string) *Lead {
	return NewLead(name, func() time.Time { return n.now })
}

func (n *note) round(t *testing.T, l *Lead) {
	t.Helper()
	if err := l.Round(n.text, n.swap); err != nil {
		t.Fatal(err)
	}
}

func TestLead(t *testing.T) {
	n := &note{now: time.Unix(1795300000, 0)}
	a, b := n.lead("a"), n.lead("b")
	n.round(t, a)
	n.round(t, b)
	if !a.Leading() || b.Leading() || Holder(n.text) != "a" || !Noted(n.text).Equal(n.now) {
		t.Fatalf("at first: %q", n.text)
	}
	for range 100 { // it stays
		n.now = n.now.Add(time.Second)
		n.round(t, a)
		n.round(t, b)
		if !a.Leading() || b.Leading() {
			t.Fatalf("the lead was lost: %q", n.text)
		}
	}
	// a is frozen.
	for silent := time.Duration(0); !b.Leading(); silent += time.Second {
		if silent > DeadAfter+RenewEvery {
			t.Fatal("nobody takes over")
		}
		n.now = n.now.Add(time.Second)
		n.round(t, b)
		if a.Leading() && b.Leading() {
			t.Fatal("two lead")
		}
	}
	if a.Leading() {
		t.Error("one that was frozen still leads")
	}
	n.round(t, a)
	if a.Leading() {
		t.Error("it leads again without being asked")
	}
	// b gives up, a takes over at once; giving up what is not one's own does nothing.
	if err := b.Resign(n.swap); err != nil || b.Leading() {
		t.Fatal(err)
	}
	n.round(t, a)
	if err := b.Resign(n.swap); err != nil || !a.Leading() || Holder(n.text) != "a" {
		t.Errorf("%v, %q", err, n.text)
	}
}

// Who cannot reach the note stops in time.
func TestLeadOutOfReach(t *testing.T) {
	n := &note{now: time.Unix(1795300000, 0)}
	a := n.lead("a")
	n.round(t, a)
	n.down = true
	for range int(ValidFor / time.Second) {
		n.now = n.now.Add(time.Second)
		if err := a.Round(n.text, n.swap); err != nil && !errors.Is(err, syscall.ETIMEDOUT) {
			t.Fatal(err)
		}
	}
	if a.Leading() || !a.Until().Equal(n.now) {
		t.Errorf("it leads until %v at %v", a.Until(), n.now)
	}
	// A change whose success was not told is recognised.
	n.down, n.lose = false, true
	if err := a.Round(n.text, n.swap); !errors.Is(err, syscall.ETIMEDOUT) || a.Leading() {
		t.Errorf("not told: %v", err)
	}
	n.lose = false
	n.round(t, a)
	if !a.Leading() {
		t.Error("its own note is not recognised")
	}
}

// However long each of several takes between reading the note and acting on it,
// no two lead at a time.
func TestLeadHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := &note{now: time.Unix(1795300000, 0)}
		names := []string{"a", "b", "c"}
		var leads []*Lead
		for _, name := range names {
			leads = append(leads, n.lead(name))
		}
		read := make([]string, len(leads))
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			n.now = n.now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			i := rapid.IntRange(0, len(leads)-1).Draw(t, "who")
			n.down, n.lose = rapid.IntRange(0, 9).Draw(t, "down") == 0, rapid.IntRange(0, 9).Draw(t, "lose") == 0
			switch rapid.IntRange(0, 9).Draw(t, "does") {
			case 0:
				_ = leads[i].Resign(n.swap)
			case 1, 2, 3:
				read[i] = n.text
			case 4: // a new process
				leads[i], read[i] = n.lead(names[i]+"x"), ""
				names[i] += "x"
			default:
				_ = leads[i].Round(read[i], n.swap)
				read[i] = n.text
			}
			leading := 0
			for _, l := range leads {
				if l.Leading() {
					leading++
				}
			}
			if leading > 1 {
				t.Fatalf("%d lead, the note is %q", leading, n.text)
			}
		}
	})
}
