package fsmirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/google/uuid"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
)

// A worker that dies leaves its watches in the local cluster until they time
// out, and on the peer its MDS session, and in it the locks of directories,
// until the MDS drops the session after minutes. So every instance and every
// session of ours is noted on the object that all workers watch, with what it
// takes to know that its process is dead. The next worker on that machine then
// need not wait: it ends the session, and takes the instance for gone.

// The omap keys of such notes begin so; the stock control plane passes them
// over. A session is named by its uuid, an instance by its id.
const (
	sessionPrefix  = "cephmirror_session_"
	instancePrefix = "cephmirror_instance_"
)

// processNote is the value of such a key.
type processNote struct {
	Peer    string `json:"peer,omitempty"` // of a session
	Boot    string `json:"boot"`           // boot id of the worker's machine
	PID     int    `json:"pid"`
	Started string `json:"started"` // start time of the process, in the kernel's ticks
}

func ownNote(peer string) (processNote, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return processNote{}, fmt.Errorf("reading the boot id: %w", err)
	}
	started, err := processStart(os.Getpid())
	if err != nil {
		return processNote{}, err
	}
	return processNote{Peer: peer, Boot: strings.TrimSpace(string(boot)), PID: os.Getpid(), Started: started}, nil
}

// processStart returns the start time of a process as the kernel counts it. One
// that has ended and is only waited for is not there any more.
func processStart(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	// The name of the command, in parentheses, may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const start = 19 // field 22 of the line
	if len(fields) <= start {
		return "", fmt.Errorf("state of process %d: %w", pid, syscall.EINVAL)
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		return "", fmt.Errorf("process %d has ended: %w", pid, fs.ErrNotExist)
	}
	return string(fields[start]), nil
}

// dead tells whether the process of the note certainly is no more: it was on
// this machine since it was started, and is gone.
func (n processNote) dead(self processNote) bool {
	if n.Boot != self.Boot {
		return false
	}
	started, err := processStart(n.PID)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return started != n.Started
}

// mountPeer mounts the peer's file system under a new session that is noted.
func (f *filesystem) mountPeer(ctx context.Context, spec dirstore.Peer) (m *ceph.Mount, session string, err error) {
	session = uuid.NewString()
	if err := f.setNote(sessionPrefix+session, spec.UUID); err != nil {
		return nil, "", err
	}
	m, err = f.eng.mount(ctx, f.peerClient(spec), spec.FSName, session)
	if err != nil {
		f.removeNote(sessionPrefix + session)
		return nil, "", err
	}
	return m, session, nil
}

func (f *filesystem) peerClient(spec dirstore.Peer) func() (*rados.Conn, error) {
	return func() (*rados.Conn, error) { return f.eng.peerClient(f.name, spec) }
}

func (f *filesystem) setNote(key, peer string) error {
	note, err := ownNote(peer)
	if err != nil {
		return err
	}
	value, err := json.Marshal(note)
	if err != nil {
		return err
	}
	if err := f.ioctx.SetOmap(dirstore.Object, map[string][]byte{key: value}); err != nil {
		return fmt.Errorf("noting %s on object %s: %w", key, dirstore.Object, err)
	}
	return nil
}

func (f *filesystem) removeNote(key string) {
	if err := f.ioctx.RmOmapKeys(dirstore.Object, []string{key}); err != nil {
		f.log.Debug().Err(err).Str("key", key).Msg("removing a note")
	}
}

// deadInstances returns the instances whose process on this machine is no more.
func (f *filesystem) deadInstances() (map[string]bool, error) {
	self, err := ownNote("")
	if err != nil {
		return nil, err
	}
	notes, err := f.ioctx.GetAllOmapValues(dirstore.Object, "", instancePrefix, 256)
	if err != nil {
		return nil, fmt.Errorf("listing notes about instances: %w", err)
	}
	dead := make(map[string]bool)
	for key, value := range notes {
		var n processNote
		if json.Unmarshal(value, &n) == nil && n.dead(self) {
			dead[strings.TrimPrefix(key, instancePrefix)] = true
		}
	}
	return dead, nil
}

// reclaimDead ends the sessions on the peer that dead workers left.
func (f *filesystem) reclaimDead(ctx context.Context, spec dirstore.Peer) {
	self, err := ownNote(spec.UUID)
	if err != nil {
		f.log.Debug().Err(err).Msg("looking for sessions of dead workers")
		return
	}
	notes, err := f.ioctx.GetAllOmapValues(dirstore.Object, "", sessionPrefix, 256)
	if err != nil {
		f.log.Debug().Err(err).Msg("listing sessions")
		return
	}
	for key, value := range notes {
		var n processNote
		if json.Unmarshal(value, &n) != nil || n.Peer != spec.UUID || ctx.Err() != nil {
			continue
		}
		mine := n.PID == self.PID && n.Boot == self.Boot && n.Started == self.Started
		if !mine && !n.dead(self) {
			continue
		}
		// A session of this very process was given up: it was cut off.
		id := strings.TrimPrefix(key, sessionPrefix)
		if err := f.reclaim(spec, id); err != nil && !ceph.Is(err, syscall.ENOENT) {
			// The peer cannot be reached: mounting it will tell why.
			f.log.Debug().Err(err).Str("session", id).Msg("cannot end the session of a dead worker")
			return
		}
		f.log.Info().Str("session", id).Msg("ended the session of a dead worker on the peer")
		f.removeNote(key)
	}
}

// reclaim ends the MDS sessions with the given uuid.
func (f *filesystem) reclaim(spec dirstore.Peer, id string) error {
	conf, err := f.eng.peerClient(f.name, spec)
	if err != nil {
		return err
	}
	m, err := ceph.NewMount(conf)
	if err != nil {
		return err
	}
	defer m.Release()
	if err := m.SelectFilesystem(spec.FSName); err != nil {
		return err
	}
	if err := m.Init(); err != nil {
		return err
	}
	return m.Reclaim(id)
}
