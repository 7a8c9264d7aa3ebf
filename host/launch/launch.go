// Package launch starts one plugin process, connects to it and carries its
// output into the host's log.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"github.com/rs/zerolog"

	"cephmirror/plugins"
)

const (
	// handshakeTimeout bounds the time from exec to the plugin's address. It
	// does not depend on any cluster, only on how slow this machine is.
	handshakeTimeout = 30 * time.Second
	// exitGrace is how long a plugin may take to exit when told to.
	exitGrace = 3 * time.Second
	// drainGrace is how long output is still read from a dead plugin whose
	// pipe somebody else holds open.
	drainGrace = time.Second
)

// Spec says what to start.
type Spec struct {
	Path     string   // of the executable
	Dir      string   // its working directory
	Env      []string // as of os.Environ
	Log      zerolog.Logger
	LogLevel zerolog.Level
}

// Process is a running plugin.
type Process struct {
	client   *plugins.Client
	runner   *process
	goplugin *goplugin.Client
	output   *output
	killOnce sync.Once
}

// Start runs the plugin and connects to it. ctx bounds the start only.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	out := newOutput(spec.Log)
	proc := newProcess(spec)
	sockets := ""
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  plugins.Handshake(),
		Plugins:          plugins.HostSet(),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     handshakeTimeout,
		// The host reads the raw lines itself: go-plugin would flatten their
		// fields. Its own log says nothing that is not in its errors.
		Logger:     hclog.NewNullLogger(),
		Stderr:     out.stream(),
		SyncStdout: out.stream(),
		SyncStderr: out.stream(),
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			sockets = dir
			// go-plugin put the handshake and the certificate into cmd.Env.
			proc.cmd.Env = slices.Concat([]string{mallocArenas}, withoutHostOnly(spec.Env), cmd.Env,
				[]string{plugins.EnvLogLevel + "=" + spec.LogLevel.String()})
			return proc, nil
		},
	})
	p := &Process{goplugin: client, output: out}
	type outcome struct {
		client *plugins.Client
		err    error
	}
	connected := make(chan outcome, 1)
	go func() {
		c, err := connect(client)
		connected <- outcome{c, err}
	}()
	var got outcome
	select {
	case got = <-connected:
	case <-ctx.Done():
		// go-plugin knows no context: the death of the process ends its wait.
		proc.kill()
		got = <-connected
		got.err = ctx.Err()
	}
	if got.err != nil {
		proc.kill()
		client.Kill()
		err := fmt.Errorf("starting plugin %s: %w", spec.Path, short(got.err))
		if last := out.lastWords(time.Now()); last != "" {
			err = fmt.Errorf("%w; its last output: %s", err, last)
		}
		return nil, err
	}
	// The one connection stands: without its name the socket cannot be left
	// behind by a host that is killed.
	_ = os.RemoveAll(sockets)
	p.client, p.runner = got.client, proc
	return p, nil
}

// short leaves of several lines only the last: go-plugin puts what it knows in
// general in front of what the process has to say.
func short(err error) error {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	if len(lines) == 1 {
		return err
	}
	return errors.New(lines[len(lines)-1])
}

func connect(c *goplugin.Client) (*plugins.Client, error) {
	protocol, err := c.Client()
	if err != nil {
		return nil, err
	}
	if err := protocol.Ping(); err != nil {
		return nil, fmt.Errorf("first ping: %w", err)
	}
	raw, err := protocol.Dispense(plugins.ServiceName)
	if err != nil {
		return nil, err
	}
	return raw.(*plugins.Client), nil
}

// mallocArenas bounds the memory that the C library keeps for the many threads
// of a plugin's Ceph clients. What the environment says comes after it and wins.
const mallocArenas = "MALLOC_ARENA_MAX=4"

// withoutHostOnly drops what the host has read from its environment for itself.
func withoutHostOnly(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "CEPH_ARGS=") && !strings.HasPrefix(e, "CEPHMIRROR_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
			out = append(out, e)
		}
	}
	return out
}

// Client returns the connection to the plugin.
func (p *Process) Client() *plugins.Client { return p.client }

// PID returns the plugin's process id.
func (p *Process) PID() int { return p.runner.pid() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.runner.done }

