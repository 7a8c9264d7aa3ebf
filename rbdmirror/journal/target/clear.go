package target

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/apply"
	"cephmirror/rbdmirror/objectmap"
)

// Clear makes the image one without snapshots and without objects, of the size that
// it has. It can be repeated when it broke off.
func (t *Target) Clear(ctx context.Context) error {
	objects := t.img.MaxObjects()
	if err := t.RemoveSnapshots(ctx, func(cls.Snapshot) bool { return true }); err != nil {
		return err
	}
	if err := t.objects(ctx, objects, func(ctx context.Context, n uint64) error {
		if t.head != nil && n < t.head.Len() && t.missing(n) {
			return nil
		}
		var s ceph.ObjectSteps
		s.Remove()
		err := t.send(ctx, n, nil, &s, nil)
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	if t.head == nil {
		return nil
	}
	m := objectmap.New(t.head.Len())
	if err := t.objectMap(cls.NoSnap).Save(m); err != nil {
		return err
	}
	t.head = m
	return nil
}

// Detach cuts the image from its parent, without taking over what it shows of it.
// Snapshots that show it keep it. It can be repeated when it broke off.
func (t *Target) Detach(ctx context.Context) error {
	if err := t.Reload(); err != nil {
		return err
	}
	if t.img.ParentOverlap == nil {
		return nil
	}
	if err := t.ready(ctx); err != nil {
		return err
	}
	last := !slices.ContainsFunc(t.img.Snapshots, func(s cls.Snapshot) bool { return s.ParentOverlap != nil })
	if err := t.leaveParent(last); err != nil {
		return err
	}
	if err := t.header.DetachParent(); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return err
	}
	return t.Reload()
}

// RemoveSnapshots removes those snapshots that are not wanted, the newest first.
func (t *Target) RemoveSnapshots(ctx context.Context, unwanted func(cls.Snapshot) bool) error {
	if err := t.Reload(); err != nil {
		return err
	}
	for _, s := range slices.Backward(t.img.Snapshots) {
		if !unwanted(s) {
			continue
		}
		if err := t.ready(ctx); err != nil {
			return err
		}
		cloned := s.ChildCount > 0
		if !cloned && s.Protection != cls.Unprotected {
			var err error
			if cloned, err = t.local().OldClones(t.img.ID, s.ID); err != nil {
				return err
			}
		}
		if cloned {
			return fmt.Errorf("the snapshot %s has to be removed, and has a clone here: %w", s.Name, syscall.EBUSY)
		}
		if s.Protection != cls.Unprotected {
			if err := t.header.SetProtection(s.ID, cls.Unprotected); err != nil {
				return err
			}
		}
		if err := t.Reload(); err != nil {
			return err
		}
		if err := t.removeSnapshot(s.ID); err != nil {
			return err
		}
	}
	return t.Reload()
}

// Align gives an image that is being copied the features and the name that its primary
// has by now.
func (t *Target) Align(ctx context.Context, features uint64, name string) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if features&cls.FeatureObjectMap != 0 {
		features |= cls.FeatureFastDiff
	}
	const mask = cls.FeatureObjectMap | cls.FeatureFastDiff | cls.FeatureDeepFlatten
	off := t.img.Features & mask &^ features
	on := features & mask &^ (t.img.Features | cls.FeatureDeepFlatten)
	if off == 0 && on == 0 && name == t.name {
		return nil
	}
	if off != 0 {
		if err := t.setFeatures(apply.SetFeatures{Features: off}); err != nil {
			return err
		}
	}
	if on != 0 {
		if err := t.setFeatures(apply.SetFeatures{Features: on, Enabled: true}); err != nil {
			return err
		}
	}
	if name != t.name {
		if err := t.rename(apply.Rename{From: t.name, To: name}); err != nil {
			return err
		}
	}
	t.notify()
	if err := t.Reload(); err != nil {
		return err
	}
	for more := on != 0; more; {
		var err error
		if more, err = t.Rebuild(ctx, 4096); err != nil {
			return err
		}
	}
	return nil
}
