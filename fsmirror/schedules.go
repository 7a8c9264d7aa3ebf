package fsmirror

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/uuid"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/schedules"
	"cephmirror/plugins"
	"cephmirror/plugins/scheduling"
)

// Schedules of snapshots of directories. They lie in the metadata pool (see
// package schedules); a level is named by the file system's id and the directory,
// "1/home", and "1" stands for all directories that are mirrored.
//
// Any worker of the file system may follow them, one does: whether or not it
// controls the directory map, which the stock module may do.

const (
	// snapshotsAtOnce bounds the snapshots that are made or removed at once.
	snapshotsAtOnce = 4

	// The names of scheduled snapshots, with the time they were made.
	scheduledPrefix = "cephmirror-"
	scheduledLayout = "2006-01-02-15_04_05_UTC"
	// scheduledBy is in their metadata: what has it not, we did not make here,
	// or somebody has made it his own by another name.
	scheduledBy = "cephmirror.schedule"
)

// scheduledName is the name of a snapshot made at a time.
func scheduledName(at time.Time) string { return scheduledPrefix + at.UTC().Format(scheduledLayout) }

// scheduledTime is when the snapshot of that name was made.
func scheduledTime(name string) (time.Time, bool) {
	rest, ok := strings.CutPrefix(name, scheduledPrefix)
	if !ok {
		return time.Time{}, false
	}
	t, err := time.Parse(scheduledLayout, rest)
	return t, err == nil
}

// followSchedules takes part in following the schedules of the file system until
// ctx ends. It may hang with the MDS: then another instance takes over.
func (f *filesystem) followSchedules(ctx context.Context, ioctx *rados.IOContext) {
	store := schedules.NewStore(ioctx)
	var jobs sync.WaitGroup
	shown := f.eng.scheduled.Join(f.id, scheduling.Maker{Log: f.log, Go: jobs.Go, Make: f.makeScheduled, Remove: f.removeScheduled})
	follower := &schedules.Follower{Log: f.log, Valid: f.eng.lease.Valid, Show: shown.Lead}
	round := func() error {
		contents, err := store.Load()
		if err != nil {
			return err
		}
		return follower.Round(schedules.Round{
			Swap: store.SwapLeader, Self: f.eng.instance, Contents: contents,
			Wanted: len(contents.Schedules) > 0,
			Rules:  func() (map[string]string, error) { return contents.Schedules, nil },
			Look: func() error {
				src, release, err := f.source(ctx)
				if err != nil {
					return err
				}
				defer release()
				d, err := scheduleDomain(ioctx, src.copy, dirstore.FileSystem{ID: f.id, Name: f.name}, contents)
				if err != nil {
					return err
				}
				d.Leader = f.eng.instance
				shown.Show(d)
				return nil
			},
		})
	}
	failing := ""
	for {
		err := round()
		switch {
		case err == nil:
			failing = ""
		case err.Error() != failing && ctx.Err() == nil:
			failing = err.Error()
			f.log.Warn().Err(err).Msg("schedules of snapshots")
		}
		shown.Trouble(err)
		if !sleep(ctx, schedules.RoundEvery) {
			break
		}
	}
	shown.Leave()
	jobs.Wait()
	follower.Resign(store.SwapLeader)
}

// scheduleDomain reads all about the schedules of one file system.
func scheduleDomain(ioctx *rados.IOContext, m *ceph.Mount, fs dirstore.FileSystem, contents schedules.Contents) (plugins.ScheduleDomain, error) {
	d := plugins.ScheduleDomain{Name: fs.Name}
	all := fmt.Sprint(fs.ID)
	dirs := make(map[string]bool)
	for _, key := range slices.Sorted(maps.Keys(contents.Schedules)) {
		d.Stored = append(d.Stored, plugins.StoredSchedule{Key: key, Value: contents.Schedules[key]})
		if dir, ok := strings.CutPrefix(key, all+"/"); ok {
			dirs["/"+dir] = true
		}
	}
	if contents.Schedules[all] != "" {
		tracked, err := dirstore.NewStore(ioctx).Load()
		if err != nil && !ceph.Is(err, syscall.ENOENT) {
			return d, err
		}
		if err == nil {
			for dir, e := range tracked.Dirs {
				if !e.Purging {
					dirs[path.Clean(dir)] = true
				}
			}
		}
	}
	held := ""
	mark, err := m.GetXattr("/", dirstore.RemoteMark)
	switch {
	case err == nil:
		held = fmt.Sprintf("the file system is mirrored to (%s)", mark)
	case !ceph.Is(err, syscall.ENODATA):
		return d, fmt.Errorf("looking whether the file system is mirrored to: %w", err)
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		u := plugins.ScheduleUnit{ID: all + dir, Name: fs.Name + ":" + dir, Keys: []string{all + dir, all}, Held: held}
		own, err := scheduledSnapshots(m, dir)
		switch {
		case ceph.Is(err, syscall.ENOENT, syscall.ENOTDIR):
			u.Held = "there is no such directory"
		case err != nil:
			return d, err
		}
		u.Own, u.Last = own, newestScheduled(own)
		d.Units = append(d.Units, u)
	}
	return d, nil
}

