package aws_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers/sandbox/aws"
)

// A row changes one thing of a request that succeeds, or of the cloud; what it
// returns undoes the latter. Numbers are those of the negative tests in the
// contract with the clouds.
type row struct {
	name   string
	change func(t *testing.T, e *anywhere, c *call) (undo func())
	status int
	kind   string // X-Amzn-Errortype
	text   string // in the message
}

const (
	accessDenied = "AccessDeniedException"
	validation   = "ValidationException"
)

func TestAnywhereRefuses(t *testing.T) {
	for _, table := range [][]row{protocolRows, signatureRows, leafRows, chainRows, resourceRows, sessionRows} {
		for _, row := range table {
			t.Run(row.name, func(t *testing.T) { row.run(t) })
		}
	}
}

func (row row) run(t *testing.T) {
	e := newAnywhere(t)
	e.wantCredential(t)
	c := e.call()
	undo := row.change(t, e, c)
	w := e.send(t, c)
	if w.Code != row.status || w.Header().Get("X-Amzn-Errortype") != row.kind || !strings.Contains(w.Body.String(), row.text) {
		t.Errorf("got %d %s %s; want %d %s %q", w.Code, w.Header().Get("X-Amzn-Errortype"), w.Body, row.status, row.kind, row.text)
	}
	if w.Header().Get("X-Amzn-Requestid") == "" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("header %v", w.Header())
	}
	noCredential(t, w.Body.String())
	if undo != nil {
		undo()
	}
	e.wantCredential(t)
}

// request makes a row's change from one of the request alone.
func request(f func(e *anywhere, c *call)) func(*testing.T, *anywhere, *call) func() {
	return func(_ *testing.T, e *anywhere, c *call) func() { f(e, c); return nil }
}

func tampered(f func(r *http.Request)) func(*testing.T, *anywhere, *call) func() {
	return request(func(_ *anywhere, c *call) { c.after = f })
}

func body(s string) func(*testing.T, *anywhere, *call) func() {
	return request(func(_ *anywhere, c *call) { c.body = s })
}

var protocolRows = []row{
	{"R1 GET", request(func(_ *anywhere, c *call) { c.method = "GET" }), 405, "UnknownOperationException", ""},
	{"another path", request(func(_ *anywhere, c *call) { c.path = "/v1/sessions" }), 404, "UnknownOperationException", ""},
	{"escaped path", request(func(_ *anywhere, c *call) { c.path = "/%73essions" }), 404, "UnknownOperationException", ""},
	{"content type", tampered(func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }), 400, validation, ""},
	{"body larger than 1 MiB", body(`{"x":"` + strings.Repeat("a", 1<<20) + `"}`), 400, validation, "too large"},
	{"malformed JSON", body(`{`), 400, validation, ""},
	{"member twice", body(`{"durationSeconds":900,"durationSeconds":900}`), 400, validation, "twice"},
	{"unknown member", body(`{"sessionName":"x1"}`), 400, validation, "unknown"},
	{"instance properties that are no texts", body(`{"instanceProperties":{"a":1}}`), 400, validation, ""},
	{"unknown query parameter", request(func(_ *anywhere, c *call) { c.query.Set("x", "y") }), 400, validation, "unknown"},
	{"query parameter twice", request(func(_ *anywhere, c *call) { c.query.Add("roleArn", roleARN) }), 400, validation, "twice"},
	{"ARN differs between query and body", body(`{"roleArn":"arn:aws:iam::123456789012:role/x"}`), 400, validation, "differs"},
	{"role ARN missing", request(func(_ *anywhere, c *call) { c.query.Del("roleArn") }), 400, validation, "ARN"},
	{"anchor ARN of a profile", request(func(_ *anywhere, c *call) { c.query.Set("trustAnchorArn", profileARN) }), 400, validation, "ARN"},
	{"R33 duration 899", body(`{"durationSeconds":899}`), 400, validation, "durationSeconds"},
	{"R33 duration 43201", body(`{"durationSeconds":43201}`), 400, validation, "durationSeconds"},
	{"R33 duration as text", body(`{"durationSeconds":"900"}`), 400, validation, "durationSeconds"},
	{"R33 duration as fraction", body(`{"durationSeconds":900.0}`), 400, validation, "durationSeconds"},
	{"R36 session name that is a SPIFFE ID", body(`{"roleSessionName":"spiffe://td/x"}`), 400, validation, "roleSessionName"},
	{"R36 session name of 1", body(`{"roleSessionName":"x"}`), 400, validation, "roleSessionName"},
	{"R36 session name of 65", body(`{"roleSessionName":"` + strings.Repeat("x", 65) + `"}`), 400, validation, "roleSessionName"},
}

