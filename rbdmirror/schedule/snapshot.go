package schedule

import (
	"fmt"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// makeSnapshot makes a mirror snapshot with librbd, which does all that goes with
// it: takes over or asks the holder of the exclusive lock, notes the peers that
// need the snapshot, and removes what is too much.
func makeSnapshot(ioctx *rados.IOContext, id string) (err error) {
	img, err := rbd.OpenImageById(ioctx, id, rbd.NoSnapshot)
	if err != nil {
		return fmt.Errorf("opening the image: %w", err)
	}
	defer func() {
		if e := img.Close(); e != nil && err == nil {
			err = fmt.Errorf("closing the image: %w", e)
		}
	}()
	if _, err := img.CreateMirrorSnapshot(); err != nil {
		return fmt.Errorf("making a mirror snapshot: %w", err)
	}
	return nil
}
