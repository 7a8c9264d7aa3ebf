package fsmirror

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cephmirror/plugins"
)

// Metrics implements plugins.Plugin: the stock daemon's counters under its
// names, and after them our own.
func (e *Engine) Metrics(context.Context) ([]plugins.Logger, error) {
	if e.control != nil {
		return nil, nil
	}
	priority := int(e.options.uint("cephfs_mirror_perf_stats_prio"))
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.filesystems))
	failures := e.enableFailures
	e.mu.Unlock()
	slices.SortFunc(list, func(a, b *filesystem) int { return int(a.id - b.id) })

	top := plugins.Logger{Name: "cephfs_mirror", Counters: []plugins.Counter{
		gauge("mirrored_filesystems", "Filesystems mirrored", "mir", uint64(len(list))),
		count("mirror_enable_failures", "Mirroring enable failures", "mirf", failures),
	}}
	var systems, peers []plugins.Logger
	for _, f := range list {
		f.mu.Lock()
		dirs, fsPeers := len(f.dirs), slices.SortedFunc(maps.Values(f.peers), func(a, b *peer) int {
			return strings.Compare(a.uuid, b.uuid)
		})
		f.mu.Unlock()
		systems = append(systems, plugins.Logger{
			Name:   "cephfs_mirror_mirrored_filesystems",
			Labels: []plugins.Option{{Name: "filesystem", Value: f.name}},
			Counters: []plugins.Counter{
				gauge("mirroring_peers", "Mirroring Peers", "mpee", uint64(len(fsPeers))),
				gauge("directory_count", "Directory Count", "dirc", uint64(dirs)),
			},
		})
		for _, p := range fsPeers {
			peers = append(peers, p.metrics())
		}
	}
	out := append([]plugins.Logger{top}, systems...)
	out = append(out, peers...)
	for i := range out {
		for j := range out[i].Counters {
			out[i].Counters[j].Priority = priority
		}
	}
	return out, nil
}

func (p *peer) metrics() plugins.Logger {
	c := &p.counters
	c.mu.Lock()
	defer c.mu.Unlock()
	var failing, syncing, sent uint64
	p.mu.Lock()
	for _, w := range p.dirs {
		w.status.mu.Lock()
		if w.status.failed {
			failing++
		}
		if w.status.current != nil {
			syncing++
		}
		w.status.mu.Unlock()
	}
	var connected uint64
	if p.trouble == nil {
		connected = 1
	}
	p.mu.Unlock()
	sent = c.sent.Load()
	return plugins.Logger{
		Name: "cephfs_mirror_peers",
		Labels: []plugins.Option{
			{Name: "peer_cluster_filesystem", Value: p.spec.FSName},
			{Name: "peer_cluster_name", Value: p.spec.Cluster},
			{Name: "source_filesystem", Value: p.fs.name},
			{Name: "source_fscid", Value: fmt.Sprint(p.fs.id)},
		},
		Counters: []plugins.Counter{
			count("snaps_synced", "Snapshots Synchronized", "sync", c.synced.Load()),
			count("snaps_deleted", "Snapshots Deleted", "sdel", c.deleted.Load()),
			count("snaps_renamed", "Snapshots Renamed", "sren", c.renamed.Load()),
			count("sync_failures", "Snapshot Sync Failures", "sfai", c.failed.Load()),
			{Name: "avg_sync_time", Type: plugins.AverageSeconds, Description: "Average Sync Time", Nick: "sbps", Count: c.syncs, Sum: c.syncSeconds},
			bytesCount("sync_bytes", "Sync Bytes", "sbye", c.bytes.Load()),
			seconds("last_synced_start", "Last Synced Start", "lsst", c.start),
			seconds("last_synced_end", "Last Synced End", "lsen", c.end),
			seconds("last_synced_duration", "Last Synced Duration", "lsdn", c.duration),
			bytesCount("last_synced_bytes", "Last Synced Bytes", "lsbt", c.lastBytes),
			bytesCount("sent_bytes", "Bytes written to the peer", "", sent),
			gauge("directories_failed", "Directories in the failed state", "", failing),
			gauge("directories_syncing", "Directories being synchronized", "", syncing),
			gauge("connected", "Whether there is a connection to the peer", "", connected),
		},
	}
}

func count(name, description, nick string, v uint64) plugins.Counter {
	return plugins.Counter{Name: name, Type: plugins.CounterU64, Description: description, Nick: nick, U64: v}
}

func bytesCount(name, description, nick string, v uint64) plugins.Counter {
	return plugins.Counter{Name: name, Type: plugins.CounterU64, Description: description, Nick: nick, U64: v, Bytes: true}
}

func gauge(name, description, nick string, v uint64) plugins.Counter {
	return plugins.Counter{Name: name, Type: plugins.GaugeU64, Description: description, Nick: nick, U64: v}
}

func seconds(name, description, nick string, v float64) plugins.Counter {
	return plugins.Counter{Name: name, Type: plugins.GaugeSeconds, Description: description, Nick: nick, Value: v}
}
