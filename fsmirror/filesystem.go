package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/fsmirror/process"
	"cephmirror/internal/ceph"
	"cephmirror/plugins"
)

// filesystem mirrors one local file system: it is an instance for the
// controller, and holds the peers.
type filesystem struct {
	eng  *Engine
	id   int64
	name string
	pool int64 // of the metadata
	log  zerolog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	ioctx *rados.IOContext // set before the first use of peers
	notes notebook

	patience patience // with the local file system

	controlWake chan struct{}  // capacity 1
	deathWake   chan struct{}  // capacity 1
	asking      sync.WaitGroup // the controller's questions, which take their time
	mounting    chan struct{}  // capacity 1: held while the local file system is mounted

	mu          sync.Mutex
	state       string // "", "failed" or "blocklisted"
	reason      error
	dirs        map[string]bool
	peers       map[string]*peer
	specs       []dirstore.Peer
	ranks       int // MDSs that share it
	mounted     *sources
	mountErr    error
	mountFailed time.Time
	serving     bool
	ending      map[string]*ending // by peer's uuid, of the local file system ""
	inCharge    time.Duration      // since boot: when we last knew that we control the map; 0: we do not
	ours        map[string]bool    // instances that are no stock ones, as far as a controller knows
}

// sources are two mounts of the local file system: one to copy from, and one
// to look at a snapshot with fresh eyes, past what the first has cached. Their
// connection to the data lives as long as they do: the engine's may be replaced
// while a call still hangs.
type sources struct {
	copy, check *ceph.Mount
	sessions    [2]string // their uuids
	data        *rados.Conn
	users       sync.WaitGroup
	stop        context.CancelFunc // of the heartbeat
}

const (
	fsFailed      = "failed"
	fsBlocklisted = "blocklisted"
)

func newFilesystem(e *Engine, spec dirstore.FileSystem) *filesystem {
	ctx, cancel := context.WithCancel(e.ctx)
	f := &filesystem{
		eng: e, id: spec.ID, name: spec.Name, pool: spec.MetadataPool,
		log:         e.log.With().Str("filesystem", spec.Name).Logger(),
		ctx:         ctx,
		cancel:      cancel,
		done:        make(chan struct{}),
		controlWake: make(chan struct{}, 1),
		deathWake:   make(chan struct{}, 1),
		mounting:    make(chan struct{}, 1),
		ending:      make(map[string]*ending),
		dirs:        make(map[string]bool),
		peers:       make(map[string]*peer),
		specs:       spec.Peers,
		ranks:       spec.Ranks,
	}
	go func() {
		defer close(f.done)
		f.run()
	}()
	return f
}

// errShutOut: the controller took this instance for dead.
var errShutOut = errors.New("this instance was taken for dead")

// rejoin is when an instance that was shut out comes back.
const rejoin = time.Second

// domain is the name by which host and commands know the file system.
func (f *filesystem) domain() string { return fmt.Sprintf("%s@%d", f.name, f.id) }

