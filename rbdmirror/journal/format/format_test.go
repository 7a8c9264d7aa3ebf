package format

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/wire"
)

// old encodes an event as an earlier version did.
func old(version uint8, kind uint32, body func(*wire.Writer)) []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(version, 1, func() { w.U32(kind); body(w) })
		if version >= 4 {
			w.Frame(1, 1, func() { w.Time(time.Unix(7, 8)) })
		}
	})
}

func TestEarlierVersions(t *testing.T) {
	snap := func(w *wire.Writer) { w.U64(3); w.Str("s") }
	full := func(w *wire.Writer) { snap(w); w.Raw(cls.User.Encode()) }
	plain := Snap{ID: 3, Name: "s"}
	for _, c := range []struct {
		name    string
		version uint8
		kind    uint32
		body    func(*wire.Writer)
		want    Event
	}{
		{"discard without granularity", 1, kindDiscard, func(w *wire.Writer) { w.U64(4); w.U64(8) }, Discard{4, 8, 0}},
		{"discard that keeps partial pieces", 4, kindDiscard, func(w *wire.Writer) { w.U64(4); w.U64(8); w.Bool(true) }, Discard{4, 8, math.MaxUint32}},
		{"discard that zeroes partial pieces", 4, kindDiscard, func(w *wire.Writer) { w.U64(4); w.U64(8); w.Bool(false) }, Discard{4, 8, 0}},
		{"snapshot without namespace", 2, kindSnapCreate, snap, SnapCreate{plain}},
		{"snapshot with namespace", 3, kindSnapCreate, full, SnapCreate{plain}},
		{"removal without namespace", 3, kindSnapRemove, snap, SnapRemove{plain}},
		{"rollback with namespace", 4, kindSnapRollback, full, SnapRollback{plain}},
		{"rename without source", 1, kindSnapRename, func(w *wire.Writer) { w.U64(3); w.Str("t"); w.U64(9) }, SnapRename{ID: 3, SnapID: 9, To: "t"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, at, err := DecodeEvent(old(c.version, c.kind, c.body))
			if err != nil {
				t.Fatal(err)
			}
			same(t, "event", got, c.want)
			if at.IsZero() != (c.version < 4) {
				t.Errorf("time %v", at)
			}
		})
	}
}

func TestLaterVersions(t *testing.T) {
	// A later version may add fields, and events.
	later := old(6, kindResize, func(w *wire.Writer) { w.U64(1); w.U64(2); w.Str("more") })
	if e, _, err := DecodeEvent(later); err != nil || e != (Resize{1, 2}) {
		t.Errorf("%v, %v", e, err)
	}
	e, _, err := DecodeEvent(old(5, 77, func(w *wire.Writer) { w.U64(1) }))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "unknown event", e, Event(Unknown{77, []byte{1, 0, 0, 0, 0, 0, 0, 0}}))
	broken := bytes.Clone(later)
	broken[1] = 6
	if _, _, err := DecodeEvent(broken); err == nil {
		t.Error("an event for later versions only was decoded")
	}
}

func snaps(t *rapid.T) Snap {
	ns := rapid.SampledFrom([]cls.SnapshotNamespace{
		{}, {Type: cls.NamespaceTrash, Trash: &cls.TrashNamespace{OriginalName: "x"}},
		{Type: 17, Raw: []byte{1, 2}},
	}).Draw(t, "namespace")
	return Snap{rapid.Uint64().Draw(t, "id"), rapid.String().Draw(t, "name"), ns}
}

func events(t *rapid.T) Event {
	id := rapid.Uint64().Draw(t, "op")
	offset := rapid.Uint64Range(0, 1<<40).Draw(t, "offset")
	data := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "data")
	n := uint64(len(data))
	switch rapid.IntRange(0, 20).Draw(t, "kind") {
	case 0:
		return Discard{offset, n, rapid.Uint32().Draw(t, "granularity")}
	case 1:
		return Write{offset, n, data}
	case 2:
		return Flush{}
	case 3:
		return OpFinish{id, rapid.Int32().Draw(t, "result")}
	case 4:
		return SnapCreate{snaps(t)}
	case 5:
		return SnapRemove{snaps(t)}
	case 6:
		return SnapRename{id, offset, rapid.String().Draw(t, "from"), rapid.String().Draw(t, "to")}
	case 7:
		return SnapProtect{snaps(t)}
	case 8:
		return SnapUnprotect{snaps(t)}
	case 9:
		return SnapRollback{snaps(t)}
	case 10:
		return Rename{id, rapid.String().Draw(t, "to")}
	case 11:
		return Resize{id, offset}
	case 12:
		return Flatten{id}
	case 13:
		return RoleChange{}
	case 14:
		return SnapLimit{id, offset}
	case 15:
		return UpdateFeatures{id, offset, rapid.Bool().Draw(t, "enabled")}
	case 16:
		return MetadataSet{id, rapid.String().Draw(t, "key"), rapid.String().Draw(t, "value")}
	case 17:
		return MetadataRemove{id, rapid.String().Draw(t, "key")}
	case 18:
		return WriteSame{offset, n * uint64(rapid.IntRange(0, 9).Draw(t, "times")), data}
	case 19:
		return CompareAndWrite{offset, n, rapid.SliceOfN(rapid.Byte(), len(data), len(data)).Draw(t, "compare"), data}
	default:
		return Unknown{rapid.Uint32Min(20).Draw(t, "type"), rapid.SliceOf(rapid.Byte()).Draw(t, "body")}
	}
}

func TestEventsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events(t)
		var at time.Time
		if rapid.Bool().Draw(t, "timed") {
			at = time.Unix(rapid.Int64Range(1, math.MaxUint32).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC()
		}
		got, gotTime, err := DecodeEvent(EncodeEvent(e, at))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, got); d != "" || !at.Equal(gotTime) {
			t.Fatalf("%v became %v, %s", at, gotTime, d)
		}
		if op, ok := e.(Op); ok {
			if got.(Op).OpID() != op.OpID() {
				t.Fatal("operation's number changed")
			}
		}
	})
}

func positionsOf(t *rapid.T) Positions {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Position {
		return Position{rapid.Uint64().Draw(t, "object"), rapid.Uint64().Draw(t, "tag"), rapid.Uint64().Draw(t, "entry")}
	}), 0, 6).Draw(t, "positions")
}

func TestStructuresRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Client{rapid.String().Draw(t, "id"), rapid.SliceOf(rapid.Byte()).Draw(t, "data"), positionsOf(t), ClientState(rapid.Byte().Draw(t, "state"))}
		if len(c.Committed) == 0 {
			c.Committed = nil
		}
		got, err := DecodeClient(c.Encode())
		if d := cmp.Diff(c, got); err != nil || d != "" {
			t.Fatal(err, d)
		}
		tag := TagData{rapid.String().Draw(t, "uuid"), Predecessor{rapid.String().Draw(t, "pred"), rapid.Bool().Draw(t, "valid"), 1, 2}}
		if got, err := DecodeTagData(tag.Encode()); err != nil || got != tag {
			t.Fatal(err, got)
		}
		p := &PeerClient{ImageID: rapid.String().Draw(t, "image"), State: PeerState(rapid.Uint32().Draw(t, "state")),
			SnapSeqs: rapid.MapOf(rapid.Uint64(), rapid.Uint64()).Draw(t, "seqs")}
		for range rapid.IntRange(0, 3).Draw(t, "points") {
			s := snaps(t)
			sp := SyncPoint{SnapName: s.Name, FromSnapName: rapid.String().Draw(t, "from"), Namespace: s.Namespace}
			if rapid.Bool().Draw(t, "begun") {
				sp.Object = &s.ID
			}
			p.SyncPoints = append(p.SyncPoints, sp)
		}
		data, err := DecodeClientData(p.Encode())
		if d := cmp.Diff(ClientData(p), data); err != nil || d != "" {
			t.Fatal(err, d)
		}
		if d := cmp.Diff(p, p.Clone()); d != "" {
			t.Fatal(d)
		}
	})
}

func TestFramesInObjects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var object []byte
		var payloads [][]byte
		align := rapid.SampledFrom([]int{1, 8, 64}).Draw(t, "padding")
		for i := range rapid.IntRange(0, 6).Draw(t, "entries") {
			p := rapid.SliceOfN(rapid.Byte(), 0, 80).Draw(t, "payload")
			payloads = append(payloads, p)
			object = AppendEntry(object, 3, uint64(i), p)
			if align > 1 {
				for len(object)%align != 0 {
					object = append(object, 0)
				}
			}
		}
		// The object is read in pieces of any size.
		var have []byte
		at, base, next, need := 0, 0, 0, 1
		for {
			f, used, more, err := ParseFrame(have, uint64(base), 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			have, base = have[used:], base+used
			if f.Payload != nil {
				if f.Tag != 3 || f.Entry != uint64(next) || !bytes.Equal(f.Payload, payloads[next]) {
					t.Fatalf("got entry %d", f.Entry)
				}
				next++
				continue
			}
			if at == len(object) {
				break
			}
			if more <= len(have) {
				t.Fatalf("%d bytes needed with %d there", more, len(have))
			}
			need = min(rapid.IntRange(1, 100).Draw(t, "piece"), len(object)-at)
			have = append(bytes.Clone(have), object[at:at+need]...)
			at += need
		}
		if next != len(payloads) || len(have) != 0 {
			t.Fatalf("%d of %d entries, %d bytes left", next, len(payloads), len(have))
		}
	})
}

