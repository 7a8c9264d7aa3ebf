package plugins

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Lease is the permission to write that a plugin holds from its host. It is
// invalid until the first Renew and runs out by itself. The clock is read at
// every question, so a process that was frozen finds its lease expired when it
// wakes up, before any timer has fired.
type Lease struct {
	now func() time.Duration

	mu      sync.Mutex
	until   time.Duration
	granted bool
	renewed chan struct{} // closed and replaced by every Renew
}

// NewLease returns a lease that was never granted. now is a clock that never
// steps back and goes on while the process or the machine sleeps; nil means
// Boottime.
func NewLease(now func() time.Duration) *Lease {
	if now == nil {
		now = Boottime
	}
	return &Lease{now: now, renewed: make(chan struct{})}
}

// Boottime reads CLOCK_BOOTTIME: the time since boot, suspended time included.
// It is one clock for all processes of the machine.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Every Linux since 2.6.39 has it: without it no lease can be kept.
		panic("reading CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// Renew makes the lease valid for ttl from now. It never shortens a lease that
// reaches further.
func (l *Lease) Renew(ttl time.Duration) { l.renewUntil(l.now() + ttl) }

func (l *Lease) renewUntil(until time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until <= l.now() || l.granted && until <= l.until {
		return
	}
	l.until, l.granted = until, true
	close(l.renewed)
	l.renewed = make(chan struct{})
}

// Revoke ends the lease at once, as before the last writes of a shutdown.
func (l *Lease) Revoke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = min(l.until, l.now())
}

// Valid reports whether writing is allowed at this moment.
func (l *Lease) Valid() bool { return l.Remaining() > 0 }

// Remaining returns for how long the lease is still valid, 0 when it is not.
func (l *Lease) Remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remainingLocked()
}

func (l *Lease) remainingLocked() time.Duration {
	if !l.granted {
		return 0
	}
	return max(0, l.until-l.now())
}

// Wait blocks while the lease is not valid. Writers call it before each write
// that others could see; it costs next to nothing while the lease is valid.
func (l *Lease) Wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		valid, renewed := l.remainingLocked() > 0, l.renewed
		l.mu.Unlock()
		if valid {
			return ctx.Err()
		}
		select {
		case <-renewed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// AwaitExpiry blocks until the lease has been invalid for at least grace, and
// returns nil then; it returns ctx's error when that ends first. A lease that
// was never granted counts as invalid since the call. An engine uses it to give
// up its locks when the host stays silent for long.
func (l *Lease) AwaitExpiry(ctx context.Context, grace time.Duration) error {
	began := l.now()
	for {
		l.mu.Lock()
		since := began
		if l.granted {
			since = l.until
		}
		left, renewed := since+grace-l.now(), l.renewed
		l.mu.Unlock()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-renewed:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// Expired returns a channel that is closed once the lease has been invalid for
// grace. The goroutine behind it ends then, or with ctx.
func (l *Lease) Expired(ctx context.Context, grace time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		if l.AwaitExpiry(ctx, grace) == nil {
			close(done)
		}
	}()
	return done
}
