// Package treesync makes a directory tree on the peer equal to a snapshot.
//
// A run walks the differences that snapdiff yields with many workers: every
// name is handled in one place, so that nothing depends on the order of names;
// a directory's own attributes are set when all below it is done. All data is
// written through to the OSDs before the attributes of its file are set, so a
// file whose size and modification time agree with the source is complete,
// also after a crash. Everything is idempotent: a run that was interrupted is
// simply repeated.
package treesync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/cephfs"

	"cephmirror/internal/ceph"
	"cephmirror/snapdiff"
)

// Params says what to make equal to what, and with which means.
type Params struct {
	Source   *ceph.Mount
	Snapshot string // path of the snapshot on Source
	// Previous is the path of the snapshot that the target is known to equal
	// (or, when a run is repeated, to lie between it and Snapshot). Empty: the
	// target is compared instead.
	Previous string
	// Renames: nothing was done to the target since it equalled Previous, so
	// that a directory which only got another name can get it there, too.
	Renames bool
	Target  *ceph.Mount
	Root    string // path of the tree on Target, an existing directory

	// Trust tells, when the target is compared, whether a file's content is
	// as good as its size and modification time say.
	Trust func(source, target *ceph.Stat) bool
	// Deep compares with the target also what listings do not show: xattrs,
	// where symlinks point. Not needed for a tree that earlier runs wrote:
	// they set what a listing shows last.
	Deep bool
	// Gate is waited on before every write; it blocks while writing is not
	// allowed, and its error ends the run.
	Gate func(context.Context) error
	// Memory lends the buffers.
	Memory *Memory
	// Workers is how many operations run at once.
	Workers int
	// Blocks, if set, lists the extents of a file that may differ between
	// Previous and Snapshot. ok is false when it cannot tell.
	Blocks func(ctx context.Context, f Pair) (extents []Extent, ok bool, err error)
	// Settle, if set, has what clients still hold of a file of the snapshot
	// written out. It is called before the file is opened.
	Settle func(rel string, ino uint64) error
	// Progress is updated while the run goes on.
	Progress *Progress
	// OwnXattrs are xattrs of the target's root that belong to the mirror.
	OwnXattrs map[string]bool
}

// Pair is a file as it is in Previous and in Snapshot, open.
type Pair struct {
	Old, New         *cephfs.File
	OldStat, NewStat ceph.Stat
}

// Extent is a byte range of a file.
type Extent struct{ Offset, Length uint64 }

// Progress counts what a run has done. Its fields may be read at any time.
type Progress struct {
	FilesSeen   atomic.Int64 // entries of the snapshot looked at
	FilesToDo   atomic.Int64 // entries found to differ
	FilesDone   atomic.Int64 // of these, made equal
	BytesToDo   atomic.Int64 // size of the files that may differ
	BytesDone   atomic.Int64 // of these, compared or copied
	BytesRead   atomic.Int64 // read from the source snapshot
	BytesSent   atomic.Int64 // written to the target
	Directories atomic.Int64 // directories looked at
	Writes      atomic.Int64 // changes made on the target, of any kind
	LastStep    atomic.Int64 // when something was last completed, Unix nanoseconds
	// Whole is what the run is a part of, nil if nothing: its last step is told
	// there, too.
	Whole *Progress
}

// step notes that something was completed.
func (p *Progress) step() {
	now := time.Now().UnixNano()
	for ; p != nil; p = p.Whole {
		p.LastStep.Store(now)
	}
}

// stepping lists directories, which can take minutes, and notes each entry.
type stepping struct {
	snapdiff.Lister
	progress *Progress
}

func (s stepping) List(path string, sync ceph.Sync, fn func(ceph.Entry) error) error {
	return s.Lister.List(path, sync, func(e ceph.Entry) error {
		s.progress.step()
		return fn(e)
	})
}

// Run makes the target equal to the snapshot. It returns when all workers have
// ended. What it wrote is durable only after a sync of the file system.
func Run(ctx context.Context, p Params) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{
		Params: p,
		ctx:    ctx,
		cancel: cancel,
		links:  make(map[uint64]*link),
		owner:  make(map[uint64]uint64),
	}
	r.cond = sync.NewCond(&r.mu)
	source, peer := stepping{p.Source, p.Progress}, stepping{p.Target, p.Progress}
	target := snapdiff.Target{Source: source, New: p.Snapshot, Peer: peer, Old: p.Root, Trust: p.Trust, Deep: p.Deep}
	r.scan = target
	r.diff = target
	if p.Previous != "" {
		r.diff = snapdiff.Snapshots{Source: source, Old: p.Previous, New: p.Snapshot}
	}
	st, err := p.Source.StatAt(p.Snapshot, ceph.Synced)
	if err != nil {
		return fmt.Errorf("reading attributes of %s: %w", p.Snapshot, err)
	}
	empty, err := Empty(p.Target, p.Root)
	if err != nil {
		return fmt.Errorf("listing %s on the peer: %w", p.Root, err)
	}
	r.blank = empty
	now, err := p.Target.StatAt(p.Root+"/", ceph.Synced)
	if err != nil {
		return fmt.Errorf("reading attributes of %s on the peer: %w", p.Root, err)
	}
	touched := p.Deep || p.Previous != "" || now.Mode != st.Mode || now.UID != st.UID || now.GID != st.GID ||
		now.Mtime != st.Mtime || now.Atime != st.Atime
	root := &node{stat: st, how: byDiff, touched: touched, left: 1}
	r.dirs = append(r.dirs, root)

	r.drain()
	for _, job := range r.copies {
		_ = job.close() // given up half-way; why is told already
	}
	return context.Cause(ctx)
}

