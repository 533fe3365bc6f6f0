package federation_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// endpoints is a Fetcher of many bundle endpoints. As a real one, it knows its
// callers by TLS only in so far as they know it: what they verify it by is kept.
type endpoints struct {
	mu   sync.Mutex
	docs map[string]string // by URL; none: the fetch fails
	tags bool              // give ETags and heed If-None-Match
	slow map[string]chan struct{}
	deaf bool // goes on when its context ends
	asks []ask
}

type ask struct {
	At  time.Duration // since epochs's start of the bubble
	Req federation.Request
}

var bubble = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where synctest starts

func (e *endpoints) set(url, doc string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.docs == nil {
		e.docs = make(map[string]string)
	}
	e.docs[url] = doc
}

func (e *endpoints) Fetch(ctx context.Context, req federation.Request) (federation.Response, error) {
	e.mu.Lock()
	e.asks = append(e.asks, ask{time.Since(bubble), req})
	doc, ok := e.docs[req.URL]
	slow := e.slow[req.URL]
	e.mu.Unlock()
	if slow != nil && e.deaf {
		<-slow
	} else if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
			return federation.Response{}, ctx.Err()
		}
	}
	tag := fmt.Sprintf("%q", fmt.Sprint(len(doc), doc))
	switch {
	case !ok:
		return federation.Response{}, errors.New("status is 500, not 200")
	case e.tags && req.IfNoneMatch == tag:
		return federation.Response{NotModified: true}, nil
	case e.tags:
		return federation.Response{Document: []byte(doc), ETag: tag}, nil
	}
	return federation.Response{Document: []byte(doc)}, nil
}

// last is the newest request to url.
func (e *endpoints) last(t *testing.T, url string) federation.Request {
	t.Helper()
	all := e.to(url)
	if len(all) == 0 {
		t.Fatalf("no request to %s", url)
	}
	return all[len(all)-1].Req
}

func (e *endpoints) to(url string) []ask {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []ask
	for _, a := range e.asks {
		if a.Req.URL == url {
			all = append(all, a)
		}
	}
	return all
}

// memory is a Store.
type memory struct {
	mu    sync.Mutex
	all   map[spiffeid.TrustDomain]federation.Stored
	fail  error // of the next call that writes
	loads int
}

func (m *memory) broken() error {
	err := m.fail
	m.fail = nil
	return err
}

func (m *memory) SaveBundle(_ context.Context, s federation.Stored) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.broken(); err != nil {
		return err
	}
	if m.all == nil {
		m.all = make(map[spiffeid.TrustDomain]federation.Stored)
	}
	m.all[s.TrustDomain] = s
	return nil
}

func (m *memory) Bundles(context.Context) ([]federation.Stored, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	var all []federation.Stored
	for _, s := range m.all {
		all = append(all, s)
	}
	return all, nil
}

func (m *memory) DeleteBundle(_ context.Context, td spiffeid.TrustDomain) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.broken(); err != nil {
		return err
	}
	delete(m.all, td)
	return nil
}

func (m *memory) get(td spiffeid.TrustDomain) (federation.Stored, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.all[td]
	return s, ok
}

// house is a running Refresher and all around it.
type house struct {
	*federation.Refresher
	endpoints endpoints
	store     *memory
	log       bytes.Buffer
	stop      func()
}

const partnerURL = "https://partner.example/bundle"

func exact(d time.Duration) time.Duration { return d }

