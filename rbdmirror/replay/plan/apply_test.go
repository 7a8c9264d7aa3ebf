package plan

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cephmirror/rbdmirror/cls"
)

func user(id uint64, name string, p cls.Protection) cls.Snapshot {
	return cls.Snapshot{ID: id, Name: name, Protection: p, Namespace: cls.User}
}

func TestApply(t *testing.T) {
	p := Properties{
		Name:     "old",
		Features: cls.FeatureLayering | cls.FeatureExclusiveLock | cls.FeatureDeepFlatten | cls.FeatureNonPrimary,
		Limit:    cls.NoLimit,
		Snaps: []cls.Snapshot{
			user(4, "a", cls.Protected), user(5, "b", cls.Unprotected), user(6, "c", cls.Unprotected),
			user(7, "stray", cls.Unprotected), user(8, "g", cls.Protected),
			{ID: 9, Name: "t", Namespace: cls.SnapshotNamespace{Type: cls.NamespaceTrash, Trash: &cls.TrashNamespace{}}},
		},
		Metadata: map[string][]byte{"k1": []byte("v1"), "k2": []byte("v2"), ".rbd_mirror.x": []byte("{}")},
		SnapSeqs: map[uint64]uint64{14: 4, 15: 5, 16: 6, 18: 8, 20: cls.NoSnap},
	}
	want := cls.ImageState{
		Name:      "new",
		Features:  cls.FeatureLayering | cls.FeatureExclusiveLock | cls.FeatureObjectMap,
		SnapLimit: 10,
		Snapshots: map[uint64]cls.SnapState{
			14: {Name: "a", Protection: cls.Unprotected},
			15: {Name: "c", Protection: cls.Protected},
			16: {Name: "b"},
		},
		Metadata: map[string][]byte{"k2": []byte("w2"), "k3": []byte("v3"), ".rbd_mirror.y": []byte("{}")},
	}
	got := Apply(p, want)
	expected := []Change{
		{Kind: RenameImage, Name: "new"},
		{Kind: SetFeatures, Features: cls.FeatureObjectMap | cls.FeatureFastDiff,
			Mask: cls.FeatureObjectMap | cls.FeatureFastDiff | cls.FeatureDeepFlatten},
		{Kind: RemoveMetadata, Name: "k1"},
		{Kind: SetMetadata, Name: "k2", Value: []byte("w2")},
		{Kind: SetMetadata, Name: "k3", Value: []byte("v3")},
		{Kind: Unprotect, Snap: 4},
		{Kind: Unprotect, Snap: 8},
		{Kind: RemoveSnap, Snap: 7},
		{Kind: RemoveSnap, Snap: 8},
		{Kind: Protect, Snap: 5},
		{Kind: RenameSnap, Snap: 5, Name: "b.renamed-5"},
		{Kind: RenameSnap, Snap: 6, Name: "b"},
		{Kind: RenameSnap, Snap: 5, Name: "c"},
		{Kind: SetLimit, Limit: 10},
	}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Error(diff)
	}
}

func TestNewFeatures(t *testing.T) {
	got := NewFeatures(0x3d | cls.FeatureJournaling | cls.FeatureOperations | cls.FeatureDataPool | cls.FeatureStriping)
	if want := uint64(0x3d) | cls.FeatureNonPrimary; got != want {
		t.Errorf("got %#x, want %#x", got, want)
	}
	if got := NewFeatures(1); got != 1|cls.FeatureNonPrimary {
		t.Errorf("got %#x", got)
	}
}

// Carried out in order, the changes lead to the wanted state, and no renaming
// meets a name that is taken.
func TestApplyProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		distinct := func(label string) []string {
			return rapid.SliceOfNDistinct(names, 0, 5, rapid.ID[string]).Draw(t, label)
		}
		p := Properties{Limit: cls.NoLimit, SnapSeqs: map[uint64]uint64{}}
		want := cls.ImageState{SnapLimit: cls.NoLimit, Snapshots: map[uint64]cls.SnapState{}}
		protection := rapid.SampledFrom([]cls.Protection{cls.Unprotected, cls.Unprotecting, cls.Protected})
		for i, n := range distinct("local") {
			p.Snaps = append(p.Snaps, user(uint64(i+1), n, protection.Draw(t, "protection")))
			if rapid.Bool().Draw(t, "mapped") {
				p.SnapSeqs[uint64(i+101)] = uint64(i + 1)
			}
		}
		for i, n := range distinct("remote") {
			want.Snapshots[uint64(i+101)] = cls.SnapState{Name: n, Protection: protection.Draw(t, "remote protection")}
		}
		have := map[uint64]cls.Snapshot{}
		for _, s := range p.Snaps {
			have[s.ID] = s
		}
		for _, c := range Apply(p, want) {
			s := have[c.Snap]
			switch c.Kind {
			case Unprotect:
				s.Protection = cls.Unprotected
			case Protect:
				s.Protection = cls.Protected
			case RemoveSnap:
				if s.Protection != cls.Unprotected {
					t.Fatalf("%v is removed though protected", s)
				}
				delete(have, c.Snap)
				continue
			case RenameSnap:
				for _, o := range have {
					if o.Name == c.Name {
						t.Fatalf("the name %s is taken", c.Name)
					}
				}
				s.Name = c.Name
			default:
				t.Fatalf("unexpected change %v", c)
			}
			have[c.Snap] = s
		}
		var got, expected []string
		for _, s := range have {
			got = append(got, fmt.Sprint(s.ID, s.Name, s.Protection == cls.Protected))
		}
		for r, s := range want.Snapshots {
			if l, ok := p.SnapSeqs[r]; ok {
				expected = append(expected, fmt.Sprint(l, s.Name, s.Protection == cls.Protected))
			}
		}
		slices.Sort(got)
		slices.Sort(expected)
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Fatal(diff)
		}
	})
}