// drain works until nothing is left or the run has failed.
func (r *run) drain() {
	stop := context.AfterFunc(r.ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cond.Broadcast()
	})
	defer stop()
	var wg sync.WaitGroup
	for range r.Workers {
		wg.Go(r.work)
	}
	wg.Wait()
}

// Empty tells whether a directory has no entries.
func Empty(m *ceph.Mount, path string) (bool, error) {
	found := errors.New("found")
	err := m.List(path, ceph.Cached, func(ceph.Entry) error { return found })
	if err == found {
		return false, nil
	}
	return err == nil, err
}

// how a directory is compared with what was there before.
type how int

const (
	byDiff   how = iota // with the previous state of the source, or the target if there is none
	byTarget            // with the target, because something was there unexpectedly
	fresh               // with nothing: the directory was just made
)

// node is a directory of the snapshot that is being worked on.
type node struct {
	parent  *node
	rel     string // path below the root, empty or with a leading slash
	was     string // the same in the previous snapshot
	stat    ceph.Stat
	old     *ceph.Stat // its attributes before, nil when new
	how     how
	remove  bool // something else of that name is to be removed first
	touched bool // its attributes are to be set when all below it is done
	left    int  // unfinished work: its own visit, names, subdirectories
	changes []snapdiff.Change
}

// link is an inode of the snapshot with several names.
type link struct {
	path    string // a name on the target that is that inode, "" while none
	claimed bool   // somebody is making the first name
	waiting []task // names to be made once there is a path
}

// task is one name to be made equal, or one chunk of a large file.
type task struct {
	n     *node
	c     snapdiff.Change
	first bool // make it, although other names of the inode may exist
}

// rel is the name's path below the root, was the same in the previous snapshot.
func (t task) rel() string { return t.n.rel + "/" + t.c.Name }
func (t task) was() string { return t.n.was + "/" + t.c.Name }

type run struct {
	Params
	ctx    context.Context
	cancel context.CancelCauseFunc
	diff   snapdiff.Differ
	scan   snapdiff.Differ
	blank  bool // the target was empty at the start

	mu     sync.Mutex
	cond   *sync.Cond
	active int              // workers at work
	copies []*copyJob       // large files with chunks left to hand out
	names  []*node          // directories with names left to hand out
	ready  []task           // names that waited for a link
	dirs   []*node          // directories to visit, deepest last
	links  map[uint64]*link // by inode of the snapshot
	parked int
	owner  map[uint64]uint64 // target inode → snapshot inode, of linked files
}

// work takes what is most urgent until nothing is left: chunks before names
// before directories, so that as few directories as possible are held in
// memory.
func (r *run) work() {
	for {
		job := r.take()
		if job == nil {
			return
		}
		if err := job(); err != nil {
			r.cancel(err)
		}
		r.Progress.step()
		r.mu.Lock()
		r.active--
		r.cond.Broadcast()
		r.mu.Unlock()
	}
}

func (r *run) take() func() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if r.ctx.Err() != nil {
			return nil
		}
		if job := r.pick(); job != nil {
			r.active++
			return job
		}
		if r.active == 0 {
			if r.parked == 0 {
				return nil
			}
			r.promote()
			continue
		}
		r.cond.Wait()
	}
}

func (r *run) pick() func() error {
	if n := len(r.copies); n > 0 {
		c := r.copies[n-1]
		chunk := c.next()
		if c.exhausted() {
			r.copies = r.copies[:n-1]
		}
		return func() error { return r.chunk(c, chunk) }
	}
	if n := len(r.ready); n > 0 {
		t := r.ready[n-1]
		r.ready = r.ready[:n-1]
		return func() error { return r.name(t) }
	}
	if n := len(r.names); n > 0 {
		d := r.names[n-1]
		t := task{n: d, c: d.changes[0]}
		d.changes = d.changes[1:]
		if len(d.changes) == 0 {
			d.changes = nil
			r.names = r.names[:n-1]
		}
		return func() error { return r.name(t) }
	}
	if n := len(r.dirs); n > 0 {
		d := r.dirs[n-1]
		r.dirs = r.dirs[:n-1]
		return func() error { return r.visit(d) }
	}
	return nil
}

