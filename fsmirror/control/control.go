// Package control is the `fs snapshot mirror` command family, for clusters
// where the stock control plane, the mgr module "mirroring", is not enabled.
// It keeps the same state in the same places, and answers with the same output,
// errno and text. Workers see what it changes at once.
//
// Where it differs from the stock module, it does so on purpose:
//
//   - paths get a single leading slash; keys that have two are still found;
//   - a file system gets one peer, because a second one stops the stock daemon,
//     unless "additional" asks for more;
//   - bootstrapping never changes the capabilities of a user that exists;
//   - a peer whose cluster cannot be reached can be removed;
//   - credentials of peers go with the peers.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
)

// Prefix begins the name of each command.
const Prefix = "fs snapshot mirror "

// Result is the answer to a command.
type Result struct {
	Errno  syscall.Errno
	Out    []byte
	Status string // the reason when Errno is set, otherwise a warning
}

// Cluster is what the commands need of the connection to the local cluster.
type Cluster interface {
	MonCommandWithInputBuffer(args, input []byte) (out []byte, status string, err error)
	GetFSID() (string, error)
	GetConfigOption(name string) (string, error)
}

// DirMap is the directory map of a file system.
type DirMap interface {
	Create() error
	Load() (*dirstore.Contents, error)
	Apply(dirstore.Change) error
	Wake(timeout time.Duration) error
	Live(timeout time.Duration) (map[string]string, error)
}

// Remote says where the file system of a peer is and how to reach it.
type Remote struct {
	Client      string // without its type
	Cluster     string
	FSName      string
	Credentials *dirstore.Credentials // nil: conf file and keyring of the cluster
}

// RemoteFS is a file system that is mirrored to.
type RemoteFS interface {
	// Source names the file system itself.
	Source() dirstore.Source
	// Mark returns the value of RemoteMark, "" when there is none.
	Mark() (string, error)
	// SetMark sets it, EEXIST when there is one.
	SetMark(value string) error
	RemoveMark() error
	Close()
}

// Backend is all that the commands act on.
type Backend interface {
	Cluster
	// MgrCommand sends a command to the mgr, and does not wait for the answer
	// longer than ctx allows.
	MgrCommand(ctx context.Context, command []byte) (out []byte, status string, err error)
	// OpenMap calls fn with the directory map in a metadata pool.
	OpenMap(pool int64, fn func(DirMap) error) error
	// LocalMark returns the RemoteMark of a local file system, "" when there
	// is none.
	LocalMark(ctx context.Context, fsName string) (string, error)
	// Dial connects to a peer. An errNoCluster tells that nothing is known of
	// its cluster, an errNoFS that it has no such file system.
	Dial(ctx context.Context, r Remote) (RemoteFS, error)
}

var (
	errNoCluster = errors.New("cluster is not known")
	errNoFS      = errors.New("no such file system")
)

// Control carries out commands.
type Control struct {
	b Backend
}

// failure is an error with what the user is told.
type failure struct {
	errno syscall.Errno
	text  string
}

func (f *failure) Error() string { return f.text }

func failf(errno syscall.Errno, format string, args ...any) error {
	return &failure{errno, fmt.Sprintf(format, args...)}
}

// params are the arguments of a command.
type params map[string]any

// text returns an argument, or an error that asks for it.
func (p params) text(name string) (string, error) {
	s, err := p.optional(name)
	if err == nil && s == "" {
		return "", failf(syscall.EINVAL, "missing required parameter %s", name)
	}
	return s, err
}

func (p params) optional(name string) (string, error) {
	switch v := p[name].(type) {
	case nil:
		return "", nil
	case string:
		if !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
			return "", failf(syscall.EINVAL, "invalid parameter %s", name)
		}
		return v, nil
	}
	return "", failf(syscall.EINVAL, "parameter %s should be a string", name)
}

// flag returns an argument that is on or off.
func (p params) flag(name string) (bool, error) {
	switch v := p[name].(type) {
	case nil:
		return false, nil
	case bool:
		return v, nil
	case string:
		if on, err := strconv.ParseBool(v); err == nil {
			return on, nil
		}
	}
	return false, failf(syscall.EINVAL, "parameter %s should be true or false", name)
}

