// Package plugintest helps to test plugins and their users: an in-process
// connection through the real wire form, a plugin made for tests, and the rules
// that every plugin must keep.
package plugintest

import (
	"context"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"cephmirror/plugins"
)

// Connect serves p in memory and returns it as a host sees it, until the test
// ends. lease may be nil.
func Connect(t testing.TB, p plugins.Plugin, lease *plugins.Lease) *plugins.Client {
	t.Helper()
	if lease == nil {
		lease = plugins.NewLease(nil)
	}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	plugins.Register(server, p, lease)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:///plugin",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("connecting to the plugin: %v", err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		wg.Wait()
	})
	return plugins.NewClient(conn)
}
