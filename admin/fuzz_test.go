package admin

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// The request parser takes anything, never panics, and what it accepts is what
// a handler may rely on.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"{\"prefix\":\"version\"}\x00", "{\"prefix\":\"config set\",\"var\":\"a\",\"val\":[\"b\"]}\n",
		"\x00\x00\x00\x02", "{}\x00", "nosuch\x00", `{"prefix":"x","v":[1,2.5]}` + "\n", "{\"a\":{}}\n", "\xff\n", "[[[[\n", "{\"p\":1e999}\n",
	} {
		f.Add([]byte(s))
	}
	var tb Table
	if err := Standard(&tb, Parts{Config: &fakeConfig{}, Log: &fakeLog{}, Metrics: &fakeMetrics{}}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		text := frame(data, 0)
		for i := range data {
			if split := frame(data[:i+1], i); split != nil {
				if !bytes.Equal(split, text) {
					t.Fatalf("byte by byte %q, at once %q", split, text)
				}
				break
			}
		}
		if text == nil {
			return
		}
		req, _, err := tb.resolve(text)
		if err != nil {
			if ErrnoOf(err) == 0 {
				t.Fatal("error without errno")
			}
			if body := errorBody(err, nil); parseErrorBody(body) == nil {
				t.Fatalf("%q does not read as an error", body)
			}
			return
		}
		d, _, ok := tb.Lookup(req.Prefix)
		if !ok {
			t.Fatalf("resolved %q", req.Prefix)
		}
		for i := range d.Signature.Params {
			p := &d.Signature.Params[i]
			v, given := req.Args[p.Name]
			if !given {
				if !p.Optional {
					t.Fatalf("%q without %s", text, p.Name)
				}
				continue
			}
			if _, isList := v.([]string); isList != p.Many {
				t.Fatalf("%s is a %T", p.Name, v)
			}
		}
	})
}

func FuzzSignature(f *testing.F) {
	for _, s := range []string{
		"version", "config set name=var,type=CephString name=val,type=CephString,n=N",
		"a name=x,type=CephInt,range=1|9,req=false", "a name=x,type=CephChoices,strings=a|b",
		"a name=x,type=CephString,goodchars=[A-Za-z0-9-_.]", "a name=x,positional=false,req=false", "fs mirror status cephfs@1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sig, err := ParseSignature(text)
		if err != nil {
			return
		}
		again, err := ParseSignature(sig.String())
		if err != nil || again.String() != sig.String() {
			t.Fatalf("%q became %q: %v", sig.String(), again.String(), err)
		}
		var w jsonWriter
		sig.appendDescription(&w)
		if !json.Valid(w.b) {
			t.Fatalf("%q is no JSON", w.b)
		}
		_ = sig.Usage()
		Match([]Description{{Signature: sig}}, append(sig.Words, "a", "--x=1", "2"))
	})
}

func FuzzDescriptions(f *testing.F) {
	f.Add([]byte(`{"cmd000":{"sig":["a",{"name":"x","type":"CephInt","range":"1|2"}],"help":"h"}}`), "a 5")
	f.Add([]byte(`{"cmd000":{"sig":["a",{"name":"x","type":"CephString","n":"N"}]}}`), "a --x 5,6 --x=7")
	f.Fuzz(func(t *testing.T, reply []byte, line string) {
		list, err := ParseDescriptions(reply)
		if err != nil {
			return
		}
		prefix, args, err := Match(list, strings.Fields(line))
		if err == nil {
			args["prefix"] = prefix
			if _, err := json.Marshal(args); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzXML(f *testing.F) {
	f.Add("root", []byte(`{"a":[1,{"b":null}],"c d":"<&>"}`), true)
	f.Add("", []byte(`"\u0000\ufffe"`), false)
	f.Add("x y", []byte(`[[],{}]`), true)
	f.Fuzz(func(t *testing.T, root string, text []byte, pretty bool) {
		if len(text) > 512 {
			return
		}
		var buf bytes.Buffer
		if err := toXML(&buf, root, text, pretty); err != nil {
			if json.Valid(text) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if err := wellFormed(buf.Bytes()); err != nil {
			t.Fatalf("%q became %q: %v", text, buf.Bytes(), err)
		}
	})
}
