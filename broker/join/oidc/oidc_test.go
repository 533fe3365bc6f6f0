package oidc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/bearer"
	"github.com/credence-id/credence/broker/join/oidc"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/storetest"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const audience = "credence://example.org/join"

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

// settings are what a user writes.
func settings(t testing.TB, method, text string) *oidc.Settings {
	t.Helper()
	s := oidc.NewSettings(method)
	if err := yaml.UnmarshalWithOptions([]byte(text), s, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve is an issuer whose documents and keys are the test's: nothing is asked
// of the internet.
func serve(t testing.TB, issuer string) (get bearer.Get, asked *[]string) {
	t.Helper()
	documents := map[string]any{
		issuer + "/.well-known/openid-configuration": map[string]any{"issuer": issuer, "jwks_uri": issuer + "/.well-known/jwks"},
		issuer + "/.well-known/jwks":                 issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())),
	}
	asked = new([]string)
	return func(_ context.Context, url string) ([]byte, error) {
		*asked = append(*asked, url)
		document, ok := documents[url]
		if !ok {
			return nil, fmt.Errorf("%s: status 404", url)
		}
		return json.Marshal(document)
	}, asked
}

func method(t testing.TB, s *oidc.Settings, get bearer.Get) join.Method {
	t.Helper()
	dir := t.TempDir()
	storetest.Prepare(t, dir)
	kept, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kept.Close() })
	m, err := oidc.New(oidc.Config{
		Settings: s, Audience: audience, Get: get, Spend: kept.SpendEvidence,
		Spent: func(err error) bool { return errors.Is(err, broker.ErrSpent) }, Now: func() time.Time { return start },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func noChallenge(context.Context, []byte) ([]byte, error) {
	return nil, errors.New("a challenge was put")
}

// presets are tokens as their issuers make them, by their manuals.
var presets = []struct {
	method, settings, issuer string
	claims                   map[string]any
	audience                 string // if it isn't ours
	name, durable            string
	facts                    map[string]string
}{
	{
		method: "github", settings: "{}", issuer: "https://token.actions.githubusercontent.com",
		claims: map[string]any{
			"sub": "repo:acme/checkout:environment:production", "environment": "production", "ref": "refs/tags/v1.2.3", "ref_type": "tag", "ref_protected": "true",
			"sha": "8a21c6", "repository": "acme/checkout", "repository_id": "74", "repository_owner": "acme", "repository_owner_id": "65", "repository_visibility": "private",
			"run_id": "1", "run_number": "10", "run_attempt": "2", "actor": "ana", "actor_id": "12", "workflow": "release", "event_name": "push", "runner_environment": "github-hosted",
			"job_workflow_ref": "acme/ci/.github/workflows/release.yml@refs/heads/main", "jti": "7f1a",
		},
		name: "repo-acme-checkout-environment-production", durable: `["https://token.actions.githubusercontent.com","74"]`,
		facts: map[string]string{"node.github.repository": "acme/checkout", "node.github.environment": "production", "node.github.ref": "refs/tags/v1.2.3"},
	},
	{
		method: "github", settings: "{host: github.acme.example}", issuer: "https://github.acme.example/_services/token",
		claims: map[string]any{"sub": "repo:a/b:ref:refs/heads/main", "repository_id": "1"},
		name:   "repo-a-b-ref-refs-heads-main", durable: `["https://github.acme.example/_services/token","1"]`,
	},
	{
		method: "github", settings: "{enterprise: acme}", issuer: "https://token.actions.githubusercontent.com/acme",
		claims: map[string]any{"sub": "repo:a/b:ref:refs/heads/main", "repository_id": "1"},
		name:   "repo-a-b-ref-refs-heads-main", durable: `["https://token.actions.githubusercontent.com/acme","1"]`,
	},
	{
		method: "gitlab", settings: "{}", issuer: "https://gitlab.com",
		claims: map[string]any{
			"sub": "project_path:acme/checkout:ref_type:branch:ref:main", "namespace_id": "72", "namespace_path": "acme", "project_id": "20", "project_path": "acme/checkout",
			"user_login": "ana", "user_email": "ana@acme.example", "pipeline_id": "574", "job_id": "302", "ref": "main", "ref_type": "branch", "ref_protected": "true",
			"runner_id": 1, "runner_environment": "gitlab-hosted", "sha": "714a62", "user_identities": []any{map[string]any{"provider": "github"}},
		},
		name: "project_path-acme-checkout-ref_type-branch-ref-main", durable: `["https://gitlab.com","20"]`,
		facts: map[string]string{"node.gitlab.project_path": "acme/checkout", "node.gitlab.runner_id": "1", "node.gitlab.ref_protected": "true"},
	},
	{
		method: "circleci", settings: "{organization: 0d0b1a5c-0001}", issuer: "https://oidc.circleci.com/org/0d0b1a5c-0001",
		claims: map[string]any{"sub": "org/0d0b/project/aa/user/bb", "oidc.circleci.com/project-id": "aa", "oidc.circleci.com/context-ids": []string{"c1", "c2"}},
		name:   "org-0d0b-project-aa-user-bb", durable: `["https://oidc.circleci.com/org/0d0b1a5c-0001","aa"]`,
		facts: map[string]string{"node.circleci.project_id": "aa", "node.circleci.context_ids": "c1 c2"},
	},
	{
		method: "azure_devops", settings: "{organization: 0d0b1a5c, audience: api://AzureADTokenExchange}", issuer: "https://vstoken.dev.azure.com/0d0b1a5c", audience: "api://AzureADTokenExchange",
		claims: map[string]any{"sub": "sc://acme/checkout/prod"},
		name:   "sc---acme-checkout-prod", durable: `["https://vstoken.dev.azure.com/0d0b1a5c","sc://acme/checkout/prod"]`,
	},
	{
		method: "terraform_cloud", settings: "{}", issuer: "https://app.terraform.io",
		claims: map[string]any{
			"sub": "organization:acme:project:net:workspace:prod:run_phase:apply", "terraform_organization_name": "acme", "terraform_workspace_id": "ws-1",
			"terraform_workspace_name": "prod", "terraform_run_phase": "apply", "terraform_run_id": "run-1",
		},
		name: "organization-acme-project-net-workspace-prod-run_phase-apply", durable: `["https://app.terraform.io","ws-1"]`,
		facts: map[string]string{"node.terraform_cloud.terraform_run_phase": "apply"},
	},
	{
		method: "aws_oidc", settings: "{issuer: https://a1b2.tokens.sts.global.api.aws}", issuer: "https://a1b2.tokens.sts.global.api.aws",
		claims: map[string]any{
			"sub": "arn:aws:iam::123456789012:role/build", "https://sts.amazonaws.com/": map[string]any{"aws_account": "123456789012", "org_id": "o-1", "principal_tags": map[string]any{"team": "pay"}},
		},
		name: "arn-aws-iam--123456789012-role-build", durable: `["https://a1b2.tokens.sts.global.api.aws","arn:aws:iam::123456789012:role/build"]`,
		facts: map[string]string{"node.aws_oidc.aws_account": "123456789012", "node.aws_oidc.principal_tags.team": "pay"},
	},
	{
		method: "oidc", settings: "{issuer: https://id.acme.example/realms/ci, ban_by: [sub, host]}", issuer: "https://id.acme.example/realms/ci",
		claims: map[string]any{"sub": "runner", "host": "a", "groups": []string{"x", "y"}},
		name:   "runner", durable: `["https://id.acme.example/realms/ci","runner","a"]`,
		facts: map[string]string{"node.oidc.groups": "x y"},
	},
}

func TestJoin(t *testing.T) {
	for _, row := range presets {
		t.Run(row.method+" "+row.settings, func(t *testing.T) {
			get, asked := serve(t, row.issuer)
			m := method(t, settings(t, row.method, row.settings), get)
			token := func(changes map[string]any) []byte {
				c := map[string]any{"iss": row.issuer, "aud": audience, "iat": start.Unix(), "exp": start.Add(5 * time.Minute).Unix()}
				if row.audience != "" {
					c["aud"] = row.audience
				}
				maps.Copy(c, row.claims)
				return []byte(issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(c, changes)))
			}
			proof, err := m.Join(t.Context(), token(nil), noChallenge)
			if err != nil {
				t.Fatal(err)
			}
			if proof.Name != row.name || proof.DurableKey != row.durable || proof.Instance == "" {
				t.Errorf("name %s, durable key %s, instance %s", proof.Name, proof.DurableKey, proof.Instance)
			}
			for name, want := range row.facts {
				if got := strings.Join(proof.Facts.Get(name), " "); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			for name := range proof.Facts.All() {
				if !strings.HasPrefix(name, "node."+row.method+".") {
					t.Errorf("fact %s", name)
				}
			}
			if _, err := m.Join(t.Context(), token(nil), noChallenge); !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), "used before") {
				t.Errorf("the second time: %v", err)
			}
			next, err := m.Join(t.Context(), token(map[string]any{"jti": "another"}), noChallenge)
			if err != nil {
				t.Fatal(err)
			}
			if next.DurableKey != proof.DurableKey || next.Instance == proof.Instance {
				t.Error("another token of the same has another durable key, or is the same node")
			}
			for name, changes := range map[string]map[string]any{
				"of another issuer":   {"iss": row.issuer + "/x"},
				"for another":         {"aud": "sts.amazonaws.com"},
				"for another and us":  {"aud": []string{audience, "sts.amazonaws.com"}},
				"for any join":        {"aud": "credence://example.com/join"},
				"of nobody":           {"sub": nil},
				"that is not banned":  {"sub": "", "repository_id": nil, "project_id": nil, "oidc.circleci.com/project-id": nil, "terraform_workspace_id": nil},
				"with many to ban by": {"sub": []string{"a", "b"}, "repository_id": []string{"1", "2"}, "project_id": []string{"1", "2"}, "oidc.circleci.com/project-id": []string{"1", "2"}, "terraform_workspace_id": []string{"1", "2"}},
			} {
				if _, err := m.Join(t.Context(), token(changes), noChallenge); !errors.Is(err, join.ErrEvidence) {
					t.Errorf("a token %s: %v", name, err)
				}
			}
			for _, url := range *asked {
				if !strings.HasPrefix(url, row.issuer+"/") {
					t.Errorf("asked %s", url)
				}
			}
		})
	}
}

