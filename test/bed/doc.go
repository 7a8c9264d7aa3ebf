// Package bed brings up small real Ceph clusters on loopback, several side by
// side, for tests, benchmarks and demonstrations: monitor, mgr, MDS and OSDs
// from distribution packages, cephx on, every cluster with its own ports.
//
// # Command line
//
//	go build -o bin/bed ./test/bed/cmd/bed
//	bin/bed up a b                      # two clusters, each with file system "cephfs"
//	bin/bed status
//	bin/bed exec a -- ceph -s           # as administrator of a
//	bin/bed user a mirror mirror        # client.mirror, as documented for cephfs-mirror
//	bin/bed user b peer remote          # client.remote, as documented for its peer
//	bin/bed run -- cephfs-mirror --cluster a --id mirror -f
//	bin/bed kill a mds.a; bin/bed restart a mds.a; bin/bed logs a osd.0
//	bin/bed enter --fresh -- go test -tags tentacle ./test/e2e/   # apart from a and b
//	bin/bed down                        # everything, without a trace
//
// # Settings
//
// CEPHMIRROR_RELEASE (or --release) chooses the Ceph release: reef or tentacle.
// CEPHMIRROR_BED is the state directory: a short path, the same inside and
// outside; by default one that belongs to the checkout and the release.
// CEPHMIRROR_CACHE is where root file systems and build caches are kept.
//
// # The environment
//
// Everything of Ceph runs inside an environment: a private mount namespace in
// which /etc/ceph is the bed's own. If the machine's Ceph is of the chosen
// release and complete, headers included, that is all. Otherwise the root is a cached root file system with
// the release's packages, made once with mmdebstrap; the checkout, Go with its
// module cache, and /var/tmp are visible in it under their usual paths. /tmp is
// fresh in each environment. There is no network for Go inside: modules must
// have been downloaded.
//
// # From tests
//
// Tests that need clusters run inside, started by `bed enter`, and skip
// themselves elsewhere:
//
//	if bed.InsideRelease() == "" {
//		t.Skip("needs Ceph: run with bed enter")
//	}
//	b, err := bed.Open(bed.Options{Logf: t.Logf})
//	a, err := b.Up(ctx, bed.ClusterSpec{Name: "a"})
//	err = a.AddMirrorUser(ctx, "mirror")
//	out, err := a.MonCommand(ctx, map[string]any{"prefix": "fs dump", "format": "json"})
//	p, err := b.StartProcess(bed.ProcessSpec{Name: "m", Args: []string{"cephfs-mirror", "--cluster", "a", "--id", "mirror", "-f"}})
//	err = a.Daemon("mds.a").Restart(ctx, syscall.SIGKILL)
//	b.Close(ctx) // processes and connections; b.Down(ctx) also the clusters
package bed
