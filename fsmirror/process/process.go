// Package process identifies a process such that others on its machine can
// tell later whether it is still alive.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// ID names one process for good: its number alone is given to others again.
type ID struct {
	Boot    string `json:"boot"`         // boot id of the machine
	Space   string `json:"ns,omitempty"` // namespace of the number
	PID     int    `json:"pid"`
	Started string `json:"started"` // start time in the kernel's ticks
}

// Self returns the identity of this process.
func Self() (ID, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ID{}, fmt.Errorf("reading the boot id: %w", err)
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ID{}, fmt.Errorf("reading the namespace of processes: %w", err)
	}
	pid := os.Getpid()
	started, err := start(pid)
	if err != nil {
		return ID{}, err
	}
	return ID{Boot: strings.TrimSpace(string(boot)), Space: space, PID: pid, Started: started}, nil
}

// start returns the start time of a process as the kernel counts it. One that
// has ended and is only waited for is not there any more.
func start(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	state, started, err := parseStat(stat)
	if err != nil {
		return "", fmt.Errorf("state of process %d: %w", pid, err)
	}
	if state == 'Z' || state == 'X' {
		return "", fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	return started, nil
}

// parseStat takes a line of /proc/PID/stat apart.
func parseStat(line []byte) (state byte, started string, err error) {
	// The name of the command, in parentheses, may hold anything.
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	const at = 19 // field 22 of the line
	if len(fields) <= at {
		return 0, "", fmt.Errorf("%d fields after the name: %w", len(fields), syscall.EINVAL)
	}
	return fields[0][0], string(fields[at]), nil
}

// Dead tells whether the process certainly is no more, as seen from self: it ran
// on this machine since that was started, and is gone. What cannot be known is
// taken for alive, so a process of another container is.
func (id ID) Dead(self ID) bool {
	if id.Boot != self.Boot || id.Space != self.Space || id.PID <= 0 {
		return false
	}
	started, err := start(id.PID)
	if err == nil {
		return started != id.Started
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	// Where processes are hidden from other users, their files are not there.
	hidden := syscall.Kill(id.PID, 0)
	return errors.Is(hidden, syscall.ESRCH) || zombie(id.PID)
}

// zombie tells whether a process has ended and is only waited for.
func zombie(pid int) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state, _, err := parseStat(line)
	return err == nil && (state == 'Z' || state == 'X')
}
