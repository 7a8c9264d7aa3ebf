package bed

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Option is one configuration option.
type Option struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// confParams is all that a cluster's ceph.conf depends on.
type confParams struct {
	Name      string
	Dir       string // the cluster's directory
	EtcDir    string // where keyrings of clients are, as seen by Ceph
	FSID      string
	FirstPort int
	Ports     int
	OSDSize   int64
	ClassDir  string
	ModuleDir string // of the mgr; empty for Ceph's default
	Modules   []string
	Global    []Option
	Users     []User
}

// renderConf returns the text of ceph.conf.
func renderConf(p confParams) string {
	var b strings.Builder
	section := func(name string, opts ...Option) {
		fmt.Fprintf(&b, "[%s]\n", name)
		for _, o := range opts {
			fmt.Fprintf(&b, "\t%s = %s\n", o.Name, o.Value)
		}
		b.WriteString("\n")
	}
	run, logs := filepath.Join(p.Dir, "run"), filepath.Join(p.Dir, "log")
	section("global", append([]Option{
		{"fsid", p.FSID},
		{"mon host", fmt.Sprintf("[v2:127.0.0.1:%d/0,v1:127.0.0.1:%d/0]", p.FirstPort, p.FirstPort+1)},
		{"public addr", "127.0.0.1"},
		{"cluster addr", "127.0.0.1"},
		{"ms bind ipv6", "false"},
		{"ms bind port min", fmt.Sprint(p.FirstPort + 2)},
		{"ms bind port max", fmt.Sprint(p.FirstPort + p.Ports - 1)},
		{"auth cluster required", "cephx"},
		{"auth service required", "cephx"},
		{"auth client required", "cephx"},
		{"auth allow insecure global id reclaim", "false"},
		{"run dir", run},
		{"log to file", "true"},
		{"log to stderr", "false"},
		{"err to stderr", "true"},
		{"osd pool default size", "1"},
		{"osd pool default min size", "1"},
		{"osd pool default pg num", "8"},
		{"osd pool default pgp num", "8"},
		{"osd pool default pg autoscale mode", "off"},
		{"osd crush chooseleaf type", "0"},
		{"osd class dir", p.ClassDir},
		{"debug ms", "0/0"},
		{"debug osd", "0/1"},
		{"debug rocksdb", "1/1"},
		{"debug bluestore", "0/1"},
		{"debug bluefs", "0/1"},
		{"debug bdev", "0/1"},
		{"log max recent", "500"},
	}, p.Global...)...)

	daemon := func(kind, keyring string, opts ...Option) {
		section(kind, append([]Option{
			{"admin socket", run + "/$cluster-$name.asok"},
			{"pid file", run + "/$cluster-$name.pid"},
			{"log file", logs + "/$name.log"},
			{"keyring", filepath.Join(p.Dir, keyring)},
		}, opts...)...)
	}
	daemon("mon", "mon.$id/keyring",
		Option{"mon data", p.Dir + "/mon.$id"},
		Option{"mon cluster log to file", "false"},
		Option{"mon allow pool size one", "true"},
		Option{"mon allow pool delete", "true"},
		Option{"mon max pg per osd", "2000"},
		Option{"mon warn on pool no redundancy", "false"},
		Option{"mon warn on insecure global id reclaim", "false"},
		Option{"mon warn on too few osds", "false"},
		Option{"mon data avail warn", "2"},
		Option{"mon data avail crit", "1"},
		Option{"mon osd min down reporters", "1"},
		// Quicker rounds in the monitor; what it decides stays the same.
		Option{"paxos propose interval", "0.1"},
		Option{"mon tick interval", "1"},
		Option{"mgr initial modules", strings.Join(p.Modules, " ")},
		Option{"debug mon", "0/1"},
		Option{"debug paxos", "0/1"},
	)
	mgr := []Option{
		{"mgr data", p.Dir + "/mgr.$id"},
		{"mgr stats period", "1"},
	}
	if p.ModuleDir != "" {
		mgr = append(mgr, Option{"mgr module path", p.ModuleDir})
	}
	daemon("mgr", "keyring", mgr...)
	daemon("osd", "keyring",
		Option{"osd data", p.Dir + "/osd.$id"},
		Option{"osd journal", ""},
		Option{"osd objectstore", "bluestore"},
		Option{"bluestore block size", fmt.Sprint(p.OSDSize)},
		// A busy disk is no matter here; warned of for a day, it would keep
		// the cluster from being healthy.
		Option{"bluestore slow ops warn threshold", "1000000"},
		Option{"bluestore cache autotune", "false"},
		Option{"bluestore cache size", fmt.Sprint(128 << 20)},
		Option{"osd memory target", fmt.Sprint(939524096)},
		// mclock measures the disk at each start and then holds clients back.
		Option{"osd op queue", "wpq"},
		Option{"osd max backfills", "10"},
		Option{"osd recovery sleep", "0"},
		Option{"osd snap trim sleep", "0"},
		Option{"osd snap trim sleep hdd", "0"},
		Option{"osd delete sleep", "0"},
		Option{"osd delete sleep hdd", "0"},
	)
	daemon("mds", "keyring",
		Option{"mds data", p.Dir + "/mds.$id"},
		Option{"mds cache memory limit", fmt.Sprint(512 << 20)},
	)
	section("client.admin", Option{"keyring", filepath.Join(p.EtcDir, p.Name+".client.admin.keyring")})
	for _, u := range p.Users {
		section(u.Entity,
			Option{"keyring", filepath.Join(p.EtcDir, p.Name+"."+u.Entity+".keyring")},
			Option{"admin socket", run + "/$cluster-$name.asok"},
			Option{"pid file", run + "/$cluster-$name.pid"},
			Option{"log file", logs + "/$name.log"},
		)
	}
	return b.String()
}

