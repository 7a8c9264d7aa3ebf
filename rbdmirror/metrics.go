package rbdmirror

import (
	"context"
	"slices"
	"strings"
	"time"

	"cephmirror/plugins"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/replica"
)

// Metrics implements plugins.Plugin: the stock daemon's counters under its
// names, and after them our own.
func (e *Engine) Metrics(context.Context) ([]plugins.Logger, error) {
	if e.cfg.Mode != plugins.ModeWorker {
		return nil, nil
	}
	priority := int(e.options.Uint("rbd_mirror_perf_stats_prio"))
	imagePriority := int(e.options.Uint("rbd_mirror_image_perf_stats_prio"))
	var all totals
	var images, links []plugins.Logger
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			links = append(links, l.metrics())
			s := l.current()
			if s == nil {
				continue
			}
			for _, sp := range s.sortedSpaces() {
				for _, img := range sp.sortedImages() {
					st, t := img.counters()
					all.add(t)
					labels := []plugins.Option{
						{Name: "image", Value: img.label()}, {Name: "namespace", Value: sp.spec.local}, {Name: "pool", Value: p.name},
					}
					if img.currentMode() == cls.ImageModeJournal {
						images = append(images, plugins.Logger{Name: "rbd_mirror_journal_image", Labels: labels, Counters: journalImageCounters(st, t)})
					} else {
						images = append(images, plugins.Logger{Name: "rbd_mirror_snapshot_image", Labels: labels, Counters: imageCounters(st, t)})
					}
				}
			}
		}
	}
	all.add(e.pastTotals())
	top := []plugins.Logger{
		{Name: "rbd_mirror_journal", Counters: journalCounters(all)},
		{Name: "rbd_mirror_snapshot", Counters: snapshotCounters(all)},
	}
	prioritize(top, priority)
	prioritize(links, priority)
	prioritize(images, imagePriority)
	return slices.Concat(top, images, links), nil
}

func prioritize(list []plugins.Logger, priority int) {
	for i := range list {
		for j := range list[i].Counters {
			list[i].Counters[j].Priority = priority
		}
	}
}

func snapshotCounters(t totals) []plugins.Counter {
	return []plugins.Counter{
		{Name: "snapshots", Type: plugins.CounterU64, Description: "Number of snapshots synced", U64: t.snapshots},
		{Name: "sync_time", Type: plugins.AverageSeconds, Description: "Average sync time", Count: t.snapshots, Sum: t.seconds},
		{Name: "sync_bytes", Type: plugins.CounterU64, Description: "Total bytes synced", U64: t.bytes, Bytes: true},
	}
}

// journalCounters are the stock daemon's.
func journalCounters(t totals) []plugins.Counter {
	return []plugins.Counter{
		{Name: "entries", Type: plugins.CounterU64, Description: "Number of entries replayed", U64: t.entries},
		{Name: "replay_bytes", Type: plugins.CounterU64, Description: "Total bytes replayed", U64: t.payload, Bytes: true},
		{Name: "replay_latency", Type: plugins.AverageSeconds, Description: "Replay latency", Count: t.latencies, Sum: t.latency.Seconds()},
	}
}

func flag(on bool) uint64 {
	if on {
		return 1
	}
	return 0
}

// stateCounters are of images in either mode.
func stateCounters(st replica.Status) []plugins.Counter {
	return []plugins.Counter{
		{Name: "syncing", Type: plugins.GaugeU64, Description: "Whether the image is being synchronised", U64: flag(st.Syncing)},
		{Name: "state", Type: plugins.GaugeU64, Description: "State as in the image status: 1 error, 2 syncing, 3 starting, 4 replaying, 5 stopping, 6 stopped", U64: uint64(st.State)},
		{Name: "failures", Type: plugins.GaugeU64, Description: "Failures in a row", U64: uint64(max(0, st.Failures))},
	}
}

