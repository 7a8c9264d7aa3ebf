// Package supervise keeps one plugin running: it starts it, renews its lease,
// watches its health, restarts it with back-off and stops it in order.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/host/launch"
	"cephmirror/plugins"
)

const (
	// renewals is how many times a lease is renewed in its ttl.
	renewals = 5
	// firstAttempts is how often a plugin that dies before it has ever worked
	// is tried. One that answers with an error is tried once.
	firstAttempts = 3
	// steadyTime is how long a plugin must have run for the next restart to be
	// the first of a new row.
	steadyTime = time.Minute
)

// Options say what to supervise and how patiently.
type Options struct {
	Launch launch.Spec
	Config plugins.Config
	Log    zerolog.Logger

	LeaseTTL       time.Duration
	HealthDeadline time.Duration // without an answer the plugin is killed
	StartBudget    time.Duration
	CallGrace      time.Duration // how long a call may outlive its context
	StopDeadline   time.Duration
	RestartMin     time.Duration // the first pause before a restart
	RestartMax     time.Duration

	// Session is run for each plugin that has started. Its context ends when
	// the plugin has ended or is about to be stopped; it must return then.
	Session func(context.Context, *plugins.Client, plugins.Info)
}

// State is what the supervisor is doing.
type State string

// The states of a plugin.
const (
	Starting State = "starting"
	Running  State = "running"
	Waiting  State = "waiting" // for the next try
	Stopping State = "stopping"
	Stopped  State = "stopped"
)

// Status tells where a plugin stands and why.
type Status struct {
	State       State
	Since       time.Time
	PID         int // 0 when there is no process
	Restarts    int // how often it was started again
	LastError   string
	LastErrorAt time.Time
	NextTry     time.Time // of Waiting
	LeaseUntil  time.Time // the lease that the plugin confirmed last
	Info        plugins.Info
}

// ErrDown means that no plugin runs at the moment.
var ErrDown = errors.New("plugin is not running")

// Supervisor keeps one plugin running. Run must be called once.
type Supervisor struct {
	opts Options

	mu     sync.Mutex
	status Status
	client *plugins.Client // while Running
}

// New returns a supervisor that has not started anything yet.
func New(opts Options) *Supervisor {
	return &Supervisor{opts: opts, status: Status{State: Starting, Since: time.Now()}}
}

// Status returns the present state.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Client returns the running plugin, or an error that wraps ErrDown and tells
// why there is none and what is being done about it.
func (s *Supervisor) Client() (*plugins.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	st := s.status
	text := "state " + string(st.State)
	if st.LastError != "" {
		text += "; last error: " + st.LastError
	}
	if st.State == Waiting {
		text += fmt.Sprintf("; next try in %.1f s", max(0, time.Until(st.NextTry)).Seconds())
	}
	return nil, fmt.Errorf("%w: %s", ErrDown, text)
}

func (s *Supervisor) set(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.status.State
	change(&s.status)
	if s.status.State != before {
		s.status.Since = time.Now()
	}
}

// startError is what a plugin answered to Start, or why it could not be run at
// all. At the first start it is final: the configuration is wrong or the
// cluster is not there, and the operator is still looking.
type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

// Run supervises until ctx ends, and stops the plugin then; the result is nil.
// Otherwise it is the error that kept the first start from succeeding.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.set(func(st *Status) { st.State, st.PID = Stopped, 0 })
	delay := s.opts.RestartMin
	worked := false
	for attempt := 1; ; attempt++ {
		began := time.Now()
		started, err := s.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		worked = worked || started
		var start startError
		if !worked && (errors.As(err, &start) || attempt >= firstAttempts) {
			return err
		}
		if started && time.Since(began) >= steadyTime {
			delay = s.opts.RestartMin
		}
		pause := jitter(delay)
		delay = min(2*delay, s.opts.RestartMax)
		s.set(func(st *Status) {
			st.State, st.PID, st.LeaseUntil = Waiting, 0, time.Time{}
			st.LastError, st.LastErrorAt, st.NextTry = err.Error(), time.Now(), time.Now().Add(pause)
		})
		s.opts.Log.Error().Err(err).Dur("retry_in_ms", pause).Msg("plugin failed, will be restarted")
		if !sleep(ctx, pause) {
			return nil
		}
		s.set(func(st *Status) { st.State, st.Restarts, st.NextTry = Starting, st.Restarts+1, time.Time{} })
	}
}