func start(t *testing.T, store *memory, own *x509bundle.Bundle) *house {
	t.Helper()
	h := &house{store: store}
	r, err := federation.New(federation.Config{
		TrustDomain: example, Fetcher: &h.endpoints, Store: store, Jitter: exact,
		Own: func() *x509bundle.Bundle { return own },
		Log: slog.New(slog.NewTextHandler(&h.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Refresher = r
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

func (h *house) peers(t *testing.T, peers ...federation.Peer) {
	t.Helper()
	if err := h.SetPeers(context.Background(), peers); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func (h *house) sequence(td spiffeid.TrustDomain) string {
	b, ok := h.Set().Get(td)
	if !ok {
		return "none"
	}
	n, _ := b.SequenceNumber()
	return fmt.Sprint(n)
}

func webPeer(td spiffeid.TrustDomain, url string) federation.Peer {
	return federation.Peer{TrustDomain: td, URL: url, HTTPSWeb: &federation.HTTPSWeb{}}
}

func pinnedPeer(anchor *ca) federation.Peer {
	return federation.Peer{TrustDomain: partner, URL: partnerURL, HTTPSSPIFFE: &federation.HTTPSSPIFFE{
		EndpointID: endpoint, Fingerprint: federation.Fingerprint(anchor.Cert)}}
}

func document(t testing.TB, sequence, hint int, cas ...*ca) string {
	t.Helper()
	var entries []string
	for _, c := range cas {
		entries = append(entries, x509Entry(t, c.Cert))
	}
	return fmt.Sprintf(`{"spiffe_sequence":%d,"spiffe_refresh_hint":%d,"keys":[%s]}`, sequence, hint, strings.Join(entries, ","))
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestPollsAtTheHintWithinBounds(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	tests := []struct {
		name string
		doc  string
		want time.Duration
	}{
		{"FC-23 hint 300", document(t, 1, 300, a), 300 * time.Second},
		{"hint 60", document(t, 1, 60, a), time.Minute},
		{"FC-25 hint 0 makes no hot loop", document(t, 1, 0, a), 30 * time.Second},
		{"FC-25 hint negative", document(t, 1, -5, b), 30 * time.Second},
		{"FC-25 hint 10^12 is not never", document(t, 1, 1_000_000_000_000, a), 10 * time.Minute},
		{"FC-24 no hint", `{"keys":[]}`, 5 * time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := start(t, &memory{}, nil)
				defer h.stop()
				h.endpoints.set(partnerURL, tt.doc)
				h.peers(t, webPeer(partner, partnerURL))
				wait(2*tt.want + time.Second)
				var at []time.Duration
				for _, a := range h.endpoints.to(partnerURL) {
					at = append(at, a.At)
				}
				if diff := cmp.Diff([]time.Duration{0, tt.want, 2 * tt.want}, at); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestANewHintCountsAtOnce(t *testing.T) { // FED-05
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		h.endpoints.set(partnerURL, document(t, 2, 60, a))
		wait(361 * time.Second)
		if n := len(h.endpoints.to(partnerURL)); n != 3 {
			t.Errorf("%d requests, want those at 0, 300 and 360 s", n)
		}
	})
}

func TestJitterOnlyLengthens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetcher endpoints
		r, err := federation.New(federation.Config{TrustDomain: example, Fetcher: &fetcher, Store: &memory{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		if err := r.SetPeers(ctx, []federation.Peer{webPeer(partner, partnerURL)}); err != nil {
			t.Fatal(err)
		}
		wait(time.Hour)
		cancel()
		<-done
		all := fetcher.to(partnerURL)
		gaps := make(map[time.Duration]bool)
		for i := 1; i < len(all); i++ {
			gap := all[i].At - all[i-1].At
			if gap < 30*time.Second || gap > 33*time.Second+time.Nanosecond {
				t.Errorf("gap of %s at an interval of 30s", gap)
			}
			gaps[gap] = true
		}
		if len(gaps) < 10 {
			t.Errorf("%d different gaps in %d: no jitter", len(gaps), len(all))
		}
	})
}

func TestAFailedPollWaitsForTheNext(t *testing.T) { // FED-35
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		for _, bad := range []string{"<html>", "{}", `{"keys":null}`, ""} {
			h.endpoints.set(partnerURL, bad)
			wait(5 * time.Minute)
		}
		if n := len(h.endpoints.to(partnerURL)); n != 5 {
			t.Errorf("%d requests in 5 intervals", n)
		}
		if got := h.sequence(partner); got != "1" {
			t.Errorf("sequence %s after bad answers: the last good bundle was not kept", got)
		}
		status, _ := h.Status(partner)
		if status.LastError == nil || status.Stale || !status.ConfirmedAt.Equal(bubble) || !status.NextPoll.Equal(bubble.Add(25*time.Minute)) {
			t.Errorf("status %+v", status)
		}
	})
}

func TestOlderSequenceIsIgnored(t *testing.T) { // FED-07, FC-20
	a, b := newCA(t, nil), newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		for _, step := range []struct {
			name, doc, want string
			wrong           bool
		}{
			{"first", document(t, 5, 300, a), "5", false},
			{"older", document(t, 3, 300, b), "5", true},
			{"newer", document(t, 6, 300, a, b), "6", false},
			{"older than stored", document(t, 5, 300, a), "6", true},
			{"FC-22 without a number: the last fetched", `{"keys":[]}`, "0", false},
		} {
			h.endpoints.set(partnerURL, step.doc)
			h.peers(t, webPeer(partner, partnerURL))
			err := h.Refresh(context.Background(), partner)
			if got := h.sequence(partner); got != step.want || (err != nil) != step.wrong {
				t.Errorf("%s: sequence %s and %v, want %s", step.name, got, err, step.want)
			}
		}
	})
}

func TestRollbackIsRefusedAfterARestart(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	store := &memory{}
	synctest.Test(t, func(t *testing.T) {
		h := start(t, store, nil)
		h.endpoints.set(partnerURL, document(t, 5, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		h.stop()
		h = start(t, store, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 4, 300, b))
		h.peers(t, webPeer(partner, partnerURL))
		if got := h.sequence(partner); got != "5" {
			t.Errorf("sequence %s after a restart and a rollback", got)
		}
	})
}

func TestSameContentOnlyConfirms(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	doc := document(t, 5, 300, a, b)
	respelt := strings.Replace(doc, `{"spiffe_sequence"`, `{ "more":1, "spiffe_sequence"`, 1)
	for _, tags := range []bool{false, true} {
		for name, next := range map[string]string{"same bytes": doc, "other spelling": respelt} {
			t.Run(fmt.Sprintf("%s, ETags %v", name, tags), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := start(t, &memory{}, nil)
					defer h.stop()
					h.endpoints.tags = tags
					h.endpoints.set(partnerURL, doc)
					h.peers(t, webPeer(partner, partnerURL))
					_, changed := h.Set().Watch()
					h.endpoints.set(partnerURL, next)
					wait(11 * time.Minute)
					if closed(changed) {
						t.Error("validators were told of a change") // FED-36
					}
					got, _ := h.store.get(partner)
					want := federation.Stored{TrustDomain: partner, Sequence: 5, Document: []byte(doc),
						FetchedAt: bubble, ConfirmedAt: bubble.Add(10 * time.Minute)}
					if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
						cmp.Comparer(time.Time.Equal)); diff != "" {
						t.Error(diff)
					}
					if last := h.endpoints.last(t, partnerURL); (last.IfNoneMatch != "") != tags {
						t.Errorf("If-None-Match is %q", last.IfNoneMatch)
					}
				})
			})
		}
	}
}

func TestNotModifiedWithoutAnythingIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := federation.New(federation.Config{TrustDomain: example, Fetcher: notModified{}, Store: &memory{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go r.Run(ctx)
		if err := r.SetPeers(ctx, []federation.Peer{webPeer(partner, partnerURL)}); err != nil {
			t.Fatal(err)
		}
		if err := r.Refresh(ctx, partner); err == nil {
			t.Error("304 was taken for a bundle")
		}
		cancel()
		synctest.Wait()
	})
}

type notModified struct{}

func (notModified) Fetch(context.Context, federation.Request) (federation.Response, error) {
	return federation.Response{NotModified: true}, nil
}

func TestSelfServingEndpointIsKnownByTheLatestBundle(t *testing.T) { // FED-32, FC-19
	a, b, c := newCA(t, nil), newCA(t, nil), newCA(t, nil)
	authorities := func(h *house) []string {
		req := h.endpoints.last(t, partnerURL)
		if req.HTTPSSPIFFE.Bundle == nil {
			return []string{req.HTTPSSPIFFE.Fingerprint}
		}
		var prints []string
		for _, cert := range req.HTTPSSPIFFE.Bundle.X509Authorities() {
			prints = append(prints, federation.Fingerprint(cert))
		}
		return prints
	}
	print := func(cas ...*ca) []string {
		var prints []string
		for _, c := range cas {
			prints = append(prints, federation.Fingerprint(c.Cert))
		}
		return prints
	}
	bundled := pinnedPeer(a)
	bundled.HTTPSSPIFFE = &federation.HTTPSSPIFFE{EndpointID: endpoint, Bundle: pemOf(a.Cert)}
	for name, peer := range map[string]federation.Peer{"by fingerprint": pinnedPeer(a), "by bundle": bundled} {
		t.Run(name, func(t *testing.T) {
			store := &memory{}
			synctest.Test(t, func(t *testing.T) {
				h := start(t, store, nil)
				check := func(when string, want []string) {
					t.Helper()
					if diff := cmp.Diff(want, authorities(h)); diff != "" {
						t.Errorf("%s (-want +got):\n%s", when, diff)
					}
				}
				h.peers(t, peer)
				check("first try", print(a))
				wait(30 * time.Second)
				check("second try, the first failed", print(a))
				h.endpoints.set(partnerURL, document(t, 1, 300, a, b))
				wait(30 * time.Second)
				wait(5 * time.Minute)
				check("after the first bundle", print(a, b))
				h.endpoints.set(partnerURL, document(t, 2, 300, b))
				wait(5 * time.Minute)
				wait(5 * time.Minute)
				check("after the bootstrap was superseded", print(b))
				h.stop()
				h = start(t, store, nil)
				defer h.stop()
				h.peers(t, peer)
				check("after a restart", print(b))
				peer.HTTPSSPIFFE = pinnedPeer(c).HTTPSSPIFFE
				h.peers(t, peer)
				check("after the operator gave a new bootstrap, which failed", print(c))
				if got := h.sequence(partner); got != "2" {
					t.Errorf("sequence %s: the bundle must stay until the new bootstrap has worked", got)
				}
				h.endpoints.set(partnerURL, document(t, 3, 300, c, b))
				wait(5 * time.Minute)
				check("after the operator gave a new bootstrap", print(c))
				if got := h.sequence(partner); got != "3" {
					t.Errorf("sequence %s after the new bootstrap", got)
				}
				wait(5 * time.Minute)
				check("after the new bootstrap was superseded", print(c, b))
			})
		})
	}
}

func TestEndpointInAnotherTrustDomain(t *testing.T) { // FED-29
	a, b, ours := newCA(t, nil), newCA(t, nil), newCA(t, nil)
	own := x509bundle.FromX509Authorities(example, certs(ours.Cert))
	at := func(id spiffeid.ID) federation.Peer {
		return federation.Peer{TrustDomain: partner, URL: partnerURL, HTTPSSPIFFE: &federation.HTTPSSPIFFE{EndpointID: id}}
	}
	const thirdURL = "https://third.example/bundle"
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, own)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, at(spiffeid.RequireFromPath(third, "/e")))
		if n := len(h.endpoints.to(partnerURL)); n != 0 {
			t.Error("asked an endpoint whose trust domain has no bundle")
		}
		h.endpoints.set(thirdURL, document(t, 1, 300, b))
		h.peers(t, at(spiffeid.RequireFromPath(third, "/e")), webPeer(third, thirdURL))
		wait(time.Minute)
		if auth := h.endpoints.last(t, partnerURL).HTTPSSPIFFE; !auth.Bundle.HasX509Authority(b.Cert) || auth.Bundle.TrustDomain() != third {
			t.Errorf("endpoint of %s is verified by the bundle of %s", third, auth.Bundle.TrustDomain())
		}
		h.peers(t, at(spiffeid.RequireFromPath(example, "/e")))
		if auth := h.endpoints.last(t, partnerURL).HTTPSSPIFFE; !auth.Bundle.HasX509Authority(ours.Cert) {
			t.Error("endpoint of our own trust domain is not verified by our bundle")
		}
	})
}

