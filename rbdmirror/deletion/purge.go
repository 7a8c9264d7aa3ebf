package deletion

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sync/errgroup"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
	"cephmirror/rbdmirror/wire"
)

// parallel is how many data objects are removed at once.
const parallel = 16

func parseSeconds(text string) (time.Duration, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	return time.Duration(n) * time.Second, err == nil
}

// Purge removes an image with all that belongs to it, wherever it is on its
// way: one that was never completed, or one in the trash. EBUSY: somebody uses
// it, or a clone of it.
func Purge(ctx context.Context, i Image) error {
	if err := i.purge(ctx); err != nil {
		return fmt.Errorf("purging image %s: %w", i.ID, err)
	}
	return nil
}

func (i Image) purge(ctx context.Context) error {
	if err := i.check(ctx); err != nil {
		return err
	}
	records, dir, trash := store.NewMirroring(i.IO), store.NewDirectory(i.IO), store.NewTrash(i.IO)
	spec, err := trash.Get(i.ID)
	inTrash := err == nil && spec.Source == cls.TrashMirroring
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	if err == nil && !inTrash {
		return fmt.Errorf("the image was not moved to the trash by mirroring: %w", syscall.EPERM)
	}
	switch h, err := i.take(); {
	case ceph.Is(err, syscall.ENOENT): // what has no header has no data
	case err != nil:
		return err
	default:
		err := i.purgeImage(ctx, h, inTrash)
		h.release()
		if err != nil {
			return err
		}
	}
	if err := i.check(ctx); err != nil {
		return err
	}
	name, err := dir.Name(i.ID)
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	if err := i.unname(name); err != nil {
		return err
	}
	// An image in the trash has lost its name, unless its move broke off.
	if err := i.unname(spec.Name); err != nil {
		return err
	}
	if err := records.RemoveImage(i.ID); err != nil {
		return err
	}
	if !inTrash {
		return nil
	}
	if err := trash.Remove(i.ID); err != nil {
		return err
	}
	trash.Notify(cls.TrashNotify{Op: cls.TrashImageRemoved, ImageID: i.ID})
	return nil
}

// purgeImage removes all but names and records.
func (i Image) purgeImage(ctx context.Context, l *hold, inTrash bool) error {
	h := store.NewHeader(i.IO, i.ID)
	img, err := h.Load()
	if err != nil {
		return err
	}
	// What was moved to the trash has been found to be no primary, and cannot
	// have become one.
	if !inTrash {
		if err := i.notPrimary(img); err != nil {
			return err
		}
	}
	if err := i.unused(img, l); err != nil {
		return err
	}
	if inTrash {
		// from now on nobody gets it back
		err := store.NewTrash(i.IO).SetState(i.ID, cls.TrashStateRemoving, cls.TrashStateNormal)
		if ceph.Is(err, syscall.ESTALE) {
			spec, err := store.NewTrash(i.IO).Get(i.ID)
			if err != nil {
				return err
			}
			if spec.State != cls.TrashStateRemoving {
				return fmt.Errorf("the image is being restored: %w", syscall.EBUSY)
			}
		} else if err != nil {
			return err
		}
	}
	h.Cookie = l.cookie
	data, err := store.DataContext(i.Conn, i.IO, img.DataPool)
	if ceph.Is(err, syscall.ENOENT) {
		data = nil // the pool is gone, and all data with it
	} else if err != nil {
		return err
	} else {
		defer data.Destroy()
		// A full pool is no place to refuse removals.
		if err := data.SetPoolFullTry(); err != nil {
			return fmt.Errorf("preparing to remove data: %w", err)
		}
	}
	// With the last snapshot a header may forget its parent, so this comes first.
	if err := i.detach(img); err != nil {
		return err
	}
	for _, s := range img.Snapshots {
		if err := i.check(ctx); err != nil {
			return err
		}
		if err := i.removeSnapshot(h, data, img, s); err != nil {
			return fmt.Errorf("removing snapshot %d (%s): %w", s.ID, s.Name, err)
		}
	}
	if data != nil {
		if err := i.removeData(ctx, data, img); err != nil {
			return err
		}
	}
	if err := i.removeJournal(ctx); err != nil {
		return err
	}
	if err := i.check(ctx); err != nil {
		return err
	}
	if err := store.NewObjectMap(i.IO, i.ID, cls.NoSnap).Delete(); err != nil {
		return err
	}
	if i.Cookie == "" {
		// A removed object tells its watchers. What is left to do can be done
		// again by anyone.
		l.unwatch()
	}
	return h.Delete()
}

