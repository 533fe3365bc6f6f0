package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/kubernetes"
	"github.com/credence-id/credence/broker/join/kubernetes/clustertest"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A pod's end is its token's.
func TestReviewAfterThePodsEnd(t *testing.T) {
	w := newWorld(t)
	m, token := w.method(w.ways()["token_review"]), w.Token(pod, audience)
	if _, err := joinBy(t, m, token); err != nil {
		t.Fatal(err)
	}
	w.End(pod)
	if _, err := joinBy(t, m, token); !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), "invalidated") {
		t.Errorf("%v", err)
	}
	if n := w.Reviews(); n != 2 {
		t.Errorf("%d reviews", n)
	}
}

// What the API server says of another is never of this one.
func TestReviewsThatDisagree(t *testing.T) {
	user := func(f func(user, extra map[string]any)) func(map[string]any) {
		return func(status map[string]any) {
			u := status["user"].(map[string]any)
			f(u, u["extra"].(map[string]any))
		}
	}
	extra := func(name string, values ...string) func(map[string]any) {
		return user(func(_, extra map[string]any) {
			if extra["authentication.kubernetes.io/"+name] = values; values == nil {
				delete(extra, "authentication.kubernetes.io/"+name)
			}
		})
	}
	for name, spoil := range map[string]func(map[string]any){
		"not authenticated":           func(s map[string]any) { s["authenticated"] = false },
		"no word of it":               func(s map[string]any) { delete(s, "authenticated") },
		"no status":                   func(s map[string]any) { clear(s) },
		"no audiences":                func(s map[string]any) { delete(s, "audiences") },
		"no audience":                 func(s map[string]any) { s["audiences"] = []string{} },
		"the API server's audience":   func(s map[string]any) { s["audiences"] = []string{"https://kubernetes.default.svc"} },
		"ours and another":            func(s map[string]any) { s["audiences"] = []string{audience, "https://kubernetes.default.svc"} },
		"no user":                     func(s map[string]any) { delete(s, "user") },
		"another account":             user(func(u, _ map[string]any) { u["username"] = "system:serviceaccount:credence:admin" }),
		"another namespace":           user(func(u, _ map[string]any) { u["username"] = "system:serviceaccount:kube-system:agent" }),
		"a node":                      user(func(u, _ map[string]any) { u["username"] = "system:node:a" }),
		"an account that came after":  user(func(u, _ map[string]any) { u["uid"] = pod.UID }),
		"no account's UID":            user(func(u, _ map[string]any) { delete(u, "uid") }),
		"no extra":                    user(func(u, _ map[string]any) { delete(u, "extra") }),
		"another pod":                 extra("pod-name", "agent-8mzq4"),
		"another pod of the name":     extra("pod-uid", "55555555-5555-4555-8555-555555555555"),
		"two pods":                    extra("pod-uid", pod.UID, pod.UID),
		"no pod":                      extra("pod-name"),
		"no pod's UID":                extra("pod-uid"),
		"another node":                extra("node-name", "b"),
		"another node of the name":    extra("node-uid", "55555555-5555-4555-8555-555555555555"),
		"no node, and the token does": extra("node-uid"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.method(w.ways()["token_review"])
			w.Spoil(spoil)
			if p, err := joinBy(t, m, w.Token(pod, audience)); !errors.Is(err, join.ErrEvidence) {
				t.Errorf("%+v, %v", p, err)
			}
			w.Spoil(nil)
			if _, err := joinBy(t, m, w.Token(pod, audience)); err != nil {
				t.Errorf("the honest one: %v", err)
			}
		})
	}
}

// A pod that the API server alone names is no proof either.
func TestReviewSaysMore(t *testing.T) {
	w := newWorld(t)
	s := w.ways()["token_review"]
	s.Unbound = true
	free := pod
	free.Name, free.UID, free.Node, free.NodeUID = "", "", "", ""
	w.Spoil(func(status map[string]any) {
		status["user"].(map[string]any)["extra"] = map[string]any{"authentication.kubernetes.io/pod-uid": []string{pod.UID}}
	})
	if p, err := joinBy(t, w.method(s), w.Token(free, audience)); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("%+v, %v", p, err)
	}
}

