// Package host is the cephmirror command: it supervises the plugins that do
// the mirroring and shows what they do. It links none of Ceph's libraries.
package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cephmirror/admin"
	"cephmirror/host/cephargs"
	"cephmirror/host/config"
)

// exitCode is an error that was told already; only the code is left to return.
type exitCode int

// Error implements error.
func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// invalid is the exit code of the ceph command for a command line it rejects.
const invalid = exitCode(syscall.EINVAL)

// report prints an error as the named program's and returns the exit code.
func report(name string, err error) int {
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return 1
}

// daemonKinds are the stock daemons and the kind of plugin that does their work.
func daemonKinds() map[string]string {
	return map[string]string{"cephfs-mirror": "cephfs", "rbd-mirror": "rbd"}
}

// Main runs the cephmirror command and returns its exit code. Called by the
// name of a stock daemon the program takes that daemon's command line.
func Main(args, env []string) int {
	name := filepath.Base(args[0])
	if kind, ok := daemonKinds()[name]; ok {
		return runDaemon(kind, name, args[1:], env)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(env, stop)
	root.SetArgs(args[1:])
	return report("cephmirror", root.ExecuteContext(ctx))
}

// newRoot builds the command tree. release gives up the handling of signals, for
// commands that have their own.
func newRoot(env []string, release func()) *cobra.Command {
	root := &cobra.Command{
		Use:           "cephmirror",
		Short:         "Mirror Ceph block images and CephFS directory snapshots between clusters",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var conn connection
	conn.add(root)
	for name, kind := range daemonKinds() {
		root.AddCommand(&cobra.Command{
			Use:                name + " [options]",
			Short:              fmt.Sprintf("Run as a mirror daemon; takes the command line of %s", name),
			DisableFlagParsing: true,
			RunE: func(_ *cobra.Command, args []string) error {
				release()
				if code := runDaemon(kind, name, args, env); code != 0 {
					return exitCode(code)
				}
				return nil
			},
		})
	}
	root.AddCommand(newDaemonCommand(), newFSCommand(env, &conn), newRBDCommand(env, &conn), newSettingsCommand(), &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  cobra.NoArgs,
		Run:   func(*cobra.Command, []string) { fmt.Printf("cephmirror version %s\n", version()) },
	})
	return root
}

// group is a command that has nothing but other commands below it. A word that is
// none of them is an error.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, words []string) error {
			if len(words) > 0 {
				return fmt.Errorf("unknown command %q for %q", words[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
}

// newDaemonCommand is the client of admin sockets.
func newDaemonCommand() *cobra.Command {
	var format string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "daemon SOCKET COMMAND...",
		Short: "Send a command to the admin socket of a daemon",
		Example: `  cephmirror daemon /run/ceph/ceph-client.mirror.asok help
  cephmirror daemon /run/ceph/ceph-client.mirror.asok fs mirror status cephfs@1`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			body, err := admin.Run(ctx, args[0], args[1:], format)
			var match *admin.MatchError
			var failed *admin.Error
			switch {
			case errors.As(err, &match):
				fmt.Fprintln(os.Stderr, match)
				return invalid
			case errors.As(err, &failed) && len(body) > 0:
				_, _ = os.Stdout.Write(body)
				return exitCode(failed.Errno)
			case err != nil:
				fmt.Fprintln(os.Stderr, err)
				return invalid
			}
			_, err = os.Stdout.Write(body)
			if err == nil && len(body) > 0 && body[len(body)-1] != '\n' {
				_, err = fmt.Println()
			}
			return err
		},
	}
	// The words of the command may look like flags of ours.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&format, "format", "f", "", "json, json-pretty or xml")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait for the daemon")
	return cmd
}

func newSettingsCommand() *cobra.Command {
	var sample bool
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "Show all settings with their defaults, or a sample configuration file",
		Args:  cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			if sample {
				fmt.Print(config.Sample())
				return
			}
			fmt.Print(config.Reference())
		},
	}
	cmd.Flags().BoolVar(&sample, "sample", false, "print a configuration file")
	return cmd
}

// connection are the options that name the local cluster and the user.
type connection struct {
	cluster, conf, id, name, keyring, monHost string
	options                                   []string
	own                                       []string
}

func (c *connection) add(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&c.cluster, "cluster", "", "name of the local cluster (ceph)")
	f.StringVarP(&c.conf, "conf", "c", "", "Ceph's configuration file")
	f.StringVarP(&c.id, "id", "i", "", "the user is client.ID")
	f.StringVarP(&c.name, "name", "n", "", "the user (client.admin)")
	f.StringVarP(&c.keyring, "keyring", "k", "", "keyring of the user")
	f.StringVarP(&c.monHost, "mon-host", "m", "", "monitors of the local cluster")
	f.StringArrayVarP(&c.options, "option", "o", nil, "any other option of Ceph, as NAME=VALUE")
	f.StringArrayVar(&c.own, "setting", nil, "a setting of cephmirror, as KEY=VALUE")
}

// args puts the flags into the form of a daemon's command line, so that both
// mean the same.
func (c *connection) args(env []string) (cephargs.Args, error) {
	words := cephargs.FromEnvironment(lookup(env, "CEPH_ARGS"))
	for _, o := range []struct{ name, value string }{
		{"cluster", c.cluster}, {"conf", c.conf}, {"id", c.id}, {"name", c.name}, {"keyring", c.keyring}, {"mon-host", c.monHost},
	} {
		if o.value != "" {
			words = append(words, "--"+o.name+"="+o.value)
		}
	}
	for _, o := range c.options {
		if !strings.Contains(o, "=") {
			return cephargs.Args{}, fmt.Errorf("--option %s: must be NAME=VALUE", o)
		}
		words = append(words, "--"+o)
	}
	for _, o := range c.own {
		if !strings.Contains(o, "=") {
			return cephargs.Args{}, fmt.Errorf("--setting %s: must be KEY=VALUE", o)
		}
		words = append(words, "--cephmirror-"+strings.ReplaceAll(o, ".", "_"))
	}
	a, err := cephargs.Parse(words)
	if err == nil && len(a.Rest) > 0 {
		err = fmt.Errorf("CEPH_ARGS: unexpected argument %q", a.Rest[0])
	}
	return a, err
}
