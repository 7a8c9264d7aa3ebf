package config

import (
	"fmt"
	"slices"
	"strings"
)

// Type says what values a setting takes.
type Type string

// The types of settings.
const (
	String   Type = "string"
	Bool     Type = "bool"
	Int      Type = "integer"
	Size     Type = "size"     // bytes, with K, M, G, T (powers of 1024) at will
	Duration Type = "duration" // 300ms, 5s, 2m
	Choice   Type = "choice"
)

// Setting describes one setting: the single place that knows its name, type,
// default and meaning.
type Setting struct {
	Section string // empty for the host's own, else the kind of plugin
	Name    string
	Type    Type
	Choices []string // of a Choice
	Default string
	Min     int64 // least Int or Size; least Duration in nanoseconds
	Help    string
}

// Key is the full name, as it stands in errors: name or section.name.
func (s Setting) Key() string {
	if s.Section == "" {
		return s.Name
	}
	return s.Section + "." + s.Name
}

// Flag is the option of the command line.
func (s Setting) Flag() string {
	return "--cephmirror-" + strings.NewReplacer(".", "-", "_", "-").Replace(s.Key())
}

// Env is the environment variable.
func (s Setting) Env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.Key(), ".", "_"))
}

// Settings returns every setting there is, the host's first.
func Settings() []Setting {
	return slices.Concat(hostSettings(), cephfsSettings(), rbdSettings())
}

func hostSettings() []Setting {
	return []Setting{
		{Name: "log_format", Type: Choice, Choices: []string{"json", "console"}, Default: "json", Help: "How log lines are written."},
		{
			Name: "log_level", Type: Choice, Choices: []string{"trace", "debug", "info", "warn", "error"}, Default: "info",
			Help: "The least severe lines that are logged, of host and plugin.",
		},
		{
			Name: "plugin_dir", Type: String,
			Help: "Directory of the plugin executables. When empty they are looked for beside cephmirror, in ../libexec/cephmirror from there, and in PATH.",
		},
		{
			Name: "lease_ttl", Type: Duration, Default: "5s", Min: 1e9,
			Help: "How long a plugin goes on writing without a sign of life from the host. The host gives one every fifth of it.",
		},
		{
			Name: "health_deadline", Type: Duration, Default: "30s", Min: 1e9,
			Help: "A plugin that has not answered the host for this long is killed and restarted.",
		},
		{
			Name: "start_budget", Type: Duration, Default: "2m", Min: 1e9,
			Help: "How long a plugin may take to connect to the local cluster.",
		},
		{
			Name: "command_budget", Type: Duration, Default: "10s", Min: 1e6,
			Help: "How long a command on the admin socket may take before it is answered with a timeout.",
		},
		{
			Name: "control_budget", Type: Duration, Default: "2m", Min: 1e6,
			Help: "How long one of the cephmirror fs snapshot mirror commands may take.",
		},
		{
			Name: "call_grace", Type: Duration, Default: "20s", Min: 1e6,
			Help: "A plugin in which a call has not ended this long after its budget is killed and restarted.",
		},
		{
			Name: "stop_deadline", Type: Duration, Default: "30s", Min: 1e6,
			Help: "How long a plugin may take to stop in order before it is killed.",
		},
		{
			Name: "restart_delay", Type: Duration, Default: "1s", Min: 1e6,
			Help: "Pause before the first restart of a plugin; it doubles with each failure.",
		},
		{
			Name: "restart_delay_max", Type: Duration, Default: "1m", Min: 1e6,
			Help: "The longest pause before a restart.",
		},
		{
			Name: "schedule_timezone", Type: String,
			Help: "Time zone in which schedules of snapshots count that name none, such as UTC or Europe/Berlin. When empty it is that of the machine.",
		},
		{
			Name: "shuffle_interval", Type: Duration, Default: "5m", Min: 1e6,
			Help: "How long a directory stays with its instance before it may be moved to another live one.",
		},
		{
			Name: "assignment_policy", Type: Choice, Default: "least-units", Choices: []string{"least-units", "load-aware"},
			Help: "What the instance that leads shares evenly: the number of units, or what they cost by their recent bytes and by how far they lag.",
		},
		{
			Name: "metrics_listen", Type: String,
			Help: "Address of the Prometheus endpoint (/metrics), for example 127.0.0.1:9283. Off when empty; a port alone listens on the loopback.",
		},
	}
}

// Reference returns all settings as a Markdown table.
func Reference() string {
	var b strings.Builder
	b.WriteString("| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
	for _, s := range Settings() {
		kind := string(s.Type)
		if s.Type == Choice {
			kind = strings.Join(s.Choices, ", ")
		}
		def := "(empty)"
		if s.Default != "" {
			def = "`" + s.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.Key(), kind, def, s.Help)
	}
	return b.String()
}

// Sample returns a configuration file in which every setting stands commented
// out at its default.
func Sample() string {
	var b strings.Builder
	b.WriteString("# Settings of cephmirror. All are optional; those shown are the defaults.\n")
	section := ""
	for _, s := range Settings() {
		if s.Section != section {
			section = s.Section
			fmt.Fprintf(&b, "\n# The %s plugin.\n[%s]\n", section, section)
		}
		fmt.Fprintf(&b, "\n# %s\n", s.Help)
		value := s.Default
		if value == "" || s.Type != Bool && s.Type != Int {
			value = fmt.Sprintf("%q", value)
		}
		fmt.Fprintf(&b, "#%s = %s\n", s.Name, value)
	}
	return b.String()
}
