package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

const (
	clientCredentials = "client_credentials"
	jwtBearer         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	tokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
	assertionTypes    = "urn:ietf:params:oauth:client-assertion-type:"
	tokenTypes        = "urn:ietf:params:oauth:token-type:"
)

// takes are the parameters of each grant; resource and audience may stand more
// than once.
var takes = map[string][]string{
	clientCredentials: {"client_id", "client_assertion", "client_assertion_type", "scope", "resource"},
	jwtBearer:         {"client_id", "client_assertion", "client_assertion_type", "assertion", "scope", "resource"},
	tokenExchange: {"client_id", "client_assertion", "client_assertion_type", "subject_token", "subject_token_type", "requested_token_type",
		"scope", "resource", "audience"},
}

var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"}

// A refusal is an error of RFC 6749 §5.2.
type refusal struct {
	status int
	code   string
	text   string
	why    error // for the sandbox's log only
}

func bad(code, text string, why error) *refusal {
	return &refusal{http.StatusBadRequest, code, text, why}
}

func badClient(text string, why error) *refusal {
	return &refusal{http.StatusUnauthorized, "invalid_client", text, why}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // the client may be gone; nobody else to tell
}

func writeError(w http.ResponseWriter, e *sandbox.Entry, no *refusal) {
	e.Code, e.Reason = no.code, no.text
	if no.why != nil {
		e.Reason = no.why.Error()
	}
	writeJSON(w, no.status, map[string]string{"error": no.code, "error_description": no.text})
}

func tokenFault(w http.ResponseWriter, status int) {
	code := map[int]string{http.StatusTooManyRequests: "slow_down", http.StatusServiceUnavailable: "temporarily_unavailable"}[status]
	if code == "" {
		code = "server_error"
	}
	writeJSON(w, status, map[string]string{"error": code, "error_description": http.StatusText(status)})
}

