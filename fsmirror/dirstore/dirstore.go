// Package dirstore knows the names and encodings of what CephFS snapshot
// mirroring keeps in a cluster, as the stock control plane and daemons write
// and read it: the directory map in RADOS, the notifications, peers in the
// monitors' maps and key store, bootstrap tokens and service status.
//
// All of that is plain data and needs no Ceph library. Store, which reads and
// writes the directory map, does.
package dirstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Object is the name of the object, in a file system's metadata pool, that
// holds the directory map in its omap and that all workers watch.
const Object = "cephfs_mirror"

// InstanceObject returns the name of the object that only the instance watches.
func InstanceObject(id string) string { return Object + "." + id }

const (
	dirPrefix      = "dir_map_"
	instancePrefix = "instance_"
	entryVersion   = 1
)

// DirKey returns the omap key of a directory.
func DirKey(path string) string { return dirPrefix + path }

// InstanceKey returns the omap key of an instance.
func InstanceKey(id string) string { return instancePrefix + id }

// PathOfKey returns the directory that an omap key stands for.
func PathOfKey(key string) (string, bool) { return strings.CutPrefix(key, dirPrefix) }

// InstanceOfKey returns the instance that an omap key stands for.
func InstanceOfKey(key string) (string, bool) { return strings.CutPrefix(key, instancePrefix) }

// Entry is what the directory map says of a directory.
type Entry struct {
	// Instance is the worker that the directory is assigned to, or empty.
	Instance string
	// LastShuffled is when it was assigned, in seconds since the epoch. It is
	// kept as stored, for it is shown to the last digit.
	LastShuffled float64
	// Purging is set while a removal is under way.
	Purging bool
}

// Shuffled returns LastShuffled as a time, the zero one for never.
func (e Entry) Shuffled() time.Time {
	if !(e.LastShuffled > 0 && e.LastShuffled < 1e12) { // NaN, too
		return time.Time{}
	}
	sec, frac := math.Modf(e.LastShuffled)
	return time.Unix(int64(sec), int64(frac*1e9)).UTC()
}

// Seconds returns t in seconds since the epoch, 0 for the zero time.
func Seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix()) + float64(t.Nanosecond())/1e9
}

// Encode returns the stored form of the entry.
func (e Entry) Encode() []byte {
	p := newPickler()
	p.setOne("version")
	p.setText("instance_id", e.Instance)
	p.setFloat("last_shuffled", e.LastShuffled)
	if e.Purging {
		p.setOne("purging")
	}
	return p.bytes()
}

// DecodeEntry decodes the stored form of a directory's entry.
func DecodeEntry(b []byte) (Entry, error) {
	d, err := decodeVersioned(b)
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	switch v := d["instance_id"].(type) {
	case nil:
	case string:
		e.Instance = v
	default:
		return Entry{}, fmt.Errorf("instance_id is a %T", v)
	}
	switch v := d["last_shuffled"].(type) {
	case nil:
	case float64:
		e.LastShuffled = v
	case int64:
		e.LastShuffled = float64(v)
	default:
		return Entry{}, fmt.Errorf("last_shuffled is a %T", v)
	}
	switch v := d["purging"].(type) {
	case nil:
	case bool:
		e.Purging = v
	case int64:
		e.Purging = v != 0
	default:
		return Entry{}, fmt.Errorf("purging is a %T", v)
	}
	return e, nil
}

// EncodeInstance returns the stored form of an instance's address.
func EncodeInstance(addr string) []byte {
	p := newPickler()
	p.setOne("version")
	p.setText("addr", addr)
	return p.bytes()
}

// DecodeInstance decodes the stored form of an instance's address.
func DecodeInstance(b []byte) (addr string, err error) {
	d, err := decodeVersioned(b)
	if err != nil {
		return "", err
	}
	addr, ok := d["addr"].(string)
	if !ok {
		return "", errors.New("no addr")
	}
	return addr, nil
}

func decodeVersioned(b []byte) (map[string]any, error) {
	d, err := unpickleDict(b)
	if err != nil {
		return nil, err
	}
	if v, ok := d["version"].(int64); !ok || v < entryVersion {
		return nil, errors.New("no version")
	}
	return d, nil
}

// Contents is the decoded directory map.
type Contents struct {
	Dirs      map[string]Entry  // by path
	Instances map[string]string // addresses by instance
	Bad       map[string]error  // by omap key: entries that cannot be decoded
	Raw       map[string][]byte // by omap key: all as stored, unknown keys included
}

