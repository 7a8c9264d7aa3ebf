package replay

import (
	"context"
	"errors"
)

// purge removes what is left of a local image that was never complete, or whose
// removal broke off.
func (r *Replayer) purge(ctx context.Context, v *view) error {
	return errors.New("not there yet")
}

// delete moves the local image to the trash.
func (r *Replayer) delete(ctx context.Context, v *view) error {
	return errors.New("not there yet")
}
