// Package objects reads and writes the objects of an RBD journal: its header,
// through the object class that keeps it, and its data objects.
//
// All methods block until the cluster has answered. Errors name the object and
// the call, and carry the errno.
package objects

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/lineage"
	"cephmirror/rbdmirror/store"
)

// Geometry is how a journal is laid out. It never changes.
type Geometry struct {
	Order uint8
	Splay uint8
	// Pool is where the data objects are.
	Pool int64
	// Prefix is what their names begin with.
	Prefix string
}

// Object returns the name of a data object.
func (g Geometry) Object(number uint64) string {
	return g.Prefix + strconv.FormatUint(number, 10)
}

// Header is what a journal's header says at a moment.
type Header struct {
	Minimum, Active uint64 // object sets
	NextTag         uint64
	Clients         []format.Client
}

// Client returns the client with an id, nil if there is none.
func (h *Header) Client(id string) *format.Client {
	for i := range h.Clients {
		if h.Clients[i].ID == id {
			return &h.Clients[i]
		}
	}
	return nil
}

// Newest returns the number of the newest tag.
func (h *Header) Newest() uint64 { return max(h.NextTag, 1) - 1 }

// Journal is the journal of an image.
type Journal struct {
	ioctx *rados.IOContext
	id    string
	oid   string
}

// New returns the journal of an image. ioctx is of the image's pool and namespace;
// it stays the caller's.
func New(ioctx *rados.IOContext, imageID string) *Journal {
	return &Journal{ioctx, imageID, format.HeaderName(imageID)}
}

// Object returns the name of the header's object.
func (j *Journal) Object() string { return j.oid }

// IOContext returns the context of the header.
func (j *Journal) IOContext() *rados.IOContext { return j.ioctx }

const (
	clientPage = 256
	tagPage    = 64
	// notifyTimeout is how long others have to hear of a change.
	notifyTimeout = 5 * time.Second
	// tagTries is how often a tag is tried that others were faster to add.
	tagTries = 20
)

// Geometry reads how the journal is laid out. ENOENT: there is none.
func (j *Journal) Geometry() (g Geometry, err error) {
	out, err := store.Read(j.ioctx, j.oid, format.GetOrder(), format.GetSplayWidth(), format.GetPoolID())
	if err != nil {
		return g, err
	}
	if g.Order, err = format.DecodeU8(out[0]); err != nil {
		return g, fmt.Errorf("%s: %w", j.oid, err)
	}
	if g.Splay, err = format.DecodeU8(out[1]); err != nil {
		return g, fmt.Errorf("%s: %w", j.oid, err)
	}
	if g.Pool, err = cls.DecodeS64(out[2]); err != nil {
		return g, fmt.Errorf("%s: %w", j.oid, err)
	}
	if g.Order < format.MinOrder || g.Order > format.MaxOrder || g.Splay == 0 {
		return g, fmt.Errorf("%s: order %d, splay width %d: %w", j.oid, g.Order, g.Splay, syscall.EINVAL)
	}
	header := j.ioctx.GetPoolID()
	if g.Pool < 0 {
		g.Pool = header
	}
	g.Prefix = format.DataPrefix(header, j.id)
	return g, nil
}

// Look reads the header, all of one moment. ENOENT: there is no journal.
func (j *Journal) Look() (*Header, error) {
	out, err := store.Read(j.ioctx, j.oid, format.GetMinimumSet(), format.GetActiveSet(), format.GetNextTagID(), format.ListClients("", clientPage))
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Header, error) { return nil, fmt.Errorf("%s: %w", j.oid, err) }
	h := &Header{}
	for i, into := range []*uint64{&h.Minimum, &h.Active, &h.NextTag} {
		if *into, err = cls.DecodeU64(out[i]); err != nil {
			return fail(err)
		}
	}
	list, err := format.DecodeClients(out[3])
	for err == nil && len(list) > 0 {
		h.Clients = append(h.Clients, list...)
		if len(list) < clientPage {
			break
		}
		var more [][]byte
		if more, err = store.Read(j.ioctx, j.oid, format.ListClients(list[len(list)-1].ID, clientPage)); err == nil {
			list, err = format.DecodeClients(more[0])
		}
	}
	if err != nil {
		return fail(err)
	}
	return h, nil
}

// Client reads one client. ENOENT: it is not registered, or there is no journal.
func (j *Journal) Client(id string) (format.Client, error) {
	out, err := store.Read(j.ioctx, j.oid, format.GetClient(id))
	if err != nil {
		return format.Client{}, err
	}
	c, err := format.DecodeClient(out[0])
	if err != nil {
		return c, fmt.Errorf("%s: %w", j.oid, err)
	}
	return c, nil
}

