package admin

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MatchError says why words on a command line are no command.
type MatchError struct {
	Reason  string   // what is wrong with the arguments, when the command is clear
	Usage   []string // of that command, or of those that come closest
	Command string   // prefix of the command, when it is clear
}

// Error words it as the `ceph` command does.
func (e *MatchError) Error() string {
	if e.Command != "" {
		return "Invalid command: " + e.Reason + "\n" + strings.Join(e.Usage, "\n")
	}
	return fmt.Sprintf("no valid command found; %d closest matches:\n%s", len(e.Usage), strings.Join(e.Usage, "\n"))
}

// Match finds the command that words name and reads its arguments, as the
// `ceph` command does with the descriptions a daemon sends: parameters by
// position, as --name=value or as --name value, and --name alone for a boolean.
// Where several commands fit, the one with more literal words does.
func Match(cmds []Description, words []string) (prefix string, args map[string]any, err error) {
	var fits []Description
	for _, d := range cmds {
		if n := len(d.Signature.Words); n <= len(words) && slices.Equal(d.Signature.Words, words[:n]) {
			fits = append(fits, d)
		}
	}
	slices.SortStableFunc(fits, func(a, b Description) int {
		return len(b.Signature.Words) - len(a.Signature.Words)
	})
	var first *MatchError
	for _, d := range fits {
		sig := d.Signature
		args, err := sig.parseWords(words[len(sig.Words):])
		if err == nil {
			return sig.Prefix(), args, nil
		}
		if first == nil {
			first = &MatchError{Reason: err.Error(), Command: sig.Prefix(), Usage: []string{sig.Usage() + " :  " + d.Help}}
		}
	}
	near, shared := closest(cmds, words)
	if first == nil || shared > len(fits[0].Signature.Words) {
		first = &MatchError{Usage: near}
	}
	return "", nil, first
}

// closest returns the usage of up to ten commands that share most leading
// words, and how many those are.
func closest(cmds []Description, words []string) (list []string, best int) {
	for _, d := range cmds {
		n := 0
		for n < len(words) && n < len(d.Signature.Words) && strings.HasPrefix(d.Signature.Words[n], words[n]) {
			n++
			if d.Signature.Words[n-1] != words[n-1] {
				break
			}
		}
		if n < best {
			continue
		}
		if n > best {
			best, list = n, nil
		}
		if len(list) < 10 {
			list = append(list, d.Signature.Usage())
		}
	}
	return list, best
}

// Usage is a one-line reminder of the syntax.
func (s Signature) Usage() string {
	parts := slices.Clone(s.Words)
	for i := range s.Params {
		p := &s.Params[i]
		var u string
		flag := "--" + strings.ReplaceAll(p.Name, "_", "-")
		switch {
		case p.Type == TypeBool:
			u = flag
		case p.Named && p.Type == TypeChoices:
			u = flag + " {" + strings.Join(p.Choices, "|") + "}"
		case p.Named:
			u = flag + " <value>"
		case p.Type == TypeChoices:
			u = "<" + p.Name + ":" + strings.Join(p.Choices, "|") + ">"
		case p.Type == TypeInt:
			u = "<" + p.Name + ":int>"
		case p.Type == TypeFloat:
			u = "<" + p.Name + ":float>"
		default:
			u = "<" + p.Name + ">"
		}
		if p.Many {
			u += "..."
		}
		if p.Optional {
			u = "[" + u + "]"
		}
		parts = append(parts, u)
	}
	return strings.Join(parts, " ")
}

func (s Signature) param(name string) *Param {
	name = strings.ReplaceAll(name, "-", "_")
	for i := range s.Params {
		if s.Params[i].Name == name {
			return &s.Params[i]
		}
	}
	return nil
}

// parseWords reads the words behind the literal ones.
func (s Signature) parseWords(words []string) (map[string]any, error) {
	args := map[string]any{}
	next := 0 // parameter the next positional word is for
	for len(words) > 0 {
		word := words[0]
		p, value, used := s.keyword(words)
		if p != nil {
			if err := p.store(args, value, true); err != nil {
				return nil, err
			}
			words = words[used:]
			continue
		}
		taken := false
		for next < len(s.Params) && !taken {
			p := &s.Params[next]
			_, given := args[p.Name]
			switch {
			case p.Named, given && !p.Many:
				next++
				continue
			case strings.HasPrefix(word, "--") && !s.takesDashes(p, word):
				return nil, fmt.Errorf("unexpected argument '%s'", word)
			}
			if err := p.store(args, word, false); err != nil {
				if !p.Optional {
					return nil, err
				}
				next++ // not for this one, perhaps for the next
				continue
			}
			taken = true
		}
		if !taken {
			return nil, fmt.Errorf("unused arguments: %s", strings.Join(words, " "))
		}
		words = words[1:]
	}
	for i := range s.Params {
		p := &s.Params[i]
		if _, given := args[p.Name]; !given && !p.Optional {
			return nil, fmt.Errorf("missing required parameter %s", p.Name)
		}
	}
	return args, nil
}

