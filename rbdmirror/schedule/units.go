package schedule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sync/errgroup"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// readers bounds the images that are looked at at once.
const readers = 8

// heldNoPeer is said of images of a pool that nobody mirrors from. librbd refuses
// to make mirror snapshots there.
const heldNoPeer = "the pool has no peer that mirrors from it"

// finder finds the images in one pool that schedules are for.
type finder struct {
	conn       *rados.Conn
	pool       string
	id         int64
	namespaces func(*rados.IOContext) ([]string, error)
	stored     map[string]string // by key
	global     string
	stock      map[string]string
}

// all returns them in order of their ids. Images that are not primary have no
// part in it.
func (f finder) all(ioctx *rados.IOContext) ([]plugins.ScheduleUnit, error) {
	peers, err := store.NewMirroring(ioctx).Peers()
	if err != nil {
		return nil, err
	}
	held := heldNoPeer
	for _, p := range peers {
		if p.Direction != cls.DirectionRx {
			held = ""
		}
	}
	spaces, err := f.spaces(ioctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var units []plugins.ScheduleUnit
	for _, space := range slices.Sorted(maps.Keys(spaces)) {
		inner, err := openSpace(f.conn, f.pool, space)
		if err != nil {
			return nil, err
		}
		ids, names, err := f.images(inner, space, spaces[space])
		if err != nil {
			inner.Destroy()
			return nil, err
		}
		var group errgroup.Group
		group.SetLimit(readers)
		for _, id := range ids {
			group.Go(func() error {
				u, err := f.unit(inner, space, id, names[id])
				if u != nil {
					u.Held = held
					mu.Lock()
					units = append(units, *u)
					mu.Unlock()
				}
				return err
			})
		}
		err = group.Wait()
		inner.Destroy()
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(units, func(a, b plugins.ScheduleUnit) int { return strings.Compare(a.ID, b.ID) })
	return units, nil
}

// spaces returns the namespaces that schedules are for, and whether all images
// of them are meant.
func (f finder) spaces(ioctx *rados.IOContext) (map[string]bool, error) {
	out := make(map[string]bool)
	if f.global != "" || f.stored[fmt.Sprint(f.id)] != "" {
		names, err := f.namespaces(ioctx)
		if err != nil {
			return nil, err
		}
		for _, name := range append(names, "") {
			out[name] = true
		}
		return out, nil
	}
	for key := range f.stored {
		if parts := strings.Split(key, "/"); len(parts) > 1 {
			out[parts[1]] = out[parts[1]] || len(parts) == 2
		}
	}
	return out, nil
}

// images lists the images of a namespace that schedules are for, and the names
// of all.
func (f finder) images(inner *rados.IOContext, space string, all bool) (ids []string, names map[string]string, err error) {
	m := store.NewMirroring(inner)
	mode, err := m.Mode()
	if ceph.Is(err, syscall.ENOENT) || err == nil && mode == cls.PoolModeDisabled {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("mirroring mode of %s: %w", nameOf(f.pool, space), err)
	}
	byName, err := store.NewDirectory(inner).List()
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, nil, err
	}
	names = make(map[string]string, len(byName))
	for name, id := range byName {
		names[id] = name
	}
	mirrored, err := m.AllImages()
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, nil, err
	}
	for id := range mirrored {
		if all || f.stored[imageKey(f.id, space, id)] != "" {
			ids = append(ids, id)
		}
	}
	return ids, names, nil
}

func imageKey(pool int64, space, id string) string { return fmt.Sprintf("%d/%s/%s", pool, space, id) }

// unit looks at one image. It returns nil for one that no mirror snapshots are
// to be made of here.
func (f finder) unit(inner *rados.IOContext, space, id, name string) (*plugins.ScheduleUnit, error) {
	if name == "" {
		return nil, nil // removed, or on its way to the trash
	}
	record, err := store.NewMirroring(inner).Image(id)
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if record.Mode != cls.ImageModeSnapshot || record.State != cls.RecordEnabled {
		return nil, nil
	}
	img, err := store.NewHeader(inner, id).Load()
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	newest := newestMirror(img.Snapshots)
	if newest == nil || newest.Namespace.Mirror.State != cls.MirrorPrimary {
		return nil, nil
	}
	pool := fmt.Sprint(f.id)
	u := &plugins.ScheduleUnit{
		ID: imageKey(f.id, space, id), Name: nameOf(f.pool, space, name), Last: newest.Timestamp,
		Keys: []string{imageKey(f.id, space, id), pool + "/" + space, pool, ""},
	}
	for _, key := range u.Keys {
		if v := f.stock[key]; v != "" {
			if u.Stock == nil {
				u.Stock = make(map[string]string)
			}
			u.Stock[key] = v
		}
	}
	return u, nil
}

func newestMirror(snapshots []cls.Snapshot) *cls.Snapshot {
	var newest *cls.Snapshot
	for i, s := range snapshots {
		if s.Namespace.Mirror != nil && (newest == nil || s.ID > newest.ID) {
			newest = &snapshots[i]
		}
	}
	return newest
}

// splitUnit takes the id of a unit apart.
func splitUnit(id string) (pool int64, space, image string, err error) {
	parts := strings.Split(id, "/")
	if len(parts) != 3 {
		return 0, "", "", fmt.Errorf("%q is no image: %w", id, syscall.EINVAL)
	}
	_, err = fmt.Sscan(parts[0], &pool)
	if err != nil {
		return 0, "", "", errors.Join(err, syscall.EINVAL)
	}
	return pool, parts[1], parts[2], nil
}
