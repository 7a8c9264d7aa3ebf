//go:build cgo

package election_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"cephmirror/plugins"
	"cephmirror/rbdmirror/election"
	"cephmirror/test/bed"
	"cephmirror/test/rbdsite"
)

// These tests need a cluster: run them with bed enter. Clusters that are up
// already are used and left up.

const user = "mirror" // of the daemons

var (
	env struct {
		bed  *bed.Bed
		a, b *bed.Cluster
	}
	actAs = flag.String("act-as", "", "be a member in this pool (of the tests' own use)")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *actAs != "" {
		os.Exit(actor(*actAs))
	}
	if bed.InsideRelease() == "" {
		goleak.VerifyTestMain(m)
		return
	}
	b, err := bed.Open(bed.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	env.bed = b
	before, _ := b.Names()
	shared := bed.Shared()
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now, _ := b.Names()
	for _, name := range now {
		if !slices.Contains(before, name) && !shared {
			_ = b.Down(ctx, name)
		}
	}
	b.Close(ctx)
	if code == 0 {
		if err := goleak.Find(goleak.IgnoreTopFunction("os/signal.signal_recv"), goleak.IgnoreTopFunction("os/signal.loop")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// cluster brings a cluster up unless it is.
func cluster(t *testing.T, name string) *bed.Cluster {
	t.Helper()
	if env.bed == nil {
		t.Skip("needs Ceph: run with bed enter")
	}
	if bed.InsideRelease() != bed.DefaultRelease {
		rbdsite.Long(t) // every day one release is enough for a package by itself
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	names, err := env.bed.Names()
	must(t, err)
	var c *bed.Cluster
	if slices.Contains(names, name) {
		c, err = env.bed.Cluster(name)
	} else {
		c, err = env.bed.Up(ctx, bed.ClusterSpec{Name: name, RBDPools: []string{"rbd", "data"}})
	}
	must(t, err)
	must(t, c.AddRBDMirrorUser(ctx, user))
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makePool makes a pool of the test's own in which images can be kept.
func makePool(t *testing.T, clusters ...*bed.Cluster) string {
	t.Helper()
	pool := "e" + strconv.FormatInt(time.Now().UnixNano(), 36)
	for _, c := range clusters {
		run(t, c, "ceph", "osd", "pool", "create", pool, "4")
		run(t, c, "rbd", "pool", "init", pool)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, err := c.MonCommand(ctx, map[string]any{
				"prefix": "osd pool delete", "pool": pool, "pool2": pool, "yes_i_really_really_mean_it": true,
			})
			if err != nil {
				t.Log(err)
			}
		})
	}
	return pool
}

func run(t *testing.T, c *bed.Cluster, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := c.Command(ctx, args...)
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, diag.String())
	}
	return out.String()
}

// wait waits until f reports that what is to be is.
func wait(t *testing.T, limit time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("%s is not so after %v: %v", what, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func dial(name string) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(name, "client."+user)
	if err != nil {
		return nil, err
	}
	if err := conn.ReadDefaultConfigFile(); err != nil {
		return nil, err
	}
	for o, v := range map[string]string{
		"rados_osd_op_timeout": "30", "rados_mon_op_timeout": "15", "admin_socket": "", "log_file": "", "pid_file": "",
		"log_to_stderr": "false",
	} {
		if err := conn.SetConfigOption(o, v); err != nil {
			return nil, err
		}
	}
	return conn, conn.Connect()
}

// member is one in this process.
type member struct {
	*election.Member
	conn *rados.Conn
	stop context.CancelFunc
	done chan error
	rec  *recorder
}

// recorder keeps what an engine would be told.
type recorder struct {
	mu       sync.Mutex
	leads    bool
	leader   string
	joined   map[string]bool // namespace/instance
	images   map[string]bool // namespace/image
	history  []string
	removed  []string
	holdUp   chan struct{} // releases wait for it
	tellLine io.Writer
}

func newRecorder() *recorder {
	return &recorder{joined: map[string]bool{}, images: map[string]bool{}}
}

func (r *recorder) said(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	r.history = append(r.history, line)
	if r.tellLine != nil {
		fmt.Fprintln(r.tellLine, line)
	}
}

func (r *recorder) handler() election.Handler {
	return election.Handler{
		Event: func(ev election.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			switch ev.Kind {
			case election.LeaderGained:
				r.leads = true
				clear(r.joined)
				r.said("gained")
			case election.LeaderLost:
				r.leads = false
				r.said("lost")
			case election.LeaderIs:
				r.leader = ev.Instance
				r.said("leader %s", ev.Instance)
			case election.InstanceJoined:
				r.joined[ev.Namespace+"/"+ev.Instance] = true
				r.said("joined %s/%s", ev.Namespace, ev.Instance)
			case election.InstanceLeft:
				delete(r.joined, ev.Namespace+"/"+ev.Instance)
				r.said("left %s/%s", ev.Namespace, ev.Instance)
			}
		},
		Acquire: func(_ context.Context, ns, gid string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.images[ns+"/"+gid] = true
			r.said("acquire %s/%s", ns, gid)
			return nil
		},
		Release: func(ctx context.Context, ns, gid string) error {
			r.mu.Lock()
			hold := r.holdUp
			r.mu.Unlock()
			if hold != nil {
				select {
				case <-hold:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.images, ns+"/"+gid)
			r.said("release %s/%s", ns, gid)
			return nil
		},
		PeerRemoved: func(_ context.Context, ns, gid, uuid string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.removed = append(r.removed, ns+"/"+gid+"@"+uuid)
			return nil
		},
	}
}

func (r *recorder) has(image string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.images[image]
}

func (r *recorder) heard(line string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, l := range r.history {
		if l == line {
			n++
		}
	}
	return n
}

func (r *recorder) present() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.joined))
}

func start(t *testing.T, pool string, change func(*election.Config)) *member {
	t.Helper()
	return startWith(t, pool, 0, change)
}

func startWith(t *testing.T, pool string, watchTimeout time.Duration, change func(*election.Config)) *member {
	t.Helper()
	conn, err := dial("a")
	must(t, err)
	rec := newRecorder()
	lease := plugins.NewLease(nil)
	lease.Renew(time.Hour)
	cfg := election.Config{
		Conn: conn, Pool: pool, Lease: lease, Handler: rec.handler(), Options: election.Options{ConcurrentSyncs: 5},
		Log: zerolog.New(zerolog.ConsoleWriter{Out: zerolog.NewTestWriter(t), NoColor: true}).With().Timestamp().Logger(),
	}
	if change != nil {
		change(&cfg)
	}
	m, err := election.New(cfg)
	must(t, err)
	if watchTimeout > 0 {
		m.SetWatchTimeout(watchTimeout)
	}
	ctx, stop := context.WithCancel(context.Background())
	out := &member{Member: m, conn: conn, stop: stop, done: make(chan error, 1), rec: rec}
	go func() { out.done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		err := <-out.done
		out.done <- err
		if errors.Is(err, election.ErrStuck) {
			t.Error(err)
			return
		}
		conn.Shutdown()
	})
	return out
}

