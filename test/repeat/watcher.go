package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is a line of `go test -json`.
type event struct {
	Action string
	Test   string
	Output string
}

// watcher reads what `go test -json` writes.
type watcher struct {
	console, log io.Writer
	rest         []byte              // the begin of a line
	running      []string            // tests and parts of tests without a result
	said         map[string][]string // by test
	last         []string            // lines, whoever wrote them
	passed       []string            // tests that are done with, skipped ones included
	bad          []string            // tests that failed
}

const (
	lastLines = 40   // shown when the process dies
	mostLines = 1500 // shown of a failed test
)

func newWatcher(console, log io.Writer) *watcher {
	return &watcher{console: console, log: log, said: map[string][]string{}}
}

// Write takes further output.
func (w *watcher) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.line(string(line) + "\n")
		w.rest = rest
	}
}

func (w *watcher) line(line string) {
	var e event
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil {
		e = event{Action: "output", Output: line}
	}
	top, _, part := strings.Cut(e.Test, "/")
	switch e.Action {
	case "run":
		w.running = append(w.running, e.Test)
	case "output", "build-output":
		fmt.Fprint(w.log, e.Output)
		w.last = append(w.last, e.Output)
		w.last = w.last[max(0, len(w.last)-lastLines):]
		if top == "" {
			fmt.Fprint(w.console, e.Output)
			return
		}
		said := append(w.said[top], e.Output)
		w.said[top] = said[max(0, len(said)-mostLines):]
	case "pass", "skip", "fail":
		if e.Test == "" {
			return
		}
		w.running = slices.DeleteFunc(w.running, func(name string) bool { return name == e.Test })
		if part {
			return
		}
		if e.Action == "fail" {
			w.bad = append(w.bad, top)
			fmt.Fprint(w.console, strings.Join(w.said[top], ""))
		} else {
			w.passed = append(w.passed, top)
			for _, text := range w.said[top] {
				if strings.HasPrefix(text, "--- ") && strings.Contains(text, ": "+top+" (") {
					fmt.Fprint(w.console, text)
				}
			}
		}
		delete(w.said, top)
	}
}

// end is called when there is no more output. Tests without a result were
// under way when the process died.
func (w *watcher) end() {
	if len(w.rest) > 0 {
		w.line(string(w.rest) + "\n")
		w.rest = nil
	}
	if len(w.running) == 0 {
		return
	}
	fmt.Fprintf(w.console, "the process died during %s; the last it said:\n%s", strings.Join(w.running, ", "), strings.Join(w.last, ""))
}

// failed returns the tests that failed and those that were under way when the
// process died; the empty name where it is neither.
func (w *watcher) failed() []string {
	names := slices.Clone(w.bad)
	for _, name := range w.running {
		top, _, _ := strings.Cut(name, "/")
		names = append(names, top)
	}
	if len(names) == 0 {
		return []string{""}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
