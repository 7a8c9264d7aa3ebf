package dirmap

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// script drives a Map and writes down what it asks for.
type script struct {
	*Map
	t   *testing.T
	now time.Time
	got []Action
}

func start(t *testing.T, units []Mapping, instances ...string) *script {
	s := &script{Map: New(Params{}), t: t, now: t0}
	s.tell(Loaded{Units: units, Instances: instances})
	return s
}

func (s *script) tell(ev Event) { s.got = append(s.got, s.Handle(ev, s.now)...) }

func (s *script) wait(d time.Duration) {
	s.now = s.now.Add(d)
	s.tell(Tick{})
}

// expect compares the actions asked for since the last call; they stay open.
func (s *script) expect(want ...string) []Action {
	s.t.Helper()
	got := s.got
	s.got = nil
	var text []string
	for _, a := range got {
		line := fmt.Sprintf("%s %s", a.Kind, a.Mapping.Unit)
		if a.Mapping.Instance != "" {
			line += " " + a.Mapping.Instance
		}
		if a.Mapping.Purging {
			line += " purging"
		}
		text = append(text, line)
	}
	if diff := cmp.Diff(want, text); diff != "" {
		s.t.Fatalf("actions (-want +got):\n%s", diff)
	}
	return got
}

// ok expects actions and reports them as done.
func (s *script) ok(want ...string) {
	s.t.Helper()
	for _, a := range s.expect(want...) {
		s.tell(ActionDone{Action: a})
	}
}

// fail expects actions and reports that they failed.
func (s *script) fail(want ...string) {
	s.t.Helper()
	for _, a := range s.expect(want...) {
		s.tell(ActionDone{Action: a, Err: errors.New("failed")})
	}
}

func (s *script) state(unit, want string) {
	s.t.Helper()
	st, ok := s.Unit(unit)
	got := st.State.String()
	if !ok {
		got = "gone"
	} else if st.Stalled {
		got = "stalled"
	}
	if got != want {
		s.t.Fatalf("state of %s is %q, want %q", unit, got, want)
	}
}

func TestUnitIsStoredThenAcquired(t *testing.T) {
	s := start(t, nil, "1")
	s.tell(UnitAdded{"/a"})
	s.state("/a", "mapping")
	s.ok("store /a 1")
	s.ok("acquire /a 1")
	s.state("/a", "mapped")
	s.tell(UnitAdded{"/a"})
	s.expect()
}

func TestUnitsWaitForTheFirstInstance(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/old"}})
	s.tell(UnitAdded{"/a"})
	s.tell(UnitAdded{"/b"})
	s.expect()
	s.state("/a", "stalled")
	s.wait(time.Second)
	if !s.Settled() {
		t.Fatal("stalled units count as unsettled")
	}
	s.tell(UnitRemoved{"/b"}) // nobody is needed for that
	s.ok("delete /b")
	s.state("/b", "gone")
	s.tell(InstanceJoined{"7"})
	s.ok("store /a 7", "store /old 7")
	s.ok("acquire /a 7", "acquire /old 7")
}

func TestRemovalIsMarkedBeforeTheRelease(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1"}}, "1")
	s.state("/a", "resolving")
	s.ok("acquire /a 1")
	s.tell(UnitRemoved{"/a"})
	s.ok("store /a 1 purging")
	s.state("/a", "unmapping")
	s.ok("release /a 1 purging")
	s.ok("delete /a 1 purging")
	s.state("/a", "gone")
}

func TestRemovalGoesOnAfterRestart(t *testing.T) {
	s := start(t, []Mapping{
		{Unit: "/dead", Instance: "9", Purging: true},
		{Unit: "/free", Purging: true},
		{Unit: "/live", Instance: "1", Purging: true},
	}, "1")
	s.ok("delete /dead 9 purging", "delete /free purging", "release /live 1 purging")
	s.ok("delete /live 1 purging")
}

func TestUnitAddedAgainWhileRemoved(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1", Purging: true}}, "1")
	s.tell(UnitAdded{"/a"})
	s.ok("release /a 1 purging")
	s.ok("delete /a 1 purging")
	s.ok("store /a 1")
	s.ok("acquire /a 1")
}

