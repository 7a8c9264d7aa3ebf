package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	preamble = 0x3141592653589793
	// fixed is what stands before the payload.
	fixed = 8 + 1 + 8 + 8 + 4
	// EntryOverhead is how much longer an entry is than its payload.
	EntryOverhead = fixed + 4
	// alignment is where an entry may begin after padding.
	alignment = 8
	// lookahead is how much must be there to tell padding from the beginning
	// of an entry.
	lookahead = 25
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC of entries: seed 0 and no final inversion, where Go inverts
// before and after.
func checksum(p []byte) uint32 { return ^crc32.Update(^uint32(0), castagnoli, p) }

// AppendEntry appends an entry to b.
func AppendEntry(b []byte, tag, entry uint64, payload []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint64(b, preamble)
	b = append(b, 1)
	b = binary.LittleEndian.AppendUint64(b, entry)
	b = binary.LittleEndian.AppendUint64(b, tag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	return binary.LittleEndian.AppendUint32(b, checksum(b[at:]))
}

// ErrCorrupt says that bytes of a journal are neither an entry nor padding.
var ErrCorrupt = errors.New("corrupt journal entry")

// Frame is an entry as it stands in a data object.
type Frame struct {
	Tag, Entry uint64
	Offset     uint64 // in the object
	Payload    []byte // shares memory with what was parsed
}

// Size is how many bytes of the object it takes.
func (f Frame) Size() int { return len(f.Payload) + EntryOverhead }

// ParseFrame looks at b, which begins at an offset of a data object, and returns
// the first entry and how many bytes it and the padding before it take. Without
// an entry frame.Payload is nil: used bytes were padding, and at least need bytes
// must follow to tell more. No entry of the journal is longer than limit.
func ParseFrame(b []byte, offset, limit uint64) (frame Frame, used, need int, err error) {
	corrupt := func(format string, args ...any) (Frame, int, int, error) {
		return Frame{}, used, 0, fmt.Errorf("%w at offset %d: %s", ErrCorrupt, offset+uint64(used), fmt.Sprintf(format, args...))
	}
	for {
		rest := b[used:]
		if len(rest) < lookahead {
			if allZero(rest) {
				return Frame{}, used + len(rest), fixed, nil
			}
			return Frame{}, used, EntryOverhead, nil
		}
		if binary.LittleEndian.Uint64(rest) != preamble {
			gap := alignment - (offset+uint64(used))%alignment
			if !allZero(rest[:gap]) {
				return corrupt("neither an entry nor padding")
			}
			used += int(gap)
			continue
		}
		if len(rest) < fixed {
			return Frame{}, used, EntryOverhead, nil
		}
		if rest[8] != 1 {
			return corrupt("version %d", rest[8])
		}
		n := uint64(binary.LittleEndian.Uint32(rest[25:]))
		total := n + EntryOverhead
		if total > limit {
			return corrupt("payload of %d bytes", n)
		}
		if uint64(len(rest)) < total {
			return Frame{}, used, int(total), nil
		}
		if sum := binary.LittleEndian.Uint32(rest[fixed+n:]); sum != checksum(rest[:fixed+n]) {
			return corrupt("wrong checksum")
		}
		frame = Frame{
			Entry: binary.LittleEndian.Uint64(rest[9:]), Tag: binary.LittleEndian.Uint64(rest[17:]),
			Offset:  offset + uint64(used),
			Payload: rest[fixed : fixed+n : fixed+n],
		}
		return frame, used + int(total), 0, nil
	}
}

// NextFrame returns how much of b, which begins with nothing of use, is to be
// passed over until an entry may begin.
func NextFrame(b []byte) int {
	mark := binary.LittleEndian.AppendUint64(nil, preamble)
	if len(b) == 0 {
		return 0
	}
	if at := bytes.Index(b[1:], mark); at >= 0 {
		return 1 + at
	}
	// The end may be the beginning of a mark.
	return max(1, len(b)-len(mark)+1)
}

// LastFrame returns the last entry that is whole in b, which may begin and end in
// the middle of one. Something that only looks like an entry can be taken for one:
// it is for telling how far a journal is, not for replaying it.
func LastFrame(b []byte, limit uint64) (Frame, bool) {
	mark := binary.LittleEndian.AppendUint64(nil, preamble)
	for end := len(b); ; {
		at := bytes.LastIndex(b[:end], mark)
		if at < 0 {
			return Frame{}, false
		}
		if f, _, _, err := ParseFrame(b[at:], uint64(at), limit); err == nil && f.Payload != nil {
			return f, true
		}
		end = at + len(mark) - 1
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
