package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cephmirror/host/config"
	"cephmirror/host/launch"
	"cephmirror/plugins"
)

// maxSecret bounds a token or key that is read from a file.
const maxSecret = 64 << 10

// mirrorCommand is one of the commands of the mgr module.
type mirrorCommand struct {
	words    string   // after "fs snapshot mirror"
	args     []string // required ones, by their names there
	optional []string
	secret   string // the argument that may be "-" or come from a file
	flag     string // an argument that is on or off, and
	flagHelp string // what it is for
	help     string
}

// additionalHelp is of what the stock daemon does not survive.
const additionalHelp = "add it beside a peer that there is already; the stock cephfs-mirror daemon aborts then"

func mirrorCommands() []mirrorCommand {
	return []mirrorCommand{
		{words: "enable", args: []string{"fs_name"}, help: "Enable snapshot mirroring for a file system"},
		{words: "disable", args: []string{"fs_name"}, help: "Disable snapshot mirroring for a file system"},
		{
			words: "peer_add", args: []string{"fs_name", "remote_cluster_spec"},
			optional: []string{"remote_fs_name", "remote_mon_host", "cephx_key"}, secret: "cephx_key",
			flag: "additional", flagHelp: additionalHelp,
			help: "Add a peer, given as client.ID@CLUSTER",
		},
		{words: "peer_list", args: []string{"fs_name"}, help: "List the peers of a file system"},
		{words: "peer_remove", args: []string{"fs_name", "peer_uuid"}, help: "Remove a peer"},
		{words: "peer_bootstrap create", args: []string{"fs_name", "client_name", "site_name"}, help: "Create a token for the other cluster"},
		{
			words: "peer_bootstrap import", args: []string{"fs_name", "token"}, secret: "token",
			flag: "additional", flagHelp: additionalHelp,
			help: "Add a peer from a token of the other cluster",
		},
		{words: "add", args: []string{"fs_name", "path"}, help: "Mirror the snapshots of a directory"},
		{words: "remove", args: []string{"fs_name", "path"}, help: "Mirror the snapshots of a directory no more"},
		{words: "ls", args: []string{"fs_name"}, help: "List the mirrored directories"},
		{words: "dirmap", args: []string{"fs_name", "path"}, help: "Show which instance mirrors a directory"},
		{words: "show distribution", args: []string{"fs_name"}, help: "Show how many directories each instance mirrors"},
		{words: "daemon status", help: "Show the state of the mirror daemons"},
	}
}

// newFSCommand builds "fs snapshot mirror …" with the grammar of the ceph
// command.
func newFSCommand(env []string, conn *connection) *cobra.Command {
	fs := group("fs", "Control mirroring of file systems")
	snapshot, mirror := group("snapshot", "Control mirroring of snapshots"), group("mirror", "Control mirroring of snapshots")
	fs.AddCommand(snapshot)
	snapshot.AddCommand(mirror)
	// Scripts pass it to the ceph command, where these commands ignore it too.
	fs.PersistentFlags().StringP("format", "f", "", "ignored: the output is that of the mgr module")
	mirror.AddCommand(newFSScheduleCommand(env, conn))
	groups := map[string]*cobra.Command{
		"peer_bootstrap": group("peer_bootstrap", "Make the clusters known to each other"),
		"show":           group("show", "Show how the work is shared"),
		"daemon":         group("daemon", "Show the mirror daemons"),
	}
	for _, name := range sortedKeys(groups) {
		mirror.AddCommand(groups[name])
	}
	for _, c := range mirrorCommands() {
		parent, last := mirror, c.words
		if first, rest, ok := strings.Cut(c.words, " "); ok {
			parent, last = groups[first], rest
		}
		use := last
		for _, a := range c.args {
			use += " " + strings.ToUpper(a)
		}
		for _, a := range c.optional {
			use += " [" + strings.ToUpper(a) + "]"
		}
		var file string
		var on bool
		cmd := &cobra.Command{
			Use: use, Short: c.help,
			RunE: func(cmd *cobra.Command, words []string) error {
				command, err := c.command(words, file, cmd.InOrStdin())
				if err != nil {
					fmt.Fprintf(os.Stderr, "Invalid command: %v\nusage: %s\n", err, cmd.UseLine())
					return invalid
				}
				if on {
					command.Args[c.flag] = true
				}
				ctl, _, err := newControl("cephfs", conn, env)
				if err != nil {
					return err
				}
				res, err := ctl.call(cmd.Context(), command)
				if err != nil {
					return err
				}
				return printResult(cmd.OutOrStdout(), os.Stderr, res)
			},
		}
		if c.secret != "" {
			cmd.Long = c.help + ".\n\nThe " + c.secret + " may be - to be read from standard input, so that no process list shows it."
			cmd.Flags().StringVar(&file, c.secret+"-file", "", "read the "+c.secret+" from this file")
		}
		if c.flag != "" {
			cmd.Flags().BoolVar(&on, c.flag, false, c.flagHelp)
		}
		parent.AddCommand(cmd)
	}
	return fs
}