// FC-28: each has the bundle under its configured name, and only that.
func TestTwoTrustDomainsAtOneURLAreKeptApart(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL), webPeer(third, partnerURL))
		h.endpoints.set(partnerURL, document(t, 2, 300, a, b))
		if err := h.Refresh(t.Context(), third); err != nil {
			t.Fatal(err)
		}
		if p, o := h.sequence(partner), h.sequence(third); p != "1" || o != "2" {
			t.Errorf("sequences %s and %s", p, o)
		}
		h.peers(t, webPeer(third, partnerURL))
		leaf := a.Leaf(t, nil, "spiffe://partner.example/w")
		if _, _, err := federation.VerifyX509(certs(leaf), h.Set(), epoch); err == nil {
			t.Error("an SVID of one verified by the bundle of the other")
		}
	})
}

func TestRemovalDropsTheBundleAndStopsPolling(t *testing.T) { // FED-37, FC-30
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		_, changed := h.Set().Watch()
		h.peers(t)
		if _, stored := h.store.get(partner); stored || h.sequence(partner) != "none" || !closed(changed) {
			t.Error("the bundle stays, or nobody was told")
		}
		wait(time.Hour)
		if n := len(h.endpoints.to(partnerURL)); n != 1 {
			t.Errorf("%d requests after removal", n-1)
		}
		if _, ok := h.Status(partner); ok || h.Refresh(context.Background(), partner) == nil {
			t.Error("a removed peer has a status, or can be refreshed")
		}
	})
}

