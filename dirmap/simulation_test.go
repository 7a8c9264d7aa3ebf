package dirmap

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// simulation is a domain in which everything that is asked for happens.
type simulation struct {
	m         *Map
	now       time.Time
	decisions []time.Duration
	moves     int // units that were taken up by another instance than before
	must      int // the fewest moves that would have done
	owner     map[string]string
	next      int
	rand      *rand.Rand
}

func (s *simulation) handle(ev Event) []Action {
	begin := used()
	out := s.m.Handle(ev, s.now)
	s.decisions = append(s.decisions, used()-begin)
	return out
}

// used is the time that this thread has had a processor: others may be at work.
func used() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	if err := syscall.Getrusage(thread, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tell passes on what happened, and carries out all that follows from it.
func (s *simulation) tell(ev Event) {
	open := s.handle(ev)
	for len(open) > 0 {
		var next []Action
		for _, a := range open {
			u, in := a.Mapping.Unit, a.Mapping.Instance
			switch a.Kind {
			case Acquire:
				if was := s.owner[u]; was != "" && was != in {
					s.moves++
				}
				s.owner[u] = in
			case Delete:
				delete(s.owner, u)
			}
			next = append(next, s.handle(ActionDone{Action: a})...)
		}
		open = next
	}
}

// rest lets time pass until nothing is left to do.
func (s *simulation) rest() {
	for range 100 {
		s.now = s.now.Add(6 * time.Minute)
		s.tell(Tick{})
		if s.m.Settled() {
			return
		}
	}
}

// fewest is how many units must move, at the least, to even out the loads when
// orphans units have no owner.
func (s *simulation) fewest(orphans int) int {
	var counts []int
	total := orphans
	for _, l := range s.m.Loads() {
		if l.Draining {
			orphans += l.Units
			total += l.Units
			continue
		}
		counts = append(counts, l.Units)
		total += l.Units
	}
	slices.SortFunc(counts, func(a, b int) int { return cmp.Compare(b, a) })
	n := orphans
	for i, have := range counts {
		quota := total / len(counts)
		if i < total%len(counts) {
			quota++
		}
		n += max(0, have-quota)
	}
	return n
}

func (s *simulation) join() {
	s.next++
	id := fmt.Sprint(s.next)
	before := s.m.Loads()
	s.tell(InstanceJoined{id})
	total, has := 0, len(before)+1
	for _, l := range before {
		total += l.Units
	}
	over := 0
	slices.SortFunc(before, func(a, b Load) int { return cmp.Compare(b.Units, a.Units) })
	for i, l := range before {
		quota := total / has
		if i < total%has {
			quota++
		}
		over += max(0, l.Units-quota)
	}
	s.must += over
	s.rest()
}

func (s *simulation) any() Load {
	loads := s.m.Loads()
	return loads[s.rand.IntN(len(loads))]
}

func (s *simulation) die() {
	l := s.any()
	s.tell(InstanceLeft{l.Instance})
	s.must += l.Units
	s.rest()
}

func (s *simulation) drain() {
	l := s.any()
	s.m.Handle(InstanceDraining{l.Instance, true}, s.now)
	s.must += s.fewest(0)
	s.rest()
	s.tell(InstanceLeft{l.Instance}) // it has nothing any more
	s.rest()
}

// BenchmarkSimulation runs 100,000 units on 100 instances through joins, deaths,
// drains, additions and removals.
func BenchmarkSimulation(b *testing.B) {
	for name, policy := range map[string]Policy{"least units": LeastUnits, "load aware": LoadAware} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				simulate(b, policy)
			}
		})
	}
}

func simulate(b *testing.B, policy Policy) {
	const units, instances, rounds = 100_000, 100, 10
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after runtime.MemStats
	s := &simulation{
		m: New(Params{Policy: policy}), now: t0, owner: make(map[string]string, units), rand: rand.New(rand.NewPCG(1, 2)),
	}
	ev := Loaded{}
	for range instances {
		s.next++
		ev.Instances = append(ev.Instances, fmt.Sprint(s.next))
	}
	for i := range units {
		ev.Units = append(ev.Units, Mapping{Unit: fmt.Sprintf("/volumes/group/%06d", i)})
	}
	if policy == LoadAware {
		// A few units have most of the work.
		for i := range units {
			s.handle(UnitLoad{Unit: ev.Units[i].Unit, Bytes: 1e9 / float64(i+1)})
		}
	}
	s.decisions = nil
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := used()
	s.tell(ev)
	loading := used() - begin
	s.rest()
	runtime.GC()
	runtime.ReadMemStats(&after)
	memory := float64(after.HeapAlloc) - float64(before.HeapAlloc)

	slowest := slices.Max(s.decisions)
	s.moves, s.must, s.decisions = 0, 0, s.decisions[:0]
	begin = used()
	for i := range rounds {
		s.join()
		s.die()
		s.drain()
		s.join()
		s.tell(UnitAdded{fmt.Sprintf("/new/%d", i)})
		s.tell(UnitRemoved{ev.Units[i].Unit})
		s.rest()
	}
	took := used() - begin
	if policy == LeastUnits {
		// The counts may differ by one, and an even share need not be whole.
		if s.moves > s.must+s.must/100 {
			b.Errorf("%d moves, %d would do", s.moves, s.must)
		}
	}
	slices.Sort(s.decisions)
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	b.ReportMetric(ms(slowest), "ms-first-decision")
	b.ReportMetric(ms(loading), "ms-all-assigned")
	b.ReportMetric(ms(s.decisions[len(s.decisions)-1]), "ms-slowest-decision")
	b.ReportMetric(ms(s.decisions[len(s.decisions)*999/1000])*1000, "µs-99.9%-decision")
	b.ReportMetric(float64(s.moves), "moves")
	if policy == LeastUnits {
		b.ReportMetric(float64(s.must), "moves-needed")
	}
	b.ReportMetric(memory/units, "B/unit")
	b.Logf("%d decisions in %v for %d joins, deaths and drains", len(s.decisions), took.Round(time.Millisecond), 4*rounds)
}
