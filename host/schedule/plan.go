package schedule

import (
	"bytes"
	"encoding/json"
	"slices"
)

// Plan is what is set at one level.
type Plan struct {
	Items []Item
	Keep  Retention // of directories
}

type storedPlan struct {
	Items []storedItem `json:"items"`
	Keep  string       `json:"keep"`
}

// Encode is the plan as it is stored: the list of its rules, in an object when
// there is something beside it. An empty plan is not stored.
func (p Plan) Encode() (string, error) {
	var b []byte
	var err error
	switch {
	case len(p.Items) == 0 && p.Keep == (Retention{}):
	case p.Keep == (Retention{}):
		b, err = Encode(p.Items)
	default:
		b, err = encode(storedPlan{storedItems(p.Items), p.Keep.String()})
	}
	return string(b), err
}

// DecodePlan reads a stored plan. Rules that cannot be understood are left out,
// and named in the error.
func DecodePlan(s string) (Plan, error) {
	b := bytes.TrimSpace([]byte(s))
	switch {
	case len(b) == 0:
		return Plan{}, nil
	case b[0] != '{':
		items, err := Decode(b)
		return Plan{Items: items}, err
	}
	var in storedPlan
	if err := json.Unmarshal(b, &in); err != nil {
		return Plan{}, invalid("Invalid schedule: %v", err)
	}
	keep, err := ParseRetention(in.Keep)
	if err != nil {
		return Plan{}, err
	}
	items, err := readItems(in.Items)
	return Plan{items, keep}, err
}

// Add puts a rule in. It tells whether that changed anything.
func (p *Plan) Add(it Item) bool {
	if slices.ContainsFunc(p.Items, it.Same) {
		return false
	}
	p.Items = append(slices.Clone(p.Items), it)
	return true
}

// Remove takes a rule out.
func (p *Plan) Remove(it Item) {
	p.Items = slices.DeleteFunc(slices.Clone(p.Items), it.Same)
}

// Active are the rules that count: not those that are being taken over, and not
// those that another has too.
func Active(items, others []Item) []Item {
	var out []Item
	for _, it := range items {
		if !it.Held && !slices.ContainsFunc(others, it.Same) {
			out = append(out, it)
		}
	}
	return out
}
