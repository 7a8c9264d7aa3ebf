package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/uuid"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/test/bed"
)

// The tests change the desired state by what is stored, as any control plane
// does. The commands of the two control planes have tests of their own.

func (e *env) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// mon runs a monitor command on a cluster.
func mon(t *testing.T, c *bed.Cluster, command map[string]any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := c.MonCommand(ctx, command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// store is the directory map of the mirrored file system.
func (e *env) store(t *testing.T) *dirstore.Store {
	t.Helper()
	return dirstore.NewStore(e.metadata(t))
}

func (e *env) metadata(t *testing.T) *rados.IOContext {
	t.Helper()
	ctx, err := e.src.Conn.OpenIOContext(fsName + ".meta")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ctx.Destroy)
	return ctx
}

// enable enables mirroring.
func (e *env) enable(t *testing.T) {
	t.Helper()
	if err := e.store(t).Create(); err != nil {
		t.Fatal(err)
	}
	mon(t, e.a, map[string]any{"prefix": "fs mirror enable", "fs_name": fsName})
}

// disable disables mirroring, which removes all peers.
func (e *env) disable(t *testing.T) {
	t.Helper()
	mon(t, e.a, map[string]any{"prefix": "fs mirror disable", "fs_name": fsName})
}

// addPeer adds client.USER of b's file system fs as a peer and returns its id.
func (e *env) addPeer(t *testing.T, user, fs string) string {
	t.Helper()
	id := uuid.NewString()
	mon(t, e.a, map[string]any{
		"prefix": "fs mirror peer_add", "fs_name": fsName, "uuid": id,
		"remote_cluster_spec": "client." + user + "@" + e.b.Name(), "remote_fs_name": fs,
	})
	return id
}

func (e *env) removePeer(t *testing.T, id string) {
	t.Helper()
	mon(t, e.a, map[string]any{"prefix": "fs mirror peer_remove", "fs_name": fsName, "uuid": id})
}

// track adds a directory to the map and wakes the controller. It is taken out
// at the end of the test.
func (e *env) track(t *testing.T, dir string) {
	t.Helper()
	e.trackFor(t, dir)
	t.Cleanup(func() { e.untrack(t, dir) })
}

// trackFor is track without an end.
func (e *env) trackFor(t *testing.T, dir string) {
	t.Helper()
	s := e.store(t)
	err := s.Apply(dirstore.Change{Set: map[string][]byte{dirstore.DirKey(dir): dirstore.Entry{}.Encode()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Wake(time.Second); err != nil {
		t.Logf("waking the controller: %v", err)
	}
}

// untrack takes a directory out of the map.
func (e *env) untrack(t *testing.T, dir string) {
	t.Helper()
	err := eventually(5*time.Second, func() error {
		contents, err := e.store(t).Load()
		if err != nil {
			return err
		}
		entry, ok := contents.Dirs[dir]
		if !ok {
			return nil
		}
		entry.Purging = true
		return e.store(t).Apply(dirstore.Change{
			Set:    map[string][]byte{dirstore.DirKey(dir): entry.Encode()},
			Expect: map[string][]byte{dirstore.DirKey(dir): contents.Raw[dirstore.DirKey(dir)]},
		})
	})
	if err != nil {
		t.Errorf("untracking %s: %v", dir, err)
	}
}

// clear ends mirroring and forgets all directories, for the next test.
func (e *env) clear(t *testing.T) {
	t.Helper()
	e.disable(t)
	contents, err := e.store(t).Load()
	if err != nil {
		return // there is none
	}
	var remove []string
	for dir := range contents.Dirs {
		remove = append(remove, dirstore.DirKey(dir))
	}
	if len(remove) == 0 {
		return
	}
	if err := e.store(t).Apply(dirstore.Change{Remove: remove}); err != nil {
		t.Error(err)
	}
}

// mirror enables mirroring to the usual peer, starts our daemon and waits
// until it has connected. At the end all is gone.
func (e *env) mirror(t *testing.T, opts ...string) *daemon {
	t.Helper()
	e.clear(t)
	e.enable(t)
	e.addPeer(t, "remote", fsName)
	t.Cleanup(func() { e.clear(t) })
	d := e.startOurs(t, "mirror", opts...)
	d.waitPeer(t)
	return d
}

// waitPeer waits until the daemon knows its peer.
func (d *daemon) waitPeer(t *testing.T) {
	t.Helper()
	within(t, 20*time.Second, "the daemon to know its peer", func() error {
		if len(d.peers()) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
}
