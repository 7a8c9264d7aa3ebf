package replica

import (
	"context"
	"fmt"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/store"
)

// Side is one cluster's pool and namespace, opened.
type Side struct {
	Site
	Client  uint64 // this client's number
	IO      *rados.IOContext
	Records *store.Mirroring
	Peers   *store.Mirroring // in the default namespace
	Dir     *store.Directory
	States  *store.ImageStates

	pool         *rados.IOContext // default namespace
	watchTimeout time.Duration    // 0: the cluster's own
	// data are further contexts, kept until the end because a call that hangs
	// may still use them.
	data map[int64]*rados.IOContext
}

func openSide(s Site, watchTimeout time.Duration) (*Side, error) {
	pool, err := ceph.OpenPool(s.Conn, s.Pool)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", s.Pool, err)
	}
	ioctx, err := ceph.OpenPool(s.Conn, s.Pool)
	if err != nil {
		pool.Destroy()
		return nil, fmt.Errorf("opening pool %s: %w", s.Pool, err)
	}
	ioctx.SetNamespace(s.Namespace)
	return &Side{
		Site: s, Client: s.Conn.GetInstanceID(), IO: ioctx,
		Records: store.NewMirroring(ioctx), Peers: store.NewMirroring(pool),
		Dir: store.NewDirectory(ioctx), States: store.NewImageStates(ioctx),
		pool: pool, watchTimeout: watchTimeout, data: map[int64]*rados.IOContext{},
	}, nil
}

func (s *Side) close() {
	if s == nil {
		return
	}
	for _, d := range s.data {
		d.Destroy()
	}
	s.IO.Destroy()
	s.pool.Destroy()
}

// DataContext returns a context of the pool with that id, the image's own if it
// is negative, in the image's namespace. It stays open.
func (s *Side) DataContext(pool int64) (*rados.IOContext, error) {
	if pool < 0 {
		pool = s.IO.GetPoolID()
	}
	if d, ok := s.data[pool]; ok {
		return d, nil
	}
	d, err := store.PoolContext(s.Conn, pool, s.Namespace)
	if err != nil {
		return nil, err
	}
	s.data[pool] = d
	return d, nil
}

// ObjectMap returns an object map.
func (s *Side) ObjectMap(image string, snap uint64) *store.ObjectMap {
	return store.NewObjectMap(s.IO, image, snap)
}

// Options reads the options that are set for the pool.
func (s *Side) Options() (map[string]string, error) { return store.PoolOptions(s.pool) }

// Pair is the two sides of an image. They are opened by Open.
type Pair struct {
	Local, Remote *Side
	Calls         Calls
	Limit         time.Duration // how long a call to the remote cluster is waited for

	ended chan struct{}
}

// NewPair returns a pair of sides that are not open yet.
func NewPair(limit time.Duration) *Pair { return &Pair{Limit: limit, ended: make(chan struct{})} }

// Open opens the sides that are not open.
func (p *Pair) Open(ctx context.Context, local, remote Site) error {
	var err error
	if p.Local == nil {
		if p.Local, err = openSide(local, 0); err != nil {
			return err
		}
	}
	if p.Remote == nil {
		p.Remote, err = Call(ctx, &p.Calls, p.Limit, func() (*Side, error) { return openSide(remote, remoteTimeout) }, (*Side).close)
		if err != nil {
			return Remotely(err)
		}
	}
	return nil
}

// Close closes both sides once the calls that still hang have come back. It does
// not wait for that.
func (p *Pair) Close() {
	go func() {
		p.Calls.Wait()
		p.Remote.close()
		p.Local.close()
		close(p.ended)
	}()
}

// Closed is closed when both sides are.
func (p *Pair) Closed() <-chan struct{} { return p.ended }

// remotely runs a call to the remote cluster.
func remotely[T any](ctx context.Context, p *Pair, f func() (T, error)) (T, error) {
	v, err := Ask(ctx, &p.Calls, p.Limit, f)
	return v, Remotely(err)
}
