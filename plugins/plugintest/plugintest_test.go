package plugintest

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"cephmirror/plugins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	Conform(t, func(*testing.T) Subject {
		return Subject{Plugin: &Fake{
			State: []plugins.Event{
				{Kind: plugins.EventDomainUp, Domain: "cephfs@1"},
				{Kind: plugins.EventInstanceJoined, Domain: "cephfs@1", Instance: "4242"},
				{Kind: plugins.EventUnitAdded, Domain: "cephfs@1", Unit: "/a\xff"},
				{Kind: plugins.EventCommandAdded, Spec: plugins.CommandSpec{Signature: "fs mirror status cephfs@1", Help: "h"}},
			},
			Loggers: []plugins.Logger{{Name: "cephfs_mirror", Counters: []plugins.Counter{{Name: "mirrored_filesystems", Type: plugins.GaugeU64, U64: 1}}}},
		}}
	})
}

func TestEverythingCrossesTheWire(t *testing.T) {
	ctx := t.Context()
	shuffled := time.Unix(1700000000, 123456789)
	var bigMap plugins.Map
	for i := range 2500 {
		bigMap.Units = append(bigMap.Units, plugins.Mapping{Unit: fmt.Sprintf("/d\xfe%d", i), Instance: "7", LastShuffled: shuffled, Purging: i%2 == 0})
	}
	bigMap.Units[0].LastShuffled = time.Time{}
	bigMap.Instances = []string{"7", "8"}
	info := plugins.Info{
		Kind: "cephfs", CephVersion: "20.2.4", CephRelease: "tentacle", GitVersion: "g", InstanceID: "1", FSID: "f",
		AdminSocket: "/a", LogFile: "/l", PidFile: "/p", RunDir: "/r", AdminSocketMode: "0750",
	}
	loggers := []plugins.Logger{{
		Name: "l", Labels: []plugins.Option{{Name: "filesystem", Value: "b\xff"}},
		Counters: []plugins.Counter{{Name: "c", Type: plugins.AverageSeconds, Description: "d", Nick: "n", Priority: 5, Bytes: true, Value: 1.5, U64: 1 << 63, Count: 3, Sum: 2.25}},
	}}
	var gotCommand plugins.Command
	fake := &Fake{
		OnStart:   func(context.Context, plugins.Config) (plugins.Info, error) { return info, nil },
		OnLoadMap: func(context.Context, string) (plugins.Map, error) { return bigMap, nil },
		OnDo:      func(context.Context, string, plugins.Action) error { return nil },
		OnCall: func(_ context.Context, c plugins.Command) plugins.Result {
			gotCommand = c
			return plugins.Result{Errno: 17, Out: []byte("o\xff"), Status: "s\xff"}
		},
		Loggers: loggers,
	}
	p := Connect(t, fake, nil)

	cfg := plugins.Config{
		Mode: plugins.ModeControl, Cluster: "c", ConfFile: "/etc/x", Name: "client.m",
		CephOptions: []plugins.Option{{Name: "a", Value: "1\xff"}, {Name: "a", Value: ""}}, Settings: map[string]string{"k": "v"},
	}
	gotInfo, err := p.Start(ctx, cfg)
	if err != nil || gotInfo != info {
		t.Errorf("Start: %+v, %v", gotInfo, err)
	}
	if diff := cmp.Diff([]plugins.Config{cfg}, fake.Started()); diff != "" {
		t.Errorf("Config: %s", diff)
	}
	gotMap, err := p.LoadMap(ctx, "d")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(bigMap, gotMap); diff != "" {
		t.Errorf("Map: %s", diff)
	}
	a := plugins.Action{Kind: plugins.ActionAcquire, Mapping: bigMap.Units[2]}
	if err := p.Do(ctx, "d", a); err != nil {
		t.Errorf("Do: %v", err)
	}
	if diff := cmp.Diff([]plugins.Action{a}, fake.Done()); diff != "" {
		t.Errorf("Action: %s", diff)
	}
	cmd := plugins.Command{Prefix: "config set", Args: map[string]any{"var": "x", "val": []any{"1", true, 2.5}}, Input: []byte("in\x00")}
	if r := p.Call(ctx, cmd); r.Errno != 17 || string(r.Out) != "o\xff" || r.Status != "s\xff" {
		t.Errorf("Result: %+v", r)
	}
	if diff := cmp.Diff(cmd, gotCommand); diff != "" {
		t.Errorf("Command: %s", diff)
	}
	gotLoggers, err := p.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(loggers, gotLoggers); diff != "" {
		t.Errorf("Loggers: %s", diff)
	}
}

