// Package lineage reads in the tags of two journals whose an image is, and
// whether one copy of it can go on from where the other stands.
package lineage

import (
	"cephmirror/rbdmirror/journal/format"
)

// Tag is an epoch of a journal with what is attached to it.
type Tag struct {
	ID uint64
	format.TagData
}

// Primary says that the journal's own cluster owns the image.
func Primary(newest format.TagData) bool { return newest.MirrorUUID == format.LocalUUID }

// Orphan says that nobody does.
func Orphan(newest format.TagData) bool { return newest.MirrorUUID == format.OrphanUUID }

// Verdict is what is to be done with a copy.
type Verdict int

const (
	// SplitBrain: both have something that the other has not, or nothing can be
	// told.
	SplitBrain Verdict = iota
	// Clean: the copy followed the image all the time.
	Clean
	// Reconnect: the copy was, or could have been, the primary, and was demoted;
	// the image was promoted at exactly this point.
	Reconnect
	// Copy: the image has to be copied first, or the copying to be gone on with.
	Copy
	// Resync: somebody has asked for another copy.
	Resync
)

func (v Verdict) String() string {
	return [...]string{"split-brain", "clean", "reconnect", "copy", "resync"}[v]
}

// Pair is an image and its copy.
type Pair struct {
	// Local and Remote are the mirror uuids of the copy's cluster and of the
	// image's.
	Local, Remote string
	// LocalImage is the copy's id.
	LocalImage string
	// Newest is the newest tag of the copy's journal, ResyncRequested what its
	// master client says.
	Newest          format.TagData
	ResyncRequested bool
	// Peer is what the copy's client in the image's journal says.
	Peer *format.PeerClient
	// Tags are those of the image's journal that the client may need.
	Tags []Tag
}

// Judge tells what is to be done with the copy. settle says that the client's state
// is to be set to replaying: it tells of a first copying that does not matter any
// more.
func Judge(p Pair) (v Verdict, settle bool) {
	if p.Peer == nil || p.Peer.ImageID != p.LocalImage {
		return SplitBrain, false
	}
	if p.ResyncRequested {
		return Resync, false
	}
	if p.Peer.State == format.Syncing {
		if p.Newest.MirrorUUID == p.Remote {
			return Copy, false
		}
		settle = true
	}
	decoded, chained := walk(p)
	switch {
	case decoded && p.Newest.MirrorUUID == p.Remote:
		return Clean, settle
	case chained:
		return Reconnect, settle
	}
	return SplitBrain, settle
}

// walk looks in the image's tags for the copy's own end, and what followed it.
func walk(p Pair) (decoded, chained bool) {
	last := p.Newest.Predecessor
	var demotion uint64
	found := false
	for _, t := range p.Tags {
		if last.Valid && last.MirrorUUID == p.Remote && t.ID < last.Tag {
			continue
		}
		decoded = true
		if !last.Valid {
			if Primary(t.TagData) {
				break
			}
			continue
		}
		if !Orphan(p.Newest) {
			continue
		}
		before := t.Predecessor
		switch {
		case Orphan(t.TagData) && before.Valid && before.Tag == last.Tag &&
			(before.MirrorUUID == p.Local && last.MirrorUUID == format.LocalUUID ||
				before.MirrorUUID == format.LocalUUID && last.MirrorUUID == p.Remote):
			demotion, found = t.ID, true
		case found && Primary(t.TagData) && before.MirrorUUID == format.OrphanUUID && before.Valid && before.Tag == demotion:
			return true, true
		default:
			found = false
		}
	}
	return decoded, false
}

// Translate returns an epoch of the image as the copy's journal is to tell it.
func Translate(t format.TagData, local, remote string) format.TagData {
	name := func(uuid string) string {
		switch uuid {
		case format.LocalUUID:
			return remote
		case local:
			return format.LocalUUID
		}
		return uuid
	}
	t.MirrorUUID = name(t.MirrorUUID)
	t.Predecessor.MirrorUUID = name(t.Predecessor.MirrorUUID)
	return t
}

// Entry says what to do when an epoch of the image begins.
type Entry int

const (
	// Add the epoch to the copy's journal.
	Add Entry = iota
	// Known: it is there.
	Known
	// OwnDemotion: it is the echo of the copy's own demotion. It is passed over.
	OwnDemotion
)

// Enter tells what to do when an epoch of the image begins, translated already.
func Enter(next, newest format.TagData) Entry {
	switch {
	case Orphan(next) && Orphan(newest) && newest.Predecessor.Valid && newest.Predecessor.MirrorUUID == format.LocalUUID:
		return OwnDemotion
	case next == newest:
		return Known
	}
	return Add
}
