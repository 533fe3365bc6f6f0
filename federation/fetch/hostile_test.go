package fetch_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

// shelf is a federation.Store.
type shelf struct {
	mu  sync.Mutex
	all map[spiffeid.TrustDomain]federation.Stored
}

func (s *shelf) SaveBundle(_ context.Context, b federation.Stored) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[b.TrustDomain] = b
	return nil
}

func (s *shelf) Bundles(context.Context) ([]federation.Stored, error) { return nil, nil }

func (s *shelf) DeleteBundle(_ context.Context, td spiffeid.TrustDomain) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, td)
	return nil
}

func (s *shelf) document(td spiffeid.TrustDomain) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.all[td].Document)
}

// An endpointServer is a bundle endpoint whose ways can be changed under its
// peers' feet.
type endpointServer struct {
	*httptest.Server
	cert    atomic.Pointer[tls.Certificate]
	handler atomic.Pointer[http.Handler]
	clients atomic.Bool // asks for a certificate
}

func newEndpoint(t *testing.T, cert tls.Certificate, text string) *endpointServer {
	t.Helper()
	e := &endpointServer{}
	e.cert.Store(&cert)
	e.answer(reply(text))
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*e.handler.Load()).ServeHTTP(w, r) }))
	e.Config.ErrorLog = log.New(io.Discard, "", 0)
	e.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config := &tls.Config{Certificates: []tls.Certificate{*e.cert.Load()}}
		if e.clients.Load() {
			config.ClientAuth = tls.RequireAnyClientCert
		}
		return config, nil
	}}
	e.StartTLS()
	t.Cleanup(e.Close)
	return e
}

func (e *endpointServer) answer(h http.Handler) { e.handler.Store(&h) }

func (e *endpointServer) port() string {
	_, port, _ := net.SplitHostPort(e.Listener.Addr().String())
	return port
}

// A siege is a real fetcher and a real refresher, two peers that behave, and
// one that turns.
type siege struct {
	*federation.Refresher
	store   *shelf
	log     *safeBuffer
	root    *ca // of the hostile one
	hostile *endpointServer
	td      spiffeid.TrustDomain
	names   atomic.Pointer[net.Resolver] // of the hostile one's URL
	good    []spiffeid.TrustDomain
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const hostileTimeout = 2 * time.Second

// besiege starts with three peers whose bundles are believed. The hostile one's
// URL goes by a name.
func besiege(t *testing.T, web bool) *siege {
	t.Helper()
	s := &siege{store: &shelf{all: map[spiffeid.TrustDomain]federation.Stored{}}, log: &safeBuffer{}, td: partner, root: newCA(t)}
	roots := x509.NewCertPool()
	roots.AddCert(s.root.Cert)
	s.names.Store(nameServer(t, "127.0.0.1"))
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.names.Load().Dial(ctx, network, address)
	}}
	client := fetch.New(fetch.Config{Roots: roots, Resolver: resolver, AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	fetch.SetTimeout(client, hostileTimeout)
	var err error
	s.Refresher, err = federation.New(federation.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Fetcher: client, Store: s.store,
		Log: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })
	peers := []federation.Peer{s.turncoat(t, web)}
	for _, name := range []string{"one.example", "two.example"} {
		td := spiffeid.RequireTrustDomainFromString(name)
		root := newCA(t)
		id := spiffeid.RequireFromPath(td, "/credence/broker")
		e := newEndpoint(t, root.SVID(t, id), doc(t, 1, root))
		s.good = append(s.good, td)
		peers = append(peers, federation.Peer{TrustDomain: td, URL: e.URL, HTTPSSPIFFE: &federation.HTTPSSPIFFE{EndpointID: id, Fingerprint: federation.Fingerprint(root.Cert)}})
	}
	if err := s.SetPeers(ctx, peers); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if err := s.Refresh(t.Context(), p.TrustDomain); err != nil {
			t.Fatalf("in peace: %v", err)
		}
	}
	return s
}

func (s *siege) turncoat(t *testing.T, web bool) federation.Peer {
	cert := s.root.SVID(t, endpoint)
	peer := federation.Peer{TrustDomain: partner, HTTPSSPIFFE: &federation.HTTPSSPIFFE{EndpointID: endpoint, Fingerprint: federation.Fingerprint(s.root.Cert)}}
	if web {
		cert = s.root.Web(t, "hostile.example")
		peer.HTTPSSPIFFE, peer.HTTPSWeb = nil, &federation.HTTPSWeb{}
	}
	s.hostile = newEndpoint(t, cert, doc(t, 5, s.root))
	peer.URL = "https://hostile.example:" + s.hostile.port() + "/bundle"
	return peer
}

// hang answers a little and then nothing, as a slow-loris does.
func hang(first string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, first)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// flood sends text again and again.
func flood(text string, times int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for range times {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
		}
	}
}

