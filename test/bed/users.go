package bed

import (
	"context"
	"fmt"
	"os"
	"slices"
)

// User is a cephx user that the bed made.
type User struct {
	Entity string `json:"entity"` // "client.mirror"
}

// AddUser makes a user with the given capabilities, writes its keyring to
// /etc/ceph/NAME.ENTITY.keyring and a section for it to ceph.conf, with its
// own admin socket, pid file and log file.
func (c *Cluster) AddUser(ctx context.Context, entity string, caps ...Option) error {
	var list []string
	for _, o := range caps {
		list = append(list, o.Name, o.Value)
	}
	out, err := c.MonCommand(ctx, map[string]any{"prefix": "auth get-or-create", "entity": entity, "caps": list})
	if err != nil {
		return fmt.Errorf("make user %s: %w", entity, err)
	}
	return c.keepUser(entity, out)
}

func (c *Cluster) keepUser(entity, keyring string) error {
	if err := os.MkdirAll(c.bed.EtcDir(), 0o755); err != nil {
		return fmt.Errorf("keep user %s: %w", entity, err)
	}
	if err := writeFile(c.keyringOf(entity), []byte(keyring), 0o600); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.record.Users, User{entity}) {
		c.record.Users = append(c.record.Users, User{entity})
	}
	if err := c.writeConf(); err != nil {
		return err
	}
	return c.save()
}

// RemoveUser takes a user's key from the cluster and removes its keyring.
func (c *Cluster) RemoveUser(ctx context.Context, entity string) error {
	if _, err := c.MonCommand(ctx, map[string]any{"prefix": "auth rm", "entity": entity}); err != nil {
		return fmt.Errorf("remove user %s: %w", entity, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Users = slices.DeleteFunc(c.record.Users, func(u User) bool { return u.Entity == entity })
	if err := c.writeConf(); err != nil {
		return err
	}
	if err := os.Remove(c.keyringOf(entity)); err != nil {
		return fmt.Errorf("remove user %s: %w", entity, err)
	}
	return c.save()
}

// AddMirrorUser makes client.ID with exactly the capabilities that are
// documented for the cephfs-mirror daemon on its local cluster.
func (c *Cluster) AddMirrorUser(ctx context.Context, id string) error {
	return c.AddUser(ctx, "client."+id,
		Option{"mon", "profile cephfs-mirror"},
		Option{"mds", "allow r"},
		Option{"osd", "allow rw tag cephfs metadata=*, allow r tag cephfs data=*"},
		Option{"mgr", "allow r"},
	)
}

// AuthorizePeer makes client.ID as documented for the user that a remote
// cephfs-mirror daemon writes to a file system with.
func (c *Cluster) AuthorizePeer(ctx context.Context, fs, id string) error {
	entity := "client." + id
	out, err := c.MonCommand(ctx, map[string]any{
		"prefix": "fs authorize", "filesystem": fs, "entity": entity, "caps": []string{"/", "rwps"},
	})
	if err != nil {
		return fmt.Errorf("authorize %s: %w", entity, err)
	}
	return c.keepUser(entity, out)
}

// AddRBDMirrorUser makes client.ID as documented for the rbd-mirror daemon on
// its local cluster.
func (c *Cluster) AddRBDMirrorUser(ctx context.Context, id string) error {
	return c.AddUser(ctx, "client."+id,
		Option{"mon", "profile rbd-mirror"},
		Option{"osd", "profile rbd"},
	)
}

// AddRBDPeerUser makes client.ID as documented for the user with which a
// remote rbd-mirror daemon reads from this cluster.
func (c *Cluster) AddRBDPeerUser(ctx context.Context, id string) error {
	return c.AddUser(ctx, "client."+id,
		Option{"mon", "profile rbd-mirror-peer"},
		Option{"osd", "profile rbd"},
	)
}
