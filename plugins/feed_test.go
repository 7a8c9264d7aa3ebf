package plugins

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestFeedSendsStateInOrderThenChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Feed
		f.Publish(
			Event{Kind: EventDomainUp, Domain: "b@2"},
			Event{Kind: EventInstanceJoined, Domain: "b@2", Instance: "1"},
			Event{Kind: EventUnitAdded, Domain: "b@2", Unit: "/x"},
			Event{Kind: EventCommandAdded, Spec: CommandSpec{Signature: "old name=a,type=CephString"}},
			Event{Kind: EventCommandAdded, Spec: CommandSpec{Signature: "fs mirror status b@2", Help: "h"}},
			Event{Kind: EventLeaderGained, Domain: "b@2"},
			Event{Kind: EventDomainUp, Domain: "a@1"},
			Event{Kind: EventCommandRemoved, Spec: CommandSpec{Signature: "old"}},
		)
		var got []Event
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Events(ctx, func(e Event) error { got = append(got, e); return nil }) }()
		synctest.Wait()
		f.Publish(Event{Kind: EventUnitAdded, Domain: "b@2", Unit: "/x"}) // known: not told
		f.Publish(Event{Kind: EventUnitRemoved, Domain: "b@2", Unit: "/x"}, Event{Kind: EventDomainDown, Domain: "b@2"})
		synctest.Wait()
		want := []Event{
			{Kind: EventDomainUp, Domain: "b@2"},
			{Kind: EventDomainUp, Domain: "a@1"},
			{Kind: EventLeaderGained, Domain: "b@2"},
			{Kind: EventCommandAdded, Spec: CommandSpec{Signature: "fs mirror status b@2", Help: "h"}},
			{Kind: EventUnitAdded, Domain: "b@2", Unit: "/x"},
			{Kind: EventInstanceJoined, Domain: "b@2", Instance: "1"},
			{Kind: EventSynced},
			{Kind: EventUnitRemoved, Domain: "b@2", Unit: "/x"},
			{Kind: EventDomainDown, Domain: "b@2"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if n := len(f.state()); n != 3 {
			t.Errorf("%d events of state left, want the other domain, a command and the end mark", n)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Events: %v", err)
		}
	})
}

func TestFeedDropsASlowReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Feed
		block := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- f.Events(t.Context(), func(Event) error { <-block; return nil })
		}()
		synctest.Wait()
		for i := range feedBuffer + 1 {
			f.Publish(Event{Kind: EventUnitRemoved, Domain: "d", Unit: fmt.Sprint(i)})
		}
		close(block)
		if err := <-ended; !errors.Is(err, syscall.ENOBUFS) {
			t.Errorf("Events: %v", err)
		}
	})
}

func TestFeedClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Feed
		ended := make(chan error, 1)
		go func() { ended <- f.Events(t.Context(), func(Event) error { return nil }) }()
		synctest.Wait()
		f.Close()
		if err := <-ended; err != nil {
			t.Errorf("Events: %v", err)
		}
		if err := f.Events(t.Context(), func(Event) error { return nil }); err != nil {
			t.Errorf("Events after Close: %v", err)
		}
	})
}

// Whoever subscribes, whenever, ends with the same picture.
func TestFeedProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var f Feed
		picture := map[string]bool{}
		apply := func(picture map[string]bool, e Event) {
			switch e.Kind {
			case EventUnitAdded:
				picture[e.Domain+e.Unit] = true
			case EventUnitRemoved:
				delete(picture, e.Domain+e.Unit)
			case EventDomainUp:
				picture[e.Domain] = true
			case EventDomainDown:
				for k := range picture {
					if k[0] == e.Domain[0] {
						delete(picture, k)
					}
				}
			}
		}
		kinds := []EventKind{EventUnitAdded, EventUnitRemoved, EventDomainUp, EventDomainDown}
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			e := Event{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Domain: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "domain")}
			if e.Kind <= EventDomainDown {
				f.Publish(e)
				apply(picture, e)
				continue
			}
			e.Unit = rapid.SampledFrom([]string{"/1", "/2", "/3"}).Draw(t, "unit")
			f.Publish(e)
			apply(picture, e)
		}
		got := map[string]bool{}
		for _, e := range f.state() {
			apply(got, e)
		}
		if diff := cmp.Diff(picture, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestPrefix(t *testing.T) {
	for signature, want := range map[string]string{
		"config get name=var,type=CephString": "config get",
		"fs  mirror status cephfs@1":          "fs mirror status cephfs@1",
		"":                                    "",
	} {
		if got := (CommandSpec{Signature: signature}).Prefix(); got != want {
			t.Errorf("%q: %q, want %q", signature, got, want)
		}
	}
}
