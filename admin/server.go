package admin

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Options tells a Server what to serve and what to put up with. Zero values
// mean the defaults in parentheses.
type Options struct {
	Path  string
	Mode  fs.FileMode // of the socket file, see ParseMode (as the umask leaves it)
	Table *Table
	Log   zerolog.Logger

	MaxConns       int           // connections at once (128)
	MaxRequest     int           // bytes of a request; Ceph's own limit is 1023 (64 KiB)
	ReadTimeout    time.Duration // for the whole request (5 s)
	WriteTimeout   time.Duration // for the whole reply (10 s)
	CommandTimeout time.Duration // for a command to finish (30 s)
}

func (o *Options) setDefaults() {
	o.MaxConns = cmp.Or(o.MaxConns, 128)
	o.MaxRequest = cmp.Or(o.MaxRequest, 64<<10)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, 5*time.Second)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 10*time.Second)
	o.CommandTimeout = cmp.Or(o.CommandTimeout, 30*time.Second)
}

// A connection that has not sent its request, or not taken its reply, gives way
// to a new one when all are taken. It keeps its place this long, which an honest
// client never needs.
const (
	readGrace  = 100 * time.Millisecond
	writeGrace = time.Second
)

// lateGrace is how long a handler may still answer after its deadline.
const lateGrace = 500 * time.Millisecond

// Server answers the commands of a Table on a Unix socket.
type Server struct {
	opts     Options
	listener *net.UnixListener
	file     fs.FileInfo

	ctx    context.Context // of all commands
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed sync.Once

	stopping chan struct{} // closed by Close
	room     chan struct{} // a place among the connections came free
	slots    chan struct{} // held by running handlers, also by late ones

	mu    sync.Mutex
	conns map[*connection]struct{}
}

type phase int

const (
	reading phase = iota
	running
	writing
)

// connection is one client. Its fields are guarded by Server.mu.
type connection struct {
	net.Conn
	phase phase
	since time.Time // of the phase
}

// Listen opens the socket and starts to serve. The context bounds only the
// opening. If a living daemon has the socket the error is ErrInUse.
func Listen(ctx context.Context, opts Options) (*Server, error) {
	opts.setDefaults()
	if opts.Table == nil {
		return nil, errors.New("admin socket: no command table")
	}
	l, file, err := bind(ctx, opts.Path, opts.Mode)
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts:     opts,
		listener: l,
		file:     file,
		stopping: make(chan struct{}),
		room:     make(chan struct{}, 1),
		slots:    make(chan struct{}, opts.MaxConns),
		conns:    map[*connection]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s, nil
}

// Path is where the socket is.
func (s *Server) Path() string { return s.opts.Path }

// Close removes the socket, unless it is another daemon's by now, and lets the
// commands under way finish until ctx ends; then it cancels them. It returns
// when all goroutines have ended, or with an error a little after the
// cancellation when a handler does not heed it.
func (s *Server) Close(ctx context.Context) error {
	var err error
	s.closed.Do(func() {
		err = removeOwn(s.opts.Path, s.file)
		close(s.stopping)
		s.listener.Close()
		s.closeConns(func(c *connection) bool { return c.phase == reading })
	})
	defer s.cancel()
	done := make(chan struct{})
	go func() { // ends with the last goroutine of the server
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
	}
	s.cancel()
	s.closeConns(func(*connection) bool { return true })
	select {
	case <-done:
		return err
	case <-time.After(2 * lateGrace):
		return errors.Join(err, fmt.Errorf("admin socket %s: a command does not end: %w", s.opts.Path, ctx.Err()))
	}
}

func (s *Server) closeConns(which func(*connection) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if which(c) {
			c.Close()
		}
	}
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely.
			s.opts.Log.Warn().Err(err).Msg("admin socket: accept")
			if !s.pause(time.Second) {
				return
			}
			continue
		}
		c := &connection{Conn: conn, since: time.Now()}
		if !s.admit(c) {
			conn.Close()
			return
		}
		s.wg.Go(func() {
			defer s.forget(c)
			s.serve(c)
		})
	}
}

// pause waits and says whether the server goes on.
func (s *Server) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.stopping:
		return false
	case <-s.room:
	case <-t.C:
	}
	return true
}

// admit finds a place for a new connection. When all are taken the one that has
// been idle longest goes; while none has outlived its grace the new one waits
// here, and others behind it in the queue of the socket.
func (s *Server) admit(c *connection) bool {
	for {
		wait, ok := s.tryAdmit(c)
		if ok {
			return true
		}
		if !s.pause(wait) {
			return false
		}
	}
}

