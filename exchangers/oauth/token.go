package oauth

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// A request is what is asked of a token endpoint. The JWT-SVIDs come to it.
type request struct {
	url        string
	form       url.Values
	jwtIn      string // the parameter that takes a JWT-SVID; empty: none but a client assertion
	clientAuth string // jwt-bearer, jwt-spiffe or empty
	scopes     []string
	exchange   bool   // the answer is RFC 8693 §2.2.1's
	issued     string // the token type that was asked for; empty: the server's
}

func (m *TokenExchange) request() request {
	f := requestForm("urn:ietf:params:oauth:grant-type:token-exchange", m.ClientID, m.Scopes, m.Resources)
	f.Set("subject_token_type", jwtType)
	if len(m.RequestedAudiences) > 0 {
		f["audience"] = m.RequestedAudiences
	}
	if m.RequestedTokenType != "" {
		f.Set("requested_token_type", m.RequestedTokenType)
	}
	return request{url: m.TokenURL, form: f, jwtIn: "subject_token", clientAuth: m.ClientAuth, scopes: m.Scopes, exchange: true, issued: m.RequestedTokenType}
}

func (m *ClientAssertion) request() request {
	auth := m.ClientAuth
	if auth == "" {
		auth = "jwt-bearer"
	}
	return request{url: m.TokenURL, form: requestForm("client_credentials", m.ClientID, m.Scopes, m.Resources), clientAuth: auth, scopes: m.Scopes}
}

func (m *JWTBearer) request() request {
	f := requestForm("urn:ietf:params:oauth:grant-type:jwt-bearer", m.ClientID, m.Scopes, m.Resources)
	return request{url: m.TokenURL, form: f, jwtIn: "assertion", scopes: m.Scopes}
}

func requestForm(grant, clientID string, scopes, resources []string) url.Values {
	f := url.Values{"grant_type": {grant}}
	if clientID != "" {
		f.Set("client_id", clientID)
	}
	if len(scopes) > 0 {
		f.Set("scope", strings.Join(scopes, " "))
	}
	if len(resources) > 0 {
		f["resource"] = resources
	}
	return f
}

// grant asks a token endpoint. A JWT-SVID is presented in one place only: a
// server may remember its jti (RFC 7523 §3).
func (x *exchanger) grant(ctx context.Context, svids exchangers.SVIDs, r request) (exchangers.Credential, error) {
	var sent []exchangers.Secret
	put := func(parameter string) error {
		jwt, err := x.present(ctx, svids)
		if err != nil {
			return err
		}
		sent = append(sent, jwt)
		r.form.Set(parameter, jwt.Reveal())
		return nil
	}
	if r.jwtIn != "" {
		if err := put(r.jwtIn); err != nil {
			return exchangers.Credential{}, err
		}
	}
	if r.clientAuth != "" {
		r.form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:"+r.clientAuth)
		if err := put("client_assertion"); err != nil {
			return exchangers.Credential{}, err
		}
	}
	a, err := x.post(ctx, x.client, x.where(r.url), "application/x-www-form-urlencoded", r.form.Encode(), nil)
	if err != nil {
		return exchangers.Credential{}, err
	}
	return a.token(r, sent)
}

// token reads a token endpoint's answer (RFC 6749 §5, RFC 8693 §2.2). An error
// wins over whatever comes with it.
func (a answer) token(r request, sent []exchangers.Secret) (exchangers.Credential, error) {
	m, err := members(a.body)
	for _, name := range []string{"access_token", "id_token", "refresh_token"} {
		if s, err := m.text(name); err == nil {
			sent = append(sent, exchangers.NewSecret(s))
		}
	}
	if a.status != http.StatusOK || m.tells("error") {
		return exchangers.Credential{}, a.tokenRefusal(m, sent)
	}
	id := exchangers.Clean(a.header.Get("X-Request-Id"), sent...)
	unusable := func(why string) (exchangers.Credential, error) {
		return exchangers.Credential{}, exchangers.Unusable(provider, a.status, id, exchangers.Clean(why, sent...))
	}
	if err == nil {
		err = a.isJSON()
	}
	if err != nil {
		return unusable(err.Error())
	}
	token, err := m.token("access_token")
	if err != nil {
		return unusable(err.Error())
	}
	if why := r.wrongType(m); why != "" {
		return unusable(why)
	}
	life, err := m.seconds("expires_in")
	if err != nil {
		return unusable(err.Error())
	}
	scopes, err := m.text("scope")
	if err != nil {
		return unusable(err.Error())
	}
	cred := exchangers.Credential{Expires: a.asked.Add(life), RequestID: id, Bearer: &exchangers.Bearer{Token: token, Scopes: r.scopes}}
	if scopes != "" {
		cred.Bearer.Scopes = strings.Fields(scopes)
	}
	if err := cred.Check(a.now); err != nil {
		return unusable(err.Error())
	}
	return cred, nil
}

// wrongType says why the token is none that was asked for and that a bearer
// can use. Servers of token exchange that leave issued_token_type out, against
// RFC 8693 §2.2.1, are taken to mean an access token.
func (r request) wrongType(m object) string {
	kind, err := m.text("token_type")
	if err != nil || kind == "" {
		return "it has no token_type"
	}
	issued, err := m.text("issued_token_type")
	if err != nil {
		return err.Error()
	}
	if !r.exchange || issued == "" {
		issued = accessToken
	}
	switch {
	case r.exchange && r.issued != "" && issued != r.issued:
		return "it holds a token of type " + exchangers.Clean(issued) + ", not the requested_token_type"
	case issued == refreshToken:
		return "it holds a refresh token"
	case issued == accessToken && !strings.EqualFold(kind, "Bearer"),
		issued != accessToken && !strings.EqualFold(kind, "Bearer") && kind != "N_A":
		return "its token_type is " + exchangers.Clean(kind) + ", not Bearer"
	}
	return ""
}
