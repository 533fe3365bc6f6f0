//go:build drill

package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// In the drill a day of a cloud's cache is so long, and a bundle is polled as
// often as peers ever do: so a side's broker.yaml says.
const (
	drillLead = 90 * time.Second
	drillHint = 30 * time.Second
)

// TestDrillRotation rotates and replaces every key of a trust domain under load:
// 200 fetches and 50 mTLS handshakes a second, between workloads of two nodes
// and one of a peer that polls at the hint, and a cloud that asks for our keys
// as seldom as the lead allows. Nothing may fail.
func TestDrillRotation(t *testing.T) {
	a, b := newSide(t, "a.example"), newSide(t, "b.example")
	a.federate(b)
	b.federate(a)
	d := &drill{t: t, began: time.Now(), counts: map[string]*[2]int{}}
	d.load(a, []string{a.node("n1"), a.node("n2"), b.node("n1")})
	wait := func(what string, until time.Duration) {
		d.do(what, func() { <-time.After(until) }) // the drill's own pace
	}
	wait("at rest", 10*time.Second)
	d.do("rotate issuing", func() { a.credence("", "ca", "rotate", "issuing") })
	wait("at rest", 5*time.Second)
	d.do("rotate jwt", func() { a.credence("", "ca", "rotate", "jwt") })
	d.do("rotate root", func() { a.credence("", "ca", "replace", "root", "--wait") }) // SVIDs live too long to wait for
	wait("jwt keys take over", drillLead)
	d.do("rotate jwt", func() { a.credence("", "ca", "rotate", "jwt") })
	wait("jwt keys take over", drillLead)
	d.do("rotate issuing", func() { a.credence("", "ca", "rotate", "issuing") })
	wait("at rest", 5*time.Second)
	d.do("replace issuing", func() { a.credence("", "ca", "replace", "issuing", "--reason", "a drill") })
	wait("the standby keys' lead", drillLead)
	d.do("replace jwt", func() { a.credence("", "ca", "replace", "jwt", "--reason", "a drill") })
	wait("at rest", 10*time.Second)
	d.do("replace root", func() { a.credence("", "ca", "replace", "root", "--wait", "--reason", "a drill") })
	wait("peers and clouds fetch it all", drillLead+drillHint)
	d.end()
	t.Log("\n" + a.credence("", "ca", "show", "--all") + a.credence("", "audit", "verify"))
}

// drill counts what is done, and what of it fails.
type drill struct {
	t     *testing.T
	began time.Time
	stop  func()

	mu       sync.Mutex         // guards what follows
	counts   map[string]*[2]int // done, failed
	failures []string
	phases   []string
	phase    string
	lost     int // in this phase
}

// do does a step of the drill, and notes it.
func (d *drill) do(what string, step func()) {
	d.mu.Lock()
	d.phase, d.lost = what, 0
	d.mu.Unlock()
	began := time.Now()
	step()
	d.mu.Lock()
	defer d.mu.Unlock()
	line := fmt.Sprintf("%6.1f s  %-30s %6.1f s  %d failed", began.Sub(d.began).Seconds(), what, time.Since(began).Seconds(), d.lost)
	d.phases = append(d.phases, line)
	d.t.Log(line)
}

// done notes one try.
func (d *drill) done(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.counts[what]
	if c == nil {
		c = new([2]int)
		d.counts[what] = c
	}
	c[0]++
	if err != nil {
		c[1]++
		d.lost++
		if len(d.failures) < 40 {
			line := fmt.Sprintf("%6.1f s  %s, during %q: %v", time.Since(d.began).Seconds(), what, d.phase, err)
			d.failures = append(d.failures, line)
			d.t.Log(line) // a drill is long: at once
		}
	}
}

func (d *drill) end() {
	d.stop()
	var text strings.Builder
	for _, p := range d.phases {
		fmt.Fprintln(&text, p)
	}
	names := make([]string, 0, len(d.counts))
	for name := range d.counts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := d.counts[name]
		fmt.Fprintf(&text, "%-40s %7d  %d failed  %.0f/s\n", name, c[0], c[1], float64(c[0])/time.Since(d.began).Seconds())
	}
	d.t.Log("\n" + text.String())
	if len(d.failures) > 0 {
		d.t.Errorf("failed:\n%s", strings.Join(d.failures, "\n"))
	}
}

// every tries something so many times a second, until ctx ends.
func (d *drill) every(ctx context.Context, running *sync.WaitGroup, what string, perSecond int, try func(context.Context) error) {
	room := make(chan struct{}, 32)
	running.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case room <- struct{}{}:
			default:
				continue // the machine is too slow for this pace: the rate says so
			}
			running.Go(func() {
				defer func() { <-room }()
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				defer cancel()
				d.done(what, try(ctx))
			})
		}
	})
}

