package target

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
)

// Write carries out writes of objects side by side. Once begun they are all
// finished, whatever becomes of ctx, so that what is let go of is at a point of
// the journal.
func (t *Target) Write(ctx context.Context, objects []*merge.Object) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	objects, err := t.effective(ctx, objects)
	if err != nil {
		return err
	}
	if err := t.raise(objects); err != nil {
		return err
	}
	if err := t.eachObject(context.WithoutCancel(ctx), len(objects), func(ctx context.Context, i int) error {
		t.anew.wrote(objects[i].Number)
		return t.writeObject(ctx, objects[i])
	}); err != nil {
		return err
	}
	return t.lower(objects)
}

// WriteInTurn carries out lists of writes one after the other: each when the one
// before is durable. It returns how many are, and why the others are not.
func (t *Target) WriteInTurn(ctx context.Context, lists [][]*merge.Object) (int, error) {
	done := 0
	for done < len(lists) {
		n, err := t.plainInTurn(ctx, lists[done:])
		done += n
		if err != nil || done == len(lists) {
			return done, err
		}
		if err := t.Write(ctx, lists[done]); err != nil {
			return done, err
		}
		done++
	}
	return done, nil
}

// plainInTurn carries out the first lists, as far as they are plain writes.
func (t *Target) plainInTurn(ctx context.Context, lists [][]*merge.Object) (int, error) {
	if err := t.ready(ctx); err != nil {
		return 0, err
	}
	var writes []ceph.ObjectWrite
	defer func() {
		for _, w := range writes {
			w.Data.Release()
		}
	}()
	ends := []int{0} // how many lists are done after so many writes
	for i, objects := range lists {
		if len(objects) > 0 {
			if len(objects) > 1 || !t.plain(objects[0]) {
				break
			}
			o := objects[0]
			w := ceph.ObjectWrite{Object: store.DataObject(t.img.Prefix, o.Number)}
			if t.covered(o.Number) > 0 {
				w.Steps.AssertExists()
			}
			var err error
			if w.Data, err = fill(&w.Steps, o); err != nil {
				return 0, err
			}
			writes, ends = append(writes, w), append(ends, 0)
			t.anew.wrote(o.Number)
		}
		ends[len(writes)] = i + 1
	}
	if len(writes) == 0 {
		return ends[0], nil
	}
	n, err := t.sendInTurn(ctx, writes)
	switch {
	case ceph.Is(err, syscall.ENOENT):
		err = nil // the parent shows: not as plain as it looked
	case err == nil && n < len(writes):
		err = t.ready(ctx)
	}
	return ends[n], err
}

// plain says that an object is there, as far as the object map says that, and that
// nothing becomes of it but that it is written to.
func (t *Target) plain(o *merge.Object) bool {
	known := t.covered(o.Number) == 0
	if t.head != nil {
		known = o.Number < t.head.Len() && t.head.Get(o.Number) == objectmap.Exists
	}
	return known && !o.Drop && !o.Cut && o.Bytes() > 0
}

// readyEvery is how often it is looked whether writes may go on, while they are
// sent one after the other.
const readyEvery = 50 * time.Millisecond

// sendInTurn sends writes one after the other, as long as that is allowed.
func (t *Target) sendInTurn(ctx context.Context, writes []ceph.ObjectWrite) (int, error) {
	allowed, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(readyEvery)
		defer tick.Stop()
		for {
			select {
			case <-allowed.Done():
				return
			case <-tick.C:
				if t.ready(ctx) != nil {
					stop()
				}
			}
		}
	})
	n, err := ceph.WriteInTurn(allowed, t.data, t.snaps, writes)
	stop()
	watcher.Wait()
	return n, certain(ctx, err)
}

// eachObject does something for a number of objects, side by side.
func (t *Target) eachObject(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	if n == 1 {
		return do(ctx, 0)
	}
	var g errgroup.Group
	g.SetLimit(t.cfg.Concurrency)
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return do(ctx, i)
		})
	}
	return g.Wait()
}

// covered returns how many bytes of an object the parent would show through, if
// the object did not exist.
func (t *Target) covered(object uint64) uint64 {
	if t.img.ParentOverlap == nil {
		return 0
	}
	return t.layout.ObjectEnd(object, *t.img.ParentOverlap)
}

func (t *Target) missing(object uint64) bool {
	return t.head != nil && t.head.Get(object) == objectmap.NonExistent
}

