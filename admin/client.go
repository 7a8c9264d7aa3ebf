package admin

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// maxReply bounds what a client reads: far above any status, far below memory.
const maxReply = 256 << 20

// Call sends one command to the admin socket at path and returns the body of
// the reply. An empty format leaves the choice to the daemon. When the daemon
// reports a failure the error is an *Error, and the body is returned as well.
func Call(ctx context.Context, path, prefix string, args map[string]any, format string) ([]byte, error) {
	req := make(map[string]any, len(args)+2)
	for k, v := range args {
		req[k] = v
	}
	req["prefix"] = prefix
	if format != "" {
		req["format"] = format
	}
	text, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("command %q: %w", prefix, err)
	}
	body, err := exchange(ctx, path, append(text, 0))
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	if e := parseErrorBody(body); e != nil {
		return body, e
	}
	return body, nil
}

// Describe asks the daemon at path which commands it has.
func Describe(ctx context.Context, path string) ([]Description, error) {
	reply, err := Call(ctx, path, "get_command_descriptions", nil, "json")
	if err != nil {
		return nil, err
	}
	list, err := ParseDescriptions(reply)
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	return list, nil
}

// Run carries out a command given as words, as `ceph daemon PATH words…` does:
// it asks the daemon for its commands, matches the words against them and sends
// the one that fits. A *MatchError says that none does.
func Run(ctx context.Context, path string, words []string, format string) ([]byte, error) {
	cmds, err := Describe(ctx, path)
	if err != nil {
		return nil, err
	}
	prefix, args, err := Match(cmds, words)
	if err != nil {
		return nil, err
	}
	return Call(ctx, path, prefix, args, format)
}

// exchange sends raw bytes and reads one reply.
func exchange(ctx context.Context, path string, request []byte) (body []byte, err error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
	}()
	// A server may answer, or turn us away, before it has read everything.
	_, werr := conn.Write(request)
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		if werr != nil {
			return nil, fmt.Errorf("sending the request: %w", werr)
		}
		return nil, fmt.Errorf("closed without an answer: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxReply {
		return nil, fmt.Errorf("reply of %d bytes: %w", n, syscall.EMSGSIZE)
	}
	body, err = io.ReadAll(io.LimitReader(conn, int64(n)))
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("reply cut short after %d of %d bytes: %w", len(body), n, err)
	}
	return body, nil
}

// dial connects and waits where the queue of the socket is full.
func dial(ctx context.Context, path string) (net.Conn, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil || !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}
