package rbdimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ceph/go-ceph/rados"
)

// Peek lists the snapshots of an image as its header has them. It opens no
// image, which takes longer and, very often and while another program changes
// the parent, is more than librbd bears.
func (p Pool) Peek(image string) (list []Snap, err error) {
	err = p.With(func(ctx *rados.IOContext) error {
		buf := make([]byte, 256)
		n, err := ctx.Read("rbd_id."+image, buf, 0)
		if err != nil {
			return fmt.Errorf("looking for image %s of %s: %w", p.Spec(image), p.Client.name, err)
		}
		d := decoder{rest: buf[:n]}
		header := "rbd_header." + d.text()
		if d.short {
			return fmt.Errorf("the id of image %s is %q", image, buf[:n])
		}
		for after := ""; ; {
			values, err := ctx.GetOmapValues(header, after, "snapshot_", 100)
			if err != nil {
				return fmt.Errorf("reading %s of %s: %w", header, p.Client.name, err)
			}
			for key, value := range values {
				after = max(after, key)
				s, err := decodeSnap(value)
				if err != nil {
					return fmt.Errorf("%s of %s: %w", key, header, err)
				}
				list = append(list, s)
			}
			if len(values) < 100 {
				break
			}
		}
		slices.SortFunc(list, func(a, b Snap) int {
			if a.ID < b.ID {
				return -1
			}
			return 1
		})
		return nil
	})
	return list, err
}

func decodeSnap(value []byte) (s Snap, err error) {
	d := decoder{rest: value}
	d.take(6) // versions, length
	s.ID = d.u64()
	s.Name = d.text()
	s.Size = d.u64()
	d.take(1 + 8) // protection, flags
	d.take(6)
	s.Kind = Kind(d.u32())
	if s.Kind == Mirror {
		s.Role = Role(d.u8())
		s.Complete = d.u8() != 0
		for range d.u32() {
			d.text()
			s.Peers++
			if d.short {
				break
			}
		}
		s.Origin = d.text()
		s.Source = d.u64()
		s.Copied = d.u64()
	}
	if d.short {
		return s, errors.New("it is too short")
	}
	return s, nil
}

// decoder takes bytes apart.
type decoder struct {
	rest  []byte
	short bool
}

func (d *decoder) take(n uint32) []byte {
	if uint64(n) > uint64(len(d.rest)) {
		d.short, d.rest = true, nil
		return make([]byte, min(n, 8))
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) u8() uint8   { return d.take(1)[0] }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

func (d *decoder) text() string { return string(d.take(d.u32())) }
