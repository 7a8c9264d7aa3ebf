package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"syscall"
)

// frame looks for one whole request in what has arrived so far. It returns the
// JSON text of the request, or nil while more bytes are needed.
//
// A request whose first byte is NUL is of the old binary kind: four bytes, a
// big-endian number of which only the last byte counts.
//
// Bytes before seen were looked at by an earlier call.
func frame(buf []byte, seen int) []byte {
	if len(buf) == 0 {
		return nil
	}
	if buf[0] == 0 {
		if len(buf) < 4 {
			return nil
		}
		switch buf[3] {
		case 0:
			return []byte(`{"prefix":"0"}`)
		case 1:
			return []byte(`{"prefix":"perfcounters_dump"}`)
		case 2:
			return []byte(`{"prefix":"perfcounters_schema"}`)
		}
		return []byte(`{"prefix":"foo"}`)
	}
	if i := bytes.IndexAny(buf[seen:], "\x00\n"); i >= 0 {
		return buf[: seen+i : seen+i]
	}
	return nil
}

// parseRequest reads the JSON of a request into its prefix, format and
// arguments. As in Ceph, argument values are strings, booleans, numbers or
// arrays of one of strings and numbers; anything else spoils the whole request.
func parseRequest(text []byte) (Request, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil || raw == nil {
		return Request{}, Errorf(syscall.EINVAL, "invalid json")
	}
	args := make(map[string]any, len(raw))
	for k, v := range raw {
		val, err := parseValue(v)
		if err != nil {
			return Request{}, Errorf(syscall.EINVAL, "invalid json")
		}
		args[k] = val
	}
	text2 := func(key string) (string, bool) {
		v, ok := args[key]
		if !ok {
			return "", true
		}
		s, ok := v.(string)
		return s, ok
	}
	prefix, ok1 := text2("prefix")
	format, ok2 := text2("format")
	if !ok1 || !ok2 {
		return Request{}, Errorf(syscall.EINVAL, "invalid json, missing format and/or prefix")
	}
	delete(args, "prefix")
	delete(args, "format")
	return Request{Prefix: prefix, Format: ParseFormat(format), Args: args}, nil
}

var errValue = errors.New("not a value a command takes")

// parseValue returns string, bool, int64, float64 or a slice of string, int64
// or float64.
func parseValue(raw json.RawMessage) (any, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return nil, errValue
	}
	switch raw[0] {
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	case 't':
		return true, nil
	case 'f':
		return false, nil
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, err
		}
		return parseList(list)
	case '{', 'n':
		return nil, errValue
	}
	return parseNumber(string(raw))
}

func parseNumber(s string) (any, error) {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return i, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, errValue
	}
	return f, nil
}

func parseList(list []json.RawMessage) (any, error) {
	if len(list) == 0 {
		return []string{}, nil
	}
	first, err := parseValue(list[0])
	if err != nil {
		return nil, err
	}
	switch first.(type) {
	case string:
		return collect[string](list)
	case int64:
		return collect[int64](list)
	case float64:
		return collect[float64](list)
	}
	return nil, errValue
}

func collect[T any](list []json.RawMessage) (any, error) {
	out := make([]T, 0, len(list))
	for _, raw := range list {
		v, err := parseValue(raw)
		if err != nil {
			return nil, err
		}
		t, ok := v.(T)
		if !ok {
			return nil, errValue
		}
		out = append(out, t)
	}
	return out, nil
}

// checkArgs holds a request against the parameters of its command and returns
// the arguments the handler gets: declared ones only, each of its type.
func (s Signature) checkArgs(args map[string]any) (map[string]any, error) {
	bad := Errorf(syscall.EINVAL, "invalid command json")
	out := make(map[string]any, len(s.Params))
	for i := range s.Params {
		p := &s.Params[i]
		v, given := args[p.Name]
		if !given {
			if p.Optional {
				continue
			}
			return nil, bad
		}
		v, ok := p.accept(v)
		if !ok {
			return nil, bad
		}
		out[p.Name] = v
	}
	return out, nil
}

func (p *Param) accept(v any) (any, bool) {
	if !p.Many {
		return p.acceptOne(v)
	}
	switch list := v.(type) {
	case []string:
		if len(list) == 0 {
			return p.emptyList(), true
		}
		return acceptAll[string](p, list)
	case []int64:
		if p.Type == TypeFloat {
			return acceptAll[float64](p, list)
		}
		return acceptAll[int64](p, list)
	case []float64:
		return acceptAll[float64](p, list)
	}
	return nil, false
}

// emptyList gives the handler the slice type it expects of this parameter.
func (p *Param) emptyList() any {
	switch p.Type {
	case TypeInt:
		return []int64{}
	case TypeFloat:
		return []float64{}
	}
	return []string{}
}

func acceptAll[To, From any](p *Param, list []From) (any, bool) {
	out := make([]To, 0, len(list))
	for _, v := range list {
		a, ok := p.acceptOne(v)
		if !ok {
			return nil, false
		}
		t, ok := a.(To)
		if !ok {
			return nil, false
		}
		out = append(out, t)
	}
	return out, true
}

func (p *Param) acceptOne(v any) (any, bool) {
	switch v := v.(type) {
	case string:
		return v, takesString(p.Type) && p.goodString(v)
	case bool:
		return v, p.Type == TypeBool
	case int64:
		switch p.Type {
		case TypeInt:
			return v, p.inRange(float64(v))
		case TypeFloat:
			// Stock wants 5.0 here; 5 can mean nothing else.
			return float64(v), p.inRange(float64(v))
		}
	case float64:
		return v, p.Type == TypeFloat && p.inRange(v)
	}
	return nil, false
}
