package plugins

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"testing"
)

// book is an Assigner that writes down what it is asked for.
type book struct {
	said []string
	pins map[string]string
}

func (b *book) Drain(_ context.Context, on bool) error {
	b.said = append(b.said, fmt.Sprint("drain ", on))
	return nil
}

func (b *book) Pin(_ context.Context, domain, unit, worker string) error {
	b.said = append(b.said, fmt.Sprintf("pin %s %s %q", domain, unit, worker))
	return nil
}

func (b *book) Pins(_ context.Context, domain string) (map[string]string, error) {
	return b.pins, nil
}

func TestCallAssigner(t *testing.T) {
	for _, c := range []struct {
		verb string
		args map[string]any
		said string
		err  error
	}{
		{verb: "drain", said: "drain true"},
		{verb: "serve", said: "drain false"},
		{verb: "pin", args: map[string]any{"domain": "d", "unit": "u", "worker": "w"}, said: `pin d u "w"`},
		{verb: "pin", args: map[string]any{"domain": "d", "unit": "u"}, err: syscall.EINVAL},
		{verb: "unpin", args: map[string]any{"domain": "d", "unit": "u"}, said: `pin d u ""`},
		{verb: "unpin", args: map[string]any{"domain": "d"}, err: syscall.EINVAL},
		{verb: "pins", err: syscall.EINVAL},
		{verb: "other", err: syscall.EINVAL},
	} {
		b := &book{}
		_, err := CallAssigner(t.Context(), b, Command{Prefix: AssignPrefix + c.verb, Args: c.args})
		if !errors.Is(err, c.err) {
			t.Errorf("%s %v: %v", c.verb, c.args, err)
		}
		if c.said != "" && (len(b.said) != 1 || b.said[0] != c.said) {
			t.Errorf("%s %v: %q", c.verb, c.args, b.said)
		}
	}
	b := &book{pins: map[string]string{"u": "w"}}
	out, err := CallAssigner(t.Context(), b, Command{Prefix: AssignPrefix + "pins", Args: map[string]any{"domain": "d"}})
	if got, ok := out.(map[string]string); err != nil || !ok || !maps.Equal(got, b.pins) {
		t.Errorf("%v %v", out, err)
	}
}

// TestFeedOrders: what only a leader tells is forgotten with the leadership.
func TestFeedOrders(t *testing.T) {
	var f Feed
	f.Publish(
		Event{Kind: EventDomainUp, Domain: "d"}, Event{Kind: EventLeaderGained, Domain: "d"},
		Event{Kind: EventUnitAdded, Domain: "d", Unit: "a"}, Event{Kind: EventInstanceJoined, Domain: "d", Instance: "1"},
		Event{Kind: EventUnitPinned, Domain: "d", Unit: "a", Instance: "1"},
		Event{Kind: EventUnitPinned, Domain: "d", Unit: "b", Instance: "1"},
		Event{Kind: EventUnitPinned, Domain: "d", Unit: "b"},
		Event{Kind: EventInstanceDraining, Domain: "d", Instance: "1"},
		Event{Kind: EventInstanceDraining, Domain: "d", Instance: "2"},
		Event{Kind: EventInstanceServing, Domain: "d", Instance: "2"},
		Event{Kind: EventUnitLoad, Domain: "d", Unit: "a", Load: Load{Bytes: 5, Lag: 6}},
	)
	count := map[EventKind]int{}
	for _, e := range f.state() {
		count[e.Kind]++
		if back := eventFromPB(eventToPB(e)); back != e {
			t.Errorf("%+v becomes %+v", e, back)
		}
	}
	for _, k := range []EventKind{EventUnitPinned, EventInstanceDraining, EventUnitLoad} {
		if count[k] != 1 {
			t.Errorf("%d of kind %d", count[k], k)
		}
	}
	f.Publish(Event{Kind: EventLeaderLost, Domain: "d"})
	if got := f.state(); len(got) != 2 {
		t.Errorf("left: %+v", got)
	}
}
