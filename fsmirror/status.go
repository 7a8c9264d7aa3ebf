package fsmirror

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cephmirror/fsmirror/treesync"
)

// directory is what is known of one directory on one peer.
type directory struct {
	mu sync.Mutex

	failures int // consecutive failed cycles
	failed   bool
	reason   error
	nextTry  time.Time // of a failed directory
	waiting  string    // why nothing happens, when something should
	strays   []string

	current  *snapshot
	progress *treesync.Progress
	started  time.Time
	last     *lastSynced

	synced, deleted, renamed uint64
	moved                    uint64 // bytes sent for snapshots that were synchronised
}

// lastSynced is the newest snapshot on the peer. here: synced by this process.
type lastSynced struct {
	id       uint64
	name     string
	here     bool
	duration time.Duration
	at       time.Duration // on the monotonic clock
	bytes    uint64
	sent     uint64
	wall     time.Time
}

// monotonic returns the clock that the stock daemon prints as time stamp.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (d *directory) setStrays(names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.strays = names
}

// setLastKnown notes what was found on the peer.
func (d *directory) setLastKnown(id uint64, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == nil || d.last.id != id {
		d.last = &lastSynced{id: id, name: name}
		return
	}
	d.last.name = name
}

func (d *directory) countDeleted() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deleted++
}

func (d *directory) countRenamed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.renamed++
}

func (d *directory) begin(s snapshot, p *treesync.Progress) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current, d.progress, d.started = &s, p, time.Now()
	return monotonic()
}

func (d *directory) end(s snapshot, p *treesync.Progress, begun time.Duration, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current, d.progress = nil, nil
	if err != nil {
		return
	}
	now := monotonic()
	d.synced++
	d.moved += uint64(p.BytesSent.Load())
	d.last = &lastSynced{
		id: s.id, name: s.name, here: true,
		duration: now - begun, at: now,
		bytes: uint64(p.BytesToDo.Load()), sent: uint64(p.BytesSent.Load()),
		wall: time.Now(),
	}
}

// snapRef and the types below are the members of the stock daemon's answers,
// in its order, and after them our own.
type snapRef struct {
	ID   uint64 `json:"id"`
	Name string `json:"name"`
}

type lastSnap struct {
	ID        uint64  `json:"id"`
	Name      string  `json:"name"`
	Duration  *int64  `json:"sync_duration,omitempty"`   // whole seconds
	TimeStamp *string `json:"sync_time_stamp,omitempty"` // monotonic seconds
	Bytes     *uint64 `json:"sync_bytes,omitempty"`      // size of the files touched
	Sent      *uint64 `json:"sync_bytes_sent,omitempty"` // ours: written to the peer
	Time      string  `json:"sync_time,omitempty"`       // ours: by the calendar
}

type progressStatus struct {
	FilesDone  int64   `json:"files_done"`
	FilesTotal int64   `json:"files_total"`
	BytesDone  int64   `json:"bytes_done"`
	BytesTotal int64   `json:"bytes_total"`
	FilesSeen  int64   `json:"files_seen"`
	BytesSent  int64   `json:"bytes_sent"`
	Seconds    float64 `json:"seconds"`
	Rate       float64 `json:"bytes_per_second"`
	Left       float64 `json:"seconds_left"`
}

type directoryStatus struct {
	State   string   `json:"state"`
	Reason  string   `json:"failure_reason,omitempty"`
	Current *snapRef `json:"current_syncing_snap,omitempty"`
	// CurrentReef is how release 18 spells it.
	CurrentReef *snapRef        `json:"current_sycning_snap,omitempty"`
	Last        *lastSnap       `json:"last_synced_snap,omitempty"`
	Synced      uint64          `json:"snaps_synced"`
	Deleted     uint64          `json:"snaps_deleted"`
	Renamed     uint64          `json:"snaps_renamed"`
	Progress    *progressStatus `json:"progress,omitempty"`
	LastError   string          `json:"last_error,omitempty"`
	Failures    int             `json:"consecutive_failures,omitempty"`
	NextTry     string          `json:"next_try,omitempty"`
	Waiting     string          `json:"waiting,omitempty"`
	Strays      []string        `json:"stray_snapshots,omitempty"`
}

