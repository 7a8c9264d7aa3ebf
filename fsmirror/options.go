package fsmirror

import (
	"strconv"
	"time"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/plugins"
)

// options are the settings in force. The stock ones come from the
// configuration of the local client, so that ceph.conf, the command line, the
// monitors and "config set" have their usual precedence, at any time.
type options struct {
	conf     *rados.Conn
	settings map[string]string
}

// stockDefaults are the options of the stock daemon that we honour. librados
// knows them too; these stand in should it fail to answer.
var stockDefaults = []plugins.Option{
	{Name: "cephfs_mirror_max_concurrent_directory_syncs", Value: "3"},
	{Name: "cephfs_mirror_action_update_interval", Value: "2"},
	{Name: "cephfs_mirror_restart_mirror_on_blocklist_interval", Value: "30"},
	{Name: "cephfs_mirror_restart_mirror_on_failure_interval", Value: "20"},
	{Name: "cephfs_mirror_max_snapshot_sync_per_cycle", Value: "3"},
	{Name: "cephfs_mirror_directory_scan_interval", Value: "10"},
	{Name: "cephfs_mirror_max_consecutive_failures_per_directory", Value: "10"},
	{Name: "cephfs_mirror_retry_failed_directories_interval", Value: "60"},
	{Name: "cephfs_mirror_mount_timeout", Value: "10"},
	{Name: "cephfs_mirror_perf_stats_prio", Value: "5"},
}

func (o *options) stock(name string) string {
	if v, err := o.conf.GetConfigOption(name); err == nil && v != "" {
		return v
	}
	for _, d := range stockDefaults {
		if d.Name == name {
			return d.Value
		}
	}
	return ""
}

func (o *options) uint(name string) uint64 {
	n, err := strconv.ParseUint(o.stock(name), 10, 32)
	if err != nil {
		return 0
	}
	return n
}

func (o *options) seconds(name string) time.Duration {
	return time.Duration(o.uint(name)) * time.Second
}

// Our own settings, with their defaults.
const (
	settingWorkers   = "workers"    // operations at once for one directory
	settingMemory    = "memory"     // bytes of all copy buffers
	settingBlockDiff = "block_diff" // ask the OSDs for changed extents
	settingReadAll   = "takeover_compare_content"
)

func (o *options) number(name string, fallback int64) int64 {
	if n, err := strconv.ParseInt(o.settings[name], 10, 64); err == nil && n > 0 {
		return n
	}
	return fallback
}

func (o *options) flag(name string, fallback bool) bool {
	if b, err := strconv.ParseBool(o.settings[name]); err == nil {
		return b
	}
	return fallback
}
