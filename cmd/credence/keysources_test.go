package main_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/credence-id/credence/broker/keys/awskms/awskmstest"
	"github.com/credence-id/credence/broker/keys/azurekv/azurekvtest"
	"github.com/credence-id/credence/broker/keys/gcpkms/gcpkmstest"
	credence "github.com/credence-id/credence/cmd/credence"
)

// A broker begins and goes on with its keys in each kind of source, alone or
// for the root; and tells when another kind is named.
func TestKeySources(t *testing.T) {
	kms, google, vault := awskmstest.New(t), gcpkmstest.New(t), azurekvtest.New(t)
	sources := map[string]struct {
		yaml   string
		access credence.KeyAccess
	}{
		"disk": {"{disk: {}}", credence.KeyAccess{}},
		"awskms": {
			"{awskms: {region: " + awskmstest.Region + ", endpoint: '" + kms.URL + "'}}",
			credence.KeyAccess{HTTP: kms.Client, AWS: credentials.NewStaticCredentialsProvider(awskmstest.AccessKey, "secret", "")},
		},
		"gcpkms": {
			"{gcpkms: {key_ring: " + gcpkmstest.KeyRing + ", endpoint: '" + google.Endpoint + "'}}",
			credence.KeyAccess{GCP: gcpkmstest.Credentials(true), Dial: google.Dial},
		},
		"azurekv": {"{azurekv: {vault_url: '" + azurekvtest.URL + "'}}", credence.KeyAccess{HTTP: vault.Client, Azure: vault.Credentials(true)}},
	}
	for kind, source := range sources {
		for _, field := range []string{"keys", "root_keys"} {
			t.Run(field+" "+kind, func(t *testing.T) {
				data := filepath.Join(t.TempDir(), "broker")
				text := "trust_domain: example.org\nissuer: https://id.example.org\ndata: " + data + "\n"
				first, places, err := credence.OpenBroker(t.Context(), text+field+": "+source.yaml, source.access)
				if err != nil {
					t.Fatal(err)
				}
				again, _, err := credence.OpenBroker(t.Context(), text+field+": "+source.yaml, source.access)
				if err != nil || again != first || again == "" {
					t.Errorf("after a restart the pin is %q, was %q: %v", again, first, err)
				}
				for use, place := range places {
					want := "disk"
					if use == "root" || field == "keys" {
						want = kind
					}
					if !strings.HasPrefix(place, want+" ") {
						t.Errorf("the %s key is in %s, want %s", use, place, want)
					}
				}
				other, name := sources["awskms"], "awskms"
				if kind == "awskms" {
					other, name = sources["disk"], "disk"
				}
				if field == "root_keys" {
					return // the root's key isn't opened for a start
				}
				_, _, err = credence.OpenBroker(t.Context(), text+field+": "+other.yaml, other.access)
				if err == nil || !strings.Contains(err.Error(), field+"."+name+": the key ") || !strings.Contains(err.Error(), "was made by "+kind) {
					t.Errorf("with %s named instead: %v", name, err)
				}
			})
		}
	}
}

// Each line that broker init writes as a comment can be taken out of it.
func TestInitKeySources(t *testing.T) {
	var out, bad bytes.Buffer
	if code := credence.Run(t.Context(), []string{"broker", "init", "--trust-domain", "example.org", "--data", "/d"}, strings.NewReader(""), &out, &bad); code != 0 {
		t.Fatal(bad.String())
	}
	tried := 0
	for line := range strings.Lines(out.String()) {
		key := strings.TrimPrefix(line, "# ")
		if !strings.HasPrefix(key, "keys: {") && !strings.HasPrefix(key, "root_keys: {") {
			continue
		}
		tried++
		file := filepath.Join(t.TempDir(), "broker.yaml")
		if err := os.WriteFile(file, []byte("trust_domain: example.org\ndata: /d\n"+strings.ReplaceAll(key, "DATA", "/d")), 0o600); err != nil {
			t.Fatal(err)
		}
		bad.Reset()
		if code := credence.Run(t.Context(), []string{"validate", file}, strings.NewReader(""), &out, &bad); code != 0 {
			t.Errorf("%s: %s", key, bad.String())
		}
	}
	if tried != 6 {
		t.Errorf("broker init writes %d sources of keys, want 6", tried)
	}
}