// bomb unpacks to 64 MiB: one of 1 MiB so many times over, which is gzip too.
func bomb(t *testing.T) []byte {
	t.Helper()
	return bytes.Repeat(packed(t, strings.Repeat(" ", 1<<20)), 64)
}

// Whatever the hostile endpoint does, its last good bundle stays, the peers
// beside it are fetched meanwhile, and it is told why it was refused.
func TestHostileEndpoints(t *testing.T) {
	type turn func(*testing.T, *siege)
	answers := func(h http.Handler) turn { return func(_ *testing.T, s *siege) { s.hostile.answer(h) } }
	says := func(text string) turn { return answers(reply(text)) }
	goes := func(to string) turn { return answers(http.RedirectHandler(to, http.StatusFound)) }
	rewritten := func(old, new string) turn {
		return func(t *testing.T, s *siege) { s.hostile.answer(reply(strings.Replace(doc(t, 6, s.root), old, new, 1))) }
	}
	tests := []struct {
		name string
		web  bool
		turn turn
		why  string
	}{
		{"slow-loris in the headers", false, func(t *testing.T, s *siege) {
			s.hostile.answer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		}, "deadline"},
		{"slow-loris in the body", false, answers(hang(`{"keys":[`)), "deadline"},
		{"slow-loris after a whole bundle", true, func(t *testing.T, s *siege) { s.hostile.answer(hang(doc(t, 6, s.root))) }, "deadline"},
		{"64 MiB", false, answers(flood(strings.Repeat(" ", 1<<20), 64)), "larger"},
		{"64 MiB in gzip", false, func(t *testing.T, s *siege) { s.hostile.answer(encoded("gzip", bomb(t))) }, "larger"},
		{"gzip in gzip", false, func(t *testing.T, s *siege) { s.hostile.answer(encoded("gzip, gzip", bomb(t))) }, "alone was asked for"},
		{"endless headers", false, answers(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for i := range 1000 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
			}
		})), "header"},
		{"a redirect loop", false, goes("/again"), "more than 3 redirects"},
		{"a redirect to http", false, goes("http://hostile.example/"), "scheme"},
		{"a redirect to a file", false, goes("file:///etc/passwd"), "scheme"},
		{"a redirect to instance metadata", false, goes("https://169.254.169.254/latest/meta-data/"), "169.254.169.254"},
		{"the same in IPv6", false, goes("https://[fd00:ec2::254]/"), "fd00:ec2::254"},
		{"the same, IPv4 in IPv6", false, goes("https://[::ffff:169.254.169.254]/"), "169.254.169.254"},
		{"the same behind NAT64", false, goes("https://[64:ff9b::a9fe:a9fe]/"), "64:ff9b::"},
		{"a redirect to a private address", false, goes("https://10.0.0.1/"), "allow_private"},
		{"a redirect to another ID", false, func(t *testing.T, s *siege) {
			other := newEndpoint(t, s.root.SVID(t, spiffeid.RequireFromPath(partner, "/other")), doc(t, 6, s.root))
			s.hostile.answer(http.RedirectHandler(other.URL, http.StatusFound))
		}, "not " + endpoint.String()},
		{"a name that is bound anew to metadata", false, func(t *testing.T, s *siege) { s.names.Store(nameServer(t, "169.254.169.254")) }, "169.254.169.254"},
		{"a name that is bound anew to a private address", true, func(t *testing.T, s *siege) { s.names.Store(nameServer(t, "192.168.1.1")) }, "allow_private"},
		{"a certificate of another ID", false, func(t *testing.T, s *siege) {
			cert := s.root.SVID(t, spiffeid.RequireFromPath(partner, "/w"))
			s.hostile.cert.Store(&cert)
		}, "not " + endpoint.String()},
		{"a certificate of another CA", false, func(t *testing.T, s *siege) {
			cert := newCA(t).SVID(t, endpoint)
			s.hostile.cert.Store(&cert)
		}, "unknown authority"},
		{"a web certificate of another name", true, func(t *testing.T, s *siege) {
			cert := s.root.Web(t, "other.example")
			s.hostile.cert.Store(&cert)
		}, "other.example"},
		{"a certificate that ended", false, func(t *testing.T, s *siege) {
			cert := s.root.Issue(t, func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
			}, endpoint.String())
			s.hostile.cert.Store(&cert)
		}, "expired"},
		{"client certificates wanted", false, func(_ *testing.T, s *siege) { s.hostile.clients.Store(true) }, "certificate required"},
		{"a sequence that goes back", false, func(t *testing.T, s *siege) { s.hostile.answer(reply(doc(t, 4, s.root, newCA(t)))) }, "sequence 4 is older than 5"},
		{"a sequence that is a string", false, rewritten(`"spiffe_sequence":6`, `"spiffe_sequence":"6"`), "spiffe_sequence"},
		{"keys twice", false, rewritten(`"keys":[`, `"keys":[],"keys":[`), "comes twice"},
		{"keys twice, once escaped", false, rewritten(`"keys":[`, `"\u006beys":[],"keys":[`), "comes twice"},
		{"deep JSON", false, says(`{"x":` + strings.Repeat("[", 17) + strings.Repeat("]", 17) + `,"keys":[]}`), "nested deeper"},
		{"very deep JSON", false, says(`{"keys":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`), ""},
		{"1,001 keys", false, says(`{"keys":[` + strings.Repeat("{},", 1000) + `{}]}`), "more than 1000"},
		{"HTML with 200", false, says("<!doctype html><title>Sign in</title>"), "not JSON"},
		{"cut mid-body", false, func(t *testing.T, s *siege) {
			text := doc(t, 6, s.root)
			s.hostile.answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(text)))
				io.WriteString(w, text[:len(text)/2])
			}))
		}, "unexpected EOF"},
		{"torn off", true, func(t *testing.T, s *siege) {
			s.hostile.answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, `{"keys":[`)
				panic(http.ErrAbortHandler)
			}))
		}, "EOF"},
		{"no keys", false, says(`{"spiffe_sequence":6}`), "no member keys"},
		{"keys null", false, says(`{"spiffe_sequence":6,"keys":null}`), "not an array"},
		{"500 with a bundle", false, func(t *testing.T, s *siege) {
			text := doc(t, 6, newCA(t))
			s.hostile.answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusInternalServerError)
				io.WriteString(w, text)
			}))
		}, "status is 500"},
		{"304 for what we do not have", false, answers(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })), "304"},
		{"every key changed, over web", true, func(t *testing.T, s *siege) { s.hostile.answer(reply(doc(t, 6, newCA(t)))) }, "credence peer accept"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := besiege(t, tt.web)
			before, _ := s.Set().Get(partner)
			stored := s.store.document(partner)
			tt.turn(t, s)
			hostile := make(chan error, 1)
			go func() { hostile <- s.Refresh(context.WithoutCancel(t.Context()), partner) }()
			for _, td := range s.good {
				if err := s.Refresh(t.Context(), td); err != nil {
					t.Errorf("beside it, %v", err)
				}
			}
			if err := <-hostile; err == nil || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("it was told %v, want %q", err, tt.why)
			}
			if after, _ := s.Set().Get(partner); after != before {
				t.Error("the last good bundle did not stay")
			}
			if diff := cmp.Diff(stored, s.store.document(partner)); diff != "" {
				t.Errorf("what is stored changed:\n%s", diff)
			}
			// And it is not shut out for good.
			cert, fine := s.root.SVID(t, endpoint), doc(t, 7, s.root)
			if tt.web {
				cert = s.root.Web(t, "hostile.example")
			}
			s.names.Store(nameServer(t, "127.0.0.1"))
			s.hostile.clients.Store(false)
			s.hostile.cert.Store(&cert)
			s.hostile.answer(reply(fine))
			if err := s.Refresh(t.Context(), partner); err != nil || s.store.document(partner) != fine {
				t.Errorf("after it turned back: %v", err)
			}
		})
	}
}

