package bed

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Overview is what `bed status` shows.
type Overview struct {
	Dir      string            `json:"dir"`
	Clusters []ClusterOverview `json:"clusters"`
}

// ClusterOverview is one cluster of an Overview.
type ClusterOverview struct {
	Name     string           `json:"name"`
	Release  string           `json:"release"`
	Complete bool             `json:"complete"` // has been up and healthy
	FSID     string           `json:"fsid"`
	MonHost  string           `json:"mon_host"`
	Conf     string           `json:"conf"`
	Daemons  []DaemonOverview `json:"daemons"`
}

// DaemonOverview is one daemon of a ClusterOverview.
type DaemonOverview struct {
	Name   string `json:"name"`
	State  string `json:"state"` // running, stopped, dead
	PID    int    `json:"pid"`
	Socket string `json:"socket"`
	Log    string `json:"log"`
}

// Overview looks at all clusters without asking them anything.
func (b *Bed) Overview() (Overview, error) {
	o := Overview{Dir: b.dir, Clusters: []ClusterOverview{}}
	names, err := b.Names()
	if err != nil {
		return o, err
	}
	for _, n := range names {
		c, err := b.Cluster(n)
		if err != nil {
			o.Clusters = append(o.Clusters, ClusterOverview{Name: n})
			continue
		}
		co := ClusterOverview{Name: n, Release: c.Release(), Complete: c.rec.Load().Complete, FSID: c.FSID(), MonHost: c.MonHost(), Conf: c.Conf()}
		for _, d := range c.Daemons() {
			co.Daemons = append(co.Daemons, DaemonOverview{Name: d.name, State: d.State(), PID: d.Pid(), Socket: d.SocketPath(), Log: d.LogPath()})
		}
		o.Clusters = append(o.Clusters, co)
	}
	return o, nil
}

// ParseSignal reads a signal's name, with or without SIG, or number.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}