func date(d time.Duration) func(*testing.T, *anywhere, *call) func() {
	return request(func(e *anywhere, c *call) { c.date = e.Now().Add(d).Format("20060102T150405Z") })
}

func signed(f func(c *call, canonical, text string) string) func(*testing.T, *anywhere, *call) func() {
	return func(_ *testing.T, _ *anywhere, c *call) func() {
		c.sign = func(canonical, text string) string { return f(c, canonical, text) }
		return nil
	}
}

var signatureRows = []row{
	{"R2 no Authorization", tampered(func(r *http.Request) { r.Header.Del("Authorization") }), 403, accessDenied, ""},
	{"two Authorizations", tampered(func(r *http.Request) { r.Header.Add("Authorization", r.Header.Get("Authorization")) }), 403, accessDenied, ""},
	{"R3 algorithm RSA, leaf P-256", request(func(_ *anywhere, c *call) { c.algorithm = "AWS4-X509-RSA-SHA256" }), 403, accessDenied, "signature"},
	{"algorithm ML-DSA, leaf P-256", request(func(_ *anywhere, c *call) { c.algorithm = "AWS4-X509-MLDSA" }), 403, accessDenied, "signature"},
	{"R4 algorithm HMAC", request(func(_ *anywhere, c *call) { c.algorithm = "AWS4-HMAC-SHA256" }), 403, accessDenied, "signature"},
	{"R6 serial of another certificate", request(func(_ *anywhere, c *call) { c.serial = "12345" }), 403, accessDenied, "serial"},
	{"serial in hex", request(func(_ *anywhere, c *call) { c.serial = c.leaf.SerialNumber.Text(16) }), 403, accessDenied, "serial"},
	{"serial with a leading zero", request(func(_ *anywhere, c *call) { c.serial = "0" + c.leaf.SerialNumber.String() }), 403, accessDenied, "serial"},
	{"R7 scope region", request(func(_ *anywhere, c *call) { c.region = "eu-west-1" }), 403, accessDenied, "scoped"},
	{"R8 scope service", request(func(_ *anywhere, c *call) { c.service = "sts" }), 403, accessDenied, "scoped"},
	{"R9 scope date of yesterday", request(func(_ *anywhere, c *call) { c.scopeDate = "20261120" }), 403, accessDenied, "scoped"},
	{"scope of another terminator", request(func(_ *anywhere, c *call) { c.terminator = "aws5_request" }), 403, accessDenied, "scoped"},
	{"date 301 s back", date(-301 * time.Second), 403, accessDenied, "expired"},
	{"date 301 s ahead", date(301 * time.Second), 403, accessDenied, "not yet current"},
	{"R11 date in RFC 1123", request(func(e *anywhere, c *call) {
		c.date, c.scopeDate = e.Now().Format(http.TimeFormat), "20261121"
	}), 403, accessDenied, "expired"},
	{"R12 certificate not signed", request(func(_ *anywhere, c *call) { c.unsigned = []string{"x-amz-x509"} }), 403, accessDenied, "signature"},
	{"R13 chain not signed", request(func(e *anywhere, c *call) {
		c.chain, c.unsigned = []*x509.Certificate{e.root.cert}, []string{"x-amz-x509-chain"}
	}), 403, accessDenied, "signature"},
	{"host not signed", request(func(_ *anywhere, c *call) { c.unsigned = []string{"host"} }), 403, accessDenied, "signature"},
	{"date not signed", request(func(_ *anywhere, c *call) { c.unsigned = []string{"x-amz-date"} }), 403, accessDenied, "signature"},
	{"content type not signed", request(func(_ *anywhere, c *call) { c.unsigned = []string{"content-type"} }), 403, accessDenied, "signature"},
	{"signed header not there", tampered(func(r *http.Request) {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "content-type;host", "content-type;cookie;host", 1))
	}), 403, accessDenied, "signature"},
	{"signed headers in upper case", tampered(func(r *http.Request) {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "content-type;host", "Content-Type;host", 1))
	}), 403, accessDenied, "signature"},
	{"signed headers not sorted", request(func(_ *anywhere, c *call) { c.reversed = true }), 403, accessDenied, "signature"},
	{"hash of another body", request(func(_ *anywhere, c *call) {
		c.before = func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", digest("x")) }
	}), 403, accessDenied, "signature"},
	{"unsigned payload", request(func(_ *anywhere, c *call) {
		c.before = func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") }
	}), 403, accessDenied, "signature"},
	{"header of AWS not signed", tampered(func(r *http.Request) { r.Header.Set("X-Amz-Extra", "x") }), 403, accessDenied, "signature"},
	{"another host", tampered(func(r *http.Request) { r.Host = "rolesanywhere.eu-west-1.amazonaws.com" }), 403, accessDenied, "signature"},
	{"another role in the query", tampered(func(r *http.Request) {
		r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "orders", "ledger", 1)
	}), 403, accessDenied, "signature"},
	{"R14 body changed after signing", tampered(func(r *http.Request) {
		r.Body = httptest.NewRequest("POST", "/", strings.NewReader(`{"durationSeconds":3600}`)).Body
	}), 403, accessDenied, "signature"},
	{"R16 one bit of the signature", signed(func(c *call, _, text string) string {
		b, _ := hex.DecodeString(signWith(c.key, text))
		b[len(b)-1] ^= 1
		return hex.EncodeToString(b)
	}), 403, accessDenied, "signature"},
	{"R16 empty signature", signed(func(*call, string, string) string { return "" }), 403, accessDenied, ""},
	{"R16 raw r and s", signed(func(c *call, _, text string) string {
		sum := sha256.Sum256([]byte(text))
		r, s, _ := ecdsa.Sign(rand.Reader, c.key.(*ecdsa.PrivateKey), sum[:])
		return hex.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}), 403, accessDenied, "signature"},
	{"signature in upper case", signed(func(c *call, _, text string) string {
		return strings.ToUpper(signWith(c.key, text))
	}), 403, accessDenied, "signature"},
	{"R17 signed by another key", func(t *testing.T, _ *anywhere, c *call) func() {
		c.key = newKey(t, elliptic.P256())
		return nil
	}, 403, accessDenied, "signature"},
	{"R18 signed the canonical request", signed(func(c *call, canonical, _ string) string {
		return signWith(c.key, canonical)
	}), 403, accessDenied, "signature"},
}

