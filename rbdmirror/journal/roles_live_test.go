//go:build cgo

package journal_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

func (p *pair) rbd(s *site, args ...string) string {
	p.t.Helper()
	return s.Run(append([]string{"rbd"}, args...)...)
}

// TestRoles takes an image through all that can become of who is primary.
func TestRoles(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), "roles", rbdimage.Options{Size: 20 * mib, Features: journaling})
	m.Fill(1, 0, 3*mib)
	gid := p.enable(m)
	onB := p.play(p.b, gid)
	p.caughtUp(onB, m)
	onA := p.play(p.a, gid)
	onA.waitState(replica.StateStopped, "local image is primary")

	there := m.In(p.b.admin.Pool(p.pool))
	failOver := func(from, to *site, was, is rbdimage.Maker, before, after *player, seed uint64) {
		t.Helper()
		was.Fill(seed, 2*mib, 1*mib)
		p.rbd(from, "mirror", "image", "demote", was.Spec())
		after.waitState(replica.StateUnknown, "remote image is not primary")
		before.waitState(replica.StateUnknown, "remote image is not primary")
		p.rbd(to, "mirror", "image", "promote", is.Spec())
		is.Fill(seed+1, 5*mib, 1*mib)
		is.Snap(fmt.Sprintf("snap%d", seed))
		is.Fill(seed+2, 6*mib, 1*mib)
		before.waitState(replica.StateReplaying, "replaying, ")
		p.caughtUp(before, is)
		p.same(is)
		after.waitState(replica.StateStopped, "")
	}
	failOver(p.a, p.b, m, there, onA, onB, 10)
	failOver(p.b, p.a, there, m, onB, onA, 20)

	// By force, while it follows.
	m.Fill(30, 0, 4*mib)
	p.rbd(p.b, "mirror", "image", "promote", "--force", there.Spec())
	onB.waitState(replica.StateStopped, "")
	there.Fill(31, 0, 1*mib)
	p.rbd(p.b, "mirror", "image", "demote", there.Spec())
	onB.waitState(replica.StateError, "split-brain detected")
	id := there.ID()
	p.rbd(p.b, "mirror", "image", "resync", there.Spec())
	onB.waitState(replica.StateReplaying, "replaying, ")
	if there.ID() == id {
		t.Error("the image was not made anew")
	}
	p.caughtUp(onB, m)
	p.same(m)

	// Given up by the primary.
	p.rbd(p.a, "journal", "client", "disconnect", "--image", m.Name(), "--pool", p.pool, "--client-id", p.b.uuid(p))
	onB.waitState(replica.StateError, "disconnected")
	m.Fill(40, 0, 4*mib)
	p.rbd(p.b, "mirror", "image", "resync", there.Spec())
	onB.waitState(replica.StateReplaying, "replaying, ")
	p.caughtUp(onB, m)
	p.same(m)

	// No longer mirrored.
	p.rbd(p.a, "mirror", "image", "disable", m.Spec())
	eventually(t, 40*time.Second, "the copy to go", func() error {
		if _, err := store.NewDirectory(p.b.IO(p.pool, "")).ID(m.Name()); !ceph.Is(err, syscall.ENOENT) {
			return fmt.Errorf("it is there (%v), status %s", err, onB.status().Description)
		}
		return nil
	})
	<-onB.done
	if onB.out != replica.Gone {
		t.Errorf("ended with %v, %v", onB.out, onB.err)
	}
}

// stock runs the stock daemon on a site until stop is called.
func (p *pair) stock(s *site) (stop func(syscall.Signal)) {
	p.t.Helper()
	cmd := s.Cluster.Command(context.Background(), "rbd-mirror", "--cluster", s.name, "--id", "mirror", "-f",
		"--rbd-mirror-pool-replayers-refresh-interval=2", "--rbd-mirror-image-state-check-interval=2", "--rbd-mirror-leader-heartbeat-interval=1")
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := false
	stop = func(sig syscall.Signal) {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(sig)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
		if p.t.Failed() {
			p.t.Logf("stock daemon: %.3000s", out.String())
		}
	}
	p.t.Cleanup(func() { stop(syscall.SIGKILL) })
	return stop
}

// stockUp waits until the stock daemon replays an image.
func (p *pair) stockUp(s *site, m rbdimage.Maker) {
	p.t.Helper()
	eventually(p.t, 60*time.Second, "the stock daemon to replay", func() error {
		out, err := s.Try("rbd", "mirror", "image", "status", m.Spec())
		if err != nil || !strings.Contains(out, "up+replaying") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

// TestInterchange has the stock daemon and ours follow each other.
func TestInterchange(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	p.b.Run("ceph", "config", "set", "osd", "osd_client_watch_timeout", "3")
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), "taken", rbdimage.Options{Size: 40 * mib, Features: journaling, Order: 20})
	m.Fill(1, 0, 5*mib)
	m.Snap("early")
	gid := p.enable(m)
	there := m.In(p.b.admin.Pool(p.pool))
	x := &mix{site: p.a, m: m, rng: newRNG(t), size: 40 * mib, prot: map[string]bool{}, seed: 100, plain: true}
	stop := p.stock(p.b)
	p.stockUp(p.b, there)
	id := there.ID()
	for round := range 3 {
		for range 12 {
			x.step()
		}
		if round == 1 {
			stop(syscall.SIGKILL)
		} else {
			stop(syscall.SIGTERM)
		}
		for range 8 {
			x.step()
		}
		pl := p.play(p.b, gid)
		pl.waitState(replica.StateReplaying, "replaying, ")
		for range 8 {
			x.step()
		}
		p.caughtUp(pl, m)
		p.same(m)
		for range 5 {
			x.step()
		}
		pl.stop()
		for range 5 {
			x.step()
		}
		stop = p.stock(p.b)
		p.stockUp(p.b, there)
	}
	p.stockCaughtUp(m)
	p.same(m)
	if there.ID() != id {
		t.Error("somebody copied the image anew")
	}
}