const (
	stateIdle    = "idle"
	stateSyncing = "syncing"
	stateFailed  = "failed"
)

// status returns the directory's state for the admin socket. peerTrouble, if
// not empty, is why nothing can be done for any directory now.
func (d *directory) status(release, peerTrouble string) directoryStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := directoryStatus{
		State:  stateIdle,
		Synced: d.synced, Deleted: d.deleted, Renamed: d.renamed,
		Failures: d.failures,
		Waiting:  d.waiting,
		Strays:   d.strays,
	}
	if peerTrouble != "" {
		out.Waiting = peerTrouble
	}
	if d.failed {
		out.State = stateFailed
		if d.reason != nil {
			out.Reason = d.reason.Error()
		}
	} else if d.reason != nil {
		out.LastError = d.reason.Error()
	}
	if d.reason != nil && !d.nextTry.IsZero() {
		out.NextTry = d.nextTry.UTC().Format(time.RFC3339)
	}
	if d.current != nil {
		out.State = stateSyncing
		ref := &snapRef{d.current.id, d.current.name}
		if release == "reef" {
			out.CurrentReef = ref
		} else {
			out.Current = ref
		}
		out.Progress = progressOf(d.progress, time.Since(d.started))
		if still := time.Since(d.stepped()); still > stillness && out.Waiting == "" {
			out.Waiting = fmt.Sprintf("no request to the source or the peer has been answered for %v; is one of them full, frozen or out of reach?",
				still.Round(time.Second))
		}
	}
	if l := d.last; l != nil {
		out.Last = &lastSnap{ID: l.id, Name: l.name}
		if l.here {
			seconds := int64(l.duration / time.Second)
			stamp := formatSeconds(l.at)
			bytes, sent := l.bytes, l.sent
			out.Last.Duration, out.Last.TimeStamp, out.Last.Bytes, out.Last.Sent = &seconds, &stamp, &bytes, &sent
			out.Last.Time = l.wall.UTC().Format(time.RFC3339)
		}
	}
	return out
}

// stepped tells when something was last completed, or begun; the caller holds
// d.mu.
func (d *directory) stepped() time.Time {
	if d.progress == nil {
		return time.Time{}
	}
	if at := d.progress.LastStep.Load(); at > d.started.UnixNano() {
		return time.Unix(0, at)
	}
	return d.started
}

func (d *directory) lastStep() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stepped()
}

// stillness is how long a synchronisation may stand still before that is said.
const stillness = 5 * time.Second

func progressOf(p *treesync.Progress, elapsed time.Duration) *progressStatus {
	s := &progressStatus{
		FilesDone: p.FilesDone.Load(), FilesTotal: p.FilesToDo.Load(),
		BytesDone: p.BytesDone.Load(), BytesTotal: p.BytesToDo.Load(),
		FilesSeen: p.FilesSeen.Load(), BytesSent: p.BytesSent.Load(),
		Seconds: elapsed.Seconds(),
	}
	if s.Seconds > 0 {
		s.Rate = float64(s.BytesDone) / s.Seconds
	}
	switch {
	case s.Rate > 0 && s.BytesTotal > s.BytesDone:
		s.Left = float64(s.BytesTotal-s.BytesDone) / s.Rate
	case s.FilesDone > 0 && s.FilesTotal > s.FilesDone:
		s.Left = float64(s.FilesTotal-s.FilesDone) * s.Seconds / float64(s.FilesDone)
	}
	return s
}

// counts are a directory's totals since the process started.
type counts struct{ synced, deleted, renamed uint64 }

func (d *directory) counts() *counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &counts{d.synced, d.deleted, d.renamed}
}

func (d *directory) setWaiting(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = why
}

func formatSeconds(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', 6, 64) + "s"
}