// stop ends all work for the file system and waits for it, within ctx.
func (f *filesystem) stop(ctx context.Context) {
	f.cancel()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

// run serves as an instance until the file system is no longer to be mirrored,
// and starts over after failures.
func (f *filesystem) run() {
	f.announce(true)
	defer f.announce(false)
	for f.ctx.Err() == nil {
		err := f.serve()
		if f.ctx.Err() != nil {
			return
		}
		state, option := fsFailed, "cephfs_mirror_restart_mirror_on_failure_interval"
		if ceph.Is(err, syscall.ESHUTDOWN) {
			state, option = fsBlocklisted, "cephfs_mirror_restart_mirror_on_blocklist_interval"
		}
		f.setState(state, err)
		wait := f.eng.options.seconds(option)
		switch {
		case errors.Is(err, errLeaseLost):
			f.log.Warn().Err(err).Msg("mirroring of the file system is given up until it does")
			if f.eng.lease.Wait(f.ctx) != nil {
				return
			}
			continue
		case errors.Is(err, errShutOut):
			wait = min(wait, rejoin) // it was a mistake, or is over
		}
		f.log.Error().Err(err).Str("state", state).Dur("retry_in", wait).Msg("mirroring of the file system stopped")
		var again <-chan time.Time
		switch {
		case wait == 0: // the operator wants no restart
		case state == fsBlocklisted:
			// The connection is of no more use; its successor starts us anew.
			f.eng.replaceConnection(wait)
		default:
			again = time.After(wait)
		}
		select {
		case <-again:
		case <-f.ctx.Done():
		}
	}
}

func (f *filesystem) setServing(serving bool) {
	f.mu.Lock()
	f.serving = serving
	if serving {
		f.state, f.reason = "", nil
	}
	f.mu.Unlock()
	f.eng.statusChanged()
}

func (f *filesystem) setState(state string, reason error) {
	f.mu.Lock()
	f.state, f.reason = state, reason
	f.mu.Unlock()
	f.eng.statusChanged()
}

// serve watches the objects of the controller's protocol and keeps the peers.
func (f *filesystem) serve() (err error) {
	pool, err := f.eng.conn.GetPoolByID(f.pool)
	if err != nil {
		return fmt.Errorf("looking up metadata pool %d: %w", f.pool, err)
	}
	ioctx, err := f.eng.conn.OpenIOContext(pool)
	if err != nil {
		return fmt.Errorf("opening metadata pool %s: %w", pool, err)
	}
	defer ioctx.Destroy()
	f.ioctx = ioctx
	own := dirstore.InstanceObject(f.eng.instance)
	if err := createObject(ioctx, own); err != nil {
		return err
	}
	defer func() {
		if err := ioctx.Delete(own); err != nil && !ceph.Is(err, syscall.ENOENT) {
			f.log.Debug().Err(err).Msg("removing the instance's object")
		}
	}()
	mine, err := ioctx.Watch(own)
	if err != nil {
		return fmt.Errorf("watching object %s: %w", own, err)
	}
	defer f.unwatch(mine)
	all, err := ioctx.Watch(dirstore.Object)
	if ceph.Is(err, syscall.ENOENT) {
		// The controller makes it; but it may never have been there.
		if err := createObject(ioctx, dirstore.Object); err != nil {
			return err
		}
		all, err = ioctx.Watch(dirstore.Object)
	}
	if err != nil {
		return fmt.Errorf("watching object %s: %w", dirstore.Object, err)
	}
	// Once nothing is done any more the controller need not find out by itself,
	// and not wait for mounts to end.
	leave := sync.OnceFunc(func() {
		if err := f.notes.remove(instancePrefix + f.eng.instance); err != nil {
			f.log.Debug().Err(err).Msg("leaving")
		}
		f.unwatch(all)
		f.sayBye(ioctx)
	})
	f.notes.open(ioctx)
	defer f.notes.open(nil)
	defer leave()
	if err := f.noteInstance(); err != nil {
		return err
	}

	// That we were shut out before is over: nothing of then is left.
	if err := f.notes.remove(gonePrefix + f.eng.instance); err != nil {
		return err
	}

	f.setServing(true)
	defer f.setServing(false)
	f.reconcile()

	ctx, cancel := context.WithCancelCause(f.ctx)
	var wg, watching sync.WaitGroup
	defer func() {
		cancel(nil)
		wg.Wait()
		f.rest()
		leave()
		f.dropAll()
		f.asking.Wait()
		watching.Wait() // may hang with the MDS: nobody else waits for it
	}()
	watching.Go(func() { f.watchSnapshots(ctx) })
	watching.Go(func() { f.followSchedules(ctx, ioctx) })
	wg.Go(func() { f.endDead(ctx) })
	wg.Go(func() { f.control(ctx, ioctx) })
	wg.Go(func() { f.noteLoads(ctx) })
	wg.Go(func() { f.dropStrays(ctx, dirstore.NewStore(ioctx)) })
	wg.Go(func() {
		if f.eng.lease.AwaitExpiry(ctx, leaseGrace) == nil {
			cancel(errLeaseLost)
		}
	})
	// Acknowledgements must be quick: each notification is handled apart.
	wg.Go(func() {
		f.notifications(ctx, all, func(ne rados.NotifyEvent) {
			f.ack(ne, dirstore.EncodeAck(f.eng.addr))
			f.pokeControl()
		})
	})
	wg.Go(func() {
		f.notifications(ctx, mine, func(ne rados.NotifyEvent) { wg.Go(func() { f.assignment(ne) }) })
	})
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-all.Errors():
			return f.watchError(dirstore.Object, err)
		case err := <-mine.Errors():
			return f.watchError(own, err)
		}
	}
}

