package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cephmirror/test/bed"
	"cephmirror/test/rbdimage"
)

// The tests of RBD mirroring have pools of their own on both clusters, each
// mirrored both ways. Mostly images of a are mirrored to b, by a daemon that
// runs on b.

var rbdDaemon = flag.String("rbd-daemon", os.Getenv("CEPHMIRROR_TEST_RBD_DAEMON"), "daemon under test for RBD: ours or stock; empty: ours")

const (
	ours  = "ours"
	stock = "stock"

	rbdUser = "rbdm" // of the daemons on both sides
)

// tested is the daemon under test.
func tested() string {
	if *rbdDaemon == "" {
		return ours
	}
	return *rbdDaemon
}

// notStock skips what the stock daemon is known to do wrong.
func notStock(t *testing.T, why string) {
	t.Helper()
	if tested() == stock {
		t.Skip("the stock daemon does not: " + why)
	}
}

// rbdSites are the connections of the tests to both clusters.
type rbdSites struct {
	once sync.Once
	err  error
	a, b *rbdimage.Client
	n    atomic.Int64 // pools made
}

func (s *rbdSites) close() {
	for _, c := range []*rbdimage.Client{s.a, s.b} {
		if c != nil {
			c.Close()
		}
	}
}

func (s *rbdSites) open(ctx context.Context, e *env) error {
	var err error
	if s.a, err = rbdimage.Open("a", e.a.Conf()); err != nil {
		return err
	}
	if s.b, err = rbdimage.Open("b", e.b.Conf()); err != nil {
		return err
	}
	for _, c := range []*bed.Cluster{e.a, e.b} {
		for _, user := range []string{rbdUser, rbdUser + "2"} {
			if err := c.AddRBDMirrorUser(ctx, user); err != nil {
				return err
			}
		}
		// Whatever was removed makes way for the next test.
		for _, opt := range []string{"osd_snap_trim_sleep", "osd_delete_sleep"} {
			if _, err := c.MonCommand(ctx, map[string]any{"prefix": "config set", "who": "osd", "name": opt, "value": "0.000001"}); err != nil {
				return err
			}
		}
	}
	return nil
}

// rbdPool is a pool that is mirrored between both clusters.
type rbdPool struct {
	e    *env
	name string
	a, b rbdimage.Pool
}

// poolOptions say how a pool is mirrored.
type poolOptions struct {
	mode       string // "image" by default
	oneWay     bool   // b is told of a, a not of b
	unpeered   bool   // enabled, but the sides do not know each other
	namespaces []string
}

// onReef are the tests that are made on Reef every time, and not only on
// Tentacle: those of what the releases do differently, or the stock daemons and
// tools of both, with which ours take turns.
func onReef() []string {
	return []string{
		"TestRBDFirst", "TestRBDChanges", "TestRBDKilled", "TestRBDFailOver", "TestRBDSplitBrain",
		"TestRBDPoolMode", "TestRBDCommands", "TestRBDDaemonLife",
	}
}

// newPool makes a pool on both sides, mirrored both ways.
func (e *env) newPool(t *testing.T, o poolOptions) *rbdPool {
	t.Helper()
	if test, _, _ := strings.Cut(t.Name(), "/"); e.bed.Release().Name == "reef" && !slices.Contains(onReef(), test) {
		needLong(t)
	}
	s := &e.rbd
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.err = s.open(ctx, e)
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	if o.mode == "" {
		o.mode = "image"
	}
	p := &rbdPool{e: e, name: fmt.Sprintf("r%d-%s", s.n.Add(1), e.stamp)}
	p.a, p.b = s.a.Pool(p.name), s.b.Pool(p.name)
	for _, c := range e.sites() {
		e.makePool(t, c, p.name)
		p.rbd(t, c, "mirror", "pool", "enable", p.name, o.mode, "--site-name", c.Name())
		for _, ns := range o.namespaces {
			p.rbd(t, c, "namespace", "create", p.name+"/"+ns)
			p.rbd(t, c, "mirror", "pool", "enable", p.name+"/"+ns, o.mode)
		}
	}
	if !o.unpeered {
		p.introduce(t, o.oneWay)
	}
	return p
}

// introduce makes the sides peers of each other.
func (p *rbdPool) introduce(t *testing.T, oneWay bool) {
	t.Helper()
	direction := "rx-tx"
	if oneWay {
		direction = "rx-only"
	}
	token := filepath.Join(t.TempDir(), "token")
	writeFile(t, token, p.rbd(t, p.e.a, "mirror", "pool", "peer", "bootstrap", "create", p.name))
	p.rbd(t, p.e.b, "mirror", "pool", "peer", "bootstrap", "import", p.name, "--direction", direction, token)
}

