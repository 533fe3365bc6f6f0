package main_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
	"github.com/credence-id/credence/exchangers/azure"
	"github.com/credence-id/credence/exchangers/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/clouds"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A rotation is an authority that rotates its JWT keys, the issuer that
// publishes them, and clouds that believe what they have fetched for a day, all
// by one clock.
type rotation struct {
	unix      atomic.Int64
	authority *authority.Authority
	set       *identity.Set
	node      identity.Facts
	targets   map[string]exchangers.Exchanger
	audiences map[string]string
}

func (r *rotation) now() time.Time { return time.Unix(r.unix.Load(), 0).UTC() }

func newRotation(t *testing.T, lives authority.Lives) *rotation {
	t.Helper()
	r := &rotation{}
	r.unix.Store(time.Now().Unix())
	dir := tempDir(t)
	records, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "data"), Now: r.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = records.Close() })
	keys, err := disk.New(disk.Config{Dir: filepath.Join(dir, "keys")})
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	r.authority, err = authority.Open(t.Context(), authority.Config{TrustDomain: td, Issuer: issuertest.URL, Broker: "b1", Records: records, Keys: keys, Lives: lives, Now: r.now})
	if err != nil {
		t.Fatal(err)
	}
	checkout := identity.Identity{Name: "checkout", SPIFFEID: "/checkout", JWT: &identity.JWT{Audiences: identity.Plain("**"), Alg: "RS256"},
		Match: []identity.Item{{Terms: []identity.Term{{Name: "node.name", Pattern: "n1"}}}}}
	if r.set, err = identity.NewSet(identity.Config{TrustDomain: td, JWT: true}, identity.Resources{Identities: []identity.Identity{checkout}}); err != nil {
		t.Fatal(err)
	}
	if r.node, err = identity.NewFacts("node", map[string][]string{"node.name": {"n1"}}); err != nil {
		t.Fatal(err)
	}
	r.openClouds(t)
	return r
}

