package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
)

// The stock commands print JSON as Python does. So do these, for scripts that
// compare or cut the output.

// member is a member of an object whose order matters.
type member struct {
	name  string
	value any
}

// object prints as a JSON object in this order; list as an array.
type (
	object []member
	list   []any
)

// pyJSON encodes object, list, string, int64, float64, json.RawMessage (whose
// order is kept) and nil. With indent 0 it prints one line with a blank after
// each comma.
func pyJSON(v any, indent int) []byte {
	p := pyPrinter{indent: indent}
	p.print(v, 0)
	return p.out
}

type pyPrinter struct {
	out    []byte
	indent int
}

func (p *pyPrinter) print(v any, depth int) {
	switch v := v.(type) {
	case object:
		p.group('{', '}', len(v), depth, func(i int) {
			p.text(v[i].name)
			p.out = append(p.out, ": "...)
			p.print(v[i].value, depth+1)
		})
	case list:
		p.group('[', ']', len(v), depth, func(i int) { p.print(v[i], depth+1) })
	case string:
		p.text(v)
	case int64:
		p.out = strconv.AppendInt(p.out, v, 10)
	case uint64:
		p.out = strconv.AppendUint(p.out, v, 10)
	case float64:
		p.out = append(p.out, pyFloat(v)...)
	case bool:
		p.out = strconv.AppendBool(p.out, v)
	case json.Number:
		p.out = append(p.out, v...)
	case json.RawMessage:
		if tree, err := ordered(v); err == nil {
			p.print(tree, depth)
			return
		}
		p.out = append(p.out, "null"...)
	default:
		p.out = append(p.out, "null"...)
	}
}

func (p *pyPrinter) group(open, end byte, n, depth int, item func(int)) {
	p.out = append(p.out, open)
	for i := range n {
		if i > 0 {
			p.out = append(p.out, ',')
			if p.indent == 0 {
				p.out = append(p.out, ' ')
			}
		}
		p.line(depth + 1)
		item(i)
	}
	if n > 0 {
		p.line(depth)
	}
	p.out = append(p.out, end)
}

func (p *pyPrinter) line(depth int) {
	if p.indent > 0 {
		p.out = append(p.out, '\n')
		p.out = append(p.out, strings.Repeat(" ", depth*p.indent)...)
	}
}

func (p *pyPrinter) text(s string) {
	p.out = append(p.out, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			p.out = append(p.out, '\\', byte(r))
		case r == '\n':
			p.out = append(p.out, `\n`...)
		case r == '\r':
			p.out = append(p.out, `\r`...)
		case r == '\t':
			p.out = append(p.out, `\t`...)
		case r == '\b':
			p.out = append(p.out, `\b`...)
		case r == '\f':
			p.out = append(p.out, `\f`...)
		case r < 0x20 || r > 0x7e && r <= 0xffff && r != 0x7f:
			p.out = fmt.Appendf(p.out, `\u%04x`, r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			p.out = fmt.Appendf(p.out, `\u%04x\u%04x`, hi, lo)
		default:
			p.out = append(p.out, byte(r))
		}
	}
	p.out = append(p.out, '"')
}

// pyFloat prints a float as Python's repr does.
func pyFloat(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	mantissa, exp, ok := strings.Cut(s, "e")
	if n, err := strconv.Atoi(exp); ok && err == nil && (n < -4 || n >= 16) {
		sign := "+"
		if n < 0 {
			sign, n = "-", -n
		}
		return fmt.Sprintf("%se%s%02d", mantissa, sign, n)
	}
	s = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.ContainsAny(s, ".IN") {
		s += ".0"
	}
	return s
}

// ordered decodes JSON and keeps the order of members.
func ordered(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return orderedValue(d)
}

func orderedValue(d *json.Decoder) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		o := object{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := orderedValue(d)
			if err != nil {
				return nil, err
			}
			o = append(o, member{name.(string), v})
		}
		_, err := d.Token()
		return o, err
	case json.Delim('['):
		l := list{}
		for d.More() {
			v, err := orderedValue(d)
			if err != nil {
				return nil, err
			}
			l = append(l, v)
		}
		_, err := d.Token()
		return l, err
	}
	return t, nil
}
