package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/test/rbdimage"
)

// soonEnough is how long our daemon may take to let a change be seen: 2 s, and
// one more for the tools on a busy machine.
const soonEnough = 3 * time.Second

// TestRBDStatusSoon takes the time until a change can be seen on both sites.
func TestRBDStatusSoon(t *testing.T) {
	e := need(t)
	notStock(t, "it takes up to 30 s")
	needLong(t) // a busy machine says little of seconds
	p, d := e.mirrored(t, poolOptions{})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	copy := p.wait(t, m, snap)
	p.waitIdle(t, copy)
	soon := func(what, state, text string) {
		t.Helper()
		begun := time.Now()
		p.waitState(t, 10*time.Second, copy, state, text)
		took := time.Since(begun)
		t.Logf("%s: seen after %v", what, took.Round(10*time.Millisecond))
		if took > soonEnough {
			t.Errorf("%s: seen after %v", what, took)
		}
	}
	for i := range 3 {
		// Time stamps are whole seconds.
		time.Sleep(1100 * time.Millisecond)
		m.Fill(uint64(i), 0, mib)
		p.wait(t, m, m.MirrorSnap())
		begun := time.Now()
		within(t, 10*time.Second, "the snapshot to be seen on both sites", func() error {
			for _, side := range []rbdimage.Pool{p.a, p.b} {
				_, text, err := p.own(side, m.Name())
				if side == p.a {
					_, text, err = p.peer(side, m.Name())
				}
				if err != nil {
					return err
				}
				r, err := parseReplay(text)
				if err != nil {
					return err
				}
				if r.Local != r.Remote || r.State != "idle" || time.Since(time.Unix(r.Local, 0)) > time.Since(begun)+3*time.Second {
					return fmt.Errorf("%s shows %s", side.Client.Name(), text)
				}
			}
			return nil
		})
		if took := time.Since(begun); took > soonEnough {
			t.Errorf("a snapshot was seen after %v", took)
		}
	}
	if _, err := d.call("rbd mirror stop " + copy.Spec()); err != nil {
		t.Fatal(err)
	}
	soon("stopped", "up+stopped", "")
	if _, err := d.call("rbd mirror start " + copy.Spec()); err != nil {
		t.Fatal(err)
	}
	soon("started", "up+replaying", "idle")
	m.Demote()
	soon("demoted", "up+unknown", "")
	p.rbd(t, e.a, "mirror", "image", "promote", m.Spec())
	soon("promoted again", "up+replaying", "idle")
	// Progress is shown.
	big := slowly(t, p.a, "big")
	snap = big.Mirror()
	seen := ""
	within(t, 60*time.Second, "the synchronisation", func() error {
		if exists, err := p.b.Exists(big.Name()); err == nil && exists {
			if _, text, err := p.own(p.b, big.Name()); err == nil && strings.Contains(text, "syncing_percent") {
				seen = text
			}
		}
		return p.arrived(big, snap)
	})
	if seen == "" {
		t.Error("the progress was never seen")
	}
	t.Logf("progress: %s", seen)
	d.stop(t)
	within(t, 10*time.Second, "the daemon to be seen as down", func() error {
		st, _, err := p.own(p.b, m.Name())
		if err == nil && st != "down+stopped" && st != "down+replaying" {
			err = fmt.Errorf("it is %s", st)
		}
		return err
	})
}

