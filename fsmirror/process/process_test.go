package process

import (
	"os/exec"
	"testing"
	"time"
)

func self(t *testing.T) ID {
	t.Helper()
	id, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestDead(t *testing.T) {
	me := self(t)
	child := exec.Command("/bin/sh", "-c", "read line")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	other := me
	other.PID = child.Process.Pid
	if other.Started, err = start(other.PID); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*ID)) ID {
		id := other
		change(&id)
		return id
	}
	check := func(what string, id ID, want bool) {
		t.Helper()
		if got := id.Dead(me); got != want {
			t.Errorf("%s: dead is %v, want %v", what, got, want)
		}
	}
	check("this process", me, false)
	check("a running one", other, false)
	check("its number was given anew", with(func(id *ID) { id.Started += "1" }), true)
	check("before the machine was started", with(func(id *ID) { id.Boot = "x" }), false)

	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It is a zombie soon, until it is waited for.
	for deadline := time.Now().Add(10 * time.Second); !zombie(other.PID); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process does not end")
		}
	}
	check("a zombie", other, true)
	_ = child.Wait()
	check("an ended one", other, true)
	check("in another container", with(func(id *ID) { id.Space = "pid:[1]" }), false)
	check("on another machine", with(func(id *ID) { id.Boot = "x" }), false)
	check("no note of a process", ID{Boot: me.Boot, Space: me.Space}, false)
}

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		line, started string
		state         byte
	}{
		{"12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20", "777", 'S'},
		{"12 (a) S 1 2 3", "", 0},
		{"", "", 0},
	} {
		state, started, err := parseStat([]byte(c.line))
		if (err == nil) != (c.started != "") || started != c.started || state != c.state {
			t.Errorf("%q: %c %q %v", c.line, state, started, err)
		}
	}
}
