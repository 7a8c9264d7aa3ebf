// Package scheduling is what a worker tells its host of the schedules that it
// follows, and what becomes of the snapshots that the host asks for. It answers
// those of the commands in plugins.SchedulePrefix that only a worker is sent.
package scheduling

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/plugins"
)

// ErrGone is returned for a unit of which no snapshots are to be made here any
// more. That is no failure.
var ErrGone = errors.New("no snapshots of it are made here any more")

// Board shows the host the domains whose schedules this instance follows. It is
// safe for concurrent use.
type Board struct {
	valid func() bool
	now   func() time.Time
	slots chan struct{}

	mu         sync.Mutex
	generation uint64
	domains    map[int64]*Domain
}

// NewBoard returns a board for as many snapshots at once. Nothing is begun unless
// the lease is valid.
func NewBoard(valid func() bool, parallel int) *Board {
	return &Board{valid: valid, now: time.Now, slots: make(chan struct{}, parallel), domains: make(map[int64]*Domain)}
}

// Maker makes and removes the snapshots of a domain. Its functions return what
// they found out about the unit.
type Maker struct {
	Log zerolog.Logger
	// Go runs what may take long on a goroutine that somebody waits for.
	Go   func(func())
	Make func(plugins.ScheduleUnit) (plugins.ScheduleUnit, error)
	// Remove is nil where retention is not for the host to decide.
	Remove func(plugins.ScheduleUnit, []string) (plugins.ScheduleUnit, error)
}

// Domain is a pool or a file system on the board. The ids of its units begin with
// its own id and a slash.
type Domain struct {
	board *Board
	id    int64
	maker Maker

	// Under the board's mu:
	until time.Time // how long the lead is ours at least, zero if it is not
	state plugins.ScheduleDomain
	jobs  map[string]*job
}

// job is how it goes with the snapshots of one unit.
type job struct {
	busy             bool
	taken, failures  uint64
	making, removing string // why that failed the last time
}

func (j *job) errorText() string {
	if j.making != "" && j.removing != "" {
		return j.making + "; " + j.removing
	}
	return j.making + j.removing
}

// Join puts a domain on the board. It shows once its schedules are followed here.
func (b *Board) Join(id int64, m Maker) *Domain {
	d := &Domain{board: b, id: id, maker: m, jobs: make(map[string]*job)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.domains[id] = d
	return d
}

// Leave takes the domain off the board: nothing more is begun for it.
func (d *Domain) Leave() {
	d.change(func() {
		d.until = time.Time{}
		if d.board.domains[d.id] == d {
			delete(d.board.domains, d.id)
		}
	})
}

func (d *Domain) change(do func()) {
	d.board.mu.Lock()
	defer d.board.mu.Unlock()
	do()
	d.board.generation++
}

// Show replaces what the host has to know.
func (d *Domain) Show(s plugins.ScheduleDomain) { d.change(func() { d.state = s }) }

// Lead says until when the schedules are followed here at least, with the zero
// time that they are not.
func (d *Domain) Lead(until time.Time) {
	d.board.mu.Lock()
	defer d.board.mu.Unlock()
	if d.until.IsZero() != until.IsZero() {
		d.board.generation++
	}
	d.until = until
}

// Trouble says why what is shown may be out of date, with nil that it is not.
func (d *Domain) Trouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	d.board.mu.Lock()
	defer d.board.mu.Unlock()
	if d.state.Error != text {
		d.state.Error = text
		d.board.generation++
	}
}

// leads tells whether the lead is ours for sure.
func (d *Domain) leads() bool { return d.board.now().Before(d.until) && d.board.valid() }

