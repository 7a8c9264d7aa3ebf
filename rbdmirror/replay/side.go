package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replay/plan"
	"cephmirror/rbdmirror/store"
)

// side is one cluster's pool and namespace, opened.
type side struct {
	Side
	client  uint64           // this client's number
	pool    *rados.IOContext // default namespace
	ioctx   *rados.IOContext
	records *store.Mirroring
	peers   *store.Mirroring
	dir     *store.Directory
	states  *store.ImageStates
	// data are further contexts, kept until the end because a call that hangs
	// may still use them.
	data map[int64]*rados.IOContext
}

func openSide(s Side) (*side, error) {
	pool, err := ceph.OpenPool(s.Conn, s.Pool)
	if err != nil {
		return nil, err
	}
	ioctx, err := ceph.OpenPool(s.Conn, s.Pool)
	if err != nil {
		pool.Destroy()
		return nil, err
	}
	ioctx.SetNamespace(s.Namespace)
	return &side{
		Side: s, client: s.Conn.GetInstanceID(), pool: pool, ioctx: ioctx,
		records: store.NewMirroring(ioctx), peers: store.NewMirroring(pool),
		dir: store.NewDirectory(ioctx), states: store.NewImageStates(ioctx),
		data: map[int64]*rados.IOContext{},
	}, nil
}

func (s *side) close() {
	if s == nil {
		return
	}
	for _, d := range s.data {
		d.Destroy()
	}
	s.ioctx.Destroy()
	s.pool.Destroy()
}

// dataContext returns a context of the pool with an image's data. It stays
// open.
func (s *side) dataContext(pool int64) (*rados.IOContext, error) {
	if pool < 0 {
		pool = s.ioctx.GetPoolID()
	}
	if d, ok := s.data[pool]; ok {
		return d, nil
	}
	d, err := store.PoolContext(s.Conn, pool, s.Namespace)
	if err != nil {
		return nil, err
	}
	s.data[pool] = d
	return d, nil
}

// objectMap returns an object map.
func (s *side) objectMap(image string, snap uint64) *store.ObjectMap {
	return store.NewObjectMap(s.ioctx, image, snap)
}

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
func (s *side) look(globalID string) (*seen, error) {
	out := &seen{}
	var err error
	if out.peers, err = s.peers.Peers(); err != nil {
		return nil, err
	}
	if out.uuid, err = s.peers.UUID(); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	id, err := s.records.ImageID(globalID)
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	record, err := s.records.Image(id)
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.image = &plan.Image{ID: id, Record: record}
	if out.image.Name, err = s.dir.Name(id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	out.head, err = store.NewHeader(s.ioctx, id).Load()
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

// look reads both images, the remote one first, and decides. Of an image that is
// primary here nothing else need be known.
func (r *Replayer) look(ctx context.Context) (*view, error) {
	if r.first {
		v, err := r.decide(&seen{uuid: r.cfg.Remote.MirrorUUID})
		if err != nil || v.step.Kind == plan.LocalPrimary || v.step.Kind == plan.Orphan {
			return v, err
		}
	}
	remote, err := remotely(ctx, r, func() (*seen, error) { return r.remote.look(r.cfg.GlobalID) })
	if err == nil && remote.uuid != r.cfg.Remote.MirrorUUID {
		err = errUnmirrored
	}
	if err != nil {
		if v, err := r.decide(&seen{uuid: r.cfg.Remote.MirrorUUID}); err == nil && (v.step.Kind == plan.LocalPrimary || v.step.Kind == plan.Orphan) {
			return v, nil
		}
		return nil, remoteError{fmt.Errorf("reading the remote image: %w", err)}
	}
	return r.decide(remote)
}

// decide reads the local image and decides.
func (r *Replayer) decide(remote *seen) (*view, error) {
	local, err := r.local.look(r.cfg.GlobalID)
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

// disablingGrace is how long a local image is being disabled before that is
// taken for an interrupted removal.
const disablingGrace = 15 * time.Second

// remoteError is one that the remote cluster caused.
type remoteError struct{ error }

func (e remoteError) Unwrap() error { return e.error }
