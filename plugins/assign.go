package plugins

import (
	"context"
	"fmt"
	"syscall"
)

// AssignPrefix begins the commands by which an operator meddles in the
// assignment. The host passes them on; plugins store what they ask for, so that
// it outlives the leader.
const AssignPrefix = "assignment "

// Assigner carries these commands out. Workers are named by the id of the user
// that they run as, or by the number of their instance.
type Assigner interface {
	// Drain says whether this worker is to get rid of its units, until it ends.
	Drain(ctx context.Context, on bool) error
	// Pin says to which worker a unit belongs; to none when it is "".
	Pin(ctx context.Context, domain, unit, worker string) error
	// Pins returns what is pinned: units to workers.
	Pins(ctx context.Context, domain string) (map[string]string, error)
}

// CallAssigner handles a command whose prefix begins with AssignPrefix.
func CallAssigner(ctx context.Context, a Assigner, c Command) (any, error) {
	arg := func(name string) (string, error) {
		s, ok := c.Args[name].(string)
		if !ok || s == "" {
			return "", fmt.Errorf("missing required parameter %s: %w", name, syscall.EINVAL)
		}
		return s, nil
	}
	verb := c.Prefix[min(len(AssignPrefix), len(c.Prefix)):]
	switch verb {
	case "drain", "serve":
		return struct{}{}, a.Drain(ctx, verb == "drain")
	case "pins":
		domain, err := arg("domain")
		if err != nil {
			return nil, err
		}
		return a.Pins(ctx, domain)
	case "pin", "unpin":
		domain, err := arg("domain")
		if err != nil {
			return nil, err
		}
		unit, err := arg("unit")
		if err != nil {
			return nil, err
		}
		worker := ""
		if verb == "pin" {
			if worker, err = arg("worker"); err != nil {
				return nil, err
			}
		}
		return struct{}{}, a.Pin(ctx, domain, unit, worker)
	}
	return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
}
