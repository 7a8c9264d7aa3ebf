package replay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/uuid"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// copy takes a synchronisation further: it makes the local snapshots, and fills
// them. It returns what it was about.
func (r *Replayer) copy(ctx context.Context, v *view) (*view, error) {
	r.replaying = true
	if v.step.Sync.Local == 0 {
		if err := r.prepare(ctx, v); err != nil {
			return v, err
		}
		now, err := r.again(v)
		if now == nil || err != nil || now.step.Sync.Local == 0 {
			return v, err
		}
		v = now
	}
	return v, r.transfer(ctx, v)
}

// imageState reads the image state of a remote mirror snapshot.
func (r *Replayer) imageState(ctx context.Context, image string, snap uint64) (cls.ImageState, error) {
	state, err := remotely(ctx, r, func() (cls.ImageState, error) { return r.pair.Remote.States.Read(image, snap) })
	if err != nil {
		return state, replica.Remotely(fmt.Errorf("reading the state of the remote image at its snapshot %d: %w", snap, err))
	}
	return state, nil
}

// prepare makes the local snapshots of a synchronisation.
func (r *Replayer) prepare(ctx context.Context, v *view) error {
	sync := v.step.Sync
	state, err := r.imageState(ctx, v.remote.image.ID, sync.End.ID)
	if err != nil {
		return err
	}
	e, err := r.edit(v.local.image.ID)
	if err != nil {
		return err
	}
	e.want = state
	for _, id := range sync.Drop {
		if err := e.dropSnapshot(ctx, id); err != nil {
			return err
		}
	}
	if v.compare && sync.Full && !v.step.Resync {
		links, err := r.spoilt(ctx, v, e)
		if err != nil {
			return err
		}
		sync.Rebuild(links)
	}
	if err := e.makeSnapshots(ctx, v, state); err != nil {
		return err
	}
	// What an interrupted synchronisation left has had its time.
	base := uint64(0)
	if sync.Base != nil {
		base = sync.Base.Local
	}
	for _, s := range e.head.Snapshots {
		if m := s.Namespace.Mirror; m != nil && s.ID > base && s.ID != r.own && !m.Primary() && !m.Complete && !m.Orphan() {
			if err := e.removeSnapshot(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	return e.notify()
}

// editor changes the local image. It knows what its header says now.
type editor struct {
	r    *Replayer
	h    *store.Header
	head *store.Image
	data *rados.IOContext
	want cls.ImageState // what the image is to become
}

// edit returns an editor of the local image, whose lock must be held.
func (r *Replayer) edit(id string) (*editor, error) {
	e := &editor{r: r, h: r.header()}
	if r.lock.Image != id {
		return nil, fmt.Errorf("%s: the lock is not held: %w", store.HeaderObject(id), syscall.EBUSY)
	}
	if err := e.reload(); err != nil {
		return nil, err
	}
	var err error
	e.data, err = r.pair.Local.DataContext(e.head.DataPool)
	return e, err
}

func (e *editor) reload() error {
	head, err := e.h.Load()
	if err != nil {
		return err
	}
	e.head = head
	return nil
}

// ready tells whether one may go on.
func (e *editor) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if !e.r.mayWrite() {
		return errLease
	}
	return nil
}

func (e *editor) notify() error { return e.h.Notify() }

func (e *editor) hasMap() bool { return e.head.Has(cls.FeatureObjectMap) }

func (e *editor) objectMap(snap uint64) *store.ObjectMap {
	return e.r.pair.Local.ObjectMap(e.head.ID, snap)
}

// resize gives the head the size, and the part of the parent, that a remote
// snapshot has.
func (e *editor) resize(ctx context.Context, v *view, s cls.Snapshot) error {
	if err := e.ready(ctx); err != nil {
		return err
	}
	if s.ParentOverlap == nil {
		if err := e.setParent(ctx, v, s); err != nil {
			return err
		}
	}
	if e.hasMap() {
		if err := e.objectMap(cls.NoSnap).Resize(e.head.Objects(s.Size), objectmap.NonExistent); err != nil {
			return err
		}
	}
	if e.head.Size != s.Size {
		if err := e.h.SetSize(s.Size); err != nil {
			return err
		}
		e.head.Size = s.Size
	}
	return e.setParent(ctx, v, s)
}

// makeSnapshots makes the local snapshots of a synchronisation: user snapshots,
// then the mirror snapshot with its image state.
func (e *editor) makeSnapshots(ctx context.Context, v *view, state cls.ImageState) error {
	sync := v.step.Sync
	if e.head.SnapLimit != cls.NoLimit {
		// It counts mirror snapshots, of which there are more for a while.
		if err := e.h.SetSnapLimit(cls.NoLimit); err != nil {
			return err
		}
	}
	seqs := maps.Clone(sync.SnapSeqs)
	first := sync.First
	for _, link := range sync.Chain {
		local := link.Local
		if local == 0 {
			if err := e.resize(ctx, v, link.Remote); err != nil {
				return err
			}
			var err error
			if local, err = store.AddSnapshot(e.h, e.data, plan.Unfinished(link.Remote), cls.User); err != nil {
				return err
			}
		}
		if e.hasMap() {
			m := e.objectMap(local)
			if link.Local != 0 {
				if _, err := m.Load(); err == nil {
					seqs[link.Remote.ID] = local
					continue
				} else if !ceph.Is(err, syscall.ENOENT) {
					return err
				}
			}
			if err := m.Resize(e.head.Objects(link.Remote.Size), objectmap.NonExistent); err != nil {
				return err
			}
			first = 0
		}
		seqs[link.Remote.ID] = local
	}
	if err := e.resize(ctx, v, sync.End); err != nil {
		return err
	}
	seqs[sync.End.ID] = cls.NoSnap
	m := cls.MirrorNamespace{
		State: cls.MirrorNonPrimary, PrimaryUUID: e.r.cfg.Remote.MirrorUUID, PrimarySnapID: sync.End.ID,
		LastCopied: first, SnapSeqs: seqs,
	}
	if sync.Demoted() {
		m.State, m.Peers = cls.MirrorNonPrimaryDemoted, sync.Peers
	}
	name := ".mirror.non_primary." + e.r.cfg.GlobalID + "." + uuid.NewString()
	id, err := e.addSnapshot(ctx, name, cls.Mirror(m))
	if err != nil {
		return err
	}
	if e.hasMap() {
		head := e.objectMap(cls.NoSnap)
		now, err := head.Load()
		if err != nil {
			return err
		}
		if err := e.objectMap(id).Save(now); err != nil {
			return err
		}
		if err := head.SnapAdd(); err != nil {
			return err
		}
	}
	if err := e.r.pair.Local.States.Write(e.head.ID, id, state); err != nil {
		return err
	}
	e.r.own, e.r.ownFull = id, sync.Full
	return e.reload()
}

// transfer copies the data of a synchronisation and completes it.
func (r *Replayer) transfer(ctx context.Context, v *view) error {
	began := time.Now()
	sync := v.step.Sync
	e, err := r.edit(v.local.image.ID)
	if err != nil {
		return err
	}
	// Remote snapshots that were removed since the local ones were made.
	for _, id := range sync.Drop {
		if err := e.dropSnapshot(ctx, id); err != nil {
			return err
		}
	}
	job, err := r.job(ctx, v, e)
	if err != nil {
		return err
	}
	r.log.Info().Uint64("remote_snapshot", sync.End.ID).Uint64("local_snapshot", sync.Local).Uint64("first_object", sync.First).
		Int("user_snapshots", len(sync.Chain)).Bool("full_comparison", sync.Full).Msg("synchronising")
	if err := r.run1(ctx, v, job, began); err != nil {
		return err
	}
	missing, err := r.verify(ctx, v)
	if err != nil {
		return err
	}
	for _, id := range missing {
		if err := e.dropSnapshot(ctx, id); err != nil {
			return err
		}
	}
	if err := e.apply(ctx, v); err != nil {
		return err
	}
	if err := e.ready(ctx); err != nil {
		return err
	}
	if err := e.h.SetCopyProgress(sync.Local, true, e.head.Objects(sync.End.Size)); err != nil {
		return err
	}
	r.own, r.ownFull = 0, false
	if err := r.settle(v, e, job.Stats.Repaired.Load()); err != nil {
		return err
	}
	if v.step.Resync {
		if err := e.h.RemoveMetadata(resyncKey(r.cfg.Local.MirrorUUID)); err != nil {
			return err
		}
	}
	bytes, took := job.Stats.Written.Load()+job.Stats.Zeroed.Load(), time.Since(began)
	r.past.Add(bytes, took, time.Now())
	r.reports.Update(func(s *replica.Status) {
		s.Syncing = false
		s.LastSync = time.Now().Round(0)
		s.LocalTime = sync.End.Timestamp
		s.Snapshots++
		s.SyncSeconds += took.Seconds()
		s.SyncBytes += bytes
		s.LastSyncSeconds, s.LastSyncBytes = took.Seconds(), bytes
	})
	r.log.Info().Uint64("remote_snapshot", sync.End.ID).Uint64("local_snapshot", sync.Local).Uint64("bytes", bytes).
		Uint64("objects", job.Stats.Changed.Load()).Dur("took", took).Msg("synchronised")
	return e.notify()
}

// job describes the copy for imagesync.
func (r *Replayer) job(ctx context.Context, v *view, e *editor) (*imagesync.Job, error) {
	sync, remote := v.step.Sync, v.remote.head
	job, err := r.bareJob(v, e)
	if err != nil {
		return nil, err
	}
	job.Resume, job.FullCompare = sync.First, sync.Full
	job.SaveProgress = func(_ context.Context, object uint64) error { return e.h.SetCopyProgress(sync.Local, false, object) }
	if sync.Base != nil && !sync.Full {
		job.Start = sync.Base.Remote
		job.StartObjects = remote.Objects(remote.Snapshot(job.Start).Size)
	}
	if sync.Full {
		job.StartObjects = e.head.MaxObjects() // what is beyond the end has to go
	}
	for _, l := range sync.Chain {
		if l.Local == 0 {
			return nil, fmt.Errorf("there is no local snapshot for the remote one %d (%s)", l.Remote.ID, l.Remote.Name)
		}
		job.Targets = append(job.Targets, imagesync.Target{Remote: l.Remote.ID, Local: l.Local, Objects: remote.Objects(l.Remote.Size)})
	}
	job.Targets = append(job.Targets, imagesync.Target{Remote: sync.End.ID, Local: sync.Local, Objects: remote.Objects(sync.End.Size)})
	for _, s := range e.head.Snapshots {
		if !slices.ContainsFunc(job.Targets, func(t imagesync.Target) bool { return t.Local == s.ID }) {
			job.Existing = append(job.Existing, imagesync.Snapshot{ID: s.ID, Objects: e.head.Objects(s.Size)})
		}
	}
	if job.SourceMaps = r.sourceMaps(ctx, v, job.Start); job.SourceMaps != nil && job.Start != 0 {
		job.SourceMaps.ExistenceOnly = r.mayBeRolledBack(v)
	}
	return job, nil
}

// bareJob describes both images for imagesync.
func (r *Replayer) bareJob(v *view, e *editor) (*imagesync.Job, error) {
	remote := v.remote.head
	source, err := r.pair.Remote.DataContext(remote.DataPool)
	if err != nil {
		return nil, replica.Remotely(err)
	}
	job := &imagesync.Job{
		Source:     imagesync.Objects{IO: source, Prefix: remote.Prefix},
		Dest:       imagesync.Objects{IO: e.data, Prefix: e.head.Prefix},
		ObjectSize: e.head.ObjectSize(),
		Memory:     r.cfg.Memory, Limit: r.rate, Concurrency: r.opts.ObjectsAhead, Stats: &imagesync.Stats{},
	}
	if r.cfg.Lease != nil {
		job.Lease = r.cfg.Lease
	}
	if e.hasMap() && e.head.Flags&cls.FlagObjectMapInvalid == 0 {
		job.Maps = &localMaps{e}
	}
	return job, nil
}

// sourceMaps offers the remote image's object maps if they can be relied on.
func (r *Replayer) sourceMaps(ctx context.Context, v *view, start uint64) *imagesync.SourceMaps {
	remote, end := v.remote.head, v.step.Sync.End.ID
	const invalid = cls.FlagObjectMapInvalid | cls.FlagFastDiffInvalid
	if !remote.Has(cls.FeatureObjectMap|cls.FeatureFastDiff) || remote.Flags&invalid != 0 || v.step.Sync.Full {
		return nil
	}
	maps := &imagesync.SourceMaps{}
	for _, s := range remote.Snapshots {
		if s.ID < start || s.ID > end {
			continue
		}
		if s.Flags&invalid != 0 {
			return nil
		}
		if s.ID > start {
			maps.Snaps = append(maps.Snaps, s.ID)
		}
	}
	maps.Load = func(_ context.Context, snap uint64) (*objectmap.Map, error) {
		return remotely(ctx, r, func() (*objectmap.Map, error) { return r.pair.Remote.ObjectMap(remote.ID, snap).Load() })
	}
	return maps
}

// mayBeRolledBack tells whether the remote image had snapshots at the base of a
// synchronisation to which it could be rolled back since. That they are gone
// now does not matter, nor is there a trace of a rollback.
func (r *Replayer) mayBeRolledBack(v *view) bool {
	base, remote := v.step.Sync.Base, v.remote.head
	if remote.OpFeatures&cls.OpFeatureGroup != 0 {
		return true // a group's snapshots are in no image state
	}
	for _, s := range remote.Snapshots {
		if s.ID < base.Remote && s.Namespace.Mirror == nil {
			return true
		}
	}
	state, err := r.pair.Local.States.Read(v.local.head.ID, base.Local)
	return err != nil || len(state.Snapshots) > 0
}

// localMaps are the local image's object maps.
type localMaps struct{ e *editor }

func (m *localMaps) Load(_ context.Context, snap uint64) (*objectmap.Map, error) {
	return m.e.objectMap(snap).Load()
}

func (m *localMaps) Save(_ context.Context, snap uint64, om *objectmap.Map) error {
	return m.e.objectMap(snap).Save(om)
}

func (m *localMaps) Update(_ context.Context, snap, start, end uint64, state objectmap.State) error {
	return m.e.objectMap(snap).Update(start, end, state, nil)
}

// run1 carries the job out and tells of its progress.
func (r *Replayer) run1(ctx context.Context, v *view, job *imagesync.Job, began time.Time) error {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticks := time.NewTicker(r.opts.ReportEvery)
		defer ticks.Stop()
		for {
			r.syncing(v, job.Stats, began)
			select {
			case <-ticks.C:
			case <-stop:
				return
			}
		}
	})
	err := imagesync.Run(ctx, *job)
	close(stop)
	wg.Wait()
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("copying the remote image's snapshot %d: %w", v.step.Sync.End.ID, err)
	}
	return nil
}

