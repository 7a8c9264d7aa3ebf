package admin

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// goodClient asks for the version and returns how long that took.
func goodClient(t testing.TB, path string) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	began := time.Now()
	out, err := Call(ctx, path, "version", nil, "json")
	if err != nil || !bytes.Contains(out, []byte("20.2.4")) {
		t.Errorf("good client: %q %v", out, err)
	}
	return time.Since(began)
}

func TestParseMode(t *testing.T) {
	for _, c := range []struct {
		text string
		want os.FileMode
		fail bool
	}{
		{"", 0, false},
		{"0755", os.ModeSocket | 0o755, false},
		{"770", os.ModeSocket | 0o770, false},
		{"0", os.ModeSocket, false},
		{"0777", os.ModeSocket | 0o777, false},
		{"01777", 0, true},
		{"0888", 0, true},
		{"rwx", 0, true},
		{"-1", 0, true},
		{"0755 ", 0, true},
	} {
		if got, err := ParseMode(c.text); got != c.want || (err != nil) != c.fail {
			t.Errorf("%q: %v, %v", c.text, got, err)
		}
	}
}

// A mode without any bits is one, too.
func TestSocketForNobody(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	path := sockPath(t)
	serve(t, Options{Table: tb, Path: path, Mode: must[os.FileMode](t)(ParseMode("0"))})
	if info := must[os.FileInfo](t)(os.Lstat(path)); info.Mode() != os.ModeSocket {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestSocketFile(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	path := sockPath(t)
	s := serve(t, Options{Table: tb, Path: path, Mode: 0o600})
	info := must[os.FileInfo](t)(os.Lstat(path))
	if info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("mode %v", info.Mode())
	}
	// A second daemon does not take a living one's socket.
	if _, err := Listen(context.Background(), Options{Table: tb, Path: path}); !errors.Is(err, ErrInUse) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second daemon: %v", err)
	}
	goodClient(t, path)
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// leftover makes a socket file as a killed daemon leaves it.
func leftover(t *testing.T, path string) {
	t.Helper()
	l := must[*net.UnixListener](t)(net.ListenUnix("unix", &net.UnixAddr{Name: path}))
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestStaleSocket(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	t.Run("left by a crash", func(t *testing.T) {
		path := sockPath(t)
		leftover(t, path)
		goodClient(t, serve(t, Options{Table: tb, Path: path}).Path())
	})
	t.Run("somebody who does not answer", func(t *testing.T) {
		path := sockPath(t)
		l := must[*net.UnixListener](t)(net.ListenUnix("unix", &net.UnixAddr{Name: path}))
		defer l.Close()
		l.SetUnlinkOnClose(false)
		goodClient(t, serve(t, Options{Table: tb, Path: path}).Path())
	})
	t.Run("no socket at all", func(t *testing.T) {
		path := sockPath(t)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(context.Background(), Options{Table: tb, Path: path}); !errors.Is(err, syscall.EEXIST) {
			t.Errorf("%v", err)
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("file is gone")
		}
	})
	t.Run("many find it at once", func(t *testing.T) {
		path := sockPath(t)
		leftover(t, path)
		var won atomic.Int32
		var servers sync.Map
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				s, err := Listen(context.Background(), Options{Table: tb, Path: path})
				switch {
				case err == nil:
					won.Add(1)
					servers.Store(s, nil)
				case !errors.Is(err, ErrInUse):
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d servers on one path", won.Load())
		}
		goodClient(t, path)
		servers.Range(func(s, _ any) bool { return s.(*Server).Close(context.Background()) == nil })
	})
}

func TestCloseLeavesForeignSocket(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	path := sockPath(t)
	s := serve(t, Options{Table: tb, Path: path})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := serve(t, Options{Table: tb, Path: path})
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	goodClient(t, other.Path())
}

func TestBadPaths(t *testing.T) {
	var tb Table
	for path, want := range map[string]error{
		"":                       nil,
		"@abstract":              syscall.EINVAL,
		strings.Repeat("x", 108): syscall.ENAMETOOLONG,
		"/nonexistent/dir/s":     syscall.ENOENT,
	} {
		if s, err := Listen(context.Background(), Options{Table: &tb, Path: path}); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: %v %v", path, s, err)
		}
	}
	if _, err := Call(context.Background(), strings.Repeat("x", 108), "version", nil, ""); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("client: %v", err)
	}
	dir := must[string](t)(os.MkdirTemp("", "asok"))
	defer os.RemoveAll(dir)
	long := filepath.Join(dir, strings.Repeat("x", maxPath-len(dir)-1))
	s := serve(t, Options{Table: &tb, Path: long})
	s.Close(context.Background())
}

