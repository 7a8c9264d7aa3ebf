package plan

import (
	"testing"
	"time"
)

func TestDescribe(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	var h History
	check := func(name, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
	check("nothing yet", h.Describe(Replay{Remote: at(50), Left: 1}, at(100)),
		`replaying, {"bytes_per_second":0.0,"bytes_per_snapshot":0.0,"last_snapshot_bytes":0,"last_snapshot_sync_seconds":0,"remote_snapshot_timestamp":50,"replay_state":"idle","snapshots_behind":1}`)
	check("first", h.Describe(Replay{Remote: at(50), Left: 1, Syncing: at(50), Done: 25, Total: 100, Bytes: 1000, Began: at(97)}, at(100)),
		`replaying, {"bytes_per_second":333.33,"bytes_per_snapshot":0.0,"last_snapshot_bytes":0,"last_snapshot_sync_seconds":0,"remote_snapshot_timestamp":50,"replay_state":"syncing","seconds_until_synced":9,`+
			`"syncing_percent":25,"syncing_snapshot_timestamp":50,"snapshots_behind":1,"syncing_bytes":1000,"syncing_objects":25,"syncing_objects_total":100}`)
	{
		h := h
		h.Compare(Comparison{End: at(90), Objects: 3, Snapshots: 1})
		check("compared", h.Describe(Replay{Remote: at(50), Local: at(50), Unverified: true}, at(100)),
			`replaying, {"bytes_per_second":0.0,"bytes_per_snapshot":0.0,"last_snapshot_bytes":0,"last_snapshot_sync_seconds":0,"local_snapshot_timestamp":50,"remote_snapshot_timestamp":50,"replay_state":"idle",`+
				`"last_comparison_repaired_objects":3,"last_comparison_repaired_snapshots":1,"last_comparison_timestamp":90,"unverified":true}`)
	}
	h.Add(4000, 3*time.Second, at(101))
	h.Add(1001, time.Second/2, at(102))
	check("idle", h.Describe(Replay{Remote: at(50), Local: at(50)}, at(110)),
		`replaying, {"bytes_per_second":0.0,"bytes_per_snapshot":2500.5,"last_snapshot_bytes":1001,"last_snapshot_sync_seconds":0,`+
			`"local_snapshot_timestamp":50,"remote_snapshot_timestamp":50,"replay_state":"idle","last_sync_timestamp":102}`)
}
