package scheduling

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/plugins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is a board with one domain, whose work waits until it is let go.
type place struct {
	*Board
	d     *Domain
	clock time.Time
	valid bool
	work  []func()
	fail  error
	last  time.Time
}

func newPlace() *place {
	p := &place{clock: time.Unix(1795300000, 0), valid: true}
	p.Board = NewBoard(func() bool { return p.valid }, 2)
	p.now = func() time.Time { return p.clock }
	p.d = p.Join(5, Maker{
		Log: zerolog.Nop(),
		Go:  func(do func()) { p.work = append(p.work, do) },
		Make: func(u plugins.ScheduleUnit) (plugins.ScheduleUnit, error) {
			if p.fail == nil {
				u.Last = p.last
				u.Own = append(slices.Clone(u.Own), plugins.ScheduledSnapshot{Name: fmt.Sprint("s", len(u.Own))})
			}
			return u, p.fail
		},
		Remove: func(u plugins.ScheduleUnit, names []string) (plugins.ScheduleUnit, error) {
			if p.fail == nil {
				u.Own = slices.DeleteFunc(slices.Clone(u.Own), func(s plugins.ScheduledSnapshot) bool { return slices.Contains(names, s.Name) })
			}
			return u, p.fail
		},
	})
	p.d.Show(plugins.ScheduleDomain{Name: "pool", Units: []plugins.ScheduleUnit{{ID: "5//a", Name: "pool/a"}, {ID: "5//b", Name: "pool/b"}}})
	p.lead()
	return p
}

func (p *place) lead() { p.d.Lead(p.clock.Add(8 * time.Second)) }

func (p *place) finish() {
	for _, do := range p.work {
		do()
	}
	p.work = nil
}

func (p *place) ask(prefix string, args map[string]any) error {
	_, ok, err := p.Call(plugins.Command{Prefix: prefix, Args: args})
	if !ok {
		return errors.New("not known")
	}
	return err
}

func (p *place) run(unit string) error {
	return p.ask(plugins.ScheduleRun, map[string]any{"id": unit})
}

func (p *place) watch(t *testing.T, known uint64) plugins.ScheduleState {
	t.Helper()
	out, ok, err := p.Call(plugins.Command{Prefix: plugins.ScheduleWatch, Args: map[string]any{"generation": strconv.FormatUint(known, 10)}})
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	return out.(plugins.ScheduleState)
}

func (p *place) unit(t *testing.T, id string) plugins.ScheduleUnit {
	t.Helper()
	for _, d := range p.watch(t, 0).Domains {
		for _, u := range d.Units {
			if u.ID == id {
				return u
			}
		}
	}
	t.Fatalf("there is no unit %s", id)
	return plugins.ScheduleUnit{}
}

