package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func nothing(context.Context, Request) (Reply, error) { return Reply{}, nil }

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// sockPath is a path short enough for a socket, whatever the test is called.
func sockPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "asok")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s.asok")
}

// serve starts a server that the end of the test closes.
func serve(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Path == "" {
		o.Path = sockPath(t)
	}
	o.Log = zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
	s, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func dialTest(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.UnixConn)
}

// rawExchange sends bytes and reads until the server closes; a reset counts as
// the end.
func rawExchange(t testing.TB, path string, request []byte, halfClose bool) []byte {
	t.Helper()
	c := dialTest(t, path)
	c.Write(request)
	if halfClose {
		c.CloseWrite()
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, c); err != nil {
		var ne net.Error
		if ok := asNetError(err, &ne); ok && ne.Timeout() {
			t.Fatalf("server neither answers nor closes: %v", err)
		}
	}
	return buf.Bytes()
}

func asNetError(err error, target *net.Error) bool {
	e, ok := err.(net.Error)
	if ok {
		*target = e
	}
	return ok
}

func indentJSON(t testing.TB, b []byte) string {
	t.Helper()
	var buf bytes.Buffer
	if err := json.Indent(&buf, bytes.TrimSpace(b), "", "    "); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return buf.String()
}

// shapeJSON indents JSON with its key order kept and its numbers in one spelling,
// so that 1.5 and 1.500000000 are equal.
func shapeJSON(t testing.TB, b []byte) string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var w jsonWriter
	var value func()
	value = func() {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case json.Delim:
			w.open(byte(tok))
			for d.More() {
				if tok == '{' {
					k, err := d.Token()
					if err != nil {
						t.Fatal(err)
					}
					w.key(k.(string))
				}
				value()
			}
			end, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			w.close(byte(end.(json.Delim)))
		case json.Number:
			f, err := tok.Float64()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.value(f); err != nil {
				t.Fatal(err)
			}
		default:
			if err := w.value(tok); err != nil {
				t.Fatal(err)
			}
		}
	}
	value()
	return indentJSON(t, w.b)
}
