package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"cephmirror/plugins/internal/pb"
)

// Client is a plugin at the other end of a connection. Its methods return
// errors that wrap ErrGone when the plugin's process has ended.
type Client struct{ rpc pb.MirrorClient }

var _ Plugin = (*Client)(nil)

// NewClient returns the plugin at the other end of conn.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{rpc: pb.NewMirrorClient(conn)}
}

// Health is what a plugin says of itself when its lease is renewed.
type Health struct {
	// OverdueCall is the call that goes on longest although its caller has
	// given up, and Overdue since when. Empty when there is none.
	OverdueCall string
	Overdue     time.Duration
}

// Start is Plugin.Start.
func (c *Client) Start(ctx context.Context, cfg Config) (Info, error) {
	r, err := c.rpc.Start(ctx, configToPB(cfg))
	if err != nil {
		return Info{}, fromStatus(ctx, err)
	}
	return infoFromPB(r), nil
}

// Events is Plugin.Events.
func (c *Client) Events(ctx context.Context, send func(Event) error) error {
	// Ends the stream also when send fails.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Events(ctx, &pb.EventsRequest{})
	if err != nil {
		return fromStatus(ctx, err)
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fromStatus(ctx, err)
		}
		if err := send(eventFromPB(e)); err != nil {
			return err
		}
	}
}

// LoadMap is Plugin.LoadMap.
func (c *Client) LoadMap(ctx context.Context, domain string) (Map, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.LoadMap(ctx, &pb.LoadMapRequest{Domain: domain})
	if err != nil {
		return Map{}, fromStatus(ctx, err)
	}
	var m Map
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return Map{}, fromStatus(ctx, err)
		}
		m.Instances = append(m.Instances, chunk.GetInstances()...)
		for _, u := range chunk.GetUnits() {
			m.Units = append(m.Units, mappingFromPB(u))
		}
	}
}

// Do is Plugin.Do.
func (c *Client) Do(ctx context.Context, domain string, a Action) error {
	_, err := c.rpc.Do(ctx, &pb.DoRequest{Domain: domain, Kind: int32(a.Kind), Mapping: mappingToPB(a.Mapping)})
	return fromStatus(ctx, err)
}

// Call is Plugin.Call.
func (c *Client) Call(ctx context.Context, cmd Command) Result {
	req, err := commandToPB(cmd)
	if err != nil {
		return ErrorResult(err)
	}
	r, err := c.rpc.Call(ctx, req)
	if err != nil {
		return ErrorResult(fromStatus(ctx, err))
	}
	return Result{Errno: int(r.GetErrno()), Out: r.GetOut(), Status: string(r.GetStatus())}
}

// Metrics is Plugin.Metrics.
func (c *Client) Metrics(ctx context.Context) ([]Logger, error) {
	r, err := c.rpc.Metrics(ctx, &pb.MetricsRequest{})
	if err != nil {
		return nil, fromStatus(ctx, err)
	}
	var out []Logger
	for _, l := range r.GetLoggers() {
		out = append(out, loggerFromPB(l))
	}
	return out, nil
}

// Renew is Plugin.Renew.
func (c *Client) Renew(ctx context.Context, ttl time.Duration) error {
	_, err := c.RenewHealth(ctx, ttl)
	return err
}

// RenewHealth is Renew that returns the health of the plugin too.
func (c *Client) RenewHealth(ctx context.Context, ttl time.Duration) (Health, error) {
	r, err := c.rpc.Renew(ctx, &pb.RenewRequest{TtlNanos: int64(ttl), SentBoottimeNanos: int64(Boottime())})
	if err != nil {
		return Health{}, fromStatus(ctx, err)
	}
	return Health{OverdueCall: r.GetOverdueCall(), Overdue: time.Duration(r.GetOverdueNanos())}, nil
}

// Stop is Plugin.Stop.
func (c *Client) Stop(ctx context.Context) error {
	_, err := c.rpc.Stop(ctx, &pb.StopRequest{})
	return fromStatus(ctx, err)
}

// Answer is the result of a command that gave out, to be sent as JSON, or ended
// with err. An answer of nil is an empty one.
func Answer(c Command, out any, err error) Result {
	if err != nil {
		return ErrorResult(err)
	}
	if out == nil {
		return Result{}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return ErrorResult(fmt.Errorf("encoding the answer to %q: %w", c.Prefix, err))
	}
	return Result{Out: text}
}

// ErrorResult is the result of a command that ended with err; an error without
// an errno becomes EIO, or ENOTCONN when the plugin is gone.
func ErrorResult(err error) Result {
	if err == nil {
		return Result{}
	}
	n := Errno(err)
	switch {
	case n != 0:
	case errors.Is(err, ErrGone):
		n = int(syscall.ENOTCONN)
	default:
		n = int(syscall.EIO)
	}
	return Result{Errno: n, Status: fmt.Sprint(err)}
}
