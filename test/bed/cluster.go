package bed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	recordFile = "cluster.json"
	mkfsMark   = "mkfs-" // begins the names of processes that make data directories
)

// record is what is kept of a cluster between runs.
type record struct {
	Release   string            `json:"release"`
	FSID      string            `json:"fsid"`
	FirstPort int               `json:"first_port"`
	Spec      ClusterSpec       `json:"spec"`
	OSDs      map[string]string `json:"osd_uuids"`
	Users     []User            `json:"users,omitempty"`
	Complete  bool              `json:"complete"` // was up at least once
}

// Cluster is one Ceph cluster.
type Cluster struct {
	bed       *Bed
	name      string
	dir       string
	rec       atomic.Pointer[record] // replaced, never changed; under the cluster's file lock
	commander commander
}

// upTimeout bounds bringing a cluster up; it is far more than a busy machine needs.
const upTimeout = 3 * time.Minute

// commandTimeout bounds a single command: one that hangs, for example because
// the mgr died, shall not use up all of a test's time.
const commandTimeout = 2 * time.Minute

// Up brings a cluster up, or completes one that is up in part, and waits until
// it is healthy.
func (b *Bed) Up(ctx context.Context, spec ClusterSpec) (*Cluster, error) {
	if err := b.needInside(); err != nil {
		return nil, err
	}
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, upTimeout, fmt.Errorf("cluster %s is not up after %v", spec.Name, upTimeout))
	defer cancel()
	dir := filepath.Join(b.dir, spec.Name)
	lock, err := lockFile(ctx, dir+".lock", true)
	if err != nil {
		return nil, err
	}
	defer lock.remove()
	c, err := b.prepare(ctx, dir, spec)
	if err != nil {
		return nil, fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	if err := c.bringUp(ctx); err != nil {
		var de *DaemonError
		if errors.As(err, &de) {
			return nil, fmt.Errorf("bring up %s: %w", spec.Name, err)
		}
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(err, c.suspect())
		}
		return nil, fmt.Errorf("bring up %s: %w", spec.Name, err)
	}
	return c, nil
}

