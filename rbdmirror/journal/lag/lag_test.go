package lag

import (
	"encoding/json"
	"testing"
	"time"

	"cephmirror/rbdmirror/journal/format"
)

func at(tag, entry uint64) format.Position { return format.Position{Tag: tag, Entry: entry} }

func TestBehind(t *testing.T) {
	tags := map[uint64]format.TagData{
		5: {Predecessor: format.Predecessor{Valid: true, Tag: 4, Entry: 9}},
		4: {Predecessor: format.Predecessor{Valid: true, Tag: 2, Entry: 3}},
		6: {Predecessor: format.Predecessor{MirrorUUID: format.OrphanUUID, Valid: true, Tag: 5, Entry: 1}},
		7: {Predecessor: format.Predecessor{MirrorUUID: "other", Valid: true, Tag: 5, Entry: 1}},
		8: {Predecessor: format.Predecessor{Valid: true, Tag: 8, Entry: 1}},
	}
	for _, c := range []struct {
		name          string
		image, copied format.Position
		want          uint64
	}{
		{"nothing written", at(0, 0), at(0, 0), 0},
		{"equal", at(5, 7), at(5, 7), 0},
		{"same epoch", at(5, 7), at(5, 2), 5},
		{"ahead of what was last heard", at(5, 7), at(5, 8), 0},
		{"copy in a later epoch", at(4, 7), at(5, 1), 0},
		{"one epoch", at(5, 7), at(4, 5), 7 + 4},
		{"two epochs", at(5, 7), at(2, 1), 7 + 9 + 2},
		{"over a demotion", at(6, 1), at(5, 0), 1 + 1},
		{"epoch of another cluster before", at(7, 2), at(4, 0), 2},
		{"unknown epoch", at(9, 2), at(4, 0), 2},
		{"a tag that precedes itself", at(8, 2), at(4, 0), 2},
		{"nothing done", at(2, 3), at(0, 0), 3},
	} {
		got := Behind(c.image, c.copied, func(id uint64) (format.TagData, bool) { d, ok := tags[id]; return d, ok })
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestRate(t *testing.T) {
	var r Rate
	now := time.Unix(1000, 0)
	if got := r.PerSecond(now); got != 0 {
		t.Errorf("%v before anything", got)
	}
	r.Add(now, 10)
	if got := r.PerSecond(now); got != 10 {
		t.Errorf("%v in the first second", got)
	}
	r.Add(now.Add(time.Second), 20)
	if got := r.PerSecond(now.Add(1500 * time.Millisecond)); got != 15 {
		t.Errorf("%v over two seconds", got)
	}
	if got := r.PerSecond(now.Add(9 * time.Second)); got != 3 {
		t.Errorf("%v over ten seconds", got)
	}
	if got := r.PerSecond(now.Add(29 * time.Second)); got != 1 {
		t.Errorf("%v over thirty seconds", got)
	}
	if got := r.PerSecond(now.Add(500 * time.Second)); got != 0 {
		t.Errorf("%v long after", got)
	}
}

func TestClock(t *testing.T) {
	var c Clock
	now := time.Unix(5000, 0)
	if got := c.Age(now.Add(-time.Minute), now); got != time.Minute {
		t.Errorf("%v with clocks taken for equal", got)
	}
	// The image's clock is an hour ahead.
	for i := range 5 {
		n := now.Add(time.Duration(i) * time.Second)
		c.Live(n.Add(time.Hour-time.Duration(i+1)*10*time.Millisecond), n)
	}
	if got := c.Age(now.Add(time.Hour-3*time.Second), now); got < 2900*time.Millisecond || got > 3*time.Second {
		t.Errorf("%v for three seconds", got)
	}
	if got := c.Age(now.Add(2*time.Hour), now); got != 0 {
		t.Errorf("%v for what is to come", got)
	}
	if got := c.Age(time.Time{}, now); got != 0 {
		t.Errorf("%v for an event without time", got)
	}
}

func TestJSON(t *testing.T) {
	r := Report{Image: format.Position{Object: 5, Tag: 2, Entry: 20001}, Copied: at(2, 8608), EntriesBehind: 11393,
		EntriesPerSecond: 509.4, BytesPerSecond: 2108710.2, BytesBehind: 100, SecondsBehind: 17.5, Mode: "merged"}
	want := `{"bytes_per_second":2108710.2,"entries_behind_primary":11393,"entries_per_second":509.4,` +
		`"non_primary_position":{"entry_tid":8608,"object_number":0,"tag_tid":2},` +
		`"primary_position":{"entry_tid":20001,"object_number":5,"tag_tid":2},"seconds_until_synced":22,` +
		`"bytes_behind_primary":100,"replay_mode":"merged","seconds_behind_primary":17.5}`
	if got := r.JSON(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	empty := Report{Waiting: `"x"`}.JSON()
	var v map[string]any
	if err := json.Unmarshal([]byte(empty), &v); err != nil || v["bytes_per_second"] != 0.0 || v["waiting_for"] != `"x"` {
		t.Errorf("%s: %v", empty, err)
	}
	for f, want := range map[float64]string{0: "0.0", 17.5: "17.5", 1.005: "1.0", 1.016: "1.02", 3: "3.0", 123456789.126: "123456789.13"} {
		if got := number(f); got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
}
