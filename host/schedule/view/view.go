// Package view prints what there is of schedules as the rbd tool prints it: as
// tables, JSON or XML.
package view

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Object is a list of named values, in order.
type Object []Field

// Field is one of them: a string, an Object or an Array.
type Field struct {
	Name  string
	Value any
}

// Array is a list; Of is how each of its elements is called in XML.
type Array struct {
	Of     string
	Values []any
}

// JSON is the text of a value; pretty over many lines.
func JSON(v any, pretty bool) string {
	var b strings.Builder
	writeJSON(&b, v)
	b.WriteByte('\n')
	if !pretty {
		return b.String()
	}
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(b.String()), "", "    "); err != nil {
		return b.String() // cannot be: it was just written
	}
	return out.String()
}

func writeJSON(b *strings.Builder, v any) {
	switch v := v.(type) {
	case string:
		quote(b, v)
	case Object:
		b.WriteByte('{')
		for i, f := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			quote(b, f.Name)
			b.WriteByte(':')
			writeJSON(b, f.Value)
		}
		b.WriteByte('}')
	case Array:
		b.WriteByte('[')
		for i, e := range v.Values {
			if i > 0 {
				b.WriteByte(',')
			}
			writeJSON(b, e)
		}
		b.WriteByte(']')
	}
}

func quote(b *strings.Builder, s string) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // of a string, cannot fail
	b.Write(bytes.TrimRight(out.Bytes(), "\n"))
}

// XML is the text of a value that is called name.
func XML(name string, v any, pretty bool) string {
	var b strings.Builder
	writeXML(&b, name, v, pretty, 0)
	b.WriteByte('\n')
	return b.String()
}

func writeXML(b *strings.Builder, name string, v any, pretty bool, depth int) {
	indent := func(n int) {
		if pretty {
			b.WriteString(strings.Repeat(" ", n))
		}
	}
	end := func() {
		if pretty {
			b.WriteByte('\n')
		}
	}
	indent(depth)
	b.WriteString("<" + name + ">")
	switch v := v.(type) {
	case string:
		b.WriteString(strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(v))
	case Object:
		end()
		for _, f := range v {
			writeXML(b, f.Name, f.Value, pretty, depth+1)
		}
		indent(depth)
	case Array:
		end()
		for _, e := range v.Values {
			writeXML(b, v.Of, e, pretty, depth+1)
		}
		indent(depth)
	}
	b.WriteString("</" + name + ">")
	end()
}

// Table prints columns as wide as their widest entry, two blanks apart.
func Table(rows ...[]string) string {
	var width []int
	for _, r := range rows {
		for i, s := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(s))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, s := range r {
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(s + strings.Repeat(" ", width[i]-len(s)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}
