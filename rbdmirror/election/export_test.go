//go:build cgo

package election

import (
	"context"
	"time"
)

// SetWatchTimeout makes watches that time out be lost sooner. It is called
// before Run.
func (m *Member) SetWatchTimeout(d time.Duration) { m.watchTimeout = d }

// StoredMap reads the image map, also while not leading.
func (m *Member) StoredMap(ctx context.Context, namespace string) ([]Mapping, error) {
	return m.storedMap(ctx, namespace)
}
