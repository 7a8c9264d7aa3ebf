// Package plugins holds the contract between the cephmirror host and its
// plugins: one small Go interface, and the go-plugin glue that carries it over
// gRPC. A plugin links Ceph's libraries and does the mirroring; the host links
// none of them and supervises, configures and shows.
//
// Both kinds (rbd, cephfs) share one vocabulary:
//
//   - a domain is what instances share: a file system, or an RBD pool and namespace;
//   - a unit is what is replicated and assigned: a directory, or an image;
//   - an instance is one worker of a domain, named by its RADOS client id;
//   - a peer is the other cluster of a domain.
package plugins

import (
	"context"
	"strings"
	"time"
)

// Plugin is one kind of mirroring engine. All methods may be called
// concurrently once Start has returned, and each obeys its context.
type Plugin interface {
	// Start connects to the local cluster. In worker mode it begins to
	// mirror; in control mode it only serves Call. An error that carries an
	// errno (see Errno) keeps it across the wire.
	Start(ctx context.Context, cfg Config) (Info, error)

	// Events sends first the current state (domains, commands, units,
	// instances, in that order, then one Synced event) and after it every
	// change, until ctx ends or the plugin stops. A slow receiver is dropped
	// and must call Events again: events are edge plus level.
	Events(ctx context.Context, send func(Event) error) error

	// LoadMap returns what is stored for a domain: its units and who owns them.
	LoadMap(ctx context.Context, domain string) (Map, error)

	// Do carries out one decision of the assignment policy.
	Do(ctx context.Context, domain string, a Action) error

	// Call handles one command as a Ceph daemon or mgr module would.
	Call(ctx context.Context, c Command) Result

	// Metrics returns the counters of all loggers, in the order to print.
	Metrics(ctx context.Context) ([]Logger, error)

	// Renew extends the lease under which the plugin may write. The plugin
	// stops all writing when ttl passes without another Renew.
	Renew(ctx context.Context, ttl time.Duration) error

	// Stop ends all work in order and releases what is held in the cluster.
	Stop(ctx context.Context) error
}

// Mode says what a plugin is started for.
type Mode int

const (
	ModeWorker  Mode = iota // register as an instance and mirror
	ModeControl             // connect and serve Call only
)

// Config is what the host gives a plugin at Start.
type Config struct {
	Mode     Mode
	Cluster  string // name of the local cluster, "ceph" when empty
	ConfFile string // explicit path of the ceph.conf, or empty to search as librados does
	Name     string // cephx entity, for example client.mirror
	// CephOptions are Ceph configuration options given on the command line,
	// in order; a later one wins. They override ceph.conf and the monitors.
	CephOptions []Option
	// Settings are cephmirror's own settings of this plugin kind, by name.
	Settings map[string]string
}

// Option is one configuration option and its value.
type Option struct{ Name, Value string }

// Info is what a started plugin says of itself and of the local cluster.
type Info struct {
	Kind        string // "cephfs" or "rbd"
	CephVersion string // of the linked librados, for example "20.2.4"
	CephRelease string // for example "tentacle"
	GitVersion  string // 40 hex digits, may be empty
	InstanceID  string // RADOS client id of the main connection
	FSID        string // of the local cluster
	// Resolved options of the local client, with all metavariables expanded.
	AdminSocket string
	LogFile     string
	PidFile     string
	RunDir      string
	// AdminSocketMode is the octal mode that the admin socket is to have, empty
	// for what the umask leaves.
	AdminSocketMode string
}

// EventKind says what an Event reports.
type EventKind int

const (
	EventDomainUp       EventKind = iota + 1
	EventDomainDown               // Domain
	EventLeaderGained             // Domain: this instance controls the assignment
	EventLeaderLost               // Domain
	EventUnitAdded                // Domain, Unit
	EventUnitRemoved              // Domain, Unit: its removal was requested
	EventInstanceJoined           // Domain, Instance
	EventInstanceLeft             // Domain, Instance
	EventCommandAdded             // Spec
	EventCommandRemoved           // Spec.Prefix()
	EventSynced                   // all current state has been sent

	// What is to be heeded in the assignment, told while leading.
	EventUnitPinned       // Domain, Unit, Instance: the unit belongs there; to nobody when empty
	EventInstanceDraining // Domain, Instance: it is to get rid of its units
	EventInstanceServing  // Domain, Instance: no longer so
	EventUnitLoad         // Domain, Unit, Load
)

// Event is one change that a plugin reports. Only the fields named beside its
// kind are set.
type Event struct {
	Kind     EventKind
	Domain   string // "cephfs@1": name and id
	Unit     string // directory path or image id
	Instance string
	Spec     CommandSpec
	Load     Load
}

// Load is how much work a unit was lately.
type Load struct {
	Bytes float64       // a second
	Lag   time.Duration // how far it is behind
}

// Map is the stored assignment of a domain.
type Map struct {
	Units     []Mapping
	Instances []string // live instances, this one included
}

// Mapping says who owns a unit.
type Mapping struct {
	Unit         string
	Instance     string // empty: nobody yet
	LastShuffled time.Time
	Purging      bool // a removal is under way
}

// ActionKind names a step of the assignment state machine.
type ActionKind int

const (
	ActionStore   ActionKind = iota + 1 // store the mapping
	ActionDelete                        // delete the mapping of a unit
	ActionAcquire                       // tell Instance to replicate Unit, wait for its answer
	ActionRelease                       // tell Instance to give up Unit, wait for its answer
)

// Action is one decision of the assignment policy.
type Action struct {
	Kind    ActionKind
	Mapping Mapping
}

// CommandSpec describes a command as Ceph's command tables do.
type CommandSpec struct {
	// Signature in Ceph's textual grammar: literal words, then parameters
	// such as "name=var,type=CephString".
	Signature string
	Help      string
}

// Prefix returns the literal words of the command, joined by single spaces: the
// name under which it is called.
func (s CommandSpec) Prefix() string {
	words := strings.Fields(s.Signature)
	for i, w := range words {
		if strings.HasPrefix(w, "name=") {
			words = words[:i]
			break
		}
	}
	return strings.Join(words, " ")
}

// Command is a request for Call.
type Command struct {
	Prefix string
	Args   map[string]any // JSON values
	Input  []byte
}

// Result is the answer to a Command.
type Result struct {
	Errno  int    // 0, or a positive errno
	Out    []byte // compact JSON where the command speaks JSON
	Status string // for people, the reason when Errno is set
}

// Logger is one set of counters and its labels, as Ceph's "counter dump" has it.
type Logger struct {
	Name     string
	Labels   []Option // in print order
	Counters []Counter
}

// CounterType tells how a counter is printed and what it means.
type CounterType int

const (
	CounterU64     CounterType = iota + 1 // monotonic count
	GaugeU64                              // value that goes up and down
	GaugeSeconds                          // time in seconds
	AverageSeconds                        // Sum seconds over Count samples
)

// Counter is one value of a Logger.
type Counter struct {
	Name        string
	Type        CounterType
	Description string
	Nick        string
	Priority    int
	Bytes       bool    // the unit is bytes
	Value       float64 // for all types but AverageSeconds
	U64         uint64  // for CounterU64 and GaugeU64
	Count       uint64  // AverageSeconds
	Sum         float64 // AverageSeconds, seconds
}
