package plugins

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Env is what Serve gives a plugin.
type Env struct {
	// Lease is renewed by the host; nothing may be written without it.
	Lease *Lease
	// Log reaches the host's log with level and fields kept. It never blocks:
	// lines are dropped and counted while the host does not read.
	Log zerolog.Logger
}

// Serve runs a plugin executable: it is the whole main function. It returns
// never; the process ends when the host asks for it, and at once when the host
// has died.
func Serve(factory func(Env) Plugin) {
	hs := Handshake()
	if os.Getenv(hs.MagicCookieKey) != hs.MagicCookieValue {
		fmt.Fprintln(os.Stderr, "This program is a plugin of cephmirror and is started by it; run cephmirror instead.")
		os.Exit(1)
	}
	// The host alone decides when the plugin ends: a signal sent to the whole
	// service must not cut an orderly stop short.
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
	if err := dieWithHost(); err != nil {
		fmt.Fprintln(os.Stderr, "plugin cannot watch its host:", err)
		os.Exit(1)
	}
	if err := reserveStdout(); err != nil {
		fmt.Fprintln(os.Stderr, "plugin cannot set up its output:", err)
		os.Exit(1)
	}
	log := zerolog.New(openLog()).Level(logLevel(os.Getenv(EnvLogLevel))).With().Timestamp().Logger()
	lease := NewLease(nil)
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: hs,
		Plugins:         goplugin.PluginSet{ServiceName: &glue{plugin: factory(Env{Lease: lease, Log: log}), lease: lease}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxMessage))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, JSONFormat: true, Output: os.NewFile(2, "stderr")}),
	})
	// Not a return: destructors of C++ libraries could hang.
	os.Exit(0)
}

// dieWithHost ends the process as soon as the inherited pipe reports the end of
// the host. The parent-death signal, which the host sets too, is lost when a
// wrapper or a change of user stands between the two.
func dieWithHost() error {
	text := os.Getenv(EnvHostFD)
	if text == "" {
		return errors.New(EnvHostFD + " is not set")
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return fmt.Errorf("%s=%q is not a file descriptor", EnvHostFD, text)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("descriptor %d from the host: %w", fd, err)
	}
	pipe := os.NewFile(uintptr(fd), "host")
	go func() {
		var b [1]byte
		for {
			if n, err := pipe.Read(b[:]); n == 0 || err != nil {
				// SIGKILL, not exit: nothing may run or wait any more.
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				os.Exit(1)
			}
		}
	}()
	return nil
}

// reserveStdout keeps standard output for go-plugin's handshake: what C
// libraries print there goes to standard error instead.
func reserveStdout() error {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("duplicating standard output: %w", err)
	}
	if err := unix.Dup3(2, 1, 0); err != nil {
		return fmt.Errorf("redirecting standard output: %w", err)
	}
	os.Stdout = os.NewFile(uintptr(fd), "stdout")
	return nil
}

func logLevel(text string) zerolog.Level {
	level, err := zerolog.ParseLevel(text)
	if err != nil || text == "" {
		return zerolog.InfoLevel
	}
	return level
}

// pipeLog writes log lines to a pipe without ever blocking: while the host is
// frozen the plugin must still be able to act on its lost lease.
type pipeLog struct {
	fd      int
	mu      sync.Mutex
	broken  bool // the last line was cut short
	dropped uint64
}

func openLog() *pipeLog {
	// An own open file description: O_NONBLOCK would else also hit the C
	// libraries and the Go runtime, whose last words must come through.
	fd, err := unix.Open("/proc/self/fd/2", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return &pipeLog{fd: 2} // a socket or the like: better blocking than silent
	}
	// Room for a burst; a refusal does no harm.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
	return &pipeLog{fd: fd}
}

func (p *pipeLog) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped > 0 {
		note := fmt.Appendf(nil, `{"level":"warn","dropped":%d,"message":"log lines were dropped while the host did not read them"}`+"\n", p.dropped)
		if p.put(note) {
			p.dropped = 0
		}
	}
	if !p.put(line) {
		p.dropped++
	}
	return len(line), nil
}

func (p *pipeLog) put(line []byte) bool {
	if p.broken {
		if n, err := unix.Write(p.fd, []byte{'\n'}); n != 1 || err != nil {
			return false
		}
		p.broken = false
	}
	for done := 0; done < len(line); {
		n, err := unix.Write(p.fd, line[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			p.broken = done > 0
			return false
		}
		done += n
	}
	return true
}
