//go:build cgo

package replica_test

import (
	"testing"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

// TestShowParent has the head of a clone show less of its parent, and more again, as
// after an attempt that broke off, with and without a snapshot that shows it.
func TestShowParent(t *testing.T) {
	s := rbdsite.Start(t, "a")
	admin, err := rbdimage.Open("a", s.Cluster.Conf())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	pool := admin.Pool(rbdsite.Pool)
	const mib = 1 << 20
	parent := rbdimage.Create(t, pool, "shown", rbdimage.Options{Size: 8 * mib, Features: rbdimage.Plain})
	parent.Fill(1, 0, 8*mib)
	parent.Snap("base")
	parent.Protect("base")
	for _, version := range []uint64{1, 2} {
		for _, snapshot := range []bool{false, true} {
			clone := parent.Clone("base", pool, "showing", rbdimage.Options{CloneVersion: version, Features: rbdimage.Plain})
			if snapshot {
				clone.Snap("s")
			}
			h := store.NewHeader(s.IO(rbdsite.Pool, ""), clone.ID())
			for _, want := range []uint64{8 * mib, 2 * mib, 8 * mib, 0, 3 * mib, 3 * mib} {
				head, err := h.Load()
				if err != nil {
					t.Fatal(err)
				}
				var p replica.Pair // asked for nothing: the image knows its parent
				if err := p.ShowParent(t.Context(), nil, h, head, cls.Snapshot{Size: 8 * mib, ParentOverlap: &want}); err != nil {
					t.Fatalf("version %d, snapshot %v, %d bytes: %v", version, snapshot, want, err)
				}
				now, err := h.Load()
				if err != nil {
					t.Fatal(err)
				}
				if now.ParentOverlap == nil || *now.ParentOverlap != want || *head.ParentOverlap != want || now.Size != 8*mib || now.Parent != head.Parent {
					t.Errorf("version %d, snapshot %v, %d bytes: the header has %+v, and should have %+v", version, snapshot, want, now, head)
				}
			}
			if snapshot {
				clone.RemoveSnap("s")
			}
			clone.Remove()
		}
	}
}