// Tags reads the tags that a client may need, of one class or, with nil, of all.
// ENOENT: the client is not registered.
func (j *Journal) Tags(client string, class *uint64) (tags []lineage.Tag, err error) {
	for after := uint64(0); ; {
		out, err := store.Read(j.ioctx, j.oid, format.ListTags(after, tagPage, client, class))
		if err != nil {
			return nil, err
		}
		list, err := format.DecodeTags(out[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", j.oid, err)
		}
		for _, t := range list {
			data, err := format.DecodeTagData(t.Data)
			if err != nil {
				return nil, fmt.Errorf("%s: tag %d: %w", j.oid, t.ID, err)
			}
			tags = append(tags, lineage.Tag{ID: t.ID, TagData: data})
			after = t.ID
		}
		if len(list) < tagPage {
			return tags, nil
		}
	}
}

// Tag reads one tag. ENOENT: it is gone.
func (j *Journal) Tag(id uint64) (lineage.Tag, error) {
	out, err := store.Read(j.ioctx, j.oid, format.GetTag(id))
	if err != nil {
		return lineage.Tag{}, err
	}
	t, err := format.DecodeTag(out[0])
	if err != nil {
		return lineage.Tag{}, fmt.Errorf("%s: %w", j.oid, err)
	}
	data, err := format.DecodeTagData(t.Data)
	if err != nil {
		return lineage.Tag{}, fmt.Errorf("%s: tag %d: %w", j.oid, id, err)
	}
	return lineage.Tag{ID: t.ID, TagData: data}, nil
}

// Owner reads the journal's newest tag and what its master client says. ENOENT:
// there is no journal. A journal without tags has none of its tags' fields set.
func (j *Journal) Owner() (newest lineage.Tag, master format.ImageClient, err error) {
	c, err := j.Client(format.MasterClient)
	if err != nil {
		return newest, master, err
	}
	data, err := format.DecodeClientData(c.Data)
	if err != nil {
		return newest, master, fmt.Errorf("%s: master client: %w", j.oid, err)
	}
	image, ok := data.(*format.ImageClient)
	if !ok {
		return newest, master, fmt.Errorf("%s: master client: %w", j.oid, syscall.EINVAL)
	}
	tags, err := j.Tags(format.MasterClient, &image.TagClass)
	if err != nil {
		return newest, master, err
	}
	if len(tags) == 0 {
		return newest, *image, fmt.Errorf("%s: no tags: %w", j.oid, syscall.ENOENT)
	}
	return tags[len(tags)-1], *image, nil
}

// AddTag adds a tag and returns its number.
func (j *Journal) AddTag(class uint64, data format.TagData) (uint64, error) {
	for range tagTries {
		out, err := store.Read(j.ioctx, j.oid, format.GetNextTagID())
		if err != nil {
			return 0, err
		}
		id, err := cls.DecodeU64(out[0])
		if err != nil {
			return 0, fmt.Errorf("%s: %w", j.oid, err)
		}
		err = j.change(format.CreateTag(format.Tag{ID: id, Class: class, Data: data.Encode()}))
		if err == nil {
			return id, nil
		}
		if !ceph.Is(err, syscall.ESTALE, syscall.EEXIST) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%s: others add tags all the time: %w", j.oid, syscall.EAGAIN)
}

// A change must not bring back the header of a journal that was removed.
func (j *Journal) change(c cls.Call) error { return store.WriteExisting(j.ioctx, j.oid, c) }

// Register adds a client. EEXIST: it is registered.
func (j *Journal) Register(client string, data format.ClientData) error {
	return j.change(format.RegisterClient(client, data.Encode()))
}

// Unregister removes a client. It is no error that it is not registered.
func (j *Journal) Unregister(client string) error {
	err := j.change(format.UnregisterClient(client))
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// UpdateData replaces what is attached to a client. ENOENT: it is not registered.
func (j *Journal) UpdateData(client string, data format.ClientData) error {
	return j.change(format.UpdateClientData(client, data.Encode()))
}

// Commit tells how far a client has come. ENOENT: it is not registered.
func (j *Journal) Commit(client string, ps format.Positions) error {
	return j.change(format.Commit(client, ps))
}

// Notify tells all who follow the journal that its header changed. Those who do
// not answer in time find out by themselves.
func (j *Journal) Notify() error {
	_, _, err := j.ioctx.NotifyWithTimeout(j.oid, nil, notifyTimeout)
	if err != nil && !ceph.Is(err, syscall.ETIMEDOUT, syscall.ENOENT) {
		return fmt.Errorf("%s: notifying: %w", j.oid, err)
	}
	return nil
}

// Create makes the journal of an image of which another cluster is primary: with
// one tag that says so, and the client under which librbd will write if this
// cluster ever gets to be. It can be repeated when it broke off.
func (j *Journal) Create(order, splay uint8, pool int64, owner string) error {
	err := store.Write(j.ioctx, j.oid, format.Create(order, splay, pool))
	if err != nil && !ceph.Is(err, syscall.EEXIST) {
		return err
	}
	h, err := j.Look()
	if err != nil {
		return err
	}
	if h.NextTag == 0 {
		tag := format.Tag{ID: 0, Class: format.NewTagClass, Data: format.TagData{MirrorUUID: owner}.Encode()}
		if err := j.change(format.CreateTag(tag)); err != nil && !ceph.Is(err, syscall.EEXIST, syscall.ESTALE) {
			return err
		}
	}
	master := &format.ImageClient{}
	if err := j.Register(format.MasterClient, master); err != nil && !ceph.Is(err, syscall.EEXIST) {
		return err
	}
	return nil
}

// Remove removes the journal. data is a context of the pool of its data objects.
func (j *Journal) Remove(data *rados.IOContext, g Geometry) error {
	h, err := j.Look()
	if ceph.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	// Objects beyond the active set may be left over from a writer that died.
	for n := h.Minimum * uint64(g.Splay); n < (h.Active+2)*uint64(g.Splay); n++ {
		if err := data.Delete(g.Object(n)); err != nil && !ceph.Is(err, syscall.ENOENT) {
			return fmt.Errorf("%s: removing: %w", g.Object(n), err)
		}
	}
	if err := j.ioctx.Delete(j.oid); err != nil && !ceph.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%s: removing: %w", j.oid, err)
	}
	return nil
}

// Trim removes object sets that no connected client needs any more, and tells
// whether there were any.
func (j *Journal) Trim(data *rados.IOContext, g Geometry, h *Header) (bool, error) {
	trimmed := false
	for set := h.Minimum; set < trimTo(g, h); set++ {
		for n := set * uint64(g.Splay); n < (set+1)*uint64(g.Splay); n++ {
			if err := data.Delete(g.Object(n)); err != nil && !ceph.Is(err, syscall.ENOENT) {
				return trimmed, fmt.Errorf("%s: removing: %w", g.Object(n), err)
			}
		}
		if err := j.change(format.SetMinimumSet(set + 1)); err != nil && !ceph.Is(err, syscall.ESTALE) {
			return trimmed, err
		}
		trimmed = true
	}
	return trimmed, nil
}

// Trimmable says that there is something that Trim would remove.
func (j *Journal) Trimmable(g Geometry, h *Header) bool { return trimTo(g, h) > h.Minimum }

// trimTo returns the oldest object set that is needed.
func trimTo(g Geometry, h *Header) uint64 {
	oldest := h.Active
	for _, c := range h.Clients {
		if c.State != format.Connected {
			continue
		}
		if len(c.Committed) == 0 {
			return h.Minimum
		}
		for _, p := range c.Committed {
			oldest = min(oldest, p.Object/uint64(g.Splay))
		}
	}
	return oldest
}

// Read reads a piece of a data object, less than asked for if it ends before, and
// nothing if there is none.
func Read(ctx context.Context, data *rados.IOContext, name string, offset, length uint64) ([]byte, error) {
	d, err := ceph.ReadObject(ctx, data, name, ceph.SnapHead, [][2]uint64{{offset, length}})
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Release()
	part, err := d.Part(0)
	if err != nil || len(d.Extents[0]) == 0 {
		return nil, err
	}
	// What lies between the extents is padding.
	last := d.Extents[0][len(d.Extents[0])-1]
	out := make([]byte, last[0]+last[1]-offset)
	for _, e := range d.Extents[0] {
		part = part[copy(out[e[0]-offset:e[0]+e[1]-offset], part):]
	}
	return out, nil
}

const (
	// tail is how much of the end of a data object is looked at. Entries are
	// rarely longer than 16 KiB.
	tail = 48 << 10
	// tails is how many data objects are.
	tails = 8
)

// Newest returns the newest entry in an object set, or one that is a few older. It
// returns no position if there is none.
func Newest(ctx context.Context, data *rados.IOContext, g Geometry, set uint64) (format.Position, error) {
	var newest format.Position
	splay := max(uint64(g.Splay), 1)
	for i := range min(splay, tails) {
		number := set*splay + i
		st, err := data.Stat(g.Object(number))
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return newest, fmt.Errorf("%s: asking for its size: %w", g.Object(number), err)
		}
		from := st.Size - min(st.Size, tail)
		b, err := Read(ctx, data, g.Object(number), from, st.Size-from)
		if err != nil {
			return newest, err
		}
		if f, ok := format.LastFrame(b, 1<<g.Order); ok {
			if p := (format.Position{Object: number, Tag: f.Tag, Entry: f.Entry}); p.Compare(newest) > 0 {
				newest = p
			}
		}
	}
	return newest, nil
}
