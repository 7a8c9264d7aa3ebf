package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cephmirror/test/bed"
	"cephmirror/test/cephtree"
)

// newWide brings up two clusters more like those in earnest: with three OSDs
// each, all files in erasure-coded pools, and two active MDSs that share each
// tree, with a third in reserve.
func newWide(t *testing.T, e *env) *env {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	w := &env{bed: e.bed, bin: e.bin, stamp: e.stamp, base: "/wide"}
	t.Cleanup(func() {
		for _, c := range []*cephtree.Client{w.src, w.dst} {
			if c != nil {
				if err := closeSoon(c); err != nil {
					t.Logf("unmounting: %v", err)
				}
			}
		}
		if *keep {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := e.bed.Down(ctx, "wide-a", "wide-b"); err != nil {
			t.Error(err)
		}
	})
	up := func(name string, conf ...bed.Option) *bed.Cluster {
		c, err := e.bed.Up(ctx, bed.ClusterSpec{Name: name, OSDs: 3, MDSs: 3, OSDSize: 20 << 30, Conf: conf})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	w.a = up("wide-a", mirrorOptions()...)
	// Every tenth directory goes to an MDS of its own choice.
	w.b = up("wide-b", bed.Option{Name: "mds export ephemeral random max", Value: "1"})
	if err := w.a.AddMirrorUser(ctx, "mirror"); err != nil {
		t.Fatal(err)
	}
	if err := w.b.AuthorizePeer(ctx, fsName, "remote"); err != nil {
		t.Fatal(err)
	}
	for _, c := range w.sites() {
		mon(t, c, map[string]any{"prefix": "osd erasure-code-profile set", "name": "wide",
			"profile": []string{"k=2", "m=1", "crush-failure-domain=osd"}})
		w.addPool(t, c, "ec")
		mon(t, c, map[string]any{"prefix": "fs set", "fs_name": fsName, "var": "max_mds", "val": "2"})
	}
	for _, c := range w.sites() {
		within(t, time.Minute, "two active MDSs", func() error {
			if n := len(ranks(t, c)); n != 2 {
				return fmt.Errorf("there are %d", n)
			}
			return nil
		})
	}
	var err error
	if w.src, err = cephtree.Open(w.a.Conf(), fsName); err == nil {
		w.dst, err = cephtree.Open(w.b.Conf(), fsName)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*cephtree.Client{w.src, w.dst} {
		cephtree.On(t, c, w.base).SetXattr("", "ceph.dir.layout.pool", fsName+".ec")
	}
	cephtree.On(t, w.dst, w.base).SetXattr("", "ceph.dir.pin.random", "0.1")
	return w
}

// addPool makes an erasure-coded pool for files.
func (e *env) addPool(t *testing.T, c *bed.Cluster, name string, set ...bed.Option) {
	t.Helper()
	pool := fsName + "." + name
	mon(t, c, map[string]any{"prefix": "osd pool create", "pool": pool, "pg_num": 8, "pool_type": "erasure", "erasure_code_profile": "wide"})
	for _, o := range append([]bed.Option{{Name: "allow_ec_overwrites", Value: "true"}, {Name: "min_size", Value: "2"}}, set...) {
		mon(t, c, map[string]any{"prefix": "osd pool set", "pool": pool, "var": o.Name, "val": o.Value})
	}
	mon(t, c, map[string]any{"prefix": "fs add_data_pool", "fs_name": fsName, "pool": pool})
}

// ranks returns the names of the active MDSs by rank.
func ranks(t *testing.T, c *bed.Cluster) map[int]string {
	t.Helper()
	var dump struct {
		FileSystems []struct {
			MDSMap struct {
				Info map[string]struct {
					Name  string `json:"name"`
					Rank  int    `json:"rank"`
					State string `json:"state"`
				} `json:"info"`
			} `json:"mdsmap"`
		} `json:"filesystems"`
	}
	mustJSON(t, mon(t, c, map[string]any{"prefix": "fs dump", "format": "json"}), &dump)
	active := make(map[int]string)
	for _, fs := range dump.FileSystems {
		for _, m := range fs.MDSMap.Info {
			if m.State == "up:active" {
				active[m.Rank] = "mds." + m.Name
			}
		}
	}
	return active
}

// pin gives a directory and all below it to one MDS.
func pin(m cephtree.Maker, rank int) { m.SetXattr("", "ceph.dir.pin", fmt.Sprint(rank)) }

// sharedTrees counts the subtrees that each active MDS has below the root.
func sharedTrees(t *testing.T, e *env, c *bed.Cluster) map[int]int {
	t.Helper()
	n := make(map[int]int)
	for rank, name := range ranks(t, c) {
		out, err := c.Daemon(name).Admin(e.ctx(t), map[string]any{"prefix": "get subtrees"})
		if err != nil {
			t.Fatal(err)
		}
		var trees []struct {
			IsAuth bool `json:"is_auth"`
			Dir    struct {
				Path string `json:"path"`
			} `json:"dir"`
		}
		mustJSON(t, out, &trees)
		for _, s := range trees {
			if s.IsAuth && strings.HasPrefix(s.Dir.Path, "/") {
				n[rank]++
			}
		}
	}
	return n
}

// TestWide mirrors between clusters with several OSDs, erasure-coded pools and
// several active MDSs.
func TestWide(t *testing.T) {
	e := need(t)
	needLong(t)
	w := newWide(t, e)
	d := w.mirror(t, "--cephmirror-log-level=debug")

	t.Run("all changes", func(t *testing.T) {
		m := w.newDir(t)
		pin(m, 1)
		w.allChanges(t, m, func(m cephtree.Maker, i int) { pin(m, i%2) })
		for _, c := range w.sites() {
			trees := sharedTrees(t, w, c)
			t.Logf("subtrees of the MDSs of %s: %v", c.Name(), trees)
			if trees[0] == 0 || trees[1] == 0 {
				t.Errorf("the MDSs of %s do not share the tree", c.Name())
			}
		}
	})
	t.Run("open files", func(t *testing.T) {
		w.openFiles(t, func(m cephtree.Maker) cephtree.Maker {
			pin(m, 0)
			in := m.At("on the other")
			pin(in, 1)
			return in
		})
	})
	t.Run("parts of large files", func(t *testing.T) { w.largeFiles(t, d) })
	t.Run("random operations", func(t *testing.T) {
		end := time.Now().Add(time.Minute)
		rounds := 0
		rapid.Check(t, func(r *rapid.T) {
			if time.Now().After(end) {
				return
			}
			rounds++
			w.randomRound(t, r, d, rounds)
		})
		t.Logf("%d rounds", rounds)
	})
	t.Run("faults", func(t *testing.T) { w.wideFaults(t, d) })
	t.Run("small files in their inodes", func(t *testing.T) {
		for _, c := range w.sites() {
			mon(t, c, map[string]any{"prefix": "fs set", "fs_name": fsName, "var": "inline_data", "val": "true",
				"yes_i_really_really_mean_it": true})
		}
		m := w.newDir(t)
		pin(m, 1)
		w.allChanges(t, m, func(m cephtree.Maker, i int) { pin(m, i%2) })
		w.growing(t)
	})
}

// largeFiles changes a little of large files, in pools of all kinds: what
// changed is not to be found by reading.
func (e *env) largeFiles(t *testing.T, d *daemon) {
	pools := []string{"ec", "data"}
	if e.bed.Release().Name != "reef" {
		for _, c := range e.sites() {
			e.addPool(t, c, "fast", bed.Option{Name: "allow_ec_optimizations", Value: "true"})
		}
		pools = append(pools, "fast")
	}
	const size = 40 * mib
	for _, pool := range pools {
		for _, striped := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, striped %v", pool, striped), func(t *testing.T) {
				m := e.newDir(t)
				layout := "pool=" + fsName + "." + pool
				if striped {
					layout += " stripe_unit=65536 stripe_count=3 object_size=1048576"
				}
				m.SetXattr("", "ceph.dir.layout", layout)
				names := []string{"written", "punched", "cut", "regrown", "grown", "zeroed", "restored", "same"}
				for i, n := range names {
					m.Write(n, cephtree.Data(uint64(i), size))
				}
				m.Snap("s1")
				e.track(t, m.Root())
				e.waitLong(t, patience, m, "s1")
				for i, snap := range []string{"s2", "s3"} {
					at := int64(i) * 4096
					m.WriteAt("written", cephtree.Data(99, 4096), 13*mib+at)
					m.Punch("punched", 9*mib+int64(i)*5*mib+77, 3*mib)
					m.Truncate("cut", size-5*mib-at-5)
					m.Truncate("regrown", size/2-at-3)
					m.Truncate("regrown", size)
					m.WriteAt("grown", cephtree.Data(98, mib), size+int64(i)*mib)
					m.WriteAt("zeroed", make([]byte, 100000), 7*mib+at*50)
					restored(m, "restored", func() { m.WriteAt("restored", []byte{1, 2, 3}, 21*mib+at) })
					m.Snap(snap)
				}
				e.waitLong(t, patience, m, "s2", "s3")
				e.same(t, m, "s1", "s2", "s3")
				log, err := os.ReadFile(d.log)
				if err != nil {
					t.Fatal(err)
				}
				for line := range bytes.Lines(log) {
					if bytes.Contains(line, []byte("comparing a file by reading")) && bytes.Contains(line, []byte(m.Root()+`"`)) {
						t.Errorf("%s", line)
						break
					}
				}
			})
		}
	}
}

