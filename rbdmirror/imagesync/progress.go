package imagesync

import (
	"context"
	"fmt"
	"time"
)

// saveProgress saves every now and then how far the run has come, until
// finished is closed or ctx ends.
func (r *run) saveProgress(ctx context.Context, finished <-chan struct{}) error {
	tick := time.NewTicker(r.SaveEvery)
	defer tick.Stop()
	saved := r.Resume
	for {
		var last bool
		select {
		case <-tick.C:
		case <-finished:
			// Nobody needs it of a run that succeeded.
			last = true
		case <-ctx.Done():
			last = true
		}
		below := r.track.progress()
		if below > 0 && below-1 > saved && !(last && ctx.Err() == nil) {
			if err := r.mayWrite(r.writes); err != nil {
				return err
			}
			if err := r.SaveProgress(r.writes, below-1); err != nil {
				return fmt.Errorf("saving progress: %w", err)
			}
			saved = below - 1
		}
		if last {
			return nil
		}
	}
}
