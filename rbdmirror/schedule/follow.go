package schedule

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/schedules"
	"cephmirror/plugins"
	"cephmirror/plugins/scheduling"
	"cephmirror/rbdmirror/store"
)

// pool is a pool whose schedules this instance follows, or would like to.
type pool struct {
	m        *Manager
	id       int64
	name     string
	log      zerolog.Logger
	shown    *scheduling.Domain
	follower *schedules.Follower
}

// Follow follows the schedules of a pool, if nobody else does, until ctx ends.
// enabled tells whether the pool is mirrored at all.
func (m *Manager) Follow(ctx context.Context, id int64, name string, enabled func() bool) {
	p := &pool{m: m, id: id, name: name, log: m.cfg.Log.With().Str("pool", name).Logger()}
	p.shown = m.board.Join(id, scheduling.Maker{Log: p.log, Go: m.cfg.Go, Make: p.snapshot})
	p.follower = &schedules.Follower{Log: p.log, Valid: m.cfg.Lease.Valid, Show: p.shown.Lead}
	failing := ""
	for wait := schedules.RoundEvery; ; {
		err := p.round(enabled())
		switch {
		case err == nil:
			failing, wait = "", schedules.RoundEvery
		case ceph.Is(err, syscall.EPERM, syscall.EACCES, syscall.EOPNOTSUPP, syscall.ENOENT):
			wait = 15 * time.Second // not for us, or gone
		case err.Error() != failing && ctx.Err() == nil:
			failing = err.Error()
			p.log.Warn().Err(err).Msg("schedules of the pool")
		}
		p.shown.Trouble(err)
		if !sleep(ctx, wait) {
			break
		}
	}
	p.shown.Leave()
	if err := p.round(false); err != nil {
		p.log.Debug().Err(err).Msg("giving up the schedules of the pool")
	}
}

// round looks once at what is stored.
func (p *pool) round(enabled bool) error {
	if !enabled && !p.follower.Leading() {
		return nil
	}
	conn, release := p.m.cfg.Connection()
	defer release()
	ioctx, err := conn.OpenIOContext(p.name)
	if err != nil {
		return fmt.Errorf("opening pool %s: %w", p.name, err)
	}
	defer ioctx.Destroy()
	kept := schedules.NewStore(ioctx)
	if !enabled {
		p.follower.Resign(kept.SwapLeader)
		return nil
	}
	contents, err := kept.Load()
	if err != nil {
		return err
	}
	global := p.m.globalValue()
	self := p.m.cfg.Instance()
	var stock map[string]string
	return p.follower.Round(schedules.Round{
		Swap: kept.SwapLeader, Self: self, Contents: contents,
		Wanted: len(contents.Schedules) > 0 || global != "",
		Rules: func() (map[string]string, error) {
			if stock, err = schedules.ReadOmap(ioctx, stockObject); err != nil {
				return nil, err
			}
			rules := map[string]string{"global": global}
			for k, v := range contents.Schedules {
				rules["ours "+k] = v
			}
			for k, v := range stock {
				rules["stock "+k] = v
			}
			return rules, nil
		},
		Look: func() error {
			f := finder{conn: conn, pool: p.name, id: p.id, namespaces: p.m.cfg.Namespaces, stored: contents.Schedules, global: global, stock: stock}
			units, err := f.all(ioctx)
			if err != nil {
				return err
			}
			if err := p.sweep(conn, kept, contents.Schedules, units); err != nil {
				p.log.Debug().Err(err).Msg("removing schedules of images that are gone")
			}
			p.shown.Show(plugins.ScheduleDomain{Name: p.name, Stored: values(contents, global), Units: units, Leader: self})
			return nil
		},
	})
}

// sweep removes schedules of images that are no more.
func (p *pool) sweep(conn *rados.Conn, kept *schedules.Store, stored map[string]string, units []plugins.ScheduleUnit) error {
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
		if err := kept.Swap(key, value, ""); err != nil {
			return err
		}
		p.log.Info().Str("level", key).Msg("the schedule of an image that is gone is removed")
	}
	return nil
}

// snapshot makes a mirror snapshot of an image.
func (p *pool) snapshot(u plugins.ScheduleUnit) (plugins.ScheduleUnit, error) {
	_, space, image, err := splitUnit(u.ID)
	if err != nil {
		return u, err
	}
	conn, release := p.m.cfg.Connection()
	defer release()
	inner, err := openSpace(conn, p.name, space)
	if err != nil {
		return u, err
	}
	defer inner.Destroy()
	err = makeSnapshot(inner, image)
	f := finder{conn: conn, pool: p.name, id: p.id}
	now, lookErr := f.unit(inner, space, image, u.Name)
	switch {
	case lookErr != nil: // it shows soon
	case now == nil: // demoted, disabled or removed meanwhile: that is no failure
		return u, scheduling.ErrGone
	default:
		u.Last = now.Last
	}
	return u, err
}
