// Package message knows what mirror daemons of one pool say to each other
// through RADOS notifications, and the entries of the stored image map. All of
// it is plain data. Decoders accept anything without a panic.
package message

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"cephmirror/rbdmirror/wire"
)

// Objects and keys through which daemons meet.
const (
	LeaderObject   = "rbd_mirror_leader"
	instancePrefix = "rbd_mirror_instance."
	instanceKey    = "instance_"
	imageMapKey    = "image_map_"
)

// InstanceObject returns the name of an instance's object, its letter box.
func InstanceObject(instance string) string { return instancePrefix + instance }

// ParseInstanceObject returns the instance whose object has this name.
func ParseInstanceObject(object string) (instance string, ok bool) {
	return strings.CutPrefix(object, instancePrefix)
}

// LeaderOp is what is said on the leader object.
type LeaderOp uint32

// What stock daemons say, and from Changed on what only ours understand; stock
// ones acknowledge these and think nothing of it, as we do of others.
const (
	Heartbeat LeaderOp = iota
	LockAcquired
	LockReleased

	// Changed: the sender has registered or unregistered itself.
	Changed LeaderOp = 0x636d0001 + iota - 3
	// Probe: the sender only wants to know who acknowledges it.
	Probe
)

func (o LeaderOp) String() string {
	switch o {
	case Heartbeat:
		return "heartbeat"
	case LockAcquired:
		return "lock acquired"
	case LockReleased:
		return "lock released"
	case Changed:
		return "changed"
	case Probe:
		return "probe"
	}
	return fmt.Sprintf("op %d", uint32(o))
}

// Encode returns the payload of a notification on the leader object.
func (o LeaderOp) Encode() []byte {
	var w wire.Writer
	w.Frame(1, 1, func() { w.U32(uint32(o)) })
	return w.Bytes()
}

// DecodeLeader reads the payload of a notification on the leader object.
func DecodeLeader(b []byte) (LeaderOp, error) {
	r := wire.NewReader(b)
	var o LeaderOp
	r.Frame(1, func(_ uint8, p *wire.Reader) { o = LeaderOp(p.U32()) })
	if err := r.Err(); err != nil {
		return 0, fmt.Errorf("decoding a message on the leader object: %w", err)
	}
	return o, nil
}

// Op is what is said to an instance.
type Op uint32

// The operations.
const (
	ImageAcquire Op = iota
	ImageRelease
	PeerImageRemoved
	SyncRequest
	SyncStart
)

func (o Op) String() string {
	switch o {
	case ImageAcquire:
		return "acquire"
	case ImageRelease:
		return "release"
	case PeerImageRemoved:
		return "peer image removed"
	case SyncRequest:
		return "sync request"
	case SyncStart:
		return "sync start"
	}
	return fmt.Sprintf("op %d", uint32(o))
}

// Known reports whether the operation is one of the above.
func (o Op) Known() bool { return o <= SyncStart }

// Instance is a request to an instance. Which fields are used depends on Op.
type Instance struct {
	Op         Op
	RequestID  uint64
	GlobalID   string // acquire, release, peer image removed
	MirrorUUID string // peer image removed
	SyncID     string // sync request and start: the local image id
}

// Encode returns the payload of the notification.
func (m Instance) Encode() []byte {
	var w wire.Writer
	w.Frame(2, 2, func() {
		w.U32(uint32(m.Op))
		w.U64(m.RequestID)
		switch m.Op {
		case ImageAcquire, ImageRelease:
			w.Str(m.GlobalID)
		case PeerImageRemoved:
			w.Str(m.GlobalID)
			w.Str(m.MirrorUUID)
		case SyncRequest, SyncStart:
			w.Str(m.SyncID)
		}
	})
	return w.Bytes()
}

// DecodeInstance reads the payload of a notification to an instance. Of an
// unknown operation nothing but Op is read.
func DecodeInstance(b []byte) (Instance, error) {
	r := wire.NewReader(b)
	var m Instance
	r.Frame(2, func(version uint8, p *wire.Reader) {
		if version < 2 {
			p.Fail(fmt.Errorf("version %d is too old", version))
			return
		}
		m.Op = Op(p.U32())
		if !m.Op.Known() {
			return
		}
		m.RequestID = p.U64()
		switch m.Op {
		case ImageAcquire, ImageRelease:
			m.GlobalID = p.Str()
		case PeerImageRemoved:
			m.GlobalID = p.Str()
			m.MirrorUUID = p.Str()
		case SyncRequest, SyncStart:
			m.SyncID = p.Str()
		}
	})
	if err := r.Err(); err != nil {
		return Instance{}, fmt.Errorf("decoding a message to an instance: %w", err)
	}
	return m, nil
}

// Ack is the answer to a request. Instance is who asked, not who answers.
type Ack struct {
	Instance  string
	RequestID uint64
	Result    int32 // 0 or a negative errno
}

