package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// procID names one process for good: a pid may be used again, but not with the
// same start time in the same boot.
type procID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`
}

// procStat is what is needed of /proc/PID/stat.
type procStat struct {
	state   byte
	threads int
	start   uint64 // clock ticks since boot
}

// dead says whether nothing of the process runs any more. The first thread may
// be a zombie while others are still on their way out, with files and locks.
func (s procStat) dead() bool { return (s.state == 'Z' || s.state == 'X') && s.threads <= 1 }

// parseStat reads the text of /proc/PID/stat. The command's name in it may
// hold blanks and brackets.
func parseStat(text string) (procStat, error) {
	i := strings.LastIndexByte(text, ')')
	if i < 0 {
		return procStat{}, errors.New("no command in process state")
	}
	f := strings.Fields(text[i+1:])
	if len(f) < 20 {
		return procStat{}, errors.New("process state too short")
	}
	threads, err := strconv.Atoi(f[17])
	if err != nil {
		return procStat{}, fmt.Errorf("threads in process state: %w", err)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("start time in process state: %w", err)
	}
	return procStat{state: f[0][0], threads: threads, start: start}, nil
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(data))
}

func identify(pid int) (procID, error) {
	st, err := readStat(pid)
	if err != nil {
		return procID{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return procID{PID: pid, Start: st.start, Boot: bootID()}, nil
}

// state returns the process's state letter, or 0 when it is gone. A dead child
// of our own that nobody waits for is reaped.
func (p procID) state() byte {
	if p.PID <= 0 {
		return 0
	}
	st, err := readStat(p.PID)
	if err != nil || st.start != p.Start || (p.Boot != "" && p.Boot != bootID()) {
		return 0
	}
	if st.dead() {
		var ws syscall.WaitStatus
		syscall.Wait4(p.PID, &ws, syscall.WNOHANG, nil)
		return 0
	}
	return st.state
}

func (p procID) alive() bool { return p.state() != 0 }

// signal sends sig to this process and to no other, even if the pid is reused
// meanwhile. A process that is gone is no error.
func (p procID) signal(sig syscall.Signal) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// wait returns when the process is gone or ctx ends.
func (p procID) wait(ctx context.Context) error {
	for p.alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for process %d to end: %w", p.PID, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// kill ends the processes with SIGKILL and waits until they are gone.
func kill(ctx context.Context, procs []procID) error {
	var errs []error
	for _, p := range procs {
		errs = append(errs, p.signal(syscall.SIGKILL))
	}
	for _, p := range procs {
		errs = append(errs, p.wait(ctx))
	}
	return errors.Join(errs...)
}

// mark is the value of the environment variable that every process started by
// a bed, and all it starts in turn, carries from its first instruction on. It
// finds daemons again that an interrupted run had no time to write down.
//
// Without a name it is the prefix of all marks of the cluster.
func mark(state, cluster, name string) string {
	m := state + ":" + cluster + ":"
	if name != "" {
		m += name + ":"
	}
	return m
}

// marked returns the living processes whose mark begins with prefix.
func marked(prefix string) []procID {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	want := []byte(envMark + "=" + prefix)
	var found []procID
	for _, d := range dirs {
		env, err := os.ReadFile(filepath.Join(d, "environ"))
		if err != nil || !bytes.Contains(env, want) {
			continue
		}
		for _, kv := range bytes.Split(env, []byte{0}) {
			if !bytes.HasPrefix(kv, want) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(d))
			if err != nil || pid == os.Getpid() {
				break
			}
			if id, err := identify(pid); err == nil && id.alive() {
				found = append(found, id)
			}
			break
		}
	}
	slices.SortFunc(found, func(a, b procID) int { return int(a.Start) - int(b.Start) })
	return found
}
