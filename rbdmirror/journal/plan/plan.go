// Package plan decides in what steps the entries of a journal are carried out on
// the copy of an image. It does no I/O.
//
// Reads and writes of guests only know the order that flushes give them, so
// writes between two barriers are merged per object and carried out side by side.
// Barriers are flushes, operations, compare-and-writes and changes of epoch;
// nothing is merged across one. In between, a step is as short as the lag is
// small, for while one is under way the image is at no point of the journal.
//
// An operation takes effect once its end is known. Where librbd holds writes back
// during the operation (snapshots, resizes, features) what follows its beginning in
// the journal belongs after it; with all others, what stands before its end
// belongs before it.
package plan

import (
	"slices"
	"time"

	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/merge"
)

// Entry is a decoded entry of the journal.
type Entry struct {
	format.Position
	Event format.Event
	Time  time.Time // by the primary's clock, zero if not told
	Size  int       // of the payload
}

// Pending is an operation of which only the beginning was seen.
type Pending struct {
	Op format.Op
	// Before is Done as it was before the operation began.
	Before format.Positions
}

// Progress is how far a copy has come.
type Progress struct {
	// Done is the last entry dealt with, and those before it at the other
	// offsets.
	Done format.Positions
	// Pending are the operations that began up to then and are still to be
	// carried out, in the order in which they began. They are of the epoch of
	// the last entry.
	Pending []Pending
}

// Committable returns what the journal may be told. Another daemon that goes on
// from there must see the beginning of every operation that is pending.
func (p Progress) Committable() format.Positions {
	if len(p.Pending) > 0 {
		return p.Pending[0].Before
	}
	return p.Done
}

// Image is what the plan has to know of the copy.
type Image struct {
	Layout merge.Layout
	Size   uint64
}

// Limits bound a batch.
type Limits struct {
	Entries int
	Bytes   uint64
	// Strict allows only what one write of an object can hold, so that the
	// image is at a point of the journal at any time.
	Strict bool
}

// Bounds of batches.
const (
	minEntries = 64
	maxEntries = 4096
	minBytes   = 4 << 20
	maxBytes   = 32 << 20
)

// LimitsFor returns the limits for a lag: short batches while it is small, long
// ones for a deep backlog.
func LimitsFor(behind uint64) Limits {
	n := min(max(behind, minEntries), maxEntries)
	return Limits{Entries: int(n), Bytes: minBytes + (maxBytes-minBytes)*(n-minEntries)/(maxEntries-minEntries)}
}

// StrictLimits are those of the strict mode.
func StrictLimits() Limits { return Limits{Entries: minEntries, Bytes: minBytes, Strict: true} }

// Work is one step. After is the progress when it is done.
type Work interface {
	After() Progress
	Summary() Summary
}

// Summary is what a step consists of, for statistics.
type Summary struct {
	Entries int
	Bytes   int       // of payload
	Time    time.Time // of the newest entry that tells it
}

type common struct {
	after   Progress
	summary Summary
}

func (c *common) After() Progress  { return c.after }
func (c *common) Summary() Summary { return c.summary }

// Batch is writes to objects, in any order. It may be empty.
type Batch struct {
	common
	Objects []*merge.Object
}

// Operation is an operation to be carried out.
type Operation struct {
	common
	Op format.Op
}

// Compare is a compare-and-write, clipped to the image.
type Compare struct {
	common
	format.CompareAndWrite
}

// Epoch precedes the first entry of an epoch, and the first one of all. Nothing is
// done by it; the copy's journal has to learn of the epoch first.
type Epoch struct {
	common
	Tag uint64
}

// Planner turns entries into steps. The steps must be carried out in order, each
// after the one before is done.
type Planner struct {
	splay    uint64
	progress Progress // when all steps given out are done
	entered  bool     // the epoch of progress was given out
	epoch    uint64
	queue    []Entry
	bytes    int
	ends     map[opKey]int32 // ends of operations in the queue
	newest   uint64          // epoch in the queue
}

type opKey struct{ tag, id uint64 }

// New returns a planner that goes on from a progress.
func New(splay uint8, p Progress) *Planner {
	n := &Planner{splay: max(uint64(splay), 1), progress: p, ends: make(map[opKey]int32)}
	if first, ok := p.Done.First(); ok {
		n.epoch = first.Tag
	}
	return n
}

// Push adds the next entry.
func (p *Planner) Push(e Entry) {
	if f, ok := e.Event.(format.OpFinish); ok {
		p.ends[opKey{e.Tag, f.ID}] = f.Result
	}
	p.queue = append(p.queue, e)
	p.bytes += e.Size
	p.newest = max(p.newest, e.Tag)
}

// Queued returns how many entries wait, and how many bytes of payload they have.
func (p *Planner) Queued() (entries, bytes int) { return len(p.queue), p.bytes }

// Oldest returns the entry that comes next.
func (p *Planner) Oldest() (Entry, bool) {
	if len(p.queue) == 0 {
		return Entry{}, false
	}
	return p.queue[0], true
}

// Planned returns the progress when all steps given out are done.
func (p *Planner) Planned() Progress { return p.progress }

// Waiting returns the operation whose end has to be seen before anything else can
// be done.
func (p *Planner) Waiting() (format.Op, bool) {
	if len(p.queue) == 0 {
		return nil, false
	}
	op, ok := p.queue[0].Event.(format.Op)
	return op, ok && p.unsettled(p.queue[0].Tag, op)
}

// holdsWrites says that writes that follow the beginning of an operation belong
// after it.
func holdsWrites(op format.Op) bool {
	switch op.(type) {
	case format.SnapCreate, format.Resize, format.UpdateFeatures:
		return true
	}
	return false
}

