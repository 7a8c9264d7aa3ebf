// Package config gathers cephmirror's settings: options of the command line
// over the environment over a file over defaults.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

const (
	// DefaultFile is read when it exists and no other is named.
	DefaultFile = "/etc/cephmirror/cephmirror.toml"
	envPrefix   = "CEPHMIRROR_"
	// envFile names another file.
	envFile = envPrefix + "CONFIG"
	// optionFile does so on the command line.
	optionFile = "config"
)

// Option is a setting given on the command line, without --cephmirror-.
type Option struct{ Name, Value string }

// Config holds the value of every setting, checked.
type Config struct {
	// File is the file that was read, empty if none was.
	File string
	// Unknown lists environment variables that look like settings but are none.
	Unknown []string

	values map[string]string
	given  map[string]bool
	types  map[string]Setting
}

// Error is a setting that cannot be used.
type Error struct {
	Where string // file and line, variable or option
	Key   string
	Msg   string
}

// Error names the place and the key.
func (e *Error) Error() string {
	if e.Key == "" {
		return e.Where + ": " + e.Msg
	}
	return fmt.Sprintf("%s: %s: %s", e.Where, e.Key, e.Msg)
}

// Load gathers the settings. environ has the form of os.Environ.
func Load(options []Option, environ []string) (*Config, error) {
	c := &Config{values: map[string]string{}, given: map[string]bool{}, types: map[string]Setting{}}
	byEnv, byFlag := map[string]string{}, map[string]string{}
	for _, s := range Settings() {
		c.types[s.Key()] = s
		c.values[s.Key()] = s.Default
		byEnv[s.Env()] = s.Key()
		byFlag[strings.ReplaceAll(s.Key(), ".", "_")] = s.Key()
	}

	file, explicit := DefaultFile, false
	for _, entry := range environ {
		if name, value, _ := strings.Cut(entry, "="); name == envFile && value != "" {
			file, explicit = value, true
		}
	}
	for _, o := range options {
		if o.Name == optionFile {
			file, explicit = o.Value, true
		}
	}
	text, err := os.ReadFile(file)
	switch {
	case err == nil:
		c.File = file
		if err := c.loadFile(file, string(text)); err != nil {
			return nil, err
		}
	case explicit || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("reading configuration file: %w", err)
	}

	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		key, ok := byEnv[name]
		if !ok {
			if strings.HasPrefix(name, envPrefix) && name != envFile {
				c.Unknown = append(c.Unknown, name)
			}
			continue
		}
		if err := c.set("environment variable "+name, key, value); err != nil {
			return nil, err
		}
	}
	for _, o := range options {
		if o.Name == optionFile {
			continue
		}
		where := "option --cephmirror-" + strings.ReplaceAll(o.Name, "_", "-")
		key, ok := byFlag[o.Name]
		if !ok {
			return nil, &Error{Where: where, Msg: "unknown setting"}
		}
		if err := c.set(where, key, o.Value); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Config) loadFile(file, text string) error {
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return &Error{Where: fmt.Sprintf("%s:%d", file, parse.Position.Line), Msg: parse.Message}
		}
		return &Error{Where: file, Msg: err.Error()}
	}
	sections := map[string]bool{SectionCephFS: true, SectionRBD: true}
	for _, name := range sortedKeys(tree) {
		table, isTable := tree[name].(map[string]any)
		switch {
		case isTable && sections[name]:
			for _, inner := range sortedKeys(table) {
				if err := c.setAny(place(file, text, name, inner), name+"."+inner, table[inner]); err != nil {
					return err
				}
			}
		case isTable:
			return &Error{Where: place(file, text, name, ""), Key: name, Msg: "unknown section"}
		default:
			if err := c.setAny(place(file, text, "", name), name, tree[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func sortedKeys(m map[string]any) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// place finds the line of a key by reading the text as a person would; the
// file alone is named when that fails.
func place(file, text, section, key string) string {
	at := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			at = strings.Trim(strings.TrimSpace(strings.SplitN(line, "#", 2)[0]), "[] ")
			if key == "" && at == section {
				return fmt.Sprintf("%s:%d", file, i+1)
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		name = strings.Trim(strings.TrimSpace(name), `"'`)
		if ok && (at == section && name == key || at == "" && section != "" && name == section+"."+key) {
			return fmt.Sprintf("%s:%d", file, i+1)
		}
	}
	return file
}

func (c *Config) setAny(where, key string, value any) error {
	if _, ok := c.types[key]; !ok {
		return &Error{Where: where, Key: key, Msg: "unknown setting"}
	}
	switch v := value.(type) {
	case string:
		return c.set(where, key, v)
	case bool, int64, float64:
		return c.set(where, key, fmt.Sprint(v))
	}
	return &Error{Where: where, Key: key, Msg: "must be a single value"}
}

func (c *Config) set(where, key, value string) error {
	if err := c.types[key].check(value); err != nil {
		return &Error{Where: where, Key: key, Msg: err.Error()}
	}
	c.values[key], c.given[key] = value, true
	return nil
}

func (s Setting) check(value string) error {
	if value == "" && s.Default == "" {
		return nil
	}
	var n int64
	var err error
	switch s.Type {
	case Bool:
		_, err = strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
		return nil
	case Int:
		n, err = strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not an integer", value)
		}
	case Size:
		n, err = ParseSize(value)
		if err != nil {
			return err
		}
	case Duration:
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 500ms, 5s or 2m", value)
		}
		if int64(d) < s.Min {
			return fmt.Errorf("%s is less than %s", value, time.Duration(s.Min))
		}
		return nil
	case Choice:
		if !slices.Contains(s.Choices, value) {
			return fmt.Errorf("%q is none of %s", value, strings.Join(s.Choices, ", "))
		}
		return nil
	default:
		return nil
	}
	if n < s.Min {
		return fmt.Errorf("%s is less than %d", value, s.Min)
	}
	return nil
}

// ParseSize reads a number of bytes with an optional unit K, M, G or T, also
// spelled KiB or KB and so on, all powers of 1024.
func ParseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiBkmgtb ")
	unit := strings.ToUpper(strings.TrimSpace(text[len(digits):]))
	n, err := strconv.ParseInt(digits, 10, 64)
	shift := map[string]uint{"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
	by, ok := shift[unit]
	if !ok {
		by, ok = shift[strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")]
	}
	if err != nil || !ok || n < 0 || n > 1<<62>>by {
		return 0, fmt.Errorf("%q is not a size such as 4096, 64K or 2GiB", text)
	}
	return n << by, nil
}

// String returns the value of a setting of any type.
func (c *Config) String(key string) string { return c.values[key] }

// Given tells whether a setting was set, to whatever value.
func (c *Config) Given(key string) bool { return c.given[key] }

// Duration returns the value of a Duration.
func (c *Config) Duration(key string) time.Duration {
	d, _ := time.ParseDuration(c.values[key]) // was checked by set
	return d
}

// Section returns the settings of one kind of plugin by name: those given, and
// those that have a default. Sizes are in bytes.
func (c *Config) Section(section string) map[string]string {
	out := map[string]string{}
	for key, s := range c.types {
		if s.Section == section && (c.given[key] || s.Default != "") {
			out[s.Name] = c.values[key]
			if n, err := ParseSize(c.values[key]); s.Type == Size && err == nil {
				out[s.Name] = strconv.FormatInt(n, 10)
			}
		}
	}
	return out
}
