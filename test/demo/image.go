package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"cephmirror/test/bed"
	"cephmirror/test/rbdimage"
)

const (
	pool      = "images"
	image     = "disk"
	imageSize = 512 << 20
	imageUser = "rbd"
)

// images mirrors a block image from a to b, and moves it there.
func (s *stage) images(ctx context.Context) error {
	say("Block images: a pool on both clusters, mirrored with the stock tool")
	var sides []rbdimage.Pool
	for _, c := range []*bed.Cluster{s.a, s.b} {
		if err := c.AddRBDMirrorUser(ctx, imageUser); err != nil {
			return err
		}
		client, err := rbdimage.Open(c.Name(), c.Conf())
		if err != nil {
			return err
		}
		defer client.Close()
		sides = append(sides, client.Pool(pool))
		if _, err := c.MonCommand(ctx, map[string]any{"prefix": "osd pool create", "pool": pool, "pg_num": 16}); err != nil {
			return err
		}
		for _, words := range [][]string{
			{"pool", "init", pool},
			{"mirror", "pool", "enable", pool, "image", "--site-name", c.Name()},
		} {
			if _, err := s.rbd(ctx, c, "", words...); err != nil {
				return err
			}
		}
	}
	token, err := s.rbd(ctx, s.a, "", "mirror", "pool", "peer", "bootstrap", "create", pool)
	if err != nil {
		return err
	}
	if _, err := s.rbd(ctx, s.b, token+"\n", "mirror", "pool", "peer", "bootstrap", "import", pool, "-"); err != nil {
		return err
	}
	say("The daemon of b")
	args := []string{s.binary, "rbd-mirror", "--cluster", "b", "--id", imageUser, "-f"}
	fmt.Println("  $ cephmirror", strings.Join(args[1:], " "))
	if _, err := s.bed.StartProcess(bed.ProcessSpec{Name: "cephmirror-images", Args: args}); err != nil {
		return err
	}

	say("An image of %d MiB on a, half of it filled with random data; a snapshot; mirrored", imageSize>>20)
	m := rbdimage.Create(fatal{}, sides[0], image, rbdimage.Options{Size: imageSize})
	m.Fill(1, 0, imageSize/2)
	m.Snap("monday")
	if _, err := s.rbd(ctx, s.a, "", "mirror", "image", "enable", pool+"/"+image, "snapshot"); err != nil {
		return err
	}
	copy := m.In(sides[1])
	if err := s.followImage(ctx, m, copy); err != nil {
		return err
	}

	say("Changes: 4 MiB overwritten, 64 MiB discarded, grown, a snapshot; then a mirror snapshot")
	m.Fill(2, 100<<20+4096, 4<<20)
	m.Discard(16<<20, 64<<20)
	m.Resize(imageSize + 32<<20)
	m.Snap("tuesday")
	if _, err := s.rbd(ctx, s.a, "", "mirror", "image", "snapshot", pool+"/"+image); err != nil {
		return err
	}
	if err := s.followImage(ctx, m, copy); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"mirror", "image", "status", pool + "/" + image},
		{"snap", "ls", "--all", pool + "/" + image},
	} {
		out, err := s.rbd(ctx, s.b, "", words...)
		if err != nil {
			return err
		}
		fmt.Println(out)
	}

	say("Fail-over to b with the stock tool")
	if _, err := s.rbd(ctx, s.a, "", "mirror", "image", "demote", pool+"/"+image); err != nil {
		return err
	}
	if err := s.followImage(ctx, m, copy); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"mirror", "image", "promote", pool + "/" + image},
		{"object-map", "check", "--no-progress", pool + "/" + image},
		{"info", pool + "/" + image},
	} {
		out, err := s.rbd(ctx, s.b, "", words...)
		if err != nil {
			return err
		}
		if out != "" {
			fmt.Println(out)
		}
	}
	return nil
}

