package election

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"

	"cephmirror/internal/ceph"
	"cephmirror/rbdmirror/election/message"
)

// What instances of ours have to say to a leader of ours is noted on the leader
// object, beside what the stock daemon keeps there, which passes it over.
const (
	pinPrefix  = "cephmirror.pin."  // and a global image id; the value names a worker
	loadPrefix = "cephmirror.load." // and an instance; the value is the engine's
)

// Note is what an instance says of itself.
type Note struct {
	Name  string `json:"name,omitempty"` // what its operator calls it
	Drain bool   `json:"drain,omitempty"`
}

func (n Note) encode() []byte {
	text, err := json.Marshal(n)
	if err != nil {
		panic(err) // cannot be, of a string and a bool
	}
	return text
}

// SetNote changes what this instance says of itself.
func (m *Member) SetNote(ctx context.Context, n Note) error {
	m.mu.Lock()
	m.cfg.Note = n
	m.mu.Unlock()
	sp, exit, err := m.use("")
	if err != nil {
		return err
	}
	defer exit()
	if !sp.isRegistered() {
		return nil // it will be said when it is
	}
	return m.change(ctx, sp, func() error {
		return sp.ioctx.SetOmap(message.LeaderObject, map[string][]byte{marker(m.id): n.encode()})
	})
}

// Notes returns what the instances of ours say of themselves.
func (m *Member) Notes(ctx context.Context) (map[string]Note, error) {
	values, err := m.noted(ctx, "", markerPrefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]Note, len(values))
	for id, text := range values {
		var n Note
		_ = json.Unmarshal([]byte(text), &n) // earlier ones say nothing
		out[id] = n
	}
	return out, nil
}

// Pin notes to which worker an image belongs, "" for none.
func (m *Member) Pin(ctx context.Context, namespace, globalID, worker string) error {
	return m.noteDown(ctx, namespace, pinPrefix+globalID, worker)
}

// Pins returns the workers that images belong to.
func (m *Member) Pins(ctx context.Context, namespace string) (map[string]string, error) {
	return m.noted(ctx, namespace, pinPrefix)
}

// NoteLoads notes what the images of an instance cost, "" for nothing.
func (m *Member) NoteLoads(ctx context.Context, namespace, instance, loads string) error {
	return m.noteDown(ctx, namespace, loadPrefix+instance, loads)
}

// Loads returns what instances have noted.
func (m *Member) Loads(ctx context.Context, namespace string) (map[string]string, error) {
	return m.noted(ctx, namespace, loadPrefix)
}

func (m *Member) noteDown(ctx context.Context, namespace, key, value string) error {
	sp, exit, err := m.use(namespace)
	if err != nil {
		return err
	}
	defer exit()
	return m.change(ctx, sp, func() error {
		if value == "" {
			return sp.ioctx.RmOmapKeys(message.LeaderObject, []string{key})
		}
		return sp.ioctx.SetOmap(message.LeaderObject, map[string][]byte{key: []byte(value)})
	})
}

func (m *Member) change(ctx context.Context, sp *space, f func() error) error {
	ctx, cancel := m.within(ctx)
	defer cancel()
	if err := do(ctx, &m.calls, f); err != nil {
		m.failed(err)
		return sp.what(fmt.Errorf("%s: changing keys: %w", message.LeaderObject, err), "noting")
	}
	return nil
}

// noted returns the values of the keys that begin with prefix, by the rest of
// the keys.
func (m *Member) noted(ctx context.Context, namespace, prefix string) (map[string]string, error) {
	sp, exit, err := m.use(namespace)
	if err != nil {
		return nil, err
	}
	defer exit()
	ctx, cancel := m.within(ctx)
	defer cancel()
	values, err := call(ctx, &m.calls, func() (map[string][]byte, error) {
		return sp.ioctx.GetAllOmapValues(message.LeaderObject, "", prefix, 1024)
	})
	if ceph.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		m.failed(err)
		return nil, sp.what(fmt.Errorf("%s: listing keys: %w", message.LeaderObject, err), "reading notes")
	}
	out := make(map[string]string, len(values))
	for k, v := range values {
		out[strings.TrimPrefix(k, prefix)] = string(v)
	}
	return out, nil
}
