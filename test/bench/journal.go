package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"

	"cephmirror/admin"
	"cephmirror/test/bed"
	"cephmirror/test/rbdimage"
)

// journalPlan says what is measured of images that are mirrored by their journal.
type journalPlan struct {
	backlog     int // writes of 4 KiB each, at random
	backlogSize uint64
	live        time.Duration // of writing without a pause
	large       uint64        // bytes written in sequence, 4 MiB each
	images      int           // written to at once
	imageSize   uint64
	together    time.Duration // for how long
}

func fullJournalPlan() journalPlan {
	return journalPlan{
		backlog: 20480, backlogSize: 256 << 20, live: time.Minute, large: 1 << 30,
		images: 50, imageSize: 16 << 20, together: 30 * time.Second,
	}
}

func quickJournalPlan() journalPlan {
	return journalPlan{
		backlog: 2048, backlogSize: 64 << 20, live: 8 * time.Second, large: 64 << 20,
		images: 5, imageSize: 16 << 20, together: 6 * time.Second,
	}
}

// What a daemon can be told besides.
const (
	strict = "ours, one at a time"
	tuned  = "stock, tuned"
)

// contender is a daemon as it is started for a measurement.
type contender struct {
	name, who string
	args      []string // of the daemon
	writer    []string // of who writes the journal
}

// contenders are the daemons of a case, the stock one first.
func (p plan) contenders(more ...contender) (list []contender) {
	for _, c := range append([]contender{{name: stock, who: stock}, {name: ours, who: ours}}, more...) {
		if p.wants(c.who) {
			list = append(list, c)
		}
	}
	slices.SortStableFunc(list, func(a, b contender) int { return -cmp.Compare(a.who, b.who) })
	return list
}

// tunedStock is the stock daemon with what its documentation offers: progress told
// of often, the journal looked at often, room for what is read ahead, and entries
// as large as writes.
func tunedStock() contender {
	return contender{tuned, stock, []string{
		"--rbd-mirror-journal-commit-age=1", "--rbd-mirror-journal-poll-age=1",
		"--rbd-mirror-memory-cache-min=536870912", "--rbd-mirror-memory-target=8589934592",
	}, []string{"--rbd-journal-max-payload-bytes=8388608"}}
}

func strictOurs() contender {
	return contender{strict, ours, []string{"--cephmirror-rbd-journal-strict=true"}, nil}
}

// fullWithJournal makes an image that is full of data, mirrored by a journal that
// begins behind that. Each contender has one of its own: the first one on an
// image would find other objects than the later ones.
func (r *rbdLab) fullWithJournal(ctx context.Context, name string, size uint64) error {
	if err := r.image(name, size, full(ctx, size, size, rand.Uint64())); err != nil {
		return err
	}
	_, err := r.rbd(ctx, r.lab.a, "", "mirror", "image", "enable", r.pool+"/"+name, "journal")
	return err
}

// withJournal makes an image with a journal, mirrored by it.
func (r *rbdLab) withJournal(ctx context.Context, name string, size uint64, args ...string) error {
	_, err := r.rbd(ctx, r.lab.a, "", append([]string{"create", r.pool + "/" + name, "--size", fmt.Sprintf("%dB", size), "--image-feature",
		"layering,exclusive-lock,object-map,fast-diff,deep-flatten,journaling"}, args...)...)
	if err != nil {
		return err
	}
	_, err = r.rbd(ctx, r.lab.a, "", "mirror", "image", "enable", r.pool+"/"+name, "journal")
	return err
}

// behind tells whether a copy has yet to carry out something that its image's
// journal tells of, and how far it is.
func (r *rbdLab) behind(image string) (bool, rbdimage.Position, error) {
	j, err := r.a.Journal(image)
	if err != nil {
		return true, rbdimage.Position{}, err
	}
	for _, c := range j.Peers {
		if c.Peer {
			late := c.ImageID == "" || c.Syncing || j.Master.Any && (!c.Any || c.Position.Compare(j.Master.Position) < 0)
			return late, c.Position, nil
		}
	}
	return true, rbdimage.Position{}, nil
}

