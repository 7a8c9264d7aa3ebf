package host

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cephmirror/admin"
	"cephmirror/host/schedule"
	"cephmirror/host/schedule/manage"
	"cephmirror/host/schedule/runner"
	"cephmirror/host/supervise"
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

func TestScheduleCounters(t *testing.T) {
	at := time.Date(2026, 11, 22, 7, 0, 0, 5e8, time.UTC)
	loggers := scheduleLoggers([]runner.Status{
		{Name: "rbd/a", Domain: "rbd", Taken: 3, Missed: 2, Failed: 1, LastAt: at, NextAt: at.Add(time.Hour)},
		{Name: "rbd/b", Domain: "rbd"},
	})
	c := &collector{counters: fixed(loggers), status: func() supervise.Status { return supervise.Status{} }, budget: time.Second}
	want := `
# HELP ceph_cephmirror_schedule_failures Snapshots that could not be made
# TYPE ceph_cephmirror_schedule_failures counter
ceph_cephmirror_schedule_failures{domain="rbd",unit="rbd/a"} 1
ceph_cephmirror_schedule_failures{domain="rbd",unit="rbd/b"} 0
# HELP ceph_cephmirror_schedule_last_snapshot When the newest snapshot was made
# TYPE ceph_cephmirror_schedule_last_snapshot gauge
ceph_cephmirror_schedule_last_snapshot{domain="rbd",unit="rbd/a"} 1.7953308005e+09
ceph_cephmirror_schedule_last_snapshot{domain="rbd",unit="rbd/b"} 0
# HELP ceph_cephmirror_schedule_missed Runs that did not take place at their time
# TYPE ceph_cephmirror_schedule_missed counter
ceph_cephmirror_schedule_missed{domain="rbd",unit="rbd/a"} 2
ceph_cephmirror_schedule_missed{domain="rbd",unit="rbd/b"} 0
# HELP ceph_cephmirror_schedule_next_snapshot When the next snapshot is due
# TYPE ceph_cephmirror_schedule_next_snapshot gauge
ceph_cephmirror_schedule_next_snapshot{domain="rbd",unit="rbd/a"} 1.7953344005e+09
ceph_cephmirror_schedule_next_snapshot{domain="rbd",unit="rbd/b"} 0
# HELP ceph_cephmirror_schedule_snapshots Snapshots made by schedule
# TYPE ceph_cephmirror_schedule_snapshots counter
ceph_cephmirror_schedule_snapshots{domain="rbd",unit="rbd/a"} 3
ceph_cephmirror_schedule_snapshots{domain="rbd",unit="rbd/b"} 0
`
	if got := exposed(t, c, "ceph_cephmirror_schedule_"); got != want {
		t.Error(cmp.Diff(want, got))
	}
}

// fixed are counters that do not change.
type fixed []admin.Logger

func (f fixed) Loggers(context.Context) ([]admin.Logger, error) { return f, nil }

// exposed returns what Prometheus would be given of metrics with a prefix.
func exposed(t *testing.T, c *collector, prefix string) string {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	out := "\n"
	for line := range strings.Lines(w.Body.String()) {
		if strings.Contains(line, prefix) {
			out += line
		}
	}
	return out
}
