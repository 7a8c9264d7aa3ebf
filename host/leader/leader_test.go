package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/dirmap"
	"cephmirror/plugins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a stored map and what its instances were told.
type cluster struct {
	mu       sync.Mutex
	loadErrs int
	failDo   int
	stored   map[string]string          // unit to instance
	owns     map[string]map[string]bool // instance to units
	deleted  []string
}

func (c *cluster) LoadMap(_ context.Context, domain string) (plugins.Map, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loadErrs > 0 {
		c.loadErrs--
		return plugins.Map{}, errors.New("not now")
	}
	m := plugins.Map{}
	for unit, owner := range c.stored {
		m.Units = append(m.Units, plugins.Mapping{Unit: unit, Instance: owner})
	}
	for id := range c.owns {
		m.Instances = append(m.Instances, id)
	}
	slices.Sort(m.Instances)
	return m, nil
}

func (c *cluster) Do(_ context.Context, _ string, a plugins.Action) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failDo > 0 {
		c.failDo--
		return errors.New("notify timed out")
	}
	unit, id := a.Mapping.Unit, a.Mapping.Instance
	switch a.Kind {
	case plugins.ActionStore:
		c.stored[unit] = id
	case plugins.ActionDelete:
		delete(c.stored, unit)
		c.deleted = append(c.deleted, unit)
	case plugins.ActionAcquire:
		for other, units := range c.owns {
			if units[unit] && other != id {
				return fmt.Errorf("%s is owned by %s and given to %s", unit, other, id)
			}
		}
		c.owns[id][unit] = true
	case plugins.ActionRelease:
		delete(c.owns[id], unit)
	}
	return nil
}

func (c *cluster) load(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.owns[id])
}

func (c *cluster) has(id, unit string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owns[id][unit]
}

func TestLoopAssignsAndMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{stored: map[string]string{}, owns: map[string]map[string]bool{"1": {}}, loadErrs: 2, failDo: 1}
		for i := range 40 {
			c.stored[fmt.Sprintf("/d%d", i)] = ""
		}
		l := Start(t.Context(), c, "cephfs@1", dirmap.Params{ShuffleInterval: time.Minute}, zerolog.New(zerolog.NewTestWriter(t)))
		defer l.Close()
		l.Tell(plugins.Event{Kind: plugins.EventUnitAdded, Unit: "/late"}) // before the map is loaded
		time.Sleep(time.Minute)
		if n := c.load("1"); n != 41 {
			t.Errorf("one instance owns %d of 41", n)
		}
		if st := l.Status(); !st.Settled || !st.Loaded || st.LastError == "" {
			t.Errorf("%+v", st)
		}

		c.mu.Lock()
		c.owns["2"] = map[string]bool{}
		c.mu.Unlock()
		l.Tell(plugins.Event{Kind: plugins.EventInstanceJoined, Instance: "2"})
		time.Sleep(5 * time.Minute)
		if a, b := c.load("1"), c.load("2"); a+b != 41 || max(a, b)-min(a, b) > 1 {
			t.Errorf("loads %d and %d", a, b)
		}

		c.mu.Lock()
		c.owns["1"] = map[string]bool{} // dead
		c.mu.Unlock()
		l.Tell(plugins.Event{Kind: plugins.EventInstanceLeft, Instance: "1"})
		l.Tell(plugins.Event{Kind: plugins.EventUnitRemoved, Unit: "/late"})
		time.Sleep(5 * time.Minute)
		if n := c.load("2"); n != 40 {
			t.Errorf("the survivor owns %d of 40", n)
		}
		if !slices.Equal(c.deleted, []string{"/late"}) {
			t.Errorf("deleted %v", c.deleted)
		}
	})
}

func TestOrdersAreHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{stored: map[string]string{}, owns: map[string]map[string]bool{"1": {}, "2": {}}}
		for i := range 10 {
			c.stored[fmt.Sprintf("/d%d", i)] = "1"
			c.owns["1"][fmt.Sprintf("/d%d", i)] = true
		}
		l := Start(t.Context(), c, "d", dirmap.Params{ShuffleInterval: time.Hour}, zerolog.Nop())
		defer l.Close()
		l.Tell(plugins.Event{Kind: plugins.EventUnitPinned, Unit: "/d3", Instance: "2"})
		time.Sleep(time.Minute)
		if !c.has("2", "/d3") {
			t.Error("what is pinned has not moved")
		}
		l.Tell(plugins.Event{Kind: plugins.EventInstanceDraining, Instance: "1"})
		time.Sleep(time.Minute)
		if n := c.load("2"); n != 10 {
			t.Errorf("who is drained has kept %d", c.load("1"))
		}
		if st := l.Status(); !st.Settled || !st.Instances[0].Draining {
			t.Errorf("%+v", st)
		}
		l.Tell(plugins.Event{Kind: plugins.EventInstanceServing, Instance: "1"})
		time.Sleep(2 * time.Hour)
		if n := c.load("1"); n != 5 {
			t.Errorf("who serves again has %d", n)
		}
	})
}

func TestCloseDuringLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := Start(t.Context(), &cluster{loadErrs: 1000}, "d", dirmap.Params{}, zerolog.Nop())
		time.Sleep(10 * time.Second)
		l.Close()
	})
}
