package broker_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/server"
)

// listed are the serial numbers on all CRLs, as the record has them.
func (e *env) listed() (all []string) {
	e.Helper()
	for _, l := range e.issuer.CRLs() {
		list, err := x509.ParseRevocationList(l.DER)
		e.must(err)
		for _, entry := range list.RevokedCertificateEntries {
			all = append(all, fmt.Sprintf("%032x", entry.SerialNumber))
		}
	}
	slices.Sort(all)
	return all
}

func serialOf(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }

// TestRevokedIsOnTheCRL holds that the serials that a cut-off is about, and no
// others, are on the CRL when Revoke returns.
func TestRevokedIsOnTheCRL(t *testing.T) {
	for _, row := range []struct {
		kind         string
		value        func(*env) string
		svid, itself bool
	}{
		{broker.CutID, func(*env) string { return "spiffe://example.org/web" }, true, false},
		{broker.CutIdentity, func(*env) string { return "web" }, true, false},
		{broker.CutNode, func(*env) string { return nodeID }, true, true},
		{broker.CutAuthority, func(e *env) string { return e.active(authority.Issuing, "") }, true, true},
		{broker.CutID, func(*env) string { return "spiffe://example.org/other" }, false, false},
		{broker.CutAuthority, func(e *env) string { return e.active(authority.JWTKey, "ES256") }, false, false},
	} {
		t.Run(row.kind+" "+fmt.Sprint(row.svid), func(t *testing.T) {
			e := newEnv(t)
			e.run()
			joined := e.join("n1")
			n, err := e.as(joined)
			e.must(err)
			svid := e.issue(n, item(t, 1))[0].SVIDs[0]
			_, _, err = e.IssueJWT(t.Context(), n, broker.JWTRequest{Workload: workload(t, "workload.unix.uid", "33"), Set: set(1), Audiences: []string{"spiffe://example.org/db"}})
			e.must(err) // which is on no list
			e.pass(time.Second)
			r := e.revoke(row.kind, row.value(e))
			if len(r.Problems) > 0 {
				t.Error(r.Problems)
			}
			var want []string
			if row.svid {
				want = append(want, serialOf(svid.Chain[0]))
			}
			if row.itself {
				want = append(want, serialOf(joined.Chain[0]))
			}
			slices.Sort(want)
			e.equal(e.listed(), want)
		})
	}
}

// lister fails while it is told to.
type lister struct {
	broker.Lister
	mu     sync.Mutex // guards what follows
	failed error
	pages  []int
}

func (l *lister) List(ctx context.Context, rows []broker.Issued, reason string) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return nil, l.failed
	}
	l.pages = append(l.pages, len(rows))
	return l.Lister.List(ctx, rows, reason)
}

func (l *lister) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = err
}

// TestListingFailsAndGoesOn holds that what could not be put on a CRL is, once
// that works again, and after a restart.
func TestListingFailsAndGoesOn(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			e := newEnv(t)
			lists := &lister{Lister: server.Lists{Authority: e.issuer}}
			e.lists = lists
			e.start()
			stop := e.run()
			n := e.caller("n1")
			svid := e.issue(n, item(t, 1))[0].SVIDs[0]
			e.pass(time.Second)
			lists.fail(errors.New("the HSM is out"))
			r := e.revoke(broker.CutIdentity, "web")
			if len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "the HSM is out") || len(r.Serials) != 1 {
				t.Errorf("%v %v", r.Problems, r.Serials)
			}
			e.equal(e.listed(), []string(nil))
			if restart {
				stop()
				e.start()
			}
			lists.fail(nil)
			if restart {
				e.run()
			}
			e.eventually("it is on the CRL", func() bool { return slices.Equal(e.listed(), []string{serialOf(svid.Chain[0])}) })
		})
	}
}

// TestLateRowsAreListed holds that what the index learns after the cut-off was
// made is on the CRL all the same, and what was issued after it is not.
func TestLateRowsAreListed(t *testing.T) {
	e := newEnv(t)
	n := e.caller("n1")
	svid := e.issue(n, item(t, 1))[0].SVIDs[0] // nothing indexes
	e.pass(time.Second)
	r := e.revoke(broker.CutIdentity, "web")
	if len(r.Problems) != 1 || len(r.Serials) > 0 {
		t.Errorf("%v %v", r.Problems, r.Serials)
	}
	e.pass(time.Second)
	e.issue(n, item(t, 1))
	e.run()
	e.eventually("all is indexed", func() bool { return e.indexed("web") == 2 })
	e.eventually("it is on the CRL", func() bool { return len(e.listed()) > 0 })
	e.equal(e.listed(), []string{serialOf(svid.Chain[0])})
}

// TestListingInPages revokes more than is held in memory at once, and more than
// a CRL takes.
func TestListingInPages(t *testing.T) {
	if racing {
		t.Skip("20,000 rows take longer than Revoke waits for them")
	}
	e := newEnv(t)
	lists := &lister{Lister: server.Lists{Authority: e.issuer}}
	e.lists = lists
	e.start()
	issuing := e.active(authority.Issuing, "")
	rows := make([]broker.Issued, authority.MaxRevoked+3)
	for n := range rows { // many at one time, so that pages end between equals
		rows[n] = broker.Issued{
			Kind: broker.KindX509, Serial: fmt.Sprintf("7%031x", n), SPIFFEID: "spiffe://example.org/bulk", Identity: "bulk", Authority: issuing,
			IssuedAt: e.now().Add(-time.Duration(n%3) * time.Second), ExpiresAt: e.now().Add(time.Hour), Record: uint64(n),
		}
	}
	rows[0].Authority = "0123456789abcdef0123456789abcdef" // nobody's
	e.must(e.store.AddIssued(t.Context(), "b2", audit.Ref{}, rows))
	e.pass(time.Second)
	e.run()
	r := e.revoke(broker.CutIdentity, "bulk")
	if got := len(e.listed()); got != authority.MaxRevoked {
		t.Errorf("%d on the CRL", got)
	}
	e.equal(lists.pages[len(lists.pages)-3:], []int{broker.MaxIssued, broker.MaxIssued, 3})
	text := strings.Join(r.Problems, "\n")
	for _, want := range []string{"no CA of ours", "CRL is full", "ca replace issuing", "newest 10000 of 20003"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("problems lack, or repeat, %q:\n%s", want, text)
		}
	}
}
