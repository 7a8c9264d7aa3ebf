// Package apply carries out the steps of a plan on the copy of an image, so that
// every entry of the journal has its effect once, whenever it is interrupted.
//
// Writes may be repeated: carried out again in order, they leave the same. All
// else may not. The copy's own record of progress is stored in one operation with
// the last effect of each operation, and around what depends on the content of
// the image; nothing that lies behind the record is carried out again.
package apply

import (
	"context"
	"errors"
	"fmt"

	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/merge"
	"cephmirror/rbdmirror/journal/plan"
)

// Copy is the image that entries are carried out on.
type Copy interface {
	// Image returns its layout and its present size.
	Image() plan.Image
	// Write carries out writes of objects, in any order, and returns when all
	// are durable.
	Write(ctx context.Context, objects []*merge.Object) error
	// WriteInTurn is Write for several lists, each when the one before is durable.
	// It returns how many are, and why the others are not.
	WriteInTurn(ctx context.Context, lists [][]*merge.Object) (int, error)
	// Matches says whether the image has a content somewhere.
	Matches(ctx context.Context, offset uint64, content []byte) (bool, error)
	// Operate carries out an operation. The record becomes durable together with
	// its last effect.
	Operate(ctx context.Context, op format.Op, exact bool, record plan.Record) error
	// Save stores the record.
	Save(ctx context.Context, record plan.Record) error
}

// Applier carries out steps, one after the other.
type Applier struct {
	copy  Copy
	rec   plan.Record // of what is done, as it would be stored
	dirty bool        // it is not stored
}

// New returns an applier that goes on from a record.
func New(c Copy, rec plan.Record) *Applier { return &Applier{copy: c, rec: rec, dirty: true} }

// Progress returns how far everything is done and durable.
func (a *Applier) Progress() plan.Progress { return a.rec.Progress }

// Until tells, if it was not known, up to where operations may have had their
// effect already.
func (a *Applier) Until(p format.Position) {
	if a.rec.Until == plan.Unknown {
		a.rec.Until, a.dirty = p, true
	}
}

// Under tells under what lock steps are carried out from now on, and what the
// newest epoch of the copy's journal is. It is stored at once.
func (a *Applier) Under(ctx context.Context, lock string, localTag uint64) error {
	a.rec.Lock, a.rec.LocalTag = lock, localTag
	return a.save(ctx)
}

// Checkpoint stores the record, if it is behind.
func (a *Applier) Checkpoint(ctx context.Context) error {
	if !a.dirty {
		return nil
	}
	return a.save(ctx)
}

func (a *Applier) save(ctx context.Context) error {
	if err := a.copy.Save(ctx, a.rec); err != nil {
		a.dirty = true
		return fmt.Errorf("storing the progress: %w", err)
	}
	a.dirty = false
	return nil
}

// DoBatches carries out batches, one after the other, and returns how many. After
// an error it is as with Do.
func (a *Applier) DoBatches(ctx context.Context, batches []*plan.Batch) (int, error) {
	lists := make([][]*merge.Object, len(batches))
	for i, b := range batches {
		lists[i] = b.Objects
	}
	n, err := a.copy.WriteInTurn(ctx, lists)
	if n > 0 {
		a.rec.Progress, a.rec.Compared, a.dirty = batches[n-1].After(), false, true
	}
	return n, err
}

// Do carries out a step. After an error only a new applier may go on, from what is
// stored.
func (a *Applier) Do(ctx context.Context, w plan.Work) error {
	next := a.rec
	next.Progress = w.After()
	switch w := w.(type) {
	case *plan.Batch:
		if len(w.Objects) > 0 {
			if err := a.copy.Write(ctx, w.Objects); err != nil {
				return err
			}
		}
		next.Compared = false
		a.rec, a.dirty = next, true
	case *plan.Operation:
		// Writes since the last record may be repeated: nothing of the operation
		// is to be seen before its end, or it is absolute as they are.
		next.Compared = false
		at, _ := next.Done.First()
		if err := a.copy.Operate(ctx, w.Op, a.rec.Exact(at), next); err != nil {
			if errors.Is(err, ErrInexact) && a.rec.Fresh && !a.rec.Exact(at) {
				return fmt.Errorf("%w: %w", ErrUnsettled, err)
			}
			return err
		}
		a.rec, a.dirty = next, false
	case *plan.Compare:
		return a.compare(ctx, w, next)
	}
	return nil
}

// compare carries out a compare-and-write. What it finds depends on all writes
// before and on none after, so the record is stored right before and right after.
func (a *Applier) compare(ctx context.Context, w *plan.Compare, next plan.Record) error {
	if err := a.Checkpoint(ctx); err != nil {
		return err
	}
	due := a.rec.Compared
	if !due {
		var err error
		if due, err = a.copy.Matches(ctx, w.Offset, w.Compare); err != nil {
			return err
		}
	}
	if due {
		img := a.copy.Image()
		b := merge.NewBuilder(img.Layout, img.Size)
		b.Add(format.Write{Offset: w.Offset, Length: w.Length, Data: w.Data})
		// When only a part of it is written, the comparison cannot be repeated.
		if b.Len() > 1 && !a.rec.Compared {
			a.rec.Compared = true
			if err := a.save(ctx); err != nil {
				return err
			}
		}
		if err := a.copy.Write(ctx, b.Objects()); err != nil {
			return err
		}
	}
	next.Compared = false
	a.rec = next
	return a.save(ctx)
}
