package azurekv_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/keys/azurekv"
	"github.com/credence-id/credence/broker/keys/azurekv/azurekvtest"
	"github.com/credence-id/credence/broker/keys/keystest"
)

const missing = azurekvtest.URL + "/keys/none/00000000000000000000000000000000"

func open(t *testing.T, s *azurekvtest.Service, change func(*azurekv.Config)) *azurekv.Keys {
	t.Helper()
	cfg := azurekv.Config{
		Settings:    azurekv.Settings{VaultURL: azurekvtest.URL, Timeout: time.Minute},
		TrustDomain: "example.org", Purpose: "root",
		HTTPClient: s.Client, Credentials: s.Credentials(true),
	}
	if change != nil {
		change(&cfg)
	}
	k, err := azurekv.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ops are the service's operations by act.
var ops = map[string]string{keystest.ActCreate: "create", keystest.ActOpen: "get", keystest.ActSign: "sign", keystest.ActRemove: "delete"}

func TestContract(t *testing.T) {
	s := azurekvtest.New(t)
	keystest.Suite{
		Source: func(t *testing.T, timeout time.Duration) keystest.Source {
			return open(t, s, func(c *azurekv.Config) {
				if timeout > 0 {
					c.Timeout = timeout
				}
			})
		},
		Missing: missing,
		BadRefs: []string{
			missing + "0", strings.TrimSuffix(missing, "/00000000000000000000000000000000"), missing + "?a=b", "http" + strings.TrimPrefix(missing, "https"),
			strings.Replace(missing, "credence-test", "other", 1), strings.Replace(missing, "/keys/", "/secrets/", 1), strings.Replace(missing, "none", "no/ne", 1),
		},
		Deny: func(_ *testing.T, act string) ([]string, func()) {
			return []string{"keys/" + ops[act] + ":", "grant it", "Key Vault Crypto Officer", "ForbiddenByRbac"}, s.Set(ops[act], keystest.Denied, -1)
		},
		Hang: func(act, ref string) (<-chan struct{}, func()) { return s.Hang(ops[act], ref) },
	}.Run(t)
}

func TestKeySaysWhoseItIs(t *testing.T) {
	s := azurekvtest.New(t)
	ref, _ := keystest.Create(t, open(t, s, nil), "RS256")
	k := s.Key(ref)
	want := map[string]string{"credence-trust-domain": "example.org", "credence-purpose": "root", "credence-algorithm": "RS256"}
	if diff := cmp.Diff(want, k.Tags); diff != "" || !strings.HasPrefix(ref, azurekvtest.URL+"/keys/credence-root-") || k.Kty != "RSA" {
		t.Errorf("%s, kind %s, tags %s", ref, k.Kty, diff)
	}
	hsm := open(t, s, func(c *azurekv.Config) { c.Protection = "hsm" })
	for alg, want := range map[string]string{"RS256": "RSA-HSM", "P384": "EC-HSM"} {
		ref, key := keystest.Create(t, hsm, alg)
		if got := s.Key(ref).Kty; got != want {
			t.Errorf("%s in hardware is a %s, want %s", alg, got, want)
		}
		keystest.CheckKind(t, alg, key.Public())
	}
}

// The challenge and the public key are read once, and no signature asks again.
func TestCalls(t *testing.T) {
	s := azurekvtest.New(t)
	_, key := keystest.Create(t, open(t, s, nil), "P256")
	digest := make([]byte, 32)
	for range 3 {
		if _, err := key.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		key.Public()
	}
	if s.Calls("challenge") != 1 || s.Calls("token") != 1 || s.Calls("get") != 1 || s.Calls("sign") != 3 {
		t.Errorf("%d challenges, %d tokens, %d for the public key, %d for signatures", s.Calls("challenge"), s.Calls("token"), s.Calls("get"), s.Calls("sign"))
	}
}

func TestRetries(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, nil)
	for _, op := range []string{"create", "get", "sign"} {
		s.Set(op, keystest.Throttled, 2)
	}
	ref, key := keystest.Create(t, k, "P256")
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Error(err)
	}
	if n := s.Calls("create"); n != 3 {
		t.Errorf("%d calls of create, want 3", n)
	}
	short := open(t, s, func(c *azurekv.Config) { c.Timeout = time.Second })
	defer s.Set("get", keystest.Throttled, -1)()
	if _, err := short.Open(t.Context(), ref); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "429") {
		t.Errorf("throttled for long: %v; want the deadline and why", err)
	}
}

