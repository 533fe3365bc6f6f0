package server_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

// benchPlace is where a child that a benchmark measures can be reached.
type benchPlace struct {
	Agents, Web, Admin string
	// Of the floor: what its callers show.
	Cert, Key []byte
}

// benchChild runs a broker, or the floor that it is held against, until its
// standard input ends. It says first where it is, then answers each command.
func benchChild(role string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	start := map[string]func(context.Context, string) (benchPlace, func() error, error){"broker": benchBroker, "floor": benchFloor}[role]
	place, wait, err := start(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(place); err != nil {
		return 1
	}
	benchCommands(os.Stdin, os.Stdout)
	cancel()
	if err := wait(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// benchCommands are those of a profile: "profile NAME", then "stop".
func benchCommands(in io.Reader, out io.Writer) {
	lines := bufio.NewScanner(in)
	var name string
	var file *os.File
	for lines.Scan() {
		var err error
		if after, ok := strings.CutPrefix(lines.Text(), "profile "); ok {
			name = after
			if file, err = os.Create(name + ".cpu.pprof"); err == nil {
				err = pprof.StartCPUProfile(file)
			}
		} else {
			pprof.StopCPUProfile()
			err = errors.Join(file.Close(), writeAllocs(name+".allocs.pprof"))
		}
		fmt.Fprintln(out, err)
	}
}

// writeAllocs writes what was allocated since the process began.
func writeAllocs(name string) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("allocs").WriteTo(file, 0), file.Close())
}

// benchBroker is a broker as cmd/credence puts it together: what it keeps lies
// on the disk, and what it logs goes to its standard error.
func benchBroker(ctx context.Context, dir string) (benchPlace, func() error, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	listeners, place, err := benchListen(dir)
	if err != nil {
		return place, nil, err
	}
	issuer := "https://" + place.Web + "/td"
	st, err := store.Open(ctx, store.Config{Dir: dir})
	if err != nil {
		return place, nil, err
	}
	record, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit"), Log: log})
	if err != nil {
		return place, nil, err
	}
	keys, err := disk.New(disk.Config{Dir: filepath.Join(dir, "keys")})
	if err != nil {
		return place, nil, err
	}
	const hint = 300 * time.Second
	auth, err := authority.Open(ctx, authority.Config{
		TrustDomain: td, Issuer: issuer, Broker: "broker", Records: st, Keys: keys, Lives: authority.Lives{RefreshHint: hint}, Log: log,
	})
	if err != nil {
		return place, nil, err
	}
	peers, err := federation.New(federation.Config{TrustDomain: td, Store: st, Log: log, Fetcher: fetch.New(fetch.Config{Log: log})})
	if err != nil {
		return place, nil, err
	}
	policy := identity.Config{TrustDomain: td, JWT: true}
	empty, err := identity.NewSet(policy, identity.Resources{})
	if err != nil {
		return place, nil, err
	}
	b, err := broker.New(ctx, broker.Config{
		TrustDomain: td, Method: tokenMethod(st, time.Now), Issuer: auth, Store: st, Audit: record, Policy: &broker.Policy{Set: empty}, Log: log,
		Record: record, Index: st, CRLs: server.Lists{Authority: auth}, Origin: "broker", DenyFile: filepath.Join(dir, "revoked.jsonl"),
	})
	if err != nil {
		return place, nil, err
	}
	discovery, err := oidc.New(oidc.Config{Issuer: issuer, Keys: auth.OIDCKeys, MaxAge: hint})
	if err != nil {
		return place, nil, err
	}
	web, _, _, err := benchCertificate()
	if err != nil {
		return place, nil, err
	}
	s, err := server.New(ctx, server.Config{
		TrustDomain: td, Issuer: issuer, Version: "bench", Broker: b, Authority: auth, Store: st, Audit: record,
		AuditDir: filepath.Join(dir, "audit"), Peers: peers, Policy: policy, Resources: registry(), OIDC: discovery,
		RefreshHint: hint, AgentsAddress: place.Agents, AdminCredentials: caller.CredentialsFor(caller.RequireUID(0, uint32(os.Getuid()))),
		AdminActor:     func(context.Context) string { return "uid:" + strconv.Itoa(os.Getuid()) },
		WebCertificate: func() (*tls.Certificate, error) { return &web, nil }, Log: log,
	})
	if err != nil {
		return place, nil, err
	}
	ended := make(chan error, 4)
	go func() { ended <- b.Run(ctx) }()
	go func() { ended <- auth.Run(ctx) }()
	go func() { ended <- peers.Run(ctx) }()
	go func() { ended <- s.Run(ctx, listeners) }()
	if err := auth.Ready(ctx); err != nil {
		return place, nil, err
	}
	return place, func() error {
		err := errors.Join(<-ended, <-ended, <-ended, <-ended)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return errors.Join(err, b.Close(), record.Close(), st.Close())
	}, nil
}

func benchListen(dir string) (l server.Listeners, place benchPlace, err error) {
	if l.Agents, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return l, place, err
	}
	if l.Web, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return l, place, err
	}
	place = benchPlace{Agents: l.Agents.Addr().String(), Web: l.Web.Addr().String(), Admin: filepath.Join(dir, "admin.sock")}
	l.Admin, err = caller.Listen(place.Admin, 0o600)
	return l, place, err
}