// leaf makes a row's change to the caller's certificate.
func leaf(f func(*x509.Certificate)) func(*testing.T, *anywhere, *call) func() {
	return func(t *testing.T, e *anywhere, c *call) func() {
		c.leaf = e.root.leaf(t, e.key.Public(), f)
		return nil
	}
}

// headerX509 makes a row's change to the header of the certificate, and signs it.
func headerX509(f func(der []byte) string) func(*testing.T, *anywhere, *call) func() {
	return func(t *testing.T, e *anywhere, c *call) func() {
		for n := 1; len(c.leaf.Raw)%3 != 1; n++ { // leaves bits over in base64
			c.leaf = e.root.leaf(t, e.key.Public(), func(x *x509.Certificate) { x.Subject.CommonName = strings.Repeat("n", n) })
		}
		c.before = func(r *http.Request) { r.Header.Set("X-Amz-X509", f(c.leaf.Raw)) }
		return nil
	}
}

// leftoverBits sets a bit that base64 does not use.
func leftoverBits(der []byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	s := []byte(base64.StdEncoding.EncodeToString(der))
	last := len(s) - len("==") - 1
	s[last] = alphabet[strings.IndexByte(alphabet, s[last])|1]
	return string(s)
}

const untrusted = "Untrusted certificate"

var leafRows = []row{
	{"certificate with trailing bytes", headerX509(func(der []byte) string {
		return base64.StdEncoding.EncodeToString(append(der[:len(der):len(der)], 0))
	}), 403, accessDenied, untrusted},
	{"certificate with leftover bits", headerX509(leftoverBits), 403, accessDenied, untrusted},
	{"certificate in base64url", headerX509(func(der []byte) string {
		return base64.URLEncoding.EncodeToString(append(der[:len(der):len(der)], 0xff, 0xff))
	}), 403, accessDenied, untrusted},
	{"R19 expired 1 s ago", leaf(func(c *x509.Certificate) { c.NotAfter = newClock().Now().Add(-time.Second) }), 403, accessDenied, untrusted},
	{"R19 valid in an hour", leaf(func(c *x509.Certificate) { c.NotBefore = newClock().Now().Add(time.Hour) }), 403, accessDenied, untrusted},
	{"no digitalSignature", leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"no key usage", leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }), 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"no basic constraints", leaf(func(c *x509.Certificate) { c.BasicConstraintsValid = false }), 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"no clientAuth", leaf(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"R21 CA:TRUE", leaf(func(c *x509.Certificate) { c.IsCA = true }), 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"R22 empty subject", leaf(func(c *x509.Certificate) { c.Subject = pkix.Name{} }), 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"R23 SHA-1", func(t *testing.T, e *anywhere, c *call) func() {
		c.leaf = sha1Leaf(t, e)
		return nil
	}, 403, accessDenied, untrusted + ". Insufficient certificate"},
	{"R23 Ed25519", func(t *testing.T, e *anywhere, c *call) func() {
		pub, priv, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		c.leaf, c.sign = e.root.leaf(t, pub), func(_, text string) string {
			return hex.EncodeToString(ed25519.Sign(priv, []byte(text)))
		}
		return nil
	}, 403, accessDenied, "signature"},
	{"P-224", func(t *testing.T, e *anywhere, c *call) func() {
		k := newKey(t, elliptic.P224())
		c.key, c.leaf = k, e.root.leaf(t, k.Public())
		return nil
	}, 403, accessDenied, "signature"},
}

