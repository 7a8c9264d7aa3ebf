//go:build cgo

package dirstore

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
)

// controllerXattr is an extended attribute of Object that names who controls
// the map. The stock control plane does not look at it.
const controllerXattr = "cephmirror.controller"

// Store reads and writes the directory map of one file system. Its calls block
// as long as librados does: the connection should have rados_osd_op_timeout.
type Store struct {
	ioctx *rados.IOContext
}

// NewStore returns the Store in the metadata pool that ioctx is open on.
func NewStore(ioctx *rados.IOContext) *Store { return &Store{ioctx} }

// Create makes the object. That it is there already is no error.
func (s *Store) Create() error {
	op := ceph.NewWriteOp()
	defer op.Release()
	op.Create(true)
	if err := op.Operate(s.ioctx, Object); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("creating %s: %w", Object, err)
	}
	return nil
}

// Load reads the whole map.
func (s *Store) Load() (*Contents, error) {
	omap := make(map[string][]byte)
	after := ""
	for more := true; more; {
		var err error
		if after, more, err = s.page(after, omap); err != nil {
			return nil, fmt.Errorf("reading omap of %s: %w", Object, err)
		}
	}
	return DecodeContents(omap), nil
}

func (s *Store) page(after string, into map[string][]byte) (last string, more bool, err error) {
	op := rados.CreateReadOp()
	defer op.Release()
	step := op.GetOmapValues(after, "", batchSize)
	if err := op.Operate(s.ioctx, Object, rados.OperationNoFlag); err != nil {
		return "", false, opError(err)
	}
	last = after
	for {
		kv, err := step.Next()
		if err != nil {
			return "", false, err
		}
		if kv == nil {
			return last, step.More() && last != after, nil
		}
		into[kv.Key], last = kv.Value, kv.Key
	}
}

// Get reads the raw value of one key, nil when it is not there.
func (s *Store) Get(key string) ([]byte, error) {
	// The key itself sorts first among those that begin with it.
	values, err := s.ioctx.GetOmapValues(Object, "", key, 1)
	if err != nil {
		return nil, fmt.Errorf("reading omap of %s: %w", Object, err)
	}
	return values[key], nil
}

// Apply makes the change, in batches that are atomic each. ErrConflict: what
// it expects does not hold, or another one controls the map.
func (s *Store) Apply(c Change) error {
	batches, err := c.batches()
	if err != nil {
		return err
	}
	for _, b := range batches {
		if err := s.apply(b); err != nil {
			return fmt.Errorf("updating omap of %s: %w", Object, err)
		}
	}
	return nil
}

func (s *Store) apply(c Change) error {
	op := ceph.NewWriteOp()
	defer op.Release()
	op.AssertExists()
	if c.Controller != "" {
		op.CompareXattr(controllerXattr, []byte(c.Controller))
	}
	for key, value := range c.Expect {
		op.CompareOmap(key, value)
	}
	op.SetOmap(c.Set)
	op.RemoveOmap(c.Remove)
	return conflict(op.Operate(s.ioctx, Object))
}

// Controller returns who controls the map by what is stored, or "".
func (s *Store) Controller() (string, error) {
	buf := make([]byte, 256)
	n, err := s.ioctx.GetXattr(Object, controllerXattr, buf)
	if ceph.Is(err, syscall.ENODATA) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading controller of %s: %w", Object, err)
	}
	return string(buf[:n]), nil
}

// SetController hands the control of the map from one to another, either of
// which may be nobody (""). ErrConflict: from does not have it.
func (s *Store) SetController(from, to string) error {
	op := ceph.NewWriteOp()
	defer op.Release()
	op.AssertExists()
	op.CompareXattr(controllerXattr, []byte(from))
	if to == "" {
		op.RemoveXattr(controllerXattr)
	} else {
		op.SetXattr(controllerXattr, []byte(to))
	}
	if err := conflict(op.Operate(s.ioctx, Object)); err != nil {
		return fmt.Errorf("changing controller of %s: %w", Object, err)
	}
	return nil
}

// Wake sends the empty notification that a controller looks for workers with.
// Workers answer it; one that controls the map reads it again. Answers are
// waited for no longer than timeout.
func (s *Store) Wake(timeout time.Duration) error {
	_, _, err := s.ioctx.NotifyWithTimeout(Object, nil, timeout)
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT) {
		return fmt.Errorf("notifying %s: %w", Object, err)
	}
	return nil
}

// Live asks all workers for their addresses and returns those of the ones that
// answered in time, by instance.
func (s *Store) Live(timeout time.Duration) (map[string]string, error) {
	acks, _, err := s.ioctx.NotifyWithTimeout(Object, nil, timeout)
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT) {
		return nil, fmt.Errorf("notifying %s: %w", Object, err)
	}
	live := make(map[string]string)
	for _, a := range acks {
		if addr, err := DecodeAck(a.Response); err == nil {
			live[strconv.FormatUint(uint64(a.NotifierID), 10)] = addr
		}
	}
	return live, nil
}

func conflict(err error) error {
	if errors.Is(err, syscall.ECANCELED) {
		return fmt.Errorf("%w (%w)", ErrConflict, err)
	}
	return err
}

// opError takes the errno out of go-ceph's error for a whole operation, which
// hides it.
func opError(err error) error {
	var op rados.OperationError
	if errors.As(err, &op) && op.OpError != nil {
		return op.OpError
	}
	return err
}
