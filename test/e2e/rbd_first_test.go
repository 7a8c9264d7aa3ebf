package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/ceph/go-ceph/rbd"

	"cephmirror/test/rbdimage"
)

// TestRBDFirst mirrors images of all kinds for the first time, and then a
// change of them.
func TestRBDFirst(t *testing.T) {
	e := need(t)
	p, _ := e.mirrored(t, poolOptions{})
	for _, c := range e.sites() {
		e.makePool(t, c, p.name+"-data")
	}
	type image struct {
		name string
		rbdimage.Options
		fill   func(m rbdimage.Maker)
		parent rbdimage.Options // of clones
	}
	data := func(m rbdimage.Maker) {
		m.Fill(1, 0, 5*mib)
		m.Fill(2, 9*mib+777, 100000)
	}
	snaps := func(m rbdimage.Maker) {
		data(m)
		m.Snap("one")
		m.Fill(3, 4*mib, 2*mib)
		m.Discard(0, 4*mib)
		m.Snap("two")
		m.Protect("two")
		m.Fill(4, 20*mib, mib)
	}
	for _, c := range []image{
		{name: "plain", fill: data},
		{name: "empty"},
		{name: "snapshots", fill: snaps},
		{name: "no object map", Options: rbdimage.Options{Features: rbdimage.Plain}, fill: snaps},
		{name: "no exclusive lock", Options: rbdimage.Options{Features: rbdimage.Layering}, fill: snaps},
		{name: "small objects", Options: rbdimage.Options{Order: 16}, fill: data},
		{name: "large objects", Options: rbdimage.Options{Order: 24, Size: 40 * mib}, fill: snaps},
		{name: "odd size", Options: rbdimage.Options{Size: 10*mib + 512}, fill: func(m rbdimage.Maker) { m.Fill(1, 7*mib, 3*mib+512) }},
		{name: "data pool", Options: rbdimage.Options{DataPool: p.name + "-data"}, fill: snaps},
		{name: "striped", Options: rbdimage.Options{Order: 20, StripeUnit: 64 << 10, StripeCount: 5}, fill: snaps},
		{name: "ünïcode ☃ name", fill: data},
		{name: "huge and sparse", Options: rbdimage.Options{Size: 2 << 40}, fill: func(m rbdimage.Maker) {
			m.Fill(1, 0, mib)
			m.Fill(2, 1<<40+5, mib)
			m.Fill(3, 2<<40-mib, mib)
		}},
		{name: "metadata", fill: func(m rbdimage.Maker) {
			m.SetMeta("key", "value")
			m.SetMeta("conf_rbd_cache", "false")
			m.SetMeta("ü", "☃")
			m.SetMeta("empty", "")
		}},
		{name: "encrypted", Options: rbdimage.Options{Size: 48 * mib}, fill: func(m rbdimage.Maker) {
			m.Edit(func(img *rbd.Image) error {
				return img.EncryptionFormat(rbd.EncryptionOptionsLUKS2{Alg: rbd.EncryptionAlgorithmAES256, Passphrase: []byte("secret")})
			})
			encrypted(m, func(img *rbd.Image) error {
				_, err := img.WriteAt(rbdimage.Data(1, 3*mib), 5*mib)
				return err
			})
		}},
		{name: "clone 1", Options: rbdimage.Options{CloneVersion: 1}, parent: rbdimage.Options{Size: 24 * mib}, fill: clone},
		{name: "clone 2", Options: rbdimage.Options{CloneVersion: 2}, parent: rbdimage.Options{Size: 24 * mib}, fill: clone},
		{name: "clone with other objects", Options: rbdimage.Options{CloneVersion: 2, Order: 20, StripeUnit: mib, StripeCount: 1}, parent: rbdimage.Options{Size: 24 * mib}, fill: clone},
		{name: "clone without object map", Options: rbdimage.Options{CloneVersion: 2, Features: rbdimage.Plain}, parent: rbdimage.Options{Size: 24 * mib}, fill: clone},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var m, parent rbdimage.Maker
			if c.parent.Size > 0 {
				parent = rbdimage.Create(t, p.a, c.name+" parent", c.parent)
				parent.Fill(9, mib, 15*mib)
				parent.Snap("base")
				parent.Protect("base")
				parent.Fill(10, 0, 6*mib)
				m = parent.Clone("base", p.a, c.name, c.Options)
				c.fill(m)
				parent.Mirror()
			} else {
				if c.Size == 0 {
					c.Size = 32 * mib
				}
				m = rbdimage.Create(t, p.a, c.name, c.Options)
				if c.fill != nil {
					c.fill(m)
				}
			}
			if c.name == "metadata" {
				limitSnaps(t, m, "set", "--limit", "9")
			}
			copy := p.wait(t, m, m.Mirror())
			p.same(t, m)
			if c.name == "encrypted" {
				encrypted(copy, func(img *rbd.Image) error {
					got := make([]byte, 3*mib)
					if _, err := img.ReadAt(got, 5*mib); err != nil {
						return err
					}
					if string(got) != string(rbdimage.Data(1, len(got))) {
						return fmt.Errorf("the copy cannot be decrypted")
					}
					return nil
				})
			}
			// What is sparse stays so.
			want, err := m.At(rbdimage.Head).Objects()
			if err != nil {
				t.Fatal(err)
			}
			got, err := copy.At(rbdimage.Head).Objects()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(want, got) {
				t.Errorf("objects %v became %v", want, got)
			}
			m.Fill(20, 2*mib+5, 10000)
			m.Fill(21, 8*mib, 2*mib)
			p.waitSame(t, m)
			if c.parent.Size > 0 {
				p.same(t, parent)
			}
			p.waitIdle(t, copy)
			p.looksLike(t, copy)
		})
	}
}

