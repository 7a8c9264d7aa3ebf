package rbdmirror

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
)

// What the service map keeps of this daemon: the rbd and ceph tools read it.
const (
	serviceName   = "rbd-mirror"
	serviceStatus = "json" // the key of the status
)

// level is how bad a callout is.
type level string

const (
	levelWarning level = "warning"
	levelError   level = "error"
)

// callout is a message about a pool that the tools show.
type callout struct {
	Level level  `json:"level"`
	Text  string `json:"text"`
}

// callouts are the present messages about a pool. Each has a topic, of which
// there is at most one, and keeps its number while it stands.
type callouts struct {
	next  uint64
	topic map[string]uint64
	by    map[uint64]callout
}

// set replaces the message of a topic. It tells whether that changed anything.
func (c *callouts) set(topic string, l level, text string) bool {
	want := callout{l, text}
	if id, ok := c.topic[topic]; ok {
		if c.by[id] == want {
			return false
		}
		c.by[id] = want
		return true
	}
	if c.by == nil {
		c.by, c.topic = make(map[uint64]callout), make(map[string]uint64)
	}
	c.next++
	c.topic[topic] = c.next
	c.by[c.next] = want
	return true
}

// clear takes the message of a topic away. It tells whether there was one.
func (c *callouts) clear(topic string) bool {
	id, ok := c.topic[topic]
	delete(c.by, id)
	delete(c.topic, topic)
	return ok
}

// counts are the images of one namespace, as the service map tells them.
type counts struct {
	assigned, warning, failed int
	local, remote             int // told by the leader only
}

// servicePool is a pool as the service map tells it.
type servicePool struct {
	id       int64
	name     string
	callouts map[uint64]callout
	instance string // empty while there is no connection
	leader   bool
	spaces   map[string]counts
}

// member is one member of a JSON object.
type member struct {
	name  string
	value any
}

// object is a JSON object whose members keep their order.
type object []member

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(m.value); err != nil {
			return nil, err
		}
		b.Truncate(b.Len() - 1) // the line's end
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// add appends a member.
func (o *object) add(name string, value any) { *o = append(*o, member{name, value}) }

// countMembers are the counts in order of their names.
func countMembers(c counts, leader bool) object {
	out := object{{"image_assigned_count", c.assigned}, {"image_error_count", c.failed}}
	if leader {
		out.add("image_local_count", c.local)
		out.add("image_remote_count", c.remote)
	}
	out.add("image_warning_count", c.warning)
	return out
}

// encodeService returns the status text as the stock daemon of the release
// writes it. pools are in order of their ids.
func encodeService(release string, pools []servicePool) (string, error) {
	out := object{}
	for _, p := range pools {
		entry := object{{"name", p.name}}
		list := object{}
		for _, id := range slices.Sorted(maps.Keys(p.callouts)) {
			list.add(strconv.FormatUint(id, 10), p.callouts[id])
		}
		entry.add("callouts", list)
		// Release 18 knows the default namespace only, without a level of its own.
		flat, hasFlat := p.spaces[""]
		if release == "reef" && hasFlat {
			entry = append(entry, countMembers(flat, p.leader)...)
		}
		if p.instance != "" {
			entry.add("instance_id", p.instance)
		}
		if p.leader {
			entry.add("leader", true)
		}
		if release == "reef" {
			// In order of their names.
			slices.SortStableFunc(entry[2:], func(a, b member) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
		} else {
			spaces := object{}
			for _, name := range slices.Sorted(maps.Keys(p.spaces)) {
				spaces.add(name, countMembers(p.spaces[name], p.leader))
			}
			entry.add("namespaces", spaces)
		}
		out.add(strconv.FormatInt(p.id, 10), entry)
	}
	text, err := out.MarshalJSON()
	return string(text), err
}
