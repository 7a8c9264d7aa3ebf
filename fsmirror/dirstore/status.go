package dirstore

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Service is the name under which workers stand in the service map.
const Service = "cephfs-mirror"

// StatusKey is the member of a worker's service status that holds Status.
const StatusKey = "status_json"

// Status is what a worker reports of itself to the cluster.
type Status struct {
	FileSystems []FSStatus // sorted by id
}

// FSStatus is the part of a Status about one file system.
type FSStatus struct {
	ID              int64
	Name            string
	DirectoryCount  uint64
	MirroringFailed bool
	Peers           []PeerStatus
}

// PeerStatus is the part of a Status about one peer.
type PeerStatus struct {
	Peer          Peer
	FailureCount  uint64 // directories that came to fail
	RecoveryCount uint64 // and that came to work again
	InitFailed    bool   // the peer cannot be reached
}

// Encode returns the status as compact JSON, members in the stock order.
func (s Status) Encode() []byte {
	b := []byte("{")
	for i, fs := range s.FileSystems {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSON(b, strconv.FormatInt(fs.ID, 10))
		b = appendJSON(append(b, `:{"name":`...), fs.Name)
		b = fmt.Appendf(b, `,"directory_count":%d`, fs.DirectoryCount)
		if fs.MirroringFailed {
			b = append(b, `,"mirroring_failed":true`...)
		}
		b = append(b, `,"peers":{`...)
		for i, p := range fs.Peers {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, p.Peer.UUID)
			b = appendJSON(append(b, `:{"remote":{"client_name":`...), p.Peer.Client)
			b = appendJSON(append(b, `,"cluster_name":`...), p.Peer.Cluster)
			b = appendJSON(append(b, `,"fs_name":`...), p.Peer.FSName)
			b = fmt.Appendf(b, `},"stats":{"failure_count":%d`, p.FailureCount)
			if p.InitFailed {
				b = append(b, `,"peer_init_failed":true`...)
			}
			b = fmt.Appendf(b, `,"recovery_count":%d}}`, p.RecoveryCount)
		}
		b = append(b, "}}"...)
	}
	return append(b, '}')
}

// DaemonStatus is the status of one worker in the service map.
type DaemonStatus struct {
	ID          int64
	FileSystems []DaemonFS
}

// DaemonFS is a file system in a DaemonStatus.
type DaemonFS struct {
	ID             int64
	Name           string
	DirectoryCount uint64
	Peers          []DaemonPeer
}

// DaemonPeer is a peer in a DaemonStatus. Remote and Stats are as reported.
type DaemonPeer struct {
	UUID   string
	Remote json.RawMessage
	Stats  json.RawMessage
}

// ParseServiceStatus reads the workers' status from the output of the mgr
// command "service status". Daemons whose name is no number or that have not
// reported yet are left out, as the stock command does.
func ParseServiceStatus(b []byte) ([]DaemonStatus, error) {
	var services map[string]map[string]struct {
		Status map[string]string `json:"status"`
	}
	if err := json.Unmarshal(b, &services); err != nil {
		return nil, fmt.Errorf("parsing service status: %w", err)
	}
	var daemons []DaemonStatus
	for name, d := range services[Service] {
		id, err := strconv.ParseInt(name, 10, 64)
		if err != nil || d.Status[StatusKey] == "" {
			continue
		}
		fss, err := parseStatus([]byte(d.Status[StatusKey]))
		if err != nil {
			return nil, fmt.Errorf("daemon %d: %w", id, err)
		}
		daemons = append(daemons, DaemonStatus{ID: id, FileSystems: fss})
	}
	slices.SortFunc(daemons, func(a, b DaemonStatus) int { return strings.Compare(fmt.Sprint(a.ID), fmt.Sprint(b.ID)) })
	return daemons, nil
}

func parseStatus(b []byte) ([]DaemonFS, error) {
	var status map[string]struct {
		Name           string `json:"name"`
		DirectoryCount uint64 `json:"directory_count"`
		Peers          map[string]struct {
			Remote json.RawMessage `json:"remote"`
			Stats  json.RawMessage `json:"stats"`
		} `json:"peers"`
	}
	if err := json.Unmarshal(b, &status); err != nil {
		return nil, fmt.Errorf("parsing %s: %w", StatusKey, err)
	}
	var fss []DaemonFS
	for key, s := range status {
		id, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parsing %s: file system id %q", StatusKey, key)
		}
		fs := DaemonFS{ID: id, Name: s.Name, DirectoryCount: s.DirectoryCount}
		for uuid, p := range s.Peers {
			fs.Peers = append(fs.Peers, DaemonPeer{uuid, p.Remote, p.Stats})
		}
		slices.SortFunc(fs.Peers, func(a, b DaemonPeer) int { return strings.Compare(a.UUID, b.UUID) })
		fss = append(fss, fs)
	}
	slices.SortFunc(fss, func(a, b DaemonFS) int { return int(a.ID - b.ID) })
	return fss, nil
}
