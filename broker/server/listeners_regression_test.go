package server_test

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/server"
)

// tlsListeners are the addresses of all that strangers reach.
func (e *env) tlsListeners() map[string]string {
	return map[string]string{
		"agents": e.listeners.Agents.Addr().String(), "spiffe": e.listeners.SPIFFE.Addr().String(), "web": e.listeners.Web.Addr().String(),
	}
}

// frame is one of HTTP/2 (RFC 9113 §4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// field is a header field that enters no table (RFC 7541 §6.2.2).
func field(name, value string) []byte {
	b := append([]byte{0, byte(len(name))}, name...)
	n := len(value)
	if n < 127 {
		return append(append(b, byte(n)), value...)
	}
	b = append(b, 127)
	for n -= 127; n >= 128; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(append(b, byte(n)), value...)
}

const (
	headers, settingsFrame, continuation = 1, 4, 9
	most                                 = 64 << 20 // what is sent to who never hangs up
)

// floods are requests whose headers never end, in HTTP/2 and in HTTP/1.1.
var floods = map[string]struct {
	protocol string
	begin    []byte
	more     []byte
}{
	"CONTINUATION without end": {
		"h2", frame(headers, 0, 1, append([]byte{0x83, 0x84, 0x87}, field("a", "b")...)), frame(continuation, 0, 1, field("x", strings.Repeat("x", 16000))),
	},
	"a header without end":    {"http/1.1", []byte("GET / HTTP/1.1\r\nHost: a\r\nX: "), bytes.Repeat([]byte("x"), 16000)},
	"headers without end":     {"http/1.1", []byte("GET / HTTP/1.1\r\nHost: a\r\n"), bytes.Repeat([]byte("X: y\r\n"), 3000)},
	"a request line for ever": {"http/1.1", []byte("GET /"), bytes.Repeat([]byte("x"), 16000)},
}

// Whoever sends headers without end is hung up on, and has cost little.
//
// Regression: CVE-2021-44716
func TestHeadersWithoutEndAreCutOff(t *testing.T) {
	e := newEnv(t)
	before := heap()
	var peak atomic.Uint64
	var flooding sync.WaitGroup
	for listener, address := range e.tlsListeners() {
		for name, f := range floods {
			if listener == "agents" && f.protocol != "h2" {
				continue // it speaks nothing else
			}
			for range 4 {
				flooding.Go(func() {
					if sent, cut := flood(t, address, f.protocol, f.begin, f.more); !cut {
						t.Errorf("%s, %s: %d bytes are taken", listener, name, sent)
					}
					peak.Store(max(peak.Load(), heap()))
				})
			}
		}
	}
	flooding.Wait()
	if grown := int64(peak.Load()) - int64(before); grown > 256<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	n := e.join("n1") // it serves on
	if _, _, err := n.issue(t.Context(), t, "1"); err != nil {
		t.Error(err)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// flood sends until it is hung up on, and returns how much it sent and whether
// that was the end.
func flood(t *testing.T, address, protocol string, begin, more []byte) (sent int, cut bool) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
	if err != nil {
		t.Error(err)
		return 0, false
	}
	defer conn.Close()
	go io.Copy(io.Discard, conn) // or its words would hold up the server
	if protocol == "h2" {
		begin = append(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(settingsFrame, 0, 0, nil)...), begin...)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Error(err)
	}
	for chunk := begin; sent < most; chunk = more {
		n, err := conn.Write(chunk)
		sent += n
		if err != nil {
			return sent, !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
	return sent, false
}

// More streams than a connection may have are refused, not queued.
//
// Regression: CVE-2021-44716
func TestStreamsOfAConnectionAreBounded(t *testing.T) {
	e := newEnv(t)
	for listener, address := range e.tlsListeners() {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(settingsFrame, 0, 0, nil)...)); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 9)
		if _, err := io.ReadFull(conn, head); err != nil || head[3] != settingsFrame {
			t.Fatalf("%s: %v, %v", listener, head, err)
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(conn, payload); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		got := map[uint16]uint32{}
		for ; len(payload) >= 6; payload = payload[6:] {
			got[binary.BigEndian.Uint16(payload)] = binary.BigEndian.Uint32(payload[2:])
		}
		const maxStreams, maxList = 3, 6 // RFC 9113 §6.5.2
		if n := got[maxStreams]; n == 0 || n > 256 {
			t.Errorf("%s: %d streams of a connection", listener, n)
		}
		if n := got[maxList]; n == 0 || n > 64<<10 {
			t.Errorf("%s: %d bytes of headers", listener, n)
		}
	}
}

