package cephtree

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Rich makes a tree of everything that a mirror has to carry.
func (m Maker) Rich() {
	m.t.Helper()
	m.Mkdir("sizes")
	for i, n := range []int{0, 1, 511, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, 4<<20 - 1, 4 << 20, 4<<20 + 1, 20 << 20} {
		m.Write(fmt.Sprintf("sizes/f%d", n), Data(uint64(i), n))
	}

	m.Mkdir("sparse")
	m.Write("sparse/all-hole", nil)
	m.Truncate("sparse/all-hole", 16<<20)
	m.Write("sparse/islands", nil)
	m.Truncate("sparse/islands", 40<<20+12345)
	for i, at := range []int64{0, 5<<20 + 17, 12 << 20, 40 << 20} {
		m.WriteAt("sparse/islands", Data(uint64(100+i), 12345), at)
	}
	m.Write("sparse/zeros", make([]byte, 300000)) // written, not a hole
	m.Write("sparse/huge", nil)
	m.Truncate("sparse/huge", 1<<30)
	m.WriteAt("sparse/huge", []byte("somewhere inside"), 700<<20+99)

	m.Mkdir("links")
	m.Symlink("sizes/f1", "links/relative")
	m.Symlink("/no/such/place", "links/dangling")
	m.Symlink(strings.Repeat("0123456789", 30), "links/long")
	m.Symlink("../"+strings.Repeat("ä/", 100), "links/unicode-ß")
	m.Chown("links/relative", 1234, 4321)
	m.Times("links/relative", Time{1000000000, 111111111}, Time{1100000000, 222222222})

	m.Mkdir("special")
	m.Node("special/fifo", syscall.S_IFIFO|0o640, 0)
	m.Node("special/socket", syscall.S_IFSOCK|0o755, 0)
	m.Node("special/char", syscall.S_IFCHR|0o666, 1<<8|3)
	m.Node("special/block", syscall.S_IFBLK|0o660, 8<<8|17)
	m.Times("special/fifo", Time{12, 1}, Time{13, 999999999})
	m.Chown("special/char", 7, 8)
	m.SetXattr("special/socket", "trusted.note", "a socket")

	m.MkdirAll("hard/a")
	m.MkdirAll("hard/b/c")
	m.Write("hard/a/one", Data(7, 100000))
	m.Link("hard/a/one", "hard/a/two")
	m.Link("hard/a/one", "hard/b/c/three")
	m.Write("hard/small", []byte("x"))
	m.Link("hard/small", "hard/b/small too")
	m.Node("hard/fifo", syscall.S_IFIFO|0o600, 0)
	m.Link("hard/fifo", "hard/b/fifo too")

	m.Mkdir("attrs")
	m.Write("attrs/setuid", []byte("#!/bin/sh\n"))
	m.Chown("attrs/setuid", 65534, 100)
	m.Chmod("attrs/setuid", 0o6755)
	m.Mkdir("attrs/sticky")
	m.Chmod("attrs/sticky", 0o3777)
	m.Chown("attrs/sticky", 4000000000, 4000000001)
	m.Write("attrs/nothing", []byte("secret"))
	m.Chmod("attrs/nothing", 0)
	m.Write("attrs/old", []byte("old"))
	m.Times("attrs/old", Time{1, 1}, Time{0, 1})
	m.Write("attrs/future", []byte("future"))
	m.Times("attrs/future", Time{4000000000, 5}, Time{4100000000, 123456789})
	m.Write("attrs/xattrs", []byte("xattrs"))
	m.SetXattr("attrs/xattrs", "user.text", "a value")
	m.SetXattr("attrs/xattrs", "user.binary", "\x00\x01\xff\x00")
	m.SetXattr("attrs/xattrs", "user.large", string(Data(9, 4000)))
	m.SetXattr("attrs/xattrs", "user.name with spaces ä", "1")
	m.SetXattr("attrs/xattrs", "trusted.overlay", "y")
	m.SetXattr("attrs/xattrs", "security.selinux", "system_u:object_r:etc_t:s0\x00")
	m.Write("attrs/acl", []byte("acl"))
	m.Chmod("attrs/acl", 0o640)
	m.SetXattr("attrs/acl", "system.posix_acl_access", ACL(4711, 6))
	m.Mkdir("attrs/acl-dir")
	m.SetXattr("attrs/acl-dir", "system.posix_acl_default", ACL(4712, 4))
	m.SetXattr("attrs/acl-dir", "user.dir", "xattr of a directory")
	m.Times("attrs", Time{1500000000, 1}, Time{1500000001, 2})

	deep := "deep"
	for i := range 200 {
		deep += fmt.Sprintf("/%d", i)
	}
	m.MkdirAll(deep)
	m.Write(deep+"/bottom", []byte("bottom"))

	m.Mkdir("names")
	for _, n := range []string{
		" ", "...", "-rf *", "tab\there", "new\nline", "back\\slash", "quote\"'", "ünïcödé-ﬁ-日本語-🐙",
		"e\u0301 combining", "\xff\xfe not utf-8", "_underscore", strings.Repeat("n", 255), strings.Repeat("語", 85),
	} {
		m.Write("names/"+n, []byte(n))
		m.Mkdir("names/" + cut("d"+n))
	}
	m.MkdirAll("empty/a/b")
	m.Mkdir("empty/c")
	m.Times("empty/a", Time{3, 3}, Time{4, 4})
}

func cut(name string) string {
	if len(name) > 255 {
		name = strings.ToValidUTF8(name[:255], "")
	}
	return name
}

// Flat makes count small files in the directory rel.
func (m Maker) Flat(rel string, count, size int) {
	m.t.Helper()
	m.MkdirAll(rel)
	var group errgroup.Group
	group.SetLimit(8)
	for i := range count {
		group.Go(func() error { return m.put(fmt.Sprintf("%s/%06d", rel, i), Data(uint64(i), size)) })
	}
	m.must(group.Wait(), "write files to %q", rel)
}
