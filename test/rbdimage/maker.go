package rbdimage

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// TB is what a Maker needs of a test.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Options of a new image.
type Options struct {
	Size         uint64
	Order        uint64 // 0: 22, objects of 4 MiB
	Features     uint64 // 0: Ceph's default
	StripeUnit   uint64
	StripeCount  uint64
	DataPool     string
	CloneVersion uint64 // of clones: 1 or 2; 0: Ceph's choice
}

// Features by which tests choose.
const (
	Layering   = rbd.FeatureLayering
	Striping   = rbd.FeatureStripingV2
	Exclusive  = rbd.FeatureExclusiveLock
	ObjectMap  = rbd.FeatureObjectMap
	FastDiff   = rbd.FeatureFastDiff
	DeepFlat   = rbd.FeatureDeepFlatten
	Plain      = Layering | Exclusive
	Everything = Plain | ObjectMap | FastDiff | DeepFlat
)

// Data returns n bytes that are the same for the same seed, and that nothing
// compresses.
func Data(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// Maker changes one image. A call that fails ends the test.
type Maker struct {
	t    TB
	pool Pool
	name string
}

// Create makes an image.
func Create(t TB, p Pool, name string, o Options) Maker {
	t.Helper()
	m := Maker{t, p, name}
	m.must(p.With(func(ctx *rados.IOContext) error {
		return withOptions(o, func(opts *rbd.ImageOptions) error {
			return rbd.CreateImage(ctx, name, o.Size, opts)
		})
	}), "creating it")
	return m
}

// On returns a Maker for an image that exists.
func On(t TB, p Pool, name string) Maker { return Maker{t, p, name} }

func withOptions(o Options, f func(*rbd.ImageOptions) error) error {
	opts := rbd.NewRbdImageOptions()
	defer opts.Destroy()
	if o.DataPool != "" {
		if err := opts.SetString(rbd.ImageOptionDataPool, o.DataPool); err != nil {
			return err
		}
	}
	for option, value := range map[rbd.ImageOption]uint64{
		rbd.ImageOptionOrder: o.Order, rbd.ImageOptionFeatures: o.Features,
		rbd.ImageOptionStripeUnit: o.StripeUnit, rbd.ImageOptionStripeCount: o.StripeCount,
		rbd.ImageOptionCloneFormat: o.CloneVersion,
	} {
		if value == 0 {
			continue
		}
		if err := opts.SetUint64(option, value); err != nil {
			return err
		}
	}
	return f(opts)
}

func (m Maker) must(err error, format string, args ...any) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("image %s of %s: %s: %v", m.Spec(), m.pool.Client.name, fmt.Sprintf(format, args...), err)
	}
}

// Name returns the image's name.
func (m Maker) Name() string { return m.name }

// Pool returns where the image is.
func (m Maker) Pool() Pool { return m.pool }

// Spec names the image as the tools of Ceph do.
func (m Maker) Spec() string { return m.pool.Spec(m.name) }

// For returns a Maker that ends another test.
func (m Maker) For(t TB) Maker { return Maker{t, m.pool, m.name} }

// In returns a Maker for the image of the same name elsewhere.
func (m Maker) In(p Pool) Maker { return Maker{m.t, p, m.name} }

// Edit opens the image once for several changes.
func (m Maker) Edit(f func(*rbd.Image) error) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, f), "changing it")
}

// Look opens the image for reading.
func (m Maker) Look(f func(*rbd.Image) error) {
	m.t.Helper()
	m.must(m.pool.Look(m.name, f), "looking at it")
}

// Write writes data at an offset.
func (m Maker) Write(at uint64, data []byte) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return writeAll(img, at, data) }), "writing %d bytes at %d", len(data), at)
}

func writeAll(img *rbd.Image, at uint64, data []byte) error {
	n, err := img.WriteAt(data, int64(at))
	if err == nil && n < len(data) {
		err = fmt.Errorf("only %d bytes were written", n)
	}
	return err
}

// Fill writes length bytes of random data at an offset.
func (m Maker) Fill(seed, at, length uint64) {
	m.t.Helper()
	const piece = 4 << 20
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error {
		for done := uint64(0); done < length; done += piece {
			if err := writeAll(img, at+done, Data(seed+done, int(min(piece, length-done)))); err != nil {
				return err
			}
		}
		return nil
	}), "filling it")
}

// Discard discards a range.
func (m Maker) Discard(at, length uint64) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error {
		_, err := img.Discard(at, length)
		return err
	}), "discarding %d bytes at %d", length, at)
}

// Zero makes a range read as zeroes; it may become sparse.
func (m Maker) Zero(at, length uint64) {
	m.t.Helper()
	m.must(m.pool.zero(m.name, at, length, false), "zeroing %d bytes at %d", length, at)
}

// Resize changes the size.
func (m Maker) Resize(size uint64) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.Resize(size) }), "resizing it to %d", size)
}

// Snap makes a user snapshot.
func (m Maker) Snap(name string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error {
		_, err := img.CreateSnapshot(name)
		return err
	}), "making snapshot %s", name)
}

