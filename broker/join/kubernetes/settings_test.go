package kubernetes_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/join/kubernetes"
)

func TestSettings(t *testing.T) {
	const review = "token_review: {url: 'https://10.0.0.1:6443', token_file: /t}"
	for _, row := range []struct{ text, want string }{
		{"{issuer: 'https://a.example'}", "cluster:"},
		{"{cluster: 'a/b', issuer: 'https://a.example'}", "cluster:"},
		{"{cluster: '-a', issuer: 'https://a.example'}", "cluster:"},
		{"{cluster: '" + strings.Repeat("a", 64) + "', issuer: 'https://a.example'}", "cluster:"},
		{"{cluster: a}", "issuer: one of"},
		{"{cluster: a, unbound: true}", "issuer: one of"},
		{"{cluster: a, issuer: 'http://a.example'}", "issuer:"},
		{"{cluster: a, issuer: 'https://u@a.example'}", "issuer:"},
		{"{cluster: a, issuer: 'kubernetes/serviceaccount'}", "issuer:"},
		{"{cluster: a, issuer: 'https://a.example', ca: x}", "ca:"},
		{"{cluster: a, jwks: '{}'}", "jwks:"},
		{"{cluster: a, jwks: '{}', " + review + "}", "jwks: either"},
		{"{cluster: a, ca: x, " + review + "}", "ca: is for"},
		{"{cluster: a, issuer: x, " + review + "}", "issuer:"},
		{"{cluster: a, token_review: {}}", "token_review.url:"},
		{"{cluster: a, token_review: {url: 'http://10.0.0.1', token_file: /t}}", "token_review.url:"},
		{"{cluster: a, token_review: {url: 'https://u:p@10.0.0.1', token_file: /t}}", "token_review.url:"},
		{"{cluster: a, token_review: {url: 'https://10.0.0.1/?x=1', token_file: /t}}", "token_review.url:"},
		{"{cluster: a, token_review: {url: 'https://10.0.0.1', token_file: t}}", "token_review.token_file:"},
		{"{cluster: a, token_review: {url: 'https://10.0.0.1'}}", "token_review.token_file:"},
		{"{cluster: a, token_review: {url: 'https://10.0.0.1', ca: x, token_file: /t}}", "token_review.ca:"},
		{"{cluster: a, issuer: 'https://a.example', max_age: 48h}", "max_age:"},
		{"{cluster: a, issuer: 'https://a.example', audience: '" + strings.Repeat("a", 513) + "'}", "audience:"},
		{"{cluster: a, issuer: 'https://a.example', audience: 'credence://example.org/workload'}", "audience:"},
	} {
		err := settings(t, row.text).Validate()
		if err == nil || !strings.HasPrefix(err.Error(), row.want) {
			t.Errorf("%s: %v, want %s", row.text, err, row.want)
		}
		if _, err := kubernetes.New(kubernetes.Config{Settings: settings(t, row.text), Audience: audience}); err == nil {
			t.Errorf("%s: it makes a method", row.text)
		}
	}
	for _, text := range []string{
		"{cluster: a, issuer: 'https://oidc.eks.eu-west-1.amazonaws.com/id/A1B2'}",
		"{cluster: gke_p_europe-west1_c.1, issuer: 'https://container.googleapis.com/v1/projects/p/locations/europe-west1/clusters/c', max_age: 90m, unbound: true}",
		"{cluster: a, issuer: 'https://westeurope.oic.prod-aks.azure.com/0d0b/1a5c/', audience: x}",
		"{cluster: a, " + review + "}",
	} {
		s := settings(t, text)
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		written, err := yaml.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, settings(t, string(written))); d != "" {
			t.Errorf("%s comes back as %s: %s", text, written, d)
		}
	}
	if _, err := kubernetes.New(kubernetes.Config{Settings: settings(t, "{cluster: a, "+review+"}")}); err == nil {
		t.Error("it takes tokens for nobody")
	}
}

func FuzzJoin(f *testing.F) {
	w := newWorld(f)
	m := w.method(w.ways()["jwks"])
	for _, seed := range []string{w.Token(pod, audience), "a.b.c", fmt.Sprintf("%s.x", w.Token(pod, audience))} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		if p, err := m.Join(t.Context(), token, noChallenge); err == nil && (p.DurableKey == "" || p.Instance != pod.UID) {
			t.Errorf("%q is taken as %+v", token, p)
		}
	})
}