// A claim of the issuer's own name must not pass for one that has a short name.
func TestNamesDoNotMeet(t *testing.T) {
	const issuer = "https://oidc.circleci.com/org/a"
	get, _ := serve(t, issuer)
	m := method(t, settings(t, "circleci", "{organization: a}"), get)
	claims := map[string]any{
		"iss": issuer, "aud": audience, "iat": start.Unix(), "exp": start.Add(5 * time.Minute).Unix(), "sub": "a", "oidc.circleci.com/project-id": "aa",
	}
	if _, err := m.Join(t.Context(), []byte(issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(claims, map[string]any{"project_id": "bb"}))), noChallenge); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("project_id twice: %v", err)
	}
	if _, err := m.Join(t.Context(), []byte(issuertest.Sign(t, issuertest.RSA(), "RS256", nil, claims)), noChallenge); err != nil {
		t.Error(err)
	}
}

// Of 50 that come with one token one is a node.
func TestSpentOnce(t *testing.T) {
	row := presets[0]
	get, _ := serve(t, row.issuer)
	m := method(t, settings(t, row.method, row.settings), get)
	token := issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(row.claims, map[string]any{
		"iss": row.issuer, "aud": audience, "iat": start.Unix(), "exp": start.Add(5 * time.Minute).Unix(),
	}))
	if _, err := m.Join(t.Context(), []byte(token[:len(token)-6]), noChallenge); !errors.Is(err, join.ErrEvidence) {
		t.Fatal(err) // a bad one spends nothing
	}
	var all sync.WaitGroup
	results := make(chan error, 50)
	for range cap(results) {
		all.Go(func() {
			_, err := m.Join(t.Context(), []byte(token), noChallenge)
			results <- err
		})
	}
	all.Wait()
	close(results)
	joined := 0
	for err := range results {
		switch {
		case err == nil:
			joined++
		case !errors.Is(err, join.ErrEvidence):
			t.Error(err)
		}
	}
	if joined != 1 {
		t.Errorf("%d joined", joined)
	}
}

