// Package course decides what is to be done next with an image that is mirrored
// by its journal, given what both clusters say of it. It does no I/O.
package course

import (
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/lineage"
)

// Kind is what is to be done.
type Kind int

const (
	// Gone: there is nothing left to do, on either cluster.
	Gone Kind = iota
	// OtherMode: the image is not mirrored by its journal.
	OtherMode
	// LocalPrimary: the local image is primary. It is let alone.
	LocalPrimary
	// RemoteNotPrimary: nobody, or somebody else, owns the remote image.
	RemoteNotPrimary
	// Wait: something is under way that has to end first.
	Wait
	// Broken: what is there does not fit together.
	Broken
	// SplitBrain: the images have gone different ways.
	SplitBrain
	// Purge what an interrupted creation left.
	Purge
	// Delete the local image: the remote one is gone, or a resync was asked for.
	Delete
	// Register with the remote journal.
	Register
	// Create the local image.
	Create
	// Copy the remote image.
	Copy
	// Follow the journal.
	Follow
)

var kinds = [...]string{"nothing", "leave it to the other mode", "leave it alone", "wait for a primary", "wait", "give up", "split-brain",
	"purge", "delete", "register", "create", "copy", "follow"}

func (k Kind) String() string { return kinds[k] }

// Work says that something is done, after which the images are to be looked at
// again.
func (k Kind) Work() bool { return k >= Purge && k != Follow }

// Image is what a cluster says of its image.
type Image struct {
	ID     string
	Record cls.MirrorImage
	// Header says that there is one, Journal that it has a journal.
	Header, Journal bool
	Features        uint64
	// Newest is the newest epoch of its journal, Master what its master client says.
	Newest lineage.Tag
	Master format.ImageClient
}

func (i *Image) primary() bool { return i.Journal && lineage.Primary(i.Newest.TagData) }

// Input is what both clusters say.
type Input struct {
	Local, Remote         *Image // nil: not mirrored
	LocalUUID, RemoteUUID string
	// Client is what the remote journal knows of us, nil if nothing; Peer is what
	// is attached.
	Client *format.Client
	Peer   *format.PeerClient
	// Tags are the epochs of the remote journal that we may need.
	Tags []lineage.Tag
	// DisablingSeen says that the local image has been about to be disabled for so
	// long that nobody is at it any more.
	DisablingSeen bool
	// ResyncAfterDisconnect says what to do when the primary has given us up.
	ResyncAfterDisconnect bool
	// Followed says that the local copy keeps an own, exact record of how far it
	// has followed this very journal.
	Followed bool
}

// Step is the next step.
type Step struct {
	Kind Kind
	// Text is what the status says, empty for nothing special.
	Text string
	// Why explains the step, for logs and people.
	Why string
	// Resync says that a deletion makes way for another copy.
	Resync bool
	// Settle says that the client's state is to be set to replaying first.
	Settle bool
	// Image is what to register, if it is not empty.
	Image string
}

// Next returns the next step.
func Next(in Input) Step {
	l, r := in.Local, in.Remote
	if l == nil {
		return first(in)
	}
	if l.Record.Mode != cls.ImageModeJournal {
		return Step{Kind: OtherMode}
	}
	switch {
	case l.Record.State == cls.RecordCreating:
		return Step{Kind: Purge, Why: "it was never complete"}
	case l.Record.State == cls.RecordDisabling && in.DisablingSeen && !l.primary():
		return Step{Kind: Delete, Why: "its removal broke off"}
	case l.Record.State != cls.RecordEnabled:
		return Step{Kind: Wait, Text: "image in transient state, try again", Why: "mirroring of the local image is being disabled"}
	case !l.Header:
		return Step{Kind: Broken, Why: "the local image has a record, but no header"}
	case !l.Journal:
		return Step{Kind: Broken, Why: "the local image has no journal"}
	}
	linked := l.Newest.MirrorUUID == in.RemoteUUID
	if r == nil || !r.Header {
		switch {
		case l.primary():
			return Step{Kind: LocalPrimary, Text: "local image is primary"}
		case linked:
			return Step{Kind: Delete, Text: "remote image no longer exists", Why: "the remote image is gone or no longer mirrored"}
		}
		return Step{Kind: Wait, Text: "remote image no longer exists", Why: "there is no remote image, and the local one is not a copy of it"}
	}
	if r.Record.Mode != l.Record.Mode {
		return Step{Kind: SplitBrain, Text: "split-brain detected", Why: "the remote image is mirrored in another way"}
	}
	if r.Journal && in.Client == nil && r.Record.State == cls.RecordEnabled {
		// As early as can be: whatever the journal gets from now on is kept for us.
		return Step{Kind: Register, Image: l.ID, Why: "the remote journal does not know of us"}
	}
	if l.primary() {
		return Step{Kind: LocalPrimary, Text: "local image is primary"}
	}
	if !r.Journal {
		return Step{Kind: Wait, Text: "remote image is not primary", Why: "the remote image has no journal"}
	}
	if !r.primary() && !linked {
		return Step{Kind: RemoteNotPrimary, Text: "remote image is not primary", Why: "the remote image, or the local one, has to be promoted"}
	}
	return follow(in)
}

