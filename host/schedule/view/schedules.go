package view

import (
	"cmp"
	"slices"
	"strings"

	"cephmirror/host/schedule"
	"cephmirror/host/schedule/manage"
)

// Format says how to print.
type Format struct {
	Name   string // plain, json or xml
	Pretty bool
}

func (f Format) print(plain, name string, v any) string {
	switch f.Name {
	case "json":
		return JSON(v, f.Pretty)
	case "xml":
		return XML(name, v, f.Pretty)
	}
	return plain
}

// Rules names rules one after the other.
func Rules(items []schedule.Item) string {
	var out []string
	for _, it := range items {
		out = append(out, it.String())
	}
	return strings.Join(out, ", ")
}

func itemList(items []schedule.Item) Array {
	list := Array{Of: "item"}
	for _, it := range items {
		o := Object{{"interval", ""}, {"start_time", it.Start.String()}}
		if it.Cron == "" {
			o[0].Value = it.Interval.String()
		} else {
			o = append(o, Field{"cron", it.Cron})
		}
		list.Values = append(list.Values, o)
	}
	return list
}

// One prints what is set at one level.
func One(e manage.Entry, f Format) string {
	return f.print(Rules(e.Plan.Items)+"\n", "items", itemList(e.Plan.Items))
}

// List prints what is set at many levels, whose parts have the given names.
func List(entries []manage.Entry, parts []string, f Format) string {
	rows := [][]string{nil}
	for _, p := range parts {
		rows[0] = append(rows[0], strings.ToUpper(p))
	}
	rows[0] = append(rows[0], "SCHEDULE")
	list := Array{Of: "schedule"}
	for _, e := range entries {
		var row []string
		var o Object
		for i, p := range parts {
			name := "-"
			if i < len(e.Names) {
				name = e.Names[i]
			}
			row = append(row, name)
			o = append(o, Field{p, name})
		}
		text := Rules(e.Plan.Items)
		if keep := e.Plan.Keep.String(); keep != "" {
			text += ", keep " + keep
			o = append(o, Field{"keep", keep})
		}
		rows = append(rows, append(row, text))
		list.Values = append(list.Values, append(o, Field{"items", itemList(e.Plan.Items)}))
	}
	return f.print(Table(rows...), "schedules", list)
}

// timeFormat is how the stock tools print the time of a run.
const timeFormat = "2006-01-02 15:04:05"

// Coming prints what is due next, as the stock tools do: only what is due at all.
func Coming(all []manage.Coming, what string, f Format) string {
	rows := [][]string{{"SCHEDULE TIME", strings.ToUpper(what)}}
	list := Array{Of: what}
	for _, n := range Due(all) {
		at := n.At.Format(timeFormat)
		rows = append(rows, []string{at, n.Unit.Name})
		list.Values = append(list.Values, Object{{"schedule_time", at}, {what, n.Unit.Name}})
	}
	return f.print(Table(rows...), "scheduled_"+plural(what), list)
}

func plural(what string) string {
	if s, ok := strings.CutSuffix(what, "y"); ok {
		return s + "ies"
	}
	return what + "s"
}

// Due are the units for which something is due, the first first.
func Due(all []manage.Coming) []manage.Next {
	var out []manage.Next
	for _, c := range all {
		for _, n := range c.Units {
			if !n.At.IsZero() {
				out = append(out, n)
			}
		}
	}
	slices.SortFunc(out, func(a, b manage.Next) int {
		return cmp.Or(a.At.Compare(b.At), strings.Compare(a.Unit.Name, b.Unit.Name))
	})
	return out
}

// Notes are what an operator should know besides: what is not due, and why, and
// where nobody sees to what is.
func Notes(all []manage.Coming) []string {
	var out []string
	for _, c := range all {
		waiting := false
		for _, n := range c.Units {
			switch why := cmp.Or(n.Unit.Held, n.Note); {
			case why != "":
				out = append(out, n.Unit.Name+": "+why)
			default:
				waiting = true
			}
		}
		if waiting && c.Leader == "" {
			out = append(out, c.Domain+": no cephmirror daemon of this cluster follows the schedules just now")
		}
	}
	return out
}
