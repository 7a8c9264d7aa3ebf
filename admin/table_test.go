package admin

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestTable(t *testing.T) {
	var tb Table
	if err := tb.Add("fs mirror status cephfs@1", "get filesystem mirror status", nothing); err != nil {
		t.Fatal(err)
	}
	if err := tb.Add("fs mirror status cephfs@1 name=x,type=CephInt", "", nothing); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("second of one prefix: %v", err)
	}
	d, h, ok := tb.Lookup("fs mirror status cephfs@1")
	if !ok || h == nil || d.Help != "get filesystem mirror status" {
		t.Errorf("Lookup: %v %v", d, ok)
	}
	if _, _, ok := tb.Lookup("fs mirror status"); ok {
		t.Error("found by half a prefix")
	}
	if !tb.Remove("fs mirror status cephfs@1") || tb.Remove("fs mirror status cephfs@1") {
		t.Error("Remove")
	}
	if got := string(tb.Descriptions()) + string(tb.Help()); got != "{}{}" {
		t.Errorf("empty table: %s", got)
	}
}

func TestTableConcurrent(t *testing.T) {
	tb, _, _, _ := standardTable(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 200 {
				p := fmt.Sprintf("cmd %d %d", i, n)
				if err := tb.Add(p, "help", nothing); err != nil {
					t.Error(err)
				}
				tb.Lookup(p)
				tb.Descriptions()
				tb.Help()
				tb.Remove(p)
			}
		})
	}
	wg.Wait()
}

func TestManyCommands(t *testing.T) {
	var tb Table
	for i := range 1200 {
		if err := tb.Add(fmt.Sprintf("c%04d", i), "", nothing); err != nil {
			t.Fatal(err)
		}
	}
	list := must[[]Description](t)(ParseDescriptions(tb.Descriptions()))
	for i, d := range list {
		if want := fmt.Sprintf("c%04d", i); d.Signature.Prefix() != want {
			t.Fatalf("entry %d is %q", i, d.Signature.Prefix())
		}
	}
}

func TestParseSignatureErrors(t *testing.T) {
	for _, c := range []string{
		"", " ", "name=x,type=CephString", "a name=x,type=CephString b", "a name=,type=CephString",
		"a name=x,type=CephNosuch", "a name=x,type", "a name=x,=y", "a name=x,name=y",
		"a name=x name=x", "a name=prefix", "a name=format", "a name=x,req=maybe", "a name=x,n=3",
		"a name=x,range=1", "a name=x,type=CephInt,range=z", "a name=x,type=CephInt,range=1|z",
		"a name=x,type=CephChoices", "a name=x,type=CephChoices,strings=a||b", "a name=x,goodchars=[",
		"a name=x,positional=false", "a name=x,type=CephBool,n=N", "a\nb", "a name=x,positional=no",
	} {
		if sig, err := ParseSignature(c); err == nil {
			t.Errorf("%q parsed as %v", c, sig)
		}
	}
}

