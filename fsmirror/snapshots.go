package fsmirror

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"cephmirror/internal/ceph"
)

// Names that both sides keep, as the stock daemon does.
const (
	snapDir       = ".snap"
	primarySnapID = "primary_snap_id"
	xattrDirty    = "ceph.mirror.dirty_snap_id"
	// xattrState is ours: which run wrote the tree last, so that we know
	// whether the tree can be trusted to equal a snapshot. See syncState.
	xattrState = "trusted.cephmirror.state"
)

// snapshot is a snapshot of a mirrored directory. On the peer, primary is the
// id of the source snapshot it equals.
type snapshot struct {
	name    string
	id      uint64
	primary uint64
}

// listSnapshots returns the snapshots taken of dir itself, oldest first.
func listSnapshots(m *ceph.Mount, dir string) ([]snapshot, error) {
	names, err := snapshotNames(m, dir)
	if err != nil {
		return nil, err
	}
	var out []snapshot
	for _, name := range names {
		id, _, err := m.SnapInfo(snapPath(dir, name))
		if ceph.Is(err, syscall.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("reading snapshot %s of %s: %w", name, dir, err)
		}
		out = append(out, snapshot{name: name, id: id})
	}
	slices.SortFunc(out, func(a, b snapshot) int { return cmp.Compare(a.id, b.id) })
	return out, nil
}

// listMirrored returns the mirrored snapshots of dir on the peer by the id of
// their source, oldest first, and the names of those that nobody mirrored.
func listMirrored(m *ceph.Mount, dir string) (mirrored []snapshot, strays []string, err error) {
	names, err := snapshotNames(m, dir)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		id, metadata, err := m.SnapInfo(snapPath(dir, name))
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading snapshot %s of %s on the peer: %w", name, dir, err)
		}
		primary, err := strconv.ParseUint(metadata[primarySnapID], 10, 64)
		if err != nil {
			strays = append(strays, name)
			continue
		}
		mirrored = append(mirrored, snapshot{name: name, id: id, primary: primary})
	}
	slices.SortFunc(mirrored, func(a, b snapshot) int { return cmp.Compare(a.primary, b.primary) })
	return mirrored, strays, nil
}

// snapshotNames leaves out the snapshots of directories above, which begin
// with an underscore.
func snapshotNames(m *ceph.Mount, dir string) ([]string, error) {
	var names []string
	err := m.List(join(dir, snapDir), ceph.Cached, func(e ceph.Entry) error {
		if !strings.HasPrefix(e.Name, "_") {
			names = append(names, e.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing snapshots of %s: %w", dir, err)
	}
	return names, nil
}

func snapPath(dir, name string) string { return join(dir, snapDir) + "/" + name }

// join appends a name to a directory that may be the root.
func join(dir, name string) string {
	return strings.TrimSuffix(dir, "/") + "/" + name
}

// plan is what has to be done to the peer's snapshots of one directory.
type plan struct {
	remove []snapshot // on the peer, whose source is gone
	rename []renaming // in this order
	last   *snapshot  // on the peer, the newest whose source still exists
	sync   []snapshot // of the source, oldest first
	clash  []string   // strays that stand in the way of a snapshot to be made
}

type renaming struct{ from, to string }

// makePlan compares the snapshots of a directory on both sides. Identity is
// the id of the source snapshot, never the name.
func makePlan(local, mirrored []snapshot, strays []string) plan {
	var p plan
	byID := make(map[uint64]snapshot, len(local))
	for _, s := range local {
		byID[s.id] = s
	}
	names := make(map[string]bool)
	var moves []renaming
	for i, m := range mirrored {
		source, ok := byID[m.primary]
		if !ok {
			p.remove = append(p.remove, m)
			continue
		}
		p.last = &mirrored[i]
		names[m.name] = true
		if source.name != m.name {
			moves = append(moves, renaming{m.name, source.name})
		}
	}
	p.rename = orderRenames(moves, names)
	for _, s := range local {
		if p.last == nil || s.id > p.last.primary {
			p.sync = append(p.sync, s)
			if slices.Contains(strays, s.name) {
				p.clash = append(p.clash, s.name)
			}
		}
	}
	return p
}

// orderRenames orders moves so that no target is taken when its turn comes;
// names in a circle go by way of a temporary one.
func orderRenames(moves []renaming, taken map[string]bool) []renaming {
	var out []renaming
	for len(moves) > 0 {
		n := len(out)
		rest := moves[:0:0]
		for _, m := range moves {
			if taken[m.to] {
				rest = append(rest, m)
				continue
			}
			delete(taken, m.from)
			taken[m.to] = true
			out = append(out, m)
		}
		if len(out) == n {
			if !slices.ContainsFunc(rest, func(m renaming) bool { return m.from == rest[0].to }) {
				return append(out, rest...) // the name is no mirrored snapshot's: let the peer refuse
			}
			free := "cephmirror-renaming-" + rest[0].from
			out = append(out, renaming{rest[0].from, free})
			delete(taken, rest[0].from)
			taken[free] = true
			rest[0].from = free
		}
		moves = rest
	}
	return out
}

// syncState is what we note on the root of the peer's tree (xattrState) beside
// the stock xattrDirty. It holds only while xattrDirty, which the stock daemon
// writes too, still names our run.
//
//	"7"        a comparison with the tree itself, towards snapshot 7, was begun
//	"7 new"    the same, on an empty tree: all there is stems from snapshot 7
//	"7 from 5" the difference from 5 to 7 was begun on a tree that equalled 5
//	"7 done"   the tree equals snapshot 7
type syncState struct {
	id   uint64
	from uint64 // 0: none
	kind stateKind
}

type stateKind int

const (
	stateCompared stateKind = iota
	stateNew
	stateFrom
	stateDone
)

func (s syncState) String() string {
	switch s.kind {
	case stateNew:
		return fmt.Sprintf("%d new", s.id)
	case stateFrom:
		return fmt.Sprintf("%d from %d", s.id, s.from)
	case stateDone:
		return fmt.Sprintf("%d done", s.id)
	}
	return strconv.FormatUint(s.id, 10)
}

func parseSyncState(text string) (s syncState, ok bool) {
	f := strings.Fields(text)
	if len(f) == 0 {
		return s, false
	}
	var err error
	if s.id, err = strconv.ParseUint(f[0], 10, 64); err != nil {
		return syncState{}, false
	}
	switch {
	case len(f) == 1:
	case len(f) == 2 && f[1] == "new":
		s.kind = stateNew
	case len(f) == 2 && f[1] == "done":
		s.kind = stateDone
	case len(f) == 3 && f[1] == "from":
		s.kind = stateFrom
		if s.from, err = strconv.ParseUint(f[2], 10, 64); err != nil {
			return syncState{}, false
		}
	default:
		return syncState{}, false
	}
	return s, true
}

// base decides what the difference to snapshot next is taken from: the source
// snapshot that the peer's tree is known to equal, or to be on the way from.
// 0 means that the tree itself has to be compared. resumed tells that all there
// is in it stems from an interrupted run towards the same snapshot, so that
// what looks complete is complete; otherwise equal looks prove little.
func base(dirty, state string, last *snapshot, next uint64) (from uint64, resumed bool) {
	s, ok := parseSyncState(state)
	if !ok || dirty != strconv.FormatUint(s.id, 10) {
		return 0, false
	}
	switch {
	case s.kind == stateNew:
		return 0, s.id == next
	case last == nil:
		return 0, false
	case s.kind == stateDone && s.id == last.primary:
		return s.id, false
	case s.kind == stateFrom && s.id == next && s.from == last.primary:
		return s.from, false
	}
	return 0, false
}