// scheduledSnapshots lists the scheduled snapshots of a directory that are ours,
// oldest first.
func scheduledSnapshots(m *ceph.Mount, dir string) ([]plugins.ScheduledSnapshot, error) {
	names, err := snapshotNames(m, dir)
	if err != nil {
		return nil, err
	}
	var own []plugins.ScheduledSnapshot
	for _, name := range names {
		made, ok := scheduledTime(name)
		if !ok {
			continue
		}
		_, metadata, err := m.SnapInfo(snapPath(dir, name))
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading snapshot %s of %s: %w", name, dir, err)
		}
		if metadata[scheduledBy] != "" {
			own = append(own, plugins.ScheduledSnapshot{Name: name, Made: made})
		}
	}
	slices.SortFunc(own, func(a, b plugins.ScheduledSnapshot) int { return a.Made.Compare(b.Made) })
	return own, nil
}

// makeScheduled makes a snapshot of a directory.
func (f *filesystem) makeScheduled(u plugins.ScheduleUnit) (plugins.ScheduleUnit, error) {
	return f.withScheduled(u, func(m *ceph.Mount, dir string) error {
		now := time.Now()
		name := scheduledName(now)
		err := m.MakeSnapshot(dir, name, 0o755, map[string]string{scheduledBy: now.UTC().Format(time.RFC3339)})
		if err != nil {
			return fmt.Errorf("making snapshot %s: %w", name, err)
		}
		return nil
	})
}

// removeScheduled removes snapshots of a directory, if they are ours.
func (f *filesystem) removeScheduled(u plugins.ScheduleUnit, names []string) (plugins.ScheduleUnit, error) {
	return f.withScheduled(u, func(m *ceph.Mount, dir string) error {
		own, err := scheduledSnapshots(m, dir)
		if err != nil {
			return err
		}
		for _, o := range own {
			if !slices.Contains(names, o.Name) {
				continue
			}
			if err := m.RemoveSnapshot(dir, o.Name); err != nil && !ceph.Is(err, syscall.ENOENT) {
				return fmt.Errorf("removing snapshot %s: %w", o.Name, err)
			}
		}
		return nil
	})
}

// withScheduled does something with the snapshots of a directory, and looks what
// there is then.
func (f *filesystem) withScheduled(u plugins.ScheduleUnit, do func(m *ceph.Mount, dir string) error) (plugins.ScheduleUnit, error) {
	src, release, err := f.source(f.ctx)
	if err != nil {
		return u, err
	}
	defer release()
	_, dir, _ := strings.Cut(u.ID, "/")
	dir = "/" + dir
	err = do(src.copy, dir)
	if own, lookErr := scheduledSnapshots(src.copy, dir); lookErr == nil {
		u.Own, u.Last = own, newestScheduled(own)
	}
	if ceph.Is(err, syscall.EPERM, syscall.EACCES) {
		err = fmt.Errorf("%w (does %s have the capability mds 'allow rws'?)", err, f.eng.cfg.Name)
	}
	return u, err
}

// newestScheduled is when the newest of them was made, oldest first.
func newestScheduled(own []plugins.ScheduledSnapshot) time.Time {
	if len(own) == 0 {
		return time.Time{}
	}
	return own[len(own)-1].Made
}

// scheduleCommand answers the host's commands about schedules.
func (e *Engine) scheduleCommand(ctx context.Context, c plugins.Command) plugins.Result {
	out, err := e.schedule(ctx, c)
	return plugins.Answer(c, out, err)
}