// writeFile writes a secret.
func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (e *env) sites() []*bed.Cluster { return []*bed.Cluster{e.a, e.b} }

// makePool makes a pool and removes it at the end of the test.
func (e *env) makePool(t *testing.T, c *bed.Cluster, name string) {
	t.Helper()
	mon(t, c, map[string]any{"prefix": "osd pool create", "pool": name, "pg_num": 8})
	mon(t, c, map[string]any{"prefix": "osd pool application enable", "pool": name, "app": "rbd"})
	t.Cleanup(func() {
		if *keep && t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_, err := c.MonCommand(ctx, map[string]any{"prefix": "osd pool rm", "pool": name, "pool2": name, "yes_i_really_really_mean_it": true})
		if err != nil {
			t.Errorf("removing pool %s of %s: %v", name, c.Name(), err)
		}
	})
}

// namespace returns the same pool's images in a namespace.
func (p *rbdPool) namespace(ns string) *rbdPool {
	q := *p
	q.a.Namespace, q.b.Namespace = ns, ns
	return &q
}

// other returns the other side.
func (p *rbdPool) other(side rbdimage.Pool) rbdimage.Pool {
	own, o := p.b, p.a
	if side.Client == p.a.Client {
		own, o = p.a, p.b
	}
	o.Name = side.Name
	if side.Namespace != own.Namespace {
		o.Namespace = side.Namespace
	}
	return o
}

func (e *env) cluster(side rbdimage.Pool) *bed.Cluster {
	if side.Client == e.rbd.a {
		return e.a
	}
	return e.b
}

// rbd runs the rbd tool on a cluster.
func (p *rbdPool) rbd(t *testing.T, c *bed.Cluster, args ...string) string {
	t.Helper()
	out, err := p.e.tryRBD(c, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryRBD runs the rbd tool and returns what it prints; an error has what it
// says of it.
func (e *env) tryRBD(c *bed.Cluster, args ...string) (string, error) {
	return e.tryRBDWithin(c, 60*time.Second, args...)
}

func (e *env) tryRBDWithin(c *bed.Cluster, limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := c.Command(ctx, append([]string{"rbd", "--cluster", c.Name()}, args...)...)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("does not end within %v", limit)
		}
		return out.String(), fmt.Errorf("%s: rbd %s: %w: %s", c.Name(), strings.Join(args, " "), err, strings.TrimSpace(text.String()))
	}
	return out.String(), nil
}

// rbdJSON runs the rbd tool and decodes what it prints.
func (p *rbdPool) rbdJSON(t *testing.T, c *bed.Cluster, into any, args ...string) {
	t.Helper()
	mustJSON(t, p.rbd(t, c, append(args, "--format", "json")...), into)
}

// rbdOptions make what the daemons wait for come soon.
func rbdOptions() []string {
	return []string{
		"--rbd-mirror-pool-replayers-refresh-interval=2", "--rbd-mirror-image-state-check-interval=2",
		"--rbd-mirror-delete-retry-interval=2", "--rbd-mirror-leader-heartbeat-interval=1",
	}
}

// startRBD starts a daemon for RBD on a cluster.
func (e *env) startRBD(t *testing.T, who string, c *bed.Cluster, opts ...string) *daemon {
	t.Helper()
	return e.startRBDAs(t, who, c, rbdUser, opts...)
}

func (e *env) startRBDAs(t *testing.T, who string, c *bed.Cluster, user string, opts ...string) *daemon {
	t.Helper()
	args := []string{"rbd-mirror", "--cluster", c.Name(), "--id", user, "-f"}
	if who == ours {
		if _, err := os.Stat(filepath.Join(e.bin, "cephmirror-rbd")); err != nil {
			t.Fatalf("%v (run `bed build` first)", err)
		}
		args = append([]string{filepath.Join(e.bin, "cephmirror")}, args...)
	}
	return e.startDaemon(t, c, user, append(append(args, rbdOptions()...), opts...), explainImages)
}

// explainImages logs the status of all pools.
func explainImages(t *testing.T, d *daemon) {
	out, err := d.call("rbd mirror status")
	t.Logf("rbd mirror status (%v): %.3000s", err, out)
}

// mirrored starts the daemon under test on b, for a new pool.
func (e *env) mirrored(t *testing.T, o poolOptions) (*rbdPool, *daemon) {
	t.Helper()
	p := e.newPool(t, o)
	return p, e.startRBD(t, tested(), e.b)
}

