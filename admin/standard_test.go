package admin

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeConfig has three options and the errors a host gives.
type fakeConfig struct {
	mu   sync.Mutex
	vals map[string]string
}

func (f *fakeConfig) Show() []Pair {
	return []Pair{{"admin_socket", "/run/a.asok"}, {"cluster", "ceph"}, {"debug_ms", "0/0"},
		{"name", "client.mirror"}, {"pid_file", "/run/a.pid"}}
}

func (f *fakeConfig) Get(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.vals[name]
	if !ok {
		return "", syscall.ENOENT
	}
	return v, nil
}

func (f *fakeConfig) Set(name, value string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case name == "mon_host":
		return "", Errorf(syscall.EPERM, "Configuration option 'mon_host' may not be modified at runtime")
	case name == "fsid":
		return "", syscall.EPERM
	case name == "scan" && value == "x":
		return "", fmt.Errorf("parsing: %w", syscall.EINVAL)
	}
	if _, ok := f.vals[name]; !ok {
		return "", syscall.ENOENT
	}
	f.vals[name] = value
	if name == "scan" {
		return "scan = '' (not observed, change may require restart) ", nil
	}
	return "", nil
}

func (f *fakeConfig) Unset(name string) error {
	if name == "nosuch" {
		return syscall.EINVAL
	}
	return nil
}

func (f *fakeConfig) Diff() []OptionDiff {
	return []OptionDiff{
		{Name: "fsid", Default: "0", File: "1", Override: "1", Final: "1"},
		{Name: "mon_data_avail_crit", Default: 5, File: 1, Final: 1},
		{Name: "log_to_stderr", Default: true, Final: false},
	}
}

func (f *fakeConfig) Options() []OptionInfo {
	return []OptionInfo{{
		Name: "scan", Type: "uint", Level: "advanced", Desc: "interval", LongDesc: "see <doc>",
		Default: 10, Services: []string{"cephfs-mirror"}, Min: 1, Runtime: true,
	}, {Name: "debug_ms", Type: "str", Level: "advanced", Default: "0/0", Flags: []string{"runtime"}}}
}

type fakeLog struct {
	calls []string
	err   error
}

func (l *fakeLog) add(s string) error {
	l.calls = append(l.calls, s)
	return l.err
}

func (l *fakeLog) Flush(context.Context) error  { return l.add("flush") }
func (l *fakeLog) Dump(context.Context) error   { return l.add("dump") }
func (l *fakeLog) Reopen(context.Context) error { return l.add("reopen") }

type fakeMetrics struct {
	mu      sync.Mutex
	loggers []Logger
	err     error
}

func (m *fakeMetrics) Loggers(context.Context) ([]Logger, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loggers, m.err
}

var tentacle = Version{Version: "20.2.4", Release: "tentacle", Git: "7f793731f1b39eb4f465e960113d2363c311b964"}

func standardTable(t testing.TB) (*Table, *fakeConfig, *fakeLog, *fakeMetrics) {
	t.Helper()
	c := &fakeConfig{vals: map[string]string{"debug_ms": "0/0", "debug_mds": "1/5", "scan": "10", "flag": "false"}}
	l, m := &fakeLog{}, &fakeMetrics{}
	var tb Table
	if err := Standard(&tb, Parts{Version: tentacle, Config: c, Log: l, Metrics: m}); err != nil {
		t.Fatal(err)
	}
	return &tb, c, l, m
}

// ask runs one request through a table without a socket.
func ask(t testing.TB, tb *Table, request string) string {
	t.Helper()
	o := Options{Table: tb}
	o.setDefaults()
	s := &Server{opts: o, ctx: t.Context(), slots: make(chan struct{}, 8)}
	defer s.wg.Wait()
	return string(s.answer([]byte(request)))
}

