// Package wire reads and writes Ceph's binary encoding: little-endian
// integers, counted strings and lists, and versioned frames.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// ErrShort is returned when the data ends before what it announces.
var ErrShort = errors.New("data too short")

// Writer builds an encoding. The zero value is ready for use.
type Writer struct{ b []byte }

// Bytes returns what was written.
func (w *Writer) Bytes() []byte { return w.b }

// U8 appends one byte.
func (w *Writer) U8(v uint8) { w.b = append(w.b, v) }

// U16 appends a 16-bit integer.
func (w *Writer) U16(v uint16) { w.b = binary.LittleEndian.AppendUint16(w.b, v) }

// U32 appends a 32-bit integer.
func (w *Writer) U32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }

// U64 appends a 64-bit integer.
func (w *Writer) U64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

// S64 appends a signed 64-bit integer.
func (w *Writer) S64(v int64) { w.U64(uint64(v)) }

// Bool appends a truth value.
func (w *Writer) Bool(v bool) {
	if v {
		w.U8(1)
	} else {
		w.U8(0)
	}
}

// Str appends a counted string.
func (w *Writer) Str(s string) {
	w.U32(uint32(len(s)))
	w.b = append(w.b, s...)
}

// Blob appends counted bytes.
func (w *Writer) Blob(p []byte) {
	w.U32(uint32(len(p)))
	w.b = append(w.b, p...)
}

// Raw appends bytes without a count.
func (w *Writer) Raw(p []byte) { w.b = append(w.b, p...) }

// OptU64 appends an optional integer, nil for none.
func (w *Writer) OptU64(v *uint64) {
	w.Bool(v != nil)
	if v != nil {
		w.U64(*v)
	}
}

// Time appends a point in time, the zero time as zero.
func (w *Writer) Time(t time.Time) {
	if t.IsZero() {
		w.U64(0)
		return
	}
	w.U32(uint32(t.Unix()))
	w.U32(uint32(t.Nanosecond()))
}

// Frame appends a versioned frame around what body writes. compat is the
// oldest version that a reader must know.
func (w *Writer) Frame(version, compat uint8, body func()) {
	w.U8(version)
	w.U8(compat)
	at := len(w.b)
	w.U32(0)
	body()
	binary.LittleEndian.PutUint32(w.b[at:], uint32(len(w.b)-at-4))
}

// Reader takes an encoding apart. After the first error every method returns
// zero values; Err tells of it.
type Reader struct {
	b   []byte
	err error
}

// NewReader returns a reader of p, which it does not change. What the reader
// returns does not share memory with p.
func NewReader(p []byte) *Reader { return &Reader{b: p} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Fail makes err the reader's error unless there is one already.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
		r.b = nil
	}
}

// Len returns how many bytes are left.
func (r *Reader) Len() int { return len(r.b) }

// Rest returns a copy of all bytes that are left.
func (r *Reader) Rest() []byte { return clone(r.take(len(r.b))) }

func clone(p []byte) []byte { return append([]byte{}, p...) }

func (r *Reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.Fail(ErrShort)
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

// U8 returns the next byte.
func (r *Reader) U8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

// U16 returns the next 16-bit integer.
func (r *Reader) U16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

// U32 returns the next 32-bit integer.
func (r *Reader) U32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// U64 returns the next 64-bit integer.
func (r *Reader) U64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// S32 returns the next signed 32-bit integer.
func (r *Reader) S32() int32 { return int32(r.U32()) }

// S64 returns the next signed 64-bit integer.
func (r *Reader) S64() int64 { return int64(r.U64()) }

// Bool returns the next truth value.
func (r *Reader) Bool() bool { return r.U8() != 0 }

// Str returns the next counted string.
func (r *Reader) Str() string { return string(r.counted()) }

// Blob returns the next counted bytes.
func (r *Reader) Blob() []byte { return clone(r.counted()) }

// Raw returns a copy of the next n bytes.
func (r *Reader) Raw(n int) []byte { return clone(r.take(n)) }

func (r *Reader) counted() []byte {
	n := r.U32()
	if uint64(n) > uint64(len(r.b)) {
		r.Fail(ErrShort)
		return nil
	}
	return r.take(int(n))
}

// OptU64 returns the next optional integer, nil for none.
func (r *Reader) OptU64() *uint64 {
	if !r.Bool() {
		return nil
	}
	v := r.U64()
	if r.err != nil {
		return nil
	}
	return &v
}

// Time returns the next point in time, the zero time for zero.
func (r *Reader) Time() time.Time {
	sec, nsec := r.U32(), r.U32()
	if sec == 0 && nsec == 0 {
		return time.Time{}
	}
	return time.Unix(int64(sec), int64(nsec)).UTC()
}

// Count returns how many items of at least size bytes each are announced. It
// fails when so many do not fit into what is left, so that the count may be
// trusted when memory is set aside.
func (r *Reader) Count(size int) int {
	n := r.U32()
	if uint64(n)*uint64(max(size, 1)) > uint64(len(r.b)) {
		r.Fail(ErrShort)
		return 0
	}
	return int(n)
}

// Frame reads a versioned frame: body gets its version and a reader of the
// payload alone. What body leaves unread is of later versions and skipped.
// known is the newest version understood; a frame that asks for a newer one is
// an error.
func (r *Reader) Frame(known uint8, body func(version uint8, p *Reader)) {
	version, compat := r.U8(), r.U8()
	payload := r.counted()
	if r.err != nil {
		return
	}
	if compat > known {
		r.Fail(fmt.Errorf("version %d needs a reader of version %d, not %d", version, compat, known))
		return
	}
	p := &Reader{b: payload}
	body(version, p)
	if p.err != nil {
		r.Fail(p.err)
	}
}
