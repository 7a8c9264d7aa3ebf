package client

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
)

// Option is one configuration option of Ceph and its value.
type Option struct{ Name, Value string }

// Spec says of which cluster to be a client, and as whom.
type Spec struct {
	Cluster  string // "ceph" when empty
	Name     string // "client.admin" when empty
	ConfFile string // empty: look where librados does
	// Options were given on the command line and go before ceph.conf.
	Options []Option
	// Preset are the engine's own, on top of all others. Those that the
	// release does not know are left out.
	Preset []Option
}

// Paths are the local client's options that the host needs, as a daemon of that
// name would have them.
type Paths struct {
	AdminSocket, LogFile, PidFile, RunDir string
	AdminSocketMode                       string // octal, or empty
}

// Identity returns cluster and client as spec names them.
func (s Spec) Identity() (cluster, name string) {
	cluster, name = s.Cluster, s.Name
	if cluster == "" {
		cluster = "ceph"
	}
	if name == "" {
		name = "client.admin"
	}
	return cluster, name
}

// preset returns what every connection of ours is made with. Calls into
// librados must come to an end, whatever the cluster does.
func preset() []Option {
	return []Option{
		{"rados_mon_op_timeout", "15"},
		{"rados_osd_op_timeout", "60"},
		{"log_to_stderr", "false"},
		{"err_to_stderr", "true"},
		{"log_max_recent", "100"},
		{"crash_dir", ""},
	}
}

// quietLogs are Ceph's defaults for what its clients log. The second figure says
// what is gathered in memory, for a crash dump that a plugin has no use for, at
// the cost of a tenth of its processor time.
func quietLogs() []Option {
	return []Option{
		{"debug_client", "0/5"}, {"debug_objecter", "0/1"},
		{"debug_objectcacher", "0/5"}, {"debug_rados", "0/5"}, {"debug_rbd", "0/5"},
		{"debug_monc", "0/10"}, {"debug_mgrc", "1/5"},
		{"debug_auth", "1/5"}, {"debug_finisher", "1/1"},
		{"debug_timer", "0/1"}, {"debug_throttle", "1/1"},
	}
}

// gatherNoLogs turns that off where the operator has not asked for logs.
func gatherNoLogs(conn *rados.Conn) error {
	var off []Option
	for _, o := range quietLogs() {
		if v, err := conn.GetConfigOption(o.Name); err == nil && v == o.Value {
			off = append(off, Option{o.Name, "0/0"})
		}
	}
	return Set(conn, off)
}

// own are the files that belong to the host, or to nobody.
func own() []Option { return []Option{{Name: "admin_socket"}, {Name: "log_file"}, {Name: "pid_file"}} }

// Set sets options; one that this release does not know is no matter.
func Set(conn *rados.Conn, opts []Option) error {
	for _, o := range opts {
		if err := conn.SetConfigOption(o.Name, o.Value); err != nil && !ceph.Is(err, syscall.ENOENT) {
			return fmt.Errorf("setting option %s: %w", o.Name, err)
		}
	}
	return nil
}

// Configure makes an unconnected client.
func Configure(s Spec) (*rados.Conn, Paths, error) {
	var p Paths
	cluster, name := s.Identity()
	conn, err := rados.NewConnWithClusterAndUser(cluster, name)
	if err != nil {
		return nil, p, fmt.Errorf("creating client %s of cluster %s: %w", name, cluster, err)
	}
	fail := func(err error) (*rados.Conn, Paths, error) {
		conn.Shutdown()
		return nil, p, err
	}
	if s.ConfFile != "" {
		if err := conn.ReadConfigFile(s.ConfFile); err != nil {
			return fail(fmt.Errorf("reading configuration file %s: %w", s.ConfFile, err))
		}
	} else if err := conn.ReadDefaultConfigFile(); err != nil && !givesMonitors(s.Options) {
		return fail(fmt.Errorf("no configuration file for cluster %s (looked for %s): %w",
			cluster, strings.Join(ConfFiles(cluster), ", "), err))
	}
	for _, o := range s.Options {
		if err := conn.SetConfigOption(o.Name, o.Value); err != nil {
			return fail(fmt.Errorf("setting option %s: %w", o.Name, err))
		}
	}
	p = resolve(conn, cluster, name)
	if err := errors.Join(Set(conn, preset()), Set(conn, s.Preset), gatherNoLogs(conn), Set(conn, own())); err != nil {
		return fail(err)
	}
	return conn, p, nil
}