// Call answers a command; ok is false for one that is not for a worker alone. It
// waits for no cluster.
func (b *Board) Call(c plugins.Command) (out any, ok bool, err error) {
	text := func(name string) string { s, _ := c.Args[name].(string); return s }
	switch c.Prefix {
	case plugins.ScheduleWatch:
		known, _ := strconv.ParseUint(text("generation"), 10, 64)
		return b.state(known), true, nil
	case plugins.ScheduleRun:
		return struct{}{}, true, b.begin(text("id"), func(d *Domain, u plugins.ScheduleUnit, j *job) (plugins.ScheduleUnit, error) {
			u, err := d.maker.Make(u)
			b.mu.Lock()
			defer b.mu.Unlock()
			switch {
			case err == nil:
				j.taken++
				j.making = ""
			case errors.Is(err, ErrGone):
				j.making = ""
			default:
				j.failures++
				j.making = err.Error()
			}
			return u, err
		})
	case plugins.SchedulePrune:
		return struct{}{}, true, b.begin(text("id"), func(d *Domain, u plugins.ScheduleUnit, j *job) (plugins.ScheduleUnit, error) {
			err := errors.ErrUnsupported
			if d.maker.Remove != nil {
				u, err = d.maker.Remove(u, names(c.Args["names"]))
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			j.removing = ""
			if err != nil {
				j.removing = err.Error()
			}
			return u, err
		})
	}
	return nil, false, nil
}

// names are those of a list that may have come as JSON.
func names(list any) []string {
	switch l := list.(type) {
	case []string:
		return l
	case []any:
		var out []string
		for _, v := range l {
			if s, ok := v.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

func (b *Board) state(known uint64) plugins.ScheduleState {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for _, d := range b.domains {
		if !d.until.IsZero() && now.After(d.until) {
			d.until = time.Time{}
			b.generation++
		}
	}
	out := plugins.ScheduleState{Generation: b.generation}
	if known == b.generation && known != 0 {
		return out
	}
	for _, id := range slices.Sorted(maps.Keys(b.domains)) {
		d := b.domains[id]
		if d.until.IsZero() {
			continue
		}
		shown := d.state
		shown.Units = slices.Clone(shown.Units)
		for i, u := range shown.Units {
			if j := d.jobs[u.ID]; j != nil {
				u.Busy, u.Taken, u.Failures, u.Error = j.busy, j.taken, j.failures, j.errorText()
				shown.Units[i] = u
			}
		}
		out.Domains = append(out.Domains, shown)
	}
	return out
}

type work func(*Domain, plugins.ScheduleUnit, *job) (plugins.ScheduleUnit, error)

// begin starts work on a unit, one at a time for each.
func (b *Board) begin(unit string, do work) error {
	first, _, ok := strings.Cut(unit, "/")
	id, err := strconv.ParseInt(first, 10, 64)
	if !ok || err != nil {
		return fmt.Errorf("%q is no unit of a schedule: %w", unit, syscall.EINVAL)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.domains[id]
	if d == nil || !d.leads() {
		return fmt.Errorf("the schedules of %s are not followed here: %w", unit, syscall.ESTALE)
	}
	i := d.index(unit)
	if i < 0 {
		return fmt.Errorf("%s is no longer scheduled here: %w", unit, syscall.ESTALE)
	}
	j := d.jobs[unit]
	if j == nil {
		j = &job{}
		d.jobs[unit] = j
	}
	if j.busy {
		return fmt.Errorf("snapshots of %s are being made or removed: %w", unit, syscall.EALREADY)
	}
	j.busy = true
	b.generation++
	u := d.state.Units[i]
	d.maker.Go(func() { d.work(u, j, do) })
	return nil
}

func (d *Domain) index(unit string) int {
	return slices.IndexFunc(d.state.Units, func(u plugins.ScheduleUnit) bool { return u.ID == unit })
}

func (d *Domain) work(u plugins.ScheduleUnit, j *job, do work) {
	b := d.board
	b.slots <- struct{}{}
	defer func() { <-b.slots }()
	b.mu.Lock()
	ours := d.leads()
	b.mu.Unlock()
	var now plugins.ScheduleUnit
	err := error(syscall.ESTALE) // the lead was lost while others were made
	if ours {
		now, err = do(d, u, j)
	}
	d.change(func() {
		j.busy = false
		i := d.index(u.ID)
		if !ours || i < 0 {
			return
		}
		units := slices.Clone(d.state.Units)
		if errors.Is(err, ErrGone) {
			units = slices.Delete(units, i, i+1)
		} else {
			units[i].Last, units[i].Own = now.Last, now.Own
		}
		d.state.Units = units
	})
	if err != nil && ours && !errors.Is(err, ErrGone) {
		d.maker.Log.Warn().Err(err).Str("unit", u.Name).Msg("scheduled snapshots")
	}
}
