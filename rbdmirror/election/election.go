// Package election lets the mirror daemons of one pool share its images: it
// elects a leader among them, tells who is there, carries the leader's orders
// to the instances and hands out the slots for synchronisations. It speaks the
// stock daemon's protocol: stock daemons and ours can serve one pool together,
// and either can lead.
//
// It decides nothing about which instance gets which image: whoever leads asks
// for that elsewhere and uses Acquire, Release, Store and Remove.
//
// A Member is one instance in one pool. Its instance id is the RADOS client id
// of the connection it is given, which must also be the one that watches
// rbd_mirroring and writes the images' status.
package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/election/machine"
	"cephmirror/rbdmirror/election/slots"
)

// ErrFenced says that this instance was taken for dead and shut out of the
// cluster. Its connection is of no use any more; a new Member needs a new one.
var ErrFenced = errors.New("this instance was shut out of the cluster")

// ErrNotLeader says that something was asked of a Member that does not lead.
var ErrNotLeader = errors.New("not the leader of the pool")

// ErrStuck says that calls to the cluster have not come back.
var ErrStuck = errors.New("calls to the cluster have not come back")

// ErrGone says that the instance a message was meant for is not there any more.
var ErrGone = errors.New("the instance is gone")

// Options are the stock daemon's options of these names. They can be changed
// while a Member runs. The zero value of each but ConcurrentSyncs stands for
// its default.
type Options struct {
	HeartbeatInterval time.Duration // rbd_mirror_leader_heartbeat_interval, 5 s
	MaxMissed         int           // rbd_mirror_leader_max_missed_heartbeats, 2
	MaxAttempts       int           // rbd_mirror_leader_max_acquire_attempts_before_break, 3
	ConcurrentSyncs   int           // rbd_mirror_concurrent_image_syncs; 0: no limit
	BlocklistExpire   time.Duration // rbd_blocklist_expire_seconds; 0: the monitors' own
}

// EventKind says what an Event reports.
type EventKind int

const (
	// LeaderGained: this instance leads. InstanceJoined follows for each that
	// is registered in a namespace.
	LeaderGained EventKind = iota + 1
	// LeaderLost: it does no more.
	LeaderLost
	// LeaderIs: Instance leads, "" when nobody is known to.
	LeaderIs
	// InstanceJoined: Instance is ready for work in Namespace. Told while leading only.
	InstanceJoined
	// InstanceLeft: Instance has stopped its work in Namespace, or is fenced:
	// it can write no more. Told while leading only.
	InstanceLeft
)

// Event is one change of what a Member knows.
type Event struct {
	Kind      EventKind
	Namespace string
	Instance  string
}

// Handler is what a Member asks of the engine. Requests for one image come one
// at a time and in order, those for different images at once. Their contexts
// end with Run.
type Handler struct {
	// Acquire: this instance is to replicate the image. It returns at once. It
	// may come for an image that is being replicated already: then nothing is
	// to be done. A reply of an error makes the leader try again.
	Acquire func(ctx context.Context, namespace, globalID string) error
	// Release: this instance is to give the image up. It returns when nothing
	// will be written any more, also for an image that it does not have.
	Release func(ctx context.Context, namespace, globalID string) error
	// PeerRemoved: the peer with this mirror uuid no longer has the image.
	PeerRemoved func(ctx context.Context, namespace, globalID, mirrorUUID string) error
	// Event receives all events in order. It must not block.
	Event func(Event)
}

// Config is what a Member needs.
type Config struct {
	Conn       *rados.Conn
	Pool       string
	Namespaces []string // mirrored ones beside the default one, see SetNamespaces
	Log        zerolog.Logger
	Lease      *plugins.Lease // of the host; nil: none
	Options    Options
	Handler    Handler
	Note       Note // see SetNote
}

// Mapping is one entry of the stored image map.
type Mapping struct {
	GlobalID string
	Instance string // "" for nobody
	Mapped   time.Time
}

// Status is where a Member stands.
type Status struct {
	InstanceID string
	Leading    bool
	Leader     string   // "" when unknown
	Instances  []string // live ones in byte order, while leading
	Namespaces []string // those registered in, the default one included
	Syncs      ThrottleStatus
	LastError  string // of the last attempt at anything, "" when that went well
}

// ThrottleStatus is the state of the slots for synchronisations.
type ThrottleStatus struct{ Max, Running, Waiting int }

