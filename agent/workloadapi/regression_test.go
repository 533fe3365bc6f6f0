package workloadapi_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credence-id/credence/agent/workloadapi"
)

func (s signers) refuse(t *testing.T, name, token string, now time.Time) {
	t.Helper()
	if id, _, err := workloadapi.Validate(token, "reports", s.bundles, nothing(t), now); err == nil {
		t.Errorf("%s: taken as %s", name, id)
	}
}

// The algorithm is the key's: a public key is no secret, and no key signs by
// another's rules.
//
// Regression: CVE-2026-11800
func TestAlgorithmsAreTheKeys(t *testing.T) {
	t.Parallel()
	s, now := newSigners(t), time.Now()
	claims := fmt.Sprintf(`{"sub":"spiffe://example.org/w","aud":"reports","exp":%d}`, now.Unix()+300)
	fits := map[string][]jose.SignatureAlgorithm{
		"k256": {jose.ES256}, "k384": {jose.ES384}, "k521": {jose.ES512}, "ed": nil,
		"rsa": {jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512},
	}
	algs := []string{"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "HS256", "HS384", "HS512", "EdDSA", "none", "None", "", "ES256K", "RSA1_5", "dir"}
	for kid, own := range fits {
		for _, signed := range own {
			for _, said := range algs {
				token := s.token(t, signed, kid, fmt.Sprintf(`{"alg":%q,"kid":%q}`, said, kid), claims)
				_, _, err := workloadapi.Validate(token, "reports", s.bundles, nothing(t), now)
				if want := said == string(signed); (err == nil) != want {
					t.Errorf("%s signs %s and says %s: %v", kid, signed, said, err)
				}
			}
			twice := s.token(t, signed, kid, fmt.Sprintf(`{"alg":%q,"alg":"none","kid":%q}`, signed, kid), claims)
			s.refuse(t, kid+": alg twice", twice, now)
			s.refuse(t, kid+": alg twice, in two cases", s.token(t, signed, kid, fmt.Sprintf(`{"ALG":%q,"kid":%q}`, signed, kid), claims), now)
		}
		der, err := x509.MarshalPKIXPublicKey(s.keys[kid].Public())
		must(t, err)
		secrets := map[string][]byte{
			"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "nothing": nil, "its name": []byte(kid),
		}
		jwk, err := json.Marshal(jose.JSONWebKey{Key: s.keys[kid].Public(), KeyID: kid})
		must(t, err)
		secrets["JWK"] = jwk
		for name, secret := range secrets {
			for alg, h := range map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New, "RS256": sha256.New, "ES256": sha256.New} {
				input := b64(fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, kid)) + "." + b64(claims)
				mac := hmac.New(h, secret)
				mac.Write([]byte(input))
				s.refuse(t, kid+": "+alg+" by "+name, input+"."+base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), now)
			}
		}
	}
}

// What a token must say it must say, as the type that it is of.
//
// Regression: SPIRE 1.12.3 exp
// Regression: CVE-2024-5798
func TestClaimsOfATokenAreRequired(t *testing.T) {
	t.Parallel()
	s, now := newSigners(t), time.Now()
	const header = `{"alg":"ES256","kid":"k256"}`
	good := map[string]string{"sub": `"spiffe://example.org/w"`, "aud": `"reports"`, "exp": fmt.Sprint(now.Unix() + 300)}
	text := func(name, value string) string {
		var all []string
		for k, v := range good {
			if k == name {
				v = value
			}
			if v != "" {
				all = append(all, fmt.Sprintf("%q:%s", k, v))
			}
		}
		return "{" + strings.Join(all, ",") + "}"
	}
	id, _, err := workloadapi.Validate(s.token(t, jose.ES256, "k256", header, text("", "")), "reports", s.bundles, nothing(t), now)
	if err != nil || id.String() != "spiffe://example.org/w" {
		t.Fatal(id, err)
	}
	soon := fmt.Sprint(now.Unix() + 300)
	for name, values := range map[string][]string{
		"exp": {"", `null`, `""`, `"` + soon + `"`, `"1e400"`, `1e400`, `-1e400`, `1e300`, `9007199254740993`, `18446744073709551616`, `-1`, `0`, `true`, `[` + soon + `]`, `{}`},
		"sub": {"", `null`, `""`, `1`, `true`, `["spiffe://example.org/w"]`, `{"a":"spiffe://example.org/w"}`, `"spiffe://example.org"`, `"w"`, `"spiffe://example.org/w#"`, `"spiffe://example.org/w?"`, `"spiffe://example.org/w\u0000"`},
		"aud": {"", `null`, `""`, `1`, `true`, `{}`, `{"reports":1}`, `[]`, `[""]`, `["other"]`, `"other"`, `["reports",null]`, `["reports",["reports"]]`, `[["reports"]]`, `"reports "`, `"reports,other"`, `"Reports"`, `"report"`},
	} {
		for _, v := range values {
			s.refuse(t, name+" "+v, s.token(t, jose.ES256, "k256", header, text(name, v)), now)
		}
	}
	for _, aud := range []string{`"reports"`, `["reports"]`, `["other","reports"]`} { // both ways to write it
		if _, _, err := workloadapi.Validate(s.token(t, jose.ES256, "k256", header, text("aud", aud)), "reports", s.bundles, nothing(t), now); err != nil {
			t.Errorf("aud %s: %v", aud, err)
		}
	}
	s.refuse(t, "an audience that nobody names", s.token(t, jose.ES256, "k256", header, text("aud", `[""]`)), now)
}

