package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"

	"cephmirror/admin"
	"cephmirror/test/bed"
	"cephmirror/test/bench/delay"
	"cephmirror/test/rbdimage"
)

// rbdPlan says what is measured of RBD mirroring, and how large.
type rbdPlan struct {
	firstSize, firstData uint64 // first synchronisation of an image
	writes               int    // of 4 KiB each, at random
	writeSize            uint64 // of the image that they go to
	images, changed      int    // many images, of which some change in a round
	imageSize            uint64
	rounds               int
}

func fullRBDPlan() rbdPlan {
	return rbdPlan{
		firstSize: 4 << 30, firstData: 1 << 30,
		writes: 16384, writeSize: 1 << 30,
		images: 200, changed: 10, imageSize: 64 << 20, rounds: 5,
	}
}

func quickRBDPlan() rbdPlan {
	return rbdPlan{
		firstSize: 256 << 20, firstData: 64 << 20,
		writes: 512, writeSize: 64 << 20,
		images: 12, changed: 3, imageSize: 16 << 20, rounds: 2,
	}
}

const (
	rbdUser   = "rbdmirror"
	rbdPlugin = "rbd plugin" // in reports of memory
)

// rbdLab is a pool of a that is mirrored to b, by a daemon that runs on b.
type rbdLab struct {
	*lab
	pool string
	a, b rbdimage.Pool
	env  []string // for the daemon
}

// withPool makes a mirrored pool, calls use and removes the pool.
func (l *lab) withPool(ctx context.Context, use func(*rbdLab) error) (err error) {
	r := &rbdLab{lab: l, pool: "bench-rbd"}
	for _, side := range []struct {
		c *bed.Cluster
		p *rbdimage.Pool
	}{{l.a, &r.a}, {l.b, &r.b}} {
		client, err := rbdimage.Open(side.c.Name(), side.c.Conf())
		if err != nil {
			return err
		}
		defer client.Close()
		*side.p = client.Pool(r.pool)
		if err := side.c.AddRBDMirrorUser(ctx, rbdUser); err != nil {
			return err
		}
		if _, err := side.c.MonCommand(ctx, map[string]any{"prefix": "osd pool create", "pool": r.pool, "pg_num": 32}); err != nil {
			return err
		}
		defer func() {
			_, rmErr := side.c.MonCommand(context.WithoutCancel(ctx), map[string]any{
				"prefix": "osd pool rm", "pool": r.pool, "pool2": r.pool, "yes_i_really_really_mean_it": true})
			err = errors.Join(err, rmErr)
		}()
		if _, err := side.c.MonCommand(ctx, map[string]any{"prefix": "osd pool application enable", "pool": r.pool, "app": "rbd"}); err != nil {
			return err
		}
		if _, err := r.rbd(ctx, side.c, "", "mirror", "pool", "enable", r.pool, "image", "--site-name", side.c.Name()); err != nil {
			return err
		}
	}
	token, err := r.rbd(ctx, l.a, "", "mirror", "pool", "peer", "bootstrap", "create", r.pool)
	if err != nil {
		return err
	}
	if _, err := r.rbd(ctx, l.b, token, "mirror", "pool", "peer", "bootstrap", "import", r.pool, "-"); err != nil {
		return err
	}
	return use(r)
}

