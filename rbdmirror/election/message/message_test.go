package message

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// vector is what was captured from stock daemons, with what it means.
type vector struct {
	Name, Key, Hex string
	Op             uint32
	RequestID      uint64 `json:"request_id"`
	GlobalID       string `json:"global_image_id"`
	MirrorUUID     string `json:"peer_mirror_uuid"`
	SyncID         string `json:"sync_id"`
	ImageID        string `json:"image_id"`
	State          uint32 `json:"mirror_image_state"`
	NotifyReply    string `json:"notify_reply_hex"`
	Acks           []struct {
		GID, Cookie uint64
		Payload     string `json:"payload_hex"`
	}
	Decoded *struct {
		Instance  string `json:"instance_id"`
		RequestID uint64 `json:"request_id"`
		Result    int32  `json:"ret_val"`
	}
	Instance string `json:"instance_id"`
	Sec      int64  `json:"mapped_time_sec"`
	NSec     int64  `json:"mapped_time_nsec"`
}

func load(t testing.TB, file string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func vectors(t testing.TB, file string) []vector {
	t.Helper()
	var vs []vector
	load(t, file, &vs)
	if len(vs) == 0 {
		t.Fatal("no vectors in " + file)
	}
	return vs
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}

func TestLeaderVectors(t *testing.T) {
	for _, v := range vectors(t, "leader-notify.json") {
		op, err := DecodeLeader(unhex(t, v.Hex))
		if err != nil || uint32(op) != v.Op {
			t.Errorf("%s: %v, %v", v.Name, op, err)
		}
		same(t, v.Name, hex.EncodeToString(op.Encode()), v.Hex)
	}
}

func TestInstanceVectors(t *testing.T) {
	for _, v := range vectors(t, "instance-notify.json") {
		want := Instance{Op: Op(v.Op), RequestID: v.RequestID, GlobalID: v.GlobalID, MirrorUUID: v.MirrorUUID, SyncID: v.SyncID}
		got, err := DecodeInstance(unhex(t, v.Hex))
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		same(t, v.Name, got, want)
		if got.Op.Known() {
			same(t, v.Name, hex.EncodeToString(got.Encode()), v.Hex)
		}
	}
}

func TestAckVectors(t *testing.T) {
	for _, v := range vectors(t, "instance-ack.json") {
		r, err := DecodeReply(unhex(t, v.NotifyReply))
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if len(r.Silent) != 0 || len(r.Acks) != len(v.Acks) {
			t.Fatalf("%s: %+v", v.Name, r)
		}
		for i, a := range v.Acks {
			same(t, v.Name, r.Acks[i], Watcher{Client: a.GID, Cookie: a.Cookie, Payload: unhex(t, a.Payload)})
		}
		if v.Decoded == nil {
			if _, ok := r.Answer("4313", 0); ok {
				t.Errorf("%s: an empty acknowledgement is an answer", v.Name)
			}
			continue
		}
		want := Ack{v.Decoded.Instance, v.Decoded.RequestID, v.Decoded.Result}
		got, ok := r.Answer(want.Instance, want.RequestID)
		if !ok {
			t.Errorf("%s: no answer found", v.Name)
		}
		same(t, v.Name, got, want)
		same(t, v.Name, hex.EncodeToString(got.Encode()), v.Acks[len(v.Acks)-1].Payload)
		if _, ok := r.Answer(want.Instance, want.RequestID+1); ok {
			t.Errorf("%s: the answer to another request was taken", v.Name)
		}
	}
}

func TestMapVectors(t *testing.T) {
	var file struct{ Omap []vector }
	load(t, "leader-object.json", &file)
	found := 0
	for _, v := range file.Omap {
		if v.Hex == "" {
			continue
		}
		found++
		got, err := DecodeMapping(unhex(t, v.Hex))
		if err != nil {
			t.Fatalf("%s: %v", v.Key, err)
		}
		same(t, v.Key, got, Mapping{v.Instance, time.Unix(v.Sec, v.NSec).UTC(), policyNone})
		same(t, v.Key, hex.EncodeToString(got.Encode()), v.Hex)
		got.Data = nil // as we write it
		same(t, v.Key, hex.EncodeToString(got.Encode()), v.Hex)
	}
	if found == 0 {
		t.Error("no mapping among the vectors")
	}
}

func TestReadsBackWhatItWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		m := Instance{Op: Op(rapid.Uint32Range(0, 4).Draw(t, "op")), RequestID: rapid.Uint64().Draw(t, "request")}
		switch m.Op {
		case PeerImageRemoved:
			m.MirrorUUID = text.Draw(t, "uuid")
			fallthrough
		case ImageAcquire, ImageRelease:
			m.GlobalID = text.Draw(t, "image")
		default:
			m.SyncID = text.Draw(t, "sync")
		}
		if got, err := DecodeInstance(m.Encode()); err != nil || got != m {
			t.Errorf("%+v is read as %+v, %v", m, got, err)
		}
		a := Ack{text.Draw(t, "instance"), rapid.Uint64().Draw(t, "id"), rapid.Int32().Draw(t, "result")}
		if got, err := DecodeAck(a.Encode()); err != nil || got != a {
			t.Errorf("%+v is read as %+v, %v", a, got, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, file := range []string{"leader-notify.json", "instance-notify.json", "instance-ack.json"} {
		for _, v := range vectors(f, file) {
			f.Add(unhex(f, v.Hex))
			f.Add(unhex(f, v.NotifyReply))
		}
	}
	f.Add(UpdateMapInput(Entry{"a", Mapping{Instance: "1"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := DecodeInstance(b); err == nil && m.Op.Known() {
			if again, err := DecodeInstance(m.Encode()); err != nil || again != m {
				t.Errorf("%+v is read as %+v, %v", m, again, err)
			}
		}
		if m, err := DecodeMapping(b); err == nil {
			again, err := DecodeMapping(m.Encode())
			if err != nil || again.Instance != m.Instance || !again.Mapped.Equal(m.Mapped) || !bytes.Equal(again.Data, m.Data) {
				t.Errorf("%+v is read as %+v, %v", m, again, err)
			}
		}
		_, _ = DecodeLeader(b)
		_, _ = DecodeAck(b)
		_, _ = DecodeReply(b)
		_, _ = DecodeMap(b)
		_, _ = DecodeInstances(b)
	})
}
