package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goTest is a stand-in for `go test -json` that does something else at each
// call.
const goTest = `#!/bin/sh
say() { printf "%s\n" "$1"; }
echo "$@" >> calls
say '{"Action":"output","Output":"noise\n"}'
case $(wc -l < calls) in
1)
	say '{"Action":"run","Test":"TestGood"}'
	say '{"Action":"output","Test":"TestGood","Output":"    good.go:1: chatter\n"}'
	say '{"Action":"output","Test":"TestGood/part","Output":"--- PASS: TestGood/part (0.00s)\n"}'
	say '{"Action":"output","Test":"TestGood","Output":"--- PASS: TestGood (0.00s)\n"}'
	say '{"Action":"pass","Test":"TestGood"}'
	say '{"Action":"run","Test":"TestBad"}'
	say '{"Action":"run","Test":"TestBad/part"}'
	say '{"Action":"output","Test":"TestBad/part","Output":"    bad.go:7: what is wrong\n"}'
	say '{"Action":"fail","Test":"TestBad/part"}'
	say '{"Action":"fail","Test":"TestBad"}'
	say '{"Action":"run","Test":"TestNone"}'
	say '{"Action":"skip","Test":"TestNone"}'
	say '{"Action":"run","Test":"TestDying"}'
	say '{"Action":"run","Test":"TestDying/a"}'
	say '{"Action":"pass","Test":"TestDying/a"}'
	say '{"Action":"run","Test":"TestDying/b"}'
	echo 'terminate called' >&2
	printf '%s' '{"Action":"output","Output":"signal: aborted\n"}'
	exit 1;;
2)
	say '{"Action":"run","Test":"TestBad"}'
	say '{"Action":"pass","Test":"TestBad"}'
	exit 1;;
esac
exit $(cat end)
`

func prepare(t *testing.T, end string) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile("go", []byte(goTest), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("end", []byte(end), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	prepare(t, "0")
	var console bytes.Buffer
	command := []string{"sh", "./go", "test", "-timeout", "5m", "./pkg"}
	if err := run(t.Context(), &console, filepath.Join("some", "log"), "^TestOther", 3, command); err != nil {
		t.Fatal(err)
	}
	text := console.String()
	for _, want := range []string{"--- PASS: TestGood", "what is wrong", "died during TestDying, TestDying/b;", "terminate called", "signal: aborted", "without the 2 tests", "without the 3 tests"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not on the console:\n%s", want, text)
		}
	}
	if strings.Count(text, "TestGood/part") > 1 {
		t.Errorf("parts of a good test are on the console:\n%s", text)
	}
	if strings.Count(text, "chatter") > 1 { // once among the last lines
		t.Errorf("what a good test says is on the console:\n%s", text)
	}
	log, err := os.ReadFile(filepath.Join("some", "log"))
	if err != nil || !bytes.Contains(log, []byte("chatter")) || !bytes.Contains(log, []byte("what is wrong")) {
		t.Errorf("the log is %s, %v", log, err)
	}
	calls, err := os.ReadFile("calls")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"test -json -skip ^TestOther -timeout 5m ./pkg",
		"test -json -skip ^TestOther|^(TestGood|TestNone)$ -timeout 5m ./pkg",
		"test -json -skip ^TestOther|^(TestGood|TestNone|TestBad)$ -timeout 5m ./pkg",
	}
	if got := strings.Split(strings.TrimSpace(string(calls)), "\n"); !slices.Equal(got, want) {
		t.Errorf("calls were %q", got)
	}
}

func TestFails(t *testing.T) {
	prepare(t, "3")
	var console bytes.Buffer
	if err := run(t.Context(), &console, "log", "", 3, []string{"sh", "./go", "test"}); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v", err)
	}
	// Once with tests that fail, three times with what is no test's failure.
	if calls, err := os.ReadFile("calls"); err != nil || strings.Count(string(calls), "\n") != 4 {
		t.Errorf("calls were %s, %v", calls, err)
	}
}

func TestFlags(t *testing.T) {
	got := withFlags([]string{"bed", "enter", "--", "go", "test", "x"}, "")
	if want := []string{"bed", "enter", "--", "go", "test", "-json", "x"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
