package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cephmirror/fsmirror/dirstore"
	"cephmirror/internal/ceph"
	"cephmirror/internal/ceph/schedules"
	"cephmirror/test/bed"
	"cephmirror/test/rbdimage"
)

// said is what a command printed, and its exit code.
type said struct {
	out, err string
	code     int
}

func (s said) String() string {
	return fmt.Sprintf("exit %d\n--- stdout\n%s--- stderr\n%s", s.code, s.out, s.err)
}

// run runs a command of a cluster's administrator.
func (e *env) say(t *testing.T, c *bed.Cluster, words ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := c.Command(ctx, words...)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	s := said{}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		s.code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	s.out, s.err = out.String(), text.String()
	return s
}

// schedule runs "rbd mirror snapshot schedule", ours or the stock one.
func (e *env) schedule(t *testing.T, who string, c *bed.Cluster, words ...string) said {
	t.Helper()
	tool := []string{"rbd", "--cluster", c.Name()}
	if who == ours {
		tool = []string{filepath.Join(e.bin, "cephmirror"), "--cluster", c.Name(), "--id", "admin", "rbd"}
	}
	return e.say(t, c, slices.Concat(tool, []string{"mirror", "snapshot", "schedule"}, words)...)
}

func (e *env) mustSchedule(t *testing.T, who string, c *bed.Cluster, words ...string) said {
	t.Helper()
	s := e.schedule(t, who, c, words...)
	if s.code != 0 {
		t.Fatalf("%s schedule %q: %v", who, words, s)
	}
	return s
}

