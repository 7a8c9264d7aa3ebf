package plugins

import "time"

// Schedules of snapshots are one more thing that host and plugin share: the
// host knows what a schedule means and when it is due, the plugin keeps the
// schedules in the cluster, sees to it that one instance alone follows them, and
// makes the snapshots. They speak of it in commands that only the host sends.
//
// A key names a level at which a schedule is set, the plugin alone knows how; a
// value is what the host stores there, the host alone knows what it means.
const (
	// SchedulePrefix begins the commands.
	SchedulePrefix = "schedule "

	// ScheduleResolve takes the names of a level (for rbd: scope, which is
	// "global", "pool", "namespace" or "image", and pool, namespace, image; for
	// cephfs: fs and path, "" being all directories that are mirrored) and
	// returns a StoredSchedule, without a value if there is none.
	ScheduleResolve = SchedulePrefix + "resolve"
	// ScheduleList returns all []StoredSchedule, those of the file system fs.
	ScheduleList = SchedulePrefix + "list"
	// ScheduleSwap replaces the value old of key by new, "" standing for none.
	// ECANCELED: it had another value.
	ScheduleSwap = SchedulePrefix + "swap"
	// ScheduleUnits returns the []ScheduleDomain of the cluster, or of fs.
	ScheduleUnits = SchedulePrefix + "units"
	// ScheduleStock sends the command in the argument "command" to the stock
	// module that has schedules too, and returns its output.
	ScheduleStock = SchedulePrefix + "stock"

	// ScheduleWatch returns the ScheduleState of a worker at once, empty but for
	// the generation if that equals the argument generation.
	ScheduleWatch = SchedulePrefix + "watch"
	// ScheduleRun begins to make a snapshot of the unit id. How that ended shows
	// in the state.
	ScheduleRun = SchedulePrefix + "run"
	// SchedulePrune begins to remove the snapshots names of the unit id.
	SchedulePrune = SchedulePrefix + "prune"
)

// ScheduleState is what an instance that follows schedules has to know.
type ScheduleState struct {
	Generation uint64 `json:"generation"`
	// Domains are those whose schedules this very instance follows.
	Domains []ScheduleDomain `json:"domains,omitempty"`
}

// ScheduleDomain is a pool or a file system that has schedules.
type ScheduleDomain struct {
	Name   string           `json:"name"`
	Stored []StoredSchedule `json:"stored"`
	Units  []ScheduleUnit   `json:"units"`
	// Leader is the instance that follows the schedules, empty if none does.
	Leader string `json:"leader,omitempty"`
	// Error is why all of this may be out of date.
	Error string `json:"error,omitempty"`
}

// StoredSchedule is the value at one level.
type StoredSchedule struct {
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
	// Parents are the keys of the wider levels, the narrowest first.
	Parents []string `json:"parents,omitempty"`
	// Name is how the level is written, and Names its parts: pool, namespace
	// and image, or file system and directory. A part that the level is wider
	// than is left out.
	Name  string   `json:"name"`
	Names []string `json:"names,omitempty"`
}

// ScheduleUnit is what a snapshot can be made of.
type ScheduleUnit struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Keys are those of the levels it lies in, the narrowest first.
	Keys []string `json:"keys"`
	// Last is when its newest snapshot was made, zero if there is none.
	Last time.Time `json:"last"`
	// Held says why no snapshot of it is made.
	Held string `json:"held,omitempty"`
	// Stock are the values of the stock module's schedules by the same keys.
	Stock map[string]string `json:"stock,omitempty"`
	// Own are the snapshots that schedules made and nobody has taken over.
	Own []ScheduledSnapshot `json:"own,omitempty"`
	// Busy: a snapshot of it is being made or removed.
	Busy bool `json:"busy,omitempty"`
	// Taken and Failures count the snapshots that this instance made, and failed
	// to make. Error is why that, or a removal, failed the last time.
	Taken    uint64 `json:"taken,omitempty"`
	Failures uint64 `json:"failures,omitempty"`
	Error    string `json:"error,omitempty"`
}

// ScheduledSnapshot is a snapshot that a schedule made.
type ScheduledSnapshot struct {
	Name string    `json:"name"`
	Made time.Time `json:"made"`
}