// Err says how the process ended, with its last output. Only valid after Done.
func (p *Process) Err() error {
	err := p.runner.exit
	if err == nil {
		err = errors.New("exit status 0")
	}
	if last := p.output.lastWords(p.runner.ended); last != "" {
		return fmt.Errorf("plugin process ended: %w; its last output: %s", err, last)
	}
	return fmt.Errorf("plugin process ended: %w", err)
}

// Close ends the plugin, in order if it still answers, and waits for it.
func (p *Process) Close() {
	p.killOnce.Do(func() {
		timer := time.AfterFunc(exitGrace, p.runner.kill)
		defer timer.Stop()
		p.goplugin.Kill()
	})
}

// Kill ends the plugin at once and waits for it.
func (p *Process) Kill() {
	p.runner.kill()
	p.Close()
}

// process is a runner.Runner that notices the end of the process even while
// somebody else holds its pipes, and that binds its life to the host's.
type process struct {
	cmd    *exec.Cmd
	stdout *os.File
	stderr *os.File
	hold   *os.File // the end of the pipe whose closing tells that the host is dead
	done   chan struct{}
	exit   error     // set before done is closed
	ended  time.Time // likewise

	mu     sync.Mutex
	id     int
	killed bool
}

func newProcess(spec Spec) *process {
	cmd := exec.Command(spec.Path)
	cmd.Dir = spec.Dir
	if _, err := os.Stat(cmd.Dir); err != nil {
		cmd.Dir = "/" // the directory the host was started in is gone
	}
	// An own process group: the signals of a terminal are for the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return &process{cmd: cmd, done: make(chan struct{})}
}

func (r *process) Start(context.Context) (err error) {
	var theirs []*os.File
	pipe := func() (ours, other *os.File) {
		if err == nil {
			ours, other, err = os.Pipe()
		}
		return ours, other
	}
	outR, outW := pipe()
	errR, errW := pipe()
	watchR, watchW := pipe()
	theirs = append(theirs, outW, errW, watchR)
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			for _, f := range []*os.File{outR, errR, watchW} {
				_ = f.Close()
			}
			close(r.done)
		}
	}()
	if err != nil {
		return fmt.Errorf("making pipes: %w", err)
	}
	r.cmd.Stdout, r.cmd.Stderr = outW, errW
	r.cmd.ExtraFiles = []*os.File{watchR}
	r.cmd.Env = append(r.cmd.Env, plugins.EnvHostFD+"=3")
	if err = r.start(); err != nil {
		return err
	}
	r.stdout, r.stderr, r.hold = outR, errR, watchW
	go func() {
		r.exit = r.cmd.Wait()
		r.ended = time.Now()
		_ = r.hold.Close()
		close(r.done)
		// A grandchild may keep the pipes open: their reading ends anyhow.
		past := time.Now().Add(drainGrace)
		_ = r.stdout.SetReadDeadline(past)
		_ = r.stderr.SetReadDeadline(past)
	}()
	return nil
}

func (r *process) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed {
		return context.Canceled
	}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	r.id = r.cmd.Process.Pid
	return nil
}

func (r *process) pid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

// kill also prevents a start that has not happened yet.
func (r *process) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killed = true
	if r.id != 0 {
		_ = r.cmd.Process.Kill()
	}
}

func (r *process) Wait(context.Context) error { <-r.done; return r.exit }

func (r *process) Kill(context.Context) error { r.kill(); return nil }

func (r *process) Stdout() io.ReadCloser { return r.stdout }

func (r *process) Stderr() io.ReadCloser { return untilDeadline{r.stderr} }

func (r *process) Name() string { return r.cmd.Path }

func (r *process) ID() string { return fmt.Sprint(r.pid()) }

func (r *process) Diagnose(context.Context) string {
	return filepath.Base(r.cmd.Path) + " ended or printed something else before it was ready"
}

func (r *process) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

func (r *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// untilDeadline takes the deadline of a dead plugin's pipe for its end.
type untilDeadline struct{ *os.File }

func (u untilDeadline) Read(b []byte) (int, error) {
	n, err := u.File.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	return n, err
}
