package imagesync

import (
	"context"
	"fmt"
	"math/bits"

	"cephmirror/rbdmirror/objectmap"
)

// numbers is a set of object numbers.
type numbers struct {
	words []uint64
	limit uint64
}

func newNumbers(limit uint64) *numbers {
	return &numbers{words: make([]uint64, (limit+63)/64), limit: limit}
}

func (n *numbers) add(i uint64) {
	if i < n.limit {
		n.words[i/64] |= 1 << (i % 64)
	}
}

func (n *numbers) addRange(from, to uint64) {
	for i := from; i < min(to, n.limit); i++ {
		n.add(i)
	}
}

// count returns how many there are from a number on.
func (n *numbers) count(from uint64) uint64 {
	var c int
	for w := from / 64; w < uint64(len(n.words)); w++ {
		word := n.words[w]
		if w == from/64 {
			word = word >> (from % 64)
		}
		c += bits.OnesCount64(word)
	}
	return uint64(c)
}

// next returns the first number of the set from at on.
func (n *numbers) next(at uint64) (uint64, bool) {
	for at < n.limit {
		w := n.words[at/64] >> (at % 64)
		if w != 0 {
			at += uint64(bits.TrailingZeros64(w))
			return at, true
		}
		at = at/64*64 + 64
	}
	return 0, false
}

// candidates returns the objects that may have to be changed. known is the map
// of the destination's head, nil if there is none.
func (r *run) candidates(ctx context.Context, known *objectmap.Map) (*numbers, error) {
	j := &r.Job
	count := j.StartObjects
	for _, t := range j.Targets {
		count = max(count, t.Objects)
	}
	out := newNumbers(count)
	if j.SourceMaps == nil || j.FullCompare {
		out.addRange(0, out.limit)
		return out, nil
	}
	var before *objectmap.Map
	load := func(snap uint64) (*objectmap.Map, error) {
		m, err := j.SourceMaps.Load(ctx, snap)
		if err != nil {
			return nil, fmt.Errorf("loading the object map of the source's snapshot %d: %w", snap, err)
		}
		return m, nil
	}
	if j.Start != 0 {
		m, err := load(j.Start)
		if err != nil {
			return nil, err
		}
		before = m
	}
	for _, snap := range j.SourceMaps.Snaps {
		m, err := load(snap)
		if err != nil {
			return nil, err
		}
		// Each step by itself: what came and went again matters to the
		// snapshots in between.
		for k := range objectmap.Diff(before, m) {
			out.add(k)
		}
		if j.SourceMaps.ExistenceOnly {
			for k := range min(m.Len(), out.limit) {
				if m.Get(k) != objectmap.NonExistent {
					out.add(k)
				}
			}
		}
		before = m
	}
	if known != nil {
		// What the head's map does not reach is not known to exist in
		// snapshots that are larger than it.
		out.addRange(known.Len(), out.limit)
	}
	return out, nil
}
