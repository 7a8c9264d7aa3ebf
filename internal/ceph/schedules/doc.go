// Package schedules keeps schedules of snapshots in RADOS, and agrees on who
// follows them.
//
// They lie in the omap of one object of ours, "cephmirror_schedules", in the
// default namespace of an RBD pool or of a file system's metadata pool. Its keys
// are "schedule_" and what names a level, and "leader". Nothing is stored where
// the stock modules store theirs: the one for RBD knows neither cron expressions
// nor our further fields, and stops altogether at an entry it cannot read.
package schedules
