package broker

import (
	"context"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// The kinds of SVID.
const (
	KindX509 = "x509"
	KindJWT  = "jwt"
)

// Issued is one SVID as the issuance index has it: what was given to whom, and
// until when it is believed.
type Issued struct {
	Kind      string // KindX509 or KindJWT
	Serial    string // hex serial of an X509-SVID, jti of a JWT-SVID
	SPIFFEID  string
	Identity  string // empty: a node's own
	Revision  uint64 // of the Identity
	Node      string // SPIFFE ID of the node that it went to
	Authority string // ID of the issuing CA or JWT key; empty: not known
	Target    string
	Audiences []string
	IssuedAt  time.Time // when it was granted: its notBefore or iat lies further back
	ExpiresAt time.Time
	Record    uint64 // sequence number in the audit record of its broker
}

// Bounds of a question to the index.
const (
	defaultIssued = 100
	MaxIssued     = 10_000
)

// An IssuedQuery says which SVIDs are wanted: all that is set must hold, and
// one of the first five must be set.
type IssuedQuery struct {
	Serial, SPIFFEID, Identity, Node, Authority string

	Kind         string    // KindX509 or KindJWT; empty: both
	From, Before time.Time // issued then, Before not included; zero: no bound
	LiveAt       time.Time // only those that end after it; zero: all
	Limit        int       // 0: 100; at most MaxIssued
	After        *Issued   // a row: only those that come after it in the answer; nil: all
}

// Complete fills in the limit. The error wraps ErrRequest.
func (q IssuedQuery) Complete() (IssuedQuery, error) {
	if q.Limit == 0 {
		q.Limit = defaultIssued
	}
	switch {
	case q.Limit < 0 || q.Limit > MaxIssued:
		return q, requestError("a limit of %d: 1 to %d are taken", q.Limit, MaxIssued)
	case q.Serial == "" && q.SPIFFEID == "" && q.Identity == "" && q.Node == "" && q.Authority == "":
		return q, requestError("name a serial, a SPIFFE ID, an identity, a node or an authority")
	}
	return q, nil
}

// An Index keeps what was issued: a projection of the audit records of all
// brokers, each of which has its own place in it.
type Index interface {
	// IndexedUpTo returns the last place that was indexed of a broker's record;
	// zero: none.
	IndexedUpTo(ctx context.Context, origin string) (audit.Ref, error)
	// AddIssued adds rows and moves the place on, in one transaction. A row
	// that is there already stays as it is.
	AddIssued(ctx context.Context, origin string, upTo audit.Ref, rows []Issued) error
	// Issued answers a query, newest first, and says how many there are
	// without the limit.
	Issued(context.Context, IssuedQuery) (rows []Issued, total int, err error)
	// Unreplaced says how many X509-SVIDs of other authorities live at now
	// without a successor of the same ID, Identity and node by these, and when
	// the last of them ends.
	Unreplaced(ctx context.Context, authorities []string, now time.Time) (count int, until time.Time, err error)
	// ForgetIssued removes up to so many SVIDs that ended before a time, and
	// returns how many it removed.
	ForgetIssued(ctx context.Context, endedBefore time.Time, most int) (int, error)
	Marks
}
