package main

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheck(t *testing.T) {
	shim := pkg{ImportPath: "cephmirror/internal/ceph", CgoFiles: []string{"ceph.go"}}
	for name, tc := range map[string]struct {
		pkg  pkg
		want []string
	}{
		"the command may import the host":     {pkg{ImportPath: "cephmirror", Imports: []string{"cephmirror/host", "fmt"}}, nil},
		"not an engine":                       {pkg{ImportPath: "cephmirror", Imports: []string{"cephmirror/fsmirror"}}, []string{"cephmirror must not import cephmirror/fsmirror"}},
		"a room may import itself":            {pkg{ImportPath: "cephmirror/host/leader", Imports: []string{"cephmirror/host", "cephmirror/dirmap"}}, nil},
		"the policy imports nothing of ours":  {pkg{ImportPath: "cephmirror/dirmap", Imports: []string{"cephmirror/plugins"}}, []string{"cephmirror/dirmap must not import cephmirror/plugins"}},
		"the host does not import a plugin":   {pkg{ImportPath: "cephmirror/host", Imports: []string{"cephmirror/plugins/cephfs"}}, []string{"cephmirror/host must not import cephmirror/plugins/cephfs"}},
		"the host does not link Ceph":         {pkg{ImportPath: "cephmirror/host", Deps: []string{"cephmirror/internal/ceph"}}, []string{"cephmirror/host must not link Ceph"}},
		"nor go-ceph":                         {pkg{ImportPath: "cephmirror/admin", Deps: []string{goCeph + "/rados"}}, []string{"cephmirror/admin must not link Ceph"}},
		"an engine may link Ceph":             {pkg{ImportPath: "cephmirror/fsmirror", Imports: []string{"cephmirror/internal/ceph"}, Deps: []string{"cephmirror/internal/ceph"}}, nil},
		"tests may import anything":           {pkg{ImportPath: "cephmirror/test/e2e", Imports: []string{"cephmirror/fsmirror", "cephmirror/test/bed"}}, nil},
		"nothing else may import tests":       {pkg{ImportPath: "cephmirror/host", Imports: []string{"cephmirror/test/bed"}}, []string{"cephmirror/host must not import cephmirror/test/bed"}},
		"a package outside the known rooms":   {pkg{ImportPath: "cephmirror/utils"}, []string{"cephmirror/utils belongs to no known part of the project"}},
		"another module with the same prefix": {pkg{ImportPath: "cephmirror/host", Imports: []string{"cephmirrorx/fsmirror"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, check([]pkg{shim, tc.pkg})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNeedCeph(t *testing.T) {
	got := needCeph([]pkg{
		{ImportPath: "cephmirror/internal/ceph", CgoFiles: []string{"x.go"}},
		{ImportPath: "cephmirror/fsmirror", Deps: []string{"cephmirror/internal/ceph"}},
		{ImportPath: "cephmirror/test/e2e", XTestImports: []string{goCeph + "/cephfs"}},
		{ImportPath: "cephmirror/test/other", TestImports: []string{"cephmirror/fsmirror"}},
		{ImportPath: "cephmirror/host", Deps: []string{"cephmirror/plugins", "net"}},
	})
	var names []string
	for n := range got {
		names = append(names, n)
	}
	slices.Sort(names)
	want := []string{"cephmirror/fsmirror", "cephmirror/internal/ceph", "cephmirror/test/e2e", "cephmirror/test/other"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
}