// What goes wrong after a key was made leaves none behind.
func TestCreateCleansUp(t *testing.T) {
	s := azurekvtest.New(t)
	s.Set("get", keystest.Denied, -1)
	if _, _, err := open(t, s, nil).Create(t.Context(), "P256"); err == nil || !strings.Contains(err.Error(), "keys/get") {
		t.Errorf("get denied: %v", err)
	}
	for _, ref := range s.Keys() {
		if !s.Key(ref).Deleted {
			t.Errorf("get denied: %s stays", ref)
		}
	}
	s = azurekvtest.New(t)
	s.Set("get", keystest.Denied, -1)
	s.Set("delete", keystest.Denied, -1)
	if _, _, err := open(t, s, nil).Create(t.Context(), "P256"); err == nil || !strings.Contains(err.Error(), "--id "+s.Keys()[0]) {
		t.Errorf("get and delete denied: %v; want the key's name", err)
	}
}

func TestDamagedAnswers(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, nil)
	for _, alg := range []string{"P256", "RS256"} {
		ref, key := keystest.Create(t, k, alg)
		for _, op := range []string{"sign", "sign.kid"} {
			s.Set(op, keystest.Broken, 1)
			if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "not used") {
				t.Errorf("%s, %s: %v", alg, op, err)
			}
		}
		s.Set("get", keystest.Broken, 1)
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Error("the answer about another key was taken")
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, nil)
	for want, change := range map[string]func(*azurekvtest.Key){
		"key_ops":     func(k *azurekvtest.Key) { k.KeyOps = []string{"verify"} },
		"P-256K":      func(k *azurekvtest.Key) { k.Crv = "P-256K" },
		"is disabled": func(k *azurekvtest.Key) { k.Attributes["enabled"] = false },
		"expired":     func(k *azurekvtest.Key) { k.Attributes["exp"] = time.Now().Add(-time.Minute).Unix() },
		"not valid":   func(k *azurekvtest.Key) { k.Attributes["nbf"] = time.Now().Add(time.Hour).Unix() },
		"oct-HSM":     func(k *azurekvtest.Key) { k.Kty = "oct-HSM" },
		"RSA 0":       func(k *azurekvtest.Key) { k.Kty = "RSA" }, // not what its public key is
		"reading its": func(k *azurekvtest.Key) { k.Crv = "P-384" },
		`kind ""`:     func(k *azurekvtest.Key) { k.Kty = "" },
	} {
		ref, _ := keystest.Create(t, k, "P256")
		s.Change(ref, change)
		if _, err := k.Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ref, key := keystest.Create(t, k, "P256")
	s.Change(ref, func(k *azurekvtest.Key) { k.Attributes["enabled"] = false })
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "set-attributes --enabled true") {
		t.Errorf("signing with a disabled key: %v", err)
	}
}

// A digest that the vault can't sign is refused here, by name.
func TestSignRefuses(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, nil)
	_, ec := keystest.Create(t, k, "P256")
	_, rs := keystest.Create(t, k, "RS256")
	keystest.Refuses(t, ec, rs, func() int { return s.Calls("sign") })
	keystest.Hashes(t, rs)
}

func TestRemove(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, nil)
	ref, _ := keystest.Create(t, k, "P256")
	if err := k.Remove(t.Context(), ref); err != nil || !s.Key(ref).Deleted {
		t.Fatal(err)
	}
	if _, err := k.Open(t.Context(), ref); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "az keyvault key recover") {
		t.Errorf("a removed key: %v; want the way to bring it back", err)
	}
}

func TestCredentials(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, func(c *azurekv.Config) { c.Credentials = s.Credentials(false) })
	if _, err := k.Open(t.Context(), missing); err == nil || !strings.Contains(err.Error(), "not accepted") {
		t.Errorf("foreign credentials: %v", err)
	}
	t.Setenv("AZURE_TENANT_ID", azurekvtest.Tenant)
	t.Setenv("AZURE_CLIENT_ID", azurekvtest.ClientID)
	t.Setenv("AZURE_CLIENT_SECRET", azurekvtest.ClientSecret)
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "prod")
	keystest.Create(t, open(t, s, func(c *azurekv.Config) { c.Credentials = nil }), "P256")
	t.Setenv("AZURE_CLIENT_SECRET", "another")
	k = open(t, s, func(c *azurekv.Config) { c.Credentials = nil })
	_, err := k.Open(t.Context(), missing)
	if err == nil || !strings.Contains(err.Error(), "Azure credentials") || !strings.Contains(err.Error(), "AADSTS7000215") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a wrong secret: %v", err)
	}
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "none")
	if _, err := azurekv.New(azurekv.Config{Settings: azurekv.Settings{VaultURL: azurekvtest.URL}, TrustDomain: "example.org", Purpose: "root"}); err == nil {
		t.Error("credentials of an unknown kind were found")
	}
}

