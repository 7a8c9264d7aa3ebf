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
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/plugins"
)

// ErrFenced says that this instance was taken for dead and shut out of the
// cluster. Its connection is of no use any more; a new Member needs a new one.
var ErrFenced = errors.New("this instance was shut out of the cluster")

// ErrNotLeader says that something was asked of a Member that does not lead.
var ErrNotLeader = errors.New("not the leader of the pool")

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

var errNotYet = errors.New("not implemented")

// Member is one instance in one pool. Make one with New and call Run once.
type Member struct {
	cfg   Config
	lease *plugins.Lease
}

// New returns a Member that does nothing yet.
func New(cfg Config) (*Member, error) {
	return &Member{cfg: cfg, lease: plugins.NewLease(nil)}, nil
}

// Run joins the others and takes part until ctx ends. Then it leaves in order:
// the replayers must have stopped by then. It returns nil after an orderly end
// and an error that is ErrFenced when this instance was shut out; then the
// lease has ended already, and a new connection is needed. Calls to a cluster
// that does not answer are abandoned after a while; then the error is ErrStuck,
// and the connection must not be shut down.
func (m *Member) Run(ctx context.Context) error { return errNotYet }

// ErrStuck says that calls to the cluster have not come back.
var ErrStuck = errors.New("calls to the cluster have not come back")

// InstanceID returns the number by which the others know this instance.
func (m *Member) InstanceID() string { return "" }

// Lease returns what whoever writes in this pool must hold: it is valid while
// the host's lease is and while this instance has lately seen that it is not
// shut out. A process that was frozen finds it expired when it wakes up.
func (m *Member) Lease() *plugins.Lease { return m.lease }

// SetOptions changes the options.
func (m *Member) SetOptions(Options) {}

// SetNamespaces changes in which namespaces, beside the default one, this
// instance is registered. Nothing may be replicated any more in those that are
// left out. It returns at once.
func (m *Member) SetNamespaces([]string) {}

// Status returns where the Member stands.
func (m *Member) Status() Status { return Status{} }

// Leading reports whether this instance leads at this moment.
func (m *Member) Leading() bool { return false }

// ReleaseLeader gives the leadership up, if this instance has it, and lets
// others go first.
func (m *Member) ReleaseLeader(ctx context.Context) error { return errNotYet }

// Instances returns those that are registered in the namespace and not known to
// be dead, while leading.
func (m *Member) Instances(namespace string) []string { return nil }

// Acquire tells an instance, which may be this one, to replicate an image and
// waits for its answer. The error is ErrGone when it is not there.
func (m *Member) Acquire(ctx context.Context, namespace, instance, globalID string) error {
	return errNotYet
}

// Release tells an instance to give an image up and waits until it has.
func (m *Member) Release(ctx context.Context, namespace, instance, globalID string) error {
	return errNotYet
}

// PeerRemoved tells an instance that the peer no longer has an image.
func (m *Member) PeerRemoved(ctx context.Context, namespace, instance, globalID, mirrorUUID string) error {
	return errNotYet
}

// LoadMap returns the stored image map of a namespace.
func (m *Member) LoadMap(ctx context.Context, namespace string) ([]Mapping, error) {
	return nil, errNotYet
}

// Store stores mappings, while leading.
func (m *Member) Store(ctx context.Context, namespace string, mappings ...Mapping) error {
	return errNotYet
}

// Remove removes the mappings of images, while leading.
func (m *Member) Remove(ctx context.Context, namespace string, globalIDs ...string) error {
	return errNotYet
}

// Throttle returns the source of slots for synchronisations in a namespace.
func (m *Member) Throttle(namespace string) *Throttle { return &Throttle{m: m, namespace: namespace} }

// Throttle hands out slots that the leader grants to all instances of the pool.
type Throttle struct {
	m         *Member
	namespace string
}

// Acquire waits for a slot for the local image with this id. The slot is given
// back by release.
func (t *Throttle) Acquire(ctx context.Context, localImageID string) (release func(), err error) {
	return nil, errNotYet
}
