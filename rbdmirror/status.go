package rbdmirror

import (
	"fmt"
	"time"

	"cephmirror/rbdmirror/election"
	"cephmirror/rbdmirror/replica"
)

// The answers of the status commands: the members of the stock daemon's, in its
// order, and after them our own.

func (e *Engine) status() any {
	list := []any{}
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			list = append(list, l.status())
		}
	}
	return object{{"pool_replayers", list}}
}

// throttle is how the stock daemon shows slots.
func throttle(s election.ThrottleStatus) object {
	return object{
		{"max_parallel_requests", s.Max},
		{"running_requests", s.Running},
		{"waiting_requests", s.Waiting},
	}
}

func (l *link) status() object {
	l.mu.Lock()
	s, manual, ended := l.session, l.manual, l.ended
	trouble, since, next := l.trouble, l.since, l.nextTry
	l.mu.Unlock()
	out := object{{"peer", fmt.Sprintf("uuid: %s cluster: %s client: %s", l.spec.uuid, l.spec.site, l.spec.client)}}
	state := "running"
	switch {
	case ended:
		state = "stopped"
	case s == nil && trouble != nil:
		state = "error"
	case manual:
		state = "stopped (manual)"
	}
	socket := l.eng.info.AdminSocket
	sockets := object{{"local_cluster_admin_socket", socket}, {"remote_cluster_admin_socket", socket}}
	if s == nil {
		out.add("state", state)
		out = append(out, sockets...)
		out.add("namespace_replayers", []any{})
		out.add("pool", l.pool.name)
		if trouble != nil {
			out.add("error", trouble.Error())
			out.add("error_since", stamp(since))
			out.add("next_try", stamp(next))
		} else {
			out.add("waiting", "connecting")
		}
		return out
	}
	m := s.member.Status()
	out.add("pool", l.pool.name)
	out.add("instance_id", s.instance)
	out.add("state", state)
	out.add("leader_instance_id", m.Leader)
	out.add("leader", m.Leading)
	if m.Leading {
		out.add("instances", orEmpty(m.Instances))
	}
	out = append(out, sockets...)
	out.add("sync_throttler", throttle(m.Syncs))
	out.add("deletion_throttler", throttle(s.deletionThrottle()))

	spaces := s.sortedSpaces()
	if l.eng.info.CephRelease == "reef" {
		further := []any{}
		for _, sp := range spaces {
			if sp.spec.local == "" {
				out = append(out, sp.status(m.Leading)...)
			} else {
				further = append(further, append(object{{"name", sp.spec.local}}, sp.status(m.Leading)...))
			}
		}
		out.add("namespaces", further)
	} else {
		list := []any{}
		for _, sp := range spaces {
			list = append(list, append(object{
				{"local_namespace", sp.spec.local}, {"remote_namespace", sp.spec.remote},
			}, sp.status(m.Leading)...))
		}
		out.add("namespace_replayers", list)
	}
	return append(out, s.own(m)...)
}

// own is what the stock daemon does not tell.
func (s *session) own(m election.Status) object {
	s.mu.Lock()
	silent, polled := s.silent, s.polled
	s.mu.Unlock()
	out := object{
		{"local_mirror_uuid", s.localUUID},
		{"remote_mirror_uuid", s.remoteUUID},
		{"site_name", s.localSite},
		{"peer_last_seen", stamp(polled)},
	}
	if silent != nil {
		out.add("error", silent.Error())
	}
	if m.LastError != "" {
		out.add("election_error", m.LastError)
	}
	for _, sp := range s.sortedSpaces() {
		for _, l := range []*imageList{&sp.localList, &sp.remoteList} {
			if err := l.trouble(); err != nil {
				out.add("list_error", err.Error())
				return out
			}
		}
	}
	return out
}

func (l *imageList) trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// status is the part of a namespace.
func (sp *space) status(leading bool) object {
	images := []any{}
	for _, img := range sp.sortedImages() {
		images = append(images, img.statusObject())
	}
	out := object{{"image_replayers", images}}
	if leading {
		d := sp.deletions()
		if d == nil {
			d = noDeletions()
		}
		out.add("image_deleter", object{{"image_deleter_status", d}})
	}
	return out
}

func noDeletions() object {
	return object{{"delete_images_queue", []any{}}, {"failed_deletes_queue", []any{}}}
}

func (img *image) statusObject() object {
	img.mu.Lock()
	defer img.mu.Unlock()
	st := img.status
	out := object{
		{"name", img.scopeLocked()},
		{"state", st.Phase.String()},
		{"global_image_id", img.gid},
		{"description", st.Description},
	}
	if img.manual {
		out.add("stopped_by_command", true)
	}
	if img.gone {
		out.add("waiting", "for the image to be mirrored again")
	} else if st.WaitingFor != "" {
		out.add("waiting", st.WaitingFor)
		if !st.WaitingSince.IsZero() {
			out.add("waiting_since", stamp(st.WaitingSince))
		}
	}
	if st.Syncing {
		out.add("progress", object{
			{"objects_done", st.ObjectsDone}, {"objects_total", st.ObjectsTotal}, {"bytes_copied", st.BytesCopied},
		})
	}
	if st.SnapshotsLeft > 0 {
		out.add("snapshots_left", st.SnapshotsLeft)
	}
	if !st.LastSync.IsZero() {
		out.add("last_sync", stamp(st.LastSync))
	}
	if !st.RemoteTime.IsZero() && !st.LocalTime.IsZero() {
		out.add("seconds_behind", max(0, st.RemoteTime.Sub(st.LocalTime).Seconds()))
	}
	if j := st.Journal; j.Replayed {
		out.add("entries_behind", j.EntriesBehind)
		out.add("bytes_behind", j.BytesBehind)
		out.add("seconds_behind", j.SecondsBehind)
	}
	err := st.Err
	if err == nil && st.Phase == replica.Stopped {
		err = img.trouble
	}
	if err != nil {
		out.add("error", err.Error())
		out.add("failures", st.Failures)
	}
	if !st.NextTry.IsZero() {
		out.add("next_try", stamp(st.NextTry))
	}
	return out
}

// scopeLocked names the image. The caller holds img.mu.
func (img *image) scopeLocked() string {
	if img.scope != "" {
		return img.scope
	}
	return img.scopeFor(img.gid)
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// service adds a link to its pool's entry in the service map.
func (l *link) service(p *servicePool) {
	s := l.current()
	if s == nil {
		return
	}
	if p.instance == "" {
		p.instance = s.instance
	}
	s.mu.Lock()
	p.leader = p.leader || s.leads
	s.mu.Unlock()
	for _, sp := range s.sortedSpaces() {
		c, was := sp.serviceCounts(), p.spaces[sp.spec.local]
		was.assigned += c.assigned
		was.warning += c.warning
		was.failed += c.failed
		was.local = max(was.local, c.local)
		was.remote += c.remote
		p.spaces[sp.spec.local] = was
	}
}
