package admin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
)

// Request is a command as a handler gets it.
type Request struct {
	Prefix string
	Format Format
	// Args holds the declared parameters that were given, checked against their
	// descriptions: string, int64, float64 or bool, and for n=N parameters
	// []string, []int64 or []float64.
	Args map[string]any
}

// String returns a string argument, "" when it was not given.
func (r Request) String(name string) string {
	s, _ := r.Args[name].(string)
	return s
}

// Strings returns the values of an n=N argument.
func (r Request) Strings(name string) []string {
	l, _ := r.Args[name].([]string)
	return l
}

// Reply is what a handler answers. The zero Reply is an empty success.
type Reply struct {
	JSON []byte // laid out as the request's format says
	Raw  []byte // when not nil, sent as it is instead of JSON
	Root string // name of the outermost XML element; the prefix when empty
}

// jsonReply encodes any value.
func jsonReply(v any) (Reply, error) {
	b, err := encodeJSON(v)
	return Reply{JSON: b}, err
}

// Handler carries out one command. It must return soon after ctx ends. An error
// becomes an "ERROR: (errno) …" reply, followed by the Reply if that has output.
type Handler func(ctx context.Context, req Request) (Reply, error)

type command struct {
	Description
	handler Handler
}

// Table is a set of commands, found by their prefix. It is safe for concurrent
// use; the zero value is ready.
type Table struct {
	mu   sync.RWMutex
	cmds map[string]command
}

// Add registers a command under the literal words of its signature. The error
// is EEXIST when they are taken.
func (t *Table) Add(signature, help string, h Handler) error {
	sig, err := ParseSignature(signature)
	if err != nil {
		return err
	}
	prefix := sig.Prefix()
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.cmds[prefix]; taken {
		return fmt.Errorf("command %q: %w", prefix, syscall.EEXIST)
	}
	if t.cmds == nil {
		t.cmds = map[string]command{}
	}
	t.cmds[prefix] = command{Description{sig, help}, h}
	return nil
}

// Remove takes a command out and says whether it was there. A call of it that
// is under way goes on.
func (t *Table) Remove(prefix string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.cmds[prefix]
	delete(t.cmds, prefix)
	return ok
}

// Lookup finds a command by its exact prefix.
func (t *Table) Lookup(prefix string) (Description, Handler, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	c, ok := t.cmds[prefix]
	return c.Description, c.handler, ok
}

// List returns all commands in byte order of their prefixes.
func (t *Table) List() []Description {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]Description, 0, len(t.cmds))
	for _, prefix := range slices.Sorted(maps.Keys(t.cmds)) {
		list = append(list, t.cmds[prefix].Description)
	}
	return list
}

// Descriptions is the reply to get_command_descriptions.
func (t *Table) Descriptions() []byte {
	var w jsonWriter
	w.open('{')
	for i, d := range t.List() {
		w.key(fmt.Sprintf("cmd%03d", i))
		w.open('{')
		w.key("sig")
		d.Signature.appendDescription(&w)
		w.key("help")
		w.str(d.Help)
		w.close('}')
	}
	w.close('}')
	return w.b
}

// Help is the reply to help: the help text of every command that has one.
func (t *Table) Help() []byte {
	var w jsonWriter
	w.open('{')
	for _, d := range t.List() {
		if d.Help != "" {
			w.key(d.Signature.Prefix())
			w.str(d.Help)
		}
	}
	w.close('}')
	return w.b
}

// resolve reads a request and finds and checks its command.
func (t *Table) resolve(text []byte) (Request, Handler, error) {
	req, err := parseRequest(text)
	if err != nil {
		return req, nil, err
	}
	d, h, ok := t.Lookup(req.Prefix)
	if !ok {
		return req, nil, Errorf(syscall.EINVAL, "unknown command prefix %s", req.Prefix)
	}
	req.Args, err = d.Signature.checkArgs(req.Args)
	return req, h, err
}
