package fsmirror

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/cephfs"
	"github.com/ceph/go-ceph/rados"
	"github.com/rs/zerolog"

	"cephmirror/fsmirror/treesync"
	"cephmirror/internal/ceph"
	"cephmirror/snapdiff/blocks"
)

// errLocked: another daemon works on the directory; try later, silently.
var errLocked = errors.New("locked by another daemon")

// errOutdated: libcephfs still believes in a snapshot that another client has
// removed. Only a new mount forgets it.
var errOutdated = errors.New("the mount of the peer believes in a removed snapshot")

// invalidMetadata is the stock daemon's reason for a snapshot on the peer that
// nobody mirrored and that is in the way.
type invalidMetadata struct{ name string }

func (e invalidMetadata) Error() string {
	return fmt.Sprintf("snapshot '%s' has invalid metadata", e.name)
}

func (invalidMetadata) Is(target error) bool { return target == error(syscall.EINVAL) }

// cycle brings the peer's snapshots of one directory up to date.
type cycle struct {
	dir    string
	conn   *rados.Conn // to the source's cluster
	source *ceph.Mount
	check  *ceph.Mount // the source again, with a cache of its own
	target *ceph.Mount
	owner  uint64 // of the lock on the peer
	gate   func(context.Context) error
	memory *treesync.Memory
	opts   cycleOptions
	status *directory
	log    zerolog.Logger
}

type cycleOptions struct {
	workers   int
	snapshots int  // at most so many in one cycle
	blockDiff bool // ask the OSDs for the changed extents of large files
	readAll   bool // taking over from another daemon, compare the content of every file
	settle    bool // have what clients still hold of a file written out before it is read
	rescan    bool // compare with the peer's tree, whatever is known of it
}

// run does one cycle. more tells that further snapshots wait.
func (c *cycle) run(ctx context.Context) (more bool, err error) {
	// Nothing may be made on the peer for a directory that is not there.
	st, err := c.source.StatAt(c.dir, ceph.Synced)
	if err != nil {
		return false, fmt.Errorf("reading attributes of %s: %w", c.dir, err)
	}
	if !st.IsDir() {
		return false, fmt.Errorf("%s: %w", c.dir, syscall.ENOTDIR)
	}
	local, err := listSnapshots(c.source, c.dir)
	if err != nil {
		return false, err
	}
	listed := time.Now()
	root, err := c.lock(ctx, st.Mode&07777)
	if err != nil {
		return false, err
	}
	defer root.Close()
	mirrored, strays, err := listMirrored(c.target, c.dir)
	if err != nil {
		return false, err
	}
	p := makePlan(local, mirrored, strays)
	c.status.setStrays(strays)
	if err := c.tidy(ctx, p); err != nil {
		return false, err
	}
	if p.last != nil {
		name := p.last.name
		for _, s := range local {
			if s.id == p.last.primary {
				name = s.name
			}
		}
		c.status.setLastKnown(p.last.primary, name)
	}
	if len(p.clash) > 0 && p.clash[0] == p.sync[0].name {
		return false, invalidMetadata{p.clash[0]}
	}
	last := p.last
	if len(p.sync) > 0 && !sleep(ctx, settleTime-time.Since(listed)) {
		return false, context.Cause(ctx)
	}
	for i, s := range p.sync {
		if i == c.opts.snapshots {
			return true, nil
		}
		for _, name := range p.clash {
			if name == s.name {
				return false, invalidMetadata{name}
			}
		}
		if err := c.sync(ctx, s, last, local); err != nil {
			return false, err
		}
		last = &snapshot{name: s.name, primary: s.id}
	}
	return false, nil
}