func TestWireVectors(t *testing.T) {
	var file struct {
		Cases []struct {
			Request    string `json:"request"`
			RequestHex string `json:"request_hex"`
			Reply      string `json:"reply"`
			ReplyHex   string `json:"reply_hex"`
		}
	}
	if err := json.Unmarshal(testdata(t, "asok-wire.json"), &file); err != nil {
		t.Fatal(err)
	}
	tb, _, _, _ := standardTable(t)
	status := func(context.Context, Request) (Reply, error) {
		r, err := jsonReply(struct {
			Name  string `json:"name"`
			State string `json:"state"`
		}{"jp/j1", "Replaying"})
		r.Root = "image_replayer"
		return r, err
	}
	if err := tb.Add("rbd mirror status jp/j1", "get status for rbd mirror jp/j1", status); err != nil {
		t.Fatal(err)
	}
	if err := tb.Add("rbd mirror flush jp/j1", "flush rbd mirror jp/j1", nothing); err != nil {
		t.Fatal(err)
	}
	s := serve(t, Options{Table: tb, MaxRequest: 1023})
	seen := map[string]string{}
	for _, c := range file.Cases {
		req := []byte(strings.NewReplacer(`\0`, "\x00", `\n`, "\n").Replace(c.Request))
		half := false
		switch {
		case c.RequestHex != "":
			req = must[[]byte](t)(hex.DecodeString(c.RequestHex))
		case strings.HasPrefix(c.Request, "1100 bytes"):
			req = []byte(strings.Repeat("x", 1100))
		case strings.Contains(c.Request, "SHUT_WR"):
			req, half = []byte(`{"prefix":"version"}`), true
		}
		want := c.ReplyHex
		switch {
		case strings.Contains(c.Reply, `same as with \0`):
			want = seen["{\"prefix\":\"version\"}\x00"]
		case strings.Contains(c.Reply, "perfcounters_dump"):
			want = hex.EncodeToString(rawExchange(t, s.Path(), []byte(`{"prefix":"perf dump"}`+"\n"), false))
		case strings.Contains(c.Reply, "perfcounters_schema"):
			want = hex.EncodeToString(rawExchange(t, s.Path(), []byte(`{"prefix":"perf schema"}`+"\n"), false))
		case strings.Contains(c.Reply, "closed"):
			want = ""
		}
		got := hex.EncodeToString(rawExchange(t, s.Path(), req, half))
		seen[string(req)] = got
		if got != want {
			g, _ := hex.DecodeString(got)
			w, _ := hex.DecodeString(want)
			t.Errorf("request %q%s:\n got %q\nwant %q", c.Request, c.RequestHex, g, w)
		}
	}
	if len(seen) < len(file.Cases)-1 {
		t.Errorf("only %d of %d cases were told apart", len(seen), len(file.Cases))
	}
}

// The table as stock has it comes out byte for byte, and ours of the standard
// commands are stock's.
func TestDescriptionsAsStock(t *testing.T) {
	file := testdata(t, "asok-command-descriptions.json")
	stock := must[[]Description](t)(ParseDescriptions(file))
	var all Table
	for _, d := range stock {
		if err := all.Add(d.Signature.String(), d.Help, nothing); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(strings.TrimSpace(string(file)), indentJSON(t, all.Descriptions())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(testdata(t, "asok-help.json"))), indentJSON(t, all.Help())); diff != "" {
		t.Error(diff)
	}

	byPrefix := map[string]Description{}
	for _, d := range stock {
		byPrefix[d.Signature.Prefix()] = d
	}
	ours, _, _, _ := standardTable(t)
	var reef map[string]string
	if err := json.Unmarshal(testdata(t, "asok-help-reef.json"), &reef); err != nil {
		t.Fatal(err)
	}
	var cephfs map[string]string
	if err := json.Unmarshal(testdata(t, "asok-help-cephfs-mirror.json"), &cephfs); err != nil {
		t.Fatal(err)
	}
	for _, d := range ours.List() {
		p := d.Signature.Prefix()
		want, ok := byPrefix[p]
		if !ok {
			t.Errorf("stock has no %q", p)
			continue
		}
		var a, b jsonWriter
		d.Signature.appendDescription(&a)
		want.Signature.appendDescription(&b)
		if string(a.b) != string(b.b) || d.Help != want.Help {
			t.Errorf("%s\n got %s %q\nwant %s %q", p, a.b, d.Help, b.b, want.Help)
		}
		if d.Help != "" && (reef[p] != d.Help || cephfs[p] != d.Help) {
			t.Errorf("%s: help %q, Reef's %q, cephfs-mirror's %q", p, d.Help, reef[p], cephfs[p])
		}
	}
	skipped := map[string]bool{"abort": true, "assert": true, "leak_some_memory": true, "dump_mempools": true,
		"messenger dump": true, "raise": true, "rotate-key": true, "wipe-rotating-secrets": true}
	for p := range byPrefix {
		if _, _, have := ours.Lookup(p); !have && !skipped[p] && !strings.HasPrefix(p, "rbd ") {
			t.Errorf("stock's %q is missing", p)
		}
	}
}

