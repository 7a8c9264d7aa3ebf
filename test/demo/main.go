// Command demo shows cephmirror to someone who has not seen it: it brings up
// two small clusters, mirrors a directory and an image from one to the other,
// lets the progress be seen, compares both sides and cleans up. It runs inside
// the test bed's environment ("make demo").
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"cephmirror/test/bed"
	"cephmirror/test/cephtree"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const dir = "/projects"

// stage is where the demo plays.
type stage struct {
	bed    *bed.Bed
	a, b   *bed.Cluster
	source *cephtree.Client
	target *cephtree.Client
	binary string
	socket string
	peer   string // uuid
}

func run(ctx context.Context) (err error) {
	s := &stage{}
	if s.bed, err = bed.Open(bed.Options{}); err != nil {
		return err
	}
	defer func() {
		say("Cleaning up")
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if s.source != nil {
			err = errors.Join(err, s.source.Close())
		}
		if s.target != nil {
			err = errors.Join(err, s.target.Close())
		}
		err = errors.Join(err, s.bed.Down(ctx))
		s.bed.Close(ctx)
	}()
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	s.binary = filepath.Join(bed.FindCheckout(wd), "bin", s.bed.Release().Name, "cephmirror")
	for _, step := range []func(context.Context) error{
		s.clusters, s.enable, s.fill, s.daemon, s.first, s.second, s.status, stopped(s.images),
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	say("Every snapshot is the same on both sides.")
	return nil
}

func say(format string, args ...any) {
	fmt.Printf("\n== %s\n", fmt.Sprintf(format, args...))
}

// command shows and runs what a user would type, and shows what it prints.
func (s *stage) command(ctx context.Context, input string, args ...string) (string, error) {
	shown := args
	if args[0] == s.binary {
		shown = append([]string{"cephmirror"}, args[1:]...)
	}
	fmt.Println("  $", strings.Join(shown, " "))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(shown, " "), err)
	}
	return strings.TrimRight(string(out), "\n"), nil
}

func (s *stage) mirror(ctx context.Context, words ...string) (string, error) {
	return s.command(ctx, "", append([]string{s.binary, "fs", "snapshot", "mirror"}, words...)...)
}

