package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"cephmirror/admin"
	"cephmirror/host/schedule"
	"cephmirror/host/schedule/manage"
	"cephmirror/host/schedule/runner"
	"cephmirror/host/schedule/view"
	"cephmirror/plugins"
)

// timezone is the zone in which schedules count that name none.
func timezone(name string) (*time.Location, error) {
	if name == "" {
		return time.Local, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("setting schedule_timezone: %w", err)
	}
	return loc, nil
}

// withSchedules runs do with the schedules of a kind, in a plugin that lives as
// long as that.
func withSchedules(ctx context.Context, kind string, conn *connection, env []string, args map[string]any, do func(manage.Schedules) error) error {
	ctl, settings, err := newControl(kind, conn, env)
	if err != nil {
		return err
	}
	loc, err := timezone(settings.String("schedule_timezone"))
	if err != nil {
		return err
	}
	var broken error
	err = ctl.session(ctx, func(call callFunc) error {
		return do(manage.Schedules{
			Args: args, Now: time.Now, Loc: loc,
			Call: func(_ context.Context, c plugins.Command) plugins.Result {
				res, err := call(c)
				if err != nil {
					broken = err
					return plugins.ErrorResult(err)
				}
				return res
			},
		})
	})
	if broken != nil {
		return broken
	}
	return err
}

// What the rbd tool says of its own command line, and how it exits then.
const (
	rbdUsage = exitCode(1)
	rbdName  = "rbd"
)

func rbdError(code exitCode, format string, args ...any) error {
	fmt.Fprintf(os.Stderr, rbdName+": "+format+"\n", args...)
	return code
}

// rbdFlags are the arguments that name a level, as the rbd tool has them.
type rbdFlags struct {
	pool, namespace, image string
	given                  func(flag string) bool
	recursive              bool
	format                 view.Format
}

var imageSpec = regexp.MustCompile(`^(?:([^/@]+)/(?:([^/@]+)/)?)?([^/@]+)$`)

// level puts the level together as the rbd tool does: a namespace or an image
// without a pool lies in pool "rbd".
func (f *rbdFlags) level() (schedule.Level, error) {
	pool, namespace, image := f.pool, f.namespace, f.image
	inNamespace := f.given("namespace")
	if f.given("image") {
		m := imageSpec.FindStringSubmatch(image)
		switch {
		case strings.Contains(image, "@"):
			return schedule.Level{}, rbdError(invalid, "snapshot name specified for a command that doesn't use it")
		case m == nil:
			return schedule.Level{}, rbdError(invalid, "invalid spec '%s'", image)
		case m[1] != "" && f.given("pool"):
			return schedule.Level{}, rbdError(invalid, "pool is specified both via pool and image options")
		case m[1] != "" && inNamespace:
			return schedule.Level{}, rbdError(invalid, "namespace is specified both via namespace and image options")
		case m[1] != "":
			pool, namespace, image, inNamespace = m[1], m[2], m[3], m[2] != ""
		}
	}
	if pool == "" && !inNamespace && image == "" {
		return schedule.Level{}, nil
	}
	if pool == "" {
		pool = "rbd"
	}
	spec := pool + "/"
	if inNamespace && (namespace != "" || image == "") {
		spec += namespace + "/"
	}
	return schedule.ParseLevel(spec + image)
}

// strerror is what the C library says of an errno.
func strerror(errno syscall.Errno) string {
	text := errno.Error()
	first, n := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[n:]
}

// refused is what a command for schedules was refused for, if err says that.
func refused(err error) (errno syscall.Errno, text string, ok bool) {
	var f *manage.Failure
	var bad *schedule.InvalidError
	switch {
	case errors.As(err, &f):
		return f.Errno, f.Text, true
	case errors.As(err, &bad):
		return syscall.EINVAL, bad.Text, true
	}
	return 0, "", false
}

// scheduleFailure prints the failure of a command as the rbd tool does.
func scheduleFailure(verb string, err error) error {
	errno, text, ok := refused(err)
	if !ok {
		return err
	}
	if errno == syscall.ENOENT && text == "" { // not an error, but nothing either
		return exitCode(errno)
	}
	_ = rbdError(0, "rbd mirror snapshot schedule %s failed: (%d) %s: %s", verb, int(errno), strerror(errno), text)
	if verb == "status" { // it goes on to read the answer that it has not got
		return rbdError(exitCode(syscall.EBADMSG), "invalid schedule status JSON received")
	}
	return exitCode(errno)
}

