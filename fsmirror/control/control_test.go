package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cephmirror/fsmirror/dirstore"
)

// fake is a cluster in memory. It is its own remote cluster "far", too.
type fake struct {
	fsid    string
	modules []string
	fss     []*fakeFS
	keys    map[string]string // config-keys
	users   map[string]*fakeUser
	maps    map[int64]*fakeMap
	service string
	remote  *fake
	failing map[string]error // monitor commands that fail
	audit   []string         // arguments of commands
}

type fakeUser struct {
	Entity string            `json:"entity"`
	Key    string            `json:"key"`
	Caps   map[string]string `json:"caps"`
}

type fakeFS struct {
	dirstore.FileSystem
	mark string
}

func newFake(fsid string) *fake {
	return &fake{
		fsid: fsid, keys: map[string]string{}, users: map[string]*fakeUser{}, maps: map[int64]*fakeMap{},
		failing: map[string]error{}, service: "{}",
		fss: []*fakeFS{
			{FileSystem: dirstore.FileSystem{ID: 1, Name: "fs1", MetadataPool: 10}},
			{FileSystem: dirstore.FileSystem{ID: 2, Name: "fs2", MetadataPool: 20}},
		},
	}
}

func (f *fake) fs(name string) *fakeFS {
	for _, fs := range f.fss {
		if fs.Name == name {
			return fs
		}
	}
	return nil
}

func (f *fake) MonCommandWithInputBuffer(raw, input []byte) ([]byte, string, error) {
	f.audit = append(f.audit, string(raw))
	var cmd map[string]any
	if err := json.Unmarshal(raw, &cmd); err != nil {
		panic(err)
	}
	text := func(name string) string { s, _ := cmd[name].(string); return s }
	if err := f.failing[text("prefix")]; err != nil {
		return nil, "it was told to fail", err
	}
	fs := f.fs(text("fs_name"))
	switch text("prefix") {
	case "status":
		return marshal(map[string]any{"mgrmap": map[string]any{"modules": f.modules}}), "", nil
	case "fs dump":
		return f.dump(), "", nil
	case "mon dump":
		return []byte(`{"mons":[{"public_addrs":{"addrvec":[{"type":"v2","addr":"10.0.0.1:3300","nonce":0},{"type":"v1","addr":"10.0.0.1:6789","nonce":0}]}}]}`), "", nil
	case "fs mirror enable":
		fs.Mirrored = true
	case "fs mirror disable":
		fs.Mirrored, fs.Peers = false, nil
	case "fs mirror peer_add":
		client, cluster, _ := strings.Cut(text("remote_cluster_spec"), "@")
		fs.Peers = append(fs.Peers, dirstore.Peer{UUID: text("uuid"), Client: client, Cluster: cluster, FSName: text("remote_fs_name")})
	case "fs mirror peer_remove":
		kept := fs.Peers[:0]
		for _, p := range fs.Peers {
			if p.UUID != text("uuid") {
				kept = append(kept, p)
			}
		}
		fs.Peers = kept
	case "config-key set":
		f.keys[text("key")] = string(input)
	case "config-key get":
		v, ok := f.keys[text("key")]
		if !ok {
			return nil, "no such key", syscall.ENOENT
		}
		return []byte(v), "", nil
	case "config-key rm":
		delete(f.keys, text("key"))
	case "auth get":
		u := f.users[text("entity")]
		if u == nil {
			return nil, "failed to find " + text("entity"), syscall.ENOENT
		}
		return marshal([]*fakeUser{u}), "", nil
	case "fs authorize":
		name := text("filesystem")
		f.users[text("entity")] = &fakeUser{text("entity"), "a2V5LW9mLXVzZXI=", map[string]string{
			"mds": "allow rwps fsname=" + name, "mon": "allow r fsname=" + name, "osd": "allow rw tag cephfs data=" + name,
		}}
	default:
		return nil, "", syscall.EINVAL
	}
	return nil, "", nil
}

