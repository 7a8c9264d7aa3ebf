package replica

import (
	"context"
	"fmt"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
)

// Creation is a local image in the making. Until Finish its record says so, and
// what a crash leaves is removed again.
type Creation struct {
	ID     string
	Header *store.Header

	pair   *Pair
	name   string
	record cls.MirrorImage
	remote *store.Image
	parent *Parent
	pool   int64
}

// NewImage prepares to make the copy of a remote image. Nothing is made yet, but
// all is found out that would be in the way. clone says that it hangs on a parent.
func (p *Pair) NewImage(ctx context.Context, globalID, name string, mode cls.ImageMode, remote *store.Image, clone bool) (*Creation, error) {
	if name == "" {
		return nil, fmt.Errorf("the remote image %s has no name: %w", remote.ID, syscall.ENOENT)
	}
	if have, err := p.Local.Dir.ID(name); err == nil {
		return nil, fmt.Errorf("there is another image %s here (id %s): %w", name, have, syscall.EEXIST)
	} else if !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	c := &Creation{
		ID: store.NewImageID(p.Local.Client), pair: p, name: name, remote: remote,
		record: cls.MirrorImage{GlobalID: globalID, State: cls.RecordCreating, Mode: mode},
	}
	c.Header = store.NewHeader(p.Local.IO, c.ID)
	if clone {
		up, err := p.FindParent(ctx, remote)
		if err != nil {
			return nil, err
		}
		c.parent = &up
	}
	var err error
	c.pool, err = p.chooseDataPool(ctx, remote)
	return c, err
}

// Make makes the image, empty, laid out as the remote one, and hangs it on its
// parent, if it has one and overlap is not 0.
func (c *Creation) Make(size, features, overlap uint64) error {
	l := c.pair.Local
	if err := l.Records.SetImage(c.ID, c.record); err != nil {
		return err
	}
	if err := l.Dir.Add(c.name, c.ID); err != nil {
		return err
	}
	if err := l.Dir.CreateID(c.name, c.ID); err != nil {
		return err
	}
	err := c.Header.Create(store.CreateOptions{
		Size: size, Order: c.remote.Order, Features: features,
		Prefix: store.DataPrefix(c.ID, l.IO.GetPoolID(), c.pool), DataPool: c.pool,
		StripeUnit: c.remote.StripeUnit, StripeCount: c.remote.StripeCount,
	})
	if err != nil {
		return err
	}
	img, err := c.Header.Load()
	if err != nil {
		return err
	}
	if img.Has(cls.FeatureObjectMap) {
		if err := l.ObjectMap(c.ID, cls.NoSnap).Resize(img.Objects(img.Size), objectmap.NonExistent); err != nil {
			return err
		}
	}
	if c.parent == nil {
		return nil
	}
	if err := c.pair.AttachChild(*c.parent, c.Header, c.ID); err != nil {
		return err
	}
	if overlap == 0 {
		return nil
	}
	return c.Header.AttachParent(c.parent.Spec, overlap, false)
}

// Finish makes the image one that is mirrored.
func (c *Creation) Finish() error {
	c.record.State = cls.RecordEnabled
	return c.pair.Local.Records.SetImage(c.ID, c.record)
}

// chooseDataPool returns the pool for the data of a new image, -1 for the pool of
// the image itself: what the local cluster has as default, else the pool that is
// called as the remote image's.
func (p *Pair) chooseDataPool(ctx context.Context, remote *store.Image) (int64, error) {
	name, err := p.Local.Conn.GetConfigOption("rbd_default_data_pool")
	if err != nil {
		name = ""
	}
	fallback := false
	if name == "" {
		if remote.DataPool < 0 {
			return -1, nil
		}
		name, err = remotely(ctx, p, func() (string, error) { return p.Remote.Conn.GetPoolByID(remote.DataPool) })
		if err != nil {
			return 0, fmt.Errorf("looking up the data pool %d of the remote image: %w", remote.DataPool, err)
		}
		fallback = true
	}
	if name == p.Local.Pool {
		return -1, nil
	}
	id, err := p.Local.Conn.GetPoolByName(name)
	if fallback && ceph.Is(err, syscall.ENOENT) {
		return -1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking up the data pool %s: %w", name, err)
	}
	return id, nil
}
