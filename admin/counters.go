package admin

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Pair is a name and its value where order matters.
type Pair struct{ Name, Value string }

// CounterType tells how a counter is printed and what it means.
type CounterType int

// The types of counters.
const (
	CounterU64     CounterType = iota + 1 // monotonic count
	GaugeU64                              // value that goes up and down
	GaugeSeconds                          // time in seconds
	AverageSeconds                        // Sum seconds over Count samples
)

// Counter is one value of a Logger.
type Counter struct {
	Name        string
	Type        CounterType
	Description string
	Nick        string
	Priority    int
	Bytes       bool    // the unit is bytes
	U64         uint64  // CounterU64, GaugeU64
	Value       float64 // GaugeSeconds
	Count       uint64  // AverageSeconds
	Sum         float64 // AverageSeconds, seconds
}

// Logger is a set of counters, told apart from others of its name by labels.
type Logger struct {
	Name     string
	Labels   []Pair
	Counters []Counter
}

// typeBits is the number Ceph's schema gives a type: 1 seconds, 2 integer,
// 4 average, 8 monotonic.
func (t CounterType) typeBits() uint64 {
	switch t {
	case CounterU64:
		return 2 | 8
	case GaugeU64:
		return 2
	case AverageSeconds:
		return 1 | 4
	}
	return 1
}

// ordered sorts loggers as Ceph prints them, by name and then by labels, with
// each logger's labels sorted by key. The input stays as it is.
func ordered(in []Logger) []Logger {
	out := slices.Clone(in)
	for i := range out {
		out[i].Labels = slices.Clone(out[i].Labels)
		slices.SortStableFunc(out[i].Labels, func(a, b Pair) int { return strings.Compare(a.Name, b.Name) })
	}
	slices.SortStableFunc(out, func(a, b Logger) int {
		return strings.Compare(a.key(), b.key())
	})
	return out
}

// key identifies a logger: name and labels, NUL-separated as in Ceph.
func (l *Logger) key() string {
	var b strings.Builder
	b.WriteString(l.Name)
	for _, p := range l.Labels {
		b.WriteString("\x00" + p.Name + "\x00" + p.Value)
	}
	return b.String()
}

// counterQuery says which counters to print.
type counterQuery struct {
	logger, counter string // empty: all
	schema          bool
}

// labelled prints all loggers as "counter dump" and "counter schema" do.
func labelled(loggers []Logger, q counterQuery) []byte {
	var w jsonWriter
	w.open('{')
	list := ordered(loggers)
	for i := range list {
		l := &list[i]
		if i == 0 || list[i-1].Name != l.Name {
			w.key(l.Name)
			w.open('[')
		}
		w.open('{')
		w.key("labels")
		w.open('{')
		for _, p := range l.Labels {
			w.key(p.Name)
			w.str(p.Value)
		}
		w.close('}')
		w.key("counters")
		l.appendCounters(&w, q)
		w.close('}')
		if i == len(list)-1 || list[i+1].Name != l.Name {
			w.close(']')
		}
	}
	w.close('}')
	return w.b
}

// unlabelled prints the loggers without labels as "perf dump" and "perf schema"
// do. Ceph's own lists those with labels too, by a name with NULs in it, which
// no JSON reader takes.
func unlabelled(loggers []Logger, q counterQuery) []byte {
	var w jsonWriter
	w.open('{')
	last := ""
	for _, l := range ordered(loggers) {
		if len(l.Labels) > 0 || l.Name == last || q.logger != "" && l.Name != q.logger {
			continue
		}
		last = l.Name
		w.key(l.Name)
		l.appendCounters(&w, q)
	}
	w.close('}')
	return w.b
}

func (l *Logger) appendCounters(w *jsonWriter, q counterQuery) {
	w.open('{')
	for i := range l.Counters {
		c := &l.Counters[i]
		if q.counter != "" && c.Name != q.counter {
			continue
		}
		w.key(c.Name)
		if q.schema {
			c.appendSchema(w)
		} else {
			c.appendValue(w)
		}
	}
	w.close('}')
}

func (c *Counter) appendValue(w *jsonWriter) {
	switch c.Type {
	case CounterU64, GaugeU64:
		w.uint(c.U64)
	case AverageSeconds:
		// Ceph divides whole nanoseconds and drops the rest.
		avg := 0.0
		if c.Count > 0 {
			avg = math.Floor(math.Round(c.Sum*1e9)/float64(c.Count)) / 1e9
		}
		w.open('{')
		w.key("avgcount")
		w.uint(c.Count)
		w.key("sum")
		w.raw(seconds(c.Sum))
		w.key("avgtime")
		w.raw(seconds(avg))
		w.close('}')
	default:
		w.raw(seconds(c.Value))
	}
}

func (c *Counter) appendSchema(w *jsonWriter) {
	metric, value, units := "gauge", "real", "none"
	switch c.Type {
	case CounterU64:
		metric, value = "counter", "integer"
	case GaugeU64:
		value = "integer"
	case AverageSeconds:
		value = "real-integer-pair"
	}
	if c.Bytes {
		units = "bytes"
	}
	w.open('{')
	w.key("type")
	w.uint(c.Type.typeBits())
	for _, p := range []Pair{{"metric_type", metric}, {"value_type", value},
		{"description", c.Description}, {"nick", c.Nick}} {
		w.key(p.Name)
		w.str(p.Value)
	}
	w.key("priority")
	w.raw(strconv.Itoa(c.Priority))
	w.key("units")
	w.str(units)
	w.close('}')
}

// seconds prints a time with the nine decimals Ceph gives it.
func seconds(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		v = 0
	}
	return strconv.FormatFloat(v, 'f', 9, 64)
}

// baseline makes "perf reset" work on counters that whoever owns them cannot
// set back: it remembers what each counter had reached and subtracts that.
type baseline struct {
	mu   sync.Mutex
	from map[string]Counter // by logger key, NUL, NUL, counter name
}

func baselineKey(l *Logger, c *Counter) string { return l.key() + "\x00\x00" + c.Name }

// reset starts the counters of one logger, or of "all", at zero. Gauges stay:
// they say what is. It reports whether there is such a logger.
func (b *baseline) reset(loggers []Logger, name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := name == "all"
	for _, l := range ordered(loggers) {
		if name != "all" && l.Name != name {
			continue
		}
		found = true
		for _, c := range l.Counters {
			if c.Type == CounterU64 || c.Type == AverageSeconds {
				if b.from == nil {
					b.from = map[string]Counter{}
				}
				b.from[baselineKey(&l, &c)] = c
			}
		}
	}
	return found
}

// apply returns the loggers with their counters since the last reset. What went
// backwards began anew after the reset, and so did all else of its logger: the
// whole memory of it is dropped. So is that of loggers that are gone.
func (b *baseline) apply(loggers []Logger) []Logger {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.from) == 0 {
		return loggers
	}
	out := ordered(loggers)
	kept := make(map[string]Counter, len(b.from))
	for i := range out {
		l := &out[i]
		l.Counters = slices.Clone(l.Counters)
		restarted := slices.ContainsFunc(l.Counters, func(c Counter) bool {
			f, ok := b.from[baselineKey(l, &c)]
			return ok && (c.U64 < f.U64 || c.Count < f.Count)
		})
		if restarted {
			continue
		}
		for j := range l.Counters {
			c := &l.Counters[j]
			k := baselineKey(l, c)
			f, ok := b.from[k]
			if !ok {
				continue
			}
			kept[k] = f
			c.U64 -= f.U64
			c.Count -= f.Count
			c.Sum = max(0, c.Sum-f.Sum)
		}
	}
	b.from = kept
	return out
}
