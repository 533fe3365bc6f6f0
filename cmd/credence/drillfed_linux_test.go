//go:build drill

package main_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// TestDrillFederation federates two trust domains both ways over https_spiffe,
// by fingerprint, and a third with the first over https_web; each rotates all
// that it has while the others poll at the hint, and a fourth endpoint is
// hostile in every way that it can think of. Their workloads meet all the time.
func TestDrillFederation(t *testing.T) {
	a := newSide(t, "a.example")
	b := newSide(t, "b.example")
	web := func(cmd *side) { cmd.env = append(cmd.env, "SSL_CERT_FILE="+a.path("web.pem")) } // the web PKI
	c := newSide(t, "c.example", web)
	for _, s := range []*side{a, b, c} {
		s.identity()
	}
	add := func(s, other *side) {
		var shown struct {
			Fingerprint string `json:"fingerprint"`
		}
		if err := json.Unmarshal([]byte(other.credence("", "bundle", "show", "-o", "json")), &shown); err != nil {
			t.Fatal(err)
		}
		s.credence("", "peer", "add", other.domain, "https://127.0.0.1:"+other.ports[1]+"/bundle", "--fingerprint", shown.Fingerprint, "--allow-private")
	}
	add(a, b)
	add(b, a)
	c.credence("", "peer", "add", a.domain, "https://localhost:"+a.ports[2]+"/bundle", "--profile", "https_web", "--allow-private")
	evil := newEvil(t, a)
	c.credence("", "peer", "add", "evil.example", evil.url, "--profile", "https_web", "--allow-private")
	a.identity(b.domain)
	b.identity(a.domain)
	c.identity(a.domain, "evil.example")

	d := &drill{t: t, began: time.Now(), counts: map[string]*[2]int{}}
	nodes := []string{a.node("n1"), b.node("n1"), c.node("n1")}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	d.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(d.stop)
	clients, sources := d.clients(ctx, nodes)
	serverA, serverB := newDrillServer(t, sources[0]), newDrillServer(t, sources[1])
	d.every(ctx, &running, "b's workload meets a's", 20, serverA.meet(sources[1]))
	d.every(ctx, &running, "a's workload meets b's", 20, serverB.meet(sources[0]))
	d.every(ctx, &running, "a's JWT, believed by b", 20, d.token(clients[0], clients[1], "spiffe://b.example/demo", nil))
	d.every(ctx, &running, "b's JWT, believed by a", 20, d.token(clients[1], clients[0], "spiffe://a.example/demo", nil))
	d.every(ctx, &running, "a's JWT, believed by c over https_web", 20, d.token(clients[0], clients[2], "orders", nil))
	d.every(ctx, &running, "c believes nobody of evil.example", 1, func(context.Context) error {
		td := spiffeid.RequireTrustDomainFromString("evil.example")
		if got, err := sources[2].GetX509BundleForTrustDomain(td); err == nil && len(got.X509Authorities()) > 0 {
			return fmt.Errorf("it holds %d keys", len(got.X509Authorities()))
		}
		return nil
	})
	d.every(ctx, &running, "c looks at the hostile endpoint", 1, func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, "credence", "peer", "refresh", "evil.example", "--admin", c.path("broker", "run", "admin.sock"))
		_ = cmd.Run() // it never succeeds; that it ends is what counts
		return ctx.Err()
	})
	d.do("at rest", func() { <-time.After(10 * time.Second) })
	for _, s := range []*side{a, b} {
		d.do(s.domain+": rotate issuing", func() { s.credence("", "ca", "rotate", "issuing") })
		d.do(s.domain+": replace issuing", func() { s.credence("", "ca", "replace", "issuing", "--reason", "a drill") })
		d.do(s.domain+": replace root", func() { s.credence("", "ca", "replace", "root", "--wait", "--reason", "a drill") })
		d.do(s.domain+": replace jwt", func() { s.credence("", "ca", "replace", "jwt", "--reason", "a drill") })
	}
	d.do("peers fetch it all", func() { <-time.After(2 * drillHint) })
	d.held(a, clients[1], clients[2])
	d.end()
	t.Logf("the hostile endpoint was asked %d times, and had %d ways", evil.asked.Load(), len(evil.ways))
	t.Log("\n" + c.credence("", "peer", "list"))
}

