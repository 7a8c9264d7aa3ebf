package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Error is an error with an errno that survives the way between plugin and
// host. errors.Is finds the errno in it.
type Error struct {
	Errno syscall.Errno // positive; 0 when the cause had none
	Msg   string
}

// Errorf makes an Error with the given errno.
func Errorf(errno syscall.Errno, format string, args ...any) *Error {
	return &Error{Errno: errno, Msg: fmt.Sprintf(format, args...)}
}

// Error returns the message alone: it usually holds the errno's text already.
func (e *Error) Error() string {
	if e.Msg == "" {
		return e.Errno.Error()
	}
	return e.Msg
}

// Unwrap gives the errno to errors.Is.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Errno returns the positive errno that err carries, as an *Error, a
// syscall.Errno or a go-ceph error (ErrorCode) anywhere in its chain. An ended
// context counts as ETIMEDOUT or ECANCELED. It is 0 when there is none.
func Errno(err error) int {
	var (
		own   *Error
		sys   syscall.Errno
		coded interface{ ErrorCode() int }
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own) && own.Errno != 0:
		return int(own.Errno)
	case errors.As(err, &sys):
		return int(sys)
	case errors.As(err, &coded) && coded.ErrorCode() != 0:
		return max(coded.ErrorCode(), -coded.ErrorCode())
	case errors.Is(err, context.DeadlineExceeded):
		return int(syscall.ETIMEDOUT)
	case errors.Is(err, context.Canceled):
		return int(syscall.ECANCELED)
	case errors.Is(err, fs.ErrNotExist):
		return int(syscall.ENOENT)
	}
	return 0
}

// ErrGone means that the plugin process is not there (any more).
var ErrGone = errors.New("plugin is gone")
