package awskms_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/keys/awskms"
	"github.com/credence-id/credence/broker/keys/awskms/awskmstest"
	"github.com/credence-id/credence/broker/keys/keystest"
)

const missing = "arn:aws:kms:eu-west-1:123456789012:key/00000000-0000-0000-0000-000000000000"

func open(t *testing.T, s *awskmstest.Service, change func(*awskms.Config)) *awskms.Keys {
	t.Helper()
	cfg := awskms.Config{
		Settings:    awskms.Settings{Region: awskmstest.Region, Endpoint: s.URL, Timeout: time.Minute},
		TrustDomain: "example.org", Purpose: "root",
		HTTPClient:  s.Client,
		Credentials: credentials.NewStaticCredentialsProvider(awskmstest.AccessKey, "secret", ""),
	}
	if change != nil {
		change(&cfg)
	}
	k, err := awskms.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ops are the service's operations by act.
var ops = map[string]string{
	keystest.ActCreate: "CreateKey", keystest.ActOpen: "GetPublicKey", keystest.ActSign: "Sign", keystest.ActRemove: "ScheduleKeyDeletion",
}

func TestContract(t *testing.T) {
	s := awskmstest.New(t)
	keystest.Suite{
		Source: func(t *testing.T, timeout time.Duration) keystest.Source {
			return open(t, s, func(c *awskms.Config) {
				if timeout > 0 {
					c.Timeout = timeout
				}
			})
		},
		Missing: missing,
		BadRefs: []string{
			"alias/credence/example_org/root/1", strings.TrimPrefix(missing, "arn:"), missing + "/..", strings.Replace(missing, "eu-west-1", "us-east-1", 1),
			strings.Replace(missing, ":kms:", ":s3:", 1),
		},
		Deny: func(_ *testing.T, act string) ([]string, func()) {
			return []string{"kms:" + ops[act], "allow it"}, s.Set(ops[act], keystest.Denied, -1)
		},
		Hang: func(act, ref string) (<-chan struct{}, func()) { return s.Hang(ops[act], ref) },
	}.Run(t)
}

func TestKeySaysWhoseItIs(t *testing.T) {
	s := awskmstest.New(t)
	ref, _ := keystest.Create(t, open(t, s, nil), "RS256")
	k := s.Key(ref)
	want := map[string]string{"credence:trust-domain": "example.org", "credence:purpose": "root", "credence:algorithm": "RS256"}
	if diff := cmp.Diff(want, k.Tags); diff != "" || !strings.HasPrefix(k.Alias, "alias/credence/example_org/root/") || k.Spec != "RSA_2048" {
		t.Errorf("alias %s, spec %s, tags %s", k.Alias, k.Spec, diff)
	}
}

// The public key is read once, and no signature asks for it again.
func TestCalls(t *testing.T) {
	s := awskmstest.New(t)
	_, key := keystest.Create(t, open(t, s, nil), "P256")
	digest := make([]byte, 32)
	for range 3 {
		if _, err := key.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		key.Public()
	}
	if n := s.Calls("GetPublicKey"); n != 1 || s.Calls("Sign") != 3 {
		t.Errorf("%d calls for the public key, %d for signatures", n, s.Calls("Sign"))
	}
}

func TestRetries(t *testing.T) {
	s := awskmstest.New(t)
	k := open(t, s, nil)
	for _, op := range []string{"CreateKey", "CreateAlias", "DescribeKey", "GetPublicKey", "Sign"} {
		s.Set(op, keystest.Throttled, 2)
	}
	_, key := keystest.Create(t, k, "P256")
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		t.Error(err)
	}
	if n := s.Calls("CreateKey"); n != 3 {
		t.Errorf("%d calls of CreateKey, want 3", n)
	}
	ref, _ := keystest.Create(t, k, "P256")
	short := open(t, s, func(c *awskms.Config) { c.Timeout = time.Second })
	defer s.Set("DescribeKey", keystest.Throttled, -1)()
	if _, err := short.Open(t.Context(), ref); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ThrottlingException") {
		t.Errorf("throttled for long: %v; want the deadline and why", err)
	}
}

// What goes wrong after a key was made leaves none behind.
func TestCreateCleansUp(t *testing.T) {
	for _, op := range []string{"CreateAlias", "DescribeKey", "GetPublicKey"} {
		s := awskmstest.New(t)
		s.Set(op, keystest.Denied, -1)
		if _, _, err := open(t, s, nil).Create(t.Context(), "P256"); err == nil || !strings.Contains(err.Error(), "kms:"+op) {
			t.Errorf("%s denied: %v", op, err)
		}
		for _, arn := range s.Keys() {
			if s.Key(arn).State != "PendingDeletion" {
				t.Errorf("%s denied: %s stays", op, arn)
			}
		}
		s = awskmstest.New(t)
		s.Set(op, keystest.Denied, -1)
		s.Set("ScheduleKeyDeletion", keystest.Denied, -1)
		if _, _, err := open(t, s, nil).Create(t.Context(), "P256"); err == nil || !strings.Contains(err.Error(), s.Keys()[0]) {
			t.Errorf("%s denied and the key stays: %v; want its name", op, err)
		}
	}
}

