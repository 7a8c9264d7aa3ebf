package plan

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cephmirror/rbdmirror/cls"
)

const (
	here, there = "uuid-local", "uuid-remote"
	ourUUID     = "peer-of-remote" // by which the remote knows us
	theirUUID   = "peer-of-local"
)

// mirror makes a mirror snapshot.
func mirror(id uint64, state cls.MirrorState, change ...func(*cls.MirrorNamespace)) cls.Snapshot {
	m := cls.MirrorNamespace{State: state, Complete: true, PrimarySnapID: cls.NoSnap}
	for _, c := range change {
		c(&m)
	}
	return cls.Snapshot{ID: id, Name: "m", Namespace: cls.Mirror(m)}
}

func peers(uuids ...string) func(*cls.MirrorNamespace) {
	return func(m *cls.MirrorNamespace) { m.Peers = uuids }
}

func incomplete(m *cls.MirrorNamespace) { m.Complete = false }

func of(uuid string, snap uint64) func(*cls.MirrorNamespace) {
	return func(m *cls.MirrorNamespace) { m.PrimaryUUID, m.PrimarySnapID = uuid, snap }
}

func copied(n uint64) func(*cls.MirrorNamespace) {
	return func(m *cls.MirrorNamespace) { m.LastCopied = n }
}

func seqs(m map[uint64]uint64) func(*cls.MirrorNamespace) {
	return func(n *cls.MirrorNamespace) { n.SnapSeqs = m }
}

// prim is a remote primary snapshot for us, dem a demotion, np a local copy of
// the remote's snapshot.
func prim(id uint64, change ...func(*cls.MirrorNamespace)) cls.Snapshot {
	return mirror(id, cls.MirrorPrimary, append([]func(*cls.MirrorNamespace){peers(ourUUID)}, change...)...)
}

func dem(id uint64) cls.Snapshot {
	return mirror(id, cls.MirrorPrimaryDemoted, peers(ourUUID))
}

func np(id, of_ uint64, change ...func(*cls.MirrorNamespace)) cls.Snapshot {
	return mirror(id, cls.MirrorNonPrimary, append([]func(*cls.MirrorNamespace){of(there, of_)}, change...)...)
}

func named(id uint64, name string) cls.Snapshot { return user(id, name, cls.Unprotected) }

func image(id string, features uint64, snaps ...cls.Snapshot) *Image {
	return &Image{ID: id, Name: "img", Record: cls.MirrorImage{GlobalID: "g", State: cls.RecordEnabled, Mode: cls.ImageModeSnapshot},
		Header: &Header{Features: features, Order: 22, Snapshots: snaps}}
}

func local(snaps ...cls.Snapshot) *Image {
	return image("L", cls.FeatureLayering|cls.FeatureNonPrimary, snaps...)
}

func remote(snaps ...cls.Snapshot) *Image { return image("R", cls.FeatureLayering, snaps...) }

func (i *Image) with(change func(*Image)) *Image {
	change(i)
	return i
}

func state(s cls.RecordState) func(*Image) { return func(i *Image) { i.Record.State = s } }
func journal(i *Image)                     { i.Record.Mode = cls.ImageModeJournal }
func headless(i *Image)                    { i.Header = nil }
func resync(i *Image)                      { i.Header.Resync = true }
func writable(i *Image)                    { i.Header.Features &^= cls.FeatureNonPrimary }

// shown is the part of a step that the table compares.
type shown struct {
	Kind           Kind
	Base           Base
	End            uint64
	Chain          [][2]uint64 // remote and local ids
	Seqs           map[uint64]uint64
	Local, Replace uint64
	First          uint64
	Full           bool
	Drop           []uint64
	Peers          []string
	Snapshots      []uint64
	Left           int
	Resync         bool
}