// first decides while there is no local image.
func first(in Input) Step {
	r := in.Remote
	switch {
	case r == nil || !r.Header:
		return Step{Kind: Gone}
	case r.Record.Mode != cls.ImageModeJournal:
		return Step{Kind: OtherMode}
	case r.Record.State != cls.RecordEnabled:
		return Step{Kind: Wait, Text: "image in transient state, try again", Why: "mirroring of the remote image is being set up or disabled"}
	case !r.Journal:
		return Step{Kind: Wait, Text: "remote image is not primary", Why: "the remote image has no journal"}
	case !r.primary():
		return Step{Kind: RemoteNotPrimary, Text: "remote image is not primary", Why: "the remote image has to be promoted"}
	}
	return Step{Kind: Create}
}

// follow decides whether the local copy can go on from where it is.
func follow(in Input) Step {
	p := lineage.Pair{
		Local: in.LocalUUID, Remote: in.RemoteUUID, LocalImage: in.Local.ID,
		Newest: in.Local.Newest.TagData, ResyncRequested: in.Local.Master.ResyncRequested,
		Peer: in.Peer, Tags: in.Tags,
	}
	primary := in.Remote.primary()
	v, settle := lineage.Judge(p)
	switch v {
	case lineage.Resync:
		if !primary {
			return Step{Kind: RemoteNotPrimary, Text: "remote image is not primary", Why: "a resync was asked for, but there is nothing to copy from"}
		}
		return Step{Kind: Delete, Resync: true, Text: "resync requested", Why: "a resync was asked for"}
	case lineage.SplitBrain:
		return Step{Kind: SplitBrain, Text: "split-brain detected", Why: "the local image has a past that the remote one does not share"}
	}
	if in.Client.State == format.Disconnected {
		if in.ResyncAfterDisconnect && primary {
			return Step{Kind: Delete, Resync: true, Text: "resync requested", Why: "the primary no longer keeps what we would need"}
		}
		return Step{Kind: Wait, Text: "disconnected", Why: "the primary no longer keeps what we would need: a resync is required"}
	}
	if v == lineage.Copy {
		if !primary {
			return Step{Kind: RemoteNotPrimary, Text: "remote image is not primary", Why: "the first copy is not complete"}
		}
		return Step{Kind: Copy}
	}
	if why := lost(in, v); why != "" {
		return Step{Kind: SplitBrain, Text: "split-brain detected", Why: why}
	}
	return Step{Kind: Follow, Settle: settle}
}

// lost says why entries that the copy needs may be passed over: a client that
// registers late starts where another has come to.
func lost(in Input, v lineage.Verdict) string {
	if in.Followed || v != lineage.Reconnect {
		return ""
	}
	told, ok := in.Client.Committed.First()
	if !ok {
		return ""
	}
	for _, t := range in.Tags {
		// The first epoch that the copy has not seen.
		if lineage.Primary(t.TagData) && t.Predecessor.MirrorUUID == format.OrphanUUID {
			if told.Tag > t.ID || told.Tag == t.ID && told.Entry > 0 {
				return "entries of the remote journal were not kept for us: a resync is required"
			}
			return ""
		}
	}
	return "the remote journal does not reach back far enough: a resync is required"
}
