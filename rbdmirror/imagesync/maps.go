package imagesync

import (
	"context"
	"fmt"
	"sync"

	"cephmirror/rbdmirror/objectmap"
)

// mapSet keeps what is stored of the destination's object maps, so that little
// needs to be written: runs of equal states, or a whole map where there are many.
// A map must never say that an object is not there when it is: states are raised
// before the object is written to, and lowered after it was removed.
type mapSet struct {
	io    ObjectMaps
	stats *Stats

	mu   sync.Mutex // also keeps calls from being made two at once
	maps map[uint64]*objectmap.Map
}

// manyRuns is from how many runs on a map is written as a whole.
const manyRuns = 8

// change is a state that an object is to get in the map of a snapshot.
type change struct {
	snap, object uint64
	state        objectmap.State
}

func (s *mapSet) loadLocked(ctx context.Context, snap uint64) (*objectmap.Map, error) {
	if m := s.maps[snap]; m != nil {
		return m, nil
	}
	m, err := s.io.Load(ctx, snap)
	if err != nil {
		return nil, fmt.Errorf("loading the object map of %s: %w", snapName(snap), err)
	}
	s.maps[snap] = m
	return m, nil
}

func snapName(snap uint64) string {
	if snap == Head {
		return "the image"
	}
	return fmt.Sprintf("snapshot %d", snap)
}

// begin brings the maps of the targets to what they are if no object changes,
// from the first object that is not done. It returns the map of the head.
func (s *mapSet) begin(ctx context.Context, targets []Target, from uint64) (*objectmap.Map, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	head, err := s.loadLocked(ctx, Head)
	if err != nil {
		return nil, err
	}
	base := head.Clone()
	base.SnapAdd()
	for i := range base.Len() {
		if base.Get(i) == objectmap.Pending {
			base.Set(i, objectmap.ExistsClean)
		}
	}
	for _, snap := range append([]uint64{Head}, locals(targets)...) {
		m, err := s.loadLocked(ctx, snap)
		if err != nil {
			return nil, err
		}
		next := base.Clone()
		next.Resize(m.Len(), objectmap.NonExistent)
		for i := range min(from, m.Len()) {
			next.Set(i, m.Get(i))
		}
		if next.Equal(m) {
			continue
		}
		if err := s.saveLocked(ctx, snap, next); err != nil {
			return nil, err
		}
	}
	return base, nil
}

func locals(targets []Target) []uint64 {
	out := make([]uint64, len(targets))
	for i, t := range targets {
		out[i] = t.Local
	}
	return out
}

func (s *mapSet) saveLocked(ctx context.Context, snap uint64, m *objectmap.Map) error {
	s.stats.MapWrites.Add(1)
	if err := s.io.Save(ctx, snap, m); err != nil {
		// What is stored now is anybody's guess.
		delete(s.maps, snap)
		return fmt.Errorf("saving the object map of %s: %w", snapName(snap), err)
	}
	s.maps[snap] = m
	return nil
}

// apply carries out changes, sorted by object for each snapshot.
func (s *mapSet) apply(ctx context.Context, changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	bySnap := make(map[uint64][]change)
	for _, c := range changes {
		bySnap[c.snap] = append(bySnap[c.snap], c)
	}
	for snap, list := range bySnap {
		m, err := s.loadLocked(ctx, snap)
		if err != nil {
			return err
		}
		var runs []objectmap.Run
		for _, c := range list {
			if c.object >= m.Len() || m.Get(c.object) == c.state {
				continue
			}
			if n := len(runs); n > 0 && runs[n-1].End == c.object && runs[n-1].State == c.state {
				runs[n-1].End++
				continue
			}
			runs = append(runs, objectmap.Run{Start: c.object, End: c.object + 1, State: c.state})
		}
		if len(runs) >= manyRuns {
			next := m.Clone()
			for _, r := range runs {
				next.SetRange(r.Start, r.End, r.State)
			}
			if err := s.saveLocked(ctx, snap, next); err != nil {
				return err
			}
			continue
		}
		for _, r := range runs {
			s.stats.MapWrites.Add(1)
			if err := s.io.Update(ctx, snap, r.Start, r.End, r.State); err != nil {
				delete(s.maps, snap)
				return fmt.Errorf("updating the object map of %s: %w", snapName(snap), err)
			}
			m.SetRange(r.Start, r.End, r.State)
		}
	}
	return nil
}
