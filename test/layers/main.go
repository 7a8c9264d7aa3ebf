// Command layers knows how the project's packages may depend on each other.
//
//	go run ./test/layers check   # fails when a package imports what it may not
//	go run ./test/layers pure    # lists packages that link nothing of Ceph
//	go run ./test/layers ceph    # lists packages that do, themselves or in tests
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const (
	module = "cephmirror"
	goCeph = "github.com/ceph/go-ceph"
)

// room is a part of the project with one set of rules: a package belongs to
// the room with the longest matching path.
type room struct {
	path string   // below the module, "" is the command itself
	may  []string // rooms it may import beside itself
	pure bool     // must not link Ceph, not even through others
}

func rooms() []room {
	engine := []string{"plugins", "snapdiff", "internal/ceph"}
	return []room{
		{path: "", may: []string{"host", "admin"}, pure: true},
		{path: "host", may: []string{"plugins", "dirmap", "admin"}, pure: true},
		{path: "admin", pure: true},
		{path: "dirmap", pure: true},
		{path: "plugins", pure: true},
		{path: "plugins/cephfs", may: []string{"plugins", "fsmirror", "internal/ceph"}},
		{path: "plugins/rbd", may: []string{"plugins", "rbdmirror", "internal/ceph"}},
		{path: "fsmirror", may: engine},
		{path: "rbdmirror", may: engine},
		{path: "snapdiff", may: []string{"internal/ceph"}},
		{path: "internal/ceph"},
		{path: "test", may: []string{"*"}},
		{path: "test/bed", pure: true},
		{path: "test/layers", pure: true},
	}
}

// pkg is what is needed of `go list -json`.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
	CgoFiles     []string
}

func roomOf(path string) (room, bool) {
	rel, ok := strings.CutPrefix(path, module)
	if !ok || (rel != "" && rel[0] != '/') {
		return room{}, false
	}
	rel = strings.TrimPrefix(rel, "/")
	var best room
	found := false
	for _, r := range rooms() {
		in := rel == r.path || (r.path != "" && strings.HasPrefix(rel, r.path+"/"))
		if in && (!found || len(r.path) > len(best.path)) {
			best, found = r, true
		}
	}
	return best, found
}

// own says whether a package is the project's.
func own(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

// check returns what breaks the rules.
func check(pkgs []pkg) []string {
	linked := linkers(pkgs)
	var bad []string
	for _, p := range pkgs {
		from, ok := roomOf(p.ImportPath)
		if !ok {
			bad = append(bad, fmt.Sprintf("%s belongs to no known part of the project", p.ImportPath))
			continue
		}
		for _, imp := range p.Imports {
			to, ok := roomOf(imp)
			if !own(imp) || !ok || to.path == from.path || slices.Contains(from.may, to.path) || slices.Contains(from.may, "*") {
				continue
			}
			bad = append(bad, fmt.Sprintf("%s must not import %s", p.ImportPath, imp))
		}
		if from.pure && linked[p.ImportPath] {
			bad = append(bad, fmt.Sprintf("%s must not link Ceph", p.ImportPath))
		}
	}
	return bad
}

// linkers returns the packages that link Ceph, directly or through others.
func linkers(pkgs []pkg) map[string]bool {
	direct := map[string]bool{}
	for _, p := range pkgs {
		if len(p.CgoFiles) > 0 {
			direct[p.ImportPath] = true
		}
	}
	links := func(path string) bool { return direct[path] || strings.HasPrefix(path, goCeph) }
	all := map[string]bool{}
	for _, p := range pkgs {
		if links(p.ImportPath) || slices.ContainsFunc(p.Deps, links) {
			all[p.ImportPath] = true
		}
	}
	return all
}

// needCeph returns the packages that link Ceph, or whose tests do.
func needCeph(pkgs []pkg) map[string]bool {
	all := linkers(pkgs)
	need := map[string]bool{}
	for _, p := range pkgs {
		for _, imp := range append(slices.Concat(p.TestImports, p.XTestImports), p.ImportPath) {
			if all[imp] || strings.HasPrefix(imp, goCeph) {
				need[p.ImportPath] = true
			}
		}
	}
	return need
}

// list asks Go for all packages, those with cgo included, without building.
func list() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-tags", "tentacle",
		"-json=ImportPath,Imports,TestImports,XTestImports,Deps,CgoFiles", "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode the list of packages: %w", err)
		}
		pkgs = append(pkgs, p)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: layers check|pure|ceph")
	}
	pkgs, err := list()
	if err != nil {
		return err
	}
	switch args[0] {
	case "check":
		if bad := check(pkgs); len(bad) > 0 {
			return errors.New(strings.Join(bad, "\n"))
		}
	case "pure", "ceph":
		need := needCeph(pkgs)
		for _, p := range pkgs {
			if need[p.ImportPath] == (args[0] == "ceph") {
				fmt.Fprintln(out, p.ImportPath)
			}
		}
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
	return nil
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
