// Package deletion removes local images that are no longer mirrored, the way
// rbd-mirror does: an image first moves to the trash, from where users can get
// it back for a while, and is purged later by the leader.
//
// Everything can be interrupted at any moment and be done again.
package deletion

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// ErrPrimary is returned for an image that is primary: others may use it.
var ErrPrimary = errors.New("the image is primary")

// ErrLease is returned when the permission to write has run out.
var ErrLease = errors.New("the lease has run out")

// Image is a local image that is to go.
type Image struct {
	Conn *rados.Conn
	// IO is set to the image's pool and namespace. It stays the caller's.
	IO    *rados.IOContext
	ID    string
	Lease *plugins.Lease // nothing is written when it has run out; nil: no lease
	Log   zerolog.Logger
	// Cookie is that of the image's exclusive lock when the caller holds it;
	// the caller's watch must then live until the end. Otherwise the lock is
	// taken, and dead holders are shut out: EBUSY if somebody alive has it.
	Cookie string
	// Primary tells whether the image is primary, in which case it is not
	// removed. nil: its features and mirror snapshots tell.
	Primary func(*store.Image) (bool, error)
}

func (i Image) notPrimary(img *store.Image) error {
	is := primary(img)
	if i.Primary != nil {
		var err error
		if is, err = i.Primary(img); err != nil {
			return err
		}
	}
	if is {
		return ErrPrimary
	}
	return nil
}

func (i Image) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if i.Lease != nil && !i.Lease.Valid() {
		return ErrLease
	}
	return nil
}

// hold is the exclusive lock of an image, and the watch that goes with it.
type hold struct {
	lock   *store.Lock
	cookie string
	watch  *ceph.Watch // nil: the caller has it
	stop   chan struct{}
	wg     sync.WaitGroup
}

// roFS is what requests to the holder of the lock are answered with: that it does
// nothing for anybody.
const roFS = -int32(syscall.EROFS)

