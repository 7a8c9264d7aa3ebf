// Command cephmirror-cephfs is the plugin that mirrors CephFS directories. The
// host starts it; it is of no use by itself.
package main

import (
	"cephmirror/fsmirror"
	"cephmirror/plugins"
)

func main() {
	plugins.Serve(func(env plugins.Env) plugins.Plugin { return fsmirror.New(env.Log, env.Lease) })
}
