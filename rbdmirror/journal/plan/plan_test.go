package plan

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/merge"
)

func at(tag, entry uint64) format.Positions {
	return format.Positions{{Object: entry % 4, Tag: tag, Entry: entry}}
}

func TestResume(t *testing.T) {
	stored := Record{MirrorUUID: "r", ImageID: "i", Lock: "us", LocalTag: 7, Progress: Progress{Done: at(3, 5)}}
	pending := stored
	pending.Pending = []Pending{{Op: format.Flatten{ID: 1}, Before: at(3, 2)}}
	for _, c := range []struct {
		name string
		f    Found
		want format.Positions
		own  bool
	}{
		{"nothing", Found{}, nil, false},
		{"told only", Found{Committed: at(2, 1)}, at(2, 1), false},
		{"crashed", Found{Stored: &stored, Committed: at(3, 1), Lock: "us", LocalTag: 7}, at(3, 5), true},
		{"crashed after a new epoch was noted", Found{Stored: &stored, Committed: at(3, 1), Lock: "us", LocalTag: 8}, at(3, 5), true},
		{"crashed while taking the lock", Found{Stored: &stored, Committed: at(3, 1), Lock: "us, later", LocalTag: 7}, at(3, 5), true},
		{"stopped", Found{Stored: &stored, Committed: at(3, 5), LocalTag: 7}, at(3, 5), true},
		{"told later than stored", Found{Stored: &stored, Committed: at(3, 9), Lock: "us", LocalTag: 7}, at(3, 9), true},
		{"pending", Found{Stored: &pending, Committed: at(3, 2), Lock: "us", LocalTag: 7}, at(3, 5), true},
		{"another daemon", Found{Stored: &stored, Committed: at(3, 1), Lock: "other", LocalTag: 8}, at(3, 1), false},
		{"another daemon that has stopped", Found{Stored: &stored, Committed: at(3, 8), LocalTag: 9}, at(3, 8), false},
		{"another image", Found{Stored: &Record{MirrorUUID: "r", ImageID: "x", Lock: "us", LocalTag: 7, Progress: stored.Progress},
			Committed: at(0, 1), Lock: "us", LocalTag: 7}, at(0, 1), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.f.MirrorUUID, c.f.ImageID = "r", "i"
			got, own := Resume(c.f)
			if d := cmp.Diff(c.want, got.Done); d != "" || own != c.own {
				t.Errorf("own %v, (-want +got)\n%s", own, d)
			}
			if own == (got.Until == Unknown) {
				t.Errorf("exact from %v on", got.Until)
			}
			if c.f.Stored == &pending && len(got.Pending) != 1 {
				t.Error("what was pending is forgotten")
			}
		})
	}
}

func TestRecordRoundTrip(t *testing.T) {
	positions := func(t *rapid.T) format.Positions {
		var ps format.Positions
		for range rapid.IntRange(0, 4).Draw(t, "positions") {
			ps = append(ps, format.Position{Object: rapid.Uint64().Draw(t, "object"), Tag: rapid.Uint64().Draw(t, "tag"), Entry: rapid.Uint64().Draw(t, "entry")})
		}
		return ps
	}
	rapid.Check(t, func(t *rapid.T) {
		r := Record{MirrorUUID: rapid.String().Draw(t, "uuid"), ImageID: rapid.String().Draw(t, "image"), Lock: rapid.String().Draw(t, "lock"),
			LocalTag: rapid.Uint64().Draw(t, "local"), Until: format.Position{Tag: rapid.Uint64().Draw(t, "until")}, Compared: rapid.Bool().Draw(t, "compared"),
			Progress: Progress{Done: positions(t)}}
		for range rapid.IntRange(0, 2).Draw(t, "pending") {
			op := format.SnapRemove{Snap: format.Snap{ID: rapid.Uint64().Draw(t, "op"), Name: rapid.String().Draw(t, "name"), Namespace: cls.User}}
			r.Pending = append(r.Pending, Pending{op, positions(t)})
		}
		got, err := DecodeRecord(r.Encode())
		if d := cmp.Diff(r, got); err != nil || d != "" {
			t.Fatal(err, d)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(Record{MirrorUUID: "r", Progress: Progress{Done: at(1, 2), Pending: []Pending{{format.Flatten{ID: 1}, at(1, 1)}}}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := DecodeRecord(b); err == nil {
			r.Encode()
		}
	})
}

func TestLimits(t *testing.T) {
	var last Limits
	for _, behind := range []uint64{0, 1, 100, 1000, 10_000, 100_000, 1 << 60} {
		l := LimitsFor(behind)
		if l.Strict || l.Entries < last.Entries || l.Bytes < last.Bytes || l.Entries > maxEntries || l.Bytes > maxBytes {
			t.Errorf("%d behind: %+v after %+v", behind, l, last)
		}
		last = l
	}
	if last.Entries != maxEntries || last.Bytes != maxBytes {
		t.Errorf("%+v for the deepest backlog", last)
	}
}

// TestWaiting: what follows an operation whose end is not known stays until it is.
func TestWaiting(t *testing.T) {
	img := Image{Layout: merge.Layout{ObjectSize: 64}, Size: 256}
	p := New(4, Progress{})
	push := func(n uint64, e format.Event) {
		p.Push(Entry{Position: format.Position{Object: n % 4, Tag: 1, Entry: n}, Event: e, Size: 1})
	}
	push(0, format.Write{Offset: 0, Length: 1, Data: []byte{1}})
	push(1, format.Resize{ID: 5, Size: 100})
	push(2, format.Write{Offset: 90, Length: 1, Data: []byte{1}})
	var kinds []string
	next := func() {
		for {
			w, ok := p.Next(img, LimitsFor(0))
			if !ok {
				return
			}
			switch w := w.(type) {
			case *Epoch:
				kinds = append(kinds, "epoch")
			case *Batch:
				kinds = append(kinds, "batch")
			case *Operation:
				kinds = append(kinds, "operation")
				img.Size = w.Op.(format.Resize).Size
			}
		}
	}
	next()
	if op, ok := p.Waiting(); !ok || op.OpID() != 5 {
		t.Errorf("waits for %v", op)
	}
	push(3, format.OpFinish{ID: 5})
	next()
	if d := cmp.Diff([]string{"epoch", "batch", "operation", "batch"}, kinds); d != "" {
		t.Error(d)
	}
	if entries, bytes := p.Queued(); entries != 0 || bytes != 0 {
		t.Errorf("%d entries, %d bytes are left", entries, bytes)
	}
	if d := cmp.Diff(format.Position{Object: 3, Tag: 1, Entry: 3}, p.Planned().Done[0]); d != "" {
		t.Error(d)
	}
}
