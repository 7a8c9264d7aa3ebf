package replay

import (
	"context"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// spareID is a snapshot id that was allocated before it is needed. The monitors
// collect what changes their maps, for a second by default: a synchronisation
// should not begin with waiting for that. An id that nobody uses costs nothing.
type spareID struct {
	pool int64         // of the image's data
	done chan struct{} // closed when the monitors have answered
	id   uint64        // 0: they refused
}

// getSpare allocates an id for the next mirror snapshot, if this Replayer has
// synchronised one: of images that never change there may be many.
func (r *Replayer) getSpare(v *view) {
	if r.spare != nil || r.reports.Last().Snapshots == 0 {
		return
	}
	head := v.local.head
	data, err := r.pair.Local.DataContext(head.DataPool)
	if err != nil {
		return // whoever needs it will say so
	}
	s := &spareID{pool: head.DataPool, done: make(chan struct{})}
	r.spare = s
	r.pair.Calls.Go(func() {
		defer close(s.done)
		s.id, _ = store.CreateSnapID(data) // as above
	})
}

// addSnapshot adds a snapshot to the image, with the spare id if there is one.
func (e *editor) addSnapshot(ctx context.Context, name string, ns cls.SnapshotNamespace) (uint64, error) {
	if s := e.r.spare; s != nil {
		select {
		case <-s.done: // another one would not come earlier
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		e.r.spare = nil
		if s.id > e.head.SnapSeq && s.pool == e.head.DataPool {
			err := e.h.AddSnapshot(s.id, name, ns)
			if err == nil || !ceph.Is(err, syscall.ESTALE) {
				return s.id, err
			}
		}
	}
	return store.AddSnapshot(e.h, e.data, name, ns)
}
