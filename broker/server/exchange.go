package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"encoding/json"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/exchangers"
)

// What RFC 8693 §3 names, and what it leaves to us.
const (
	typePrefix     = "urn:ietf:params:oauth:token-type:"
	typeJWT        = typePrefix + "jwt"
	typeAccess     = typePrefix + "access_token"
	typeAWS        = "urn:credence:token-type:aws-session" // what credential_process prints
	grantExchange  = "urn:ietf:params:oauth:grant-type:token-exchange"
	targetResource = "urn:credence:target:"
)

const (
	exchangeTime = 8 * time.Second // of one exchange, whole: the listener cuts it off at 10
	maxExchanges = 64              // at once
)

// A question is what is asked of the token endpoint, over HTTP or gRPC.
type question struct {
	audiences []string
	resource  string
	scopes    []string
	kind      string // requested_token_type; empty: what there is
}

// An answer is what it gives.
type answer struct {
	token, kind, usage, scope string
	expires                   time.Time
}

// A failure is a refusal in OAuth's words (RFC 6749 §5.2, RFC 8693 §2.2.2).
type failure struct {
	status int // of HTTP
	grpc   codes.Code
	code   string
	text   string
	after  time.Duration // when to try again
}

func (f *failure) Error() string { return f.code + ": " + f.text }

func invalid(format string, args ...any) *failure {
	return &failure{400, codes.InvalidArgument, "invalid_request", fmt.Sprintf(format, args...), 0}
}

func unavailable(text string, after time.Duration) *failure {
	return &failure{503, codes.Unavailable, "temporarily_unavailable", text, after}
}

func slowDown(after time.Duration) *failure {
	return &failure{429, codes.ResourceExhausted, "slow_down", "too many requests", after}
}

// check refuses what nobody could be given.
func (s *Server) check(q question) error {
	target, is := strings.CutPrefix(q.resource, targetResource)
	wrong := func(code, format string, args ...any) error {
		return &failure{400, codes.InvalidArgument, code, fmt.Sprintf(format, args...), 0}
	}
	switch {
	case (len(q.audiences) == 0) == (q.resource == ""):
		return wrong("invalid_request", "give audience, or resource: one of the two")
	case q.resource != "" && (!is || target == "" || len(target) > 63):
		return wrong("invalid_target", "resource is %sNAME", targetResource)
	case len(q.audiences) > broker.MaxAudiences:
		return wrong("invalid_request", "more than %d audiences", broker.MaxAudiences)
	case slices.ContainsFunc(q.audiences, func(a string) bool { return a == "" || len(a) > 1024 }):
		return wrong("invalid_target", "an audience has 1 to 1024 bytes")
	case slices.Contains(q.audiences, s.cfg.Policy.TokenEndpoint):
		return wrong("invalid_target", "what is given here is no evidence: it is not for this endpoint")
	case len(q.scopes) > 0 && q.resource == "":
		return wrong("invalid_scope", "a JWT-SVID has no scopes")
	case len(q.scopes) > 32 || slices.ContainsFunc(q.scopes, func(one string) bool { return len(one) > 1024 }):
		return wrong("invalid_scope", "at most 32 scopes of 1024 bytes are taken")
	case q.resource == "" && q.kind != "" && q.kind != typeJWT:
		return wrong("invalid_request", "requested_token_type: for an audience there is %s", typeJWT)
	case q.resource != "" && q.kind != "" && q.kind != typeAccess && q.kind != typeAWS:
		return wrong("invalid_request", "requested_token_type: for a target there is %s, or %s", typeAccess, typeAWS)
	case q.resource != "" && s.cfg.Exchanger == nil:
		return wrong("invalid_target", "no target is exchanged here: its node's agent does")
	}
	return nil
}

// exchange answers a question for evidence that verifies. The denials' reasons
// stand in the record that the caller may quote, and nowhere else.
func (s *Server) exchange(ctx context.Context, e broker.Evidence, q question) (answer, error) {
	if wait, ok := s.callers.take(e.ID.String()); !ok {
		return answer{}, slowDown(wait)
	}
	if td := e.ID.TrustDomain(); td != s.cfg.TrustDomain {
		if wait, ok := s.domains.take(td.Name()); !ok {
			return answer{}, slowDown(wait)
		}
	}
	r := broker.ExchangeRequest{Evidence: e, Audiences: q.audiences, Target: strings.TrimPrefix(q.resource, targetResource)}
	if why := s.admitted(e); why != "" {
		denial, err := s.cfg.Broker.Refuse(ctx, r, broker.DeniedPeer, why)
		return answer{}, errors.Join(err, denied(denial))
	}
	if q.resource != "" {
		return s.exchangeAt(ctx, r, q)
	}
	svid, denial, err := s.cfg.Broker.Exchange(ctx, r)
	if err = errors.Join(err, denied(denial)); err != nil {
		return answer{}, err
	}
	return answer{token: svid.Token, kind: typeJWT, usage: "Bearer", expires: svid.Expires}, nil
}