func whoamiFault(w http.ResponseWriter, status int) { tokenFault(w, status) }

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, e *sandbox.Entry) {
	w.Header().Set("X-Request-Id", e.ID)
	if r.Method == http.MethodGet && r.URL.Path == "/.well-known/oauth-authorization-server" {
		writeJSON(w, http.StatusOK, s.metadata(r))
		return
	}
	out, no := s.token(r, e)
	if no != nil {
		writeError(w, e, no)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

// metadata names the server where it is: what it is called in tokens is told to
// clients by its operator.
func (s *Server) metadata(r *http.Request) map[string]any {
	base := "https://" + r.Host
	return map[string]any{
		"issuer": base, "token_endpoint": base + "/token", "grant_types_supported": []string{clientCredentials, jwtBearer, tokenExchange},
		"response_types_supported":                         []string{},
		"token_endpoint_auth_methods_supported":            []string{"private_key_jwt", "none"},
		"token_endpoint_auth_signing_alg_values_supported": algorithms,
	}
}

func (s *Server) token(r *http.Request, e *sandbox.Entry) (map[string]any, *refusal) {
	if r.URL.Path != "/token" {
		return nil, &refusal{http.StatusNotFound, "not_found", "POST /token is what there is", nil}
	}
	if r.Method != http.MethodPost {
		return nil, &refusal{http.StatusMethodNotAllowed, "invalid_request", "POST is wanted", nil}
	}
	f, no := readForm(r, e)
	if no != nil {
		return nil, no
	}
	client, no := s.client(r.Context(), f)
	if no != nil {
		return nil, no
	}
	switch f.Get("grant_type") {
	case clientCredentials:
		if client == nil {
			return nil, badClient("a client assertion is wanted", nil)
		}
		return s.grant(*client, f, "")
	case jwtBearer:
		g, no := s.present(r.Context(), f, "assertion", e)
		if no != nil {
			return nil, no
		}
		if id := f.Get("client_id"); id != "" && id != g.ClientID {
			return nil, bad("invalid_grant", "the assertion is not this client's", nil)
		}
		return s.grant(g, f, "")
	}
	if client == nil && s.cfg.ClientAuthentication {
		return nil, badClient("a client assertion is wanted", nil)
	}
	return s.exchange(r.Context(), f, e)
}

func (s *Server) exchange(ctx context.Context, f url.Values, e *sandbox.Entry) (map[string]any, *refusal) {
	if t := f.Get("subject_token_type"); t != tokenTypes+"jwt" && t != tokenTypes+"id_token" {
		return nil, bad("invalid_request", "subject_token_type: "+tokenTypes+"jwt is wanted", nil)
	}
	if t := f.Get("requested_token_type"); t != "" && t != tokenTypes+"access_token" {
		return nil, bad("invalid_request", "requested_token_type: "+tokenTypes+"access_token is what there is", nil)
	}
	g, no := s.present(ctx, f, "subject_token", e)
	if no != nil {
		return nil, no
	}
	if id := f.Get("client_id"); id != "" && id != g.ClientID && !f.Has("client_assertion") {
		return nil, badClient("client_id is not the subject's", nil)
	}
	return s.grant(g, f, tokenTypes+"access_token")
}

func readForm(r *http.Request, e *sandbox.Entry) (url.Values, *refusal) {
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return nil, bad("invalid_request", "parameters stand in the body", nil)
	}
	if r.Header.Get("Authorization") != "" {
		return nil, badClient("clients authenticate by assertion", nil)
	}
	b, err := sandbox.ReadBody(r, "application/x-www-form-urlencoded")
	if err != nil {
		return nil, bad("invalid_request", "a form is wanted", err)
	}
	f, err := url.ParseQuery(string(b))
	if err != nil {
		return nil, bad("invalid_request", "the form does not parse", err)
	}
	known, ok := takes[f.Get("grant_type")]
	if !ok {
		return nil, bad("unsupported_grant_type", "grant_type is missing, or none that there is", nil)
	}
	e.Fields = map[string]string{}
	for name, values := range f {
		many := name == "resource" || name == "audience"
		switch {
		case name != "grant_type" && !slices.Contains(known, name):
			return nil, bad("invalid_request", "parameter "+name+" is not known here", nil)
		case len(values) > 1 && !many || slices.Contains(values, ""):
			return nil, bad("invalid_request", "parameter "+name+" is empty, or stands twice", nil)
		case name != "assertion" && name != "client_assertion" && name != "subject_token":
			e.Fields[name] = strings.Join(values, " ")
		}
	}
	return f, nil
}

// client authenticates the client (RFC 7523 §2.2), or returns nil where none is
// named by more than its ID.
func (s *Server) client(ctx context.Context, f url.Values) (*Grant, *refusal) {
	if !f.Has("client_assertion") && !f.Has("client_assertion_type") {
		return nil, nil
	}
	if t := strings.TrimPrefix(f.Get("client_assertion_type"), assertionTypes); t != "jwt-bearer" && t != "jwt-spiffe" {
		return nil, badClient("client_assertion_type: "+assertionTypes+"jwt-bearer or jwt-spiffe is wanted", nil)
	}
	g, err := s.verify(ctx, f.Get("client_assertion"))
	switch {
	case err != nil:
		return nil, badClient("the client assertion is not valid", err)
	case g.ClientID == "":
		return nil, badClient("the client assertion's subject is no client", nil)
	case f.Has("client_id") && f.Get("client_id") != g.ClientID:
		return nil, badClient("client_id is not the client assertion's", nil)
	}
	return &g, nil
}

func (s *Server) present(ctx context.Context, f url.Values, parameter string, e *sandbox.Entry) (Grant, *refusal) {
	raw := f.Get(parameter)
	if raw == "" {
		return Grant{}, bad("invalid_request", "parameter "+parameter+" is missing", nil)
	}
	e.Token = sandbox.HashToken(raw)
	g, err := s.verify(ctx, raw)
	if err != nil {
		return g, bad("invalid_grant", "the "+parameter+" is not valid", err)
	}
	return g, nil
}

// verify checks a JWT (RFC 7523 §3) and returns what its subject may have. Its
// jti is spent last: what is refused for another reason stays good.
func (s *Server) verify(ctx context.Context, raw string) (Grant, error) {
	t, err := sandbox.ParseJWT(raw)
	if err != nil {
		return Grant{}, err
	}
	if !slices.Contains(algorithms, t.Algorithm) {
		return Grant{}, fmt.Errorf("alg %q", t.Algorithm)
	}
	g, err := s.find(t)
	if err != nil {
		return g, err
	}
	key, err := s.issuers.Key(ctx, g.Issuer, t.KeyID)
	if err == nil {
		err = key.Fits(t.Algorithm)
	}
	if err == nil {
		err = t.Verify(key.Public, t.Algorithm)
	}
	if err != nil {
		return g, err
	}
	if aud, err := t.Audiences(); err != nil || len(aud) != 1 || aud[0] != s.cfg.Identifier {
		return g, fmt.Errorf("aud %q, not %s alone", aud, s.cfg.Identifier)
	}
	exp, err := s.times(t)
	if err != nil {
		return g, err
	}
	jti, err := t.Text("jti")
	if err != nil || jti == "" {
		return g, errors.New("it has no jti")
	}
	return g, s.spend(g.Issuer+"\n"+jti, exp.Add(s.cfg.Skew))
}

func (s *Server) find(t *sandbox.JWT) (Grant, error) {
	iss, err1 := t.Text("iss")
	sub, err2 := t.Text("sub")
	if err := errors.Join(err1, err2); err != nil {
		return Grant{}, err
	}
	for _, g := range s.cfg.Grants {
		if g.Issuer == iss && g.Subject == sub {
			return g, nil
		}
	}
	return Grant{}, fmt.Errorf("nothing is granted to %q of %q", sub, iss)
}

func (s *Server) times(t *sandbox.JWT) (time.Time, error) {
	iat, err1 := t.Time("iat")
	exp, err2 := t.Time("exp")
	nbf, err3 := t.Time("nbf")
	if errors.Is(err3, sandbox.ErrNoClaim) {
		nbf, err3 = iat, nil
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return exp, err
	}
	now := s.now()
	switch {
	case exp.Sub(iat) > time.Hour || !exp.After(iat):
		return exp, errors.New("it lives for more than an hour, or not at all")
	case iat.After(now.Add(s.cfg.Skew)) || nbf.After(now.Add(s.cfg.Skew)):
		return exp, errors.New("it is not valid yet")
	case !now.Before(exp.Add(s.cfg.Skew)):
		return exp, errors.New("it has expired")
	}
	return exp, nil
}

// grant gives an access token for what is asked and may be had.
func (s *Server) grant(g Grant, f url.Values, issued string) (map[string]any, *refusal) {
	scopes := strings.Fields(f.Get("scope"))
	for _, scope := range scopes {
		if !slices.Contains(g.Scopes, scope) {
			return nil, bad("invalid_scope", "scope "+scope+" is not granted", nil)
		}
	}
	if len(scopes) == 0 {
		scopes = g.Scopes
	}
	targets := slices.Concat(f["resource"], f["audience"])
	for _, target := range targets {
		if !slices.Contains(g.Resources, target) {
			return nil, bad("invalid_target", "the target "+target+" is not granted", nil)
		}
	}
	raw, err := s.issue(token{g.Subject, g.ClientID, scopes, targets, s.now().Add(life)})
	if err != nil {
		return nil, &refusal{http.StatusServiceUnavailable, "temporarily_unavailable", "too many tokens live", err}
	}
	out := map[string]any{"access_token": raw, "token_type": "Bearer", "expires_in": int(life / time.Second)}
	if len(scopes) > 0 {
		out["scope"] = strings.Join(scopes, " ")
	}
	if issued != "" {
		out["issued_token_type"] = issued
	}
	return out, nil
}
