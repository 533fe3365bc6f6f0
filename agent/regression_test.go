package agent_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// A token is kept for one set of facts, one list of audiences and one ID: no
// other question is answered with it, however alike it is spelled.
//
// Regression: SPIRE #4309
func TestNoTwoQuestionsShareAToken(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1000")}
	b, a := started(t, func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	b.Grant(listed("/a"), listed("/b"))
	whose := map[string]string{}
	for _, who := range []string{"1000", "1001", "10000"} {
		attestor.set(uid(who))
		for _, id := range []string{"", "/a", "/b"} {
			for _, audiences := range [][]string{
				{"x", "y"}, {"y", "x"}, {"x"}, {"x", "x"}, {"x y"}, {"x,y"}, {"xy"}, {`x" "y`}, {`x","y`}, {"x\x00y"}, {"x\ny"}, {`x\u0000y`}, {"X", "y"}, {"[x", "y]"}, {"x", "y", "/a"}, {"x/a", "y"},
			} {
				question := fmt.Sprintf("uid %s, id %q, %q", who, id, audiences)
				var of spiffeid.ID
				if id != "" {
					of = spiffeid.RequireFromPath(b.TrustDomain, id)
				}
				svids, err := jwt(t, a, of, audiences...)
				if err != nil {
					t.Fatalf("%s: %v", question, err)
				}
				for _, svid := range svids {
					if other, known := whose[svid.Token]; known {
						t.Errorf("%s got the token of %s", question, other)
					}
					whose[svid.Token] = question
					if id != "" && svid.ID.Path() != id {
						t.Errorf("%s got %s", question, svid.ID)
					}
				}
			}
		}
	}
}

// A session is one identity's with one target: the same name of a role in
// another account, or the same target of another identity, is another.
//
// Regression: CVE-2025-11621
func TestNoTwoTargetsShareASession(t *testing.T) {
	t.Parallel()
	attestor := &facts{all: uid("1000")}
	sky := &cloud{}
	b, a := started(t, exchanging(sky), func(c *agent.Config) { c.Attestors = map[string]agent.Attestor{"workload.unix": attestor} })
	settings := func(account int) []byte { return fmt.Appendf(nil, `{"role":"arn:aws:iam::%012d:role/same"}`, account) }
	b.Decide(func(w *api.Workload) []agenttest.Grant {
		g := grant("/" + strings.Join(w.GetFacts()["workload.unix.uid"].GetValues(), "-"))
		for n, name := range []string{"one", "two", "on", "one/1000"} {
			g.Targets = append(g.Targets, &api.Target{Name: name, Revision: 1, Provider: "aws_roles_anywhere", Settings: settings(n)})
		}
		return []agenttest.Grant{g}
	})
	whose := map[string]string{}
	for range 2 { // the second time each finds its own again
		for _, who := range []string{"1000", "1001", "100"} {
			attestor.set(uid(who))
			for _, name := range []string{"one", "two", "on", "one/1000"} {
				question, got := who+" at "+name, credential(t, a, name)
				if other, known := whose[got]; known && other != question {
					t.Errorf("%s got the session of %s", question, other)
				}
				whose[got] = question
			}
		}
	}
	if len(whose) != 12 {
		t.Errorf("%d sessions of 12", len(whose))
	}
}

// An answer that grants and denies, denies.
//
// Regression: CVE-2026-46405
func TestAnExchangeThatAlsoFailsGivesNothing(t *testing.T) {
	t.Parallel()
	both := exchangerFunc(func(context.Context, exchangers.SVIDs) (exchangers.Credential, error) {
		return exchangers.Credential{
			Expires: time.Now().Add(time.Hour), Bearer: &exchangers.Bearer{Token: exchangers.NewSecret("leaked")},
		}, errors.New("and a failure")
	})
	b, a := started(t, func(cfg *agent.Config) {
		cfg.Exchanger = func(agent.Target) (exchangers.Exchanger, error) { return both, nil }
	})
	b.Grant(targeting("/a", 1, "aws"))
	c, err := a.Credential(t.Context(), process(t), "aws")
	if err == nil || c != (exchangers.Credential{}) {
		t.Errorf("got %v, %v", c, err)
	}
}

type exchangerFunc func(context.Context, exchangers.SVIDs) (exchangers.Credential, error)

func (f exchangerFunc) Exchange(ctx context.Context, s exchangers.SVIDs) (exchangers.Credential, error) {
	return f(ctx, s)
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Of a whole session, its failures too, no secret is in the log at its most
// talkative, in what is kept on disk, in what is reported or in an error. The
// node's own key alone is kept, in its file.
//
// Regression: CVE-2025-62513
// Regression: SPIRE #6732
func TestNoSecretLeavesItsWay(t *testing.T) {
	t.Parallel()
	log := &buffer{}
	b := agenttest.NewBroker(t, domain).Start()
	const joining = "canary-of-the-join-token"
	b.Token = joining
	cfg := config(t, b)
	cfg.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
	cfg.Join.Evidence = func(context.Context) ([]byte, error) { return []byte(joining), nil }
	sky := &cloud{jwt: true}
	exchanging(sky)(&cfg)
	a := run(t, cfg).ready()
	g := targeting("/a", 1, "aws", "gcp")
	g.Audiences = []string{"**"}
	b.Grant(g)
	var texts []string
	says := func(err error) { texts = append(texts, fmt.Sprintf("%v %+v %#v", err, err, err)) }

	update := a.view(t).next()
	key, err := x509.MarshalPKCS8PrivateKey(update.SVIDs[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	token := mustJWT(t, a, "orders")[0].Token
	got, err := a.Credential(t.Context(), process(t), "aws")
	if err != nil {
		t.Fatal(err)
	}
	texts = append(texts, fmt.Sprintf("%v %+v %#v", got, got, got), fmt.Sprintf("%v %+v", update, update.SVIDs[0].ID))
	sky.mu.Lock()
	sky.refuse = &exchangers.Error{Provider: "aws", Status: 403, Code: "Denied", Class: exchangers.Config, Message: "no"}
	sky.mu.Unlock()
	_, err = a.Credential(t.Context(), process(t), "gcp")
	says(err)
	b.Await("both are reported", func() bool { return len(b.Reports()) == 2 })
	b.Grant()
	b.Push(change(nil, true))
	b.Await("it is heeded", func() bool { return b.Acknowledged() == 9 })
	_, err = a.Credential(t.Context(), process(t), "aws")
	says(err)
	_, err = jwt(t, a, spiffeid.ID{}, "orders")
	says(err)
	a.end()
	for _, r := range b.Reports() {
		texts = append(texts, r.String())
	}
	texts = append(texts, log.String())
	if !strings.Contains(log.String(), "level=DEBUG") {
		t.Error("the log is not at its most talkative")
	}
	err = filepath.WalkDir(cfg.Data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		texts = append(texts, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sky.mu.Lock()
	defer sky.mu.Unlock()
	for name, secret := range map[string]string{
		"the join token": joining, "a workload's key": string(key), "a JWT-SVID": token, "its signature": token[strings.LastIndexByte(token, '.')+1:],
		"the exchanged token": sky.shown[0], "the credential": got.Bearer.Token.Reveal(),
	} {
		for form, text := range map[string]string{
			"as it is": secret, "in base64": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "="), "in hex": hex.EncodeToString([]byte(secret)),
			"in PEM": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte(secret)})),
		} {
			for _, where := range texts {
				if strings.Contains(where, text) {
					t.Errorf("%s is told, %s, in:\n%.2000s", name, form, where)
				}
			}
		}
	}
}