// RemoveSnap removes a user snapshot.
func (m Maker) RemoveSnap(name string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.GetSnapshot(name).Remove() }), "removing snapshot %s", name)
}

// RenameSnap renames a user snapshot.
func (m Maker) RenameSnap(from, to string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.GetSnapshot(from).Rename(to) }), "renaming snapshot %s", from)
}

// Protect protects a user snapshot.
func (m Maker) Protect(name string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.GetSnapshot(name).Protect() }), "protecting snapshot %s", name)
}

// Unprotect takes the protection from a user snapshot.
func (m Maker) Unprotect(name string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.GetSnapshot(name).Unprotect() }), "unprotecting snapshot %s", name)
}

// Rollback makes the image what it was at a user snapshot.
func (m Maker) Rollback(name string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.GetSnapshot(name).Rollback() }), "rolling back to snapshot %s", name)
}

// Rename renames the image.
func (m *Maker) Rename(to string) {
	m.t.Helper()
	m.must(m.pool.With(func(ctx *rados.IOContext) error { return rbd.GetImage(ctx, m.name).Rename(to) }), "renaming it to %s", to)
	m.name = to
}

// SetMeta sets a metadata key.
func (m Maker) SetMeta(key, value string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.SetMetadata(key, value) }), "setting metadata %s", key)
}

// RemoveMeta removes a metadata key.
func (m Maker) RemoveMeta(key string) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.RemoveMetadata(key) }), "removing metadata %s", key)
}

// Enable turns features on.
func (m Maker) Enable(features uint64) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.UpdateFeatures(features, true) }), "enabling features %#x", features)
}

// Disable turns features off.
func (m Maker) Disable(features uint64) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.UpdateFeatures(features, false) }), "disabling features %#x", features)
}

// Clone makes a clone of a user snapshot.
func (m Maker) Clone(snap string, p Pool, name string, o Options) Maker {
	m.t.Helper()
	m.must(m.pool.With(func(parent *rados.IOContext) error {
		return p.With(func(ctx *rados.IOContext) error {
			return withOptions(o, func(opts *rbd.ImageOptions) error {
				return rbd.CloneImage(parent, m.name, snap, ctx, name, opts)
			})
		})
	}), "cloning %s", snap)
	return Maker{m.t, p, name}
}

// Flatten copies all from the parent and lets it go.
func (m Maker) Flatten() {
	m.t.Helper()
	m.must(m.pool.Open(m.name, (*rbd.Image).Flatten), "flattening it")
}

// Remove removes the image.
func (m Maker) Remove() {
	m.t.Helper()
	m.must(m.pool.With(func(ctx *rados.IOContext) error { return rbd.RemoveImage(ctx, m.name) }), "removing it")
}

// Mirror enables mirroring by snapshots, which makes the first one, and
// returns its id.
func (m Maker) Mirror() uint64 {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.MirrorEnable(rbd.ImageMirrorModeSnapshot) }), "enabling mirroring")
	snaps := m.Snaps()
	return snaps[len(snaps)-1].ID
}

// Unmirror disables mirroring.
func (m Maker) Unmirror() {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) error { return img.MirrorDisable(false) }), "disabling mirroring")
}

// MirrorSnap makes a mirror snapshot and returns its id.
func (m Maker) MirrorSnap() (id uint64) {
	m.t.Helper()
	m.must(m.pool.Open(m.name, func(img *rbd.Image) (err error) {
		id, err = img.CreateMirrorSnapshot()
		return err
	}), "making a mirror snapshot")
	return id
}

// Demote makes the image non-primary and returns the id of the snapshot that
// says so.
func (m Maker) Demote() uint64 {
	m.t.Helper()
	m.must(m.pool.Open(m.name, (*rbd.Image).MirrorDemote), "demoting it")
	snaps := m.Snaps()
	return snaps[len(snaps)-1].ID
}

// Resync asks the daemon of this side to make the image anew.
func (m Maker) Resync() {
	m.t.Helper()
	m.must(m.pool.Open(m.name, (*rbd.Image).MirrorResync), "asking for a resync")
}

// Snaps lists all snapshots, oldest first.
func (m Maker) Snaps() []Snap {
	m.t.Helper()
	list, err := m.pool.Snaps(m.name)
	m.must(err, "listing its snapshots")
	return list
}

// ID returns the image's id.
func (m Maker) ID() (id string) {
	m.t.Helper()
	m.Look(func(img *rbd.Image) (err error) {
		id, err = img.GetId()
		return err
	})
	return id
}

// GlobalID returns what the image is called on all sites.
func (m Maker) GlobalID() (id string) {
	m.t.Helper()
	m.Look(func(img *rbd.Image) error {
		info, err := img.GetMirrorImageInfo()
		if err == nil {
			id = info.GlobalID
		}
		return err
	})
	return id
}

// Exists tells whether there is an image of that name.
func (p Pool) Exists(image string) (bool, error) {
	err := p.Look(image, func(*rbd.Image) error { return nil })
	if Is(err, syscall.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
