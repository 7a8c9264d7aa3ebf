package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/test/cephtree"
)

// patience is how long a small snapshot may take to arrive; far more than it
// does take, on a busy machine too.
const patience = 90 * time.Second

var dirCount atomic.Int64

// newDir makes a directory for a test on a.
func (e *env) newDir(t *testing.T) cephtree.Maker {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name())
	return cephtree.On(t, e.src, fmt.Sprintf("%s/%s-%03d-%s", e.base, e.stamp, dirCount.Add(1), name[:min(len(name), 60)]))
}

// tracked makes a directory and has it mirrored.
func (e *env) tracked(t *testing.T) cephtree.Maker {
	t.Helper()
	m := e.newDir(t)
	e.track(t, m.Root())
	return m
}

// arrived tells whether the snapshot is on the peer, made from the one that
// has that name on a now.
func (e *env) arrived(dir, snap string) error {
	id, _, err := e.src.SnapInfo(dir + "/.snap/" + snap)
	if err != nil {
		return fmt.Errorf("snapshot %s of %s on a: %w", snap, dir, err)
	}
	_, metadata, err := e.dst.SnapInfo(dir + "/.snap/" + snap)
	if err != nil {
		return fmt.Errorf("snapshot %s of %s on b: %w", snap, dir, err)
	}
	if got := metadata["primary_snap_id"]; got != strconv.FormatUint(id, 10) {
		return fmt.Errorf("snapshot %s of %s on b was made from %q, not %d", snap, dir, got, id)
	}
	return nil
}

// wait waits until the snapshots are on the peer.
func (e *env) wait(t *testing.T, m cephtree.Maker, snaps ...string) {
	t.Helper()
	e.waitLong(t, patience, m, snaps...)
}

func (e *env) waitLong(t *testing.T, limit time.Duration, m cephtree.Maker, snaps ...string) {
	t.Helper()
	for _, s := range snaps {
		within(t, limit, "snapshot "+s+" to arrive", func() error { return e.arrived(m.Root(), s) })
	}
}

// same checks that snapshots are equal on both sides.
func (e *env) same(t *testing.T, m cephtree.Maker, snaps ...string) {
	t.Helper()
	v, err := e.newView(fsName)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	for _, s := range snaps {
		path := m.Root() + "/.snap/" + s
		diffs, err := v.compare(path, path)
		if err != nil {
			t.Fatal(err)
		}
		if len(diffs) > 0 {
			t.Errorf("snapshot %s of %s differs:\n%s", s, m.Root(), cephtree.Report(diffs, 10))
		}
	}
}

// differences compares one snapshot on both sides with clients that have
// nothing cached.
func (e *env) differences(t *testing.T, dir, snap string) []cephtree.Difference {
	t.Helper()
	return e.compare(t, dir+"/.snap/"+snap, fsName, dir+"/.snap/"+snap)
}

func (e *env) compare(t *testing.T, source, fs, target string) []cephtree.Difference {
	t.Helper()
	v, err := e.newView(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	diffs, err := v.compare(source, target)
	if err != nil {
		t.Fatal(err)
	}
	const most = 10
	if len(diffs) > most {
		t.Logf("%d differences, the first %d follow", len(diffs), most)
		diffs = diffs[:most]
	}
	return diffs
}

// view is a pair of clients that have nothing cached.
type view struct{ src, dst *cephtree.Client }

func (e *env) newView(fs string) (v view, err error) {
	if v.src, err = cephtree.Open(e.a.Conf(), fsName); err != nil {
		return v, err
	}
	if v.dst, err = cephtree.Open(e.b.Conf(), fs); err != nil {
		return v, errors.Join(err, v.src.Close())
	}
	return v, nil
}

func (v view) close() error { return errors.Join(v.src.Close(), v.dst.Close()) }

func (v view) compare(source, target string) ([]cephtree.Difference, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	diffs, err := cephtree.Compare(ctx, v.src.MountInfo, source, v.dst.MountInfo, target)
	if err != nil {
		return nil, fmt.Errorf("comparing %s: %w", source, err)
	}
	return diffs, nil
}

// waitSame waits for snapshots and checks that they are equal.
func (e *env) waitSame(t *testing.T, m cephtree.Maker, snaps ...string) {
	t.Helper()
	e.wait(t, m, snaps...)
	e.same(t, m, snaps...)
}

// snapshots returns the names of a directory's own snapshots on a side.
func snapshots(t *testing.T, c *cephtree.Client, dir string) []string {
	t.Helper()
	for range 20 {
		names, err := listSnapshots(c, dir)
		if err == nil {
			return names
		}
		if !ceph.Is(err, 2) { // otherwise one was removed under the listing
			t.Fatal(err)
		}
	}
	t.Fatalf("the snapshots of %s change while they are listed", dir)
	return nil
}

func listSnapshots(c *cephtree.Client, dir string) (names []string, err error) {
	d, err := c.OpenDir(dir + "/.snap")
	if ceph.Is(err, 2) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	for {
		e, err := d.ReadDir()
		if err != nil {
			return nil, err
		}
		if e == nil {
			return names, nil
		}
		if n := e.Name(); n != "." && n != ".." && !strings.HasPrefix(n, "_") {
			names = append(names, n)
		}
	}
}
