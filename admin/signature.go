package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Argument types of Ceph's command descriptions. The unmodified `ceph` command
// refuses a whole table in which it finds a type it does not know.
const (
	TypeString     = "CephString"
	TypeInt        = "CephInt"
	TypeFloat      = "CephFloat"
	TypeBool       = "CephBool"
	TypeChoices    = "CephChoices"
	TypeFilepath   = "CephFilepath"
	TypeSocketpath = "CephSocketpath"
	TypePoolname   = "CephPoolname"
	TypeObjectname = "CephObjectname"
	TypeUUID       = "CephUUID"
	TypePgid       = "CephPgid"
	TypeName       = "CephName"
	TypeIPAddr     = "CephIPAddr"
	TypeEntityAddr = "CephEntityAddr"
	TypeFragment   = "CephFragment"
)

// takesString holds the types whose value is a JSON string.
func takesString(typ string) bool {
	switch typ {
	case TypeString, TypeChoices, TypeFilepath, TypeSocketpath, TypePoolname,
		TypeObjectname, TypeUUID, TypePgid, TypeName, TypeIPAddr, TypeEntityAddr, TypeFragment:
		return true
	}
	return false
}

// knownType says whether the stock command line knows the type.
func knownType(typ string) bool {
	return takesString(typ) || typ == TypeInt || typ == TypeFloat || typ == TypeBool
}

// Signature is how a command is called: its literal words and its parameters.
type Signature struct {
	Words  []string
	Params []Param
}

// Param describes one argument.
type Param struct {
	Name     string
	Type     string
	Optional bool // req=false
	Many     bool // n=N: takes the rest; its value is an array
	Named    bool // positional=false: only as --name value
	Choices  []string

	attrs     map[string]string // everything else as given, for the description
	lo, hi    float64
	bounds    int // how many of lo and hi count
	goodchars *regexp.Regexp
}

// Prefix is what a request names the command by.
func (s Signature) Prefix() string { return strings.Join(s.Words, " ") }

// String spells the signature in the textual grammar.
func (s Signature) String() string {
	parts := slices.Clone(s.Words)
	for i := range s.Params {
		p := &s.Params[i]
		t := "name=" + p.Name + ",type=" + p.Type
		for _, k := range slices.Sorted(maps.Keys(p.attrs)) {
			t += "," + k + "=" + p.attrs[k]
		}
		parts = append(parts, t)
	}
	return strings.Join(parts, " ")
}

// ParseSignature reads Ceph's textual grammar: literal words, then parameters
// such as "name=val,type=CephString,n=N,req=false", separated by spaces.
func ParseSignature(text string) (Signature, error) {
	var sig Signature
	for tok := range strings.SplitSeq(text, " ") {
		switch {
		case tok == "":
		case strings.HasPrefix(tok, "name="):
			p, err := parseParam(tok)
			if err != nil {
				return Signature{}, fmt.Errorf("signature %q: %w", text, err)
			}
			sig.Params = append(sig.Params, p)
		case len(sig.Params) > 0:
			return Signature{}, fmt.Errorf("signature %q: word %q after a parameter", text, tok)
		default:
			sig.Words = append(sig.Words, tok)
		}
	}
	if err := sig.check(); err != nil {
		return Signature{}, fmt.Errorf("signature %q: %w", text, err)
	}
	return sig, nil
}

func (s Signature) check() error {
	if len(s.Words) == 0 {
		return errors.New("no literal word")
	}
	for _, w := range s.Words {
		if strings.ContainsFunc(w, func(r rune) bool { return r < ' ' }) {
			return fmt.Errorf("control character in word %q", w)
		}
	}
	seen := map[string]bool{"prefix": true, "format": true}
	for i := range s.Params {
		n := s.Params[i].Name
		if seen[n] {
			return fmt.Errorf("parameter name %q is reserved or used twice", n)
		}
		seen[n] = true
	}
	return nil
}

func parseParam(tok string) (Param, error) {
	attrs := map[string]string{}
	for kv := range strings.SplitSeq(tok, ",") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return Param{}, fmt.Errorf("parameter %q: %q is not key=value", tok, kv)
		}
		if _, dup := attrs[k]; dup {
			return Param{}, fmt.Errorf("parameter %q: key %q twice", tok, k)
		}
		attrs[k] = v
	}
	return newParam(attrs)
}