// An API server that does not answer well says nothing of a token, which may be
// shown again.
func TestReviewsThatFail(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s is followed", r.URL) }))
	t.Cleanup(elsewhere.Close)
	const soon = 200 * time.Millisecond
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"kind":"TokenReview","status":{"authenticated":true}}`)
		}
	}
	text := func(kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, row := range map[string]struct {
		answer   http.HandlerFunc
		want     string
		patience time.Duration // where there is no end
	}{
		"500": {status(500), "answers 500", 0},
		"503": {status(503), "answers 503", 0},
		"429": {status(429), "answers 429", 0},
		"202": {status(202), "answers 202", 0},
		"401": {status(401), "doesn't take our own token", 0},
		"403": {status(403), "system:auth-delegator", 0},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "answers 307", 0},
		"huge":         {text("application/json", `{"kind":"TokenReview","x":"`+strings.Repeat("a", 300<<10)+`"}`), "more than 262144 bytes", 0},
		"cut off":      {text("application/json", `{"kind":"TokenReview","status":{"authenticated":tr`), "no TokenReview", 0},
		"another kind": {text("application/json", `{"kind":"Status","status":{"authenticated":true}}`), "no TokenReview", 0},
		"a page":       {text("text/html", `{"kind":"TokenReview"}`), "text/html", 0},
		"nothing":      {text("application/json", ""), "no TokenReview", 0},
		"another type": {text("application/json", `{"kind":"TokenReview","status":{"authenticated":"true"}}`), "no TokenReview", 0},
		"a long header": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("a", 128<<10))
			text("application/json", `{"kind":"TokenReview","status":{"authenticated":false}}`)(w, r)
		}, "", 0},
		"it hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", 0},
		"it never ends": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "", soon},
		"it is silent":   {func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() }, "deadline", soon},
		"it drips along": {drip, "", soon},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Instead(row.answer)
			m, err := kubernetes.New(kubernetes.Config{
				Settings: w.ways()["token_review"], Audience: audience, Get: w.Get, Spend: w.spend, Spent: func(error) bool { return false },
				Patience: row.patience, Now: w.now,
			})
			if err != nil {
				t.Fatal(err)
			}
			token := w.Token(pod, audience)
			_, err = joinBy(t, m, token)
			if err == nil || errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %s", err, row.want)
			}
			if err != nil && (strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "first")) {
				t.Errorf("it tells a token: %v", err)
			}
			w.Instead(nil)
			if _, err := joinBy(t, w.method(w.ways()["token_review"]), token); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// drip answers a byte at a time, for ever.
func drip(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, " "); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}

// The broker's own token is read anew each time, and shown to the API server of
// the rule alone.
func TestOwnToken(t *testing.T) {
	w := newWorld(t)
	m := w.method(w.ways()["token_review"])
	for _, own := range []string{"second", "third"} {
		w.SetOwn(own)
		if _, err := joinBy(t, m, w.Token(pod, audience)); err != nil {
			t.Errorf("%s: %v", own, err)
		}
	}
	for _, text := range []string{"", " \n", "two words", "a\nb", strings.Repeat("a", 17<<10)} {
		if err := os.WriteFile(w.TokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := w.Reviews()
		if _, err := joinBy(t, m, w.Token(pod, audience)); err == nil || errors.Is(err, join.ErrEvidence) || w.Reviews() != before {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if err := os.Remove(w.TokenFile); err != nil {
		t.Fatal(err)
	}
	if _, err := joinBy(t, m, w.Token(pod, audience)); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("without one: %v", err)
	}
	b := clustertest.New(t, "staging", w.now)
	before := b.Reviews()
	s := settings(t, fmt.Sprintf("{cluster: prod, token_review: {url: %q, token_file: %q}}", b.URL, b.TokenFile))
	if _, err := joinBy(t, w.method(s), w.Token(pod, audience)); err == nil || errors.Is(err, join.ErrEvidence) || b.Reviews() != before {
		t.Errorf("an API server whose certificate is of nobody's: %v", err)
	}
}

// What is no token of ours by its form costs the API server nothing.
func TestReviewOfNoToken(t *testing.T) {
	w := newWorld(t)
	m := w.method(w.ways()["token_review"])
	for _, token := range []string{"", "x", "a.b.c", "..", strings.Repeat("a", 20<<10), issuertest.Sign(t, issuertest.RSA(), "HS256", nil, w.Claims(pod, audience))} {
		if _, err := joinBy(t, m, token); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("%.20q: %v", token, err)
		}
	}
	if n := w.Reviews(); n != 0 {
		t.Errorf("%d reviews", n)
	}
}

// Strangers have tokens reviewed, and so do not say how many at once.
func TestReviewsAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.method(w.ways()["token_review"])
	arrived, leave := make(chan struct{}, 64), make(chan struct{})
	w.Instead(func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-leave
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	token := w.Token(pod, audience)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := joinBy(t, m, token); err == nil || errors.Is(err, join.ErrEvidence) {
				t.Errorf("%v", err)
			}
		})
	}
	for range 16 {
		<-arrived
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.Join(ctx, []byte(token), noChallenge); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, join.ErrEvidence) || w.Reviews() != 16 {
		t.Errorf("one more: %d reviews, %v", w.Reviews(), err)
	}
	close(leave)
	all.Wait()
	w.Instead(nil)
	if _, err := joinBy(t, m, token); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