// benchFloor is the least that a server over the same transports can be: a
// gRPC service with mTLS that does nothing, or nothing but the cryptography, and
// a file in memory over HTTPS.
func benchFloor(ctx context.Context, _ string) (benchPlace, func() error, error) {
	cert, key, pool, err := benchCertificate()
	if err != nil {
		return benchPlace{}, nil, err
	}
	agents, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return benchPlace{}, nil, err
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return benchPlace{}, nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	bare, err := newBareNode()
	if err != nil {
		return benchPlace{}, nil, err
	}
	api.RegisterNodeServer(g, bare)
	h := &http.Server{Handler: http.HandlerFunc(serveBytes), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}}
	ended := make(chan error, 2)
	go func() { ended <- g.Serve(agents) }()
	go func() { ended <- h.ServeTLS(web, "", "") }()
	return benchPlace{Agents: agents.Addr().String(), Web: web.Addr().String(), Cert: cert.Certificate[0], Key: key}, func() error {
		g.Stop()
		_ = h.Close()
		<-ended
		<-ended
		return nil
	}, nil
}

// A bareNode asks nobody, decides nothing and records nothing.
type bareNode struct {
	api.UnimplementedNodeServer
	create func() ([]byte, error)
	sign   map[string]func() (string, error)
}

func newBareNode() (n bareNode, err error) {
	if n.create, err = rawCreate(); err != nil {
		return n, err
	}
	n.sign = make(map[string]func() (string, error))
	for _, alg := range []string{"ES256", "RS256"} {
		if n.sign[alg], err = rawJWT(alg); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n bareNode) Report(context.Context, *api.ReportRequest) (*api.ReportResponse, error) {
	return &api.ReportResponse{}, nil
}

func (n bareNode) IssueX509(_ context.Context, r *api.IssueX509Request) (*api.IssueX509Response, error) {
	response := &api.IssueX509Response{}
	for range r.GetItems() {
		der, err := n.create()
		if err != nil {
			return nil, err
		}
		svid := &api.X509SVID{Identity: "app", SpiffeId: "spiffe://example.org/app", Chain: [][]byte{der, der}}
		response.Results = append(response.Results, &api.IssueX509Response_Result{Svids: []*api.X509SVID{svid}})
	}
	return response, nil
}

func (n bareNode) IssueJWT(_ context.Context, r *api.IssueJWTRequest) (*api.IssueJWTResponse, error) {
	alg := "RS256"
	if strings.HasPrefix(r.GetAudiences()[0], "spiffe://") {
		alg = "ES256"
	}
	token, err := n.sign[alg]()
	if err != nil {
		return nil, err
	}
	return &api.IssueJWTResponse{Svids: []*api.JWTSVID{{Identity: "app", SpiffeId: "spiffe://example.org/app", Token: token}}}, nil
}

var zeros = make([]byte, 64<<10)

// serveBytes answers with as many bytes as the path says.
func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Path[1:])
	if err != nil || n < 0 || n > len(zeros) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(zeros[:n])
}

// benchCertificate is one for both sides that is its own CA.
func benchCertificate() (cert tls.Certificate, key []byte, pool *x509.CertPool, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	if err != nil {
		return cert, nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return cert, nil, nil, err
	}
	pool = x509.NewCertPool()
	pool.AddCert(leaf)
	key, err = x509.MarshalECPrivateKey(priv)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: priv}, key, pool, err
}

// rawCreate makes certificates with the fields of a leaf's.
func rawCreate() (func() ([]byte, error), error) {
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: make([]byte, 20),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.Public(), ca)
	if err != nil {
		return nil, err
	}
	parent, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	template = &x509.Certificate{
		SerialNumber: new(big.Int).Lsh(big.NewInt(1), 126), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		SubjectKeyId: make([]byte, 20), URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/ns/prod/app-00001"}},
	}
	return func() ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, template, parent, leaf.Public(), ca)
	}, nil
}

// rawJWT makes tokens with the claims of a JWT-SVID, and looks at none again.
func rawJWT(alg string) (func() (string, error), error) {
	var key crypto.Signer
	var err error
	if alg == "RS256" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, err
	}
	b64 := base64.RawURLEncoding
	header := b64.EncodeToString([]byte(`{"alg":"` + alg + `","kid":"0123456789abcdef0123456789abcdef","typ":"JWT"}`))
	claims := map[string]any{
		"iss": "https://127.0.0.1:8445/td", "sub": "spiffe://example.org/ns/prod/app-00001", "aud": "spiffe://example.org/ledger",
		"iat": 1_800_000_000, "exp": 1_800_000_300, "jti": "0123456789abcdef012345",
	}
	return func() (string, error) {
		payload, err := json.Marshal(claims)
		if err != nil {
			return "", err
		}
		token := header + "." + b64.EncodeToString(payload)
		hash := sha256.Sum256([]byte(token))
		signature, err := key.Sign(rand.Reader, hash[:], crypto.SHA256)
		return token + "." + b64.EncodeToString(signature), err
	}, nil
}