func expect(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestWatch(t *testing.T) {
	p := newPlace()
	first := p.watch(t, 0)
	if len(first.Domains) != 1 || len(first.Domains[0].Units) != 2 {
		t.Fatalf("shown: %+v", first)
	}
	if again := p.watch(t, first.Generation); again.Generation != first.Generation || again.Domains != nil {
		t.Errorf("told again: %+v", again)
	}
	p.lead() // renewed: nothing new
	p.d.Trouble(nil)
	if again := p.watch(t, first.Generation); again.Generation != first.Generation {
		t.Error("a renewal is told")
	}
	p.d.Trouble(errors.New("the MDS is gone"))
	if now := p.watch(t, first.Generation); len(now.Domains) != 1 || now.Domains[0].Error != "the MDS is gone" {
		t.Errorf("trouble: %+v", now)
	}
	// A lead that is not renewed runs out.
	p.clock = p.clock.Add(9 * time.Second)
	out := p.watch(t, first.Generation)
	if len(out.Domains) != 0 || out.Generation == first.Generation {
		t.Errorf("ran out: %+v", out)
	}
	p.lead()
	if now := p.watch(t, out.Generation); len(now.Domains) != 1 {
		t.Errorf("back: %+v", now)
	}
	p.d.Leave()
	if now := p.watch(t, 0); len(now.Domains) != 0 {
		t.Errorf("left: %+v", now)
	}
	expect(t, "after leaving", p.run("5//a"), syscall.ESTALE)
}

// Who left does not take away what has joined in its place.
func TestLeaveLate(t *testing.T) {
	p := newPlace()
	next := p.Join(5, Maker{})
	next.Show(plugins.ScheduleDomain{Name: "next"})
	next.Lead(p.clock.Add(time.Second))
	p.d.Leave()
	if now := p.watch(t, 0); len(now.Domains) != 1 || now.Domains[0].Name != "next" {
		t.Errorf("shown: %+v", now)
	}
}

func TestRun(t *testing.T) {
	p := newPlace()
	p.last = p.clock
	expect(t, "begun", p.run("5//a"), nil)
	expect(t, "again", p.run("5//a"), syscall.EALREADY)
	if u := p.unit(t, "5//a"); !u.Busy || p.unit(t, "5//b").Busy {
		t.Errorf("under way: %+v", u)
	}
	p.finish()
	want := plugins.ScheduleUnit{ID: "5//a", Name: "pool/a", Last: p.last, Own: []plugins.ScheduledSnapshot{{Name: "s0"}}, Taken: 1}
	if d := cmp.Diff(want, p.unit(t, "5//a")); d != "" {
		t.Error(d)
	}
	p.fail = syscall.ENOSPC
	expect(t, "begun", p.run("5//a"), nil)
	p.finish()
	if u := p.unit(t, "5//a"); u.Failures != 1 || u.Taken != 1 || u.Error != "no space left on device" || u.Busy {
		t.Errorf("failed: %+v", u)
	}
	// What cannot be removed is an error, too, but no snapshot that failed.
	expect(t, "removing", p.ask(plugins.SchedulePrune, map[string]any{"id": "5//a", "names": []any{"s0"}}), nil)
	p.finish()
	if u := p.unit(t, "5//a"); u.Failures != 1 || u.Error != "no space left on device; no space left on device" {
		t.Errorf("failed twice: %+v", u)
	}
	p.fail = nil
	expect(t, "begun", p.run("5//a"), nil)
	p.finish()
	if u := p.unit(t, "5//a"); u.Failures != 1 || u.Taken != 2 || u.Error != "no space left on device" {
		t.Errorf("one is well again: %+v", u)
	}
	expect(t, "removing", p.ask(plugins.SchedulePrune, map[string]any{"id": "5//a", "names": []string{"s0"}}), nil)
	p.finish()
	if u := p.unit(t, "5//a"); u.Error != "" || len(u.Own) != 1 {
		t.Errorf("all is well again: %+v", u)
	}

	p.fail = ErrGone
	expect(t, "begun", p.run("5//b"), nil)
	p.finish()
	expect(t, "gone", p.run("5//b"), syscall.ESTALE)
	if units := p.watch(t, 0).Domains[0].Units; len(units) != 1 {
		t.Errorf("shown: %+v", units)
	}
	expect(t, "no unit", p.run("nonsense"), syscall.EINVAL)
	expect(t, "not followed here", p.run("6//a"), syscall.ESTALE)
	if _, ok, _ := p.Call(plugins.Command{Prefix: plugins.ScheduleList}); ok {
		t.Error("a command that is not for the board is answered")
	}
}

// Nothing is made by one that does not lead for sure, when it is asked and when
// its turn comes.
func TestOnlyTheLeader(t *testing.T) {
	p := newPlace()
	p.clock = p.clock.Add(8 * time.Second)
	expect(t, "the lead has run out", p.run("5//a"), syscall.ESTALE)
	p.lead()
	p.valid = false
	expect(t, "no lease", p.run("5//a"), syscall.ESTALE)
	p.valid = true
	expect(t, "begun", p.run("5//a"), nil)
	p.clock = p.clock.Add(8 * time.Second)
	p.finish()
	p.lead()
	if u := p.unit(t, "5//a"); u.Taken != 0 || u.Failures != 0 || u.Busy || u.Own != nil {
		t.Errorf("made although the lead was lost: %+v", u)
	}
}

// However many are due, a few are made at a time.
func TestAtOnce(t *testing.T) {
	b := NewBoard(func() bool { return true }, 3)
	var mu sync.Mutex
	var wg sync.WaitGroup
	now, most := 0, 0
	begun, release := make(chan struct{}, 20), make(chan struct{})
	d := b.Join(1, Maker{
		Log: zerolog.Nop(), Go: wg.Go,
		Make: func(u plugins.ScheduleUnit) (plugins.ScheduleUnit, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			begun <- struct{}{}
			<-release
			mu.Lock()
			now--
			mu.Unlock()
			return u, nil
		},
	})
	var s plugins.ScheduleDomain
	for i := range 20 {
		s.Units = append(s.Units, plugins.ScheduleUnit{ID: fmt.Sprint("1/", i)})
	}
	d.Show(s)
	d.Lead(time.Now().Add(time.Hour))
	for _, u := range s.Units {
		if _, _, err := b.Call(plugins.Command{Prefix: plugins.ScheduleRun, Args: map[string]any{"id": u.ID}}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		<-begun
	}
	for range s.Units {
		release <- struct{}{}
	}
	wg.Wait()
	if most != 3 {
		t.Errorf("%d at once", most)
	}
	var taken uint64
	for _, u := range b.state(0).Domains[0].Units {
		taken += u.Taken
	}
	if taken != 20 {
		t.Errorf("%d taken", taken)
	}
	d.Leave()
}
