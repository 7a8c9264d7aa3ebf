package ceph

/*
#cgo LDFLAGS: -lrados
#include <stdint.h>
#include <stdlib.h>
#include <rados/librados.h>

struct cm_notify {
	rados_completion_t done;
	char *reply;
	size_t size;
};

extern void cephmirrorNotifyEnded(uintptr_t);

static void notify_ended(rados_completion_t c, void *arg) {
	cephmirrorNotifyEnded((uintptr_t)arg);
}

// The argument is a number, not an address. What librados is given must live
// until the end, the payload it copies.
static int notify(rados_ioctx_t io, const char *oid, const char *data, int size, uint64_t timeout_ms,
		struct cm_notify *n, uintptr_t arg) {
	int r = rados_aio_create_completion2((void *)arg, notify_ended, &n->done);
	if (r < 0)
		return r;
	r = rados_aio_notify(io, oid, n->done, data, size, timeout_ms, &n->reply, &n->size);
	if (r < 0)
		rados_aio_release(n->done);
	return r;
}
*/
import "C"

import (
	"context"
	"sync"
	"time"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// notifying are the notifications under way, found by number, since C code may
// not keep Go pointers.
var notifying = struct {
	sync.Mutex
	next uintptr
	by   map[uintptr]*notification
}{by: make(map[uintptr]*notification)}

type notification struct {
	c     *C.struct_cm_notify
	ended chan notified
	owner *Notifier
}

type notified struct {
	reply []byte
	err   error
}

// Notifier sends notifications without a thread for each that is under way.
type Notifier struct {
	ioctx *rados.IOContext

	mu      sync.Mutex
	pending int
	idle    chan struct{} // closed when nothing is under way
}

// NewNotifier returns a Notifier of ioctx, which must live until Drain has
// returned nil.
func NewNotifier(ioctx *rados.IOContext) *Notifier {
	idle := make(chan struct{})
	close(idle)
	return &Notifier{ioctx: ioctx, idle: idle}
}

// Notify sends a notification to those who watch an object and waits for their
// acknowledgements, which the cluster gives them timeout for, in whole seconds.
// The reply is undecoded, and may be there even with an error: ETIMEDOUT says
// that not all have answered. When ctx ends first the notification goes on, and
// nobody hears of its reply.
func (n *Notifier) Notify(ctx context.Context, object string, payload []byte, timeout time.Duration) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	note := &notification{
		c:     (*C.struct_cm_notify)(C.calloc(1, C.size_t(unsafe.Sizeof(C.struct_cm_notify{})))),
		ended: make(chan notified, 1), owner: n,
	}
	n.begin()
	notifying.Lock()
	notifying.next++
	number := notifying.next
	notifying.by[number] = note
	notifying.Unlock()
	oid := C.CString(object)
	defer C.free(unsafe.Pointer(oid))
	ret := C.notify(C.rados_ioctx_t(n.ioctx.Pointer()), oid, (*C.char)(unsafe.Pointer(unsafe.SliceData(payload))),
		C.int(len(payload)), C.uint64_t(timeout/time.Second*1000), note.c, C.uintptr_t(number))
	if err := asError(int(ret)); err != nil {
		notifying.Lock()
		delete(notifying.by, number)
		notifying.Unlock()
		C.free(unsafe.Pointer(note.c))
		n.end()
		return nil, err
	}
	select {
	case done := <-note.ended:
		return done.reply, done.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *Notifier) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending == 0 {
		n.idle = make(chan struct{})
	}
	n.pending++
}

func (n *Notifier) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending--
	if n.pending == 0 {
		close(n.idle)
	}
}

// Drain waits until no notification is under way.
func (n *Notifier) Drain(ctx context.Context) error {
	n.mu.Lock()
	idle := n.idle
	n.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

//export cephmirrorNotifyEnded
func cephmirrorNotifyEnded(number C.uintptr_t) {
	notifying.Lock()
	note := notifying.by[uintptr(number)]
	delete(notifying.by, uintptr(number))
	notifying.Unlock()
	if note == nil {
		return
	}
	c := note.c
	done := notified{err: asError(int(C.rados_aio_get_return_value(c.done)))}
	if c.size > 0 {
		done.reply = C.GoBytes(unsafe.Pointer(c.reply), C.int(c.size))
	}
	C.rados_buffer_free(c.reply)
	C.rados_aio_release(c.done)
	C.free(unsafe.Pointer(c))
	note.ended <- done
	note.owner.end()
}
