package schedule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/schedules"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/store"
)

// pool is a pool whose schedules this instance follows, or would like to.
type pool struct {
	m    *Manager
	id   int64
	name string
	log  zerolog.Logger

	store *schedules.Store // for one round
	self  string
	lead  *schedules.Lead
	seen  map[string]string // schedules, ours and stock ones, when the images were read
	read  time.Time         // when that was
	took  time.Duration     // and how long

	// Under the manager's mu:
	until  time.Time // how long the lead is ours at least, zero if it is not
	domain plugins.ScheduleDomain
	jobs   map[string]*job
}

// job is how it goes with an image's snapshots.
type job struct {
	busy     bool
	failures uint64
	err      string
}

// Follow follows the schedules of a pool, if nobody else does, until ctx ends.
// enabled tells whether the pool is mirrored at all.
func (m *Manager) Follow(ctx context.Context, id int64, name string, enabled func() bool) {
	p := &pool{m: m, id: id, name: name, log: m.cfg.Log.With().Str("pool", name).Logger(), jobs: make(map[string]*job)}
	m.mu.Lock()
	m.pools[id] = p
	m.mu.Unlock()
	failing := ""
	for wait := roundInterval; ; {
		err := p.round(enabled())
		switch {
		case err == nil:
			failing, wait = "", roundInterval
		case ceph.Is(err, syscall.EPERM, syscall.EACCES, syscall.EOPNOTSUPP, syscall.ENOENT):
			wait = 15 * time.Second // not for us, or gone
		case err.Error() != failing && ctx.Err() == nil:
			failing = err.Error()
			p.log.Warn().Err(err).Msg("schedules of the pool")
		}
		p.noteError(err)
		if !sleep(ctx, wait) {
			break
		}
	}
	m.mu.Lock()
	if m.pools[id] == p {
		delete(m.pools, id)
	}
	p.until = time.Time{}
	m.changedLocked()
	m.mu.Unlock()
	if p.lead != nil && p.lead.Leading() {
		conn, release := m.cfg.Connection()
		defer release()
		p.resign(conn)
	}
}

// round looks once at what is stored.
func (p *pool) round(enabled bool) error {
	if !enabled {
		if p.lead != nil && p.lead.Leading() {
			conn, release := p.m.cfg.Connection()
			defer release()
			p.resign(conn)
		}
		return nil
	}
	conn, release := p.m.cfg.Connection()
	defer release()
	ioctx, err := conn.OpenIOContext(p.name)
	if err != nil {
		return fmt.Errorf("opening pool %s: %w", p.name, err)
	}
	defer ioctx.Destroy()
	p.store = schedules.NewStore(ioctx)
	contents, err := p.store.Load()
	if err != nil {
		return err
	}
	global := p.m.globalValue()
	if len(contents.Schedules) == 0 && global == "" {
		p.resign(conn)
		return nil
	}
	if !p.m.cfg.Lease.Valid() {
		return nil // the lead runs out
	}
	if self := p.m.cfg.Instance(); p.lead == nil || p.self != self {
		p.self = self
		p.lead = schedules.NewLead(self, func(from, to string) error { return p.store.SwapLeader(from, to) }, time.Now)
		p.setUntil(time.Time{})
	}
	led := p.lead.Leading()
	err = p.lead.Round(contents.Leader)
	if !p.lead.Leading() {
		p.setUntil(time.Time{})
		if led {
			p.log.Info().Msg("another instance follows the schedules of the pool")
		}
		p.seen = nil
		return err
	}
	if !led {
		p.log.Info().Msg("following the schedules of the pool")
		p.seen = nil
	}
	if err := errors.Join(err, p.look(conn, ioctx, contents, global)); err != nil {
		return err
	}
	p.setUntil(p.lead.Until())
	return nil
}

// look finds the images anew when the schedules have changed, and now and then.
func (p *pool) look(conn *rados.Conn, ioctx *rados.IOContext, contents schedules.Contents, global string) error {
	stock, err := schedules.ReadOmap(ioctx, stockObject)
	if err != nil {
		return err
	}
	seen := map[string]string{"global": global}
	for k, v := range contents.Schedules {
		seen["ours "+k] = v
	}
	for k, v := range stock {
		seen["stock "+k] = v
	}
	fresh := p.seen != nil && maps.Equal(seen, p.seen)
	if fresh && time.Since(p.read) < max(unitsInterval, 20*p.took) {
		return nil
	}
	begun := time.Now()
	f := finder{conn: conn, pool: p.name, id: p.id, namespaces: p.m.cfg.Namespaces, stored: contents.Schedules, global: global, stock: stock}
	units, err := f.all(ioctx)
	if err != nil {
		return err
	}
	if err := p.sweep(conn, contents.Schedules, units); err != nil {
		p.log.Debug().Err(err).Msg("removing schedules of images that are gone")
	}
	p.seen, p.read, p.took = seen, begun, time.Since(begun)
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.domain = plugins.ScheduleDomain{Name: p.name, Stored: values(contents, global), Units: units, Leader: p.self}
	p.m.changedLocked()
	return nil
}

