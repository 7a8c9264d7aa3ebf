package bed

import (
	"fmt"
	"regexp"
	"slices"
)

// ClusterSpec says what a cluster shall consist of. The zero value of each
// field but Name means its default.
type ClusterSpec struct {
	Name        string   `json:"name"`
	OSDs        int      `json:"osds"`                     // 1
	FileSystems []string `json:"file_systems"`             // "cephfs"
	MDSs        int      `json:"mdss"`                     // one per file system
	RBDPools    []string `json:"rbd_pools,omitempty"`      // none
	OSDSize     int64    `json:"osd_size"`                 // 12 GiB, sparse
	Conf        []Option `json:"conf,omitempty"`           // added to [global] of ceph.conf
	MgrModules  []string `json:"mgr_modules,omitempty"`    // enabled from the start, for example "mirroring"
	MgrBcrypt   bool     `json:"mgr_bcrypt_stub"`          // let the mgr load modules that import bcrypt on Reef
	NoWait      bool     `json:"-"`                        // return before the cluster is healthy
	NoFS        bool     `json:"no_file_system,omitempty"` // no default file system
}

const maxOSDs = 16

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

// reservedNames are used by the bed below its state directory; "ceph" is what
// `bed exec` calls the chosen cluster.
func reservedNames() []string { return []string{etcCeph, "home", "root", "proc", "ceph"} }

func checkName(name string) error {
	if !namePattern.MatchString(name) || slices.Contains(reservedNames(), name) {
		return fmt.Errorf("%q is no name for a cluster (a letter, then up to 15 letters, digits or dashes; not %v)", name, reservedNames())
	}
	return nil
}

// withDefaults fills in what was left out and checks the rest.
func (s ClusterSpec) withDefaults() (ClusterSpec, error) {
	if err := checkName(s.Name); err != nil {
		return s, err
	}
	if s.OSDs == 0 {
		s.OSDs = 1
	}
	if len(s.FileSystems) == 0 && !s.NoFS {
		s.FileSystems = []string{"cephfs"}
	}
	if s.MDSs == 0 {
		s.MDSs = len(s.FileSystems)
	}
	if s.OSDSize == 0 {
		s.OSDSize = 12 << 30
	}
	switch {
	case s.OSDs < 0 || s.OSDs > maxOSDs:
		return s, fmt.Errorf("cluster %s: %d OSDs asked for, 1 to %d are possible", s.Name, s.OSDs, maxOSDs)
	case s.MDSs < len(s.FileSystems) || s.MDSs > 8:
		return s, fmt.Errorf("cluster %s: %d MDSs asked for, %d to 8 are possible", s.Name, s.MDSs, len(s.FileSystems))
	case s.OSDSize < 1<<30:
		return s, fmt.Errorf("cluster %s: an OSD needs at least 1 GiB", s.Name)
	}
	return s, nil
}

// merge returns the specification of a cluster that exists as old and is asked
// for as want: it may grow by daemons, file systems and pools, not shrink.
func merge(old, want ClusterSpec) ClusterSpec {
	m := old
	m.NoWait = want.NoWait
	m.OSDs = max(old.OSDs, want.OSDs)
	m.FileSystems = union(old.FileSystems, want.FileSystems)
	m.MDSs = max(old.MDSs, want.MDSs, len(m.FileSystems))
	m.RBDPools = union(old.RBDPools, want.RBDPools)
	m.MgrModules = union(old.MgrModules, want.MgrModules)
	m.MgrBcrypt = old.MgrBcrypt || want.MgrBcrypt
	if len(want.Conf) > 0 {
		m.Conf = want.Conf
	}
	return m
}

func union(a, b []string) []string {
	u := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(u, s) {
			u = append(u, s)
		}
	}
	return u
}
