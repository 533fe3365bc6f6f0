package aws_test

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// A call is a CreateSession request before it is signed. Zero fields take what
// a correct client would send.
type call struct {
	key        crypto.Signer
	leaf       *x509.Certificate
	chain      []*x509.Certificate
	algorithm  string
	serial     string
	date       string
	scopeDate  string
	region     string
	service    string
	terminator string
	method     string
	path       string
	query      url.Values
	body       string
	unsigned   []string                            // headers to leave out of SignedHeaders
	reversed   bool                                // SignedHeaders are sorted the other way
	sign       func(canonical, text string) string // makes the Signature
	before     func(*http.Request)                 // changes what is signed
	after      func(*http.Request)                 // tampers with what was signed
}

// request signs with what the documents of Roles Anywhere say, step by step.
func (c *call) request(t testing.TB) *http.Request {
	t.Helper()
	method, path := or(c.method, http.MethodPost), or(c.path, "/sessions")
	query := strings.ReplaceAll(c.query.Encode(), "+", "%20")
	r := httptest.NewRequest(method, "https://rolesanywhere."+region+".amazonaws.com"+path+"?"+query, strings.NewReader(c.body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Amz-Date", c.date)
	r.Header.Set("X-Amz-X509", base64.StdEncoding.EncodeToString(c.leaf.Raw))
	if c.chain != nil {
		var list []string
		for _, cert := range c.chain {
			list = append(list, base64.StdEncoding.EncodeToString(cert.Raw))
		}
		r.Header.Set("X-Amz-X509-Chain", strings.Join(list, ","))
	}
	if c.before != nil {
		c.before(r)
	}
	c.authorize(r, method+"\n/sessions\n"+query+"\n")
	if c.after != nil {
		c.after(r)
	}
	return r
}

func (c *call) authorize(r *http.Request, canonical string) {
	names := []string{"host"}
	for name := range r.Header {
		names = append(names, strings.ToLower(name))
	}
	slices.Sort(names)
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(c.unsigned, n) })
	if c.reversed {
		slices.Reverse(names)
	}
	for _, n := range names {
		v := r.Header.Get(n)
		if n == "host" {
			v = r.Host
		}
		canonical += n + ":" + v + "\n"
	}
	canonical += "\n" + strings.Join(names, ";") + "\n" + digest(c.body)
	scope := or(c.scopeDate, c.date[:min(8, len(c.date))]) + "/" + c.region + "/" + c.service + "/" + or(c.terminator, "aws4_request")
	text := c.algorithm + "\n" + c.date + "\n" + scope + "\n" + digest(canonical)
	sign := c.sign
	if sign == nil {
		sign = func(_, text string) string { return signWith(c.key, text) }
	}
	r.Header.Set("Authorization", c.algorithm+" Credential="+or(c.serial, c.leaf.SerialNumber.String())+"/"+scope+
		", SignedHeaders="+strings.Join(names, ";")+", Signature="+sign(canonical, text))
}

// signWith gives PKCS #1 v1.5 for RSA keys and ASN.1 for ECDSA keys.
func signWith(key crypto.Signer, text string) string {
	sum := sha256.Sum256([]byte(text))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		panic(err) // a key in memory signs any digest
	}
	return hex.EncodeToString(sig)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
