package cephtree

import (
	"errors"
	"fmt"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
)

// Client is a client of one file system.
type Client struct {
	*ceph.Mount
	Conn *rados.Conn
}

// Option is a configuration option of a client.
type Option struct{ Name, Value string }

// Open mounts a file system as administrator of the cluster of conf.
func Open(conf, fs string, opts ...Option) (*Client, error) {
	return OpenAs("admin", conf, fs, opts...)
}

// OpenAs mounts a file system as client.ID.
func OpenAs(id, conf, fs string, opts ...Option) (*Client, error) {
	conn, err := rados.NewConnWithUser(id)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	fail := func(err error) (*Client, error) {
		conn.Shutdown()
		return nil, err
	}
	if err := conn.ReadConfigFile(conf); err != nil {
		return fail(fmt.Errorf("reading %s: %w", conf, err))
	}
	for _, o := range append([]Option{
		{"client_mount_uid", "0"}, {"client_mount_gid", "0"}, {"client_permissions", "false"},
		{"client_acl_type", "posix_acl"}, {"admin_socket", ""}, {"log_to_file", "false"},
		{"client_quota", "false"},
		// What a directory was listed with is still known when it is looked at,
		// also of a very large one.
		{"client_cache_size", "200000"},
	}, opts...) {
		if err := conn.SetConfigOption(o.Name, o.Value); err != nil {
			return fail(fmt.Errorf("setting %s: %w", o.Name, err))
		}
	}
	if err := conn.Connect(); err != nil {
		return fail(fmt.Errorf("connecting with %s: %w", conf, err))
	}
	m, err := ceph.NewMount(conn)
	if err != nil {
		return fail(err)
	}
	err = m.SelectFilesystem(fs)
	if err == nil {
		err = m.Init()
	}
	if err == nil {
		err = m.Mount()
	}
	if err != nil {
		return fail(errors.Join(fmt.Errorf("mounting %s with %s: %w", fs, conf, err), m.Release()))
	}
	return &Client{m, conn}, nil
}

// Close unmounts.
func (c *Client) Close() error {
	err := errors.Join(c.Unmount(), c.Release())
	c.Conn.Shutdown()
	return err
}

// Abandon cuts the client off without a word to the cluster.
func (c *Client) Abandon() error {
	err := errors.Join(c.Abort(), c.Release())
	c.Conn.Shutdown()
	return err
}
