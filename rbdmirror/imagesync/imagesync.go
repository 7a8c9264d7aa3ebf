// Package imagesync copies one synchronisation of one RBD image: what changed
// from the mirror snapshot that the destination has to the next one, with the
// user snapshots in between.
//
// It works on the objects that hold the image's data, not on the image. Both
// images have the same order, striping and object names, so object k of the
// source is object k of the destination; encryption, striping and cloning pass
// through untouched. What the OSDs know of an object's past says exactly which
// bytes changed, and discards show up as much as writes do.
//
// An object of the destination exists if and only if that of the source does.
// This alone makes clones right: where there is no object, the parent shows
// through. When a clone is first written to, librbd puts the parent's data
// also below the clone's older snapshots; such an object has a past at the
// source but none at the destination. A partial write therefore demands that
// its object exists, and where it does not, the object as it was at the
// beginning of the interval is put below all older snapshots first, as librbd
// did.
package imagesync

import (
	"context"
	"errors"
	"time"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/time/rate"

	"cephmirror/rbdmirror/objectmap"
)

// Objects says where the data of an image is.
type Objects struct {
	IO     *rados.IOContext // of the data pool, set to the image's namespace
	Prefix string           // as stored in the header, without the dot that follows
}

// Snapshot is a snapshot of the destination: its id, and how many objects the
// image has at it. Remote is the source's snapshot that it is a copy of, 0 if
// that is not known or no longer there.
type Snapshot struct{ ID, Objects, Remote uint64 }

// Target is a state of the source that the destination is to have in its turn.
type Target struct {
	Remote  uint64 // the source's snapshot
	Local   uint64 // the destination's
	Objects uint64 // how many the image has at it, striping considered
}

// Lease is the permission to write (see plugins.Lease).
type Lease interface{ Valid() bool }

// Head stands for the image itself where a snapshot id is asked for.
const Head = ^uint64(0) - 1

// ObjectMaps are the object maps of the destination. snap is a local snapshot or
// Head. No two calls are made at once.
type ObjectMaps interface {
	// Load returns a map. The caller keeps it.
	Load(ctx context.Context, snap uint64) (*objectmap.Map, error)
	// Save replaces a map; the size stays as it is.
	Save(ctx context.Context, snap uint64, m *objectmap.Map) error
	// Update sets the states of objects from start up to, not including, end.
	Update(ctx context.Context, snap uint64, start, end uint64, state objectmap.State) error
}

// SourceMaps are the valid object maps of the source's snapshots.
type SourceMaps struct {
	// ExistenceOnly: what the maps say of existing objects, changed or not, is
	// not to be relied on. When an image is rolled back to a snapshot, librbd
	// takes that snapshot's map for the head as it is: objects that the
	// rollback changed then count as unchanged since the newest snapshot. That
	// matters where there was something to go back to at Start already.
	ExistenceOnly bool
	// Snaps are all snapshots after Job.Start, of every kind, up to and
	// including the end, ascending.
	Snaps []uint64
	// Load returns the map of one of these, or of Job.Start. It must return
	// soon after ctx has ended, even if the source does not answer.
	Load func(ctx context.Context, snap uint64) (*objectmap.Map, error)
}

// Job is one synchronisation of one image.
type Job struct {
	Source, Dest Objects
	ObjectSize   uint64 // both images have the same

	// Start is what the destination's head was when it began: a mirror
	// snapshot of the source, 0 when the destination was empty. StartObjects
	// is how many objects the image had.
	Start        uint64
	StartObjects uint64
	// Targets are the user snapshots after Start that are to be created,
	// ascending, and last the mirror snapshot to be reached. Their local
	// snapshots exist in the destination's header already, and its head has
	// the size of the last.
	Targets []Target
	// Existing are all other snapshots that the destination has, mirror
	// snapshots too, in any order. All are older than the targets'.
	Existing []Snapshot

	// SourceMaps save asking for every object of the image; nil if some are
	// missing or invalid.
	SourceMaps *SourceMaps
	// Maps are the destination's; nil if it has none. They must have the
	// sizes of their snapshots already. The head's must be true; what those
	// of the targets contain does not matter, except below Resume.
	Maps ObjectMaps

	// Resume is the number that an interrupted Run, or a stock daemon, left
	// as progress of this synchronisation: objects below it are done.
	Resume uint64
	// FullCompare takes nothing of the destination for granted: both sides of
	// every object are read and compared, what differs is repaired. For
	// images that a stock daemon synchronised, and for a resync onto an
	// existing copy (Start is 0 then). Snapshots in Existing are left alone.
	FullCompare bool

	Memory      *Budget       // shared by all jobs of the process; nil: one of its own
	Lease       Lease         // asked before every write; nil: always valid
	Limit       *rate.Limiter // bytes per second read from the source; nil: none
	Concurrency int           // objects in flight, 0: DefaultConcurrency
	// SaveProgress is given the number of the last object below which,
	// itself included, all are done, at most once every SaveEvery. An error
	// ends Run. May be nil.
	SaveProgress func(ctx context.Context, object uint64) error
	SaveEvery    time.Duration // 0: a second
	// Stats count while Run is under way; nil if nobody is interested.
	Stats *Stats
}

// DefaultConcurrency is how many objects of one image are in flight at most.
const DefaultConcurrency = 64

var (
	// ErrLease: the permission to write has run out.
	ErrLease = errors.New("the lease has expired")
	// ErrUncertain: a write may still be carried out by an OSD that did not
	// answer. Nobody else may be let in before this client is fenced.
	ErrUncertain = errors.New("a write may still be under way")
)