// command is one of the family. A changing one is refused while the stock
// module is in charge.
type command struct {
	run     func(*Control, context.Context, params) (out []byte, warning string, err error)
	changes bool
}

func commands() map[string]command {
	changing := func(run func(*Control, context.Context, params) (string, error)) command {
		return command{changes: true, run: func(c *Control, ctx context.Context, p params) ([]byte, string, error) {
			warning, err := run(c, ctx, p)
			return []byte("{}"), warning, err
		}}
	}
	reading := func(run func(*Control, context.Context, params) ([]byte, error)) command {
		return command{run: func(c *Control, ctx context.Context, p params) ([]byte, string, error) {
			out, err := run(c, ctx, p)
			return out, "", err
		}}
	}
	return map[string]command{
		"enable":                changing((*Control).enable),
		"disable":               changing((*Control).disable),
		"peer_add":              changing((*Control).peerAdd),
		"peer_remove":           changing((*Control).peerRemove),
		"peer_list":             reading((*Control).peerList),
		"peer_bootstrap create": reading((*Control).bootstrapCreate), // only makes a user
		"peer_bootstrap import": changing((*Control).bootstrapImport),
		"add":                   changing((*Control).add),
		"remove":                changing((*Control).remove),
		"ls":                    reading((*Control).ls),
		"dirmap":                reading((*Control).dirmap),
		"show distribution":     reading((*Control).showDistribution),
		"daemon status":         reading((*Control).daemonStatus),
	}
}

// Call carries out a command. Prefix and arguments are named as the stock
// module names them.
func (c *Control) Call(ctx context.Context, prefix string, args map[string]any) Result {
	cmd, ok := commands()[strings.TrimPrefix(prefix, Prefix)]
	if !ok || !strings.HasPrefix(prefix, Prefix) {
		return Result{Errno: syscall.EINVAL, Status: fmt.Sprintf("No handler found for '%s'", prefix)}
	}
	if cmd.changes {
		if err := c.refuseBesideStock(); err != nil {
			return resultOf(err)
		}
	}
	out, warning, err := cmd.run(c, ctx, args)
	if err != nil {
		return resultOf(err)
	}
	return Result{Out: out, Status: warning}
}

func resultOf(err error) Result {
	var f *failure
	if errors.As(err, &f) {
		return Result{Errno: f.errno, Status: f.text}
	}
	errno := ceph.Errno(err)
	switch {
	case errno != 0:
	case errors.Is(err, context.DeadlineExceeded):
		errno = syscall.ETIMEDOUT
	case errors.Is(err, context.Canceled):
		errno = syscall.EINTR
	default:
		errno = syscall.EIO
	}
	return Result{Errno: errno, Status: err.Error()}
}

// StockModule is the name of the mgr module that is the stock control plane.
const StockModule = "mirroring"

// StockEnabled says whether the stock control plane is enabled. It asks the
// monitors in the one way that a worker's capabilities allow.
func StockEnabled(c Cluster) (bool, error) {
	out, err := mon(c, nil, request{"prefix": "status", "format": "json"})
	if err != nil {
		return false, fmt.Errorf("asking for the enabled mgr modules: %w", err)
	}
	var status struct {
		MgrMap *struct {
			Modules []string `json:"modules"`
		} `json:"mgrmap"`
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return false, fmt.Errorf("parsing the cluster status: %w", err)
	}
	if status.MgrMap == nil {
		return false, errors.New("the cluster status does not tell the enabled mgr modules")
	}
	for _, m := range status.MgrMap.Modules {
		if m == StockModule {
			return true, nil
		}
	}
	return false, nil
}

func (c *Control) refuseBesideStock() error {
	enabled, err := StockEnabled(c.b)
	if err != nil {
		return err
	}
	if enabled {
		return failf(syscall.EBUSY, "mgr module '%s' is enabled and controls mirroring: use `ceph fs snapshot mirror`, "+
			"or `ceph mgr module disable %s` first", StockModule, StockModule)
	}
	return nil
}

// request is a command to the monitors or the mgr, with its arguments: strings
// and lists of them.
type request map[string]any

func (r request) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // cannot be, of strings
	}
	return b
}

