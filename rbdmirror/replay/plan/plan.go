// Package plan decides what is to be done next with one mirrored image, from
// what both clusters say of it. It does nothing itself.
//
// Every decision is made afresh from what is stored, so that it does not matter
// who did the previous step, or where it was interrupted.
package plan

import (
	"cmp"
	"fmt"
	"slices"

	"cephmirror/rbdmirror/cls"
)

// Image is what one cluster knows of the image.
type Image struct {
	ID     string
	Name   string // empty when the directory does not know it
	Record cls.MirrorImage
	Header *Header // nil: the header object is missing
}

// Header is the part of an image's header that matters here.
type Header struct {
	Features uint64
	Order    uint8
	// StripeUnit and StripeCount say how data lies in objects.
	StripeUnit, StripeCount uint64
	Snapshots               []cls.Snapshot // in order of their ids
	// Resync: the user asked that the local copy be made anew.
	Resync bool
}

// Input is what decisions rest on. The remote image should have been read
// before the local one.
type Input struct {
	Local, Remote         *Image // nil: there is no such record
	LocalUUID, RemoteUUID string // the pools' mirror uuids
	LocalPeers            []cls.Peer
	RemotePeers           []cls.Peer

	// Own is the incomplete local snapshot that this process itself made and
	// has been the only one to fill, 0 for none.
	Own uint64
	// OwnFull: it was filled by comparing everything.
	OwnFull bool
	// FullCompare: the next synchronisation must trust nothing.
	FullCompare bool
	// Recreate: a resync removes the local copy and makes it anew, as stock
	// does, even where a common snapshot exists.
	Recreate bool
	// DisablingSeen: the local record was found being disabled before, too.
	DisablingSeen bool
}

// Kind says what is to be done.
type Kind int

// The kinds of steps. Those up to Delete are work, after which one looks again;
// the others are states to wait in.
const (
	Create Kind = iota + 1 // make the local image, for Sync
	Purge                  // remove what is left of an interrupted creation
	Copy                   // synchronise as Sync says
	Unlink                 // tell the remote which of its snapshots are no longer needed
	Prune                  // remove local mirror snapshots
	Delete                 // move the local image to the trash

	Idle             // all is synchronised
	WaitSnapshot     // the primary is making a snapshot
	Wait             // for something else, see Why
	LocalPrimary     // nothing to do here
	Orphan           // a forced promotion is under way
	RemoteNotPrimary // neither is primary, or the remote one is not yet
	RemoteDemoted    // and everything is synchronised
	SplitBrain
	Broken    // see Why
	Gone      // there is no such image any more
	OtherMode // the image is not mirrored by snapshots
)

var kindNames = map[Kind]string{
	Create: "create", Purge: "purge", Copy: "copy", Unlink: "unlink", Prune: "prune",
	Delete: "delete", Idle: "idle", WaitSnapshot: "wait for snapshot", Wait: "wait", LocalPrimary: "local primary",
	Orphan: "orphan", RemoteNotPrimary: "remote not primary", RemoteDemoted: "remote demoted", SplitBrain: "split-brain",
	Broken: "broken", Gone: "gone", OtherMode: "other mode",
}

func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("step %d", int(k))
}

// Work reports whether the step is something to do, rather than a state to wait
// in.
func (k Kind) Work() bool { return k <= Delete }

// Watch reports whether the local image's header may be watched in this state: a
// forced promotion waits until nobody does.
func (k Kind) Watch() bool {
	switch k {
	case LocalPrimary, Orphan, Gone, OtherMode, Create, Purge, Delete:
		return false
	}
	return true
}

// Step is what is to be done next.
type Step struct {
	Kind Kind
	Why  string // for people
	// Resync: the user asked for a resync. Delete: the local image is to be made
	// anew. Copy: the flag is to be removed once the copy is complete.
	Resync bool
	// Sync belongs to Create and Copy.
	Sync *Sync
	// Snapshots are those to be unlinked (remote ids) or removed (local ids).
	Snapshots []uint64
	// Peer is the uuid by which the remote knows us.
	Peer string
	// Left is how many of the remote's mirror snapshots are still to be
	// synchronised, the one in Sync included.
	Left int
	// Newest is the remote's newest complete primary mirror snapshot for us.
	Newest *cls.Snapshot
	// Synced is the newest complete local copy of a remote mirror snapshot.
	Synced *cls.Snapshot
}

