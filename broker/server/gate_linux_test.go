package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/server"
)

// from dials as another address of this machine.
func from(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: patience}
}

// taken says whether a connection is held open: whoever is refused is hung up on
// before a handshake.
func taken(t *testing.T, address, source string) (conn net.Conn, ok bool) {
	t.Helper()
	raw, err := from(source).DialContext(t.Context(), "tcp", address)
	if err != nil {
		return nil, false
	}
	t.Cleanup(func() { raw.Close() })
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err := c.HandshakeContext(t.Context()); err != nil {
		return nil, false
	}
	// TLS 1.3 is done for us before it is for them: who is let in hears the server.
	if c.ConnectionState().NegotiatedProtocol == "h2" {
		if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+string(frame(settingsFrame, 0, 0, nil))); err != nil {
			return nil, false
		}
		if _, ok := readFrame(c); !ok {
			return nil, false
		}
	}
	return c, true
}

// One address has its part of each listener, and nobody else's: what it has too much
// costs it the oldest that does nothing.
func TestConnectionsAreBounded(t *testing.T) {
	e := newEnv(t, func(e *env) {
		e.limits, e.handshake = server.Limits{Connections: 160, SourceConnections: 40}, time.Hour // or they'd go by themselves
	})
	for listener, address := range e.tlsListeners() {
		other, ok := taken(t, address, "127.0.0.3")
		if !ok {
			t.Fatalf("%s: refused", listener)
		}
		var open []net.Conn
		for n := range 6 {
			e.ahead.Add(int64(10 * time.Second)) // or it would come too often
			conn, ok := taken(t, address, "127.0.0.2")
			if !ok {
				t.Fatalf("%s: connection %d is refused", listener, n+1)
			}
			open = append(open, conn)
		}
		for _, conn := range open[:2] {
			if !hungUp(conn) {
				t.Errorf("%s: more than four of one address are kept", listener)
			}
		}
		for _, conn := range append(open[2:], other) {
			if !alive(conn) {
				t.Errorf("%s: another is hung up on", listener)
			}
			conn.Close()
		}
		if e.server.Overview().Limited[listener+"_connection"] < 2 {
			t.Errorf("%s: who was hung up on is not counted", listener)
		}
	}
	if line := e.log.line("connections refused"); !strings.Contains(line, "source=127.0.0.2") {
		t.Errorf("the log tells nothing: %q", line)
	}
	n := e.join("n1")
	if _, _, err := n.issue(t.Context(), t, "1"); err != nil {
		t.Error(err)
	}
}

// hungUp waits for the end of a connection.
func hungUp(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, conn)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// alive says whether a PING of HTTP/2 is answered.
func alive(conn net.Conn) bool {
	if _, err := conn.Write(frame(6, 0, 0, []byte("credence"))); err != nil {
		return false
	}
	for {
		head, ok := readFrame(conn)
		if !ok || head[3] == 6 && head[4] == 1 {
			return ok
		}
	}
}

// readFrame reads a frame of HTTP/2 and keeps its head.
func readFrame(conn net.Conn) (head [9]byte, ok bool) {
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return head, false
	}
	_, err := io.CopyN(io.Discard, conn, int64(head[0])<<16|int64(head[1])<<8|int64(head[2]))
	return head, err == nil
}

// New connections of one address are bounded by the second, closed ones too:
// handshakes cost us more than them.
func TestHandshakesAreBounded(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits = server.Limits{SourceConnections: 20} })
	address := e.listeners.Agents.Addr().String()
	n := 0
	for range 60 {
		conn, ok := taken(t, address, "127.0.0.2")
		if !ok {
			break
		}
		conn.Close()
		n++
	}
	if n < 20 || n == 60 {
		t.Errorf("%d connections are taken one after the other", n)
	}
	if _, ok := taken(t, address, "127.0.0.3"); !ok {
		t.Error("another address is locked out")
	}
	e.ahead.Add(int64(time.Minute))
	if _, ok := taken(t, address, "127.0.0.2"); !ok {
		t.Error("it is refused a minute later")
	}
}

// Idle connections of strangers, as many as an address may have, cost bounded memory,
// and nodes are served beside them.
func TestStrangersAreBounded(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits, e.handshake = server.Limits{Connections: 4000}, time.Hour }) // or they'd go by themselves
	address := e.listeners.Agents.Addr().String()
	n := e.join("n1")
	before := heap()
	var open []net.Conn
	for range 100 {
		conn, ok := taken(t, address, "127.0.0.2")
		if !ok {
			t.Fatal("refused")
		}
		open = append(open, conn)
	}
	if each := (int64(heap()) - int64(before)) / 100; each > 512<<10 {
		t.Errorf("each costs %d bytes", each)
	}
	for range 8 {
		if _, ok := taken(t, address, "127.0.0.2"); !ok {
			t.Error("refused")
		}
	}
	for _, conn := range open[:8] {
		if !hungUp(conn) {
			t.Error("more than 100 of one address are kept")
		}
	}
	if _, _, err := n.issue(t.Context(), t, "1"); err != nil {
		t.Error(err)
	}
	e.join("n2")
}

