package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/awsec2"
	"github.com/credence-id/credence/broker/join/awsiam"
	"github.com/credence-id/credence/broker/join/azure"
	"github.com/credence-id/credence/broker/join/boundkeypair"
	"github.com/credence-id/credence/broker/join/gcp"
	"github.com/credence-id/credence/broker/join/kubernetes"
	"github.com/credence-id/credence/broker/join/oidc"
	"github.com/credence-id/credence/broker/join/spiffe"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/join/tpm"
	joinx509 "github.com/credence-id/credence/broker/join/x509"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/flows"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

// registry names the join methods that need a JoinRule, and the flows.
func registry() resource.Registry {
	r := resource.Registry{Methods: map[string]func() join.Settings{}, Flows: flows.All()}
	r.Methods[kubernetes.Method] = func() join.Settings { return &kubernetes.Settings{} }
	r.Methods[joinx509.Method] = func() join.Settings { return new(joinx509.Settings) }
	r.Methods[spiffe.Method] = func() join.Settings { return new(spiffe.Settings) }
	r.Methods[tpm.Method] = func() join.Settings { return new(tpm.Settings) }
	r.Methods[boundkeypair.Method] = func() join.Settings { return new(boundkeypair.Settings) }
	r.Methods[awsiam.Method] = func() join.Settings { return new(awsiam.Settings) }
	r.Methods[awsec2.Method] = func() join.Settings { return new(awsec2.Settings) }
	r.Methods[azure.Method] = func() join.Settings { return new(azure.Settings) }
	r.Methods[gcp.Method] = func() join.Settings { return new(gcp.Settings) }
	for _, name := range oidc.Methods() {
		r.Methods[name] = func() join.Settings { return oidc.NewSettings(name) }
	}
	return r
}

// joinMethods builds the method of each rule once, for as long as the rule
// stands as it is: methods keep what they fetched.
type joinMethods struct {
	trustDomain spiffeid.TrustDomain
	store       *store.Store
	svid        spiffe.Verify // of our own trust domain and of peers
	fetch       fetch.Config  // of what an issuer publishes
	now         func() time.Time
	log         *slog.Logger

	mu    sync.Mutex // guards built
	built map[string]builtMethod
}

type builtMethod struct {
	revision uint64
	method   join.Method
}

