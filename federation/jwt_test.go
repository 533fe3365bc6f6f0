package federation_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/credence-id/credence/federation"
)

// Whatever is parsed names a workload, has an end, and verifies by no empty
// bundle. The validator's vectors are those of agent/workloadapi.
func FuzzParseJWT(f *testing.F) {
	b64 := base64.RawURLEncoding.EncodeToString
	for _, payload := range []string{
		`{"sub":"spiffe://example.org/a","aud":["x"],"exp":1900000000,"iat":1}`,
		`{"sub":"spiffe://example.org/a","aud":"x","exp":1e400}`, `{"sub":"spiffe://example.org","aud":"x","exp":1}`, `{"a":1,"a":2}`, `[]`,
	} {
		f.Add(b64([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + b64([]byte(payload)) + ".AAAA")
	}
	f.Add(strings.Repeat(".", 1<<10))
	f.Fuzz(func(t *testing.T, token string) {
		j, err := federation.ParseJWT(token)
		if err != nil {
			return
		}
		if j.ID.Path() == "" || j.Expires.IsZero() || !strings.HasPrefix(token, j.Signed+".") || len(token) > 16<<10 {
			t.Fatalf("parsed %+v", j)
		}
		if _, err := j.Verify(new(federation.Set)); err == nil {
			t.Fatal("it verifies without a key")
		}
	})
}