func TestRemovalWhileFetching(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		answer := make(chan struct{})
		h.endpoints.slow, h.endpoints.deaf = map[string]chan struct{}{partnerURL: answer}, true
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		refreshed := make(chan error, 1)
		go func() { refreshed <- h.Refresh(context.Background(), partner) }()
		synctest.Wait()
		h.peers(t)
		close(answer)
		synctest.Wait()
		if _, stored := h.store.get(partner); stored || h.sequence(partner) != "none" {
			t.Error("a late answer brought a removed peer's bundle back")
		}
		if err := <-refreshed; err == nil {
			t.Error("refreshing a removed peer went well")
		}
		if n := len(h.endpoints.to(partnerURL)); n != 1 {
			t.Errorf("%d requests, want one", n)
		}
	})
}

func TestAChangeVoidsTheFetchUnderWay(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	const newURL = "https://new.partner.example/bundle"
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		answer := make(chan struct{})
		h.endpoints.slow = map[string]chan struct{}{partnerURL: answer}
		h.endpoints.set(partnerURL, document(t, 9, 300, a))
		h.endpoints.set(newURL, document(t, 1, 300, b))
		h.peers(t, webPeer(partner, partnerURL))
		h.peers(t, webPeer(partner, newURL))
		close(answer)
		synctest.Wait()
		if got := h.sequence(partner); got != "1" {
			t.Errorf("sequence %s: the old endpoint's answer was believed", got)
		}
	})
}

