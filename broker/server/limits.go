package server

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How often the token endpoint is asked, before anything is signed or looked up:
// at once, and for each second after that.
const (
	sourceBurst, sourceRate = 100, 20 // an address, before any signature is verified
	callerBurst, callerRate = 60, 5   // a SPIFFE ID that proved itself
	domainBurst, domainRate = 400, 40 // a peer's IDs together: it makes as many as it likes
	maxBuckets              = 4096
)

// limits are token buckets by key. There are at most maxBuckets: when those that
// are full again have left and there are still so many, whoever else comes shares
// one, so that strangers cost no memory and take nobody's place.
type limits struct {
	burst, rate float64
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
	return &limits{burst: burst, rate: rate, now: now, buckets: make(map[string]*bucket)}
}

// take takes one, or says how long it is until there is one.
func (l *limits) take(key string) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.buckets[key]
	if b == nil {
		if len(l.buckets) >= maxBuckets && now.Sub(l.swept).Abs() >= time.Second {
			l.sweep(now)
		}
		if len(l.buckets) >= maxBuckets {
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