func (r *rbdLab) rbd(ctx context.Context, c *bed.Cluster, input string, args ...string) (string, error) {
	cmd := c.Command(ctx, append([]string{"rbd", "--cluster", c.Name()}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var text strings.Builder
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("rbd %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(text.String()))
	}
	return string(out), nil
}

// rbdDaemon is a running daemon for RBD.
type rbdDaemon struct {
	*rbdLab
	d *daemon
}

// withDaemon runs a daemon, with arguments of its own, and calls use.
func (r *rbdLab) withDaemon(ctx context.Context, who string, use func(*rbdDaemon) error, further ...string) (err error) {
	d := &daemon{lab: r.lab, who: who, socket: filepath.Join(r.lab.b.RunDir(), "b-client."+rbdUser+".asok")}
	args := []string{"rbd-mirror", "--cluster", "b", "--id", rbdUser, "-f"}
	if who == ours {
		args = slices.Concat(r.ours[:1], args, r.ours[1:])
	}
	args = append(args, further...)
	if d.proc, err = r.bed.StartProcess(bed.ProcessSpec{Name: who, Args: args, Env: r.env}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.proc.Stop(context.WithoutCancel(ctx))) }()
	err = d.wait(ctx, "the daemon to be ready", func(ctx context.Context) (bool, error) {
		_, err := admin.Call(ctx, d.socket, "rbd mirror status "+r.pool+" a", nil, "json")
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	return use(&rbdDaemon{r, d})
}

// arrived tells whether a mirror snapshot of an image, or a later one, is
// complete on b.
func (r *rbdLab) arrived(image string, snap uint64) (bool, error) {
	snaps, err := r.b.Peek(image)
	if rbdimage.Is(err, 2) {
		return false, nil
	}
	return slices.ContainsFunc(snaps, func(s rbdimage.Snap) bool { return s.Synced() && s.Source >= snap }), err
}

// measure takes the time from what making does until all mirror snapshots that
// it returns are complete.
func (r *rbdDaemon) measure(ctx context.Context, making func() (map[string]uint64, error)) (sample, error) {
	var s sample
	pids := r.d.family()
	for _, pid := range pids {
		resetPeak(pid)
	}
	who := r.d.parties()
	before, err := who.read()
	if err != nil {
		return s, err
	}
	began := time.Now()
	snaps, err := making()
	if err != nil {
		return s, err
	}
	s.made = time.Since(began)
	for image, snap := range snaps {
		looked := time.Now()
		for {
			ok, err := r.arrived(image, snap)
			if err != nil {
				return s, err
			}
			if ok {
				break
			}
			if time.Since(looked) > 10*time.Minute || !r.d.proc.Running() {
				return s, fmt.Errorf("%s: snapshot %d of %s does not arrive\n%s", r.d.who, snap, image, r.d.proc.Log(20))
			}
			select {
			case <-time.After(lookSoon):
			case <-ctx.Done():
				return s, ctx.Err()
			}
		}
	}
	s.total = time.Since(began)
	after, err := who.read()
	if err != nil {
		return s, err
	}
	s.cpu = after.sub(before)
	s.memory = make(map[string]int64)
	for _, pid := range pids {
		name := r.d.party(pid)
		if name == "plugin" {
			name = rbdPlugin
		}
		s.memory[name] = max(s.memory[name], peak(pid))
	}
	return s, nil
}

// lastSync returns how long the daemon says that an image's last
// synchronisation took.
func (r *rbdDaemon) lastSync(ctx context.Context, image string) (time.Duration, error) {
	out, err := admin.Call(ctx, r.d.socket, "counter dump", nil, "json")
	if err != nil {
		return 0, err
	}
	var dump struct {
		Images []struct {
			Labels   map[string]string
			Counters struct {
				Time float64 `json:"last_sync_time"`
			}
		} `json:"rbd_mirror_snapshot_image"`
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		return 0, fmt.Errorf("decoding the daemon's counters: %w", err)
	}
	for _, im := range dump.Images {
		if im.Labels["image"] == image && im.Labels["pool"] == r.pool {
			return time.Duration(im.Counters.Time * float64(time.Second)), nil
		}
	}
	return 0, nil
}

// written is how many bytes clients have written to b.
func (r *rbdLab) written(ctx context.Context) (int64, error) {
	var dump struct {
		OSD struct {
			Plain int64 `json:"op_w_in_bytes"`
			Other int64 `json:"op_rw_in_bytes"` // with a condition
		} `json:"osd"`
	}
	err := perfDump(ctx, r.lab.b.Daemon("osd.0"), &dump)
	return dump.OSD.Plain + dump.OSD.Other, err
}

// same fails if an image differs from its copy.
func (r *rbdLab) same(image string) error {
	diffs, err := rbdimage.Compare(rbdimage.View{Pool: r.a, Image: image, Snap: rbdimage.Head}, rbdimage.View{Pool: r.b, Image: image, Snap: rbdimage.Head})
	if err == nil && len(diffs) > 0 {
		err = fmt.Errorf("the copy of %s differs: %v", image, diffs)
	}
	return err
}

// quiet waits until snapshots that were removed are trimmed, so that the next
// measurement does not share the machine with that.
func (r *rbdLab) quiet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, c := range []*bed.Cluster{r.lab.a, r.lab.b} {
		err := bed.Poll(ctx, "snapshots to be trimmed", func(ctx context.Context) (bool, error) {
			out, err := c.MonCommand(ctx, map[string]any{"prefix": "status", "format": "json"})
			return !strings.Contains(out, "snaptrim"), err
		})
		if err != nil {
			r.logf("%s: %v, going on", c.Name(), err)
		}
	}
}

// image makes an image on a and calls fill with it open.
func (r *rbdLab) image(name string, size uint64, fill func(*rbd.Image) error) error {
	err := r.a.With(func(ctx *rados.IOContext) error {
		opts := rbd.NewRbdImageOptions()
		defer opts.Destroy()
		return rbd.CreateImage(ctx, name, size, opts)
	})
	if err != nil {
		return err
	}
	return r.a.Open(name, fill)
}

// enable begins to mirror an image and returns its first mirror snapshot.
func (r *rbdLab) enable(name string) (uint64, error) {
	err := r.a.Open(name, func(img *rbd.Image) error { return img.MirrorEnable(rbd.ImageMirrorModeSnapshot) })
	if err != nil {
		return 0, fmt.Errorf("mirroring %s: %w", name, err)
	}
	snaps, err := r.a.Peek(name)
	if err != nil {
		return 0, err
	}
	return snaps[len(snaps)-1].ID, nil
}

func (r *rbdLab) snapshot(name string) (id uint64, err error) {
	err = r.a.Open(name, func(img *rbd.Image) error {
		id, err = img.CreateMirrorSnapshot()
		return err
	})
	return id, err
}

// writeAll writes pieces of an image, several at once.
func writeAll(ctx context.Context, img *rbd.Image, pieces []int64, length int, seed uint64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, at := range pieces {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			n, err := img.WriteAt(rbdimage.Data(seed+uint64(i), length), at)
			if err == nil && n < length {
				err = fmt.Errorf("%d of %d bytes were written", n, length)
			}
			return err
		})
	}
	return g.Wait()
}