// prepare reads or makes the cluster's record and all files that follow from
// it. The caller holds the cluster's lock.
func (b *Bed) prepare(ctx context.Context, dir string, spec ClusterSpec) (*Cluster, error) {
	c := b.handle(spec.Name)
	rec, err := c.load()
	if err == nil {
		if rec.Release != b.release.Name {
			return nil, fmt.Errorf("the cluster exists with release %s", rec.Release)
		}
		rec.Spec = merge(rec.Spec, spec)
		// An interrupted run may have left one of these behind.
		if err := kill(ctx, marked(mark(b.dir, spec.Name, "")+mkfsMark)); err != nil {
			return nil, err
		}
	} else {
		rec = record{Release: b.release.Name, FSID: newUUID(), Spec: spec, OSDs: map[string]string{}}
		// Remains of a run that was stopped before or while it made or
		// removed the record.
		if err := kill(ctx, marked(mark(b.dir, spec.Name, ""))); err != nil {
			return nil, err
		}
		if err := removeTree(dir); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{b.EtcDir(), dir, c.RunDir(), filepath.Join(dir, "log"), filepath.Join(c.Home(), ".ceph")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	if !rec.Complete {
		need := int64(rec.Spec.OSDs)*(2<<30) + 2<<30
		if err := needSpace(dir, need, "cluster "+spec.Name); err != nil {
			return nil, errors.Join(err, removeTree(dir))
		}
	}
	if rec.FirstPort, err = newPortRegistry(portsDir).claim(ctx, dir); err != nil {
		return nil, err
	}
	names := namesFor(rec.Spec)
	for _, n := range names.osds {
		if rec.OSDs[n] == "" {
			rec.OSDs[n] = newUUID()
		}
	}
	if rec.Spec.MgrBcrypt {
		if err := c.makeModuleDir(); err != nil {
			return nil, err
		}
	}
	if err := c.keep(rec); err != nil {
		return nil, err
	}
	return c, c.writeKeys(ctx, names)
}

// handle returns the one Cluster of that name in this process.
func (b *Bed) handle(name string) *Cluster {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.clusters[name]
	if c == nil {
		c = &Cluster{bed: b, name: name, dir: filepath.Join(b.dir, name)}
		c.rec.Store(&record{})
		b.clusters[name] = c
	}
	return c
}

// load reads the record as it is on disk: another process may have changed it.
func (c *Cluster) load() (record, error) {
	var rec record
	if err := readJSON(c.recordPath(), &rec); err != nil {
		return record{}, fmt.Errorf("read what cluster %s is: %w", c.name, err)
	}
	if rec.OSDs == nil {
		rec.OSDs = map[string]string{}
	}
	return rec, nil
}

// keep writes a record and what is made from it. The caller holds the
// cluster's lock.
func (c *Cluster) keep(rec record) error {
	if err := c.writeConf(rec); err != nil {
		return err
	}
	if err := writeJSON(c.recordPath(), rec); err != nil {
		return err
	}
	c.rec.Store(&rec)
	return nil
}

func (c *Cluster) recordPath() string  { return filepath.Join(c.dir, recordFile) }
func (c *Cluster) keyringPath() string { return filepath.Join(c.dir, "keyring") }
func (c *Cluster) moduleDir() string   { return filepath.Join(c.dir, "mgr-modules") }

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Dir returns the cluster's directory.
func (c *Cluster) Dir() string { return c.dir }

// RunDir returns where admin sockets and pid files are.
func (c *Cluster) RunDir() string { return filepath.Join(c.dir, "run") }

// Conf returns the path of the cluster's ceph.conf. Inside the environment it
// is also found as /etc/ceph/NAME.conf.
func (c *Cluster) Conf() string { return filepath.Join(c.dir, "ceph.conf") }

// FSID returns the cluster's id.
func (c *Cluster) FSID() string { return c.rec.Load().FSID }

// Release returns the name of the cluster's Ceph release.
func (c *Cluster) Release() string { return c.rec.Load().Release }

// Spec returns what the cluster consists of.
func (c *Cluster) Spec() ClusterSpec { return c.rec.Load().Spec }

// MonHost returns the monitor's addresses.
func (c *Cluster) MonHost() string {
	return fmt.Sprintf("[v2:127.0.0.1:%d/0,v1:127.0.0.1:%d/0]", c.rec.Load().FirstPort, c.rec.Load().FirstPort+1)
}

// Home returns a home directory in which Ceph's tools find this cluster when
// they are told no name.
func (c *Cluster) Home() string { return filepath.Join(c.dir, "home") }

// Daemon returns the daemon called name, for example "osd.0".
func (c *Cluster) Daemon(name string) *Daemon { return &Daemon{c: c, name: name} }

// Daemons returns all daemons of the cluster: mon, mgr, OSDs, MDSs.
func (c *Cluster) Daemons() []*Daemon {
	var all []*Daemon
	for _, n := range namesFor(c.rec.Load().Spec).all() {
		all = append(all, c.Daemon(n))
	}
	return all
}

// Signal sends sig to all daemons, for example SIGSTOP to freeze the cluster
// and SIGCONT to let it go on.
func (c *Cluster) Signal(ctx context.Context, sig syscall.Signal) error {
	var errs []error
	for _, d := range c.Daemons() {
		errs = append(errs, d.Kill(ctx, sig))
	}
	return errors.Join(errs...)
}

// Down takes the cluster down.
func (c *Cluster) Down(ctx context.Context) error { return c.bed.Down(ctx, c.Name()) }

// writeKeys makes the keys that are missing.
func (c *Cluster) writeKeys(ctx context.Context, names daemonNames) error {
	old, err := os.ReadFile(c.keyringPath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read keys: %w", err)
	}
	all := string(old)
	for _, e := range clusterKeys(names) {
		if keyOf(all, e.Entity) == "" {
			// Releases differ in the kind of key they accept.
			key, err := c.run(ctx, "ceph-authtool", "--gen-print-key")
			if err != nil {
				return fmt.Errorf("make a key for %s: %w", e.Entity, err)
			}
			e.Key = strings.TrimSpace(key)
			all += renderKeyring([]keyEntry{e})
		}
	}
	if all != string(old) {
		if err := writeFile(c.keyringPath(), []byte(all), 0o600); err != nil {
			return err
		}
	}
	key := keyOf(all, "client.admin")
	return writeFile(c.keyringOf("client.admin"), []byte(renderKeyring([]keyEntry{{Entity: "client.admin", Key: key}})), 0o600)
}

// keyOf takes the key of an entity from the text of a keyring.
func keyOf(keyring, entity string) string {
	_, rest, ok := strings.Cut("\n"+keyring, "\n["+entity+"]\n")
	if !ok {
		return ""
	}
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "[") {
			break
		}
		if k, v, ok := strings.Cut(line, "="); ok && strings.TrimSpace(k) == "key" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (c *Cluster) keyringOf(entity string) string {
	return filepath.Join(c.bed.EtcDir(), c.Name()+"."+entity+".keyring")
}

// makeModuleDir makes a directory of the mgr's modules with an empty module
// "bcrypt" among them: Debian's Reef cannot load the real one into the
// sub-interpreters that the mgr uses, and so no module that imports it.
func (c *Cluster) makeModuleDir() error {
	const stock = "/usr/share/ceph/mgr"
	if err := os.MkdirAll(c.moduleDir(), 0o755); err != nil {
		return fmt.Errorf("make the directory of mgr modules: %w", err)
	}
	entries, err := os.ReadDir(stock)
	if err != nil {
		return fmt.Errorf("list mgr modules: %w", err)
	}
	for _, e := range entries {
		err := os.Symlink(filepath.Join(stock, e.Name()), filepath.Join(c.moduleDir(), e.Name()))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link a mgr module: %w", err)
		}
	}
	return writeFile(filepath.Join(c.moduleDir(), "bcrypt.py"), nil, 0o644)
}

// writeConf writes ceph.conf and the places where it is looked for.
func (c *Cluster) writeConf(rec record) error {
	classes := classDir()
	if classes == "" {
		return errors.New("find the OSD's class plugins: no rados-classes directory in /usr/lib")
	}
	p := confParams{
		Name: c.Name(), Dir: c.dir, EtcDir: c.bed.EtcDir(), FSID: rec.FSID,
		FirstPort: rec.FirstPort, Ports: portsPerBlock,
		OSDSize: rec.Spec.OSDSize, ClassDir: classes, Modules: rec.Spec.MgrModules,
		Global: rec.Spec.Conf, Users: rec.Users,
	}
	if rec.Spec.MgrBcrypt {
		p.ModuleDir = c.moduleDir()
	}
	if err := writeFile(c.Conf(), []byte(renderConf(p)), 0o644); err != nil {
		return err
	}
	for _, at := range []string{
		filepath.Join(c.bed.EtcDir(), c.Name()+".conf"),
		filepath.Join(c.Home(), ".ceph", "ceph.conf"),
	} {
		if err := os.Symlink(c.Conf(), at); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link ceph.conf: %w", err)
		}
	}
	return nil
}

