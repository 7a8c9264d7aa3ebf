package bed

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// maxAnswer bounds what an admin socket may send.
const maxAnswer = 256 << 20

// askSocket sends a command to an admin socket and returns the answer. Ceph
// expects JSON up to a zero byte, and sends a length and that many bytes.
func askSocket(ctx context.Context, path string, cmd map[string]any) (string, error) {
	req, err := json.Marshal(cmd)
	if err != nil {
		return "", fmt.Errorf("encode command: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return "", fmt.Errorf("connect to admin socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var answer bytes.Buffer
	_, err = conn.Write(append(req, 0))
	if err == nil {
		var size uint32
		if err = binary.Read(conn, binary.BigEndian, &size); err == nil {
			if size > maxAnswer {
				return "", fmt.Errorf("admin socket %s: answer of %d bytes", path, size)
			}
			_, err = io.CopyN(&answer, conn, int64(size))
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("ask admin socket %s: %w", path, err)
	}
	return answer.String(), nil
}

// socketAnswers says whether somebody listens on a socket.
func socketAnswers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// portAnswers says whether somebody listens on a loopback port.
func portAnswers(port int) bool {
	c, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