// denied is a Denial in OAuth's words: what policy does not grant is the
// target's or audience's fault, the rest the subject token's.
func denied(d *broker.Denial) error {
	switch {
	case d == nil:
		return nil
	case d.Code == broker.DeniedByPolicy:
		return &failure{400, codes.PermissionDenied, "invalid_target", "denied; quote " + d.Record + " to the operator of the broker", 0}
	}
	return &failure{400, codes.Unauthenticated, "invalid_request", "the subject_token is refused; quote " + d.Record + " to the operator of the broker", 0}
}

// exchangeAt exchanges at a target's provider, for callers who have no agent
// that does. The credential goes to them and is kept nowhere.
func (s *Server) exchangeAt(ctx context.Context, r broker.ExchangeRequest, q question) (answer, error) {
	var got exchangers.Credential
	denial, err := s.cfg.Broker.ExchangeAt(ctx, r, func(ctx context.Context, l broker.Lent) (t broker.Traded, err error) {
		got, err = s.trade(ctx, l, q.scopes)
		return traded(got, err), err
	})
	if err = errors.Join(err, denied(denial)); err != nil {
		return answer{}, err
	}
	a, err := answerOf(got)
	if err == nil && q.kind != "" && q.kind != a.kind {
		err = invalid("requested_token_type: this target gives %s", a.kind)
	}
	return a, err
}

func (s *Server) trade(ctx context.Context, l broker.Lent, scopes []string) (exchangers.Credential, error) {
	x, err := s.cfg.Exchanger(l.Target, l.Ends.Sub(s.cfg.Now()), scopes)
	switch {
	case errors.Is(err, exchangers.ErrScope):
		return exchangers.Credential{}, &failure{400, codes.InvalidArgument, "invalid_scope", err.Error(), 0}
	case errors.Is(err, exchangers.ErrLife):
		return exchangers.Credential{}, &failure{400, codes.FailedPrecondition, "invalid_target", err.Error() + wayOut, 0}
	case err != nil:
		return exchangers.Credential{}, err
	}
	got, err := x.Exchange(ctx, lent{l})
	if err != nil {
		return exchangers.Credential{}, err
	}
	return got, got.Check(s.cfg.Now())
}

// wayOut is for credentials that a short token cannot get.
const wayOut = "; show an X509-SVID that lives longer (gRPC, on the agents' listener), or ask an agent"

// traded is what the record has of it.
func traded(c exchangers.Credential, err error) broker.Traded {
	var refusal *exchangers.Error
	switch {
	case err == nil:
		return broker.Traded{Expires: c.Expires, RequestID: exchangers.Clean(c.RequestID)}
	case errors.As(err, &refusal):
		return broker.Traded{Code: exchangers.Clean(refusal.Code), Class: string(refusal.Class), RequestID: exchangers.Clean(refusal.RequestID)}
	}
	return broker.Traded{Code: "local"}
}

// lent are the SVIDs of an exchange at a provider.
type lent struct{ l broker.Lent }

func (l lent) ID() spiffeid.ID                         { return l.l.ID }
func (l lent) JWT(ctx context.Context) (string, error) { return l.l.JWT(ctx) }

func (l lent) X509(ctx context.Context) (*x509svid.SVID, error) {
	chain, key, err := l.l.X509(ctx)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: l.l.ID, Certificates: chain, PrivateKey: key}, nil
}

// awsSession is what AWS's tools read from a credential_process, version 1.
type awsSession struct {
	Version         int
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      string
}

func answerOf(c exchangers.Credential) (answer, error) {
	switch {
	case c.AWS != nil:
		text, err := json.Marshal(awsSession{
			1, c.AWS.AccessKeyID, c.AWS.SecretAccessKey.Reveal(), c.AWS.SessionToken.Reveal(), c.Expires.UTC().Format(time.RFC3339),
		})
		return answer{token: string(text), kind: typeAWS, usage: "N_A", expires: c.Expires}, err
	case c.Bearer != nil:
		a := answer{token: c.Bearer.Token.Reveal(), kind: typeAccess, usage: "Bearer", scope: strings.Join(c.Bearer.Scopes, " "), expires: c.Expires}
		if c.Bearer.Vault != nil {
			a.usage = "N_A" // its header is its own
		}
		return a, nil
	}
	return answer{}, errors.New("a credential of no kind")
}

