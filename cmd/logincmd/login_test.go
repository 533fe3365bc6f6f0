package logincmd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/logincmd"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

var person = spiffeid.RequireFromString("spiffe://example.org/people/ana")

// A fakeBroker says where to log in, and gives everybody an SVID.
type fakeBroker struct {
	api.UnimplementedExchangeServer
	*agenttest.CA
	address string

	mu    sync.Mutex // guards what follows
	info  *api.LoginInfoResponse
	spoil func(*api.LoginResponse)
	asked []*api.LoginRequest
}

func (b *fakeBroker) LoginInfo(context.Context, *api.LoginInfoRequest) (*api.LoginInfoResponse, error) {
	return b.info, nil
}

func (b *fakeBroker) Login(_ context.Context, r *api.LoginRequest) (*api.LoginResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, r)
	key, err := x509.ParsePKIXPublicKey(r.GetPublicKey())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	life := time.Hour
	if r.GetTtl() > 0 {
		life = time.Duration(r.GetTtl()) * time.Second
	}
	other := spiffeid.RequireFromString("spiffe://example.org/admins/ana")
	end := time.Now().Add(life)
	answer := &api.LoginResponse{Bundle: b.Document(), Svids: []*api.PersonSVID{
		{Identity: "ana", SpiffeId: person.String(), Chain: [][]byte{b.Sign(person, key, end).Raw}},
		{Identity: "admin", SpiffeId: other.String(), Role: "admin", Chain: [][]byte{b.Sign(other, key, end).Raw}},
	}}
	if b.spoil != nil {
		b.spoil(answer)
	}
	return answer, nil
}

// logins is how often somebody showed an ID token.
func (b *fakeBroker) logins() []*api.LoginRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func newBroker(t *testing.T, p *issuertest.Provider) *fakeBroker {
	b := &fakeBroker{CA: agenttest.NewCA(t, "example.org"), info: &api.LoginInfoResponse{
		Issuer: p.URL, ClientId: p.ClientID, Scopes: []string{"openid", "email"}, RedirectUri: "http://127.0.0.1/callback", Ca: p.CA(),
	}}
	b.address = b.serve(t, "spiffe://example.org/credence/broker")
	return b
}

// serve serves as somebody.
func (b *fakeBroker) serve(t *testing.T, id string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := b.Sign(spiffeid.RequireFromString(id), key.Public(), time.Now().Add(time.Hour))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, b.Root.Raw}, PrivateKey: key}},
	})))
	api.RegisterExchangeServer(g, b)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return l.Addr().String()
}

// A browser opens what is printed, follows where it is sent, and keeps what the
// last page said.
type browser struct {
	io.Writer
	open   func(url string)
	seen   bool
	opened sync.WaitGroup
}

func (b *browser) Write(text []byte) (int, error) {
	if _, url, ok := strings.Cut(string(text), "sign in here: "); ok && !b.seen {
		b.seen = true
		b.opened.Go(func() { b.open(strings.TrimSpace(url)) })
	}
	return b.Writer.Write(text)
}

// surf is a browser that trusts a provider.
func surf(t *testing.T, p *issuertest.Provider) func(string) {
	return func(url string) { t.Log(fetch(t, p, url)) }
}

func fetch(t *testing.T, p *issuertest.Provider, url string) string {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.Roots()}, DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return fmt.Sprint(answer.StatusCode, " ", string(text))
}

// home has the login kept in a directory of the test's.
func home(t *testing.T) string {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	t.Setenv(logincmd.FileVariable, "")
	return filepath.Join(dir, "credence", "login.json")
}

// run is the program, with a browser.
func run(t *testing.T, open func(string), args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	b := &browser{Writer: &stderr, open: open}
	p := &cli.Program{In: strings.NewReader(""), Out: &stdout, Err: b, Now: time.Now}
	root := &cobra.Command{Use: "credence"}
	root.AddCommand(logincmd.Command(p))
	p.Furnish(root)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a provider that refuses sends nobody back
	defer cancel()
	code = p.Execute(ctx, root, append(args, "--no-browser"))
	b.opened.Wait()
	return code, stdout.String(), stderr.String()
}

func (b *fakeBroker) flags() []string {
	return []string{"login", "--broker", b.address, "--trust-domain", "example.org", "--ca-pin", b.Pin()}
}

