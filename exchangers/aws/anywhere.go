package aws

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
)

// anywhere calls CreateSession of IAM Roles Anywhere.
type anywhere struct {
	cfg    Config
	s      RolesAnywhere
	url    string
	region string
	body   []byte
}

func newAnywhere(cfg Config, s RolesAnywhere) (*anywhere, error) {
	anchor, err := parseAnywhere("trust_anchor", s.TrustAnchor, "trust-anchor")
	if err != nil {
		return nil, err
	}
	if err := checkHost("endpoint", cfg.Endpoint, "rolesanywhere", anchor.region); err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(cfg.Endpoint, "/")
	if base == "" {
		base = "https://rolesanywhere." + anchor.region + domain(anchor.partition)
	}
	// What is signed is the path /sessions, whatever stands before it.
	if u, err := url.Parse(base); err != nil || u.Path != "" {
		return nil, fmt.Errorf("endpoint %q: Roles Anywhere's must have no path", cfg.Endpoint)
	}
	query := url.Values{"roleArn": {s.Role}, "trustAnchorArn": {s.TrustAnchor}, "profileArn": {s.Profile}}
	body, err := json.Marshal(struct {
		Duration    int64  `json:"durationSeconds,omitempty"`
		SessionName string `json:"roleSessionName,omitempty"`
	}{int64(time.Duration(s.Duration) / time.Second), s.SessionName})
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	return &anywhere{cfg, s, base + path + "?" + canonicalQuery(query), anchor.region, body}, nil
}

// Exchange presents the X509-SVID. It refuses itself, with the way out, what
// AWS refuses without saying why.
func (a *anywhere) Exchange(ctx context.Context, svids exchangers.SVIDs) (exchangers.Credential, error) {
	svid, err := svids.X509(ctx)
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("getting the X509-SVID for %s: %w", a.s.Role, err)
	}
	if err := a.check(svid); err != nil {
		return exchangers.Credential{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, bytes.NewReader(a.body))
	if err != nil {
		return exchangers.Credential{}, fmt.Errorf("making the request: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	if err := sign(r, a.body, svid.Certificates, svid.PrivateKey, a.region, a.cfg.Now()); err != nil {
		return exchangers.Credential{}, unfit("%v", err)
	}
	resp, err := a.cfg.Client.Do(r)
	if err != nil {
		return exchangers.Credential{}, exchangers.Unreached(provider, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil && resp.StatusCode == http.StatusCreated {
		return exchangers.Credential{}, exchangers.Unreached(provider, err)
	}
	if resp.StatusCode != http.StatusCreated {
		return exchangers.Credential{}, anywhereRefusal(resp.StatusCode, resp.Header, body)
	}
	return a.read(resp.Header, body)
}

// unfit is a refusal of our own: AWS was not asked.
func unfit(format string, args ...any) *exchangers.Error {
	return &exchangers.Error{Provider: provider, Class: exchangers.Config, Code: "unfit_svid", Message: exchangers.Clean(fmt.Sprintf(format, args...))}
}

func (a *anywhere) check(svid *x509svid.SVID) error {
	if svid == nil || len(svid.Certificates) == 0 || svid.PrivateKey == nil {
		return unfit("there is no X509-SVID")
	}
	leaf, now := svid.Certificates[0], a.cfg.Now()
	switch {
	case len(leaf.Subject.Names) == 0:
		e := unfit("the X509-SVID of %s has an empty subject, which Roles Anywhere refuses", svid.ID)
		e.Hint = `add x509.subject: "CN=<identity>" to the Identity`
		return e
	case len(svid.ID.String()) > 256:
		return unfit("the SPIFFE ID has %d characters: a session tag holds 256", len(svid.ID.String()))
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return unfit("the X509-SVID must be no CA, with key usage digitalSignature")
	case len(svid.Certificates)-1 > maxChain:
		return unfit("%d certificates beside the X509-SVID: Roles Anywhere takes %d", len(svid.Certificates)-1, maxChain)
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return unfit("the X509-SVID is valid from %s to %s: compare this machine's clock", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

type sessionAnswer struct {
	Type          string `json:"__type"` // of an error
	CredentialSet []struct {
		AssumedRoleUser struct{ ARN string }
		Credentials     struct {
			AccessKeyID     string
			SecretAccessKey string
			SessionToken    string
			Expiration      time.Time // RFC 3339
		}
	}
}

func (a *anywhere) read(h http.Header, body []byte) (exchangers.Credential, error) {
	id := requestID(h)
	var answer sessionAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return exchangers.Credential{}, exchangers.Unusable(provider, http.StatusCreated, id, "it is not the JSON of a session")
	}
	if answer.Type != "" || h.Get("X-Amzn-Errortype") != "" { // whatever comes with it
		return exchangers.Credential{}, anywhereRefusal(http.StatusCreated, h, body)
	}
	if len(answer.CredentialSet) != 1 {
		return exchangers.Credential{}, exchangers.Unusable(provider, http.StatusCreated, id, fmt.Sprintf("it holds %d credentials, not one", len(answer.CredentialSet)))
	}
	set := answer.CredentialSet[0]
	return usable(a.cfg.Now(), http.StatusCreated, exchangers.Credential{
		Expires:   set.Credentials.Expiration,
		RequestID: id,
		AWS: &exchangers.AWS{
			AccessKeyID:     set.Credentials.AccessKeyID,
			SecretAccessKey: exchangers.NewSecret(set.Credentials.SecretAccessKey),
			SessionToken:    exchangers.NewSecret(set.Credentials.SessionToken),
			Region:          a.region,
			AssumedRole:     set.AssumedRoleUser.ARN,
		},
	})
}

func usable(now time.Time, status int, c exchangers.Credential) (exchangers.Credential, error) {
	if err := c.Check(now); err != nil {
		return exchangers.Credential{}, exchangers.Unusable(provider, status, c.RequestID, err.Error())
	}
	return c, nil
}

func requestID(h http.Header) string { return exchangers.Clean(h.Get("X-Amzn-Requestid")) }

// anywhereRefusal reads the type from the header first, as AWS's clients do.
func anywhereRefusal(status int, h http.Header, body []byte) *exchangers.Error {
	var answer struct {
		Message string
		Code    string
		Type    string `json:"__type"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		answer.Message = fmt.Sprintf("HTTP status %d, and no reason that can be read", status)
	}
	code := h.Get("X-Amzn-Errortype")
	for _, other := range []string{answer.Code, answer.Type} {
		if code == "" {
			code = other
		}
	}
	code, _, _ = strings.Cut(code, ":")
	if i := strings.LastIndexByte(code, '#'); i >= 0 {
		code = code[i+1:]
	}
	return refusal(status, code, answer.Message, requestID(h), retryAfter(h), anywhereHints)
}

var errNoToken = errors.New("the JWT-SVID is empty")
