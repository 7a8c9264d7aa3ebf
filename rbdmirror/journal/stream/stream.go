// Package stream puts the entries of a journal in order. They are spread over
// several objects written in turn, in sets that follow each other; epochs (tags)
// end without notice, also with entries missing when a primary died.
//
// A Reader does no I/O: it says what is to be fetched, takes what was fetched,
// and gives out entries. What it is told need not be new: an observation counts
// only for what it can prove. An object that had no more data proves that an
// epoch is over only if it was read after a later epoch is known to exist (as must
// be the number of the active set), and that an object is complete only if it was
// read after its set is known to be closed.
package stream

import (
	"errors"
	"fmt"

	"cephmirror/rbdmirror/journal/format"
)

var (
	// ErrMissing says that an entry is gone that was there before others that
	// are still there.
	ErrMissing = errors.New("missing prior journal entry")
	// ErrTorn says that an object that nobody writes to any more ends in the
	// middle of an entry.
	ErrTorn = fmt.Errorf("%w: torn at the end of the object", format.ErrCorrupt)
)

// Entry is an entry in its turn.
type Entry struct {
	format.Position
	Payload []byte // shares memory with what was fetched
}

// Stamp orders what was learned: a fetch proves nothing about what was learned
// after it was asked for.
type Stamp uint64

// Fetch asks for a piece of a data object.
type Fetch struct {
	Object uint64
	Offset uint64
	Length uint64
	stamp  Stamp
}

// Geometry is how a journal is laid out.
type Geometry struct {
	Order uint8
	Splay uint8
}

// Sizes of fetches. The first of an object is small, for most of the time there
// is little new; as long as they come back full they grow.
const (
	firstFetch = 64 << 10
	maxFetch   = 1 << 20
)

// Reader gives out the entries of a journal in order.
type Reader struct {
	splay uint64
	limit uint64 // of an entry
	clock Stamp
	// polled and fresh are how old the tail of the current object, and of all
	// others, may be.
	polled Stamp
	fresh  Stamp
	active uint64
	// activeStamp and newestStamp tell when active and newest were raised.
	activeStamp Stamp
	newest      uint64 // the highest tag known to exist
	newestStamp Stamp
	looked      Stamp // when the header was looked at that active is from

	begun   bool   // tag is valid
	tag     uint64 // the epoch that is given out, or was last
	entry   uint64 // the next one of it
	seeking bool   // tag is over: the next epoch begins in the first object
	err     error

	splays []offset
}

// offset is the sequence of objects at one splay offset.
type offset struct {
	object   uint64
	base     uint64 // where rest begins in the object
	rest     []byte // not parsed yet
	need     int    // how long rest must get before it is of use
	queue    []Entry
	queued   int // bytes
	size     uint64
	tail     Stamp // nothing was beyond rest when a fetch of this stamp was asked for, 0: unknown
	fetching bool
	// bad is why nothing can be made of rest. It matters when all before it
	// has been given out.
	bad error
	// done is, in the first object, an entry that is not needed any more. What
	// comes before it may be as corrupt as it likes.
	done *format.Position
	// sure is an entry that is there, as was learned at sureStamp, and last the
	// last one that was found.
	sure, last *format.Position
	sureStamp  Stamp
}

// New returns a reader of the entries after the given positions. minimum is the
// oldest object set that there may be.
func New(g Geometry, after format.Positions, minimum uint64) *Reader {
	splay := max(uint64(g.Splay), 1)
	r := &Reader{splay: splay, limit: 1 << max(g.Order, format.MinOrder), clock: 1, splays: make([]offset, splay)}
	for i := range r.splays {
		r.splays[i] = offset{object: minimum*splay + uint64(i), size: firstFetch}
	}
	for _, p := range after {
		s := &r.splays[p.Object%splay]
		s.object, s.done = p.Object, &p
	}
	if p, ok := after.First(); ok {
		r.begun, r.tag, r.entry = true, p.Tag, p.Entry+1
		r.newest, r.newestStamp = p.Tag, 1
	}
	r.polled, r.fresh = 1, 1
	return r
}

func (r *Reader) now() Stamp {
	r.clock++
	return r.clock
}

// Look begins a look at the journal's header. Its result goes to Saw.
func (r *Reader) Look() Stamp { return r.clock }

// Saw gives what a look at the header has brought: the set that the journal is
// written to and the newest tag.
func (r *Reader) Saw(look Stamp, active, newest uint64) {
	if active > r.active || r.activeStamp == 0 {
		r.active, r.activeStamp = active, r.now()
	}
	r.looked = max(r.looked, look)
	r.exists(newest)
}

// Durable tells of entries that the writer knows to be there, the last one of each
// object. If they are not found, the journal is damaged.
func (r *Reader) Durable(ps format.Positions) {
	for _, p := range ps {
		s := &r.splays[p.Object%r.splay]
		if s.sure == nil || p.Compare(*s.sure) > 0 {
			s.sure, s.sureStamp = &p, r.now()
		}
	}
}

