package journal

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/journal/apply"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/lag"
	"cephmirror/rbdmirror/journal/lineage"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/journal/plan"
	"cephmirror/rbdmirror/journal/stream"
	"cephmirror/rbdmirror/journal/target"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

var (
	// errPromoted: the local image is primary now.
	errPromoted = errors.New("force promoted")
	// errResync: somebody asks for another copy.
	errResync = errors.New("resync requested")
	// errDemoted: the image was demoted, and everything up to there is done.
	errDemoted = errors.New("remote image demoted")
	// errDisconnected: the primary does not keep entries for us any more.
	errDisconnected = errors.New("disconnected")
	// errGone: the journal is gone.
	errGone = errors.New("the remote journal is gone")
	// errUnregistered: our client is gone from the journal, or of another image.
	errUnregistered = errors.New("not registered in the journal")
)

// source is the journal that is followed.
type source struct {
	journal  *objects.Journal
	geometry objects.Geometry
	data     *rados.IOContext
	client   string // under which this cluster is registered
	uuid     string // mirror uuid of its cluster
	image    string // id of the image there
}

// tuning is how a session goes about its work.
type tuning struct {
	commitAge time.Duration // longest time until the journal is told of progress
	pollAge   time.Duration // longest time until the journal is looked at again
	delay     time.Duration // how old an entry has to be
	strict    bool
}

// session follows a journal with one local image, from some position on, until
// there is a reason to end.
type session struct {
	log    zerolog.Logger
	source source
	local  *objects.Journal // of the local image: tags only
	image  string           // its id
	lock   string           // whose lock the image is changed under
	target *target.Target
	memory share
	tune   tuning
	// retune returns how to go about it from now on, for the image as it is now.
	retune func(*store.Image) tuning
	tuned  time.Time
	calls  *replica.Calls

	callTimeout, reportEvery time.Duration

	limit  *rate.Limiter // of bytes read from the source; nil: none
	report func(lag.Report, *counters)
	// heard is filled when the source's journal tells of a change, check when
	// the local image or its journal does; kick to look at once.
	heard, check, kick chan struct{}
	flush              chan chan error

	reader  *stream.Reader
	planner *plan.Planner
	applier *apply.Applier

	tags      map[uint64]format.TagData // of the source
	newest    format.TagData            // of the local journal
	header    *objects.Header           // last look at the source's
	master    format.Position           // the primary's
	ahead     format.Position           // newest entry that was seen, read or not
	committed format.Positions          // what the source was told
	next      *plan.Entry               // read, but too young
	ending    error                     // why to end once all that was fetched is done

	looking, peeking, committing, checking, trimming, mending bool
	mendAt                                                    time.Time

	work     plan.Work // under way
	changed  bool      // an operation was carried out
	ops      bool      // it commits by itself
	progress plan.Progress
	failures int
	retry    time.Time // when to ask the source again

	lastData, lastCommit, lastCheckpoint time.Time
	lastLook, lastPoll, lastTrim         time.Time
	lastPeek                             time.Time

	waiting []chan error // who waits for a flush
	waitFor *format.Position

	events chan func() // ends of what goes on beside
	gone   chan struct{}
	count  counters
	clock  lag.Clock
	// read is the last entry read, and known the last one that was there when
	// all were read for the first time.
	read, known   format.Position
	reached, told bool
	// newestTime and doneTime are of the last entry read, and carried out.
	newestTime, doneTime time.Time
	average              float64 // bytes of payload per entry
	taken                int     // entries that it is made of
}

// counters are what the metrics need.
type counters struct {
	Entries, Bytes   uint64
	LatencySum       time.Duration
	LatencyCount     uint64
	entries, payload lag.Rate
}

// What the loop waits for at most.
const (
	minPoll        = 50 * time.Millisecond
	checkpointAge  = time.Second
	usualCommitAge = time.Second
	retryAge       = time.Second
	maxRetry       = 15 * time.Second
	trimAge        = 5 * time.Second
	finishAge      = 5 * time.Second
	tuneAge        = time.Second
	peekAge        = time.Second
	mendRetry      = time.Minute
	mendObjects    = 512
	// heldLimit is how much may wait for the end of an operation.
	heldLimit = 4 * maxShare
)

