//go:build cgo

package election_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cephmirror/rbdmirror/election"
	"cephmirror/test/bed"
	"cephmirror/test/rbdsite"
)

// mirroredPool makes a pool on both clusters that a mirrors from b, with images
// on b that are to be mirrored, and returns these images' global ids.
func mirroredPool(t *testing.T, images int) (a, b *bed.Cluster, pool string, ids []string) {
	t.Helper()
	a, b = cluster(t, "a"), cluster(t, "b")
	must(t, a.AddRBDMirrorUser(t.Context(), "stock"))
	pool = makePool(t, a, b)
	for _, c := range []*bed.Cluster{a, b} {
		run(t, c, "rbd", "mirror", "pool", "enable", pool, "image", "--site-name", c.Name())
	}
	token := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(token, []byte(run(t, b, "rbd", "mirror", "pool", "peer", "bootstrap", "create", pool)), 0o600))
	run(t, a, "rbd", "mirror", "pool", "peer", "bootstrap", "import", pool, "--direction", "rx-only", token)
	for i := range images {
		ids = append(ids, newImage(t, b, pool, fmt.Sprintf("image%d", i)))
	}
	return a, b, pool, ids
}

func newImage(t *testing.T, c *bed.Cluster, pool, name string) (globalID string) {
	t.Helper()
	run(t, c, "rbd", "create", "--size", "16M", pool+"/"+name)
	run(t, c, "rbd", "bench", "--io-type", "write", "--io-size", "64K", "--io-total", "1M", pool+"/"+name)
	run(t, c, "rbd", "mirror", "image", "enable", pool+"/"+name, "snapshot")
	var info struct {
		Mirroring struct {
			GlobalID string `json:"global_id"`
		}
	}
	must(t, json.Unmarshal([]byte(run(t, c, "rbd", "info", "--format", "json", pool+"/"+name)), &info))
	return info.Mirroring.GlobalID
}

// stockDaemon is a stock rbd-mirror.
type stockDaemon struct {
	c    *bed.Cluster
	p    *bed.Process
	pool string
}

func startStock(t *testing.T, c *bed.Cluster, pool string) *stockDaemon {
	t.Helper()
	p, err := env.bed.StartProcess(bed.ProcessSpec{Name: "stock-" + pool, Args: []string{
		"rbd-mirror", "--cluster", c.Name(), "--id", "stock", "-f", "--rbd-mirror-pool-replayers-refresh-interval=2",
		"--rbd-mirror-image-state-check-interval=2", "--debug-rbd-mirror=15",
	}})
	must(t, err)
	s := &stockDaemon{c: c, p: p, pool: pool}
	t.Cleanup(func() {
		s.kill(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("its log is %s", p.LogPath())
		}
	})
	return s
}

func (s *stockDaemon) kill(sig syscall.Signal) {
	for _, pid := range s.p.Family() {
		_ = syscall.Kill(pid, sig)
	}
	select {
	case <-s.p.Done():
	case <-time.After(20 * time.Second):
	}
}

// stockPool is what a stock daemon says of a pool.
type stockPool struct {
	Pool      string
	Instance  string `json:"instance_id"`
	LeaderID  string `json:"leader_instance_id"`
	Leader    bool
	Instances []string
	Throttler struct {
		Running int `json:"running_requests"`
		Waiting int `json:"waiting_requests"`
	} `json:"sync_throttler"`
	Spaces []struct {
		Images []struct{ Name, State string } `json:"image_replayers"`
	} `json:"namespace_replayers"`
	Images []struct{ Name, State string } `json:"image_replayers"` // as Reef has them
}