// lacks says that an offset has not got what is there for sure.
func (s *offset) lacks() bool {
	return s.sure != nil && s.sure.Object == s.object && (s.last == nil || s.last.Compare(*s.sure) < 0) &&
		(s.done == nil || s.done.Compare(*s.sure) < 0)
}

func (r *Reader) exists(tag uint64) {
	if tag > r.newest || r.newestStamp == 0 {
		r.newest, r.newestStamp = tag, r.now()
	}
}

// WantLook says that the header has to be looked at before it can be told whether
// there is more.
func (r *Reader) WantLook() bool {
	stamp, over := r.over()
	return over && !r.seeking && r.looked < stamp && len(r.splays[r.current()].queue) == 0
}

// Poll makes the reader look for new data where the next entry must be. If there
// is any, it looks everywhere.
func (r *Reader) Poll() { r.polled = r.now() }

// AtEnd says that where the next entry must be there was nothing more when it was
// last looked for.
func (r *Reader) AtEnd() bool {
	s := &r.splays[r.current()]
	return len(s.queue) == 0 && !s.fetching && s.tail != 0
}

// Exhausted says that everything was given out that was there at the last look at
// the header: at the end of an epoch that is not the newest one there may be more
// in the next, wherever that has begun.
func (r *Reader) Exhausted() bool {
	_, later := r.over()
	return r.AtEnd() && !later && !r.seeking
}

// Buffered returns how many bytes of the journal are held.
func (r *Reader) Buffered() int {
	n := 0
	for i := range r.splays {
		n += r.splays[i].queued + len(r.splays[i].rest)
	}
	return n
}

// Epoch returns the epoch that the last entry was of; false before the first one.
func (r *Reader) Epoch() (tag uint64, ok bool) { return r.tag, r.begun }

// current is the offset where the next entry must be.
func (r *Reader) current() uint64 {
	if r.seeking || !r.begun {
		return 0
	}
	return r.entry % r.splay
}

// over says when it was learned that an epoch later than the current one exists.
func (r *Reader) over() (Stamp, bool) {
	if r.begun && r.newest > r.tag {
		return r.newestStamp, true
	}
	return 0, false
}

// closed says when it was learned that an object's set is complete.
func (r *Reader) closed(object uint64) (Stamp, bool) {
	if object/r.splay < r.active {
		return r.activeStamp, true
	}
	return 0, false
}

// Want returns what is to be fetched now, the most urgent first, and takes it for
// being under way: each must be answered by Fetched or Failed. budget is how many
// bytes may be held; what the next entry waits for is asked for in any case.
func (r *Reader) Want(budget int) []Fetch {
	var list []Fetch
	if r.err != nil {
		return nil
	}
	room := budget - r.Buffered()
	for i := range r.splays {
		s := &r.splays[i]
		if s.fetching {
			room -= int(s.size)
		}
	}
	at := r.current()
	for i := range r.splay {
		k := (at + i) % r.splay
		s := &r.splays[k]
		if s.fetching || s.bad != nil {
			continue
		}
		fresh := r.fresh
		if i == 0 {
			fresh = max(fresh, r.polled)
		}
		if stamp, ok := r.closed(s.object); ok {
			fresh = max(fresh, stamp)
		}
		if stamp, ok := r.over(); ok && i == 0 && !r.seeking {
			fresh = max(fresh, stamp)
		}
		if s.lacks() {
			fresh = max(fresh, s.sureStamp)
		}
		if s.tail != 0 && s.tail >= fresh {
			continue
		}
		length := max(s.size, uint64(max(s.need-len(s.rest), 0)))
		if urgent := i == 0 && len(s.queue) == 0; !urgent && int(length) > room {
			continue
		}
		room -= int(length)
		s.fetching = true
		list = append(list, Fetch{Object: s.object, Offset: s.base + uint64(len(s.rest)), Length: length, stamp: r.clock})
	}
	return list
}

// Failed says that a fetch brought nothing and is to be repeated.
func (r *Reader) Failed(f Fetch) { r.splays[f.Object%r.splay].fetching = false }

// Fetched gives the data that a fetch has brought, less than asked for if the
// object ends there, none if it does not exist. The reader keeps it.
func (r *Reader) Fetched(f Fetch, data []byte) error {
	s := &r.splays[f.Object%r.splay]
	s.fetching = false
	if r.err != nil || f.Object != s.object || f.Offset != s.base+uint64(len(s.rest)) {
		return r.err
	}
	if len(data) > 0 && s.tail != 0 {
		r.fresh = max(r.fresh, r.polled)
	}
	if uint64(len(data)) < f.Length {
		s.tail = f.stamp
		s.size = firstFetch
	} else {
		s.tail = 0
		s.size = min(s.size*4, maxFetch)
	}
	if len(s.rest) == 0 {
		s.rest = data
	} else {
		s.rest = append(append(make([]byte, 0, len(s.rest)+len(data)), s.rest...), data...)
	}
	r.parse(s)
	r.proceed(s)
	return nil
}