func newParam(attrs map[string]string) (Param, error) {
	p := Param{Name: attrs["name"], Type: attrs["type"], attrs: attrs}
	delete(attrs, "name")
	delete(attrs, "type")
	if p.Name == "" {
		return Param{}, errors.New("parameter without a name")
	}
	fail := func(format string, args ...any) (Param, error) {
		return Param{}, fmt.Errorf("parameter %q: "+format, append([]any{p.Name}, args...)...)
	}
	if p.Type == "" {
		p.Type = TypeString
	}
	if !knownType(p.Type) {
		return fail("unknown type %q", p.Type)
	}
	switch attrs["req"] {
	case "", "true":
	case "false":
		p.Optional = true
	default:
		return fail("req=%q", attrs["req"])
	}
	switch attrs["positional"] {
	case "", "true":
	case "false":
		p.Named = true
	default:
		return fail("positional=%q", attrs["positional"])
	}
	if p.Named && !p.Optional {
		return fail("positional=false needs req=false")
	}
	switch attrs["n"] {
	case "", "1":
	case "N", "n":
		p.Many = true
		if p.Type == TypeBool {
			return fail("n=N of booleans")
		}
	default:
		return fail("n=%q", attrs["n"])
	}
	if r, ok := attrs["range"]; ok {
		if p.Type != TypeInt && p.Type != TypeFloat {
			return fail("range of a %s", p.Type)
		}
		lo, hi, two := strings.Cut(r, "|")
		var err error
		if p.lo, err = strconv.ParseFloat(lo, 64); err != nil {
			return fail("range %q", r)
		}
		p.bounds = 1
		if two {
			if p.hi, err = strconv.ParseFloat(hi, 64); err != nil {
				return fail("range %q", r)
			}
			p.bounds = 2
		}
	}
	if p.Type == TypeChoices {
		p.Choices = strings.Split(attrs["strings"], "|")
		if slices.Contains(p.Choices, "") {
			return fail("empty choice in strings=%q", attrs["strings"])
		}
	}
	if g := attrs["goodchars"]; g != "" {
		re, err := regexp.Compile("^(?:" + g + ")$")
		if err != nil {
			return fail("goodchars: %w", err)
		}
		p.goodchars = re
	}
	return p, nil
}

// inRange compares as float64: exact for every bound anyone writes.
func (p *Param) inRange(v float64) bool {
	return (p.bounds < 1 || v >= p.lo) && (p.bounds < 2 || v <= p.hi)
}

func (p *Param) goodString(s string) bool {
	if p.Type == TypeChoices {
		return slices.Contains(p.Choices, s)
	}
	if p.goodchars != nil {
		for _, r := range s {
			if !p.goodchars.MatchString(string(r)) {
				return false
			}
		}
	}
	return true
}

// appendDescription writes the signature as get_command_descriptions has it:
// words as strings, parameters as objects with their keys in byte order.
func (s Signature) appendDescription(w *jsonWriter) {
	w.open('[')
	for _, word := range s.Words {
		w.str(word)
	}
	for i := range s.Params {
		p := &s.Params[i]
		all := maps.Clone(p.attrs)
		all["name"], all["type"] = p.Name, p.Type
		w.open('{')
		for _, k := range slices.Sorted(maps.Keys(all)) {
			w.key(k)
			switch k {
			case "req", "positional":
				w.bool(all[k] == "true")
			default:
				w.str(all[k])
			}
		}
		w.close('}')
	}
	w.close(']')
}

// Description is one command as its daemon describes it.
type Description struct {
	Signature Signature
	Help      string
}

// ParseDescriptions reads the reply to get_command_descriptions, in the order
// of its keys. Commands it cannot make sense of are left out, as a newer daemon
// may describe some in a way we do not know.
func ParseDescriptions(reply []byte) ([]Description, error) {
	var all map[string]struct {
		Sig  []json.RawMessage `json:"sig"`
		Help string            `json:"help"`
	}
	if err := json.Unmarshal(reply, &all); err != nil {
		return nil, fmt.Errorf("command descriptions: %w", err)
	}
	keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		if len(a) != len(b) { // cmd1000 follows cmd999
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	var list []Description
	for _, k := range keys {
		if sig, err := signatureFromJSON(all[k].Sig); err == nil {
			list = append(list, Description{Signature: sig, Help: all[k].Help})
		}
	}
	return list, nil
}

func signatureFromJSON(elems []json.RawMessage) (Signature, error) {
	var sig Signature
	for _, raw := range elems {
		var word string
		if json.Unmarshal(raw, &word) == nil {
			if len(sig.Params) > 0 {
				return sig, errors.New("word after a parameter")
			}
			sig.Words = append(sig.Words, word)
			continue
		}
		var obj map[string]any
		if err := json.Unmarshal(raw, &obj); err != nil {
			return sig, err
		}
		attrs := make(map[string]string, len(obj))
		for k, v := range obj {
			switch v := v.(type) {
			case string:
				attrs[k] = v
			case bool:
				attrs[k] = strconv.FormatBool(v)
			case float64:
				attrs[k] = strconv.FormatFloat(v, 'g', -1, 64)
			default:
				return sig, fmt.Errorf("parameter key %q is no plain value", k)
			}
		}
		p, err := newParam(attrs)
		if err != nil {
			return sig, err
		}
		sig.Params = append(sig.Params, p)
	}
	return sig, sig.check()
}