// DecodeContents decodes the omap of Object. Keys of others are no error.
func DecodeContents(omap map[string][]byte) *Contents {
	c := &Contents{
		Dirs: make(map[string]Entry), Instances: make(map[string]string),
		Bad: make(map[string]error), Raw: omap,
	}
	for key, value := range omap {
		if path, ok := PathOfKey(key); ok {
			if e, err := DecodeEntry(value); err != nil {
				c.Bad[key] = err
			} else {
				c.Dirs[path] = e
			}
		} else if id, ok := InstanceOfKey(key); ok {
			if addr, err := DecodeInstance(value); err != nil {
				c.Bad[key] = err
			} else {
				c.Instances[id] = addr
			}
		}
	}
	return c
}

// ErrConflict is returned for a change whose expectations do not hold.
var ErrConflict = errors.New("directory map changed meanwhile")

// Change is a change of the directory map.
type Change struct {
	Set    map[string][]byte
	Remove []string
	// Expect names keys and the values that they must have for the change to
	// be made, an empty one for a key that must not be there. A change that
	// expects anything must fit into one batch.
	Expect map[string][]byte
	// Controller, when not empty, must be who controls the map.
	Controller string
}

// batchSize is how many keys are read or changed at once, as stock does.
const batchSize = 256

// batches splits the change. What is expected goes with the only batch.
func (c Change) batches() ([]Change, error) {
	size := len(c.Set) + len(c.Remove)
	if len(c.Expect) > 0 && size > batchSize {
		return nil, fmt.Errorf("conditional change of %d keys", size)
	}
	if size <= batchSize {
		return []Change{c}, nil
	}
	var out []Change
	part := Change{Controller: c.Controller, Set: make(map[string][]byte)}
	flush := func(limit int) {
		if len(part.Set)+len(part.Remove) >= limit {
			out = append(out, part)
			part = Change{Controller: c.Controller, Set: make(map[string][]byte)}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.Set)) {
		part.Set[k] = c.Set[k]
		flush(batchSize)
	}
	for _, k := range c.Remove {
		part.Remove = append(part.Remove, k)
		flush(batchSize)
	}
	flush(1)
	return out, nil
}

// The modes of a notification to an instance.
const (
	ModeAcquire = "acquire"
	ModeRelease = "release"
)

// EncodeAssign returns the notification that tells an instance to take up
// (ModeAcquire) or to give up (ModeRelease) a directory.
func EncodeAssign(path, mode string) []byte {
	b := appendJSON([]byte(`{"dir_path": `), path)
	b = appendJSON(append(b, `, "mode": `...), mode)
	return append(b, '}')
}

// DecodeAssign decodes a notification to an instance.
func DecodeAssign(b []byte) (path, mode string, err error) {
	var msg struct {
		Path *string `json:"dir_path"`
		Mode *string `json:"mode"`
	}
	if err := json.Unmarshal(b, &msg); err != nil {
		return "", "", fmt.Errorf("decoding notification: %w", err)
	}
	if msg.Path == nil || msg.Mode == nil {
		return "", "", errors.New("decoding notification: a member is missing")
	}
	return *msg.Path, *msg.Mode, nil
}

// EncodeAck returns the answer of a worker to the controller's empty
// notification: the address of its client.
func EncodeAck(addr string) []byte {
	return append(appendJSON([]byte(`{"addr":`), addr), '}')
}

// DecodeAck decodes a worker's answer.
func DecodeAck(b []byte) (addr string, err error) {
	var msg struct {
		Addr string `json:"addr"`
	}
	if err := json.Unmarshal(b, &msg); err != nil {
		return "", fmt.Errorf("decoding answer: %w", err)
	}
	if msg.Addr == "" {
		return "", errors.New("decoding answer: no addr")
	}
	return msg.Addr, nil
}

// appendJSON appends s as a JSON string. Unlike encoding/json it keeps bytes
// that are not UTF-8: a path is what it is.
func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, fmt.Sprintf(`\u%04x`, c)...)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// RemoteMark is the name of the extended attribute on the root of a mirrored-to
// file system that names its source.
const RemoteMark = "ceph.mirror.info"

// Source names a file system across clusters.
type Source struct {
	ClusterID string // fsid
	FSID      int64  // id of the file system
}

// String returns the value of RemoteMark.
func (s Source) String() string {
	return "cluster_id=" + s.ClusterID + " fs_id=" + strconv.FormatInt(s.FSID, 10)
}

// ParseSource parses the value of RemoteMark.
func ParseSource(v string) (Source, error) {
	cluster, fs, ok := strings.Cut(v, " ")
	id, ok1 := strings.CutPrefix(cluster, "cluster_id=")
	num, ok2 := strings.CutPrefix(fs, "fs_id=")
	if !ok || !ok1 || !ok2 || id == "" {
		return Source{}, fmt.Errorf("malformed %s %q", RemoteMark, v)
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil {
		return Source{}, fmt.Errorf("malformed %s %q", RemoteMark, v)
	}
	return Source{ClusterID: id, FSID: n}, nil
}