// Replies recorded from 20.2.4 (18.2.7 gives the same), but for the option names.
func TestStandardReplies(t *testing.T) {
	const einval = "ERROR: (22) Invalid argument\n"
	for _, c := range []struct{ request, want string }{
		{`{"prefix":"0"}`, "2"},
		{`{"prefix":"0","format":"xml"}`, "2"},
		{`{"prefix":"version","format":"json"}`, `{"version":"20.2.4","release":"tentacle","release_type":"stable"}`},
		{`{"prefix":"ve\u0072sion","format":"json"}`, `{"version":"20.2.4","release":"tentacle","release_type":"stable"}`},
		{`{"prefix":"version","format":"xml"}`, `<version><version>20.2.4</version><release>tentacle</release><release_type>stable</release_type></version>`},
		{`{"prefix":"version","format":"xml-pretty"}`, "<version>\n <version>20.2.4</version>\n <release>tentacle</release>\n <release_type>stable</release_type>\n</version>\n\n"},
		{`{"prefix":"version","format":"nosuch","extra":5}`, "{\n    \"version\": \"20.2.4\",\n    \"release\": \"tentacle\",\n    \"release_type\": \"stable\"\n}\n"},
		{`{"prefix":"version","format":5}`, einval + "invalid json, missing format and/or prefix\n"},
		{`{"prefix":"version","format":["json"]}`, einval + "invalid json, missing format and/or prefix\n"},
		{`{"prefix":5}`, einval + "invalid json, missing format and/or prefix\n"},
		{`{"prefix":"version","extra":{"a":1}}`, einval + "invalid json\n"},
		{`{"prefix":"version","extra":[1,"a"]}`, einval + "invalid json\n"},
		{`{"prefix":"version","extra":null}`, einval + "invalid json\n"},
		{`[1]`, einval + "invalid json\n"},
		{`"version"`, einval + "invalid json\n"},
		{``, einval + "invalid json\n"},
		{`null`, einval + "invalid json\n"},
		{`{"format":"json"}`, einval + "unknown command prefix \n"},
		{`{"prefix":" version"}`, einval + "unknown command prefix  version\n"},
		{`{"prefix":"x\"<>&'\u00e9\n"}`, einval + "unknown command prefix x\"<>&'\u00e9\n\n"},
		{`{"prefix":"git_version","format":"json"}`, `{"git_version":"7f793731f1b39eb4f465e960113d2363c311b964"}`},
		{`{"prefix":"git_version","format":"xml"}`, `<version><git_version>7f793731f1b39eb4f465e960113d2363c311b964</git_version></version>`},
		{`{"prefix":"objecter_requests","format":"json"}`, `{"ops":[],"linger_ops":[],"pool_ops":[],"pool_stat_ops":[],"statfs_ops":[],"command_ops":[]}`},
		{`{"prefix":"objecter_requests","format":"xml"}`, `<requests><ops></ops><linger_ops></linger_ops><pool_ops></pool_ops><pool_stat_ops></pool_stat_ops><statfs_ops></statfs_ops><command_ops></command_ops></requests>`},

		{`{"prefix":"config get","var":"debug_ms"}`, "{\n    \"debug_ms\": \"0/0\"\n}\n"},
		{`{"prefix":"config get","var":"debug_ms","format":"xml"}`, `<config_get><debug_ms>0/0</debug_ms></config_get>`},
		{`{"prefix":"config get","format":"json","var":"nosuch","var":"debug_ms"}`, `{"debug_ms":"0/0"}`},
		{`{"prefix":"config get","var":5}`, einval + "invalid command json\n"},
		{`{"prefix":"config get","var":["debug_ms"]}`, einval + "invalid command json\n"},
		{`{"prefix":"config get","var":true}`, einval + "invalid command json\n"},
		{`{"prefix":"config set","var":"debug_ms","val":["1"]}`, "{\n    \"success\": \"\"\n}\n"},
		{`{"prefix":"config set","var":"debug_ms","val":["1"],"format":"xml"}`, "<config_set><success></success></config_set>"},
		{`{"prefix":"config set","var":"debug_ms","val":"1"}`, einval + "invalid command json\n"},
		{`{"prefix":"config set","var":"debug_ms","val":[1,2]}`, einval + "invalid command json\n"},
		{`{"prefix":"config set","var":"nosuch","val":["1"]}`, "ERROR: (2) No such file or directory\nerror setting 'nosuch' to '1': (2) No such file or directory\n"},
		{`{"prefix":"config set","var":"fsid","val":["x"]}`, "ERROR: (1) Operation not permitted\nerror setting 'fsid' to 'x': (1) Operation not permitted\n"},
		{`{"prefix":"config set","var":"scan","val":["x"]}`, einval + "error setting 'scan' to 'x': (22) Invalid argument\n"},
		{`{"prefix":"config set","var":"scan","val":["7"]}`, "{\n    \"success\": \"scan = '' (not observed, change may require restart) \"\n}\n"},
		{`{"prefix":"config unset","var":"debug_ms"}`, "{}\n"},
		{`{"prefix":"config unset","var":"debug_ms","format":"xml"}`, "<config_unset></config_unset>"},
		{`{"prefix":"config unset","var":"nosuch"}`, einval + "error unsetting 'nosuch': (22) Invalid argument\n"},
		{`{"prefix":"config diff","format":"json"}`, `{"diff":{"fsid":{"default":"0","file":"1","override":"1","final":"1"},"mon_data_avail_crit":{"default":5,"file":1,"final":1},"log_to_stderr":{"default":true,"final":false}}}`},
		{`{"prefix":"config diff get","var":"log_to_stderr","format":"json"}`, `{"diff":{"log_to_stderr":{"default":true,"final":false}}}`},
		{`{"prefix":"config diff get","var":"log_to_stderr","format":"xml"}`, `<config_diff_get><diff><log_to_stderr><default>true</default><final>false</final></log_to_stderr></diff></config_diff_get>`},
		{`{"prefix":"config help","var":"nosuch"}`, "ERROR: (2) No such file or directory\nSetting not found: 'nosuch'\n"},
		{`{"prefix":"config help","var":"scan","format":"json"}`, `{"option":{"name":"scan","type":"uint","level":"advanced","desc":"interval","long_desc":"see <doc>","default":10,"daemon_default":"","tags":[],"services":["cephfs-mirror"],"see_also":[],"min":1,"max":"","can_update_at_runtime":true,"flags":[]}}`},
		{`{"prefix":"config help","format":"json"}`, `{"options":[{"name":"scan","type":"uint","level":"advanced","desc":"interval","long_desc":"see <doc>","default":10,"daemon_default":"","tags":[],"services":["cephfs-mirror"],"see_also":[],"min":1,"max":"","can_update_at_runtime":true,"flags":[]},{"name":"debug_ms","type":"str","level":"advanced","desc":"","long_desc":"","default":"0/0","daemon_default":"","tags":[],"services":[],"see_also":[],"enum_values":[],"min":"","max":"","can_update_at_runtime":false,"flags":["runtime"]}]}`},
		{`{"prefix":"config show","format":"json"}`, `{"name":"client.mirror","cluster":"ceph","admin_socket":"/run/a.asok","debug_ms":"0/0","pid_file":"/run/a.pid"}`},

		{`{"prefix":"injectargs","injected_args":["--debug_ms","2"]}`, "{}\n"},
		{`{"prefix":"injectargs","injected_args":["--debug-ms=2"]}`, "{}\n"},
		{`{"prefix":"injectargs","injected_args":["--foo=1","bar","--debug_ms=1"]}`, einval + " failed to parse arguments: --foo=1,bar\n\n"},
		{`{"prefix":"injectargs","injected_args":["--","--debug_ms=4"]}`, einval + " failed to parse arguments: --\n\n"},
		{`{"prefix":"injectargs","injected_args":["--mon_host=2"]}`, "ERROR: (1) Operation not permitted\nParse error setting mon_host to '2' using injectargs (Configuration option 'mon_host' may not be modified at runtime).\n\n"},
		{`{"prefix":"injectargs","injected_args":["--debug_ms","2"],"format":"xml"}`, "<injectargs></injectargs>"},

		{`{"prefix":"log flush"}`, "{}\n"},
		{`{"prefix":"log reopen","format":"json"}`, "{}"},
		{`{"prefix":"log dump","format":"xml"}`, "<log_dump></log_dump>"},
		{`{"prefix":"log flush","format":"xml-pretty"}`, "<log_flush>\n</log_flush>\n\n"},

		{`{"prefix":"perf reset","var":"all"}`, "{\n    \"success\": \"perf reset all\"\n}\n"},
		{`{"prefix":"perf reset","var":"all","format":"xml"}`, "<perf_reset><success>perf reset all</success></perf_reset>"},
		{`{"prefix":"perf reset","var":"nosuch"}`, "{\n    \"error\": \"Not find: nosuch\"\n}\n"},
		{`{"prefix":"perf reset","var":"x\"<>&'/\u00e9\n\u0001\u007f\t"}`, "{\n    \"error\": \"Not find: x\\\"<>&'/\u00e9\\n\\u0001\\u007f\\t\"\n}\n"},
		{`{"prefix":"perf dump","logger":"nosuch"}`, "{}\n"},
		{`{"prefix":"perf dump","logger":5}`, einval + "invalid command json\n"},
	} {
		tb, _, _, _ := standardTable(t)
		if diff := cmp.Diff(c.want, ask(t, tb, c.request)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.request, diff)
		}
	}
}

