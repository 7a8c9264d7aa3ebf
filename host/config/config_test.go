package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPrecedence(t *testing.T) {
	file := write(t, "log_level = \"debug\"\nlease_ttl = \"7s\"\ncall_grace = \"3s\"\n")
	env := []string{"CEPHMIRROR_CONFIG=" + file, "CEPHMIRROR_LEASE_TTL=8s", "CEPHMIRROR_CALL_GRACE=4s", "OTHER=x", "CEPHMIRROR_LEASETTL=1s"}
	c, err := Load([]Option{{"call_grace", "5s"}}, env)
	if err != nil {
		t.Fatal(err)
	}
	if c.File != file || c.String("log_level") != "debug" || c.Duration("lease_ttl") != 8*time.Second ||
		c.Duration("call_grace") != 5*time.Second || c.String("log_format") != "json" ||
		len(c.Unknown) != 1 || c.Unknown[0] != "CEPHMIRROR_LEASETTL" {
		t.Errorf("%+v", c)
	}
}

func TestErrorsNameTheirPlace(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		options    []Option
		env        []string
		want       string
	}{
		{"unknown key", "log_level = \"info\"\n\nnosuch = 1\n", nil, nil, "FILE:3: nosuch: unknown setting"},
		{"unknown section", "[nosuch]\na = 1\n", nil, nil, "FILE:1: nosuch: unknown section"},
		{"unknown key of a section", "log_level = \"info\"\n[cephfs]\n# nosuch = 0\nnosuch = 1\n", nil, nil, "FILE:4: cephfs.nosuch: unknown setting"},
		{"bad value", "lease_ttl = \"soon\"\n", nil, nil, `FILE:1: lease_ttl: "soon" is not a duration such as 500ms, 5s or 2m`},
		{"too small", "lease_ttl = \"10ms\"\n", nil, nil, "FILE:1: lease_ttl: 10ms is less than 1s"},
		{"bad choice", "log_format = \"xml\"\n", nil, nil, `FILE:1: log_format: "xml" is none of json, console`},
		{"array", "log_format = [\"xml\"]\n", nil, nil, "FILE:1: log_format: must be a single value"},
		{"syntax", "log_level = \n", nil, nil, "FILE:1: expected value but found '\\n' instead"},
		{"option", "", []Option{{"nosuch_thing", "1"}}, nil, "option --cephmirror-nosuch-thing: unknown setting"},
		{"option value", "", []Option{{"log_level", "loud"}}, nil, `option --cephmirror-log-level: log_level: "loud" is none of trace, debug, info, warn, error`},
		{"environment", "", nil, []string{"CEPHMIRROR_LEASE_TTL=x"}, `environment variable CEPHMIRROR_LEASE_TTL: lease_ttl: "x" is not a duration such as 500ms, 5s or 2m`},
		{"missing file", "", []Option{{"config", "/no/such.toml"}}, nil, "reading configuration file: open /no/such.toml: no such file or directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := write(t, tc.file)
			_, err := Load(append([]Option{{"config", file}}, tc.options...), tc.env)
			if want := strings.ReplaceAll(tc.want, "FILE", file); err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "4096": 4096, "64K": 65536, "64 KiB": 65536, "2GB": 2 << 30, "1t": 1 << 40} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "K", "-1", "1.5G", "9999999999T", "1KK", "4 apples"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// The shipped sample must be valid as it is, and with every line uncommented.
func TestSample(t *testing.T) {
	shipped, err := os.ReadFile("cephmirror.toml")
	if err != nil {
		t.Fatal(err)
	}
	if string(shipped) != Sample() {
		t.Error("cephmirror.toml is not what Sample returns; run go generate")
	}
	var lines []string
	for _, line := range strings.Split(string(shipped), "\n") {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
		}
		lines = append(lines, line)
	}
	for _, text := range []string{string(shipped), strings.Join(lines, "\n")} {
		if _, err := Load([]Option{{"config", write(t, text)}}, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestSection(t *testing.T) {
	c, err := Load([]Option{{"config", write(t, "[cephfs]\nworkers = 3\nblock_diff = false\n")}, {"cephfs_memory", "1GiB"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := c.Section(SectionCephFS)
	if got["workers"] != "3" || got["block_diff"] != "false" || got["memory"] != "1073741824" || got["takeover_compare_content"] != "false" {
		t.Errorf("%v", got)
	}
}

func TestSettingsAreSound(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Settings() {
		if err := s.check(s.Default); err != nil {
			t.Errorf("default of %s: %v", s.Key(), err)
		}
		if s.Help == "" || seen[s.Key()] || seen[s.Env()] {
			t.Errorf("%s has no help or is there twice", s.Key())
		}
		seen[s.Key()], seen[s.Env()] = true, true
	}
	if got := (Setting{Section: "cephfs", Name: "max_x"}); got.Flag() != "--cephmirror-cephfs-max-x" || got.Env() != "CEPHMIRROR_CEPHFS_MAX_X" {
		t.Errorf("%s %s", got.Flag(), got.Env())
	}
}

func FuzzFile(f *testing.F) {
	f.Add("log_level = \"info\"\n[cephfs]\na=1")
	f.Fuzz(func(t *testing.T, text string) {
		file := write(t, text)
		var tree map[string]any
		_, syntax := toml.Decode(text, &tree)
		_, err := Load([]Option{{"config", file}}, nil)
		if err == nil && syntax != nil {
			t.Error("a broken file was taken")
		}
		if err != nil && !strings.Contains(err.Error(), file) {
			t.Errorf("error does not name the file: %v", err)
		}
	})
}

// What the README says of the settings is what `cephmirror settings` prints.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), strings.TrimSpace(Reference())) {
		t.Error("the table of settings in README.md is another than that of `cephmirror settings`")
	}
}
