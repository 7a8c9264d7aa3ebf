package treesync

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/ceph/go-ceph/cephfs"

	"cephmirror/internal/ceph"
	"cephmirror/snapdiff"
)

const (
	// chunkSize is how much of a file one worker reads and writes at a time,
	// in bytes: an object of the default layout.
	chunkSize = 4 << 20
	// blockSize is the granularity of comparing, in bytes.
	blockSize = 4 << 10
	// holeSize is the least run of zeros that is kept as a hole, in bytes.
	holeSize = 64 << 10
	// joinSize: differing blocks with less than this between them are written
	// as one, in bytes.
	joinSize = 16 << 10
	// compareSize: smaller files are sent whole rather than compared.
	compareSize = 64 << 10
)

// copyJob is the content of one file on its way to the target.
type copyJob struct {
	t    task
	path string
	st   ceph.Stat // of the source, read with the file open
	src  *cephfs.File
	dst  *cephfs.File
	base *cephfs.File // what the target's content is known to equal; nil: nothing, holes only
	over bool         // the target may hold data where the source has zeros
	size uint64       // of base, bytes

	extents []Extent // left to hand out; guarded by run.mu
	left    atomic.Int64
	failed  atomic.Bool
}

// next returns the next piece of at most a chunk, aligned to chunks. The
// caller holds run.mu and has checked exhausted.
func (c *copyJob) next() Extent {
	e := &c.extents[0]
	n := min(e.Length, chunkSize-e.Offset%chunkSize)
	piece := Extent{e.Offset, n}
	e.Offset, e.Length = e.Offset+n, e.Length-n
	if e.Length == 0 {
		c.extents = c.extents[1:]
	}
	return piece
}

func (c *copyJob) exhausted() bool { return len(c.extents) == 0 }

// pieces is how many pieces next will return for extents.
func pieces(extents []Extent) (n int64) {
	for _, e := range extents {
		if e.Length == 0 {
			continue
		}
		n += int64((e.Offset+e.Length-1)/chunkSize - e.Offset/chunkSize + 1)
	}
	return n
}

func whole(size uint64) []Extent {
	if size == 0 {
		return nil
	}
	return []Extent{{0, size}}
}

// clip drops what lies beyond size, and empty extents.
func clip(extents []Extent, size uint64) []Extent {
	var out []Extent
	for _, e := range extents {
		if e.Offset >= size || e.Length == 0 {
			continue
		}
		e.Length = min(e.Length, size-e.Offset)
		out = append(out, e)
	}
	return out
}

