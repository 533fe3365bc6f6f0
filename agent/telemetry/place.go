package telemetry

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/agent/caller"
)

// maxConnections bounds who is on a place at once: there are few probes.
const maxConnections = 64

// A Place is where to listen besides the admin socket.
type Place struct {
	Network, Address string // "tcp" or "unix"
	Anywhere         bool   // other machines may reach it
	// TLS says who may ask; nil: whoever reaches it.
	TLS *tls.Config
}

// ParsePlace reads an address and port of loopback, or unix:///PATH. anywhere
// lets any address of this machine pass.
func ParsePlace(text string, anywhere bool) (*Place, error) {
	if u, err := url.Parse(text); err == nil && u.Scheme == "unix" {
		if u.Host != "" || u.RawQuery != "" || u.Fragment != "" || filepath.Clean(u.Path) != u.Path || len(u.Path) < 2 {
			return nil, fmt.Errorf("%q: unix:///PATH is wanted, absolute", text)
		}
		return &Place{Network: "unix", Address: u.Path}, nil
	}
	at, err := netip.ParseAddrPort(text)
	switch {
	case err != nil || at.Port() == 0:
		return nil, fmt.Errorf("%q: an address with a port is wanted, such as 127.0.0.1:9452, or unix:///PATH", text)
	case at.Addr().IsLoopback():
		return &Place{Network: "tcp", Address: at.String()}, nil
	case !anywhere:
		return nil, fmt.Errorf("%q: an address of loopback is wanted: TCP doesn't say who asks", text)
	}
	return &Place{Network: "tcp", Address: at.String(), Anywhere: true}, nil
}

// Listen opens the place. A Unix socket is for the agent's own user and group.
func (p *Place) Listen() (net.Listener, error) {
	if p.Network == "unix" {
		return caller.Listen(p.Address, 0o660)
	}
	return net.Listen("tcp", p.Address)
}

// serve listens until ctx ends.
func (p *Place) serve(ctx context.Context, h http.Handler, log *slog.Logger) {
	for ctx.Err() == nil {
		l, err := p.Listen()
		if err != nil {
			log.ErrorContext(ctx, "not listening; it is tried again", "address", p.Address, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(again):
			}
			continue
		}
		l = &few{Listener: l}
		if p.TLS != nil {
			l = tls.NewListener(l, p.TLS)
		}
		serve(ctx, l, p.guard(h), 10*time.Second)
	}
}

// guard refuses what a browser could be led to by a name that its attacker
// points at us.
func (p *Place) guard(h http.Handler) http.Handler {
	if p.Network != "tcp" || p.TLS != nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
			http.Error(w, "ask by address", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// few has a number of connections open. Whoever comes then takes the place of the
// oldest of the address that has most: who asks is not kept out by who holds them.
type few struct {
	net.Listener

	mu   sync.Mutex // guards open
	open []*counted // the oldest first
}

func (f *few) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	one := &counted{Conn: c, of: f, from: c.RemoteAddr().String()}
	if at, err := netip.ParseAddrPort(one.from); err == nil {
		one.from = at.Addr().String()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.open) >= maxConnections {
		out := f.first()
		_ = f.open[out].Conn.Close()
		f.open = slices.Delete(f.open, out, out+1)
	}
	f.open = append(f.open, one)
	return one, nil
}

// first is who goes first.
func (f *few) first() (at int) {
	of := map[string]int{}
	for _, c := range f.open {
		of[c.from]++
	}
	for i, c := range f.open {
		if of[c.from] > of[f.open[at].from] {
			at = i
		}
	}
	return at
}

type counted struct {
	net.Conn
	of   *few
	from string
}

func (o *counted) Close() error {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.of.open = slices.DeleteFunc(o.of.open, func(c *counted) bool { return c == o })
	return o.Conn.Close()
}
