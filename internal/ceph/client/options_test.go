package client

import (
	"encoding/json"
	"testing"
)

func TestVersion(t *testing.T) {
	v, err := parseVersion([]byte(`{"version":"ceph version 20.2.4 (7f79) tentacle (stable - RelWithDebInfo)"}`))
	if want := (Version{"20.2.4", "tentacle", "7f79"}); err != nil || v != want {
		t.Errorf("%+v, %v", v, err)
	}
	for _, bad := range []string{``, `{}`, `{"version":"ceph version"}`} {
		if v, err := parseVersion([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, v)
		}
	}
}

func TestPlainAddr(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:0/12":                        "127.0.0.1:0/12",
		"[v2:127.0.0.1:0/12,v1:127.0.0.1:0/12]": "127.0.0.1:0/12",
		"any:127.0.0.1:0/12":                    "127.0.0.1:0/12",
	} {
		if got := PlainAddr(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestObjectKeepsOrder(t *testing.T) {
	out, err := json.Marshal(Object{{"name", "client.x"}, {"cluster", "c"}, {"a", `"`}})
	if want := `{"name":"client.x","cluster":"c","a":"\""}`; err != nil || string(out) != want {
		t.Errorf("%s, %v", out, err)
	}
}

func TestOptions(t *testing.T) {
	spec := Spec{Name: "client.x", Options: []Option{{"mon_host", "127.0.0.1:1"}, {"rbd_mirror_concurrent_image_syncs", "7"}}}
	conn, _, err := Configure(spec)
	if err != nil {
		t.Fatal(err)
	}
	defaults := []Option{{"rbd_mirror_concurrent_image_syncs", "5"}, {"rbd_mirror_delete_retry_interval", "30"}}
	o := NewOptions(spec, Paths{PidFile: "/p"}, conn, defaults, []string{"pid_file", "mon_host"})
	if got := o.Uint("rbd_mirror_concurrent_image_syncs"); got != 7 {
		t.Errorf("%d", got)
	}
	ask := func(prefix string, args map[string]any) string {
		out, err := o.Command(prefix, args)
		if err != nil {
			return err.Error()
		}
		text, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, tc := range []struct {
		prefix string
		args   map[string]any
		want   string
	}{
		{"config get", map[string]any{"var": "pid_file"}, `{"pid_file":"/p"}`},
		{"config get", map[string]any{"var": "nosuch"}, `error getting 'nosuch': (2) No such file or directory: no such file or directory`},
		{"config set", map[string]any{"var": "pid_file", "val": "/q"}, `option pid_file cannot be changed at run time: operation not permitted`},
		{"config set", map[string]any{"var": "rbd-mirror-delete-retry-interval", "val": []any{"7"}}, `{"success":""}`},
		{"config get", map[string]any{"var": "rbd_mirror_delete_retry_interval"}, `{"rbd_mirror_delete_retry_interval":"7.000000"}`},
		{"config diff get", map[string]any{"var": "rbd_mirror_concurrent_image_syncs"}, `{"diff":{"rbd_mirror_concurrent_image_syncs":{"default":"5","final":"7"}}}`},
		{"config unset", map[string]any{"var": "rbd_mirror_concurrent_image_syncs"}, `{}`},
		{"config get", map[string]any{"var": "rbd_mirror_concurrent_image_syncs"}, `{"rbd_mirror_concurrent_image_syncs":"5"}`},
	} {
		if got := ask(tc.prefix, tc.args); got != tc.want {
			t.Errorf("%s %v: %s, want %s", tc.prefix, tc.args, got, tc.want)
		}
	}
	show, err := o.Command("config show", nil)
	if err != nil {
		t.Fatal(err)
	}
	list, ok := show.(Object)
	if !ok || len(list) < 6 || list[0] != (Option{"name", "client.x"}) || list[1] != (Option{"cluster", "ceph"}) {
		t.Errorf("%v", show)
	}
}
