package rbdmirror

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"cephmirror/internal/ceph"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/deletion"
	"cephmirror/rbdmirror/election"
)

// deleterRun removes images that were moved to the trash, while leading.
type deleterRun struct {
	deleter *deletion.Deleter
	command plugins.CommandSpec
	cancel  context.CancelFunc
	done    chan struct{}
}

// runDeleter starts or stops the removal of images. It is called by one
// goroutine only.
func (sp *space) runDeleter(on bool) {
	sp.mu.Lock()
	run := sp.deleter
	sp.mu.Unlock()
	if on == (run != nil) {
		return
	}
	feed := &sp.s.eng.feed
	if !on {
		feed.Publish(removed([]plugins.CommandSpec{run.command})...)
		run.cancel()
		<-run.done
		sp.setDeleter(nil)
		return
	}
	ctx, cancel := context.WithCancel(sp.ctx)
	run = &deleterRun{
		deleter: deletion.New(deletion.Config{
			Conn: sp.s.local, IO: sp.localList.io, Lease: sp.s.member.Lease(), Log: sp.log,
			Throttle: sp.s.deletions,
			RetryInterval: func() time.Duration {
				return max(time.Second, sp.s.eng.options.Seconds("rbd_mirror_delete_retry_interval"))
			},
		}),
		command: deletionCommand(deletionScope(sp.s.pool.name, sp.spec.local)),
		cancel:  cancel, done: make(chan struct{}),
	}
	go func() {
		defer close(run.done)
		for {
			err := run.deleter.Run(ctx)
			if ctx.Err() != nil || sp.s.lost(err) {
				return
			}
			sp.log.Warn().Err(err).Msg("removing images from the trash")
			select {
			case <-ctx.Done():
			case <-time.After(watchRetry):
			}
		}
	}()
	sp.setDeleter(run)
	feed.Publish(added([]plugins.CommandSpec{run.command})...)
}

func (sp *space) setDeleter(run *deleterRun) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.deleter = run
}

// deletions returns what the deletion command shows, nil while not leading.
func (sp *space) deletions() object {
	sp.mu.Lock()
	run := sp.deleter
	sp.mu.Unlock()
	if run == nil {
		return nil
	}
	return deletionObject(run.deleter.Status())
}

func deletionObject(st deletion.Status) object {
	queue, failed := []any{}, []any{}
	for _, i := range st.Queue {
		queue = append(queue, object{{"image_id", i.ImageID}})
	}
	for _, i := range st.Failed {
		item := object{{"image_id", i.ImageID}, {"error_code", errorCode(i.Err)}, {"retries", i.Retries}}
		if i.Err != nil {
			item.add("error", i.Err.Error())
		}
		failed = append(failed, item)
	}
	return object{{"delete_images_queue", queue}, {"failed_deletes_queue", failed}}
}

// errorCode writes an error as Ceph does.
func errorCode(err error) string {
	if err == nil {
		return "(0) Success"
	}
	errno := ceph.Errno(err)
	if errno == 0 {
		errno = unix.EIO
	}
	text := errno.Error()
	if text != "" && text[0] >= 'a' && text[0] <= 'z' {
		text = string(text[0]-'a'+'A') + text[1:]
	}
	return fmt.Sprintf("(%d) %s", int(errno), text)
}

func (s *session) deletionThrottle() election.ThrottleStatus {
	most, running, waiting := s.deletions.Status()
	return election.ThrottleStatus{Max: most, Running: running, Waiting: waiting}
}

func (e *Engine) concurrentDeletions() int {
	return int(max(1, e.options.Uint("rbd_mirror_concurrent_image_deletions")))
}