func TestAnETagIsItsEndpointsOwn(t *testing.T) {
	a := newCA(t, nil)
	const newURL = "https://new.partner.example/bundle"
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.tags = true
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.endpoints.set(newURL, document(t, 2, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		h.peers(t, webPeer(partner, newURL))
		if got := h.endpoints.last(t, newURL).IfNoneMatch; got != "" {
			t.Errorf("the new endpoint was shown %s", got)
		}
	})
}

func TestRemovalEndsARefreshThatNobodyRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := federation.New(federation.Config{TrustDomain: example, Fetcher: &endpoints{}, Store: &memory{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.SetPeers(t.Context(), []federation.Peer{webPeer(partner, partnerURL)}); err != nil {
			t.Fatal(err)
		}
		refreshed := make(chan error, 1)
		go func() { refreshed <- r.Refresh(t.Context(), partner) }()
		synctest.Wait()
		if err := r.SetPeers(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := <-refreshed; err == nil {
			t.Error("refreshing a removed peer went well")
		}
	})
}

func TestASlowPeerDelaysNoOther(t *testing.T) {
	a := newCA(t, nil)
	const thirdURL = "https://third.example/bundle"
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.slow = map[string]chan struct{}{thirdURL: make(chan struct{})}
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(third, thirdURL), webPeer(partner, partnerURL))
		if err := h.Refresh(context.Background(), partner); err != nil || h.sequence(partner) != "1" {
			t.Errorf("refresh: %v", err)
		}
	})
}

func TestRefreshSharesTheFetchUnderWay(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		answer := make(chan struct{})
		h.endpoints.slow = map[string]chan struct{}{partnerURL: answer}
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		outcomes := make(chan error, 10)
		for range 10 {
			go func() { outcomes <- h.Refresh(context.Background(), partner) }()
		}
		synctest.Wait()
		close(answer)
		for range 10 {
			if err := <-outcomes; err != nil {
				t.Error(err)
			}
		}
		wait(299 * time.Second)
		if n := len(h.endpoints.to(partnerURL)); n != 1 {
			t.Errorf("%d requests for 11 wishes", n)
		}
	})
}