// run follows the journal. It returns why it ends; nothing is under way then, but
// reads and calls to the source that hang.
func (s *session) run(ctx context.Context, rec plan.Record) error {
	s.adjust(time.Now())
	s.events, s.gone = make(chan func(), 64), make(chan struct{})
	s.reader = stream.New(stream.Geometry{Order: s.source.geometry.Order, Splay: s.source.geometry.Splay}, rec.Done, s.header.Minimum)
	s.planner = plan.New(s.source.geometry.Splay, rec.Progress)
	s.applier = apply.New(s.target, rec)
	s.progress = rec.Progress
	s.read, _ = rec.Done.First()
	s.tags = make(map[uint64]format.TagData)
	now := time.Now()
	s.lastData, s.lastCommit, s.lastCheckpoint, s.lastLook = now, now, now, now
	owner, _, err := s.local.Owner()
	if err != nil {
		return err
	}
	s.newest = owner.TagData
	if err := s.applier.Under(ctx, s.lock, owner.ID); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer close(s.gone)
	defer s.memory.release()
	s.saw(s.reader.Look(), s.header)
	err = s.loop(ctx)
	cancel(err)
	s.finish(err)
	return err
}

func (s *session) loop(ctx context.Context) error {
	ticker := time.NewTicker(s.reportEvery)
	defer ticker.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := s.step(ctx); err != nil {
			return err
		}
		timer.Reset(s.due(time.Now()))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e := <-s.events:
			e()
			for more := true; more; {
				select {
				case e := <-s.events:
					e()
				default:
					more = false
				}
			}
		case <-s.heard:
			s.lastLook, s.lastPoll = time.Time{}, time.Time{}
		case <-s.check:
			s.startCheck(ctx)
		case <-s.kick:
			s.lastLook, s.lastPoll = time.Time{}, time.Time{}
			s.startCheck(ctx)
		case f := <-s.flush:
			s.waiting, s.waitFor = append(s.waiting, f), nil
			s.lastLook, s.lastPoll = time.Time{}, time.Time{}
		case <-ticker.C:
			s.tell()
		case <-timer.C:
		}
	}
}

// adjust takes over options that were changed. Nothing may be under way that
// changes the image.
func (s *session) adjust(now time.Time) {
	s.tune, s.tuned = s.retune(s.target.Header()), now
}

// step starts all that can be started now.
func (s *session) step(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	if s.idle() && (s.changed || now.Sub(s.tuned) > tuneAge) {
		s.changed = false
		s.adjust(now)
	}
	if err := s.take(now); err != nil {
		s.end(err)
	}
	if s.ending == nil {
		s.fetch(ctx, now)
		s.look(ctx, now)
		s.peek(ctx, now)
		s.trim(ctx, now)
	}
	if s.idle() {
		if s.ending != nil && !s.canGoOn() {
			return s.ending
		}
		s.start(ctx)
	}
	if s.idle() && s.ending == nil {
		s.mend(ctx, now)
	}
	s.commit(ctx, now)
	return nil
}

// idle says that nothing is under way that deals with the local image.
func (s *session) idle() bool { return s.work == nil && !s.mending }

// mend rebuilds object maps that are not to be relied on, in the time that is left.
func (s *session) mend(ctx context.Context, now time.Time) {
	if now.Before(s.mendAt) || s.backlog() || !s.target.Damaged() {
		return
	}
	s.mending = true
	s.calls.Go(func() {
		_, err := s.target.Rebuild(ctx, mendObjects)
		s.post(func() {
			s.mending = false
			if err != nil && ctx.Err() == nil {
				s.log.Warn().Err(err).Msg("an object map stays marked as invalid for now")
				s.mendAt = time.Now().Add(mendRetry)
			}
		})
	})
}

// end makes the session end once everything fetched is carried out.
func (s *session) end(err error) {
	if s.ending == nil {
		s.ending = err
	}
}

// canGoOn says that there is something left to be carried out after the source is
// of no more use. What was fetched may be all that there will ever be of it.
func (s *session) canGoOn() bool {
	switch {
	case errors.Is(s.ending, errPromoted), errors.Is(s.ending, errResync), errors.Is(s.ending, errDemoted):
		return false
	}
	var local localError
	if errors.As(s.ending, &local) {
		return false
	}
	queued, _ := s.planner.Queued()
	if queued == 0 {
		return false
	}
	if _, ok := s.planner.Waiting(); ok {
		return false
	}
	oldest, _ := s.planner.Oldest()
	_, known := s.tags[oldest.Tag]
	return known
}