func TestArguments(t *testing.T) {
	var tb Table
	var got map[string]any
	add := func(sig string) {
		if err := tb.Add(sig, "", func(_ context.Context, r Request) (Reply, error) {
			got = r.Args
			return Reply{}, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	add("int name=v,type=CephInt,range=1|10")
	add("float name=v,type=CephFloat,range=0.0")
	add("bool name=v,type=CephBool")
	add("choice name=v,type=CephChoices,strings=a|b")
	add("choices name=v,type=CephChoices,strings=a|b,n=N")
	add("ints name=v,type=CephInt,n=N,range=0")
	add("floats name=v,type=CephFloat,n=N")
	add("strs name=v,type=CephString,n=N,req=false")
	add("good name=v,type=CephString,goodchars=[a-z-_]")
	add("uuid name=v,type=CephUUID")
	const refused = "refused"
	for _, c := range []struct {
		cmd, value string
		want       any
	}{
		{"int", "5", int64(5)}, {"int", "1", int64(1)}, {"int", "10", int64(10)}, {"int", "0", refused}, {"int", "11", refused},
		{"int", "5.0", refused}, {"int", `"5"`, refused}, {"int", "true", refused}, {"int", "[5]", refused},
		{"int", "99999999999999999999", refused}, {"int", "", refused},
		{"float", "1.5", 1.5}, {"float", "5", 5.0}, {"float", "0.0", 0.0}, {"float", "-0.5", refused}, {"float", `"1"`, refused}, {"float", "1e300", 1e300},
		{"bool", "true", true}, {"bool", "false", false}, {"bool", "1", refused}, {"bool", `"true"`, refused},
		{"choice", `"a"`, "a"}, {"choice", `"c"`, refused}, {"choice", `""`, refused}, {"choice", `["a"]`, refused},
		{"choices", `["a","b"]`, []string{"a", "b"}}, {"choices", `["a","c"]`, refused}, {"choices", `"a"`, refused}, {"choices", `[]`, []string{}},
		{"ints", `[1,2]`, []int64{1, 2}}, {"ints", `[]`, []int64{}}, {"ints", `[-1]`, refused}, {"ints", `[1.5]`, refused}, {"ints", `["1"]`, refused}, {"ints", "1", refused},
		{"floats", `[1.5]`, []float64{1.5}}, {"floats", `[1,2]`, []float64{1, 2}}, {"floats", `[]`, []float64{}},
		{"strs", `["x","y z"]`, []string{"x", "y z"}}, {"strs", "", nil}, {"strs", `[true]`, refused},
		{"good", `"ab-_"`, "ab-_"}, {"good", `"aB"`, refused}, {"good", `"a\n"`, refused}, {"good", `""`, ""},
		{"uuid", `"whatever"`, "whatever"}, // as stock: only the command line checks it
	} {
		got = nil
		req := `{"prefix":"` + c.cmd + `","other":1`
		if c.value != "" {
			req += `,"v":` + c.value
		}
		body := ask(t, &tb, req+"}")
		if c.want == refused {
			if !strings.HasPrefix(body, "ERROR: (22) Invalid argument\ninvalid ") {
				t.Errorf("%s %s: %q with %v", c.cmd, c.value, body, got)
			}
			continue
		}
		want := map[string]any{"v": c.want}
		if c.want == nil {
			want = map[string]any{}
		}
		if diff := cmp.Diff(want, got); diff != "" || body != "" {
			t.Errorf("%s %s: %q %s", c.cmd, c.value, body, diff)
		}
	}
}

type goCephError int

func (e goCephError) Error() string  { return fmt.Sprintf("cephfs: ret=%d", int(e)) }
func (e goCephError) ErrorCode() int { return int(e) }

func TestErrorReplies(t *testing.T) {
	for _, c := range []struct {
		err   error
		reply Reply
		want  string
	}{
		{syscall.ENOENT, Reply{}, "ERROR: (2) No such file or directory\nno such file or directory\n"},
		{fmt.Errorf("open x: %w", goCephError(-108)), Reply{}, "ERROR: (108) Cannot send after transport endpoint shutdown\nopen x: cephfs: ret=-108\n"},
		{errors.New("boom"), Reply{}, "ERROR: (5) Input/output error\nboom\n"},
		{&Error{Errno: syscall.EINVAL}, Reply{}, "ERROR: (22) Invalid argument\n\n"},
		{Errorf(syscall.Errno(9999), "x"), Reply{}, "ERROR: (9999) Unknown error 9999\nx\n"},
		{Errorf(syscall.EAGAIN, "not yet"), Reply{JSON: []byte(`{"a":1}`)}, "ERROR: (11) Resource temporarily unavailable\nnot yet\n{\n    \"a\": 1\n}\n"},
		{nil, Reply{}, ""},
		{nil, Reply{JSON: []byte("{\"a\":[],\"b\":{}}\n")}, "{\n    \"a\": [],\n    \"b\": {}\n}\n"},
		{nil, Reply{Raw: []byte("as it is")}, "as it is"},
		{nil, Reply{JSON: []byte(`{"a":`)}, "ERROR: (5) Input/output error\nreply of \"x\": unexpected end of JSON input\n"},
	} {
		var tb Table
		if err := tb.Add("x", "", func(context.Context, Request) (Reply, error) { return c.reply, c.err }); err != nil {
			t.Fatal(err)
		}
		got := ask(t, &tb, `{"prefix":"x"}`)
		if got != c.want {
			t.Errorf("%v:\n got %q\nwant %q", c.err, got, c.want)
		}
		if c.err == nil && !strings.HasPrefix(got, "ERROR") {
			continue
		}
		back := parseErrorBody([]byte(got))
		if back == nil || c.err != nil && back.Errno != ErrnoOf(c.err) {
			t.Errorf("%q reads back as %v", got, back)
		}
	}
	for _, s := range []string{"", "ERROR: ", "ERROR: (x) y\n", "ERROR: (0) Success\n", "ERROR: (5", "{}"} {
		if e := parseErrorBody([]byte(s)); e != nil {
			t.Errorf("%q taken for error %v", s, e)
		}
	}
}

func TestXML(t *testing.T) {
	for _, c := range []struct{ root, json, want, pretty string }{
		{"help", `{"config diff":"a <b> 'c'"}`, `<help><config_diff>a &lt;b&gt; &apos;c&apos;</config_diff></help>`, ""},
		{"x", `{"a":[1,{"b":null},[true]],"c":1.50}`, `<x><a><item>1</item><item><b></b></item><item><item>true</item></item></a><c>1.50</c></x>`, ""},
		{"fs mirror status", `{"/dir \"q\"":{}}`, `<fs_mirror_status><_dir__q_ name="/dir &quot;q&quot;"></_dir__q_></fs_mirror_status>`,
			"<fs_mirror_status>\n <_dir__q_ name=\"/dir &quot;q&quot;\">\n </_dir__q_>\n</fs_mirror_status>\n\n"},
		{"x", `{"":1,"0a":2,"-":3}`, `<x><_ name="">1</_><_0a name="0a">2</_0a><_- name="-">3</_-></x>`, ""},
		{"x", `"\u0001\r\u007f"`, "<x>\ufffd&#x0d;&#x7f;</x>", "<x>\ufffd&#x0d;&#x7f;</x>\n\n"},
	} {
		for pretty, want := range map[bool]string{false: c.want, true: c.pretty} {
			if want == "" {
				continue
			}
			f := XML
			if pretty {
				f = XMLPretty
			}
			got, err := f.render("ignored", Reply{JSON: []byte(c.json), Root: c.root})
			if err != nil || string(got) != want {
				t.Errorf("%s: %v\n got %q\nwant %q", c.json, err, got, want)
			}
		}
	}
	if _, err := XML.render("x", Reply{JSON: []byte(`{} {}`)}); err == nil {
		t.Error("two values taken")
	}
	if _, err := XML.render("x", Reply{JSON: []byte(strings.Repeat("[", 20000) + strings.Repeat("]", 20000))}); err == nil {
		t.Error("bottomless nesting taken")
	}
}

// wellFormed fails unless b is one XML element.
func wellFormed(b []byte) error {
	d := xml.NewDecoder(strings.NewReader(string(b)))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func genParam(i int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		s := fmt.Sprintf("name=p%d", i)
		typ := rapid.SampledFrom([]string{TypeString, TypeInt, TypeFloat, TypeBool, TypeChoices, TypeUUID, TypeName}).Draw(t, "type")
		s += ",type=" + typ
		switch typ {
		case TypeInt:
			if rapid.Bool().Draw(t, "range") {
				s += fmt.Sprintf(",range=%d|%d", rapid.IntRange(-9, 0).Draw(t, "lo"), rapid.IntRange(0, 99).Draw(t, "hi"))
			}
		case TypeChoices:
			s += ",strings=" + strings.Join(rapid.SliceOfN(rapid.StringMatching(`[a-z-]{1,5}`), 1, 4).Draw(t, "strings"), "|")
		}
		if typ != TypeBool && rapid.Bool().Draw(t, "many") {
			s += ",n=N"
		}
		if rapid.Bool().Draw(t, "opt") {
			s += ",req=false"
		}
		return s
	})
}

// A signature survives its text and its JSON description.
func TestSignatureRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-z0-9@/é"\\.]{1,8}`), 1, 5).Draw(t, "words")
		for i := range rapid.IntRange(0, 4).Draw(t, "params") {
			parts = append(parts, genParam(i).Draw(t, "param"))
		}
		text := strings.Join(parts, " ")
		sig, err := ParseSignature(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		again, err := ParseSignature(sig.String())
		if err != nil || again.String() != sig.String() {
			t.Fatalf("%q became %q: %v", sig, again, err)
		}
		var tb Table
		if err := tb.Add(text, "h", nothing); err != nil {
			t.Fatal(err)
		}
		list, err := ParseDescriptions(tb.Descriptions())
		if err != nil || len(list) != 1 || list[0].Signature.String() != sig.String() {
			t.Fatalf("%q described as %v: %v", sig, list, err)
		}
	})
}

