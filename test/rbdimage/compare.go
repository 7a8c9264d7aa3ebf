package rbdimage

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// piece is how much is read and compared at once, grain what a difference is
// rounded to.
const (
	piece = 4 << 20
	grain = 4 << 10
)

// View is an image at a snapshot, or now.
type View struct {
	Pool  Pool
	Image string
	Snap  uint64 // id, or Head
}

func (v View) String() string {
	s := v.Pool.Client.name + ":" + v.Pool.Spec(v.Image)
	if v.Snap != Head {
		s += fmt.Sprintf("@%d", v.Snap)
	}
	return s
}

// At returns the image at a snapshot.
func (m Maker) At(snap uint64) View { return View{m.pool, m.name, snap} }

// open calls f with the image set to the snapshot.
func (v View) open(f func(img *rbd.Image, size uint64) error) error {
	return v.Pool.Look(v.Image, func(img *rbd.Image) error {
		if v.Snap != Head {
			if err := img.SetSnapByID(v.Snap); err != nil {
				return fmt.Errorf("looking at %v: %w", v, err)
			}
			if err := v.Pool.settle(); err != nil {
				return err
			}
		}
		size, err := img.GetSize()
		if err != nil {
			return fmt.Errorf("size of %v: %w", v, err)
		}
		if err := f(img, size); err != nil {
			return fmt.Errorf("reading %v: %w", v, err)
		}
		return nil
	})
}

// extents returns the pieces that may hold something other than zeroes. They
// are all of them, unless the image is so large that reading it takes too long.
func extents(img *rbd.Image, size uint64) (map[uint64]bool, error) {
	const small = 1 << 30
	out := make(map[uint64]bool)
	if size <= small {
		for at := uint64(0); at < size; at += piece {
			out[at] = true
		}
		return out, nil
	}
	err := img.DiffIterate(rbd.DiffIterateConfig{
		Offset: 0, Length: size, SnapName: rbd.NoSnapshot, IncludeParent: rbd.IncludeParent, WholeObject: rbd.EnableWholeObject,
		Callback: func(at, length uint64, exists int, _ any) int {
			if exists != 0 {
				for p := at / piece * piece; p < at+length; p += piece {
					out[p] = true
				}
			}
			return 0
		},
	})
	return out, err
}

func read(img *rbd.Image, at uint64, into []byte) error {
	n, err := img.ReadAt(into, int64(at))
	if err == nil && n < len(into) {
		err = fmt.Errorf("%d of %d bytes at %d", n, len(into), at)
	}
	return err
}

// Compare returns in what two views differ, nothing when they are equal.
func Compare(want, got View) (out []string, err error) {
	err = want.open(func(a *rbd.Image, sizeA uint64) error {
		return got.open(func(b *rbd.Image, sizeB uint64) error {
			if sizeA != sizeB {
				out = append(out, fmt.Sprintf("size: %d, but %d in %v", sizeA, sizeB, got))
			}
			size := min(sizeA, sizeB)
			places, err := extents(a, size)
			if err != nil {
				return err
			}
			more, err := extents(b, size)
			if err != nil {
				return err
			}
			maps.Copy(places, more)
			bufA, bufB := make([]byte, piece), make([]byte, piece)
			var bad []uint64
			for _, at := range slices.Sorted(maps.Keys(places)) {
				n := min(piece, size-at)
				if err := read(a, at, bufA[:n]); err != nil {
					return err
				}
				if err := read(b, at, bufB[:n]); err != nil {
					return err
				}
				if bytes.Equal(bufA[:n], bufB[:n]) {
					continue
				}
				for g := uint64(0); g < n; g += grain {
					if end := min(g+grain, n); !bytes.Equal(bufA[g:end], bufB[g:end]) {
						bad = append(bad, at+g)
					}
				}
			}
			if len(bad) > 0 {
				out = append(out, "content: "+ranges(bad))
			}
			return nil
		})
	})
	return out, err
}