type codedError struct{}

func (codedError) Error() string  { return "rados: ret=-13, Permission denied" }
func (codedError) ErrorCode() int { return -13 }

func TestErrnoCrossesTheWire(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"typed", plugins.Errorf(syscall.ENOENT, "no keyring in %s", "/x"), syscall.ENOENT},
		{"wrapped errno", fmt.Errorf("doing: %w", syscall.EBUSY), syscall.EBUSY},
		{"go-ceph", fmt.Errorf("connect: %w", codedError{}), syscall.EACCES},
		{"inner timeout", fmt.Errorf("peer: %w", context.DeadlineExceeded), syscall.ETIMEDOUT},
		{"no errno", errors.New("plain \xff"), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := Connect(t, &Fake{OnStart: func(context.Context, plugins.Config) (plugins.Info, error) { return plugins.Info{}, tc.err }}, nil)
			_, err := p.Start(t.Context(), plugins.Config{})
			if err == nil || err.Error() != tc.err.Error() {
				t.Errorf("error %q, want %q", err, tc.err)
			}
			if plugins.Errno(err) != int(tc.want) || tc.want != 0 && !errors.Is(err, tc.want) {
				t.Errorf("errno %d, want %d", plugins.Errno(err), tc.want)
			}
		})
	}
}

func TestDeadlineEndsACall(t *testing.T) {
	p := Connect(t, &Fake{OnCall: func(ctx context.Context, _ plugins.Command) plugins.Result {
		<-ctx.Done()
		return plugins.ErrorResult(ctx.Err())
	}}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if r := p.Call(ctx, plugins.Command{Prefix: "x"}); r.Errno != int(syscall.ETIMEDOUT) {
		t.Errorf("got %+v", r)
	}
}

func TestRenewGrantsTheLeaseEvenBeforeStart(t *testing.T) {
	lease := plugins.NewLease(nil)
	fake := &Fake{}
	p := Connect(t, fake, lease)
	if lease.Valid() {
		t.Fatal("valid without a grant")
	}
	if err := p.Renew(t.Context(), time.Minute); err != nil || !lease.Valid() || fake.Renewed() != 0 {
		t.Errorf("err %v, valid %v, asked %d", err, lease.Valid(), fake.Renewed())
	}
	if _, err := p.Start(t.Context(), plugins.Config{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Renew(t.Context(), time.Minute); err != nil || fake.Renewed() != 1 {
		t.Errorf("err %v, asked %d", err, fake.Renewed())
	}
}

// A request sent long ago must not revive the lease: here the plugin's clock
// has moved on since.
func TestStaleRenewIsIgnored(t *testing.T) {
	lease := plugins.NewLease(func() time.Duration { return plugins.Boottime() + time.Hour })
	p := Connect(t, &Fake{}, lease)
	if err := p.Renew(t.Context(), time.Minute); err != nil || lease.Valid() {
		t.Errorf("err %v, valid %v", err, lease.Valid())
	}
}

func TestOverdueCallsAreTold(t *testing.T) {
	release := make(chan struct{})
	p := Connect(t, &Fake{OnCall: func(context.Context, plugins.Command) plugins.Result {
		<-release // as a library call that cannot be cancelled
		return plugins.Result{}
	}}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if r := p.Call(ctx, plugins.Command{Prefix: "hang"}); r.Errno != int(syscall.ETIMEDOUT) {
		t.Errorf("got %+v", r)
	}
	until := time.Now().Add(patience)
	health := func() plugins.Health {
		h, err := p.RenewHealth(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(until) {
			t.Fatal("no change")
		}
		return h
	}
	for health().OverdueCall != "Call hang" {
		time.Sleep(time.Millisecond)
	}
	close(release)
	for health().Overdue != 0 {
		time.Sleep(time.Millisecond)
	}
}
