package server_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/server"
)

// checkCRL holds a list against the chain that came with it and our bundle, and
// returns what is on it.
func (e *env) checkCRL(der []byte, chain [][]byte) (serials []string) {
	e.t.Helper()
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		e.t.Fatal(err)
	}
	certs := parse(e.t, chain)
	if err := list.CheckSignatureFrom(certs[0]); err != nil {
		e.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	for _, c := range e.authority.Bundle().X509Authorities {
		roots.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: e.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		e.t.Fatal(err)
	}
	for _, entry := range list.RevokedCertificateEntries {
		serials = append(serials, fmt.Sprintf("%032x", entry.SerialNumber))
	}
	return serials
}

func (e *env) issuing() string {
	e.t.Helper()
	for _, st := range e.authority.List() {
		if st.Use == authority.Issuing && st.State == authority.Active {
			return st.ID
		}
	}
	e.t.Fatal("no issuing CA")
	return ""
}

// RFC 2585 §4.2, RFC 9111.
func TestCRLsAreServed(t *testing.T) {
	e := newEnv(t)
	n, _ := e.serve()
	path := server.CRLPath(e.issuing())
	for name, address := range map[string]string{"spiffe": e.listeners.SPIFFE.Addr().String(), "web": e.listeners.Web.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			c, url := e.client(nil), "https://"+address+path
			r, body := do(t, c, "GET", url, nil)
			if r.StatusCode != 200 || r.Header.Get("Content-Type") != "application/pkix-crl" || r.Header.Get("Cache-Control") != "max-age=300, must-revalidate" {
				t.Fatalf("%d %v", r.StatusCode, r.Header)
			}
			got, _, err := n.issue(t.Context(), t, "33")
			if err != nil {
				t.Fatal(err)
			}
			chain := got.GetSvids()[0].GetChain()
			leaf := fmt.Sprintf("%032x", parse(t, chain)[0].SerialNumber)
			if slices.Contains(e.checkCRL(body, chain[1:]), leaf) {
				t.Error("it is on it before it is revoked")
			}
			tag := r.Header.Get("ETag")
			if r, body := do(t, c, "GET", url, http.Header{"If-None-Match": {tag}}); r.StatusCode != 304 || len(body) > 0 {
				t.Errorf("with its tag: %d, %d bytes", r.StatusCode, len(body))
			}
			if r, more := do(t, c, "HEAD", url, nil); r.StatusCode != 200 || len(more) > 0 || r.ContentLength != int64(len(body)) || r.Header.Get("ETag") != tag {
				t.Errorf("HEAD: %d, %d bytes, %v", r.StatusCode, r.ContentLength, r.Header)
			}
			for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
				if r, _ := do(t, c, method, url, nil); r.StatusCode != 405 {
					t.Errorf("%s: %d", method, r.StatusCode)
				}
			}
			for _, other := range []string{
				"/crl/", "/crl/.crl", "/crl/" + e.issuing(), path + "/", "/crl/" + strings.ToUpper(e.issuing()) + ".crl", "/crl/../crl/" + e.issuing() + ".crl",
				"/crl/" + e.issuing() + "%2ecrl", "/crl/0123456789abcdef0123456789abcdef.crl", "/crl" + path, path + ".crl",
			} {
				if r, _ := do(t, c, "GET", "https://"+address+other, nil); r.StatusCode != 404 {
					t.Errorf("%s: %d", other, r.StatusCode)
				}
			}
			e.revoke(broker.CutID, got.GetSvids()[0].GetSpiffeId())
			r, body = do(t, c, "GET", url, http.Header{"If-None-Match": {tag}})
			if r.StatusCode != 200 || !slices.Contains(e.checkCRL(body, chain[1:]), leaf) {
				t.Errorf("after the revocation: %d", r.StatusCode)
			}
		})
	}
}

// ending is an authority whose lists end soon.
type ending struct {
	server.Authority
	in time.Duration
}

func (a ending) CRLs() []authority.CRL {
	all := a.Authority.CRLs()
	for i := range all {
		all[i].NextUpdate = time.Now().Add(a.in)
	}
	return all
}

// No cache keeps a list past its end.
func TestCRLsEndInCaches(t *testing.T) {
	for in, want := range map[time.Duration]string{
		100*time.Second + 900*time.Millisecond: "max-age=100, must-revalidate", -time.Second: "max-age=0, must-revalidate", time.Hour: "max-age=300, must-revalidate",
	} {
		e := newEnv(t, func(e *env) {
			e.trust = func(a server.Authority) server.Authority { return ending{a, in} }
		})
		r, _ := do(t, e.client(nil), "GET", "https://"+e.listeners.Web.Addr().String()+server.CRLPath(e.issuing()), nil)
		if got := r.Header.Get("Cache-Control"); got != want {
			t.Errorf("%s before its end: %q", in, got)
		}
	}
}