// Where the store is away nothing is taken, and the token stays good.
func TestStoreAway(t *testing.T) {
	row := presets[0]
	get, _ := serve(t, row.issuer)
	away := errors.New("disk full")
	m, err := oidc.New(oidc.Config{
		Settings: settings(t, row.method, row.settings), Audience: audience, Get: get, Now: func() time.Time { return start },
		Spend: func(context.Context, [32]byte, time.Time, time.Time) error { return away }, Spent: func(error) bool { return false },
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Join(t.Context(), []byte(issuertest.Sign(t, issuertest.RSA(), "RS256", nil, issuertest.With(row.claims, map[string]any{
		"iss": row.issuer, "aud": audience, "iat": start.Unix(), "exp": start.Add(5 * time.Minute).Unix(),
	}))), noChallenge)
	if !errors.Is(err, away) || errors.Is(err, join.ErrEvidence) {
		t.Error(err)
	}
}

func TestSettings(t *testing.T) {
	for _, row := range []struct{ method, text, want string }{
		{"oidc", "{}", "issuer: is required"},
		{"oidc", "{issuer: 'http://a.example'}", "issuer:"},
		{"oidc", "{issuer: 'https://a.example?x=1'}", "issuer:"},
		{"oidc", "{issuer: 'https://u@a.example'}", "issuer:"},
		{"oidc", "{issuer: 'https://A.example'}", "issuer:"},
		{"oidc", "{issuer: 'https://a.example/#'}", "issuer:"},
		{"oidc", "{issuer: 'https://exаmple.com'}", "issuer:"},
		{"oidc", "{issuer: 'https://a.example', organization: x}", "organization: is not of join method oidc"},
		{"oidc", "{issuer: 'https://a.example', host: x}", "host: is not of"},
		{"oidc", "{issuer: 'https://a.example', enterprise: x}", "enterprise: is not of"},
		{"oidc", "{issuer: 'https://a.example', algorithms: [none]}", "algorithms:"},
		{"oidc", "{issuer: 'https://a.example', algorithms: [HS256]}", "algorithms:"},
		{"oidc", "{issuer: 'https://a.example', max_age: 48h}", "max_age:"},
		{"oidc", "{issuer: 'https://a.example', max_age: -1s}", "max_age:"},
		{"oidc", "{issuer: 'https://a.example', jwks: '{}'}", "jwks:"},
		{"oidc", "{issuer: 'https://a.example', ca: x}", "ca:"},
		{"github", "{issuer: 'https://a.example'}", "issuer: is not of join method github"},
		{"github", "{host: 'a/b'}", "host:"},
		{"github", "{host: 'evil.example#.github.com'}", "host:"},
		{"github", "{enterprise: 'a/b'}", "enterprise:"},
		{"github", "{enterprise: a, host: github.acme.example}", "enterprise:"},
		{"circleci", "{}", "organization:"},
		{"circleci", "{organization: '../x'}", "organization:"},
		{"azure_devops", "{organization: a}", "audience: is required"},
	} {
		err := settings(t, row.method, row.text).Validate()
		if err == nil || !strings.HasPrefix(err.Error(), row.want) {
			t.Errorf("%s %s: %v, want %s", row.method, row.text, err, row.want)
		}
	}
	for _, row := range presets {
		if err := settings(t, row.method, row.settings).Validate(); err != nil {
			t.Errorf("%s %s: %v", row.method, row.settings, err)
		}
	}
	if err := oidc.NewSettings("nobody").Validate(); err == nil {
		t.Error("a method that there is not")
	}
	names := oidc.Methods()
	slices.Sort(names)
	if d := cmp.Diff([]string{"aws_oidc", "azure_devops", "circleci", "github", "gitlab", "oidc", "terraform_cloud"}, names); d != "" {
		t.Error(d)
	}
}
