package deletion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

const (
	listInterval  = 30 * time.Second // how often the trash is listed although nothing was heard
	busyInterval  = time.Second      // for an image that somebody uses
	retryInterval = 30 * time.Second // after other failures
)

// Config is what a Deleter needs to know.
type Config struct {
	Conn     *rados.Conn
	IO       *rados.IOContext // pool and namespace; the caller's, until Run is back
	Lease    *plugins.Lease
	Log      zerolog.Logger
	Throttle *Throttle // shared by the namespaces of a pool; nil: one at a time
	// RetryInterval is asked for how long to wait after a failure; nil: 30 s.
	RetryInterval func() time.Duration
}

// Deleter removes the images that mirroring moved to the trash of one
// namespace, once their time is over. The leader of the pool runs one for each
// namespace.
type Deleter struct {
	cfg   Config
	mu    sync.Mutex
	queue *queue
}

// New returns a Deleter.
func New(cfg Config) *Deleter {
	if cfg.Throttle == nil {
		cfg.Throttle = NewThrottle(1)
	}
	if cfg.RetryInterval == nil {
		cfg.RetryInterval = func() time.Duration { return retryInterval }
	}
	return &Deleter{cfg: cfg, queue: newQueue()}
}

// Item is an image that waits for its removal.
type Item struct {
	ImageID string
	Err     error // of the last attempt
	Retries int
}

// Status is what there is to do.
type Status struct {
	Queue []Item // being removed, or about to be
	// Failed are those that wait: after a failure, or, without an error, for
	// the time for which they must be kept.
	Failed []Item
}

// Status returns what there is to do, in order.
func (d *Deleter) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*entry, 0, len(d.queue.byID))
	for _, e := range d.queue.byID {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *entry) int {
		if c := a.due.Compare(b.due); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	var s Status
	for _, e := range list {
		item := Item{ImageID: e.id, Err: e.err, Retries: e.retries}
		if e.running || !e.waiting && e.err == nil {
			s.Queue = append(s.Queue, item)
		} else {
			s.Failed = append(s.Failed, item)
		}
	}
	return s
}

// Run removes images until ctx ends, in which case it returns nil once the
// removals under way have stopped. ESHUTDOWN: this client was shut out of the
// cluster.
func (d *Deleter) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel(nil)
		wg.Wait()
	}()
	news, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	wg.Go(func() { d.watch(ctx, tell, cancel) })
	list := time.NewTimer(0)
	defer list.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); ceph.Is(err, syscall.ESHUTDOWN) {
				return err
			}
			return nil
		case <-news:
			list.Reset(0)
			continue
		case <-list.C:
			list.Reset(listInterval)
			if err := d.list(); ceph.Is(err, syscall.ESHUTDOWN) {
				return err
			} else if err != nil {
				d.cfg.Log.Warn().Err(err).Msg("listing the trash")
				list.Reset(retryInterval)
			}
		case <-due.C:
		case <-ended:
		}
		for {
			e, wait := d.take()
			if e == nil {
				due.Reset(wait)
				break
			}
			wg.Go(func() {
				if err := d.do(ctx, e); ceph.Is(err, syscall.ESHUTDOWN) {
					cancel(err)
				}
				select { // a failed one is due again at another time
				case ended <- struct{}{}:
				default:
				}
			})
		}
	}
}

// take returns an image whose time has come, or how long there is none.
func (d *Deleter) take() (*entry, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.queue.next()
	if e == nil {
		return nil, time.Hour
	}
	if wait := time.Until(e.due); wait > 0 {
		return nil, wait
	}
	d.queue.start(e)
	return e, 0
}

// do removes one image.
func (d *Deleter) do(ctx context.Context, e *entry) error {
	err := d.cfg.Throttle.acquire(ctx)
	if err == nil {
		err = d.removeOne(ctx, e.id)
		d.cfg.Throttle.release()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		d.queue.remove(e)
		d.cfg.Log.Info().Str("image", e.id).Msg("removed an image from the trash")
		return nil
	case ceph.Is(err, syscall.EBUSY) || errors.Is(err, ErrLease):
		d.queue.again(e, time.Now().Add(busyInterval), err)
		if e.retries == 1 {
			d.cfg.Log.Info().Err(err).Str("image", e.id).Msg("removing an image from the trash has to wait")
		}
	default:
		d.queue.again(e, time.Now().Add(d.cfg.RetryInterval()), err)
		if ctx.Err() == nil {
			d.cfg.Log.Warn().Err(err).Str("image", e.id).Msg("removing an image from the trash")
		}
	}
	return err
}

// removeOne looks once more whether the image is to go: a user may have got it
// back, or have it kept for longer.
func (d *Deleter) removeOne(ctx context.Context, id string) error {
	spec, err := store.NewTrash(d.cfg.IO).Get(id)
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if !ours(spec) {
		return nil
	}
	return Purge(ctx, Image{Conn: d.cfg.Conn, IO: d.cfg.IO, ID: id, Lease: d.cfg.Lease,
		Log: d.cfg.Log.With().Str("image", id).Logger()})
}

// ours reports whether an image in the trash is the deleter's.
func ours(s cls.TrashSpec) bool {
	return s.Source == cls.TrashMirroring && (s.State == cls.TrashStateNormal || s.State == cls.TrashStateRemoving)
}

// list brings the queue in line with the trash.
func (d *Deleter) list() error {
	all, err := store.NewTrash(d.cfg.IO).List()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for id, spec := range all {
		if ours(spec) {
			d.queue.add(id, spec.DeferredUntil, now)
		}
	}
	d.queue.keep(func(id string) bool {
		spec, ok := all[id]
		return ok && ours(spec)
	})
	return nil
}

// watch calls changed whenever the trash may have changed, and lost when this
// client was shut out.
func (d *Deleter) watch(ctx context.Context, changed func(), lost func(error)) {
	for ctx.Err() == nil {
		err := d.watchOnce(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		if ceph.Is(err, syscall.ESHUTDOWN) {
			lost(err)
			return
		}
		d.cfg.Log.Warn().Err(err).Msg("watching the trash")
		select {
		case <-time.After(busyInterval):
		case <-ctx.Done():
		}
	}
}

func (d *Deleter) watchOnce(ctx context.Context, changed func()) error {
	// it may have been made already, which is no error
	if err := d.cfg.IO.Create(store.TrashObject, rados.CreateIdempotent); err != nil {
		return fmt.Errorf("%s: creating: %w", store.TrashObject, err)
	}
	w, err := ceph.NewWatch(d.cfg.IO, store.TrashObject, 0)
	if err != nil {
		return fmt.Errorf("%s: watching: %w", store.TrashObject, err)
	}
	defer func() { _ = w.Close() }() // of a client that was shut out it fails
	changed()
	for {
		select {
		case n := <-w.Events():
			_ = w.Ack(n, nil) // what cannot be acknowledged has to wait for its own timeout
			changed()
		case err := <-w.Errors():
			return fmt.Errorf("%s: the watch was lost: %w", store.TrashObject, err)
		case <-ctx.Done():
			return nil
		}
	}
}
