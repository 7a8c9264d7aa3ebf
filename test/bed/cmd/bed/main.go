// Command bed brings up small real Ceph clusters, looks at them and takes them
// down. Run it with --help, or see the package documentation of test/bed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"cephmirror/test/bed"

	"github.com/spf13/cobra"
)

func main() {
	if err := bed.Stage(); err != nil {
		fmt.Fprintln(os.Stderr, "bed:", err)
		os.Exit(125)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := (&app{}).root().ExecuteContext(ctx)
	stop()
	var status exitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bed:", err)
		os.Exit(1)
	}
}

// exitStatus ends bed with the status of the command it ran.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

type app struct {
	release string
	quiet   bool
	began   time.Time
}

func (a *app) logf(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(os.Stderr, "%5.1fs  %s\n", time.Since(a.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

func (a *app) open() (*bed.Bed, error) {
	return bed.Open(bed.Options{Release: a.release, Logf: a.logf})
}

// enter runs a command inside the environment; nil runs this program with the
// same arguments.
func (a *app) enter(ctx context.Context, o bed.EnterOptions) error {
	rel, err := bed.ParseRelease(a.release)
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	o.Release, o.Logf = rel, a.logf
	o.Checkout = bed.FindCheckout(wd)
	if o.State, err = bed.StateDir(o.Checkout, rel); err != nil {
		return err
	}
	code, err := bed.Enter(ctx, o)
	if err != nil {
		return err
	}
	if code != 0 {
		return exitStatus(code)
	}
	return nil
}

// inside makes a command's function run inside the environment.
func (a *app) inside(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if bed.InsideRelease() == "" {
			return a.enter(context.WithoutCancel(cmd.Context()), bed.EnterOptions{})
		}
		return run(cmd, args)
	}
}

// become replaces this program, inside, by a command.
func become(args, env []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, env)
}

func (a *app) root() *cobra.Command {
	a.began = time.Now()
	root := &cobra.Command{
		Use:           "bed",
		Short:         "Small real Ceph clusters for tests",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&a.release, "release", "", "Ceph release, reef or tentacle (default $CEPHMIRROR_RELEASE, else tentacle)")
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "tell nothing of progress")
	root.AddCommand(a.upCmd(), a.downCmd(), a.statusCmd(), a.execCmd(), a.runCmd(), a.enterCmd(),
		a.killCmd(), a.restartCmd(), a.contCmd(), a.logsCmd(), a.userCmd(), a.rootfsCmd(), a.buildCmd())
	return root
}

func (a *app) upCmd() *cobra.Command {
	var spec bed.ClusterSpec
	var size int64
	cmd := &cobra.Command{
		Use:   "up NAME...",
		Short: "Bring clusters up, side by side, and wait until they are healthy",
		Args:  cobra.MinimumNArgs(1),
	}
	f := cmd.Flags()
	f.IntVar(&spec.OSDs, "osds", 0, "OSDs per cluster (default 1)")
	f.IntVar(&spec.MDSs, "mds", 0, "MDSs per cluster (default one per file system)")
	f.StringSliceVar(&spec.FileSystems, "fs", nil, "file systems (default cephfs)")
	f.BoolVar(&spec.NoFS, "no-fs", false, "no default file system")
	f.StringSliceVar(&spec.RBDPools, "rbd", nil, "pools for block images")
	f.StringSliceVar(&spec.MgrModules, "mgr-module", nil, "mgr modules to enable, for example mirroring")
	f.BoolVar(&spec.MgrBcrypt, "mgr-bcrypt-stub", false, "let Reef's mgr load modules that import bcrypt")
	f.Int64Var(&size, "osd-gib", 12, "size of an OSD's sparse file")
	cmd.RunE = a.inside(func(cmd *cobra.Command, args []string) error {
		b, err := a.open()
		if err != nil {
			return err
		}
		defer b.Close(context.WithoutCancel(cmd.Context()))
		spec.OSDSize = size << 30
		errs := make(chan error, len(args))
		for _, n := range args {
			s := spec
			s.Name = n
			go func() {
				_, err := b.Up(cmd.Context(), s)
				if err == nil {
					a.logf("%s: up", n)
				}
				errs <- err
			}()
		}
		var all []error
		for range args {
			all = append(all, <-errs)
		}
		return errors.Join(all...)
	})
	return cmd
}

func (a *app) downCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "down [NAME...]",
		Short: "Take clusters down (all when none is named) and remove all they left",
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.open()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
			defer cancel()
			return b.Down(ctx, args...)
		},
	}
}

