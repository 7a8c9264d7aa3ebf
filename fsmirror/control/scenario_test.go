package control

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// step is one command of the scenario and its answer. Arguments and output may
// hold $NAME for what the scenario found out before. Stock is the answer of the
// stock module, where ours differs on purpose.
type step struct {
	what  string
	cmd   string
	args  map[string]any
	want  answer
	stock *answer
	keep  func(s *scenario, out string) // remembers something of the output
}

type answer struct {
	errno  syscall.Errno
	out    string
	status string // of an error; when it ends in "..." only its beginning counts
}

// scenario runs the same steps against anything that answers the commands.
type scenario struct {
	call  func(cmd string, args map[string]any) Result
	stock bool              // it is the stock module that answers
	vars  map[string]string // "$NAME"
	pause func()            // lets the stock module notice what it was told
}

type args = map[string]any

var uuidPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

func (s *scenario) expand(text string) string {
	for _, name := range sortedKeys(s.vars) {
		text = strings.ReplaceAll(text, name, s.vars[name])
	}
	return text
}

// run goes through the steps and returns what was not as it should be.
func (s *scenario) run(steps []step) (problems []string) {
	for _, st := range steps {
		given := args{}
		for k, v := range st.args {
			given[k] = s.expand(v.(string))
		}
		r := s.call(st.cmd, given)
		got := answer{r.Errno, strings.TrimRight(string(r.Out), "\n"), strings.TrimSpace(r.Status)}
		if st.keep != nil {
			st.keep(s, got.out)
			if got.errno == 0 {
				got.out = ""
			}
		}
		want := st.want
		if s.stock && st.stock != nil {
			want = *st.stock
		}
		if want.errno == 0 {
			got.status = "" // a warning
		}
		want.out, want.status = s.expand(want.out), s.expand(want.status)
		if begin, ok := strings.CutSuffix(want.status, "..."); ok && strings.HasPrefix(got.status, begin) {
			got.status = want.status
		}
		if got != want {
			problems = append(problems, fmt.Sprintf("%s: %s %v\n%s", st.what, st.cmd, given, cmp.Diff(want, got, cmp.AllowUnexported(answer{}))))
		}
		if s.pause != nil && (st.cmd == "enable" || st.cmd == "disable" || st.cmd == "remove") && got.errno == 0 {
			s.pause()
		}
	}
	return problems
}

func fails(errno syscall.Errno, text string) answer { return answer{errno: errno, status: text} }

var done = answer{out: "{}"}

// keepUUID remembers the peer that peer_list shows as $UUID.
func keepUUID(s *scenario, out string) { s.vars["$UUID"] = uuidPattern.FindString(out) }

