package client

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
)

// MonCommand sends a command to the monitors and returns its output.
func MonCommand(conn *rados.Conn, command map[string]string) ([]byte, error) {
	text, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	out, status, err := conn.MonCommand(text)
	if err != nil {
		if status != "" {
			return nil, fmt.Errorf("monitor command %q: %s: %w", command["prefix"], status, err)
		}
		return nil, fmt.Errorf("monitor command %q: %w", command["prefix"], err)
	}
	return out, nil
}

// Version is the release of a cluster.
type Version struct {
	Number  string // 20.2.4
	Release string // tentacle
	Git     string // 40 hex digits
}

// ClusterVersion asks the monitors for their release.
func ClusterVersion(conn *rados.Conn) (Version, error) {
	out, err := MonCommand(conn, map[string]string{"prefix": "version", "format": "json"})
	if err != nil {
		return Version{}, err
	}
	return parseVersion(out)
}

func parseVersion(out []byte) (Version, error) {
	var v struct{ Version string }
	if err := json.Unmarshal(out, &v); err != nil {
		return Version{}, fmt.Errorf("decoding the monitors' version: %w", err)
	}
	// "ceph version 20.2.4 (<hash>) tentacle (stable)"
	f := strings.Fields(v.Version)
	if len(f) < 5 {
		return Version{}, fmt.Errorf("the monitors' version %q: %w", v.Version, syscall.EINVAL)
	}
	return Version{Number: f[2], Release: f[4], Git: strings.Trim(f[3], "()")}, nil
}

// PlainAddr strips what librados wraps around an address of one kind, so that
// it reads as the stock daemons report it.
func PlainAddr(addr string) string {
	addr = strings.Trim(addr, "[]")
	first, _, _ := strings.Cut(addr, ",")
	for _, kind := range []string{"v1:", "v2:", "any:"} {
		first = strings.TrimPrefix(first, kind)
	}
	return first
}
