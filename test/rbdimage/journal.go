package rbdimage

/*
#cgo LDFLAGS: -lrbd
#include <stdlib.h>
#include <rbd/librbd.h>
*/
import "C"

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// Journaling are all features of an image that is mirrored by its journal.
const Journaling = Everything | rbd.FeatureJournaling

// Position is a place in a journal.
type Position struct{ Object, Tag, Entry uint64 }

// Compare tells which of two places comes first.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Tag, q.Tag), cmp.Compare(p.Entry, q.Entry))
}

// JournalClient is one that a journal keeps entries for.
type JournalClient struct {
	ID           string
	Position     Position // of the newest entry that is done with
	Any          bool     // there is one
	Disconnected bool

	// Of mirror peers.
	Peer    bool
	ImageID string // of the copy
	Syncing bool
}

// Journal is what the header of an image's journal says.
type Journal struct {
	Master JournalClient // the image itself
	Peers  []JournalClient
	// Minimum and Active are the oldest and the newest set of objects.
	Minimum, Active uint64
	// Epoch is the number of the newest epoch: each who writes begins one.
	Epoch uint64
}

// Journal reads the header of an image's journal. It opens no image.
func (p Pool) Journal(image string) (j Journal, err error) {
	err = p.With(func(ctx *rados.IOContext) error {
		id, err := p.id(ctx, image)
		if err != nil {
			return err
		}
		j, err = readJournal(ctx, "journal."+id)
		return err
	})
	return j, err
}

// NewestEpoch returns the number of the newest epoch of an image's journal.
func (p Pool) NewestEpoch(image string) (uint64, error) {
	j, err := p.Journal(image)
	return j.Epoch, err
}

// ImageID returns the id of an image. It opens no image.
func (p Pool) ImageID(image string) (id string, err error) {
	err = p.With(func(ctx *rados.IOContext) error {
		id, err = p.id(ctx, image)
		return err
	})
	return id, err
}

func (p Pool) id(ctx *rados.IOContext, image string) (string, error) {
	buf := make([]byte, 256)
	n, err := ctx.Read("rbd_id."+image, buf, 0)
	if err != nil {
		return "", fmt.Errorf("looking for image %s of %s: %w", p.Spec(image), p.Client.name, err)
	}
	d := decoder{rest: buf[:n]}
	id := d.text()
	if d.short {
		return "", fmt.Errorf("the id of image %s is %q", image, buf[:n])
	}
	return id, nil
}

func readJournal(ctx *rados.IOContext, header string) (j Journal, err error) {
	values := make(map[string][]byte)
	for after := ""; ; {
		some, err := ctx.GetOmapValues(header, after, "", 100)
		if err != nil {
			return j, fmt.Errorf("reading %s: %w", header, err)
		}
		maps.Copy(values, some)
		for key := range some {
			after = max(after, key)
		}
		if len(some) < 100 {
			break
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		d := decoder{rest: values[key]}
		switch {
		case key == "minimum_set":
			j.Minimum = d.u64()
		case key == "active_set":
			j.Active = d.u64()
		case key == "next_tag_tid":
			j.Epoch = d.u64() - 1
		case strings.HasPrefix(key, "client_"):
			c, err := decodeClient(values[key])
			if err != nil {
				return j, fmt.Errorf("%s of %s: %w", key, header, err)
			}
			if c.ID == "" {
				j.Master = c
			} else {
				j.Peers = append(j.Peers, c)
			}
		}
		if d.short {
			return j, fmt.Errorf("%s of %s is %q", key, header, values[key])
		}
	}
	return j, nil
}

func decodeClient(value []byte) (c JournalClient, err error) {
	d := decoder{rest: value}
	d.take(6) // versions, length
	c.ID = d.text()
	data := decoder{rest: d.take(d.u32())}
	d.take(6)
	for i := range d.u32() {
		d.take(6)
		at := Position{Object: d.u64(), Tag: d.u64(), Entry: d.u64()}
		if i == 0 {
			c.Position, c.Any = at, true
		}
		if d.short {
			break
		}
	}
	c.Disconnected = d.u8() != 0
	data.take(6)
	if data.u32() == 1 {
		c.Peer, c.ImageID, c.Syncing = true, data.text(), data.u32() == 0
	}
	if d.short || data.short {
		return c, errors.New("it is too short")
	}
	return c, nil
}

// SnapLimit returns how many snapshots an image may have, all ones for any number.
func (p Pool) SnapLimit(image string) (n uint64, err error) {
	n = 1<<64 - 1
	err = p.With(func(ctx *rados.IOContext) error {
		id, err := p.id(ctx, image)
		if err != nil {
			return err
		}
		values, err := ctx.GetOmapValues("rbd_header."+id, "", "snap_limit", 1)
		if err != nil {
			return fmt.Errorf("reading the header of %s: %w", image, err)
		}
		if v, ok := values["snap_limit"]; ok {
			d := decoder{rest: v}
			n = d.u64()
		}
		return nil
	})
	return n, err
}

// CompareAndWrite writes to an image if it holds what is expected, and tells
// whether it did.
func (m Maker) CompareAndWrite(at uint64, expected, data []byte) (written bool) {
	m.t.Helper()
	m.must(m.pool.raw(m.name, false, func(img C.rbd_image_t) error {
		a, b := C.CBytes(expected), C.CBytes(data)
		defer C.free(unsafe.Pointer(a))
		defer C.free(unsafe.Pointer(b))
		var mismatch C.uint64_t
		r := C.rbd_compare_and_write(img, C.uint64_t(at), C.size_t(len(data)), (*C.char)(a), (*C.char)(b), &mismatch, 0)
		if r < 0 && syscall.Errno(-r) != syscall.EILSEQ {
			return syscall.Errno(-r)
		}
		written = r >= 0
		return nil
	}), "comparing and writing %d bytes at %d", len(data), at)
	return written
}
