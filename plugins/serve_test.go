package plugins

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPipeLogNeverBlocks(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(fds[0]), "r")
	defer r.Close()
	defer unix.Close(fds[1])
	log := &pipeLog{fd: fds[1]}
	line := append(bytes.Repeat([]byte("x"), 9999), '\n')
	written := 0
	for ; log.dropped == 0; written++ { // nobody reads: must come to dropping, not block
		if _, err := log.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		_, _ = log.Write(line)
	}
	buf := make([]byte, 1<<20)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Write([]byte("next\n")); err != nil {
		t.Fatal(err)
	}
	m, err := r.Read(buf[n:])
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSuffix(buf[:n+m], []byte("\n")), []byte("\n"))
	if last := string(lines[len(lines)-1]); last != "next" {
		t.Errorf("last line %q", last)
	}
	want := fmt.Sprintf(`{"level":"warn","dropped":%d,"message":"log lines were dropped while the host did not read them"}`, 5)
	if note := string(lines[len(lines)-2]); note != want {
		t.Errorf("note %q after %d lines", note, written)
	}
	// A line that was cut short must not swallow the note.
	for _, l := range lines[:len(lines)-2] {
		if len(bytes.Trim(l, "x")) != 0 {
			t.Errorf("spoilt line %q", l)
		}
	}
}
