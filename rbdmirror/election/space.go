package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/election/machine"
	"cephmirror/rbdmirror/election/message"
	"cephmirror/rbdmirror/store"
)

// markerPrefix begins the keys, beside those of the stock daemon, by which ours
// know each other.
const markerPrefix = "cephmirror_"

func marker(instance string) string { return markerPrefix + instance }

func call1(method, argument string) cls.Call {
	return cls.Call{Class: "rbd", Method: method, In: message.StringInput(argument)}
}

// space is a namespace of the pool, and this instance's letter box in it.
type space struct {
	m        *Member
	ns       string
	ioctx    *rados.IOContext
	notifier *ceph.Notifier
	object   string // of this instance
	// ctx ends when nothing is received any more, and idle is closed then.
	ctx    context.Context
	cancel context.CancelFunc
	idle   chan struct{}

	mu         sync.Mutex
	watch      *ceph.Watch
	registered bool
	requests   map[requestKey]*request
	queues     map[string][]func() // what is to be done for an image, in order
}

func (m *Member) openSpace(ns string) (*space, error) {
	ioctx, err := ceph.OpenPool(m.cfg.Conn, m.cfg.Pool)
	if err != nil {
		return nil, err
	}
	ioctx.SetNamespace(ns)
	sp := &space{
		m: m, ns: ns, ioctx: ioctx, notifier: ceph.NewNotifier(ioctx), object: message.InstanceObject(m.id),
		requests: make(map[requestKey]*request), queues: make(map[string][]func()),
	}
	m.mu.Lock()
	m.spaces[ns] = sp
	m.mu.Unlock()
	return sp, nil
}

func (sp *space) isRegistered() bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return sp.registered
}