// command assigns the words of the command line to the arguments.
func (c mirrorCommand) command(words []string, file string, stdin io.Reader) (plugins.Command, error) {
	names := append(append([]string(nil), c.args...), c.optional...)
	out := plugins.Command{Prefix: "fs snapshot mirror " + c.words, Args: map[string]any{}}
	if len(words) > len(names) {
		return out, fmt.Errorf("unused arguments: %q", words[len(names):])
	}
	for i, w := range words {
		out.Args[names[i]] = w
	}
	if c.secret != "" {
		given, _ := out.Args[c.secret].(string)
		if file != "" || given == "-" {
			secret, err := readSecret(c.secret, file, stdin)
			if err != nil {
				return out, fmt.Errorf("reading the %s: %w", c.secret, err)
			}
			out.Args[c.secret] = secret
		}
	}
	for _, name := range c.args {
		if _, ok := out.Args[name]; !ok {
			return out, fmt.Errorf("missing required parameter %s", name)
		}
	}
	return out, nil
}

// readSecret reads what stands alone in a file, or as the member name of an
// object: so the command that makes a token prints it.
func readSecret(name, file string, stdin io.Reader) (string, error) {
	if file != "" && file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		stdin = f
	}
	text, err := io.ReadAll(io.LimitReader(stdin, maxSecret))
	if err != nil {
		return "", err
	}
	if text = bytes.TrimSpace(text); len(text) == 0 {
		return "", errors.New("it is empty")
	}
	var object map[string]any
	if json.Unmarshal(text, &object) == nil {
		if value, ok := object[name].(string); ok {
			return value, nil
		}
	}
	return string(text), nil
}

// controlLog shows warnings of a command that runs once; debugging asks for more.
func controlLog(level string) zerolog.Logger {
	l, err := zerolog.ParseLevel(level)
	if err != nil || l == zerolog.InfoLevel {
		l = zerolog.WarnLevel
	}
	out := zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true, PartsExclude: []string{zerolog.TimestampFieldName}}
	return zerolog.New(out).Level(l)
}

// printResult prints as the ceph command does.
func printResult(stdout, stderr io.Writer, res plugins.Result) error {
	if len(res.Out) > 0 {
		out := res.Out
		if out[len(out)-1] != '\n' {
			out = append(out[:len(out):len(out)], '\n')
		}
		if _, err := stdout.Write(out); err != nil {
			return err
		}
	}
	if res.Errno != 0 {
		name := unix.ErrnoName(syscall.Errno(res.Errno))
		if name == "" {
			name = fmt.Sprint(res.Errno)
		}
		fmt.Fprintf(stderr, "Error %s: %s\n", name, res.Status)
		return exitCode(res.Errno)
	}
	if res.Status != "" {
		fmt.Fprintln(stderr, res.Status)
	}
	return nil
}

// stopBudget is how long a plugin that served one command may take to stop.
const stopBudget = closeGrace

