package dirstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestKeys(t *testing.T) {
	for _, path := range []string{"/d1", "/", "//odd", "/instance_1", "/a b\xff"} {
		if got, ok := PathOfKey(DirKey(path)); !ok || got != path {
			t.Errorf("%q became %q", path, got)
		}
		if _, ok := InstanceOfKey(DirKey(path)); ok {
			t.Errorf("%q is taken for an instance", path)
		}
	}
	if got := DirKey("/d1"); got != "dir_map_/d1" {
		t.Error(got)
	}
	if id, ok := InstanceOfKey("instance_4345"); !ok || id != "4345" || InstanceKey(id) != "instance_4345" {
		t.Error(id)
	}
	if got := InstanceObject("4215"); got != "cephfs_mirror.4215" {
		t.Error(got)
	}
}

func TestShuffled(t *testing.T) {
	when := Entry{LastShuffled: 1795311888.4402616}.Shuffled()
	if when.Unix() != 1795311888 || when.Nanosecond()/1000 != 440261 {
		t.Error(when)
	}
	if s := Seconds(when); s < 1795311888.44026 || s > 1795311888.44027 {
		t.Error(s)
	}
	for _, e := range []Entry{{}, {LastShuffled: -1}, {LastShuffled: 1e300}} {
		if !e.Shuffled().IsZero() {
			t.Errorf("%v became %v", e.LastShuffled, e.Shuffled())
		}
	}
	if Seconds(time.Time{}) != 0 {
		t.Error("zero time is not 0")
	}
}

func TestContents(t *testing.T) {
	c := DecodeContents(map[string][]byte{
		"dir_map_/a":    Entry{Instance: "1"}.Encode(),
		"dir_map_/bad":  []byte("junk"),
		"instance_1":    EncodeInstance("10.0.0.1:0/1"),
		"instance_2":    nil,
		"something new": []byte("x"),
	})
	if diff := cmp.Diff(map[string]Entry{"/a": {Instance: "1"}}, c.Dirs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"1": "10.0.0.1:0/1"}, c.Instances); diff != "" {
		t.Error(diff)
	}
	if len(c.Bad) != 2 || c.Bad["dir_map_/bad"] == nil || c.Bad["instance_2"] == nil {
		t.Errorf("bad: %v", c.Bad)
	}
}

func TestBatches(t *testing.T) {
	big := Change{Controller: "1", Set: map[string][]byte{}}
	for i := range 300 {
		big.Set[fmt.Sprint(i)] = []byte{1}
		big.Remove = append(big.Remove, fmt.Sprint("r", i))
	}
	parts, err := big.batches()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, p := range parts {
		if n := len(p.Set) + len(p.Remove); n == 0 || n > 256 || p.Controller != "1" {
			t.Errorf("part of %d keys, controller %q", n, p.Controller)
		}
		for k := range p.Set {
			seen[k]++
		}
		for _, k := range p.Remove {
			seen[k]++
		}
	}
	if len(parts) != 3 || len(seen) != 600 {
		t.Errorf("%d parts of %d keys", len(parts), len(seen))
	}
	big.Expect = map[string][]byte{"1": nil}
	if _, err := big.batches(); err == nil {
		t.Error("a large conditional change was split")
	}
	small := Change{Set: map[string][]byte{"a": nil}, Expect: map[string][]byte{"a": nil}}
	if parts, err := small.batches(); err != nil || len(parts) != 1 {
		t.Error(parts, err)
	}
}

