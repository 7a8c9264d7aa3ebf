package schedules

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// An instance that follows schedules says so in the note on the object, and
// changes the note every RenewEvery. A note that has not changed for DeadAfter is
// that of an instance that is gone: another takes its place. Times are those that
// each instance measures for itself, so that no two clocks need to agree, and
// the bounds are such that the one has long stopped when the other begins.
const (
	RenewEvery = 2 * time.Second
	ValidFor   = 8 * time.Second
	DeadAfter  = 12 * time.Second
)

// Lead takes part in the agreement on who follows the schedules of one object.
// It is not safe for concurrent use.
type Lead struct {
	self  string
	clock func() time.Time

	note    string // as it was seen last
	since   time.Time
	renewed time.Time // when the last successful renewal was begun
	changes int
}

// Swap changes the note, unless it is another than from: that is ErrChanged.
type Swap func(from, to string) error

// NewLead returns the part of the instance self, which has no blank in it. clock
// tells a time that is never put back.
func NewLead(self string, clock func() time.Time) *Lead { return &Lead{self: self, clock: clock} }

// Holder is the instance that a note names.
func Holder(note string) string {
	name, _, _ := strings.Cut(note, " ")
	return name
}

// Noted is when a note was written, by the clock of who wrote it.
func Noted(note string) time.Time {
	var name string
	var n int
	var unix int64
	if _, err := fmt.Sscanf(note, "%s %d %d", &name, &n, &unix); err != nil {
		return time.Time{}
	}
	return time.Unix(unix, 0)
}

// Leading tells whether this instance follows the schedules.
func (l *Lead) Leading() bool { return !l.renewed.IsZero() && l.clock().Sub(l.renewed) < ValidFor }

// Until is when Leading ends without a further renewal.
func (l *Lead) Until() time.Time {
	if l.renewed.IsZero() {
		return time.Time{}
	}
	return l.renewed.Add(ValidFor)
}

// Round acts on the note as it is now: takes the lead, keeps it, or learns that
// it is another's.
func (l *Lead) Round(note string, swap Swap) error {
	now := l.clock()
	if note != l.note {
		if Holder(note) != l.self {
			l.renewed = time.Time{}
		}
		l.note, l.since = note, now
	}
	switch {
	case note == "":
	case Holder(note) == l.self:
		if !l.renewed.IsZero() && now.Sub(l.renewed) < RenewEvery {
			return nil
		}
	case now.Sub(l.since) < DeadAfter:
		return nil
	}
	l.changes++
	next := fmt.Sprintf("%s %d %d", l.self, l.changes, now.Unix())
	err := swap(note, next)
	switch {
	case err == nil:
		l.note, l.since, l.renewed = next, now, now
	case errors.Is(err, ErrChanged):
		l.renewed = time.Time{}
		return nil // the next round sees by whom
	}
	return err
}

// Resign gives up the lead, if it is this instance's.
func (l *Lead) Resign(swap Swap) error {
	if l.renewed.IsZero() {
		return nil
	}
	l.renewed = time.Time{}
	note := l.note
	l.note = ""
	if err := swap(note, ""); err != nil && !errors.Is(err, ErrChanged) {
		return err
	}
	return nil
}
