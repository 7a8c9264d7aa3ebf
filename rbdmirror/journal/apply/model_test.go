package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/journal/plan"
)

var errCrash = errors.New("crash")

type modelSnap struct {
	name      string
	size      uint64
	protected bool
	objects   map[uint64]string
}

// model is an image that can crash before each change of what is stored.
type model struct {
	layout    merge.Layout
	name      string
	size      uint64
	objects   map[uint64]string
	snaps     map[uint64]*modelSnap
	nextSnap  uint64
	metadata  map[string]string
	limit     uint64
	record    []byte
	localTag  uint64
	fuse      int        // changes until the crash, below 0: never
	rnd       *rand.Rand // order of writes side by side
	violation error
	atEvery   func() // after every change of the data
}

func newModel(l merge.Layout, size uint64) *model {
	return &model{layout: l, name: "image", size: size, objects: map[uint64]string{}, snaps: map[uint64]*modelSnap{},
		nextSnap: 1, metadata: map[string]string{}, fuse: -1, rnd: rand.New(rand.NewPCG(1, 2))}
}

func (m *model) change(f func()) error {
	if m.fuse == 0 {
		return errCrash
	}
	if m.fuse > 0 {
		m.fuse--
	}
	f()
	if m.atEvery != nil {
		m.atEvery()
	}
	return nil
}

func (m *model) Image() plan.Image { return plan.Image{Layout: m.layout, Size: m.size} }

