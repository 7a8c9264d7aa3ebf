//go:build cgo

package journal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/rs/zerolog"

	"cephmirror/internal/ceph/client"
	"cephmirror/rbdmirror/imagesync"
	"cephmirror/rbdmirror/journal"
	"cephmirror/rbdmirror/replica"
	"cephmirror/test/rbdimage"
	"cephmirror/test/rbdsite"
)

// childEnv makes this program a daemon for one image, to be killed.
const childEnv = "CEPHMIRROR_TEST_JOURNAL_CHILD"

type childSpec struct {
	Pool, GlobalID, Local, Remote, LocalUUID, RemoteUUID string
	Strict                                               bool
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := child(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(text string) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return err
	}
	dial := func(cluster string) (*rados.Conn, error) {
		conn, _, err := client.Dial(client.Spec{Cluster: cluster, Name: "client.mirror"})
		return conn, err
	}
	local, err := dial(spec.Local)
	if err != nil {
		return err
	}
	remote, err := dial(spec.Remote)
	if err != nil {
		return err
	}
	r := journal.New(journal.Config{Config: replica.Config{
		Log: zerolog.New(os.Stderr).With().Timestamp().Logger(), GlobalID: spec.GlobalID,
		Local:   replica.Site{Conn: local, Pool: spec.Pool, MirrorUUID: spec.LocalUUID, SiteName: spec.Local},
		Remote:  replica.Site{Conn: remote, Pool: spec.Pool, MirrorUUID: spec.RemoteUUID, SiteName: spec.Remote},
		Memory:  imagesync.NewBudget(imagesync.DefaultBudget),
		Options: replica.Options{RetryMin: 100 * time.Millisecond, RetryMax: time.Second},
	}, Journal: journal.Options{Strict: spec.Strict}})
	out, err := r.Run(context.Background())
	return fmt.Errorf("ended with %v: %w", out, err)
}

// mix changes an image at random, in ways that are possible.
type mix struct {
	site *site
	m    rbdimage.Maker
	rng  *rand.Rand
	size uint64
	made int
	prot map[string]bool // snapshots, and whether they are protected
	seed uint64
	// plain leaves out what the stock daemon cannot repeat after it broke off.
	plain bool
}

func (x *mix) snapshot() (string, bool) {
	for name := range x.prot {
		return name, true
	}
	return "", false
}

func (x *mix) step() {
	at := x.rng.Uint64N(x.size)
	length := min(x.size-at, 1+x.rng.Uint64N(200_000))
	x.seed++
	switch x.rng.IntN(24) {
	case 0:
		if len(x.prot) < 6 {
			x.made++
			name := fmt.Sprintf("snap%d", x.made%9)
			if _, ok := x.prot[name]; !ok {
				x.m.Snap(name)
				x.prot[name] = false
			}
		}
	case 1:
		if name, ok := x.snapshot(); ok && !x.prot[name] {
			x.m.RemoveSnap(name)
			delete(x.prot, name)
		}
	case 2:
		x.made++
		to := fmt.Sprintf("snap%d", x.made%9)
		name, ok := x.snapshot()
		if _, taken := x.prot[to]; ok && !taken {
			x.m.RenameSnap(name, to)
			x.prot[to] = x.prot[name]
			delete(x.prot, name)
		}
	case 3:
		if name, ok := x.snapshot(); ok {
			if x.prot[name] {
				x.m.Unprotect(name)
			} else {
				x.m.Protect(name)
			}
			x.prot[name] = !x.prot[name]
		}
	case 4:
		if name, ok := x.snapshot(); ok && x.rng.IntN(2) == 0 {
			x.m.Rollback(name)
			x.m.Look(func(img *rbd.Image) (err error) {
				x.size, err = img.GetSize()
				return err
			})
		}
	case 5:
		x.size = 4*mib + x.rng.Uint64N(40*mib)
		x.m.Resize(x.size)
	case 6, 7:
		x.m.Discard(at, min(x.size-at, length*20))
	case 8:
		x.m.SetMeta("key"+strconv.Itoa(x.rng.IntN(3)), strconv.Itoa(int(x.seed)))
	case 9, 10, 11:
		// One session with many writes, and flushes in between.
		x.m.Edit(func(img *rbd.Image) error {
			for range 40 {
				at := x.rng.Uint64N(x.size) &^ 4095
				if _, err := img.WriteAt(rbdimage.Data(x.seed, int(min(4096, x.size-at))), int64(at)); err != nil {
					return err
				}
				x.seed++
				if x.rng.IntN(10) == 0 {
					if err := img.Flush(); err != nil {
						return err
					}
				}
			}
			return nil
		})
	case 12, 13:
		if x.plain {
			return
		}
		// Sectors that go back and forth.
		x.site.Run("python3", "-c", sectors, x.m.Pool().String(), x.m.Name(), strconv.FormatUint(x.seed, 10))
	default:
		x.m.Fill(x.seed, at, length)
	}
}