func TestConfigAndLogEffects(t *testing.T) {
	tb, c, l, m := standardTable(t)
	for _, s := range []struct{ request, name, want string }{
		{`{"prefix":"config set","var":"debug_ms","val":["a","b"]}`, "debug_ms", "a b"},
		{`{"prefix":"injectargs","injected_args":["--debug-ms 3 --debug_mds=4"]}`, "debug_mds", "4"},
		{`{"prefix":"injectargs","injected_args":["--flag","--debug_ms=7"]}`, "flag", "true"},
		{`{"prefix":"injectargs","injected_args":["--flag","--no-flag"]}`, "flag", "false"},
	} {
		ask(t, tb, s.request)
		if got, _ := c.Get(s.name); got != s.want {
			t.Errorf("after %s: %s = %q, want %q", s.request, s.name, got, s.want)
		}
	}
	for _, v := range []string{"flush", "dump", "reopen"} {
		ask(t, tb, `{"prefix":"log `+v+`"}`)
	}
	if got := strings.Join(l.calls, " "); got != "flush dump reopen" {
		t.Errorf("log saw %q", got)
	}
	l.err = &fsError{"/var/log/x", syscall.ENOSPC}
	if got, want := ask(t, tb, `{"prefix":"log flush"}`), "ERROR: (28) No space left on device\nwrite /var/log/x: no space left on device\n"; got != want {
		t.Errorf("got %q want %q", got, want)
	}
	m.err = context.DeadlineExceeded
	if got := ask(t, tb, `{"prefix":"counter dump"}`); !strings.HasPrefix(got, "ERROR: (110) Connection timed out\n") {
		t.Errorf("got %q", got)
	}
}