// promote is called when only names wait whose inode has no name on the target
// yet: the first of each is made as a file of its own.
func (r *run) promote() {
	for _, l := range r.links {
		if len(l.waiting) > 0 && !l.claimed {
			t := l.waiting[0]
			l.waiting = l.waiting[1:]
			l.claimed = true
			t.first = true
			r.parked--
			r.ready = append(r.ready, t)
		}
	}
}

// settle records that path is a name of inode ino on the target.
func (r *run) settle(ino uint64, path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.linkOf(ino)
	if l.path != "" {
		return
	}
	l.path, l.claimed = path, true
	r.parked -= len(l.waiting)
	r.ready = append(r.ready, l.waiting...)
	l.waiting = nil
	r.cond.Broadcast()
}

func (r *run) linkOf(ino uint64) *link {
	l := r.links[ino]
	if l == nil {
		l = &link{}
		r.links[ino] = l
	}
	return l
}

// visit makes a directory on the target if needed, compares it and queues what
// differs in it.
func (r *run) visit(n *node) error {
	if n.how == fresh {
		if err := r.makeDir(n); err != nil {
			return err
		}
	}
	differ, was := r.diff, n.was
	if n.how == byTarget {
		differ, was = r.scan, n.rel
	}
	d, err := differ.Dir(r.ctx, n.rel, was, n.how == fresh)
	if err != nil {
		return err
	}
	renamed, err := r.renameDirs(n, d)
	if err != nil {
		return err
	}
	r.Progress.Directories.Add(1)
	r.Progress.FilesSeen.Add(int64(d.Files))
	for _, e := range d.Linked {
		r.settle(e.Ino, r.Root+n.rel+"/"+e.Name)
	}
	var files []snapdiff.Change
	dirs := make(map[string]*snapdiff.Change)
	for i, c := range d.Changes {
		if c.New != nil && c.New.IsDir() {
			dirs[c.Name] = &d.Changes[i]
			n.touched = n.touched || c.Old == nil || c.Replaced
			continue
		}
		n.touched = n.touched || c.Old == nil || c.New == nil || c.Replaced
		files = append(files, c)
		if c.New != nil && c.New.IsRegular() && c.Data != snapdiff.Equal {
			r.Progress.BytesToDo.Add(int64(c.New.Size))
		}
	}
	r.Progress.FilesToDo.Add(int64(len(files)))
	subs := make([]*node, 0, len(d.Subdirs))
	for _, s := range d.Subdirs {
		sub := &node{parent: n, rel: n.rel + "/" + s.Name, was: n.was + "/" + s.Name, stat: s.Stat, how: n.how, left: 1}
		if old, ok := renamed[s.Name]; ok {
			sub.was, sub.old = n.was+"/"+old.Name, old.Old
			sub.touched = true
			subs = append(subs, sub)
			continue
		}
		if s.Fresh {
			sub.how = fresh
			sub.touched = true
		}
		if c := dirs[s.Name]; c != nil {
			sub.touched = true
			sub.remove = c.Replaced
			if !c.Replaced {
				sub.old = c.Old
			}
		}
		subs = append(subs, sub)
	}
	r.mu.Lock()
	n.left += len(files) + len(subs)
	if len(files) > 0 {
		n.changes = files
		r.names = append(r.names, n)
	}
	r.dirs = append(r.dirs, subs...)
	r.cond.Broadcast()
	r.mu.Unlock()
	return r.finished(n)
}