// Whoever opens connections and says nothing, or shows no certificate and calls
// nothing, from two, four or many addresses, keeps no agent out, however long that
// may take.
func TestFloodsKeepNobodyOut(t *testing.T) {
	dial := func(t *testing.T, address, source string) {
		if conn, err := from(source).DialContext(t.Context(), "tcp", address); err == nil { // or it came too often
			t.Cleanup(func() { conn.Close() })
		}
	}
	for name, open := range map[string]func(t *testing.T, address, source string){
		"no handshake": dial,
		"no call":      func(t *testing.T, address, source string) { taken(t, address, source) },
	} {
		many := map[string]int{"no handshake": 120, "no call": 40}[name] // half more than there are places, and more
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, func(e *env) {
				e.limits, e.handshake = server.Limits{Connections: 160, SourceConnections: 60}, time.Hour
			})
			stands := e.join("n0")
			for _, sources := range []int{2, 4, many} {
				for i := range many {
					open(t, e.listeners.Agents.Addr().String(), fmt.Sprintf("127.0.%d.%d", sources, 1+i%sources))
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				key := newKey(t)
				got, err := joinOnce(ctx, e.stranger(), &api.JoinRequest_Start{
					Method: "token", Evidence: []byte(e.token(fmt.Sprint("n", sources))), PublicKey: spki(t, key.Public()),
				})
				if err != nil {
					t.Fatalf("%d addresses: %v", sources, err)
				}
				for _, n := range []*node{stands, e.node(got, key)} {
					if _, _, err := n.issue(ctx, t, "1"); err != nil {
						t.Fatalf("%d addresses: %v", sources, err)
					}
				}
			}
		})
	}
	e := newEnv(t, func(e *env) { e.limits = server.Limits{Connections: 160, SourceConnections: 160} })
	for listener, address := range e.tlsListeners() {
		if listener == "agents" {
			continue
		}
		for i := range 90 {
			dial(t, address, fmt.Sprintf("127.0.0.%d", 2+i%30))
		}
		client := e.client(nil)
		client.Timeout = patience
		if r, _ := do(t, client, "GET", "https://"+address+server.BundlePath, nil); r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", listener, r.Status)
		}
	}
}

// Who asks goes after who doesn't, though it came first.
func TestWhoAsksStays(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits = server.Limits{Connections: 40, SourceConnections: 30} })
	for listener, address := range e.tlsListeners() {
		if listener == "agents" {
			continue
		}
		var open []*tls.Conn
		for n := range 4 { // of one address three
			e.ahead.Add(int64(10 * time.Second)) // or it would come too often
			if n == 3 {
				ask(t, open[0])
			}
			conn, err := tls.DialWithDialer(from("127.0.0.2"), "tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			open = append(open, conn)
			if n == 0 {
				ask(t, conn) // who never did is not kept for long
			}
		}
		ask(t, open[0])
		if !hungUp(open[1]) {
			t.Errorf("%s: who asked nothing is kept", listener)
		}
	}
}

// ask asks for the bundle, and leaves the connection open.
func ask(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", server.BundlePath); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", r.Status, err)
	}
}

// Joins that go on are finished, whatever comes meanwhile, from their own address
// and from others.
func TestJoinsUnderWayStay(t *testing.T) {
	entered, release := make(chan struct{}, 2), make(chan struct{})
	e := newEnv(t, func(e *env) { e.limits, e.joinTime = server.Limits{Connections: 80}, time.Minute }, with(func(_ context.Context, evidence []byte, _ join.Challenge) (join.Proof, error) {
		entered <- struct{}{}
		<-release
		return proof(string(evidence), "acme")
	}))
	e.apply(fakeRule)
	joined := make(chan error, 2)
	key := spki(t, newKey(t).Public())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for n := range 2 { // as many as one address may have
		client := e.stranger()
		go func() {
			_, err := joinOnce(ctx, client, &api.JoinRequest_Start{Method: "fake", Evidence: fmt.Append(nil, "m", n), PublicKey: key})
			joined <- err
		}()
	}
	for range 2 {
		select {
		case <-entered:
		case err := <-joined:
			t.Fatal(err)
		}
	}
	for _, source := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4", "127.0.0.4", "127.0.0.5"} {
		if _, ok := taken(t, e.listeners.Agents.Addr().String(), source); ok != (source != "127.0.0.1") {
			t.Errorf("a stranger of %s is let in: %v", source, ok)
		}
	}
	close(release)
	for range 2 {
		if err := <-joined; err != nil {
			t.Error(err)
		}
	}
}

