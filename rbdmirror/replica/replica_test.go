//go:build cgo

package replica

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCall(t *testing.T) {
	var c Calls
	defer c.Wait()
	got, err := Ask(t.Context(), &c, time.Minute, func() (int, error) { return 7, nil })
	if got != 7 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	cause := errors.New("enough")
	for name, begin := range map[string]func() (context.Context, time.Duration, error){
		"time is up": func() (context.Context, time.Duration, error) {
			return t.Context(), time.Millisecond, syscall.ETIMEDOUT
		},
		"cancelled": func() (context.Context, time.Duration, error) {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Millisecond, func() { cancel(cause) })
			return ctx, time.Minute, cause
		},
	} {
		ctx, limit, want := begin()
		release, discarded := make(chan struct{}), make(chan int, 1)
		_, err := Call(ctx, &c, limit, func() (int, error) { <-release; return 8, nil }, func(n int) { discarded <- n })
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		close(release)
		if n := <-discarded; n != 8 {
			t.Errorf("%s: %d was discarded", name, n)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := Do(ctx, &c, time.Minute, func() error { t.Error("called"); return nil }); !errors.Is(err, cause) {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	full, blocked := fmt.Errorf("writing: %w", syscall.EDQUOT), fmt.Errorf("writing: %w", syscall.ESHUTDOWN)
	for _, c := range []struct {
		err  error
		out  Outcome
		lost bool
		full bool
	}{
		{err: full, full: true},
		{err: Remotely(full)},
		{err: blocked, out: LostLocal, lost: true},
		{err: fmt.Errorf("reading: %w", Remotely(blocked)), out: LostRemote, lost: true},
	} {
		if out, lost := LostConnection(c.err); out != c.out || lost != c.lost {
			t.Errorf("%v: lost %v, %v", c.err, out, lost)
		}
		if got := NoRoom(c.err); got != c.full {
			t.Errorf("%v: no room %v", c.err, got)
		}
	}
	if Remotely(nil) != nil {
		t.Error("nothing is an error")
	}
	o := Options{RetryMax: time.Minute}.WithDefaults()
	for n := range 100 {
		if d := o.Retry(blocked, n+1); d <= 0 || d > 90*time.Second {
			t.Errorf("wait %v after %d failures", d, n+1)
		}
		if d := o.Retry(full, n+1); d > roomPoll {
			t.Errorf("wait %v for room", d)
		}
	}
}

func TestReporter(t *testing.T) {
	var seen []Status
	r := NewReporter(func(s Status) { seen = append(seen, s) })
	r.Starting()
	r.Starting()
	r.Failed("bad", syscall.EIO, 2, time.Now().Add(time.Second))
	r.Starting() // what has failed stays in sight
	r.Set(StateReplaying, "replaying, {}", Replaying, func(s *Status) { s.Wait("something") })
	since := r.Last().WaitingSince
	r.Set(StateReplaying, "replaying, {}", Replaying, func(s *Status) { s.Wait("something") })
	if r.Last().WaitingSince.IsZero() || since.IsZero() {
		t.Error("nobody knows since when it waits")
	}
	r.Ended(OtherMode, nil)
	if r.Last().State != StateReplaying {
		t.Error("somebody else goes on, and it is told that nobody does")
	}
	r.Set(StateStopped, RemoteGone, Stopped)
	r.Ended(Gone, nil)
	if got := r.Last(); got.State != StateStopped || got.Description != RemoteGone || got.Phase != Stopped {
		t.Errorf("%+v", got)
	}
	r.Ended(Ended, nil)
	if got := r.Last().Description; got != "stopped" {
		t.Error(got)
	}
	if len(seen) < 6 || seen[0].State != StateStartingReplay || seen[1].State != StateError || seen[1].Failures != 2 {
		t.Errorf("%+v", seen)
	}
}
