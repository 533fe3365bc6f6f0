package workloadapi_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/workloadapi"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation/federationtest"
)

// signers makes the keys of the vectors once.
type signers struct {
	keys    map[string]crypto.Signer
	bundles map[spiffeid.TrustDomain]*agent.Bundle
}

func newSigners(t testing.TB) signers {
	t.Helper()
	s := signers{map[string]crypto.Signer{}, map[spiffeid.TrustDomain]*agent.Bundle{}}
	for kid, curve := range map[string]elliptic.Curve{"k256": elliptic.P256(), "k384": elliptic.P384(), "k521": elliptic.P521(), "peer": elliptic.P256(), "unknown": elliptic.P256()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s.keys[kid] = key
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.keys["rsa"], s.keys["ed"] = key, ed
	own := &agent.Bundle{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), JWTAuthorities: map[string]crypto.PublicKey{}}
	for _, kid := range []string{"k256", "k384", "k521", "rsa", "ed"} {
		own.JWTAuthorities[kid] = s.keys[kid].Public()
	}
	peer := &agent.Bundle{TrustDomain: spiffeid.RequireTrustDomainFromString("peer.example"), JWTAuthorities: map[string]crypto.PublicKey{"peer": s.keys["peer"].Public()}}
	s.bundles[own.TrustDomain], s.bundles[peer.TrustDomain] = own, peer
	return s
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// token signs the very bytes of header and claims, whatever they say.
func (s signers) token(t testing.TB, alg jose.SignatureAlgorithm, kid, header, claims string) string {
	t.Helper()
	input := b64(header) + "." + b64(claims)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(t, alg, s.keys[kid], input))
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key crypto.Signer, input string) []byte {
	t.Helper()
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[string(alg)[2:]]
	h := hash.New()
	h.Write([]byte(input))
	sum := h.Sum(nil)
	var out []byte
	var err error
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		r, sv, e := ecdsa.Sign(rand.Reader, key, sum)
		size := (key.Curve.Params().BitSize + 7) / 8
		if err = e; err == nil {
			out = append(r.FillBytes(make([]byte, size)), sv.FillBytes(make([]byte, size))...)
		}
	case *rsa.PrivateKey:
		if strings.HasPrefix(string(alg), "PS") {
			out, err = rsa.SignPSS(rand.Reader, key, hash, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			out, err = rsa.SignPKCS1v15(rand.Reader, key, hash, sum)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestValidateVectors holds validate to the JWT-SVID vectors: a table of
// headers and claims signed by a key that the bundle has.
//
// Regression: SPIRE 1.12.3 exp
// Regression: CVE-2026-11800
func TestValidateVectors(t *testing.T) {
	t.Parallel()
	s := newSigners(t)
	now := time.Now()
	const h = `{"alg":"ES256","kid":"k256","typ":"JWT"}`
	claims := func(format string, args ...any) string {
		return fmt.Sprintf(`{"sub":"spiffe://example.org/w","aud":["reports"],`+format+`}`, args...)
	}
	c := claims(`"exp":%d`, now.Unix()+300)
	sub := func(sub string) string { return strings.Replace(c, `"spiffe://example.org/w"`, sub, 1) }
	aud := func(aud string) string { return strings.Replace(c, `["reports"]`, aud, 1) }
	type row struct {
		name, header, claims string
		alg                  jose.SignatureAlgorithm // ES256 if empty
		kid                  string                  // k256 if empty
		change               func(token string) string
		audience             string // reports if empty, none if "none"
		accept               bool
	}
	rows := []row{
		{name: "JC-01 baseline", header: h, claims: c, accept: true},
		{name: "JC-11 typ JOSE", header: `{"alg":"ES256","kid":"k256","typ":"JOSE"}`, claims: c, accept: true},
		{name: "typ absent", header: `{"alg":"ES256","kid":"k256"}`, claims: c, accept: true},
		{name: "JC-12 kid absent", header: `{"alg":"ES256","typ":"JWT"}`, claims: c, accept: true},
		{name: "kid absent, key of nobody", header: `{"alg":"ES256","typ":"JWT"}`, claims: c, kid: "unknown"},
		{name: "JC-13 aud a string", header: h, claims: aud(`"reports"`), accept: true},
		{name: "JC-14 aud two", header: h, claims: aud(`["x","reports"]`), accept: true},
		{name: "JC-16 the other audience that its validator goes by", header: h, claims: aud(`["reports-eu"]`), audience: "reports-eu", accept: true},
		{name: "JC-17 more registered claims", header: h, claims: claims(`"exp":%d,"iss":"https://oidc.example.org","nbf":%d,"iat":%d,"jti":"u1"`, now.Unix()+300, now.Unix(), now.Unix()), accept: true},
		{name: "JC-18 a private claim", header: h, claims: claims(`"exp":%d,"https://example.org/role":"admin"`, now.Unix()+300), accept: true},
		{name: "JC-19 exp 30 s ago", header: h, claims: claims(`"exp":%d`, now.Unix()-30), accept: true},
		{name: "exp 61 s ago", header: h, claims: claims(`"exp":%d`, now.Unix()-61)},
		{name: "JC-21 D-15 sub without a path", header: h, claims: sub(`"spiffe://example.org"`)}, // we are stricter
		{name: "JC-22 alg none", header: `{"alg":"none","kid":"k256"}`, claims: c, change: unsigned},
		{name: "JC-23 alg NONE", header: `{"alg":"NONE","kid":"k256"}`, claims: c, change: unsigned},
		{name: "JC-24 alg HS256", header: `{"alg":"HS256","kid":"k256","typ":"JWT"}`, claims: c},
		{name: "alg EdDSA", header: `{"alg":"EdDSA","kid":"ed","typ":"JWT"}`, claims: c},
		{name: "JC-26 alg ES256K", header: `{"alg":"ES256K","kid":"k256"}`, claims: c},
		{name: "JC-27 alg es256", header: `{"alg":"es256","kid":"k256"}`, claims: c},
		{name: "JC-28 alg RS1", header: `{"alg":"RS1","kid":"rsa","typ":"JWT"}`, claims: c},
		{name: "JC-29 alg missing", header: `{"kid":"k256","typ":"JWT"}`, claims: c},
		{name: "JC-31 RS256 with an EC key", header: `{"alg":"RS256","kid":"k256","typ":"JWT"}`, claims: c},
		{name: "ES384 with a P-256 key", header: `{"alg":"ES384","kid":"k256","typ":"JWT"}`, claims: c},
		{name: "JC-32 typ jwt", header: `{"alg":"ES256","kid":"k256","typ":"jwt"}`, claims: c},
		{name: "JC-33 typ at+jwt", header: `{"alg":"ES256","kid":"k256","typ":"at+jwt"}`, claims: c},
		{name: "JC-34 typ wit+jwt", header: `{"alg":"ES256","kid":"k256","typ":"wit+jwt"}`, claims: c},
		{name: "JC-36 typ null", header: `{"alg":"ES256","kid":"k256","typ":null}`, claims: c},
		{name: "JC-37 cty", header: `{"alg":"ES256","kid":"k256","cty":"x"}`, claims: c, accept: true},
		{name: "JC-38 jku, never followed", header: `{"alg":"ES256","kid":"k256","jku":"https://evil.example/jwks"}`, claims: c, accept: true},
		{name: "JC-39 jwk, which signed it", header: s.embedded(t, "unknown"), claims: c, kid: "unknown"},
		{name: "JC-39 jwk that is broken", header: `{"alg":"ES256","kid":"k256","jwk":{"kty":"EC"}}`, claims: c},
		{name: "JC-41 a private header", header: `{"alg":"ES256","kid":"k256","foo":"bar"}`, claims: c, accept: true},
		{name: "JC-42 crit", header: `{"alg":"ES256","kid":"k256","crit":["exp"],"exp":1}`, claims: c},
		{name: "JC-43 crit b64", header: `{"alg":"ES256","kid":"k256","crit":["b64"],"b64":false}`, claims: c},
		{name: "JC-44 alg twice", header: `{"alg":"none","alg":"ES256","kid":"k256"}`, claims: c},
		{name: "JC-46 kid of another key", header: `{"alg":"ES256","kid":"k384","typ":"JWT"}`, claims: c},
		{name: "JC-47 kid empty", header: `{"alg":"ES256","kid":"","typ":"JWT"}`, claims: c},
		{name: "kid of no key", header: `{"alg":"ES256","kid":"k1","typ":"JWT"}`, claims: c},
		{name: "kid a number", header: `{"alg":"ES256","kid":1,"typ":"JWT"}`, claims: c},
		{name: "JC-48 sub missing", header: h, claims: fmt.Sprintf(`{"aud":["reports"],"exp":%d}`, now.Unix()+300)},
		{name: "JC-49 sub empty", header: h, claims: sub(`""`)},
		{name: "JC-51 sub a URL", header: h, claims: sub(`"https://example.org/w"`)},
		{name: "JC-52 sub with a slash at its end", header: h, claims: sub(`"spiffe://example.org/w/"`)},
		{name: "JC-53 sub in upper case", header: h, claims: sub(`"spiffe://EXAMPLE.org/w"`)},
		{name: "JC-54 sub a list", header: h, claims: sub(`["spiffe://example.org/w"]`)},
		{name: "JC-56 sub twice", header: h, claims: sub(`"spiffe://example.org/admin","sub":"spiffe://example.org/w"`)},
		{name: "a name twice, below", header: h, claims: claims(`"exp":%d,"x":{"a":1,"a":2}`, now.Unix()+300)},
		{name: "JC-57 aud missing", header: h, claims: fmt.Sprintf(`{"sub":"spiffe://example.org/w","exp":%d}`, now.Unix()+300)},
		{name: "JC-58 aud missing, no audience to validate for", header: h, claims: fmt.Sprintf(`{"sub":"spiffe://example.org/w","exp":%d}`, now.Unix()+300), audience: "none"},
		{name: "JC-59 no audience to validate for", header: h, claims: c, audience: "none"},
		{name: "aud an empty string, no audience to validate for", header: h, claims: aud(`""`), audience: "none"},
		{name: "JC-61 aud null", header: h, claims: aud(`null`)},
		{name: "aud empty", header: h, claims: aud(`[]`)},
		{name: "JC-62 aud with a number", header: h, claims: aud(`["reports",1]`)},
		{name: "JC-63 aud another", header: h, claims: aud(`["other"]`)},
		{name: "JC-64 aud in other case", header: h, claims: aud(`["Reports"]`)},
		{name: "JC-66 exp missing", header: h, claims: claims(`"x":1`)},
		{name: "JC-67 exp null", header: h, claims: claims(`"exp":null`)},
		{name: "JC-68 exp a string", header: h, claims: claims(`"exp":"%d"`, now.Unix()+300)},
		{name: "JC-69 exp 0", header: h, claims: claims(`"exp":0`)},
		{name: "JC-71 exp 120 s ago", header: h, claims: claims(`"exp":%d`, now.Unix()-120)},
		{name: "JC-72 exp 1e400", header: h, claims: claims(`"exp":1e400`)},
		{name: "exp 1e300", header: h, claims: claims(`"exp":1e300`)},
		{name: "JC-73 nbf in 120 s", header: h, claims: claims(`"exp":%d,"nbf":%d`, now.Unix()+300, now.Unix()+120)},
		{name: "nbf a string", header: h, claims: claims(`"exp":%d,"nbf":"0"`, now.Unix()+300)},
		{name: "JC-74 iat in 120 s", header: h, claims: claims(`"exp":%d,"iat":%d`, now.Unix()+300, now.Unix()+120), accept: true},
		{name: "JC-76 an unknown key", header: h, claims: c, kid: "unknown"},
		{name: "another domain's key", header: `{"alg":"ES256","kid":"peer"}`, claims: c, kid: "peer"},
		{name: "another domain's key without kid", header: `{"alg":"ES256"}`, claims: c, kid: "peer"},
		{name: "another domain's own", header: `{"alg":"ES256","kid":"peer"}`, claims: sub(`"spiffe://peer.example/w"`), kid: "peer", accept: true},
		{name: "our key for another domain", header: h, claims: sub(`"spiffe://peer.example/w"`)},
		{name: "a domain without a bundle", header: h, claims: sub(`"spiffe://stranger.example/w"`)},
		{name: "JC-77 signature cut", header: h, claims: c, change: func(s string) string { return s[:len(s)-4] }},
		{name: "JC-78 signature empty", header: h, claims: c, change: unsigned},
		{name: "JC-79 payload altered", header: h, claims: c, change: func(s string) string {
			parts := strings.Split(s, ".")
			return parts[0] + "." + b64(sub(`"spiffe://example.org/admin"`)) + "." + parts[2]
		}},
		{name: "JC-81 JSON", header: h, claims: c, change: func(s string) string {
			parts := strings.Split(s, ".")
			return fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2])
		}},
		{name: "JC-82 JSON with an unprotected header", header: h, claims: c, change: func(s string) string {
			parts := strings.Split(s, ".")
			return fmt.Sprintf(`{"protected":%q,"header":{"kid":"k256"},"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2])
		}},
		{name: "JC-83 padding", header: h, claims: c, change: func(s string) string { return strings.Replace(s, ".", "=.", 1) }},
		{name: "JC-84 four parts", header: h, claims: c, change: func(s string) string { return s + ".x" }},
		{name: "JC-86 five parts", header: h, claims: c, change: func(s string) string { return s + ".x.y" }},
		{name: "JC-87 a newline at the end", header: h, claims: c, change: func(s string) string { return s + "\n" }},
		{name: "JC-87 a space before", header: h, claims: c, change: func(s string) string { return " " + s }},
		{name: "JC-88 Bearer", header: h, claims: c, change: func(s string) string { return "Bearer " + s }},
		{name: "JC-89 empty", header: h, claims: c, change: func(string) string { return "" }},
		{name: "too long", header: h, claims: claims(`"exp":%d,"x":%q`, now.Unix()+300, strings.Repeat("x", 20<<10))},
		{name: "too deep", header: h, claims: claims(`"exp":%d,"x":%s`, now.Unix()+300, strings.Repeat("[", 100)+strings.Repeat("]", 100))},
		{name: "two values", header: h + h, claims: c},
		{name: "not an object", header: h, claims: `["x"]`},
		{name: "null", header: h, claims: `null`},
	}
	for vector, key := range map[string]struct {
		alg jose.SignatureAlgorithm
		kid string
	}{
		"JC-02": {jose.ES384, "k384"}, "JC-03": {jose.ES512, "k521"}, "JC-04": {jose.RS256, "rsa"}, "RS384": {jose.RS384, "rsa"},
		"JC-06": {jose.RS512, "rsa"}, "JC-07": {jose.PS256, "rsa"}, "JC-08": {jose.PS384, "rsa"}, "JC-09": {jose.PS512, "rsa"},
	} {
		rows = append(rows, row{name: vector + " " + string(key.alg), header: fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, key.alg, key.kid), claims: c, alg: key.alg, kid: key.kid, accept: true})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if r.alg == "" {
				r.alg = jose.ES256
			}
			if r.kid == "" {
				r.kid = "k256"
			}
			token := s.token(t, r.alg, r.kid, r.header, r.claims)
			if r.change != nil {
				token = r.change(token)
			}
			audience := "reports"
			switch r.audience {
			case "":
			case "none":
				audience = ""
			default:
				audience = r.audience
			}
			id, got, err := workloadapi.Validate(token, audience, s.bundles, nothing(t), now)
			if r.accept != (err == nil) {
				t.Fatalf("accepted: %v, want %v: %v", err == nil, r.accept, err)
			}
			if err == nil && (got["sub"] != id.String() || got["aud"] == nil || got["exp"] == nil) {
				t.Errorf("claims of %s: %v", id, got)
			}
		})
	}
}

// embedded is a header that brings a key along.
func (s signers) embedded(t testing.TB, kid string) string {
	t.Helper()
	key, err := json.Marshal(jose.JSONWebKey{Key: s.keys[kid].Public()})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"alg":"ES256","kid":"k256","jwk":%s}`, key)
}

// TestSubjectVectors are the vectors of section A as the subject of a token,
// signed by the authority of the trust domain that they name.
func TestSubjectVectors(t *testing.T) {
	t.Parallel()
	s := newSigners(t)
	now := time.Now()
	own := s.bundles[spiffeid.RequireTrustDomainFromString("example.org")]
	for _, v := range federationtest.SPIFFEIDs(t) {
		t.Run(v.ID, func(t *testing.T) {
			bundles := maps.Clone(s.bundles)
			if id, err := spiffeid.FromString(v.Input); err == nil {
				bundles[id.TrustDomain()] = &agent.Bundle{TrustDomain: id.TrustDomain(), JWTAuthorities: own.JWTAuthorities}
			}
			sub, err := json.Marshal(v.Input)
			if err != nil {
				t.Fatal(err)
			}
			claims := fmt.Sprintf(`{"sub":%s,"aud":"reports","exp":%d}`, sub, now.Unix()+300)
			id, _, err := workloadapi.Validate(s.token(t, jose.ES256, "k256", `{"alg":"ES256","kid":"k256"}`, claims), "reports", bundles, nothing(t), now)
			want := v.Valid() && v.ID != "ID-001" // no workload's: it has no path
			if (err == nil) != want || (want && id.String() != v.Input) {
				t.Errorf("%.80q gave %q, %v: %s", v.Input, id, err, v.Reason)
			}
		})
	}
}

// nothing is revoked.
func nothing(t testing.TB) *agent.Cutoffs { return revoked(t) }

func revoked(t testing.TB, all ...*api.Cutoff) *agent.Cutoffs {
	t.Helper()
	c, err := agent.NewCutoffs(spiffeid.RequireTrustDomainFromString("example.org"), all)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestValidateRevoked holds tokens against cut-offs: of their ID, and of the
// key that signed them, which is the one that verifies and not the one named.
func TestValidateRevoked(t *testing.T) {
	t.Parallel()
	s := newSigners(t)
	now := time.Now()
	issued := now.Add(-10 * time.Second).Truncate(time.Second)
	const named, unnamed = `{"alg":"ES256","kid":"k256"}`, `{"alg":"ES256"}`
	token := func(header, sub, kid, more string) string {
		return s.token(t, jose.ES256, kid, header, fmt.Sprintf(`{"sub":%q,"aud":"reports","exp":%d%s}`, sub, issued.Unix()+240, more))
	}
	iat := fmt.Sprintf(`,"iat":%d`, issued.Unix()-60)
	own := token(named, "spiffe://example.org/w", "k256", iat)
	cut := func(kind, value string, before time.Time) *agent.Cutoffs {
		return revoked(t, &api.Cutoff{Kind: kind, Value: value, Before: before.UnixMilli()})
	}
	after := issued.Add(time.Millisecond)
	for name, row := range map[string]struct {
		token   string
		revoked *agent.Cutoffs
		accept  bool
	}{
		"nothing is revoked":             {own, nothing(t), true},
		"what is revoked is not known":   {own, nil, false},
		"its ID":                         {own, cut("id", "spiffe://example.org/w", after), false},
		"its ID, before it was issued":   {own, cut("id", "spiffe://example.org/w", issued), true},
		"another ID":                     {own, cut("id", "spiffe://example.org/v", after), true},
		"its key":                        {own, cut("authority", "k256", after), false},
		"its key, before it was issued":  {own, cut("authority", "k256", issued), true},
		"another key":                    {own, cut("authority", "rsa", after), true},
		"its key, which it names not":    {token(unnamed, "spiffe://example.org/w", "k256", iat), cut("authority", "k256", after), false},
		"it says not when":               {token(named, "spiffe://example.org/w", "k256", ""), cut("id", "spiffe://example.org/w", issued.Add(-time.Hour)), false},
		"it says nonsense":               {token(named, "spiffe://example.org/w", "k256", `,"iat":"now"`), cut("id", "spiffe://example.org/w", issued.Add(-time.Hour)), false},
		"it says nonsense, of no import": {token(named, "spiffe://example.org/w", "k256", `,"iat":"now"`), nothing(t), true},
		"a peer's, of a key of our name": {s.token(t, jose.ES256, "peer", unnamed, fmt.Sprintf(`{"sub":"spiffe://peer.example/w","aud":"reports","exp":%d%s}`, issued.Unix()+240, iat)), cut("authority", "peer", after), true},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := workloadapi.Validate(row.token, "reports", s.bundles, row.revoked, now)
			if row.accept != (err == nil) {
				t.Errorf("accepted: %v, want %v: %v", err == nil, row.accept, err)
			}
		})
	}
}

func unsigned(token string) string { return token[:strings.LastIndexByte(token, '.')+1] }

func FuzzValidate(f *testing.F) {
	s := newSigners(f)
	now := time.Now()
	claims := fmt.Sprintf(`{"sub":"spiffe://example.org/w","aud":"reports","exp":%d}`, now.Unix()+300)
	good := s.token(f, jose.ES256, "k256", `{"alg":"ES256","kid":"k256"}`, claims)
	for _, token := range []string{good, good + ".x", unsigned(good), "", "..", b64("{}") + "." + b64("{}") + "."} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, got, err := workloadapi.Validate(token, "reports", s.bundles, nothing(t), now)
		if err != nil {
			return
		}
		// Nobody but s signs: what is accepted says what was signed.
		if id.String() != "spiffe://example.org/w" {
			t.Errorf("accepted %q of %s", token, id)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Error(err)
		}
	})
}
