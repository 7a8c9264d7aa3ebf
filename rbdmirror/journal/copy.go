package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rbd"
	"github.com/google/uuid"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/journal/plan"
	"cephmirror/rbdmirror/journal/stream"
	"cephmirror/rbdmirror/journal/target"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// copy copies the remote image as it was at one moment, a sync point: a snapshot of
// it that is made for the purpose. Replay begins at that snapshot's creation, so
// that nothing has its effect twice.
func (r *Replayer) copy(ctx context.Context, v *view) error {
	local, remote := v.local.image, v.remote.image
	if r.cfg.Throttle != nil && r.slot == nil {
		r.bootstrapping("IMAGE_SYNC/NOTIFY_SYNC_REQUEST")
		release, err := r.cfg.Throttle.Acquire(ctx, local.ID)
		if err != nil {
			return fmt.Errorf("waiting for a slot to synchronise in: %w", err)
		}
		r.slot = release
		return nil // what was seen may be old by now
	}
	defer func() {
		if r.slot != nil {
			r.slot()
			r.slot = nil
		}
	}()
	src, err := r.openSource(ctx, remote.ID)
	if err != nil {
		return err
	}
	t, _, err := r.hold(local.ID, nil)
	if err != nil {
		return err
	}
	defer t.Close()
	c := &copying{r: r, src: src, t: t, peer: v.remote.peer.Clone(), h: store.NewHeader(r.pair.Local.IO, local.ID), from: v.remote.client.Committed}
	c.h.Cookie = r.lock.Cookie
	ctx, cancel := context.WithCancelCause(ctx)
	var guard sync.WaitGroup
	defer guard.Wait()
	guard.Go(func() { c.guard(ctx, cancel) })
	defer cancel(nil)
	if err := c.run(ctx); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errPromoted) || errors.Is(cause, errResync) {
			return nil
		}
		return err
	}
	r.log.Info().Str("local", local.ID).Str("remote", remote.ID).Msg("the first copy is complete")
	return nil
}

// copying is one copying of an image.
type copying struct {
	r     *Replayer
	src   source
	t     *target.Target
	h     *store.Header // of the local image, under the lock
	peer  *format.PeerClient
	from  format.Positions // where the journal is kept from
	began time.Time
}

// guard ends the copying when the local image becomes something else.
func (c *copying) guard(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.r.check:
		}
		owner, master, err := journalOf(c.r.pair.Local, c.t.Header().ID).Owner()
		switch {
		case err != nil:
		case owner.MirrorUUID == format.LocalUUID:
			cancel(errPromoted)
		case master.ResyncRequested:
			cancel(errResync)
		}
	}
}

func (c *copying) update(ctx context.Context) error { return c.r.updatePeer(ctx, c.src.image, c.peer) }

func (c *copying) loadRemote(ctx context.Context) (*store.Image, error) {
	img, err := replica.Ask(ctx, &c.r.pair.Calls, c.r.opts.CallTimeout, store.NewHeader(c.r.pair.Remote.IO, c.src.image).Load)
	return img, replica.Remotely(err)
}

func (c *copying) run(ctx context.Context) error {
	c.began = time.Now()
	c.r.bootstrapping("IMAGE_SYNC/PRUNE_CATCH_UP_SYNC_POINT")
	if done, err := c.finished(ctx); done || err != nil {
		return err
	}
	if err := c.prune(ctx); err != nil {
		return err
	}
	remote, point, err := c.begin(ctx)
	if err != nil {
		return err
	}
	if err := c.align(ctx, remote); err != nil {
		return err
	}
	chain, err := c.snapshots(ctx, remote, point)
	if err != nil {
		return err
	}
	if err := c.update(ctx); err != nil {
		return err
	}
	if err := c.objects(ctx, remote, chain); err != nil {
		return err
	}
	if err := c.properties(remote, chain); err != nil {
		return err
	}
	c.r.bootstrapping("IMAGE_SYNC/FLUSH_SYNC_POINT")
	if err := c.position(ctx); err != nil {
		return err
	}
	c.r.bootstrapping("IMAGE_SYNC/PRUNE_SYNC_POINTS")
	return c.complete(ctx)
}

// beginTries is how many sync points are made until snapshots can be listed as they
// were at one.
const beginTries = 10

