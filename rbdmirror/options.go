package rbdmirror

import (
	"strconv"
	"time"

	"cephmirror/internal/ceph/client"
)

// stockDefaults are the options of the stock daemon that we honour. librados
// knows most of them too; these stand in where it fails to answer.
func stockDefaults() []client.Option {
	return []client.Option{
		{Name: "rbd_mirror_journal_commit_age", Value: "5"},
		{Name: "rbd_mirror_journal_poll_age", Value: "5"},
		{Name: "rbd_mirror_sync_point_update_age", Value: "30"},
		{Name: "rbd_mirror_concurrent_image_syncs", Value: "5"},
		{Name: "rbd_mirror_pool_replayers_refresh_interval", Value: "30"},
		{Name: "rbd_mirror_concurrent_image_deletions", Value: "1"},
		{Name: "rbd_mirror_delete_retry_interval", Value: "30"},
		{Name: "rbd_mirror_image_state_check_interval", Value: "30"},
		{Name: "rbd_mirror_leader_heartbeat_interval", Value: "5"},
		{Name: "rbd_mirror_leader_max_missed_heartbeats", Value: "2"},
		{Name: "rbd_mirror_leader_max_acquire_attempts_before_break", Value: "3"},
		{Name: "rbd_mirror_image_policy_type", Value: "simple"},
		{Name: "rbd_mirror_image_policy_migration_throttle", Value: "300"},
		{Name: "rbd_mirror_image_policy_update_throttle_interval", Value: "1"},
		{Name: "rbd_mirror_image_policy_rebalance_timeout", Value: "0"},
		{Name: "rbd_mirror_perf_stats_prio", Value: "5"},
		{Name: "rbd_mirror_image_perf_stats_prio", Value: "5"},
		{Name: "rbd_mirror_memory_autotune", Value: "true"},
		{Name: "rbd_mirror_memory_target", Value: "4294967296"},
		{Name: "rbd_mirror_memory_base", Value: "805306368"},
		{Name: "rbd_mirror_memory_expected_fragmentation", Value: "0.15"},
		{Name: "rbd_mirror_memory_cache_min", Value: "134217728"},
		{Name: "rbd_mirror_memory_cache_resize_interval", Value: "5"},
		{Name: "rbd_mirror_memory_cache_autotune_interval", Value: "30"},
		{Name: "rbd_mirroring_delete_delay", Value: "0"},
		{Name: "rbd_mirroring_replay_delay", Value: "0"},
		{Name: "rbd_mirroring_resync_after_disconnect", Value: "false"},
		{Name: "rbd_mirroring_max_mirroring_snapshots", Value: "5"},
		{Name: "rbd_blocklist_expire_seconds", Value: "0"},
	}
}

// shownOptions are listed by "config show" besides: what tells who and where we
// are.
func shownOptions() []string {
	return []string{
		"admin_socket", "client_mount_timeout", "debug_monc", "debug_ms", "debug_objecter", "debug_rados", "debug_rbd",
		"debug_rbd_mirror", "fsid", "keyring", "log_file", "mon_host", "pid_file", "rbd_cache", "run_dir",
	}
}

// Our own settings.
const (
	settingMemory   = "memory"          // bytes of all copy buffers
	settingAhead    = "objects_ahead"   // objects in flight for one image
	settingRate     = "rate_limit"      // bytes a second read from the peer, for one image
	settingConnect  = "connect_timeout" // for a connection to a peer
	settingRecreate = "recreate_on_resync"
	settingCompare  = "compare_taken_over" // what another daemon has copied
	settingJournals = "journal_memory"     // bytes of all that is held of journals
	settingStrict   = "journal_strict"     // entries of journals are carried out one at a time
)

type settings map[string]string

func (s settings) number(name string, fallback int64) int64 {
	if n, err := strconv.ParseInt(s[name], 10, 64); err == nil && n >= 0 {
		return n
	}
	return fallback
}

func (s settings) flag(name string) bool {
	on, err := strconv.ParseBool(s[name])
	return err == nil && on
}

func (s settings) duration(name string, fallback time.Duration) time.Duration {
	if d, err := time.ParseDuration(s[name]); err == nil && d > 0 {
		return d
	}
	return fallback
}
