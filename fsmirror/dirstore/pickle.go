package dirstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// The stock control plane stores each entry as a pickled dict of plain values.
// Only what such a dict takes is understood: dicts, marks, memos and scalars,
// never anything that names or calls code. Decoding takes no more memory than
// a small multiple of its input.

// Opcodes of the format, as far as they are understood.
const (
	opMark            = '('
	opStop            = '.'
	opBinInt          = 'J'
	opBinInt1         = 'K'
	opBinInt2         = 'M'
	opNone            = 'N'
	opBinUnicode      = 'X'
	opBinFloat        = 'G'
	opEmptyDict       = '}'
	opBinGet          = 'h'
	opBinPut          = 'q'
	opSetItem         = 's'
	opSetItems        = 'u'
	opProto           = 0x80
	opNewTrue         = 0x88
	opNewFalse        = 0x89
	opShortBinUnicode = 0x8c
	opMemoize         = 0x94
	opFrame           = 0x95
)

const maxProtocol = 5

var errTruncated = errors.New("truncated")

// mark is what MARK leaves on the stack.
type mark struct{}

type unpickler struct {
	in    []byte
	stack []any
	memo  map[int]any
}

// unpickleDict decodes a pickled dict from strings to None (nil), bool, int64,
// float64 and string.
func unpickleDict(b []byte) (map[string]any, error) {
	u := &unpickler{in: b, memo: make(map[int]any)}
	v, err := u.run()
	if err != nil {
		return nil, fmt.Errorf("decoding pickle: %w", err)
	}
	d, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("decoding pickle: not a dict")
	}
	return d, nil
}

func (u *unpickler) run() (any, error) {
	head, err := u.take(2)
	if err != nil {
		return nil, err
	}
	if head[0] != opProto || head[1] < 2 || head[1] > maxProtocol {
		return nil, errors.New("not of protocol 2 to 5")
	}
	for {
		op, err := u.take(1)
		if err != nil {
			return nil, err
		}
		if op[0] == opStop {
			if len(u.in) != 0 || len(u.stack) != 1 {
				return nil, errors.New("data left over")
			}
			return u.stack[0], nil
		}
		if err := u.step(op[0]); err != nil {
			return nil, err
		}
	}
}

func (u *unpickler) step(op byte) error {
	switch op {
	case opFrame:
		n, err := u.take(8)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(n) > uint64(len(u.in)) {
			return errTruncated
		}
	case opMark:
		u.push(mark{})
	case opEmptyDict:
		u.push(make(map[string]any))
	case opNone:
		u.push(nil)
	case opNewTrue:
		u.push(true)
	case opNewFalse:
		u.push(false)
	case opBinInt1:
		n, err := u.take(1)
		if err != nil {
			return err
		}
		u.push(int64(n[0]))
	case opBinInt2:
		n, err := u.take(2)
		if err != nil {
			return err
		}
		u.push(int64(binary.LittleEndian.Uint16(n)))
	case opBinInt:
		n, err := u.take(4)
		if err != nil {
			return err
		}
		u.push(int64(int32(binary.LittleEndian.Uint32(n))))
	case opBinFloat:
		n, err := u.take(8)
		if err != nil {
			return err
		}
		u.push(math.Float64frombits(binary.BigEndian.Uint64(n)))
	case opShortBinUnicode:
		n, err := u.take(1)
		if err != nil {
			return err
		}
		return u.text(uint64(n[0]))
	case opBinUnicode:
		n, err := u.take(4)
		if err != nil {
			return err
		}
		return u.text(uint64(binary.LittleEndian.Uint32(n)))
	case opMemoize:
		return u.remember(len(u.memo))
	case opBinPut:
		n, err := u.take(1)
		if err != nil {
			return err
		}
		return u.remember(int(n[0]))
	case opBinGet:
		n, err := u.take(1)
		if err != nil {
			return err
		}
		v, ok := u.memo[int(n[0])]
		if !ok {
			return errors.New("memo is empty")
		}
		u.push(v)
	case opSetItem:
		if len(u.stack) < 3 {
			return errors.New("stack is too short")
		}
		return u.setItems(len(u.stack) - 2)
	case opSetItems:
		for i := len(u.stack) - 1; i >= 0; i-- {
			if _, ok := u.stack[i].(mark); ok {
				at := i
				u.stack = append(u.stack[:at], u.stack[at+1:]...)
				return u.setItems(at)
			}
		}
		return errors.New("no mark")
	default:
		return fmt.Errorf("opcode %#02x is not allowed", op)
	}
	return nil
}

// setItems puts the pairs on the stack from index at into the dict below them.
func (u *unpickler) setItems(at int) error {
	if at < 1 || (len(u.stack)-at)%2 != 0 {
		return errors.New("stack is too short")
	}
	d, ok := u.stack[at-1].(map[string]any)
	if !ok {
		return errors.New("items for what is no dict")
	}
	for i := at; i < len(u.stack); i += 2 {
		k, ok := u.stack[i].(string)
		if !ok {
			return errors.New("key is no string")
		}
		switch u.stack[i+1].(type) {
		case nil, bool, int64, float64, string:
		default:
			return fmt.Errorf("value of %q is not plain", k)
		}
		d[k] = u.stack[i+1]
	}
	u.stack = u.stack[:at]
	return nil
}

func (u *unpickler) push(v any) { u.stack = append(u.stack, v) }

func (u *unpickler) remember(slot int) error {
	if len(u.stack) == 0 {
		return errors.New("stack is empty")
	}
	top := u.stack[len(u.stack)-1]
	if _, ok := top.(mark); ok {
		return errors.New("stack is empty")
	}
	u.memo[slot] = top
	return nil
}

func (u *unpickler) text(n uint64) error {
	b, err := u.take(n)
	if err != nil {
		return err
	}
	if !utf8.Valid(b) {
		return errors.New("string is not UTF-8")
	}
	u.push(string(b))
	return nil
}

func (u *unpickler) take(n uint64) ([]byte, error) {
	if n > uint64(len(u.in)) {
		return nil, errTruncated
	}
	b := u.in[:n]
	u.in = u.in[n:]
	return b, nil
}

// pickler writes a dict in one fixed shape: protocol 2, no memo, no frame,
// which every Python 3 reads.
type pickler struct{ out []byte }

func newPickler() *pickler { return &pickler{[]byte{opProto, 2, opEmptyDict, opMark}} }

func (p *pickler) text(s string) {
	p.out = append(p.out, opBinUnicode)
	p.out = binary.LittleEndian.AppendUint32(p.out, uint32(len(s)))
	p.out = append(p.out, s...)
}

func (p *pickler) setText(key, value string) {
	p.text(key)
	p.text(value)
}

func (p *pickler) setOne(key string) {
	p.text(key)
	p.out = append(p.out, opBinInt1, 1)
}

func (p *pickler) setFloat(key string, v float64) {
	p.text(key)
	p.out = append(p.out, opBinFloat)
	p.out = binary.BigEndian.AppendUint64(p.out, math.Float64bits(v))
}

func (p *pickler) bytes() []byte { return append(p.out, opSetItems, opStop) }