// begin makes a sync point, unless there is one to go on with, and lists the
// snapshots. The journal tells of them by their names, so the copies must have those
// that were in use at the sync point, and nothing may have happened to them until
// they are listed.
func (c *copying) begin(ctx context.Context) (remote *store.Image, point *cls.Snapshot, err error) {
	for range beginTries {
		if len(c.peer.SyncPoints) == 0 {
			// What an earlier try has left is not to be relied on.
			if err := c.clear(ctx); err != nil {
				return nil, nil, err
			}
			c.r.bootstrapping("IMAGE_SYNC/CREATE_SYNC_POINT")
			if err := c.createPoint(ctx); err != nil {
				return nil, nil, err
			}
		}
		name := c.peer.SyncPoints[0].SnapName
		if remote, err = c.loadRemote(ctx); err != nil {
			return nil, nil, err
		}
		if point = named(remote, name); point == nil {
			return nil, nil, replica.Remotely(fmt.Errorf("the snapshot %s of the remote image is gone: %w", name, syscall.ENOENT))
		}
		if c.listed(remote, point) {
			return remote, point, nil
		}
		since, err := c.since(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		if since.quiet && len(c.peer.SnapSeqs) == 0 && len(c.t.Header().Snapshots) == 0 {
			return remote, point, nil
		}
		c.r.log.Debug().Str("point", name).Msg("snapshots were changed since the sync point: another one is needed")
		if err := c.removePoint(ctx, name); err != nil {
			return nil, nil, err
		}
		c.peer.SyncPoints, c.peer.SnapSeqs = nil, map[uint64]uint64{}
		if err := c.update(ctx); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, replica.Remotely(fmt.Errorf("the snapshots of the remote image change all the time: %w", syscall.EAGAIN))
}

// wanted says that a snapshot of the remote image is to be copied.
func wanted(s, point *cls.Snapshot) bool { return s.ID == point.ID || s.ID < point.ID && keepable(s) }

// keepable says that a snapshot of the remote image is its user's.
func keepable(s *cls.Snapshot) bool {
	return s.Namespace.Type == cls.NamespaceUser && !strings.HasPrefix(s.Name, ".rbd-mirror.")
}

// align makes up for what the remote image has become since the local one was made.
func (c *copying) align(ctx context.Context, remote *store.Image) error {
	name, err := replica.Ask(ctx, &c.r.pair.Calls, c.r.opts.CallTimeout, func() (string, error) { return c.r.pair.Remote.Dir.Name(remote.ID) })
	if err != nil {
		return replica.Remotely(err)
	}
	return c.t.Align(ctx, remote.Features, name)
}

// sweep removes sync points of ours that nobody knows of any more: who has asked for
// one may have died before it was made.
func (c *copying) sweep(ctx context.Context, remote *store.Image) error {
	for _, s := range remote.Snapshots {
		known := slices.ContainsFunc(c.peer.SyncPoints, func(p format.SyncPoint) bool { return p.SnapName == s.Name })
		if s.Namespace.Type == cls.NamespaceUser && strings.HasPrefix(s.Name, c.r.pointPrefix()) && !known {
			c.r.log.Info().Str("snapshot", s.Name).Msg("removing a sync point that was left over")
			if err := c.removePoint(ctx, s.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// pointPrefix is what the names of our sync points begin with.
func (r *Replayer) pointPrefix() string { return ".rbd-mirror." + r.cfg.Local.MirrorUUID + "." }

// listed says that all snapshots have local ones already.
func (c *copying) listed(remote *store.Image, point *cls.Snapshot) bool {
	for i := range remote.Snapshots {
		s := &remote.Snapshots[i]
		if id, ok := c.peer.SnapSeqs[s.ID]; wanted(s, point) && (!ok || c.t.Header().Snapshot(id) == nil) {
			return false
		}
	}
	return true
}

// clear removes what an earlier try has left.
func (c *copying) clear(ctx context.Context) error {
	if c.peer.SyncObjectCount == 0 {
		if len(c.t.Header().Snapshots) == 0 {
			return nil
		}
		// Should this break off, there may be objects without snapshots.
		c.peer.SyncObjectCount = 1
		if err := c.update(ctx); err != nil {
			return err
		}
	}
	if err := c.t.Clear(ctx); err != nil {
		return fmt.Errorf("removing what an earlier copying has left: %w", err)
	}
	c.peer.SnapSeqs, c.peer.SyncObjectCount = map[uint64]uint64{}, 0
	return nil
}

func named(img *store.Image, name string) *cls.Snapshot {
	for i := range img.Snapshots {
		if s := &img.Snapshots[i]; s.Name == name && s.Namespace.Type == cls.NamespaceUser {
			return s
		}
	}
	return nil
}

// finished completes a copying of which only the last step is missing.
func (c *copying) finished(ctx context.Context) (bool, error) {
	rec, err := target.ReadRecord(c.r.pair.Local.IO, c.t.Header().ID)
	if err != nil || rec == nil || rec.MirrorUUID != c.src.uuid || rec.ImageID != c.src.image {
		return false, err
	}
	return true, c.complete(ctx)
}

// complete removes the sync point, and then says that the journal is replayed from
// now on.
func (c *copying) complete(ctx context.Context) error {
	for _, p := range c.peer.SyncPoints {
		if err := c.removePoint(ctx, p.SnapName); err != nil {
			return err
		}
	}
	c.peer.SyncPoints, c.peer.State = nil, format.Replaying
	if err := c.update(ctx); err != nil {
		return err
	}
	remote, err := c.loadRemote(ctx)
	if err != nil {
		return err
	}
	return c.sweep(ctx, remote)
}

// prune gives up sync points that cannot be used.
func (c *copying) prune(ctx context.Context) error {
	if len(c.peer.SyncPoints) == 0 {
		return nil
	}
	remote, err := c.loadRemote(ctx)
	if err != nil {
		return err
	}
	keep := 1
	if first := c.peer.SyncPoints[0]; first.FromSnapName != "" || named(remote, first.SnapName) == nil {
		keep = 0
	}
	if keep == len(c.peer.SyncPoints) {
		return nil
	}
	for _, p := range c.peer.SyncPoints[keep:] {
		if err := c.removePoint(ctx, p.SnapName); err != nil {
			return err
		}
	}
	c.peer.SyncPoints = c.peer.SyncPoints[:keep]
	return c.update(ctx)
}

// withRemote opens the remote image as its users do: what is done to it this way is
// told by its journal.
func (c *copying) withRemote(ctx context.Context, f func(*rbd.Image) error) error {
	return replica.Remotely(replica.Do(ctx, &c.r.pair.Calls, c.r.opts.CallTimeout, func() error {
		img, err := rbd.OpenImageById(c.r.pair.Remote.IO, c.src.image, rbd.NoSnapshot)
		if err != nil {
			return fmt.Errorf("opening the remote image: %w", err)
		}
		return errors.Join(f(img), img.Close())
	}))
}

func (c *copying) createPoint(ctx context.Context) error {
	for range 3 {
		name := c.r.pointPrefix() + uuid.NewString()
		c.peer.SyncPoints = []format.SyncPoint{{SnapName: name}}
		c.peer.SnapSeqs = map[uint64]uint64{}
		if err := c.update(ctx); err != nil {
			return err
		}
		err := c.withRemote(ctx, func(img *rbd.Image) error {
			_, err := img.CreateSnapshot(name)
			return err
		})
		if !ceph.Is(err, syscall.EEXIST) {
			return err
		}
	}
	return fmt.Errorf("making a sync point: %w", syscall.EEXIST)
}

func (c *copying) removePoint(ctx context.Context, name string) error {
	if !strings.HasPrefix(name, c.r.pointPrefix()) {
		return nil
	}
	err := c.withRemote(ctx, func(img *rbd.Image) error { return img.GetSnapshot(name).Remove() })
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// link is a snapshot of the remote image and its local copy.
type link struct {
	remote cls.Snapshot
	local  uint64
}

// snapshots makes those local snapshots that are missing, up to the sync point's.
func (c *copying) snapshots(ctx context.Context, remote *store.Image, point *cls.Snapshot) ([]link, error) {
	if err := c.h.SetSnapLimit(cls.NoLimit); err != nil {
		return nil, err
	}
	seqs := c.peer.SnapSeqs
	c.peer.SnapSeqs = map[uint64]uint64{}
	// Those that are gone at the remote image, or that nobody knows of, are not
	// what their names say.
	if err := c.t.RemoveSnapshots(ctx, func(have cls.Snapshot) bool {
		return !slices.ContainsFunc(remote.Snapshots, func(s cls.Snapshot) bool {
			id, ok := seqs[s.ID]
			return ok && id == have.ID && wanted(&s, point)
		})
	}); err != nil {
		return nil, err
	}
	var chain []link
	for i := range remote.Snapshots {
		s := remote.Snapshots[i]
		if !wanted(&s, point) {
			continue
		}
		l := link{remote: s}
		if id, ok := seqs[s.ID]; ok && c.t.Header().Snapshot(id) != nil {
			l.local = id
		} else {
			if err := c.shape(ctx, remote, s); err != nil {
				return nil, err
			}
			id, err := store.AddSnapshot(c.h, c.t.Data(), s.Name, cls.User)
			if err != nil {
				return nil, err
			}
			l.local = id
			if c.t.Header().Has(cls.FeatureObjectMap) {
				m := store.NewObjectMap(c.r.pair.Local.IO, c.t.Header().ID, id)
				if err := m.Resize(remote.Objects(s.Size), objectmap.NonExistent); err != nil {
					return nil, err
				}
			}
		}
		c.peer.SnapSeqs[s.ID] = l.local
		chain = append(chain, l)
	}
	if err := c.shape(ctx, remote, *point); err != nil {
		return nil, err
	}
	return chain, nil
}

// shape gives the local head the size, and the part of the parent, that a remote
// snapshot has. The head of the remote image may have shown another part of it when
// the local image was made, and where there is nothing else, that is the content.
func (c *copying) shape(ctx context.Context, remote *store.Image, s cls.Snapshot) error {
	if s.ParentOverlap == nil {
		if err := c.t.Detach(ctx); err != nil {
			return fmt.Errorf("detaching the local image from its parent: %w", err)
		}
		return c.resize(s.Size)
	}
	if err := c.resize(s.Size); err != nil {
		return err
	}
	if remote.ParentOverlap == nil && !c.t.Header().Parent.Exists() {
		// Flattened before it was first seen, or that far already: what its
		// snapshots showed is in objects of its own. The parent need not be here.
		return nil
	}
	if err := c.r.pair.ShowParent(ctx, remote, c.h, c.t.Header(), s); err != nil {
		return fmt.Errorf("showing the local image's parent: %w", err)
	}
	return c.t.Reload()
}

// resize gives the local head a size, and its object map.
func (c *copying) resize(size uint64) error {
	if err := c.t.Reload(); err != nil {
		return err
	}
	img := c.t.Header()
	if img.Size == size {
		return nil
	}
	if img.Has(cls.FeatureObjectMap) {
		m := store.NewObjectMap(c.r.pair.Local.IO, img.ID, cls.NoSnap)
		m.AssertLocked = true
		if err := m.Resize(img.Objects(size), objectmap.NonExistent); err != nil {
			return err
		}
	}
	if err := c.h.SetSize(size); err != nil {
		return err
	}
	return c.t.Reload()
}

// objects copies the data.
func (c *copying) objects(ctx context.Context, remote *store.Image, chain []link) error {
	if err := c.t.Reload(); err != nil {
		return err
	}
	img := c.t.Header()
	data, err := c.r.pair.Remote.DataContext(remote.DataPool)
	if err != nil {
		return replica.Remotely(err)
	}
	var stats imagesync.Stats
	job := imagesync.Job{
		Source:     imagesync.Objects{IO: data, Prefix: remote.Prefix},
		Dest:       imagesync.Objects{IO: c.t.Data(), Prefix: img.Prefix},
		ObjectSize: img.ObjectSize(),
		Memory:     c.r.cfg.Memory, Limit: c.r.rate, Concurrency: c.r.opts.ObjectsAhead, Stats: &stats,
		SaveEvery: c.r.tuning(nil).SyncPointAge,
	}
	if c.r.cfg.Lease != nil {
		job.Lease = c.r.cfg.Lease
	}
	if img.Has(cls.FeatureObjectMap) {
		job.Maps = &copyMaps{c}
	}
	for _, l := range chain {
		job.Targets = append(job.Targets, imagesync.Target{Remote: l.remote.ID, Local: l.local, Objects: remote.Objects(l.remote.Size)})
	}
	for _, s := range img.Snapshots {
		if !slices.ContainsFunc(chain, func(l link) bool { return l.local == s.ID }) {
			job.Existing = append(job.Existing, imagesync.Snapshot{ID: s.ID, Objects: img.Objects(s.Size)})
		}
	}
	if o := c.peer.SyncPoints[0].Object; o != nil {
		job.Resume = *o
	}
	job.SaveProgress = func(ctx context.Context, object uint64) error {
		c.peer.SyncPoints[0].Object = &object
		c.peer.SyncObjectCount = max(c.peer.SyncObjectCount, object+1)
		return c.update(ctx)
	}
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(c.r.opts.ReportEvery)
		defer ticker.Stop()
		for {
			c.progress(&stats)
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
		}
	}()
	err = imagesync.Run(ctx, job)
	close(stop)
	<-ended
	if err != nil {
		return err
	}
	now, err := c.loadRemote(ctx)
	if err != nil {
		return err
	}
	point := chain[len(chain)-1].remote
	if now.Snapshot(point.ID) == nil {
		return replica.Remotely(fmt.Errorf("the snapshot %s of the remote image was removed while it was copied", point.Name))
	}
	// Of one that was removed meanwhile nobody knows whether all was copied.
	for _, l := range chain {
		if now.Snapshot(l.remote.ID) == nil {
			delete(c.peer.SnapSeqs, l.remote.ID)
		}
	}
	return c.t.RemoveSnapshots(ctx, func(have cls.Snapshot) bool {
		return !slices.ContainsFunc(chain, func(l link) bool { return l.local == have.ID && now.Snapshot(l.remote.ID) != nil })
	})
}

func (c *copying) progress(stats *imagesync.Stats) {
	done, total := stats.Done.Load(), stats.Total.Load()
	percent := uint64(0)
	if total > 0 {
		percent = done * 100 / total
	}
	c.r.reports.Update(func(s *replica.Status) {
		s.State, s.Description, s.Phase = replica.StateSyncing, fmt.Sprintf("bootstrapping, IMAGE_SYNC/COPY_IMAGE %d%%", percent), replica.Starting
		s.Syncing, s.ObjectsDone, s.ObjectsTotal, s.BytesCopied = true, done, total, stats.Read.Load()
		s.Err = nil
	})
}

// copyMaps are the object maps of the local image.
type copyMaps struct{ c *copying }

func (m *copyMaps) of(snap uint64) *store.ObjectMap {
	o := store.NewObjectMap(m.c.r.pair.Local.IO, m.c.t.Header().ID, snap)
	o.AssertLocked = snap == cls.NoSnap
	return o
}

func (m *copyMaps) Load(_ context.Context, snap uint64) (*objectmap.Map, error) {
	return m.of(snap).Load()
}

func (m *copyMaps) Save(_ context.Context, snap uint64, om *objectmap.Map) error {
	return m.of(snap).Save(om)
}

func (m *copyMaps) Update(_ context.Context, snap, start, end uint64, state objectmap.State) error {
	return m.of(snap).Update(start, end, state, nil)
}

// properties gives the local image what else the remote one has. What of it was
// changed after the sync point is changed again by the journal.
func (c *copying) properties(remote *store.Image, chain []link) error {
	metadata := make(map[string][]byte)
	for k, v := range remote.Metadata {
		if !strings.HasPrefix(k, ".rbd") {
			metadata[k] = v
		}
	}
	for k := range c.t.Header().Metadata {
		if _, ok := metadata[k]; !ok && !strings.HasPrefix(k, ".rbd") {
			if err := c.h.RemoveMetadata(k); err != nil {
				return err
			}
		}
	}
	if err := c.h.SetMetadata(metadata); err != nil {
		return err
	}
	for _, l := range chain {
		if l.remote.Protection == cls.Protected && c.t.Header().Snapshot(l.local) != nil {
			if err := c.h.SetProtection(l.local, cls.Protected); err != nil {
				return err
			}
		}
	}
	// It counts the sync point, which is still there.
	if remote.SnapLimit != cls.NoLimit && remote.SnapLimit >= uint64(len(c.t.Header().Snapshots)) {
		if err := c.h.SetSnapLimit(remote.SnapLimit); err != nil && !ceph.Is(err, syscall.ERANGE) {
			return err
		}
	}
	return nil
}

// position stores and tells that everything before the sync point's creation is
// done, which is where replay begins.
func (c *copying) position(ctx context.Context) error {
	since, err := c.since(ctx, c.peer.SyncPoints[0].SnapName)
	if err != nil {
		return err
	}
	return c.startAt(ctx, since.begin)
}

// since is what the journal says from the creation of a sync point on.
type since struct {
	begin format.Positions // everything up to the creation
	// quiet says that no operation was under way then, and that no snapshot was
	// changed until the journal was read.
	quiet bool
}

// since finds the creation of a sync point in the journal, and what follows it.
func (c *copying) since(ctx context.Context, name string) (out since, err error) {
	header, err := replica.Ask(ctx, &c.r.pair.Calls, c.r.opts.CallTimeout, c.src.journal.Look)
	if err != nil {
		return out, replica.Remotely(err)
	}
	g := c.src.geometry
	reader := stream.New(stream.Geometry{Order: g.Order, Splay: g.Splay}, c.from, header.Minimum)
	reader.Saw(reader.Look(), header.Active, header.Newest())
	done := c.from
	out.quiet = true
	open := make(map[uint64]bool) // operations that have not ended
	tag := uint64(0)
	for {
		list := reader.Want(4 << 20)
		if len(list) == 0 {
			if !reader.WantLook() {
				if out.begin == nil {
					return out, fmt.Errorf("the creation of %s is not in the remote journal: %w", name, stream.ErrMissing)
				}
				return out, nil
			}
			look := reader.Look()
			if header, err = replica.Ask(ctx, &c.r.pair.Calls, c.r.opts.CallTimeout, c.src.journal.Look); err != nil {
				return out, replica.Remotely(err)
			}
			reader.Saw(look, header.Active, header.Newest())
		}
		for _, f := range list {
			data, err := objects.Read(ctx, c.src.data, g.Object(f.Object), f.Offset, f.Length)
			if err != nil {
				return out, replica.Remotely(fmt.Errorf("reading the journal: %w", err))
			}
			if err := reader.Fetched(f, data); err != nil {
				return out, err
			}
		}
		for {
			e, ok, err := reader.Next()
			if err != nil {
				return out, err
			}
			if !ok {
				break
			}
			event, _, err := format.DecodeEvent(e.Payload)
			if err != nil {
				return out, fmt.Errorf("entry %d of epoch %d: %w: %w", e.Entry, e.Tag, format.ErrCorrupt, err)
			}
			if e.Tag != tag {
				tag = e.Tag
				clear(open)
			}
			if out.begin == nil {
				done = done.Advance(uint64(g.Splay), e.Position)
			}
			switch event := event.(type) {
			case format.OpFinish:
				delete(open, event.ID)
			case format.SnapCreate:
				if event.Name == name && out.begin == nil {
					out.begin, out.quiet = done, len(open) == 0
				}
				open[event.OpID()] = true
			case format.Op:
				open[event.OpID()] = true
				if out.begin != nil && changesSnapshots(event) {
					out.quiet = false
				}
			}
		}
	}
}

// changesSnapshots says that an operation bears on which snapshots there are, or on
// what they are called.
func changesSnapshots(op format.Op) bool {
	switch op.(type) {
	case format.SnapRemove, format.SnapRename:
		return true
	}
	return false
}

// startAt makes replay start after some entries.
func (c *copying) startAt(ctx context.Context, done format.Positions) error {
	owner, _, err := journalOf(c.r.pair.Local, c.t.Header().ID).Owner()
	if err != nil {
		return err
	}
	err = replica.Do(ctx, &c.r.pair.Calls, c.r.opts.CallTimeout, func() error { return c.src.journal.Commit(c.src.client, done) })
	if err != nil {
		return replica.Remotely(err)
	}
	return c.t.Save(ctx, plan.Record{
		MirrorUUID: c.src.uuid, ImageID: c.src.image, Lock: c.r.lockName(c.r.lock.Cookie), LocalTag: owner.ID,
		Progress: plan.Progress{Done: done}, Until: plan.Unknown, Fresh: true,
	})
}
