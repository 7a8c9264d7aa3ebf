package imagesync_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/rbdmirror/imagesync"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

// TestSpeed measures a first synchronisation and one of small scattered writes.
func TestSpeed(t *testing.T) {
	rbdsite.Long(t)
	if os.Getenv("CEPHMIRROR_SPEED") == "" {
		t.Skip("set CEPHMIRROR_SPEED to measure")
	}
	a, b := newSides(t)
	p := newPair(t, a, b, rbdimage.Options{Size: 4 << 30, Features: rbdimage.Everything})
	p.useMaps = os.Getenv("CEPHMIRROR_SPEED") != "nomaps"
	defer func() {
		for _, e := range []*end{p.src, p.dst} {
			for _, s := range e.maker.Snaps() {
				e.maker.RemoveSnap(s.Name)
			}
			e.maker.Remove()
		}
	}()
	r := rand.New(rand.NewPCG(1, 1))
	p.src.maker.Fill(1, 0, 1<<30)
	run := func(what string) {
		p.src.maker.Snap(strings.ReplaceAll(what, " ", "-"))
		job := p.prepare()
		used := cpu(t, a, b)
		begin := time.Now()
		must(t, imagesync.Run(context.Background(), job))
		took := time.Since(begin)
		p.start = job.Targets[len(job.Targets)-1].Remote
		s := job.Stats
		t.Logf("%s: %v, cpu %s, %d listed, %d reads of %d bytes, %d writes of %d bytes, %d map writes, %s", what, took.Round(time.Millisecond), used(),
			s.Listed.Load(), s.ReadOps.Load(), s.Read.Load(), s.WriteOps.Load(), s.Written.Load(), s.MapWrites.Load(), memory())
	}
	run("first")
	for i := range 2 {
		p.src.maker.Edit(func(img *rbd.Image) error {
			for range 16384 {
				if _, err := img.WriteAt(rbdimage.Data(r.Uint64(), 4096), r.Int64N(1<<30/4096)*4096); err != nil {
					return err
				}
			}
			return nil
		})
		run(fmt.Sprintf("scattered %d", i))
	}
	p.compare()
}

// cpu returns how to tell what both OSDs and this process have used since.
func cpu(t *testing.T, sides ...side) func() string {
	t.Helper()
	seconds := func(pid int) float64 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		_, after, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(after)
		var user, system float64
		_, err = fmt.Sscan(f[11]+" "+f[12], &user, &system)
		must(t, err)
		return (user + system) / 100
	}
	pids := []int{os.Getpid()}
	for _, s := range sides {
		pids = append(pids, s.Cluster.Daemon("osd.0").Pid())
	}
	before := make([]float64, len(pids))
	for i, p := range pids {
		before[i] = seconds(p)
	}
	return func() string {
		out := make([]string, len(pids))
		for i, p := range pids {
			out[i] = fmt.Sprintf("%.2f", seconds(p)-before[i])
		}
		return strings.Join(out, "/")
	}
}

func memory() string {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmHWM") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	return ""
}
