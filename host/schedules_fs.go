package host

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cephmirror/host/schedule"
	"cephmirror/host/schedule/manage"
	"cephmirror/host/schedule/view"
)

// newFSScheduleCommand builds "fs snapshot mirror schedule …". Its name leaves no
// doubt that this is not Ceph's "fs snap-schedule", which keeps its schedules
// elsewhere.
func newFSScheduleCommand(env []string, conn *connection) *cobra.Command {
	sched := group("schedule", "Schedules of snapshots of directories")
	sched.Long = `Schedules of snapshots of directories: for one directory with --path, or without
for all directories of the file system that are mirrored; one of its own counts
alone for a directory. They are followed by the cephmirror daemons of the cluster
that the file system is mirrored from, whose user needs the capability
"mds 'allow rws'" for it.

The snapshots are called cephmirror-YYYY-MM-DD-hh_mm_ss_UTC. What --keep says
counts among them alone: no other snapshot is ever removed.`
	var keep string
	add := fsScheduleCommand(env, conn, "add FS_NAME INTERVAL [START]", "Add a rule, and say how many snapshots to keep", 2, 3,
		func(cmd *cobra.Command, s manage.Schedules, l manage.Level, words []string) error {
			var r *schedule.Retention
			if cmd.Flags().Changed("keep") {
				k, err := schedule.ParseRetention(keep)
				if err != nil {
					return err
				}
				r = &k
			}
			words = append(words, "")
			return s.Add(cmd.Context(), l, words[0], words[1], r)
		})
	add.Flags().StringVar(&keep, "keep", "", "how many to keep of each hour, day, week and so on, such as 24h7d4w (n, m, h, d, w, M, y); without it all are kept")
	retention := fsScheduleCommand(env, conn, "keep FS_NAME RETENTION", `Say how many snapshots to keep, "all" for all`, 2, 2,
		func(cmd *cobra.Command, s manage.Schedules, l manage.Level, words []string) error {
			if words[0] == "all" {
				words[0] = ""
			}
			k, err := schedule.ParseRetention(words[0])
			if err != nil {
				return err
			}
			return s.Keep(cmd.Context(), l, k)
		})
	remove := fsScheduleCommand(env, conn, "remove FS_NAME [INTERVAL [START]]", "Remove a rule, or all", 1, 3,
		func(cmd *cobra.Command, s manage.Schedules, l manage.Level, words []string) error {
			words = append(words, "", "")
			return s.Remove(cmd.Context(), l, words[0], words[1])
		})
	var listFormat, statusFormat view.Format
	list := fsScheduleCommand(env, conn, "ls FS_NAME", "List the rules", 1, 1,
		func(cmd *cobra.Command, s manage.Schedules, l manage.Level, _ []string) error {
			found, err := s.Below(cmd.Context(), l)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), view.List(found, []string{"filesystem", "directory"}, listFormat))
			return err
		})
	status := fsScheduleCommand(env, conn, "status FS_NAME", "Show when the next snapshots are due", 1, 1,
		func(cmd *cobra.Command, s manage.Schedules, l manage.Level, _ []string) error {
			return printStatus(cmd, s, l, "directory", statusFormat)
		})
	for cmd, f := range map[*cobra.Command]*view.Format{list: &listFormat, status: &statusFormat} {
		cmd.Flags().StringVarP(&f.Name, "format", "f", "plain", "output format (plain, json, or xml)")
		cmd.Flags().BoolVar(&f.Pretty, "pretty-format", false, "pretty formatting (json and xml)")
	}
	sched.AddCommand(add, remove, retention, list, status)
	return sched
}

func fsScheduleCommand(env []string, conn *connection, use, short string, least, most int,
	run func(cmd *cobra.Command, s manage.Schedules, l manage.Level, words []string) error,
) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, words []string) error {
			if len(words) < least || len(words) > most {
				fmt.Fprintf(os.Stderr, "Invalid command: wrong number of arguments\nusage: %s\n", cmd.UseLine())
				return invalid
			}
			args := map[string]any{"fs": words[0]}
			return withSchedules(cmd.Context(), "cephfs", conn, env, args, func(s manage.Schedules) error {
				return fsFailure(run(cmd, s, manage.Level{"path": path}, words[1:]))
			})
		},
	}
	cmd.Flags().StringVar(&path, "path", "", "the directory; without it, all that are mirrored")
	return cmd
}

// fsFailure prints a failure as the ceph tool does.
func fsFailure(err error) error {
	errno, text, ok := refused(err)
	if !ok {
		return err
	}
	fmt.Fprintf(os.Stderr, "Error %s: %s\n", unix.ErrnoName(errno), text)
	return exitCode(errno)
}