func TestRemovalWhileAnActionIsUnderWay(t *testing.T) {
	s := start(t, nil, "1")
	s.tell(UnitAdded{"/a"})
	store := s.expect("store /a 1")
	s.tell(UnitRemoved{"/a"})
	s.expect()
	s.tell(ActionDone{Action: store[0]})
	s.ok("store /a 1 purging")
	s.ok("delete /a 1 purging") // never acquired, nothing to release

	s.tell(UnitAdded{"/b"})
	s.ok("store /b 1")
	acquire := s.expect("acquire /b 1")
	s.tell(UnitRemoved{"/b"})
	s.tell(ActionDone{Action: acquire[0], Err: errors.New("timed out")})
	s.ok("store /b 1 purging")
	s.ok("release /b 1 purging") // the failed one may have had its effect
	s.ok("delete /b 1 purging")
}

func TestFailedAcquireIsReleasedBeforeItIsRepeated(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1"}}, "1")
	s.fail("acquire /a 1")
	s.wait(500 * time.Millisecond)
	s.expect()
	s.wait(500 * time.Millisecond)
	s.fail("release /a 1")
	s.wait(time.Second)
	s.expect()
	s.wait(time.Second)
	s.ok("release /a 1")
	s.ok("acquire /a 1")
	s.state("/a", "mapped")
}

func TestFailedStoreIsRepeated(t *testing.T) {
	s := start(t, nil, "1")
	s.tell(UnitAdded{"/a"})
	s.fail("store /a 1")
	s.wait(time.Second)
	s.ok("store /a 1")
	s.ok("acquire /a 1")
}

func TestLostResultIsMadeUpFor(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1"}}, "1")
	lost := s.expect("acquire /a 1")
	s.wait(59 * time.Second)
	s.expect()
	s.wait(time.Second)
	s.expect("release /a 1")
	s.tell(ActionDone{Action: lost[0]}) // too late
	s.expect()
	s.state("/a", "resolving")
}

func TestStrayResultsAreIgnored(t *testing.T) {
	s := start(t, nil, "1")
	s.tell(UnitAdded{"/a"})
	store := s.expect("store /a 1")
	s.tell(ActionDone{Action: Action{Kind: Acquire, Mapping: Mapping{Unit: "/a"}}})
	s.tell(ActionDone{Action: Action{Kind: Store, Mapping: Mapping{Unit: "/b"}, Seq: store[0].Seq}})
	s.expect()
	s.tell(ActionDone{Action: store[0]})
	s.tell(ActionDone{Action: store[0]})
	s.ok("acquire /a 1")
	s.state("/a", "mapped")
	s.tell(ActionDone{Action: store[0], Err: errors.New("late")})
	s.wait(time.Hour)
	s.expect()
}

func TestDeadInstancesUnitsMoveAtOnce(t *testing.T) {
	s := start(t, []Mapping{
		{Unit: "/a", Instance: "1", LastShuffled: t0},
		{Unit: "/b", Instance: "1", LastShuffled: t0},
		{Unit: "/c", Instance: "2", LastShuffled: t0},
	}, "1", "2")
	s.ok("acquire /a 1", "acquire /b 1", "acquire /c 2")
	s.tell(InstanceLeft{"1"})
	s.ok("store /a 2", "store /b 2")
	s.ok("acquire /a 2", "acquire /b 2")
	s.tell(InstanceLeft{"2"})
	s.expect()
	s.state("/a", "stalled")
	s.tell(InstanceJoined{"3"})
	s.ok("store /a 3", "store /b 3", "store /c 3")
}

func TestUnitsOfUnknownInstancesMoveOnLoad(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "gone"}, {Unit: "/b", Instance: "2"}}, "1", "2")
	s.ok("store /a 1", "acquire /b 2")
	s.ok("acquire /a 1")
}

func TestInstanceDiesDuringAcquire(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1"}}, "1", "2")
	late := s.expect("acquire /a 1")
	s.tell(InstanceLeft{"1"})
	store := s.expect("store /a 2")
	s.tell(ActionDone{Action: late[0]})
	s.expect()
	s.tell(ActionDone{Action: store[0]})
	acquire := s.expect("acquire /a 2")
	s.tell(ActionDone{Action: late[0]})
	s.state("/a", "mapping")
	s.tell(ActionDone{Action: acquire[0]})
	s.state("/a", "mapped")
}