func (e *Engine) schedule(ctx context.Context, c plugins.Command) (any, error) {
	if out, ok, err := e.scheduled.Call(c); ok {
		return out, err
	}
	text := func(name string) string { s, _ := c.Args[name].(string); return s }
	fs, err := e.scheduledFS(text("fs"))
	if err != nil {
		return nil, err
	}
	pool, err := e.conn.GetPoolByID(fs.MetadataPool)
	if err != nil {
		return nil, fmt.Errorf("looking up metadata pool %d: %w", fs.MetadataPool, err)
	}
	ioctx, err := e.conn.OpenIOContext(pool)
	if err != nil {
		return nil, fmt.Errorf("opening metadata pool %s: %w", pool, err)
	}
	defer ioctx.Destroy()
	store := schedules.NewStore(ioctx)
	if c.Prefix == plugins.ScheduleSwap {
		return struct{}{}, store.Swap(text("key"), text("old"), text("new"))
	}
	contents, err := store.Load()
	if err != nil {
		return nil, err
	}
	switch c.Prefix {
	case plugins.ScheduleResolve:
		level, err := scheduleLevel(fs, text("path"))
		level.Value = contents.Schedules[level.Key]
		return level, err
	case plugins.ScheduleList:
		list := []plugins.StoredSchedule{}
		for _, key := range slices.Sorted(maps.Keys(contents.Schedules)) {
			_, dir, _ := strings.Cut(key, "/")
			if strings.Contains(key, "/") {
				dir = "/" + dir
			}
			level, err := scheduleLevel(fs, dir)
			if err == nil && level.Key == key {
				level.Value = contents.Schedules[key]
				list = append(list, level)
			}
		}
		return list, nil
	case plugins.ScheduleUnits:
		return e.scheduleUnits(ctx, ioctx, fs, contents)
	}
	return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
}

// scheduledFS finds a file system that schedules can be for.
func (e *Engine) scheduledFS(name string) (dirstore.FileSystem, error) {
	out, err := e.monCommand(map[string]string{"prefix": "fs dump", "format": "json"})
	if err != nil {
		return dirstore.FileSystem{}, err
	}
	m, err := dirstore.ParseFSMap(out)
	if err != nil {
		return dirstore.FileSystem{}, err
	}
	fs := m.ByName(name)
	switch {
	case fs == nil:
		return dirstore.FileSystem{}, plugins.Errorf(syscall.ENOENT, "filesystem %s does not exist", name)
	case !fs.Mirrored:
		return dirstore.FileSystem{}, plugins.Errorf(syscall.EINVAL, "filesystem %s is not mirrored", name)
	}
	return *fs, nil
}

// scheduleLevel is the level of a directory, or with dir empty of all.
func scheduleLevel(fs dirstore.FileSystem, dir string) (plugins.StoredSchedule, error) {
	all := plugins.StoredSchedule{Key: fmt.Sprint(fs.ID), Name: fs.Name, Names: []string{fs.Name}}
	if dir == "" {
		return all, nil
	}
	if !strings.HasPrefix(dir, "/") {
		return all, plugins.Errorf(syscall.EINVAL, "%s should be an absolute path", dir)
	}
	dir = path.Clean(dir)
	return plugins.StoredSchedule{
		Key: all.Key + dir, Name: fs.Name + ":" + dir, Names: []string{fs.Name, dir}, Parents: []string{all.Key},
	}, nil
}

// scheduleLeaderAge is how old the note of who follows the schedules may be for
// people to believe it; their clocks may differ a little.
const scheduleLeaderAge = time.Minute

// scheduleUnits looks at the directories through a mount of its own.
func (e *Engine) scheduleUnits(ctx context.Context, ioctx *rados.IOContext, fs dirstore.FileSystem, contents schedules.Contents) (any, error) {
	if len(contents.Schedules) == 0 {
		return []plugins.ScheduleDomain{}, nil
	}
	m, err := e.mount(ctx, e.localClient, fs.Name, uuid.NewString())
	if err != nil {
		return nil, fmt.Errorf("mounting file system %s: %w", fs.Name, err)
	}
	defer func() {
		if err := m.Unmount(); err == nil {
			_ = m.Release() // of an unmounted one, cannot fail
		}
	}()
	d, err := scheduleDomain(ioctx, m, fs, contents)
	if err != nil {
		return nil, err
	}
	if time.Since(schedules.Noted(contents.Leader)) < scheduleLeaderAge {
		d.Leader = schedules.Holder(contents.Leader)
	}
	return []plugins.ScheduleDomain{d}, nil
}
