package rbdmirror

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal"
	"cephmirror/rbdmirror/replay"
	"cephmirror/rbdmirror/replica"
)

// replayer keeps one image a copy of its primary. There is one for each way of
// mirroring.
type replayer interface {
	// Run comes back when ctx ends or there is nothing left to do. Nothing is
	// written any more then.
	Run(ctx context.Context) (replica.Outcome, error)
	// Drain waits for calls to the clusters that Run has not waited for.
	Drain()
	// Kick makes it look at both images now.
	Kick()
	// RemoteRemoved tells that the leader found the remote image gone.
	RemoteRemoved()
	// Flush waits until all that the primary has to offer by now is here.
	Flush(ctx context.Context) error
}

// image is one that this instance was given to replicate.
type image struct {
	sp  *space
	gid string
	log zerolog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // capacity 1

	mu       sync.Mutex
	closing  bool
	manual   bool // stopped by command
	restart  bool // by command
	gone     bool // nothing is left to do until it is listed again
	vanished bool // the peer was said to have it no more
	mode     cls.ImageMode
	replayer replayer
	stopRun  context.CancelFunc
	changed  time.Time // when the mode was last another
	status   replica.Status
	scope    string // by which its commands are called
	trouble  error  // of the last run, if that failed
	totals   totals
}

// totals are the counters of an image over all its replayers here.
type totals struct {
	snapshots, bytes uint64
	seconds          float64
	lastBytes        uint64
	lastSeconds      float64

	entries, payload uint64 // of journals
	latency          time.Duration
	latencies        uint64
}

func (t totals) plus(s replica.Status) totals {
	t.snapshots += s.Snapshots
	t.bytes += s.SyncBytes
	t.seconds += s.SyncSeconds
	if s.Snapshots > 0 {
		t.lastBytes, t.lastSeconds = s.LastSyncBytes, s.LastSyncSeconds
	}
	t.entries += s.Journal.Entries
	t.payload += s.Journal.Bytes
	t.latency += s.Journal.LatencySum
	t.latencies += s.Journal.LatencyCount
	return t
}

// add adds the counters of another image.
func (t *totals) add(o totals) {
	t.snapshots += o.snapshots
	t.bytes += o.bytes
	t.seconds += o.seconds
	t.entries += o.entries
	t.payload += o.payload
	t.latency += o.latency
	t.latencies += o.latencies
}

func newImage(sp *space, gid string) *image {
	ctx, cancel := context.WithCancel(sp.ctx)
	img := &image{
		sp: sp, gid: gid,
		log: sp.log.With().Str("image", gid).Logger(),
		ctx: ctx, cancel: cancel,
		done:   make(chan struct{}),
		wake:   make(chan struct{}, 1),
		manual: sp.s.link.isManual(),
	}
	img.mode = cls.ImageModeSnapshot // as good a guess as any
	img.status = replica.Status{State: replica.StateStopped, Description: "stopped"}
	go func() {
		defer close(img.done)
		img.run()
	}()
	return img
}

func (img *image) poke() {
	select {
	case img.wake <- struct{}{}:
	default:
	}
}

// run keeps a replayer at work whenever there should be one.
func (img *image) run() {
	img.setScope(img.gid)
	defer img.setScope("")
	var again <-chan time.Time
	for {
		if img.wanted() && again == nil {
			wait := img.replay()
			if wait > 0 {
				again = time.After(wait)
			}
			continue
		}
		select {
		case <-img.ctx.Done():
			return
		case <-img.wake:
			if img.takeRestart() {
				again = nil
			}
		case <-again:
			again = nil
		}
	}
}

func (img *image) wanted() bool {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.ctx.Err() == nil && !img.manual && !img.gone && !img.closing
}

func (img *image) takeRestart() bool {
	img.mu.Lock()
	defer img.mu.Unlock()
	was := img.restart
	img.restart = false
	return was
}

