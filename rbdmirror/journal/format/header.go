package format

import (
	"cmp"
	"slices"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/wire"
)

// Position is the place of one entry of a journal.
type Position struct {
	Object uint64 // number of the data object
	Tag    uint64
	Entry  uint64 // counted from 0 in each tag
}

// Compare orders positions as their entries follow each other.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Tag, q.Tag), cmp.Compare(p.Entry, q.Entry))
}

// Positions is how far a client has come: the newest entry it has done of each
// splay offset, the newest of all first. It has done all entries before the
// first, in the journal's order.
type Positions []Position

// Advance returns the positions after further entries, given in order, have been
// done. The receiver stays as it is.
func (ps Positions) Advance(splay uint64, done ...Position) Positions {
	out := make(Positions, 0, len(ps)+len(done))
	seen := make(map[uint64]bool, splay)
	add := func(p Position) {
		if offset := p.Object % splay; !seen[offset] {
			seen[offset] = true
			out = append(out, p)
		}
	}
	for _, p := range slices.Backward(done) {
		add(p)
	}
	for _, p := range ps {
		add(p)
	}
	return out
}

// First returns the newest entry that has been done.
func (ps Positions) First() (p Position, ok bool) {
	if len(ps) == 0 {
		return Position{}, false
	}
	return ps[0], true
}

func (p Position) write(w *wire.Writer) {
	w.Frame(1, 1, func() {
		w.U64(p.Object)
		w.U64(p.Tag)
		w.U64(p.Entry)
	})
}

func readPosition(r *wire.Reader) (p Position) {
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		p = Position{Object: r.U64(), Tag: r.U64(), Entry: r.U64()}
	})
	return p
}

// Encode returns the positions as they are stored.
func (ps Positions) Encode() []byte { return encode(ps.write) }

func (ps Positions) write(w *wire.Writer) {
	w.Frame(1, 1, func() {
		w.U32(uint32(len(ps)))
		for _, p := range ps {
			p.write(w)
		}
	})
}

func readPositions(r *wire.Reader) (ps Positions) {
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		for range r.Count(30) {
			ps = append(ps, readPosition(r))
		}
	})
	return ps
}

// DecodePositions decodes positions.
func DecodePositions(b []byte) (Positions, error) { return decode("positions", b, readPositions) }

// ClientState says whether a client holds the journal's entries back.
type ClientState uint8

// The states of clients.
const (
	Connected ClientState = iota
	Disconnected
)

// Client is who has registered with a journal.
type Client struct {
	ID        string
	Data      []byte // see ClientData
	Committed Positions
	State     ClientState
}

// Encode returns the client as it is stored.
func (c Client) Encode() []byte { return encode(c.write) }

func (c Client) write(w *wire.Writer) {
	w.Frame(1, 1, func() {
		w.Str(c.ID)
		w.Blob(c.Data)
		c.Committed.write(w)
		w.U8(uint8(c.State))
	})
}

func readClient(r *wire.Reader) (c Client) {
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		c = Client{ID: r.Str(), Data: r.Blob(), Committed: readPositions(r), State: ClientState(r.U8())}
	})
	return c
}

// DecodeClient decodes a client.
func DecodeClient(b []byte) (Client, error) { return decode("journal client", b, readClient) }

// DecodeClients decodes the reply of client_list.
func DecodeClients(b []byte) ([]Client, error) {
	return decode("journal clients", b, func(r *wire.Reader) (list []Client) {
		for range r.Count(6) {
			list = append(list, readClient(r))
		}
		return list
	})
}

// Tag begins an epoch of a journal.
type Tag struct {
	ID    uint64
	Class uint64
	Data  []byte // see TagData
}

// Encode returns the tag as it is stored.
func (t Tag) Encode() []byte { return encode(t.write) }

func (t Tag) write(w *wire.Writer) {
	w.Frame(1, 1, func() {
		w.U64(t.ID)
		w.U64(t.Class)
		w.Blob(t.Data)
	})
}

func readTag(r *wire.Reader) (t Tag) {
	r.Frame(1, func(_ uint8, r *wire.Reader) {
		t = Tag{ID: r.U64(), Class: r.U64(), Data: r.Blob()}
	})
	return t
}

