// Command cephmirror-rbd is the plugin that mirrors RBD images. The host starts
// it; it is of no use by itself.
package main

import (
	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror"
)

func main() {
	ceph.TraceCrashes()
	plugins.Serve(func(env plugins.Env) plugins.Plugin { return rbdmirror.New(env.Log, env.Lease) })
}
