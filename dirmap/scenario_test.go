package dirmap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The files in testdata tell stories. A line is one of
//
//	# a remark
//	policy least-units|load-aware
//	stored UNIT INSTANCE|- [AGE] [purging]   what a leader finds, with
//	leader INSTANCE...                       the live instances
//	add|remove UNIT
//	join|leave|drain|serve INSTANCE
//	pin UNIT INSTANCE|-
//	load UNIT BYTES [LAG]
//	wait DURATION                            with a tick at its end
//	done ACTION                              the result of one put off
//	state UNIT WORD
//	loads INSTANCE=UNITS...
//	settled
//
// and after each come, as "> ACTION", all actions that follow from it, in order.
// They succeed, or "> ACTION: fails", "> ACTION: later" or "> ACTION: is lost".

type story struct {
	m      *Map
	now    time.Time
	params Params
	stored []Mapping
	got    []Action
	later  map[string]Action
}

func actionText(a Action) string {
	text := fmt.Sprintf("%s %s", a.Kind, a.Mapping.Unit)
	if a.Mapping.Instance != "" {
		text += " " + a.Mapping.Instance
	}
	if a.Mapping.Purging {
		text += " purging"
	}
	return text
}

func (s *story) tell(ev Event) { s.got = append(s.got, s.m.Handle(ev, s.now)...) }

// expect takes the next action, and has the outcome that the line says.
func (s *story) expect(line string) error {
	want, outcome, _ := strings.Cut(line, ": ")
	if len(s.got) == 0 {
		return fmt.Errorf("nothing is done, want %q", want)
	}
	a := s.got[0]
	s.got = s.got[1:]
	if got := actionText(a); got != want {
		return fmt.Errorf("%q is done, want %q", got, want)
	}
	switch outcome {
	case "":
		s.tell(ActionDone{Action: a})
	case "fails":
		s.tell(ActionDone{Action: a, Err: errors.New("failed")})
	case "later", "is lost":
		s.later[want] = a
	default:
		return fmt.Errorf("what is %q?", outcome)
	}
	return nil
}

func (s *story) line(words []string) error {
	arg := func(i int) string {
		if i >= len(words) || words[i] == "-" {
			return ""
		}
		return words[i]
	}
	switch words[0] {
	case "policy":
		s.params.Policy = map[string]Policy{"least-units": LeastUnits, "load-aware": LoadAware}[arg(1)]
	case "stored":
		mp := Mapping{Unit: arg(1), Instance: arg(2), LastShuffled: s.now.Add(-time.Hour)}
		for _, w := range words[3:] {
			if w == "purging" {
				mp.Purging = true
				continue
			}
			age, err := time.ParseDuration(w)
			if err != nil {
				return err
			}
			mp.LastShuffled = s.now.Add(-age)
		}
		s.stored = append(s.stored, mp)
	case "leader":
		if s.m == nil {
			s.m = New(s.params)
		}
		s.tell(Loaded{Units: s.stored, Instances: words[1:]})
		s.stored = nil
	case "add":
		s.tell(UnitAdded{arg(1)})
	case "remove":
		s.tell(UnitRemoved{arg(1)})
	case "join":
		s.tell(InstanceJoined{arg(1)})
	case "leave":
		s.tell(InstanceLeft{arg(1)})
	case "drain", "serve":
		s.tell(InstanceDraining{arg(1), words[0] == "drain"})
	case "pin":
		s.tell(UnitPinned{arg(1), arg(2)})
	case "load":
		bytes, err := strconv.ParseFloat(arg(2), 64)
		if err != nil {
			return err
		}
		ev := UnitLoad{Unit: arg(1), Bytes: bytes}
		if arg(3) != "" {
			if ev.Lag, err = time.ParseDuration(arg(3)); err != nil {
				return err
			}
		}
		s.tell(ev)
	case "wait":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		s.now = s.now.Add(d)
		s.tell(Tick{})
	case "done":
		text := strings.Join(words[1:], " ")
		a, ok := s.later[text]
		if !ok {
			return errors.New("it was not put off")
		}
		s.tell(ActionDone{Action: a})
	case "state":
		st, ok := s.m.Unit(arg(1))
		got := st.State.String()
		if !ok {
			got = "gone"
		} else if st.Stalled {
			got = "stalled"
		}
		if got != arg(2) {
			return fmt.Errorf("it is %s", got)
		}
	case "loads":
		var got []string
		for _, l := range s.m.Loads() {
			got = append(got, fmt.Sprintf("%s=%d", l.Instance, l.Units))
		}
		slices.Sort(got)
		if !slices.Equal(got, words[1:]) {
			return fmt.Errorf("they are %v", got)
		}
	case "settled":
		if !s.m.Settled() {
			return errors.New("it is not")
		}
	default:
		return errors.New("no such line")
	}
	return nil
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &story{now: t0, later: map[string]Action{}}
			at := func(n int, line string, err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s:%d: %s: %v", file, n, line, err)
				}
			}
			idle := func() error {
				if len(s.got) == 0 {
					return nil
				}
				var all []string
				for _, a := range s.got {
					all = append(all, actionText(a))
				}
				return fmt.Errorf("before this is done: %s", strings.Join(all, ", "))
			}
			n := 0
			for line := range strings.Lines(string(text)) {
				n++
				line = strings.TrimSpace(line)
				switch expected, ok := strings.CutPrefix(line, "> "); {
				case line == "" || line[0] == '#':
				case ok:
					at(n, line, s.expect(expected))
				default:
					at(n, line, idle())
					at(n, line, s.line(strings.Fields(line)))
				}
			}
			at(n, "the end", idle())
		})
	}
}
