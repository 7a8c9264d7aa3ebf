package client

import (
	"context"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"
)

// MgrCommand sends a command to the mgr and returns its output, and what the mgr
// says beside it. It goes through a connection of its own, which configure makes,
// unconnected, and without time limits: a call that librados gives up by itself is
// answered into memory that is gone when the mgr comes back. One that has no
// answer before ctx ends is left behind with its connection; it ends with the
// process.
func MgrCommand(ctx context.Context, configure func() (*rados.Conn, error), command []byte) (out []byte, status string, err error) {
	conn, err := configure()
	if err != nil {
		return nil, "", err
	}
	if err := conn.SetConfigOption("rados_mon_op_timeout", "0"); err != nil {
		conn.Shutdown()
		return nil, "", fmt.Errorf("setting rados_mon_op_timeout: %w", err)
	}
	type answer struct {
		out    []byte
		status string
		err    error
	}
	ask := func() (a answer) {
		defer conn.Shutdown()
		if err := conn.Connect(); err != nil {
			return answer{err: fmt.Errorf("connecting to the cluster: %w", err)}
		}
		a.out, a.status, a.err = conn.MgrCommand([][]byte{command})
		return a
	}
	done := make(chan answer, 1)
	go func() { done <- ask() }()
	select {
	case a := <-done:
		return a.out, a.status, a.err
	case <-ctx.Done():
		return nil, "", fmt.Errorf("no answer of the mgr, or of the monitors: %w", syscall.ETIMEDOUT)
	}
}