// of is the method of a rule.
func (m *joinMethods) of(r join.Rule) (join.Method, error) {
	if r.Method == token.Method {
		return token.NewMethod(token.Config{Spend: m.store.SpendToken, Refused: spent, Now: m.now}), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.built[r.Name]; ok && b.revision == r.Revision {
		return b.method, nil
	}
	method, err := m.build(r)
	if err != nil {
		return nil, fmt.Errorf("join rule %s: %w", r.Name, err)
	}
	if m.built == nil {
		m.built = map[string]builtMethod{}
	}
	m.built[r.Name] = builtMethod{r.Revision, method}
	return method, nil
}

func (m *joinMethods) build(r join.Rule) (join.Method, error) {
	switch s := r.Settings.(type) {
	case *kubernetes.Settings:
		return kubernetes.New(kubernetes.Config{Settings: s, Audience: joinAudience(m.trustDomain), Get: m.get(s.Roots()), Spend: m.store.SpendEvidenceFor, Spent: spent, Now: m.now})
	case *joinx509.Settings:
		return joinx509.New(joinx509.Config{Settings: s, TrustDomain: m.trustDomain.Name(), Now: m.now})
	case *spiffe.Settings:
		return spiffe.New(spiffe.Config{Settings: s, TrustDomain: m.trustDomain.Name(), Verify: m.svid})
	case *tpm.Settings:
		return tpm.New(tpm.Config{Settings: s, TrustDomain: m.trustDomain.Name(), Now: m.now, Log: m.log})
	case *boundkeypair.Settings:
		return boundkeypair.New(boundkeypair.Config{Settings: s, TrustDomain: m.trustDomain.Name(), State: m.joinState(boundkeypair.Method)})
	case *awsiam.Settings:
		return awsiam.New(awsiam.Config{Settings: s, TrustDomain: m.trustDomain.Name(), Post: m.post(s.Roots()), Now: m.now})
	case *awsec2.Settings:
		return awsec2.New(awsec2.Config{Settings: s, TrustDomain: m.trustDomain.Name(), Hold: m.store.SpendEvidenceFor, Held: m.store.HoldsEvidence, Taken: spent, Now: m.now, Log: m.log})
	case *azure.Settings:
		return azure.New(azure.Config{Settings: s, TrustDomain: m.trustDomain.Name(), Get: m.get(s.IssuerRoots()), Hold: m.store.SpendEvidenceFor, Taken: spent, Now: m.now, Log: m.log})
	case *gcp.Settings:
		return gcp.New(gcp.Config{Settings: s, Audience: joinAudience(m.trustDomain), Get: m.get(s.Roots()), Spend: m.store.SpendEvidence, Spent: spent, Now: m.now})
	case *oidc.Settings:
		return oidc.New(oidc.Config{Settings: s, Audience: joinAudience(m.trustDomain), Get: m.get(s.Roots()), Spend: m.store.SpendEvidence, Spent: spent, Now: m.now})
	}
	return nil, fmt.Errorf("%w: join method %q is not one that this program has", broker.ErrRequest, r.Method)
}

// joinState tells what the last join by a durable key of a method left.
func (m *joinMethods) joinState(method string) func(context.Context, string) (join.State, error) {
	return func(ctx context.Context, durableKey string) (join.State, error) {
		return m.store.JoinState(ctx, method+":"+durableKey)
	}
}

// joinAudience is whom a token is for that proves a node to us.
func joinAudience(td spiffeid.TrustDomain) string { return "credence://" + td.Name() + "/join" }

// workloadAudience is whom a token is for that proves a pod's workload to us.
func workloadAudience(td spiffeid.TrustDomain) string { return "credence://" + td.Name() + "/workload" }

// pod says to which pod of a cluster a workload's token is bound.
func (m *joinMethods) pod(ctx context.Context, rules []join.Rule, cluster string, token []byte) (server.Pod, error) {
	p, err := kubernetes.PodOf(ctx, rules, cluster, m.of, token, workloadAudience(m.trustDomain))
	return server.Pod(p), err
}

// spent tells evidence that will never do from a store that failed.
func spent(err error) bool {
	return errors.Is(err, broker.ErrSpent) || errors.Is(err, broker.ErrNotFound)
}

// get fetches what an issuer publishes, under the rules for every URL from
// outside. roots nil means the broker's own for the web.
func (m *joinMethods) get(roots *x509.CertPool) func(context.Context, string) ([]byte, error) {
	config := m.fetch
	if roots != nil {
		config.Roots = roots
	}
	client := fetch.New(config)
	return func(ctx context.Context, url string) ([]byte, error) {
		answer, err := client.Fetch(ctx, federation.Request{URL: url, HTTPSWeb: &federation.HTTPSWeb{}})
		return answer.Document, err
	}
}

// post asks a cloud about evidence, under the same rules.
func (m *joinMethods) post(roots *x509.CertPool) awsiam.Post {
	config := m.fetch
	if roots != nil {
		config.Roots = roots
	}
	client := fetch.New(config)
	return func(ctx context.Context, url string, header http.Header, body []byte) (int, string, []byte, error) {
		answer, err := client.Post(ctx, url, header, body)
		return answer.Status, answer.ContentType, answer.Body, err
	}
}

// exchangerFor builds the exchanger of a target in the broker, for callers who
// have no agent: what it gives ends within a life, and has no more than scopes.
func exchangerFor(t broker.Target, life time.Duration, scopes []string) (exchangers.Exchanger, error) {
	settings, ok := registry().Flows[t.Flow]
	if !ok {
		return nil, fmt.Errorf("flow %q is not one that this program has", t.Flow)
	}
	parsed, err := exchangers.ParseWire(t.Settings, settings())
	if err != nil {
		return nil, err
	}
	narrower, ok := parsed.Settings.(exchangers.Narrower)
	if !ok {
		return nil, fmt.Errorf("target %s: %w: nothing is known of how long what flow %s gives lives", t.Name, exchangers.ErrLife, t.Flow)
	}
	if parsed.Settings, err = narrower.Narrow(life, scopes); err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name, err)
	}
	return flows.Exchanger(parsed)
}
