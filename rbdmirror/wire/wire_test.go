package wire

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFrame(t *testing.T) {
	var w Writer
	w.Frame(3, 2, func() {
		w.U8(7)
		w.Frame(1, 1, func() { w.Str("in") })
		w.U64(9)
	})
	w.U16(0x102)
	want := []byte{3, 2, 21, 0, 0, 0, 7, 1, 1, 6, 0, 0, 0, 2, 0, 0, 0, 'i', 'n', 9, 0, 0, 0, 0, 0, 0, 0, 2, 1}
	if !bytes.Equal(w.Bytes(), want) {
		t.Fatalf("% x", w.Bytes())
	}
	r := NewReader(w.Bytes())
	r.Frame(2, func(version uint8, r *Reader) {
		if version != 3 || r.U8() != 7 {
			t.Error("version or first value")
		}
		// the rest is of a later version
	})
	if r.U16() != 0x102 || r.Err() != nil || r.Len() != 0 {
		t.Error("after the frame", r.Err())
	}
	r = NewReader(w.Bytes())
	r.Frame(1, func(uint8, *Reader) { t.Error("a frame for later readers was read") })
	if r.Err() == nil {
		t.Error("no error")
	}
	// what is in a frame cannot reach beyond it
	r = NewReader([]byte{1, 1, 1, 0, 0, 0, 5, 5, 5, 5})
	r.Frame(1, func(_ uint8, r *Reader) { r.U32() })
	if !errors.Is(r.Err(), ErrShort) {
		t.Error(r.Err())
	}
}

func TestErrorsStay(t *testing.T) {
	r := NewReader([]byte{1, 2, 3})
	if r.U64() != 0 || r.U8() != 0 || r.Str() != "" || r.Bool() || r.OptU64() != nil || len(r.Rest()) != 0 || !r.Time().IsZero() {
		t.Error("values after an error")
	}
	if !errors.Is(r.Err(), ErrShort) {
		t.Error(r.Err())
	}
	first := errors.New("first")
	r = NewReader(nil)
	r.Fail(first)
	r.Fail(errors.New("second"))
	if r.Err() != first {
		t.Error(r.Err())
	}
	for _, huge := range []string{"\xff\xff\xff\xff", "\xff\xff\xff\x7fabc", "\x05\x00\x00\x00abcd"} {
		if s := NewReader([]byte(huge)).Str(); s != "" {
			t.Errorf("%q", s)
		}
	}
	if n := NewReader([]byte("\x02\x00\x00\x00abc")).Count(2); n != 0 {
		t.Error(n)
	}
	if n := NewReader([]byte("\x02\x00\x00\x00abcd")).Count(2); n != 2 {
		t.Error(n)
	}
}

func TestTime(t *testing.T) {
	for _, when := range []time.Time{{}, time.Unix(1795312812, 5).UTC(), time.Unix(4294967295, 999999999).UTC()} {
		var w Writer
		w.Time(when)
		if got := NewReader(w.Bytes()).Time(); !got.Equal(when) || got.IsZero() != when.IsZero() {
			t.Errorf("%v became %v", when, got)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, b := rapid.String().Draw(t, "s"), rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		n, opt, yes := rapid.Int64().Draw(t, "n"), rapid.Ptr(rapid.Uint64(), true).Draw(t, "opt"), rapid.Bool().Draw(t, "yes")
		var w Writer
		w.Str(s)
		w.Blob(b)
		w.S64(n)
		w.OptU64(opt)
		w.Bool(yes)
		w.U32(uint32(n))
		w.Raw(b)
		data := bytes.Clone(w.Bytes())
		r := NewReader(data)
		gotS, gotB, gotN, gotOpt, gotYes, got32 := r.Str(), r.Blob(), r.S64(), r.OptU64(), r.Bool(), r.S32()
		rest := r.Rest()
		clear(data) // nothing is shared
		if gotS != s || !bytes.Equal(gotB, b) || gotN != n || gotYes != yes || got32 != int32(n) || !bytes.Equal(rest, b) || r.Err() != nil {
			t.Fatal(gotS, gotB, gotN, gotYes, got32, rest, r.Err())
		}
		if (gotOpt == nil) != (opt == nil) || opt != nil && *opt != *gotOpt {
			t.Fatal(gotOpt, opt)
		}
	})
	if r := NewReader([]byte(strings.Repeat("x", 5))); len(r.Raw(3)) != 3 || r.Len() != 2 {
		t.Error(r.Len())
	}
}