// load begins the load, on the workload sockets of two nodes and of a peer's.
func (d *drill) load(a *side, sockets []string) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	d.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	d.t.Cleanup(d.stop)
	clients, sources := d.clients(ctx, sockets)
	for i, c := range clients[:2] {
		d.every(ctx, &running, fmt.Sprintf("fetch X.509, node %d", i+1), 50, func(ctx context.Context) error {
			_, err := c.FetchX509SVID(ctx)
			return err
		})
	}
	cloud := newDrillCloud(a)
	d.every(ctx, &running, "fetch JWT, believed by another node", 50, d.token(clients[0], clients[1], "orders", nil))
	d.every(ctx, &running, "fetch JWT, believed by the peer", 25, d.token(clients[1], clients[2], "spiffe://b.example/demo", nil))
	d.every(ctx, &running, "fetch JWT, believed by the cloud", 25, d.token(clients[1], nil, "orders", cloud))
	server := newDrillServer(d.t, sources[0])
	d.every(ctx, &running, "mTLS between nodes", 25, server.meet(sources[1]))
	d.every(ctx, &running, "mTLS with the peer", 25, server.meet(sources[2]))
}

// clients are workloads on some sockets.
func (d *drill) clients(ctx context.Context, sockets []string) (clients []*workloadapi.Client, sources []*workloadapi.X509Source) {
	for _, socket := range sockets {
		c, err := workloadapi.New(ctx, workloadapi.WithAddr(socket))
		if err != nil {
			d.t.Fatal(err)
		}
		s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(c))
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { _, _ = s.Close(), c.Close() })
		clients, sources = append(clients, c), append(sources, s)
	}
	return clients, sources
}

// token fetches one and has it judged.
func (d *drill) token(from, by *workloadapi.Client, audience string, cloud func(context.Context, string) error) func(context.Context) error {
	return func(ctx context.Context) error {
		svid, err := from.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
		if err != nil {
			return fmt.Errorf("fetching: %w", err)
		}
		if cloud != nil {
			return cloud(ctx, svid.Marshal())
		}
		_, err = by.ValidateJWTSVID(ctx, svid.Marshal(), audience)
		return err
	}
}

// newDrillCloud believes tokens by keys that it fetches once in a lead, whatever
// key IDs it meets.
func newDrillCloud(a *side) func(context.Context, string) error {
	issuers := sandbox.NewIssuers(sandbox.IssuersConfig{Roots: a.web, LenientLoopbackIssuer: true, MaxAge: drillLead, Refetch: time.Hour})
	return func(ctx context.Context, raw string) error {
		token, err := sandbox.ParseJWT(raw)
		if err != nil {
			return err
		}
		key, err := issuers.Key(ctx, a.issuer, token.KeyID)
		if err != nil {
			return fmt.Errorf("the cloud: %w", err)
		}
		return token.Verify(key.Public, "RS256")
	}
}

// A drillServer is a workload that serves mTLS.
type drillServer struct{ address string }

func newDrillServer(t *testing.T, source *workloadapi.X509Source) drillServer {
	l := listenLoopback(t)
	server := &http.Server{
		TLSConfig: tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeAny()),
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "well met") }),
	}
	go func() { _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	return drillServer{l.Addr().String()}
}

// meet makes a new connection each time.
func (s drillServer) meet(source *workloadapi.X509Source) func(context.Context) error {
	return func(ctx context.Context) error {
		transport := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeAny()), DisableKeepAlives: true}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.address, nil)
		if err != nil {
			return err
		}
		response, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			return err
		}
		return response.Body.Close()
	}
}

// federate makes the other side a peer, and has its bundle given to workloads.
func (s *side) federate(other *side) {
	bundle := other.credence("", "bundle", "show", "-o", "spiffe")
	text, err := json.Marshal(bundle)
	if err != nil {
		s.t.Fatal(err)
	}
	s.credence(fmt.Sprintf(`kind: Peer
name: %s
url: https://127.0.0.1:%s/bundle
https_spiffe: {endpoint_id: "spiffe://%s/credence/broker", bundle: %s}
allow_private: true
---
kind: Identity
name: demo
spiffe_id: /demo
match: [{node.token.site: drill, workload.unix.uid: %d}]
jwt: {audiences: ["**"]}
federates_with: [%s]
`, other.domain, other.ports[1], other.domain, text, os.Getuid(), other.domain), "apply", "-f", "-")
}

func listenLoopback(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