// noteInstance makes this instance known to the other workers.
func (f *filesystem) noteInstance() error {
	self, err := process.Self()
	if err != nil {
		return err
	}
	f.eng.mu.Lock()
	draining := f.eng.draining
	f.eng.mu.Unlock()
	return f.notes.set(instancePrefix+f.eng.instance, note{ID: self, Name: f.eng.workerName(), Drain: draining})
}

func createObject(ioctx *rados.IOContext, name string) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateIdempotent)
	if err := op.Operate(ioctx, name, rados.OperationNoFlag); err != nil {
		return fmt.Errorf("making object %s: %w", name, err)
	}
	return nil
}

func (f *filesystem) watchError(object string, err error) error {
	if err == nil {
		err = syscall.ENOTCONN
	}
	if object != dirstore.Object && ceph.Is(err, syscall.ENOENT, syscall.ENOTCONN) {
		err = fmt.Errorf("%w (%w)", errShutOut, err) // it is the controller who removes it
	}
	return fmt.Errorf("watch on object %s was lost: %w", object, err)
}

// sayBye lets the controller look who is still there.
func (f *filesystem) sayBye(ioctx *rados.IOContext) {
	if _, _, err := ioctx.NotifyWithTimeout(dirstore.Object, nil, time.Second); err != nil && !ceph.Is(err, syscall.ETIMEDOUT) {
		f.log.Debug().Err(err).Msg("telling that this instance has left")
	}
}

func (f *filesystem) unwatch(w *rados.Watcher) {
	err := w.Delete()
	if err == nil {
		return
	}
	f.log.Debug().Err(err).Msg("ending a watch")
	// Its connection cannot be shut down while it has something to tell that
	// nobody takes.
	gone := f.eng.connGone
	go func() {
		for {
			select {
			case <-w.Events():
			case <-w.Errors():
			case <-gone:
				return
			}
		}
	}()
}

func (f *filesystem) notifications(ctx context.Context, w *rados.Watcher, handle func(rados.NotifyEvent)) {
	for {
		select {
		case <-ctx.Done():
			return
		case ne, ok := <-w.Events():
			if !ok {
				return
			}
			handle(ne)
		}
	}
}

func (f *filesystem) ack(ne rados.NotifyEvent, payload []byte) {
	if err := ne.Ack(payload); err != nil {
		f.log.Debug().Err(err).Msg("answering a notification")
	}
}

// releaseLimit is how long the end of a directory's work is waited for before
// its release is acknowledged: less than the controller's patience. The lock
// on the peer keeps others away from what has not ended by then.
const releaseLimit = 4 * time.Second

// assignment obeys a controller that gives or takes a directory. Both are
// idempotent: controllers repeat themselves.
func (f *filesystem) assignment(ne rados.NotifyEvent) {
	dir, mode, err := dirstore.DecodeAssign(ne.Data)
	switch {
	case err != nil:
		f.log.Warn().Err(err).Msg("a controller's notification is not understood")
	case mode == dirstore.ModeAcquire:
		f.acquire(dir)
	case mode == dirstore.ModeRelease:
		ctx, cancel := context.WithTimeout(f.ctx, releaseLimit)
		f.release(ctx, dir)
		cancel()
	default:
		f.log.Warn().Str("mode", mode).Msg("a controller's notification has an unknown mode")
	}
	f.ack(ne, nil)
}

func (f *filesystem) acquire(dir string) {
	f.mu.Lock()
	known := f.dirs[dir]
	f.dirs[dir] = true
	peers := slices.Collect(maps.Values(f.peers))
	f.mu.Unlock()
	if known {
		return
	}
	f.pokeDeaths() // whoever had it may have left a lock
	for _, p := range peers {
		p.add(dir)
	}
	f.log.Info().Str("dir", dir).Msg("directory acquired")
	f.eng.statusChanged()
}

