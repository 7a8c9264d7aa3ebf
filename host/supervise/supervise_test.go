package supervise

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/host/internal/fakeplugin"
	"cephmirror/host/launch"
	"cephmirror/plugins"
)

func TestMain(m *testing.M) {
	fakeplugin.Serve()
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

type rig struct {
	*Supervisor
	t      *testing.T
	script *fakeplugin.Script
	stop   context.CancelFunc
	ended  chan error
}

func run(t *testing.T, script *fakeplugin.Script, change func(*Options)) *rig {
	t.Helper()
	path := fakeplugin.Install(t, script)
	opts := Options{
		Launch:         launch.Spec{Path: path, Dir: "/", Env: os.Environ(), Log: zerolog.Nop()},
		Log:            zerolog.New(zerolog.NewTestWriter(t)),
		LeaseTTL:       time.Second,
		HealthDeadline: 10 * time.Second,
		StartBudget:    10 * time.Second,
		CallGrace:      10 * time.Second,
		StopDeadline:   10 * time.Second,
		RestartMin:     10 * time.Millisecond,
		RestartMax:     100 * time.Millisecond,
		Session:        func(ctx context.Context, _ *plugins.Client, _ plugins.Info) { <-ctx.Done() },
	}
	if change != nil {
		change(&opts)
	}
	r := &rig{Supervisor: New(opts), t: t, script: script, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() { r.ended <- r.Run(ctx); close(r.ended) }()
	t.Cleanup(func() { cancel(); <-r.ended })
	return r
}

func (r *rig) waitState(want State) Status {
	r.t.Helper()
	waitFor(r.t, "state "+string(want), func() bool { return r.Status().State == want })
	return r.Status()
}

func (r *rig) lines(file string) []string {
	text, err := os.ReadFile(filepath.Join(r.script.Dir, file))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestStopsInOrder(t *testing.T) {
	r := run(t, &fakeplugin.Script{Info: plugins.Info{Kind: "cephfs", InstanceID: "7"}}, nil)
	st := r.waitState(Running)
	if st.PID == 0 || st.Info.InstanceID != "7" {
		t.Errorf("%+v", st)
	}
	waitFor(t, "a lease", func() bool { return time.Until(r.Status().LeaseUntil) > 0 })
	waitFor(t, "writes", func() bool { return len(r.lines("writes")) > 0 })
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if len(r.lines("stopped")) != 1 || alive(st.PID) || r.Status().State != Stopped {
		t.Errorf("stopped %v, alive %v, %+v", r.lines("stopped"), alive(st.PID), r.Status())
	}
}

func TestStopDeadline(t *testing.T) {
	r := run(t, &fakeplugin.Script{StopDelay: time.Hour}, func(o *Options) { o.StopDeadline = 100 * time.Millisecond })
	st := r.waitState(Running)
	began := time.Now()
	r.stop()
	<-r.ended
	if took := time.Since(began); took > 10*time.Second || alive(st.PID) {
		t.Errorf("took %v, alive %v", took, alive(st.PID))
	}
}

func TestRestartsAfterACrash(t *testing.T) {
	sessions := make(chan struct{}, 100)
	r := run(t, &fakeplugin.Script{}, func(o *Options) {
		o.RestartMin, o.RestartMax = 300*time.Millisecond, 300*time.Millisecond
		o.Session = func(ctx context.Context, _ *plugins.Client, _ plugins.Info) { <-ctx.Done(); sessions <- struct{}{} }
	})
	for n := 1; n <= 2; n++ {
		before := r.waitState(Running)
		if err := os.WriteFile(filepath.Join(r.script.Dir, "crash"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		st := r.waitState(Waiting)
		if !strings.Contains(st.LastError, "panic: crash on demand") || st.NextTry.IsZero() || st.PID != 0 {
			t.Errorf("%+v", st)
		}
		if _, err := r.Client(); !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "next try in 0.") {
			t.Errorf("Client: %v", err)
		}
		waitFor(t, "a new process", func() bool { st = r.Status(); return st.State == Running && st.PID != before.PID })
		if st.Restarts != n {
			t.Errorf("%d restarts, want %d", st.Restarts, n)
		}
		<-sessions
	}
}

func TestBackOffGrowsAndIsCapped(t *testing.T) {
	r := run(t, &fakeplugin.Script{StartErrno: int(syscall.ENOENT)}, func(o *Options) {
		o.RestartMin, o.RestartMax = 20*time.Millisecond, 80*time.Millisecond
	})
	r.waitState(Running)
	if err := os.WriteFile(filepath.Join(r.script.Dir, "start-error"), []byte("no keyring in /x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.script.Dir, "crash"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// It worked once: errors of Start do not end the supervisor any more.
	waitFor(t, "six restarts", func() bool { return r.Status().Restarts >= 6 })
	var st Status
	waitFor(t, "a wait", func() bool { st = r.Status(); return st.State == Waiting })
	if st.LastError != "no keyring in /x" {
		t.Errorf("%q", st.LastError)
	}
	if pause := st.NextTry.Sub(st.LastErrorAt); pause < 60*time.Millisecond || pause > 110*time.Millisecond {
		t.Errorf("paused %v, want about 80 ms", pause)
	}
	if err := os.Remove(filepath.Join(r.script.Dir, "start-error")); err != nil {
		t.Fatal(err)
	}
	r.waitState(Running)
}

func TestFirstStartFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "start-error"), []byte("no keyring in /x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(t, &fakeplugin.Script{Dir: dir, StartErrno: int(syscall.ENOENT)}, nil)
	if err := <-r.ended; !errors.Is(err, syscall.ENOENT) || err.Error() != "no keyring in /x" {
		t.Errorf("Run: %v", err)
	}
	if n := len(r.lines("pids")); n != 1 {
		t.Errorf("tried %d times", n)
	}
}

func TestFirstStartCrashes(t *testing.T) {
	r := run(t, &fakeplugin.Script{CrashFirst: 100}, nil)
	if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "panic: crash on demand") {
		t.Errorf("Run: %v", err)
	}
	if n := len(r.lines("pids")); n != firstAttempts {
		t.Errorf("tried %d times", n)
	}
}

func TestFirstStartRecovers(t *testing.T) {
	r := run(t, &fakeplugin.Script{CrashFirst: firstAttempts - 1}, nil)
	r.waitState(Running)
}

func TestMissingExecutable(t *testing.T) {
	r := run(t, &fakeplugin.Script{}, func(o *Options) { o.Launch.Path = "/no/such/plugin" })
	if err := <-r.ended; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run: %v", err)
	}
}

func TestStartBudget(t *testing.T) {
	r := run(t, &fakeplugin.Script{StartDelay: time.Hour}, func(o *Options) { o.StartBudget = 200 * time.Millisecond })
	if err := <-r.ended; err == nil || err.Error() != "plugin did not connect to the local cluster within 200ms" {
		t.Errorf("Run: %v", err)
	}
	if pid := r.lines("pids"); len(pid) != 1 {
		t.Errorf("%v", pid)
	}
}

func TestStopDuringStart(t *testing.T) {
	r := run(t, &fakeplugin.Script{StartDelay: time.Hour}, nil)
	waitFor(t, "a process", func() bool { return r.Status().PID != 0 })
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestHangingCallIsKilled(t *testing.T) {
	r := run(t, &fakeplugin.Script{}, func(o *Options) { o.CallGrace = 100 * time.Millisecond })
	before := r.waitState(Running)
	client, err := r.Client()
	if err != nil {
		t.Fatal(err)
	}
	call := func(prefix string) plugins.Result {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		return client.Call(ctx, plugins.Command{Prefix: prefix})
	}
	if r := call("wait"); r.Errno != int(syscall.ETIMEDOUT) {
		t.Errorf("wait: %+v", r)
	}
	if r := call("hang"); r.Errno != int(syscall.ETIMEDOUT) {
		t.Errorf("hang: %+v", r)
	}
	waitFor(t, "a restart", func() bool { return r.Status().Restarts == 1 })
	st := r.waitState(Running)
	if !strings.HasPrefix(st.LastError, `"Call hang" hangs in the plugin`) || alive(before.PID) {
		t.Errorf("last error %q, alive %v", st.LastError, alive(before.PID))
	}
}

func TestFrozenPluginIsKilled(t *testing.T) {
	r := run(t, &fakeplugin.Script{}, func(o *Options) { o.HealthDeadline = 500 * time.Millisecond })
	before := r.waitState(Running)
	if err := syscall.Kill(before.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a restart", func() bool { return r.Status().Restarts == 1 })
	if st := r.waitState(Running); !strings.Contains(st.LastError, "not healthy") || alive(before.PID) {
		t.Errorf("last error %q", st.LastError)
	}
}

// A plugin that was frozen for longer than its lease must see it expired when
// it wakes up.
func TestThawedPluginDoesNotWriteWithoutLease(t *testing.T) {
	r := run(t, &fakeplugin.Script{}, func(o *Options) { o.LeaseTTL = 300 * time.Millisecond; o.HealthDeadline = time.Hour })
	st := r.waitState(Running)
	waitFor(t, "writes", func() bool { return len(r.lines("writes")) > 0 })
	if err := syscall.Kill(st.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The freeze itself must outlast the lease.
	time.Sleep(600 * time.Millisecond)
	frozen := len(r.lines("writes"))
	if err := syscall.Kill(st.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Writes begin again only with a new lease.
	waitFor(t, "writes again", func() bool { return len(r.lines("writes")) > frozen })
	waitFor(t, "a new lease", func() bool { return time.Until(r.Status().LeaseUntil) > 0 })
	if r.Status().Restarts != 0 {
		t.Error("restarted")
	}
}