// keyEntry is one entity of a keyring.
type keyEntry struct {
	Entity string
	Key    string
	Caps   []Option
}

func renderKeyring(entries []keyEntry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "[%s]\n\tkey = %s\n", e.Entity, e.Key)
		for _, c := range e.Caps {
			fmt.Fprintf(&b, "\tcaps %s = \"%s\"\n", c.Name, c.Value)
		}
	}
	return b.String()
}

func newUUID() string {
	var u [16]byte
	rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// clusterKeys lists the entities that a cluster is born with, without their keys.
func clusterKeys(d daemonNames) []keyEntry {
	entries := []keyEntry{
		{Entity: "mon.", Caps: []Option{{"mon", "allow *"}}},
		{Entity: "client.admin", Caps: []Option{{"mon", "allow *"}, {"mgr", "allow *"}, {"osd", "allow *"}, {"mds", "allow *"}}},
	}
	for _, n := range d.mgrs {
		entries = append(entries, keyEntry{Entity: n, Caps: []Option{{"mon", "allow profile mgr"}, {"osd", "allow *"}, {"mds", "allow *"}}})
	}
	for _, n := range d.osds {
		entries = append(entries, keyEntry{Entity: n, Caps: []Option{{"mon", "allow profile osd"}, {"mgr", "allow profile osd"}, {"osd", "allow *"}}})
	}
	for _, n := range d.mdss {
		entries = append(entries, keyEntry{Entity: n, Caps: []Option{{"mon", "allow profile mds"}, {"mgr", "allow profile mds"}, {"osd", "allow rw tag cephfs *=*"}, {"mds", "allow *"}}})
	}
	return entries
}

// daemonNames lists a cluster's daemons by kind.
type daemonNames struct{ mons, mgrs, osds, mdss []string }

func (d daemonNames) all() []string { return slices.Concat(d.mons, d.mgrs, d.osds, d.mdss) }

func namesFor(s ClusterSpec) daemonNames {
	d := daemonNames{mons: []string{"mon.a"}, mgrs: []string{"mgr.x"}}
	for i := range s.OSDs {
		d.osds = append(d.osds, fmt.Sprintf("osd.%d", i))
	}
	for i := range s.MDSs {
		d.mdss = append(d.mdss, "mds."+string(rune('a'+i)))
	}
	return d
}