// keyword recognises --name=value, --name value and --switch.
func (s Signature) keyword(words []string) (p *Param, value string, used int) {
	body, ok := strings.CutPrefix(words[0], "--")
	if !ok {
		return nil, "", 0
	}
	name, value, given := strings.Cut(body, "=")
	p = s.param(name)
	switch {
	case p == nil, given && value == "":
		return nil, "", 0
	case given:
		return p, value, 1
	case p.Type == TypeBool:
		return p, "true", 1
	case len(words) > 1:
		return p, words[1], 2
	}
	return nil, "", 0
}

// takesDashes lists what may begin with two dashes and yet be a value.
func (s Signature) takesDashes(p *Param, word string) bool {
	return p.Type == TypeChoices || s.Words[0] == "injectargs" || word == "--force" ||
		strings.HasPrefix(word, "--yes-i-really-")
}

// store checks a word and adds its value to args.
func (p *Param) store(args map[string]any, word string, keyword bool) error {
	if !p.Many {
		v, err := p.parseWord(word)
		if err == nil {
			args[p.Name] = v
		}
		return err
	}
	parts := []string{word}
	if keyword || p.Type != TypeString { // a string may contain a comma
		parts = strings.Split(word, ",")
	}
	list, _ := args[p.Name].([]any)
	for _, part := range parts {
		v, err := p.parseWord(part)
		if err != nil {
			return err
		}
		list = append(list, v)
	}
	args[p.Name] = list
	return nil
}

var (
	leadingZero = regexp.MustCompile(`^[+-]?0[0-9]*[1-9]`)
	uuidForm    = regexp.MustCompile(`^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$`)
	pgidForm    = regexp.MustCompile(`^[0-9]+\.[0-9a-fA-F]+$`)
	nameForm    = regexp.MustCompile(`^(\*|mon|mgr|(mon|client|mds|mgr)\..*|osd\.([0-9]+|\*))$`)
)

// parseWord reads one word as a value of the parameter. Addresses, pool and
// object names and the like are left for the daemon to judge.
func (p *Param) parseWord(s string) (any, error) {
	switch p.Type {
	case TypeInt:
		v, err := strconv.ParseInt(s, 0, 64)
		if err != nil || leadingZero.MatchString(s) {
			return nil, fmt.Errorf("%s doesn't represent an int", s)
		}
		if !p.inRange(float64(v)) {
			return nil, fmt.Errorf("%d not in range %s", v, p.attrs["range"])
		}
		return v, nil
	case TypeFloat:
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%s doesn't represent a float", s)
		}
		if !p.inRange(v) {
			return nil, fmt.Errorf("%v not in range %s", v, p.attrs["range"])
		}
		return wireFloat(v), nil
	case TypeBool:
		switch strings.ToLower(s) {
		case "true", "1":
			return true, nil
		case "false", "0":
			return false, nil
		}
		return nil, fmt.Errorf("%s not one of 'true', 'false'", s)
	case TypeChoices:
		if !p.goodString(s) {
			return nil, fmt.Errorf("%s not in %s", s, strings.Join(p.Choices, "|"))
		}
	case TypeString:
		if !p.goodString(s) {
			return nil, fmt.Errorf("invalid chars in %s", s)
		}
	case TypeUUID:
		if !uuidForm.MatchString(s) {
			return nil, fmt.Errorf("invalid UUID %s", s)
		}
	case TypePgid:
		if !pgidForm.MatchString(s) {
			return nil, fmt.Errorf("%s is no pgid", s)
		}
	case TypeName:
		if !nameForm.MatchString(s) {
			return nil, fmt.Errorf("%s is no name of the form type.id", s)
		}
	case TypeFilepath:
		return filepath.Abs(s)
	}
	return s, nil
}

// wireFloat is sent with a decimal point even where it is whole: a stock daemon
// takes 5 for an integer and then refuses it.
type wireFloat float64

// MarshalJSON writes the number so that it reads as a float.
func (f wireFloat) MarshalJSON() ([]byte, error) {
	s := strconv.FormatFloat(float64(f), 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return []byte(s), nil
}
