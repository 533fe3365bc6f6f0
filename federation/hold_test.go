package federation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// verifies says which of the authorities the Set has for partner, by name.
func (h *house) verifies(named map[string]*ca) string {
	b, ok := h.Set().Get(partner)
	if !ok {
		return "none"
	}
	var all []string
	for _, name := range []string{"a", "b", "c"} {
		if c := named[name]; c != nil && b.HasX509Authority(c.Cert) {
			all = append(all, name)
		}
	}
	return strings.Join(all, " ")
}

func bundlePrint(cas ...*ca) string {
	b := spiffebundle.New(partner)
	for _, c := range cas {
		b.AddX509Authority(c.Cert)
	}
	return federation.BundleFingerprint(b)
}

// A change of every key is what who takes over a name in DNS would make.
func TestWebChangeOfEveryKeyIsHeld(t *testing.T) {
	a, b, c := newCA(t, nil), newCA(t, nil), newCA(t, nil)
	named := map[string]*ca{"a": a, "b": b, "c": c}
	type step struct {
		doc, want string
		state     federation.State
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"held, and again", []step{
			{document(t, 1, 300, a), "a", federation.Fresh},
			{document(t, 2, 300, b), "a", federation.Holding},
			{document(t, 3, 300, b), "a", federation.Holding},
			{document(t, 3, 300, c), "a", federation.Holding},
		}},
		{"taken back", []step{
			{document(t, 1, 300, a), "a", federation.Fresh},
			{document(t, 2, 300, b), "a", federation.Holding},
			{document(t, 1, 300, a), "a", federation.Fresh},
			{document(t, 3, 300, a, b), "a b", federation.Fresh},
			{document(t, 4, 300, b), "b", federation.Fresh},
		}},
		{"a key in common goes through", []step{
			{document(t, 1, 300, a), "a", federation.Fresh},
			{document(t, 2, 300, b), "a", federation.Holding},
			{document(t, 3, 300, a, c), "a c", federation.Fresh},
		}},
		{"closing first is no way around", []step{
			{document(t, 1, 300, a), "a", federation.Fresh},
			{document(t, 2, 300), "", federation.Closed},
			{document(t, 3, 300, b), "", federation.Closed},
		}},
		{"a sequence that goes back is refused before", []step{
			{document(t, 5, 300, a), "a", federation.Fresh},
			{document(t, 4, 300, b), "a", federation.Fresh},
		}},
		{"the first bundle is believed", []step{{document(t, 1, 300, c), "c", federation.Fresh}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := start(t, &memory{}, nil)
				defer h.stop()
				h.endpoints.tags = true
				var since time.Time
				for i, s := range tt.steps {
					h.endpoints.set(partnerURL, s.doc)
					if i == 0 {
						h.peers(t, webPeer(partner, partnerURL))
					} else {
						_ = h.Refresh(context.Background(), partner) // its error is the state's
					}
					status, _ := h.Status(partner)
					if again := status.State == federation.Holding && !since.IsZero(); again && !status.HeldAt.Equal(since) {
						t.Errorf("step %d: held since %s, not %s: another change is no new start", i, status.HeldAt, since)
					}
					since = status.HeldAt
					wait(time.Second)
					if got := h.verifies(named); got != s.want || status.State != s.state {
						t.Errorf("step %d: %q is trusted, the state is %s, want %q and %s", i, got, status.State, s.want, s.state)
					}
				}
			})
		})
	}
}

func TestSPIFFEChangeOfEveryKeyIsApplied(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, pinnedPeer(a))
		h.endpoints.set(partnerURL, document(t, 2, 300, b))
		if err := h.Refresh(context.Background(), partner); err != nil {
			t.Fatal(err)
		}
		if got := h.verifies(map[string]*ca{"a": a, "b": b}); got != "b" {
			t.Errorf("%q is trusted", got)
		}
		for _, print := range []string{bundlePrint(a), bundlePrint(b)} {
			if !strings.Contains(h.log.String(), print) {
				t.Errorf("the alarm does not name %s", print)
			}
		}
	})
}

func TestAccept(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	named := map[string]*ca{"a": a, "b": b}
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		if err := h.Accept(t.Context(), partner, ""); err == nil {
			t.Error("accepted, and nothing is held")
		}
		if err := h.Accept(t.Context(), third, ""); err == nil {
			t.Error("accepted of one who is no peer")
		}
		h.endpoints.set(partnerURL, document(t, 2, 300, b))
		err := h.Refresh(t.Context(), partner)
		for _, want := range []string{bundlePrint(a), bundlePrint(b), "credence peer accept " + partner.Name()} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not name %s", err, want)
			}
		}
		if !strings.Contains(h.log.String(), "level=ERROR") || strings.Count(h.log.String(), bundlePrint(b)) < 2 {
			t.Errorf("no alarm with both fingerprints in %s", &h.log)
		}
		if err := h.Accept(t.Context(), partner, bundlePrint(a)); err == nil || h.verifies(named) != "a" {
			t.Errorf("accepted another than was compared: %v", err)
		}
		h.store.fail = errors.New("disk full")
		if err := h.Accept(t.Context(), partner, ""); err == nil || h.verifies(named) != "a" {
			t.Errorf("accepted, and not durable: %v", err)
		}
		if err := h.Accept(t.Context(), partner, bundlePrint(b)); err != nil {
			t.Fatal(err)
		}
		status, _ := h.Status(partner)
		if got := h.verifies(named); got != "b" || status.State != federation.Fresh || status.LastError != nil {
			t.Errorf("%q is trusted, %+v", got, status)
		}
		if stored, _ := h.store.get(partner); stored.Held != nil || !stored.HeldAt.IsZero() || stored.Sequence != 2 {
			t.Errorf("stored: %+v", stored)
		}
		wait(time.Hour)
		if got := h.verifies(named); got != "b" {
			t.Errorf("%q is trusted an hour later", got)
		}
	})
}