func (s *stage) clusters(ctx context.Context) error {
	say("Two clusters of Ceph %s, a and b, each with a mon, a mgr, an MDS and an OSD", s.bed.Release().Name)
	g, upCtx := errgroup.WithContext(ctx)
	for name, c := range map[string]**bed.Cluster{"a": &s.a, "b": &s.b} {
		g.Go(func() (err error) {
			*c, err = s.bed.Up(upCtx, bed.ClusterSpec{Name: name})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.a.AddMirrorUser(ctx, "mirror"); err != nil {
		return err
	}
	var err error
	if s.source, err = cephtree.Open(s.a.Conf(), "cephfs"); err != nil {
		return err
	}
	s.target, err = cephtree.Open(s.b.Conf(), "cephfs")
	return err
}

func (s *stage) enable(ctx context.Context) error {
	say("b makes a token for its peer, a takes it and enables mirroring of a directory")
	out, err := s.mirror(ctx, "peer_bootstrap", "create", "cephfs", "client.from_a", "b", "--cluster", "b")
	if err != nil {
		return err
	}
	var reply struct{ Token string }
	if err := json.Unmarshal([]byte(out), &reply); err != nil {
		return fmt.Errorf("reading the token: %w", err)
	}
	if _, err := s.mirror(ctx, "enable", "cephfs", "--cluster", "a"); err != nil {
		return err
	}
	_, err = s.command(ctx, reply.Token+"\n", s.binary, "fs", "snapshot", "mirror",
		"peer_bootstrap", "import", "cephfs", "-", "--cluster", "a")
	if err != nil {
		return err
	}
	if _, err := s.mirror(ctx, "add", "cephfs", dir, "--cluster", "a"); err != nil {
		return err
	}
	if out, err = s.mirror(ctx, "peer_list", "cephfs", "--cluster", "a"); err != nil {
		return err
	}
	fmt.Println(out)
	var peers map[string]any
	if err := json.Unmarshal([]byte(out), &peers); err != nil || len(peers) != 1 {
		return fmt.Errorf("expected one peer: %w", err)
	}
	for s.peer = range maps.Keys(peers) {
	}
	return nil
}

const (
	folders   = 20
	perFolder = 40
	bigFile   = 96 << 20 // bytes
)

func (s *stage) fill(ctx context.Context) error {
	say("%s on a: %d files of 4 KiB, one of %d MiB, links, a FIFO; then a snapshot", dir, folders*perFolder, bigFile>>20)
	m := s.source
	if err := m.MakeDir(dir, 0o755); err != nil {
		return err
	}
	for d := range folders {
		if err := m.MakeDir(fmt.Sprintf("%s/dir%02d", dir, d), 0o755); err != nil {
			return err
		}
	}
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for n := range folders * perFolder {
		g.Go(func() error {
			return s.write(fmt.Sprintf("%s/dir%02d/file%02d", dir, n/perFolder, n%perFolder), uint64(n), 4096)
		})
	}
	g.Go(func() error { return s.write(dir+"/big", 1, bigFile) })
	if err := g.Wait(); err != nil {
		return err
	}
	return errors.Join(
		m.MountInfo.Symlink("dir00/file00", dir+"/symlink"),
		m.MountInfo.Link(dir+"/dir00/file00", dir+"/hard link"),
		m.MakeNode(dir+"/fifo", syscall.S_IFIFO|0o600, 0),
		m.MakeSnapshot(dir, "monday", 0o755, nil),
	)
}

func (s *stage) write(path string, seed uint64, size int) error {
	f, err := s.source.Open(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	const piece = 4 << 20
	for at := 0; at < size && err == nil; at += piece {
		_, err = f.WriteAt(cephtree.Data(seed+uint64(at), min(piece, size-at)), int64(at))
	}
	return errors.Join(err, f.Close())
}

func (s *stage) daemon(ctx context.Context) error {
	say("The daemon")
	s.socket = filepath.Join(s.a.RunDir(), "a-client.mirror.asok")
	args := []string{s.binary, "cephfs-mirror", "--cluster", "a", "--id", "mirror", "-f"}
	fmt.Println("  $ cephmirror", strings.Join(args[1:], " "))
	_, err := s.bed.StartProcess(bed.ProcessSpec{Name: "cephmirror", Args: args})
	return err
}

// directory is what the status tells of a directory.
type directory struct {
	State    string
	Last     *struct{ Name string } `json:"last_synced_snap"`
	Error    string                 `json:"last_error"`
	Progress *struct {
		FilesDone  int64   `json:"files_done"`
		FilesTotal int64   `json:"files_total"`
		BytesDone  int64   `json:"bytes_done"`
		BytesTotal int64   `json:"bytes_total"`
		Rate       float64 `json:"bytes_per_second"`
		Left       float64 `json:"seconds_left"`
	}
}

// follow shows the progress until a snapshot has arrived.
func (s *stage) follow(ctx context.Context, snapshot string) error {
	fmt.Println("  $ cephmirror daemon", s.socket, "fs mirror peer status cephfs@1", s.peer)
	began, shown := time.Now(), ""
	for {
		out, err := exec.CommandContext(ctx, s.binary, "daemon", s.socket, "fs", "mirror", "peer", "status", "cephfs@1", s.peer).Output()
		var dirs map[string]directory
		if err == nil && json.Unmarshal(out, &dirs) == nil {
			d := dirs[dir]
			line := d.State
			if p := d.Progress; p != nil {
				line = fmt.Sprintf("%s  %d of %d files, %d of %d MiB, %.0f MiB/s, %.0f s left", d.State, p.FilesDone, p.FilesTotal,
					p.BytesDone>>20, p.BytesTotal>>20, p.Rate/(1<<20), p.Left)
			}
			if d.Error != "" {
				line += "  " + d.Error
			}
			if line != shown && d.State != "" {
				fmt.Printf("    %4.1fs  %s\n", time.Since(began).Seconds(), line)
				shown = line
			}
			if d.Last != nil && d.Last.Name == snapshot && d.State == "idle" {
				return s.compare(ctx, snapshot)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for snapshot %s: %w", snapshot, ctx.Err())
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// compare prints a checksum of the snapshot on each side, made of every name
// with all its attributes and content, and fails if they differ.
func (s *stage) compare(ctx context.Context, snapshot string) error {
	path := dir + "/.snap/" + snapshot
	var sums []string
	for _, side := range []struct {
		name   string
		client *cephtree.Client
	}{{"a", s.source}, {"b", s.target}} {
		tree, err := cephtree.Scan(ctx, side.client.MountInfo, path)
		if err != nil {
			return fmt.Errorf("reading %s on %s: %w", path, side.name, err)
		}
		sum := checksum(tree)
		fmt.Printf("  %s: %s  %d names, tree checksum %s\n", side.name, path, len(tree), sum)
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		diffs, err := cephtree.Compare(ctx, s.source.MountInfo, path, s.target.MountInfo, path)
		if err != nil {
			return err
		}
		return fmt.Errorf("the snapshots differ:\n%s", cephtree.Report(diffs, 20))
	}
	return nil
}

func checksum(tree cephtree.Tree) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		e := tree[name]
		e.Ino = 0 // another on each side
		fmt.Fprintf(h, "%q %v\n", name, e)
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:16]
}

func (s *stage) first(ctx context.Context) error {
	say("The first snapshot arrives on b")
	return s.follow(ctx, "monday")
}

func (s *stage) second(ctx context.Context) error {
	say("Changes: a directory renamed, one removed, a file truncated, 4 KiB of the big one overwritten, modes, xattrs")
	m := s.source
	big, err := m.Open(dir+"/big", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = big.WriteAt(cephtree.Data(7, 4096), 33<<20)
	if err := errors.Join(err, big.Close()); err != nil {
		return err
	}
	for n := range perFolder {
		if err := m.Unlink(fmt.Sprintf("%s/dir03/file%02d", dir, n)); err != nil {
			return err
		}
	}
	err = errors.Join(
		m.Rename(dir+"/dir01", dir+"/renamed"),
		m.RemoveDir(dir+"/dir03"),
		m.Truncate(dir+"/dir02/file00", 100),
		m.Chmod(dir+"/dir02/file01", 0o4750),
		m.SetXattr(dir+"/dir02/file02", "user.colour", []byte("blue"), 0),
		m.MakeSnapshot(dir, "tuesday", 0o755, nil),
	)
	if err != nil {
		return err
	}
	return s.follow(ctx, "tuesday")
}

func (s *stage) status(ctx context.Context) error {
	say("What the tools of Ceph see")
	for _, words := range [][]string{
		{"ceph", "--admin-daemon", s.socket, "fs", "mirror", "status", "cephfs@1"},
		{"ceph", "--admin-daemon", s.socket, "fs", "mirror", "peer", "status", "cephfs@1", s.peer},
		{s.binary, "fs", "snapshot", "mirror", "daemon", "status", "--cluster", "a"},
	} {
		out, err := s.command(ctx, "", words...)
		if err != nil {
			return err
		}
		fmt.Println(out)
	}
	fmt.Println("  $ ceph -s")
	out, err := s.a.Ceph(ctx, "-s")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "health") || strings.Contains(line, "mirror") {
			fmt.Print(line)
		}
	}
	return nil
}
