package replica

import (
	"sync"
	"time"
)

// State is the state of a mirrored image as the tools show it.
type State uint8

// The states, with the numbers that are stored.
const (
	StateUnknown State = iota
	StateError
	StateSyncing
	StateStartingReplay
	StateReplaying
	StateStoppingReplay
	StateStopped
)

// Phase is what replication is about: the admin socket's word for it.
type Phase int

// The phases.
const (
	Stopped Phase = iota
	Starting
	Replaying
	Stopping
)

func (p Phase) String() string {
	switch p {
	case Starting:
		return "Starting"
	case Replaying:
		return "Replaying"
	case Stopping:
		return "Stopping"
	default:
		return "Stopped"
	}
}

// Status is what is known of the image's replication. State and Description go
// to both clusters as they are.
type Status struct {
	State       State
	Description string // stock's text, JSON included

	Phase     Phase
	LocalName string // empty until known
	LocalID   string
	RemoteID  string
	Primary   bool // the local image is primary

	// Syncing says that a synchronisation is under way.
	Syncing       bool
	ObjectsDone   uint64
	ObjectsTotal  uint64
	BytesCopied   uint64 // of this synchronisation
	LastSync      time.Time
	RemoteTime    time.Time // of the newest remote mirror snapshot
	LocalTime     time.Time // remote time of the newest complete local one
	Err           error     // why State is error, nil otherwise
	WaitingFor    string    // what is waited for, for people
	WaitingSince  time.Time
	NextTry       time.Time // zero: nothing is to be tried again by time
	Failures      int       // in a row
	SnapshotsLeft int       // remote mirror snapshots yet to be synchronised

	// Counters, from when this part of the program took the image up.
	Snapshots       uint64  // mirror snapshots completed
	SyncSeconds     float64 // spent on them
	SyncBytes       uint64
	LastSyncSeconds float64
	LastSyncBytes   uint64

	// Journal is of an image that is mirrored by its journal.
	Journal JournalStatus
}

// JournalStatus is how far the replay of a journal is.
type JournalStatus struct {
	Replayed         bool // the rest says something
	Strict           bool // entries are carried out one at a time
	EntriesBehind    uint64
	BytesBehind      uint64
	SecondsBehind    float64
	EntriesPerSecond float64
	BytesPerSecond   float64

	// Counters, from when this part of the program took the image up.
	Entries      uint64
	Bytes        uint64        // of payload
	LatencySum   time.Duration // from when an entry's turn has come until it is durable
	LatencyCount uint64
}

// Wait notes what is waited for, and since when.
func (s *Status) Wait(what string) {
	if s.WaitingFor == what {
		return
	}
	s.WaitingFor, s.WaitingSince = what, time.Time{}
	if what != "" {
		s.WaitingSince = time.Now().Round(0)
	}
}

// Reporter hands out the status, one change after the other.
type Reporter struct {
	report func(Status)

	mu  sync.Mutex
	now Status
}

// NewReporter returns a reporter that tells report of every change, if that is not
// nil.
func NewReporter(report func(Status)) *Reporter { return &Reporter{report: report} }

// Last returns what was last reported.
func (r *Reporter) Last() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// Update changes the status and reports it if that makes a difference.
func (r *Reporter) Update(change func(*Status)) {
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

// Set reports a state in which nothing is copied, and nothing has failed.
func (r *Reporter) Set(state State, text string, phase Phase, more ...func(*Status)) {
	r.Update(func(s *Status) {
		s.State, s.Description, s.Phase = state, text, phase
		s.Syncing, s.Err, s.NextTry, s.Failures = false, nil, time.Time{}, 0
		s.Journal.Replayed = false
		s.Wait("")
		for _, m := range more {
			m(s)
		}
	})
}

// Starting reports that replication begins. What has failed before stays in sight
// until it works.
func (r *Reporter) Starting() {
	r.Update(func(s *Status) {
		s.Phase = Starting
		if s.State != StateError {
			s.State, s.Description = StateStartingReplay, "starting replay"
		}
	})
}

// Failed reports a failure and when the next try is.
func (r *Reporter) Failed(text string, err error, failures int, next time.Time) {
	r.Update(func(s *Status) {
		s.State, s.Description, s.Phase = StateError, text, Starting
		s.Syncing, s.Err, s.Failures, s.NextTry = false, err, failures, next.Round(0)
		s.Journal.Replayed = false
		s.Wait("")
	})
}

// Waiting notes what is waited for, whatever the state.
func (r *Reporter) Waiting(what string) { r.Update(func(s *Status) { s.Wait(what) }) }

// Ended reports that replication has ended, and why.
func (r *Reporter) Ended(out Outcome, err error) {
	if out == OtherMode {
		return // somebody else goes on
	}
	text := "stopped"
	if out == Gone && r.Last().Description == RemoteGone {
		text = RemoteGone
	}
	r.Update(func(s *Status) { s.Phase = Stopping })
	r.Set(StateStopped, text, Stopped, func(s *Status) { s.Err = err })
}

// RemoteGone is what is told of an image that is removed because its primary is.
const RemoteGone = "remote image no longer exists"