// What is held closes the domain when the bundle before it gets too old,
// whether the endpoint answers or not, and over a restart too.
func TestHeldClosesAfterMaxStaleness(t *testing.T) {
	a, b := newCA(t, nil), newCA(t, nil)
	named := map[string]*ca{"a": a, "b": b}
	peer := webPeer(partner, partnerURL)
	peer.MaxStaleness = 58 * time.Minute // between two polls
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("endpoint dead %v", dead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &memory{}
				h := start(t, store, nil)
				h.endpoints.set(partnerURL, document(t, 1, 300, a))
				h.peers(t, peer)
				h.endpoints.set(partnerURL, document(t, 2, 300, b))
				wait(5 * time.Minute)
				if dead {
					h.endpoints.set(partnerURL, "")
				}
				wait(52*time.Minute + 59*time.Second)
				if got := h.verifies(named); got != "a" {
					t.Errorf("%q is trusted within max_staleness", got)
				}
				if !dead {
					if status, _ := h.Status(partner); !status.ClosesAt.Equal(bubble.Add(58*time.Minute)) || !status.HeldAt.Equal(bubble.Add(5*time.Minute)) {
						t.Errorf("status %+v", status)
					}
				}
				wait(time.Second)
				if got := h.verifies(named); got != "" {
					t.Errorf("%q is trusted after max_staleness", got)
				}
				if status, _ := h.Status(partner); status.State != federation.Closed {
					t.Errorf("state %s", status.State)
				}
				h.stop()
				h = start(t, store, nil)
				defer h.stop()
				hangs := make(chan struct{})
				h.endpoints.slow = map[string]chan struct{}{partnerURL: hangs}
				h.peers(t, peer)
				if got := h.verifies(named); got != "" {
					t.Errorf("%q is trusted after a restart", got)
				}
				close(hangs) // its endpoints answer nothing
				synctest.Wait()
				longer := peer
				longer.MaxStaleness = 2 * time.Hour
				h.peers(t, longer)
				if got := h.verifies(named); got != "a" {
					t.Errorf("%q is trusted after the operator gave it longer", got)
				}
				if err := h.Accept(t.Context(), partner, bundlePrint(b)); err != nil || h.verifies(named) != "b" {
					t.Errorf("after a restart: %v, %q is trusted", err, h.verifies(named))
				}
			})
		})
	}
}

func TestASpoiltHeldDocumentStillCloses(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		day := bubble.Add(-25 * time.Hour)
		h := start(t, &memory{all: map[spiffeid.TrustDomain]federation.Stored{
			partner: {TrustDomain: partner, Document: []byte(document(t, 1, 300, a)), FetchedAt: day, ConfirmedAt: day, Held: []byte("spoilt"), HeldAt: day},
		}}, nil)
		defer h.stop()
		h.peers(t, webPeer(partner, partnerURL))
		if got := h.verifies(map[string]*ca{"a": a}); got != "" {
			t.Errorf("%q is trusted", got)
		}
		if err := h.Accept(t.Context(), partner, ""); err == nil {
			t.Error("accepted what nobody can read")
		}
	})
}

func TestRefreshForAValidatorIsRationed(t *testing.T) {
	a := newCA(t, nil)
	const thirdURL = "https://third.example/bundle"
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.endpoints.set(thirdURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL), webPeer(third, thirdURL))
		var fetched []bool
		for range 25 { // one a second
			now, err := h.RefreshFor(t.Context(), partner)
			if err != nil {
				t.Fatal(err)
			}
			fetched = append(fetched, now)
			wait(time.Second)
		}
		want := make([]bool, 25)
		want[0], want[10], want[20] = true, true, true
		if diff := cmp.Diff(want, fetched); diff != "" {
			t.Error(diff)
		}
		if n, other := len(h.endpoints.to(partnerURL)), len(h.endpoints.to(thirdURL)); n != 4 || other != 1 {
			t.Errorf("%d and %d requests, want the poll and 3, and the poll", n, other)
		}
		if _, err := h.RefreshFor(t.Context(), example); err == nil {
			t.Error("refreshed one who is no peer")
		}
	})
}

// Many validators that meet the new key at once wait for one fetch.
func TestRefreshForIsShared(t *testing.T) {
	a := newCA(t, nil)
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &memory{}, nil)
		defer h.stop()
		h.endpoints.set(partnerURL, document(t, 1, 300, a))
		h.peers(t, webPeer(partner, partnerURL))
		answer := make(chan struct{})
		h.endpoints.mu.Lock()
		h.endpoints.slow = map[string]chan struct{}{partnerURL: answer}
		h.endpoints.mu.Unlock()
		outcomes := make(chan bool, 10)
		for range 10 {
			go func() {
				now, err := h.RefreshFor(context.Background(), partner)
				outcomes <- now && err == nil
			}()
		}
		synctest.Wait()
		close(answer)
		for range 10 {
			if !<-outcomes {
				t.Error("one did not wait for the fetch")
			}
		}
		if n := len(h.endpoints.to(partnerURL)); n != 2 {
			t.Errorf("%d requests, want the poll and one", n)
		}
	})
}