// leave ends a member in order and waits for it.
func (m *member) leave(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	m.stop()
	err := <-m.done
	m.done <- err
	if err != nil {
		t.Errorf("leaving: %v", err)
	}
	return time.Since(began)
}

func (m *member) leading() error {
	m.rec.mu.Lock()
	defer m.rec.mu.Unlock()
	if !m.rec.leads || !m.Leading() {
		return fmt.Errorf("%s does not lead: told %v, status %+v", m.InstanceID(), m.rec.leads, m.Status())
	}
	return nil
}

func among(present []string, want ...string) error {
	slices.Sort(want)
	if !slices.Equal(present, want) {
		return fmt.Errorf("present are %q, not %q", present, want)
	}
	return nil
}

// objects lists those through which daemons meet.
func objects(t *testing.T, c *bed.Cluster, pool, ns string) []string {
	t.Helper()
	args := []string{"rados", "-p", pool, "ls"}
	if ns != "" {
		args = append(args, "-N", ns)
	}
	var out []string
	for _, o := range strings.Fields(run(t, c, args...)) {
		if strings.HasPrefix(o, "rbd_mirror_instance.") {
			out = append(out, o)
		}
	}
	slices.Sort(out)
	return out
}

func keys(t *testing.T, c *bed.Cluster, pool, ns string) []string {
	t.Helper()
	args := []string{"rados", "-p", pool, "listomapkeys", "rbd_mirror_leader"}
	if ns != "" {
		args = append(args, "-N", ns)
	}
	out := strings.Fields(run(t, c, args...))
	slices.Sort(out)
	return out
}