// sha1Leaf signs a leaf with SHA-1, which x509 no longer does.
func sha1Leaf(t *testing.T, e *anywhere) *x509.Certificate {
	t.Helper()
	sha1OID, sha256OID := []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1}, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}
	var tbs, cert struct {
		TBS asn1.RawValue
		Alg pkix.AlgorithmIdentifier
		Sig asn1.BitString
	}
	_, err := asn1.Unmarshal(e.cert.Raw, &cert)
	must(t, err)
	// The inner algorithm is one byte longer, so the lengths around it shrink too.
	inner := bytes.Replace(cert.TBS.Bytes, append([]byte{0x30, 10, 6, 8}, sha256OID...), append([]byte{0x30, 9, 6, 7}, sha1OID...), 1)
	tbs.TBS = asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true, Bytes: inner}
	der, err := asn1.Marshal(tbs.TBS)
	must(t, err)
	sum := sha1.Sum(der)
	sig, err := e.root.key.Sign(rand.Reader, sum[:], nil)
	must(t, err)
	tbs.TBS = asn1.RawValue{FullBytes: der}
	tbs.Alg = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}
	tbs.Sig = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	der, err = asn1.Marshal(tbs)
	must(t, err)
	out, err := x509.ParseCertificate(der)
	must(t, err)
	if out.SignatureAlgorithm != x509.ECDSAWithSHA1 {
		t.Fatalf("signature algorithm %s", out.SignatureAlgorithm)
	}
	return out
}

// chained makes the leaf with the last of a list of authorities below the root,
// each made by a change, and sends them all.
func chained(changes ...func(*x509.Certificate)) func(*testing.T, *anywhere, *call) func() {
	return func(t *testing.T, e *anywhere, c *call) func() {
		chainOf(t, e, c, changes...)
		return nil
	}
}

func chainOf(t *testing.T, e *anywhere, c *call, changes ...func(*x509.Certificate)) *authority {
	t.Helper()
	issuer := e.root
	for i, f := range changes {
		issuer = newAuthority(t, "intermediate "+string(rune('1'+i)), e.Now(), issuer, f)
		c.chain = append([]*x509.Certificate{issuer.cert}, c.chain...)
	}
	c.leaf = issuer.leaf(t, e.key.Public())
	return issuer
}

func plain(*x509.Certificate) {}

const signingCertificate = "Untrusted signing certificate"

var chainRows = []row{
	{"R24 another CA with the same name", func(t *testing.T, e *anywhere, c *call) func() {
		c.leaf = newAuthority(t, "root", e.Now(), nil).leaf(t, e.key.Public())
		return nil
	}, 403, accessDenied, signingCertificate},
	{"intermediate missing", func(t *testing.T, e *anywhere, c *call) func() {
		chainOf(t, e, c, plain)
		c.chain = nil
		return nil
	}, 403, accessDenied, signingCertificate},
	{"R26 pathLen 0 issued a CA", chained(func(c *x509.Certificate) { c.MaxPathLenZero = true }, plain), 403, accessDenied, signingCertificate},
	{"R26 intermediate without keyCertSign", chained(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), 403, accessDenied, signingCertificate},
	{"intermediate without any key usage", chained(func(c *x509.Certificate) { c.KeyUsage = 0 }), 403, accessDenied, signingCertificate},
	{"intermediate is no CA", func(t *testing.T, e *anywhere, c *call) func() {
		c.chain = []*x509.Certificate{e.cert}
		c.leaf = (&authority{cert: e.cert, key: e.key, now: e.Now()}).leaf(t, e.key.Public())
		return nil
	}, 403, accessDenied, signingCertificate},
	{"intermediate expired", chained(func(c *x509.Certificate) { c.NotAfter = newClock().Now().Add(-time.Second) }), 403, accessDenied, signingCertificate},
	{"intermediate for servers only", chained(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), 403, accessDenied, signingCertificate},
	{"name constraint", chained(func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"other.example"}, true
	}), 403, accessDenied, signingCertificate},
	{"R27 six certificates", chained(plain, plain, plain, plain, plain, plain), 400, validation, "limit is 5"},
	{"R28 leaf revoked", func(t *testing.T, e *anywhere, c *call) func() {
		must(t, e.cloud.ImportCRL(anchorARN, revoke(t, e.root, e.cert)))
		return func() { must(t, e.cloud.SetCRLsEnabled(anchorARN, false)) }
	}, 403, accessDenied, "Certificate revoked"},
	{"R28 intermediate revoked", func(t *testing.T, e *anywhere, c *call) func() {
		ca := chainOf(t, e, c, plain)
		must(t, e.cloud.ImportCRL(anchorARN, revoke(t, e.root, ca.cert)))
		return nil
	}, 403, accessDenied, "Certificate revoked"},
	{"R28 leaf revoked by its intermediate", func(t *testing.T, e *anywhere, c *call) func() {
		ca := chainOf(t, e, c, plain)
		must(t, e.cloud.ImportCRL(anchorARN, revoke(t, ca, c.leaf)))
		return nil
	}, 403, accessDenied, "Certificate revoked"},
	{"revocation list of the intermediate, signed by a stranger", func(t *testing.T, e *anywhere, c *call) func() {
		chainOf(t, e, c, plain)
		must(t, e.cloud.ImportCRL(anchorARN, revoke(t, newAuthority(t, "intermediate 1", e.Now(), nil))))
		return nil
	}, 403, accessDenied, "does not verify"},
}