// TestScheduleBesideStock gives our commands and the stock ones the same to do,
// and compares what they say. What they store is apart.
func TestScheduleBesideStock(t *testing.T) {
	e := need(t)
	p := e.newPool(t, poolOptions{namespaces: []string{"ns1"}})
	e.makePool(t, e.a, "rbd") // which is meant when none is named
	e.makePool(t, e.a, p.name+"-plain")
	mon(t, e.a, map[string]any{"prefix": "osd pool application disable", "pool": p.name + "-plain", "app": "rbd", "yes_i_really_mean_it": true})
	p.rbd(t, e.a, "mirror", "pool", "enable", "rbd", "image")
	p.rbd(t, e.a, "namespace", "create", p.name+"/off")
	inDefault := p.a.Client.Pool("rbd")
	for name, pool := range map[string]rbdimage.Pool{"one": p.a, "other": p.a, "in": p.namespace("ns1").a, "dflt": inDefault} {
		m := rbdimage.Create(t, pool, name, rbdimage.Options{Size: 4 * mib})
		if name != "other" {
			m.Mirror()
		}
	}
	t.Cleanup(func() {
		e.schedule(t, stock, e.a, "remove")
		e.schedule(t, ours, e.a, "remove")
	})
	within(t, 30*time.Second, "the stock module to be there", func() error {
		if s := e.schedule(t, stock, e.a, "ls", "-R"); s.code != 0 {
			return errors.New(s.err)
		}
		return nil
	})
	const P, N, I = "--pool", "--namespace", "--image"
	n := p.name
	compared := 0
	both := func(words ...string) {
		t.Helper()
		want, got := e.schedule(t, stock, e.a, words...), e.schedule(t, ours, e.a, words...)
		if words[0] == "status" && want.code == 0 {
			got.err = "" // where we say more
		}
		compared++
		if got != want {
			t.Errorf("%q: stock: %v\nours: %v", words, want, got)
		}
	}
	formats := func(words ...string) {
		t.Helper()
		for _, f := range [][]string{nil, {"--format", "json"}, {"--format", "xml"}, {"--format", "json", "--pretty-format"}, {"--format", "xml", "--pretty-format"}} {
			both(append(slices.Clone(words), f...)...)
		}
	}
	both("ls")
	formats("ls", "-R")
	both("status", "--format", "xml")
	for _, words := range [][]string{
		{"add"},
		{"add", P, n},
		{"add", "5x"},
		{"add", P, n, "5x", "nonsense"},
		{"add", P, "nopool", "5x"},
		{"add", P, n + "-plain", "5m"},
		{"add", P, n, "5m", "nonsense"},
		{"add", P, n, N, "nons", "5m"},
		{"add", P, n, N, "off", "5m"},
		{"add", P, n, N, "off", I, "x", "5m"},
		{"add", P, n, I, "none", "5m"},
		{"add", P, n, I, "other", "5m"},
		{"add", P, "a/b/c", "3h"},
		{"add", P, n, I, "x/y", "3h"},
		{"add", N, "ns1", I, "x/y", "3h"},
		{"add", I, "one@snap", "3h"},
		{"add", I, "", "3h"},
		{"add", "1h", "14:00", "extra"},
		{"add", "--bogus"},
		{"add", P, n, "-5m"},
		{"add", P, n, "--", "-5m"},
		{"add", P, n, "1w"},
		{"ls", "--format", "bad"},
		{"ls", "extra"},
		{"ls", P, n, I, "none"},
		{"ls", P, "nopool", "-R"},
		{"status", P, n, I, "other"},
		// What they keep:
		{"add", I, "dflt", "90"},
		{"add", P, n, I, "one", "60m", "2pm"},
		{"add", P, n, I, "one", "1h", "14:00"},
		{"ls", P, n, I, "one"},
		{"add", I, n + "/ns1/in", "24h", "2026-01-01T01:30Z"},
		{"add", P, n + "/ns1", "48h"},
		{"ls", P, n, I, "one", "-R"},
		{"add", P, n, "5m"},
		{"ls", P, n, N, "ns1"},
		{"ls", P, n, N, "ns1", "-R"},
		{"add", "1d", "00:00:00Z"},
		{"ls"},
		{"ls", P, n, I, "one", "--format", "json"},
		{"ls", P, n, I, "one", "--format", "xml", "--pretty-format"},
	} {
		both(words...)
	}
	formats("ls", "-R")
	if e.bed.Release().Name != "reef" { // where it forgets before it looks
		both("remove", P, n, "5x")
		both("remove", P, n, I, "one", "5m", "nonsense")
	}
	// The stock module looks for images once a minute.
	if *long {
		within(t, 90*time.Second, "the stock module to see the images", func() error {
			if s := e.schedule(t, stock, e.a, "status"); strings.Count(s.out, "\n") < 4 {
				return errors.New(s.out)
			}
			return nil
		})
		formats("status")
		both("status", P, n)
		both("status", P, n, N, "ns1")
		both("status", P, n, I, "one")
	}
	for _, words := range [][]string{
		{"remove", P, n, I, "one", "7h"}, {"remove", P, n, I, "one", "1h"}, {"ls", P, n, I, "one"},
		{"remove", P, n, I, "one", "1h", "2pm"}, {"ls", P, n, I, "one"}, {"rm", I, "dflt"}, {"remove"}, {"ls", "-R"},
	} {
		both(words...)
	}
	t.Logf("%d commands compared", compared)

	// Where we differ: an interval that would stop the stock module for good.
	for _, zero := range []string{"0", "0m", "0d"} {
		if s := e.schedule(t, ours, e.a, "add", P, n, zero); s.code != 22 || !strings.Contains(s.err, "Invalid interval ("+zero+")") {
			t.Errorf("an interval of %s: %v", zero, s)
		}
	}

	// Zones mean what they say: the stock module would wait until 16:00 UTC.
	e.mustSchedule(t, ours, e.a, "add", I, "dflt", "1d", "14:00+02:00")
	if s := e.mustSchedule(t, ours, e.a, "status", I, "dflt"); !strings.Contains(s.out, " 12:00:00  rbd/dflt") {
		t.Errorf("at two hours east of UTC: %v", s)
	}
	e.mustSchedule(t, ours, e.a, "remove", I, "dflt")

	// Taking over what the stock module still has.
	before := e.mustSchedule(t, stock, e.a, "ls", "-R").out
	for _, words := range [][]string{{P, n}, {P, n, N, "ns1"}, {P, n, N, "ns1", I, "in"}} {
		e.mustSchedule(t, ours, e.a, append([]string{"remove"}, words...)...)
	}
	if s := e.mustSchedule(t, ours, e.a, "adopt", "--dry-run"); strings.Count(s.out, "would be adopted") != 3 {
		t.Errorf("what would be adopted: %v", s)
	}
	if s := e.mustSchedule(t, ours, e.a, "adopt"); strings.Count(s.out, " adopted") != 3 {
		t.Errorf("adopted: %v", s)
	}
	if after := e.mustSchedule(t, ours, e.a, "ls", "-R").out; after != before {
		t.Errorf("adopted:\n%sof:\n%s", after, before)
	}
	if left := e.mustSchedule(t, stock, e.a, "ls", "-R", "--format", "json").out; strings.TrimSpace(left) != "[]" {
		t.Errorf("left to the stock module: %s", left)
	}
	e.mustSchedule(t, ours, e.a, "add", P, n, "30 2 * * 1-5")
	if s := e.mustSchedule(t, ours, e.a, "ls", P, n); s.out != "every 5m, cron 30 2 * * 1-5\n" {
		t.Errorf("a cron expression: %v", s)
	}
	// The stock module keeps out of what is ours.
	if s := e.schedule(t, stock, e.a, "ls", "-R"); s.code != 0 || strings.Contains(s.out, "5m") {
		t.Errorf("the stock tool: %v", s)
	}
}