// TestRBDPoolStatus looks at a pool with daemons on both sites as operators do.
func TestRBDPoolStatus(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	e.startRBD(t, tested(), e.a)
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	copy := p.waitSame(t, m)
	p.waitIdle(t, copy)
	type poolDaemon struct {
		Service  string `json:"service_id"`
		Instance string `json:"instance_id"`
		Client   string `json:"client_id"`
		Host     string `json:"hostname"`
		Version  string `json:"ceph_version"`
		Leader   bool   `json:"leader"`
		Health   string `json:"health"`
		Callouts any    `json:"callouts"`
	}
	type poolStatus struct {
		Summary struct {
			Health string         `json:"health"`
			Daemon string         `json:"daemon_health"`
			Image  string         `json:"image_health"`
			States map[string]int `json:"states"`
		} `json:"summary"`
		Daemons []poolDaemon `json:"daemons"`
		Images  []siteStatus `json:"images"`
	}
	for _, c := range e.sites() {
		within(t, 45*time.Second, "all to be well on "+c.Name(), func() error {
			out, err := e.tryRBD(c, "mirror", "pool", "status", p.name, "--verbose", "--format", "json")
			if err != nil {
				return err
			}
			var s poolStatus
			mustJSON(t, out, &s)
			// Daemons that were killed are listed for a minute or two.
			alive := slices.DeleteFunc(s.Daemons, func(d poolDaemon) bool { return d.Instance == "" })
			if s.Summary.Image != "OK" || len(alive) != 1 || len(s.Images) != 1 {
				return errors.New(out)
			}
			if len(alive) == len(s.Daemons) && (s.Summary.Health != "OK" || s.Summary.Daemon != "OK") {
				return errors.New(out)
			}
			d, im := alive[0], s.Images[0]
			if !d.Leader || d.Health != "OK" || d.Client != rbdUser || d.Instance == "" || d.Host == "" || d.Version == "" {
				return fmt.Errorf("the daemon is shown as %+v", d)
			}
			if im.DaemonService == nil || im.DaemonService.InstanceID != d.Instance || im.DaemonService.DaemonID != rbdUser || len(im.PeerSites) != 1 {
				return fmt.Errorf("the image is shown as %s", out)
			}
			return nil
		})
		var info struct {
			Peers []struct {
				UUID string `json:"mirror_uuid"`
			} `json:"peers"`
		}
		p.rbdJSON(t, c, &info, "mirror", "pool", "info", p.name)
		if len(info.Peers) != 1 || info.Peers[0].UUID == "" {
			t.Errorf("%s does not know the uuid of its peer: %+v", c.Name(), info)
		}
	}
	// What is wrong with an image shows in the health.
	p.rbd(t, e.b, "mirror", "image", "promote", "--force", copy.Spec())
	copy.Demote()
	within(t, 45*time.Second, "the error to be shown", func() error {
		out, err := e.tryRBD(e.b, "mirror", "pool", "status", p.name, "--format", "json")
		if err != nil {
			return err
		}
		var s poolStatus
		mustJSON(t, out, &s)
		if s.Summary.Health != "ERROR" || s.Summary.States["error"] != 1 {
			return errors.New(out)
		}
		return nil
	})
}

// imageState returns what the admin socket says of an image.
func (d *daemon) imageState(spec string) (string, error) {
	out, err := d.call("rbd mirror status " + spec)
	if err != nil {
		return "", err
	}
	for _, state := range []string{"Replaying", "Stopped", "Starting", "Stopping"} {
		if strings.Contains(string(out), state) {
			return state, nil
		}
	}
	return "", fmt.Errorf("the status is %s", out)
}

