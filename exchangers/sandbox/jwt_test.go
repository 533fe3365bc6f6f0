package sandbox_test

import (
	"crypto"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/credence-id/credence/exchangers/sandbox"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func raw(header, claims string) string {
	return b64([]byte(header)) + "." + b64([]byte(claims)) + "." + b64([]byte("x"))
}

func TestParseJWTRefuses(t *testing.T) {
	good := raw(`{"alg":"RS256"}`, `{"sub":"a"}`)
	if _, err := sandbox.ParseJWT(good); err != nil {
		t.Fatal(err)
	}
	deep := strings.Repeat(`{"a":`, 30) + "1" + strings.Repeat("}", 30)
	for name, tc := range map[string]struct {
		token string
		want  error
	}{
		"two segments":             {good[:strings.LastIndex(good, ".")], sandbox.ErrMalformed},
		"four segments":            {good + ".e30", sandbox.ErrMalformed},
		"trailing newline":         {good + "\n", sandbox.ErrMalformed},
		"newline in the middle":    {strings.Replace(good, ".", "\n.", 1), sandbox.ErrMalformed},
		"padding":                  {good + "=", sandbox.ErrMalformed},
		"standard base64":          {good[:len(good)-1] + "+", sandbox.ErrMalformed},
		"stray bits":               {good[:len(good)-1] + "B", sandbox.ErrMalformed},
		"duplicate claim":          {raw(`{"alg":"RS256"}`, `{"sub":"a","sub":"b"}`), sandbox.ErrMalformed},
		"duplicate claim, escaped": {raw(`{"alg":"RS256"}`, `{"sub":"a","su\u0062":"b"}`), sandbox.ErrMalformed},
		"duplicate in the depth":   {raw(`{"alg":"RS256"}`, `{"x":[{"a":1,"a":2}]}`), sandbox.ErrMalformed},
		"duplicate header":         {raw(`{"alg":"RS256","alg":"none"}`, `{}`), sandbox.ErrMalformed},
		"array for claims":         {raw(`{"alg":"RS256"}`, `[]`), sandbox.ErrMalformed},
		"two values":               {raw(`{"alg":"RS256"}`, `{}{}`), sandbox.ErrMalformed},
		"too deep":                 {raw(`{"alg":"RS256"}`, deep), sandbox.ErrMalformed},
		"invalid UTF-8":            {raw(`{"alg":"RS256"}`, "{\"sub\":\"\xff\"}"), sandbox.ErrMalformed},
		"no alg":                   {raw(`{}`, `{}`), sandbox.ErrMalformed},
		"alg is a number":          {raw(`{"alg":1}`, `{}`), sandbox.ErrMalformed},
		"kid is an object":         {raw(`{"alg":"RS256","kid":{}}`, `{}`), sandbox.ErrMalformed},
		"crit":                     {raw(`{"alg":"RS256","crit":["exp"]}`, `{}`), sandbox.ErrHeader},
		"jwk":                      {raw(`{"alg":"RS256","jwk":{}}`, `{}`), sandbox.ErrHeader},
		"jku":                      {raw(`{"alg":"RS256","jku":"https://evil.example"}`, `{}`), sandbox.ErrHeader},
		"x5u":                      {raw(`{"alg":"RS256","x5u":"https://evil.example"}`, `{}`), sandbox.ErrHeader},
		"huge":                     {raw(`{"alg":"RS256"}`, `{"a":"`+strings.Repeat("x", sandbox.MaxJWT)+`"}`), sandbox.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := sandbox.ParseJWT(tc.token); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestTimeTakesIntegersOnly(t *testing.T) {
	for value, want := range map[string]error{
		`1700000000`: nil, `0`: nil,
		`1.7e9`: sandbox.ErrClaimType, `1700000000.0`: sandbox.ErrClaimType, `"1700000000"`: sandbox.ErrClaimType,
		`-1`: sandbox.ErrClaimType, `99999999999999`: sandbox.ErrClaimType, `true`: sandbox.ErrClaimType,
		`null`: sandbox.ErrNoClaim,
	} {
		j, err := sandbox.ParseJWT(raw(`{"alg":"RS256"}`, `{"exp":`+value+`}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := j.Time("exp"); !errors.Is(err, want) {
			t.Errorf("exp %s: got %v, want %v", value, err, want)
		}
	}
}

func TestAudiences(t *testing.T) {
	for value, want := range map[string]error{
		`"a"`: nil, `["a"]`: nil, `["a","b"]`: nil,
		`[]`: sandbox.ErrNoClaim, `null`: sandbox.ErrNoClaim, `[1]`: sandbox.ErrClaimType, `{}`: sandbox.ErrClaimType,
	} {
		j, err := sandbox.ParseJWT(raw(`{"alg":"RS256"}`, `{"aud":`+value+`}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := j.Audiences(); !errors.Is(err, want) {
			t.Errorf("aud %s: got %v, want %v", value, err, want)
		}
	}
}

func TestVerify(t *testing.T) {
	r, r2 := issuertest.RSA(), issuertest.NewRSA(2048)
	p256, p384, p521 := issuertest.NewEC(elliptic.P256()), issuertest.NewEC(elliptic.P384()), issuertest.NewEC(elliptic.P521())
	for name, tc := range map[string]struct {
		alg string
		by  crypto.Signer
		key any
		as  string
		err error
	}{
		"RS256":                  {"RS256", r, r.Public(), "RS256", nil},
		"RS384":                  {"RS384", r, r.Public(), "RS384", nil},
		"RS512":                  {"RS512", r, r.Public(), "RS512", nil},
		"PS256":                  {"PS256", r, r.Public(), "PS256", nil},
		"PS512":                  {"PS512", r, r.Public(), "PS512", nil},
		"ES256":                  {"ES256", p256, p256.Public(), "ES256", nil},
		"ES384":                  {"ES384", p384, p384.Public(), "ES384", nil},
		"ES512":                  {"ES512", p521, p521.Public(), "ES512", nil},
		"other key":              {"RS256", r, r2.Public(), "RS256", sandbox.ErrSignature},
		"other EC key":           {"ES256", p256, issuertest.NewEC(elliptic.P256()).Public(), "ES256", sandbox.ErrSignature},
		"other algorithm":        {"RS256", r, r.Public(), "RS384", sandbox.ErrAlgorithm},
		"RS signature, PS token": {"PS256", p256, r.Public(), "PS256", sandbox.ErrSignature},
		"EC key, RS256":          {"RS256", r, p256.Public(), "RS256", sandbox.ErrUnusable},
		"RSA key, ES256":         {"ES256", p256, r.Public(), "ES256", sandbox.ErrUnusable},
		"P-384 key, ES256":       {"ES256", p256, p384.Public(), "ES256", sandbox.ErrUnusable},
		"no key":                 {"RS256", r, nil, "RS256", sandbox.ErrUnusable},
		"secret for a key":       {"RS256", r, []byte("secret"), "RS256", sandbox.ErrUnusable},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := sandbox.ParseJWT(issuertest.Sign(t, tc.by, tc.alg, nil, map[string]any{"sub": "a"}))
			if err != nil {
				t.Fatal(err)
			}
			if err := j.Verify(tc.key, tc.as); !errors.Is(err, tc.err) {
				t.Errorf("got %v, want %v", err, tc.err)
			}
		})
	}
}

func TestVerifyRefusesNoneAndHMAC(t *testing.T) {
	r := issuertest.RSA()
	for _, alg := range []string{"none", "HS256", "EdDSA", "RS1"} {
		j, err := sandbox.ParseJWT(raw(`{"alg":"`+alg+`"}`, `{}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Verify(r.Public(), alg); !errors.Is(err, sandbox.ErrAlgorithm) {
			t.Errorf("%s: got %v", alg, err)
		}
	}
}

func TestVerifyRefusesShortRSA(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	r := issuertest.NewRSA(1024)
	j, err := sandbox.ParseJWT(issuertest.Sign(t, r, "RS256", nil, map[string]any{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Verify(r.Public(), "RS256"); !errors.Is(err, sandbox.ErrUnusable) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseJWT(f *testing.F) {
	f.Add(raw(`{"alg":"RS256","kid":"k"}`, `{"aud":["a"],"exp":1}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		j, err := sandbox.ParseJWT(s)
		if err != nil {
			return
		}
		if strings.Count(s, ".") != 2 || strings.ContainsAny(s, "=\r\n") || j.Algorithm == "" {
			t.Errorf("accepted %q", s)
		}
		j.Audiences()
		j.Time("exp")
	})
}

func FuzzParseKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"","y":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := sandbox.ParseKeySet(b)
		if err != nil {
			return
		}
		for _, k := range keys {
			if (k.Public == nil) == (k.Err == nil) {
				t.Errorf("key %+v is neither usable nor refused", k)
			}
		}
	})
}

func TestSignerVerifiesByItsKeySet(t *testing.T) {
	for _, s := range []*sandbox.Signer{sandbox.NewSigner(nil), sandbox.NewSigner(issuertest.RSA())} {
		raw, err := s.Sign(map[string]any{"sub": "a"})
		if err != nil {
			t.Fatal(err)
		}
		set, err := s.KeySet()
		if err != nil {
			t.Fatal(err)
		}
		keys, err := sandbox.ParseKeySet(set)
		if err != nil {
			t.Fatal(err)
		}
		j, err := sandbox.ParseJWT(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Verify(keys[0].Public, "RS256"); err != nil || j.KeyID != keys[0].ID {
			t.Errorf("kid %q: %v", j.KeyID, err)
		}
	}
}

func TestKeyFits(t *testing.T) {
	usable := issuertest.JWK("a", issuertest.RSA().Public())
	for name, tc := range map[string]struct {
		change map[string]any
		ok     bool
	}{
		"plain":         {nil, true},
		"its alg":       {map[string]any{"alg": "RS256"}, true},
		"no use":        {map[string]any{"use": nil}, true},
		"another alg":   {map[string]any{"alg": "RS512"}, false},
		"a SPIFFE use":  {map[string]any{"use": "jwt-svid"}, false},
		"another type":  {map[string]any{"kty": "OKP"}, false},
		"short modulus": {map[string]any{"n": "AQAB"}, false},
		"even exponent": {map[string]any{"e": "Ag"}, false},
	} {
		b, err := json.Marshal(issuertest.KeySet(issuertest.With(usable, tc.change)))
		if err != nil {
			t.Fatal(err)
		}
		keys, err := sandbox.ParseKeySet(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := keys[0].Fits("RS256"); (err == nil) != tc.ok || err != nil && !errors.Is(err, sandbox.ErrUnusable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