// syncing reports a synchronisation that is under way.
func (r *Replayer) syncing(v *view, stats *imagesync.Stats, began time.Time) {
	sync := v.step.Sync
	remote, local := r.times(v)
	done, total, bytes := stats.Done.Load(), stats.Total.Load(), stats.Written.Load()
	text := r.past.Describe(plan.Replay{
		Remote: remote, Local: local, Syncing: sync.End.Timestamp, Done: done, Total: total, Bytes: bytes, Began: began, Left: v.step.Left,
	}, time.Now())
	r.reports.Update(func(s *replica.Status) {
		if s.State == replica.StateError && done == 0 {
			return // what failed may fail again
		}
		s.State, s.Description, s.Phase = replica.StateReplaying, text, replica.Replaying
		s.Err, s.NextTry, s.Failures = nil, time.Time{}, 0
		s.Syncing, s.ObjectsDone, s.ObjectsTotal, s.BytesCopied = true, done, total, bytes
		s.RemoteTime, s.LocalTime = remote, local
		s.Wait("")
	})
}

// verify makes sure that the remote still has all that the copy rests on. It
// returns the local user snapshots whose originals were removed meanwhile: what
// was read of those may be of a later time.
func (r *Replayer) verify(ctx context.Context, v *view) ([]uint64, error) {
	sync, id := v.step.Sync, v.remote.image.ID
	now, err := remotely(ctx, r, func() (*store.Image, error) { return store.NewHeader(r.pair.Remote.IO, id).Load() })
	if err != nil {
		return nil, replica.Remotely(fmt.Errorf("reading the remote image: %w", err))
	}
	if !sync.Full && sync.Base != nil && now.Snapshot(sync.Base.Remote) == nil {
		return nil, fmt.Errorf("the remote image's snapshot %d, from which on changes were copied, was removed meanwhile", sync.Base.Remote)
	}
	if now.Snapshot(sync.End.ID) == nil {
		return nil, fmt.Errorf("the remote image's snapshot %d was removed while it was copied", sync.End.ID)
	}
	var missing []uint64
	for _, l := range sync.Chain {
		if s := now.Snapshot(l.Remote.ID); s == nil {
			missing = append(missing, l.Local)
		}
	}
	return missing, nil
}

// unlink tells the remote image which of its snapshots are no longer needed.
func (r *Replayer) unlink(ctx context.Context, v *view) error {
	id, ids, peer := v.remote.image.ID, slices.Clone(v.step.Snapshots), v.step.Peer
	err := replica.Do(ctx, &r.pair.Calls, r.opts.CallTimeout, func() error {
		h := store.NewHeader(r.pair.Remote.IO, id)
		for _, snap := range ids {
			// EINVAL: it has been moved to the trash meanwhile.
			if err := h.UnlinkPeer(snap, peer); err != nil && !ceph.Is(err, syscall.EINVAL) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return replica.Remotely(fmt.Errorf("releasing snapshots of the remote image: %w", err))
	}
	r.pair.Calls.Go(func() { _ = store.NewHeader(r.pair.Remote.IO, id).Notify() })
	return nil
}

// prune removes local mirror snapshots that nobody needs.
func (r *Replayer) prune(ctx context.Context, v *view) error {
	e, err := r.edit(v.local.image.ID)
	if err != nil {
		return err
	}
	for _, id := range v.step.Snapshots {
		if err := e.removeSnapshot(ctx, id); err != nil {
			return err
		}
	}
	return e.notify()
}