// take takes the exclusive lock. ENOENT: there is no header.
func (i Image) take() (h *hold, err error) {
	oid := store.HeaderObject(i.ID)
	h = &hold{lock: store.NewLock(i.IO, oid), cookie: i.Cookie, stop: make(chan struct{})}
	if i.Cookie != "" {
		return h, nil
	}
	if h.watch, err = ceph.NewWatch(i.IO, oid, 0); err != nil {
		return nil, fmt.Errorf("%s: watching: %w", oid, err)
	}
	h.cookie = cls.AutoCookie(h.watch.Cookie())
	h.wg.Go(func() {
		for {
			select {
			case n := <-h.watch.Events():
				var answer []byte
				if m, err := cls.DecodeHeaderNotify(n.Data); err == nil && m.Op.AsksHolder() {
					answer = cls.EncodeHeaderResponse(roFS)
				}
				// What cannot be acknowledged has to wait for its own timeout.
				_ = h.watch.Ack(n, answer)
			case <-h.stop:
				return
			}
		}
	})
	if err := i.acquire(h); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// acquire takes the lock from whoever is dead.
func (i Image) acquire(h *hold) error {
	for range 5 {
		err := h.lock.Acquire(h.cookie)
		if !ceph.Is(err, syscall.EBUSY) {
			return err
		}
		holder, err2 := h.lock.Holder()
		if err2 != nil {
			return err2
		}
		if holder == nil {
			continue
		}
		if holder.Entity == (cls.EntityName{Type: cls.EntityClient, Num: int64(i.Conn.GetInstanceID())}) {
			// A watch of this client that is gone leaves nobody who writes.
			alive, err := h.lock.Alive(*holder)
			if err != nil {
				return err
			}
			if alive {
				return fmt.Errorf("%s is open in this process: %w", store.HeaderObject(i.ID), syscall.EBUSY)
			}
			if err := h.lock.Break(*holder); err != nil {
				return err
			}
			continue
		}
		err = h.lock.BreakDead(i.Conn, *holder, false, 0)
		switch {
		case ceph.Is(err, syscall.EAGAIN):
			return fmt.Errorf("the image is in use by %s at %s: %w", holder.Entity, holder.Addr, syscall.EBUSY)
		case err != nil && !ceph.Is(err, syscall.ESTALE):
			return err
		}
	}
	return fmt.Errorf("%s: the lock changes hands: %w", store.HeaderObject(i.ID), syscall.EBUSY)
}

// release gives the lock up. What fails ends with the watch.
func (h *hold) release() {
	if h.watch == nil {
		return
	}
	_ = h.lock.Release(h.cookie)
	h.unwatch()
}

func (h *hold) unwatch() {
	if h.watch == nil {
		return
	}
	close(h.stop)
	h.wg.Wait()
	_ = h.watch.Close()
	h.watch = nil
}

// primary reports whether an image that is mirrored by snapshots is primary.
func primary(img *store.Image) bool {
	var newest *cls.MirrorNamespace
	for _, s := range img.Snapshots {
		if s.Namespace.Mirror != nil {
			newest = s.Namespace.Mirror
		}
	}
	return !img.Has(cls.FeatureNonPrimary) || newest != nil && newest.State == cls.MirrorPrimary
}

// MoveOptions say how an image moves to the trash.
type MoveOptions struct {
	// Delay is for how long it stays there at least; see Delay.
	Delay time.Duration
	// Allowed is asked for a last time under the lock; nil allows everything
	// but a primary image.
	Allowed func(*store.Image) error
}

// Move moves a mirrored image to the trash and ends its mirroring. Afterwards
// its name and its global id are free. It is no error that it is done already.
func Move(ctx context.Context, i Image, o MoveOptions) error {
	fail := func(err error) error { return fmt.Errorf("moving image %s to the trash: %w", i.ID, err) }
	if err := i.check(ctx); err != nil {
		return fail(err)
	}
	h, err := i.take()
	if err != nil {
		return fail(err)
	}
	defer h.release()
	img, err := store.NewHeader(i.IO, i.ID).Load()
	if err != nil {
		return fail(err)
	}
	if err := i.notPrimary(img); err != nil {
		return fail(err)
	}
	if o.Allowed != nil {
		if err := o.Allowed(img); err != nil {
			return fail(err)
		}
	}
	if err := i.check(ctx); err != nil {
		return fail(err)
	}
	records, dir, trash := store.NewMirroring(i.IO), store.NewDirectory(i.IO), store.NewTrash(i.IO)
	record, err := records.Image(i.ID)
	switch {
	case err == nil && record.State != cls.RecordDisabling:
		record.State = cls.RecordDisabling
		err = records.SetImage(i.ID, record)
	case ceph.Is(err, syscall.ENOENT):
		err = nil
	}
	if err != nil {
		return fail(err)
	}
	name, err := dir.Name(i.ID)
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fail(err)
	}
	now := time.Now()
	spec := cls.TrashSpec{Source: cls.TrashMirroring, Name: name, DeletedAt: now, DeferredUntil: now.Add(o.Delay)}
	err = trash.Add(i.ID, spec)
	if ceph.Is(err, syscall.EEXIST) {
		spec, err = trash.Get(i.ID)
	}
	if err != nil {
		return fail(err)
	}
	if err := i.unname(name); err != nil {
		return fail(err)
	}
	if err := records.RemoveImage(i.ID); err != nil {
		return fail(err)
	}
	h.release()
	trash.Notify(cls.TrashNotify{Op: cls.TrashImageAdded, ImageID: i.ID, Spec: spec})
	return nil
}

// unname frees the name of the image. The directory goes last: it is what leads
// to the name when this broke off.
func (i Image) unname(name string) error {
	if name == "" {
		return nil
	}
	dir := store.NewDirectory(i.IO)
	switch id, err := dir.GetID(name); {
	case ceph.Is(err, syscall.ENOENT):
	case err != nil:
		return err
	case id == i.ID:
		if err := dir.RemoveID(name); err != nil {
			return err
		}
	}
	err := dir.Remove(name, i.ID)
	if ceph.Is(err, syscall.ESTALE) { // another image has the name
		return nil
	}
	return err
}

// delayOption is how long removed images stay in the trash.
const delayOption = "rbd_mirroring_delete_delay"

// Delay returns for how long an image is to stay in the trash: what is set for
// the image, else for its pool, else for this client.
func Delay(conn *rados.Conn, io *rados.IOContext, img *store.Image) time.Duration {
	const override = "conf_" + delayOption
	var texts []string
	if img != nil {
		texts = append(texts, string(img.Metadata[override]))
	}
	if name, err := io.GetPoolName(); err == nil {
		if pool, err := conn.OpenIOContext(name); err == nil {
			// pools without settings of their own are the rule
			if out, err := store.Read(pool, "rbd_info", cls.MetadataGet(override)); err == nil {
				s, _ := cls.DecodeStr(out[0])
				texts = append(texts, s)
			}
			pool.Destroy()
		}
	}
	s, _ := conn.GetConfigOption(delayOption)
	for _, text := range append(texts, s) {
		if d, ok := parseSeconds(text); ok {
			return d
		}
	}
	return 0
}