func show(s Step) shown {
	out := shown{Kind: s.Kind, Snapshots: s.Snapshots, Left: s.Left, Resync: s.Resync}
	if s.Sync == nil {
		return out
	}
	y := s.Sync
	if y.Base != nil {
		out.Base = *y.Base
	}
	out.End, out.Local, out.Replace, out.First, out.Full = y.End.ID, y.Local, y.Replace, y.First, y.Full
	out.Drop, out.Peers = y.Drop, y.Peers
	for _, l := range y.Chain {
		out.Chain = append(out.Chain, [2]uint64{l.Remote.ID, l.Local})
	}
	if len(y.SnapSeqs) > 0 {
		out.Seqs = y.SnapSeqs
	}
	return out
}

func TestNext(t *testing.T) {
	tests := []struct {
		name          string
		local, remote *Image
		change        func(*Input)
		want          shown
	}{
		// No local image.
		{"nothing anywhere", nil, nil, nil, shown{Kind: Gone}},
		{"new image", nil, remote(named(3, "u"), prim(5), named(6, "v"), prim(7)), nil,
			shown{Kind: Create, End: 5, Chain: [][2]uint64{{3, 0}}, Left: 2}},
		{"new image, first snapshot is being made", nil, remote(prim(5, incomplete)), nil, shown{Kind: WaitSnapshot}},
		{"new image, not for us", nil, remote(mirror(5, cls.MirrorPrimary, peers("other"))), nil, shown{Kind: Wait}},
		{"new image, we are no peer", nil, remote(prim(5)), func(in *Input) { in.RemotePeers = nil }, shown{Kind: Wait}},
		{"new image, nobody is primary", nil, remote(mirror(5, cls.MirrorNonPrimary, of("x", 3))), nil, shown{Kind: RemoteNotPrimary}},
		{"new image, demoted", nil, remote(prim(4), dem(5)), nil, shown{Kind: RemoteNotPrimary}},
		{"new image, no snapshot", nil, remote(), nil, shown{Kind: RemoteNotPrimary}},
		{"new image, by journal", nil, remote().with(journal), nil, shown{Kind: OtherMode}},
		{"new image, being disabled", nil, remote(prim(5)).with(state(cls.RecordDisabling)), nil, shown{Kind: Wait}},
		{"new image, no header", nil, remote().with(headless), nil, shown{Kind: Broken}},

		// Odd records.
		{"interrupted creation", local().with(state(cls.RecordCreating)), remote(prim(5)), nil, shown{Kind: Purge}},
		{"interrupted creation, no header", local().with(state(cls.RecordCreating)).with(headless), remote(prim(5)), nil, shown{Kind: Purge}},
		{"interrupted creation of a stock daemon", local().with(state(cls.RecordCreating)).with(writable), remote(prim(5)), nil, shown{Kind: Purge}},
		{"interrupted creation, remote gone", local(np(3, 5, incomplete)).with(state(cls.RecordCreating)), nil, nil, shown{Kind: Purge}},
		{"being enabled here", local().with(state(cls.RecordCreating)).with(writable), nil, nil, shown{Kind: Wait}},
		{"being enabled here, snapshot made", local(mirror(3, cls.MirrorPrimary, incomplete)).with(state(cls.RecordCreating)).with(writable), nil, nil,
			shown{Kind: LocalPrimary}},
		{"being disabled here", local(np(3, 5)).with(state(cls.RecordDisabling)), remote(prim(5)), func(in *Input) { in.DisablingSeen = true }, shown{Kind: Wait}},
		{"removal interrupted", local(np(3, 5)).with(state(cls.RecordDisabling)), nil, func(in *Input) { in.DisablingSeen = true }, shown{Kind: Delete}},
		{"removal interrupted, or not", local(np(3, 5)).with(state(cls.RecordDisabling)), nil, nil, shown{Kind: Wait}},
		{"primary being disabled", local(mirror(3, cls.MirrorPrimary)).with(state(cls.RecordDisabling)).with(writable), nil, func(in *Input) { in.DisablingSeen = true }, shown{Kind: Wait}},
		{"removal for a resync interrupted", local(np(3, 5)).with(state(cls.RecordDisabling)).with(resync), remote(prim(5)), func(in *Input) { in.DisablingSeen = true },
			shown{Kind: Delete, Resync: true}},
		{"removal almost done", local().with(state(cls.RecordDisabling)).with(headless), nil, nil, shown{Kind: Purge}},
		{"disabled", local().with(state(cls.RecordDisabled)), remote(prim(5)), nil, shown{Kind: Wait}},
		{"no header", local().with(headless), remote(prim(5)), nil, shown{Kind: Broken}},
		{"modes differ", local().with(journal), remote(prim(5)), nil, shown{Kind: SplitBrain}},
		{"modes differ the other way", local(np(3, 5)), remote(prim(5)).with(journal), nil, shown{Kind: SplitBrain}},
		{"journals", local().with(journal), remote().with(journal), nil, shown{Kind: OtherMode}},
		{"orders differ", local(np(3, 5)), remote(prim(5)).with(func(i *Image) { i.Header.Order = 23 }), nil, shown{Kind: Broken}},

		// Roles.
		{"local primary", local(mirror(3, cls.MirrorPrimary)).with(writable), remote(prim(5)), nil, shown{Kind: LocalPrimary}},
		{"promotion under way", local(np(2, 5), mirror(3, cls.MirrorPrimary, incomplete)), remote(prim(5)), nil, shown{Kind: LocalPrimary}},
		{"feature lost", local(np(3, 5)).with(writable), remote(prim(5), prim(7)), nil, shown{Kind: LocalPrimary}},
		{"local primary alone", local(mirror(3, cls.MirrorPrimary)).with(writable), nil, nil, shown{Kind: LocalPrimary}},
		{"forced promotion", local(np(2, 5), np(3, 7, incomplete), mirror(4, cls.MirrorNonPrimary)), remote(prim(5), prim(7)), nil, shown{Kind: Orphan}},
		{"forced promotion despite a resync", local(np(2, 5), mirror(4, cls.MirrorNonPrimary)).with(resync), remote(prim(5), prim(7)), nil, shown{Kind: Orphan}},
		{"nobody is primary", local(mirror(3, cls.MirrorPrimaryDemoted)), remote(mirror(5, cls.MirrorNonPrimaryDemoted, of(here, 3))), nil,
			shown{Kind: RemoteNotPrimary}},
		{"the remote is gone", local(np(3, 5)), nil, nil, shown{Kind: Delete}},
		{"another remote is gone", local(mirror(3, cls.MirrorNonPrimary, of("another", 5))), nil, nil, shown{Kind: Broken}},
		{"the remote is gone after we were primary", local(mirror(3, cls.MirrorPrimaryDemoted)), nil, nil, shown{Kind: Broken}},
		{"the remote is gone after a promotion of ours", local(np(2, 5), mirror(3, cls.MirrorPrimary), mirror(4, cls.MirrorPrimaryDemoted)), nil, nil, shown{Kind: Broken}},

		// Replay.
		{"idle", local(np(3, 5)), remote(prim(5)), nil, shown{Kind: Idle}},
		{"next", local(np(3, 5)), remote(prim(5), named(6, "u"), prim(7), prim(9)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Chain: [][2]uint64{{6, 0}}, Left: 2}},
		{"older user snapshots", local(named(2, "a"), named(3, "b"), np(4, 5, seqs(map[uint64]uint64{2: 2, 3: 3, 4: 1, 5: cls.NoSnap}))),
			remote(named(2, "a"), prim(5), prim(7)), nil,
			shown{Kind: Copy, Base: Base{4, 5}, End: 7, Seqs: map[uint64]uint64{2: 2, 3: 3}, Left: 1}},
		{"next is being made", local(np(3, 5)), remote(prim(5), prim(7, incomplete)), nil, shown{Kind: WaitSnapshot}},
		{"next was never completed", local(np(3, 5)), remote(prim(5), prim(6, incomplete), prim(7)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Left: 1}},
		{"next is not for us", local(np(3, 5)), remote(prim(5), mirror(7, cls.MirrorPrimary)), nil, shown{Kind: Idle}},
		{"unlink", local(np(2, 4), np(3, 5)), remote(prim(3), prim(4), prim(5), prim(6)), nil, shown{Kind: Unlink, Snapshots: []uint64{3, 4}}},
		{"prune", local(np(1, 3), np(2, 4, incomplete), np(3, 5), np(4, 6, incomplete)), remote(prim(5), prim(6)), nil, shown{Kind: Prune, Snapshots: []uint64{1, 2}}},
		{"replaced copies are pruned", local(np(3, 5), np(4, 6, incomplete), np(5, 6, incomplete)), remote(prim(5), prim(6)), nil,
			shown{Kind: Prune, Snapshots: []uint64{4}}},
		{"prune after a fail-back", local(mirror(1, cls.MirrorPrimary), mirror(2, cls.MirrorPrimary, peers(theirUUID)),
			mirror(3, cls.MirrorPrimaryDemoted, peers(theirUUID)), mirror(4, cls.MirrorPrimary, peers("third")), np(5, 7)), remote(prim(7)), nil,
			shown{Kind: Prune, Snapshots: []uint64{1, 2, 3}}},
		{"demotion", local(np(3, 5)), remote(prim(5), dem(7)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Left: 1, Peers: []string{theirUUID}}},
		{"demoted", local(mirror(3, cls.MirrorNonPrimaryDemoted, of(there, 7), peers(theirUUID))), remote(dem(7)), nil, shown{Kind: RemoteDemoted}},
		{"promoted again", local(mirror(3, cls.MirrorNonPrimaryDemoted, of(there, 7), peers(theirUUID))), remote(dem(7), prim(8)), nil,
			shown{Kind: Copy, Base: Base{3, 7}, End: 8, Left: 1}},

		// Interrupted ones.
		{"our own", local(np(3, 5), named(4, "u"), np(6, 7, incomplete, copied(9), seqs(map[uint64]uint64{6: 4, 7: cls.NoSnap}))),
			remote(prim(5), named(6, "u"), prim(7)), func(in *Input) { in.Own = 6 },
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Chain: [][2]uint64{{6, 4}}, Local: 6, First: 9, Left: 1}},
		{"somebody's", local(np(3, 5), named(4, "u"), np(6, 7, incomplete, copied(9), seqs(map[uint64]uint64{6: 4, 7: cls.NoSnap}))),
			remote(prim(5), named(6, "u"), prim(7)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Chain: [][2]uint64{{6, 4}}, Replace: 6, First: 8, Left: 1}},
		{"somebody's, at its beginning", local(np(3, 5), np(6, 7, incomplete)), remote(prim(5), prim(7)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Replace: 6, Left: 1}},
		{"the first one", local(np(6, 7, incomplete, copied(1))), remote(prim(7), prim(8)), nil,
			shown{Kind: Copy, End: 7, Replace: 6, Left: 2}},
		{"end no longer linked", local(np(3, 5), np(6, 7, incomplete, copied(4))), remote(prim(5), mirror(7, cls.MirrorPrimary)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Replace: 6, First: 3, Left: 1}},
		{"end gone", local(np(3, 5), named(4, "u"), named(5, "w"), np(6, 7, incomplete, copied(4), seqs(map[uint64]uint64{6: 4, 7: cls.NoSnap}))),
			remote(prim(5), named(6, "u"), prim(9)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 9, Chain: [][2]uint64{{6, 4}}, Replace: 6, Drop: []uint64{5}, Left: 1}},
		{"user snapshot gone meanwhile", local(np(3, 5), named(4, "u"), named(5, "v"), np(6, 8, incomplete, copied(4), seqs(map[uint64]uint64{6: 4, 7: 5, 8: cls.NoSnap}))),
			remote(prim(5), named(7, "v"), prim(8)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 8, Chain: [][2]uint64{{7, 5}}, Replace: 6, First: 3, Drop: []uint64{4}, Left: 1}},
		{"leftovers without a copy", local(np(3, 5), named(4, "u")), remote(prim(5), named(6, "u"), prim(8)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 8, Chain: [][2]uint64{{6, 0}}, Drop: []uint64{4}, Left: 1}},
		{"a name is taken", local(named(2, "u"), np(3, 5, seqs(map[uint64]uint64{1: 2}))), remote(prim(5), named(6, "u"), prim(8)), nil,
			shown{Kind: Copy, Base: Base{3, 5}, End: 8, Chain: [][2]uint64{{6, 0}}, Seqs: map[uint64]uint64{1: 2}, Left: 1}},

		// Fail-back.
		{"fail-back", local(named(2, "a"), named(3, "b"), mirror(4, cls.MirrorPrimary), mirror(5, cls.MirrorPrimaryDemoted, peers(theirUUID))),
			remote(named(11, "a"), named(12, "b"), mirror(15, cls.MirrorNonPrimaryDemoted, of(here, 5), peers(ourUUID), seqs(map[uint64]uint64{2: 11, 5: cls.NoSnap})),
				named(16, "c"), prim(17)), nil,
			shown{Kind: Copy, Base: Base{5, 15}, End: 17, Chain: [][2]uint64{{16, 0}}, Seqs: map[uint64]uint64{11: 2, 12: 3}, Left: 1}},
		{"fail-back, unlinked afterwards", local(mirror(5, cls.MirrorPrimaryDemoted, peers(theirUUID)), np(6, 17)),
			remote(mirror(15, cls.MirrorNonPrimaryDemoted, of(here, 5), peers(ourUUID)), prim(17)), nil, shown{Kind: Unlink, Snapshots: []uint64{15}}},
		{"split-brain", local(mirror(4, cls.MirrorPrimary), mirror(5, cls.MirrorPrimaryDemoted)),
			remote(mirror(15, cls.MirrorNonPrimary, of(here, 4)), mirror(16, cls.MirrorNonPrimary), prim(17)), nil, shown{Kind: SplitBrain}},
		{"split-brain after a forced promotion here", local(np(2, 5), mirror(3, cls.MirrorNonPrimary), mirror(4, cls.MirrorPrimary), mirror(5, cls.MirrorPrimaryDemoted)),
			remote(prim(5), prim(7)), nil, shown{Kind: SplitBrain}},
		{"copy of a stranger", local(mirror(3, cls.MirrorNonPrimary, of("another", 5))), remote(prim(5)), nil, shown{Kind: SplitBrain}},
		{"the remote was a copy meanwhile", local(np(3, 5)), remote(prim(5), mirror(6, cls.MirrorNonPrimary, of("x", 3)), prim(7)), nil, shown{Kind: SplitBrain}},
		{"no mirror snapshot", local(), remote(prim(5)), nil, shown{Kind: SplitBrain}},
		{"start gone", local(np(3, 5)), remote(prim(7)), nil, shown{Kind: Copy, Base: Base{3, 5}, End: 7, Full: true, Left: 1}},

		// Comparing and resync.
		{"full comparison", local(np(3, 5)), remote(prim(5)), func(in *Input) { in.FullCompare = true },
			shown{Kind: Copy, Base: Base{3, 5}, End: 5, Full: true, Left: 1}},
		{"full comparison that makes snapshots anew", local(named(2, "u"), np(3, 5, seqs(map[uint64]uint64{4: 2})), named(7, "u.incomplete-4"),
			np(8, 5, incomplete, copied(4), seqs(map[uint64]uint64{4: 7, 5: cls.NoSnap}))), remote(named(4, "u"), prim(5)), func(in *Input) { in.Own = 8 },
			shown{Kind: Copy, Base: Base{3, 5}, End: 5, Chain: [][2]uint64{{4, 7}}, Local: 8, Full: true, Left: 1}},
		{"full comparison with the next", local(np(3, 5)), remote(prim(5), prim(6)), func(in *Input) { in.FullCompare = true },
			shown{Kind: Copy, Base: Base{3, 5}, End: 6, Full: true, Left: 1}},
		{"resync", local(np(3, 5)).with(resync), remote(prim(5)), nil, shown{Kind: Copy, Base: Base{3, 5}, End: 5, Full: true, Left: 1, Resync: true}},
		{"resync of a split brain", local(named(1, "a"), np(2, 5, seqs(map[uint64]uint64{4: 1})), mirror(3, cls.MirrorNonPrimary), mirror(4, cls.MirrorPrimary), named(5, "mine"), mirror(6, cls.MirrorPrimaryDemoted)).with(resync),
			remote(named(4, "a"), prim(5), named(6, "b"), prim(7), prim(9)), nil,
			shown{Kind: Copy, Base: Base{2, 5}, End: 9, Chain: [][2]uint64{{6, 0}}, Seqs: map[uint64]uint64{4: 1}, Full: true, Drop: []uint64{5}, Left: 1, Resync: true}},
		{"resync goes on", local(np(2, 5), mirror(6, cls.MirrorPrimaryDemoted), np(8, 9, incomplete, copied(7))).with(resync), remote(prim(5), prim(9)), nil,
			shown{Kind: Copy, Base: Base{2, 5}, End: 9, Full: true, Replace: 8, Left: 1, Resync: true}},
		{"resync goes on, our own", local(np(2, 5), mirror(6, cls.MirrorPrimaryDemoted), np(8, 9, incomplete, copied(7))).with(resync), remote(prim(5), prim(9)),
			func(in *Input) { in.Own, in.OwnFull = 8, true },
			shown{Kind: Copy, Base: Base{2, 5}, End: 9, Full: true, Local: 8, First: 7, Left: 1, Resync: true}},
		{"start gone meanwhile", local(np(3, 5), np(6, 7, incomplete, copied(4))), remote(prim(7)), func(in *Input) { in.Own = 6 },
			shown{Kind: Copy, Base: Base{3, 5}, End: 7, Full: true, Local: 6, Left: 1}},
		{"resync as stock does it", local(np(3, 5)).with(resync), remote(prim(5)), func(in *Input) { in.Recreate = true }, shown{Kind: Delete, Resync: true}},
		{"resync without a common snapshot", local(mirror(6, cls.MirrorPrimaryDemoted)).with(resync), remote(named(4, "u"), prim(5)), nil,
			shown{Kind: Copy, End: 5, Chain: [][2]uint64{{4, 0}}, Full: true, Left: 1, Resync: true}},
		{"resync of another layout", local(np(3, 5)).with(resync), remote(prim(5)).with(func(i *Image) { i.Header.StripeCount = 4 }), nil, shown{Kind: Delete, Resync: true}},
		{"resync, remote demoted", local(mirror(6, cls.MirrorPrimaryDemoted)).with(resync), remote(prim(4), dem(5)), nil, shown{Kind: Wait}},
		{"resync, remote not primary", local(mirror(6, cls.MirrorPrimaryDemoted)).with(resync), remote(mirror(5, cls.MirrorNonPrimary)), nil, shown{Kind: RemoteNotPrimary}},
		{"resync, remote gone", local(mirror(6, cls.MirrorPrimaryDemoted)).with(resync), nil, nil, shown{Kind: Broken}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := Input{
				Local: tt.local, Remote: tt.remote, LocalUUID: here, RemoteUUID: there,
				LocalPeers:  []cls.Peer{{UUID: theirUUID, MirrorUUID: there, Direction: cls.DirectionRxTx}, {UUID: "rx", Direction: cls.DirectionRx}},
				RemotePeers: []cls.Peer{{UUID: "z", MirrorUUID: "z", Direction: cls.DirectionRxTx}, {UUID: ourUUID, MirrorUUID: here, Direction: cls.DirectionTx}},
			}
			if tt.change != nil {
				tt.change(&in)
			}
			step := Next(in)
			if diff := cmp.Diff(tt.want, show(step)); diff != "" {
				t.Errorf("%s: %s", step.Why, diff)
			}
		})
	}
}
