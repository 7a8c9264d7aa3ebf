package ceph

/*
#cgo LDFLAGS: -lrados
#include <stdint.h>
#include <stdlib.h>
#include <rados/librados.h>

extern void cephmirrorNotified(uintptr_t, uint64_t, uint64_t, uint64_t, void *, size_t);
extern void cephmirrorWatchLost(uintptr_t, uint64_t, int);

static void notified(void *arg, uint64_t notify, uint64_t handle, uint64_t notifier, void *data, size_t len) {
	cephmirrorNotified((uintptr_t)arg, notify, handle, notifier, data, len);
}

static void lost(void *arg, uint64_t handle, int err) {
	cephmirrorWatchLost((uintptr_t)arg, handle, err);
}

// The argument is a number, not an address.
static int watch(rados_ioctx_t io, const char *oid, uint64_t *handle, uint32_t timeout, uintptr_t arg) {
	return rados_watch3(io, oid, handle, notified, lost, timeout, (void *)arg);
}
*/
import "C"

import (
	"fmt"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// go-ceph's watches share one lock, which it holds while a watch is being
// established: a cluster that does not answer would keep the watches of all
// others from being served. And what nobody takes from a go-ceph watch holds up
// its connection. Neither holds for these.

// watchQueue is how many notifications a Watch keeps for a reader that is busy.
const watchQueue = 4096

// watches are found by number, since C code may not keep Go pointers.
var watches = struct {
	sync.RWMutex
	next uintptr
	by   map[uintptr]*Watch
}{by: make(map[uintptr]*Watch)}

// Notification is one that a Watch received. It must be acknowledged soon:
// whoever sent it waits for that.
type Notification struct {
	ID       uint64
	Notifier uint64 // the client number of whoever sent it
	Data     []byte
}

// Watch is a watch on one object.
type Watch struct {
	ioctx  *rados.IOContext
	object string
	number uintptr
	cookie uint64
	events chan Notification
	errors chan error
	// use is held for reading while librados is asked about the watch, which
	// it knows by an address that must not be used after Close.
	use    sync.RWMutex
	closed bool
}

// NewWatch watches an object. timeout is how long the cluster keeps the watch of
// a client that it does not hear of, in whole seconds; 0 is the cluster's own.
// The ioctx must live until Close.
func NewWatch(ioctx *rados.IOContext, object string, timeout time.Duration) (*Watch, error) {
	w := &Watch{ioctx: ioctx, object: object, events: make(chan Notification, watchQueue), errors: make(chan error, 1)}
	watches.Lock()
	watches.next++
	w.number = watches.next
	watches.by[w.number] = w
	watches.Unlock()
	oid := C.CString(object)
	defer C.free(unsafe.Pointer(oid))
	var handle C.uint64_t
	ret := C.watch(C.rados_ioctx_t(ioctx.Pointer()), oid, &handle, C.uint32_t(timeout/time.Second), C.uintptr_t(w.number))
	if err := asError(int(ret)); err != nil {
		w.forget()
		return nil, err
	}
	w.cookie = uint64(handle)
	return w, nil
}

// Cookie is the watch's handle, by which the cluster lists it.
func (w *Watch) Cookie() uint64 { return w.cookie }

// Events receives the notifications. It is never closed.
func (w *Watch) Events() <-chan Notification { return w.events }

// Errors receives why the watch was lost. It is never closed. A lost watch must
// be closed and made anew.
func (w *Watch) Errors() <-chan error { return w.errors }

// Ack acknowledges a notification.
func (w *Watch) Ack(n Notification, payload []byte) error {
	oid := C.CString(w.object)
	defer C.free(unsafe.Pointer(oid))
	var data *C.char
	if len(payload) > 0 {
		data = (*C.char)(unsafe.Pointer(&payload[0]))
	}
	return asError(int(C.rados_notify_ack(C.rados_ioctx_t(w.ioctx.Pointer()), oid,
		C.uint64_t(n.ID), C.uint64_t(w.cookie), data, C.int(len(payload)))))
}

// Check returns how long ago the cluster has confirmed the watch, or why it is
// lost.
func (w *Watch) Check() (time.Duration, error) {
	w.use.RLock()
	defer w.use.RUnlock()
	if w.closed {
		return 0, syscall.ENOTCONN
	}
	ret := C.rados_watch_check(C.rados_ioctx_t(w.ioctx.Pointer()), C.uint64_t(w.cookie))
	if err := asError(int(ret)); err != nil {
		return 0, err
	}
	return time.Duration(ret) * time.Millisecond, nil
}

// Close ends the watch. It asks the cluster, and so takes as long as that. A
// second Close does nothing.
func (w *Watch) Close() error {
	w.forget()
	w.use.Lock()
	closed := w.closed
	w.closed = true
	w.use.Unlock()
	if closed {
		return nil
	}
	return asError(int(C.rados_unwatch2(C.rados_ioctx_t(w.ioctx.Pointer()), C.uint64_t(w.cookie))))
}

func (w *Watch) forget() {
	watches.Lock()
	delete(watches.by, w.number)
	watches.Unlock()
}

func (w *Watch) fail(err error) {
	select {
	case w.errors <- err:
	default: // one reason is enough
	}
}

func findWatch(number uintptr) *Watch {
	watches.RLock()
	defer watches.RUnlock()
	return watches.by[number]
}

//export cephmirrorNotified
func cephmirrorNotified(number C.uintptr_t, notify, _, notifier C.uint64_t, data unsafe.Pointer, size C.size_t) {
	w := findWatch(uintptr(number))
	if w == nil {
		return
	}
	n := Notification{ID: uint64(notify), Notifier: uint64(notifier)}
	if size > 0 {
		n.Data = C.GoBytes(data, C.int(size))
	}
	// librados must not be held up: it has but one thread for all of this.
	select {
	case w.events <- n:
	default:
		w.fail(fmt.Errorf("more than %d notifications were not read: %w", watchQueue, syscall.ENOBUFS))
	}
}

//export cephmirrorWatchLost
func cephmirrorWatchLost(number C.uintptr_t, _ C.uint64_t, err C.int) {
	w := findWatch(uintptr(number))
	if w == nil {
		return
	}
	reason := asError(int(err))
	if reason == nil {
		reason = syscall.ENOTCONN
	}
	w.fail(reason)
}
