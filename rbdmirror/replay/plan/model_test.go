package plan

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cephmirror/rbdmirror/cls"
)

// The model plays two clusters with one image: users who write, take snapshots
// and change roles, and a daemon that carries out what Next decides, and is
// killed in the middle of it.

const objects = 6

// object is a data object with its past, as an OSD keeps it.
type object struct {
	seq    uint64
	head   int
	clones map[uint64]int // by snapshot
}

func (o *object) at(snap uint64) int {
	if v, ok := o.clones[snap]; ok && snap <= o.seq {
		return v
	}
	return o.head
}

// write writes under a context of these snapshots.
func (o *object) write(v int, context []uint64) {
	newest := uint64(0)
	for _, id := range context {
		newest = max(newest, id)
		if id > o.seq {
			o.clones[id] = o.head
		}
	}
	o.seq = max(o.seq, newest)
	o.head = v
}

type modelImage struct {
	header  Header
	data    [objects]*object
	history [objects][]uint64 // when each object was written, by the newest snapshot of that time
	next    uint64            // snapshot id
	record  cls.RecordState
}

func newImage() *modelImage {
	i := &modelImage{next: 1, record: cls.RecordEnabled}
	for k := range i.data {
		i.data[k] = &object{clones: map[uint64]int{}}
	}
	return i
}