// mon sends a command to the monitors. Secrets go into the input: arguments
// end up in the audit log.
func mon(c Cluster, input []byte, cmd request) ([]byte, error) {
	out, status, err := c.MonCommandWithInputBuffer(cmd.encode(), input)
	if err != nil {
		if status != "" {
			err = fmt.Errorf("%w: %s", err, status)
		}
		return nil, fmt.Errorf("monitor command %q: %w", cmd["prefix"], err)
	}
	return out, nil
}

func (c *Control) fsmap() (*dirstore.FSMap, error) {
	out, err := mon(c.b, nil, request{"prefix": "fs dump", "format": "json"})
	if err != nil {
		return nil, err
	}
	return dirstore.ParseFSMap(out)
}

// lookup finds the file system that the arguments name, nil if there is none.
func (c *Control) lookup(p params) (string, *dirstore.FileSystem, error) {
	name, err := p.text("fs_name")
	if err != nil {
		return "", nil, err
	}
	m, err := c.fsmap()
	if err != nil {
		return "", nil, err
	}
	return name, m.ByName(name), nil
}

// mirrored is lookup for commands about peers.
func (c *Control) mirrored(p params) (*dirstore.FileSystem, error) {
	name, fs, err := c.lookup(p)
	if err == nil && (fs == nil || !fs.Mirrored) {
		err = failf(syscall.EINVAL, "filesystem %s is not mirrored", name)
	}
	return fs, err
}

// existing is lookup for commands about directories.
func (c *Control) existing(p params) (*dirstore.FileSystem, error) {
	name, fs, err := c.lookup(p)
	switch {
	case err != nil:
	case fs == nil:
		err = failf(syscall.ENOENT, "filesystem %s does not exist", name)
	case !fs.Mirrored:
		err = failf(syscall.EINVAL, "filesystem %s is not mirrored", name)
	}
	return fs, err
}

func (c *Control) enable(_ context.Context, p params) (string, error) {
	name, fs, err := c.lookup(p)
	if err != nil {
		return "", err
	}
	if fs == nil {
		return "", failf(syscall.EINVAL, "failed to enable mirroring")
	}
	// The object first: workers watch it as soon as they see the flag.
	if err := c.b.OpenMap(fs.MetadataPool, DirMap.Create); err != nil {
		return "", fmt.Errorf("failed to enable mirroring: %w", err)
	}
	if _, err := mon(c.b, nil, request{"prefix": "fs mirror enable", "fs_name": name}); err != nil {
		return "", fmt.Errorf("failed to enable mirroring: %w", err)
	}
	return "", nil
}

func (c *Control) disable(_ context.Context, p params) (string, error) {
	name, fs, err := c.lookup(p)
	if err != nil {
		return "", err
	}
	if fs == nil {
		return "", failf(syscall.EINVAL, "failed to disable mirroring")
	}
	if _, err := mon(c.b, nil, request{"prefix": "fs mirror disable", "fs_name": name}); err != nil {
		return "", fmt.Errorf("failed to disable mirroring: %w", err)
	}
	for _, peer := range fs.Peers {
		if err := c.removeKey(name, peer.UUID); err != nil {
			return fmt.Sprintf("the credentials of peer %s are left: %v", peer.UUID, err), nil
		}
	}
	return "", nil
}

