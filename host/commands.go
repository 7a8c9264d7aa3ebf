package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"cephmirror/admin"
	"cephmirror/plugins"
)

// callPlugin carries a command to the plugin and bounds it. Errors keep the
// errno for the admin socket.
func (d *daemon) callPlugin(ctx context.Context, c plugins.Command) ([]byte, error) {
	client, err := d.super.Client()
	if err != nil {
		return nil, admin.Errorf(syscall.ENOTCONN, "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.settings.Duration("command_budget"))
	defer cancel()
	res := client.Call(ctx, c)
	switch syscall.Errno(res.Errno) {
	case 0:
		return res.Out, nil
	case syscall.ETIMEDOUT:
		if expired(ctx) {
			return nil, admin.Errorf(syscall.ETIMEDOUT, "the plugin did not answer within %v", d.settings.Duration("command_budget"))
		}
	case syscall.ENOTCONN:
		if _, err := d.super.Client(); err != nil {
			return nil, admin.Errorf(syscall.ENOTCONN, "%v", err)
		}
	default: // the plugin's own
	}
	return res.Out, &admin.Error{Errno: syscall.Errno(res.Errno), Detail: res.Status}
}

// expired says whether ctx has ended by its deadline. A call may come back with
// that news a moment before ctx itself knows.
func expired(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < 10*time.Millisecond
}

// pluginCommand handles a command that the plugin registered.
func (d *daemon) pluginCommand(ctx context.Context, req admin.Request) (admin.Reply, error) {
	out, err := d.callPlugin(ctx, plugins.Command{Prefix: req.Prefix, Args: req.Args})
	return reply(out), err
}

func reply(out []byte) admin.Reply {
	if len(out) > 0 && !json.Valid(out) {
		return admin.Reply{Raw: out}
	}
	return admin.Reply{JSON: out}
}

// statusCommand shows what the host knows, whatever the plugin does.
func (d *daemon) statusCommand(context.Context, admin.Request) (admin.Reply, error) {
	out, err := json.Marshal(d.status())
	return admin.Reply{JSON: out}, err
}

// daemonStatus is the answer to "cephmirror status".
type daemonStatus struct {
	Version string         `json:"version"`
	PID     int            `json:"pid"`
	Started time.Time      `json:"started"`
	Plugin  pluginStatus   `json:"plugin"`
	Leads   []domainStatus `json:"leads"`
}

type pluginStatus struct {
	Kind       string    `json:"kind"`
	Path       string    `json:"path"`
	State      string    `json:"state"`
	Since      time.Time `json:"since"`
	PID        int       `json:"pid,omitempty"`
	InstanceID string    `json:"instance_id,omitempty"`
	// LeaseSeconds is how long the plugin may still write as of now.
	LeaseSeconds float64    `json:"lease_seconds"`
	Restarts     int        `json:"restarts"`
	LastError    string     `json:"last_error,omitempty"`
	LastErrorAt  *time.Time `json:"last_error_at,omitempty"`
	NextTry      *time.Time `json:"next_try,omitempty"`
}

type domainStatus struct {
	Domain    string         `json:"domain"`
	Loaded    bool           `json:"loaded"`
	Settled   bool           `json:"settled"`
	Instances map[string]int `json:"instances"`
	Draining  []string       `json:"draining,omitempty"`
	LastError string         `json:"last_error,omitempty"`
}

func (d *daemon) status() daemonStatus {
	st := d.super.Status()
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	out := daemonStatus{
		Version: version(), PID: d.pid, Started: d.started, Leads: []domainStatus{},
		Plugin: pluginStatus{
			Kind: d.kind, Path: d.pluginPath, State: string(st.State), Since: st.Since, PID: st.PID,
			InstanceID: st.Info.InstanceID, Restarts: st.Restarts,
			LastError: st.LastError, LastErrorAt: at(st.LastErrorAt), NextTry: at(st.NextTry),
		},
	}
	if !st.LeaseUntil.IsZero() {
		out.Plugin.LeaseSeconds = max(0, time.Until(st.LeaseUntil).Seconds())
	}
	d.domains.each(func(domain string, l domainLoop) {
		s := l.Status()
		ds := domainStatus{Domain: domain, Loaded: s.Loaded, Settled: s.Settled, Instances: map[string]int{}, LastError: s.LastError}
		for _, i := range s.Instances {
			ds.Instances[i.Instance] = i.Units
			if i.Draining {
				ds.Draining = append(ds.Draining, i.Instance)
			}
		}
		out.Leads = append(out.Leads, ds)
	})
	return out
}

// counters serves the counter commands and the metrics endpoint.
type counters struct{ *daemon }

// Loggers implements admin.Metrics.
func (c counters) Loggers(ctx context.Context) ([]admin.Logger, error) {
	client, err := c.super.Client()
	if err != nil {
		return nil, admin.Errorf(syscall.ENOTCONN, "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.settings.Duration("command_budget"))
	defer cancel()
	loggers, err := client.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]admin.Logger, len(loggers))
	for i, l := range loggers {
		out[i].Name = l.Name
		for _, o := range l.Labels {
			out[i].Labels = append(out[i].Labels, admin.Pair(o))
		}
		for _, n := range l.Counters {
			out[i].Counters = append(out[i].Counters, admin.Counter{
				Name: n.Name, Type: admin.CounterType(n.Type), Description: n.Description, Nick: n.Nick,
				Priority: n.Priority, Bytes: n.Bytes, U64: n.U64, Value: n.Value, Count: n.Count, Sum: n.Sum,
			})
		}
	}
	if r := c.schedules.Load(); r != nil {
		out = append(out, scheduleLoggers(r.Status().Units)...)
	}
	return out, nil
}

// cephConfig serves the config commands from the plugin, where librados holds
// the options.
type cephConfig struct{ *daemon }

func (c cephConfig) call(prefix string, args map[string]any) ([]byte, error) {
	out, err := c.callPlugin(context.Background(), plugins.Command{Prefix: prefix, Args: args})
	var e *admin.Error
	if errors.As(err, &e) && e.Errno == syscall.ENOENT {
		e.Detail = "" // the errno says it all, and stock prints no more
	}
	return out, err
}

// Show implements admin.Config.
func (c cephConfig) Show() []admin.Pair {
	out, err := c.call("config show", nil)
	if err != nil {
		c.log.Warn().Err(err).Msg("config show")
		return nil
	}
	pairs, err := orderedPairs(out)
	if err != nil {
		c.log.Warn().Err(err).Msg("config show: answer of the plugin")
	}
	return pairs
}

// orderedPairs reads a flat JSON object.
func orderedPairs(text []byte) ([]admin.Pair, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	var pairs []admin.Pair
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return pairs, err
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return pairs, err
		}
		pairs = append(pairs, admin.Pair{Name: fmt.Sprint(key), Value: fmt.Sprint(value)})
	}
	return pairs, nil
}

