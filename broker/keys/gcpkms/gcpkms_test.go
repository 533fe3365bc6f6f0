package gcpkms_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/keys/gcpkms"
	"github.com/credence-id/credence/broker/keys/gcpkms/gcpkmstest"
	"github.com/credence-id/credence/broker/keys/keystest"
)

const missing = gcpkmstest.KeyRing + "/cryptoKeys/none/cryptoKeyVersions/1"

func open(t *testing.T, s *gcpkmstest.Service, change func(*gcpkms.Config)) *gcpkms.Keys {
	t.Helper()
	cfg := gcpkms.Config{
		Settings:    gcpkms.Settings{KeyRing: gcpkmstest.KeyRing, Endpoint: s.Endpoint, Timeout: time.Minute},
		TrustDomain: "example.org", Purpose: "root",
		Credentials: gcpkmstest.Credentials(true), Dial: s.Dial,
	}
	if change != nil {
		change(&cfg)
	}
	k, err := gcpkms.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func TestContract(t *testing.T) {
	s := gcpkmstest.New(t)
	methods := map[string]string{
		keystest.ActCreate: "CreateCryptoKey", keystest.ActOpen: "GetPublicKey", keystest.ActSign: "AsymmetricSign", keystest.ActRemove: "DestroyCryptoKeyVersion",
	}
	permissions := map[string]string{
		keystest.ActCreate: "cloudkms.cryptoKeys.create", keystest.ActOpen: "cloudkms.cryptoKeyVersions.viewPublicKey",
		keystest.ActSign: "cloudkms.cryptoKeyVersions.useToSign", keystest.ActRemove: "cloudkms.cryptoKeyVersions.destroy",
	}
	keystest.Suite{
		Source: func(t *testing.T, timeout time.Duration) keystest.Source {
			return open(t, s, func(c *gcpkms.Config) {
				if timeout > 0 {
					c.Timeout = timeout
				}
			})
		},
		Missing: missing,
		BadRefs: []string{strings.TrimSuffix(missing, "/cryptoKeyVersions/1"), missing + "/", missing + "?a=b", strings.TrimPrefix(missing, "projects/"), strings.TrimSuffix(missing, "1") + "0"},
		NoPSS:   true,
		Deny: func(_ *testing.T, act string) ([]string, func()) {
			return []string{permissions[act], "grant it", "roles/cloudkms."}, s.Set(methods[act], keystest.Denied, -1)
		},
		Hang: func(act, ref string) (<-chan struct{}, func()) { return s.Hang(methods[act], ref) },
	}.Run(t)
}

func TestKeySaysWhoseItIs(t *testing.T) {
	s := gcpkmstest.New(t)
	long := strings.Repeat("a.b-", 40) + "example.org"
	ref, _ := keystest.Create(t, open(t, s, func(c *gcpkms.Config) { c.Protection, c.DeletionDays = "hsm", 3 }), "RS256")
	k := s.Key(ref)
	want := map[string]string{"credence-trust-domain": "example_org", "credence-purpose": "root", "credence-algorithm": "rs256"}
	if diff := cmp.Diff(want, k.Made.GetLabels()); diff != "" || !strings.Contains(ref, "/cryptoKeys/credence-root-") {
		t.Errorf("%s: %s", ref, diff)
	}
	if p := k.Version.GetProtectionLevel(); p != kmspb.ProtectionLevel_HSM || k.Made.GetDestroyScheduledDuration().AsDuration() != 72*time.Hour {
		t.Errorf("%s, %s", p, k.Made.GetDestroyScheduledDuration().AsDuration())
	}
	ref, _ = keystest.Create(t, open(t, s, func(c *gcpkms.Config) { c.TrustDomain = long }), "P256") // else the service refuses the label
	if got := s.Key(ref).Made.GetLabels()["credence-trust-domain"]; len(got) != 63 {
		t.Errorf("label %q", got)
	}
}

func TestCalls(t *testing.T) {
	s := gcpkmstest.New(t)
	_, key := keystest.Create(t, open(t, s, nil), "P256")
	for range 3 {
		if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		key.Public()
	}
	if n := s.Calls("GetPublicKey"); n != 1 || s.Calls("AsymmetricSign") != 3 {
		t.Errorf("%d calls for the public key, %d for signatures", n, s.Calls("AsymmetricSign"))
	}
}

func TestRetries(t *testing.T) {
	s := gcpkmstest.New(t)
	k := open(t, s, nil)
	for _, op := range []string{"CreateCryptoKey", "GetCryptoKeyVersion", "GetPublicKey", "AsymmetricSign"} {
		s.Set(op, keystest.Throttled, 2)
	}
	ref, key := keystest.Create(t, k, "P256")
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Error(err)
	}
	if n := s.Calls("CreateCryptoKey"); n != 3 {
		t.Errorf("%d calls of CreateCryptoKey, want 3", n)
	}
	short := open(t, s, func(c *gcpkms.Config) { c.Timeout = time.Second })
	defer s.Set("GetCryptoKeyVersion", keystest.Throttled, -1)()
	if _, err := short.Open(t.Context(), ref); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Quota exceeded") {
		t.Errorf("throttled for long: %v; want the deadline and why", err)
	}
}

