package local_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/exchangers"
)

// A delivery gives what the test says.
type delivery struct{ err error }

var outputTarget = agent.Target{Name: "orders", Flow: "oauth", Settings: []byte(`{"flow":"oauth","endpoint":"https://x.example","ca_file":"/ca","settings":{}}`)}

func (d delivery) Exchange(context.Context, string, string) (agent.Exchanged, error) {
	return agent.Exchanged{
		Credential: exchangers.Credential{Expires: expires, Bearer: &exchangers.Bearer{Token: exchangers.NewSecret("secret-token")}},
		Target:     outputTarget, ID: spiffeid.RequireFromString(id),
	}, d.err
}

func (d delivery) TargetToken(context.Context, string, bool) (agent.JWTSVID, agent.Target, error) {
	return agent.JWTSVID{Token: "ey", Expires: expires, ID: spiffeid.RequireFromString(id)}, outputTarget, d.err
}

// An output's errors have the status that a caller's have.
func TestAnOutputsSource(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"granted":              {nil, codes.OK},
		"denied":               {&agent.Denied{Reason: "no"}, codes.PermissionDenied},
		"refused for good":     {fmt.Errorf("x: %w", &exchangers.Error{Class: exchangers.Config}), codes.FailedPrecondition},
		"refused, try again":   {&exchangers.Error{Class: exchangers.Outage}, codes.Unavailable},
		"the broker is away":   {agent.ErrUnavailable, codes.Unavailable},
		"something else":       {errors.New("x"), codes.Unavailable},
		"nothing was held yet": {nil, codes.PermissionDenied},
	} {
		d := &local.Delivered{}
		if name != "nothing was held yet" {
			d.Hold(delivery{c.err}, nil)
		}
		got, err := d.Fetch(t.Context(), "orders")
		if status.Code(err) != c.want || (err == nil) != (got.GetBearer().GetToken() == "secret-token" && got.GetCaFile() == "/ca" && got.GetSpiffeId() == id) {
			t.Errorf("%s: %v %v", name, got, err)
		}
		token, err := d.Token(t.Context(), "orders", true)
		if status.Code(err) != c.want || (err == nil) != (token.GetToken() == "ey" && token.GetEndpoint() == "https://x.example") {
			t.Errorf("%s: %v %v", name, token, err)
		}
		d.Hold(nil, nil)
		if _, err := d.Fetch(t.Context(), "orders"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s, and withdrawn: %v", name, err)
		}
	}
}

func TestAnOutputsCertificate(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := agenttest.NewCA(t, "example.org").Sign(spiffeid.RequireFromString(id), key.Public(), time.Now().Add(time.Hour))
	d := &local.Delivered{}
	d.Hold(delivery{}, []*agent.SVID{{ID: spiffeid.RequireFromString(id), Certificates: []*x509.Certificate{leaf}, Key: key, KeyDER: der}})
	chain, private, err := d.X509(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(chain, private); err != nil {
		t.Error(err)
	}
	if _, _, err := d.X509(t.Context(), id+"/other"); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	d.Hold(nil, nil)
	if _, _, err := d.X509(t.Context(), id); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
}

func TestDoorsAreOnLoopback(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "0.0.0.0:0", "[::]:0", "localhost:0", "127.0.0.1", "192.0.2.1:0", ":0"} {
		d, err := local.OpenDoor(address, 0)
		if err == nil {
			t.Errorf("%q is open at %s", address, d.Addr())
			d.Close()
		}
	}
}

func TestAShortSeedIsNone(t *testing.T) {
	t.Parallel()
	_, err := local.Open(t.Context(), local.Config{Dir: t.TempDir() + "/x", Targets: []string{"gcp"}, Source: clouds(), Seed: make([]byte, 31)})
	if err == nil {
		t.Error("a short seed is taken")
	}
}

// One seed makes a secret for each target, and none is in a path.
func TestASeedsSecretsDiffer(t *testing.T) {
	seed := make([]byte, 32)
	s := opened(t, clouds(), []string{"web", "azure", "anywhere"}, func(c *local.Config) { c.Seed = seed })
	seen := map[string]string{}
	for _, target := range []string{"web", "azure", "anywhere"} {
		e := s.endpoint(target)
		for _, secret := range []string{e.secret, strings.Split(e.url, "/")[3]} {
			if other := seen[secret]; other != "" || len(secret) < 43 {
				t.Errorf("%s has %s's %q", target, other, secret)
			}
			seen[secret] = target
		}
	}
}