// followsSchedules waits until a daemon follows the schedule of a unit.
func followsSchedules(t *testing.T, d *daemon, unit string) {
	t.Helper()
	scheduleIs(t, d, unit, "is followed", func(next, held string) bool { return next != "" && held == "" })
}

// scheduleIs waits for what a daemon says of a unit's schedule: when it is next,
// and why it is not followed.
func scheduleIs(t *testing.T, d *daemon, unit, what string, ok func(next, held string) bool) {
	t.Helper()
	within(t, 40*time.Second, "the daemon to say that the schedule of "+unit+" "+what, func() error {
		out, err := d.call("cephmirror schedule status")
		if err != nil {
			return err
		}
		var report struct {
			Units []struct{ Name, Next, Held, Error string }
		}
		mustJSON(t, string(out), &report)
		for _, u := range report.Units {
			if u.Name == unit && ok(u.Next, u.Held) {
				return nil
			}
		}
		return fmt.Errorf("it says %s", out)
	})
}

// TestScheduleImages sees a scheduled mirror snapshot reach the peer. The
// direction is one-way: the daemon on a has nothing to do but to follow the
// schedule.
func TestScheduleImages(t *testing.T) {
	e := need(t)
	needLong(t) // the next whole minute has to come
	p := e.newPool(t, poolOptions{oneWay: true})
	e.startRBD(t, tested(), e.b)
	d := e.startRBD(t, ours, e.a)
	img := rbdimage.Create(t, p.a, "image", rbdimage.Options{Size: 8 * mib})
	img.Fill(1, 0, mib)
	first := img.Mirror()
	within(t, patience, "the first snapshot to arrive", func() error { return p.arrived(img, first) })
	e.mustSchedule(t, ours, e.a, "add", "--pool", p.name, "1m")
	followsSchedules(t, d, img.Spec())
	img.Fill(2, mib, mib)
	var made uint64
	within(t, 100*time.Second, "a scheduled mirror snapshot", func() error {
		snaps := img.Snaps()
		last := snaps[len(snaps)-1]
		if last.ID <= first || last.Role != rbdimage.Primary {
			return fmt.Errorf("there are %+v", snaps)
		}
		if last.Peers != 1 {
			t.Fatalf("it is linked to %d peers: %+v", last.Peers, last)
		}
		made = last.ID
		return nil
	})
	within(t, patience, "the scheduled snapshot to arrive", func() error { return p.arrived(img, made) })
	s := e.mustSchedule(t, ours, e.a, "status")
	if !strings.Contains(s.out, img.Spec()) || s.err != "" {
		t.Errorf("status: %v", s)
	}
	// Not primary any more: no more snapshots are made, and none is tried.
	img.Demote()
	within(t, 60*time.Second, "the schedule to leave the image alone", func() error {
		out, err := d.call("cephmirror schedule status")
		if err == nil && strings.Contains(string(out), img.Spec()) {
			err = errors.New(string(out))
		}
		return err
	})
}

