// Package format reads and writes everything an RBD journal consists of: the
// structures of its header and the calls of the object class that keeps them,
// the data that librbd and the mirror daemons attach to clients and tags, the
// framing of entries in data objects, and the events inside.
//
// Decoders take bytes from anywhere: they never panic, and set aside no memory
// for what a length merely claims.
package format

import (
	"fmt"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/wire"
)

// HeaderName is the object that holds the journal's header.
func HeaderName(imageID string) string { return "journal." + imageID }

// DataPrefix is what the names of a journal's data objects begin with; the
// number of the object follows in decimal. pool is the one of the header, even
// when the data is in another.
func DataPrefix(pool int64, imageID string) string {
	return fmt.Sprintf("journal_data.%d.%s.", pool, imageID)
}

// Limits of a journal's geometry.
const (
	MinOrder     = 12
	MaxOrder     = 26
	DefaultOrder = 24
	DefaultSplay = 4
)

// Names that stand where a mirror uuid does.
const (
	LocalUUID  = ""         // the cluster that has the journal
	OrphanUUID = "<orphan>" // demoted: nobody owns the image
)

// MasterClient is the client under which librbd writes the journal.
const MasterClient = ""

// NewTagClass asks tag_create for a tag class of its own.
const NewTagClass = ^uint64(0)

func encode(write func(*wire.Writer)) []byte {
	var w wire.Writer
	write(&w)
	return w.Bytes()
}

func decode[T any](what string, p []byte, read func(*wire.Reader) T) (T, error) {
	r := wire.NewReader(p)
	v := read(r)
	if err := r.Err(); err != nil {
		var none T
		return none, fmt.Errorf("decoding %s: %w", what, err)
	}
	return v, nil
}

// readNamespace reads a snapshot's namespace in the middle of something else.
func readNamespace(r *wire.Reader) (ns cls.SnapshotNamespace) {
	r.Frame(1, func(version uint8, p *wire.Reader) {
		body := p.Rest()
		var err error
		ns, err = cls.DecodeSnapshotNamespace(encode(func(w *wire.Writer) {
			w.Frame(version, 1, func() { w.Raw(body) })
		}))
		if err != nil {
			p.Fail(err)
		}
	})
	return ns
}
