// Package local serves credentials to the cloud SDKs of this node: a gRPC
// service on the workload socket, and the endpoints that unmodified SDKs look
// for.
//
// On the Unix socket the caller is the kernel's word. Loopback TCP gives no
// caller: there a surface is served only where its protocol carries an
// unguessable secret, which only the attested workload is handed. Web pages
// that reach loopback are kept out by the Host, Origin and Referer headers.
// A failure is an error in the surface's own form, never an empty credential.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// An Agent is what this package needs of one.
type Agent interface {
	Exchange(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, agent.Target, error)
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
	if r.GetTarget() == "" || len(r.GetTarget()) > 253 {
		return nil, status.Error(codes.InvalidArgument, "target: a target's name is wanted")
	}
	p, ok := caller.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.PermissionDenied, "the caller cannot be told")
	}
	credential, target, err := s.agent.Exchange(ctx, p, r.GetTarget())
	if err != nil {
		return nil, s.fail(ctx, err)
	}
	return response(credential, target)
}

func (s *Service) fail(ctx context.Context, err error) error {
	var refused *exchangers.Error
	switch {
	case errors.Is(err, agent.ErrDenied):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.As(err, &refused) && refused.Class == exchangers.Config:
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.As(err, &refused), errors.Is(err, agent.ErrUnavailable):
		return status.Error(codes.Unavailable, err.Error())
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	}
	s.log.WarnContext(ctx, "exchange failed", "error", err)
	return status.Error(codes.Unavailable, "the exchange failed: the agent's log says why")
}

func response(c exchangers.Credential, t agent.Target) (*api.FetchResponse, error) {
	var wire exchangers.Wire
	if err := json.Unmarshal(t.Settings, &wire); err != nil {
		return nil, status.Error(codes.Internal, "the target's settings cannot be read")
	}
	m := &api.FetchResponse{Expires: c.Expires.Unix(), Flow: t.Flow, Endpoint: wire.Endpoint, CaFile: wire.CAFile}
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
