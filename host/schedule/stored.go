package schedule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// storedItem is a rule as it stands in RADOS and in the monitors'
// configuration, in JSON (specs, "Schedules"). The fields after the stock ones
// occur only in what is stored apart from the stock module's schedules, which
// knows no cron expressions.
type storedItem struct {
	Added     *time.Time `json:"added,omitempty"`
	Cron      string     `json:"cron,omitempty"`
	Held      bool       `json:"held,omitempty"`
	Interval  string     `json:"interval,omitempty"`
	StartTime *string    `json:"start_time"`
}

// Encode writes rules as they are stored: four spaces of indentation, keys in
// order.
func Encode(items []Item) ([]byte, error) {
	return encode(storedItems(items))
}

func storedItems(items []Item) []storedItem {
	out := make([]storedItem, 0, len(items))
	for _, it := range items {
		s := storedItem{Cron: it.Cron, Held: it.Held}
		if it.Cron == "" {
			s.Interval = it.Interval.String()
		}
		if it.Start.Set {
			text := it.Start.String()
			s.StartTime = &text
		}
		if !it.Added.IsZero() {
			at := it.Added.UTC()
			s.Added = &at
		}
		out = append(out, s)
	}
	return out
}

func encode(out any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "    ")
	if err := e.Encode(out); err != nil {
		return nil, fmt.Errorf("encoding a schedule: %w", err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// Decode reads stored rules. One that cannot be understood, such as the
// interval of zero that the stock module accepts, is left out and named in the
// error; the others are returned nevertheless.
func Decode(b []byte) ([]Item, error) {
	var in []storedItem
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, invalid("Invalid schedule: %v", err)
	}
	return readItems(in)
}

func readItems(in []storedItem) ([]Item, error) {
	var items []Item
	var bad error
	for _, s := range in {
		when, start := s.Interval, ""
		if s.Cron != "" {
			when = s.Cron
		}
		if s.StartTime != nil {
			start = *s.StartTime
		}
		it, err := ParseItem(when, start)
		if err != nil {
			bad = err
			continue
		}
		if s.Added != nil {
			it.Added = *s.Added
		}
		it.Held = s.Held
		items = append(items, it)
	}
	return items, bad
}
