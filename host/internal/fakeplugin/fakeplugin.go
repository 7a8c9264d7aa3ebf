// Package fakeplugin turns a test binary into a plugin executable that needs no
// cluster and misbehaves on demand.
package fakeplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cephmirror/plugins"
	"cephmirror/plugins/plugintest"
)

// Name is the executable's name, and how a test binary knows that it is one.
const Name = "cephmirror-cephfs"

const env = "FAKE_PLUGIN"

// Script says how the fake behaves. Files it writes are in Dir: "pids" gets a
// line for each process, "writes" a line for each write under the lease,
// "config" the last configuration, "stopped" tells of an orderly stop. A file
// "crash" makes it crash, one named "start-error" holds the text of an error
// for Start.
type Script struct {
	Dir        string
	Info       plugins.Info
	State      []plugins.Event
	StartErrno int           // with the file start-error
	StartDelay time.Duration // before Start answers, whatever the context
	StopDelay  time.Duration
	CrashFirst int  // so many first processes crash before their handshake
	Mute       bool // never prints a handshake
	Loggers    []plugins.Logger
	Map        plugins.Map
}

// Serve does not return if this process is to be the plugin. TestMain calls it
// first.
func Serve() {
	if filepath.Base(os.Args[0]) != Name {
		return
	}
	var s Script
	if err := json.Unmarshal([]byte(os.Getenv(env)), &s); err != nil {
		fmt.Fprintln(os.Stderr, "fake plugin without a script:", err)
		os.Exit(1)
	}
	s.note("pids", fmt.Sprint(os.Getpid()))
	if s.Mute {
		time.Sleep(time.Hour) // without a timer Go would see a deadlock
	}
	if s.CrashFirst > 0 {
		pids, _ := os.ReadFile(filepath.Join(s.Dir, "pids"))
		lines := 0
		for _, b := range pids {
			if b == '\n' {
				lines++
			}
		}
		if lines <= s.CrashFirst {
			panic("crash on demand")
		}
	}
	plugins.Serve(s.plugin)
}

// Install makes an executable of the fake in a new directory and puts the
// script into the environment. It returns the executable.
func Install(t *testing.T, s *Script) string {
	t.Helper()
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(env, string(text))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), Name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *Script) note(file, line string) {
	f, err := os.OpenFile(filepath.Join(s.Dir, file), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer f.Close()
	_, _ = fmt.Fprintln(f, line)
}

func (s *Script) exists(file string) bool {
	_, err := os.Stat(filepath.Join(s.Dir, file))
	return err == nil
}

func (s *Script) plugin(e plugins.Env) plugins.Plugin {
	fake := &plugintest.Fake{State: s.State, Loggers: s.Loggers}
	fake.OnStart = func(_ context.Context, cfg plugins.Config) (plugins.Info, error) {
		time.Sleep(s.StartDelay)
		if text, err := os.ReadFile(filepath.Join(s.Dir, "start-error")); err == nil {
			return plugins.Info{}, plugins.Errorf(syscall.Errno(s.StartErrno), "%s", text)
		}
		text, err := json.Marshal(cfg)
		if err != nil {
			return plugins.Info{}, err
		}
		s.note("config", string(text))
		e.Log.Warn().Str("field", "kept").Int("n", 7).Msg("fake started")
		fmt.Fprintln(os.Stderr, "a line through Go's stderr")
		_, _ = syscall.Write(1, []byte("a line that a C library prints\n"))
		go s.write(e.Lease)
		return s.Info, nil
	}
	fake.OnStop = func(context.Context) error {
		time.Sleep(s.StopDelay)
		s.note("stopped", fmt.Sprint(os.Getpid()))
		return nil
	}
	fake.OnLoadMap = func(context.Context, string) (plugins.Map, error) { return s.Map, nil }
	fake.OnDo = func(_ context.Context, domain string, a plugins.Action) error {
		s.note("actions", fmt.Sprint(domain, " ", a.Kind, " ", a.Mapping.Unit, " ", a.Mapping.Instance))
		return nil
	}
	fake.OnCall = func(ctx context.Context, c plugins.Command) plugins.Result { return s.call(ctx, fake, c) }
	return fake
}

// write stands for an engine: it writes as often as it may.
func (s *Script) write(l *plugins.Lease) {
	for {
		if s.exists("crash") {
			_ = os.Remove(filepath.Join(s.Dir, "crash"))
			panic("crash on demand")
		}
		if l.Valid() {
			s.note("writes", fmt.Sprint(int64(plugins.Boottime())))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *Script) call(ctx context.Context, fake *plugintest.Fake, c plugins.Command) plugins.Result {
	switch c.Prefix {
	case "hang": // as a library call that cannot be cancelled
		time.Sleep(time.Hour) // without a timer Go would see a deadlock
	case "wait": // as one that can
		<-ctx.Done()
		return plugins.ErrorResult(ctx.Err())
	case "fail":
		return plugins.Result{Errno: int(syscall.ENOENT), Status: "no such thing here"}
	case "appear":
		name, _ := c.Args["name"].(string)
		fake.Feed.Publish(plugins.Event{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: name, Help: "appeared"}})
		return plugins.Result{Out: []byte("{}")}
	case "vanish":
		name, _ := c.Args["name"].(string)
		fake.Feed.Publish(plugins.Event{Kind: plugins.EventCommandRemoved, Spec: plugins.CommandSpec{Signature: name}})
		return plugins.Result{Out: []byte("{}")}
	case "fs snapshot mirror remove":
		return plugins.Result{Errno: int(syscall.ENOENT), Status: "directory /missing id not tracked"}
	case "config show":
		return plugins.Result{Out: []byte(`{"name":"client.fake","cluster":"ceph","pid_file":""}`)}
	case "config get":
		name, _ := c.Args["var"].(string)
		if name == "nosuch" {
			return plugins.Result{Errno: int(syscall.ENOENT), Status: "no option nosuch"}
		}
		out, _ := json.Marshal(map[string]string{name: "1"})
		return plugins.Result{Out: out}
	}
	out, err := json.Marshal(map[string]any{"prefix": c.Prefix, "args": c.Args, "input": string(c.Input)})
	if err != nil {
		return plugins.ErrorResult(err)
	}
	return plugins.Result{Out: out}
}
