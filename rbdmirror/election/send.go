package election

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/election/message"
)

// answerTimeout is how long the cluster waits for the answer to a request
// before it is sent again. What is being asked cannot be taken back, so that it
// is also for how long an instance that leaves may be held up.
const answerTimeout = 3 * time.Second

// Acquire tells an instance, which may be this one, to replicate an image and
// waits for its answer. The error is ErrGone when it is not there.
func (m *Member) Acquire(ctx context.Context, namespace, instance, globalID string) error {
	return m.order(ctx, namespace, instance, message.Instance{Op: message.ImageAcquire, GlobalID: globalID})
}

// Release tells an instance to give an image up and waits until it has.
func (m *Member) Release(ctx context.Context, namespace, instance, globalID string) error {
	return m.order(ctx, namespace, instance, message.Instance{Op: message.ImageRelease, GlobalID: globalID})
}

// PeerRemoved tells an instance that the peer no longer has an image.
func (m *Member) PeerRemoved(ctx context.Context, namespace, instance, globalID, mirrorUUID string) error {
	return m.order(ctx, namespace, instance,
		message.Instance{Op: message.PeerImageRemoved, GlobalID: globalID, MirrorUUID: mirrorUUID})
}

// order sends a request that only a leader may send.
func (m *Member) order(ctx context.Context, namespace, instance string, msg message.Instance) error {
	sp, exit, err := m.use(namespace)
	if err != nil {
		return err
	}
	defer exit()
	if !m.leased() {
		return fmt.Errorf("the host does not renew the lease: %w", syscall.EAGAIN)
	}
	ctx, cancel, err := m.toward(ctx, namespace, instance)
	if err != nil {
		return err
	}
	defer cancel()
	return m.send(ctx, sp, instance, msg)
}

// toward returns a context that ends when ctx does, when this instance no longer
// leads, or when the other is gone.
func (m *Member) toward(ctx context.Context, namespace, instance string) (context.Context, context.CancelFunc, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leadingLocked() {
		return nil, nil, ErrNotLeader
	}
	if !slices.Contains(m.machine.In(namespace), instance) {
		return nil, nil, fmt.Errorf("instance %s: %w", instance, ErrGone)
	}
	to := target{namespace, instance}
	s, ok := m.targets[to]
	if !ok {
		s.ctx, s.end = context.WithCancelCause(m.lead)
		m.targets[to] = s
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
	return ctx, func() { stop(); cancel(nil) }, nil
}

// send sends a request until it is answered, and returns what the answer says.
func (m *Member) send(ctx context.Context, sp *space, instance string, msg message.Instance) error {
	msg.RequestID = m.requests.Add(1)
	object, payload := message.InstanceObject(instance), msg.Encode()
	what := fmt.Sprintf("%s %s%s at instance %s", msg.Op, msg.GlobalID, msg.SyncID, instance)
	for {
		raw, err := sp.notifier.Notify(ctx, object, payload, answerTimeout)
		reply, bad := message.DecodeReply(raw)
		if a, ok := reply.Answer(m.id, msg.RequestID); ok {
			if err := a.Err(); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case ceph.Is(err, syscall.ETIMEDOUT):
			continue // it may be busy with it: ask again
		case err == nil && bad != nil:
			return fmt.Errorf("%s: %w", what, bad)
		case err == nil || ceph.Is(err, syscall.ENOENT):
			return fmt.Errorf("%s: nobody answers: %w", what, ErrGone)
		}
		m.failed(err)
		return fmt.Errorf("%s: %w", what, err)
	}
}
