package fsmirror

import (
	"maps"
	"slices"
	"time"
)

const (
	// stockDead is how long a stock instance may be silent before it is taken
	// for dead, as the stock module does.
	stockDead = 30 * time.Second
	// oursDead is the same for one of ours, which is shut out then. It must
	// have missed oursMissed questions in a row, too.
	oursDead   = 8 * time.Second
	oursMissed = 3
	// stockGone is how long a stock instance may be without a watch: it has
	// stopped, or makes a new one.
	stockGone = 10 * time.Second
	// rollFresh is for how long it is good who answered a question.
	rollFresh = 5 * time.Second
	// forgotten is after how long nothing is kept of one that is gone.
	forgotten = 2 * time.Minute
)

// roll is who answers the controller's question, and for how long others have
// not. It is plain data.
//
// An instance of ours that stops in order takes its note away first, and then
// its watch: it can be missed at once. One that has a note and does not answer
// is dead, cut off or frozen.
type roll struct {
	own  string
	seen map[string]*seen
}

type seen struct {
	addr   string // "" when it has never answered
	ours   bool   // it had a note
	noted  bool   // it has one
	dead   bool   // its process is gone, or it was shut out
	heard  time.Time
	missed int // questions in a row that it left unanswered
	absent int // the same, while it did not even watch
}

func newRoll(own string) *roll { return &roll{own: own, seen: make(map[string]*seen)} }

// call takes in one question: who has answered it, with which address, who
// watches and has not, who has a note, and whose process is gone. A question
// that we did not hear ourselves blames nobody.
func (r *roll) call(answers map[string]string, mute []string, noted map[string]bool, dead []string, now time.Time) {
	for id := range noted {
		if r.seen[id] == nil {
			r.seen[id] = &seen{heard: now} // as long as one that has just answered
		}
	}
	for id, addr := range answers {
		if r.seen[id] == nil {
			r.seen[id] = &seen{}
		}
		s := r.seen[id]
		s.addr, s.heard, s.missed, s.absent, s.dead = addr, now, 0, 0, false
	}
	_, heard := answers[r.own]
	for id, s := range r.seen {
		s.noted = noted[id]
		s.ours = s.ours || s.noted
		s.dead = s.dead || slices.Contains(dead, id)
		if _, ok := answers[id]; ok || !heard {
			continue
		}
		s.missed++
		if slices.Contains(mute, id) {
			s.absent = 0
		} else {
			s.absent++
		}
	}
	maps.DeleteFunc(r.seen, func(_ string, s *seen) bool { return !s.noted && now.Sub(s.heard) > forgotten })
}

// alive tells whether an instance is to be counted with. Who has never been
// heard of is not.
func (r *roll) alive(id string, now time.Time) bool {
	s := r.seen[id]
	if s == nil || s.dead {
		return false
	}
	silent := now.Sub(s.heard)
	switch {
	case s.ours && !s.noted:
		return false // it has left
	case s.missed == 0:
		return true
	case s.ours:
		return s.missed < oursMissed || silent < oursDead
	case s.absent > oursMissed:
		return silent < stockGone
	}
	return silent < stockDead
}

// suspect tells whether an instance of ours that is not alive may come back to
// life.
func (r *roll) suspect(id string) bool {
	s := r.seen[id]
	return s != nil && s.ours && s.noted && !s.dead
}

// leave takes in that the note of an instance is gone, and tells whether that is
// new.
func (r *roll) leave(id string) bool {
	s := r.seen[id]
	if s == nil || !s.noted {
		return false
	}
	s.noted = false
	return true
}

// bury counts an instance as dead until it answers again: its note is gone, its
// watch need not be.
func (r *roll) bury(id string) {
	if s := r.seen[id]; s != nil {
		s.dead = true
	}
}

// fresh tells whether this instance has heard a question lately, so that it
// knows who else is there.
func (r *roll) fresh(now time.Time) bool {
	s := r.seen[r.own]
	return s != nil && s.addr != "" && s.missed == 0 && now.Sub(s.heard) < rollFresh
}

// present returns those that are alive and have answered, with their addresses.
func (r *roll) present(now time.Time) map[string]string {
	out := make(map[string]string)
	for id, s := range r.seen {
		if s.addr != "" && r.alive(id, now) {
			out[id] = s.addr
		}
	}
	return out
}

// ours returns the instances that are no stock ones.
func (r *roll) ours() map[string]bool {
	out := make(map[string]bool)
	for id, s := range r.seen {
		if s.ours {
			out[id] = true
		}
	}
	return out
}