// effective leaves out what changes nothing: an object that does not exist, and
// hides nothing of a parent, has nothing to be cut or zeroed, and there is nothing
// to be zeroed behind the end of one.
func (t *Target) effective(ctx context.Context, objects []*merge.Object) ([]*merge.Object, error) {
	if t.head == nil {
		return objects, nil
	}
	kept := make([]*merge.Object, 0, len(objects))
	var doubtful []int
	for _, o := range objects {
		if t.missing(o.Number) && o.Bytes() == 0 && t.covered(o.Number) == 0 {
			continue
		}
		// If it is changed since the last snapshot anyway, it does not matter.
		if len(t.snaps) > 0 && onlyZeroes(o) && t.head.Get(o.Number) == objectmap.ExistsClean {
			doubtful = append(doubtful, len(kept))
		}
		kept = append(kept, o)
	}
	if len(doubtful) == 0 {
		return kept, nil
	}
	none := make([]bool, len(kept))
	if err := t.eachObject(ctx, len(doubtful), func(_ context.Context, i int) error {
		o := kept[doubtful[i]]
		st, err := t.data.Stat(store.DataObject(t.img.Prefix, o.Number))
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		none[doubtful[i]] = err == nil && st.Size <= o.Extents[0].Offset
		return err
	}); err != nil {
		return nil, err
	}
	n := 0
	for i, o := range kept {
		if !none[i] {
			kept[n] = o
			n++
		}
	}
	return kept[:n], nil
}

// onlyZeroes says that nothing becomes of an object but that some of it is zeroed.
func onlyZeroes(o *merge.Object) bool {
	return !o.Drop && !o.Cut && len(o.Extents) > 0 && o.Bytes() == 0
}

// mapUpdates is how many updates of the object map are made one by one; more are
// made by saving all of it, if it is small.
const (
	mapUpdates = 4
	smallMap   = 1 << 20 // objects
)

// raise makes the object map say that objects exist and have changed, before they
// are written.
func (t *Target) raise(objects []*merge.Object) error {
	return t.mark(objectmap.Exists, func(yield func(uint64)) {
		for _, o := range objects {
			yield(o.Number)
		}
	})
}

// lower makes it say that objects are gone, after they are.
func (t *Target) lower(objects []*merge.Object) error {
	return t.mark(objectmap.NonExistent, func(yield func(uint64)) {
		for _, o := range objects {
			if o.Gone() && t.covered(o.Number) == 0 {
				yield(o.Number)
			}
		}
	})
}

// mark gives objects, in ascending order, a state in the object map.
func (t *Target) mark(state objectmap.State, objects func(func(uint64))) error {
	if t.head == nil {
		return nil
	}
	type run struct{ start, end uint64 }
	var runs []run
	objects(func(n uint64) {
		if n >= t.head.Len() || t.head.Get(n) == state {
			return
		}
		if k := len(runs) - 1; k >= 0 && runs[k].end == n {
			runs[k].end++
			return
		}
		runs = append(runs, run{n, n + 1})
	})
	if len(runs) == 0 {
		return nil
	}
	m := t.objectMap(cls.NoSnap)
	if len(runs) > mapUpdates && t.head.Len() <= smallMap {
		next := t.head.Clone()
		for _, r := range runs {
			next.SetRange(r.start, r.end, state)
		}
		if err := m.Save(next); err != nil {
			return err
		}
		t.head = next
		return nil
	}
	for _, r := range runs {
		if err := m.Update(r.start, r.end, state, nil); err != nil {
			return err
		}
		t.head.SetRange(r.start, r.end, state)
	}
	return nil
}

// writeObject carries out what becomes of one object.
func (t *Target) writeObject(ctx context.Context, o *merge.Object) error {
	covered := t.covered(o.Number)
	if covered == 0 && o.Gone() {
		var s ceph.ObjectSteps
		s.Remove()
		err := t.send(ctx, o.Number, t.snaps, &s, nil)
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	}
	var s ceph.ObjectSteps
	// What hides the parent must not be made up of a part of the object. With
	// snapshots, which may be cut from the parent one day, this goes for all.
	drop := o.Drop || t.fillsObject(o)
	whole := covered > 0 && (!drop || len(t.snaps) > 0)
	switch {
	case whole:
		s.AssertExists()
	case covered > 0:
		s.Create()
	}
	switch {
	case o.Drop:
		s.Truncate(0)
	case o.Cut:
		s.Truncate(o.CutAt)
	}
	data, err := fill(&s, o)
	if err != nil {
		return err
	}
	defer data.Release()
	if s.Len() == 0 {
		return nil
	}
	err = t.send(ctx, o.Number, t.snaps, &s, data)
	if whole && ceph.Is(err, syscall.ENOENT) {
		if err := t.copyUp(ctx, o.Number); err != nil {
			return err
		}
		err = t.send(ctx, o.Number, t.snaps, &s, data)
	}
	return err
}

// fillsObject says that nothing of an object's earlier content remains.
func (t *Target) fillsObject(o *merge.Object) bool {
	var end uint64
	for _, e := range o.Extents {
		if e.Offset != end {
			return false
		}
		end = e.End()
	}
	return end == t.layout.ObjectSize
}