// Requests of every wrong kind, each on its own connection, while a good client
// keeps asking.
func TestHostileClients(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	s := serve(t, Options{Table: tb, ReadTimeout: time.Second})
	stop := make(chan struct{})
	var good sync.WaitGroup
	var asked int
	var worst time.Duration
	good.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				asked++
				worst = max(worst, goodClient(t, s.Path()))
			}
		}
	})
	deep := strings.Repeat("[", 30000)
	var wg sync.WaitGroup
	for _, c := range []struct {
		name, send string
		half       bool
		answered   bool
	}{
		{"garbage", "\xff\xfe\x01garbage\x00", false, true},
		{"no json", "GET / HTTP/1.1\r\n\r\n", false, true},
		{"deep", `{"prefix":` + deep + "\n", false, true},
		{"closed deep", `{"prefix":` + deep + strings.Repeat("]", 30000) + "}\n", false, true},
		{"oversize", strings.Repeat("x", 70000), false, false},
		{"oversize with end", strings.Repeat("x", 70000) + "\x00", false, false},
		{"huge", strings.Repeat("y", 4<<20), false, false},
		{"half", `{"prefix":"vers`, true, false},
		{"half, left open", `{"prefix":"vers`, false, false},
		{"nothing", "", true, false},
		{"binary half", "\x00\x00", true, false},
		{"longest allowed", `{"prefix":"` + strings.Repeat("p", 65000) + "\"}\n", false, true},
		{"many keys", `{"prefix":"version"` + strings.Repeat(`,"k":1`, 9000) + "}\n", false, true},
		{"two requests", "{\"prefix\":\"0\"}\n{\"prefix\":\"0\"}\n", false, true},
	} {
		wg.Go(func() {
			got := rawExchange(t, s.Path(), []byte(c.send), c.half)
			if (len(got) >= 4) != c.answered {
				t.Errorf("%s: got %.80q", c.name, got)
			}
			if len(got) >= 4 && int(binary.BigEndian.Uint32(got)) != len(got)-4 {
				t.Errorf("%s: wrong length in %.80q", c.name, got)
			}
		})
	}
	wg.Wait()
	close(stop)
	good.Wait()
	if asked == 0 || worst > 5*time.Second {
		t.Errorf("good client: %d answers, slowest %v", asked, worst)
	}
}

// 500 clients connect and stay silent; more feed a byte now and then. None may
// keep a good client from its answer for long, and each is thrown out in time.
func TestIdleFlood(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	s := serve(t, Options{Table: tb, ReadTimeout: 3 * time.Second})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var open atomic.Int32
	var wg sync.WaitGroup
	began := time.Now()
	for i := range 500 {
		wg.Go(func() {
			c, err := dial(ctx, s.Path())
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			defer c.Close()
			open.Add(1)
			defer open.Add(-1)
			if i%5 == 0 { // slow loris
				wg.Go(func() {
					for {
						if _, err := c.Write([]byte("{")); err != nil {
							return
						}
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, err := io.Copy(io.Discard, c); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("client %d: %d bytes, %v", i, n, err)
			}
		})
	}
	for range 50 {
		if d := goodClient(t, s.Path()); d > 2*time.Second {
			t.Errorf("good client waited %v with %d others", d, open.Load())
		}
	}
	s.mu.Lock()
	held := len(s.conns)
	s.mu.Unlock()
	if held > s.opts.MaxConns {
		t.Errorf("%d connections held", held)
	}
	wg.Wait()
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("the last idle client was held for %v", d)
	}
	eventually(t, "all connections forgotten", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) == 0
	})
}