// Base is a snapshot that both images have.
type Base struct{ Local, Remote uint64 }

// Link is a user snapshot to be carried over.
type Link struct {
	Remote cls.Snapshot
	Local  uint64 // 0: to be created
}

// Sync is one synchronisation: all that happened at the remote between two of
// its mirror snapshots.
type Sync struct {
	Base  *Base // nil: there is nothing yet
	End   cls.Snapshot
	Chain []Link // user snapshots between Base and End, oldest first
	// SnapSeqs are older user snapshots: remote to local id.
	SnapSeqs map[uint64]uint64
	// Local is the incomplete local snapshot to go on with; 0: make one.
	Local uint64
	// Replace is an incomplete local snapshot whose place the new one takes.
	Replace uint64
	// First is the number of the first object to look at.
	First uint64
	// Full: what changed since Base is not known, compare everything.
	Full bool
	// Drop are local user snapshots that have no counterpart: they were left
	// by an abandoned synchronisation, or are of a history that is given up.
	Drop []uint64
	// Peers are to be entered in the local snapshot, when End is a demotion.
	Peers []string
}

// Demoted reports whether the remote was demoted by the snapshot.
func (s *Sync) Demoted() bool { return s.End.Namespace.Mirror.Demoted() }

// Next decides.
func Next(in Input) Step {
	in.sort()
	if in.Local == nil {
		return in.withoutLocal()
	}
	if step, done := in.checkRecords(); done {
		return step
	}
	return in.both()
}

func (in *Input) sort() {
	for _, img := range []*Image{in.Local, in.Remote} {
		if img != nil && img.Header != nil {
			h := *img.Header
			h.Snapshots = slices.Clone(h.Snapshots)
			slices.SortFunc(h.Snapshots, func(a, b cls.Snapshot) int { return cmp.Compare(a.ID, b.ID) })
			c := *img
			c.Header = &h
			if img == in.Local {
				in.Local = &c
			} else {
				in.Remote = &c
			}
		}
	}
}

// peer is the uuid by which the remote knows us, empty if it does not.
func (in *Input) peer() string {
	for _, p := range in.RemotePeers {
		if p.MirrorUUID == in.LocalUUID && p.Direction != cls.DirectionRx {
			return p.UUID
		}
	}
	return ""
}

// ourPeers are the uuids by which we know the remote.
func (in *Input) ourPeers() []string {
	var uuids []string
	for _, p := range in.LocalPeers {
		if p.MirrorUUID == in.RemoteUUID {
			uuids = append(uuids, p.UUID)
		}
	}
	return uuids
}

// sendingPeers are the uuids of all peers that read from here.
func (in *Input) sendingPeers() []string {
	var uuids []string
	for _, p := range in.LocalPeers {
		if p.Direction != cls.DirectionRx {
			uuids = append(uuids, p.UUID)
		}
	}
	slices.Sort(uuids)
	return uuids
}

// withoutLocal decides when the local cluster has no record of the image.
func (in *Input) withoutLocal() Step {
	if in.Remote == nil {
		return Step{Kind: Gone, Why: "neither cluster has the image"}
	}
	if step, ok := in.remoteUsable(); !ok {
		return step
	}
	newest := newestMirror(in.Remote.Header)
	if newest == nil || newest.Namespace.Mirror.State != cls.MirrorPrimary {
		return Step{Kind: RemoteNotPrimary, Why: "the remote image is not primary"}
	}
	step := in.ends(0)
	if step.Kind != Copy {
		if step.Kind == Idle {
			return Step{Kind: Wait, Why: "the remote image has no mirror snapshot for this site yet"}
		}
		return step
	}
	step.Kind = Create
	step.Sync.Chain = chain(in.Remote.Header, 0, step.Sync.End.ID, nil, nil)
	step.Sync.SnapSeqs = map[uint64]uint64{}
	return step
}