// ranges renders a list of differing places.
func ranges(places []uint64) string {
	var parts []string
	for i := 0; i < len(places); {
		j := i + 1
		for j < len(places) && places[j] == places[j-1]+grain {
			j++
		}
		if len(parts) == 6 {
			parts = append(parts, "and more")
			break
		}
		parts = append(parts, fmt.Sprintf("%d+%d", places[i], uint64(j-i)*grain))
		i = j
	}
	return fmt.Sprintf("%d blocks of %d differ, at %s", len(places), grain, strings.Join(parts, ", "))
}

// Sum returns a checksum of all bytes of a view.
func Sum(v View) (sum string, err error) {
	err = v.open(func(img *rbd.Image, size uint64) error {
		places, err := extents(img, size)
		if err != nil {
			return err
		}
		h := sha256.New()
		fmt.Fprintf(h, "size %d\n", size)
		buf, zero := make([]byte, piece), make([]byte, piece)
		for _, at := range slices.Sorted(maps.Keys(places)) {
			n := min(piece, size-at)
			if err := read(img, at, buf[:n]); err != nil {
				return err
			}
			if !bytes.Equal(buf[:n], zero[:n]) {
				fmt.Fprintf(h, "at %d\n", at)
				h.Write(buf[:n])
			}
		}
		sum = fmt.Sprintf("%x", h.Sum(nil)[:12])
		return nil
	})
	return sum, err
}

// Layout is what an image is, apart from its content.
type Layout struct {
	Size, Order, Features    uint64
	StripeUnit, StripeCount  uint64
	Flags                    uint64
	Parent                   string // pool/namespace/image@snapshot and the overlap
	Meta                     map[string]string
	Limit                    uint64   // how many snapshots there may be
	Snaps                    []string // user snapshots with size and protection, in their order
	prefix, dataPool, header string
}