// Clients that ask for much and take nothing must not hold all places.
func TestReplyNotTaken(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	big := bytes.Repeat([]byte("x"), 8<<20)
	if err := tb.Add("big", "", func(context.Context, Request) (Reply, error) { return Reply{Raw: big}, nil }); err != nil {
		t.Fatal(err)
	}
	s := serve(t, Options{Table: tb, MaxConns: 4, WriteTimeout: time.Minute})
	for range 8 {
		dialTest(t, s.Path()).Write([]byte("{\"prefix\":\"big\"}\n"))
	}
	goodClient(t, s.Path())
	out, err := Call(context.Background(), s.Path(), "big", nil, "")
	if err != nil || !bytes.Equal(out, big) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func TestCommandThatHangs(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	release := make(chan struct{})
	add := func(name string, h Handler) {
		if err := tb.Add(name, "", h); err != nil {
			t.Fatal(err)
		}
	}
	add("heeds", func(ctx context.Context, _ Request) (Reply, error) {
		<-ctx.Done()
		return Reply{JSON: []byte(`{"so":"far"}`)}, fmt.Errorf("peer: %w", ctx.Err())
	})
	add("deaf", func(context.Context, Request) (Reply, error) {
		<-release
		return Reply{}, nil
	})
	add("panics", func(context.Context, Request) (Reply, error) { panic("secret") })
	s := serve(t, Options{Table: tb, CommandTimeout: 200 * time.Millisecond, MaxConns: 3})
	t.Cleanup(func() { close(release) })
	var wg sync.WaitGroup
	for prefix, want := range map[string]string{
		"heeds":  "ERROR: (110) Connection timed out\npeer: context deadline exceeded\n{\"so\":\"far\"}",
		"deaf":   "ERROR: (110) Connection timed out\ndeaf: no answer in time\n",
		"panics": "ERROR: (5) Input/output error\npanics: internal error\n",
	} {
		wg.Go(func() {
			out, err := Call(context.Background(), s.Path(), prefix, nil, "json")
			if err == nil || string(out) != want {
				t.Errorf("%s: %q %v", prefix, out, err)
			}
		})
	}
	wg.Wait()
	goodClient(t, s.Path())
	// Two more deaf ones take the last slots; then commands are refused, and
	// still nobody waits.
	for range 2 {
		if _, err := Call(context.Background(), s.Path(), "deaf", nil, ""); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("%v", err)
		}
	}
	if _, err := Call(context.Background(), s.Path(), "version", nil, ""); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("%v", err)
	}
}

func TestCloseWaitsForCommands(t *testing.T) {
	var tb Table
	started, finish := make(chan struct{}, 2), make(chan struct{})
	if err := tb.Add("slow", "", func(ctx context.Context, _ Request) (Reply, error) {
		started <- struct{}{}
		select {
		case <-finish:
			return Reply{Raw: []byte("done")}, nil
		case <-ctx.Done():
			return Reply{}, ctx.Err()
		}
	}); err != nil {
		t.Fatal(err)
	}
	call := func(s *Server) (result chan string) {
		result = make(chan string, 1)
		go func() {
			out, err := Call(context.Background(), s.Path(), "slow", nil, "")
			result <- fmt.Sprint(string(out), err)
		}()
		<-started
		return result
	}
	t.Run("finished", func(t *testing.T) {
		s := serve(t, Options{Table: &tb})
		idle := dialTest(t, s.Path())
		r := call(s)
		closed := make(chan error, 1)
		go func() { closed <- s.Close(context.Background()) }()
		if _, err := idle.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("idle client: %v", err)
		}
		if _, err := net.Dial("unix", s.Path()); err == nil {
			t.Error("still listening")
		}
		finish <- struct{}{}
		if got := <-r; got != "done<nil>" {
			t.Errorf("client got %q", got)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		s := serve(t, Options{Table: &tb})
		r := call(s)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		if got := <-r; strings.HasPrefix(got, "done") {
			t.Errorf("client got %q", got)
		}
	})
}

func TestClientErrors(t *testing.T) {
	reply := func(t *testing.T, raw string) string {
		path := sockPath(t)
		l := must[net.Listener](t)(net.Listen("unix", path))
		done := make(chan struct{})
		t.Cleanup(func() { l.Close(); <-done })
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.ReadFull(c, make([]byte, 10))
				if raw == "hang" {
					defer c.Close()
					continue
				}
				io.WriteString(c, raw)
				c.Close()
			}
		}()
		return path
	}
	for raw, want := range map[string]error{
		"":                     io.EOF,
		"\x00\x00":             io.ErrUnexpectedEOF,
		"\x00\x00\x00\x09abc":  io.ErrUnexpectedEOF,
		"\xff\xff\xff\xff":     syscall.EMSGSIZE,
		"\x00\x00\x00\x00":     nil,
		"\x00\x00\x00\x02{}xx": nil,
	} {
		if _, err := Call(context.Background(), reply(t, raw), "x", nil, ""); !errors.Is(err, want) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q: %v, want %v", raw, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := Call(ctx, reply(t, "hang"), "x", nil, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := Call(context.Background(), sockPath(t), "x", nil, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Call(context.Background(), "x", "x", map[string]any{"f": func() {}}, ""); err == nil {
		t.Error("function sent")
	}
}