func (m *model) Write(_ context.Context, objects []*merge.Object) error {
	for _, i := range m.rnd.Perm(len(objects)) {
		if err := m.change(func() { m.writeObject(objects[i]) }); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) WriteInTurn(ctx context.Context, lists [][]*merge.Object) (int, error) {
	for i, objects := range lists {
		if err := m.Write(ctx, objects); err != nil {
			return i, err
		}
	}
	return len(lists), nil
}

func (m *model) writeObject(o *merge.Object) {
	b := []byte(m.objects[o.Number])
	switch {
	case o.Drop:
		b = nil
	case o.Cut && uint64(len(b)) > o.CutAt:
		b = b[:o.CutAt]
	}
	for _, e := range o.Extents {
		for uint64(len(b)) < e.End() {
			b = append(b, 0)
		}
		copy(b[e.Offset:], e.AppendTo(nil))
	}
	m.objects[o.Number] = string(b)
}

func (m *model) read(objects map[uint64]string, size, offset, length uint64) []byte {
	out := make([]byte, merge.Clip(offset, length, size))
	m.layout.Pieces(offset, uint64(len(out)), func(p merge.Piece) {
		if b := objects[p.Object]; p.Offset < uint64(len(b)) {
			copy(out[p.At:p.At+p.Length], b[p.Offset:])
		}
	})
	return out
}

func (m *model) Matches(_ context.Context, offset uint64, content []byte) (bool, error) {
	return bytes.Equal(m.read(m.objects, m.size, offset, uint64(len(content))), content), nil
}

func (m *model) Save(_ context.Context, r plan.Record) error {
	return m.change(func() { m.record = r.Encode() })
}

func (m *model) state(exact bool) State {
	s := State{Name: m.name, Size: m.size, Exact: exact}
	for _, id := range slices.Sorted(maps.Keys(m.snaps)) {
		snap := m.snaps[id]
		s.Snapshots = append(s.Snapshots, Snapshot{ID: id, Name: snap.name, Size: snap.size, Protected: snap.protected})
	}
	return s
}

func (m *model) Operate(_ context.Context, op format.Op, exact bool, record plan.Record) error {
	step, err := Decide(op, m.state(exact))
	if err != nil {
		return err
	}
	return m.carryOut(step, func(f func()) error {
		return m.change(func() { f(); m.record = record.Encode() })
	})
}

// carryOut does a step. final wraps the last change.
func (m *model) carryOut(step Step, final func(func()) error) error {
	switch s := step.(type) {
	case Nothing:
		return final(func() {})
	case AddSnapshot:
		return final(func() {
			m.snaps[m.nextSnap] = &modelSnap{name: s.Name, size: m.size, objects: maps.Clone(m.objects)}
			m.nextSnap++
		})
	case RemoveSnapshot:
		if m.snaps[s.ID].protected {
			return fmt.Errorf("removing a protected snapshot")
		}
		return final(func() { delete(m.snaps, s.ID) })
	case RenameSnapshot:
		return final(func() { m.snaps[s.ID].name = s.Name })
	case Protect:
		return final(func() { m.snaps[s.ID].protected = s.Protected })
	case Rollback:
		for _, n := range slices.Sorted(maps.Keys(union(m.objects, m.snaps[s.ID].objects))) {
			if err := m.change(func() { m.objects[n] = m.snaps[s.ID].objects[n] }); err != nil {
				return err
			}
		}
		return final(func() { m.size = s.Size })
	case Resize:
		for _, n := range slices.Sorted(maps.Keys(m.objects)) {
			end := m.layout.ObjectEnd(n, s.Size)
			if uint64(len(m.objects[n])) <= end {
				continue
			}
			if err := m.change(func() { m.objects[n] = m.objects[n][:end] }); err != nil {
				return err
			}
		}
		return final(func() { m.size = s.Size })
	case Rename:
		return final(func() { m.name = s.To })
	case SetMetadata:
		return final(func() { m.metadata[s.Key] = s.Value })
	case RemoveMetadata:
		return final(func() { delete(m.metadata, s.Key) })
	case SetSnapLimit:
		return final(func() { m.limit = s.Limit })
	}
	return fmt.Errorf("step %T", step)
}

func union(a, b map[uint64]string) map[uint64]string {
	c := maps.Clone(a)
	maps.Copy(c, b)
	return c
}

// look is everything that can be seen of an image.
type look struct {
	Name     string
	Content  string
	Snaps    []string
	Metadata map[string]string
	Limit    uint64
}

func (m *model) look() look {
	l := look{m.name, string(m.read(m.objects, m.size, 0, m.size)), nil, maps.Clone(m.metadata), m.limit}
	for _, s := range m.snaps {
		l.Snaps = append(l.Snaps, fmt.Sprintf("%s protected=%v %x", s.name, s.protected, m.read(s.objects, s.size, 0, s.size)))
	}
	sort.Strings(l.Snaps)
	return l
}

func (m *model) content() string { return string(m.read(m.objects, m.size, 0, m.size)) }

// do has an event's whole effect at the primary.
func (m *model) do(e format.Event) {
	switch e := e.(type) {
	case format.Op:
		step, err := Decide(e, m.state(true))
		if err == nil {
			err = m.carryOut(step, func(f func()) error { f(); return nil })
		}
		if err != nil {
			panic(fmt.Sprintf("%v: %v", e, err))
		}
	case format.CompareAndWrite:
		n := merge.Clip(e.Offset, e.Length, m.size)
		if same, _ := m.Matches(context.Background(), e.Offset, e.Compare[:n]); same {
			m.do(format.Write{Offset: e.Offset, Length: n, Data: e.Data[:n]})
		}
	default:
		b := merge.NewBuilder(m.layout, m.size)
		b.Add(e)
		for _, o := range b.Objects() {
			m.writeObject(o)
		}
	}
}

func (m *model) snapNamed(name string) bool {
	for _, s := range m.snaps {
		if s.name == name {
			return true
		}
	}
	return false
}

func (m *model) snapNames(protected bool) (list []string) {
	for _, s := range m.snaps {
		if s.protected == protected {
			list = append(list, s.name)
		}
	}
	sort.Strings(list)
	return list
}

func user(id uint64, name string) format.Snap {
	return format.Snap{ID: id, Name: name, Namespace: cls.User}
}