func TestTwoShareAPool(t *testing.T) {
	a := cluster(t, "a")
	pool := makePool(t, a)
	run(t, a, "rbd", "namespace", "create", pool+"/ns")
	one := start(t, pool, func(c *election.Config) { c.Namespaces = []string{"ns"} })
	took := wait(t, 10*time.Second, "the first leads", one.leading)
	t.Logf("leading after %v", took)
	id1 := one.InstanceID()
	wait(t, 5*time.Second, "it counts itself", func() error { return among(one.rec.present(), "/"+id1, "ns/"+id1) })
	two := start(t, pool, nil)
	id2 := two.InstanceID()
	took = wait(t, 5*time.Second, "the second has joined", func() error {
		return among(one.rec.present(), "/"+id1, "ns/"+id1, "/"+id2)
	})
	t.Logf("the second joined after %v", took)
	two.SetNamespaces([]string{"ns"})
	took = wait(t, 5*time.Second, "it has joined the namespace", func() error {
		return among(one.rec.present(), "/"+id1, "ns/"+id1, "/"+id2, "ns/"+id2)
	})
	t.Logf("and the namespace after %v", took)
	if got := two.Status().Leader; got != id1 || two.rec.heard("leader "+id1) == 0 {
		t.Errorf("the second takes %q for the leader, and not %s", got, id1)
	}
	if got := two.Instances(""); got != nil {
		t.Errorf("one that does not lead knows of %v", got)
	}
	if _, err := two.LoadMap(t.Context(), ""); !errors.Is(err, election.ErrNotLeader) {
		t.Errorf("one that does not lead loads the map: %v", err)
	}
	if got := one.Instances("ns"); !slices.Equal(got, []string{min(id1, id2), max(id1, id2)}) {
		t.Errorf("instances %v", got)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, m := range []*member{one, two} {
		for _, ns := range []string{"", "ns"} {
			must(t, one.Acquire(ctx, ns, m.InstanceID(), "image-1"))
			if !m.rec.has(ns + "/image-1") {
				t.Errorf("the image did not come to %s", m.InstanceID())
			}
			must(t, one.PeerRemoved(ctx, ns, m.InstanceID(), "image-1", "uuid"))
			must(t, one.Release(ctx, ns, m.InstanceID(), "image-1"))
			if m.rec.has(ns + "/image-1") {
				t.Errorf("the image is still at %s", m.InstanceID())
			}
		}
		m.rec.mu.Lock()
		if want := []string{"/image-1@uuid", "ns/image-1@uuid"}; !slices.Equal(m.rec.removed, want) {
			t.Errorf("removed at the peer: %v", m.rec.removed)
		}
		m.rec.mu.Unlock()
	}
	if err := one.Acquire(ctx, "", "4", "image-1"); !errors.Is(err, election.ErrGone) {
		t.Errorf("an order to one who is not there: %v", err)
	}
	if err := two.Acquire(ctx, "", id1, "image-1"); !errors.Is(err, election.ErrNotLeader) {
		t.Errorf("an order by one who does not lead: %v", err)
	}
	// A release that takes longer than the sender waits is not carried out twice.
	hold := make(chan struct{})
	two.rec.mu.Lock()
	two.rec.holdUp = hold
	two.rec.mu.Unlock()
	released := make(chan error, 1)
	go func() { released <- one.Release(ctx, "", id2, "slow") }()
	select {
	case err := <-released:
		t.Fatalf("released before it was: %v", err)
	case <-time.After(7 * time.Second):
	}
	close(hold)
	must(t, <-released)
	if n := two.rec.heard("release /slow"); n != 1 {
		t.Errorf("released %d times", n)
	}

	took = one.leave(t)
	t.Logf("leaving took %v", took)
	if took > 2*time.Second {
		t.Errorf("leaving took %v", took)
	}
	took = wait(t, 3*time.Second, "the second leads", two.leading)
	t.Logf("the second leads %v later", took)
	wait(t, 3*time.Second, "it is alone", func() error { return among(two.rec.present(), "/"+id2, "ns/"+id2) })
	two.SetNamespaces(nil)
	wait(t, 5*time.Second, "it has left the namespace", func() error { return among(two.rec.present(), "/"+id2) })
	for _, ns := range []string{"", "ns"} {
		want, wantKeys := []string{"rbd_mirror_instance." + id2}, []string{"cephmirror_" + id2, "instance_" + id2}
		if ns != "" {
			want, wantKeys = nil, []string{}
		}
		if got := objects(t, a, pool, ns); !slices.Equal(got, want) {
			t.Errorf("namespace %q: objects left: %v", ns, got)
		}
		if got := keys(t, a, pool, ns); !slices.Equal(got, wantKeys) {
			t.Errorf("namespace %q: keys left: %v", ns, got)
		}
	}
	two.leave(t)
	if got := objects(t, a, pool, ""); len(got) > 0 {
		t.Errorf("objects left: %v", got)
	}
	if got := keys(t, a, pool, ""); len(got) > 0 {
		t.Errorf("keys left: %v", got)
	}
	if got := run(t, a, "rados", "-p", pool, "lock", "info", "rbd_mirror_leader", "rbd_lock"); strings.Contains(got, "client.") {
		t.Errorf("the lock is still held: %s", got)
	}
}

func TestTheMapIsKept(t *testing.T) {
	a := cluster(t, "a")
	pool := makePool(t, a)
	m := start(t, pool, nil)
	wait(t, 10*time.Second, "it leads", m.leading)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const n = 2500 // more than two pages
	at := time.Unix(1795311428, 274684525).UTC()
	var all []election.Mapping
	for i := range n {
		all = append(all, election.Mapping{GlobalID: fmt.Sprintf("image-%04d", i), Instance: "4167", Mapped: at})
	}
	must(t, m.Store(ctx, "", all...))
	got, err := m.LoadMap(ctx, "")
	must(t, err)
	slices.SortFunc(got, func(a, b election.Mapping) int { return strings.Compare(a.GlobalID, b.GlobalID) })
	if !slices.Equal(got, all) {
		t.Errorf("%d entries come back, the first is %+v", len(got), got[0])
	}
	must(t, m.Remove(ctx, "", all[7].GlobalID))
	if got, err = m.LoadMap(ctx, ""); err != nil || len(got) != n-1 {
		t.Errorf("%d entries after a removal, %v", len(got), err)
	}
	// Who gave the leadership up changes nothing.
	must(t, m.ReleaseLeader(ctx))
	if err := m.Store(ctx, "", all[0]); !errors.Is(err, election.ErrNotLeader) {
		t.Errorf("a change by one who does not lead: %v", err)
	}
	took := wait(t, 12*time.Second, "it leads again, as nobody else does", m.leading)
	t.Logf("leading again after %v", took)
}

func TestSlotsAreShared(t *testing.T) {
	a := cluster(t, "a")
	pool := makePool(t, a)
	one := start(t, pool, func(c *election.Config) { c.Options.ConcurrentSyncs = 2 })
	wait(t, 10*time.Second, "it leads", one.leading)
	two := start(t, pool, func(c *election.Config) { c.Options.ConcurrentSyncs = 2 })
	wait(t, 10*time.Second, "both are there", func() error {
		return among(one.rec.present(), "/"+one.InstanceID(), "/"+two.InstanceID())
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	running, most, done := 0, 0, 0
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			m := []*member{one, two}[i%2]
			release, err := m.Throttle("").Acquire(ctx, fmt.Sprintf("image%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(200 * time.Millisecond) // a synchronisation
			mu.Lock()
			running--
			done++
			mu.Unlock()
			release()
			release()
		})
	}
	wg.Wait()
	if most != 2 || done != 12 {
		t.Errorf("%d at once, %d in all", most, done)
	}
	wait(t, 2*time.Second, "all slots are free", func() error {
		if s := one.Status().Syncs; s != (election.ThrottleStatus{Max: 2}) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})

	// Those who wait learn of a new leader, those who have a slot go on.
	var held []func()
	for i := range 2 {
		release, err := two.Throttle("").Acquire(ctx, fmt.Sprintf("long%d", i))
		must(t, err)
		held = append(held, release)
	}
	got := make(chan error, 1)
	go func() {
		release, err := two.Throttle("").Acquire(ctx, "patient")
		if err == nil {
			release()
		}
		got <- err
	}()
	wait(t, 5*time.Second, "one waits", func() error {
		if s := one.Status().Syncs; s.Running != 2 || s.Waiting != 1 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	// One who no longer wants a slot holds up nobody.
	short, cancelShort := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancelShort()
	if _, err := one.Throttle("").Acquire(short, "hurried"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a slot that was not there: %v", err)
	}
	one.leave(t)
	if err := <-got; err != nil {
		t.Error(err)
	}
	for _, release := range held {
		release()
	}
	wait(t, 5*time.Second, "the second leads", two.leading)
}

// actor is a member in a process of its own, that tells what it is told.
func actor(pool string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := dial("a")
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	rec := newRecorder()
	rec.tellLine = os.Stdout
	lease := plugins.NewLease(nil)
	lease.Renew(time.Hour)
	var namespaces []string
	if ns := os.Getenv("ELECTION_NAMESPACES"); ns != "" {
		namespaces = strings.Split(ns, ",")
	}
	m, err := election.New(election.Config{
		Conn: conn, Pool: pool, Namespaces: namespaces, Lease: lease, Handler: rec.handler(), Options: election.Options{ConcurrentSyncs: 5},
		Log: zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true}).With().Timestamp().Logger(),
	})
	if err != nil {
		fmt.Println("failed", err)
		return 1
	}
	fmt.Println("instance", m.InstanceID())
	go func() {
		was := false
		for ctx.Err() == nil {
			if valid := m.Lease().Valid(); valid != was {
				was = valid
				fmt.Println("lease", valid)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	err = m.Run(ctx)
	fmt.Println("lease", m.Lease().Valid())
	fmt.Println("ended fenced", errors.Is(err, election.ErrFenced))
	fmt.Fprintln(os.Stderr, "ended:", err)
	if !errors.Is(err, election.ErrStuck) {
		conn.Shutdown()
	}
	return 0
}

// process is an actor, seen from the test.
type process struct {
	t   *testing.T
	id  string
	cmd *exec.Cmd

	mu    sync.Mutex
	lines []string
}

func spawn(t *testing.T, pool string, namespaces ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0], "-act-as", pool)}
	p.cmd.Env = append(os.Environ(), "ELECTION_NAMESPACES="+strings.Join(namespaces, ","))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	diag, err := p.cmd.StderrPipe()
	must(t, err)
	must(t, p.cmd.Start())
	var readers sync.WaitGroup
	readers.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
		}
	})
	readers.Go(func() {
		for s := bufio.NewScanner(diag); s.Scan(); {
			t.Logf("[%d] %s", p.cmd.Process.Pid, s.Text())
		}
	})
	t.Cleanup(func() {
		p.signal(syscall.SIGCONT)
		p.signal(syscall.SIGKILL)
		readers.Wait()
		_ = p.cmd.Wait()
	})
	wait(t, 10*time.Second, "the process has started", func() error {
		if p.id = p.after("instance "); p.id == "" {
			return errors.New("it says nothing")
		}
		return nil
	})
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// after returns the rest of the last line that begins so.
func (p *process) after(prefix string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range slices.Backward(p.lines) {
		if rest, ok := strings.CutPrefix(l, prefix); ok {
			return rest
		}
	}
	return ""
}