// steps is the scenario. It needs a local cluster with file systems fs1 and
// fs2, neither mirrored nor ever marked, and
//
//	$TOKEN      of the remote file system fs1 at site "far" for client.peer
//	$MON, $KEY  the monitors and the key in it
//	$SELF       a token of the local fs1
//	$BADFSID    $TOKEN with another fsid
//	$BADKEY     a key that is well-formed but wrong
//	$NOUSER     $TOKEN without its user
func steps() []step {
	const fs = "fs1"
	dir := func(p string) args { return args{"fs_name": fs, "path": p} }
	peer := func(spec string) args { return args{"fs_name": fs, "remote_cluster_spec": spec} }
	token := func(v string) args { return args{"fs_name": fs, "token": v} }
	only := args{"fs_name": fs}
	none := args{"fs_name": "nofs"}
	notMirrored := fails(syscall.EINVAL, "filesystem fs1 is not mirrored")
	unknown := fails(syscall.ENOENT, "filesystem nofs does not exist")

	return []step{
		{what: "no such command", cmd: "nonsense", want: fails(syscall.EINVAL, "No handler found for 'fs snapshot mirror nonsense'")},
		{what: "no arguments", cmd: "enable", want: fails(syscall.EINVAL, "missing required parameter fs_name"),
			stock: &answer{errno: syscall.EINVAL, status: "failed to enable mirroring"}},
		{what: "no arguments", cmd: "ls", want: fails(syscall.EINVAL, "missing required parameter fs_name"),
			stock: &answer{errno: syscall.ENOENT, status: "filesystem None does not exist"}},

		{what: "not mirrored", cmd: "peer_list", args: only, want: notMirrored},
		{what: "not mirrored", cmd: "peer_add", args: peer("bad"), want: notMirrored},
		{what: "not mirrored", cmd: "peer_remove", args: args{"fs_name": fs, "peer_uuid": "x"}, want: notMirrored},
		{what: "not mirrored", cmd: "peer_bootstrap import", args: token("$TOKEN"), want: notMirrored},
		{what: "not mirrored, bad token", cmd: "peer_bootstrap import", args: token("x"), want: fails(syscall.EINVAL, "failed to parse token")},
		{what: "not mirrored", cmd: "add", args: dir("a"), want: notMirrored},
		{what: "not mirrored", cmd: "remove", args: dir("/a"), want: notMirrored},
		{what: "not mirrored", cmd: "ls", args: only, want: notMirrored},
		{what: "not mirrored", cmd: "dirmap", args: dir("/a"), want: notMirrored},
		{what: "not mirrored", cmd: "show distribution", args: only, want: notMirrored},
		{what: "not mirrored", cmd: "disable", args: only, want: done},

		{what: "no such fs", cmd: "enable", args: none, want: fails(syscall.EINVAL, "failed to enable mirroring")},
		{what: "no such fs", cmd: "disable", args: none, want: fails(syscall.EINVAL, "failed to disable mirroring")},
		{what: "no such fs", cmd: "peer_list", args: none, want: fails(syscall.EINVAL, "filesystem nofs is not mirrored")},
		{what: "no such fs", cmd: "peer_add", args: args{"fs_name": "nofs", "remote_cluster_spec": "bad"}, want: fails(syscall.EINVAL, "filesystem nofs is not mirrored")},
		{what: "no such fs", cmd: "peer_remove", args: args{"fs_name": "nofs", "peer_uuid": "x"}, want: fails(syscall.EINVAL, "filesystem nofs is not mirrored")},
		{what: "no such fs", cmd: "add", args: args{"fs_name": "nofs", "path": "a"}, want: unknown},
		{what: "no such fs", cmd: "remove", args: args{"fs_name": "nofs", "path": "/a"}, want: unknown},
		{what: "no such fs", cmd: "ls", args: none, want: unknown},
		{what: "no such fs", cmd: "dirmap", args: args{"fs_name": "nofs", "path": "/a"}, want: unknown},
		{what: "no such fs", cmd: "show distribution", args: none, want: unknown},
		{what: "no such fs", cmd: "peer_bootstrap create", args: args{"fs_name": "nofs", "client_name": "client.q", "site_name": "s"}, want: fails(syscall.EINVAL, "failed to bootstrap peer")},
		{what: "not a client", cmd: "peer_bootstrap create", args: args{"fs_name": fs, "client_name": "q", "site_name": "s"}, want: fails(syscall.EINVAL, "failed to bootstrap peer")},

		{what: "enable", cmd: "enable", args: only, want: done},
		{what: "enable again", cmd: "enable", args: only, want: done},

		// Directories.
		{what: "none yet", cmd: "ls", args: only, want: answer{out: "[]"}},
		{what: "no workers", cmd: "show distribution", args: only, want: answer{out: "{\n    \"mapping\": {}\n}"}},
		{what: "relative", cmd: "add", args: dir("a"), want: fails(syscall.EINVAL, "a should be an absolute path")},
		{what: "empty", cmd: "add", args: dir(""), want: fails(syscall.EINVAL, "should be an absolute path"),
			stock: &answer{errno: syscall.EINVAL, status: "should be an absolute path"}},
		{what: "add", cmd: "add", args: dir("/a/"), want: done},
		{what: "add again", cmd: "add", args: dir("/a"), want: fails(syscall.EEXIST, "directory /a is already tracked")},
		{what: "add again, longwinded", cmd: "add", args: dir("/x/.././a//"), want: fails(syscall.EEXIST, "directory /a is already tracked")},
		{what: "below", cmd: "add", args: dir("/a/b"), want: fails(syscall.EINVAL, "/a/b is a subtree of tracked path /a")},
		{what: "above", cmd: "add", args: dir("/"), want: fails(syscall.EINVAL, "/ is a ancestor of tracked path /a")},
		{what: "beside", cmd: "add", args: dir("/ab"), want: done},
		{what: "blank", cmd: "add", args: dir("/a b"), want: done},
		{what: "two slashes", cmd: "add", args: dir("//a"), want: fails(syscall.EEXIST, "directory /a is already tracked"),
			stock: &answer{errno: syscall.EINVAL, status: "//a is a subtree of tracked path /a"}},
		{what: "not ASCII", cmd: "add", args: dir("/\u00e9"), want: done},
		{what: "tracked", cmd: "dirmap", args: dir("a"), want: fails(syscall.EINVAL, "a should be an absolute path")},
		{what: "not tracked", cmd: "dirmap", args: dir("/none/"), want: fails(syscall.ENOENT, "/none is not tracked")},
		{what: "relative", cmd: "remove", args: dir("a"), want: fails(syscall.EINVAL, "a should be an absolute path")},
		{what: "not tracked", cmd: "remove", args: dir("/a/b"), want: fails(syscall.ENOENT, "directory /a/b id not tracked")},
		{what: "not tracked", cmd: "remove", args: dir("/"), want: fails(syscall.ENOENT, "directory / id not tracked")},

		// Peers.
		{what: "no peers", cmd: "peer_list", args: only, want: done},
		{what: "spec", cmd: "peer_add", args: peer("bad"), want: fails(syscall.EINVAL, "invalid cluster spec bad")},
		{what: "spec", cmd: "peer_add", args: peer("client.x"), want: fails(syscall.EINVAL, "invalid cluster spec client.x")},
		{what: "spec", cmd: "peer_add", args: peer("x@y"), want: fails(syscall.EINVAL, "invalid cluster spec x@y")},
		{what: "spec", cmd: "peer_add", args: peer("client.x.z@y"), want: fails(syscall.EINVAL, "invalid cluster spec client.x.z@y")},
		{what: "spec", cmd: "peer_add", args: peer("client.x@y@z"), want: fails(syscall.EINVAL, "invalid cluster spec client.x@y@z")},
		{what: "no conf file", cmd: "peer_add", args: peer("client.x@nosuch"), want: fails(syscall.ENOENT, "cluster nosuch does not exist")},
		{what: "token", cmd: "peer_bootstrap import", args: token("x"), want: fails(syscall.EINVAL, "failed to parse token")},
		{what: "token without a user", cmd: "peer_bootstrap import", args: token("$NOUSER"), want: fails(syscall.EINVAL, "failed to parse token"),
			stock: &answer{errno: syscall.EINVAL, status: "..."}}, // a traceback
		{what: "token of another cluster", cmd: "peer_bootstrap import", args: token("$BADFSID"), want: fails(syscall.EINVAL, "FSID mismatch between bootstrap token and remote cluster")},
		{what: "own token", cmd: "peer_bootstrap import", args: token("$SELF"), want: fails(syscall.EINVAL, "'Source and destination cluster fsid and file-system name can't be the same")},
		{what: "wrong key", cmd: "peer_add", args: args{"fs_name": fs, "remote_cluster_spec": "client.peer@far", "remote_mon_host": "$MON", "cephx_key": "$BADKEY"},
			want: fails(syscall.EACCES, "failed to add peer...")},
		{what: "no such user", cmd: "peer_add", args: args{"fs_name": fs, "remote_cluster_spec": "client.nobody@far", "remote_mon_host": "$MON", "cephx_key": "$KEY"},
			want: fails(syscall.EACCES, "failed to add peer...")},
		{what: "no such remote fs", cmd: "peer_add", args: args{"fs_name": fs, "remote_cluster_spec": "client.peer@far", "remote_fs_name": "nofs", "remote_mon_host": "$MON", "cephx_key": "$KEY"},
			want: fails(syscall.ENOENT, "filesystem nofs does not exist")},
		{what: "import", cmd: "peer_bootstrap import", args: token("$TOKEN"), want: done},
		{what: "import again", cmd: "peer_bootstrap import", args: token("$TOKEN"), want: done},
		{what: "the same by hand", cmd: "peer_add", args: peer("client.peer@far"), want: done},
		{what: "uuid", cmd: "peer_list", args: only, keep: keepUUID},
		{what: "list", cmd: "peer_list", args: only, want: answer{out: `{"$UUID": {"client_name": "client.peer", "site_name": "far", "fs_name": "fs1"}}`}},

		{what: "enable another", cmd: "enable", args: args{"fs_name": "fs2"}, want: done},
		{what: "to the same fs", cmd: "peer_bootstrap import", args: args{"fs_name": "fs2", "token": "$TOKEN"}, want: fails(syscall.EEXIST, "already an active peer")},
		{what: "disable another", cmd: "disable", args: args{"fs_name": "fs2"}, want: done},

		{what: "unknown uuid", cmd: "peer_remove", args: args{"fs_name": fs, "peer_uuid": "x"}, want: done},
		{what: "remove", cmd: "peer_remove", args: args{"fs_name": fs, "peer_uuid": "$UUID"}, want: done},
		{what: "remove again", cmd: "peer_remove", args: args{"fs_name": fs, "peer_uuid": "$UUID"}, want: done},
		{what: "list", cmd: "peer_list", args: only, want: done},
		{what: "by hand", cmd: "peer_add", args: args{"fs_name": fs, "remote_cluster_spec": "client.peer@far", "remote_mon_host": "$MON", "cephx_key": "$KEY"}, want: done},
		{what: "uuid", cmd: "peer_list", args: only, keep: keepUUID},
		{what: "remove", cmd: "peer_remove", args: args{"fs_name": fs, "peer_uuid": "$UUID"}, want: done},

		{what: "no daemons", cmd: "daemon status", want: answer{out: "[]"}},

		{what: "disable", cmd: "disable", args: only, want: done},
		{what: "not mirrored", cmd: "ls", args: only, want: notMirrored},
		{what: "enable again", cmd: "enable", args: only, want: done},
		{what: "directories are still there", cmd: "ls", args: only, want: answer{out: "[\n    \"/a\",\n    \"/a b\",\n    \"/ab\",\n    \"/\\u00e9\"\n]"}},
		{what: "remove", cmd: "remove", args: dir("/ab/"), want: done},
		{what: "remove", cmd: "remove", args: dir("/a b"), want: done},
		{what: "remove", cmd: "remove", args: dir("/\u00e9"), want: done},
		{what: "remove", cmd: "remove", args: dir("/a"), want: done},
		{what: "disable", cmd: "disable", args: only, want: done},
	}
}

// tokenVars fills in the variables that come of a token for the remote fs1.
func tokenVars(t *testing.T, token, self string) map[string]string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(map[string]string)) string {
		var v map[string]string
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		change(v)
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(b)
	}
	vars := map[string]string{
		"$TOKEN":   token,
		"$SELF":    self,
		"$BADFSID": edit(func(v map[string]string) { v["fsid"] = "11111111-1111-1111-1111-111111111111" }),
		"$NOUSER":  edit(func(v map[string]string) { delete(v, "user") }),
	}
	edit(func(v map[string]string) {
		vars["$MON"], vars["$KEY"] = v["mon_host"], v["key"]
		key, err := base64.StdEncoding.DecodeString(v["key"])
		if err != nil {
			t.Fatal(err)
		}
		key[len(key)-1] ^= 1
		vars["$BADKEY"] = base64.StdEncoding.EncodeToString(key)
	})
	return vars
}
