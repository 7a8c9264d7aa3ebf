package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// Version is what the daemon says it is.
type Version struct {
	Version string // for example "20.2.4"
	Release string // for example "tentacle"
	Type    string // "stable" when empty
	Git     string // 40 hex digits
}

// Config is the configuration behind the config commands. The errno of an error
// shows in the reply; the text of an *Error's detail too.
type Config interface {
	// Show lists all options with their values. Pairs named "name" and
	// "cluster" are printed first.
	Show() []Pair
	// Get returns one value; ENOENT for an unknown option.
	Get(name string) (string, error)
	// Set changes a value while running. The note tells what does not follow
	// at once; it is printed as the success text. EPERM for an option that
	// cannot change, EINVAL for a bad value, ENOENT for an unknown one.
	Set(name, value string) (note string, err error)
	// Unset takes a Set back.
	Unset(name string) error
	// Diff lists the options that differ from their default.
	Diff() []OptionDiff
	// Options describes all options.
	Options() []OptionInfo
}

// OptionDiff tells where the value of an option comes from. A field that is nil
// is left out.
type OptionDiff struct {
	Name                                string
	Default, File, Mon, Override, Final any
}

// OptionInfo describes an option for "config help". Default, Min and Max are
// printed as the values they are, "" when nil.
type OptionInfo struct {
	Name, Type, Level string // Level: basic, advanced or dev
	Desc, LongDesc    string
	Default           any
	DaemonDefault     any
	Tags, Services    []string
	SeeAlso           []string
	EnumValues        []string
	Min, Max          any
	Runtime           bool // can be changed while running
	Flags             []string
}

// Log is the daemon's log behind the log commands.
type Log interface {
	Flush(ctx context.Context) error  // write out what is buffered
	Dump(ctx context.Context) error   // write recent entries kept in memory to the log
	Reopen(ctx context.Context) error // after the log file was moved away
}

// Metrics yields the daemon's counters.
type Metrics interface {
	Loggers(ctx context.Context) ([]Logger, error)
}

// Parts is what the standard commands show and act on. Where a part is nil its
// commands are left out.
type Parts struct {
	Version Version
	Config  Config
	Log     Log
	Metrics Metrics
}

// Standard adds the commands that every Ceph daemon has to a table, with their
// signatures and help texts.
func Standard(t *Table, p Parts) error {
	s := &standard{table: t, Parts: p}
	list := []definition{
		{"0", "", s.raw("2")},
		{"get_command_descriptions", "list available commands", s.descriptions},
		{"git_version", "get git sha1", s.gitVersion},
		{"help", "list available commands", s.help},
		{"objecter_requests", "show in-progress osd requests", s.objecterRequests},
		{"version", "get ceph version", s.version},
	}
	if p.Config != nil {
		list = append(list, s.configCommands()...)
	}
	if p.Log != nil {
		list = append(list,
			definition{"log dump", "dump recent log entries to log file", empty(p.Log.Dump)},
			definition{"log flush", "flush log entries to log file", empty(p.Log.Flush)},
			definition{"log reopen", "reopen log file", empty(p.Log.Reopen)})
	}
	if p.Metrics != nil {
		list = append(list, s.metricCommands()...)
	}
	for _, d := range list {
		if err := t.Add(d.signature, d.help, d.handler); err != nil {
			return fmt.Errorf("standard commands: %w", err)
		}
	}
	return nil
}

type definition struct {
	signature, help string
	handler         Handler
}

type standard struct {
	table *Table
	Parts
	base baseline
}

func (s *standard) raw(text string) Handler {
	return func(context.Context, Request) (Reply, error) { return Reply{Raw: []byte(text)}, nil }
}

func (s *standard) descriptions(context.Context, Request) (Reply, error) {
	return Reply{JSON: s.table.Descriptions(), Root: "command_descriptions"}, nil
}