func (c *Control) removeKey(fsName, uuid string) error {
	_, err := mon(c.b, nil, request{"prefix": "config-key rm", "key": dirstore.PeerKey(fsName, uuid)})
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// normalise returns the path to track, and the keys under which it may be
// tracked: the stock module keeps two leading slashes.
func normalise(p string) (clean string, keys []string, err error) {
	if !strings.HasPrefix(p, "/") {
		return "", nil, failf(syscall.EINVAL, "%s should be an absolute path", p)
	}
	clean = path.Clean(p)
	return clean, []string{clean, "/" + clean}, nil
}

// within says whether a is below b.
func within(a, b string) bool {
	return a != b && strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/")
}

// directory gets the arguments of a command about one directory.
func (c *Control) directory(p params) (fs *dirstore.FileSystem, clean string, keys []string, err error) {
	if fs, err = c.existing(p); err != nil {
		return nil, "", nil, err
	}
	dir, err := p.optional("path")
	if err != nil {
		return nil, "", nil, err
	}
	clean, keys, err = normalise(dir)
	return fs, clean, keys, err
}

// tracked finds the key under which a directory is tracked.
func tracked(m *dirstore.Contents, keys []string) (string, dirstore.Entry, bool) {
	for _, k := range keys {
		if e, ok := m.Dirs[k]; ok {
			return k, e, true
		}
	}
	return "", dirstore.Entry{}, false
}

// maxTries is how often a change is tried that others keep getting ahead of.
const maxTries = 10

// change loads the map, lets fn decide, makes the change, and does so again
// when another one was faster.
func (c *Control) change(ctx context.Context, fs *dirstore.FileSystem, fn func(*dirstore.Contents) (dirstore.Change, error)) error {
	return c.b.OpenMap(fs.MetadataPool, func(m DirMap) error {
		for try := 1; ; try++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			contents, err := m.Load()
			if ceph.Is(err, syscall.ENOENT) {
				// Enabled by hand, without a control plane.
				if err = m.Create(); err == nil {
					contents, err = m.Load()
				}
			}
			if err != nil {
				return err
			}
			change, err := fn(contents)
			if err != nil {
				return err
			}
			if err := m.Apply(change); errors.Is(err, dirstore.ErrConflict) && try < maxTries {
				continue
			} else if err != nil {
				return err
			}
			// Who controls the map learns of it sooner or later in any case.
			_ = m.Wake(wakeTimeout)
			return nil
		}
	})
}

// wakeTimeout bounds the wait for workers that do not answer.
const wakeTimeout = 2 * time.Second

// gone says whether only the entry of a removed directory is left, which no
// worker has to give up. The stock module leaves such when no worker runs.
func gone(e dirstore.Entry) bool { return e.Purging && e.Instance == "" }

func (c *Control) add(ctx context.Context, p params) (string, error) {
	fs, dir, keys, err := c.directory(p)
	if err != nil {
		return "", err
	}
	return "", c.change(ctx, fs, func(m *dirstore.Contents) (dirstore.Change, error) {
		if _, e, ok := tracked(m, keys); ok && !gone(e) {
			if e.Purging {
				return dirstore.Change{}, failf(syscall.EAGAIN, "remove in-progress for %s", dir)
			}
			return dirstore.Change{}, failf(syscall.EEXIST, "directory %s is already tracked", dir)
		}
		for _, other := range sortedKeys(m.Dirs) {
			if gone(m.Dirs[other]) {
				continue
			}
			real := path.Clean(other)
			if within(dir, real) {
				return dirstore.Change{}, failf(syscall.EINVAL, "%s is a subtree of tracked path %s", dir, other)
			}
			if within(real, dir) {
				return dirstore.Change{}, failf(syscall.EINVAL, "%s is a ancestor of tracked path %s", dir, other)
			}
		}
		key := dirstore.DirKey(dir)
		return dirstore.Change{
			Set:    map[string][]byte{key: dirstore.Entry{}.Encode()},
			Expect: map[string][]byte{key: m.Raw[key]}, // one that cannot be decoded is replaced
		}, nil
	})
}

func (c *Control) remove(ctx context.Context, p params) (string, error) {
	fs, dir, keys, err := c.directory(p)
	if err != nil {
		return "", err
	}
	return "", c.change(ctx, fs, func(m *dirstore.Contents) (dirstore.Change, error) {
		found, e, ok := tracked(m, keys)
		if !ok {
			return dirstore.Change{}, failf(syscall.ENOENT, "directory %s id not tracked", dir)
		}
		if e.Purging && !gone(e) {
			return dirstore.Change{}, failf(syscall.EINVAL, "directory %s is under removal", dir)
		}
		key := dirstore.DirKey(found)
		change := dirstore.Change{Expect: map[string][]byte{key: m.Raw[key]}}
		if e.Instance == "" {
			change.Remove = []string{key}
		} else {
			// Its worker has to give it up first.
			e.Purging = true
			change.Set = map[string][]byte{key: e.Encode()}
		}
		return change, nil
	})
}

