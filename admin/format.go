package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Format is how a reply is laid out.
type Format int

// The formats a request can ask for.
const (
	JSONPretty Format = iota // 4 spaces of indent, ends with a newline
	JSON                     // compact, no newline at the end
	XML
	XMLPretty
)

// ParseFormat reads a request's format. As in Ceph, absent or unknown means
// json-pretty. So do table and html here, which nothing is known to read.
func ParseFormat(s string) Format {
	switch s {
	case "json":
		return JSON
	case "xml":
		return XML
	case "xml-pretty":
		return XMLPretty
	}
	return JSONPretty
}

// String is the name a request uses.
func (f Format) String() string {
	switch f {
	case JSON:
		return "json"
	case XML:
		return "xml"
	case XMLPretty:
		return "xml-pretty"
	}
	return "json-pretty"
}

// render lays out a handler's reply.
func (f Format) render(prefix string, r Reply) ([]byte, error) {
	if r.Raw != nil {
		return r.Raw, nil
	}
	text := bytes.TrimSpace(r.JSON)
	if len(text) == 0 {
		return nil, nil
	}
	var buf bytes.Buffer
	switch f {
	case JSON:
		if err := json.Compact(&buf, text); err != nil {
			return nil, fmt.Errorf("reply of %q: %w", prefix, err)
		}
	case XML, XMLPretty:
		root := r.Root
		if root == "" {
			root = prefix
		}
		if err := toXML(&buf, root, text, f == XMLPretty); err != nil {
			return nil, fmt.Errorf("reply of %q as XML: %w", prefix, err)
		}
	default:
		if err := json.Indent(&buf, text, "", "    "); err != nil {
			return nil, fmt.Errorf("reply of %q: %w", prefix, err)
		}
		buf.WriteByte('\n')
	}
	return buf.Bytes(), nil
}

// toXML converts JSON as Ceph's XML output does: an object becomes nested
// elements named by its keys, a space in a name becomes an underscore, numbers
// and booleans stand as they are, null is an empty element.
//
// Two things Ceph's own code knows are not in JSON, so here Ceph may differ: the
// elements of an array are all called <item>, and a name that XML cannot have
// (a directory path, say, which Ceph prints as it is) has the offending
// characters replaced and is kept whole in a name attribute.
func toXML(w *bytes.Buffer, root string, text []byte, pretty bool) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	x := xmlWriter{w: w, dec: d, pretty: pretty}
	if err := x.element(root, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	if pretty {
		w.WriteByte('\n')
	}
	return nil
}

type xmlWriter struct {
	w      *bytes.Buffer
	dec    *json.Decoder
	pretty bool
}

// maxDepth matches the bound of encoding/json.
const maxDepth = 10000

func (x *xmlWriter) element(name string, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	tok, err := x.dec.Token()
	if err != nil {
		return err
	}
	tag, attr := xmlName(name)
	x.indent(depth)
	x.w.WriteString("<" + tag + attr + ">")
	switch t := tok.(type) {
	case json.Delim:
		x.newline()
		for x.dec.More() {
			child := "item"
			if t == '{' {
				key, err := x.dec.Token()
				if err != nil {
					return err
				}
				child, _ = key.(string)
			}
			if err := x.element(child, depth+1); err != nil {
				return err
			}
		}
		if _, err := x.dec.Token(); err != nil { // the closing delimiter
			return err
		}
		x.indent(depth)
	case string:
		xmlEscape(x.w, t)
	case json.Number:
		x.w.WriteString(t.String())
	case bool:
		fmt.Fprint(x.w, t)
	}
	x.w.WriteString("</" + tag + ">")
	x.newline()
	return nil
}

func (x *xmlWriter) indent(depth int) {
	if x.pretty {
		for range depth {
			x.w.WriteByte(' ')
		}
	}
}

func (x *xmlWriter) newline() {
	if x.pretty {
		x.w.WriteByte('\n')
	}
}

// xmlName returns a legal element name, and an attribute with the original
// where more than a space had to be replaced.
func xmlName(s string) (tag, attr string) {
	var b strings.Builder
	changed := s == ""
	for i, r := range s {
		// XML knows more letters; ASCII keeps clear of where its versions differ.
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		inner := r == '-' || r == '.' || r >= '0' && r <= '9'
		switch {
		case r == ' ' && i > 0:
			b.WriteByte('_')
		case letter, inner && i > 0:
			b.WriteRune(r)
		case inner:
			b.WriteByte('_')
			b.WriteRune(r)
			changed = true
		default:
			b.WriteByte('_')
			changed = true
		}
	}
	if !changed {
		return b.String(), ""
	}
	if b.Len() == 0 {
		b.WriteByte('_')
	}
	var a bytes.Buffer
	a.WriteString(` name="`)
	xmlEscape(&a, s)
	a.WriteByte('"')
	return b.String(), a.String()
}

// xmlEscape writes text; what XML cannot hold at all becomes U+FFFD.
func xmlEscape(w *bytes.Buffer, s string) {
	for _, r := range s {
		switch {
		case r == '<':
			w.WriteString("&lt;")
		case r == '>':
			w.WriteString("&gt;")
		case r == '&':
			w.WriteString("&amp;")
		case r == '\'':
			w.WriteString("&apos;")
		case r == '"':
			w.WriteString("&quot;")
		case r == '\r' || r == 0x7f:
			fmt.Fprintf(w, "&#x%02x;", r)
		case r < ' ' && r != '\t' && r != '\n', r == 0xfffe, r == 0xffff, r == utf8.RuneError:
			w.WriteRune(utf8.RuneError)
		default:
			w.WriteRune(r)
		}
	}
}
