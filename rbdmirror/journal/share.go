package journal

import "sync"

// Memory divides what all replayers of the process may hold of journals.
type Memory struct {
	total int

	mu     sync.Mutex
	active int // replayers with something to catch up with
}

// Bounds of what one replayer may hold.
const (
	defaultMemory = 192 << 20
	minShare      = 1 << 20
	maxShare      = 48 << 20
	idleShare     = 1 << 20
)

// NewMemory returns a number of bytes to divide, 0 for the default.
func NewMemory(total int) *Memory {
	if total <= 0 {
		total = defaultMemory
	}
	return &Memory{total: total}
}

// share is one replayer's part.
type share struct {
	of   *Memory
	busy bool
}

// bytes returns how much may be held now. busy says that there is a backlog.
func (s *share) bytes(busy bool) int {
	m := s.of
	m.mu.Lock()
	defer m.mu.Unlock()
	if busy != s.busy {
		s.busy = busy
		if busy {
			m.active++
		} else {
			m.active--
		}
	}
	if !busy {
		return idleShare
	}
	return min(max(m.total/m.active, minShare), maxShare)
}

// release gives the part back.
func (s *share) release() { s.bytes(false) }