func genValue(depth int) *rapid.Generator[any] {
	leaf := []*rapid.Generator[any]{
		rapid.String().AsAny(), rapid.Int().AsAny(), rapid.Bool().AsAny(), rapid.Just[any](nil).AsAny(),
		rapid.Float64Range(-1e9, 1e9).AsAny(),
	}
	if depth > 0 {
		leaf = append(leaf,
			rapid.SliceOfN(rapid.Deferred(func() *rapid.Generator[any] { return genValue(depth - 1) }), 0, 4).AsAny(),
			rapid.MapOfN(rapid.String(), rapid.Deferred(func() *rapid.Generator[any] { return genValue(depth - 1) }), 0, 4).AsAny())
	}
	return rapid.OneOf(leaf...)
}

// Every format of every value is well formed and, for JSON, the same value.
func TestFormatsOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genValue(3).Draw(t, "v")
		r, err := jsonReply(v)
		if err != nil {
			t.Skip(err)
		}
		var want any
		if err := json.Unmarshal(r.JSON, &want); err != nil {
			t.Fatal(err)
		}
		prefix := rapid.String().Draw(t, "prefix")
		for _, f := range []Format{JSON, JSONPretty, XML, XMLPretty} {
			out, err := f.render(prefix, r)
			if err != nil {
				t.Fatal(err)
			}
			if f == XML || f == XMLPretty {
				if err := wellFormed(out); err != nil {
					t.Fatalf("%s: %v", out, err)
				}
				continue
			}
			var got any
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// Strings come back from our encoder as encoding/json reads them.
func TestJSONStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "s"))
		var got string
		if err := json.Unmarshal(appendJSONString(nil, s), &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") && got != string([]rune(s)) {
			t.Fatalf("%q became %q: %v", s, got, err)
		}
	})
}
