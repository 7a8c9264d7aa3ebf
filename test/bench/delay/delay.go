// Package delay makes a network connection longer: whatever goes through a
// Proxy takes its time, each way, without being slowed down otherwise. It can be
// cut, too.
//
// Ceph's clients are told by the cluster to which addresses to connect, so a
// proxy at another address would be passed by. Redirect therefore changes what
// connect means to a program.
package delay

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Proxy listens on behalf of some ports of this machine.
type Proxy struct {
	each   time.Duration // each way
	listen map[int]net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	count int
	done  bool
	gate  chan struct{} // closed unless nothing passes
	wg    sync.WaitGroup
}

// New returns a Proxy for ports on 127.0.0.1 that adds a round-trip time.
func New(ports []int, roundTrip time.Duration) (*Proxy, error) {
	p := &Proxy{each: roundTrip / 2, listen: make(map[int]net.Listener), conns: make(map[net.Conn]bool), gate: make(chan struct{})}
	close(p.gate)
	for _, port := range ports {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("listening for port %d: %w", port, err)
		}
		p.listen[port] = l
		p.wg.Go(func() { p.accept(l, port) })
	}
	return p, nil
}

// Cut lets nothing pass any more, as if a cable were pulled: all connections
// stand still, and new ones are not answered.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.done && p.open() {
		p.gate = make(chan struct{})
	}
}

// Mend ends what Cut has begun. What was sent meanwhile arrives now.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open() {
		close(p.gate)
	}
}

func (p *Proxy) open() bool {
	select {
	case <-p.gate:
		return true
	default:
		return false
	}
}

// await waits until something may pass.
func (p *Proxy) await() {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	<-gate
}

// Close ends all connections and waits for that.
func (p *Proxy) Close() {
	p.Mend()
	p.mu.Lock()
	p.done = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	for _, l := range p.listen {
		l.Close()
	}
	p.wg.Wait()
}

// Count is how many connections there were.
func (p *Proxy) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// Ports maps ports to those that take their place.
func (p *Proxy) Ports() map[int]int {
	out := make(map[int]int)
	for port, l := range p.listen {
		out[port] = l.Addr().(*net.TCPAddr).Port
	}
	return out
}

func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close()
}

func (p *Proxy) accept(l net.Listener, port int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !p.keep(c) {
			return
		}
		p.mu.Lock()
		p.count++
		p.mu.Unlock()
		p.wg.Go(func() { p.serve(c, port) })
	}
}

func (p *Proxy) serve(client net.Conn, port int) {
	defer p.drop(client)
	p.await()
	server, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)
	var both sync.WaitGroup
	both.Go(func() { p.pass(client, server) })
	both.Go(func() { p.pass(server, client) })
	both.Wait()
}

// chunk is what was read at once.
type chunk struct {
	due  time.Time
	data *[chunkSize]byte
	n    int
}

const (
	chunkSize = 128 << 10
	inFlight  = 1024 // chunks
)

// pass brings what one side sends to the other, later.
func (p *Proxy) pass(from, to net.Conn) {
	pool := sync.Pool{New: func() any { return new([chunkSize]byte) }}
	line := make(chan chunk, inFlight)
	var sender sync.WaitGroup
	sender.Go(func() {
		var err error
		for c := range line {
			if wait := time.Until(c.due); wait > 0 {
				time.Sleep(wait)
			}
			p.await()
			if err == nil {
				if _, err = to.Write(c.data[:c.n]); err != nil {
					from.Close() // nothing more is wanted
				}
			}
			pool.Put(c.data)
		}
		p.await()
		if c, ok := to.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	})
	for {
		b := pool.Get().(*[chunkSize]byte)
		n, err := from.Read(b[:])
		if n > 0 {
			line <- chunk{time.Now().Add(p.each), b, n}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.await()
				to.Close()
			}
			break
		}
	}
	close(line)
	sender.Wait()
}

//go:embed redirect/redirect.c
var source string

// Redirect returns what to add to the environment of a program that links libc,
// so that it connects to the proxy where it means a port of its. dir is for the
// library that does it. A C compiler is needed.
func (p *Proxy) Redirect(ctx context.Context, dir string) ([]string, error) {
	c, lib := filepath.Join(dir, "redirect.c"), filepath.Join(dir, "redirect.so")
	if err := os.WriteFile(c, []byte(source), 0o600); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "cc", "-shared", "-fPIC", "-O2", "-o", lib, c, "-ldl").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compiling what redirects connections: %w: %s", err, strings.TrimSpace(string(out)))
	}
	var pairs []string
	for from, to := range p.Ports() {
		pairs = append(pairs, fmt.Sprintf("%d=%d", from, to))
	}
	slices.Sort(pairs)
	return []string{"LD_PRELOAD=" + lib, "REDIRECT_PORTS=" + strings.Join(pairs, ",")}, nil
}