// newRBDCommand builds "rbd mirror snapshot schedule …" with the grammar of the
// rbd tool.
func newRBDCommand(env []string, conn *connection) *cobra.Command {
	rbd := group("rbd", "Control mirroring of images")
	mirror, snapshot := group("mirror", "Control mirroring of images"), group("snapshot", "Mirror snapshots")
	sched := group("schedule", "Schedules of mirror snapshots")
	rbd.AddCommand(mirror)
	mirror.AddCommand(snapshot)
	snapshot.AddCommand(sched)
	sched.Long = `Schedules of mirror snapshots, for all pools, a pool, a namespace or an image: the
narrowest level that has a schedule counts alone. They are followed by the
cephmirror daemons of the cluster where the images are primary.

The commands, their output and their errors are those of the rbd tool, but the
schedules are apart from those that the rbd tool keeps: see "adopt".`
	sched.AddCommand(
		rbdScheduleChange(env, conn, "add", "", []string{"interval"}, func(ctx context.Context, s manage.Schedules, l manage.Level, when, start string) error {
			return s.Add(ctx, l, when, start, nil)
		}),
		rbdScheduleChange(env, conn, "remove", "rm", nil, func(ctx context.Context, s manage.Schedules, l manage.Level, when, start string) error {
			return s.Remove(ctx, l, when, start)
		}),
		rbdScheduleList(env, conn), rbdScheduleStatus(env, conn), rbdScheduleAdopt(env, conn),
	)
	return rbd
}

// rbdCommand is a command with the arguments that name a level. run returns an
// error that is printed as the failure of verb.
func rbdCommand(env []string, conn *connection, use, verb string, words int, run func(cmd *cobra.Command, f *rbdFlags, l schedule.Level, words []string, s manage.Schedules) error) (*cobra.Command, *rbdFlags) {
	f := &rbdFlags{}
	cmd := &cobra.Command{
		Use: use,
		RunE: func(cmd *cobra.Command, given []string) error {
			if len(given) > words {
				return rbdError(rbdUsage, "too many arguments")
			}
			switch f.format.Name {
			case "plain", "json", "xml":
			default:
				return rbdError(rbdUsage, "the argument for option '--format' is invalid")
			}
			l, err := f.level()
			if err != nil {
				return scheduleFailure(verb, err)
			}
			return withSchedules(cmd.Context(), rbdName, conn, env, nil, func(s manage.Schedules) error {
				if err := run(cmd, f, l, given, s); err != nil {
					return scheduleFailure(verb, err)
				}
				return nil
			})
		},
	}
	f.format.Name = "plain"
	f.given = func(name string) bool { return cmd.Flags().Changed(name) }
	cmd.Flags().StringVarP(&f.pool, "pool", "p", "", "pool name")
	cmd.Flags().StringVar(&f.namespace, "namespace", "", "namespace name")
	cmd.Flags().StringVar(&f.image, "image", "", "image name")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if words := strings.Fields(err.Error()); strings.HasPrefix(err.Error(), "unknown") {
			return rbdError(rbdUsage, "unrecognised option '%s'", words[len(words)-1])
		}
		return rbdError(rbdUsage, "%v", err)
	})
	return cmd, f
}

func formatFlags(cmd *cobra.Command, f *view.Format) {
	cmd.Flags().StringVar(&f.Name, "format", "plain", "output format (plain, json, or xml)")
	cmd.Flags().BoolVar(&f.Pretty, "pretty-format", false, "pretty formatting (json and xml)")
}

type scheduleChange func(ctx context.Context, s manage.Schedules, l manage.Level, when, start string) error

func rbdScheduleChange(env []string, conn *connection, verb, alias string, required []string, change scheduleChange) *cobra.Command {
	use := verb + " [INTERVAL] [START-TIME]"
	if len(required) > 0 {
		use = verb + " INTERVAL [START-TIME]"
	}
	cmd, _ := rbdCommand(env, conn, use, verb, 2, func(cmd *cobra.Command, _ *rbdFlags, l schedule.Level, words []string, s manage.Schedules) error {
		words = append(words, "", "")
		return change(cmd.Context(), s, manage.LevelOf(l), words[0], words[1])
	})
	cmd.Short = "Change a schedule: " + verb + " a rule"
	if len(required) == 0 {
		cmd.Short += ", or all"
	}
	cmd.Long = cmd.Short + `.

INTERVAL is a number of days, hours or minutes (1d, 12h, 30m), counted from
START-TIME on 1 January 1970: a time of day in ISO 8601, with a zone or in that of
the setting schedule_timezone. A cron expression in its place, in quotes, has five
fields, may be @daily and the like, and may begin with CRON_TZ=ZONE.`
	if alias != "" {
		cmd.Aliases = []string{alias}
	}
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		if len(words) < len(required) {
			return rbdError(invalid, "missing '%s' argument", required[len(words)])
		}
		return inner(cmd, words)
	}
	return cmd
}

