package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/admin"
	"cephmirror/host/cephargs"
	"cephmirror/host/config"
	"cephmirror/host/daemonize"
	"cephmirror/host/launch"
	"cephmirror/host/logsink"
	"cephmirror/host/schedule/runner"
	"cephmirror/host/sdnotify"
	"cephmirror/host/supervise"
	"cephmirror/plugins"
)

// closeGrace bounds the closing of sockets at the end.
const closeGrace = 3 * time.Second

// daemon is the whole of one worker instance.
type daemon struct {
	kind       string
	args       cephargs.Args
	settings   *config.Config
	pluginPath string
	child      *daemonize.Child // nil in the foreground
	pid        int
	started    time.Time

	sink  *logsink.Sink
	log   zerolog.Logger
	super *supervise.Supervisor
	table admin.Table
	fail  context.CancelCauseFunc // ends the daemon with an error

	commandsMu sync.Mutex
	commands   map[string]plugins.CommandSpec // those of the plugin
	domains    domains
	schedules  atomic.Pointer[runner.Runner]

	// Set once by serve, in this order, and closed in the reverse order.
	serving bool
	pidFile *daemonize.PIDFile
	socket  *admin.Server
	metrics func()
}

// runDaemon is the command line of a stock daemon, after the program's name.
func runDaemon(kind, name string, args, env []string) int {
	err := func() error {
		if len(args) == 0 {
			fmt.Fprintf(os.Stderr, "%s: -h or --help for usage\n", name)
			return exitCode(1)
		}
		a, err := cephargs.Parse(append(cephargs.FromEnvironment(lookup(env, "CEPH_ARGS")), args...))
		switch {
		case err != nil:
			return err
		case a.Help:
			fmt.Print(daemonUsage(name))
			return nil
		case a.Version:
			fmt.Printf("cephmirror version %s\n", version())
			return nil
		case len(a.Rest) > 0:
			return fmt.Errorf("unexpected argument %q", a.Rest[0])
		}
		return startDaemon(kind, a, env)
	}()
	return report(name, err)
}

func daemonUsage(name string) string {
	return fmt.Sprintf(`usage: %s [options]
  -c, --conf FILE        Ceph's configuration file
      --cluster NAME     name of the local cluster (ceph)
  -i, --id ID            the user is client.ID
  -n, --name TYPE.ID     the user
      --setuser USER     switch to this user
      --setgroup GROUP   and group
  -f, --foreground       do not go into the background
  -d                     the same, and log to standard error
      --daemonize=BOOL   the same as a configuration option
  -m, --mon-host ADDRS   monitors of the local cluster
  -k, --keyring FILE     keyring of the user
  -v, --version          show the version
      --OPTION[=VALUE]   any configuration option of Ceph
      --cephmirror-KEY=VALUE
                         any setting of cephmirror (see cephmirror settings);
                         --cephmirror-config=FILE names the file with them
CEPH_ARGS holds further options; those of the command line win.
`, name)
}

func lookup(env []string, name string) string {
	value := ""
	for _, e := range env {
		if n, v, _ := strings.Cut(e, "="); n == name {
			value = v
		}
	}
	return value
}

