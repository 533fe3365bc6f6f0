package fetch_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
	"github.com/credence-id/credence/federation/fetch"
)

// A field is a peer whose endpoint works, for one fault to be put in.
type field struct {
	t       *testing.T
	root    *ca
	config  fetch.Config
	req     federation.CheckRequest
	cert    tls.Certificate
	tls     *tls.Config
	handler http.Handler
	text    string // of the document
	timeout time.Duration
	url     string // in place of the server's
	path    string
}

// doc is a bundle of partner.
func doc(t *testing.T, sequence uint64, cas ...*ca) string {
	t.Helper()
	b := spiffebundle.New(partner)
	b.SetSequenceNumber(sequence)
	b.SetRefreshHint(5 * time.Minute)
	for _, c := range cas {
		b.AddX509Authority(c.Cert)
	}
	text, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func believed(t *testing.T, text string) *federation.Bundle {
	t.Helper()
	b, err := federation.ParseBundle(partner, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newField(t *testing.T) *field {
	root := newCA(t)
	f := &field{t: t, root: root, cert: root.SVID(t, endpoint), tls: &tls.Config{}, text: doc(t, 5, root), path: "/bundle"}
	f.config.Roots = root.Pool()
	f.req = federation.CheckRequest{TrustDomain: partner, Request: federation.Request{AllowPrivate: true,
		HTTPSSPIFFE: &federation.Authentication{EndpointID: endpoint, Bundle: root.Bundle(partner)}}}
	f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/bundle" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, f.text)
	})
	return f
}

func (f *field) web() {
	f.req.HTTPSSPIFFE, f.req.HTTPSWeb = nil, &federation.HTTPSWeb{}
	f.cert = f.root.Web(f.t, "127.0.0.1")
}

func (f *field) status(code int) {
	f.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
}

func (f *field) check() []federation.Finding {
	c := f.serve()
	return c.Check(f.t.Context(), f.req)
}

// serve starts the server, and returns a client for it.
func (f *field) serve() *fetch.Client {
	s := httptest.NewUnstartedServer(f.handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = f.tls
	s.TLS.Certificates = []tls.Certificate{f.cert}
	s.StartTLS()
	f.t.Cleanup(s.Close)
	if f.url == "" {
		f.url = s.URL
	}
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	f.req.URL = strings.ReplaceAll(f.url, "$PORT", port) + f.path
	c := fetch.New(f.config)
	if f.timeout != 0 {
		fetch.SetTimeout(c, f.timeout)
	}
	return c
}

// bare listens, and has each connection handled by f.
func bare(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go f(conn)
		}
	}()
	return "https://" + l.Addr().String()
}