func (f *filesystem) release(ctx context.Context, dir string) {
	f.mu.Lock()
	known := f.dirs[dir]
	delete(f.dirs, dir)
	peers := slices.Collect(maps.Values(f.peers))
	f.mu.Unlock()
	if !known {
		return
	}
	var wg sync.WaitGroup
	for _, p := range peers {
		wg.Go(func() { p.remove(ctx, dir) })
	}
	wg.Wait()
	f.log.Info().Str("dir", dir).Msg("directory released")
	f.eng.statusChanged()
}

// controlValid is how long a controller believes in itself after it has seen
// that it is one.
const controlValid = 6 * time.Second

// controls notes when, since boot, it was seen that this instance controls the
// map; 0: it does not.
func (f *filesystem) controls(at time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inCharge = at
}

func (f *filesystem) inControl() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inCharge != 0 && plugins.Boottime()-f.inCharge < controlValid
}

func (f *filesystem) setOurs(ours map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ours = ours
}

func (f *filesystem) isOurs(instance string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ours[instance]
}

// strayInterval is how often an instance looks whether its directories are its
// own.
const strayInterval = 10 * time.Second

// dropStrays gives up, until ctx ends, directories that the map gives to
// somebody else for longer than it takes to move one: a controller that was
// frozen may have told us to take them when it was none any more. The stock
// controller keeps its own books.
func (f *filesystem) dropStrays(ctx context.Context, store *dirstore.Store) {
	suspects := make(map[string]string)
	for sleep(ctx, strayInterval) {
		controller, err := store.Controller()
		if err != nil || controller == "" {
			clear(suspects)
			continue
		}
		contents, err := store.Load()
		if err != nil {
			f.log.Debug().Err(err).Msg("looking whose the directories are")
			continue
		}
		f.mu.Lock()
		dirs := slices.Collect(maps.Keys(f.dirs))
		f.mu.Unlock()
		now := make(map[string]string)
		for _, dir := range dirs {
			entry, ok := contents.Dirs[dir]
			switch {
			case ok && (entry.Instance == f.eng.instance || entry.Instance == "" || entry.Purging):
				continue
			case !ok:
				entry.Instance = "nobody"
			}
			now[dir] = entry.Instance
			if suspects[dir] == entry.Instance {
				f.log.Warn().Str("dir", dir).Str("owner", entry.Instance).Msg("a directory that is somebody else's, giving it up")
				stop, cancel := context.WithTimeout(ctx, releaseLimit)
				f.release(stop, dir)
				cancel()
			}
		}
		suspects = now
	}
}

// shared tells whether several MDSs share the file system.
func (f *filesystem) shared() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ranks > 1
}

// update takes over the peers that the monitors' map names now.
func (f *filesystem) update(spec dirstore.FileSystem) {
	f.mu.Lock()
	f.specs, f.ranks = spec.Peers, spec.Ranks
	serving := f.serving
	f.mu.Unlock()
	if serving {
		f.reconcile()
	}
}

// reconcile starts and stops peers as the monitors' map says.
func (f *filesystem) reconcile() {
	var gone, fresh []*peer
	f.mu.Lock()
	want := make(map[string]dirstore.Peer)
	for _, s := range f.specs {
		want[s.UUID] = s
	}
	for id, p := range f.peers {
		if want[id] != p.spec {
			gone = append(gone, p)
			delete(f.peers, id)
		}
	}
	for id, s := range want {
		if f.peers[id] == nil {
			p := newPeer(f, id, s)
			f.peers[id] = p
			fresh = append(fresh, p)
		}
	}
	dirs := slices.Collect(maps.Keys(f.dirs))
	f.mu.Unlock()
	for _, p := range gone {
		f.eng.feed.Publish(plugins.Event{Kind: plugins.EventCommandRemoved, Spec: f.peerCommand(p.uuid)})
		f.stopPeer(p)
		f.log.Info().Str("peer", p.uuid).Msg("peer removed")
	}
	for _, p := range fresh {
		for _, d := range dirs {
			p.add(d)
		}
		f.eng.feed.Publish(plugins.Event{Kind: plugins.EventCommandAdded, Spec: f.peerCommand(p.uuid)})
		f.log.Info().Str("peer", p.uuid).Str("site", p.spec.Cluster).Msg("peer added")
	}
	if len(gone)+len(fresh) > 0 {
		f.eng.statusChanged()
	}
}

