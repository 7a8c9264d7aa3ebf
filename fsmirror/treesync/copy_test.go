package treesync

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// drawBlocks draws content in which runs of zeros and of data of all lengths
// occur.
func drawBlocks(t *rapid.T, label string, size int) []byte {
	out := make([]byte, 0, size)
	for len(out) < size {
		n := min(size-len(out), rapid.IntRange(1, 3*holeSize).Draw(t, label+" run"))
		fill := rapid.SampledFrom([]byte{0, 0, 1, 2}).Draw(t, label+" fill")
		out = append(out, bytes.Repeat([]byte{fill}, n)...)
	}
	return out
}

func apply(t *rapid.T, to, data []byte, runs []span) {
	last := 0
	for _, s := range runs {
		if s.from < last || s.to <= s.from || s.to > len(data) {
			t.Fatalf("run %v after %d of %d", s, last, len(data))
		}
		last = s.to
		if s.zero {
			clear(to[s.from:s.to])
			if !allZero(data[s.from:s.to]) {
				t.Fatalf("run %v is no hole", s)
			}
			continue
		}
		copy(to[s.from:s.to], data[s.from:s.to])
	}
}

func TestRunsMakeEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 8*holeSize).Draw(t, "size")
		data, was := drawBlocks(t, "data", size), drawBlocks(t, "was", size)

		to := make([]byte, size)
		apply(t, to, data, nonZero(data, false))
		if !bytes.Equal(to, data) {
			t.Error("written to an empty file it differs")
		}
		to = bytes.Clone(was)
		apply(t, to, data, nonZero(data, true))
		if !bytes.Equal(to, data) {
			t.Error("written over other content it differs")
		}
		to = bytes.Clone(was)
		runs := differing(data, was)
		apply(t, to, data, runs)
		if !bytes.Equal(to, data) {
			t.Error("after writing what differs it differs")
		}
		if bytes.Equal(data, was) && len(runs) > 0 {
			t.Error("equal content gives runs")
		}
	})
}

func TestHolesAreKept(t *testing.T) {
	if runs := nonZero(make([]byte, chunkSize), false); len(runs) != 0 {
		t.Errorf("a chunk of zeros is written: %v", runs)
	}
	if runs := nonZero(make([]byte, 10), false); len(runs) != 0 {
		t.Errorf("a few zeros are written: %v", runs)
	}
}

func TestDifferingIsNarrow(t *testing.T) {
	was := bytes.Repeat([]byte{7}, chunkSize)
	data := bytes.Clone(was)
	data[1<<20] = 8
	runs := differing(data, was)
	if len(runs) != 1 || runs[0].to-runs[0].from != blockSize {
		t.Errorf("one byte changed gives %v", runs)
	}
}

// Pieces cover the extents once, in order, never more than a chunk, and never
// across a chunk's border.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var extents []Extent
		at := uint64(0)
		for range rapid.IntRange(1, 5).Draw(t, "extents") {
			at += rapid.Uint64Range(0, 2*chunkSize).Draw(t, "gap")
			n := rapid.Uint64Range(1, 3*chunkSize).Draw(t, "length")
			extents = append(extents, Extent{at, n})
			at += n
		}
		size := rapid.Uint64Range(1, at+1).Draw(t, "size")
		clipped := clip(extents, size)
		want := make(map[uint64]bool) // bytes, sampled at the borders
		for _, e := range clipped {
			want[e.Offset], want[e.Offset+e.Length-1] = true, true
		}
		n := pieces(clipped)
		job := &copyJob{extents: append([]Extent(nil), clipped...)}
		var got int64
		var covered uint64
		for !job.exhausted() {
			p := job.next()
			got++
			covered += p.Length
			if p.Length == 0 || p.Offset/chunkSize != (p.Offset+p.Length-1)/chunkSize || p.Offset+p.Length > size {
				t.Fatalf("piece %v of %v", p, clipped)
			}
			for b := range want {
				if b >= p.Offset && b < p.Offset+p.Length {
					delete(want, b)
				}
			}
		}
		var planned uint64
		for _, e := range clipped {
			planned += e.Length
		}
		if got != n || covered != planned || len(want) > 0 {
			t.Errorf("%d pieces of %d bytes, want %d of %d; left out %v", got, covered, n, planned, want)
		}
	})
}

func TestMemoryBound(t *testing.T) {
	m := NewMemory(0)
	_, release, err := m.borrow(context.Background(), 2, chunkSize)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	cancel(why)
	if _, _, err := m.borrow(ctx, 1, 1); !errors.Is(err, why) {
		t.Errorf("borrowing beyond the limit: %v", err)
	}
	release()
	bufs, release, err := m.borrow(context.Background(), 1, 100)
	if err != nil || len(bufs) != 1 || len(bufs[0]) != 100 {
		t.Errorf("%d buffers, %v", len(bufs), err)
	}
	release()
}
