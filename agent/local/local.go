// Package local serves credentials to the cloud SDKs of this node: a gRPC
// service on the workload socket, and Surfaces, which are the files and
// endpoints that unmodified SDKs look for.
//
// On the Unix socket the caller is the kernel's word. Loopback TCP gives no
// caller: there a surface is served only where its protocol carries an
// unguessable secret, which only the attested workload is handed, and only to
// sockets of its user. Web pages that reach loopback are kept out by the Host,
// Origin and Referer headers. A failure is an error in the surface's own form,
// never an empty credential. Nothing looks like a cloud's metadata server:
// that protocol carries no secret, so whoever asks would be served.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// An Agent is what this package needs of one.
type Agent interface {
	Exchange(ctx context.Context, p *caller.Process, target, claims string) (agent.Exchanged, error)
	TargetToken(ctx context.Context, p *caller.Process, target string, toFile bool) (agent.JWTSVID, agent.Target, error)
}

// Service answers api.Credentials. Register it on the Workload API's server,
// whose interceptors hold callers to its metadata.
type Service struct {
	api.UnsafeCredentialsServer
	agent Agent
	log   *slog.Logger
}

// NewService returns a Service; a nil log discards.
func NewService(a Agent, log *slog.Logger) *Service {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Service{agent: a, log: log}
}

// Fetch exchanges the caller's SVID at a target. It is PermissionDenied where
// no identity of the caller lists the target, FailedPrecondition where the
// provider refuses for good, and Unavailable where trying again may help.
func (s *Service) Fetch(ctx context.Context, r *api.FetchRequest) (*api.FetchResponse, error) {
	p, err := asker(ctx, r.GetTarget())
	if err != nil {
		return nil, err
	}
	if claims := r.GetClaims(); claims != "" && (len(claims) > exchangers.MaxClaims || claims[0] != '{' || !json.Valid([]byte(claims))) {
		return nil, status.Errorf(codes.InvalidArgument, "claims: a JSON object of at most %d bytes is wanted", exchangers.MaxClaims)
	}
	got, err := s.agent.Exchange(ctx, p, r.GetTarget(), r.GetClaims())
	if err != nil {
		return nil, fail(ctx, s.log, err)
	}
	return response(got)
}

// Wait is Fetch with patience. Its errors are Fetch's.
func (s *Service) Wait(r *api.FetchRequest, stream grpc.ServerStreamingServer[api.WaitResponse]) error {
	ctx := exchangers.WithPatience(stream.Context(), 0, func(p exchangers.Progress) {
		_ = stream.Send(&api.WaitResponse{Step: &api.WaitResponse_Progress{Progress: &api.Progress{
			Text: p.String(), Attempt: uint32(p.Attempt), Next: p.Next.Unix(), Until: p.Until.Unix(),
		}}}) // who has left ends the context too
	})
	m, err := s.Fetch(ctx, r)
	if err != nil {
		return err
	}
	return stream.Send(&api.WaitResponse{Step: &api.WaitResponse_Credential{Credential: m}})
}

// Token hands out the caller's JWT-SVID for a target. Its errors are Fetch's.
func (s *Service) Token(ctx context.Context, r *api.TokenRequest) (*api.TokenResponse, error) {
	p, err := asker(ctx, r.GetTarget())
	if err != nil {
		return nil, err
	}
	svid, target, err := s.agent.TargetToken(ctx, p, r.GetTarget(), r.GetToFile())
	if err != nil {
		return nil, fail(ctx, s.log, err)
	}
	return token(svid, target)
}

func token(svid agent.JWTSVID, target agent.Target) (*api.TokenResponse, error) {
	wire, err := read(target)
	if err != nil {
		return nil, err
	}
	return &api.TokenResponse{
		Token: svid.Token, Expires: svid.Expires.Unix(), SpiffeId: svid.ID.String(),
		Flow: target.Flow, Settings: target.Settings, Endpoint: wire.Endpoint, CaFile: wire.CAFile,
	}, nil
}

// asker is who asks, if it asks for what could be a target.
func asker(ctx context.Context, target string) (*caller.Process, error) {
	if target == "" || len(target) > 253 {
		return nil, status.Error(codes.InvalidArgument, "target: a target's name is wanted")
	}
	return caller.Required(ctx)
}

// fail is an agent's error with the status that Fetch tells of.
func fail(ctx context.Context, log *slog.Logger, err error) error {
	var refused *exchangers.Error
	if errors.Is(err, agent.ErrDenied) || !errors.As(err, &refused) {
		return agent.StatusOf(ctx, log, err)
	}
	meta := map[string]string{"provider": refused.Provider, "class": string(refused.Class)}
	if refused.Class == exchangers.Config {
		return agent.WithInfo(codes.FailedPrecondition, err.Error(), agent.TargetRefused, meta)
	}
	return agent.WithInfo(codes.Unavailable, err.Error(), agent.TargetRefused, meta)
}

func read(t agent.Target) (wire exchangers.Wire, err error) {
	if err := json.Unmarshal(t.Settings, &wire); err != nil {
		return wire, status.Error(codes.Internal, "the target's settings cannot be read")
	}
	return wire, nil
}

func response(got agent.Exchanged) (*api.FetchResponse, error) {
	wire, err := read(got.Target)
	if err != nil {
		return nil, err
	}
	c := got.Credential
	m := &api.FetchResponse{
		Expires: c.Expires.Unix(), SpiffeId: got.ID.String(),
		Flow: got.Target.Flow, Settings: got.Target.Settings, Endpoint: wire.Endpoint, CaFile: wire.CAFile,
	}
	switch {
	case c.AWS != nil && c.AWS.AccessKeyID != "" && c.AWS.SecretAccessKey.Reveal() != "":
		m.Credential = &api.FetchResponse_Aws{Aws: &api.AWS{
			AccessKeyId: c.AWS.AccessKeyID, SecretAccessKey: c.AWS.SecretAccessKey.Reveal(), SessionToken: c.AWS.SessionToken.Reveal(),
			Region: c.AWS.Region, AssumedRole: c.AWS.AssumedRole,
		}}
	case c.Bearer != nil && c.Bearer.Token.Reveal() != "":
		bearer := &api.Bearer{Token: c.Bearer.Token.Reveal()}
		if v := c.Bearer.Vault; v != nil {
			bearer.VaultAddress, bearer.VaultNamespace = v.Address, v.Namespace
		}
		m.Credential = &api.FetchResponse_Bearer{Bearer: bearer}
	default:
		return nil, status.Error(codes.Unavailable, "the exchange gave nothing")
	}
	return m, nil
}
