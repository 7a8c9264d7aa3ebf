package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"cephmirror/test/bed"
	"cephmirror/test/bench/tree"
)

// plan says what is measured, and how large.
type plan struct {
	who         []string
	repeat      int // of what is quick
	repeatStock int // of the stock daemon's first synchronisations, which are not
	variants    []variant
	copies      []variant

	small   tree.Uniform // first synchronisation, then 1 % changed
	changes int
	many    tree.Uniform // each directory mirrored by itself
	idle    tree.Uniform
	idleFor time.Duration
	notices int
	block   int64 // size of the file of which 4 KiB change
	large   int64 // size of the new file

	rbd     rbdPlan
	journal journalPlan
	workers workersPlan
}

func fullPlan() plan {
	return plan{
		repeat: 3, repeatStock: 1,
		variants: []variant{{8, true}, {24, true}, {24, false}},
		copies:   []variant{{4, false}, {16, false}},
		small:    tree.Uniform{Dir: "/bench-small", Dirs: 50, Files: 200, Size: 4 << 10},
		changes:  5,
		many:     tree.Uniform{Dir: "/bench-many", Dirs: 20, Files: 500, Size: 4 << 10},
		idle:     tree.Uniform{Dir: "/bench-idle", Dirs: 1000, Files: 1, Size: 4 << 10},
		idleFor:  30 * time.Second,
		notices:  15,
		block:    512 << 20,
		large:    2 << 30,
		rbd:      fullRBDPlan(),
		journal:  fullJournalPlan(),
		workers:  fullWorkersPlan(),
	}
}

func quickPlan() plan {
	p := fullPlan()
	p.repeat = 1
	p.variants, p.copies = p.variants[1:2], p.copies[:1]
	p.small.Dirs, p.small.Files = 10, 50
	p.changes = 2
	p.many.Dirs, p.many.Files = 4, 50
	p.idle.Dirs, p.idleFor, p.notices = 50, 5*time.Second, 3
	p.block, p.large = 64<<20, 128<<20
	p.rbd, p.journal, p.workers = quickRBDPlan(), quickJournalPlan(), quickWorkersPlan()
	return p
}

func (p plan) wants(who string) bool { return slices.Contains(p.who, who) }

// repeats is how often a daemon's first synchronisation is measured.
func (p plan) repeats(who string) int {
	if who == stock {
		return p.repeatStock
	}
	return p.repeat
}

// daemons are those to be measured.
func (p plan) daemons() []string {
	var out []string
	for _, who := range []string{stock, ours} {
		if p.wants(who) {
			out = append(out, who)
		}
	}
	return out
}

type benchCase struct {
	name, about string
	run         func(context.Context, *lab, plan, *report) error
}

// onlyWhenAsked tells which cases are no part of the usual run: that would take
// a quarter of an hour more.
func onlyWhenAsked(name string) bool { return name == "workers" || name == "rbd-workers" }

func cases() []benchCase {
	return []benchCase{
		{"small", "first synchronisation of many small files, then 1 % of them changed", smallCase},
		{"many", "first synchronisation of several directories", manyCase},
		{"block", "4 KiB changed in a large file", blockCase},
		{"large", "one new large file", largeCase},
		{"idle", "many directories in which nothing happens", idleCase},
		{"workers", "directories shared by several daemons, of which one ends", workersCase},
		{"rbd-workers", "the same of RBD images", rbdWorkersCase},
		{"rbd-first", "first synchronisation of a large RBD image", rbdFirstCase},
		{"rbd-far", "the same with 50 ms more of round-trip time to the source", rbdFarCase},
		{"rbd-small", "small writes at random to an RBD image", rbdSmallCase},
		{"rbd-many", "many RBD images of which some change", rbdManyCase},
		{"journal-backlog", "small writes at random that wait in the journal of an RBD image", journalBacklogCase},
		{"journal-live", "small writes at random to an RBD image whose journal is followed", journalLiveCase},
		{"journal-large", "large writes that wait in the journal of an RBD image", journalLargeCase},
		{"journal-many", "many RBD images with journals, written to at once", journalManyCase},
	}
}

