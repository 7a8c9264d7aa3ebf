package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// sample is one measurement.
type sample struct {
	total  time.Duration // from mksnap until the snapshot is on the peer
	made   time.Duration // of it, mksnap itself
	sync   time.Duration // of it, what the daemon calls its synchronisation; 0: not told
	cpu    usage
	memory map[string]int64 // most resident bytes, by party

	deadlocks int64 // how often an MDS was restarted meanwhile
}

// row is what was measured of one case with one daemon.
type row struct {
	Case    string             `json:"case"`
	Who     string             `json:"who"`
	How     string             `json:"how,omitempty"`
	Seconds []float64          `json:"seconds"`
	Sync    []float64          `json:"sync_seconds,omitempty"`
	Median  float64            `json:"median_seconds"`
	SyncMed float64            `json:"median_sync_seconds,omitempty"`
	Bytes   int64              `json:"bytes,omitempty"` // of content, to tell a rate
	CPU     map[string]float64 `json:"cpu_seconds"`     // of one run, by party
	Memory  map[string]int64   `json:"peak_resident_bytes,omitempty"`
	Figures map[string]float64 `json:"figures,omitempty"`

	mean float64 // of Seconds
}

// cores returns how many cores a party kept busy.
func (r *row) cores(party string) float64 { return r.CPU[party] / max(r.mean, 1e-3) }

func newRow(name, who string, samples []sample) *row {
	r := &row{Case: name, Who: who, Memory: make(map[string]int64), Figures: make(map[string]float64)}
	cpu, all, made := make(usage), time.Duration(0), []float64(nil)
	for _, s := range samples {
		r.Seconds = append(r.Seconds, s.total.Seconds())
		if s.sync > 0 {
			r.Sync = append(r.Sync, s.sync.Seconds())
		}
		all += s.total
		made = append(made, s.made.Seconds())
		if s.deadlocks > 0 {
			r.Figures["deadlocks of the MDS"] += float64(s.deadlocks)
		}
		for name, t := range s.cpu {
			cpu[name] += t
		}
		for name, n := range s.memory {
			r.Memory[name] = max(r.Memory[name], n)
		}
	}
	r.Median, r.SyncMed = median(r.Seconds), median(r.Sync)
	if m := median(made); m > 0 {
		r.Figures["mksnap s"] = m
	}
	r.CPU = make(map[string]float64)
	for name, t := range cpu {
		r.CPU[name] = t.Seconds() / float64(len(samples))
	}
	r.mean = all.Seconds() / float64(len(samples))
	return r
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// best returns the time that ratios are made of: of the synchronisation itself
// where the daemon tells it.
func (r *row) best() float64 {
	if r.SyncMed > 0 {
		return r.SyncMed
	}
	return r.Median
}

// finding compares a figure with what is wanted.
type finding struct {
	Case   string  `json:"case"`
	What   string  `json:"what"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"`
	Wanted string  `json:"wanted,omitempty"`
}

// report is all that one run found.
type report struct {
	Release  string    `json:"release"`
	Started  time.Time `json:"started"`
	Cores    int       `json:"cores"`
	Quick    bool      `json:"quick,omitempty"`
	Rows     []*row    `json:"rows"`
	Findings []finding `json:"findings"`
}

func (r *report) add(rows ...*row) { r.Rows = append(r.Rows, rows...) }

func (r *report) find(name, what string, value float64, unit, wanted string) {
	r.Findings = append(r.Findings, finding{name, what, value, unit, wanted})
}

// ratio notes how many times longer one row's work took than another's. Rows
// that were not measured are nil.
func (r *report) ratio(name, what string, slow, quick *row, of func(*row) float64, wanted string) {
	if slow == nil || quick == nil || of(quick) == 0 {
		return
	}
	r.find(name, what, of(slow)/of(quick), "x", wanted)
}

// memory notes the peaks of our processes over all cases.
func (r *report) memory() {
	peaks := make(map[string]int64)
	for _, row := range r.Rows {
		for name, n := range row.Memory {
			peaks[name] = max(peaks[name], n)
		}
	}
	for _, p := range [][2]string{{"plugin", "under 300 MB"}, {rbdPlugin, "under 400 MB"}, {"host", "under 40 MB"}} {
		if n := peaks[p[0]]; n > 0 {
			r.find("all", "peak resident memory, "+p[0], float64(n)/1e6, "MB", p[1])
		}
	}
}

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

// others is how many cores were busy with what is not being measured.
func (r *report) others() float64 {
	var busy, time float64
	for _, row := range r.Rows {
		busy += row.CPU[rest] * float64(len(row.Seconds))
		time += row.mean * float64(len(row.Seconds))
	}
	return busy / max(time, 1e-3)
}

func (r *report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "case\twho\ttotal s\tsync s\tMB/s\truns\tpeak MB\tnotes")
	for _, row := range r.Rows {
		sync, rate := "", ""
		if row.SyncMed > 0 {
			sync = fmt.Sprintf("%.2f", row.SyncMed)
		}
		if row.Bytes > 0 && row.best() > 0 {
			rate = fmt.Sprintf("%.0f", float64(row.Bytes)/row.best()/1e6)
		}
		var memory []string
		for _, name := range slices.Sorted(maps.Keys(row.Memory)) {
			memory = append(memory, fmt.Sprintf("%s %.0f", name, float64(row.Memory[name])/1e6))
		}
		notes := []string{}
		if row.How != "" {
			notes = append(notes, row.How)
		}
		for _, name := range slices.Sorted(maps.Keys(row.Figures)) {
			notes = append(notes, fmt.Sprintf("%s %s", name, short(row.Figures[name])))
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%s\t%s\t%d\t%s\t%s\n", row.Case, row.Who, row.Median, sync, rate,
			len(row.Seconds), strings.Join(memory, ", "), strings.Join(notes, "; "))
	}
	fmt.Fprintf(t, "\ncase\twho\tcores (of %d)\tprocessor seconds of one run\n", r.Cores)
	for _, row := range r.Rows {
		names := slices.SortedFunc(maps.Keys(row.CPU), func(a, b string) int {
			return cmp.Or(cmp.Compare(row.CPU[b], row.CPU[a]), strings.Compare(a, b))
		})
		var parts []string
		all := 0.0
		for _, name := range names {
			all += row.cores(name)
			if row.CPU[name] >= 0.01 {
				parts = append(parts, fmt.Sprintf("%s %.2f", name, row.CPU[name]))
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\n", row.Case, row.Who, all, strings.Join(parts, ", "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if busy := r.others(); busy > 0.1 {
		fmt.Fprintf(w, "\nSomething else kept %.1f cores busy meanwhile: compare processor seconds rather than time.\n", busy)
	}
	fmt.Fprintln(t, "\ncase\tfigure\tmeasured\twanted")
	for _, f := range r.Findings {
		fmt.Fprintf(t, "%s\t%s\t%s %s\t%s\n", f.Case, f.What, short(f.Value), f.Unit, f.Wanted)
	}
	return t.Flush()
}

// short prints three significant digits.
func short(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}