// held measures how long it takes until workloads of peers hold a new root.
func (d *drill) held(a *side, peers ...*workloadapi.Client) {
	td := spiffeid.RequireTrustDomainFromString(a.domain)
	ctx, cancel := context.WithTimeout(d.t.Context(), 3*drillHint)
	defer cancel()
	keys := func(c *workloadapi.Client) int {
		set, err := c.FetchX509Bundles(ctx)
		if err != nil {
			return 0
		}
		b, err := set.GetX509BundleForTrustDomain(td)
		if err != nil {
			return 0
		}
		return len(b.X509Authorities())
	}
	before := keys(peers[0])
	began := time.Now()
	a.credence("", "ca", "rotate", "root")
	for i, c := range peers {
		w := &bundleWatch{td: td, more: before + 1, seen: make(chan struct{})}
		watching, stop := context.WithCancel(ctx)
		go func() { _ = c.WatchX509Bundles(watching, w) }()
		select {
		case <-w.seen:
			d.t.Logf("a root published by %s is held by peer %d's workload after %.1f s (it polls each %s)", a.domain, i+1, time.Since(began).Seconds(), drillHint)
		case <-ctx.Done():
			d.t.Errorf("peer %d's workload never holds the new root", i+1)
		}
		stop()
	}
}

type bundleWatch struct {
	td   spiffeid.TrustDomain
	more int
	once sync.Once
	seen chan struct{}
}

func (w *bundleWatch) OnX509BundlesUpdate(set *x509bundle.Set) {
	if b, err := set.GetX509BundleForTrustDomain(w.td); err == nil && len(b.X509Authorities()) >= w.more {
		w.once.Do(func() { close(w.seen) })
	}
}

func (w *bundleWatch) OnX509BundlesWatchError(error) {}

// evil is an endpoint with a certificate that the web PKI believes.
type evil struct {
	url   string
	asked atomic.Int64
	ways  []http.HandlerFunc
}

func newEvil(t *testing.T, a *side) *evil {
	cert, err := tls.LoadX509KeyPair(a.path("web.pem"), a.path("web.key"))
	if err != nil {
		t.Fatal(err)
	}
	l := listenLoopback(t)
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	e := &evil{url: "https://localhost:" + port + "/bundle"}
	e.ways = evilWays(e.url)
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			e.ways[int(e.asked.Add(1)-1)%len(e.ways)](w, r)
		}),
	}
	go func() { _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	return e
}

func evilWays(self string) []http.HandlerFunc {
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(s))
		}
	}
	to := func(where string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, where, http.StatusFound) }
	}
	zeros := bytes.Repeat([]byte(" "), 1<<20)
	return []http.HandlerFunc{
		func(w http.ResponseWriter, r *http.Request) { // slow-loris
			for {
				if _, err := w.Write([]byte(" ")); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				select {
				case <-r.Context().Done():
					return
				case <-time.After(200 * time.Millisecond):
				}
			}
		},
		func(w http.ResponseWriter, _ *http.Request) {
			for range 64 {
				if _, err := w.Write(zeros); err != nil {
					return
				}
			}
		},
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			for range 1024 {
				if _, err := z.Write(zeros); err != nil {
					return
				}
			}
			_ = z.Close()
		},
		to(self), to("https://169.254.169.254/latest/meta-data"), to("http://localhost/bundle"),
		func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>200</html>")) },
		text(strings.Repeat(`{"keys":[`, 10000)),
		text(`{"spiffe_sequence": 1, "keys": [{"kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "AA", "y": "AA", "d": "AA"}]}`),
		text(`{"keys": null}`), text(`{"spiffe_sequence": 9223372036854775808, "keys": 7}`),
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(1000))
			_, _ = w.Write([]byte(`{"keys": [`))
			panic(http.ErrAbortHandler)
		},
	}
}

// identity has workloads on the drill's nodes be /demo.
func (s *side) identity(federates ...string) {
	s.credence(fmt.Sprintf(`kind: Identity
name: demo
spiffe_id: /demo
match: [{node.token.site: drill, workload.unix.uid: %d}]
jwt: {audiences: ["**"]}
federates_with: [%s]
`, os.Getuid(), strings.Join(slices.Clone(federates), ", ")), "apply", "-f", "-")
}