// localError is one of the local cluster, after which nothing may be carried out.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// room is how many bytes of the journal may be held.
func (s *session) room() int {
	return s.memory.bytes(s.backlog())
}

// backlog says that there is more than a moment's work.
func (s *session) backlog() bool {
	queued, _ := s.planner.Queued()
	return queued > 1000 || s.reader.Buffered() > idleShare/2
}

// take gives the planner what the reader has.
func (s *session) take(now time.Time) error {
	for {
		if s.next == nil {
			_, bytes := s.planner.Queued()
			if op, waits := s.planner.Waiting(); waits && bytes > heldLimit {
				return fmt.Errorf("%s: its end does not come within %d bytes of the journal", format.Name(op), heldLimit)
			} else if !waits && bytes > s.room()/2 {
				return nil
			}
			e, ok, err := s.reader.Next()
			if err != nil {
				return err
			}
			if !ok {
				end := s.reader.AtEnd()
				if end && !s.newestTime.IsZero() && s.lastData.Equal(now) {
					s.clock.Live(s.newestTime, now)
				}
				if !s.reached && s.reader.Exhausted() {
					// Whatever another daemon may have done is known now.
					s.reached, s.known = true, s.read
				}
				return nil
			}
			event, at, err := format.DecodeEvent(e.Payload)
			if err != nil {
				return fmt.Errorf("entry %d of epoch %d: %w: %w", e.Entry, e.Tag, format.ErrCorrupt, err)
			}
			if u, ok := event.(format.Unknown); ok {
				s.log.Warn().Uint32("type", u.Type).Uint64("tag", e.Tag).Uint64("entry", e.Entry).Msg("passing over an event of the journal that is not known")
			}
			s.next = &plan.Entry{Position: e.Position, Event: event, Time: at, Size: len(e.Payload)}
			if !at.IsZero() {
				s.newestTime = at
			}
			s.read = e.Position
			s.lastData = now
			// Of the few first ones the mean, then a running one.
			s.taken = min(s.taken+1, 64)
			s.average += (float64(len(e.Payload)) - s.average) / float64(s.taken)
		}
		if s.tune.delay > 0 && s.clock.Age(s.next.Time, now) < s.tune.delay && !s.next.Time.IsZero() {
			return nil
		}
		s.planner.Push(*s.next)
		s.next = nil
	}
}

// fetch asks for pieces of data objects.
func (s *session) fetch(ctx context.Context, now time.Time) {
	if now.Before(s.retry) {
		return
	}
	_, planned := s.planner.Queued()
	for _, f := range s.reader.Want(s.room() - planned) {
		s.calls.Go(func() {
			data, err := objects.Read(ctx, s.source.data, s.source.geometry.Object(f.Object), f.Offset, f.Length)
			if err == nil {
				err = s.slowDown(ctx, len(data))
			}
			s.post(func() { s.fetched(f, data, err) })
		})
	}
}

