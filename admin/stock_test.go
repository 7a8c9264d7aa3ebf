package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The unmodified `ceph` command drives our server. It needs Ceph installed but
// no cluster; elsewhere these tests are skipped.
func stockCLI(t *testing.T) string {
	t.Helper()
	ceph, err := exec.LookPath("ceph")
	if err != nil {
		t.Skip("no ceph command here")
	}
	return ceph
}

// runCLI returns what was printed and the exit code.
func runCLI(t *testing.T, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestStockCommandLine(t *testing.T) {
	ceph := stockCLI(t)
	tb, _, _, m := standardTable(t)
	m.loggers = cephfsLoggers()
	peers := &m.loggers[2].Counters[0] // daemonperf shows only what matters most
	peers.Nick, peers.Priority = "mir", 10
	// Commands with every type of argument, that answer what they were given.
	for _, d := range must[[]Description](t)(ParseDescriptions(testdata(t, "match-descriptions.json"))) {
		if _, _, taken := tb.Lookup(d.Signature.Prefix()); taken {
			continue
		}
		echo := func(_ context.Context, r Request) (Reply, error) {
			all := map[string]any{"prefix": r.Prefix}
			for k, v := range r.Args {
				all[k] = v
			}
			return jsonReply(all)
		}
		if err := tb.Add(d.Signature.String(), d.Help, echo); err != nil {
			t.Fatal(err)
		}
	}
	if err := tb.Add("big", "a reply of many packets", func(context.Context, Request) (Reply, error) {
		return jsonReply(strings.Repeat("0123456789", 300000))
	}); err != nil {
		t.Fatal(err)
	}
	s := serve(t, Options{Table: tb})
	asok := []string{"--admin-daemon", s.Path()}

	var cases []struct {
		Words []string
		Sent  map[string]any
	}
	if err := json.Unmarshal(testdata(t, "match-stock.json"), &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if c.Sent != nil && c.Words[0] != "t" && c.Words[0] != "fs" && c.Words[0] != "rbd" {
			continue // a standard command: it does not echo
		}
		if c.Sent == nil && c.Words[0] != "t" {
			continue // refused without us
		}
		if len(c.Words) > 1 && strings.Contains(strings.Join(c.Words, " "), "--f") {
			continue // the ceph command takes -f and what looks like it for itself
		}
		out, errs, code := runCLI(t, ceph, append(append(asok, "-f", "json"), c.Words...)...)
		if c.Sent == nil {
			if code != 22 {
				t.Errorf("%q: exit %d %s", c.Words, code, out)
			}
			continue
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Errorf("%q: %v %q %q", c.Words, err, out, errs)
			continue
		}
		if diff := cmp.Diff(c.Sent, got); diff != "" || code != 0 {
			t.Errorf("%q: exit %d\n%s", c.Words, code, diff)
		}
	}

	for _, c := range []struct {
		words string
		want  string
	}{
		{"version", "{\n    \"version\": \"20.2.4\",\n    \"release\": \"tentacle\",\n    \"release_type\": \"stable\"\n}\n"},
		{"-f json version", `{"version":"20.2.4","release":"tentacle","release_type":"stable"}`},
		{"-f xml version", `<version><version>20.2.4</version><release>tentacle</release><release_type>stable</release_type></version>`},
		{"0", "2"},
		{"config get debug_ms", "{\n    \"debug_ms\": \"0/0\"\n}\n"},
		{"config get nosuch", "ERROR: (2) No such file or directory\nerror getting 'nosuch': (2) No such file or directory\n"},
		{"config set debug_ms 5", "{\n    \"success\": \"\"\n}\n"},
		{"injectargs --debug-ms=7", "{}\n"},
		{"config get debug_ms", "{\n    \"debug_ms\": \"7\"\n}\n"},
		{"-f json perf dump cephfs_mirror mirrored_filesystems", `{"cephfs_mirror":{"mirrored_filesystems":1}}`},
		{"-f json big", `"` + strings.Repeat("0123456789", 300000) + `"`},
	} {
		out, errs, code := runCLI(t, ceph, append(asok, strings.Fields(c.words)...)...)
		if out != c.want || code != 0 {
			t.Errorf("%s: exit %d\n got %.300q %s\nwant %.300q", c.words, code, out, errs, c.want)
		}
	}
	help, _, _ := runCLI(t, ceph, append(asok, "help")...)
	if strings.TrimSpace(help) != indentJSON(t, tb.Help()) {
		t.Errorf("help: %s", help)
	}
	out, _, code := runCLI(t, ceph, "daemon", s.Path(), "fs", "mirror", "status", "cephfs@1")
	if code != 0 || !strings.Contains(out, `"prefix": "fs mirror status cephfs@1"`) {
		t.Errorf("daemon PATH: exit %d %s", code, out)
	}
	out, errs, code := runCLI(t, ceph, "daemonperf", s.Path(), "1", "1")
	if code != 0 || !strings.Contains(out, "mir") {
		t.Errorf("daemonperf: exit %d %s %s", code, out, errs)
	}
}
