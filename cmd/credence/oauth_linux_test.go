package main_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const (
	oauthWorkload = "spiffe://dev.example/shop/checkout"
	oauthAudience = "https://as.example"
)

// relying is an OAuth server and a Vault that know nothing of us but the
// issuer and the bundle.
type relying struct {
	verifier *oidc.IDTokenVerifier
	bundles  *workloadapi.X509Source

	mu    sync.Mutex // guards the rest
	spent map[string]bool
	given []string
}

func (r *relying) jwt(ctx context.Context, raw string) error {
	token, err := r.verifier.Verify(ctx, raw)
	if err != nil {
		return err
	}
	var claims struct {
		JTI string `json:"jti"`
	}
	if err := token.Claims(&claims); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(token.Audience) != 1 || token.Subject != oauthWorkload || claims.JTI == "" || r.spent[claims.JTI] || token.Expiry.Sub(token.IssuedAt) > 15*time.Minute {
		return fmt.Errorf("audience %q, subject %q, jti %q, %s to %s", token.Audience, token.Subject, claims.JTI, token.IssuedAt, token.Expiry)
	}
	r.spent[claims.JTI] = true
	return nil
}

func (r *relying) cert(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("client certificate must be supplied")
	}
	var raw [][]byte
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	if chain[0].Subject.CommonName == "" {
		return errors.New("missing name in alias")
	}
	id, _, err := x509svid.ParseAndVerify(raw, r.bundles)
	if err == nil && id.String() != oauthWorkload {
		err = fmt.Errorf("%s is not allowed", id)
	}
	return err
}

func (r *relying) token(prefix string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = append(r.given, prefix+rand.Text())
	return r.given[len(r.given)-1]
}

