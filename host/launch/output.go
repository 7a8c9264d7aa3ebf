package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// maxLine is where longer lines are cut into pieces.
	maxLine = 256 << 10
	// keptWords is how many raw lines and errors are remembered as the last words.
	keptWords = 8
	// maxWord bounds each of them.
	maxWord = 400
	// lastTime is how long before the end a line must have been printed to have
	// to do with it.
	lastTime = 10 * time.Second
)

// output carries what a plugin prints into the host's log: JSON lines with
// their level and fields, anything else as it is with stderr=raw.
type output struct {
	log zerolog.Logger

	mu      sync.Mutex
	last    []word // what it said before the end, for the reason of a crash
	crashed bool   // a crash message has begun: all that follows belongs to it
}

type word struct {
	at   time.Time
	text string
}

func newOutput(log zerolog.Logger) *output { return &output{log: log} }

// stream returns a writer for one of the plugin's output streams.
func (o *output) stream() io.Writer { return &stream{to: o} }

type stream struct {
	to  *output
	mu  sync.Mutex
	buf []byte
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = append(s.buf, p...)
	for {
		i := bytes.IndexByte(s.buf, '\n')
		rest := i + 1
		if i < 0 && len(s.buf) >= maxLine {
			i, rest = maxLine, maxLine
		}
		if i < 0 {
			return len(p), nil
		}
		s.to.line(s.buf[:i])
		s.buf = append(s.buf[:0], s.buf[rest:]...)
	}
}

func (o *output) line(line []byte) {
	line = bytes.TrimRight(line, "\r")
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	if fields, err := parseFields(line); err == nil {
		if o.structured(fields) {
			return
		}
	}
	o.raw(string(line))
}

type field struct {
	key string
	raw json.RawMessage
}

// parseFields reads a JSON object and keeps the order of its members.
func parseFields(line []byte) ([]field, error) {
	if line[0] != '{' || !json.Valid(line) {
		return nil, errors.New("not a JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	var fields []field
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		f := field{key: key.(string)}
		if err := dec.Decode(&f.raw); err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	return fields, nil
}

// structured logs a line of zerolog or hclog; it returns false for other JSON.
func (o *output) structured(fields []field) bool {
	level, message, known := zerolog.InfoLevel, "", false
	var rest []field
	for _, f := range fields {
		switch f.key {
		case "level", "@level":
			var text string
			if json.Unmarshal(f.raw, &text) != nil {
				return false
			}
			if l, err := zerolog.ParseLevel(text); err == nil && text != "" {
				level = l
			}
			known = true
		case "message", "@message":
			if json.Unmarshal(f.raw, &message) != nil {
				return false
			}
		case "time", "@timestamp": // the host stamps the line
		default:
			rest = append(rest, f)
		}
	}
	if !known {
		return false
	}
	// The plugin decided to log it; a fatal line is an error of the host's.
	e := o.log.WithLevel(min(level, zerolog.ErrorLevel))
	text := message
	for _, f := range rest {
		e = e.RawJSON(strings.TrimPrefix(f.key, "@"), f.raw)
		if f.key == zerolog.ErrorFieldName {
			text += ": " + strings.Trim(string(f.raw), `"`)
		}
	}
	e.Msg(message)
	if level >= zerolog.ErrorLevel {
		o.mu.Lock()
		o.keepLocked(text)
		o.mu.Unlock()
	}
	return true
}

// keepLocked remembers a line as one of the last words.
func (o *output) keepLocked(line string) {
	if len(line) > maxWord {
		line = line[:maxWord] + "…"
	}
	w := word{time.Now(), line}
	switch {
	case len(o.last) < keptWords:
		o.last = append(o.last, w)
	case !o.crashed:
		o.last = append(o.last[1:], w)
	}
}

// crashMarks begin what a dying process prints.
func crashMarks() []string {
	return []string{"panic: ", "fatal error: ", "runtime: ", "SIGSEGV", "SIGABRT", "terminate called", "*** Caught signal", "ceph_assert", "FAILED ceph_assert", "double free", "malloc(): ", "free(): ", "corrupted "}
}

func (o *output) raw(line string) {
	o.mu.Lock()
	if !o.crashed {
		for _, mark := range crashMarks() {
			if strings.Contains(line, mark) {
				// The lines before it were ordinary, and the first lines of a
				// crash tell more than the last.
				o.crashed, o.last = true, nil
				break
			}
		}
	}
	o.keepLocked(line)
	crashed := o.crashed
	o.mu.Unlock()

	level := zerolog.InfoLevel
	if crashed || strings.Contains(line, " -1 ") {
		level = zerolog.ErrorLevel // Ceph's own mark of an error
	}
	o.log.WithLevel(level).Str("stderr", "raw").Msg(line)
}

// lastWords returns what was said shortly before the given end.
func (o *output) lastWords(end time.Time) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var words []string
	for _, w := range o.last {
		if end.Sub(w.at) < lastTime {
			words = append(words, w.text)
		}
	}
	return strings.Join(words, " | ")
}
