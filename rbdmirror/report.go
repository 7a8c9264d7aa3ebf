package rbdmirror

import (
	"context"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/plugins"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

const (
	// statusDelay gathers the status of several images.
	statusDelay = 200 * time.Millisecond
	// statusRetry is the wait after a failure.
	statusRetry = time.Second
	// statusInterval is how often all is written anew, as the stock daemon does.
	statusInterval = 30 * time.Second
	// statusBatch is how many images are written at once.
	statusBatch = 100
)

// statusWriter keeps the status of images on one of the clusters.
type statusWriter struct {
	m     *store.Mirroring
	uuid  string
	log   zerolog.Logger
	lease *plugins.Lease
	wake  chan struct{}

	writing sync.Mutex // held while something is written

	mu      sync.Mutex
	all     map[string]cls.SiteStatus // by global id
	pending map[string]bool
}

func newStatusWriter(io *rados.IOContext, uuid string, log zerolog.Logger, lease *plugins.Lease) *statusWriter {
	return &statusWriter{
		m: store.NewMirroring(io), uuid: uuid, log: log, lease: lease, wake: make(chan struct{}, 1),
		all: make(map[string]cls.SiteStatus), pending: make(map[string]bool),
	}
}

// watched is told when the cluster begins to take us for up, and when it ends.
func (w *statusWriter) watched(on bool) {
	if on {
		w.rewrite()
	}
}

func (w *statusWriter) rewrite() {
	w.mu.Lock()
	for gid := range w.all {
		w.pending[gid] = true
	}
	w.mu.Unlock()
	w.poke()
}

func (w *statusWriter) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// set makes s the status of an image.
func (w *statusWriter) set(gid string, s cls.SiteStatus) {
	s.MirrorUUID, s.Up = w.uuid, true
	w.mu.Lock()
	w.all[gid] = s
	w.pending[gid] = true
	w.mu.Unlock()
	w.poke()
}

// forget leaves an image's status to somebody else.
func (w *statusWriter) forget(gid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, gid)
	delete(w.pending, gid)
}

// settle waits for what is being written. Afterwards nothing is written any more
// for images that were forgotten before.
func (w *statusWriter) settle() {
	w.writing.Lock()
	defer w.writing.Unlock()
}

// flush writes what is pending. It returns false when something was left.
func (w *statusWriter) flush() bool {
	w.writing.Lock()
	defer w.writing.Unlock()
	for {
		if !w.lease.Valid() {
			return false
		}
		var batch []store.ImageStatus
		w.mu.Lock()
		now := time.Now()
		for gid := range w.pending {
			if len(batch) == statusBatch {
				break
			}
			s := w.all[gid]
			s.LastUpdate = now
			batch = append(batch, store.ImageStatus{GlobalID: gid, Status: s})
			delete(w.pending, gid)
		}
		w.mu.Unlock()
		if len(batch) == 0 {
			return true
		}
		if err := w.m.SetStatus(batch); err != nil {
			w.log.Debug().Err(err).Msg("reporting the status of images")
			w.mu.Lock()
			for _, s := range batch {
				if _, ok := w.all[s.GlobalID]; ok {
					w.pending[s.GlobalID] = true
				}
			}
			w.mu.Unlock()
			return false
		}
	}
}

// run writes until ctx ends.
func (w *statusWriter) run(ctx context.Context) {
	all := time.NewTicker(statusInterval)
	defer all.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-all.C:
			w.rewrite()
			continue
		case <-w.wake:
		}
		wait := statusDelay
		if !w.flush() {
			wait = statusRetry
			w.poke()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