func TestLogin(t *testing.T) {
	p := issuertest.NewProvider(t)
	b := newBroker(t, p)
	path := home(t)
	if code, _, errs := run(t, nil, "login"); code != cli.ExitInput || !strings.Contains(errs, "which broker") {
		t.Errorf("nobody knows the broker: %d, %s", code, errs)
	}
	code, out, errs := run(t, surf(t, p), append(b.flags(), "-o", "json", "--ttl", "15m")...)
	if code != 0 {
		t.Fatalf("%d: %s; the provider: %q", code, errs, p.Refused())
	}
	var told struct {
		File  string
		SVIDs []struct {
			SPIFFEID string `json:"spiffe_id"`
			Role     string
		} `json:"svids"`
	}
	if err := json.Unmarshal([]byte(out), &told); err != nil || told.File != path || len(told.SVIDs) != 2 || told.SVIDs[0].SPIFFEID != person.String() || told.SVIDs[1].Role != "admin" {
		t.Errorf("%s: %v", out, err)
	}
	for name, mode := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	first := b.logins()[0]
	if first.GetTtl() != 900 {
		t.Errorf("a life of %d s was asked for", first.GetTtl())
	}
	// The next time nothing need be said, and another key is used.
	if code, out, errs = run(t, surf(t, p), "login"); code != 0 || !strings.Contains(out, person.String()) {
		t.Fatalf("%d: %s, %s", code, out, errs)
	}
	if again := b.logins()[1]; again.GetIdToken() == first.GetIdToken() || bytes.Equal(again.GetPublicKey(), first.GetPublicKey()) {
		t.Error("the second login is by what the first one showed")
	}
	text, err := os.ReadFile(path)
	if err != nil || bytes.Contains(text, []byte(first.GetIdToken())) {
		t.Errorf("an ID token is kept: %v", err)
	}
	// What is kept is what the person shows and has.
	l, err := logincmd.Load()
	if err != nil || l.Domain.Name() != "example.org" || len(l.SVIDs) != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	if cert := l.Certificate(time.Now()); cert == nil || cert.Leaf.URIs[0].Path != "/admins/ana" {
		t.Errorf("of two the one without a role is shown: %v", cert)
	}
	if cert := l.Certificate(time.Now().Add(2 * time.Hour)); cert != nil {
		t.Error("what has ended is shown")
	}
	prog := &cli.Program{Err: io.Discard, Now: time.Now}
	if x, err := logincmd.SVIDs(t.Context(), prog, 0); err != nil || len(x.SVIDs) != 2 || x.SVIDs[0].ID != person {
		t.Errorf("%+v, %v", x, err)
	}
	prog.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if x, err := logincmd.SVIDs(t.Context(), prog, 0); err == nil || !strings.Contains(err.Error(), "credence login") {
		t.Errorf("what has ended is given: %+v, %v", x, err)
	}
	// With a life new ones are asked for, for this call.
	kept := &browser{Writer: io.Discard, open: surf(t, p)}
	prog = &cli.Program{Err: kept, Now: time.Now}
	x, err := logincmd.SVIDs(t.Context(), prog, 5*time.Minute)
	kept.opened.Wait()
	if err != nil || time.Until(x.SVIDs[0].Certificates[0].NotAfter) > 5*time.Minute {
		t.Errorf("%+v, %v", x, err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
		t.Errorf("it is kept: %v", err)
	}
	// A key that others may read is none.
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := logincmd.Load(); err == nil {
		t.Error("a key that others may read is taken")
	}
}

// What comes between the person, the provider and this program gives nobody an
// SVID: the broker is not even asked.
func TestHostileSignIns(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(t *testing.T, p *issuertest.Provider, b *fakeBroker)
		says  string
	}{
		{"an answer with another state", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Set("state", strings.Repeat("x", 26)) })
		}, ""},
		{"an answer without state", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Del("state") })
		}, ""},
		{"an answer with two states", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Add("state", "x") })
		}, ""},
		{"an answer of another provider", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Set("iss", "https://evil.example") })
		}, "another provider"},
		{"an answer of nobody, where the provider names itself", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Del("iss") })
		}, "another provider"},
		{"a refusal", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Del("code"); back.Set("error", "access_denied\x1b[2J") })
		}, "access_denied?"},
		{"an answer without a code", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) { back.Del("code") })
		}, "no code"},
		{"a code of an attacker's sign-in", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) {
				back.Set("code", p.Mint("http://127.0.0.1:1/callback", "the attacker's verifier, which has 43 letters at least", "n"))
			})
		}, "no ID token"},
		{"the code of an attacker who knows the way back", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetAnswer(func(back url.Values) {
				back.Set("code", p.Mint("", "the attacker's verifier, which has 43 letters at least", "n"))
			})
		}, "no ID token"},
		{"a token of another sign-in", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetToken(func(claims map[string]any) string {
				return issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, map[string]any{"nonce": "another"}))
			})
		}, "another sign-in"},
		{"a token of another client", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetToken(func(claims map[string]any) string {
				return issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, map[string]any{"aud": "another"}))
			})
		}, "ID token"},
		{"a token that nobody signed", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetToken(func(claims map[string]any) string { return issuertest.Sign(t, issuertest.RSA(), "none", nil, claims) })
		}, "ID token"},
		{"no token", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetToken(func(map[string]any) string { return "" })
		}, "no ID token"},
		{"a provider that knows plain challenges alone", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetDocument(func(d map[string]any) { d["code_challenge_methods_supported"] = []string{"plain"} })
		}, "S256"},
		{"a provider that sends people to plain http", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetDocument(func(d map[string]any) { d["authorization_endpoint"] = "http://id.example/authorize" })
		}, "https"},
		{"a provider that sends people to a file", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetDocument(func(d map[string]any) { d["authorization_endpoint"] = "file:///etc/passwd" })
		}, "https"},
		{"a provider whose codes go over plain http", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetDocument(func(d map[string]any) { d["token_endpoint"] = "http://id.example/token" })
		}, "https"},
		{"a provider that says more than is read", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetDocument(func(d map[string]any) { d["more"] = strings.Repeat("x", 1<<20) })
		}, "where to sign in"},
		{"a provider that sends codes on to another", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			on := httptest.NewTLSServer(http.RedirectHandler(p.URL+"/token", http.StatusTemporaryRedirect))
			t.Cleanup(on.Close)
			p.SetDocument(func(d map[string]any) { d["token_endpoint"] = on.URL })
		}, "ID token"},
		{"a provider that is another", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			p.SetDocument(func(d map[string]any) { d["issuer"] = "https://evil.example" })
		}, "issuer"},
		{"a provider in plain text", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			b.info.Issuer = strings.Replace(p.URL, "https", "http", 1)
		}, "https"},
		{"a provider of another certificate", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) { b.info.Ca = "" }, "certificate"},
		{"a way back that is not here", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			b.info.RedirectUri = "http://evil.example/callback"
		}, "not on this machine"},
		{"a way back to every address", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			b.info.RedirectUri = "http://0.0.0.0/callback"
		}, "not on this machine"},
		{"a way back over https", func(t *testing.T, p *issuertest.Provider, b *fakeBroker) {
			b.info.RedirectUri = "https://127.0.0.1/callback"
		}, "wanted"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := issuertest.NewProvider(t)
			b := newBroker(t, p)
			path := home(t)
			row.spoil(t, p, b)
			stop := func(string) {}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if row.says == "" { // it waits for the right answer: a person gives up
				stop = func(page string) {
					if !strings.HasPrefix(page, "400 ") {
						t.Errorf("the browser is told %q", page)
					}
					cancel()
				}
			}
			code, errs := runUntil(t, ctx, func(url string) { stop(fetch(t, p, url)) }, b.flags())
			if code == 0 || !strings.Contains(errs, row.says) || strings.Contains(errs, "\x1b") {
				t.Errorf("%d, %q", code, errs)
			}
			if asked := b.logins(); len(asked) != 0 {
				t.Errorf("the broker is asked: %v", asked)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("something is kept")
			}
		})
	}
}