func (f *fake) dump() []byte {
	var fss []any
	for _, fs := range f.fss {
		one := map[string]any{"id": fs.ID, "mdsmap": map[string]any{"fs_name": fs.Name, "metadata_pool": fs.MetadataPool}}
		if fs.Mirrored {
			peers := map[string]any{}
			for _, p := range fs.Peers {
				peers[p.UUID] = map[string]any{"remote": map[string]any{"client_name": p.Client, "cluster_name": p.Cluster, "fs_name": p.FSName}}
			}
			one["mirror_info"] = map[string]any{"peers": peers}
		}
		fss = append(fss, one)
	}
	return marshal(map[string]any{"filesystems": fss})
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fake) MgrCommand(context.Context, []byte) ([]byte, string, error) {
	return []byte(f.service), "", nil
}
func (f *fake) GetFSID() (string, error)               { return f.fsid, nil }
func (f *fake) GetConfigOption(string) (string, error) { return "", nil }

func (f *fake) OpenMap(pool int64, fn func(DirMap) error) error {
	if f.maps[pool] == nil {
		f.maps[pool] = &fakeMap{}
	}
	return fn(f.maps[pool])
}

func (f *fake) LocalMark(_ context.Context, fsName string) (string, error) {
	return f.fs(fsName).mark, nil
}

func (f *fake) Dial(_ context.Context, r Remote) (RemoteFS, error) {
	if r.Cluster == "nosuch" || r.Credentials == nil && r.Cluster != "far" {
		return nil, errNoCluster
	}
	cluster := f.remote
	if r.Cluster == "self" {
		cluster = f
	}
	if err := cluster.failing["dial"]; err != nil {
		return nil, err
	}
	if u := cluster.users["client."+r.Client]; u == nil || r.Credentials != nil && u.Key != string(r.Credentials.Key) {
		return nil, syscall.EACCES
	}
	fs := cluster.fs(r.FSName)
	if fs == nil {
		return nil, errNoFS
	}
	return &fakeRemote{cluster, fs}, nil
}

type fakeRemote struct {
	cluster *fake
	fs      *fakeFS
}

func (r *fakeRemote) Source() dirstore.Source {
	return dirstore.Source{ClusterID: r.cluster.fsid, FSID: r.fs.ID}
}
func (r *fakeRemote) Mark() (string, error) { return r.fs.mark, nil }
func (r *fakeRemote) RemoveMark() error     { r.fs.mark = ""; return nil }
func (r *fakeRemote) Close()                {}
func (r *fakeRemote) SetMark(v string) error {
	if r.fs.mark != "" {
		return syscall.EEXIST
	}
	r.fs.mark = v
	return nil
}

// fakeMap is a directory map. Meddle, when set, runs before the next change.
type fakeMap struct {
	omap   map[string][]byte
	live   map[string]string
	meddle func()
	woken  int
}

func (m *fakeMap) Create() error {
	if m.omap == nil {
		m.omap = map[string][]byte{}
	}
	return nil
}

func (m *fakeMap) Load() (*dirstore.Contents, error) {
	if m.omap == nil {
		return nil, syscall.ENOENT
	}
	return dirstore.DecodeContents(maps.Clone(m.omap)), nil
}

func (m *fakeMap) Apply(c dirstore.Change) error {
	if m.meddle != nil {
		meddle := m.meddle
		m.meddle = nil
		meddle()
	}
	for k, v := range c.Expect {
		if string(m.omap[k]) != string(v) {
			return fmt.Errorf("fake: %w", dirstore.ErrConflict)
		}
	}
	maps.Copy(m.omap, c.Set)
	for _, k := range c.Remove {
		delete(m.omap, k)
	}
	return nil
}

func (m *fakeMap) Wake(time.Duration) error                      { m.woken++; return nil }
func (m *fakeMap) Live(time.Duration) (map[string]string, error) { return m.live, nil }

// both returns a local cluster and the control of it, and its remote cluster.
func both() (*fake, *Control, *fake) {
	local, remote := newFake("aaaa"), newFake("bbbb")
	local.remote = remote
	return local, &Control{local}, remote
}