// A path is served as it is spelled, or not at all: nothing is cleaned,
// decoded or redirected.
//
// Regression: CVE-2026-3605
func TestPathsAreNotCleaned(t *testing.T) {
	e := signing(t)
	issuer, err := url.Parse(e.issuer)
	if err != nil {
		t.Fatal(err)
	}
	served := []string{server.BundlePath, issuer.Path + "/keys", issuer.Path + "/.well-known/openid-configuration"}
	for _, path := range served {
		if code, _ := rawGet(t, e.listeners.Web.Addr().String(), path); code != http.StatusOK {
			t.Fatalf("%s: %d", path, code)
		}
	}
	var bad []string
	for _, path := range served {
		last := strings.LastIndexByte(path, '/')
		bad = append(bad, "/"+path, "/."+path, "/x/.."+path, path[:last]+"/."+path[last:], path+"/", path+"/.", path+"/..", path+"%00", path+";a",
			path[:last]+"%2f"+path[last+1:], path[:last]+"/%2e"+path[last:], path[:last+1]+fmt.Sprintf("%%%02x", path[last+1])+path[last+2:],
			"/%2e%2e"+path, strings.ToUpper(path), "//evil.example"+path, `/\evil.example`+path)
	}
	for _, listener := range []string{"spiffe", "web"} {
		for _, path := range bad {
			code, header := rawGet(t, e.tlsListeners()[listener], path)
			if code != http.StatusNotFound && code != http.StatusBadRequest {
				t.Errorf("%s: %s: %d", listener, path, code)
			}
			if header.Get("Location") != "" {
				t.Errorf("%s: %s leads to %s", listener, path, header.Get("Location"))
			}
		}
	}
}

// rawGet asks for the very bytes of a path: a client of net/http would clean
// them.
func rawGet(t *testing.T, address, path string) (int, http.Header) {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, address); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer r.Body.Close()
	return r.StatusCode, r.Header
}

// A query changes nothing, however often a name stands in it.
//
// Regression: CVE-2022-2385
func TestQueriesAreNotRead(t *testing.T) {
	e := newEnv(t)
	own, _ := e.authority.Document()
	for _, query := range []string{"?trust_domain=evil.example&Trust_Domain=x&trust_domain=y", "?a=1;b=2", "?%zz", "?"} {
		r, body := do(t, e.client(nil), "GET", "https://"+e.listeners.Web.Addr().String()+server.BundlePath+query, nil)
		if r.StatusCode != http.StatusOK || !bytes.Equal(body, own) {
			t.Errorf("%s: %d %s", query, r.StatusCode, body)
		}
	}
}

// No session is taken up again: whoever was evicted, or whose authority is
// gone, would come back with it.
//
// Regression: SPIRE #6715
func TestNoSessionOutlivesAnEviction(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	for listener, address := range e.tlsListeners() {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if listener == "agents" && version == tls.VersionTLS12 {
				continue
			}
			cache := &tickets{}
			for range 3 {
				state, err := handshake(t, address, &tls.Config{
					ClientSessionCache: cache, ServerName: "broker", Certificates: []tls.Certificate{*n.cert}, MinVersion: version, MaxVersion: version,
				})
				if err != nil || state.DidResume {
					t.Errorf("%s, %x: resumed %v, %v", listener, version, state.DidResume, err)
				}
			}
			if cache.put.Load() > 0 {
				t.Errorf("%s, %x: %d tickets are given", listener, version, cache.put.Load())
			}
		}
	}
	if _, _, err := n.issue(t.Context(), t, "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n1"}); err != nil {
		t.Fatal(err)
	}
	_, _, err := n.issue(t.Context(), t, "1") // by the connection that stands
	wantCode(t, err, codes.Unauthenticated)
}

