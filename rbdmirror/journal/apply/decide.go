package apply

import (
	"errors"
	"fmt"
	"reflect"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
)

// ErrInexact says that an operation of the journal does not fit the copy: the
// copy cannot be made equal by going on.
var ErrInexact = errors.New("the copy is not what the journal assumes")

// ErrUnsettled is ErrInexact where the copy was made while the journal went on: in a
// copy that is made now it may fit.
var ErrUnsettled = fmt.Errorf("%w, which was changed while it was first copied", ErrInexact)

// Snapshot is a snapshot of the copy.
type Snapshot struct {
	ID        uint64
	Name      string
	Namespace cls.SnapshotNamespace
	Size      uint64
	Protected bool
}

// State is what of the copy bears on operations.
type State struct {
	Name      string
	Size      uint64
	Snapshots []Snapshot
	// SnapSeqs are the copy's snapshots for those of the primary, where known.
	SnapSeqs map[uint64]uint64
	Parent   bool
	// Exact says that everything before the operation is done and it is not.
	// Otherwise another daemon may have done it, and what follows it too.
	Exact bool
}

// Step is what an operation comes down to.
type Step interface{ step() }

// Steps.
type (
	// Nothing is left to do.
	Nothing struct{}
	// AddSnapshot makes a snapshot.
	AddSnapshot struct {
		Name      string
		Namespace cls.SnapshotNamespace
	}
	// RemoveSnapshot removes a snapshot with all it has.
	RemoveSnapshot struct{ ID uint64 }
	// RenameSnapshot renames a snapshot, which is Remote at the primary.
	RenameSnapshot struct {
		ID, Remote uint64
		Name       string
	}
	// Protect protects a snapshot or ends that.
	Protect struct {
		ID        uint64
		Protected bool
	}
	// Rollback gives the image a snapshot's content and size.
	Rollback struct{ ID, Size uint64 }
	// Resize gives the image another size.
	Resize struct{ Size uint64 }
	// Flatten copies what shows of the parent and detaches it.
	Flatten struct{}
	// Rename renames the image.
	Rename struct{ From, To string }
	// SetFeatures switches features.
	SetFeatures struct {
		Features uint64
		Enabled  bool
	}
	// SetMetadata sets metadata.
	SetMetadata struct{ Key, Value string }
	// RemoveMetadata removes metadata.
	RemoveMetadata struct{ Key string }
	// SetSnapLimit limits the number of snapshots.
	SetSnapLimit struct{ Limit uint64 }
)

func (Nothing) step()        {}
func (AddSnapshot) step()    {}
func (RemoveSnapshot) step() {}
func (RenameSnapshot) step() {}
func (Protect) step()        {}
func (Rollback) step()       {}
func (Resize) step()         {}
func (Flatten) step()        {}
func (Rename) step()         {}
func (SetFeatures) step()    {}
func (SetMetadata) step()    {}
func (RemoveMetadata) step() {}
func (SetSnapLimit) step()   {}

// Decide returns what an operation comes down to, given the state of the copy.
func Decide(op format.Op, s State) (Step, error) {
	switch op := op.(type) {
	case format.SnapCreate:
		if old := s.find(op.Snap); old == nil {
			return AddSnapshot{op.Name, op.Namespace}, nil
		}
		return s.settled(op, "snapshot %q exists", op.Name)
	case format.SnapRemove:
		// The snapshots that first copies were made from are not copied
		// themselves, so none need be there.
		if old := s.find(op.Snap); old != nil {
			return RemoveSnapshot{old.ID}, nil
		}
		return Nothing{}, nil
	case format.SnapRename:
		return s.rename(op)
	case format.SnapProtect:
		return s.protect(op, op.Snap, true)
	case format.SnapUnprotect:
		return s.protect(op, op.Snap, false)
	case format.SnapRollback:
		if old := s.find(op.Snap); old != nil {
			return Rollback{old.ID, old.Size}, nil
		}
		// Nobody can tell what the image looked like.
		return nil, inexact(op, "there is no snapshot %q", op.Name)
	case format.Resize:
		if s.Size == op.Size {
			return Nothing{}, nil
		}
		return Resize{op.Size}, nil
	case format.Flatten:
		if s.Parent {
			return Flatten{}, nil
		}
		return Nothing{}, nil
	case format.Rename:
		if s.Name == op.Name {
			return Nothing{}, nil
		}
		return Rename{s.Name, op.Name}, nil
	case format.UpdateFeatures:
		return SetFeatures{op.Features, op.Enabled}, nil
	case format.MetadataSet:
		return SetMetadata{op.Key, op.Value}, nil
	case format.MetadataRemove:
		return RemoveMetadata{op.Key}, nil
	case format.SnapLimit:
		return SetSnapLimit{op.Limit}, nil
	}
	return nil, inexact(op, "it is unknown")
}

func inexact(op format.Op, text string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", format.Name(op), fmt.Sprintf(text, args...), ErrInexact)
}

// settled says that an operation was done already, which nobody but another daemon
// can have.
func (s State) settled(op format.Op, text string, args ...any) (Step, error) {
	if s.Exact {
		return nil, inexact(op, text, args...)
	}
	return Nothing{}, nil
}

func (s State) find(want format.Snap) *Snapshot {
	return s.findNamed(want.Name, want.Namespace)
}

func (s State) findNamed(name string, ns cls.SnapshotNamespace) *Snapshot {
	for i, have := range s.Snapshots {
		if have.Name == name && reflect.DeepEqual(have.Namespace, ns) {
			return &s.Snapshots[i]
		}
	}
	return nil
}

func (s State) rename(op format.SnapRename) (Step, error) {
	to := s.findNamed(op.To, cls.User)
	from := s.findNamed(op.From, cls.User)
	if id, ok := s.SnapSeqs[op.SnapID]; ok && from == nil {
		for i, have := range s.Snapshots {
			if have.ID == id && have.Namespace.Type == cls.NamespaceUser {
				from = &s.Snapshots[i]
			}
		}
	}
	switch {
	case from != nil && from == to:
		return Nothing{}, nil
	case from != nil && to == nil:
		return RenameSnapshot{from.ID, op.SnapID, op.To}, nil
	case from != nil && !s.Exact:
		// It was renamed before, and its creation repeated since.
		return RemoveSnapshot{from.ID}, nil
	case from != nil:
		return nil, inexact(op, "snapshots %q and %q both exist", op.From, op.To)
	}
	return s.settled(op, "there is no snapshot %q", op.From)
}

func (s State) protect(op format.Op, snap format.Snap, protected bool) (Step, error) {
	old := s.find(snap)
	switch {
	case old == nil:
		return s.settled(op, "there is no snapshot %q", snap.Name)
	case old.Protected == protected:
		return Nothing{}, nil
	}
	return Protect{old.ID, protected}, nil
}