// source makes a tree on the mirrored side, calls use, and removes what is
// then left of the tree on both sides.
func (l *lab) source(ctx context.Context, dir string, fill func(*tree.FS) error, use func() error) error {
	if err := l.clear(ctx, dir); err != nil { // of an interrupted run
		return err
	}
	l.logf("filling %s", dir)
	if err := tree.With(l.a.Conf(), fill); err != nil {
		return err
	}
	if err := use(); err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, l.clear(ctx, dir))
		}
		return err
	}
	return l.clear(ctx, dir)
}

func (l *lab) clear(ctx context.Context, dir string) error {
	for _, c := range []*bed.Cluster{l.a, l.b} {
		err := tree.With(c.Conf(), func(f *tree.FS) error { return f.RemoveAll(ctx, dir) })
		if err != nil {
			return err
		}
	}
	return l.settle(ctx)
}

// clearPeer removes what was mirrored, and the snapshots that it was mirrored
// from.
func (l *lab) clearPeer(ctx context.Context, dir string, dirs ...string) error {
	err := tree.With(l.a.Conf(), func(f *tree.FS) error {
		for _, d := range dirs {
			if err := f.RemoveSnapshots(d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := tree.With(l.b.Conf(), func(f *tree.FS) error { return f.RemoveAll(ctx, dir) }); err != nil {
		return err
	}
	return l.settle(ctx)
}

// snapshot makes snapshot name of dirs on the mirrored side and takes the time
// until all are on the peer. change is applied first, untimed.
func (d *daemon) snapshot(ctx context.Context, dirs []string, name string, change func(*tree.FS) error) (sample, error) {
	var s sample
	if change != nil {
		if err := tree.With(d.a.Conf(), change); err != nil {
			return s, err
		}
	}
	from, err := tree.Mount(d.a.Conf())
	if err != nil {
		return s, err
	}
	defer from.Close()
	s, err = d.arrive(ctx, dirs, name, func() error { return from.SnapshotEach(ctx, dirs, name) })
	if err != nil {
		return s, err
	}
	if len(dirs) == 1 {
		// The counters follow the snapshot.
		err = d.wait(ctx, "its status to follow", func(ctx context.Context) (bool, error) {
			st, err := d.status(ctx)
			return st[dirs[0]].Last.Name == name, err
		})
		if err != nil {
			return s, err
		}
		if s.sync, err = d.lastSync(ctx); err != nil {
			return s, err
		}
		s.sync = min(s.sync, s.total)
	}
	d.logf("%s: %s %s after %.2f s (mksnap %.2f s, work %.2f s)", d.who, dirs[0], name,
		s.total.Seconds(), s.made.Seconds(), s.sync.Seconds())
	return s, nil
}

// first measures first synchronisations of dirs, below dir, with one daemon.
// then, if not nil, goes on after the last one.
func (l *lab) first(ctx context.Context, who string, times int, dir string, dirs []string, then func(*daemon) error) ([]sample, error) {
	var out []sample
	err := l.with(ctx, who, func(d *daemon) error {
		for i := range times {
			if err := d.track(ctx, dirs...); err != nil {
				return err
			}
			s, err := d.snapshot(ctx, dirs, "first", nil)
			if err != nil {
				return err
			}
			out = append(out, s)
			if i == times-1 && then != nil {
				if err := then(d); err != nil {
					return err
				}
			}
			if err := d.untrack(ctx, dirs...); err != nil {
				return err
			}
			if err := l.clearPeer(ctx, dir, dirs...); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// bareBest runs all variants of the bare loop and returns the quickest.
func (l *lab) bareBest(name string, variants []variant, times int, run func(variant) (sample, error)) (*row, error) {
	var best *row
	for _, v := range variants {
		var samples []sample
		for range times {
			s, err := run(v)
			if err != nil {
				return nil, err
			}
			l.logf("%s: %s: %.2f s", bare, v, s.total.Seconds())
			samples = append(samples, s)
		}
		if r := newRow(name, bare, samples); best == nil || r.Median < best.Median {
			r.How = v.String()
			best = r
		}
	}
	return best, nil
}

func smallCase(ctx context.Context, l *lab, p plan, r *report) error {
	u := p.small
	const first, changed = "first sync", "1 % changed"
	rows := make(map[string]*row)
	err := l.source(ctx, u.Dir, func(f *tree.FS) error { return f.Fill(ctx, u) }, func() error {
		if p.wants(bare) {
			if err := l.bareSmall(ctx, p, first, rows); err != nil {
				return err
			}
			r.add(rows[bare])
		}
		for _, who := range p.daemons() {
			var changes []sample
			samples, err := l.first(ctx, who, p.repeats(who), u.Dir, []string{u.Dir}, func(d *daemon) error {
				for i := range p.changes {
					s, err := d.snapshot(ctx, []string{u.Dir}, fmt.Sprintf("changed%d", i), func(f *tree.FS) error {
						return f.Rewrite(ctx, u, 100, i, rand.Uint64()>>40|1)
					})
					if err != nil {
						return err
					}
					changes = append(changes, s)
				}
				return nil
			})
			if err != nil {
				return err
			}
			rows[who] = newRow(first, who, samples)
			rows[who].Bytes = int64(u.Count() * u.Size)
			rows[who].Figures["files/s"] = float64(u.Count()) / rows[who].best()
			c := newRow(changed, who, changes)
			r.add(rows[who], c)
			if who == ours {
				r.find(changed, "slowest, from mksnap to the snapshot on the peer", slices.Max(c.Seconds), "s", "within 2 s")
			}
		}
		return nil
	})
	r.ratio(first, "stock / ours, synchronisation alone", rows[stock], rows[ours], (*row).best, "at least 5")
	r.ratio(first, "stock / ours, from mksnap on", rows[stock], rows[ours], (*row).total, "")
	r.ratio(first, "ours / bare loop, synchronisation alone", rows[ours], rows[bare], (*row).best, "at most 1.3")
	r.ratio(first, "ours / bare loop, from mksnap on", rows[ours], rows[bare], (*row).total, "")
	return err
}

func (r *row) total() float64 { return r.Median }

func (l *lab) bareSmall(ctx context.Context, p plan, name string, rows map[string]*row) error {
	u := p.small
	const snap = "bare"
	if err := tree.With(l.a.Conf(), func(f *tree.FS) error { return f.Snapshot(u.Dir, snap) }); err != nil {
		return err
	}
	best, err := l.bareBest(name, p.variants, p.repeat, func(v variant) (sample, error) {
		s, err := l.bareFiles(ctx, v, u, snap)
		if err != nil {
			return s, err
		}
		return s, l.settle(ctx)
	})
	if err != nil {
		return err
	}
	best.Bytes = int64(u.Count() * u.Size)
	best.Figures["files/s"] = float64(u.Count()) / best.best()
	rows[bare] = best
	return tree.With(l.a.Conf(), func(f *tree.FS) error { return f.RemoveSnapshot(u.Dir, snap) })
}

func manyCase(ctx context.Context, l *lab, p plan, r *report) error {
	u := p.many
	name := fmt.Sprintf("%d dirs of %d", u.Dirs, u.Files)
	rows := make(map[string]*row)
	err := l.source(ctx, u.Dir, func(f *tree.FS) error { return f.Fill(ctx, u) }, func() error {
		for _, who := range p.daemons() {
			samples, err := l.first(ctx, who, p.repeats(who), u.Dir, u.Subs(), nil)
			if err != nil {
				return err
			}
			rows[who] = newRow(name, who, samples)
			rows[who].Bytes = int64(u.Count() * u.Size)
			rows[who].Figures["files/s"] = float64(u.Count()) / rows[who].Median
			r.add(rows[who])
		}
		return nil
	})
	r.ratio(name, "stock / ours, from mksnap on", rows[stock], rows[ours], (*row).total, "at least 5")
	return err
}

func blockCase(ctx context.Context, l *lab, p plan, r *report) error {
	const dir, file = "/bench-block", "/bench-block/file"
	name := fmt.Sprintf("4 KiB in %d MiB", p.block>>20)
	rows := make(map[string]*row)
	fill := func(f *tree.FS) error {
		if err := f.MakeDirs(dir, 0o755); err != nil {
			return err
		}
		return f.WriteLarge(ctx, file, rand.Uint64(), p.block)
	}
	err := l.source(ctx, dir, fill, func() error {
		for _, who := range p.daemons() {
			var samples []sample
			var pool, osd, sent []float64
			_, err := l.first(ctx, who, 1, dir, []string{dir}, func(d *daemon) error {
				for i := range p.repeat {
					before, err := l.peerWritten(ctx)
					if err != nil {
						return err
					}
					s, err := d.snapshot(ctx, []string{dir}, fmt.Sprintf("changed%d", i), func(f *tree.FS) error {
						at := rand.Int64N(p.block>>12) << 12
						return f.Write(file, tree.Random(rand.Uint64(), 4<<10), at)
					})
					if err != nil {
						return err
					}
					st, err := d.status(ctx)
					if err != nil {
						return err
					}
					after, err := l.peerWritten(ctx)
					if err != nil {
						return err
					}
					samples = append(samples, s)
					pool = append(pool, float64(after.sub(before).Pool))
					osd = append(osd, float64(after.sub(before).OSD))
					sent = append(sent, float64(st[dir].Last.Sent))
				}
				return nil
			})
			if err != nil {
				return err
			}
			rows[who] = newRow(name, who, samples)
			rows[who].Figures["KiB to the peer's data pool"] = median(pool) / 1024
			rows[who].Figures["KiB to the peer's OSD"] = median(osd) / 1024
			if who == ours {
				rows[who].Figures["KiB sent by its own account"] = median(sent) / 1024
				r.find(name, "most written to the peer's data pool", slices.Max(pool)/(1<<20), "MiB", "at most 8 MiB")
			}
			r.add(rows[who])
		}
		return nil
	})
	r.ratio(name, "stock / ours, synchronisation alone", rows[stock], rows[ours], (*row).best, "")
	return err
}

func largeCase(ctx context.Context, l *lab, p plan, r *report) error {
	const dir, snap = "/bench-large", "bare"
	name := fmt.Sprintf("new file of %d MiB", p.large>>20)
	rows := make(map[string]*row)
	fill := func(f *tree.FS) error {
		if err := f.MakeDirs(dir, 0o755); err != nil {
			return err
		}
		if err := f.WriteLarge(ctx, dir+"/file", rand.Uint64(), p.large); err != nil {
			return err
		}
		return f.Snapshot(dir, snap)
	}
	err := l.source(ctx, dir, fill, func() error {
		if p.wants(bare) {
			best, err := l.bareBest(name, p.copies, 1, func(v variant) (sample, error) {
				s, err := l.bareLarge(ctx, v, dir+"/.snap/"+snap+"/file", p.large)
				if err != nil {
					return s, err
				}
				return s, l.settle(ctx)
			})
			if err != nil {
				return err
			}
			best.Bytes = p.large
			rows[bare] = best
			r.add(best)
		}
		err := tree.With(l.a.Conf(), func(f *tree.FS) error { return f.RemoveSnapshot(dir, snap) })
		if err != nil {
			return err
		}
		for _, who := range p.daemons() {
			samples, err := l.first(ctx, who, 1, dir, []string{dir}, nil)
			if err != nil {
				return err
			}
			rows[who] = newRow(name, who, samples)
			rows[who].Bytes = p.large
			r.add(rows[who])
		}
		return nil
	})
	r.ratio(name, "throughput ours / stock", rows[stock], rows[ours], (*row).best, "at least 1.5, or the clusters' limit")
	r.ratio(name, "throughput ours / bare loop", rows[bare], rows[ours], (*row).best, "about 1 is the clusters' limit")
	return err
}

func idleCase(ctx context.Context, l *lab, p plan, r *report) error {
	if !p.wants(ours) {
		l.logf("the idle case is for our daemon alone: the stock daemon takes hours")
		return nil
	}
	u := p.idle
	name := fmt.Sprintf("%d idle dirs", u.Dirs)
	fill := func(f *tree.FS) error {
		if err := f.Fill(ctx, u); err != nil {
			return err
		}
		return f.SnapshotEach(ctx, u.Subs(), "first")
	}
	return l.source(ctx, u.Dir, fill, func() error {
		return l.with(ctx, ours, func(d *daemon) error {
			l.logf("adding %d directories", u.Dirs)
			if err := d.track(ctx, u.Subs()...); err != nil {
				return err
			}
			err := d.wait(ctx, "all directories to be idle", func(ctx context.Context) (bool, error) {
				s, err := d.status(ctx)
				if err != nil {
					return false, err
				}
				for _, dir := range u.Subs() {
					if s[dir].State != "idle" || s[dir].Last.Name != "first" {
						return false, nil
					}
				}
				return true, nil
			})
			if err != nil {
				return err
			}
			l.logf("all directories are idle")
			resting, err := d.rest(ctx, p.idleFor)
			if err != nil {
				return err
			}
			idle := newRow(name, ours, []sample{resting})
			idle.How = "at rest"
			var samples []sample
			for i := range p.notices {
				// Not in step with the daemon's own rhythm.
				select {
				case <-time.After(rand.N(2 * time.Second)):
				case <-ctx.Done():
					return ctx.Err()
				}
				dir := u.Sub(rand.IntN(u.Dirs))
				s, err := d.snapshot(ctx, []string{dir}, fmt.Sprintf("notice%d", i), nil)
				if err != nil {
					return err
				}
				samples = append(samples, s)
			}
			noticed := newRow("snapshot among them", ours, samples)
			noticed.Figures["slowest s"] = slices.Max(noticed.Seconds)
			r.add(idle, noticed)
			r.find(name, "processor time of the plugin", idle.cores("plugin"), "cores", "less than 0.3")
			r.find(name, "slowest, from mksnap to the snapshot on the peer", slices.Max(noticed.Seconds), "s", "")
			r.find(name, "the same without mksnap and the synchronisation", slowest(samples), "s", "within 1 s")
			return nil // to untrack so many takes minutes; the map is forgotten at once
		})
	})
}

// slowest is the longest time from the end of mksnap until a synchronisation
// began, in seconds.
func slowest(samples []sample) float64 {
	var out time.Duration
	for _, s := range samples {
		out = max(out, s.total-s.made-s.sync)
	}
	return out.Seconds()
}

// rest measures a daemon that has nothing to do.
func (d *daemon) rest(ctx context.Context, long time.Duration) (sample, error) {
	var s sample
	pids := d.family()
	for _, pid := range pids {
		resetPeak(pid)
	}
	who := d.parties()
	before, err := who.read()
	if err != nil {
		return s, err
	}
	began := time.Now()
	select {
	case <-time.After(long):
	case <-ctx.Done():
		return s, ctx.Err()
	}
	after, err := who.read()
	if err != nil {
		return s, err
	}
	s.total, s.cpu, s.memory = time.Since(began), after.sub(before), make(map[string]int64)
	for _, pid := range pids {
		name := d.party(pid)
		s.memory[name] = max(s.memory[name], peak(pid))
	}
	return s, nil
}
