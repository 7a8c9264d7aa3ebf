package schedule

import (
	"regexp"
	"strings"
)

// Scope says how much a level covers.
type Scope int

const (
	Global Scope = iota
	Pool
	Namespace
	Image
)

// Level is where a schedule is set.
type Level struct {
	Scope                  Scope
	Pool, Namespace, Image string
}

var levelPattern = regexp.MustCompile(`^(?:([^/]+)/(?:(?:([^/]*)/|)(?:([^/@]+))?)?)?$`)

// ParseLevel reads a level as the manager's commands name it: "" is everything,
// "pool/", "pool/ns/" (with an empty name the default namespace), "pool/image",
// "pool/ns/image".
func ParseLevel(s string) (Level, error) {
	m := levelPattern.FindStringSubmatchIndex(s)
	if m == nil {
		return Level{}, invalid("failed to parse %s", s)
	}
	part := func(i int) (string, bool) {
		if m[2*i] < 0 {
			return "", false
		}
		return s[m[2*i]:m[2*i+1]], true
	}
	var l Level
	var ok bool
	if l.Pool, ok = part(1); !ok {
		return l, nil
	}
	l.Scope = Pool
	if l.Namespace, ok = part(2); ok {
		l.Scope = Namespace
	}
	if l.Image, ok = part(3); ok {
		l.Scope = Image
	}
	return l, nil
}

// String is the level as ParseLevel reads it.
func (l Level) String() string {
	switch l.Scope {
	case Global:
		return ""
	case Pool:
		return l.Pool + "/"
	case Namespace:
		return l.Pool + "/" + l.Namespace + "/"
	}
	if l.Namespace == "" {
		return l.Pool + "/" + l.Image
	}
	return l.Pool + "/" + l.Namespace + "/" + l.Image
}

// Keys are the names under which schedules for an image are stored, the most
// specific first: image, namespace, pool. The global one is stored elsewhere,
// under the empty key here.
func Keys(poolID, namespace, imageID string) []string {
	return []string{poolID + "/" + namespace + "/" + imageID, poolID + "/" + namespace, poolID, ""}
}

// Covers tells whether a stored key belongs to a level given by its key, or lies
// below it: what a recursive listing shows.
func Covers(level, key string) bool {
	return level == "" || key == level || strings.HasPrefix(key, level+"/")
}

// Effective picks the rules for something that lies in the levels with these
// keys, the most specific first: the first level that has any is used alone.
func Effective(stored map[string][]Item, keys []string) []Item {
	for _, k := range keys {
		if items := stored[k]; len(items) > 0 {
			return items
		}
	}
	return nil
}
