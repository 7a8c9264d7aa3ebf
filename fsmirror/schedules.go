package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
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
)

// Schedules of snapshots of directories. They lie in the metadata pool (see
// package schedules); a level is named by the file system's id and the directory,
// "1/home", and "1" stands for all directories that are mirrored.
//
// Any worker of the file system may follow them, one does: whether or not it
// controls the directory map, which the stock module may do.

const (
	// scheduleRound is how often the schedules are looked at, scheduleUnits how
	// often the directories although no schedule changed.
	scheduleRound = 2 * time.Second
	scheduleUnits = 15 * time.Second
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

// followed is what the host has to know of the schedules of one file system, as
// long as this instance follows them.
type followed struct {
	f     *filesystem
	until time.Time
	state plugins.ScheduleDomain
	jobs  map[string]*scheduleJob
	wg    sync.WaitGroup // of the jobs under way
	ended bool
}

type scheduleJob struct {
	busy     bool
	failures uint64
	err      string
}

// scheduler holds those of all file systems.
type scheduler struct {
	mu         sync.Mutex
	generation uint64
	by         map[int64]*followed
	slots      chan struct{}
}

func newScheduler() *scheduler {
	return &scheduler{by: make(map[int64]*followed), slots: make(chan struct{}, snapshotsAtOnce)}
}

// followSchedules takes part in following the schedules of the file system until
// ctx ends. It may hang with the MDS: then another instance takes over.
func (f *filesystem) followSchedules(ctx context.Context, ioctx *rados.IOContext) {
	s := f.eng.scheduler
	w := &followed{f: f, jobs: make(map[string]*scheduleJob)}
	s.mu.Lock()
	s.by[f.id] = w
	s.mu.Unlock()
	store := schedules.NewStore(ioctx)
	r := scheduleFollower{
		f: f, w: w, store: store,
		lead: schedules.NewLead(f.eng.instance, store.SwapLeader, time.Now),
	}
	failing := ""
	for {
		err := r.round(ctx, ioctx)
		switch {
		case err == nil:
			failing = ""
		case err.Error() != failing && ctx.Err() == nil:
			failing = err.Error()
			f.log.Warn().Err(err).Msg("schedules of snapshots")
		}
		r.noteError(err)
		if !sleep(ctx, scheduleRound) {
			break
		}
	}
	s.mu.Lock()
	w.until, w.ended = time.Time{}, true
	if s.by[f.id] == w {
		delete(s.by, f.id)
	}
	s.generation++
	s.mu.Unlock()
	w.wg.Wait()
	r.resign()
}

// scheduleFollower is the part of one instance.
type scheduleFollower struct {
	f     *filesystem
	w     *followed
	store *schedules.Store
	lead  *schedules.Lead

	seen map[string]string // schedules, when the directories were looked at
	read time.Time
	took time.Duration
}

func (r *scheduleFollower) round(ctx context.Context, ioctx *rados.IOContext) error {
	contents, err := r.store.Load()
	if err != nil {
		return err
	}
	if len(contents.Schedules) == 0 {
		r.resign()
		return nil
	}
	if !r.f.eng.lease.Valid() {
		return nil // the lead runs out
	}
	led := r.lead.Leading()
	err = r.lead.Round(contents.Leader)
	if !r.lead.Leading() {
		r.setUntil(time.Time{})
		r.seen = nil
		if led {
			r.f.log.Info().Msg("another instance follows the schedules of snapshots")
		}
		return err
	}
	if !led {
		r.f.log.Info().Msg("following the schedules of snapshots")
		r.seen = nil
	}
	if err := errors.Join(err, r.look(ctx, ioctx, contents)); err != nil {
		return err
	}
	r.setUntil(r.lead.Until())
	return nil
}

func (r *scheduleFollower) look(ctx context.Context, ioctx *rados.IOContext, contents schedules.Contents) error {
	fresh := r.seen != nil && maps.Equal(r.seen, contents.Schedules)
	if fresh && time.Since(r.read) < max(scheduleUnits, 20*r.took) {
		return nil
	}
	begun := time.Now()
	src, release, err := r.f.source(ctx)
	if err != nil {
		return err
	}
	defer release()
	d, err := scheduleDomain(ioctx, src.copy, dirstore.FileSystem{ID: r.f.id, Name: r.f.name}, contents)
	if err != nil {
		return err
	}
	r.seen, r.read, r.took = contents.Schedules, begun, time.Since(begun)
	d.Leader = r.f.eng.instance
	r.change(func() { r.w.state = d })
	return nil
}

func (r *scheduleFollower) change(do func()) {
	s := r.f.eng.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	s.generation++
}

func (r *scheduleFollower) setUntil(t time.Time) {
	s := r.f.eng.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.w.until.IsZero() != t.IsZero() {
		s.generation++
	}
	r.w.until = t
}

func (r *scheduleFollower) noteError(err error) {
	text := errorText(err)
	s := r.f.eng.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.w.state.Error != text {
		r.w.state.Error = text
		s.generation++
	}
}

func (r *scheduleFollower) resign() {
	if !r.lead.Leading() {
		return
	}
	r.setUntil(time.Time{})
	r.seen = nil
	if err := r.lead.Resign(); err != nil {
		r.f.log.Debug().Err(err).Msg("giving up the schedules of snapshots")
		return
	}
	r.f.log.Info().Msg("no longer following the schedules of snapshots")
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
		if u.Own = own; len(own) > 0 {
			u.Last = own[len(own)-1].Made
		}
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

// state is what the host has to know.
func (s *scheduler) state(known uint64) plugins.ScheduleState {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, w := range s.by {
		if !w.until.IsZero() && now.After(w.until) {
			w.until = time.Time{}
			s.generation++
		}
	}
	out := plugins.ScheduleState{Generation: s.generation}
	if known == s.generation && known != 0 {
		return out
	}
	for _, id := range slices.Sorted(maps.Keys(s.by)) {
		w := s.by[id]
		if w.until.IsZero() {
			continue
		}
		d := w.state
		d.Units = slices.Clone(d.Units)
		for i, u := range d.Units {
			if j := w.jobs[u.ID]; j != nil {
				d.Units[i].Busy, d.Units[i].Failures, d.Units[i].Error = j.busy, j.failures, j.err
			}
		}
		out.Domains = append(out.Domains, d)
	}
	return out
}

// begin starts a job for a directory, given by the id of the unit.
func (s *scheduler) begin(unit string, do func(m *ceph.Mount, dir string) error) error {
	id, dir, ok := strings.Cut(unit, "/")
	fscid, err := strconv.ParseInt(id, 10, 64)
	if !ok || err != nil {
		return fmt.Errorf("%q is no directory: %w", unit, syscall.EINVAL)
	}
	dir = "/" + dir
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.by[fscid]
	if w == nil || !w.leads() {
		return fmt.Errorf("schedules of file system %s are not followed here: %w", id, syscall.ESTALE)
	}
	j := w.jobs[unit]
	if j == nil {
		j = &scheduleJob{}
		w.jobs[unit] = j
	}
	if j.busy {
		return fmt.Errorf("snapshots of %s are being made or removed: %w", dir, syscall.EALREADY)
	}
	j.busy = true
	s.generation++
	w.wg.Go(func() { w.work(j, unit, dir, do) })
	return nil
}

// leads tells whether the lead is ours for sure.
func (w *followed) leads() bool {
	return !w.ended && time.Now().Before(w.until) && w.f.eng.lease.Valid()
}

func (w *followed) work(j *scheduleJob, unit, dir string, do func(*ceph.Mount, string) error) {
	s := w.f.eng.scheduler
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	s.mu.Lock()
	ours := w.leads()
	s.mu.Unlock()
	err := error(syscall.ESTALE)
	var own []plugins.ScheduledSnapshot
	known := false
	if ours {
		var src *sources
		var release func()
		if src, release, err = w.f.source(w.f.ctx); err == nil {
			err = do(src.copy, dir)
			list, e := scheduledSnapshots(src.copy, dir)
			own, known = list, e == nil
			release()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	j.busy = false
	i := slices.IndexFunc(w.state.Units, func(u plugins.ScheduleUnit) bool { return u.ID == unit })
	if known && i >= 0 {
		units := slices.Clone(w.state.Units)
		units[i].Own, units[i].Last = own, time.Time{}
		if len(own) > 0 {
			units[i].Last = own[len(own)-1].Made
		}
		w.state.Units = units
	}
	if err == nil {
		j.err = ""
		return
	}
	if ceph.Is(err, syscall.EPERM, syscall.EACCES) {
		err = fmt.Errorf("%w (does %s have the capability mds 'allow rws'?)", err, w.f.eng.cfg.Name)
	}
	j.failures++
	j.err = err.Error()
	w.f.log.Warn().Err(err).Str("directory", dir).Msg("scheduled snapshots")
}

// run makes a snapshot of a directory.
func (s *scheduler) run(unit string) error {
	return s.begin(unit, func(m *ceph.Mount, dir string) error {
		now := time.Now()
		name := scheduledName(now)
		err := m.MakeSnapshot(dir, name, 0o755, map[string]string{scheduledBy: now.UTC().Format(time.RFC3339)})
		if err != nil {
			return fmt.Errorf("making snapshot %s: %w", name, err)
		}
		return nil
	})
}

// prune removes snapshots of a directory, if they are ours.
func (s *scheduler) prune(unit string, names []string) error {
	return s.begin(unit, func(m *ceph.Mount, dir string) error {
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

// scheduleCommand answers the host's commands about schedules.
func (e *Engine) scheduleCommand(ctx context.Context, c plugins.Command) plugins.Result {
	out, err := e.schedule(ctx, c)
	return plugins.Answer(c, out, err)
}

func (e *Engine) schedule(ctx context.Context, c plugins.Command) (any, error) {
	text := func(name string) string { s, _ := c.Args[name].(string); return s }
	switch c.Prefix {
	case plugins.ScheduleWatch:
		known, _ := strconv.ParseUint(text("generation"), 10, 64)
		return e.scheduler.state(known), nil
	case plugins.ScheduleRun:
		return struct{}{}, e.scheduler.run(text("id"))
	case plugins.SchedulePrune:
		return struct{}{}, e.scheduler.prune(text("id"), words(c.Args["names"]))
	}
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
