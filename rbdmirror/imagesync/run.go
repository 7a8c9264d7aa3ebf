package imagesync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/imagesync/delta"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/snapdiff/objects"
)

const (
	// window is how many objects are asked for and planned at once. It starts with
	// less and doubles, so that copying begins soon.
	window, firstWindow = 512, 32
	// joinGap: extents with less than this between them are read as one.
	joinGap = 4 << 10
	// compareBlock is how large the pieces are that FullCompare repairs.
	compareBlock = 4 << 10
	// writeGrace is how long writes that were sent are waited for after the end.
	writeGrace = 10 * time.Second
)

// run is a Job under way.
type run struct {
	Job
	remotes  []uint64   // the targets' snapshots at the source
	contexts [][]uint64 // for each target, the snapshots that keep what was, newest first
	mapSet   *mapSet    // nil: none
	track    tracker
	writes   context.Context // that of writes: outlives the run's a little
}

// task is an object that may have to be changed.
type task struct {
	number    uint64
	intervals []delta.Interval
	copyUp    bool // the destination is known to lack the object
	lower     []change

	batch   *batch // these two are the tracker's
	written bool
}

func (r *run) check() error {
	if r.ObjectSize == 0 || len(r.Targets) == 0 {
		return errors.New("no object size or no target")
	}
	var newest uint64
	for _, s := range r.Existing {
		newest = max(newest, s.ID)
	}
	remote := r.Start
	for _, t := range r.Targets {
		if t.Remote <= remote || t.Local <= newest {
			return fmt.Errorf("target %d/%d is not newer than %d/%d", t.Remote, t.Local, remote, newest)
		}
		remote, newest = t.Remote, t.Local
	}
	return nil
}

// contextsOf returns the write context of each target: all snapshots that are
// older than it.
func contextsOf(existing []Snapshot, targets []Target) [][]uint64 {
	var ids []uint64
	for _, s := range existing {
		ids = append(ids, s.ID)
	}
	slices.SortFunc(ids, func(a, b uint64) int { return cmp.Compare(b, a) })
	out := make([][]uint64, len(targets))
	for i, t := range targets {
		out[i] = slices.Clone(ids)
		ids = append([]uint64{t.Local}, ids...)
	}
	return out
}

// Run carries out the job. When it returns nil the destination's head and all
// targets equal the source, provided that the source's snapshots Start and
// those of the targets still exist afterwards: the caller has to check that
// before it calls the synchronisation complete.
//
// When ctx ends Run returns without waiting for the source, however long that
// takes to answer, and writes nothing any more: only writes that were sent are
// waited for.
func Run(ctx context.Context, j Job) error {
	r := newRun(j)
	if err := r.check(); err != nil {
		return fmt.Errorf("synchronising image: %w", err)
	}
	return r.bounded(ctx, r.all)
}

func newRun(j Job) *run {
	r := &run{Job: j}
	if r.Memory == nil {
		r.Memory = NewBudget(DefaultBudget)
	}
	if r.Stats == nil {
		r.Stats = &Stats{}
	}
	if r.Concurrency <= 0 {
		r.Concurrency = DefaultConcurrency
	}
	if r.SaveEvery <= 0 {
		r.SaveEvery = time.Second
	}
	r.contexts = contextsOf(r.Existing, r.Targets)
	for _, t := range r.Targets {
		r.remotes = append(r.remotes, t.Remote)
	}
	if r.Maps != nil {
		r.mapSet = &mapSet{io: r.Maps, stats: r.Stats, maps: make(map[uint64]*objectmap.Map)}
	}
	return r
}

// bounded runs f; writes that f has sent when ctx ends get some time more.
func (r *run) bounded(ctx context.Context, f func(context.Context) error) error {
	writes, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.writes = writes
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(writeGrace, cancel)
		context.AfterFunc(writes, func() { timer.Stop() })
	})
	defer stop()
	err := f(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, ErrUncertain) {
		return cause
	}
	return err
}

func (r *run) all(ctx context.Context) error {
	var known *objectmap.Map
	if r.mapSet != nil {
		if err := r.mayWrite(ctx); err != nil {
			return err
		}
		var err error
		if known, err = r.mapSet.begin(ctx, r.Targets, r.Resume); err != nil {
			return err
		}
	}
	todo, err := r.candidates(ctx, known)
	if err != nil {
		return err
	}
	r.Stats.Total.Store(todo.count(r.Resume))

	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *task)
	finished := make(chan struct{})
	var workers sync.WaitGroup
	for range r.Concurrency {
		workers.Add(1)
		g.Go(func() error {
			defer workers.Done()
			return r.work(ctx, work)
		})
	}
	g.Go(func() error {
		defer close(work)
		return r.plan(ctx, todo, known, work)
	})
	g.Go(func() error {
		workers.Wait()
		close(finished)
		return nil
	})
	if r.SaveProgress != nil {
		g.Go(func() error { return r.saveProgress(ctx, finished) })
	}
	return g.Wait()
}

