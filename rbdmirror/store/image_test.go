//go:build cgo

package store

import (
	"testing"

	"pgregory.net/rapid"

	"cephmirror/rbdmirror/cls"
)

// TestObjects compares with laying the image out unit by unit.
func TestObjects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		order := rapid.Uint8Range(2, 6).Draw(t, "order")
		unit := uint64(1) << rapid.Uint8Range(0, order).Draw(t, "unit")
		count := rapid.Uint64Range(1, 5).Draw(t, "count")
		size := rapid.Uint64Range(0, 2000).Draw(t, "size")
		img := Image{Order: order, StripeUnit: unit, StripeCount: count}
		var want uint64
		for at := uint64(0); at < size; at += unit {
			stripe := at / unit / count
			number := stripe/(img.ObjectSize()/unit)*count + at/unit%count
			want = max(want, number+1)
		}
		if got := img.Objects(size); got != want {
			t.Fatalf("%d objects instead of %d", got, want)
		}
		img.Snapshots = []cls.Snapshot{{Size: size}}
		if got := img.MaxObjects(); got != want {
			t.Fatalf("%d objects instead of %d", got, want)
		}
	})
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		ObjectMapName("abc", 0x1f):       "rbd_object_map.abc.000000000000001f",
		ObjectMapName("abc", cls.NoSnap): "rbd_object_map.abc",
		stateObject("abc", 31, 0):        "rbd_mirror_snapshot.abc.31.0",
		HeaderObject("abc"):              "rbd_header.abc",
		DataPrefix("abc", 3, -1):         "rbd_data.abc",
		DataPrefix("abc", 3, 3):          "rbd_data.abc",
		DataPrefix("abc", 3, 5):          "rbd_data.3.abc",
		DataObject("rbd_data.abc", 26):   "rbd_data.abc.000000000000001a",
		StatusKey("g", ""):               "status_global_g",
		StatusKey("g", "u"):              "remote_status_global_g_u",
		IDObject("name"):                 "rbd_id.name",
	} {
		if got != want {
			t.Errorf("%s instead of %s", got, want)
		}
	}
	seen := map[string]bool{}
	for range 100 {
		id := NewImageID(1 << 40)
		if len(id) > 14 || seen[id] {
			t.Errorf("id %s", id)
		}
		seen[id] = true
	}
}
