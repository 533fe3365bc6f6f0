package oidc_test

import (
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/oidc"
)

func TestCheckIssuer(t *testing.T) {
	for _, tt := range []struct {
		issuer   string
		ok, warn bool
	}{
		{"https://id.example.org", true, false},
		{"https://id.example.org/a/B-c_d~e.f", true, false},
		{"https://localhost:8445", true, false},
		{"https://127.0.0.1:8445/td", true, false},
		{"https://[::1]:8445", true, false},
		{"https://id.example.org:8443", true, true},
		{"https://" + strings.Repeat("a", 243) + ".org", true, false},
		{"https://" + strings.Repeat("a", 244) + ".org", false, false},
		{"", false, false},
		{"http://id.example.org", false, false},
		{"HTTPS://id.example.org", false, false},
		{"https://ID.example.org", false, false},
		{"https://id.example.org.", false, false},
		{"https://id.example.org:", false, false},
		{"https://", false, false},
		{"https:///path", false, false},
		{"https://user@id.example.org", false, false},
		{"https://id.example.org/", false, false},
		{"https://id.example.org/a/", false, false},
		{"https://id.example.org//a", false, false},
		{"https://id.example.org/../a", false, false},
		{"https://id.example.org/.", false, false},
		{"https://id.example.org/%61", false, false},
		{"https://id.example.org?", false, false},
		{"https://id.example.org?a=b", false, false},
		{"https://id.example.org#", false, false},
		{"https://id.example.org ", false, false},
		{" https://id.example.org", false, false},
		{"https://id.example.org\n", false, false},
		{"https://idé.example.org", false, false},
		{"https://id.example.org:99x", false, false},
	} {
		t.Run(tt.issuer, func(t *testing.T) {
			warnings, err := oidc.CheckIssuer(tt.issuer)
			if (err == nil) != tt.ok || (len(warnings) > 0) != tt.warn {
				t.Errorf("error %v, warnings %v", err, warnings)
			}
			_, err = oidc.New(oidc.Config{Issuer: tt.issuer, Keys: func() []authority.PublicKey { return nil }})
			if (err == nil) != tt.ok {
				t.Errorf("New: %v", err)
			}
		})
	}
	if _, err := oidc.New(oidc.Config{Issuer: "https://id.example.org"}); err == nil {
		t.Error("served without keys")
	}
}

// Whatever is taken can be served under its own path and compared in bytes.
func FuzzCheckIssuer(f *testing.F) {
	for _, s := range []string{"https://id.example.org/td", "https://[::1]:1/a", "https://a//b", "https://a:", "https://a/%2e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, issuer string) {
		if _, err := oidc.CheckIssuer(issuer); err != nil {
			return
		}
		h, err := oidc.New(oidc.Config{Issuer: issuer, Keys: func() []authority.PublicKey { return []authority.PublicKey{rsaKey("k")} }})
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range h.Paths() {
			if !strings.HasPrefix(path, "/") || strings.Contains(path, "//") {
				t.Fatalf("path %q", path)
			}
			if got := get(h, "GET", "https://x"+path).StatusCode; got != 200 {
				t.Fatalf("%q: status %d", path, got)
			}
		}
	})
}
