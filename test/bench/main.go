// Command bench measures cephmirror beside the stock cephfs-mirror and
// rbd-mirror daemons and a bare copy loop, on the same two clusters in one run. It runs inside the
// test bed's environment; `make bench` builds what it needs and starts it.
//
// It prints what it measured and the ratios, and writes both as JSON. It never
// fails because something is slow.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"cephmirror/test/bed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends at once
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	var names []string
	for _, c := range cases() {
		names = append(names, c.name)
	}
	usual := slices.DeleteFunc(slices.Clone(names), onlyWhenAsked)
	chosen := f.String("cases", strings.Join(usual, ","), "what to measure")
	who := f.String("who", "stock,ours,bare", "what to measure it with")
	quick := f.Bool("quick", false, "small trees and few repetitions, to see that everything works")
	repeat := f.Int("repeat", 0, "measurements of what is quick (default 3)")
	repeatStock := f.Int("repeat-stock", 0, "measurements of the stock daemon's first synchronisations (default 1)")
	keep := f.Bool("keep", false, "leave the clusters up")
	out := f.String("json", "bench.json", "file for the results")
	binary := f.String("cephmirror", "", "path of cephmirror, its plugin beside it (default bin/RELEASE/cephmirror in the checkout)")
	further := f.String("args", "", "further arguments for our daemon, separated by spaces")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "Cases:")
		for _, c := range cases() {
			fmt.Fprintf(f.Output(), "  %-15s  %s\n", c.name, c.about)
		}
		fmt.Fprintln(f.Output(), "Options:")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	release := bed.InsideRelease()
	if release == "" {
		return errors.New("must run inside the test bed's environment: `make bench`, or `bed enter -- ...`")
	}

	p := fullPlan()
	if *quick {
		p = quickPlan()
	}
	if *repeat > 0 {
		p.repeat = *repeat
	}
	if *repeatStock > 0 {
		p.repeatStock = *repeatStock
	}
	for w := range strings.SplitSeq(*who, ",") {
		switch w {
		case stock, ours:
			p.who = append(p.who, w)
		case "bare":
			p.who = append(p.who, bare)
		default:
			return fmt.Errorf("-who: %q is none of stock, ours, bare", w)
		}
	}
	var todo []benchCase
	for n := range strings.SplitSeq(*chosen, ",") {
		i := slices.Index(names, n)
		if i < 0 {
			return fmt.Errorf("-cases: %q is none of %s", n, strings.Join(names, ", "))
		}
		todo = append(todo, cases()[i])
	}
	if *binary == "" {
		wd, err := os.Getwd()
		if err != nil {
			return err
		}
		*binary = filepath.Join(bed.FindCheckout(wd), "bin", release, "cephmirror")
	}
	if p.wants(ours) {
		for _, path := range []string{*binary, filepath.Join(filepath.Dir(*binary), "cephmirror-cephfs"), filepath.Join(filepath.Dir(*binary), "cephmirror-rbd")} {
			if _, err := os.Stat(path); err != nil {
				return fmt.Errorf("looking for our daemon: %w", err)
			}
		}
	}

	began := time.Now()
	logf := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	b, err := bed.Open(bed.Options{Logf: logf})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		b.Close(ctx)
		if !*keep {
			err = errors.Join(err, b.Down(ctx))
		}
	}()
	up, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	l, err := openLab(up, b, append([]string{*binary}, strings.Fields(*further)...), logf)
	if err != nil {
		return err
	}
	var watch sync.WaitGroup
	watchCtx, stopWatch := context.WithCancel(ctx)
	watch.Go(func() { l.watchMDS(watchCtx) })
	defer watch.Wait()
	defer stopWatch()
	r := &report{Release: release, Started: began.UTC(), Cores: runtime.NumCPU(), Quick: *quick}
	var failed []error
	for _, c := range todo {
		logf("case %s: %s", c.name, c.about)
		var part report
		err := bounded(ctx, func() error { return c.run(ctx, l, p, &part) })
		if !errors.Is(err, errStuck) {
			r.Rows = append(r.Rows, part.Rows...)
			r.Findings = append(r.Findings, part.Findings...)
		}
		if err != nil {
			err = fmt.Errorf("case %s: %w", c.name, err)
			logf("%v", err)
			failed = append(failed, err)
		}
		if ctx.Err() != nil || errors.Is(err, errStuck) {
			break
		}
	}
	r.memory()
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	return errors.Join(append(failed, r.write(*out))...)
}

const (
	caseLimit = 40 * time.Minute
	stopLimit = time.Minute // from the interruption of a case to its end
)

var errStuck = errors.New("does not come to an end")

// bounded waits for a case. A call into libcephfs cannot be interrupted, and
// waits for ever when the cluster does not answer.
func bounded(ctx context.Context, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	limit := time.NewTimer(caseLimit)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return errStuck
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(stopLimit):
		return errStuck
	}
}