type fsError struct {
	path string
	err  error
}

func (e *fsError) Error() string { return "write " + e.path + ": " + e.err.Error() }
func (e *fsError) Unwrap() error { return e.err }

func TestStandardLeavesOut(t *testing.T) {
	var tb Table
	if err := Standard(&tb, Parts{Version: tentacle}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range tb.List() {
		got = append(got, d.Signature.Prefix())
	}
	want := []string{"0", "get_command_descriptions", "git_version", "help", "objecter_requests", "version"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := Standard(&tb, Parts{}); err == nil {
		t.Error("adding twice succeeded")
	}
}

// loggersOf builds loggers from a schema and a dump that stock printed.
func loggersOf(t *testing.T, schema, dump []byte) []Logger {
	t.Helper()
	type entry struct {
		Labels   map[string]string          `json:"labels"`
		Counters map[string]json.RawMessage `json:"counters"`
	}
	var sch, dmp map[string][]entry
	if err := json.Unmarshal(schema, &sch); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(dump, &dmp); err != nil {
		t.Fatal(err)
	}
	var out []Logger
	for name, list := range dmp {
		for i := len(list) - 1; i >= 0; i-- { // any order must do
			l := Logger{Name: name}
			for k, v := range list[i].Labels {
				l.Labels = append(l.Labels, Pair{k, v})
			}
			for _, c := range keysInOrder(t, schema, name, i) {
				var s struct {
					Type        int    `json:"type"`
					Description string `json:"description"`
					Nick        string `json:"nick"`
					Priority    int    `json:"priority"`
					Units       string `json:"units"`
				}
				if err := json.Unmarshal(sch[name][i].Counters[c], &s); err != nil {
					t.Fatal(err)
				}
				n := Counter{Name: c, Description: s.Description, Nick: s.Nick, Priority: s.Priority, Bytes: s.Units == "bytes"}
				raw := list[i].Counters[c]
				var err error
				switch s.Type {
				case 10, 2:
					n.Type = CounterU64
					if s.Type == 2 {
						n.Type = GaugeU64
					}
					n.U64, err = strconv.ParseUint(string(raw), 10, 64)
				case 1:
					n.Type = GaugeSeconds
					err = json.Unmarshal(raw, &n.Value)
				case 5:
					n.Type = AverageSeconds
					var a struct {
						Avgcount uint64
						Sum      float64
					}
					err = json.Unmarshal(raw, &a)
					n.Count, n.Sum = a.Avgcount, a.Sum
				default:
					t.Fatalf("type %d", s.Type)
				}
				if err != nil {
					t.Fatal(err)
				}
				l.Counters = append(l.Counters, n)
			}
			out = append(out, l)
		}
	}
	return out
}

// keysInOrder returns the counters of one logger as the file orders them.
func keysInOrder(t *testing.T, file []byte, logger string, i int) []string {
	t.Helper()
	var all map[string][]struct {
		Counters json.RawMessage `json:"counters"`
	}
	if err := json.Unmarshal(file, &all); err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(all[logger][i].Counters)))
	var keys []string
	d.Token()
	for d.More() {
		k, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k.(string))
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

func TestCountersAsStock(t *testing.T) {
	tb, _, _, m := standardTable(t)
	get := func(cmd string) string { return ask(t, tb, `{"prefix":"`+cmd+`","format":"json"}`) }

	m.loggers = loggersOf(t, testdata(t, "counter-schema.json"), testdata(t, "counter-dump.json"))
	for cmd, file := range map[string]string{
		"counter dump": "counter-dump.json", "counter schema": "counter-schema.json",
		"perf dump": "perf-dump.json", "perf schema": "perf-schema.json",
		"perfcounters_dump": "perf-dump.json", "2": "perf-schema.json",
	} {
		if diff := cmp.Diff(shapeJSON(t, testdata(t, file)), shapeJSON(t, []byte(get(cmd)))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", cmd, diff)
		}
	}
	m.loggers = loggersOf(t, testdata(t, "counter-schema-cephfs.json"), testdata(t, "counter-dump-cephfs.json"))
	for cmd, file := range map[string]string{
		"counter dump": "counter-dump-cephfs.json", "counter schema": "counter-schema-cephfs.json",
	} {
		if diff := cmp.Diff(shapeJSON(t, testdata(t, file)), shapeJSON(t, []byte(get(cmd)))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", cmd, diff)
		}
	}
}

func cephfsLoggers() []Logger {
	return []Logger{
		{Name: "cephfs_mirror_peers", Labels: []Pair{{"source_fscid", "1"}, {"source_filesystem", "cephfs"},
			{"peer_cluster_name", "site-b"}, {"peer_cluster_filesystem", "cephfs"}}, Counters: []Counter{
			{Name: "snaps_synced", Type: CounterU64, U64: 4}, {Name: "snaps_deleted", Type: CounterU64},
			{Name: "snaps_renamed", Type: CounterU64}, {Name: "sync_failures", Type: CounterU64, U64: 16},
			{Name: "avg_sync_time", Type: AverageSeconds, Count: 4, Sum: 2},
			{Name: "sync_bytes", Type: CounterU64, U64: 369104201},
			{Name: "last_synced_start", Type: GaugeSeconds, Value: 3835}, {Name: "last_synced_end", Type: GaugeSeconds, Value: 3835},
			{Name: "last_synced_duration", Type: GaugeSeconds}, {Name: "last_synced_bytes", Type: CounterU64, U64: 369103977},
		}},
		{Name: "cephfs_mirror_mirrored_filesystems", Labels: []Pair{{"filesystem", "cephfs"}}, Counters: []Counter{
			{Name: "mirroring_peers", Type: GaugeU64, U64: 1}, {Name: "directory_count", Type: GaugeU64, U64: 8}}},
		{Name: "cephfs_mirror", Counters: []Counter{
			{Name: "mirrored_filesystems", Type: GaugeU64, U64: 1}, {Name: "mirror_enable_failures", Type: CounterU64}}},
	}
}

func TestCephfsCounters(t *testing.T) {
	tb, _, _, m := standardTable(t)
	m.loggers = cephfsLoggers()
	got := ask(t, tb, `{"prefix":"counter dump","format":"json"}`)
	if diff := cmp.Diff(shapeJSON(t, testdata(t, "counter-dump-cephfs-peers.json")), shapeJSON(t, []byte(got))); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct{ request, want string }{
		{`{"prefix":"perf dump","format":"json"}`, `{"cephfs_mirror":{"mirrored_filesystems":1,"mirror_enable_failures":0}}`},
		{`{"prefix":"perf dump","logger":"cephfs_mirror","counter":"mirrored_filesystems","format":"json"}`, `{"cephfs_mirror":{"mirrored_filesystems":1}}`},
		{`{"prefix":"perf dump","logger":"cephfs_mirror","counter":"nosuch","format":"json"}`, `{"cephfs_mirror":{}}`},
		{`{"prefix":"perf histogram dump","format":"json"}`, `{"cephfs_mirror":{}}`},
		{`{"prefix":"perf histogram schema","format":"json"}`, `{"cephfs_mirror":{}}`},
		{`{"prefix":"perf dump","format":"xml"}`, `<perfcounter_collection><cephfs_mirror><mirrored_filesystems>1</mirrored_filesystems><mirror_enable_failures>0</mirror_enable_failures></cephfs_mirror></perfcounter_collection>`},
	} {
		if got := ask(t, tb, c.request); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.request, got, c.want)
		}
	}
	if !strings.Contains(got, `"avg_sync_time":{"avgcount":4,"sum":2.000000000,"avgtime":0.500000000}`) {
		t.Errorf("times are not spelled as Ceph does: %s", got)
	}
	if len(m.loggers[0].Counters) != 10 || m.loggers[0].Labels[0].Name != "source_fscid" {
		t.Error("the printing changed its input")
	}
}