// control runs the plugin for one command.
type control struct {
	path string
	cfg  plugins.Config
	log  zerolog.Logger

	startBudget, callBudget, leaseTTL time.Duration
}

// newControl prepares to run a kind of plugin for a command.
func newControl(kind string, conn *connection, env []string) (control, *config.Config, error) {
	a, err := conn.args(env)
	if err != nil {
		return control{}, nil, err
	}
	settings, err := loadSettings(a, env)
	if err != nil {
		return control{}, nil, err
	}
	cfg, err := pluginConfig(plugins.ModeControl, kind, a, settings)
	if err != nil {
		return control{}, nil, err
	}
	path, err := findPlugin(kind, settings.String("plugin_dir"))
	if err != nil {
		return control{}, nil, err
	}
	return control{
		path: path, cfg: cfg, log: controlLog(settings.String("log_level")),
		startBudget: settings.Duration("start_budget"), callBudget: settings.Duration("control_budget"),
		leaseTTL: settings.Duration("lease_ttl"),
	}, settings, nil
}

func (c control) call(ctx context.Context, command plugins.Command) (plugins.Result, error) {
	var res plugins.Result
	err := c.session(ctx, func(call callFunc) error {
		var err error
		res, err = call(command)
		return err
	})
	return res, err
}

// callFunc sends a command to a running plugin. Its error is that there is no
// answer.
type callFunc func(plugins.Command) (plugins.Result, error)

// session runs the plugin for as long as do needs it.
func (c control) session(ctx context.Context, do func(callFunc) error) error {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	proc, err := launch.Start(ctx, launch.Spec{Path: c.path, Dir: dir, Env: os.Environ(), Log: c.log, LogLevel: c.log.GetLevel()})
	if err != nil {
		return err
	}
	defer proc.Kill()
	defer c.renew(proc)()

	startCtx, cancel := context.WithTimeout(ctx, c.startBudget)
	defer cancel()
	if _, err := proc.Client().Start(startCtx, c.cfg); err != nil {
		return explain(ctx, startCtx, proc, err, fmt.Sprintf("no connection to the local cluster within %v", c.startBudget))
	}
	callCtx, cancel := context.WithTimeout(ctx, c.callBudget)
	defer cancel()
	lost := false
	failed := do(func(command plugins.Command) (plugins.Result, error) {
		res := proc.Client().Call(callCtx, command)
		if res.Errno == int(syscall.ENOTCONN) || ctx.Err() != nil || res.Errno == int(syscall.ETIMEDOUT) && expired(callCtx) {
			err := explain(ctx, callCtx, proc, nil, fmt.Sprintf("no answer within %v", c.callBudget))
			if err != nil {
				lost = true
				return plugins.Result{}, err
			}
		}
		return res, nil
	})
	if lost {
		return failed // the plugin is dead or hangs: it is killed
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBudget)
	defer cancel()
	if err := proc.Client().Stop(stopCtx); err != nil {
		c.log.Warn().Err(err).Msg("plugin did not stop in order")
		return failed
	}
	proc.Close()
	return failed
}

// explain finds the true reason of a failed call: an interrupt, the budget or
// the death of the plugin.
func explain(ctx, bounded context.Context, proc *launch.Process, err error, late string) error {
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case expired(bounded):
		return errors.New(late)
	case err != nil && !errors.Is(err, plugins.ErrGone):
		return err
	}
	select {
	case <-proc.Done():
		proc.Kill() // reads the rest of its output
		return proc.Err()
	default:
		return err
	}
}

// renew keeps the plugin's lease until the returned function is called.
func (c control) renew(proc *launch.Process) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(c.leaseTTL / 5)
		defer tick.Stop()
		for {
			bounded, cancel := context.WithTimeout(ctx, c.leaseTTL)
			if err := proc.Client().Renew(bounded, c.leaseTTL); err != nil {
				c.log.Debug().Err(err).Msg("renewing the lease")
			}
			cancel()
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}
