package plugins

import (
	"context"
	"sync"
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

	mu    sync.Mutex
	calls map[*call]struct{}
}

// call is a call under way; ended is when its caller gave it up.
type call struct {
	name  string
	ended time.Time
}

// track notes a call until the returned function runs.
func (s *server) track(ctx context.Context, name string) func() {
	c := &call{name: name}
	s.mu.Lock()
	if s.calls == nil {
		s.calls = map[*call]struct{}{}
	}
	s.calls[c] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.ended = time.Now()
	})
	return func() {
		stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.calls, c)
	}
}

func (s *server) overdue() (name string, by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.calls {
		if !c.ended.IsZero() && time.Since(c.ended) > by {
			name, by = c.name, time.Since(c.ended)
		}
	}
	return name, by
}

func (s *server) Start(ctx context.Context, r *pb.StartRequest) (*pb.StartReply, error) {
	defer s.track(ctx, "Start")()
	info, err := s.plugin.Start(ctx, configFromPB(r))
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	s.started.Store(true)
	return infoToPB(info), nil
}

func (s *server) Events(_ *pb.EventsRequest, stream grpc.ServerStreamingServer[pb.Event]) error {
	ctx := stream.Context()
	defer s.track(ctx, "Events")()
	return toStatus(ctx, s.plugin.Events(ctx, func(e Event) error { return stream.Send(eventToPB(e)) }))
}

func (s *server) LoadMap(r *pb.LoadMapRequest, stream grpc.ServerStreamingServer[pb.MapChunk]) error {
	ctx := stream.Context()
	defer s.track(ctx, "LoadMap")()
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
	defer s.track(ctx, "Do")()
	a := Action{Kind: ActionKind(r.GetKind()), Mapping: mappingFromPB(r.GetMapping())}
	if err := s.plugin.Do(ctx, r.GetDomain(), a); err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.DoReply{}, nil
}

func (s *server) Call(ctx context.Context, r *pb.CallRequest) (*pb.CallReply, error) {
	defer s.track(ctx, "Call "+r.GetPrefix())()
	c, err := commandFromPB(r)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	res := s.plugin.Call(ctx, c)
	return &pb.CallReply{Errno: int32(res.Errno), Out: res.Out, Status: []byte(res.Status)}, nil
}

func (s *server) Metrics(ctx context.Context, _ *pb.MetricsRequest) (*pb.MetricsReply, error) {
	defer s.track(ctx, "Metrics")()
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
	if ttl > 0 {
		s.lease.renewUntil(until)
		if s.started.Load() {
			if err := s.plugin.Renew(ctx, ttl); err != nil {
				return nil, toStatus(ctx, err)
			}
		}
	}
	name, by := s.overdue()
	return &pb.RenewReply{OverdueCall: name, OverdueNanos: int64(by)}, nil
}

func (s *server) Stop(ctx context.Context, _ *pb.StopRequest) (*pb.StopReply, error) {
	defer s.track(ctx, "Stop")()
	if err := s.plugin.Stop(ctx); err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.StopReply{}, nil
}
