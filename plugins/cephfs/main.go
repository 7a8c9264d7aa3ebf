// Command cephmirror-cephfs is the plugin that mirrors CephFS directories. The
// host starts it; it is of no use by itself.
package main

import (
	"cephmirror/fsmirror"
	"cephmirror/internal/ceph"
	"cephmirror/plugins"
)

func main() {
	ceph.TraceCrashes()
	plugins.Serve(func(env plugins.Env) plugins.Plugin { return fsmirror.New(env.Log, env.Lease) })
}
