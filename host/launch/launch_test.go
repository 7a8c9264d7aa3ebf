package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/host/internal/fakeplugin"
	"cephmirror/plugins"
)

func TestMain(m *testing.M) {
	fakeplugin.Serve()
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func start(t *testing.T, s *fakeplugin.Script) (*Process, *buffer) {
	t.Helper()
	log := &buffer{}
	path := fakeplugin.Install(t, s)
	p, err := Start(t.Context(), Spec{Path: path, Dir: "/", Env: os.Environ(), Log: zerolog.New(log), LogLevel: zerolog.DebugLevel})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p, log
}

func TestOutputReachesTheLog(t *testing.T) {
	p, log := start(t, &fakeplugin.Script{Info: plugins.Info{Kind: "cephfs"}})
	if info, err := p.Client().Start(t.Context(), plugins.Config{}); err != nil || info.Kind != "cephfs" {
		t.Fatalf("%+v, %v", info, err)
	}
	for _, want := range []string{
		`{"level":"warn","field":"kept","n":7,"message":"fake started"}`,
		`{"level":"info","stderr":"raw","message":"a line through Go's stderr"}`,
		`{"level":"info","stderr":"raw","message":"a line that a C library prints"}`,
	} {
		waitFor(t, want+" in the log", func() bool { return strings.Contains(log.String(), want) })
	}
	p.Close()
	select {
	case <-p.Done():
	default:
		t.Error("Close returned before the end of the process")
	}
}

func TestCrashIsExplained(t *testing.T) {
	s := &fakeplugin.Script{}
	p, _ := start(t, s)
	if _, err := p.Client().Start(t.Context(), plugins.Config{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "crash"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatal("no crash")
	}
	p.Close() // reads the rest of the output
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "exit status 2; its last output: panic: crash on demand") {
		t.Errorf("Err: %v", err)
	}
	if r := p.Client().Call(t.Context(), plugins.Command{Prefix: "x"}); r.Errno == 0 {
		t.Error("a dead plugin answered")
	}
}

func TestStartErrors(t *testing.T) {
	spec := func(path string) Spec {
		return Spec{Path: path, Dir: "/", Env: os.Environ(), Log: zerolog.Nop()}
	}
	t.Run("missing", func(t *testing.T) {
		_, err := Start(t.Context(), spec("/no/such/plugin"))
		if err == nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/plugin") {
			t.Errorf("%v", err)
		}
	})
	t.Run("crash", func(t *testing.T) {
		path := fakeplugin.Install(t, &fakeplugin.Script{CrashFirst: 1})
		_, err := Start(t.Context(), spec(path))
		if err == nil || !strings.Contains(err.Error(), "panic: crash on demand") {
			t.Errorf("%v", err)
		}
	})
	t.Run("mute", func(t *testing.T) {
		path := fakeplugin.Install(t, &fakeplugin.Script{Mute: true})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := Start(ctx, spec(path)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestKillOfAFrozenPlugin(t *testing.T) {
	p, _ := start(t, &fakeplugin.Script{})
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.Close()
	if took := time.Since(began); took > 2*exitGrace {
		t.Errorf("took %v", took)
	}
}

func TestNothingIsLeftInTheTemporaryDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	p, _ := start(t, &fakeplugin.Script{})
	p.Kill()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "plugin") {
			t.Errorf("left: %s", e.Name())
		}
	}
}

func TestOutputLines(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`{"level":"debug","a":{"b":[1,2]},"message":"m","c":null}`, `{"level":"debug","a":{"b":[1,2]},"c":null,"message":"m"}`},
		{`{"@level":"warn","@message":"m","@module":"x","@timestamp":"2024"}`, `{"level":"warn","module":"x","message":"m"}`},
		{`{"level":"fatal","message":"m"}`, `{"level":"error","message":"m"}`},
		{`{"not":"a log line"}`, `{"level":"info","stderr":"raw","message":"{\"not\":\"a log line\"}"}`},
		{"plain\r", `{"level":"info","stderr":"raw","message":"plain"}`},
		{"2024-01-01T00:00:00 7f -1 auth: no keyring", `{"level":"error","stderr":"raw","message":"2024-01-01T00:00:00 7f -1 auth: no keyring"}`},
		{"panic: oh", `{"level":"error","stderr":"raw","message":"panic: oh"}`},
		{"  ", ""},
	} {
		var log bytes.Buffer
		o := newOutput(zerolog.New(&log))
		w := o.stream()
		half := len(tc.in) / 2
		for _, part := range []string{tc.in[:half], tc.in[half:], "\n"} {
			if _, err := w.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.TrimSpace(log.String()); got != tc.want {
			t.Errorf("%q\n got %s\nwant %s", tc.in, got, tc.want)
		}
	}
}

func TestOutputIsBounded(t *testing.T) {
	var log bytes.Buffer
	o := newOutput(zerolog.New(&log))
	w := o.stream()
	if _, err := w.Write(bytes.Repeat([]byte("x"), 3*maxLine+10)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d pieces", n)
	}
	if n := len(o.lastWords(time.Now())); n > keptWords*(maxWord+8) {
		t.Errorf("%d bytes of last words", n)
	}
}

func TestLastWords(t *testing.T) {
	o := newOutput(zerolog.Nop())
	w := o.stream()
	for _, line := range []string{"ordinary", `{"level":"error","error":"no such file","message":"cannot go on"}`, `{"level":"info","message":"not this"}`} {
		if _, err := w.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if got := o.lastWords(time.Now()); got != "ordinary | cannot go on: no such file" {
		t.Errorf("%q", got)
	}
	if got := o.lastWords(time.Now().Add(time.Hour)); got != "" {
		t.Errorf("old lines: %q", got)
	}
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte(`{"level":"info","message":"x","a":1}` + "\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var log bytes.Buffer
		w := newOutput(zerolog.New(&log)).stream()
		_, _ = w.Write(append(in, '\n'))
		for _, line := range bytes.Split(bytes.TrimSpace(log.Bytes()), []byte("\n")) {
			if len(line) > 0 && !json.Valid(line) {
				t.Errorf("not JSON: %q", line)
			}
		}
	})
}