// remoteUsable checks the remote record and header. ok is false when nothing
// can be read from the remote image.
func (in *Input) remoteUsable() (step Step, ok bool) {
	switch {
	case in.Remote.Record.Mode != cls.ImageModeSnapshot:
		return Step{Kind: OtherMode, Why: "the remote image is not mirrored by snapshots"}, false
	case in.Remote.Record.State == cls.RecordDisabling:
		return Step{Kind: Wait, Why: "mirroring of the remote image is being disabled"}, false
	case in.Remote.Record.State == cls.RecordCreating:
		return Step{Kind: Wait, Why: "the remote image is being created"}, false
	case in.Remote.Record.State != cls.RecordEnabled:
		return Step{Kind: Wait, Why: "mirroring of the remote image is disabled"}, false
	case in.Remote.Header == nil:
		return Step{Kind: Broken, Why: fmt.Sprintf("the remote image's header rbd_header.%s is missing", in.Remote.ID)}, false
	}
	return Step{}, true
}

// checkRecords deals with all states of the local record but the ordinary one.
func (in *Input) checkRecords() (Step, bool) {
	l := in.Local
	if l.Record.Mode != cls.ImageModeSnapshot {
		if in.Remote != nil && in.Remote.Record.Mode == cls.ImageModeSnapshot {
			return Step{Kind: SplitBrain, Why: "the local image is mirrored by journal, the remote one by snapshots"}, true
		}
		return Step{Kind: OtherMode, Why: "the image is not mirrored by snapshots"}, true
	}
	switch l.Record.State {
	case cls.RecordCreating:
		return in.creating(), true
	case cls.RecordDisabling:
		return in.disabling(), true
	case cls.RecordEnabled:
	default:
		return Step{Kind: Wait, Why: "mirroring of the local image is disabled"}, true
	}
	if l.Header == nil {
		return Step{Kind: Broken, Why: fmt.Sprintf("the local image's header rbd_header.%s is missing", l.ID)}, true
	}
	return Step{}, false
}

// creating decides on a local image whose creation has not come to its end. It
// may be a copy that was given up, or an image that is just being enabled here.
func (in *Input) creating() Step {
	h := in.Local.Header
	if h != nil {
		for _, s := range h.Snapshots {
			if m := s.Namespace.Mirror; m != nil && m.Primary() {
				return Step{Kind: LocalPrimary, Why: "mirroring of the local image is being enabled"}
			}
		}
	}
	if in.Remote == nil && (h == nil || h.Features&cls.FeatureNonPrimary == 0) {
		return Step{Kind: Wait, Why: "the local image is being created"}
	}
	return Step{Kind: Purge, Why: "an earlier creation of the local image was interrupted"}
}

// disabling decides on a local image that is about to be no longer mirrored. It
// is either on the way to the trash, or a user disables its mirroring.
func (in *Input) disabling() Step {
	h := in.Local.Header
	if h == nil {
		return Step{Kind: Purge, Why: "an earlier removal of the local image was interrupted"}
	}
	if primary(h) || !Linked(h, in.RemoteUUID) {
		return Step{Kind: Wait, Why: "mirroring of the local image is being disabled"}
	}
	if !in.DisablingSeen {
		return Step{Kind: Wait, Why: "the local image is being removed"}
	}
	if h.Resync || in.Remote == nil {
		return Step{Kind: Delete, Why: "an earlier removal of the local image was interrupted", Resync: h.Resync && in.Remote != nil}
	}
	return Step{Kind: Wait, Why: "mirroring of the local image is being disabled"}
}

// both decides when the local image is there and in order.
func (in *Input) both() Step {
	h := in.Local.Header
	newest := newestMirror(h)
	if newest != nil && newest.Namespace.Mirror.Orphan() {
		return Step{Kind: Orphan, Why: "a forced promotion of the local image is under way"}
	}
	if primary(h) {
		return Step{Kind: LocalPrimary, Why: "the local image is primary"}
	}
	if in.Remote == nil {
		if Linked(h, in.RemoteUUID) {
			return Step{Kind: Delete, Why: "the remote image no longer exists"}
		}
		return Step{Kind: Broken, Why: "the remote image does not exist"}
	}
	if step, ok := in.remoteUsable(); !ok {
		if step.Kind == OtherMode {
			return Step{Kind: SplitBrain, Why: "the local image is mirrored by snapshots, the remote one by journal"}
		}
		return step
	}
	remote := newestMirror(in.Remote.Header)
	if remote == nil || !remote.Namespace.Mirror.Primary() {
		return Step{Kind: RemoteNotPrimary, Why: "the remote image is not primary", Synced: synced(h, in.RemoteUUID)}
	}
	alike := h.Order == in.Remote.Header.Order && h.StripeUnit == in.Remote.Header.StripeUnit && h.StripeCount == in.Remote.Header.StripeCount
	if !alike && !h.Resync {
		return Step{Kind: Broken, Why: fmt.Sprintf("the data of the local image is laid out otherwise (order %d, stripes %d of %d bytes) than that of the remote one (order %d, stripes %d of %d bytes)",
			h.Order, h.StripeCount, h.StripeUnit, in.Remote.Header.Order, in.Remote.Header.StripeCount, in.Remote.Header.StripeUnit)}
	}
	if h.Resync {
		if remote.Namespace.Mirror.State != cls.MirrorPrimary || !remote.Namespace.Mirror.Complete {
			return Step{Kind: Wait, Why: "a resync was asked for, but the remote image is not primary", Synced: synced(h, in.RemoteUUID)}
		}
		if !alike || in.Recreate {
			return Step{Kind: Delete, Resync: true, Why: "a resync was asked for"}
		}
		return in.resync()
	}
	return in.replay()
}