func (s *standard) help(context.Context, Request) (Reply, error) {
	return Reply{JSON: s.table.Help()}, nil
}

func (s *standard) version(context.Context, Request) (Reply, error) {
	typ := s.Version.Type
	if typ == "" {
		typ = "stable"
	}
	return object(Pair{"version", s.Version.Version}, Pair{"release", s.Version.Release},
		Pair{"release_type", typ}), nil
}

func (s *standard) gitVersion(context.Context, Request) (Reply, error) {
	r := object(Pair{"git_version", s.Version.Git})
	r.Root = "version"
	return r, nil
}

// objecterRequests has nothing to show: requests to OSDs are made by the plugin.
func (s *standard) objecterRequests(context.Context, Request) (Reply, error) {
	var w jsonWriter
	w.open('{')
	for _, k := range []string{"ops", "linger_ops", "pool_ops", "pool_stat_ops", "statfs_ops", "command_ops"} {
		w.key(k)
		w.strs(nil)
	}
	w.close('}')
	return Reply{JSON: w.b, Root: "requests"}, nil
}

// object is a reply of string values.
func object(pairs ...Pair) Reply {
	var w jsonWriter
	w.open('{')
	for _, p := range pairs {
		w.key(p.Name)
		w.str(p.Value)
	}
	w.close('}')
	return Reply{JSON: w.b}
}

// empty answers {} once an action is done.
func empty(act func(context.Context) error) Handler {
	return func(ctx context.Context, _ Request) (Reply, error) {
		if err := act(ctx); err != nil {
			return Reply{}, err
		}
		return object(), nil
	}
}

// Counters.

func (s *standard) metricCommands() []definition {
	const filter = " name=logger,type=CephString,req=false name=counter,type=CephString,req=false"
	return []definition{
		{"1", "", s.counters(unlabelled, counterQuery{})},
		{"2", "", s.counters(unlabelled, counterQuery{schema: true})},
		{"perfcounters_dump", "", s.counters(unlabelled, counterQuery{})},
		{"perfcounters_schema", "", s.counters(unlabelled, counterQuery{schema: true})},
		{"counter dump", "dump all labeled and non-labeled counters and their values",
			s.counters(labelled, counterQuery{})},
		{"counter schema", "dump all labeled and non-labeled counters schemas",
			s.counters(labelled, counterQuery{schema: true})},
		{"perf dump" + filter, "dump non-labeled counters and their values",
			s.counters(unlabelled, counterQuery{})},
		{"perf schema", "dump non-labeled counters schemas",
			s.counters(unlabelled, counterQuery{schema: true})},
		{"perf histogram dump" + filter, "dump perf histogram values", s.histograms},
		{"perf histogram schema", "dump perf histogram schema", s.histograms},
		{"perf reset name=var,type=CephString",
			"perf reset <name>: perf reset all or one perfcounter name", s.perfReset},
	}
}

const counterRoot = "perfcounter_collection"

func (s *standard) counters(print func([]Logger, counterQuery) []byte, q counterQuery) Handler {
	return func(ctx context.Context, req Request) (Reply, error) {
		loggers, err := s.Metrics.Loggers(ctx)
		if err != nil {
			return Reply{}, fmt.Errorf("reading the counters: %w", err)
		}
		q := q
		q.logger, q.counter = req.String("logger"), req.String("counter")
		return Reply{JSON: print(s.base.apply(loggers), q), Root: counterRoot}, nil
	}
}

// histograms lists the loggers without any content: we keep no histograms.
func (s *standard) histograms(ctx context.Context, req Request) (Reply, error) {
	loggers, err := s.Metrics.Loggers(ctx)
	if err != nil {
		return Reply{}, fmt.Errorf("reading the counters: %w", err)
	}
	loggers = slices.Clone(loggers)
	for i := range loggers {
		loggers[i].Counters = nil
	}
	return Reply{JSON: unlabelled(loggers, counterQuery{logger: req.String("logger")}), Root: counterRoot}, nil
}

