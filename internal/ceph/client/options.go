package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
)

// Options are the options of Ceph that are in force. They come from the
// configuration of a connection, so that ceph.conf, the command line, the
// monitors and "config set" have their usual precedence, at any time.
type Options struct {
	spec     Spec
	paths    Paths
	defaults []Option // those honoured; they stand in should librados not know one
	shown    []string // further ones that "config show" lists

	mu   sync.Mutex
	conn *rados.Conn
	here map[string]string // set by command
}

// NewOptions returns the options of conn. defaults are those of the stock daemon
// that are honoured, shown what tells who and where we are.
func NewOptions(spec Spec, paths Paths, conn *rados.Conn, defaults []Option, shown []string) *Options {
	return &Options{spec: spec, paths: paths, conn: conn, defaults: defaults, shown: shown, here: make(map[string]string)}
}

// Replace makes conn the connection whose configuration counts, after one that
// is given up. What was set by command stays in force.
func (o *Options) Replace(conn *rados.Conn) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn = conn
	for name, value := range o.here {
		if err := conn.SetConfigOption(name, value); err != nil {
			return fmt.Errorf("setting option %s: %w", name, err)
		}
	}
	return nil
}

// Close is called before the connection ends. What has not been set by command
// has its default from then on.
func (o *Options) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn = nil
}

func (o *Options) read(name string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil {
		return o.here[name], nil
	}
	return o.conn.GetConfigOption(name)
}

// String returns the value of an option.
func (o *Options) String(name string) string {
	if v, err := o.read(name); err == nil && v != "" {
		return v
	}
	for _, d := range o.defaults {
		if d.Name == name {
			return d.Value
		}
	}
	return ""
}

// Uint returns the value of an option that is a whole number.
func (o *Options) Uint(name string) uint64 {
	n, err := strconv.ParseUint(o.String(name), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Bool returns the value of an option that is on or off.
func (o *Options) Bool(name string) bool {
	on, err := strconv.ParseBool(o.String(name))
	return err == nil && on
}

// Seconds returns the value of an option that counts seconds.
func (o *Options) Seconds(name string) time.Duration {
	s, err := strconv.ParseFloat(o.String(name), 64)
	if err != nil || s < 0 || s > 1e9 {
		return 0
	}
	return time.Duration(s * float64(time.Second))
}

// hostOption says whether an option belongs to the host, which opened what it
// names.
func hostOption(name string) bool {
	switch name {
	case "admin_socket", "admin_socket_mode", "log_file", "pid_file", "run_dir":
		return true
	}
	return false
}

// Command answers the config commands of an admin socket.
func (o *Options) Command(prefix string, args map[string]any) (any, error) {
	name, _ := args["var"].(string)
	name = strings.ReplaceAll(name, "-", "_")
	switch prefix {
	case "config show":
		return o.show(), nil
	case "config get":
		v, err := o.get(name)
		if err != nil {
			return nil, err
		}
		return map[string]string{name: v}, nil
	case "config set":
		if hostOption(name) {
			return nil, fmt.Errorf("option %s cannot be changed at run time: %w", name, syscall.EPERM)
		}
		value := strings.Join(words(args["val"]), " ")
		if err := o.set(name, value); err != nil {
			return nil, fmt.Errorf("error setting '%s' to '%s': %w", name, value, err)
		}
		return map[string]string{"success": ""}, nil
	case "config unset":
		if err := o.unset(name); err != nil {
			return nil, fmt.Errorf("error unsetting '%s': %w", name, err)
		}
		return struct{}{}, nil
	case "config diff", "config diff get":
		return map[string]any{"diff": o.diff(name)}, nil
	}
	return nil, fmt.Errorf("unknown command %q: %w", prefix, syscall.EINVAL)
}

func (o *Options) set(name, value string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil {
		return syscall.ENOTCONN
	}
	if err := o.conn.SetConfigOption(name, value); err != nil {
		return err
	}
	o.here[name] = value
	return nil
}

func (o *Options) unset(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil {
		return syscall.ENOTCONN
	}
	for _, d := range o.defaults {
		if d.Name == name {
			if err := o.conn.SetConfigOption(name, d.Value); err != nil {
				return err
			}
			delete(o.here, name)
			return nil
		}
	}
	return syscall.ENOENT
}

func (o *Options) diff(name string) map[string]any {
	out := make(map[string]any)
	for _, d := range o.defaults {
		v := o.String(d.Name)
		if same(v, d.Value) || (name != "" && name != d.Name) {
			continue
		}
		values := map[string]string{"default": d.Value, "final": v}
		o.mu.Lock()
		_, here := o.here[d.Name]
		o.mu.Unlock()
		if here {
			values["override"] = v
		}
		out[d.Name] = values
	}
	return out
}

// same compares values, of which numbers can be written in several ways.
func same(a, b string) bool {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	return a == b || errX == nil && errY == nil && x == y
}

func (o *Options) get(name string) (string, error) {
	switch name {
	case "admin_socket":
		return o.paths.AdminSocket, nil
	case "log_file":
		return o.paths.LogFile, nil
	case "pid_file":
		return o.paths.PidFile, nil
	}
	v, err := o.read(name)
	if err != nil {
		return "", fmt.Errorf("error getting '%s': (2) No such file or directory: %w", name, syscall.ENOENT)
	}
	if name == "key" && v != "" {
		return "*****", nil
	}
	return v, nil
}

// show lists the options, after who we are.
func (o *Options) show() any {
	cluster, name := o.spec.Identity()
	out := Object{{"name", name}, {"cluster", cluster}}
	names := slices.Clone(o.shown)
	for _, d := range o.defaults {
		names = append(names, d.Name)
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		if v, err := o.get(n); err == nil {
			out = append(out, Option{n, v})
		}
	}
	return out
}

// words returns a command's list argument, which may be a single word.
func words(arg any) []string {
	switch v := arg.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		var out []string
		for _, w := range v {
			out = append(out, fmt.Sprint(w))
		}
		return out
	}
	return nil
}

// Object is a JSON object of strings whose members keep their order.
type Object []Option

// MarshalJSON implements json.Marshaler.
func (o Object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, s := range []string{m.Name, m.Value} {
			text, err := json.Marshal(s)
			if err != nil {
				return nil, err
			}
			if j == 1 {
				b.WriteByte(':')
			}
			b.Write(text)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}