func rbdScheduleList(env []string, conn *connection) *cobra.Command {
	cmd, f := rbdCommand(env, conn, "ls", "list", 0, func(cmd *cobra.Command, f *rbdFlags, l schedule.Level, _ []string, s manage.Schedules) error {
		out := ""
		if f.recursive {
			found, err := s.Below(cmd.Context(), manage.LevelOf(l))
			if err != nil {
				return err
			}
			out = view.List(found, []string{"pool", "namespace", "image"}, f.format)
		} else {
			e, err := s.Exact(cmd.Context(), manage.LevelOf(l))
			if err != nil {
				return err
			}
			out = view.One(e, f.format)
		}
		_, err := fmt.Fprint(cmd.OutOrStdout(), out)
		return err
	})
	cmd.Aliases = []string{"list"}
	cmd.Short = "List schedules"
	cmd.Flags().BoolVarP(&f.recursive, "recursive", "R", false, "list all schedules")
	formatFlags(cmd, &f.format)
	return cmd
}

func rbdScheduleStatus(env []string, conn *connection) *cobra.Command {
	cmd, f := rbdCommand(env, conn, "status", "status", 0, func(cmd *cobra.Command, f *rbdFlags, l schedule.Level, _ []string, s manage.Schedules) error {
		return printStatus(cmd, s, manage.LevelOf(l), "image", f.format)
	})
	cmd.Short = "Show when the next snapshots are due"
	formatFlags(cmd, &f.format)
	return cmd
}

func printStatus(cmd *cobra.Command, s manage.Schedules, l manage.Level, what string, f view.Format) error {
	all, err := s.Status(cmd.Context(), l)
	if err != nil {
		return err
	}
	for _, note := range view.Notes(all) {
		fmt.Fprintln(cmd.ErrOrStderr(), note)
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), view.Coming(all, what, f))
	return err
}

func rbdScheduleAdopt(env []string, conn *connection) *cobra.Command {
	var dry bool
	cmd, _ := rbdCommand(env, conn, "adopt", "adopt", 0, func(cmd *cobra.Command, _ *rbdFlags, l schedule.Level, _ []string, s manage.Schedules) error {
		return s.Adopt(cmd.Context(), l, dry, func(line string) { fmt.Fprintln(cmd.OutOrStdout(), line) })
	})
	cmd.Short = "Take over the schedules of Ceph's own module"
	cmd.Long = cmd.Short + `.

Moves the schedules that Ceph's rbd_support module keeps, at the level given and
below, to cephmirror's. The module is told to remove each and forgets it at once;
no run falls to both. What breaks off halfway is finished by the next adopt.`
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be done")
	return cmd
}

// runSchedules follows the schedules that fall to this instance as long as its
// plugin runs.
func (d *daemon) runSchedules(ctx context.Context, client *plugins.Client) {
	loc, err := timezone(d.settings.String("schedule_timezone"))
	if err != nil { // the start has seen to it that there is none
		d.log.Error().Err(err).Msg("schedules are not followed")
		return
	}
	r := runner.New(client, loc, d.log, runner.Wall())
	d.schedules.Store(r)
	defer d.schedules.Store(nil)
	r.Run(ctx)
}

// scheduleCommand answers "cephmirror schedule status".
func (d *daemon) scheduleCommand(context.Context, admin.Request) (admin.Reply, error) {
	report := runner.Report{Units: []runner.Status{}}
	if r := d.schedules.Load(); r != nil {
		report = r.Status()
	}
	out, err := json.Marshal(report)
	return admin.Reply{JSON: out}, err
}

// schedulePriority is that of counters which Ceph's exporter shows.
const schedulePriority = 5

// scheduleLoggers are the counters of the schedules that this instance follows.
func scheduleLoggers(units []runner.Status) []admin.Logger {
	unix := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return float64(t.UnixMilli()) / 1000
	}
	var out []admin.Logger
	for _, u := range units {
		out = append(out, admin.Logger{
			Name:   "cephmirror_schedule",
			Labels: []admin.Pair{{Name: "domain", Value: u.Domain}, {Name: "unit", Value: u.Name}},
			Counters: []admin.Counter{
				{Name: "snapshots", Type: admin.CounterU64, Description: "Snapshots made by schedule", U64: u.Taken, Priority: schedulePriority},
				{Name: "missed", Type: admin.CounterU64, Description: "Runs that did not take place at their time", U64: u.Missed, Priority: schedulePriority},
				{Name: "failures", Type: admin.CounterU64, Description: "Snapshots that could not be made", U64: u.Failed, Priority: schedulePriority},
				{Name: "last_snapshot", Type: admin.GaugeSeconds, Description: "When the newest snapshot was made", Value: unix(u.LastAt), Priority: schedulePriority},
				{Name: "next_snapshot", Type: admin.GaugeSeconds, Description: "When the next snapshot is due", Value: unix(u.NextAt), Priority: schedulePriority},
			},
		})
	}
	return out
}
