//go:build cgo

package election

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestAbandonedCalls(t *testing.T) {
	var c calls
	ctx, cancel := context.WithCancel(t.Context())
	if v, err := call(ctx, &c, func() (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Fatalf("%d, %v", v, err)
	}
	if !c.wait(ctx) {
		t.Fatal("a call that has ended is under way")
	}
	hold, lost := make(chan struct{}), make(chan int, 1)
	began := make(chan struct{})
	go func() {
		<-began
		cancel()
	}()
	_, err := callOr(ctx, &c, func() (int, error) {
		close(began)
		<-hold
		return 8, nil
	}, func(v int) { lost <- v })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("an abandoned call: %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if c.wait(short) {
		t.Fatal("a call under way is not counted")
	}
	close(hold)
	if !c.wait(t.Context()) || <-lost != 8 {
		t.Fatal("its result was not discarded")
	}
	if err := do(ctx, &c, func() error { t.Error("called although nobody waits"); return nil }); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