// Dial connects. The call cannot be cancelled; client_mount_timeout bounds it.
func Dial(s Spec) (*rados.Conn, Paths, error) {
	conn, p, err := Configure(s)
	if err != nil {
		return nil, p, err
	}
	if err := conn.Connect(); err != nil {
		cluster, name := s.Identity()
		keyring, _ := conn.GetConfigOption("keyring")
		mons, _ := conn.GetConfigOption("mon_host")
		conn.Shutdown()
		return nil, p, fmt.Errorf("connecting to cluster %s as %s (mon_host %q, keyring %q): %w", cluster, name, mons, keyring, err)
	}
	return conn, p, nil
}

// Peer says how to reach another cluster.
type Peer struct {
	Cluster string // name of its configuration file, should MonHost be empty
	Name    string // the client
	MonHost string
	Key     string
	Preset  []Option
}

// ConfigurePeer makes an unconnected client of another cluster: with the given
// address and key, or else with that cluster's own configuration file. Nothing
// of the local cluster's configuration is carried over.
func ConfigurePeer(p Peer) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(p.Cluster, p.Name)
	if err != nil {
		return nil, fmt.Errorf("creating client %s of cluster %s: %w", p.Name, p.Cluster, err)
	}
	fail := func(err error) (*rados.Conn, error) {
		conn.Shutdown()
		return nil, err
	}
	// Address and key may each come from the one or the other place.
	if p.MonHost == "" || p.Key == "" {
		if err := conn.ReadDefaultConfigFile(); err != nil && p.MonHost == "" {
			return fail(fmt.Errorf("no configuration file for cluster %s (looked for %s): %w",
				p.Cluster, strings.Join(ConfFiles(p.Cluster), ", "), err))
		}
	}
	var given []Option
	if p.MonHost != "" {
		given = append(given, Option{"mon_host", p.MonHost})
	}
	if p.Key != "" {
		given = append(given, Option{"key", p.Key}, Option{Name: "keyring"})
	}
	if err := errors.Join(Set(conn, given), Set(conn, preset()), Set(conn, p.Preset), gatherNoLogs(conn), Set(conn, own())); err != nil {
		return fail(err)
	}
	return conn, nil
}

func givesMonitors(opts []Option) bool {
	for _, o := range opts {
		if o.Name == "mon_host" {
			return true
		}
	}
	return false
}

// ConfFiles are where librados looks for the configuration of a cluster.
func ConfFiles(cluster string) []string {
	if env := os.Getenv("CEPH_CONF"); env != "" {
		return []string{env}
	}
	return []string{"/etc/ceph/" + cluster + ".conf", "~/.ceph/" + cluster + ".conf", "./" + cluster + ".conf"}
}

// resolve reads the paths that a daemon of that name would use. librados
// expands $pid to our own, but the host is the process that counts.
func resolve(conn *rados.Conn, cluster, name string) Paths {
	get := func(option string) string {
		v, err := conn.GetConfigOption(option)
		if err != nil {
			return ""
		}
		own, host := strconv.Itoa(os.Getpid()), strconv.Itoa(os.Getppid())
		return strings.ReplaceAll(v, own, host)
	}
	p := Paths{
		AdminSocket: get("admin_socket"),
		LogFile:     get("log_file"),
		PidFile:     get("pid_file"),
		RunDir:      get("run_dir"),
	}
	if v, err := conn.GetConfigOption("admin_socket_mode"); err == nil {
		p.AdminSocketMode = v
	}
	// Unlike a daemon, a library has no default for these.
	if p.AdminSocket == "" && p.RunDir != "" {
		p.AdminSocket = filepath.Join(p.RunDir, fmt.Sprintf("%s-%s.%d.asok", cluster, name, os.Getppid()))
	}
	return p
}