func (sp *space) what(err error, what string) error {
	if err == nil {
		return nil
	}
	if sp.ns != "" {
		return fmt.Errorf("%s in namespace %s: %w", what, sp.ns, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// register keeps this instance registered where it is to be, until parent ends,
// and then unregisters it everywhere and ends the member.
func (m *Member) register(parent context.Context) {
	retry := time.Second
	ctx, cancel := m.within(parent)
	defer cancel()
	for {
		err := m.registerAll(ctx)
		m.note(err)
		var again <-chan time.Time
		if err != nil && ctx.Err() == nil && !m.failed(err) {
			m.log.Warn().Err(err).Msg("registering as an instance")
			again = time.After(retry)
			retry = min(2*retry, 10*time.Second)
		} else {
			retry = time.Second
		}
		select {
		case <-m.work.Done():
			return
		case <-parent.Done():
			m.leave()
			return
		case <-m.rewant:
		case <-again:
		}
	}
}

// registerAll joins and leaves namespaces as wanted.
func (m *Member) registerAll(ctx context.Context) error {
	m.mu.Lock()
	wanted := append([]string{""}, m.wanted...)
	open := make(map[string]*space, len(m.spaces))
	for ns, sp := range m.spaces {
		open[ns] = sp
	}
	m.mu.Unlock()
	var errs []error
	for _, ns := range wanted {
		sp := open[ns]
		delete(open, ns)
		if sp == nil {
			var err error
			if sp, err = m.openSpace(ns); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if !sp.isRegistered() {
			if err := sp.join(ctx); err != nil {
				errs = append(errs, sp.what(err, "registering"))
				continue
			}
			m.sayChanged()
			m.feed(machine.Heard{Op: message.Changed}) // ours is not told what we say
		}
	}
	for ns, sp := range open {
		if err := sp.leave(ctx); err != nil {
			errs = append(errs, sp.what(err, "unregistering"))
			continue
		}
		m.sayChanged()
		// Somebody may be using it still: it is closed in the end.
		m.mu.Lock()
		delete(m.spaces, ns)
		m.retired = append(m.retired, sp)
		m.mu.Unlock()
	}
	return errors.Join(errs...)
}

// sayChanged makes a leader of ours look who is registered.
func (m *Member) sayChanged() {
	m.wg.Go(func() { m.say(m.work, message.Changed, time.Second) })
}

// say tells all on the leader object something and waits for their
// acknowledgements, which nobody looks at.
func (m *Member) say(ctx context.Context, op message.LeaderOp, timeout time.Duration) {
	_, err := m.root.notifier.Notify(ctx, message.LeaderObject, op.Encode(), timeout)
	if err != nil && ctx.Err() == nil && !m.failed(err) && !ceph.Is(err, syscall.ETIMEDOUT) {
		m.log.Debug().Err(err).Stringer("message", op).Msg("telling the others")
	}
}

// leave unregisters this instance everywhere, gives up the leadership, and ends
// the member.
func (m *Member) leave() {
	ctx, cancel := context.WithTimeout(m.work, leaveLimit)
	defer cancel()
	m.mu.Lock()
	m.leaving = true
	open := make([]*space, 0, len(m.spaces))
	for _, sp := range m.spaces {
		open = append(open, sp)
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, sp := range open {
		wg.Go(func() {
			if err := sp.leave(ctx); err != nil && m.work.Err() == nil {
				m.log.Warn().Err(sp.what(err, "unregistering")).Msg("leaving")
			}
		})
	}
	wg.Wait()
	m.mu.Lock()
	leads := m.machine.Holds()
	m.mu.Unlock()
	if !leads {
		m.say(ctx, message.Changed, time.Second)
	}
	m.feed(machine.Stop{})
	for m.work.Err() == nil && ctx.Err() == nil {
		m.mu.Lock()
		idle := m.machine.Idle()
		m.mu.Unlock()
		if idle {
			break
		}
		pause(ctx, 20*time.Millisecond)
	}
	m.end(errLeft)
}

// join registers this instance in the namespace: first its name, then its
// letter box, a watch on that, and a lock that says whose it is.
func (sp *space) join(ctx context.Context) error {
	c := &sp.m.calls
	if err := do(ctx, c, sp.add); err != nil {
		return err
	}
	watch, err := callWatch(ctx, c, func() (*ceph.Watch, error) {
		err := store.WriteNew(sp.ioctx, sp.object)
		if err != nil && !ceph.Is(err, syscall.EEXIST) {
			return nil, err
		}
		return ceph.NewWatch(sp.ioctx, sp.object, sp.m.watchTimeout)
	})
	if err != nil {
		return fmt.Errorf("watching %s: %w", sp.object, err)
	}
	err = do(ctx, c, func() error { return sp.takeLock(watch) })
	if err != nil {
		closeWatch(c, watch)
		return err
	}
	sp.mu.Lock()
	sp.watch, sp.registered = watch, true
	sp.ctx, sp.cancel = context.WithCancel(sp.m.work)
	sp.idle = make(chan struct{})
	sp.mu.Unlock()
	sp.m.wg.Go(sp.receive)
	return nil
}

// callWatch is call for what makes a watch. One that nobody waits for any more is
// ended again.
func callWatch(ctx context.Context, c *calls, f func() (*ceph.Watch, error)) (*ceph.Watch, error) {
	return callOr(ctx, c, f, func(w *ceph.Watch) {
		if w != nil {
			_ = w.Close() // nothing is known of it anyway
		}
	})
}

// closeWatch ends a watch, which is not waited for.
func closeWatch(c *calls, w *ceph.Watch) {
	c.begin()
	go func() {
		defer c.end()
		_ = w.Close() // a watch that was lost cannot be ended
	}()
}

func (sp *space) takeLock(w *ceph.Watch) error {
	lock := store.NewLock(sp.ioctx, sp.object)
	holder, err := lock.Holder()
	if err != nil {
		return err
	}
	cookie := cls.AutoCookie(w.Cookie())
	if holder != nil && strconv.FormatInt(holder.Entity.Num, 10) == sp.m.id {
		return lock.SetCookie(holder.Cookie, cookie)
	}
	return lock.Acquire(cookie)
}

// add enters this instance into the list of all.
func (sp *space) add() error {
	c := call1("mirror_instances_add", sp.m.id)
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec(c.Class, c.Method, c.In)
	sp.m.mu.Lock()
	note := sp.m.cfg.Note
	sp.m.mu.Unlock()
	op.SetOmap(map[string][]byte{marker(sp.m.id): note.encode()})
	if err := op.Operate(sp.ioctx, message.LeaderObject, rados.OperationNoFlag); err != nil {
		return fmt.Errorf("%s: %s: %w", message.LeaderObject, c.Method, err)
	}
	return nil
}

// drop takes an instance out of the list of all.
func (sp *space) drop(instance string) error {
	c := call1("mirror_instances_remove", instance)
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec(c.Class, c.Method, c.In)
	op.RmOmapKeys([]string{marker(instance)})
	err := op.Operate(sp.ioctx, message.LeaderObject, rados.OperationNoFlag)
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%s: %s: %w", message.LeaderObject, c.Method, err)
	}
	return nil
}

// leave undoes what join has done, in reverse.
func (sp *space) leave(ctx context.Context) error {
	sp.mu.Lock()
	was := sp.registered
	sp.registered = false
	sp.mu.Unlock()
	if was {
		sp.cancel()
		<-sp.idle
	}
	sp.mu.Lock()
	watch := sp.watch
	sp.watch = nil
	sp.mu.Unlock()
	return do(ctx, &sp.m.calls, func() error {
		var errs []error
		if watch != nil {
			lock := store.NewLock(sp.ioctx, sp.object)
			if err := lock.Release(cls.AutoCookie(watch.Cookie())); err != nil {
				errs = append(errs, err)
			}
			if err := watch.Close(); err != nil {
				errs = append(errs, fmt.Errorf("no longer watching %s: %w", sp.object, err))
			}
		}
		if err := sp.ioctx.Delete(sp.object); err != nil && !ceph.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("removing %s: %w", sp.object, err))
		}
		return errors.Join(append(errs, sp.drop(sp.m.id))...)
	})
}

// close ends what is left of a space. It reports whether nothing of it is in
// use any more.
func (sp *space) close(ctx context.Context) bool {
	sp.mu.Lock()
	watch := sp.watch
	sp.watch, sp.registered = nil, false
	sp.mu.Unlock()
	if watch != nil {
		closeWatch(&sp.m.calls, watch)
	}
	if !sp.m.calls.wait(ctx) || sp.notifier.Drain(ctx) != nil {
		return false
	}
	sp.ioctx.Destroy()
	return true
}

// close ends what is left of the member. It reports whether nothing of it is in
// use any more.
func (m *Member) close() bool {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	m.mu.Lock()
	m.closed = true
	open := m.retired
	for _, sp := range m.spaces {
		open = append(open, sp)
	}
	watch := m.watch
	m.watch = nil
	m.mu.Unlock()
	if watch != nil {
		closeWatch(&m.calls, watch)
	}
	ok := m.users.wait(ctx) && m.calls.wait(ctx)
	// What librados tells of a watch may still be on its way.
	ok = do(ctx, &m.calls, m.cfg.Conn.WatcherFlush) == nil && ok
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, sp := range open {
		wg.Go(func() {
			closed := sp.close(ctx)
			mu.Lock()
			defer mu.Unlock()
			ok = ok && closed
		})
	}
	wg.Wait()
	return ok
}

// enter is called by whoever uses the member from outside; exit must be called
// after it.
func (m *Member) enter() (exit func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.root == nil || m.closed || m.work.Err() != nil {
		return nil, fmt.Errorf("the instance has left: %w", syscall.ENOTCONN)
	}
	m.users.begin()
	return m.users.end, nil
}

// within returns a context that ends with ctx and with the member.
func (m *Member) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.work, func() { cancel(context.Cause(m.work)) })
	return ctx, func() { stop(); cancel(nil) }
}

