package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"cephmirror/test/cephtree"
)

// TestOpenFiles makes snapshots while another client has files open, with data
// and attributes that it has not flushed.
func TestOpenFiles(t *testing.T) {
	e := need(t)
	e.mirror(t)
	e.openFiles(t, func(m cephtree.Maker) cephtree.Maker { return m })
}

// openFiles does so in a place that is found in each mirrored directory.
func (e *env) openFiles(t *testing.T, place func(cephtree.Maker) cephtree.Maker) {
	const size = 6 * mib
	cases := []struct {
		name  string
		write func(w *writer)
	}{
		{"overwritten", func(w *writer) { w.at(cephtree.Data(2, 3*mib), mib+5) }},
		{"overwritten in small pieces", func(w *writer) {
			for i := range 50 {
				w.at([]byte(fmt.Sprint("piece ", i)), int64(i)*100000)
			}
		}},
		{"one byte", func(w *writer) { w.at([]byte("x"), 4*mib) }},
		{"extended", func(w *writer) { w.at(cephtree.Data(2, 2*mib), size) }},
		{"extended by a byte", func(w *writer) { w.at([]byte("x"), size) }},
		{"extended far", func(w *writer) { w.at([]byte("x"), 50*mib) }},
		{"truncated", func(w *writer) { w.truncate(mib + 1) }},
		{"truncated to nothing", func(w *writer) { w.truncate(0) }},
		{"truncated and rewritten", func(w *writer) { w.truncate(0); w.at(cephtree.Data(3, size), 0) }},
		{"truncated up", func(w *writer) { w.truncate(9 * mib) }},
		{"overwritten and chmod", func(w *writer) { w.at([]byte("x"), 0); w.m.Chmod("f", 0o600) }},
		{"xattr", func(w *writer) { w.at([]byte("x"), 0); w.m.SetXattr("f", "user.a", "b") }},
		{"mtime restored", func(w *writer) { restored(w.m, "f", func() { w.at([]byte("x"), 5) }) }},
		{"new file", func(w *writer) {
			w.f = w.m.Open("new", syscall.O_CREAT|syscall.O_RDWR)
			w.at(cephtree.Data(3, 100000), 0)
		}},
		{"new file, removed at once", func(w *writer) {
			w.f = w.m.Open("new", syscall.O_CREAT|syscall.O_RDWR)
			w.at(cephtree.Data(3, 100000), 0)
			w.m.Remove("new")
		}},
		{"renamed while open", func(w *writer) { w.at([]byte("x"), 5); w.m.Rename("f", "g"); w.at([]byte("y"), 5*mib) }},
		{"through another hard link", func(w *writer) { w.m.Link("f", "g"); w.at([]byte("x"), 5) }},
	}
	t.Run("group", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				m := e.newDir(t)
				in := place(m)
				in.Write("f", cephtree.Data(1, size))
				in.Write("other", nil)
				m.Snap("s1")
				e.track(t, m.Root())
				e.wait(t, m, "s1")
				client, err := cephtree.Open(e.a.Conf(), fsName)
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				w := &writer{t: t, m: in.With(client)}
				w.f = w.m.Open("f", syscall.O_RDWR)
				c.write(w)
				m.Snap("s2") // by another client than the writer
				w.at([]byte("later than s2"), 17)
				m.Snap("s3")
				e.wait(t, m, "s2", "s3")
				if err := w.f.Close(); err != nil {
					t.Error(err)
				}
				m.Snap("s4")
				e.waitSame(t, m, "s1", "s2", "s3", "s4")
			})
		}
	})
}

// writer is a client that has a file open.
type writer struct {
	t *testing.T
	m cephtree.Maker
	f interface {
		WriteAt([]byte, int64) (int, error)
		Truncate(int64) error
		Close() error
	}
}

func (w *writer) at(data []byte, offset int64) {
	w.t.Helper()
	if n, err := w.f.WriteAt(data, offset); err != nil || n != len(data) {
		w.t.Fatalf("writing %d bytes: %d, %v", len(data), n, err)
	}
}

func (w *writer) truncate(size int64) {
	w.t.Helper()
	if err := w.f.Truncate(size); err != nil {
		w.t.Fatal(err)
	}
}

// TestBusyWriter writes all the time while snapshots are made.
func TestBusyWriter(t *testing.T) {
	e := need(t)
	once(t)
	e.mirror(t)
	m := e.newDir(t)
	m.Write("log", nil)
	m.Write("base", make([]byte, 8*mib))
	m.Snap("s0")
	e.track(t, m.Root())
	client, err := cephtree.Open(e.a.Conf(), fsName)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		log, err := client.Open(m.Root()+"/log", syscall.O_WRONLY, 0)
		if err != nil {
			done <- err
			return
		}
		base, err := client.Open(m.Root()+"/base", syscall.O_WRONLY, 0)
		if err != nil {
			done <- err
			return
		}
		var at int64
		for i := 0; ; i++ {
			select {
			case <-stop:
				_ = log.Close()
				done <- base.Close()
				return
			default:
			}
			line := []byte(fmt.Sprintf("line %d\n", i))
			if _, err := log.WriteAt(line, at); err != nil {
				done <- err
				return
			}
			at += int64(len(line))
			if _, err := base.WriteAt(cephtree.Data(uint64(i), 4096), int64(i*7919%2000)*4096); err != nil {
				done <- err
				return
			}
		}
	}()
	var names []string
	for i := range 8 {
		names = append(names, fmt.Sprintf("s%d", i+1))
		m.Snap(names[i])
		e.wait(t, m, names[i])
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	m.Snap("last")
	e.waitSame(t, m, append(names, "last")...)
}
