package fsmirror

import (
	"bytes"
	"encoding/json"
	"slices"
)

// orderedObject is a JSON object whose members keep their order.
type orderedObject struct{ members [][2]string }

func (o *orderedObject) add(name, value string) {
	o.members = append(o.members, [2]string{name, value})
}

// MarshalJSON implements json.Marshaler.
func (o orderedObject) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o.members {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, s := range m {
			text, err := json.Marshal(s)
			if err != nil {
				return nil, err
			}
			if j == 1 {
				b.WriteByte(':')
			}
			b.Write(text)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func sorted(names []string) []string {
	slices.Sort(names)
	return names
}
