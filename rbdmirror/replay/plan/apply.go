package plan

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cephmirror/rbdmirror/cls"
)

// Properties are what an ImageState is applied to.
type Properties struct {
	Name     string
	Features uint64
	Limit    uint64
	Snaps    []cls.Snapshot
	Metadata map[string][]byte
	// SnapSeqs maps remote user snapshots to local ones.
	SnapSeqs map[uint64]uint64
}

// ChangeKind says what is to be changed.
type ChangeKind int

// The changes, in the order in which they are made.
const (
	RenameImage ChangeKind = iota + 1
	SetFeatures
	RemoveMetadata
	SetMetadata
	Unprotect
	RemoveSnap
	Protect
	RenameSnap
	SetLimit
)

// Change is one difference between a local image and the state it should have.
type Change struct {
	Kind     ChangeKind
	Name     string // RenameImage, RenameSnap: the new name; Remove/SetMetadata: the key
	Value    []byte
	Features uint64 // SetFeatures: the new ones among Mask
	Mask     uint64
	Snap     uint64
	Limit    uint64
}

// mutable are the features that a copy takes over after its creation. Of deep
// flattening only the loss can be taken over, and a journal has no place in an
// image that is mirrored by snapshots.
const mutable = cls.FeatureExclusiveLock | cls.FeatureObjectMap | cls.FeatureDeepFlatten

// NewFeatures returns the features with which a copy is created.
func NewFeatures(remote uint64) uint64 {
	f := remote&^(cls.ImplicitFeatures|cls.FeatureJournaling) | cls.FeatureNonPrimary
	if f&cls.FeatureObjectMap != 0 {
		f |= cls.FeatureFastDiff
	}
	return f
}

// internal reports whether a metadata key belongs to the cluster it is on.
func internal(key string) bool { return strings.HasPrefix(key, ".rbd") }

// Apply lists what is to be changed.
func Apply(p Properties, want cls.ImageState) []Change {
	var out []Change
	if want.Name != "" && want.Name != p.Name {
		out = append(out, Change{Kind: RenameImage, Name: want.Name})
	}
	if c, ok := featureChange(p.Features, want.Features); ok {
		out = append(out, c)
	}
	for _, k := range slices.Sorted(maps.Keys(p.Metadata)) {
		if _, ok := want.Metadata[k]; !ok && !internal(k) {
			out = append(out, Change{Kind: RemoveMetadata, Name: k})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(want.Metadata)) {
		if have, ok := p.Metadata[k]; !internal(k) && (!ok || !bytes.Equal(have, want.Metadata[k])) {
			out = append(out, Change{Kind: SetMetadata, Name: k, Value: want.Metadata[k]})
		}
	}
	out = append(out, snapChanges(p, want)...)
	if want.SnapLimit != p.Limit {
		out = append(out, Change{Kind: SetLimit, Limit: want.SnapLimit})
	}
	return out
}

func featureChange(have, want uint64) (Change, bool) {
	on := want &^ have & mutable &^ cls.FeatureDeepFlatten
	off := have &^ want & mutable
	if on&cls.FeatureObjectMap != 0 {
		on |= cls.FeatureFastDiff
	}
	if off&cls.FeatureObjectMap != 0 {
		off |= have & cls.FeatureFastDiff
	}
	return Change{Kind: SetFeatures, Features: on, Mask: on | off}, on|off != 0
}

func snapChanges(p Properties, want cls.ImageState) []Change {
	remotes := map[uint64]uint64{}
	for r, l := range p.SnapSeqs {
		if l != cls.NoSnap {
			remotes[l] = r
		}
	}
	var unprotect, remove, protect, rename []Change
	names := map[string]uint64{} // of those that stay
	snaps := slices.Clone(p.Snaps)
	slices.SortFunc(snaps, func(a, b cls.Snapshot) int { return cmp.Compare(a.ID, b.ID) })
	for _, s := range snaps {
		if s.Namespace.Type != cls.NamespaceUser {
			continue
		}
		r, known := remotes[s.ID]
		w, wanted := want.Snapshots[r]
		if !known || !wanted {
			if s.Protection != cls.Unprotected {
				unprotect = append(unprotect, Change{Kind: Unprotect, Snap: s.ID})
			}
			remove = append(remove, Change{Kind: RemoveSnap, Snap: s.ID})
			continue
		}
		names[s.Name] = s.ID
		if w.Protection == cls.Protected && s.Protection != cls.Protected {
			protect = append(protect, Change{Kind: Protect, Snap: s.ID})
		}
		if w.Protection != cls.Protected && s.Protection != cls.Unprotected {
			unprotect = append(unprotect, Change{Kind: Unprotect, Snap: s.ID})
		}
		if w.Name != s.Name {
			rename = append(rename, Change{Kind: RenameSnap, Snap: s.ID, Name: w.Name})
		}
	}
	return slices.Concat(unprotect, remove, protect, ordered(rename, names))
}

// ordered puts renamings in an order in which no name is taken, with an
// intermediate name where they go round in a circle.
func ordered(renames []Change, taken map[string]uint64) []Change {
	from := map[uint64]string{}
	for name, id := range taken {
		from[id] = name
	}
	var out []Change
	for len(renames) > 0 {
		i := slices.IndexFunc(renames, func(c Change) bool { _, busy := taken[c.Name]; return !busy })
		c := renames[max(i, 0)]
		if i < 0 {
			c.Name = Aside(from[c.Snap], c.Snap)
		} else {
			renames = slices.Delete(slices.Clone(renames), i, i+1)
		}
		out = append(out, c)
		delete(taken, from[c.Snap])
		taken[c.Name], from[c.Snap] = c.Snap, c.Name
	}
	return out
}

// Aside is the name that a snapshot has while another one needs its own.
func Aside(name string, id uint64) string { return fmt.Sprintf("%s.renamed-%d", name, id) }

// Unfinished is the name of the copy of a remote snapshot until it is filled. If
// that never comes about, as the image is promoted before, nobody shall take it
// for what it is not.
func Unfinished(remote cls.Snapshot) string {
	return fmt.Sprintf("%s.incomplete-%d", remote.Name, remote.ID)
}