// load reads the map of a file system, an empty one if it was never made.
func (c *Control) load(fs *dirstore.FileSystem, fn func(DirMap, *dirstore.Contents)) error {
	return c.b.OpenMap(fs.MetadataPool, func(m DirMap) error {
		contents, err := m.Load()
		if ceph.Is(err, syscall.ENOENT) {
			contents, err = dirstore.DecodeContents(nil), nil
		}
		if err != nil {
			return err
		}
		maps.DeleteFunc(contents.Dirs, func(_ string, e dirstore.Entry) bool { return gone(e) })
		fn(m, contents)
		return nil
	})
}

func (c *Control) ls(_ context.Context, p params) ([]byte, error) {
	fs, err := c.existing(p)
	if err != nil {
		return nil, err
	}
	dirs := list{}
	err = c.load(fs, func(_ DirMap, m *dirstore.Contents) {
		for _, dir := range sortedKeys(m.Dirs) {
			dirs = append(dirs, dir)
		}
	})
	return pyJSON(dirs, 4), err
}

// live returns the workers that answer, or those that are stored when the
// question cannot be asked.
func live(d DirMap, m *dirstore.Contents) map[string]string {
	if answers, err := d.Live(wakeTimeout); err == nil {
		return answers
	}
	return m.Instances
}

func (c *Control) dirmap(_ context.Context, p params) ([]byte, error) {
	fs, dir, keys, err := c.directory(p)
	if err != nil {
		return nil, err
	}
	var out object
	err = c.load(fs, func(d DirMap, m *dirstore.Contents) {
		_, e, ok := tracked(m, keys)
		if !ok {
			return
		}
		workers := live(d, m)
		_, alive := workers[e.Instance]
		state := "mapped"
		switch {
		case len(workers) == 0:
			out = object{{"reason", "no mirror daemons running"}, {"state", "stalled"}}
			return
		case e.Purging:
			state = "unmapping"
		case e.Instance == "":
			out = object{{"state", "mapping"}}
			return
		case !alive:
			state = "shuffling"
		}
		out = object{{"instance_id", e.Instance}, {"last_shuffled", e.LastShuffled}, {"state", state}}
	})
	if err == nil && out == nil {
		err = failf(syscall.ENOENT, "%s is not tracked", dir)
	}
	return pyJSON(out, 4), err
}

func (c *Control) showDistribution(_ context.Context, p params) ([]byte, error) {
	fs, err := c.existing(p)
	if err != nil {
		return nil, err
	}
	counts := make(map[string]int)
	err = c.load(fs, func(d DirMap, m *dirstore.Contents) {
		for id := range live(d, m) {
			counts[id] = 0
		}
		for _, e := range m.Dirs {
			if _, ok := counts[e.Instance]; ok {
				counts[e.Instance]++
			}
		}
	})
	mapping := object{}
	for _, id := range sortedKeys(counts) {
		mapping = append(mapping, member{id, fmt.Sprintf("%d directories", counts[id])})
	}
	return pyJSON(object{{"mapping", mapping}}, 4), err
}

// mgrTimeout bounds the wait for the mgr.
const mgrTimeout = 10 * time.Second

func (c *Control) daemonStatus(ctx context.Context, _ params) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, mgrTimeout)
	defer cancel()
	out, status, err := c.b.MgrCommand(ctx, request{"prefix": "service status", "format": "json"}.encode())
	if err != nil {
		return nil, fmt.Errorf("asking the mgr for the service status: %w %s", err, status)
	}
	daemons, err := dirstore.ParseServiceStatus(out)
	if err != nil {
		return nil, err
	}
	result := list{}
	for _, d := range daemons {
		filesystems := list{}
		for _, fs := range d.FileSystems {
			peers := list{}
			for _, peer := range fs.Peers {
				peers = append(peers, object{{"uuid", peer.UUID}, {"remote", peer.Remote}, {"stats", peer.Stats}})
			}
			filesystems = append(filesystems, object{
				{"filesystem_id", fs.ID}, {"name", fs.Name}, {"directory_count", fs.DirectoryCount}, {"peers", peers},
			})
		}
		result = append(result, object{{"daemon_id", d.ID}, {"filesystems", filesystems}})
	}
	return pyJSON(result, 0), nil
}