// resync decides on an image whose copy is to be made anew. Nothing of the copy
// is relied on but the user snapshots of before the last common snapshot. Often
// there is no such snapshot, as a forced promotion removes it.
func (in *Input) resync() Step {
	base, incomplete := lastCommon(in, in.Local.Header)
	step := in.newestEnd()
	if step.Kind != Copy {
		return step
	}
	step.Why, step.Resync = "a resync was asked for", true
	in.fill(&step, base, incomplete, true)
	return step
}

// newestEnd chooses the remote's newest mirror snapshot for us.
func (in *Input) newestEnd() Step {
	peer := in.peer()
	step := Step{Kind: Wait, Why: "the remote image has no mirror snapshot for this site yet", Peer: peer}
	for _, s := range in.Remote.Header.Snapshots {
		if m := s.Namespace.Mirror; m != nil && m.Primary() && m.Complete && m.HasPeer(peer) {
			step = Step{Kind: Copy, Peer: peer, Left: 1, Sync: &Sync{End: s}, Newest: &s}
		}
	}
	return step
}

// replay decides on an image that follows its primary, or should.
func (in *Input) replay() Step {
	h := in.Local.Header
	top, incomplete := tops(h)
	if top == nil && incomplete == nil {
		return Step{Kind: SplitBrain, Why: "the local image has no mirror snapshot"}
	}
	var base *Base
	full := in.FullCompare
	complete := false
	if top != nil {
		m := top.Namespace.Mirror
		switch {
		case m.Orphan():
			return Step{Kind: SplitBrain, Why: "the promotion of the local image was forced"}
		case m.Primary():
			if base = in.copyOf(top.ID); base == nil {
				return Step{Kind: SplitBrain, Why: "the remote image was promoted before it had a copy of the local one's demotion"}
			}
		case m.PrimaryUUID != in.RemoteUUID:
			return Step{Kind: SplitBrain, Why: "the local image is a copy of another cluster's"}
		default:
			base = &Base{Local: top.ID, Remote: m.PrimarySnapID}
			complete = true
			if find(in.Remote.Header, base.Remote) == nil {
				// The copy has no history of its own: whatever is missing
				// can be found by comparison.
				full = true
			}
		}
	}
	if base != nil && forked(in.Remote.Header, base.Remote) {
		return Step{Kind: SplitBrain, Why: "the remote image was a copy in between"}
	}
	step := Step{Peer: in.peer(), Synced: synced(h, in.RemoteUUID)}
	if len(in.rebuilt(base, incomplete)) > 0 {
		full = true
	}
	if complete {
		if ids := in.unneeded(base, step.Peer); len(ids) > 0 {
			step.Kind, step.Snapshots = Unlink, ids
			return step
		}
		if ids := in.obsolete(base.Local); len(ids) > 0 {
			step.Kind, step.Snapshots = Prune, ids
			return step
		}
	}
	from := uint64(0)
	if base != nil {
		from = base.Remote
	}
	ends := in.ends(from)
	ends.Synced = step.Synced
	if incomplete != nil {
		if end := in.interrupted(incomplete); end != nil {
			if ends.Kind != Copy {
				ends.Left = 1
			}
			ends.Kind, ends.Why, ends.Sync = Copy, "", &Sync{End: *end}
		}
	}
	if ends.Kind == Idle && full {
		// Compare with what was synchronised last, or what is there instead.
		again := in.newestEnd()
		again.Synced = step.Synced
		if again.Kind != Copy {
			return again
		}
		ends = again
		ends.Why = "a full comparison"
	}
	if ends.Kind != Copy {
		return ends
	}
	in.fill(&ends, base, incomplete, full || incomplete != nil && incomplete.Namespace.Mirror.PrimaryUUID != in.RemoteUUID)
	return ends
}

