// Package vault has a HashiCorp Vault or OpenBao PKI engine certify our CAs
// (POST PKI/root/sign-intermediate, or PKI/issuer/REF/sign-intermediate).
//
// It trusts the server that the configuration names, over TLS, for what it
// signs, and checks only that the answer is certificates; whether they may be
// used is broker/authority's to judge. It keeps a login's token in memory for
// as long as the server said, and logs in anew when it is refused.
package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/broker/authority/upstream"
)

// Config says where the engine is and how to log in: exactly one login.
type Config struct {
	Address   string `yaml:"address"`   // https://vault.example:8200; required; http on loopback only
	CAFile    string `yaml:"ca_file"`   // PEM: who signs its TLS certificate; empty: the system's roots
	Namespace string `yaml:"namespace"` // of Vault Enterprise or OpenBao
	Mount     string `yaml:"mount"`     // of the PKI engine; default pki
	Issuer    string `yaml:"issuer"`    // of the engine, by name or ID; empty: its default
	Roots     string `yaml:"roots"`     // PEM: the roots it ends in; empty: those in the engine's chain

	TokenFile  string      `yaml:"token_file"` // a token that somebody else renews, read at each call
	AppRole    *AppRole    `yaml:"approle"`
	Kubernetes *Kubernetes `yaml:"kubernetes"`
	TLSCert    *TLSCert    `yaml:"tls_cert"`

	Now func() time.Time `yaml:"-"` // nil means time.Now
}

// AppRole is a login by role and secret.
type AppRole struct {
	Mount        string `yaml:"mount"` // default approle
	RoleID       string `yaml:"role_id"`
	SecretIDFile string `yaml:"secret_id_file"`
}

// Kubernetes is a login by a service account's token.
type Kubernetes struct {
	Mount     string `yaml:"mount"` // default kubernetes
	Role      string `yaml:"role"`
	TokenFile string `yaml:"token_file"` // default the pod's own
}

// TLSCert is a login by a client certificate.
type TLSCert struct {
	Mount string `yaml:"mount"` // default cert
	Name  string `yaml:"name"`  // of the role; empty: any that fits
	Cert  string `yaml:"cert"`  // PEM files, read again at each login
	Key   string `yaml:"key"`
}

// Bounds of what the server says.
const (
	maxAnswer = 1 << 20
	maxFile   = 64 << 10
	timeout   = 30 * time.Second
)

var mountPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$`)

// Validate says what is missing or contradicts itself.
func (c Config) Validate() error {
	u, err := url.Parse(c.Address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return fmt.Errorf("address: %q: https://host:port is wanted", c.Address)
	case u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())):
		return fmt.Errorf("address: %q: https is wanted; http is taken on loopback only", c.Address)
	}
	for field, value := range map[string]string{"mount": c.Mount, "issuer": c.Issuer} {
		if value != "" && !mountPattern.MatchString(value) {
			return fmt.Errorf("%s: %q: letters, digits, - and _, with / between", field, value)
		}
	}
	logins := 0
	for _, set := range []bool{c.TokenFile != "", c.AppRole != nil, c.Kubernetes != nil, c.TLSCert != nil} {
		if set {
			logins++
		}
	}
	if logins != 1 {
		return errors.New("one login is wanted: token_file, approle, kubernetes or tls_cert")
	}
	return c.validateLogin()
}

func (c Config) validateLogin() error {
	mount := ""
	switch {
	case c.AppRole != nil:
		if mount = c.AppRole.Mount; c.AppRole.RoleID == "" || c.AppRole.SecretIDFile == "" {
			return errors.New("approle: role_id and secret_id_file are both wanted")
		}
	case c.Kubernetes != nil:
		if mount = c.Kubernetes.Mount; c.Kubernetes.Role == "" {
			return errors.New("kubernetes: role is wanted")
		}
	case c.TLSCert != nil:
		if mount = c.TLSCert.Mount; c.TLSCert.Cert == "" || c.TLSCert.Key == "" {
			return errors.New("tls_cert: cert and key are both wanted")
		}
		if !strings.HasPrefix(c.Address, "https:") {
			return errors.New("tls_cert: address: https is wanted: a certificate is shown in TLS")
		}
	}
	if mount != "" && !mountPattern.MatchString(mount) {
		return fmt.Errorf("mount of the login: %q: letters, digits, - and _, with / between", mount)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// A PKI is an engine. It may be used concurrently; no lock is held across a
// call.
type PKI struct {
	cfg    Config
	client *http.Client

	mu      sync.Mutex // guards what follows
	token   string
	renewAt time.Time // zero: it does not end
}

// New returns the engine that cfg names. It calls nobody yet.
func New(cfg Config) (*PKI, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("upstream vault: %w", err)
	}
	setDefault(&cfg.Mount, "pki")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		certs, err := upstream.Certificates(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("upstream vault: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		for _, c := range certs {
			config.RootCAs.AddCert(c)
		}
	}
	if t := cfg.TLSCert; t != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
			return &cert, err
		}
	}
	return &PKI{cfg: cfg, client: &http.Client{
		Timeout:   timeout,
		Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("it redirects: name the active node, or an address that does not")
		},
	}}, nil
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Sign has the engine certify the key of csr (PKCS #10, DER) as a CA that
// signs leaves only. The engine may give it a shorter life than asked for.
func (p *PKI) Sign(ctx context.Context, csr []byte, life time.Duration) (chain, anchors []*x509.Certificate, err error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("upstream vault: reading the request: %w", err)
	}
	path := p.cfg.Mount + "/root/sign-intermediate"
	if p.cfg.Issuer != "" {
		path = p.cfg.Mount + "/issuer/" + p.cfg.Issuer + "/sign-intermediate"
	}
	var signed struct {
		Certificate string   `json:"certificate"`
		IssuingCA   string   `json:"issuing_ca"`
		CAChain     []string `json:"ca_chain"`
	}
	body := map[string]any{
		"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), "format": "pem",
		"use_csr_values": true, "max_path_length": 0, "ttl": fmt.Sprintf("%ds", int64(life/time.Second)),
	}
	if err := p.authorized(ctx, path, body, &signed); err != nil {
		return nil, nil, fmt.Errorf("upstream vault: signing at %s/%s: %w", p.cfg.Address, path, err)
	}
	if len(signed.CAChain) == 0 {
		signed.CAChain = []string{signed.IssuingCA}
	}
	var all []*x509.Certificate
	for _, text := range append([]string{signed.Certificate}, signed.CAChain...) {
		cert, err := certificate(text)
		if err != nil {
			return nil, nil, fmt.Errorf("upstream vault: the answer of %s/%s: %w", p.cfg.Address, path, err)
		}
		all = append(all, cert)
	}
	chain, anchors = split(all)
	if p.cfg.Roots != "" {
		if anchors, err = upstream.Certificates(p.cfg.Roots); err != nil {
			return nil, nil, fmt.Errorf("upstream vault: %w", err)
		}
	}
	if len(anchors) == 0 {
		return nil, nil, fmt.Errorf("upstream vault: the chain of %s/%s ends below a root: name a file of roots", p.cfg.Address, path)
	}
	return chain, anchors, nil
}

// split tells roots from the rest, and drops what stands twice.
func split(all []*x509.Certificate) (chain, roots []*x509.Certificate) {
	seen := map[string]bool{}
	for i, c := range all {
		switch {
		case seen[string(c.Raw)]:
		case i > 0 && c.CheckSignatureFrom(c) == nil:
			roots = append(roots, c)
		default:
			chain = append(chain, c)
		}
		seen[string(c.Raw)] = true
	}
	return chain, roots
}

func certificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no PEM certificate where one is due")
	}
	return x509.ParseCertificate(block.Bytes)
}

// errStatus is the server's refusal.
type errStatus struct {
	code   int
	errors []string
}

func (e *errStatus) Error() string {
	text := strings.Join(e.errors, "; ")
	if text == "" {
		text = http.StatusText(e.code)
	}
	wayOut := ""
	switch e.code {
	case http.StatusForbidden:
		wayOut = ": does the policy of this login allow update on that path?"
	case http.StatusNotFound:
		wayOut = ": is the engine mounted there?"
	case http.StatusServiceUnavailable:
		wayOut = ": it is sealed or in maintenance"
	}
	return fmt.Sprintf("%d %s%s", e.code, clean(text), wayOut)
}

// clean keeps a server's text on one line, and short.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return text[:min(len(text), 500)]
}

// authorized calls with a login's token, anew if the one that is kept is
// refused.
func (p *PKI) authorized(ctx context.Context, path string, body, into any) error {
	token, kept, err := p.login(ctx)
	if err != nil {
		return err
	}
	err = p.call(ctx, path, token, body, into)
	var refused *errStatus
	if kept && errors.As(err, &refused) && refused.code == http.StatusForbidden {
		p.forget(token)
		if token, _, err = p.login(ctx); err != nil {
			return err
		}
		err = p.call(ctx, path, token, body, into)
	}
	return err
}

func (p *PKI) forget(token string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.token == token {
		p.token = ""
	}
}

// login returns a token, and whether it was kept from an earlier login.
func (p *PKI) login(ctx context.Context) (token string, kept bool, err error) {
	if p.cfg.TokenFile != "" {
		token, err := secret(p.cfg.TokenFile)
		return token, false, err
	}
	p.mu.Lock()
	token, renewAt := p.token, p.renewAt
	p.mu.Unlock()
	if token != "" && (renewAt.IsZero() || p.cfg.Now().Before(renewAt)) {
		return token, true, nil
	}
	path, body, err := p.credentials()
	if err != nil {
		return "", false, err
	}
	var answer struct {
		ClientToken   string `json:"client_token"`
		LeaseDuration int64  `json:"lease_duration"`
	}
	if err := p.call(ctx, path, "", body, &wrapped{auth: &answer}); err != nil {
		return "", false, fmt.Errorf("logging in at %s: %w", path, err)
	}
	if answer.ClientToken == "" {
		return "", false, fmt.Errorf("logging in at %s: the answer has no token", path)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token, p.renewAt = answer.ClientToken, time.Time{}
	if answer.LeaseDuration > 0 {
		p.renewAt = p.cfg.Now().Add(time.Duration(min(answer.LeaseDuration, 1<<31)) * time.Second / 2)
	}
	return p.token, false, nil
}

func (p *PKI) credentials() (path string, body map[string]any, err error) {
	switch {
	case p.cfg.AppRole != nil:
		id, err := secret(p.cfg.AppRole.SecretIDFile)
		return "auth/" + or(p.cfg.AppRole.Mount, "approle") + "/login", map[string]any{"role_id": p.cfg.AppRole.RoleID, "secret_id": id}, err
	case p.cfg.Kubernetes != nil:
		jwt, err := secret(or(p.cfg.Kubernetes.TokenFile, "/var/run/secrets/kubernetes.io/serviceaccount/token"))
		return "auth/" + or(p.cfg.Kubernetes.Mount, "kubernetes") + "/login", map[string]any{"role": p.cfg.Kubernetes.Role, "jwt": jwt}, err
	}
	body = map[string]any{}
	if p.cfg.TLSCert.Name != "" {
		body["name"] = p.cfg.TLSCert.Name
	}
	return "auth/" + or(p.cfg.TLSCert.Mount, "cert") + "/login", body, nil
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// wrapped is the envelope of every answer: a secret's data or a login.
type wrapped struct{ data, auth any }

func (w *wrapped) UnmarshalJSON(text []byte) error {
	var envelope struct {
		Data json.RawMessage `json:"data"`
		Auth json.RawMessage `json:"auth"`
	}
	if err := json.Unmarshal(text, &envelope); err != nil {
		return err
	}
	part, into := envelope.Data, w.data
	if w.auth != nil {
		part, into = envelope.Auth, w.auth
	}
	if len(part) == 0 || string(part) == "null" {
		return errors.New("the answer lacks what was asked for")
	}
	return json.Unmarshal(part, into)
}

// call makes one request. A body with errors in it is a refusal, whatever else
// it holds.
func (p *PKI) call(ctx context.Context, path, token string, body, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(p.cfg.Address, "/")+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Vault-Request", "true")
	if token != "" {
		r.Header.Set("X-Vault-Token", token)
	}
	if p.cfg.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", p.cfg.Namespace)
	}
	response, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading the answer: %w", err)
	case len(answer) > maxAnswer:
		return fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	var refusal struct {
		Errors []string `json:"errors"`
	}
	_ = json.Unmarshal(answer, &refusal) // what is no JSON has no errors to tell
	if response.StatusCode != http.StatusOK || len(refusal.Errors) > 0 {
		return &errStatus{response.StatusCode, refusal.Errors}
	}
	w, ok := into.(*wrapped)
	if !ok {
		w = &wrapped{data: into}
	}
	if err := json.Unmarshal(answer, w); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// secret is the one line of a file.
func secret(path string) (string, error) {
	text, err := upstream.Read(path, maxFile)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(text))
	if s == "" || strings.ContainsAny(s, "\r\n") {
		return "", fmt.Errorf("%s: one line is wanted", path)
	}
	return s, nil
}
