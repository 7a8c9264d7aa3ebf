package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cephmirror/plugins/internal/pb"
)

// toStatus turns an error of a plugin into a gRPC status that keeps its errno.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return status.FromContextError(err).Err()
	}
	s := status.New(codes.Unknown, "plugin error")
	with, detailErr := s.WithDetails(&pb.Failure{Errno: int32(Errno(err)), Message: []byte(err.Error())})
	if detailErr != nil {
		return status.Error(codes.Unknown, err.Error())
	}
	return with.Err()
}

// fromStatus is the reverse of toStatus, on the host's side.
func fromStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		if f, ok := d.(*pb.Failure); ok {
			return &Error{Errno: syscall.Errno(f.GetErrno()), Msg: string(f.GetMessage())}
		}
	}
	switch s.Code() {
	case codes.DeadlineExceeded:
		return fmt.Errorf("plugin did not answer in time: %w", context.DeadlineExceeded)
	case codes.Canceled:
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return ErrGone
	case codes.Unavailable:
		return ErrGone
	}
	return &Error{Errno: syscall.EIO, Msg: fmt.Sprintf("plugin call failed: %s: %s", s.Code(), s.Message())}
}

func optionsToPB(in []Option) []*pb.Option {
	out := make([]*pb.Option, len(in))
	for i, o := range in {
		out[i] = &pb.Option{Name: o.Name, Value: []byte(o.Value)}
	}
	return out
}

func optionsFromPB(in []*pb.Option) []Option {
	var out []Option
	for _, o := range in {
		out = append(out, Option{Name: o.GetName(), Value: string(o.GetValue())})
	}
	return out
}

func configToPB(c Config) *pb.StartRequest {
	return &pb.StartRequest{
		Mode: int32(c.Mode), Cluster: c.Cluster, ConfFile: c.ConfFile, Name: c.Name,
		CephOptions: optionsToPB(c.CephOptions), Settings: c.Settings,
	}
}

func configFromPB(r *pb.StartRequest) Config {
	return Config{
		Mode: Mode(r.GetMode()), Cluster: r.GetCluster(), ConfFile: r.GetConfFile(), Name: r.GetName(),
		CephOptions: optionsFromPB(r.GetCephOptions()), Settings: r.GetSettings(),
	}
}

func infoToPB(i Info) *pb.StartReply {
	return &pb.StartReply{
		Kind: i.Kind, CephVersion: i.CephVersion, CephRelease: i.CephRelease, GitVersion: i.GitVersion,
		InstanceId: i.InstanceID, Fsid: i.FSID,
		AdminSocket: i.AdminSocket, LogFile: i.LogFile, PidFile: i.PidFile, RunDir: i.RunDir,
		AdminSocketMode: i.AdminSocketMode,
	}
}

func infoFromPB(r *pb.StartReply) Info {
	return Info{
		Kind: r.GetKind(), CephVersion: r.GetCephVersion(), CephRelease: r.GetCephRelease(), GitVersion: r.GetGitVersion(),
		InstanceID: r.GetInstanceId(), FSID: r.GetFsid(),
		AdminSocket: r.GetAdminSocket(), LogFile: r.GetLogFile(), PidFile: r.GetPidFile(), RunDir: r.GetRunDir(),
		AdminSocketMode: r.GetAdminSocketMode(),
	}
}

func eventToPB(e Event) *pb.Event {
	return &pb.Event{
		Kind: int32(e.Kind), Domain: e.Domain, Unit: []byte(e.Unit), Instance: e.Instance,
		Signature: []byte(e.Spec.Signature), Help: e.Spec.Help,
		LoadBytes: e.Load.Bytes, LoadLag: int64(e.Load.Lag),
	}
}

func eventFromPB(e *pb.Event) Event {
	return Event{
		Kind: EventKind(e.GetKind()), Domain: e.GetDomain(), Unit: string(e.GetUnit()), Instance: e.GetInstance(),
		Spec: CommandSpec{Signature: string(e.GetSignature()), Help: e.GetHelp()},
		Load: Load{Bytes: e.GetLoadBytes(), Lag: time.Duration(e.GetLoadLag())},
	}
}

func mappingToPB(m Mapping) *pb.Mapping {
	out := &pb.Mapping{Unit: []byte(m.Unit), Instance: m.Instance, Purging: m.Purging}
	if !m.LastShuffled.IsZero() {
		out.LastShuffled, out.Shuffled = m.LastShuffled.UnixNano(), true
	}
	return out
}

func mappingFromPB(m *pb.Mapping) Mapping {
	out := Mapping{Unit: string(m.GetUnit()), Instance: m.GetInstance(), Purging: m.GetPurging()}
	if m.GetShuffled() {
		out.LastShuffled = time.Unix(0, m.GetLastShuffled())
	}
	return out
}

func commandToPB(c Command) (*pb.CallRequest, error) {
	args, err := json.Marshal(c.Args)
	if err != nil {
		return nil, Errorf(syscall.EINVAL, "arguments of %q: %v", c.Prefix, err)
	}
	return &pb.CallRequest{Prefix: c.Prefix, Args: args, Input: c.Input}, nil
}

func commandFromPB(r *pb.CallRequest) (Command, error) {
	c := Command{Prefix: r.GetPrefix(), Input: r.GetInput()}
	if len(r.GetArgs()) > 0 {
		if err := json.Unmarshal(r.GetArgs(), &c.Args); err != nil {
			return Command{}, Errorf(syscall.EINVAL, "arguments of %q: %v", c.Prefix, err)
		}
	}
	return c, nil
}

func loggerToPB(l Logger) *pb.Logger {
	out := &pb.Logger{Name: l.Name, Labels: optionsToPB(l.Labels)}
	for _, c := range l.Counters {
		out.Counters = append(out.Counters, &pb.Counter{
			Name: c.Name, Type: int32(c.Type), Description: c.Description, Nick: c.Nick,
			Priority: int32(c.Priority), Bytes: c.Bytes, Value: c.Value, U64: c.U64, Count: c.Count, Sum: c.Sum,
		})
	}
	return out
}

func loggerFromPB(l *pb.Logger) Logger {
	out := Logger{Name: l.GetName(), Labels: optionsFromPB(l.GetLabels())}
	for _, c := range l.GetCounters() {
		out.Counters = append(out.Counters, Counter{
			Name: c.GetName(), Type: CounterType(c.GetType()), Description: c.GetDescription(), Nick: c.GetNick(),
			Priority: int(c.GetPriority()), Bytes: c.GetBytes(), Value: c.GetValue(), U64: c.GetU64(), Count: c.GetCount(), Sum: c.GetSum(),
		})
	}
	return out
}