func TestNotifications(t *testing.T) {
	const acquire, release = `{"dir_path": "/w1", "mode": "acquire"}`, `{"dir_path": "/w1", "mode": "release"}`
	if got := string(EncodeAssign("/w1", ModeAcquire)); got != acquire {
		t.Error(got)
	}
	if got := string(EncodeAssign("/w1", ModeRelease)); got != release {
		t.Error(got)
	}
	for _, path := range []string{"/w1", "/é ☃", "/a\"b\\c\n\t<>&\x01", "/\u2028"} {
		p, m, err := DecodeAssign(EncodeAssign(path, ModeRelease))
		if err != nil || p != path || m != ModeRelease {
			t.Errorf("%q became %q, %q, %v", path, p, m, err)
		}
	}
	if p, _, err := DecodeAssign([]byte(`{"dir_path": "/\u00e9", "mode": "other"}`)); err != nil || p != "/é" {
		t.Error(p, err)
	}
	for _, bad := range []string{"", "x", "[]", `{"dir_path":"/a"}`, `{"mode":"acquire"}`, `{"dir_path":1,"mode":"acquire"}`} {
		if p, m, err := DecodeAssign([]byte(bad)); err == nil {
			t.Errorf("%s accepted as %q %q", bad, p, m)
		}
	}
	if got := string(EncodeAck("127.0.0.1:0/1193400926")); got != `{"addr":"127.0.0.1:0/1193400926"}` {
		t.Error(got)
	}
	if a, err := DecodeAck([]byte(`{"addr":"127.0.0.1:0/1193400926"}`)); err != nil || a != "127.0.0.1:0/1193400926" {
		t.Error(a, err)
	}
	for _, bad := range []string{"", "{}", `{"addr":1}`} {
		if _, err := DecodeAck([]byte(bad)); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
}

func TestSource(t *testing.T) {
	s := Source{"c1111111-1111-4111-8111-111111111111", 1}
	const text = "cluster_id=c1111111-1111-4111-8111-111111111111 fs_id=1"
	if s.String() != text {
		t.Error(s)
	}
	if got, err := ParseSource(text); err != nil || got != s {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "cluster_id= fs_id=1", "cluster_id=x", "cluster_id=x fs_id=", "fs_id=1 cluster_id=x", "cluster_id=x fs_id=1 "} {
		if got, err := ParseSource(bad); err == nil {
			t.Errorf("%q accepted as %v", bad, got)
		}
	}
}

const tokenJSON = `{"fsid": "c2222222-2222-4222-8222-222222222222", "filesystem": "cephfs", "user": "client.mirror_remote", "site_name": "site-b", "key": "c2VjcmV0", "mon_host": "[v2:127.0.0.1:53000/0,v1:127.0.0.1:53001/0]"}`

func TestToken(t *testing.T) {
	tok := Token{
		FSID: "c2222222-2222-4222-8222-222222222222", FileSystem: "cephfs", User: "client.mirror_remote",
		SiteName: "site-b", Key: "c2VjcmV0", MonHost: "[v2:127.0.0.1:53000/0,v1:127.0.0.1:53001/0]",
	}
	text := tok.Encode()
	if got := string(decode64(t, text)); got != tokenJSON {
		t.Errorf("got %s", got)
	}
	if got, err := DecodeToken(" " + text[:20] + "\n" + text[20:] + "\n"); err != nil || got != tok {
		t.Error(got, err)
	}
	for _, bad := range []string{
		"", "%%%", encode64("null"), encode64("[]"), encode64("{}"), encode64("junk"),
		encode64(strings.Replace(tokenJSON, `"user"`, `"usr"`, 1)),
		encode64(strings.Replace(tokenJSON, `"site-b"`, `1`, 1)),
	} {
		if _, err := DecodeToken(bad); err == nil {
			t.Errorf("%q accepted", bad)
		} else if strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("error shows the key: %v", err)
		}
	}
	for _, shown := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", tok, tok, tok, tok.Key, tok.Key, tok.Key), mustJSON(t, tok)} {
		if strings.Contains(shown, "c2VjcmV0") || strings.Contains(shown, fmt.Sprintf("%x", "c2VjcmV0")) {
			t.Errorf("key is shown: %s", shown)
		}
	}
}