// replay runs one replayer. It returns how long to wait before the next.
func (img *image) replay() time.Duration {
	s := img.sp.s
	ctx, cancel := context.WithCancel(img.ctx)
	defer cancel()
	if s.member.Lease().Wait(ctx) != nil {
		return 0
	}
	mode := img.currentMode()
	r := img.newReplayer(mode)
	img.mu.Lock()
	img.replayer, img.stopRun, img.restart = r, cancel, false
	vanished := img.vanished
	img.mu.Unlock()
	if img.currentScope() == "" { // it was gone
		img.setScope(img.gid)
	}
	if vanished {
		r.RemoteRemoved()
	}
	outcome, err := r.Run(ctx)
	s.remoteCalls.Go(r.Drain)

	img.mu.Lock()
	img.totals = img.totals.plus(img.status)
	img.status.Snapshots, img.status.SyncBytes, img.status.SyncSeconds = 0, 0, 0
	img.status.Journal = replica.JournalStatus{}
	img.status.Phase = replica.Stopped
	img.replayer, img.stopRun = nil, nil
	img.trouble = err
	restart := img.restart || ctx.Err() != nil
	if outcome == replica.Gone {
		img.gone = true
	}
	img.mu.Unlock()
	s.eng.statusChanged()
	switch {
	case img.ctx.Err() != nil:
		return 0
	case outcome == replica.Gone:
		img.log.Info().Msg("nothing is left to do for the image")
		img.setScope("")
		img.sp.localStatus.forget(img.gid)
		img.sp.remoteStatus.forget(img.gid)
		return 0
	case outcome == replica.OtherMode:
		return img.changeMode(mode)
	case outcome == replica.LostLocal || outcome == replica.LostRemote:
		s.fail(fmt.Errorf("shut out of a cluster: %w", err))
		return pollInterval
	case restart:
		return 0
	}
	img.log.Warn().Err(err).Msg("replication of the image has ended, it will be started again")
	return s.eng.stateCheckInterval()
}

// newReplayer returns the replayer for a way of mirroring.
func (img *image) newReplayer(mode cls.ImageMode) replayer {
	s := img.sp.s
	cfg := replica.Config{
		Log: img.log, Lease: s.member.Lease(), GlobalID: img.gid,
		Local: replica.Site{
			Conn: s.local, Pool: s.pool.name, Namespace: img.sp.spec.local, MirrorUUID: s.localUUID, SiteName: s.localSite,
		},
		Remote: replica.Site{
			Conn: s.remote, Pool: s.pool.name, Namespace: img.sp.spec.remote, MirrorUUID: s.remoteUUID, SiteName: s.link.spec.site,
		},
		Throttle: s.member.Throttle(img.sp.spec.local),
		Memory:   s.eng.memory,
		Options:  s.eng.replayOptions(),
		Report:   img.report,
	}
	if mode == cls.ImageModeJournal {
		return journal.New(journal.Config{Config: cfg, Tune: s.eng.journalOptions, Journals: s.eng.journals})
	}
	return replay.New(cfg)
}

func (img *image) currentMode() cls.ImageMode {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.mode
}

// changeMode hands the image over to the other replayer, as it is not mirrored in
// the way that was thought. It returns how long to wait before that.
func (img *image) changeMode(was cls.ImageMode) time.Duration {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.mode = cls.ImageModeJournal
	if was == cls.ImageModeJournal {
		img.mode = cls.ImageModeSnapshot
	}
	// One after the other does not want it: it is on its way from one to another.
	soon := time.Since(img.changed) < modeRest
	img.changed = time.Now()
	img.log.Debug().Bool("journal", img.mode == cls.ImageModeJournal).Msg("the way in which the image is mirrored")
	if soon {
		return modeRest
	}
	return 0
}

// modeRest is the least time between two changes of an image's mode but the first.
const modeRest = time.Second

// report takes a status in from the replayer.
func (img *image) report(st replica.Status) {
	img.mu.Lock()
	before := img.status
	img.status = st
	img.mu.Unlock()
	if st.LocalName != "" {
		img.setScope(st.LocalName)
	}
	at := cls.SiteStatus{State: cls.StatusState(st.State), Description: st.Description}
	img.sp.localStatus.set(img.gid, at)
	img.sp.remoteStatus.set(img.gid, at)
	if before.State != st.State {
		img.sp.s.eng.statusChanged()
	}
}