// atLeisure makes our daemon slow enough to be disturbed in the middle of
// something. The stock one is.
func atLeisure(who string) []string {
	if who == ours {
		return []string{"--cephmirror-rbd-rate-limit=40MiB"}
	}
	return nil
}

// mirroredSlowly is mirrored, with a daemon that is slow.
func (e *env) mirroredSlowly(t *testing.T) (*rbdPool, *daemon) {
	t.Helper()
	p := e.newPool(t, poolOptions{})
	return p, e.startRBD(t, tested(), e.b, atLeisure(tested())...)
}

// siteStatus is what `rbd mirror image status` tells.
type siteStatus struct {
	Name          string `json:"name"`
	GlobalID      string `json:"global_id"`
	State         string `json:"state"`
	Description   string `json:"description"`
	LastUpdate    string `json:"last_update"`
	DaemonService *struct {
		DaemonID   string `json:"daemon_id"`
		InstanceID string `json:"instance_id"`
		Hostname   string `json:"hostname"`
	} `json:"daemon_service"`
	PeerSites []struct {
		SiteName    string `json:"site_name"`
		MirrorUUIDs string `json:"mirror_uuids"`
		State       string `json:"state"`
		Description string `json:"description"`
	} `json:"peer_sites"`
}

// replay is the JSON in the description of an image that is replayed.
type replay struct {
	State           string  `json:"replay_state"`
	Local           int64   `json:"local_snapshot_timestamp"`
	Remote          int64   `json:"remote_snapshot_timestamp"`
	LastBytes       int64   `json:"last_snapshot_bytes"`
	LastSeconds     float64 `json:"last_snapshot_sync_seconds"`
	Percent         float64 `json:"syncing_percent"`
	BytesPerSecond  float64 `json:"bytes_per_second"`
	BytesPerSnap    float64 `json:"bytes_per_snapshot"`
	SyncingSnapshot int64   `json:"syncing_snapshot_timestamp"`
}

// parseReplay reads a description.
func parseReplay(description string) (r replay, err error) {
	text, ok := strings.CutPrefix(description, "replaying, ")
	if !ok {
		return r, fmt.Errorf("the description is %q", description)
	}
	return r, json.Unmarshal([]byte(text), &r)
}

