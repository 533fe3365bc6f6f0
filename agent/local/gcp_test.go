package local_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/auth/credentials"

	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func googleToken() int {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}})
	if err == nil {
		token, e := found.Token(ctx)
		if err = e; err == nil {
			fmt.Println(token.Value)
			return 0
		}
	}
	fmt.Println(err)
	return 1
}

const (
	googlePool  = "projects/1/locations/global/workloadIdentityPools/pool-one"
	middleman   = "middle@p-one.iam.gserviceaccount.com"
	impersonate = "orders@p-one.iam.gserviceaccount.com"
)

// google is the sandbox with an X.509 provider that takes ca's certificates.
func google(t *testing.T, ca *issuertest.CA) (*gcp.Cloud, *httptest.Server) {
	t.Helper()
	cloud, err := gcp.New(gcp.Config{
		Pools: []gcp.Pool{{Project: "1", ID: "pool-one", Providers: []gcp.Provider{{
			ID: "prov-x509", TrustStore: &gcp.TrustStore{Anchors: []*x509.Certificate{ca.Certificate}},
			AttributeMapping: map[string]string{"google.subject": "assertion.san.uri"},
		}}}},
		ServiceAccounts: []gcp.ServiceAccount{
			{Email: middleman, UniqueID: "100000000000000000001", Bindings: []gcp.Binding{
				{Role: gcp.WorkloadIdentityUser, Members: []string{"principal://iam.googleapis.com/" + googlePool + "/subject/" + id}},
				{Role: gcp.TokenCreator, Members: []string{"principal://iam.googleapis.com/" + googlePool + "/subject/" + id}},
			}},
			{Email: impersonate, UniqueID: "100000000000000000002", Bindings: []gcp.Binding{
				{Role: gcp.TokenCreator, Members: []string{"serviceAccount:" + middleman}},
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/token", cloud.MTLS())
	mux.Handle("/v1/projects/", cloud.IAMCredentials())
	mux.Handle("/whoami", cloud.Whoami())
	s := httptest.NewUnstartedServer(mux)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return cloud, s
}

// Google's library federates by the X509-SVID in our files, and goes on by
// delegates, which only the other kind of file can say.
func TestGCPByX509(t *testing.T) {
	ca := issuertest.NewCA(t, "root", time.Now(), nil)
	middle := issuertest.NewCA(t, "middle", time.Now(), ca)
	_, server := google(t, ca)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	provider := `"audience":"//iam.googleapis.com/` + googlePool + `/providers/prov-x509","svid":"x509"`
	key, err := x509.MarshalPKCS8PrivateKey(issuertest.EC())
	if err != nil {
		t.Fatal(err)
	}
	from := clouds()
	from.key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	rotate := func() {
		leaf := middle.Issue(t, id, time.Now(), issuertest.EC().Public())
		from.chain = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: middle.Certificate.Raw})...)
	}
	rotate()
	for name, settings := range map[string]string{
		"principal://iam.googleapis.com/" + googlePool + "/subject/" + id: "{" + provider + "}",
		impersonate: "{" + provider + `,"service_account":"` + impersonate + `","delegates":["` + middleman + `"]}`,
	} {
		r := bearerAnswer("gcp", settings, server.URL)
		from.put("google", withCA(r, caFile))
		s := opened(t, from, []string{"google"})
		for range 2 {
			if who := s.googleSays(server); who != name {
				t.Errorf("Google says that we are %s, want %s", who, name)
			}
			before := s.read("google.pem")
			rotate()
			s.Refresh(t.Context())
			if s.read("google.pem") == before {
				t.Error("the file is not replaced with the SVID")
			}
		}
	}
}

// googleSays runs somebody's program in the environment of the surfaces, and
// asks whose token it got.
func (s *surfaces) googleSays(server *httptest.Server) string {
	s.t.Helper()
	program := exec.Command(os.Args[0])
	program.Env = append(s.Apply([]string{"PATH=/usr/bin:/bin", "HOME=" + s.dir}), googleIs+"=1")
	out, err := program.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	r, err := http.NewRequest(http.MethodGet, server.URL+"/whoami", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(out)))
	answer, err := server.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	var body struct{ Principal string }
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		s.t.Fatal(err)
	}
	return body.Principal
}
