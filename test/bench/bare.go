package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"cephmirror/test/bench/tree"
)

// variant is one way to run the bare loop, of which the quickest counts.
type variant struct {
	workers int
	cache   bool // libcephfs' cache of data, which makes writes return at once
}

func (v variant) String() string {
	if v.cache {
		return fmt.Sprintf("%d workers, client cache", v.workers)
	}
	return fmt.Sprintf("%d workers", v.workers)
}

// bareRun mounts both sides, takes the time of copy and of making durable what
// it wrote, and removes it.
func (l *lab) bareRun(ctx context.Context, v variant, dir string, copy func(from, to *tree.FS) error) (s sample, err error) {
	cache := tree.Option{Name: "client_oc", Value: fmt.Sprint(v.cache)}
	from, err := tree.Mount(l.a.Conf(), cache)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := tree.Mount(l.b.Conf(), cache)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, to.RemoveAll(context.WithoutCancel(ctx), dir), to.Close()) }()
	who := l.clusterParties()
	before, err := who.read()
	if err != nil {
		return s, err
	}
	began := time.Now()
	if err := copy(from, to); err != nil {
		return s, fmt.Errorf("%s: %w", bare, err)
	}
	if err := to.SyncFs(); err != nil {
		return s, fmt.Errorf("%s: %w", bare, err)
	}
	s.total = time.Since(began)
	s.sync = s.total
	after, err := who.read()
	s.cpu = after.sub(before)
	return s, err
}

// bareFiles copies the files of a snapshot: open, read, close; create, write,
// close.
func (l *lab) bareFiles(ctx context.Context, v variant, u tree.Uniform, snap string) (sample, error) {
	source, target := u, u
	source.Dir = u.Dir + "/.snap/" + snap
	target.Dir = "/bare"
	return l.bareRun(ctx, v, target.Dir, func(from, to *tree.FS) error {
		if err := to.MakeDir(target.Dir, 0o755); err != nil {
			return err
		}
		for i := range u.Dirs {
			if err := to.MakeDir(target.Sub(i), 0o755); err != nil {
				return err
			}
		}
		var next atomic.Int64
		g, ctx := errgroup.WithContext(ctx)
		for range v.workers {
			g.Go(func() error {
				buf := make([]byte, u.Size)
				for ctx.Err() == nil {
					i := int(next.Add(1)) - 1
					if i >= u.Count() {
						return nil
					}
					if err := copyFile(from, source.Path(i), to, target.Path(i), buf); err != nil {
						return fmt.Errorf("copying %s: %w", source.Path(i), err)
					}
				}
				return ctx.Err()
			})
		}
		return g.Wait()
	})
}

// copyFile copies a file that is as large as buf.
func copyFile(from *tree.FS, source string, to *tree.FS, target string, buf []byte) error {
	in, err := from.Open(source, syscall.O_RDONLY, 0)
	if err != nil {
		return err
	}
	n, err := in.ReadAt(buf, 0)
	if err == nil && n < len(buf) {
		err = io.ErrUnexpectedEOF
	}
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	out, err := to.Open(target, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	n, err = out.WriteAt(buf, 0)
	if err == nil && n < len(buf) {
		err = io.ErrShortWrite
	}
	return errors.Join(err, out.Close())
}

// bareLarge copies one large file in chunks.
func (l *lab) bareLarge(ctx context.Context, v variant, source string, size int64) (sample, error) {
	const (
		chunk  = 4 << 20
		dir    = "/bare"
		target = dir + "/file"
	)
	return l.bareRun(ctx, v, dir, func(from, to *tree.FS) (err error) {
		if err := to.MakeDir(dir, 0o755); err != nil {
			return err
		}
		in, err := from.Open(source, syscall.O_RDONLY, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, in.Close()) }()
		out, err := to.Open(target, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		var next atomic.Int64
		g, ctx := errgroup.WithContext(ctx)
		for range v.workers {
			g.Go(func() error {
				buf := make([]byte, chunk)
				for ctx.Err() == nil {
					at := next.Add(chunk) - chunk
					if at >= size {
						return nil
					}
					piece := buf[:min(chunk, size-at)]
					for done := 0; done < len(piece); {
						n, err := in.ReadAt(piece[done:], at+int64(done))
						if err != nil {
							return err
						}
						if n == 0 {
							return io.ErrUnexpectedEOF
						}
						done += n
					}
					for done := 0; done < len(piece); {
						n, err := out.WriteAt(piece[done:], at+int64(done))
						if err != nil {
							return err
						}
						done += n
					}
				}
				return ctx.Err()
			})
		}
		return g.Wait()
	})
}