func (r *relying) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	var err error
	w.Header().Set("Content-Type", "application/json")
	answer := map[string]any{"token_type": "Bearer", "expires_in": 900}
	body, _ := io.ReadAll(q.Body)
	q.Body = io.NopCloser(strings.NewReader(string(body)))
	var login struct{ Role, JWT, Name string }
	switch q.URL.Path {
	case "/token":
		answer["access_token"] = r.token("tok-")
		for _, name := range []string{"subject_token", "client_assertion", "assertion"} {
			if raw := q.PostFormValue(name); raw != "" {
				err = errors.Join(err, r.jwt(q.Context(), raw))
			}
		}
		if q.PostFormValue("subject_token") != "" {
			answer["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
		}
	case "/v1/auth/jwt/login":
		if err = json.Unmarshal(body, &login); err == nil {
			err = r.jwt(q.Context(), login.JWT)
		}
		answer = map[string]any{"auth": map[string]any{"client_token": r.token("hvs."), "lease_duration": 900}}
	case "/v1/auth/cert/login":
		err = r.cert(q.TLS.PeerCertificates)
		answer = map[string]any{"auth": map[string]any{"client_token": r.token("hvs."), "lease_duration": 900}}
	default:
		err = errors.New("no such path")
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		answer = map[string]any{"error": "invalid_request", "error_description": err.Error(), "errors": []string{err.Error()}}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// A workload of dev gets tokens of servers that fetch dev's keys, and trust its
// bundle, as they would anybody's.
func TestOAuthTargets(t *testing.T) {
	d := startDev(t, filepath.Join(tempDir(t), "state"))
	ctx := oidc.ClientContext(context.Background(), d.web(t))
	provider, err := oidc.NewProvider(ctx, d.json.OIDCIssuer)
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := workloadapi.NewX509Source(soon(t), workloadapi.WithClientOptions(workloadapi.WithAddr(d.json.WorkloadSocket)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bundles.Close() })
	r := &relying{verifier: provider.Verifier(&oidc.Config{ClientID: oauthAudience, SupportedSigningAlgs: []string{"RS256"}}), bundles: bundles, spent: map[string]bool{}}
	server := httptest.NewUnstartedServer(r)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(tempDir(t), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}

	settings := map[string]string{
		"exchange":   "{token_exchange: {token_url: '" + server.URL + "/token', audience: '" + oauthAudience + "', client_auth: jwt-bearer, scopes: [orders]}}",
		"assertion":  "{client_assertion: {token_url: '" + server.URL + "/token', audience: '" + oauthAudience + "'}}",
		"bearer":     "{jwt_bearer: {token_url: '" + server.URL + "/token', audience: '" + oauthAudience + "'}}",
		"vault-jwt":  "{vault_jwt: {url: '" + server.URL + "', audience: '" + oauthAudience + "', role: checkout}}",
		"vault-cert": "{vault_cert: {url: '" + server.URL + "', role: checkout}}",
		"astray":     "{jwt_bearer: {token_url: '" + server.URL + "/token', audience: '" + oauthAudience + "/'}}",
	}
	names := []string{"exchange", "assertion", "bearer", "vault-jwt", "vault-cert", "astray"}
	yaml := fmt.Sprintf("kind: Identity\nname: checkout\nspiffe_id: /shop/checkout\nmatch: [{node.name: dev, workload.unix.uid: \"%d\"}]\nx509: {subject: CN=checkout}\ntargets: [%s]\n", os.Getuid(), strings.Join(names, ", "))
	for _, name := range names {
		yaml += fmt.Sprintf("---\nkind: Target\nname: %s\noauth: %s\nca_file: %s\n", name, settings[name], ca)
	}
	d.apply(t, yaml)
	d.apply(t, d.admin(t, "get", "Target", "exchange", "-o", "yaml"))

	socket := "--socket=" + d.json.WorkloadSocket
	for _, name := range names[:5] {
		code, out, errs := credenceCmd(t, "", "credentials", name, socket)
		if code != 0 || !strings.HasPrefix(out, "tok-") && !strings.HasPrefix(out, "hvs.") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: exit code %d: %q %s", name, code, out, errs)
		}
	}
	if code, out, errs := credenceCmd(t, "", "credentials", "astray", socket); code != 4 || out != "" || !strings.Contains(errs, `got ["https://as.example/"]`) {
		t.Errorf("another audience: exit code %d: %q %s", code, out, errs)
	}

	t.Setenv("BAO_TOKEN", "stale")
	t.Setenv("VAULT_SKIP_VERIFY", "1")
	t.Setenv("VAULT_FORMAT", "json")
	code, out, errs := credenceCmd(t, "", "exec", socket, "--target", "vault-cert", "--", "sh", "-c", `env | grep -e ^VAULT_ -e ^BAO_ | sort; exit 7`)
	want := "VAULT_ADDR=" + server.URL + "\nVAULT_CACERT=" + ca + "\nVAULT_FORMAT=json\nVAULT_TOKEN=hvs."
	if code != 7 || !strings.HasPrefix(out, want) || strings.Count(out, "\n") != 4 {
		t.Errorf("exec: exit code %d: %s%s", code, errs, cmp.Diff(want, out))
	}
	code, out, errs = credenceCmd(t, "", "exec", socket, "--target", "bearer,vault-jwt", "--", "sh", "-c", `cat "$CREDENCE_TOKEN_FILE_BEARER"; echo; test "$VAULT_TOKEN" = "$(cat "$CREDENCE_TOKEN_FILE_VAULT_JWT")"`)
	if code != 0 || !strings.HasPrefix(out, "tok-") || strings.Count(out, "\n") != 1 {
		t.Errorf("files of tokens: exit code %d: %q %s", code, out, errs)
	}

	told := d.admin(t, "audit", "tail", "-n", "1000", "-o", "json") + d.admin(t, "get", "-o", "yaml")
	d.finish(t)
	printed, _ := d.printed()
	for _, token := range r.given {
		if strings.Contains(told+printed, token) {
			t.Errorf("%s is told", token)
		}
	}
}