// DecodeTag decodes a tag.
func DecodeTag(b []byte) (Tag, error) { return decode("journal tag", b, readTag) }

// DecodeTags decodes the reply of tag_list.
func DecodeTags(b []byte) ([]Tag, error) {
	return decode("journal tags", b, func(r *wire.Reader) (list []Tag) {
		for range r.Count(6) {
			list = append(list, readTag(r))
		}
		return list
	})
}

func journal(method string, write func(*wire.Writer)) cls.Call {
	c := cls.Call{Class: "journal", Method: method}
	if write != nil {
		c.In = encode(write)
	}
	return c
}

// The calls of the object class, in the order of the protocol's description.

// Create makes a journal's header. pool is where the data goes, -1 for the
// header's own.
func Create(order, splay uint8, pool int64) cls.Call {
	return journal("create", func(w *wire.Writer) { w.U8(order); w.U8(splay); w.S64(pool) })
}

// GetOrder asks for the order of the data objects: DecodeU8.
func GetOrder() cls.Call { return journal("get_order", nil) }

// GetSplayWidth asks over how many objects entries are spread: DecodeU8.
func GetSplayWidth() cls.Call { return journal("get_splay_width", nil) }

// GetPoolID asks for the pool of the data: cls.DecodeS64.
func GetPoolID() cls.Call { return journal("get_pool_id", nil) }

// GetMinimumSet asks for the oldest object set: cls.DecodeU64.
func GetMinimumSet() cls.Call { return journal("get_minimum_set", nil) }

// GetActiveSet asks for the object set that is written to: cls.DecodeU64.
func GetActiveSet() cls.Call { return journal("get_active_set", nil) }

// SetMinimumSet tells that older object sets are gone.
func SetMinimumSet(set uint64) cls.Call {
	return journal("set_minimum_set", func(w *wire.Writer) { w.U64(set) })
}

// GetClient asks for one client: DecodeClient.
func GetClient(id string) cls.Call {
	return journal("get_client", func(w *wire.Writer) { w.Str(id) })
}

// RegisterClient adds a client.
func RegisterClient(id string, data []byte) cls.Call {
	return journal("client_register", func(w *wire.Writer) { w.Str(id); w.Blob(data) })
}

// UpdateClientData replaces what is attached to a client.
func UpdateClientData(id string, data []byte) cls.Call {
	return journal("client_update_data", func(w *wire.Writer) { w.Str(id); w.Blob(data) })
}

// UpdateClientState sets a client's state.
func UpdateClientState(id string, s ClientState) cls.Call {
	return journal("client_update_state", func(w *wire.Writer) { w.Str(id); w.U8(uint8(s)) })
}

// UnregisterClient removes a client.
func UnregisterClient(id string) cls.Call {
	return journal("client_unregister", func(w *wire.Writer) { w.Str(id) })
}

// Commit tells how far a client has come.
func Commit(id string, ps Positions) cls.Call {
	return journal("client_commit", func(w *wire.Writer) { w.Str(id); ps.write(w) })
}

// ListClients asks for clients: DecodeClients.
func ListClients(after string, limit uint64) cls.Call {
	return journal("client_list", func(w *wire.Writer) { w.Str(after); w.U64(limit) })
}

// GetNextTagID asks for the number that the next tag must have: cls.DecodeU64.
func GetNextTagID() cls.Call { return journal("get_next_tag_tid", nil) }

// GetTag asks for one tag: DecodeTag.
func GetTag(id uint64) cls.Call {
	return journal("get_tag", func(w *wire.Writer) { w.U64(id) })
}

// CreateTag adds a tag.
func CreateTag(t Tag) cls.Call {
	return journal("tag_create", func(w *wire.Writer) { w.U64(t.ID); w.U64(t.Class); w.Blob(t.Data) })
}

// ListTags asks for the tags that a client may still need, those above after
// (from the first one if it is 0), of one class or of all (nil): DecodeTags.
func ListTags(after, limit uint64, client string, class *uint64) cls.Call {
	return journal("tag_list", func(w *wire.Writer) {
		w.U64(after)
		w.U64(limit)
		w.Str(client)
		w.OptU64(class)
	})
}

// DecodeU8 decodes one byte.
func DecodeU8(b []byte) (uint8, error) { return decode("byte", b, (*wire.Reader).U8) }
