package oauth

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// vaultJWT logs in at the auth method jwt.
func (x *exchanger) vaultJWT(ctx context.Context, svids exchangers.SVIDs, m VaultJWT) (exchangers.Credential, error) {
	jwt, err := x.present(ctx, svids)
	if err != nil {
		return exchangers.Credential{}, err
	}
	l := login{m.URL, or(m.Mount, "jwt"), m.Namespace, map[string]string{"role": m.Role, "jwt": jwt.Reveal()}}
	return x.login(ctx, x.client, l, []exchangers.Secret{jwt})
}

// vaultCert logs in at the auth method cert. Each login has a connection of its
// own: the SVID is another one the next time.
func (x *exchanger) vaultCert(ctx context.Context, svids exchangers.SVIDs, m VaultCert) (exchangers.Credential, error) {
	svid, err := svids.X509(ctx)
	if err == nil && (svid == nil || len(svid.Certificates) == 0 || svid.PrivateKey == nil) {
		err = errors.New("there is none")
	}
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("getting the X509-SVID for %s: %w", m.Role, err)
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	client, err := exchangers.HTTPClient(exchangers.HTTPConfig{CAFile: x.cfg.CAFile, Roots: x.cfg.Roots, Timeout: x.cfg.Timeout, Certificate: cert})
	if err != nil {
		return exchangers.Credential{}, err
	}
	defer client.CloseIdleConnections()
	return x.login(ctx, client, login{m.URL, or(m.Mount, "cert"), m.Namespace, map[string]string{"name": m.Role}}, nil)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// A login is one request to POST /v1/auth/MOUNT/login.
type login struct {
	url, mount, namespace string
	body                  map[string]string
}

func (x *exchanger) login(ctx context.Context, client *http.Client, l login, sent []exchangers.Secret) (exchangers.Credential, error) {
	body, err := json.Marshal(l.body)
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("writing the request: %w", err)
	}
	header := http.Header{"X-Vault-Request": {"true"}}
	if l.namespace != "" {
		header.Set("X-Vault-Namespace", l.namespace)
	}
	address := strings.TrimSuffix(x.where(l.url), "/")
	a, err := x.post(ctx, client, address+"/v1/auth/"+l.mount+"/login", "application/json", string(body), header)
	if err != nil {
		return exchangers.Credential{}, err
	}
	cred, err := a.login(sent)
	if err != nil {
		return exchangers.Credential{}, err
	}
	cred.Bearer.Vault = &exchangers.Vault{Address: address, Namespace: l.namespace}
	return cred, nil
}

// login reads a login's answer. An error wins over whatever comes with it.
func (a answer) login(sent []exchangers.Secret) (exchangers.Credential, error) {
	m, err := members(a.body)
	auth, authErr := members(m["auth"])
	for _, name := range []string{"client_token", "accessor"} {
		if s, err := auth.text(name); err == nil {
			sent = append(sent, exchangers.NewSecret(s))
		}
	}
	if a.status != http.StatusOK || m.tells("errors") || m.tells("error") || auth.tells("errors") || auth.tells("error") {
		return exchangers.Credential{}, a.loginRefusal(m, sent)
	}
	id := a.loginID(m, sent)
	if err == nil {
		err = a.isJSON()
	}
	if err == nil && authErr != nil {
		err = errors.New("it has no auth, or one that is not an object")
	}
	if err != nil {
		return exchangers.Credential{}, exchangers.Unusable(provider, a.status, id, exchangers.Clean(err.Error(), sent...))
	}
	cred, e := a.session(auth, id)
	if e != nil {
		return exchangers.Credential{}, e
	}
	return cred, nil
}

// session is the credential of a login that was no refusal.
func (a answer) session(auth object, id string) (exchangers.Credential, *exchangers.Error) {
	unusable := func(why, hint string) (exchangers.Credential, *exchangers.Error) {
		e := exchangers.Unusable(provider, a.status, id, why)
		if hint != "" {
			e.Class, e.Hint = exchangers.Config, hint
		}
		return exchangers.Credential{}, e
	}
	if auth.tells("mfa_requirement") {
		return unusable("the login wants a second factor", "take the role out of the server's MFA enforcement: a workload has no second factor")
	}
	token, err := auth.token("client_token")
	if err != nil {
		return unusable(err.Error(), "")
	}
	// One login serves all processes of this identity on a node.
	if uses := string(auth["num_uses"]); uses != "" && uses != "0" && uses != "null" {
		return unusable("the token can be used a few times only", "set token_num_uses of the role to 0")
	}
	if string(auth["lease_duration"]) == "0" {
		return unusable("the token never ends", "set token_ttl of the role")
	}
	life, err := auth.seconds("lease_duration")
	if err != nil {
		return unusable(err.Error(), "")
	}
	cred := exchangers.Credential{Expires: a.asked.Add(life), RequestID: id, Bearer: &exchangers.Bearer{Token: token}}
	if err := cred.Check(a.now); err != nil {
		return unusable(err.Error(), "")
	}
	return cred, nil
}

func (a answer) loginID(m object, sent []exchangers.Secret) string {
	id, err := m.text("request_id")
	if err != nil || id == "" {
		id = a.header.Get("X-Request-Id")
	}
	return exchangers.Clean(id, sent...)
}