func (p *process) said(line string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.lines, line) {
		return fmt.Errorf("%s has not said %q", p.id, line)
	}
	return nil
}

func TestAMemberDies(t *testing.T) {
	a := cluster(t, "a")
	pool := makePool(t, a)
	run(t, a, "rbd", "namespace", "create", pool+"/ns")
	one := start(t, pool, func(c *election.Config) { c.Namespaces = []string{"ns"} })
	wait(t, 10*time.Second, "it leads", one.leading)
	self := []string{"/" + one.InstanceID(), "ns/" + one.InstanceID()}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGTERM} {
		p := spawn(t, pool, "ns")
		wait(t, 10*time.Second, "the other has joined", func() error {
			return among(one.rec.present(), append([]string{"/" + p.id, "ns/" + p.id}, self...)...)
		})
		wait(t, 5*time.Second, "it may write", func() error { return p.said("lease true") })
		bound := 9 * time.Second
		if sig == syscall.SIGTERM {
			bound = 2 * time.Second
		}
		p.signal(sig)
		took := wait(t, bound, "the leader knows after "+sig.String(), func() error { return among(one.rec.present(), self...) })
		t.Logf("%v: known after %v", sig, took)
		wait(t, 5*time.Second, "all is cleaned up", func() error {
			for _, ns := range []string{"", "ns"} {
				if o := objects(t, a, pool, ns); len(o) != 1 {
					return fmt.Errorf("namespace %q: %v", ns, o)
				}
				if k := keys(t, a, pool, ns); len(k) != 2 {
					return fmt.Errorf("namespace %q: %v", ns, k)
				}
			}
			return nil
		})
		if sig == syscall.SIGSTOP {
			p.signal(syscall.SIGCONT)
			took := wait(t, 3*time.Second, "it finds itself shut out", func() error { return p.said("ended fenced true") })
			t.Logf("it knew %v after it woke up", took)
			must(t, p.said("lease false"))
		}
	}
	if err := one.leading(); err != nil {
		t.Error(err)
	}
}