// TestCRLsReachAgents: with our bundle at first, again when somebody revokes,
// and again when they are made anew at half of their life.
func TestCRLsReachAgents(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	w, first := n.watch(t)
	own := func(m *api.WatchResponse) *api.Bundle {
		for _, b := range m.GetBundles() {
			if b.GetTrustDomain() == td.Name() {
				return b
			}
		}
		return nil
	}
	if b := own(first); len(b.GetCrls()) != 2 { // the root's and the issuing CA's
		t.Fatalf("it begins with %d CRLs", len(b.GetCrls()))
	}
	got, _, err := n.issue(t.Context(), t, "33")
	if err != nil {
		t.Fatal(err)
	}
	e.revoke(broker.CutID, got.GetSvids()[0].GetSpiffeId())
	document, _ := e.authority.Document()
	numbers := func(b *api.Bundle) (serials []string, all []*x509.RevocationList) {
		if !bytes.Equal(b.GetDocument(), document) {
			t.Error("it comes without the bundle")
		}
		for _, l := range b.GetCrls() {
			serials = append(serials, e.checkCRL(l.GetDer(), l.GetIssuer())...)
			list, _ := x509.ParseRevocationList(l.GetDer())
			all = append(all, list)
		}
		return serials, all
	}
	m := w.until(func(m *api.WatchResponse) bool { return own(m) != nil })
	serials, before := numbers(own(m))
	if want := fmt.Sprintf("%032x", parse(t, got.GetSvids()[0].GetChain())[0].SerialNumber); !slices.Equal(serials, []string{want}) {
		t.Errorf("on it are %v, want %s", serials, want)
	}
	e.ahead.Store(int64(13 * time.Hour))
	if _, err := e.authority.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = w.until(func(m *api.WatchResponse) bool { return own(m) != nil })
	_, after := numbers(own(m))
	for i, l := range after {
		if l.Number.Cmp(before[i].Number) <= 0 || l.NextUpdate.Before(e.now().Add(23*time.Hour)) {
			t.Errorf("number %s after %s, until %s", l.Number, before[i].Number, l.NextUpdate)
		}
	}
}

func TestListCRLs(t *testing.T) {
	e := newEnv(t)
	conn, err := grpc.NewClient("unix://"+filepath.Join(e.dir, "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := api.NewAuthoritiesClient(conn).ListCRLs(t.Context(), &api.ListCRLsRequest{})
	if err != nil || len(r.GetLists()) != 2 {
		t.Fatal(r, err)
	}
	for _, l := range r.GetLists() {
		if got := e.checkCRL(l.GetCrl().GetDer(), l.GetCrl().GetIssuer()); len(got) > 0 || l.GetIssuer() == "" {
			t.Errorf("on the list of %s are %v", l.GetIssuer(), got)
		}
	}
}

// A revoker says what the test wants, by issuer.
type revoker map[string]error

func (r revoker) Revoke(_ context.Context, all []authority.Revocation) error {
	for _, one := range all {
		if one.Issuer != all[0].Issuer {
			return errors.New("two issuers at once: one's failure would be the other's")
		}
	}
	return r[all[0].Issuer]
}

// One issuer's refusal does not keep another's SVIDs off its list, and is not
// tried again; a fault is.
func TestListsTellRefusalsFromFaults(t *testing.T) {
	row := func(authority, serial string) broker.Issued {
		return broker.Issued{Kind: broker.KindX509, Authority: authority, Serial: serial, ExpiresAt: time.Now().Add(time.Hour)}
	}
	rows := []broker.Issued{row("a", "1"), row("b", "2"), row("a", "3"), row("", "4"), row("a", "no number")}
	lists := server.Lists{Authority: revoker{"a": authority.ErrFull, "c": authority.ErrRefused}}
	refused, err := lists.List(t.Context(), rows, "")
	if err != nil || len(refused) != 3 {
		t.Errorf("%q %v", refused, err)
	}
	if refused, err = lists.List(t.Context(), []broker.Issued{row("c", "1")}, ""); err != nil || len(refused) != 1 {
		t.Errorf("%q %v", refused, err)
	}
	lists = server.Lists{Authority: revoker{"b": errors.New("the disk is gone")}}
	if _, err = lists.List(t.Context(), rows, ""); err == nil {
		t.Error("a fault is no error")
	}
}
