package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/plugins"
)

// clientOptions are what every connection of ours is made with. Calls into
// librados must come to an end, whatever the cluster does.
var clientOptions = []plugins.Option{
	{Name: "rados_mon_op_timeout", Value: "15"},
	{Name: "rados_osd_op_timeout", Value: "60"},
	// Data is written through and read past the cache: an error of a write is
	// then the error of the call, and what a call wrote is durable.
	{Name: "client_oc", Value: "false"},
	{Name: "client_mount_uid", Value: "0"},
	{Name: "client_mount_gid", Value: "0"},
	{Name: "client_permissions", Value: "false"},
	{Name: "client_acl_type", Value: "posix_acl"},
	{Name: "client_snapdir", Value: ".snap"},
	{Name: "client_cache_size", Value: "16384"},
	{Name: "client_quota", Value: "false"},
	{Name: "log_to_stderr", Value: "false"},
	{Name: "err_to_stderr", Value: "true"},
	{Name: "log_max_recent", Value: "100"},
	{Name: "crash_dir", Value: ""},
}

// quietLogs are Ceph's defaults for what its clients log. The second figure says
// what is gathered in memory, for a crash dump that a plugin has no use for, at
// the cost of a tenth of its processor time.
var quietLogs = []plugins.Option{
	{Name: "debug_client", Value: "0/5"}, {Name: "debug_objecter", Value: "0/1"},
	{Name: "debug_objectcacher", Value: "0/5"}, {Name: "debug_rados", Value: "0/5"},
	{Name: "debug_monc", Value: "0/10"}, {Name: "debug_mgrc", Value: "1/5"},
	{Name: "debug_auth", Value: "1/5"}, {Name: "debug_finisher", Value: "1/1"},
	{Name: "debug_timer", Value: "0/1"}, {Name: "debug_throttle", Value: "1/1"},
}

// gatherNoLogs turns that off where the operator has not asked for logs.
func gatherNoLogs(conn *rados.Conn) error {
	var off []plugins.Option
	for _, o := range quietLogs {
		if v, err := conn.GetConfigOption(o.Name); err == nil && v == o.Value {
			off = append(off, plugins.Option{Name: o.Name, Value: "0/0"})
		}
	}
	return setOptions(conn, off)
}

// resolved are the local client's options that the host needs.
type resolved struct{ adminSocket, logFile, pidFile, runDir string }

// identity returns cluster and client as cfg names them.
func identity(cfg plugins.Config) (cluster, name string) {
	cluster, name = cfg.Cluster, cfg.Name
	if cluster == "" {
		cluster = "ceph"
	}
	if name == "" {
		name = "client.admin"
	}
	return cluster, name
}

// configure makes an unconnected client of the local cluster as cfg says.
func configure(cfg plugins.Config) (*rados.Conn, resolved, error) {
	var r resolved
	cluster, name := identity(cfg)
	conn, err := rados.NewConnWithClusterAndUser(cluster, name)
	if err != nil {
		return nil, r, fmt.Errorf("creating client %s of cluster %s: %w", name, cluster, err)
	}
	fail := func(err error) (*rados.Conn, resolved, error) {
		conn.Shutdown()
		return nil, r, err
	}
	if cfg.ConfFile != "" {
		if err := conn.ReadConfigFile(cfg.ConfFile); err != nil {
			return fail(fmt.Errorf("reading configuration file %s: %w", cfg.ConfFile, err))
		}
	} else if err := conn.ReadDefaultConfigFile(); err != nil && !givesMonitors(cfg.CephOptions) {
		return fail(fmt.Errorf("no configuration file for cluster %s (looked for %s): %w",
			cluster, strings.Join(confFiles(cluster), ", "), err))
	}
	for _, o := range cfg.CephOptions {
		if err := conn.SetConfigOption(o.Name, o.Value); err != nil {
			return fail(fmt.Errorf("setting option %s: %w", o.Name, err))
		}
	}
	r = resolve(conn, cluster, name)
	if err := errors.Join(setOptions(conn, clientOptions), gatherNoLogs(conn)); err != nil {
		return fail(err)
	}
	for _, o := range []plugins.Option{{Name: "admin_socket"}, {Name: "log_file"}, {Name: "pid_file"}} {
		if err := conn.SetConfigOption(o.Name, ""); err != nil {
			return fail(fmt.Errorf("clearing option %s: %w", o.Name, err))
		}
	}
	return conn, r, nil
}

// dialLocal connects to the local cluster as cfg says.
func dialLocal(cfg plugins.Config) (*rados.Conn, resolved, error) {
	conn, r, err := configure(cfg)
	if err != nil {
		return nil, r, err
	}
	if err := conn.Connect(); err != nil {
		cluster, name := identity(cfg)
		keyring, _ := conn.GetConfigOption("keyring")
		mons, _ := conn.GetConfigOption("mon_host")
		conn.Shutdown()
		return nil, r, fmt.Errorf("connecting to cluster %s as %s (mon_host %q, keyring %q): %w", cluster, name, mons, keyring, err)
	}
	return conn, r, nil
}

// localClient makes an unconnected client of the local cluster.
func (e *Engine) localClient() (*rados.Conn, error) {
	conn, _, err := configure(e.cfg)
	return conn, err
}

func givesMonitors(opts []plugins.Option) bool {
	for _, o := range opts {
		if o.Name == "mon_host" {
			return true
		}
	}
	return false
}

