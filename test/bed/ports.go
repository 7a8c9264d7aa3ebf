package bed

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// Ports are claimed in blocks below 32768, where the kernel's ephemeral ports
// begin: one block per cluster.
const (
	firstPort     = 12000
	lastPort      = 32700
	portsPerBlock = 200
)

// portRegistry hands out blocks of ports to all beds of a machine. A claim is
// a file named after the block's first port that holds the directory of the
// owner; it counts as long as that directory is there.
type portRegistry struct {
	dir  string
	free func(first, n int) bool // can all n ports be bound now
}

func newPortRegistry(dir string) portRegistry { return portRegistry{dir: dir, free: portsFree} }

// lock serializes all claims and releases of the machine.
func (r portRegistry) lock(ctx context.Context) (*fileLock, error) {
	for {
		if err := os.MkdirAll(r.dir, 0o777); err != nil {
			return nil, fmt.Errorf("make the directory of port claims: %w", err)
		}
		// Other users' beds share it; umask may have narrowed the mode.
		if err := os.Chmod(r.dir, 0o777|os.ModeSticky); err != nil && !errors.Is(err, os.ErrPermission) && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("open up the directory of port claims: %w", err)
		}
		l, err := lockFile(ctx, filepath.Join(r.dir, "lock"), true)
		if errors.Is(err, os.ErrNotExist) && ctx.Err() == nil {
			continue // the last claim was released and the directory removed
		}
		return l, err
	}
}

func (r portRegistry) owner(first int) string {
	data, err := os.ReadFile(filepath.Join(r.dir, strconv.Itoa(first)))
	if err != nil {
		return ""
	}
	return string(data)
}

// claim returns the first port of a block for owner, a directory that exists.
// An owner that holds a claim gets the same again.
func (r portRegistry) claim(ctx context.Context, owner string) (int, error) {
	l, err := r.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer l.release()
	blocks := (lastPort - firstPort) / portsPerBlock
	// Start at a place of the owner's own: fewer claims meet, and a cluster
	// that comes back tends to get its old ports.
	h := fnv.New32a()
	h.Write([]byte(owner))
	start := int(h.Sum32() % uint32(blocks))
	for i := range blocks {
		first := firstPort + i*portsPerBlock
		if r.owner(first) == owner {
			return first, nil
		}
	}
	for i := range blocks {
		first := firstPort + (start+i)%blocks*portsPerBlock
		if o := r.owner(first); o != "" {
			if _, err := os.Stat(o); !errors.Is(err, os.ErrNotExist) {
				continue
			}
		}
		if !r.free(first, portsPerBlock) {
			continue
		}
		err := writeFile(filepath.Join(r.dir, strconv.Itoa(first)), []byte(owner), 0o644)
		if errors.Is(err, os.ErrPermission) {
			continue // another user's stale claim
		}
		return first, err
	}
	return 0, fmt.Errorf("no free block of %d ports between %d and %d", portsPerBlock, firstPort, lastPort)
}

// release gives back what owner holds, and removes the registry's directory
// when nothing is claimed any more.
func (r portRegistry) release(ctx context.Context, owner string) error {
	if _, err := os.Stat(r.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	l, err := r.lock(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		l.release()
		return fmt.Errorf("list port claims: %w", err)
	}
	left := 0
	for _, e := range entries {
		first, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		o := r.owner(first)
		if _, err := os.Stat(o); o == owner || errors.Is(err, os.ErrNotExist) {
			if err := os.Remove(filepath.Join(r.dir, e.Name())); err != nil && !errors.Is(err, os.ErrPermission) {
				l.release()
				return fmt.Errorf("release ports: %w", err)
			}
			continue
		}
		left++
	}
	if left > 0 {
		l.release()
		return nil
	}
	l.remove()
	os.Remove(r.dir) // fails, rightly, when another bed was quicker with a new claim
	return nil
}

func portsFree(first, n int) bool {
	for p := first; p < first+n; p++ {
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}