func TestRefreshEndsWithItsContext(t *testing.T) {
	r, err := federation.New(federation.Config{TrustDomain: example, Fetcher: &endpoints{}, Store: &memory{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetPeers(t.Context(), []federation.Peer{webPeer(partner, partnerURL)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Refresh(ctx, partner); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRestartGoesOnWithStoredBundles(t *testing.T) {
	a := newCA(t, nil)
	doc := document(t, 7, 300, a)
	synctest.Test(t, func(t *testing.T) {
		day := bubble.Add(-25 * time.Hour)
		store := &memory{all: map[spiffeid.TrustDomain]federation.Stored{
			partner: {TrustDomain: partner, Sequence: 7, Document: []byte(doc), FetchedAt: day, ConfirmedAt: day},
			third:   {TrustDomain: third, Document: []byte(doc)},
		}}
		h := start(t, store, nil) // its endpoints answer nothing
		defer h.stop()
		h.peers(t, webPeer(partner, partnerURL))
		if got := h.sequence(partner); got != "7" {
			t.Errorf("sequence %s after a restart", got)
		}
		if status, _ := h.Status(partner); !status.Stale || !status.ConfirmedAt.Equal(day) || status.Sequence != 7 {
			t.Errorf("the bundle lost its age: %+v", status)
		}
		if !strings.Contains(h.log.String(), "level=ERROR") {
			t.Error("staleness was not shouted")
		}
		if _, ok := store.get(third); ok || h.sequence(third) != "none" {
			t.Error("the bundle of one who is no peer any more stays")
		}
	})
}

func TestASpoiltStoredBundleKeepsNobodyOut(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		store := &memory{all: map[spiffeid.TrustDomain]federation.Stored{
			partner: {TrustDomain: partner, Document: []byte("spoilt")},
		}}
		h := start(t, store, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, pinnedPeer(a))
		if h.sequence(partner) != "1" || h.endpoints.last(t, partnerURL).HTTPSSPIFFE.Fingerprint == "" {
			t.Error("did not start anew from the bootstrap")
		}
	})
}

func TestWhatIsNotDurableIsNotBelieved(t *testing.T) { // FED-06
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{fail: errors.New("disk full")}, nil)
		defer h.stop()
		h.endpoints.tags = true
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		if got := h.sequence(partner); got != "none" {
			t.Errorf("sequence %s is believed", got)
		}
		wait(30 * time.Second)
		if got := h.sequence(partner); got != "1" {
			t.Errorf("sequence %s after the disk recovered", got)
		}
	})
}

func TestAFailedDeletionIsTriedAgain(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		h.store.fail = errors.New("disk full")
		if err := h.SetPeers(context.Background(), nil); err == nil || h.sequence(partner) != "none" {
			t.Errorf("got %v, sequence %s", err, h.sequence(partner))
		}
		h.peers(t)
		if _, ok := h.store.get(partner); ok {
			t.Error("the bundle stays stored")
		}
	})
}

func TestSetPeersIsAllOrNothing(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		for name, peers := range map[string][]federation.Peer{
			"our own trust domain": {webPeer(example, partnerURL)},
			"one twice":            {webPeer(third, partnerURL), webPeer(third, partnerURL)},
			"http":                 {webPeer(third, "http://third.example/")},
		} {
			if err := h.SetPeers(context.Background(), peers); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		if got := h.sequence(partner); got != "1" {
			t.Errorf("sequence %s: a refused call removed a peer", got)
		}
		h.peers(t, webPeer(partner, partnerURL))
		if h.store.loads != 1 {
			t.Errorf("the store was read %d times", h.store.loads)
		}
	})
}

func TestAlarms(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	priv := fmt.Sprintf(`{"spiffe_sequence":3,"keys":[%s,{"use":"jwt-svid","kid":"k",%s}]}`, x509Entry(t, a.Cert), jwkMembers(t, newKey(t)))
	spiffe := federation.Peer{TrustDomain: partner, URL: partnerURL, HTTPSSPIFFE: &federation.HTTPSSPIFFE{
		EndpointID: endpoint, Fingerprint: federation.Fingerprint(a.Cert)}}
	tests := []struct{ name, before, after, alarm string }{
		{"closed", document(t, 1, 300, a), document(t, 2, 300), "holds no key"},
		{"every key", document(t, 1, 300, a), document(t, 2, 300, b), "every key"},
		{"sequence stands still", document(t, 1, 300, a), document(t, 1, 300, a, b), "did not grow"},
		{"sequence is gone", document(t, 1, 300, a), `{"keys":[` + x509Entry(t, a.Cert) + `]}`, "did not grow"},
		{"private key", document(t, 1, 300, a), priv, "private"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := start(t, &memory{}, nil)
				defer h.stop()
				h.endpoints.set(partnerURL, tt.before)
				h.peers(t, spiffe)
				if strings.Contains(h.log.String(), tt.alarm) {
					t.Error("alarm before its cause")
				}
				h.endpoints.set(partnerURL, tt.after)
				if err := h.Refresh(context.Background(), partner); err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(h.log.String(), tt.alarm) {
					t.Errorf("no alarm in %s", &h.log)
				}
			})
		})
	}
}