func revoke(t *testing.T, ca *authority, certs ...*x509.Certificate) aws.CRL {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: ca.now, NextUpdate: ca.now.Add(time.Hour)}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: ca.now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	must(t, err)
	return aws.CRL{Data: pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), Enabled: true}
}

func query(name, value string) func(*testing.T, *anywhere, *call) func() {
	return request(func(_ *anywhere, c *call) { c.query.Set(name, value) })
}

var resourceRows = []row{
	{"unknown anchor", query("trustAnchorArn", strings.Replace(anchorARN, "1111", "2222", 1)), 404, "ResourceNotFoundException", ""},
	{"unknown profile", query("profileArn", strings.Replace(profileARN, "6666", "2222", 1)), 404, "ResourceNotFoundException", ""},
	{"R29 anchor disabled", func(t *testing.T, e *anywhere, _ *call) func() {
		must(t, e.cloud.SetTrustAnchorEnabled(anchorARN, false))
		return func() { must(t, e.cloud.SetTrustAnchorEnabled(anchorARN, true)) }
	}, 403, accessDenied, "disabled"},
	{"R29 profile disabled", func(t *testing.T, e *anywhere, _ *call) func() {
		must(t, e.cloud.SetProfileEnabled(profileARN, false))
		return func() { must(t, e.cloud.SetProfileEnabled(profileARN, true)) }
	}, 403, accessDenied, "disabled"},
	{"R31 anchor in another account", query("trustAnchorArn", strings.Replace(anchorARN, account, "000000000000", 1)), 403, accessDenied, "account"},
	{"R31 anchor in another region", query("trustAnchorArn", strings.Replace(anchorARN, region, "eu-west-1", 1)), 403, accessDenied, "region"},
	{"R31 profile in another region", query("profileArn", strings.Replace(profileARN, region, "eu-west-1", 1)), 403, accessDenied, "region"},
	{"role in another account", query("roleArn", strings.Replace(roleARN, account, "000000000000", 1)), 403, accessDenied, "account"},
	{"R32 role not in the profile", query("roleArn", roleARN+"2"), 403, accessDenied, "not in the profile"},
	{"role in the profile, not in the account", func(t *testing.T, e *anywhere, c *call) func() {
		p := e.profile
		p.RoleARNs = append(p.RoleARNs, roleARN+"2")
		must(t, e.cloud.PutProfile(p))
		c.query.Set("roleArn", roleARN+"2")
		return nil
	}, 403, accessDenied, "Unable to assume role for " + roleARN + "2."},
}

// policy makes a row's change to the role's trust policy.
func policy(old, new string) func(*testing.T, *anywhere, *call) func() {
	return func(t *testing.T, e *anywhere, _ *call) func() {
		changed := e.role
		if changed.TrustPolicy = strings.Replace(e.role.TrustPolicy, old, new, 1); changed.TrustPolicy == e.role.TrustPolicy {
			t.Fatalf("%q is not in the policy", old)
		}
		must(t, e.cloud.PutRole(changed))
		return func() { must(t, e.cloud.PutRole(e.role)) }
	}
}

func mapping(m map[string][]string) func(*testing.T, *anywhere, *call) func() {
	return func(t *testing.T, e *anywhere, _ *call) func() {
		p := e.profile
		p.AttributeMappings = m
		must(t, e.cloud.PutProfile(p))
		return func() { must(t, e.cloud.PutProfile(e.profile)) }
	}
}

const unable = "Unable to assume role for " + roleARN + "."