// journalImageCounters are of an image that is mirrored by its journal.
func journalImageCounters(st replica.Status, t totals) []plugins.Counter {
	j := st.Journal
	own := []plugins.Counter{
		{Name: "entries_behind", Type: plugins.GaugeU64, Description: "Entries of the primary's journal that are still to be replayed", U64: j.EntriesBehind},
		{Name: "bytes_behind", Type: plugins.GaugeU64, Description: "Estimated bytes of these entries", U64: j.BytesBehind, Bytes: true},
		{Name: "lag", Type: plugins.GaugeSeconds, Description: "Age of the oldest entry that is still to be replayed, by the primary's clock", Value: j.SecondsBehind},
		{Name: "entries_per_second", Type: plugins.GaugeU64, Description: "Entries replayed per second, over half a minute", U64: uint64(j.EntriesPerSecond + 0.5)},
		{Name: "bytes_per_second", Type: plugins.GaugeU64, Description: "Bytes replayed per second, over half a minute", U64: uint64(j.BytesPerSecond + 0.5), Bytes: true},
		{Name: "strict", Type: plugins.GaugeU64, Description: "Whether entries are carried out one at a time", U64: flag(j.Strict)},
		{Name: "replaying", Type: plugins.GaugeU64, Description: "Whether the journal is being replayed", U64: flag(j.Replayed)},
	}
	return slices.Concat(journalCounters(t), own, stateCounters(st))
}

// imageCounters are of an image that is mirrored by snapshots.
func imageCounters(st replica.Status, t totals) []plugins.Counter {
	own := []plugins.Counter{
		{Name: "remote_timestamp", Type: plugins.GaugeSeconds, Description: "Timestamp of the remote snapshot", Value: seconds(st.RemoteTime)},
		{Name: "local_timestamp", Type: plugins.GaugeSeconds, Description: "Timestamp of the local snapshot", Value: seconds(st.LocalTime)},
		{Name: "last_sync_time", Type: plugins.GaugeSeconds, Description: "Time taken to sync the last snapshot", Value: t.lastSeconds},
		{Name: "last_sync_bytes", Type: plugins.GaugeU64, Description: "Bytes synced for the last snapshot", U64: t.lastBytes, Bytes: true},
		{Name: "lag", Type: plugins.GaugeSeconds, Description: "Seconds between the newest remote snapshot and the newest local copy", Value: lag(st)},
	}
	return slices.Concat(snapshotCounters(t), own, stateCounters(st))
}

// lag is how far the copy is behind: by the newest complete snapshots of both
// sides.
func lag(st replica.Status) float64 {
	if st.RemoteTime.IsZero() || st.LocalTime.IsZero() {
		return 0
	}
	return max(0, st.RemoteTime.Sub(st.LocalTime).Seconds())
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// counters returns an image's status, and its totals with those of the present
// replayer.
func (img *image) counters() (replica.Status, totals) {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.status, img.totals.plus(img.status)
}

// label is the image's name in metrics.
func (img *image) label() string {
	img.mu.Lock()
	defer img.mu.Unlock()
	if i := strings.LastIndexByte(img.scope, '/'); i >= 0 {
		return img.scope[i+1:]
	}
	return img.gid
}

func (l *link) metrics() plugins.Logger {
	var connected, leads, images uint64
	if s := l.current(); s != nil {
		connected = 1
		s.mu.Lock()
		if s.silent != nil {
			connected = 0
		}
		if s.leads {
			leads = 1
		}
		s.mu.Unlock()
		for _, sp := range s.sortedSpaces() {
			images += uint64(len(sp.sortedImages()))
		}
	}
	return plugins.Logger{
		Name: "rbd_mirror_peer",
		Labels: []plugins.Option{
			{Name: "pool", Value: l.pool.name}, {Name: "site", Value: l.spec.site}, {Name: "uuid", Value: l.spec.uuid},
		},
		Counters: []plugins.Counter{
			{Name: "connected", Type: plugins.GaugeU64, Description: "Whether there is a connection to the peer, and it answers", U64: connected},
			{Name: "leader", Type: plugins.GaugeU64, Description: "Whether this instance leads the pool", U64: leads},
			{Name: "images", Type: plugins.GaugeU64, Description: "Images that this instance was given", U64: images},
		},
	}
}