func TestCredentials(t *testing.T) {
	full := Credentials{FSID: "f", MonHost: "h", Key: "k"}
	if got := string(full.Encode()); got != `{"fsid": "f", "key": "k", "mon_host": "h"}` {
		t.Error(got)
	}
	short := Credentials{MonHost: "h", Key: "k"}
	if got := string(short.Encode()); got != `{"mon_host": "h", "key": "k"}` {
		t.Error(got)
	}
	for _, c := range []Credentials{full, short} {
		if got, err := DecodeCredentials(c.Encode()); err != nil || got != c {
			t.Error(got, err)
		}
	}
	for _, bad := range []string{"", "[]", `{"key":"k"}`, `{"mon_host":"h"}`, `{"mon_host":"h","key":7}`} {
		if _, err := DecodeCredentials([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	if got := PeerKey("cephfs", "u-1"); got != "cephfs/mirror/peer/cephfs/u-1" {
		t.Error(got)
	}
}

func TestFSMap(t *testing.T) {
	m, err := ParseFSMap([]byte(`{"epoch":12,"default_fscid":1,"filesystems":[
		{"id":1,"mdsmap":{"fs_name":"cephfs","metadata_pool":2,"data_pools":[3]},
		 "mirror_info":{"peers":{"u2":{"remote":{"client_name":"client.b","cluster_name":"site-c","fs_name":"r2"}},
		                         "u1":{"remote":{"client_name":"client.a","cluster_name":"site-b","fs_name":"r1"}}}}},
		{"id":2,"mdsmap":{"fs_name":"plain","metadata_pool":4,"data_pools":[5,6]}},
		{"id":3,"mdsmap":{"fs_name":"lonely","metadata_pool":7,"data_pools":[8]},"mirror_info":{"peers":{}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &FSMap{Epoch: 12, FileSystems: []FileSystem{
		{ID: 1, Name: "cephfs", MetadataPool: 2, DataPools: []int64{3}, Mirrored: true,
			Peers: []Peer{{"u1", "client.a", "site-b", "r1"}, {"u2", "client.b", "site-c", "r2"}}},
		{ID: 2, Name: "plain", MetadataPool: 4, DataPools: []int64{5, 6}},
		{ID: 3, Name: "lonely", MetadataPool: 7, DataPools: []int64{8}, Mirrored: true},
	}}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
	if m.ByName("plain") != &m.FileSystems[1] || m.ByName("none") != nil {
		t.Error("lookup by name")
	}
	if _, err := ParseFSMap([]byte("junk")); err == nil {
		t.Error("junk accepted")
	}
}

const statusJSON = `{"1":{"name":"cephfs","directory_count":5,"peers":{"55555555-5555-4555-8555-555555555555":{"remote":{"client_name":"client.mirror_remote","cluster_name":"rsite","fs_name":"cephfs"},"stats":{"failure_count":4,"recovery_count":0}}}}}`

func TestStatus(t *testing.T) {
	s := Status{FileSystems: []FSStatus{{ID: 1, Name: "cephfs", DirectoryCount: 5, Peers: []PeerStatus{{
		Peer:         Peer{"55555555-5555-4555-8555-555555555555", "client.mirror_remote", "rsite", "cephfs"},
		FailureCount: 4,
	}}}}}
	if diff := cmp.Diff(statusJSON, string(s.Encode())); diff != "" {
		t.Error(diff)
	}
	if got := string(Status{}.Encode()); got != "{}" {
		t.Error(got)
	}
	bad := Status{FileSystems: []FSStatus{
		{ID: 1, Name: "a", MirroringFailed: true},
		{ID: 2, Name: "b", Peers: []PeerStatus{{Peer: Peer{UUID: "x"}, InitFailed: true}, {Peer: Peer{UUID: "y"}}}},
	}}
	want := `{"1":{"name":"a","directory_count":0,"mirroring_failed":true,"peers":{}},"2":{"name":"b","directory_count":0,"peers":{` +
		`"x":{"remote":{"client_name":"","cluster_name":"","fs_name":""},"stats":{"failure_count":0,"peer_init_failed":true,"recovery_count":0}},` +
		`"y":{"remote":{"client_name":"","cluster_name":"","fs_name":""},"stats":{"failure_count":0,"recovery_count":0}}}}}`
	if diff := cmp.Diff(want, string(bad.Encode())); diff != "" {
		t.Error(diff)
	}
}

func TestServiceStatus(t *testing.T) {
	got, err := ParseServiceStatus([]byte(`{"mds":{"a":{}},"cephfs-mirror":{
		"4141":{"status_stamp":"x","last_beacon":"y","status":{"status_json":` + mustJSON(t, statusJSON) + `}},
		"4142":{"status":{}}, "4143":{}, "named":{"status":{"status_json":"{}"}}, "4150":{"status":{"status_json":"{}"}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []DaemonStatus{{ID: 4141, FileSystems: []DaemonFS{{ID: 1, Name: "cephfs", DirectoryCount: 5, Peers: []DaemonPeer{{
		UUID:   "55555555-5555-4555-8555-555555555555",
		Remote: json.RawMessage(`{"client_name":"client.mirror_remote","cluster_name":"rsite","fs_name":"cephfs"}`),
		Stats:  json.RawMessage(`{"failure_count":4,"recovery_count":0}`),
	}}}}}, {ID: 4150}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "[]", `{"cephfs-mirror":{"1":{"status":{"status_json":"x"}}}}`, `{"cephfs-mirror":{"1":{"status":{"status_json":"{\"a\":{}}"}}}}`} {
		if _, err := ParseServiceStatus([]byte(bad)); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func decode64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := encoding.DecodeString(s)
	if err != nil {
		t.Fatal(errors.New("not base64"))
	}
	return b
}

func encode64(s string) string { return encoding.EncodeToString([]byte(s)) }
