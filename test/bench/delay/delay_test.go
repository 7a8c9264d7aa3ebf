package delay

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestProxy(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // gives back what it gets
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	const rtt = 60 * time.Millisecond
	p, err := New([]int{port}, rtt)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: p.Ports()[port]})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	small := []byte("ping")
	for range 3 {
		begun := time.Now()
		if _, err := c.Write(small); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(small))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, small) {
			t.Fatalf("%q, %v", got, err)
		}
		if took := time.Since(begun); took < rtt {
			t.Errorf("a round trip took %v", took)
		}
	}
	p.Cut()
	if _, err := c.Write(small); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(3 * rtt)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while cut, %d bytes came: %v", n, err)
	}
	p.Mend()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	late := make([]byte, len(small))
	if _, err := io.ReadFull(c, late); err != nil || !bytes.Equal(late, small) {
		t.Fatalf("once mended: %q, %v", late, err)
	}
	large := make([]byte, 32<<20)
	if _, err := rand.Read(large); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = c.Write(large)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes of %d came back (%v), equal: %v", len(got), len(large), err, bytes.Equal(got, large))
	}
}

// A connection to a port where nobody listens is closed.
func TestNobody(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	p, err := New([]int{port}, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, err := net.Dial("tcp4", p.listen[port].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came", n)
	}
}
