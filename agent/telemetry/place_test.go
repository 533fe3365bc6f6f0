package telemetry_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/telemetry"
)

func TestParsePlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, text string
		anywhere   bool
		want       string // network, address and whether others reach it; empty: refused
	}{
		{"loopback", "127.0.0.1:9452", false, "tcp 127.0.0.1:9452"},
		{"loopback of IPv6", "[::1]:9452", false, "tcp [::1]:9452"},
		{"loopback, anywhere", "127.0.0.1:9452", true, "tcp 127.0.0.1:9452"},
		{"a socket", "unix:///run/a.sock", false, "unix /run/a.sock"},
		{"all addresses, said so", "0.0.0.0:8452", true, "tcp 0.0.0.0:8452 anywhere"},
		{"all addresses", "0.0.0.0:9452", false, ""},
		{"all of IPv6", "[::]:9452", false, ""},
		{"another address", "10.0.0.1:9452", false, ""},
		{"no address", ":9452", true, ""},
		{"a name", "localhost:9452", true, ""},
		{"no port", "127.0.0.1:0", false, ""},
		{"loopback mapped into IPv6", "[::ffff:10.0.0.1]:1", false, ""},
		{"a relative socket", "unix://run/a.sock", false, ""},
		{"a socket above itself", "unix:///run/../a.sock", false, ""},
		{"nothing", "", true, ""},
	} {
		got := ""
		if p, err := telemetry.ParsePlace(c.text, c.anywhere); err == nil {
			got = p.Network + " " + p.Address
			if p.Anywhere {
				got += " anywhere"
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// free is a port that nobody has, below those that outgoing connections of this
// machine get.
func free(t *testing.T) string {
	t.Helper()
	for range 200 {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(18000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func place(t *testing.T, text string) *telemetry.Place {
	t.Helper()
	p, err := telemetry.ParsePlace(text, true)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reach waits until somebody listens.
func reach(t *testing.T, network, address string) {
	t.Helper()
	late, again := time.After(10*time.Second), time.NewTicker(2*time.Millisecond)
	defer again.Stop()
	for {
		if c, err := net.Dial(network, address); err == nil {
			c.Close()
			return
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatalf("nobody listens at %s", address)
		}
	}
}

// A place serves what it is for, and never a profile.
func TestPlaces(t *testing.T) {
	t.Parallel()
	s := everything()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	m.Of(s)
	admin, err := net.Listen("unix", filepath.Join(t.TempDir(), "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	probes, scrapes, socket := free(t), free(t), filepath.Join(t.TempDir(), "m.sock")
	serve(t, telemetry.Config{Health: telemetry.NewHealth(telemetry.HealthConfig{Agent: s}), Metrics: m, Admin: admin, Profiles: true, Probes: place(t, probes), Scrapes: place(t, scrapes)})
	other, err := net.Listen("unix", filepath.Join(t.TempDir(), "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, telemetry.Config{Health: telemetry.NewHealth(telemetry.HealthConfig{Agent: s}), Metrics: m, Admin: other, Scrapes: place(t, "unix://"+socket)})
	reach(t, "tcp", probes)
	reach(t, "tcp", scrapes)
	reach(t, "unix", socket)
	for _, c := range []struct {
		what, network, address string
		serves                 []string
	}{
		{"admin", "unix", admin.Addr().String(), []string{"/live", "/ready", "/metrics", "/debug/pprof/", "/debug/pprof/heap"}},
		{"admin without profiles", "unix", other.Addr().String(), []string{"/live", "/ready", "/metrics"}},
		{"probes", "tcp", probes, []string{"/live", "/ready"}},
		{"scrapes", "tcp", scrapes, []string{"/metrics"}},
		{"scrapes on a socket", "unix", socket, []string{"/metrics"}},
	} {
		client := over(t, c.network, c.address)
		for _, path := range []string{"/", "/live", "/ready", "/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/vars"} {
			want := http.StatusNotFound
			for _, served := range c.serves {
				if path == served || strings.HasPrefix(path, "/debug/pprof/") && served == "/debug/pprof/" {
					want = http.StatusOK
				}
			}
			if path == "/debug/pprof/cmdline" && want == http.StatusOK {
				want = http.StatusNotFound // its arguments are nobody's
			}
			if code, _ := get(t, client, "http://127.0.0.1"+path); code != want {
				t.Errorf("%s: %s: %d, want %d", c.what, path, code, want)
			}
		}
	}
	if code, _ := get(t, over(t, "tcp", scrapes), "http://attacker.example/metrics"); code != http.StatusForbidden {
		t.Errorf("asked by another's name: %d", code)
	}
	if code, _ := get(t, over(t, "tcp", scrapes), "http://localhost:1/metrics"); code != http.StatusOK {
		t.Errorf("asked as localhost: %d", code)
	}
}

// An address in use keeps nothing from being served, and is taken when it is
// free.
func TestPlaceInUse(t *testing.T) {
	t.Parallel()
	s := everything()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	admin, err := net.Listen("unix", filepath.Join(t.TempDir(), "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	serve(t, telemetry.Config{Health: telemetry.NewHealth(telemetry.HealthConfig{Agent: s}), Metrics: m, Admin: admin, Probes: place(t, taken.Addr().String())})
	if code, text := get(t, over(t, "unix", admin.Addr().String()), "http://agent/ready"); code != http.StatusOK || text != "ready" {
		t.Errorf("%d %s", code, text)
	}
}

func TestHTTPProbes(t *testing.T) {
	t.Parallel()
	s := everything()
	now := noon
	health := telemetry.NewHealth(telemetry.HealthConfig{Agent: s, Now: func() time.Time { now = now.Add(time.Minute); return now }})
	admin, err := net.Listen("unix", filepath.Join(t.TempDir(), "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	outside := place(t, "0.0.0.0:"+strings.TrimPrefix(free(t), "127.0.0.1:"))
	serve(t, telemetry.Config{Health: health, Metrics: telemetry.NewMetrics(telemetry.MetricsConfig{}), Admin: admin, Probes: outside})
	port := strings.TrimPrefix(outside.Address, "0.0.0.0")
	reach(t, "tcp", "127.0.0.1"+port)
	inside, far := over(t, "unix", admin.Addr().String()), over(t, "tcp", "127.0.0.1"+port)
	check := func(what string, c *http.Client, path string, code int, text string) {
		t.Helper()
		if gotCode, got := get(t, c, "http://10.0.0.7"+path); gotCode != code || got != text {
			t.Errorf("%s: %d %q, want %d %q", what, gotCode, got, code, text)
		}
	}
	check("live", inside, "/live", 200, "live")
	check("ready", far, "/ready", 200, "ready")
	s.set(nil, []string{"the SVID of spiffe://example.org/a ends", "another"})
	check("unready leaves it alive", inside, "/live", 200, "live")
	check("why", inside, "/ready", 503, "not ready: the SVID of spiffe://example.org/a ends\nanother")
	check("not why, outside", far, "/ready", 503, "not ready: credence agent status says why")
	s.set([]string{"it hangs"}, nil)
	check("hung", inside, "/live", 503, "not live: it hangs")
	check("hung, and ready", inside, "/ready", 200, "ready")
}

// Who holds connections keeps nobody out: the oldest of the address that has most goes.
func TestHeldConnectionsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	from := make(chan *remote, 1)
	l := telemetry.Few(remotes{from: from})
	connect := func(address string) *remote {
		t.Helper()
		r := &remote{at: net.TCPAddr{IP: net.ParseIP(address), Port: 1}}
		from <- r
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	asks := connect("192.0.2.1")
	var held []*remote
	for range 63 {
		held = append(held, connect("192.0.2.2"))
	}
	other := connect("192.0.2.3")
	if asks.closed || other.closed || !held[0].closed || held[1].closed {
		t.Error("another goes than the oldest of who has most")
	}
	for range 1000 {
		held = append(held, connect("192.0.2.2"))
	}
	open := 0
	for _, r := range held {
		if !r.closed {
			open++
		}
	}
	if asks.closed || other.closed || open != 62 {
		t.Errorf("%d of who comes again and again are open", open)
	}
}

// remotes are connections from wherever a test says.
type remotes struct {
	net.Listener
	from chan *remote
}

func (r remotes) Accept() (net.Conn, error) { return <-r.from, nil }

type remote struct {
	net.Conn
	at     net.TCPAddr
	closed bool
}

func (r *remote) RemoteAddr() net.Addr { return &r.at }
func (r *remote) Close() error         { r.closed = true; return nil }