// Layout returns what the image is, apart from its content.
func (p Pool) Layout(image string) (l Layout, err error) {
	err = p.Look(image, func(img *rbd.Image) error {
		info, err := img.Stat()
		if err != nil {
			return err
		}
		l.Size, l.Order = info.Size, uint64(info.Order)
		if l.Features, err = img.GetFeatures(); err != nil {
			return err
		}
		if l.StripeUnit, err = img.GetStripeUnit(); err != nil {
			return err
		}
		if l.StripeCount, err = img.GetStripeCount(); err != nil {
			return err
		}
		if l.Meta, err = img.ListMetadata(); err != nil {
			return err
		}
		maps.DeleteFunc(l.Meta, func(k, _ string) bool { return strings.HasPrefix(k, ".rbd") })
		parent, err := img.GetParent()
		switch {
		case err == nil:
			overlap, err := img.GetOverlap()
			if err != nil {
				return err
			}
			l.Parent = fmt.Sprintf("%s/%s/%s@%s, %d", parent.Image.PoolName, parent.Image.PoolNamespace, parent.Image.ImageName, parent.Snap.SnapName, overlap)
		case errno(err) != 2:
			return err
		}
		id, err := img.GetId()
		if err != nil {
			return err
		}
		l.header = id
		poolID, err := img.GetDataPoolID()
		if err != nil {
			return err
		}
		if l.dataPool, err = p.Client.Conn.GetPoolByID(poolID); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return l, err
	}
	if l.prefix, l.Flags, err = p.basics(image); err != nil {
		return l, err
	}
	if l.Limit, err = p.SnapLimit(image); err != nil {
		return l, err
	}
	snaps, err := p.Snaps(image)
	if err != nil {
		return l, err
	}
	return l, p.Look(image, func(img *rbd.Image) error {
		for _, s := range snaps {
			if s.Kind != User {
				continue
			}
			protected, err := img.GetSnapshot(s.Name).IsProtected()
			if err != nil {
				return fmt.Errorf("protection of %s: %w", s.Name, err)
			}
			text := fmt.Sprintf("%s, %d bytes", s.Name, s.Size)
			if protected {
				text += ", protected"
			}
			l.Snaps = append(l.Snaps, text)
		}
		return nil
	})
}

// ID is the image's id.
func (l Layout) ID() string { return l.header }

// own are the features that a copy has or lacks for being one.
const own = nonPrimary | rbd.FeatureOperations | rbd.FeatureDataPool

// nonPrimary is a feature that go-ceph does not know.
const nonPrimary = 1 << 10

// Differences returns in what another layout differs.
func (l Layout) Differences(got Layout) (out []string) {
	add := func(what string, a, b any) {
		if x, y := fmt.Sprint(a), fmt.Sprint(b); x != y {
			out = append(out, fmt.Sprintf("%s: %s, but %s", what, x, y))
		}
	}
	add("size", l.Size, got.Size)
	add("order", l.Order, got.Order)
	add("features", fmt.Sprintf("%#x", l.Features&^own), fmt.Sprintf("%#x", got.Features&^own))
	add("stripe unit", l.StripeUnit, got.StripeUnit)
	add("stripe count", l.StripeCount, got.StripeCount)
	add("parent", l.Parent, got.Parent)
	add("metadata", fmt.Sprintf("%q", l.Meta), fmt.Sprintf("%q", got.Meta))
	add("snapshot limit", l.Limit, got.Limit)
	add("user snapshots", fmt.Sprintf("%q", l.Snaps), fmt.Sprintf("%q", got.Snaps))
	return out
}

// Objects returns the numbers of the data objects that exist, at a snapshot or
// now.
func (v View) Objects() (numbers []uint64, err error) {
	l, err := v.Pool.Layout(v.Image)
	if err != nil {
		return nil, err
	}
	data := v.Pool
	data.Name = l.dataPool
	err = data.With(func(ctx *rados.IOContext) error {
		size := l.Size
		if v.Snap != Head {
			snaps, err := v.Pool.Snaps(v.Image)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(snaps, func(s Snap) bool { return s.ID == v.Snap })
			if i < 0 {
				return fmt.Errorf("no snapshot %d", v.Snap)
			}
			size = snaps[i].Size
			if err := ctx.SetReadSnap(rados.SnapID(v.Snap)); err != nil {
				return err
			}
		}
		count := l.count(size)
		if count > listed {
			if v.Snap != Head {
				return ErrTooMany
			}
			numbers, err = list(ctx, l.prefix)
			return err
		}
		for n := range count {
			_, err := ctx.Stat(fmt.Sprintf("%s.%016x", l.prefix, n))
			if errno(err) == 2 {
				continue
			}
			if err != nil {
				return err
			}
			numbers = append(numbers, n)
		}
		return nil
	})
	return numbers, err
}

// listed is from how many objects on a pool is listed, rather than each object
// asked for.
const listed = 8192

// ErrTooMany is returned for a snapshot of an image with too many objects.
var ErrTooMany = errors.New("too many objects to look for each")

// list finds the objects of an image in its data pool.
func list(ctx *rados.IOContext, prefix string) (numbers []uint64, err error) {
	err = ctx.ListObjects(func(name string) {
		number, ok := strings.CutPrefix(name, prefix+".")
		if !ok {
			return
		}
		if n, err := strconv.ParseUint(number, 16, 64); err == nil {
			numbers = append(numbers, n)
		}
	})
	slices.Sort(numbers)
	return numbers, err
}

// count returns how many objects an image of that size has.
func (l Layout) count(size uint64) uint64 {
	object := uint64(1) << l.Order
	if l.StripeCount <= 1 {
		return (size + object - 1) / object
	}
	set := object * l.StripeCount
	n := size / set * l.StripeCount
	if rest := size % set; rest > 0 {
		n += min(l.StripeCount, (rest+l.StripeUnit-1)/l.StripeUnit)
	}
	return n
}

// Damage overwrites a data object of the image behind librbd's back.
func (m Maker) Damage(object uint64) error {
	l, err := m.pool.Layout(m.name)
	if err != nil {
		return err
	}
	data := m.pool
	data.Name = l.dataPool
	return data.With(func(ctx *rados.IOContext) error {
		// The image's snapshots keep what they have.
		return ctx.Write(fmt.Sprintf("%s.%016x", l.prefix, object), []byte("damaged by a test"), 0)
	})
}