func call(t *testing.T, c *Control, cmd string, a args) Result {
	t.Helper()
	return c.Call(t.Context(), Prefix+cmd, a)
}

func mustCall(t *testing.T, c *Control, cmd string, a args) string {
	t.Helper()
	r := call(t, c, cmd, a)
	if r.Errno != 0 {
		t.Fatalf("%s %v: %v %s", cmd, a, r.Errno, r.Status)
	}
	return string(r.Out)
}

func bootstrap(t *testing.T, c *Control, fs, user, site string) string {
	t.Helper()
	var out struct{ Token string }
	if err := json.Unmarshal([]byte(mustCall(t, c, "peer_bootstrap create", args{"fs_name": fs, "client_name": user, "site_name": site})), &out); err != nil {
		t.Fatal(err)
	}
	return out.Token
}

func TestScenario(t *testing.T) {
	local, c, remote := both()
	token := bootstrap(t, &Control{remote}, "fs1", "client.peer", "far")
	self := bootstrap(t, c, "fs1", "client.self", "self")
	s := &scenario{
		call: func(cmd string, a args) Result { return call(t, c, cmd, a) },
		vars: tokenVars(t, token, self),
	}
	for _, problem := range s.run(steps()) {
		t.Error(problem)
	}
	if remote.fs("fs1").mark != "" || len(local.keys) != 0 {
		t.Errorf("left: mark %q, keys %v", remote.fs("fs1").mark, local.keys)
	}
	if m := local.maps[10]; len(m.omap) != 0 || m.woken == 0 {
		t.Errorf("left: %v; woken %d times", m.omap, m.woken)
	}
	for _, line := range local.audit {
		if strings.Contains(line, s.vars["$KEY"]) {
			t.Errorf("key among the arguments: %s", line)
		}
	}
}

func TestRefusesBesideStock(t *testing.T) {
	local, c, _ := both()
	mustCall(t, c, "enable", args{"fs_name": "fs1"})
	local.modules = []string{"iostat", "mirroring"}
	for name, cmd := range commands() {
		r := call(t, c, name, args{"fs_name": "fs1"})
		if refused := r.Errno == syscall.EBUSY; refused != cmd.changes {
			t.Errorf("%s: %v %s", name, r.Errno, r.Status)
		}
	}
	// When it is not known, better not.
	local.failing["status"] = syscall.ETIMEDOUT
	if r := call(t, c, "add", args{"fs_name": "fs1", "path": "/a"}); r.Errno != syscall.ETIMEDOUT {
		t.Errorf("%v %s", r.Errno, r.Status)
	}
}

func TestBadArguments(t *testing.T) {
	_, c, _ := both()
	for _, a := range []args{{"fs_name": 1.0}, {"fs_name": "a\x00b"}, {"fs_name": "\xff"}, {"fs_name": true}, nil} {
		if r := call(t, c, "ls", a); r.Errno != syscall.EINVAL || r.Status == "" || r.Out != nil {
			t.Errorf("%v: %v %s %s", a, r.Errno, r.Out, r.Status)
		}
	}
	if r := c.Call(t.Context(), "enable", args{"fs_name": "fs1"}); r.Errno != syscall.EINVAL {
		t.Errorf("without prefix: %v", r.Errno)
	}
}

