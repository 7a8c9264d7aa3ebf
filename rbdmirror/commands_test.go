package rbdmirror

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"cephmirror/plugins"
)

// The commands of the daemon, a pool and an image are the stock daemon's, help
// texts included.
func TestCommandsAreTheStockOnes(t *testing.T) {
	text, err := os.ReadFile("testdata/asok-help.json")
	if err != nil {
		t.Fatal(err)
	}
	var stock map[string]string
	if err := json.Unmarshal(text, &stock); err != nil {
		t.Fatal(err)
	}
	var ours []plugins.CommandSpec
	ours = append(ours, daemonCommands()...)
	for _, scope := range []string{"jp siteA", "sp siteA"} {
		ours = append(ours, scopeCommands(scope)...)
	}
	for _, scope := range []string{"jp/j1", "jp/j2", "jp/j3", "jp/j4", "sp/s1", "sp/s2"} {
		ours = append(ours, imageCommands(scope)...)
	}
	for _, pool := range []string{"jp", "sp"} {
		ours = append(ours, deletionCommand(deletionScope(pool, "")))
	}
	seen := make(map[string]bool)
	for _, s := range ours {
		seen[s.Prefix()] = true
		if want, ok := stock[s.Prefix()]; !ok || want != s.Help {
			t.Errorf("%q: %q, stock %q", s.Prefix(), s.Help, want)
		}
	}
	for prefix := range stock {
		if strings.HasPrefix(prefix, "rbd mirror") && !seen[prefix] {
			t.Errorf("%q is missing", prefix)
		}
	}
}

func TestParseCredentials(t *testing.T) {
	c, err := parseCredentials([]byte(`{"key":"AQ==","mon_host":"[v2:1.2.3.4:3300/0]"}`))
	if err != nil || c.key != "AQ==" || c.monHost != "[v2:1.2.3.4:3300/0]" {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = parseCredentials([]byte(`{}`)); err != nil || c.key != "" || c.monHost != "" {
		t.Errorf("%+v, %v", c, err)
	}
	const secret = "AQsecret"
	if _, err = parseCredentials([]byte(`{"key":"` + secret)); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
}
