package format

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/wire"
)

// Event is what an entry of the journal tells, one of the types below.
type Event interface {
	kind() uint32
	write(*wire.Writer)
}

// Op is an event that begins an operation; an OpFinish with the same number, in
// the same tag, ends it.
type Op interface {
	Event
	OpID() uint64
}

// Events of IO. Offsets are those of the image.
type (
	// Discard drops data. With a granularity, only whole pieces of that size
	// inside an object are dropped.
	Discard struct {
		Offset, Length uint64
		Granularity    uint32
	}
	// Write is a write. Data shares memory with what was decoded.
	Write struct {
		Offset, Length uint64
		Data           []byte
	}
	// Flush says that everything before it was durable.
	Flush struct{}
	// WriteSame writes a pattern over and over.
	WriteSame struct {
		Offset, Length uint64
		Data           []byte
	}
	// CompareAndWrite writes if the image has the content to compare with.
	// Whether it did is not told.
	CompareAndWrite struct {
		Offset, Length uint64
		Compare, Data  []byte
	}
)

// Events of operations.
type (
	// OpFinish tells the result of an operation, an errno below 0 if it failed.
	OpFinish struct {
		ID     uint64
		Result int32
	}
	// SnapCreate is the creation of a snapshot.
	SnapCreate struct{ Snap }
	// SnapRemove is the removal of a snapshot.
	SnapRemove struct{ Snap }
	// SnapRename renames a snapshot; SnapID is the primary's number of it.
	SnapRename struct {
		ID       uint64
		SnapID   uint64
		From, To string
	}
	// SnapProtect protects a snapshot from removal.
	SnapProtect struct{ Snap }
	// SnapUnprotect ends that.
	SnapUnprotect struct{ Snap }
	// SnapRollback gives the image the content that it had at a snapshot.
	SnapRollback struct{ Snap }
	// Rename renames the image.
	Rename struct {
		ID   uint64
		Name string
	}
	// Resize resizes the image.
	Resize struct {
		ID   uint64
		Size uint64
	}
	// Flatten makes a clone independent of its parent.
	Flatten struct{ ID uint64 }
	// RoleChange is the one entry of an epoch that a demotion or a promotion
	// began.
	RoleChange struct{}
	// SnapLimit limits the number of snapshots.
	SnapLimit struct {
		ID    uint64
		Limit uint64
	}
	// UpdateFeatures switches features.
	UpdateFeatures struct {
		ID       uint64
		Features uint64
		Enabled  bool
	}
	// MetadataSet sets metadata of the image.
	MetadataSet struct {
		ID         uint64
		Key, Value string
	}
	// MetadataRemove removes metadata.
	MetadataRemove struct {
		ID  uint64
		Key string
	}
	// Unknown is of a later version.
	Unknown struct {
		Type uint32
		Body []byte
	}
)

// Snap is what operations on snapshots have in common.
type Snap struct {
	ID        uint64
	Name      string
	Namespace cls.SnapshotNamespace
}

const (
	kindDiscard uint32 = iota
	kindWrite
	kindFlush
	kindOpFinish
	kindSnapCreate
	kindSnapRemove
	kindSnapRename
	kindSnapProtect
	kindSnapUnprotect
	kindSnapRollback
	kindRename
	kindResize
	kindFlatten
	kindRoleChange
	kindSnapLimit
	kindUpdateFeatures
	kindMetadataSet
	kindMetadataRemove
	kindWriteSame
	kindCompareAndWrite
)

func (Discard) kind() uint32         { return kindDiscard }
func (Write) kind() uint32           { return kindWrite }
func (Flush) kind() uint32           { return kindFlush }
func (WriteSame) kind() uint32       { return kindWriteSame }
func (CompareAndWrite) kind() uint32 { return kindCompareAndWrite }
func (OpFinish) kind() uint32        { return kindOpFinish }
func (SnapCreate) kind() uint32      { return kindSnapCreate }
func (SnapRemove) kind() uint32      { return kindSnapRemove }
func (SnapRename) kind() uint32      { return kindSnapRename }
func (SnapProtect) kind() uint32     { return kindSnapProtect }
func (SnapUnprotect) kind() uint32   { return kindSnapUnprotect }
func (SnapRollback) kind() uint32    { return kindSnapRollback }
func (Rename) kind() uint32          { return kindRename }
func (Resize) kind() uint32          { return kindResize }
func (Flatten) kind() uint32         { return kindFlatten }
func (RoleChange) kind() uint32      { return kindRoleChange }
func (SnapLimit) kind() uint32       { return kindSnapLimit }
func (UpdateFeatures) kind() uint32  { return kindUpdateFeatures }
func (MetadataSet) kind() uint32     { return kindMetadataSet }
func (MetadataRemove) kind() uint32  { return kindMetadataRemove }
func (u Unknown) kind() uint32       { return u.Type }