var sessionRows = []row{
	{"R34 longer than the role allows", func(t *testing.T, e *anywhere, c *call) func() {
		p := e.profile
		p.Duration = 2 * time.Hour
		must(t, e.cloud.PutProfile(p))
		c.body = `{"durationSeconds":3601}`
		return nil
	}, 403, accessDenied, unable + " The requested DurationSeconds exceeds the MaxSessionDuration set for this role."},
	{"session name that the profile does not accept", func(t *testing.T, e *anywhere, c *call) func() {
		p := e.profile
		p.AcceptRoleSessionName = false
		must(t, e.cloud.PutProfile(p))
		c.body = `{"roleSessionName":"ci"}`
		return nil
	}, 403, accessDenied, "Access Denied"},
	{"R37 no sts:TagSession", policy(`"sts:TagSession",`, ""), 403, accessDenied, unable},
	{"R37 no sts:SetSourceIdentity", policy(`,"sts:SetSourceIdentity"`, ""), 403, accessDenied, unable},
	{"no sts:AssumeRole", policy(`"sts:AssumeRole",`, ""), 403, accessDenied, unable},
	{"another service", policy("rolesanywhere.amazonaws.com", "ec2.amazonaws.com"), 403, accessDenied, unable},
	{"everyone but not the service", policy(`{"Service":"rolesanywhere.amazonaws.com"}`, `"*"`), 403, accessDenied, unable},
	{"R38 condition on another SPIFFE ID", policy(spiffeID, spiffeID+"2"), 403, accessDenied, unable},
	{"R38 condition on the second URI", func(t *testing.T, e *anywhere, c *call) func() {
		second, err := url.Parse(spiffeID)
		must(t, err)
		c.leaf = e.root.leaf(t, e.key.Public(), func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/first"}, second}
		})
		return nil
	}, 403, accessDenied, unable},
	{"R39 aws:SourceArn of another anchor", policy(anchorARN, strings.Replace(anchorARN, "1111", "2222", 1)), 403, accessDenied, unable},
	{"aws:SourceAccount of another", policy(`"ArnEquals":{`, `"StringLike":{"aws:SourceAccount":"0*"},"ArnEquals":{`), 403, accessDenied, unable},
	{"sts:SourceIdentity of another", policy(`"ArnEquals":{`, `"StringLike":{"sts:SourceIdentity":"CN=ledger"},"ArnEquals":{`), 403, accessDenied, unable},
	{"R41 SAN not mapped, StringEquals", mapping(map[string][]string{"x509Subject": {"*"}}), 403, accessDenied, unable},
	{"R42 SAN URI of 257", leaf(func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/" + strings.Repeat("x", 257-len("spiffe://example.org/"))}}
	}), 403, accessDenied, unable + " Some attributes failed to be mapped into session tags. Issuer: [ ]; Subject: [ ]; SAN: [ URI/6 ]"},
	{"subject that fits no tag", leaf(func(c *x509.Certificate) { c.Subject.Organization = []string{"Acme & Sons"} }), 403, accessDenied,
		"session tags. Issuer: [ ]; Subject: [ O ]; SAN: [ ]"},
	{"common name that makes no source identity", leaf(func(c *x509.Certificate) { c.Subject.CommonName = "two words" }), 403, accessDenied, unable},
}

func TestAnywhereThrottles(t *testing.T) {
	e := newAnywhere(t, func(cfg *aws.Config) { cfg.RatePerSecond = 0 })
	for range 10 {
		e.wantCredential(t)
	}
	w := e.send(t, e.call()) // R44
	if w.Code != http.StatusTooManyRequests || w.Header().Get("X-Amzn-Errortype") != "ThrottlingException" {
		t.Errorf("11th call: %d %v", w.Code, w.Header())
	}
	noCredential(t, w.Body.String())
	e.Add(100 * time.Millisecond)
	e.wantCredential(t)
	if w := e.send(t, e.call()); w.Code != http.StatusTooManyRequests {
		t.Errorf("a tenth of a second gave two tokens: %d", w.Code)
	}
	e.Add(-time.Hour)
	if w := e.send(t, e.call()); w.Code != http.StatusTooManyRequests {
		t.Errorf("a clock set back gave tokens: %d", w.Code)
	}
}

