package plugins

import (
	"context"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// Names that host and plugin agree on beside the handshake.
const (
	// ServiceName is under which name a plugin is dispensed.
	ServiceName = "mirror"
	// EnvHostFD tells the plugin the number of an inherited pipe that nobody
	// writes to: its end of file means that the host has died.
	EnvHostFD = "CEPHMIRROR_HOST_FD"
	// EnvLogLevel is the level of the plugin's own log.
	EnvLogLevel = "CEPHMIRROR_PLUGIN_LOG_LEVEL"
)

// maxMessage bounds what one side accepts in one message.
const maxMessage = 64 << 20

// Handshake keeps a plugin from being run by hand and from being used by a host
// of another contract version.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{
		ProtocolVersion:  1,
		MagicCookieKey:   "CEPHMIRROR_PLUGIN",
		MagicCookieValue: "3f1d0f6a-plugin-of-cephmirror",
	}
}

// HostSet is the plugin set for go-plugin's client in the host.
func HostSet() goplugin.PluginSet { return goplugin.PluginSet{ServiceName: &glue{}} }

// glue ties the contract to go-plugin; plugin and lease are nil in the host.
type glue struct {
	goplugin.NetRPCUnsupportedPlugin
	plugin Plugin
	lease  *Lease
}

func (g *glue) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	Register(s, g.plugin, g.lease)
	return nil
}

func (g *glue) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return NewClient(conn), nil
}