// OpID returns the number that the operation's OpFinish has too.
func (s Snap) OpID() uint64 { return s.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e SnapRename) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e Rename) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e Resize) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e Flatten) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e SnapLimit) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e UpdateFeatures) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e MetadataSet) OpID() uint64 { return e.ID }

// OpID returns the number that the operation's OpFinish has too.
func (e MetadataRemove) OpID() uint64 { return e.ID }

func (e Discard) write(w *wire.Writer) {
	w.U64(e.Offset)
	w.U64(e.Length)
	w.Bool(e.Granularity > 0)
	w.U32(e.Granularity)
}

func (e Write) write(w *wire.Writer)     { writeData(w, e.Offset, e.Length, e.Data) }
func (e WriteSame) write(w *wire.Writer) { writeData(w, e.Offset, e.Length, e.Data) }
func (e CompareAndWrite) write(w *wire.Writer) {
	writeData(w, e.Offset, e.Length, e.Compare, e.Data)
}

func writeData(w *wire.Writer, offset, length uint64, data ...[]byte) {
	w.U64(offset)
	w.U64(length)
	for _, d := range data {
		w.Blob(d)
	}
}

func (Flush) write(*wire.Writer)      {}
func (RoleChange) write(*wire.Writer) {}

func (e OpFinish) write(w *wire.Writer) {
	w.U64(e.ID)
	w.U64(e.ID)
	w.U32(uint32(e.Result))
}

func (s Snap) write(w *wire.Writer) {
	w.U64(s.ID)
	w.Str(s.Name)
	w.Raw(s.Namespace.Encode())
}

func (e SnapRename) write(w *wire.Writer) {
	w.U64(e.ID)
	w.Str(e.To)
	w.U64(e.SnapID)
	w.Str(e.From)
}

func (e Rename) write(w *wire.Writer)    { w.U64(e.ID); w.Str(e.Name) }
func (e Resize) write(w *wire.Writer)    { w.U64(e.ID); w.U64(e.Size) }
func (e Flatten) write(w *wire.Writer)   { w.U64(e.ID) }
func (e SnapLimit) write(w *wire.Writer) { w.U64(e.ID); w.U64(e.Limit) }

func (e UpdateFeatures) write(w *wire.Writer) {
	w.U64(e.ID)
	w.U64(e.Features)
	w.Bool(e.Enabled)
}

func (e MetadataSet) write(w *wire.Writer) {
	w.U64(e.ID)
	w.Str(e.Key)
	w.Str(e.Value)
}

func (e MetadataRemove) write(w *wire.Writer) { w.U64(e.ID); w.Str(e.Key) }
func (u Unknown) write(w *wire.Writer)        { w.Raw(u.Body) }

const (
	eventVersion = 5
	frameHead    = 6  // of a versioned frame
	trailerSize  = 14 // a versioned frame around a point in time
)

// EncodeEvent returns an event as the payload of an entry, in the newest
// version. The zero time is encoded as zero.
func EncodeEvent(e Event, at time.Time) []byte {
	return encode(func(w *wire.Writer) {
		w.Frame(eventVersion, 1, func() {
			w.U32(e.kind())
			e.write(w)
		})
		w.Frame(1, 1, func() { w.Time(at) })
	})
}

// DecodeEvent decodes the payload of an entry, of every version so far. Events
// of IO share memory with it. The zero time stands for none.
func DecodeEvent(p []byte) (e Event, at time.Time, err error) {
	fail := func(err error) (Event, time.Time, error) {
		return nil, time.Time{}, fmt.Errorf("decoding event: %w", err)
	}
	if len(p) < frameHead+4 {
		return fail(wire.ErrShort)
	}
	version, compat := p[0], p[1]
	if compat > eventVersion {
		return fail(fmt.Errorf("version %d needs a reader of version %d, not %d", version, compat, eventVersion))
	}
	size := uint64(binary.LittleEndian.Uint32(p[2:]))
	if size < 4 || size > uint64(len(p)-frameHead) {
		return fail(wire.ErrShort)
	}
	body := p[frameHead+4 : frameHead+size]
	kind := binary.LittleEndian.Uint32(p[frameHead:])
	if kind == kindWrite || kind == kindWriteSame || kind == kindCompareAndWrite {
		e, err = decodeData(kind, body)
	} else {
		e, err = decodeSmall(kind, version, body)
	}
	if err != nil {
		return fail(err)
	}
	if version >= 4 {
		r := wire.NewReader(p[frameHead+size : min(uint64(len(p)), frameHead+size+trailerSize)])
		r.Frame(1, func(_ uint8, r *wire.Reader) { at = r.Time() })
		if r.Err() != nil {
			return fail(r.Err())
		}
	}
	return e, at, nil
}

