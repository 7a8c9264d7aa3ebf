package schedules

import (
	"errors"
	"maps"
	"time"

	"github.com/rs/zerolog"
)

const (
	// RoundEvery is how often what is stored is looked at.
	RoundEvery = 2 * time.Second
	// LookEvery is how often, at most, all that schedules are for is looked at
	// although no schedule changed: of much that matters nobody is told.
	LookEvery = 15 * time.Second
)

// Follower is the part that an instance takes in following the schedules of one
// pool or file system. It is not safe for concurrent use.
type Follower struct {
	Log zerolog.Logger
	// Valid tells whether the instance may write.
	Valid func() bool
	// Show is told until when the lead is ours at least, the zero time when it
	// is not.
	Show func(time.Time)

	clock func() time.Time // nil: the machine's

	self string
	lead *Lead
	seen map[string]string // schedules, when Look was called
	read time.Time         // when that was
	took time.Duration     // and how long
}

// Round is what is stored, as it is now, and what follows from it.
type Round struct {
	Swap     Swap   // of the note of who leads
	Self     string // this instance, a new one after it was shut out
	Contents Contents
	// Wanted tells whether there is any schedule to follow.
	Wanted bool
	// Rules returns all that decides which units there are.
	Rules func() (map[string]string, error)
	// Look finds the units anew.
	Look func() error
}

// Round takes, keeps or gives up the lead. Who has it looks at the units when a
// schedule has changed, and now and then.
func (f *Follower) Round(r Round) error {
	if !r.Wanted {
		f.Resign(r.Swap)
		return nil
	}
	if !f.Valid() {
		return nil // the lead runs out
	}
	if f.lead == nil || f.self != r.Self {
		f.self, f.lead = r.Self, NewLead(r.Self, f.now)
		f.Show(time.Time{})
	}
	led := f.lead.Leading()
	err := f.lead.Round(r.Contents.Leader, r.Swap)
	if !f.lead.Leading() {
		f.Show(time.Time{})
		f.seen = nil
		if led {
			f.Log.Info().Msg("another instance follows the schedules of snapshots")
		}
		return err
	}
	if !led {
		f.Log.Info().Msg("following the schedules of snapshots")
		f.seen = nil
	}
	if err := errors.Join(err, f.look(r)); err != nil {
		return err
	}
	f.Show(f.lead.Until())
	return nil
}

func (f *Follower) look(r Round) error {
	rules, err := r.Rules()
	if err != nil {
		return err
	}
	same := f.seen != nil && maps.Equal(f.seen, rules)
	if same && f.now().Sub(f.read) < max(LookEvery, 20*f.took) {
		return nil
	}
	begun := f.now()
	if err := r.Look(); err != nil {
		return err
	}
	f.seen, f.read, f.took = rules, begun, f.now().Sub(begun)
	return nil
}

// Leading tells whether the lead is ours.
func (f *Follower) Leading() bool { return f.lead != nil && f.lead.Leading() }

// Resign lets another instance follow the schedules at once.
func (f *Follower) Resign(swap Swap) {
	if !f.Leading() {
		return
	}
	f.Show(time.Time{})
	f.seen = nil
	if err := f.lead.Resign(swap); err != nil {
		f.Log.Debug().Err(err).Msg("giving up the schedules of snapshots")
		return
	}
	f.Log.Info().Msg("no longer following the schedules of snapshots")
}

func (f *Follower) now() time.Time {
	if f.clock == nil {
		return time.Now()
	}
	return f.clock()
}