func TestStates(t *testing.T) {
	local, c, _ := both()
	mustCall(t, c, "enable", args{"fs_name": "fs1"})
	m := local.maps[10]
	put := func(path string, e dirstore.Entry) { m.omap[dirstore.DirKey(path)] = e.Encode() }
	put("/new", dirstore.Entry{})
	put("/mapped", dirstore.Entry{Instance: "4345", LastShuffled: 1795311888.4402616})
	put("/dead", dirstore.Entry{Instance: "1", LastShuffled: 1795311888})
	put("/purging", dirstore.Entry{Instance: "4345", LastShuffled: 1, Purging: true})
	put("//stock", dirstore.Entry{})
	put("/gone", dirstore.Entry{Purging: true})
	put("/gone2", dirstore.Entry{Purging: true})
	m.omap["dir_map_/broken"] = []byte("junk")

	show := func(path string) string { return mustCall(t, c, "dirmap", args{"fs_name": "fs1", "path": path}) }
	stalled := "{\n    \"reason\": \"no mirror daemons running\",\n    \"state\": \"stalled\"\n}"
	if got := show("/mapped"); got != stalled {
		t.Error(got)
	}
	m.live = map[string]string{"4345": "x", "4400": "y"}
	for path, want := range map[string]string{
		"/new":     "{\n    \"state\": \"mapping\"\n}",
		"/stock":   "{\n    \"state\": \"mapping\"\n}",
		"/mapped":  "{\n    \"instance_id\": \"4345\",\n    \"last_shuffled\": 1795311888.4402616,\n    \"state\": \"mapped\"\n}",
		"/dead":    "{\n    \"instance_id\": \"1\",\n    \"last_shuffled\": 1795311888.0,\n    \"state\": \"shuffling\"\n}",
		"/purging": "{\n    \"instance_id\": \"4345\",\n    \"last_shuffled\": 1.0,\n    \"state\": \"unmapping\"\n}",
	} {
		if diff := cmp.Diff(want, show(path)); diff != "" {
			t.Errorf("%s\n%s", path, diff)
		}
	}
	if got := mustCall(t, c, "show distribution", args{"fs_name": "fs1"}); got != "{\n    \"mapping\": {\n        \"4345\": \"2 directories\",\n        \"4400\": \"0 directories\"\n    }\n}" {
		t.Error(got)
	}

	dir := func(p string) args { return args{"fs_name": "fs1", "path": p} }
	expect := func(cmd, path string, errno syscall.Errno, text string) {
		t.Helper()
		if r := call(t, c, cmd, dir(path)); r.Errno != errno || r.Status != text {
			t.Errorf("%s %s: %v %s", cmd, path, r.Errno, r.Status)
		}
	}
	expect("add", "/purging", syscall.EAGAIN, "remove in-progress for /purging")
	expect("remove", "/purging", syscall.EINVAL, "directory /purging is under removal")
	expect("remove", "/mapped", 0, "")
	expect("remove", "/mapped", syscall.EINVAL, "directory /mapped is under removal")
	if e, err := dirstore.DecodeEntry(m.omap["dir_map_/mapped"]); err != nil || (e != dirstore.Entry{Instance: "4345", LastShuffled: 1795311888.4402616, Purging: true}) {
		t.Error(e, err)
	}
	expect("remove", "/stock", 0, "")
	if _, ok := m.omap["dir_map_//stock"]; ok {
		t.Error("//stock is still there")
	}
	expect("add", "/gone/below", 0, "")
	expect("remove", "/gone", 0, "")
	expect("add", "/gone2", 0, "")
	expect("add", "/broken", 0, "")
	if _, err := dirstore.DecodeEntry(m.omap["dir_map_/broken"]); err != nil {
		t.Error(err)
	}
}

func TestOthersAreFaster(t *testing.T) {
	local, c, _ := both()
	mustCall(t, c, "enable", args{"fs_name": "fs1"})
	m := local.maps[10]
	a := args{"fs_name": "fs1", "path": "/a"}
	m.meddle = func() { m.omap["dir_map_/a"] = dirstore.Entry{Instance: "7"}.Encode() }
	if r := call(t, c, "add", a); r.Errno != syscall.EEXIST {
		t.Errorf("add: %v %s", r.Errno, r.Status)
	}
	m.meddle = func() { m.omap["dir_map_/a"] = dirstore.Entry{Instance: "8"}.Encode() }
	mustCall(t, c, "remove", a)
	if e, _ := dirstore.DecodeEntry(m.omap["dir_map_/a"]); (e != dirstore.Entry{Instance: "8", Purging: true}) {
		t.Error(e)
	}
}