// rbd shows and runs the stock tool.
func (s *stage) rbd(ctx context.Context, c *bed.Cluster, input string, words ...string) (string, error) {
	return s.command(ctx, input, append([]string{"rbd", "--cluster", c.Name()}, words...)...)
}

// followImage shows the status until the newest mirror snapshot has arrived,
// and compares both sides.
func (s *stage) followImage(ctx context.Context, m, copy rbdimage.Maker) error {
	newest := m.Snaps()
	want := newest[len(newest)-1].ID
	began, shown := time.Now(), ""
	for {
		if line := s.imageStatus(ctx); line != shown && line != "" {
			fmt.Printf("    %4.1fs  %s\n", time.Since(began).Seconds(), line)
			shown = line
		}
		snaps, err := copy.Pool().Peek(copy.Name())
		if err == nil {
			for _, snap := range snaps {
				if snap.Synced() && snap.Source >= want {
					fmt.Printf("    %4.1fs  mirror snapshot %d has arrived\n", time.Since(began).Seconds(), want)
					return s.compareImage(m, copy)
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for image %s: %w", m.Name(), ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// imageStatus is one line of what the stock tool tells of the copy.
func (s *stage) imageStatus(ctx context.Context) string {
	out, err := s.b.Command(ctx, "rbd", "--cluster", "b", "mirror", "image", "status", pool+"/"+image, "--format", "json").Output()
	if err != nil {
		return ""
	}
	var st struct {
		State       string
		Description string
	}
	if err := json.Unmarshal(out, &st); err != nil {
		return ""
	}
	var replay struct {
		State   string  `json:"replay_state"`
		Percent float64 `json:"syncing_percent"`
	}
	if text, ok := strings.CutPrefix(st.Description, "replaying, "); ok && json.Unmarshal([]byte(text), &replay) == nil {
		if replay.State == "syncing" {
			return fmt.Sprintf("%s, syncing, %.0f %%", st.State, replay.Percent)
		}
		return st.State + ", " + replay.State
	}
	return st.State + ", " + st.Description
}

// compareImage prints checksums of the image and of its snapshots on each side,
// and fails if they differ.
func (s *stage) compareImage(m, copy rbdimage.Maker) error {
	views := func(m rbdimage.Maker) (names []string, ids []uint64) {
		for _, snap := range m.Snaps() {
			if snap.Kind == rbdimage.User {
				names, ids = append(names, "@"+snap.Name), append(ids, snap.ID)
			}
		}
		return append(names, ""), append(ids, rbdimage.Head)
	}
	names, ids := views(m)
	others, copies := views(copy)
	if strings.Join(names, " ") != strings.Join(others, " ") {
		return fmt.Errorf("snapshots are %v on a and %v on b", names, others)
	}
	for i, name := range names {
		var sums []string
		for _, v := range []rbdimage.View{m.At(ids[i]), copy.At(copies[i])} {
			sum, err := rbdimage.Sum(v)
			if err != nil {
				return err
			}
			sums = append(sums, sum)
		}
		fmt.Printf("  %s%s: a %s, b %s\n", m.Spec(), name, sums[0], sums[1])
		if sums[0] != sums[1] {
			diffs, err := rbdimage.Compare(m.At(ids[i]), copy.At(copies[i]))
			return fmt.Errorf("%s%s differs: %v, %v", m.Spec(), name, diffs, err)
		}
	}
	return nil
}

// fatal ends the demo when a step fails.
type fatal struct{}

func (fatal) Helper() {}

func (fatal) Fatalf(format string, args ...any) { panic(stop(fmt.Sprintf(format, args...))) }

// stop is the panic of fatal.
type stop string

// stopped turns the panic of fatal into an error.
func stopped(step func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		defer func() {
			switch p := recover().(type) {
			case nil:
			case stop:
				err = fmt.Errorf("%s", string(p))
			default:
				panic(p)
			}
		}()
		return step(ctx)
	}
}
