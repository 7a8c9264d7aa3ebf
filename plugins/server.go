package plugins

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"cephmirror/plugins/internal/pb"
)

// mapChunk is how many mappings go into one message of LoadMap.
const mapChunk = 1000

// Register serves p on s. Every Renew extends lease too, also before Start has
// returned, when p itself is not asked yet.
func Register(s grpc.ServiceRegistrar, p Plugin, lease *Lease) {
	pb.RegisterMirrorServer(s, &server{plugin: p, lease: lease})
}

type server struct {
	pb.UnimplementedMirrorServer
	plugin  Plugin
	lease   *Lease
	started atomic.Bool
}

func (s *server) Start(ctx context.Context, r *pb.StartRequest) (*pb.StartReply, error) {
	info, err := s.plugin.Start(ctx, configFromPB(r))
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.started.Store(true)
	return infoToPB(info), nil
}

func (s *server) Events(_ *pb.EventsRequest, stream grpc.ServerStreamingServer[pb.Event]) error {
	ctx := stream.Context()
	return toStatus(ctx, s.plugin.Events(ctx, func(e Event) error { return stream.Send(eventToPB(e)) }))
}

func (s *server) LoadMap(r *pb.LoadMapRequest, stream grpc.ServerStreamingServer[pb.MapChunk]) error {
	ctx := stream.Context()
	m, err := s.plugin.LoadMap(ctx, r.GetDomain())
	if err != nil {
		return toStatus(ctx, err)
	}
	if err := stream.Send(&pb.MapChunk{Instances: m.Instances}); err != nil {
		return err
	}
	for units := m.Units; len(units) > 0; {
		n := min(mapChunk, len(units))
		chunk := &pb.MapChunk{Units: make([]*pb.Mapping, n)}
		for i, u := range units[:n] {
			chunk.Units[i] = mappingToPB(u)
		}
		if err := stream.Send(chunk); err != nil {
			return err
		}
		units = units[n:]
	}
	return nil
}

func (s *server) Do(ctx context.Context, r *pb.DoRequest) (*pb.DoReply, error) {
	a := Action{Kind: ActionKind(r.GetKind()), Mapping: mappingFromPB(r.GetMapping())}
	if err := s.plugin.Do(ctx, r.GetDomain(), a); err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.DoReply{}, nil
}

func (s *server) Call(ctx context.Context, r *pb.CallRequest) (*pb.CallReply, error) {
	c, err := commandFromPB(r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	res := s.plugin.Call(ctx, c)
	return &pb.CallReply{Errno: int32(res.Errno), Out: res.Out, Status: []byte(res.Status)}, nil
}

func (s *server) Metrics(ctx context.Context, _ *pb.MetricsRequest) (*pb.MetricsReply, error) {
	loggers, err := s.plugin.Metrics(ctx)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	reply := &pb.MetricsReply{}
	for _, l := range loggers {
		reply.Loggers = append(reply.Loggers, loggerToPB(l))
	}
	return reply, nil
}

func (s *server) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewReply, error) {
	until := time.Duration(r.GetSentBoottimeNanos()) + time.Duration(r.GetTtlNanos())
	// The clock of the lease is asked, not Boottime: tests inject one. A
	// request that waited longer than its ttl must not renew anything.
	ttl := until - s.lease.now()
	if ttl <= 0 {
		return &pb.RenewReply{}, nil
	}
	s.lease.renewUntil(until)
	if s.started.Load() {
		if err := s.plugin.Renew(ctx, ttl); err != nil {
			return nil, toStatus(ctx, err)
		}
	}
	return &pb.RenewReply{}, nil
}

func (s *server) Stop(ctx context.Context, _ *pb.StopRequest) (*pb.StopReply, error) {
	if err := s.plugin.Stop(ctx); err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.StopReply{}, nil
}