// tryStatus asks the site of a pool for an image's status.
func (p *rbdPool) tryStatus(side rbdimage.Pool, image string) (s siteStatus, err error) {
	out, err := p.e.tryRBD(p.e.cluster(side), "mirror", "image", "status", side.Spec(image), "--format", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// own returns the state and description that the daemon of side has given to
// its own site.
func (p *rbdPool) own(side rbdimage.Pool, image string) (string, string, error) {
	s, err := p.tryStatus(side, image)
	return s.State, s.Description, err
}

// peer returns the state and description that the other site's daemon has
// given to side.
func (p *rbdPool) peer(side rbdimage.Pool, image string) (string, string, error) {
	s, err := p.tryStatus(side, image)
	if err != nil {
		return "", "", err
	}
	if len(s.PeerSites) != 1 {
		return "", "", fmt.Errorf("%d peer sites", len(s.PeerSites))
	}
	return s.PeerSites[0].State, s.PeerSites[0].Description, nil
}

// waitState waits until the site of the copy and the other show a state and a
// text in the description.
func (p *rbdPool) waitState(t *testing.T, limit time.Duration, copy rbdimage.Maker, state, text string) {
	t.Helper()
	source := p.other(copy.Pool())
	within(t, limit, fmt.Sprintf("%s to be %s (%s) on both sites", copy.Spec(), state, text), func() error {
		st, de, err := p.own(copy.Pool(), copy.Name())
		if err != nil {
			return err
		}
		if st != state || !strings.Contains(de, text) {
			return fmt.Errorf("it is %s (%s)", st, de)
		}
		exists, err := source.Exists(copy.Name())
		if err != nil || !exists {
			return err
		}
		if st, de, err = p.peer(source, copy.Name()); err != nil {
			return err
		}
		if st != state || !strings.Contains(de, text) {
			return fmt.Errorf("the other site is told %s (%s)", st, de)
		}
		return nil
	})
}

// waitIdle waits until an image is mirrored and nothing is left to do, as both
// sites show it.
func (p *rbdPool) waitIdle(t *testing.T, copy rbdimage.Maker) {
	t.Helper()
	p.waitState(t, statusPatience(), copy, "up+replaying", `"replay_state":"idle"`)
}

// statusPatience is how long a change of status may take to be seen.
func statusPatience() time.Duration {
	if tested() == stock {
		return 45 * time.Second
	}
	return 10 * time.Second
}

// arrived tells whether the copy of a mirror snapshot, or of a later one, is
// complete.
func (p *rbdPool) arrived(m rbdimage.Maker, snap uint64) error {
	snaps, err := p.other(m.Pool()).Peek(m.Name())
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if s.Synced() && s.Source >= snap {
			return nil
		}
	}
	return fmt.Errorf("not among %+v", snaps)
}

// wait waits until a mirror snapshot of m has arrived on the other side, and
// returns the copy.
func (p *rbdPool) wait(t *testing.T, m rbdimage.Maker, snap uint64) rbdimage.Maker {
	t.Helper()
	return p.waitLong(t, 40*time.Second, m, snap)
}

func (p *rbdPool) waitLong(t *testing.T, limit time.Duration, m rbdimage.Maker, snap uint64) rbdimage.Maker {
	t.Helper()
	if err := eventually(limit, func() error { return p.arrived(m, snap) }); err != nil {
		state, text, _ := p.own(p.other(m.Pool()), m.Name())
		t.Fatalf("waited %v for mirror snapshot %d of %s: %v\nstatus: %s, %s", limit, snap, m.Spec(), err, state, text)
	}
	return m.In(p.other(m.Pool()))
}

// waitSame makes a mirror snapshot, waits for it and compares everything.
func (p *rbdPool) waitSame(t *testing.T, m rbdimage.Maker) rbdimage.Maker {
	t.Helper()
	c := p.wait(t, m, m.MirrorSnap())
	p.same(t, m)
	return c
}

// same fails the test if an image that nobody changes differs from its copy:
// now, in any snapshot, or in what it is.
func (p *rbdPool) same(t *testing.T, m rbdimage.Maker) {
	t.Helper()
	p.sameBy(t, m, tested())
}

// sameBy is same, for a copy by the daemon that is named: of the stock daemon,
// completed snapshots hold what was there before, and object maps keep objects
// that it removes.
func (p *rbdPool) sameBy(t *testing.T, m rbdimage.Maker, who string) {
	t.Helper()
	diffs, err := p.differences(m, who)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range diffs {
		t.Errorf("%s: %s", m.Spec(), d)
	}
}

// differences returns in what an image and its copy differ.
func (p *rbdPool) differences(m rbdimage.Maker, who string) (out []string, err error) {
	exact := who == ours
	from, to := m.Pool(), p.other(m.Pool())
	want, err := from.Layout(m.Name())
	if err != nil {
		return nil, err
	}
	got, err := to.Layout(m.Name())
	if err != nil {
		return nil, err
	}
	out = want.Differences(got)
	if got.Flags != 0 && want.Flags == 0 && exact {
		out = append(out, fmt.Sprintf("the copy has flags %#x", got.Flags))
	}
	compare := func(what string, a, b uint64) error {
		src, dst := rbdimage.View{Pool: from, Image: m.Name(), Snap: a}, rbdimage.View{Pool: to, Image: m.Name(), Snap: b}
		diffs, err := rbdimage.Compare(src, dst)
		for _, d := range diffs {
			out = append(out, what+": "+d)
		}
		if err != nil {
			return err
		}
		lacking, extra, err := rbdimage.AuditMap(dst)
		out = append(out, lacking...)
		if exact { // the stock daemon leaves objects in the map that it removes
			out = append(out, extra...)
		}
		return err
	}
	if err := compare("now", rbdimage.Head, rbdimage.Head); err != nil {
		return out, err
	}
	source, err := from.Snaps(m.Name())
	if err != nil {
		return out, err
	}
	copies, err := to.Snaps(m.Name())
	if err != nil {
		return out, err
	}
	for _, s := range source {
		for _, c := range copies {
			var err error
			switch {
			case s.Kind == rbdimage.User && c.Kind == rbdimage.User && s.Name == c.Name:
				err = compare("snapshot "+s.Name, s.ID, c.ID)
			case exact && s.Kind == rbdimage.Mirror && c.Synced() && c.Source == s.ID:
				err = compare(fmt.Sprintf("mirror snapshot %d", s.ID), s.ID, c.ID)
			}
			if err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// newImage makes an image and enables mirroring.
func (p *rbdPool) newImage(t *testing.T, name string, o rbdimage.Options) (rbdimage.Maker, uint64) {
	t.Helper()
	if o.Size == 0 {
		o.Size = 32 * mib
	}
	m := rbdimage.Create(t, p.a, name, o)
	return m, m.Mirror()
}

func errText(format string, args ...any) error { return fmt.Errorf(format, args...) }