func TestPerfReset(t *testing.T) {
	tb, _, _, m := standardTable(t)
	m.loggers = cephfsLoggers()
	dump := func() string { return ask(t, tb, `{"prefix":"counter dump","format":"json"}`) }
	if got, want := ask(t, tb, `{"prefix":"perf reset","var":"cephfs_mirror_peers","format":"json"}`), `{"success":"perf reset cephfs_mirror_peers"}`; got != want {
		t.Fatalf("got %s", got)
	}
	got := dump()
	for _, want := range []string{`"snaps_synced":0`, `"avgcount":0,"sum":0.000000000,"avgtime":0.000000000`,
		`"last_synced_start":3835.000000000`, `"directory_count":8`, `"mirrored_filesystems":1`} {
		if !strings.Contains(got, want) {
			t.Errorf("after the reset: no %s in %s", want, got)
		}
	}
	m.loggers = cephfsLoggers()
	m.loggers[0].Counters[0].U64 = 9
	if got := dump(); !strings.Contains(got, `"snaps_synced":5`) {
		t.Errorf("after five more: %s", got)
	}
	// The plugin began anew: its counters are shown as they are, now and later.
	for _, n := range []uint64{1, 7} {
		m.loggers = cephfsLoggers()
		m.loggers[0].Counters[0].U64 = n
		m.loggers[0].Counters[5].U64 = 400000000
		if got := dump(); !strings.Contains(got, fmt.Sprintf(`"snaps_synced":%d,`, n)) || !strings.Contains(got, `"sync_bytes":400000000`) {
			t.Errorf("after a restart: %s", got)
		}
	}
}