// caughtUp waits until the daemon has the images and nothing is left to be carried
// out.
func (r *rbdDaemon) caughtUp(ctx context.Context, images ...string) error {
	for _, image := range images {
		err := r.d.wait(ctx, image+" to be taken up", func(ctx context.Context) (bool, error) {
			return r.order(ctx, "status", image) == nil, nil
		})
		if err != nil {
			return err
		}
	}
	return r.done(ctx, images...)
}

// done waits until nothing is left to be carried out.
func (r *rbdDaemon) done(ctx context.Context, images ...string) error {
	for _, image := range images {
		looked := time.Now()
		for {
			late, at, err := r.behind(image)
			if err != nil {
				return err
			}
			if !late {
				break
			}
			if time.Since(looked) > 10*time.Minute || !r.d.proc.Running() {
				return fmt.Errorf("%s: %s stays at %+v\n%s", r.d.who, image, at, r.d.proc.Log(20))
			}
			select {
			case <-time.After(lookSoon):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// measureWork is what the processes use from now on, until the function that it
// returns is called.
func (r *rbdDaemon) measureWork() (end func(*sample) error, err error) {
	pids := r.d.family()
	for _, pid := range pids {
		resetPeak(pid)
	}
	who := r.d.parties()
	before, err := who.read()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	return func(s *sample) error {
		s.total = time.Since(began)
		after, err := who.read()
		if err != nil {
			return err
		}
		s.cpu, s.memory = after.sub(before), make(map[string]int64)
		for _, pid := range pids {
			name := r.d.party(pid)
			if name == "plugin" {
				name = rbdPlugin
			}
			s.memory[name] = max(s.memory[name], peak(pid))
		}
		return nil
	}, nil
}

// order sends a command for an image to the daemon.
func (r *rbdDaemon) order(ctx context.Context, what, image string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := admin.Call(ctx, r.d.socket, "rbd mirror "+what+" "+r.pool+"/"+image, nil, "json")
	return err
}

// backlog has a daemon carry out what was written while it did not look at the
// image: from when it is told to start until all is done, as the journal says.
func (r *rbdDaemon) backlog(ctx context.Context, image string, write func() error) (s sample, err error) {
	if err := r.caughtUp(ctx, image); err != nil {
		return s, err
	}
	if err := r.order(ctx, "stop", image); err != nil {
		return s, err
	}
	time.Sleep(time.Second) // it lets go
	if err := write(); err != nil {
		return s, err
	}
	if late, at, err := r.behind(image); err != nil || !late {
		return s, fmt.Errorf("%s: there is no backlog, at %+v: %w", r.d.who, at, errors.Join(err))
	}
	end, err := r.measureWork()
	if err != nil {
		return s, err
	}
	if err := r.order(ctx, "start", image); err != nil {
		return s, err
	}
	if err := r.done(ctx, image); err != nil {
		return s, err
	}
	return s, end(&s)
}

// backlogs measures backlogs of one image, daemon by daemon.
func backlogs(ctx context.Context, l *lab, p plan, rep *report, name string, size uint64, list []contender, count int, bench ...string) (map[string]*row, error) {
	rows := make(map[string]*row)
	err := l.withPool(ctx, func(r *rbdLab) error {
		for i, c := range list {
			image := fmt.Sprintf("backlog%d", i)
			if err := r.fullWithJournal(ctx, image, size); err != nil {
				return err
			}
			var samples []sample
			err := r.withDaemon(ctx, c.who, func(d *rbdDaemon) error {
				for range p.repeats(c.who) {
					s, err := d.backlog(ctx, image, func() error {
						args := append([]string{"bench", r.pool + "/" + image, "--io-type", "write"}, bench...)
						_, err := r.rbd(ctx, l.a, "", append(args, c.writer...)...)
						return err
					})
					if err != nil {
						return err
					}
					l.logf("%s: %.2f s, %.0f entries/s", c.name, s.total.Seconds(), float64(count)/s.total.Seconds())
					samples = append(samples, s)
				}
				return r.same(image)
			}, c.args...)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rows[c.name] = newRow(name, c.name, samples)
			rows[c.name].Figures["writes/s"] = float64(count) / rows[c.name].Median
			rep.add(rows[c.name])
		}
		return nil
	})
	return rows, err
}

// journalBacklogCase measures a backlog of small writes.
func journalBacklogCase(ctx context.Context, l *lab, p plan, rep *report) error {
	q := p.journal
	name := fmt.Sprintf("journal: backlog of %d random writes of 4 KiB", q.backlog)
	rows, err := backlogs(ctx, l, p, rep, name, q.backlogSize, p.contenders(strictOurs(), tunedStock()), q.backlog,
		"--io-size", "4K", "--io-threads", "16", "--io-total", strconv.Itoa(q.backlog*4096), "--io-pattern", "rand")
	rep.ratio(name, "rate, ours / stock", rows[stock], rows[ours], (*row).total, "at least 10")
	rep.ratio(name, "rate, ours / stock tuned", rows[tuned], rows[ours], (*row).total, "")
	rep.ratio(name, "rate, ours one at a time / stock", rows[stock], rows[strict], (*row).total, "at least 1.5")
	rep.ratio(name, "rate, ours one at a time / stock tuned", rows[tuned], rows[strict], (*row).total, "")
	if err != nil || !p.wants(bare) {
		return err
	}
	least, err := l.oneAtATime(ctx, p, name)
	if err != nil {
		return err
	}
	rep.add(least)
	rep.ratio(name, "rate, ours one at a time / bare writes one at a time", least, rows[strict], (*row).total, "about 1 is the cluster's limit")
	return nil
}

// oneAtATime measures as many writes to an image of the copy's cluster, each of
// which waits for the one before: what no replay that keeps them in order can
// be quicker than.
func (l *lab) oneAtATime(ctx context.Context, p plan, name string) (*row, error) {
	const image = "bare"
	var samples []sample
	err := l.withPool(ctx, func(r *rbdLab) error {
		path := r.pool + "/" + image
		size := fmt.Sprintf("%dB", p.journal.backlogSize)
		write := func(args ...string) error {
			_, err := r.rbd(ctx, l.b, "", append([]string{"bench", path, "--io-type", "write", "--rbd-cache=false"}, args...)...)
			return err
		}
		if _, err := r.rbd(ctx, l.b, "", "create", path, "--size", size); err != nil {
			return err
		}
		if err := write("--io-size", "4M", "--io-threads", "4", "--io-total", size, "--io-pattern", "seq"); err != nil {
			return err
		}
		for range p.repeat {
			began := time.Now()
			if err := write("--io-size", "4K", "--io-threads", "1", "--io-total", strconv.Itoa(p.journal.backlog*4096), "--io-pattern", "rand"); err != nil {
				return err
			}
			took := time.Since(began)
			l.logf("%s, one at a time: %.2f s, %.0f writes/s", bare, took.Seconds(), float64(p.journal.backlog)/took.Seconds())
			samples = append(samples, sample{total: took})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("writing one at a time: %w", err)
	}
	least := newRow(name, bare, samples)
	least.Figures["writes/s"] = float64(p.journal.backlog) / least.Median
	return least, nil
}

// journalLargeCase measures a backlog of large writes.
func journalLargeCase(ctx context.Context, l *lab, p plan, rep *report) error {
	q := p.journal
	name := fmt.Sprintf("journal: %d MiB in writes of 4 MiB", q.large>>20)
	rows, err := backlogs(ctx, l, p, rep, name, q.large, p.contenders(tunedStock()), int(q.large>>22),
		"--io-size", "4M", "--io-threads", "4", "--io-total", strconv.FormatUint(q.large, 10), "--io-pattern", "seq")
	for _, row := range rows {
		row.Bytes = int64(q.large)
	}
	rep.ratio(name, "rate, ours / stock", rows[stock], rows[ours], (*row).total, "at least 1.5")
	rep.ratio(name, "rate, ours / stock tuned", rows[tuned], rows[ours], (*row).total, "")
	return err
}

// mark is how much was written, or carried out, at a time.
type mark struct {
	at    time.Time
	count float64
}

// reached returns when a count was reached, by marks in order.
func reached(marks []mark, count float64) (time.Time, bool) {
	i, _ := slices.BinarySearchFunc(marks, count, func(m mark, c float64) int { return cmp.Compare(m.count, c) })
	switch {
	case i == len(marks):
		return time.Time{}, false
	case i == 0 || marks[i].count == marks[i-1].count:
		return marks[i].at, true
	}
	a, b := marks[i-1], marks[i]
	part := (count - a.count) / (b.count - a.count)
	return a.at.Add(time.Duration(part * float64(b.at.Sub(a.at)))), true
}

// lags returns how old what was carried out was at each look: how long ago the
// next write had been made.
func lags(wrote, did []mark) (out []float64) {
	for _, d := range did {
		if at, ok := reached(wrote, d.count+1); ok {
			out = append(out, max(0, d.at.Sub(at).Seconds()))
		} else {
			out = append(out, 0) // all that was written by then
		}
	}
	return out
}

// look notes how far the copy of an image is, in entries of an epoch and later.
func (r *rbdLab) look(image string, epoch uint64) (mark, error) {
	_, at, err := r.behind(image)
	m := mark{at: time.Now()}
	switch {
	case at.Tag == epoch:
		m.count = float64(at.Entry + 1)
	case at.Tag > epoch:
		m.count = 1e15
	}
	return m, err
}

// epoch waits until the journal of an image has entries of a later epoch than it
// had, and returns its number.
func (r *rbdLab) epochAfter(ctx context.Context, image string, before uint64) (n uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = bed.Poll(ctx, "the writer", func(context.Context) (bool, error) {
		n, err = r.a.NewestEpoch(image)
		return n > before, err
	})
	return n, err
}

// journalLiveCase measures how far a copy is behind an image that is written to
// all the time.
func journalLiveCase(ctx context.Context, l *lab, p plan, rep *report) error {
	q := p.journal
	name := fmt.Sprintf("journal: random writes of 4 KiB for %.0f s", q.live.Seconds())
	rows := make(map[string]*row)
	err := l.withPool(ctx, func(r *rbdLab) error {
		for i, c := range p.contenders() {
			image := fmt.Sprintf("live%d", i)
			if err := r.fullWithJournal(ctx, image, q.backlogSize); err != nil {
				return err
			}
			var s sample
			var rate, worst, middle, rest float64
			err := r.withDaemon(ctx, c.who, func(d *rbdDaemon) (err error) {
				if err := d.caughtUp(ctx, image); err != nil {
					return err
				}
				end, err := d.measureWork()
				if err != nil {
					return err
				}
				wrote, did, ended, err := d.live(ctx, image, q.live)
				if err != nil {
					return err
				}
				if err := d.done(ctx, image); err != nil {
					return err
				}
				rest = time.Since(ended).Seconds()
				if err := end(&s); err != nil {
					return err
				}
				last := wrote[len(wrote)-1]
				rate = last.count / last.at.Sub(wrote[0].at).Seconds()
				all := lags(wrote, did)
				worst, middle = slices.Max(all), median(all)
				l.logf("%s: %.0f writes/s, %.2f s behind at most, %.2f s as a rule, gone after %.2f s", c.name, rate, worst, middle, rest)
				return r.same(image)
			}, c.args...)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			row := newRow(name, c.name, []sample{s})
			row.Figures["primary's writes/s"], row.Figures["s behind at most"] = rate, worst
			row.Figures["s behind, median"], row.Figures["s until equal, after the end"] = middle, rest
			rows[c.name] = row
			rep.add(row)
			if c.name == ours {
				rep.find(name, "behind at most", worst, "s", "under 2 s")
				rep.find(name, "from the end of writing until the copy is equal", rest, "s", "within 2 s")
			}
		}
		return nil
	})
	rep.ratio(name, "the primary's rate, with ours / with stock", rows[ours], rows[stock], func(r *row) float64 { return r.Figures["primary's writes/s"] }, "at least 1")
	return err
}

// live runs the stock benchmark for a while and notes how far it, and the copy,
// came.
func (r *rbdDaemon) live(ctx context.Context, image string, long time.Duration) (wrote, did []mark, ended time.Time, err error) {
	before, err := r.a.NewestEpoch(image)
	if err != nil {
		return nil, nil, ended, err
	}
	c := r.lab.a
	// It prints the number of writes each second, when it is not made to keep it.
	cmd := c.Command(ctx, "stdbuf", "-oL", "rbd", "--cluster", c.Name(), "bench", r.pool+"/"+image, "--io-type", "write",
		"--io-size", "4K", "--io-threads", "16", "--io-total", "1T", "--io-pattern", "rand")
	var text strings.Builder
	cmd.Stderr = &text
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, ended, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, ended, err
	}
	var g errgroup.Group
	g.Go(func() error {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 4 {
				continue
			}
			_, errA := strconv.ParseFloat(fields[0], 64)
			n, errB := strconv.ParseFloat(fields[1], 64)
			if errA == nil && errB == nil {
				wrote = append(wrote, mark{time.Now(), n})
			}
		}
		return lines.Err()
	})
	began := time.Now()
	epoch, err := r.epochAfter(ctx, image, before)
	stopped := false
	for err == nil && !stopped {
		if time.Since(began) > long {
			err, stopped = cmd.Process.Signal(syscall.SIGINT), true
			break
		}
		var m mark
		m, err = r.look(image, epoch)
		did = append(did, m)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = cmd.Process.Kill()
	}
	scanErr := g.Wait()
	waitErr := cmd.Wait()
	ended = time.Now()
	if err == nil && len(wrote) < 3 {
		err = errors.Join(fmt.Errorf("the writer tells nothing: %s", strings.TrimSpace(text.String())), scanErr, waitErr)
	}
	if err != nil {
		return nil, nil, ended, err
	}
	// What came before the first line was told of is not known.
	did = slices.DeleteFunc(did, func(m mark) bool { return m.at.Before(wrote[0].at) })
	if len(did) == 0 {
		err = errors.New("nobody looked at what was carried out")
	}
	return wrote, did, ended, err
}

// journalManyCase measures many images that are written to at once.
func journalManyCase(ctx context.Context, l *lab, p plan, rep *report) error {
	q := p.journal
	name := fmt.Sprintf("journal: %d images written to for %.0f s", q.images, q.together.Seconds())
	err := l.withPool(ctx, func(r *rbdLab) error {
		names := make([]string, q.images)
		var g errgroup.Group
		g.SetLimit(4)
		for i := range names {
			names[i] = fmt.Sprintf("image%d", i)
			// Small objects of the journal: 50 times 64 MiB are more than there is.
			g.Go(func() error { return r.withJournal(ctx, names[i], q.imageSize, "--journal-object-size", "1M") })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		for _, c := range p.contenders() {
			var s sample
			var worst, ends []float64
			var writes int
			err := r.withDaemon(ctx, c.who, func(d *rbdDaemon) error {
				if err := d.caughtUp(ctx, names...); err != nil {
					return err
				}
				end, err := d.measureWork()
				if err != nil {
					return err
				}
				if worst, ends, writes, err = d.together(ctx, names, q.together, int64(q.imageSize)); err != nil {
					return err
				}
				if err := end(&s); err != nil {
					return err
				}
				l.logf("%s: %d writes; behind at most: %.2f s as a rule, %.2f s of the slowest; equal after %.2f s, the slowest after %.2f s", c.name, writes,
					median(worst), slices.Max(worst), median(ends), slices.Max(ends))
				for _, name := range names {
					if err := r.same(name); err != nil {
						return err
					}
				}
				return nil
			}, c.args...)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			row := newRow(name, c.name, []sample{s})
			row.Figures["writes/s"] = float64(writes) / q.together.Seconds()
			row.Figures["s behind at most, median"], row.Figures["s behind at most, slowest"] = median(worst), slices.Max(worst)
			row.Figures["s until equal, median"], row.Figures["s until equal, slowest"] = median(ends), slices.Max(ends)
			rep.add(row)
			if c.name == ours {
				rep.find(name, "behind at most, slowest image / median", slices.Max(worst)/max(median(worst), 1e-3), "x", "under 2")
				rep.find(name, "peak resident memory, "+rbdPlugin, float64(row.Memory[rbdPlugin])/1e6, "MB", "under 500 MB")
			}
		}
		return nil
	})
	return err
}

// together writes to images at once. It returns for each how far its copy was
// behind at most, and how long it took after the end until it was equal.
func (r *rbdDaemon) together(ctx context.Context, names []string, long time.Duration, size int64) (worst, ends []float64, writes int, err error) {
	wrote, did := make([][]mark, len(names)), make([][]mark, len(names))
	epochs := make([]uint64, len(names))
	for i, name := range names {
		if epochs[i], err = r.a.NewestEpoch(name); err != nil {
			return nil, nil, 0, err
		}
	}
	began := time.Now()
	deadline := began.Add(long)
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	writing := len(names)
	for i, name := range names {
		g.Go(func() error {
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				writing--
			}()
			return r.a.Open(name, func(img *rbd.Image) error {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for n := 1; time.Now().Before(deadline) && ctx.Err() == nil; n++ {
					if _, err := img.WriteAt(rbdimage.Data(rng.Uint64(), 4096), rng.Int64N(size/4096)*4096); err != nil {
						return err
					}
					wrote[i] = append(wrote[i], mark{time.Now(), float64(n)})
				}
				return nil
			})
		})
	}
	finished := make([]time.Time, len(names))
	g.Go(func() error {
		own := make([]uint64, len(names))
		for left := len(names); left > 0 && ctx.Err() == nil; {
			mu.Lock()
			over := writing == 0
			mu.Unlock()
			for i, name := range names {
				if !finished[i].IsZero() {
					continue
				}
				if own[i] == 0 {
					n, err := r.a.NewestEpoch(name)
					if err != nil {
						return err
					}
					if n > epochs[i] {
						own[i] = n
					}
					continue
				}
				late, at, err := r.behind(name)
				if err != nil {
					return err
				}
				now := time.Now()
				count := 0.0
				if at.Tag == own[i] {
					count = float64(at.Entry + 1)
				}
				did[i] = append(did[i], mark{now, count})
				if over && !late {
					finished[i] = now
					left--
				}
			}
			if !r.d.proc.Running() || time.Since(deadline) > 10*time.Minute {
				return fmt.Errorf("%s: %d images are not equal\n%s", r.d.who, left, r.d.proc.Log(20))
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, nil, 0, err
	}
	for i := range names {
		if len(did[i]) == 0 || len(wrote[i]) == 0 {
			return nil, nil, 0, fmt.Errorf("nothing was written to %s", names[i])
		}
		worst = append(worst, slices.Max(lags(wrote[i], did[i])))
		ends = append(ends, max(0, finished[i].Sub(wrote[i][len(wrote[i])-1].at).Seconds()))
		writes += len(wrote[i])
	}
	return worst, ends, writes, nil
}
