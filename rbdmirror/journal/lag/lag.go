// Package lag tells how far a copy is behind its image, and in what words.
package lag

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"cephmirror/rbdmirror/journal/format"
)

// Behind returns how many entries the copy is behind, from the newest position of
// the image and of the copy; tag yields what is attached to an epoch of the image's
// journal. It counts one too few for each epoch in between, as the stock daemon
// does.
func Behind(image, copied format.Position, tag func(uint64) (format.TagData, bool)) uint64 {
	if image.Tag == 0 && image.Entry == 0 || image.Tag < copied.Tag {
		return 0
	}
	var n uint64
	for image.Tag > copied.Tag {
		n += image.Entry
		data, ok := tag(image.Tag)
		before := data.Predecessor
		if !ok || before.Tag >= image.Tag || before.MirrorUUID != format.LocalUUID && before.MirrorUUID != format.OrphanUUID {
			return n
		}
		image = format.Position{Tag: before.Tag, Entry: before.Entry}
	}
	if image.Tag == copied.Tag && image.Entry > copied.Entry {
		n += image.Entry - copied.Entry
	}
	return n
}

// buckets is over how many seconds rates are averaged.
const buckets = 30

// Rate is the mean of what happened in each of the last seconds.
type Rate struct {
	second int64
	count  [buckets]float64
	seen   int
}

// Add counts an amount now.
func (r *Rate) Add(now time.Time, amount float64) {
	r.roll(now)
	r.count[r.second%buckets] += amount
}

// PerSecond returns the rate.
func (r *Rate) PerSecond(now time.Time) float64 {
	r.roll(now)
	if r.seen == 0 {
		return 0
	}
	var sum float64
	for _, n := range r.count {
		sum += n
	}
	return sum / float64(r.seen)
}

func (r *Rate) roll(now time.Time) {
	second := now.Unix()
	if r.seen == 0 {
		r.second, r.seen = second, 1
		return
	}
	if second-r.second > buckets {
		r.second = second - buckets
	}
	for r.second < second {
		r.second++
		r.count[r.second%buckets] = 0
		r.seen = min(r.seen+1, buckets)
	}
}

// Clock estimates by the times of events how old the copy is. The clocks of the
// two clusters need not agree: what reached us as soon as it could shows how they
// differ.
type Clock struct {
	offset time.Duration // of an entry just read, by our clock
	known  bool
}

// Live tells that an entry of a time was read while it was the newest of all.
func (c *Clock) Live(event, now time.Time) {
	if event.IsZero() {
		return
	}
	d := now.Sub(event)
	if !c.known || d < c.offset {
		c.offset, c.known = d, true
		return
	}
	// Clocks drift: what was seen once does not count for ever.
	c.offset += (d - c.offset) / 1024
}

// Age returns how long ago an event was, by the image's clock.
func (c *Clock) Age(event, now time.Time) time.Duration {
	if event.IsZero() {
		return 0
	}
	d := now.Sub(event)
	if c.known {
		d -= c.offset
	}
	return max(d, 0)
}

// Report is what the description of an image that is replayed says.
type Report struct {
	Image, Copied    format.Position // zero if unknown
	EntriesBehind    uint64
	EntriesPerSecond float64
	BytesPerSecond   float64

	// What the stock daemon does not tell.
	BytesBehind   uint64
	SecondsBehind float64
	Mode          string // how entries are carried out
	Waiting       string // what for, if anything holds replay up
}

// JSON returns the report as stock tools know it, and after that what is ours.
func (r Report) JSON() string {
	var b strings.Builder
	field := func(key, value string) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(key) + ":" + value)
	}
	field("bytes_per_second", number(r.BytesPerSecond))
	field("entries_behind_primary", strconv.FormatUint(r.EntriesBehind, 10))
	field("entries_per_second", number(r.EntriesPerSecond))
	field("non_primary_position", position(r.Copied))
	field("primary_position", position(r.Image))
	if s, ok := r.UntilSynced(); ok {
		field("seconds_until_synced", strconv.FormatUint(s, 10))
	}
	field("bytes_behind_primary", strconv.FormatUint(r.BytesBehind, 10))
	field("replay_mode", quote(r.Mode))
	field("seconds_behind_primary", number(r.SecondsBehind))
	if r.Waiting != "" {
		field("waiting_for", quote(r.Waiting))
	}
	return "{" + b.String() + "}"
}

// UntilSynced estimates in how many seconds the copy will have caught up.
func (r Report) UntilSynced() (uint64, bool) {
	if r.EntriesBehind == 0 || r.EntriesPerSecond <= 0 {
		return 0, false
	}
	return uint64(float64(r.EntriesBehind) / r.EntriesPerSecond), true
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// number prints two decimals at most, but one at least.
func number(f float64) string {
	s := strings.TrimRight(strconv.FormatFloat(math.Round(f*100)/100, 'f', 2, 64), "0")
	if strings.HasSuffix(s, ".") {
		s += "0"
	}
	return s
}

func position(p format.Position) string {
	if p == (format.Position{}) {
		return "{}"
	}
	return `{"entry_tid":` + strconv.FormatUint(p.Entry, 10) + `,"object_number":` + strconv.FormatUint(p.Object, 10) +
		`,"tag_tid":` + strconv.FormatUint(p.Tag, 10) + `}`
}
