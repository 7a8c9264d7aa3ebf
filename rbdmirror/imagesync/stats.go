package imagesync

import "sync/atomic"

// Stats count what a Run does. They may be read at any time.
type Stats struct {
	Total     atomic.Uint64 // objects to look at
	Done      atomic.Uint64 // of these
	Listed    atomic.Uint64 // objects whose past was asked for
	Read      atomic.Uint64 // bytes read from the source
	Compared  atomic.Uint64 // bytes read from the destination
	Written   atomic.Uint64 // bytes written
	Zeroed    atomic.Uint64 // bytes zeroed, or cut off
	Changed   atomic.Uint64 // objects written to
	Removed   atomic.Uint64 // objects removed
	CopiedUp  atomic.Uint64 // objects put below older snapshots
	Repaired  atomic.Uint64 // objects that were not what they should have been (FullCompare)
	ReadOps   atomic.Uint64
	WriteOps  atomic.Uint64
	MapWrites atomic.Uint64 // changes of object maps
}