func (f *filesystem) stopPeer(p *peer) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*closeLimit)
	defer cancel()
	p.stop(ctx)
}

// restLimit is how long calls under way for directories are waited for before
// others may have them. The locks on the peer keep those away from what has not
// ended by then.
const restLimit = time.Second

// rest ends what is being done for all directories.
func (f *filesystem) rest() {
	f.mu.Lock()
	peers := slices.Collect(maps.Values(f.peers))
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), restLimit)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range peers {
		p.mu.Lock()
		dirs := slices.Collect(maps.Keys(p.dirs))
		p.mu.Unlock()
		for _, dir := range dirs {
			wg.Go(func() { p.remove(ctx, dir) })
		}
	}
	wg.Wait()
}

// dropAll ends everything that was built up while serving.
func (f *filesystem) dropAll() {
	f.mu.Lock()
	peers := slices.Collect(maps.Values(f.peers))
	clear(f.peers)
	clear(f.dirs)
	m := f.mounted
	f.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range peers {
		f.eng.feed.Publish(plugins.Event{Kind: plugins.EventCommandRemoved, Spec: f.peerCommand(p.uuid)})
		wg.Go(func() { f.stopPeer(p) })
	}
	f.dropSource(m, nil)
	wg.Wait()
}

// announce tells the host that the domain and its command are there, or gone.
func (f *filesystem) announce(up bool) {
	domain, command := plugins.EventDomainDown, plugins.EventCommandRemoved
	if up {
		domain, command = plugins.EventDomainUp, plugins.EventCommandAdded
	}
	f.eng.feed.Publish(
		plugins.Event{Kind: domain, Domain: f.domain()},
		plugins.Event{Kind: command, Spec: f.statusCommand()},
	)
	f.eng.statusChanged()
}

func (f *filesystem) statusCommand() plugins.CommandSpec {
	return plugins.CommandSpec{Signature: "fs mirror status " + f.domain(), Help: "get filesystem mirror status"}
}

func (f *filesystem) peerCommand(uuid string) plugins.CommandSpec {
	return plugins.CommandSpec{
		Signature: "fs mirror peer status " + f.domain() + " " + uuid,
		Help:      "get peer mirror status",
	}
}

