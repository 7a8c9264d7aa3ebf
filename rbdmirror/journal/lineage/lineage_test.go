package lineage

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cephmirror/rbdmirror/journal/format"
)

type site struct {
	MirrorUUID string `json:"mirror_uuid"`
	ImageID    string `json:"image_id"`
	Clients    []struct{ ID, Data string }
	Tags       []struct {
		TID  uint64
		Data string
	}
}

type steps struct {
	Steps []struct {
		Step  string
		Sites map[string]site
	}
}

func load(t *testing.T, name string) (s steps) {
	t.Helper()
	b, err := os.ReadFile("../format/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s site) tags(t *testing.T) (list []Tag) {
	for _, tag := range s.Tags {
		b, _ := hex.DecodeString(tag.Data)
		data, err := format.DecodeTagData(b)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, Tag{tag.TID, data})
	}
	return list
}

func (s site) client(t *testing.T, id string) format.ClientData {
	for _, c := range s.Clients {
		if c.ID == id {
			b, _ := hex.DecodeString(c.Data)
			data, err := format.DecodeClientData(b)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	return nil
}

// pair is the view of a copy on a site.
func pair(t *testing.T, local, remote site, tags []Tag) Pair {
	p := Pair{Local: local.MirrorUUID, Remote: remote.MirrorUUID, LocalImage: local.ImageID, Tags: tags}
	p.Newest = local.tags(t)[len(local.Tags)-1].TagData
	p.ResyncRequested = local.client(t, "").(*format.ImageClient).ResyncRequested
	p.Peer, _ = remote.client(t, local.MirrorUUID).(*format.PeerClient)
	return p
}

func TestCapturedFailovers(t *testing.T) {
	s := load(t, "failover-tags.json")
	step := func(n int) map[string]site { return s.Steps[n-1].Sites }
	for _, c := range []struct {
		name          string
		step          int // of both sites
		local, remote string
		before        int // the remote tags of this earlier step were not pruned yet
		want          Verdict
	}{
		{"follows", 1, "B", "A", 0, Clean},
		{"fails back after a demotion", 3, "A", "B", 2, Reconnect},
		{"goes on following", 4, "A", "B", 0, Clean},
		{"the other one again", 6, "B", "A", 0, Clean},
		{"was promoted by force and demoted", 8, "B", "A", 0, SplitBrain},
		{"was copied again", 9, "B", "A", 0, Clean},
	} {
		t.Run(c.name, func(t *testing.T) {
			local, remote := step(c.step)[c.local], step(c.step)[c.remote]
			tags := remote.tags(t)
			newest := local
			if c.before > 0 {
				tags = append(step(c.before)[c.remote].tags(t), tags...)
				slices.SortFunc(tags, func(a, b Tag) int { return int(a.ID) - int(b.ID) })
				tags = slices.Compact(tags)
				// Its newest tag then, before it followed.
				newest = step(c.before)[c.local]
			}
			p := pair(t, local, remote, tags)
			p.Newest = newest.tags(t)[len(newest.Tags)-1].TagData
			if got, _ := Judge(p); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestCapturedSplitBrain(t *testing.T) {
	s := load(t, "split-brain-tags.json")
	want := map[string]Verdict{"01": Clean, "02": Clean, "07": SplitBrain, "09": SplitBrain, "10": Resync, "11": Copy, "12": Clean, "13": Clean}
	for _, step := range s.Steps {
		a, b := step.Sites["A"], step.Sites["B"]
		if len(a.Tags) == 0 || len(b.Tags) == 0 {
			continue
		}
		p := pair(t, b, a, a.tags(t))
		if Primary(p.Newest) || !Primary(a.tags(t)[len(a.Tags)-1].TagData) {
			continue // nobody asks
		}
		number := strings.Fields(step.Step)[0]
		if got, _ := Judge(p); got != want[number] {
			t.Errorf("%s: %v, want %v", step.Step, got, want[number])
		}
		delete(want, number)
	}
	if len(want) > 0 {
		t.Errorf("not judged: %v", want)
	}
}

// TestEpochsOfCopies: what Translate yields is what the stock daemon wrote.
func TestEpochsOfCopies(t *testing.T) {
	s := load(t, "failover-tags.json")
	check := func(local, remote string, localStep, remoteStep int, pairs [][2]uint64) {
		t.Helper()
		l, r := s.Steps[localStep-1].Sites[local], s.Steps[remoteStep-1].Sites[remote]
		for _, ids := range pairs {
			find := func(list []Tag, id uint64) format.TagData {
				i := slices.IndexFunc(list, func(t Tag) bool { return t.ID == id })
				if i < 0 {
					t.Fatalf("no tag %d", id)
				}
				return list[i].TagData
			}
			got := Translate(find(r.tags(t), ids[0]), l.MirrorUUID, r.MirrorUUID)
			if d := cmp.Diff(find(l.tags(t), ids[1]), got); d != "" {
				t.Errorf("tag %d of %s (-want +got)\n%s", ids[0], remote, d)
			}
		}
	}
	check("B", "A", 2, 2, [][2]uint64{{3, 2}, {5, 3}})
	check("A", "B", 5, 3, [][2]uint64{{4, 6}})
	check("A", "B", 5, 5, [][2]uint64{{5, 7}, {7, 8}})
	check("B", "A", 6, 6, [][2]uint64{{10, 9}})
}

func data(owner, pred string, valid bool, tag uint64) format.TagData {
	return format.TagData{MirrorUUID: owner, Predecessor: format.Predecessor{MirrorUUID: pred, Valid: valid, Tag: tag}}
}

func TestJudge(t *testing.T) {
	const l, r, orphan = "L", "R", format.OrphanUUID
	peer := func(state format.PeerState) *format.PeerClient {
		return &format.PeerClient{ImageID: "i", State: state}
	}
	for _, c := range []struct {
		name   string
		pair   Pair
		want   Verdict
		settle bool
	}{
		{name: "never registered", pair: Pair{Newest: data(r, "", false, 0)}},
		{name: "registered for another copy", pair: Pair{Newest: data(r, "", false, 0), Peer: &format.PeerClient{ImageID: "x"}}},
		{name: "asked for", pair: Pair{Newest: data(r, "", false, 0), Peer: peer(format.Replaying), ResyncRequested: true}, want: Resync},
		{name: "new", pair: Pair{Newest: data(r, "", false, 0), Peer: peer(format.Syncing)}, want: Copy},
		{name: "copying was given up by a promotion", pair: Pair{Newest: data(orphan, "", true, 3), Peer: peer(format.Syncing)}, settle: true},
		{name: "first epoch", pair: Pair{Newest: data(r, "", false, 0), Peer: peer(format.Replaying), Tags: []Tag{{0, data("", "", false, 0)}}}, want: Clean},
		{name: "no epochs", pair: Pair{Newest: data(r, "", false, 0), Peer: peer(format.Replaying)}},
		{name: "we demoted, they were promoted", want: Reconnect,
			pair: Pair{Newest: data(orphan, "", true, 3), Peer: peer(format.Replaying), Tags: []Tag{
				{5, data(orphan, l, true, 3)}, {6, data("", orphan, true, 5)}}}},
		{name: "they demoted, they were promoted again", want: Reconnect,
			pair: Pair{Newest: data(orphan, r, true, 3), Peer: peer(format.Replaying), Tags: []Tag{
				{2, data("", "", true, 1)}, {3, data("", "", true, 2)}, {5, data(orphan, "", true, 3)}, {6, data("", orphan, true, 5)}}}},
		{name: "something in between",
			pair: Pair{Newest: data(orphan, "", true, 3), Peer: peer(format.Replaying), Tags: []Tag{
				{5, data(orphan, l, true, 3)}, {6, data("", "", true, 5)}, {7, data("", orphan, true, 5)}}}},
		{name: "demoted elsewhere",
			pair: Pair{Newest: data(orphan, "", true, 3), Peer: peer(format.Replaying), Tags: []Tag{
				{5, data(orphan, l, true, 4)}, {6, data("", orphan, true, 5)}}}},
		{name: "promoted by force",
			pair: Pair{Newest: data(orphan, "", true, 3), Peer: peer(format.Replaying), Tags: []Tag{
				{5, data(orphan, l, true, 3)}, {6, data("", "", true, 5)}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.pair.Local, c.pair.Remote, c.pair.LocalImage = l, r, "i"
			got, settle := Judge(c.pair)
			if got != c.want || settle != c.settle {
				t.Errorf("%v, %v; want %v, %v", got, settle, c.want, c.settle)
			}
		})
	}
}

func TestEnter(t *testing.T) {
	own := data(format.OrphanUUID, format.LocalUUID, true, 3)
	for _, c := range []struct {
		name         string
		next, newest format.TagData
		want         Entry
	}{
		{"an epoch", data("R", "R", true, 4), data("R", "R", true, 3), Add},
		{"again", data("R", "R", true, 4), data("R", "R", true, 4), Known},
		{"their demotion", data(format.OrphanUUID, "R", true, 4), data("R", "R", true, 3), Add},
		{"their demotion again", data(format.OrphanUUID, "R", true, 4), data(format.OrphanUUID, "R", true, 4), Known},
		{"our demotion", data(format.OrphanUUID, format.LocalUUID, true, 3), own, OwnDemotion},
		{"their promotion after it", data("R", format.OrphanUUID, true, 5), own, Add},
	} {
		if got := Enter(c.next, c.newest); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