// failureOf is the one place where errors of an exchange become a refusal in
// OAuth's words. What may help is told; what is ours is logged, under an ID to
// quote.
func (s *Server) failureOf(ctx context.Context, err error) *failure {
	var f *failure
	var token *badToken
	var refusal *exchangers.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &token):
		return invalid("%s", token.Error())
	}
	id := quoteID()
	s.cfg.Log.WarnContext(ctx, "exchange failed", "quote", id, "error", err)
	quote := "; quote " + id + " to the operator of the broker"
	switch {
	case errors.Is(err, join.ErrEvidence):
		return &failure{400, codes.Unauthenticated, "invalid_request", "the subject_token is refused" + quote, 0}
	case errors.Is(err, broker.ErrOutlives):
		return &failure{400, codes.FailedPrecondition, "invalid_target", broker.ErrOutlives.Error() + wayOut + quote, 0}
	case errors.As(err, &refusal) && refusal.Class == exchangers.Config:
		return &failure{400, codes.FailedPrecondition, "invalid_target", fmt.Sprintf("%s refused (%.100s)%s", refusal.Provider, exchangers.Clean(refusal.Code), quote), 0}
	case errors.As(err, &refusal):
		return unavailable(fmt.Sprintf("%s: %.100s%s", refusal.Provider, exchangers.Clean(refusal.Code), quote), max(refusal.RetryAfter, time.Second))
	case errors.Is(err, identity.ErrDenied):
		return &failure{400, codes.PermissionDenied, "invalid_target", "denied" + quote, 0}
	case errors.Is(err, broker.ErrRequest):
		return invalid("%s", "the request is refused"+quote)
	case errors.Is(err, broker.ErrConflict), errors.Is(err, broker.ErrBehind), errors.Is(err, audit.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return unavailable("try again with a new subject_token"+quote, time.Second)
	}
	return &failure{500, codes.Internal, "server_error", "the broker failed" + quote, 0}
}

// enter takes a place among the exchanges under way. There is none to wait for:
// strangers would hold them all.
func (s *Server) enter() (leave func(), err error) {
	select {
	case s.exchanging <- struct{}{}:
		return func() { <-s.exchanging }, nil
	default:
		return nil, unavailable("too many exchanges at once", time.Second)
	}
}

type exchangeService struct {
	api.UnsafeExchangeServer
	s *Server
}

// Exchange takes the X509-SVID of the connection as evidence (the same as POST
// /token for a JWT-SVID).
func (x exchangeService) Exchange(ctx context.Context, m *api.ExchangeTokenRequest) (*api.ExchangeTokenResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	a, err := x.exchange(ctx, m)
	if err != nil {
		f := x.s.failureOf(ctx, err)
		text := f.Error()
		if f.after > 0 {
			text = fmt.Sprintf("%s; try again in %ds", text, seconds1(f.after))
		}
		return nil, status.Error(f.grpc, text)
	}
	return &api.ExchangeTokenResponse{
		AccessToken: a.token, IssuedTokenType: a.kind, TokenType: a.usage, Scope: a.scope, ExpiresIn: a.in(x.s.cfg.Now()),
	}, nil
}

func (x exchangeService) exchange(ctx context.Context, m *api.ExchangeTokenRequest) (answer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return answer{}, errors.New("a call without a peer")
	}
	if wait, ok := x.s.sources.take(addressOf(p.Addr.String())); !ok {
		x.s.cfg.Broker.CountRefused("too many of one address")
		return answer{}, slowDown(wait)
	}
	leave, err := x.s.enter()
	if err != nil {
		return answer{}, err
	}
	defer leave()
	q := question{audiences: m.GetAudiences(), resource: m.GetResource(), scopes: m.GetScopes(), kind: m.GetRequestedTokenType()}
	if err := x.s.check(q); err != nil {
		return answer{}, err
	}
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	e, err := x.s.verifiedX509(info.State.PeerCertificates)
	if err != nil {
		x.s.cfg.Broker.CountRefused("X509-SVID refused")
		return answer{}, err
	}
	return x.s.exchange(ctx, e, q)
}

// in is for how many whole seconds the token is good.
func (a answer) in(now time.Time) int64 { return max(int64(a.expires.Sub(now)/time.Second), 0) }

// seconds1 is a wait in whole seconds, as Retry-After has it.
func seconds1(d time.Duration) int64 { return max(int64((d+time.Second-1)/time.Second), 1) }
