package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
)

// errNoLogin: broker.yaml has no login.
var errNoLogin = status.Error(codes.Unimplemented, "nobody logs in at this broker: its broker.yaml has no login")

// LoginInfo says where people sign in.
func (x exchangeService) LoginInfo(ctx context.Context, _ *api.LoginInfoRequest) (*api.LoginInfoResponse, error) {
	if err := x.s.takeSource(ctx, x.s.cfg.Broker.CountLoginRefused); err != nil {
		return nil, x.s.loginStatus(ctx, err)
	}
	l := x.s.settings.Load().login
	if l == nil {
		return nil, errNoLogin
	}
	return &api.LoginInfoResponse{Issuer: l.Issuer, ClientId: l.ClientID, Scopes: l.Scopes, RedirectUri: l.RedirectURI, Ca: l.CA}, nil
}

// Login gives a person X509-SVIDs for what their provider says of them.
func (x exchangeService) Login(ctx context.Context, m *api.LoginRequest) (*api.LoginResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	response, err := x.s.login(ctx, m)
	if err != nil {
		return nil, x.s.loginStatus(ctx, err)
	}
	return response, nil
}

// takeSource bounds how often an address asks, and tells of who asks more.
func (s *Server) takeSource(ctx context.Context, refused func(string)) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return errors.New("a call without a peer")
	}
	if wait, ok := s.sources.take(addressOf(p.Addr.String())); !ok {
		refused("too many of one address")
		return slowDown(wait)
	}
	return nil
}

func (s *Server) login(ctx context.Context, m *api.LoginRequest) (*api.LoginResponse, error) {
	if err := s.takeSource(ctx, s.cfg.Broker.CountLoginRefused); err != nil {
		return nil, err
	}
	provider := s.settings.Load().login
	if provider == nil {
		return nil, errNoLogin
	}
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	key, err := publicKey(m.GetPublicKey())
	if err != nil {
		return nil, err
	}
	if m.GetTtl() < 0 || m.GetTtl() > int64(24*time.Hour/time.Second) {
		return nil, fmt.Errorf("%w: a life of %d seconds", broker.ErrRequest, m.GetTtl())
	}
	spki, err := x509.MarshalPKIXPublicKey(key) // in one form, whatever was sent
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	l, err := provider.Verify(ctx, []byte(m.GetIdToken()), api.LoginNonce(s.cfg.TrustDomain.Name(), spki))
	if err != nil {
		if errors.Is(err, join.ErrEvidence) {
			s.cfg.Broker.CountLoginRefused("ID token refused")
		}
		return nil, err
	}
	subject := strings.Join(l.User.Get("user.sub"), " ")
	if wait, ok := s.callers.take("user " + subject); !ok {
		return nil, slowDown(wait)
	}
	l.Key, l.TTL = key, time.Duration(m.GetTtl())*time.Second
	svids, denial, err := s.cfg.Broker.Login(ctx, l)
	if err != nil {
		return nil, err
	}
	if denial != nil {
		return nil, deniedLogin(denial, l.TTL)
	}
	return s.loggedIn(svids)
}

func (s *Server) loggedIn(svids []broker.X509SVID) (*api.LoginResponse, error) {
	document, ok := s.cfg.Authority.Document()
	if !ok {
		return nil, errors.New("no bundle yet")
	}
	response := &api.LoginResponse{Bundle: document}
	for _, svid := range svids {
		one := &api.PersonSVID{Identity: svid.Identity, SpiffeId: svid.ID.String(), Hint: svid.Hint}
		if role, ok := s.roleOf(svid.ID); ok {
			one.Role = role.Name
		}
		for _, c := range svid.Chain {
			one.Chain = append(one.Chain, c.Raw)
		}
		response.Svids = append(response.Svids, one)
	}
	return response, nil
}

// deniedLogin says what a person may know: not which rule, but what they can do.
func deniedLogin(d *broker.Denial, asked time.Duration) error {
	quote := "; quote " + d.Record + " to the operator of the broker"
	switch d.Code {
	case broker.DeniedSpent:
		return status.Error(codes.Unauthenticated, "this sign-in was used before: sign in again"+quote)
	case broker.DeniedLife:
		return status.Error(codes.PermissionDenied, (&identity.LifeError{Asked: asked, Least: d.Least, Most: d.Most}).Error()+quote)
	}
	return status.Error(codes.PermissionDenied, "you are known, but there is no identity for you here"+quote)
}

// loginStatus is what a person is told. Of their own token they learn what is
// wrong with it: nothing of ours is in that.
func (s *Server) loginStatus(ctx context.Context, err error) error {
	var f *failure
	switch {
	case errors.As(err, &f):
		text := f.text
		if f.after > 0 {
			text = fmt.Sprintf("%s; try again in %ds", text, seconds1(f.after))
		}
		return status.Error(f.grpc, text)
	case errors.Is(err, join.ErrEvidence):
		s.cfg.Log.InfoContext(ctx, "login refused", "error", err)
		return status.Error(codes.Unauthenticated, strings.ReplaceAll("the sign-in is refused: "+strings.TrimPrefix(err.Error(), join.ErrEvidence.Error()), ": : ", ": "))
	}
	if _, made := err.(interface{ GRPCStatus() *status.Status }); made {
		return err
	}
	return statusOf(ctx, s.cfg.Log, false, err)
}
