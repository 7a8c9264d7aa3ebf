package replica

import (
	"fmt"
	"sync"
	"time"

	"cephmirror/internal/ceph"
)

// Watch tells of notifications on an object. All are acknowledged: who sent them
// waits for that.
type Watch struct {
	watch *ceph.Watch
	stop  chan struct{}
	wg    sync.WaitGroup

	mu   sync.Mutex
	lost error
}

// remoteTimeout is how long the peer's cluster keeps the watch of a client that it
// does not hear of: whoever changes what is watched waits for it, for as long as it
// takes to find out that a worker was killed. A watch that was lost for no good
// reason is made anew.
const remoteTimeout = 10 * time.Second

// Watch watches an object. heard is called for each notification, and returns
// what to answer; it must not block for long. It is called with nil when the watch
// is lost.
func (s *Side) Watch(oid string, heard func(n *ceph.Notification) []byte) (*Watch, error) {
	w, err := ceph.NewWatch(s.IO, oid, s.watchTimeout)
	if err != nil {
		return nil, fmt.Errorf("%s: watching: %w", oid, err)
	}
	h := &Watch{watch: w, stop: make(chan struct{})}
	h.wg.Go(func() {
		for {
			select {
			case n := <-w.Events():
				// What cannot be acknowledged has to wait for its own timeout.
				_ = w.Ack(n, heard(&n))
			case err := <-w.Errors():
				h.mu.Lock()
				h.lost = fmt.Errorf("%s: the watch was lost: %w", oid, err)
				h.mu.Unlock()
				heard(nil)
			case <-h.stop:
				return
			}
		}
	})
	return h, nil
}

// Err returns why the watch was lost, nil while it holds.
func (w *Watch) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// Cookie is the number of the watch.
func (w *Watch) Cookie() uint64 { return w.watch.Cookie() }

// Close ends the watch. It asks the cluster, and so takes as long as that.
func (w *Watch) Close() error {
	close(w.stop)
	err := w.watch.Close()
	w.wg.Wait()
	return err
}