// Who asks an HTTPS listener too often is told when to come back; others are served.
func TestRequestsOfAnAddressAreBounded(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits = server.Limits{SourceRequests: 1} })
	for _, listener := range []string{"spiffe", "web"} {
		e.ahead.Add(int64(time.Hour)) // both listeners count together
		get := func(source string) *http.Response {
			client := &http.Client{Transport: &http.Transport{
				DialContext: from(source).DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
			}}
			defer client.CloseIdleConnections()
			r, err := client.Get("https://" + e.tlsListeners()[listener] + server.BundlePath)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			return r
		}
		served := 0
		r := get("127.0.0.2")
		for ; r.StatusCode == http.StatusOK && served < 100; r = get("127.0.0.2") {
			served++
		}
		after, err := strconv.Atoi(r.Header.Get("Retry-After"))
		if r.StatusCode != http.StatusTooManyRequests || served < 20 || err != nil || after < 1 || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: after %d: %s, %v", listener, served, r.Status, r.Header)
		}
		if r := get("127.0.0.3"); r.StatusCode != http.StatusOK {
			t.Errorf("%s: another address gets %s", listener, r.Status)
		}
	}
}

// retryIn is when a refusal says to come back.
func retryIn(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// A node that calls too often is told when to come back; other nodes are served.
func TestCallsOfANodeAreBounded(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits = server.Limits{NodeCalls: 1} })
	loud, calm := e.join("n1"), e.join("n2")
	var err error
	served := 0
	for ; err == nil && served < 100; served++ {
		_, err = loud.Report(t.Context(), &api.ReportRequest{})
	}
	wantCode(t, err, codes.ResourceExhausted)
	if in := retryIn(err); in <= 0 || in > time.Second || served < 4 {
		t.Errorf("after %d calls: again in %s", served, in)
	}
	if n := e.server.Overview().Limited["node_call"]; n != 1 {
		t.Errorf("%d are counted", n)
	}
	if _, err := calm.Report(t.Context(), &api.ReportRequest{}); err != nil {
		t.Error(err)
	}
	more := e.settings()
	more.Limits.NodeCalls = 100
	if err := e.server.Reload(t.Context(), "test", []string{"limits.node_calls"}, more); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := loud.Report(t.Context(), &api.ReportRequest{}); err != nil {
			t.Fatal("with more allowed: ", err)
		}
	}
	if err := e.server.Reload(t.Context(), "test", []string{"limits.node_calls"}, e.settings()); err != nil {
		t.Fatal(err)
	}
	err = nil
	for n := 0; err == nil && n < 100; n++ {
		_, err = loud.Report(t.Context(), &api.ReportRequest{})
	}
	wantCode(t, err, codes.ResourceExhausted)
	e.ahead.Add(int64(2 * time.Second))
	if _, err := loud.Report(t.Context(), &api.ReportRequest{}); err != nil {
		t.Error(err)
	}
}

// Joins of one address are bounded, in vain or not.
func TestJoinsOfAnAddressAreBounded(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits = server.Limits{SourceJoins: 1} })
	client := api.NewNodeClient(e.dial(nil))
	var err error
	for n := 0; n < 400 && status.Code(err) != codes.ResourceExhausted; n++ {
		stream, open := client.Join(t.Context())
		if open != nil {
			t.Fatal(open)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.ResourceExhausted)
	if in := retryIn(err); in <= 0 || in > time.Second {
		t.Errorf("again in %s", in)
	}
}