// decodeData takes events apart that carry data, without copying it.
func decodeData(kind uint32, b []byte) (Event, error) {
	if len(b) < 16 {
		return nil, wire.ErrShort
	}
	offset, length := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	if offset > math.MaxInt64 || length > math.MaxInt64-offset {
		return nil, fmt.Errorf("%d bytes at %d", length, offset)
	}
	data, b, ok := counted(b[16:])
	if !ok {
		return nil, wire.ErrShort
	}
	switch kind {
	case kindWrite:
		if uint64(len(data)) != length {
			return nil, fmt.Errorf("write of %d bytes with %d", length, len(data))
		}
		return Write{Offset: offset, Length: length, Data: data}, nil
	case kindWriteSame:
		if length > 0 && (len(data) == 0 || length%uint64(len(data)) != 0) {
			return nil, fmt.Errorf("%d bytes of a pattern of %d", length, len(data))
		}
		return WriteSame{Offset: offset, Length: length, Data: data}, nil
	}
	second, _, ok := counted(b)
	if !ok {
		return nil, wire.ErrShort
	}
	if uint64(len(data)) != length || uint64(len(second)) != length {
		return nil, fmt.Errorf("compare and write of %d bytes with %d and %d", length, len(data), len(second))
	}
	return CompareAndWrite{Offset: offset, Length: length, Compare: data, Data: second}, nil
}

func counted(b []byte) (data, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if b = b[4:]; n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

func decodeSmall(kind uint32, version uint8, b []byte) (e Event, err error) {
	r := wire.NewReader(b)
	snap := func(since uint8) Snap {
		s := Snap{ID: r.U64(), Name: r.Str()}
		if version >= since {
			s.Namespace = readNamespace(r)
		}
		return s
	}
	switch kind {
	case kindDiscard:
		d := Discard{Offset: r.U64(), Length: r.U64()}
		if version >= 4 && r.Bool() {
			d.Granularity = math.MaxUint32
		}
		if version >= 5 {
			d.Granularity = r.U32()
		}
		if r.Err() == nil && (d.Offset > math.MaxInt64 || d.Length > math.MaxInt64-d.Offset) {
			return nil, fmt.Errorf("discard of %d bytes at %d", d.Length, d.Offset)
		}
		e = d
	case kindFlush:
		e = Flush{}
	case kindOpFinish:
		id := r.U64()
		r.U64() // the same once more
		e = OpFinish{ID: id, Result: r.S32()}
	case kindSnapCreate:
		e = SnapCreate{snap(3)}
	case kindSnapRemove:
		e = SnapRemove{snap(4)}
	case kindSnapRename:
		s := SnapRename{ID: r.U64(), To: r.Str(), SnapID: r.U64()}
		if version >= 2 {
			s.From = r.Str()
		}
		e = s
	case kindSnapProtect:
		e = SnapProtect{snap(4)}
	case kindSnapUnprotect:
		e = SnapUnprotect{snap(4)}
	case kindSnapRollback:
		e = SnapRollback{snap(4)}
	case kindRename:
		e = Rename{ID: r.U64(), Name: r.Str()}
	case kindResize:
		e = Resize{ID: r.U64(), Size: r.U64()}
	case kindFlatten:
		e = Flatten{ID: r.U64()}
	case kindRoleChange:
		e = RoleChange{}
	case kindSnapLimit:
		e = SnapLimit{ID: r.U64(), Limit: r.U64()}
	case kindUpdateFeatures:
		e = UpdateFeatures{ID: r.U64(), Features: r.U64(), Enabled: r.Bool()}
	case kindMetadataSet:
		e = MetadataSet{ID: r.U64(), Key: r.Str(), Value: r.Str()}
	case kindMetadataRemove:
		e = MetadataRemove{ID: r.U64(), Key: r.Str()}
	default:
		e = Unknown{Type: kind, Body: slices.Clone(b)}
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	return e, nil
}

// Name returns what kind of event e is, for people.
func Name(e Event) string {
	if u, ok := e.(Unknown); ok {
		return fmt.Sprintf("event of type %d", u.Type)
	}
	return names[e.kind()]
}

var names = [...]string{"discard", "write", "flush", "end of operation", "snapshot creation", "snapshot removal",
	"snapshot renaming", "snapshot protection", "snapshot unprotection", "snapshot rollback", "image renaming", "resize",
	"flatten", "change of role", "snapshot limit", "feature update", "metadata setting", "metadata removal",
	"write same", "compare and write"}