// lock opens the directory on the peer, made if it is missing, and takes the
// lock that the stock daemon takes. Closing the file gives it up.
func (c *cycle) lock(ctx context.Context, mode uint32) (*cephfs.File, error) {
	const flags = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW
	f, err := c.target.Open(c.dir, flags, 0)
	if ceph.Is(err, syscall.ENOENT) {
		if err := c.gate(ctx); err != nil {
			return nil, err
		}
		if parent := path.Dir(c.dir); parent != "/" {
			if err := c.target.MakeDirs(parent, 0o755); err != nil && !ceph.Is(err, syscall.EEXIST) {
				return nil, fmt.Errorf("making directory %s on the peer: %w", parent, err)
			}
		}
		if err := c.target.MakeDir(c.dir, mode); err != nil && !ceph.Is(err, syscall.EEXIST) {
			return nil, fmt.Errorf("making directory %s on the peer: %w", c.dir, err)
		}
		f, err = c.target.Open(c.dir, flags, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s on the peer: %w", c.dir, err)
	}
	err = f.Flock(cephfs.LockEX|cephfs.LockNB, c.owner)
	if ceph.Is(err, syscall.EWOULDBLOCK) {
		return nil, errors.Join(errLocked, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s on the peer: %w", c.dir, err), f.Close())
	}
	return f, nil
}

// tidy removes and renames the peer's snapshots as their sources were.
func (c *cycle) tidy(ctx context.Context, p plan) error {
	for _, s := range p.remove {
		if err := c.gate(ctx); err != nil {
			return err
		}
		if err := c.target.RemoveSnapshot(c.dir, s.name); err != nil && !ceph.Is(err, syscall.ENOENT) {
			return fmt.Errorf("removing snapshot %s of %s on the peer: %w", s.name, c.dir, err)
		}
		c.status.countDeleted()
		c.log.Info().Str("dir", c.dir).Str("snapshot", s.name).Msg("snapshot removed on the peer")
	}
	for _, r := range p.rename {
		if err := c.gate(ctx); err != nil {
			return err
		}
		if err := c.target.Rename(snapPath(c.dir, r.from), snapPath(c.dir, r.to)); err != nil {
			return fmt.Errorf("renaming snapshot %s of %s to %s on the peer: %w", r.from, c.dir, r.to, err)
		}
		c.status.countRenamed()
		c.log.Info().Str("dir", c.dir).Str("snapshot", r.from).Str("to", r.to).Msg("snapshot renamed on the peer")
	}
	return nil
}

// sync makes the peer's tree equal to snapshot s and makes the snapshot there.
func (c *cycle) sync(ctx context.Context, s snapshot, last *snapshot, local []snapshot) (err error) {
	progress := &treesync.Progress{}
	begun := c.status.begin(s, progress)
	defer func() { c.status.end(s, progress, begun, err) }()

	dirty, err := c.rootXattr(xattrDirty)
	if err != nil {
		return err
	}
	state, err := c.rootXattr(xattrState)
	if err != nil {
		return err
	}
	from, resumed := base(dirty, state, last, s.id)
	resumed = resumed && !c.opts.rescan
	previous := ""
	if from != 0 && !c.opts.rescan {
		for _, l := range local {
			if l.id == from {
				previous = l.name
			}
		}
	}
	note := syncState{id: s.id}
	if previous != "" {
		note = syncState{id: s.id, from: from, kind: stateFrom}
	} else {
		blank, err := treesync.Empty(c.target, c.dir)
		if err != nil {
			return fmt.Errorf("listing %s on the peer: %w", c.dir, err)
		}
		if blank || resumed {
			note.kind = stateNew
		}
	}
	if err := c.gate(ctx); err != nil {
		return err
	}
	if err := c.setRootXattr(xattrState, note.String()); err != nil {
		return err
	}
	if err := c.setRootXattr(xattrDirty, strconv.FormatUint(s.id, 10)); err != nil {
		return err
	}
	params := treesync.Params{
		Source:   c.source,
		Snapshot: snapPath(c.dir, s.name),
		Target:   c.target,
		Root:     trimRoot(c.dir),
		Trust: func(source, target *ceph.Stat) bool {
			return resumed || !c.opts.rescan && !c.opts.readAll && trustLooks(source)
		},
		Gate:      c.gate,
		Memory:    c.memory,
		Workers:   c.opts.workers,
		Progress:  progress,
		Deep:      !resumed,
		OwnXattrs: map[string]bool{xattrState: true},
	}
	if c.opts.settle {
		params.Settle = c.settle
	}
	if previous != "" {
		params.Previous = snapPath(c.dir, previous)
		at, _ := parseSyncState(state)
		params.Renames = at.kind == stateDone
		if c.opts.blockDiff {
			params.Blocks = func(ctx context.Context, f treesync.Pair) ([]treesync.Extent, bool, error) {
				return c.changedExtents(ctx, f, from, s.id)
			}
		}
	}
	if err := c.verifySource(s); err != nil {
		return err
	}
	if previous != "" {
		if err := c.verifySource(snapshot{name: previous, id: from}); err != nil {
			return err
		}
	}
	if err := treesync.Run(ctx, params); err != nil {
		return fmt.Errorf("synchronising snapshot %s of %s: %w", s.name, c.dir, err)
	}
	// What was told of a snapshot that is being removed means nothing.
	if previous != "" {
		if err := c.verifySource(snapshot{name: previous, id: from}); err != nil {
			return err
		}
	}
	if err := c.verify(ctx, params); err != nil {
		return fmt.Errorf("verifying snapshot %s of %s: %w", s.name, c.dir, err)
	}
	// The source may have been removed meanwhile, or made anew.
	if err := c.verifySource(s); err != nil {
		return err
	}
	if err := c.gate(ctx); err != nil {
		return err
	}
	if err := c.target.SyncFs(); err != nil {
		return fmt.Errorf("flushing the peer's file system: %w", err)
	}
	if err := c.gate(ctx); err != nil {
		return err
	}
	metadata := map[string]string{primarySnapID: strconv.FormatUint(s.id, 10)}
	if err := c.target.MakeSnapshot(c.dir, s.name, 0o755, metadata); err != nil {
		if ceph.Is(err, syscall.EEXIST) {
			if names, err := snapshotNames(c.target, c.dir); err == nil && !slices.Contains(names, s.name) {
				return errOutdated
			}
		}
		return fmt.Errorf("making snapshot %s of %s on the peer: %w", s.name, c.dir, err)
	}
	return c.setRootXattr(xattrState, syncState{id: s.id, kind: stateDone}.String())
}

// settle has what clients still hold of a file, which is below the directory at
// rel in a snapshot, written out. A file that is elsewhere now is asked for by its
// number.
//
// Opening a file in a snapshot waits for what clients hold of it. With several
// MDSs one was once read without what had just been written, all the same; how
// that came is not known. For the live file the MDS takes the right to hold data
// back from clients first.
func (c *cycle) settle(rel string, ino uint64) error {
	if st, err := c.source.StatAt(trimRoot(c.dir)+rel, ceph.Synced); err == nil && st.Ino == ino {
		return nil
	}
	if err := c.source.Settle(ino); err != nil {
		return fmt.Errorf("having inode %d written out: %w", ino, err)
	}
	return nil
}

// verify compares the peer's tree as a whole with the snapshot and mends what
// differs, until nothing does.
//
// For a moment after a snapshot is made the MDS shows files as they were before
// writes that other clients still hold, and sometimes lets our client cache
// that. So what the run was told is asked again, through another mount.
func (c *cycle) verify(ctx context.Context, params treesync.Params) error {
	params.Source = c.check
	params.Previous, params.Renames, params.Blocks = "", false, nil
	params.Deep = false
	params.Trust = func(source, target *ceph.Stat) bool { return true }
	total := params.Progress
	for range verifyPasses {
		params.Progress = &treesync.Progress{Whole: total}
		err := treesync.Run(ctx, params)
		total.BytesSent.Add(params.Progress.BytesSent.Load())
		if err != nil {
			return err
		}
		mended := params.Progress.Writes.Load()
		if mended == 0 {
			return nil
		}
		c.log.Info().Str("dir", c.dir).Int64("writes", mended).Msg("the snapshot had not settled when it was read, mended the copy")
	}
	return fmt.Errorf("the peer's tree still differs after %d comparisons: %w", verifyPasses, syscall.EAGAIN)
}

const verifyPasses = 3

// settleTime is how long after a snapshot was first seen it is left alone. What
// other clients still hold of it when it is made the MDS asks them for, and then
// makes us wait when we ask; but for the milliseconds in which their answers are
// under way it shows old attributes as if they were final.
const settleTime = 500 * time.Millisecond

// trustLooks tells whether a file on the peer, of which is not known from which
// snapshot it was copied or by whom, can be trusted to have the content that its
// size and modification time promise. That goes wrong only for writes after
// which the modification time was put back: those leave a later change time.
func trustLooks(source *ceph.Stat) bool {
	return source.Ctime == source.Mtime
}

func (c *cycle) verifySource(s snapshot) error {
	id, _, err := c.source.SnapInfo(snapPath(c.dir, s.name))
	if err != nil {
		return fmt.Errorf("reading snapshot %s of %s: %w", s.name, c.dir, err)
	}
	if id != s.id {
		return fmt.Errorf("snapshot %s of %s was made anew: %w", s.name, c.dir, syscall.ESTALE)
	}
	return nil
}

func (c *cycle) rootXattr(name string) (string, error) {
	v, err := c.target.GetXattr(c.dir, name)
	if ceph.Is(err, syscall.ENODATA) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading xattr %s of %s on the peer: %w", name, c.dir, err)
	}
	return string(v), nil
}

func (c *cycle) setRootXattr(name, value string) error {
	if err := c.target.SetXattr(c.dir, name, []byte(value), 0); err != nil {
		return fmt.Errorf("setting xattr %s of %s on the peer: %w", name, c.dir, err)
	}
	return nil
}

// trimRoot returns dir such that a path below can be appended: "" for "/".
func trimRoot(dir string) string {
	if dir == "/" {
		return ""
	}
	return dir
}

// changedExtents lists the extents of a file that may differ between two
// snapshots of the source. ok is false when it cannot tell.
func (c *cycle) changedExtents(ctx context.Context, f treesync.Pair, from, to uint64) (out []treesync.Extent, ok bool, err error) {
	extents, err := blocks.Changed(ctx, c.conn, c.source, blocks.Pair{
		Old: f.Old, New: f.New, OldSnap: from, NewSnap: to, OldStat: f.OldStat, NewStat: f.NewStat,
	})
	if errors.Is(err, blocks.ErrUnknown) {
		c.log.Debug().Err(err).Str("dir", c.dir).Uint64("inode", f.NewStat.Ino).Msg("comparing a file by reading")
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, e := range extents {
		out = append(out, treesync.Extent(e))
	}
	return out, true, nil
}