const (
	// beat is how often a leader of ours sends heartbeats, unless the option
	// for that says more often.
	beat = 2 * time.Second
	// askingAtOnce bounds for how many synchronisations of this instance the
	// leader is asked for slots at once; others wait here.
	askingAtOnce = 32
	// watchFresh is how lately a watch must have been confirmed for the lock
	// to be taken under it.
	watchFresh = 15 * time.Second
	// watchSettled is for how long others may take to renew watches that were
	// lost when one's own was.
	watchSettled = 5 * time.Second
	// tick is how often time passes for the machine.
	tick = 250 * time.Millisecond
	// leaveLimit bounds how long leaving in order may take, and closeLimit how
	// long calls are waited for after that.
	leaveLimit = 5 * time.Second
	closeLimit = 4 * time.Second
)

func (o Options) withDefaults() Options {
	if o.HeartbeatInterval <= 0 {
		o.HeartbeatInterval = 5 * time.Second
	}
	if o.MaxMissed <= 0 {
		o.MaxMissed = 2
	}
	if o.MaxAttempts <= 0 {
		o.MaxAttempts = 3
	}
	return o
}

// Member is one instance in one pool. Make one with New and call Run once.
type Member struct {
	cfg   Config
	log   zerolog.Logger
	id    string
	lease *plugins.Lease
	calls calls
	users calls // calls of the member's methods
	// requests numbers what this instance sends.
	requests atomic.Uint64
	asking   chan struct{} // one entry for each synchronisation that waits for a slot
	// watchTimeout is how long the cluster keeps the watches of an instance
	// that it does not hear of; 0 is its own default, half a minute. Shorter
	// ones would be lost whenever the cluster itself stands still for as long.
	watchTimeout time.Duration

	// work ends when Run is about to, with the cause.
	work context.Context
	end  context.CancelCauseFunc
	wg   sync.WaitGroup // all goroutines but those of calls

	// writes is held for reading by changes of the image map, and for writing
	// when the lock is given back: none may come after that.
	writes sync.RWMutex

	mu      sync.Mutex
	machine *machine.Machine
	opts    Options
	root    *space            // the default namespace
	spaces  map[string]*space // all that are open, by namespace
	retired []*space          // those it has left
	closed  bool
	wanted  []string      // namespaces beside the default one
	rewant  chan struct{} // wakes the one who registers
	leaving bool
	resign  bool // asked to give the leadership up
	lastErr string
	// changed is closed and replaced when another instance leads.
	changed chan struct{}
	leader  string
	// lead ends when this instance no longer leads; nil while it does not.
	lead     context.Context
	stopLead context.CancelCauseFunc
	targets  map[target]scope // what is being said to an instance ends with it
	slots    *slots.Queue[*slotRequest]
	granted  map[slots.Key]int // times that a slot is being used
	syncs    map[slots.Key]*syncing

	watch   *ceph.Watch // on the leader object
	watched time.Time   // since when
	// lockMu is held while the leader's lock is changed.
	lockMu sync.Mutex
	cookie string // of the lock, "" when it is not held; under lockMu and mu
	// others are the instances in namespaces beside the default one, as last read.
	others map[string][]string

	events  []Event
	eventCh chan struct{}
}

// target is an instance in a namespace.
type target struct{ namespace, instance string }

// scope is for how long something is said to an instance.
type scope struct {
	ctx context.Context
	end context.CancelCauseFunc
}

// New returns a Member that does nothing yet.
func New(cfg Config) (*Member, error) {
	if cfg.Conn == nil || cfg.Pool == "" {
		return nil, fmt.Errorf("a connection and a pool are needed: %w", syscall.EINVAL)
	}
	id := strconv.FormatUint(cfg.Conn.GetInstanceID(), 10)
	m := &Member{
		cfg: cfg, id: id, log: cfg.Log.With().Str("pool", cfg.Pool).Str("instance", id).Logger(),
		lease: plugins.NewLease(nil), opts: cfg.Options.withDefaults(), wanted: slices.Clone(cfg.Namespaces),
		spaces: make(map[string]*space), rewant: make(chan struct{}, 1), changed: make(chan struct{}),
		targets: make(map[target]scope),
		slots:   slots.New[*slotRequest](cfg.Options.ConcurrentSyncs), granted: make(map[slots.Key]int),
		syncs: make(map[slots.Key]*syncing), eventCh: make(chan struct{}, 1), others: make(map[string][]string),
		asking: make(chan struct{}, askingAtOnce),
	}
	m.work, m.end = context.WithCancelCause(context.Background())
	m.machine = machine.New(m.params())
	return m, nil
}

// params are the machine's knobs for the present options.
func (m *Member) params() machine.Params {
	o := m.opts
	return machine.Params{
		ID: m.id, Beat: min(beat, o.HeartbeatInterval), Interval: o.HeartbeatInterval,
		MaxMissed: o.MaxMissed, MaxAttempts: o.MaxAttempts,
	}
}