func (s *standard) perfReset(ctx context.Context, req Request) (Reply, error) {
	loggers, err := s.Metrics.Loggers(ctx)
	if err != nil {
		return Reply{}, fmt.Errorf("reading the counters: %w", err)
	}
	name := req.String("var")
	if !s.base.reset(loggers, name) {
		return object(Pair{"error", "Not find: " + name}), nil
	}
	return object(Pair{"success", "perf reset " + name}), nil
}

// Configuration.

func (s *standard) configCommands() []definition {
	const name = " name=var,type=CephString"
	return []definition{
		{"config diff", "dump diff of current config and default config", s.configDiff},
		{"config diff get" + name,
			"dump diff get <field>: dump diff of current and default config setting <field>", s.configDiff},
		{"config get" + name, "config get <field>: get the config value", s.configGet},
		{"config help" + name + ",req=false", "get config setting schema and descriptions", s.configHelp},
		{"config set" + name + " name=val,type=CephString,n=N",
			"config set <field> <val> [<val> ...]: set a config variable", s.configSet},
		{"config show", "dump current config settings", s.configShow},
		{"config unset" + name, "config unset <field>: unset a config variable", s.configUnset},
		{"injectargs name=injected_args,type=CephString,n=N",
			"inject configuration arguments into running daemon", s.injectArgs},
	}
}

func (s *standard) configShow(context.Context, Request) (Reply, error) {
	all := s.Config.Show()
	var first, rest []Pair
	for _, key := range []string{"name", "cluster"} {
		for _, p := range all {
			if p.Name == key {
				first = append(first, p)
			}
		}
	}
	for _, p := range all {
		if p.Name != "name" && p.Name != "cluster" {
			rest = append(rest, p)
		}
	}
	return object(append(first, rest...)...), nil
}

// configError words a failure as Ceph does and adds what only we know.
func configError(err error, format string, args ...any) error {
	e := Errorf(ErrnoOf(err), format+": %s", append(args, errnoText(ErrnoOf(err)))...)
	var ours *Error
	if errors.As(err, &ours) && ours.Detail != "" {
		e.Detail += ": " + ours.Detail
	}
	return e
}

func (s *standard) configGet(_ context.Context, req Request) (Reply, error) {
	name := req.String("var")
	v, err := s.Config.Get(name)
	if err != nil {
		return Reply{}, configError(err, "error getting '%s'", name)
	}
	return object(Pair{name, v}), nil
}

func (s *standard) configSet(_ context.Context, req Request) (Reply, error) {
	name, value := req.String("var"), strings.Join(req.Strings("val"), " ")
	note, err := s.Config.Set(name, value)
	if err != nil {
		return Reply{}, configError(err, "error setting '%s' to '%s'", name, value)
	}
	return object(Pair{"success", note}), nil
}

func (s *standard) configUnset(_ context.Context, req Request) (Reply, error) {
	name := req.String("var")
	if err := s.Config.Unset(name); err != nil {
		return Reply{}, configError(err, "error unsetting '%s'", name)
	}
	return object(), nil
}

// configDiff serves "config diff" and "config diff get". Ceph's own prints the
// whole difference for both; we do as the help text says.
func (s *standard) configDiff(_ context.Context, req Request) (Reply, error) {
	only, filtered := req.Args["var"].(string)
	var w jsonWriter
	w.open('{')
	w.key("diff")
	w.open('{')
	for _, d := range s.Config.Diff() {
		if filtered && d.Name != only {
			continue
		}
		w.key(d.Name)
		w.open('{')
		for _, f := range []struct {
			name string
			v    any
		}{{"default", d.Default}, {"file", d.File}, {"mon", d.Mon}, {"override", d.Override}, {"final", d.Final}} {
			if f.v == nil {
				continue
			}
			w.key(f.name)
			if err := w.value(f.v); err != nil {
				return Reply{}, fmt.Errorf("option %s: %w", d.Name, err)
			}
		}
		w.close('}')
	}
	w.close('}')
	w.close('}')
	return Reply{JSON: w.b}, nil
}

