package journal

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/course"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/objects"
	"cephmirror/rbdmirror/journal/target"
	"cephmirror/rbdmirror/replica"
	"cephmirror/rbdmirror/store"
)

// journalOf returns the journal of an image of a side.
func journalOf(s *replica.Side, image string) *objects.Journal { return objects.New(s.IO, image) }

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
func lookAt(s *replica.Side, globalID, other string) (*seen, error) {
	out := &seen{}
	var err error
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
	img := &course.Image{ID: id, Record: record}
	out.image = img
	if out.name, err = s.Dir.Name(id); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return nil, err
	}
	out.head, err = store.NewHeader(s.IO, id).Load()
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
	j := journalOf(s, id)
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

// primary says that the image is mirrored, and primary.
func (s *seen) primary() bool {
	i := s.image
	return i != nil && i.Journal && i.Record.State == cls.RecordEnabled && i.Record.Mode == cls.ImageModeJournal && i.Newest.MirrorUUID == format.LocalUUID
}

// alone is the view of an image that is primary here.
func alone(local *seen) *view {
	return &view{local: local, remote: &seen{}, step: course.Step{Kind: course.LocalPrimary, Text: "local image is primary"}}
}

// primaryLimit is how long the remote cluster is waited for when the local image is
// primary.
const primaryLimit = 5 * time.Second

var errUnmirrored = fmt.Errorf("mirroring of the remote pool was disabled or set up anew: %w", syscall.ENOENT)

// disablingGrace is how long a local image is being disabled before that is taken
// for an interrupted removal.
const disablingGrace = 15 * time.Second

// look reads both images and decides.
func (r *Replayer) look(ctx context.Context) (*view, error) {
	limit := r.opts.CallTimeout
	if local, err := lookAt(r.pair.Local, r.cfg.GlobalID, ""); err == nil && local.primary() {
		// Of an image that is primary here little else need be known, and that
		// does not wait for the remote cluster.
		if err := r.rest(alone(local)); err != nil {
			return nil, err
		}
		limit = min(limit, primaryLimit)
	}
	remote, err := replica.Ask(ctx, &r.pair.Calls, limit, func() (*seen, error) {
		return lookAt(r.pair.Remote, r.cfg.GlobalID, r.cfg.Local.MirrorUUID)
	})
	if err == nil && remote.uuid != r.cfg.Remote.MirrorUUID {
		err = errUnmirrored
	}
	if opts, oerr := r.pair.Local.Options(); oerr == nil {
		r.overrides = opts
	}
	local, lerr := lookAt(r.pair.Local, r.cfg.GlobalID, "")
	if lerr != nil {
		return nil, fmt.Errorf("reading the local image: %w", lerr)
	}
	if err != nil {
		l := local.image
		if l != nil && l.Record.Mode != cls.ImageModeJournal {
			return &view{local: local, remote: &seen{}, step: course.Step{Kind: course.OtherMode}}, nil
		}
		if local.primary() {
			return alone(local), nil
		}
		return nil, replica.Remotely(fmt.Errorf("reading the remote image: %w", err))
	}
	in := course.Input{
		Local: local.image, Remote: remote.image,
		LocalUUID: r.cfg.Local.MirrorUUID, RemoteUUID: r.cfg.Remote.MirrorUUID,
		Client: remote.client, Peer: remote.peer, Tags: remote.in.Tags,
		ResyncAfterDisconnect: r.tuning(local.head).ResyncAfterDisconnect,
		DisablingSeen:         !r.disabling.IsZero() && time.Since(r.disabling) > disablingGrace,
	}
	if l := local.image; l != nil && l.Header && remote.image != nil {
		rec, err := target.ReadRecord(r.pair.Local.IO, l.ID)
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
