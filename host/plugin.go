package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"cephmirror/host/cephargs"
	"cephmirror/host/config"
	"cephmirror/plugins"
)

// findPlugin returns the executable of a kind of plugin.
func findPlugin(kind, dir string) (string, error) {
	name := "cephmirror-" + kind
	var places []string
	if dir != "" {
		places = []string{dir}
	} else {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("finding the own executable: %w", err)
		}
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		own := filepath.Dir(self)
		places = []string{own, filepath.Join(filepath.Dir(own), "libexec", "cephmirror")}
	}
	for _, place := range places {
		path := filepath.Join(place, name)
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", fmt.Errorf("plugin %s: %w", name, err)
		case info.IsDir() || info.Mode()&0o111 == 0:
			return "", fmt.Errorf("plugin %s: %s is not an executable file", name, path)
		}
		return filepath.Abs(path)
	}
	if dir == "" {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
		places = append(places, "PATH")
	}
	return "", fmt.Errorf("plugin %s not found, looked in %s", name, strings.Join(places, ", "))
}

// pluginConfig is what a plugin is started with.
func pluginConfig(mode plugins.Mode, kind string, a cephargs.Args, c *config.Config) (plugins.Config, error) {
	out := plugins.Config{Mode: mode, Cluster: a.Cluster, Name: a.Name, ConfFile: a.ConfFile, Settings: c.Section(kind)}
	if out.Name == "" {
		out.Name = "client.admin"
	}
	if out.Cluster == "" {
		out.Cluster = "ceph"
	}
	if out.ConfFile != "" {
		abs, err := filepath.Abs(out.ConfFile)
		if err != nil {
			return out, fmt.Errorf("configuration file %s: %w", out.ConfFile, err)
		}
		if _, err := os.Stat(abs); err != nil {
			return out, fmt.Errorf("reading Ceph's configuration file: %w", err)
		}
		out.ConfFile = abs
	}
	for _, o := range a.Ceph {
		out.CephOptions = append(out.CephOptions, plugins.Option(o))
	}
	return out, nil
}
