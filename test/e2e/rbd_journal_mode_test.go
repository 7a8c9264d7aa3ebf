package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/test/rbdimage"
)

// TestRBDJournalModes mirrors an image now by its journal and now by snapshots.
func TestRBDJournalModes(t *testing.T) {
	needLong(t)
	e := need(t)
	p, _ := e.journalPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{})
	m.Fill(1, 0, 5*mib)
	for round := range uint64(2) {
		p.follow(t, m)
		m.Fill(10+round, mib, mib)
		p.sameJournal(t, m)
		p.rbd(t, e.a, "mirror", "image", "disable", m.Spec())
		p.rbd(t, e.a, "mirror", "image", "enable", m.Spec(), "snapshot")
		within(t, 60*time.Second, "the copy of the first mirror snapshot", func() error {
			state, text, err := p.own(p.b, m.Name())
			if err == nil && (state != "up+replaying" || !strings.Contains(text, `"replay_state":"idle"`)) {
				err = fmt.Errorf("status %s, %s", state, text)
			}
			return err
		})
		p.equal(t, m, tested())
		p.rbd(t, e.a, "mirror", "image", "disable", m.Spec())
	}
}

// TestRBDJournalTuned changes at the primary how its journal is replayed.
func TestRBDJournalTuned(t *testing.T) {
	needLong(t)
	e := need(t)
	notStock(t, "it has no modes of replay")
	p, _ := e.journalPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{})
	p.follow(t, m)
	m.Fill(1, 0, 5*mib)
	tells := func(what string) {
		t.Helper()
		within(t, 20*time.Second, "the status to tell "+what, func() error {
			_, text, err := p.own(p.b, m.Name())
			if err == nil && !strings.Contains(text, what) {
				err = fmt.Errorf("it tells %s", text)
			}
			return err
		})
	}
	tells(`"replay_mode":"merged"`)
	m.SetMeta("cephmirror.replay_mode", "strict")
	tells(`"replay_mode":"strict"`)
	m.Fill(2, mib, 5*mib)
	p.sameJournal(t, m)
	m.SetMeta("cephmirror.replay_mode", "merged")
	tells(`"replay_mode":"merged"`)

	const delay = 10 * time.Second
	p.rbd(t, e.a, "config", "image", "set", m.Spec(), "rbd_mirroring_replay_delay", fmt.Sprint(int(delay/time.Second)))
	p.caughtUp(t, m)
	begun := time.Now()
	m.Edit(func(img *rbd.Image) error {
		if _, err := img.WriteAt([]byte("late"), 9*mib); err != nil {
			return err
		}
		return img.Flush()
	})
	tells(`"waiting_for":"entries to be as old as is asked for"`)
	p.sameJournal(t, m)
	if took := time.Since(begun); took < delay-time.Second {
		t.Errorf("replayed after %v instead of %v", took, delay)
	}
}
