package store

import (
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
)

// maxStateObjects bounds how many objects of an image state are believed in.
const maxStateObjects = 4096

// ImageStates are the image states kept beside mirror snapshots.
type ImageStates struct{ ioctx *rados.IOContext }

// NewImageStates returns the image states in the context's pool and namespace.
func NewImageStates(ioctx *rados.IOContext) *ImageStates { return &ImageStates{ioctx} }

func stateObject(imageID string, snap uint64, index int) string {
	return fmt.Sprintf("rbd_mirror_snapshot.%s.%d.%d", imageID, snap, index)
}

// chunks returns the objects of an image state as they are.
func (s *ImageStates) chunks(imageID string, snap uint64) ([][]byte, error) {
	first, err := readObject(s.ioctx, stateObject(imageID, snap, 0))
	if err != nil {
		return nil, err
	}
	count, err := cls.DecodeImageStateHeader(first)
	if err == nil && count > maxStateObjects {
		err = fmt.Errorf("%d objects", count)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", stateObject(imageID, snap, 0), err)
	}
	out := [][]byte{first}
	for i := 1; i < int(count); i++ {
		b, err := readObject(s.ioctx, stateObject(imageID, snap, i))
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Read returns the image state of a mirror snapshot. ENOENT: it has none.
func (s *ImageStates) Read(imageID string, snap uint64) (cls.ImageState, error) {
	chunks, err := s.chunks(imageID, snap)
	if err != nil {
		return cls.ImageState{}, err
	}
	var all []byte
	for _, c := range chunks {
		all = append(all, c...)
	}
	state, err := cls.DecodeImageState(all)
	if err != nil {
		return cls.ImageState{}, fmt.Errorf("%s: %w", stateObject(imageID, snap, 0), err)
	}
	return state, nil
}

// Write stores the image state of a mirror snapshot.
func (s *ImageStates) Write(imageID string, snap uint64, state cls.ImageState) error {
	return s.writeChunks(imageID, snap, state.Encode(4<<20))
}

// Copy stores the image state of a snapshot of another image, usually of
// another cluster, as that of a snapshot of ours, byte by byte.
func (s *ImageStates) Copy(from *ImageStates, fromImage string, fromSnap uint64, toImage string, toSnap uint64) error {
	chunks, err := from.chunks(fromImage, fromSnap)
	if err != nil {
		return err
	}
	return s.writeChunks(toImage, toSnap, chunks)
}

// writeChunks writes the first object last: it tells how many there are.
func (s *ImageStates) writeChunks(imageID string, snap uint64, chunks [][]byte) error {
	for i := len(chunks) - 1; i >= 0; i-- {
		oid := stateObject(imageID, snap, i)
		if err := s.ioctx.WriteFull(oid, chunks[i]); err != nil {
			return fmt.Errorf("%s: writing: %w", oid, err)
		}
	}
	return nil
}

// Delete removes the image state of a mirror snapshot. It is no error that it
// has none.
func (s *ImageStates) Delete(imageID string, snap uint64) error {
	oid := stateObject(imageID, snap, 0)
	var count uint32
	buf := make([]byte, 64)
	n, err := s.ioctx.Read(oid, buf, 0)
	switch {
	case err == nil:
		// an unreadable one goes as far as it can be found
		count, _ = cls.DecodeImageStateHeader(buf[:n])
	case !ceph.Is(err, syscall.ENOENT):
		return fmt.Errorf("%s: reading: %w", oid, err)
	}
	// The first goes last, so that a removal that broke off can be repeated.
	for i := int(min(count, maxStateObjects)) - 1; i > 0; i-- {
		if err := remove(s.ioctx, stateObject(imageID, snap, i)); err != nil {
			return err
		}
	}
	return remove(s.ioctx, oid)
}
