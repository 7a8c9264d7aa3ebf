package rbdmirror

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/plugins"
)

// link mirrors one pool from one peer. It has its own connections to both
// clusters, and begins anew with fresh ones when they are of no more use.
type link struct {
	eng  *Engine
	pool *pool
	spec peerSpec
	log  zerolog.Logger

	cancel context.CancelFunc
	done   chan struct{}
	retry  chan struct{} // capacity 1: try now

	mu      sync.Mutex
	spaces  []spaceSpec
	session *session // nil while there is none
	manual  bool     // stopped by command
	ended   bool
	trouble error // why there is no session
	since   time.Time
	nextTry time.Time
}

const (
	// closeLimit bounds the end of anything; what does not end by then is left
	// behind.
	closeLimit = 12 * time.Second
	// leaseGrace is how long after the end of the lease locks are still held,
	// so that a short stall of the host costs nothing.
	leaseGrace = 5 * time.Second
	retryMax   = 5 * time.Second
)

var errLeaseLost = errors.New("the host does not renew the lease")

func newLink(p *pool, spec peerSpec, spaces []spaceSpec) *link {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.ctx))
	l := &link{
		eng: p.eng, pool: p, spec: spec, spaces: spaces,
		log:    p.log.With().Str("peer", spec.uuid).Str("site", spec.site).Logger(),
		cancel: cancel,
		done:   make(chan struct{}),
		retry:  make(chan struct{}, 1),
		manual: p.eng.isManual(),
		since:  time.Now(),
	}
	go func() {
		defer close(l.done)
		l.run(ctx)
	}()
	return l
}

// stop ends the link and waits for it.
func (l *link) stop() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.cancel()
	<-l.done
	for _, topic := range []string{noteLocal, noteRemote, noteUUID, notePool, notePoller, noteSilent} {
		l.clearNote(topic)
	}
}

// The topics of a link's messages.
const (
	noteLocal  = "local"
	noteRemote = "remote"
	noteUUID   = "uuid"
	notePool   = "pool"
	notePoller = "poller"
	noteSilent = "silent"
)

func (l *link) note(topic string, at level, text string) {
	l.pool.note(topic+" "+l.spec.uuid, at, text)
}

func (l *link) clearNote(topic string) { l.pool.clearNote(topic + " " + l.spec.uuid) }

// run keeps a session until ctx ends.
func (l *link) run(ctx context.Context) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := l.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			delay = 0
		}
		delay = min(max(2*delay, time.Second), retryMax)
		wait := delay/2 + rand.N(delay)/2
		l.setTrouble(err, time.Now().Add(wait))
		l.log.Warn().Err(err).Dur("retry_in", wait).Msg("the pool is not mirrored from the peer")
		select {
		case <-time.After(wait):
		case <-l.retry:
		case <-ctx.Done():
		}
	}
}

func (l *link) serve(ctx context.Context) error {
	if err := l.eng.lease.Wait(ctx); err != nil {
		return err
	}
	s, err := openSession(ctx, l)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.session, l.trouble, l.nextTry, l.since = s, nil, time.Time{}, time.Now()
	l.mu.Unlock()
	l.eng.statusChanged()
	err = s.run()
	l.mu.Lock()
	l.session = nil
	l.mu.Unlock()
	l.eng.statusChanged()
	return err
}

func (l *link) setTrouble(err error, next time.Time) {
	l.mu.Lock()
	if l.trouble == nil {
		l.since = time.Now()
	}
	l.trouble, l.nextTry = err, next
	l.mu.Unlock()
	l.eng.statusChanged()
}

// failing tells whether there is no session.
func (l *link) failing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session == nil
}

// current returns the session, nil if there is none.
func (l *link) current() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

// setSpaces says which namespaces are mirrored.
func (l *link) setSpaces(spaces []spaceSpec) {
	l.mu.Lock()
	same := slices.Equal(l.spaces, spaces)
	l.spaces = spaces
	s := l.session
	l.mu.Unlock()
	if !same && s != nil {
		s.setSpaces()
	}
}

func (l *link) currentSpaces() []spaceSpec {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spaces
}

// isManual tells whether the link was stopped by command.
func (l *link) isManual() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.manual
}

// The commands that the stock daemon has for a pool. All return at once.

func (l *link) commandStop() {
	l.mu.Lock()
	l.manual = true
	s := l.session
	l.mu.Unlock()
	if s != nil {
		s.eachImage((*image).commandStop)
	}
	l.eng.statusChanged()
}

func (l *link) commandStart() {
	l.mu.Lock()
	l.manual = false
	s := l.session
	l.mu.Unlock()
	if s != nil {
		s.eachImage((*image).commandStart)
	}
	l.eng.statusChanged()
}

func (l *link) commandRestart() {
	l.mu.Lock()
	l.manual = false
	s := l.session
	l.mu.Unlock()
	if s != nil {
		s.eachImage((*image).commandRestart)
	} else {
		select {
		case l.retry <- struct{}{}:
		default:
		}
	}
	l.eng.statusChanged()
}

func (l *link) commandFlush() {
	if s := l.current(); s != nil && !l.isManual() {
		s.eachImage((*image).commandFlush)
	}
}

func (l *link) commandLeaderRelease() {
	if s := l.current(); s != nil {
		s.releaseLeader()
	}
}

// commands are the link's, known once it has a session.
func (l *link) commands() []plugins.CommandSpec {
	return scopeCommands(l.pool.name + " " + l.spec.site)
}