// ends looks for the next remote mirror snapshot after the one given. The step
// is Copy if there is one, or else says what to wait for.
func (in *Input) ends(after uint64) Step {
	peer := in.peer()
	step := Step{Kind: Idle, Peer: peer}
	newest := newestMirror(in.Remote.Header)
	var pending bool
	for _, s := range in.Remote.Header.Snapshots {
		m := s.Namespace.Mirror
		if m == nil || !m.Primary() {
			continue
		}
		if m.Complete && (m.HasPeer(peer) || s.ID == after) {
			step.Newest = &s
		}
		if s.ID <= after {
			continue
		}
		if !m.Complete {
			// Whom it is for may not be known yet. Nothing behind it may be
			// synchronised before.
			pending = s.ID == newest.ID
			continue
		}
		if !m.HasPeer(peer) {
			continue
		}
		step.Left++
		if step.Kind != Copy {
			step.Kind, step.Sync = Copy, &Sync{End: s}
		}
	}
	switch {
	case step.Kind == Copy:
	case pending:
		step.Kind, step.Why = WaitSnapshot, "the remote image's next mirror snapshot is not complete yet"
	case newest != nil && newest.Namespace.Mirror.State == cls.MirrorPrimaryDemoted:
		step.Kind, step.Why = RemoteDemoted, "the remote image was demoted"
	case peer == "":
		step.Why = "the remote cluster does not know this site as a peer yet"
		if after == 0 {
			step.Kind = Wait
		}
	}
	return step
}

// interrupted returns the remote snapshot of an incomplete local copy if it can
// still be copied.
func (in *Input) interrupted(incomplete *cls.Snapshot) *cls.Snapshot {
	m := incomplete.Namespace.Mirror
	if m.PrimaryUUID != in.RemoteUUID {
		return nil
	}
	end := find(in.Remote.Header, m.PrimarySnapID)
	if end == nil || end.Namespace.Mirror == nil || !end.Namespace.Mirror.Primary() || !end.Namespace.Mirror.Complete {
		return nil
	}
	return end
}

// fill completes a synchronisation whose end is known.
func (in *Input) fill(step *Step, base *Base, incomplete *cls.Snapshot, full bool) {
	h, s := in.Local.Header, step.Sync
	s.Full = full
	s.Base = base
	s.SnapSeqs = in.carried(base)
	from, local := uint64(0), uint64(0)
	if base != nil {
		from, local = base.Remote, base.Local
	}
	if incomplete == nil {
		s.Chain = chain(in.Remote.Header, from, s.End.ID, h, nil)
	} else {
		m := incomplete.Namespace.Mirror
		s.Chain = chain(in.Remote.Header, from, s.End.ID, h, m.SnapSeqs)
		s.Rebuild(in.rebuilt(base, incomplete))
		whole := !slices.ContainsFunc(s.Chain, func(l Link) bool { return l.Local == 0 })
		same := m.PrimaryUUID == in.RemoteUUID && m.PrimarySnapID == s.End.ID
		own := same && whole && incomplete.ID == in.Own
		s.Replace = incomplete.ID
		switch {
		case own:
			s.Local, s.Replace, s.First = incomplete.ID, 0, m.LastCopied
		case same && whole:
			// Of what somebody else has copied it is not known under which
			// write context. A new snapshot holds what the image's head is
			// now and so is right in any case. And some count, some number.
			s.First = m.LastCopied - min(m.LastCopied, 1)
		}
		if full && !(own && in.OwnFull) {
			// What was copied so far may have been too little.
			s.First = 0
		}
	}
	kept := map[uint64]bool{}
	for _, id := range s.SnapSeqs {
		kept[id] = true
	}
	for _, l := range s.Chain {
		kept[l.Local] = true
	}
	for _, snap := range h.Snapshots {
		if snap.Namespace.Type == cls.NamespaceUser && snap.ID > local && !kept[snap.ID] {
			s.Drop = append(s.Drop, snap.ID)
		}
	}
	if s.Demoted() {
		s.Peers = in.sendingPeers()
	}
}

