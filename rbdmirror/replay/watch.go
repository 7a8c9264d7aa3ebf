package replay

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// headerWatch is a watch on an image's header.
type headerWatch struct {
	*replica.Watch
	image string
	stop  chan struct{}
	wg    sync.WaitGroup
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
func watchHeader(side *replica.Side, image string, changed func(), wanted func(promotion bool)) (*headerWatch, error) {
	h := &headerWatch{image: image, stop: make(chan struct{})}
	news := make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	var err error
	h.Watch, err = side.Watch(store.HeaderObject(image), func(n *ceph.Notification) []byte {
		if n == nil {
			tell()
			return nil
		}
		m, err := cls.DecodeHeaderNotify(n.Data)
		if err != nil || n.Notifier == side.Client {
			return nil
		}
		if m.Op.AsksHolder() {
			wanted(promotes(n.Data))
			time.Sleep(beforeAck)
		}
		if m.Op == cls.HeaderUpdate {
			tell()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
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

// Close ends the watch. It asks the cluster, and so takes as long as that.
func (h *headerWatch) Close() error {
	close(h.stop)
	err := h.Watch.Close()
	h.wg.Wait()
	return err
}
