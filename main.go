// Command cephmirror mirrors Ceph block images and CephFS directory snapshots
// from one Ceph cluster to another.
package main

import (
	"os"

	"cephmirror/host"
)

func main() {
	os.Exit(host.Main(os.Args, os.Environ()))
}
