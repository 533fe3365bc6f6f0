package server_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/server"
)

// One of an address that has little stays, however many come from others.
func TestACrowdGoesByItsLargest(t *testing.T) {
	t.Parallel()
	const honest = 1
	for sources, does := range map[int]int{1: server.Idle, 2: server.Idle, 4: server.Busy, 50: server.Idle} {
		c := server.NewCrowd(100, 100)
		if _, ok := c.Enter(honest, "honest", server.Idle); !ok {
			t.Fatal("an empty crowd has no place")
		}
		for n := 2; n < 5000; n++ {
			if out, _ := c.Enter(n, fmt.Sprint(n%sources), does); out == honest {
				t.Fatalf("of %d attackers, the %dth has it hung up on", sources, n)
			}
			if all, of, _ := c.Sizes(); all > 100 || of > 101 {
				t.Fatalf("%d of %d sources are in", all, of)
			}
		}
		if out, ok := c.Enter(5001, "another", server.Idle); !ok || out == 0 || out == honest {
			t.Errorf("among %d attackers, another honest one: %v, for %d", sources, ok, out)
		}
	}
}

// Where each source has one, the oldest goes: whoever is quick is done by then.
func TestACrowdOfManySources(t *testing.T) {
	t.Parallel()
	c := server.NewCrowd(10, 10)
	for n := 1; n < 1000; n++ {
		if out, ok := c.Enter(n, fmt.Sprint(n), server.Idle); !ok || out != max(n-10, 0) {
			t.Fatalf("for the %dth goes %d, %v", n, out, ok)
		}
	}
}

// Who goes, of one source and of several.
func TestWhoGoes(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		of   []string // sources of 1, 2, ..., and what they do
		does []int
		next string
		out  int // 0: the next is refused
	}{
		"the oldest of the largest":        {[]string{"b", "a", "a", "a"}, []int{0, 0, 0, 0}, "c", 2},
		"its own, which has all it may":    {[]string{"a", "a", "a", "b"}, []int{1, 0, 0, 0}, "a", 2},
		"an idle one before a busy one":    {[]string{"a", "a", "b", "c"}, []int{1, 0, 0, 0}, "d", 2},
		"a busy one for a smaller party":   {[]string{"a", "a", "a", "b"}, []int{1, 1, 1, 1}, "b", 1},
		"no busy one for its own":          {[]string{"a", "a", "a", "b"}, []int{1, 1, 1, 1}, "a", 0},
		"no busy one among equals":         {[]string{"a", "b", "c", "d"}, []int{1, 1, 1, 1}, "e", 0},
		"none that stays":                  {[]string{"a", "a", "a", "b"}, []int{2, 2, 2, 2}, "c", 0},
		"another's, for the largest stays": {[]string{"a", "a", "a", "b"}, []int{2, 2, 2, 0}, "c", 4},
		"none that is being judged":        {[]string{"a", "a", "a", "b"}, []int{2, 1, 1, 0}, "c", 2},
	} {
		c := server.NewCrowd(4, 3)
		for i, source := range row.of {
			if _, ok := c.Enter(i+1, source, server.Idle); !ok {
				t.Fatalf("%s: %d is refused", name, i+1)
			}
			c.Turn(i+1, row.does[i])
		}
		if out, ok := c.Enter(9, row.next, server.Idle); out != row.out || ok != (row.out > 0) {
			t.Errorf("%s: %d goes, %v; want %d", name, out, ok, row.out)
		}
	}
}

// Whatever comes and goes, the counts are right, and nothing is kept of who has gone.
func TestACrowdKeepsCount(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	const most, mostOf = 40, 12
	c, source, does := server.NewCrowd(most, mostOf), map[int]string{}, map[int]int{}
	size := func(of string) (all, loose int) {
		for n, s := range source {
			if s == of {
				all++
				if does[n] < server.Seated {
					loose++
				}
			}
		}
		return all, loose
	}
	some := func() int {
		for n := range source {
			return n
		}
		return 0
	}
	for n := 1; n < 20000; n++ {
		switch what := random.IntN(8); {
		case what == 0 && len(source) > 0:
			n := some()
			c.Leave(n)
			delete(source, n)
		case what < 4 && len(source) > 0:
			n := some()
			does[n] = random.IntN(3)
			c.Turn(n, does[n])
		default:
			of := fmt.Sprint(random.IntN(4) * random.IntN(4))
			own, _ := size(of)
			full := len(source) == most
			out, ok := c.Enter(n, of, server.Idle)
			if out > 0 {
				_, loose := size(source[out])
				for _, s := range source {
					if _, l := size(s); own < mostOf && l > loose {
						t.Fatalf("one goes of %d, and there are %d of another", loose, l)
					}
				}
				if own >= mostOf && source[out] != of || own < mostOf && !full || does[out] == server.Seated {
					t.Fatalf("%d of %s goes for one of %s", out, source[out], of)
				}
				delete(source, out)
			} else if ok && (full || own >= mostOf) {
				t.Fatal("one more than there are places")
			}
			if ok {
				source[n], does[n] = of, server.Idle
			}
		}
		sources, ranked := map[string]bool{}, map[string]bool{}
		for n, s := range source {
			sources[s] = true
			if does[n] < server.Seated {
				ranked[s] = true
			}
		}
		if all, of, rank := c.Sizes(); all != len(source) || of != len(sources) || rank != len(ranked) {
			t.Fatalf("%d of %d sources, %d ranked; there are %d, %d, %d", all, of, rank, len(source), len(sources), len(ranked))
		}
	}
}

