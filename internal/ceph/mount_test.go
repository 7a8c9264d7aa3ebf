package ceph

import "testing"

// An upgrade of go-ceph that changes MountInfo must fail here, not crash.
func TestMountInfoLayout(t *testing.T) {
	if err := checkMountInfo(); err != nil {
		t.Fatal(err)
	}
}
