package bed

import (
	"context"
	"errors"
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
	return c.keepUser(ctx, entity, out)
}

func (c *Cluster) keepUser(ctx context.Context, entity, keyring string) error {
	if err := writeFile(c.keyringOf(entity), []byte(keyring), 0o600); err != nil {
		return err
	}
	return c.changeUsers(ctx, func(users []User) []User {
		if slices.Contains(users, User{entity}) {
			return users
		}
		return append(users, User{entity})
	})
}

// changeUsers changes the users in the record.
func (c *Cluster) changeUsers(ctx context.Context, change func([]User) []User) error {
	lock, err := lockFile(ctx, c.dir+".lock", true)
	if err != nil {
		return err
	}
	defer lock.remove()
	rec, err := c.load()
	if err != nil {
		return err
	}
	rec.Users = change(rec.Users)
	return c.keep(rec)
}

// RemoveUser takes a user's key from the cluster and removes its keyring.
func (c *Cluster) RemoveUser(ctx context.Context, entity string) error {
	if _, err := c.MonCommand(ctx, map[string]any{"prefix": "auth rm", "entity": entity}); err != nil {
		return fmt.Errorf("remove user %s: %w", entity, err)
	}
	if err := os.Remove(c.keyringOf(entity)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove user %s: %w", entity, err)
	}
	return c.changeUsers(ctx, func(users []User) []User {
		return slices.DeleteFunc(users, func(u User) bool { return u.Entity == entity })
	})
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
	return c.keepUser(ctx, entity, out)
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
