//go:build cgo

package control

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/rados"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	cephclient "cephmirror/internal/ceph/client"
)

// ConnOptions are the settings that a connection given to New should have been
// made with, so that no command waits longer for a cluster that is away.
func ConnOptions() []ceph.Pair {
	return []ceph.Pair{
		{Key: "client_mount_timeout", Value: "10"},
		{Key: "rados_mon_op_timeout", Value: "10"},
		{Key: "rados_osd_op_timeout", Value: "10"},
	}
}

// mountBudget bounds all that is done with a mounted file system for one
// command. The way there is bounded by ConnOptions.
const mountBudget = 10 * time.Second

// New returns the command family for the cluster of conn. Client makes further
// clients of it: configured like conn, and not connected.
func New(conn *rados.Conn, client func() (*rados.Conn, error)) *Control {
	return &Control{backend{conn, client}}
}

type backend struct {
	*rados.Conn
	client func() (*rados.Conn, error)
}

// MgrCommand implements Backend.
func (b backend) MgrCommand(ctx context.Context, command []byte) ([]byte, string, error) {
	return cephclient.MgrCommand(ctx, b.client, command)
}

// OpenMap implements Backend.
func (b backend) OpenMap(pool int64, fn func(DirMap) error) error {
	name, err := b.GetPoolByID(pool)
	if err != nil {
		return fmt.Errorf("looking up metadata pool %d: %w", pool, err)
	}
	ioctx, err := b.OpenIOContext(name)
	if err != nil {
		return fmt.Errorf("opening metadata pool %s: %w", name, err)
	}
	defer ioctx.Destroy()
	return fn(dirstore.NewStore(ioctx))
}

// LocalMark implements Backend.
func (b backend) LocalMark(ctx context.Context, fsName string) (string, error) {
	m, err := mount(ctx, b.client, fsName)
	if err != nil {
		return "", fmt.Errorf("mounting file system %s: %w", fsName, err)
	}
	defer m.close()
	return m.mark()
}

// Dial implements Backend.
func (b backend) Dial(ctx context.Context, r Remote) (RemoteFS, error) {
	conn, err := configure(r)
	if err != nil {
		return nil, err
	}
	if err := conn.Connect(); err != nil {
		return nil, fmt.Errorf("connecting to cluster %s as client.%s: %w", r.Cluster, r.Client, err)
	}
	fs, err := openRemote(ctx, conn, r)
	if err != nil {
		conn.Shutdown()
		return nil, err
	}
	return fs, nil
}

// configure makes an unconnected client of a peer's cluster.
func configure(r Remote) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(r.Cluster, "client."+r.Client)
	if err != nil {
		return nil, fmt.Errorf("preparing to connect to cluster %s: %w", r.Cluster, err)
	}
	options := ConnOptions()
	if r.Credentials != nil {
		options = append(options,
			ceph.Pair{Key: "mon_host", Value: r.Credentials.MonHost}, ceph.Pair{Key: "key", Value: string(r.Credentials.Key)})
	} else if err := conn.ReadDefaultConfigFile(); ceph.Is(err, syscall.ENOENT) {
		return nil, errNoCluster
	} else if err != nil {
		return nil, fmt.Errorf("reading the configuration of cluster %s: %w", r.Cluster, err)
	}
	// This is no daemon: whatever the configuration says, no sockets and logs.
	options = append(options, ceph.Pair{Key: "admin_socket"}, ceph.Pair{Key: "log_file"})
	for _, name := range []string{"log_to_stderr", "err_to_stderr", "log_to_file"} {
		options = append(options, ceph.Pair{Key: name, Value: "false"})
	}
	for _, o := range options {
		if err := conn.SetConfigOption(o.Key, o.Value); err != nil {
			return nil, fmt.Errorf("setting %s for cluster %s: %w", o.Key, r.Cluster, err)
		}
	}
	return conn, nil
}

func openRemote(ctx context.Context, conn *rados.Conn, r Remote) (*remoteFS, error) {
	dump, err := mon(conn, nil, request{"prefix": "fs dump", "format": "json"})
	if err != nil {
		return nil, err
	}
	fsmap, err := dirstore.ParseFSMap(dump)
	if err != nil {
		return nil, err
	}
	fs := fsmap.ByName(r.FSName)
	if fs == nil {
		return nil, errNoFS
	}
	fsid, err := conn.GetFSID()
	if err != nil {
		return nil, fmt.Errorf("asking for the remote cluster's fsid: %w", err)
	}
	m, err := mount(ctx, func() (*rados.Conn, error) { return configure(r) }, r.FSName)
	if err != nil {
		return nil, fmt.Errorf("mounting remote file system %s: %w", r.FSName, err)
	}
	return &remoteFS{conn: conn, m: m, source: dirstore.Source{ClusterID: fsid, FSID: fs.ID}}, nil
}

