package plugins

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// clock follows the fake time of a synctest bubble and can jump ahead of its
// timers, as real time does for a process that was frozen.
func clock() (now func() time.Duration, jump func(time.Duration)) {
	start, skipped := time.Now(), time.Duration(0)
	return func() time.Duration { return time.Since(start) + skipped }, func(d time.Duration) { skipped += d }
}

func TestLeaseRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, _ := clock()
		l := NewLease(now)
		if l.Valid() || l.Remaining() != 0 {
			t.Error("valid before the first grant")
		}
		l.Renew(5 * time.Second)
		time.Sleep(4999 * time.Millisecond)
		if !l.Valid() {
			t.Error("ran out early")
		}
		time.Sleep(time.Millisecond)
		if l.Valid() {
			t.Error("still valid")
		}
		l.Renew(5 * time.Second)
		l.Renew(time.Second) // must not shorten
		if got := l.Remaining(); got != 5*time.Second {
			t.Errorf("remaining %v", got)
		}
		l.Revoke()
		if l.Valid() {
			t.Error("valid after Revoke")
		}
	})
}

func TestLeaseOfAFrozenProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, jump := clock()
		l := NewLease(now)
		l.Renew(5 * time.Second)
		jump(time.Minute) // no timer has fired
		if l.Valid() {
			t.Error("a frozen process woke up with a valid lease")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
	})
}

func TestLeaseWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, _ := clock()
		l := NewLease(now)
		done := make(chan error, 3)
		for range 3 {
			go func() { done <- l.Wait(t.Context()) }()
		}
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("did not wait")
		}
		l.Renew(time.Second)
		synctest.Wait()
		if len(done) != 3 {
			t.Fatalf("%d of 3 writers go on", len(done))
		}
	})
}

func TestLeaseExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, _ := clock()
		l := NewLease(now)
		l.Renew(time.Second)
		lost := l.Expired(t.Context(), 10*time.Second)
		time.Sleep(10 * time.Second) // invalid for 9 s
		l.Renew(time.Second)
		time.Sleep(10 * time.Second)
		select {
		case <-lost:
			t.Fatal("told although it came back")
		default:
		}
		time.Sleep(1001 * time.Millisecond)
		synctest.Wait()
		select {
		case <-lost:
		default:
			t.Fatal("not told")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l.Renew(time.Hour)
		if err := l.AwaitExpiry(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("AwaitExpiry: %v", err)
		}
	})
}

// Against the definition: valid exactly while some grant reaches beyond now and
// no later revocation ended it.
func TestLeaseProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var now, until time.Duration
		l := NewLease(func() time.Duration { return now })
		t.Repeat(map[string]func(*rapid.T){
			"renew": func(t *rapid.T) {
				ttl := time.Duration(rapid.Int64Range(-5, 20).Draw(t, "ttl"))
				l.Renew(ttl)
				if ttl > 0 {
					until = max(until, now+ttl)
				}
			},
			"pass":   func(t *rapid.T) { now += time.Duration(rapid.Int64Range(0, 15).Draw(t, "time")) },
			"revoke": func(*rapid.T) { l.Revoke(); until = min(until, now) },
			"": func(t *rapid.T) {
				if want := max(0, until-now); l.Remaining() != want || l.Valid() != (want > 0) {
					t.Fatalf("remaining %v, want %v", l.Remaining(), want)
				}
			},
		})
	})
}

func TestBoottimeMoves(t *testing.T) {
	a := Boottime()
	time.Sleep(time.Millisecond)
	if b := Boottime(); b-a < time.Millisecond || a <= 0 {
		t.Errorf("%v then %v", a, b)
	}
}

func BenchmarkLeaseValid(b *testing.B) {
	l := NewLease(nil)
	l.Renew(time.Hour)
	for b.Loop() {
		if !l.Valid() {
			b.Fatal("expired")
		}
	}
}
