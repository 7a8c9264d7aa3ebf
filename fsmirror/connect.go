package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/plugins"
)

// clientOptions are what every connection of ours is made with, beside what
// package client sees to.
func clientOptions() []client.Option {
	return []client.Option{
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
	}
}

// spec says how the local cluster is connected to.
func spec(cfg plugins.Config) client.Spec {
	s := client.Spec{Cluster: cfg.Cluster, Name: cfg.Name, ConfFile: cfg.ConfFile, Preset: clientOptions()}
	for _, o := range cfg.CephOptions {
		s.Options = append(s.Options, client.Option(o))
	}
	return s
}

// dialLocal connects to the local cluster as cfg says.
func dialLocal(cfg plugins.Config) (*rados.Conn, client.Paths, error) {
	return client.Dial(spec(cfg))
}

// localClient makes an unconnected client of the local cluster.
func (e *Engine) localClient() (*rados.Conn, error) {
	conn, _, err := client.Configure(spec(e.cfg))
	return conn, err
}

// peerClient makes an unconnected client of a peer's cluster: with the address
// and key that the monitors keep, or else with the peer cluster's own
// configuration file.
func (e *Engine) peerClient(fsName string, spec dirstore.Peer) (*rados.Conn, error) {
	credentials, err := e.credentials(fsName, spec.UUID)
	if err != nil {
		return nil, err
	}
	p := client.Peer{
		Cluster: spec.Cluster, Name: spec.Client,
		Preset: append(clientOptions(), client.Option{
			Name: "client_mount_timeout", Value: e.options.stock("cephfs_mirror_mount_timeout"),
		}),
	}
	if credentials != nil {
		p.MonHost, p.Key = credentials.MonHost, string(credentials.Key)
	}
	return client.ConfigurePeer(p)
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
	if ctx.Err() == nil {
		return m, nil
	}
	if err := m.Unmount(); err != nil {
		_, err = release(err)
		return nil, halfMounted{err}
	}
	return release(context.Cause(ctx))
}