func TestInstanceDiesDuringStore(t *testing.T) {
	s := start(t, nil, "1", "2")
	s.tell(UnitAdded{"/a"})
	store := s.expect("store /a 1")
	s.tell(InstanceLeft{"1"})
	s.expect() // a second store must not overtake the first
	s.tell(ActionDone{Action: store[0]})
	s.ok("store /a 2")
	s.ok("acquire /a 2")
}

func TestInstanceDiesDuringRemoval(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1", Purging: true}}, "1")
	s.expect("release /a 1 purging")
	s.tell(InstanceLeft{"1"})
	s.ok("delete /a 1 purging")
	s.state("/a", "gone")
}

func TestNewInstanceGetsItsShare(t *testing.T) {
	old := t0.Add(-time.Hour)
	s := start(t, []Mapping{
		{Unit: "/a", Instance: "1", LastShuffled: old.Add(4)},
		{Unit: "/b", Instance: "1", LastShuffled: old.Add(3)},
		{Unit: "/c", Instance: "1", LastShuffled: old.Add(2)},
		{Unit: "/d", Instance: "1", LastShuffled: old.Add(1)},
		{Unit: "/e", Instance: "1", LastShuffled: t0},
	}, "1")
	s.ok("acquire /a 1", "acquire /b 1", "acquire /c 1", "acquire /d 1", "acquire /e 1")
	s.tell(InstanceJoined{"2"})
	s.state("/d", "shuffling")
	s.ok("release /d 1", "release /c 1") // two of five, the longest settled
	s.ok("store /d 2", "store /c 2")
	s.ok("acquire /d 2", "acquire /c 2")
	s.wait(time.Hour)
	s.expect()
}

func TestThrottledMovesAreMadeUpFor(t *testing.T) {
	s := start(t, nil, "1")
	for _, u := range []string{"/a", "/b"} {
		s.tell(UnitAdded{u})
		s.ok("store " + u + " 1")
		s.ok("acquire " + u + " 1")
	}
	s.wait(10 * time.Second)
	s.tell(InstanceJoined{"2"})
	s.expect()
	s.wait(289 * time.Second)
	s.expect()
	s.wait(time.Second)
	s.ok("release /a 1")
	s.ok("store /a 2")
	s.ok("acquire /a 2")
	s.wait(time.Second)
	if !s.Settled() {
		t.Fatal("not settled")
	}
}

// Of instances that are started together one is there first and gets everything.
func TestColdStartIsEvenSoon(t *testing.T) {
	s := start(t, nil, "1")
	s.p.ColdStart = 30 * time.Second
	for _, u := range []string{"/a", "/b", "/c"} {
		s.tell(UnitAdded{u})
		s.ok("store " + u + " 1")
		s.ok("acquire " + u + " 1")
	}
	s.wait(2 * time.Second)
	s.tell(InstanceJoined{"2"})
	s.ok("release /a 1")
	s.ok("store /a 2")
	s.ok("acquire /a 2")
	s.wait(40 * time.Second)
	s.tell(InstanceJoined{"3"}) // too late
	s.expect()
}

func TestMoveOfBusyUnitIsMadeUpFor(t *testing.T) {
	s := start(t, []Mapping{{Unit: "/a", Instance: "1"}, {Unit: "/b", Instance: "1"}}, "1")
	acquire := s.expect("acquire /a 1", "acquire /b 1")
	s.tell(InstanceJoined{"2"})
	s.expect()
	for _, a := range acquire {
		s.tell(ActionDone{Action: a})
	}
	s.wait(time.Second)
	s.ok("release /a 1")
	s.ok("store /a 2")
}

func TestLeadershipTakenOverAgain(t *testing.T) {
	s := start(t, nil, "1")
	s.tell(UnitAdded{"/a"})
	before := s.expect("store /a 1")
	s.tell(Loaded{Units: []Mapping{{Unit: "/a", Instance: "1"}}, Instances: []string{"1"}})
	s.tell(ActionDone{Action: before[0]})
	s.ok("acquire /a 1")
	s.state("/a", "mapped")
}