// Encode returns the payload of the acknowledgement.
func (a Ack) Encode() []byte {
	var w wire.Writer
	w.Str(a.Instance)
	w.U64(a.RequestID)
	w.U32(uint32(a.Result))
	return w.Bytes()
}

// DecodeAck reads the payload of an acknowledgement. An empty one, which whoever
// does not understand a request gives, is an error.
func DecodeAck(b []byte) (Ack, error) {
	r := wire.NewReader(b)
	a := Ack{Instance: r.Str(), RequestID: r.U64(), Result: r.S32()}
	if err := r.Err(); err != nil {
		return Ack{}, fmt.Errorf("decoding an answer: %w", err)
	}
	return a, nil
}

// Err returns the error that the result stands for.
func (a Ack) Err() error {
	if a.Result >= 0 {
		return nil
	}
	return syscall.Errno(-a.Result)
}

// Watcher is who acknowledged a notification, or has not in time.
type Watcher struct {
	Client  uint64
	Cookie  uint64
	Payload []byte // of the acknowledgement
}

// Reply is the answer of all watchers to a notification.
type Reply struct {
	Acks   []Watcher
	Silent []Watcher // those that have not answered in time
}

// DecodeReply reads the reply buffer of a notification. An empty buffer is an
// empty reply.
func DecodeReply(b []byte) (Reply, error) {
	var out Reply
	if len(b) == 0 {
		return out, nil
	}
	r := wire.NewReader(b)
	for range r.Count(20) {
		out.Acks = append(out.Acks, Watcher{Client: r.U64(), Cookie: r.U64(), Payload: r.Blob()})
	}
	for range r.Count(16) {
		out.Silent = append(out.Silent, Watcher{Client: r.U64(), Cookie: r.U64()})
	}
	if err := r.Err(); err != nil {
		return Reply{}, fmt.Errorf("decoding the reply to a notification: %w", err)
	}
	return out, nil
}

// Answer returns the answer to a request that instance has made.
func (r Reply) Answer(instance string, request uint64) (Ack, bool) {
	for _, w := range r.Acks {
		if a, err := DecodeAck(w.Payload); err == nil && a.Instance == instance && a.RequestID == request {
			return a, true
		}
	}
	return Ack{}, false
}

// Mapping is an entry of the stored image map.
type Mapping struct {
	Instance string
	Mapped   time.Time
	Data     []byte // of the policy; nil stands for the one that stock daemons write
}

// policyNone is the only policy data there is: type none.
var policyNone = []byte{1, 1, 4, 0, 0, 0, 0, 0, 0, 0}

// Encode returns the stored form.
func (m Mapping) Encode() []byte {
	data := m.Data
	if data == nil {
		data = policyNone
	}
	var w wire.Writer
	w.Frame(1, 1, func() {
		w.Str(m.Instance)
		w.Time(m.Mapped)
		w.Blob(data)
	})
	return w.Bytes()
}

func readMapping(r *wire.Reader) (m Mapping) {
	r.Frame(1, func(_ uint8, p *wire.Reader) {
		m = Mapping{Instance: p.Str(), Mapped: p.Time(), Data: p.Blob()}
	})
	return m
}

// DecodeMapping reads the stored form.
func DecodeMapping(b []byte) (Mapping, error) {
	r := wire.NewReader(b)
	m := readMapping(r)
	if err := r.Err(); err != nil {
		return Mapping{}, fmt.Errorf("decoding a mapping: %w", err)
	}
	return m, nil
}

// Entry is a mapping and the image it is of.
type Entry struct {
	GlobalID string
	Mapping
}

// ListMapInput is the input of the method mirror_image_map_list: entries after
// an image, at most that many.
func ListMapInput(after string, most uint64) []byte {
	var w wire.Writer
	w.Str(after)
	w.U64(most)
	return w.Bytes()
}

// DecodeMap reads the reply of the method mirror_image_map_list.
func DecodeMap(b []byte) ([]Entry, error) {
	r := wire.NewReader(b)
	var out []Entry
	for range r.Count(10) {
		id := r.Str()
		out = append(out, Entry{id, readMapping(r)})
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("decoding the image map: %w", err)
	}
	return out, nil
}

// UpdateMapInput is the input of the method mirror_image_map_update.
func UpdateMapInput(e Entry) []byte {
	var w wire.Writer
	w.Str(e.GlobalID)
	w.Raw(e.Encode())
	return w.Bytes()
}

// StringInput is the input of methods that take one string:
// mirror_image_map_remove, mirror_instances_add and mirror_instances_remove.
func StringInput(s string) []byte {
	var w wire.Writer
	w.Str(s)
	return w.Bytes()
}

// DecodeInstances reads the reply of the method mirror_instances_list.
func DecodeInstances(b []byte) ([]string, error) {
	r := wire.NewReader(b)
	var out []string
	for range r.Count(4) {
		out = append(out, r.Str())
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("decoding the list of instances: %w", err)
	}
	return out, nil
}
