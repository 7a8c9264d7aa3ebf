// Package ceph is a thin shim over the few calls of librados and libcephfs
// that go-ceph lacks. It is shaped like go-ceph, so that each part could be
// sent upstream: plain methods, errors that carry an errno, no policy.
package ceph
