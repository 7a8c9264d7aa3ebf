package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// ProcessSpec is a process to run beside the clusters, for example a mirror
// daemon.
type ProcessSpec struct {
	Name string   // of its log, and to find what it starts in turn
	Args []string // command line
	Env  []string // added to the environment
	Dir  string   // working directory, empty: /
	Log  string   // file for what it prints; empty: Name below the bed's proc directory
}

// Process is a running process of a bed. It is killed when the program that
// started it dies.
type Process struct {
	bed  *Bed
	name string
	mark string
	log  string
	id   procID
	done chan struct{}
	err  error // of Wait, valid once done is closed
}

// StartProcess starts a process and keeps what it prints. Close and Down of
// the bed stop it.
func (b *Bed) StartProcess(s ProcessSpec) (*Process, error) {
	if len(s.Args) == 0 || s.Name == "" {
		return nil, errors.New("start a process: no name or no command")
	}
	if s.Log == "" {
		s.Log = filepath.Join(b.dir, "proc", s.Name+".log")
	}
	if err := os.MkdirAll(filepath.Dir(s.Log), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	out, err := os.OpenFile(s.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	defer out.Close()
	n := b.started.Add(1)
	p := &Process{bed: b, name: s.Name, log: s.Log, done: make(chan struct{})}
	p.mark = mark(b.dir, "", fmt.Sprintf("%s.%d.%d", s.Name, os.Getpid(), n))
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, s.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Env = append(b.processEnv(p.mark), s.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer close(p.done)
		// The parent-death signal comes when the starting thread ends, so it
		// must not end before the process does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			// Not reaped yet, so it can be identified even if it exited.
			p.id, err = identify(cmd.Process.Pid)
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	b.mu.Lock()
	b.procs = append(b.procs, p)
	b.mu.Unlock()
	return p, nil
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.id.PID }

// Family returns the ids of all living processes that stem from this one,
// itself included, also those that became daemons.
func (p *Process) Family() []int {
	var pids []int
	for _, id := range marked(p.mark) {
		pids = append(pids, id.PID)
	}
	return pids
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running says whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the process to end and returns how it ended, as exec.Cmd.Wait.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", p.name, ctx.Err())
	}
}

// Signal sends a signal to the process alone.
func (p *Process) Signal(sig syscall.Signal) error {
	if !p.Running() {
		return nil
	}
	return p.id.signal(sig)
}

// LogPath returns the file with what the process prints.
func (p *Process) LogPath() string { return p.log }

// Log returns the last n lines of what the process printed.
func (p *Process) Log(n int) string {
	s, err := tailFile(p.log, n)
	if err != nil {
		return err.Error()
	}
	return s
}

// Stop ends the process with SIGTERM, after ten seconds with SIGKILL, and then
// everything that stems from it.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
	}
	return p.Kill(context.WithoutCancel(ctx))
}

// Kill ends the process and everything that stems from it with SIGKILL.
func (p *Process) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", p.name, ctx.Err())
	}
	if err := kill(ctx, marked(p.mark)); err != nil {
		return fmt.Errorf("end what %s started: %w", p.name, err)
	}
	p.bed.forget(p)
	return nil
}

func (b *Bed) forget(p *Process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, q := range b.procs {
		if q == p {
			b.procs = append(b.procs[:i:i], b.procs[i+1:]...)
			return
		}
	}
}