func (a *app) statusCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show clusters and their daemons",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.open()
			if err != nil {
				return err
			}
			s, err := b.Overview()
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "state directory %s\n", s.Dir)
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, c := range s.Clusters {
				state := "up"
				if !c.Complete {
					state = "incomplete"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Name, c.Release, state, c.MonHost)
				for _, d := range c.Daemons {
					fmt.Fprintf(w, "  %s\t%s\t%d\t%s\n", d.Name, d.State, d.PID, d.Socket)
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (a *app) execCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "exec NAME -- COMMAND...",
		Short: "Run a command as the cluster's administrator: `bed exec a -- ceph -s`",
		Long: `Run a command inside the environment, as the cluster's administrator. The
cluster is the one that Ceph's tools take when they are told none; the others
are found by their names (--cluster NAME).`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.open()
			if err != nil {
				return err
			}
			c, err := b.Cluster(args[0])
			if err != nil {
				return err
			}
			if bed.InsideRelease() != "" {
				run := c.Command(cmd.Context(), args[1:]...)
				return become(run.Args, append(os.Environ(), "HOME="+c.Home()))
			}
			a.release = c.Release() // that it was brought up with
			return a.enter(context.WithoutCancel(cmd.Context()), bed.EnterOptions{Exec: args[1:], Env: []string{"HOME=" + c.Home()}})
		},
	}
}