// jitter spreads restarts of many hosts: three quarters to five quarters of d.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once runs one plugin process from start to end. started says whether the
// plugin got as far as to work; err is why it ended, nil when ctx did.
func (s *Supervisor) once(ctx context.Context) (started bool, err error) {
	proc, err := launch.Start(ctx, s.opts.Launch)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) { // exec itself failed
			return false, startError{err}
		}
		return false, err
	}
	defer proc.Kill()
	s.set(func(st *Status) { st.PID = proc.PID() })
	log := s.opts.Log.With().Int("pid", proc.PID()).Logger()

	// life ends with the plugin; its cause says why. It does not end with ctx:
	// a plugin that is being stopped still needs its lease.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end(nil)
	wg.Go(func() {
		select {
		case <-proc.Done():
			end(errProcess)
		case <-life.Done():
		}
	})
	wg.Go(func() { end(s.renew(life, proc.Client())) })
	why := func() error {
		cause := context.Cause(life)
		proc.Kill() // also reads the rest of its output
		if errors.Is(cause, errProcess) {
			return proc.Err()
		}
		return cause
	}

	info, err := s.start(ctx, life, proc.Client())
	if err != nil {
		if life.Err() != nil {
			return false, why()
		}
		return false, err
	}
	log.Info().Str("kind", info.Kind).Str("ceph", info.CephVersion).Str("fsid", info.FSID).Str("instance", info.InstanceID).Msg("plugin started")
	s.mu.Lock()
	s.client = proc.Client()
	s.mu.Unlock()
	s.set(func(st *Status) { st.State, st.Info = Running, info })

	session, endSession := context.WithCancel(life)
	defer endSession()
	var sessions sync.WaitGroup
	sessions.Go(func() { s.opts.Session(session, proc.Client(), info) })
	select {
	case <-life.Done():
	case <-ctx.Done():
	}
	endSession()
	s.mu.Lock()
	s.client = nil
	s.mu.Unlock()
	sessions.Wait()
	if life.Err() != nil {
		return true, why()
	}
	s.set(func(st *Status) { st.State = Stopping })
	s.stop(life, proc, log)
	return true, nil
}

var errProcess = errors.New("the process ended")

func (s *Supervisor) start(ctx, life context.Context, client *plugins.Client) (plugins.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.StartBudget)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	info, err := client.Start(ctx, s.opts.Config)
	switch {
	case err == nil, life.Err() != nil, errors.Is(err, plugins.ErrGone):
		return info, err
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("plugin did not connect to the local cluster within %v", s.opts.StartBudget)
	}
	return info, startError{err}
}

// renew keeps the lease alive and judges the plugin's health. It returns why
// the plugin must be killed, or nil when life ended.
func (s *Supervisor) renew(life context.Context, client *plugins.Client) error {
	interval := s.opts.LeaseTTL / renewals
	limit := min(s.opts.LeaseTTL, s.opts.HealthDeadline)
	// silent adds up attempts instead of looking at the clock: a host that was
	// frozen itself must not blame the plugin for it.
	silent := time.Duration(0)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		sent := time.Now()
		ctx, cancel := context.WithTimeout(life, limit)
		health, err := client.RenewHealth(ctx, s.opts.LeaseTTL)
		cancel()
		switch {
		case life.Err() != nil:
			return nil
		case err != nil:
			silent += min(time.Since(sent), limit) + interval
			s.opts.Log.Warn().Err(err).Dur("silent_ms", silent).Msg("plugin did not confirm its lease")
			if silent >= s.opts.HealthDeadline {
				return fmt.Errorf("plugin was not healthy for %v and is killed: %w", s.opts.HealthDeadline, err)
			}
		case health.Overdue > s.opts.CallGrace:
			return fmt.Errorf("%q hangs in the plugin, %v beyond its budget: the plugin is killed", health.OverdueCall, health.Overdue.Round(time.Millisecond))
		default:
			silent = 0
			s.set(func(st *Status) { st.LeaseUntil = sent.Add(s.opts.LeaseTTL) })
		}
		select {
		case <-tick.C:
		case <-life.Done():
			return nil
		}
	}
}

// stop ends the plugin in order, within the deadline.
func (s *Supervisor) stop(life context.Context, proc *launch.Process, log zerolog.Logger) {
	ctx, cancel := context.WithTimeout(life, s.opts.StopDeadline)
	defer cancel()
	began := time.Now()
	if err := proc.Client().Stop(ctx); err != nil {
		log.Error().Err(err).Msg("plugin did not stop in order and is killed")
		proc.Kill()
		return
	}
	proc.Close()
	log.Info().Dur("took_ms", time.Since(began)).Msg("plugin stopped")
}
