package rbdmirror

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/plugins"
	"cephmirror/plugins/plugintest"
	"cephmirror/test/bed"
	"cephmirror/test/rbdsite"
)

// patience bounds every wait.
const patience = 45 * time.Second

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if done() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// startEngine runs an engine under a lease that is renewed, as a host does.
func startEngine(t *testing.T, s *rbdsite.Site) *Engine {
	t.Helper()
	lease := plugins.NewLease(nil)
	ctx, cancel := context.WithCancel(context.Background())
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		for ctx.Err() == nil {
			lease.Renew(5 * time.Second)
			time.Sleep(time.Second)
		}
	}()
	e := New(zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel), lease)
	t.Cleanup(func() {
		stop, stopped := context.WithTimeout(context.Background(), patience)
		defer stopped()
		if err := e.Stop(stop); err != nil {
			t.Error(err)
		}
		cancel()
		<-renewed
	})
	cfg := plugins.Config{
		Mode: plugins.ModeWorker, Cluster: s.Cluster.Name(), Name: "client.mirror",
		Settings: map[string]string{settingConnect: "3s"},
	}
	if _, err := e.Start(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	return e
}

// statusOf returns the status of one pool as the admin socket shows it.
func statusOf(t *testing.T, e *Engine, pool string) (status map[string]any, text []byte) {
	t.Helper()
	r := e.Call(t.Context(), plugins.Command{Prefix: "rbd mirror status"})
	if r.Errno != 0 {
		t.Fatalf("%+v", r)
	}
	var all struct {
		Pools []json.RawMessage `json:"pool_replayers"`
	}
	if err := json.Unmarshal(r.Out, &all); err != nil {
		t.Fatal(err)
	}
	for _, p := range all.Pools {
		status = nil
		if err := json.Unmarshal(p, &status); err != nil {
			t.Fatal(err)
		}
		if status["pool"] == pool {
			return status, p
		}
	}
	return nil, nil
}