// Rebuild adds older user snapshots, whose copies are made anew, to what is to be
// filled. Everything has to be compared then.
func (s *Sync) Rebuild(links []Link) {
	for _, l := range links {
		delete(s.SnapSeqs, l.Remote.ID)
	}
	s.Chain = append(slices.Clone(links), s.Chain...)
}

// rebuilt lists the user snapshots older than base of which an incomplete copy
// has begun to make new copies.
func (in *Input) rebuilt(base *Base, incomplete *cls.Snapshot) []Link {
	if base == nil || incomplete == nil || incomplete.Namespace.Mirror.PrimaryUUID != in.RemoteUUID {
		return nil
	}
	var links []Link
	for _, s := range in.Remote.Header.Snapshots {
		local, ok := incomplete.Namespace.Mirror.SnapSeqs[s.ID]
		if !ok || s.ID >= base.Remote || local == cls.NoSnap || local <= base.Local || s.Namespace.Type != cls.NamespaceUser {
			continue
		}
		if have := find(in.Local.Header, local); have != nil && have.Namespace.Type == cls.NamespaceUser {
			links = append(links, Link{Remote: s, Local: local})
		}
	}
	return links
}

// carried maps the user snapshots that both images had at base, and the local
// one still has: remote to local id.
func (in *Input) carried(base *Base) map[uint64]uint64 {
	out := map[uint64]uint64{}
	if base == nil {
		return out
	}
	add := func(remote, local uint64) {
		if local == cls.NoSnap || remote == base.Remote {
			return
		}
		s := find(in.Local.Header, local)
		if s == nil || s.ID > base.Local || s.Namespace.Type == cls.NamespaceMirror {
			return
		}
		out[remote] = local
	}
	top := find(in.Local.Header, base.Local)
	if !top.Namespace.Mirror.Primary() {
		for r, l := range top.Namespace.Mirror.SnapSeqs {
			add(r, l)
		}
		return out
	}
	// The local image was the primary: the remote copy keeps the map.
	if copied := find(in.Remote.Header, base.Remote); copied != nil {
		for l, r := range copied.Namespace.Mirror.SnapSeqs {
			if r != cls.NoSnap && l != base.Local {
				add(r, l)
			}
		}
	}
	// Older ones may have been left out; a name can mean nothing else here.
	taken := map[uint64]bool{}
	for _, l := range out {
		taken[l] = true
	}
	for _, r := range in.Remote.Header.Snapshots {
		if r.ID >= base.Remote || r.Namespace.Type != cls.NamespaceUser || out[r.ID] != 0 {
			continue
		}
		for _, l := range in.Local.Header.Snapshots {
			if l.ID < base.Local && l.Namespace.Type == cls.NamespaceUser && l.Name == r.Name && l.Size == r.Size && !taken[l.ID] {
				out[r.ID] = l.ID
			}
		}
	}
	return out
}

// chain lists the remote user snapshots between two of its snapshots, with the
// local ones that were made for them before, as started tells.
func chain(remote *Header, after, end uint64, local *Header, started map[uint64]uint64) []Link {
	var links []Link
	for _, s := range remote.Snapshots {
		if s.ID <= after || s.ID >= end || s.Namespace.Type != cls.NamespaceUser {
			continue
		}
		l := Link{Remote: s}
		if id, ok := started[s.ID]; ok && id != cls.NoSnap && local != nil {
			if have := find(local, id); have != nil && have.Namespace.Type == cls.NamespaceUser {
				l.Local = id
			}
		}
		// Snapshots are made in order: one cannot be made before an older one.
		for i := range links {
			if l.Local != 0 && links[i].Local == 0 {
				l.Local = 0
			}
		}
		links = append(links, l)
	}
	return links
}

// copyOf finds the remote copy of a local primary snapshot.
func (in *Input) copyOf(id uint64) *Base {
	for _, s := range in.Remote.Header.Snapshots {
		m := s.Namespace.Mirror
		if m != nil && !m.Primary() && m.Complete && m.PrimaryUUID == in.LocalUUID && m.PrimarySnapID == id {
			return &Base{Local: id, Remote: s.ID}
		}
	}
	return nil
}

