package ceph

import (
	"errors"
	"syscall"
)

// Errno returns the errno that err carries, whether it is a syscall.Errno or
// one of go-ceph's errors, and 0 if there is none.
func Errno(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	var coded interface{ ErrorCode() int }
	if errors.As(err, &coded) {
		if code := coded.ErrorCode(); code < 0 {
			return syscall.Errno(-code)
		}
	}
	return 0
}

// Is reports whether err carries one of the given errnos.
func Is(err error, errnos ...syscall.Errno) bool {
	if err == nil {
		return false
	}
	got := Errno(err)
	for _, e := range errnos {
		if got == e {
			return true
		}
	}
	return false
}

func asError(ret int) error {
	if ret >= 0 {
		return nil
	}
	return syscall.Errno(-ret)
}
