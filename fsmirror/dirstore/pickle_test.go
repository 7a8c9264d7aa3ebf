package dirstore

import (
	"encoding/hex"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Values seen on clusters of 20.2.4 (protocol 5), made by Python 3.13, which
// 18.2.7 runs on (protocol 4), and by hand (protocol 2).
var storedEntries = []struct {
	name, hex string
	want      Entry
}{
	{"new", "8005953b000000000000007d94288c0776657273696f6e944b018c0b696e7374616e63655f6964948c00948c0d6c6173745f73687566666c656494470000000000000000752e", Entry{}},
	{"mapped", "8005953f000000000000007d94288c0776657273696f6e944b018c0b696e7374616e63655f6964948c0434333435948c0d6c6173745f73687566666c6564944741dac092441c2d3f752e", Entry{Instance: "4345", LastShuffled: 1795311888.4402616}},
	{"purging", "8005953d000000000000007d94288c0776657273696f6e944b018c0b696e7374616e63655f6964944e8c0d6c6173745f73687566666c6564944e8c0770757267696e67944b01752e", Entry{Purging: true}},
	{"protocol 4", "8004953f000000000000007d94288c0776657273696f6e944b018c0b696e7374616e63655f6964948c0434333435948c0d6c6173745f73687566666c6564944741dac092441c2d3f752e", Entry{Instance: "4345", LastShuffled: 1795311888.4402616}},
	{"by hand", "80027d28580700000076657273696f6e4b01580b000000696e7374616e63655f69645800000000580d0000006c6173745f73687566666c6564470000000000000000752e", Entry{}},
}

const storedInstance = "80059531000000000000007d94288c0776657273696f6e944b018c0461646472948c163132372e302e302e313a302f3339333335303938313594752e"

func TestDecodeStoredEntries(t *testing.T) {
	for _, c := range storedEntries {
		got, err := DecodeEntry(unhex(t, c.hex))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	addr, err := DecodeInstance(unhex(t, storedInstance))
	if err != nil || addr != "127.0.0.1:0/3933509815" {
		t.Errorf("instance: %q, %v", addr, err)
	}
}

func TestEncodeEntryAsAccepted(t *testing.T) {
	if got := hex.EncodeToString(Entry{}.Encode()); got != storedEntries[4].hex {
		t.Errorf("got %s", got)
	}
}

func TestUnpickleShapes(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want map[string]any
	}{
		"empty":         {"\x80\x02}.", map[string]any{}},
		"single item":   {"\x80\x02}X\x01\x00\x00\x00aK\x07s.", map[string]any{"a": int64(7)}},
		"put and get":   {"\x80\x03}q\x00(X\x01\x00\x00\x00aq\x01h\x01X\x01\x00\x00\x00bM\x00\x01u.", map[string]any{"a": "a", "b": int64(256)}},
		"shared string": {"\x80\x04}\x94(\x8c\x01a\x94h\x01\x8c\x01b\x94h\x01u.", map[string]any{"a": "a", "b": "a"}},
		"negative":      {"\x80\x02}(X\x01\x00\x00\x00aJ\xff\xff\xff\xffX\x01\x00\x00\x00b\x88X\x01\x00\x00\x00c\x89u.", map[string]any{"a": int64(-1), "b": true, "c": false}},
	} {
		got, err := unpickleDict([]byte(c.in))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
}

func TestUnpickleRejects(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":             "",
		"no protocol":         "}.",
		"protocol 0":          "\x80\x00}.",
		"protocol 6":          "\x80\x06}.",
		"no stop":             "\x80\x02}",
		"left over":           "\x80\x02}.x",
		"two values":          "\x80\x02}}.",
		"no value":            "\x80\x02.",
		"no dict":             "\x80\x02K\x01.",
		"mark alone":          "\x80\x02(.",
		"global":              "\x80\x02cos\nsystem\n.",
		"reduce":              "\x80\x02}R.",
		"claims too much":     "\x80\x02}(X\xff\xff\xff\x7fa",
		"claims a short more": "\x80\x04}(\x8c\xffa",
		"frame too long":      "\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.",
		"frame cut":           "\x80\x04\x95\x01",
		"memo is empty":       "\x80\x02h\x00.",
		"memo of nothing":     "\x80\x04\x94.",
		"memo of mark":        "\x80\x04}(\x94u.",
		"odd items":           "\x80\x02}(X\x01\x00\x00\x00au.",
		"items for no dict":   "\x80\x02K\x01(X\x01\x00\x00\x00aK\x01u.",
		"key is int":          "\x80\x02}(K\x01K\x01u.",
		"value is dict":       "\x80\x02}(X\x01\x00\x00\x00a}u.",
		"value is itself":     "\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u.",
		"value is mark":       "\x80\x02}(X\x01\x00\x00\x00a(u.",
		"no mark":             "\x80\x02}u.",
		"short stack":         "\x80\x02}K\x01s.",
		"not UTF-8":           "\x80\x02}(X\x01\x00\x00\x00\xffK\x01u.",
		"number cut":          "\x80\x02}(X\x01\x00\x00\x00aJ\x00",
		"float cut":           "\x80\x02}(X\x01\x00\x00\x00aG\x00",
	} {
		if d, err := unpickleDict([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %v", name, d)
		}
	}
}

func TestDecodeRejectsOtherDicts(t *testing.T) {
	dict := func(add func(p *pickler)) []byte {
		p := newPickler()
		add(p)
		return p.bytes()
	}
	for name, b := range map[string][]byte{
		"no version":   dict(func(p *pickler) { p.setText("instance_id", "") }),
		"version text": dict(func(p *pickler) { p.setText("version", "1") }),
		"instance":     dict(func(p *pickler) { p.setOne("version"); p.setOne("instance_id") }),
		"shuffled":     dict(func(p *pickler) { p.setOne("version"); p.setText("last_shuffled", "now") }),
		"purging":      dict(func(p *pickler) { p.setOne("version"); p.setText("purging", "yes") }),
	} {
		if e, err := DecodeEntry(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, e)
		}
		if a, err := DecodeInstance(b); err == nil {
			t.Errorf("%s: accepted as instance %q", name, a)
		}
	}
}

func TestEntryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Entry{
			Instance:     rapid.StringN(0, 300, -1).Draw(t, "instance"),
			LastShuffled: rapid.Float64().Draw(t, "shuffled"),
			Purging:      rapid.Bool().Draw(t, "purging"),
		}
		got, err := DecodeEntry(want.Encode())
		if err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
		addr, err := DecodeInstance(EncodeInstance(want.Instance))
		if err != nil || addr != want.Instance {
			t.Fatalf("%q, %v", addr, err)
		}
	})
}

func FuzzUnpickle(f *testing.F) {
	for _, c := range storedEntries {
		f.Add(unhex(f, c.hex))
	}
	f.Add(unhex(f, storedInstance))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := unpickleDict(in)
		if err != nil {
			return
		}
		if len(d)*2 > len(in) {
			t.Fatalf("%d members of %d bytes", len(d), len(in))
		}
		e, err := DecodeEntry(in)
		if err != nil || math.IsNaN(e.LastShuffled) {
			return
		}
		e.Shuffled()
		if again, err := DecodeEntry(e.Encode()); err != nil || again != e {
			t.Fatalf("%+v became %+v, %v", e, again, err)
		}
	})
}
