package replay

import (
	"sync"
	"time"

	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
)

// set reports a state in which the image is not replayed.
func (r *Replayer) set(state replica.State, text string, phase replica.Phase, more ...func(*replica.Status)) {
	r.reports.Set(state, text, phase, more...)
}

// identify notes which images it is about.
func (r *Replayer) identify(v *view) {
	r.reports.Update(func(s *replica.Status) {
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
	text := r.past.Describe(plan.Replay{Remote: remote, Local: local, Left: v.step.Left, Unverified: unverified(v)}, time.Now())
	r.set(replica.StateReplaying, text, replica.Replaying, func(s *replica.Status) {
		s.Wait(what)
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