func TestTheLeaderDies(t *testing.T) {
	a := cluster(t, "a")
	pool := makePool(t, a)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			p := spawn(t, pool)
			wait(t, 10*time.Second, "it leads", func() error { return p.said("gained") })
			one, two := start(t, pool, nil), start(t, pool, nil)
			wait(t, 10*time.Second, "all are there", func() error {
				return errors.Join(p.said("joined /"+one.InstanceID()), p.said("joined /"+two.InstanceID()))
			})
			bound := 10 * time.Second
			if sig == syscall.SIGTERM {
				bound = 3 * time.Second
			}
			p.signal(sig)
			var heir *member
			took := wait(t, bound, "another leads and knows who is there", func() error {
				for _, m := range []*member{one, two} {
					if m.leading() == nil {
						heir = m
						return among(m.rec.present(), "/"+one.InstanceID(), "/"+two.InstanceID())
					}
				}
				return errors.New("nobody leads")
			})
			t.Logf("%v: another leads after %v", sig, took)
			if sig == syscall.SIGSTOP {
				p.signal(syscall.SIGCONT)
				took := wait(t, 3*time.Second, "it finds itself shut out", func() error { return p.said("ended fenced true") })
				t.Logf("it knew %v after it woke up", took)
			}
			wait(t, 5*time.Second, "all is cleaned up", func() error {
				if o := objects(t, a, pool, ""); len(o) != 2 {
					return fmt.Errorf("%v", o)
				}
				return heir.leading()
			})
		})
	}
}