// sectors writes and compares-and-writes a few sectors with few values, so that it
// matters in which order. The bindings have no such call.
const sectors = `
import ctypes, random, sys
rados, rbd = ctypes.CDLL("librados.so.2"), ctypes.CDLL("librbd.so.1")
def check(r, *allowed):
    if r < 0 and -r not in allowed:
        raise OSError(-r)
    return r
cluster, io, image = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
check(rados.rados_create2(ctypes.byref(cluster), None, b"client.admin", ctypes.c_uint64(0)))
check(rados.rados_conf_read_file(cluster, None))
check(rados.rados_connect(cluster))
check(rados.rados_ioctx_create(cluster, sys.argv[1].encode(), ctypes.byref(io)))
check(rbd.rbd_open(io, sys.argv[2].encode(), ctypes.byref(image), None))
rng = random.Random(int(sys.argv[3]))
for _ in range(30):
    at = ctypes.c_uint64(rng.randrange(3) * 512)
    two = [bytes([rng.randrange(2)]) * 256 + bytes([rng.randrange(2)]) * 256 for _ in "ab"]
    mismatch = ctypes.c_uint64()
    if rng.randrange(3) == 0:
        check(rbd.rbd_write(image, ctypes.c_uint64(at.value + 256 * rng.randrange(2)), ctypes.c_size_t(256), two[0][:256]))
    else:
        check(rbd.rbd_compare_and_write(image, at, ctypes.c_size_t(512), two[0], two[1], ctypes.byref(mismatch), 0), 84)
check(rbd.rbd_close(image))
rados.rados_ioctx_destroy(io)
rados.rados_shutdown(cluster)
`

// TestKilled kills the daemon again and again while the image changes.
func TestKilled(t *testing.T) {
	rbdsite.Long(t)
	p := newPair(t)
	p.b.Run("ceph", "config", "set", "osd", "osd_client_watch_timeout", "3")
	kills := 12
	if n, err := strconv.Atoi(os.Getenv("CEPHMIRROR_KILLS")); err == nil {
		kills = n
	}
	m := rbdimage.Create(t, p.a.admin.Pool(p.pool), "killed", rbdimage.Options{Size: 40 * mib, Features: journaling, Order: 20})
	m.Fill(1, 0, 8*mib)
	gid := p.enable(m)
	spec, err := json.Marshal(childSpec{Pool: p.pool, GlobalID: gid, Local: "b", Remote: "a", LocalUUID: p.b.uuid(p), RemoteUUID: p.a.uuid(p)})
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create("/tmp/children.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		rng := rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano())))
		for range kills {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
			cmd.Stderr = log
			if err := cmd.Start(); err != nil {
				stopped <- err
				return
			}
			wait := 3*time.Second + time.Duration(rng.Int64N(int64(6*time.Second)))
			select {
			case <-time.After(wait):
			case <-stop:
			}
			_ = cmd.Process.Kill()
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
				stopped <- fmt.Errorf("the daemon ended by itself: %v", err)
				return
			}
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
		}
		stopped <- nil
	}()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	x := &mix{site: p.a, m: m, rng: rand.New(rand.NewPCG(1, seed)), size: 40 * mib, prot: map[string]bool{}, seed: 100}
	for done := false; !done; {
		select {
		case err := <-stopped:
			if err != nil {
				b, _ := os.ReadFile(log.Name())
				t.Fatalf("%v\n%s", err, b[max(0, len(b)-3000):])
			}
			done = true
		default:
			x.step()
		}
	}
	close(stop)
	pl := p.play(p.b, gid)
	p.caughtUp(pl, m)
	p.same(m)
}