// keys returns the names of an object's members, in their order.
func keys(t *testing.T, text []byte) []string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(text))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(name))
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// stockKeys are the members of a pool's status in a stored answer of the stock
// daemon.
func stockKeys(t *testing.T, release string) []string {
	t.Helper()
	file := "asok-status-leader.json"
	if release == "reef" {
		file = "asok-status-leader-reef.json"
	}
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Pools []json.RawMessage `json:"pool_replayers"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return keys(t, all.Pools[0])
}

type poolStatus struct {
	Summary struct {
		Health       string `json:"health"`
		DaemonHealth string `json:"daemon_health"`
	} `json:"summary"`
	Daemons []struct {
		Instance string   `json:"instance_id"`
		ClientID string   `json:"client_id"`
		Version  string   `json:"ceph_version"`
		Leader   bool     `json:"leader"`
		Health   string   `json:"health"`
		Callouts []string `json:"callouts"`
	} `json:"daemons"`
}

type poolInfo struct {
	Mode  string `json:"mode"`
	UUID  string `json:"mirror_uuid"`
	Peers []struct {
		UUID       string `json:"uuid"`
		Direction  string `json:"direction"`
		Site       string `json:"site_name"`
		MirrorUUID string `json:"mirror_uuid"`
	} `json:"peers"`
}

// TestLive follows a pool from the first to the last day of its mirroring.
func TestLive(t *testing.T) {
	a, b := rbdsite.Start(t, "ea"), rbdsite.Start(t, "eb")
	for _, s := range []*rbdsite.Site{a, b} {
		forget(s)
	}
	t.Cleanup(func() { forget(b); forget(a) })
	e := startEngine(t, b)
	if p, _ := statusOf(t, e, rbdsite.Pool); p != nil {
		t.Errorf("a pool that is not mirrored has a status: %v", p)
	}

	// A mode alone is told in the service map, a peer is mirrored from.
	a.Run("rbd", "mirror", "pool", "enable", rbdsite.Pool, "image", "--site-name", "site-a")
	b.Run("rbd", "mirror", "pool", "enable", rbdsite.Pool, "image", "--site-name", "site-b")
	serving := func() (ours *servicePool) {
		for _, p := range e.sortedPools() {
			if s, ok := p.serviceStatus(); ok && p.name == rbdsite.Pool {
				return &s
			}
		}
		return nil
	}
	eventually(t, "the pool in the service map", func() bool { return serving() != nil })
	token := t.TempDir() + "/token"
	text := a.Run("rbd", "mirror", "pool", "peer", "bootstrap", "create", rbdsite.Pool)
	if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	imported := time.Now()
	b.Run("rbd", "mirror", "pool", "peer", "bootstrap", "import", rbdsite.Pool, token, "--direction", "rx-only")
	eventually(t, "the pool to be mirrored, led by this instance", func() bool {
		p, _ := statusOf(t, e, rbdsite.Pool)
		return p != nil && p["leader"] == true
	})
	t.Logf("mirrored %v after the import began", time.Since(imported))

	// The answer has all that the stock daemon's has, in its order.
	_, text2 := statusOf(t, e, rbdsite.Pool)
	got, want := keys(t, text2), stockKeys(t, e.info.CephRelease)
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("members of the status: %v, want first %v", got, want)
	}
	state, err := plugintest.State(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, ev := range state {
		if ev.Kind == plugins.EventCommandAdded {
			commands = append(commands, ev.Spec.Prefix())
		}
	}
	for _, c := range []string{"rbd mirror status", "rbd mirror leader release rbd site-a", "rbd mirror deletion status rbd"} {
		if !slices.Contains(commands, c) {
			t.Errorf("command %q is missing in %v", c, commands)
		}
		if strings.Contains(c, "status") {
			if r := e.Call(t.Context(), plugins.Command{Prefix: c}); r.Errno != 0 || len(r.Out) == 0 {
				t.Errorf("%s: %+v", c, r)
			}
		}
	}

	// So say the tools, on both sides.
	eventually(t, "a healthy pool", func() bool {
		var s poolStatus
		b.JSON(&s, "rbd", "mirror", "pool", "status", rbdsite.Pool, "--verbose")
		for _, d := range s.Daemons {
			if d.ClientID == "mirror" && d.Leader && d.Health == "OK" && d.Instance != "" && d.Version == e.info.CephVersion {
				return true
			}
		}
		return false
	})
	var here, there poolInfo
	b.JSON(&here, "rbd", "mirror", "pool", "info", rbdsite.Pool)
	a.JSON(&there, "rbd", "mirror", "pool", "info", rbdsite.Pool)
	if len(there.Peers) != 1 || there.Peers[0].Direction != "tx-only" || there.Peers[0].Site != "site-b" || there.Peers[0].MirrorUUID == "" {
		t.Errorf("the other side was not told of us: %+v", there)
	}
	if here.UUID != "" && here.UUID != there.Peers[0].MirrorUUID {
		t.Errorf("the other side knows mirror uuid %s, ours is %s", there.Peers[0].MirrorUUID, here.UUID)
	}

	// A peer of another pool that cannot be reached is no matter to this one.
	b.Run("rbd", "mirror", "pool", "enable", rbdsite.DataPool, "image")
	key := t.TempDir() + "/key"
	if err := os.WriteFile(key, []byte("AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA==\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Run("rbd", "mirror", "pool", "peer", "add", rbdsite.DataPool, "client.x@nowhere", "--direction", "rx-only",
		"--remote-mon-host", "127.0.0.1:9", "--remote-key-file", key)
	eventually(t, "the other pool to be in error", func() bool {
		p, _ := statusOf(t, e, rbdsite.DataPool)
		return p != nil && p["state"] == "error" && p["error"] != ""
	})
	var s poolStatus
	eventually(t, "the tool to say so", func() bool {
		b.JSON(&s, "rbd", "mirror", "pool", "status", rbdsite.DataPool, "--verbose")
		return slices.ContainsFunc(s.Daemons, func(d struct {
			Instance string   `json:"instance_id"`
			ClientID string   `json:"client_id"`
			Version  string   `json:"ceph_version"`
			Leader   bool     `json:"leader"`
			Health   string   `json:"health"`
			Callouts []string `json:"callouts"`
		}) bool {
			return slices.Contains(d.Callouts, "unable to connect to remote cluster")
		})
	})
	if p, _ := statusOf(t, e, rbdsite.Pool); p["state"] != "running" || p["leader"] != true {
		t.Errorf("the first pool: %v", p)
	}

	// Namespaces come and go.
	spaces := func() (names []string) {
		for _, p := range e.sortedPools() {
			for _, l := range p.sortedLinks() {
				if s := l.current(); s != nil {
					for _, sp := range s.sortedSpaces() {
						names = append(names, sp.spec.local)
					}
				}
			}
		}
		return names
	}
	for _, s := range []*rbdsite.Site{a, b} {
		s.Run("rbd", "mirror", "pool", "enable", rbdsite.Pool+"/"+rbdsite.Namespace, "image")
	}
	eventually(t, "the namespace", func() bool { return slices.Equal(spaces(), []string{"", rbdsite.Namespace}) })
	eventually(t, "the instance in the namespace", func() bool {
		return slices.ContainsFunc(b.Objects(rbdsite.Pool, rbdsite.Namespace), func(o string) bool { return strings.HasPrefix(o, "rbd_mirror_instance.") })
	})
	b.Run("rbd", "mirror", "pool", "disable", rbdsite.Pool+"/"+rbdsite.Namespace)
	eventually(t, "the end of the namespace", func() bool { return slices.Equal(spaces(), []string{""}) })

	// Shut out of the cluster, it comes back as another instance.
	before, _ := statusOf(t, e, rbdsite.Pool)
	for _, w := range strings.Split(b.Run("rados", "-p", rbdsite.Pool, "listwatchers", mirroringObject), "\n") {
		if addr, rest, ok := strings.Cut(strings.TrimPrefix(w, "watcher="), " "); ok && strings.Contains(rest, fmt.Sprintf("client.%v ", before["instance_id"])) {
			b.Run("ceph", "osd", "blocklist", "add", addr)
		}
	}
	eventually(t, "a new instance", func() bool {
		p, _ := statusOf(t, e, rbdsite.Pool)
		return p["instance_id"] != nil && p["instance_id"] != before["instance_id"] && p["leader"] == true
	})

	// Disabled, nothing of it stays.
	forget(b)
	eventually(t, "the end of the mirroring", func() bool {
		p, _ := statusOf(t, e, rbdsite.Pool)
		return p == nil && serving() == nil
	})
	for _, o := range b.Objects(rbdsite.Pool, "") {
		if strings.HasPrefix(o, "rbd_mirror_instance.") {
			t.Errorf("%s is left", o)
		}
	}
}

// forget ends all mirroring on a site.
func forget(s *rbdsite.Site) {
	for _, pool := range []string{rbdsite.Pool, rbdsite.DataPool} {
		var info poolInfo
		out, err := s.Try("rbd", "mirror", "pool", "info", pool, "--format", "json")
		if err != nil || json.Unmarshal([]byte(out), &info) != nil {
			continue
		}
		for _, p := range info.Peers {
			_, _ = s.Try("rbd", "mirror", "pool", "peer", "remove", pool, p.UUID)
		}
		_, _ = s.Try("rbd", "mirror", "pool", "disable", pool+"/"+rbdsite.Namespace)
		_, _ = s.Try("rbd", "mirror", "pool", "disable", pool)
	}
}

func TestConforms(t *testing.T) {
	if bed.InsideRelease() == "" {
		t.Skip("needs Ceph: run with bed enter")
	}
	s := rbdsite.Start(t, "eb")
	plugintest.Conform(t, func(t *testing.T) plugintest.Subject {
		return plugintest.Subject{
			Plugin: New(zerolog.New(zerolog.NewTestWriter(t)), plugins.NewLease(nil)),
			Config: plugins.Config{Mode: plugins.ModeWorker, Cluster: s.Cluster.Name(), Name: "client.mirror"},
		}
	})
}