// source returns the mounts of the local file system, made on first use. The
// caller calls release when it is done with them.
func (f *filesystem) source(ctx context.Context) (src *sources, release func(), err error) {
	if src, err := f.currentSource(); src != nil || err != nil {
		return src, src.release(), err
	}
	select {
	case f.mounting <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	defer func() { <-f.mounting }()
	if src, err := f.currentSource(); src != nil || err != nil {
		return src, src.release(), err
	}
	src, err = f.mountSource(ctx)
	if ctx.Err() != nil {
		if src != nil {
			f.releaseSource(src, true)
		}
		return nil, nil, context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.mountErr = fmt.Errorf("mounting file system %s: %w", f.name, err)
		f.mountFailed = time.Now()
		return nil, nil, f.mountErr
	}
	f.mountErr = nil
	f.mounted = src
	watch, stop := context.WithCancel(f.ctx)
	src.stop = stop
	src.users.Go(func() {
		heartbeat(watch, vitals{pulse(src.copy), f.lastStep, &f.patience}, func(err error) { go f.dropSource(src, err) })
	})
	src.users.Add(1)
	return src, src.release(), nil
}

// lastStep tells when something was last completed for some directory.
func (f *filesystem) lastStep() (last time.Time) {
	f.mu.Lock()
	peers := slices.Collect(maps.Values(f.peers))
	f.mu.Unlock()
	for _, p := range peers {
		if at := p.lastStep(); at.After(last) {
			last = at
		}
	}
	return last
}

// currentSource returns the mounts that there are, with a user more, or why
// there are none just now.
func (f *filesystem) currentSource() (*sources, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mounted != nil {
		f.mounted.users.Add(1)
		return f.mounted, nil
	}
	if f.mountErr != nil && time.Since(f.mountFailed) < 5*time.Second {
		return nil, f.mountErr
	}
	return nil, nil
}

func (s *sources) release() func() {
	if s == nil {
		return nil
	}
	return s.users.Done
}

func (s *sources) mounts() []*ceph.Mount { return []*ceph.Mount{s.copy, s.check} }

func (f *filesystem) mountSource(ctx context.Context) (*sources, error) {
	if err := f.endLeft(ctx, f.home(), true); err != nil {
		if errors.Is(err, errUnanswered) || ctx.Err() != nil {
			return nil, err
		}
		f.log.Debug().Err(err).Msg("ending earlier sessions")
	}
	src := &sources{}
	var err error
	if src.copy, src.sessions[0], err = f.mountAt(ctx, f.home()); err == nil {
		src.check, src.sessions[1], err = f.mountAt(ctx, f.home())
	}
	if err == nil {
		src.data, err = f.eng.localClient()
	}
	if err == nil {
		if err = src.data.Connect(); err == nil {
			return src, nil
		}
	}
	f.releaseSource(src, true)
	return nil, err
}

// releaseSource frees mounts that nobody uses any more, in order or when they
// have been cut off.
func (f *filesystem) releaseSource(src *sources, orderly bool) {
	for i, m := range src.mounts() {
		if m == nil {
			continue
		}
		if orderly {
			if err := m.Unmount(); err != nil {
				f.log.Debug().Err(err).Msg("unmounting the local file system")
			} else {
				f.forget(src.sessions[i])
			}
		}
		if err := m.Release(); err != nil {
			f.log.Debug().Err(err).Msg("releasing a local mount")
		}
	}
	if src.data != nil {
		src.data.Shutdown()
	}
}

// dropSource gives up the local mounts, with a reason when they serve us no
// more. Mounts that do not end in time are left behind, but not their sessions,
// for which other clients of the file system would wait.
func (f *filesystem) dropSource(src *sources, why error) {
	f.mu.Lock()
	if src == nil || f.mounted != src {
		f.mu.Unlock()
		return
	}
	f.mounted = nil
	f.mu.Unlock()
	src.stop()
	limit := closeLimit
	if why == nil {
		limit = stopLimit + 2*time.Second
	}
	released := make(chan bool, 1)
	go func() { released <- f.closeSource(src, why) }()
	select {
	case orderly := <-released:
		if orderly {
			return
		}
	case <-time.After(limit):
		f.log.Warn().Msg("a local mount does not end, leaving it behind")
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopLimit, errUnanswered)
	defer cancel()
	if err := f.end(ctx, f.home(), func() ([]string, error) { return src.sessions[:], nil }); err != nil {
		f.log.Debug().Err(err).Msg("ending the sessions of local mounts")
	}
}

// closeSource frees the local mounts when their last user is done. They are cut
// off, so that waiting calls return, if they serve us no more or if that takes
// too long; orderly tells that they were not.
func (f *filesystem) closeSource(src *sources, why error) (orderly bool) {
	idle := make(chan struct{})
	go func() {
		src.users.Wait()
		close(idle)
	}()
	if why == nil {
		select {
		case <-idle:
			orderly = true
		case <-time.After(stopLimit + time.Second):
		}
	} else {
		f.log.Warn().Err(why).Msg("mounting the local file system anew")
	}
	if !orderly {
		if err := errors.Join(src.copy.Abort(), src.check.Abort()); err != nil {
			f.log.Debug().Err(err).Msg("cutting off the local mounts")
		}
	}
	<-idle
	f.releaseSource(src, orderly)
	return orderly
}

// watchSnapshots notices changes of the directories' snapshots.
//
// The attributes of a snapshot directory change with every snapshot made,
// renamed or removed, and asking the MDS for them costs a fraction of a
// millisecond. All directories are asked once in every round.
func (f *filesystem) watchSnapshots(ctx context.Context) {
	seen := make(map[string]ceph.Stat)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		dirs := slices.Sorted(maps.Keys(f.dirs))
		peers := slices.Collect(maps.Values(f.peers))
		f.mu.Unlock()
		if len(dirs) == 0 || len(peers) == 0 {
			clear(seen)
			continue
		}
		src, release, err := f.source(ctx)
		if err != nil {
			continue // the cycles report it
		}
		for _, dir := range dirs {
			if ctx.Err() != nil {
				break
			}
			st, err := statSnapDir(src.copy, dir)
			if err != nil {
				st = ceph.Stat{}
			}
			was, known := seen[dir]
			seen[dir] = st
			// What is seen first may be newer than what a cycle has seen.
			if !known || was.Version != st.Version || was.Mtime != st.Mtime || was.Ino != st.Ino {
				for _, p := range peers {
					p.changed(dir)
				}
			}
		}
		release()
		if len(seen) > len(dirs) {
			maps.DeleteFunc(seen, func(dir string, _ ceph.Stat) bool { return !slices.Contains(dirs, dir) })
		}
	}
}