// parse queues the entries that are complete.
func (r *Reader) parse(s *offset) {
	for s.bad == nil {
		frame, used, need, err := format.ParseFrame(s.rest, s.base, r.limit)
		s.rest, s.base = s.rest[used:], s.base+uint64(used)
		s.need = need
		switch {
		case err != nil && s.done != nil:
			s.skip()
			continue
		case err != nil:
			s.bad = fmt.Errorf("data object %d: %w", s.object, err)
			return
		case frame.Payload == nil:
			if len(s.rest) == 0 {
				s.rest = nil
			} else if s.done != nil && s.tail != 0 {
				// There is more to come, so this is no beginning of an entry.
				s.skip()
				continue
			}
			if s.tail >= s.sureStamp && s.tail != 0 && s.lacks() {
				s.bad = fmt.Errorf("data object %d ends at %d without entry %d of epoch %d: %w", s.object, s.base, s.sure.Entry, s.sure.Tag, ErrMissing)
				if len(s.rest) > 0 {
					s.bad = fmt.Errorf("data object %d, offset %d: %w", s.object, s.base, ErrTorn)
				}
			}
			return
		}
		at := format.Position{Object: s.object, Tag: frame.Tag, Entry: frame.Entry}
		if s.done != nil && at.Compare(*s.done) >= 0 {
			s.done = nil
		}
		if s.last == nil || at.Compare(*s.last) > 0 {
			s.last = &at
		}
		r.exists(frame.Tag)
		s.add(Entry{at, frame.Payload})
	}
}

// skip goes on to what may be the beginning of another entry.
func (s *offset) skip() {
	n := format.NextFrame(s.rest)
	s.rest, s.base = s.rest[n:], s.base+uint64(n)
}

// add queues an entry. One that is in the same object already is replaced.
func (s *offset) add(e Entry) {
	s.queued += len(e.Payload) + format.EntryOverhead
	for i := len(s.queue) - 1; i >= 0 && s.queue[i].Object == e.Object && s.queue[i].Compare(e.Position) >= 0; i-- {
		if s.queue[i].Position == e.Position {
			s.queued -= len(s.queue[i].Payload) + format.EntryOverhead
			s.queue[i] = e
			return
		}
	}
	s.queue = append(s.queue, e)
}

func (s *offset) pop() Entry {
	e := s.queue[0]
	s.queue[0] = Entry{}
	s.queue = s.queue[1:]
	if len(s.queue) == 0 {
		s.queue = nil
	}
	s.queued -= len(e.Payload) + format.EntryOverhead
	return e
}

// proceed goes on to the next object of an offset when this one is complete.
func (r *Reader) proceed(s *offset) {
	stamp, ok := r.closed(s.object)
	if s.bad != nil || !ok || s.tail == 0 || s.tail < stamp {
		return
	}
	if len(s.rest) > 0 {
		s.bad = fmt.Errorf("data object %d, offset %d: %w", s.object, s.base, ErrTorn)
		return
	}
	s.object += r.splay
	s.base, s.need, s.tail, s.size, s.done = 0, 0, 0, firstFetch, nil
}

// Next returns the next entry. Without one, the reader waits for what Want asks
// for, or, when that is nothing, for new data: see Poll.
func (r *Reader) Next() (Entry, bool, error) {
	for {
		if r.err != nil {
			return Entry{}, false, r.err
		}
		s := &r.splays[r.current()]
		for len(s.queue) > 0 && r.stale(s.queue[0]) {
			s.pop()
		}
		stamp, over := r.over()
		switch {
		case len(s.queue) == 0 && s.bad != nil:
			r.err = s.bad
			continue
		case len(s.queue) == 0:
			if !over || r.seeking || s.fetching || s.tail == 0 || s.tail < stamp || r.looked < stamp {
				return Entry{}, false, nil
			}
			if len(s.rest) > 0 {
				r.err = fmt.Errorf("data object %d, offset %d: %w", s.object, s.base, ErrTorn)
				continue
			}
			if _, closed := r.closed(s.object); closed {
				// The rest of it may stand in the next object.
				r.proceed(s)
				return Entry{}, false, nil
			}
			r.seeking = true
		case r.seeking || !r.begun:
			head := s.queue[0]
			if head.Entry != 0 {
				r.err = fmt.Errorf("epoch %d begins with entry %d: %w", head.Tag, head.Entry, ErrMissing)
				continue
			}
			r.begun, r.seeking = true, false
			r.tag, r.entry = head.Tag, 1
			return s.pop(), true, nil
		case s.queue[0].Tag > r.tag:
			r.seeking = true
		case s.queue[0].Entry > r.entry:
			// The entries of one offset are appended in order, so this one was
			// there and is gone.
			r.err = fmt.Errorf("entry %d of epoch %d follows where %d is due: %w", s.queue[0].Entry, r.tag, r.entry, ErrMissing)
		default:
			r.entry++
			return s.pop(), true, nil
		}
	}
}

// stale says whether an entry comes too late to be of any use.
func (r *Reader) stale(e Entry) bool {
	switch {
	case !r.begun:
		return false
	case r.seeking:
		return e.Tag <= r.tag
	case e.Tag == r.tag:
		return e.Entry < r.entry
	default:
		return e.Tag < r.tag
	}
}
