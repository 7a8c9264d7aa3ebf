package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// Error is a failed command: an errno and what is said about it. Handlers may
// return it to choose both; Call returns it for a reply that reports a failure.
type Error struct {
	Errno  syscall.Errno
	Detail string
}

// Errorf returns an *Error with a formatted detail.
func Errorf(errno syscall.Errno, format string, args ...any) *Error {
	return &Error{Errno: errno, Detail: fmt.Sprintf(format, args...)}
}

// Error returns the detail, or the text of the errno where there is none.
func (e *Error) Error() string {
	if s := strings.TrimSpace(e.Detail); s != "" {
		return s
	}
	return errnoText(e.Errno)
}

// Unwrap makes errors.Is(err, syscall.ENOENT) work.
func (e *Error) Unwrap() error { return e.Errno }

// ErrnoOf returns the errno an error carries: that of an *Error, of a
// syscall.Errno or of anything with ErrorCode() (as go-ceph's errors have), at
// any depth. Errors that carry none count as EIO.
func ErrnoOf(err error) syscall.Errno {
	var ours *Error
	if errors.As(err, &ours) && ours.Errno != 0 {
		return ours.Errno
	}
	var sys syscall.Errno
	if errors.As(err, &sys) && sys != 0 {
		return sys
	}
	var coded interface{ ErrorCode() int }
	if errors.As(err, &coded) {
		if c := coded.ErrorCode(); c < 0 {
			return syscall.Errno(-c)
		} else if c > 0 {
			return syscall.Errno(c)
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	case errors.Is(err, context.Canceled):
		return syscall.ECANCELED
	}
	return syscall.EIO
}

// strerror spells an errno as the C library does: Go's table is the same but
// for the case of the first letter.
func strerror(e syscall.Errno) string {
	s := e.Error()
	if s == "errno "+strconv.Itoa(int(e)) {
		return fmt.Sprintf("Unknown error %d", int(e))
	}
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:]
}

// errnoText is "(2) No such file or directory".
func errnoText(e syscall.Errno) string {
	return fmt.Sprintf("(%d) %s", int(e), strerror(e))
}

// detailOf is what goes on the line below the errno.
func detailOf(err error) string {
	var ours *Error
	if errors.As(err, &ours) {
		return ours.Detail
	}
	return err.Error()
}

const errorMark = "ERROR: ("

// errorBody is the reply for a failed command; out is whatever it had to show
// nevertheless.
func errorBody(err error, out []byte) []byte {
	b := fmt.Appendf(nil, "ERROR: %s\n%s\n", errnoText(ErrnoOf(err)), detailOf(err))
	return append(b, out...)
}

// parseErrorBody returns the error a reply reports, or nil.
func parseErrorBody(body []byte) *Error {
	if !bytes.HasPrefix(body, []byte(errorMark)) {
		return nil
	}
	line, rest, _ := strings.Cut(string(body), "\n")
	num, _, ok := strings.Cut(line[len(errorMark):], ")")
	if !ok {
		return nil
	}
	n, err := strconv.ParseUint(num, 10, 31)
	if err != nil || n == 0 {
		return nil
	}
	return &Error{Errno: syscall.Errno(n), Detail: strings.TrimSuffix(rest, "\n")}
}
