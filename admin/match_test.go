package admin

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the stock command line of 18.2.7 and 20.2.4 sends for the same words and
// the same descriptions.
func TestMatchAsStock(t *testing.T) {
	cmds := must[[]Description](t)(ParseDescriptions(testdata(t, "match-descriptions.json")))
	var cases []struct {
		Words []string
		Sent  map[string]any
	}
	if err := json.Unmarshal(testdata(t, "match-stock.json"), &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		prefix, args, err := Match(cmds, c.Words)
		if c.Sent == nil {
			var me *MatchError
			if !errors.As(err, &me) || len(me.Usage) == 0 {
				t.Errorf("%q: sends %q %v (%v), stock refuses", c.Words, prefix, args, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v, stock sends %v", c.Words, err, c.Sent)
			continue
		}
		all := map[string]any{"prefix": prefix}
		for k, v := range args {
			all[k] = v
		}
		// By way of JSON, which is what goes out.
		var got map[string]any
		if err := json.Unmarshal(must[[]byte](t)(json.Marshal(all)), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.Sent, got); diff != "" {
			t.Errorf("%q (-stock +ours)\n%s", c.Words, diff)
		}
		// And the server takes what the matcher makes.
		var tb Table
		for _, d := range cmds {
			if err := tb.Add(d.Signature.String(), "", nothing); err != nil {
				t.Fatal(err)
			}
		}
		if body := ask(t, &tb, string(must[[]byte](t)(json.Marshal(all)))); body != "" {
			t.Errorf("%q: matched but refused: %s", c.Words, body)
		}
	}
}

func TestMatchMessages(t *testing.T) {
	cmds := must[[]Description](t)(ParseDescriptions(testdata(t, "match-descriptions.json")))
	for words, want := range map[string]string{
		"config get":             "Invalid command: missing required parameter var\nconfig get <var> :  help of it",
		"config get --nosuch=1":  "Invalid command: unexpected argument '--nosuch=1'\nconfig get <var> :  help of it",
		"rbd mirror status jp":   "no valid command found; 2 closest matches:\nrbd mirror status jp siteA\nrbd mirror status jp/j1",
		"fs mirror status other": "no valid command found; 1 closest matches:\nfs mirror status cephfs@1",
		"vers":                   "no valid command found; 1 closest matches:\nversion",
		"t opt --nosuch":         "Invalid command: unexpected argument '--nosuch'\nt opt [<alpha:int>] [<beta>] [--some-flag] :  help of it",
		"t named x 5":            "Invalid command: unused arguments: 5\nt named <alpha> [--limit <value>] :  help of it",
		"t float inf":            "Invalid command: inf doesn't represent a float\nt float <ratio:float> :  help of it",
	} {
		_, _, err := Match(cmds, strings.Fields(words))
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", words, err, want)
		}
	}
	if _, _, err := Match(cmds, nil); err == nil {
		t.Error("no words matched")
	}
	if _, _, err := Match(nil, []string{"x"}); err == nil {
		t.Error("no commands matched")
	}
}

func TestParseDescriptionsSkipsUnknown(t *testing.T) {
	list, err := ParseDescriptions([]byte(`{"cmd000":{"sig":["new",{"name":"x","type":"CephNew"}],"help":"h"},
		"cmd001":{"sig":["old"],"help":""},"cmd002":{"sig":[]},"cmd003":{"sig":[5]},"cmd004":{"sig":["a",{"name":"x","n":["y"]}]},
		"cmd005":{"sig":["a",{"name":"x","type":"CephInt","req":"false","n":1},"b"]},"cmd006":{"sig":["a",{"name":"x","type":"CephInt","req":"false","n":1}]}}`))
	if err != nil || len(list) != 2 || list[0].Signature.Prefix() != "old" || !list[1].Signature.Params[0].Optional {
		t.Errorf("%v %v", list, err)
	}
	if _, err := ParseDescriptions([]byte(`[]`)); err == nil {
		t.Error("no error")
	}
}

func TestRunAndCall(t *testing.T) {
	tb, c, _, _ := standardTable(t)
	s := serve(t, Options{Table: tb})
	ctx := context.Background()
	out, err := Run(ctx, s.Path(), strings.Fields("config set debug_ms 1 2"), "json")
	if err != nil || string(out) != `{"success":""}` {
		t.Errorf("%s %v", out, err)
	}
	if v, _ := c.Get("debug_ms"); v != "1 2" {
		t.Errorf("debug_ms = %q", v)
	}
	out, err = Run(ctx, s.Path(), []string{"version"}, "")
	if err != nil || !strings.HasPrefix(string(out), "{\n    \"version\"") {
		t.Errorf("%s %v", out, err)
	}
	out, err = Run(ctx, s.Path(), []string{"config", "get", "nosuch"}, "")
	var e *Error
	if !errors.As(err, &e) || e.Errno != 2 || e.Detail != "error getting 'nosuch': (2) No such file or directory" ||
		!strings.HasPrefix(string(out), "ERROR: (2)") {
		t.Errorf("%s %v", out, err)
	}
	var me *MatchError
	if _, err := Run(ctx, s.Path(), []string{"nosuch"}, ""); !errors.As(err, &me) {
		t.Errorf("%v", err)
	}
}
