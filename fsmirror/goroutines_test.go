package fsmirror

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/fsmirror/process"
	"cephmirror/plugins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within repeats f until it succeeds.
func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// newTestEngine returns an engine whose connection was never made: every call to
// the cluster fails.
func newTestEngine(t *testing.T) *Engine {
	t.Helper()
	conn, err := rados.NewConn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Shutdown)
	lease := plugins.NewLease(nil)
	lease.Renew(time.Hour)
	e := New(zerolog.Nop(), lease)
	e.conn, e.options, e.instance = conn, &options{conf: conn}, "1"
	t.Cleanup(e.cancel)
	return e
}

func newTestFilesystem(e *Engine, specs ...dirstore.Peer) *filesystem {
	ctx, cancel := context.WithCancel(e.ctx)
	return &filesystem{
		eng: e, name: "fs", log: zerolog.Nop(), ctx: ctx, cancel: cancel, specs: specs,
		mounting: make(chan struct{}, 1),
		ending:   make(map[string]*ending), dirs: make(map[string]bool), peers: make(map[string]*peer),
	}
}

func TestHeartbeat(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer error
		after  time.Duration // 0: at once
		busy   time.Duration // for how long work gets on
		lost   time.Duration // when the mount is given up; 0: never
	}{
		{name: "alive"},
		{name: "slow", after: 20 * time.Second},
		{name: "an error that does not matter", answer: syscall.EACCES},
		{name: "blocklisted", answer: syscall.ESHUTDOWN, lost: heartbeatInterval},
		{name: "silent", after: time.Hour, lost: heartbeatInterval + stallLimit + heartbeatInterval},
		{name: "silent after some work", after: time.Hour, busy: 3 * time.Minute, lost: 3*time.Minute + stallLimit + heartbeatInterval},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				begun := time.Now()
				var lost []time.Duration
				var wg sync.WaitGroup
				wg.Go(func() {
					heartbeat(ctx, vitals{func() error {
						time.Sleep(c.after)
						return c.answer
					}, func() time.Time {
						if time.Since(begun) < c.busy {
							return time.Now()
						}
						return begun.Add(c.busy)
					}, &patience{}}, func(error) { lost = append(lost, time.Since(begun)) })
				})
				time.Sleep(10 * time.Minute)
				cancel()
				wg.Wait()
				if c.lost == 0 && len(lost) > 0 || c.lost != 0 && !slices.Equal(lost, []time.Duration{c.lost}) {
					t.Errorf("given up after %v, want %v", lost, c.lost)
				}
			})
		})
	}
}

// Who is too busy to answer in time gets twice the time, until it has got
// something done.
func TestPatience(t *testing.T) {
	var p patience
	for _, want := range []time.Duration{30, 60, 120, 240, 480, 480} {
		if got := p.get(); got != want*time.Second {
			t.Errorf("%v, want %d s", got, want)
		}
		p.grow()
	}
	p.reset()
	if got := p.get(); got != stallLimit {
		t.Errorf("%v after all", got)
	}
}

func TestEndingsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &filesystem{ending: make(map[string]*ending)}
		at, other := place{}, place{peer: dirstore.Peer{UUID: "x"}}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, errUnanswered)
		defer cancel()
		begin := func(ctx context.Context, at place) *ending {
			t.Helper()
			e, err := f.beginEnding(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		first := begin(ctx, at)
		f.endEnding(other, begin(ctx, other))
		if _, err := f.beginEnding(ctx, at); !errors.Is(err, errUnanswered) {
			t.Errorf("while the first hangs: %v", err)
		}
		// The first never ends; each that follows is given more time.
		for _, patience := range []time.Duration{2 * time.Minute, 4 * time.Minute, 8 * time.Minute} {
			time.Sleep(patience)
			next := begin(t.Context(), at)
			if next.patience != patience {
				t.Errorf("patience of %v, want %v", next.patience, patience)
			}
			f.endEnding(at, first) // late, and of no concern to the other
			if f.ending[""] != next {
				t.Error("an earlier one ends a later one")
			}
			first = next
		}
		waiting := make(chan *ending)
		go func() {
			e, _ := f.beginEnding(t.Context(), at)
			waiting <- e
		}()
		synctest.Wait()
		f.endEnding(at, first)
		f.endEnding(at, <-waiting)
		if len(f.ending) != 0 {
			t.Errorf("%d left", len(f.ending))
		}
	})
}

func TestEnd(t *testing.T) {
	f := newTestFilesystem(newTestEngine(t))
	hang := make(chan struct{})
	none := func() ([]string, error) { return nil, nil }
	if err := f.end(t.Context(), f.home(), none); err != nil {
		t.Error(err)
	}
	why := errors.New("some reason")
	if err := f.end(t.Context(), f.home(), func() ([]string, error) { return nil, why }); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, why)
	defer cancel()
	err := f.end(ctx, f.home(), func() ([]string, error) {
		<-hang
		return nil, nil
	})
	if !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	close(hang)
	if err := f.end(t.Context(), f.home(), none); err != nil {
		t.Error(err)
	}
}