func runUntil(t *testing.T, ctx context.Context, open func(string), args []string) (code int, errs string) {
	var stderr bytes.Buffer
	b := &browser{Writer: &stderr, open: open}
	p := &cli.Program{In: strings.NewReader(""), Out: io.Discard, Err: b, Now: time.Now}
	root := &cobra.Command{Use: "credence"}
	root.AddCommand(logincmd.Command(p))
	p.Furnish(root)
	code = p.Execute(ctx, root, append(args, "--no-browser"))
	b.opened.Wait()
	return code, stderr.String()
}

// A page that sends the browser to the way back changes nothing: the sign-in goes
// on, and its answer counts once.
func TestStrangersAtTheWayBack(t *testing.T) {
	p := issuertest.NewProvider(t)
	b := newBroker(t, p)
	home(t)
	code, _, errs := run(t, func(at string) {
		u, err := url.Parse(at)
		if err != nil {
			t.Error(err)
			return
		}
		back := u.Query().Get("redirect_uri")
		for _, stranger := range []string{
			back, back + "?code=x", back + "?code=x&state=" + strings.Repeat("A", 26), back + "/?state=" + u.Query().Get("state") + "&code=x",
			strings.Replace(back, "127.0.0.1", "localhost", 1) + "?code=x&state=" + u.Query().Get("state") + "&iss=" + url.QueryEscape(p.URL), // another host: rebinding
		} {
			if page := fetch(t, p, stranger); !strings.HasPrefix(page, "400 ") && !strings.HasPrefix(page, "404 ") {
				t.Errorf("%s: %s", stranger, page)
			}
		}
		post, err := http.PostForm(back, url.Values{"code": {"x"}, "state": {u.Query().Get("state")}})
		if err == nil {
			post.Body.Close()
		}
		if err != nil || post.StatusCode != http.StatusNotFound {
			t.Errorf("POST: %v, %v", post, err)
		}
		if page := fetch(t, p, at); !strings.HasPrefix(page, "200 ") {
			t.Errorf("the honest one: %s", page)
		}
	}, b.flags()...)
	if code != 0 || len(b.logins()) != 1 {
		t.Errorf("%d, %s, %d logins", code, errs, len(b.logins()))
	}
}