func startDaemon(kind string, a cephargs.Args, env []string) error {
	settings, err := loadSettings(a, env)
	if err != nil {
		return err
	}
	if _, err := timezone(settings.String("schedule_timezone")); err != nil {
		return err
	}
	path, err := findPlugin(kind, settings.String("plugin_dir"))
	if err != nil {
		return err
	}
	cfg, err := pluginConfig(plugins.ModeWorker, kind, a, settings)
	if err != nil {
		return err
	}
	child, err := daemonize.FromEnvironment()
	if err != nil {
		return err
	}
	if !a.Foreground && child == nil {
		code, err := daemonize.Parent()
		if err == nil && code != 0 {
			err = exitCode(code) // the daemon has told the reason
		}
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	if err := daemonize.SwitchUser(a.SetUser, a.SetGroup); err != nil {
		return err
	}
	return newDaemon(kind, path, dir, a, settings, cfg, child).run()
}

func loadSettings(a cephargs.Args, env []string) (*config.Config, error) {
	var own []config.Option
	for _, o := range a.Own {
		own = append(own, config.Option(o))
	}
	return config.Load(own, env)
}

func newDaemon(kind, path, dir string, a cephargs.Args, settings *config.Config, cfg plugins.Config, child *daemonize.Child) *daemon {
	d := &daemon{
		kind: kind, args: a, settings: settings, pluginPath: path, child: child, pid: os.Getpid(), started: time.Now(),
		commands: map[string]plugins.CommandSpec{},
	}
	// The log file is known once the plugin has read Ceph's configuration.
	early := zerolog.ErrorLevel
	if a.ToStderr {
		early = zerolog.TraceLevel
	}
	d.sink = logsink.New(os.Stderr, early, settings.String("log_format") == "console")
	level := logLevel(settings, a)
	d.log = zerolog.New(d.sink).Level(level).With().Timestamp().Logger()
	for _, name := range settings.Unknown {
		d.log.Warn().Str("variable", name).Msg("this environment variable is no setting")
	}
	d.super = supervise.New(supervise.Options{
		Launch: launch.Spec{
			Path: path, Dir: dir, Env: os.Environ(), LogLevel: level,
			Log: d.log.With().Str("plugin", kind).Logger(),
		},
		Config:         cfg,
		Log:            d.log,
		LeaseTTL:       settings.Duration("lease_ttl"),
		HealthDeadline: settings.Duration("health_deadline"),
		StartBudget:    settings.Duration("start_budget"),
		CallGrace:      settings.Duration("call_grace"),
		StopDeadline:   settings.Duration("stop_deadline"),
		RestartMin:     settings.Duration("restart_delay"),
		RestartMax:     settings.Duration("restart_delay_max"),
		Session:        d.session,
	})
	return d
}

// logLevel is the setting, or what --debug-cephfs-mirror and its like ask for
// if that is more.
func logLevel(settings *config.Config, a cephargs.Args) zerolog.Level {
	level, err := zerolog.ParseLevel(settings.String("log_level"))
	if err != nil {
		level = zerolog.InfoLevel
	}
	for _, o := range a.Ceph {
		if o.Name != "debug_cephfs_mirror" && o.Name != "debug_rbd_mirror" {
			continue
		}
		text, _, _ := strings.Cut(o.Value, "/")
		switch n, err := strconv.Atoi(text); {
		case err == nil && n >= 20:
			level = min(level, zerolog.TraceLevel)
		case err == nil && n >= 10:
			level = min(level, zerolog.DebugLevel)
		}
	}
	return level
}

// run serves until a signal or a failure ends the daemon.
func (d *daemon) run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ctx, d.fail = context.WithCancelCause(ctx)
	defer d.fail(nil)

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer signal.Stop(signals)
	done := make(chan struct{})
	var handler sync.WaitGroup
	handler.Go(func() { d.handleSignals(signals, done, stop) })
	handler.Go(func() { sdnotify.Run(ctx, d.log, d.serviceStatus) })

	err := d.super.Run(ctx)
	if err == nil {
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			err = cause
		}
	}
	close(done)
	stop()
	handler.Wait()
	d.close()
	switch {
	case err == nil:
		d.log.Info().Msg("ends")
	case d.serving: // an error that ended the start is printed by the caller
		d.log.Error().Err(err).Msg("ends with an error")
		err = exitCode(1)
	}
	return errors.Join(err, d.sink.Close())
}

func (d *daemon) handleSignals(signals <-chan os.Signal, done <-chan struct{}, stop func()) {
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			switch s {
			case syscall.SIGPIPE: // a reader of standard error went away
			case syscall.SIGHUP:
				if err := d.sink.Reopen(context.Background()); err != nil {
					d.log.Error().Err(err).Msg("cannot reopen the log")
				}
				d.log.Info().Msg("log reopened")
			default:
				d.log.Info().Stringer("signal", s).Msg("stopping")
				if err := sdnotify.Stopping(); err != nil {
					d.log.Debug().Err(err).Msg("service manager")
				}
				stop()
			}
		}
	}
}

// serve opens what depends on the plugin's information, at its first start.
func (d *daemon) serve(info plugins.Info) bool {
	if d.serving {
		return true
	}
	if err := d.open(info); err != nil {
		d.fail(err)
		return false
	}
	d.serving = true
	return true
}

