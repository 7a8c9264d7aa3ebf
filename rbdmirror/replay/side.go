package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// seen is what one side says of the image.
type seen struct {
	image *plan.Image
	head  *store.Image // nil: no header
	peers []cls.Peer
	// uuid is the pool's mirror uuid of this moment, empty if mirroring is
	// disabled.
	uuid string
}

// look reads all of the image.
func lookAt(s *replica.Side, globalID string) (*seen, error) {
	out := &seen{}
	var err error
	if out.peers, err = s.Peers.Peers(); err != nil {
		return nil, err
	}
	if out.uuid, err = s.Peers.UUID(); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	id, err := s.Records.ImageID(globalID)
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	record, err := s.Records.Image(id)
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.image = &plan.Image{ID: id, Record: record}
	if out.image.Name, err = s.Dir.Name(id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	out.head, err = store.NewHeader(s.IO, id).Load()
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.image.Header = &plan.Header{
		Features: out.head.Features, Order: out.head.Order, StripeUnit: out.head.StripeUnit, StripeCount: out.head.StripeCount, Snapshots: out.head.Snapshots,
		Resync: resyncRequested(out.head.Metadata[resyncKey(s.MirrorUUID)]),
	}
	return out, nil
}

// resyncKey is the metadata key by which the user asks the daemon of the
// cluster with that mirror uuid for a resync.
func resyncKey(uuid string) string { return ".rbd_mirror." + uuid }

func resyncRequested(value []byte) bool {
	var flag struct {
		Requested bool `json:"resync_requested"`
	}
	return json.Unmarshal(value, &flag) == nil && flag.Requested
}

// view is what both clusters said when they were last asked.
type view struct {
	local, remote *seen
	step          plan.Step
}

// errUnmirrored: the pool of the peer is no longer what it was.
var errUnmirrored = errors.New("mirroring of the remote pool was disabled or set up anew")

// alone says that what was seen of the local image is all that need be known.
func (v *view) alone() bool {
	switch v.step.Kind {
	case plan.LocalPrimary, plan.Orphan, plan.OtherMode:
		return true
	}
	return false
}

// look reads both images, the remote one first, and decides. Of an image that is
// primary here nothing else need be known.
func (r *Replayer) look(ctx context.Context) (*view, error) {
	if r.first {
		v, err := r.decide(&seen{uuid: r.cfg.Remote.MirrorUUID})
		if err != nil || v.alone() {
			return v, err
		}
	}
	remote, err := remotely(ctx, r, func() (*seen, error) { return lookAt(r.pair.Remote, r.cfg.GlobalID) })
	if err == nil && remote.uuid != r.cfg.Remote.MirrorUUID {
		err = errUnmirrored
	}
	if err != nil {
		if v, err := r.decide(&seen{uuid: r.cfg.Remote.MirrorUUID}); err == nil && v.alone() {
			return v, nil
		}
		return nil, replica.Remotely(fmt.Errorf("reading the remote image: %w", err))
	}
	return r.decide(remote)
}

// decide reads the local image and decides.
func (r *Replayer) decide(remote *seen) (*view, error) {
	local, err := lookAt(r.pair.Local, r.cfg.GlobalID)
	if err != nil {
		return nil, fmt.Errorf("reading the local image: %w", err)
	}
	v := &view{local: local, remote: remote}
	v.step = plan.Next(plan.Input{
		Local: local.image, Remote: remote.image,
		LocalUUID: r.cfg.Local.MirrorUUID, RemoteUUID: r.cfg.Remote.MirrorUUID,
		LocalPeers: local.peers, RemotePeers: remote.peers,
		Own: r.own, OwnFull: r.ownFull, FullCompare: r.full.Load(), Recreate: r.opts.RecreateOnResync,
		DisablingSeen: !r.disabling.IsZero() && time.Since(r.disabling) > disablingGrace,
	})
	switch {
	case local.image == nil || local.image.Record.State != cls.RecordDisabling:
		r.disabling = time.Time{}
	case r.disabling.IsZero():
		r.disabling = time.Now()
	}
	return v, nil
}

// remotely runs a call to the remote cluster. What fails is marked as its fault.
func remotely[T any](ctx context.Context, r *Replayer, f func() (T, error)) (T, error) {
	v, err := replica.Ask(ctx, &r.pair.Calls, r.opts.CallTimeout, f)
	return v, replica.Remotely(err)
}

// disablingGrace is how long a local image is being disabled before that is
// taken for an interrupted removal.
const disablingGrace = 15 * time.Second