// Nobody but the broker of the trust domain is told anything, and what it gives is
// for the key that was made.
func TestBrokersThatAreNot(t *testing.T) {
	p := issuertest.NewProvider(t)
	b := newBroker(t, p)
	other := newBroker(t, p)
	path := home(t)
	node := b.serve(t, "spiffe://example.org/credence/node/n1")
	for name, args := range map[string][]string{
		"another trust domain's pin": {"login", "--broker", b.address, "--trust-domain", "example.org", "--ca-pin", other.Pin()},
		"another trust domain":       {"login", "--broker", b.address, "--trust-domain", "example.com", "--ca-pin", b.Pin()},
		"a node":                     {"login", "--broker", node, "--trust-domain", "example.org", "--ca-pin", b.Pin()},
		"no pin":                     {"login", "--broker", b.address, "--trust-domain", "example.org"},
		"a pin that is none":         {"login", "--broker", b.address, "--trust-domain", "example.org", "--ca-pin", "sha256:00"},
		"no port":                    {"login", "--broker", "127.0.0.1", "--trust-domain", "example.org", "--ca-pin", b.Pin()},
	} {
		if code, _, errs := run(t, surf(t, p), args...); code != cli.ExitUnreachable && code != cli.ExitInput {
			t.Errorf("%s: %d, %s", name, code, errs)
		}
	}
	if p.Requests() != 0 || len(b.logins()) != 0 {
		t.Error("somebody signs in there")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Hour)
	for name, spoil := range map[string]func(*api.LoginResponse){
		"no SVID":                func(m *api.LoginResponse) { m.Svids = nil },
		"no bundle":              func(m *api.LoginResponse) { m.Bundle = nil },
		"an SVID of another key": func(m *api.LoginResponse) { m.Svids[0].Chain = [][]byte{b.Sign(person, key.Public(), end).Raw} },
		"an SVID of another trust domain": func(m *api.LoginResponse) {
			asked, err := x509.ParseCertificate(m.Svids[0].Chain[0])
			if err != nil {
				t.Error(err)
				return
			}
			m.Svids[0].Chain = [][]byte{b.Sign(spiffeid.RequireFromString("spiffe://example.com/people/ana"), asked.PublicKey, end).Raw}
		},
		"an SVID of nothing":       func(m *api.LoginResponse) { m.Svids[0].Chain = nil },
		"an SVID that is the CA's": func(m *api.LoginResponse) { m.Svids[0].Chain = [][]byte{b.Root.Raw} },
	} {
		b.mu.Lock()
		b.spoil = spoil
		b.mu.Unlock()
		if code, _, errs := run(t, surf(t, p), b.flags()...); code == 0 {
			t.Errorf("%s: it is taken: %s", name, errs)
		}
		if _, err := os.Stat(path); err == nil {
			t.Fatalf("%s: something is kept", name)
		}
	}
}