func classDir() string {
	for _, pattern := range []string{"/usr/lib/*/rados-classes", "/usr/lib64/rados-classes", "/usr/lib/rados-classes"} {
		if m, err := filepath.Glob(pattern); err == nil && len(m) > 0 {
			return m[0]
		}
	}
	return ""
}

// tool runs one of Ceph's preparatory commands for a daemon.
func (d *Daemon) tool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = d.c.bed.processEnv(mark(d.c.bed.dir, d.c.Name(), mkfsMark+d.name))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return &DaemonError{Cluster: d.c.Name(), Daemon: d.name,
			Err: fmt.Errorf("%s: %w", strings.Join(args, " "), err), Log: lastLines(out.String(), 20)}
	}
	return nil
}

// make makes the data of a daemon unless that was done: mkfs fills a fresh
// directory, and only a whole one counts.
func (d *Daemon) make(mkfs func(data string) error) error {
	data := d.path(d.name)
	done := filepath.Join(data, "made")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := removeTree(data); err != nil {
		return err
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := mkfs(data); err != nil {
		return err
	}
	return writeFile(done, nil, 0o644)
}

func (c *Cluster) makeMon(ctx context.Context, name string) error {
	d := c.Daemon(name)
	kind, id := d.kindID()
	return d.make(func(string) error {
		monmap := d.path("monmap")
		if err := d.tool(ctx, "monmaptool", "--create", "--clobber", "--fsid", c.rec.Load().FSID, "--addv", id,
			fmt.Sprintf("[v2:127.0.0.1:%d,v1:127.0.0.1:%d]", c.rec.Load().FirstPort, c.rec.Load().FirstPort+1), monmap); err != nil {
			return err
		}
		return d.tool(ctx, "ceph-"+kind, "--mkfs", "--cluster", c.Name(), "-c", c.Conf(), "-i", id,
			"--monmap", monmap, "--keyring", c.keyringPath())
	})
}

func (c *Cluster) makeOSD(ctx context.Context, name string) error {
	d := c.Daemon(name)
	_, id := d.kindID()
	return d.make(func(string) error {
		// The monitor is not asked for configuration: it may not be there yet.
		return d.tool(ctx, "ceph-osd", "--mkfs", "--no-mon-config", "--cluster", c.Name(), "-c", c.Conf(), "-i", id,
			"--osd-uuid", c.rec.Load().OSDs[name], "--monmap", d.path("monmap"))
	})
}

// group runs functions side by side and returns the first error, after which
// it cancels the context of the others.
func group(ctx context.Context, fs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(fs))
	for _, f := range fs {
		go func() { errs <- f(ctx) }()
	}
	var first error
	for range fs {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

// bringUp does what is missing, in an order that lets daemons start side by
// side. Each step may have been done by an earlier run.
func (c *Cluster) bringUp(ctx context.Context) error {
	s := c.rec.Load().Spec
	names := namesFor(s)
	mon := c.Daemon(names.mons[0])
	grown := c.rec.Load().Complete // keys of new daemons are not in the monitor yet
	c.bed.logf("%s: starting %s", c.Name(), mon.name)
	if err := c.makeMon(ctx, mon.name); err != nil {
		return err
	}
	var steps []func(context.Context) error
	osdMade := make(map[string]chan struct{})
	for _, n := range names.osds {
		osdMade[n] = make(chan struct{})
		steps = append(steps, func(ctx context.Context) error {
			defer close(osdMade[n])
			return c.makeOSD(ctx, n)
		})
	}
	steps = append(steps, func(ctx context.Context) error {
		if err := mon.Start(); err != nil {
			return err
		}
		if err := Poll(ctx, c.Name()+" mon.a", func(context.Context) (bool, error) {
			if mon.Pid() == 0 {
				return false, mon.fail(errExited)
			}
			return portAnswers(c.rec.Load().FirstPort), nil
		}); err != nil {
			return err
		}
		if grown {
			if err := c.importKeys(ctx, names); err != nil {
				return err
			}
		}
		for _, n := range append(names.mgrs, names.mdss...) {
			d := c.Daemon(n)
			if err := d.make(func(string) error { return nil }); err != nil {
				return err
			}
			if err := d.Start(); err != nil {
				return err
			}
		}
		for i, n := range names.osds {
			if _, err := c.MonCommand(ctx, map[string]any{"prefix": "osd new", "uuid": c.rec.Load().OSDs[n], "id": i}); err != nil {
				return err
			}
			select {
			case <-osdMade[n]:
			case <-ctx.Done():
				return ctx.Err()
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if _, err := os.Stat(filepath.Join(c.dir, n, "made")); err != nil {
				return nil // its own step reports why
			}
			if err := c.Daemon(n).Start(); err != nil {
				return err
			}
		}
		return c.makePools(ctx)
	})
	if err := group(ctx, steps...); err != nil {
		return err
	}
	if c.rec.Load().Release == "reef" && !s.MgrBcrypt {
		// Debian's Reef cannot load some of the mgr's modules, see makeModuleDir.
		if _, err := c.MonCommand(ctx, map[string]any{"prefix": "health mute", "code": "MGR_MODULE_DEPENDENCY", "sticky": true}); err != nil {
			return err
		}
	}
	if !s.NoWait {
		if err := c.WaitHealthy(ctx); err != nil {
			return err
		}
	}
	for _, p := range s.RBDPools {
		if _, err := c.run(ctx, "rbd", "pool", "init", p); err != nil {
			return err
		}
	}
	rec, err := c.load()
	if err != nil {
		return err
	}
	rec.Complete = true
	return c.keep(rec)
}

// importKeys tells a running monitor the keys of daemons that were added.
func (c *Cluster) importKeys(ctx context.Context, names daemonNames) error {
	data, err := os.ReadFile(c.keyringPath())
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	for _, e := range clusterKeys(names) {
		if e.Entity == "mon." || e.Entity == "client.admin" {
			continue
		}
		e.Key = keyOf(string(data), e.Entity)
		if _, err := c.command(ctx, "mon", map[string]any{"prefix": "auth import"}, renderKeyring([]keyEntry{e})); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) makePools(ctx context.Context) error {
	pool := func(name, app string) error {
		if _, err := c.MonCommand(ctx, map[string]any{"prefix": "osd pool create", "pool": name, "pg_num": 8}); err != nil {
			return err
		}
		_, err := c.MonCommand(ctx, map[string]any{"prefix": "osd pool application enable", "pool": name, "app": app, "yes_i_really_mean_it": true})
		return err
	}
	for _, p := range c.rec.Load().Spec.RBDPools {
		if err := pool(p, "rbd"); err != nil {
			return err
		}
	}
	have, err := c.FileSystems(ctx)
	if err != nil {
		return err
	}
	for _, fs := range c.rec.Load().Spec.FileSystems {
		if _, ok := have[fs]; ok {
			continue
		}
		for _, p := range []string{"meta", "data"} {
			if _, err := c.MonCommand(ctx, map[string]any{"prefix": "osd pool create", "pool": fs + "." + p, "pg_num": 8}); err != nil {
				return err
			}
		}
		if _, err := c.MonCommand(ctx, map[string]any{"prefix": "fs new", "fs_name": fs, "metadata": fs + ".meta", "data": fs + ".data"}); err != nil {
			return err
		}
		// Nobody shall miss a standby MDS once there was one.
		if _, err := c.MonCommand(ctx, map[string]any{"prefix": "fs set", "fs_name": fs, "var": "standby_count_wanted", "val": "0"}); err != nil {
			return err
		}
	}
	return nil
}

// command sends one command over the cluster's open connection.
func (c *Cluster) command(ctx context.Context, target string, cmd map[string]any, input string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	a, err := c.commander.do(ctx, c, target, cmd, input)
	if err != nil {
		return "", err
	}
	if a.RC < 0 {
		return "", &CommandError{Command: fmt.Sprint(cmd["prefix"]), Errno: syscall.Errno(-a.RC), Message: a.Err}
	}
	return a.Out, nil
}

// MonCommand sends a monitor command in its JSON form ({"prefix": "fs dump",
// "format": "json"}) and returns its output. It is much quicker than Ceph.
func (c *Cluster) MonCommand(ctx context.Context, cmd map[string]any) (string, error) {
	return c.command(ctx, "mon", cmd, "")
}

// MgrCommand is MonCommand for commands of the mgr and its modules.
func (c *Cluster) MgrCommand(ctx context.Context, cmd map[string]any) (string, error) {
	return c.command(ctx, "mgr", cmd, "")
}

// Ceph runs the ceph command as administrator and returns what it prints on
// standard output. It takes about a second; see MonCommand. One that hangs is
// ended after two minutes.
func (c *Cluster) Ceph(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, append([]string{"ceph"}, args...)...)
}

// Command makes a command that finds this cluster when no other is named, and
// has its administrator's rights.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(c.bed.processEnv(mark(c.bed.dir, "", "command")), "HOME="+c.Home())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (c *Cluster) run(ctx context.Context, args ...string) (string, error) {
	if err := c.bed.needInside(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := c.Command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	what := fmt.Sprintf("cluster %s: %s", c.Name(), strings.Join(args, " "))
	if ctx.Err() != nil {
		return out.String(), fmt.Errorf("%s: %w", what, ctx.Err())
	}
	// The command-line tool ends with the errno of a refused command.
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 && exit.ExitCode() < 128 {
		return out.String(), &CommandError{Command: what, Errno: syscall.Errno(exit.ExitCode()), Message: lastLines(strings.TrimSpace(errOut.String()), 10)}
	}
	return out.String(), fmt.Errorf("%s: %w: %s", what, err, lastLines(strings.TrimSpace(errOut.String()), 10))
}

// FileSystems returns the file systems and their ids.
func (c *Cluster) FileSystems(ctx context.Context) (map[string]int64, error) {
	out, err := c.MonCommand(ctx, map[string]any{"prefix": "fs dump", "format": "json"})
	if err != nil {
		return nil, err
	}
	var dump struct {
		Filesystems []struct {
			ID     int64 `json:"id"`
			MDSMap struct {
				Name string `json:"fs_name"`
			} `json:"mdsmap"`
		} `json:"filesystems"`
	}
	if err := json.Unmarshal([]byte(out), &dump); err != nil {
		return nil, fmt.Errorf("decode the list of file systems: %w", err)
	}
	m := map[string]int64{}
	for _, f := range dump.Filesystems {
		m[f.MDSMap.Name] = f.ID
	}
	return m, nil
}

// clusterStatus is the part of `ceph status` that says whether all is up.
type clusterStatus struct {
	Health struct {
		Status string `json:"status"`
		Checks map[string]struct {
			Summary struct {
				Message string `json:"message"`
			} `json:"summary"`
		} `json:"checks"`
	} `json:"health"`
	OSDMap struct {
		NumOSDs   int `json:"num_osds"`
		NumUpOSDs int `json:"num_up_osds"`
	} `json:"osdmap"`
	PGMap struct {
		States []struct {
			Name  string `json:"state_name"`
			Count int    `json:"count"`
		} `json:"pgs_by_state"`
		NumPGs int `json:"num_pgs"`
	} `json:"pgmap"`
	FSMap struct {
		ByRank []struct {
			Status string `json:"status"`
		} `json:"by_rank"`
	} `json:"fsmap"`
	MgrMap struct {
		Available bool `json:"available"`
	} `json:"mgrmap"`
}

// missing says what of spec is not up, or "" when all is.
func (s clusterStatus) missing(spec ClusterSpec) string {
	var m []string
	if !s.MgrMap.Available {
		m = append(m, "the mgr is not available")
	}
	if s.OSDMap.NumUpOSDs < spec.OSDs {
		m = append(m, fmt.Sprintf("%d of %d OSDs are up", s.OSDMap.NumUpOSDs, spec.OSDs))
	}
	active := 0
	for _, r := range s.FSMap.ByRank {
		if r.Status == "up:active" {
			active++
		}
	}
	if active < len(spec.FileSystems) {
		m = append(m, fmt.Sprintf("%d of %d file systems have an active MDS", active, len(spec.FileSystems)))
	}
	clean := 0
	for _, st := range s.PGMap.States {
		// Those that trim snapshots or scrub, too, are.
		if strings.HasPrefix(st.Name, "active+clean") {
			clean += st.Count
		}
	}
	if pools := 2*len(spec.FileSystems) + len(spec.RBDPools); clean < s.PGMap.NumPGs || s.PGMap.NumPGs < 8*pools {
		m = append(m, fmt.Sprintf("%d of %d placement groups are clean", clean, max(s.PGMap.NumPGs, 8*pools)))
	}
	if s.Health.Status != "HEALTH_OK" {
		for name, ch := range s.Health.Checks {
			m = append(m, fmt.Sprintf("%s (%s)", name, ch.Summary.Message))
		}
	}
	return strings.Join(m, "; ")
}

// Status returns what of the cluster is not as it should be, "" when all is well.
func (c *Cluster) Status(ctx context.Context) (string, error) {
	out, err := c.MonCommand(ctx, map[string]any{"prefix": "status", "format": "json"})
	if err != nil {
		return "", err
	}
	var s clusterStatus
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return "", fmt.Errorf("decode status: %w", err)
	}
	return s.missing(c.rec.Load().Spec), nil
}

// WaitHealthy waits until all daemons are up and the cluster has nothing to
// complain about. A daemon that ends meanwhile ends the wait.
func (c *Cluster) WaitHealthy(ctx context.Context) error {
	last := ""
	err := Poll(ctx, "cluster "+c.Name(), func(ctx context.Context) (bool, error) {
		for _, d := range c.Daemons() {
			if ok, err := d.ready(ctx); err != nil || !ok {
				return false, err
			}
		}
		what, err := c.Status(ctx)
		if what != "" && what != last {
			c.bed.logf("%s: %s", c.Name(), what)
			last = what
		}
		return err == nil && what == "", err
	})
	if err != nil && last != "" {
		return fmt.Errorf("%w (%s)", err, last)
	}
	return err
}

// suspect names the daemon that most likely keeps a cluster from coming up.
func (c *Cluster) suspect() error {
	for _, d := range c.Daemons() {
		if d.Pid() == 0 {
			return d.fail(errors.New("does not run"))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		ok, err := d.ready(ctx)
		cancel()
		if err != nil || !ok {
			return errors.Join(err, d.fail(errors.New("is not ready")))
		}
	}
	return nil
}
