package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

const (
	lockName = "rbd_lock"
	lockTag  = "internal"
)

// Lock is an exclusive lock on an object.
type Lock struct {
	ioctx *rados.IOContext
	oid   string
	tag   string
}

// NewLock returns the lock that librbd and rbd-mirror take on an object that
// they watch, such as an image's header (see HeaderObject), the leader object
// and instance objects. Its cookie is cls.AutoCookie of the holder's own watch.
func NewLock(ioctx *rados.IOContext, oid string) *Lock {
	return &Lock{ioctx: ioctx, oid: oid, tag: lockTag}
}

// ObjectMapLock returns the lock on the object map of an image's head. Its
// cookie is empty, and it counts only as long as the image's own is held.
func ObjectMapLock(ioctx *rados.IOContext, imageID string) *Lock {
	return &Lock{ioctx: ioctx, oid: ObjectMapName(imageID, cls.NoSnap)}
}

// Info tells who holds the lock.
func (l *Lock) Info() (cls.LockInfo, error) {
	return read1(l.ioctx, l.oid, cls.LockGetInfo(lockName), cls.DecodeLockInfo)
}

// Holder returns who holds the lock, nil if nobody does. ENOENT: there is no
// such object.
func (l *Lock) Holder() (*cls.Locker, error) {
	info, err := l.Info()
	if err != nil || len(info.Lockers) == 0 {
		return nil, err
	}
	return &info.Lockers[0], nil
}

// Acquire takes the lock. It is no error that this client holds it with that
// cookie already. EBUSY: another holds it, or this one with another cookie.
func (l *Lock) Acquire(cookie string) error {
	// an object that is not there must not be made by locking it
	err := WriteExisting(l.ioctx, l.oid, cls.LockLock(lockName, cls.LockExclusive, cookie, l.tag, ""))
	if ceph.Is(err, syscall.EEXIST) {
		return nil
	}
	return err
}

// Release gives the lock up. It is no error that it is not held.
func (l *Lock) Release(cookie string) error {
	err := Write(l.ioctx, l.oid, cls.LockUnlock(lockName, cookie))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// SetCookie gives this client's lock a new cookie, after its watch changed.
// EBUSY: the lock is not held with the old one.
func (l *Lock) SetCookie(cookie, newCookie string) error {
	return Write(l.ioctx, l.oid, cls.LockSetCookie(lockName, cls.LockExclusive, cookie, l.tag, newCookie))
}

// Break takes the lock away from its holder, without making sure that the
// holder stops. It is no error that the holder has given it up.
func (l *Lock) Break(holder cls.Locker) error {
	err := Write(l.ioctx, l.oid, cls.LockBreak(lockName, holder.Entity, holder.Cookie))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// Alive reports whether the holder of the lock still has the watch that its
// cookie names.
func (l *Lock) Alive(holder cls.Locker) (bool, error) {
	watchers, err := ceph.ListWatchers(l.ioctx, l.oid)
	if ceph.Is(err, syscall.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: listing watchers: %w", l.oid, err)
	}
	cookie, ok := cls.ParseAutoCookie(holder.Cookie)
	return ok && slices.ContainsFunc(watchers, func(w ceph.Watcher) bool {
		return w.Addr == holder.Addr.String() && w.Cookie == cookie
	}), nil
}

// ErrForeign is returned for a lock that was not taken in the way of librbd:
// there is no telling whether its holder lives.
var ErrForeign = errors.New("locked by other means")

// BreakDead takes the lock away from the holder after shutting it out of the
// cluster. Unless forced, it fails with EAGAIN if the holder still has its
// watch. ESTALE: somebody else holds the lock by now. blocklist is for how long
// to shut it out, 0 for as long as the monitors please.
func (l *Lock) BreakDead(conn *rados.Conn, holder cls.Locker, forced bool, blocklist time.Duration) error {
	if _, ok := cls.ParseAutoCookie(holder.Cookie); !ok {
		return fmt.Errorf("%s: %w", l.oid, errors.Join(ErrForeign, syscall.EBUSY))
	}
	if int64(conn.GetInstanceID()) == holder.Entity.Num && holder.Entity.Type == cls.EntityClient {
		return fmt.Errorf("%s: breaking a lock of this very client: %w", l.oid, syscall.EINVAL)
	}
	if !forced {
		alive, err := l.Alive(holder)
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("%s: held by %s at %s: %w", l.oid, holder.Entity, holder.Addr, syscall.EAGAIN)
		}
	}
	now, err := l.Holder()
	if err != nil {
		return err
	}
	if now == nil {
		return nil
	}
	if now.Entity != holder.Entity || now.Cookie != holder.Cookie || now.Addr.String() != holder.Addr.String() {
		return fmt.Errorf("%s: held by %s at %s by now: %w", l.oid, now.Entity, now.Addr, syscall.ESTALE)
	}
	if err := Blocklist(conn, holder.Addr, blocklist); err != nil {
		return err
	}
	return l.Break(holder)
}

// Blocklist shuts one instance of a client out of the cluster, and returns when
// this client knows of it: whatever it writes from then on comes after the last
// write of the other. With 0 the monitors decide for how long.
func Blocklist(conn *rados.Conn, addr cls.EntityAddr, expire time.Duration) error {
	// Clients bind to no port, so that the type is of no concern; the monitors
	// take "any" as the legacy address that watchers are listed with.
	cmd := map[string]any{"prefix": "osd blocklist", "blocklistop": "add", "addr": addr.String(), "format": "json"}
	if expire > 0 {
		// the monitors insist on a decimal point
		cmd["expire"] = json.RawMessage(strconv.FormatFloat(math.Ceil(expire.Seconds()), 'f', 1, 64))
	}
	b, err := json.Marshal(cmd)
	if err != nil {
		return fmt.Errorf("blocklisting %s: %w", addr, err)
	}
	if _, status, err := conn.MonCommand(b); err != nil {
		return fmt.Errorf("blocklisting %s: %w (%s)", addr, err, status)
	}
	if err := conn.WaitForLatestOSDMap(); err != nil {
		return fmt.Errorf("blocklisting %s: waiting for the OSD map: %w", addr, err)
	}
	return nil
}
