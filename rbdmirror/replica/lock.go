package replica

import (
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// Lock is the exclusive lock on the local image, as librbd has it. The zero value
// is one that is not held.
type Lock struct{ Image, Cookie string }

// Held says that the lock is held.
func (l Lock) Held() bool { return l.Image != "" }

// Header returns the header of the local image for changes, which fail once the
// lock is lost.
func (l Lock) Header(ioctx *rados.IOContext) *store.Header {
	h := store.NewHeader(ioctx, l.Image)
	h.Cookie = l.Cookie
	return h
}

// Lock takes the exclusive lock on the local image, which watch watches, from a
// dead holder if need be. It returns who held it before, nil for nobody.
func (p *Pair) Lock(log zerolog.Logger, id string, watch uint64) (held Lock, before *cls.Locker, err error) {
	cookie := cls.AutoCookie(watch)
	lock := store.NewLock(p.Local.IO, store.HeaderObject(id))
	for range 5 {
		holder, err := lock.Holder()
		if err != nil {
			return Lock{}, nil, err
		}
		if holder != nil {
			before = holder
			if holder.Entity.Num == int64(p.Local.Client) && holder.Cookie == cookie {
				return Lock{id, cookie}, before, nil
			}
			if err := p.breakLock(log, lock, *holder); err != nil {
				return Lock{}, nil, err
			}
		}
		err = lock.Acquire(cookie)
		if err == nil {
			return Lock{id, cookie}, before, nil
		}
		if !ceph.Is(err, syscall.EBUSY) {
			return Lock{}, nil, err
		}
	}
	return Lock{}, nil, fmt.Errorf("the lock of the local image changes hands all the time: %w", syscall.EBUSY)
}

func (p *Pair) breakLock(log zerolog.Logger, lock *store.Lock, holder cls.Locker) error {
	if holder.Entity.Type == cls.EntityClient && holder.Entity.Num == int64(p.Local.Client) {
		// A watch of ours that is gone. Only this process could have it.
		alive, err := lock.Alive(holder)
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("the local image is locked by another part of this process: %w", syscall.EBUSY)
		}
		return lock.Break(holder)
	}
	err := lock.BreakDead(p.Local.Conn, holder, false, 0)
	switch {
	case err == nil:
		log.Info().Stringer("holder", holder.Entity).Stringer("address", holder.Addr).Msg("broke the lock of a dead client on the local image")
		return nil
	case ceph.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the local image is locked by %s at %s: %w", holder.Entity, holder.Addr, syscall.EBUSY)
	case ceph.Is(err, syscall.ESTALE):
		return nil
	}
	return err
}

// Unlock releases the lock on the local image, and tells those who wait for it.
func (p *Pair) Unlock(log zerolog.Logger, l Lock) {
	if !l.Held() {
		return
	}
	if err := store.NewLock(p.Local.IO, store.HeaderObject(l.Image)).Release(l.Cookie); err != nil {
		log.Debug().Err(err).Msg("releasing the lock of the local image")
		return
	}
	if handle, ok := cls.ParseAutoCookie(l.Cookie); ok {
		n := cls.HeaderNotify{Op: cls.HeaderReleasedLock, Client: cls.ClientID{Client: p.Local.Client, Handle: handle}}
		p.Calls.Go(func() {
			_, _, _ = p.Local.IO.NotifyWithTimeout(store.HeaderObject(l.Image), n.Encode(), 5*time.Second)
		})
	}
}
