package admin

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// jsonWriter writes compact JSON whose keys stand in the order of the calls,
// with strings escaped as Ceph escapes them (no HTML escapes, UTF-8 as it is).
type jsonWriter struct {
	b     []byte
	comma bool
}

func (w *jsonWriter) sep() {
	if w.comma {
		w.b = append(w.b, ',')
	}
	w.comma = true
}

func (w *jsonWriter) open(c byte) {
	w.sep()
	w.b = append(w.b, c)
	w.comma = false
}

func (w *jsonWriter) close(c byte) {
	w.b = append(w.b, c)
	w.comma = true
}

func (w *jsonWriter) key(k string) {
	w.sep()
	w.b = appendJSONString(w.b, k)
	w.b = append(w.b, ':')
	w.comma = false
}

func (w *jsonWriter) str(s string) {
	w.sep()
	w.b = appendJSONString(w.b, s)
}

func (w *jsonWriter) raw(s string) {
	w.sep()
	w.b = append(w.b, s...)
}

func (w *jsonWriter) uint(v uint64) { w.raw(strconv.FormatUint(v, 10)) }
func (w *jsonWriter) bool(v bool)   { w.raw(strconv.FormatBool(v)) }

func (w *jsonWriter) strs(list []string) {
	w.open('[')
	for _, s := range list {
		w.str(s)
	}
	w.close(']')
}

// value writes any value encoding/json can; nil becomes "".
func (w *jsonWriter) value(v any) error {
	switch v := v.(type) {
	case nil:
		w.str("")
	case string:
		w.str(v)
	default:
		b, err := encodeJSON(v)
		if err != nil {
			return err
		}
		w.raw(string(b))
	}
	return nil
}

func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends s quoted. Bytes that are not UTF-8 become U+FFFD:
// Ceph passes them through, but then its reply is no JSON.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for len(s) > 0 {
		c := s[0]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s)
			b = utf8.AppendRune(b, r)
			s = s[n:]
			continue
		}
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
		s = s[1:]
	}
	return append(b, '"')
}