// TestAnywhereSucceeds has what is near to a refusal and is none.
func TestAnywhereSucceeds(t *testing.T) {
	rows := []struct {
		name   string
		change func(t *testing.T, e *anywhere, c *call) func()
	}{
		{"date 299 s back", date(-299 * time.Second)},
		{"date 299 s ahead", date(299 * time.Second)},
		{"date 300 s back", date(-300 * time.Second)},
		{"date 300 s ahead", date(300 * time.Second)},
		{"hash of the body", request(func(_ *anywhere, c *call) {
			c.before = func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", digest(c.body)) }
		})},
		{"spaces in a signed header", request(func(_ *anywhere, c *call) {
			c.before = func(r *http.Request) { r.Header.Set("Amz-Sdk-Request", "attempt=1; max=3") }
			c.after = func(r *http.Request) { r.Header.Set("Amz-Sdk-Request", "  attempt=1;   max=3 ") }
		})},
		{"all ARNs in the body", request(func(_ *anywhere, c *call) {
			c.query, c.body = nil, `{"trustAnchorArn":"`+anchorARN+`","profileArn":"`+profileARN+`","roleArn":"`+roleARN+`"}`
		})},
		{"ARN in query and body", body(`{"roleArn":"` + roleARN + `"}`)},
		{"instance properties", body(`{"instanceProperties":{"a":"b"}}`)},
		{"five intermediates", chained(plain, plain, plain, plain, plain)},
		{"the anchor's second certificate", func(t *testing.T, e *anywhere, c *call) func() {
			next, a := newAuthority(t, "next root", e.Now(), nil), e.anchor
			a.Certificates = append(a.Certificates, next.cert)
			must(t, e.cloud.PutTrustAnchor(a))
			c.leaf = next.leaf(t, e.key.Public())
			return nil
		}},
		{"R28 CRL disabled", func(t *testing.T, e *anywhere, _ *call) func() {
			list := revoke(t, e.root, e.cert)
			list.Enabled = false
			must(t, e.cloud.ImportCRL(anchorARN, list))
			return nil
		}},
		{"CRL of the same name and serial, by the anchor's other key", func(t *testing.T, e *anywhere, _ *call) func() {
			old, a := newAuthority(t, "root", e.Now(), nil), e.anchor
			a.Certificates, a.CRLs = append(a.Certificates, old.cert), []aws.CRL{revoke(t, old, e.cert)}
			must(t, e.cloud.PutTrustAnchor(a))
			return nil
		}},
		{"R41 SAN not mapped, StringNotEquals: the trap", func(t *testing.T, e *anywhere, c *call) func() {
			policy(`"StringEquals"`, `"StringNotEquals"`)(t, e, c)
			if w := e.send(t, e.call()); w.Code != http.StatusForbidden {
				t.Fatalf("with the mapping: %d", w.Code)
			}
			return mapping(map[string][]string{"x509Subject": {"*"}})(t, e, c)
		}},
		{"SAN URI of 256", func(t *testing.T, e *anywhere, c *call) func() {
			id := "spiffe://example.org/" + strings.Repeat("x", 256-len("spiffe://example.org/"))
			c.leaf = e.root.leaf(t, e.key.Public(), func(c *x509.Certificate) {
				c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: id[len("spiffe://example.org"):]}}
			})
			return policy(spiffeID, id)(t, e, c)
		}},
		{"RSA", func(t *testing.T, e *anywhere, c *call) func() {
			c.key, c.leaf, c.algorithm = rsaKey(), e.root.leaf(t, rsaKey().Public()), "AWS4-X509-RSA-SHA256"
			return nil
		}},
		{"P-384", func(t *testing.T, e *anywhere, c *call) func() {
			k := newKey(t, elliptic.P384())
			c.key, c.leaf = k, e.root.leaf(t, k.Public())
			return nil
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			e := newAnywhere(t)
			c := e.call()
			row.change(t, e, c)
			if w := e.send(t, c); w.Code != http.StatusCreated {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
		})
	}
}

// R43: a request sent again within the skew is answered again, with other
// credentials.
func TestAnywhereReplay(t *testing.T) {
	e := newAnywhere(t)
	c := e.call()
	c.sign = func(_, text string) string {
		sig := signWith(e.key, text)
		c.sign = func(string, string) string { return sig }
		return sig
	}
	first, second := e.send(t, c), e.send(t, c)
	if first.Code != http.StatusCreated || second.Code != http.StatusCreated || first.Body.String() == second.Body.String() {
		t.Errorf("status %d, then %d", first.Code, second.Code)
	}
}