// sweep removes schedules of images that are no more.
func (p *pool) sweep(conn *rados.Conn, stored map[string]string, units []plugins.ScheduleUnit) error {
	for key, value := range stored {
		_, space, id, err := splitUnit(key)
		if err != nil || slices.ContainsFunc(units, func(u plugins.ScheduleUnit) bool { return u.ID == key }) {
			continue
		}
		inner, err := openSpace(conn, p.name, space)
		if err != nil {
			return err
		}
		_, err = inner.Stat(store.HeaderObject(id))
		inner.Destroy()
		if !ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err := p.store.Swap(key, value, ""); err != nil {
			return err
		}
		p.log.Info().Str("level", key).Msg("the schedule of an image that is gone is removed")
	}
	return nil
}

func (p *pool) setUntil(t time.Time) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.until.IsZero() != t.IsZero() {
		p.m.changedLocked()
	}
	p.until = t
}

func (p *pool) noteError(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.domain.Error != text {
		p.domain.Error = text
		p.m.changedLocked()
	}
}

// resign lets another follow the schedules at once.
func (p *pool) resign(conn *rados.Conn) {
	if p.lead == nil || !p.lead.Leading() {
		return
	}
	p.setUntil(time.Time{})
	p.seen = nil
	ioctx, err := conn.OpenIOContext(p.name)
	if err == nil {
		defer ioctx.Destroy()
		p.store = schedules.NewStore(ioctx)
		err = p.lead.Resign()
	}
	if err != nil {
		p.log.Debug().Err(err).Msg("giving up the schedules of the pool")
		return
	}
	p.log.Info().Msg("no longer following the schedules of the pool")
}

// state is what the host has to know.
func (m *Manager) state(known uint64) plugins.ScheduleState {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, p := range m.pools {
		if !p.until.IsZero() && now.After(p.until) {
			p.until = time.Time{}
			m.changedLocked()
		}
	}
	out := plugins.ScheduleState{Generation: m.generation}
	if known == m.generation && known != 0 {
		return out
	}
	for _, id := range slices.Sorted(maps.Keys(m.pools)) {
		p := m.pools[id]
		if p.until.IsZero() {
			continue
		}
		d := p.domain
		d.Units = slices.Clone(d.Units)
		for i, u := range d.Units {
			if j := p.jobs[u.ID]; j != nil {
				d.Units[i].Busy, d.Units[i].Failures, d.Units[i].Error = j.busy, j.failures, j.err
			}
		}
		out.Domains = append(out.Domains, d)
	}
	return out
}

// run begins to make a mirror snapshot of an image.
func (m *Manager) run(id string) error {
	poolID, space, image, err := splitUnit(id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pools[poolID]
	if p == nil || !p.leads() {
		return fmt.Errorf("schedules of pool %d are not followed here: %w", poolID, syscall.ESTALE)
	}
	j := p.jobs[id]
	if j == nil {
		j = &job{}
		p.jobs[id] = j
	}
	if j.busy {
		return fmt.Errorf("a snapshot of %s is being made: %w", id, syscall.EALREADY)
	}
	j.busy = true
	m.changedLocked()
	m.cfg.Go(func() { p.snapshot(j, id, space, image) })
	return nil
}

// leads tells whether the lead is ours for sure.
func (p *pool) leads() bool { return time.Now().Before(p.until) && p.m.cfg.Lease.Valid() }

// snapshot makes a mirror snapshot with librbd, which does all that goes with it:
// takes over or asks the holder of the exclusive lock, notes the peers that need
// the snapshot, and removes what is too much.
func (p *pool) snapshot(j *job, unit, space, image string) {
	m := p.m
	m.slots <- struct{}{}
	defer func() { <-m.slots }()
	conn, release := m.cfg.Connection()
	defer release()
	m.mu.Lock()
	ours := p.leads()
	m.mu.Unlock()
	err := error(syscall.ESTALE)
	var now *plugins.ScheduleUnit
	known := false
	if inner, e := openSpace(conn, p.name, space); e != nil {
		err = e
	} else {
		defer inner.Destroy()
		if ours {
			err = makeSnapshot(inner, image)
		}
		name, e := p.unitName(unit)
		if e == nil {
			f := finder{conn: conn, pool: p.name, id: p.id}
			now, e = f.unit(inner, space, image, name)
		}
		known = e == nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changedLocked()
	j.busy = false
	i := slices.IndexFunc(p.domain.Units, func(u plugins.ScheduleUnit) bool { return u.ID == unit })
	if known && i >= 0 {
		units := slices.Clone(p.domain.Units)
		if now == nil { // demoted, disabled or removed meanwhile: that is no failure
			units, err = slices.Delete(units, i, i+1), nil
		} else {
			units[i].Last = now.Last
		}
		p.domain.Units = units
	}
	if err == nil {
		j.err = ""
		return
	}
	j.failures++
	j.err = err.Error()
	p.log.Warn().Err(err).Str("image", image).Str("namespace", space).Msg("making a scheduled mirror snapshot")
}

func (p *pool) unitName(unit string) (string, error) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	for _, u := range p.domain.Units {
		if u.ID == unit {
			return u.Name, nil
		}
	}
	return "", syscall.ENOENT
}

func makeSnapshot(ioctx *rados.IOContext, id string) (err error) {
	img, err := rbd.OpenImageById(ioctx, id, rbd.NoSnapshot)
	if err != nil {
		return fmt.Errorf("opening the image: %w", err)
	}
	defer func() {
		if e := img.Close(); e != nil && err == nil {
			err = fmt.Errorf("closing the image: %w", e)
		}
	}()
	if _, err := img.CreateMirrorSnapshot(); err != nil {
		return fmt.Errorf("making a mirror snapshot: %w", err)
	}
	return nil
}