// confFiles are where librados looks for the configuration of a cluster.
func confFiles(cluster string) []string {
	if env := os.Getenv("CEPH_CONF"); env != "" {
		return []string{env}
	}
	return []string{"/etc/ceph/" + cluster + ".conf", "~/.ceph/" + cluster + ".conf", "./" + cluster + ".conf"}
}

func setOptions(conn *rados.Conn, opts []plugins.Option) error {
	for _, o := range opts {
		// An option that this release does not know is no matter.
		if err := conn.SetConfigOption(o.Name, o.Value); err != nil && !ceph.Is(err, syscall.ENOENT) {
			return fmt.Errorf("setting option %s: %w", o.Name, err)
		}
	}
	return nil
}

// resolve reads the paths that a daemon of that name would use. librados
// expands $pid to our own, but the host is the process that counts.
func resolve(conn *rados.Conn, cluster, name string) resolved {
	get := func(option string) string {
		v, err := conn.GetConfigOption(option)
		if err != nil {
			return ""
		}
		own, host := strconv.Itoa(os.Getpid()), strconv.Itoa(os.Getppid())
		return strings.ReplaceAll(v, own, host)
	}
	r := resolved{
		adminSocket: get("admin_socket"),
		logFile:     get("log_file"),
		pidFile:     get("pid_file"),
		runDir:      get("run_dir"),
	}
	// Unlike a daemon, a library has no default for these.
	if r.adminSocket == "" && r.runDir != "" {
		r.adminSocket = filepath.Join(r.runDir, fmt.Sprintf("%s-%s.%d.asok", cluster, name, os.Getppid()))
	}
	return r
}

// peerClient makes an unconnected client of a peer's cluster: with the address
// and key that the monitors keep, or else with the peer cluster's own
// configuration file.
func (e *Engine) peerClient(fsName string, spec dirstore.Peer) (*rados.Conn, error) {
	credentials, err := e.credentials(fsName, spec.UUID)
	if err != nil {
		return nil, err
	}
	conn, err := rados.NewConnWithClusterAndUser(spec.Cluster, spec.Client)
	if err != nil {
		return nil, fmt.Errorf("creating client %s of cluster %s: %w", spec.Client, spec.Cluster, err)
	}
	fail := func(err error) (*rados.Conn, error) {
		conn.Shutdown()
		return nil, err
	}
	if credentials != nil {
		err := setOptions(conn, []plugins.Option{
			{Name: "mon_host", Value: credentials.MonHost},
			{Name: "key", Value: string(credentials.Key)},
			{Name: "keyring", Value: ""},
		})
		if err != nil {
			return fail(err)
		}
	} else if err := conn.ReadDefaultConfigFile(); err != nil {
		return fail(fmt.Errorf("no configuration file for cluster %s (looked for %s): %w",
			spec.Cluster, strings.Join(confFiles(spec.Cluster), ", "), err))
	}
	timeout := e.options.stock("cephfs_mirror_mount_timeout")
	err = setOptions(conn, append(slices.Clone(clientOptions),
		plugins.Option{Name: "admin_socket"}, plugins.Option{Name: "log_file"},
		plugins.Option{Name: "client_mount_timeout", Value: timeout}))
	if err := errors.Join(err, gatherNoLogs(conn)); err != nil {
		return fail(err)
	}
	return conn, nil
}

// peerAddress names a peer's cluster for people, with its monitors if they are
// known.
func (e *Engine) peerAddress(fsName string, spec dirstore.Peer) string {
	if c, err := e.credentials(fsName, spec.UUID); err == nil && c != nil {
		return fmt.Sprintf("%s (mon_host %s)", spec.Cluster, c.MonHost)
	}
	return spec.Cluster
}

// credentials returns what the monitors keep for a peer, nil if nothing.
func (e *Engine) credentials(fsName, uuid string) (*dirstore.Credentials, error) {
	key := dirstore.PeerKey(fsName, uuid)
	out, err := e.monCommand(map[string]string{"prefix": "config-key get", "key": key})
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading config-key %s: %w", key, err)
	}
	c, err := dirstore.DecodeCredentials(out)
	if err != nil {
		return nil, fmt.Errorf("config-key %s: %w", key, err)
	}
	return &c, nil
}

// halfMounted: the mount failed, but the MDS may have a session.
type halfMounted struct{ err error }

func (e halfMounted) Error() string { return e.err.Error() }
func (e halfMounted) Unwrap() error { return e.err }

// mount mounts a file system of the cluster that client gives a configuration
// for, under a session of that uuid. The calls cannot be cancelled; the mount
// timeout ends them.
func (e *Engine) mount(ctx context.Context, client func() (*rados.Conn, error), fsName, session string) (*ceph.Mount, error) {
	conf, err := client()
	if err != nil {
		return nil, err
	}
	m, err := ceph.NewMount(conf)
	if err != nil {
		return nil, err
	}
	release := func(err error) (*ceph.Mount, error) { return nil, errors.Join(err, m.Release()) }
	if err := m.Init(); err != nil {
		return release(fmt.Errorf("initialising: %w", err))
	}
	m.SetUUID(session)
	if err := m.SetMountTimeout(uint32(e.options.uint("cephfs_mirror_mount_timeout"))); err != nil {
		return release(fmt.Errorf("setting the mount timeout: %w", err))
	}
	if err := m.SelectFilesystem(fsName); err != nil {
		return release(err)
	}
	if err := m.Mount(); err != nil {
		_, err = release(err)
		return nil, halfMounted{err}
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, m.Unmount(), m.Release())
	}
	return m, nil
}
