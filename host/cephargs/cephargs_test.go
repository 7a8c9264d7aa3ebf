package cephargs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		line string
		want Args
	}{
		{"", Args{}},
		{"-f --id mirror", Args{Foreground: true, Name: "client.mirror"}},
		{"--cluster site-a -i mirror.0", Args{Cluster: "site-a", Name: "client.mirror.0"}},
		{"--cluster=a --id=m --name client.x", Args{Cluster: "a", Name: "client.x"}},
		{"-n client.x -c /etc/a.conf", Args{Name: "client.x", ConfFile: "/etc/a.conf"}},
		{"--conf=/etc/a.conf --user m", Args{ConfFile: "/etc/a.conf", Name: "client.m"}},
		{"-c/etc/a.conf -c=/etc/b.conf", Args{ConfFile: "/etc/b.conf"}},
		{"-d", Args{Foreground: true, ToStderr: true}},
		{"--foreground", Args{Foreground: true}},
		{"--daemonize=true", Args{}},
		{"--daemonize", Args{}},
		{"--daemonize=false", Args{Foreground: true}},
		{"--daemonize=false --daemonize=true", Args{}},
		{"-f --id %i --setuser ceph --setgroup ceph", Args{Foreground: true, Name: "client.%i", SetUser: "ceph", SetGroup: "ceph"}},
		{
			"--rbd-mirror-delete-retry-interval=5 --rbd_mirror_journal_poll_age 1 --debug-rbd=30",
			Args{Ceph: []Option{{"rbd_mirror_delete_retry_interval", "5"}, {"rbd_mirror_journal_poll_age", "1"}, {"debug_rbd", "30"}}},
		},
		{"--debug_ms 1 -m 127.0.0.1:6789", Args{Ceph: []Option{{"debug_ms", "1"}, {"mon_host", "127.0.0.1:6789"}}}},
		{"--keyring=/k --log-file= --mon-host a,b", Args{Ceph: []Option{{"keyring", "/k"}, {"log_file", ""}, {"mon_host", "a,b"}}}},
		{"--log-to-stderr -f", Args{Foreground: true, Ceph: []Option{{"log_to_stderr", "true"}}}},
		{"--log-to-stderr=false", Args{Ceph: []Option{{"log_to_stderr", "false"}}}},
		{"--some-switch --other=1", Args{Ceph: []Option{{"some_switch", "true"}, {"other", "1"}}}},
		{"--no-some-switch", Args{Ceph: []Option{{"some_switch", "false"}}}},
		{"--no-mon-config", Args{Ceph: []Option{{"no_mon_config", "true"}}}},
		{"--offset -5 --ratio -0.5", Args{Ceph: []Option{{"offset", "-5"}, {"ratio", "-0.5"}}}},
		{"--a=b=c", Args{Ceph: []Option{{"a", "b=c"}}}},
		{"--cephmirror-log-format=console --cephmirror_log_level debug", Args{Own: []Option{{"log_format", "console"}, {"log_level", "debug"}}}},
		{"-v", Args{Version: true}},
		{"--version", Args{Version: true}},
		{"--help", Args{Help: true}},
		{"word -f -- --x", Args{Foreground: true, Rest: []string{"word", "--x"}}},
	} {
		t.Run(tc.line, func(t *testing.T) {
			got, err := Parse(strings.Fields(tc.line))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for line, want := range map[string]string{
		"--cluster":       "option --cluster requires an argument",
		"-i":              "option -i requires an argument",
		"--name mirror":   `--name must be of the form TYPE.ID, not "mirror"`,
		"-q":              "unknown option -q",
		"--=1":            "unknown option --=1",
		"--daemonize=may": `option --daemonize=may: "may" is neither true nor false`,
	} {
		if _, err := Parse(strings.Fields(line)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", line, err, want)
		}
	}
}

func TestEnvironmentComesFirst(t *testing.T) {
	got, err := Parse(append(FromEnvironment(" --id a  --debug-ms=1 "), "--id", "b"))
	if err != nil || got.Name != "client.b" || len(got.Ceph) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--cluster a -f --x=1 -- y")
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Split(line, " ")
		a, err := Parse(words)
		if n := len(a.Ceph) + len(a.Own) + len(a.Rest); err == nil && n > len(words) {
			t.Errorf("%d options and words out of %d", n, len(words))
		}
	})
}