// What goes wrong after a key was made leaves none behind.
func TestCreateCleansUp(t *testing.T) {
	for _, op := range []string{"GetPublicKey", "GetCryptoKeyVersion"} {
		s := gcpkmstest.New(t)
		s.Set(op, keystest.Denied, -1)
		_, _, err := open(t, s, nil).Create(t.Context(), "P256")
		if err == nil || !strings.Contains(err.Error(), "cloudkms.cryptoKeyVersions.") {
			t.Errorf("%s denied: %v", op, err)
		}
		for _, ref := range s.Refs() {
			if state := s.Key(ref).Version.State; state != kmspb.CryptoKeyVersion_DESTROY_SCHEDULED && !strings.Contains(err.Error(), ref) {
				t.Errorf("%s denied: %s stays and is not named: %v", op, ref, err)
			}
		}
	}
	s := gcpkmstest.New(t)
	k := open(t, s, func(c *gcpkms.Config) { c.KeyRing = strings.Replace(gcpkmstest.KeyRing, "credence", "none", 1) })
	if _, _, err := k.Create(t.Context(), "P256"); err == nil || !strings.Contains(err.Error(), "gcloud kms keyrings create") {
		t.Errorf("a key ring that is not there: %v", err)
	}
}

func TestDamagedAnswers(t *testing.T) {
	s := gcpkmstest.New(t)
	k := open(t, s, nil)
	ref, key := keystest.Create(t, k, "P256")
	sign := func() error {
		_, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
		return err
	}
	for _, at := range []string{"AsymmetricSign", "AsymmetricSign.name", "AsymmetricSign.crc", "AsymmetricSign.nocrc", "AsymmetricSign.unverified"} {
		restore := s.Set(at, keystest.Broken, -1)
		if err := sign(); err == nil {
			t.Errorf("%s: taken", at)
		}
		restore()
	}
	for _, at := range []string{"AsymmetricSign.crc", "AsymmetricSign.unverified"} { // a bit flipped once
		s.Set(at, keystest.Broken, 2)
		if err := sign(); err != nil {
			t.Errorf("%s, twice: %v", at, err)
		}
	}
	for _, at := range []string{"GetCryptoKeyVersion", "GetPublicKey", "GetPublicKey.crc", "GetPublicKey.name"} {
		s.Set(at, keystest.Broken, 1)
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Errorf("%s: taken", at)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	s := gcpkmstest.New(t)
	k := open(t, s, nil)
	state := func(state kmspb.CryptoKeyVersion_CryptoKeyVersionState) func(*gcpkmstest.Key) {
		return func(k *gcpkmstest.Key) { k.Version.State = state }
	}
	algorithm := func(a kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) func(*gcpkmstest.Key) {
		return func(k *gcpkmstest.Key) { k.Version.Algorithm = a }
	}
	for want, change := range map[string]func(*gcpkmstest.Key){
		"versions enable":          state(kmspb.CryptoKeyVersion_DISABLED),
		"versions restore":         state(kmspb.CryptoKeyVersion_DESTROY_SCHEDULED),
		"IMPORT_FAILED":            state(kmspb.CryptoKeyVersion_IMPORT_FAILED),
		"RSA_SIGN_PSS_2048_SHA256": algorithm(kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256),
		"EC_SIGN_SECP256K1_SHA256": algorithm(kmspb.CryptoKeyVersion_EC_SIGN_SECP256K1_SHA256),
		"EC_SIGN_P384_SHA384":      algorithm(kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384), // not what its public key is
	} {
		ref, _ := keystest.Create(t, k, "P256")
		s.Change(ref, change)
		if _, err := k.Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ref, key := keystest.Create(t, k, "P256")
	s.Change(ref, state(kmspb.CryptoKeyVersion_DESTROYED))
	if _, err := k.Open(t.Context(), ref); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a destroyed key: %v", err)
	}
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "state") {
		t.Errorf("signing with a destroyed key: %v", err)
	}
}

