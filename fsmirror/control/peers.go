package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (c *Control) peerList(_ context.Context, p params) ([]byte, error) {
	fs, err := c.mirrored(p)
	if err != nil {
		return nil, err
	}
	peers := object{}
	for _, peer := range fs.Peers {
		peers = append(peers, member{peer.UUID, object{
			{"client_name", peer.Client}, {"site_name", peer.Cluster}, {"fs_name", peer.FSName},
		}})
	}
	return pyJSON(peers, 0), nil
}

// splitSpec takes "client.ID@CLUSTER" apart.
func splitSpec(spec string) (id, cluster string, err error) {
	client, cluster, ok := strings.Cut(spec, "@")
	kind, id, ok2 := strings.Cut(client, ".")
	if !ok || !ok2 || kind != "client" || id == "" || cluster == "" ||
		strings.ContainsRune(id, '.') || strings.ContainsAny(cluster, "@/") {
		return "", "", failf(syscall.EINVAL, "invalid cluster spec %s", spec)
	}
	return id, cluster, nil
}

func (c *Control) peerAdd(ctx context.Context, p params) (string, error) {
	var spec, remoteFS, monHost, key string
	for name, to := range map[string]*string{
		"remote_cluster_spec": &spec, "remote_fs_name": &remoteFS, "remote_mon_host": &monHost, "cephx_key": &key,
	} {
		v, err := p.optional(name)
		if err != nil {
			return "", err
		}
		*to = v
	}
	fs, err := c.mirrored(p)
	if err != nil {
		return "", err
	}
	var creds *dirstore.Credentials
	if monHost != "" && key != "" {
		creds = &dirstore.Credentials{MonHost: monHost, Key: dirstore.Secret(key)}
	}
	return c.addPeer(ctx, p, fs, spec, remoteFS, creds)
}

func (c *Control) bootstrapImport(ctx context.Context, p params) (string, error) {
	text, err := p.optional("token")
	if err != nil {
		return "", err
	}
	token, err := dirstore.DecodeToken(text)
	if err != nil {
		return "", failf(syscall.EINVAL, "failed to parse token")
	}
	fs, err := c.mirrored(p)
	if err != nil {
		return "", err
	}
	return c.addPeer(ctx, p, fs, token.User+"@"+token.SiteName, token.FileSystem,
		&dirstore.Credentials{FSID: token.FSID, MonHost: token.MonHost, Key: token.Key})
}

// manyPeers is what an operator is told who asks for a further peer.
const manyPeers = "filesystem %s has %d peers now: the stock cephfs-mirror daemon does not survive that, run none for it"

// addPeer adds a peer. One beside another must be asked for.
func (c *Control) addPeer(ctx context.Context, p params, fs *dirstore.FileSystem, spec, remoteFS string, creds *dirstore.Credentials) (warning string, err error) {
	additional, err := p.flag("additional")
	if err != nil {
		return "", err
	}
	id, cluster, err := splitSpec(spec)
	if err != nil {
		return "", err
	}
	remoteFS = cmp.Or(remoteFS, fs.Name)
	for _, peer := range fs.Peers {
		if peer.Client == "client."+id && peer.Cluster == cluster && peer.FSName == remoteFS {
			return "", nil
		}
	}
	if len(fs.Peers) > 0 {
		if !additional {
			return "", failf(syscall.EEXIST, "filesystem %s already has a peer: %s (--additional adds one beside it)", fs.Name, fs.Peers[0].UUID)
		}
		warning = fmt.Sprintf(manyPeers, fs.Name, len(fs.Peers)+1)
	}
	local, err := c.b.GetFSID()
	if err != nil {
		return "", fmt.Errorf("asking for the local cluster's fsid: %w", err)
	}
	source := dirstore.Source{ClusterID: local, FSID: fs.ID}

	remote, err := c.b.Dial(ctx, Remote{Client: id, Cluster: cluster, FSName: remoteFS, Credentials: creds})
	if err != nil {
		return "", dialFailure(err, cluster, remoteFS)
	}
	defer remote.Close()
	target := remote.Source()
	if creds != nil && creds.FSID != "" && creds.FSID != target.ClusterID {
		return "", failf(syscall.EINVAL, "FSID mismatch between bootstrap token and remote cluster")
	}
	if target == source {
		return "", failf(syscall.EINVAL, "'Source and destination cluster fsid and file-system name can't be the same")
	}
	mark, err := c.b.LocalMark(ctx, fs.Name)
	if err != nil {
		return "", addFailure(err)
	}
	if mark == target.String() {
		return "", failf(syscall.EINVAL, "file system is an active peer for file system: %s", remoteFS)
	}
	marked, err := setMark(remote, source)
	if err != nil {
		return "", err
	}
	if err := c.recordPeer(fs.Name, dirstore.Peer{
		UUID: uuid.NewString(), Client: "client." + id, Cluster: cluster, FSName: remoteFS,
	}, creds); err != nil {
		if marked {
			err = errors.Join(err, remote.RemoveMark())
		}
		return "", addFailure(err)
	}
	return warning, nil
}

