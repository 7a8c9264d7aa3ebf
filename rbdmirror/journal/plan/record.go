package plan

import (
	"errors"
	"fmt"
	"time"

	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/wire"
)

// Record is what a copy keeps of its own progress, in its header. What is stored
// together with the effect of an operation tells for certain, whatever happens,
// that the operation is done; the position in the primary's journal, on another
// cluster, cannot.
type Record struct {
	// MirrorUUID and ImageID say whose journal the progress is about.
	MirrorUUID, ImageID string
	// Lock is whose lock of the copy the progress was made under, and LocalTag
	// the newest epoch of the copy's journal then. Another daemon changes both
	// before it writes anything.
	Lock     string
	LocalTag uint64
	Progress
	// Until is up to where operations may have had their effect already, because
	// another daemon was at work, or because a copy was made while they went on.
	Until format.Position
	// Compared is set while a compare-and-write is carried out that was found to
	// be due: the entry after Done.
	Compared bool
	// Fresh says that up to Until nothing but our own first copy bears on it: if
	// an operation does not fit, it can be made again.
	Fresh bool
}

// Unknown stands for Until as long as it is not known.
var Unknown = format.Position{Tag: ^uint64(0), Entry: ^uint64(0)}

// Exact says that an entry, and all after it, had no effect yet.
func (r *Record) Exact(p format.Position) bool { return p.Compare(r.Until) > 0 }

// RecordKey is where the record is in the omap of the header.
const RecordKey = "cephmirror_journal_progress"

// Encode returns the record as it is stored.
func (r Record) Encode() []byte {
	var w wire.Writer
	w.Frame(1, 1, func() {
		w.Str(r.MirrorUUID)
		w.Str(r.ImageID)
		w.Str(r.Lock)
		w.U64(r.LocalTag)
		w.Blob(r.Done.Encode())
		w.U64(r.Until.Tag)
		w.U64(r.Until.Entry)
		w.Bool(r.Compared)
		w.U32(uint32(len(r.Pending)))
		for _, p := range r.Pending {
			w.Blob(format.EncodeEvent(p.Op, time.Time{}))
			w.Blob(p.Before.Encode())
		}
		w.Bool(r.Fresh)
	})
	return w.Bytes()
}

// DecodeRecord decodes a record.
func DecodeRecord(b []byte) (Record, error) {
	var rec Record
	r := wire.NewReader(b)
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		rec.MirrorUUID, rec.ImageID = r.Str(), r.Str()
		rec.Lock, rec.LocalTag = r.Str(), r.U64()
		rec.Done = positions(r)
		rec.Until = format.Position{Tag: r.U64(), Entry: r.U64()}
		rec.Compared = r.Bool()
		for range r.Count(8) {
			rec.Pending = append(rec.Pending, Pending{operation(r), positions(r)})
		}
		if r.Len() > 0 {
			rec.Fresh = r.Bool()
		}
	})
	if err := r.Err(); err != nil {
		return Record{}, fmt.Errorf("decoding the record of progress: %w", err)
	}
	return rec, nil
}

func positions(r *wire.Reader) format.Positions {
	ps, err := format.DecodePositions(r.Blob())
	if err != nil {
		r.Fail(err)
	}
	return ps
}

func operation(r *wire.Reader) format.Op {
	e, _, err := format.DecodeEvent(r.Blob())
	if err != nil {
		r.Fail(err)
		return nil
	}
	op, ok := e.(format.Op)
	if !ok {
		r.Fail(errors.New("a pending event is none of an operation"))
	}
	return op
}

// Found is what a copy and the journal it follows look like when replay begins.
type Found struct {
	Stored              *Record // nil if there is none
	MirrorUUID, ImageID string  // whose journal is followed
	Committed           format.Positions
	Lock                string // holder of the copy's lock, empty if nobody holds it
	LocalTag            uint64 // newest epoch of the copy's journal
}

// Resume returns from where to go on: the copy's own record, or what the journal
// was told, if the record is of another journal or another daemon was at work since.
// Such a daemon may have carried out entries again that lie between the two; it
// has taken the lock by then, and added an epoch to the copy's journal. own tells that
// the record was used.
func Resume(f Found) (r Record, own bool) {
	if s := f.Stored; s != nil && s.MirrorUUID == f.MirrorUUID && s.ImageID == f.ImageID &&
		(f.Lock != "" && f.Lock == s.Lock || f.LocalTag == s.LocalTag) {
		told, any := f.Committed.First()
		done, some := s.Done.First()
		r := *s
		if any && (!some || told.Compare(done) > 0) {
			// Writes alone are not stored one by one, and what was told is done.
			r.Progress, r.Compared = Progress{Done: f.Committed}, false
		}
		return r, true
	}
	return Record{MirrorUUID: f.MirrorUUID, ImageID: f.ImageID, Progress: Progress{Done: f.Committed}, Until: Unknown}, false
}
