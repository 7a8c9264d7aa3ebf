package target

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
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