func TestPeerOfOthers(t *testing.T) {
	local, c, remote := both()
	token := bootstrap(t, &Control{remote}, "fs1", "client.peer", "far")
	imported := args{"fs_name": "fs1", "token": token}
	mustCall(t, c, "enable", args{"fs_name": "fs1"})
	expect := func(cmd string, a args, errno syscall.Errno, text string) {
		t.Helper()
		if r := call(t, c, cmd, a); r.Errno != errno || !strings.HasPrefix(r.Status, text) {
			t.Errorf("%s: %v %s, want %v %s", cmd, r.Errno, r.Status, errno, text)
		}
	}
	// The remote one mirrors to us.
	local.fs("fs1").mark = dirstore.Source{ClusterID: "bbbb", FSID: 1}.String()
	expect("peer_bootstrap import", imported, syscall.EINVAL, "file system is an active peer for file system: fs1")
	local.fs("fs1").mark = ""
	// When the monitors refuse, nothing stays behind.
	local.failing["fs mirror peer_add"] = syscall.EPERM
	expect("peer_bootstrap import", imported, syscall.EPERM, "failed to add peer")
	if len(local.keys) != 0 || remote.fs("fs1").mark != "" {
		t.Errorf("left: %v, %q", local.keys, remote.fs("fs1").mark)
	}
	delete(local.failing, "fs mirror peer_add")
	// Our own mark of an earlier time is no obstacle.
	remote.fs("fs1").mark = dirstore.Source{ClusterID: "aaaa", FSID: 1}.String()
	mustCall(t, c, "peer_bootstrap import", imported)
	other := bootstrap(t, &Control{remote}, "fs2", "client.peer2", "far")
	expect("peer_bootstrap import", args{"fs_name": "fs1", "token": other}, syscall.EEXIST, "filesystem fs1 already has a peer: ")
	further := args{"fs_name": "fs1", "token": other, "additional": true}
	expect("peer_bootstrap import", further, 0, "filesystem fs1 has 2 peers now")
	expect("peer_bootstrap import", further, 0, "")
	if n := len(local.fs("fs1").Peers); n != 2 {
		t.Errorf("%d peers", n)
	}
	for _, peer := range local.fs("fs1").Peers {
		if peer.FSName == "fs2" {
			mustCall(t, c, "peer_remove", args{"fs_name": "fs1", "peer_uuid": peer.UUID})
		}
	}
	expect("peer_bootstrap import", args{"fs_name": "fs1", "token": other, "additional": "perhaps"}, syscall.EINVAL, "parameter additional")
	// The remote one does not answer any more, or belongs to another by now.
	uuid := local.fs("fs1").Peers[0].UUID
	remote.failing["dial"] = syscall.ETIMEDOUT
	expect("peer_remove", args{"fs_name": "fs1", "peer_uuid": uuid}, 0, "peer removed, but")
	if len(local.fs("fs1").Peers) != 0 || len(local.keys) != 0 {
		t.Error("peer is still there")
	}
	delete(remote.failing, "dial")
	mustCall(t, c, "peer_bootstrap import", imported)
	remote.fs("fs1").mark = "cluster_id=cccc fs_id=1"
	mustCall(t, c, "peer_remove", args{"fs_name": "fs1", "peer_uuid": local.fs("fs1").Peers[0].UUID})
	if remote.fs("fs1").mark == "" {
		t.Error("removed the mark of another one")
	}
}

func TestBootstrapKeepsUsers(t *testing.T) {
	local, c, _ := both()
	a := args{"fs_name": "fs1", "client_name": "client.admin", "site_name": "s"}
	caps := map[string]string{"mon": "allow *", "osd": "allow *", "mds": "allow *", "mgr": "allow *"}
	local.users["client.admin"] = &fakeUser{"client.admin", "k", maps.Clone(caps)}
	r := call(t, c, "peer_bootstrap create", a)
	if r.Errno != syscall.EINVAL || !strings.Contains(r.Status, "has other capabilities") || !maps.Equal(local.users["client.admin"].Caps, caps) {
		t.Error(r.Errno, r.Status, local.users["client.admin"].Caps)
	}
	first := bootstrap(t, c, "fs1", "client.p", "s")
	if again := bootstrap(t, c, "fs1", "client.p", "s"); again != first {
		t.Error("another token the second time")
	}
	if r := call(t, c, "peer_bootstrap create", args{"fs_name": "fs2", "client_name": "client.p", "site_name": "s"}); r.Errno != syscall.EINVAL {
		t.Error("user of another file system was changed")
	}
	token, err := dirstore.DecodeToken(first)
	if err != nil || token.MonHost != "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]" {
		t.Error(token, err)
	}
}

