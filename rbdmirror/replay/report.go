package replay

import (
	"sync"
	"time"

	"cephmirror/rbdmirror/replay/plan"
)

// reporter hands out the status, one change after the other.
type reporter struct {
	report func(Status)

	mu  sync.Mutex
	now Status
}

func (r *reporter) init(report func(Status)) { r.report = report }

func (r *reporter) last() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// update changes the status and reports it if that makes a difference.
func (r *reporter) update(change func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.now
	change(&next)
	if next == r.now {
		return
	}
	r.now = next
	if r.report != nil {
		r.report(next)
	}
}

// set reports a state in which the image is not replayed.
func (r *Replayer) set(state State, text string, phase Phase, more ...func(*Status)) {
	r.reports.update(func(s *Status) {
		s.State, s.Description, s.Phase = state, text, phase
		s.Syncing, s.Err, s.NextTry, s.Failures = false, nil, time.Time{}, 0
		s.wait("")
		for _, m := range more {
			m(s)
		}
	})
}

// wait notes what is waited for, and since when.
func (s *Status) wait(what string) {
	if s.WaitingFor == what {
		return
	}
	s.WaitingFor, s.WaitingSince = what, time.Time{}
	if what != "" {
		s.WaitingSince = time.Now().Round(0)
	}
}

// starting reports that replication begins. What has failed before stays in
// sight until it works.
func (r *Replayer) starting() {
	r.reports.update(func(s *Status) {
		s.Phase = Starting
		if s.State != StateError {
			s.State, s.Description = StateStartingReplay, "starting replay"
		}
	})
}

// failed reports a failure and when the next try is.
func (r *Replayer) failed(text string, err error, failures int, next time.Time) {
	r.reports.update(func(s *Status) {
		s.State, s.Description, s.Phase = StateError, text, Starting
		s.Syncing, s.Err, s.Failures, s.NextTry = false, err, failures, next.Round(0)
		s.wait("")
	})
}

// waiting notes what is waited for, whatever the state.
func (r *Replayer) waiting(what string) {
	r.reports.update(func(s *Status) { s.wait(what) })
}

// identify notes which images it is about.
func (r *Replayer) identify(v *view) {
	r.reports.update(func(s *Status) {
		if v.local != nil && v.local.image != nil {
			s.LocalID = v.local.image.ID
			if v.local.image.Name != "" {
				s.LocalName = v.local.image.Name
			}
		}
		if v.remote != nil && v.remote.image != nil {
			s.RemoteID = v.remote.image.ID
		}
		s.Primary = v.step.Kind == plan.LocalPrimary
		s.SnapshotsLeft = v.step.Left
		if n := v.step.Newest; n != nil {
			s.RemoteTime = n.Timestamp
		}
	})
}

// replayed reports that the image follows its primary.
func (r *Replayer) replayed(v *view, what string) {
	remote, local := r.times(v)
	text := r.past.Describe(plan.Replay{Remote: remote, Local: local, Left: v.step.Left}, time.Now())
	r.set(StateReplaying, text, Replaying, func(s *Status) {
		s.wait(what)
		s.RemoteTime, s.LocalTime, s.SnapshotsLeft = remote, local, v.step.Left
	})
}

// times returns when the newest remote snapshot was taken, and the newest that
// there is a copy of.
func (r *Replayer) times(v *view) (remote, local time.Time) {
	if n := v.step.Newest; n != nil {
		remote = n.Timestamp
	}
	if s := v.step.Synced; s != nil && v.remote.head != nil {
		if n := v.remote.head.Snapshot(s.Namespace.Mirror.PrimarySnapID); n != nil {
			local = n.Timestamp
		}
	}
	return remote, local
}

// flushes are those who wait until all is synchronised.
type flushes struct {
	mu      sync.Mutex
	waiting []chan error
}

func (f *flushes) add() <-chan error {
	c := make(chan error, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(f.waiting, c)
	return c
}

// take returns those who wait now. They are to be answered by what is found
// from now on.
func (f *flushes) take() []chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.waiting
	f.waiting = nil
	return w
}
