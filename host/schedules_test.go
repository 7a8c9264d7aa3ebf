package host

import (
	"errors"
	"syscall"
	"testing"

	"cephmirror/host/schedule"
	"cephmirror/host/schedule/manage"
)

func TestScheduleLevel(t *testing.T) {
	type args struct{ pool, namespace, image string }
	const absent = "-" // the option is not given
	for _, c := range []struct {
		args
		want string
		code int // an error that was told
	}{
		{args{absent, absent, absent}, "", 0},
		{args{"", absent, absent}, "", 0},
		{args{"p", absent, absent}, "p/", 0},
		{args{"p/ns", absent, absent}, "p/ns/", 0},
		{args{"p", "ns", absent}, "p/ns/", 0},
		{args{"p", "", absent}, "p//", 0},
		{args{absent, "ns", absent}, "rbd/ns/", 0},
		{args{absent, absent, "img"}, "rbd/img", 0},
		{args{"p", absent, "img"}, "p/img", 0},
		{args{"p", "", "img"}, "p/img", 0},
		{args{"p", "ns", "img"}, "p/ns/img", 0},
		{args{absent, absent, "p/img"}, "p/img", 0},
		{args{absent, absent, "p/ns/img"}, "p/ns/img", 0},
		{args{"p", absent, "q/img"}, "", 22},
		{args{absent, "ns", "q/img"}, "", 22},
		{args{absent, absent, "p/ns/img/x"}, "", 22},
		{args{absent, absent, "img@snap"}, "", 22},
		{args{absent, absent, ""}, "", 22},
	} {
		value := func(s string) string {
			if s == absent {
				return ""
			}
			return s
		}
		f := rbdFlags{pool: value(c.pool), namespace: value(c.namespace), image: value(c.image)}
		f.given = func(name string) bool {
			return map[string]string{"pool": c.pool, "namespace": c.namespace, "image": c.image}[name] != absent
		}
		l, err := f.level()
		var code exitCode
		if c.code != 0 {
			if !errors.As(err, &code) || int(code) != c.code {
				t.Errorf("%+v: %v, want exit code %d", c.args, err, c.code)
			}
			continue
		}
		if err != nil || l.String() != c.want {
			t.Errorf("%+v: %q, %v, want %q", c.args, l, err, c.want)
		}
	}
	f := rbdFlags{pool: "a/b/c", given: func(name string) bool { return name == "pool" }}
	if _, err := f.level(); err == nil || err.Error() != "failed to parse a/b/c/" {
		t.Errorf("a level that is none: %v", err)
	}
}

func TestScheduleFailure(t *testing.T) {
	for _, c := range []struct {
		verb string
		err  error
		code int
	}{
		{"add", &manage.Failure{Errno: syscall.EINVAL, Text: "pool p does not exist"}, 22},
		{"add", &schedule.InvalidError{Text: "Invalid interval (0)"}, 22},
		{"status", &manage.Failure{Errno: syscall.EINVAL, Text: "pool p does not exist"}, 74},
		{"list", &manage.Failure{Errno: syscall.ENOENT}, 2},
	} {
		var code exitCode
		if err := scheduleFailure(c.verb, c.err); !errors.As(err, &code) || int(code) != c.code {
			t.Errorf("%s: %v: %v, want exit code %d", c.verb, c.err, err, c.code)
		}
	}
	if got := strerror(syscall.ENOENT); got != "No such file or directory" {
		t.Error(got)
	}
}