// unused fails with EBUSY if the image is open elsewhere or has clones.
func (i Image) unused(img *store.Image, l *hold) error {
	oid := store.HeaderObject(i.ID)
	watchers, err := ceph.ListWatchers(i.IO, oid)
	if err != nil {
		return fmt.Errorf("%s: listing watchers: %w", oid, err)
	}
	for _, w := range watchers {
		if w.Client != i.Conn.GetInstanceID() || cls.AutoCookie(w.Cookie) != l.cookie {
			return fmt.Errorf("the image is open at %s: %w", w.Addr, syscall.EBUSY)
		}
	}
	for _, s := range img.Snapshots {
		if s.ChildCount > 0 {
			return fmt.Errorf("snapshot %d (%s) has clones: %w", s.ID, s.Name, syscall.EBUSY)
		}
		if s.Protection == cls.Unprotected {
			continue
		}
		old, err := i.oldClones(s.ID)
		if err != nil {
			return err
		}
		if old {
			return fmt.Errorf("snapshot %d (%s) has clones: %w", s.ID, s.Name, syscall.EBUSY)
		}
	}
	return nil
}

// oldClones reports whether any pool has a clone of the snapshot of the kind
// that the header does not know of.
func (i Image) oldClones(snap uint64) (bool, error) {
	if ns, err := i.IO.GetNamespace(); err != nil || ns != "" {
		return false, err // there are none outside the default namespace
	}
	pools, err := i.Conn.ListPools()
	if err != nil {
		return false, fmt.Errorf("listing pools: %w", err)
	}
	spec := cls.ParentSpec{PoolID: i.IO.GetPoolID(), ImageID: i.ID, SnapID: snap}
	for _, pool := range pools {
		io, err := i.Conn.OpenIOContext(pool)
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("opening pool %s: %w", pool, err)
		}
		list, err := store.OldChildren(io, spec)
		io.Destroy()
		// pools that are not RBD's, or that this client has nothing to do with
		if ceph.Is(err, syscall.EOPNOTSUPP, syscall.EPERM, syscall.EACCES) {
			continue
		}
		if err != nil || len(list) > 0 {
			return len(list) > 0, err
		}
	}
	return false, nil
}

// removeSnapshot removes a snapshot. Other than store.RemoveSnapshot it does
// not care for the object maps of what remains: nothing will.
func (i Image) removeSnapshot(h *store.Header, data *rados.IOContext, img *store.Image, s cls.Snapshot) error {
	if s.Protection != cls.Unprotected {
		if err := h.SetProtection(s.ID, cls.Unprotected); err != nil {
			return err
		}
	}
	if s.Namespace.Type != cls.NamespaceTrash {
		if err := h.TrashSnapshot(s.ID); err != nil {
			return err
		}
	}
	if err := store.NewImageStates(i.IO).Delete(img.ID, s.ID); err != nil {
		return err
	}
	if err := store.NewObjectMap(i.IO, img.ID, s.ID).Delete(); err != nil {
		return err
	}
	if data != nil {
		if err := store.RemoveSnapID(data, s.ID); err != nil {
			return err
		}
	}
	return h.RemoveSnapshot(s.ID)
}

// removeData removes all data objects that may exist. The head's object map
// spares asking for those that do not.
func (i Image) removeData(ctx context.Context, data *rados.IOContext, img *store.Image) error {
	var known *objectmap.Map
	if img.Has(cls.FeatureObjectMap) && img.Flags&cls.FlagObjectMapInvalid == 0 {
		// no map is no reason to leave anything
		known, _ = store.NewObjectMap(i.IO, i.ID, cls.NoSnap).Load()
	}
	count := img.MaxObjects()
	if _, err := i.removeObjects(ctx, data, img.Prefix, 0, count, known); err != nil {
		return err
	}
	// An image that was on its way from one size to another may have more, and
	// the snapshots that told of that be gone since an earlier attempt.
	for from := count; ; from += searchAhead {
		found, err := i.removeObjects(ctx, data, img.Prefix, from, from+searchAhead, nil)
		if err != nil || !found {
			return err
		}
	}
}

// searchAhead is how far past the last object more are looked for.
const searchAhead = 64