// openClouds serves the accounts that sandbox init writes, at the issuer where
// the authority's own documents are.
func (r *rotation) openClouds(t *testing.T) {
	t.Helper()
	documents, err := oidc.New(oidc.Config{Issuer: issuertest.URL, Keys: r.authority.OIDCKeys})
	if err != nil {
		t.Fatal(err)
	}
	issuer := issuertest.New(t)
	issuer.SetDiscovery(documents.ServeHTTP)
	issuer.SetKeys(documents.ServeHTTP)
	var text strings.Builder
	if err := (clouds.Example{Issuer: issuertest.URL, ID: sandboxWorkload, Anchor: "bundle.pem"}).Write(&text); err != nil {
		t.Fatal(err)
	}
	var config clouds.Config
	parseYAML(t, text.String(), &config)
	config.Issuers = clouds.Issuers{
		CAFile:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Server.Certificate().Raw})),
		Resolve: map[string]string{"example.com": issuer.Server.Listener.Addr().String()},
		KeyAge:  clouds.Duration(24 * time.Hour), Refetch: clouds.Duration(24 * time.Hour),
	}
	config.Vault = nil // its cert role, as what follows, wants a file of roots
	config.AWS.TrustAnchors, config.GCP.Pools[0].Providers = nil, config.GCP.Pools[0].Providers[:1]
	if err := config.Check(); err != nil {
		t.Fatal(err)
	}
	judge, err := clouds.New(config, r.now)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(nil)
	server.Close()
	if err := judge.Serve(server.TLS.Certificates[0], nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(judge.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client, err := exchangers.HTTPClient(exchangers.HTTPConfig{Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	r.connect(t, judge.URLs(), client)
}

func (r *rotation) connect(t *testing.T, urls map[string]string, client *http.Client) {
	t.Helper()
	r.targets, r.audiences = map[string]exchangers.Exchanger{}, map[string]string{}
	var err error
	put := func(name, audience string, x exchangers.Exchanger, failed error) {
		r.targets[name], r.audiences[name], err = x, audience, errors.Join(err, failed)
	}
	web := &aws.WebIdentity{Role: "arn:aws:iam::123456789012:role/orders-web", Region: "us-east-1"}
	x, failed := aws.New(aws.Config{Settings: web, Endpoint: urls["sts"], Client: client, Now: r.now})
	put("aws", web.Audience(), x, failed)
	pool := &gcp.Settings{Provider: "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/workloads/providers/credence"}
	x, failed = gcp.New(gcp.Config{Settings: pool, Endpoint: urls["gcp_sts"], Client: client, Now: r.now})
	put("gcp", pool.Audience(), x, failed)
	app := &azure.Settings{Tenant: "6f1d1e0a-7c2b-4d6e-9a3f-0b1c2d3e4f50", ClientID: "b3a9c7d5-1e2f-4a6b-8c9d-0e1f2a3b4c5d", Scope: "https://management.azure.com/.default"}
	x, failed = azure.New(azure.Config{Settings: app, Endpoint: urls["entra"], Client: client, Now: r.now})
	put("azure", app.Audience(), x, failed)
	if err != nil {
		t.Fatal(err)
	}
}

// minted are the JWT-SVIDs that the authority signs now for one target.
type minted struct {
	r        *rotation
	audience string
}

func (minted) ID() spiffeid.ID { return spiffeid.RequireFromString(sandboxWorkload) }
func (minted) X509(context.Context) (*x509svid.SVID, error) {
	return nil, errors.New("no X509-SVID is needed")
}

func (m minted) JWT(ctx context.Context) (string, error) {
	d, err := m.r.set.Decide(identity.Request{Node: m.r.node, Audiences: []string{m.audience}, Time: m.r.now()})
	if err != nil {
		return "", err
	}
	return m.r.authority.SignJWT(ctx, d[0].Grant)
}

// run lets hours pass, and exchanges at every cloud in each. It returns the
// refusals' codes, with how often each came, and how many keys there were.
func (r *rotation) run(t *testing.T, hours int) (refused map[string]int, keys int) {
	t.Helper()
	refused = map[string]int{}
	seen := map[string]bool{}
	for range hours {
		if _, err := r.authority.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, s := range r.authority.List() {
			if s.State == authority.Active && s.Alg == "RS256" && s.Use == authority.JWTKey {
				seen[s.ID] = true
			}
		}
		for name, x := range r.targets {
			_, err := x.Exchange(t.Context(), minted{r, r.audiences[name]})
			var refusal *exchangers.Error
			if errors.As(err, &refusal) {
				refused[name+" "+refusal.Code]++
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		r.unix.Add(3600)
	}
	return refused, len(seen)
}

// Keys that are published for as long as the slowest cloud caches are known to
// every cloud when they first sign; keys that are not are refused, which shows
// that this test can fail.
func TestRotationOutlivesTheCloudsCaches(t *testing.T) {
	t.Run("lead of a day", func(t *testing.T) {
		r := newRotation(t, authority.Lives{JWTKey: 24 * time.Hour, Lead: 24 * time.Hour})
		refused, keys := r.run(t, 56)
		if diff := cmp.Diff(map[string]int{}, refused); diff != "" || keys < 3 {
			t.Errorf("%d keys: %s", keys, diff)
		}
	})
	t.Run("lead of two hours", func(t *testing.T) {
		r := newRotation(t, authority.Lives{JWTKey: 2 * time.Hour, Lead: 2 * time.Hour, Keep: time.Hour})
		refused, keys := r.run(t, 12)
		for _, code := range []string{"aws InvalidIdentityToken", "gcp invalid_grant", "azure AADSTS7000272"} {
			if refused[code] == 0 {
				t.Errorf("%s did not come in %d keys: %v", code, keys, refused)
			}
		}
	})
}

func parseYAML(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(into); err != nil {
		t.Fatal(err)
	}
}
