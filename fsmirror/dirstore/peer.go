package dirstore

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var encoding = base64.StdEncoding

// Secret is a cephx key. It prints as stars; convert it to string to use it.
type Secret string

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret.
func (Secret) GoString() string { return "***" }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Peer is where a file system is mirrored to, as the monitors know it.
type Peer struct {
	UUID    string
	Client  string // with its type: "client.mirror"
	Cluster string // name of the remote cluster
	FSName  string // of the remote file system
}

// PeerKey returns the monitors' config-key of a peer's credentials.
func PeerKey(fsName, uuid string) string { return "cephfs/mirror/peer/" + fsName + "/" + uuid }

// Credentials are what it takes to reach a peer without its conf file.
type Credentials struct {
	FSID    string // of the remote cluster; may be empty
	MonHost string
	Key     Secret
}

// Encode returns the config-key value.
func (c Credentials) Encode() []byte {
	b := []byte("{")
	if c.FSID != "" {
		b = appendMember(b, "fsid", c.FSID)
		b = appendMember(b, "key", string(c.Key))
		b = appendMember(b, "mon_host", c.MonHost)
	} else {
		b = appendMember(b, "mon_host", c.MonHost)
		b = appendMember(b, "key", string(c.Key))
	}
	return append(b, '}')
}

// DecodeCredentials decodes a config-key value. It must have a mon_host and a
// key. The error does not show the value.
func DecodeCredentials(b []byte) (Credentials, error) {
	var v struct {
		FSID    string `json:"fsid"`
		MonHost string `json:"mon_host"`
		Key     string `json:"key"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return Credentials{}, errors.New("decoding peer credentials: not a JSON object of strings")
	}
	if v.MonHost == "" || v.Key == "" {
		return Credentials{}, errors.New("decoding peer credentials: mon_host or key is missing")
	}
	return Credentials{FSID: v.FSID, MonHost: v.MonHost, Key: Secret(v.Key)}, nil
}

// Token is a bootstrap token: all that one cluster tells another to be
// mirrored to.
type Token struct {
	FSID       string
	FileSystem string
	User       string // "client.mirror"
	SiteName   string
	Key        Secret
	MonHost    string
}

// Encode returns the token as it is handed to people. It holds the key.
func (t Token) Encode() string {
	b := []byte("{")
	b = appendMember(b, "fsid", t.FSID)
	b = appendMember(b, "filesystem", t.FileSystem)
	b = appendMember(b, "user", t.User)
	b = appendMember(b, "site_name", t.SiteName)
	b = appendMember(b, "key", string(t.Key))
	b = appendMember(b, "mon_host", t.MonHost)
	return encoding.EncodeToString(append(b, '}'))
}

// DecodeToken decodes a bootstrap token. Its error does not show the token.
func DecodeToken(s string) (Token, error) {
	raw, err := encoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		return Token{}, errors.New("token is not base64")
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil || v == nil {
		return Token{}, errors.New("token is not a JSON object")
	}
	var t Token
	for _, f := range []struct {
		name string
		to   *string
	}{
		{"fsid", &t.FSID}, {"filesystem", &t.FileSystem}, {"user", &t.User},
		{"site_name", &t.SiteName}, {"key", (*string)(&t.Key)}, {"mon_host", &t.MonHost},
	} {
		value, ok := v[f.name].(string)
		if !ok || value == "" {
			return Token{}, fmt.Errorf("token has no %s", f.name)
		}
		*f.to = value
	}
	return t, nil
}

// appendMember appends a member to a JSON object the way Python prints it.
func appendMember(b []byte, name, value string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ", "...)
	}
	b = appendJSON(b, name)
	return appendJSON(append(b, ": "...), value)
}

// FSMap is what the monitors say of the file systems of a cluster.
type FSMap struct {
	Epoch       int64
	FileSystems []FileSystem
}

// FileSystem is one file system and how it is mirrored.
type FileSystem struct {
	ID           int64
	Name         string
	MetadataPool int64
	DataPools    []int64
	Ranks        int // MDSs that share the file system
	Mirrored     bool
	Peers        []Peer // sorted by uuid
}

// ByName returns the file system of that name, or nil.
func (m *FSMap) ByName(name string) *FileSystem {
	for i := range m.FileSystems {
		if m.FileSystems[i].Name == name {
			return &m.FileSystems[i]
		}
	}
	return nil
}

// ParseFSMap parses the output of the monitor command "fs dump" in JSON.
func ParseFSMap(b []byte) (*FSMap, error) {
	var dump struct {
		Epoch       int64 `json:"epoch"`
		FileSystems []struct {
			ID     int64 `json:"id"`
			MDSMap struct {
				Name         string  `json:"fs_name"`
				MetadataPool int64   `json:"metadata_pool"`
				DataPools    []int64 `json:"data_pools"`
				In           []int   `json:"in"`
			} `json:"mdsmap"`
			MirrorInfo *struct {
				Peers map[string]struct {
					Remote struct {
						Client  string `json:"client_name"`
						Cluster string `json:"cluster_name"`
						FSName  string `json:"fs_name"`
					} `json:"remote"`
				} `json:"peers"`
			} `json:"mirror_info"`
		} `json:"filesystems"`
	}
	if err := json.Unmarshal(b, &dump); err != nil {
		return nil, fmt.Errorf("parsing the map of file systems: %w", err)
	}
	m := &FSMap{Epoch: dump.Epoch}
	for _, f := range dump.FileSystems {
		fs := FileSystem{
			ID: f.ID, Name: f.MDSMap.Name, MetadataPool: f.MDSMap.MetadataPool,
			DataPools: f.MDSMap.DataPools, Ranks: len(f.MDSMap.In), Mirrored: f.MirrorInfo != nil,
		}
		if f.MirrorInfo != nil {
			for uuid, p := range f.MirrorInfo.Peers {
				fs.Peers = append(fs.Peers, Peer{uuid, p.Remote.Client, p.Remote.Cluster, p.Remote.FSName})
			}
			slices.SortFunc(fs.Peers, func(a, b Peer) int { return strings.Compare(a.UUID, b.UUID) })
		}
		m.FileSystems = append(m.FileSystems, fs)
	}
	return m, nil
}