func TestAClosedDomainVerifiesNothing(t *testing.T) { // TDB-17, FC-27
	a := newCA(t, nil)
	leaf := a.Leaf(t, nil, "spiffe://partner.example/w")
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, pinnedPeer(a))
		if _, _, err := federation.VerifyX509(certs(leaf), h.Set(), epoch); err != nil {
			t.Fatal(err)
		}
		h.endpoints.set(partnerURL, document(t, 2, 300))
		wait(5 * time.Minute)
		if _, _, err := federation.VerifyX509(certs(leaf), h.Set(), epoch); err == nil {
			t.Error("an SVID of a closed trust domain verified")
		}
		n := len(h.endpoints.to(partnerURL))
		wait(5 * time.Minute)
		if len(h.endpoints.to(partnerURL)) != n {
			t.Error("asked an endpoint that nothing can verify")
		}
		if status, _ := h.Status(partner); status.LastError == nil || !strings.Contains(status.LastError.Error(), "bootstrap") {
			t.Errorf("no way out in %v", status.LastError)
		}
	})
}

// Regression: CVE-2025-62513
func TestEachFetchIsLoggedWithoutSecrets(t *testing.T) { // FED-38
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		url := partnerURL + "?token=secret"
		h.peers(t, webPeer(partner, url))
		h.endpoints.set(url, document(t, 5, 300, a))
		wait(30 * time.Second)
		lines := strings.Split(strings.TrimSpace(h.log.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "result=failed") || !strings.Contains(lines[1], "result=updated sequence=5") {
			t.Errorf("log is %s", &h.log)
		}
		if strings.Contains(h.log.String(), "secret") || strings.Count(h.log.String(), "url="+partnerURL+" ") != 2 {
			t.Errorf("log is %s", &h.log)
		}
	})
}

func TestNewWantsItsParts(t *testing.T) {
	for name, cfg := range map[string]federation.Config{
		"no trust domain": {Fetcher: &endpoints{}, Store: &memory{}},
		"no fetcher":      {TrustDomain: example, Store: &memory{}},
		"no store":        {TrustDomain: example, Fetcher: &endpoints{}},
	} {
		if _, err := federation.New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

// A fifth of 500 peers answers nothing for five seconds each time; the others
// stay as fresh as their hint says, and local work with the Set is not held up.
func TestBlackHolesLeaveTheOthersFresh(t *testing.T) {
	a := newCA(t, nil)
	doc := document(t, 1, 60, a)
	synctest.Test(t, func(t *testing.T) {
		fetcher := &blackHoles{doc: doc}
		store := &memory{}
		r, err := federation.New(federation.Config{TrustDomain: example, Fetcher: fetcher, Store: store})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		var peers []federation.Peer
		for i := range 500 {
			td := spiffeid.RequireTrustDomainFromString(fmt.Sprintf("peer%d.example", i))
			host := "alive"
			if i%5 == 0 {
				host = "dead"
			}
			peers = append(peers, webPeer(td, fmt.Sprintf("https://%s%d.example/", host, i)))
		}
		if err := r.SetPeers(ctx, peers); err != nil {
			t.Fatal(err)
		}
		for range 60 { // an hour, looked at each minute
			wait(time.Minute)
			for i, s := range r.Statuses() {
				dead := strings.Contains(s.Peer.URL, "dead")
				age := time.Since(s.ConfirmedAt)
				if dead != (s.State == federation.Waiting) || !dead && age > 67*time.Second {
					t.Fatalf("peer %d at %s is %s, %s old", i, s.Peer.URL, s.State, age)
				}
			}
		}
		if got := len(r.Set().All()); got != 400 {
			t.Errorf("%d bundles", got)
		}
		cancel()
		<-done
	})
}

// blackHoles answers but for hosts that are called dead.
type blackHoles struct{ doc string }

func (b *blackHoles) Fetch(ctx context.Context, req federation.Request) (federation.Response, error) {
	if !strings.Contains(req.URL, "dead") {
		return federation.Response{Document: []byte(b.doc)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // fetch.Timeout
	defer cancel()
	<-ctx.Done()
	return federation.Response{}, ctx.Err()
}