// now is a clock that goes on while the machine sleeps.
func now() time.Time { return time.Unix(0, 0).Add(plugins.Boottime()) }

// errLeft is why a Member ends that was asked to.
var errLeft = errors.New("left in order")

// Run joins the others and takes part until ctx ends. Then it leaves in order:
// the replayers must have stopped by then. It returns nil after an orderly end
// and an error that is ErrFenced when this instance was shut out; then the
// lease has ended already, and a new connection is needed. Calls to a cluster
// that does not answer are abandoned after a while; then the error is ErrStuck
// too, and the connection must not be shut down.
func (m *Member) Run(ctx context.Context) error {
	root, err := m.openSpace("")
	if err != nil {
		m.end(err)
		return err
	}
	m.mu.Lock()
	m.root = root
	m.mu.Unlock()
	m.wg.Go(m.deliver)
	m.wg.Go(func() { m.register(ctx) })
	m.wg.Go(m.watchLeader)
	m.wg.Go(m.passTime)
	m.wg.Go(m.watchOneself)
	<-m.work.Done()
	cause := context.Cause(m.work)
	m.lease.Revoke()
	m.wg.Wait()
	m.flush()
	m.lose()
	m.flush()
	if !m.close() {
		return errors.Join(cause, ErrStuck)
	}
	if errors.Is(cause, errLeft) {
		return nil
	}
	return cause
}

// fenced ends everything: this instance was shut out of the cluster.
func (m *Member) fenced(why error) {
	m.lease.Revoke()
	m.end(fmt.Errorf("%w: %w", ErrFenced, why))
}

// failed looks whether an error says that this instance was shut out.
func (m *Member) failed(err error) bool {
	if !ceph.Is(err, syscall.ESHUTDOWN) {
		return false
	}
	m.fenced(err)
	return true
}

// note keeps what went wrong last, "" when all is well.
func (m *Member) note(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastErr = ""
	if err != nil {
		m.lastErr = err.Error()
	}
}

// InstanceID returns the number by which the others know this instance.
func (m *Member) InstanceID() string { return m.id }

// Lease returns what whoever writes in this pool must hold: it is valid while
// the host's lease is and while this instance has lately seen that it is not
// shut out. A process that was frozen finds it expired when it wakes up.
func (m *Member) Lease() *plugins.Lease { return m.lease }

// SetOptions changes the options.
func (m *Member) SetOptions(o Options) {
	m.mu.Lock()
	m.opts = o.withDefaults()
	m.machine.SetParams(m.params())
	next := m.slots.SetMax(o.ConcurrentSyncs)
	m.mu.Unlock()
	m.grant(next)
}

// SetNamespaces changes in which namespaces, beside the default one, this
// instance is registered. Nothing may be replicated any more in those that are
// left out. It returns at once.
func (m *Member) SetNamespaces(namespaces []string) {
	m.mu.Lock()
	m.wanted = slices.DeleteFunc(slices.Clone(namespaces), func(ns string) bool { return ns == "" })
	m.mu.Unlock()
	select {
	case m.rewant <- struct{}{}:
	default:
	}
}

// Status returns where the Member stands.
func (m *Member) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{InstanceID: m.id, Leading: m.machine.Leading(now()), Leader: m.leader, LastError: m.lastErr}
	if m.machine.Holds() {
		s.Instances = m.machine.Members()
	}
	for ns, sp := range m.spaces {
		if sp.isRegistered() {
			s.Namespaces = append(s.Namespaces, ns)
		}
	}
	slices.Sort(s.Namespaces)
	s.Syncs.Max, s.Syncs.Running, s.Syncs.Waiting = m.slots.Counts()
	return s
}

// Leading reports whether this instance leads at this moment.
func (m *Member) Leading() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leadingLocked()
}

func (m *Member) leadingLocked() bool { return m.lead != nil && m.machine.Leading(now()) }

// Instances returns those that are registered in the namespace and not known to
// be dead. It returns none while this instance does not lead or does not know.
func (m *Member) Instances(namespace string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leadingLocked() || !m.machine.Known(namespace) {
		return nil
	}
	return m.machine.In(namespace)
}

// ReleaseLeader gives the leadership up, if this instance has it, and lets
// others go first.
func (m *Member) ReleaseLeader(ctx context.Context) error {
	m.mu.Lock()
	if !m.machine.Holds() {
		m.mu.Unlock()
		return ErrNotLeader
	}
	m.resign = true
	m.mu.Unlock()
	for {
		m.mu.Lock()
		holds, changed := m.machine.Holds(), m.changed
		m.mu.Unlock()
		if !holds {
			return nil
		}
		select {
		case <-changed:
		case <-m.work.Done():
			return context.Cause(m.work)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
