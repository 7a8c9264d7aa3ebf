package course

import (
	"testing"

	"cephmirror/rbdmirror/cls"
	"cephmirror/rbdmirror/journal/format"
	"cephmirror/rbdmirror/journal/lineage"
)

const l, r = "L", "R"

func tag(id uint64, owner, pred string, valid bool, predTag uint64) lineage.Tag {
	return lineage.Tag{ID: id, TagData: format.TagData{MirrorUUID: owner,
		Predecessor: format.Predecessor{MirrorUUID: pred, Valid: valid, Tag: predTag}}}
}

func img(newest lineage.Tag, change ...func(*Image)) *Image {
	i := &Image{ID: "i", Record: cls.MirrorImage{GlobalID: "g", State: cls.RecordEnabled}, Header: true, Journal: true, Newest: newest}
	for _, c := range change {
		c(i)
	}
	return i
}

func TestNext(t *testing.T) {
	copied := tag(1, r, r, true, 1)
	primary := tag(2, "", "", true, 1)
	orphan := tag(3, format.OrphanUUID, "", true, 2)
	state := func(s cls.RecordState) func(*Image) { return func(i *Image) { i.Record.State = s } }
	snapshots := func(i *Image) { i.Record.Mode = cls.ImageModeSnapshot }
	resync := func(i *Image) { i.Master.ResyncRequested = true }
	no := func(f func(*Image) *bool) func(*Image) { return func(i *Image) { *f(i) = false } }
	noHeader := no(func(i *Image) *bool { return &i.Header })
	noJournal := no(func(i *Image) *bool { return &i.Journal })
	peer := func(s format.PeerState) (*format.Client, *format.PeerClient) {
		return &format.Client{ID: l}, &format.PeerClient{ImageID: "i", State: s}
	}
	replaying := func(in Input) Input { in.Client, in.Peer = peer(format.Replaying); return in }
	syncing := func(in Input) Input { in.Client, in.Peer = peer(format.Syncing); return in }
	disconnected := func(in Input) Input {
		in = replaying(in)
		in.Client.State = format.Disconnected
		in.Tags = []lineage.Tag{primary}
		return in
	}
	failback := func(at format.Positions) Input {
		in := replaying(Input{Local: img(orphan), Remote: img(tag(6, "", format.OrphanUUID, true, 5))})
		in.Tags = []lineage.Tag{tag(5, format.OrphanUUID, l, true, 2), tag(6, "", format.OrphanUUID, true, 5)}
		in.Client.Committed = at
		return in
	}
	for _, c := range []struct {
		name string
		in   Input
		want Kind
	}{
		{"nothing anywhere", Input{}, Gone},
		{"new", Input{Remote: img(primary)}, Create},
		{"new, by snapshots", Input{Remote: img(primary, snapshots)}, OtherMode},
		{"new, being disabled", Input{Remote: img(primary, state(cls.RecordDisabling))}, Wait},
		{"new, demoted", Input{Remote: img(orphan)}, RemoteNotPrimary},
		{"new, without journal", Input{Remote: img(primary, noJournal)}, Wait},
		{"new, header gone", Input{Remote: img(primary, noHeader)}, Gone},
		{"half created", Input{Local: img(copied, state(cls.RecordCreating)), Remote: img(primary)}, Purge},
		{"local by snapshots", Input{Local: img(copied, snapshots), Remote: img(primary)}, OtherMode},
		{"remote by snapshots", Input{Local: img(copied), Remote: img(primary, snapshots)}, SplitBrain},
		{"being disabled", Input{Local: img(copied, state(cls.RecordDisabling)), Remote: img(primary)}, Wait},
		{"disabled half", Input{Local: img(copied, state(cls.RecordDisabling)), Remote: img(primary), DisablingSeen: true}, Delete},
		{"primary, being disabled", Input{Local: img(primary, state(cls.RecordDisabling)), DisablingSeen: true}, Wait},
		{"without header", Input{Local: img(copied, noHeader), Remote: img(primary)}, Broken},
		{"without journal", Input{Local: img(copied, noJournal), Remote: img(primary)}, Broken},
		{"remote removed", Input{Local: img(copied)}, Delete},
		{"remote removed, local primary", Input{Local: img(primary)}, LocalPrimary},
		{"remote removed, local demoted", Input{Local: img(orphan)}, Wait},
		{"not registered", Input{Local: img(copied), Remote: img(primary)}, Register},
		{"primary, not registered", Input{Local: img(primary), Remote: img(copied)}, Register},
		{"primary", replaying(Input{Local: img(primary), Remote: img(copied)}), LocalPrimary},
		{"both demoted", replaying(Input{Local: img(orphan), Remote: img(orphan)}), RemoteNotPrimary},
		{"copy to be made", syncing(Input{Local: img(copied), Remote: img(primary)}), Copy},
		{"copy to be made of a demoted image", syncing(Input{Local: img(copied), Remote: img(orphan)}), RemoteNotPrimary},
		{"to be followed", func() Input {
			in := replaying(Input{Local: img(copied), Remote: img(primary)})
			in.Tags = []lineage.Tag{primary}
			return in
		}(), Follow},
		{"to be followed up to the demotion", func() Input {
			in := replaying(Input{Local: img(copied), Remote: img(orphan)})
			in.Tags = []lineage.Tag{primary, orphan}
			return in
		}(), Follow},
		{"resync", replaying(Input{Local: img(orphan, resync), Remote: img(primary)}), Delete},
		{"resync without a primary", replaying(Input{Local: img(copied, resync), Remote: img(orphan)}), RemoteNotPrimary},
		{"split-brain", replaying(Input{Local: img(orphan), Remote: img(primary)}), SplitBrain},
		{"disconnected", disconnected(Input{Local: img(copied), Remote: img(primary)}), Wait},
		{"disconnected, resync by itself", disconnected(Input{Local: img(copied), Remote: img(primary), ResyncAfterDisconnect: true}), Delete},
		{"fails back", failback(nil), Follow},
		{"fails back from the promotion on", failback(format.Positions{{Tag: 6, Entry: 0}}), Follow},
		{"fails back, registered too late", failback(format.Positions{{Tag: 6, Entry: 4}}), SplitBrain},
		{"fails back, registered much too late", failback(format.Positions{{Tag: 8, Entry: 0}}), SplitBrain},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.in.LocalUUID, c.in.RemoteUUID = l, r
			got := Next(c.in)
			if got.Kind != c.want {
				t.Errorf("%v (%s), want %v", got.Kind, got.Why, c.want)
			}
		})
	}
}