// Each fault is named, with the one thing to change.
func TestCheckNamesTheFault(t *testing.T) {
	dated := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to)
		}
	}
	other := spiffeid.RequireFromString("spiffe://third.example/credence/broker")
	tests := []struct {
		name                  string
		fault                 func(*field)
		step, problem, change string
	}{
		{"no such name", func(f *field) { f.config.Resolver, f.url = nameServer(f.t), "https://nowhere.example:$PORT" },
			"dns", "nowhere.example does not resolve", "A or AAAA record"},
		{"a private address", func(f *field) { f.req.AllowPrivate = false }, "dns", "private", "allow_private: true"},
		{"a name at a private address", func(f *field) {
			f.config.Resolver, f.url, f.req.AllowPrivate = nameServer(f.t, "10.1.2.3"), "https://inside.example:$PORT", false
		}, "dns", "inside.example is at 10.1.2.3", "allow_private: true"},
		{"a name at instance metadata", func(f *field) {
			f.config.Resolver, f.url = nameServer(f.t, "169.254.169.254"), "https://meta.example:$PORT"
		}, "dns", "169.254.169.254", "public address"},
		{"nothing listens", func(f *field) { f.url = "https://127.0.0.1:1" }, "tcp", "nothing listens", "start the endpoint"},
		{"a black hole", func(f *field) { f.timeout = 1 }, "tcp", "does not answer", "firewall"},
		{"plain HTTP", func(f *field) {
			f.url = bare(f.t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
		}, "profile", "speaks no TLS", "serve https"},
		{"says nothing", func(f *field) { f.url, f.timeout = bare(f.t, func(net.Conn) {}), 100*time.Millisecond }, "profile", "says nothing", "restart"},
		{"hangs up", func(f *field) { f.url = bare(f.t, func(c net.Conn) { c.Close() }) }, "profile", "handshake", "log"},
		{"old TLS alone", func(f *field) { f.tls.MinVersion, f.tls.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			"profile", "neither TLS 1.2 nor 1.3", "TLS 1.2 and 1.3"},
		{"client certificates, TLS 1.2", func(f *field) { f.tls.ClientAuth, f.tls.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 },
			"profile", "client certificate", "answers everybody"},
		{"client certificates, TLS 1.3", func(f *field) { f.tls.ClientAuth = tls.RequireAnyClientCert }, "profile", "client certificate", "answers everybody"},
		{"web, and an SVID is shown", func(f *field) { f.web(); f.cert = f.root.SVID(f.t, endpoint) },
			"profile", "shows the X509-SVID of " + endpoint.String(), "https_spiffe with endpoint_id: " + endpoint.String()},
		{"spiffe, and a web certificate is shown", func(f *field) { f.cert = f.root.Web(f.t, "partner.example") },
			"profile", "web certificate of partner.example", "https_web: {}"},
		{"a web certificate of another name", func(f *field) { f.web(); f.cert = f.root.Web(f.t, "partner.example") },
			"certificate", "of partner.example, not of 127.0.0.1", "name of the certificate"},
		{"a web certificate of nobody's CA", func(f *field) { f.web(); f.config.Roots = newCA(f.t).Pool() }, "certificate", "no CA that this machine trusts", "public CA"},
		{"a certificate that ended", func(f *field) { f.cert = f.root.Issue(f.t, dated(-2*time.Hour, -time.Hour), endpoint.String()) },
			"certificate", "ended at", "renew"},
		{"our clock is behind", func(f *field) { f.config.Now = func() time.Time { return time.Now().AddDate(-1, 0, 0) } },
			"certificate", "the clock here says", "NTP"},
		{"another CA than we know", func(f *field) { f.req.HTTPSSPIFFE.Bundle = newCA(f.t).Bundle(partner) }, "certificate", "no key that we have", "compare the fingerprint"},
		{"another fingerprint", func(f *field) {
			f.req.HTTPSSPIFFE.Bundle, f.req.HTTPSSPIFFE.Fingerprint = nil, federation.Fingerprint(newCA(f.t).Cert)
		}, "certificate", "the peer's fingerprint is sha256:", "compare the fingerprint"},
		{"no bundle of the endpoint's trust domain", func(f *field) {
			f.req.HTTPSSPIFFE = &federation.Authentication{EndpointID: endpoint}
			f.req.Unproven = fmt.Errorf("no bundle of %s to verify the endpoint by: apply a Peer for it", partner)
		}, "certificate", "no bundle of partner.example", "apply a Peer for it"},
		{"another path", func(f *field) { f.cert = f.root.SVID(f.t, spiffeid.RequireFromPath(partner, "/spire/server")) },
			"spiffe_id", "/spire/server", "endpoint_id: spiffe://partner.example/spire/server"},
		{"another trust domain", func(f *field) { f.cert = f.root.SVID(f.t, other) }, "spiffe_id", "third.example", "leads to an endpoint of third.example"},
		{"two IDs", func(f *field) { f.cert = f.root.Issue(f.t, nil, endpoint.String(), other.String()) }, "spiffe_id", "2 URI SANs", "one URI SAN"},
		{"a wrong path", func(f *field) { f.path = "/bundles" }, "bundle", "status 404", "correct the path"},
		{"authentication", func(f *field) { f.status(401) }, "bundle", "status 401", "no authentication"},
		{"it fails", func(f *field) { f.status(503) }, "bundle", "status 503", "log"},
		{"204", func(f *field) { f.status(204) }, "bundle", "status 204", "status 200"},
		{"a redirect to http", func(f *field) { f.handler = http.RedirectHandler("http://127.0.0.1/", http.StatusFound) }, "bundle", "redirects", "https url"},
		{"a redirect loop", func(f *field) { f.handler = http.RedirectHandler("/bundle", http.StatusFound) }, "bundle", "more than 3 redirects", "at most three"},
		{"a redirect to metadata", func(f *field) { f.handler = http.RedirectHandler("https://169.254.169.254/", http.StatusFound) }, "bundle", "169.254.169.254", "public address"},
		{"too large", func(f *field) { f.text = strings.Repeat(" ", fetch.MaxBody+1) }, "bundle", "larger", "no bundle is as large"},
		{"a page", func(f *field) { f.text = "<html>welcome</html>" }, "bundle", "no JSON", "a page is there"},
		{"another encoding", func(f *field) { f.handler = encoded("br", []byte(f.text)) }, "bundle", "encoded otherwise", "Accept-Encoding"},
		{"it breaks off", func(f *field) {
			f.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				io.WriteString(w, f.text[:100])
			})
		}, "bundle", "breaks off", "cuts answers short"},
		{"a slow-loris", func(f *field) {
			f.timeout = 200 * time.Millisecond
			f.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
		}, "bundle", "takes longer", "faster"},
		{"JSON that is no bundle", func(f *field) { f.text = `{"issuer":"https://partner.example"}` }, "bundle", "no member keys", "SPIFFE bundle"},
		{"an OIDC issuer's keys", func(f *field) {
			f.text = fmt.Sprintf(`{"keys":[{"use":"sig","kid":"k",%s}]}`, ecMembers(f.t))
		}, "bundle", "OIDC issuer", "SPIFFE bundle"},
		{"nothing usable", func(f *field) { f.text = `{"keys":[{"use":"x509-svid","kty":"AKP"}]}` }, "bundle", "unknown kty", "x509-svid or jwt-svid"},
		{"closed", func(f *field) { f.text = `{"keys":[]}` }, "bundle", "empty", "ask the peer"},
		{"a private key", func(f *field) {
			f.text = strings.Replace(f.text, `"keys":[`, `"keys":[{"use":"jwt-svid","kid":"k","d":"AA",`+ecMembers(f.t)+`},`, 1)
		}, "bundle", "private key", "replace that key now"},
		{"a bundle without the endpoint's own CA", func(f *field) { f.text = doc(f.t, 5, newCA(f.t)) }, "bundle", "lacks the key", "publish all keys"},
		{"every key changed", func(f *field) { f.web(); f.req.Last = believed(f.t, doc(f.t, 4, newCA(f.t))) }, "bundle", "every key changed", "credence peer accept partner.example"},
		{"the sequence went back", func(f *field) { f.req.Last = believed(f.t, doc(f.t, 6, f.root)) }, "sequence", "from 6 to 5", "caches"},
		{"the sequence stands still", func(f *field) { f.req.Last = believed(f.t, doc(f.t, 5, f.root, newCA(f.t))) }, "sequence", "still 5", "raise spiffe_sequence"},
		{"the clocks differ", func(f *field) {
			f.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
				io.WriteString(w, f.text)
			})
		}, "clock", "-2h0m", "NTP"},
		{"a url that is none", func(f *field) { f.url = "http://127.0.0.1" }, "dns", "none of a bundle endpoint", "https://"},
	}
	if len(tests) < 20 {
		t.Fatal("that is not twenty")
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newField(t)
			tt.fault(f)
			all := f.check()
			last := all[len(all)-1]
			if last.Step != tt.step || !strings.Contains(last.Problem, tt.problem) || !strings.Contains(last.Change, tt.change) {
				t.Errorf("it ends with %+v", last)
			}
			if strings.Contains(last.Change, ". ") {
				t.Errorf("more than one sentence: %s", last.Change)
			}
			for _, before := range all[:len(all)-1] {
				if before.Problem != "" {
					t.Errorf("%s found %q before", before.Step, before.Problem)
				}
			}
		})
	}
}

