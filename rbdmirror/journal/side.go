package journal

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/course"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/journal/target"
	"cephmirror/rbdmirror/replay"
	"cephmirror/rbdmirror/store"
)

// side is one cluster's pool and namespace, opened.
type side struct {
	replay.Side
	client  uint64 // this client's number
	pool    *rados.IOContext
	ioctx   *rados.IOContext
	records *store.Mirroring
	peers   *store.Mirroring
	dir     *store.Directory
	// data are further contexts, kept until the end because a call that hangs may
	// still use them.
	data map[int64]*rados.IOContext
}

func openSide(s replay.Side) (*side, error) {
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
		dir: store.NewDirectory(ioctx), data: map[int64]*rados.IOContext{},
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

// dataContext returns a context of a pool, in the image's namespace. It stays open.
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

func (s *side) journal(image string) *objects.Journal { return objects.New(s.ioctx, image) }

// seen is what one side says of the image.
type seen struct {
	image *course.Image
	name  string
	head  *store.Image // nil: no header
	uuid  string       // mirror uuid of the pool
	// client is what the journal knows of the other side, and tags what epochs it
	// may need.
	client *format.Client
	peer   *format.PeerClient
	in     course.Input
}

// look reads all of the image. other is the mirror uuid of the other side, if its
// client in the journal matters.
func (s *side) look(globalID, other string) (*seen, error) {
	out := &seen{}
	var err error
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
	img := &course.Image{ID: id, Record: record}
	out.image = img
	if out.name, err = s.dir.Name(id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	out.head, err = store.NewHeader(s.ioctx, id).Load()
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	img.Header, img.Features = true, out.head.Features
	if record.Mode != cls.ImageModeJournal {
		return out, nil
	}
	j := s.journal(id)
	img.Newest, img.Master, err = j.Owner()
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	img.Journal = true
	if other == "" {
		return out, nil
	}
	c, err := j.Client(other)
	if ceph.Is(err, syscall.ENOENT) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.client = &c
	data, err := format.DecodeClientData(c.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: client %s: %w", j.Object(), other, err)
	}
	out.peer, _ = data.(*format.PeerClient)
	class := img.Master.TagClass
	if out.in.Tags, err = j.Tags(other, &class); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	return out, nil
}

// view is what both clusters said when they were last asked.
type view struct {
	local, remote *seen
	step          course.Step
}

var errUnmirrored = fmt.Errorf("mirroring of the remote pool was disabled or set up anew: %w", syscall.ENOENT)

// disablingGrace is how long a local image is being disabled before that is taken
// for an interrupted removal.
const disablingGrace = 15 * time.Second

// look reads both images and decides.
func (r *Replayer) look(ctx context.Context) (*view, error) {
	remote, err := call(ctx, &r.calls, r.opts.CallTimeout, func() (*seen, error) {
		return r.remote.look(r.cfg.GlobalID, r.cfg.Local.MirrorUUID)
	})
	if err == nil && remote.uuid != r.cfg.Remote.MirrorUUID {
		err = errUnmirrored
	}
	local, lerr := r.local.look(r.cfg.GlobalID, "")
	if lerr != nil {
		return nil, fmt.Errorf("reading the local image: %w", lerr)
	}
	if err != nil {
		if l := local.image; l != nil && l.Journal && l.Record.State == cls.RecordEnabled && l.Newest.MirrorUUID == format.LocalUUID {
			// Of an image that is primary here nothing else need be known.
			return &view{local: local, remote: &seen{}, step: course.Step{Kind: course.LocalPrimary, Text: "local image is primary"}}, nil
		}
		return nil, remotely(fmt.Errorf("reading the remote image: %w", err))
	}
	in := course.Input{
		Local: local.image, Remote: remote.image,
		LocalUUID: r.cfg.Local.MirrorUUID, RemoteUUID: r.cfg.Remote.MirrorUUID,
		Client: remote.client, Peer: remote.peer, Tags: remote.in.Tags,
		ResyncAfterDisconnect: r.tune.ResyncAfterDisconnect,
		DisablingSeen:         !r.disabling.IsZero() && time.Since(r.disabling) > disablingGrace,
	}
	if l := local.image; l != nil && l.Header && remote.image != nil {
		rec, err := target.ReadRecord(r.local.ioctx, l.ID)
		if err != nil && !ceph.Is(err, syscall.ENOENT) {
			return nil, err
		}
		in.Followed = rec != nil && rec.MirrorUUID == r.cfg.Remote.MirrorUUID && rec.ImageID == remote.image.ID && rec.LocalTag == l.Newest.ID
	}
	switch {
	case local.image == nil || local.image.Record.State != cls.RecordDisabling:
		r.disabling = time.Time{}
	case r.disabling.IsZero():
		r.disabling = time.Now()
	}
	return &view{local: local, remote: remote, step: course.Next(in)}, nil
}
