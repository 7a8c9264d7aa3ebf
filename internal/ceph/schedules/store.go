package schedules

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
)

const (
	// Object holds the schedules of a pool or file system.
	Object = "cephmirror_schedules"

	keyPrefix = "schedule_"
	leaderKey = "leader"
	pageSize  = 1000
)

// ErrChanged is returned for a change of what is no longer there. Its errno is
// ECANCELED.
var ErrChanged = fmt.Errorf("changed meanwhile: %w", syscall.ECANCELED)

// Contents is all that is stored.
type Contents struct {
	Schedules map[string]string // by the name of the level
	Leader    string            // see Lead
}

// Store is the object in one pool.
type Store struct{ ioctx *rados.IOContext }

// NewStore returns the store in the pool that ioctx is open on, in its default
// namespace.
func NewStore(ioctx *rados.IOContext) *Store { return &Store{ioctx} }

// Load reads everything. There is nothing where there is no object.
func (s *Store) Load() (Contents, error) {
	values, err := ReadOmap(s.ioctx, Object)
	c := Contents{Schedules: make(map[string]string)}
	for key, value := range values {
		level, ok := strings.CutPrefix(key, keyPrefix)
		switch {
		case ok:
			c.Schedules[level] = value
		case key == leaderKey:
			c.Leader = value
		}
	}
	return c, err
}

// ReadOmap reads all values of an object, none where there is no object.
func ReadOmap(ioctx *rados.IOContext, oid string) (map[string]string, error) {
	values := make(map[string]string)
	for after := ""; ; {
		found, err := ioctx.GetOmapValues(oid, after, "", pageSize)
		if ceph.Is(err, syscall.ENOENT) {
			return values, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", oid, err)
		}
		for key, value := range found {
			values[key], after = string(value), max(after, key)
		}
		if len(found) < pageSize {
			return values, nil
		}
	}
}

// Swap replaces the schedule of a level, "" standing for none. ErrChanged: it was
// not from.
func (s *Store) Swap(level, from, to string) error { return s.swap(keyPrefix+level, from, to) }

// SwapLeader does the same with the note of who follows the schedules.
func (s *Store) SwapLeader(from, to string) error { return s.swap(leaderKey, from, to) }

func (s *Store) swap(key, from, to string) error {
	op := ceph.NewWriteOp()
	defer op.Release()
	if from == "" && to == "" {
		return nil
	}
	if to != "" {
		op.Create(false)
	}
	op.CompareOmap(key, []byte(from))
	if to == "" {
		op.RemoveOmap([]string{key})
	} else {
		op.SetOmap(map[string][]byte{key: []byte(to)})
	}
	err := op.Operate(s.ioctx, Object)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ECANCELED):
		return ErrChanged
	case errors.Is(err, syscall.ENOENT):
		return ErrChanged
	}
	return fmt.Errorf("changing %s: %w", Object, err)
}