func TestAnywhereOutput(t *testing.T) {
	e := newAnywhere(t)
	c := e.call()
	c.body = `{"durationSeconds":1800,"roleSessionName":"ci"}`
	w := e.send(t, c)
	var got map[string]any
	must(t, json.Unmarshal(w.Body.Bytes(), &got))
	set := got["credentialSet"].([]any)[0].(map[string]any)
	secrets := set["credentials"].(map[string]any)
	for name, size := range map[string]int{"accessKeyId": 20, "secretAccessKey": 40, "sessionToken": 320} {
		if s := secrets[name].(string); len(s) != size || name == "accessKeyId" && !strings.HasPrefix(s, "ASIA") {
			t.Errorf("%s is %q", name, s)
		}
		delete(secrets, name)
	}
	user := set["assumedRoleUser"].(map[string]any)
	if id := user["assumedRoleId"].(string); !strings.HasPrefix(id, "AROA") || len(id) != 21+len(":ci") {
		t.Errorf("assumedRoleId %q", id)
	}
	delete(user, "assumedRoleId")
	want := map[string]any{
		"credentialSet": []any{map[string]any{
			"assumedRoleUser":  map[string]any{"arn": "arn:aws:sts::123456789012:assumed-role/orders/ci"},
			"credentials":      map[string]any{"expiration": "2026-11-21T12:30:00Z"},
			"packedPolicySize": set["packedPolicySize"],
			"roleArn":          roleARN,
			"sourceIdentity":   "CN=orders",
		}},
		"subjectArn": got["subjectArn"],
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := set["packedPolicySize"].(float64); n < 1 || n > 100 {
		t.Errorf("packedPolicySize %v", n)
	}
	if s := got["subjectArn"].(string); !strings.HasPrefix(s, "arn:aws:rolesanywhere:us-east-1:123456789012:subject/") || len(s) != 89 {
		t.Errorf("subjectArn %q", s)
	}
}

// The profile's duration bounds what is asked for, and is used when nothing is.
func TestAnywhereDuration(t *testing.T) {
	rows := []struct {
		name, body string
		want       time.Duration
	}{
		{"of the profile", `{}`, 20 * time.Minute},
		{"shorter", `{"durationSeconds":900}`, 15 * time.Minute},
		{"longer", `{"durationSeconds":3600}`, 20 * time.Minute},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			e := newAnywhere(t, func(cfg *aws.Config) { cfg.Profiles[0].Duration = 20 * time.Minute })
			c := e.call()
			c.body = row.body
			e.send(t, c)
			s := e.cloud.Sessions()
			if len(s) != 1 || s[0].Expires != e.Now().Add(row.want) {
				t.Errorf("sessions %+v", s)
			}
		})
	}
}

func TestAnywhereAttributes(t *testing.T) {
	e := newAnywhere(t)
	directory, err := asn1.Marshal(pkix.Name{CommonName: "in the directory"}.ToRDNSequence())
	must(t, err)
	san, err := asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("one.example.org")},
		{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(spiffeID)},
		{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("two.example.org")},
		{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: directory},
	})
	must(t, err)
	leaf := func(name pkix.Name) *call {
		c := e.call()
		c.leaf = e.root.leaf(t, e.key.Public(), func(c *x509.Certificate) {
			c.Subject, c.URIs, c.DNSNames = name, nil, nil
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}}
		})
		return c
	}
	issuer := map[string]string{"x509Issuer/CN": "root", "x509Issuer/O": "Acme", "x509SAN/DNS": "one.example.org",
		"x509SAN/URI": spiffeID, "x509SAN/Name/CN": "in the directory"}
	rows := []struct {
		name    string
		subject pkix.Name
		source  string
		session string
		tags    map[string]string
	}{
		{"several units", pkix.Name{CommonName: "orders", OrganizationalUnit: []string{"a", "b"}}, "CN=orders", "0abcdef01234",
			map[string]string{"x509Subject/CN": "orders", "x509Subject/OU": "a/b"}},
		{"name of 61", pkix.Name{CommonName: strings.Repeat("n", 61)}, "CN=" + strings.Repeat("n", 61), "0abcdef01234",
			map[string]string{"x509Subject/CN": strings.Repeat("n", 61)}},
		{"name of 62", pkix.Name{CommonName: strings.Repeat("n", 62)}, strings.Repeat("n", 62), "0abcdef01234",
			map[string]string{"x509Subject/CN": strings.Repeat("n", 62)}},
		{"no name", pkix.Name{Country: []string{"SE"}}, "ID=0abcdef01234", "0abcdef01234",
			map[string]string{"x509Subject/C": "SE"}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := leaf(row.subject)
			w := e.send(t, c)
			var got aws.Session
			for _, s := range e.cloud.Sessions() {
				if strings.Contains(w.Body.String(), s.AccessKeyID) {
					got = s
				}
			}
			for k, v := range issuer {
				row.tags[k] = v
			}
			if diff := cmp.Diff(row.tags, got.Tags); diff != "" {
				t.Errorf("%s: %s", w.Body, diff)
			}
			if got.SourceIdentity != row.source || !strings.HasSuffix(got.ARN, "/orders/"+row.session) {
				t.Errorf("session %+v", got)
			}
		})
	}
}