// What is hostile in a part of a bundle costs the peer that part alone.
func TestHostileEntries(t *testing.T) {
	tests := []struct{ name, entry, alarm string }{
		{"a private key", `{"use":"jwt-svid","kid":"k","d":"AAAA",$EC}`, "private or symmetric"},
		{"a symmetric key", `{"use":"jwt-svid","kid":"k","kty":"oct","k":"AAAA"}`, "private or symmetric"},
		{"a key without a kid", `{"use":"jwt-svid",$EC}`, "without kid"},
		{"a key of tomorrow", `{"use":"jwt-svid","kid":"k","kty":"AKP","alg":"ML-DSA-65","pub":"AA"}`, "unknown kty"},
		{"use twice", `{"use":"sig","use":"jwt-svid","kid":"k",$EC}`, "comes twice"},
		{"no object", `7`, "not a JSON object"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := besiege(t, false)
			entry := strings.ReplaceAll(tt.entry, "$EC", ecMembers(t))
			s.hostile.answer(reply(strings.Replace(doc(t, 6, s.root), `"keys":[`, `"keys":[`+entry+`,`, 1)))
			if err := s.Refresh(t.Context(), partner); err != nil {
				t.Fatal(err)
			}
			b, _ := s.Set().Get(partner)
			if !b.HasX509Authority(s.root.Cert) || len(b.JWTAuthorities()) != 0 {
				t.Errorf("believed: %d X.509 and %d JWT keys", len(b.X509Authorities()), len(b.JWTAuthorities()))
			}
			if !strings.Contains(s.log.String(), tt.alarm) {
				t.Errorf("no alarm in %s", s.log)
			}
		})
	}
}