// unneeded lists the remote snapshots that we have got past.
func (in *Input) unneeded(base *Base, peer string) []uint64 {
	var ids []uint64
	if peer == "" {
		return nil
	}
	for _, s := range in.Remote.Header.Snapshots {
		if m := s.Namespace.Mirror; m != nil && s.ID < base.Remote && m.HasPeer(peer) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// obsolete lists the local mirror snapshots that nobody needs any more.
func (in *Input) obsolete(base uint64) []uint64 {
	var ids []uint64
	ours := in.ourPeers()
	newest := newestMirror(in.Local.Header)
	for _, s := range in.Local.Header.Snapshots {
		m := s.Namespace.Mirror
		if m == nil || s.ID == base || s.ID == newest.ID {
			continue
		}
		if s.ID > base {
			// An incomplete one whose place another has taken.
			if !m.Primary() && !m.Complete {
				ids = append(ids, s.ID)
			}
			continue
		}
		needed := slices.ContainsFunc(m.Peers, func(p string) bool { return !slices.Contains(ours, p) })
		if !needed || !m.Primary() && !m.Complete {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// lastCommon finds the newest mirror snapshot that both images have, and an
// incomplete copy that is newer than everything.
func lastCommon(in *Input, h *Header) (base *Base, incomplete *cls.Snapshot) {
	_, incomplete = tops(h)
	for _, s := range slices.Backward(h.Snapshots) {
		m := s.Namespace.Mirror
		switch {
		case m == nil || !m.Complete || m.Orphan():
		case m.Primary():
			if base = in.copyOf(s.ID); base != nil {
				return base, incomplete
			}
		case m.PrimaryUUID == in.RemoteUUID:
			if r := find(in.Remote.Header, m.PrimarySnapID); r != nil && r.Namespace.Mirror != nil {
				return &Base{Local: s.ID, Remote: r.ID}, incomplete
			}
		}
	}
	return nil, incomplete
}

// forked reports whether the remote was somebody's copy after the snapshot.
func forked(remote *Header, after uint64) bool {
	for _, s := range remote.Snapshots {
		if m := s.Namespace.Mirror; m != nil && s.ID > after && !m.Primary() && !m.Orphan() {
			return true
		}
	}
	return false
}

// tops returns the newest mirror snapshot and, if that is an incomplete copy, it
// and the one before.
func tops(h *Header) (top, incomplete *cls.Snapshot) {
	for _, s := range slices.Backward(h.Snapshots) {
		m := s.Namespace.Mirror
		if m == nil {
			continue
		}
		if !m.Primary() && !m.Complete {
			if incomplete == nil {
				incomplete = &s
			}
			continue
		}
		return &s, incomplete
	}
	return nil, incomplete
}

// primary reports whether the image is primary here, or may be.
func primary(h *Header) bool {
	newest := newestMirror(h)
	if newest != nil && newest.Namespace.Mirror.State == cls.MirrorPrimary {
		return true
	}
	return h.Features&cls.FeatureNonPrimary == 0
}

// Promoted reports whether the local image is primary, or about to be.
func Promoted(h *Header) bool {
	newest := newestMirror(h)
	return primary(h) || newest != nil && newest.Namespace.Mirror.Orphan()
}

// Linked reports whether the image is a copy from the cluster with that uuid,
// and was nothing else since.
func Linked(h *Header, uuid string) bool {
	newest := newestMirror(h)
	return newest != nil && uuid != "" && !newest.Namespace.Mirror.Primary() && newest.Namespace.Mirror.PrimaryUUID == uuid
}

// synced returns the newest complete copy from the cluster with that uuid.
func synced(h *Header, uuid string) *cls.Snapshot {
	for _, s := range slices.Backward(h.Snapshots) {
		if m := s.Namespace.Mirror; m != nil && m.Complete && !m.Primary() && m.PrimaryUUID == uuid {
			return &s
		}
	}
	return nil
}

func newestMirror(h *Header) *cls.Snapshot {
	for _, s := range slices.Backward(h.Snapshots) {
		if s.Namespace.Mirror != nil {
			return &s
		}
	}
	return nil
}

func find(h *Header, id uint64) *cls.Snapshot {
	i, ok := slices.BinarySearchFunc(h.Snapshots, id, func(s cls.Snapshot, id uint64) int { return cmp.Compare(s.ID, id) })
	if !ok {
		return nil
	}
	return &h.Snapshots[i]
}