func (i *modelImage) ids(below uint64) (ids []uint64) {
	for _, s := range i.header.Snapshots {
		if s.ID < below {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (i *modelImage) write(k, v int) {
	i.data[k].write(v, i.ids(cls.NoSnap))
	i.history[k] = append(i.history[k], i.next)
}

func (i *modelImage) add(s cls.Snapshot) uint64 {
	s.ID = i.next
	i.next++
	i.header.Snapshots = append(i.header.Snapshots, s)
	return s.ID
}

func (i *modelImage) find(id uint64) *cls.Snapshot {
	for k := range i.header.Snapshots {
		if i.header.Snapshots[k].ID == id {
			return &i.header.Snapshots[k]
		}
	}
	return nil
}

func (i *modelImage) remove(id uint64) {
	i.header.Snapshots = slices.DeleteFunc(i.header.Snapshots, func(s cls.Snapshot) bool { return s.ID == id })
}

// changed reports whether an object was written between two snapshots.
func (i *modelImage) changed(k int, after, until uint64) bool {
	return slices.ContainsFunc(i.history[k], func(at uint64) bool { return at > after && at <= until })
}

func (i *modelImage) content(snap uint64) (c [objects]int) {
	for k, o := range i.data {
		c[k] = o.at(snap)
	}
	return c
}

func (i *modelImage) primary() bool {
	return i.header.Features&cls.FeatureNonPrimary == 0
}

type world struct {
	t      *rapid.T
	sides  map[string]*modelImage // by mirror uuid
	states map[string]map[uint64]cls.ImageState
	value  int
	full   bool
	own    uint64
	ownF   bool
}

func other(uuid string) string {
	if uuid == here {
		return there
	}
	return here
}

// mirrorSnap takes a primary mirror snapshot.
func (w *world) mirrorSnap(uuid string, state cls.MirrorState) {
	i := w.sides[uuid]
	peer := ourUUID
	if uuid == here {
		peer = theirUUID
	}
	want := cls.ImageState{Snapshots: map[uint64]cls.SnapState{}}
	for _, s := range i.header.Snapshots {
		if s.Namespace.Type == cls.NamespaceUser {
			want.Snapshots[s.ID] = cls.SnapState{Name: s.Name}
		}
	}
	id := i.add(mirror(0, state, peers(peer)))
	w.states[uuid][id] = want
}

func (w *world) snapshotOf(uuid string) *Image {
	i := w.sides[uuid]
	if i == nil {
		return nil
	}
	h := i.header
	h.Order = 22
	h.Snapshots = slices.Clone(h.Snapshots)
	for k, s := range h.Snapshots {
		if m := s.Namespace.Mirror; m != nil {
			c := *m
			c.SnapSeqs = maps.Clone(m.SnapSeqs)
			c.Peers = slices.Clone(m.Peers)
			h.Snapshots[k].Namespace.Mirror = &c
		}
	}
	return &Image{ID: uuid, Name: "img", Record: cls.MirrorImage{State: i.record, Mode: cls.ImageModeSnapshot}, Header: &h}
}

func (w *world) input(local string) Input {
	remote := other(local)
	in := Input{Local: w.snapshotOf(local), Remote: w.snapshotOf(remote), LocalUUID: local, RemoteUUID: remote, Own: w.own, OwnFull: w.ownF, FullCompare: w.full}
	mine, theirs := theirUUID, ourUUID
	if local == there {
		mine, theirs = theirs, mine
	}
	in.LocalPeers = []cls.Peer{{UUID: mine, MirrorUUID: remote, Direction: cls.DirectionRxTx}}
	in.RemotePeers = []cls.Peer{{UUID: theirs, MirrorUUID: local, Direction: cls.DirectionRxTx}}
	return in
}

// step lets the daemon of a side do one thing. With crash it is killed
// somewhere within. It reports whether there was something to do.
func (w *world) step(local string, crash bool) Step {
	s := Next(w.input(local))
	i, remote := w.sides[local], w.sides[other(local)]
	switch s.Kind {
	case Create:
		i = newImage()
		i.header.Features = cls.FeatureNonPrimary
		w.sides[local] = i
		w.prepare(local, s, false)
	case Copy:
		if s.Sync.Local == 0 {
			w.prepare(local, s, crash)
		} else {
			w.transfer(local, s, crash)
		}
	case Unlink:
		for _, id := range s.Snapshots {
			m := remote.find(id).Namespace.Mirror
			m.Peers = slices.DeleteFunc(m.Peers, func(p string) bool { return p == s.Peer })
		}
	case Prune:
		for _, id := range s.Snapshots {
			i.remove(id)
		}
	case Delete:
		if !s.Resync {
			w.t.Fatalf("deletes the image: %s", s.Why)
		}
		w.sides[local] = nil
	case Purge, Gone, OtherMode, Broken:
		w.t.Fatalf("%s: %s", s.Kind, s.Why)
	}
	if crash {
		w.own, w.ownF = 0, false
	}
	return s
}

func (w *world) prepare(local string, s Step, crash bool) {
	i, sync := w.sides[local], s.Sync
	left := 100
	if crash {
		left = rapid.IntRange(0, 4).Draw(w.t, "preparations")
	}
	may := func() bool { left--; return left >= 0 }
	for _, id := range sync.Drop {
		if !may() {
			return
		}
		i.remove(id)
	}
	seqs := maps.Clone(sync.SnapSeqs)
	for _, l := range sync.Chain {
		id := l.Local
		if id == 0 {
			if !may() {
				return
			}
			for _, o := range i.header.Snapshots {
				if o.Name == Unfinished(l.Remote) && o.Namespace.Type == cls.NamespaceUser {
					w.t.Fatalf("the name %s is taken", o.Name)
				}
			}
			id = i.add(named(0, Unfinished(l.Remote)))
		}
		seqs[l.Remote.ID] = id
	}
	if !may() {
		return
	}
	seqs[sync.End.ID] = cls.NoSnap
	state := cls.MirrorNonPrimary
	if sync.Demoted() {
		state = cls.MirrorNonPrimaryDemoted
	}
	id := i.add(mirror(0, state, of(other(local), sync.End.ID), incomplete, copied(sync.First), seqsOf(seqs), peers(sync.Peers...)))
	w.states[local][id] = w.states[other(local)][sync.End.ID]
	w.own, w.ownF = id, sync.Full
	if !may() {
		return
	}
	for _, o := range slices.Clone(i.header.Snapshots) {
		m := o.Namespace.Mirror
		if m != nil && o.ID != id && !m.Primary() && !m.Complete && (sync.Base == nil || o.ID > sync.Base.Local) {
			i.remove(o.ID)
		}
	}
}

func seqsOf(m map[uint64]uint64) func(*cls.MirrorNamespace) {
	return func(n *cls.MirrorNamespace) { n.SnapSeqs = m }
}

func (w *world) transfer(local string, s Step, crash bool) {
	i, remote, sync := w.sides[local], w.sides[other(local)], s.Sync
	for _, id := range sync.Drop {
		i.remove(id)
	}
	n := i.find(sync.Local)
	// A copy must not have to be written below snapshots that are older than it.
	oldest, filled := sync.Local, map[uint64]bool{sync.Local: true}
	for _, l := range sync.Chain {
		oldest, filled[l.Local] = min(oldest, l.Local), true
	}
	for _, o := range i.header.Snapshots {
		if o.ID > oldest && !filled[o.ID] {
			w.t.Fatalf("snapshot %d is newer than %d, which is to be filled", o.ID, oldest)
		}
	}
	stop := objects + 1
	if crash {
		stop = rapid.IntRange(0, objects).Draw(w.t, "objects")
	}
	for k := int(sync.First); k < objects; k++ {
		if k == stop {
			return
		}
		prev := uint64(0)
		if sync.Base != nil && !sync.Full {
			prev = sync.Base.Remote
		}
		type target struct{ remote, local uint64 }
		var targets []target
		for _, l := range sync.Chain {
			targets = append(targets, target{l.Remote.ID, l.Local})
		}
		targets = append(targets, target{sync.End.ID, sync.Local})
		for at, t := range targets {
			if remote.changed(k, prev, t.remote) || sync.Full && at == 0 || prev == 0 {
				i.data[k].write(remote.data[k].at(t.remote), i.ids(t.local))
				i.history[k] = append(i.history[k], max(t.local, i.data[k].seq+1))
			}
			prev = t.remote
		}
		progress := uint64(k)
		if rapid.Bool().Draw(w.t, "count") && crash {
			progress++ // as the stock daemon has it
		}
		if rapid.Bool().Draw(w.t, "save") {
			n.Namespace.Mirror.LastCopied = progress
		}
	}
	want := w.states[local][sync.Local]
	for _, c := range Apply(Properties{Snaps: i.header.Snapshots, SnapSeqs: n.Namespace.Mirror.SnapSeqs, Limit: want.SnapLimit}, want) {
		if crash && rapid.Bool().Draw(w.t, "crash while applying") {
			return
		}
		switch c.Kind {
		case RemoveSnap:
			i.remove(c.Snap)
		case RenameSnap:
			i.find(c.Snap).Name = c.Name
		}
	}
	if stop == objects {
		return
	}
	i.find(sync.Local).Namespace.Mirror.Complete = true
	w.own, w.ownF = 0, false
	if sync.Full {
		w.full = false
	}
	if s.Resync {
		i.header.Resync = false
	}
}

// settle runs the daemon of a side until it waits.
func (w *world) settle(local string) Step {
	for range 40 {
		s := w.step(local, false)
		if !s.Kind.Work() {
			return s
		}
	}
	w.t.Fatalf("does not come to rest: %+v", Next(w.input(local)))
	return Step{}
}

// same checks that the copy equals what it is the copy of.
func (w *world) same(local string, s Step) {
	i, remote := w.sides[local], w.sides[other(local)]
	if s.Synced == nil {
		w.t.Fatalf("nothing is synchronised: %s %s", s.Kind, s.Why)
	}
	source := s.Synced.Namespace.Mirror.PrimarySnapID
	if remote.find(source) == nil {
		w.t.Fatalf("synchronised with snapshot %d, which is gone", source)
	}
	want := remote.content(source)
	if got := i.content(s.Synced.ID); got != want {
		w.t.Fatalf("snapshot %d is %v, its original %v", s.Synced.ID, got, want)
	}
	if got := i.content(cls.NoSnap); got != want {
		w.t.Fatalf("the head is %v, its original %v", got, want)
	}
	wanted := w.states[other(local)][source]
	var got, names []string
	for _, u := range i.header.Snapshots {
		if u.Namespace.Type == cls.NamespaceUser {
			got = append(got, fmt.Sprint(u.Name, i.content(u.ID)))
		}
	}
	for id, u := range wanted.Snapshots {
		if r := remote.find(id); r != nil {
			names = append(names, fmt.Sprint(u.Name, remote.content(id)))
		}
	}
	slices.Sort(got)
	slices.Sort(names)
	// What was removed at the remote since may still be here, or not.
	for _, n := range names {
		if !slices.Contains(got, n) {
			w.t.Fatalf("user snapshots are %v, originals %v", got, names)
		}
	}
	mirrors := 0
	for _, m := range i.header.Snapshots {
		if m.Namespace.Mirror != nil {
			mirrors++
		}
	}
	if mirrors > 1 && s.Kind == Idle {
		w.t.Fatalf("%d mirror snapshots are left", mirrors)
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, sides: map[string]*modelImage{}, states: map[string]map[uint64]cls.ImageState{here: {}, there: {}}}
		w.sides[there] = newImage()
		w.mirrorSnap(there, cls.MirrorPrimary)
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		active := there // who is primary, or was last
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				i := w.sides[active]
				if !i.primary() {
					t.Skip()
				}
				w.value++
				i.write(rapid.IntRange(0, objects-1).Draw(t, "object"), w.value)
			},
			"snap": func(t *rapid.T) {
				i, n := w.sides[active], name.Draw(t, "name")
				if !i.primary() || slices.ContainsFunc(i.header.Snapshots, func(s cls.Snapshot) bool { return s.Name == n }) {
					t.Skip()
				}
				i.add(named(0, n))
			},
			"unsnap": func(t *rapid.T) {
				i := w.sides[active]
				var users []uint64
				for _, s := range i.header.Snapshots {
					if s.Namespace.Type == cls.NamespaceUser {
						users = append(users, s.ID)
					}
				}
				if !i.primary() || len(users) == 0 {
					t.Skip()
				}
				i.remove(rapid.SampledFrom(users).Draw(t, "snapshot"))
			},
			"mirror": func(t *rapid.T) {
				if !w.sides[active].primary() {
					t.Skip()
				}
				w.mirrorSnap(active, cls.MirrorPrimary)
			},
			"mirror again": func(t *rapid.T) {
				if !w.sides[active].primary() {
					t.Skip()
				}
				w.mirrorSnap(active, cls.MirrorPrimary)
			},
			"daemon": func(t *rapid.T) { w.step(other(active), false) },
			"kill":   func(t *rapid.T) { w.step(other(active), true) },
			"full":   func(t *rapid.T) { w.full = true },
			"fail over": func(t *rapid.T) {
				if w.sides[other(active)] == nil || !w.sides[active].primary() {
					t.Skip()
				}
				i := w.sides[active]
				w.settle(other(active)) // a resync needs a primary
				w.mirrorSnap(active, cls.MirrorPrimaryDemoted)
				i.header.Features |= cls.FeatureNonPrimary
				w.full = false
				s := w.settle(other(active))
				if s.Kind != RemoteDemoted {
					t.Fatalf("%s: %s", s.Kind, s.Why)
				}
				w.same(other(active), s)
				active = other(active)
				w.own = 0
				w.mirrorSnap(active, cls.MirrorPrimary)
				w.sides[active].header.Features &^= cls.FeatureNonPrimary
			},
			"split brain": func(t *rapid.T) {
				side := other(active)
				i := w.sides[side]
				if i == nil || !w.sides[active].primary() || synced(&i.header, active) == nil {
					t.Skip()
				}
				i.header.Resync = false
				i.add(mirror(0, cls.MirrorNonPrimary)) // the orphan
				i.add(mirror(0, cls.MirrorPrimary))
				i.header.Features &^= cls.FeatureNonPrimary
				if s := w.step(side, false); s.Kind != LocalPrimary {
					t.Fatalf("%s: %s", s.Kind, s.Why)
				}
				w.value++
				i.write(rapid.IntRange(0, objects-1).Draw(t, "object"), w.value)
				if rapid.Bool().Draw(t, "snap") {
					i.add(named(0, "only here"))
				}
				i.add(mirror(0, cls.MirrorPrimaryDemoted))
				i.header.Features |= cls.FeatureNonPrimary
				if s := w.step(side, false); s.Kind != SplitBrain {
					t.Fatalf("%s: %s", s.Kind, s.Why)
				}
				if rapid.Bool().Draw(t, "pruned") {
					// As the promotion does.
					for _, s := range slices.Clone(i.header.Snapshots) {
						if m := s.Namespace.Mirror; m != nil && !m.Primary() {
							i.remove(s.ID)
						}
					}
				}
				i.header.Resync = true
				w.own = 0
			},
			"": func(t *rapid.T) {
				// However it was interrupted, it comes out right.
				if w.sides[active] == nil || !rapid.Bool().Draw(t, "check") {
					return
				}
				w.t = t
				s := w.settle(other(active))
				switch s.Kind {
				case Idle:
					w.same(other(active), s)
				default:
					t.Fatalf("%s: %s", s.Kind, s.Why)
				}
			},
		})
	})
}
