package format

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cephmirror/rbdmirror/cls"
)

func load(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type namespaceJSON struct {
	Type cls.NamespaceType
	Raw  string
}

// eventJSON is an event as the vectors describe it.
type eventJSON struct {
	V, C, T        int
	Name           string
	Off, Len, Gran uint64
	Data, Cmp      string
	OpTID          uint64 `json:"op_tid"`
	OpTID2         uint64 `json:"op_tid2"`
	R              int32
	SnapName       string `json:"snap_name"`
	NS             *namespaceJSON
	Dst, Src       string
	SnapID         uint64 `json:"snap_id"`
	Size, Limit    uint64
	ImageName      string `json:"image_name"`
	Key, Value     string
	Features       uint64
	Enabled        int
	TS             [2]int64
}

func (e eventJSON) event(t *testing.T) (Event, time.Time) {
	var at time.Time
	if e.TS != [2]int64{} {
		at = time.Unix(e.TS[0], e.TS[1]).UTC()
	}
	data, compare := unhex(t, e.Data), unhex(t, e.Cmp)
	snap := Snap{ID: e.OpTID, Name: e.SnapName}
	if e.NS != nil {
		snap.Namespace.Type = e.NS.Type
		if e.NS.Raw != "" {
			snap.Namespace.Raw = unhex(t, e.NS.Raw)
		}
	}
	switch uint32(e.T) {
	case kindDiscard:
		return Discard{e.Off, e.Len, uint32(e.Gran)}, at
	case kindWrite:
		return Write{e.Off, e.Len, data}, at
	case kindFlush:
		return Flush{}, at
	case kindOpFinish:
		if e.OpTID != e.OpTID2 {
			t.Fatalf("operation %d finished as %d", e.OpTID, e.OpTID2)
		}
		return OpFinish{e.OpTID, e.R}, at
	case kindSnapCreate:
		return SnapCreate{snap}, at
	case kindSnapRemove:
		return SnapRemove{snap}, at
	case kindSnapRename:
		return SnapRename{ID: e.OpTID, SnapID: e.SnapID, From: e.Src, To: e.Dst}, at
	case kindSnapProtect:
		return SnapProtect{snap}, at
	case kindSnapUnprotect:
		return SnapUnprotect{snap}, at
	case kindSnapRollback:
		return SnapRollback{snap}, at
	case kindRename:
		return Rename{e.OpTID, e.ImageName}, at
	case kindResize:
		return Resize{e.OpTID, e.Size}, at
	case kindFlatten:
		return Flatten{e.OpTID}, at
	case kindRoleChange:
		return RoleChange{}, at
	case kindSnapLimit:
		return SnapLimit{e.OpTID, e.Limit}, at
	case kindUpdateFeatures:
		return UpdateFeatures{e.OpTID, e.Features, e.Enabled != 0}, at
	case kindMetadataSet:
		return MetadataSet{e.OpTID, e.Key, e.Value}, at
	case kindMetadataRemove:
		return MetadataRemove{e.OpTID, e.Key}, at
	case kindWriteSame:
		return WriteSame{e.Off, e.Len, data}, at
	case kindCompareAndWrite:
		return CompareAndWrite{e.Off, e.Len, compare, data}, at
	}
	t.Fatalf("event of type %d", e.T)
	return nil, at
}

type entryJSON struct {
	Object, Offset uint64
	Length         int
	Tag            uint64 `json:"tag_tid"`
	Entry          uint64 `json:"entry_tid"`
	Hex            string
	Event          eventJSON
}

type positionJSON struct {
	Object uint64 `json:"object_number"`
	Tag    uint64 `json:"tag_tid"`
	Entry  uint64 `json:"entry_tid"`
}

type decodedJSON struct {
	V, Type  int
	TagClass uint64 `json:"tag_class"`
	Resync   int    `json:"resync_requested"`
	ImageID  string `json:"image_id"`
	State    PeerState
	Count    uint64 `json:"sync_object_count"`
	Points   []struct {
		Name   string  `json:"snap_name"`
		From   string  `json:"from_snap_name"`
		Object *uint64 `json:"object_number"`
		NS     namespaceJSON
	} `json:"sync_points"`
	Seqs map[string]uint64 `json:"snap_seqs"`

	MirrorUUID *string `json:"mirror_uuid"`
	Pred       struct {
		MirrorUUID string `json:"mirror_uuid"`
		Valid      int    `json:"commit_valid"`
		Tag        uint64 `json:"tag_tid"`
		Entry      uint64 `json:"entry_tid"`
	}
}

func (d decodedJSON) client(t *testing.T) ClientData {
	if d.Type == 0 {
		return &ImageClient{d.TagClass, d.Resync != 0}
	}
	c := &PeerClient{ImageID: d.ImageID, State: d.State, SyncObjectCount: d.Count, SnapSeqs: map[uint64]uint64{}}
	for _, p := range d.Points {
		c.SyncPoints = append(c.SyncPoints, SyncPoint{p.Name, p.From, p.Object, cls.SnapshotNamespace{Type: p.NS.Type}})
	}
	for k, v := range d.Seqs {
		n, err := strconv.ParseUint(k, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		c.SnapSeqs[n] = v
	}
	return c
}

func (d decodedJSON) tag() TagData {
	return TagData{*d.MirrorUUID, Predecessor{d.Pred.MirrorUUID, d.Pred.Valid != 0, d.Pred.Tag, d.Pred.Entry}}
}

type journalJSON struct {
	Ceph    string
	Pool    int64  `json:"pool_id"`
	ImageID string `json:"image_id"`
	Header  string `json:"header_oid"`
	Prefix  string `json:"object_oid_prefix"`
	Order   uint8
	Splay   uint8             `json:"splay_width"`
	Omap    map[string]string `json:"header_omap"`
	Clients []clientJSON
	Tags    []tagJSON
	Exec    map[string][]struct{ In, Out string } `json:"cls_exec"`
	Objects map[string]string
	Entries []entryJSON
}

type clientJSON struct {
	ID      string
	Data    string
	Commit  []positionJSON
	State   ClientState
	Decoded decodedJSON
	Data2   decodedJSON `json:"data_decoded"`
}

type tagJSON struct {
	TID     uint64
	Class   uint64 `json:"tag_class"`
	Data    string
	Decoded decodedJSON
	Data2   decodedJSON `json:"data_decoded"`
}

func (c clientJSON) positions() (ps Positions) {
	for _, p := range c.Commit {
		ps = append(ps, Position(p))
	}
	return ps
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

var journals = []string{"reef-journal.json", "tentacle-journal.json", "tentacle-padded.json"}

func TestWholeJournals(t *testing.T) {
	for _, name := range journals {
		t.Run(name, func(t *testing.T) {
			var j journalJSON
			load(t, name, &j)
			want := make(map[uint64][]entryJSON)
			for _, e := range j.Entries {
				want[e.Object] = append(want[e.Object], e)
			}
			for key, text := range j.Objects {
				number, err := strconv.ParseUint(key, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				parseObject(t, unhex(t, text), 1<<j.Order, want[number])
				delete(want, number)
			}
			if len(want) > 0 {
				t.Errorf("objects without data: %v", slices.Sorted(maps.Keys(want)))
			}
		})
	}
}

func parseObject(t *testing.T, b []byte, limit uint64, want []entryJSON) {
	t.Helper()
	at := 0
	for _, w := range want {
		f, used, _, err := ParseFrame(b[at:], uint64(at), limit)
		if err != nil || f.Payload == nil {
			t.Fatalf("at %d: used %d, %v", at, used, err)
		}
		at += used
		if f.Offset != w.Offset || f.Tag != w.Tag || f.Entry != w.Entry || f.Size() != w.Length {
			t.Fatalf("got %d/%d at %d, %d bytes; want %+v", f.Tag, f.Entry, f.Offset, f.Size(), w)
		}
		checkEvent(t, f, w, b[f.Offset:at])
	}
	if f, used, _, err := ParseFrame(b[at:], uint64(at), limit); err != nil || f.Payload != nil || at+used != len(b) {
		t.Errorf("%d bytes are left, %v", len(b)-at-used, err)
	}
}

func checkEvent(t *testing.T, f Frame, w entryJSON, framed []byte) {
	t.Helper()
	event, at, err := DecodeEvent(f.Payload)
	if err != nil {
		t.Fatal(err)
	}
	wantEvent, wantTime := w.Event.event(t)
	same(t, Name(event), event, wantEvent)
	if !at.Equal(wantTime) {
		t.Errorf("time %v, want %v", at, wantTime)
	}
	if got := EncodeEvent(event, at); !bytes.Equal(got, f.Payload) {
		t.Errorf("%s encodes as\n%x, want\n%x", Name(event), got, f.Payload)
	}
	if got := AppendEntry(nil, f.Tag, f.Entry, f.Payload); !bytes.Equal(got, framed) {
		t.Errorf("frame encodes as\n%x, want\n%x", got, framed)
	}
}

func TestFlattenAndRoleChange(t *testing.T) {
	var j struct{ Entries []entryJSON }
	load(t, "flatten-demote.json", &j)
	for _, w := range j.Entries {
		b := unhex(t, w.Hex)
		f, used, _, err := ParseFrame(b, 0, 1<<24)
		if err != nil || used != len(b) {
			t.Fatalf("used %d of %d, %v", used, len(b), err)
		}
		checkEvent(t, f, w, b)
	}
}

func TestKnownAnswer(t *testing.T) {
	var j journalJSON
	load(t, "reef-journal.json", &j)
	f, _, _, err := ParseFrame(unhex(t, j.Objects["0"]), 0, 1<<24)
	if err != nil {
		t.Fatal(err)
	}
	e, at, err := DecodeEvent(f.Payload)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "first entry", e, Event(Write{Offset: 4096, Length: 16, Data: []byte("0123456789abcdef")}))
	same(t, "time", at, time.Unix(1795311839, 973977056).UTC())
}

func TestFramingCases(t *testing.T) {
	var v struct{ Cases []struct{ Name, Hex string } }
	load(t, "framing-cases.json", &v)
	expect := map[string]struct {
		entries, offset int
		corrupt         bool
	}{
		"two-entries":    {2, -1, false},
		"cut-in-payload": {1, 93, false},
		"cut-in-header":  {1, 93, false},
		"bad-crc":        {1, 93, true},
		"bad-preamble":   {1, 93, true},
		"zero-tail":      {2, -1, false},
		"duplicate":      {2, -1, false}, // which one counts is the reader's business
	}
	for _, c := range v.Cases {
		t.Run(c.Name, func(t *testing.T) {
			want, ok := expect[c.Name]
			if !ok {
				t.Fatal("unexpected case")
			}
			b := unhex(t, c.Hex)
			if want.offset < 0 {
				want.offset = len(b)
			}
			at, entries := 0, 0
			for {
				f, used, need, err := ParseFrame(b[at:], uint64(at), 1<<24)
				if f.Payload != nil {
					at += used
					entries++
					continue
				}
				if (err != nil) != want.corrupt {
					t.Errorf("error %v", err)
				}
				if err == nil && need <= 0 {
					t.Errorf("nothing needed")
				}
				at += used
				break
			}
			if entries != want.entries || at != want.offset {
				t.Errorf("%d entries up to %d, want %d up to %d", entries, at, want.entries, want.offset)
			}
		})
	}
}

func TestHeader(t *testing.T) {
	for _, name := range journals {
		t.Run(name, func(t *testing.T) {
			var j journalJSON
			load(t, name, &j)
			same(t, "header", HeaderName(j.ImageID), j.Header)
			same(t, "data", DataPrefix(j.Pool, j.ImageID), j.Prefix)
			for _, c := range j.Clients {
				checkClient(t, unhex(t, j.Omap["client_"+c.ID]), c)
			}
			for _, tag := range j.Tags {
				raw := unhex(t, j.Omap["tag_"+hexID(tag.TID)])
				got, err := DecodeTag(raw)
				if err != nil {
					t.Fatal(err)
				}
				same(t, "tag", got, Tag{tag.TID, tag.Class, unhex(t, tag.Data)})
				same(t, "encoded tag", got.Encode(), raw)
				checkTagData(t, got.Data, tag.Data2.tag())
			}
			checkCalls(t, j)
		})
	}
}

func hexID(id uint64) string {
	s := strconv.FormatUint(id, 16)
	return strings.Repeat("0", 16-len(s)) + s
}

func checkClient(t *testing.T, raw []byte, want clientJSON) {
	t.Helper()
	got, err := DecodeClient(raw)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "client", got, Client{want.ID, unhex(t, want.Data), want.positions(), want.State})
	same(t, "encoded client", got.Encode(), raw)
	checkClientData(t, got.Data, want.Data2.client(t))
}

func checkClientData(t *testing.T, raw []byte, want ClientData) {
	t.Helper()
	got, err := DecodeClientData(raw)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "client data", got, want)
	same(t, "encoded client data", got.Encode(), raw)
}

func checkTagData(t *testing.T, raw []byte, want TagData) {
	t.Helper()
	got, err := DecodeTagData(raw)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "tag data", got, want)
	same(t, "encoded tag data", got.Encode(), raw)
}