// watchOneself keeps looking whether this instance is still let into the
// cluster, and keeps the lease valid while it is.
func (m *Member) watchOneself() {
	const (
		every = time.Second
		// fully is with how many looks it is made sure that the others know
		// of this instance.
		fully = 10
		// good is for how long such a look is good.
		good = 8 * time.Second
		// most bounds the looks that are under way, in a cluster that is slow.
		most = 8
	)
	slots := make(chan struct{}, most)
	for n := 1; pause(m.work, every); n++ {
		if n%fully == 0 {
			m.wg.Go(m.stayListed)
		}
		if !m.root.isRegistered() {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		m.wg.Go(func() {
			defer func() { <-slots }()
			holder, err := call(m.work, &m.calls, store.NewLock(m.root.ioctx, m.root.object).Holder)
			switch {
			case m.work.Err() != nil || m.failed(err) || !m.root.isRegistered():
			case ceph.Is(err, syscall.ENOENT):
				m.fenced(fmt.Errorf("another instance has removed this one: %w", err))
			case err != nil:
				m.log.Debug().Err(err).Msg("looking after oneself")
			case holder == nil || strconv.FormatInt(holder.Entity.Num, 10) != m.id:
				m.fenced(fmt.Errorf("%s is no longer locked by this instance", m.root.object))
			default:
				ttl := good
				if m.cfg.Lease != nil {
					ttl = min(ttl, m.cfg.Lease.Remaining())
				}
				m.lease.Renew(ttl)
			}
		})
	}
}

// stayListed enters this instance again wherever somebody has taken it out of
// the list, without shutting it out.
func (m *Member) stayListed() {
	m.mu.Lock()
	open := make([]*space, 0, len(m.spaces))
	for _, sp := range m.spaces {
		open = append(open, sp)
	}
	m.mu.Unlock()
	for _, sp := range open {
		if !sp.isRegistered() {
			continue
		}
		ids, err := call(m.work, &m.calls, sp.instances)
		if err == nil && !slices.Contains(ids, m.id) && sp.isRegistered() {
			m.log.Warn().Str("namespace", sp.ns).Msg("this instance was taken out of the list, entering it again")
			if err = do(m.work, &m.calls, sp.add); err == nil {
				m.sayChanged()
			}
		}
		if err != nil && m.work.Err() == nil && !m.failed(err) {
			m.log.Debug().Err(err).Str("namespace", sp.ns).Msg("looking for oneself in the list")
		}
	}
}

// markers are the instances that are ours.
func (sp *space) markers() (map[string]bool, error) {
	out := make(map[string]bool)
	values, err := sp.ioctx.GetAllOmapValues(message.LeaderObject, "", markerPrefix, 1024)
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, fmt.Errorf("%s: listing keys: %w", message.LeaderObject, err)
	}
	for k := range values {
		out[strings.TrimPrefix(k, markerPrefix)] = true
	}
	return out, nil
}

// instances are those registered in the namespace.
func (sp *space) instances() ([]string, error) {
	out, err := store.Read(sp.ioctx, message.LeaderObject, cls.Call{Class: "rbd", Method: "mirror_instances_list"})
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ids, err := message.DecodeInstances(out[0])
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	return ids, nil
}