// Nothing is wrong with what works, by each profile and each way to know the
// endpoint, and every step is told.
func TestCheckOfWhatWorks(t *testing.T) {
	steps := "dns tcp profile certificate spiffe_id bundle sequence clock"
	tests := []struct {
		name  string
		how   func(*field)
		steps string
	}{
		{"by its bundle", func(*field) {}, steps},
		{"by the fingerprint of the CA shown", func(f *field) {
			f.req.HTTPSSPIFFE = &federation.Authentication{EndpointID: endpoint, Fingerprint: federation.Fingerprint(f.root.Cert)}
		}, steps},
		{"by the fingerprint of the bundle", func(f *field) {
			second := newCA(f.t)
			text, print := bundleOf(f.t, f.root, second)
			f.text, f.req.HTTPSSPIFFE = text, &federation.Authentication{EndpointID: endpoint, Fingerprint: print}
		}, steps},
		{"with what we have", func(f *field) { f.req.Last = believed(f.t, f.text) }, steps},
		{"web", func(f *field) { f.web() }, strings.Replace(steps, "spiffe_id ", "", 1)},
		{"web, all keys in common", func(f *field) { f.web(); f.req.Last = believed(f.t, doc(f.t, 4, f.root)) }, strings.Replace(steps, "spiffe_id ", "", 1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newField(t)
			tt.how(f)
			var got []string
			for _, finding := range f.check() {
				if finding.Problem != "" || finding.Found == "" {
					t.Errorf("%+v", finding)
				}
				got = append(got, finding.Step)
			}
			if strings.Join(got, " ") != tt.steps {
				t.Errorf("steps %v", got)
			}
		})
	}
}

// ecMembers are the JWK members of a fresh public key.
func ecMembers(t *testing.T) string {
	t.Helper()
	b := spiffebundle.New(partner)
	if err := b.AddJWTAuthority("k", federationtest.NewKey(t).Public()); err != nil {
		t.Fatal(err)
	}
	text, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		t.Fatal(err)
	}
	var members []string
	for _, name := range []string{"kty", "crv", "x", "y"} {
		members = append(members, fmt.Sprintf("%q:%q", name, set.Keys[0][name]))
	}
	return strings.Join(members, ",")
}