func (s *Server) tryAdmit(c *connection) (wait time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.stopping:
		return 0, false
	default:
	}
	if len(s.conns) >= s.opts.MaxConns {
		now := time.Now()
		wait = time.Second
		var victim *connection
		for o := range s.conns {
			grace := readGrace
			switch o.phase {
			case running:
				continue
			case writing:
				grace = writeGrace
			}
			if left := grace - now.Sub(o.since); left > 0 {
				wait = min(wait, left)
			} else if victim == nil || o.since.Before(victim.since) {
				victim = o
			}
		}
		if victim == nil {
			return wait, false
		}
		victim.Close()
		delete(s.conns, victim)
	}
	c.since = time.Now()
	s.conns[c] = struct{}{}
	return 0, true
}

func (s *Server) forget(c *connection) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// enter moves a connection to its next phase. It fails when the connection was
// turned out meanwhile.
func (s *Server) enter(c *connection, p phase) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.phase, c.since = p, time.Now()
	_, ok := s.conns[c]
	return ok
}

func (s *Server) serve(c *connection) {
	_ = c.SetReadDeadline(time.Now().Add(s.opts.ReadTimeout))
	text, err := s.read(c)
	if err != nil || text == nil || !s.enter(c, running) {
		if errors.Is(err, syscall.EMSGSIZE) {
			s.opts.Log.Warn().Err(err).Msg("admin socket: request refused")
		}
		return
	}
	body := s.answer(text)
	if !s.enter(c, writing) {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(s.opts.WriteTimeout))
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	bufs := net.Buffers{head[:], body}
	if _, err := bufs.WriteTo(c.Conn); err != nil {
		s.opts.Log.Debug().Err(err).Msg("admin socket: reply not taken")
	}
}

// read collects one request. It returns nil when the client leaves before its
// end.
func (s *Server) read(c net.Conn) ([]byte, error) {
	buf := make([]byte, 0, min(1024, s.opts.MaxRequest+1))
	for {
		seen := len(buf)
		n, err := c.Read(buf[seen:cap(buf)])
		buf = buf[:seen+n]
		if text := frame(buf, seen); text != nil {
			return text, nil
		}
		if err != nil {
			return nil, err
		}
		if len(buf) > s.opts.MaxRequest {
			return nil, fmt.Errorf("request longer than %d bytes: %w", s.opts.MaxRequest, syscall.EMSGSIZE)
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(4*cap(buf), s.opts.MaxRequest+1))
			copy(grown, buf)
			buf = grown
		}
	}
}

// answer carries out a request and returns the body of the reply.
func (s *Server) answer(text []byte) []byte {
	req, h, err := s.opts.Table.resolve(text)
	if err != nil {
		return errorBody(err, nil)
	}
	began := time.Now()
	reply, err := s.run(h, req)
	out, rerr := req.Format.render(req.Prefix, reply)
	if err == nil {
		err = rerr
	}
	if err == nil && len(out) > math.MaxUint32 {
		err = Errorf(syscall.EFBIG, "reply of %d bytes", len(out))
		out = nil
	}
	s.opts.Log.Debug().Err(err).Str("command", req.Prefix).Dur("took", time.Since(began)).Msg("admin socket")
	if err != nil {
		return errorBody(err, out)
	}
	return out
}

type outcome struct {
	reply Reply
	err   error
}

// run calls a handler under its deadline. A handler that does not return in
// time is left behind, holding one of the slots, and its client is told.
func (s *Server) run(h Handler, req Request) (Reply, error) {
	select {
	case s.slots <- struct{}{}:
	default:
		return Reply{}, Errorf(syscall.EBUSY, "%d commands are running", cap(s.slots))
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.CommandTimeout)
	done := make(chan outcome, 1)
	s.wg.Go(func() {
		defer func() { <-s.slots }()
		defer cancel()
		done <- s.protect(ctx, h, req)
	})
	select {
	case o := <-done:
		return o.reply, o.err
	case <-ctx.Done():
	}
	late := time.NewTimer(lateGrace)
	defer late.Stop()
	select {
	case o := <-done:
		return o.reply, o.err
	case <-late.C:
		s.opts.Log.Error().Str("command", req.Prefix).Msg("admin socket: command does not end")
		return Reply{}, Errorf(ErrnoOf(context.Cause(ctx)), "%s: no answer in time", req.Prefix)
	}
}

// protect keeps a panic of one handler from ending the daemon.
func (s *Server) protect(ctx context.Context, h Handler, req Request) (o outcome) {
	defer func() {
		if p := recover(); p != nil {
			s.opts.Log.Error().Str("command", req.Prefix).Interface("panic", p).
				Bytes("stack", debug.Stack()).Msg("admin socket: command failed by panic")
			o = outcome{err: Errorf(syscall.EIO, "%s: internal error", req.Prefix)}
		}
	}()
	reply, err := h(ctx, req)
	return outcome{reply, err}
}
