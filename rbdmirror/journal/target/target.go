// Package target carries out what a journal tells on a local image, with librados
// alone: writes of objects under the image's snapshots, operations through the
// object class, object maps that stay true, clones that read their parent.
//
// A Target works only while this client holds the image's exclusive lock; every
// change of the header and of the object map depends on it.
package target

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/journal/plan"
	"cephmirror/rbdmirror/objectmap"
	"cephmirror/rbdmirror/store"
)

var (
	// ErrLease: the permission to write has run out.
	ErrLease = errors.New("the lease has expired")
	// ErrUncertain: a write may still be carried out by an OSD that did not
	// answer. Nobody else may be let in before this client is fenced.
	ErrUncertain = errors.New("a write may still be under way")
)

// DefaultConcurrency is how many objects are written side by side.
const DefaultConcurrency = 32

// Config is what a Target needs to know.
type Config struct {
	Log   zerolog.Logger
	Lease interface{ Valid() bool } // asked before every change; nil: always valid
	Conn  *rados.Conn
	// IO is of the image's pool and namespace. It stays the caller's.
	IO    *rados.IOContext
	Image string // id
	// Cookie is that of the exclusive lock, which the caller holds and keeps.
	Cookie      string
	Concurrency int // 0: DefaultConcurrency
	// Renamed is told which local snapshot the primary's snapshot is that is
	// about to be renamed. May be nil.
	Renamed func(ctx context.Context, remote, local uint64) error
}

// Target is a local image that is written to.
type Target struct {
	cfg    Config
	header *store.Header
	dir    *store.Directory
	data   *rados.IOContext
	back   *rados.IOContext // for rolling back, with a write context of its own
	mapped bool             // the object map's lock is held
	ns     string

	img    *store.Image
	name   string
	layout merge.Layout
	snaps  []uint64       // newest first
	head   *objectmap.Map // what the object map says; nil: there is none to be kept

	parents sync.Mutex
	parent  *ancestor // open if anything was read of it

	anew *rebuild // of object maps; nil: none is under way

	wg sync.WaitGroup // notifications
}

