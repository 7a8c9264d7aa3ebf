package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options opens a bed.
type Options struct {
	Dir     string                           // state directory; empty: StateDir of the current checkout
	Release string                           // empty: CEPHMIRROR_RELEASE, else DefaultRelease
	Logf    func(format string, args ...any) // told of progress; may be nil
}

// Bed is a set of clusters below one state directory.
type Bed struct {
	dir     string
	release Release
	logf    func(string, ...any)

	mu       sync.Mutex
	clusters map[string]*Cluster
	procs    []*Process
	started  atomic.Int64 // processes, for their marks
}

// Open returns the bed of a state directory. Bringing clusters up and running
// commands on them need the environment, see Enter; looking at them, sending
// signals and taking them down does not.
func Open(o Options) (*Bed, error) {
	rel, err := ParseRelease(o.Release)
	if err != nil {
		return nil, err
	}
	if in := InsideRelease(); in != "" && in != rel.Name {
		return nil, fmt.Errorf("release %s asked for inside the environment of %s", rel.Name, in)
	}
	if o.Dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("find the current directory: %w", err)
		}
		if o.Dir, err = StateDir(FindCheckout(wd), rel); err != nil {
			return nil, err
		}
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	return &Bed{dir: o.Dir, release: rel, logf: o.Logf, clusters: map[string]*Cluster{}}, nil
}

// Dir returns the state directory.
func (b *Bed) Dir() string { return b.dir }

// Release returns the release that clusters are brought up with.
func (b *Bed) Release() Release { return b.release }

// Claim keeps other callers of Claim from this bed until done is called.
func (b *Bed) Claim() (done func(), err error) {
	l, err := tryLock(b.dir+".claim", true)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("the bed in %s is in use by another run", b.dir)
	}
	if err != nil {
		return nil, err
	}
	return l.remove, nil
}

// EtcDir returns the directory that is /etc/ceph inside the environment.
func (b *Bed) EtcDir() string { return filepath.Join(b.dir, etcCeph) }

func (b *Bed) needInside() error {
	if InsideRelease() == "" {
		return errors.New("this needs Ceph: run it inside the environment, with `bed enter -- COMMAND`")
	}
	return nil
}

// clusterNames lists the clusters, complete or not, of a state directory.
func clusterNames(state string) ([]string, error) {
	entries, err := os.ReadDir(state)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Names returns the names of all clusters of the bed, also of those that are
// not up completely.
func (b *Bed) Names() ([]string, error) { return clusterNames(b.dir) }

// Cluster returns a cluster that was brought up before.
func (b *Bed) Cluster(name string) (*Cluster, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(b.dir, name, recordFile)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no cluster %s in %s", name, b.dir)
	}
	c := b.handle(name)
	rec, err := c.load()
	if err != nil {
		return nil, err
	}
	c.rec.Store(&rec)
	return c, nil
}

// Down ends all processes of the named clusters (of all, and all other
// processes of the bed, when none is named) and removes every trace of them.
// When ctx is over already, it tries nevertheless, for half a minute.
func (b *Bed) Down(ctx context.Context, names ...string) error {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
	}
	all := len(names) == 0
	if all {
		b.stopProcesses(ctx)
		var err error
		if names, err = b.Names(); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, n := range names {
		wg.Go(func() { errs[i] = b.down(ctx, n) })
	}
	wg.Wait()
	if all {
		errs = append(errs, kill(ctx, marked(mark(b.dir, "", ""))))
		sweepState(b.dir)
	}
	return errors.Join(errs...)
}

func (b *Bed) down(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	b.logf("taking down %s", name)
	lock, err := lockFile(ctx, dir+".lock", true)
	if err != nil {
		return err
	}
	defer lock.remove()
	b.mu.Lock()
	c := b.clusters[name]
	delete(b.clusters, name)
	b.mu.Unlock()
	if c != nil {
		c.commander.shut()
	}
	// Without its record the cluster is none, should we be interrupted now.
	if err := os.Remove(filepath.Join(dir, recordFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	if err := kill(ctx, marked(mark(b.dir, name, ""))); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	left, err := filepath.Glob(filepath.Join(b.EtcDir(), name+".*"))
	if err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("take down %s: %w", name, err)
		}
	}
	if err := newPortRegistry(portsDir).release(ctx, dir); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	if err := removeTree(dir); err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	return nil
}

// Close stops the processes that this Bed started with StartProcess and ends
// its connections. Clusters stay up.
func (b *Bed) Close(ctx context.Context) {
	b.stopProcesses(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.clusters {
		c.commander.shut()
	}
}

func (b *Bed) stopProcesses(ctx context.Context) {
	b.mu.Lock()
	procs := slices.Clone(b.procs)
	b.mu.Unlock()
	for _, p := range procs {
		if err := p.Stop(ctx); err != nil {
			b.logf("stop %s: %v", p.name, err)
		}
	}
}

// processEnv is the environment of what the bed starts.
func (b *Bed) processEnv(mark string) []string {
	var env []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		if k == envMark || strings.HasPrefix(k, "CEPH_") {
			continue
		}
		env = append(env, kv)
	}
	return append(env, envMark+"="+mark)
}

// Poll calls f until it returns true, an error or ctx ends.
func Poll(ctx context.Context, what string, f func(context.Context) (bool, error)) error {
	for {
		ok, err := f(ctx)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(pollInterval):
		}
	}
}