// renameDirs gives directories that have another name now, and are still in n,
// that name on the target. It takes their old names, by the new ones, out of what
// changed in d, and returns them. Whatever is in the way, they are copied as if
// they were new.
func (r *run) renameDirs(n *node, d *snapdiff.Directory) (map[string]snapdiff.Change, error) {
	if !r.Renames || n.how != byDiff {
		return nil, nil
	}
	gone := make(map[uint64]*snapdiff.Change) // their names are free now, or another's
	for i := range d.Changes {
		c := &d.Changes[i]
		if c.Old != nil && c.Old.IsDir() && (c.New == nil || c.Replaced) {
			gone[c.Old.Ino] = c
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	renamed := make(map[string]snapdiff.Change)
	for again := true; again; { // an old name may be some other's new one
		again = false
		for i := range d.Changes {
			c := &d.Changes[i]
			if c.Old != nil || c.New == nil || !c.New.IsDir() || gone[c.New.Ino] == nil {
				continue
			}
			old := gone[c.New.Ino]
			delete(gone, c.New.Ino)
			done, err := r.renameDir(r.Root+n.rel+"/"+old.Name, r.Root+n.rel+"/"+c.Name)
			if err != nil {
				return nil, err
			}
			if done {
				renamed[c.Name] = *old
				old.Old, old.Replaced = nil, false
				again = true
			}
		}
	}
	d.Changes = slices.DeleteFunc(d.Changes, func(c snapdiff.Change) bool { return c.Old == nil && c.New == nil })
	return renamed, nil
}

func (r *run) renameDir(from, to string) (done bool, err error) {
	if err := r.Gate(r.ctx); err != nil {
		return false, err
	}
	r.Progress.Writes.Add(1)
	err = r.Target.Rename(from, to)
	switch {
	case err == nil:
		return true, nil
	case ceph.Is(err, syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EEXIST, syscall.ENOTEMPTY):
		return false, nil // somebody changed the target
	}
	return false, fmt.Errorf("renaming %s to %s on the peer: %w", from, to, err)
}

// finished takes one piece of work off n, and sets the attributes of each
// directory whose last piece that was.
func (r *run) finished(n *node) error {
	for ; n != nil; n = n.parent {
		r.mu.Lock()
		n.left--
		left := n.left
		r.mu.Unlock()
		if left > 0 {
			return nil
		}
		if !n.touched {
			continue
		}
		if err := r.dirAttrs(n); err != nil {
			return err
		}
	}
	return nil
}

// touch records that names of n changed.
func (r *run) touch(n *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n.touched = true
}

func (r *run) makeDir(n *node) error {
	if err := r.Gate(r.ctx); err != nil {
		return err
	}
	path := r.Root + n.rel
	if n.remove {
		if err := r.removeAny(path); err != nil {
			return err
		}
	}
	r.Progress.Writes.Add(1)
	err := r.Target.MakeDir(path, 0o700)
	if ceph.Is(err, syscall.EEXIST) {
		st, err := r.Target.StatAt(path, ceph.Synced)
		if err != nil {
			return fmt.Errorf("reading attributes of %s on the peer: %w", path, err)
		}
		if st.IsDir() {
			n.how = byTarget // left by an interrupted run
			n.old = &st
			return nil
		}
		if err := r.removeAny(path); err != nil {
			return err
		}
		if err := r.Target.MakeDir(path, 0o700); err != nil {
			return fmt.Errorf("making directory %s on the peer: %w", path, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("making directory %s on the peer: %w", path, err)
	}
	return nil
}

// removeAny removes whatever has the name path on the target, with all below
// it. Nothing there is fine.
func (r *run) removeAny(path string) error {
	if err := r.Gate(r.ctx); err != nil {
		return err
	}
	r.Progress.Writes.Add(1)
	err := r.Target.Unlink(path)
	if err == nil || ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if !ceph.Is(err, syscall.EISDIR, syscall.EPERM) {
		return fmt.Errorf("removing %s on the peer: %w", path, err)
	}
	return r.removeTree(path)
}

// removeTree removes a directory with all below it; names of one directory in
// parallel.
func (r *run) removeTree(path string) error {
	var entries []ceph.Entry
	err := r.Target.List(path, ceph.Cached, func(e ceph.Entry) error {
		r.Progress.step()
		entries = append(entries, e)
		return r.ctx.Err()
	})
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing %s on the peer: %w", path, err)
	}
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	slots := make(chan struct{}, removers)
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := r.Gate(r.ctx)
			if err == nil {
				err = r.Target.Unlink(path + "/" + e.Name)
				r.Progress.step()
			}
			if err != nil && !ceph.Is(err, syscall.ENOENT) {
				once.Do(func() { first = fmt.Errorf("removing %s/%s on the peer: %w", path, e.Name, err) })
			}
		})
	}
	wg.Wait()
	if first != nil {
		return first
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := r.removeTree(path + "/" + e.Name); err != nil {
				return err
			}
		}
	}
	if err := r.Target.RemoveDir(path); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("removing directory %s on the peer: %w", path, err)
	}
	return nil
}

// removers is how many names of one directory are removed at once.
const removers = 8

func (r *run) dirAttrs(n *node) error {
	if err := r.Gate(r.ctx); err != nil {
		return err
	}
	path := r.Root + n.rel
	if err := r.xattrs(n.rel, n.was, n.how, n.old != nil || n.rel == ""); err != nil {
		return err
	}
	mask := ceph.SetMode | ceph.SetUID | ceph.SetGID | ceph.SetMtime | ceph.SetAtime
	r.Progress.Writes.Add(1)
	if err := r.Target.SetAttr(path, n.stat, mask); err != nil {
		return fmt.Errorf("setting attributes of %s on the peer: %w", path, err)
	}
	return nil
}