// Open returns the target for an image.
func Open(cfg Config) (*Target, error) {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = DefaultConcurrency
	}
	t := &Target{cfg: cfg, header: store.NewHeader(cfg.IO, cfg.Image), dir: store.NewDirectory(cfg.IO)}
	t.header.Cookie = cfg.Cookie
	var err error
	if t.ns, err = cfg.IO.GetNamespace(); err != nil {
		return nil, fmt.Errorf("asking for the namespace: %w", err)
	}
	if err := t.Reload(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close gives up what the target holds, but not the image's lock.
func (t *Target) Close() {
	t.wg.Wait()
	t.closeParent()
	if t.mapped {
		if err := store.ObjectMapLock(t.cfg.IO, t.cfg.Image).Release(""); err != nil {
			t.cfg.Log.Debug().Err(err).Msg("releasing the lock of the object map")
		}
		t.mapped = false
	}
	if t.back != nil {
		t.back.Destroy()
		t.back = nil
	}
	if t.data != nil {
		t.data.Destroy()
		t.data = nil
	}
}

// Reload reads the header again.
func (t *Target) Reload() error {
	img, err := t.header.Load()
	if err != nil {
		return err
	}
	if t.name, err = t.dir.Name(img.ID); err != nil {
		return err
	}
	if t.data == nil {
		if t.data, err = store.DataContext(t.cfg.Conn, t.cfg.IO, img.DataPool); err != nil {
			return err
		}
	}
	if t.img == nil || t.img.Parent != img.Parent {
		t.closeParent()
	}
	t.img = img
	t.layout = merge.Layout{ObjectSize: img.ObjectSize(), StripeUnit: img.StripeUnit, StripeCount: img.StripeCount}
	t.snaps = t.snaps[:0:0]
	for _, s := range slices.Backward(img.Snapshots) {
		t.snaps = append(t.snaps, s.ID)
	}
	return t.loadMap()
}

// loadMap reads the object map, if it is one to be relied on.
func (t *Target) loadMap() error {
	t.head = nil
	if !t.img.Has(cls.FeatureObjectMap) || t.img.Flags&cls.FlagObjectMapInvalid != 0 {
		return nil
	}
	if !t.mapped {
		if err := t.lockMap(); err != nil {
			return err
		}
		t.mapped = true
	}
	m, err := t.objectMap(cls.NoSnap).Load()
	if err != nil {
		return err
	}
	if m.Len() != t.img.Objects(t.img.Size) {
		// librbd would declare it invalid, too.
		t.cfg.Log.Warn().Uint64("objects", t.img.Objects(t.img.Size)).Uint64("mapped", m.Len()).Msg("the object map does not fit the image")
		if err := t.header.SetFlags(cls.NoSnap, mapInvalid, mapInvalid); err != nil {
			return err
		}
		t.img.Flags |= mapInvalid
		return nil
	}
	t.head = m
	return nil
}

// lockMap takes the lock of the object map. Who holds the image's lock may take it
// from anybody.
func (t *Target) lockMap() error {
	lock := store.ObjectMapLock(t.cfg.IO, t.cfg.Image)
	for range 5 {
		err := lock.Acquire("")
		if !ceph.Is(err, syscall.EBUSY) {
			return err
		}
		holder, err := lock.Holder()
		if err != nil {
			return err
		}
		if holder != nil {
			if err := lock.Break(*holder); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the lock of the object map changes hands all the time: %w", syscall.EBUSY)
}

func (t *Target) objectMap(snap uint64) *store.ObjectMap {
	m := store.NewObjectMap(t.cfg.IO, t.cfg.Image, snap)
	m.AssertLocked = snap == cls.NoSnap && t.mapped
	return m
}

// Header returns what was last read of the header. It must not be changed.
func (t *Target) Header() *store.Image { return t.img }

// Data returns the context of the pool with the image's data.
func (t *Target) Data() *rados.IOContext { return t.data }

// Name returns the name of the image.
func (t *Target) Name() string { return t.name }

// Image returns the layout and the size of the image.
func (t *Target) Image() plan.Image { return plan.Image{Layout: t.layout, Size: t.img.Size} }

// ready says whether anything may be changed.
func (t *Target) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if t.cfg.Lease != nil && !t.cfg.Lease.Valid() {
		return ErrLease
	}
	return nil
}

const (
	lockName = "rbd_lock"
	lockTag  = "internal"
)

// ReadRecord returns the record of progress that an image keeps, nil if it has
// none. ENOENT: there is no such image.
func ReadRecord(ioctx *rados.IOContext, image string) (*plan.Record, error) {
	oid := store.HeaderObject(image)
	op := rados.CreateReadOp()
	defer op.Release()
	op.AssertExists()
	step := op.GetOmapValuesByKeys([]string{plan.RecordKey})
	if err := op.Operate(ioctx, oid, rados.OperationNoFlag); err != nil {
		return nil, fmt.Errorf("%s: reading the record of progress: %w", oid, err)
	}
	kv, err := step.Next()
	if err != nil {
		return nil, fmt.Errorf("%s: reading the record of progress: %w", oid, err)
	}
	if kv == nil {
		return nil, nil
	}
	rec, err := plan.DecodeRecord(kv.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", oid, err)
	}
	return &rec, nil
}

// Forget removes the record.
func (t *Target) Forget(ctx context.Context) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	assert := cls.LockAssert(lockName, cls.LockExclusive, t.cfg.Cookie, lockTag)
	op.Exec(assert.Class, assert.Method, assert.In)
	op.RmOmapKeys([]string{plan.RecordKey})
	if err := op.Operate(t.cfg.IO, t.header.Object(), rados.OperationNoFlag); err != nil {
		return fmt.Errorf("%s: removing the record of progress: %w", t.header.Object(), err)
	}
	return nil
}

// Save stores the record.
func (t *Target) Save(ctx context.Context, rec plan.Record) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	return t.changeWith(rec)
}

// changeWith changes the header and stores the record, in one operation that
// fails with EBUSY if the lock is lost.
func (t *Target) changeWith(rec plan.Record, calls ...cls.Call) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	assert := cls.LockAssert(lockName, cls.LockExclusive, t.cfg.Cookie, lockTag)
	op.Exec(assert.Class, assert.Method, assert.In)
	what := "storing the record of progress"
	for _, c := range calls {
		op.Exec(c.Class, c.Method, c.In)
		what = c.Class + "." + c.Method
	}
	op.SetOmap(map[string][]byte{plan.RecordKey: rec.Encode()})
	if err := op.Operate(t.cfg.IO, t.header.Object(), rados.OperationNoFlag); err != nil {
		var twice rados.OperationError
		if errors.As(err, &twice) && twice.OpError != nil {
			err = twice.OpError
		}
		return fmt.Errorf("%s: %s: %w", t.header.Object(), what, err)
	}
	return nil
}

// notify tells those who have the image open that its header changed, without
// waiting for them.
func (t *Target) notify() {
	t.wg.Go(func() {
		if err := store.NewHeader(t.cfg.IO, t.cfg.Image).Notify(); err != nil {
			t.cfg.Log.Debug().Err(err).Msg("telling of a change of the image")
		}
	})
}
