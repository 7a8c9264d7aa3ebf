package rbdmirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/store"
)

// mirroringObject holds the records of mirrored images. Every change of them is
// told to its watchers, and only a client that watches it is taken for a mirror
// daemon that is up.
const mirroringObject = "rbd_mirroring"

const (
	// listDelay gathers changes that come together.
	listDelay = 100 * time.Millisecond
	// listInterval is how often the images are listed anew unasked: a
	// notification can get lost.
	listInterval = 30 * time.Second
	// watchRetry is the wait before a lost watch is made anew.
	watchRetry = 2 * time.Second
)

// imageList knows the mirrored images of a namespace on one cluster.
type imageList struct {
	io  *rados.IOContext
	log zerolog.Logger
	// changed is told each time the images were listed, and lost when the
	// connection is of no more use.
	changed func()
	watched func(bool)
	lost    func(error) bool

	mu     sync.Mutex
	known  bool
	images map[string]string // global id → image id
	watch  *ceph.Watch
	err    error // why they are not known, or no longer
}

// run keeps the list true until ctx ends.
func (l *imageList) run(ctx context.Context) {
	failing := ""
	for ctx.Err() == nil {
		err := l.follow(ctx)
		if ctx.Err() != nil || l.lost(err) {
			return
		}
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		if err.Error() != failing {
			failing = err.Error()
			l.log.Warn().Err(err).Msg("following the list of mirrored images")
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// follow watches, and lists the images at each change.
func (l *imageList) follow(ctx context.Context) error {
	w, err := ceph.NewWatch(l.io, mirroringObject, 0)
	if err != nil {
		return fmt.Errorf("watching object %s: %w", mirroringObject, err)
	}
	l.setWatch(w)
	l.watched(true)
	defer func() {
		l.watched(false)
		l.setWatch(nil)
		if err := w.Close(); err != nil {
			l.log.Debug().Err(err).Msg("ending a watch")
		}
	}()
	due := time.NewTimer(0)
	defer due.Stop()
	soon := false      // due within listDelay
	var last time.Time // the list was read
	var took time.Duration
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.Errors():
			return fmt.Errorf("the watch on object %s was lost: %w", mirroringObject, err)
		case n := <-w.Events():
			if err := w.Ack(n, nil); err != nil {
				l.log.Debug().Err(err).Msg("answering a notification")
			}
			if !soon {
				// The first change is looked at without delay. Long lists are
				// not read for ever.
				due.Reset(time.Until(last.Add(max(listDelay, 4*took))))
				soon = true
			}
		case <-due.C:
			soon = false
			began := time.Now()
			if err := l.read(); err != nil {
				return err
			}
			last = time.Now()
			took = last.Sub(began)
			due.Reset(listInterval)
			l.changed()
		}
	}
}

func (l *imageList) setWatch(w *ceph.Watch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watch = w
}

func (l *imageList) read() error {
	byID, err := store.NewMirroring(l.io).AllImages()
	if err != nil {
		return fmt.Errorf("listing mirrored images: %w", err)
	}
	images := make(map[string]string, len(byID))
	for id, gid := range byID {
		images[gid] = id
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.images, l.known, l.err = images, true, nil
	return nil
}

// snapshot returns the images as last listed. The caller must not change it.
func (l *imageList) snapshot() (images map[string]string, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.images), l.known && l.err == nil
}

func (l *imageList) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.images)
}

var errUnwatched = errors.New("not watched")

// age returns how long ago the cluster has been heard of.
func (l *imageList) age() (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watch == nil {
		return 0, fmt.Errorf("%w: %w", errUnwatched, syscall.ENOTCONN)
	}
	return l.watch.Check()
}
