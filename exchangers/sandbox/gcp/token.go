package gcp

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// A token is an access token as the cloud remembers it.
type token struct {
	principal string   // principal://... or a service account's email
	account   string   // the email, empty for a federated principal
	members   []string // by which bindings may name it
	scopes    []string
	expires   time.Time
}

// issue returns a new opaque token. The tokens that have expired are forgotten
// on the way.
func (c *Cloud) issue(t token) string {
	var b [48]byte
	rand.Read(b[:])
	raw := "ya29." + sandbox.Canary + base64.RawURLEncoding.EncodeToString(b[:])
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for hash, old := range c.tokens {
		if !now.Before(old.expires) {
			delete(c.tokens, hash)
		}
	}
	c.tokens[sandbox.HashToken(raw)] = t
	return raw
}

// caller returns whose bearer token the request carries. A service account's
// token is worth nothing while the account is disabled or gone.
func (c *Cloud) caller(r *http.Request, e *sandbox.Entry) (token, bool) {
	raw := sandbox.Bearer(r)
	if raw == "" {
		return token{}, false
	}
	e.Token = sandbox.HashToken(raw)
	c.mu.Lock()
	t, ok := c.tokens[e.Token]
	c.mu.Unlock()
	if !ok || !c.now().Before(t.expires) {
		return token{}, false
	}
	if t.account != "" {
		if _, ok := c.account(t.account); !ok {
			return token{}, false
		}
	}
	return t, true
}

// checkScopes judges a list of scopes. Each must be an https URL on googleapis.com;
// otherwise, and if there is none, the answer is no.
func checkScopes(scopes []string) bool {
	for _, s := range scopes {
		rest, ok := strings.CutPrefix(s, "https://www.googleapis.com/auth/")
		if !ok || rest == "" || strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			return false
		}
	}
	return len(scopes) > 0
}

// mayCallIAM says whether the scopes of a token reach the IAM Credentials API.
func (t token) mayCallIAM() bool {
	return slices.Contains(t.scopes, "https://www.googleapis.com/auth/cloud-platform") ||
		slices.Contains(t.scopes, "https://www.googleapis.com/auth/iam")
}