func TestDamagedAnswers(t *testing.T) {
	s := awskmstest.New(t)
	k := open(t, s, nil)
	ref, key := keystest.Create(t, k, "P256")
	s.Set("Sign", keystest.Broken, 1)
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("a signature that doesn't verify was taken")
	}
	for _, op := range []string{"GetPublicKey", "DescribeKey"} {
		s.Set(op, keystest.Broken, 1)
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Errorf("%s: the answer about another key was taken", op)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	s := awskmstest.New(t)
	k := open(t, s, nil)
	for want, change := range map[string]func(*awskmstest.Key){
		"SIGN_VERIFY":         func(k *awskmstest.Key) { k.Usage = "ENCRYPT_DECRYPT" },
		"ECC_SECG_P256K1":     func(k *awskmstest.Key) { k.Spec = "ECC_SECG_P256K1" },
		"cancel-key-deletion": func(k *awskmstest.Key) { k.State = "PendingDeletion" },
		"enable-key":          func(k *awskmstest.Key) { k.State = "Disabled" },
		"Unavailable":         func(k *awskmstest.Key) { k.State = "Unavailable" },
		"RSA_3072":            func(k *awskmstest.Key) { k.Spec = "RSA_3072" }, // not what its public key is
	} {
		ref, _ := keystest.Create(t, k, "P256")
		s.Change(ref, change)
		if _, err := k.Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ref, key := keystest.Create(t, k, "P256")
	s.Change(ref, func(k *awskmstest.Key) { k.State = "Disabled" })
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "enable-key") {
		t.Errorf("signing with a disabled key: %v", err)
	}
}

// A digest that KMS can't sign is refused here, by name.
func TestSignRefuses(t *testing.T) {
	s := awskmstest.New(t)
	k := open(t, s, nil)
	_, ec := keystest.Create(t, k, "P256")
	_, rs := keystest.Create(t, k, "RS256")
	keystest.Refuses(t, ec, rs, func() int { return s.Calls("Sign") })
	keystest.Hashes(t, rs)
}

func TestRemove(t *testing.T) {
	s := awskmstest.New(t)
	ref, _ := keystest.Create(t, open(t, s, nil), "P256")
	k := open(t, s, func(c *awskms.Config) { c.DeletionDays = 9 })
	for range 2 {
		if err := k.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Key(ref); got.State != "PendingDeletion" || got.DeletionDays != 9 {
		t.Errorf("%s, %d days", got.State, got.DeletionDays)
	}
}

func TestCredentials(t *testing.T) {
	s := awskmstest.New(t)
	k := open(t, s, func(c *awskms.Config) {
		c.Credentials = credentials.NewStaticCredentialsProvider("AKIDOTHER", "secret", "")
	})
	if _, err := k.Open(t.Context(), missing); err == nil || !strings.Contains(err.Error(), "not accepted") {
		t.Errorf("foreign credentials: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	k = open(t, s, func(c *awskms.Config) { c.Credentials = nil })
	keystest.Create(t, k, "P256")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	if _, err := awskms.New(t.Context(), awskms.Config{
		Settings: awskms.Settings{Region: "eu-west-1", Profile: "none"}, TrustDomain: "example.org", Purpose: "root",
	}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a profile that is not there: %v", err)
	}
}

// Without an answer at all, the error says so in time.
func TestUnreachable(t *testing.T) {
	s := awskmstest.New(t)
	k := open(t, s, func(c *awskms.Config) {
		c.Timeout = time.Second
		c.HTTPClient = &http.Client{Transport: refused{}}
	})
	if _, err := k.Open(t.Context(), missing); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no route") {
		t.Errorf("no service: %v", err)
	}
}

type refused struct{}

func (refused) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("dial tcp: no route")
}

func TestSettings(t *testing.T) {
	var s awskms.Settings
	text := "region: eu-west-1\nendpoint: https://vpce.example\nprofile: p\ndeletion_days: 7\ntimeout: 5s\n"
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&s); err != nil {
		t.Fatal(err)
	}
	want := awskms.Settings{Region: "eu-west-1", Endpoint: "https://vpce.example", Profile: "p", DeletionDays: 7, Timeout: 5 * time.Second}
	if diff := cmp.Diff(want, s); diff != "" || s.Validate() != nil {
		t.Error(diff, s.Validate())
	}
	for field, bad := range map[string]awskms.Settings{
		"region:":            {},
		"region: \"":         {Region: "Europe"},
		"endpoint: \"http:":  {Region: "eu-west-1", Endpoint: "http://vpce.example"},
		"endpoint: \"https:": {Region: "eu-west-1", Endpoint: "https://u:p@vpce.example"},
		"deletion_days: 6":   {Region: "eu-west-1", DeletionDays: 6},
		"deletion_days: 31":  {Region: "eu-west-1", DeletionDays: 31},
		"timeout: 1ms":       {Region: "eu-west-1", Timeout: time.Millisecond},
		"timeout: 2m0s":      {Region: "eu-west-1", Timeout: 2 * time.Minute},
	} {
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%+v: %v, want %q", bad, err, field)
		}
	}
	for _, cfg := range []awskms.Config{{Settings: s}, {Settings: s, TrustDomain: "example.org"}, {Settings: s, TrustDomain: "example.org", Purpose: "Root/"}} {
		if _, err := awskms.New(t.Context(), cfg); err == nil {
			t.Errorf("%+v: accepted", cfg)
		}
	}
}
