package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/test/rbdimage"
)

// frame is an entry as it stands in a data object of a journal.
type frame struct {
	at, size   int
	entry, tag uint64
	payload    []byte
}

// frames returns the entries of a data object.
func frames(b []byte) (list []frame) {
	mark := binary.LittleEndian.AppendUint64(nil, 0x3141592653589793)
	for at := 0; ; {
		next := bytes.Index(b[at:], mark)
		if next < 0 || len(b) < at+next+33 {
			return list
		}
		at += next
		f := frame{at: at, entry: binary.LittleEndian.Uint64(b[at+9:]), tag: binary.LittleEndian.Uint64(b[at+17:])}
		f.size = int(binary.LittleEndian.Uint32(b[at+25:])) + 33
		f.payload = b[at+29 : at+f.size-4]
		list = append(list, f)
		at += f.size
	}
}

// write returns which write of a sequence an entry has, -1 if it has none.
func (f frame) write() int {
	// Six bytes of versions, the type, six more, offset, length, and the data with its
	// own length.
	const data = 6 + 4 + 8 + 8 + 4
	if len(f.payload) < data+8 || binary.LittleEndian.Uint32(f.payload[6:]) != 1 {
		return -1
	}
	return int(binary.LittleEndian.Uint64(f.payload[data:])) - 1
}

// TestRBDJournalDamaged has entries of a journal damaged, or gone. All that comes
// before is carried out, nothing that comes behind; what is wrong is told, and
// another copy goes on behind it.
func TestRBDJournalDamaged(t *testing.T) {
	needLong(t)
	e := need(t)
	const writes = 600
	for _, c := range []struct {
		name string
		// damage changes a data object. f is an entry in the middle of it.
		damage func(b []byte, f frame) []byte
		// header changes the journal's header.
		header func(ctx *rados.IOContext, oid string, f frame) error
		text   string
		// opens says that librbd can open the primary all the same: without that
		// nobody can make another copy.
		opens bool
	}{
		{name: "a bit", text: "wrong checksum", damage: func(b []byte, f frame) []byte {
			b[f.at+f.size/2] ^= 4
			return b
		}},
		{name: "the beginning", text: "neither an entry nor padding", damage: func(b []byte, f frame) []byte {
			b[f.at+3] ^= 4
			return b
		}},
		{name: "the length", text: "corrupt journal entry", damage: func(b []byte, f frame) []byte {
			b[f.at+27] ^= 255
			return b
		}},
		{name: "gone", opens: true, text: "missing prior journal entry", damage: func(b []byte, f frame) []byte {
			return append(b[:f.at:f.at], b[f.at+f.size:]...)
		}},
		{name: "torn, and more behind it", text: "corrupt journal entry", damage: func(b []byte, f frame) []byte {
			return append(b[:f.at+f.size/2:f.at+f.size/2], b[f.at+f.size:]...)
		}},
		{name: "an epoch gone", opens: true, text: "reading epoch", header: func(ctx *rados.IOContext, oid string, f frame) error {
			return ctx.RmOmapKeys(oid, []string{fmt.Sprintf("tag_%016x", f.tag)})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, d := e.journalPool(t, poolOptions{})
			m := p.withJournal(t, "image", rbdimage.Options{})
			m.Write(0, []byte{0})
			p.follow(t, m)
			copy := p.sameJournal(t, m)
			d.stop(t)
			s := newSequence(writes)
			s.write(m)
			due := 0
			if err := m.Pool().With(func(ctx *rados.IOContext) error {
				oid := fmt.Sprintf("journal_data.%d.%s.1", ctx.GetPoolID(), m.ID())
				st, err := ctx.Stat(oid)
				if err != nil {
					return err
				}
				b := make([]byte, st.Size)
				if _, err := ctx.Read(oid, b, 0); err != nil {
					return err
				}
				list := frames(b)
				f := list[len(list)/2]
				for f.write() < 0 {
					list = list[1:]
					f = list[len(list)/2]
				}
				if c.header != nil {
					return c.header(ctx, "journal."+m.ID(), f)
				}
				due = f.write()
				return ctx.WriteFull(oid, c.damage(bytes.Clone(b), f))
			}); err != nil {
				t.Fatal(err)
			}
			d.start(t)
			stopped := func() error {
				state, text, err := p.own(p.b, m.Name())
				switch {
				case err != nil:
					return err
				case state != "up+error":
					return fmt.Errorf("it is %s, %s", state, text)
				case tested() == ours && (!strings.Contains(text, c.text) || !strings.Contains(text, "resync is required")):
					return fmt.Errorf("it tells %s", text)
				}
				return nil
			}
			within(t, 2*journalPatience(tested()), "the state to tell what is wrong", stopped)
			state, text, err := p.own(p.b, m.Name())
			t.Logf("%s, %s, %v", state, text, err)
			prefix, last := s.look(t, copy)
			if last >= prefix {
				t.Errorf("write %d is there, but %d is not", last, prefix)
			}
			if tested() == stock {
				return // it does not get over it
			}
			if prefix != due {
				t.Errorf("%d writes were carried out, not %d", prefix, due)
			}
			holds(t, 3*time.Second, "stopped", stopped)
			if c.opens {
				p.resynced(t, m, copy)
			}
		})
	}
}

// TestRBDJournalPrimaryKilled kills who writes to the primary, again and again. What
// its journal then has of which the next writer makes nothing, the copy has not,
// either.
func TestRBDJournalPrimaryKilled(t *testing.T) {
	needLong(t)
	e := need(t)
	e.shortWatches(t)
	p, _ := e.journalPool(t, poolOptions{})
	m := p.withJournal(t, "image", rbdimage.Options{Order: 20})
	p.follow(t, m)
	p.caughtUp(t, m)
	seed := randomSeed(t)
	t.Logf("CEPHMIRROR_TEST_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond+time.Duration(r.Int64N(int64(1200*time.Millisecond))))
		// No two writes are to the same place: librbd may do these in another order
		// than its journal tells.
		cmd := e.a.Command(ctx, "rbd", "--cluster", e.a.Name(), "bench", m.Spec(), "--io-type", "write", "--io-size", "4K", "--io-threads", "16",
			"--io-total", "16M", "--io-pattern", "seq", "--rbd-cache=false")
		err := cmd.Run()
		if ctx.Err() == nil {
			t.Logf("it was not killed: %v", err)
		}
		cancel()
		if i%3 == 2 {
			m.Snap(fmt.Sprint("snap", i))
		}
		// Who opens it next puts things in order.
		m.Fill(r.Uint64(), r.Uint64N(15*mib), mib/4)
		p.sameJournal(t, m)
		if t.Failed() {
			t.Fatalf("in round %d", i)
		}
	}
}
