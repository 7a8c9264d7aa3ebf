// Package cephargs reads command lines as Ceph's daemons do: options may be
// written with dashes or underscores, as --name=value or --name value, and any
// configuration option of Ceph may be among them.
package cephargs

import (
	"fmt"
	"strconv"
	"strings"
)

// OwnPrefix marks options that are cephmirror's own, not Ceph's.
const OwnPrefix = "cephmirror_"

// Option is one option of Ceph and its value. Names have underscores.
type Option struct{ Name, Value string }

// Args is a command line that was taken apart.
type Args struct {
	Cluster  string // --cluster
	ConfFile string // -c
	Name     string // whole entity: -n TYPE.ID, or client.ID from -i
	SetUser  string
	SetGroup string

	Foreground bool // -f, -d or --daemonize=false
	ToStderr   bool // -d: the log goes to standard error only
	Version    bool
	Help       bool

	// Ceph holds all other options in order; a later one wins.
	Ceph []Option
	// Own holds --cephmirror-… options without that prefix, as Ceph does.
	Own []Option
	// Rest are the words that belong to no option.
	Rest []string
}

// short maps the one-letter options that take a value to long ones.
var short = map[string]string{
	"-c": "conf", "-i": "id", "-n": "name", "-m": "mon_host", "-k": "keyring", "-K": "keyfile", "-l": "log_file", "-r": "client_mountpoint",
}

// flags are options that never take the next word as their value.
var flags = map[string]bool{
	"daemonize": true, "foreground": true, "version": true, "help": true, "no_mon_config": true, "mkfs": true,
	"log_to_stderr": true, "err_to_stderr": true, "log_to_syslog": true, "err_to_syslog": true, "log_to_file": true,
	"show_args": true, "show_config": true,
}

// FromEnvironment splits the value of CEPH_ARGS.
func FromEnvironment(value string) []string { return strings.Fields(value) }

// Parse takes a command line apart. Options of the environment come before the
// command line in args, so that the latter wins.
func Parse(args []string) (Args, error) {
	var a Args
	p := parser{args: args, out: &a, daemonize: true}
	for p.next() {
		if err := p.word(); err != nil {
			return Args{}, err
		}
	}
	a.Foreground = a.Foreground || !p.daemonize
	return a, nil
}

type parser struct {
	args      []string
	at        int // of the word under way
	started   bool
	out       *Args
	daemonize bool
}

func (p *parser) next() bool {
	if p.started {
		p.at++
	}
	p.started = true
	return p.at < len(p.args)
}

func (p *parser) word() error {
	word := p.args[p.at]
	switch {
	case word == "-f":
		p.out.Foreground = true
		return nil
	case word == "-d":
		p.out.Foreground, p.out.ToStderr = true, true
		return nil
	case word == "-h":
		p.out.Help = true
		return nil
	case word == "-v":
		p.out.Version = true
		return nil
	case word == "--":
		p.out.Rest = append(p.out.Rest, p.args[p.at+1:]...)
		p.at = len(p.args)
		return nil
	case strings.HasPrefix(word, "--"):
		name, value, given := strings.Cut(word[2:], "=")
		return p.long(canonical(name), value, given, word)
	case short[word] != "":
		return p.long(short[word], "", false, word)
	case len(word) > 2 && short[word[:2]] != "":
		// -cFILE and -c=FILE
		return p.long(short[word[:2]], strings.TrimPrefix(word[2:], "="), true, word[:2])
	case len(word) > 1 && word[0] == '-' && !isNumber(word):
		return fmt.Errorf("unknown option %s", word)
	}
	p.out.Rest = append(p.out.Rest, word)
	return nil
}

// canonical spells an option as Ceph's tables do.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

func (p *parser) long(name, value string, given bool, shown string) error {
	if name == "" {
		return fmt.Errorf("unknown option %s", shown)
	}
	needs := func() error {
		if given {
			return nil
		}
		if p.at+1 >= len(p.args) {
			return fmt.Errorf("option %s requires an argument", shown)
		}
		p.at++
		value = p.args[p.at]
		return nil
	}
	target := map[string]*string{
		"cluster": &p.out.Cluster, "conf": &p.out.ConfFile,
		"setuser": &p.out.SetUser, "setgroup": &p.out.SetGroup,
	}[name]
	switch {
	case target != nil:
		if err := needs(); err != nil {
			return err
		}
		*target = value
		return nil
	case name == "name":
		if err := needs(); err != nil {
			return err
		}
		kind, id, ok := strings.Cut(value, ".")
		if !ok || kind == "" || id == "" {
			return fmt.Errorf("%s must be of the form TYPE.ID, not %q", shown, value)
		}
		p.out.Name = value
		return nil
	case name == "id" || name == "user":
		if err := needs(); err != nil {
			return err
		}
		p.out.Name = "client." + value
		return nil
	case name == "version" && !given:
		p.out.Version = true
		return nil
	case name == "help" && !given:
		p.out.Help = true
		return nil
	case name == "foreground" || name == "daemonize":
		on, err := boolean(value, given)
		if err != nil {
			return fmt.Errorf("option %s: %w", shown, err)
		}
		p.daemonize = on == (name == "daemonize")
		return nil
	case !given && !flags[name]:
		value, given = p.value()
	}
	if !given {
		// A switch: --name, or --no-name for its opposite. no_mon_config is
		// itself a name.
		value = "true"
		if rest, ok := strings.CutPrefix(name, "no_"); ok && !flags[name] {
			name, value = rest, "false"
		}
	}
	if rest, ok := strings.CutPrefix(name, OwnPrefix); ok {
		p.out.Own = append(p.out.Own, Option{rest, value})
		return nil
	}
	p.out.Ceph = append(p.out.Ceph, Option{name, value})
	return nil
}

// value takes the next word as the value of the present option if it can be
// one. Ceph looks up whether the option is boolean; without its tables a word
// that begins like an option is taken for one.
func (p *parser) value() (string, bool) {
	if p.at+1 >= len(p.args) {
		return "", false
	}
	next := p.args[p.at+1]
	if strings.HasPrefix(next, "-") && len(next) > 1 && !isNumber(next) {
		return "", false
	}
	p.at++
	return next, true
}

func isNumber(word string) bool {
	_, err := strconv.ParseFloat(word, 64)
	return err == nil
}

func boolean(value string, given bool) (bool, error) {
	if !given {
		return true, nil
	}
	switch strings.ToLower(value) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", value)
}
