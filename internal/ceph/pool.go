package ceph

import (
	"fmt"

	"github.com/ceph/go-ceph/rados"
)

// OpenPool opens a pool for writers that must not be kept waiting by a lack of
// room: what needs more of it fails with ENOSPC or EDQUOT, and what needs none,
// or gives some back, is done. An ordinary context has librados hold back all
// writes until there is room.
func OpenPool(conn *rados.Conn, name string) (*rados.IOContext, error) {
	ioctx, err := conn.OpenIOContext(name)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", name, err)
	}
	if err := ioctx.SetPoolFullTry(); err != nil {
		ioctx.Destroy()
		return nil, fmt.Errorf("opening pool %s: %w", name, err)
	}
	return ioctx, nil
}
