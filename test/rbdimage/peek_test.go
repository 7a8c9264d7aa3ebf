package rbdimage

import "testing"

func FuzzDecodeSnap(f *testing.F) {
	f.Add([]byte("\x08\x08\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = decodeSnap(b) })
}

func TestRanges(t *testing.T) {
	if got, want := ranges([]uint64{0, 4096, 16384}), "3 blocks of 4096 differ, at 0+8192, 16384+4096"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCount(t *testing.T) {
	for _, c := range []struct {
		l    Layout
		size uint64
		want uint64
	}{
		{Layout{Order: 22, StripeCount: 1}, 0, 0},
		{Layout{Order: 22, StripeCount: 1}, 4<<20 + 1, 2},
		{Layout{Order: 20, StripeCount: 5, StripeUnit: 64 << 10}, 1, 1},
		{Layout{Order: 20, StripeCount: 5, StripeUnit: 64 << 10}, 300 << 10, 5},
		{Layout{Order: 20, StripeCount: 5, StripeUnit: 64 << 10}, 5<<20 + 70<<10, 7},
	} {
		if got := c.l.count(c.size); got != c.want {
			t.Errorf("%+v, size %d: %d objects, want %d", c.l, c.size, got, c.want)
		}
	}
}