func checkCalls(t *testing.T, j journalJSON) {
	t.Helper()
	calls := map[string][]cls.Call{
		"get_order":        {GetOrder()},
		"get_splay_width":  {GetSplayWidth()},
		"get_pool_id":      {GetPoolID()},
		"get_minimum_set":  {GetMinimumSet()},
		"get_active_set":   {GetActiveSet()},
		"get_next_tag_tid": {GetNextTagID()},
		"get_client":       {GetClient("")},
		"client_list":      {ListClients("", 256)},
		"tag_list":         {ListTags(0, 64, "", new(uint64)), ListTags(0, 64, "", nil)},
		"get_tag":          {GetTag(j.Tags[len(j.Tags)-1].TID)},
	}
	for method, vectors := range j.Exec {
		for i, v := range vectors {
			if i >= len(calls[method]) {
				t.Errorf("unexpected call %s", method)
				continue
			}
			c := calls[method][i]
			if c.Class != "journal" || c.Method != method || hex.EncodeToString(c.In) != v.In {
				t.Errorf("call %s.%s(%x), want %s(%s)", c.Class, c.Method, c.In, method, v.In)
			}
			out := unhex(t, v.Out)
			var err error
			switch method {
			case "get_order":
				var n uint8
				n, err = DecodeU8(out)
				same(t, method, n, j.Order)
			case "get_splay_width":
				var n uint8
				n, err = DecodeU8(out)
				same(t, method, n, j.Splay)
			case "get_pool_id":
				_, err = cls.DecodeS64(out)
			case "get_minimum_set", "get_active_set", "get_next_tag_tid":
				_, err = cls.DecodeU64(out)
			case "get_client":
				checkClient(t, out, j.Clients[0])
			case "client_list":
				var list []Client
				list, err = DecodeClients(out)
				same(t, "clients", len(list), len(j.Clients))
			case "tag_list":
				var list []Tag
				list, err = DecodeTags(out)
				same(t, "tags", len(list), len(j.Tags))
			case "get_tag":
				_, err = DecodeTag(out)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
}

func TestClientAndTagData(t *testing.T) {
	var v struct {
		Items []struct {
			Name, Hex string
			Decoded   decodedJSON
		}
	}
	load(t, "clientdata-tagdata.json", &v)
	for _, i := range v.Items {
		t.Run(i.Name, func(t *testing.T) {
			if i.Decoded.MirrorUUID != nil {
				checkTagData(t, unhex(t, i.Hex), i.Decoded.tag())
			} else {
				checkClientData(t, unhex(t, i.Hex), i.Decoded.client(t))
			}
		})
	}
	var sync struct {
		Steps []struct {
			Hex     string
			Decoded decodedJSON
		}
	}
	load(t, "image-sync-clientdata.json", &sync)
	for _, s := range sync.Steps {
		checkClientData(t, unhex(t, s.Hex), s.Decoded.client(t))
	}
}

func TestClientsAndTagsOfFailovers(t *testing.T) {
	for _, name := range []string{"failover-tags.json", "split-brain-tags.json"} {
		var v struct {
			Steps []struct {
				Step  string
				Sites map[string]struct {
					Clients []clientJSON
					Tags    []tagJSON
				}
			}
		}
		load(t, name, &v)
		for _, s := range v.Steps {
			for _, site := range s.Sites {
				for _, c := range site.Clients {
					checkClientData(t, unhex(t, c.Data), c.Decoded.client(t))
				}
				for _, tag := range site.Tags {
					checkTagData(t, unhex(t, tag.Data), tag.Decoded.tag())
				}
			}
		}
	}
}
