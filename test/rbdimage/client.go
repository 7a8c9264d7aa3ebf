// Package rbdimage makes RBD images for tests, changes them, and compares what
// two of them hold. It reads through librbd and shares no code with the engine
// under test.
package rbdimage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"cephmirror/internal/ceph"
)

// Client is a connection to a cluster as its administrator.
type Client struct {
	Conn *rados.Conn
	name string
}

// Open connects to the cluster of conf. name is for messages.
func Open(name, conf string) (*Client, error) {
	conn, err := rados.NewConnWithUser("admin")
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	if err := conn.ReadConfigFile(conf); err != nil {
		conn.Shutdown()
		return nil, fmt.Errorf("reading %s: %w", conf, err)
	}
	for option, value := range map[string]string{
		"admin_socket": "", "log_to_file": "false",
		// What a test writes is in the image when the call returns, and what
		// it reads is not of a cache.
		"rbd_cache": "false",
		// A discard of a block is one.
		"rbd_discard_granularity_bytes": "4096",
	} {
		if err := conn.SetConfigOption(option, value); err != nil {
			conn.Shutdown()
			return nil, fmt.Errorf("setting %s: %w", option, err)
		}
	}
	if err := conn.Connect(); err != nil {
		conn.Shutdown()
		return nil, fmt.Errorf("connecting with %s: %w", conf, err)
	}
	return &Client{conn, name}, nil
}

// Close ends the connection.
func (c *Client) Close() { c.Conn.Shutdown() }

// Name returns the cluster's name.
func (c *Client) Name() string { return c.name }

// Pool is a namespace of a pool.
type Pool struct {
	Client    *Client
	Name      string
	Namespace string
}

// Pool returns the default namespace of a pool, or the one that is named.
func (c *Client) Pool(name string, namespace ...string) Pool {
	return Pool{c, name, strings.Join(namespace, "")}
}

func (p Pool) String() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Name + "/" + p.Namespace
}

// Spec names an image as the tools of Ceph do.
func (p Pool) Spec(image string) string { return p.String() + "/" + image }

// With calls f with a context for the namespace.
func (p Pool) With(f func(*rados.IOContext) error) error {
	ctx, err := p.Client.Conn.OpenIOContext(p.Name)
	if err != nil {
		return fmt.Errorf("opening pool %s of %s: %w", p.Name, p.Client.name, err)
	}
	defer ctx.Destroy()
	ctx.SetNamespace(p.Namespace)
	return f(ctx)
}

// Look opens an image for reading and calls f.
func (p Pool) Look(image string, f func(*rbd.Image) error) error {
	return p.open(image, rbd.OpenImageReadOnly, func(img *rbd.Image) error {
		return errors.Join(p.settle(), f(img))
	})
}

// settle waits until librbd is through with what opened an image, or another
// snapshot of it. The thread that opens the parent of a clone looks at it again
// after it has said that it is open. Who closes at once an image that is open
// for reading only, and so asks nothing of the cluster, frees the parent under
// that thread, and the process dies, at once or later. Callbacks of one client
// come one after the other: one behind that thread's shows that it is done.
func (p Pool) settle() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return p.With(func(io *rados.IOContext) error {
		if _, err := ceph.ListObjectSnaps(ctx, io, "rbd_directory"); err != nil {
			return fmt.Errorf("waiting for the opening of an image of %s of %s: %w", p, p.Client.name, err)
		}
		return nil
	})
}

// Open opens an image for writing and calls f.
func (p Pool) Open(image string, f func(*rbd.Image) error) error {
	return p.open(image, rbd.OpenImage, f)
}

func (p Pool) open(image string, open func(*rados.IOContext, string, string) (*rbd.Image, error), f func(*rbd.Image) error) error {
	return p.With(func(ctx *rados.IOContext) error {
		img, err := open(ctx, image, rbd.NoSnapshot)
		if err != nil {
			return fmt.Errorf("opening image %s of %s: %w", p.Spec(image), p.Client.name, err)
		}
		return errors.Join(f(img), img.Close())
	})
}

// Images lists the images, sorted.
func (p Pool) Images() (names []string, err error) {
	err = p.With(func(ctx *rados.IOContext) error {
		names, err = rbd.GetImageNames(ctx)
		slices.Sort(names)
		return err
	})
	return names, err
}

// errno returns the error number of a failed call, or 0.
func errno(err error) syscall.Errno {
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return 0
	}
	return syscall.Errno(max(coded.ErrorCode(), -coded.ErrorCode()))
}

// Is tells whether a call failed with an error number.
func Is(err error, number syscall.Errno) bool { return err != nil && errno(err) == number }
