package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of /proc's processor times (USER_HZ, the same on every
// architecture that Ceph is built for).
const clockTick = 10 * time.Millisecond

// parties are the processes whose processor time is told apart, by name.
type parties map[string][]int

// usage is the processor time of each party, user and system together.
type usage map[string]time.Duration

// rest is the party of everything else on the machine.
const rest = "other"

// read returns the processor time used so far. Processes that have ended count
// nothing.
func (p parties) read() (usage, error) {
	out := make(usage, len(p)+1)
	total, err := machineTime()
	if err != nil {
		return nil, err
	}
	for name, pids := range p {
		for _, pid := range pids {
			t, err := processTime(pid)
			if err != nil {
				return nil, err
			}
			out[name] += t
			total -= t
		}
	}
	out[rest] = total
	return out, nil
}

// sub returns what was used since the earlier reading.
func (u usage) sub(earlier usage) usage {
	out := make(usage, len(u))
	for name, t := range u {
		out[name] = max(0, t-earlier[name])
	}
	return out
}

// machineTime is the busy time of all cores together.
func machineTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading the machine's processor time: %w", err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 8 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} { // user nice system irq softirq
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

func processTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the processor time of process %d: %w", pid, err)
	}
	// The second field is a name in parentheses that may hold anything.
	_, after, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')'):]), " ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", pid, text)
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// descendants returns a process and all that stem from it.
func descendants(pid int) []int {
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", out[i]))
		if err != nil {
			continue // not with this pattern
		}
		for _, t := range tasks {
			text, err := os.ReadFile(t)
			if err != nil {
				continue // the thread has ended
			}
			for f := range strings.FieldsSeq(string(text)) {
				if n, err := strconv.Atoi(f); err == nil {
					out = append(out, n)
				}
			}
		}
	}
	return out
}

// resetPeak makes peak start anew. A kernel that cannot do it leaves the peak
// of the process's whole life.
func resetPeak(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// peak returns the most resident memory that a process had, in bytes.
func peak(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}