// fill adds the extents of an object to steps, adjacent ones in one.
func fill(s *ceph.ObjectSteps, o *merge.Object) (*ceph.ObjectData, error) {
	n := o.Bytes()
	buf := make([]byte, 0, n)
	var from, at uint64
	flush := func() {
		if length := uint64(len(buf)) - at; length > 0 {
			s.Write(from, length, 0, at)
		}
		at = uint64(len(buf))
	}
	for _, e := range o.Extents {
		if e.Data == nil {
			s.Zero(e.Offset, e.Length)
			continue
		}
		if e.Offset != from+uint64(len(buf))-at {
			flush()
			from = e.Offset
		}
		if uint64(len(buf)) == at {
			from = e.Offset
		}
		buf = e.AppendTo(buf)
	}
	flush()
	if n == 0 {
		return nil, nil
	}
	return ceph.NewObjectData(buf)
}

// send changes an object. Of a change that was not answered nobody knows whether
// it will be carried out.
func (t *Target) send(ctx context.Context, object uint64, snaps []uint64, s *ceph.ObjectSteps, data *ceph.ObjectData) error {
	return certain(ctx, ceph.WriteObject(ctx, t.data, store.DataObject(t.img.Prefix, object), snaps, s, data))
}

// certain marks the error of a change that was not answered.
func certain(ctx context.Context, err error) error {
	if ceph.Is(err, syscall.ETIMEDOUT, syscall.ECANCELED) || err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return err
}

// Matches says whether the image has a content somewhere.
func (t *Target) Matches(ctx context.Context, offset uint64, content []byte) (bool, error) {
	have := make([]byte, len(content))
	var failed error
	t.layout.Pieces(offset, uint64(len(content)), func(p merge.Piece) {
		if failed == nil {
			failed = t.read(ctx, have[p.At:p.At+p.Length], p.Object, p.Offset)
		}
	})
	return bytes.Equal(have, content), failed
}

// read reads a piece of an object, what it does not have as zeros or from the
// parent.
func (t *Target) read(ctx context.Context, into []byte, object, offset uint64) error {
	d, err := ceph.ReadObject(ctx, t.data, store.DataObject(t.img.Prefix, object), ceph.SnapHead, [][2]uint64{{offset, uint64(len(into))}})
	if ceph.Is(err, syscall.ENOENT) {
		covered := t.covered(object)
		if covered <= offset {
			return nil
		}
		whole, err := t.readParent(ctx, object, covered)
		if err != nil {
			return err
		}
		copy(into, whole[offset:])
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Release()
	return take(d, 0, offset, into)
}

// copyUp makes an object that shows its parent one of its own. If all snapshots
// show the same of the parent, it is put below them, too: they can do without the
// parent then.
func (t *Target) copyUp(ctx context.Context, object uint64) error {
	content, err := t.readParent(ctx, object, t.covered(object))
	if err != nil {
		return err
	}
	content = bytes.TrimRight(content, "\x00")
	var s ceph.ObjectSteps
	s.CreateExclusive()
	var data *ceph.ObjectData
	if len(content) > 0 {
		if data, err = ceph.NewObjectData(content); err != nil {
			return err
		}
		defer data.Release()
		s.Write(0, uint64(len(content)), 0, 0)
	}
	snaps := t.snaps
	if t.uniform(object) {
		if err := t.raiseSnapshots(object); err != nil {
			return err
		}
		snaps = nil
	}
	err = t.send(ctx, object, snaps, &s, data)
	if ceph.Is(err, syscall.EEXIST) {
		return nil
	}
	return err
}

// uniform says that an object shows as much of the parent in all snapshots as in
// the image itself.
func (t *Target) uniform(object uint64) bool {
	for _, s := range t.img.Snapshots {
		if s.ParentOverlap == nil || t.layout.ObjectEnd(object, *s.ParentOverlap) != t.covered(object) || t.layout.ObjectEnd(object, s.Size) < t.covered(object) {
			return false
		}
	}
	return true
}

// raiseSnapshots makes the maps of the snapshots say that an object exists.
func (t *Target) raiseSnapshots(object uint64) error {
	if !t.img.Has(cls.FeatureObjectMap) {
		return nil
	}
	for i, s := range t.img.Snapshots {
		if s.Flags&cls.FlagObjectMapInvalid != 0 {
			continue
		}
		state := objectmap.ExistsClean
		if i == 0 {
			state = objectmap.Exists
		}
		if err := t.objectMap(s.ID).Update(object, object+1, state, nil); err != nil && !ceph.Is(err, syscall.ERANGE) {
			return err
		}
	}
	return nil
}
