// Command repeat runs a `go test` command, and again what has not passed:
//
//	go run ./test/repeat -log bin/e2e.log -skip ^TestRBD -- go test -timeout 30m ./test/e2e
//
// On a loaded machine a deadline can pass that a real fault would miss again,
// and a library can take the whole process with it. Everything goes to the log;
// the console gets results, and all that failed tests have to say.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	logPath := flag.String("log", "", "file for all output (required)")
	tries := flag.Int("tries", 3, "how often a test may fail")
	skip := flag.String("skip", "", "tests that are not to be run")
	flag.Parse()
	if *logPath == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *logPath, *skip, *tries, flag.Args()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(ctx context.Context, console io.Writer, logPath, skip string, tries int, command []string) error {
	if err := os.MkdirAll(filepath.Dir(logPath), 0o755); err != nil {
		return fmt.Errorf("make a directory for the log: %w", err)
	}
	log, err := os.Create(logPath)
	if err != nil {
		return fmt.Errorf("make the log: %w", err)
	}
	defer log.Close()
	var passed []string
	failures := map[string]int{} // by test; what is no test's is the empty name's
	for {
		w := newWatcher(console, log)
		err := once(ctx, w, withFlags(command, skipping(skip, passed)))
		w.end()
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		passed = append(passed, w.passed...)
		for _, name := range w.failed() {
			if failures[name]++; failures[name] == tries {
				return fmt.Errorf("failed: %w; all output is in %s", err, logPath)
			}
		}
		fmt.Fprintf(console, "once more, without the %d tests that passed or were skipped: %v\n", len(passed), err)
	}
}

// once runs the command.
func once(ctx context.Context, w *watcher, command []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = w, w
	// Clusters have to be taken down.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Minute
	return cmd.Run()
}

// withFlags puts the flags after the words "go test" of a command.
func withFlags(command []string, skip string) []string {
	var out []string
	for i, word := range command {
		out = append(out, word)
		if word == "test" && i > 0 && filepath.Base(command[i-1]) == "go" {
			out = append(out, "-json")
			if skip != "" {
				out = append(out, "-skip", skip)
			}
			return append(out, command[i+1:]...)
		}
	}
	return out
}

// skipping returns the pattern that leaves out what skip says and the tests
// named.
func skipping(skip string, names []string) string {
	if len(names) == 0 {
		return skip
	}
	all := "^(" + strings.Join(names, "|") + ")$"
	if skip != "" {
		all = skip + "|" + all
	}
	return all
}
