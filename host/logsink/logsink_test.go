package logsink

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFileHasTheEarlyLines(t *testing.T) {
	var stderr bytes.Buffer
	s := New(&stderr, zerolog.ErrorLevel, false)
	log := zerolog.New(s)
	log.Info().Msg("early")
	log.Error().Msg("bad")
	path := filepath.Join(t.TempDir(), "log")
	if err := s.Open(path, zerolog.ErrorLevel, false); err != nil {
		t.Fatal(err)
	}
	log.Info().Msg("late")
	want := `{"level":"info","message":"early"}
{"level":"error","message":"bad"}
{"level":"info","message":"late"}
`
	if got := read(t, path); got != want {
		t.Errorf("file:\n%s", got)
	}
	if got := stderr.String(); got != `{"level":"error","message":"bad"}`+"\n" {
		t.Errorf("stderr:\n%s", got)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	log.Info().Msg("to the moved file")
	if err := s.Reopen(t.Context()); err != nil {
		t.Fatal(err)
	}
	log.Info().Msg("to the new file")
	if got := read(t, path); got != `{"level":"info","message":"to the new file"}`+"\n" {
		t.Errorf("new file:\n%s", got)
	}
	if !strings.HasSuffix(read(t, path+".1"), "to the moved file\"}\n") {
		t.Error("line lost before the reopening")
	}
	if err := s.Dump(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); strings.Count(got, "early") != 1 || !strings.Contains(got, "begin dump") {
		t.Errorf("after the dump:\n%s", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutFile(t *testing.T) {
	for _, path := range []string{"", "/no/such/dir/log"} {
		var stderr bytes.Buffer
		s := New(&stderr, zerolog.ErrorLevel, true)
		log := zerolog.New(s)
		log.Info().Msg("early")
		if err := s.Open(path, zerolog.ErrorLevel, false); (err != nil) != (path != "") {
			t.Errorf("%q: %v", path, err)
		}
		log.Info().Msg("late")
		if got := stderr.String(); !strings.Contains(got, "INF early") || !strings.Contains(got, "INF late") {
			t.Errorf("%q:\n%s", path, got)
		}
	}
}

func TestRingIsBounded(t *testing.T) {
	s := New(&bytes.Buffer{}, zerolog.Disabled, false)
	for range 3 * ringLines {
		_, _ = s.Write(bytes.Repeat([]byte("x"), 10))
	}
	if len(s.ring) != ringLines {
		t.Errorf("%d lines", len(s.ring))
	}
	for range 20 {
		_, _ = s.Write(bytes.Repeat([]byte("x"), ringBytes/10))
	}
	if s.ringSize > ringBytes {
		t.Errorf("%d bytes", s.ringSize)
	}
}