// unsettled says that it is not known yet whether an operation is to be done at its
// beginning.
func (p *Planner) unsettled(tag uint64, op format.Op) bool {
	if !holdsWrites(op) || p.newest > tag {
		return false
	}
	_, ended := p.ends[opKey{tag, op.OpID()}]
	return !ended
}

// Next returns the next step; false when more entries are needed.
func (p *Planner) Next(img Image, lim Limits) (Work, bool) {
	if len(p.queue) == 0 {
		return nil, false
	}
	head := p.queue[0]
	if head.Tag != p.epoch && len(p.progress.Pending) > 0 {
		// The primary died before they ended. Its own recovery carries them out.
		op := p.progress.Pending[0].Op
		p.progress.Pending = p.progress.Pending[1:]
		return &Operation{common{after: p.progress}, op}, true
	}
	if !p.entered || head.Tag != p.epoch {
		p.epoch, p.entered = head.Tag, true
		return &Epoch{common{after: p.progress}, head.Tag}, true
	}
	switch e := head.Event.(type) {
	case format.CompareAndWrite:
		if e.Length = merge.Clip(e.Offset, e.Length, img.Size); e.Length > 0 {
			e.Compare, e.Data = e.Compare[:e.Length], e.Data[:e.Length]
			return &Compare{p.consume(1), e}, true
		}
	case format.OpFinish:
		if op, ok := p.ending(e); ok {
			return &Operation{p.consume(1), op}, true
		}
	case format.Op:
		if p.unsettled(head.Tag, e) {
			return nil, false
		}
		if p.atBeginning(head.Tag, e) {
			return &Operation{p.consume(1), e}, true
		}
	}
	return p.batch(img, lim), true
}

// NextBatch returns the next step if it is surely a batch, of the same epoch as the
// last one.
func (p *Planner) NextBatch(img Image, lim Limits) (*Batch, bool) {
	if len(p.queue) == 0 || p.queue[0].Tag != p.epoch || !p.entered {
		return nil, false
	}
	switch p.queue[0].Event.(type) {
	case format.Write, format.WriteSame, format.Discard, format.Flush:
		return p.batch(img, lim), true
	}
	return nil, false
}

// atBeginning says that an operation is to be carried out where it begins.
func (p *Planner) atBeginning(tag uint64, op format.Op) bool {
	if !holdsWrites(op) {
		return false
	}
	result, ended := p.ends[opKey{tag, op.OpID()}]
	return !ended || result >= 0
}

// ending returns the pending operation that an entry ends with success.
func (p *Planner) ending(f format.OpFinish) (format.Op, bool) {
	for _, q := range p.progress.Pending {
		if q.Op.OpID() == f.ID && f.Result >= 0 {
			return q.Op, true
		}
	}
	return nil, false
}

// consume takes n entries out of the queue and returns what they amount to.
func (p *Planner) consume(n int) common {
	var c common
	positions := make([]format.Position, 0, n)
	pending := slices.Clone(p.progress.Pending)
	for i, e := range p.queue[:n] {
		switch event := e.Event.(type) {
		case format.OpFinish:
			delete(p.ends, opKey{e.Tag, event.ID})
			pending = slices.DeleteFunc(pending, func(q Pending) bool { return q.Op.OpID() == event.ID })
		case format.Op:
			if !holdsWrites(event) {
				pending = append(pending, Pending{event, p.progress.Done.Advance(p.splay, positions...)})
			}
		}
		positions = append(positions, e.Position)
		c.summary.Entries++
		c.summary.Bytes += e.Size
		if !e.Time.IsZero() {
			c.summary.Time = e.Time
		}
		p.bytes -= e.Size
		p.queue[i] = Entry{}
	}
	if p.queue = p.queue[n:]; len(p.queue) == 0 {
		p.queue = nil
	}
	p.progress = Progress{Done: p.progress.Done.Advance(p.splay, positions...), Pending: pending}
	c.after = p.progress
	return c
}

// batch takes as many entries as may be merged.
func (p *Planner) batch(img Image, lim Limits) *Batch {
	b := merge.NewBuilder(img.Layout, img.Size)
	n := 0
take:
	for n < len(p.queue) {
		e := p.queue[n]
		if e.Tag != p.epoch || n > 0 && (n >= lim.Entries || b.Bytes()+uint64(e.Size) > lim.Bytes) {
			break
		}
		switch event := e.Event.(type) {
		case format.Write, format.WriteSame, format.Discard:
			if lim.Strict && !fits(b, event) {
				break take
			}
			b.Add(event)
		case format.CompareAndWrite:
			if merge.Clip(event.Offset, event.Length, img.Size) > 0 {
				break take
			}
		case format.Flush:
			n++
			break take
		case format.OpFinish:
			if _, ok := p.endingAfter(event, n); ok {
				break take
			}
		case format.Op:
			if p.unsettled(e.Tag, event) || p.atBeginning(e.Tag, event) {
				break take
			}
		}
		n++
	}
	return &Batch{p.consume(n), b.Objects()}
}

// endingAfter is ending when the first n entries of the queue count as done.
func (p *Planner) endingAfter(f format.OpFinish, n int) (format.Op, bool) {
	if op, ok := p.ending(f); ok {
		return op, true
	}
	for _, e := range p.queue[:n] {
		if op, ok := e.Event.(format.Op); ok && op.OpID() == f.ID && !holdsWrites(op) && f.Result >= 0 {
			return op, true
		}
	}
	return nil, false
}

// fits says that one write of one object does what was merged and an event too.
func fits(b *merge.Builder, e format.Event) bool {
	touched, _ := b.Touches(e)
	if b.Len() == 0 || len(touched) == 0 {
		return true
	}
	only, single := b.Single()
	return single && len(touched) == 1 && touched[0] == only
}
