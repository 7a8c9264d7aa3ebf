// Package store reads and writes what RBD keeps in RADOS, one type for each
// kind of object: the mirroring records of a pool, its directory and trash,
// image headers, object maps, image states, and locks.
//
// All methods block until the cluster has answered. Errors name the object and
// the call, and carry the errno; see package ceph's Is and Errno. An IOContext
// that is given to a constructor stays the caller's, must be set to the pool
// and namespace, and may be shared unless its read snapshot or write context is
// changed.
package store

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// Read carries out reading calls on one object, in one atomic operation, and
// returns their replies.
func Read(ioctx *rados.IOContext, oid string, calls ...cls.Call) ([][]byte, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	steps := make([]*rados.ReadOpExecStep, len(calls))
	for i, c := range calls {
		steps[i] = op.Exec(c.Class, c.Method, c.In)
	}
	if err := op.Operate(ioctx, oid, rados.OperationNoFlag); err != nil {
		return nil, callError(oid, calls, err)
	}
	out := make([][]byte, len(calls))
	for i, s := range steps {
		b, err := s.Bytes()
		if err != nil {
			return nil, callError(oid, calls[i:i+1], err)
		}
		out[i] = b
	}
	return out, nil
}

// Write carries out writing calls on one object, in one atomic operation. The
// calls do not see each other's changes.
func Write(ioctx *rados.IOContext, oid string, calls ...cls.Call) error {
	return write(ioctx, oid, nil, calls...)
}

// WriteNew is Write for an object that must not exist yet: EEXIST.
func WriteNew(ioctx *rados.IOContext, oid string, calls ...cls.Call) error {
	return write(ioctx, oid, func(op *rados.WriteOp) { op.Create(rados.CreateExclusive) }, calls...)
}

// WriteExisting is Write for an object that must exist: ENOENT.
func WriteExisting(ioctx *rados.IOContext, oid string, calls ...cls.Call) error {
	return write(ioctx, oid, (*rados.WriteOp).AssertExists, calls...)
}

func write(ioctx *rados.IOContext, oid string, before func(*rados.WriteOp), calls ...cls.Call) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	if before != nil {
		before(op)
	}
	for _, c := range calls {
		op.Exec(c.Class, c.Method, c.In)
	}
	if err := op.Operate(ioctx, oid, rados.OperationNoFlag); err != nil {
		return callError(oid, calls, err)
	}
	return nil
}

// callError names the object and the call. go-ceph tells of the same failure
// twice, and once is enough.
func callError(oid string, calls []cls.Call, err error) error {
	var op rados.OperationError
	if errors.As(err, &op) && op.OpError != nil {
		err = op.OpError
	}
	what := "operation"
	for i, c := range calls {
		if i == 0 || c.Class == "rbd" && calls[0].Class != "rbd" {
			what = c.Class + "." + c.Method
		}
	}
	return fmt.Errorf("%s: %s: %w", oid, what, err)
}

// read1 carries out one reading call and decodes its reply.
func read1[T any](ioctx *rados.IOContext, oid string, c cls.Call, decode func([]byte) (T, error)) (T, error) {
	var zero T
	out, err := Read(ioctx, oid, c)
	if err != nil {
		return zero, err
	}
	v, err := decode(out[0])
	if err != nil {
		return zero, fmt.Errorf("%s: %s.%s: %w", oid, c.Class, c.Method, err)
	}
	return v, nil
}

// readPages gathers the pages of a list that is asked for by name.
func readPages[V any](ioctx *rados.IOContext, oid string, call func(after string, limit uint64) cls.Call,
	decode func([]byte) (map[string]V, error)) (map[string]V, error) {
	const page = 1024
	all := make(map[string]V)
	for after := ""; ; {
		m, err := read1(ioctx, oid, call(after, page), decode)
		if ceph.Is(err, syscall.ENOENT) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		for k, v := range m {
			all[k] = v
			after = max(after, k)
		}
		// some calls return less than a page before the end is reached
		if len(m) == 0 {
			return all, nil
		}
	}
}

// readObject returns the whole data of an object.
func readObject(ioctx *rados.IOContext, oid string) ([]byte, error) {
	var all []byte
	buf := make([]byte, 1<<20)
	for {
		n, err := ioctx.Read(oid, buf, uint64(len(all)))
		if err != nil {
			return nil, fmt.Errorf("%s: reading: %w", oid, err)
		}
		all = append(all, buf[:n]...)
		if n < len(buf) {
			return all, nil
		}
	}
}

// remove removes an object. It is no error that there is none.
func remove(ioctx *rados.IOContext, oid string) error {
	if err := ioctx.Delete(oid); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%s: removing: %w", oid, err)
	}
	return nil
}