// mayWrite tells whether writing is allowed at this moment.
func (r *run) mayWrite(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.Lease != nil && !r.Lease.Valid() {
		return ErrLease
	}
	return nil
}

// plan finds out what is to be done, some objects at a time, and hands it out.
func (r *run) plan(ctx context.Context, todo *numbers, known *objectmap.Map, work chan<- *task) error {
	at := r.Resume
	for size := firstWindow; ; size = min(2*size, window) {
		var batch []uint64
		for len(batch) < size {
			k, ok := todo.next(at)
			if !ok {
				break
			}
			batch, at = append(batch, k), k+1
		}
		if len(batch) == 0 {
			return nil
		}
		tasks, err := r.planBatch(ctx, batch, known)
		if err != nil {
			return err
		}
		if err := r.raise(ctx, tasks, known); err != nil {
			return err
		}
		r.track.add(batch[len(batch)-1], tasks)
		r.Stats.Done.Add(uint64(len(batch) - len(tasks)))
		for _, t := range tasks {
			select {
			case work <- t:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// planBatch asks for the past of objects, and returns those that have to be
// changed, or whose states have.
func (r *run) planBatch(ctx context.Context, batch []uint64, known *objectmap.Map) ([]*task, error) {
	tasks := make([]*task, len(batch))
	err := each(ctx, len(batch), 2*r.Concurrency, func(ctx context.Context, i int) (err error) {
		tasks[i], err = r.planObject(ctx, batch[i], known)
		return err
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(tasks, func(t *task) bool { return t == nil }), nil
}

// each calls f for all numbers below n, some of them at once.
func each(ctx context.Context, n, atOnce int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(n, atOnce) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := f(ctx, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func (r *run) planObject(ctx context.Context, k uint64, known *objectmap.Map) (*task, error) {
	set, err := ceph.ListObjectSnaps(ctx, r.Source.IO, r.Source.name(k))
	if err != nil {
		return nil, err
	}
	r.Stats.Listed.Add(1)
	start := r.Start
	if r.FullCompare {
		start = 0
	}
	t := &task{number: k}
	if t.intervals, err = delta.Intervals(versions(set), start, r.remotes); err != nil {
		return nil, fmt.Errorf("object %s: %w", r.Source.name(k), err)
	}
	has := known == nil || k >= known.Len() || known.Get(k) != objectmap.NonExistent
	quiet := !t.copyUp && !r.FullCompare
	for _, v := range t.intervals {
		if v.Partial() && !has {
			t.copyUp = true
		}
		if v.Unchanged() {
			continue
		}
		has, quiet = v.Exists, false
	}
	if quiet && (known == nil || k < known.Len()) {
		return nil, nil
	}
	return t, nil
}

func (o Objects) name(k uint64) string { return fmt.Sprintf("%s.%016x", o.Prefix, k) }

func versions(set ceph.SnapSet) objects.Object {
	o := objects.Object{Seq: set.Seq, Versions: make([]objects.Version, len(set.Clones))}
	for i, c := range set.Clones {
		v := objects.Version{ID: c.ID, Size: c.Size, Snaps: c.Snaps, Overlap: make([]objects.Extent, len(c.Overlap))}
		if c.ID == ceph.SnapHead {
			v.ID = objects.Head
		}
		for k, e := range c.Overlap {
			v.Overlap[k] = objects.Extent{Offset: e[0], Length: e[1]}
		}
		o.Versions[i] = v
	}
	return o
}

// raise makes the object maps say of all tasks' objects that they exist where
// they will, and notes in the tasks what is to be lowered after them.
func (r *run) raise(ctx context.Context, tasks []*task, known *objectmap.Map) error {
	if r.mapSet == nil {
		return nil
	}
	var raise []change
	for _, t := range tasks {
		k := t.number
		has := t.copyUp || k >= known.Len() || known.Get(k) != objectmap.NonExistent
		if t.copyUp {
			raise = append(raise, r.older(k)...)
		}
		exists, ever := false, false
		for i, v := range t.intervals {
			// Of a clone, what librbd has put below older snapshots may be
			// missing here, as long as nothing else changes.
			exists = v.Exists && (has || v.Whole())
			has = exists
			ever = ever || exists
			state := objectmap.NonExistent
			if exists {
				state = objectmap.ExistsClean
				if !v.Unchanged() {
					state = objectmap.Exists
				}
			}
			c := change{r.Targets[i].Local, k, state}
			if exists {
				raise = append(raise, c)
			} else {
				t.lower = append(t.lower, c)
			}
		}
		if ever {
			raise = append(raise, change{Head, k, objectmap.ExistsClean})
		}
		if !exists {
			t.lower = append(t.lower, change{Head, k, objectmap.NonExistent})
		}
	}
	if err := r.mayWrite(ctx); err != nil {
		return err
	}
	return r.mapSet.apply(ctx, raise)
}

// older are the changes of the maps of all existing snapshots when an object is
// put below them.
func (r *run) older(k uint64) []change {
	existing := slices.Clone(r.Existing)
	slices.SortFunc(existing, func(a, b Snapshot) int { return cmp.Compare(a.ID, b.ID) })
	var out []change
	state := objectmap.Exists
	for _, s := range existing {
		if k >= s.Objects {
			continue
		}
		out = append(out, change{s.ID, k, state})
		state = objectmap.ExistsClean
	}
	return out
}

// work does tasks until there are no more.
func (r *run) work(ctx context.Context, work <-chan *task) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case t, ok := <-work:
			if !ok {
				return nil
			}
			if err := r.do(ctx, t); err != nil {
				return fmt.Errorf("object %d: %w", t.number, err)
			}
			if lower := r.track.written(t); len(lower) > 0 {
				if err := r.mayWrite(ctx); err != nil {
					return err
				}
				if err := r.mapSet.apply(ctx, lower); err != nil {
					return err
				}
				r.track.lowered(t.batch)
			}
			r.Stats.Done.Add(1)
		}
	}
}

// do brings one object through all its intervals.
func (r *run) do(ctx context.Context, t *task) error {
	intervals := t.intervals
	changed := false
	if r.FullCompare {
		repaired, err := r.compare(ctx, t)
		if err != nil {
			return err
		}
		changed = repaired
		intervals = intervals[1:]
	} else if t.copyUp {
		if err := r.copyUp(ctx, t, 0); err != nil {
			return err
		}
		changed = true
	}
	first := len(t.intervals) - len(intervals)
	for i, v := range intervals {
		if v.Unchanged() {
			continue
		}
		if err := r.interval(ctx, t, first+i); err != nil {
			return err
		}
		changed = true
	}
	if changed {
		r.Stats.Changed.Add(1)
	}
	return nil
}

// read reads from the source what is then written. It is held in memory, and
// accounted for, until done is called.
func (r *run) read(ctx context.Context, k, snap uint64, extents []delta.Extent) (*read, error) {
	charge, err := r.Memory.acquire(ctx, delta.Bytes(extents))
	if err != nil {
		return nil, err
	}
	out, err := readObject(ctx, r.Source, k, snap, extents)
	if err != nil {
		charge.release()
		return nil, fmt.Errorf("%w: %w", errSource, err)
	}
	out.charge = charge
	if err := r.paid(ctx, out); err != nil {
		out.done()
		return nil, err
	}
	charge.keep(out.bytes())
	return out, nil
}

// paid counts what was read from the source, and waits if it was too much.
func (r *run) paid(ctx context.Context, d *read) error {
	n := d.bytes()
	r.Stats.ReadOps.Add(1)
	r.Stats.Read.Add(n)
	return pay(ctx, r.Limit, n)
}

func readObject(ctx context.Context, from Objects, k, snap uint64, extents []delta.Extent) (*read, error) {
	pairs := make([][2]uint64, len(extents))
	for i, e := range extents {
		pairs[i] = [2]uint64{e.Offset, e.Length}
	}
	d, err := ceph.ReadObject(ctx, from.IO, from.name(k), snap, pairs)
	if err != nil {
		return nil, err
	}
	out := &read{data: d, extents: make(delta.Data, len(d.Extents))}
	for i, part := range d.Extents {
		for _, e := range part {
			out.extents[i] = append(out.extents[i], delta.Extent{Offset: e[0], Length: e[1]})
		}
	}
	return out, nil
}

// pay waits until the limit allows for n bytes that were read.
func pay(ctx context.Context, limit *rate.Limiter, n uint64) error {
	if limit == nil {
		return nil
	}
	for n > 0 {
		part := min(n, uint64(max(limit.Burst(), 1)))
		if err := limit.WaitN(ctx, int(part)); err != nil {
			return fmt.Errorf("waiting for the bandwidth limit: %w", err)
		}
		n -= part
	}
	return nil
}

// read is data that was read.
type read struct {
	data    *ceph.ObjectData
	extents delta.Data
	charge  *charge // nil: somebody else's
}

func (d *read) bytes() uint64 {
	var n uint64
	for _, part := range d.extents {
		n += delta.Bytes(part)
	}
	return n
}

func (d *read) done() {
	d.data.Release()
	if d.charge != nil {
		d.charge.release()
	}
}

// interval brings the destination's object to what the source's was at target i.
func (r *run) interval(ctx context.Context, t *task, i int) error {
	v := t.intervals[i]
	err := r.apply(ctx, t.number, i, v)
	if !ceph.Is(err, syscall.ENOENT) || !v.Partial() || errors.Is(err, errSource) {
		return err
	}
	// The object has a past at the source that it does not have here.
	if r.mapSet != nil {
		if err := r.mayWrite(ctx); err != nil {
			return err
		}
		if err := r.mapSet.apply(ctx, r.older(t.number)); err != nil {
			return err
		}
	}
	if err := r.copyUp(ctx, t, i); err != nil {
		return err
	}
	return r.apply(ctx, t.number, i, v)
}

// errSource marks what went wrong at the source.
var errSource = errors.New("source")

func (r *run) apply(ctx context.Context, k uint64, i int, v delta.Interval) error {
	var data *ceph.ObjectData
	var extents delta.Data
	if reads := delta.Reads(delta.ToRead(v), joinGap); len(reads) > 0 {
		d, err := r.read(ctx, k, r.remotes[i], reads)
		if err != nil {
			return err
		}
		defer d.done()
		data, extents = d.data, d.extents
	}
	return r.write(ctx, k, r.contexts[i], v, delta.Steps(v, extents), data)
}

// copyUp puts the object, as it was before target i, below all snapshots.
func (r *run) copyUp(ctx context.Context, t *task, i int) error {
	from := r.Start
	if i > 0 {
		from = r.remotes[i-1]
	}
	v := t.intervals[i]
	for !v.Existed && i+1 < len(t.intervals) {
		i++
		from, v = r.remotes[i-1], t.intervals[i]
	}
	return r.putBelow(ctx, t.number, from, v)
}

// putBelow puts an object, as it was at the source's snapshot from, below all
// snapshots.
func (r *run) putBelow(ctx context.Context, k, from uint64, v delta.Interval) error {
	var data *ceph.ObjectData
	var extents delta.Data
	if v.OldSize > 0 {
		d, err := r.read(ctx, k, from, []delta.Extent{{Length: v.OldSize}})
		if err != nil {
			return err
		}
		defer d.done()
		data, extents = d.data, d.extents
	}
	err := r.write(ctx, k, nil, delta.Interval{Exists: true, Size: v.OldSize}, delta.CopyUp(v, extents), data)
	if ceph.Is(err, syscall.EEXIST) {
		return nil
	}
	if err == nil {
		r.Stats.CopiedUp.Add(1)
	}
	return err
}

// write carries out steps on the destination's object.
func (r *run) write(ctx context.Context, k uint64, snaps []uint64, v delta.Interval, steps []delta.Step, data *ceph.ObjectData) error {
	if len(steps) == 0 {
		return nil
	}
	var s ceph.ObjectSteps
	for _, step := range steps {
		switch step.Kind {
		case delta.Create:
			s.Create()
			s.Hint(r.ObjectSize)
		case delta.CreateExclusive:
			s.CreateExclusive()
			s.Hint(r.ObjectSize)
		case delta.AssertExists:
			s.AssertExists()
		case delta.Remove:
			s.Remove()
		case delta.Write:
			s.Write(step.Offset, step.Length, step.Part, step.At)
		case delta.Zero:
			s.Zero(step.Offset, step.Length)
		case delta.Truncate:
			s.Truncate(step.Offset)
		}
	}
	if err := r.mayWrite(ctx); err != nil {
		return err
	}
	r.Stats.WriteOps.Add(1)
	err := ceph.WriteObject(r.writes, r.Dest.IO, r.Dest.name(k), snaps, &s, data)
	switch {
	case err == nil:
	case !v.Exists && ceph.Is(err, syscall.ENOENT):
		return nil
	case r.writes.Err() != nil || ceph.Is(err, syscall.ETIMEDOUT):
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	default:
		return err
	}
	written, zeroed := delta.Volume(v, steps)
	r.Stats.Written.Add(written)
	r.Stats.Zeroed.Add(zeroed)
	if !v.Exists {
		r.Stats.Removed.Add(1)
	}
	return nil
}
