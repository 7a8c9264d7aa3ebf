package fsmirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/uuid"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/fsmirror/process"
	"cephmirror/internal/ceph"
)

// A worker that dies leaves its watches in the local cluster until they time
// out, and MDS sessions on both sides, until the MDSs drop them after minutes.
// Until then its locks of directories on the peer are held, clients of either
// file system wait for what it had cached, and an MDS that is restarted waits
// for it to come back before it serves anybody. So every instance and every
// session of ours is noted on the object that all workers watch, with what it
// takes to know that its process is dead. Workers on that machine then end the
// sessions, and take the instance for gone.

// The omap keys of such notes begin so; the stock control plane passes them
// over. A session is named by its uuid, an instance by its id.
const (
	sessionPrefix  = "cephmirror_session_"
	instancePrefix = "cephmirror_instance_"
	// gonePrefix is for instances that were shut out: they may only be frozen,
	// but their sessions are to be ended all the same.
	gonePrefix = "cephmirror_gone_"
)

// note is the value of such a key.
type note struct {
	process.ID
	// Of an instance: what its operator calls it, and whether it is drained.
	Name  string `json:"name,omitempty"`
	Drain bool   `json:"drain,omitempty"`
	// Of a session: whose.
	Instance string `json:"instance,omitempty"`
	// Of a session: where, and whose. A peer may have got another uuid since.
	Peer    string `json:"peer,omitempty"` // uuid
	Client  string `json:"client,omitempty"`
	Cluster string `json:"cluster,omitempty"`
	FSName  string `json:"fs,omitempty"`
}

// notebook keeps the notes.
type notebook struct {
	mu    sync.RWMutex
	ioctx *rados.IOContext // nil: closed
}

var errNotebookClosed = fmt.Errorf("the notes are closed: %w", syscall.ENOTCONN)

func (b *notebook) open(ioctx *rados.IOContext) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ioctx = ioctx
}

func (b *notebook) set(key string, n note) error {
	value, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return b.write(key, string(value))
}

func (b *notebook) remove(key string) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.ioctx == nil {
		return errNotebookClosed
	}
	if err := b.ioctx.RmOmapKeys(dirstore.Object, []string{key}); err != nil {
		return fmt.Errorf("removing note %s from object %s: %w", key, dirstore.Object, err)
	}
	return nil
}

// list returns the notes whose keys begin with prefix by the rest of their keys.
func (b *notebook) list(prefix string) (map[string]note, error) {
	values, err := b.read(prefix)
	if err != nil {
		return nil, err
	}
	notes := make(map[string]note, len(values))
	for key, value := range values {
		var n note
		if json.Unmarshal([]byte(value), &n) == nil {
			notes[key] = n
		}
	}
	return notes, nil
}

// setGone notes that an instance was shut out.
func (b *notebook) setGone(instance string) error { return b.set(gonePrefix+instance, note{}) }

// place is a file system in which we have sessions.
type place struct {
	peer   dirstore.Peer // of the local file system, our client alone
	fsName string
	client func() (*rados.Conn, error)
}

func (f *filesystem) home() place {
	_, name := spec(f.eng.cfg).Identity()
	return place{peer: dirstore.Peer{Client: name}, fsName: f.name, client: f.eng.localClient}
}

func (f *filesystem) abroad(spec dirstore.Peer) place {
	return place{
		peer: spec, fsName: spec.FSName,
		client: func() (*rados.Conn, error) { return f.eng.peerClient(f.name, spec) },
	}
}

// note returns what is noted of a session there.
func (at place) note(self process.ID, instance string) note {
	return note{
		ID: self, Instance: instance, Peer: at.peer.UUID, Client: at.peer.Client, Cluster: at.peer.Cluster, FSName: at.peer.FSName,
	}
}

// holds tells whether a noted session is there, and of the same client: no other
// may end it. A peer that was removed and added again has another uuid; current
// are those that there are now.
func (at place) holds(n note, current []dirstore.Peer) bool {
	if n.Client != at.peer.Client {
		return false
	}
	if n.Peer == at.peer.UUID {
		return true
	}
	if n.Peer == "" || at.peer.UUID == "" {
		return false
	}
	removed := !slices.ContainsFunc(current, func(p dirstore.Peer) bool { return p.UUID == n.Peer })
	return removed && n.Cluster == at.peer.Cluster && n.FSName == at.peer.FSName
}