func TestFramesTooLong(t *testing.T) {
	b := AppendEntry(nil, 1, 1, make([]byte, 100))
	binary.LittleEndian.PutUint32(b[25:], 1<<31)
	if _, _, _, err := ParseFrame(b, 0, 1<<24); err == nil {
		t.Error("a length beyond every bound was believed")
	}
}

func TestAdvance(t *testing.T) {
	var ps Positions
	ps = ps.Advance(4, Position{0, 1, 0}, Position{1, 1, 1})
	same(t, "first", ps, Positions{{1, 1, 1}, {0, 1, 0}})
	ps = ps.Advance(4, Position{2, 1, 2}, Position{3, 1, 3}, Position{4, 1, 4})
	same(t, "second", ps, Positions{{4, 1, 4}, {3, 1, 3}, {2, 1, 2}, {1, 1, 1}})
	same(t, "none", ps.Advance(4), ps)
}

func FuzzParseFrame(f *testing.F) {
	f.Add(AppendEntry(nil, 1, 2, []byte("payload")), uint64(0))
	f.Add(append(make([]byte, 16), AppendEntry(nil, 1, 2, nil)...), uint64(8))
	f.Fuzz(func(t *testing.T, b []byte, offset uint64) {
		offset &= 1<<32 - 1
		frame, used, need, err := ParseFrame(b, offset, 1<<20)
		switch {
		case used > len(b):
			t.Fatalf("%d of %d bytes used", used, len(b))
		case err == nil && frame.Payload == nil && need <= len(b)-used:
			t.Fatalf("%d bytes needed with %d there", need, len(b)-used)
		case frame.Payload != nil && !bytes.HasSuffix(b[:used], AppendEntry(nil, frame.Tag, frame.Entry, frame.Payload)):
			t.Fatal("another frame than there is")
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(EncodeEvent(Write{1, 2, []byte{3, 4}}, time.Unix(5, 6)))
	f.Add(EncodeEvent(SnapRename{1, 2, "a", "b"}, time.Time{}))
	f.Add((&PeerClient{ImageID: "x", SyncPoints: []SyncPoint{{SnapName: "s"}}}).Encode())
	f.Add(Client{ID: "x", Committed: Positions{{1, 2, 3}}}.Encode())
	f.Add(TagData{MirrorUUID: OrphanUUID}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, at, err := DecodeEvent(b); err == nil {
			again, _, err := DecodeEvent(EncodeEvent(e, at))
			if err != nil {
				t.Fatalf("%v: %v", e, err)
			}
			if d := cmp.Diff(e, again, cmp.Transformer("bytes", func(p []byte) string { return string(p) })); d != "" {
				t.Fatal(d)
			}
		}
		if c, err := DecodeClientData(b); err == nil {
			c.Encode()
		}
		if c, err := DecodeClient(b); err == nil {
			c.Encode()
		}
		_, _ = DecodeClients(b)
		_, _ = DecodeTags(b)
		_, _ = DecodeTag(b)
		_, _ = DecodeTagData(b)
		_, _ = DecodePositions(b)
	})
}

func TestLastFrame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b []byte
		var ends []int
		n := rapid.IntRange(1, 6).Draw(t, "entries")
		for i := range n {
			payload := rapid.SliceOfN(rapid.Byte(), 0, 60).Draw(t, "payload")
			if rapid.Bool().Draw(t, "marked") {
				payload = append(payload, AppendEntry(nil, 1, 2, nil)[:20]...)
			}
			b = AppendEntry(b, 7, uint64(i), payload)
			ends = append(ends, len(b))
			if rapid.Bool().Draw(t, "padded") {
				b = append(b, make([]byte, (8-len(b)%8)%8)...)
			}
		}
		from, to := rapid.IntRange(0, len(b)).Draw(t, "from"), rapid.IntRange(0, len(b)).Draw(t, "to")
		if from > to {
			from, to = to, from
		}
		last, begin := -1, 0
		for i, end := range ends {
			if i > 0 {
				begin = ends[i-1]
			}
			if begin >= from && end <= to {
				last = i
			}
		}
		f, ok := LastFrame(b[from:to], 1<<20)
		if last >= 0 && (!ok || f.Tag != 7 || f.Entry != uint64(last)) {
			t.Fatalf("entry %d of epoch %d (%v) instead of %d", f.Entry, f.Tag, ok, last)
		}
	})
}