// TestShutOutByHand is what an operator may do.
func TestShutOutByHand(t *testing.T) {
	rbdsite.Long(t)
	a := cluster(t, "a")
	pool := makePool(t, a)
	one := start(t, pool, nil)
	wait(t, 10*time.Second, "it leads", one.leading)
	two := start(t, pool, nil)
	wait(t, 10*time.Second, "both are there", func() error {
		return among(one.rec.present(), "/"+one.InstanceID(), "/"+two.InstanceID())
	})
	for _, who := range []*member{two, one} {
		addr := address(t, a, pool, "rbd_mirror_instance."+who.InstanceID())
		run(t, a, "ceph", "osd", "blocklist", "add", addr)
		var err error
		took := wait(t, 5*time.Second, "it knows", func() error {
			select {
			case err = <-who.done:
				who.done <- err
				return nil
			default:
				return errors.New("it goes on")
			}
		})
		t.Logf("known after %v: %v", took, err)
		if !errors.Is(err, election.ErrFenced) || who.Lease().Valid() || who.rec.leads {
			t.Errorf("it ended with %v, lease %v, told leading %v", err, who.Lease().Valid(), who.rec.leads)
		}
		if who == two {
			took := wait(t, 10*time.Second, "the leader knows", func() error { return among(one.rec.present(), "/"+one.InstanceID()) })
			t.Logf("the leader knew %v later", took)
		}
	}
	three := start(t, pool, nil)
	took := wait(t, 12*time.Second, "another leads", func() error {
		return errors.Join(three.leading(), among(three.rec.present(), "/"+three.InstanceID()))
	})
	t.Logf("another leads after %v", took)
}