func TestPlaceHolds(t *testing.T) {
	spec := func(uuid, cluster string) dirstore.Peer {
		return dirstore.Peer{UUID: uuid, Client: "client.x", Cluster: cluster, FSName: "fs"}
	}
	at := func(p dirstore.Peer) place { return place{peer: p} }
	home := place{peer: dirstore.Peer{Client: "client.y"}}
	current := []dirstore.Peer{spec("1", "b"), spec("2", "b"), spec("3", "c")}
	self := process.ID{PID: 1}
	for _, c := range []struct {
		name string
		at   place
		note note
		want bool
	}{
		{"home", home, home.note(self, "1"), true},
		{"abroad is not home", home, at(current[0]).note(self, "1"), false},
		{"home is not abroad", at(current[0]), home.note(self, "1"), false},
		{"home of another client", place{peer: dirstore.Peer{Client: "client.z"}}, home.note(self, "1"), false},
		{"peer", at(current[0]), at(current[0]).note(self, "1"), true},
		{"another peer alike", at(current[0]), at(current[1]).note(self, "1"), false},
		{"a peer added again", at(current[0]), at(spec("4", "b")).note(self, "1"), true},
		{"a removed peer", at(current[2]), at(spec("4", "b")).note(self, "1"), false},
	} {
		if got := c.at.holds(c.note, current); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// A peer without a lease does nothing, takes and leaves directories, and is
// stopped at once.
func TestPeerWithoutLease(t *testing.T) {
	e := newTestEngine(t)
	e.lease = plugins.NewLease(nil)
	spec := dirstore.Peer{UUID: "u", Client: "client.x", Cluster: "b", FSName: "fs"}
	f := newTestFilesystem(e, spec)
	p := newPeer(f, "u", spec)
	p.add("/a")
	p.add("/b")
	p.changed("/a")
	p.remove(t.Context(), "/a")
	if got := p.peerStatus("reef"); len(got) != 1 || got["/b"].State != stateIdle {
		t.Errorf("directories %v", got)
	}
	if s := p.remoteStatus(); s.Remote.ClientName != spec.Client {
		t.Errorf("the status is %+v", s)
	}
	p.stop(t.Context())
	<-p.done
}

func TestSchedule(t *testing.T) {
	e := newTestEngine(t)
	f := newTestFilesystem(e)
	p := &peer{fs: f, log: zerolog.Nop(), wake: make(chan struct{}), dirs: make(map[string]*work)}
	take := func(want string) *work {
		t.Helper()
		w, ctx, idle := p.take(t.Context())
		switch {
		case w == nil && want != "":
			t.Fatalf("nothing is due for %v, want %s", idle.wait, want)
		case w != nil && w.dir != want:
			t.Fatalf("%s is due, want %q", w.dir, want)
		case w != nil && ctx.Err() != nil:
			t.Fatal(ctx.Err())
		}
		return w
	}
	done := func(w *work) {
		p.mu.Lock()
		defer p.mu.Unlock()
		w.cancel()
		w.cancel = nil
		close(w.idle)
	}
	take("")
	p.add("/a")
	p.add("/b")
	p.dirs["/a"].due = time.Now().Add(-time.Second)
	p.dirs["/b"].due = time.Now().Add(-time.Minute)
	b := take("/b")
	a := take("/a")
	take("")
	// What changes meanwhile is due again, but not twice at a time.
	p.changed("/b")
	take("")
	done(b)
	b = take("/b")
	done(a)
	take("")

	// A failed directory keeps its time, whatever changes.
	now := time.Now()
	for i := range 10 {
		p.failedCycle(b, syscall.EIO, now)
		if want := i == 9; b.status.failed != want {
			t.Errorf("after %d failures the directory is failed: %v", i+1, b.status.failed)
		}
	}
	done(b)
	p.changed("/b")
	take("")
	if p.failures != 1 || b.due.Sub(now) != time.Minute {
		t.Errorf("%d failed directories, the next try after %v", p.failures, b.due.Sub(now))
	}
	p.succeeded(b)
	if p.recoveries != 1 || b.status.failed {
		t.Errorf("%d recoveries", p.recoveries)
	}
	p.changed("/b")
	done(take("/b"))

	// Removing one that is under way ends it, and waits for that.
	p.changed("/a")
	a, ctx, _ := p.take(t.Context())
	removed := make(chan struct{})
	go func() {
		p.remove(t.Context(), "/a")
		close(removed)
	}()
	<-ctx.Done()
	select {
	case <-removed:
		t.Error("a directory is removed while it is worked on")
	default:
	}
	done(a)
	<-removed
	take("")
}

// A file system that cannot be served says so, tries again, and is stopped at
// once.
func TestFilesystemWithoutCluster(t *testing.T) {
	e := newTestEngine(t)
	if err := e.conn.SetConfigOption("cephfs_mirror_restart_mirror_on_failure_interval", "1"); err != nil {
		t.Fatal(err)
	}
	f := newFilesystem(e, dirstore.FileSystem{ID: 1, Name: "fs", Mirrored: true})
	for range 2 {
		within(t, "the failure to be shown", func() bool {
			s, failed := f.status().(failedStatus)
			return failed && s.State == fsFailed && s.Reason != ""
		})
	}
	f.acquire("/a")
	if _, _, err := f.source(t.Context()); err == nil {
		t.Error("mounted without a cluster")
	}
	f.stop(t.Context())
	<-f.done
}
