package journal

import (
	"context"
	"errors"
	"fmt"

	"cephmirror/rbdmirror/journal/apply"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/lag"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/journal/plan"
	"cephmirror/rbdmirror/journal/stream"
	"cephmirror/rbdmirror/journal/target"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// hold watches and locks the local image and opens it. before is who held the lock.
func (r *Replayer) hold(id string, renamed func(ctx context.Context, remote, local uint64) error) (t *target.Target, before string, err error) {
	if err := r.watchLocal(id); err != nil {
		return nil, "", err
	}
	if before, err = r.takeLock(id); err != nil {
		return nil, "", err
	}
	cfg := target.Config{
		Log: r.log, Conn: r.cfg.Local.Conn, IO: r.pair.Local.IO, Image: id, Cookie: r.lock.Cookie,
		Concurrency: r.tuning(nil).Concurrency, Renamed: renamed,
	}
	if r.cfg.Lease != nil {
		cfg.Lease = r.cfg.Lease
	}
	t, err = target.Open(cfg)
	return t, before, err
}

// openSource opens the remote journal.
func (r *Replayer) openSource(ctx context.Context, image string) (source, error) {
	j := journalOf(r.pair.Remote, image)
	s, err := replica.Ask(ctx, &r.pair.Calls, r.opts.CallTimeout, func() (source, error) {
		g, err := j.Geometry()
		return source{journal: j, geometry: g, client: r.cfg.Local.MirrorUUID, uuid: r.cfg.Remote.MirrorUUID, image: image}, err
	})
	if err != nil {
		return s, replica.Remotely(err)
	}
	s.data, err = r.pair.Remote.DataContext(s.geometry.Pool)
	return s, replica.Remotely(err)
}

// follow replays the journal until there is a reason to look again.
func (r *Replayer) follow(ctx context.Context, v *view) error {
	local, remote := v.local.image, v.remote.image
	if v.step.Settle {
		peer := v.remote.peer.Clone()
		peer.State = format.Replaying
		if err := r.updatePeer(ctx, remote.ID, peer); err != nil {
			return err
		}
	}
	if !r.replaying {
		r.bootstrapping("PREPARE_REPLAY")
		if v.remote.primary() {
			c := &copying{r: r, src: source{image: remote.ID}, peer: v.remote.peer}
			if err := c.sweep(ctx, v.remote.head); err != nil {
				r.log.Debug().Err(err).Msg("removing a sync point")
			}
		}
	}
	if err := r.watchRemote(ctx, remote.ID); err != nil {
		return err
	}
	src, err := r.openSource(ctx, remote.ID)
	if err != nil {
		return err
	}
	peer := v.remote.peer.Clone()
	t, before, err := r.hold(local.ID, func(ctx context.Context, remoteSnap, localSnap uint64) error {
		if peer.SnapSeqs[remoteSnap] == localSnap {
			return nil
		}
		peer.SnapSeqs[remoteSnap] = localSnap
		return r.updatePeer(ctx, remote.ID, peer)
	})
	if err != nil {
		return err
	}
	defer t.Close() // more than once does no harm
	header, err := replica.Ask(ctx, &r.pair.Calls, r.opts.CallTimeout, src.journal.Look)
	if err != nil {
		return replica.Remotely(err)
	}
	client := header.Client(src.client)
	if client == nil {
		return nil // look again
	}
	stored, err := target.ReadRecord(r.pair.Local.IO, local.ID)
	if err != nil {
		return err
	}
	// The newest epoch must be read under the lock.
	owner, _, err := journalOf(r.pair.Local, local.ID).Owner()
	if err != nil {
		return err
	}
	rec, own := plan.Resume(plan.Found{
		Stored: stored, MirrorUUID: src.uuid, ImageID: src.image, Committed: client.Committed, Lock: before, LocalTag: owner.ID,
	})
	r.log.Info().Bool("own_record", own).Any("from", rec.Done).Any("committed", client.Committed).Msg("replaying the journal")
	err = r.session(ctx, src, t, header, rec)
	r.endSession()
	if errors.Is(err, errPromoted) {
		// Whoever promotes the image waits for this, and the remote cluster may
		// not answer for long.
		t.Close()
		r.letGo()
	}
	if errors.Is(err, apply.ErrUnsettled) {
		return r.copyAgain(ctx, t, remote.ID, err)
	}
	return r.explain(err)
}

// copyAgain has a first copy that does not fit the journal made again. Nobody can have
// used it: the image was not yet what it was at any moment after the copying.
func (r *Replayer) copyAgain(ctx context.Context, t *target.Target, remote string, why error) error {
	r.log.Warn().Err(why).Msg("the first copy is made again")
	if err := t.Forget(ctx); err != nil {
		return err
	}
	return r.updatePeer(ctx, remote, &format.PeerClient{ImageID: t.Header().ID, State: format.Syncing, SyncObjectCount: 1})
}

// session runs a session.
func (r *Replayer) session(ctx context.Context, src source, t *target.Target, header *objects.Header, rec plan.Record) error {
	s := &session{
		log: r.log, source: src, local: journalOf(r.pair.Local, t.Header().ID), image: t.Header().ID, lock: r.lockName(r.lock.Cookie),
		target: t, memory: share{of: r.cfg.Journals}, calls: &r.pair.Calls, callTimeout: r.opts.CallTimeout, reportEvery: r.opts.ReportEvery, limit: r.rate, header: header,
		heard: r.heard, check: r.check, kick: r.kick, flush: r.flushes,
		retune: func(img *store.Image) tuning {
			o := r.tuning(img)
			return tuning{commitAge: o.CommitAge, pollAge: o.PollAge, delay: o.ReplayDelay, strict: o.Strict}
		},
		report: func(rep lag.Report, c *counters) {
			r.replaying = true
			r.count(c)
			r.set(replica.StateReplaying, "replaying, "+rep.JSON(), replica.Replaying, func(s *replica.Status) {
				s.Wait(rep.Waiting)
				s.Journal = r.journalStatus(rep)
			})
		},
	}
	err := s.run(ctx, rec)
	r.count(&s.count)
	return err
}

// journalStatus is a report as the metrics want it.
func (r *Replayer) journalStatus(rep lag.Report) replica.JournalStatus {
	c := r.Counters()
	return replica.JournalStatus{
		Replayed: true, Strict: rep.Mode == Strict,
		EntriesBehind: rep.EntriesBehind, BytesBehind: rep.BytesBehind, SecondsBehind: rep.SecondsBehind,
		EntriesPerSecond: rep.EntriesPerSecond, BytesPerSecond: rep.BytesPerSecond,
		Entries: c.Entries, Bytes: c.Bytes, LatencySum: c.LatencySum, LatencyCount: c.LatencyCount,
	}
}

// count notes what the session under way has carried out.
func (r *Replayer) count(c *counters) {
	r.countMu.Lock()
	defer r.countMu.Unlock()
	r.current = Counters{c.Entries, c.Bytes, c.LatencySum, c.LatencyCount}
}

func (r *Replayer) endSession() {
	r.countMu.Lock()
	defer r.countMu.Unlock()
	r.counted.Entries += r.current.Entries
	r.counted.Bytes += r.current.Bytes
	r.counted.LatencySum += r.current.LatencySum
	r.counted.LatencyCount += r.current.LatencyCount
	r.current = Counters{}
	c := r.counted
	r.reports.Update(func(s *replica.Status) {
		s.Journal.Entries, s.Journal.Bytes = c.Entries, c.Bytes
		s.Journal.LatencySum, s.Journal.LatencyCount = c.LatencySum, c.LatencyCount
	})
}

// explain turns the end of a session into what it is: an error, or a reason to look
// again.
func (r *Replayer) explain(err error) error {
	switch {
	case errors.Is(err, errPromoted), errors.Is(err, errResync), errors.Is(err, errDemoted),
		errors.Is(err, errDisconnected), errors.Is(err, errUnregistered), errors.Is(err, errGone), errors.Is(err, context.Canceled):
		r.log.Info().Str("why", err.Error()).Msg("stopped replaying the journal")
		return nil
	case errors.Is(err, format.ErrCorrupt), errors.Is(err, stream.ErrMissing), errors.Is(err, apply.ErrInexact):
		return fmt.Errorf("the remote journal cannot be replayed, a resync is required: %w", err)
	}
	return err
}