// setScope makes the image's commands known under its name; "" takes them away.
func (img *image) setScope(name string) {
	scope := name
	if name != "" {
		scope = img.scopeFor(name)
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	if scope == img.scope {
		return
	}
	feed := &img.sp.s.eng.feed
	if img.scope != "" {
		feed.Publish(removed(slices.Concat(imageCommands(img.scope), furtherImageCommands(img.scope)))...)
	}
	img.scope = scope
	if scope != "" {
		feed.Publish(added(slices.Concat(imageCommands(scope), furtherImageCommands(scope)))...)
	}
}

// scopeFor is how the commands of an image with this name are called.
func (img *image) scopeFor(name string) string {
	if ns := img.sp.spec.local; ns != "" {
		return img.sp.s.pool.name + "/" + ns + "/" + name
	}
	return img.sp.s.pool.name + "/" + name
}

func (img *image) isClosing() bool {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.closing
}

// close ends all work on the image and waits for it, within ctx.
func (img *image) close(ctx context.Context) error {
	img.mu.Lock()
	img.closing = true
	img.mu.Unlock()
	img.cancel()
	select {
	case <-img.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("giving up image %s: %w", img.gid, ctx.Err())
	}
}

// listed is told whether the lists have the image.
func (img *image) listed(yes bool) {
	img.mu.Lock()
	defer img.mu.Unlock()
	if yes && img.gone {
		img.gone, img.vanished = false, false
		img.poke()
	}
	if r := img.replayer; r != nil && !yes {
		r.Kick()
	}
}

func (img *image) remoteRemoved() {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.vanished = true
	if r := img.replayer; r != nil {
		r.RemoteRemoved()
	}
}

// current returns the status with the counters of all replayers.
func (img *image) current() replica.Status {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.status
}

// The commands that the stock daemon has for an image. All return at once.

func (img *image) commandStop() {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.manual = true
	if img.stopRun != nil {
		img.stopRun()
	}
}

func (img *image) commandStart() {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.manual = false
	img.restart = true
	img.poke()
}

func (img *image) commandRestart() {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.manual = false
	img.restart = true
	if img.stopRun != nil {
		img.stopRun()
	}
	img.poke()
}

// commandCompare has all of the image compared.
func (img *image) commandCompare() error {
	img.mu.Lock()
	r := img.replayer
	img.mu.Unlock()
	switch c := r.(type) {
	case nil:
		return fmt.Errorf("the image is not being replayed: %w", syscall.EAGAIN)
	case interface{ FullCompare() }:
		c.FullCompare()
		return nil
	}
	return fmt.Errorf("only images that are mirrored by snapshots can be compared: %w", syscall.EOPNOTSUPP)
}

func (img *image) commandFlush() {
	img.mu.Lock()
	r := img.replayer
	img.mu.Unlock()
	if r == nil {
		return
	}
	img.sp.s.eng.left.Go(func() {
		ctx, cancel := context.WithTimeout(img.ctx, time.Minute)
		defer cancel()
		if err := r.Flush(ctx); err != nil && ctx.Err() == nil {
			img.log.Warn().Err(err).Msg("flushing the image")
		}
	})
}

// stateCheckInterval is how long an image that ended by itself rests.
func (e *Engine) stateCheckInterval() time.Duration {
	return max(time.Second, e.options.Seconds("rbd_mirror_image_state_check_interval"))
}

func (e *Engine) replayOptions() replica.Options {
	return replica.Options{
		BytesPerSec:  e.settings.number(settingRate, 0),
		ObjectsAhead: int(e.settings.number(settingAhead, 0)),

		RecreateOnResync: e.settings.flag(settingRecreate),
		CompareTakenOver: e.settings.flag(settingCompare),
	}
}

func (e *Engine) journalOptions() journal.Options {
	o := e.options
	return journal.Options{
		CommitAge:    o.Seconds("rbd_mirror_journal_commit_age"),
		PollAge:      o.Seconds("rbd_mirror_journal_poll_age"),
		SyncPointAge: o.Seconds("rbd_mirror_sync_point_update_age"),
		ReplayDelay:  o.Seconds("rbd_mirroring_replay_delay"),

		ResyncAfterDisconnect: o.Bool("rbd_mirroring_resync_after_disconnect"),

		Strict:      e.settings.flag(settingStrict),
		Concurrency: int(e.settings.number(settingAhead, 0)),
	}
}
