package rbdmirror

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"cephmirror/plugins"
)

// The stock daemon's commands: of the daemon, of each pool and peer, and of
// each image.

const commandPrefix = "rbd mirror "

// verbs are the commands of a pool; an image has all but the last.
func verbs() []string {
	return []string{"status", "start", "stop", "restart", "flush", "leader release"}
}

func commandSpec(verb, scope string) plugins.CommandSpec {
	what := "rbd mirror"
	if verb == "leader release" {
		what += " leader"
		if scope != "" {
			return plugins.CommandSpec{Signature: commandPrefix + "leader release " + scope, Help: "release " + what + " " + scope}
		}
		return plugins.CommandSpec{Signature: commandPrefix + "leader release", Help: "release " + what}
	}
	help := verb + " " + what
	if verb == "status" {
		help = "get status for " + what
	}
	spec := plugins.CommandSpec{Signature: commandPrefix + verb, Help: help}
	if scope != "" {
		spec.Signature += " " + scope
		spec.Help += " " + scope
	}
	return spec
}

func daemonCommands() []plugins.CommandSpec {
	var out []plugins.CommandSpec
	for _, v := range verbs() {
		out = append(out, commandSpec(v, ""))
	}
	return out
}

// scopeCommands are those of a pool and its peer's site.
func scopeCommands(scope string) []plugins.CommandSpec {
	var out []plugins.CommandSpec
	for _, v := range verbs() {
		out = append(out, commandSpec(v, scope))
	}
	return out
}

func imageCommands(scope string) []plugins.CommandSpec {
	all := scopeCommands(scope)
	return all[:len(all)-1]
}

// compareVerb is a command of images that the stock daemon lacks: all of the
// image is compared, and what differs repaired.
const compareVerb = "compare"

// furtherImageCommands are those that the stock daemon lacks.
func furtherImageCommands(scope string) []plugins.CommandSpec {
	return []plugins.CommandSpec{{
		Signature: commandPrefix + compareVerb + " " + scope,
		Help:      "compare all of rbd mirror " + scope + " with its primary, and repair what differs",
	}}
}

const deletionPrefix = commandPrefix + "deletion status "

func deletionCommand(scope string) plugins.CommandSpec {
	return plugins.CommandSpec{Signature: deletionPrefix + scope, Help: "get status for image deleter"}
}

// Call implements plugins.Plugin. No command waits for a cluster.
func (e *Engine) Call(ctx context.Context, c plugins.Command) plugins.Result {
	if strings.HasPrefix(c.Prefix, plugins.SchedulePrefix) {
		return e.schedules.Call(ctx, c)
	}
	call := e.call
	if strings.HasPrefix(c.Prefix, plugins.AssignPrefix) {
		call = func(c plugins.Command) (any, error) { return plugins.CallAssigner(ctx, e, c) }
	}
	out, err := call(c)
	return plugins.Answer(c, out, err)
}

func (e *Engine) call(c plugins.Command) (any, error) {
	if strings.HasPrefix(c.Prefix, "config ") {
		return e.options.Command(c.Prefix, c.Args)
	}
	if scope, ok := strings.CutPrefix(c.Prefix, deletionPrefix); ok {
		return e.deletionStatus(scope)
	}
	rest, ok := strings.CutPrefix(c.Prefix, commandPrefix)
	if !ok {
		return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
	}
	for _, verb := range verbs() {
		if rest == verb {
			return e.daemonCommand(verb)
		}
		scope, ok := strings.CutPrefix(rest, verb+" ")
		if !ok {
			continue
		}
		if l := e.linkOf(scope); l != nil {
			return linkCommand(l, verb)
		}
		if img := e.imageOf(scope); img != nil {
			return imageCommand(img, verb)
		}
		return nil, fmt.Errorf("%s is not mirrored by this daemon: %w", scope, syscall.ENOENT)
	}
	if scope, ok := strings.CutPrefix(rest, compareVerb+" "); ok {
		img := e.imageOf(scope)
		if img == nil {
			return nil, fmt.Errorf("%s is not mirrored by this daemon: %w", scope, syscall.ENOENT)
		}
		return nil, img.commandCompare()
	}
	return nil, fmt.Errorf("unknown command %q: %w", c.Prefix, syscall.EINVAL)
}

func (e *Engine) daemonCommand(verb string) (any, error) {
	switch verb {
	case "status":
		return e.status(), nil
	case "start":
		e.setManual(false)
	case "stop":
		e.setManual(true)
	case "restart":
		e.setManual(false)
	}
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			if _, err := linkCommand(l, verb); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

func (e *Engine) setManual(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.manual = on
}

func (e *Engine) isManual() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.manual
}

func linkCommand(l *link, verb string) (any, error) {
	switch verb {
	case "status":
		return l.status(), nil
	case "start":
		l.commandStart()
	case "stop":
		l.commandStop()
	case "restart":
		l.commandRestart()
	case "flush":
		l.commandFlush()
	case "leader release":
		l.commandLeaderRelease()
	}
	return nil, nil
}

func imageCommand(img *image, verb string) (any, error) {
	switch verb {
	case "status":
		return img.statusObject(), nil
	case "start":
		img.commandStart()
	case "stop":
		img.commandStop()
	case "restart":
		img.commandRestart()
	case "flush":
		img.commandFlush()
	default:
		return nil, fmt.Errorf("an image has no command %q: %w", verb, syscall.EINVAL)
	}
	return nil, nil
}

// linkOf finds a link by pool and site.
func (e *Engine) linkOf(scope string) *link {
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			if scope == p.name+" "+l.spec.site {
				return l
			}
		}
	}
	return nil
}

// imageOf finds an image by the name of its commands.
func (e *Engine) imageOf(scope string) *image {
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			s := l.current()
			if s == nil {
				continue
			}
			for _, sp := range s.sortedSpaces() {
				if img := sp.imageByScope(scope); img != nil {
					return img
				}
			}
		}
	}
	return nil
}

func (sp *space) imageByScope(scope string) *image {
	for _, img := range sp.sortedImages() {
		if img.currentScope() == scope {
			return img
		}
	}
	return nil
}

func (img *image) currentScope() string {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.scope
}

// deletionScope is how the deletion command of a namespace is called. The stock
// daemon has it for the first namespace of a pool only.
func deletionScope(pool, namespace string) string {
	if namespace == "" {
		return pool
	}
	return pool + "/" + namespace
}

func (e *Engine) deletionStatus(scope string) (any, error) {
	for _, p := range e.sortedPools() {
		for _, l := range p.sortedLinks() {
			s := l.current()
			if s == nil {
				continue
			}
			for _, sp := range s.sortedSpaces() {
				if deletionScope(p.name, sp.spec.local) != scope {
					continue
				}
				if d := sp.deletions(); d != nil {
					return d, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("%s: this instance deletes no images there: %w", scope, syscall.ENOENT)
}
