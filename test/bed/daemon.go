package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxLog is how large a log may be before a start empties it.
const maxLog = 64 << 20

// Daemon is one daemon of a cluster: "mon.a", "mgr.x", "osd.0", "mds.a".
type Daemon struct {
	c    *Cluster
	name string
}

// DaemonError is a daemon that does not run as it should.
type DaemonError struct {
	Cluster, Daemon string
	Err             error
	Log             string // last lines
}

func (e *DaemonError) Error() string {
	return fmt.Sprintf("cluster %s: %s: %v; last lines of its log:\n%s", e.Cluster, e.Daemon, e.Err, e.Log)
}

func (e *DaemonError) Unwrap() error { return e.Err }

var errExited = errors.New("exited")

// Name returns the daemon's name.
func (d *Daemon) Name() string { return d.name }

// Cluster returns the cluster that the daemon belongs to.
func (d *Daemon) Cluster() *Cluster { return d.c }

func (d *Daemon) path(parts ...string) string {
	return filepath.Join(append([]string{d.c.dir}, parts...)...)
}

func (d *Daemon) outPath() string    { return d.path("log", d.name+".out") }
func (d *Daemon) recordPath() string { return d.path("run", d.name+".proc") }

// LogPath returns the path of the daemon's log file.
func (d *Daemon) LogPath() string { return d.path("log", d.name+".log") }

// SocketPath returns the path of the daemon's admin socket.
func (d *Daemon) SocketPath() string { return d.path("run", d.c.name+"-"+d.name+".asok") }

func (d *Daemon) mark() string { return mark(d.c.bed.dir, d.c.name, d.name) }

// process returns the running process, if any.
func (d *Daemon) process() (procID, bool) {
	var id procID
	if err := readJSON(d.recordPath(), &id); err == nil && id.alive() {
		return id, true
	}
	for _, id := range marked(d.mark()) {
		return id, true
	}
	return procID{}, false
}

// Pid returns the daemon's process id, or 0 when it does not run.
func (d *Daemon) Pid() int {
	id, _ := d.process()
	return id.PID
}

// State returns "running", "stopped" (by SIGSTOP) or "dead".
func (d *Daemon) State() string {
	id, ok := d.process()
	if !ok {
		return "dead"
	}
	if id.state() == 'T' {
		return "stopped"
	}
	return "running"
}

// Log returns the last n lines of what the daemon logged and printed.
func (d *Daemon) Log(n int) string {
	var parts []string
	for _, p := range []string{d.LogPath(), d.outPath()} {
		if s, err := tailFile(p, n); err == nil && strings.TrimSpace(s) != "" {
			parts = append(parts, s)
		}
	}
	if len(parts) == 0 {
		return "(empty)"
	}
	return strings.Join(parts, "\n--- printed:\n")
}

func (d *Daemon) fail(err error) error {
	return &DaemonError{Cluster: d.c.name, Daemon: d.name, Err: err, Log: d.Log(20)}
}

func (d *Daemon) kindID() (kind, id string) {
	kind, id, _ = strings.Cut(d.name, ".")
	return kind, id
}

// Start starts the daemon unless it runs. It does not wait for the daemon to
// be ready.
func (d *Daemon) Start() error {
	if err := d.c.bed.needInside(); err != nil {
		return err
	}
	if _, ok := d.process(); ok {
		return nil
	}
	kind, id := d.kindID()
	for _, p := range []string{d.LogPath(), d.outPath()} {
		if st, err := os.Stat(p); err == nil && st.Size() > maxLog {
			if err := os.Truncate(p, 0); err != nil {
				return fmt.Errorf("cap a log: %w", err)
			}
		}
	}
	cmd := exec.Command("ceph-"+kind, "-f", "--cluster", d.c.name, "-c", d.c.Conf(), "-i", id)
	return d.launch(cmd)
}

func (d *Daemon) launch(cmd *exec.Cmd) error {
	out, err := os.OpenFile(d.outPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// Debian's OSD looks for its class plugins relative to where it stands.
	cmd.Dir = "/"
	cmd.Env = d.c.bed.processEnv(d.mark())
	// A session of its own: an interrupt at the terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	id, err := identify(cmd.Process.Pid)
	if err != nil {
		return d.fail(fmt.Errorf("%w at once", errExited))
	}
	// It outlives us; nobody waits for it, see procID.state.
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	if err := writeJSON(d.recordPath(), id); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	return nil
}

// Signal sends a signal and does not wait for anything. A daemon that does not
// run is no error.
func (d *Daemon) Signal(sig syscall.Signal) error {
	id, ok := d.process()
	if !ok {
		return nil
	}
	if err := id.signal(sig); err != nil {
		return fmt.Errorf("cluster %s: %s: %w", d.c.name, d.name, err)
	}
	return nil
}

// Kill sends a signal and, when it is one that ends the daemon, waits until it
// is gone. A daemon that does not run is no error.
func (d *Daemon) Kill(ctx context.Context, sig syscall.Signal) error {
	id, ok := d.process()
	if !ok {
		return nil
	}
	if err := id.signal(sig); err != nil {
		return fmt.Errorf("cluster %s: %s: %w", d.c.name, d.name, err)
	}
	switch sig {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGABRT, syscall.SIGQUIT, syscall.SIGSEGV:
		if err := id.wait(ctx); err != nil {
			return d.fail(err)
		}
	}
	return nil
}

// Stop asks the daemon to end, and makes it end after five seconds.
func (d *Daemon) Stop(ctx context.Context) error {
	id, ok := d.process()
	if !ok {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := id.signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := id.signal(syscall.SIGCONT); err != nil {
		return err
	}
	if id.wait(short) == nil {
		return nil
	}
	return d.Kill(ctx, syscall.SIGKILL)
}

// Restart ends the daemon with sig and starts it again.
func (d *Daemon) Restart(ctx context.Context, sig syscall.Signal) error {
	if err := d.c.bed.needInside(); err != nil {
		return err
	}
	if err := d.Kill(ctx, sig); err != nil {
		return err
	}
	return d.Start()
}

// WaitReady waits until the daemon has taken up its work. A daemon that ends
// meanwhile ends the wait.
func (d *Daemon) WaitReady(ctx context.Context) error {
	return Poll(ctx, d.c.name+" "+d.name, func(ctx context.Context) (bool, error) {
		return d.ready(ctx)
	})
}

// ready asks the daemon itself: the monitor takes a while to notice that a
// daemon is gone or has come back.
func (d *Daemon) ready(ctx context.Context) (bool, error) {
	if _, ok := d.process(); !ok {
		return false, d.fail(errExited)
	}
	kind, _ := d.kindID()
	var prefix string
	var states []string
	switch kind {
	case "mon":
		prefix, states = "mon_status", []string{"leader", "peon"}
	case "osd":
		prefix, states = "status", []string{"active"}
	case "mds":
		prefix, states = "status", []string{"up:active", "up:standby", "up:standby-replay"}
	default:
		return socketAnswers(d.SocketPath()), nil
	}
	out, err := d.Admin(ctx, map[string]any{"prefix": prefix})
	if err != nil {
		return false, nil // not yet
	}
	var s struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return false, nil // nor this
	}
	return slices.Contains(states, s.State), nil
}

// Admin sends a command in its JSON form to the daemon's admin socket.
func (d *Daemon) Admin(ctx context.Context, cmd map[string]any) (string, error) {
	return askSocket(ctx, d.SocketPath(), cmd)
}