func addFailure(err error) error { return fmt.Errorf("failed to add peer: %w", err) }

func dialFailure(err error, cluster, fsName string) error {
	switch {
	case errors.Is(err, errNoCluster):
		return failf(syscall.ENOENT, "cluster %s does not exist", cluster)
	case errors.Is(err, errNoFS):
		return failf(syscall.ENOENT, "filesystem %s does not exist", fsName)
	}
	return addFailure(err)
}

// setMark claims the remote file system. Set says that it was not ours before.
func setMark(remote RemoteFS, source dirstore.Source) (set bool, err error) {
	err = remote.SetMark(source.String())
	if err == nil {
		return true, nil
	}
	if !ceph.Is(err, syscall.EEXIST) {
		return false, addFailure(err)
	}
	value, err := remote.Mark()
	if err != nil {
		return false, addFailure(err)
	}
	if value != source.String() {
		return false, failf(syscall.EEXIST, "already an active peer")
	}
	return false, nil
}

func (c *Control) recordPeer(fsName string, peer dirstore.Peer, creds *dirstore.Credentials) error {
	if creds != nil {
		// As input, for arguments are written to the audit log.
		_, err := mon(c.b, creds.Encode(), request{"prefix": "config-key set", "key": dirstore.PeerKey(fsName, peer.UUID)})
		if err != nil {
			return err
		}
	}
	_, err := mon(c.b, nil, request{
		"prefix": "fs mirror peer_add", "fs_name": fsName, "uuid": peer.UUID,
		"remote_cluster_spec": peer.Client + "@" + peer.Cluster, "remote_fs_name": peer.FSName,
	})
	if err != nil && creds != nil {
		err = errors.Join(err, c.removeKey(fsName, peer.UUID))
	}
	return err
}

func (c *Control) peerRemove(ctx context.Context, p params) (string, error) {
	id, err := p.optional("peer_uuid")
	if err != nil {
		return "", err
	}
	fs, err := c.mirrored(p)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(fs.Peers, func(peer dirstore.Peer) bool { return peer.UUID == id })
	if i < 0 {
		return "", nil
	}
	warning := ""
	if err := c.unmark(ctx, fs, fs.Peers[i]); err != nil {
		// A cluster that is gone for good must not keep its peer alive.
		warning = fmt.Sprintf("peer removed, but its file system still is marked as mirrored to (attribute %s of its root): %v",
			dirstore.RemoteMark, err)
	}
	_, err = mon(c.b, nil, request{"prefix": "fs mirror peer_remove", "fs_name": fs.Name, "uuid": id})
	if err == nil {
		err = c.removeKey(fs.Name, id)
	}
	if err != nil {
		return "", fmt.Errorf("failed to remove peer: %w", err)
	}
	return warning, nil
}

// unmark takes the mark off the remote file system, if it is ours.
func (c *Control) unmark(ctx context.Context, fs *dirstore.FileSystem, peer dirstore.Peer) error {
	local, err := c.b.GetFSID()
	if err != nil {
		return fmt.Errorf("asking for the local cluster's fsid: %w", err)
	}
	r := Remote{Cluster: peer.Cluster, FSName: peer.FSName}
	_, r.Client, _ = strings.Cut(peer.Client, ".")
	value, err := mon(c.b, nil, request{"prefix": "config-key get", "key": dirstore.PeerKey(fs.Name, peer.UUID)})
	switch {
	case ceph.Is(err, syscall.ENOENT): // by conf file and keyring
	case err != nil:
		return err
	default:
		creds, err := dirstore.DecodeCredentials(value)
		if err != nil {
			return err
		}
		r.Credentials = &creds
	}
	remote, err := c.b.Dial(ctx, r)
	if err != nil {
		return err
	}
	defer remote.Close()
	mark, err := remote.Mark()
	if err != nil || mark != (dirstore.Source{ClusterID: local, FSID: fs.ID}).String() {
		return err
	}
	return remote.RemoveMark()
}