// mountAt mounts a file system under a new session that is noted.
func (f *filesystem) mountAt(ctx context.Context, at place) (m *ceph.Mount, session string, err error) {
	self, err := process.Self()
	if err != nil {
		return nil, "", err
	}
	session = uuid.NewString()
	if err := f.notes.set(sessionPrefix+session, at.note(self, f.eng.instance)); err != nil {
		return nil, "", err
	}
	m, err = f.eng.mount(ctx, at.client, at.fsName, session)
	if err != nil {
		if half := (halfMounted{}); !errors.As(err, &half) {
			f.forget(session)
		}
		return nil, "", err
	}
	return m, session, nil
}

// forget removes the note of a session that is no more.
func (f *filesystem) forget(session string) {
	if err := f.notes.remove(sessionPrefix + session); err != nil {
		f.log.Debug().Err(err).Msg("a session that is no more stays noted")
	}
}

// deadAmong returns the instances whose process on this machine is no more, and
// earlier ones of this process.
func (f *filesystem) deadAmong(notes map[string]note) ([]string, error) {
	self, err := process.Self()
	if err != nil {
		return nil, err
	}
	var dead []string
	for id, n := range notes {
		if n.Dead(self) || n.ID == self && id != f.eng.instance {
			dead = append(dead, id)
		}
	}
	return dead, nil
}

// leftOf tells which sessions are left of workers that are no more: dead ones of
// this machine, and such as were shut out. Those that are gone are returned too.
func (f *filesystem) leftOf(self process.ID) (left func(note) bool, gone map[string]note, err error) {
	gone, err = f.notes.list(gonePrefix)
	if err != nil {
		return nil, nil, err
	}
	return func(n note) bool {
		if n.Dead(self) {
			return true
		}
		_, ok := gone[n.Instance]
		return ok && n.Instance != f.eng.instance
	}, gone, nil
}

// leftSessions returns the sessions there that workers left which are no more,
// and with own those of this process, which it then must have given up.
func (f *filesystem) leftSessions(at place, own bool) ([]string, error) {
	self, err := process.Self()
	if err != nil {
		return nil, err
	}
	isLeft, _, err := f.leftOf(self)
	if err != nil {
		return nil, err
	}
	notes, err := f.notes.list(sessionPrefix)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	current := f.specs
	f.mu.Unlock()
	var left []string
	for id, n := range notes {
		if at.holds(n, current) && (isLeft(n) || own && n.ID == self) {
			left = append(left, id)
		}
	}
	return left, nil
}

// errUnanswered: an MDS that ought to end sessions says nothing.
var errUnanswered = fmt.Errorf("the MDS does not answer: %w", syscall.ETIMEDOUT)

// endLeft ends the sessions that leftSessions names.
func (f *filesystem) endLeft(ctx context.Context, at place, own bool) error {
	return f.end(ctx, at, func() ([]string, error) { return f.leftSessions(at, own) })
}

// ending is an attempt to end sessions, of which there is one at a time for
// each place.
type ending struct {
	done     chan struct{}
	begun    time.Time
	patience time.Duration // after that another may be made
}

