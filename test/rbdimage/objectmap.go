package rbdimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// missing is the state of an object that does not exist. Others are 1 exists,
// 2 about to be removed, 3 exists and is unchanged since the last snapshot.
const missing = 0

// AuditMap compares the object map of a view with the objects that exist. It
// tells which objects the map does not know, so that readers take them for
// holes, and which it knows though they are not there.
func AuditMap(v View) (lacking, extra []string, err error) {
	l, err := v.Pool.Layout(v.Image)
	if err != nil {
		return nil, nil, err
	}
	// A map that is marked invalid is not believed by anybody.
	if l.Features&rbd.FeatureObjectMap == 0 || l.Flags != 0 {
		return nil, nil, nil
	}
	there, err := v.Objects()
	if errors.Is(err, ErrTooMany) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	states, err := v.objectMap(l.header)
	if err != nil {
		return []string{fmt.Sprintf("object map of %v: %v", v, err)}, nil, nil
	}
	for _, n := range there {
		switch {
		case n >= uint64(len(states)):
			lacking = append(lacking, fmt.Sprintf("the object map of %v ends at %d, object %d exists", v, len(states), n))
		case states[n] == missing:
			lacking = append(lacking, fmt.Sprintf("the object map of %v lacks object %d", v, n))
		}
	}
	for n, s := range states {
		if _, found := slices.BinarySearch(there, uint64(n)); s != missing && !found {
			extra = append(extra, fmt.Sprintf("the object map of %v has object %d in state %d, which is not there", v, n, s))
		}
	}
	return lacking, extra, nil
}

// objectMap reads a map as it is stored.
func (v View) objectMap(id string) (states []byte, err error) {
	name := "rbd_object_map." + id
	if v.Snap != Head {
		name += fmt.Sprintf(".%016x", v.Snap)
	}
	err = v.Pool.With(func(ctx *rados.IOContext) error {
		st, err := ctx.Stat(name)
		if err != nil {
			return err
		}
		raw := make([]byte, st.Size)
		n, err := ctx.Read(name, raw, 0)
		if err != nil {
			return err
		}
		raw = raw[:n]
		// u32 length of the header; the header: two versions, u32 length, u64
		// number of objects; then two bits for each, from the top.
		if len(raw) < 18 {
			return fmt.Errorf("%d bytes", len(raw))
		}
		count := binary.LittleEndian.Uint64(raw[10:])
		bits := raw[18:]
		if uint64(len(bits)) < (count+3)/4 {
			return fmt.Errorf("%d objects in %d bytes", count, len(bits))
		}
		for i := range count {
			states = append(states, bits[i/4]>>(6-2*(i%4))&3)
		}
		return nil
	})
	return states, err
}
