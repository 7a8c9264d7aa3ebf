package rbdmirror

import (
	"encoding/json"
	"os"
	"testing"
)

// statusTexts returns the status texts in a stored answer to "ceph service
// status", by daemon.
func statusTexts(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]map[string]struct{ Status map[string]string }
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for id, d := range v[serviceName] {
		out[id] = d.Status[serviceStatus]
	}
	return out
}

func TestServiceStatus(t *testing.T) {
	plain := func(c counts) map[string]counts { return map[string]counts{"": c} }
	stock := statusTexts(t, "service-status.json")
	for _, tc := range []struct {
		name, release string
		pools         []servicePool
		want          string
	}{
		{"leader", "tentacle", []servicePool{
			{id: 5, name: "jp", instance: "4167", leader: true, spaces: plain(counts{assigned: 4, local: 4, remote: 4})},
			{id: 6, name: "sp", instance: "4171", leader: true, spaces: plain(counts{assigned: 2, remote: 2})},
		}, stock["4165"]},
		{"follower", "tentacle", []servicePool{
			{id: 5, name: "jp", instance: "4174", spaces: plain(counts{})},
			{id: 6, name: "sp", instance: "4176", spaces: plain(counts{})},
		}, stock["4172"]},
		{"no connection, no peer", "tentacle", []servicePool{
			{id: 6, name: "sp", callouts: map[uint64]callout{1: {levelError, "unable to connect to remote cluster"}}},
			{id: 10, name: "bp"},
		}, `{"6":{"name":"sp","callouts":{"1":{"level":"error","text":"unable to connect to remote cluster"}},"namespaces":{}},"10":{"name":"bp","callouts":{},"namespaces":{}}}`},
		{"several namespaces", "tentacle", []servicePool{
			{id: 1, name: "p", instance: "9", leader: true, spaces: map[string]counts{"": {assigned: 1}, "n1": {failed: 1, warning: 2}}},
		}, `{"1":{"name":"p","callouts":{},"instance_id":"9","leader":true,"namespaces":{` +
			`"":{"image_assigned_count":1,"image_error_count":0,"image_local_count":0,"image_remote_count":0,"image_warning_count":0},` +
			`"n1":{"image_assigned_count":0,"image_error_count":1,"image_local_count":0,"image_remote_count":0,"image_warning_count":2}}}}`},
		{"release 18", "reef", []servicePool{
			{id: 3, name: "rbd", instance: "4136", leader: true, spaces: plain(counts{assigned: 2, local: 2, remote: 2})},
		}, `{"3":{"name":"rbd","callouts":{},"image_assigned_count":2,"image_error_count":0,"image_local_count":2,"image_remote_count":2,"image_warning_count":0,"instance_id":"4136","leader":true}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := encodeService(tc.release, tc.pools)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// What the stock daemon of release 18 tells must all be told.
func TestServiceStatusHasAllOfRelease18(t *testing.T) {
	for _, text := range statusTexts(t, "service-status-reef.json") {
		var want, got map[string]map[string]any
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		ours, err := encodeService("reef", []servicePool{
			{id: 3, name: "rbd", instance: "4136", leader: true, spaces: map[string]counts{"": {local: 2, remote: 2}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(ours), &got); err != nil {
			t.Fatal(err)
		}
		for key := range want["3"] {
			if _, ok := got["3"][key]; !ok {
				t.Errorf("%s is missing in %s", key, ours)
			}
		}
	}
}

func TestCallouts(t *testing.T) {
	var c callouts
	if c.clear("a") {
		t.Error("there was nothing to clear")
	}
	steps := []struct {
		topic, text string
		changed     bool
	}{{"a", "x", true}, {"a", "x", false}, {"b", "y", true}, {"a", "z", true}}
	for _, s := range steps {
		if got := c.set(s.topic, levelError, s.text); got != s.changed {
			t.Errorf("%+v: %v", s, got)
		}
	}
	if len(c.by) != 2 || c.by[1].Text != "z" || c.by[2].Text != "y" {
		t.Errorf("%+v", c)
	}
	if !c.clear("a") || len(c.by) != 1 {
		t.Errorf("%+v", c)
	}
	if c.set("a", levelWarning, "again"); c.by[3].Text != "again" {
		t.Errorf("a new message needs a new number: %+v", c)
	}
}
