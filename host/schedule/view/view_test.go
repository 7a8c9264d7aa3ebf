package view

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cephmirror/host/schedule"
	"cephmirror/host/schedule/manage"
	"cephmirror/plugins"
)

func plan(t *testing.T, rules ...string) schedule.Plan {
	t.Helper()
	var p schedule.Plan
	for i := 0; i < len(rules); i += 2 {
		it, err := schedule.ParseItem(rules[i], rules[i+1])
		if err != nil {
			t.Fatal(err)
		}
		p.Add(it)
	}
	return p
}

// What the rbd tool of Tentacle printed.
func TestList(t *testing.T) {
	entries := []manage.Entry{
		{Plan: plan(t, "1h", "")},
		{Names: []string{"rbd", "", "img1"}, Plan: plan(t, "1h", "14:00", "5m", "")},
		{Names: []string{"rbd", "ns1"}, Plan: plan(t, "2h", "01:30+01:00")},
	}
	parts := []string{"pool", "namespace", "image"}
	for f, want := range map[Format]string{
		{Name: "plain"}: "POOL  NAMESPACE  IMAGE  SCHEDULE                               \n" +
			"-     -          -      every 1h                               \n" +
			"rbd              img1   every 1h starting at 14:00:00, every 5m\n" +
			"rbd   ns1        -      every 2h starting at 01:30:00+01:00    \n",
		{Name: "json"}: `[{"pool":"-","namespace":"-","image":"-","items":[{"interval":"1h","start_time":""}]},` +
			`{"pool":"rbd","namespace":"","image":"img1","items":[{"interval":"1h","start_time":"14:00:00"},{"interval":"5m","start_time":""}]},` +
			`{"pool":"rbd","namespace":"ns1","image":"-","items":[{"interval":"2h","start_time":"01:30:00+01:00"}]}]` + "\n",
		{Name: "xml"}: `<schedules><schedule><pool>-</pool><namespace>-</namespace><image>-</image><items><item><interval>1h</interval><start_time></start_time></item></items></schedule>` +
			`<schedule><pool>rbd</pool><namespace></namespace><image>img1</image><items><item><interval>1h</interval><start_time>14:00:00</start_time></item><item><interval>5m</interval><start_time></start_time></item></items></schedule>` +
			`<schedule><pool>rbd</pool><namespace>ns1</namespace><image>-</image><items><item><interval>2h</interval><start_time>01:30:00+01:00</start_time></item></items></schedule></schedules>` + "\n",
	} {
		if d := cmp.Diff(want, List(entries, parts, f)); d != "" {
			t.Errorf("%+v: %s", f, d)
		}
	}
	if d := cmp.Diff("POOL  NAMESPACE  IMAGE  SCHEDULE\n", List(nil, parts, Format{Name: "plain"})); d != "" {
		t.Error(d)
	}
}

func TestOne(t *testing.T) {
	e := manage.Entry{Plan: plan(t, "1h", "14:00", "30 2 * * 1-5", "")}
	for f, want := range map[Format]string{
		{Name: "plain"}: "every 1h starting at 14:00:00, cron 30 2 * * 1-5\n",
		{Name: "json"}:  `[{"interval":"1h","start_time":"14:00:00"},{"interval":"","start_time":"","cron":"30 2 * * 1-5"}]` + "\n",
		{Name: "json", Pretty: true}: `[
    {
        "interval": "1h",
        "start_time": "14:00:00"
    },
    {
        "interval": "",
        "start_time": "",
        "cron": "30 2 * * 1-5"
    }
]
`,
		{Name: "xml", Pretty: true}: `<items>
 <item>
  <interval>1h</interval>
  <start_time>14:00:00</start_time>
 </item>
 <item>
  <interval></interval>
  <start_time></start_time>
  <cron>30 2 * * 1-5</cron>
 </item>
</items>

`,
	} {
		if d := cmp.Diff(want, One(e, f)); d != "" {
			t.Errorf("%+v: %s", f, d)
		}
	}
}

func TestComing(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	all := []manage.Coming{{Domain: "rbd", Units: []manage.Next{
		{Unit: plugins.ScheduleUnit{Name: "rbd/ns1/nimg"}, At: at},
		{Unit: plugins.ScheduleUnit{Name: "rbd/img1"}, At: at.Add(-25 * time.Minute)},
		{Unit: plugins.ScheduleUnit{Name: "rbd/img2", Held: "no peer"}, At: at},
	}}}
	for f, want := range map[Format]string{
		{Name: "plain"}: "SCHEDULE TIME        IMAGE       \n2026-11-22 11:35:00  rbd/img1    \n2026-11-22 12:00:00  rbd/img2    \n2026-11-22 12:00:00  rbd/ns1/nimg\n",
		{Name: "json"}: `[{"schedule_time":"2026-11-22 11:35:00","image":"rbd/img1"},{"schedule_time":"2026-11-22 12:00:00","image":"rbd/img2"},` +
			`{"schedule_time":"2026-11-22 12:00:00","image":"rbd/ns1/nimg"}]` + "\n",
		{Name: "xml"}: `<scheduled_images><image><schedule_time>2026-11-22 11:35:00</schedule_time><image>rbd/img1</image></image>` +
			`<image><schedule_time>2026-11-22 12:00:00</schedule_time><image>rbd/img2</image></image>` +
			`<image><schedule_time>2026-11-22 12:00:00</schedule_time><image>rbd/ns1/nimg</image></image></scheduled_images>` + "\n",
	} {
		if d := cmp.Diff(want, Coming(all, "image", f)); d != "" {
			t.Errorf("%+v: %s", f, d)
		}
	}
	if d := cmp.Diff([]string{"rbd/img2: no peer", "rbd: no cephmirror daemon of this cluster follows the schedules just now"}, Notes(all)); d != "" {
		t.Error(d)
	}
}
