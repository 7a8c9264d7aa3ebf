package replay

import (
	"fmt"
	"sync"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// headerWatch is a watch on an image's header. Whatever arrives is acknowledged
// at once: who sent it waits for that.
type headerWatch struct {
	image string
	watch *ceph.Watch
	stop  chan struct{}
	wg    sync.WaitGroup

	mu   sync.Mutex
	lost error
}

// watchHeader watches the header of an image. changed is called when somebody
// else has changed it, or wants its lock, and when the watch is lost. It may
// take its time.
func watchHeader(ioctx *rados.IOContext, image string, own uint64, changed func()) (*headerWatch, error) {
	w, err := ceph.NewWatch(ioctx, store.HeaderObject(image), 0)
	if err != nil {
		return nil, fmt.Errorf("%s: watching: %w", store.HeaderObject(image), err)
	}
	h := &headerWatch{image: image, watch: w, stop: make(chan struct{})}
	news := make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	h.wg.Go(func() {
		for {
			select {
			case n := <-w.Events():
				// What cannot be acknowledged has to wait for its own timeout.
				_ = w.Ack(n, nil)
				m, err := cls.DecodeHeaderNotify(n.Data)
				if err == nil && n.Notifier != own && (m.Op == cls.HeaderUpdate || m.Op == cls.HeaderRequestLock) {
					tell()
				}
			case err := <-w.Errors():
				h.mu.Lock()
				h.lost = err
				h.mu.Unlock()
				tell()
			case <-h.stop:
				return
			}
		}
	})
	h.wg.Go(func() {
		for {
			select {
			case <-news:
				changed()
			case <-h.stop:
				return
			}
		}
	})
	return h, nil
}

// err returns why the watch was lost, nil while it holds.
func (h *headerWatch) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// close ends the watch. It asks the cluster, and so takes as long as that.
func (h *headerWatch) close() error {
	close(h.stop)
	err := h.watch.Close()
	h.wg.Wait()
	return err
}