// tickets keeps all that it is given.
type tickets struct {
	tls.ClientSessionCache
	last atomic.Pointer[tls.ClientSessionState]
	put  atomic.Int32
}

func (c *tickets) Get(string) (*tls.ClientSessionState, bool) { s := c.last.Load(); return s, s != nil }
func (c *tickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.last.Store(s)
		c.put.Add(1)
	}
}

// A renewed certificate comes with the rules of the first.
//
// Regression: CVE-2024-23656
func TestARenewedCertificateKeepsTheRules(t *testing.T) {
	e := newEnv(t)
	serials := map[string]string{}
	for round := range 2 {
		for listener, address := range e.tlsListeners() {
			for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
				want := version == tls.VersionTLS13 || version == tls.VersionTLS12 && listener != "agents"
				conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version, NextProtos: []string{"h2"}})
				if (err == nil) != want {
					t.Errorf("%s, round %d, version %x: %v", listener, round, version, err)
				}
				if err != nil {
					continue
				}
				serial := conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
				if round == 1 && listener != "web" && serial == serials[listener] {
					t.Errorf("%s: the certificate was not renewed", listener)
				}
				if round == 0 {
					serials[listener] = serial
				}
				conn.Close()
			}
		}
		if round == 0 {
			e.close()
			e.listen()
			e.open()
			e.run()
		}
	}
}

// hostile is a certificate with a key that nobody has, to be parsed by whoever
// takes it: a stranger pays for it once.
func hostile(t *testing.T, pub crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	ca := newKey(t)
	c := &x509.Certificate{SerialNumber: big.NewInt(9), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, ca)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// claimed is a private key only by name: the chain is refused before it counts.
type claimed struct {
	*ecdsa.PrivateKey
	pub crypto.PublicKey
}

func (c claimed) Public() crypto.PublicKey { return c.pub }

// A stranger's chain is refused for little, however it is made.
//
// Regression: SPIRE 1.14.2 x509pop
func TestHostileChainsCostLittle(t *testing.T) {
	e := newEnv(t)
	key := newKey(t)
	n := new(big.Int).SetBit(new(big.Int).SetBit(new(big.Int), 16383, 1), 0, 1)
	large := &rsa.PublicKey{N: n, E: 1<<31 - 1}
	plain := hostile(t, key.Public(), func(*x509.Certificate) {})
	names := hostile(t, key.Public(), func(c *x509.Certificate) {
		for i := range 2000 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("host-%d.evil.example", i))
		}
	})
	id := hostile(t, large, func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/credence/node/n1"}}
	})
	var before, after rusage
	before.read(t)
	const times = 5
	for name, cert := range map[string]tls.Certificate{
		"100 certificates": {Certificate: bytes.SplitN(bytes.TrimSuffix(bytes.Repeat(append(plain, "|split|"...), 100), []byte("|split|")), []byte("|split|"), -1), PrivateKey: key},
		"2,000 names":      {Certificate: [][]byte{names}, PrivateKey: key},
		"RSA of 16,384":    {Certificate: [][]byte{id}, PrivateKey: claimed{key, large}},
		"all four large":   {Certificate: [][]byte{id, id, id, names}, PrivateKey: claimed{key, large}},
	} {
		for range times {
			if _, err := handshake(t, e.listeners.Agents.Addr().String(), &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}); err == nil {
				t.Errorf("%s: let in", name)
			}
		}
	}
	after.read(t)
	if each := (after.cpu - before.cpu) / (4 * times); each > 250*time.Millisecond { // both ends of it
		t.Errorf("each cost %s of CPU", each)
	}
	e.join("n1")
}