// A digest that the key can't sign is refused here, by name.
func TestSignRefuses(t *testing.T) {
	s := gcpkmstest.New(t)
	k := open(t, s, nil)
	_, ec := keystest.Create(t, k, "P256")
	_, rs := keystest.Create(t, k, "RS256")
	keystest.Refuses(t, ec, rs, func() int { return s.Calls("AsymmetricSign") })
	for name, test := range map[string]struct {
		size int
		opts crypto.SignerOpts
		want string
	}{
		"other hash": {64, crypto.SHA512, "SHA-256 alone"},
		"PSS":        {32, &rsa.PSSOptions{Hash: crypto.SHA256}, "PKCS #1 v1.5 alone"},
	} {
		if _, err := rs.Sign(rand.Reader, make([]byte, test.size), test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if n := s.Calls("AsymmetricSign"); n != 0 {
		t.Errorf("%d calls to the service", n)
	}
}

func TestCredentials(t *testing.T) {
	s := gcpkmstest.New(t)
	k := open(t, s, func(c *gcpkms.Config) { c.Credentials = gcpkmstest.Credentials(false) })
	if _, err := k.Open(t.Context(), missing); err == nil || !strings.Contains(err.Error(), "not accepted") {
		t.Errorf("foreign credentials: %v", err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/file.json")
	_, err := gcpkms.New(t.Context(), gcpkms.Config{Settings: gcpkms.Settings{KeyRing: gcpkmstest.KeyRing}, TrustDomain: "example.org", Purpose: "root"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/file.json") {
		t.Errorf("no credentials: %v", err)
	}
}

func TestSettings(t *testing.T) {
	var s gcpkms.Settings
	text := "key_ring: " + gcpkmstest.KeyRing + "\nprotection: hsm\nendpoint: kms.example:443\ndeletion_days: 7\ntimeout: 5s\n"
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&s); err != nil {
		t.Fatal(err)
	}
	want := gcpkms.Settings{KeyRing: gcpkmstest.KeyRing, Protection: "hsm", Endpoint: "kms.example:443", DeletionDays: 7, Timeout: 5 * time.Second}
	if diff := cmp.Diff(want, s); diff != "" || s.Validate() != nil {
		t.Error(diff, s.Validate())
	}
	for field, change := range map[string]func(*gcpkms.Settings){
		"key_ring: \"\"":     func(s *gcpkms.Settings) { s.KeyRing = "" },
		"key_ring: \"proj":   func(s *gcpkms.Settings) { s.KeyRing += "/cryptoKeys/a" },
		"protection: \"tpm":  func(s *gcpkms.Settings) { s.Protection = "tpm" },
		"endpoint: \"https":  func(s *gcpkms.Settings) { s.Endpoint = "https://kms.example:443" },
		"endpoint: \"kms":    func(s *gcpkms.Settings) { s.Endpoint = "kms.example" },
		"deletion_days: -1":  func(s *gcpkms.Settings) { s.DeletionDays = -1 },
		"deletion_days: 121": func(s *gcpkms.Settings) { s.DeletionDays = 121 },
		"timeout: 1ms":       func(s *gcpkms.Settings) { s.Timeout = time.Millisecond },
		"timeout: 2m0s":      func(s *gcpkms.Settings) { s.Timeout = 2 * time.Minute },
	} {
		bad := s
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%+v: %v, want %q", bad, err, field)
		}
	}
	for _, cfg := range []gcpkms.Config{{Settings: s}, {Settings: s, TrustDomain: "example.org"}, {Settings: s, TrustDomain: "example.org", Purpose: "Root/"}} {
		if _, err := gcpkms.New(t.Context(), cfg); err == nil {
			t.Errorf("%+v: accepted", cfg)
		}
	}
}
