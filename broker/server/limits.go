package server

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// How often the token endpoint is asked, before anything is signed or looked up:
// at once, and for each second after that.
const (
	sourceBurst, sourceRate = 100, 20 // an address, before any signature is verified
	callerBurst, callerRate = 60, 5   // a SPIFFE ID that proved itself
	domainBurst, domainRate = 400, 40 // a peer's IDs together: it makes as many as it likes
	maxBuckets              = 4096
)

// Limits bound what others take of a broker. A field that is zero means its default,
// which a fleet does not meet: 5,000 agents behind one address, all of which connect
// at once, are well below.
type Limits struct {
	Connections       int // open on agents at once: 20,000; a tenth of one ID or one peer; besides half of it in handshakes and a tenth without a certificate; on spiffe and on web a quarter of it each
	SourceConnections int // of one address: 10,000; on spiffe and on web a tenth of it; and a tenth more each second
	SourceRequests    int // of one address, on spiffe and web, a second: 100; 20 times as many at once
	SourceJoins       int // joins of one address a second: 50; 200 times as many at once
	NodeCalls         int // of one node a second: 500; 4 times as many at once
}

// WithDefaults has no field that is zero.
func (l Limits) WithDefaults() Limits {
	return Limits{
		cmp.Or(l.Connections, 20000), cmp.Or(l.SourceConnections, 10000), cmp.Or(l.SourceRequests, 100), cmp.Or(l.SourceJoins, 50), cmp.Or(l.NodeCalls, 500),
	}
}

// rates are what Limits allow by time.
type rates struct {
	Limits
	agents, spiffe, web *limits // new connections
	requests            *limits
	joins               *limits
	calls               *limits
}

func newRates(l Limits, now func() time.Time) *rates {
	l = l.WithDefaults()
	of, webOf := float64(l.SourceConnections), float64(max(l.SourceConnections/10, 1))
	calls := newLimits(float64(4*l.NodeCalls), float64(l.NodeCalls), now)
	calls.most = max(l.Connections, maxBuckets) // nodes are no strangers, and all come back at once
	return &rates{
		l, newLimits(of, of/10, now), newLimits(webOf, webOf/10, now), newLimits(webOf, webOf/10, now),
		newLimits(float64(20*l.SourceRequests), float64(l.SourceRequests), now),
		newLimits(float64(200*l.SourceJoins), float64(l.SourceJoins), now),
		calls,
	}
}

// limits are token buckets by key. There are at most so many: when those that
// are full again have left and there are still so many, whoever else comes shares
// one, so that strangers cost no memory and take nobody's place.
type limits struct {
	burst, rate float64
	most        int           // buckets
	every       time.Duration // that those that are full are looked for
	now         func() time.Time
	refused     atomic.Uint64 // how often there was none

	mu      sync.Mutex // guards what follows
	buckets map[string]*bucket
	swept   time.Time
}

type bucket struct {
	left float64
	at   time.Time
}

func newLimits(burst, rate float64, now func() time.Time) *limits {
	every := min(time.Second, time.Duration(50/rate*float64(time.Second)))
	return &limits{burst: burst, rate: rate, most: maxBuckets, every: every, now: now, buckets: make(map[string]*bucket)}
}

// take takes one, or says how long it is until there is one.
func (l *limits) take(key string) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= l.most && now.Sub(l.swept).Abs() >= l.every {
			l.sweep(now)
		}
		if len(l.buckets) >= l.most {
			key = "" // nobody's
		}
		if b = l.buckets[key]; b == nil {
			b = &bucket{l.burst, now}
			l.buckets[key] = b
		}
	}
	l.fill(b, now)
	if b.left < 1 {
		l.refused.Add(1)
		return time.Duration((1 - b.left) / l.rate * float64(time.Second)), false
	}
	b.left--
	return 0, true
}

func (l *limits) fill(b *bucket, now time.Time) {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.left = min(l.burst, b.left+passed*l.rate)
	}
	b.at = now
}

func (l *limits) sweep(now time.Time) {
	l.swept = now
	for key, b := range l.buckets {
		if l.fill(b, now); b.left >= l.burst {
			delete(l.buckets, key)
		}
	}
}

// sourceOf is the address that a request counts for: a v6 one by its network,
// of which whoever has one has all. Behind our proxy it is the one that the proxy
// saw, which it writes last; what stands before it is the caller's word.
func sourceOf(r *http.Request, proxied bool) string {
	if proxied {
		all := r.Header.Values("X-Forwarded-For")
		if len(all) == 0 {
			return "proxy"
		}
		parts := strings.Split(all[len(all)-1], ",")
		addr, err := netip.ParseAddr(strings.TrimSpace(parts[len(parts)-1]))
		if err != nil {
			return "proxy"
		}
		return network(addr)
	}
	return addressOf(r.RemoteAddr)
}

func addressOf(hostport string) string {
	at, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return hostport
	}
	return network(at.Addr())
}

func network(addr netip.Addr) string {
	if addr = addr.Unmap().WithZone(""); addr.Is4() {
		return addr.String()
	}
	p, _ := addr.Prefix(64) // of a v6 address: it cannot fail
	return p.String()
}

// tooMany is the refusal of one who asks too often, and says when to ask again
// (google.rpc.RetryInfo).
func tooMany(wait time.Duration) error {
	s := status.New(codes.ResourceExhausted, fmt.Sprintf("too many requests; try again in %ds", seconds1(wait)))
	detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}, &errdetails.ErrorInfo{Domain: errorDomain, Reason: "TOO_MANY"})
	if err != nil {
		return s.Err()
	}
	return detailed.Err()
}

// bounded refuses requests of an address that asks too often.
func (s *Server) bounded(h http.Handler, proxied bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wait, ok := s.settings.Load().rates.requests.take(sourceOf(r, proxied)); !ok {
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Retry-After", strconv.FormatInt(seconds1(wait), 10))
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return
		}
		h.ServeHTTP(w, r)
	})
}