// mounted is a mounted file system for a few calls. libcephfs waits for an MDS
// that is away for ever, and knows no way to make it stop: then the call is left
// to itself.
type mounted struct {
	m      *ceph.Mount
	over   context.Context // ends when the mount has had its time
	cancel context.CancelFunc
	stuck  chan struct{} // of a call that was left to itself: closed when it returns
}

// mount mounts the root of a file system, as root. Each mount has a client's
// configuration of its own.
func mount(ctx context.Context, client func() (*rados.Conn, error), fsName string) (*mounted, error) {
	conf, err := client()
	if err != nil {
		return nil, err
	}
	for _, o := range []ceph.Pair{
		{Key: "client_mount_uid", Value: "0"},
		{Key: "client_mount_gid", Value: "0"},
		{Key: "client_shutdown_timeout", Value: "2"}, // for an MDS that is away
	} {
		if err := conf.SetConfigOption(o.Key, o.Value); err != nil {
			return nil, fmt.Errorf("setting %s: %w", o.Key, err)
		}
	}
	m, err := ceph.NewMount(conf)
	if err != nil {
		return nil, err
	}
	if err = m.Init(); err == nil {
		err = m.SelectFilesystem(fsName)
	}
	if err == nil {
		err = m.MountWithRoot("/")
	}
	if err != nil {
		return nil, errors.Join(err, m.Release())
	}
	over, cancel := context.WithTimeout(ctx, mountBudget)
	return &mounted{m: m, over: over, cancel: cancel}, nil
}

// do makes a call and waits for it as long as there is time.
func (m *mounted) do(call func(*ceph.Mount) error) error {
	if m.stuck != nil {
		return syscall.ETIMEDOUT
	}
	result := make(chan error, 1)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		result <- call(m.m)
	}()
	select {
	case err := <-result:
		return err
	case <-m.over.Done():
		m.stuck = returned
		return fmt.Errorf("no answer of the file system: %w", syscall.ETIMEDOUT)
	}
}

// close unmounts, in the background when a call is stuck: that can last as
// long as the process.
func (m *mounted) close() {
	m.cancel()
	unmount := func() {
		if err := m.m.Unmount(); err == nil {
			_ = m.m.Release() // of an unmounted one, cannot fail
		}
	}
	if m.stuck == nil {
		unmount()
		return
	}
	go func() {
		<-m.stuck
		unmount()
	}()
}

// mark returns the RemoteMark, "" when there is none.
func (m *mounted) mark() (string, error) {
	var value []byte
	err := m.do(func(fs *ceph.Mount) error {
		v, err := fs.GetXattr("/", dirstore.RemoteMark)
		value = v
		return err
	})
	if ceph.Is(err, syscall.ENODATA) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the mark of a file system: %w", err)
	}
	return string(value), nil
}

// remoteFS is a mounted file system of a peer.
type remoteFS struct {
	conn   *rados.Conn
	m      *mounted
	source dirstore.Source
}

func (r *remoteFS) Source() dirstore.Source { return r.source }

func (r *remoteFS) Mark() (string, error) { return r.m.mark() }

func (r *remoteFS) SetMark(value string) error {
	err := r.m.do(func(fs *ceph.Mount) error {
		return fs.SetXattr("/", dirstore.RemoteMark, []byte(value), cephfs.XattrCreate)
	})
	if err != nil {
		return fmt.Errorf("marking the remote file system: %w", err)
	}
	return nil
}

func (r *remoteFS) RemoveMark() error {
	err := r.m.do(func(fs *ceph.Mount) error { return fs.RemoveXattr("/", dirstore.RemoteMark) })
	if err != nil && !ceph.Is(err, syscall.ENODATA) {
		return fmt.Errorf("removing the mark of the remote file system: %w", err)
	}
	return nil
}

func (r *remoteFS) Close() {
	r.m.close()
	r.conn.Shutdown()
}