func (s *standard) configHelp(_ context.Context, req Request) (Reply, error) {
	only, one := req.Args["var"].(string)
	var w jsonWriter
	w.open('{')
	if one {
		for _, o := range s.Config.Options() {
			if o.Name == only {
				w.key("option")
				err := o.append(&w)
				w.close('}')
				return Reply{JSON: w.b}, err
			}
		}
		return Reply{}, Errorf(syscall.ENOENT, "Setting not found: '%s'", only)
	}
	w.key("options")
	w.open('[')
	for _, o := range s.Config.Options() {
		if err := o.append(&w); err != nil {
			return Reply{}, err
		}
	}
	w.close(']')
	w.close('}')
	return Reply{JSON: w.b}, nil
}

func (o *OptionInfo) append(w *jsonWriter) error {
	w.open('{')
	for _, p := range []Pair{{"name", o.Name}, {"type", o.Type}, {"level", o.Level},
		{"desc", o.Desc}, {"long_desc", o.LongDesc}} {
		w.key(p.Name)
		w.str(p.Value)
	}
	var err error
	value := func(key string, v any) {
		w.key(key)
		if e := w.value(v); e != nil && err == nil {
			err = fmt.Errorf("option %s: %s: %w", o.Name, key, e)
		}
	}
	value("default", o.Default)
	value("daemon_default", o.DaemonDefault)
	w.key("tags")
	w.strs(o.Tags)
	w.key("services")
	w.strs(o.Services)
	w.key("see_also")
	w.strs(o.SeeAlso)
	if o.Type == "str" {
		w.key("enum_values")
		w.strs(o.EnumValues)
	}
	value("min", o.Min)
	value("max", o.Max)
	w.key("can_update_at_runtime")
	w.bool(o.Runtime)
	w.key("flags")
	w.strs(o.Flags)
	w.close('}')
	return err
}

// injectArgs sets options given as on a command line. The options before a bad
// one stay set, as in Ceph.
func (s *standard) injectArgs(_ context.Context, req Request) (Reply, error) {
	var stray []string
	words := strings.Fields(strings.Join(req.Strings("injected_args"), " "))
	for len(words) > 0 {
		name, value, rest, ok := nextOption(words)
		if !ok {
			stray = append(stray, words[0])
			words = words[1:]
			continue
		}
		_, err := s.Config.Set(name, value)
		switch {
		case errors.Is(err, syscall.ENOENT):
			stray = append(stray, words[0])
			rest = words[1:]
		case err != nil:
			return Reply{}, Errorf(ErrnoOf(err), "Parse error setting %s to '%s' using injectargs (%s).\n",
				name, value, strings.TrimSpace(detailOf(err)))
		}
		words = rest
	}
	if len(stray) > 0 {
		return Reply{}, Errorf(syscall.EINVAL, " failed to parse arguments: %s\n", strings.Join(stray, ","))
	}
	return object(), nil
}

// nextOption reads --name=value, --name value, or a switch: --name and
// --no-name, where no value follows.
func nextOption(words []string) (name, value string, rest []string, ok bool) {
	body, isOption := strings.CutPrefix(words[0], "--")
	if !isOption || body == "" {
		return "", "", nil, false
	}
	rest = words[1:]
	name, value, given := strings.Cut(body, "=")
	if !given {
		switch bare, no := strings.CutPrefix(name, "no-"); {
		case no:
			name, value = bare, "false"
		case len(rest) > 0 && !strings.HasPrefix(rest[0], "--"):
			value, rest = rest[0], rest[1:]
		default:
			value = "true"
		}
	}
	return strings.ReplaceAll(name, "-", "_"), value, rest, true
}
