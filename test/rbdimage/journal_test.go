package rbdimage

import (
	"encoding/hex"
	"testing"
)

func FuzzDecodeClient(f *testing.F) {
	f.Add([]byte("\x01\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = decodeClient(b) })
}

func TestDecodeClient(t *testing.T) {
	value, err := hex.DecodeString("0101" + "00000000" + "02000000" + "4142" +
		"24000000" + "020128000000" + "01000000" + "02000000" + "6964" + "00000000" + "0000000000000000" + "0000000000000000" +
		"0101" + "00000000" + "01000000" + "0101" + "18000000" + "0500000000000000" + "0200000000000000" + "0700000000000000" + "01")
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeClient(value)
	want := JournalClient{ID: "AB", Position: Position{5, 2, 7}, Any: true, Disconnected: true, Peer: true, ImageID: "id", Syncing: true}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}
