package schedule

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/client"
	"cephmirror/internal/ceph/schedules"
	"cephmirror/plugins"
	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/store"
)

// level is where a schedule is set, by names.
type level struct{ scope, pool, namespace, image string }

// refusal is an error whose text is what the stock module answers; its errno is
// EINVAL.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// resolve finds a level by its names and returns what is stored there. It checks
// what the stock module checks, in the same order.
func (m *Manager) resolve(conn *rados.Conn, l level) (plugins.StoredSchedule, error) {
	var out plugins.StoredSchedule
	var err error
	if l.scope == "global" {
		out.Value, err = readGlobal(conn)
		return out, err
	}
	if err := conn.WaitForLatestOSDMap(); err != nil {
		return out, fmt.Errorf("asking for the map of the OSDs: %w", err)
	}
	id, err := conn.GetPoolByName(l.pool)
	if ceph.Is(err, syscall.ENOENT) {
		return out, refuse("pool %s does not exist", l.pool)
	}
	if err != nil {
		return out, fmt.Errorf("looking up pool %s: %w", l.pool, err)
	}
	if ok, err := isRBD(conn, l.pool); err != nil {
		return out, err
	} else if !ok {
		return out, refuse("%s is not an RBD pool", l.pool)
	}
	ioctx, err := conn.OpenIOContext(l.pool)
	if err != nil {
		return out, fmt.Errorf("opening pool %s: %w", l.pool, err)
	}
	defer ioctx.Destroy()
	var wrongMode error
	out = plugins.StoredSchedule{Key: fmt.Sprint(id), Name: l.pool + "/", Names: []string{l.pool}, Parents: []string{""}}
	if l.scope == "namespace" || l.scope == "image" {
		if err := m.checkNamespace(conn, ioctx, l); err != nil {
			return out, err
		}
		out = below(out, l.namespace)
		out.Name = nameOf(l.pool, l.namespace) + "/"
	}
	if l.scope == "image" {
		imageID, err := imageOf(conn, l)
		if imageID == "" {
			return out, err
		}
		wrongMode = err
		out = below(out, imageID)
		out.Names[2] = l.image
		out.Name = nameOf(l.pool, l.namespace, l.image)
	}
	contents, err := schedules.NewStore(ioctx).Load()
	if err != nil {
		return out, err
	}
	out.Value = contents.Schedules[out.Key]
	if out.Value == "" && wrongMode != nil {
		return out, wrongMode // but what was set before can be seen, and removed
	}
	return out, nil
}

// below is the level part of the level s.
func below(s plugins.StoredSchedule, part string) plugins.StoredSchedule {
	s.Parents = append([]string{s.Key}, s.Parents...)
	s.Key += "/" + part
	s.Names = append(slices.Clone(s.Names), part)
	return s
}

// nameOf leaves the default namespace out in front of an image, but not where it
// is meant itself.
func nameOf(pool, namespace string, image ...string) string {
	if len(image) == 0 {
		return pool + "/" + namespace
	}
	if namespace == "" {
		return pool + "/" + image[0]
	}
	return pool + "/" + namespace + "/" + image[0]
}

func isRBD(conn *rados.Conn, pool string) (bool, error) {
	out, err := client.MonCommand(conn, map[string]string{"prefix": "osd pool application get", "pool": pool, "format": "json"})
	if err != nil {
		return false, err
	}
	var apps map[string]json.RawMessage
	if err := json.Unmarshal(out, &apps); err != nil {
		return false, fmt.Errorf("reading what pool %s is for: %w", pool, err)
	}
	_, ok := apps["rbd"]
	return ok, nil
}

// checkNamespace checks a namespace that is not the default one.
func (m *Manager) checkNamespace(conn *rados.Conn, ioctx *rados.IOContext, l level) error {
	if l.namespace == "" {
		return nil
	}
	names, err := m.cfg.Namespaces(ioctx)
	if err != nil {
		return err
	}
	if !slices.Contains(names, l.namespace) {
		return refuse("namespace %s does not exist", l.namespace)
	}
	inner, err := openSpace(conn, l.pool, l.namespace)
	if err != nil {
		return err
	}
	defer inner.Destroy()
	mode, err := store.NewMirroring(inner).Mode()
	if err != nil {
		return fmt.Errorf("mirroring mode of %s/%s: %w", l.pool, l.namespace, err)
	}
	if mode != cls.PoolModeImage {
		return refuse("namespace %s is not in mirror image mode", l.namespace)
	}
	return nil
}

func openSpace(conn *rados.Conn, pool, namespace string) (*rados.IOContext, error) {
	ioctx, err := conn.OpenIOContext(pool)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", pool, err)
	}
	ioctx.SetNamespace(namespace)
	return ioctx, nil
}

// imageOf returns the id of an image, and an error unless it is in snapshot mode.
func imageOf(conn *rados.Conn, l level) (string, error) {
	inner, err := openSpace(conn, l.pool, l.namespace)
	if err != nil {
		return "", err
	}
	defer inner.Destroy()
	id, err := store.NewDirectory(inner).GetID(l.image)
	if ceph.Is(err, syscall.ENOENT) {
		return "", refuse("image %s does not exist", l.image)
	}
	if err != nil {
		return "", err
	}
	record, err := store.NewMirroring(inner).Image(id)
	if err != nil && !ceph.Is(err, syscall.ENOENT) {
		return "", err
	}
	if err != nil || record.Mode != cls.ImageModeSnapshot || record.State == cls.RecordDisabled {
		return id, refuse("image %s is not in snapshot mirror mode", l.image)
	}
	return id, nil
}

// stored lists the schedules in one pool with their names. One whose image or
// namespace is gone is of no more use.
func stored(conn *rados.Conn, id int64, pool string) ([]plugins.StoredSchedule, error) {
	ioctx, err := conn.OpenIOContext(pool)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", pool, err)
	}
	defer ioctx.Destroy()
	contents, err := schedules.NewStore(ioctx).Load()
	if err != nil {
		return nil, err
	}
	var out []plugins.StoredSchedule
	for _, key := range slices.Sorted(maps.Keys(contents.Schedules)) {
		s, err := named(conn, id, pool, key)
		if ceph.Is(err, syscall.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.Value = contents.Schedules[key]
		out = append(out, s)
	}
	return out, nil
}

// named gives the level of a key its names. ENOENT: its image is gone.
func named(conn *rados.Conn, id int64, pool, key string) (plugins.StoredSchedule, error) {
	parts := strings.Split(key, "/")
	s := plugins.StoredSchedule{Key: parts[0], Name: pool + "/", Names: []string{pool}, Parents: []string{""}}
	if parts[0] != fmt.Sprint(id) || len(parts) > 3 {
		return s, fmt.Errorf("schedule %q is none of pool %s: %w", key, pool, errors.Join(syscall.ENOENT))
	}
	if len(parts) > 1 {
		s = below(s, parts[1])
		s.Name = nameOf(pool, parts[1]) + "/"
	}
	if len(parts) == 3 {
		inner, err := openSpace(conn, pool, parts[1])
		if err != nil {
			return s, err
		}
		defer inner.Destroy()
		name, err := store.NewDirectory(inner).Name(parts[2])
		if err != nil {
			return s, err
		}
		s = below(s, parts[2])
		s.Names[2] = name
		s.Name = nameOf(pool, parts[1], name)
	}
	return s, nil
}
