package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

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

// lookAt reads all of the image. What does not depend on each other is asked for
// at once: the cluster may be far away.
func lookAt(s *replica.Side, globalID string) (*seen, error) {
	out := &seen{}
	absent := func(err error) error {
		if ceph.Is(err, syscall.ENOENT) {
			return nil
		}
		return err
	}
	var id string
	var first errgroup.Group
	first.Go(func() (err error) {
		out.peers, err = s.Peers.Peers()
		return err
	})
	first.Go(func() (err error) {
		out.uuid, err = s.Peers.UUID()
		return absent(err)
	})
	first.Go(func() (err error) {
		id, err = s.Records.ImageID(globalID)
		return absent(err)
	})
	if err := first.Wait(); err != nil {
		return nil, err
	}
	if id == "" {
		return out, nil
	}
	image := &plan.Image{ID: id}
	mirrored := true
	var then errgroup.Group
	then.Go(func() (err error) {
		if image.Record, err = s.Records.Image(id); ceph.Is(err, syscall.ENOENT) {
			mirrored = false
			return nil
		}
		return err
	})
	then.Go(func() (err error) {
		image.Name, err = s.Dir.Name(id)
		return absent(err)
	})
	then.Go(func() (err error) {
		out.head, err = store.NewHeader(s.IO, id).Load()
		return absent(err)
	})
	if err := then.Wait(); err != nil {
		return nil, err
	}
	if !mirrored {
		out.head = nil
		return out, nil
	}
	out.image = image
	if out.head == nil {
		return out, nil
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
	compare       bool      // a full comparison was asked for
	at            time.Time // the remote image was looked at
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
	at := time.Now()
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
	v, err := r.decide(remote)
	if err == nil {
		v.at = at
	}
	return v, err
}

// decide reads the local image and decides.
func (r *Replayer) decide(remote *seen) (*view, error) {
	local, err := lookAt(r.pair.Local, r.cfg.GlobalID)
	if err != nil {
		return nil, fmt.Errorf("reading the local image: %w", err)
	}
	v := &view{local: local, remote: remote}
	v.compare = r.compareRequested(local)
	in := plan.Input{
		Local: local.image, Remote: remote.image,
		LocalUUID: r.cfg.Local.MirrorUUID, RemoteUUID: r.cfg.Remote.MirrorUUID,
		LocalPeers: local.peers, RemotePeers: remote.peers,
		Own: r.own, OwnFull: r.ownFull, FullCompare: v.compare, Recreate: r.opts.RecreateOnResync,
		DisablingSeen: !r.disabling.IsZero() && time.Since(r.disabling) > disablingGrace,
	}
	v.step = plan.Next(in)
	if r.opts.CompareTakenOver && !v.compare && unverified(v) {
		r.full.Store(true)
		v.compare = r.compareRequested(local)
		in.FullCompare = v.compare
		v.step = plan.Next(in)
	}
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