// full writes random data into whole objects, spread over the image.
func full(ctx context.Context, size, data uint64, seed uint64) func(*rbd.Image) error {
	const object = 4 << 20
	return func(img *rbd.Image) error {
		objects, wanted := int64(size/object), int64(data/object)
		var pieces []int64
		for i := range wanted {
			pieces = append(pieces, i*objects/wanted*object)
		}
		return writeAll(ctx, img, pieces, object, seed)
	}
}

// rbdFirstCase measures the first synchronisation of an image.
func rbdFirstCase(ctx context.Context, l *lab, p plan, rep *report) error {
	return l.rbdFirst(ctx, p, rep, 0, "at least 1, goal 1.3")
}

// rbdFarCase does it with a source that is far away.
func rbdFarCase(ctx context.Context, l *lab, p plan, rep *report) error {
	return l.rbdFirst(ctx, p, rep, 50*time.Millisecond, "at least 1.5")
}

// ports are those of a cluster's daemons.
func ports(ctx context.Context, c *bed.Cluster) ([]int, error) {
	var all []int
	address := regexp.MustCompile(`127\.0\.0\.1:(\d+)`)
	for _, what := range []string{"mon dump", "osd dump", "mgr dump"} {
		out, err := c.MonCommand(ctx, map[string]any{"prefix": what, "format": "json"})
		if err != nil {
			return nil, err
		}
		for _, m := range address.FindAllStringSubmatch(out, -1) {
			if port, err := strconv.Atoi(m[1]); err == nil && port != 0 {
				all = append(all, port)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// far lets use run with daemons that are some round-trip time away from a.
func (r *rbdLab) far(ctx context.Context, roundTrip time.Duration, use func() error) error {
	if roundTrip == 0 {
		return use()
	}
	list, err := ports(ctx, r.lab.a)
	if err != nil {
		return err
	}
	proxy, err := delay.New(list, roundTrip)
	if err != nil {
		return err
	}
	defer proxy.Close()
	dir, err := os.MkdirTemp("", "delay")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if r.env, err = proxy.Redirect(ctx, dir); err != nil {
		return err
	}
	err = use()
	r.env = nil
	r.logf("%d connections went through the proxy", proxy.Count())
	if err == nil && proxy.Count() == 0 {
		err = errors.New("nothing went through the proxy")
	}
	return err
}

func (l *lab) rbdFirst(ctx context.Context, p plan, rep *report, roundTrip time.Duration, wanted string) error {
	q := p.rbd
	name := fmt.Sprintf("rbd: first sync, %d MiB of %d MiB", q.firstData>>20, q.firstSize>>20)
	if roundTrip > 0 {
		name += fmt.Sprintf(", %v away", roundTrip)
	}
	rows := make(map[string]*row)
	err := l.withPool(ctx, func(r *rbdLab) error {
		return r.far(ctx, roundTrip, func() error {
			return r.measureFirst(ctx, p, rep, name, rows)
		})
	})
	rep.ratio(name, "stock / ours, from enabling on", rows[stock], rows[ours], (*row).total, wanted)
	return err
}

func (r *rbdLab) measureFirst(ctx context.Context, p plan, rep *report, name string, rows map[string]*row) error {
	q, l := p.rbd, r.lab
	l.logf("filling an image")
	const image = "first"
	if err := r.image(image, q.firstSize, full(ctx, q.firstSize, q.firstData, rand.Uint64())); err != nil {
		return err
	}
	for _, who := range p.daemons() {
		var samples []sample
		err := r.withDaemon(ctx, who, func(d *rbdDaemon) error {
			for range p.repeat {
				s, err := d.measure(ctx, func() (map[string]uint64, error) {
					id, err := r.enable(image)
					return map[string]uint64{image: id}, err
				})
				if err != nil {
					return err
				}
				if s.sync, err = d.lastSync(ctx, image); err != nil {
					return err
				}
				l.logf("%s: %.2f s (by its own account %.2f s)", who, s.total.Seconds(), s.sync.Seconds())
				samples = append(samples, s)
				if err := r.same(image); err != nil {
					return err
				}
				if err := d.forgetImage(ctx, image); err != nil {
					return err
				}
				r.quiet(ctx)
			}
			return nil
		})
		if err != nil {
			return err
		}
		rows[who] = newRow(name, who, samples)
		rows[who].Bytes = int64(q.firstData)
		rep.add(rows[who])
	}
	return nil
}

// forgetImage disables mirroring, and waits until the copy is gone.
func (r *rbdDaemon) forgetImage(ctx context.Context, image string) error {
	err := r.a.Open(image, func(img *rbd.Image) error { return img.MirrorDisable(false) })
	if err != nil {
		return fmt.Errorf("no longer mirroring %s: %w", image, err)
	}
	return r.d.wait(ctx, "the copy to be removed", func(ctx context.Context) (bool, error) {
		if there, err := r.b.Exists(image); there || err != nil {
			return false, err
		}
		out, err := r.rbd(ctx, r.lab.b, "", "trash", "ls", "--all", r.pool, "--format", "json")
		return strings.TrimSpace(out) == "[]", err
	})
}

// rbdSmallCase measures small writes at random.
func rbdSmallCase(ctx context.Context, l *lab, p plan, rep *report) error {
	q := p.rbd
	const length = 4 << 10
	name := fmt.Sprintf("rbd: %d random writes of 4 KiB over %d MiB", q.writes, q.writeSize>>20)
	rows := make(map[string]*row)
	err := l.withPool(ctx, func(r *rbdLab) error {
		for _, who := range p.daemons() {
			// The more often an image was written to in this way, the longer all
			// takes: each daemon has one of its own.
			image := "small-" + who
			l.logf("filling an image")
			if err := r.image(image, q.writeSize, full(ctx, q.writeSize, q.writeSize, rand.Uint64())); err != nil {
				return err
			}
			if _, err := r.enable(image); err != nil {
				return err
			}
			var samples []sample
			var bytes []float64
			err := r.withDaemon(ctx, who, func(d *rbdDaemon) error {
				// What is there already is not measured.
				for i := range p.repeat + 1 {
					if i > 0 {
						var pieces []int64
						for _, n := range rand.Perm(int(q.writeSize / length))[:q.writes] {
							pieces = append(pieces, int64(n)*length)
						}
						err := r.a.Open(image, func(img *rbd.Image) error { return writeAll(ctx, img, pieces, length, rand.Uint64()) })
						if err != nil {
							return err
						}
					}
					before, err := r.written(ctx)
					if err != nil {
						return err
					}
					s, err := d.measure(ctx, func() (map[string]uint64, error) {
						id, err := r.snapshot(image)
						return map[string]uint64{image: id}, err
					})
					if err != nil {
						return err
					}
					after, err := r.written(ctx)
					if err != nil {
						return err
					}
					if i == 0 {
						continue
					}
					s.total -= s.made // from the snapshot to its copy
					if s.sync, err = d.lastSync(ctx, image); err != nil {
						return err
					}
					l.logf("%s: %.2f s (by its own account %.2f s), %d MiB written", who, s.total.Seconds(), s.sync.Seconds(), (after-before)>>20)
					samples = append(samples, s)
					bytes = append(bytes, float64(after-before))
					r.quiet(ctx)
				}
				return r.same(image)
			})
			if err != nil {
				return err
			}
			rows[who] = newRow(name, who, samples)
			rows[who].Bytes = int64(q.writes) * length
			rows[who].Figures["written/changed"] = median(bytes) / float64(q.writes*length)
			rep.add(rows[who])
			if who == ours {
				rep.find(name, "bytes written to the copy's cluster for each that changed", rows[who].Figures["written/changed"], "x", "at most 2")
			}
		}
		return nil
	})
	rep.ratio(name, "stock / ours, from the snapshot on", rows[stock], rows[ours], (*row).total, "at least 2")
	return err
}

// rbdManyCase measures rounds in which some of many images change.
func rbdManyCase(ctx context.Context, l *lab, p plan, rep *report) error {
	q := p.rbd
	name := fmt.Sprintf("rbd: %d of %d images changed", q.changed, q.images)
	rows := make(map[string]*row)
	err := l.withPool(ctx, func(r *rbdLab) error {
		l.logf("making %d images", q.images)
		names := make([]string, q.images)
		latest := make(map[string]uint64)
		var mu sync.Mutex
		g := errgroup.Group{}
		g.SetLimit(8)
		for i := range names {
			names[i] = fmt.Sprintf("image%03d", i)
			g.Go(func() error {
				err := r.image(names[i], q.imageSize, full(ctx, q.imageSize, 4<<20, uint64(i)))
				if err != nil {
					return err
				}
				id, err := r.enable(names[i])
				mu.Lock()
				defer mu.Unlock()
				latest[names[i]] = id
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		// An image whose turn comes again has a snapshot more, which the next one
		// replaces: that costs a round of the monitor. None has two turns, so that
		// who is measured last has no more of that than who was first.
		turns := rand.Perm(q.images)
		for _, who := range p.daemons() {
			var samples []sample
			err := r.withDaemon(ctx, who, func(d *rbdDaemon) error {
				l.logf("%s: waiting for all images", who)
				for image, id := range latest {
					err := d.d.wait(ctx, image, func(context.Context) (bool, error) { return r.arrived(image, id) })
					if err != nil {
						return err
					}
				}
				// An image that has not been taken over yet is not quick.
				err := d.d.wait(ctx, "all images to be replayed", func(ctx context.Context) (bool, error) {
					out, err := admin.Call(ctx, d.d.socket, "rbd mirror status", nil, "json")
					return strings.Count(string(out), `"state":"Replaying"`) >= q.images, err
				})
				if err != nil {
					return err
				}
				r.quiet(ctx)
				for round := range q.rounds {
					var changed []string
					if len(turns) < q.changed {
						return fmt.Errorf("%d images are too few", q.images)
					}
					next := turns[:q.changed]
					turns = turns[q.changed:]
					for _, n := range next {
						changed = append(changed, names[n])
						err := r.a.Open(names[n], func(img *rbd.Image) error {
							return writeAll(ctx, img, []int64{rand.Int64N(int64(q.imageSize>>20)-1) << 20}, 1<<20, rand.Uint64())
						})
						if err != nil {
							return err
						}
					}
					s, err := d.measure(ctx, func() (map[string]uint64, error) {
						ids := make(map[string]uint64)
						for _, image := range changed {
							id, err := r.snapshot(image)
							if err != nil {
								return nil, err
							}
							ids[image], latest[image] = id, id
						}
						return ids, nil
					})
					if err != nil {
						return err
					}
					l.logf("%s: round %d after %.2f s", who, round, s.total.Seconds())
					samples = append(samples, s)
					if round == q.rounds-1 {
						for _, image := range changed {
							if err := r.same(image); err != nil {
								return err
							}
						}
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			rows[who] = newRow(name, who, samples)
			rep.add(rows[who])
		}
		return nil
	})
	rep.ratio(name, "stock / ours, from the first snapshot on", rows[stock], rows[ours], (*row).total, "at least 1")
	return err
}
