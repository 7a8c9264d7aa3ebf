package host

import (
	"context"
	"strings"

	"cephmirror/admin"
	"cephmirror/dirmap"
	"cephmirror/plugins"
)

// The commands by which an operator meddles in the assignment. What they say is
// stored by the plugin, for whoever leads.

const domainUnit = " name=domain,type=CephString name=unit,type=CephString"

func (d *daemon) assignmentCommands() error {
	for _, c := range []struct{ signature, help string }{
		{"drain", "give all units of this instance to others, until it serves again or ends"},
		{"serve", "end the draining of this instance"},
		{"pin" + domainUnit + " name=worker,type=CephString", "let a unit belong to a worker, named by the id of its user or the number of its instance"},
		{"unpin" + domainUnit, "let a unit belong to any worker"},
		{"pins name=domain,type=CephString", "show what is pinned"},
	} {
		verb, _, _ := strings.Cut(c.signature, " ")
		err := d.table.Add("cephmirror "+c.signature, c.help, func(ctx context.Context, req admin.Request) (admin.Reply, error) {
			out, err := d.callPlugin(ctx, plugins.Command{Prefix: plugins.AssignPrefix + verb, Args: req.Args})
			return reply(out), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// policy is what the assignment shares evenly.
func (d *daemon) policy() dirmap.Policy {
	if d.settings.String("assignment_policy") == "load-aware" {
		return dirmap.LoadAware
	}
	return dirmap.LeastUnits
}