// clone changes a clone in all ways: written over the parent's data, beyond
// it, discarded where the parent has data, and with snapshots.
func clone(m rbdimage.Maker) {
	m.Fill(11, 2*mib, 100)
	m.Snap("one")
	m.Fill(12, 5*mib, 4*mib)
	m.Fill(13, 23*mib, 1000)
	m.Snap("two")
	m.Discard(12*mib, 4*mib)
	m.Discard(5*mib, mib)
}

// encrypted calls f with the key loaded.
func encrypted(m rbdimage.Maker, f func(*rbd.Image) error) {
	look := m.Edit
	if m.Pool().Client.Name() == "b" {
		look = m.Look
	}
	look(func(img *rbd.Image) error {
		if err := img.EncryptionLoad2([]rbd.EncryptionOptions{rbd.EncryptionOptionsLUKS{Passphrase: []byte("secret")}}); err != nil {
			return err
		}
		return f(img)
	})
}

// looksLike checks what the stock tool shows of a copy.
func (p *rbdPool) looksLike(t *testing.T, copy rbdimage.Maker) {
	t.Helper()
	c := p.e.cluster(copy.Pool())
	var info struct {
		Features  []string `json:"features"`
		Flags     []string `json:"flags"`
		Mirroring struct {
			Mode    string `json:"mode"`
			State   string `json:"state"`
			ID      string `json:"global_id"`
			Primary bool   `json:"primary"`
		} `json:"mirroring"`
	}
	p.rbdJSON(t, c, &info, "info", copy.Spec())
	if info.Mirroring.Mode != "snapshot" || info.Mirroring.State != "enabled" || info.Mirroring.Primary || info.Mirroring.ID == "" {
		t.Errorf("rbd info shows %+v", info)
	}
	if len(info.Flags) > 0 {
		t.Errorf("the copy has flags %v", info.Flags)
	}
	var snaps []struct {
		Name      string `json:"name"`
		Namespace struct {
			Type     string   `json:"type"`
			State    string   `json:"state"`
			Complete bool     `json:"complete"`
			Peers    []string `json:"mirror_peer_uuids"`
			Origin   string   `json:"primary_mirror_uuid"`
		} `json:"namespace"`
	}
	p.rbdJSON(t, c, &snaps, "snap", "ls", "--all", copy.Spec())
	copies := 0
	for _, s := range snaps {
		if s.Namespace.Type != "mirror" {
			continue
		}
		copies++
		if s.Namespace.State != "non-primary" || !s.Namespace.Complete || len(s.Namespace.Peers) > 0 || s.Namespace.Origin == "" {
			t.Errorf("rbd snap ls --all shows %+v", s)
		}
	}
	if copies != 1 {
		t.Errorf("%d mirror snapshots on the copy, expected one: %+v", copies, snaps)
	}
}
