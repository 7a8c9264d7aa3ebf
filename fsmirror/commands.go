package fsmirror

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"cephmirror/plugins"
)

// Call implements plugins.Plugin.
func (e *Engine) Call(ctx context.Context, c plugins.Command) plugins.Result {
	if strings.HasPrefix(c.Prefix, plugins.SchedulePrefix) {
		return e.scheduleCommand(ctx, c)
	}
	if e.control != nil {
		r := e.control.Call(ctx, c.Prefix, c.Args)
		return plugins.Result{Errno: int(r.Errno), Out: r.Out, Status: r.Status}
	}
	call := e.call
	if strings.HasPrefix(c.Prefix, plugins.AssignPrefix) {
		call = func(c plugins.Command) (any, error) { return plugins.CallAssigner(ctx, e, c) }
	}
	out, err := call(c)
	return plugins.Answer(c, out, err)
}

// call answers from what is in memory: no command waits for a cluster.
func (e *Engine) call(c plugins.Command) (any, error) {
	if rest, ok := strings.CutPrefix(c.Prefix, "fs mirror status "); ok {
		f, err := e.filesystem(rest)
		if err != nil {
			return nil, err
		}
		return f.status(), nil
	}
	if rest, ok := strings.CutPrefix(c.Prefix, "fs mirror peer status "); ok {
		domain, uuid, _ := strings.Cut(rest, " ")
		f, err := e.filesystem(domain)
		if err != nil {
			return nil, err
		}
		f.mu.Lock()
		p := f.peers[uuid]
		f.mu.Unlock()
		if p == nil {
			return nil, fmt.Errorf("file system %s has no peer %s: %w", domain, uuid, syscall.ENOENT)
		}
		return p.peerStatus(e.info.CephRelease), nil
	}
	if strings.HasPrefix(c.Prefix, "config ") {
		return e.configCommand(c)
	}
	return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
}

// configCommand answers the commands about Ceph's options, of which the local
// client's configuration is the truth.
func (e *Engine) configCommand(c plugins.Command) (any, error) {
	name, _ := c.Args["var"].(string)
	name = strings.ReplaceAll(name, "-", "_")
	switch c.Prefix {
	case "config show":
		return e.configShow(), nil
	case "config get":
		v, err := e.configGet(name)
		if err != nil {
			return nil, err
		}
		return map[string]string{name: v}, nil
	case "config set":
		if hostOptions[name] {
			return nil, fmt.Errorf("option %s cannot be changed at run time: %w", name, syscall.EPERM)
		}
		value := strings.Join(words(c.Args["val"]), " ")
		if err := e.options.conf.SetConfigOption(name, value); err != nil {
			return nil, fmt.Errorf("error setting '%s' to '%s': %w", name, value, err)
		}
		e.setHere(name, true)
		return map[string]string{"success": ""}, nil
	case "config unset":
		for _, d := range stockDefaults {
			if d.Name == name {
				if err := e.options.conf.SetConfigOption(name, d.Value); err != nil {
					return nil, fmt.Errorf("error unsetting '%s': %w", name, err)
				}
				e.setHere(name, false)
				return struct{}{}, nil
			}
		}
		return nil, fmt.Errorf("error unsetting '%s': %w", name, syscall.ENOENT)
	case "config diff", "config diff get":
		diff := make(map[string]any)
		for _, d := range stockDefaults {
			if v := e.options.stock(d.Name); v != d.Value && (name == "" || name == d.Name) {
				values := map[string]string{"default": d.Value, "final": v}
				if e.isSetHere(d.Name) {
					values["override"] = v
				}
				diff[d.Name] = values
			}
		}
		return map[string]any{"diff": diff}, nil
	}
	return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
}

// hostOptions belong to the host, which opened what they name.
var hostOptions = map[string]bool{
	"admin_socket": true, "admin_socket_mode": true, "log_file": true, "pid_file": true, "run_dir": true,
}

func (e *Engine) configGet(name string) (string, error) {
	switch name {
	case "admin_socket":
		return e.info.AdminSocket, nil
	case "log_file":
		return e.info.LogFile, nil
	case "pid_file":
		return e.info.PidFile, nil
	}
	if v, err := e.options.conf.GetConfigOption(name); err == nil {
		if secretOptions[name] && v != "" {
			return "*****", nil
		}
		return v, nil
	}
	return "", fmt.Errorf("error getting '%s': (2) No such file or directory: %w", name, syscall.ENOENT)
}

var secretOptions = map[string]bool{"key": true}

// shownOptions are listed by "config show": what tells who and where we are,
// and what we honour.
var shownOptions = []string{
	"admin_socket", "client_mount_timeout", "debug_client", "debug_monc", "debug_ms", "debug_objecter", "debug_rados",
	"fsid", "keyring", "log_file", "mon_host", "pid_file", "run_dir",
}

func (e *Engine) configShow() any {
	var b orderedObject
	cluster, id := e.cfg.Cluster, e.cfg.Name
	if cluster == "" {
		cluster = "ceph"
	}
	b.add("name", id)
	b.add("cluster", cluster)
	names := append([]string(nil), shownOptions...)
	for _, d := range stockDefaults {
		names = append(names, d.Name)
	}
	for _, n := range sorted(names) {
		if v, err := e.configGet(n); err == nil {
			b.add(n, v)
		}
	}
	return b
}

// words returns a command's list argument, which may be a single word.
func words(arg any) []string {
	switch v := arg.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, w := range v {
			out = append(out, fmt.Sprint(w))
		}
		return out
	}
	return nil
}