const pollInterval = 500 * time.Millisecond

// failedStatus and runningStatus answer "fs mirror status".
type failedStatus struct {
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"` // ours
}

type runningStatus struct {
	RadosInst string                  `json:"rados_inst"`
	Peers     map[string]remoteStatus `json:"peers"`
	SnapDirs  snapDirs                `json:"snap_dirs"`
}

type snapDirs struct {
	Count int `json:"dir_count"`
}

type remoteStatus struct {
	Remote remoteSpec `json:"remote"`
	// Ours: why the peer cannot be reached.
	Error   string `json:"error,omitempty"`
	Since   string `json:"since,omitempty"`
	NextTry string `json:"next_try,omitempty"`
}

type remoteSpec struct {
	ClientName  string `json:"client_name"`
	ClusterName string `json:"cluster_name"`
	FSName      string `json:"fs_name"`
}

func (f *filesystem) status() any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != "" {
		return failedStatus{State: f.state, Reason: errorText(f.reason)}
	}
	out := runningStatus{f.eng.addr, make(map[string]remoteStatus), snapDirs{len(f.dirs)}}
	for id, p := range f.peers {
		out.Peers[id] = p.remoteStatus()
	}
	return out
}

func (p *peer) remoteStatus() remoteStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := remoteStatus{Remote: remoteSpec{p.spec.Client, p.spec.Cluster, p.spec.FSName}}
	if p.trouble != nil {
		s.Error = p.trouble.Error()
		s.Since = p.since.UTC().Format(time.RFC3339)
		s.NextTry = p.nextTry.UTC().Format(time.RFC3339)
	}
	return s
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// peerStatus answers "fs mirror peer status": every directory, sorted by path.
func (p *peer) peerStatus(release string) map[string]directoryStatus {
	p.mu.Lock()
	trouble := ""
	if p.trouble != nil {
		trouble = "no connection to the peer: " + p.trouble.Error()
	}
	dirs := maps.Clone(p.dirs)
	p.mu.Unlock()
	out := make(map[string]directoryStatus, len(dirs))
	for path, w := range dirs {
		out[path] = w.status.status(release, trouble)
	}
	return out
}

// serviceStatus is what the file system contributes to the service map.
func (f *filesystem) serviceStatus() dirstore.FSStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := dirstore.FSStatus{
		ID: f.id, Name: f.name,
		DirectoryCount:  uint64(len(f.dirs)),
		MirroringFailed: f.state != "",
	}
	for _, spec := range f.specs {
		ps := dirstore.PeerStatus{Peer: spec}
		if p := f.peers[spec.UUID]; p != nil {
			p.mu.Lock()
			ps.FailureCount, ps.RecoveryCount, ps.InitFailed = p.failures, p.recoveries, p.trouble != nil
			p.mu.Unlock()
		}
		s.Peers = append(s.Peers, ps)
	}
	return s
}
