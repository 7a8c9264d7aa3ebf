package target

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
	history "cephmirror/snapdiff/objects"
)

const mapInvalid = cls.FlagObjectMapInvalid | cls.FlagFastDiffInvalid

// rebuild makes object maps anew, some objects at a time, while the image is
// written to in between.
type rebuild struct {
	ids   []uint64         // of the snapshots, oldest first, and of the head
	maps  []*objectmap.Map // theirs; nil: not to be made
	count uint64           // objects that any of them has
	next  uint64           // all below are known

	mu sync.Mutex
	// changed are objects that were written to after they became known.
	changed map[uint64]struct{}
}

// wrote notes that an object is no longer what it was.
func (r *rebuild) wrote(object uint64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if object < r.next {
		r.changed[object] = struct{}{}
	}
}

// some returns the objects to look at next, in ascending order.
func (r *rebuild) some(limit int) (list []uint64) {
	for ; r.next < r.count && len(list) < limit; r.next++ {
		list = append(list, r.next)
	}
	if len(list) > 0 {
		return list
	}
	for n := range maps.Keys(r.changed) {
		if len(list) == limit {
			break
		}
		list = append(list, n)
		delete(r.changed, n)
	}
	slices.Sort(list)
	return list
}

// Damaged says whether the image has an object map that is not to be relied on.
// Whoever changes its features, and rolls back to a snapshot without a map, leaves
// such ones.
func (t *Target) Damaged() bool {
	if !t.img.Has(cls.FeatureObjectMap) {
		return false
	}
	for _, s := range t.img.Snapshots {
		if s.Flags&mapInvalid != 0 {
			return true
		}
	}
	return t.img.Flags&mapInvalid != 0
}

// Rebuild makes the object maps that are not to be relied on anew. It looks at so
// many objects and says whether there is more to be done. In between the image may
// be written to.
func (t *Target) Rebuild(ctx context.Context, limit int) (more bool, err error) {
	if err := t.ready(ctx); err != nil {
		return false, err
	}
	if !t.Damaged() {
		return false, nil
	}
	r := t.anew
	if r == nil {
		r = t.newRebuild()
		t.anew = r
	}
	list := r.some(limit)
	if len(list) == 0 {
		t.anew = nil
		return false, t.saveRebuilt(r)
	}
	states := make([][]objectmap.State, len(list))
	if err := t.eachObject(ctx, len(list), func(ctx context.Context, i int) error {
		set, err := ceph.ListObjectSnaps(ctx, t.data, store.DataObject(t.img.Prefix, list[i]))
		if err == nil {
			states[i], err = statesOf(set, r.ids, t.img.Has(cls.FeatureFastDiff))
		}
		return err
	}); err != nil {
		t.anew = nil
		return false, fmt.Errorf("rebuilding the object map: %w", err)
	}
	for i, n := range list {
		for k, m := range r.maps {
			if m != nil {
				m.Set(n, states[i][k])
			}
		}
	}
	return true, nil
}

func (t *Target) newRebuild() *rebuild {
	r := &rebuild{changed: make(map[uint64]struct{})}
	add := func(id, flags, size uint64) {
		var m *objectmap.Map
		if flags&mapInvalid != 0 {
			m = objectmap.New(t.img.Objects(size))
			r.count = max(r.count, m.Len())
		}
		r.ids, r.maps = append(r.ids, id), append(r.maps, m)
	}
	for _, s := range t.img.Snapshots {
		add(s.ID, s.Flags, s.Size)
	}
	add(cls.NoSnap, t.img.Flags, t.img.Size)
	return r
}

// saveRebuilt stores the maps, and only then says that they can be relied on.
func (t *Target) saveRebuilt(r *rebuild) error {
	for i, id := range r.ids {
		if r.maps[i] == nil {
			continue
		}
		if id == cls.NoSnap && !t.mapped {
			if err := t.lockMap(); err != nil {
				return err
			}
			t.mapped = true
		}
		if err := t.objectMap(id).Save(r.maps[i]); err != nil {
			return err
		}
		if err := t.header.SetFlags(id, 0, mapInvalid); err != nil {
			return err
		}
	}
	t.notify()
	t.cfg.Log.Info().Uint64("objects", r.count).Msg("the object map was rebuilt")
	return t.Reload()
}

// statesOf returns what object maps say of an object at snapshots, which are in
// ascending order and end with the head: with fast-diff, an object is as it was if it
// was not written to since the snapshot before, whatever it is that was written.
func statesOf(set ceph.SnapSet, ids []uint64, fast bool) ([]objectmap.State, error) {
	o := history.Object{Seq: set.Seq, Versions: make([]history.Version, len(set.Clones))}
	for i, c := range set.Clones {
		o.Versions[i] = history.Version{ID: c.ID, Snaps: c.Snaps}
		if c.ID == ceph.SnapHead {
			o.Versions[i].ID = history.Head
		}
	}
	states := make([]objectmap.State, len(ids))
	var was history.Version
	existed := false
	for i, id := range ids {
		if id == cls.NoSnap {
			id = history.Head
		}
		is, exists, err := o.At(id)
		switch {
		case err != nil:
			return nil, err
		case !exists:
		case fast && existed && was.ID == is.ID:
			states[i] = objectmap.ExistsClean
		default:
			states[i] = objectmap.Exists
		}
		was, existed = is, exists
	}
	return states, nil
}