const patience = 20 * time.Second

// conns is a listener of connections from wherever a test says.
type conns chan net.Conn

func (c conns) Accept() (net.Conn, error) {
	conn, ok := <-c
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (c conns) Close() error   { return nil }
func (c conns) Addr() net.Addr { return &net.TCPAddr{} }

// far is a connection from elsewhere.
type far struct {
	net.Conn
	from   string
	hungUp chan struct{}
	once   sync.Once
}

func (f *far) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(f.from))
}

func (f *far) Close() error {
	f.once.Do(func() { close(f.hungUp) })
	return nil
}

func (f *far) open() bool {
	select {
	case <-f.hungUp:
		return false
	default:
		return true
	}
}

// A lobby of a listener that is nobody's.
type testLobby struct {
	server.Lobby
	t     *testing.T
	conns conns
}

func newLobby(t *testing.T, limits server.Limits) testLobby {
	c := make(conns, 1)
	return testLobby{server.NewLobby(c, limits, 10*time.Second), t, c}
}

// from connects from an address.
func (l testLobby) from(address string) (net.Conn, *far) {
	l.t.Helper()
	f := &far{from: address, hungUp: make(chan struct{})}
	l.conns <- f
	conn, err := l.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
	return conn, f
}

// A stranger that calls nothing is hung up on; who calls has time to join.
func TestStrangersWhoCallNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, server.Limits{})
		silent, s := l.from("192.0.2.1:1")
		calling, c := l.from("192.0.2.1:2")
		agent, a := l.from("192.0.2.1:3")
		if !l.Shake(silent, false) || !l.Shake(calling, false) || !l.Shake(agent, true) {
			t.Fatal("refused")
		}
		time.Sleep(9 * time.Second)
		done, ok := l.Call(calling)
		if !ok || !s.open() {
			t.Error("it is hung up on too soon")
		}
		done()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.open() || !c.open() {
			t.Errorf("after 11 s: who is silent is in: %v; who calls: %v", s.open(), c.open())
		}
		time.Sleep(time.Minute)
		if done, ok = l.Call(calling); !ok {
			t.Fatal("it may not call again")
		}
		done() // which wins it no time
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.open() || !a.open() {
			t.Errorf("after 2 min: who called is in: %v; who showed a certificate: %v", c.open(), a.open())
		}
		for _, conn := range []net.Conn{silent, calling, agent} {
			conn.Close()
		}
		if l.Shake(silent, true) || l.Shake(calling, false) {
			t.Error("one that is closed is counted again")
		}
		if lobby, strangers, known := l.Open(); lobby+strangers+known > 0 {
			t.Errorf("when all have gone there are %d, %d, %d", lobby, strangers, known)
		}
	})
}

// Who showed a certificate loses its place to nobody, who is judged neither, and
// IPv6 counts by /64.
func TestFloodsAtTheGate(t *testing.T) {
	t.Parallel()
	l := newLobby(t, server.Limits{Connections: 200, SourceConnections: 200})
	agent, a := l.from("192.0.2.1:1")
	judged, j := l.from("[2001:db8::1]:1")
	if !l.Shake(agent, true) || !l.Shake(judged, false) {
		t.Fatal("refused")
	}
	if _, ok := l.Call(judged); !ok {
		t.Fatal("it may not call")
	}
	done := l.Judge(judged)
	_, h := l.from("192.0.2.2:1")                                          // shakes hands
	for n, from := range []string{"198.51.100.%d:1", "[2001:db8::%x]:1"} { // many, and what is one
		for i := range 150 {
			conn, _ := l.from(fmt.Sprintf(from, i%40))
			if i%2 == n {
				l.Shake(conn, false)
			}
		}
	}
	if !a.open() || !j.open() || !h.open() {
		t.Errorf("hung up on: %v, who was judged %v, who shakes hands %v", !a.open(), !j.open(), !h.open())
	}
	if lobby, strangers, known := l.Open(); lobby > 100 || strangers > 20 || known != 1 {
		t.Errorf("%d, %d, %d are open", lobby, strangers, known)
	}
	done()
}