// A challenge that names no issuer is an error, and not the SDK's panic.
func TestBadChallenge(t *testing.T) {
	s := azurekvtest.New(t)
	s.Set("challenge", keystest.Broken, -1)
	k := open(t, s, func(c *azurekv.Config) { c.Timeout = time.Second })
	if _, err := k.Open(t.Context(), missing); err == nil || !strings.Contains(err.Error(), "without naming who issues it") {
		t.Error(err)
	}
}

// Who waits for another caller's token leaves when he wants to.
func TestSlowToken(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, nil)
	arrived, release := s.Hang("token", "")
	done := make(chan error, 1)
	go func() { _, err := k.Open(context.Background(), missing); done <- err }()
	<-arrived
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := k.Open(ctx, missing); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for another's token: %v", err)
	}
	release()
	if err := <-done; !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Without an answer at all, the error says so in time; and a redirect is none.
func TestUnreachable(t *testing.T) {
	s := azurekvtest.New(t)
	k := open(t, s, func(c *azurekv.Config) {
		c.Timeout = time.Second
		c.HTTPClient = &http.Client{Transport: answer(func(*http.Request) (*http.Response, error) { return nil, errors.New("dial tcp: no route") })}
	})
	if _, err := k.Open(t.Context(), missing); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no route") {
		t.Errorf("no service: %v", err)
	}
	for name, resp := range map[string]*http.Response{
		"307":      {StatusCode: 307, Status: "307 Temporary Redirect", Header: http.Header{"Location": {"https://elsewhere.example/"}}, Body: http.NoBody},
		"too long": {StatusCode: 200, Status: "200 OK", Body: endless{}},
	} {
		asked := 0
		k = open(t, s, func(c *azurekv.Config) {
			c.Timeout = 2 * time.Second
			c.HTTPClient = &http.Client{Transport: answer(func(r *http.Request) (*http.Response, error) {
				asked++
				resp.Request = r
				return resp, nil
			})}
		})
		if _, err := k.Open(t.Context(), missing); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "307" && asked != 1 {
			t.Errorf("a redirect was followed: %d requests", asked)
		}
	}
}

type answer func(*http.Request) (*http.Response, error)

func (a answer) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }
func (endless) Close() error               { return nil }

func TestSettings(t *testing.T) {
	var s azurekv.Settings
	text := "vault_url: https://acme.vault.azure.net\nprotection: hsm\ntimeout: 5s\n"
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&s); err != nil {
		t.Fatal(err)
	}
	want := azurekv.Settings{VaultURL: "https://acme.vault.azure.net", Protection: "hsm", Timeout: 5 * time.Second}
	if diff := cmp.Diff(want, s); diff != "" || s.Validate() != nil {
		t.Error(diff, s.Validate())
	}
	for field, bad := range map[string]azurekv.Settings{
		`vault_url: ""`:      {},
		`vault_url: "http:`:  {VaultURL: "http://acme.vault.azure.net"},
		`vault_url: "https:`: {VaultURL: "https://u:p@acme.vault.azure.net"},
		`vault_url: "acme"`:  {VaultURL: "acme"},
		`protection: "tpm"`:  {VaultURL: want.VaultURL, Protection: "tpm"},
		"timeout: 1ms":       {VaultURL: want.VaultURL, Timeout: time.Millisecond},
		"timeout: 2m0s":      {VaultURL: want.VaultURL, Timeout: 2 * time.Minute},
	} {
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%+v: %v, want %q", bad, err, field)
		}
	}
	for _, cfg := range []azurekv.Config{{Settings: s}, {Settings: s, TrustDomain: "example.org"}, {Settings: s, TrustDomain: "example.org", Purpose: "Root/"}} {
		if _, err := azurekv.New(cfg); err == nil {
			t.Errorf("%+v: accepted", cfg)
		}
	}
}
