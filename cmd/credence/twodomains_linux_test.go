package main_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// What one agent gives to a workload.
type given struct {
	x509    *x509svid.SVID
	jwt     string
	roots   *x509bundle.Set
	signers *jwtbundle.Set
}

func ask(t *testing.T, socket string) given {
	t.Helper()
	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	x, err := client.FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(x.SVIDs) != 1 {
		t.Fatalf("%s: %d SVIDs", socket, len(x.SVIDs))
	}
	all, err := client.FetchJWTSVIDs(t.Context(), jwtsvid.Params{Audience: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 {
		t.Fatalf("%s: %d JWT-SVIDs", socket, len(all))
	}
	signers, err := client.FetchJWTBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return given{x.SVIDs[0], all[0].Marshal(), x.Bundles, signers}
}

// Two agents of two trust domains stand side by side on one machine, in the
// directories that examples/systemd gives them. One workload gets from each what is
// that domain's, and nothing of the other.
func TestTwoDomainsOnOneMachine(t *testing.T) {
	run := tempDir(t)
	domains := []string{"one.example", "two.example"}
	got := map[string]given{}
	for _, domain := range domains {
		s := newSide(t, domain)
		s.credence(fmt.Sprintf("kind: Identity\nname: web\nspiffe_id: /web\nmatch: [{node.name: here, workload.unix.uid: %d}]\njwt: {ttl: 5m, audiences: [orders]}\n", os.Getuid()), "apply", "-f", "-")
		socket, admin := run+"/"+domain+"/workload.sock", run+"/"+domain+"/agent-admin.sock"
		agent := s.runAgent(s.agentFile("here", fmt.Sprintf("socket: %s\nadmin: %s\n", socket, admin)))
		if _, err := agent.await("joined", 0); err != nil {
			t.Fatal(err)
		}
		defer func() { // while the other's agent runs too, and after it began
			if code, out, errs := credenceCmd(t, "", "agent", "status", "--agent-admin", admin); code > 1 || !strings.Contains(out, "spiffe://"+domain+"/credence/node/here") {
				t.Errorf("%s: exit code %d: %s%s", admin, code, out, errs)
			}
		}()
	}
	for _, domain := range domains {
		got[domain] = ask(t, run+"/"+domain+"/workload.sock")
	}
	for i, domain := range domains {
		mine, other := got[domain], got[domains[1-i]]
		td, id := spiffeid.RequireTrustDomainFromString(domain), "spiffe://"+domain+"/web"
		if mine.x509.ID.String() != id || mine.roots.Len() != 1 || mine.signers.Len() != 1 {
			t.Errorf("%s: %s, with the roots of %d and the keys of %d domains", domain, mine.x509.ID, mine.roots.Len(), mine.signers.Len())
		}
		if _, _, err := x509svid.Verify(mine.x509.Certificates, mine.roots); err != nil {
			t.Errorf("%s: its own roots: %v", domain, err)
		}
		if _, _, err := x509svid.Verify(mine.x509.Certificates, other.roots); err == nil {
			t.Errorf("%s: the other's roots verify its SVID", domain)
		}
		token, err := jwtsvid.ParseAndValidate(mine.jwt, mine.signers, []string{"orders"})
		if err != nil || token.ID.String() != id {
			t.Errorf("%s: its own keys: %v", domain, err)
		}
		if _, err := jwtsvid.ParseAndValidate(mine.jwt, other.signers, []string{"orders"}); err == nil {
			t.Errorf("%s: the other's keys verify its JWT-SVID", domain)
		}
		if mine.roots.Has(spiffeid.RequireTrustDomainFromString(domains[1-i])) || !mine.roots.Has(td) {
			t.Errorf("%s: it has the other's roots", domain)
		}
	}
}