// address returns the address of whoever watches an object.
func address(t *testing.T, c *bed.Cluster, pool, object string) string {
	t.Helper()
	out := run(t, c, "rados", "-p", pool, "listwatchers", object)
	for _, f := range strings.Fields(out) {
		if v, ok := strings.CutPrefix(f, "watcher="); ok {
			return v
		}
	}
	t.Fatalf("%s has no watcher: %s", object, out)
	return ""
}

// TestLeftovers: what others have left, and what somebody took away.
func TestLeftovers(t *testing.T) {
	rbdsite.Long(t)
	a := cluster(t, "a")
	pool := makePool(t, a)
	run(t, a, "rbd", "namespace", "create", pool+"/ns")
	// As a stock daemon leaves it behind in a namespace.
	for _, args := range [][]string{
		{"create", "rbd_mirror_instance.99"}, {"setomapval", "rbd_mirror_leader", "instance_99", ""},
	} {
		run(t, a, append([]string{"rados", "-p", pool, "-N", "ns"}, args...)...)
	}
	m := start(t, pool, func(c *election.Config) { c.Namespaces = []string{"ns"} })
	wait(t, 10*time.Second, "it leads", m.leading)
	self := []string{"/" + m.InstanceID(), "ns/" + m.InstanceID()}
	wait(t, 5*time.Second, "it counts what is registered", func() error { return among(m.rec.present(), append([]string{"ns/99"}, self...)...) })
	for _, key := range []string{"instance_", "cephmirror_"} {
		run(t, a, "rados", "-p", pool, "-N", "ns", "rmomapkey", "rbd_mirror_leader", key+m.InstanceID())
	}
	wait(t, 15*time.Second, "it has entered itself again", func() error {
		if k := keys(t, a, pool, "ns"); !slices.Contains(k, "instance_"+m.InstanceID()) {
			return fmt.Errorf("%v", k)
		}
		return nil
	})
	wait(t, 15*time.Second, "the leader knows", func() error { return among(m.rec.present(), append([]string{"ns/99"}, self...)...) })
	took := wait(t, 40*time.Second, "the leftover is gone", func() error { return among(m.rec.present(), self...) })
	t.Logf("gone after %v", took)
	wait(t, 5*time.Second, "its object too", func() error {
		if o := objects(t, a, pool, "ns"); len(o) != 1 {
			return fmt.Errorf("%v", o)
		}
		return nil
	})
	// Without the leader object there is no leader, but soon again.
	run(t, a, "rados", "-p", pool, "rm", "rbd_mirror_leader")
	wait(t, 25*time.Second, "it notices", func() error {
		if m.rec.heard("lost") == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	took = wait(t, 25*time.Second, "all is as before", func() error { return errors.Join(m.leading(), among(m.rec.present(), self...)) })
	t.Logf("all was well %v later", took)
}

// TestAFrozenOSD: when the cluster stands still nobody is blamed for it.
func TestAFrozenOSD(t *testing.T) {
	rbdsite.Long(t)
	a := cluster(t, "a")
	pool := makePool(t, a)
	// All watches are lost meanwhile.
	one := startWith(t, pool, 5*time.Second, nil)
	wait(t, 10*time.Second, "it leads", one.leading)
	two := startWith(t, pool, 5*time.Second, nil)
	present := []string{"/" + one.InstanceID(), "/" + two.InstanceID()}
	wait(t, 10*time.Second, "both are there", func() error { return among(one.rec.present(), present...) })
	must(t, a.Daemon("osd.0").Signal(syscall.SIGSTOP))
	defer func() { _ = a.Daemon("osd.0").Signal(syscall.SIGCONT) }()
	time.Sleep(12 * time.Second) // that long it stands still
	if one.Leading() {
		t.Error("it still believes that it leads")
	}
	must(t, a.Daemon("osd.0").Signal(syscall.SIGCONT))
	took := wait(t, 20*time.Second, "all is as before", func() error {
		return errors.Join(one.leading(), among(one.rec.present(), present...))
	})
	t.Logf("all was well %v later", took)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, one.Store(ctx, "", election.Mapping{GlobalID: "image", Instance: two.InstanceID(), Mapped: time.Now()}))
	must(t, one.Acquire(ctx, "", two.InstanceID(), "image"))
	select {
	case err := <-two.done:
		t.Fatalf("the other ended: %v", err)
	default:
	}
	for _, o := range []string{"rbd_mirror_leader", "rbd_mirror_instance." + one.InstanceID(), "rbd_mirror_instance." + two.InstanceID()} {
		lock, watchers := run(t, a, "rados", "-p", pool, "lock", "info", o, "rbd_lock"), run(t, a, "rados", "-p", pool, "listwatchers", o)
		_, cookie, _ := strings.Cut(lock, "auto ")
		cookie, _, _ = strings.Cut(cookie, "\"")
		if cookie == "" || !strings.Contains(watchers, "cookie="+cookie+"\n") {
			t.Errorf("%s: the lock %s is not under one of the watches %s", o, lock, watchers)
		}
	}
	// Nobody can leave in order when the cluster stands still, and yet must.
	must(t, a.Daemon("osd.0").Signal(syscall.SIGSTOP))
	two.stop()
	began := time.Now()
	select {
	case err := <-two.done:
		if !errors.Is(err, election.ErrStuck) {
			t.Errorf("left with %v", err)
		}
		t.Logf("left after %v with %v", time.Since(began), err)
	case <-time.After(25 * time.Second):
		t.Error("it has not left")
	}
	must(t, a.Daemon("osd.0").Signal(syscall.SIGCONT))
	two.done <- nil
	// Let the calls that were left behind come back.
	wait(t, 30*time.Second, "the leader is alone", func() error { return among(one.rec.present(), present[0]) })
}