// growing has files that grow out of their inodes, and shrink.
func (e *env) growing(t *testing.T) {
	m := e.newDir(t)
	sizes := []int{0, 1, 100, 4000, 4096, 4097, 10000, 5 * mib}
	name := func(i, j int) string { return fmt.Sprintf("from %d to %d", sizes[i], sizes[j]) }
	each := func(f func(i, j int)) {
		for i := range sizes {
			for j := range sizes {
				f(i, j)
			}
		}
	}
	each(func(i, j int) { m.Write(name(i, j), cephtree.Data(uint64(i), sizes[i])) })
	m.Snap("s1")
	e.track(t, m.Root())
	e.waitLong(t, patience, m, "s1")
	each(func(i, j int) {
		m.Truncate(name(i, j), int64(sizes[j]))
		if n := min(sizes[j], 50); n > 0 {
			m.WriteAt(name(i, j), cephtree.Data(7, n), int64(sizes[j]-n))
		}
	})
	m.Snap("s2")
	each(func(i, j int) {
		restored(m, name(i, j), func() { m.WriteAt(name(i, j), []byte("new"), 0) })
	})
	m.Snap("s3")
	e.waitLong(t, patience, m, "s2", "s3")
	e.same(t, m, "s1", "s2", "s3")
}

// wideFaults ends one daemon of several in the middle of a synchronisation.
func (e *env) wideFaults(t *testing.T, d *daemon) {
	second := func(c *bed.Cluster) []*bed.Daemon { return []*bed.Daemon{c.Daemon(ranks(t, c)[1])} }
	for _, c := range []struct {
		name   string
		daemon func() []*bed.Daemon
	}{
		{"plugin", nil},
		{"second MDS of the source", func() []*bed.Daemon { return second(e.a) }},
		{"second MDS of the peer", func() []*bed.Daemon { return second(e.b) }},
		{"OSD of the source", func() []*bed.Daemon { return []*bed.Daemon{e.a.Daemon("osd.1")} }},
		{"OSD of the peer", func() []*bed.Daemon { return []*bed.Daemon{e.b.Daemon("osd.1")} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := e.newDir(t)
			m.Mkdir("many")
			m.Mkdir("large")
			pin(m.At("many"), 0)
			pin(m.At("large"), 1)
			for i := range 500 {
				m.Write(fmt.Sprintf("many/%06d", i), cephtree.Data(uint64(i), 2000))
			}
			for i := range 10 {
				m.Write(fmt.Sprintf("large/%d", i), cephtree.Data(uint64(i), 12*mib))
			}
			m.Snap("s1")
			e.track(t, m.Root())
			e.midSync(t, m)
			if c.daemon == nil {
				if err := syscall.Kill(d.plugin(t), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				daemons := c.daemon()
				var errs []error
				for _, d := range daemons {
					errs = append(errs, d.Restart(e.ctx(t), syscall.SIGKILL))
				}
				for _, d := range daemons {
					errs = append(errs, d.WaitReady(e.ctx(t)))
				}
				if err := errors.Join(errs...); err != nil {
					t.Fatal(err)
				}
			}
			e.waitLong(t, 2*time.Minute, m, "s1")
			m.Rename("large/0", "many/moved")
			m.WriteAt("large/1", []byte("changed"), 5*mib)
			m.Snap("s2")
			e.waitLong(t, time.Minute, m, "s2")
			e.same(t, m, "s1", "s2")
		})
	}
}
