package plan

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// History is what is remembered of synchronisations for the description of an
// image's status.
type History struct {
	last        []sample
	lastBytes   uint64
	lastSeconds float64
	lastEnd     time.Time
	count       int
	compared    *Comparison
}

// Comparison is what came of comparing all of an image.
type Comparison struct {
	End       time.Time
	Objects   uint64 // that had to be repaired
	Snapshots int    // user snapshots that had to be copied anew
}

// Compare notes a comparison.
func (h *History) Compare(c Comparison) { h.compared = &c }

type sample struct{ bytes, seconds float64 }

// samples is how many synchronisations averages are made of.
const samples = 30

// Add notes a synchronisation that has come to its end.
func (h *History) Add(bytes uint64, took time.Duration, end time.Time) {
	h.lastBytes, h.lastSeconds, h.lastEnd = bytes, took.Seconds(), end
	h.count++
	h.last = append(h.last, sample{float64(bytes), took.Seconds()})
	if len(h.last) > samples {
		h.last = slices.Delete(h.last, 0, len(h.last)-samples)
	}
}

// Replay is what there is to be told of an image that is being replayed.
type Replay struct {
	Remote, Local time.Time // of the newest remote snapshot, and the newest that we have; zero: unknown
	Syncing       time.Time // of the snapshot under way; zero: none
	Done, Total   uint64    // objects
	Bytes         uint64    // copied so far
	Began         time.Time
	Left          int // snapshots not synchronised yet
	// Unverified: what is here was copied by another daemon, and never
	// compared.
	Unverified bool
}

// Describe returns the description of an image that is being replayed: stock's
// JSON, in stock's order, and after that a few things more.
func (h *History) Describe(r Replay, now time.Time) string {
	fields, more := map[string]string{}, map[string]string{}
	put := func(k string, v any) { fields[k] = fmt.Sprint(v) }
	add := func(k string, v any) { more[k] = fmt.Sprint(v) }
	var bytes, seconds float64
	for _, s := range h.last {
		bytes += s.bytes
		seconds += s.seconds
	}
	perSecond, perSnapshot := 0.0, 0.0
	if len(h.last) > 0 {
		perSnapshot = bytes / float64(len(h.last))
	}
	syncing := !r.Syncing.IsZero()
	var elapsed float64
	if syncing {
		elapsed = now.Sub(r.Began).Seconds()
		if elapsed > 0 {
			perSecond = float64(r.Bytes) / elapsed
		}
	}
	fields["bytes_per_second"] = double(perSecond)
	fields["bytes_per_snapshot"] = double(perSnapshot)
	put("last_snapshot_bytes", h.lastBytes)
	put("last_snapshot_sync_seconds", uint64(h.lastSeconds))
	if h.count > 0 {
		add("last_sync_timestamp", h.lastEnd.Unix())
	}
	if !r.Remote.IsZero() {
		put("remote_snapshot_timestamp", r.Remote.Unix())
	}
	if !r.Local.IsZero() {
		put("local_snapshot_timestamp", r.Local.Unix())
	}
	fields["replay_state"] = `"idle"`
	if syncing {
		fields["replay_state"] = `"syncing"`
		percent := uint64(0)
		if r.Total > 0 {
			percent = min(100, r.Done*100/r.Total)
		}
		put("syncing_percent", percent)
		put("syncing_snapshot_timestamp", r.Syncing.Unix())
		add("syncing_bytes", r.Bytes)
		add("syncing_objects", r.Done)
		add("syncing_objects_total", r.Total)
		if r.Done > 0 && r.Total >= r.Done && elapsed > 0 {
			put("seconds_until_synced", uint64(math.Ceil(elapsed/float64(r.Done)*float64(r.Total-r.Done))))
		}
	}
	if h.compared != nil {
		add("last_comparison_timestamp", h.compared.End.Unix())
		add("last_comparison_repaired_objects", h.compared.Objects)
		add("last_comparison_repaired_snapshots", h.compared.Snapshots)
	}
	if r.Unverified {
		add("unverified", true)
	}
	if r.Left > 0 {
		add("snapshots_behind", r.Left)
	}
	var b strings.Builder
	b.WriteString("replaying, {")
	sep := ""
	for _, part := range []map[string]string{fields, more} {
		for _, k := range slices.Sorted(maps.Keys(part)) {
			b.WriteString(sep + strconv.Quote(k) + ":" + part[k])
			sep = ","
		}
	}
	b.WriteByte('}')
	return b.String()
}

// double writes a number with at most two decimals, and at least one.
func double(v float64) string {
	s := strconv.FormatFloat(v, 'f', 2, 64)
	return strings.TrimSuffix(s, "0") // of two decimals only the second may be left out
}
