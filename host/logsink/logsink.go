// Package logsink is where the host's log lines go: a file that can be
// reopened, standard error, or both, and a ring of the latest lines in memory.
package logsink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	ringLines = 1000
	ringBytes = 1 << 20
)

// Sink takes the lines of a zerolog logger. Until Open it keeps them, so that
// the file will have those from before its name was known.
type Sink struct {
	console bool
	stderr  io.Writer

	mu       sync.Mutex
	opened   bool
	path     string
	file     *os.File
	stderrAt zerolog.Level // the least level for standard error
	ring     []entry
	ringSize int
}

type entry struct {
	level zerolog.Level
	line  []byte
}

// New returns a sink that sends lines of at least stderrAt to stderr. console
// chooses text for people instead of JSON.
func New(stderr io.Writer, stderrAt zerolog.Level, console bool) *Sink {
	return &Sink{stderr: stderr, stderrAt: stderrAt, console: console}
}

// Write implements io.Writer, for lines without a level.
func (s *Sink) Write(p []byte) (int, error) { return s.WriteLevel(zerolog.NoLevel, p) }

// WriteLevel implements zerolog.LevelWriter.
func (s *Sink) WriteLevel(level zerolog.Level, p []byte) (int, error) {
	line := bytes.Clone(p)
	if s.console {
		var b bytes.Buffer
		w := zerolog.ConsoleWriter{Out: &b, NoColor: true, TimeFormat: time.StampMilli}
		if _, err := w.Write(p); err == nil {
			line = b.Bytes()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(entry{level, line})
	s.toStderr(entry{level, line})
	if s.file != nil {
		_, _ = s.file.Write(line)
	}
	// An error here would have nowhere to go.
	return len(p), nil
}

func (s *Sink) toStderr(e entry) {
	if e.level >= s.stderrAt {
		_, _ = s.stderr.Write(e.line)
	}
}

func (s *Sink) keep(e entry) {
	s.ring = append(s.ring, e)
	s.ringSize += len(e.line)
	for len(s.ring) > ringLines || s.ringSize > ringBytes && len(s.ring) > 1 {
		s.ringSize -= len(s.ring[0].line)
		s.ring = s.ring[1:]
	}
}

// Open sends the log to the file at path from now on, beginning with the lines
// kept so far, and only lines of at least stderrAt to standard error. With an
// empty path, or if the file cannot be opened, all lines go to standard error,
// unless quiet is set.
func (s *Sink) Open(path string, stderrAt zerolog.Level, quiet bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.opened
	s.opened = true
	var err error
	if path != "" {
		err = s.openLocked(path)
	}
	if s.file == nil && !quiet {
		before := s.stderrAt
		s.stderrAt = zerolog.TraceLevel
		for _, e := range s.ring {
			if first && e.level < before {
				s.toStderr(e)
			}
		}
		return err
	}
	s.stderrAt = stderrAt
	if first && s.file != nil {
		for _, e := range s.ring {
			_, _ = s.file.Write(e.line)
		}
	}
	return err
}

func (s *Sink) openLocked(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log file: %w", err)
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	s.file, s.path = f, path
	return nil
}

// Reopen opens the file anew, after it was moved away.
func (s *Sink) Reopen(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path == "" {
		return nil
	}
	return s.openLocked(s.path)
}

// Flush has nothing to do: no line waits in memory.
func (s *Sink) Flush(context.Context) error { return nil }

// Dump writes the lines kept in memory to the log.
func (s *Sink) Dump(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stderr
	if s.file != nil {
		out = s.file
	}
	var errs []error
	put := func(text []byte) {
		_, err := out.Write(text)
		errs = append(errs, err)
	}
	put([]byte("--- begin dump of recent events ---\n"))
	for _, e := range s.ring {
		put(e.line)
	}
	put([]byte("--- end dump of recent events ---\n"))
	return errors.Join(errs...)
}

// Close closes the file.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}