func (a *app) runCmd() *cobra.Command {
	var binds []string
	cmd := &cobra.Command{
		Use:   "run -- COMMAND...",
		Short: "Run a command inside the environment",
		Long: `Run a command inside the environment: clusters are found by name in
/etc/ceph, and the release's Ceph, compiler and this machine's Go are there.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if bed.InsideRelease() != "" {
				return become(args, os.Environ())
			}
			return a.enter(context.WithoutCancel(cmd.Context()), bed.EnterOptions{Exec: args, Binds: binds})
		},
	}
	cmd.Flags().StringSliceVar(&binds, "bind", nil, "further paths to make visible inside")
	return cmd
}

func (a *app) enterCmd() *cobra.Command {
	var binds []string
	var cleanup bool
	var fresh string
	cmd := &cobra.Command{
		Use:   "enter [-- COMMAND...]",
		Short: "Run a command, by default a shell, inside the environment",
		RunE: func(cmd *cobra.Command, args []string) error {
			if bed.InsideRelease() != "" {
				return errors.New("already inside the environment")
			}
			if len(args) == 0 {
				args = []string{"bash"}
			}
			ctx := context.WithoutCancel(cmd.Context())
			if fresh != "" {
				done, err := a.makeFresh(ctx, fresh)
				if err != nil {
					return err
				}
				defer done()
			}
			o := bed.EnterOptions{Exec: args, Binds: binds}
			if cleanup || fresh != "" {
				o.Env = append(o.Env, bed.ForShared())
			}
			err := a.enter(ctx, o)
			if cleanup || fresh != "" {
				err = errors.Join(err, a.downAll(ctx))
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&binds, "bind", nil, "further paths to make visible inside")
	cmd.Flags().BoolVar(&cleanup, "cleanup", false, "take all clusters down when the command has ended")
	cmd.Flags().StringVar(&fresh, "fresh", "", "use an empty bed, apart from the one with your clusters, and clean it up; those with different `NAME`s (--fresh=NAME) can be in use at the same time")
	cmd.Flags().Lookup("fresh").NoOptDefVal = "test"
	return cmd
}

// makeFresh moves on to a bed for tests, of which there is one per checkout,
// release and name, and empties it.
func (a *app) makeFresh(ctx context.Context, name string) (done func(), err error) {
	b, err := a.open()
	if err != nil {
		return nil, err
	}
	if err := os.Setenv("CEPHMIRROR_BED", b.Dir()+"-"+name); err != nil {
		return nil, err
	}
	if b, err = a.open(); err != nil {
		return nil, err
	}
	if done, err = b.Claim(); err != nil {
		return nil, err
	}
	if err := a.downAll(ctx); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

func (a *app) downAll(ctx context.Context) error {
	b, err := a.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return b.Down(ctx)
}

func daemonArg(a *app, args []string) (*bed.Daemon, error) {
	b, err := a.open()
	if err != nil {
		return nil, err
	}
	c, err := b.Cluster(args[0])
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range c.Daemons() {
		if d.Name() == args[1] {
			return d, nil
		}
		names = append(names, d.Name())
	}
	return nil, fmt.Errorf("cluster %s has no daemon %q (it has %s)", args[0], args[1], strings.Join(names, ", "))
}

func (a *app) killCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "kill NAME DAEMON",
		Short: "Send a signal to a daemon, SIGKILL unless told otherwise",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := daemonArg(a, args)
			if err != nil {
				return err
			}
			sig, err := bed.ParseSignal(name)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			return d.Kill(ctx, sig)
		},
	}
	cmd.Flags().StringVar(&name, "signal", "KILL", "signal, by name or number")
	return cmd
}

func (a *app) restartCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "restart NAME DAEMON",
		Short: "End a daemon, SIGTERM unless told otherwise, start it, and wait until the cluster is healthy",
		Args:  cobra.ExactArgs(2),
	}
	cmd.Flags().StringVar(&name, "signal", "TERM", "signal, by name or number")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := daemonArg(a, args)
		if err != nil {
			return err
		}
		if bed.InsideRelease() == "" {
			a.release = d.Cluster().Release()
			return a.enter(context.WithoutCancel(cmd.Context()), bed.EnterOptions{})
		}
		sig, err := bed.ParseSignal(name)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
		defer cancel()
		if err := d.Restart(ctx, sig); err != nil {
			return err
		}
		if err := d.WaitReady(ctx); err != nil {
			return err
		}
		return d.Cluster().WaitHealthy(ctx)
	}
	return cmd
}

func (a *app) contCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "stop-cont NAME DAEMON",
		Short: "Freeze a daemon with SIGSTOP, or let a frozen one go on",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := daemonArg(a, args)
			if err != nil {
				return err
			}
			sig, want := syscall.SIGSTOP, "stopped"
			if d.State() == "stopped" {
				sig, want = syscall.SIGCONT, "running"
			}
			if err := d.Signal(sig); err != nil {
				return err
			}
			// Stopping all threads takes a moment.
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			err = bed.Poll(ctx, args[1]+" to be "+want, func(context.Context) (bool, error) { return d.State() == want, nil })
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), d.State())
			return nil
		},
	}
}

func (a *app) logsCmd() *cobra.Command {
	n := 50
	cmd := &cobra.Command{
		Use:   "logs NAME DAEMON",
		Short: "Show the end of a daemon's log",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := daemonArg(a, args)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), d.Log(n))
			return nil
		},
	}
	cmd.Flags().IntVarP(&n, "lines", "n", n, "number of lines")
	return cmd
}

func (a *app) userCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "user NAME mirror|peer|rbd-mirror|rbd-peer ID [FS]",
		Short: "Make a user with exactly the documented capabilities",
		Args:  cobra.RangeArgs(3, 4),
		RunE: a.inside(func(cmd *cobra.Command, args []string) error {
			b, err := a.open()
			if err != nil {
				return err
			}
			defer b.Close(cmd.Context())
			c, err := b.Cluster(args[0])
			if err != nil {
				return err
			}
			fs := "cephfs"
			if len(args) > 3 {
				fs = args[3]
			}
			switch args[1] {
			case "mirror":
				return c.AddMirrorUser(cmd.Context(), args[2])
			case "peer":
				return c.AuthorizePeer(cmd.Context(), fs, args[2])
			case "rbd-mirror":
				return c.AddRBDMirrorUser(cmd.Context(), args[2])
			case "rbd-peer":
				return c.AddRBDPeerUser(cmd.Context(), args[2])
			}
			return fmt.Errorf("unknown kind of user %q", args[1])
		}),
	}
}

func (a *app) rootfsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rootfs",
		Short: "Make the release's root file system, unless the machine's own Ceph serves or it is there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			rel, err := bed.ParseRelease(a.release)
			if err != nil {
				return err
			}
			if rel.Native(cmd.Context()) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: the machine's own\n", rel.Name)
				return nil
			}
			if err := rel.MakeRootfs(cmd.Context(), a.logf); err != nil {
				return err
			}
			path, _, err := rel.Rootfs()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", rel.Name, path)
			return nil
		},
	}
}

func (a *app) buildCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build the host (bin/cephmirror) and the release's plugins (bin/RELEASE/)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			wd, err := os.Getwd()
			if err != nil {
				return err
			}
			top := bed.FindCheckout(wd)
			if top == "" {
				return errors.New("not in a checkout of cephmirror")
			}
			return a.build(cmd.Context(), top)
		},
	}
}

// build builds what there is to build.
func (a *app) build(ctx context.Context, top string) error {
	rel, err := bed.ParseRelease(a.release)
	if err != nil {
		return err
	}
	outside := func(env []string, args ...string) error {
		c := exec.CommandContext(ctx, bed.GoTool(), args...)
		c.Dir, c.Env = top, append(os.Environ(), env...)
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
		return nil
	}
	// Inside there is no network: fetch what the build may need.
	if err := outside(nil, "mod", "download"); err != nil {
		return err
	}
	into := filepath.Join(top, "bin", rel.Name)
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(top, "main.go")); err == nil {
		host := filepath.Join(top, "bin", "cephmirror")
		if err := outside([]string{"CGO_ENABLED=0"}, "build", "-o", host, "."); err != nil {
			return err
		}
		// The host looks for its plugins beside itself.
		beside := filepath.Join(into, "cephmirror")
		if err := os.Remove(beside); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Link(host, beside); err != nil {
			return err
		}
	}
	for _, kind := range []string{"cephfs", "rbd"} {
		if m, err := filepath.Glob(filepath.Join(top, "plugins", kind, "*.go")); err != nil || len(m) == 0 {
			continue
		}
		a.logf("building the %s plugin for %s", kind, rel.Name)
		err := a.enter(context.WithoutCancel(ctx), bed.EnterOptions{Dir: top, Exec: []string{
			"go", "build", "-tags", rel.Name, "-o", filepath.Join(into, "cephmirror-"+kind), "./plugins/" + kind,
		}})
		if err != nil {
			return fmt.Errorf("build the %s plugin: %w", kind, err)
		}
	}
	return nil
}