func (c *Control) bootstrapCreate(_ context.Context, p params) ([]byte, error) {
	name, fs, err := c.lookup(p)
	if err != nil {
		return nil, err
	}
	user, err := p.text("client_name")
	if err != nil {
		return nil, err
	}
	site, err := p.text("site_name")
	if err != nil {
		return nil, err
	}
	if fs == nil || !strings.HasPrefix(user, "client.") || user == "client." {
		return nil, failf(syscall.EINVAL, "failed to bootstrap peer")
	}
	key, err := c.authorize(name, user)
	if err != nil {
		return nil, err
	}
	token := dirstore.Token{FileSystem: name, User: user, SiteName: site, Key: dirstore.Secret(key)}
	if token.FSID, err = c.b.GetFSID(); err != nil {
		return nil, fmt.Errorf("failed to bootstrap peer: %w", err)
	}
	if token.MonHost, err = c.monHost(); err != nil {
		return nil, fmt.Errorf("failed to bootstrap peer: %w", err)
	}
	return pyJSON(object{{"token", token.Encode()}}, 0), nil
}

// authorize makes the user that may write to the file system and returns its
// key. A user that exists must have exactly these capabilities: giving it
// others could take from it what somebody relies on.
func (c *Control) authorize(fsName, user string) (key string, err error) {
	want := map[string]string{
		"mds": "allow rwps fsname=" + fsName,
		"mon": "allow r fsname=" + fsName,
		"osd": "allow rw tag cephfs data=" + fsName,
	}
	key, caps, err := c.authGet(user)
	if ceph.Is(err, syscall.ENOENT) {
		if _, err = mon(c.b, nil, request{
			"prefix": "fs authorize", "filesystem": fsName, "entity": user, "caps": []string{"/", "rwps"},
		}); err != nil {
			return "", fmt.Errorf("failed to bootstrap peer: %w", err)
		}
		key, _, err = c.authGet(user)
	} else if err == nil && !maps.Equal(caps, want) {
		return "", failf(syscall.EINVAL, "failed to bootstrap peer: user %s exists and has other capabilities; "+
			"choose another name for the user", user)
	}
	if err != nil {
		return "", fmt.Errorf("failed to bootstrap peer: %w", err)
	}
	return key, nil
}

func (c *Control) authGet(user string) (key string, caps map[string]string, err error) {
	out, err := mon(c.b, nil, request{"prefix": "auth get", "entity": user, "format": "json"})
	if err != nil {
		return "", nil, err
	}
	var users []struct {
		Entity string            `json:"entity"`
		Key    string            `json:"key"`
		Caps   map[string]string `json:"caps"`
	}
	if err := json.Unmarshal(out, &users); err != nil || len(users) != 1 {
		return "", nil, fmt.Errorf("parsing what the monitors say of %s", user)
	}
	return users[0].Key, users[0].Caps, nil
}

// monHost returns the addresses of the local monitors for others to use.
func (c *Control) monHost() (string, error) {
	if host, err := c.b.GetConfigOption("mon_host"); err == nil && host != "" {
		return host, nil
	}
	out, err := mon(c.b, nil, request{"prefix": "mon dump", "format": "json"})
	if err != nil {
		return "", err
	}
	var dump struct {
		Mons []struct {
			Addrs struct {
				Vec []struct {
					Type  string `json:"type"`
					Addr  string `json:"addr"`
					Nonce uint32 `json:"nonce"`
				} `json:"addrvec"`
			} `json:"public_addrs"`
		} `json:"mons"`
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		return "", fmt.Errorf("parsing the monitor map: %w", err)
	}
	var hosts []string
	for _, m := range dump.Mons {
		var addrs []string
		for _, a := range m.Addrs.Vec {
			addrs = append(addrs, fmt.Sprintf("%s:%s/%d", a.Type, a.Addr, a.Nonce))
		}
		hosts = append(hosts, "["+strings.Join(addrs, ",")+"]")
	}
	if len(hosts) == 0 {
		return "", errors.New("the monitor map is empty")
	}
	return strings.Join(hosts, ","), nil
}