// An address that fills its places among the joins leaves half to others.
func TestPlaces(t *testing.T) {
	enter := server.NewPlaces(4)
	now, cancel := context.WithCancel(t.Context())
	cancel()
	var leave []func()
	for range 2 {
		l, err := enter(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	if _, err := enter(now, "a"); err == nil {
		t.Error("one address has three of four")
	}
	l, err := enter(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	l()
	var waiting sync.WaitGroup
	waiting.Go(func() {
		l, err := enter(t.Context(), "a")
		if err != nil {
			t.Error(err)
			return
		}
		l()
	})
	leave[0]()
	waiting.Wait()
	leave[1]()
}

// What a node's certificate opens keeps no other node out, though it was evicted.
func TestAnEvictedNodeKeepsNobodyOut(t *testing.T) {
	e := newEnv(t, func(e *env) { e.limits = server.Limits{Connections: 40} })
	stolen := e.join("n1")
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: stolen.id, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 41 {
		_, err := api.NewNodeClient(e.dial(stolen.cert)).Report(ctx, &api.ReportRequest{})
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.Unavailable {
			t.Fatal(err)
		}
	}
	n := e.join("n2")
	if _, _, err := n.issue(ctx, t, "1"); err != nil {
		t.Error(err)
	}
}

// Who begins a handshake and goes no further is hung up on.
func TestSlowHandshakesAreHungUpOn(t *testing.T) {
	e := newEnv(t, func(e *env) { e.handshake = 100 * time.Millisecond })
	for name, first := range map[string][]byte{"nothing": nil, "half a hello": {22, 3, 1, 2, 0, 1, 0, 1, 252}} {
		conn, err := net.Dial("tcp", e.listeners.Agents.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(first); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s is said: the connection is kept", name)
		}
	}
}

// Joins under way are bounded, and of one address to half.
func TestSixtyFourJoinsAtOnce(t *testing.T) {
	entered, release := make(chan struct{}, 100), make(chan struct{})
	e := newEnv(t, func(e *env) { e.joinTime, e.joinStart = time.Hour, time.Minute }, with(func(ctx context.Context, evidence []byte, _ join.Challenge) (join.Proof, error) {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return proof(string(evidence), "acme")
	}))
	e.apply(fakeRule)
	n1 := e.join("n1")
	client := func(source string) api.NodeClient {
		return api.NewNodeClient(e.dial(nil, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return from(source).DialContext(ctx, "tcp", address)
		})))
	}
	key := spki(t, newKey(t).Public())
	var joining sync.WaitGroup
	defer joining.Wait()
	defer close(release)
	var joiner api.NodeClient
	for i := range 64 {
		if i%8 == 0 { // as many as a stranger calls at once
			joiner = client(fmt.Sprintf("127.0.0.%d", 1+i/8%2))
		}
		client := joiner
		joining.Go(func() {
			_, _ = joinOnce(t.Context(), client, &api.JoinRequest_Start{Method: "fake", Evidence: fmt.Appendf(nil, "m%d", i), PublicKey: key})
		})
	}
	late := time.After(time.Minute)
	for n := range 64 {
		select {
		case <-entered:
		case <-late:
			t.Fatalf("%d of 64 are judged", n)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := joinOnce(ctx, e.stranger(), &api.JoinRequest_Start{Method: "fake", Evidence: []byte("x"), PublicKey: key})
	wantCode(t, err, codes.DeadlineExceeded)
	_, err = joinOnce(t.Context(), joiner, &api.JoinRequest_Start{Method: "fake", Evidence: []byte("x"), PublicKey: key})
	wantCode(t, err, codes.ResourceExhausted) // eight are under way on its connection
	if len(entered) > 0 {
		t.Error("a 65th was judged")
	}
	if _, _, err := n1.issue(t.Context(), t, "1"); err != nil {
		t.Errorf("who has joined must not wait for who has not: %v", err)
	}
}

// Streams that are opened and taken back at once cost no more goroutines than a
// connection may have streams.
//
// Regression: CVE-2023-44487
func TestRapidResetIsBounded(t *testing.T) {
	e := newEnv(t)
	for listener, address := range e.tlsListeners() {
		conn, err := tls.DialWithDialer(from("127.0.0.2"), "tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, bufio.NewReader(conn)) // or its words would hold up the server
		if _, err := conn.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(settingsFrame, 0, 0, nil)...)); err != nil {
			t.Fatal(err)
		}
		before, peak := runtime.NumGoroutine(), 0
		path := map[string]string{"agents": "/credence.broker.v1.Node/Join"}[listener]
		if path == "" {
			path = server.BundlePath
		}
		block := append([]byte{0x83, 0x87}, field(":path", path)...)
		block = append(append(block, field(":authority", "a")...), append(field("content-type", "application/grpc"), field("te", "trailers")...)...)
		for n := range uint32(20000) {
			id := 2*n + 1
			both := append(frame(headers, 4, id, block), frame(3, 0, id, binary.BigEndian.AppendUint32(nil, 8))...) // RST_STREAM, CANCEL
			if _, err := conn.Write(both); err != nil {
				break // it has had enough of us
			}
			if n%100 == 0 {
				peak = max(peak, runtime.NumGoroutine())
			}
		}
		conn.Close()
		if peak-before > 1200 {
			t.Errorf("%s: %d goroutines more", listener, peak-before)
		}
	}
	e.join("n1")
}
