package rbdmirror

import "cephmirror/rbdmirror/election"

// deleterRun removes images that were moved to the trash, while leading.
type deleterRun struct{}

func (sp *space) runDeleter(bool) {}

// deletions returns what the deletion command shows, nil while not leading.
func (sp *space) deletions() object {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.deleter == nil {
		return nil
	}
	return noDeletions()
}

func (s *session) deletionThrottle() election.ThrottleStatus {
	return election.ThrottleStatus{Max: int(s.eng.options.Uint("rbd_mirror_concurrent_image_deletions"))}
}