// TestScheduleBothOnce has one rule in force with the stock module and with ours
// for the same image, then takes it over: one snapshot is made a minute, by
// whichever.
func TestScheduleBothOnce(t *testing.T) {
	e := need(t)
	needLong(t) // minutes have to pass
	p := e.newPool(t, poolOptions{oneWay: true})
	e.startRBD(t, tested(), e.b)
	d := e.startRBD(t, ours, e.a)
	img := rbdimage.Create(t, p.a, "image", rbdimage.Options{Size: 8 * mib})
	first := img.Mirror()
	within(t, patience, "the first snapshot to arrive", func() error { return p.arrived(img, first) })
	e.mustSchedule(t, stock, e.a, "add", "--pool", p.name, "1m")
	e.mustSchedule(t, ours, e.a, "add", "--pool", p.name, "--image", "image", "1m")
	t.Cleanup(func() { e.schedule(t, stock, e.a, "remove", "--pool", p.name) })
	seen := make(map[uint64]time.Time) // when the primary's snapshots were made
	pass := func(until time.Time) {
		t.Helper()
		for time.Now().Before(until) {
			var list []struct {
				ID        uint64
				Timestamp string
			}
			mustJSON(t, p.rbd(t, e.a, "snap", "ls", "--all", "--format", "json", img.Spec()), &list)
			for _, s := range list {
				at, err := time.ParseInLocation("Mon Jan _2 15:04:05 2006", s.Timestamp, time.Local)
				if err != nil {
					t.Fatal(err)
				}
				if s.ID > first {
					seen[s.ID] = at
				}
			}
			time.Sleep(5 * time.Second)
		}
	}
	// wholeMinutes counts the snapshots of each minute from one to another.
	wholeMinutes := func(from, to time.Time) (counts []int) {
		for m := from.Truncate(time.Minute).Add(time.Minute); !m.Add(time.Minute).After(to); m = m.Add(time.Minute) {
			n := 0
			for _, at := range seen {
				if at.Truncate(time.Minute).Equal(m) {
					n++
				}
			}
			counts = append(counts, n)
		}
		return counts
	}
	within(t, 130*time.Second, "the stock module to make a snapshot", func() error {
		if n := len(img.Snaps()); n < 2 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	begun := time.Now()
	pass(begun.Truncate(time.Minute).Add(3*time.Minute + 10*time.Second))
	if counts := wholeMinutes(begun, time.Now()); slices.Max(counts) != 1 || slices.Min(counts) != 1 || len(counts) != 2 {
		t.Errorf("both: snapshots of each minute: %v, %v", counts, seen)
	}
	var report struct {
		Units []struct {
			Name, Next string
			Snapshots  int
		}
	}
	out, err := d.call("cephmirror schedule status")
	if err != nil {
		t.Fatal(err)
	}
	mustJSON(t, string(out), &report)
	if len(report.Units) != 1 || report.Units[0].Next != "" || report.Units[0].Snapshots != 0 {
		t.Errorf("what the module sees to is not left to it: %s", out)
	}

	if s := e.mustSchedule(t, ours, e.a, "adopt"); strings.Count(s.out, " adopted") != 1 {
		t.Errorf("adopted: %v", s)
	}
	adopted := time.Now()
	pass(adopted.Truncate(time.Minute).Add(3*time.Minute + 10*time.Second))
	if counts := wholeMinutes(adopted.Add(-time.Minute), time.Now()); slices.Max(counts) != 1 || slices.Min(counts) != 1 || len(counts) != 3 {
		t.Errorf("adopted: snapshots of each minute: %v, %v", counts, seen)
	}
	followsSchedules(t, d, img.Spec())
}

// scheduler makes a user who may make snapshots.
func (e *env) scheduler(t *testing.T, id string) {
	t.Helper()
	err := e.a.AddUser(e.ctx(t), "client."+id, bed.Option{Name: "mon", Value: "profile cephfs-mirror"}, bed.Option{Name: "mds", Value: "allow rws"},
		bed.Option{Name: "osd", Value: "allow rw tag cephfs metadata=*, allow r tag cephfs data=*"}, bed.Option{Name: "mgr", Value: "allow r"})
	if err != nil {
		t.Fatal(err)
	}
}

// hoursAgo makes the rule of a directory older, so that a run was missed.
func (e *env) hoursAgo(t *testing.T, dir string, n int) {
	t.Helper()
	store := schedules.NewStore(e.metadata(t))
	contents, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	key := "1" + dir
	var plan struct {
		Items []map[string]any `json:"items"`
		Keep  string           `json:"keep"`
	}
	mustJSON(t, contents.Schedules[key], &plan)
	plan.Items[0]["added"] = time.Now().Add(-time.Duration(n) * time.Hour).UTC().Format(time.RFC3339)
	text, err := json.Marshal(plan)
	if err == nil {
		err = store.Swap(key, contents.Schedules[key], string(text))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// scheduled lists the scheduled snapshots of a directory.
func (e *env) scheduled(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := e.src.List(dir+"/.snap", ceph.Cached, func(entry ceph.Entry) error {
		if strings.HasPrefix(entry.Name, "cephmirror-") {
			names = append(names, entry.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// TestScheduleTakeOver has three workers, of which one follows the schedule at a
// time: when that is killed, frozen or stopped another does, and a run is made
// once. One that wakes up makes none.
func TestScheduleTakeOver(t *testing.T) {
	e := need(t)
	needLong(t)
	e.clear(t)
	e.enable(t)
	e.addPeer(t, "remote", fsName)
	t.Cleanup(func() { e.clear(t) })
	m := e.tracked(t)
	m.Write("file", []byte("content"))
	cli := e.ownCommands()
	path := "--path=" + m.Root()
	must := func(words ...string) {
		t.Helper()
		if _, err := cli(t, append([]string{"schedule"}, words...)...); err != nil {
			t.Fatal(err)
		}
	}
	must("add", fsName, "1h", path, "--keep", "2n")
	t.Cleanup(func() { must("remove", fsName, path) })
	e.hoursAgo(t, m.Root(), 2)
	workers := make(map[string]*daemon)
	for _, id := range []string{"scheduler1", "scheduler2", "scheduler3"} {
		e.scheduler(t, id)
		workers[id] = e.startOurs(t, id)
	}
	unit := fsName + ":" + m.Root()
	// follower returns who follows the schedule, and fails if several do.
	follower := func() (string, error) {
		var found []string
		for id, d := range workers {
			out, err := d.call("cephmirror schedule status")
			if err == nil && strings.Contains(string(out), unit) {
				found = append(found, id)
			}
		}
		if len(found) > 1 {
			t.Errorf("%q follow the schedule", found)
		}
		if len(found) == 0 {
			return "", errors.New("nobody follows the schedule")
		}
		return found[0], nil
	}
	// next waits for another than who was, and for one run that was missed.
	next := func(was string, limit time.Duration) (id string) {
		t.Helper()
		begun := time.Now()
		within(t, limit, "another to follow the schedule", func() (err error) {
			if id, err = follower(); err == nil && id == was {
				err = errors.New("it is the same one still")
			}
			return err
		})
		t.Logf("%s follows after %v", id, time.Since(begun).Round(100*time.Millisecond))
		within(t, patience, "the missed run to be made up for", func() error {
			if n := e.scheduled(t, m.Root()); len(n) != 1 {
				return fmt.Errorf("there are %q", n)
			}
			return nil
		})
		for range 5 { // and no other is made
			time.Sleep(time.Second)
			if n := e.scheduled(t, m.Root()); len(n) != 1 {
				t.Fatalf("one missed run is made up for by %q", n)
			}
		}
		return id
	}
	// missed makes it look to whoever takes over as if a run had been missed. Who
	// follows now knows better.
	missed := func() {
		t.Helper()
		for _, name := range e.scheduled(t, m.Root()) {
			if err := e.src.RemoveSnapshot(m.Root(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	id := next("", 40*time.Second)

	t.Logf("%s is killed", id)
	missed()
	workers[id].kill(t)
	killed := id
	id = next(id, 30*time.Second)
	workers[killed].start(t)

	t.Logf("%s is frozen", id)
	frozen := append(workers[id].Family(), workers[id].plugin(t))
	signal := func(s syscall.Signal) {
		for _, pid := range frozen {
			_ = syscall.Kill(pid, s) // it may have ended
		}
	}
	missed()
	signal(syscall.SIGSTOP)
	asleep := id
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	id = next(id, 40*time.Second)
	signal(syscall.SIGCONT)
	within(t, patience, "the frozen one to answer again", func() error { _, err := workers[asleep].call("version"); return err })
	for range 5 {
		time.Sleep(time.Second)
		if n := e.scheduled(t, m.Root()); len(n) != 1 {
			t.Fatalf("who was frozen makes one too: %q", n)
		}
	}
	if _, err := follower(); err != nil {
		t.Error(err)
	}

	t.Logf("%s is stopped", id)
	missed()
	workers[id].stop(t)
	next(id, 15*time.Second)
	e.wait(t, m, e.scheduled(t, m.Root())[0])
	e.same(t, m, e.scheduled(t, m.Root())[0])
}

// TestScheduleDirectories sees a scheduled snapshot of a directory reach the
// peer, and what is not to be kept go.
func TestScheduleDirectories(t *testing.T) {
	e := need(t)
	once(t)
	const user = "scheduler"
	e.scheduler(t, user)
	e.clear(t)
	e.enable(t)
	e.addPeer(t, "remote", fsName)
	t.Cleanup(func() { e.clear(t) })
	m := e.tracked(t)
	m.Write("file", []byte("content"))
	m.Snap("by-hand")
	cli := e.ownCommands()
	must := func(words ...string) string {
		t.Helper()
		out, err := cli(t, append([]string{"schedule"}, words...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	path := "--path=" + m.Root()
	must("add", fsName, "1h", path, "--keep", "2n")
	t.Cleanup(func() { must("remove", fsName, path) })
	if out := must("ls", fsName, "--format", "json"); !strings.Contains(out, `"keep":"2n","items":[{"interval":"1h","start_time":""}]`) {
		t.Errorf("ls: %s", out)
	}
	if out := must("status", fsName); !strings.Contains(out, fsName+":"+m.Root()) {
		t.Errorf("status: %s", out)
	}
	for _, words := range [][]string{{"add", fsName, "0m"}, {"add", fsName, "1h", "--path", "relative"}, {"add", "nofs", "1h"}, {"keep", fsName, "7x", path}} {
		if out, err := cli(t, append([]string{"schedule"}, words...)...); err == nil {
			t.Errorf("%q: %s", words, out)
		}
	}

	hoursAgo := func(n int) { t.Helper(); e.hoursAgo(t, m.Root(), n) }
	hoursAgo(2)
	d := e.startOurs(t, user)
	d.waitPeer(t)
	scheduled := func() []string { t.Helper(); return e.scheduled(t, m.Root()) }
	within(t, patience, "the missed run to be made up for", func() error {
		if n := scheduled(); len(n) != 1 {
			return fmt.Errorf("there are %q", n)
		}
		return nil
	})
	e.wait(t, m, "by-hand", scheduled()[0])
	followsSchedules(t, d, fsName+":"+m.Root())
	if n := scheduled(); len(n) != 1 {
		t.Errorf("one missed run is made up for by %q", n)
	}
	e.same(t, m, "by-hand", scheduled()[0])

	// Three that are older, one of them made by another: two are to be kept.
	for name, metadata := range map[string]map[string]string{
		"cephmirror-2026-01-01-00_00_00_UTC": {"cephmirror.schedule": "x"},
		"cephmirror-2026-01-02-00_00_00_UTC": {"cephmirror.schedule": "x"},
		"cephmirror-2026-01-03-00_00_00_UTC": nil,
	} {
		if err := e.src.MakeSnapshot(m.Root(), name, 0o755, metadata); err != nil {
			t.Fatal(err)
		}
	}
	hoursAgo(3) // a change is noticed at once
	within(t, time.Minute, "the oldest to be removed", func() error {
		if n := scheduled(); slices.Contains(n, "cephmirror-2026-01-01-00_00_00_UTC") {
			return fmt.Errorf("there are %q", n)
		}
		return nil
	})
	if n := scheduled(); len(n) != 3 {
		t.Errorf("left: %q", n)
	}
	// How often snapshots were made, in the counters.
	out, err := d.call("counter dump")
	var dump struct {
		Schedules []struct {
			Labels   struct{ Domain, Unit string }
			Counters struct{ Snapshots, Missed, Failures int }
		} `json:"cephmirror_schedule"`
	}
	mustJSON(t, string(out), &dump)
	if err != nil || len(dump.Schedules) != 1 || dump.Schedules[0].Labels.Unit != fsName+":"+m.Root() ||
		dump.Schedules[0].Counters.Snapshots != 1 || dump.Schedules[0].Counters.Missed != 1 || dump.Schedules[0].Counters.Failures != 0 {
		t.Errorf("counters: %+v, %v", dump, err)
	}

	// Snapshots are made where the directory is primary.
	before := scheduled()
	if err := e.src.SetXattr("/", dirstore.RemoteMark, []byte("cluster_id=6f6b2b0f-5d3c-4b0e-9d7a-0c6b7f1c2d3e fs_id=1"), 0); err != nil {
		t.Fatal(err)
	}
	unmark := sync.OnceValue(func() error { return e.src.RemoveXattr("/", dirstore.RemoteMark) })
	t.Cleanup(func() { unmark() })
	hoursAgo(5)
	scheduleIs(t, d, fsName+":"+m.Root(), "is held", func(_, held string) bool { return strings.Contains(held, "mirrored to") })
	if now := scheduled(); !slices.Equal(now, before) {
		t.Errorf("held, but %q became %q", before, now)
	}
	if err := unmark(); err != nil {
		t.Fatal(err)
	}
	hoursAgo(6)
	followsSchedules(t, d, fsName+":"+m.Root())
}