// What is too long is refused before anybody counts its dots, and what is
// encrypted, compressed or in another form is none of ours.
//
// Regression: CVE-2025-27144
// Regression: CVE-2025-30204
// Regression: CVE-2025-66506
// Regression: CVE-2024-28180
// Regression: CVE-2026-34986
func TestBombsAreRefusedForLittle(t *testing.T) {
	s, now := newSigners(t), time.Now()
	part := strings.Repeat("A", 4<<20)
	bombs := map[string]string{
		"dots": strings.Repeat(".", 10<<20), "three long parts": part + "." + part + "." + part, "quotes": strings.Repeat(`"`, 10<<20),
		"brackets": b64(strings.Repeat("[", 10<<20)) + ".e30.e30", "a byte too many": strings.Repeat(".", 16<<10+1),
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, token := range bombs {
		s.refuse(t, name, token, now)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
		t.Errorf("refusing them took %d bytes", n)
	}
	for name, token := range map[string]string{
		"16 KiB of dots":        strings.Repeat(".", 16<<10),
		"JWE":                   b64(`{"alg":"dir","enc":"A256GCM","zip":"DEF"}`) + "..QQ.QQ.QQ",
		"JWE without its parts": b64(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + "....",
		"deep":                  b64(strings.Repeat("[", 8<<10)) + ".e30.e30",
		"zip":                   b64(`{"alg":"ES256","zip":"DEF","kid":"k256"}`) + ".e30.e30",
	} {
		s.refuse(t, name, token, now)
	}
}

// A token's words lead nobody anywhere: keys come from the bundle alone, and
// no answer holds what an address says.
//
// Regression: CVE-2025-52477
// Regression: CVE-2026-49478
func TestNothingThatATokenNamesIsFetched(t *testing.T) {
	t.Parallel()
	s, now := newSigners(t), time.Now()
	var asked atomic.Int32
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			c.Close()
		}
	}()
	at := "http://" + l.Addr().String()
	for _, kid := range []string{"k256", "unknown"} {
		for _, sub := range []string{"spiffe://example.org/w", "spiffe://stranger.example/w", "spiffe://127.0.0.1/w", at} {
			header := fmt.Sprintf(`{"alg":"ES256","kid":%q,"jku":%q,"x5u":%q,"iss":%q}`, kid, at, at, at)
			claims := fmt.Sprintf(`{"sub":%q,"iss":%q,"jwks_uri":%q,"aud":["reports"],"exp":%d}`, sub, at, at, now.Unix()+300)
			_, _, err := workloadapi.Validate(s.token(t, jose.ES256, kid, header, claims), "reports", s.bundles, nothing(t), now)
			if want := kid == "k256" && sub == "spiffe://example.org/w"; (err == nil) != want {
				t.Errorf("%s of %s: %v", sub, kid, err)
			}
		}
	}
	must(t, l.Close())
	<-accepted
	if n := asked.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}