func (s *stockDaemon) status() (stockPool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := s.c.Command(ctx, "ceph", "--admin-daemon", filepath.Join(s.c.RunDir(), s.c.Name()+"-client.stock.asok"), "rbd", "mirror", "status").Output()
	if err != nil {
		return stockPool{}, err
	}
	var all struct {
		Pools []stockPool `json:"pool_replayers"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return stockPool{}, fmt.Errorf("%w in %s", err, out)
	}
	for _, p := range all.Pools {
		if p.Pool == s.pool && p.Instance != "" {
			for _, sp := range p.Spaces {
				p.Images = append(p.Images, sp.Images...)
			}
			return p, nil
		}
	}
	return stockPool{}, fmt.Errorf("pool %s is not among %.300s", s.pool, out)
}

// check returns an error until ok finds that what the daemon says is as it
// should be.
func (s *stockDaemon) check(ok func(stockPool) bool) func() error {
	return func() error {
		p, err := s.status()
		if err == nil && !ok(p) {
			err = fmt.Errorf("it says %+v", p)
		}
		return err
	}
}

func (s *stockDaemon) instance(t *testing.T) string {
	t.Helper()
	p, err := s.status()
	must(t, err)
	return p.Instance
}

func heldBy(m *member, ids []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !m.rec.has("/" + id) })
}

// TestUnderAStockLeader: the stock daemon leads, ours gets its share of images
// and of slots.
func TestUnderAStockLeader(t *testing.T) {
	rbdsite.Long(t)
	a, b, pool, _ := mirroredPool(t, 0)
	s := startStock(t, a, pool)
	wait(t, 20*time.Second, "the stock daemon leads", s.check(func(p stockPool) bool { return p.Leader }))
	leader := s.instance(t)
	m := start(t, pool, nil)
	took := wait(t, 10*time.Second, "ours knows the leader", func() error {
		if got := m.Status().Leader; got != leader {
			return fmt.Errorf("it takes %q for it", got)
		}
		return nil
	})
	t.Logf("the leader was known after %v", took)
	took = wait(t, 15*time.Second, "the leader knows ours", s.check(func(p stockPool) bool {
		return slices.Contains(p.Instances, m.InstanceID())
	}))
	t.Logf("ours was known after %v", took)

	var ids []string
	for i := range 4 {
		ids = append(ids, newImage(t, b, pool, fmt.Sprintf("image%d", i)))
	}
	wait(t, 20*time.Second, "ours has half of the images", func() error {
		if got := heldBy(m, ids); len(got) != 2 {
			return fmt.Errorf("it has %v of %v", got, ids)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stored, err := m.StoredMap(ctx, "")
	must(t, err)
	if len(stored) != 4 {
		t.Errorf("the map is %v", stored)
	}
	for _, e := range stored {
		if (e.Instance == m.InstanceID()) != m.rec.has("/"+e.GlobalID) {
			t.Errorf("the map says that %s has %s", e.Instance, e.GlobalID)
		}
	}

	// Five slots, and the sixth has to wait.
	var held []func()
	for i := range 5 {
		release, err := m.Throttle("").Acquire(ctx, fmt.Sprintf("sync%d", i))
		must(t, err)
		held = append(held, release)
	}
	sixth := make(chan error, 1)
	var last func()
	go func() {
		var err error
		last, err = m.Throttle("").Acquire(ctx, "sync5")
		sixth <- err
	}()
	wait(t, 10*time.Second, "the sixth waits", s.check(func(p stockPool) bool {
		return p.Throttler.Running == 5 && p.Throttler.Waiting == 1
	}))
	select {
	case err := <-sixth:
		t.Fatalf("more slots than there are, %v", err)
	case <-time.After(6 * time.Second): // long enough for a request to be sent again
	}
	held[2]()
	must(t, <-sixth)
	for _, release := range append(held, last) {
		release()
	}
	wait(t, 10*time.Second, "all slots are free", s.check(func(p stockPool) bool {
		return p.Throttler.Running+p.Throttler.Waiting == 0
	}))

	// An image that is no longer to be mirrored.
	mine := heldBy(m, ids)[0]
	for i, id := range ids {
		if id == mine {
			run(t, b, "rbd", "mirror", "image", "disable", fmt.Sprintf("%s/image%d", pool, i))
		}
	}
	took = wait(t, 20*time.Second, "ours gives it up", func() error {
		if m.rec.has("/" + mine) {
			return errors.New("it has it still")
		}
		return nil
	})
	t.Logf("given up after %v, of the peer's loss it heard %v", took, m.rec.removed)

	began := time.Now()
	s.kill(syscall.SIGTERM)
	took = wait(t, 25*time.Second, "ours leads and is alone", func() error {
		return errors.Join(m.leading(), among(m.rec.present(), "/"+m.InstanceID()))
	})
	t.Logf("ours leads %v after the stock daemon was told to stop, %v after it had", time.Since(began), took)
	again, err := m.LoadMap(ctx, "")
	must(t, err)
	t.Logf("it finds the map %v", again)
}

// TestAboveAStockMember: ours leads, the stock daemon does as it is told.
func TestAboveAStockMember(t *testing.T) {
	rbdsite.Long(t)
	a, b, pool, ids := mirroredPool(t, 3)
	m := start(t, pool, func(c *election.Config) { c.Options.ConcurrentSyncs = 1 })
	wait(t, 10*time.Second, "ours leads", m.leading)
	s := startStock(t, a, pool)
	wait(t, 20*time.Second, "the stock daemon is there", func() error {
		_, err := s.status()
		return err
	})
	id := s.instance(t)
	took := wait(t, 5*time.Second, "ours knows of it", func() error { return among(m.rec.present(), "/"+m.InstanceID(), "/"+id) })
	t.Logf("known after %v", took)
	wait(t, 10*time.Second, "it knows that ours leads", s.check(func(p stockPool) bool {
		return !p.Leader && p.LeaderID == m.InstanceID()
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// Its first synchronisations need slots, of which there is but one.
	release, err := m.Throttle("").Acquire(ctx, "own")
	must(t, err)
	var wg sync.WaitGroup
	for _, gid := range ids {
		wg.Go(func() {
			if err := m.Store(ctx, "", election.Mapping{GlobalID: gid, Instance: id, Mapped: time.Now()}); err != nil {
				t.Error(err)
			}
			if err := m.Acquire(ctx, "", id, gid); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range ids { // for a peer that has made itself known by now
		run(t, b, "rbd", "mirror", "image", "snapshot", fmt.Sprintf("%s/image%d", pool, i))
	}
	wait(t, 30*time.Second, "it waits for slots", func() error {
		if st := m.Status().Syncs; st.Running != 1 || st.Waiting == 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	release()
	wait(t, 60*time.Second, "it has copied all images", func() error {
		out := run(t, a, "rbd", "mirror", "pool", "status", pool, "--format", "json")
		var st struct {
			Summary struct{ States map[string]int }
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		if st.Summary.States["replaying"] != len(ids) {
			return fmt.Errorf("states %v", st.Summary.States)
		}
		return nil
	})
	if got := strings.Fields(run(t, a, "rbd", "ls", pool)); len(got) != len(ids) {
		t.Errorf("images %v", got)
	}
	must(t, m.Release(ctx, "", id, ids[0]))
	wait(t, 5*time.Second, "it has one less", s.check(func(p stockPool) bool { return len(p.Images) == len(ids)-1 }))
	must(t, m.Acquire(ctx, "", id, ids[0]))
	must(t, m.PeerRemoved(ctx, "", id, ids[0], "00000000-0000-0000-0000-000000000000"))
	wg.Wait()
	s.kill(syscall.SIGKILL)
	took = wait(t, 45*time.Second, "ours knows of its death", func() error { return among(m.rec.present(), "/"+m.InstanceID()) })
	t.Logf("its death was known after %v", took)
	if took < 25*time.Second {
		t.Error("that is sooner than another stock daemon would have known")
	}
	wait(t, 5*time.Second, "all is cleaned up", func() error {
		if o := objects(t, a, pool, ""); len(o) != 1 {
			return fmt.Errorf("%v", o)
		}
		return nil
	})
}

// TestStockAndOursTakeOver: each from the other when that dies.
func TestStockAndOursTakeOver(t *testing.T) {
	rbdsite.Long(t)
	a, _, pool, _ := mirroredPool(t, 0)
	p := spawn(t, pool)
	wait(t, 10*time.Second, "ours leads", func() error { return p.said("gained") })
	s := startStock(t, a, pool)
	wait(t, 20*time.Second, "the stock daemon knows it", s.check(func(q stockPool) bool { return q.LeaderID == p.id }))
	p.signal(syscall.SIGKILL)
	took := wait(t, 45*time.Second, "the stock daemon leads", s.check(func(q stockPool) bool { return q.Leader }))
	t.Logf("the stock daemon leads after %v", took)
	m := start(t, pool, nil)
	id := s.instance(t)
	wait(t, 10*time.Second, "ours follows", func() error {
		if l := m.Status().Leader; l != id {
			return fmt.Errorf("it takes %q for the leader", l)
		}
		return nil
	})
	s.kill(syscall.SIGKILL)
	took = wait(t, 45*time.Second, "ours leads", func() error {
		return errors.Join(m.leading(), among(m.rec.present(), "/"+m.InstanceID()))
	})
	t.Logf("ours leads after %v", took)
	if took < 20*time.Second {
		t.Error("that is sooner than another stock daemon would have")
	}
	wait(t, 5*time.Second, "all is cleaned up", func() error {
		if o := objects(t, a, pool, ""); len(o) != 1 {
			return fmt.Errorf("%v", o)
		}
		return nil
	})
}
