package awsiam_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/evidence/awsiam"
)

func environment(t *testing.T, region string) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": region,
		"AWS_DEFAULT_REGION": "", "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "AWS_SESSION_TOKEN": "",
	} {
		t.Setenv(name, value)
	}
}

// A request is what the broker reads, to the byte: all but the signature could be
// written by hand.
func TestAnswer(t *testing.T) {
	environment(t, "us-gov-west-1")
	c := awsiam.Config{TrustDomain: "example.org", Now: func() time.Time { return time.Date(2026, 5, 4, 10, 20, 30, 0, time.FixedZone("", 3600)) }}
	if text, err := c.Evidence(t.Context()); err != nil || string(text) != "\x01" {
		t.Errorf("evidence %q, %v", text, err)
	}
	text, err := c.Answer(t.Context(), []byte(strings.Repeat("\xff", 32)))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	headers := got["headers"].(map[string]any)
	const signed = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260504/us-gov-west-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-credence-challenge;x-credence-trust-domain, Signature="
	if auth, _ := headers["authorization"].(string); len(auth) != len(signed)+64 || !strings.HasPrefix(auth, signed) {
		t.Errorf("authorization is %s", auth)
	}
	delete(headers, "authorization")
	if d := cmp.Diff(map[string]any{
		"method": "POST", "url": "https://sts.us-gov-west-1.amazonaws.com/", "body": "Action=GetCallerIdentity&Version=2011-06-15",
		"headers": map[string]any{
			"content-type": "application/x-www-form-urlencoded", "host": "sts.us-gov-west-1.amazonaws.com", "x-amz-date": "20260504T092030Z",
			"x-credence-challenge": strings.Repeat("_", 42) + "8", "x-credence-trust-domain": "example.org",
		},
	}, got); d != "" {
		t.Error(d)
	}
}

// A challenge is 32 bytes, and nothing is signed for nobody or nowhere.
func TestNothingElseIsSigned(t *testing.T) {
	environment(t, "eu-west-1")
	good := make([]byte, 32)
	for _, bad := range [][]byte{nil, good[1:], make([]byte, 33), make([]byte, 4096)} {
		if _, err := (awsiam.Config{TrustDomain: "example.org"}).Answer(t.Context(), bad); err == nil {
			t.Errorf("a challenge of %d bytes is signed", len(bad))
		}
	}
	if _, err := (awsiam.Config{}).Answer(t.Context(), good); err == nil {
		t.Error("it is signed for no trust domain")
	}
	t.Setenv("AWS_REGION", "")
	if _, err := (awsiam.Config{TrustDomain: "example.org"}).Answer(t.Context(), good); err == nil || !strings.Contains(err.Error(), "AWS_REGION") {
		t.Errorf("without a region: %v", err)
	}
	environment(t, "eu-west-1")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	if _, err := (awsiam.Config{TrustDomain: "example.org"}).Answer(t.Context(), good); err == nil {
		t.Error("it is signed without credentials")
	}
}
