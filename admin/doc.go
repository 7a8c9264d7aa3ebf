// Package admin speaks Ceph's admin-socket protocol, as server and as client.
//
// A Table holds commands; a Server answers them on a Unix socket, so that
// `ceph --admin-daemon PATH …`, ceph-exporter and whatever else talks to a Ceph
// daemon's socket talk to ours unchanged. Standard fills a Table with the
// commands every Ceph daemon has. Call, Describe, Match and Run are the client.
//
// One connection carries one command. The request is a JSON object that ends
// with a NUL or a newline; the reply is a big-endian u32 length and that many
// bytes. There is no status field: the body of a failed command begins with
// "ERROR: (errno) text".
//
// The package imports nothing else of cephmirror and links no Ceph library.
package admin