func TestDaemonStatus(t *testing.T) {
	local, c, _ := both()
	st := dirstore.Status{FileSystems: []dirstore.FSStatus{{ID: 1, Name: "cephfs", DirectoryCount: 5, Peers: []dirstore.PeerStatus{{
		Peer: dirstore.Peer{UUID: "45c8a604", Client: "client.mirror_remote", Cluster: "site-b", FSName: "cephfs"},
	}}}}}
	status := map[string]any{"status": map[string]string{"status_json": string(st.Encode())}}
	local.service = string(marshal(map[string]any{"cephfs-mirror": map[string]any{"4342": status, "4382": map[string]any{}}}))
	want := `[{"daemon_id": 4342, "filesystems": [{"filesystem_id": 1, "name": "cephfs", "directory_count": 5, "peers": [{"uuid": "45c8a604", ` +
		`"remote": {"client_name": "client.mirror_remote", "cluster_name": "site-b", "fs_name": "cephfs"}, "stats": {"failure_count": 0, "recovery_count": 0}}]}]}]`
	if diff := cmp.Diff(want, mustCall(t, c, "daemon status", nil)); diff != "" {
		t.Error(diff)
	}
}

func TestErrors(t *testing.T) {
	local, c, _ := both()
	mustCall(t, c, "enable", args{"fs_name": "fs1"})
	for prefix, cmd := range map[string]string{"fs dump": "ls", "fs mirror disable": "disable", "fs mirror enable": "enable"} {
		local.failing[prefix] = syscall.ETIMEDOUT
		if r := call(t, c, cmd, args{"fs_name": "fs1"}); r.Errno != syscall.ETIMEDOUT || !strings.Contains(r.Status, "told to fail") {
			t.Errorf("%s: %v %s", cmd, r.Errno, r.Status)
		}
		delete(local.failing, prefix)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := c.Call(ctx, Prefix+"add", args{"fs_name": "fs1", "path": "/a"}); r.Errno != syscall.EINTR {
		t.Errorf("%v %s", r.Errno, r.Status)
	}
	if r := resultOf(errors.New("odd")); r.Errno != syscall.EIO || r.Status != "odd" {
		t.Error(r)
	}
}

func TestPyJSON(t *testing.T) {
	for want, v := range map[string]any{
		`{"a": [1, 2.5, "x"], "b": {}, "c": []}`: object{{"a", list{int64(1), 2.5, "x"}}, {"b", object{}}, {"c", list{}}},
		`"\"\\\n\r\t\b\f\u0001\u007f/"`:          "\"\\\n\r\t\b\f\x01\u007f/",
		`"\u00e9\ud83d\ude00"`:                   "é😀",
		`{"z": 1, "a": [true, null, 1.5e3]}`:     json.RawMessage(`{"z":1,"a":[true,null,1.5e3]}`),
		`null`:                                   json.RawMessage(`{broken`),
	} {
		want = strings.ReplaceAll(want, `\u007f`, "\x7f")
		if got := string(pyJSON(v, 0)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for want, f := range map[string]float64{
		"0.0": 0, "1795311888.4402616": 1795311888.4402616, "1.0": 1, "1e+16": 1e16, "1e-05": 1e-5, "0.0001": 1e-4, "1e+100": 1e100, "123456789012345.0": 123456789012345, "-2.5": -2.5,
	} {
		if got := pyFloat(f); got != want {
			t.Errorf("%v became %s, want %s", f, got, want)
		}
	}
}