// removeObjects removes the data objects from one number to before another.
func (i Image) removeObjects(ctx context.Context, data *rados.IOContext, prefix string, from, to uint64, known *objectmap.Map) (found bool, err error) {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Uint64
	var any atomic.Bool
	next.Store(from)
	for range parallel {
		g.Go(func() error {
			for {
				n := next.Add(1) - 1
				if n >= to {
					return nil
				}
				if known != nil && n < known.Len() && known.Get(n) == objectmap.NonExistent {
					continue
				}
				if err := i.check(ctx); err != nil {
					return err
				}
				err := data.Delete(store.DataObject(prefix, n))
				if err != nil && !ceph.Is(err, syscall.ENOENT) {
					return fmt.Errorf("removing %s: %w", store.DataObject(prefix, n), err)
				}
				if err == nil {
					any.Store(true)
				}
			}
		})
	}
	err = g.Wait()
	return any.Load(), err
}

// removeJournal removes the image's journal if there is one.
func (i Image) removeJournal(ctx context.Context) error {
	oid := "journal." + i.ID
	call := func(method string) cls.Call { return cls.Call{Class: "journal", Method: method} }
	out, err := store.Read(i.IO, oid, call("get_splay_width"), call("get_pool_id"), call("get_minimum_set"), call("get_active_set"))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	r := wire.NewReader(slices.Concat(out...))
	width, pool, first, last := r.U8(), r.S64(), r.U64(), r.U64()
	if err := r.Err(); err != nil {
		return fmt.Errorf("%s: %w", oid, err)
	}
	io := i.IO
	if pool >= 0 && pool != i.IO.GetPoolID() {
		if io, err = store.DataContext(i.Conn, i.IO, pool); err != nil && !ceph.Is(err, syscall.ENOENT) {
			return err
		} else if err == nil {
			defer io.Destroy()
		}
	}
	if err == nil {
		prefix := fmt.Sprintf("journal_data.%d.%s.", i.IO.GetPoolID(), i.ID)
		for n := first * uint64(width); n < (last+1)*uint64(width); n++ {
			if err := i.check(ctx); err != nil {
				return err
			}
			if err := io.Delete(prefix + strconv.FormatUint(n, 10)); err != nil && !ceph.Is(err, syscall.ENOENT) {
				return fmt.Errorf("removing %s%d: %w", prefix, n, err)
			}
		}
	}
	if err := i.IO.Delete(oid); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("removing %s: %w", oid, err)
	}
	return nil
}

// detach tells the image's parent that it has one clone less. A snapshot of the
// parent that was kept for this clone alone goes, too.
func (i Image) detach(img *store.Image) error {
	p := img.Parent
	if !p.Exists() {
		return nil
	}
	if img.OpFeatures&cls.OpFeatureCloneChild == 0 {
		return store.RemoveOldChild(i.IO, p, i.ID)
	}
	io, err := store.PoolContext(i.Conn, p.PoolID, p.Namespace)
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer io.Destroy()
	ns, err := i.IO.GetNamespace()
	if err != nil {
		return err
	}
	h := store.NewHeader(io, p.ImageID)
	if err := h.DetachChild(p.SnapID, cls.ChildSpec{PoolID: i.IO.GetPoolID(), ImageID: i.ID, Namespace: ns}); err != nil {
		return err
	}
	if err := i.tidyParent(io, h, p); err != nil {
		i.Log.Warn().Err(err).Str("parent", p.ImageID).Uint64("snapshot", p.SnapID).
			Msg("a snapshot that no clone needs any longer stays with the parent")
	}
	return h.Notify()
}

// tidyParent removes a snapshot of the parent that was removed by its user
// while it had clones, and has none now.
func (i Image) tidyParent(io *rados.IOContext, h *store.Header, p cls.ParentSpec) error {
	img, err := h.Load()
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	s := img.Snapshot(p.SnapID)
	if s == nil || s.Namespace.Type != cls.NamespaceTrash || s.ChildCount > 0 || s.Protection != cls.Unprotected {
		return nil
	}
	parent := Image{Conn: i.Conn, IO: io, ID: p.ImageID, Lease: i.Lease, Log: i.Log}
	l, err := parent.take()
	if err != nil {
		return err
	}
	defer l.release()
	if img, err = h.Load(); err != nil {
		return err
	}
	data, err := store.DataContext(i.Conn, io, img.DataPool)
	if err != nil {
		return err
	}
	defer data.Destroy()
	guarded := store.NewHeader(io, p.ImageID)
	guarded.Cookie = l.cookie
	return store.RemoveSnapshot(guarded, data, img, p.SnapID, false)
}
