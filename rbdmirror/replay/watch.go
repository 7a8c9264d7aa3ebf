package replay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

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

// beforeAck is how long whoever wants the holder of the lock to do something is
// kept waiting: it asks again and again until the lock is free.
const beforeAck = 20 * time.Millisecond

// promotes reports whether a request to the holder of the lock is what a forced
// promotion begins with: that the snapshot be made that cuts the image from its
// primary.
func promotes(request []byte) bool {
	const op, name = 6, 14 // offsets: a frame's head, the operation, the length of the name
	return len(request) > name && binary.LittleEndian.Uint32(request[op:]) == uint32(cls.HeaderSnapCreate) &&
		bytes.HasPrefix(request[name:], []byte(".mirror.non_primary."))
}

// watchHeader watches the header of an image. changed is called when somebody
// else has changed it, and when the watch is lost. It may take its time. wanted
// is called when somebody else wants the lock; promotion tells that it is for a
// forced promotion of the image.
func watchHeader(ioctx *rados.IOContext, image string, own uint64, changed func(), wanted func(promotion bool)) (*headerWatch, error) {
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
				m, err := cls.DecodeHeaderNotify(n.Data)
				if err == nil && n.Notifier != own && m.Op.AsksHolder() {
					wanted(promotes(n.Data))
					time.Sleep(beforeAck)
				}
				// What cannot be acknowledged has to wait for its own timeout.
				_ = w.Ack(n, nil)
				if err == nil && n.Notifier != own && m.Op == cls.HeaderUpdate {
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
