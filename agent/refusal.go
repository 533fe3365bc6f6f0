package agent

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrorDomain is the domain of the google.rpc.ErrorInfo that a refusal's status
// carries.
const ErrorDomain = "credence"

// Codes of refusals, the reason in their ErrorInfo: what a caller may be told,
// each by its own. A Deny that withholds, and an Identity that is not there, are
// both NoIdentity: which of them it was, and what was nearest, only explain tells.
const (
	NoIdentity          = "NO_IDENTITY"           // nothing is granted to what was attested
	AttestorFailed      = "ATTESTOR_FAILED"       // so is this, but something could not be attested
	NodeEvicted         = "NODE_EVICTED"          // nobody on this node gets anything
	Withdrawn           = "WITHDRAWN"             // by a Deny, a revocation or a change of policy
	AudienceNotListed   = "AUDIENCE_NOT_LISTED"   // by an identity of the caller
	AudienceSingleUse   = "AUDIENCE_SINGLE_USE"   // no file holds its tokens
	TargetNotListed     = "TARGET_NOT_LISTED"     // likewise
	TargetTakesX509     = "TARGET_TAKES_X509"     // so it has no token
	SPIFFEIDNotGranted  = "SPIFFE_ID_NOT_GRANTED" // another one was asked for than those that are
	LifeRefused         = "TTL_REFUSED"           // it is over the identity's, or under the least
	NoIssuer            = "NO_ISSUER"             // so the broker makes no JWT-SVID
	ProcessChanged      = "PROCESS_CHANGED"       // the caller is not who connected
	RequestRefused      = "REQUEST_REFUSED"       // the broker takes no such facts
	KeyRefused          = "KEY_REFUSED"           // nor this key
	BrokerUnreachable   = "BROKER_UNREACHABLE"    // and nothing is held
	BrokerFailed        = "BROKER_FAILED"         // it answers, but not with this
	AgentUnavailable    = "AGENT_UNAVAILABLE"     // it is full, stops, or cannot keep its reports
	TargetRefused       = "TARGET_REFUSED"        // the provider's word, see exchangers.Error
	sinceKey, recordKey = "since", "record"
	attestorKey, whyKey = "attestor", "why"
)

// A Denied is a refusal with what to quote to the operator.
type Denied struct {
	Record string            // of the broker's audit record; empty: refused on this node
	Reason string            // what the caller may be told
	Code   string            // one of ours; empty means NoIdentity
	Meta   map[string]string // what else its ErrorInfo says
}

// Error names the way to the reason.
func (d *Denied) Error() string {
	s := ErrDenied.Error()
	if d.Reason != "" {
		s = d.Reason
	}
	if d.Record != "" {
		s += "; the operator finds it in the broker's record as " + d.Record + ", and why with: credence explain --pid PID"
	}
	return s
}

// Is makes a Denied an ErrDenied.
func (d *Denied) Is(err error) bool { return err == ErrDenied }

func (d *Denied) info() *errdetails.ErrorInfo {
	meta := maps.Clone(d.Meta)
	if d.Record != "" {
		if meta == nil {
			meta = make(map[string]string)
		}
		meta[recordKey] = d.Record
	}
	code := d.Code
	if code == "" {
		code = NoIdentity
	}
	return &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: code, Metadata: meta}
}

// An Unavailable is why the agent cannot answer yet.
type Unavailable struct {
	Code   string // one of ours
	Reason string
	Meta   map[string]string
}

// Error is ErrUnavailable's text, and the reason.
func (u *Unavailable) Error() string { return ErrUnavailable.Error() + ": " + u.Reason }

// Is makes an Unavailable an ErrUnavailable.
func (u *Unavailable) Is(err error) bool { return err == ErrUnavailable }

func (u *Unavailable) info() *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: u.Code, Metadata: u.Meta}
}

// InfoFor is what StatusOf's status carries for an error.
func InfoFor(err error) *errdetails.ErrorInfo {
	var told interface {
		error
		info() *errdetails.ErrorInfo
	}
	switch {
	case errors.As(err, &told):
		return told.info()
	case errors.Is(err, ErrDenied):
		return &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: NoIdentity}
	}
	return &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: AgentUnavailable}
}

// WithInfo is a status that carries a code of ours, and what belongs to it.
func WithInfo(code codes.Code, text, reason string, meta map[string]string) error {
	return withInfo(code, text, &errdetails.ErrorInfo{Domain: ErrorDomain, Reason: reason, Metadata: meta})
}

func withInfo(code codes.Code, text string, info *errdetails.ErrorInfo) error {
	s := status.New(code, text)
	detailed, err := s.WithDetails(info)
	if err != nil { // a text that is no UTF-8
		return s.Err()
	}
	return detailed.Err()
}

// InfoOf is what a status of ours carries; nil: nothing.
func InfoOf(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == ErrorDomain {
			return info
		}
	}
	return nil
}

// unavailable is why the broker did not give what it was asked for. A broker
// that answers puts an ErrorInfo into its refusals; who else speaks is what
// stands between us.
func (a *Agent) unavailable(err error) error {
	if info := InfoOf(err); info != nil {
		return &Unavailable{BrokerFailed, status.Convert(err).Message(), map[string]string{"broker": info.GetReason()}}
	}
	since := a.contact.lostAt().UTC().Format(time.RFC3339)
	reason := "the broker has not answered since " + since
	if err != nil {
		reason += ": " + status.Convert(err).Message()
	}
	return &Unavailable{BrokerUnreachable, reason, map[string]string{sinceKey: since}}
}

// A Failure is an attestor's.
type Failure struct {
	Attestor string // its prefix
	Err      error
}

// maxWhy bounds what is repeated of an attestor's error.
const maxWhy = 512

// Why is why each failed attestor failed, by its prefix: in its words for the
// operator, else by their kind.
func (t Attestation) Why(operator bool) map[string]string {
	why := make(map[string]string, len(t.Failed))
	for _, f := range t.Failed {
		text := kindOf(f.Err)
		if operator {
			text = strings.ToValidUTF8(f.Err.Error(), "?")
			text = strings.ToValidUTF8(text[:min(len(text), maxWhy)], "")
		}
		why[f.Attestor] = text
	}
	return why
}

// blame adds to a denial that some attestors failed: what they would have said
// may be what is missing. The caller learns the kind of the failure; its words,
// which may tell of the node, are for the log and for explain.
func blame(err error, failed []Failure) error {
	denied := new(Denied)
	if len(failed) == 0 || !errors.As(err, &denied) || denied.Code != "" && denied.Code != NoIdentity {
		return err
	}
	var attestors, whys, told []string
	for _, f := range failed {
		why := kindOf(f.Err)
		attestors, whys = append(attestors, f.Attestor), append(whys, why)
		told = append(told, "attestor "+strings.TrimPrefix(f.Attestor, "workload.")+" failed ("+why+")")
	}
	return &Denied{
		Record: denied.Record, Code: AttestorFailed,
		Reason: denied.reason() + ", and " + strings.Join(told, ", ") + ": what it would have proven is unknown",
		Meta:   map[string]string{attestorKey: strings.Join(attestors, ","), whyKey: strings.Join(whys, ", ")},
	}
}

func (d *Denied) reason() string {
	if d.Reason == "" {
		return ErrDenied.Error()
	}
	return d.Reason
}

// kindOf is what a caller may be told of an attestor's failure.
func kindOf(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "it took too long"
	case errors.Is(err, fs.ErrPermission):
		return "it may not ask"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return "what it asks is not there"
	}
	return "the agent's log says why"
}