// Get implements admin.Config.
func (c cephConfig) Get(name string) (string, error) {
	out, err := c.call("config get", map[string]any{"var": name})
	if err != nil {
		return "", err
	}
	pairs, err := orderedPairs(out)
	if err != nil || len(pairs) != 1 {
		return "", fmt.Errorf("answer of the plugin to config get: %q", out)
	}
	return pairs[0].Value, nil
}

// Set implements admin.Config.
func (c cephConfig) Set(name, value string) (string, error) {
	out, err := c.call("config set", map[string]any{"var": name, "val": []string{value}})
	if err != nil {
		return "", err
	}
	var answer struct{ Success string }
	_ = json.Unmarshal(out, &answer) // an answer without a note is one
	return answer.Success, nil
}

// Unset implements admin.Config.
func (c cephConfig) Unset(name string) error {
	_, err := c.call("config unset", map[string]any{"var": name})
	return err
}

// Diff implements admin.Config.
func (c cephConfig) Diff() []admin.OptionDiff {
	out, err := c.call("config diff", nil)
	var answer struct {
		Diff map[string]struct{ Default, File, Mon, Override, Final any }
	}
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	if err != nil {
		c.log.Warn().Err(err).Msg("config diff")
	}
	var diffs []admin.OptionDiff
	for _, name := range sortedKeys(answer.Diff) {
		v := answer.Diff[name]
		diffs = append(diffs, admin.OptionDiff{Name: name, Default: v.Default, File: v.File, Mon: v.Mon, Override: v.Override, Final: v.Final})
	}
	return diffs
}

// Options implements admin.Config. A plugin that does not describe its options
// has none to show.
func (c cephConfig) Options() []admin.OptionInfo {
	out, err := c.call("config help", nil)
	var answer struct {
		Options []struct {
			Name, Type, Level, Desc string
			LongDesc                string `json:"long_desc"`
			Default, Min, Max       any
			DaemonDefault           any  `json:"daemon_default"`
			Runtime                 bool `json:"can_update_at_runtime"`
			Tags, Services, Flags   []string
			SeeAlso                 []string `json:"see_also"`
			EnumValues              []string `json:"enum_values"`
		}
	}
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	if err != nil {
		return nil
	}
	var infos []admin.OptionInfo
	for _, o := range answer.Options {
		infos = append(infos, admin.OptionInfo{
			Name: o.Name, Type: o.Type, Level: o.Level, Desc: o.Desc, LongDesc: o.LongDesc, Default: o.Default,
			DaemonDefault: o.DaemonDefault, Tags: o.Tags, Services: o.Services, SeeAlso: o.SeeAlso,
			EnumValues: o.EnumValues, Min: o.Min, Max: o.Max, Runtime: o.Runtime, Flags: o.Flags,
		})
	}
	return infos
}

// syncCommands makes the table hold exactly the commands of specs besides the
// host's own.
func (d *daemon) syncCommands(specs map[string]plugins.CommandSpec) {
	d.commandsMu.Lock()
	defer d.commandsMu.Unlock()
	for prefix := range d.commands {
		if _, ok := specs[prefix]; !ok {
			d.removeCommandLocked(prefix)
		}
	}
	for _, prefix := range sortedKeys(specs) {
		d.addCommandLocked(specs[prefix])
	}
}

func (d *daemon) addCommand(spec plugins.CommandSpec) {
	d.commandsMu.Lock()
	defer d.commandsMu.Unlock()
	d.addCommandLocked(spec)
}

func (d *daemon) removeCommand(prefix string) {
	d.commandsMu.Lock()
	defer d.commandsMu.Unlock()
	d.removeCommandLocked(prefix)
}

func (d *daemon) addCommandLocked(spec plugins.CommandSpec) {
	prefix := spec.Prefix()
	if d.commands[prefix] == spec {
		return
	}
	if _, ours := d.commands[prefix]; ours {
		d.table.Remove(prefix)
	}
	if err := d.table.Add(spec.Signature, spec.Help, d.pluginCommand); err != nil {
		d.log.Warn().Err(err).Str("signature", spec.Signature).Msg("command of the plugin cannot be served")
		return
	}
	d.commands[prefix] = spec
}

func (d *daemon) removeCommandLocked(prefix string) {
	if _, ours := d.commands[prefix]; ours {
		d.table.Remove(prefix)
		delete(d.commands, prefix)
	}
}

// isHostCommand keeps a plugin from taking what the host answers.
func isHostCommand(prefix string) bool { return strings.HasPrefix(prefix, "cephmirror ") }