func (d *daemon) open(info plugins.Info) (err error) {
	if info.PidFile != "" {
		if d.pidFile, err = daemonize.WritePIDFile(info.PidFile); err != nil {
			return err
		}
	}
	if err := d.openLog(info); err != nil {
		return err
	}
	d.log.Info().Str("version", version()).Str("kind", d.kind).Str("plugin", d.pluginPath).Str("settings", d.settings.File).
		Str("admin_socket", info.AdminSocket).Str("pid_file", info.PidFile).Int("pid", d.pid).Msg("serving")
	if err := d.standardCommands(info); err != nil {
		return err
	}
	if info.AdminSocket != "" {
		ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
		defer cancel()
		mode, err := admin.ParseMode(info.AdminSocketMode)
		if err != nil {
			d.log.Error().Err(err).Msg("admin_socket_mode is not heeded")
		}
		d.socket, err = admin.Listen(ctx, admin.Options{
			Path: info.AdminSocket, Mode: mode, Table: &d.table, Log: d.log,
			CommandTimeout: d.settings.Duration("command_budget") + time.Second,
		})
		if err != nil {
			return fmt.Errorf("opening the admin socket: %w", err)
		}
	}
	if address := d.settings.String("metrics_listen"); address != "" {
		budget := d.settings.Duration("command_budget")
		d.metrics, err = serveMetrics(address, &collector{counters: counters{d}, status: d.super.Status, budget: budget})
		if err != nil {
			return err
		}
	}
	if d.child != nil {
		return d.child.Ready()
	}
	return sdnotify.Ready()
}

// serviceStatus is what the service manager shows of the daemon, in a line.
func (d *daemon) serviceStatus() string {
	s := d.super.Status()
	line := fmt.Sprintf("plugin %s: %s", d.kind, s.State)
	if s.Restarts > 0 {
		line += fmt.Sprintf(", restarted %d times", s.Restarts)
	}
	if s.LastError != "" && s.State != supervise.Running {
		line += ": " + s.LastError
	}
	return strings.ReplaceAll(line, "\n", " ")
}

// openLog sends the log where a Ceph daemon would: to the log file, errors to
// standard error too; with -d to standard error alone.
func (d *daemon) openLog(info plugins.Info) error {
	path, stderrAt := info.LogFile, zerolog.ErrorLevel
	if d.args.ToStderr {
		path, stderrAt = "", zerolog.TraceLevel
	}
	for _, o := range d.args.Ceph {
		if on, err := strconv.ParseBool(o.Value); o.Name == "log_to_stderr" && err == nil && on {
			stderrAt = zerolog.TraceLevel
		}
	}
	// In the background standard error leads nowhere.
	err := d.sink.Open(path, stderrAt, d.args.ToStderr || d.child != nil)
	if err != nil && d.child != nil {
		return err
	}
	if err != nil {
		d.log.Warn().Err(err).Msg("the log stays on standard error")
	}
	return nil
}

func (d *daemon) standardCommands(info plugins.Info) error {
	err := admin.Standard(&d.table, admin.Parts{
		Version: admin.Version{Version: info.CephVersion, Release: info.CephRelease, Git: info.GitVersion},
		Config:  cephConfig{d},
		Log:     d.sink,
		Metrics: counters{d},
	})
	if err != nil {
		return err
	}
	if err := d.table.Add("cephmirror schedule status", "show the schedules that this instance follows", d.scheduleCommand); err != nil {
		return err
	}
	if err := d.assignmentCommands(); err != nil {
		return err
	}
	return d.table.Add("cephmirror status", "show the state of the plugin and what this instance leads", d.statusCommand)
}

// close undoes open.
func (d *daemon) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if d.metrics != nil {
		d.metrics()
	}
	if d.socket != nil {
		if err := d.socket.Close(ctx); err != nil {
			d.log.Warn().Err(err).Msg("closing the admin socket")
		}
	}
	if d.pidFile != nil {
		if err := d.pidFile.Remove(); err != nil {
			d.log.Warn().Err(err).Msg("removing the pid file")
		}
	}
}
