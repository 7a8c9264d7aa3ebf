package bed

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

//go:embed mon.py
var commanderScript string

// CommandError is a command that the cluster refused.
type CommandError struct {
	Command string
	Errno   syscall.Errno
	Message string
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %s (%v)", e.Command, e.Message, e.Errno)
}

func (e *CommandError) Unwrap() error { return e.Errno }

// commander keeps one connection to a cluster open for commands. It is a child
// process because the bed links nothing of Ceph.
type commander struct {
	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err *strings.Builder
}

type answer struct {
	RC  int    `json:"rc"`
	Out string `json:"out"`
	Err string `json:"err"`
}

func (m *commander) start(c *Cluster) error {
	cmd := exec.Command("python3", "-c", commanderScript, c.Conf(), "client.admin")
	cmd.Env = c.bed.processEnv(mark(c.bed.dir, c.name, "commander"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start a connection for commands: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start a connection for commands: %w", err)
	}
	m.err = &strings.Builder{}
	cmd.Stderr = m.err
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a connection for commands: %w", err)
	}
	m.cmd, m.in, m.out = cmd, in, bufio.NewReader(out)
	return nil
}

// do sends one command and waits for its answer. When ctx ends first, the
// connection is given up, since its answer would come later.
func (m *commander) do(ctx context.Context, c *Cluster, target string, cmd map[string]any, input string) (answer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return answer{}, err
	}
	if m.cmd == nil {
		if err := m.start(c); err != nil {
			return answer{}, err
		}
	}
	req, err := json.Marshal(map[string]any{"target": target, "cmd": cmd, "input": input})
	if err != nil {
		return answer{}, fmt.Errorf("encode command: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { m.cmd.Process.Kill() })
	var a answer
	_, err = m.in.Write(append(req, '\n'))
	if err == nil {
		var line []byte
		if line, err = m.out.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &a)
		}
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		m.close()
		return answer{}, fmt.Errorf("send command to cluster %s: %w: %s", c.name, err, lastLines(m.err.String(), 3))
	}
	return a, nil
}

func (m *commander) close() {
	if m.cmd == nil {
		return
	}
	m.in.Close()
	m.cmd.Process.Kill() // it holds nothing; Wait reports the same
	m.cmd.Wait()
	m.cmd = nil
}

func (m *commander) shut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.close()
}