func (d *daemon) waitImageState(t *testing.T, spec, state string) {
	t.Helper()
	within(t, 20*time.Second, spec+" to be "+state, func() error {
		got, err := d.imageState(spec)
		if err == nil && got != state {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

// TestRBDCommands sends all commands in all forms to the admin socket.
func TestRBDCommands(t *testing.T) {
	e := need(t)
	p, d := e.mirrored(t, poolOptions{namespaces: []string{"ns"}})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	p.wait(t, m, snap)
	q := p.namespace("ns")
	n, snap := q.newImage(t, "image", rbdimage.Options{})
	q.wait(t, n, snap)
	one, two := m.Spec(), n.Spec()
	d.waitImageState(t, one, "Replaying")
	d.waitImageState(t, two, "Replaying")
	pool := " " + p.name + " a"
	do := func(command string) {
		t.Helper()
		out, err := d.call("rbd mirror " + command)
		if err != nil || len(out) > 0 {
			t.Fatalf("rbd mirror %s: %q, %v", command, out, err)
		}
	}
	both := func(a, b string) {
		t.Helper()
		d.waitImageState(t, one, a)
		d.waitImageState(t, two, b)
	}
	t.Run("image", func(t *testing.T) {
		do("stop " + one)
		both("Stopped", "Replaying")
		p.waitOwn(t, m.In(p.b), "up+stopped", "")
		m.Fill(1, 0, mib)
		snap := m.MirrorSnap()
		holds(t, 5*time.Second, "a stopped image", func() error {
			if p.arrived(m, snap) == nil {
				return errors.New("it is mirrored")
			}
			return nil
		})
		do("flush " + one)
		do("start " + one)
		both("Replaying", "Replaying")
		p.wait(t, m, snap)
		do("restart " + one)
		do("restart " + two)
		both("Replaying", "Replaying")
		do("flush " + one)
	})
	t.Run("pool", func(t *testing.T) {
		do("stop" + pool)
		both("Stopped", "Stopped")
		do("start " + one) // one image of a stopped pool
		both("Replaying", "Stopped")
		do("stop " + one)
		do("restart " + two)
		both("Stopped", "Replaying")
		do("flush" + pool)
		do("start" + pool)
		both("Replaying", "Replaying")
		do("restart" + pool)
		both("Replaying", "Replaying")
		m.Fill(2, 0, mib)
		p.waitSame(t, m)
	})
	t.Run("daemon", func(t *testing.T) {
		do("stop")
		both("Stopped", "Stopped")
		do("start")
		both("Replaying", "Replaying")
		do("stop")
		if tested() == stock { // it may forget the start
			both("Stopped", "Stopped")
		}
		do("start")
		both("Replaying", "Replaying")
		do("restart")
		both("Replaying", "Replaying")
		do("flush")
		m.Fill(3, 0, mib)
		p.waitSame(t, m)
	})
	t.Run("leader release", func(t *testing.T) {
		for _, form := range []string{"leader release", "leader release" + pool} {
			within(t, 20*time.Second, "it to be leader", func() error {
				out, err := d.call("rbd mirror status" + pool)
				if err == nil && !strings.Contains(string(out), `"leader":true`) {
					err = errors.New(string(out))
				}
				return err
			})
			do(form)
		}
		m.Fill(4, 0, mib)
		p.waitLong(t, 60*time.Second, m, m.MirrorSnap())
		p.same(t, m)
	})
	t.Run("JSON", func(t *testing.T) {
		// Who has released the lead takes it again only after a while.
		var out []byte
		err := eventually(60*time.Second, func() (err error) {
			if out, err = d.call("rbd mirror status" + pool); err == nil && !strings.Contains(string(out), `"instances"`) {
				err = errors.New("not the leader")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		wantKeys(t, "pool", string(out), "peer", "pool", "instance_id", "state", "leader_instance_id", "leader", "instances",
			"local_cluster_admin_socket", "remote_cluster_admin_socket", "sync_throttler", "deletion_throttler")
		if out, err = d.call("rbd mirror status " + one); err != nil {
			t.Fatal(err)
		}
		wantKeys(t, "image", string(out), "name", "state")
		if out, err = d.call("rbd mirror deletion status " + p.name); err != nil {
			t.Error(err)
		} else {
			wantKeys(t, "deletion", string(out), "delete_images_queue", "failed_deletes_queue")
		}
		var all struct {
			Pools []map[string]any `json:"pool_replayers"`
		}
		if out, err = d.call("rbd mirror status"); err != nil {
			t.Fatal(err)
		}
		mustJSON(t, string(out), &all)
		i := slices.IndexFunc(all.Pools, func(m map[string]any) bool { return m["pool"] == p.name })
		if i < 0 {
			t.Fatalf("the pool is not in %s", out)
		}
		// Reef has the default namespace's images in the pool itself.
		key, count := "namespace_replayers", 2
		if e.bed.Release().Name == "reef" {
			key, count = "namespaces", 1
		}
		if list, ok := all.Pools[i][key].([]any); !ok || len(list) != count {
			t.Errorf("namespaces: %v", slices.Sorted(maps.Keys(all.Pools[i])))
		}
	})
	t.Run("stock tool", func(t *testing.T) {
		for _, words := range [][]string{
			{"help"}, {"version"}, {"config", "show"}, {"counter", "dump"}, {"perf", "dump"},
			{"rbd", "mirror", "status"}, {"rbd", "mirror", "status", p.name, "a"}, {"rbd", "mirror", "status", one}, {"rbd", "mirror", "status", two},
		} {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			out, err := e.b.Ceph(ctx, append([]string{"--admin-daemon", d.sock}, words...)...)
			cancel()
			if err != nil || strings.HasPrefix(out, "ERROR") {
				t.Errorf("%v: %.200s, %v", words, out, err)
			}
		}
		// A daemon that does not have the image says so by its exit code.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if out, err := e.b.Ceph(ctx, "--admin-daemon", d.sock, "rbd", "mirror", "status", p.name+"/none"); err == nil {
			t.Errorf("an image that is not there: %s", out)
		}
	})
	t.Run("counters", func(t *testing.T) {
		out, err := d.call("counter dump")
		if err != nil {
			t.Fatal(err)
		}
		var dump struct {
			All []struct {
				Counters struct {
					Snapshots int64 `json:"snapshots"`
					Bytes     int64 `json:"sync_bytes"`
				} `json:"counters"`
			} `json:"rbd_mirror_snapshot"`
			Images []struct {
				Labels   map[string]string `json:"labels"`
				Counters map[string]any    `json:"counters"`
			} `json:"rbd_mirror_snapshot_image"`
		}
		mustJSON(t, string(out), &dump)
		if len(dump.All) == 0 || dump.All[0].Counters.Snapshots < 5 || dump.All[0].Counters.Bytes < mib {
			t.Errorf("all: %+v", dump.All)
		}
		i := slices.IndexFunc(dump.Images, func(im struct {
			Labels   map[string]string `json:"labels"`
			Counters map[string]any    `json:"counters"`
		}) bool {
			return im.Labels["pool"] == p.name && im.Labels["namespace"] == "" && im.Labels["image"] == "image"
		})
		if i < 0 {
			t.Fatalf("the image is not in %s", out)
		}
		for _, name := range []string{"snapshots", "sync_time", "sync_bytes", "remote_timestamp", "local_timestamp", "last_sync_time", "last_sync_bytes"} {
			if _, ok := dump.Images[i].Counters[name]; !ok {
				t.Errorf("counter %s is missing", name)
			}
		}
	})
}

// TestRBDDaemonLife starts the daemon and ends it, after which nothing is left.
func TestRBDDaemonLife(t *testing.T) {
	e := need(t)
	if tested() == stock {
		t.Skip("of our daemon")
	}
	p := e.newPool(t, poolOptions{})
	d := e.startRBD(t, ours, e.b, "--rbd_mirror_leader_heartbeat_interval", "1", "--debug-rbd-mirror=5/5")
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	p.waitSame(t, m)
	begun := time.Now()
	d.stop(t)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the daemon took %v to stop", took)
	}
	// Nothing is left of it: no lock, no instance, no watch.
	names, err := objectsOf(p.b, func(name string) bool { return strings.HasPrefix(name, "rbd_mirror_instance.") })
	if err != nil || len(names) > 0 {
		t.Errorf("objects of instances are left: %v, %v", names, err)
	}
	for _, object := range []string{"rbd_mirror_leader", "rbd_mirroring"} {
		if out := p.rados(t, "listwatchers", object); out != "" {
			t.Errorf("watchers of %s are left: %s", object, out)
		}
	}
	if out := p.rados(t, "lock", "info", "rbd_mirror_leader", "rbd_lock"); strings.Contains(out, "client.") {
		t.Errorf("the leader's lock is left: %s", out)
	}
}

// TestRBDBackground starts the daemon in the background, as packages do, with a
// configuration that is in the working directory.
func TestRBDBackground(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{})
	dir := t.TempDir()
	conf, err := os.ReadFile(e.b.Conf())
	if err != nil {
		t.Fatal(err)
	}
	const name = "here"
	if err := os.WriteFile(filepath.Join(dir, name+".conf"), conf, 0o644); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(e.b.RunDir(), name+"-client."+rbdUser)
	log := filepath.Join(e.b.Dir(), "log", "client."+rbdUser+".log")
	d := &daemon{e: e, sock: at + ".asok"}
	args := []string{"rbd-mirror", "--cluster", name, "--id", rbdUser}
	if tested() == ours {
		args = append([]string{filepath.Join(e.bin, "cephmirror")}, args...)
	}
	pid := 0
	start := func(more ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cmd := e.b.Command(ctx, append(append(args, rbdOptions()...), more...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		text, err := os.ReadFile(at + ".pid")
		if err != nil {
			t.Fatal(err)
		}
		if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			t.Fatal(err)
		}
		// It returns once the daemon runs: nothing to wait for.
		if _, err := d.call("version"); err != nil {
			t.Error(err)
		}
	}
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	ended := func(pids ...int) {
		t.Helper()
		within(t, 20*time.Second, "the daemon to end", func() error {
			for _, n := range pids {
				if alive(n) {
					return fmt.Errorf("process %d is there", n)
				}
			}
			return nil
		})
	}
	start("--daemonize=true")
	t.Cleanup(func() {
		if alive(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	p.wait(t, m, snap)
	p.waitSame(t, m)
	// Its log makes way for another one.
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	signal(syscall.SIGHUP)
	within(t, 10*time.Second, "a new log", func() error { _, err := os.Stat(log); return err })
	// Frozen, and let go on.
	signal(syscall.SIGSTOP)
	m.Fill(2, 0, 5*mib)
	snap = m.MirrorSnap()
	time.Sleep(3 * time.Second)
	signal(syscall.SIGCONT)
	p.waitLong(t, 60*time.Second, m, snap)
	p.same(t, m)
	signal(syscall.SIGTERM)
	ended(pid)
	for _, path := range []string{at + ".pid", at + ".asok"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	// Killed, it leaves no process, and does not keep the next one from
	// starting.
	start()
	pids := []int{pid}
	if tested() == ours {
		pids = append(pids, d.plugin(t))
	}
	signal(syscall.SIGKILL)
	ended(pids...)
	start()
	m.Fill(3, 0, 5*mib)
	p.waitLong(t, 60*time.Second, m, m.MirrorSnap())
	p.same(t, m)
	signal(syscall.SIGTERM)
	ended(pid)
}

// shape renders what a JSON text has, values apart: members in their order and
// the kinds of their values. Of lists it is the first element.
func shape(dec *json.Decoder, at string, out *[]string) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	note := func(kind string) { *out = append(*out, at+" "+kind) }
	switch v := tok.(type) {
	case json.Delim:
		note(v.String())
		for first := true; dec.More(); first = false {
			into, inner := out, at+"[]"
			if v == '{' {
				key, err := dec.Token()
				if err != nil {
					return err
				}
				inner = fmt.Sprintf("%s.%v", at, key)
			} else if !first {
				into = new([]string)
			}
			if err := shape(dec, inner, into); err != nil {
				return err
			}
		}
		_, err = dec.Token()
		return err
	case string:
		note("string")
	case float64:
		note("number")
	case bool:
		note("bool")
	default:
		note("null")
	}
	return nil
}

// TestRBDStockViews compares what our daemon and the stock one tell of the same
// images: the members of the stock one's JSON in their order, and its commands.
func TestRBDStockViews(t *testing.T) {
	needLong(t)
	e := need(t)
	p := e.newPool(t, poolOptions{namespaces: []string{"ns"}})
	q := p.namespace("ns")
	m, snap := p.newImage(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	n, other := q.newImage(t, "image", rbdimage.Options{})
	commands := []string{
		"rbd mirror status", "rbd mirror status " + p.name + " a", "rbd mirror status " + m.Spec(), "rbd mirror status " + n.Spec(),
		"rbd mirror deletion status " + p.name,
	}
	look := func(who string) (shapes map[string][]string, help map[string]string, status []string) {
		d := e.startRBD(t, who, e.b)
		p.waitLong(t, 60*time.Second, m, snap)
		q.waitLong(t, 60*time.Second, n, other)
		// A copy that has been synchronised once more tells all there is.
		m.Fill(2, 0, 5*mib)
		snap = m.MirrorSnap()
		copy := p.wait(t, m, snap)
		p.waitState(t, 60*time.Second, copy, "up+replaying", `"last_snapshot_bytes"`)
		within(t, 45*time.Second, "it to be leader", func() error {
			out, err := d.call(commands[1])
			if err == nil && !strings.Contains(string(out), `"instances"`) {
				err = errors.New(string(out))
			}
			return err
		})
		shapes = make(map[string][]string)
		for _, c := range commands {
			out, err := d.call(c)
			if err != nil {
				if who == stock {
					continue // not of this release
				}
				t.Fatal(err)
			}
			var s []string
			if err := shape(json.NewDecoder(bytes.NewReader(out)), "", &s); err != nil {
				t.Fatalf("%s: %v in %s", c, err, out)
			}
			shapes[c] = s
		}
		out, err := d.call("help")
		if err != nil {
			t.Fatal(err)
		}
		mustJSON(t, string(out), &help)
		maps.DeleteFunc(help, func(c, _ string) bool { return !strings.HasPrefix(c, "rbd mirror") })
		_, text, err := p.own(p.b, m.Name())
		if err != nil {
			t.Fatal(err)
		}
		text = strings.TrimPrefix(text, "replaying, ")
		if err := shape(json.NewDecoder(strings.NewReader(text)), "description", &status); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		d.stop(t)
		return shapes, help, status
	}
	wantShapes, wantHelp, wantStatus := look(stock)
	gotShapes, gotHelp, gotStatus := look(ours)
	compare := func(what string, want, got []string) {
		rest := got
		for _, w := range want {
			i := slices.Index(rest, w)
			if i < 0 {
				t.Errorf("%s: %q is missing, or not in its place", what, w)
				continue
			}
			rest = rest[i+1:]
		}
		if t.Failed() {
			t.Logf("%s:\nstock %q\nours  %q", what, want, got)
		}
	}
	for _, c := range commands {
		compare(c, wantShapes[c], gotShapes[c])
	}
	compare("description", wantStatus, gotStatus)
	for c, text := range wantHelp {
		if gotHelp[c] != text {
			t.Errorf("the help of %q is %q, not %q", c, gotHelp[c], text)
		}
	}
}

// rados runs the rados tool on b's pool.
func (p *rbdPool) rados(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := p.e.b.Command(ctx, append([]string{"rados", "--cluster", "b", "-p", p.name}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("rados %v: %v, %s", args, err, stderr(err))
	}
	return strings.TrimSpace(string(out))
}