// end ends the sessions there that which names. It waits no longer than a mount
// may take; what takes longer goes on alone.
func (f *filesystem) end(ctx context.Context, at place, which func() ([]string, error)) error {
	limit := f.eng.options.seconds("cephfs_mirror_mount_timeout")
	ctx, cancel := context.WithTimeoutCause(ctx, max(limit, time.Second), errUnanswered)
	defer cancel()
	mine, err := f.beginEnding(ctx, at)
	if err != nil {
		return err
	}
	go func() {
		defer f.endEnding(at, mine)
		var sessions []string
		if sessions, err = which(); err == nil && len(sessions) > 0 {
			err = f.reset(at, sessions)
		}
	}()
	select {
	case <-mine.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// beginEnding waits for its turn. An attempt that the MDS forgot when it was
// restarted never ends: it is given up, the next one after twice that time.
func (f *filesystem) beginEnding(ctx context.Context, at place) (*ending, error) {
	mine := &ending{done: make(chan struct{}), patience: time.Minute}
	for {
		f.mu.Lock()
		before := f.ending[at.peer.UUID]
		mine.begun = time.Now()
		forgotten := before != nil && time.Since(before.begun) > before.patience
		if forgotten {
			mine.patience = 2 * before.patience
		}
		if before == nil || forgotten {
			f.ending[at.peer.UUID] = mine
			f.mu.Unlock()
			return mine, nil
		}
		f.mu.Unlock()
		select {
		case <-before.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (f *filesystem) endEnding(at place, mine *ending) {
	f.mu.Lock()
	if f.ending[at.peer.UUID] == mine {
		delete(f.ending, at.peer.UUID)
	}
	f.mu.Unlock()
	close(mine.done)
}

// reset ends MDS sessions there. No call of it can be cancelled.
func (f *filesystem) reset(at place, sessions []string) (err error) {
	self, err := process.Self()
	if err != nil {
		return err
	}
	conf, err := at.client()
	if err != nil {
		return err
	}
	m, err := ceph.NewMount(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Release()) }()
	if err := m.SelectFilesystem(at.fsName); err != nil {
		return err
	}
	if err := m.Init(); err != nil {
		return fmt.Errorf("initialising: %w", err)
	}
	if err := m.SetMountTimeout(uint32(f.eng.options.uint("cephfs_mirror_mount_timeout"))); err != nil {
		return fmt.Errorf("setting the mount timeout: %w", err)
	}
	// To end sessions takes a session, which must not be left in its turn.
	own := uuid.NewString()
	if err := f.notes.set(sessionPrefix+own, at.note(self, f.eng.instance)); err != nil {
		return err
	}
	m.SetUUID(own)
	defer func() {
		// A handle that was never mounted does not close its session.
		left := m.Mount()
		if left == nil {
			left = m.Unmount()
		}
		if left == nil {
			f.forget(own)
		}
		err = errors.Join(err, left)
	}()
	for _, id := range sessions {
		err := m.Reclaim(id)
		switch {
		case err == nil:
			f.log.Info().Str("session", id).Str("site", at.peer.Cluster).Msg("ended a session that was left behind")
		case ceph.Is(err, syscall.ENOENT):
		case ceph.Is(err, syscall.EPERM, syscall.EINVAL, syscall.EOPNOTSUPP):
			f.log.Warn().Err(err).Str("session", id).Str("site", at.peer.Cluster).
				Msg("a session that was left behind cannot be ended, the MDS will do so")
		default:
			return fmt.Errorf("ending session %s: %w", id, err)
		}
		f.forget(id)
	}
	return nil
}

const (
	// deathInterval is how often it is looked for what dead workers have left.
	deathInterval = 5 * time.Second
	// oblivion is after how long notes about a peer that is no more are
	// removed. Its MDS has dropped the sessions by then.
	oblivion = 10 * time.Minute
)

// pokeDeaths makes it be looked soon for what dead workers have left.
func (f *filesystem) pokeDeaths() {
	select {
	case f.deathWake <- struct{}{}:
	default:
	}
}

// endDead ends, until ctx ends, what workers leave that die.
func (f *filesystem) endDead(ctx context.Context) {
	unknown := make(map[string]time.Time)
	for {
		if f.eng.lease.Valid() {
			f.mu.Lock()
			current := f.specs
			f.mu.Unlock()
			places := []place{f.home()}
			for _, spec := range current {
				places = append(places, f.abroad(spec))
			}
			var wg sync.WaitGroup
			for _, at := range places {
				wg.Go(func() {
					if err := f.endLeft(ctx, at, false); err != nil && ctx.Err() == nil {
						f.log.Debug().Err(err).Str("site", at.peer.Cluster).Msg("ending sessions of dead workers")
					}
				})
			}
			wg.Wait()
			if err := f.dropNotes(places, current, unknown); err != nil && ctx.Err() == nil {
				f.log.Debug().Err(err).Msg("looking for notes about peers that are no more")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-f.deathWake:
		case <-time.After(deathInterval):
		}
	}
}

// dropNotes removes notes about sessions of dead workers in none of the places,
// which nobody can end. unknown has since when they were seen to be such.
func (f *filesystem) dropNotes(places []place, current []dirstore.Peer, unknown map[string]time.Time) error {
	self, err := process.Self()
	if err != nil {
		return err
	}
	isLeft, gone, err := f.leftOf(self)
	if err != nil {
		return err
	}
	notes, err := f.notes.list(sessionPrefix)
	if err != nil {
		return err
	}
	for _, n := range notes {
		delete(gone, n.Instance)
	}
	for id := range gone {
		// Nothing is left of it.
		if err := f.notes.remove(gonePrefix + id); err != nil {
			return err
		}
	}
	for id, n := range notes {
		holds := func(at place) bool { return at.holds(n, current) }
		if slices.ContainsFunc(places, holds) || !isLeft(n) {
			continue
		}
		switch since, ok := unknown[id]; {
		case !ok:
			unknown[id] = time.Now()
		case time.Since(since) > oblivion:
			delete(unknown, id)
			f.forget(id)
		}
	}
	return nil
}