// copyNew makes a regular file that is not on the target.
func (r *run) copyNew(t task, path string) error {
	job := &copyJob{t: t, path: path}
	if err := r.openSource(job); err != nil {
		return err
	}
	err := r.making(path, func() (err error) {
		job.dst, err = r.Target.Open(path, writeFlags|syscall.O_CREAT|syscall.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return errors.Join(err, job.close())
	}
	return r.start(job, whole(job.st.Size))
}

// updateFile makes the content and the attributes of an existing file equal.
func (r *run) updateFile(t task, path string) error {
	if t.c.Data == snapdiff.Equal {
		return r.attrsAndDone(t, path)
	}
	job := &copyJob{t: t, path: path, over: true}
	if err := r.openSource(job); err != nil {
		return err
	}
	fail := func(err error) error { return errors.Join(err, job.close()) }
	extents := whole(job.st.Size)
	if t.c.Data == snapdiff.Suspect || job.st.Size > compareSize {
		byTarget := r.howFor(t) == byTarget
		var err error
		if byTarget {
			job.base, err = openSource(r.Target, path)
		} else {
			job.base, err = openSource(r.Source, r.Previous+t.was())
		}
		if err != nil {
			return fail(err)
		}
		st, err := r.statOpen(job.base, path)
		if err != nil {
			return fail(err)
		}
		job.size = st.Size
		if !byTarget && r.Blocks != nil && job.st.Size >= chunkSize {
			blocks, ok, err := r.Blocks(r.ctx, Pair{Old: job.base, New: job.src, OldStat: st, NewStat: job.st})
			if err != nil {
				return fail(err)
			}
			if ok {
				extents = clip(blocks, job.st.Size)
			}
		}
	}
	dst, err := r.Target.Open(path, writeFlags, 0)
	if err != nil {
		return fail(fmt.Errorf("opening %s on the peer: %w", path, err))
	}
	job.dst = dst
	now, err := r.statOpen(dst, path)
	if err != nil {
		return fail(err)
	}
	if now.Size != job.st.Size {
		if err := dst.Truncate(int64(job.st.Size)); err != nil {
			return fail(fmt.Errorf("setting the size of %s on the peer: %w", path, err))
		}
	}
	return r.start(job, extents)
}

// openSource opens the file in the snapshot and reads its attributes anew:
// those of the listing may predate what a writer's client still held.
func (r *run) openSource(job *copyJob) error {
	rel := job.t.rel()
	if r.Settle != nil {
		if err := r.Settle(rel, job.t.c.New.Ino); err != nil {
			return err
		}
	}
	f, err := openSource(r.Source, r.Snapshot+rel)
	if err != nil {
		return err
	}
	job.src = f
	if job.st, err = r.statOpen(f, r.Snapshot+rel); err != nil {
		return errors.Join(err, job.close())
	}
	return nil
}

func (r *run) statOpen(f *cephfs.File, path string) (ceph.Stat, error) {
	st, err := r.Source.FileStat(f)
	if err != nil {
		return st, fmt.Errorf("reading attributes of %s: %w", path, err)
	}
	return st, nil
}

// start hands the pieces of job to the workers; a file of one piece is copied
// at once.
func (r *run) start(job *copyJob, extents []Extent) error {
	var planned uint64
	for _, e := range extents {
		planned += e.Length
	}
	// What is known to be equal counts as done.
	r.Progress.BytesDone.Add(int64(job.t.c.New.Size) - int64(planned))
	n := pieces(extents)
	job.left.Store(n)
	job.extents = extents
	switch n {
	case 0:
		return r.finishCopy(job)
	case 1:
		return r.chunk(job, job.next())
	}
	r.mu.Lock()
	r.copies = append(r.copies, job)
	r.cond.Broadcast()
	r.mu.Unlock()
	return nil
}

// chunk copies one piece. The worker that ends the last one finishes the file.
func (r *run) chunk(job *copyJob, e Extent) error {
	err := r.ctx.Err()
	if err == nil {
		err = r.copyPiece(job, e)
	}
	if err != nil {
		job.failed.Store(true)
	}
	if job.left.Add(-1) > 0 {
		return err
	}
	if job.failed.Load() {
		return errors.Join(err, job.close())
	}
	return r.finishCopy(job)
}

func (r *run) copyPiece(job *copyJob, e Extent) error {
	buffers := 1
	if job.base != nil {
		buffers = 2
	}
	bufs, release, err := r.Memory.borrow(r.ctx, buffers, int(e.Length))
	if err != nil {
		return err
	}
	defer release()
	data := bufs[0]
	if err := readFull(job.src, data, e.Offset); err != nil {
		return fmt.Errorf("reading %s at %d: %w", r.Snapshot+job.t.rel(), e.Offset, err)
	}
	r.Progress.BytesRead.Add(int64(len(data)))
	var runs []span
	if job.base != nil {
		was := bufs[1]
		n := 0
		if e.Offset < job.size {
			n = int(min(e.Length, job.size-e.Offset))
			if err := readFull(job.base, was[:n], e.Offset); err != nil {
				return fmt.Errorf("reading the earlier content of %s at %d: %w", job.path, e.Offset, err)
			}
		}
		clear(was[n:])
		runs = differing(data, was)
	} else {
		runs = nonZero(data, job.over)
	}
	for _, s := range runs {
		if err := r.Gate(r.ctx); err != nil {
			return err
		}
		if err := r.write(job, data[s.from:s.to], e.Offset+uint64(s.from), s.zero); err != nil {
			return err
		}
	}
	r.Progress.BytesDone.Add(int64(e.Length))
	return nil
}

// readFull reads exactly len(buf) bytes at offset.
func readFull(f *cephfs.File, buf []byte, offset uint64) error {
	for len(buf) > 0 {
		n, err := f.ReadAt(buf, int64(offset))
		if err == io.EOF || err == nil && n == 0 {
			return fmt.Errorf("%d bytes less than its size says: %w", len(buf), syscall.EIO)
		}
		if err != nil {
			return err
		}
		buf, offset = buf[n:], offset+uint64(n)
	}
	return nil
}

func (r *run) write(job *copyJob, data []byte, offset uint64, zero bool) error {
	if zero {
		mode := cephfs.FallocFlPunchHole | cephfs.FallocFlKeepSize
		if err := job.dst.Fallocate(mode, int64(offset), int64(len(data))); err != nil {
			return fmt.Errorf("making a hole in %s on the peer: %w", job.path, err)
		}
		return nil
	}
	for len(data) > 0 {
		n, err := job.dst.WriteAt(data, int64(offset))
		if err != nil {
			return fmt.Errorf("writing %s on the peer at %d: %w", job.path, offset, err)
		}
		r.Progress.BytesSent.Add(int64(n))
		data, offset = data[n:], offset+uint64(n)
	}
	return nil
}

// finishCopy sets size and attributes, closes the file and counts it.
func (r *run) finishCopy(job *copyJob) error {
	if err := r.Gate(r.ctx); err != nil {
		return errors.Join(err, job.close())
	}
	t := job.t
	existing := t.c.Old != nil && !t.c.Replaced
	if err := r.xattrs(t.rel(), t.was(), r.howFor(t), existing); err != nil {
		return errors.Join(err, job.close())
	}
	mask := ceph.SetMode | ceph.SetUID | ceph.SetGID | ceph.SetMtime | ceph.SetAtime | ceph.SetSize
	r.Progress.Writes.Add(1)
	if err := r.Target.SetFileAttr(job.dst, job.st, mask); err != nil {
		err = fmt.Errorf("setting attributes of %s on the peer: %w", job.path, err)
		return errors.Join(err, job.close())
	}
	if err := job.close(); err != nil {
		return fmt.Errorf("closing %s: %w", job.path, err)
	}
	if job.st.Nlink > 1 {
		r.settle(job.st.Ino, job.path)
	}
	return r.done(t)
}

func (c *copyJob) close() error {
	var errs []error
	for _, f := range []**cephfs.File{&c.src, &c.base, &c.dst} {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}

// span is a run of bytes to be written; zero: as a hole.
type span struct {
	from, to int
	zero     bool
}

// allZero compares b with itself, one byte on: equal throughout means that
// every byte is as the first one.
func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// nonZero returns what of data is to be written to a file that has nothing
// there (or, with over, anything): all but its long runs of zeros, which are
// left out, or punched.
func nonZero(data []byte, over bool) []span {
	var out []span
	for at := 0; at < len(data); at += holeSize {
		end := min(at+holeSize, len(data))
		zero := end-at == holeSize && allZero(data[at:end])
		if n := len(out); n > 0 && out[n-1].zero == zero {
			out[n-1].to = end
			continue
		}
		out = append(out, span{at, end, zero})
	}
	if !over {
		kept := out[:0]
		for _, s := range out {
			if !s.zero {
				kept = append(kept, s)
			}
		}
		out = kept
	}
	// A short rest of zeros at the end of a file is its size alone.
	if n := len(out); n == 1 && !over && len(data) < holeSize && allZero(data) {
		return nil
	}
	return out
}

// differing returns the runs in which data differs from was, of equal length.
func differing(data, was []byte) []span {
	var out []span
	for at := 0; at < len(data); at += blockSize {
		end := min(at+blockSize, len(data))
		if bytes.Equal(data[at:end], was[at:end]) {
			continue
		}
		if n := len(out); n > 0 && at-out[n-1].to < joinSize {
			out[n-1].to = end
			continue
		}
		out = append(out, span{at, end, false})
	}
	for i, s := range out {
		out[i].zero = s.to-s.from >= holeSize && allZero(data[s.from:s.to])
	}
	return out
}