// Where there is no place for another agent, nobody's handshake is paid for.
func TestAFullHouse(t *testing.T) {
	t.Parallel()
	l := newLobby(t, server.Limits{Connections: 3, SourceConnections: 3})
	var agents []net.Conn
	for _, address := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1"} {
		conn, _ := l.from(address)
		if !l.Shake(conn, true) {
			t.Fatal("refused")
		}
		agents = append(agents, conn)
	}
	one := &far{from: "192.0.2.3:1", hungUp: make(chan struct{})}
	l.conns <- one
	close(l.conns)
	if _, err := l.Accept(); err == nil || one.open() {
		t.Errorf("a fourth is let in: %v, %v", err, one.open())
	}
	for _, conn := range agents {
		conn.Close()
	}
}

// Who shows one certificate, or those of one peer, from however many addresses, leaves
// the others theirs.
func TestHoldersAreBounded(t *testing.T) {
	t.Parallel()
	l := newLobby(t, server.Limits{Connections: 100, SourceConnections: 100})
	var open []net.Conn
	for n := range 30 {
		conn, _ := l.from(fmt.Sprintf("192.0.2.%d:1", n))
		if ok := l.ShakeAs(conn, "evicted"); ok != (n < 10) {
			t.Fatalf("connection %d: %v", n+1, ok)
		}
		open = append(open, conn)
	}
	agent, _ := l.from("192.0.2.200:1")
	if !l.ShakeAs(agent, "another") {
		t.Error("another is kept out")
	}
	open[0].Close()
	open[0].Close()
	again, _ := l.from("192.0.2.1:2")
	if !l.ShakeAs(again, "evicted") {
		t.Error("the place of one that has gone is kept")
	}
	for _, conn := range append(open, agent, again) {
		conn.Close()
	}
	if n := l.Holders(); n != 0 {
		t.Errorf("when all have gone, %d are counted", n)
	}
	for id, want := range map[string]string{
		"spiffe://example.org/credence/node/n1": "spiffe://example.org/credence/node/n1",
		"spiffe://partner.example/billing/a":    "spiffe://partner.example",
	} {
		if got := server.HolderOf(td, spiffeid.RequireFromString(id)); got != want {
			t.Errorf("%s counts for %q", id, got)
		}
	}
}

// stuck is a log that takes nothing until it is closed.
type stuck struct {
	slog.Handler
	told, closed chan struct{}
}

func (s stuck) Handle(context.Context, slog.Record) error {
	s.told <- struct{}{}
	<-s.closed
	return nil
}

// A log that hangs keeps nobody who is in from going on.
func TestALogThatHangs(t *testing.T) {
	t.Parallel()
	l, log := newLobby(t, server.Limits{Connections: 1, SourceConnections: 1}), stuck{slog.NewTextHandler(io.Discard, nil), make(chan struct{}, 1), make(chan struct{})}
	l.Log(log)
	agent, _ := l.from("192.0.2.1:1")
	if !l.Shake(agent, true) {
		t.Fatal("refused")
	}
	l.conns <- &far{from: "192.0.2.2:1", hungUp: make(chan struct{})}
	close(l.conns)
	var others sync.WaitGroup
	others.Go(func() { _, _ = l.Accept() })
	defer others.Wait()
	defer close(log.closed)
	gone := make(chan error, 1)
	select {
	case <-log.told:
		go func() { gone <- agent.Close() }()
	case <-time.After(patience):
		t.Fatal("the log is not told")
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("who is in waits for the log")
	}
}

// A stranger calls little at once.
func TestAStrangersCalls(t *testing.T) {
	t.Parallel()
	l := newLobby(t, server.Limits{})
	conn, _ := l.from("192.0.2.1:1")
	defer conn.Close()
	if !l.Shake(conn, false) {
		t.Fatal("refused")
	}
	var last func()
	for n := range 8 {
		done, ok := l.Call(conn)
		if !ok {
			t.Fatalf("call %d is refused", n+1)
		}
		last = done
	}
	if _, ok := l.Call(conn); ok {
		t.Error("nine at once")
	}
	last()
	if _, ok := l.Call(conn); !ok {
		t.Error("none after one is done")
	}
}

// The next place is for who has fewest, however many of others came before.
func TestPlacesGoToWhoHasFewest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		enter := server.NewPlaces(4)
		type entered struct {
			source string
			leave  func()
		}
		in := make(chan entered, 10)
		take := func(ctx context.Context, source string) {
			if leave, err := enter(ctx, source); err == nil {
				in <- entered{source, leave}
			}
		}
		for _, source := range []string{"c", "c", "a", "b"} {
			take(t.Context(), source)
		}
		leaving, cancel := context.WithCancel(t.Context())
		for _, source := range []string{"d", "a", "b", "e", "f"} {
			ctx := t.Context()
			if source == "d" {
				ctx = leaving
			}
			go take(ctx, source)
			synctest.Wait()
		}
		cancel() // d gives up, and takes nobody's turn
		synctest.Wait()
		var got []string
		for len(in) > 0 {
			one := <-in
			got = append(got, one.source)
			one.leave()
			synctest.Wait()
		}
		if diff := cmp.Diff([]string{"c", "c", "a", "b", "e", "f", "a", "b"}, got); diff != "" {
			t.Errorf("they are in by turns (-want +got):\n%s", diff)
		}
	})
}