// slowDown waits as long as it may take to read some bytes.
func (s *session) slowDown(ctx context.Context, n int) error {
	if s.limit == nil {
		return nil
	}
	for n > 0 {
		part := min(n, s.limit.Burst())
		if err := s.limit.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// post has the loop do something, if it still runs.
func (s *session) post(f func()) {
	select {
	case s.events <- f:
	case <-s.gone:
	}
}

func (s *session) fetched(f stream.Fetch, data []byte, err error) {
	if err != nil {
		s.reader.Failed(f)
		s.trouble(fmt.Errorf("reading the journal: %w", err))
		return
	}
	s.failures = 0
	if err := s.reader.Fetched(f, data); err != nil {
		s.end(err)
	}
}

// trouble notes that the source did not answer as it should.
func (s *session) trouble(err error) {
	s.failures++
	s.retry = time.Now().Add(min(retryAge<<min(s.failures-1, 6), maxRetry))
	s.log.Debug().Err(err).Int("failures", s.failures).Msg("the remote journal")
	if s.failures > 3 || ceph.Is(err, syscall.ESHUTDOWN, syscall.EPERM, syscall.EACCES, syscall.ENOENT) {
		s.end(replica.Remotely(err))
	}
}

// hungry says that more entries are needed before anything can be done.
func (s *session) hungry() bool {
	if queued, _ := s.planner.Queued(); queued > 0 {
		_, waits := s.planner.Waiting()
		return waits
	}
	return s.next == nil
}

// pollInterval is how long to wait until new entries are looked for: the longer
// nothing came, the longer.
func (s *session) pollInterval(now time.Time) time.Duration {
	return min(max(now.Sub(s.lastData)/8, minPoll), s.tune.pollAge)
}

// look polls for entries, and looks at the header when there is reason to.
func (s *session) look(ctx context.Context, now time.Time) {
	if now.Before(s.retry) {
		return
	}
	if s.hungry() && now.Sub(s.lastPoll) >= s.pollInterval(now) {
		s.lastPoll = now
		s.reader.Poll()
		s.fetch(ctx, now)
	}
	age := s.tune.pollAge
	if s.backlog() {
		age = min(age, peekAge)
	}
	if s.looking || !s.reader.WantLook() && now.Sub(s.lastLook) < age {
		return
	}
	s.looking, s.lastLook = true, now
	stamp := s.reader.Look()
	known := s.header.NextTag
	if len(s.tags) == 0 {
		known = 0
	}
	s.calls.Go(func() {
		type seen struct {
			header *objects.Header
			tags   []lineage.Tag
		}
		got, err := replica.Ask(ctx, s.calls, s.callTimeout, func() (seen, error) {
			h, err := s.source.journal.Look()
			if err != nil {
				return seen{}, err
			}
			var tags []lineage.Tag
			if h.NextTag != known {
				// Tags are wanted when entries of theirs come: ask for all at once.
				tags, err = s.source.journal.Tags(s.source.client, nil)
			}
			return seen{h, tags}, err
		})
		s.post(func() {
			s.looking = false
			if err != nil {
				if ceph.Is(err, syscall.ENOENT) {
					s.end(errGone)
					return
				}
				s.trouble(fmt.Errorf("reading the journal's header: %w", err))
				return
			}
			s.failures = 0
			for _, t := range got.tags {
				s.tags[t.ID] = t.TagData
			}
			s.saw(stamp, got.header)
		})
	})
}

// peek looks at the end of a journal that is not read to its end for long, so that
// it is known how far that is: the primary tells of it every few seconds only.
func (s *session) peek(ctx context.Context, now time.Time) {
	if s.peeking || now.Sub(s.lastPeek) < peekAge || now.Before(s.retry) || !s.backlog() {
		return
	}
	s.peeking, s.lastPeek = true, now
	g, active := s.source.geometry, s.header.Active
	s.calls.Go(func() {
		found, err := replica.Ask(ctx, s.calls, s.callTimeout, func() (format.Position, error) {
			return objects.Newest(ctx, s.source.data, g, active)
		})
		s.post(func() {
			s.peeking = false
			if err == nil && found.Compare(s.ahead) > 0 {
				s.ahead = found
			}
		})
	})
}

// primary is where the journal ends, as far as is known.
func (s *session) primary() format.Position {
	p := s.master
	for _, q := range []format.Position{s.ahead, s.read} {
		if q.Compare(p) > 0 {
			p = q
		}
	}
	return p
}

// saw takes in what the header says.
func (s *session) saw(stamp stream.Stamp, h *objects.Header) {
	s.header = h
	if h.NextTag > 0 {
		s.reader.Saw(stamp, h.Active, h.Newest())
	}
	if m := h.Client(format.MasterClient); m != nil {
		s.master, _ = m.Committed.First()
		s.reader.Durable(m.Committed)
	}
	own := h.Client(s.source.client)
	switch {
	case own == nil:
		s.end(errUnregistered)
		return
	case own.State == format.Disconnected:
		s.end(errDisconnected)
		return
	}
	if data, err := format.DecodeClientData(own.Data); err == nil {
		if p, ok := data.(*format.PeerClient); ok && p.ImageID != s.image {
			s.end(errUnregistered)
			return
		}
	}
	if !s.committing {
		s.committed = own.Committed
	}
	if len(s.waiting) > 0 && s.waitFor == nil {
		until := s.master
		s.waitFor = &until
		s.answer(nil)
	}
	if n := h.Newest(); len(s.tags) > 4096 {
		for id := range s.tags {
			if id+1024 < n && id < s.progressTag() {
				delete(s.tags, id)
			}
		}
	}
}

func (s *session) progressTag() uint64 {
	p, _ := s.progress.Done.First()
	return p.Tag
}

// start starts the next step.
func (s *session) start(ctx context.Context) {
	w, ok := s.planner.Next(s.target.Image(), s.limits())
	if !ok {
		return
	}
	if s.reached && !s.told {
		s.told = true
		s.applier.Until(s.known)
	}
	s.work = w
	if e, ok := w.(*plan.Epoch); ok {
		data, known := s.tags[e.Tag]
		s.calls.Go(func() {
			newest, err := s.enter(ctx, e.Tag, data, known)
			s.post(func() {
				s.work = nil
				switch {
				case err == nil:
					s.newest = newest
				case ctx.Err() == nil:
					s.end(err)
				}
			})
		})
		return
	}
	_, op := w.(*plan.Operation)
	s.ops = op
	began := time.Now()
	before := s.progress.Committable()
	checkpoint := began.Sub(s.lastCheckpoint) > checkpointAge
	if checkpoint {
		s.lastCheckpoint = began
	}
	more := s.more(w)
	s.calls.Go(func() {
		if op {
			// Another daemon that goes on for us must not carry out more than
			// this one operation again.
			s.tellSource(ctx, before)
		}
		n, err := s.carryOut(ctx, w, more)
		took := time.Since(began) / time.Duration(max(n, 1))
		sums := []plan.Summary{w.Summary()}
		for _, b := range more {
			sums = append(sums, b.Summary())
		}
		sums = sums[:n]
		if err == nil && checkpoint {
			err = s.applier.Checkpoint(ctx)
		}
		progress := s.applier.Progress()
		if op && err == nil {
			s.tellSource(ctx, progress.Committable())
		}
		s.post(func() { s.done(sums, took, progress, err) })
	})
}

// carryOut carries out a step and what can follow at once. It returns how much is
// done.
func (s *session) carryOut(ctx context.Context, w plan.Work, more []*plan.Batch) (int, error) {
	if b, ok := w.(*plan.Batch); ok && len(more) > 0 {
		return s.applier.DoBatches(ctx, append([]*plan.Batch{b}, more...))
	}
	if err := s.applier.Do(ctx, w); err != nil {
		return 0, err
	}
	return 1, nil
}

// chain is how many small steps are given out at once.
const chain = 64

// more returns the batches that can follow a step without being looked at: in strict
// mode they are very small.
func (s *session) more(w plan.Work) (batches []*plan.Batch) {
	if _, ok := w.(*plan.Batch); !ok || !s.tune.strict {
		return nil
	}
	for len(batches) < chain-1 {
		b, ok := s.planner.NextBatch(s.target.Image(), s.limits())
		if !ok {
			break
		}
		batches = append(batches, b)
	}
	return batches
}

// limits are those of the next batch.
func (s *session) limits() plan.Limits {
	if s.tune.strict {
		return plan.StrictLimits()
	}
	queued, _ := s.planner.Queued()
	return plan.LimitsFor(max(uint64(queued), s.behind()))
}

// tellSource commits at once, if the source answers.
func (s *session) tellSource(ctx context.Context, ps format.Positions) {
	if len(ps) == 0 {
		return
	}
	if err := replica.Do(ctx, s.calls, s.callTimeout, func() error { return s.source.journal.Commit(s.source.client, ps) }); err != nil {
		s.log.Debug().Err(err).Msg("committing to the remote journal around an operation")
	}
}

// done takes in that steps have ended, each after some time.
func (s *session) done(sums []plan.Summary, took time.Duration, progress plan.Progress, err error) {
	s.changed = s.changed || s.ops
	s.work, s.ops = nil, false
	now := time.Now()
	s.progress = progress
	for _, sum := range sums {
		s.count.Entries += uint64(sum.Entries)
		s.count.Bytes += uint64(sum.Bytes)
		s.count.LatencySum += took * time.Duration(sum.Entries)
		s.count.LatencyCount += uint64(sum.Entries)
		s.count.entries.Add(now, float64(sum.Entries))
		s.count.payload.Add(now, float64(sum.Bytes))
		if !sum.Time.IsZero() {
			s.doneTime = sum.Time
		}
		if lineage.Orphan(s.newest) && sum.Entries > 0 {
			s.end(errDemoted)
		}
	}
	if err != nil {
		s.end(localError{err})
	}
}

// enter tells the local journal of an epoch of the source.
func (s *session) enter(ctx context.Context, tag uint64, data format.TagData, known bool) (format.TagData, error) {
	owner, master, err := s.local.Owner()
	if err != nil {
		return format.TagData{}, localError{err}
	}
	if lineage.Primary(owner.TagData) {
		return format.TagData{}, errPromoted
	}
	if master.ResyncRequested {
		return format.TagData{}, errResync
	}
	if !known {
		t, err := replica.Ask(ctx, s.calls, s.callTimeout, func() (lineage.Tag, error) { return s.source.journal.Tag(tag) })
		if ceph.Is(err, syscall.ENOENT) {
			err = fmt.Errorf("%w: %w", stream.ErrMissing, err)
		}
		if err != nil {
			return format.TagData{}, replica.Remotely(fmt.Errorf("reading epoch %d: %w", tag, err))
		}
		data = t.TagData
	}
	next := lineage.Translate(data, s.source.client, s.source.uuid)
	switch lineage.Enter(next, owner.TagData) {
	case lineage.OwnDemotion:
		// Entries of it are passed over, and what follows is what counts.
		return format.TagData{MirrorUUID: s.source.uuid}, nil
	case lineage.Known:
		return next, nil
	}
	id, err := s.local.AddTag(master.TagClass, next)
	if err != nil {
		return format.TagData{}, localError{err}
	}
	if err := s.applier.Under(ctx, s.lock, id); err != nil {
		return format.TagData{}, localError{err}
	}
	s.log.Debug().Uint64("remote", tag).Uint64("local", id).Stringer("epoch", next).Msg("a new epoch")
	s.calls.Go(func() { _ = s.local.Notify() })
	return next, nil
}

// commit tells the source and the local image how far everything is done.
func (s *session) commit(ctx context.Context, now time.Time) {
	if s.committing || now.Before(s.retry) || s.ops {
		return
	}
	ps := s.progress.Committable()
	first, ok := ps.First()
	told, any := s.committed.First()
	if !ok || any && first.Compare(told) <= 0 {
		return
	}
	queued, _ := s.planner.Queued()
	idle := s.work == nil && queued == 0
	// More often than the stock daemon: whoever waits for the copy looks at this.
	age := min(s.tune.commitAge, max(usualCommitAge, s.tune.commitAge/5))
	if idle {
		age = minPoll * 4
	}
	if now.Sub(s.lastCommit) < age && s.ending == nil {
		return
	}
	s.committing, s.lastCommit = true, now
	s.calls.Go(func() {
		err := replica.Do(ctx, s.calls, s.callTimeout, func() error { return s.source.journal.Commit(s.source.client, ps) })
		s.post(func() {
			s.committing = false
			if err != nil {
				s.trouble(fmt.Errorf("committing to the journal: %w", err))
				return
			}
			s.committed = ps
			s.answer(nil)
		})
		if err == nil {
			_ = replica.Do(ctx, s.calls, s.callTimeout, s.source.journal.Notify)
		}
	})
}

// answer answers those who wait for a flush, when everything they wait for is
// committed.
func (s *session) answer(err error) {
	if err == nil {
		told, _ := s.committed.First()
		if len(s.waiting) == 0 || s.waitFor == nil || told.Compare(*s.waitFor) < 0 {
			return
		}
	}
	for _, w := range s.waiting {
		w <- err
	}
	s.waiting = nil
}

// startCheck looks whether the local image is still what it is taken for.
func (s *session) startCheck(ctx context.Context) {
	if s.checking {
		return
	}
	s.checking = true
	s.calls.Go(func() {
		owner, master, err := s.local.Owner()
		s.post(func() {
			s.checking = false
			switch {
			case err != nil:
				s.end(localError{err})
			case lineage.Primary(owner.TagData):
				s.end(errPromoted)
			case master.ResyncRequested:
				s.end(errResync)
			}
		})
	})
}

// due is how long nothing needs to be done if nothing happens.
func (s *session) due(now time.Time) time.Duration {
	wait := s.tune.pollAge
	if s.hungry() {
		wait = s.pollInterval(now) - now.Sub(s.lastPoll)
	}
	if first, ok := s.progress.Committable().First(); ok {
		if told, any := s.committed.First(); !any || first.Compare(told) > 0 {
			wait = min(wait, minPoll*4-now.Sub(s.lastCommit))
		}
	}
	if s.next != nil && s.tune.delay > 0 {
		wait = min(wait, s.tune.delay-s.clock.Age(s.next.Time, now))
	}
	if now.Before(s.retry) {
		wait = max(wait, s.retry.Sub(now))
	}
	return max(wait, 5*time.Millisecond)
}

// behind is how many entries are known to be yet to be carried out.
func (s *session) behind() uint64 {
	done, _ := s.progress.Done.First()
	queued, _ := s.planner.Queued()
	n := lag.Behind(s.primary(), done, func(id uint64) (format.TagData, bool) { d, ok := s.tags[id]; return d, ok })
	return max(n, uint64(queued))
}

// tell reports how far the copy is behind.
func (s *session) tell() {
	now := time.Now()
	done, _ := s.progress.Done.First()
	_, queued := s.planner.Queued()
	r := lag.Report{
		Image: s.primary(), Copied: done, EntriesBehind: s.behind(),
		EntriesPerSecond: s.count.entries.PerSecond(now), BytesPerSecond: s.count.payload.PerSecond(now),
		Mode: Merged,
	}
	if s.tune.strict {
		r.Mode = Strict
	}
	if r.EntriesBehind > 0 {
		r.BytesBehind = max(uint64(queued+s.reader.Buffered()), uint64(float64(r.EntriesBehind)*s.average))
		oldest := s.doneTime
		if e, ok := s.planner.Oldest(); ok && !e.Time.IsZero() {
			oldest = e.Time
		}
		r.SecondsBehind = s.clock.Age(oldest, now).Seconds()
	}
	if op, ok := s.planner.Waiting(); ok {
		r.Waiting = "the end of an operation: " + format.Name(op)
	} else if s.next != nil {
		r.Waiting = "entries to be as old as is asked for"
	} else if s.failures > 0 {
		r.Waiting = "the remote cluster"
	}
	s.report(r, &s.count)
}

// finish waits for the step under way, and stores and tells how far everything is
// done.
func (s *session) finish(reason error) {
	s.answer(reason)
	for !s.idle() {
		(<-s.events)()
	}
	ctx, cancel := context.WithTimeout(context.Background(), finishAge)
	defer cancel()
	var local localError
	if errors.As(reason, &local) {
		return
	}
	if err := s.applier.Checkpoint(ctx); err != nil {
		s.log.Debug().Err(err).Msg("storing the progress at the end")
		return
	}
	ps := s.progress.Committable()
	first, ok := ps.First()
	told, any := s.committed.First()
	if !ok || any && first.Compare(told) <= 0 || errors.Is(reason, errUnregistered) {
		return
	}
	if errors.Is(reason, errPromoted) {
		// Nobody shall wait for a cluster that may be what the promotion is for.
		s.calls.Go(func() {
			if s.source.journal.Commit(s.source.client, ps) == nil {
				_ = s.source.journal.Notify()
			}
		})
		return
	}
	err := replica.Do(ctx, s.calls, finishAge, func() error { return s.source.journal.Commit(s.source.client, ps) })
	if err != nil {
		s.log.Debug().Err(err).Msg("committing to the remote journal at the end")
		return
	}
	s.calls.Go(func() { _ = s.source.journal.Notify() })
}

// trim removes what nobody needs of the source, which is the business of all who
// read it.
func (s *session) trim(ctx context.Context, now time.Time) {
	if s.trimming || now.Sub(s.lastTrim) < trimAge || now.Before(s.retry) || !s.source.journal.Trimmable(s.source.geometry, s.header) {
		return
	}
	s.trimming, s.lastTrim = true, now
	header := s.header
	s.calls.Go(func() {
		_, err := replica.Ask(ctx, s.calls, s.callTimeout, func() (bool, error) {
			return s.source.journal.Trim(s.source.data, s.source.geometry, header)
		})
		if err == nil {
			_ = replica.Do(ctx, s.calls, s.callTimeout, s.source.journal.Notify)
		}
		s.post(func() {
			s.trimming = false
			if err != nil {
				s.log.Debug().Err(err).Msg("trimming the remote journal")
			}
		})
	})
}
