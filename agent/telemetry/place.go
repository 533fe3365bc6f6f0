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
	"strings"
	"sync/atomic"
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

// few closes connections beyond a number.
type few struct {
	net.Listener
	open atomic.Int32
}

func (f *few) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if f.open.Add(1) <= maxConnections {
			return &counted{Conn: c, of: f}, nil
		}
		f.open.Add(-1)
		_ = c.Close()
	}
}

type counted struct {
	net.Conn
	of     *few
	closed atomic.Bool
}

func (o *counted) Close() error {
	if o.closed.Swap(true) {
		return net.ErrClosed
	}
	o.of.open.Add(-1)
	return o.Conn.Close()
}
