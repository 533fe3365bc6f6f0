package local

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
)

// Bounds of a request for one-shot SVIDs.
const (
	maxLife      = 365 * 24 * time.Hour
	maxAudiences = 16
	maxAudience  = 1024
)

// An Issuer is what SVIDs needs of an agent.
type Issuer interface {
	X509Once(ctx context.Context, p *caller.Process, ttl time.Duration) (agent.Update, error)
	JWTOnce(ctx context.Context, p *caller.Process, audiences []string, id spiffeid.ID, ttl time.Duration) ([]agent.JWTSVID, error)
}

// SVIDs answers api.SVIDs. Register it beside the Service.
type SVIDs struct {
	api.UnsafeSVIDsServer
	agent Issuer
	log   *slog.Logger
}

// NewSVIDs returns SVIDs; a nil log discards.
func NewSVIDs(a Issuer, log *slog.Logger) *SVIDs {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &SVIDs{agent: a, log: log}
}

// X509 gives the caller X509-SVIDs of the life that it asks for. It is
// PermissionDenied where the broker gives none of such a life.
func (s *SVIDs) X509(ctx context.Context, r *api.SVIDsX509Request) (*api.SVIDsX509Response, error) {
	p, ttl, err := onceAsker(ctx, r.GetTtl())
	if err != nil {
		return nil, err
	}
	u, err := s.agent.X509Once(ctx, p, ttl)
	if err != nil {
		return nil, agent.StatusOf(ctx, s.log, err)
	}
	m := &api.SVIDsX509Response{Bundles: make(map[string][]byte, len(u.Bundles))}
	for td, b := range u.Bundles {
		if der := derOf(b.X509Authorities); len(der) > 0 {
			m.Bundles[td.IDString()] = der
		}
	}
	for _, v := range u.SVIDs {
		m.Svids = append(m.Svids, &api.SVIDsX509Response_SVID{SpiffeId: v.ID.String(), Hint: v.Hint, Chain: derOf(v.Certificates), Key: v.KeyDER})
	}
	return m, nil
}

// JWT gives the caller JWT-SVIDs of the life that it asks for. Its errors are
// X509's.
func (s *SVIDs) JWT(ctx context.Context, r *api.SVIDsJWTRequest) (*api.SVIDsJWTResponse, error) {
	if n := len(r.GetAudiences()); n == 0 || n > maxAudiences {
		return nil, status.Errorf(codes.InvalidArgument, "audiences: 1 to %d are taken", maxAudiences)
	}
	for _, a := range r.GetAudiences() {
		if a == "" || len(a) > maxAudience {
			return nil, status.Errorf(codes.InvalidArgument, "audiences: one has 1 to %d bytes", maxAudience)
		}
	}
	var id spiffeid.ID
	if r.GetSpiffeId() != "" {
		var err error
		if id, err = spiffeid.FromString(r.GetSpiffeId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
		}
	}
	p, ttl, err := onceAsker(ctx, r.GetTtl())
	if err != nil {
		return nil, err
	}
	svids, err := s.agent.JWTOnce(ctx, p, r.GetAudiences(), id, ttl)
	if err != nil {
		return nil, agent.StatusOf(ctx, s.log, err)
	}
	m := &api.SVIDsJWTResponse{}
	for _, v := range svids {
		m.Svids = append(m.Svids, &api.SVIDsJWTResponse_SVID{SpiffeId: v.ID.String(), Hint: v.Hint, Token: v.Token, Expires: v.Expires.Unix()})
	}
	return m, nil
}

// onceAsker is who asks, if a life is asked for: who wants the identity's asks
// the Workload API.
func onceAsker(ctx context.Context, seconds int64) (*caller.Process, time.Duration, error) {
	if seconds <= 0 || seconds > int64(maxLife/time.Second) {
		return nil, 0, status.Error(codes.InvalidArgument, "ttl: a life in seconds is wanted")
	}
	p, err := caller.Required(ctx)
	return p, time.Duration(seconds) * time.Second, err
}

// derOf is certificates one after the other (SPIFFE Workload API §5.1).
func derOf(certs []*x509.Certificate) (der []byte) {
	for _, c := range certs {
		der = append(der, c.Raw...)
	}
	return der
}
